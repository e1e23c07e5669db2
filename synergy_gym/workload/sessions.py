"""Conversations: turns with think time whose prompts repeat what came before.

Sessions begin by an arrival process at rate / (mean turns). Those that began before time 0
are drawn as well (as a Poisson process at the mean rate), so the request rate is the wished
one from the first second on; a turn before time 0 is left out, and what it said counts as
new content of the session's first visible turn.

Starts, turn counts, lengths and think times come from streams of their own and in session
order: the same seed at another load holds the same conversations, closer together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from synergy_gym.seeding import stream
from synergy_gym.types import NS_PER_S, BoolArray, FloatArray, IntArray
from synergy_gym.workload.arrivals import draw_arrivals
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import session_content
from synergy_gym.workload.lengths import Counts, Pairs, counts_of, pairs_of
from synergy_gym.workload.spec import ArrivalSpec, LengthSpec, SessionSpec

_GRID = 4096
_KEY_BITS = 62

Draw = Callable[[int, int], Any]
"""Of a population's number and of n: the first n draws of one of its streams."""


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """Turns of many sessions, session after session, in turn order.

    Attributes:
        session: index of the session.
        turn: index of the turn within its session.
        offset_ns: planned arrival since the session began.
        gap_ns: planned time since the turn before (0 for the first).
        prompt_tokens: whole prompt.
        output_tokens: output.
        reused_tokens: leading tokens equal to those of the turn before (0 for the first).
    """

    session: IntArray
    turn: IntArray
    offset_ns: IntArray
    gap_ns: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    reused_tokens: IntArray

    def select(self, rows: IntArray) -> Turns:
        """The turns with these row numbers, in this order."""
        return Turns(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(frozen=True)
class Talk:
    """How sessions look: their structure and the lengths of their turns.

    What follows from these alone is worked out when it is first asked for, and kept.
    """

    sessions: SessionSpec
    prompt: LengthSpec
    output: LengthSpec
    correlation: float = 0.0

    @cached_property
    def turns_at(self) -> Counts:
        """Turns of a session at a normal score."""
        return counts_of(self.sessions.turns)

    @cached_property
    def lengths_at(self) -> Pairs:
        """What `prompt` and `output` give for a turn at a pair of normal scores."""
        return pairs_of(self.prompt, self.output, self.correlation)

    @cached_property
    def turns_per_session(self) -> float:
        """`mean_turns`."""
        return mean_turns(self)

    @cached_property
    def turn_grid(self) -> IntArray:
        """Turns of `_GRID` sessions that stand for all."""
        from scipy.special import ndtri

        return self.turns_at(ndtri((np.arange(_GRID) + 0.5) / _GRID))

    @cached_property
    def lead_s(self) -> float:
        """How long before time 0 a session can begin and still have turns in the episode."""
        return float(self.turn_grid.max()) * self.sessions.think_s


def session_workload(
    talk: Talk, arrivals: ArrivalSpec, rate_rps: float, horizon_s: float, seed: int
) -> tuple[Workload, FloatArray]:
    """Requests of sessions, with shared content, at a mean of `rate_rps` on [0, horizon).

    In the open loop every turn has its planned arrival. In the closed loop a turn whose
    previous turn lies in the episode has `after` and the think time instead.

    Returns:
        The workload, and per request its session's lot: a number in [0, 1) that whoever
        sorts sessions into classes can use.
    """
    starts_rps = rate_rps / talk.turns_per_session
    new = draw_arrivals(
        arrivals.kind, stream(seed, "arrivals", 0), starts_rps, horizon_s, **arrivals.options
    )
    old = -draw_arrivals("poisson", stream(seed, "arrivals", 1), starts_rps, talk.lead_s)
    times = _draw_times(talk, {0: len(new), 1: len(old)}, seed)
    planned = times.planned_ns(np.concatenate([new, old]))
    inside = (planned >= 0) & (planned < round(horizon_s * NS_PER_S))
    seen = times.sessions_of(inside)  # most sessions that began long before time 0 have ended
    turns = _draw_turns(talk, times, seen, seed)
    rows = times.rows_of(seen)
    arriving = np.flatnonzero(inside[rows] & _fits(talk.sessions, turns))
    turns, planned = turns.select(arriving), planned[rows[arriving]]
    system, lot = _chosen(talk.sessions, times, turns.session, seed)
    return _assemble(talk.sessions, turns, planned, system, lot)


def draw_turns(talk: Talk, sessions: int, seed: int, member: int = 0) -> Turns:
    """The turns of the first `sessions` sessions of population `member`."""
    times = _draw_times(talk, {member: sessions}, seed)
    turns = _draw_turns(talk, times, np.arange(sessions), seed)
    return turns.select(np.flatnonzero(_fits(talk.sessions, turns)))


def mean_turns(talk: Talk) -> float:
    """Mean turns per session, those that a context limit cuts off not counted."""
    spec = talk.sessions
    if spec.growth == "append" and spec.context_limit_tokens:
        played = len(draw_turns(talk, 4 * _GRID, seed=0).turn) / (4 * _GRID)
        if played == 0:
            raise ValueError(
                f"context_limit_tokens = {spec.context_limit_tokens} is below every first turn; "
                "raise it or shorten the prompts"
            )
        return played
    return float(talk.turn_grid.mean())


@dataclass(frozen=True, slots=True, eq=False)
class _Times:
    """When the turns of sessions follow each other, session after session.

    Attributes:
        members: the populations, one after the other.
        first_session: per population its first session, and the number of all.
        first_turn: per population its first turn, and the number of all.
        counts: turns of each session.
        ends: per session, how many turns there are up to its last.
        gap_ns: per turn, planned time since the turn before (0 for the first).
    """

    members: tuple[int, ...]
    first_session: IntArray
    first_turn: IntArray
    counts: IntArray
    ends: IntArray
    gap_ns: IntArray

    def planned_ns(self, start_ns: IntArray) -> IntArray:
        """When every turn is due, if its session begins at `start_ns`."""
        sums = np.cumsum(self.gap_ns)
        before = np.concatenate([[0], sums])[self.ends - self.counts]
        planned: IntArray = sums + np.repeat(start_ns - before, self.counts)
        return planned

    def sessions_of(self, turns: BoolArray) -> IntArray:
        """The sessions of which at least one of the marked turns is."""
        is_one = np.zeros(len(self.counts), np.bool_)
        is_one[np.repeat(np.arange(len(self.counts)), self.counts)[turns]] = True
        return np.flatnonzero(is_one)

    def rows_of(self, sessions: IntArray) -> IntArray:
        """The row numbers of all turns of these sessions."""
        counts = self.counts[sessions]
        shift = self.ends[sessions] - np.cumsum(counts)
        rows: IntArray = np.arange(int(counts.sum())) + np.repeat(shift, counts)
        return rows

    def at_sessions(self, sessions: IntArray, draw: Draw) -> Any:
        """What the streams of the populations have for these sessions, which ascend."""
        return self._drawn(sessions, self.first_session, draw)

    def at_turns(self, rows: IntArray, draw: Draw) -> Any:
        """What the streams of the populations have for these turns, which ascend."""
        return self._drawn(rows, self.first_turn, draw)

    def _drawn(self, numbers: IntArray, firsts: IntArray, draw: Draw) -> Any:
        cuts = np.searchsorted(numbers, firsts).tolist()
        parts = []
        for i, member in enumerate(self.members):
            own = numbers[cuts[i] : cuts[i + 1]] - firsts[i]
            parts.append(draw(member, int(own[-1]) + 1 if len(own) else 0)[own])
        return np.concatenate(parts)


def _draw_times(talk: Talk, sessions: Mapping[int, int], seed: int) -> _Times:
    """The times of so many sessions per population."""
    scores = [stream(seed, "lengths", 4 * m).standard_normal(n) for m, n in sessions.items()]
    counts = talk.turns_at(np.concatenate(scores))
    ends = np.cumsum(counts)
    first_session = np.cumsum([0, *sessions.values()])
    first_turn = np.concatenate([[0], ends])[first_session]
    turns = zip(sessions, np.diff(first_turn).tolist(), strict=True)
    gaps = [stream(seed, "arrivals", 2 + m).standard_normal(n) for m, n in turns]
    gap_ns = _think_ns(talk.sessions, np.concatenate(gaps))
    gap_ns[(ends - counts)[counts > 0]] = 0
    return _Times(tuple(sessions), first_session, first_turn, counts, ends, gap_ns)


def _draw_turns(talk: Talk, times: _Times, sessions: IntArray, seed: int) -> Turns:
    """All turns of some sessions, which ascend.

    What is said does not decide when it is said: lengths are drawn up to the last of these
    sessions, and worked out for these alone.
    """
    spec, counts = talk.sessions, times.counts[sessions]
    rows, session = times.rows_of(sessions), np.repeat(sessions, counts)
    scores = times.at_turns(
        rows, lambda m, n: stream(seed, "lengths", 4 * m + 1).standard_normal((n, 2))
    )
    if spec.growth == "window":
        common = times.at_sessions(
            session, lambda m, n: stream(seed, "lengths", 4 * m + 2).standard_normal(n)
        )
        rho = spec.prompt_correlation
        scores[:, 0] = np.sqrt(rho) * common + np.sqrt(1 - rho) * scores[:, 0]
    prompt, output = talk.lengths_at(scores)
    prompt = _grow(spec, session, counts, prompt, output)
    turn = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    gap_ns = times.gap_ns[rows]
    return Turns(
        session=session,
        turn=turn,
        offset_ns=_running_sum(gap_ns, counts),
        gap_ns=gap_ns,
        prompt_tokens=prompt,
        output_tokens=output,
        reused_tokens=_reused(spec, turn, prompt, output),
    )


def _grow(
    spec: SessionSpec, session: IntArray, counts: IntArray, prompt: IntArray, output: IntArray
) -> IntArray:
    """Whole prompts from draws: sorted ("window") or summed up ("append")."""
    if spec.growth == "window":
        return _sorted_within(session, prompt)
    if spec.growth != "append":
        raise ValueError(f'session growth is {spec.growth!r}; choose "append" or "window"')
    said = _running_sum(prompt + output, counts)
    opening = spec.history_tokens + (spec.system_tokens if spec.system_prompts else 0)
    grown: IntArray = opening + said - output
    return grown


def _reused(spec: SessionSpec, turn: IntArray, prompt: IntArray, output: IntArray) -> IntArray:
    before = np.zeros(len(turn), np.int64)
    before[1:] = (prompt + output)[:-1]
    if spec.reused_tokens is not None:
        before = np.minimum(before, spec.reused_tokens)
    reused: IntArray = np.where(turn > 0, np.minimum(before, prompt), 0)
    return reused


def _fits(spec: SessionSpec, turns: Turns) -> BoolArray:
    """Which turns are within the context limit."""
    if not spec.context_limit_tokens:
        return np.ones(len(turns.turn), np.bool_)
    fits: BoolArray = turns.prompt_tokens + turns.output_tokens <= spec.context_limit_tokens
    return fits


def _running_sum(values: IntArray, counts: IntArray) -> IntArray:
    """Inclusive sums of `values` that start anew after each of `counts` values."""
    sums = np.cumsum(values)
    before = np.concatenate([[0], sums])[np.cumsum(counts) - counts]
    result: IntArray = sums - np.repeat(before, counts)
    return result


def _sorted_within(session: IntArray, values: IntArray) -> IntArray:
    """`values` sorted within each session; sessions ascend."""
    bits = int(values.max(initial=0)).bit_length()
    size = int(session.max(initial=0)).bit_length() + bits
    if size > _KEY_BITS or values.min(initial=0) < 0:
        ordered: IntArray = values[np.lexsort((values, session))]
        return ordered
    # Numbers that hold both are sorted several times faster than by two keys; as sessions ascend
    # they are nearly in order, which the stable sort makes use of.
    ordered = np.sort(session << bits | values, kind="stable") & ((1 << bits) - 1)
    return ordered


def _time_order(times_ns: IntArray) -> IntArray:
    """Row numbers in order of time (>= 0), ties in order of rows."""
    bits = len(times_ns).bit_length()
    if int(times_ns.max(initial=0)).bit_length() + bits > _KEY_BITS:
        order: IntArray = np.argsort(times_ns, kind="stable")
        return order
    packed = np.sort(times_ns << bits | np.arange(len(times_ns)))
    order = packed & ((1 << bits) - 1)
    return order


def _think_ns(spec: SessionSpec, scores: FloatArray) -> IntArray:
    """Lognormal times with mean `think_s` and coefficient of variation `think_cv`."""
    variance = float(np.log1p(spec.think_cv**2))
    times: FloatArray = np.sqrt(variance) * scores  # worked on in place: most time went to memory
    times -= variance / 2
    np.exp(times, out=times)
    times *= spec.think_s
    times *= NS_PER_S
    return np.rint(times, out=times).astype(np.int64)


def _assemble(
    spec: SessionSpec, turns: Turns, planned: IntArray, system: IntArray, lot: FloatArray
) -> tuple[Workload, FloatArray]:
    """One workload in order of planned arrival; sessions are numbered by first appearance."""
    order = _time_order(planned)
    session, previous = _by_appearance(np.diff(turns.session, prepend=-1) != 0, order)
    turns, planned = turns.select(order), planned[order]
    opening = np.minimum(spec.system_tokens, turns.prompt_tokens)
    shared = np.where(previous >= 0, turns.reused_tokens, opening)
    content = session_content(previous, shared, system=system[order])
    waits = previous >= 0 if spec.closed_loop else np.zeros(len(previous), np.bool_)
    workload = make_workload(
        np.where(waits, turns.gap_ns, planned),
        turns.prompt_tokens,
        turns.output_tokens,
        session=session,
        after=np.where(waits, previous, -1),
        content=content,
    )
    return workload, lot[order]


def _chosen(
    spec: SessionSpec, times: _Times, session: IntArray, seed: int
) -> tuple[IntArray, FloatArray]:
    """System prompt (-1: none) and lot of every turn; both depend on its session alone."""
    lots = times.at_sessions(session, lambda m, n: stream(seed, "content", 2 * m).random(n))
    if not spec.system_prompts:
        return np.full(len(session), -1, np.int64), lots
    prompts = times.at_sessions(
        session,
        lambda m, n: stream(seed, "content", 2 * m + 1).integers(spec.system_prompts, size=n),
    )
    return prompts, lots


def _by_appearance(is_first: BoolArray, order: IntArray) -> tuple[IntArray, IntArray]:
    """Per row in `order`: number of its session by first appearance, and its turn before or -1.

    Rows lie session after session, in turn order, before they are put into `order`, which keeps
    the turns of a session in their order; `is_first` says which begin a session.
    """
    at = np.empty(len(order), np.int64)
    at[order] = np.arange(len(order))
    before = np.empty(len(order), np.int64)
    before[1:] = at[:-1]
    before[is_first] = -1
    previous = before[order]
    own = (np.cumsum(is_first) - 1)[order]
    opens = previous < 0
    number = np.empty(int(np.count_nonzero(is_first)), np.int64)
    number[own[opens]] = np.arange(len(number))
    return number[own], previous
