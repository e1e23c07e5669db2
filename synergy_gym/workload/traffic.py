"""Traffic of an episode: a `TrafficSpec`, a rate, a horizon and a seed become a `Workload`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from synergy_gym.seeding import stream, stream_seed
from synergy_gym.types import FloatArray, IntArray
from synergy_gym.workload.arrivals import draw_arrivals
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.lengths import Pairs, pairs_of
from synergy_gym.workload.merge import merged
from synergy_gym.workload.presets import PRESETS
from synergy_gym.workload.replay import resend
from synergy_gym.workload.sessions import Talk, session_workload
from synergy_gym.workload.spec import (
    ArrivalSpec,
    LengthSpec,
    ReplaySpec,
    SessionSpec,
    TrafficMix,
    TrafficSpec,
)

__all__ = [
    "ArrivalSpec",
    "LengthSpec",
    "ReplaySpec",
    "SessionSpec",
    "TrafficMix",
    "TrafficSpec",
    "build_workload",
    "resolve",
]


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What a `TrafficSpec` says, worked out: the same for every rate, horizon and seed.

    Attributes:
        spec: without gaps.
        arrivals: the process of requests, or of session starts.
        pairs: lengths of single requests at normal scores.
        talk: how sessions look, or `None` for single requests.
    """

    spec: TrafficSpec
    arrivals: ArrivalSpec
    pairs: Pairs
    talk: Talk | None


class _Same:
    """A description as the key of what was made of it: itself, not an equal one.

    Its options are dictionaries, so it has no hash of its own.
    """

    __slots__ = ("spec",)

    def __init__(self, spec: TrafficSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.spec is other.spec


def build_workload(spec: TrafficSpec, rate_rps: float, horizon_s: float, seed: int) -> Workload:
    """The requests of one episode, open-loop arrivals in [0, horizon).

    The same seed at another rate has the same lengths in the same order (with sessions: the
    same conversations), only closer together or further apart.

    Args:
        spec: what to generate.
        rate_rps: mean requests per second, > 0.
        horizon_s: length of the arrival window, seconds, > 0.
        seed: the episode seed, >= 0.

    Raises:
        ValueError: the spec is incomplete, names something unknown, or is out of range.
    """
    if isinstance(spec, TrafficMix):
        return _mixed(spec, rate_rps, horizon_s, seed)
    plan = _planned(_Same(spec))
    full = plan.spec

    def log(span_s: float) -> tuple[Workload, FloatArray]:
        return _log(plan, rate_rps, span_s, seed)

    if full.replay is None:
        return _with_classes(*log(horizon_s), full)
    return _with_classes(*resend(full.replay, log, rate_rps, horizon_s, seed), full)


def _mixed(mix: TrafficMix, rate_rps: float, horizon_s: float, seed: int) -> Workload:
    shares = [share for share, _ in mix.parts]
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"a traffic mix has shares {shares}; give shares > 0 that sum to 1")
    return merged(
        [
            build_workload(part, rate_rps * share, horizon_s, stream_seed(seed, "content", 1 + i))
            for i, (share, part) in enumerate(mix.parts)
        ]
    )


def resolve(spec: TrafficSpec) -> TrafficSpec:
    """`spec` with the fields that it leaves open taken from its built-in generator.

    Raises:
        ValueError: the generator is unknown.
    """
    if spec.generator is None:
        return spec
    if spec.generator not in PRESETS:
        raise ValueError(
            f"unknown generator {spec.generator!r}; choose one of {', '.join(sorted(PRESETS))}"
        )
    preset = PRESETS[spec.generator]
    names = ("arrivals", "prompt", "output", "correlation", "sessions")
    gaps = {name: getattr(preset, name) for name in names if getattr(spec, name) is None}
    return replace(spec, generator=None, **gaps)


@lru_cache(maxsize=128)  # an environment asks for the same traffic at every reset
def _planned(same: _Same) -> _Plan:
    spec = resolve(same.spec)
    if spec.prompt is None or spec.output is None:
        raise ValueError("traffic needs prompt and output lengths; give both, or name a generator")
    lengths = spec.prompt, spec.output, spec.correlation or 0.0
    return _Plan(
        spec=spec,
        arrivals=spec.arrivals or ArrivalSpec(),
        pairs=pairs_of(*lengths),
        talk=None if spec.sessions is None else Talk(spec.sessions, *lengths),
    )


def _log(plan: _Plan, rate_rps: float, span_s: float, seed: int) -> tuple[Workload, FloatArray]:
    """The requests as users make them on [0, span), and a lot in [0, 1) per request."""
    if plan.talk is not None:
        return session_workload(plan.talk, plan.arrivals, rate_rps, span_s, seed)
    workload = _requests(plan, rate_rps, span_s, seed)
    return workload, stream(seed, "content").random(len(workload))


def _requests(plan: _Plan, rate_rps: float, horizon_s: float, seed: int) -> Workload:
    """Unrelated single requests."""
    arrivals, rng = plan.arrivals, stream(seed, "arrivals")
    times = draw_arrivals(arrivals.kind, rng, rate_rps, horizon_s, **arrivals.options)
    scores = stream(seed, "lengths").standard_normal((len(times), 2))
    return make_workload(times, *plan.pairs(scores))


def _with_classes(workload: Workload, lots: FloatArray, spec: TrafficSpec) -> Workload:
    """SLO classes by lot, and their priorities."""
    if min(spec.slo_mix) < 0 or abs(sum(spec.slo_mix) - 1) > 1e-9:
        raise ValueError(f"slo_mix is {spec.slo_mix}; give shares >= 0 that sum to 1")
    if spec.priorities and len(spec.priorities) != len(spec.slo_mix):
        raise ValueError(f"{len(spec.priorities)} priorities for {len(spec.slo_mix)} SLO classes")
    edges = np.cumsum(spec.slo_mix)[:-1]
    slo_class: IntArray = np.searchsorted(edges, lots, side="right").astype(np.int64)
    levels = np.array(spec.priorities or (0,) * len(spec.slo_mix), np.int64)
    return replace(workload, slo_class=slo_class, priority=levels[slo_class])
