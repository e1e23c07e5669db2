"""One in-process engine: reset, refused configurations, side effects, measured time."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.live.backend import LiveEpisode, LiveOptions, build_live
from synergy_gym.live.inprocess.engine import LiveSimulator
from synergy_gym.live.inprocess.machine import Machine
from synergy_gym.live.inprocess.machine_config import MachineConfig
from synergy_gym.live.inprocess.machines import EngineHouse, engine_house
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.types import BatchDecision
from tests.strategies import spec

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).resolve().parents[2]
SMALL = spec(block_size=32, kv_blocks=12, max_model_len=256, max_num_batched_tokens=64)


@pytest.fixture
def machine(vllm: Any) -> Iterator[Machine]:
    """A small engine for one test."""
    house = engine_house()
    machines = house.lease([house.configuration(SMALL, LiveOptions())])
    machines[0].reset()
    yield machines[0]
    house.give_back(machines)


@pytest.fixture
def scenario() -> Scenario:
    """A scenario that a CPU can serve."""
    return load_scenario("live-chat")


def live(scenario: Scenario, **options: Any) -> LiveSimulator:
    episode = LiveEpisode(
        scenario=scenario, options=LiveOptions(**options), load=3.0, seed=5, auto_route=True
    )
    simulator: LiveSimulator = build_live(episode)
    return simulator


def go_on(simulator: Any, steps: int, budget: int = 512) -> None:
    for _ in range(steps):
        assert simulator.advance() == BATCH
        simulator.batch(BatchDecision(budget))


def fill(machine: Machine, steps: int) -> None:
    for number in range(4):
        machine.add(f"{number:03d}", list(range(10 + number, 110 + number)), 20, 0, float(number))
    for step in range(steps):
        machine.step(BatchDecision(64), step, None)
        machine.settle()


def test_reset_in_the_middle_leaves_nothing(machine: Machine) -> None:
    fill(machine, 2)
    machine.lose_free_blocks(1)
    assert machine.free_blocks() < SMALL.kv_blocks
    machine.reset()
    assert machine.queues() == ([], [])
    assert machine.free_blocks() == SMALL.kv_blocks
    assert machine.lost_blocks == 0
    assert not machine.scheduler.has_requests()


def test_reset_in_the_middle_of_a_step_frees_what_had_finished(machine: Machine) -> None:
    machine.add("000", [5] * 10, 1, 0, 0.0)
    step = machine.step(BatchDecision(64), 0, None)
    assert step.finished == step.emitted == step.running
    assert machine.free_blocks() == SMALL.kv_blocks - 1, "its block is held until the step ends"
    machine.reset()
    assert machine.free_blocks() == SMALL.kv_blocks


def test_the_workloads_tokens_take_the_place_of_the_models(machine: Machine) -> None:
    tokens = [100, 101, 102, 500, 501, 502, 503]
    name = machine.add("000", tokens, 4, 0, 0.0)
    request = machine.scheduler.requests[name]
    for step in range(4):
        machine.step(BatchDecision(64), step, None)
        machine.settle()
    assert list(request.all_token_ids) == tokens


def test_episodes_share_an_engine_and_two_at_once_do_not(vllm: Any, scenario: Scenario) -> None:
    first = live(scenario)
    go_on(first, 3)
    started = engine_house().started
    second = live(scenario)
    assert engine_house().started <= started + 1
    assert first._live[0].machine is not second._live[0].machine
    go_on(first, 3)
    first.close()
    third = live(scenario)
    assert third._live[0].machine is first._live[0].machine
    second.close()
    third.close()
    started = engine_house().started
    live(scenario).close()
    assert engine_house().started == started


def test_a_forgotten_episode_gives_its_engines_back(vllm: Any, scenario: Scenario) -> None:
    machine = live(scenario)._live[0].machine
    again = live(scenario)
    assert again._live[0].machine is machine
    again.close()


def test_a_closed_episode_keeps_its_results_and_goes_no_further(
    vllm: Any, scenario: Scenario
) -> None:
    simulator = live(scenario)
    go_on(simulator, 20)
    state, free = simulator.engine_state(0).tolist(), simulator._live[0].pool.free
    simulator.close()
    simulator.close()
    other = live(scenario)
    go_on(other, 5)
    other.close()
    assert simulator.engine_state(0).tolist() == state
    assert simulator._live[0].pool.free == free
    simulator.check()
    with pytest.raises(RuntimeError, match="begin a new one"):
        simulator.advance()
    with pytest.raises(NotImplementedError, match="backend='sim'"):
        simulator.snapshot()


def test_an_engine_that_failed_is_not_used_again(vllm: Any, scenario: Scenario) -> None:
    simulator = live(scenario)
    machine = simulator._live[0].machine
    go_on(simulator, 2)
    simulator.advance()
    machine.scheduler.scheduler_config.max_num_batched_tokens = None  # breaks its arithmetic
    with pytest.raises(TypeError):
        simulator.batch(BatchDecision(512))
    simulator.close()
    fresh = live(scenario)
    assert fresh._live[0].machine is not machine
    go_on(fresh, 2)
    fresh.close()


def test_an_engine_that_is_let_go_takes_nothing_from_the_others(machine: Machine) -> None:
    house = EngineHouse(most_idle=0)
    other = house.lease([house.configuration(SMALL, LiveOptions())])
    gone = weakref.ref(other[0]._engine.engine_core)
    house.give_back(other)
    del other
    gc.unfreeze()
    gc.collect()
    assert gone() is None
    fill(machine, steps=3)
    assert machine.queues()[0]


def test_starting_an_engine_leaves_the_host_as_it_was(vllm: Any, tiny_model: Path) -> None:
    import torch

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - vLLM seeds the global state
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    setter = torch.set_num_threads
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        Machine(MachineConfig.of(spec(block_size=32, kv_blocks=8), tiny_model))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before
    assert remarks == []
    assert torch.set_num_threads is setter
    weight = torch.ones(3, requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]


QUIET = """
import logging, pathlib, sys
from synergy_gym.live.inprocess.machine import Machine
from synergy_gym.live.inprocess.machine_config import MachineConfig
from synergy_gym.types import BatchDecision, EngineSpec

