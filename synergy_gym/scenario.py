"""Scenarios: traffic, cluster, SLOs, horizon and seeds, read from strict TOML files.

>>> scenario = load_scenario("chat-h100")
>>> workload = scenario.workload(load=1.0, seed=scenario.test_seeds[0])
>>> load_scenario("chat-h100@saturation").clock
'saturation'
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from synergy_gym.latency.profiles import ProfileError, load_profile
from synergy_gym.latency.published import published_model
from synergy_gym.latency.saturation_model import FORMS, Form
from synergy_gym.latency.saturation_terms import SaturationTerms
from synergy_gym.latency.terms import StepTerms
from synergy_gym.scenario_schema import EngineTable, EventTable, ScenarioFile
from synergy_gym.strict_toml import read_toml, suggest
from synergy_gym.types import NS_PER_S, SLO, ClientSpec, EngineSpec, Event, IntArray, TelemetrySpec
from synergy_gym.workload.base import Workload
from synergy_gym.workload.spec import TrafficSpec
from synergy_gym.workload.traffic import build_workload

FOLDER = Path(__file__).parent / "scenarios"

NO_DEADLINE_NS = 2**62
"""`stop_time_ns` of traffic that some SLO class gives unlimited time."""


DEFAULT_FORM: Form = "stable"
"""The form of T(B,S) that the authors deployed; all four packaged profiles have one."""

CLOCKS: Mapping[str, Form | None] = MappingProxyType(
    {"measured": None, "saturation": DEFAULT_FORM, "saturation-six": "six",
     "saturation-eight": "eight"}
)  # fmt: skip
"""What `Scenario.with_clock` and `NAME@CLOCK` can say, with the form of T(B,S) it stands for."""


class ScenarioError(ValueError):
    """A scenario file is missing or malformed; the message names file, key and cure."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """Everything that fixes an episode, except the policies and the seed.

    Attributes:
        name: the file's name without its ending.
        description: one sentence for people.
        clock: what times a step; "measured": the profiles' terms (`latency/terms.py`),
            "saturation": SynergySched's T(B,S) (`latency/saturation_terms.py`).
        engines: the cluster, in index order.
        terms: the clock's coefficients, one per engine.
        measured_terms: the profiles' terms, one per engine, whatever the clock.
        slos: the request classes; `Workload.slo_class` indexes them.
        telemetry: how engine state reaches routers.
        client: timeouts and retries.
        events: changes of the world, in time order.
        horizon_s: arrivals stop here, seconds.
        warmup_s: arrivals before this are not scored, seconds.
        rate_rps: requests per second at load 1.0.
        rate_source: "estimate" or the command that found `rate_rps`.
        loads: the factors of `rate_rps` that the leaderboard offers.
        train_seeds: for training.
        validation_seeds: for choosing between trained or tuned policies.
        test_seeds: for the leaderboard only.
        traffic: the generator of the requests.
    """

    name: str
    description: str
    clock: str
    engines: tuple[EngineSpec, ...]
    terms: tuple[StepTerms | SaturationTerms, ...]
    measured_terms: tuple[StepTerms, ...]
    slos: tuple[SLO, ...]
    telemetry: TelemetrySpec
    client: ClientSpec
    events: tuple[Event, ...]
    horizon_s: float
    warmup_s: float
    rate_rps: float
    rate_source: str
    loads: tuple[float, ...]
    train_seeds: tuple[int, ...]
    validation_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    traffic: TrafficSpec

    def workload(self, load: float = 1.0, seed: int = 0) -> Workload:
        """The episode's requests, arriving in [0, `horizon_s`).

        Args:
            load: factor of `rate_rps`, > 0.
            seed: the episode seed; the same seed gives the same traffic to every policy.

        Raises:
            ValueError: `load` is not positive.
        """
        if not load > 0:
            raise ValueError(f"load is {load}; it must be > 0 (1.0 is {self.rate_rps} requests/s)")
        return build_workload(self.traffic, self.rate_rps * load, self.horizon_s, seed)

    def with_clock(self, clock: str) -> Scenario:
        """The same scenario, named `NAME@CLOCK`, in a world that another clock times.

        A measured scenario with the measured clock is itself. Rates and loads stay what they
        were: calibrated for the scenario's own clock.

        Args:
            clock: one of `CLOCKS`; "saturation" is T(B,S) in its stable form.

        Raises:
            ScenarioError: no such clock, or an engine whose profile has no published model.
        """
        if clock not in CLOCKS:
            raise ScenarioError(
                f"{self.name}: no clock {clock!r}; choose one of {', '.join(CLOCKS)}"
            )
        form = CLOCKS[clock]
        if form is None and self.clock == "measured":
            return self
        terms: tuple[StepTerms | SaturationTerms, ...] = self.measured_terms
        if form is not None:
            key = f"{self.name}@{clock}: engine"
            terms = tuple(
                saturation_terms(engine, form, f"{key} {engine.name!r}") for engine in self.engines
            )
        name = self.name
        for known in CLOCKS:
            name = name.removesuffix(f"@{known}")
        return dataclasses.replace(
            self, name=f"{name}@{clock}", clock=clock.partition("-")[0], terms=terms
        )

    def hash(self) -> str:
        """SHA-256 over everything that can change a result (not the prose), hexadecimal."""
        content = dataclasses.asdict(self)
        for idle in ("description", "rate_source", "measured_terms"):
            del content[idle]
        text = json.dumps(content, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a scenario cannot be hashed with a {type(value).__name__} in it")


def list_scenarios() -> list[str]:
    """Names of the scenarios that ship with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_scenario(name: str | Path) -> Scenario:
    """Read a scenario by its packaged name or by the path of a TOML file.

    A packaged name may be followed by `@` and one of `CLOCKS` (see `Scenario.with_clock`).

    Raises:
        ScenarioError: no such scenario, or a malformed file; one line
            `FILE: KEY: problem; cure` per mistake.
    """
    if isinstance(name, str) and not name.endswith(".toml") and "@" in name:
        base, _, clock = name.partition("@")
        return load_scenario(base).with_clock(clock)
    path = _locate(name)
    file = read_toml(path, ScenarioFile, ScenarioError)
    engines = [spec for group in file.engine for spec in _engines(group)]
    measured = _measured_terms(path, file)
    return Scenario(
        name=path.stem,
        description=file.description,
        clock=file.clock,
        engines=tuple(engines),
        terms=measured if file.clock == "measured" else _saturation_terms(path, file),
        measured_terms=measured,
        slos=tuple(SLO(**slo.model_dump()) for slo in file.slo),
        telemetry=TelemetrySpec(**file.telemetry.model_dump()),
        client=ClientSpec(**file.client.model_dump()),
        events=tuple(_event(event, file.engine_names()) for event in file.events),
        horizon_s=file.horizon_s,
        warmup_s=file.warmup_s,
        rate_rps=file.rate_rps,
        rate_source=file.rate_source,
        loads=file.loads,
        train_seeds=file.seeds.train,
        validation_seeds=file.seeds.validation,
        test_seeds=file.seeds.test,
        traffic=file.traffic.spec(),
    )


