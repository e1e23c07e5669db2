"""Cheater: peeks at true output lengths, which no view has, in the simulator behind the view."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from synergy_gym.evaluation.conduct.alone import decides_alone
from synergy_gym.evaluation.conduct.two_futures import two_futures
from synergy_gym.policies import EnginePolicy, RouterPolicy
from synergy_gym.policies.base import Layer
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView
from tests.cheaters.judging import rejected, watched


def remaining_tokens(sim: Simulator) -> int:
    """Output tokens of all requests, those that have not arrived included."""
    return int(sim.memory.requests["output_tokens"].sum())


class Peeker(EnginePolicy):
    """Finds the simulator in the function that fetches the queues."""

    def decide(self, engine: EngineView) -> BatchDecision:
        cells: Any = engine._fetch.__closure__
        sims = [c.cell_contents for c in cells or () if isinstance(c.cell_contents, Simulator)]
        return BatchDecision(512 + remaining_tokens(sims[0]) % 512 if sims else 512)


class FrameWalker(RouterPolicy):
    """Finds the simulator among the variables of whoever called it."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        up = cluster.alive.nonzero()[0]
        frame: Any = sys._getframe()
        while frame is not None:
            values = [*frame.f_locals.values()]
            for value in [*values, *(getattr(item, "sim", None) for item in values)]:
                if isinstance(value, Simulator):
                    return int(up[remaining_tokens(value) % len(up)])
            frame = frame.f_back
        return int(up[0])


CHEATERS: list[tuple[type, Layer]] = [(Peeker, "engine"), (FrameWalker, "router")]


@pytest.mark.parametrize(("policy", "layer"), CHEATERS)
def test_two_futures_catch_a_peeker(policy: type, layer: Layer) -> None:
    verdict = two_futures(policy, layer, range(8))
    assert rejected(verdict, "told apart", "decide from the views alone")


@pytest.mark.parametrize(("policy", "layer"), CHEATERS)
def test_a_peeker_is_blind_where_there_is_no_simulator(
    policy: type, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other process finds this module where this one does.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    seen = watched(policy, layer)
    assert seen.failure is None
    verdict = decides_alone(policy, layer, seen.watch.tapes)
    assert rejected(verdict, "decision 0 was", "decide from the views alone")
