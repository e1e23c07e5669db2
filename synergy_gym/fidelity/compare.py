"""Fidelity: the same traffic and policies in simulation and on real engines, side by side.

Slices of calibration alternate with live episodes, so that both see the same machine; what is
calibrated (`fidelity.calibration`) then times the simulation of every cell. Each live episode
also probes the machine's speed. The simulation is compared twice: as it is ("sim"), and with
its steps stretched by the probes of the very episode ("matched"), which takes the other load
on the machine out of the comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER
from synergy_gym.evaluation.manifest import workload_hash
from synergy_gym.evaluation.runner import Result, evaluate
from synergy_gym.fidelity.calibration import (
    HELD_OUT,
    PLAYED,
    PROBE_EVERY,
    Calibration,
    Calibrator,
    Measured,
    kind_means,
)
from synergy_gym.fidelity.calibration import fit as fit_engine
from synergy_gym.fidelity.meter import ReferenceStep
from synergy_gym.fidelity.recorder import Recorder, StepLog
from synergy_gym.fidelity.store import EpisodeData, Store
from synergy_gym.latency.clock import SEED
from synergy_gym.live.backend import LiveOptions
from synergy_gym.metrics import latencies, scored, select
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import Event, FloatArray

Progress = Callable[[int, int, str], None]
ENGINE_POLICIES: tuple[str, ...] = (
    "vllm-v1",
    "vllm-v0",
    "sarathi-512:chunk_tokens=64",
    "static-64",
    "static-128",
    "static-256",
    "shortest-prompt",
    "lens-plus",
    "random",
)
"""Policies without token caps above zero, which a real engine has no means for."""
ROUTER_POLICIES: tuple[str, ...] = (
    "random",
    "round-robin",
    "least-outstanding",
    "power-of-two",
    "prefix-aware",
    "lmetric",
)
SPEED_BIN_S = 1.0
"""Virtual time over which probes are averaged for the matched simulation, seconds."""
LEAST_PROBES = 8
"""A bin with fewer keeps the speed of the one before it."""
GRID_SHARE = 1 / 3
"""Part of the grid that one slice plays."""
SLICE = "a third of the grid, an exploring episode, and every second time a held-out one"
"""What a slice of calibration is, for manifests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared.

    Attributes:
        scenarios: names or files; clusters are played by routers, single engines by engine
            policies.
        engine_policies: rivals on single engines.
        router_policies: rivals on clusters.
        loads: multiples of a scenario's rate.
        repeats: live episodes per cell, and simulated ones (with other noise).
        options: model, clock ("cpu" or "wall") and how engines are started.
        horizon_s: end of arrivals instead of the scenarios', seconds.
        seed: of the traffic; by default a scenario's first test seed.
        slice_every: live episodes between two slices of calibration.
        slice_s: length of a slice's exploring episode, seconds of virtual time.
    """

    scenarios: tuple[str, ...] = ("live-chat",)
    engine_policies: tuple[str, ...] = ENGINE_POLICIES
    router_policies: tuple[str, ...] = ROUTER_POLICIES
    loads: tuple[float, ...] = (1.0, 1.3)
    repeats: int = 3
    options: LiveOptions = field(default_factory=lambda: LiveOptions(clock="cpu"))
    horizon_s: float | None = None
    seed: int | None = None
    slice_every: int = 4
    slice_s: float = 3.0

    def __post_init__(self) -> None:
        if self.options.clock not in ("cpu", "wall"):
            raise ValueError(
                f"clock={self.options.clock!r} compares nothing; measure 'cpu' or 'wall'"
            )
        if self.repeats < 2:
            raise ValueError(f"repeats={self.repeats}; live against live needs at least 2")
        for name in self.engine_policies:
            if make_engine_policy(name).uses_token_caps:
                raise ValueError(
                    f"engine policy {name!r} caps the tokens of single requests, which a real "
                    "engine cannot: it would play another policy there; leave it out"
                )

    def entry(self) -> dict[str, Any]:
        """The plan as manifests record it."""
        values = {k: getattr(self, k) for k in self.__slots__ if k != "options"}
        return {**values, "options": self.options.entry()}


QUICK = Plan(
    engine_policies=("vllm-v1", "vllm-v0", "static-64", "shortest-prompt", "lens-plus"),
    router_policies=("random", "round-robin", "least-outstanding", "prefix-aware"),
    loads=(1.0,),
    horizon_s=4.0,
    slice_every=3,
    slice_s=2.0,
)
"""Two to three minutes on two CPU cores."""


@dataclass(frozen=True, slots=True)
class FidelityCell:
    """What is played several times, in both worlds."""

    scenario: str
    load: float
    engine_policy: str
    router_policy: str


@dataclass(frozen=True, slots=True, eq=False)
class PlayedPair:
    """A cell with its episodes: live, simulated, and simulated at the machine's speed."""

    cell: FidelityCell
    cluster: bool
    live: list[EpisodeData]
    sim: list[EpisodeData]
    matched: list[EpisodeData]

    @property
    def policy(self) -> str:
        """The policy that the cell is about."""
        return self.cell.router_policy if self.cluster else self.cell.engine_policy


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Everything that a fidelity run has measured."""

    plan: Plan
    cells: list[PlayedPair]
    calibrations: dict[str, tuple[Calibration, ...]]
    """Per scenario, one per engine."""
    rates_rps: dict[str, float]
    """Per scenario, requests per second at load 1.0."""
    software: dict[str, Any]


def cells_of(plan: Plan, scenario: Scenario) -> list[FidelityCell]:
    """The cells of one scenario, in the order given."""
    if len(scenario.engines) > 1:
        pairs = [(DEFAULT_ENGINE, router) for router in plan.router_policies]
    else:
        pairs = [(engine, DEFAULT_ROUTER) for engine in plan.engine_policies]
    return [FidelityCell(scenario.name, load, *pair) for load, pair in product(plan.loads, pairs)]


def compare(plan: Plan, out: Path, progress: Progress | None = None) -> Comparison:
    """Calibrate, play everything live, then simulate it.

    What is done lies in `out/episodes` and is not played again, so that the same call goes
    on after an interruption.

    Args:
        plan: what to compare.
        out: folder of the results.
        progress: called with (done, total, what).

    Raises:
        ValueError: `out` holds the episodes of another plan.
        VllmUnavailableError: vLLM is absent, broken or of another release.
    """
    worlds = [_world(plan, name) for name in plan.scenarios]
    store = Store(out, {**plan.entry(), **_hashes(plan, worlds)})
    jobs = {world.name: _jobs(plan, world) for world in worlds}
    total, done = sum(map(len, jobs.values())), 0
    played: list[PlayedPair] = []
    calibrations, software = {}, {}
    for world in worlds:
        for text in _measure(plan, world, jobs[world.name], store):
            done += 1
            if progress is not None:
                progress(done, total, f"{world.name}: {text}")
        software = store.software()
        fitted = _fitted(world, store, plan.options.clock)
        calibrations[world.name] = fitted
        clocked = replace(world, terms=tuple(c.terms for c in fitted))
        played += [_simulated(plan, clocked, cell, store) for cell in cells_of(plan, world)]
    rates = {world.name: world.rate_rps for world in worlds}
    return Comparison(plan, played, calibrations, rates, software)


def _hashes(plan: Plan, worlds: Sequence[Scenario]) -> dict[str, Any]:
    """What else must stay the same when a run goes on."""
    chosen = [
        *map(make_engine_policy, plan.engine_policies),
        *map(make_router_policy, plan.router_policies),
    ]
    return {
        "traffic_sha256": {w.name: workload_hash(w.workload(1.0, _seed(plan, w))) for w in worlds},
        "rate_rps": {w.name: w.rate_rps for w in worlds},
        "policy_sha256": {policy.label: policy.policy_hash() for policy in chosen},
    }


def _seed(plan: Plan, world: Scenario) -> int:
    return world.test_seeds[0] if plan.seed is None else plan.seed


def _world(plan: Plan, name: str) -> Scenario:
    scenario = load_scenario(name)
    if plan.horizon_s is None:
        return scenario
    share = plan.horizon_s / scenario.horizon_s
    return replace(scenario, horizon_s=plan.horizon_s, warmup_s=scenario.warmup_s * min(share, 1))


@dataclass(frozen=True, slots=True)
class _Job:
    """One live episode, or a slice of calibration where there is no cell."""

    key: str
    cell: FidelityCell | None = None
    number: int = 0


def _jobs(plan: Plan, world: Scenario) -> list[_Job]:
    """Episodes in random order within each repeat, with slices of calibration between them."""
    rng = np.random.default_rng(len(world.name))
    jobs: list[_Job] = []
    every = cells_of(plan, world)
    episodes, slices = 0, 0
    for repeat in range(plan.repeats):
        for index in rng.permutation(len(every)).tolist():
            if episodes % plan.slice_every == 0:
                jobs.append(_Job(f"{world.name} slice {slices}", None, slices))
                slices += 1
            cell = every[index]
            name = f"{cell.engine_policy}+{cell.router_policy}"
            key = f"{world.name} load {cell.load:g} {name} repeat {repeat}"
            jobs.append(_Job(key, cell, repeat))
            episodes += 1
    return [*jobs, _Job(f"{world.name} slice {slices}", None, slices)]


def _measure(plan: Plan, world: Scenario, jobs: Sequence[_Job], store: Store) -> Iterator[str]:
    """Do what is not done yet; yields what each job was."""
    left = [job for job in jobs if job.key not in store]
    yield from (f"{job.key} (done before)" for job in jobs if job.key in store)
    if not left:
        return
    with Calibrator(world, plan.options, seed=len(left)) as calibrator:
        store.note_software(calibrator.software(), calibrator.specs)
        for job in left:
            if job.cell is None:
                store.add_slice(job.key, world.name, _slice(plan, calibrator, job.number))
            else:
                store.add_episode(job.key, _live(plan, world, job.cell, calibrator))
            yield job.key


def _slice(plan: Plan, calibrator: Calibrator, number: int) -> Measured:
    seeds = calibrator.scenario.train_seeds
    found = calibrator.grid(GRID_SHARE)
    found.extend(calibrator.played(PLAYED, seeds[number % len(seeds)], plan.slice_s))
    if number % 2 == 0:
        seed = seeds[-1 - number % len(seeds)]
        found.extend(calibrator.played(HELD_OUT, seed, plan.slice_s))
    return found


def _live(plan: Plan, world: Scenario, cell: FidelityCell, calibrator: Calibrator) -> EpisodeData:
    log = StepLog(calibrator.probe, PROBE_EVERY)
    options: dict[str, Any] = {"backend": "vllm", "live": plan.options}
    result = _play(plan, world, cell, log, options)
    reference = calibrator.take_reference()
    return _data(world, result, log, reference)


def _play(
    plan: Plan, world: Scenario, cell: FidelityCell, log: StepLog, options: dict[str, Any]
) -> Result:
    return evaluate(
        world,
        cell.engine_policy,
        cell.router_policy,
        cell.load,
        _seed(plan, world),
        record_itl=False,
        observers=[Recorder(log)],
        **options,
    )


def _data(
    world: Scenario, result: Result, log: StepLog, reference: list[ReferenceStep]
) -> EpisodeData:
    counted = select(result.records, scored(result.records, *result.window_ns))
    values = latencies(counted)
    several = counted.emitted_tokens > 1
    return EpisodeData(
        summary={k: v for k, v in result.summary.items() if isinstance(v, int | float)},
        ttft_s=_finite(values.ttft_s),
        tpot_s=_finite(values.tpot_s[several]),
        e2e_s=_finite(values.e2e_s),
        step_s=np.array([s.report.step_s for s in log.steps if s.report.tokens]),
        steps=np.array([_features(world, s) for s in log.steps if s.report.tokens]).reshape(-1, 7),
        probes=np.array(log.probes).reshape(-1, 3),
        reference=np.array(reference).reshape(-1, 4),
    )


def _finite(values: FloatArray) -> FloatArray:
    finite: FloatArray = values[np.isfinite(values)]
    return finite


def _features(world: Scenario, step: Any) -> list[float]:
    names = [spec.name for spec in world.engines]
    r = step.report
    return [
        names.index(step.engine), r.sequences, r.tokens, r.decodes, r.context_tokens,
        r.prefill_pairs, r.prefill_context_tokens,
    ]  # fmt: skip


def _fitted(world: Scenario, store: Store, clock: str) -> tuple[Calibration, ...]:
    measured = store.slices(world.name)
    specs = store.specs(world.engines)
    return tuple(fit_engine(measured, spec, clock) for spec in specs)


def _simulated(plan: Plan, world: Scenario, cell: FidelityCell, store: Store) -> PlayedPair:
    """The cell with the live episodes of the store and as many simulated ones."""
    name = f"{cell.engine_policy}+{cell.router_policy}"
    head = f"{world.name} load {cell.load:g} {name} repeat"
    live = [store.episode(f"{head} {repeat}") for repeat in range(plan.repeats)]
    means = kind_means(store.slices(world.name).reference)
    sim = [_simulate(plan, world, cell, repeat) for repeat in range(plan.repeats)]
    matched = [
        _simulate(plan, replace(world, events=slowdowns(world, episode, means)), cell, repeat)
        for repeat, episode in enumerate(live)
    ]
    return PlayedPair(cell, len(world.engines) > 1, live, sim, matched)


def _simulate(plan: Plan, world: Scenario, cell: FidelityCell, repeat: int) -> EpisodeData:
    log = StepLog()
    simulator = functools.partial(_with_noise_of, repeat)
    result = _play(plan, world, cell, log, {"simulator": simulator})
    return _data(world, result, log, [])


def _with_noise_of(repeat: int, *, clocks: Sequence[Any], **world: Any) -> Simulator:
    """The compiled simulator; each repeat has the same traffic and other step noise."""
    changed = [clock.copy() for clock in clocks]
    for clock in changed:
        clock[SEED] = (int(clock[SEED]) + 7_919 * repeat) & ((1 << 62) - 1)
    return Simulator(clocks=changed, **world)


def slowdowns(
    world: Scenario, episode: EpisodeData, means_ms: Mapping[int, float]
) -> tuple[Event, ...]:
    """The machine's speed during a live episode as slowdowns of all engines.

    Args:
        world: whose engines are slowed down; must have no events of its own.
        episode: its probes hold (virtual time in seconds, duration in ms, kind).
        means_ms: mean duration of each kind of probe during calibration.

    Raises:
        ValueError: the scenario has events, which the slowdowns would undo.
    """
    if world.events:
        raise ValueError(f"{world.name} has events; fidelity needs a scenario without")
    events = []
    for at_s, factor in speed_bins(episode.probes, means_ms):
        events += [Event(at_s, "slowdown", e, factor, 0) for e in range(len(world.engines))]
    return tuple(events)


def speed_bins(probes: FloatArray, means_ms: Mapping[int, float]) -> list[tuple[float, float]]:
    """(start in seconds, probes over their means) of every `SPEED_BIN_S` with enough probes."""
    slow = np.array([ms / means_ms[int(kind)] for _, ms, kind in probes])
    bins = (probes[:, 0] // SPEED_BIN_S).astype(int)
    found = []
    for number in np.unique(bins).tolist():
        inside = slow[bins == number]
        if len(inside) >= LEAST_PROBES:
            found.append((number * SPEED_BIN_S, float(inside.mean())))
    return found
