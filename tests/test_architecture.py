"""Import arrows point one way, and heavy libraries are loaded where they are needed only."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPING: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]

# Room -> the rooms it may import. A room is a module or a package right below `synergy_gym`;
# `scenario_schema` and `cli_tables` are parts of the rooms `scenario` and `cli`.
BASE = {
    "arrays",
    "limits",
    "specs",
    "types",
    "router_table",
    "seasons",
    "seeding",
    "strict_toml",
    "jit",
}
MODEL = {*BASE, "latency", "workload", "metrics"}
WORLD = {*MODEL, "scenario", "sim"}
PLAY = {*WORLD, "actions", "features", "observation", "rewards", "policies"}
ARROWS: dict[str, set[str]] = {
    "arrays": set(),
    "router_table": {"arrays"},
    "limits": set(),
    "specs": {"limits"},
    "types": {"arrays", "router_table", "specs"},
    "seeding": set(),
    "jit": set(),
    "seasons": set(),
    "strict_toml": set(),
    "latency": BASE,
    "workload": BASE,
    "metrics": BASE,
    "actions": {"types"},
    "observation": {"types"},
    "features": {"types", "latency", "observation", "jit"},
    "rewards": {"types", "metrics"},
    "scenario": MODEL,
    "sim": {*MODEL, "scenario"},
    "policies": {"arrays", "types", "actions", "features", "observation", "latency", "jit"},
    "live": PLAY,
    "envs": {*PLAY, "live"},
    "evaluation": {*PLAY, "envs", "live"},
    "learning": {*PLAY, "envs", "evaluation", "live"},
    "isolation": set(),
    "cli": {*PLAY, "envs", "evaluation", "learning", "live", "isolation"},
    "isolated": {"cli"},
    "compile_all": {*PLAY, "envs", "evaluation"},
    "__main__": {"cli"},
}

# Modules of `latency` that make the simulator's world. The others hold what policies believe: the
# published step models and those that are learned, whose forms must not follow a change of a clock.
CLOCKS = {
    *("fitting", "profile_schema", "profile_writer", "profiles"),
    *("saturation_terms", "table_terms", "terms", "grids"),
    *(f"kernels.{n}" for n in ("engine", "errors", "fit", "hardware", "make")),
    *(f"kernels.{n}" for n in ("memory", "shape", "step", "tables")),
}

# Libraries that no module may load when it is imported, and the rooms that are excused.
LAZY = {
    "torch": {
        "learning.sb3_",
        "learning.authors_dqn",
    },  # these modules are loaded by a training only
    "stable_baselines3": {"learning.sb3_", "envs.sb3"},  # loaded on demand
    "sb3_contrib": {"learning.sb3_"},
    "ray": set(),
    "vllm": {"live.scheduler"},  # subclasses vLLM's scheduler; loaded by vLLM or on demand
    "httpx": set(),
    "starlette": set(),
    "uvicorn": set(),
    "prometheus_client": set(),
    "matplotlib": {"evaluation"},
    "pandas": {"evaluation"},
    "pyarrow": set(),
    "aiconfigurator_core": set(),
    "pettingzoo": {"envs.pettingzoo"},  # subclasses its environments; loaded by who asks for it
    "optuna": set(),
}
POLICY_LIBRARIES = {"numpy", "numba"}


def room_of(module: str) -> str:
    """The room of `synergy_gym.x.y`; the package itself is the room `__init__`."""
    name = module.split(".")[1] if "." in module else "__init__"
    if name.startswith("__") and name != "__main__":
        return "__init__"
    return name if name in ARROWS else name.split("_")[0]


@dataclass(frozen=True)
class Import:
    """One imported module: by whom, where, and whether it happens at import time."""

    importer: str
    line: int
    target: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"

    @property
    def room(self) -> str:
        return room_of(self.importer)

    @property
    def target_room(self) -> str | None:
        """None outside this package."""
        return room_of(self.target) if self.target.split(".")[0] == "synergy_gym" else None


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in MAPPING.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)), file


def walk(node: ast.AST, at_import: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from ((inner, False) for inner in ast.walk(child))
            continue
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, at_import
        yield from walk(child, at_import and not inside)


def targets(node: ast.AST, importer: str) -> list[str]:
    """Absolute names that an import statement loads (`from x import y` may load x.y)."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        above = importer.split(".")[: -node.level]
        base = ".".join([*above, base] if base else above)
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if base == "synergy_gym" or name in NAMES else base for name in names]


def imports() -> list[Import]:
    return [
        Import(name, node.lineno, target, at_import)
        for name, file in modules()
        for node, at_import in walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in targets(node, name)
    ]


NAMES = {name for name, _ in modules()}
IMPORTS = imports()
INSIDE = [i for i in IMPORTS if i.room != "__init__"]


def test_every_room_has_its_arrows() -> None:
    rooms = {room_of(name) for name, _ in modules()} - {"__init__"}
    assert rooms - set(ARROWS) == set(), "add the new room to ARROWS in this file"


def test_arrows_point_one_way() -> None:
    wrong = [
        str(i)
        for i in INSIDE
        if i.target_room and i.target_room not in {*ARROWS.get(i.room, set()), i.room, "__init__"}
    ]
    assert wrong == []


def test_the_arrows_have_no_cycle() -> None:
    left = dict(ARROWS)
    while left:
        free = [room for room, below in left.items() if not below & set(left)]
        assert free, f"a cycle among {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in free}


def test_policies_run_inside_a_server() -> None:
    allowed = {*sys.stdlib_module_names, *POLICY_LIBRARIES, "synergy_gym"}
    wrong = [
        str(i)
        for i in INSIDE
        if i.room == "policies" and i.at_import and i.target.split(".")[0] not in allowed
    ]
    assert wrong == []


def reached(module: str) -> set[str]:
    """Modules that `module` imports, anywhere in it and in what it imports."""
    found: set[str] = set()
    left = [module]
    while left:
        here = left.pop()
        new = {i.target for i in IMPORTS if i.importer == here and i.target in NAMES} - found
        found |= new
        left += new
    return found


def test_what_policies_believe_does_not_follow_the_clock() -> None:
    latency = {name for name in NAMES if name.startswith("synergy_gym.latency.")}
    clocks = {f"synergy_gym.latency.{name}" for name in CLOCKS}
    assert clocks <= latency, "a module has gone: correct CLOCKS in this file"
    beliefs = latency - clocks | {
        name for name in NAMES if name.startswith("synergy_gym.policies.")
    }
    wrong = {name: sorted(found) for name in beliefs if (found := reached(name) & clocks)}
    assert wrong == {}, "state the model in its own module, or add a new clock to CLOCKS"


def test_heavy_libraries_are_loaded_inside_functions() -> None:
    wrong = []
    for i in IMPORTS:
        excused = LAZY.get(i.target.split(".")[0])
        inside = i.importer.removeprefix("synergy_gym.")
        if i.at_import and excused is not None and not inside.startswith(tuple(excused)):
            wrong.append(str(i))
    assert wrong == []
