"""What an episode may be made of; both simulators ask here before they build anything.

Compiled code trusts what it reads: an index that does not exist, or a number that does not fit its
field, would be read and written all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from synergy_gym.latency.clock import FS_PER_MS, check_durations, check_reach
from synergy_gym.limits import (
    ENDLESS_NS,
    MOST_BLOCK_TOKENS,
    MOST_CLASSES,
    MOST_COUNT,
    MOST_ENGINES,
    MOST_PER_STEP,
    check_number,
    is_integer,
    is_number,
)
from synergy_gym.router_table import RouterKind
from synergy_gym.sim.decisions import check_rule
from synergy_gym.types import (
    SLO,
    DecisionRule,
    EngineSpec,
    Event,
    IntArray,
    RouterRule,
    TelemetrySpec,
)
from synergy_gym.workload.base import Workload, check_classes, check_workload

MOST_MESSAGES = 1 << 20
"""Pushes and heartbeats of an engine that can be under way at once."""
# Field -> (smallest, largest).
_ENGINE_LIMITS = {
    "max_num_seqs": (1, MOST_PER_STEP),
    "max_num_batched_tokens": (1, MOST_PER_STEP),
    "max_model_len": (1, MOST_COUNT),
    "kv_blocks": (1, MOST_COUNT),
    "block_size": (1, MOST_BLOCK_TOKENS),
    "watermark_blocks": (0, MOST_COUNT),
}


def check_episode(
    engines: Sequence[EngineSpec],
    clocks: Sequence[IntArray],
    rules: Sequence[DecisionRule | None],
    workload: Workload,
    slos: Sequence[SLO],
    events: Sequence[Event],
    router: RouterRule | None,
    *,
    auto_route: bool,
) -> None:
    """Raise `ValueError` naming the first argument of an episode that cannot be simulated."""
    n = len(engines)
    if n == 0 or len(clocks) != n or len(rules) != n:
        raise ValueError(
            f"{n} engines, {len(clocks)} clocks and {len(rules)} rules; give one of each per "
            "engine, and at least one engine"
        )
    if n > MOST_ENGINES:
        raise ValueError(f"{n} engines; a simulation has at most {MOST_ENGINES:,}")
    if len(slos) > MOST_CLASSES:
        raise ValueError(f"{len(slos)} SLO classes; a simulation has at most {MOST_CLASSES}")
    if auto_route and n > 1:
        raise ValueError(f"auto_route needs exactly one engine, there are {n}; leave it off")
    for spec in engines:
        check_spec(spec)
    cached_block_size(engines)
    check_workload(workload)
    check_classes(workload, len(slos))
    check_events(events, n)
    _check_clocks(engines, clocks, workload, events)
    for spec, rule in zip(engines, rules, strict=True):
        if rule is not None:
            check_rule(spec, rule)
    if router is not None:
        check_router(router, n, events)


def check_spec(spec: EngineSpec) -> None:
    """Raise `ValueError` when an engine cannot exist."""
    for name, (least, most) in _ENGINE_LIMITS.items():
        cure = f"a whole number from {least} to {most:,}"
        where = f"engine {spec.name!r}: {name}"
        check_number(where, getattr(spec, name), least, most, cure, whole=True)


def cached_block_size(engines: Sequence[EngineSpec]) -> int:
    """Tokens per block where prefixes are cached; those of the first engine if nowhere.

    Raises:
        ValueError: engines that cache have different sizes.
    """
    sizes = {spec.block_size: spec.name for spec in engines if spec.prefix_caching}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"engines {first!r} and {second!r} cache prefixes in blocks of {one} and {other} "
            "tokens; give all engines with prefix_caching one block_size"
        )
    return next(iter(sizes), engines[0].block_size)


def check_events(events: Sequence[Event], engines: int) -> None:
    """Raise `ValueError` when an event names an engine that does not exist."""
    for event in events:
        if not 0 <= event.engine < engines:
            raise ValueError(
                f"event at {event.at_s} s names engine {event.engine} of {engines}; "
                f"choose 0..{engines - 1}"
            )


def check_times(**times_ns: int) -> None:
    """Raise `ValueError` when an instant in nanoseconds is later than `ENDLESS_NS`."""
    for name, value in times_ns.items():
        cure = "a whole number from 0 to 2**62, which never comes"
        check_number(name, value, 0, ENDLESS_NS, cure, whole=True)


def check_messages(telemetry: TelemetrySpec, clocks: Sequence[IntArray]) -> None:
    """Raise `ValueError` when more pushes would be under way than an engine keeps."""
    if ring_size(telemetry, clocks) - 4 > MOST_MESSAGES:
        raise ValueError(
            f"telemetry.push_delay_s is {telemetry.push_delay_s}: over {MOST_MESSAGES // 2:,} "
            "pushes and heartbeats would be under way at once; shorten the delay, or lengthen "
            "push_interval_s and heartbeat_interval_s"
        )


def ring_size(telemetry: TelemetrySpec, clocks: Sequence[IntArray]) -> int:
    """Pushes that can be under way at once, with room for heartbeats."""
    # Noise shortens an iteration to an eighth at most (StepTerms.noise_sd <= 0.25).
    step_s = min(int(clock[0]) for clock in clocks) / (8 * FS_PER_MS * 1000)
    pushed_s = max(telemetry.push_interval_s, step_s)
    shortest_s = max(min(pushed_s, telemetry.heartbeat_interval_s), 1e-6)
    return 4 + 2 * int(telemetry.push_delay_s / shortest_s)


def check_engine(engine: int, engines: int) -> None:
    """Raise `IndexError` when there is no such engine."""
    if not 0 <= engine < engines:
        raise IndexError(f"engine {engine} does not exist; choose 0..{engines - 1}")


def check_router(rule: RouterRule, engines: int, events: Sequence[Event] = ()) -> None:
    """Raise `ValueError` when a declarative router cannot route in a cluster."""
    if rule.kind not in get_args(RouterKind):
        known = ", ".join(get_args(RouterKind))
        raise ValueError(f"router rule: kind is {rule.kind!r}; choose one of {known}")
    if rule.kind == "weighted":
        _check_weights(rule.weights, engines)
    if rule.kind == "session":
        _check_ring(rule, engines, events)


def ring_place(rule: RouterRule, session: int) -> int:
    """Where a session begins on the ring of a rule's owners.

    Raises:
        ValueError: `place_of` gives no whole number.
    """
    assert rule.place_of is not None
    place = rule.place_of(session)
    if not is_integer(place):
        raise ValueError(
            f"router rule: place_of({session}) is {place!r}; return a whole number, counted "
            f"round the ring of {len(rule.owners)} owners"
        )
    return int(place) % len(rule.owners)


def _check_weights(weights: Sequence[float], engines: int) -> None:
    numbers = all(is_number(weight) and weight >= 0 for weight in weights)
    total = float(sum(map(float, weights))) if numbers else 0.0
    if len(weights) != engines or not (0 < total < float("inf")):
        raise ValueError(
            f"router rule: weights is {weights!r}; give {engines} finite numbers >= 0, one per "
            "engine and not all zero"
        )


def _check_ring(rule: RouterRule, engines: int, events: Sequence[Event]) -> None:
    if rule.place_of is None:
        raise ValueError("router rule: place_of is None; a session rule needs it, give a function")
    owners = rule.owners
    if not owners or not all(is_integer(owner) and 0 <= owner < engines for owner in owners):
        wrong = [x for x in owners if not (is_integer(x) and 0 <= x < engines)]
        problem = f"owners has {wrong[0]!r}" if wrong else "owners is empty"
        raise ValueError(f"router rule: {problem}; give engines of 0..{engines - 1}")
    steady = set(range(engines)) - {event.engine for event in events if event.kind == "down"}
    missing = sorted(set(range(engines)) - set(owners))
    if missing and steady.isdisjoint(owners):
        raise ValueError(
            f"router rule: owners leaves out engine {missing[0]}, and events take all others "
            "down; give every engine a place on the ring"
        )


def _check_clocks(
    engines: Sequence[EngineSpec],
    clocks: Sequence[IntArray],
    workload: Workload,
    events: Sequence[Event],
) -> None:
    longest = 1
    if len(workload):
        longest = int(np.max(workload.prompt_tokens + workload.output_tokens))
    slow = [1.0] * len(engines)
    for event in events:
        if event.kind == "slowdown":
            slow[event.engine] = max(slow[event.engine], event.factor)
    for spec, clock, factor in zip(engines, clocks, slow, strict=True):
        check_reach(clock, spec)
        check_durations(clock, spec, longest, factor)


__all__ = [
    "cached_block_size",
    "check_engine",
    "check_episode",
    "check_messages",
    "check_router",
    "check_spec",
    "check_times",
    "ring_place",
    "ring_size",
]
