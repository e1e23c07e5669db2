"""A streaming reverse proxy in front of vLLM servers that any router policy steers.

`/v1/completions` and `/v1/chat/completions` go where the policy says; `/metrics` and `/health` are
the proxy's own; every other path goes to any engine that is up. Bytes of a stream are passed on as
they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from synergy_gym.live.proxy.forward import Forwarder
from synergy_gym.live.proxy.gateway import Gateway
from synergy_gym.live.router.push import PushInbox
from synergy_gym.live.router.scrape import ScrapeError, fetch_metrics
from synergy_gym.types import NS_PER_S

ROUTED_PATHS = ("/v1/completions", "/v1/chat/completions")
PROBE_PAUSE_S = 0.1
BACKLOG = 2048

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """How the proxy treats engines and clients.

    Attributes:
        timeout_s: longest silence of an engine, before its first byte and between two.
        connect_timeout_s: longest time to connect to an engine.
        max_retries: further engines that a request may try before its first byte.
        scrape_interval_s: between two readings of an engine's `/metrics`; 0: never.
        drain_s: on SIGTERM, open requests get this long to end.
    """

    timeout_s: float = 300.0
    connect_timeout_s: float = 5.0
    max_retries: int = 2
    scrape_interval_s: float = 10.0
    drain_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what cannot be waited for."""
        for name in ("timeout_s", "connect_timeout_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give seconds above 0")
        if self.max_retries < 0 or not self.scrape_interval_s >= 0:
            raise ValueError(
                f"max_retries {self.max_retries} and scrape_interval_s {self.scrape_interval_s} "
                "cannot be negative; give 0 or more"
            )


def engine_client(options: ProxyOptions) -> Any:
    """An `httpx.AsyncClient` for engines: no limit on connections, no redirects, no other proxy."""
    import httpx

    patience = httpx.Timeout(
        options.timeout_s, connect=options.connect_timeout_s, pool=None, write=options.timeout_s
    )
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    return httpx.AsyncClient(timeout=patience, limits=limits, trust_env=False)


