"""Policies by name, by text, by class; what the registry refuses and how it says so."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest

from synergy_gym.policies import (
    EnginePolicy,
    RouterPolicy,
    base,
    describe,
    engine_policies,
    engine_policy,
    make_engine_policy,
    make_router_policy,
    registry,
    router_policies,
    router_policy,
)
from synergy_gym.policies.convert import convert
from synergy_gym.types import ClusterView, EngineSpec, RequestView

FOLDER = Path(registry.__file__).parent
ENGINE = {"vllm-v1", "vllm-v0", "sarathi-512", "static-256", "static-1024", "static-2048"}
ENGINE |= {"shortest-prompt", "earliest-deadline", "random"}
ENGINE |= {"lens-ref", "lens-6p", "lens-guarded", "lens-e2e", "lens-plus"}
ROUTER = {"random", "round-robin", "session", "weighted", "least-loaded", "latency-based"}
ROUTER |= {"least-outstanding", "power-of-two", "least-kv", "prefix-aware"}
ROUTER |= {"rr-veto", "lmetric", "block", "preble", "prism-ref", "prism-fixed", "prism-plus"}
SMALL = EngineSpec("small", "g", "m", "p", 8, 128, 1024, 100)


@dataclass
class Tuned(EnginePolicy):
    """Takes parameters of every type."""

    count: int
    share: float = 0.5
    on: bool = True
    mode: Literal["fast", "slow"] = "fast"
    cap: int | None = None
    text: str = "a"

    shared: ClassVar[int] = 3


class Plain(RouterPolicy):
    """No dataclass, no decorator."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        return cluster.argmax(cluster.alive)


@pytest.fixture
def tuned_spec(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "tuned_plugin", sys.modules[__name__])
    return "tuned_plugin:Tuned"


def test_every_policy_of_the_design_is_there() -> None:
    assert set(engine_policies()) >= ENGINE
    assert set(router_policies()) >= ROUTER
    assert engine_policies() == sorted(engine_policies())


@pytest.mark.parametrize("kind", ["engine", "router"])
def test_one_file_per_policy_with_its_source_and_class(kind: Literal["engine", "router"]) -> None:
    files = {path for path in (FOLDER / kind).glob("*.py") if path.name != "__init__.py"}
    names = {"engine": engine_policies, "router": router_policies}[kind]()
    infos = [describe(name, kind) for name in names]
    built_in = {info.name: info for info in infos if Path(info.source) in files}
    assert {Path(info.source) for info in built_in.values()} == files
    assert len(built_in) == len(files)
    for info in built_in.values():
        assert info.summary.endswith((".", ";"))
        listed = info.reference.replace("\n", " ").partition("Information class: ")[2]
        assert sorted(listed.partition(".")[0].split(", ")) == list(info.information), info.name


@pytest.mark.parametrize("name", sorted(ENGINE))
def test_label_builds_the_same_engine_policy(name: str) -> None:
    policy = make_engine_policy(name)
    again = make_engine_policy(policy.label)
    assert policy.label == name
    assert again == policy
    assert again.policy_hash() == policy.policy_hash()


@pytest.mark.parametrize(
    ("name", "used"),
    [("lens-ref", "lens_search"), ("lens-plus", "pacing"), ("lens-plus", "rls")],
)
def test_the_hash_covers_the_modules_that_a_policy_uses(name: str, used: str) -> None:
    assert used in modules_of(name)
    assert "registry" not in modules_of(name)
    assert "pacing" not in modules_of("vllm-v1")


def modules_of(name: str) -> set[str]:
    """Modules whose definitions are in a policy's hash, by their last name."""
    cls = type(make_engine_policy(name))
    nodes = base._package_behaviour().reached([(cls.__module__, cls.__qualname__)])
    return {module.rpartition(".")[2] for module, _ in nodes}


def test_the_hash_does_not_follow_the_file_of_a_class(tmp_path: Path) -> None:
    source = "from synergy_gym.policies.base import RouterPolicy\nclass Own(RouterPolicy):\n"
    route = "    def route(self, request, cluster):\n        return {}\n"
    hashes = []
    for name, answer in (("one", "1"), ("two", "(1)  # the same"), ("three", "2")):
        path = tmp_path / f"hash_{name}.py"
        path.write_text(f'"""Policy {name}."""\n{source}{route.format(answer)}')
        hashes.append(make_router_policy(f"{path}:Own").policy_hash())
    assert hashes[0] == hashes[1] != hashes[2]


