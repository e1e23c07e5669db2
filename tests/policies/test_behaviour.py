"""What single policies do, on states small enough to see through."""

from __future__ import annotations

import numpy as np
import pytest

from synergy_gym.policies import make_engine_policy, make_router_policy
from synergy_gym.types import (
    SLO,
    BatchDecision,
    ClusterView,
    EngineSpec,
    EngineStateField,
    EngineView,
    RequestArrays,
    RequestView,
    RouterRow,
)

SPEC = EngineSpec("e", "h100", "m", "p", 16, 1000, 8192, 100)
SLOS = (SLO("slow", ttft_s=2.0), SLO("none"), SLO("fast", ttft_s=0.5))


def queue(rows: list[tuple[int, int, int, float, int]]) -> RequestArrays:
    """From (prompt, computed, generated, waited, class) per request."""
    columns = list(zip(*rows, strict=True)) or [()] * 5
    prompt, computed, generated, slo = (np.array(columns[i], np.int64) for i in (0, 1, 2, 4))
    zeros = np.zeros(len(rows), np.int64)
    waited = np.array(columns[3], np.float64)
    return RequestArrays(prompt, computed, generated, zeros, waited, waited - 9, slo, zeros)


def decode(prompt: int = 50) -> tuple[int, int, int, float, int]:
    return prompt, prompt + 4, 5, 1.0, 0


def prompt(tokens: int, waited: float = 0.0, slo: int = 0) -> tuple[int, int, int, float, int]:
    return tokens, 0, 0, waited, slo


def decide(
    name: str,
    running: list[tuple[int, int, int, float, int]],
    waiting: list[tuple[int, int, int, float, int]],
    free: int = 100,
) -> BatchDecision:
    arrays = queue(running), queue(waiting)
    state = np.zeros(len(EngineStateField), np.int64)
    state[EngineStateField.RUNNING], state[EngineStateField.WAITING] = len(running), len(waiting)
    state[EngineStateField.DECODES] = np.count_nonzero(arrays[0].is_decode)
    state[EngineStateField.KV_FREE_BLOCKS], state[EngineStateField.KV_TOTAL_BLOCKS] = free, 100
    policy = make_engine_policy(name)
    policy.reset(np.random.default_rng(0), SPEC, SLOS)
    view = EngineView(spec=SPEC, slos=SLOS, state=state, last_step=None, fetch=lambda: arrays)
    return policy.decide(view)


def listed(decision: BatchDecision) -> tuple[int, int | None, list[int] | None]:
    caps = decision.token_caps
    return decision.token_budget, decision.max_running, None if caps is None else caps.tolist()


class TestVllmV0:
    def test_whole_prompts_go_first_and_decodes_wait(self) -> None:
        decision = decide("vllm-v0", [decode(), decode()], [prompt(400), prompt(500), prompt(200)])
        assert listed(decision) == (1000, 4, [0, 0, -1, -1, -1])

    def test_decodes_run_alone_when_nothing_waits_or_fits(self) -> None:
        assert listed(decide("vllm-v0", [decode()], [])) == (1000, 1, None)
        assert listed(decide("vllm-v0", [decode()], [prompt(400)], free=24)) == (1000, 1, None)
        assert listed(decide("vllm-v0", [decode()], [prompt(400)], free=25)) == (1000, 2, [0, -1])

    def test_blocks_of_the_whole_batch_must_be_free(self) -> None:
        waiting = [prompt(160), prompt(160), prompt(160)]
        assert decide("vllm-v0", [decode()], waiting, free=29).max_running == 3

    def test_running_requests_count_against_the_slots(self) -> None:
        assert decide("vllm-v0", [decode()] * 15, [prompt(9)] * 4).max_running == 16
        assert listed(decide("vllm-v0", [decode()] * 16, [prompt(9)])) == (1000, 16, None)

    def test_a_prompt_above_the_budget_is_chunked_alone(self) -> None:
        waiting = [prompt(1300), prompt(10)]
        assert listed(decide("vllm-v0", [decode()], waiting)) == (1000, 2, [0, -1, -1])
        half = (1300, 1000, 0, 1.0, 0)
        assert listed(decide("vllm-v0", [decode(), half], [prompt(10)])) == (1000, 2, [0, -1, -1])
        assert decide("vllm-v0", [decode()], [prompt(990), prompt(1300)]).max_running == 2

    def test_an_empty_engine_always_offers_the_head(self) -> None:
        assert listed(decide("vllm-v0", [], [prompt(400)], free=1)) == (1000, 1, None)

    def test_own_budget(self) -> None:
        waiting = [prompt(200), prompt(200), prompt(200)]
        assert listed(decide("vllm-v0:token_budget=400", [], waiting)) == (400, 2, None)


