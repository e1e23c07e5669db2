"""Which code and data decide results, by part, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from synergy_gym.behaviour import Behaviour, Target, hashed_file, package_modules
from synergy_gym.jit_cache import temporary_folder

PARTS: Mapping[str, tuple[Target, ...]] = MappingProxyType(
    {
        "scenario": (
            ("synergy_gym.scenario", "load_scenario"),
            ("synergy_gym.scenario", "windowed"),
            ("synergy_gym.scenario", "stop_time_ns"),
        ),
        "traffic": (("synergy_gym.workload.traffic", ""), ("synergy_gym.workload.replay", "")),
        "step latency": (("synergy_gym.latency.profiles", ""), ("synergy_gym.latency.clock", "")),
        "compiled simulator": (("synergy_gym.sim.simulator", "Simulator"),),
        "plain simulator": (("synergy_gym.sim.plain.simulator", "ReferenceSimulator"),),
        "episode": (
            ("synergy_gym.evaluation.runner", "evaluate"),
            ("synergy_gym.evaluation.jobs", "run_job"),
        ),
        "metrics": (("synergy_gym.metrics", "summarize"),),
    }
)
"""Definitions that each part begins with; what they use belongs to it."""
POLICIES = "synergy_gym.policies."
"""Every module below counts in the part `policies`."""
DATA: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "step latency": (("synergy_gym.latency", "profiles/*.toml"),),
        "policies": (("synergy_gym.policies", "agents/*.npz"),),
    }
)
"""Data files by part, as a package and a pattern; scenarios count in the rows' own hashes."""
BOUNDARY = (
    "synergy_gym.behaviour",
    "synergy_gym.seats.times",
    "synergy_gym.evaluation.manifest",
    "synergy_gym.jit_cache",
    "synergy_gym.jit_notice",
    "synergy_gym.live",
    "synergy_gym.policies.convert",
    "synergy_gym.policies.registry",
    "synergy_gym.sim.readiness",
)
"""What finds, builds, times, reports or is live: no figure of a simulated episode is made there."""


@cache
def dynamics_parts() -> Mapping[str, str]:
    """SHA-256 (hex) of every part that decides results, read-only.

    Each covers definitions (`synergy_gym.behaviour`), not files: a move or a comment changes none.
    Command lines, reports, training and live engines are in no part, nor are the files of
    scenarios: a row names its scenario's own hash. Kept between processes under a hash of all
    sources, because it takes half a second.
    """
    modules = package_modules()
    return MappingProxyType(_kept(_stamp(modules), lambda: _hashed(modules)))


def dynamics_hash() -> str:
    """SHA-256 (hex) over all parts of `dynamics_parts`.

    Finished episodes of an interrupted run are reused only while this stays the same.
    """
    text = json.dumps(dict(dynamics_parts()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differing_parts(recorded: Any) -> list[str]:
    """Parts whose recorded hash is another than that of this code, sorted; all without a record."""
    known = recorded if isinstance(recorded, dict) else {}
    return sorted(part for part, value in dynamics_parts().items() if known.get(part) != value)


def _hashed(modules: Mapping[str, Path]) -> dict[str, str]:
    behaviour = Behaviour(modules, boundary=BOUNDARY)
    policies = [(name, "") for name in modules if name.startswith(POLICIES)]
    roots = {**PARTS, "policies": tuple(t for t in policies if t[0] not in BOUNDARY)}
    return {
        part: _joined(behaviour.of(targets), *_data_lines(modules, part))
        for part, targets in roots.items()
    }


def _data_lines(modules: Mapping[str, Path], part: str) -> Iterator[str]:
    for package, pattern in DATA.get(part, ()):
        for path in sorted(modules[package].parent.glob(pattern)):
            yield f"{path.name} {hashed_file(path)}"


def _joined(*lines: str) -> str:
    return lines[0] if len(lines) == 1 else hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stamp(modules: Mapping[str, Path]) -> str:
    """SHA-256 (hex) of all files that the parts can depend on, as they are written."""
    files = {name: path.read_bytes() for name, path in modules.items()}
    for package in ("synergy_gym.latency", "synergy_gym.policies", "synergy_gym.workload"):
        for path in modules[package].parent.rglob("*"):
            if path.suffix in {".csv", ".json", ".npz", ".toml"}:
                files[f"{package} {path.name}"] = path.read_bytes()
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return digest.hexdigest()


def _kept(stamp: str, made: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What an earlier process worked out of the same files, else `made` and kept if possible."""
    parts = frozenset({*PARTS, "policies"})
    for folder in _folders():
        try:
            found = json.loads((folder / f"dynamics-{stamp[:32]}.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.keys() == parts:
            return found
    value = made()
    for folder in _folders():
        if _is_written(folder / f"dynamics-{stamp[:32]}.json", json.dumps(value)):
            break
    return value


def _folders() -> Iterator[Path]:
    yield Path(__file__).parent / "__pycache__"
    if (own := temporary_folder()) is not None:
        yield own


def _is_written(path: Path, text: str) -> bool:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        part.write_text(text)
        part.replace(path)
    except OSError:
        return False
    return True
