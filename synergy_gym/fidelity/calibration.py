"""Calibrating a scenario's engines: a grid, played episodes, and a reference step throughout.

Played episodes explore (`recording.Explorer`) under the scenario's own traffic, with seeds
that no comparison uses; one part is fitted together with the grid, another judges the fit.
Reference steps tell how fast the machine was at each moment: their spread is contention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.fidelity.grid import measure_grid, warm_up
from synergy_gym.fidelity.meter import Reference, ReferenceStep, StepMeter
from synergy_gym.fidelity.recorder import Explorer, RecordedStep, Recorder, StepLog
from synergy_gym.latency.clock import StepTerms
from synergy_gym.latency.fitting import FitQuality, StepColumns, best_terms, quality, with_noise
from synergy_gym.live.backend import LiveOptions
from synergy_gym.scenario import Scenario
from synergy_gym.types import EngineSpec, FloatArray, StepReport

Progress = Callable[[str], None]
PROBE_EVERY = 8
"""Steps between two reference steps."""
GRID, PLAYED, HELD_OUT = "grid", "played", "held-out"
LOADS = (0.5, 1.3)
"""Played episodes offer a random load between these."""
SPEED_WINDOW = 40
"""Reference samples whose mean is the machine's speed at one moment."""
WARM_UP_STEPS = 80
"""Reference steps before anything counts."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step of a calibration.

    Attributes:
        kind: `GRID`, `PLAYED` or `HELD_OUT`.
        engine: the name of the engine's scenario entry.
        at_s: when it was measured, seconds since the Unix epoch.
        report: what was scheduled and how long it took.
    """

    kind: str
    engine: str
    at_s: float
    report: StepReport


@dataclass(slots=True)
class Measured:
    """Everything that a calibration has measured so far.

    `reference` holds the reference steps (`meter.Reference.samples`).
    """

    samples: list[Sample] = field(default_factory=list)
    reference: list[ReferenceStep] = field(default_factory=list)

    def extend(self, other: Measured) -> None:
        """Take in what another slice has measured."""
        self.samples += other.samples
        self.reference += other.reference


class Calibrator:
    """The engines of a scenario under measurement; a context manager.

    Args:
        scenario: engines and traffic; its own clock is not used.
        options: model, clock ("cpu" or "wall") and how engines are started.
        seed: of order, loads and prompts.
    """

    def __init__(self, scenario: Scenario, options: LiveOptions, seed: int = 0) -> None:
        self.scenario = scenario
        self.options = options
        self.rng = np.random.default_rng(seed)
        self._stack = ExitStack()
        self._reference: Reference | None = None
        self._blocks: dict[str, int] = {}
        self._software: dict[str, Any] = {}

    def __enter__(self) -> Calibrator:
        meter = StepMeter(self.scenario.engines[0], self.options)
        self._reference = Reference(self._stack.enter_context(meter))
        self._software = meter.software()
        for spec in self.scenario.engines:
            with StepMeter(spec, self.options) as meter:
                self._blocks[spec.name] = meter.kv_blocks
                warm_up(meter)
        for _ in range(WARM_UP_STEPS):
            self._reference.sample()
        self._reference.samples.clear()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def specs(self) -> tuple[EngineSpec, ...]:
        """The engines, with their KV blocks as vLLM has them."""
        return tuple(replace(s, kv_blocks=self._blocks[s.name]) for s in self.scenario.engines)

    def software(self) -> dict[str, Any]:
        """vLLM's release and the device."""  # noqa: D403
        return dict(self._software)

    def probe(self) -> tuple[float, int]:
        """One reference step; its duration in ms on the calibrated clock, and its kind."""
        assert self._reference is not None, "use the calibrator in a `with` statement"
        step = self._reference.sample()
        return step.ms, step.kind

    def take_reference(self) -> list[ReferenceStep]:
        """The reference steps since the last call (`meter.Reference.samples`)."""
        assert self._reference is not None, "use the calibrator in a `with` statement"
        taken = list(self._reference.samples)
        self._reference.samples.clear()
        return taken

    def grid(self, share: float = 1.0) -> Measured:
        """Play a share of the grid on every engine."""
        found = Measured()
        for spec in self.scenario.engines:
            with StepMeter(spec, self.options, seed=int(self.rng.integers(2**31))) as meter:
                for number, step in enumerate(measure_grid(meter, self.rng, share)):
                    found.samples.append(Sample(GRID, spec.name, step.at_s, step.report))
                    if number % PROBE_EVERY == 0:
                        self.probe()
        found.reference = self.take_reference()
        return found

    def played(self, kind: str, seed: int, horizon_s: float) -> Measured:
        """Play one exploring episode.

        Args:
            kind: `PLAYED` or `HELD_OUT`.
            seed: of its traffic.
            horizon_s: end of its arrivals, seconds of virtual time.
        """
        log = StepLog(self.probe, PROBE_EVERY)
        evaluate(
            self.scenario,
            Explorer(),
            "random",
            float(self.rng.uniform(*LOADS)),
            seed,
            horizon_s=horizon_s,
            warmup_s=0.0,
            record_itl=False,
            observers=[Recorder(log)],
            backend="vllm",
            live=self.options,
        )
        samples = [Sample(kind, s.engine, s.at_s, s.report) for s in log.steps if s.report.tokens]
        return Measured(samples, self.take_reference())


