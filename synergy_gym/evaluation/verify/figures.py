"""Whether the figures of a board's rows can be true together.

An edited number seldom fits the others: shares are whole numbers of requests, goodput is the share
times the requests per second, quantiles rise, and every policy met the same traffic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.files import RESULTS_FILE
from synergy_gym.evaluation.board.tables import Row, cell
from synergy_gym.evaluation.jobs import KEY_COLUMNS

NEAR = 2e-8
"""Relative error of a product of two cells with nine digits each."""
_PARTS = ("finished", "rejected", "aborted", "failed", "unfinished")
_SHARES = ("e2e_attainment", "ttft_attainment", "tpot_attainment")
_QUANTILES = ("p50", "p90", "p95", "p99")
_LATENCIES = ("ttft", "tpot", "e2e", "itl")
_UNIT = ("slo_attainment", *_SHARES, "prefix_hit_share", "jain_engines", "jain_classes")


def figure_problems(board: Board) -> Iterator[str]:
    """One line per contradiction: the row, the column, the value and what it should be."""
    path = board.folder / RESULTS_FILE
    offered: dict[tuple[object, ...], Row] = {}
    for row in board.rows:
        key = ", ".join(cell(row[name]) for name in KEY_COLUMNS[1:])
        for text in row_problems(row):
            yield f"{path}: row {key}: {text}; restore the row or play it again"
        world = (row["scenario"], row["load"], row["seed"], row["scenario_hash"])
        first = offered.setdefault(world, row)
        for name in ("offered", "full_offered", "window_s"):
            if row[name] != first[name]:
                yield (
                    f"{path}: row {key}: {name} is {cell(row[name])}, other policies met "
                    f"{cell(first[name])} in the same traffic; restore the row or play it again"
                )


def row_problems(row: Row) -> Iterator[str]:
    """Contradictions inside one row."""
    yield from _count_problems(row)
    yield from _share_problems(row)
    yield from _quantile_problems(row)


def _count_problems(row: Row) -> Iterator[str]:
    total = sum(row[name] for name in _PARTS)
    if total != row["offered"]:
        yield f"offered is {row['offered']}, but {' + '.join(_PARTS)} is {total}"
    counts = (*_PARTS, "offered", "preemptions", "cached_tokens", "retries")
    for name in counts:
        if row[name] < 0:
            yield f"{name} is {row[name]}, a negative count"
    for name in ("offered", "finished"):
        if row[f"full_{name}"] < row[name]:
            yield f"full_{name} is {row[f'full_{name}']}, less than {name}, {row[name]}"


def _share_problems(row: Row) -> Iterator[str]:
    offered, score = row["offered"], row["slo_attainment"]
    for name in _UNIT:
        if not math.isnan(row[name]) and not 0 <= row[name] <= 1 + NEAR:
            yield f"{name} is {cell(row[name])}, no share"
    for name in ("slo_attainment", *_SHARES):
        requests = row[name] * offered
        if not math.isnan(requests) and abs(requests - round(requests)) > 1e-8 * offered + 1e-9:
            yield f"{name} is {cell(row[name])}, no whole number of {offered} requests"
        if row[name] * offered > row["finished"] + 1e-3:
            yield f"{name} is {cell(row[name])}, more than the {row['finished']} that finished"
    for name in _SHARES:
        if row[name] < score - NEAR:
            yield f"{name} is {cell(row[name])}, less than slo_attainment, {cell(score)}"
    goodput = score * offered / row["window_s"] if row["window_s"] > 0 else float("nan")
    if not _near(goodput, row["goodput_rps"]):
        yield f"goodput_rps is {cell(row['goodput_rps'])}, slo_attainment says {cell(goodput)}"
    rate = row["finished"] / row["duration_s"] if row["duration_s"] > 0 else float("nan")
    if not _near(rate, row["throughput_rps"]):
        yield f"throughput_rps is {cell(row['throughput_rps'])}, finished says {cell(rate)}"


def _quantile_problems(row: Row) -> Iterator[str]:
    for latency in _LATENCIES:
        names = [f"{latency}_{q}_s" for q in _QUANTILES]
        for low, high in pairwise(names):
            if row[low] > row[high]:
                yield f"{high} is {cell(row[high])}, less than {low}, {cell(row[low])}"
        if row[names[0]] < 0:
            yield f"{names[0]} is {cell(row[names[0]])}, a negative time"


def _near(one: float, other: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and (math.isnan(other) or other == 0)
    return abs(one - other) <= NEAR * max(abs(one), abs(other))
