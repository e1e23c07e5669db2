"""Replay of the measured 8xH100 runs: loader, assumptions, fit and comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.replay import client as rc
from experiments.replay import eight_h100 as rx
from experiments.replay import fit as rf
from experiments.replay import rounds as ro
from experiments.replay import runs as rr
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.kernels.engine import SYNC
from synergy_gym.latency.profiles import load_profile

PROFILE = "h100-llama-3.1-8b-8xh100run"


def requests(count: int, rng: np.random.Generator, begin_s: float, rate: float) -> pd.DataFrame:
    """A log without latencies: two clients, growing sessions."""
    send_s = begin_s + np.sort(rng.uniform(0, count / rate, count))
    return pd.DataFrame(
        {
            "client": rng.integers(0, 2, count),
            "session_id": rng.integers(0, count // 3, count),
            "send_s": send_s.round(3),
            "tokens_in": rng.integers(300, 6500, count),
            "tokens_out": rng.integers(20, 200, count),
        }
    )


def log_of(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The frame as `read_run` gives it back; latencies are made up where there are none."""
    filled = {"ttft_s": 0.2, "e2e_s": 2.0} | {name: frame[name] for name in frame}
    path = folder / "log.csv.gz"
    pd.DataFrame(filled)[list(rr.COLUMNS)].to_csv(path, index=False)
    return rr.read_run(path)


def test_a_log_is_read_in_order_of_sending(tmp_path: Path, rng: np.random.Generator) -> None:
    frame = requests(50, rng, 3.0, 5.0)
    log = log_of(frame.sample(frac=1, random_state=1), tmp_path)
    assert log.send_s.is_monotonic_increasing
    np.testing.assert_allclose(log.tpot_ms, 1800 / log.tokens_out)
    assert (log.groupby("client").age_s.min() == 0).all()
    first = log.groupby("client").send_s.transform("min")
    np.testing.assert_allclose(log.age_s, log.send_s - first)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"e2e_s": 0.1}, "row 0"), ({"tokens_out": 0}, "row 0"), ({"ttft_s": None}, "ttft_s")],
)
def test_impossible_logs_are_refused(
    tmp_path: Path, change: dict[str, float | None], message: str
) -> None:
    row = dict.fromkeys(rr.COLUMNS, 1.0) | {"ttft_s": 0.2, "e2e_s": 2.0} | change
    row = {name: value for name, value in row.items() if value is not None}
    pd.DataFrame([row]).to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(ValueError, match=message):
        rr.read_run(tmp_path / "log.csv")


