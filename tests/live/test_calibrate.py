"""Calibration and fidelity on a real engine: small, but whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from synergy_gym.cli.app import main
from synergy_gym.fidelity.calibration import calibrate_scenario, with_measured_kv
from synergy_gym.fidelity.compare import QUICK, compare
from synergy_gym.fidelity.grid import chunks, measure_grid, sessions
from synergy_gym.fidelity.meter import Reference, StepMeter
from synergy_gym.fidelity.report import write_report
from synergy_gym.latency.profiles import load_profile
from synergy_gym.live.backend import LiveOptions
from synergy_gym.scenario import load_scenario

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("vllm")]
CHAT = load_scenario("live-chat")
CPU = LiveOptions(clock="cpu")


def test_the_grid_schedules_what_it_designs(rng: np.random.Generator) -> None:
    """Each cell's step holds its decodes and its chunk, after what was computed before."""
    spec = CHAT.engines[0]
    with StepMeter(spec, CPU) as meter:
        assert meter.kv_blocks == spec.kv_blocks
        steps = list(measure_grid(meter, rng, share=0.3))
        assert not meter.unfinished
    known = {str(s): s for s in sessions(spec)}
    designed = 0
    for step in steps:
        session = known.get(step.cell.partition(" Chunk")[0])
        if session is None:
            continue
        designed += 1
        assert step.report.decodes == session.decodes
        chunk = {f"{session} {c}": c for c in chunks(spec, session.decodes)}.get(step.cell)
        assert step.report.prefill_tokens == (chunk.tokens if chunk else 0)
        if chunk and chunk.parts == 1:
            assert step.report.prefill_context_tokens == chunk.computed
        assert 0 < step.report.step_s < 5
    assert designed > len(steps) / 3


def test_reference_steps_are_equal(rng: np.random.Generator) -> None:
    with StepMeter(CHAT.engines[0], CPU) as meter:
        reference = Reference(meter)
        steps = [reference.sample() for _ in range(150)]
    assert {step.kind for step in steps} == {0, 1}
    assert all(step.ms > 0 for step in steps)
    assert steps == reference.samples


def test_only_measuring_clocks_calibrate() -> None:
    with pytest.raises(ValueError, match="clock='model' does not measure; calibrate with wall or"):
        StepMeter(CHAT.engines[0], LiveOptions(clock="model"))


def test_a_scenario_is_calibrated() -> None:
    (found,), software = calibrate_scenario(CHAT, CPU, rounds=1, horizon_s=1.0)
    assert software["vllm"]
    assert found.engine == CHAT.engines[0]
    assert found.fitted.steps > 100
    assert found.held_out.steps > 50
    assert found.terms.base_ms > 0.1
    assert found.terms.per_token_ms > 0
    assert found.contention >= 1


def test_vllm_can_measure_the_kv_cache() -> None:
    """16 MiB hold 512 blocks of 32 KiB; one of them is vLLM's null block."""
    small = LiveOptions(clock="cpu", engine_args={"kv_cache_memory_bytes": 16 << 20})
    world, _ = with_measured_kv(CHAT, small)
    assert CHAT.engines[0].kv_blocks == 255
    assert world.engines[0].kv_blocks == 511


@pytest.mark.slow
def test_the_command_writes_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "--model", "tiny", "--out", str(path), "--rounds", "1"])
    assert ended.value.code == 0
    profile = load_profile(path)
    assert (profile.gpu, profile.model) == ("1-cpu-thread", "tiny-llama")
    assert "read from the engine" in capsys.readouterr().out
    assert "Held-out episodes" in path.read_text()


def test_fidelity_goes_on_where_it_stopped(tmp_path: Path) -> None:
    plan = replace(
        QUICK, scenarios=("live-chat", "live-cluster"), engine_policies=("vllm-v1", "static-64"),
        router_policies=("round-robin", "least-outstanding"), repeats=2, horizon_s=0.6,
        slice_every=4, slice_s=0.6,
    )  # fmt: skip
    seen: list[str] = []

    def stop_after_four(done: int, total: int, text: str) -> None:
        seen.append(text)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(plan, tmp_path, stop_after_four)
    kept: dict[str, Any] = {p.name: p.stat().st_mtime for p in tmp_path.glob("episodes/*.npz")}
    assert len(kept) == 4
    seen.clear()
    comparison = compare(plan, tmp_path, lambda done, total, text: seen.append(text))
    assert sum("done before" in text for text in seen) == 4
    assert {p: m for p, m in kept.items() if (tmp_path / "episodes" / p).stat().st_mtime != m} == {}
    report = write_report(comparison, tmp_path, "a test")
    assert set(report.ranking["policy"]) == {
        "vllm-v1", "static-64", "round-robin", "least-outstanding",
    }  # fmt: skip
    assert len(report.calibration) == 3
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert cells["live_s"].gt(0).all()
    for played in comparison.cells:
        assert all(e.summary["offered"] == played.sim[0].summary["offered"] for e in played.live)
