"""Every form of batching action in compiled code: limits, order rules, grids.

Equal to `synergy_gym.actions.batch_decision` and `Simulator.batch()`, the log hash included.
What an action means on one engine is written down once in a control vector (int64):

    C_FORM      FORM_LIMITS: the action is (token budget - 1, max running - 1)
                FORM_FULL: and (chunk cap, order rule) behind them
                FORM_GRID: an index per axis of an `EngineGrid`
    C_COVER     1: a grid's budgets count tokens beside one per running decode
    C_AXES      how many numbers an action has; their sizes start at C_SIZES
    C_CLASSES   SLO classes; per class, from `C_LATE` on, the wait after which a request is
                late, then the TTFT objectives, both in ns; behind them the grid's table
    C_INTERVAL  how long a decision holds, in ns; 0: for one iteration
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from synergy_gym.actions import ORDERS, EngineGrid, deadlines_ns, late_after_ns
from synergy_gym.envs.compiled.step import (
    ANY,
    ILLEGAL,
    FusedStep,
    joined,
    observe_engine,
    outcome,
    usable_memory,
)
from synergy_gym.features import ENGINE_SCALE_SIZE
from synergy_gym.jit import direct, inner, kernel
from synergy_gym.latency.clock import _mix_kernel
from synergy_gym.observation import Float32Array
from synergy_gym.sim.compiled.clock import advance, take_batch
from synergy_gym.sim.compiled.decodes import num_decodes
from synergy_gym.sim.compiled.reach import engine_of, plan_of, request_of, world_at
from synergy_gym.sim.compiled.records import float32s, int64s
from synergy_gym.sim.points import DONE
from synergy_gym.types import SLO, EngineSpec, IntArray

FORM_LIMITS, FORM_FULL, FORM_GRID = 0, 1, 2
C_FORM, C_COVER, C_AXES, C_CLASSES, C_INTERVAL, C_SIZES = range(6)
MAX_AXES = 5
C_LATE = C_SIZES + MAX_AXES

QUEUE = ORDERS.index("queue")
SHORTEST = ORDERS.index("shortest-prompt")
DEADLINE = ORDERS.index("earliest-deadline")
LATE_LAST = ORDERS.index("late-last")
LATE_LAST_SHORTEST = ORDERS.index("late-last-shortest")
_BEHIND = 1 << 60


def engine_control(
    spec: EngineSpec,
    slos: Sequence[SLO],
    sizes: Sequence[int],
    grid: EngineGrid | None,
    interval_ns: int = 0,
) -> IntArray:
    """The control vector of an engine whose actions have these sizes.

    Args:
        spec: the engine.
        slos: the scenario's classes.
        sizes: of the action's dimensions: 2 are limits, 4 the full form.
        grid: the grid that the action indexes; `None` for the other forms.
        interval_ns: how long a decision holds; 0: for one iteration.
    """
    form = FORM_GRID if grid is not None else FORM_LIMITS if len(sizes) == 2 else FORM_FULL
    head = np.zeros(C_LATE, np.int64)
    head[[C_FORM, C_COVER, C_AXES, C_CLASSES, C_INTERVAL]] = (
        form, grid is not None and grid.cover_decodes, len(sizes), len(slos), interval_ns,
    )  # fmt: skip
    head[C_SIZES : C_SIZES + len(sizes)] = sizes
    table = np.empty(0, np.int64) if grid is None else grid.table(spec).ravel()
    return np.concatenate([head, late_after_ns(slos), deadlines_ns(slos), table])


@inner
def _is_late(world, request, c):  # type: ignore[no-untyped-def]
    """1 for a request without a first token after its class's `late_after_ns`."""
    waited = world.now_ns - request.arrival_ns
    late = waited > c[C_LATE + request.slo_class] and request.first_token_ns < 0
    return np.int64(1) if late else np.int64(0)


@inner
def _key(world, r, c, rule):  # type: ignore[no-untyped-def]
    """What a rule sorts a waiting request by."""
    request = request_of(world, r)
    if rule == SHORTEST:
        return request.prompt_tokens
    if rule == DEADLINE:
        objective = c[C_LATE + c[C_CLASSES] + request.slo_class]
        return objective - (world.now_ns - request.arrival_ns)
    if rule == LATE_LAST:
        return _is_late(world, request, c)
    known = request.prompt_tokens + request.generated_tokens
    return _is_late(world, request, c) * _BEHIND + known


@inner
def _number(world, engine, c, rule):  # type: ignore[no-untyped-def]
    """Note every request's place in the queue; (number of sorted runs, key of the last).

    The place stands in `token_cap`, which nobody needs before the next decision.
    """
    r, i = engine.first_waiting, 0
    runs, last = 1, np.int64(-(1 << 62))
    while r >= 0:
        request = request_of(world, r)
        request.token_cap = i
        key = _key(world, r, c, rule)
        runs += key < last
        last = key
        r = request.next
        i += 1
    return runs, last


@inner
def _after_run(world, r, key, c, rule):  # type: ignore[no-untyped-def]
    """The first request behind the sorted run that begins with request `r`, -1 at the end."""
    while True:
        r = request_of(world, r).next
        if r < 0:
            return r
        following = _key(world, r, c, rule)
        if following < key:
            return r
        key = following


