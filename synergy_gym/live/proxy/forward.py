"""One request through the proxy: chosen, sent, streamed back, tried elsewhere if nothing came.

Raw ASGI, because the answer has to start only when the first byte has come, and because a client
that leaves must end the engine's work also before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    MutableMapping,
)
from dataclasses import dataclass, field
from typing import Any

from synergy_gym.live.proxy.gateway import Gateway
from synergy_gym.live.proxy.openai_request import RequestError, RequestFacts, read_request
from synergy_gym.live.proxy.sse import StreamReader, answer_tokens, error_event
from synergy_gym.live.router.policy import NoEngineError
from synergy_gym.types import Outcome

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"trailers",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, section 7.6.1: meant for one connection only."""
ENGINE_HEADER = b"x-synergy-gym-engine"
EVENT_STREAM = "text/event-stream"
DISCONNECT = "http.disconnect"

_NOT_SENT_ON = frozenset({b"host", b"content-length", b"expect", b"accept-encoding"})
_NOT_RETURNED = frozenset({b"content-length"})


@dataclass(frozen=True, slots=True)
class Incoming:
    """A client's request, read to its end."""

    method: str
    target: str
    headers: Headers
    body: bytes
    arrival_ns: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes to the client."""

    send: Send

    async def start(self, status: int, headers: Headers) -> None:
        """Status and headers."""
        await self._say({"type": "http.response.start", "status": status, "headers": headers})

    async def more(self, chunk: bytes) -> None:
        """The next bytes, at once."""
        await self._say({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, chunk: bytes = b"") -> None:
        """The last bytes."""
        await self._say({"type": "http.response.body", "body": chunk, "more_body": False})

    async def _say(self, message: dict[str, Any]) -> None:
        try:
            await self.send(message)
        except OSError as error:  # how servers of ASGI 2.4 say that the client has left
            raise asyncio.CancelledError("the client has left") from error

    async def whole(
        self, status: int, headers: Headers, body: bytes, *, length: int | None = None
    ) -> None:
        """An answer of one piece; `length` is what a HEAD request's body would have."""
        size = len(body) if length is None else length
        sized = [] if status in (204, 304) else [(b"content-length", str(size).encode())]
        await self.start(status, [*headers, *sized])
        await self.end(body)

    async def error(self, status: int, kind: str, message: str) -> None:
        """An error as OpenAI's API writes it."""
        text = {"error": {"message": message, "type": kind, "code": status}}
        headers = [(b"content-type", b"application/json")]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        await self.whole(status, headers, json.dumps(text).encode())


class EngineFailedError(Exception):
    """An engine failed before anything of its answer reached the client.

    Attributes:
        why: for the log and the client.
        refused: nobody listens there.
        counts: whether it speaks against the engine, or perhaps against the request.
        answer: the engine's own error, if it gave one.
    """

    def __init__(
        self,
        why: str,
        *,
        refused: bool = False,
        counts: bool = True,
        answer: tuple[int, Headers, bytes] | None = None,
    ) -> None:
        super().__init__(why)
        self.why = why
        self.refused = refused
        self.counts = counts
        self.answer = answer


@dataclass(slots=True)
class Answer:
    """An engine's answer: all of it, or its first bytes and the rest to come."""

    response: Any
    headers: Headers
    body: bytes
    rest: AsyncIterator[bytes] | None
    """The rest of a stream; `None` when `body` is everything."""


