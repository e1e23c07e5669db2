"""Playing policies: results, windows, legality, observation and determinism."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation import PolicyError, evaluate, find_capacity, rank
from synergy_gym.metrics import summarize
from synergy_gym.policies.base import EnginePolicy, RouterPolicy
from synergy_gym.policies.router.round_robin import RoundRobin
from synergy_gym.scenario import load_scenario
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.types import (
    NS_PER_S,
    BatchDecision,
    ClusterView,
    CompletionView,
    EngineView,
    Event,
    InformationError,
    RequestView,
    StepReport,
)
from synergy_gym.workload.base import Workload, make_workload

SHORT: dict[str, Any] = {"horizon_s": 8.0, "warmup_s": 2.0}
ENGINE, CLUSTER = "chat-h100", "hetero-3"


def workload(*rows: tuple[float, int, int]) -> Workload:
    """Requests as (arrival in seconds, prompt tokens, output tokens)."""
    columns = np.array([(round(t * NS_PER_S), p, o) for t, p, o in rows], np.int64).reshape(-1, 3)
    return make_workload(columns[:, 0], columns[:, 1], columns[:, 2])


@dataclasses.dataclass
class Answer(EnginePolicy):
    """Returns whatever it was given."""

    value: Any = None

    def decide(self, engine: EngineView) -> BatchDecision:
        return self.value


@dataclasses.dataclass
class Target(RouterPolicy):
    """Routes to a fixed value."""

    value: Any = 0

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        return self.value


class Watcher(EnginePolicy):
    """Checks that each finished step is seen once, before the next decision."""

    def reset(self, rng: Any, spec: Any, slos: Any) -> None:
        self.steps: list[StepReport] = []
        self.decisions = 0

    def decide(self, engine: EngineView) -> BatchDecision:
        assert len(self.steps) == self.decisions
        self.decisions += 1
        return BatchDecision(token_budget=engine.spec.max_num_batched_tokens)

    def observe(self, step: StepReport) -> None:
        assert not self.steps or step.start_s > self.steps[-1].start_s
        self.steps.append(step)


class Counter(RoundRobin):
    """Round robin that counts completions."""

    seen: int = 0

    def observe(self, completion: CompletionView) -> None:
        type(self).seen += 1


def test_summary_is_what_the_records_say() -> None:
    result = evaluate(ENGINE, **SHORT)
    slos = load_scenario(ENGINE).slos
    again = summarize(
        result.records, slos, warmup_ns=2 * NS_PER_S, horizon_ns=8 * NS_PER_S, engines=1
    )
    for name, value in again.items():
        assert result.summary[name] == value or value != value, name
    assert result.summary["offered"] > 0
    assert result.summary["itl_p50_s"] > 0


def test_requests_table() -> None:
    result = evaluate(ENGINE, **SHORT)
    table = result.requests
    assert len(table) == len(result.records)
    assert table["scored"].sum() == result.summary["offered"]
    kept = table[table["scored"]]
    assert kept["slo_met"].mean() == pytest.approx(result.summary["slo_attainment"])
    done = kept[kept["outcome"] == "finished"]
    assert np.percentile(done["e2e_s"], 90) == pytest.approx(result.summary["e2e_p90_s"])
    assert (done["first_token_s"] >= done["arrival_s"]).all()


@pytest.mark.parametrize(
    ("engine", "router"), [("sarathi-512", "power-of-two"), ("random", "random")]
)
def test_two_plays_are_one(engine: str, router: str) -> None:
    first, second = (evaluate(CLUSTER, engine, router, seed=3, **SHORT) for _ in range(2))
    assert first.log_hash == second.log_hash
    assert first.manifest == second.manifest
    assert str(first.summary) == str(second.summary)


def test_policies_meet_the_same_traffic() -> None:
    one = evaluate(CLUSTER, router_policy="random", seed=3, **SHORT).records
    two = evaluate(CLUSTER, router_policy="least-outstanding", seed=3, **SHORT).records
    assert np.array_equal(one.arrival_ns, two.arrival_ns)
    assert np.array_equal(one.prompt_tokens, two.prompt_tokens)
    assert not np.array_equal(one.engine, two.engine)


def test_compiled_and_reference_simulator_agree() -> None:
    short = {"horizon_s": 4.0, "warmup_s": 0.0}
    compiled = evaluate(CLUSTER, router_policy="least-loaded", seed=5, **short)
    plain = evaluate(
        CLUSTER, router_policy="least-loaded", seed=5, simulator=ReferenceSimulator, **short
    )
    assert compiled.log_hash == plain.log_hash
    assert str(compiled.summary) == str(plain.summary)


def test_a_rule_and_its_decisions_agree() -> None:
    class Asked(EnginePolicy):
        """The server's scheduling, without a rule."""

    compiled = evaluate(ENGINE, "vllm-v1", **SHORT)
    asked = evaluate(ENGINE, Asked, **SHORT)
    assert compiled.timings["engine_decisions"] == 0
    assert asked.timings["engine_decisions"] > 0
    assert math.isnan(compiled.timings["engine_decision_mean_us"])
    assert 0 < asked.timings["engine_decision_mean_us"] < 1e6
    assert asked.timings["engine_decision_p99_us"] > 0
    assert str(asked.summary) == str(compiled.summary)


