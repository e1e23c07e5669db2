"""Play an engine policy and a router policy through one episode, without Gymnasium."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.manifest import episode_manifest
from synergy_gym.live.backend import REAL_TIME, LiveEpisode, LiveOptions, build_live, live_options
from synergy_gym.live.router.rehearsal import rehearse_routing
from synergy_gym.metrics import NO_HORIZON_NS, scored, slo_met, summarize
from synergy_gym.policies.base import EnginePolicy, RouterPolicy
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.scenario import Scenario, load_scenario, windowed
from synergy_gym.seats import DecisionTimes, EngineSeat, Observer, RouterSeat, play
from synergy_gym.seats.errors import raised
from synergy_gym.seeding import policy_stream
from synergy_gym.sim.build import build_simulator
from synergy_gym.sim.readiness import simulator_for
from synergy_gym.simulation import Simulation
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    FloatArray,
    InformationError,
    IntArray,
    Outcome,
    RequestRecords,
)
from synergy_gym.workload.base import Workload

if TYPE_CHECKING:
    import pandas as pd

EnginePolicySpec = str | EnginePolicy | type[EnginePolicy]
RouterPolicySpec = str | RouterPolicy | type[RouterPolicy]
ScenarioSpec = str | Path | Scenario


OUTCOME_NAMES = {Outcome.REJECTED: "too_long"}
"""How `Result.requests` names an outcome that is not its own name in lower case."""


@dataclass(frozen=True, eq=False)
class Result:
    """One played episode.

    Attributes:
        summary: the figures of `synergy_gym.metrics.summarize`.
        records: what happened to every offered request, as arrays.
        slos: the classes that `records.slo_class` indexes.
        log_hash: hash of the episode's decision log; equal traffic and equal decisions
            give an equal hash.
        timings: how long it took; nothing in `summary` depends on it. `build_s` and `play_s`
            are wall clock. A decision's time is processor time of the deciding thread, which
            other load on the machine does not lengthen (what a policy does in other threads is
            not in it), of the first 256 decisions and every 16th of the rest; it covers `observe`
            and `decide` or `route`, not the making of the view. A router that the simulator plays
            by a rule takes no decisions in this sense.
        manifest: what is needed to play the episode again.
    """

    summary: dict[str, Any]
    records: RequestRecords
    slos: tuple[SLO, ...]
    window_ns: tuple[int, int]
    log_hash: str
    timings: dict[str, float]
    manifest: dict[str, Any]

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per offered request, seconds since the episode began; NaN: never."""
        return request_table(self.records, self.slos, *self.window_ns)


def request_table(
    records: RequestRecords, slos: tuple[SLO, ...], warmup_ns: int, horizon_ns: int
) -> pd.DataFrame:
    """The records as a DataFrame with latencies, outcome names and SLO verdicts."""
    import pandas as pd

    from synergy_gym.metrics import latencies

    values, met = latencies(records), slo_met(records, slos)
    outcomes = np.array([OUTCOME_NAMES.get(o, o.name.lower()) for o in Outcome])
    return pd.DataFrame(
        {
            "request": np.arange(len(records)),
            "arrival_s": _seconds(records.arrival_ns),
            "scheduled_s": _seconds(records.scheduled_ns),
            "first_token_s": _seconds(records.first_token_ns),
            "finish_s": _seconds(records.finish_ns),
            "ttft_s": values.ttft_s,
            "tpot_s": values.tpot_s,
            "e2e_s": values.e2e_s,
            "prompt_tokens": records.prompt_tokens,
            "output_tokens": records.output_tokens,
            "emitted_tokens": records.emitted_tokens,
            "cached_tokens": records.cached_tokens,
            "preemptions": records.preemptions,
            "engine": records.engine,
            "outcome": outcomes[records.outcome],
            "slo_class": np.array([slo.name for slo in slos])[records.slo_class],
            "session": records.session,
            "attempts": records.attempts,
            "scored": scored(records, warmup_ns, horizon_ns),
            "slo_met": met.slo,
        }
    )


def _seconds(times_ns: IntArray) -> FloatArray:
    return np.where(times_ns < 0, np.nan, times_ns / NS_PER_S)


