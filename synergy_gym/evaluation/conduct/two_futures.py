"""The two-futures test: does a policy know something that is still to come?

A policy plays twice. Both worlds are identical up to an instant t; after it other requests
arrive, and whatever has not finished by t has another output length. Everything that the policy
sees and decides up to t must be identical (invariants 7 and 8).

    verdict = two_futures("my_module:MyRouter", "router", range(20))
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from synergy_gym.evaluation.conduct.verdict import Verdict, one_line
from synergy_gym.latency.clock import StepTerms
from synergy_gym.latency.models.published import AUTHORS_DEFAULT, published_advert
from synergy_gym.policies.base import EnginePolicy, Layer, RouterPolicy
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.seats import EngineSeat, Observer, RouterSeat
from synergy_gym.sim.points import BATCH, ROUTE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.simulation import Simulation
from synergy_gym.types import (
    INFORMATION_CLASSES,
    NS_PER_S,
    SLO,
    DecisionRule,
    EngineSpec,
    Event,
    IntArray,
    Outcome,
    RequestRecords,
    TelemetrySpec,
)
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import Content

SLOS = (SLO("chat", ttft_s=0.4, tpot_s=0.05), SLO("batch", e2e_s=5.0))
TELEMETRY = TelemetrySpec(
    push_delay_s=0.03, push_loss=0.2, heartbeat_interval_s=0.3, scrape_interval_s=0.4
)
SESSIONS = 6
ENGINES = 3
"""Engines of a router's world; an engine policy's has one."""
POLICY_SEED = 5
"""Of the generator that the policy gets in both worlds."""

Log = list[tuple[int, Any, Any]]
"""Per decision: the instant in nanoseconds, what the policy saw, what it decided; plain data."""


@dataclasses.dataclass(frozen=True)
class SmallWorld:
    """What two futures have in common, besides the past.

    Attributes:
        engines: small ones, so that queues form and memory runs short.
        clocks: their step-latency vectors.
        events: of a cluster: one engine goes down and comes back.
    """

    engines: tuple[EngineSpec, ...]
    clocks: tuple[IntArray, ...]
    events: tuple[Event, ...]


@dataclasses.dataclass(frozen=True)
class PlayedWorld:
    """One play of a policy through a world."""

    log: Log
    records: RequestRecords

    def until(self, t: int) -> Log:
        """What was seen and decided up to `t` nanoseconds."""
        return [entry for entry in self.log if entry[0] <= t]


Play = Callable[[type, SmallWorld, Workload], PlayedWorld]
"""Plays a policy: (simulator class, world, traffic)."""


def make_world(rng: np.random.Generator, count: int) -> SmallWorld:
    """A random world of `count` engines."""
    terms = StepTerms(base_ms=4.0, per_sequence_ms=0.1, per_token_ms=0.08, noise_sd=0.05)
    gpu, model = AUTHORS_DEFAULT  # a step model is published for it: LENS is ready at once
    specs = [
        EngineSpec(
            name=f"e{index}",
            gpu=gpu,
            model=model,
            profile="",
            max_num_seqs=int(rng.integers(2, 12)),
            max_num_batched_tokens=8192,  # as large as servers', so that no policy is refused
            max_model_len=512,
            kv_blocks=int(rng.integers(32, 90)),
            prefix_caching=bool(rng.random() < 0.5),
            weight=1.0 + index,
        )
        for index in range(count)
    ]
    clocks = [terms.clock(int(rng.integers(1 << 40))) for _ in specs]
    down, up = Event(0.3, "down", 1), Event(0.9, "up", 1)
    return SmallWorld(tuple(specs), tuple(clocks), (down, up) if count > 1 else ())


def make_columns(
    rng: np.random.Generator, count: int, start_ns: int, span_s: float
) -> dict[str, IntArray]:
    """Columns of `count` random requests that arrive in [start, start + span), sorted."""
    times = start_ns + np.sort(rng.integers(0, int(span_s * NS_PER_S), count))
    return {
        "arrival_ns": times,
        "prompt_tokens": rng.integers(1, 250, count),
        "output_tokens": rng.integers(1, 40, count),
        "session": rng.integers(-1, SESSIONS, count),
        "slo_class": rng.integers(0, len(SLOS), count),
    }


def make_traffic(values: dict[str, IntArray]) -> Workload:
    """Requests of `make_columns` with one shared system prompt and one history per session."""
    count = len(values["arrival_ns"])
    session = values["session"]
    parent = np.concatenate(
        [[-1], np.zeros(SESSIONS, np.int64), np.where(session < 0, 0, session + 1)]
    )
    start = np.repeat([0, 32, 96], [1, SESSIONS, count])
    content = Content(1 + SESSIONS + np.arange(count), parent, start)
    arrival, prompt, output = (
        values[name] for name in ("arrival_ns", "prompt_tokens", "output_tokens")
    )
    return make_workload(
        arrival, prompt, output, session=session, slo_class=values["slo_class"], content=content
    )


def other_future(
    rng: np.random.Generator, workload: Workload, records: RequestRecords, t: int
) -> Workload:
    """The same traffic up to `t` nanoseconds: later arrivals and unseen output lengths are new."""
    past = int(np.searchsorted(workload.arrival_ns, t, side="right"))
    later = make_columns(rng, int(rng.integers(1, 15)), t + 1, 1.0)
    values = {name: getattr(workload, name)[:past] for name in later}
    known = (records.outcome[:past] == Outcome.FINISHED) & (records.finish_ns[:past] <= t)
    longer = values["output_tokens"] + rng.integers(1, 40, past)
    values["output_tokens"] = np.where(known, values["output_tokens"], longer)
    return make_traffic({name: np.concatenate([values[name], later[name]]) for name in later})


def plain(value: object) -> object:
    """Plain data that compares by content."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return [plain(getattr(value, item.name)) for item in dataclasses.fields(value)]
    return value


