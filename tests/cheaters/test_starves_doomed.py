"""Cheater: drops or starves requests that are lost anyway, because the score cannot fall further.

On engines this wins in overload, so a rule forbids it (`evaluation.conduct.starvation`). A router
cannot drop a request: it has to name an engine that is up.
"""

from __future__ import annotations

import numpy as np
import pytest

from synergy_gym.evaluation import evaluate
from synergy_gym.evaluation.conduct.examine import SIEGES, examine
from synergy_gym.evaluation.conduct.starvation import SHARE, debts, starvation
from synergy_gym.policies import EnginePolicy, RouterPolicy
from synergy_gym.types import (
    SLO,
    BatchDecision,
    BoolArray,
    ClusterView,
    EngineSpec,
    EngineView,
    Outcome,
    RequestArrays,
    RequestRecords,
    RequestView,
)
from tests.cheaters.judging import rejected, watched


class Starver(EnginePolicy):
    """Serves nobody who has missed TTFT or E2E."""

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        self.ttft = np.array([slo.ttft_s or np.inf for slo in slos])
        self.e2e = np.array([slo.e2e_s or np.inf for slo in slos])

    def doomed(self, queue: RequestArrays) -> BoolArray:
        silent = queue.first_token_age_s < 0
        late = silent & (queue.waited_s > self.ttft[queue.slo_class])
        found: BoolArray = late | (queue.waited_s > self.e2e[queue.slo_class])
        return found

    def decide(self, engine: EngineView) -> BatchDecision:
        running, waiting = self.doomed(engine.running), self.doomed(engine.waiting)
        return BatchDecision(
            engine.spec.max_num_batched_tokens,
            max_running=max(engine.num_running + int((~waiting).sum()), 1),
            waiting_order=np.argsort(waiting, kind="stable"),
            token_caps=np.where(np.concatenate([running, waiting]), 0, -1),
        )


class Dropper(RouterPolicy):
    """Wants to send every tenth request nowhere."""

    def reset(self, *given: object) -> None:
        self.turn = 0

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        self.turn += 1
        return -1 if self.turn % 10 == 0 else cluster.argmin(cluster.in_flight)


def test_a_starver_would_win_and_is_rejected() -> None:
    cheat, honest = (SIEGES["engine"].play("engine", policy) for policy in (Starver, "vllm-v1"))
    assert cheat.summary["slo_attainment"] > honest.summary["slo_attainment"] + 0.1
    verdict = starvation(cheat.records, cheat.slos)
    assert rejected(verdict, "lost requests", f"at least {SHARE:.1%} of the work")
    assert starvation(honest.records, honest.slos).passed


def test_the_more_it_lasts_the_larger_the_debt() -> None:
    ratios = []
    for horizon_s in (60.0, 120.0):
        result = evaluate("smoke", Starver, load=1.5, seed=2000, horizon_s=horizon_s)
        ratios.append(max(debt.ratio for debt in debts(result.records, result.slos)))
    assert ratios[1] > 1.5 * ratios[0] > 1


@pytest.mark.parametrize("policy", ["lens-plus", "shortest-prompt", "earliest-deadline"])
def test_letting_lost_requests_wait_is_no_starvation(policy: str) -> None:
    played = SIEGES["engine"].play("engine", policy)
    verdict = starvation(played.records, played.slos)
    assert verdict.passed, verdict.reason


def test_concentrating_lost_requests_is_no_starvation() -> None:
    played = SIEGES["router"].play("router", "prism-plus")
    assert starvation(played.records, played.slos).passed


def test_a_router_cannot_drop() -> None:
    found = examine(Dropper, "router", worlds=3)
    assert rejected(found[0], "engine -1")
    assert [verdict.check for verdict in found] == ["plays", "two-futures"]
    assert watched(Dropper, "router").failure is not None


def records(rows: list[tuple[int, int, int]], prompt: int = 100) -> RequestRecords:
    """Requests of (arrival, first token, finish) in seconds, -1: never."""
    times = np.array(rows, np.int64)
    times = np.where(times < 0, -1, times * 1_000_000_000)
    zeros, ones = np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64)
    done = np.where(times[:, 2] >= 0, int(Outcome.FINISHED), int(Outcome.UNFINISHED))
    return RequestRecords(
        times[:, 0], times[:, 1], times[:, 1], times[:, 2], prompt * ones, ones, ones, zeros,
        zeros, zeros, done, zeros, -ones, ones,
    )  # fmt: skip


def test_the_account_by_hand() -> None:
    """One request waits for ever; lost at 2 s, one of two or three waiting, 100 tokens each.

    Every other one comes and is served at its own second: then two are there, one of them is lost,
    so the share owed is 0.5 %. From second 3 on, n services make a debt of n / 2 tokens.
    """
    slos = (SLO("a", ttft_s=1.0),)
    rows = [(0, -1, -1), *((second, second, second) for second in range(1, 300))]
    first, output = debts(records(rows), slos)
    assert (first.account, first.engine, first.pending, first.allowed_tokens) == (
        "first token", 0, 1, 100,
    )  # fmt: skip
    assert first.tokens == pytest.approx(0.5 * 297)
    assert output.ratio == 0
    assert not starvation(records(rows), slos).passed
    assert starvation(records(rows[:150]), slos).passed


def test_one_service_pays() -> None:
    slos = (SLO("a", ttft_s=1.0),)
    rows = [(0, 150, 150), *((second, second, second) for second in range(1, 300))]
    assert starvation(records(rows), slos).passed
