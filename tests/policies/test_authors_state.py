"""The authors' state and reward, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from synergy_gym.actions import EngineGrid
from synergy_gym.policies.authors_state import AUTHORS_GRID, ROWS, AuthorsState, Judged
from synergy_gym.sim.plain.server import engine_state
from synergy_gym.types import NS_PER_S, SLO, EngineSpec, EngineView, RequestArrays, StepReport

SPEC = EngineSpec("e", "h100", "m", "p", 64, 8192, 8192, 4000)
SLOS = (SLO("chat", ttft_s=1.0, e2e_s=10.0), SLO("batch"))
STEP = StepReport(0, 9.9, 0.06, 4, 900, 3, 897, 0, 0, 0, 0, 1, 0, 1024)

Request = tuple[int, int, int, float, int]
"""(prompt, computed, generated, seconds since arrival, class)."""


def queue(requests: Sequence[Request]) -> RequestArrays:
    columns = [np.array([r[i] for r in requests], np.int64) for i in range(3)]
    prompt, computed, generated = columns
    return RequestArrays(
        prompt_tokens=prompt,
        computed_tokens=computed,
        generated_tokens=generated,
        cached_tokens=np.zeros(len(requests), np.int64),
        waited_s=np.array([r[3] for r in requests], np.float64),
        first_token_age_s=np.where(generated > 0, 0.1, -1.0),
        slo_class=np.array([r[4] for r in requests], np.int64),
        priority=np.zeros(len(requests), np.int64),
    )


def view(
    now_s: float,
    running: Sequence[Request] = (),
    waiting: Sequence[Request] = (),
    last: StepReport | None = None,
) -> EngineView:
    queues = queue(running), queue(waiting)
    state = engine_state(*queues, round(now_s * NS_PER_S), last, 2000, 4000)
    return EngineView(spec=SPEC, slos=SLOS, state=state, last_step=last, fetch=lambda: queues)


def test_every_number_of_a_busy_engine() -> None:
    running = [(100, 105, 6, 2.0, 0), (50, 51, 2, 12.0, 0), (400, 100, 0, 3.0, 1)]
    waiting = [(3000, 0, 0, 5.0, 0), (1000, 0, 0, 15.0, 1)]
    state = AuthorsState(SPEC, SLOS)
    x = state(view(10.0, running, waiting, STEP))
    left = [0.8, -0.2, 0.9]  # of the running ones; batch has the default of 30 s
    expected = [2 / 3, np.mean(left[:2]), -0.2, 300 / 400, 0.9]
    expected += [np.mean([0.5, 0.5]), 2000 / 10_000, 0.0, 1024 / 2048, 0.06 / 0.3]
    np.testing.assert_allclose(x[:10], expected, rtol=1e-6)
    rows = x[10:30].reshape(ROWS, 2)
    np.testing.assert_allclose(rows[:2], [[0.3, 0.5], [0.1, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(x[30:36], [1, 0.8, 1, -0.2, 0, 0.9], rtol=1e-6)
    assert x[50:60].tolist() == [1, 1] + [0] * 8
    assert x[60:70].tolist() == [1, 1, 1] + [0] * 7
    assert not rows[2:].any()
    names = state.layout.names()
    assert names[3] == "authors.prefill_tokens"
    assert names[12:14] == ["waiting[1].prompt", "waiting[1].left"]
    assert len(names) == len(x) == 70


def test_an_empty_engine_is_all_zeros() -> None:
    assert not AuthorsState(SPEC, SLOS)(view(0.0)).any()


def test_only_the_first_ten_of_each_queue_are_rows() -> None:
    many = [(100 * (i + 1), 0, 0, float(i), 0) for i in range(15)]
    x = AuthorsState(SPEC, SLOS)(view(20.0, waiting=many))
    np.testing.assert_allclose(x[10:30:2], np.arange(1, 11) / 100, rtol=1e-6)
    assert x[5] == pytest.approx(1 - np.mean(np.arange(15)) / 10)
    assert x[50:60].all()


def test_finished_requests_are_judged_at_the_end_of_the_step() -> None:
    state = AuthorsState(SPEC, SLOS)
    before = [(10, 12, 3, 9.93, 0), (20, 22, 3, 9.95, 0), (30, 32, 3, 1.0, 0)]
    state(view(9.9, before, last=replace(STEP, start_s=9.8, step_s=0.05)))
    # Two leave: one 9.99 s old at the end of the step, one 10.01 s; the third is preempted.
    after = replace(STEP, start_s=9.9, step_s=0.06, finished=2, preempted=1)
    x = state(view(9.97, [], [(30, 0, 3, 1.07, 0)], after))
    assert (state.judged.in_time, state.judged.late) == (1, 1)
    assert state.judged.recent_in_time == x[7] == 0.5
    state(view(9.97, [], [(30, 0, 3, 1.07, 0)], after))
    assert (state.judged.in_time, state.judged.late) == (0, 0), "the same step counts once"


def test_equal_arrivals_are_told_apart_by_count() -> None:
    state = AuthorsState(SPEC, SLOS)
    twins = [(10, 12, 3, 1.0, 0)] * 3
    state(view(5.0, twins))
    step = replace(STEP, start_s=5.0, step_s=0.1, finished=2)
    state(view(5.1, [(10, 13, 4, 1.1, 0)], last=step))
    assert (state.judged.in_time, state.judged.late) == (2, 0)


def test_the_recent_share_covers_a_hundred_requests() -> None:
    state, now_s = AuthorsState(SPEC, SLOS), 100.0
    for number in range(150):
        age_s = 20.0 if number < 60 else 1.0
        state(view(now_s, [(10, 12, 3, age_s, 0)]))
        state(view(now_s + 0.1, last=replace(STEP, start_s=now_s, step_s=0.1, finished=1)))
        now_s += 1.0
    assert state.judged.recent_in_time == pytest.approx(0.9)
    assert state.judged.recent_tps == pytest.approx(900 / 0.1)


@pytest.mark.parametrize(
    ("judged", "terms"),
    [
        (Judged(0, 0, 0.0, 0.0, 0), (0.0, 0.0, 0.0, 0.0)),
        (Judged(3, 1, 0.25, 5000.0, 255), (0.5, 0.25, 0.0, 0.5)),
        (Judged(0, 2, 1.0, 20_000.0, 256), (2.0, 1.0, -0.5, -0.5)),
    ],
)
def test_the_reward_is_the_sum_of_four_terms(judged: Judged, terms: tuple[float, ...]) -> None:
    assert tuple(judged.reward_terms().values()) == terms


def test_their_greedy_serving_is_vllms_own_order() -> None:
    decision = AUTHORS_GRID.decide((1,), view(1.0, [(10, 12, 3, 0.5, 0)], [(9, 0, 0, 0.1, 0)]))
    assert (decision.token_budget, decision.max_running) == (512, SPEC.max_num_seqs)
    assert decision.waiting_order is None
    assert AUTHORS_GRID.shape == (4,)
    assert EngineGrid.from_dict(AUTHORS_GRID.to_dict()) == AUTHORS_GRID