@dataclass(frozen=True, slots=True, eq=False)
class Speed:
    """How much slower than on average the machine was at each moment of a calibration.

    Args:
        at_s: times in order, seconds since the Unix epoch.
        factor: above 1 where steps took longer; about 1 on average.
    """

    at_s: FloatArray
    factor: FloatArray

    @classmethod
    def of(cls, reference: Sequence[ReferenceStep]) -> Speed:
        """From reference steps, by running means.

        Raises:
            ValueError: there are none.
        """
        if not reference:
            raise ValueError("no reference steps; a calibration measures some throughout")
        ordered, means = sorted(reference), kind_means(reference)
        slow = np.array([step.ms / means[step.kind] for step in ordered])
        return cls(np.array([step.at_s for step in ordered]), running_mean(slow, SPEED_WINDOW))

    def at(self, times_s: Iterable[float]) -> FloatArray:
        """The factor at given times."""
        return np.asarray(np.interp(np.fromiter(times_s, float), self.at_s, self.factor))


def kind_means(reference: Sequence[ReferenceStep]) -> dict[int, float]:
    """Mean duration in ms of each kind of reference step."""
    kinds = {step.kind for step in reference}
    return {k: float(np.mean([s.ms for s in reference if s.kind == k])) for k in kinds}


def contention(reference: Sequence[ReferenceStep]) -> tuple[float, float]:
    """p90 over p10 of equal reference steps (mean of both kinds), and wall over clock time."""
    spreads = []
    for kind in {step.kind for step in reference}:
        low, high = np.percentile([s.ms for s in reference if s.kind == kind], [10, 90])
        spreads.append(high / low)
    waited = sum(s.wall_ms for s in reference) / sum(s.ms for s in reference)
    return float(np.mean(spreads)), waited


def running_mean(values: FloatArray, window: int) -> FloatArray:
    """Mean of the `window` values around each one (fewer at the ends)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - window // 2, 0)
    high = np.minimum(low + window, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The fitted clock of one engine and how far it can be trusted.

    Attributes:
        engine: its scenario entry, with its KV blocks as vLLM has them.
        clock: "cpu" or "wall".
        terms: the clock; its mean is that of the machine while it was calibrated.
        fitted: quality on the steps of the fit.
        held_out: quality on episodes that were not fitted, each step as it was.
        held_out_steady: the same with each step divided by the machine's speed at its moment.
        contention: 90th over 10th percentile of the reference steps.
        wall_over_clock: wall over calibrated time of the reference steps; above 1: waited.
    """

    engine: EngineSpec
    clock: str
    terms: StepTerms
    fitted: FitQuality
    held_out: FitQuality
    held_out_steady: FitQuality
    contention: float
    wall_over_clock: float