def test_engine_policies_observe_every_step_before_the_next_decision() -> None:
    result = evaluate(ENGINE, Watcher, **SHORT)
    assert result.timings["engine_decisions"] > 10


def test_routers_observe_completions() -> None:
    Counter.seen = 0
    result = evaluate(CLUSTER, router_policy=Counter, **SHORT)
    assert 0 < Counter.seen <= result.summary["full"]["finished"]


@pytest.mark.parametrize("value", [None, 17, BatchDecision(0), BatchDecision(10, max_running=0)])
def test_a_bad_decision_names_policy_time_and_value(value: Any) -> None:
    with pytest.raises(PolicyError, match=r"engine policy .*Answer.* at \d+\.\d+ s") as error:
        evaluate(ENGINE, Answer(value), **SHORT)
    assert str(value) in str(error.value)


@pytest.mark.parametrize("value", [None, True, 0.0, "0", -1, 99])
def test_a_bad_route_names_policy_time_and_value(value: Any) -> None:
    with pytest.raises(PolicyError, match=r"router policy .*Target.* at \d+\.\d+ s") as error:
        evaluate(CLUSTER, router_policy=Target(value), **SHORT)
    assert str(value) in str(error.value)


def test_routing_to_an_engine_that_is_down() -> None:
    world = dataclasses.replace(
        load_scenario(CLUSTER), events=(Event(at_s=1.0, kind="down", engine=0),)
    )
    with pytest.raises(PolicyError, match="down"):
        evaluate(world, router_policy=Target(0), **SHORT)


def test_numpy_integers_are_integers() -> None:
    result = evaluate(CLUSTER, router_policy=Target(np.int64(1)), **SHORT)
    assert result.summary["engines"][1]["request_share"] == 1.0


def test_undeclared_information_is_refused() -> None:
    class Peeking(RouterPolicy):
        """Reads pushed state that it did not declare."""

        def route(self, request: RequestView, cluster: ClusterView) -> int:
            return cluster.argmin(cluster.pushed.running)

    with pytest.raises(InformationError) as error:
        evaluate(CLUSTER, router_policy=Peeking, **SHORT)
    assert "router policy" in error.value.__notes__[0]


def test_a_policy_that_raises_is_named() -> None:
    class Raising(RouterPolicy):
        """Fails at its first request."""

        def route(self, request: RequestView, cluster: ClusterView) -> int:
            raise KeyError("weights")

    with pytest.raises(PolicyError, match=r"Raising' at \d+\.\d+ s: raised KeyError") as error:
        evaluate(CLUSTER, router_policy=Raising, **SHORT)
    assert isinstance(error.value.__cause__, KeyError)


def test_own_workload_is_scored_from_its_first_request() -> None:
    result = evaluate(ENGINE, workload=workload((0.0, 100, 5), (3.2, 50, 1)))
    assert result.summary["offered"] == 2
    assert result.summary["window_s"] == 4.0
    assert result.manifest["load"] is None
    assert len(result.manifest["workload"]["sha256"]) == 64