@dataclass(eq=False)
class Forwarder:
    """Sends requests to engines through one HTTP client.

    Args:
        gateway: decides and keeps the books.
        client: an `httpx.AsyncClient`.
        max_retries: further engines that a request may try before its first byte.
    """

    gateway: Gateway
    client: Any
    max_retries: int = 2
    _waiting: list[set[asyncio.Future[None]]] = field(init=False)

    def __post_init__(self) -> None:
        """Requests without an answer leave an engine that goes down."""
        self._waiting = [set() for _ in self.gateway.engines]
        self.gateway.on_down = self._leave

    async def completion(self, scope: Any, receive: Receive, send: Send) -> None:
        """ASGI endpoint of the paths that the policy routes."""
        incoming = await self._read(scope, receive)
        if incoming is None:
            return
        reply, gateway = Reply(send), self.gateway
        names = {k.decode("latin-1"): v.decode("latin-1") for k, v in incoming.headers}
        try:
            facts = read_request(incoming.body, names, gateway.slos, gateway.block_size)
        except RequestError as error:
            await reply.error(400, "invalid_request_error", str(error))
            return
        await while_connected(receive, self._serve(incoming, facts, reply))

    async def other(self, scope: Any, receive: Receive, send: Send) -> None:
        """ASGI endpoint of every other path: any engine that is up serves it."""
        incoming = await self._read(scope, receive)
        if incoming is not None:
            await while_connected(receive, self._pass(incoming, Reply(send)))

    async def _read(self, scope: Any, receive: Receive) -> Incoming | None:
        """The whole request; `None` if its client leaves before its end."""
        arrival_ns = self.gateway.now_ns()
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == DISCONNECT:
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        path = (scope.get("raw_path") or scope["path"].encode()).split(b"?")[0]
        query = scope.get("query_string", b"")
        target = (path + (b"?" + query if query else b"")).decode("latin-1")
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        return Incoming(scope["method"], target, headers, b"".join(parts), arrival_ns)

    async def _serve(self, incoming: Incoming, facts: RequestFacts, reply: Reply) -> None:
        """Try engines until one answers; the client hears of the last failure only."""
        gateway = self.gateway
        tried: list[int] = []
        failure: EngineFailedError | None = None
        request = gateway.arrived(facts)
        while len(tried) <= self.max_retries:
            try:
                engine = gateway.route(request, facts, incoming.arrival_ns, tried)
            except NoEngineError:
                break
            try:
                await self._attempt(request, engine, incoming, reply)
                return
            except EngineFailedError as error:
                failure = error
                tried.append(engine)
                gateway.metrics.count("failed_attempts", engine)
        await self._report(reply, failure)

    async def _attempt(self, request: int, engine: int, incoming: Incoming, reply: Reply) -> None:
        """One engine; raises `EngineFailedError` while another one can still serve the client."""
        outcome, reader = Outcome.FAILED, StreamReader()
        try:
            answer = await self._open(engine, incoming)
            async with contextlib.aclosing(answer.response):
                outcome = await self._relay(request, engine, answer, reader, reply)
        except asyncio.CancelledError:  # the client left; some do once they have read `[DONE]`
            if outcome is Outcome.FAILED:
                outcome = Outcome.FINISHED if reader.finished else Outcome.ABORTED
            raise
        finally:
            self.gateway.ended(request, engine, outcome, reader.tokens)

    async def _open(self, engine: int, incoming: Incoming) -> Answer:
        """Send the request and wait for the answer's first bytes (all of it if no stream)."""
        try:
            return await self._unless_lost(engine, self._ask(engine, incoming))
        except EngineFailedError as error:
            now_ns = self.gateway.now_ns()
            self.gateway.health.failed(
                engine, now_ns, error.why, refused=error.refused, counts=error.counts
            )
            raise

    async def _unless_lost(self, engine: int, work: Coroutine[Any, Any, Answer]) -> Answer:
        """The result of `work`, unless the engine goes down first."""
        task = asyncio.create_task(work)
        task.add_done_callback(_retrieve)
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[engine].add(lost)
        first: set[asyncio.Future[Any]] = {task, lost}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise EngineFailedError("went down before it answered", counts=False)
        except BaseException:
            if not task.cancel() and not task.cancelled() and task.exception() is None:
                await task.result().response.aclose()  # it came while the client left
            raise
        finally:
            self._waiting[engine].discard(lost)

    async def _ask(self, engine: int, incoming: Incoming) -> Answer:
        import httpx

        try:
            response = await self.client.send(self._build(engine, incoming), stream=True)
            try:
                return await _read_answer(response)
            except BaseException:
                await response.aclose()
                raise
        except httpx.TransportError as error:
            why = f"{type(error).__name__} before the first byte: {error}"
            refused = isinstance(error, httpx.ConnectError)
            raise EngineFailedError(why, refused=refused) from error

    def _build(self, engine: int, incoming: Incoming) -> Any:
        url = self.gateway.engines[engine].url.rstrip("/") + incoming.target
        headers = [*end_to_end(incoming.headers, _NOT_SENT_ON), (b"accept-encoding", b"identity")]
        return self.client.build_request(
            incoming.method, url, headers=headers, content=incoming.body or None
        )

    async def _relay(
        self, request: int, engine: int, answer: Answer, reader: StreamReader, reply: Reply
    ) -> Outcome:
        """Hand the answer on as it comes; returns what became of the attempt."""
        status, health = answer.response.status_code, self.gateway.health
        headers = [*answer.headers, self._mark(engine)]
        if answer.rest is None:
            reader.tokens = answer_tokens(answer.body)
            if reader.tokens:
                self.gateway.state.emitted(request, self.gateway.now_ns(), reader.tokens)
            health.served(engine)
            await reply.whole(status, headers, answer.body)
            return Outcome.FINISHED if status < 400 else Outcome.REJECTED
        self._count(request, reader, answer.body)
        await reply.start(status, headers)
        await reply.more(answer.body)
        why = await self._stream(request, answer.rest, reader, reply)
        if not why:
            health.served(engine)
            await reply.end()
            return Outcome.FINISHED
        health.failed(engine, self.gateway.now_ns(), why, counts=not reader.error)
        name = self.gateway.engines[engine].spec.name
        told = b"" if reader.error else error_event(f"engine {name} {why}", "engine_failed")
        await reply.end(told)
        return Outcome.FAILED

    async def _stream(
        self, request: int, rest: AsyncIterator[bytes], reader: StreamReader, reply: Reply
    ) -> str:
        """Pass chunks on; returns why the stream is broken, or an empty text."""
        import httpx

        try:
            async for chunk in rest:
                self._count(request, reader, chunk)
                await reply.more(chunk)
        except httpx.TransportError as error:
            if not reader.finished:
                return f"broke its stream: {type(error).__name__}: {error}"
        if reader.error:
            return f"reported an error: {reader.error}"
        return "" if reader.finished else "ended its stream without [DONE]"

    def _count(self, request: int, reader: StreamReader, chunk: bytes) -> None:
        before = reader.tokens
        reader.feed(chunk)
        if reader.tokens > before:
            self.gateway.state.emitted(request, self.gateway.now_ns(), reader.tokens - before)

    async def _pass(self, incoming: Incoming, reply: Reply) -> None:
        """A request that no policy is asked about; engines in turn."""
        failure: EngineFailedError | None = None
        for _ in range(1 + self.max_retries):
            try:
                engine = self.gateway.router.round_robin()
            except NoEngineError:
                break
            self.gateway.metrics.count("other_requests", engine)
            try:
                answer = await self._open(engine, incoming)
            except EngineFailedError as error:
                failure = error
                if error.refused or incoming.method in ("GET", "HEAD"):
                    continue
                break
            await self._hand_on(answer, engine, incoming, reply)
            return
        await self._report(reply, failure)

    async def _hand_on(self, answer: Answer, engine: int, incoming: Incoming, reply: Reply) -> None:
        status, headers = answer.response.status_code, [*answer.headers, self._mark(engine)]
        async with contextlib.aclosing(answer.response):
            if answer.rest is None:
                length = answer.response.headers.get("content-length")
                sized = int(length) if incoming.method == "HEAD" and length else None
                await reply.whole(status, headers, answer.body, length=sized)
                return
            await reply.start(status, headers)
            await reply.more(answer.body)
            async for chunk in answer.rest:
                await reply.more(chunk)
            await reply.end()

    async def _report(self, reply: Reply, failure: EngineFailedError | None) -> None:
        """Tell the client that nobody served it."""
        if failure is not None and failure.answer is not None:
            await reply.whole(*failure.answer)
        elif failure is None or not self.gateway.state.alive.any():
            count = len(self.gateway.engines)
            last = f" (the last one: {failure.why})" if failure else ""
            text = f"none of the {count} engines is up{last}; try again later"
            await reply.error(503, "no_engine", text)
        else:
            text = f"no engine served the request; the last one tried: {failure.why}"
            await reply.error(502, "engine_failed", text)

    def _mark(self, engine: int) -> tuple[bytes, bytes]:
        return ENGINE_HEADER, self.gateway.engines[engine].spec.name.encode()

    def _leave(self, engine: int) -> None:
        """Requests that still wait for an answer of an engine that went down go elsewhere."""
        for lost in self._waiting[engine]:
            if not lost.done():
                lost.set_result(None)