def _locate(name: str | Path) -> Path:
    if isinstance(name, Path) or name.endswith(".toml"):
        return Path(name)
    known = list_scenarios()
    if name not in known:
        guess = suggest(name, known)
        cure = f"did you mean {guess!r}?" if guess else f"packaged scenarios: {', '.join(known)}"
        raise ScenarioError(f"no scenario {name!r}; {cure} (or give the path of a .toml file)")
    return FOLDER / f"{name}.toml"


def _engines(group: EngineTable) -> list[EngineSpec]:
    shared = group.model_dump(exclude={"name", "count", "kv", "saturation"})
    return [EngineSpec(name=n, kv_blocks=group.kv.kv_blocks, **shared) for n in group.names()]


def _measured_terms(path: Path, file: ScenarioFile) -> tuple[StepTerms, ...]:
    terms: list[StepTerms] = []
    for index, group in enumerate(file.engine):
        key = f"{path}: engine[{index}]"
        source = group.profile
        local = path.parent / source if source.endswith(".toml") else source
        try:
            profile = load_profile(local)
        except ProfileError as cause:
            raise ScenarioError(f"{key}.profile: {cause}") from cause
        for name in ("gpu", "model"):
            have, want = getattr(group, name), getattr(profile, name)
            if have != want:
                raise ScenarioError(
                    f"{key}.{name}: is {have!r}, but profile {source!r} was measured on {want!r}; "
                    "make them agree"
                )
        terms += [profile.terms] * group.count
    return tuple(terms)


def _saturation_terms(path: Path, file: ScenarioFile) -> tuple[SaturationTerms, ...]:
    terms: list[SaturationTerms] = []
    for index, group in enumerate(file.engine):
        form = group.saturation or DEFAULT_FORM
        key = f"{path}: engine[{index}].saturation"
        terms += [saturation_terms(spec, form, key) for spec in _engines(group)]
    return tuple(terms)


