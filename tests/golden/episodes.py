"""Episodes whose decision logs must never change: every scenario of every season, every policy.

    python -m tests.golden.episodes    # plays those that `episodes.csv` lacks, and appends them

A line of the file stays as it is, whatever scenarios and policies come later: load and seed of a
new episode follow from its own names.

An episode is short (arrivals of twelve seconds, or until five seconds after the last event). Each
scenario is played as it is and, with a few policies, with closed loops, impatient clients, failing
engines and queues by priority.
"""

from __future__ import annotations

import csv
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.policies.registry import engine_policies, router_policies
from synergy_gym.scenario import Scenario, list_scenarios, load_scenario
from synergy_gym.seasons import SEASON
from synergy_gym.specs import ClientSpec, Event
from synergy_gym.workload.spec import TrafficSpec
from synergy_gym.workload.traffic import resolve

FILE = Path(__file__).with_name("episodes.csv")
HORIZON_S, AFTER_S = 12.0, 5.0
LOADS = (0.8, 1.0, 1.2, 1.5)
SEEDS = range(7)
AGENTS = ("agent:engine-ppo-v1", "agent:engine-dqn-authors-v1", "agent:router-ppo-v1")
CROSSED = (
    ("vllm-v1", "round-robin"),
    ("lens-ref", "prism-ref"),
    ("lens-plus", "prism-plus"),
    ("random", "random"),
)
"""Pairs that play every changed world."""
Names = tuple[int, str, str, str, str]
"""Season, scenario, change, engine policy, router policy."""


@dataclass(frozen=True, slots=True)
class Golden:
    """One episode; `change` names one of `CHANGES`."""

    season: int
    scenario: str
    change: str
    load: float
    seed: int
    engine_policy: str
    router_policy: str

    @property
    def names(self) -> Names:
        """What no two episodes have in common."""
        return (self.season, self.scenario, self.change, self.engine_policy, self.router_policy)

    @property
    def world(self) -> Scenario:
        """The scenario, changed, in a short window."""
        world = load_scenario(self.scenario, self.season)
        horizon_s = max([HORIZON_S, *(event.at_s + AFTER_S for event in world.events)])
        return CHANGES[self.change](replace(world, horizon_s=horizon_s, warmup_s=0.0))

    def played(self) -> str:
        """Its log hash now."""
        policies = self.engine_policy, self.router_policy
        return evaluate(self.world, *policies, self.load, self.seed, record_itl=False).log_hash


def _as_it_is(world: Scenario) -> Scenario:
    return world


def _closed_loop(world: Scenario) -> Scenario:
    assert isinstance(world.traffic, TrafficSpec)
    full = resolve(world.traffic)
    assert full.sessions is not None
    return replace(
        world, traffic=replace(full, sessions=replace(full.sessions, closed_loop=True, think_s=1.0))
    )


def _impatient(world: Scenario) -> Scenario:
    return replace(world, client=ClientSpec(timeout_s=2.0, max_retries=2, backoff_s=0.3))


def _failing(world: Scenario) -> Scenario:
    last = len(world.engines) - 1
    events = (
        Event(2.0, "lose_blocks", 0, blocks=world.engines[0].kv_blocks // 10),
        Event(3.0, "slowdown", last, factor=2.5),
        Event(5.0, "down", last),
        Event(7.0, "up", last),
        Event(9.0, "slowdown", last, factor=1.0),
    )
    return replace(world, events=events if last else events[:2], client=ClientSpec(8.0, 1, 0.2))


def _by_priority(world: Scenario) -> Scenario:
    assert isinstance(world.traffic, TrafficSpec)
    engines = tuple(replace(engine, scheduling="priority") for engine in world.engines)
    slos = world.slos[:1] * 3
    traffic = replace(world.traffic, slo_mix=(0.5, 0.3, 0.2), priorities=(2, 0, 1))
    return replace(world, engines=engines, slos=slos, traffic=traffic)


CHANGES: Mapping[str, Callable[[Scenario], Scenario]] = MappingProxyType(
    {
        "none": _as_it_is,
        "closed loop": _closed_loop,
        "impatient clients": _impatient,
        "failing engines": _failing,
        "priorities": _by_priority,
    }
)


def _changes(world: Scenario) -> Iterator[str]:
    """What can be changed in a scenario."""
    yield "impatient clients"
    yield "failing engines"
    if not isinstance(world.traffic, TrafficSpec):
        return
    if not world.traffic.priorities:
        yield "priorities"
    full = resolve(world.traffic)
    if full.sessions is not None and full.replay is None:
        yield "closed loop"


def missing(known: Iterable[Golden]) -> list[Golden]:
    """Episodes that are not among those."""
    names = {one.names for one in known}
    return [_drawn(wanted) for wanted in _wanted() if wanted not in names]


def _drawn(names: Names) -> Golden:
    season, scenario, change, engine, router = names
    number = zlib.crc32(repr(names).encode())
    load, seed = LOADS[number % len(LOADS)], SEEDS[number // len(LOADS) % len(SEEDS)]
    return Golden(season, scenario, change, load, seed, engine, router)


def _wanted() -> Iterator[Names]:
    for season in range(1, SEASON + 1):
        for name in list_scenarios(season):
            for change, pair in _plays(load_scenario(name, season)):
                yield (season, name, change, *pair)


def _plays(world: Scenario) -> Iterator[tuple[str, tuple[str, str]]]:
    """(change, policies) that a scenario is played with."""
    engines = [*engine_policies(), *(agent for agent in AGENTS if "engine" in agent)]
    routers = [*router_policies(), *(agent for agent in AGENTS if "router" in agent)]
    if len(world.engines) == 1:
        routers = ["round-robin"]
    most = min(engine.max_num_batched_tokens for engine in world.engines)
    for engine in engines:
        budget = engine.rpartition("-")[2]
        if not (budget.isdecimal() and int(budget) > most):
            yield "none", (engine, "round-robin")
    for router in routers:
        if router != "round-robin":
            yield "none", ("vllm-v1", router)
    for change, (engine, router) in product(_changes(world), CROSSED):
        if len(world.engines) == 1:
            router = "round-robin"
        if change == "priorities" and engine == "lens-plus":
            engine = "lens-guarded"  # an engine by priority takes no order of its queue
        yield change, (engine, router)


def recorded() -> dict[Golden, str]:
    """Log hashes in the file."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return {
            Golden(
                int(row["season"]), row["scenario"], row["change"], float(row["load"]),
                int(row["seed"]), row["engine_policy"], row["router_policy"],
            ): row["log_hash"]
            for row in csv.DictReader(file)
        }  # fmt: skip


def main() -> int:
    """Play what the file lacks; each is in the file when it has been played."""
    added = missing(recorded())
    with (
        FILE.open("a", newline="", encoding="utf-8", buffering=1) as file,
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
    ):
        table = csv.writer(file, lineterminator="\n")
        hashes = pool.map(Golden.played, added, chunksize=8)
        for count, (one, log_hash) in enumerate(zip(added, hashes, strict=True), 1):
            table.writerow([*astuple(one), log_hash])
            if count % 200 == 0 or count == len(added):
                print(f"{count} of {len(added)} episodes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