Seat = EngineSeat | RouterSeat


class Noting(Observer):
    """Keeps what a policy sees and decides, as plain data with its time."""

    asks_engines = True
    asks_router = True

    def __init__(self) -> None:
        self.log: Log = []
        self._seen: object = None
        self._done: list[object] = []

    def observed(self, seat: Seat, seen: Any) -> None:
        """Keep what has left since the last choice."""
        self._done.append(plain(seen))

    def observe_all(self, sim: Simulation, rng: np.random.Generator) -> None:
        """Note all that a router could see, whatever classes of information it declares."""
        everything = sim.cluster_view(rng, frozenset(INFORMATION_CLASSES))
        self._rows = plain([everything.rows, everything.session_engine])

    def deciding(self, seat: Seat, *views: Any) -> AbstractContextManager[None]:
        """Copy the views before the policy has them."""
        if isinstance(seat, EngineSeat):
            (view,) = views
            self._seen = plain([view.state, view.running, view.waiting, view.last_step])
        else:
            self._seen = [plain(views[0]), self._done, self._rows]
        self._done = []
        return nullcontext()

    def before(self, sim: Simulation, engine: int | None, answer: Any) -> None:
        """Note a decision."""
        self.log.append((int(sim.now_ns), self._seen, plain(answer)))


class _AllSeen(RouterSeat):
    """A router's seat whose observer notes completions and every column of the table too."""

    def __init__(self, policy: RouterPolicy, noting: Noting) -> None:
        super().__init__(policy, [noting])
        self.looks_back, self._noting = True, noting

    def choose(self, sim: Simulation) -> int:
        """As `RouterSeat.choose`."""
        self._noting.observe_all(sim, self.rng)
        return super().choose(sim)


def play_engine(
    policy: EnginePolicy, simulator: type, world: SmallWorld, workload: Workload
) -> PlayedWorld:
    """Play an engine policy on the world's only engine."""
    sim = simulator(
        engines=world.engines,
        clocks=world.clocks,
        workload=workload,
        slos=SLOS,
        telemetry=TELEMETRY,
        auto_route=True,
    )
    noting = Noting()
    seat = EngineSeat(policy, 0, [noting])
    seat.reset(np.random.default_rng(POLICY_SEED), *copy.deepcopy((world.engines[0], SLOS)))
    while sim.advance() == BATCH:
        seat.answer(sim)
    return PlayedWorld(noting.log, sim.records())


def play_router(
    policy: RouterPolicy, simulator: type, world: SmallWorld, workload: Workload
) -> PlayedWorld:
    """Play a router policy in front of engines that decide by a fixed rule."""
    sim = simulator(
        engines=world.engines,
        clocks=world.clocks,
        workload=workload,
        slos=SLOS,
        telemetry=TELEMETRY,
        events=world.events,
        rules=[DecisionRule(token_budget=256, cover_decodes=True) for _ in world.engines],
        adverts=[published_advert(spec) for spec in world.engines],
    )
    noting = Noting()
    seat = _AllSeen(policy, noting)
    seat.reset(np.random.default_rng(POLICY_SEED), *copy.deepcopy((world.engines, SLOS)))
    while sim.advance() == ROUTE:
        seat.answer(sim)
    return PlayedWorld(noting.log, sim.records())


