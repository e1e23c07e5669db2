"""Token ids of prompts: two requests share ids exactly as far as their content is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.live.vllm.prompts import FIRST_ID, Prompts
from synergy_gym.scenario import load_scenario
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import Content
from tests.strategies import SEEDS, content_tree


def traffic(content: Content | None, prompt: list[int], output: int = 5) -> Workload:
    count = len(prompt)
    arrival, lengths = np.zeros(count, np.int64), np.array(prompt, np.int64)
    return make_workload(arrival, lengths, np.full(count, output), content=content)


def same_blocks(workload: Workload, prompts: Prompts, block_size: int) -> None:
    """For every two requests: as many equal leading blocks by ids as by content."""
    offsets, ids = workload.block_ids(block_size)
    texts = [prompts.tokens(r) for r in range(len(workload))]
    chains = [ids[offsets[r] : offsets[r + 1]].tolist() for r in range(len(workload))]
    for a, (text, chain) in enumerate(zip(texts, chains, strict=True)):
        for b in range(a):
            known = common(chain, chains[b])
            equal = common(text, texts[b]) // block_size
            assert min(equal, len(chain), len(chains[b])) == known, (a, b)


def common(a: list[int], b: list[int]) -> int:
    """How many leading entries are equal."""
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


@given(
    seed=SEEDS,
    count=st.integers(1, 30),
    block_size=st.sampled_from([1, 4, 16, 32]),
    vocabulary=st.sampled_from([40, 1024]),
)
def test_equal_blocks_if_and_only_if_equal_content(
    seed: int, count: int, block_size: int, vocabulary: int
) -> None:
    rng = np.random.default_rng(seed)
    content = content_tree(rng, count)
    prompt = content.start[content.leaf] + rng.integers(1, 80, count)
    workload = traffic(content, prompt.tolist())
    same_blocks(workload, Prompts(workload, vocabulary, block_size), block_size)


def test_ids_lie_in_the_vocabulary_and_are_the_same_each_time() -> None:
    workload = load_scenario("live-chat").workload(seed=1)
    texts = [Prompts(workload, 200, 32).tokens(r) for r in range(50)]
    assert texts == [Prompts(workload, 200, 32).tokens(r) for r in range(50)]
    ids = {i for text in texts for i in text}
    assert min(ids) >= FIRST_ID
    assert max(ids) < 200
    lengths = (workload.prompt_tokens + workload.output_tokens)[:50].tolist()
    assert [len(text) for text in texts] == lengths


def test_many_unrelated_prompts_differ_within_their_first_block() -> None:
    workload = traffic(None, [40] * 3000)
    prompts = Prompts(workload, 30, 16)
    assert len({tuple(prompts.tokens(r)[:16]) for r in range(3000)}) == 3000


def test_too_many_branches_at_the_end_of_a_block_are_refused() -> None:
    """30 requests part at the last token of a block, and there are 16 ids to tell them apart."""
    count = 30
    content = Content(
        leaf=np.arange(1, count + 1),
        parent=np.array([-1] + [0] * count),
        start=np.array([0] + [31] * count),
    )
    workload = traffic(content, [40] * count)
    with pytest.raises(ValueError, match="take a larger model"):
        Prompts(workload, 20, 32)
    same_blocks(workload, Prompts(workload, 1024, 32), 32)
    same_blocks(workload, Prompts(workload, 20, 64), 64)
