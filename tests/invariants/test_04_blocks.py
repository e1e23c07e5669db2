"""Invariant 4: free + used blocks = total; reference counts >= 0; no block is freed twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given

from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import EngineStateField, IntArray
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


def blocks_of(sim: Simulator, engine: int) -> Any:
    """The engine's `BLOCK` records."""
    pool = sim.memory.engines[engine]["pool"]
    place = sim.memory.part(engine, "pool") + int(pool["blocks"])
    return sim.memory.records(L.BLOCK, place, int(pool["size"]) + 1)


def block_tables(sim: Simulator, engine: int) -> list[IntArray]:
    """The blocks that each running request holds, first block first."""
    memory, record = sim.memory, sim.memory.engines[engine]
    pool, place = record["pool"], sim.memory.part(engine, "pool")
    width, size = int(pool["table_width"]), int(pool["block_size"])
    rows = memory.records(L.NUMBER, place + pool["table"], record["max_num_seqs"] * width)
    in_flight = record["in_flight"] and record["plan"]["sequences"]
    tables = []
    for r in sim._queue(engine, running=True)[0].tolist():
        request = memory.requests[r]
        tokens = int(request["computed_tokens"])
        if request["state"] == L.DECODE:
            tokens += int(record["busy_steps"]) + bool(in_flight and not request["skipped"])
        at = int(memory.details[r]["seat"]) * width
        tables.append(rows["value"][at : at + -(-tokens // size)].astype(np.int64))
    return tables


def free_queue(sim: Simulator, engine: int) -> list[int]:
    """The free blocks in the order in which they would be handed out."""
    pool, records = sim.memory.engines[engine]["pool"], blocks_of(sim, engine)
    blocks: list[int] = []
    block = int(pool["first_free"])
    while block and len(blocks) <= pool["free"]:
        blocks.append(block)
        block = int(records[block]["queue_next"])
    return blocks


def check_pool(
    tables: Sequence[IntArray], queue: list[int], references: IntArray, lost: int
) -> None:
    """Every block is either free, once, or held as often as its reference count says."""
    held = np.zeros(len(references), np.int64)
    for table in tables:
        assert len(set(table.tolist())) == len(table), "a request holds a block twice"
        held[table] += 1
    assert len(set(queue)) == len(queue), "a block is free twice"
    assert np.all(held[queue] == 0), "a block is free and held"
    assert np.all(references[queue] == 0), "a free block has references"
    gone = np.ones(len(references), np.bool_)
    gone[queue], gone[held > 0], gone[0] = False, False, False
    np.testing.assert_array_equal(references[held > 0], held[held > 0])
    assert int(gone.sum()) == lost, "blocks leaked"
    assert np.all(references >= 0), "a negative reference count"


@given(episode=episodes())
def test_every_block_is_free_or_held(episode: Episode) -> None:
    """Block by block with prefix caching, where a block can have several owners."""
    assume(episode.engines[0].prefix_caching)

    def visit(sim: Simulator, point: int) -> None:
        for engine, spec in enumerate(episode.engines):
            pool = sim.memory.engines[engine]["pool"]
            lost = spec.kv_blocks - int(pool["total"] + pool["owed"])
            references = blocks_of(sim, engine)["references"]
            check_pool(block_tables(sim, engine), free_queue(sim, engine), references, lost)

    play(episode.build(Simulator), episode.seed, visit)
