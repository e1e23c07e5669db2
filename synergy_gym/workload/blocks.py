"""Block identities of prompt content: what a chained block hash would be equal on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.jit import kernel
from synergy_gym.types import IntArray

INDEX_BITS = 24
"""Low bits of an id that hold the block index: prompts up to 2**24 blocks long."""


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """Shared prompt content as a tree of nodes.

    A node covers token positions from `start[node]` on, until the node below it on a
    request's path takes over; `parent[node]` (-1 for a root) covers the positions before.
    Two requests share a block exactly when the deepest node inside it is the same, which
    is what chained block hashes express.

    Attributes:
        leaf: per request, the deepest node of its prompt + output.
        parent: per node, the node before it; always smaller than the node itself.
        start: per node, its first token position.
    """

    leaf: IntArray
    parent: IntArray
    start: IntArray


def block_ids(
    tokens: IntArray, content: Content | None, block_size: int
) -> tuple[IntArray, IntArray]:
    """Chained block identities of prompt + output, one per full block.

    An id is `(node + 1) << 24 | block index`, where `node` is the deepest content node that
    begins before the block ends. Without content every request is a node of its own.

    Args:
        tokens: prompt + output of every request.
        content: their content tree, if they share anything.
        block_size: tokens per block, >= 1.

    Returns:
        `(offsets, ids)`: request r owns `ids[offsets[r]:offsets[r + 1]]`; ids are positive.

    Raises:
        ValueError: `block_size` < 1, or a request has 2**24 blocks or more.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; a block holds at least 1 token")
    counts = tokens // block_size
    too_long = np.flatnonzero(counts >> INDEX_BITS)
    if len(too_long):
        raise ValueError(
            f"workload row {too_long[0]} has {counts[too_long[0]]} blocks of {block_size} tokens; "
            f"at most {2**INDEX_BITS - 1} are supported, use larger blocks"
        )
    offsets = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    content = content or private_content(len(tokens))
    ids = np.empty(offsets[-1], np.int64)
    _fill_ids(offsets, content.leaf, content.parent, content.start, block_size, ids)
    return offsets, ids


def private_content(requests: int) -> Content:
    """Content in which every request is unlike all others."""
    return Content(
        leaf=np.arange(requests, dtype=np.int64),
        parent=np.full(requests, -1, np.int64),
        start=np.zeros(requests, np.int64),
    )


def session_content(
    previous: IntArray, shared_tokens: IntArray, *, system: IntArray | None = None
) -> Content:
    """Content of conversations whose turns repeat the beginning of the turn before.

    Args:
        previous: per request, the earlier request whose prompt + output it begins like, or
            -1 for a first turn.
        shared_tokens: per request, how many leading tokens it shares with that one; for a
            first turn, with its system prompt.
        system: per request, the number of its system prompt, or -1; read for first turns.

    Returns:
        A tree with one node per system prompt, then one per request.

    Raises:
        ValueError: `previous` names the request itself or a later one.
    """
    n = len(previous)
    late = np.flatnonzero(previous >= np.arange(n))
    if len(late):
        raise ValueError(
            f"row {late[0]}: its previous turn is row {previous[late[0]]}; sort rows by arrival"
        )
    chosen = np.full(n, -1, np.int64) if system is None else system
    first = int(chosen.max(initial=-1)) + 1
    own = np.where(previous < 0, chosen, previous + first)
    parent = np.concatenate([np.full(first, -1), own]).astype(np.int64)
    start = np.concatenate([np.zeros(first), np.where(own < 0, 0, shared_tokens)]).astype(np.int64)
    _skip_unreached(parent, start)
    return Content(leaf=np.arange(first, first + n, dtype=np.int64), parent=parent, start=start)


def path_content(paths: list[list[int]], block_tokens: int, prompt_tokens: IntArray) -> Content:
    """Content of prompts given as lists of block hashes (Mooncake, vLLM's timed trace).

    Two prompts share block i when their first i + 1 hashes are equal and stand for equally
    many tokens. What follows the hashes (rest of the prompt, output) is the request's own;
    hashes beyond the prompt mean nothing.

    Args:
        paths: per request, its hashes in order.
        block_tokens: prompt tokens that one hash stands for (the last one may have fewer).
        prompt_tokens: per request, its prompt length.
    """
    known: dict[tuple[int, int, int], int] = {}
    parent: list[int] = []
    start: list[int] = []
    leaf = np.empty(len(paths), np.int64)
    for request, path in enumerate(paths):
        node, position, length = -1, 0, int(prompt_tokens[request])
        for value in path[: -(-length // block_tokens)]:
            size = min(block_tokens, length - position)
            child = known.setdefault((node, value, size), len(parent))
            if child == len(parent):
                parent.append(node)
                start.append(position)
            node, position = child, position + size
        leaf[request] = len(parent)
        parent.append(node)
        start.append(position)
    return Content(leaf, np.array(parent, np.int64), np.array(start, np.int64))


def _fill_ids_python(
    offsets: IntArray,
    leaf: IntArray,
    parent: IntArray,
    start: IntArray,
    block_size: int,
    ids: IntArray,
) -> None:
    for request in range(len(leaf)):
        own = ids[offsets[request] : offsets[request + 1]]
        node, end = leaf[request], len(own)
        while end > 0:  # a node's blocks lie together: they are written as one run
            low = max(start[node] // block_size, 0) if parent[node] >= 0 else 0
            first = (node + 1) << INDEX_BITS
            for index in range(low, end):
                own[index] = first + index
            end = min(low, end)
            node = parent[node]


def _skip_unreached_python(parent: IntArray, start: IntArray) -> None:
    for node in range(len(parent)):
        while parent[node] >= 0 and parent[parent[node]] >= 0:
            if start[parent[node]] < start[node]:
                break
            parent[node] = parent[parent[node]]


_fill_ids = kernel(_fill_ids_python)
_skip_unreached = kernel(_skip_unreached_python)
