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
from synergy_gym.envs.fused import ILLEGAL, FusedStep, joined, outcome, usable_arena
from synergy_gym.features import ENGINE_SCALE_SIZE, write_engine_features
from synergy_gym.jit import direct, hot, kernel
from synergy_gym.latency.terms import _mix_kernel
from synergy_gym.observation import Float32Array
from synergy_gym.sim.clock import advance, take_batch
from synergy_gym.sim.exports import write_state
from synergy_gym.sim.layout import (
    CLASS_MASK,
    E_HASH,
    E_MAX_TOKENS,
    E_PRIORITY,
    E_RUNNING,
    E_WAIT_HEAD,
    E_WAIT_TAIL,
    E_WAITING,
    F_ARRIVAL,
    F_CAL,
    F_FIRST,
    F_GEN,
    F_META,
    F_NEXT,
    F_PREV,
    F_PROMPT,
    H_ENG,
    H_NOW,
    H_STATE,
    P_BUDGET,
    P_CAP,
    P_CHUNK,
)
from synergy_gym.sim.lists import num_decodes, row
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


@hot
def _is_late(a, q, c):  # type: ignore[no-untyped-def]
    """1 for a request without a first token after its class's `late_after_ns`."""
    waited = a[H_NOW] - a[q + F_ARRIVAL]
    late = waited > c[C_LATE + (a[q + F_META] & CLASS_MASK)] and a[q + F_FIRST] < 0
    return np.int64(1) if late else np.int64(0)


@kernel
def _key(a, q, c, rule):  # type: ignore[no-untyped-def]
    """What a rule sorts the waiting request at row `q` by."""
    if rule == SHORTEST:
        return a[q + F_PROMPT]
    if rule == DEADLINE:
        objective = c[C_LATE + c[C_CLASSES] + (a[q + F_META] & CLASS_MASK)]
        return objective - (a[H_NOW] - a[q + F_ARRIVAL])
    if rule == LATE_LAST:
        return _is_late(a, q, c)
    return _is_late(a, q, c) * _BEHIND + a[q + F_PROMPT] + a[q + F_GEN]


@kernel
def _number(a, e, c, rule):  # type: ignore[no-untyped-def]
    """Note every request's place in the queue; (number of sorted runs, key of the last)."""
    r, i = a[e + E_WAIT_HEAD], 0
    runs, last = 1, np.int64(-(1 << 62))
    while r >= 0:
        q = row(a, 0, r)
        a[q + F_CAL] = i
        key = _key(a, q, c, rule)
        runs += key < last
        last = key
        r = a[q + F_NEXT]
        i += 1
    return runs, last


@kernel
def _after_run(a, r, key, c, rule):  # type: ignore[no-untyped-def]
    """The first request behind the sorted run that begins with request `r`, -1 at the end."""
    while True:
        r = a[row(a, 0, r) + F_NEXT]
        if r < 0:
            return r
        following = _key(a, row(a, 0, r), c, rule)
        if following < key:
            return r
        key = following


@kernel
def _merge_runs(a, head, c, rule):  # type: ignore[no-untyped-def]
    """Merge every sorted run with the one behind it; (new head, how many runs are left)."""
    new_head, tail, left, runs = np.int64(-1), np.int64(-1), head, 0
    while left >= 0:
        runs += 1
        key = _key(a, row(a, 0, left), c, rule)
        middle = _after_run(a, left, key, c, rule)
        right, in_left, in_right = middle, True, middle >= 0
        right_key = _key(a, row(a, 0, right), c, rule) if in_right else np.int64(0)
        while in_left or in_right:
            if in_left and (not in_right or key <= right_key):
                taken, left = left, a[row(a, 0, left) + F_NEXT]
                in_left = left != middle
                if in_left:
                    key = _key(a, row(a, 0, left), c, rule)
            else:
                taken, right = right, a[row(a, 0, right) + F_NEXT]
                in_right = right >= 0
                if in_right:
                    before, right_key = right_key, _key(a, row(a, 0, right), c, rule)
                    in_right = right_key >= before
            if tail < 0:
                new_head = taken
            else:
                a[row(a, 0, tail) + F_NEXT] = taken
            tail = taken
        left = right
    a[row(a, 0, tail) + F_NEXT] = -1
    return new_head, runs


@kernel
def _chain_order(a, e):  # type: ignore[no-untyped-def]
    """Link backwards, and chain the permutation as `Simulator.batch` does."""
    value = _mix_kernel(np.uint64(a[e + E_HASH]))  # no running order
    value = _mix_kernel(value ^ np.uint64(a[e + E_WAITING] + 1))
    before, r = np.int64(-1), a[e + E_WAIT_HEAD]
    while r >= 0:
        q = row(a, 0, r)
        value = _mix_kernel(value ^ np.uint64(a[q + F_CAL]))
        a[q + F_CAL] = -1
        a[q + F_PREV] = before
        before = r
        r = a[q + F_NEXT]
    a[e + E_WAIT_TAIL] = before
    a[e + E_HASH] = np.int64(_mix_kernel(value))  # no caps of single requests


