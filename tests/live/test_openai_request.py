"""What a router reads from a request body, and what it must not read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from synergy_gym.live.proxy.openai_request import (
    RequestError,
    RequestFacts,
    block_hashes,
    read_request,
    session_number,
)
from synergy_gym.live.proxy.sse import StreamReader, answer_tokens, error_event
from synergy_gym.types import SLO

SLOS = (SLO("chat", ttft_s=1.0), SLO("batch"))


def facts(body: Any, headers: dict[str, str] | None = None, block_size: int = 16) -> RequestFacts:
    return read_request(json.dumps(body).encode(), headers or {}, SLOS, block_size)


def test_token_ids_are_counted_and_hashed_exactly(rng: np.random.Generator) -> None:
    ids = rng.integers(0, 32000, 100).tolist()
    read = facts({"prompt": ids, "stream": True, "priority": -3, "max_tokens": 77})
    assert (read.prompt_tokens, read.estimated, read.stream) == (100, False, True)
    assert read.priority == -3
    assert len(read.block_hashes) == 100 // 16
    assert (read.block_hashes > 0).all()


def test_hashes_are_chained(rng: np.random.Generator) -> None:
    ids = rng.integers(0, 32000, 64).tolist()
    other = [*ids[:20], ids[20] + 1, *ids[21:]]
    first, second = facts({"prompt": ids}).block_hashes, facts({"prompt": other}).block_hashes
    assert first[0] == second[0]
    assert (first[1:] != second[1:]).all(), "a block stands for everything before it"
    assert (facts({"prompt": [*ids, 1]}).block_hashes == first).all(), "full blocks only"
    assert (block_hashes(b"x" * 640, 16)[:5] == block_hashes(b"x" * 321, 16)).all()
    assert len(set(block_hashes(b"x" * 640, 16).tolist())) == 10


def test_text_is_estimated_at_four_bytes_per_token() -> None:
    assert facts({"prompt": "x" * 101}).prompt_tokens == 26
    assert facts({"prompt": "x" * 101}).estimated
    assert facts({"prompt": "é" * 40}).prompt_tokens == 20
    assert facts({"prompt": ""}).prompt_tokens == 1
    assert len(facts({"prompt": "x" * 129}).block_hashes) == 2


def test_chats_share_the_prefix_of_their_history() -> None:
    turns = [{"role": "system", "content": "s" * 200}, {"role": "user", "content": "u" * 100}]
    later = [*turns, {"role": "assistant", "content": "a" * 50}]
    first, second = facts({"messages": turns}), facts({"messages": later})
    assert first.estimated
    assert first.prompt_tokens == -(-(len("system\nuser\n") + 302) // 4) + 2 * 4
    shared = len(first.block_hashes)
    assert shared == 4
    assert (second.block_hashes[:shared] == first.block_hashes).all()
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert facts({"messages": parts}).prompt_tokens > 4


def test_several_prompts_add_up() -> None:
    read = facts({"prompt": [[1] * 40, [2] * 10]})
    assert (read.prompt_tokens, len(read.block_hashes), read.estimated) == (50, 2, False)
    assert facts({"prompt": ["x" * 8, "y" * 8]}).prompt_tokens == 4


def test_sessions_come_from_the_header_or_the_user() -> None:
    by_header = facts({"prompt": [1], "user": "u"}, {"x-session-id": "s"})
    by_user = facts({"prompt": [1], "user": "u"})
    assert by_header.session == session_number("s")
    assert by_user.session == session_number("u")
    assert len({by_header.session, by_user.session, -1}) == 3
    assert facts({"prompt": [1]}).session == -1
    assert facts({"prompt": [1], "user": 3}).session == -1
    assert 0 <= session_number("s") < 2**62


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, (0, False)),
        ("chat", (0, False)),
        ("batch", (1, False)),
        (1, (1, False)),
        (2, (0, True)),
        (-1, (0, True)),
        ("gold", (0, True)),
        (True, (0, True)),
        ([1], (0, True)),
    ],
)
def test_the_slo_class_is_a_name_or_an_index(asked: Any, expected: tuple[int, bool]) -> None:
    read = facts({"prompt": [1], "vllm_xargs": {"slo_class": asked}})
    assert (read.slo_class, read.unknown_class) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b"[1]", "JSON list"),
        (b"{}", "no prompt"),
        (b'{"prompt": []}', "no prompt"),
        (b'{"prompt": [1, "a"]}', "no prompt"),
        (b'{"prompt": [[1], 2]}', "no prompt"),
        (b'{"prompt": [true]}', "no prompt"),
        (b'{"prompt": 3}', "no prompt"),
        (b'{"prompt": [99999999999999999999999]}', "too large"),
        (b'{"messages": "hi"}', "no list of objects"),
        (b'{"messages": ["hi"]}', "no list of objects"),
    ],
)
def test_bodies_without_a_prompt_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_request(body, {}, SLOS, 16)


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens", "min_tokens", "stop", "n"])
def test_nothing_about_the_output_changes_what_is_known(key: str) -> None:
    body = {"prompt": [1] * 50, "user": "u"}
    plain, told = facts(body), facts(body | {key: 123})
    for name in RequestFacts.__slots__:
        assert np.array_equal(getattr(plain, name), getattr(told, name))


def stream(chunks: list[bytes]) -> StreamReader:
    reader = StreamReader()
    for chunk in chunks:
        reader.feed(chunk)
    return reader


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def test_streams_are_counted_however_they_are_cut(rng: np.random.Generator) -> None:
    events = [event({"choices": [{"index": 0, "text": "a"}]})] * 5
    events += [event({"choices": [{"text": "bc", "token_ids": [1, 2, 3]}]}), b": comment\n\n"]
    data = b"".join([*events, event({"choices": [], "x": 1}), b"data: [DONE]\n\n"])
    for _ in range(50):
        cuts = np.sort(rng.integers(0, len(data), 6)).tolist()
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        reader = stream(pieces)
        assert (reader.tokens, reader.finished, reader.error) == (8, True, "")


def test_usage_corrects_the_count() -> None:
    chunk = event({"choices": [{"text": "several tokens"}]})
    usage = event({"choices": [], "usage": {"completion_tokens": 12}})
    assert stream([chunk, usage]).tokens == 12
    assert stream([chunk, event({"choices": [], "usage": None})]).tokens == 1


def test_the_role_of_a_chat_is_no_token() -> None:
    role = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    word = event({"choices": [{"delta": {"content": "hi"}}]})
    thought = event({"choices": [{"delta": {"reasoning": "hm"}}]})
    assert stream([role]).tokens == 0
    assert stream([role, word, thought, word]).tokens == 3


@pytest.mark.parametrize(
    "data", [b"data: {\n\n", b"data: 3\n\n", b"event: x\nid: 4\n\n", b"\xff\n"]
)
def test_foreign_events_are_passed_over(data: bytes) -> None:
    reader = stream([data, event({"choices": [3, {"text": "a"}]})])
    assert (reader.tokens, reader.finished) == (1, False)


def test_errors_in_a_stream_are_noticed() -> None:
    assert "died" in stream([event({"error": {"message": "it died"}})]).error
    own = stream([error_event("engine a broke", "engine_failed")])
    assert "engine a broke" in own.error
    assert not own.finished


def test_whole_answers_tell_their_length_or_nothing() -> None:
    assert answer_tokens(b'{"usage": {"completion_tokens": 7}}') == 7
    for body in (b"", b"{", b"[]", b'{"usage": {"completion_tokens": -1}}', b'{"usage": 3}'):
        assert answer_tokens(body) == 0
