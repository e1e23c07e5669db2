"""What a result needs beside its numbers so that anybody can play it again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np

import synergy_gym
from synergy_gym.evaluation.dynamics import dynamics_hash, dynamics_parts
from synergy_gym.policies.base import Policy
from synergy_gym.scenario import Scenario
from synergy_gym.workload.base import Workload

PACKAGES = ("gymnasium", "llvmlite", "matplotlib", "numba", "numpy", "pandas", "scipy")
SOURCE_SUFFIXES = frozenset({".py", ".toml", ".npz"})


def policy_entry(policy: Policy) -> dict[str, Any]:
    """The text that makes a policy again, its parameters and its hash."""
    return {
        "policy": policy.label,
        "version": policy.version,
        "parameters": policy.parameters(),
        "sha256": policy.policy_hash(),
        "information": sorted(policy.information),
    }


def workload_hash(workload: Workload) -> str:
    """SHA-256 over the columns of a workload and its shared content."""
    digest = hashlib.sha256()
    columns = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "slo_class")
    for name in (*columns, "priority", "after"):
        digest.update(np.ascontiguousarray(getattr(workload, name)).tobytes())
    if workload.content is not None:
        for name in ("leaf", "parent", "start"):
            digest.update(np.ascontiguousarray(getattr(workload.content, name)).tobytes())
    return digest.hexdigest()


def episode_manifest(
    scenario: Scenario,
    engine_policy: Policy,
    router_policy: Policy,
    load: float,
    seed: int,
    workload: Workload | None,
) -> dict[str, Any]:
    """The inputs of one episode and the software that plays it."""
    given = workload is not None
    return {
        "season": scenario.season,
        "scenario": scenario.name,
        "scenario_hash": scenario.hash(),
        "engine_policy": policy_entry(engine_policy),
        "router_policy": policy_entry(router_policy),
        "load": None if given else load,
        "seed": seed,
        "workload": {"sha256": workload_hash(workload)} if workload is not None else "generated",
        "warmup_s": scenario.warmup_s,
        "horizon_s": scenario.horizon_s,
        **software(),
    }


def software() -> dict[str, Any]:
    """Versions of what computes: environments, sources, Python, packages, the machine."""
    return {
        "synergy_gym": synergy_gym.__version__,
        "environments": environment_ids(),
        "dynamics": dict(dynamics_parts()),
        "dynamics_sha256": dynamics_hash(),
        "source_sha256": source_hash(),
        **platform_entry(),
    }


def platform_entry() -> dict[str, Any]:
    """What a policy's floating-point decisions can depend on beside the sources.

    NumPy takes other code on processors with other vector instructions (`simd`, its widest
    set here), and that code may differ in the last bit.
    """
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "simd": _simd(),
        "packages": dict(_versions()),
    }


def environment_ids() -> list[str]:
    """Ids of this package's environments, versions included, sorted."""
    return sorted(name for name in gymnasium.registry if name.startswith("SynergyGym/"))


def _simd() -> str:
    config: Any = np.show_config(mode="dicts")
    extensions = config.get("SIMD Extensions", {})
    found = [*extensions.get("baseline", ()), *extensions.get("found", ())]
    return found[-1] if found else "unknown"


@cache
def _versions() -> Mapping[str, str]:
    """Reading them takes milliseconds, and they do not change in a process."""
    return MappingProxyType({name: _version(name) for name in PACKAGES})


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def source_hash() -> str:
    """SHA-256 over the library's own sources, scenarios, profiles and trained agents."""
    return _hash_of(name for name, _ in _source_files())


def _hash_of(names: Iterable[str]) -> str:
    files = dict(_source_files())
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(files[name].read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def _source_files() -> list[tuple[str, Path]]:
    """Files by their path inside the installed package, wherever they lie."""
    root = Path(synergy_gym.__file__).parent
    folders = {"": root, **{f"{name}/": root.parent / name for name in ("envs", "policies")}}
    if (root / "policies").is_dir():
        folders = {"": root}
    return [
        (f"{name}{path.relative_to(folder).as_posix()}", path)
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.suffix in SOURCE_SUFFIXES and path.is_file()
    ]


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys; NaN becomes null, NumPy values plain ones."""
    text = json.dumps(_plain(content), indent=2, sort_keys=True, allow_nan=False)
    write_whole(path, text + "\n")


def part_of(path: Path) -> Path:
    """Where `write_whole` begins a file; left behind only by a run that was killed."""
    return path.with_name(f".{path.name}.part")


def write_whole(path: Path, content: str | bytes) -> None:
    """Put a file in its place at once: a reader finds the old content or all of the new one."""
    data = content.encode() if isinstance(content, str) else content
    part = part_of(path)
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
