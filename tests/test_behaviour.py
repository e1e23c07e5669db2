"""Hashes of behaviour: blind to how code is written and where it lies, not to what it computes."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from synergy_gym.behaviour import Behaviour, package_modules
from synergy_gym.evaluation import dynamics

ROOT = Path(__file__).resolve().parents[1]
WORLD: Mapping[str, str] = {
    "pack": "from pack.sim.engine import plan\n__all__ = ['plan']\n",
    "pack.sim.engine": '''"""Doc."""
from __future__ import annotations
import math
import numpy as np
from pack.limits import LIMIT, Pool
from pack import tables


def plan(budget: int, pool: Pool) -> int:
    """Doc."""
    from pack.late import delay
    left = min(budget, LIMIT)  # a comment
    return helper(left) + tables.ROWS + delay(1) + math.floor(Pool().free) + np.int64(0)


def helper(left):
    return left if left <= 1 else even(left - 1)


def even(left):
    return helper(left - 2)


def unused():
    return 1
''',
    "pack.limits": "LIMIT = 7\nOTHER = 1\nclass Pool:\n    free: int = 3\n",
    "pack.tables": "ROWS = 3\nCOLUMNS = 4\n",
    "pack.late": "from pack.limits import LIMIT as MOST\ndef delay(x):\n    return x * MOST\n",
}


def modules(folder: Path, world: Mapping[str, str]) -> dict[str, Path]:
    """Write a package; an `__init__` where a module has others below it."""
    files = {}
    for name, text in world.items():
        inner = any(other.startswith(f"{name}.") for other in world)
        path = folder.joinpath(*name.split("."))
        path = path / "__init__.py" if inner else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        files[name] = path
    return files


def hashed(folder: Path, world: Mapping[str, str], module: str = "pack.sim.engine") -> str:
    return Behaviour(modules(folder, world)).of([(module, "plan")])


def edited(world: Mapping[str, str], module: str, old: str, new: str) -> dict[str, str]:
    assert old in world[module]
    return {**world, module: world[module].replace(old, new)}


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("pack.sim.engine", '"""Doc."""', '"""Another page."""'),
        ("pack.sim.engine", "  # a comment", ""),
        ("pack.sim.engine", "budget: int", "budget"),
        ("pack.sim.engine", "-> int", "-> float"),
        ("pack.sim.engine", "min(budget, LIMIT)", "min(\n        budget, (LIMIT)\n    )"),
        ("pack.sim.engine", "import numpy as np", "import numpy"),
        ("pack.sim.engine", "def unused():\n    return 1", "def unused():\n    return 2"),
        ("pack.limits", "OTHER = 1", "OTHER = 2"),
        ("pack.tables", "COLUMNS = 4", "COLUMNS = 5"),
        ("pack.sim.engine", "from pack import tables", "import pack.tables as tables"),
    ],
)
def test_what_changes_nothing(tmp_path: Path, module: str, old: str, new: str) -> None:
    world = edited(WORLD, module, old, new)
    if new == "import numpy":
        world = edited(world, module, "np.int64", "numpy.int64")
    assert hashed(tmp_path / "new", world) == hashed(tmp_path / "old", WORLD)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("pack.sim.engine", "min(", "max("),
        ("pack.sim.engine", "left - 2", "left - 3"),  # one of two that call one another
        ("pack.limits", "LIMIT = 7", "LIMIT = 8"),  # an import of an import, inside a function
        ("pack.tables", "ROWS = 3", "ROWS = 4"),  # through a module
        ("pack.late", "x * MOST", "x + MOST"),
        ("pack.limits", "free: int = 3", "free: float = 3"),  # annotations of fields count
        ("pack.sim.engine", "math.floor", "math.ceil"),
    ],
)
def test_what_changes_a_result(tmp_path: Path, module: str, old: str, new: str) -> None:
    world = edited(WORLD, module, old, new)
    assert hashed(tmp_path / "new", world) != hashed(tmp_path / "old", WORLD)


def test_moving_and_renaming_modules(tmp_path: Path) -> None:
    names = {
        "pack.sim.engine": "pack.compiled.kernels.planning",
        "pack.limits": "pack.ground.bounds",
        "pack.late": "pack.compiled.late",
    }
    moved = {}
    for name, text in WORLD.items():
        for old, new in names.items():
            text = text.replace(old, new)
        moved[names.get(name, name)] = text
    before, after = hashed(tmp_path / "old", WORLD), tmp_path / "new"
    assert hashed(after, moved, "pack.compiled.kernels.planning") == before
    assert hashed(after, moved, "pack") == before, "re-exported"


def test_splitting_a_module(tmp_path: Path) -> None:
    text = WORLD["pack.sim.engine"]
    cut = text.index("def helper")
    head = text[:cut].replace("import math\n", "import math\nfrom pack.sim.again import helper\n")
    split = {**WORLD, "pack.sim.engine": head, "pack.sim.again": text[cut:]}
    assert hashed(tmp_path / "new", split) == hashed(tmp_path / "old", WORLD)


def test_classes_that_annotations_name_count(tmp_path: Path) -> None:
    """Methods are called on arguments; their class is imported for its name alone."""
    used = edited(WORLD, "pack.sim.engine", "Pool().free", "pool.free")
    other = edited(used, "pack.limits", "free: int = 3", "free: int = 4")
    assert hashed(tmp_path / "new", other) != hashed(tmp_path / "old", used)


def test_a_local_name_is_no_definition(tmp_path: Path) -> None:
    world = edited(WORLD, "pack.sim.engine", "def unused():", "def left():")
    assert hashed(tmp_path / "new", world) == hashed(tmp_path / "old", WORLD)


def test_what_enters_a_table_counts(tmp_path: Path) -> None:
    entered = "from library import register\n@register\ndef rule(x):\n    return {}\nTABLE = 1\n"
    engine = WORLD["pack.sim.engine"].replace("tables.ROWS", "tables.TABLE")
    one, two = (
        hashed(
            tmp_path / str(n),
            {**WORLD, "pack.sim.engine": engine, "pack.tables": entered.format(n)},
        )
        for n in (1, 2)
    )
    assert one != two


def test_a_data_file_beside_the_module_counts(tmp_path: Path) -> None:
    world = edited(WORLD, "pack.tables", "ROWS = 3", "ROWS = read('rows.csv')")
    results = []
    for n in (1, 2, 1):
        files = modules(tmp_path / str(n), world)
        files["pack.tables"].with_name("rows.csv").write_text(f"{n}\n")
        results.append(Behaviour(files).of([("pack.sim.engine", "plan")]))
    assert results[0] == results[2] != results[1]


def test_an_unknown_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"pack\.sim\.engine:gone"):
        Behaviour(modules(tmp_path, WORLD)).of([("pack.sim.engine", "gone")])


# --- this package -------------------------------------------------------------------------------


def parts(**changed: bytes) -> dict[str, str]:
    """Hashes of this package's parts, with the sources of some modules replaced."""
    named = {name.replace("__", "."): text for name, text in changed.items()}
    behaviour = Behaviour(
        {k: v for k, v in package_modules().items() if k not in named}, named, dynamics.BOUNDARY
    )
    return {part: behaviour.of(targets) for part, targets in dynamics.PARTS.items()}


