"""Invariant 4: free + used blocks = total; reference counts >= 0; no block is freed twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given

from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.compiled.checks_pool import Spans
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import EngineStateField
from tests.strategies import SIMULATORS, Episode, episodes, play

FREE, TOTAL = EngineStateField.KV_FREE_BLOCKS, EngineStateField.KV_TOTAL_BLOCKS


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_blocks_are_conserved(simulator: type, episode: Episode) -> None:
    """`check()` after every step, and from outside: an empty engine has all its blocks."""

    def visit(sim: Any, point: int) -> None:
        sim.check()
        for engine in range(len(episode.engines)):
            view = sim.engine_view(engine)
            free, total = int(view.state[FREE]), int(view.state[TOTAL])
            assert 0 <= total <= episode.engines[engine].kv_blocks
            assert free >= 0
            if view.num_running == 0:
                # Blocks that an event took are given up when the next iteration is planned.
                assert total <= free <= episode.engines[engine].kv_blocks

    play(episode.build(simulator), episode.seed, visit)


def rows(sim: Simulator, engine: int, spans: Spans) -> tuple[list[list[int]], int]:
    """The spans that each running request holds, and how many blocks without content they hold."""
    memory, record = sim.memory, sim.memory.engines[engine]
    size = int(record["pool"]["block_size"])
    in_flight = record["in_flight"] and record["plan"]["sequences"]
    tables, plain = [], 0
    for r in sim._queue(engine, running=True)[0].tolist():
        request = memory.requests[r]
        tokens = int(request["computed_tokens"])
        if request["state"] == L.DECODE:
            tokens += int(record["busy_steps"]) + bool(in_flight and not request["skipped"])
        tables.append(spans.row(r, tokens // size))
        plain += tokens % size > 0
    return tables, plain


def blocks(spans: Spans, numbers: Iterable[int]) -> int:
    """How many blocks some spans have."""
    return sum(spans.length(number) for number in numbers)


def check_pool(spans: Spans, tables: Sequence[list[int]], queue: list[int]) -> None:
    """Every span is either free, once, or held as often as its reference count says."""
    references = spans.records["references"]
    held = np.zeros(len(references), np.int64)
    for table in tables:
        assert len(set(table)) == len(table), "a request holds a block twice"
        held[table] += 1
    assert len(set(queue)) == len(queue), "a block is free twice"
    assert np.all(held[queue] == 0), "a block is free and held"
    assert np.all(references[queue] == 0), "a free block has references"
    np.testing.assert_array_equal(references[held > 0], held[held > 0])
    assert np.all(references >= 0), "a negative reference count"


@given(episode=episodes())
def test_every_block_is_free_or_held(episode: Episode) -> None:
    """With prefix caching, where a block can have several owners."""
    assume(episode.engines[0].prefix_caching)

    def visit(sim: Simulator, point: int) -> None:
        for engine, spec in enumerate(episode.engines):
            pool = sim.memory.engines[engine]["pool"]
            lost = spec.kv_blocks - int(pool["total"] + pool["owed"])
            spans = Spans(sim.memory, engine)
            tables, plain = rows(sim, engine, spans)
            queue = spans.queue()
            check_pool(spans, tables, queue)
            known = (
                plain + int(pool["plain"]) + blocks(spans, {n for table in tables for n in table})
            )
            assert known + blocks(spans, queue) + lost == spec.kv_blocks, "blocks leaked"

    play(episode.build(Simulator), episode.seed, visit)
