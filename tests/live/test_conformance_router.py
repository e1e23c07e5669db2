"""The same policy decides alike in the simulator and behind the proxy.

A simulated cluster episode is recorded: arrivals, first tokens, ends, pushes, scrapes, failures of
engines. Then the same happenings reach the proxy in the form in which they come in reality (HTTP
requests with token ids, streamed events, UDP datagrams, Prometheus text, broken connections, health
probes), while its clock shows the simulator's time. Every decision and every row of the router's
table must be identical.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import httpx
import numpy as np
import pytest

from synergy_gym.evaluation.runner import trace_window
from synergy_gym.live.proxy.gateway import Engine, Gateway
from synergy_gym.live.proxy.openai_request import session_number
from synergy_gym.live.proxy.proxy import Proxy, ProxyOptions
from synergy_gym.live.router.push import Push, decode, encode
from synergy_gym.live.router.scrape import parse
from synergy_gym.live.router.state import HEARTBEAT_SIZE, PUSH_SIZE, RouterState
from synergy_gym.live.vllm.prompts import Prompts
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import make_engine_policy, make_router_policy, router_policies
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.seats import play_policies
from synergy_gym.seeding import policy_stream
from synergy_gym.sim.build import build_simulator
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.plain.telemetry import first_vector, nanoseconds
from synergy_gym.types import (
    ClientSpec,
    ClusterView,
    CompletionView,
    Event,
    IntArray,
    Outcome,
    RequestView,
    RouterRow,
)
from synergy_gym.workload.base import Workload
from tests.live.test_scrape import exposition

VOCABULARY = 32000


class Kind(IntEnum):
    """Happenings, in the order in which they come when they come at one instant."""

    FIRST_TOKEN = 0
    END = 1
    DOWN = 2
    UP = 3
    SCRAPE = 4
    PUSH = 5
    ROUTE = 6
    REFUSAL = 7
    """The end of a request that its engine refuses at once."""


@dataclass(frozen=True)
class Happening:
    at_ns: int
    kind: Kind
    order: int
    content: Any


class Recorded(RouterPolicy):
    """A policy, and what it was shown and chose."""

    def __init__(self, policy: RouterPolicy) -> None:
        self.policy = policy
        self.information = frozenset(policy.information)
        self.requests: list[RequestView] = []
        self.views: list[ClusterView] = []
        self.choices: list[int] = []
        self.completions: list[CompletionView] = []

    def reset(self, rng: Any, engines: Any, slos: Any) -> None:
        self.policy.reset(rng, engines, slos)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        choice = self.policy.route(request, cluster)
        self.requests.append(request)
        self.views.append(cluster)
        self.choices.append(choice)
        return choice

    def observe(self, completion: CompletionView) -> None:
        self.completions.append(completion)
        self.policy.observe(completion)

    def rows(self, index: int) -> IntArray:
        return self.views[index]._rows


@dataclass
class Recording:
    """One simulated episode as the outside world sees it."""

    scenario: Scenario
    workload: Workload
    policy: Recorded
    told: list[list[int]]
    happenings: list[Happening] = field(default_factory=list)
    routed: list[int] = field(default_factory=list)
    """The request of each decision."""
    ended: list[Outcome] = field(default_factory=list)

    @property
    def session_names(self) -> dict[int, str]:
        """Header of each session's number."""
        return {session_number(name): name for name in map(session_name, range(len(self.workload)))}

    def note(self, at_ns: int, kind: Kind, content: Any) -> None:
        self.happenings.append(Happening(at_ns, kind, len(self.happenings), content))

    def ordered(self) -> list[Happening]:
        return sorted(self.happenings, key=lambda h: (h.at_ns, h.kind, h.order))


class Tape(deque[list[int]]):
    """Sent vectors of one engine, noted as they become visible."""

    def __init__(self, recording: Recording, engine: int, delay_ns: int) -> None:
        super().__init__()
        self._note = lambda v: recording.note(v[0] + delay_ns, Kind.PUSH, (engine, v))

    def popleft(self) -> list[int]:
        vector = super().popleft()
        self._note(vector)
        return vector


def session_name(number: int) -> str:
    return f"session {number}"