UNPLAYED = {"charge_of", "decision_times", "_seconds"}
"""Functions of the sampled modules that no episode runs."""


def test_a_changed_number_changes_a_part() -> None:
    """Of numbers in functions that an episode runs: each is changed, in a random sample."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw, before = random.Random(seed), parts()
    kernels = [f"synergy_gym.sim.compiled.{name}" for name in ("engine", "cache", "commit")]
    others = ("metrics", "sim.plain.engine", "latency.clock", "workload.arrivals")
    chosen = [*kernels, *(f"synergy_gym.{name}" for name in (*others, "evaluation.timed"))]
    for name in chosen:
        source = package_modules()[name].read_text()
        tree = ast.parse(source)
        places = [
            node
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name not in UNPLAYED
            for node in ast.walk(function)
            if isinstance(node, ast.Constant) and type(node.value) is int
        ]
        node = draw.choice(places)
        node.value += 1
        after = parts(**{name.replace(".", "__"): ast.unparse(tree).encode()})
        assert after != before, f"{name}:{node.lineno}: {node.value - 1} + 1 changes no part"


def test_layout_and_words_change_no_part() -> None:
    changed = {}
    for name in ("synergy_gym.metrics", "synergy_gym.sim.compiled.engine", "synergy_gym.types"):
        source = package_modules()[name].read_text()
        text = ast.unparse(ast.parse(source))  # no comments, another layout
        changed[name.replace(".", "__")] = re.sub(r'"""[^"]*"""', '"""Words."""', text).encode()
    assert parts(**changed) == parts()


def test_parts_are_kept_and_kept_ones_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamics, "_folders", lambda: iter([tmp_path]))
    made = dict.fromkeys([*dynamics.PARTS, "policies"], "a")
    assert dynamics._kept("0" * 64, lambda: made) == made
    assert dynamics._kept("0" * 64, lambda: pytest.fail("it was kept")) == made
    (kept,) = tmp_path.iterdir()
    kept.write_text('{"scenario": ')
    assert dynamics._kept("0" * 64, lambda: made) == made
    monkeypatch.setattr(dynamics, "_folders", lambda: iter([tmp_path / "no" / "folder"]))
    assert dynamics._kept("1" * 64, lambda: made) == made
