"""A real engine in this process, driven by hand and measured step by step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from synergy_gym.live.backend import LiveOptions
from synergy_gym.live.hosting.steering import Note
from synergy_gym.live.inprocess.machine import Timer
from synergy_gym.live.inprocess.machines import engine_house
from synergy_gym.live.vllm.tiny_model import SPECIAL_TOKENS
from synergy_gym.types import BatchDecision, EngineSpec, StepReport

NS_PER_MS = 1e6
TIMERS: Mapping[str, Timer] = MappingProxyType(
    {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
)
"""What can be measured: elapsed time, and processor time of this process (all its threads)."""


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step of a real engine.

    Attributes:
        cell: steps that were meant to be equal share it.
        at_s: when it ended, seconds since the Unix epoch.
        report: what was scheduled, and how long it took on the clock that is calibrated.
        wall_ms: its duration on the wall clock, what is noted down meanwhile included.
    """

    cell: str
    at_s: float
    report: StepReport
    wall_ms: float


class StepMeter:
    """One engine of the `EngineHouse`, fed with requests of given lengths; a context manager.

    Args:
        spec: the engine's limits.
        options: model and clock ("wall" or "cpu").
        seed: of the prompts' token ids.

    Raises:
        ValueError: the clock does not measure.
        VllmUnavailableError: vLLM is absent, broken or of another release.
    """

    def __init__(self, spec: EngineSpec, options: LiveOptions, seed: int = 0) -> None:
        if options.clock not in TIMERS:
            raise ValueError(
                f"clock={options.clock!r} does not measure; calibrate with {' or '.join(TIMERS)}"
            )
        self.spec = spec
        self._timer = TIMERS[options.clock]
        self._rng = np.random.default_rng(seed)
        self._count = 0
        house = engine_house()
        (self._machine,) = house.lease([house.configuration(spec, options)])
        pool = self._machine.scheduler.kv_cache_manager.block_pool
        self.kv_blocks = int(pool.num_gpu_blocks) - 1
        """KV blocks as the engine has them, without vLLM's null block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.reset()
        engine_house().give_back([self._machine])

    def add(self, prompt_tokens: int, output_tokens: int) -> None:
        """Queue a request whose prompt no other shares."""
        self._count += 1
        top = self._machine.vocabulary
        ids = self._rng.integers(SPECIAL_TOKENS, top, prompt_tokens + output_tokens).tolist()
        name = f"calibration-{self._count}"
        identity = self._machine.add(name, ids, output_tokens, 0, float(self._count))
        self._machine.steering.notes[identity] = Note(0)

    def step(self, cell: str, token_budget: int = 0) -> MeasuredStep:
        """Run and measure one step; a budget of 0 stands for the engine's own limit."""
        decision = BatchDecision(token_budget or self.spec.max_num_batched_tokens)
        wall = time.perf_counter_ns()
        ran = self._machine.step(decision, 0, self._timer)
        wall = time.perf_counter_ns() - wall
        self._machine.settle()
        for name in ran.finished:
            self._machine.steering.notes.pop(name, None)
        report = ran.scheduled.report(0, ran.elapsed_ns, len(ran.finished))
        return MeasuredStep(cell, time.time(), report, wall / NS_PER_MS)

    @property
    def unfinished(self) -> int:
        """Requests that run or wait."""
        return len(self._machine.scheduler.requests)

    @property
    def prefills_left(self) -> bool:
        """Whether some request has not computed its prompt."""
        requests = self._machine.scheduler.requests.values()
        return any(r.num_computed_tokens < r.num_prompt_tokens for r in requests)

    def software(self) -> dict[str, Any]:
        """vLLM's release and the device."""  # noqa: D403 - its name
        return self._machine.software()

    def reset(self) -> None:
        """Drop all requests and the prefix cache."""
        self._machine.reset()
        self._machine.steering.notes.clear()


class ReferenceStep(NamedTuple):
    """One step of a `Reference`.

    Attributes:
        at_s: its end, seconds since the Unix epoch.
        ms: its duration on the calibrated clock.
        wall_ms: its duration on the wall clock.
        kind: 0 with the short prompt, 1 with the long one.
    """

    at_s: float
    ms: float
    wall_ms: float
    kind: int


class Reference:
    """The same few steps again and again: what their time does is the machine's doing.

    Some decodes share a step with a short and with a long prompt in turn: other load on the
    machine slows large steps more than small ones. Each runs alone between steps of others, with
    caches as cold as theirs.

    Args:
        meter: an engine that nobody else uses meanwhile.

    Attributes:
        samples: one per step.
    """

    def __init__(self, meter: StepMeter) -> None:
        spec = meter.spec
        self._meter = meter
        self._decodes = min(8, max(spec.max_num_seqs - 1, 0))
        self._context = spec.max_model_len // 8
        self._output = min(64, spec.max_model_len // 4)
        room = min(spec.max_num_batched_tokens - self._decodes, spec.max_model_len - 1)
        self._prompts = (min(32, room), min(256, room))
        self._left, self._kind = 0, 1
        self.samples: list[ReferenceStep] = []

    def sample(self) -> ReferenceStep:
        """Run and keep one step."""
        if self._left < 1:
            self._refill()
        self._kind = 1 - self._kind
        self._meter.add(self._prompts[self._kind], 1)
        self._left -= 1
        step = self._meter.step("reference")
        ms = 1e3 * step.report.step_s
        self.samples.append(ReferenceStep(step.at_s, ms, step.wall_ms, self._kind))
        return self.samples[-1]

    def _refill(self) -> None:
        self._meter.reset()
        for _ in range(self._decodes):
            self._meter.add(self._context, self._output)
        while self._meter.prefills_left:
            self._meter.step("fill")
        self._left = self._output - 6
