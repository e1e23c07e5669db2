"""What a router can remember of the engines' prefix caches: the blocks that it sent to each.

Nothing is asked from the engines, so the map is approximate: it does not know of evictions, nor
of blocks that are not computed yet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from synergy_gym.types import BoolArray, EngineSpec, IntArray


class _Node:
    """Consecutive blocks that the same prompts have used, and what followed them."""

    __slots__ = ("blocks", "children", "parent")

    def __init__(self, blocks: list[int], parent: _Node | None) -> None:
        self.blocks = blocks
        self.children: dict[int, _Node] = {}
        self.parent = parent

    def shared(self, chain: list[int], at: int) -> int:
        """How many of the node's blocks `chain` has from position `at` on."""
        blocks, most = self.blocks, min(len(self.blocks), len(chain) - at)
        if blocks[most - 1] == chain[at + most - 1]:
            return most
        return bisect_left(range(most), 1, key=lambda i: blocks[i] != chain[at + i])


class BlockMemory:
    """The last blocks that one engine was sent, least recently used out first.

    A chain is a prompt's block hashes, each of which stands for everything before it too: equal
    blocks have equal beginnings. Of blocks used last by the same prompt the later ones go first,
    so the known part of a chain is always a prefix. The chains form a radix tree, whose cost goes
    with the forks on a prompt's path and not with its blocks.

    Args:
        capacity: blocks that are remembered.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.clear()

    def __len__(self) -> int:
        return self._blocks

    def clear(self) -> None:
        """Forget everything."""
        self._root = _Node([], None)
        # Least recently used first, children before their parents.
        self._recent: OrderedDict[_Node, None] = OrderedDict()
        self._blocks = 0

    def match(self, chain: list[int]) -> int:
        """Length of the longest known prefix of `chain`, in blocks."""
        node, at = self._root, 0
        while at < len(chain) and (child := node.children.get(chain[at])) is not None:
            shared = child.shared(chain, at)
            at += shared
            if shared < len(child.blocks):
                break
            node = child
        return at

    def insert(self, chain: list[int]) -> None:
        """Remember a chain as just used."""
        path = [self._root]
        at = 0
        while at < len(chain):
            child = path[-1].children.get(chain[at])
            if child is None:
                child = self._add(path[-1], chain[at:])
                self._blocks += len(child.blocks)
            elif (shared := child.shared(chain, at)) < len(child.blocks):
                child = self._split(child, shared)
            at += len(child.blocks)
            path.append(child)
        for node in reversed(path[1:]):
            self._recent.move_to_end(node)
        while self._blocks > self.capacity:
            self._drop(self._blocks - self.capacity)

    def _add(self, parent: _Node, blocks: list[int]) -> _Node:
        node = _Node(blocks, parent)
        parent.children[blocks[0]] = node
        self._recent[node] = None
        return node

    def _split(self, node: _Node, at: int) -> _Node:
        """A new node of the first `at` blocks, followed by `node` with the others."""
        assert node.parent is not None
        upper = self._add(node.parent, node.blocks[:at])
        node.blocks = node.blocks[at:]
        node.parent = upper
        upper.children[node.blocks[0]] = node
        return upper

    def _drop(self, blocks: int) -> None:
        """Forget up to `blocks` blocks of the node used least recently, which is a leaf."""
        node = next(iter(self._recent))
        dropped = min(blocks, len(node.blocks))
        self._blocks -= dropped
        if dropped == len(node.blocks):
            assert node.parent is not None
            del node.parent.children[node.blocks[0]]
            del self._recent[node]
        else:
            del node.blocks[-dropped:]


class PrefixMap:
    """One `BlockMemory` per engine.

    Args:
        engines: the cluster.
        memory_blocks: blocks remembered per engine; 0: as many as its KV cache holds.
        stride: remember every `stride`-th block only, which is coarser and that much cheaper.
    """

    def __init__(
        self, engines: Sequence[EngineSpec], memory_blocks: int = 0, *, stride: int = 1
    ) -> None:
        sizes = [max((memory_blocks or spec.kv_blocks) // stride, 1) for spec in engines]
        self._known = [BlockMemory(size) for size in sizes]
        self._stride = stride
        self.block_size = engines[0].block_size * stride
        """Tokens that one remembered block stands for."""

    def chain(self, block_hashes: IntArray) -> list[int]:
        """The blocks of a prompt that are remembered; block hashes are chained."""
        blocks: list[int] = block_hashes[self._stride - 1 :: self._stride].tolist()
        return blocks

    def forget(self, down: BoolArray) -> None:
        """Engines that are down come back with a cold cache."""
        for engine in down.nonzero()[0]:
            self._known[engine].clear()

    def matches(self, chain: list[int]) -> IntArray:
        """Known prefix of `chain` on every engine, in blocks."""
        if not chain:
            return np.zeros(len(self._known), np.int64)
        return np.array([known.match(chain) for known in self._known])

    def uncached_tokens(self, prompt_tokens: int, chain: list[int]) -> IntArray:
        """Prompt tokens that every engine would have to compute; at least the last one."""
        cached = self.matches(chain) * self.block_size
        return np.maximum(prompt_tokens - cached, 1)

    def free_blocks(self) -> IntArray:
        """Blocks that every engine's memory takes before it drops others."""
        return np.array([known.capacity - len(known) for known in self._known])

    def insert(self, engine: int, chain: list[int]) -> None:
        """`engine` gets a prompt of these blocks."""
        self._known[engine].insert(chain)
