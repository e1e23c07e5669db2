"""The KV block pool, compiled: function by function `synergy_gym.sim.plain.cache`.

Blocks are numbered from 1 (vLLM's block 0 is the null block). A block that is full gets the
chained id of its content when it is scheduled. Free blocks wait in one queue: allocation takes
the front, unhashed blocks return to the front, hashed ones to the end (LRU), and a hashed block
keeps its content until it is handed out again. Several blocks may hold the same content; a
lookup returns the oldest. A request's blocks are a row of the pool's table.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import inner
from synergy_gym.sim.compiled.reach import block_id_of, block_of, bucket_head_of, seat_of, table_of
from synergy_gym.sim.compiled.records import prefetch

_MIXER = 0x9E3779B97F4A7C15
AHEAD = 8
"""Memory is asked for so many blocks ahead: blocks and map are larger than a core's caches."""


@inner
def reset(pool):  # type: ignore[no-untyped-def]
    """Make every remaining block free, in numerical order, and forget all content."""
    pool.owed = 0
    if not pool.caching:
        pool.free = pool.total
        return
    pool.free, pool.first_free, pool.last_free = 0, 0, 0
    for i in range(pool.map_mask + 1):
        bucket_head_of(pool, i).value = 0
    for number in range(1, pool.total + 1):
        block = block_of(pool, number)
        block.references, block.content = 0, 0
        _queue_append(pool, number)


@inner
def reset_seats(pool, seats):  # type: ignore[no-untyped-def]
    """Make all rows of the block table free."""
    for i in range(seats):
        seat_of(pool, i).value = i
    pool.num_seats = seats


@inner
def full_blocks(pool, tokens):  # type: ignore[no-untyped-def]
    """Blocks that `tokens` tokens fill."""
    if pool.block_shift >= 0:
        return tokens >> pool.block_shift
    return tokens // pool.block_size


@inner
def blocks_for(pool, tokens):  # type: ignore[no-untyped-def]
    """Blocks that hold `tokens` tokens."""
    return full_blocks(pool, tokens + pool.block_size - 1)


@inner
def lose(pool, blocks):  # type: ignore[no-untyped-def]
    """Shrink the pool by `blocks`; they disappear as they become free."""
    lost = min(blocks, pool.total)
    pool.total -= lost
    pool.owed += lost


@inner
def settle(pool):  # type: ignore[no-untyped-def]
    """Give up owed blocks from the front of the free queue, as far as there are any."""
    while pool.owed > 0 and pool.free > 0:
        if pool.caching:
            _take_one(pool)
        else:
            pool.free -= 1
        pool.owed -= 1


@inner
def lookup(world, pool, table, ids, most):  # type: ignore[no-untyped-def]
    """Leading blocks of the `most` ids from `ids` on that are cached: (hits, hits lying free).

    They are noted in a row of the table that nobody has taken yet.
    """
    hits, idle = 0, 0
    for k in range(min(most, AHEAD)):
        prefetch(_bucket(pool, block_id_of(world, ids + k).value))
    while hits < most:
        if hits + AHEAD < most:
            prefetch(_bucket(pool, block_id_of(world, ids + hits + AHEAD).value))
        number = _find(pool, block_id_of(world, ids + hits).value)
        if number == 0:
            break
        block = block_of(pool, number)
        if block.references == 0:
            prefetch(block_of(pool, block.queue_previous))
            prefetch(block_of(pool, block.queue_next))
            idle += 1
        table_of(pool, table + hits).value = number
        hits += 1
    return hits, idle


@inner
def adopt(pool, table, hits):  # type: ignore[no-untyped-def]
    """Take a reference on the cached blocks that `lookup` has noted."""
    for k in range(hits):
        number = table_of(pool, table + k).value
        block = block_of(pool, number)
        if block.references == 0:
            _queue_unlink(pool, number)
        block.references += 1


@inner
def take(pool, table, held, wanted):  # type: ignore[no-untyped-def]
    """Fill a row of the table up to `wanted` blocks from the front of the free queue."""
    for k in range(held, wanted):
        number = _take_one(pool)
        table_of(pool, table + k).value = number


@inner
def fill(world, pool, table, ids, full, wanted):  # type: ignore[no-untyped-def]
    """Note that blocks `full` to `wanted` of a row will be full of their content."""
    for k in range(full, wanted):
        number = table_of(pool, table + k).value
        if block_of(pool, number).content == 0:
            _insert(pool, block_id_of(world, ids + k).value, number)


