"""Readers of traces in CSV: Azure 2023 and 2024, BurstGPT, Vidur, FlowGPT."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

from synergy_gym.types import NS_PER_S
from synergy_gym.workload.traces.files import (
    TraceError,
    TraceRows,
    fail,
    read_lines,
    seconds_to_ns,
    whole_number,
)

_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))?"
)
_TimeParser = Callable[[Path, int, str, str], int]


def read_azure(path: Path) -> TraceRows:
    """AzurePublicDataset, LLM inference traces 2023 and 2024.

    Columns TIMESTAMP (a date and time with up to nine fractional digits, without an offset
    in 2023 and with one in 2024), ContextTokens, GeneratedTokens.
    """
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    return _read(path, columns, parse_timestamp)


def read_burstgpt(path: Path) -> TraceRows:
    """BurstGPT: Timestamp (s), Request tokens, Response tokens; Session ID since version 3."""
    columns = ("Timestamp", "Request tokens", "Response tokens")
    return _read(path, columns, seconds_to_ns, session="Session ID")


def read_flowgpt(path: Path) -> TraceRows:
    """Requests of a FlowGPT replay: arrival_s, prompt_tokens, output_tokens, session_id."""
    columns = ("arrival_s", "prompt_tokens", "output_tokens")
    return _read(path, columns, seconds_to_ns, session="session_id")


def read_vidur(path: Path) -> TraceRows:
    """Vidur processed traces: arrived_at (s), num_prefill_tokens, num_decode_tokens.

    Some files hold lengths only; they need `load_trace(..., rate_rps=)`.
    """
    columns = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
    return _read(path, columns, seconds_to_ns, time_optional=True)


def parse_timestamp(path: Path, line: int, key: str, text: str) -> int:
    """A date and time as nanoseconds since 1970; without an offset it counts as UTC.

    Raises:
        TraceError: it is not of the form 2024-05-10 00:00:00.009930+00:00.
    """
    match = _TIMESTAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        return _to_ns(match)
    except ValueError as cause:
        cure = "write it as 2023-11-16 18:15:46.6805900 or 2024-05-10 00:00:00.009930+00:00"
        raise fail(path, line, f"{key} is {text!r}", cure) from cause


def _to_ns(match: re.Match[str]) -> int:
    day, hour, minute, second, fraction, sign, off_hour, off_minute = match.groups()
    if int(hour) > 23 or int(minute) > 59 or int(second) > 59:
        raise ValueError(match.group())
    seconds = int(hour) * 3600 + int(minute) * 60 + int(second)
    if sign:
        offset = int(off_hour) * 3600 + int(off_minute) * 60
        seconds += offset if sign == "-" else -offset
    # Days since 1970 keep nanoseconds within 64 bits.
    days = date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()
    return (days * 86_400 + seconds) * NS_PER_S + int((fraction or "0").ljust(9, "0"))


def _read(
    path: Path,
    columns: tuple[str, str, str],
    parse_time: _TimeParser,
    *,
    session: str | None = None,
    time_optional: bool = False,
) -> TraceRows:
    """Rows of a CSV file whose time, prompt and output columns are named `columns`."""
    table = _rows(path)
    _, header = next(table, (1, []))
    timed = columns[0] in header or not time_optional
    at = [_index(path, header, name) for name in (columns if timed else columns[1:])]
    at_session = header.index(session) if session in header else -1
    rows, sessions = TraceRows(path, untimed=not timed), dict[str, int]()
    for line, cells in table:
        if len(cells) != len(header):
            raise fail(
                path, line, f"{len(cells)} cells, the header has {len(header)}", "fix the row"
            )
        time_ns = parse_time(path, line, columns[0], cells[at[0]]) if timed else 0
        prompt = whole_number(path, line, columns[1], cells[at[-2]])
        rows.add(line, time_ns, prompt, whole_number(path, line, columns[2], cells[at[-1]]))
        if at_session >= 0:
            name = cells[at_session]
            rows.session.append(sessions.setdefault(name, len(sessions)) if name else -1)
    return rows


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each line that is not blank."""
    reader = csv.reader(read_lines(path), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as cause:
        raise fail(path, reader.line_num, f"not valid CSV ({cause})", "fix the line") from cause


def _index(path: Path, header: list[str], name: str) -> int:
    if name not in header:
        found = ", ".join(header) or "nothing"
        raise TraceError(
            f"{path}:1: the header lacks the column {name!r} (found: {found}); "
            "check the format, or put the header line back"
        )
    return header.index(name)
