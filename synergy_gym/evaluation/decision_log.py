"""The recorded decisions of one episode, as a compact file that holds data only.

A file is xz around `header length (4 bytes, little-endian), header (JSON), streams`. A stream is
a column of whole numbers: zigzag-coded, in the narrowest unsigned width that holds them, low
bytes of all first. Columns are named in `STREAMS`; orders and caps are kept as the places where
they leave the queue's own order (a new request that is moved to its place costs a few numbers).
An engine that decides by a `DecisionRule` is its rule. An engine's advert is not kept: it only
tells routers something, and their choices are recorded.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from synergy_gym.seats import Observer
from synergy_gym.simulation import Simulation
from synergy_gym.types import BatchDecision, DecisionRule, IntArray

FORMAT = 1
STREAMS = ("budget", "cap", "chunk", "lists", "lengths", "changes", "gaps", "values")
"""Columns of an engine that Python decides for.

Per decision: token budget, admission cap (0: none given), chunk cap, and which lists it has (1 a
running order, 2 a waiting order, 4 token caps). Per list: its length and how many steps leave the
rule "one more than before" (orders) or "as before" (caps). Per such step: the distance from
the last one and by how much.
"""
MOST_BYTES = 256 * 2**20
"""A file that unpacks to more is refused."""
MOST_LISTED = 2**22
"""An order or a list of caps that is longer is refused."""
_ORDERS = (("running_order", 1), ("waiting_order", 2))
_CAPS = 4
_WIDTHS = (1, 2, 4, 8)
_PRESET = 6


class DecisionLogError(ValueError):
    """A file of decisions is damaged, of another version, or fits another episode."""


@dataclass
class EngineLog:
    """Decisions of one engine: its rule, or the columns of `STREAMS`."""

    rule: DecisionRule | None = None
    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in STREAMS})

    def add(self, decision: BatchDecision) -> None:
        """Append a decision that the simulator has accepted."""
        columns = self.columns
        columns["budget"].append(int(decision.token_budget))
        columns["cap"].append(int(decision.max_running or 0))
        columns["chunk"].append(int(decision.prefill_chunk))
        present = 0
        for name, bit in _ORDERS:
            order = getattr(decision, name)
            if order is not None:
                present |= bit
                self._add_list(np.diff(np.asarray(order, np.int64), prepend=-1) - 1)
        if decision.token_caps is not None:
            present |= _CAPS
            self._add_list(np.diff(np.asarray(decision.token_caps, np.int64), prepend=-1))
        columns["lists"].append(present)

    def _add_list(self, steps: IntArray) -> None:
        at = np.flatnonzero(steps)
        self.columns["lengths"].append(len(steps))
        self.columns["changes"].append(len(at))
        self.columns["gaps"].extend(np.diff(at, prepend=0).tolist())
        self.columns["values"].extend(steps[at].tolist())


@dataclass
class DecisionLog:
    """Every decision of an episode: the router's, in order, and each engine's."""

    routes: list[int] = field(default_factory=list)
    engines: list[EngineLog] = field(default_factory=list)

    @property
    def rules(self) -> list[DecisionRule | None]:
        """Per engine the compiled decision that it was played with."""
        return [engine.rule for engine in self.engines]


class Recording(Observer):
    """Keeps the decisions of an episode; engines may follow a rule, which is kept instead.

    Args:
        log: where they go; empty.
    """

    asks_router = True

    def __init__(self, log: DecisionLog) -> None:
        self._log = log

    def began(self, sim: Simulation, rules: Sequence[DecisionRule | None]) -> None:
        """Note the rules."""
        self._log.engines[:] = [EngineLog(rule) for rule in rules]

    def after(self, sim: Simulation, engine: int | None, answer: Any) -> None:
        """Note a decision."""
        if engine is None:
            self._log.routes.append(int(answer))
        else:
            self._log.engines[engine].add(answer)


class Replay:
    """Gives the decisions of a log back, in order.

    Raises:
        DecisionLogError: its columns do not fit one another.
    """

    def __init__(self, log: DecisionLog) -> None:
        self._routes = iter(log.routes)
        self._engines = [_Decisions(i, engine) for i, engine in enumerate(log.engines)]

    def route(self) -> int:
        """The router's next choice.

        Raises:
            DecisionLogError: there is none.
        """
        choice = next(self._routes, None)
        if choice is None:
            raise DecisionLogError("the router's choices end before the episode does")
        return choice

    def batch(self, engine: int) -> BatchDecision:
        """The next decision of an engine.

        Raises:
            DecisionLogError: there is none.
        """
        return self._engines[engine].next()

    def check_finished(self) -> None:
        """Raise `DecisionLogError` when decisions are left."""
        left = sum(1 for _ in self._routes) + sum(engine.left() for engine in self._engines)
        if left:
            raise DecisionLogError(f"{left} decisions are left at the end of the episode")


class _Decisions:
    """Reads the columns of one engine."""

    def __init__(self, index: int, log: EngineLog) -> None:
        self._index = index
        self._at = self._list = self._change = 0
        self._columns: dict[str, IntArray] = {
            name: np.asarray(values, np.int64) for name, values in log.columns.items()
        }
        self._check()

    def _check(self) -> None:
        c = self._columns
        lists = sum(np.count_nonzero(c["lists"] & bit) for bit in (1, 2, _CAPS))
        fits = len({len(c[name]) for name in ("budget", "cap", "chunk", "lists")}) == 1
        fits &= lists == len(c["lengths"]) == len(c["changes"])
        fits &= len(c["gaps"]) == len(c["values"]) == int(c["changes"].sum())
        if not fits or any((c[name] < 0).any() for name in ("lengths", "changes", "gaps")):
            raise DecisionLogError(f"engine {self._index}: its columns do not fit one another")

    def left(self) -> int:
        return len(self._columns["budget"]) - self._at

    def next(self) -> BatchDecision:
        if not self.left():
            raise DecisionLogError(f"decisions of engine {self._index} end before the episode does")
        c, at = self._columns, self._at
        self._at += 1
        present = int(c["lists"][at])
        return BatchDecision(
            token_budget=int(c["budget"][at]),
            max_running=int(c["cap"][at]) or None,
            prefill_chunk=int(c["chunk"][at]),
            running_order=self._order() if present & 1 else None,
            waiting_order=self._order() if present & 2 else None,
            token_caps=self._steps().cumsum() - 1 if present & _CAPS else None,
        )

    def _order(self) -> IntArray:
        return (self._steps() + 1).cumsum() - 1

    def _steps(self) -> IntArray:
        c = self._columns
        length, changes = int(c["lengths"][self._list]), int(c["changes"][self._list])
        part = slice(self._change, self._change + changes)
        at = c["gaps"][part].cumsum()
        if length > MOST_LISTED or (changes and at[-1] >= length):
            raise DecisionLogError(f"engine {self._index}: a list of {length} leaves its bounds")
        self._list, self._change = self._list + 1, part.stop
        steps = np.zeros(length, np.int64)
        steps[at] = c["values"][part]
        return steps


def packed(log: DecisionLog, key: Sequence[Any]) -> bytes:
    """The file of a log; equal logs of one row give equal bytes (with one release of liblzma).

    Args:
        log: the decisions.
        key: values of `KEY_COLUMNS` of the row that they belong to.
    """
    streams = [("routes", log.routes)]
    for index, engine in enumerate(log.engines):
        if engine.rule is None:
            streams += [(f"{index}/{name}", engine.columns[name]) for name in STREAMS]
    coded = [(name, *_coded(values)) for name, values in streams]
    header = {
        "format": FORMAT,
        "key": list(key),
        "rules": [None if rule is None else asdict(rule) for rule in log.rules],
        "streams": [[name, width, count] for name, width, count, _ in coded],
    }
    text = json.dumps(header, sort_keys=True).encode()
    body = struct.pack("<I", len(text)) + text + b"".join(data for *_, data in coded)
    return lzma.compress(body, preset=_PRESET)


def _coded(values: Sequence[int]) -> tuple[int, int, bytes]:
    """Width, count and bytes of a column."""
    signed = np.asarray(values, np.int64)
    plain = ((signed << 1) ^ (signed >> 63)).astype(np.uint64)
    most = int(plain.max(initial=0))
    width = next(width for width in _WIDTHS if most < 1 << 8 * width)
    planes = plain.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T
    return width, len(plain), planes.tobytes()


def unpacked(data: bytes, key: Sequence[Any], place: str) -> DecisionLog:
    """The log in a file.

    Args:
        data: the file.
        key: the row that it must belong to.
        place: what errors call the file.

    Raises:
        DecisionLogError: names `place`, what is wrong and the cure.
    """
    body = _body(data, place)
    try:
        size = struct.unpack_from("<I", body)[0]
        header: Mapping[str, Any] = json.loads(body[4 : 4 + size])
        found = header["format"]
        if found != FORMAT:
            raise DecisionLogError(
                f"{place}: format {found!r}; this version reads {FORMAT}: record it again"
            )
        log, columns = _empty(header), _columns(header["streams"], body[4 + size :])
        _fill(log, columns)
    except DecisionLogError:
        raise
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DecisionLogError(
            f"{place}: no file of decisions ({error}); record it again"
        ) from None
    if header.get("key") != list(key):
        raise DecisionLogError(
            f"{place}: holds the decisions of {header.get('key')}, not of {list(key)}; "
            "put the file of this row there"
        )
    return log


def _body(data: bytes, place: str) -> bytes:
    reader = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=128 * 2**20)
    try:
        body = reader.decompress(data, max_length=MOST_BYTES)
    except lzma.LZMAError as error:
        raise DecisionLogError(f"{place}: damaged ({error}); record it again") from None
    if not reader.eof or reader.unused_data:
        raise DecisionLogError(
            f"{place}: truncated, longer than one file, or unpacks to more than "
            f"{MOST_BYTES} bytes; record it again"
        )
    return body


def _empty(header: Mapping[str, Any]) -> DecisionLog:
    rules = [None if rule is None else DecisionRule(**rule) for rule in header["rules"]]
    return DecisionLog(engines=[EngineLog(rule) for rule in rules])


def _columns(streams: Sequence[Any], data: bytes) -> dict[str, IntArray]:
    found, at = {}, 0
    for name, width, count in streams:
        if width not in _WIDTHS or not isinstance(count, int) or count < 0:
            raise ValueError(f"stream {name!r} has width {width!r} and count {count!r}")
        part = np.frombuffer(data, np.uint8, width * count, at).reshape(width, count)
        plain = np.ascontiguousarray(part.T).view(f"<u{width}").reshape(-1).astype(np.uint64)
        sign = -(plain & np.uint64(1)).astype(np.int64)
        found[str(name)] = (plain >> np.uint64(1)).astype(np.int64) ^ sign
        at += width * count
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes after the last stream")
    return found


def _fill(log: DecisionLog, columns: dict[str, IntArray]) -> None:
    log.routes = columns.pop("routes").tolist()
    for index, engine in enumerate(log.engines):
        if engine.rule is None:
            engine.columns = {name: columns.pop(f"{index}/{name}").tolist() for name in STREAMS}
    if columns:
        raise ValueError(f"unknown streams {sorted(columns)}")


DECISIONS = "decisions"
"""Folder of recorded decisions, beside the progress file and in a finished board."""


def decisions_name(key: Sequence[Any]) -> str:
    """The file name of a row's decisions: a hash of its key (a policy's name can hold a path)."""
    text = json.dumps(list(key))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.dec"
