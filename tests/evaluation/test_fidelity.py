"""Fidelity without vLLM: errors, ranking, stored parts, the matched simulation, recorders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from synergy_gym.cli.fidelity import names, numbers
from synergy_gym.cli.live_options import engine_arguments
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.fidelity import tables
from synergy_gym.fidelity.calibration import (
    GRID,
    HELD_OUT,
    PLAYED,
    Measured,
    Sample,
    Speed,
    contention,
    fit,
    kind_means,
    running_mean,
)
from synergy_gym.fidelity.compare import (
    QUICK,
    Comparison,
    FidelityCell,
    Plan,
    PlayedPair,
    cells_of,
    slowdowns,
    speed_bins,
)
from synergy_gym.fidelity.meter import ReferenceStep
from synergy_gym.fidelity.profile_text import calibration_text, processor
from synergy_gym.fidelity.recorder import Explorer, Recorder, StepLog
from synergy_gym.fidelity.report import write_report
from synergy_gym.fidelity.store import EpisodeData, Store
from synergy_gym.latency.profile_writer import write_profile
from synergy_gym.latency.profiles import load_profile
from synergy_gym.scenario import load_scenario
from synergy_gym.types import StepReport

LIVE_CHAT = load_scenario("live-chat")


def episode(scale: float, rng: np.random.Generator, attainment: float = 0.9) -> EpisodeData:
    """Latencies around 10 ms (TTFT), 2 ms (TPOT) and 100 ms (E2E), times `scale`."""
    times = scale * (1 + 0.1 * rng.random(200))
    probes = np.column_stack([np.linspace(0, 9.9, 100), 3 + np.zeros(100), np.arange(100) % 2])
    reference = np.column_stack([probes[:, 0], probes[:, 1], probes[:, 1] * 1.1, probes[:, 2]])
    summary = {"slo_attainment": attainment, "offered": 200, "finished": 200}
    summary |= {"e2e_mean_s": 0.1 * scale, "ttft_mean_s": 0.01 * scale}
    return EpisodeData(
        summary, 0.01 * times, 0.002 * times, 0.1 * times, 0.002 * times,
        np.ones((200, 7)), probes, reference,
    )  # fmt: skip


def played(
    policy: str, live: list[float], sim: float, rng: np.random.Generator, load: float = 1.0
) -> PlayedPair:
    """A cell whose attainment in the live repeats, and in both simulations, is given."""
    cell = FidelityCell("live-chat", load, policy, "round-robin")
    repeats = [episode(1.0, rng, value) for value in live]
    simulated = [episode(1.05, rng, sim) for _ in live]
    return PlayedPair(cell, False, repeats, simulated, simulated)


def comparison(rng: np.random.Generator) -> Comparison:
    cells = [
        played("good", [0.95, 0.96, 0.95], 0.97, rng),
        played("middle", [0.80, 0.81, 0.80], 0.85, rng),
        played("equal", [0.80, 0.81, 0.81], 0.80, rng),
        played("bad", [0.30, 0.31, 0.30], 0.35, rng),
    ]
    spec = LIVE_CHAT.engines[0]
    fitted = {"live-chat": (fit(measured(rng), spec, "cpu"),)}
    rates = {"live-chat": 127.0}
    return Comparison(Plan(), cells, fitted, rates, {"vllm": "0.0", "device": "none"})


def measured(rng: np.random.Generator, busy: bool = False) -> Measured:
    """A calibration of an engine that takes 2 ms plus 0.01 ms per token."""
    found, engine = Measured(), LIVE_CHAT.engines[0].name
    for number in range(900):
        slow = 1.5 if busy and number % 300 > 150 else 1.0
        decodes, chunk = int(rng.integers(0, 33)), int(rng.integers(0, 2) * rng.integers(1, 400))
        chunk = chunk or int(decodes == 0)
        s = (2 + 0.01 * (decodes + chunk)) * 1e-3 * slow * (1 + 0.02 * rng.standard_normal())
        report = StepReport(
            0, 0.0, s, decodes + (chunk > 0), decodes + chunk, decodes, chunk, 50 * decodes, 0,
            chunk * (chunk + 1) // 2, 0, 0, 0, 512,
        )  # fmt: skip
        kind = (GRID, PLAYED, HELD_OUT)[number % 3]
        found.samples.append(Sample(kind, engine, float(number), report))
        ms = (3.0, 5.0)[number % 2] * slow
        found.reference.append(ReferenceStep(float(number), ms, ms * 1.2, number % 2))
    return found


def test_errors_stand_beside_live_against_live(rng: np.random.Generator) -> None:
    cells = tables.cell_table(comparison(rng))
    assert len(cells) == 4 * len(tables.METRICS) * len(tables.FIGURES)
    assert cells["sim_error_percent"].between(3, 7).all()
    assert cells["live_difference_percent"].between(0, 5).all()
    summary = tables.summary_table(cells)
    row = summary[(summary["metric"] == "tpot") & (summary["figure"] == "p50")].iloc[0]
    assert (row["cells"], row["goal_percent"]) == (4, 3.0)
    assert row["sim_error_median_percent"] == pytest.approx(5, abs=1.5)
    assert tables.verdict(2.9, 3.0) == "reached"
    assert tables.verdict(3.1, 3.0) == "missed"
    assert tables.verdict(50.0, float("nan")) == ""


def test_live_difference_is_the_mean_over_pairs() -> None:
    assert tables.live_difference([1.0, 1.0, 1.0]) == 0
    assert tables.live_difference([0.9, 1.1]) == pytest.approx(20)
    assert np.isnan(tables.live_difference([1.0]))


def test_tau_counts_only_pairs_that_live_repeats_separate(rng: np.random.Generator) -> None:
    ranking = tables.fidelity_ranking(comparison(rng))
    group = ranking[ranking["score"] == "slo_attainment"]
    found = tables.agreement(group, "sim")
    assert (found.pairs, found.all_pairs) == (5, 6)
    assert (found.tau, found.regret) == (1.0, 0.0)


def test_a_reversed_simulation_has_tau_minus_one_and_pays_for_it() -> None:
    row: dict[str, Any] = {"scenario": "s", "load": 1.0, "score": "slo_attainment"}
    rows = [
        {**row, "policy": p, "live": x, "live_low": x - 0.01, "live_high": x + 0.01, "sim": -x}
        for p, x in (("a", 0.2), ("b", 0.5), ("c", 0.9))
    ]
    found = tables.agreement(pd.DataFrame(rows), "sim")
    assert found.tau == -1.0
    assert found.regret == pytest.approx(0.7)
    lower = pd.DataFrame([{**r, "score": "e2e_mean_s", "sim": r["live"]} for r in rows])
    assert tables.agreement(lower, "sim").regret == 0


def test_intervals_are_t_intervals() -> None:
    low, high = tables.interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2)
    assert high - low == pytest.approx(2 * 4.302653 / 3**0.5, rel=1e-5)
    assert tables.interval([1.0]) == (-np.inf, np.inf)


def test_the_report_has_tables_that_pandas_reads_and_plots(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    report = write_report(comparison(rng), tmp_path, "synergy-gym fidelity")
    for name in report.__slots__:
        frame = pd.read_csv(tmp_path / f"{name}.csv")
        assert len(frame) == len(getattr(report, name))
    assert load_profile(tmp_path / "profiles" / "live-chat-cpu.toml").gpu == "1-cpu-thread"
    page = (tmp_path / "fidelity.md").read_text()
    assert "| live-chat | tpot p50 |" in page
    assert "Load 1.0 is 127 requests/s on live-chat." in page
    for name in ("latency.png", "ranking.png", "manifest.json"):
        assert (tmp_path / name).stat().st_size > 500


def test_a_clock_comes_back_from_a_machine_that_is_busy_half_of_the_time(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    spec = LIVE_CHAT.engines[0]
    quiet, busy = (fit(measured(rng, busy=b), spec, "cpu") for b in (False, True))
    assert quiet.terms.base_ms == pytest.approx(2, rel=0.05)
    assert quiet.terms.per_token_ms == pytest.approx(0.01, rel=0.1)
    assert busy.terms.base_ms == pytest.approx(2 * 1.25, rel=0.07)
    assert busy.contention > 1.3 > quiet.contention
    assert busy.held_out_steady.mape_percent < busy.held_out.mape_percent
    assert quiet.wall_over_clock == pytest.approx(1.2)
    path = tmp_path / "p.toml"
    write_profile(path, calibration_text(quiet, "command", {"vllm": "0.32.0", "device": "cpu"}))
    assert load_profile(path).terms.base_ms == pytest.approx(quiet.terms.base_ms, rel=1e-5)
    assert "255 KV blocks of 32 tokens" in path.read_text()


def test_speed_is_relative_to_the_mean_of_its_own_kind() -> None:
    steps = [ReferenceStep(float(i), (2.0, 8.0)[i % 2], 9.0, i % 2) for i in range(100)]
    assert kind_means(steps) == {0: 2.0, 1: 8.0}
    assert Speed.of(steps).at([3.0, 50.5]) == pytest.approx([1, 1])
    assert contention(steps)[0] == 1.0
    assert running_mean(np.arange(10.0), 3).tolist()[4] == 4.0
    with pytest.raises(ValueError, match="no reference steps"):
        Speed.of([])


def test_probes_become_slowdowns_of_every_engine(rng: np.random.Generator) -> None:
    world = load_scenario("live-cluster")
    data = episode(1.0, rng)
    bins = speed_bins(data.probes, {0: 3.0, 1: 1.5})
    assert [start for start, _ in bins] == [float(i) for i in range(10)]
    assert all(factor == pytest.approx(1.5) for _, factor in bins)
    events = slowdowns(world, data, {0: 3.0, 1: 1.5})
    assert {(e.kind, e.engine) for e in events} == {("slowdown", 0), ("slowdown", 1)}
    with pytest.raises(ValueError, match="has events"):
        slowdowns(replace(world, events=events), data, {0: 3.0, 1: 1.5})
    slow = replace(world, events=events)
    options: dict[str, Any] = {"load": 0.5, "seed": 1, "horizon_s": 10.0, "warmup_s": 0.0}
    times = [evaluate(w, **options).summary["e2e_mean_s"] for w in (world, slow)]
    assert times[1] > 1.2 * times[0]


def test_a_recorder_changes_nothing() -> None:
    log = StepLog(lambda: (1.0, 0), probe_every=10)
    options: dict[str, Any] = {"load": 0.5, "seed": 3, "horizon_s": 2.0, "warmup_s": 0.0}
    plain = evaluate("live-chat", "static-64", **options)
    result = evaluate("live-chat", "static-64", observers=[Recorder(log)], **options)
    assert result.summary == plain.summary
    assert result.manifest["engine_policy"] == plain.manifest["engine_policy"]
    assert len(log.steps) > 100
    assert {step.engine for step in log.steps} == {"cpu"}
    assert len(log.probes) == log.decisions // 10
    cluster = StepLog()
    evaluate("live-cluster", "vllm-v1", observers=[Recorder(cluster)], **options)
    assert {step.engine for step in cluster.steps} == {"wide", "narrow"}


def test_the_explorer_explores() -> None:
    log = StepLog()
    options: dict[str, Any] = {"load": 0.8, "seed": 3, "horizon_s": 3.0, "warmup_s": 0.0}
    evaluate("live-chat", Explorer(), observers=[Recorder(log)], **options)
    assert len({step.report.token_budget for step in log.steps}) >= 5


def test_parts_are_kept_and_other_settings_refused(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    store = Store(tmp_path, {"seed": 1, "loads": (1.0, 1.2)})
    data = episode(1.0, rng)
    store.add_episode("a", data)
    store.add_slice("b", "live-chat", measured(rng))
    store.note_software({"vllm": "x"}, LIVE_CHAT.engines)
    again = Store(tmp_path, {"seed": 1, "loads": (1.0, 1.2)})
    assert "a" in again
    assert "c" not in again
    assert again.episode("a").summary == data.summary
    assert np.array_equal(again.episode("a").steps, data.steps)
    assert len(again.slices("live-chat").samples) == 900
    assert again.slices("live-cluster").samples == []
    assert again.specs(LIVE_CHAT.engines) == LIVE_CHAT.engines
    with pytest.raises(ValueError, match=r"other settings \(loads\); choose another --out"):
        Store(tmp_path, {"seed": 1, "loads": (1.0,)})


def test_plans() -> None:
    assert len(cells_of(Plan(), LIVE_CHAT)) == 18
    cluster = cells_of(QUICK, load_scenario("live-cluster"))
    assert {cell.engine_policy for cell in cluster} == {"vllm-v1"}
    assert len(cluster) == 4
    with pytest.raises(ValueError, match="repeats=1; live against live"):
        Plan(repeats=1)
    with pytest.raises(ValueError, match="'lens-ref' caps the tokens"):
        Plan(engine_policies=("lens-ref",))
    with pytest.raises(ValueError, match="clock='model' compares nothing"):
        Plan(options=replace(Plan().options, clock="model"))


def test_what_the_command_line_splits() -> None:
    assert names("a,b:x=1,y=2, c") == ("a", "b:x=1,y=2", "c")
    assert numbers("1,1.5") == (1.0, 1.5)
    assert engine_arguments(["enforce-eager=false", "a=b", "n=null"]) == {
        "enforce_eager": False, "a": "b", "n": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="names nothing"):
        names(" , ")
    with pytest.raises(ValueError, match="--loads 0,1 must be positive"):
        numbers("0,1")
    with pytest.raises(ValueError, match="is no NAME=VALUE"):
        engine_arguments(["x"])


def test_the_processors_name() -> None:
    assert processor(["vendor_id : x", "model name\t: Some CPU"]) == "Some CPU"
    assert processor([])