def record(
    scenario: Scenario, router: str, engine_policy: str, seed: int, load: float
) -> Recording:
    """Play the episode in the simulator."""
    workload = scenario.workload(load, seed)
    numbers = workload.session.tolist()
    sessions = [session_number(session_name(s)) if s >= 0 else -1 for s in numbers]
    workload = replace(workload, session=np.array(sessions, np.int64))
    scenario = trace_window(scenario, workload)
    engines = [make_engine_policy(engine_policy) for _ in scenario.engines]
    for index, policy in enumerate(engines):
        policy.reset(policy_stream(seed, index), scenario.engines[index], scenario.slos)
    recorded = Recorded(make_router_policy(router))
    rng = policy_stream(seed)
    recorded.reset(rng, scenario.engines, scenario.slos)
    sim = build_simulator(
        scenario,
        seed=seed,
        workload=workload,
        rules=[policy.rule() for policy in engines],
        cls=ReferenceSimulator,
    )
    servers = sim._world.servers
    recording = Recording(scenario, workload, recorded, [list(s.push.told) for s in servers])
    _watch(recording, sim)
    play_policies(sim, engines, recorded, rng)
    for request, view in zip(recording.routed, recorded.views, strict=True):
        recording.note(view.now_ns, Kind.ROUTE, request)
    return recording


def _watch(recording: Recording, sim: ReferenceSimulator) -> None:
    """Note what happens in the simulator, where it happens."""
    world = sim._world
    delay_ns = nanoseconds(recording.scenario.telemetry.push_delay_s)
    for server in world.servers:
        server.push._sent = Tape(recording, server.index, delay_ns)
        _watch_scrapes(recording, server.index, server.scrape)
    report, happen, deliver = world._report_end, world._happen, world.deliver

    def on_end(request: int, outcome: Outcome, engine: int) -> None:
        job = world.table.jobs[request]
        generated = 0 if job is None else job.generated
        if job is not None and job.first_token_ns >= 0:
            recording.note(job.first_token_ns, Kind.FIRST_TOKEN, request)
        kind = Kind.REFUSAL if outcome is Outcome.REJECTED else Kind.END
        recording.note(world.now_ns, kind, (request, outcome, generated))
        recording.ended.append(outcome)
        report(request, outcome, engine)

    def on_event(event: Event) -> None:
        kind = {"down": Kind.DOWN, "up": Kind.UP}[event.kind]
        recording.note(world.now_ns, kind, event.engine)
        happen(event)

    def on_route(request: int, server: Any) -> None:
        recording.routed.append(request)
        deliver(request, server)

    world._report_end, world._happen, world.deliver = on_end, on_event, on_route


def _watch_scrapes(recording: Recording, engine: int, channel: Any) -> None:
    read, sums, count = channel._read, [0, 0, 0], [0]

    def on_read(now_ns: int) -> list[int]:
        for window in channel._window:
            count[0] += 1
            for i, value in enumerate(window):
                sums[i] += value
        values = read(now_ns)
        used, total = values[3:5]
        text = exposition(
            running=values[1],
            waiting=values[2],
            usage=used / total,
            sums=tuple(value / 1e9 for value in sums),
            count=count[0],
            cache=False,
        )
        text += "# TYPE vllm:cache_config_info gauge\n"
        text += f'vllm:cache_config_info{{num_gpu_blocks="{total + 1}"}} 1.0\n'
        recording.note(now_ns, Kind.SCRAPE, (engine, text, values))
        return values

    channel._read = on_read


class Stream(httpx.AsyncByteStream):
    """What an engine streams back: queued bytes, the end (`None`) or a broken connection."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (item := await self.queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


class Engines(httpx.AsyncBaseTransport):
    """The engines' side of the proxy's HTTP client."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.arrived: asyncio.Queue[int] = asyncio.Queue()
        self.streams: dict[int, Stream] = {}
        self.next = -1
        self.refused: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        if name in self.refused:
            raise httpx.ConnectError("refused")
        if request.url.path == "/health":
            return httpx.Response(200)
        stream = self.streams[self.next] = Stream()
        await self.arrived.put(self.names.index(name))
        if await self._is_too_long(stream):
            return httpx.Response(400, stream=httpx.ByteStream(b'{"error": "too long"}'))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=stream)

    async def _is_too_long(self, stream: Stream) -> bool:
        """Wait for what comes first; put it back if it is no refusal."""
        first = await stream.queue.get()
        if first == b"too long":
            return True
        stream.queue.put_nowait(first)
        return False


