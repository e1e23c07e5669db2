"""A whole step as one compiled call: take the decision, simulate, observe.

Equal to `batch()` or `route()`, `advance()` and the views, without a Python object in
between. Works on simulators that show their `memory`, and where nothing else has to happen
between two decisions (no Python policy, no shaping, no live picture).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from synergy_gym.features import (
    ENGINE_SCALE_SIZE,
    NUM_REQUEST_FEATURES,
    NUM_ROUTER_FEATURES,
    ROUTER_CLASS_SCALE_SIZE,
    ROUTER_COMMON_SCALE_SIZE,
    ROUTER_ENGINE_SCALE_SIZE,
    RequestField,
    write_engine_features,
    write_request,
    write_router_ages,
    write_router_row,
)
from synergy_gym.jit import direct, inner, kernel
from synergy_gym.observation import Float32Array
from synergy_gym.sim.compiled.clock import advance, take_batch, take_route
from synergy_gym.sim.compiled.exports import write_state
from synergy_gym.sim.compiled.lifecycle import known_session
from synergy_gym.sim.compiled.reach import (
    detail_of,
    engine_of,
    plan_of,
    request_of,
    request_vector_of,
    session_place_of,
    state_of,
    table_of_rows,
    telemetry_of,
    world_at,
)
from synergy_gym.sim.compiled.records import float32s
from synergy_gym.sim.compiled.telemetry import refresh_rows
from synergy_gym.sim.memory import Memory
from synergy_gym.sim.points import DONE, ROUTE
from synergy_gym.types import NS_PER_S, RouterRow

Outcome = tuple[Any, ...]
"""(kind of the next point, seconds passed, requests that met their SLOs meanwhile).

