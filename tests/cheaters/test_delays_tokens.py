"""Cheater: delays tokens, so that fewer of them are late against a cadence that it chooses.

TPOT is measured from the first token to the last: whoever holds first tokens back may take the
time before them for free. The score wants TTFT and E2E as well. Only engines emit
tokens, so there is no router of this kind.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.evaluation.conduct.examine import STAGES
from synergy_gym.policies import EnginePolicy
from synergy_gym.types import BatchDecision, EngineView
from tests.cheaters.judging import loses


class RestingDecodes(EnginePolicy):
    """Streams in bursts: decodes rest in nine steps of ten, and run in the tenth."""

    def reset(self, *given: object) -> None:
        self.turn = 0

    def decide(self, engine: EngineView) -> BatchDecision:
        self.turn += 1
        caps = np.full(engine.num_running + engine.num_waiting, -1)
        if self.turn % 10:
            caps[: engine.num_running][engine.running.is_decode] = 0
        return BatchDecision(engine.spec.max_num_batched_tokens, token_caps=caps)


class LateFirstToken(EnginePolicy):
    """Keeps back the end of every prompt until the request has waited 2 s."""

    def decide(self, engine: EngineView) -> BatchDecision:
        caps = []
        for queue in (engine.running, engine.waiting):
            early = (queue.waited_s < 2.0) & (queue.generated_tokens == 0)
            keep = np.maximum(queue.remaining_prefill_tokens - 1, 0)
            caps.append(np.where(early, keep, -1))
        return BatchDecision(engine.spec.max_num_batched_tokens, token_caps=np.concatenate(caps))


def test_resting_decodes_lose() -> None:
    assert loses(RestingDecodes, "engine")


def test_a_late_first_token_loses() -> None:
    assert loses(LateFirstToken, "engine")
    late = STAGES["engine"].play("engine", LateFirstToken, 2000).summary
    assert late["tpot_attainment"] > 0.9, "its cadence is fine, and worth nothing"
    assert late["slo_attainment"] == 0