def test_sarathi_covers_all_decodes() -> None:
    assert decide("sarathi-512", [decode()], [prompt(9)]).token_budget == 512
    assert decide("sarathi-512:chunk_tokens=2", [decode()] * 5, []).token_budget == 5
    assert decide("static-2", [decode()] * 5, []).token_budget == 2
    assert decide("vllm-v1", [decode()] * 5, []).token_budget == 1000


def test_shortest_prompt_counts_lost_output_and_keeps_ties() -> None:
    preempted = (10, 0, 25, 1.0, 0)
    decision = decide("shortest-prompt", [], [prompt(30), preempted, prompt(30), prompt(7)])
    assert decision.waiting_order is not None
    assert decision.waiting_order.tolist() == [3, 0, 2, 1]
    assert decide("shortest-prompt", [decode()], [prompt(3)]).waiting_order is None


def test_earliest_deadline_uses_each_class() -> None:
    waiting = [prompt(1, 1.0, 0), prompt(1, 9.0, 1), prompt(1, 0.0, 2), prompt(1, 0.2, 2)]
    order = decide("earliest-deadline", [], [*waiting, prompt(1, 9.5, 1)]).waiting_order
    assert order is not None
    assert order.tolist() == [3, 2, 0, 4, 1]


def test_earliest_deadline_sees_single_nanoseconds() -> None:
    late = 1_000_000.0
    waiting = [prompt(1, late, 0), prompt(1, late + 1e-9, 0)]
    order = decide("earliest-deadline", [], waiting).waiting_order
    assert order is not None
    assert order.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["shortest-prompt", "earliest-deadline"])
def test_sorting_a_priority_queue_is_refused(name: str) -> None:
    spec = EngineSpec("p", "g", "m", "p", 8, 512, 1024, 9, scheduling="priority")
    with pytest.raises(ValueError, match=r"'priority'.* use scheduling 'fcfs'"):
        make_engine_policy(name).reset(np.random.default_rng(0), spec, SLOS)


class Router:
    """A router policy on a cluster whose table the test fills in."""

    def __init__(self, name: str, engines: int = 3, weights: tuple[float, ...] = ()) -> None:
        self.specs = tuple(
            EngineSpec(f"e{i}", "g", "m", "p", 16, 1000, 8192, 100, weight=w)
            for i, w in enumerate(weights or (1.0,) * engines)
        )
        self.rng = np.random.default_rng(11)
        self.rows = np.zeros((len(self.specs), len(RouterRow)), np.int64)
        self.rows[:, RouterRow.ALIVE] = 1
        self.policy = make_router_policy(name)
        self.policy.reset(self.rng, self.specs, SLOS)

    def set(self, column: RouterRow, *values: int) -> None:
        self.rows[:, column] = values

    def route(self, session: int = -1, blocks: range = range(0)) -> int:
        request = RequestView(100, 1.0, session, block_hashes=np.array(blocks, np.int64))
        view = ClusterView(
            now_ns=0,
            engines=self.specs,
            rows=self.rows,
            session_engine=-1,
            session_age_s=np.inf,
            rng=self.rng,
            information=self.policy.information,
        )
        return self.policy.route(request, view)

    def shares(self, draws: int = 3000) -> list[float]:
        counts = np.bincount([self.route() for _ in range(draws)], minlength=len(self.specs))
        return [round(float(count) / draws, 3) for count in counts]


def test_round_robin_skips_a_down_engine() -> None:
    router = Router("round-robin")
    assert [router.route() for _ in range(4)] == [0, 1, 2, 0]
    router.set(RouterRow.ALIVE, 1, 0, 1)
    assert [router.route() for _ in range(4)] == [0, 2, 0, 2]


def test_random_and_weighted_shares() -> None:
    assert Router("random").shares() == pytest.approx([1 / 3] * 3, abs=0.04)
    router = Router("weighted", weights=(13.7, 22.4, 64.0))
    assert router.shares() == pytest.approx([0.137, 0.224, 0.639], abs=0.04)
    router.set(RouterRow.ALIVE, 1, 1, 0)
    assert router.shares() == pytest.approx([0.379, 0.621, 0], abs=0.04)
    with pytest.raises(ValueError, match="must be > 0"):
        Router("weighted", weights=(1.0, 0.0))


def test_sessions_stay_and_only_those_of_a_down_engine_move() -> None:
    router = Router("session", engines=8)
    home = [router.route(session) for session in range(2000)]
    assert home == [router.route(session) for session in range(2000)]
    assert np.bincount(home, minlength=8).min() > 2000 / 8 * 0.6
    router.rows[3, RouterRow.ALIVE] = 0
    moved = [router.route(session) for session in range(2000)]
    assert all(a == b for a, b in zip(home, moved, strict=True) if a != 3)
    assert len({b for a, b in zip(home, moved, strict=True) if a == 3}) > 3
    router.rows[3, RouterRow.ALIVE] = 1
    assert home == [router.route(session) for session in range(2000)]


