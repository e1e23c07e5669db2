"""prism-plus: where the request, and those already there, are most likely to meet their objectives.

Ours, after SynergySched's PRISM (arXiv 2509.23384): the same pushed state, but instead of a sum of
scores it predicts this request's TTFT, TPOT and E2E on every engine, from the step model that
the engine publishes, its queue extrapolated to now and the traffic that this router sends there,
and corrects the models and its own certainty by what became of its predictions.
Information class: pushed, router.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from synergy_gym.jit import kernel
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.fallback import Fallback
from synergy_gym.policies.outlook import RouterMemory, foresee, miss, pressures
from synergy_gym.policies.pacing import objectives
from synergy_gym.policies.registry import router_policy
from synergy_gym.policies.self_correction import Certainty, StepCorrection
from synergy_gym.types import (
    SLO,
    ClusterView,
    CompletionView,
    EngineSpec,
    FloatArray,
    Outcome,
    RequestView,
)


@kernel
def expected_misses(  # type: ignore[no-untyped-def]
    step_ms, in_flight, prompts, pending, running, routed, age_s, last_s, uncached, budget,
    flow_tps, prompt, length, ttft_s, tpot_s, e2e_s, softness, pressure, out,
):  # fmt: skip
    """Write to `out` how many more requests miss their SLO if the request goes to each engine.

    `pressure` gets the largest share of an objective that the request would use there; the other
    arguments are those of `outlook.foresee`. The request's own miss and the higher chance of a
    miss of the others there add up.
    """
    for i in range(len(out)):
        ttft, before, after, _, _, _ = foresee(
            step_ms, i, in_flight, prompts, pending, running, routed, age_s, last_s, uncached,
            budget, flow_tps, prompt, length,
        )  # fmt: skip
        others = float(in_flight[i])
        own, was, becomes = pressures(ttft, before, after, length, ttft_s, tpot_s, e2e_s)
        harm = others * (miss(becomes, softness) - miss(was, softness))
        pressure[i] = own
        out[i] = miss(own, softness) + harm + 1e-3 * min(own, 1e3)


@router_policy("prism-plus", information=("router", "pushed"))
@dataclass
class PrismPlus(RouterPolicy):
    """The engine where the fewest requests are expected to miss their objectives for this one.

    Attributes:
        softness: uncertainty of a prediction as a share of the objective, before the router has
            seen how far its predictions are off, and at most.
        flow_s: time constant of the traffic that this router has sent to an engine.
        memory: share of the mean output length that one finished request moves.
        memory_of_steps: share of an engine's mean step that one push moves.
    """

    version: ClassVar[int] = 2

    softness: float = 0.15
    flow_s: float = 10.0
    memory: float = 0.01
    memory_of_steps: float = 0.05

    def __post_init__(self) -> None:
        """Refuse constants that cannot divide."""
        for name, value in self.parameters().items():
            if not value > 0:
                raise ValueError(f"prism-plus: {name} is {value}; it must be > 0")

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Forget traffic, lengths, prefixes and the engines' models."""
        self._memory = RouterMemory(engines, flow_s=self.flow_s, memory=self.memory)
        self._correction = StepCorrection(len(engines), memory=self.memory_of_steps)
        self._certainty = Certainty(self.softness, memory=self.memory)
        self._scores, self._pressure = np.zeros(len(engines)), np.zeros(len(engines))
        self._limits = objectives(slos)
        self.no_model = Fallback(
            __name__,
            "prism-plus: an engine has never published a step-latency model (none is published for "
            "its GPU and model, and its policy has none); requests go to the fewest in flight "
            "until it does",
        )

    def observe(self, completion: CompletionView) -> None:
        """Learn how long outputs are, and how far predictions are off."""
        self._memory.observe(completion)
        finished = completion.outcome is Outcome.FINISHED
        self._certainty.judge(completion, finished=finished)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The lowest expected number of further misses; ties to the first."""
        choice = cluster.argmin(self._predict(request, cluster))
        self._memory.sent(choice)
        if request.attempt == 0:  # a retry's times count from its first arrival
            limits = self._limits[request.slo_class]
            self._certainty.promise(choice, cluster.now_s, float(self._pressure[choice]), limits)
        return choice

    def _predict(self, request: RequestView, cluster: ClusterView) -> FloatArray:
        memory, state = self._memory, cluster.pushed
        uncached = memory.look(request, cluster)
        step_ms = self._correction(memory.step_ms, cluster, memory.length)
        if not memory.knows_models(cluster):
            self._pressure[:] = 0.0
            self.no_model.note()
            return cluster.in_flight.astype(np.float64)
        expected_misses(
            step_ms.reshape(-1), cluster.in_flight, cluster.in_flight_tokens,
            state.pending_tokens, state.running, cluster.routed_tokens_since_push,
            state.age_s, state.step_s, uncached, memory.budget, memory.flow_tps,
            float(request.prompt_tokens), memory.expected_length(request),
            *self._limits[request.slo_class], self._certainty.softness, self._pressure,
            self._scores,
        )  # fmt: skip
        return self._scores
