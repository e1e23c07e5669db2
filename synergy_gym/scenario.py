"""Scenarios: traffic, cluster, SLOs, horizon and seeds, read from strict TOML files.

>>> scenario = load_scenario("chat-h100")
>>> workload = scenario.workload(load=1.0, seed=scenario.test_seeds[0])
>>> load_scenario("chat-h100@saturation").clock
'saturation'
>>> load_scenario("season1/chat-h100").season
1
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from synergy_gym.latency.clock import LATER_TERMS, StepTerms
from synergy_gym.latency.clock_saturation import SaturationTerms
from synergy_gym.latency.clock_table import TableTerms, table_terms
from synergy_gym.latency.models.published import published_model
from synergy_gym.latency.models.saturation import FORMS, Form
from synergy_gym.latency.profiles import Loop, Profile, ProfileError, Sampling, load_profile
from synergy_gym.limits import ENDLESS_NS, MOST_S, SECONDS, check_number
from synergy_gym.scenario_schema import EngineTable, EventTable, ScenarioFile
from synergy_gym.seasons import FILES, SEASON, full_name, season_files, split_name
from synergy_gym.strict_toml import read_toml, suggest
from synergy_gym.types import NS_PER_S, SLO, ClientSpec, EngineSpec, Event, IntArray, TelemetrySpec
from synergy_gym.workload.base import Workload, check_classes
from synergy_gym.workload.spec import TrafficSpec
from synergy_gym.workload.traffic import build_workload

NO_DEADLINE_NS = ENDLESS_NS
"""`stop_time_ns` of traffic that some SLO class gives unlimited time."""


DEFAULT_FORM: Form = "stable"
"""The form of T(B,S) that the authors deployed; every engine that they published one for has it."""

CLOCKS: Mapping[str, Form | None] = MappingProxyType(
    {"measured": None, "async": None, "sync": None, "table": None, "saturation": DEFAULT_FORM,
     "saturation-six": "six", "saturation-eight": "eight"}
)  # fmt: skip
"""What `Scenario.with_clock` and `NAME@CLOCK` can say, with the form of T(B,S) it stands for.

