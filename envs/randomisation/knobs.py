"""What domain randomisation can change in a scenario: functions of (scenario, value), by name.

They are applied in the order in which they stand here, whatever the order of the ranges:
engines and traffic first, factors of them after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from synergy_gym.latency.clock import StepTerms
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.seasons import SEASON
from synergy_gym.types import EngineSpec, Event
from synergy_gym.workload.lengths import lengths_at
from synergy_gym.workload.spec import ArrivalSpec, LengthSpec, TrafficMix, TrafficSpec
from synergy_gym.workload.traffic import resolve

Knob = Callable[[Scenario, Any], Scenario]

_KNOBS: dict[str, Knob] = {}
_RESCALING: set[str] = set()

_LENGTH_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "lognormal": ("median",),
    "geometric": ("mean",),
    "empirical": ("values",),
    "quantiles": ("values",),
}
"""Options of a length distribution that a factor multiplies."""
_LONGEST = np.array([8.0])  # normal score; beyond it nothing is ever drawn


def knob(name: str, *, rescales: bool = False) -> Callable[[Knob], Knob]:
    """Register a change under `name`; `rescales`: it changes what the engines can carry."""

    def register(function: Knob) -> Knob:
        _KNOBS[name] = function
        if rescales:
            _RESCALING.add(name)
        return function

    return register


def knobs() -> list[str]:
    """Names of the registered changes, in the order in which they are applied."""
    return list(_KNOBS)


def check_knobs(names: Sequence[str]) -> None:
    """Raise `ValueError` for a name that is not registered."""
    for name in names:
        if name not in _KNOBS:
            raise ValueError(f"there is no knob {name!r}; choose from {knobs()}")


def apply_knobs(scenario: Scenario, values: Mapping[str, Any]) -> tuple[Scenario, bool]:
    """The changed scenario, and whether its rate should be scaled to what it can carry now.

    Raises:
        ValueError: a value that the scenario cannot have; the message begins with the knob.
    """
    for name in (name for name in _KNOBS if name in values):
        try:
            scenario = _KNOBS[name](scenario, values[name])
        except ValueError as error:
            raise ValueError(f"knob {name}={values[name]!r}: {error}") from error
    return scenario, not _RESCALING.isdisjoint(values)


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine to copy: its limits and memory, and its clock."""

    spec: EngineSpec
    terms: StepTerms


def engine_kind(reference: str, season: int = SEASON) -> EngineKind:
    """The engine `SCENARIO/ENGINE`, e.g. `hetero-3/a6000`, of a season where it names none.

    Raises:
        ValueError: no such scenario, or no such engine in it.
    """
    name, _, engine = reference.rpartition("/")
    if not name:
        raise ValueError(f"engine {reference!r}: write SCENARIO/ENGINE, e.g. 'hetero-3/a6000'")
    read = load_scenario if name.endswith(".toml") else _packaged
    scenario = read(name, season)
    for spec, terms in zip(scenario.engines, scenario.measured_terms, strict=True):
        if engine == spec.name:
            return EngineKind(spec, terms)
    known = [spec.name for spec in scenario.engines]
    raise ValueError(f"scenario {name!r} has no engine {engine!r}; it has {known}")


@lru_cache(maxsize=64)  # a file of the package is read once, not at every reset
def _packaged(name: str, season: int) -> Scenario:
    return load_scenario(name, season)


@knob("engines", rescales=True)
def _engines(scenario: Scenario, references: Sequence[str]) -> Scenario:
    """Other engines: a sequence of `SCENARIO/ENGINE`; events of the scenario must name none.

    A name without a season is of the scenario's own.
    """
    if scenario.events:
        raise ValueError(f"scenario {scenario.name!r} has events on its own engines")
    _need_measured(scenario)
    kinds = [engine_kind(reference, scenario.season) for reference in references]
    engines = tuple(
        replace(kind.spec, name=f"{kind.spec.name}.{index}") for index, kind in enumerate(kinds)
    )
    terms = tuple(kind.terms for kind in kinds)
    return replace(scenario, engines=engines, terms=terms, measured_terms=terms)


@knob("traffic", rescales=True)
def _traffic(scenario: Scenario, generator: str) -> Scenario:
    """Another built-in generator (`list_generators`); SLO classes and their shares stay."""
    return replace(scenario, traffic=_generated(scenario, generator))


