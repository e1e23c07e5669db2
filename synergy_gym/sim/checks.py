"""Invariants of a compiled simulation, read straight from its arena (docs/invariants.md)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from synergy_gym.sim import layout as L
from synergy_gym.types import IntArray, Outcome


def check_arena(a: IntArray) -> None:
    """Raise `AssertionError` naming the first violated invariant."""
    rows = a[a[L.H_REQ] : a[L.H_REQ] + a[L.H_N] * L.REQUEST_SIZE].reshape(-1, L.REQUEST_SIZE)
    _check_lives(rows)
    counted = 0
    for index in range(int(a[L.H_E])):
        e = int(a[L.H_ENG]) + index * L.E_SIZE
        running = _chain(a, int(a[e + L.E_RUN_HEAD]), int(a[e + L.E_RUN_TAIL]))
        waiting = _chain(a, int(a[e + L.E_WAIT_HEAD]), int(a[e + L.E_WAIT_TAIL]))
        _check_queues(a, e, rows, running, waiting)
        _check_limits(a, e)
        _check_blocks(a, e, rows, running)
        counted += len(running) + len(waiting)
    inside = np.isin(rows[:, L.F_STATE] & L.STATE_MASK, (L.WAITING, L.PREFILL, L.DECODE))
    assert int(inside.sum()) == counted, "invariant 1: requests are not conserved"


def _chain(a: IntArray, head: int, tail: int) -> list[int]:
    result: list[int] = []
    before, r = -1, head
    while r >= 0:
        q = int(a[L.H_REQ]) + r * L.REQUEST_SIZE
        assert int(a[q + L.F_PREV]) == before, "invariant 1: a queue's links disagree"
        result.append(r)
        assert len(result) <= int(a[L.H_N]), "invariant 1: a queue has a cycle"
        before, r = r, int(a[q + L.F_NEXT])
    assert before == tail, "invariant 1: a queue's tail is wrong"
    return result


def _check_lives(rows: IntArray) -> None:
    left = (rows[:, L.F_STATE] & L.STATE_MASK) == L.LEFT
    finished = left & (rows[:, L.F_STATE] >> L.OUTCOME_SHIFT == int(Outcome.FINISHED))
    done = rows[finished]
    stages = (L.F_ARRIVAL, L.F_SCHEDULED, L.F_FIRST, L.F_LAST)
    for earlier, later in pairwise(stages):
        ordered = bool(np.all(done[:, earlier] <= done[:, later]))
        assert ordered, "invariant 2: arrival <= scheduled <= first token <= finish is broken"
    emitted = bool(np.all(done[:, L.F_GEN] == done[:, L.F_OUTPUT]))
    assert emitted, "invariant 2: emitted tokens != output length"


def _check_queues(
    a: IntArray, e: int, rows: IntArray, running: list[int], waiting: list[int]
) -> None:
    assert len(running) == a[e + L.E_RUNNING], "invariant 1: running count is wrong"
    assert len(waiting) == a[e + L.E_WAITING], "invariant 1: waiting count is wrong"
    states = rows[running, L.F_STATE] & L.STATE_MASK
    decodes, prefills = int((states == L.DECODE).sum()), int((states == L.PREFILL).sum())
    assert decodes + prefills == len(running), "invariant 2: a running request is not"
    assert decodes == a[e + L.E_DECODES], "invariant 1: decode count is wrong"
    assert prefills == a[e + L.E_PREFILLS], "invariant 1: prefill count is wrong"
    tokens = int(rows[waiting, L.F_PROMPT].sum() + rows[waiting, L.F_GEN].sum())
    assert tokens == a[e + L.E_WAIT_TOKENS], "invariant 1: waiting tokens are wrong"
    empty = not running and not waiting
    assert a[e + L.E_DOWN] == 0 or empty, "invariant 1: a down engine holds requests"


def _check_limits(a: IntArray, e: int) -> None:
    assert a[e + L.E_RUNNING] <= a[e + L.E_MAX_SEQS], "invariant 5: more running than max_num_seqs"
    assert a[e + L.P_TOKENS] <= a[e + L.P_BUDGET], "invariant 5: the token budget is exceeded"


def _held_blocks(a: IntArray, e: int, rows: IntArray, running: list[int]) -> IntArray:
    decode = (rows[running, L.F_STATE] & L.STATE_MASK) == L.DECODE
    steps = np.where(decode, a[e + L.E_K], 0)
    served = (rows[running, L.F_STATE] & L.SKIPPED) == 0
    # Blocks of the iteration in flight are taken when it is planned.
    ahead = decode & served & bool(a[e + L.E_FLIGHT]) & bool(a[e + L.P_SEQUENCES] > 0)
    tokens = rows[running, L.F_OFF] + steps + ahead
    size = int(a[e + L.E_BLOCK_SIZE])
    result: IntArray = (tokens + size - 1) // size
    return result


def _check_blocks(a: IntArray, e: int, rows: IntArray, running: list[int]) -> None:
    held = _held_blocks(a, e, rows, running)
    total = int(a[e + L.E_TOTAL] + a[e + L.E_DEBT])
    free = int(a[e + L.E_FREE])
    assert free >= 0, "invariant 4: negative free blocks"
    if not a[e + L.E_CACHING]:
        assert free + int(held.sum()) == total, "invariant 4: free + used blocks != total"
        return
    at = int(a[e + L.B_NODES])
    table, width = int(a[e + L.B_TABLE]), int(a[e + L.B_TABLE_WIDTH])
    slots = rows[running, L.F_PLACE] >> L.SLOT_SHIFT
    starts = table + slots * width
    blocks = [a[start : start + n] for start, n in zip(starts, held, strict=True)]
    used = np.concatenate([*blocks, np.empty(0, np.int64)])
    counts = np.bincount(used, minlength=1)
    nodes = np.arange(len(counts)) * L.NODE_SIZE + at
    assert bool(np.all(a[nodes + L.N_REF][counts > 0] == counts[counts > 0])), (
        "invariant 4: reference counts disagree with the block tables"
    )
    assert free + int((counts > 0).sum()) == total, "invariant 4: free + used blocks != total"
    references = a[at : at + (int(a[e + L.B_MAX]) + 1) * L.NODE_SIZE : L.NODE_SIZE]
    queued = _queue(a, e)
    assert len(queued) == free == len(set(queued)), "invariant 4: a block is freed twice"
    assert not np.any(references[queued]), "invariant 4: a free block is referenced"
    assert not set(queued) & set(used.tolist()), "invariant 4: a block is free and in use"
    assert bool(np.all(references >= 0)), "invariant 4: a negative reference count"


def _queue(a: IntArray, e: int) -> list[int]:
    blocks: list[int] = []
    block = int(a[e + L.B_HEAD])
    while block and len(blocks) <= int(a[e + L.E_FREE]):
        blocks.append(block)
        block = int(a[int(a[e + L.B_NODES]) + block * L.NODE_SIZE + L.N_QNEXT])
    return blocks