def test_prompts_of_one_session_share_what_equal_lengths_and_growth_suggest() -> None:
    frame = pd.DataFrame(
        {
            "session_id": [1, 1, 2, 1, 1],
            "tokens_in": [160, 160, 160, 400, 320],
            "tokens_out": [32, 32, 32, 32, 32],
            "send_s": np.arange(5.0),
        }
    )
    offsets, ids = rr.to_workload(frame).block_ids(16)
    first, again, other, grown, cut = (
        ids[offsets[i] : offsets[i] + frame.tokens_in[i] // 16].tolist() for i in range(5)
    )
    assert again == first
    assert not set(other) & set(first)
    assert grown[:10] == again
    assert not set(cut) & set(grown)


def test_the_replayed_part_starts_at_zero(rng: np.random.Generator) -> None:
    frame = requests(30, rng, 100.0, 10.0)
    workload = rr.to_workload(frame, begin_s=100.0)
    np.testing.assert_allclose(workload.arrival_ns / 1e9, frame.send_s - 100.0, atol=1e-6)
    assert workload.prompt_tokens.tolist() == frame.tokens_in.tolist()


def test_lowest_qps_gives_every_engine_its_turn(rng: np.random.Generator) -> None:
    frame = requests(80, rng, 0.0, 20.0)
    world = rr.cluster_with(None)
    result = evaluate(world, "vllm-v1", rr.LowestQps(60.0), workload=rr.to_workload(frame))
    assert np.bincount(result.records.engine).tolist() == [10] * 8
    assert result.records.engine[:8].tolist() == list(range(8))


def test_lowest_qps_forgets_what_left_its_window() -> None:
    send_s = [0.0, 0.1, 0.2, 5.15, 5.16]
    frame = pd.DataFrame({"session_id": 0, "tokens_in": 16, "tokens_out": 2, "send_s": send_s})
    router = rr.LowestQps(window_s=5.0)
    result = evaluate(rr.cluster_with(None), router_policy=router, workload=rr.to_workload(frame))
    # At 5.15 s the requests of 0.0 and 0.1 s no longer count; without a window it were 3 and 4.
    assert result.records.engine.tolist() == [0, 1, 2, 0, 1]


def test_streams_faster_than_a_step_show_an_overloaded_front_end() -> None:
    frame = pd.DataFrame({"tokens_out": [200, 200, 20], "tpot_ms": [9.0, 0.8, 0.8]})
    assert rc.lumped(frame).tolist() == [False, True, False]
    assert not rc.sustained(frame)
    assert rc.sustained(pd.concat([frame[:1]] * 1500 + [frame[1:2]]))


@pytest.mark.parametrize(
    ("simulated", "holds", "expected"),
    [(1.049, True, "yes"), (0.949, True, "no"), (1.0, False, "")],
)
def test_verdicts(simulated: float, holds: bool, expected: str) -> None:
    row = rx.verdict("e2e_s", 90, 1.0, simulated, holds)
    assert row["within_goal"] == expected
    assert row["error_percent"] == pytest.approx(100 * (simulated - 1))
    assert rx.verdict("tpot_ms", 90, 1.0, simulated, holds)["within_goal"] == ""


def test_clients_wait_longer_only_while_they_read(rng: np.random.Generator) -> None:
    send_s = np.arange(0, 600, 0.5)
    early = send_s < 210
    log = pd.DataFrame({"send_s": send_s, "age_s": send_s, "ttft_s": 0.1 + 0.3 * early})
    waits = rc.WaitWhileReading.of([log, log], edges_s=(0.0, 20.0, 60.0, 210.0))
    np.testing.assert_allclose(waits.draw(log, rng), 0.3 * early)


def test_a_wait_delays_the_request_itself(rng: np.random.Generator) -> None:
    frame = requests(60, rng, 0.0, 20.0)
    wait_s = rng.uniform(0, 2, 60)
    late = frame.assign(send_s=frame.send_s + wait_s).sort_values("send_s", kind="stable")
    seen = rr.simulate(rr.NATIVE_05, frame, None, wait_s=wait_s)
    engine = rr.simulate(rr.NATIVE_05, late, None).reindex(frame.index)
    np.testing.assert_allclose(seen.ttft_s, engine.ttft_s + wait_s)
    np.testing.assert_allclose(seen.tpot_ms, engine.tpot_ms)
    np.testing.assert_allclose(seen.e2e_s, engine.e2e_s + wait_s)


def test_rounds_hold_what_finished_in_them() -> None:
    log = pd.DataFrame({"client": 0, "age_s": [299.0, 300.5, 358.0, 600.0], "tokens_out": 11})
    simulated = pd.DataFrame({"ttft_s": 0.5, "tpot_ms": 10.0, "e2e_s": [0.9, 1.0, 3.0, 1.0]})
    means = ro.simulated_means(log, simulated)
    assert means["e2e_s", 50] == (1.0 + 3.0) / 2
    assert means["tpot_ms", 99] == pytest.approx(11.0)
    assert ro.simulated_means(log, simulated, range(5, 6))["e2e_s", 90] == 1.0


def test_measured_rounds_are_those_of_the_run() -> None:
    values = {f"{metric}_p{p}": float(p) for metric in rr.METRICS for p in ro.PERCENTILES}
    own = {"set": "exp_new", "arrival_mode": "timestamp", "engine": "sla"}
    own |= {"router": "roundrobin", "sample_upper": 0.5, "round": 5}
    others = [own | {"round": 0}, own | {"router": "qps"}, own | {"set": "exp"}]
    high = dict.fromkeys(values, 1e6)
    table = pd.DataFrame([own | values, *(other | high for other in others)])
    means = ro.measured_means(table, ro.LENS_RR_05)
    assert means.loc["ttft_s"].tolist() == [50.0, 90.0, 99.0]
    with pytest.raises(ValueError, match="elrar"):
        ro.measured_means(table, replace(ro.LENS_RR_05, router="elrar"))


def test_coefficients_survive_the_table() -> None:
    found = rf.Coefficients(1.2, 1.4, rr.Overhead(0.004, 5e-6))
    same = rf.Coefficients.from_row(found.row() | {"held_out": "none"})  # type: ignore[arg-type]
    assert same.terms == found.terms
    assert same.overhead.per_request_s == pytest.approx(0.004)
    assert same.overhead.per_prompt_token_s == pytest.approx(5e-6)


def test_the_clock_is_the_kernels_and_what_a_busy_node_adds() -> None:
    kernels = load_profile(rf.PROFILE)
    plain, busy = kernels.timed("sync", sustained=1.0), rf.clock(1.2, SYNC.ms + 0.5, 0.1)
    assert busy.floor_ms == pytest.approx(plain.floor_ms + 0.5)
    assert busy.base_ms == pytest.approx(plain.base_ms + 0.5)
    assert busy.per_token_ms == pytest.approx(1.2 * plain.per_token_ms)
    assert busy.per_decode_context_ms == plain.per_decode_context_ms
    assert busy.per_sample_ms == 0.1


def test_a_fit_finds_the_parts_of_a_simulated_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    frame = requests(800, rng, 295.0, 40.0)
    truth = rr.simulate(rr.NATIVE_05, frame, rf.clock(1.25, 1.4), begin_s=255.0)
    truth = rr.add_wait(truth, 0.02 + 1e-5 * frame.tokens_in.to_numpy())
    log = log_of(frame.assign(ttft_s=truth.ttft_s, e2e_s=truth.e2e_s), tmp_path)
    stretches = rf.Stretches({rr.NATIVE_05: log}, rf.node_grid())
    found = rf.fit(stretches, [rr.NATIVE_05])
    # The prior (1.2 ms) keeps a part of what the engine adds; computation takes it over.
    assert found.sustained == pytest.approx(1.25, abs=0.05)
    assert found.sync_ms == pytest.approx(1.4, abs=0.2)
    assert found.overhead.per_prompt_token_s == pytest.approx(1e-5, rel=0.3)

    def cost(sustained: float, sync_ms: float) -> float:
        parts = np.array([sustained, sync_ms, 0.02, 1e-5])
        return float(np.abs(stretches.errors(parts, [rr.NATIVE_05])).mean())

    assert cost(1.25, 1.4) < 0.2 * cost(1.0, 1.2)


def test_the_rival_says_the_same_time_for_long_steps_and_another_for_many_sequences() -> None:
    rival = rf.rival_clock(0.1, 1.2)
    assert rival.per_token_ms == rf.clock(1.0, 1.2).per_token_ms
    assert rival.per_sample_ms == 0.1
    assert len(rf.rival_grid()) == len(rf.PER_SEQUENCE_MS) * len(rf.SYNC_MS)


def test_no_fit_has_seen_the_run_that_it_is_for() -> None:
    for held, runs in rx.FITS.items():
        assert held not in [str(run) for run in runs]
    others = [run for run in (*rr.RUNS, *ro.CELLS) if str(run) not in rx.FITS]
    assert not set(others) & set(rx.FITS[rx.ALL])
    # The arrivals of the cell are those of the native run.
    assert ro.LENS_RR_05 not in rx.FITS[str(rr.NATIVE_05)]


def test_the_profile_holds_the_coefficients_that_were_fitted_on_all_runs() -> None:
    fitted = rx.read_coefficients()[rx.ALL].terms
    packaged = load_profile(PROFILE).timed("sync")
    for name in ("floor_ms", "base_ms", "per_token_ms", "per_prefill_pair_ms"):
        assert getattr(packaged, name) == pytest.approx(getattr(fitted, name), rel=5e-3), name


@pytest.mark.parametrize("run", [rr.NATIVE_05, rr.PACED_07], ids=str)
def test_unseen_runs_of_stock_vllm_are_replayed_within_the_goals(
    data_dir: Path, run: rr.Run
) -> None:
    """Coefficients fitted without the run: E2E within 5 %, median TTFT within 15 %."""
    log = rr.read_run(data_dir / run.file)
    label, coefficients = rx.coefficients_for(run, rx.read_coefficients())
    _, rows = rx.steady_rows(run, log, coefficients, label)
    verdicts = {(row["metric"], row["quantile"]): row for row in rows}
    assert {row["within_goal"] for row in rows} <= {"yes", ""}
    assert abs(verdicts["tpot_ms", "P50"]["error_percent"]) < 4
