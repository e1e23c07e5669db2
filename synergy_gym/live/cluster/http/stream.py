"""A streaming client of `/v1/completions`, as vLLM serves it, with prompts as token ids."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synergy_gym.live.cluster.messages import LiveRequest, Patience

if TYPE_CHECKING:
    import httpx

COMPLETIONS = "/v1/completions"
REFUSALS = frozenset({400, 413, 422})
"""Answers that blame the request, which no other engine would serve either."""
_EXCERPT = 200
_BAD_ENDS = frozenset({"abort", "error"})


class RequestRefusedError(Exception):
    """The server will never serve this request (HTTP 400: the prompt is too long)."""


class EngineFailedError(Exception):
    """The server could not serve the request; another one might.

    Attributes:
        nobody_listens: the connection was refused.
    """

    def __init__(self, message: str, *, nobody_listens: bool = False) -> None:
        super().__init__(message)
        self.nobody_listens = nobody_listens


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of the stream brought: output tokens, or the usage that ends it."""

    tokens: int = 0
    cached_tokens: int | None = None


def open_client(patience: Patience) -> httpx.AsyncClient:
    """A client for any number of parallel streams; proxies of the environment are not used."""
    import httpx

    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
        timeout=httpx.Timeout(None, connect=patience.connect_s, write=patience.connect_s),
        trust_env=False,
    )


def completion_body(request: LiveRequest, model: str, *, is_vllm: bool) -> dict[str, Any]:
    """The JSON body of an attempt; the engine emits exactly `max_tokens` tokens.

    Args:
        request: the attempt.
        model: name under which the server serves its model.
        is_vllm: use what only vLLM knows: the request's class, and a salt that lets cached
            prefixes be shared within this episode only.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": request.max_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if request.priority:
        body["priority"] = request.priority
    if is_vllm:
        body["vllm_xargs"] = {"slo_class": request.slo_name}
        body["cache_salt"] = request.cache_salt
    return body


async def completion(
    client: httpx.AsyncClient, url: str, body: dict[str, Any]
) -> AsyncGenerator[Piece, None]:
    """The pieces of one completion as they arrive; returns when the stream is complete.

    Raises:
        RequestRefusedError: the server blames the request.
        EngineFailedError: no connection, another status, an error within the stream, or a stream
            that ends before it is complete.
    """
    import httpx

    try:
        async with client.stream("POST", url + COMPLETIONS, json=body) as response:
            if response.status_code != httpx.codes.OK:
                await _complain(response)
            async for piece in _pieces(response):
                yield piece
    except httpx.HTTPError as error:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        refused = isinstance(error, httpx.ConnectError)
        raise EngineFailedError(text, nobody_listens=refused) from error


async def _pieces(response: httpx.Response) -> AsyncIterator[Piece]:
    ended = False
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event = _parsed(data)
        ended = ended or _is_last(event)
        yield Piece(_tokens(event), _cached(event))
    if not ended:
        raise EngineFailedError("the stream was closed before its end")


async def _complain(response: httpx.Response) -> None:
    text = (await response.aread())[:_EXCERPT].decode(errors="replace")
    message = f"HTTP {response.status_code}: {text}"
    if response.status_code in REFUSALS:
        raise RequestRefusedError(message)
    raise EngineFailedError(message)


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise EngineFailedError(f"the stream holds no JSON: {data[:_EXCERPT]!r}") from None
    if not isinstance(event, dict):
        raise EngineFailedError(f"the stream holds {data[:_EXCERPT]!r}, not an object")
    if event.get("error"):
        raise EngineFailedError(f"an error within the stream: {str(event['error'])[:_EXCERPT]}")
    return event


def _is_last(event: dict[str, Any]) -> bool:
    reasons = {choice.get("finish_reason") for choice in event.get("choices") or ()} - {None}
    if bad := reasons & _BAD_ENDS:
        raise EngineFailedError(f"the server ended the stream with finish_reason {bad.pop()!r}")
    return bool(reasons)


def _tokens(event: dict[str, Any]) -> int:
    """Output tokens of an event: their ids where the server sends them, else one per text."""
    count = 0
    for choice in event.get("choices") or ():
        ids = choice.get("token_ids")
        count += len(ids) if ids is not None else int(bool(choice.get("text")))
    return count


def _cached(event: dict[str, Any]) -> int | None:
    details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return None if cached is None else int(cached)
