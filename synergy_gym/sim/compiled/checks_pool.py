"""Invariant 4, read straight from memory: every KV block is free once, or held as often as noted.

Of pools with prefix caching also what `synergy_gym.sim.compiled.cache` relies on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from synergy_gym.sim.compiled import layout as L
from synergy_gym.types import IntArray

# `Memory` itself is built on this package.
Memory = Any


def held_tokens(requests: Any, engine: Any, running: list[int]) -> IntArray:
    """Tokens of running requests that have blocks."""
    rows = requests[running]
    decode = rows["state"] == L.DECODE
    steps = np.where(decode, engine["busy_steps"], 0)
    # Blocks of the iteration in flight are taken when it is planned.
    flies = bool(engine["in_flight"]) and bool(engine["plan"]["sequences"] > 0)
    ahead = decode & ~rows["skipped"] & flies
    result: IntArray = rows["computed_tokens"] + steps + ahead
    return result


class Spans:
    """The spans of one engine with prefix caching.

    Attributes:
        records: `SPAN` records.
    """

    def __init__(self, memory: Memory, index: int) -> None:
        self._memory, self._engine = memory, memory.engines[index]
        self._pool, self._place = self._engine["pool"], memory.part(index, "pool")
        place = self._place + int(self._pool["spans"])
        self.records = memory.records(L.SPAN, place, int(self._pool["size"]) + 1)

    def length(self, number: int) -> int:
        """Blocks of a span, with what a decode has filled and not written down."""
        span, engine = self.records[number], self._engine
        if not span["alone"]:
            return int(span["length"])
        request = self._memory.requests[span["holder"]]
        tokens = int(request["computed_tokens"])
        if request["state"] == L.DECODE:
            tokens += int(engine["busy_steps"]) + int(engine["ahead"])
        full = tokens // int(self._pool["block_size"])
        return max(int(span["length"]), full - int(span["begin"]))

    def ids(self, number: int) -> IntArray:
        """Contents of a span's blocks."""
        at = int(self._memory.world["block_ids"]) + 8 * int(self.records[number]["ids"])
        result: IntArray = self._memory.numbers(at, self.length(number))
        return result

    def queue(self) -> list[int]:
        """The spans in the free queue, from its front on."""
        spans: list[int] = []
        before, number = 0, int(self._pool["first_free"])
        while number:
            assert int(self.records["queue_previous"][number]) == before, (
                "invariant 4: links of the free queue disagree"
            )
            spans.append(number)
            assert len(spans) <= len(self.records), "invariant 4: a block is freed twice"
            before, number = number, int(self.records["queue_next"][number])
        assert before == int(self._pool["last_free"]), "invariant 4: the free queue's end is wrong"
        return spans

    def row(self, request: int, full: int) -> list[int]:
        """The spans of a running request that has `full` blocks with content."""
        width = int(self._pool["row_width"])
        at = self._place + int(self._pool["table"])
        seat = int(self._memory.details["seat"][request])
        row = self._memory.records(L.NUMBER, at + 4 * seat * width, width)["value"]
        spans: list[int] = []
        done = 0
        while done < full:
            span = int(row[1 + done]) or int(self.records["rest"][spans[-1]])
            assert int(self.records["begin"][span]) == done, "invariant 4: a span is not in place"
            spans.append(span)
            done += self.length(span)
        looks = bool(self._memory.details["looks"][request])
        assert looks or spans, "invariant 4: a request without content does not look"
        alone = [*[False] * (len(spans) - 1), not looks] if spans else []
        said = self.records["alone"][spans].tolist()
        assert said == alone, "invariant 4: a span is wrongly alone"
        assert done == full, "invariant 4: a request's spans are not as long as its tokens"
        return spans

    def equals(self, oldest: int) -> list[int]:
        """The spans of one content, oldest first."""
        spans = [oldest]
        while following := int(self.records["same_next"][spans[-1]]):
            assert int(self.records["same_previous"][following]) == spans[-1], (
                "invariant 4: links among equal spans disagree"
            )
            spans.append(following)
        newest = int(self.records["same_previous"][oldest])
        assert newest == spans[-1], "invariant 4: the newest of equal spans is wrong"
        return spans

    def oldest(self) -> list[int]:
        """The spans in the map."""
        at = self._place + int(self._pool["map"])
        heads = self._memory.records(L.NUMBER, at, int(self._pool["map_mask"]) + 1)["value"]
        spans: list[int] = []
        for head in heads[heads != 0].tolist():
            number = head
            while number:
                spans.append(number)
                number = int(self.records["bucket_next"][number])
        return spans


def check_blocks(memory: Memory, index: int, running: list[int]) -> None:
    """Raise `AssertionError` when blocks of an engine are lost or counted twice."""
    engine = memory.engines[index]
    pool = engine["pool"]
    tokens, size = held_tokens(memory.requests, engine, running), int(pool["block_size"])
    held = -(-tokens // size)
    total, free = int(pool["total"] + pool["owed"]), int(pool["free"])
    assert free >= 0, "invariant 4: negative free blocks"
    if not pool["caching"]:
        assert free + int(held.sum()) == total, "invariant 4: free + used blocks != total"
        return
    spans, full = Spans(memory, index), tokens // size
    rows = [spans.row(r, int(n)) for r, n in zip(running, full, strict=True)]
    used = np.array([number for row in rows for number in row], np.int64)
    queue = np.array(spans.queue(), np.int64)
    references = spans.records["references"]
    counts = np.bincount(used, minlength=len(references))
    assert bool(np.all(references[used] == counts[used])), (
        "invariant 4: reference counts disagree with the requests' spans"
    )
    assert len(np.unique(queue)) == len(queue), "invariant 4: a block is freed twice"
    assert not np.any(references[queue]), "invariant 4: a free block is referenced"
    assert not np.any(counts[queue]), "invariant 4: a block is free and in use"
    lying = int(pool["plain"]) + sum(spans.length(number) for number in queue.tolist())
    assert free == lying, "invariant 4: the free queue is not as long as counted"
    used = np.unique(used)
    busy = int((held - full).sum()) + sum(spans.length(number) for number in used.tolist())
    assert free + busy == total, "invariant 4: free + used blocks != total"
    live = set(used.tolist()) | set(queue.tolist())
    assert all(spans.length(number) >= 1 for number in live), "invariant 4: a span without a block"
    _check_contents(spans, live)


def _check_contents(spans: Spans, live: set[int]) -> None:
    """Contents are found by the first of a span, or behind what precedes them."""
    records, found, contents = spans.records, set(), []
    for oldest in spans.oldest():
        ids = spans.ids(oldest)
        assert int(records["content"][oldest]) == ids[0], "invariant 4: a span's content is wrong"
        contents.append(ids)
        for number in spans.equals(oldest):
            assert np.array_equal(spans.ids(number), ids), "invariant 4: equal spans differ"
            found.add(number)
    assert found == live, "invariant 4: a cached span is not in the map"
    known = np.concatenate([*contents, np.empty(0, np.int64)])
    assert len(np.unique(known)) == len(known), "invariant 4: a content is in unequal spans"
