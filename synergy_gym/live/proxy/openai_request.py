"""What a router reads from an OpenAI request: length, session, class and prefix, never the output.

`max_tokens` passes through to the engine and is not read: no view holds an output length.

* Prompt length: exact for token ids. Of text it is an estimate, `BYTES_PER_TOKEN` UTF-8 bytes per
  token, plus `TOKENS_PER_MESSAGE` per chat message; engines are not asked (`/tokenize` costs a
  round trip before the choice).
* Session: the header `x-session-id`, else the field `user`.
* SLO class: `vllm_xargs.slo_class`, a name or an index; the first class without one.
* Block hashes: chained over blocks of `block_size` token ids (text: of as many estimated tokens).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from synergy_gym.types import SLO, IntArray

BYTES_PER_TOKEN = 4
"""Of text, estimated. Token ids are hashed as 4 bytes each, so a block is equally long in both."""
TOKENS_PER_MESSAGE = 4
SESSION_HEADER = "x-session-id"


class RequestError(ValueError):
    """A request body that no engine could serve; the message says what is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class RequestFacts:
    """What the router knows of a request when it arrives.

    Attributes:
        prompt_tokens: its length; of several prompts in one request, their sum.
        estimated: whether that is an estimate from text.
        stream: whether the client wants a stream.
        session: 62 bits of the session's hash, or -1.
        slo_class: index of the SLO class.
        unknown_class: whether the request named a class that the router does not have.
        priority: vLLM's priority; lower is served first.
        block_hashes: of the full blocks of the (first) prompt.
    """

    prompt_tokens: int
    estimated: bool
    stream: bool
    session: int
    slo_class: int
    unknown_class: bool
    priority: int
    block_hashes: IntArray


def read_request(
    body: bytes, headers: Mapping[str, str], slos: Sequence[SLO], block_size: int
) -> RequestFacts:
    """The facts in a body of `/v1/completions` or `/v1/chat/completions`.

    Args:
        body: JSON.
        headers: names in lower case.
        slos: the classes that the request may name.
        block_size: tokens per block of the engines' prefix caches.

    Raises:
        RequestError: the body is no JSON object, or holds no prompt.
    """
    fields = _fields(body)
    content, tokens, estimated = _content(fields)
    slo_class, unknown = _slo_class(fields.get("vllm_xargs"), slos)
    priority = fields.get("priority")
    return RequestFacts(
        prompt_tokens=tokens,
        estimated=estimated,
        stream=fields.get("stream") is True,
        session=session_number(headers.get(SESSION_HEADER) or fields.get("user")),
        slo_class=slo_class,
        unknown_class=unknown,
        priority=priority if type(priority) is int else 0,
        block_hashes=block_hashes(content, block_size),
    )


def session_number(name: Any) -> int:
    """A session's number: 62 bits of its name's hash, the same in every router; -1 without one."""
    if not isinstance(name, str) or not name:
        return -1
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") >> 2


def block_hashes(content: bytes, block_size: int) -> IntArray:
    """Chained hashes of the full blocks: equal means equal up to and including that block."""
    size = block_size * BYTES_PER_TOKEN
    chain, hashes = b"", []
    for end in range(size, len(content) + 1, size):
        chain = blake2b(chain + content[end - size : end], digest_size=8).digest()
        hashes.append(int.from_bytes(chain, "big") >> 1)
    return np.array(hashes, np.int64)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError(f"the body is a JSON {type(fields).__name__}; send an object")
    return fields


def _content(fields: dict[str, Any]) -> tuple[bytes, int, bool]:
    """Bytes to hash, length in tokens, and whether that is an estimate."""
    if "messages" in fields:
        return _chat(fields["messages"])
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return _text(prompt)
    if isinstance(prompt, list) and prompt:
        if all(type(token) is int for token in prompt):
            return _token_bytes(prompt), len(prompt), False
        parts = [_content({"prompt": part}) for part in prompt if isinstance(part, str | list)]
        if len(parts) == len(prompt):  # several prompts in one request
            tokens = sum(tokens for _, tokens, _ in parts)
            return parts[0][0], tokens, any(estimated for *_, estimated in parts)
    raise RequestError("the body has no prompt; send text or token ids as `prompt`, or `messages`")


def _token_bytes(tokens: Iterable[int]) -> bytes:
    try:
        return np.array(tokens, np.int64).astype("<i4").tobytes()
    except OverflowError as error:
        raise RequestError(f"a token id is too large: {error}") from error


def _text(text: str) -> tuple[bytes, int, bool]:
    content = text.encode("utf-8", "surrogatepass")
    return content, max(-(-len(content) // BYTES_PER_TOKEN), 1), True


def _chat(messages: Any) -> tuple[bytes, int, bool]:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise RequestError("`messages` is no list of objects; see the chat completions API")
    text = "".join(f"{m.get('role')}\n{_message_text(m.get('content'))}\n" for m in messages)
    content, tokens, _ = _text(text)
    return content, tokens + TOKENS_PER_MESSAGE * len(messages), True


def _message_text(content: Any) -> str:
    """Text of a message; other parts (images, audio) count by their JSON."""
    return content if isinstance(content, str) else json.dumps(content, sort_keys=True)


def _slo_class(extra: Any, slos: Sequence[SLO]) -> tuple[int, bool]:
    """Index of the class, and whether the request named one that does not exist."""
    named = extra.get("slo_class") if isinstance(extra, dict) else None
    if named is None:
        return 0, False
    names = [slo.name for slo in slos]
    if isinstance(named, str) and named in names:
        return names.index(named), False
    if type(named) is int and 0 <= named < len(slos):
        return named, False
    return 0, True
