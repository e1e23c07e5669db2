"""One OpenAI-compatible server as an engine of a live cluster."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from synergy_gym.live.cluster.attempts import Attempts
from synergy_gym.live.cluster.event_loop import EventLoop
from synergy_gym.live.cluster.http.stream import (
    EngineFailedError,
    RequestRefusedError,
    completion,
    completion_body,
)
from synergy_gym.live.cluster.messages import HealthChanged, LiveRequest, MetricsScraped, Patience
from synergy_gym.live.log import is_loud
from synergy_gym.live.router.health import HealthTable
from synergy_gym.live.router.scrape import MetricsWindow, ScrapeError, fetch_metrics
from synergy_gym.types import NS_PER_S, Outcome

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger(__name__)


class ServerUnreachableError(RuntimeError):
    """A server does not answer as an OpenAI-compatible server does."""


class HttpEngine:
    """A `transport.Connection` to a server; it starts attempts, and watches health and metrics.

    Args:
        engine: its place in the cluster.
        url: of the server, without a path.
        kv_blocks: shown where its metrics do not say how many there are.
        hub: where its tasks run and its events go.
        client: shared by all engines of a cluster.
        patience: the timeouts.

    Attributes:
        model: name under which the server serves its model; empty until it has said so.
        max_model_len: its longest sequence, tokens; 0 where it does not say.
        is_vllm: whether it says that it is vLLM, and is sent what only vLLM knows.
        failed_scrapes: readings of `/metrics` that gave nothing.
    """

    def __init__(
        self,
        engine: int,
        url: str,
        kv_blocks: int,
        hub: EventLoop,
        client: httpx.AsyncClient,
        patience: Patience,
    ) -> None:
        self.engine = engine
        self.url = url.rstrip("/")
        self.model = ""
        self.max_model_len = 0
        self.is_vllm = False
        self.failed_scrapes = 0
        self._alive = False
        self._hub = hub
        self._client = client
        self._patience = patience
        self._attempts = Attempts(engine, hub, patience, self._silent)
        self._health = HealthTable([self.url], patience.health, lambda _, up: self._turned(up))
        self._news = asyncio.Event()
        self._window = MetricsWindow(kv_blocks)
        self._tasks: list[asyncio.Task[None]] = []

    # -- from the caller's thread --------------------------------------------------------

    def submit(self, request: LiveRequest) -> None:
        """Start an attempt; it ends with exactly one `AttemptEnded`."""
        self._hub.call(self._start, request)

    def abort(self, ticket: int) -> None:
        """End an attempt as aborted; the server sees its connection close."""
        why = "not wanted any more"
        self._hub.call(self._attempts.end, ticket, Outcome.ABORTED, why, None, True)

    def close(self) -> None:
        """End all attempts, health checks and scrapes."""
        if self._hub.is_open:
            self._hub.call(self._stop)
            self._hub.call(self._attempts.fail_all, "the cluster was closed")

    # -- in the hub's loop -----------------------------------------------------------------

    async def begin(self, scrape_interval_s: float) -> None:
        """Be ready for an episode: nothing open, health told anew, scraped in this interval."""
        self._stop()
        self._attempts.abort_all()
        self._alive = False
        patient_s = max(self._patience.connect_s, self._patience.health.timeout_s)
        try:
            await self._greet(patient_s)
            await self._probe(patient_s)
        except ServerUnreachableError as error:
            self._health.failed(0, time.monotonic_ns(), str(error), probe=True, refused=True)
            self._hub.emit(HealthChanged(self.engine, time.monotonic_ns(), False, str(error)))
        self._tasks.append(self._hub.spawn(self._watch_health()))
        if scrape_interval_s > 0:
            await self._read_metrics()  # what was counted before belongs to no window
            self._tasks.append(self._hub.spawn(self._scrape(scrape_interval_s)))

    @property
    def is_up(self) -> bool:
        """Whether it takes requests."""
        return self._alive

    def _start(self, request: LiveRequest) -> None:
        task = self._hub.spawn(self._serve(request))
        self._attempts.open(request, task.cancel)
        if not self._alive:
            self._attempts.end(request.ticket, Outcome.FAILED, "the engine is down", stop=True)

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    async def _serve(self, request: LiveRequest) -> None:
        """One attempt: its pieces become events, its end exactly one."""
        ticket, cached = request.ticket, 0
        body = completion_body(request, self.model, is_vllm=self.is_vllm)
        try:
            async with aclosing(completion(self._client, self.url, body)) as stream:
                async for piece in stream:
                    if piece.tokens:
                        self._attempts.tokens(ticket, piece.tokens, time.monotonic_ns())
                    cached = cached if piece.cached_tokens is None else piece.cached_tokens
        except RequestRefusedError as error:
            self._attempts.end(ticket, Outcome.REJECTED, str(error))
        except EngineFailedError as error:
            self._attempts.end(ticket, Outcome.FAILED, str(error))
            self._doubt(str(error), refused=error.nobody_listens)
        except Exception as error:
            _log.exception("engine %d: attempt %d", self.engine, ticket)
            self._attempts.end(ticket, Outcome.FAILED, f"{type(error).__name__}: {error}")
        else:
            self._attempts.end(ticket, Outcome.FINISHED, cached_tokens=cached)

    # -- health ----------------------------------------------------------------------------

    def _silent(self) -> None:
        self._doubt("a request was left without an answer")

    def _doubt(self, reason: str, *, refused: bool = False) -> None:
        """A request failed: count it, and look at the health soon."""
        self._health.failed(0, time.monotonic_ns(), reason, refused=refused)
        if refused:
            self._attempts.fail_all(f"the engine is down: {reason}")
        self._news.set()

    async def _watch_health(self) -> None:
        while True:
            wait_s = (self._health.next_probe_ns() - time.monotonic_ns()) / NS_PER_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), max(wait_s, 0.0))
            self._news.clear()
            if self._health.due(time.monotonic_ns()):
                await self._check()

    async def _check(self) -> None:
        try:
            if not self.model:
                await self._greet(self._patience.health.timeout_s)
            await self._probe(self._patience.health.timeout_s)
        except ServerUnreachableError as error:
            self._health.failed(0, time.monotonic_ns(), str(error), probe=True)
            if not self._alive:
                self._attempts.fail_all(f"the engine is down: {error}")

    async def _probe(self, timeout_s: float) -> None:
        answer = await self._get("/health", timeout_s)
        if not answer.is_success:
            raise ServerUnreachableError(f"{self.url}/health answers {answer.status_code}")
        self._health.probed(0, time.monotonic_ns())
        self._turned(True)

    def _turned(self, alive: bool) -> None:
        if alive != self._alive:
            self._alive = alive
            self._hub.emit(HealthChanged(self.engine, time.monotonic_ns(), alive))

    async def _greet(self, timeout_s: float) -> None:
        """Ask the server which model it serves."""
        answer = await self._get("/v1/models", timeout_s)
        try:
            model = answer.json()["data"][0]
            self.model = str(model["id"])
            self.max_model_len = int(model.get("max_model_len") or 0)
            self.is_vllm = model.get("owned_by") == "vllm"
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ServerUnreachableError(
                f"{self.url}/v1/models answers {answer.status_code} {answer.text[:200]!r}; give "
                "the address of an OpenAI-compatible server, such as http://127.0.0.1:8000"
            ) from error

    async def _get(self, path: str, timeout_s: float) -> Any:
        import httpx

        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.get(self.url + path)
        except (httpx.HTTPError, TimeoutError) as error:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ServerUnreachableError(f"{self.url}{path} does not answer ({what})") from error

    # -- metrics -----------------------------------------------------------------------------

    async def _scrape(self, interval_s: float) -> None:
        """Read the metrics at absolute times, as a scraper does."""
        due_s = self._hub.loop.time()
        while True:
            due_s += interval_s
            await asyncio.sleep(due_s - self._hub.loop.time())
            values = await self._read_metrics()
            if values is not None:
                self._hub.emit(MetricsScraped(self.engine, values[0], tuple(values)))

    async def _read_metrics(self) -> list[int] | None:
        timeout_s = self._patience.health.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                metrics = await fetch_metrics(self._client, self.url, timeout_s)
        except (ScrapeError, TimeoutError) as error:
            self.failed_scrapes += 1
            if is_loud(self.failed_scrapes):
                _log.warning(
                    "engine %d: no metrics (%d times so far): %s",
                    self.engine,
                    self.failed_scrapes,
                    error or "timeout",
                )
            return None
        return self._window.columns(metrics, time.monotonic_ns())
