"""What a result needs beside its numbers so that anybody can play it again."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import synergy_gym
from synergy_gym.policies.base import Policy
from synergy_gym.scenario import Scenario
from synergy_gym.workload.base import Workload

PACKAGES = ("gymnasium", "llvmlite", "matplotlib", "numba", "numpy", "pandas", "scipy")
SOURCE_SUFFIXES = frozenset({".py", ".toml", ".npz"})


def policy_entry(policy: Policy) -> dict[str, Any]:
    """The text that makes a policy again, its parameters and its hash."""
    return {
        "policy": policy.label,
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
    """Versions of this package, its sources, Python and the packages that compute."""
    return {
        "synergy_gym": synergy_gym.__version__,
        "source_sha256": source_hash(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def source_hash() -> str:
    """SHA-256 over the library's own sources, scenarios, profiles and trained agents.

    Results of an interrupted run are reused only while this stays the same.
    """
    digest = hashlib.sha256()
    for path in sorted(_source_files(), key=lambda item: item[0]):
        digest.update(path[0].encode())
        digest.update(path[1].read_bytes())
    return digest.hexdigest()


def _source_files() -> list[tuple[str, Path]]:
    root = Path(synergy_gym.__file__).parent
    folders = {"": root, **{name: root.parent / name for name in ("envs", "policies")}}
    if (root / "policies").is_dir():
        folders = {"": root}
    files = []
    for name, folder in folders.items():
        for path in folder.rglob("*"):
            if path.suffix in SOURCE_SUFFIXES and path.is_file():
                files.append((f"{name}/{path.relative_to(folder).as_posix()}", path))
    return files


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys; NaN becomes null, NumPy values plain ones."""
    text = json.dumps(_plain(content), indent=2, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


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
