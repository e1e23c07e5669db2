"""Trained agents in real engines: the plug-in, a server's environment, serve and route."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.live.hosting.build import host_from_environment
from synergy_gym.live.vllm.settings import HostSettings
from synergy_gym.policies.agent_file import Agent, save_agent
from synergy_gym.policies.learned import LearnedEngine
from tests.live.alone import Loop, add_request, build_scheduler
from tests.live.fake_server import Fleet
from tests.live.test_cli_route import post, routing
from tests.live.test_cli_serve import serve
from tests.live.test_conformance_engine import (
    OVERLOAD,
    Virtual,
    check,
    played,
    run_scheduler,
    simulator,
    world,
)
from tests.policies.agents import authors_agent, engine_agent, scorer_agent


def saved(folder: Path, agent: Agent) -> str:
    save_agent(folder / "a.npz", agent)
    return f"agent:{folder / 'a.npz'}"


def variants(rng: np.random.Generator) -> dict[str, Agent]:
    return {
        "every step": engine_agent(rng),
        "frames and interval": engine_agent(rng, frames=2, interval_s=0.02),
        "authors": authors_agent(rng),
    }


@pytest.mark.vllm
@pytest.mark.parametrize("variant", ["every step", "frames and interval", "authors"])
def test_an_agent_decides_in_vllm_as_in_the_simulator(
    vllm: Any, tiny_model: Path, tmp_path: Path, seed: int, variant: str
) -> None:
    policy = saved(tmp_path, variants(np.random.default_rng(seed))[variant])
    scenario = world(policy, 2.0)
    workload = scenario.workload(OVERLOAD, seed)
    sim = simulator(scenario, workload, seed)
    taken = played(sim, scenario, policy, seed)
    virtual = Virtual(scenario, workload, policy, seed)
    check(virtual, sim, taken, run_scheduler(virtual, tiny_model))
    assert len(taken) > 200


@pytest.mark.vllm
def test_a_server_takes_an_agent_from_its_environment(
    vllm: Any,
    tiny_model: Path,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from synergy_gym.live.scheduler import PolicyScheduler

    settings = HostSettings(saved(tmp_path, engine_agent(rng)), slo="ttft_s=1,tpot_s=0.05")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert PolicyScheduler.make_host is host_from_environment
    scheduler = build_scheduler(PolicyScheduler, tiny_model)
    assert isinstance(scheduler.host.policy, LearnedEngine)
    for number in range(8):
        add_request(scheduler, str(number), 40, 6)
    Loop(scheduler).run()
    assert scheduler.host.failures == {}
    assert scheduler.host.steps >= 6
    assert not scheduler.requests


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    printed, said = process.communicate(timeout=120)
    return process.returncode, printed, said


def test_serve_passes_an_agent_on(tmp_path: Path, rng: np.random.Generator) -> None:
    policy = saved(tmp_path, engine_agent(rng))
    process = serve(tmp_path, "--policy", policy, "--port", "0")
    assert process.stderr is not None
    line = ""
    while f"serving tiny with {policy} at http://127.0.0.1:" not in line:
        line = process.stderr.readline()
        assert line, "it has ended before it served"
    process.terminate()
    code, printed, _ = ended(process)
    assert code == 0
    assert f"SYNERGY_GYM_POLICY={policy}" in printed


@pytest.mark.parametrize(
    ("make", "message"),
    [(scorer_agent, "decides for routers, not engines"), (None, "no agent file")],
)
def test_a_wrong_agent_costs_no_start(
    tmp_path: Path, rng: np.random.Generator, make: Any, message: str
) -> None:
    policy = f"agent:{tmp_path / 'none.npz'}" if make is None else saved(tmp_path, make(rng))
    code, printed, said = ended(serve(tmp_path, "--policy", policy))
    assert (code, printed) == (2, "")
    assert message in said


def test_route_routes_with_an_agent(tmp_path: Path, rng: np.random.Generator) -> None:
    policy = saved(tmp_path, scorer_agent(rng))
    with Fleet(3) as servers:
        engines = [word for server in servers for word in ("--engine", server.url)]
        with routing("--policy", policy, "--push-port", "0", *engines) as running:
            assert policy in "".join(running.table.split())  # wrapped where it is long
            for _ in range(6):
                assert post(running.url, 3).status_code == 200
            assert running.end() == 0
            assert "failed" not in running.stderr
