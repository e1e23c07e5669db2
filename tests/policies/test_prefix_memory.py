"""The router-local map of cached blocks: least recently used out first, leaves before roots."""

from __future__ import annotations

import logging
import random
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.policies.fallback import Fallback
from synergy_gym.policies.prefix_memory import BlockMemory, PrefixMap
from synergy_gym.types import EngineSpec


class Plain:
    """The definition: one queue of blocks, a chain enters leaf first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def insert(self, chain: list[int]) -> None:
        for block in reversed(chain):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.capacity:
            self.blocks.popitem(last=False)

    def match(self, chain: list[int]) -> int:
        known = 0
        while known < len(chain) and chain[known] in self.blocks:
            known += 1
        return known


def chains(rng: random.Random, count: int) -> list[list[int]]:
    """Chains that share prefixes, some of them repeated."""
    known: list[list[int]] = [[]]
    result = []
    for _ in range(count):
        base = rng.choice(known)
        base = base[: rng.randint(0, len(base))]
        known.append(base + [rng.getrandbits(48) for _ in range(rng.randint(0, 8))])
        known = known[-12:]
        result.append(rng.choice(known))
    return result


@given(
    seed=st.integers(0, 2**32), capacity=st.sampled_from([1, 3, 10, 40]), count=st.integers(1, 200)
)
def test_equals_its_definition(seed: int, capacity: int, count: int) -> None:
    memory, plain = BlockMemory(capacity), Plain(capacity)
    for chain in chains(random.Random(seed), count):
        assert memory.match(chain) == plain.match(chain)
        before = chain.copy()
        memory.insert(chain)
        plain.insert(chain)
        assert chain == before
        assert len(memory) == len(plain.blocks)


def test_repeated_prompts_do_not_pile_up() -> None:
    memory = BlockMemory(50)
    for turn in range(2000):
        memory.insert([*range(20), 1000 + turn % 20])
    assert len(memory) == 40
    assert len(memory._recent) == 21


def test_clear() -> None:
    memory = BlockMemory(10)
    memory.insert([1, 2, 3])
    memory.clear()
    assert (len(memory), memory.match([1])) == (0, 0)
    memory.insert(list(range(20)))
    assert memory.match(list(range(20))) == 10


def test_prefix_map() -> None:
    specs = [EngineSpec(f"e{i}", "g", "m", "p", 8, 100, 1000, 7 + i) for i in range(3)]
    known = PrefixMap(specs)
    assert known.block_size == 16
    known.insert(1, [1, 2, 3, 4])
    known.insert(2, [1, 2])
    assert known.matches([1, 2, 3, 9]).tolist() == [0, 3, 2]
    assert known.matches([]).tolist() == [0, 0, 0]
    assert known.uncached_tokens(70, [1, 2, 3, 4]).tolist() == [70, 6, 38]
    assert known.uncached_tokens(64, [1, 2, 3, 4]).tolist() == [64, 1, 32]
    assert known.free_blocks().tolist() == [7, 4, 7]
    known.forget(np.array([False, True, False]))
    assert known.free_blocks().tolist() == [7, 8, 7]
    assert PrefixMap(specs, 2).free_blocks().tolist() == [2, 2, 2]


def test_a_fallback_counts_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    fallback = Fallback("some.policy", "nothing known; the first is taken")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            fallback.note()
    assert fallback.count == 3
    assert caplog.record_tuples == [
        ("some.policy", logging.WARNING, "nothing known; the first is taken")
    ]
