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

# Rooms from the ground up; one imports from rooms that stand before it. A room is a package or a
# module right below `synergy_gym`. What is imported for the type checker alone does not count.
STOREYS = (
    "arrays behaviour isolation jit_cache jit_notice jit moved",
    "limits seasons seeding specs strict_toml",
    "router_table types simulation",
    "latency metrics workload",
    "scenario_schema scenario",
    "sim",
    "observation actions features rewards",
    "policies",
    "seats",
    "live",
    "envs",
    "evaluation",
    "fidelity bench learning compile_all",
    "cli isolated __main__",
)
ORDER = {room: place for place, room in enumerate(" ".join(STOREYS).split())}
MOST_MODULES = 25

# Libraries that no module may load when it is imported, and the rooms that are excused.
LAZY = {
    "torch": {"learning.sb3.", "learning.authors_dqn."},  # loaded by a training only
    "stable_baselines3": {"learning.sb3.", "envs.sb3"},  # loaded on demand
    "sb3_contrib": {"learning.sb3."},
    "ray": set(),
    "vllm": {"live.scheduler"},  # subclasses vLLM's scheduler; loaded by vLLM or on demand
    "httpx": set(),
    "starlette": set(),
    "uvicorn": set(),
    "prometheus_client": set(),
    "matplotlib": {"evaluation.report", "fidelity"},
    "pandas": {"evaluation", "fidelity"},
    "pyarrow": set(),
    "aiconfigurator_core": set(),
    "pettingzoo": {"envs.pettingzoo"},  # subclasses its environments; loaded by who asks for it
    "optuna": set(),
}
POLICY_LIBRARIES = {"numpy", "numba"}


def room_of(module: str) -> str:
    """The room of `synergy_gym.x.y`; the package itself is the room `__init__`."""
    name = module.split(".")[1] if "." in module else "__init__"
    return "__init__" if name.startswith("__") and name != "__main__" else name


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
    """Every node that runs, and whether it does when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
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


def test_every_room_has_its_storey() -> None:
    rooms = {room_of(name) for name, _ in modules()} - {"__init__"}
    assert rooms == set(ORDER), "put the new room into STOREYS in this file"


def test_imports_point_down() -> None:
    wrong = [
        str(i)
        for i in INSIDE
        if i.target_room not in (None, "__init__", i.room)
        and ORDER[i.target_room or ""] > ORDER[i.room]
    ]
    assert wrong == [], "import from rooms below"


def test_policies_are_asked_at_their_seats_only() -> None:
    """`policy.decide(view)` and `policy.route(request, cluster)`; a class may ask its parent."""
    asked = []
    for name, file in modules():
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            whose, count = ast.unparse(node.func.value), len(node.args) + len(node.keywords)
            wanted = {"decide": 1, "route": 2}.get(node.func.attr)
            if count == wanted and whose != "super()":
                asked.append((name, node.func.attr))
    assert sorted(asked) == [
        *[("synergy_gym.seats.engine", "decide")] * 2,
        *[("synergy_gym.seats.router", "route")] * 2,
    ]


def test_no_circles() -> None:
    """Between modules, imports inside functions included."""
    imported: dict[str, set[str]] = {}
    for i in IMPORTS:
        if i.target in NAMES:
            imported.setdefault(i.importer, set()).add(i.target)
    left = {name: imported.get(name, set()) - {name} for name in NAMES}
    while left:
        free = {name for name, below in left.items() if not below & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: below for name, below in left.items() if name not in free}


def test_folders_can_be_overlooked() -> None:
    folders: dict[Path, int] = {}
    for top in ("synergy_gym", "envs", "policies", "experiments", "scripts"):
        for path in (ROOT / top).rglob("*.py"):
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {f: n for f, n in folders.items() if n > MOST_MODULES} == {}


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
    """Policies and their step models have forms of their own, whatever makes the world's clock."""
    latency = {name for name in NAMES if name.startswith("synergy_gym.latency.")}
    models = {name for name in latency if name.startswith("synergy_gym.latency.models.")}
    policies = {name for name in NAMES if name.startswith("synergy_gym.policies.")}
    clocks = latency - models
    wrong = {n: sorted(found) for n in models | policies if (found := reached(n) & clocks)}
    assert wrong == {}, "state the model in its own module"


def test_heavy_libraries_are_loaded_inside_functions() -> None:
    wrong = []
    for i in IMPORTS:
        excused = LAZY.get(i.target.split(".")[0])
        inside = i.importer.removeprefix("synergy_gym.")
        if i.at_import and excused is not None and not inside.startswith(tuple(excused)):
            wrong.append(str(i))
    assert wrong == []