def fit(measured: Measured, spec: EngineSpec, clock: str) -> Calibration:
    """Fit the clock of one engine.

    Terms come from the steps of the machine's quieter half, scale and noise from all played ones.

    Args:
        measured: all slices.
        spec: the engine.
        clock: "cpu" or "wall".

    Raises:
        ValueError: too few steps.
    """
    speed = Speed.of(measured.reference)
    mine = [s for s in measured.samples if s.engine == spec.name]
    train = [s for s in mine if s.kind != HELD_OUT]
    slow = speed.at(s.at_s for s in train)
    limit = np.median(slow)
    quiet = [s for s, factor in zip(train, slow, strict=True) if factor <= limit]
    played = np.array([s.kind == PLAYED for s in quiet], float)
    crossings = tuple(range(0, min(129, spec.max_num_batched_tokens), 8))
    fitted = best_terms(steady(quiet, speed), crossings, _mixed(played))
    steps = steady([s for s in train if s.kind == PLAYED] or train, speed)
    terms = with_noise(fitted, steps)
    held_out = [s for s in mine if s.kind == HELD_OUT] or train
    spread, waited = contention(measured.reference)
    return Calibration(
        engine=spec,
        clock=clock,
        terms=terms,
        fitted=quality(terms, steps),
        held_out=quality(terms, StepColumns.of([s.report for s in held_out])),
        held_out_steady=quality(terms, steady(held_out, speed)),
        contention=spread,
        wall_over_clock=waited,
    )


def _mixed(played: FloatArray) -> FloatArray | None:
    """The surcharge of played steps, where there are others to compare them with."""
    return played if 0 < played.sum() < len(played) else None


def steady(samples: Sequence[Sample | RecordedStep], speed: Speed) -> StepColumns:
    """Steps as they would have been on a machine of constant speed."""
    steps = StepColumns.of([s.report for s in samples])
    factor = speed.at(s.at_s for s in samples)
    return replace(steps, step_ms=steps.step_ms / factor)


def calibrate_scenario(
    scenario: Scenario,
    options: LiveOptions,
    *,
    rounds: int = 3,
    horizon_s: float = 4.0,
    measure_kv: bool = False,
    progress: Progress | None = None,
) -> tuple[tuple[Calibration, ...], dict[str, Any]]:
    """Calibrate every engine of a scenario, in one go.

    Args:
        scenario: engines and traffic.
        options: model, clock and how engines are started.
        rounds: times that grid, fitted and held-out episodes are played.
        horizon_s: length of each episode, seconds of virtual time.
        measure_kv: take the KV blocks that vLLM finds room for instead of the scenario's.
        progress: called with one line per part.

    Returns:
        One calibration per engine, and vLLM's release and device.
    """
    if measure_kv:
        scenario, options = with_measured_kv(scenario, options)
    measured = Measured()
    with Calibrator(scenario, options) as calibrator:
        for part in slices(calibrator, rounds, horizon_s, progress):
            measured.extend(part)
        specs, software = calibrator.specs, calibrator.software()
    return tuple(fit(measured, spec, options.clock) for spec in specs), software


def slices(
    calibrator: Calibrator, rounds: int, horizon_s: float, progress: Progress | None = None
) -> Iterator[Measured]:
    """Grid, fitted and held-out episode, `rounds` times."""
    seeds = calibrator.scenario.train_seeds
    for number in range(rounds):
        if progress is not None:
            progress(f"calibration round {number + 1} of {rounds}")
        yield calibrator.grid()
        for offset, kind in enumerate((PLAYED, HELD_OUT)):
            seed = seeds[(2 * number + offset) % len(seeds)]
            yield calibrator.played(kind, seed, horizon_s)


MEASURE_KV: Mapping[str, None] = MappingProxyType(
    {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": None}
)
"""Arguments of vLLM that leave the size of the KV cache to it; own ones go before them."""


def with_measured_kv(scenario: Scenario, options: LiveOptions) -> tuple[Scenario, LiveOptions]:
    """The scenario with as many KV blocks as vLLM finds room for on this device."""
    free = replace(options, engine_args={**MEASURE_KV, **options.engine_args})
    specs = []
    for spec in scenario.engines:
        with StepMeter(spec, free) as meter:
            specs.append(replace(spec, kv_blocks=meter.kv_blocks))
    return replace(scenario, engines=tuple(specs)), options