@knob("mix", rescales=True)
def _mix(scenario: Scenario, shares: Sequence[tuple[str, float]]) -> Scenario:
    """Several built-in generators at once: (generator, share of the rate) each."""
    parts = tuple((float(share), _generated(scenario, name)) for name, share in shares)
    if not parts:
        raise ValueError("give one generator or more")
    return replace(scenario, traffic=TrafficMix(parts=parts, slo_mix=parts[0][1].slo_mix))


@knob("prompt_scale", rescales=True)
def _prompt_scale(scenario: Scenario, factor: float) -> Scenario:
    """Prompt lengths times a factor ("append" sessions: the new tokens of each turn)."""
    return _scaled_lengths(scenario, "prompt", factor)


@knob("output_scale", rescales=True)
def _output_scale(scenario: Scenario, factor: float) -> Scenario:
    """Output lengths times a factor."""
    return _scaled_lengths(scenario, "output", factor)


@knob("burstiness")
def _burstiness(scenario: Scenario, cv: float) -> Scenario:
    """Gamma arrivals whose gaps have this coefficient of variation (1: Poisson)."""
    if not cv > 0:
        raise ValueError("a coefficient of variation is > 0")
    spec = ArrivalSpec("gamma", {"cv": float(cv)})
    return _with_traffic(scenario, lambda part: replace(part, arrivals=spec))


@knob("slo_mix")
def _slo_mix(scenario: Scenario, shares: Sequence[float]) -> Scenario:
    """Shares of the SLO classes, one each; they are divided by their sum."""
    if len(shares) != len(scenario.slos) or min(shares) < 0 or not sum(shares) > 0:
        raise ValueError(f"give {len(scenario.slos)} shares >= 0, one per SLO class")
    mix = tuple(float(share) / sum(shares) for share in shares)
    return _with_traffic(scenario, lambda part: replace(part, slo_mix=mix))


@knob("slo_scale")
def _slo_scale(scenario: Scenario, factor: float) -> Scenario:
    """Every objective times a factor: below 1 is stricter."""
    names = ("ttft_s", "tpot_s", "e2e_s")
    slos = tuple(
        replace(slo, **{n: v * factor for n in names if (v := getattr(slo, n)) is not None})
        for slo in scenario.slos
    )
    return replace(scenario, slos=slos)


@knob("speed", rescales=True)
def _speed(scenario: Scenario, factor: float) -> Scenario:
    """Faster (above 1) or slower GPUs: every step time divided by the factor."""
    _need_measured(scenario)
    terms = tuple(item.scaled(1 / factor) for item in scenario.measured_terms)
    return replace(scenario, terms=terms, measured_terms=terms)


@knob("noise_sd")
def _noise_sd(scenario: Scenario, deviation: float) -> Scenario:
    """Relative standard deviation of step times, 0 to 0.25."""
    _need_measured(scenario)
    terms = tuple(replace(item, noise_sd=float(deviation)) for item in scenario.measured_terms)
    return replace(scenario, terms=terms, measured_terms=terms)


@knob("kv_share", rescales=True)
def _kv_share(scenario: Scenario, share: float) -> Scenario:
    """KV blocks times a factor; a request of `max_model_len` still fits."""
    return replace(scenario, engines=tuple(_with_kv(spec, share) for spec in scenario.engines))


@knob("push_interval_s")
def _push_interval_s(scenario: Scenario, interval_s: float) -> Scenario:
    """Seconds between two pushes of engine state to the router."""
    if not interval_s > 0:
        raise ValueError("an interval is > 0 seconds")
    telemetry = replace(scenario.telemetry, push_interval_s=float(interval_s))
    return replace(scenario, telemetry=telemetry)


@knob("horizon_s")
def _horizon_s(scenario: Scenario, horizon_s: float) -> Scenario:
    """Arrivals stop here, seconds; the warm-up keeps its share. Events beyond are left out."""
    if not horizon_s > 0:
        raise ValueError("a horizon is > 0 seconds")
    warmup_s = scenario.warmup_s / scenario.horizon_s * horizon_s
    events = tuple(event for event in scenario.events if event.at_s < horizon_s)
    return replace(scenario, horizon_s=float(horizon_s), warmup_s=warmup_s, events=events)


