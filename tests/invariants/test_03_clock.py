"""Invariant 3: the clock never goes back, for anything that shows a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from synergy_gym.sim.points import DONE
from synergy_gym.types import EngineStateField, RouterRow, StepReport
from tests.strategies import SIMULATORS, Episode, episodes, play, with_points

# A float of seconds cannot tell neighbouring nanoseconds apart after some months only.
ROUNDING_S = 1e-9


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_now_never_goes_back(simulator: type, episode: Episode) -> None:
    """Neither from point to point, nor in completions, nor beyond the end of the episode."""
    last = {"now": 0, "completion": 0.0}

    def visit(sim: Any, point: int) -> None:
        assert sim.now_ns >= last["now"]
        last["now"] = sim.now_ns
        for completion in sim.completions():
            assert completion.now_s >= last["completion"]
            last["completion"] = completion.now_s
        assert point == DONE or sim.now_ns <= episode.arguments["stop_ns"]

    play(episode.build(simulator), episode.seed, visit)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_snapshots_never_get_older(simulator: type, episode: Episode) -> None:
    """The pushed and scraped states of an engine are from the past, and get newer only."""
    count = len(episode.engines)
    last = np.zeros((count, 2), np.int64)

    def visit(sim: Any, point: int) -> None:
        seen = sim.router_rows()[:, [RouterRow.PUSH_NS, RouterRow.SCRAPE_NS]]
        assert np.all(last <= seen)
        assert np.all(seen <= sim.now_ns)
        last[:] = seen

    play(episode.build(simulator), episode.seed, visit)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_iterations_do_not_overlap(simulator: type, episode: Episode) -> None:
    """An iteration starts after the one before it, lasts, and has ended when it is shown."""
    before: dict[int, StepReport] = {}

    def visit(sim: Any, point: int) -> None:
        for engine in range(len(episode.engines)):
            step, old = sim.last_step(engine), before.get(engine)
            if step is None or step == old:
                assert old is None or step == old
                continue
            assert step.step_s > 0
            assert step.start_s + step.step_s <= sim.now_ns / 1e9 + ROUNDING_S
            if old is not None:
                assert step.start_s >= old.start_s + old.step_s - ROUNDING_S
            before[engine] = step
            assert sim.engine_state(engine)[EngineStateField.NOW_NS] == sim.now_ns

    play(with_points(episode).build(simulator), episode.seed, visit)
