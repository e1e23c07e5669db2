"""The Markdown page: scores with intervals, oracles, bounds, interaction, what was played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.clairvoyant import ORACLE
from synergy_gym.evaluation.coverage import coverage_text
from synergy_gym.evaluation.jobs import COLUMNS
from synergy_gym.evaluation.leaderboard import TIMING_COLUMNS
from synergy_gym.evaluation.report.markdown import leaderboard_text
from synergy_gym.scenario import load_scenario

MATRIX = {
    ("vllm-v1", "round-robin"): 0.4,
    ("vllm-v1", "prism-plus"): 0.5,
    ("lens-plus", "round-robin"): 0.6,
    ("lens-plus", "prism-plus"): 0.9,
}
PART = Part(
    "joint",
    ("smoke-cluster",),
    pairs=tuple(MATRIX),
    loads=(1.0, 1.2),
    seeds=10,
    horizon_s=20.0,
    warmup_s=2.0,
    oracles=((ORACLE, ORACLE),),
)
ORDER = ["lens-plus + prism-plus", "lens-plus + round-robin", "vllm-v1 + prism-plus"]


def board(folder: Path, rng: np.random.Generator) -> Board:
    traffic = 0.02 * rng.random(10)
    seeds = load_scenario("smoke-cluster").test_seeds
    means = {**MATRIX, (ORACLE, ORACLE): 0.95}
    rows: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    for cell in PART.cells():
        for (engine, router), mean in means.items():
            names = ("suite", "scenario", "load", "seed", "engine_policy", "router_policy")
            key = dict(zip(names, ("s", *cell, engine, router), strict=True))
            score = mean + traffic[seeds.index(cell[2])]
            rows.append(dict.fromkeys(COLUMNS, 0.0) | key | {"slo_attainment": score})
            timings.append(dict.fromkeys(TIMING_COLUMNS, 1) | key)
    return Board(folder, Suite("s", "a suite", (PART,)), rows, timings, {}, {})


def test_the_page_of_a_joint_track(tmp_path: Path, rng: np.random.Generator) -> None:
    text = leaderboard_text(board(tmp_path, rng), ["plots/a.png", "plots/a.svg"])
    ranks = [line for line in text.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 3 |"))]
    assert [line.split(" | ")[1] for line in ranks] == ORDER
    assert "development: smoke-cluster" in text
    assert "arrivals of 20 s, the first 2 s not scored" in text
    assert coverage_text(10) in text
    assert "| clairvoyant + clairvoyant |" in text
    assert "| in hindsight |" in text
    assert "![a](plots/a.png)" in text
    assert "a.svg" not in text
    # (0.9 - 0.5) - (0.6 - 0.4) = 0.2; in the matrix a quarter of it. Seeds shift all pairs alike.
    assert "- lens-plus x prism-plus: +20.0 points (+20.0 to +20.0)" in text
    assert "| lens-plus | -5.0 (-5.0 to -5.0) | +5.0 (+5.0 to +5.0) |" in text
    # Sums of squares: 0.09 engines, 0.04 routers, 0.01 pairs.
    assert "7 % of the sum of squares" in text


def test_bounds_of_the_board_give_the_gap(tmp_path: Path, rng: np.random.Generator) -> None:
    plain = leaderboard_text(board(tmp_path, rng), [])
    lines = [f"smoke-cluster,{load:g},{seed},1,w" for _, load, seed in PART.cells()]
    header = "scenario,load,seed,bound,world"
    (tmp_path / "bounds.csv").write_text("\n".join([header, *lines]) + "\n")
    bounded = leaderboard_text(board(tmp_path, rng), [])
    assert "| gap closed |" not in plain
    assert "| gap closed |" in bounded
    assert "| bound | 100.0 % | 100.0 % | 100.0 % |" in bounded
