"""An upper bound on SLO attainment that no scheduler can exceed, however clever.

Oracle figures: true output lengths, the traffic to come and the clock are known. Simulated, and
proven by relaxation, not played; what can be played stands in `evaluation/clairvoyant.py`.

Every engine is a machine that works at most one second per second. A request that meets its SLO
needs its least prefill work (`evaluation/minimal_work.py`) on one engine between arrival and its
first token's due time, its least decode work until it is due to finish, and as many steps, each
with its fixed cost, as it has output tokens. Let requests be split and preempted at will, and let
x_i be the probability that request i is on time. The most requests are then given by a linear
program: maximise sum x_i so that work and steps fit into time. With equal arrivals, one deadline
each and no steps, its integer form is Moore's problem 1 || sum U_j (Moore, Management Science 15,
1968), which keeps the cheapest jobs.

Its dual puts a price p(t) >= 0 on a second of each kind of engine, and a value s_i >= 0 on each
step of a request. A step at time t costs at least (fixed cost) * p(t); whoever has a token in it
contributes s_i, so values are admissible when they add up to no more than that cost at any time.
For ANY admissible prices and values, by weak duality,

    requests on time <= sum_engines integral p(t) dt
        + sum_i max(0, 1 - min_kind (prefill_i min p over its window
                                     + decode_i min p over its window + steps_i s_i)).

So the solver only proposes prices and values; `priced_bound` makes them admissible, evaluates the
formula, and holds whatever the solver did. It is a bound on the expectation over step noise, which
no policy foresees: a single episode may exceed it by luck, a mean over many may not.

Alternatively (`stepwise=False`) a request carries its share of the fixed cost of full steps. That
is better for many equal engines, where the program spreads requests so thinly that steps cost
little; both hold, so the smaller one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synergy_gym.evaluation.minimal_work import Deadlines, EngineWork, deadlines, engine_work
from synergy_gym.scenario import Scenario
from synergy_gym.types import NS_PER_S, BoolArray, FloatArray, IntArray
from synergy_gym.workload.base import Workload

STEP_S = 2.0
"""Prices are constant over so many seconds, unless the caller says otherwise."""
ROUNDING_S = 1e-6
"""Added to deadlines, which are sums of floats; also covers steps' whole nanoseconds."""
SOLVER_S = 20.0
MAX_TAIL_S = 600.0
"""Time later than this after the last arrival is free."""
ENDLESS = 1e4
"""Weight of a price in the program that has to be 0."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What no policy exceeds on average.

    Attributes:
        attainment: most requests on time, as a share of the offered ones that are scored.
        offered: scored requests.
        impossible: requests that miss their SLO even alone on the best engine.
    """

    attainment: float
    offered: int
    impossible: int


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """Price steps `first..last` (inclusive) in which a part of each request may be done."""

    first: IntArray
    last: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class _Relaxation:
    """The linear program: work of the requests that count, and where it may be done."""

    work: Sequence[EngineWork]
    prefill_s: Sequence[FloatArray]
    decode_s: Sequence[FloatArray]
    prefill: Sequence[_Windows]
    decode: Sequence[_Windows]
    steps: int
    step_s: float
    stepwise: bool
    endless: bool
    """Some request may be late at will: the last price step stands for all time to come."""


@dataclass(frozen=True, slots=True, eq=False)
class _Dual:
    """Prices of a second, `(kinds, steps)`, and values of a step, `(kinds, requests)`."""

    prices: FloatArray
    values: FloatArray


