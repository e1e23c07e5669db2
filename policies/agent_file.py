"""Trained agents on disk: one NumPy file of weights and a description, read without pickle.

An `.npz` file holds float32 arrays and `meta`, a JSON text. Agents of this package lie in
`policies/agents/`, each beside its card.

| entry of `meta` | meaning                                                             |
|-----------------|---------------------------------------------------------------------|
| `format`        | 1                                                                   |
| `kind`          | "engine" or "router"                                                |
| `name`          | what it is called                                                   |
| `network`       | name of the forward pass (`synergy_gym.policies.networks`)          |
| `activation`    | "tanh" or "relu"                                                    |
| `features`      | names of the observed numbers, in order                             |
| `frames`        | how many observations are stacked, oldest first                     |
| `interval_s`    | shortest time between two decisions; 0: each decision point         |
| `head`          | "multidiscrete" or "discrete" (engines: how logits name a cell)     |
| `grid`          | engines: the `EngineGrid`                                           |
| `observer`      | engines: "engine" (default) or "authors" (`authors_state`)          |
| `rows`          | network `attention`: requests per queue                             |
| `training`      | how it was made: command, seeds, steps, scores                      |
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from synergy_gym.observation import Float32Array

FORMAT = 1
MAX_BYTES = 1 << 20
"""Largest agent file that is read or written."""
AGENT_PREFIX = "agent"
"""`agent:NAME` and `agent:FILE.npz` are trained agents (`policies/learned.py`)."""
AGENTS = Path(__file__).resolve().parent / "agents"
"""Where the agents of this package lie."""

Kind = Literal["engine", "router"]
_META = "meta"
_NEEDED = {
    "format": int,
    "kind": str,
    "name": str,
    "network": str,
    "activation": str,
    "features": list,
    "frames": int,
    "interval_s": (int, float),
    "training": dict,
}


class AgentError(ValueError):
    """An agent file that is missing, damaged or made for something else."""


@dataclass(frozen=True, eq=False)
class Agent:
    """A trained agent: its description and its weights.

    Attributes:
        meta: see the table of the module.
        arrays: float32 arrays by name, as the network names them.
    """

    meta: Mapping[str, Any]
    arrays: Mapping[str, Float32Array]

    @property
    def kind(self) -> Kind:
        """Which layer it decides for."""
        kind: Kind = self.meta["kind"]
        return kind

    @property
    def name(self) -> str:
        """What it is called."""
        return str(self.meta["name"])

    def digest(self) -> str:
        """SHA-256 (hex) over what decides: the weights, and `meta` without `training`."""
        deciding = {key: value for key, value in self.meta.items() if key != "training"}
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
        for name in sorted(self.arrays):
            array = self.arrays[name]
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()


def save_agent(path: str | Path, agent: Agent) -> None:
    """Write an agent; equal agents give equal bytes.

    Raises:
        AgentError: the description is incomplete, or the file would be larger than 1 MB.
    """
    _check(agent, str(path))
    content = _packed(agent)
    if len(content) > MAX_BYTES:
        raise AgentError(
            f"{path}: {len(content)} bytes; an agent may have {MAX_BYTES}, train a smaller one"
        )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _packed(agent: Agent) -> bytes:
    entries: dict[str, Any] = {_META: np.array(json.dumps(dict(agent.meta), sort_keys=True))}
    entries |= {name: agent.arrays[name] for name in sorted(agent.arrays)}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, array in entries.items():
            # A fixed date: the bytes of a zip file hold one, and training twice must agree.
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w") as file:
                np.save(file, array, allow_pickle=False)
    return content.getvalue()


def load_agent(source: str | Path, kind: Kind | None = None) -> Agent:
    """The agent of a file, or the packaged one of that name.

    Args:
        source: path of an `.npz` file, or a name such as `engine-ppo-v1`.
        kind: which layer it has to decide for.

    Raises:
        AgentError: there is none, it cannot be read, or it decides for the other layer.
    """
    path = find_agent(source)
    agent = _read(path)
    _check(agent, str(path))
    if kind is not None and agent.kind != kind:
        raise AgentError(f"agent {agent.name!r} ({path}) decides for {agent.kind}s, not {kind}s")
    return agent


def packaged_agents(kind: Kind | None = None) -> list[str]:
    """Names of the agents of this package, sorted; of one layer if `kind` is given."""
    names = sorted(path.stem for path in AGENTS.glob("*.npz"))
    return [name for name in names if kind in (None, load_agent(name).kind)]


def find_agent(source: str | Path) -> Path:
    """Path of an agent's file.

    Raises:
        AgentError: no such file, and no packaged agent of that name.
    """
    path = Path(source)
    if path.suffix != ".npz":
        path = AGENTS / f"{source}.npz"
        if "/" in str(source) or not path.is_file():
            known = ", ".join(sorted(p.stem for p in AGENTS.glob("*.npz"))) or "none"
            raise AgentError(f"no agent {str(source)!r}; packaged: {known}; or name an .npz file")
    if not path.is_file():
        raise AgentError(f"no agent file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise AgentError(
            f"{path}: {path.stat().st_size} bytes; an agent file has at most {MAX_BYTES}"
        )
    return path


def _read(path: Path) -> Agent:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:  # a small file can be packed from a large one
            raise AgentError(f"{path}: {size} bytes unpacked; an agent has at most {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop(_META)))
    except KeyError:
        raise AgentError(f"{path}: no entry 'meta'; this is no agent file") from None
    except AgentError:
        raise
    except (OSError, ValueError, MemoryError, zipfile.BadZipFile, EOFError) as error:
        raise AgentError(
            f"{path}: cannot be read as an agent ({error}); export it again"
        ) from error
    return Agent(meta, arrays)


def _check(agent: Agent, where: str) -> None:
    meta = agent.meta
    if not isinstance(meta, Mapping) or meta.get("format") != FORMAT:
        raise AgentError(f"{where}: format must be {FORMAT}; export the agent with this version")
    for name, kind in _NEEDED.items():
        value = meta.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
            raise AgentError(f"{where}: entry {name!r} of meta is {meta.get(name)!r}")
    if meta["kind"] not in ("engine", "router"):
        raise AgentError(f"{where}: kind {meta['kind']!r} is neither 'engine' nor 'router'")
    if not all(isinstance(name, str) for name in meta["features"]) or meta["frames"] < 1:
        raise AgentError(f"{where}: features must be names, and frames at least 1")
    if not 0 <= meta["interval_s"] < float("inf"):
        raise AgentError(f"{where}: interval_s {meta['interval_s']} must be 0 or more seconds")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", meta["name"]):
        raise AgentError(f"{where}: name {meta['name']!r}: use letters, digits, '.', '_' and '-'")
    for name, array in agent.arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise AgentError(f"{where}: weights {name!r} must be finite float32 numbers")
