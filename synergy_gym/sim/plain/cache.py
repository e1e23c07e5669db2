"""The KV block pool in plain Python: the definition of allocation and prefix reuse.

Restates vLLM 0.32.0's `v1/core/block_pool.py` for full attention. Blocks are numbered from 1
(block 0 is vLLM's null block and not part of `EngineSpec.kv_blocks`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Free queue, reference counts and content ids of one engine's KV blocks.

    Args:
        blocks: usable blocks.
        block_size: tokens per block.
        caching: keep the content of full blocks for reuse (automatic prefix caching).
    """

    def __init__(self, blocks: int, block_size: int, caching: bool) -> None:
        self.block_size = block_size
        self.caching = caching
        self.total = blocks
        """Blocks that the engine may count on; shrinks at once when blocks are lost."""
        self.owed = 0
        """Lost blocks that are still in the pool (in use, or free and not yet taken)."""
        self.evictions = 0
        self.reset()

    def reset(self) -> None:
        """Make every remaining block free and forget all content."""
        self.owed = 0
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, self.total + 1))
        self._references: dict[int, int] = {}
        self._content: dict[int, int] = {}
        self._holders: dict[int, OrderedDict[int, None]] = {}

    @property
    def free(self) -> int:
        """Blocks in the free queue."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that requests hold."""
        return len(self._references)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def lose(self, blocks: int) -> None:
        """Shrink the pool by `blocks`; they disappear as they become free."""
        lost = min(blocks, self.total)
        self.total -= lost
        self.owed += lost

    def settle(self) -> None:
        """Give up owed blocks from the front of the free queue, as far as there are any."""
        while self.owed and self._free:
            self._forget(self._free.popitem(last=False)[0])
            self.owed -= 1

    def lookup(self, ids: Sequence[int]) -> list[int]:
        """The blocks that hold the longest cached prefix of `ids`, oldest copy first."""
        hits: list[int] = []
        if self.caching:
            for content in ids:
                if content not in self._holders:
                    break
                hits.append(next(iter(self._holders[content])))
        return hits

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` lie in the free queue, so that using them costs a free block."""
        return sum(block in self._free for block in blocks)

    def adopt(self, blocks: Iterable[int]) -> None:
        """Add one reference to each of these cached blocks."""
        for block in blocks:
            self._free.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1

    def take(self, count: int) -> list[int]:
        """Hand out `count` blocks from the front of the free queue; their content is gone."""
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._forget(block)
            self._references[block] = 1
        return taken

    def fill(self, block: int, content: int) -> None:
        """Note that a block will be full of `content` (done when scheduled, not when computed)."""
        if self.caching:
            self._content[block] = content
            self._holders.setdefault(content, OrderedDict())[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference on each of a request's blocks, last block first.

        Blocks without content return to the front of the free queue, cached ones to its end.
        """
        idle = [block for block in reversed(blocks) if self._drop(block)]
        for block in reversed([block for block in idle if block not in self._content]):
            self._free[block] = None
            self._free.move_to_end(block, last=False)
        self._free.update((block, None) for block in idle if block in self._content)

    def check(self) -> None:
        """Raise `AssertionError` when block accounting is broken (invariant 4)."""
        assert self.free + self.used == self.total + self.owed, "free + used blocks != total"
        assert min(self._references.values(), default=1) >= 1, "a reference count below 1"
        assert not self._free.keys() & self._references.keys(), "a block is both free and in use"

    def _drop(self, block: int) -> bool:
        self._references[block] -= 1
        if self._references[block]:
            return False
        del self._references[block]
        return True

    def _forget(self, block: int) -> None:
        content = self._content.pop(block, None)
        if content is not None:
            self.evictions += 1
            del self._holders[content][block]
            if not self._holders[content]:
                del self._holders[content]
