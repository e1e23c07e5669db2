"""Step streams: the steps of an engine, simulated or measured, to be replayed into models.

`record` plays a scenario's first engine alone, with its share of the traffic, under `vllm-v1`, and
keeps what the engine reports after each step. Replaying such a stream into a model costs
microseconds per step, so many models meet exactly the same world.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from synergy_gym.latency.models.online import StepFeatures, StepModel
from synergy_gym.policies.engine.vllm_v1 import VllmV1
from synergy_gym.policies.registry import make_router_policy
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.seats import play_policies
from synergy_gym.sim.build import build_simulator
from synergy_gym.types import Event, FloatArray, StepReport

GPU_THROTTLED = 1 / 0.7
"""Factor of step times on a GPU that lost 30 % of its speed."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Steps in the order in which they ended.

    Attributes:
        steps: their features.
        ms: their durations.
        end_s: when they ended.
    """

    steps: tuple[StepFeatures, ...]
    ms: FloatArray
    end_s: FloatArray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def table(self) -> FloatArray:
        """One row per step, the columns of `StepFeatures`."""
        return np.array([[getattr(s, n) for n in StepFeatures.__slots__] for s in self.steps])

    @property
    def decode_only(self) -> np.ndarray:
        """Which steps hold no prefill."""
        return np.array([step.tokens == step.decodes for step in self.steps])

    def then(self, other: Stream) -> Stream:
        """This stream, and the other one beginning where it ends."""
        end_s = np.concatenate([self.end_s, self.end_s[-1] + other.end_s])
        return Stream(self.steps + other.steps, np.concatenate([self.ms, other.ms]), end_s)

    def index_at(self, seconds: float) -> int:
        """The first step that ended after `seconds`."""
        return int(np.searchsorted(self.end_s, seconds, side="right"))


class _Recorder(VllmV1):
    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def observe(self, step: StepReport) -> None:
        self.reports.append(step)

    def rule(self) -> None:
        """Compiled decisions would not be reported one by one."""


def single_engine(name: str, horizon_s: float, slow_at_s: float | None = None) -> Scenario:
    """The first engine of a scenario with its share of the traffic; it may lose 30 % of its speed.

    Args:
        name: a packaged scenario.
        horizon_s: end of the arrivals.
        slow_at_s: when its GPU is throttled.
    """
    world = load_scenario(name)
    events = () if slow_at_s is None else (Event(slow_at_s, "slowdown", 0, GPU_THROTTLED),)
    return replace(
        world,
        engines=world.engines[:1],
        terms=world.terms[:1],
        rate_rps=world.rate_rps / len(world.engines),
        horizon_s=horizon_s,
        warmup_s=0.0,
        events=events,
    )


def record(world: Scenario, load: float, seed: int) -> Stream:
    """The steps that end before the horizon of a single-engine scenario under `vllm-v1`."""
    sim = build_simulator(world, load=load, seed=seed, auto_route=True)
    recorder, rng = _Recorder(), np.random.default_rng(0)
    recorder.reset(rng, world.engines[0], world.slos)
    play_policies(sim, [recorder], make_router_policy("round-robin"), rng)
    return _stream(r for r in recorder.reports if r.start_s + r.step_s <= world.horizon_s)


def _stream(reports: Iterable[StepReport]) -> Stream:
    kept = [report for report in reports if report.tokens > 0]
    return Stream(
        tuple(StepFeatures.of(report) for report in kept),
        np.array([report.step_s * 1e3 for report in kept]),
        np.array([report.start_s + report.step_s for report in kept]),
    )


def measured_stream(rows: pd.DataFrame) -> Stream:
    """Rows of `measurements/profiling_steps.csv`; their times of day are unknown."""
    columns = (
        "batch_size",
        "scheduled_tokens",
        "computed_tokens_decode",
        "prefill_attn_pairs",
        "computed_tokens_prefill",
        "n_decode",
    )
    steps = tuple(StepFeatures(*map(int, row)) for row in rows[list(columns)].to_numpy())
    ms = rows.model_run_ms.to_numpy(float)
    return Stream(steps, ms, np.cumsum(ms) / 1e3)


def replay(model: StepModel, stream: Stream) -> FloatArray:
    """Let a model live through the stream; each step in ms as it was predicted beforehand."""
    predicted = np.empty(len(stream))
    rows = zip(stream.steps, stream.ms.tolist(), stream.end_s.tolist(), strict=True)
    for number, (step, ms, end_s) in enumerate(rows):
        predicted[number] = model.predict_ms(step)
        model.observe(step, ms, end_s)
    return predicted


def predict(model: StepModel, stream: Stream) -> FloatArray:
    """The stream's steps in ms as the model predicts them now, without learning."""
    return np.array([model.predict_ms(step) for step in stream.steps])