@inner
def release(pool, table, count):  # type: ignore[no-untyped-def]
    """Drop one reference on each of a request's blocks, last block first.

    Blocks without content return to the front of the free queue, cached ones to its end.
    """
    for k in range(count):
        prefetch(block_of(pool, table_of(pool, table + min(k + AHEAD, count - 1)).value))
        number = table_of(pool, table + k).value
        block = block_of(pool, number)
        block.references -= 1
        if block.references == 0 and block.content == 0:
            _queue_prepend(pool, number)
    for k in range(count - 1, -1, -1):
        number = table_of(pool, table + k).value
        block = block_of(pool, number)
        if block.references == 0 and block.content != 0:
            _queue_append(pool, number)


@inner
def _take_one(pool):  # type: ignore[no-untyped-def]
    """Hand out the block at the front of the free queue; its content is gone."""
    number = pool.first_free
    _queue_unlink(pool, number)
    block = block_of(pool, number)
    following = block_of(pool, pool.first_free)
    prefetch(block_of(pool, following.queue_next))
    prefetch(_bucket(pool, following.content))
    if block.content != 0:
        _forget(pool, number, block)
    block.references = 1
    return number


@inner
def _forget(pool, number, block):  # type: ignore[no-untyped-def]
    """A block is no longer one of its content."""
    oldest, following = _find(pool, block.content), block.same_next
    if oldest == number:
        _replace_in_bucket(pool, number, block, following)
        if following != 0:
            block_of(pool, following).same_previous = block.same_previous
    else:
        block_of(pool, block.same_previous).same_next = following
        after = following if following != 0 else oldest
        block_of(pool, after).same_previous = block.same_previous
    block.content = 0


@inner
def _replace_in_bucket(pool, number, block, following):  # type: ignore[no-untyped-def]
    """The next of the same content (0: none) stands for it from now on."""
    behind = block.bucket_next
    if following != 0:
        block_of(pool, following).bucket_next = behind
        behind = following
    head = _bucket(pool, block.content)
    if head.value == number:
        head.value = behind
        return
    before = block_of(pool, head.value)
    while before.bucket_next != number:
        before = block_of(pool, before.bucket_next)
    before.bucket_next = behind


@inner
def _queue_unlink(pool, number):  # type: ignore[no-untyped-def]
    block = block_of(pool, number)
    before, behind = block.queue_previous, block.queue_next
    if before == 0:
        pool.first_free = behind
    else:
        block_of(pool, before).queue_next = behind
    if behind == 0:
        pool.last_free = before
    else:
        block_of(pool, behind).queue_previous = before
    pool.free -= 1


@inner
def _queue_append(pool, number):  # type: ignore[no-untyped-def]
    block, tail = block_of(pool, number), pool.last_free
    block.queue_previous, block.queue_next = tail, 0
    if tail == 0:
        pool.first_free = number
    else:
        block_of(pool, tail).queue_next = number
    pool.last_free = number
    pool.free += 1


@inner
def _queue_prepend(pool, number):  # type: ignore[no-untyped-def]
    block, head = block_of(pool, number), pool.first_free
    block.queue_previous, block.queue_next = 0, head
    if head == 0:
        pool.last_free = number
    else:
        block_of(pool, head).queue_previous = number
    pool.first_free = number
    pool.free += 1


@inner
def _bucket(pool, content):  # type: ignore[no-untyped-def]
    """Where the map begins to look for a content."""
    mixed = np.uint64(content) * np.uint64(_MIXER)
    return bucket_head_of(pool, np.int64(mixed >> np.uint64(24)) & pool.map_mask)


@inner
def _find(pool, content):  # type: ignore[no-untyped-def]
    """The oldest block of a content, or 0."""
    number = _bucket(pool, content).value
    while number != 0:
        block = block_of(pool, number)
        if block.content == content:
            break
        number = block.bucket_next
    return number


@inner
def _insert(pool, content, number):  # type: ignore[no-untyped-def]
    """A block becomes the newest of its content."""
    oldest, block = _find(pool, content), block_of(pool, number)
    block.content, block.same_next = content, 0
    if oldest == 0:
        head = _bucket(pool, content)
        block.bucket_next, block.same_previous = head.value, number
        head.value = number
        return
    first = block_of(pool, oldest)
    block.same_previous = first.same_previous
    block_of(pool, first.same_previous).same_next = number
    first.same_previous = number