def test_parameters_are_converted(tuned_spec: str) -> None:
    text = f"{tuned_spec}:count=3,share=1e-1,on=no,mode=slow,cap=none,text=b"
    policy = make_engine_policy(text)
    assert policy == Tuned(3, 0.1, False, "slow", None, "b")
    assert make_engine_policy(f"{tuned_spec}:count=3,cap=7") == Tuned(3, cap=7)
    assert policy.parameters()["mode"] == "slow"
    assert policy.label == f"{Tuned.__module__}:Tuned:count=3,share=0.1,on=False,mode=slow,text=b"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("count=x", "'x' is not an integer"),
        ("count=1,share=half", "'half' is not a number"),
        ("count=1,share=nan", "not finite"),
        ("count=1,on=maybe", "not true or false"),
        ("count=1,mode=warp", "not one of fast, slow"),
        ("count=1,size=2", "no parameter 'size'; valid: count, share, on, mode, cap, text"),
        ("share=0.1", "needs count="),
    ],
)
def test_bad_parameters_say_what_is_valid(tuned_spec: str, parameters: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_engine_policy(f"{tuned_spec}:{parameters}")


def test_values_of_other_types_need_an_instance() -> None:
    for hint in (list[int], int | str):
        with pytest.raises(ValueError, match="pass an instance"):
            convert("1", hint, "here")


def test_family_takes_any_number() -> None:
    policy = make_engine_policy("static-384")
    assert policy.parameters() == {"token_budget": 384}
    assert policy.label == "static-384"
    assert describe("static-384").name == describe("static-N").name == "static-N"
    for wrong in ("static-", "static-x", "static--1", "static-N", "static-1.5"):
        with pytest.raises(ValueError, match="unknown engine policy"):
            make_engine_policy(wrong)
    with pytest.raises(ValueError, match="takes none"):
        make_engine_policy("static-384:token_budget=2")


@pytest.mark.parametrize(
    "name", ["static-0", "static-129", "sarathi-512", "vllm-v0:token_budget=-1"]
)
def test_budget_beyond_the_server_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"'small'.* 128; choose"):
        make_engine_policy(name).reset(np.random.default_rng(0), SMALL, ())


def test_unknown_names_list_close_matches() -> None:
    with pytest.raises(ValueError, match="did you mean round-robin") as caught:
        make_router_policy("roundrobin")
    assert "power-of-two" in str(caught.value)
    with pytest.raises(ValueError, match="unknown engine policy 'x'"):
        make_engine_policy("x")
    with pytest.raises(ValueError, match=r"unknown engine policy 'x'.*/ unknown router policy"):
        describe("x")
    with pytest.raises(ValueError, match="kind='engine' or kind='router'"):
        describe("random")


@pytest.mark.parametrize("spec", ["no.such:Class", "synergy_gym.policies:Nothing", "os:path"])
def test_unknown_classes_are_named(spec: str) -> None:
    with pytest.raises(ValueError, match=spec):
        make_engine_policy(spec)


def test_classes_and_instances() -> None:
    policy = Plain()
    assert make_router_policy(policy) is policy
    assert isinstance(make_router_policy(Plain), Plain)
    assert policy.label == f"{Plain.__module__}:Plain"
    assert policy.information == {"router"}
    assert policy.parameters() == {}
    with pytest.raises(TypeError, match="RouterPolicy"):
        make_router_policy(Tuned(1))  # type: ignore[arg-type]


def test_hash_follows_class_and_parameters() -> None:
    hashes = {make_engine_policy(f"static-{n}").policy_hash() for n in (1, 2)}
    hashes |= {make_engine_policy(name).policy_hash() for name in ("vllm-v1", "sarathi-512")}
    assert len(hashes) == 4
    assert all(len(value) == 64 for value in hashes)


