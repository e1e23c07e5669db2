"""What a model of the step time sees of a step, and the protocol that all of them follow.

Policies talk to any model through `StepModel`; `latency.models.online` and `latency.models.context`
implement it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from synergy_gym.latency.models.saturation import FLOOR_MS
from synergy_gym.types import EngineAdvert, StepReport

MIN_STEP_MS = FLOOR_MS
"""No model predicts less."""


@dataclass(frozen=True, slots=True)
class StepFeatures:
    """What is known of a step before it runs, and all that its duration may depend on.

    Attributes:
        sequences: requests with at least one token (B).
        tokens: all scheduled tokens (S); a decode has 1, a prefill its chunk.
        decode_context_tokens: tokens in the KV cache of the decodes (C).
        prefill_pairs: sum(chunk * computed + chunk * (chunk + 1) / 2) over prefill chunks (A).
        prefill_context_tokens: tokens in the KV cache of the prefills (P).
        decodes: sequences that decode; `tokens - decodes` are prefill tokens.
    """

    sequences: int
    tokens: int
    decode_context_tokens: int = 0
    prefill_pairs: int = 0
    prefill_context_tokens: int = 0
    decodes: int = 0

    @classmethod
    def of(cls, report: StepReport) -> StepFeatures:
        """The features of a finished step."""
        return cls(
            report.sequences,
            report.tokens,
            report.context_tokens,
            report.prefill_pairs,
            report.prefill_context_tokens,
            report.decodes,
        )


@runtime_checkable
class StepModel(Protocol):
    """A model of the step time that learns while the engine runs."""

    @property
    def ready(self) -> bool:
        """Whether predictions rest on an accepted model; else they are a fallback."""

    def predict_ms(self, step: StepFeatures) -> float:
        """Predicted duration of the step in ms, finite and >= `MIN_STEP_MS`."""

    def observe(self, step: StepFeatures, step_ms: float, now_s: float) -> None:
        """Learn from a step that took `step_ms` and ended at `now_s` (simulated time)."""

    def advert(self) -> EngineAdvert:
        """What the engine would publish of this model."""
