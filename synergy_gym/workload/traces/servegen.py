"""ServeGen (Alibaba): requests drawn from the measured windows of its clients.

A folder holds, per client i, `chunk-i-trace.csv` (no header: start of a window in seconds,
rate in requests/s, coefficient of variation, family Gamma or Weibull, its two parameters;
blank and 0 while idle) and `chunk-i-dataset.json` (start of a longer window -> texts of the
form "{value: probability, ...}" for input_tokens and output_tokens).
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synergy_gym.seeding import stream
from synergy_gym.types import NS_PER_S, FloatArray, IntArray
from synergy_gym.workload.traces.files import (
    TraceError,
    TraceRows,
    fail,
    read_lines,
    seconds_to_ns,
)

_DATASET = re.compile(r"chunk-(\d+)-dataset\.json(\.gz)?")
_FAMILIES: dict[str, Callable[[np.random.Generator, float, int], FloatArray]] = {
    "Gamma": lambda rng, shape, n: rng.standard_gamma(shape, n),
    "Weibull": lambda rng, shape, n: rng.weibull(shape, n),
}
_Weighted = tuple[IntArray, FloatArray]


@dataclass(frozen=True, slots=True)
class _Window:
    start_s: float
    end_s: float
    rate_rps: float
    family: str
    shape: float


@dataclass(frozen=True, slots=True, eq=False)
class _Lengths:
    """Distributions of one dataset window: values and cumulative probabilities."""

    start_s: float
    prompt: _Weighted
    output: _Weighted


def read_servegen(
    folder: Path,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    clients: Sequence[int] | None = None,
    seed: int = 0,
) -> TraceRows:
    """Requests of all (or some) clients whose windows meet [start_s, end_s).

    In a window the number of requests is rate * length, rounded at random without bias; gaps
    have the window's family and shape, scaled to fill it; prompt and output lengths are
    independent draws from the latest dataset window that is not empty. Clients without a
    dataset file are left out.

    Raises:
        TraceError: a file is missing or malformed, or a busy window has no lengths.
    """
    rows = TraceRows(folder, starts_at_first_row=False)
    known = _clients(folder)
    chosen = sorted(known) if clients is None else clients
    for client in chosen:
        if client not in known:
            raise fail(folder, 0, f"no dataset of client {client}", f"choose from {sorted(known)}")
        lengths = _read_lengths(known[client])
        for index, window in enumerate(_read_windows(_trace_file(folder, client))):
            wanted = window.end_s > start_s and (end_s is None or window.start_s < end_s)
            if window.rate_rps > 0 and wanted:
                member = client << 32 | index
                _draw(rows, window, _lengths_at(known[client], lengths, window), seed, member)
    return rows


def _clients(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        raise fail(folder, 0, "not a folder", "give the folder with chunk-0-trace.csv and others")
    found = {
        int(match[1]): path
        for path in sorted(folder.iterdir())
        if (match := _DATASET.fullmatch(path.name))
    }
    if not found:
        raise fail(folder, 0, "no chunk-*-dataset.json in it", "give the folder of one model")
    return found


def _trace_file(folder: Path, client: int) -> Path:
    for name in (f"chunk-{client}-trace.csv", f"chunk-{client}-trace.csv.gz"):
        if (folder / name).exists():
            return folder / name
    raise fail(folder, 0, f"chunk-{client}-trace.csv is missing", "add it or leave out the client")


def _read_windows(path: Path) -> list[_Window]:
    starts: list[float] = []
    cells: list[tuple[float, str, float]] = []
    for line, row in enumerate(csv.reader(read_lines(path)), start=1):
        if len(row) != 6:
            raise fail(path, line, f"{len(row)} cells instead of 6", "fix the row")
        starts.append(seconds_to_ns(path, line, "window start", row[0]) / NS_PER_S)
        cells.append(_check_window(path, line, row))
        if line > 1 and starts[-1] <= starts[-2]:
            raise fail(path, line, f"window start {row[0]} is not after {starts[-2]}", "sort rows")
    if len(starts) < 2:
        raise fail(path, 0, f"{len(starts)} windows", "give at least two, their distance is needed")
    ends = [*starts[1:], 2 * starts[-1] - starts[-2]]
    return [_Window(s, e, *c) for s, e, c in zip(starts, ends, cells, strict=True)]


def _check_window(path: Path, line: int, row: list[str]) -> tuple[float, str, float]:
    """Rate, family and shape of a line."""
    rate = seconds_to_ns(path, line, "rate", row[1]) / NS_PER_S
    shape = seconds_to_ns(path, line, "first parameter", row[4]) / NS_PER_S
    if rate < 0:
        raise fail(path, line, f"rate is {row[1]!r}", "give a rate >= 0")
    if rate > 0 and row[3] not in _FAMILIES:
        raise fail(path, line, f"family is {row[3]!r}", f"choose from {', '.join(_FAMILIES)}")
    if rate > 0 and shape <= 0:
        raise fail(path, line, f"first parameter is {row[4]!r}", "give a shape > 0")
    return rate, row[3], shape


def _read_lengths(path: Path) -> list[_Lengths]:
    """Dataset windows that are not empty, in time order."""
    text = "".join(read_lines(path))
    try:
        windows = json.loads(text)
    except json.JSONDecodeError as cause:
        raise fail(path, cause.lineno, f"not valid JSON ({cause.msg})", "fix the line") from cause
    if not isinstance(windows, dict):
        raise fail(path, 0, "is not a JSON object", "give window start -> distributions")
    found = []
    for start, fields in windows.items():
        seconds = seconds_to_ns(path, 0, "window start", start) / NS_PER_S
        prompt = _weighted(path, start, fields, "input_tokens")
        output = _weighted(path, start, fields, "output_tokens")
        if len(prompt[0]) and len(output[0]):
            found.append(_Lengths(seconds, prompt, output))
    return sorted(found, key=lambda window: window.start_s)


def _weighted(path: Path, start: str, fields: Any, key: str) -> _Weighted:
    """Values and cumulative probabilities of one text "{value: probability, ...}"."""
    place = f"window {start}: {key}"
    try:
        table = ast.literal_eval(fields[key])
        values = np.array(list(table), np.int64)
        shares = np.array(list(table.values()), np.float64)
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as cause:
        raise fail(path, 0, f"{place} is malformed", 'write "{12: 0.5, 20: 0.5}"') from cause
    if len(values) and (not np.all(shares >= 0) or abs(shares.sum() - 1) > 1e-6):
        raise fail(path, 0, f"{place} sums to {shares.sum()}", "give shares that sum to 1")
    return values, np.cumsum(shares)


def _lengths_at(path: Path, lengths: list[_Lengths], window: _Window) -> _Lengths:
    earlier = [entry for entry in lengths if entry.start_s <= window.start_s]
    if not earlier:
        raise TraceError(
            f"{path}: no lengths for the window at {window.start_s:g} s, which has requests; "
            "leave the client out with clients=, or choose a later start_s"
        )
    return earlier[-1]


def _draw(rows: TraceRows, window: _Window, lengths: _Lengths, seed: int, member: int) -> None:
    rng = stream(seed, "arrivals", member)
    span = window.end_s - window.start_s
    count = int(np.floor(window.rate_rps * span + rng.random()))
    gaps = _FAMILIES[window.family](rng, window.shape, count + 1)
    total = float(gaps.sum())
    if not count or total <= 0:
        return
    times = window.start_s + span * np.cumsum(gaps)[:-1] / total
    draws = stream(seed, "lengths", member)
    rows.time_ns.extend(np.floor(times * NS_PER_S).astype(np.int64).tolist())
    rows.prompt.extend(_pick(lengths.prompt, draws, count).tolist())
    rows.output.extend(_pick(lengths.output, draws, count).tolist())
    rows.line.extend([0] * count)


def _pick(weighted: _Weighted, rng: np.random.Generator, n: int) -> IntArray:
    values, cumulative = weighted
    index = np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")
    drawn: IntArray = values[np.minimum(index, len(values) - 1)]
    return drawn
