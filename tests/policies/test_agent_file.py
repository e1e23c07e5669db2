"""Agent files: what is written is read, and everything else is refused with a reason."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.policies import agent_file
from synergy_gym.policies.agent_file import (
    MAX_BYTES,
    AgentError,
    find_agent,
    load_agent,
    packaged_agents,
    save_agent,
)
from tests.policies.agents import changed, engine_agent, scorer_agent


def written(folder: Path, entries: dict[str, Any], **options: Any) -> Path:
    """A file of arrays as `np.savez` would write it, whatever they are."""
    path = folder / "bad.npz"
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, array in entries.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", content.getvalue())
    return path


def test_what_is_written_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    agent = engine_agent(rng)
    save_agent(tmp_path / "folder" / "a.npz", agent)
    read = load_agent(tmp_path / "folder" / "a.npz", "engine")
    assert read.meta == agent.meta
    assert read.kind == "engine"
    assert set(read.arrays) == set(agent.arrays)
    for name, array in agent.arrays.items():
        assert read.arrays[name].dtype == np.float32
        np.testing.assert_array_equal(read.arrays[name], array)
    assert read.digest() == agent.digest()


def test_equal_agents_give_equal_bytes(tmp_path: Path, seed: int) -> None:
    for name in "ab":
        save_agent(tmp_path / f"{name}.npz", engine_agent(np.random.default_rng(seed)))
    first, second = ((tmp_path / f"{name}.npz").read_bytes() for name in "ab")
    assert first == second


def test_the_digest_is_that_of_what_decides(rng: np.random.Generator) -> None:
    agent = engine_agent(rng)
    assert changed(agent, training={"note": "x"}).digest() == agent.digest()
    assert changed(agent, interval_s=0.1).digest() != agent.digest()
    moved = agent.arrays["b0"].copy()
    moved[0] = np.nextafter(moved[0], np.float32(np.inf))
    assert changed(agent, {"b0": moved}).digest() != agent.digest()


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"format": 2}, "format must be 1"),
        ({"kind": "cluster"}, "neither 'engine' nor 'router'"),
        ({"name": None}, "entry 'name' of meta is None"),
        ({"name": "../x"}, "use letters"),
        ({"frames": 1.5}, "entry 'frames'"),
        ({"frames": True}, "entry 'frames'"),
        ({"frames": 0}, "frames at least 1"),
        ({"interval_s": float("nan")}, "interval_s nan"),
        ({"interval_s": -1.0}, "0 or more seconds"),
        ({"features": [1]}, "features must be names"),
        ({"training": None}, "entry 'training'"),
    ],
)
def test_a_wrong_description_is_refused(
    tmp_path: Path, rng: np.random.Generator, meta: dict[str, Any], message: str
) -> None:
    wrong = changed(engine_agent(rng), **meta)
    with pytest.raises(AgentError, match=message):
        save_agent(tmp_path / "a.npz", wrong)
    assert not (tmp_path / "a.npz").exists()
    path = written(tmp_path, {"meta": np.array(json.dumps(dict(wrong.meta))), **wrong.arrays})
    with pytest.raises(AgentError, match=message):
        load_agent(path)


def test_weights_must_be_finite_float32(tmp_path: Path, rng: np.random.Generator) -> None:
    agent = engine_agent(rng)
    for array in (np.array([1.0]), np.array([np.nan], np.float32), np.array(["x"])):
        with pytest.raises(AgentError, match="weights 'b0' must be finite float32"):
            save_agent(tmp_path / "a.npz", changed(agent, {"b0": array}))


def test_a_pickle_is_never_loaded(tmp_path: Path, rng: np.random.Generator) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    agent = engine_agent(rng)
    meta = np.array(json.dumps(dict(agent.meta)))
    for entries in ({"meta": meta, "w0": np.array([Trap()])}, {"meta": np.array(Trap())}):
        path = written(tmp_path, entries)
        with pytest.raises(AgentError, match="cannot be read as an agent"):
            load_agent(path)
    assert not (tmp_path / "sprung").exists()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    save_agent(tmp_path / "a.npz", engine_agent(rng))
    content = (tmp_path / "a.npz").read_bytes()
    path = tmp_path / "b.npz"
    for damaged in (b"", b"text", content[: len(content) // 2], content[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(AgentError, match=r"b\.npz: cannot be read as an agent"):
            load_agent(path)
    with pytest.raises(AgentError, match="no entry 'meta'"):
        load_agent(written(tmp_path, {"w0": np.zeros(3, np.float32)}))
    with pytest.raises(AgentError, match="cannot be read"):
        load_agent(written(tmp_path, {"meta": np.array("{")}))
    with pytest.raises(AgentError, match="format must be 1"):
        load_agent(written(tmp_path, {"meta": np.array("[1]")}))


def test_an_agent_is_small(tmp_path: Path, rng: np.random.Generator) -> None:
    large = changed(engine_agent(rng), {"w9": np.zeros((520, 520), np.float32)})
    with pytest.raises(AgentError, match=f"an agent may have {MAX_BYTES}"):
        save_agent(tmp_path / "a.npz", large)
    (tmp_path / "b.npz").write_bytes(bytes(MAX_BYTES + 1))
    with pytest.raises(AgentError, match="at most"):
        load_agent(tmp_path / "b.npz")
    entries = {"meta": np.array("{}"), "w0": np.zeros(MAX_BYTES, np.float32)}
    bomb = written(tmp_path, entries, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < MAX_BYTES
    with pytest.raises(AgentError, match="bytes unpacked"):
        load_agent(bomb)


def test_names_find_packaged_agents(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_file, "AGENTS", tmp_path)
    with pytest.raises(AgentError, match="packaged: none"):
        load_agent("e-v1")
    save_agent(tmp_path / "e-v1.npz", engine_agent(rng))
    save_agent(tmp_path / "a-v1.npz", scorer_agent(rng))
    assert packaged_agents() == ["a-v1", "e-v1"]
    assert packaged_agents("router") == ["a-v1"]
    assert find_agent("e-v1") == tmp_path / "e-v1.npz"
    assert load_agent("e-v1", "engine").kind == "engine"
    with pytest.raises(AgentError, match="decides for routers, not engines"):
        load_agent("a-v1", "engine")
    with pytest.raises(AgentError, match="packaged: a-v1, e-v1; or name an"):
        load_agent("nothing")
    with pytest.raises(AgentError, match=r"no agent '\.\./e-v1'"):
        load_agent("../e-v1")
    with pytest.raises(AgentError, match="no agent file"):
        load_agent(tmp_path / "x.npz")


@pytest.mark.parametrize("name", packaged_agents())
def test_a_packaged_agent_bears_its_name_and_has_a_card(name: str) -> None:
    agent = load_agent(name)
    assert agent.name == name
    assert find_agent(name).with_suffix(".md").read_text("utf-8").startswith(f"# {name}\n")
