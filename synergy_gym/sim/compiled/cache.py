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
from synergy_gym.sim.compiled.reach import block_id_of, block_of, entry_of, seat_of, table_of
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
        entry_of(pool, i).content = 0
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
        prefetch(entry_of(pool, _home(pool, block_id_of(world, ids + k).value)))
    while hits < most:
        if hits + AHEAD < most:
            prefetch(entry_of(pool, _home(pool, block_id_of(world, ids + hits + AHEAD).value)))
        place = _find(pool, block_id_of(world, ids + hits).value)
        if place < 0:
            break
        number = entry_of(pool, place).oldest
        prefetch(block_of(pool, number))
        table_of(pool, table + hits).value = number
        hits += 1
    for k in range(hits):
        block = block_of(pool, table_of(pool, table + k).value)
        if block.references == 0:
            prefetch(block_of(pool, block.queue_previous))
            prefetch(block_of(pool, block.queue_next))
            idle += 1
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
    prefetch(entry_of(pool, _home(pool, following.content)))
    if block.content != 0:
        _forget(pool, block)
    block.references = 1
    return number


@inner
def _forget(pool, block):  # type: ignore[no-untyped-def]
    place = _find(pool, block.content)
    before, behind = block.same_previous, block.same_next
    if before == 0 and behind == 0:
        _delete(pool, place)
    elif before == 0:
        entry_of(pool, place).oldest = behind
    else:
        block_of(pool, before).same_next = behind
    if behind != 0:
        block_of(pool, behind).same_previous = before
    elif before != 0:
        entry_of(pool, place).newest = before
    block.content = 0


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
def _home(pool, content):  # type: ignore[no-untyped-def]
    """Where the map would like to have a content."""
    mixed = np.uint64(content) * np.uint64(_MIXER)
    return np.int64(mixed >> np.uint64(24)) & pool.map_mask


@inner
def _find(pool, content):  # type: ignore[no-untyped-def]
    """The entry of a content, or -1."""
    i = _home(pool, content)
    while True:
        found = entry_of(pool, i).content
        if found == content:
            return i
        if found == 0:
            return np.int64(-1)
        i = (i + 1) & pool.map_mask


@inner
def _insert(pool, content, number):  # type: ignore[no-untyped-def]
    """A block becomes the newest of its content."""
    i = _home(pool, content)
    entry = entry_of(pool, i)
    while entry.content != 0 and entry.content != content:
        i = (i + 1) & pool.map_mask
        entry = entry_of(pool, i)
    block = block_of(pool, number)
    block.content, block.same_next, block.same_previous = content, 0, 0
    if entry.content == 0:
        entry.content, entry.oldest = content, number
    else:
        block.same_previous = entry.newest
        block_of(pool, entry.newest).same_next = number
    entry.newest = number


@inner
def _delete(pool, hole):  # type: ignore[no-untyped-def]
    """Empty an entry, moving later members of its cluster up (no tombstones)."""
    i = hole
    while True:
        i = (i + 1) & pool.map_mask
        entry = entry_of(pool, i)
        if entry.content == 0:
            break
        home = _home(pool, entry.content)
        if ((i - home) & pool.map_mask) >= ((i - hole) & pool.map_mask):
            empty = entry_of(pool, hole)
            empty.content, empty.oldest, empty.newest = entry.content, entry.oldest, entry.newest
            hole = i
    entry_of(pool, hole).content = 0
