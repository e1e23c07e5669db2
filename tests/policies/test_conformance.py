"""What every registered policy must obey, on random states built by hand."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synergy_gym.policies import (
    EnginePolicy,
    RouterPolicy,
    engine_policies,
    make_engine_policy,
    make_router_policy,
    router_policies,
)
from synergy_gym.policies.agent_file import Kind, packaged_agents
from synergy_gym.types import (
    INFORMATION_CLASSES,
    NS_PER_S,
    SLO,
    BatchDecision,
    ClusterView,
    CompletionView,
    DecisionRule,
    EngineSpec,
    EngineStateField,
    EngineView,
    InformationError,
    Outcome,
    PushedState,
    RequestArrays,
    RequestView,
    RouterRow,
    ScrapedState,
    StepReport,
)
from tests.engines import H100

SLOS = (SLO("chat", ttft_s=1.0), SLO("batch"), SLO("code", ttft_s=0.25, tpot_s=0.05))
SPEC = EngineSpec("e", *H100, "", 64, 2048, 8192, 4000, watermark_blocks=8)
KINDS: tuple[Kind, ...] = ("engine", "router")
SEEDS = st.integers(0, 2**32 - 1)
AGENTS = {kind: [f"agent:{name}" for name in packaged_agents(kind)] for kind in KINDS}
ENGINE = [*engine_policies(), "random:full=true", "vllm-v0:token_budget=512", *AGENTS["engine"]]
ROUTER = [*router_policies(), "latency-based:latency=ttft", "prefix-aware:memory_blocks=16"]
ROUTER += AGENTS["router"]
MANY = settings(max_examples=max(25, settings.default.max_examples // 8))


def queue(rng: np.random.Generator, length: int, *, running: bool) -> RequestArrays:
    prompt = rng.integers(1, 3000, length)
    generated = rng.integers(0, 50, length) * (rng.random(length) < 0.5)
    decodes = running & (generated > 0) & (rng.random(length) < 0.8)
    part = (rng.random(length) * (prompt + generated)).astype(np.int64) * running
    arrays = RequestArrays(
        prompt_tokens=prompt,
        computed_tokens=np.where(decodes, prompt + generated - 1, part),
        generated_tokens=generated,
        cached_tokens=np.zeros(length, np.int64),
        waited_s=rng.integers(0, 5 * NS_PER_S, length) / NS_PER_S,
        first_token_age_s=np.where(generated > 0, rng.random(length), -1.0),
        slo_class=rng.integers(0, len(SLOS), length),
        priority=np.zeros(length, np.int64),
    )
    for item in dataclasses.fields(arrays):
        getattr(arrays, item.name).setflags(write=False)
    return arrays


def engine_view(rng: np.random.Generator) -> EngineView:
    running = queue(rng, int(rng.integers(0, SPEC.max_num_seqs + 1)), running=True)
    waiting = queue(rng, int(rng.integers(len(running) == 0, 40)), running=False)
    state = np.zeros(len(EngineStateField), np.int64)
    state[EngineStateField.NOW_NS] = 10 * NS_PER_S
    state[EngineStateField.RUNNING] = len(running)
    state[EngineStateField.WAITING] = len(waiting)
    state[EngineStateField.DECODES] = np.count_nonzero(running.is_decode)
    state[EngineStateField.KV_FREE_BLOCKS] = rng.integers(0, SPEC.kv_blocks + 1)
    state[EngineStateField.KV_TOTAL_BLOCKS] = SPEC.kv_blocks
    state.setflags(write=False)
    return EngineView(
        spec=SPEC, slos=SLOS, state=state, last_step=None, fetch=lambda: (running, waiting)
    )


def step_report(rng: np.random.Generator) -> StepReport:
    numbers = [int(n) for n in rng.integers(1, 100, 11)]
    return StepReport(0, 1.0, 0.01, *numbers)


def cluster(engines: int) -> tuple[EngineSpec, ...]:
    return tuple(dataclasses.replace(SPEC, name=f"e{i}", weight=1.0 + i) for i in range(engines))


def cluster_view(
    rng: np.random.Generator,
    engines: int,
    policy_rng: np.random.Generator,
    information: frozenset[str] = frozenset(INFORMATION_CLASSES),
) -> ClusterView:
    rows = rng.integers(0, 4, (engines, len(RouterRow)))
    rows[:, RouterRow.IN_FLIGHT] = rng.integers(0, 200, engines)
    rows[:, RouterRow.ALIVE] = rng.random(engines) < 0.6
    rows[rng.integers(engines), RouterRow.ALIVE] = 1
    rows.setflags(write=False)
    return ClusterView(
        now_ns=NS_PER_S,
        engines=cluster(engines),
        rows=rows,
        session_engine=int(rng.integers(-1, engines)),
        session_age_s=float(rng.random()),
        rng=policy_rng,
        information=information,
    )


def request_view(rng: np.random.Generator) -> RequestView:
    hashes = rng.integers(1, 4) * 1000 + np.arange(rng.integers(0, 12))
    hashes.setflags(write=False)
    return RequestView(
        prompt_tokens=int(rng.integers(1, 5000)),
        arrival_s=1.0,
        session=int(rng.integers(-1, 20)),
        slo_class=int(rng.integers(0, len(SLOS))),
        block_hashes=hashes,
    )


def completion(rng: np.random.Generator) -> CompletionView:
    return CompletionView(1.0, 0, -1, int(rng.integers(1, 9)), 5, 0.1, 0.9, Outcome.FINISHED)


def assert_legal(decision: BatchDecision, view: EngineView, caps_above_zero: bool = False) -> None:
    cap = decision.max_running
    assert type(decision.token_budget) is int
    assert 1 <= decision.token_budget <= SPEC.max_num_batched_tokens
    assert cap is None or (type(cap) is int and 1 <= cap <= SPEC.max_num_seqs)
    assert decision.prefill_chunk >= 0
    for order, length in (
        (decision.running_order, view.num_running),
        (decision.waiting_order, view.num_waiting),
    ):
        assert order is None or sorted(order.tolist()) == list(range(length))
    if decision.token_caps is not None:
        assert len(decision.token_caps) == view.num_running + view.num_waiting
        assert (decision.token_caps >= -1).all()
        # Live engines know free requests and skips; a policy that says more declares it.
        assert caps_above_zero or (decision.token_caps <= 0).all()


def described(decision: BatchDecision) -> tuple[object, ...]:
    values = [getattr(decision, item.name) for item in dataclasses.fields(decision)]
    return tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in values)


def engine_decisions(policy: EnginePolicy, seed: int, count: int = 6) -> list[tuple[object, ...]]:
    rng = np.random.default_rng(seed)
    policy.reset(np.random.default_rng(seed + 1), SPEC, SLOS)
    result = []
    for _ in range(count):
        view = engine_view(rng)
        decision = policy.decide(view)
        assert_legal(decision, view, policy.uses_token_caps)
        result.append(described(decision))
        policy.observe(step_report(rng))
    return result


def router_decisions(
    policy: RouterPolicy, seed: int, information: frozenset[str], count: int = 12
) -> list[int]:
    rng = np.random.default_rng(seed)
    engines = int(rng.integers(1, 9))
    own = np.random.default_rng(seed + 1)
    policy.reset(own, cluster(engines), SLOS)
    result = []
    for _ in range(count):
        view = cluster_view(rng, engines, own, information)
        choice = policy.route(request_view(rng), view)
        assert type(choice) is int
        assert view.alive[choice], "a request was routed to an engine that is down"
        result.append(choice)
        policy.observe(completion(rng))
    return result


@pytest.mark.parametrize("name", ENGINE)
@MANY
@given(seed=SEEDS)
def test_engine_policy_is_legal_deterministic_and_resets(name: str, seed: int) -> None:
    policy = make_engine_policy(name)
    decisions = engine_decisions(policy, seed)
    engine_decisions(policy, seed ^ 0xFFFF)
    assert engine_decisions(policy, seed) == decisions, "reset left something behind"
    assert engine_decisions(make_engine_policy(name), seed) == decisions


@pytest.mark.parametrize("name", ROUTER)
@MANY
@given(seed=SEEDS)
def test_router_policy_is_legal_deterministic_and_resets(name: str, seed: int) -> None:
    policy = make_router_policy(name)
    decisions = router_decisions(policy, seed, policy.information)
    router_decisions(policy, seed ^ 0xFFFF, policy.information)
    assert router_decisions(policy, seed, policy.information) == decisions
    assert router_decisions(make_router_policy(name), seed, policy.information) == decisions


@pytest.mark.parametrize("name", ROUTER)
def test_undeclared_information_is_refused(name: str) -> None:
    policy = make_router_policy(name)
    for missing in policy.information - {"router"}:
        with pytest.raises(InformationError, match=missing):
            router_decisions(policy, 3, policy.information - {missing})


def ruled(rule: DecisionRule, view: EngineView) -> tuple[object, ...]:
    """What `DecisionRule` says that it equals, worked out request by request."""
    budget = max(rule.token_budget, view.num_decodes if rule.cover_decodes else 0)
    waiting = view.waiting
    keys: list[int] = [0] * len(waiting)
    if rule.order == "shortest-prompt":
        keys = (waiting.prompt_tokens + waiting.generated_tokens).tolist()
    elif rule.order == "earliest-deadline":
        limits = [SLOS[c].ttft_s for c in waiting.slo_class]
        due = [1 << 61 if s is None else round(s * NS_PER_S) for s in limits]
        keys = [d - round(w * NS_PER_S) for d, w in zip(due, waiting.waited_s, strict=True)]
    order = sorted(range(len(waiting)), key=keys.__getitem__)
    return budget, rule.max_running, rule.prefill_chunk, order


@pytest.mark.parametrize("name", ENGINE)
@MANY
@given(seed=SEEDS)
def test_rule_equals_decide(name: str, seed: int) -> None:
    policy, view = make_engine_policy(name), engine_view(np.random.default_rng(seed))
    policy.reset(np.random.default_rng(0), SPEC, SLOS)
    rule = policy.rule()
    if rule is None:
        return
    decision = policy.decide(view)
    order = decision.waiting_order
    order = np.arange(view.num_waiting) if order is None else order
    said = (decision.token_budget, decision.max_running, decision.prefill_chunk, order.tolist())
    assert said == ruled(rule, view)
    assert decision.running_order is None
    assert decision.token_caps is None


def test_rules_exist_where_they_are_exact() -> None:
    with_rule = set()
    for name in engine_policies():
        policy = make_engine_policy(name)
        policy.reset(np.random.default_rng(0), SPEC, SLOS)
        if policy.rule() is not None:
            with_rule.add(policy.name)
    expected = {"vllm-v1", "sarathi-512", "static-N", "shortest-prompt", "earliest-deadline"}
    assert with_rule >= expected
    assert not with_rule & {"vllm-v0", "random"}


def names_in(view: type) -> Iterator[str]:
    yield from (name for name in dir(view) if not name.startswith("__"))
    yield from getattr(view, "__slots__", ())
    yield from inspect.signature(view.__init__).parameters


@pytest.mark.parametrize(
    "view",
    [EngineView, RequestView, ClusterView, RequestArrays, PushedState, ScrapedState, StepReport],
)
def test_views_have_no_room_for_the_future(view: type) -> None:
    forbidden = ("output", "max_tokens", "true", "future", "seed", "workload", "remaining_output")
    allowed = {"expected_output_tokens"}
    found = [n for n in names_in(view) if n not in allowed and any(f in n for f in forbidden)]
    assert found == []


@pytest.mark.parametrize("table", [EngineStateField, RouterRow])
def test_tables_have_no_column_for_the_future(table: type[EngineStateField | RouterRow]) -> None:
    assert [
        column.name for column in table if "OUTPUT" in column.name or "SEED" in column.name
    ] == []
