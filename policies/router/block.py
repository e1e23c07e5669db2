"""Block: predictive load balancing (Da and Kalyvianaki, arXiv 2508.03611; AKafakA/Block).

Taken from there: every engine is asked what latency the new request would have on it, given what
runs and waits there and an estimate of the answer's length; the lowest predicted end-to-end latency
wins (`min_new_request_latency`), ties are broken at random, and an engine without a prediction is
no candidate. `probed` is their number of engines asked per request (12 of 12, or 2 of 12 for
"power of two").

Simplified: their predictor replays the engine's own queue in the simulator Vidur, token by token,
with memory and preemption, and a fine-tuned RoBERTa estimates lengths. Here the prediction is a
closed form of the step model and queue that the engine pushed: the backlog is prefilled at the
engine's token budget, then the request decodes beside everybody who is there now. The length is the
request's published estimate or the mean of the answers seen so far. Their state is fresh; here
tokens routed since the last push are added and the router's own requests in flight are counted. No
memory limit, no requests that finish or arrive meanwhile. Information class: pushed, router.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.fallback import Fallback
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import (
    SLO,
    ClusterView,
    CompletionView,
    EngineSpec,
    FloatArray,
    Outcome,
    RequestView,
)


@router_policy("block", information=("router", "pushed"))
@dataclass
class Block(RouterPolicy):
    """The engine on which the new request is predicted to end first.

    Attributes:
        metric: what is predicted, end-to-end latency or TTFT.
        probed: engines that are asked, a random choice of those that are up; 0: all.
        output_tokens: length of an answer before any was seen.
    """

    metric: Literal["e2e", "ttft"] = "e2e"
    probed: int = 0
    output_tokens: float = 256.0

    def __post_init__(self) -> None:
        """Refuse a length below one token and a negative number of engines."""
        if self.output_tokens < 1 or self.probed < 0:
            raise ValueError(
                f"block: output_tokens is {self.output_tokens}, probed is {self.probed}; use >= 1 "
                "token and >= 0 engines"
            )

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Forget the answers seen."""
        self._budget = np.array([spec.max_num_batched_tokens for spec in engines])
        self._slots = np.array([spec.max_num_seqs for spec in engines])
        self._kv_tokens = np.array([spec.kv_blocks * spec.block_size for spec in engines])
        self._answers = self._answer_tokens = 0
        self.no_model = Fallback(
            __name__,
            "block: no engine that is up has published a step-latency model (none is published for "
            "its GPU and model, and its policy has none); requests go to a random engine",
        )

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The lowest prediction among the engines asked; a random one without predictions."""
        asked = cluster.alive
        if 0 < self.probed < np.count_nonzero(asked):
            chosen = cluster.rng.choice(asked.nonzero()[0], self.probed, replace=False)
            asked = np.zeros(len(asked), bool)
            asked[chosen] = True
        modelled = asked & cluster.pushed.step_ms.any(axis=1)
        if not modelled.any():
            self.no_model.note()
            tied = cluster.alive.nonzero()[0]
        else:
            latency = np.where(modelled, self.predict_ms(request, cluster), np.inf)
            tied = (latency == latency.min()).nonzero()[0]
        return int(tied[cluster.rng.integers(len(tied))]) if len(tied) > 1 else int(tied[0])

    def observe(self, completion: CompletionView) -> None:
        """Learn how long answers are."""
        if completion.outcome is Outcome.FINISHED:
            self._answers += 1
            self._answer_tokens += completion.output_tokens

    def predict_ms(self, request: RequestView, cluster: ClusterView) -> FloatArray:
        """Predicted latency (`metric`) of the request on every engine, milliseconds."""
        state, others = cluster.pushed, cluster.in_flight
        base, sequence, token, context, pair, _, prefill, mixed, floor = state.step_ms.T
        cached = state.kv_usage * self._kv_tokens
        decoding = np.maximum(base + (sequence + token) * (others + 1), floor)
        backlog = np.maximum(state.pending_tokens - state.running, 0.0) + request.prompt_tokens
        backlog += cluster.routed_tokens_since_push
        steps = np.ceil(backlog / np.maximum(self._budget - others, 1))
        ttft = steps * (decoding + prefill + (context + mixed) * cached) + token * backlog
        ttft += pair * (0.5 * request.prompt_tokens**2)
        output = self._expected(request)
        answer = output * (decoding + context * (cached + request.prompt_tokens + output / 2))
        queued = np.maximum(others + 1 - self._slots, 0)
        if queued.any():
            ttft += queued / self._slots * answer
        latency: FloatArray = ttft if self.metric == "ttft" else ttft + answer
        return latency

    def _expected(self, request: RequestView) -> float:
        if request.expected_output_tokens is not None:
            return request.expected_output_tokens
        return self._answer_tokens / self._answers if self._answers else self.output_tokens
