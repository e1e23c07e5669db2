"""Policies under observation: what they saw and decided, how long it took, what they wrote to.

Every view is copied before a policy gets it, so its tape can be played to another copy elsewhere
(`answers`).
"""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from types import FrameType
from typing import Any, Self

import numpy as np

from synergy_gym.evaluation.conduct.two_futures import plain
from synergy_gym.policies.base import EnginePolicy, Layer, RouterPolicy
from synergy_gym.seats import EngineSeat, Observer, RouterSeat
from synergy_gym.seats.views import cluster_view, engine_view
from synergy_gym.types import (
    BatchDecision,
    ClusterView,
    EngineAdvert,
    EngineView,
    RequestArrays,
    RequestView,
)

EARLY = 20
"""Decisions after which one that is far too slow is stopped."""


class ConductError(RuntimeError):
    """A watched policy broke a rule so that the episode need not go on."""


@dataclass
class Tape:
    """What one watched policy saw and decided in one episode; it can be pickled.

    Attributes:
        begin: arguments of `reset`, before the policy had them.
        events: ("observe", report or completion) and ("decide", view) in order; views as the
            columns that `engine_view` and `cluster_view` make them from.
        answers: its decisions, as plain data.
        wall_s: wall-clock time of each, seconds.
        written: what it wrote to, empty if nothing.
        drew: whether it drew from its generator.
    """

    begin: tuple[Any, ...] = ()
    events: list[tuple[str, Any]] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    written: str = ""
    drew: bool = False

    def note(self, name: str) -> None:
        """The policy wrote to `name`; the first time is kept."""
        self.written = self.written or f"{name} at its decision {len(self.answers)}"


@dataclass
class Watch:
    """What the watched copies of one policy have in common.

    Attributes:
        tapes: one per copy that was reset.
        swap: gives a copy's generator for the one that the episode has for it; `None` leaves it.
        slow_s: wall-clock time per decision above which an episode is stopped early.
        hang_s: longest wait for one decision.
    """

    tapes: list[Tape] = field(default_factory=list)
    swap: Callable[[np.random.Generator], np.random.Generator] | None = None
    slow_s: float = float("inf")
    hang_s: float = float("inf")

    def new_tape(self, rng: np.random.Generator, *given: Any) -> tuple[Tape, np.random.Generator]:
        """A tape that begins now, and the generator that the policy gets."""
        own = rng if self.swap is None else self.swap(rng)
        tape = Tape(copy.deepcopy((own, *given)))
        self.tapes.append(tape)
        return tape, own

    @contextmanager
    def timed(self, tape: Tape) -> Iterator[None]:
        """Time a decision.

        Raises:
            ConductError: it takes longer than `hang_s`, or the first ones are too slow.
        """
        began = time.perf_counter()
        with _alarm(self.hang_s):
            yield
        tape.wall_s.append(time.perf_counter() - began)
        if len(tape.wall_s) == EARLY and (middle := float(np.median(tape.wall_s))) > self.slow_s:
            raise ConductError(
                f"half of its first {EARLY} decisions took longer than {middle * 1e3:.0f} ms "
                f"(limit {self.slow_s * 1e3:.0f} ms)"
            )


@contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """End a decision that does not return; only the main thread of a POSIX system can."""
    able = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not able or limit_s == float("inf"):
        yield
        return
    before = signal.signal(signal.SIGALRM, _raise_hang)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise_hang(number: int, frame: FrameType | None) -> None:
    raise ConductError("a decision did not return within the limit")


def _same(one: Any, other: Any) -> bool:
    """Equality by content of arrays and of what else views hold."""
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, RequestArrays):
        return all(_same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)


Seat = EngineSeat | RouterSeat


