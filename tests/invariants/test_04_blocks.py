"""Invariant 4: free + used blocks = total; reference counts >= 0; no block is freed twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given

from synergy_gym.sim import layout as L
from synergy_gym.sim.cluster import Simulator
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


def block_tables(sim: Simulator, engine: int) -> list[IntArray]:
    """The blocks that each running request holds, first block first."""
    a = sim._a
    e = sim._base(engine)
    base, width = int(a[e + L.B_TABLE]), int(a[e + L.B_TABLE_WIDTH])
    size = int(a[e + L.E_BLOCK_SIZE])
    in_flight = a[e + L.E_FLIGHT] and a[e + L.P_SEQUENCES]
    tables = []
    for r in sim._queue(e, running=True)[0].tolist():
        q = int(a[L.H_REQ]) + r * L.REQUEST_SIZE
        tokens, state = int(a[q + L.F_OFF]), int(a[q + L.F_STATE])
        if state & L.STATE_MASK == L.DECODE:
            tokens += int(a[e + L.E_K]) + bool(in_flight and not state & L.SKIPPED)
        at = base + (int(a[q + L.F_PLACE]) >> L.SLOT_SHIFT) * width
        tables.append(a[at : at + -(-tokens // size)])
    return tables


def free_queue(sim: Simulator, engine: int) -> list[int]:
    """The free blocks in the order in which they would be handed out."""
    a = sim._a
    e = sim._base(engine)
    blocks: list[int] = []
    block = int(a[e + L.B_HEAD])
    while block and len(blocks) <= a[e + L.E_FREE]:
        blocks.append(block)
        block = int(a[a[e + L.B_NODES] + block * L.NODE_SIZE + L.N_QNEXT])
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
            e = sim._base(engine)
            at = int(sim._a[e + L.B_NODES])
            nodes = sim._a[at : at + (spec.kv_blocks + 1) * L.NODE_SIZE].reshape(-1, L.NODE_SIZE)
            lost = spec.kv_blocks - int(sim._a[e + L.E_TOTAL] + sim._a[e + L.E_DEBT])
            tables = block_tables(sim, engine)
            check_pool(tables, free_queue(sim, engine), nodes[:, L.N_REF], lost)

    play(episode.build(Simulator), episode.seed, visit)
