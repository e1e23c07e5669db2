"""Every row of `synergy-gym bench` can be measured; how fast things are is no test's business."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from synergy_gym.bench import cold as bench_cold
from synergy_gym.bench import envs as bench_envs
from synergy_gym.bench import evaluate as bench_evaluate
from synergy_gym.bench import kernel as bench_kernel
from synergy_gym.bench import vector as bench_vector
from synergy_gym.bench.bench import machine, parts, read_rows, run_bench
from synergy_gym.bench.row import BenchPart, Effort, Row
from synergy_gym.sim.compiled.clock import advance
from synergy_gym.sim.readiness import BackgroundCompilation

TINY = Effort(repeats=1, share=0.003)
ROWS: dict[str, tuple[Callable[[Effort], Iterator[Row]], int]] = {
    "kernel": (bench_kernel.kernel_rows, 2),
    "caching": (bench_kernel.caching_rows, 4),
    "million": (bench_kernel.million_rows, 3),
    "engine": (bench_envs.engine_rows, 2),
    "routing": (bench_envs.routing_rows, 4),
    "joint": (bench_envs.joint_rows, 2),
    "ends": (bench_envs.ends_rows, 9),
    "vector": (bench_vector.vector_rows, 4),
    "evaluate": (bench_evaluate.evaluate_rows, 4),
}


def check(rows: list[Row]) -> None:
    for row in rows:
        assert math.isfinite(row.value), row
        assert row.value > 0, row
        assert (row.met is None) == (row.goal is None), row
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ROWS)
def test_rows_have_finite_values(name: str) -> None:
    measure, count = ROWS[name]
    rows = list(measure(TINY))
    check(rows)
    assert len(rows) == count


def test_growth_with_the_batch_has_a_finite_value() -> None:
    check([bench_kernel.growth_row(Effort(repeats=1, share=0.1))])


@pytest.mark.slow
def test_shares_of_training_have_finite_values() -> None:
    pytest.importorskip("stable_baselines3")
    check(list(bench_vector.training_rows(TINY)))


@pytest.mark.slow
def test_cold_rows_have_finite_values(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process finds what the first one compiled; so does the one that may be plain."""
    monkeypatch.delenv("SYNERGY_GYM_CHECK", raising=False)
    folder = Path(os.environ.get(bench_cold.CACHE) or tmp_path_factory.mktemp("machine-code"))
    check(list(bench_cold.cold_rows(TINY, folder)))


def test_all_parts_have_labels_of_their_own() -> None:
    labels = [part.label for part in parts(TINY)]
    assert len(set(labels)) == len(labels) >= len(ROWS)


def test_the_verdict_follows_the_direction_and_needs_a_goal() -> None:
    assert Row("x", 2.0, "s", 1.0, at_least=True).met is True
    assert Row("x", 2.0, "s", 1.0, at_least=False).met is False
    assert Row("x", 2.0, "s").met is None


def rows_then(error: BaseException | None = None) -> Iterator[Row]:
    yield Row("with a goal", 12345.6, "steps/s", 5.0, True, "a note")
    yield Row("without", 0.5, "ms")
    if error is not None:
        raise error


def test_rows_are_printed_and_written(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "rows.csv"
    rows = run_bench(out, [BenchPart("two rows", rows_then)])
    assert [row.name for row in rows] == ["with a goal", "without"]
    printed = capsys.readouterr()
    assert "12,346" in printed.out
    assert "two rows" in printed.err
    assert machine() in " ".join(printed.out.split())
    assert read_rows(out) == rows
    assert list(pd.read_csv(out)["met"].isna()) == [False, True]


def test_figures_are_for_people() -> None:
    row = Row("x", 12345.6, "steps/s", 0.5, at_least=False)
    assert (row.measured, row.target) == ("12,346 steps/s", "<= 0.5")
    assert Row("x", 0.12345, "ms").measured == "0.123 ms"
    assert Row("x", 0.12345, "ms").target == "-"


def test_an_interrupted_run_has_its_rows(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "rows.csv"
    interrupted = BenchPart("interrupted", lambda: rows_then(KeyboardInterrupt()))
    never = BenchPart("never", lambda: pytest.fail("measured after an interruption"))
    with pytest.raises(KeyboardInterrupt):
        run_bench(out, [interrupted, never])
    assert "without" in capsys.readouterr().out
    assert len(pd.read_csv(out)) == 2


@pytest.mark.parametrize("begun", [False, True])
def test_a_background_compilation_can_be_ended(begun: bool) -> None:
    background = BackgroundCompilation()
    if begun:
        assert background.begin(advance.kept)
    background.end()
    assert not background.is_under_way