logging.basicConfig(level=logging.WARNING)
engine = EngineSpec("e", "g", "m", "p", 4, 64, 256, 7, block_size=32)
machine = Machine(MachineConfig.of(engine, pathlib.Path(sys.argv[1])))
machine.add("000", list(range(10, 110)), 20, 0, 0.0)
assert machine.step(BatchDecision(64), 0, None).scheduled.features.tokens == 64
"""


def test_an_engine_is_quiet(vllm: Any, tiny_model: Path) -> None:
    """In a process of its own: what torch reads when it is loaded, an earlier test has set."""
    command = [sys.executable, "-c", QUIET, str(tiny_model)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"block_size": 16}, "multiple of 32 tokens.*live-chat"),
        ({"block_size": 32, "max_num_batched_tokens": 4}, "max_num_batched_tokens"),
    ],
    ids=str,
)
def test_limits_that_vllm_cannot_serve_are_refused(
    vllm: Any, tiny_model: Path, limits: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        Machine(MachineConfig.of(spec(**limits), tiny_model))


def test_asynchronous_scheduling_is_refused(vllm: Any, machine: Machine) -> None:
    config = machine.scheduler.scheduler_config
    config.async_scheduling = True
    try:
        with pytest.raises(RuntimeError, match="async_scheduling=False"):
            machine._check_synchronous()
    finally:
        config.async_scheduling = False


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_measured_iterations_last_what_they_took(vllm: Any, scenario: Scenario, clock: str) -> None:
    simulator = live(scenario, clock=clock)
    go_on(simulator, 30)
    report = simulator.last_step(0)
    assert report is not None
    assert 0 < report.step_s < 10
    starts: list[float] = []
    while len(starts) < 20 and simulator.advance() != DONE:
        step = simulator.last_step(0)
        assert step is not None
        starts.append(step.start_s)
        simulator.batch(BatchDecision(512))
    assert starts == sorted(starts)
    assert len(set(starts)) == len(starts)
    simulator.close()


def test_a_measured_step_is_stretched_by_a_slowdown(
    vllm: Any, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer is a counter here: every iteration takes 7,000 ns, every look aside 1,000."""
    ticks = iter(range(0, 10**9, 1000))
    monkeypatch.setattr("synergy_gym.live.inprocess.engine.TIMERS", {"wall": lambda: next(ticks)})
    simulator = live(scenario)
    go_on(simulator, 2)
    simulator.advance()
    plain = simulator.last_step(0)
    simulator._world.servers[0].slow_down(2.5)
    simulator.batch(BatchDecision(512))
    simulator.advance()
    slowed = simulator.last_step(0)
    simulator.close()
    assert plain is not None
    assert slowed is not None
    assert slowed.step_s == pytest.approx(2.5 * plain.step_s)


def test_token_caps_are_refused_or_dropped_and_counted(vllm: Any, scenario: Scenario) -> None:
    simulator = live(scenario)
    simulator.advance()
    waiting = simulator.engine_view(0).num_waiting
    caps = np.full(waiting, 3, np.int64)
    with pytest.raises(ValueError, match=r"token_caps holds 3.*token_caps='drop'"):
        simulator.batch(BatchDecision(512, token_caps=caps))
    simulator.close()
    dropping = live(scenario, token_caps="drop")
    dropping.advance()
    dropping.batch(BatchDecision(512, token_caps=caps))
    assert dropping.live_report()["dropped_token_caps"] == waiting
    dropping.close()