@dataclass(eq=False)
class Proxy:
    """The application and its work in the background.

    Args:
        gateway: decides and keeps the books.
        options: timeouts, retries, scrapes.
        inbox: where engines push their state; `None`: nowhere.
        client: an `httpx.AsyncClient` for the engines; a new one by default.
    """

    gateway: Gateway
    options: ProxyOptions = field(default_factory=ProxyOptions)
    inbox: PushInbox | None = None
    client: Any = None
    forwarder: Forwarder = field(init=False)

    def __post_init__(self) -> None:
        """Make what needs no running loop."""
        self.client = engine_client(self.options) if self.client is None else self.client
        self.forwarder = Forwarder(self.gateway, self.client, self.options.max_retries)

    def app(self) -> Any:
        """The Starlette application."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        routed, other = Endpoint(self.forwarder.completion), Endpoint(self.forwarder.other)
        return Starlette(
            routes=[
                *(Route(path, routed, methods=["POST"]) for path in ROUTED_PATHS),
                Route("/metrics", self._metrics),
                Route("/health", self._health),
                Route("/{path:path}", other),
            ],
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        await asyncio.gather(*(self.probe(i) for i in self.gateway.health.due(self._now_ns())))
        tasks = [asyncio.create_task(work) for work in self._background()]
        loop = asyncio.get_running_loop()
        if self.inbox is not None:
            loop.add_reader(self.inbox.fileno(), self.receive_pushes)
        try:
            yield
        finally:
            if self.inbox is not None:
                loop.remove_reader(self.inbox.fileno())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.client.aclose()

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        engines = range(len(self.gateway.engines))
        scraped = engines if self.options.scrape_interval_s > 0 else []
        return [self._keep_probing(), *(self._keep_scraping(i) for i in scraped)]

    def receive_pushes(self) -> None:
        """Take every state vector that has arrived."""
        assert self.inbox is not None
        for push in self.inbox.drain():
            self.gateway.pushed(push)

    async def probe(self, engine: int) -> None:
        """Ask an engine's `/health` and note the answer."""
        import httpx

        health, url = self.gateway.health, self.gateway.engines[engine].url.rstrip("/")
        try:
            answer = await self.client.get(f"{url}/health", timeout=health.spec.timeout_s)
        except httpx.TransportError as error:
            why = f"its health probe failed: {type(error).__name__}: {error}"
            refused = isinstance(error, httpx.ConnectError)
            health.failed(engine, self._now_ns(), why, probe=True, refused=refused)
            return
        if answer.status_code == 200:
            health.probed(engine, self._now_ns())
        else:
            why = f"its health probe was answered with {answer.status_code}"
            health.failed(engine, self._now_ns(), why, probe=True)

    async def scrape(self, engine: int) -> bool:
        """Read an engine's metrics; returns whether that worked (else it is counted)."""
        url = self.gateway.engines[engine].url
        try:
            metrics = await fetch_metrics(self.client, url, self.gateway.health.spec.timeout_s)
        except ScrapeError as error:
            self.gateway.metrics.count("scrape_failures", engine)
            _log.debug("%s", error)
            return False
        self.gateway.scraped(engine, metrics)
        return True

    async def _keep_probing(self) -> None:
        probes: set[asyncio.Task[None]] = set()
        while True:
            for engine in self.gateway.health.due(self._now_ns()):
                task = asyncio.create_task(self.probe(engine))
                probes.add(task)
                task.add_done_callback(probes.discard)
            await asyncio.sleep(PROBE_PAUSE_S)

    async def _keep_scraping(self, engine: int) -> None:
        """At fixed instants, as the simulator does; a failure is told when it begins."""
        interval_ns = round(self.options.scrape_interval_s * NS_PER_S)
        worked = True
        while True:
            now_ns = self._now_ns()
            await asyncio.sleep((interval_ns - now_ns % interval_ns) / NS_PER_S)
            works = await self.scrape(engine)
            if works != worked:
                name = self.gateway.engines[engine].spec.name
                state = "can be read again" if works else "cannot be read"
                _log.warning("metrics of engine %s %s", name, state)
            worked = works

    async def _metrics(self, request: Any) -> Any:
        from starlette.responses import Response

        text, kind = self.gateway.exposition(self.inbox)
        return Response(text, headers={"content-type": kind})

    async def _health(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        alive = self.gateway.state.alive.tolist()
        names = [engine.spec.name for engine in self.gateway.engines]
        up = dict(zip(names, alive, strict=True))
        return JSONResponse({"engines_up": up}, status_code=200 if any(alive) else 503)

    def _now_ns(self) -> int:
        return self.gateway.now_ns()


@dataclass(frozen=True)
class Endpoint:
    """Makes Starlette hand a request over as raw ASGI."""

    handle: Callable[..., Awaitable[None]]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        await self.handle(scope, receive, send)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        OSError: the address is taken; the message says what to do.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio turns Nagle's algorithm off only where the protocol is spelled out; left on, it
        # holds small chunks back for 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error}); choose another --port") from error
    return listener


def run_proxy(
    proxy: Proxy, listener: socket.socket, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or SIGINT; then open requests are served to their end (`drain_s`).

    A second signal ends them at once. `on_ready` is called when requests are served.
    """
    asyncio.run(serve(proxy, listener, with_signals=True, on_ready=on_ready))


async def serve(
    proxy: Proxy,
    listener: socket.socket,
    *,
    with_signals: bool = False,
    stop: asyncio.Event | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until told to stop.

    Args:
        proxy: what to serve.
        listener: a listening socket, closed at the end.
        with_signals: SIGTERM and SIGINT stop it (in the main thread only).
        stop: stops it when set.
        on_ready: called when requests are served.
    """
    import uvicorn

    config = uvicorn.Config(
        proxy.app(),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="on",
        timeout_graceful_shutdown=max(round(proxy.options.drain_s), 1),
    )

    class Server(uvicorn.Server):
        # uvicorn would raise the signal again after draining, and the exit code would be its.
        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            on_ready()

    server = Server(config)
    loop = asyncio.get_running_loop()

    def leave() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    if with_signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leave)
    waiting = None if stop is None else asyncio.create_task(_stop_when(stop, server))
    try:
        await server.serve([listener])
    finally:
        if waiting is not None:
            waiting.cancel()
        if proxy.inbox is not None:
            proxy.inbox.close()


async def _stop_when(stop: asyncio.Event, server: Any) -> None:
    await stop.wait()
    server.should_exit = True
