"""Invariants of a compiled simulation, read straight from its memory (docs/invariants.md)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.compiled.checks_pool import check_blocks
from synergy_gym.types import Outcome

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
        check_blocks(memory, index, running)
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


def _check_phases(memory: Memory, index: int, running: list[int]) -> None:
    """Every decode is counted in its phase, also as one who looks with prefix caching."""
    engine = memory.engines[index]
    size = int(engine["pool"]["block_size"])
    phases = memory.records(L.PHASE, memory.part(index) + engine["phases"], size)
    requests = memory.requests
    decodes = [r for r in running if requests[r]["state"] == L.DECODE]
    place = requests["computed_tokens"][decodes] % size
    counts = np.bincount(place, minlength=size)
    assert np.array_equal(counts, phases["decodes"]), "invariant 4: decodes are in a wrong phase"
    if engine["pool"]["caching"]:
        looking = np.bincount(place[memory.details["looks"][decodes]], minlength=size)
        assert np.array_equal(looking, phases["looking"]), "invariant 4: looking decodes"
