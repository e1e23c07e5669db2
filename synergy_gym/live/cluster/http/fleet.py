"""OpenAI-compatible servers as a live cluster: given by URL, or started and stopped here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from synergy_gym.live.cluster.fleet import EngineOrders, Fleet
from synergy_gym.live.cluster.http.remote_engine import HttpEngine
from synergy_gym.live.cluster.http.stream import open_client
from synergy_gym.live.cluster.messages import Patience, StatePushed
from synergy_gym.live.router.push import PushInbox
from synergy_gym.live.vllm.servers import Server, stop_servers
from synergy_gym.types import EngineSpec

_log = logging.getLogger(__name__)
SMALLEST_VOCABULARY = 1024
"""Token ids that every model has; prompts for unknown models stay below."""


def engine_name(index: int) -> str:
    """The name under which an engine pushes its state."""
    return f"engine-{index}"


class HttpFleet(Fleet):
    """Servers, one per engine.

    Args:
        engines: what the scenario says of them.
        urls: their addresses, in index order.
        patience: the timeouts.
        inbox: where engines push their state (`engine_name`), or `None`; closed with the fleet.
        servers: those of them that this fleet has to end.
        vocabulary: token ids that all models know.
        release: called last by `close`.

    Attributes:
        servers: the servers that this fleet has started.
    """

    def __init__(
        self,
        engines: Sequence[EngineSpec],
        urls: Sequence[str],
        patience: Patience,
        *,
        inbox: PushInbox | None = None,
        servers: Sequence[Server] = (),
        vocabulary: int = SMALLEST_VOCABULARY,
        release: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(patience)
        self._specs = tuple(engines)
        self._inbox = inbox
        self.servers = tuple(servers)
        self._vocabulary = vocabulary
        self._release = release
        self._names = {engine_name(i): i for i in range(len(engines))}
        self._client = self.hub.ask(_in_loop(lambda: open_client(patience)))
        self.connections: list[HttpEngine] = self.hub.ask(
            _in_loop(
                lambda: [
                    HttpEngine(i, url, spec.kv_blocks, self.hub, self._client, patience)
                    for i, (url, spec) in enumerate(zip(urls, engines, strict=True))
                ]
            )
        )
        if inbox is not None:
            self.hub.call(self.hub.loop.add_reader, inbox, self._receive)

    def begin(self, orders: EngineOrders) -> None:
        """Drop what is open, and look who is there; the servers keep their policies.

        Raises:
            RuntimeError: no server is healthy; all are named.
        """
        interval_s = orders.telemetry.scrape_interval_s
        self.hub.ask(_all([engine.begin(interval_s) for engine in self.connections]))
        if not any(engine.is_up for engine in self.connections):
            urls = ", ".join(engine.url for engine in self.connections)
            raise RuntimeError(
                f"none of the servers {urls} answers /v1/models and /health; start them, or leave "
                "`urls` out to have servers started"
            )
        for engine, spec in zip(self.connections, self._specs, strict=True):
            if engine.max_model_len and engine.max_model_len != spec.max_model_len:
                _log.warning(
                    "engine %d (%s) serves up to %d tokens, the scenario says %d",
                    engine.engine,
                    engine.url,
                    engine.max_model_len,
                    spec.max_model_len,
                )

    @property
    def is_whole(self) -> bool:
        """Whether all servers that were started here still run."""
        return all(server.alive for server in self.servers)

    def vocabulary(self) -> int:
        """Token ids that every model knows."""
        return self._vocabulary

    def entry(self) -> dict[str, Any]:
        """Addresses and models, and what was not read or received."""
        inbox = self._inbox
        return {
            "urls": [engine.url for engine in self.connections],
            "models": [engine.model for engine in self.connections],
            "failed_scrapes": [engine.failed_scrapes for engine in self.connections],
            "pushes": 0 if inbox is None else inbox.received,
            "rejected_pushes": 0 if inbox is None else inbox.rejected,
        }

    def close(self) -> None:
        """End attempts, and the servers that this fleet started; a second call does nothing."""
        if not self.is_open:
            return
        inbox, loop = self._inbox, self.hub.loop
        if inbox is not None:
            self.hub.ask(_in_loop(lambda: loop.remove_reader(inbox)))
        for connection in self.connections:
            connection.close()
        self.hub.ask(self._client.aclose())
        super().close()
        if inbox is not None:
            inbox.close()
        stop_servers(self.servers)
        self._release()

    def _receive(self) -> None:
        assert self._inbox is not None
        for push in self._inbox.drain():
            now_ns = time.monotonic_ns()
            engine = self._names.get(push.engine)
            if engine is None:
                _log.warning("state pushed by %r, which is no engine here", push.engine)
            else:
                self.hub.emit(StatePushed(engine, now_ns, tuple(push.vector(now_ns))))


async def _all(work: Sequence[Any]) -> None:
    await asyncio.gather(*work)


async def _in_loop(function: Callable[[], Any]) -> Any:
    return function()