@knob("outage")
def _outage(scenario: Scenario, outage: tuple[float, float, float] | None) -> Scenario:
    """One engine is down for a while: `(engine, start, duration_s)` of `Outages`, or `None`."""
    if outage is None:
        return scenario
    if scenario.events:
        raise ValueError(f"scenario {scenario.name!r} has events of its own")
    if len(scenario.engines) < 2:
        raise ValueError("a single engine cannot be spared; give a cluster of two or more")
    engine = int(outage[0] * len(scenario.engines))
    down_s = outage[1] * scenario.horizon_s
    up_s = down_s + outage[2]
    back = (Event(up_s, "up", engine),) if up_s < scenario.horizon_s else ()
    return replace(scenario, events=(Event(down_s, "down", engine), *back))


def fitted(scenario: Scenario) -> Scenario:
    """The scenario with prompts cut to what its smallest engine accepts beside the outputs.

    Other engines and other lengths do not always agree: without this, requests that no policy
    can serve would be rejected.

    Raises:
        ValueError: outputs alone are too long.
    """
    limit = min(spec.max_model_len for spec in scenario.engines)
    return _with_traffic(scenario, lambda part: _fitted_part(part, limit))


def _fitted_part(traffic: TrafficSpec, limit: int) -> TrafficSpec:
    prompt, output, sessions = traffic.prompt, traffic.output, traffic.sessions
    if prompt is None or output is None:
        return traffic
    room = limit - int(lengths_at(output, _LONGEST)[0])
    if room < 1:
        raise ValueError(f"outputs leave no room for a prompt in max_model_len={limit}")
    if sessions is not None and sessions.growth == "append":
        context = min(sessions.context_limit_tokens or limit, limit)
        return replace(traffic, sessions=replace(sessions, context_limit_tokens=context))
    if int(lengths_at(prompt, _LONGEST)[0]) > room:
        return replace(traffic, prompt=replace(prompt, maximum=room))
    return traffic


def _with_traffic(scenario: Scenario, change: Callable[[TrafficSpec], TrafficSpec]) -> Scenario:
    """The scenario with its traffic, or every part of a mix, changed."""
    return replace(scenario, traffic=each_part(scenario.traffic, change))


def each_part(traffic: TrafficSpec, change: Callable[[TrafficSpec], TrafficSpec]) -> TrafficSpec:
    """Traffic, or every part of a mix, changed; a generator's fields are filled in before."""
    if not isinstance(traffic, TrafficMix):
        return change(resolve(traffic))
    parts = tuple((share, change(resolve(part))) for share, part in traffic.parts)
    return replace(traffic, parts=parts)


def _generated(scenario: Scenario, generator: str) -> TrafficSpec:
    old = scenario.traffic
    return resolve(TrafficSpec(generator, slo_mix=old.slo_mix, priorities=old.priorities))


def _need_measured(scenario: Scenario) -> None:
    if scenario.clock != "measured":
        raise ValueError(
            f"scenario {scenario.name!r} has clock {scenario.clock!r}, whose steps cannot be "
            "changed; use a measured one"
        )


def _scaled_lengths(scenario: Scenario, name: str, factor: float) -> Scenario:
    if not factor > 0:
        raise ValueError("a factor is > 0")

    def change(traffic: TrafficSpec) -> TrafficSpec:
        spec: LengthSpec | None = getattr(traffic, name)
        if spec is None:
            raise ValueError(f"scenario {scenario.name!r} has no {name} lengths to scale")
        options = {
            key: _times(value, factor) if key in _LENGTH_OPTIONS[spec.kind] else value
            for key, value in spec.options.items()
        }
        maximum = min(max(round(spec.maximum * factor), spec.minimum), 2**31)
        scaled: Any = replace(spec, options=options, maximum=maximum)
        return replace(traffic, **{name: scaled})

    return _with_traffic(scenario, change)


def _times(value: Any, factor: float) -> Any:
    """Token counts stay at least 1, whole ones whole."""
    if isinstance(value, Sequence):
        return tuple(_times(item, factor) for item in value)
    return max(round(value * factor), 1) if isinstance(value, int) else max(value * factor, 1.0)


def _with_kv(spec: EngineSpec, share: float) -> EngineSpec:
    if not share > 0:
        raise ValueError("a share is > 0")
    least = -(-spec.max_model_len // spec.block_size) + spec.watermark_blocks
    return replace(spec, kv_blocks=max(round(spec.kv_blocks * share), least))
