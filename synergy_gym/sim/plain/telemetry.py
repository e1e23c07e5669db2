"""What routers can know of one engine, and how old it is: the definition, in plain Python.

A push is a state vector after an iteration, at most one per interval; a scrape is a reading of a
metrics endpoint at fixed instants. `docs/telemetry.md` says which rules are SynergySched's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from synergy_gym.latency.clock import _mix
from synergy_gym.types import NS_PER_S, RouterRow, TelemetrySpec

MEAN_STEPS = 10
LOSS_STREAM = 0x2545F4914F6CDD1D
"""Separates the draws of lost pushes from the clock's noise of the same engine."""
PUSH_COLUMNS = (
    *range(RouterRow.PUSH_NS, RouterRow.SCRAPE_NS),
    *range(RouterRow.PUSH_PREDICTED_NS, len(RouterRow)),
)
SCRAPE_COLUMNS = slice(RouterRow.SCRAPE_NS, RouterRow.SCRAPE_FINISHED + 1)


def nanoseconds(seconds: float) -> int:
    """`seconds` as whole nanoseconds."""
    return round(seconds * NS_PER_S)


class Mode(IntEnum):
    """Scheduling mode by mean tokens of the last steps (`docs/telemetry.md`)."""

    LATENCY_OPTIMIZED = 0
    BALANCED = 1
    THROUGHPUT_OPTIMIZED = 2

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Mode:
        """Below 256 tokens on average, above 1024, or between; balanced without a step."""
        if sum(tokens) > 1024 * len(tokens):
            return cls.THROUGHPUT_OPTIMIZED
        return cls.LATENCY_OPTIMIZED if sum(tokens) < 256 * len(tokens) else cls.BALANCED


def guessed_ns(tokens: int, requests: int) -> int:
    """The authors' stand-in for a prediction: (8.7 + 0.02 tokens + 0.5 requests) ms."""
    return 8_700_000 + 20_000 * tokens + 500_000 * requests


def heartbeat(now_ns: int, kv_blocks: int) -> list[int]:
    """What an idle engine sends: no requests, no capacity, nothing about its model."""
    return [now_ns, 0, 0, 0, kv_blocks, 0, 0, 0, 0, Mode.LATENCY_OPTIMIZED, 0]


def first_vector(kv_blocks: int, told: Sequence[int]) -> list[int]:
    """What a router takes an engine for before the first push: idle since time 0."""
    return [*heartbeat(0, kv_blocks), *told[1:]]


def received(vector: Sequence[int], visible: list[int]) -> list[int]:
    """The visible vector after `vector` arrived.

    A heartbeat is shorter, as it says nothing about the engine's model: that stays what was
    sent last.
    """
    return [*vector, *visible[len(vector) :]]


@dataclass(frozen=True, slots=True)
class Ended:
    """An iteration that has ended: durations in nanoseconds, tokens."""

    duration_ns: int
    tokens: int
    predicted_ns: int


@dataclass(frozen=True, slots=True)
class Gauges:
    """Counts of an engine after a commit."""

    running: int
    waiting: int
    used_blocks: int
    total_blocks: int
    pending_tokens: int


