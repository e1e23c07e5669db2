"""Token ids for the requests of a workload: equal content, and only that, gives equal KV blocks.

A node of the content tree (`workload.base.Content`) writes pseudo-random ids from its first
position on. Its first ids set it apart from everything else that goes on from the same place:
they are its parent's ids plus the digits of its number among the branches there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from synergy_gym.types import IntArray
from synergy_gym.workload.base import Workload
from synergy_gym.workload.blocks import private_content

FIRST_ID = 4
"""Ids below this are special in the models of `tiny_model` (padding, begin, end, unknown)."""
_ROOT = -1


class Prompts:
    """Prompt and output ids of a workload's requests.

    Args:
        workload: the requests and their content tree.
        vocabulary: ids of the model; prompts use `FIRST_ID..vocabulary - 1`.
        block_size: tokens per KV block.

    Raises:
        ValueError: the vocabulary is too small to tell the branches of the content tree apart
            within the block in which they part.
    """

    def __init__(self, workload: Workload, vocabulary: int, block_size: int) -> None:
        self._ids = vocabulary - FIRST_ID
        if self._ids < 2:
            raise ValueError(f"a vocabulary of {vocabulary} ids is too small; take a larger model")
        content = workload.content or private_content(len(workload))
        self._lengths: IntArray = workload.prompt_tokens + workload.output_tokens
        self._leaf: list[int] = content.leaf.tolist()
        self._start: list[int] = np.where(content.parent < 0, 0, content.start).tolist()
        self._above = _nearest_earlier(content.parent.tolist(), self._start)
        self._number, self._digits = self._branches()
        self._check(block_size)

    def tokens(self, request: int) -> list[int]:
        """Ids of the request's prompt followed by those of its output."""
        ids = np.empty(int(self._lengths[request]), np.int64)
        end = len(ids)
        for node in self._path(self._leaf[request]):
            start = self._start[node]
            if start < end:
                ids[start:end] = self._written(node, start, end)
                end = start
        result: list[int] = (ids + FIRST_ID).tolist()
        return result

    def _path(self, node: int) -> Iterator[int]:
        while node != _ROOT:
            yield node
            node = self._above[node]

    def _written(self, node: int, start: int, end: int) -> IntArray:
        """What the node writes from its first position `start` up to `end`."""
        positions = np.arange(start, end, dtype=np.uint64)
        ids = (_mixed(node, positions) % np.uint64(self._ids)).astype(np.int64)
        for offset in range(min(self._digits[node], end - start)):
            ids[offset] = self._at(node, start + offset)
        return ids

    def _at(self, node: int, position: int) -> int:
        """The id that `node` has at a position from its first one on."""
        if node == _ROOT:
            return 0
        offset = position - self._start[node]
        if offset < self._digits[node]:
            digit = self._number[node] // self._ids**offset % self._ids
            return int((self._at(self._above[node], position) + digit) % self._ids)
        return int(_mixed(node, np.array([position], np.uint64))[0]) % self._ids

    def _branches(self) -> tuple[list[int], list[int]]:
        """Per node its number among the branches at its start, and how many digits tell them.

        Number 0 is the parent that simply goes on.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for node, (above, start) in enumerate(zip(self._above, self._start, strict=True)):
            groups[above, start].append(node)
        number, digits = [0] * len(self._above), [0] * len(self._above)
        for members in groups.values():
            needed = 1
            while self._ids**needed <= len(members):
                needed += 1
            for place, node in enumerate(members, start=1):
                number[node], digits[node] = place, needed
        return number, digits

    def _check(self, block_size: int) -> None:
        for node, (above, start) in enumerate(zip(self._above, self._start, strict=True)):
            room = block_size - start % block_size
            crowded = above != _ROOT and start < self._start[above] + self._digits[above]
            if self._digits[node] > room or (crowded and self._digits[above] > 1):
                raise ValueError(
                    f"a vocabulary of {self._ids} ids cannot tell the requests apart that part at "
                    f"token {start}, {room} before the end of a KV block; take a larger model "
                    "(mid, big) or another block size"
                )


def _nearest_earlier(parent: list[int], start: list[int]) -> list[int]:
    """Per node the nearest ancestor that starts before it (those between write nothing)."""
    above = []
    for node, ancestor in enumerate(parent):
        while ancestor >= 0 and start[ancestor] >= start[node]:
            ancestor = parent[ancestor]
        above.append(ancestor if ancestor >= 0 else _ROOT)
    return above


def _mixed(node: int, positions: np.ndarray) -> np.ndarray:
    """A pseudo-random number per (node, position): splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        x = positions * np.uint64(0x9E3779B97F4A7C15)
        x ^= np.uint64((node + 1) * 0xD1B54A32D192ED03 & (1 << 64) - 1)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ x >> np.uint64(shift)) * np.uint64(factor)
        return x ^ x >> np.uint64(31)
