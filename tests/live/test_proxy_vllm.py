"""The routing proxy in front of two real vLLM servers that push their state."""

from __future__ import annotations

import concurrent.futures
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from synergy_gym.live.proxy.discover import Limits, discover
from synergy_gym.live.proxy.gateway import Gateway
from synergy_gym.live.proxy.proxy import Proxy, ProxyOptions, listen, serve
from synergy_gym.live.router.health import HealthSpec
from synergy_gym.live.router.push import PushInbox
from synergy_gym.live.vllm.servers import running_servers, server_spec
from synergy_gym.live.vllm.settings import HostSettings
from synergy_gym.policies.registry import make_router_policy
from synergy_gym.types import SLO, RouterRow
from tests.live.fake_upstream import LoopThread, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SLOS = (SLO("default", ttft_s=1.0, tpot_s=0.05),)
PATIENCE_S = 120.0
PATIENT = HealthSpec(interval_s=0.5, timeout_s=20.0)
"""A busy machine answers probes late; a killed server refuses them at once."""


def stream(url: str, number: int, tokens: int) -> tuple[str, list[Any]]:
    """The engine that served a request, and the events that came."""
    body = {
        "model": "tiny",
        "prompt": [4 + (number * 31 + i) % 900 for i in range(40)],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"x-session-id": f"s{number % 3}"}
    with httpx.Client(timeout=PATIENCE_S, trust_env=False) as client:
        answer = client.post(f"{url}/v1/completions", json=body, headers=headers)
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return answer.headers.get("x-synergy-gym-engine", ""), [json.loads(line) for line in lines]


def test_prism_plus_in_front_of_two_servers(vllm: Any, tmp_path: Path) -> None:
    inbox = PushInbox()
    specs = [
        server_spec("tiny", HostSettings(policy="lens-plus", engine=name, push=inbox.url))
        for name in "ab"
    ]
    with running_servers(specs, tmp_path, timeout_s=500.0) as servers:
        named = [(name, server.url) for name, server in zip("ab", servers, strict=True)]
        thread = LoopThread()
        found = thread.ask(discover(named, Limits(32, 512), [1.0, 1.0]))
        spec = found[0].spec
        assert (spec.max_model_len, spec.kv_blocks, spec.block_size) == (1024, 256, 32)
        policy = make_router_policy("prism-plus")
        gateway = Gateway(found, policy, SLOS, health=PATIENT)
        proxy = Proxy(gateway, ProxyOptions(scrape_interval_s=0.5, drain_s=5.0), inbox)
        listener = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.start(lambda stop: serve(proxy, listener, stop=stop))
        try:
            _serve_and_kill(url, gateway, servers)
        finally:
            thread.close()


def _serve_and_kill(url: str, gateway: Gateway, servers: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: stream(url, n, 24), range(40)))
    assert [events[-1]["usage"]["completion_tokens"] for _, events in answers] == [24] * 40
    rows = gateway.state.rows()
    assert not rows[:, [RouterRow.IN_FLIGHT, RouterRow.IN_FLIGHT_TOKENS]].any()
    served = sorted({engine for engine, _ in answers})
    used = [index for index, name in enumerate("ab") if name in served]
    # A heartbeat of an idle engine keeps the model and clears the rest.
    models = rows[used, RouterRow.PUSH_BASE_FS : RouterRow.PUSH_FLOOR_FS + 1]
    assert models.any(axis=1).all(), "what it learned from its steps was pushed"
    wait_until(lambda: (gateway.state.rows()[:, RouterRow.SCRAPE_TOTAL_BLOCKS] == 256).all())
    assert not gateway.router.failures
    assert gateway.router.policy._memory._finished >= 30, "lengths are learned from ends of streams"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        open_streams = [pool.submit(stream, url, n, 900) for n in range(8)]
        wait_until(lambda: gateway.state.rows()[:, RouterRow.IN_FLIGHT].sum() == 8)
        victim = int(gateway.state.rows()[:, RouterRow.IN_FLIGHT].argmax())
        servers[victim].kill()
        ended = [future.result(PATIENCE_S) for future in open_streams]
    for engine, events in ended:
        broken = "error" in events[-1]
        whole = not broken and events[-1]["usage"]["completion_tokens"] == 900
        assert whole or (broken and engine == "ab"[victim]), events[-1]
    wait_until(lambda: not gateway.state.alive[victim])
    engine, events = stream(url, 0, 5)
    assert engine == "ab"[1 - victim]
    assert events[-1]["usage"]["completion_tokens"] == 5
