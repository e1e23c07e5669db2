"""A declarative router, compiled: `synergy_gym.sim.plain.routing`, draw by draw."""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import inner
from synergy_gym.sim.compiled.layout import (
    BY_SESSION,
    LEAST_KV,
    LEAST_OUTSTANDING,
    POWER_OF_TWO,
    RANDOM,
    ROUND_ROBIN,
    WEIGHTED,
)
from synergy_gym.sim.compiled.lifecycle import known_session
from synergy_gym.sim.compiled.pcg64 import draw_below, draw_float
from synergy_gym.sim.compiled.reach import (
    owner_of,
    ring_place_of,
    router_of,
    row_of,
    weights_of,
)
from synergy_gym.sim.compiled.telemetry import refresh_rows


@inner
def choose_engine(world, r, now):  # type: ignore[no-untyped-def]
    """The engine of an arriving request; some engine is up."""
    router = router_of(world)
    kind = router.kind
    if kind == ROUND_ROBIN:
        router.turn += 1
        return _alive(world, (router.turn - 1) % world.num_alive)
    if kind == RANDOM:
        return _alive(world, draw_below(router, world.num_alive))
    if kind == WEIGHTED:
        return _weighted(world, router)
    if kind == POWER_OF_TWO:
        return _better_of_two(world, router)
    if kind == LEAST_OUTSTANDING:
        return _least_outstanding(world)
    if kind == BY_SESSION:
        session = known_session(world, r)
        return _least_outstanding(world) if session < 0 else _owner(world, router, session)
    refresh_rows(world, now)
    return _smallest(world, router, kind)


@inner
def _alive(world, k):  # type: ignore[no-untyped-def]
    """The k-th engine that is up."""
    i = 0
    while row_of(world, i).alive == 0 or k > 0:
        k -= row_of(world, i).alive
        i += 1
    return np.int64(i)


@inner
def _weighted(world, router):  # type: ignore[no-untyped-def]
    """One draw from the cumulative weights of the engines that are up."""
    weights, total, last = weights_of(router), 0.0, 0
    for i in range(world.num_engines):
        if row_of(world, i).alive != 0:
            total += weights[i]
    wanted, edge = draw_float(router) * total, 0.0
    for i in range(world.num_engines):
        if row_of(world, i).alive != 0:
            edge += weights[i]
            last = i
            if wanted < edge:
                break
    return np.int64(last)


@inner
def _owner(world, router, session):  # type: ignore[no-untyped-def]
    """The first engine on the ring, from the session's place on, that is up."""
    place = ring_place_of(router, session).value
    while row_of(world, owner_of(router, place % router.num_owners).value).alive == 0:
        place += 1
    return owner_of(router, place % router.num_owners).value


@inner
def _least_outstanding(world):  # type: ignore[no-untyped-def]
    """Fewest requests in flight, the lowest index of equal ones."""
    best = np.int64(-1)
    for i in range(world.num_engines):
        row = row_of(world, i)
        if row.alive != 0 and (best < 0 or row.in_flight < row_of(world, best).in_flight):
            best = np.int64(i)
    return best


@inner
def _better_of_two(world, router):  # type: ignore[no-untyped-def]
    if world.num_alive == 1:
        return _alive(world, 0)
    first = draw_below(router, world.num_alive)
    second = (first + 1 + draw_below(router, world.num_alive - 1)) % world.num_alive
    one, two = _alive(world, first), _alive(world, second)
    return two if row_of(world, two).in_flight < row_of(world, one).in_flight else one


@inner
def _shown(world, i, kind):  # type: ignore[no-untyped-def]
    """What an engine has told: its share of KV blocks in use, or its waiting requests."""
    row = row_of(world, i)
    if kind == LEAST_KV:
        return row.push_used_blocks / max(row.push_total_blocks, 1)
    return float(row.scrape_waiting)


@inner
def _smallest(world, router, kind):  # type: ignore[no-untyped-def]
    """The smallest value that is shown; a draw among equal ones."""
    least, tied = np.inf, 0
    for i in range(world.num_engines):
        if row_of(world, i).alive != 0:
            shown = _shown(world, i, kind)
            if shown < least:
                least, tied = shown, 0
            if shown == least:
                tied += 1
    k = draw_below(router, tied) if tied > 1 else np.int64(0)
    for i in range(world.num_engines):
        if row_of(world, i).alive != 0 and _shown(world, i, kind) == least:
            if k == 0:
                return np.int64(i)
            k -= 1
    return np.int64(-1)