def test_registration_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="can read"):
        engine_policy("peeking", information=("engine", "oracle"))(Tuned)
    with pytest.raises(ValueError, match="can read"):
        router_policy("peeking", information="engine")(Plain)
    with pytest.raises(ValueError, match="already"):
        router_policy("session")(Plain)
    with pytest.raises(ValueError, match="'-' in the name"):
        router_policy("a:b")(Plain)
    with pytest.raises(ValueError, match="ends with '-N'"):
        engine_policy("tuned", family="count")(Tuned)
    with pytest.raises(TypeError, match="subclass of RouterPolicy"):
        router_policy("tuned")(Tuned)  # type: ignore[type-var]
    assert Plain.name == ""


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with two plug-ins, one of them broken, on Python's path."""
    info = folder / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[synergy_gym.policies]\nbroken = no_such_module\nmine = registry_plug_in\n"
    )
    (folder / "registry_plug_in.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "registry_plug_in", raising=False)
    registry.load_all.cache_clear()


def test_plug_ins_are_loaded_and_broken_ones_are_loud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path / "site", monkeypatch)
    with pytest.warns(RuntimeWarning, match="'broken'.*No module named 'no_such_module'"):
        assert "vllm-v1" in engine_policies()
    assert "registry_plug_in" in sys.modules


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("why", ["not installed", "not wanted"])
def test_plug_ins_that_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    _install(tmp_path / "site", monkeypatch)
    if why == "not installed":
        monkeypatch.chdir(tmp_path / "site")
    else:
        monkeypatch.setenv("SYNERGY_GYM_PLUGINS", "0")
    assert "vllm-v1" in engine_policies()
    assert "registry_plug_in" not in sys.modules


def test_import_is_light() -> None:
    # numba loads scipy's own package to read its version, and none of its parts.
    heavy = {"pandas", "torch", "matplotlib", "stable_baselines3", "vllm", "scipy.optimize"}
    code = (
        "import sys; from synergy_gym.policies import engine_policies; engine_policies(); "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_second_copy_is_refused() -> None:
    spec = importlib.util.spec_from_file_location("policies", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"synergy_gym\.policies"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_policy_file_is_loaded_once(tmp_path: Path) -> None:
    path = tmp_path / "own_registry_policy.py"
    source = "from synergy_gym.policies.base import RouterPolicy\nclass Own(RouterPolicy): ...\n"
    path.write_text(source, encoding="utf-8")
    first, second = (make_router_policy(f"{path}:Own") for _ in range(2))
    assert type(first) is type(second)
    assert first.label == "own_registry_policy:Own"
    (tmp_path / "json.py").write_text(source, encoding="utf-8")
    with pytest.raises(ValueError, match="rename the file"):
        make_router_policy(f"{tmp_path / 'json.py'}:Own")


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_a_policy_file_runs_as_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: py_compile.PycInvalidationMode
) -> None:
    """Byte code beside it is another program, whatever it says it was made from."""
    path = tmp_path / f"registry_source_{mode.name.lower()}.py"
    source = (
        "from synergy_gym.policies.base import RouterPolicy\n"
        "class Own(RouterPolicy):\n    decides = 'as it reads'\n"
    )
    path.write_text(source.replace("as it reads", "otherwise!!"))
    code = Path(py_compile.compile(str(path), doraise=True, invalidation_mode=mode) or "")
    stat = path.stat()
    path.write_text(source)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if mode is py_compile.PycInvalidationMode.CHECKED_HASH:
        head = code.read_bytes()
        code.write_bytes(head[:8] + importlib.util.source_hash(source.encode()) + head[16:])
    before = code.read_bytes()
    policy = make_router_policy(f"{path}:Own")
    monkeypatch.delitem(sys.modules, path.stem)
    assert policy.decides == "as it reads"  # type: ignore[attr-defined]
    assert [file.read_bytes() for file in code.parent.iterdir()] == [before]


def test_the_hash_is_of_the_source_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "registry_edited_policy.py"
    source = "from synergy_gym.policies.base import RouterPolicy\nclass Own(RouterPolicy): ...\n"
    path.write_text(source)
    policy = make_router_policy(f"{path}:Own")
    before = policy.policy_hash()
    path.write_text(source.replace("...", "version = 2"))  # edited while it runs
    assert make_router_policy(f"{path}:Own").policy_hash() == before


def test_the_number_of_a_family_is_no_parameter() -> None:
    assert describe("static-256").parameters == {}


def test_a_policy_of_the_other_kind_says_so() -> None:
    with pytest.raises(ValueError, match="policy of the routers"):
        make_engine_policy("least-kv")
