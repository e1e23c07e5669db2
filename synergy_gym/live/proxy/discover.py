"""Limits of running engines, as far as vLLM tells them over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from synergy_gym.live.proxy.gateway import Engine
from synergy_gym.live.router.scrape import ScrapeError, fetch_metrics
from synergy_gym.types import EngineSpec

_log = logging.getLogger(__name__)
ASK_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What to take for limits that an engine does not tell.

    `max_num_seqs` and `max_num_batched_tokens` are not in vLLM's HTTP interface; the defaults are
    what its server starts with on most GPUs.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 4096
    kv_blocks: int = 4096
    block_size: int = 16

    def __post_init__(self) -> None:
        """Refuse engines that could serve nothing."""
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")


def parse_engine(text: str) -> tuple[str, str]:
    """Name and base URL from `URL` or `NAME=URL`; without a name it is host and port.

    Raises:
        ValueError: it is no http(s) URL.
    """
    name, equals, url = text.partition("=")
    if not equals or "://" in name:
        name, url = "", text
    url = url.strip().rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"--engine {text!r} is no URL; write http://HOST:PORT or NAME=http://HOST:PORT"
        )
    if parts.path or parts.query:
        raise ValueError(f"--engine {text!r}: leave out the path, requests bring their own")
    return name.strip() or parts.netloc, url


async def discover(
    engines: Sequence[tuple[str, str]], limits: Limits, weights: Sequence[float]
) -> list[Engine]:
    """Ask engines for their limits; one that does not answer gets the defaults, with a warning.

    Args:
        engines: name and URL of each.
        limits: for what they do not tell.
        weights: relative serving capacity of each.
    """
    import httpx

    async with httpx.AsyncClient(timeout=ASK_S, trust_env=False) as client:
        found = [_ask(client, name, url, limits) for name, url in engines]
        specs = await asyncio.gather(*found)
    return [
        Engine(url, replace(spec, weight=weight))
        for (_, url), spec, weight in zip(engines, specs, weights, strict=True)
    ]


async def _ask(client: Any, name: str, url: str, limits: Limits) -> EngineSpec:
    model = await _model(client, name, url)
    try:
        metrics = await fetch_metrics(client, url, ASK_S)
        cache, blocks = metrics.cache, metrics.total_blocks
    except ScrapeError as error:
        _log.warning("engine %s: its cache is unknown, defaults stand in: %s", name, error)
        cache, blocks = {}, 0
    return EngineSpec(
        name=name,
        gpu="unknown",
        model=str(model.get("id", "unknown")),
        profile="",
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=_number(model.get("max_model_len"), limits.max_model_len),
        kv_blocks=blocks or limits.kv_blocks,
        block_size=_number(cache.get("block_size"), limits.block_size),
        prefix_caching=cache.get("enable_prefix_caching") == "True",
    )


async def _model(client: Any, name: str, url: str) -> Mapping[str, Any]:
    """The first entry of `/v1/models`."""
    import httpx

    try:
        answer = await client.get(f"{url}/v1/models")
        models = answer.raise_for_status().json()["data"]
        return dict(models[0])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        _log.warning(
            "engine %s: /v1/models cannot be read, defaults stand in: %s: %s",
            name,
            type(error).__name__,
            error,
        )
        return {}


def _number(value: Any, default: int) -> int:
    text = str(value)
    return int(text) if text.isdecimal() and int(text) > 0 else default
