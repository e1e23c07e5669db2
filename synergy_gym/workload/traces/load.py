"""Real traffic: traces in the layouts in which they were published, as `Workload`s."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from synergy_gym.seeding import stream
from synergy_gym.types import NS_PER_S, IntArray
from synergy_gym.workload.arrivals import poisson
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import path_content
from synergy_gym.workload.traces.csv import (
    read_azure,
    read_burstgpt,
    read_flowgpt,
    read_vidur,
)
from synergy_gym.workload.traces.files import TraceError, TraceRows, column, fail
from synergy_gym.workload.traces.json import read_mooncake, read_timed_trace
from synergy_gym.workload.traces.servegen import read_servegen

__all__ = ["FORMATS", "TraceError", "TraceInfo", "list_formats", "load_trace", "trace_info"]

ZeroOutput = Literal["error", "drop", "one"]

FORMATS: dict[str, Callable[..., TraceRows]] = {
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "flowgpt": read_flowgpt,
    "mooncake": read_mooncake,
    "servegen": read_servegen,
    "vidur": read_vidur,
    "vllm-timed-trace": read_timed_trace,
}
"""Readers by format name; add one to make a layout usable from `--format`."""


@dataclass(frozen=True, slots=True)
class TraceInfo:
    """What a loaded trace looks like.

    `iat_cv` is the coefficient of variation of the gaps between arrivals; it and the rate are
    0 with fewer than three requests.
    """

    requests: int
    span_s: float
    rate_rps: float
    iat_cv: float
    prompt_mean: float
    output_mean: float
    sessions: int
    shared_content: bool


def list_formats() -> dict[str, str]:
    """Format names and the first line of what they read."""
    return {name: (reader.__doc__ or "").split("\n")[0] for name, reader in FORMATS.items()}


def load_trace(
    path: Path | str,
    format: str,
    *,
    rate_scale: float = 1.0,
    start_s: float = 0.0,
    end_s: float | None = None,
    limit: int | None = None,
    zero_output: ZeroOutput = "error",
    jitter_s: float = 0.0,
    rate_rps: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Workload:
    """Read a trace, plain or gzipped, in the layout `format`.

    Rows are put in order of arrival. Times count from the first row (ServeGen: from the
    zero of its windows); the window [start_s, end_s) is cut out and begins at time 0.

    Args:
        path: the file, or the folder for ServeGen.
        format: a name of `list_formats`.
        rate_scale: 2 plays the trace twice as fast, > 0.
        start_s: begin of the window on the trace's own clock, seconds.
        end_s: its end, seconds, or `None`.
        limit: at most so many requests, the first ones of the window, or `None`.
        zero_output: what to do with a row without output tokens: "error", "drop" the row, or
            "one" token (a server always generates one).
        jitter_s: spread rows of one timestamp uniformly over this many seconds after it.
        rate_rps: for files without arrivals (some Vidur ones): Poisson arrivals at this rate.
        seed: of everything that is drawn (jitter, Poisson arrivals, ServeGen).
        options: what the format itself takes, for example `clients` for ServeGen.

    Returns:
        The requests; empty if the file has a header and no rows, or the window has none.

    Raises:
        TraceError: the file is missing or malformed.
        ValueError: the format, an option or a number is wrong.
    """
    _check(format, rate_scale, start_s, end_s, limit, zero_output, jitter_s)
    reader = FORMATS[format]
    known = inspect.signature(reader).parameters
    _check_options(format, options, known)
    shared = {"start_s": start_s, "end_s": end_s, "seed": seed}
    options |= {name: value for name, value in shared.items() if name in known}
    rows = _Table.of(reader(Path(path), **options))
    rows = rows.keep(_served(rows, zero_output))
    times = _spread(_arrivals(rows, rate_rps, seed), jitter_s, seed)
    order = np.argsort(times, kind="stable")
    order = order[_window(times[order], start_s, end_s)][:limit]
    arrival_ns = ((times[order] - round(start_s * NS_PER_S)) / rate_scale).astype(np.int64)
    return _workload(rows.keep(order), arrival_ns)


def trace_info(workload: Workload) -> TraceInfo:
    """Rate, burstiness and mean lengths of a workload with fixed arrival times."""
    n = len(workload)
    gaps = np.diff(workload.arrival_ns) / NS_PER_S
    span = float(gaps.sum())
    varied = n > 2 and span > 0
    return TraceInfo(
        requests=n,
        span_s=span,
        rate_rps=(n - 1) / span if varied else 0.0,
        iat_cv=float(gaps.std() / gaps.mean()) if varied else 0.0,
        prompt_mean=float(workload.prompt_tokens.mean()) if n else 0.0,
        output_mean=float(workload.output_tokens.mean()) if n else 0.0,
        sessions=len(np.unique(workload.session[workload.session >= 0])),
        shared_content=workload.content is not None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """`TraceRows` as NumPy columns."""

    rows: TraceRows
    index: IntArray
    time_ns: IntArray
    prompt: IntArray
    output: IntArray
    line: IntArray
    session: IntArray | None = None

    @classmethod
    def of(cls, rows: TraceRows) -> _Table:
        names = ("time_ns", "prompt", "output", "line")
        columns = {name: column(getattr(rows, name)) for name in names}
        session = column(rows.session) if len(rows.session) else None
        return cls(rows, np.arange(len(rows.line)), session=session, **columns)

    def keep(self, chosen: IntArray) -> _Table:
        """The chosen rows, in this order."""
        return _Table(
            self.rows,
            index=self.index[chosen],
            time_ns=self.time_ns[chosen],
            prompt=self.prompt[chosen],
            output=self.output[chosen],
            line=self.line[chosen],
            session=None if self.session is None else self.session[chosen],
        )


def _check(
    format: str,
    rate_scale: float,
    start_s: float,
    end_s: float | None,
    limit: int | None,
    zero_output: str,
    jitter_s: float,
) -> None:
    if format not in FORMATS:
        raise ValueError(f"unknown trace format {format!r}; choose one of {', '.join(FORMATS)}")
    if not (np.isfinite(rate_scale) and rate_scale > 0):
        raise ValueError(f"rate_scale is {rate_scale}; give a factor above 0 (2: twice as fast)")
    if not start_s >= 0 or (end_s is not None and not end_s >= start_s):
        raise ValueError(f"the window is [{start_s}, {end_s}); give 0 <= start_s <= end_s")
    if limit is not None and limit < 0:
        raise ValueError(f"limit is {limit}; give a number of requests >= 0")
    if zero_output not in ("error", "drop", "one"):
        raise ValueError(f'zero_output is {zero_output!r}; choose "error", "drop" or "one"')
    if not (np.isfinite(jitter_s) and jitter_s >= 0):
        raise ValueError(f"jitter_s is {jitter_s}; give seconds >= 0")


def _check_options(format: str, options: dict[str, Any], known: Any) -> None:
    for name in options:
        if name not in known or name == "path":
            own = sorted(known.keys() - {"path", "folder", "start_s", "end_s", "seed"})
            cure = f"it takes {', '.join(own)}" if own else "it takes none of its own"
            raise ValueError(f"format {format!r} has no option {name!r}; {cure}")


def _served(table: _Table, zero_output: ZeroOutput) -> IntArray:
    """Rows that can be played; may set outputs of 0 to 1."""
    path, empty = table.rows.path, np.flatnonzero(table.prompt < 1)
    if len(empty):
        raise fail(path, int(table.line[empty[0]]), "prompt of 0 tokens", "remove the row")
    silent = table.output < 1
    if zero_output == "error" and silent.any():
        line = int(table.line[np.flatnonzero(silent)[0]])
        cure = "pass zero_output (--zero-output) drop for failed requests, or one: a server emits 1"
        raise fail(path, line, f"output of 0 tokens ({silent.sum()} rows in all)", cure)
    if zero_output == "one":
        table.output[silent] = 1
    return np.flatnonzero(table.output >= 1)


def _arrivals(table: _Table, rate_rps: float | None, seed: int) -> IntArray:
    """Arrival of every row since time 0, nanoseconds."""
    n = len(table.time_ns)
    if not n:
        return table.time_ns
    if rate_rps is not None:
        return _poisson(n, rate_rps, seed)
    if table.rows.untimed:
        raise fail(
            table.rows.path,
            1,
            "no column of arrival times",
            "pass rate_rps= (--rate) for Poisson arrivals",
        )
    first = int(table.time_ns.min()) if table.rows.starts_at_first_row else 0
    return table.time_ns - first


def _poisson(n: int, rate_rps: float, seed: int) -> IntArray:
    if not rate_rps > 0:
        raise ValueError(f"rate_rps is {rate_rps}; give requests per second above 0")
    horizon_s = (n + 10 * np.sqrt(n) + 100) / rate_rps
    times = poisson(stream(seed, "arrivals"), rate_rps, horizon_s)
    return times[:n]


def _spread(times: IntArray, jitter_s: float, seed: int) -> IntArray:
    """`times` moved later by up to `jitter_s`; rows of one timestamp keep their order."""
    if not jitter_s:
        return times
    offsets = stream(seed, "arrivals", 1).random(len(times)) * jitter_s * NS_PER_S
    by_row = np.lexsort((np.arange(len(times)), times))
    by_offset = np.lexsort((offsets, times))
    moved = np.empty_like(times)
    moved[by_row] = times[by_row] + offsets[by_offset].astype(np.int64)
    return moved


def _window(times: IntArray, start_s: float, end_s: float | None) -> IntArray:
    inside = times >= round(start_s * NS_PER_S)
    if end_s is not None:
        inside &= times < round(end_s * NS_PER_S)
    return np.flatnonzero(inside)


def _workload(table: _Table, arrival_ns: IntArray) -> Workload:
    paths = [table.rows.paths[row] for row in table.index] if table.rows.paths else []
    content = None
    if any(paths):
        content = path_content(paths, table.rows.block_tokens, table.prompt)
    return make_workload(
        arrival_ns, table.prompt, table.output, session=table.session, content=content
    )
