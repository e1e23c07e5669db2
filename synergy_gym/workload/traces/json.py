"""Readers of traces in JSON lines: Mooncake, and the timed traces of `vllm bench serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synergy_gym.workload.traces.files import (
    MAX_TOKENS,
    TraceRows,
    fail,
    read_lines,
    seconds_to_ns,
)


def read_mooncake(path: Path) -> TraceRows:
    """Mooncake (FAST'25): timestamp (ms), input_length, output_length, hash_ids.

    A hash stands for 512 prompt tokens and everything before them.
    """
    return read_timed_trace(path, seconds_per_unit=0.001, block_tokens=512)


def read_timed_trace(
    path: Path,
    *,
    seconds_per_unit: float = 1.0,
    block_tokens: int = 16,
    timestamp_key: str = "timestamp",
    input_key: str = "input_length",
    output_key: str = "output_length",
    hash_key: str = "hash_ids",
) -> TraceRows:
    """The dataset `timed_trace` of `vllm bench serve` (vLLM pull request 39795).

    Options and defaults are those of vLLM's `--timed-trace-*`: seconds per unit of the
    timestamp, tokens per hash (16 in Alibaba's traces, 512 in Mooncake's) and field names.
    As there, hashes may be absent; where they cover less than the prompt, the rest of the
    prompt is the request's own (vLLM would cut it off).
    """
    rows = TraceRows(path, block_tokens=block_tokens)
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        entry = _entry(path, line, text)
        stamp = _field(path, line, entry, timestamp_key)
        if isinstance(stamp, bool) or not isinstance(stamp, int | float | str):
            raise fail(path, line, f"{timestamp_key} is {stamp!r}", "give a number")
        unit_ns = seconds_to_ns(path, line, timestamp_key, stamp)
        prompt = _count(path, line, entry, input_key)
        output = _count(path, line, entry, output_key)
        rows.add(line, round(unit_ns * seconds_per_unit), prompt, output)
        rows.paths.append(_hashes(path, line, entry.get(hash_key, []), hash_key))
    return rows


def _entry(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as cause:
        raise fail(path, line, f"not valid JSON ({cause.msg})", "fix the line") from cause
    if not isinstance(entry, dict):
        raise fail(path, line, f"is {text.strip()[:40]!r}", "write one JSON object per line")
    return entry


def _field(path: Path, line: int, entry: dict[str, Any], key: str) -> Any:
    if key not in entry:
        found = ", ".join(entry) or "nothing"
        raise fail(path, line, f"no field {key!r} (found: {found})", "add it or check the format")
    return entry[key]


def _count(path: Path, line: int, entry: dict[str, Any], key: str) -> int:
    value = _field(path, line, entry, key)
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise fail(path, line, f"{key} is {value!r}", "give a whole number >= 0")
    return value


def _hashes(path: Path, line: int, value: Any, key: str) -> list[int]:
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        shown = repr(value)[:60]
        raise fail(path, line, f"{key} is {shown}", "give a list of whole numbers")
    return value
