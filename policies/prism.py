"""PRISM, the router of SynergySched: its score, term by term, and the rule that they make.

Zhang et al., "A Predictive and Synergistic Two-Layer Scheduling Framework for LLM Serving" (arXiv
2509.23384); the terms are known from the authors' router (FlowGPT/production-stack, branch exp,
routing_logic.py). All terms lie in [0, 1], 1 is best. Engine state is what the engines push:
predicted step latency, scheduling mode, pending tokens and capacity (`types.PushedState`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from synergy_gym.latency.models.published import AUTHORS_DEFAULT, StepModelFile, published_model
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.fallback import Fallback
from synergy_gym.types import (
    SLO,
    BoolArray,
    ClusterView,
    EngineSpec,
    FloatArray,
    IntArray,
    PushedState,
    RequestView,
)

LEAST_CAPACITY = 1e-6
"""At or below it the authors take an engine's pending work as nothing."""


def latency_score(predicted_step_s: FloatArray, slo_s: float) -> FloatArray:
    """1 - (predicted step latency / SLO), 0 from the SLO on.

    The authors cap the ratio at 5 before; below 0 it makes no difference.
    """
    return np.maximum(1.0 - np.maximum(predicted_step_s, 0.0) / slo_s, 0.0)


def load_score(pending_tokens: FloatArray, capacity: FloatArray, scale_s: float) -> FloatArray:
    """1 - tanh(seconds of pending work / scale); 1 where the capacity is unknown."""
    known = capacity > LEAST_CAPACITY
    seconds = np.zeros(len(capacity))
    np.divide(pending_tokens, capacity, out=seconds, where=known)
    return 1.0 - np.tanh(np.maximum(seconds, 0.0) / scale_s)


def mode_score(mode: IntArray) -> FloatArray:
    """1 for latency-optimized, 0 for throughput-optimized, 0.5 for anything else."""
    return np.where(mode == 0, 1.0, np.where(mode == 2, 0.0, 0.5))


def affinity_score(
    session_engine: int, session_age_s: float, beta: float, retention_s: float
) -> tuple[int, float]:
    """(engine, beta) if that engine got the session at most `retention_s` ago, else (0, 0)."""
    if session_engine < 0 or session_age_s > retention_s:
        return 0, 0.0
    return session_engine, beta


def in_flight_score(in_flight: IntArray, scale: float) -> FloatArray:
    """1 - tanh(requests in flight / scale)."""
    return 1.0 - np.tanh(in_flight / scale)


class RequestRates:
    """Requests routed to each engine in the last `window_s` seconds."""

    def __init__(self, engines: int, window_s: float) -> None:
        self._window_s = window_s
        self._routed: deque[tuple[float, int]] = deque()
        self.counts = np.zeros(engines, np.int64)

    def expire(self, now_s: float) -> None:
        """Drop what is older than the window."""
        while self._routed and self._routed[0][0] <= now_s - self._window_s:
            self.counts[self._routed.popleft()[1]] -= 1

    def note(self, now_s: float, engine: int) -> None:
        """A request goes to `engine`."""
        self._routed.append((now_s, engine))
        self.counts[engine] += 1


