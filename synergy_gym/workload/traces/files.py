"""What all trace readers share: opening files, strict fields, and the rows they produce."""

from __future__ import annotations

import gzip
import math
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from synergy_gym.types import NS_PER_S, IntArray

MAX_TOKENS = 2**31
_MAX_SECONDS = 9e9  # what an int64 of nanoseconds holds
_GZIP_MAGIC = b"\x1f\x8b"


class TraceError(ValueError):
    """A trace is missing or malformed; the message names file, line, value and cure."""


@dataclass(slots=True)
class TraceRows:
    """Rows of a trace file as they stand in it.

    Attributes:
        path: the file or folder, for messages.
        time_ns: arrival on the file's own clock, nanoseconds.
        prompt: prompt tokens.
        output: output tokens, 0 where the file says so.
        line: line number of each row, 1-based; 0 where rows are generated.
        session: session number, or empty if the layout has none.
        paths: block hashes of each prompt, or empty if the layout has none.
        block_tokens: prompt tokens per block hash.
        starts_at_first_row: whether time 0 is the first row (else the file's own zero).
        untimed: whether the file has no arrival times.
    """

    path: Path
    time_ns: array[int] = field(default_factory=lambda: array("q"))
    prompt: array[int] = field(default_factory=lambda: array("q"))
    output: array[int] = field(default_factory=lambda: array("q"))
    line: array[int] = field(default_factory=lambda: array("q"))
    session: array[int] = field(default_factory=lambda: array("q"))
    paths: list[list[int]] = field(default_factory=list)
    block_tokens: int = 0
    starts_at_first_row: bool = True
    untimed: bool = False

    def add(self, line: int, time_ns: int, prompt: int, output: int) -> None:
        """Append a row."""
        self.line.append(line)
        self.time_ns.append(time_ns)
        self.prompt.append(prompt)
        self.output.append(output)


def column(values: array[int]) -> IntArray:
    """The array as NumPy integers."""
    return np.array(values, np.int64)


def fail(path: Path, line: int, problem: str, cure: str) -> TraceError:
    """The error for a malformed line (line 0: the file as a whole)."""
    place = f"{path}:{line}" if line else str(path)
    return TraceError(f"{place}: {problem}; {cure}")


def read_lines(path: Path) -> Iterator[str]:
    """Text lines of a plain or gzipped UTF-8 file, line ends included.

    Raises:
        TraceError: the file cannot be read, is a damaged archive, or is not text.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
        opener = gzip.open if packed else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            for number, line in enumerate(text, start=1):  # noqa: B007
                yield line
    except UnicodeDecodeError as cause:
        raise fail(path, number + 1, "not UTF-8 text", "check that it is the right file") from cause
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise fail(path, 0, f"damaged gzip archive ({cause})", "download it again") from cause
    except OSError as cause:
        raise fail(path, 0, f"cannot be read ({cause.strerror})", "check the path") from cause


def whole_number(path: Path, line: int, key: str, text: str) -> int:
    """A token count or an id, 0 to 2**31.

    Raises:
        TraceError: it is not a whole number in this range.
    """
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MAX_TOKENS:
        raise fail(path, line, f"{key} is {text!r}", "give a whole number >= 0")
    return value


def seconds_to_ns(path: Path, line: int, key: str, text: str | float) -> int:
    """A time in seconds as nanoseconds.

    Raises:
        TraceError: it is not a finite number that fits.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < _MAX_SECONDS:
        raise fail(path, line, f"{key} is {text!r}", "give a time in seconds, such as 12.5")
    return round(value * NS_PER_S)
