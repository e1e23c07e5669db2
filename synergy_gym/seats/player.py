"""An episode with policies at its seats, from its beginning to its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synergy_gym.policies.base import EnginePolicy, RouterPolicy
from synergy_gym.seats.engine import EngineSeat
from synergy_gym.seats.router import RouterSeat
from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.simulation import Simulation


def play(sim: Simulation, engines: Sequence[EngineSeat], router: RouterSeat) -> None:
    """Answer every decision point of a simulation.

    Args:
        sim: at its beginning.
        engines: one seat per engine, reset; those whose rule the simulation plays by itself
            are never asked.
        router: the router's seat, reset; unused when arrivals are routed automatically.

    Raises:
        PolicyError: a policy raised, or its decision is not allowed; names policy, time, value.
    """
    while (point := sim.advance()) != DONE:
        if point == BATCH:
            engines[sim.point_engine].answer(sim)
        else:
            router.answer(sim)


def play_policies(
    sim: Simulation,
    engines: Sequence[EnginePolicy],
    router: RouterPolicy,
    rng: np.random.Generator,
) -> None:
    """`play` with policies that have been reset; `rng` is the router's generator."""
    seat = RouterSeat(router)
    seat.rng = rng
    play(sim, [EngineSeat(policy, index) for index, policy in enumerate(engines)], seat)