def attainment_bound(
    scenario: Scenario,
    load: float = 1.0,
    seed: int = 0,
    *,
    workload: Workload | None = None,
    step_s: float = STEP_S,
    stepwise: bool | None = None,
) -> Bound:
    """The bound on `slo_attainment` of one episode, over the requests that are scored.

    Args:
        scenario: engines, objectives and scored window.
        load: as in `evaluate`; ignored when `workload` is given.
        seed: of the traffic.
        workload: own traffic, scored over the scenario's window.
        step_s: resolution of the prices, seconds; finer is tighter and slower.
        stepwise: how fixed costs are charged; by default per step where there is one engine.

    Raises:
        ValueError: as `engine_work`, or nothing is scored.
    """
    traffic = scenario.workload(load, seed) if workload is None else workload
    arrival_s = traffic.arrival_ns / NS_PER_S
    counts = (arrival_s >= scenario.warmup_s) & (arrival_s < scenario.horizon_s)
    if not counts.any():
        raise ValueError(f"{scenario.name}: no request arrives in the scored window")
    work = engine_work(scenario, traffic)
    useful = np.any([kind.possible for kind in work], axis=0)
    chosen = counts & useful
    each = len(scenario.engines) == 1 if stepwise is None else stepwise
    due = deadlines(traffic, scenario.slos)
    relaxation = _relax(work, due, chosen, scenario.warmup_s, step_s, each)
    best = min(priced_bound(relaxation, dual) for dual in _proposals(relaxation))
    offered = int(counts.sum())
    return Bound(min(best, int(chosen.sum())) / offered, offered, int((counts & ~useful).sum()))