@inner
def _merge_runs(world, head, c, rule):  # type: ignore[no-untyped-def]
    """Merge every sorted run with the one behind it; (new head, how many runs are left)."""
    new_head, tail, left, runs = np.int64(-1), np.int64(-1), head, 0
    while left >= 0:
        runs += 1
        key = _key(world, left, c, rule)
        middle = _after_run(world, left, key, c, rule)
        right, in_left, in_right = middle, True, middle >= 0
        right_key = _key(world, right, c, rule) if in_right else np.int64(0)
        while in_left or in_right:
            if in_left and (not in_right or key <= right_key):
                taken, left = left, request_of(world, left).next
                in_left = left != middle
                if in_left:
                    key = _key(world, left, c, rule)
            else:
                taken, right = right, request_of(world, right).next
                in_right = right >= 0
                if in_right:
                    before, right_key = right_key, _key(world, right, c, rule)
                    in_right = right_key >= before
            if tail < 0:
                new_head = taken
            else:
                request_of(world, tail).next = taken
            tail = taken
        left = right
    request_of(world, tail).next = -1
    return new_head, runs


@inner
def _chain_order(world, engine):  # type: ignore[no-untyped-def]
    """Link backwards, and chain the permutation as `Simulator.batch` does."""
    value = _mix_kernel(np.uint64(engine.decision_hash))  # no running order
    value = _mix_kernel(value ^ np.uint64(engine.waiting + 1))
    before, r = np.int64(-1), engine.first_waiting
    while r >= 0:
        request = request_of(world, r)
        value = _mix_kernel(value ^ np.uint64(request.token_cap))
        request.token_cap = -1
        request.previous = before
        before = r
        r = request.next
    engine.last_waiting = before
    engine.decision_hash = np.int64(_mix_kernel(value))  # no caps of single requests


@inner
def sort_waiting(world, engine, c, rule):  # type: ignore[no-untyped-def]
    """Bring the waiting queue into the order of a rule (natural merge sort of the list, stable).

    A queue that was sorted before the last iteration has few runs: only who has come or become
    late since is out of place.
    """
    if rule == QUEUE or engine.waiting < 2 or engine.priority:
        return
    runs, last = _number(world, engine, c, rule)
    if rule == LATE_LAST and runs == 1 and last == 0:
        return  # nobody is late
    head = engine.first_waiting
    while runs > 1:
        head, runs = _merge_runs(world, head, c, rule)
    engine.first_waiting = head
    _chain_order(world, engine)


@inner
def _held(world, engine, c, most):  # type: ignore[no-untyped-def]
    """The cap that admits no late request."""
    if engine.waiting == 0:
        return most
    allowed, r = engine.running, engine.first_waiting
    while r >= 0 and allowed < most:
        request = request_of(world, r)
        allowed += 1 - _is_late(world, request, c)
        r = request.next
    return max(min(most, allowed), 1)


@inner
def _choose_cell(world, engine, c, actions, at):  # type: ignore[no-untyped-def]
    cell, plan = np.int64(0), plan_of(engine)
    for axis in range(c[C_AXES]):
        cell = cell * c[C_SIZES + axis] + actions[at + axis]
    t = C_LATE + 2 * c[C_CLASSES] + 5 * cell
    budget, most = c[t], c[t + 1]
    if c[C_COVER] != 0:
        budget += num_decodes(world, engine)
    if c[t + 4] != 0:
        most = _held(world, engine, c, most)
    sort_waiting(world, engine, c, c[t + 3])
    plan.token_budget = min(max(budget, 1), engine.max_num_batched_tokens)
    plan.max_running, plan.prefill_chunk = most, c[t + 2]


@inner
def choose(world, engine, c, actions, at):  # type: ignore[no-untyped-def]
    """Enter what the action at `actions[at:]` means now on an engine; it must be legal."""
    form, plan = c[C_FORM], plan_of(engine)
    if form == FORM_GRID:
        _choose_cell(world, engine, c, actions, at)
        return
    plan.token_budget, plan.max_running = actions[at] + 1, actions[at + 1] + 1
    plan.prefill_chunk = 0
    if form == FORM_FULL:
        plan.prefill_chunk = actions[at + 2]
        sort_waiting(world, engine, c, actions[at + 3])


@inner
def is_legal(c, actions, at):  # type: ignore[no-untyped-def]
    """Whether every number of the action lies inside its dimension."""
    legal = True
    for axis in range(c[C_AXES]):
        legal = legal and 0 <= actions[at + axis] < c[C_SIZES + axis]
    return legal


@inner
def play_action(address, io, c, actions, at):  # type: ignore[no-untyped-def]
    """Take a legal action in every iteration that its interval covers, and observe.

    Returns (kind of the next point, iterations).
    """
    world = world_at(address)
    engine = engine_of(world, 0)
    begin, iterations = world.now_ns, 0
    while True:
        choose(world, engine, c, actions, at)
        take_batch(address)
        point = advance(address)
        iterations += 1
        if point == DONE or world.now_ns - begin >= c[C_INTERVAL]:
            break
    observe_engine(world, engine, io, io, ENGINE_SCALE_SIZE)
    return point, iterations


@kernel
def _step_controlled(address, io_address, control, actions):  # type: ignore[no-untyped-def]
    c = int64s(control, ANY)
    if not is_legal(c, actions, 0):
        return np.int64(ILLEGAL), 0.0, 0.0, np.int64(0)
    point, iterations = play_action(address, float32s(io_address, ANY), c, actions, 0)
    _, dt_s, reward = outcome(world_at(address), point)
    return point, dt_s, reward, np.int64(iterations)


def controlled_stepper(
    simulator: Any, scale: Float32Array, size: int, control: IntArray
) -> FusedStep | None:
    """`step(action)` of one engine, int64 and contiguous, or `None` without a memory.

    Its outcome has the number of iterations at its end. An illegal action changes nothing and
    gives the point `ILLEGAL`. Simulator and control vector must outlive the step.
    """
    memory = usable_memory(simulator)
    if memory is None:
        return None
    io = joined(scale, size)
    arguments = memory.address, io.ctypes.data, control.ctypes.data
    return FusedStep(partial(direct(_step_controlled), *arguments), io, io[len(scale) :])
