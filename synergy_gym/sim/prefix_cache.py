"""The KV block pool with vLLM's automatic prefix caching, compiled.

Blocks are numbered from 1 (vLLM's block 0 is the null block). A block that is full gets the
chained id of its content when it is scheduled. Free blocks wait in one queue: allocation takes
the front, unhashed blocks return to the front, hashed ones to the end (LRU), and a hashed block
keeps its content until it is handed out again. Several blocks may hold the same content; a
lookup returns the oldest.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import hot, kernel
from synergy_gym.sim.layout import (
    B_HEAD,
    B_MAP,
    B_MAP_MASK,
    B_NODES,
    B_TABLE,
    B_TABLE_WIDTH,
    B_TAIL,
    E_BLOCK_SIZE,
    E_FREE,
    E_SHIFT,
    F_PLACE,
    MAP_SIZE,
    N_HASH,
    N_HNEXT,
    N_HPREV,
    N_QNEXT,
    N_QPREV,
    N_REF,
    NODE_SIZE,
    SLOT_SHIFT,
)


@kernel
def _home(key, mask):  # type: ignore[no-untyped-def]
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)) & mask


@kernel
def map_find(a, e, key):  # type: ignore[no-untyped-def]
    """Position of `key`'s slot in the arena, or -1."""
    base = a[e + B_MAP]
    mask = a[e + B_MAP_MASK]
    i = _home(key, mask)
    while True:
        p = base + i * MAP_SIZE
        if a[p] == key:
            return p
        if a[p] == 0:
            return np.int64(-1)
        i = (i + 1) & mask


@kernel
def _map_insert(a, e, key, block):  # type: ignore[no-untyped-def]
    base = a[e + B_MAP]
    mask = a[e + B_MAP_MASK]
    i = _home(key, mask)
    p = base + i * MAP_SIZE
    while a[p] != 0 and a[p] != key:
        i = (i + 1) & mask
        p = base + i * MAP_SIZE
    node = a[e + B_NODES] + block * NODE_SIZE
    a[node + N_HNEXT] = 0
    if a[p] == 0:
        a[p] = key
        a[p + 1] = block
        a[node + N_HPREV] = 0
    else:
        last = a[p + 2]
        a[node + N_HPREV] = last
        a[a[e + B_NODES] + last * NODE_SIZE + N_HNEXT] = block
    a[p + 2] = block


@kernel
def _map_delete(a, e, p):  # type: ignore[no-untyped-def]
    """Empty slot `p`, moving later members of its cluster up (no tombstones)."""
    base = a[e + B_MAP]
    mask = a[e + B_MAP_MASK]
    hole = (p - base) // MAP_SIZE
    i = hole
    while True:
        i = (i + 1) & mask
        q = base + i * MAP_SIZE
        if a[q] == 0:
            break
        home = _home(a[q], mask)
        if ((i - home) & mask) >= ((i - hole) & mask):
            h = base + hole * MAP_SIZE
            a[h] = a[q]
            a[h + 1] = a[q + 1]
            a[h + 2] = a[q + 2]
            hole = i
    a[base + hole * MAP_SIZE] = 0


@kernel
def _unhash(a, e, block):  # type: ignore[no-untyped-def]
    node = a[e + B_NODES] + block * NODE_SIZE
    p = map_find(a, e, a[node + N_HASH])
    before = a[node + N_HPREV]
    after = a[node + N_HNEXT]
    if before == 0 and after == 0:
        _map_delete(a, e, p)
    else:
        if before == 0:
            a[p + 1] = after
        else:
            a[a[e + B_NODES] + before * NODE_SIZE + N_HNEXT] = after
        if after == 0:
            a[p + 2] = before
        else:
            a[a[e + B_NODES] + after * NODE_SIZE + N_HPREV] = before
    a[node + N_HASH] = 0


@kernel
def _queue_unlink(a, e, block):  # type: ignore[no-untyped-def]
    nodes = a[e + B_NODES]
    before = a[nodes + block * NODE_SIZE + N_QPREV]
    after = a[nodes + block * NODE_SIZE + N_QNEXT]
    if before == 0:
        a[e + B_HEAD] = after
    else:
        a[nodes + before * NODE_SIZE + N_QNEXT] = after
    if after == 0:
        a[e + B_TAIL] = before
    else:
        a[nodes + after * NODE_SIZE + N_QPREV] = before
    a[e + E_FREE] -= 1


@kernel
def _queue_append(a, e, block):  # type: ignore[no-untyped-def]
    nodes = a[e + B_NODES]
    tail = a[e + B_TAIL]
    a[nodes + block * NODE_SIZE + N_QPREV] = tail
    a[nodes + block * NODE_SIZE + N_QNEXT] = 0
    if tail == 0:
        a[e + B_HEAD] = block
    else:
        a[nodes + tail * NODE_SIZE + N_QNEXT] = block
    a[e + B_TAIL] = block
    a[e + E_FREE] += 1


