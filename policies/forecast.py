"""Router observation with a forecast of every engine, for learned routers.

The request and the engine blocks of `synergy_gym.features`, each block followed by what
`outlook.foresee` expects if the request goes there. Environment wrapper and learned policy call
the same object, so an agent decides in a server by what it saw in training.
Information class: router, pushed, scraped.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from synergy_gym.features import (
    NUM_REQUEST_FEATURES,
    NUM_ROUTER_FEATURES,
    REQUEST_SLOTS,
    ROUTER_SLOTS,
    RouterFeatures,
)
from synergy_gym.jit import kernel
from synergy_gym.observation import Float32Array, Group, ObservationLayout, Slot
from synergy_gym.policies.outlook import (
    RecentLengths,
    RouterMemory,
    foresee,
    miss,
    pressures,
    share_within,
)
from synergy_gym.policies.pacing import NEVER, objectives
from synergy_gym.types import (
    SLO,
    ClusterView,
    CompletionView,
    EngineSpec,
    FloatArray,
    Outcome,
    RequestView,
)

SOFTNESS = 0.15
"""Uncertainty of a prediction as a share of the objective, as in prism-plus."""
REQUESTS_SCALE = 16.0
REGRET_SCALE = 0.1
PRICE_SCALE = 0.25
DEFAULT_TTFT_S = 1.0

FORECAST_SLOTS = (
    Slot("forecast.uncached", "uncached prompt tokens / prompt tokens"),
    Slot("forecast.prefill", "sat(prefill of the prompt, TTFT objective)"),
    Slot("forecast.backlog", "sat(prefill in front of it, TTFT objective)"),
    Slot("forecast.ttft", "sat(TTFT, objective)"),
    Slot("forecast.tpot_without", "sat(TPOT without the request, objective)"),
    Slot("forecast.tpot", "sat(TPOT, objective)"),
    Slot("forecast.e2e", "sat(E2E, objective)"),
    Slot("forecast.load", "share of the time that prefill of this router's traffic takes"),
    Slot("forecast.miss", "probability that the request misses an objective"),
    Slot("forecast.harm", "sat(further misses of the others there, 1)"),
    Slot("forecast.lost", "sat(others there that are expected to miss, 16)"),
    Slot("forecast.kept", "sat(others there that are not, 16)"),
    Slot("forecast.late", "sat(in flight there for longer than the loosest E2E objective, 16)"),
    Slot("forecast.regret", "sat(miss + harm - that of the best engine up, 0.1)"),
    Slot("forecast.fits", "share of recent output lengths with which it keeps its E2E objective"),
    Slot("forecast.others_fit", "likewise the others there, had they just been sent"),
    Slot("forecast.price", "sat(prefill / TTFT objective * share of kept, 0.25)"),
)
"""What follows the `ROUTER_SLOTS` of each engine; times are expected ones of this request there.

