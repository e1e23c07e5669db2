"""A small server with the API of vLLM's, on a port of its own, that fails as it is told.

It speaks HTTP/1.1 by hand, because a framework would not let it close a stream half-way or accept
a connection without ever answering. Every connection serves one request.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

BLOCK_SIZE = 16


@dataclass
class Behaviour:
    """How the server answers; may be changed while it runs.

    Attributes:
        mode: of completions: "ok"; "error" (status `status`); "silent" (never an answer); "stall"
            (stops after `tokens_before` tokens and keeps the connection); "cut" (closes the
            connection after them); "error-in-stream" (an error event after them); "garbage".
        health: of `/health`: "ok", "error" or "silent".
        metrics: of `/metrics`: "ok", "missing" (404), "garbage" or "silent".
        first_token_s: time to the first token.
        token_s: time between tokens.
    """

    mode: str = "ok"
    status: int = 503
    tokens_before: int = 2
    health: str = "ok"
    metrics: str = "ok"
    first_token_s: float = 0.005
    token_s: float = 0.002
    max_model_len: int = 1024
    owned_by: str = "vllm"
    token_ids: bool = True
    """Whether `token_ids` are sent with the text."""


@dataclass
class Served:
    """One completion that was asked for."""

    body: dict[str, Any]
    tokens: int = 0
    finished: bool = False
    dropped: bool = False
    """The client closed the connection before the end."""


class FakeServer:
    """The server, in a thread of its own; use it as a context manager."""

    def __init__(self, **behaviour: Any) -> None:
        self.behaviour = Behaviour(**behaviour)
        self.served: list[Served] = []
        self.paths: list[str] = []
        self.port = 0
        self.finished: list[float] = []
        self._running: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._routes: dict[str, Callable[..., Awaitable[None]]] = {
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._completions,
            "/health": self._health,
            "/metrics": self._metrics,
            "/v1/models": self._models,
        }
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_streams(self) -> int:
        return sum(not (s.finished or s.dropped) for s in self.served)

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def start(self) -> None:
        """Listen; on the same port as before if it was stopped."""
        self._do(self._start())

    def stop(self) -> None:
        """Die: all connections break, and new ones are refused."""
        self._do(self._stop())

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, reuse_address=True, backlog=256
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = head[0].split(" ")[1]
            length = next(
                (int(h.split(":")[1]) for h in head if h.lower().startswith("content-length")), 0
            )
            body = json.loads(await reader.readexactly(length)) if length else {}
            self.paths.append(path)
            await self._routes.get(path, self._missing)(reader, writer, body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _health(self, reader: Any, writer: asyncio.StreamWriter, body: Any) -> None:
        if self.behaviour.health == "silent":
            await asyncio.Event().wait()
        _answer(writer, 200 if self.behaviour.health == "ok" else 503, "")

    async def _models(self, reader: Any, writer: asyncio.StreamWriter, body: Any) -> None:
        model = {"id": "fake", "object": "model", "max_model_len": self.behaviour.max_model_len}
        model |= {"owned_by": self.behaviour.owned_by}
        _answer(writer, 200, json.dumps({"object": "list", "data": [model]}))

    async def _missing(self, reader: Any, writer: asyncio.StreamWriter, body: Any) -> None:
        _answer(writer, 404, json.dumps({"error": "no such path"}))

    async def _metrics(self, reader: Any, writer: asyncio.StreamWriter, body: Any) -> None:
        if self.behaviour.metrics == "silent":
            await asyncio.Event().wait()
        if self.behaviour.metrics == "missing":
            await self._missing(reader, writer, body)
        else:
            ok = self.behaviour.metrics == "ok"
            _answer(writer, 200, self.metrics_text() if ok else "{{{ no metrics", "text/plain")

    def metrics_text(self) -> str:
        """What `/metrics` answers; latencies are the behaviour's own."""
        done = len(self.finished)
        labels = '{engine="0",model_name="fake"}'
        lines = []
        for name, kind, value in (
            ("num_requests_running", "gauge", len(self._running)),
            ("num_requests_waiting", "gauge", 0),
            ("kv_cache_usage_perc", "gauge", min(len(self._running) / 32, 1.0)),
        ):
            lines += [f"# HELP vllm:{name} .", f"# TYPE vllm:{name} {kind}"]
            lines.append(f"vllm:{name}{labels} {value}")
        name = "vllm:request_success_total"
        lines += [f"# HELP {name} .", f"# TYPE {name} counter", f"{name}{labels} {done}"]
        for name, seconds in (
            ("time_to_first_token_seconds", self.behaviour.first_token_s),
            ("request_time_per_output_token_seconds", self.behaviour.token_s),
            ("e2e_request_latency_seconds", sum(self.finished) / max(done, 1)),
        ):
            lines += [f"# HELP vllm:{name} .", f"# TYPE vllm:{name} histogram"]
            lines.append(f'vllm:{name}_bucket{{engine="0",le="+Inf",model_name="fake"}} {done}')
            lines.append(f"vllm:{name}_count{labels} {done}")
            lines.append(f"vllm:{name}_sum{labels} {seconds * done}")
        return "\n".join(lines) + "\n"

    async def _completions(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Any
    ) -> None:
        now = replace(self.behaviour)  # a stream ends as it began
        served = Served(body)
        self.served.append(served)
        if now.mode == "silent":
            await self._until_dropped(reader, served)
        elif now.mode == "error":
            served.finished = True
            _answer(writer, now.status, json.dumps({"error": {"message": "out of order"}}))
        elif len(body.get("prompt", "")) >= now.max_model_len:
            served.finished = True
            _answer(writer, 400, json.dumps({"error": {"message": "the prompt is too long"}}))
        else:
            self._running.add(id(served))
            try:
                await self._streams(reader, writer, served, now)
            finally:
                self._running.discard(id(served))

    async def _until_dropped(self, reader: asyncio.StreamReader, served: Served) -> None:
        await reader.read()
        served.dropped = True

    async def _streams(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        served: Served,
        now: Behaviour,
    ) -> None:
        began = time.monotonic()
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
        writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        wanted, chat = int(served.body.get("max_tokens") or 16), "messages" in served.body
        for number in range(wanted):
            if now.mode != "ok" and number == now.tokens_before:
                await self._misbehave(reader, writer, served, now.mode)
                return
            await asyncio.sleep(now.token_s if number else now.first_token_s)
            if reader.at_eof() or writer.is_closing():
                served.dropped = True
                return
            last = number == wanted - 1
            _event(writer, _token(number, last, chat=chat, with_ids=now.token_ids))
            await writer.drain()
            served.tokens += 1
        usage = {"completion_tokens": wanted, "prompt_tokens": len(served.body.get("prompt", ""))}
        _event(writer, {"object": "text_completion", "choices": [], "usage": usage})
        _chunk(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        served.finished = True
        self.finished.append(time.monotonic() - began)

    async def _misbehave(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, served: Served, mode: str
    ) -> None:
        if mode == "stall":
            await writer.drain()
            await self._until_dropped(reader, served)
        elif mode == "cut":
            served.finished = True
            await writer.drain()
            writer.transport.abort()
        elif mode == "error-in-stream":
            served.finished = True
            _event(writer, {"error": {"message": "the engine died", "code": 500}})
            writer.write(b"0\r\n\r\n")
        else:
            served.finished = True
            _chunk(writer, "data: <<garbage>>\n\n")
            writer.write(b"0\r\n\r\n")


def _token(number: int, last: bool, *, chat: bool, with_ids: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if last else None}
    choice |= {"delta": {"content": f"w{number} "}} if chat else {"text": f"w{number} "}
    if with_ids:
        choice["token_ids"] = [number + 4]
    return {"object": "chat.completion.chunk" if chat else "text_completion", "choices": [choice]}


def _event(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    _chunk(writer, f"data: {json.dumps(content)}\n\n")


def _chunk(writer: asyncio.StreamWriter, text: str) -> None:
    data = text.encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _answer(
    writer: asyncio.StreamWriter, status: int, text: str, kind: str = "application/json"
) -> None:
    data = text.encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n"
    writer.write(f"{head}connection: close\r\n\r\n".encode() + data)


@dataclass
class Fleet:
    """Several fake servers; use it as a context manager."""

    count: int
    behaviour: dict[str, Any] = field(default_factory=dict)
    servers: list[FakeServer] = field(default_factory=list)

    def __enter__(self) -> list[FakeServer]:
        for _ in range(self.count):
            self.servers.append(FakeServer(**self.behaviour).__enter__())
        return self.servers

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.__exit__()
