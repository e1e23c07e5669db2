"""rr-veto, LMetric, Block and Preble, on clusters small enough to work out by hand."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from synergy_gym.policies import describe, make_router_policy
from synergy_gym.types import Outcome, RequestView, RouterRow
from tests.policies.routing import Cluster

#        base  seq  token context  pair  p.ctx prefill mixed floor
MODEL = (10.0, 1.0, 0.1, 0.001, 1e-4, 0.0, 2.0, 0.002, 5.0)
FAST = (5.0, 0.5, 0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
SLOW = (10.0, 1.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
NONE = (0.0,) * 9


class TestRoundRobinVeto:
    def test_round_robin_while_balanced(self) -> None:
        cluster = Cluster("rr-veto")
        cluster.set(RouterRow.IN_FLIGHT, 7, 5, 6)
        assert [cluster.route() for _ in range(4)] == [0, 1, 2, 0]

    def test_more_than_two_above_the_fewest_is_passed_over(self) -> None:
        cluster = Cluster("rr-veto")
        cluster.set(RouterRow.IN_FLIGHT, 3, 6, 5)
        assert [cluster.route() for _ in range(4)] == [0, 2, 0, 2]
        cluster.set(RouterRow.IN_FLIGHT, 3, 0, 9)
        assert [cluster.route() for _ in range(2)] == [1, 1]

    def test_margin(self) -> None:
        cluster = Cluster("rr-veto:margin=3")
        cluster.set(RouterRow.IN_FLIGHT, 3, 6, 7)
        assert [cluster.route() for _ in range(3)] == [0, 1, 0]
        assert describe("rr-veto").parameters == {"margin": 2}
        with pytest.raises(ValueError, match="margin is -1; use 0 or more"):
            make_router_policy("rr-veto:margin=-1")

    def test_the_fewest_are_counted_among_engines_that_are_up(self) -> None:
        cluster = Cluster("rr-veto")
        cluster.set(RouterRow.ALIVE, 0, 1, 1)
        cluster.set(RouterRow.IN_FLIGHT, 0, 8, 9)
        assert [cluster.route() for _ in range(3)] == [1, 2, 1]

    def test_the_last_engine_up_gets_all(self) -> None:
        cluster = Cluster("rr-veto")
        cluster.set(RouterRow.ALIVE, 0, 0, 1)
        cluster.set(RouterRow.IN_FLIGHT, 0, 0, 99)
        assert [cluster.route() for _ in range(3)] == [2, 2, 2]


class TestLMetric:
    def test_without_prefixes_the_batch_decides_then_the_first(self) -> None:
        cluster = Cluster("lmetric")
        cluster.set(RouterRow.IN_FLIGHT, 3, 1, 1)
        assert cluster.route(100) == 1

    def test_product_of_uncached_tokens_and_batch(self) -> None:
        cluster = Cluster("lmetric")
        assert cluster.route(160, blocks=range(10)) == 0
        cluster.set(RouterRow.IN_FLIGHT, 4, 1, 2)  # 80 x 5 = 400 against 160 x 2 = 320
        assert cluster.route(160, blocks=[*range(5), *range(90, 95)]) == 1
        cluster.set(RouterRow.IN_FLIGHT, 2, 1, 2)  # engine 1 knows these five as well: 80 x 2
        assert cluster.route(160, blocks=[*range(5), *range(70, 75)]) == 1
        cluster.set(RouterRow.IN_FLIGHT, 2, 4, 2)  # 80 x 3 = 240 against 80 x 5 and 160 x 3
        assert cluster.route(160, blocks=[*range(5), *range(60, 65)]) == 0

    def test_a_prompt_known_whole_still_costs_a_token(self) -> None:
        cluster = Cluster("lmetric", engines=2)
        cluster.route(32, blocks=[1, 2])
        cluster.set(RouterRow.IN_FLIGHT, 31, 0)  # 1 x 32 against 32 x 1: a tie
        assert cluster.route(32, blocks=[1, 2]) == 0
        cluster.set(RouterRow.IN_FLIGHT, 32, 0)
        assert cluster.route(32, blocks=[1, 2]) == 1

    def test_down_engines_are_skipped_and_forgotten(self) -> None:
        cluster = Cluster("lmetric", engines=2)
        cluster.route(160, blocks=range(10))
        cluster.set(RouterRow.ALIVE, 0, 1)
        assert cluster.route(160, blocks=range(10)) == 1
        cluster.set(RouterRow.ALIVE, 1, 1)
        cluster.set(RouterRow.IN_FLIGHT, 0, 3)
        assert cluster.route(160, blocks=range(10)) == 1  # 160 x 1 against 1 x 4

    def test_memory(self) -> None:
        assert describe("lmetric").parameters == {"memory_blocks": 0}
        cluster = Cluster("lmetric:memory_blocks=1", engines=2)
        cluster.route(32, blocks=[1, 2])
        cluster.set(RouterRow.IN_FLIGHT, 1, 0)  # 16 x 2 against 32 x 1: a tie
        assert cluster.route(32, blocks=[1, 2]) == 0


class TestBlock:
    def predicted(self, policy: str = "block", expected: float | None = 100.0) -> float:
        cluster = self.busy(policy)
        request = RequestView(400, 0.0, expected_output_tokens=expected)
        return float(cluster.policy.predict_ms(request, cluster.view())[0])

    def busy(self, policy: str) -> Cluster:
        cluster = Cluster(policy, engines=1)
        cluster.publish(MODEL)
        cluster.set(RouterRow.IN_FLIGHT, 4)
        cluster.set(RouterRow.PUSH_RUNNING, 3)
        cluster.set(RouterRow.PUSH_PENDING_TOKENS, 503)
        cluster.set(RouterRow.ROUTED_SINCE_PUSH, 1099)
        cluster.set(RouterRow.PUSH_USED_BLOCKS, 50)
        cluster.set(RouterRow.PUSH_TOTAL_BLOCKS, 100)
        return cluster

    def test_prediction(self) -> None:
        """500 + 1,099 + 400 tokens to prefill, 996 per step, beside 800 tokens of context."""
        decode = 10 + 1.1 * 5
        ttft = 3 * (decode + 2 + 0.003 * 800) + 0.1 * 1999 + 1e-4 * 400**2 / 2
        answer = 100 * (decode + 0.001 * (800 + 400 + 50))
        assert self.predicted() == pytest.approx(ttft + answer)
        assert self.predicted("block:metric=ttft") == pytest.approx(ttft)

    def test_the_floor_bounds_the_linear_part(self) -> None:
        cluster = Cluster("block", engines=1)
        cluster.publish((1.0, 0, 0, 0, 0, 0, 0, 0, 5.0))
        request = RequestView(10, 0.0, expected_output_tokens=100.0)
        assert cluster.policy.predict_ms(request, cluster.view()) == pytest.approx([5 + 500])

    def test_without_a_slot_it_waits_for_one(self) -> None:
        """With 20 others on 16 slots five must leave; 16 leave while one answer is made."""
        cluster = Cluster("block:metric=ttft", engines=1)
        cluster.publish((0, 0, 0, 0, 0, 0, 0, 0, 5.0))
        cluster.set(RouterRow.IN_FLIGHT, 20)
        request = RequestView(10, 0.0, expected_output_tokens=100.0)
        assert cluster.policy.predict_ms(request, cluster.view()) == pytest.approx(
            [5 + 5 / 16 * 500]
        )

    def test_lengths_are_published_seen_or_assumed(self) -> None:
        cluster = Cluster("block", engines=1)
        cluster.publish((0, 0, 0, 0, 0, 0, 0, 0, 1.0))

        def latency(expected: float | None) -> float:
            request = RequestView(10, 0.0, expected_output_tokens=expected)
            return float(cluster.policy.predict_ms(request, cluster.view())[0]) - 1.0

        assert latency(None) == 256
        cluster.finish(0, 10)
        cluster.finish(0, 30)
        cluster.finish(0, 9000, outcome=Outcome.ABORTED)
        assert latency(None) == 20
        assert latency(7.0) == 7

    def test_the_fastest_engine_gets_it_until_it_is_busy(self) -> None:
        cluster = Cluster("block")
        cluster.publish(SLOW, FAST, SLOW)
        assert cluster.route() == 1
        cluster.set(RouterRow.IN_FLIGHT, 0, 14, 0)
        cluster.set(RouterRow.PUSH_PENDING_TOKENS, 9, 0, 0)
        assert cluster.route() == 2

    def test_ties_are_random(self) -> None:
        cluster = Cluster("block")
        cluster.publish(FAST, SLOW, FAST)
        assert cluster.shares() == pytest.approx([0.5, 0.0, 0.5], abs=0.04)

    def test_it_asks_as_many_as_it_is_told(self) -> None:
        cluster = Cluster("block:probed=1")
        cluster.publish(SLOW, FAST, SLOW)
        assert cluster.shares() == pytest.approx([1 / 3] * 3, abs=0.04)
        cluster = Cluster("block:probed=2")
        cluster.publish(SLOW, FAST, SLOW)
        assert cluster.shares() == pytest.approx([1 / 6, 2 / 3, 1 / 6], abs=0.04)

    def test_engines_without_a_model_are_no_candidates(self) -> None:
        cluster = Cluster("block")
        cluster.publish(SLOW, NONE, NONE)
        cluster.set(RouterRow.IN_FLIGHT, 99, 0, 0)
        assert {cluster.route() for _ in range(9)} == {0}
        assert cluster.policy.no_model.count == 0

    def test_without_any_model_it_is_random_and_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        cluster = Cluster("block")
        cluster.set(RouterRow.ALIVE, 1, 0, 1)
        with caplog.at_level(logging.WARNING):
            assert cluster.shares(2000) == pytest.approx([0.5, 0.0, 0.5], abs=0.05)
        assert cluster.policy.no_model.count == 2000
        assert caplog.text.count("requests go to a random engine") == 1

    def test_the_last_engine_up_gets_all(self) -> None:
        cluster = Cluster("block")
        cluster.publish(FAST, FAST, SLOW)
        cluster.set(RouterRow.ALIVE, 0, 0, 1)
        assert {cluster.route() for _ in range(9)} == {2}

    def test_parameters(self) -> None:
        known = {"metric": "e2e", "probed": 0, "output_tokens": 256.0}
        assert describe("block").parameters == known
        for wrong in ("output_tokens=0.5", "probed=-1"):
            with pytest.raises(ValueError, match="use >= 1 token and >= 0 engines"):
                make_router_policy(f"block:{wrong}")


class TestPreble:
    def test_exploring_costs_the_prefill_and_what_is_there(self) -> None:
        """An answer is 45 tokens of 0.15 s, so the loads differ by prefill times alone."""
        cluster = Cluster("preble", engines=2)
        cluster.publish(SLOW, FAST)
        assert cluster.route(1000) == 1  # 100 ms against 50 ms
        answer = 45 * 150.0
        assert cluster.policy.load_ms() == pytest.approx([0, 50 + answer])
        assert cluster.route(1000) == 0
        assert cluster.policy.load_ms() == pytest.approx([100 + answer, 50 + answer])
        assert cluster.route(1000) == 1

    def test_pairs_count(self) -> None:
        cluster = Cluster("preble", engines=1)
        cluster.publish(MODEL)
        cluster.route(160, blocks=range(10))
        load = cluster.policy.load_ms()[0]
        assert load == pytest.approx(160 * 0.1 + 160 * 80 * 1e-4 + 45 * 150)
        cluster.route(320, blocks=range(20))
        more = 160 * 0.1 + 160 * (160 + 80) * 1e-4 + 45 * 150
        assert cluster.policy.load_ms()[0] == pytest.approx(load + more)

    def test_a_longer_match_than_the_rest_is_exploited(self) -> None:
        cluster = Cluster("preble")
        cluster.publish(FAST, FAST, FAST)
        assert cluster.route(160, blocks=range(10)) == 0
        assert cluster.route(288, blocks=range(18)) == 0  # 160 of 288 are there
        assert cluster.route(320, blocks=[*range(10), *range(50, 60)]) == 1  # half is not more

    def test_the_lightest_holder_is_exploited(self) -> None:
        cluster = Cluster("preble")
        cluster.publish(FAST, FAST, FAST)
        assert [cluster.route(320, blocks=range(20)) for _ in range(2)] == [0, 0]
        assert cluster.route(800, blocks=[*range(20), *range(100, 130)]) == 1  # explores
        # Both hold the 20 blocks; 0 has had two answers, 1 has had one.
        assert cluster.route(400, blocks=range(20)) == 1
        assert cluster.route(400, blocks=range(20)) == 0

    def test_the_heaviest_sheds_load(self) -> None:
        cluster = Cluster("preble:rebalance_ratio=2,rebalance_after=3", engines=2)
        cluster.publish(FAST, FAST)
        assert cluster.route(160, blocks=range(10)) == 0
        assert cluster.route(100) == 1
        again = [cluster.route(160, blocks=range(10)) for _ in range(3)]
        assert again == [0, 0, 1]  # three answers against one are more than twice as much
        cluster = Cluster("preble:rebalance_ratio=2", engines=2)
        cluster.publish(FAST, FAST)
        assert [cluster.route(160, blocks=range(10)) for _ in range(52)] == [0] * 50 + [1, 1]

    def test_only_the_heaviest_does(self) -> None:
        cluster = Cluster("preble:rebalance_ratio=1,rebalance_after=0")
        cluster.publish(FAST, FAST, FAST)
        assert cluster.route(160, blocks=range(10)) == 0
        assert cluster.route(3000) == 1
        assert cluster.route(160, blocks=range(10)) == 0  # 1 has more to do

    def test_load_expires(self) -> None:
        cluster = Cluster("preble", engines=2)
        cluster.publish(FAST, FAST)
        cluster.route(100)
        cluster.now_s = 179.9
        assert cluster.route(100) == 1
        cluster.now_s = 180.0
        assert cluster.route(100) == 0
        assert cluster.policy._window.requests.tolist() == [1, 1]

    def test_answers_are_learned(self) -> None:
        cluster = Cluster("preble:output_tokens=10", engines=2)
        cluster.publish(FAST, FAST)
        cluster.finish(0, 30, tpot_s=0.05)
        cluster.finish(0, 1)
        cluster.finish(1, 5000, tpot_s=9.0, outcome=Outcome.FAILED)
        cluster.route(100)
        cluster.route(100)
        tokens = (10 + 30 + 1) / 3
        assert cluster.policy.load_ms() == pytest.approx([5 + tokens * 100, 5 + tokens * 150])

    def test_the_last_200_answers_count(self) -> None:
        cluster = Cluster("preble", engines=1)
        for _ in range(199):
            cluster.finish(0, 45, tpot_s=0.1)
        assert cluster.policy._tpot_ms == pytest.approx([100 + 50 / 200])
        cluster.finish(0, 45, tpot_s=0.1)
        assert cluster.policy._tpot_ms == pytest.approx([100])

    @pytest.mark.parametrize(("memory", "choice"), [(20, 1), (30, 0)])
    def test_what_it_would_evict_costs_what_is_reused(self, memory: int, choice: int) -> None:
        """Engine 0 holds 20 blocks, and half of its prompt tokens were cached.

        160 new tokens take 8 ms there, after 16.35 ms of load, and 26.4 ms on engine 1. What 0
        had to drop for them would take 8 ms again, for every second token.
        """
        cluster = Cluster(f"preble:memory_blocks={memory},output_tokens=0.001", engines=2)
        cluster.publish(FAST, (0.0, 0.0, 0.165, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
        assert [cluster.route(320, blocks=range(20)) for _ in range(2)] == [0, 0]
        assert cluster.policy.load_ms() == pytest.approx([16 + 0.05 + 0.3, 0])
        assert cluster.route(160, blocks=range(50, 60)) == choice

    def test_an_engine_without_a_model_is_loud(self, caplog: pytest.LogCaptureFixture) -> None:
        cluster = Cluster("preble:output_tokens=0.001", engines=2)
        cluster.publish(NONE, SLOW)
        with caplog.at_level(logging.WARNING):
            assert cluster.route(1000) == 0  # 50 ms, as assumed, against 100 ms
            assert cluster.route(100) == 1
        assert cluster.policy.no_model.count == 2
        assert caplog.text.count("no step-latency model") == 1

    def test_down_engines_get_nothing(self) -> None:
        cluster = Cluster("preble")
        cluster.publish(FAST, FAST, FAST)
        cluster.route(160, blocks=range(10))
        cluster.set(RouterRow.ALIVE, 0, 0, 1)
        assert {cluster.route(160, blocks=range(10)) for _ in range(5)} == {2}

    def test_parameters(self) -> None:
        assert describe("preble").parameters == {
            "window_s": 180.0,
            "rebalance_ratio": 15.0,
            "rebalance_after": 50,
            "per_token_ms": 0.05,
            "output_tokens": 45.0,
            "memory_blocks": 0,
        }
        for wrong in ("window_s=0", "per_token_ms=0", "output_tokens=0"):
            with pytest.raises(ValueError, match="must be > 0"):
                make_router_policy(f"preble:{wrong}")
        with pytest.raises(ValueError, match=r"rebalance_ratio is 0\.5; use >= 1"):
            make_router_policy("preble:rebalance_ratio=0.5")


def test_without_requests_for_a_while_nothing_breaks() -> None:
    """Windows and rates empty themselves."""
    for name in ("preble", "prism-ref", "prism-fixed", "block", "lmetric", "rr-veto"):
        cluster = Cluster(name)
        cluster.publish(FAST, FAST, FAST)
        for at in (0.0, 1e4, 2e4):
            cluster.now_s = at
            assert cluster.route() in (0, 1, 2)
    assert np.isfinite(cluster.now_s)