`table-1`, `table-2`, ... are further draws of the residual field of `table`.
"""
Terms = StepTerms | SaturationTerms | TableTerms


@dataclass(frozen=True, slots=True)
class EngineClock:
    """What times an engine.

    Attributes:
        profile: of its GPU and model.
        loop: "async" or "sync"; None where the profile times whole measured steps, else vLLM's
            default.
        sampling: whether every sequence's logits are filtered.
    """

    profile: Profile
    loop: Loop | None
    sampling: Sampling

    def terms(self, loop: Loop | None = None) -> StepTerms:
        """The clock's terms, with another loop where the profile knows loops.

        Raises:
            ProfileError: the profile has no such variant.
        """
        chosen = (loop or self.loop) if self.profile.loops else self.loop
        return self.profile.timed(chosen, self.sampling)


class ScenarioError(ValueError):
    """A scenario file is missing or malformed; the message names file, key and cure."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """Everything that fixes an episode, except the policies and the seed.

    Attributes:
        name: the file's name without its ending, the same in every season.
        description: one sentence for people.
        clock: what times a step; "measured": the profiles' terms (`latency/clock.py`),
            "saturation": SynergySched's T(B,S) (`latency/clock_saturation.py`), "table":
            interpolated kernel tables (`latency/clock_table.py`).
        engines: the cluster, in index order.
        terms: the clock's coefficients, one per engine.
        measured_terms: the profiles' terms, one per engine, whatever the clock.
        engine_clocks: profile and variant of each engine; empty in a scenario made by hand.
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
        season: of which it is; its profiles are that season's.
    """

    name: str
    description: str
    clock: str
    engines: tuple[EngineSpec, ...]
    terms: tuple[Terms, ...]
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
    engine_clocks: tuple[EngineClock, ...] = ()
    season: int = SEASON

    @property
    def label(self) -> str:
        """What `load_scenario` takes: the name, after `season1/` for an archived scenario."""
        return full_name(self.name, self.season)

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
            clock: one of `CLOCKS`: "async" and "sync" are the loops of vLLM's engine, "table" is
                kernel tables with a drawn residual field, "saturation" T(B,S) in its stable form.

        Raises:
            ScenarioError: no such clock, or an engine whose profile does not have it, or for which
                no model is published.
        """
        kind = "table" if re.fullmatch(r"table-\d{1,3}", clock) else clock
        if kind not in CLOCKS:
            raise ScenarioError(
                f"{self.name}: no clock {clock!r}; choose one of {', '.join(CLOCKS)}"
            )
        if kind == "measured" and self.clock == "measured":
            return self
        try:
            terms = self._timed(kind, int(clock.partition("-")[2] or 0) if kind == "table" else 0)
        except ProfileError as cause:
            raise ScenarioError(f"{self.name}@{clock}: {cause}") from cause
        name = self.name.partition("@")[0]
        family = "measured" if kind in ("async", "sync") else kind.partition("-")[0]
        changes: dict[str, Any] = {"terms": terms}
        if kind in ("async", "sync"):
            changes["measured_terms"] = terms
        return dataclasses.replace(self, name=f"{name}@{clock}", clock=family, **changes)

    def _timed(self, kind: str, draw: int) -> tuple[Terms, ...]:
        form = CLOCKS[kind]
        if form is not None:
            key = f"{self.name}@{kind}: engine"
            return tuple(saturation_terms(e, form, f"{key} {e.name!r}") for e in self.engines)
        if kind == "measured":
            return self.measured_terms
        if not self.engine_clocks:
            raise ProfileError("the scenario was made by hand and names no profiles")
        if kind == "table":
            return tuple(
                table_terms(
                    clock.profile, clock.loop, e.max_num_seqs, e.max_num_batched_tokens, draw
                )
                for e, clock in zip(self.engines, self.engine_clocks, strict=True)
            )
        if not any(clock.profile.loops for clock in self.engine_clocks):
            raise ProfileError("its profiles time whole measured steps, whatever the loop")
        loop: Loop = "sync" if kind == "sync" else "async"
        return tuple(clock.terms(loop) for clock in self.engine_clocks)

    def hash(self) -> str:
        """SHA-256 over everything that can change a result (not the prose), hexadecimal."""
        content = dataclasses.asdict(self)
        for idle in ("description", "rate_source", "measured_terms", "engine_clocks", "season"):
            del content[idle]
        for terms in content["terms"]:
            for name, default in LATER_TERMS.items():
                if terms.get(name) == default:
                    del terms[name]
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


def list_scenarios(season: int = SEASON) -> list[str]:
    """Names of the scenarios that ship with the package for a season, sorted."""
    return sorted(path.stem for path in season_files(season).scenarios.glob("*.toml"))


def load_scenario(name: str | Path, season: int = SEASON) -> Scenario:
    """Read a scenario by its packaged name or by the path of a TOML file.

    A packaged name may follow its season (`season1/NAME`), and may be followed by `@` and one of
    `CLOCKS` (see `Scenario.with_clock`).

    Args:
        name: a name of `list_scenarios(season)`, or a path.
        season: of a name that says none, and of the profiles that a file elsewhere names.

    Raises:
        ScenarioError: no such scenario, or a malformed file; one line
            `FILE: KEY: problem; cure` per mistake.
    """
    if isinstance(name, str) and not name.endswith(".toml") and "@" in name:
        base, _, clock = name.partition("@")
        return load_scenario(base, season).with_clock(clock)
    path, season = _locate(name, season)
    file = read_toml(path, ScenarioFile, ScenarioError)
    engines = [spec for group in file.engine for spec in _engines(group)]
    clocks = _engine_clocks(path, file, season)
    measured = tuple(clock.terms() for clock in clocks)
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
        engine_clocks=clocks,
        season=season,
    )


def _locate(name: str | Path, season: int) -> tuple[Path, int]:
    """The file, and the season that it is of."""
    if isinstance(name, Path) or name.endswith(".toml"):
        homes = {files.scenarios: number for number, files in FILES.items()}
        return Path(name), homes.get(Path(name).resolve().parent, season)
    season, plain = split_name(name, season)
    if season not in FILES:
        seasons = ", ".join(map(str, FILES))
        raise ScenarioError(f"scenario {name!r}: no season {season}; choose one of {seasons}")
    known = list_scenarios(season)
    if plain not in known:
        cure = _cure(plain, season, known)
        raise ScenarioError(f"no scenario {name!r}; {cure} (or give the path of a .toml file)")
    return season_files(season).scenarios / f"{plain}.toml", season