def _reset(seat: EngineSeat | RouterSeat, *given: Any) -> None:
    try:
        seat.reset(*given)
    except (ValueError, InformationError):  # made for the user
        raise
    except Exception as error:
        raise raised(f"policy {seat.policy.label!r} in reset", error) from error


def _copies(*given: Any) -> tuple[Any, ...]:
    """What a policy is given to keep: it shares nothing with what the episode is scored by."""
    return copy.deepcopy(given)


def resolve_scenario(scenario: ScenarioSpec) -> Scenario:
    """The scenario of that name or file, or the object itself."""
    return load_scenario(scenario) if isinstance(scenario, (str, Path)) else scenario


def trace_window(scenario: Scenario, workload: Workload) -> Scenario:
    """The scenario, scored over the whole of a given workload.

    The window begins at 0 (a trace is measured from its first request) and ends at the
    first whole second after the last arrival. A closed-loop workload keeps the scenario's
    horizon, because its arrivals depend on the policies.
    """
    if not len(workload) or bool(np.any(workload.after >= 0)):
        return scenario
    seconds = int(workload.arrival_ns[-1]) // NS_PER_S + 1
    return replace(scenario, horizon_s=float(seconds), warmup_s=0.0)


def _engine_seats(
    spec: EnginePolicySpec, world: Scenario, seed: int, observers: Sequence[Observer]
) -> list[EngineSeat]:
    times, seats = DecisionTimes(), []
    for index, engine in enumerate(world.engines):
        policy = copy.deepcopy(make_engine_policy(spec))
        seat = EngineSeat(policy, index, observers, times)
        _reset(seat, policy_stream(seed, index), *_copies(engine, world.slos))
        seats.append(seat)
    return seats


def evaluate(
    scenario: ScenarioSpec,
    engine_policy: EnginePolicySpec = "vllm-v1",
    router_policy: RouterPolicySpec = "round-robin",
    load: float = 1.0,
    seed: int = 0,
    *,
    workload: Workload | None = None,
    warmup_s: float | None = None,
    horizon_s: float | None = None,
    record_itl: bool = True,
    simulator: Any = None,
    observers: Sequence[Observer] = (),
    backend: str = "sim",
    live: LiveOptions | None = None,
) -> Result:
    """Play one episode and score it.

    Args:
        scenario: name, path of a TOML file, or a `Scenario`.
        engine_policy: registered name (`"static:tokens=512"` sets parameters), class or
            instance; every engine gets its own copy.
        router_policy: likewise; with one engine it is not asked.
        load: multiple of the scenario's rate; ignored when `workload` is given.
        seed: of traffic, step noise and the policies' generators, each its own stream.
        workload: own traffic instead of the scenario's; scored as `trace_window` says.
        warmup_s: start of the scored window, instead of the scenario's.
        horizon_s: end of arrivals and of the scored window, instead of the scenario's.
        record_itl: collect inter-token gaps, which adds the `itl_*` figures.
        simulator: simulator class; by default the compiled one (`sim.readiness`).
        observers: who is told of decisions (`synergy_gym.seats`).
        backend: "sim" (simulated), or "vllm": real engines with the scenario's limits.
        live: how real engines are started, reached and timed; the manifest records it.

    Raises:
        ScenarioError: the scenario is unknown or wrong.
        VllmUnavailableError: real engines were asked for, and vLLM cannot be used.
        PolicyError, ValueError: an illegal decision; an unknown policy.
    """
    world = _world(scenario, workload, warmup_s, horizon_s)
    router = copy.deepcopy(make_router_policy(router_policy))
    policies = make_engine_policy(engine_policy), router
    manifest = episode_manifest(world, *policies, load, seed, workload)
    engines = _engine_seats(engine_policy, world, seed, observers)
    seat = RouterSeat(router, observers)
    _reset(seat, policy_stream(seed), *_copies(tuple(world.engines), tuple(world.slos)))
    options = _prepared(_backend(backend, live), router, world)
    began, rules = time.perf_counter(), [engine.rule() for engine in engines]
    episode = {"scenario": world, "load": load, "seed": seed, "workload": workload, "rules": rules}
    episode |= {"auto_route": len(engines) == 1, "record_itl": record_itl}
    episode |= _ruled(seat, len(engines)) if simulator is options is None else {}
    sim = _built(options, engine_policy, observed_simulator(simulator, observers), episode)
    for observer in observers:
        observer.began(sim, rules)
    built, times = time.perf_counter(), {"engine": engines[0].times, "router": seat.times}
    with closing(sim) if hasattr(sim, "close") else nullcontext():
        play(sim, engines, seat)
        timings = _timings(times, built - began, time.perf_counter() - built, rules)
        manifest |= {} if options is None else {"live": sim.live_report()}
    return episode_result(world, sim, timings, manifest, record_itl, observers)


