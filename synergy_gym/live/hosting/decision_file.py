"""One JSON line per step of a hosted engine: what was decided, what came of it, what it took.

The first line of a start describes the engine (`kind` "engine"), every further one a step
(`kind` "step"). Lines are appended and complete as soon as they are written.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.policies.base import EnginePolicy
from synergy_gym.types import NS_PER_S, SLO, BatchDecision, EngineSpec

if TYPE_CHECKING:
    from synergy_gym.live.hosting.host import HostedStep, PolicyHost


class DecisionFile:
    """A `StepListener` that writes.

    Args:
        path: the file; its folder is made when missing.
        engine: the engine's name, in every line.
        policy: described in the first line, with its hash.
        spec: the engine's limits, likewise.
        slos: the request classes, likewise.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        engine: str,
        policy: EnginePolicy,
        spec: EngineSpec,
        slos: tuple[SLO, ...],
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = engine
        self._file = path.open("a", buffering=1)
        self._write(
            {
                "kind": "engine",
                "policy": policy.label,
                "policy_hash": policy.policy_hash(),
                "spec": asdict(spec),
                "slos": [asdict(slo) for slo in slos],
            }
        )

    def work_came(self, host: PolicyHost, now_ns: int) -> None:
        """Nothing is written: it was no step."""

    def step_ended(self, host: PolicyHost, step: HostedStep) -> None:
        """Write the step's line."""
        report = step.report
        self._write(
            {
                "kind": "step",
                "number": step.number,
                "end_s": step.end_ns / NS_PER_S,
                "by": "policy" if step.decision is not None else "stock",
                "queue": {"running": step.running, "waiting": step.waiting},
                "decision": _decision(step.decision),
                "step": {name: getattr(report, name) for name in _REPORTED},
                "failures": dict(host.failures),
                "dropped_caps": host.dropped_caps,
            }
        )

    def close(self) -> None:
        """Write nothing more."""
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps({"engine": self._engine, **line}) + "\n")


_REPORTED = (
    "start_s",
    "step_s",
    "sequences",
    "tokens",
    "decodes",
    "prefill_tokens",
    "context_tokens",
    "preempted",
    "admitted",
    "finished",
    "token_budget",
)


def _decision(decision: BatchDecision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    advert = decision.advert
    skips = 0 if decision.token_caps is None else int(np.count_nonzero(decision.token_caps == 0))
    return {
        "token_budget": int(decision.token_budget),
        "max_running": None if decision.max_running is None else int(decision.max_running),
        "prefill_chunk": int(decision.prefill_chunk),
        "running_reordered": decision.running_order is not None,
        "waiting_reordered": decision.waiting_order is not None,
        "skips": skips,
        "predicted_step_s": None if advert is None else advert.predicted_step_s,
        "step_ms": list(advert.step_ms) if advert is not None and advert.step_ms else None,
    }