Where decisions can hold for an interval, the number of iterations follows.
"""

ILLEGAL = -1
"""In place of a decision point: the action does not exist, nothing has happened."""

_NOW, _PROMPT = int(RequestField.NOW_NS), int(RequestField.PROMPT_TOKENS)
_SESSION, _AGE = int(RequestField.SESSION_ENGINE), int(RequestField.SESSION_AGE_NS)
_ATTEMPT, _CLASS = int(RequestField.ATTEMPT), int(RequestField.SLO_CLASS)
_PRIORITY = int(RequestField.PRIORITY)
_EXPECTED = int(RequestField.EXPECTED_OUTPUT_MILLITOKENS)


ROW_SIZE = len(RouterRow)
ANY = 1 << 30
"""Number of values of an array whose end the code that reads it knows."""


@inner
def outcome(world, point):  # type: ignore[no-untyped-def]
    """(point, seconds passed, SLOs met) since the last step."""
    dt_s = (world.now_ns - world.seen_now_ns) / NS_PER_S
    reward = float(world.met - world.seen_met)
    if point != DONE:
        world.seen_now_ns, world.seen_met = world.now_ns, world.met
    return np.int64(point), dt_s, reward


@inner
def observe_engine(world, engine, scales, out, at):  # type: ignore[no-untyped-def]
    """Write what the policy of an engine sees to `out[at:]`."""
    state = state_of(world)
    write_state(world, engine, state, 0)
    write_engine_features(state, 0, scales, out, at)


@kernel
def _step_engine(address, io_address, budget, cap):  # type: ignore[no-untyped-def]
    world = world_at(address)
    engine = engine_of(world, 0)
    if not (0 <= budget < engine.max_num_batched_tokens and 0 <= cap < engine.max_num_seqs):
        return np.int64(ILLEGAL), 0.0, 0.0
    plan = plan_of(engine)
    plan.token_budget, plan.max_running, plan.prefill_chunk = budget + 1, cap + 1, 0
    take_batch(address)
    point = advance(address)
    io = float32s(io_address, ANY)
    observe_engine(world, engine, io, io, ENGINE_SCALE_SIZE)
    return outcome(world, point)


@inner
def _write_request_vector(world, request, at):  # type: ignore[no-untyped-def]
    r = world.point_request
    row, session, now = request_of(world, r), known_session(world, r), world.now_ns
    engine = np.int64(-1) if session < 0 else session_place_of(world, session).engine
    request[at + _NOW] = now
    request[at + _PROMPT] = row.prompt_tokens
    request[at + _SESSION] = engine
    request[at + _AGE] = now - session_place_of(world, session).at_ns if engine >= 0 else -1
    request[at + _ATTEMPT] = row.attempts - 1
    request[at + _CLASS] = row.slo_class
    request[at + _PRIORITY] = detail_of(world, r).priority
    request[at + _EXPECTED] = -1


@inner
def _write_observation(world, io):  # type: ignore[no-untyped-def]
    """`write_router_features`, leaving the blocks of engines whose rows have not changed."""
    engines, rows, request = world.num_engines, table_of_rows(world), request_vector_of(world)
    common = engines * ROUTER_ENGINE_SCALE_SIZE
    at = common + ROUTER_COMMON_SCALE_SIZE + ROUTER_CLASS_SCALE_SIZE * world.num_slo_classes
    blocks = at + NUM_REQUEST_FEATURES
    write_request(request, 0, io, common, io, at)
    write_router_ages(rows, 0, engines, request, 0, io, blocks)
    for i in range(engines):
        telemetry = telemetry_of(engine_of(world, i))
        if telemetry.dirty:
            telemetry.dirty = False
            row, scale = i * ROW_SIZE, i * ROUTER_ENGINE_SCALE_SIZE
            write_router_row(rows, row, io, scale, common, io, blocks + i * NUM_ROUTER_FEATURES)


@inner
def observe_request(world, io):  # type: ignore[no-untyped-def]
    """Write what the router sees at a ROUTE point behind its scales in `io`."""
    _write_request_vector(world, request_vector_of(world), 0)
    refresh_rows(world, world.now_ns)
    _write_observation(world, io)


@inner
def play_route(address, io, engine):  # type: ignore[no-untyped-def]
    """Route, go on to the next arrival, and observe."""
    world = world_at(address)
    take_route(address, engine)
    point = advance(address)
    if point == ROUTE:
        observe_request(world, io)
    return outcome(world, point)


@kernel
def _step_router(address, io_address, engine):  # type: ignore[no-untyped-def]
    if not 0 <= engine < world_at(address).num_engines:
        return np.int64(ILLEGAL), 0.0, 0.0
    return play_route(address, float32s(io_address, ANY), engine)


class FusedStep(NamedTuple):
    """A compiled step, its scales and observation in one array, and the latter alone."""

    step: Callable[..., Outcome]
    io: Float32Array
    observation: Float32Array


def joined(scale: Float32Array, size: int) -> Float32Array:
    """Scales and observation in one array: each further array argument costs time."""
    return np.concatenate([scale, np.zeros(size, np.float32)])


def usable_memory(simulator: Any) -> Memory | None:
    """The memory that a compiled step works on; `None` where something must watch each step."""
    memory: Memory | None = getattr(simulator, "memory", None)
    return None if memory is None or memory.world["check"] else memory


def engine_stepper(simulator: Any, scale: Float32Array, size: int) -> FusedStep | None:
    """`step(token_budget - 1, max_running - 1)` of one engine, or `None` without a memory.

    An illegal argument changes nothing and gives the point `ILLEGAL`. The observation has
    `size` numbers. The simulator must outlive the step.
    """
    memory = usable_memory(simulator)
    if memory is None:
        return None
    io = joined(scale, size)
    step = partial(direct(_step_engine), memory.address, io.ctypes.data)
    return FusedStep(step, io, io[len(scale) :])


def router_stepper(simulator: Any, scale: Float32Array, size: int) -> FusedStep | None:
    """`step(engine)` of a cluster whose engines all follow rules, or `None` without a memory.

    The engine must be up; one that does not exist gives the point `ILLEGAL`. The observation
    has `size` numbers and is left alone at the end of the episode.
    """
    memory = usable_memory(simulator)
    if memory is None:
        return None
    mark_dirty(memory)
    io = joined(scale, size)
    step = partial(direct(_step_router), memory.address, io.ctypes.data)
    return FusedStep(step, io, io[len(scale) :])


def mark_dirty(memory: Memory) -> None:
    """Have the block of every engine written anew with the next router observation."""
    memory.engines["telemetry"]["dirty"] = True


def mark_seen(memory: Memory, now_ns: int, met: int) -> None:
    """The environment has reported everything up to `now_ns`, with `met` SLOs met."""
    memory.world["seen_now_ns"], memory.world["seen_met"] = now_ns, met


def seen(memory: Memory) -> tuple[int, int]:
    """What the last fused step that did not end the episode had reported: (now_ns, met)."""
    return int(memory.world["seen_now_ns"]), int(memory.world["seen_met"])
