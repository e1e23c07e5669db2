"""How clocks are held against measurements: what is split, counted, ranked and contrasted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.clocks import contrasts, deployments
from experiments.clocks import validate_clocks as validate
from experiments.replay.fit import Coefficients
from experiments.replay.runs import NO_OVERHEAD

pytest.importorskip("aiconfigurator_core", reason="needs the extra clocks")


@pytest.fixture(scope="module")
def found() -> list[deployments.Deployment]:
    return deployments.read_deployments()


# --- split ------------------------------------------------------------------------------------


def test_no_deployment_is_ever_fitted(found: list[deployments.Deployment]) -> None:
    split = pd.read_csv(validate.SPLIT, dtype=str)
    assert not split.duplicated(["source", "row_id"]).any()
    silicon = split[split.source == "silicon_sample.csv"]
    assert set(silicon.use) == {"validate"}
    assert set(silicon.row_id) == {deployment.row_id for deployment in found}
    assert len(found) >= 1000
    assert sum(deployment.engine == "vllm" for deployment in found) >= 400


def test_the_split_is_the_one_that_the_script_makes(data_dir: Path) -> None:
    assert pd.read_csv(validate.SPLIT, dtype=str).equals(validate.split_rows(data_dir))


def test_another_split_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_dir: Path
) -> None:
    monkeypatch.setattr(validate, "SPLIT", tmp_path / "split.csv")
    validate.write_split(data_dir)
    text = validate.SPLIT.read_text()
    validate.write_split(data_dir)
    assert validate.SPLIT.read_text() == text
    validate.SPLIT.write_text(text.replace(",validate", ",fit", 1))
    with pytest.raises(SystemExit, match="is another split than this script makes; keep the file"):
        validate.write_split(data_dir)


# --- deployments ------------------------------------------------------------------------------


def test_every_source_has_a_protocol_that_was_fixed_beforehand(
    found: list[deployments.Deployment],
) -> None:
    assert {deployment.source for deployment in found} <= set(deployments.PROTOCOLS)
    for protocol in deployments.PROTOCOLS.values():
        assert len(protocol.evidence) > 20
    unlabelled = [d for d in found if deployments.PROTOCOLS[d.source].variant is None]
    assert {d.source for d in unlabelled} == {"vllm"}


def test_unlabelled_rows_are_shown_under_every_variant(
    found: list[deployments.Deployment],
) -> None:
    small = min(
        (d for d in found if d.source == "vllm" and d.fits and d.is_possible),
        key=lambda d: d.concurrency * d.output,
    )
    rows = deployments.predictions(small)
    shown = {(row["loop"], row["sampling"], row["sustained"]) for row in rows}
    assert len(shown) == len(rows) == 8
    assert all(row["tpot_ms"] > 0 for row in rows)
    by_variant = {
        (row["loop"], row["sampling"]): row["tpot_ms"]
        for row in rows
        if row["sustained"] == "fitted"
    }
    assert by_variant["async", "greedy"] < by_variant["sync", "greedy"]
    assert by_variant["sync", "greedy"] < by_variant["sync", "top-p"]


def test_rows_that_cannot_be_are_left_out_with_the_reason(
    found: list[deployments.Deployment],
) -> None:
    good = next(d for d in found if d.fits and d.is_possible)
    heavy = replace(good, model="Qwen/Qwen3-235B-A22B-FP8", tp=1, precision="fp8_block")
    assert not heavy.fits
    assert deployments.predictions(heavy)[0]["left_out"].startswith("the weights do not fit")
    fast = replace(good, tpot_ms=good.tpot_ms / 1000, ttft_ms=good.ttft_ms / 1000)
    assert not fast.is_possible
    assert "contradict" in deployments.predictions(fast)[0]["left_out"]


def test_a_tpot_that_falls_with_concurrency_contradicts(
    found: list[deployments.Deployment],
) -> None:
    few = replace(found[0], row_id="few", concurrency=8, tpot_ms=20.0)
    many = replace(few, row_id="many", concurrency=64, tpot_ms=10.0)
    other = replace(many, row_id="other", tp=8)
    assert deployments.contradicted([few, many, other]) == {"many"}
    assert deployments.contradicted([few, replace(many, tpot_ms=17.0)]) == set()
    row = deployments.predictions(many, frozenset({"many"}))[0]
    assert row["left_out"] == "half the concurrency was measured with a longer TPOT"
    assert len(deployments.contradicted(found)) < 0.01 * len(found)


def test_a_closed_loop_keeps_its_clients_busy(found: list[deployments.Deployment]) -> None:
    one = replace(found[0], concurrency=3, output=10, prompt=100)
    work = deployments.closed_loop(one, 0.8)
    assert len(work.prompt_tokens) == 3 * deployments.ROUNDS
    assert work.prompt_tokens.min() >= 80
    assert work.prompt_tokens.max() <= 100
    assert set(deployments.closed_loop(one, 1.0).output_tokens) == {10}


def merged(errors: list[float], **columns: object) -> pd.DataFrame:
    base = {
        "gpu": "h100", "model": "m", "family": "llama-3", "kind": "dense", "engine": "vllm",
        "precision": "fp8", "gpus": "1-2", "labelled": True, "loop": "async",
        "sampling": "greedy", "sustained": "fitted", "tp": 1, "prompt": 10, "output": 10,
        "concurrency": 1,
    } | columns  # fmt: skip
    table = pd.DataFrame([base | {"tpot_error": error} for error in errors])
    return table.assign(measured_tpot_ms=10.0, tpot_ms=10.0 * (1 + table.tpot_error))


def test_cells_count_errors_and_judge_labelled_vllm_alone() -> None:
    errors = [-0.02] * 8 + [0.01] * 2 + [0.2]
    cell = validate.cells(merged(errors)).iloc[0]
    assert cell["rows"] == 11
    assert cell.bias_percent == pytest.approx(-2)
    assert cell.median_percent == pytest.approx(2)
    assert cell.p90_percent == pytest.approx(2)
    assert (cell.goal_percent, cell.within, cell.p90_within) == (3.0, "yes", "yes")
    for other in ({"labelled": False}, {"engine": "trtllm"}, {"sustained": "1.0"}):
        assert validate.cells(merged(errors, **other)).iloc[0].within == ""
    assert validate.cells(merged(errors[:9])).iloc[0].within == ""  # too few
    assert validate.cells(merged([0.05] * 10)).iloc[0].within == "no"
    assert validate.cells(merged([0.05] * 10, gpus="4-8")).iloc[0].within == "yes"


def ranked(measured: list[float], said: list[float]) -> tuple[int, float]:
    table = merged([0.0] * len(measured))
    return validate._tau(table.assign(measured_tpot_ms=measured, tpot_ms=said), "tpot_ms")


def test_tau_over_near_pairs() -> None:
    assert ranked([10, 11, 12], [1, 2, 3]) == (3, 1.0)
    assert ranked([10, 11, 12], [3, 2, 1]) == (3, -1.0)
    assert ranked([10, 11], [5, 5]) == (1, 0.0)  # a predictor that cannot tell
    assert ranked([10, 20], [2, 1])[0] == 0  # too easy to count
    assert ranked([10, 12, 20], [1, 2, 0]) == (1, 1.0)


def test_held_out_errors_have_no_bias_of_a_gpu() -> None:
    fast, slow = merged([0.1, 0.2, 0.3]), merged([-0.3, -0.2, -0.1], gpu="h200")
    errors = validate.held_out(pd.concat([fast, slow])).relative_error
    assert len(errors) == validate.QUANTILES
    assert np.median(errors) == pytest.approx(0)
    assert errors.max() <= 0.1


# --- contrasts --------------------------------------------------------------------------------


def cell(engine: str, router: str, attains: float) -> contrasts.Cell:
    figures = dict.fromkeys(contrasts.FIGURES, attains) | {"offered_rps": 30.0}
    return contrasts.Cell("set", "qps", engine, router, 0.7, figures)


def test_a_pair_is_played_by_a_clock_that_saw_neither() -> None:
    stock, lens, prism = (
        cell(*x) for x in (("native", "rr", 50), ("sla", "rr", 80), ("sla", "elrar", 90))
    )
    assert contrasts._clock(stock, lens) == contrasts.UNSEEN
    assert contrasts._clock(lens, prism) == "fitted on stock vLLM"
    unseen, fitted = Coefficients(1.17, 1.2, NO_OVERHEAD), Coefficients(1.24, 1.3, NO_OVERHEAD)
    tasks = list(contrasts._tasks(lens, contrasts._clock(lens, prism), unseen, fitted))
    assert [task.coefficients.sustained for task in tasks] == [1.24, 1.0]
    assert [task.coefficients.sync_ms for task in tasks] == [1.3, 1.3]


def test_signs_and_errors_of_the_differences() -> None:
    measured = {"att_e2e_5s": [10.0, -20.0, 1.0], "e2e_s_p50": [0.5, -0.5, 0.01]}
    simulated = {"att_e2e_5s": [20.0, 5.0, -1.0], "e2e_s_p50": [0.1, -0.2, -0.3]}
    columns = {
        f"{name}_{kind}": values.get(name, [0.0] * 3)
        for kind, values in (("measured", measured), ("simulated", simulated))
        for name in contrasts.FIGURES
    }
    table = contrasts.summary(pd.DataFrame(columns).assign(sustained="fitted"))
    att = table[table.figure == "att_e2e_5s"].iloc[0]
    assert (att["pairs"], att["that differ"], att["sign right"]) == (3, 2, 1)
    assert att["mean absolute error"] == pytest.approx((10 + 25 + 2) / 3)
    e2e = table[table.figure == "e2e_s_p50"].iloc[0]
    assert (e2e["that differ"], e2e["sign right"], e2e["unit"]) == (2, 2, "s")
