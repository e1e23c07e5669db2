"""Invariants of a compiled simulation, read straight from its memory (docs/invariants.md)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from synergy_gym.sim.compiled import layout as L
from synergy_gym.types import IntArray, Outcome

# `Memory` itself is built on this package.
Memory = Any


def check_memory(memory: Memory) -> None:
    """Raise `AssertionError` naming the first violated invariant."""
    requests = memory.requests
    _check_lives(memory)
    counted = 0
    for index, engine in enumerate(memory.engines):
        running = _chain(requests, int(engine["first_running"]), int(engine["last_running"]))
        waiting = _chain(requests, int(engine["first_waiting"]), int(engine["last_waiting"]))
        _check_queues(memory, engine, running, waiting)
        _check_limits(engine)
        _check_blocks(memory, index, running)
        _check_phases(memory, index, running)
        counted += len(running) + len(waiting)
    inside = np.isin(requests["state"], (L.WAITING, L.PREFILL, L.DECODE))
    assert int(inside.sum()) == counted, "invariant 1: requests are not conserved"


def _chain(requests: Any, head: int, tail: int) -> list[int]:
    result: list[int] = []
    before, r = -1, head
    while r >= 0:
        assert int(requests[r]["previous"]) == before, "invariant 1: a queue's links disagree"
        result.append(r)
        assert len(result) <= len(requests), "invariant 1: a queue has a cycle"
        before, r = r, int(requests[r]["next"])
    assert before == tail, "invariant 1: a queue's tail is wrong"
    return result


def _check_lives(memory: Memory) -> None:
    requests = memory.requests
    finished = (requests["state"] == L.LEFT) & (requests["outcome"] == int(Outcome.FINISHED))
    done = requests[finished]
    stages = (
        done["arrival_ns"],
        memory.details["scheduled_ns"][finished],
        done["first_token_ns"],
        done["last_token_ns"],
    )
    for earlier, later in pairwise(stages):
        ordered = bool(np.all(earlier <= later))
        assert ordered, "invariant 2: arrival <= scheduled <= first token <= finish is broken"
    emitted = bool(np.all(done["generated_tokens"] == done["output_tokens"]))
    assert emitted, "invariant 2: emitted tokens != output length"


def _check_queues(memory: Memory, engine: Any, running: list[int], waiting: list[int]) -> None:
    assert len(running) == engine["running"], "invariant 1: running count is wrong"
    assert len(waiting) == engine["waiting"], "invariant 1: waiting count is wrong"
    requests = memory.requests
    states = requests["state"][running]
    decodes, prefills = int((states == L.DECODE).sum()), int((states == L.PREFILL).sum())
    assert decodes + prefills == len(running), "invariant 2: a running request is not"
    assert decodes == engine["decodes"], "invariant 1: decode count is wrong"
    assert prefills == engine["prefills"], "invariant 1: prefill count is wrong"
    known = requests["prompt_tokens"] + requests["generated_tokens"]
    tokens = int(known[waiting].sum())
    assert tokens == engine["waiting_tokens"], "invariant 1: waiting tokens are wrong"
    ranks = memory.details["rank"][running]
    assert bool(np.all(np.diff(ranks) > 0)), "invariant 1: ranks do not follow the running list"
    empty = not running and not waiting
    assert not engine["down"] or empty, "invariant 1: a down engine holds requests"


def _check_limits(engine: Any) -> None:
    plan = engine["plan"]
    assert engine["running"] <= engine["max_num_seqs"], (
        "invariant 5: more running than max_num_seqs"
    )
    assert plan["tokens"] <= plan["token_budget"], "invariant 5: the token budget is exceeded"


def _held_blocks(requests: Any, engine: Any, running: list[int]) -> IntArray:
    rows = requests[running]
    decode = rows["state"] == L.DECODE
    steps = np.where(decode, engine["busy_steps"], 0)
    # Blocks of the iteration in flight are taken when it is planned.
    flies = bool(engine["in_flight"]) and bool(engine["plan"]["sequences"] > 0)
    ahead = decode & ~rows["skipped"] & flies
    tokens = rows["computed_tokens"] + steps + ahead
    size = int(engine["pool"]["block_size"])
    result: IntArray = (tokens + size - 1) // size
    return result


def _check_blocks(memory: Memory, index: int, running: list[int]) -> None:
    engine = memory.engines[index]
    pool = engine["pool"]
    held = _held_blocks(memory.requests, engine, running)
    total, free = int(pool["total"] + pool["owed"]), int(pool["free"])
    assert free >= 0, "invariant 4: negative free blocks"
    if not pool["caching"]:
        assert free + int(held.sum()) == total, "invariant 4: free + used blocks != total"
        return
    at, width = memory.part(index, "pool"), int(pool["table_width"])
    table = memory.records(L.NUMBER, at + pool["table"], engine["max_num_seqs"] * width)["value"]
    starts = memory.details["seat"][running].astype(np.int64) * width
    blocks = [table[start : start + n] for start, n in zip(starts, held, strict=True)]
    used = np.concatenate([*blocks, np.empty(0, np.int64)]).astype(np.int64)
    counts = np.bincount(used, minlength=1)
    nodes = memory.records(L.BLOCK, at + pool["blocks"], int(pool["size"]) + 1)
    references = nodes["references"]
    assert bool(np.all(references[: len(counts)][counts > 0] == counts[counts > 0])), (
        "invariant 4: reference counts disagree with the block tables"
    )
    assert free + int((counts > 0).sum()) == total, "invariant 4: free + used blocks != total"
    queued = _queue(pool, nodes)
    assert len(queued) == free == len(set(queued)), "invariant 4: a block is freed twice"
    assert not np.any(references[queued]), "invariant 4: a free block is referenced"
    assert not set(queued) & set(used.tolist()), "invariant 4: a block is free and in use"
    assert bool(np.all(references >= 0)), "invariant 4: a negative reference count"


def _queue(pool: Any, nodes: Any) -> list[int]:
    blocks: list[int] = []
    number = int(pool["first_free"])
    while number and len(blocks) <= int(pool["free"]):
        blocks.append(number)
        number = int(nodes[number]["queue_next"])
    return blocks


def _check_phases(memory: Memory, index: int, running: list[int]) -> None:
    """Every decode is counted, and with prefix caching listed in order, in its phase."""
    engine = memory.engines[index]
    size = int(engine["pool"]["block_size"])
    phases = memory.records(L.PHASE, memory.part(index) + engine["phases"], size)
    requests = memory.requests
    decodes = [r for r in running if requests[r]["state"] == L.DECODE]
    found: list[list[int]] = [[] for _ in range(size)]
    for r in decodes:
        found[int(requests[r]["computed_tokens"]) % size].append(r)
    counts = [len(members) for members in found]
    assert counts == phases["decodes"].tolist(), "invariant 4: decodes are in a wrong phase"
    if engine["pool"]["caching"]:
        for phase, members in zip(phases, found, strict=True):
            listed: list[int] = []
            r = int(phase["first"])
            while r >= 0 and len(listed) <= len(members):
                listed.append(r)
                r = int(memory.details[r]["edge_next"])
            assert listed == members, "invariant 4: a phase lists its decodes in a wrong order"
