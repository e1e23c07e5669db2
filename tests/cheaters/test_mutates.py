"""Cheater: changes what it is given, or what is near it, instead of deciding well."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

import synergy_gym.evaluation.runner as runner
from synergy_gym.evaluation import evaluate
from synergy_gym.policies import EnginePolicy, RouterPolicy
from synergy_gym.policies.base import Layer
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView
from tests.cheaters.judging import SHORT, rejected, watched


class RewritesQueue(EnginePolicy):
    """Makes everybody young."""

    def decide(self, engine: EngineView) -> BatchDecision:
        engine.waiting.waited_s[:] = 0.0
        return super().decide(engine)


class EasierObjectives(EnginePolicy):
    """Gives everybody an hour, in reset and in every decision."""

    def reset(self, rng: np.random.Generator, spec: Any, slos: Any) -> None:
        self.ease(slos)

    def ease(self, slos: Any) -> None:
        for slo in slos:
            for name in ("ttft_s", "tpot_s", "e2e_s"):
                object.__setattr__(slo, name, 3600.0)

    def decide(self, engine: EngineView) -> BatchDecision:
        self.ease(engine.slos)
        return super().decide(engine)


class LargerEngine(EnginePolicy):
    """Lifts the limit of tokens per step and uses it."""

    def decide(self, engine: EngineView) -> BatchDecision:
        object.__setattr__(engine.spec, "max_num_batched_tokens", 1 << 20)
        return BatchDecision(1 << 20)


class ShorterOutputs(EnginePolicy):
    """Shortens every answer to one token in the simulator's memory."""

    def decide(self, engine: EngineView) -> BatchDecision:
        cells: Any = engine._fetch.__closure__
        for sim in (cell.cell_contents for cell in cells or ()):
            if isinstance(sim, Simulator):
                requests = sim.memory.requests
                requests["output_tokens"][requests["arrival_ns"] > sim.now_ns] = 1
        return super().decide(engine)


class RewritesTable(RouterPolicy):
    """Empties the router's table."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        choice = super().route(request, cluster)
        cluster.in_flight[:] = 0
        return choice


class Kinder(RouterPolicy):
    """Patches the function that scores."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        runner.summarize = lambda *_, **__: {"slo_attainment": 1.0}  # type: ignore[assignment]
        return super().route(request, cluster)


class Meddler(RouterPolicy):
    """Leaves traces all over the process."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        os.environ["SYNERGY_GYM_MEDDLER"] = "1"
        os.environ["HOME"] = "/"
        random.random()
        np.random.rand()  # noqa: NPY002
        return super().route(request, cluster)


@pytest.mark.parametrize(
    ("policy", "layer", "what"),
    [
        (RewritesQueue, "engine", "EngineView.waiting"),
        (EasierObjectives, "engine", "EngineView.slos"),
        (RewritesTable, "router", "ClusterView's table"),
    ],
)
def test_writing_to_a_view_is_found(policy: type, layer: Layer, what: str) -> None:
    seen = watched(policy, layer)
    assert rejected(seen.leaves_views_alone(), what, "copy what you change")


@pytest.mark.parametrize(
    ("policy", "layer", "honest"),
    [
        (RewritesQueue, "engine", EnginePolicy),
        (EasierObjectives, "engine", EnginePolicy),
        (RewritesTable, "router", RouterPolicy),
    ],
)
def test_writing_to_a_view_changes_nothing(policy: type, layer: Layer, honest: type) -> None:
    """What policies are given are copies: episode and score are those of who does not write."""
    cheat, plain = (SHORT[layer].play(layer, cls) for cls in (policy, honest))
    assert cheat.log_hash == plain.log_hash
    assert cheat.summary == plain.summary


def test_limits_cannot_be_lifted() -> None:
    failure = watched(LargerEngine, "engine").failure
    assert failure is not None
    assert rejected(failure, "token_budget", "8192")


def test_a_changed_simulator_is_found_by_replaying_the_decisions() -> None:
    """It would win: what it changes is not the view, and its decisions are the server's own."""
    seen = watched(ShorterOutputs, "engine")
    honest = SHORT["engine"].play("engine", "vllm-v1")
    assert seen.result.summary["slo_attainment"] > honest.summary["slo_attainment"]
    assert seen.leaves_views_alone().passed
    assert rejected(seen.acts_by_decisions_alone(), "it changed more than it decided")


def test_a_patched_library_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "summarize", runner.summarize)  # restored afterwards
    seen = watched(Kinder, "router")
    verdict = seen.leaves_surroundings_alone()
    assert rejected(verdict, "synergy_gym.evaluation.runner.summarize")


def test_traces_in_the_process_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.environ.get("HOME", ""))
    monkeypatch.setenv("SYNERGY_GYM_MEDDLER", "0")
    verdict = watched(Meddler, "router").leaves_surroundings_alone()
    assert rejected(verdict, "NumPy's global generator", "the generator of `random`")
    assert "environment variables" in verdict.reason


def test_the_scenario_is_not_what_policies_get() -> None:
    """An episode after that of a policy that eased its objectives is scored as before."""
    before = evaluate("smoke", "vllm-v1", horizon_s=8.0, warmup_s=1.0)
    evaluate("smoke", EasierObjectives, horizon_s=8.0, warmup_s=1.0)
    after = evaluate("smoke", "vllm-v1", horizon_s=8.0, warmup_s=1.0)
    assert after.summary == before.summary