@kernel
def sort_waiting(a, e, c, rule):  # type: ignore[no-untyped-def]
    """Bring the waiting queue into the order of a rule (natural merge sort of the list, stable).

    A queue that was sorted before the last iteration has few runs: only who has come or become
    late since is out of place.
    """
    if rule == QUEUE or a[e + E_WAITING] < 2 or a[e + E_PRIORITY] != 0:
        return
    runs, last = _number(a, e, c, rule)
    if rule == LATE_LAST and runs == 1 and last == 0:
        return  # nobody is late
    head = a[e + E_WAIT_HEAD]
    while runs > 1:
        head, runs = _merge_runs(a, head, c, rule)
    a[e + E_WAIT_HEAD] = head
    _chain_order(a, e)


@kernel
def _held(a, e, c, most):  # type: ignore[no-untyped-def]
    """The cap that admits no late request."""
    if a[e + E_WAITING] == 0:
        return most
    allowed, r = a[e + E_RUNNING], a[e + E_WAIT_HEAD]
    while r >= 0 and allowed < most:
        q = row(a, 0, r)
        allowed += 1 - _is_late(a, q, c)
        r = a[q + F_NEXT]
    return max(min(most, allowed), 1)


@kernel
def _choose_cell(a, e, c, actions, at):  # type: ignore[no-untyped-def]
    cell = np.int64(0)
    for axis in range(c[C_AXES]):
        cell = cell * c[C_SIZES + axis] + actions[at + axis]
    t = C_LATE + 2 * c[C_CLASSES] + 5 * cell
    budget, most = c[t], c[t + 1]
    if c[C_COVER] != 0:
        budget += num_decodes(a, 0, e)
    if c[t + 4] != 0:
        most = _held(a, e, c, most)
    sort_waiting(a, e, c, c[t + 3])
    a[e + P_BUDGET] = min(max(budget, 1), a[e + E_MAX_TOKENS])
    a[e + P_CAP], a[e + P_CHUNK] = most, c[t + 2]


@kernel
def choose(a, e, c, actions, at):  # type: ignore[no-untyped-def]
    """Enter what the action at `actions[at:]` means now on the engine at `e`; it must be legal."""
    form = c[C_FORM]
    if form == FORM_GRID:
        _choose_cell(a, e, c, actions, at)
        return
    a[e + P_BUDGET], a[e + P_CAP], a[e + P_CHUNK] = actions[at] + 1, actions[at + 1] + 1, 0
    if form == FORM_FULL:
        a[e + P_CHUNK] = actions[at + 2]
        sort_waiting(a, e, c, actions[at + 3])


@hot
def is_legal(c, actions, at):  # type: ignore[no-untyped-def]
    """Whether every number of the action lies inside its dimension."""
    legal = True
    for axis in range(c[C_AXES]):
        legal = legal and 0 <= actions[at + axis] < c[C_SIZES + axis]
    return legal


@kernel
def play_action(a, io, c, actions, at):  # type: ignore[no-untyped-def]
    """Take a legal action in every iteration that its interval covers, and observe.

    Returns (kind of the next point, iterations).
    """
    begin, iterations = a[H_NOW], 0
    while True:
        choose(a, a[H_ENG], c, actions, at)
        take_batch(a, 0, a[H_ENG])
        point = advance(a, 0)
        iterations += 1
        if point == DONE or a[H_NOW] - begin >= c[C_INTERVAL]:
            break
    write_state(a, 0, a[H_ENG], a, a[H_STATE])
    write_engine_features(a, a[H_STATE], io, io, ENGINE_SCALE_SIZE)
    return np.int64(point), np.int64(iterations)


@kernel
def _step_controlled(a, io, c, actions):  # type: ignore[no-untyped-def]
    if not is_legal(c, actions, 0):
        return np.int64(ILLEGAL), 0.0, 0.0, np.int64(0)
    point, iterations = play_action(a, io, c, actions, 0)
    _, dt_s, reward = outcome(a, point)
    return point, dt_s, reward, iterations


def controlled_stepper(
    simulator: Any, scale: Float32Array, size: int, control: IntArray
) -> FusedStep | None:
    """`step(action)` of one engine, int64 and contiguous, or `None` without an arena.

    Its outcome has the number of iterations at its end. An illegal action changes nothing and
    gives the point `ILLEGAL`.
    """
    arena = usable_arena(simulator)
    if arena is None:
        return None
    io = joined(scale, size)
    step = partial(direct(_step_controlled), arena, io, control)
    return FusedStep(step, io, io[len(scale) :])