@dataclasses.dataclass(frozen=True)
class Pair:
    """The logs of two plays up to the instant at which their worlds part."""

    at_s: float
    first: Log
    second: Log

    @property
    def same(self) -> bool:
        """Whether all was seen and decided alike."""
        return self.first == self.second

    def difference(self) -> str:
        """The first difference, in words."""
        for index, (one, other) in enumerate(zip(self.first, self.second, strict=False)):
            if one != other:
                what = "decided" if one[:2] == other[:2] else "saw"
                values = [e[2] if what == "decided" else e[:2] for e in (one, other)]
                where = f"decision {index} at {one[0] / NS_PER_S:.6f} s"
                return one_line(f"{where}: it {what} {values[0]} in one, {values[1]} in the other")
        counts = f"{len(self.first)} and {len(self.second)}"
        return f"the numbers of decisions differ ({counts})"


def play_pair(seed: int, count: int, play: Play, simulator: type = Simulator) -> Pair:
    """Play two futures that part at a random instant.

    Args:
        seed: of world, traffic, instant and the other future.
        count: number of engines.
        play: plays the policy, as new each time.
        simulator: simulator class.
    """
    rng = np.random.default_rng(seed)
    world = make_world(rng, count)
    traffic = make_traffic(make_columns(rng, int(rng.integers(5, 20 * count)), 0, 1.2))
    first = play(simulator, world, traffic)
    times = [t for t, *_ in first.log if t < traffic.arrival_ns[-1]]
    t = int(rng.choice(times))
    second = play(simulator, world, other_future(rng, traffic, first.records, t))
    return Pair(t / NS_PER_S, first.until(t), second.until(t))


def player(policy: Any, track: Layer) -> tuple[int, Play]:
    """The number of engines and the function that plays copies of a policy on its layer.

    Raises:
        ValueError: no such layer, or no such policy.
        TypeError: neither text nor a policy of this layer.
    """
    if track == "engine":
        engine = make_engine_policy(policy)
        return 1, lambda *world: play_engine(copy.deepcopy(engine), *world)
    if track == "router":
        router = make_router_policy(policy)
        return ENGINES, lambda *world: play_router(copy.deepcopy(router), *world)
    raise ValueError(
        f"two futures are played on one layer, 'engine' or 'router', not {track!r}; "
        "test the two policies of a pair one by one"
    )


def two_futures(
    policy: str | EnginePolicy | RouterPolicy | type[EnginePolicy] | type[RouterPolicy],
    track: Layer,
    seeds: Iterable[int] = range(20),
    simulator: type = Simulator,
) -> Verdict:
    """Whether the decisions of a policy depend on nothing that is still to come.

    Args:
        policy: specification, class or instance; every play gets a copy of its own.
        track: its layer.
        seeds: one pair of small random worlds each (about 20 ms and the policy's own time).
        simulator: simulator class.

    Returns:
        A failed verdict with the first difference, or with the error that the policy raised.

    Raises:
        ValueError, TypeError: as `player`.
    """
    count, play = player(policy, track)
    decisions = pairs = 0
    for seed in seeds:
        try:
            pair = play_pair(seed, count, play, simulator)
        except (Exception, SystemExit) as error:  # only the policy is foreign here
            reason = one_line(f"world {seed}: raised {type(error).__name__}: {error}")
            return _verdict(False, reason, pairs, decisions)
        if not pair.same:
            reason = (
                f"world {seed}: two futures that part at {pair.at_s:.6f} s are told apart before "
                f"that: {pair.difference()}; decide from the views alone"
            )
            return _verdict(False, reason, pairs, decisions)
        pairs += 1
        decisions += len(pair.first)
    reason = f"{decisions} decisions in {pairs} worlds did not depend on the future"
    return _verdict(bool(decisions), reason, pairs, decisions)


def _verdict(passed: bool, reason: str, worlds: int, decisions: int) -> Verdict:
    return Verdict("two-futures", passed, reason, {"worlds": worlds, "decisions": decisions})