def test_requests_without_session_go_where_least_is_in_flight() -> None:
    router = Router("session")
    router.set(RouterRow.IN_FLIGHT, 3, 1, 2)
    assert router.route() == 1
    with pytest.raises(ValueError, match="virtual_nodes is 0"):
        make_router_policy("session:virtual_nodes=0")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("least-loaded", RouterRow.SCRAPE_WAITING),
        ("latency-based", RouterRow.SCRAPE_E2E_NS),
        ("latency-based:latency=ttft", RouterRow.SCRAPE_TTFT_NS),
        ("latency-based:latency=tpot", RouterRow.SCRAPE_TPOT_NS),
        ("least-kv", RouterRow.PUSH_USED_BLOCKS),
        ("least-outstanding", RouterRow.IN_FLIGHT),
    ],
)
def test_smallest_value_wins_among_engines_that_are_up(name: str, column: RouterRow) -> None:
    router = Router(name)
    router.set(RouterRow.PUSH_TOTAL_BLOCKS, 100, 100, 100)
    router.set(column, 70, 50, 10)
    assert router.route() == 2
    router.set(RouterRow.ALIVE, 1, 1, 0)
    assert router.route() == 1
    router.set(column, 50, 50, 10)
    expected = {0} if name == "least-outstanding" else {0, 1}
    assert {router.route() for _ in range(40)} == expected


def test_power_of_two_never_takes_the_worst() -> None:
    router = Router("power-of-two")
    router.set(RouterRow.IN_FLIGHT, 5, 1, 9)
    shares = router.shares()
    assert shares == pytest.approx([1 / 3, 2 / 3, 0], abs=0.04)
    router.set(RouterRow.ALIVE, 0, 0, 1)
    assert router.route() == 2


class TestPrefixAware:
    def test_a_long_known_prefix_wins_over_load(self) -> None:
        router = Router("prefix-aware")
        router.set(RouterRow.IN_FLIGHT, 0, 5, 5)
        assert router.route(blocks=range(10, 20)) == 0
        router.set(RouterRow.IN_FLIGHT, 9, 5, 2)
        assert router.route(blocks=range(10, 30)) == 0
        assert router.route(blocks=range(50, 60)) == 2

    def test_a_short_match_or_no_blocks_go_by_load(self) -> None:
        router = Router("prefix-aware")
        router.route(blocks=range(10, 13))
        router.set(RouterRow.IN_FLIGHT, 9, 5, 2)
        assert router.route(blocks=range(10, 20)) == 2  # 3 of 10 is not above 0.3
        assert router.route() == 2

    def test_the_longer_match_wins_then_the_load(self) -> None:
        router = Router("prefix-aware")
        router.route(blocks=range(10, 14))
        router.set(RouterRow.ALIVE, 1, 1, 1)
        router.set(RouterRow.IN_FLIGHT, 70, 0, 3)  # out of balance: 1 learns the longer chain
        assert router.route(blocks=range(10, 20)) == 1
        router.set(RouterRow.IN_FLIGHT, 0, 60, 3)
        assert router.route(blocks=range(10, 20)) == 1
        router.set(RouterRow.IN_FLIGHT, 0, 65, 3)
        assert router.route(blocks=range(10, 20)) == 0

    def test_memory_is_bounded_and_forgets_leaves_first(self) -> None:
        router = Router("prefix-aware:memory_blocks=4", engines=2)
        router.route(blocks=range(10, 16))
        router.set(RouterRow.IN_FLIGHT, 3, 0)
        assert router.route(blocks=range(10, 20)) == 0  # 4 of 10 are still known
        router.set(RouterRow.IN_FLIGHT, 0, 9)
        assert router.route(blocks=range(40, 43)) == 0
        router.set(RouterRow.IN_FLIGHT, 9, 0)
        assert router.route(blocks=range(10, 14)) == 1  # 1 of 4 is left

    def test_a_down_engine_is_forgotten(self) -> None:
        router = Router("prefix-aware")
        router.route(blocks=range(10, 20))
        router.set(RouterRow.ALIVE, 0, 1, 1)
        router.set(RouterRow.IN_FLIGHT, 5, 1, 0)
        assert router.route(blocks=range(70, 80)) == 2
        router.set(RouterRow.ALIVE, 1, 1, 1)
        assert router.route(blocks=range(10, 20)) == 2
