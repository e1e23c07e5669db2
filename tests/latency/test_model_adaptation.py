"""What the adaptation experiment computes from a stream of errors, and its recorded streams."""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import numpy as np
import pytest

from synergy_gym.latency.models.online import ContextAwareModel, StepFeatures


@pytest.fixture
def experiment() -> ModuleType:
    return importlib.import_module("experiments.step_time.model_adaptation")


@pytest.fixture
def streams() -> ModuleType:
    return importlib.import_module("experiments.step_time.step_streams")


def test_steps_until_the_next_window_is_good(experiment: ModuleType) -> None:
    errors = np.concatenate([np.full(100, 0.5), np.full(100, 0.04)])
    row = experiment.adaptation(errors)
    # 49 good steps and one of 0.5 have a mean of 0.049; two of 0.5 are too many.
    assert row["steps"] == 99
    assert row["first_window_mape"] == pytest.approx(50)
    assert row["final_mape"] == pytest.approx(27)
    assert row["share_within"] == pytest.approx(52 / 151)


def test_never_good_is_nan(experiment: ModuleType) -> None:
    row = experiment.adaptation(np.full(200, 0.06))
    assert math.isnan(row["steps"])
    assert row["share_within"] == 0


def test_scores_tell_decodes_from_mixed_steps(experiment: ModuleType) -> None:
    measured = np.array([10.0, 12.0, 50.0, 100.0])
    predicted = np.array([11.0, 12.0, 50.0, 90.0])
    row = experiment.score(measured, predicted, np.array([True, True, False, False]))
    assert (row["mape_percent"], row["mape_decode"], row["mape_mixed"]) == (5.0, 5.0, 5.0)
    assert row["r2_decode"] == pytest.approx(1 - 1 / 2)
    assert row["r2_mixed"] == pytest.approx(1 - 100 / 1250)


def test_streams_join_in_time(streams: ModuleType) -> None:
    step = StepFeatures(1, 1, 10, 0, 0, 1)
    first = streams.Stream((step, step), np.array([500.0, 500.0]), np.array([0.5, 1.0]))
    both = first.then(first)
    assert both.end_s.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert len(both) == 4
    assert both.index_at(1.0) == 2
    assert both.table.tolist()[0] == [1, 1, 10, 0, 0, 1]
    assert both.decode_only.all()


def test_a_recorded_stream_is_the_engines_own(streams: ModuleType, seed: int) -> None:
    """Every step is there once, timed by the clock; throttling shows from its time on."""
    world = streams.single_engine("smoke", 20.0, slow_at_s=10.0)
    stream = streams.record(world, 0.8, seed % 1000)
    again = streams.record(world, 0.8, seed % 1000)
    assert stream.steps == again.steps
    assert np.array_equal(stream.ms, again.ms)
    starts = stream.end_s - stream.ms / 1e3
    assert np.all(starts[1:] >= stream.end_s[:-1] - 1e-9)
    assert 10 < stream.end_s[-1] <= 20
    model = ContextAwareModel()
    change = stream.index_at(10.5)
    streams.replay(model, stream)
    later = streams.predict(model, stream)[change:]
    assert np.median(stream.ms[change:] / later) == pytest.approx(1, abs=0.1)
    early = streams.predict(model, stream)[: stream.index_at(9.5)]
    assert np.median(stream.ms[: len(early)] / early) == pytest.approx(0.7, abs=0.1)
