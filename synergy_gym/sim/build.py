"""From a scenario to a simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from synergy_gym.latency.models.published import published_advert
from synergy_gym.scenario import Scenario, stop_time_ns
from synergy_gym.seeding import stream_seed
from synergy_gym.sim.memory_build import nanoseconds
from synergy_gym.sim.readiness import simulator_for
from synergy_gym.types import DecisionRule, RouterRule
from synergy_gym.workload.base import Workload


def build_simulator(
    scenario: Scenario,
    *,
    load: float = 1.0,
    seed: int = 0,
    workload: Workload | None = None,
    rules: Sequence[DecisionRule | None] | None = None,
    auto_route: bool = False,
    record_itl: bool = False,
    router: tuple[RouterRule, np.random.Generator] | None = None,
    cls: Callable[..., Any] | None = None,
) -> Any:
    """An episode of `scenario` before its first arrival.

    An engine advertises SynergySched's published fit for its GPU and model, if there is one,
    until its policy advertises something else.

    Args:
        scenario: what is simulated.
        load: factor of the scenario's `rate_rps`; unused when `workload` is given.
        seed: fixes traffic and noise.
        workload: traffic to play instead of the scenario's own.
        rules: per engine a compiled decision, or `None` for BATCH points.
        auto_route: single engine without ROUTE points.
        record_itl: keep inter-token gaps.
        router: a rule that routes, with its generator, or `None` for ROUTE points.
        cls: what makes the simulator from these arguments; by default the compiled one, or
            while that is being compiled the plain one (`readiness`).

    Returns:
        What `cls` makes.
    """
    traffic = scenario.workload(load, seed) if workload is None else workload
    clocks = [
        terms.clock(stream_seed(seed, "noise", index)) for index, terms in enumerate(scenario.terms)
    ]
    return (cls or simulator_for(traffic))(
        engines=scenario.engines,
        clocks=clocks,
        workload=traffic,
        slos=scenario.slos,
        telemetry=scenario.telemetry,
        client=scenario.client,
        events=scenario.events,
        warmup_ns=nanoseconds(scenario.warmup_s),
        horizon_ns=nanoseconds(scenario.horizon_s),
        stop_ns=stop_time_ns(traffic, scenario.slos, scenario.horizon_s),
        rules=rules,
        adverts=[published_advert(spec) for spec in scenario.engines],
        auto_route=auto_route,
        record_itl=record_itl,
        **({} if router is None else {"router": router}),
    )