class PushSource:
    """What one engine tells routers, and when: vectors in the order of `PUSH_COLUMNS`.

    The simulator's `PushChannel` and a live engine's sender both build on it.

    Args:
        spec: push interval and heartbeats.
        kv_blocks: total that the vectors of an idle engine show.
        told: what the engine says about itself (`adverts.published`) when it starts.
    """

    def __init__(self, spec: TelemetrySpec, kv_blocks: int, told: list[int]) -> None:
        self.kv_blocks = kv_blocks
        self.told = told
        self._heartbeat = spec.heartbeat
        self._interval = nanoseconds(spec.push_interval_s)
        self._beat = nanoseconds(spec.heartbeat_interval_s)
        self._alive = True
        self._idle_since: int | None = 0
        self._beats_until = 0
        self._last: int | None = None
        self._recent: deque[Ended] = deque(maxlen=MEAN_STEPS)

    def after_step(self, now_ns: int, gauges: Gauges, step: Ended) -> list[int] | None:
        """The vector to send when an iteration has ended, `None` within the interval."""
        if step.tokens:
            self._recent.append(step)
        vector = None
        if self._last is None or now_ns - self._last >= self._interval:
            self._last = now_ns
            vector = self._vector(now_ns, gauges)
        if gauges.running + gauges.waiting == 0:
            self.went_idle(now_ns)
        return vector

    def beats(self, now_ns: int) -> list[list[int]]:
        """Heartbeats since the last call; they are shorter, a model is no part of them."""
        origin = 0 if self._heartbeat == "overwrite" else self._idle_since
        if self._heartbeat == "none" or not self._alive or origin is None or self._beat <= 0:
            return []
        begin = max(self._beats_until, origin)
        first = origin + ((begin - origin) // self._beat + 1) * self._beat
        self._beats_until = now_ns
        return [heartbeat(at, self.kv_blocks) for at in range(first, now_ns + 1, self._beat)]

    def work_came(self, now_ns: int) -> None:
        """The engine got work; idle-only heartbeats end."""
        self._idle_since = None

    def went_idle(self, now_ns: int) -> None:
        """The engine has no work from `now_ns` on."""
        self._idle_since = now_ns

    def went_down(self, now_ns: int) -> None:
        """Nothing more is sent."""
        self._alive = False

    def came_up(self, now_ns: int) -> None:
        """A restarted engine is idle and sends again."""
        self._alive = True
        self._beats_until = now_ns
        self._idle_since = now_ns

    def _vector(self, now_ns: int, gauges: Gauges) -> list[int]:
        n = max(len(self._recent), 1)
        tokens = [step.tokens for step in self._recent]
        return [
            now_ns,
            gauges.running,
            gauges.waiting,
            gauges.used_blocks,
            gauges.total_blocks,
            gauges.pending_tokens,
            sum(step.duration_ns for step in self._recent) // n,
            sum(tokens) * 1000 // n,
            sum(step.predicted_ns for step in self._recent) // n,
            Mode.of(tokens),
            *self.told,
        ]


class PushChannel(PushSource):
    """State vectors that one engine sends, with delay and loss, as its router receives them.

    Args:
        spec: intervals, delay, loss and heartbeat mode.
        seed: the engine's clock seed; lost pushes are drawn from it.
        kv_blocks: total that the vectors of an idle engine show.
        told: what the engine says about itself (`adverts.published`) when it starts.
    """

    def __init__(self, spec: TelemetrySpec, seed: int, kv_blocks: int, told: list[int]) -> None:
        super().__init__(spec, kv_blocks, told)
        self._delay = nanoseconds(spec.push_delay_s)
        self._loss = round(spec.push_loss * (1 << 32))
        self._seed = seed
        self._attempts = 0
        self._sent: deque[list[int]] = deque()
        self.routed_tokens = 0
        """Prompt tokens routed here since the visible vector last changed."""
        self.visible = first_vector(kv_blocks, told)

    def committed(self, now_ns: int, gauges: Gauges, step: Ended) -> None:
        """An iteration ended at `now_ns`, leaving `gauges`."""
        self._sent.extend(self.beats(now_ns))
        vector = self.after_step(now_ns, gauges, step)
        if vector is not None and not self._is_lost():
            self._sent.append(vector)

    def work_came(self, now_ns: int) -> None:
        """The engine got work; idle-only heartbeats end."""
        self._sent.extend(self.beats(now_ns))
        super().work_came(now_ns)

    def went_down(self, now_ns: int) -> None:
        """Nothing more is sent; what is on its way still arrives."""
        self._sent.extend(self.beats(now_ns))
        super().went_down(now_ns)

    def sync(self, now_ns: int) -> None:
        """Receive everything that is visible at `now_ns`."""
        self._sent.extend(self.beats(now_ns))
        while self._sent and self._sent[0][0] + self._delay <= now_ns:
            self.visible = received(self._sent.popleft(), self.visible)
            self.routed_tokens = 0

    def _is_lost(self) -> bool:
        draw = _mix((self._seed + self._attempts) ^ LOSS_STREAM) >> 32
        self._attempts += 1
        return draw < self._loss


class ScrapeChannel:
    """Metrics of one engine, read every scrape interval.

    Args:
        spec: the scrape interval.
        kv_blocks: blocks shown as total before the first iteration.
    """

    def __init__(self, spec: TelemetrySpec, kv_blocks: int) -> None:
        self._interval = nanoseconds(spec.scrape_interval_s)
        self._next = self._interval
        self.visible = [0] * (SCRAPE_COLUMNS.stop - SCRAPE_COLUMNS.start)
        self._alive = True
        self._window: list[tuple[int, int, int]] = []
        self._gauges = Gauges(0, 0, 0, kv_blocks, 0)

    def finished(self, ttft_ns: int, tpot_ns: int, e2e_ns: int) -> None:
        """A request finished in the commit that is being handled."""
        self._window.append((ttft_ns, tpot_ns, e2e_ns))

    def committing(self, now_ns: int) -> None:
        """A commit at `now_ns` is about to change the metrics."""
        self.sync(now_ns - 1)

    def committed(self, gauges: Gauges) -> None:
        """The commit is done and left `gauges`."""
        self._gauges = gauges

    def went_down(self, now_ns: int) -> None:
        """The endpoint answers no more: the last values stay."""
        self.sync(now_ns)
        self._alive = False

    def came_up(self, now_ns: int, kv_blocks: int) -> None:
        """The endpoint answers again; scrapes that failed meanwhile are lost."""
        self._alive = True
        self._gauges = Gauges(0, 0, 0, kv_blocks, 0)
        following = -(-now_ns // self._interval) * self._interval if self._interval > 0 else 0
        if following > self._next:
            self._next = following
            self._window = []

    def sync(self, now_ns: int) -> None:
        """Carry out all scrapes up to `now_ns`."""
        while self._alive and self._interval > 0 and self._next <= now_ns:
            self.visible = self._read(self._next)
            self._window = []
            self._next += self._interval

    def _read(self, now_ns: int) -> list[int]:
        n = len(self._window)
        means = [sum(column) // n for column in zip(*self._window, strict=True)] if n else [0] * 3
        gauges = self._gauges
        blocks = [gauges.used_blocks, gauges.total_blocks]
        return [now_ns, gauges.running, gauges.waiting, *blocks, *means, n]
