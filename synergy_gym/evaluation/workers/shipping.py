"""Which files of the working directory jobs need, and a copy of them for another machine."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import synergy_gym
from synergy_gym.evaluation.jobs import Job
from synergy_gym.policies.agent_file import AGENT_PREFIX

FILE_SUFFIXES = (".npz", ".toml", ".py")
"""Files that a policy or a scenario can be."""


def needed_files(jobs: Iterable[Job]) -> dict[str, Path]:
    """What a worker on another machine lacks: source by path below its working directory.

    These are policies' files and modules, with the modules that they import, agents and
    scenario files. Installed packages and files named by an absolute path are not among
    them: the other machine must have them at the same place.

    Raises:
        ValueError: a path that leaves the working directory.
    """
    names = {name for job in jobs for name in (job.scenario, job.engine_policy, job.router_policy)}
    files: dict[str, Path] = {}
    for name in sorted(_sources(names)):
        if not name.endswith(FILE_SUFFIXES):
            _add_module(name, files)
        elif not Path(name).is_absolute():
            _add_file(name, files)
    return files


def stage(files: dict[str, Path], folder: Path) -> None:
    """Copy files and packages to their places below `folder`."""
    for name, source in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def _sources(names: Iterable[Any]) -> set[str]:
    """Files (they end with a suffix of `FILE_SUFFIXES`) and top-level modules."""
    return {found for name in names if (found := _source(name))}


def _source(name: Any) -> str:
    if isinstance(name, Path):
        return str(name)
    if not isinstance(name, str):
        cls = name if isinstance(name, type) else type(name)
        return str(cls.__module__).partition(".")[0]
    head, _, rest = name.partition(":")
    if head == AGENT_PREFIX:
        return rest if rest.endswith(".npz") else ""
    if head.endswith(FILE_SUFFIXES):
        return head
    return head.partition(".")[0] if rest and "=" not in rest.partition(":")[0] else ""


def _add_file(name: str, files: dict[str, Path]) -> None:
    path = Path(name)
    if ".." in path.parts:
        raise ValueError(
            f"{name}: a file above the working directory cannot be sent to workers; start the "
            "command in a folder above it, or name the file by an absolute path that they have"
        )
    files[path.as_posix()] = path
    if path.suffix == ".py":
        _add_imports(path, files)


def _add_module(name: str, files: dict[str, Path]) -> None:
    source = _own_module(name)
    if source is None or source.name in files:
        return
    files[source.name] = source
    for path in source.rglob("*.py") if source.is_dir() else [source]:
        _add_imports(path, files)


def _add_imports(path: Path, files: dict[str, Path]) -> None:
    if path.is_file():  # a missing one is its job's error
        for name in _imported(path):
            _add_module(name, files)


def _imported(path: Path) -> Iterator[str]:
    """Top-level names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _own_module(name: str) -> Path | None:
    """File or folder of a module that nobody installed; `None` for any other."""
    if name in {"__main__", synergy_gym.__name__} or name in sys.stdlib_module_names:
        return None
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]
    place = Path(places[0]).resolve()
    installed = [Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")]
    if any(place.is_relative_to(folder) for folder in installed):
        return None
    return place if place.is_dir() or place.suffix == ".py" else None
