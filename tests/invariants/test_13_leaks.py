"""Invariant 13: long runs do not leak, and no module of the simulator holds mutable state."""

from __future__ import annotations

import ast
import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import synergy_gym
from synergy_gym.evaluation import evaluate
from synergy_gym.latency.clock import StepTerms
from synergy_gym.types import SLO, EngineSpec
from synergy_gym.workload.base import make_workload
from tests.strategies import SIMULATORS, play

PACKAGE = Path(synergy_gym.__file__).parent
EPISODES = 200
# Of 200 episodes of about 100 kB each; what the interpreter itself keeps is well below.
MOST_BYTES = 400_000
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "Counter", "deque", "array"}
MUTABLE_CALLS |= {
    "OrderedDict",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "default_rng",
    "Random",
}
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def episode(simulator: type, seed: int) -> str:
    rng = np.random.default_rng(seed)
    spec = EngineSpec("e", "g", "m", "p", 8, 64, 256, 100, prefix_caching=True)
    sim = simulator(
        engines=[spec, spec],
        clocks=[StepTerms(base_ms=4.0).clock(seed + i) for i in range(2)],
        workload=make_workload(
            np.sort(rng.integers(0, 10**9, 20)), rng.integers(1, 60, 20), rng.integers(1, 10, 20)
        ),
        slos=[SLO("any")],
        record_itl=True,
    )
    play(sim, seed, lambda sim, point: sim.completions())
    digest: str = sim.log_hash()
    return digest


def growth(simulator: type, episodes: int) -> int:
    """Bytes that Python and NumPy hold more after `episodes` of them than before."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for seed in range(episodes):
        episode(simulator, seed)
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


@pytest.mark.slow
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_episodes_leave_nothing_behind(simulator: type) -> None:
    tracemalloc.start()
    try:
        growth(simulator, 20)
        assert growth(simulator, EPISODES) < MOST_BYTES
    finally:
        tracemalloc.stop()


def resident_bytes() -> int:
    """Memory of this process, compiled code's included."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads /proc/self/status, which this system does not have")
    line = next(text for text in status.read_text().splitlines() if text.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_the_process_does_not_grow() -> None:
    """Each of these arenas has 6 MB: two hundred that stay would be more than 1 GB."""
    simulator = SIMULATORS[0]
    rng = np.random.default_rng(0)
    ones = np.ones(50_000, np.int64)
    workload = make_workload(np.sort(rng.integers(0, 10**9, len(ones))), ones, ones)
    spec = EngineSpec("e", "g", "m", "p", 8, 64, 256, 100)
    sizes = []
    for _ in range(EPISODES):
        simulator(
            engines=[spec],
            clocks=[StepTerms(base_ms=4.0).clock()],
            workload=workload,
            slos=[SLO("any")],
            auto_route=True,
        ).advance()
        sizes.append(resident_bytes())
    assert sizes[-1] - sizes[EPISODES // 10] < 50 * 2**20


@pytest.mark.slow
def test_simulators_do_not_share_anything() -> None:
    """Many at once, advanced in turns, play as each alone."""
    alone = [episode(SIMULATORS[0], seed) for seed in range(3)]
    for _ in range(3):
        evaluate("smoke", "random", horizon_s=3.0)
    assert [episode(SIMULATORS[0], seed) for seed in range(3)] == alone


def module_state(path: Path) -> Iterator[str]:
    """Module-level names that are bound to something mutable, and `global` statements."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        # A constant table is spelt as one: upper case, and nobody may write to it.
        if isinstance(node.value, MUTABLE) and not constant(names, tree):
            yield f"{path.name}:{node.lineno} {names}"
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute):
            name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
            if name in MUTABLE_CALLS:
                yield f"{path.name}:{node.lineno} {names} = {name}(...)"
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Global):
            yield f"{path.name}:{inner.lineno} global {inner.names}"


def constant(names: list[str], tree: ast.Module) -> bool:
    """Whether all `names` are spelt as constants, and no statement writes into them."""
    if "__all__" in names:
        return True
    written = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript | ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (isinstance(node.ctx, ast.Store | ast.Del) or method(node) in MUTATORS)
    }
    return all(name.strip("_").isupper() and name not in written for name in names)


MUTATORS = {"append", "add", "update", "clear", "pop", "extend", "insert", "setdefault", "remove"}


def method(node: ast.Subscript | ast.Attribute) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ""


FILES = sorted((PACKAGE / "sim").glob("*.py")) + sorted((PACKAGE / "latency").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_module_holds_mutable_state(path: Path) -> None:
    assert list(module_state(path)) == []


def test_the_search_finds_state(tmp_path: Path) -> None:
    """A control: what it must and must not object to."""
    bad = "cache = {}\nSEEN = set()\nTABLE = [1]\nTABLE.append(2)\nX = {}\nX[1] = 2\n"
    good = "SIZES = {1: 2}\n__all__ = ['a']\nN = len('abc')\nNAMES = frozenset({'a'})\n"
    for name, source in (("bad.py", bad), ("good.py", good)):
        (tmp_path / name).write_text(source)
    assert len(list(module_state(tmp_path / "bad.py"))) == 4
    assert list(module_state(tmp_path / "good.py")) == []
