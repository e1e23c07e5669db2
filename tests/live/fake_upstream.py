"""Engines and proxies for tests of the routing proxy, each served by uvicorn in a thread."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from synergy_gym.live.proxy.gateway import Engine, Gateway
from synergy_gym.live.proxy.proxy import Proxy, ProxyOptions, listen, serve
from synergy_gym.live.router.health import HealthSpec
from synergy_gym.live.router.push import PushInbox
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.types import SLO, ClusterView, CompletionView, EngineSpec, RequestView

PATIENCE_S = 120.0
QUICK = HealthSpec(interval_s=0.2, first_backoff_s=0.05, last_backoff_s=0.2, timeout_s=10.0)


def wait_until(condition: Callable[[], Any]) -> None:
    """Return when `condition` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "this never happened"
        time.sleep(0.01)


@dataclass
class Seen:
    """A request as an engine got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes


class LoopThread:
    """A thread with an event loop that runs one server until told to stop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._stop: asyncio.Event | None = None
        self._future: Any = None

    def ask(self, work: Any) -> Any:
        """The result of a coroutine."""
        if not self._thread.is_alive():
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def start(self, make: Any) -> None:
        """Run `make(stop)`, which serves until `stop` is set."""
        if not self._thread.is_alive():
            self._thread.start()
        self._stop = asyncio.Event()
        self._future = asyncio.run_coroutine_threadsafe(make(self._stop), self.loop)

    def close(self) -> None:
        assert self._stop is not None
        self.loop.call_soon_threadsafe(self._stop.set)
        try:
            self._future.result(PATIENCE_S)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(PATIENCE_S)
            self.loop.close()


class Upstream:
    """An engine that answers completely and records what it was asked.

    A streamed answer sends its first event, waits for `gate` and sends the rest.
    """

    def __init__(self, name: str = "up") -> None:
        self.name = name
        self.seen: list[Seen] = []
        self.gate = threading.Event()
        self.gate.set()
        self.sent_all = threading.Event()
        self._thread = LoopThread()
        self._listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Upstream:
        self._thread.start(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._thread.close()

    async def _serve(self, stop: asyncio.Event) -> None:
        routes = [
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/health", lambda request: Response()),
            Route("/echo/{rest:path}", self._echo, methods=["GET", "POST", "PUT", "DELETE"]),
            Route("/head", lambda request: PlainTextResponse("12345")),
        ]
        app = Starlette(routes=routes)
        config = uvicorn.Config(app, log_config=None, lifespan="off", server_header=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([self._listener]))
        await stop.wait()
        server.should_exit = True
        await serving

    async def _note(self, request: Request) -> dict[str, Any]:
        body = await request.body()
        query = f"?{request.url.query}" if request.url.query else ""
        headers = [(k.decode(), v.decode()) for k, v in request.scope["headers"]]
        self.seen.append(Seen(request.method, request.url.path + query, headers, body))
        return dict(json.loads(body)) if body else {}

    async def _complete(self, request: Request) -> Response:
        body = await self._note(request)
        headers = {"x-custom": "kept", "connection": "keep-alive, x-private", "x-private": "hop"}
        if body.get("max_tokens") == 0:
            return JSONResponse({"error": {"message": "max_tokens must be positive"}}, 400)
        if body.get("stream"):
            chunks = self._events(int(body.get("max_tokens", 4)))
            return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
        usage = {"completion_tokens": body.get("max_tokens", 4), "prompt_tokens": 3}
        answer = {"choices": [{"text": "all"}], "usage": usage}
        return JSONResponse(answer, headers=headers)

    async def _events(self, tokens: int) -> AsyncIterator[bytes]:
        for number in range(tokens):
            if number == 1:
                await asyncio.to_thread(self.gate.wait, PATIENCE_S)
            yield b'data: {"choices": [{"text": "t%d"}]}\n\n' % number
        self.sent_all.set()
        yield b"data: [DONE]\n\n"

    async def _models(self, request: Request) -> Response:
        await self._note(request)
        return JSONResponse({"data": [{"id": self.name, "max_model_len": 2048}]})

    async def _echo(self, request: Request) -> Response:
        await self._note(request)
        return PlainTextResponse(self.name, 418, headers={"x-custom": "kept"})


def spec(name: str, block_size: int = 16) -> EngineSpec:
    return EngineSpec(name, "gpu", "model", "", 32, 512, 1024, 256, block_size)


@dataclass
class Pinned(RouterPolicy):
    """Takes the first engine of `order` that is up; records everything that it is shown."""

    order: tuple[int, ...] = (0,)
    requests: list[RequestView] = field(default_factory=list, init=False)
    views: list[ClusterView] = field(default_factory=list, init=False)
    completions: list[CompletionView] = field(default_factory=list, init=False)
    information = frozenset({"router", "pushed", "scraped"})

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        self.requests.append(request)
        self.views.append(cluster)
        return next(engine for engine in self.order if cluster.alive[engine])

    def observe(self, completion: CompletionView) -> None:
        self.completions.append(completion)


class ProxyThread:
    """A proxy in front of `urls`, served in a thread; use it as a context manager.

    Engines are called a, b, c ...
    """

    def __init__(
        self,
        urls: Sequence[str],
        policy: RouterPolicy | None = None,
        *,
        slos: tuple[SLO, ...] = (SLO("default", ttft_s=1.0), SLO("other")),
        health: HealthSpec = QUICK,
        pushes: bool = False,
        **options: Any,
    ) -> None:
        engines = [Engine(url, spec("abcdefgh"[i])) for i, url in enumerate(urls)]
        chosen = Pinned(tuple(range(len(urls)))) if policy is None else policy
        self.gateway = Gateway(engines, chosen, slos, health=health)
        self.inbox = PushInbox() if pushes else None
        settings = replace(ProxyOptions(scrape_interval_s=0.0, drain_s=5.0), **options)
        self.proxy = Proxy(self.gateway, settings, self.inbox)
        self._listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = LoopThread()

    def __enter__(self) -> ProxyThread:
        self._thread.start(lambda stop: serve(self.proxy, self._listener, stop=stop))
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.close()
