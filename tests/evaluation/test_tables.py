"""CSV bytes, rankings and Markdown."""

from __future__ import annotations

import csv
import io
import math
import random

import pytest

from synergy_gym.evaluation.board.scores import ranking
from synergy_gym.evaluation.board.tables import cell, csv_text, decision_times, markdown
from synergy_gym.evaluation.jobs import COLUMNS, KEY_COLUMNS

REQUIRED = (
    "suite, scenario, load, seed, engine_policy, router_policy, offered, finished, rejected, "
    "aborted, failed, slo_attainment, e2e_attainment, ttft_attainment, tpot_attainment, "
    "goodput_rps, throughput_tps, ttft_p50_s, ttft_p90_s, ttft_p99_s, tpot_p50_s, tpot_p90_s, "
    "tpot_p99_s, e2e_p50_s, e2e_p90_s, e2e_p99_s, preemptions, cached_tokens, log_hash"
)


def row(policy: str, load: float, seed: int, attainment: float) -> dict[str, object]:
    values: dict[str, object] = dict.fromkeys(COLUMNS, 0.0)
    return values | {
        "suite": "s",
        "scenario": "one",
        "load": load,
        "seed": seed,
        "engine_policy": policy,
        "router_policy": "round-robin",
        "slo_attainment": attainment,
        "preemptions": 1,
    }


ROWS = [
    row(policy, load, seed, max(0.0, best - drop * (load - 0.8)))
    for policy, best, drop in (("good", 1.0, 0.25), ("bad", 0.95, 1.0))
    for load in (0.8, 1.0, 1.2)
    for seed in (1, 2)
]


def test_columns_begin_as_the_design_fixes_them() -> None:
    assert ", ".join(COLUMNS).startswith(REQUIRED + ", ")
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_csv_does_not_depend_on_the_order_of_rows(seed: int) -> None:
    mixed = ROWS.copy()
    random.Random(seed).shuffle(mixed)
    assert csv_text(mixed, COLUMNS) == csv_text(ROWS, COLUMNS)
    lines = list(csv.DictReader(io.StringIO(csv_text(mixed, COLUMNS))))
    keys = [(line["scenario"], float(line["load"]), int(line["seed"])) for line in lines]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1 + 0.2, "0.3"), (1.0, "1"), (math.nan, ""), (7, "7"), ("a", "a"), (1e-7, "1e-07")],
)
def test_cell(value: object, text: str) -> None:
    assert cell(value) == text


def test_ranking() -> None:
    table = ranking(ROWS, "engine")
    assert list(table["policy"]) == ["good", "bad"]
    assert table["slo_attainment"].tolist() == pytest.approx([0.95, 0.75])
    assert table["load 1.2"].tolist() == pytest.approx([0.9, 0.55])
    assert table["capacity"].tolist() == pytest.approx([1.2, 0.85])
    assert table["episodes"].tolist() == [6, 6]
    assert table["preemptions"].tolist() == [6, 6]


def test_pairs_are_ranked_on_the_joint_track() -> None:
    other = [{**row, "router_policy": "session", "slo_attainment": 0.99} for row in ROWS]
    table = ranking([*ROWS, *other], "joint")
    assert list(table["policy"])[2:] == ["good + round-robin", "bad + round-robin"]
    assert set(table["policy"][:2]) == {"good + session", "bad + session"}
    assert list(ranking([*ROWS, *other], "router")["policy"]) == ["session", "round-robin"]


def test_decision_times() -> None:
    def timing(policy: str, seed: int, count: int, mean: float, p99: float) -> dict[str, object]:
        figures = {"decisions": count, "decision_mean_us": mean, "decision_p99_us": p99}
        named = {f"{x}_{name}": v for x in ("engine", "router") for name, v in figures.items()}
        return row(policy, 1.0, seed, 0.0) | named

    rows = [timing("asked", 1, 10, 2.0, 5.0), timing("asked", 2, 30, 4.0, 7.0)]
    rows.append(timing("rule", 1, 0, math.nan, math.nan))
    table = decision_times(rows, "engine", ["rule", "asked"])
    assert table["policy"].tolist() == ["rule", "asked"]
    assert table["engine_decisions"].tolist() == [0, 40]
    assert table["engine_mean_us"][1] == pytest.approx(3.0)
    assert table["engine_p99_us"][1] == pytest.approx(6.0)
    assert math.isnan(table["engine_mean_us"][0])
    assert "| rule | 0 | - | - |" in markdown(table)
    assert len(decision_times(rows, "joint", ["rule + round-robin"]).columns) == 7


def test_a_policy_that_misses_episodes_comes_last() -> None:
    part = [r for r in ROWS if r["engine_policy"] == "bad" or r["load"] == 0.8]
    assert list(ranking(part, "engine")["policy"]) == ["bad", "good"]


def test_markdown() -> None:
    text = markdown(ranking(ROWS, "engine"))
    lines = text.splitlines()
    assert lines[0].startswith("| rank | policy | iqm | iqm_low |")
    assert lines[2].startswith("| 1 | good | 95.0 % |")
    assert len({line.count("|") for line in lines}) == 1


def test_key_columns_lead() -> None:
    assert COLUMNS[: len(KEY_COLUMNS)] == KEY_COLUMNS