sat(x, c) = x / (x + c); 0 for an objective that its class does not declare (the TTFT scale of
prefill, backlog and price is then 1 s). Everything is 0 until the engine has published a model.
"""

NUM_FORECAST_FEATURES = len(FORECAST_SLOTS)
BLOCK_SLOTS = ROUTER_SLOTS + FORECAST_SLOTS
NUM_BLOCK_FEATURES = len(BLOCK_SLOTS)


def forecast_layout(engines: int) -> ObservationLayout:
    """Layout of the observation: the request, then one block of `BLOCK_SLOTS` per engine."""
    return ObservationLayout(
        (Group("request", REQUEST_SLOTS), Group("engines", BLOCK_SLOTS, engines))
    )


@kernel
def _sat(x, c):  # type: ignore[no-untyped-def]
    return x / (x + c)


@kernel
def write_forecast(  # type: ignore[no-untyped-def]
    alive, late, step_ms, in_flight, prompts, pending, running, routed, age_s, last_s, uncached,
    budget, flow_tps, prompt, length, lengths, ttft_s, tpot_s, e2e_s, scores, out,
):  # fmt: skip
    """Write `FORECAST_SLOTS` to `out[i]` for every engine i; `scores` is scratch.

    `alive` and `late` have one entry per engine, `lengths` are recent output lengths, ascending;
    the others are the arguments of `outlook.foresee`.
    `out` is float32 `(engines, NUM_FORECAST_FEATURES)`.
    """
    best = np.inf
    scale = ttft_s if ttft_s < NEVER else DEFAULT_TTFT_S
    for i in range(len(scores)):
        ttft, before, after, backlog, prefill, load = foresee(
            step_ms, i, in_flight, prompts, pending, running, routed, age_s, last_s, uncached,
            budget, flow_tps, prompt, length,
        )  # fmt: skip
        others = float(in_flight[i])
        used = pressures(ttft, before, after, length, ttft_s, tpot_s, e2e_s)
        own, was = miss(used[0], SOFTNESS), miss(used[1], SOFTNESS)
        becomes = miss(used[2], SOFTNESS)
        harm = max(others * (becomes - was), 0.0)
        scores[i] = own + harm
        if alive[i]:
            best = min(best, scores[i])
        out[i, 0] = uncached[i] / max(prompt, 1.0)
        out[i, 1] = _sat(prefill, scale)
        out[i, 2] = _sat(backlog, scale)
        out[i, 3] = _sat(ttft, ttft_s)
        out[i, 4] = _sat(before, tpot_s)
        out[i, 5] = _sat(after, tpot_s)
        out[i, 6] = _sat(ttft + length * after, e2e_s)
        out[i, 7] = load
        out[i, 8] = own
        out[i, 9] = _sat(harm, 1.0)
        out[i, 10] = _sat(others * was, REQUESTS_SCALE)
        out[i, 11] = _sat(others * (1.0 - was), REQUESTS_SCALE)
        out[i, 12] = _sat(late[i], REQUESTS_SCALE)
        out[i, 14] = share_within(lengths, (e2e_s - ttft) / after)
        out[i, 15] = share_within(lengths, e2e_s / after)
        out[i, 16] = _sat(prefill / scale * (1.0 - was), PRICE_SCALE)
    for i in range(len(scores)):
        out[i, 13] = _sat(max(scores[i] - best, 0.0), REGRET_SCALE) if alive[i] else 1.0


class ForecastFeatures:
    """Turns what a router sees and remembers into the observation with forecasts.

    Like a policy: `observe` every completion, call it for every request, then say with
    `sent` where the request went. A new object begins an episode.

    Attributes:
        known: whether every engine that is up had published a step model at the last call; if
            not, all its forecasts were 0.

    Args:
        engines: the cluster.
        slos: the scenario's classes.
    """

    def __init__(self, engines: Sequence[EngineSpec], slos: Sequence[SLO]) -> None:
        self.layout = forecast_layout(len(engines))
        self.engines = len(engines)
        self._plain = RouterFeatures(engines, slos)
        self._table = np.zeros(self._plain.layout.size, np.float32)
        self._forecast = np.zeros((self.engines, NUM_FORECAST_FEATURES), np.float32)
        self._scores: FloatArray = np.zeros(self.engines)
        self._memory = RouterMemory(engines)
        self._lengths = RecentLengths()
        self._limits = objectives(slos)
        self._loosest_e2e_s = max(limits[2] for limits in self._limits)
        self._sent_s: list[list[float]] = [[] for _ in engines]
        self._now_s = 0.0
        self.known = False

    def observe(self, completion: CompletionView) -> None:
        """A request has left: its length is learned, and it is no longer in flight."""
        self._memory.observe(completion)
        if completion.outcome is Outcome.FINISHED:
            self._lengths.add(float(completion.output_tokens))
        times = self._sent_s[completion.engine]
        if times:  # a retry is older than the time it was sent here: take the nearest
            at = bisect_left(times, completion.now_s - completion.e2e_s - 1e-6)
            del times[min(at, len(times) - 1)]

    def __call__(
        self, request: RequestView, cluster: ClusterView, out: Float32Array | None = None
    ) -> Float32Array:
        """The observation, in `out` if given (float32, `layout.size` long)."""
        result = np.empty(self.layout.size, np.float32) if out is None else out
        self._plain(request, cluster, self._table)
        self._foresee(request, cluster)
        result[:NUM_REQUEST_FEATURES] = self._table[:NUM_REQUEST_FEATURES]
        blocks = result[NUM_REQUEST_FEATURES:].reshape(self.engines, NUM_BLOCK_FEATURES)
        table = self._table[NUM_REQUEST_FEATURES:].reshape(self.engines, NUM_ROUTER_FEATURES)
        blocks[:, :NUM_ROUTER_FEATURES] = table
        blocks[:, NUM_ROUTER_FEATURES:] = self._forecast
        return result

    def sent(self, engine: int) -> None:
        """The request of the last call goes to `engine`."""
        self._memory.sent(engine)
        insort(self._sent_s[engine], self._now_s)

    def _foresee(self, request: RequestView, cluster: ClusterView) -> None:
        memory, state = self._memory, cluster.pushed
        self._now_s = cluster.now_s
        uncached = memory.look(request, cluster)
        self.known = memory.knows_models(cluster)
        if not self.known:
            self._forecast[:] = 0.0
            return
        write_forecast(
            cluster.alive, self._late(), memory.step_ms.reshape(-1), cluster.in_flight,
            cluster.in_flight_tokens, state.pending_tokens, state.running,
            cluster.routed_tokens_since_push, state.age_s, state.step_s, uncached,
            memory.budget, memory.flow_tps, float(request.prompt_tokens),
            memory.expected_length(request), self._lengths.ordered,
            *self._limits[request.slo_class], self._scores,
            self._forecast,
        )  # fmt: skip

    def _late(self) -> FloatArray:
        """Requests in flight on every engine that have passed the loosest E2E objective."""
        due = self._now_s - self._loosest_e2e_s
        return np.array([bisect_left(times, due) for times in self._sent_s], np.float64)