def test_one_request_and_none() -> None:
    one = evaluate(ENGINE, workload=workload((0.5, 10, 3)))
    assert one.summary["slo_attainment"] == 1.0
    assert one.summary["goodput_rps"] == 1.0
    none = evaluate(ENGINE, workload=workload())
    assert none.summary["offered"] == 0
    assert math.isnan(none.summary["slo_attainment"])


def test_a_prompt_that_never_fits_is_rejected_and_missed() -> None:
    too_long = load_scenario(ENGINE).engines[0].max_model_len + 1
    result = evaluate(ENGINE, workload=workload((0.0, too_long, 5), (0.1, 10, 3)))
    assert result.summary["rejected"] == 1
    assert result.summary["slo_attainment"] == 0.5
    assert list(result.requests["outcome"]) == ["too_long", "finished"]


def test_overload_counts_every_offered_request() -> None:
    result = evaluate(ENGINE, load=8.0, **SHORT)
    summary = result.summary
    parts = ("finished", "rejected", "aborted", "failed", "unfinished")
    assert sum(summary[part] for part in parts) == summary["offered"]
    assert summary["slo_attainment"] < 0.9


def test_window_errors() -> None:
    with pytest.raises(ValueError, match="no scored window"):
        evaluate(ENGINE, horizon_s=2.0, warmup_s=2.0)


def test_rank_with_an_own_policy() -> None:
    class Mine(RouterPolicy):
        """Everything to the slowest engine."""

        name = "mine"

        def route(self, request: RequestView, cluster: ClusterView) -> int:
            return 2

    table = rank(
        "router",
        [Mine(), "least-outstanding"],
        loads=(2.0,),
        seeds=(1,),
        horizon_s=20.0,
        warmup_s=2.0,
    )
    assert table["policy"].iloc[0] == "least-outstanding"
    assert len(table) == 2
    with pytest.raises(ValueError, match="share the name"):
        rank("router", ["random", "random"])
    with pytest.raises(ValueError, match="unknown track"):
        rank("both")  # type: ignore[arg-type]


def test_rank_pairs() -> None:
    pairs = [("vllm-v1", "weighted"), (Watcher(), "round-robin")]
    short = {"loads": (2.0,), "seeds": (1,), "horizon_s": 8.0, "warmup_s": 2.0}
    table = rank("joint", pairs, **short)  # type: ignore[arg-type]
    assert "vllm-v1 + weighted" in set(table["policy"])
    assert any(name.endswith("Watcher + round-robin") for name in table["policy"])
    for wrong in (["vllm-v1"], [("vllm-v1",)], ["ab"]):
        with pytest.raises(ValueError, match=r"is no pair; give \(engine policy, router policy\)"):
            rank("joint", wrong)
    with pytest.raises(ValueError, match="other is 'session'; on the joint track"):
        rank("joint", pairs, other="session")
    with pytest.raises(ValueError, match=r"share the name 'vllm-v1 \+ weighted'"):
        rank("joint", [pairs[0], pairs[0]])


def test_rank_plays_in_other_worlds() -> None:
    short = {"loads": (1.0,), "seeds": (1,), "horizon_s": 8.0, "warmup_s": 2.0}
    policies = ["vllm-v1", "static-256"]
    names = [ENGINE, f"{ENGINE}@saturation"]
    tables = [rank("engine", policies, scenarios=name, **short) for name in names]  # type: ignore[arg-type]
    assert tables[0]["ttft_p99_s"].tolist() != tables[1]["ttft_p99_s"].tolist()


def test_find_capacity_brackets_the_target() -> None:
    played: list[tuple[float, float]] = []
    world = dataclasses.replace(load_scenario(ENGINE), **SHORT)
    found = find_capacity(
        world, seeds=(1,), tolerance=0.3, progress=lambda load, value: played.append((load, value))
    )
    assert dict(played)[found.load] >= 0.9
    assert min(value for _, value in played) < 0.9
