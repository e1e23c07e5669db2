"""Policies in a process of their own decide as they do here, and fail with a reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.policies.base import EnginePolicy, RouterPolicy
from synergy_gym.seats import PolicyError
from synergy_gym.seats.remote import RemoteEngine, RemoteError, RemoteRouter
from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView

SHORT: dict[str, Any] = {"seed": 5, "horizon_s": 8.0, "warmup_s": 0.0, "load": 1.2}


@pytest.mark.parametrize("name", ["prism-plus", "random", "power-of-two"])
def test_a_router_decides_as_it_does_here(name: str) -> None:
    here = evaluate("smoke-cluster", "vllm-v1", name, **SHORT)
    with RemoteRouter(name) as router:
        there = evaluate("smoke-cluster", "vllm-v1", router, **SHORT)
    assert there.log_hash == here.log_hash
    assert there.manifest["router_policy"] == here.manifest["router_policy"]
    assert there.timings["router_decisions"] > 10


@pytest.mark.parametrize("name", ["lens-plus", "random", "vllm-v1"])
def test_an_engine_policy_decides_as_it_does_here(name: str) -> None:
    here = evaluate("smoke", name, **SHORT)
    with RemoteEngine(name) as engine:
        there = evaluate("smoke", engine, **SHORT)
    assert there.log_hash == here.log_hash
    assert there.manifest["engine_policy"] == here.manifest["engine_policy"]


class Failing(RouterPolicy):
    def route(self, request: RequestView, cluster: ClusterView) -> int:
        raise KeyError("no such thing")


class Ending(RouterPolicy):
    def route(self, request: RequestView, cluster: ClusterView) -> int:
        os._exit(7)


class Hanging(EnginePolicy):
    def decide(self, engine: EngineView) -> BatchDecision:
        while True:
            pass


class Looking(RouterPolicy):
    """Looks for the simulator in the process that it is in."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        import gc

        from synergy_gym.sim.simulator import Simulator

        found = [one for one in gc.get_objects() if isinstance(one, Simulator)]
        if found:
            raise RuntimeError("there is a simulator here")
        return 0


def test_what_a_policy_raises_is_told_with_its_place() -> None:
    with (
        RemoteRouter(Failing) as router,
        pytest.raises(PolicyError, match=r"KeyError: 'no such thing' \(.*test_remote.py:\d+\)"),
    ):
        evaluate("smoke-cluster", "vllm-v1", router, **SHORT)


def test_a_process_that_ends_is_told() -> None:
    with (
        RemoteRouter(Ending) as router,
        pytest.raises(PolicyError, match=r"process has ended \(exit code 7\)"),
    ):
        evaluate("smoke-cluster", "vllm-v1", router, **SHORT)


def test_a_policy_that_hangs_is_given_up() -> None:
    with (
        RemoteEngine(Hanging, 0.3) as engine,
        pytest.raises(PolicyError, match=r"no answer to 'decide' within 0.3 s"),
    ):
        evaluate("smoke", engine, **SHORT)


def test_there_is_no_simulator_where_it_sits() -> None:
    with RemoteRouter(Looking) as router:
        result = evaluate("smoke-cluster", "vllm-v1", router, **SHORT)
    assert result.timings["router_decisions"] > 10, "it was asked, and found none"


def test_a_policy_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="ValueError: unknown router policy"):
        RemoteRouter("no-such-router")