class Watcher(Observer):
    """Watches every seat of an episode; Python decides, also where a policy has a rule.

    Args:
        layer: whose policy is watched.
        watch: where tapes go.
    """

    def __init__(self, layer: Layer, watch: Watch) -> None:
        self.watch = watch
        self._watched = EngineSeat if layer == "engine" else RouterSeat
        self.asks_engines = layer == "engine"
        self.asks_router = layer == "router"
        self._tapes: dict[int, tuple[Tape, np.random.Generator]] = {}

    def reset(
        self, seat: Seat, rng: np.random.Generator, given: tuple[Any, ...]
    ) -> np.random.Generator:
        """Begin a tape."""
        if not isinstance(seat, self._watched):
            return rng
        tape, own = self.watch.new_tape(rng, *given)
        self._tapes[id(seat)] = (tape, own)
        return own

    def observed(self, seat: Seat, seen: Any) -> None:
        """Tape a step report or a completion."""
        if isinstance(seat, self._watched):
            self._tapes[id(seat)][0].events.append(("observe", seen))

    @contextmanager
    def deciding(self, seat: Seat, *views: Any) -> Iterator[None]:
        """Tape the views before the policy has them, time it, and see what it wrote to."""
        if not isinstance(seat, self._watched):
            yield
            return
        tape, rng = self._tapes[id(seat)]
        is_engine = isinstance(seat, EngineSeat)
        parts: Callable[..., Parts] = _engine_parts if is_engine else _router_parts
        content, kept, names = parts(True, *views)
        tape.events.append(("decide", content))
        before = _state(rng)
        with self.watch.timed(tape):
            yield
        tape.drew = tape.drew or _state(rng) != before
        for name, was, now in zip(names, kept, parts(False, *views)[1], strict=True):
            if not _same(was, now):
                tape.note(name)

    def decided(self, seat: Seat, answer: Any, *views: Any) -> None:
        """Tape the answer."""
        if isinstance(seat, self._watched):
            self._tapes[id(seat)][0].answers.append(plain(answer))


Parts = tuple[tuple[Any, ...], tuple[Any, ...], tuple[str, ...]]
"""What `engine_view` or `cluster_view` takes, what a policy could write to, and its names."""


def _engine_parts(copies: bool, engine: EngineView) -> Parts:
    given = engine.state, engine.running, engine.waiting
    kept = (given[0].copy(), *copy.deepcopy(given[1:])) if copies else given
    told = (replace(engine.spec), tuple(replace(slo) for slo in engine.slos))
    told = told if copies else (engine.spec, engine.slos)
    names = tuple(f"EngineView.{name}" for name in ("state", "running", "waiting", "spec", "slos"))
    return (*kept, engine.last_step, *told), (*kept, *told), names


def _router_parts(copies: bool, request: RequestView, cluster: ClusterView) -> Parts:
    rows, hashes, engines = cluster._rows, request.block_hashes, cluster.engines
    if copies:
        rows, hashes = rows.copy(), hashes.copy()
        engines = tuple(replace(spec) for spec in engines)
    session = (cluster.session_engine, cluster.session_age_s)
    content = (engines, replace(request, block_hashes=hashes), cluster.now_ns, rows, session)
    names = ("ClusterView's table", "RequestView.block_hashes", "ClusterView.engines")
    return content, (rows, hashes, engines), names


def _state(rng: np.random.Generator) -> Any:
    return rng.bit_generator.state


class _Recorded:
    """Gives taped decisions, in order.

    Args:
        tapes: each copy that is reset takes the next one; a router has only one.
    """

    def __init__(self, tapes: Iterator[Tape]) -> None:
        self._tapes = tapes
        self._left: Iterator[Any] = iter(())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another one that takes from the same tapes."""
        return type(self)(self._tapes)

    def reset(self, *given: Any) -> None:
        """Take the next tape."""
        self._left = iter(next(self._tapes).answers)


class RecordedEngine(_Recorded, EnginePolicy):
    """Gives taped batch decisions."""

    def decide(self, engine: EngineView) -> BatchDecision:
        """The next decision."""
        budget, cap, chunk, running, waiting, caps, advert = next(self._left)
        running, waiting, caps = (
            None if part is None else np.array(part, np.int64) for part in (running, waiting, caps)
        )
        told = (
            None
            if advert is None
            else EngineAdvert(advert[0], advert[1], advert[2], tuple(advert[3]))
        )
        return BatchDecision(budget, cap, chunk, running, waiting, caps, told)


class RecordedRouter(_Recorded, RouterPolicy):
    """Gives taped choices of engines."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The next choice."""
        return int(next(self._left))


def answers(policy: Any, tape: Tape) -> list[Any]:
    """What a policy decides when a tape is played to it: from views alone, without a world."""
    seat = EngineSeat(policy) if isinstance(policy, EnginePolicy) else RouterSeat(policy)
    rng, *given = copy.deepcopy(tape.begin)
    seat.reset(rng, *given)
    found = []
    for kind, content in tape.events:
        if kind == "observe":
            seat.observe(content)
        elif isinstance(seat, EngineSeat):
            found.append(plain(seat.decision(engine_view(*content))))
        else:
            found.append(plain(seat.choice(*cluster_view(rng, seat.information, *content))))
    return found