@dataclass
class Prism(RouterPolicy):
    """The engine with the highest weighted sum of the terms; the defaults are the authors'.

    An engine whose last message is older than `forget_after_s` has no state, as in the authors'
    gateway, and is no candidate; state exists from the start-up message on. With `stale_after_s`
    above 0 one whose message is older than that is none either (3 s in the authors' code, where
    it is commented out). Without any candidate the request goes to the engine that got the fewest
    requests in the last `rate_window_s`, which is logged once and counted (`no_state.count`).

    Attributes:
        slo_s: step latency at which the latency term reaches 0.
        scale_s: scale of the load term in seconds of pending work.
        latency_weight: weight of the latency term; likewise the others.
        beta: value of the affinity term.
        affinity: off: sessions are not looked at.
        retention_s: how long a session binds.
        capacity_units: "code": capacity as the authors' engines publish it (in normalised
            tokens/s, about ten times too small); "physical": tokens/s.
        compensation: add the prompt tokens routed to an engine since its state last changed.
        in_flight_weight: weight of the term of this router's own requests in flight.
        in_flight_scale: its scale, requests.
        random_ties: choose at random among equal scores, not the first.
        step_model: whose capacity counts: "engine", what every engine publishes, or
            "authors-default", what one publishes that has loaded the step-model file that the
            authors' configuration names (`latency.models.published.AUTHORS_DEFAULT`).
    """

    slo_s: float = 0.05
    scale_s: float = 1.0
    latency_weight: float = 1.0
    load_weight: float = 1.0
    mode_weight: float = 1.0
    affinity_weight: float = 1.0
    beta: float = 1.0
    affinity: bool = True
    retention_s: float = 300.0
    capacity_units: Literal["code", "physical"] = "code"
    compensation: bool = False
    in_flight_weight: float = 0.0
    in_flight_scale: float = 24.0
    random_ties: bool = False
    forget_after_s: float = 300.0
    stale_after_s: float = 0.0
    rate_window_s: float = 60.0
    step_model: StepModelFile = "engine"

    def __post_init__(self) -> None:
        """Refuse scales that cannot divide, and negative weights and times."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool | str):
                continue
            may_be_zero = item.name.endswith(("_weight", "beta", "_after_s"))
            if value < 0 or (value == 0 and not may_be_zero):
                bound = ">= 0" if may_be_zero else "> 0"
                raise ValueError(f"{self.name}: {item.name} is {value}; it must be {bound}")

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Forget the request rates."""
        self._rates = RequestRates(len(engines), self.rate_window_s)
        self._assumed_capacity: FloatArray | None = None
        if self.step_model == "authors-default":
            model = published_model(*AUTHORS_DEFAULT, "stable")
            assert model is not None
            self._assumed_capacity = np.full(len(engines), model.capacity(self.capacity_units))
        self.no_state = Fallback(
            __name__,
            f"{self.name}: no engine that is up has state recent enough to be a candidate; "
            "requests go to the engine with the lowest request rate",
        )
        self.no_capacity = Fallback(
            __name__,
            f"{self.name}: an engine never published its peak throughput (its GPU and model have "
            "no published fit and its policy sends no advert); its load counts as nothing",
        )

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The best score among engines that are up and have state."""
        state = cluster.pushed
        self._rates.expire(cluster.now_s)
        usable = cluster.alive & (state.age_s <= self._oldest_s)
        if usable.any():
            choice = self._best(np.where(usable, self.scores(cluster, state), -np.inf), cluster)
        else:
            self.no_state.note()
            choice = cluster.argmin(self._rates.counts)
        self._rates.note(cluster.now_s, choice)
        return choice

    def scores(self, cluster: ClusterView, state: PushedState) -> FloatArray:
        """The weighted sum per engine, candidate or not."""
        pending = state.pending_tokens
        if self.compensation:
            pending = pending + cluster.routed_tokens_since_push
        scores = self.latency_weight * latency_score(state.predicted_step_s, self.slo_s)
        scores += self.load_weight * load_score(pending, self._capacity(state), self.scale_s)
        scores += self.mode_weight * mode_score(state.mode)
        if self.in_flight_weight:
            flying = in_flight_score(cluster.in_flight, self.in_flight_scale)
            scores += self.in_flight_weight * flying
        if self.affinity:
            engine, kept = affinity_score(
                cluster.session_engine, cluster.session_age_s, self.beta, self.retention_s
            )
            scores[engine] += self.affinity_weight * kept
        return scores

    @property
    def _oldest_s(self) -> float:
        return min(self.forget_after_s, self.stale_after_s or self.forget_after_s)

    def _capacity(self, state: PushedState) -> FloatArray:
        if self._assumed_capacity is not None:
            return self._assumed_capacity
        if self.capacity_units == "code":
            return state.capacity
        if state.peak_tps.min() <= 0:
            self.no_capacity.note()
        return state.peak_tps

    def _best(self, scores: FloatArray, cluster: ClusterView) -> int:
        if not self.random_ties:
            return int(scores.argmax())
        tied = _places(scores == scores.max())
        return int(tied[cluster.rng.integers(len(tied))]) if len(tied) > 1 else int(tied[0])


def _places(which: BoolArray) -> IntArray:
    places: IntArray = which.nonzero()[0]
    return places