def _relax(
    work: Sequence[EngineWork],
    due: Deadlines,
    chosen: BoolArray,
    begin_s: float,
    step_s: float,
    stepwise: bool,
) -> _Relaxation:
    kept = [kind.select(chosen) for kind in work]
    arrival = due.arrival_s[chosen] - begin_s
    slack = max(kind.slack_s for kind in work)
    longest = float((due.finish_s[chosen] - begin_s).max(initial=0)) + slack
    latest = float(arrival.max(initial=0)) + MAX_TAIL_S
    horizon = min(longest, latest)
    steps = int(np.ceil(horizon / step_s)) + 1

    def windows(until_s: FloatArray, slack_s: float) -> _Windows:
        first = np.minimum(arrival // step_s, steps - 1).astype(np.int64)
        last = np.ceil((until_s - begin_s + slack_s + ROUNDING_S) / step_s) - 1
        return _Windows(first, np.maximum(np.minimum(last, steps - 1).astype(np.int64), first))

    fixed = [0.0 if stepwise else kind.step_s for kind in kept]
    return _Relaxation(
        kept,
        [kind.prefill_s + x * kind.prefill_share for kind, x in zip(kept, fixed, strict=True)],
        [kind.decode_s + x * kind.decode_share for kind, x in zip(kept, fixed, strict=True)],
        [windows(due.first_token_s[chosen], kind.slack_s) for kind in kept],
        [windows(due.finish_s[chosen], kind.slack_s) for kind in kept],
        steps,
        step_s,
        stepwise,
        longest > latest,
    )


def priced_bound(relaxation: _Relaxation, dual: _Dual) -> float:
    """Requests on time at most, by weak duality; prices are raised until values are admissible."""
    prices, values = np.maximum(dual.prices, 0.0), np.maximum(dual.values, 0.0)
    if relaxation.endless:  # the last step has no end, so time and steps are free there
        prices[:, -1] = 0.0
        for index, windows in enumerate(relaxation.decode):
            values[index, windows.last == relaxation.steps - 1] = 0.0
    total = 0.0
    cheapest = np.full(values.shape[1], np.inf)
    for index, kind in enumerate(relaxation.work):
        price = prices[index]
        if relaxation.stepwise:
            price = np.maximum(price, _worth(relaxation, index, values[index]) / kind.step_s)
        total += kind.engines * relaxation.step_s * float(price.sum())
        table = _window_minima(price)
        cost = relaxation.prefill_s[index] * _lowest(table, relaxation.prefill[index])
        cost = cost + relaxation.decode_s[index] * _lowest(table, relaxation.decode[index])
        cost = cost + kind.steps * values[index] * relaxation.stepwise
        cheapest = np.minimum(cheapest, np.where(kind.possible, cost, np.inf))
    return total + float(np.maximum(0.0, 1.0 - cheapest).sum())


def _worth(relaxation: _Relaxation, index: int, values: FloatArray) -> FloatArray:
    """What the requests together give for a step at each time."""
    change = np.zeros(relaxation.steps + 1)
    np.add.at(change, relaxation.decode[index].first, values)
    np.add.at(change, relaxation.decode[index].last + 1, -values)
    return np.maximum(np.cumsum(change)[:-1], 0.0)


def _window_minima(prices: FloatArray) -> list[FloatArray]:
    """Entry k: minima of 2^k prices from each step on (a sparse table)."""
    table = [prices]
    while 2 ** len(table) <= len(prices):
        half = 2 ** (len(table) - 1)
        table.append(np.minimum(table[-1][:-half], table[-1][half:]))
    return table


def _lowest(table: list[FloatArray], windows: _Windows) -> FloatArray:
    size = windows.last - windows.first + 1
    level = np.frexp(size)[1] - 1
    result = np.empty(len(size))
    for k in np.unique(level):
        rows = level == k
        left, right = windows.first[rows], windows.last[rows] - 2**k + 1
        result[rows] = np.minimum(table[k][left], table[k][right])
    return result


def _proposals(relaxation: _Relaxation) -> list[_Dual]:
    """What to try: the linear program's solution, and one price for all times without values."""
    both = zip(relaxation.prefill_s, relaxation.decode_s, strict=True)
    cheapest = np.min([prefill + decode for prefill, decode in both], axis=0)
    levels = 1 / np.quantile(cheapest, np.linspace(0.05, 1, 39)) if len(cheapest) else []
    shape, none = (len(relaxation.work), relaxation.steps), np.zeros((1, len(cheapest)))
    values = np.repeat(none, len(relaxation.work), axis=0)
    proposals = [_Dual(np.full(shape, level), values) for level in (0.0, *levels)]
    solved = _solve(relaxation)
    return proposals if solved is None else [solved, *proposals]


class _Rows:
    """Sparse constraints `row . x <= limit`, collected."""

    def __init__(self) -> None:
        self.row: list[IntArray] = []
        self.column: list[IntArray] = []
        self.value: list[FloatArray] = []
        self.limit: list[FloatArray] = []
        self.count = 0

    def add(self, limits: FloatArray, *terms: tuple[IntArray, FloatArray | float]) -> None:
        """One row per limit; every term is (column per row, coefficient per row)."""
        rows = np.arange(self.count, self.count + len(limits))
        for column, value in terms:
            self.row.append(rows)
            self.column.append(column)
            self.value.append(np.broadcast_to(np.asarray(value, np.float64), rows.shape))
        self.limit.append(limits)
        self.count += len(limits)

    def extend(self, rows: IntArray, column: IntArray, value: float) -> None:
        """Further terms of rows that are there, one per entry."""
        self.row.append(rows)
        self.column.append(column)
        self.value.append(np.full(len(rows), value))


def _solve(relaxation: _Relaxation) -> _Dual | None:
    """Optimal prices and values of the dual program, or None when the solver gives up.

    Minimise sum engines * step * p + sum z, where z_i >= 1 - cost_i on every kind of engine and
    the lowest price of a window is at most each price in it, said by a sparse table of minima.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix

    rows, kinds, steps = _Rows(), len(relaxation.work), relaxation.steps
    requests = len(relaxation.prefill_s[0])
    own = kinds * (steps + requests)
    columns = own + requests
    for index in range(kinds):
        columns = _kind_rows(rows, relaxation, index, columns)
    objective = np.zeros(columns)
    for index, kind in enumerate(relaxation.work):
        objective[index * steps : (index + 1) * steps] = kind.engines * relaxation.step_s
    objective[own : own + requests] = 1.0
    if relaxation.endless:
        objective[np.arange(1, kinds + 1) * steps - 1] = ENDLESS
    where = (np.concatenate(rows.row), np.concatenate(rows.column))
    matrix = csr_matrix((np.concatenate(rows.value), where), shape=(rows.count, columns))
    limits, options = np.concatenate(rows.limit), {"time_limit": SOLVER_S}
    found = linprog(objective, matrix, limits, method="highs", options=options)
    if found.x is None:
        return None
    solution = np.asarray(found.x, np.float64)
    prices = solution[: kinds * steps].reshape(kinds, steps)
    return _Dual(prices, solution[kinds * steps : own].reshape(kinds, requests))


def _kind_rows(rows: _Rows, relaxation: _Relaxation, index: int, columns: int) -> int:
    """The rows of one kind of engine; how many columns there are then.

    Columns: prices of all kinds, values of all kinds, z, then the minima.
    """
    kinds, steps = len(relaxation.work), relaxation.steps
    kind, requests = relaxation.work[index], len(relaxation.prefill_s[0])
    prices = np.arange(index * steps, (index + 1) * steps)
    values = kinds * steps + index * requests + np.arange(requests)
    late = kinds * (steps + requests) + np.arange(requests)
    table, columns = _table_columns(rows, prices, columns)
    prefill, columns = _window_columns(rows, table, relaxation.prefill[index], columns)
    decode, columns = _window_columns(rows, table, relaxation.decode[index], columns)
    can = kind.possible
    rows.add(
        np.full(int(can.sum()), -1.0),
        (late[can], -1.0),
        (prefill[can], -relaxation.prefill_s[index][can]),
        (decode[can], -relaxation.decode_s[index][can]),
        (values[can], -kind.steps[can] if relaxation.stepwise else 0.0),
    )
    return _worth_rows(rows, relaxation, index, (prices, values), columns)


def _worth_rows(
    rows: _Rows,
    relaxation: _Relaxation,
    index: int,
    ours: tuple[IntArray, IntArray],
    columns: int,
) -> int:
    """Values add up to a step's cost at most; how many columns there are then.

    The sum at a time is a column: that of the time before, plus the requests that begin, less
    those that have ended.
    """
    if not relaxation.stepwise:
        return columns
    (prices, values), windows = ours, relaxation.decode[index]
    steps = relaxation.steps
    worth = np.arange(columns, columns + steps)
    zero = np.zeros(steps)
    rows.add(zero, (worth, 1.0), (prices, -relaxation.work[index].step_s))
    begin = rows.count
    rows.add(zero, (worth, -1.0))
    rows.extend(begin + np.arange(1, steps), worth[:-1], 1.0)
    rows.extend(begin + windows.first, values, 1.0)
    inside = windows.last + 1 < steps
    rows.extend(begin + windows.last[inside] + 1, values[inside], -1.0)
    return columns + steps


def _table_columns(rows: _Rows, prices: IntArray, columns: int) -> tuple[list[IntArray], int]:
    """Columns of a sparse table of minima over prices; how many there are then."""
    table = [prices]
    while 2 ** len(table) <= len(prices):
        half = 2 ** (len(table) - 1)
        below = table[-1]
        level = np.arange(columns, columns + len(below) - half)
        columns += len(level)
        zero = np.zeros(len(level))
        rows.add(zero, (level, 1.0), (below[: len(level)], -1.0))
        rows.add(zero, (level, 1.0), (below[half:], -1.0))
        table.append(level)
    return table, columns


def _window_columns(
    rows: _Rows, table: list[IntArray], windows: _Windows, columns: int
) -> tuple[IntArray, int]:
    """The column of every request's lowest price in its window; equal windows share one."""
    pairs = np.stack([windows.first, windows.last], axis=1)
    distinct, back = np.unique(pairs, axis=0, return_inverse=True)
    chosen = np.arange(columns, columns + len(distinct))
    first, last = distinct[:, 0], distinct[:, 1]
    level = np.frexp(last - first + 1)[1] - 1
    for k in np.unique(level):
        here = level == k
        zero = np.zeros(int(here.sum()))
        rows.add(zero, (chosen[here], 1.0), (table[k][first[here]], -1.0))
        rows.add(zero, (chosen[here], 1.0), (table[k][last[here] - 2**k + 1], -1.0))
    return chosen[back.reshape(-1)], columns + len(distinct)