def _world(
    scenario: ScenarioSpec,
    workload: Workload | None,
    warmup_s: float | None,
    horizon_s: float | None,
) -> Scenario:
    world = resolve_scenario(scenario)
    world = world if workload is None else trace_window(world, workload)
    return windowed(world, warmup_s, horizon_s)


def _ruled(router: RouterSeat, engines: int) -> dict[str, Any]:
    """A router that the simulator can play by itself, as its argument.

    Who gives a simulator wants to see the routes.
    """
    rule = router.rule() if engines > 1 else None
    return {} if rule is None else {"router": (rule, router.rng)}


def observed_simulator(cls: Any, observers: Sequence[Observer]) -> Any:
    """What makes a simulator from arguments that observers have seen."""
    if not observers:
        return cls

    def made(**episode: Any) -> Any:
        for observer in observers:
            episode = observer.prepared(episode)
        return (cls or simulator_for(episode["workload"]))(**episode)

    return made


def _backend(backend: str, live: LiveOptions | None) -> LiveOptions | None:
    if backend not in ("sim", "vllm"):
        raise ValueError(f"backend={backend!r} is unknown; choose 'sim' or 'vllm'")
    return live_options(backend, live)


def _prepared(
    options: LiveOptions | None, router: RouterPolicy, world: Scenario
) -> LiveOptions | None:
    """The options; what the router policy compiles on first use must not take real time."""
    if options is not None and options.transport in REAL_TIME:
        rehearse_routing(router, world.engines, tuple(world.slos))
    return options


def _built(options: LiveOptions | None, policy: Any, cls: Any, episode: dict[str, Any]) -> Any:
    """A simulator of the episode, or real engines with its interface."""
    if options is not None:
        return build_live(LiveEpisode(options=options, engine_policy=policy, **episode))
    return build_simulator(**episode, cls=cls)


def _timings(
    times: dict[str, DecisionTimes], build_s: float, play_s: float, rules: list[Any]
) -> dict[str, float]:
    timings: dict[str, float] = {"build_s": build_s, "play_s": play_s}
    timings["compiled_engines"] = sum(rule is not None for rule in rules)
    for layer, taken in times.items():
        timings[f"{layer}_decisions"] = taken.decisions
        timings[f"{layer}_decision_mean_us"] = taken.mean_us()
        timings[f"{layer}_decision_p99_us"] = taken.quantile_us(0.99)
    return timings


def episode_result(
    world: Scenario,
    sim: Simulation,
    timings: dict[str, float],
    manifest: dict[str, Any],
    itl: bool,
    observers: Sequence[Observer] = (),
) -> Result:
    """Score what a simulator has played; `itl` adds the inter-token gaps that it kept."""
    records = sim.records()
    for observer in observers:
        records = observer.scored(records)
    slos = tuple(world.slos)
    window = (round(world.warmup_s * NS_PER_S), round(world.horizon_s * NS_PER_S))
    window = (window[0], min(window[1], NO_HORIZON_NS))
    summary = summarize(
        records,
        slos,
        warmup_ns=window[0],
        horizon_ns=window[1],
        itl=sim.itl() if itl else None,
        engines=len(world.engines),
    )
    return Result(
        summary=summary,
        records=records,
        slos=slos,
        window_ns=window,
        log_hash=sim.log_hash(),
        timings=timings,
        manifest=manifest,
    )