class Client:
    """One request of a client, straight into the proxy's ASGI application."""

    def __init__(self, app: Any, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.leave = asyncio.Event()
        self.got = asyncio.Queue[bytes]()
        self._body: bytes | None = body
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "query_string": b"",
            "headers": headers,
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message.get("body"):
            self.got.put_nowait(message["body"])


class Replay:
    """Feeds a recording to a proxy whose clock is `now_ns`."""

    def __init__(self, recording: Recording, router: str, seed: int) -> None:
        self.recording = recording
        self.now_ns = 0
        scenario = recording.scenario
        names = [spec.name for spec in scenario.engines]
        self.engines = Engines(names)
        engines = [Engine(f"http://{spec.name}", spec) for spec in scenario.engines]
        self.policy = Recorded(make_router_policy(router))
        self.gateway = Gateway(
            engines,
            self.policy,
            scenario.slos,
            seed=seed,
            clock=lambda: self.now_ns,
        )
        client = httpx.AsyncClient(transport=self.engines, trust_env=False)
        self.proxy = Proxy(self.gateway, ProxyOptions(max_retries=0), client=client)
        self.app = self.proxy.app()
        self.clients: dict[int, Client] = {}
        self.sessions = recording.session_names
        block = scenario.engines[0].block_size
        self.prompts = Prompts(recording.workload, VOCABULARY, block)
        self.pushes = 0

    async def run(self) -> None:
        for engine, spec in enumerate(self.recording.scenario.engines):
            told = self.recording.told[engine]
            self._push(engine, first_vector(spec.kv_blocks, told), 0)
        handlers = {
            Kind.FIRST_TOKEN: self._first_token,
            Kind.END: self._end,
            Kind.REFUSAL: self._end,
            Kind.DOWN: self._down,
            Kind.UP: self._up,
            Kind.SCRAPE: self._scrape,
            Kind.PUSH: self._on_push,
            Kind.ROUTE: self._route,
        }
        for happening in self.recording.ordered():
            self.now_ns = happening.at_ns
            await handlers[happening.kind](happening.content)

    async def _route(self, request: int) -> None:
        workload = self.recording.workload
        length = int(workload.prompt_tokens[request])
        slo = self.recording.scenario.slos[int(workload.slo_class[request])].name
        body = {
            "prompt": self.prompts.tokens(request)[:length],
            "max_tokens": int(workload.output_tokens[request]),
            "stream": True,
            "priority": int(workload.priority[request]),
            "vllm_xargs": {"slo_class": slo},
        }
        headers = [(b"Content-Type", b"application/json")]
        if (session := self._session_name(request)) is not None:
            headers.append((b"X-Session-Id", session.encode()))
        self.engines.next = request
        self.clients[request] = Client(self.app, json.dumps(body).encode(), headers)
        await self.engines.arrived.get()
        index = len(self.policy.choices) - 1
        recorded = self.recording.policy
        assert self.policy.choices[index] == recorded.choices[index], f"decision {index} differs"
        assert (self.policy.rows(index) == recorded.rows(index)).all(), f"table {index} differs"

    def _session_name(self, request: int) -> str | None:
        number = int(self.recording.workload.session[request])
        return None if number < 0 else self.sessions[number]

    async def _first_token(self, request: int) -> None:
        self.engines.streams[request].queue.put_nowait(b'data: {"choices": [{"text": "x"}]}\n\n')
        await self.clients[request].got.get()

    async def _end(self, content: tuple[int, Outcome, int]) -> None:
        request, outcome, generated = content
        client, stream = self.clients[request], self.engines.streams[request]
        usage = json.dumps({"choices": [], "usage": {"completion_tokens": generated}}).encode()
        if generated:  # so that the last token counts at its own time, also before a failure
            stream.queue.put_nowait(b"data: " + usage + b"\n\n")
            await client.got.get()
        if outcome is Outcome.FINISHED:
            stream.queue.put_nowait(b"data: [DONE]\n\n")
            stream.queue.put_nowait(None)
        elif outcome is Outcome.REJECTED:
            stream.queue.put_nowait(b"too long")
        elif outcome is Outcome.ABORTED:
            client.leave.set()
        else:
            stream.queue.put_nowait(httpx.ReadError("the engine died"))
        await client.task

    async def _down(self, engine: int) -> None:
        self.engines.refused.add(self.engines.names[engine])
        await self.proxy.probe(engine)

    async def _up(self, engine: int) -> None:
        self.engines.refused.discard(self.engines.names[engine])
        await self.proxy.probe(engine)

    async def _scrape(self, content: tuple[int, str, list[int]]) -> None:
        engine, text, _ = content
        self.gateway.scraped(engine, parse(text))

    async def _on_push(self, content: tuple[int, list[int]]) -> None:
        engine, vector = content
        self._push(engine, vector, self.now_ns - vector[0])

    def _push(self, engine: int, vector: list[int], age_ns: int) -> None:
        push = Push(self.engines.names[engine], 1, self.pushes, age_ns, tuple(vector))
        self.pushes += 1
        self.gateway.pushed(decode(encode(push)))


def check(router: str, scenario: Scenario, seed: int, *, engine: str, load: float) -> Recording:
    recording = record(scenario, router, engine, seed, load)
    replay = Replay(recording, router, seed)
    asyncio.run(replay.run())
    ours, theirs = replay.policy, recording.policy
    assert ours.choices == theirs.choices
    assert ours.completions == theirs.completions
    for mine, its in zip(ours.requests, theirs.requests, strict=True):
        for name in ("prompt_tokens", "arrival_s", "session", "slo_class", "priority", "attempt"):
            assert getattr(mine, name) == getattr(its, name)
        assert len(mine.block_hashes) == len(its.block_hashes)
    for mine, its in zip(ours.views, theirs.views, strict=True):
        assert (mine.now_ns, mine.session_engine) == (its.now_ns, its.session_engine)
        assert mine.session_age_s == its.session_age_s
    assert not replay.gateway.router.failures
    return recording


def short(horizon_s: float = 2.0, **changes: Any) -> Scenario:
    """Two seconds of three engines, with pushes late and sometimes lost, and frequent scrapes."""
    scenario = load_scenario("smoke-cluster")
    telemetry = replace(
        scenario.telemetry,
        push_interval_s=0.05,
        push_delay_s=0.01,
        push_loss=0.1,
        scrape_interval_s=0.25,
        heartbeat_interval_s=0.1,
    )
    return replace(scenario, horizon_s=horizon_s, warmup_s=0.0, telemetry=telemetry, **changes)


@pytest.mark.parametrize("router", router_policies())
def test_every_router_decides_alike(router: str, seed: int) -> None:
    recording = check(router, short(), seed % 1000, engine="vllm-v1", load=1.5)
    kinds = {happening.kind for happening in recording.happenings}
    assert {Kind.ROUTE, Kind.PUSH, Kind.SCRAPE, Kind.FIRST_TOKEN, Kind.END} <= kinds
    assert len(recording.policy.choices) > 50


@pytest.mark.parametrize("heartbeat", ["idle-only", "overwrite"])
def test_heartbeats_and_models_told_by_engines(seed: int, heartbeat: Any) -> None:
    """Engines that are idle now and then, and a policy that tells what it has learned."""
    scenario = short(4.0)
    scenario = replace(scenario, telemetry=replace(scenario.telemetry, heartbeat=heartbeat))
    recording = check("prism-plus", scenario, seed % 1000, engine="lens-plus", load=0.2)
    vectors = [h.content[1] for h in recording.happenings if h.kind is Kind.PUSH]
    assert {len(vector) for vector in vectors} == {HEARTBEAT_SIZE, PUSH_SIZE}


@pytest.mark.parametrize("router", ["prism-plus", "preble", "session", "prism-ref"])
def test_failures_and_clients_that_give_up(router: str, seed: int) -> None:
    events = (Event(0.7, "down", 1), Event(1.1, "down", 2), Event(1.4, "up", 1))
    scenario = short(events=events, client=ClientSpec(timeout_s=0.8))
    recording = check(router, scenario, seed % 1000, engine="vllm-v1", load=1.5)
    assert {Outcome.FINISHED, Outcome.FAILED, Outcome.ABORTED} <= set(recording.ended)


def test_a_prompt_that_never_fits_is_refused_alike(seed: int) -> None:
    scenario = load_scenario("smoke-cluster")
    engines = tuple(replace(spec, max_model_len=300) for spec in scenario.engines)
    recording = check(
        "least-loaded", short(engines=engines), seed % 1000, engine="vllm-v1", load=1.0
    )
    assert Outcome.REJECTED in recording.ended


def test_a_difference_is_noticed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that keeps counting over a push differs from the simulator."""
    pushed = RouterState.pushed

    def keeps_counting(self: RouterState, engine: int, vector: Any) -> None:
        before = self._rows[engine, RouterRow.ROUTED_SINCE_PUSH]
        pushed(self, engine, vector)
        self._rows[engine, RouterRow.ROUTED_SINCE_PUSH] = before

    monkeypatch.setattr(RouterState, "pushed", keeps_counting)
    with pytest.raises(AssertionError, match="differs"):
        check("prism-plus", short(), seed % 1000, engine="vllm-v1", load=1.5)
