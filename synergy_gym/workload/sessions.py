"""Conversations: turns with think time whose prompts repeat what came before.

Sessions begin by an arrival process at rate / (mean turns). Those that began before time 0
are drawn as well (as a Poisson process at the mean rate), so the request rate is the wished
one from the first second on; a turn before time 0 is left out, and what it said counts as
new content of the session's first visible turn.

Starts, turn counts, lengths and think times come from streams of their own and in session
order: the same seed at another load holds the same conversations, closer together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.seeding import stream
from synergy_gym.types import NS_PER_S, FloatArray, IntArray
from synergy_gym.workload.arrivals import draw_arrivals
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import session_content
from synergy_gym.workload.lengths import draw_lengths, draw_pairs_at, lengths_at
from synergy_gym.workload.spec import ArrivalSpec, LengthSpec, SessionSpec

_GRID = 4096


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


@dataclass(frozen=True, slots=True)
class Talk:
    """How sessions look: their structure and the lengths of their turns."""

    sessions: SessionSpec
    prompt: LengthSpec
    output: LengthSpec
    correlation: float = 0.0


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
    starts_rps = rate_rps / mean_turns(talk)
    new = draw_arrivals(
        arrivals.kind, stream(seed, "arrivals", 0), starts_rps, horizon_s, **arrivals.options
    )
    old = -draw_arrivals("poisson", stream(seed, "arrivals", 1), starts_rps, _lead_s(talk.sessions))
    turns = [draw_turns(talk, len(s), seed, member) for member, s in enumerate((new, old))]
    parts = [_visible(t, s, horizon_s) for t, s in zip(turns, (new, old), strict=True)]
    return _assemble(talk.sessions, parts, seed)


def draw_turns(talk: Talk, sessions: int, seed: int, member: int = 0) -> Turns:
    """The turns of the first `sessions` sessions of population `member`."""
    spec = talk.sessions
    counts = draw_lengths(spec.turns, stream(seed, "lengths", 4 * member), sessions)
    session = np.repeat(np.arange(sessions), counts)
    turn = np.arange(len(session)) - np.repeat(np.cumsum(counts) - counts, counts)
    scores = stream(seed, "lengths", 4 * member + 1).standard_normal((len(session), 2))
    if spec.growth == "window":
        common = stream(seed, "lengths", 4 * member + 2).standard_normal(sessions)[session]
        rho = spec.prompt_correlation
        scores[:, 0] = np.sqrt(rho) * common + np.sqrt(1 - rho) * scores[:, 0]
    prompt, output = draw_pairs_at(talk.prompt, talk.output, talk.correlation, scores)
    prompt = _grow(spec, session, turn, prompt, output)
    gap_ns = _think_ns(spec, stream(seed, "arrivals", 2 + member).standard_normal(len(session)))
    gap_ns[turn == 0] = 0
    rows = Turns(
        session=session,
        turn=turn,
        offset_ns=_running_sum(gap_ns, session),
        gap_ns=gap_ns,
        prompt_tokens=prompt,
        output_tokens=output,
        reused_tokens=_reused(spec, turn, prompt, output),
    )
    limit = spec.context_limit_tokens
    return rows.select(np.flatnonzero(prompt + output <= limit)) if limit else rows


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
    return float(_turn_grid(spec).mean())


def _grow(
    spec: SessionSpec, session: IntArray, turn: IntArray, prompt: IntArray, output: IntArray
) -> IntArray:
    """Whole prompts from draws: sorted ("window") or summed up ("append")."""
    if spec.growth == "window":
        ordered: IntArray = prompt[np.lexsort((prompt, session))]
        return ordered
    if spec.growth != "append":
        raise ValueError(f'session growth is {spec.growth!r}; choose "append" or "window"')
    said = _running_sum(prompt + output, session)
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


def _running_sum(values: IntArray, session: IntArray) -> IntArray:
    """Inclusive sums of `values` that start anew with every session."""
    sums = np.cumsum(values)
    first = np.flatnonzero(np.diff(session, prepend=-1))
    base = np.repeat(sums[first] - values[first], np.diff(first, append=len(values)))
    result: IntArray = sums - base
    return result


def _think_ns(spec: SessionSpec, scores: FloatArray) -> IntArray:
    """Lognormal times with mean `think_s` and coefficient of variation `think_cv`."""
    variance = float(np.log1p(spec.think_cv**2))
    seconds: FloatArray = spec.think_s * np.exp(np.sqrt(variance) * scores - variance / 2)
    return np.rint(seconds * NS_PER_S).astype(np.int64)


def _turn_grid(spec: SessionSpec) -> IntArray:
    from scipy.special import ndtri

    return lengths_at(spec.turns, ndtri((np.arange(_GRID) + 0.5) / _GRID))


def _lead_s(spec: SessionSpec) -> float:
    """How long before time 0 a session can begin and still have turns in the episode."""
    return float(_turn_grid(spec).max()) * spec.think_s


def _visible(turns: Turns, start_ns: IntArray, horizon_s: float) -> tuple[Turns, IntArray]:
    """The turns that arrive in [0, horizon), and when."""
    planned = start_ns[turns.session] + turns.offset_ns
    rows = np.flatnonzero((planned >= 0) & (planned < round(horizon_s * NS_PER_S)))
    return turns.select(rows), planned[rows]


def _assemble(
    spec: SessionSpec, parts: list[tuple[Turns, IntArray]], seed: int
) -> tuple[Workload, FloatArray]:
    """One workload in order of planned arrival; sessions are numbered by first appearance."""
    columns = {
        name: np.concatenate([getattr(turns, name) for turns, _ in parts])
        for name in Turns.__slots__
    }
    planned = np.concatenate([times for _, times in parts])
    member = np.repeat(np.arange(len(parts)), [len(times) for _, times in parts])
    system, lot = (
        np.concatenate(c)
        for c in zip(*(_chosen(spec, t, seed, i) for i, (t, _) in enumerate(parts)), strict=True)
    )
    order = np.lexsort((columns["turn"], columns["session"], member, planned))
    turns = Turns(**columns).select(order)
    session = _by_appearance(turns.session * len(parts) + member[order])
    previous = _previous(session)
    opening = np.minimum(spec.system_tokens, turns.prompt_tokens)
    shared = np.where(previous >= 0, turns.reused_tokens, opening)
    content = session_content(previous, shared, system=system[order])
    waits = previous >= 0 if spec.closed_loop else np.zeros(len(previous), np.bool_)
    workload = make_workload(
        np.where(waits, turns.gap_ns, planned[order]),
        turns.prompt_tokens,
        turns.output_tokens,
        session=session,
        after=np.where(waits, previous, -1),
        content=content,
    )
    return workload, lot[order]


def _chosen(spec: SessionSpec, turns: Turns, seed: int, member: int) -> tuple[IntArray, FloatArray]:
    """System prompt (-1: none) and lot of every turn; both depend on its session alone."""
    sessions = int(turns.session.max(initial=-1)) + 1
    lots = stream(seed, "content", 2 * member).random(sessions)
    if not spec.system_prompts:
        return np.full(len(turns.session), -1, np.int64), lots[turns.session]
    rng = stream(seed, "content", 2 * member + 1)
    prompts = rng.integers(spec.system_prompts, size=sessions)
    return prompts[turns.session], lots[turns.session]


def _by_appearance(keys: IntArray) -> IntArray:
    """Numbers 0, 1, ... for equal keys, in order of their first row."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _previous(session: IntArray) -> IntArray:
    """Per row, the nearest earlier row of the same session, or -1."""
    order = np.argsort(session, kind="stable")
    previous = np.full(len(session), -1, np.int64)
    same = session[order][1:] == session[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    return previous
