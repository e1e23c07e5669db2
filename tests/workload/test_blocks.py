"""Block identities against prompts written out token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.workload.base import Workload, make_workload, prefix_hit_share
from synergy_gym.workload.blocks import (
    INDEX_BITS,
    Content,
    path_content,
    session_content,
)

Token = tuple[object, ...]


def of(prompt: list[int], output: list[int], content: Content | None = None) -> Workload:
    arrivals = np.arange(len(prompt), dtype=np.int64)
    return make_workload(arrivals, np.array(prompt), np.array(output), content=content)


def assert_same_equalities(workload: Workload, texts: list[list[Token]], block_size: int) -> None:
    """Equal ids exactly where the texts are equal from their start to the block's end."""
    offsets, ids = workload.block_ids(block_size)
    meaning: dict[int, tuple[Token, ...]] = {}
    named: dict[tuple[Token, ...], int] = {}
    for request, text in enumerate(texts):
        own = ids[offsets[request] : offsets[request + 1]].tolist()
        assert len(own) == len(text) // block_size
        for index, value in enumerate(own):
            prefix = tuple(text[: (index + 1) * block_size])
            assert value > 0
            assert meaning.setdefault(value, prefix) == prefix
            assert named.setdefault(prefix, value) == value


@given(st.data())
def test_session_content_means_equal_tokens(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 12))
    sizes = st.integers(1, 12)
    system_tokens = data.draw(st.lists(st.integers(1, 9), max_size=2))
    prompt, output, previous, reused, system = [], [], [], [], []
    texts: list[list[Token]] = []
    for request in range(n):
        before = data.draw(st.integers(-1, request - 1))
        chosen = data.draw(st.integers(-1, len(system_tokens) - 1))
        source: list[Token] = []
        if before >= 0:
            source = texts[before]
        elif chosen >= 0:
            source = [("system", chosen, i) for i in range(system_tokens[chosen])]
        keep = data.draw(st.integers(0, len(source)))
        head = source[:keep]
        own = data.draw(sizes)
        said = data.draw(sizes)
        text = head + [("own", request, i) for i in range(own + said)]
        previous.append(before)
        reused.append(keep)
        system.append(chosen)
        prompt.append(len(head) + own)
        output.append(said)
        texts.append(text)
    content = session_content(
        np.array(previous, np.int64),
        np.array(reused, np.int64),
        system=np.array(system, np.int64),
    )
    assert np.all(content.parent < np.arange(len(content.parent)))
    workload = of(prompt, output, content)
    assert_same_equalities(workload, texts, data.draw(st.integers(1, 5)))


@given(st.data())
def test_path_content_means_equal_tokens(data: st.DataObject) -> None:
    block_tokens = data.draw(st.integers(1, 6))
    paths = data.draw(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=10))
    prompt, output = [], []
    texts: list[list[Token]] = []
    for request, path in enumerate(paths):
        length, said = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 6))
        text: list[Token] = []
        for value in path:
            size = min(block_tokens, length - len(text))
            # A hash of fewer tokens is another hash: its tokens are not the longer one's.
            text += [("hash", value, size, i) for i in range(size)]
        text += [("own", request, i) for i in range(length + said - len(text))]
        prompt.append(length)
        output.append(said)
        texts.append(text)
    content = path_content(paths, block_tokens, np.array(prompt, np.int64))
    workload = of(prompt, output, content)
    assert_same_equalities(workload, texts, data.draw(st.sampled_from([1, block_tokens])))


@given(st.data())
def test_ids_name_the_deepest_node_that_begins_before_the_block_ends(data: st.DataObject) -> None:
    n, block_size = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    parent = [data.draw(st.integers(-1, node - 1)) for node in range(n)]
    start = [data.draw(st.integers(0, 30)) for _ in range(n)]
    leaf = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    prompt = [data.draw(st.integers(1, 40)) for _ in leaf]
    content = Content(*(np.array(column, np.int64) for column in (leaf, parent, start)))
    offsets, ids = of(prompt, [1] * len(leaf), content).block_ids(block_size)
    for request, node in enumerate(leaf):
        own = ids[offsets[request] : offsets[request + 1]].tolist()
        assert len(own) == (prompt[request] + 1) // block_size
        for index in range(len(own) - 1, -1, -1):
            while parent[node] >= 0 and start[node] >= (index + 1) * block_size:
                node = parent[node]
            assert own[index] == (node + 1) << INDEX_BITS | index


def test_without_content_every_request_is_its_own() -> None:
    offsets, ids = of([32, 32, 5], [16, 1, 1]).block_ids(16)
    assert offsets.tolist() == [0, 3, 5, 5]
    assert len(set(ids.tolist())) == 5
    assert (ids & (2**INDEX_BITS - 1)).tolist() == [0, 1, 2, 0, 1]


def test_empty_workload_has_no_blocks() -> None:
    offsets, ids = of([], []).block_ids(16)
    assert offsets.tolist() == [0]
    assert len(ids) == 0


def test_ids_do_not_depend_on_other_requests() -> None:
    content = session_content(np.array([-1, 0, -1]), np.array([0, 20, 0]))
    many = of([16, 32, 40], [4, 4, 4], content)
    one = of([16], [4], Content(content.leaf[:1], content.parent, content.start))
    assert one.block_ids(4)[1].tolist() == many.block_ids(4)[1][:5].tolist()


def test_block_size_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="block_size is 0"):
        of([4], [1]).block_ids(0)


def test_too_many_blocks_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"row 1 has .* use larger blocks"):
        of([4, 2**24], [1, 1]).block_ids(1)


def test_a_later_previous_turn_is_an_error() -> None:
    with pytest.raises(ValueError, match="row 0: its previous turn is row 1"):
        session_content(np.array([1, -1]), np.array([4, 0]))


def test_prefix_hit_share_counts_repeated_prompt_blocks() -> None:
    content = path_content([[1, 2], [1, 3], [1, 2, 4]], 4, np.array([8, 8, 10]))
    workload = of([8, 8, 10], [8, 8, 8], content)
    assert prefix_hit_share(workload, 4) == (pytest.approx(3 / 6), pytest.approx(12 / 26))
    assert prefix_hit_share(of([3], [1]), 4) == (0.0, 0.0)