def _cure(name: str, season: int, known: list[str]) -> str:
    """What to write instead of a name that a season does not have."""
    other = next((number for number in FILES if name in list_scenarios(number)), None)
    if other is not None:
        return f"season {other} has {full_name(name, other)!r}"
    guess = suggest(name, known)
    if guess:
        return f"did you mean {full_name(guess, season)!r}?"
    return f"packaged scenarios: {', '.join(full_name(one, season) for one in known)}"


def _engines(group: EngineTable) -> list[EngineSpec]:
    own = {"name", "count", "kv", "saturation", "async_scheduling", "sampling"}
    shared = group.model_dump(exclude=own)
    return [EngineSpec(name=n, kv_blocks=group.kv.kv_blocks, **shared) for n in group.names()]


def _engine_clocks(path: Path, file: ScenarioFile, season: int) -> tuple[EngineClock, ...]:
    clocks: list[EngineClock] = []
    for index, group in enumerate(file.engine):
        key = f"{path}: engine[{index}]"
        source = group.profile
        local = path.parent / source if source.endswith(".toml") else source
        try:
            clock = EngineClock(load_profile(local, season), _loop(group), group.sampling)
            clock.terms()
        except ProfileError as cause:
            raise ScenarioError(f"{key}.profile: {cause}") from cause
        for name in ("gpu", "model"):
            have, want = getattr(group, name), getattr(clock.profile, name)
            if have != want:
                raise ScenarioError(
                    f"{key}.{name}: is {have!r}, but profile {source!r} was measured on {want!r}; "
                    "make them agree"
                )
        clocks += [clock] * group.count
    return tuple(clocks)


def _loop(group: EngineTable) -> Loop | None:
    """The loop that a scenario names; None where it says nothing."""
    if group.async_scheduling is None:
        return None
    return "async" if group.async_scheduling else "sync"


def _saturation_terms(path: Path, file: ScenarioFile) -> tuple[SaturationTerms, ...]:
    terms: list[SaturationTerms] = []
    for index, group in enumerate(file.engine):
        form = group.saturation or DEFAULT_FORM
        key = f"{path}: engine[{index}].saturation"
        terms += [saturation_terms(spec, form, key) for spec in _engines(group)]
    return tuple(terms)


def saturation_terms(spec: EngineSpec, form: Form, where: str) -> SaturationTerms:
    """The clock of an engine in the world of T(B,S): the model published for its GPU and model.

    Raises:
        ScenarioError: no model of that form is published for it; begins with `where`.
    """
    model = published_model(spec.gpu, spec.model, form)
    if model is None:
        known = [other for other in FORMS if published_model(spec.gpu, spec.model, other)]
        cure = f"use {' or '.join(map(repr, known))}" if known else 'use clock = "measured"'
        raise ScenarioError(
            f"{where}: no {form!r} model is published for {spec.model} on {spec.gpu}; {cure}"
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
            check_number(name, given[name], 0, MOST_S, SECONDS)
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
        return min(horizon_ns + int(slack.max()), NO_DEADLINE_NS)
    return min(int((workload.arrival_ns + slack).max()), NO_DEADLINE_NS)


def _slack_ns(workload: Workload, slos: Sequence[SLO]) -> IntArray | None:
    check_classes(workload, len(slos))
    slack = np.zeros(len(workload), np.int64)
    for index in np.unique(workload.slo_class).tolist():
        slo, rows = slos[index], workload.slo_class == index
        if slo.e2e_s is not None:
            slack[rows] = round(slo.e2e_s * NS_PER_S)
        elif slo.ttft_s is not None and slo.tpot_s is not None:
            tpot_ns = round(slo.tpot_s * NS_PER_S)
            most = NO_DEADLINE_NS // max(tpot_ns, 1)  # above it the product could leave int64
            gaps = np.minimum(workload.output_tokens[rows] - 1, most)
            slack[rows] = round(slo.ttft_s * NS_PER_S) + tpot_ns * gaps
        else:
            return None
    return slack