def saturation_terms(spec: EngineSpec, form: Form, where: str) -> SaturationTerms:
    """The clock of an engine in the world of T(B,S), with its profile's published model.

    Raises:
        ScenarioError: no model of that form is published for the profile; begins with `where`.
    """
    model = published_model(spec.profile, form)
    if model is None:
        known = [other for other in FORMS if published_model(spec.profile, other)]
        cure = f"use {' or '.join(map(repr, known))}" if known else 'use clock = "measured"'
        raise ScenarioError(
            f"{where}: no {form!r} model is published for profile {spec.profile!r}; {cure}"
        )
    return SaturationTerms(
        model=model,
        max_sequences=spec.max_num_seqs,
        max_tokens=spec.max_num_batched_tokens,
    )


def _event(event: EventTable, names: list[str]) -> Event:
    return Event(
        at_s=event.at_s,
        kind=event.kind,
        engine=names.index(event.engine),
        factor=1.0 if event.factor is None else event.factor,
        blocks=event.blocks or 0,
    )


def windowed(scenario: Scenario, warmup_s: float | None, horizon_s: float | None) -> Scenario:
    """The scenario with another warm-up or horizon in seconds, where given.

    Arrivals stop at the horizon; those in [warm-up, horizon) are scored.

    Raises:
        ValueError: no finite number of seconds, no scored window is left, or the scenario has an
            event at the given horizon or after it.
    """
    given: dict[str, Any] = {}
    for name, value in (("warmup_s", warmup_s), ("horizon_s", horizon_s)):
        if value is not None:
            cure = f"None keeps the scenario's own {getattr(scenario, name):g} s"
            given[name] = checked_seconds(name, value, cure, zero=name == "warmup_s")
    changed = dataclasses.replace(scenario, **given) if given else scenario
    if not 0 <= changed.warmup_s < changed.horizon_s:
        raise ValueError(
            f"warm-up {changed.warmup_s} s and horizon {changed.horizon_s} s leave no scored "
            "window; choose 0 <= warm-up < horizon"
        )
    late = [event for event in scenario.events if event.at_s >= changed.horizon_s]
    if late and horizon_s is not None:
        raise ValueError(
            f"horizon_s={horizon_s} ends scenario {scenario.name!r} before its event "
            f"{late[0].kind!r} at {late[0].at_s:g} s; choose a horizon after its last event, at "
            f"{late[-1].at_s:g} s"
        )
    return changed


def checked_seconds(name: str, value: Any, cure: str, *, zero: bool = False) -> float:
    """`value` as a finite number of seconds above 0 (`zero`: or 0).

    Raises:
        ValueError: it is none; the message names the argument, the value and the cure.
    """
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if is_number and np.isfinite(value) and (value > 0 or (zero and value == 0)):
        return float(value)
    least = ">= 0" if zero else "> 0"
    raise ValueError(f"{name}={value!r} must be a finite number of seconds {least}; {cure}")


def stop_time_ns(workload: Workload, slos: Sequence[SLO], horizon_s: float) -> int:
    """The instant after which no request can meet its SLOs any more, in nanoseconds.

    A request's slack is its class's E2E limit, else TTFT + TPOT * (output - 1); without
    either the result is `NO_DEADLINE_NS`. Open loop: the latest arrival + slack. Closed loop
    (some `after >= 0`): horizon + largest slack, as arrivals are not known beforehand.
    """
    horizon_ns = round(horizon_s * NS_PER_S)
    slack = _slack_ns(workload, slos)
    if slack is None:
        return NO_DEADLINE_NS
    if len(slack) == 0:
        return horizon_ns
    if bool((workload.after >= 0).any()):
        return horizon_ns + int(slack.max())
    return int((workload.arrival_ns + slack).max())


def _slack_ns(workload: Workload, slos: Sequence[SLO]) -> IntArray | None:
    slack = np.zeros(len(workload), np.int64)
    for index in np.unique(workload.slo_class).tolist():
        slo, rows = slos[index], workload.slo_class == index
        if slo.e2e_s is not None:
            slack[rows] = round(slo.e2e_s * NS_PER_S)
        elif slo.ttft_s is not None and slo.tpot_s is not None:
            gaps = workload.output_tokens[rows] - 1
            slack[rows] = round(slo.ttft_s * NS_PER_S) + round(slo.tpot_s * NS_PER_S) * gaps
        else:
            return None
    return slack
