"""What a fidelity run has measured, on disk after every part, so that it can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from synergy_gym.evaluation.manifest import write_json
from synergy_gym.fidelity.calibration import Measured, Sample
from synergy_gym.fidelity.meter import ReferenceStep
from synergy_gym.types import EngineSpec, FloatArray, StepReport

_REPORT = tuple(item.name for item in fields(StepReport))


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeData:
    """What one episode leaves, live or simulated.

    Attributes:
        summary: the scalar figures of `metrics.summarize`.
        ttft_s: of every scored request that finished, seconds.
        tpot_s: of those with more than one output token.
        e2e_s: of every scored request that finished.
        step_s: duration of every step, seconds.
        steps: per step engine index, sequences, tokens, decodes, decode context, prefill
            pairs, prefill context.
        probes: (virtual time in seconds, ms, kind) of the probes of the machine's speed.
        reference: the same as `meter.ReferenceStep` rows.
    """

    summary: dict[str, float]
    ttft_s: FloatArray
    tpot_s: FloatArray
    e2e_s: FloatArray
    step_s: FloatArray
    steps: FloatArray
    probes: FloatArray
    reference: FloatArray


_ARRAYS = tuple(item.name for item in fields(EpisodeData) if item.name != "summary")


class Store:
    """The folder `episodes` of a fidelity run.

    Args:
        out: the run's folder.
        settings: what must be the same for parts to belong together; plain data.

    Raises:
        ValueError: the folder holds parts of a run with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self._folder = out / "episodes"
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "settings.json"
        if not path.exists():
            write_json(path, settings)
        elif (old := json.loads(path.read_text())) != json.loads(json.dumps(settings)):
            names = sorted(k for k in {*old, *settings} if _plain(old, k) != _plain(settings, k))
            raise ValueError(
                f"{self._folder} holds a run with other settings ({', '.join(names)}); choose "
                "another --out, or delete the folder"
            )

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def add_episode(self, key: str, data: EpisodeData) -> None:
        """Keep a live episode."""
        arrays = {name: getattr(data, name) for name in _ARRAYS}
        self._write(key, summary=np.array(json.dumps(data.summary)), **arrays)

    def episode(self, key: str) -> EpisodeData:
        """A live episode that was kept."""
        with np.load(self._path(key)) as file:
            summary = json.loads(str(file["summary"]))
            return EpisodeData(summary, **{name: file[name] for name in _ARRAYS})

    def add_slice(self, key: str, scenario: str, measured: Measured) -> None:
        """Keep a slice of calibration."""
        samples = measured.samples
        table = [[float(getattr(s.report, name)) for name in _REPORT] for s in samples]
        self._write(
            key,
            slice_of=np.array(scenario),
            kind=np.array([s.kind for s in samples]),
            name=np.array([s.engine for s in samples]),
            at_s=np.array([s.at_s for s in samples]),
            table=np.array(table),
            reference=np.array(measured.reference),
        )

    def slices(self, scenario: str) -> Measured:
        """All slices of one scenario, in the order of their names."""
        found = Measured()
        for path in sorted(self._folder.glob("*.npz")):
            with np.load(path) as file:
                if "slice_of" in file and str(file["slice_of"]) == scenario:
                    found.extend(_measured(file))
        return found

    def note_software(self, software: dict[str, Any], specs: Sequence[EngineSpec]) -> None:
        """Keep vLLM's release, the device, and the KV blocks as vLLM has them."""
        blocks = {spec.name: spec.kv_blocks for spec in specs}
        known = self.software()
        write_json(
            self._folder / "software.json",
            {**software, "kv_blocks": {**known.get("kv_blocks", {}), **blocks}},
        )

    def software(self) -> dict[str, Any]:
        """What `note_software` has kept so far."""
        path = self._folder / "software.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def specs(self, engines: Sequence[EngineSpec]) -> tuple[EngineSpec, ...]:
        """The engines, with their KV blocks as vLLM has them."""
        blocks = self.software()["kv_blocks"]
        return tuple(replace(spec, kv_blocks=int(blocks[spec.name])) for spec in engines)

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"

    def _write(self, key: str, **arrays: Any) -> None:
        """All or nothing: an interruption leaves no half file."""
        path = self._path(key)
        half = path.with_suffix(".part")
        with half.open("wb") as file:
            np.savez_compressed(file, key=np.array(key), **arrays)
        os.replace(half, path)


def _plain(settings: dict[str, Any], key: str) -> str:
    return json.dumps(settings.get(key), sort_keys=True, default=str)


def _measured(file: Any) -> Measured:
    whole = [i for i, name in enumerate(_REPORT) if not name.endswith("_s")]
    samples = []
    rows = zip(file["kind"], file["name"], file["at_s"], file["table"], strict=True)
    for kind, name, at_s, row in rows:
        values = [int(v) if i in whole else float(v) for i, v in enumerate(row)]
        samples.append(Sample(str(kind), str(name), float(at_s), StepReport(*values)))  # type: ignore[arg-type]
    return Measured(samples, reference_steps(file["reference"]))


def reference_steps(rows: FloatArray) -> list[ReferenceStep]:
    """Rows of an array as reference steps."""
    return [ReferenceStep(at, ms, wall, int(kind)) for at, ms, wall, kind in rows.tolist()]