def _retrieve(task: asyncio.Task[Answer]) -> None:
    """Nobody else asks how a request ended whose engine went down or whose client left."""
    if not task.cancelled():
        task.exception()


async def _read_answer(response: Any) -> Answer:
    chunks = response.aiter_raw()
    headers = end_to_end(response.headers.raw, _NOT_RETURNED)
    status = response.status_code
    is_stream = response.headers.get("content-type", "").startswith(EVENT_STREAM)
    if is_stream and status < 500:
        first = await anext(chunks, b"")
        if not first:
            raise EngineFailedError("closed its stream before the first byte")
        return Answer(response, headers, first, chunks)
    body = b"".join([chunk async for chunk in chunks])
    if status >= 500:
        raise EngineFailedError(
            f"answered {status}", counts=status != 500, answer=(status, headers, body)
        )
    return Answer(response, headers, body, None)


def end_to_end(headers: Iterable[tuple[bytes, bytes]], also: frozenset[bytes]) -> Headers:
    """Headers that go on: not those of the connection, what `Connection` names, or `also`."""
    known = [(name.lower(), value) for name, value in headers]
    named = {
        part.strip().lower()
        for name, value in known
        if name == b"connection"
        for part in value.split(b",")
    }
    dropped = HOP_BY_HOP | named | also
    return [(name, value) for name, value in known if name not in dropped]


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work` unless the client leaves; then it is cancelled."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for unfinished in (task, gone):
            unfinished.cancel()
        await asyncio.wait({task, gone})
    if not task.cancelled():
        task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != DISCONNECT:
        pass
