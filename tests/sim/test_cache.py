"""The compiled KV pool, which keeps spans of blocks, equals the plain one block by block.

Random small episodes in which memory is scarce and prompts share what they can. At every decision
point both free queues must have the same contents in the same order, and every content the same
blocks, oldest first, with the same references.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.compiled.checks_pool import Spans
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.points import DONE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import ClientSpec, DecisionRule, EngineSpec, Event, IntArray
from synergy_gym.workload.base import Content, Workload, make_workload
from tests.strategies import MS, SLOS, choose, give

EPISODES = 20_000 if os.environ.get("SYNERGY_GYM_FUZZ") == "1" else 300
POINTS = 400
FOREVER_NS = 1 << 62

Pool = tuple[list[int], dict[int, list[int]]]
"""Contents of the free queue (0: none), and the references on every content's blocks."""


def plain_pool(sim: ReferenceSimulator, engine: int) -> Pool:
    pool = sim._world.servers[engine].engine.pool
    queue = [pool._content.get(block, 0) for block in pool._free]
    references = {
        int(content): [pool._references.get(block, 0) for block in blocks]
        for content, blocks in pool._holders.items()
    }
    return [int(content) for content in queue], references


def compiled_pool(sim: Simulator, engine: int) -> Pool:
    spans = Spans(sim.memory, engine)
    queue = [0] * int(sim.memory.engines[engine]["pool"]["plain"])
    for number in spans.queue():
        queue += spans.ids(number)[::-1].tolist()
    references = {}
    for oldest in spans.oldest():
        counts = [int(spans.records["references"][number]) for number in spans.equals(oldest)]
        references |= dict.fromkeys(spans.ids(oldest).tolist(), counts)
    return queue, references


def tree(rng: np.random.Generator, requests: int, kind: int) -> tuple[Content, IntArray]:
    """A content tree, and how long each request's prompt must be to reach its own content."""
    parent, start, leaf, least = [-1, -1], [0, 0], [], []
    for r in range(requests):
        if kind == 0:  # anybody's, at any place
            base = int(rng.integers(0, len(parent)))
        elif kind == 1:  # turns of a few conversations
            base = leaf[-3] if r >= 3 else int(rng.integers(0, 2))
        elif kind == 2:  # copies of each other
            base = 0
        else:  # the last one, again and again
            base = leaf[-1] if leaf and rng.random() < 0.8 else 0
        begins = start[base] + int(rng.integers(0, 30))
        if leaf and rng.random() < 0.25:
            node = leaf[int(rng.integers(0, len(leaf)))]  # the very same prompt
        else:
            node = len(parent)
            parent.append(base)
            start.append(begins)
        leaf.append(node)
        least.append(start[node] + 1)
    return Content(np.array(leaf), np.array(parent), np.array(start)), np.array(least)


def traffic(rng: np.random.Generator) -> Workload:
    count = int(rng.integers(2, 30))
    arrival = np.sort(rng.integers(0, int(rng.choice([5, 100, 1000])) * MS, count))
    content, least = tree(rng, count, int(rng.integers(0, 4)))
    prompt = np.maximum(rng.integers(1, int(rng.choice([8, 40, 90])), count), 1)
    if rng.random() < 0.7:
        prompt = np.maximum(prompt, np.minimum(least, 120))
    if rng.random() < 0.3:
        prompt[:] = prompt[0]
    after = np.full(count, -1)
    if rng.random() < 0.3:
        chained = np.flatnonzero(rng.random(count) < 0.4)
        chained = chained[chained > 0]
        after[chained] = [rng.integers(0, r) for r in chained]
        arrival[chained] = rng.integers(0, 20 * MS, len(chained))
    return make_workload(
        arrival,
        prompt,
        rng.integers(1, int(rng.choice([3, 20, 60])), count),
        slo_class=rng.integers(0, 2, count),
        priority=rng.integers(0, 3, count),
        after=after,
        content=content,
    )


def engine(rng: np.random.Generator, index: int, size: int) -> EngineSpec:
    return EngineSpec(
        name=f"e{index}",
        gpu="g",
        model="m",
        profile="p",
        max_num_seqs=int(rng.choice([1, 2, 4, 16])),
        max_num_batched_tokens=int(rng.choice([4, 16, 64, 512])),
        max_model_len=int(rng.choice([64, 256])),
        kv_blocks=int(rng.integers(3, 20)) * (1 if size > 4 else int(rng.choice([1, 3, 8]))),
        block_size=size,
        prefix_caching=True,
        scheduling="priority" if rng.random() < 0.2 else "fcfs",
        watermark_blocks=int(rng.choice([0, 0, 1])),
    )


def episode(seed: int) -> dict[str, Any]:
    """The arguments of a simulator."""
    rng = np.random.default_rng(seed)
    count, size = int(rng.choice([1, 1, 1, 2])), int(rng.choice([1, 2, 3, 4, 8, 16]))
    specs = [engine(rng, index, size) for index in range(count)]
    kinds = ["down", "up", "lose_blocks", "lose_blocks"]
    events = [
        Event(
            at_s=float(rng.choice([0.01, 0.05, 0.1, 0.3])),
            kind=str(rng.choice(kinds)),  # type: ignore[arg-type]
            engine=int(rng.integers(0, count)),
            blocks=int(rng.integers(1, 8)),
        )
        for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0)
    ]
    ruled = rng.random() < 0.3
    rules = [
        DecisionRule(spec.max_num_batched_tokens, prefill_chunk=int(rng.choice([0, 0, 5])))
        if ruled and index == 0
        else None
        for index, spec in enumerate(specs)
    ]
    return {
        "engines": specs,
        "clocks": [StepTerms(base_ms=2.0, per_token_ms=0.05).clock(seed) for _ in specs],
        "workload": traffic(rng),
        "slos": SLOS,
        "client": ClientSpec(
            timeout_s=float(rng.choice([0.0, 0.0, 0.05, 0.3])),
            max_retries=int(rng.choice([0, 2])),
            backoff_s=float(rng.choice([0.0, 0.05])),
        ),
        "events": events,
        "rules": rules,
    }


def play_both(seed: int) -> None:
    """Both simulators through one episode, compared at every point."""
    arguments = episode(seed)
    a, b = Simulator(**arguments), ReferenceSimulator(**arguments)
    rng = random.Random(seed)
    plain = rng.random() < 0.4  # else decisions are random, too
    for _ in range(POINTS):
        point = a.advance()
        assert point == b.advance()
        a.check()
        for index in range(len(a.engines)):
            assert compiled_pool(a, index) == plain_pool(b, index)
        if point == DONE:
            break
        answer = choose(a, point, rng)
        if plain and not isinstance(answer, int):
            answer = type(answer)(a.engines[a.point_engine].max_num_batched_tokens)
        give(a, point, answer)
        give(b, point, answer)
    assert a.log_hash() == b.log_hash()
    assert a.records().cached_tokens.tolist() == b.records().cached_tokens.tolist()
    assert a.records().preemptions.tolist() == b.records().preemptions.tolist()


@pytest.mark.hypothesis  # what `make fuzz` selects
def test_spans_hold_what_blocks_hold(seed: int) -> None:
    for episode_seed in range(seed, seed + EPISODES):
        try:
            play_both(episode_seed)
        except AssertionError as error:
            raise AssertionError(f"SYNERGY_GYM_TEST_SEED={episode_seed}: {error}") from error