@kernel
def _queue_prepend(a, e, block):  # type: ignore[no-untyped-def]
    nodes = a[e + B_NODES]
    head = a[e + B_HEAD]
    a[nodes + block * NODE_SIZE + N_QPREV] = 0
    a[nodes + block * NODE_SIZE + N_QNEXT] = head
    if head == 0:
        a[e + B_TAIL] = block
    else:
        a[nodes + head * NODE_SIZE + N_QPREV] = block
    a[e + B_HEAD] = block
    a[e + E_FREE] += 1


@kernel
def take_block(a, e):  # type: ignore[no-untyped-def]
    """Hand out the block at the front of the free queue, forgetting its content."""
    block = a[e + B_HEAD]
    _queue_unlink(a, e, block)
    node = a[e + B_NODES] + block * NODE_SIZE
    if a[node + N_HASH] != 0:
        _unhash(a, e, block)
    a[node + N_REF] = 1
    return block


@kernel
def count_hits(a, e, ids, most):  # type: ignore[no-untyped-def]
    """Leading blocks of the ids at `a[ids:]` that are cached: (hits, hits lying free)."""
    hits = 0
    idle = 0
    while hits < most:
        p = map_find(a, e, a[ids + hits])
        if p < 0:
            break
        if a[a[e + B_NODES] + a[p + 1] * NODE_SIZE + N_REF] == 0:
            idle += 1
        hits += 1
    return hits, idle


@kernel
def table_of(a, e, q):  # type: ignore[no-untyped-def]
    """Position of the block table of the request whose row is at `q`."""
    return a[e + B_TABLE] + (a[q + F_PLACE] >> SLOT_SHIFT) * a[e + B_TABLE_WIDTH]


@kernel
def adopt_hits(a, e, table, ids, hits):  # type: ignore[no-untyped-def]
    """Take a reference on the first `hits` cached blocks and enter them into the table."""
    for k in range(hits):
        block = a[map_find(a, e, a[ids + k]) + 1]
        node = a[e + B_NODES] + block * NODE_SIZE
        if a[node + N_REF] == 0:
            _queue_unlink(a, e, block)
        a[node + N_REF] += 1
        a[table + k] = block


@hot
def full_blocks(a, e, tokens):  # type: ignore[no-untyped-def]
    """Blocks that `tokens` tokens fill."""
    if a[e + E_SHIFT] >= 0:
        return tokens >> a[e + E_SHIFT]
    return tokens // a[e + E_BLOCK_SIZE]


@hot
def blocks_for(a, e, tokens):  # type: ignore[no-untyped-def]
    """Blocks that hold `tokens` tokens."""
    return full_blocks(a, e, tokens + a[e + E_BLOCK_SIZE] - 1)


@kernel
def grow(a, e, table, ids, computed, after):  # type: ignore[no-untyped-def]
    """Add blocks for tokens `computed` to `after` and hash the ones that become full."""
    for k in range(blocks_for(a, e, computed), blocks_for(a, e, after)):
        a[table + k] = take_block(a, e)
    for k in range(full_blocks(a, e, computed), full_blocks(a, e, after)):
        block = a[table + k]
        node = a[e + B_NODES] + block * NODE_SIZE
        if a[node + N_HASH] == 0:
            a[node + N_HASH] = a[ids + k]
            _map_insert(a, e, a[ids + k], block)


@kernel
def release(a, e, table, count):  # type: ignore[no-untyped-def]
    """Drop one reference on each of `count` blocks of a table, last block first."""
    nodes = a[e + B_NODES]
    for k in range(count):
        node = nodes + a[table + k] * NODE_SIZE
        a[node + N_REF] -= 1
        if a[node + N_REF] == 0 and a[node + N_HASH] == 0:
            _queue_prepend(a, e, a[table + k])
    for k in range(count - 1, -1, -1):
        node = nodes + a[table + k] * NODE_SIZE
        if a[node + N_REF] == 0 and a[node + N_HASH] != 0:
            _queue_append(a, e, a[table + k])


@kernel
def reset_pool(a, e, blocks):  # type: ignore[no-untyped-def]
    """A cold cache of `blocks` free blocks in numerical order."""
    a[e + B_HEAD] = 0
    a[e + B_TAIL] = 0
    a[e + E_FREE] = 0
    for i in range(a[e + B_MAP_MASK] + 1):
        a[a[e + B_MAP] + i * MAP_SIZE] = 0
    for block in range(1, blocks + 1):
        node = a[e + B_NODES] + block * NODE_SIZE
        a[node + N_REF] = 0
        a[node + N_HASH] = 0
        _queue_append(a, e, block)
