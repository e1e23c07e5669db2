"""The routing proxy over real sockets: what passes through, and what happens when things fail."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from synergy_gym.live.proxy.proxy import listen
from synergy_gym.live.router.push import Push, encode
from synergy_gym.live.router.state import PUSH_SIZE
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.types import ClusterView, CompletionView, Outcome, RequestView
from tests.live.fake_server import FakeServer, Fleet
from tests.live.fake_upstream import PATIENCE_S, QUICK, Pinned, ProxyThread, Upstream, wait_until

COMPLETIONS = "/v1/completions"
PROMPT = list(range(40))
SILENCE_S = 3.0
"""Too long for an engine, where a test waits for that; what does answer takes milliseconds."""


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=PATIENCE_S, trust_env=False) as session:
        yield session


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": PROMPT, "max_tokens": 4, "stream": True} | fields


def samples(proxy: ProxyThread, client: httpx.Client) -> dict[tuple[str, ...], float]:
    """Values of the proxy's own metrics by name (without prefix) and label values."""
    answer = client.get(f"{proxy.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name.removeprefix("synergy_gym_router_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def events(text: str) -> list[Any]:
    """The JSON events of a stream, and "[DONE]"."""
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def test_the_first_chunk_arrives_before_the_last_is_sent(client: httpx.Client) -> None:
    with Upstream() as up, ProxyThread([up.url]) as proxy:
        up.gate.clear()
        with client.stream("POST", proxy.url + COMPLETIONS, json=ask()) as answer:
            chunks = answer.iter_raw()
            first = next(chunks)
            assert not up.sent_all.is_set()
            up.gate.set()
            rest = b"".join(chunks)
    assert events(first.decode()) == [{"choices": [{"text": "t0"}]}]
    assert [e["choices"][0]["text"] for e in events(rest.decode())[:-1]] == ["t1", "t2", "t3"]


def test_requests_reach_the_engine_as_they_are(client: httpx.Client) -> None:
    body = b'{"model": "m",   "prompt": [1, 2], "max_tokens": 3, "x": "\xc3\xa9"}'
    headers = {
        "authorization": "Bearer secret",
        "connection": "x-hop",
        "x-hop": "dropped",
        "te": "trailers",
        "proxy-authorization": "dropped",
        "x-mine": "kept",
        "content-type": "application/json",
    }
    with Upstream() as up, ProxyThread([up.url]) as proxy:
        answer = client.post(f"{proxy.url}{COMPLETIONS}?a=b%20c", content=body, headers=headers)
    (seen,) = up.seen
    got = dict(seen.headers)
    assert answer.status_code == 200
    assert (seen.method, seen.target, seen.body) == ("POST", "/v1/completions?a=b%20c", body)
    assert got["authorization"] == "Bearer secret"
    assert got["x-mine"] == "kept"
    assert not {"x-hop", "te", "proxy-authorization"} & set(got)
    assert got["host"] == up.url.removeprefix("http://")
    assert got["content-length"] == str(len(body))
    assert len(got) == len(seen.headers), "no header twice"


@pytest.mark.parametrize("streamed", [True, False])
def test_answers_reach_the_client_as_they_are(client: httpx.Client, streamed: bool) -> None:
    body = ask(stream=streamed)
    with Upstream() as up, ProxyThread([up.url]) as proxy:
        direct = client.post(up.url + COMPLETIONS, json=body)
        answer = client.post(proxy.url + COMPLETIONS, json=body)
        figures = samples(proxy, client)
    assert (answer.status_code, answer.content) == (200, direct.content)
    assert answer.headers["content-type"] == direct.headers["content-type"]
    assert answer.headers["x-custom"] == "kept"
    assert answer.headers["x-synergy-gym-engine"] == "a"
    assert "x-private" not in answer.headers
    assert answer.headers.get("content-length") == direct.headers.get("content-length")
    assert figures["attempts_total", "a", "finished"] == 1
    assert figures["in_flight", "a"] == 0


def test_chats_are_routed_too(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "x" * 100}]
    with Upstream() as up, ProxyThread([up.url]) as proxy:
        answer = client.post(
            f"{proxy.url}/v1/chat/completions", json={"messages": messages, "max_tokens": 2}
        )
        figures = samples(proxy, client)
        (request,) = proxy.gateway.router.policy.requests
    assert answer.json()["choices"] == [{"text": "all"}]
    assert request.prompt_tokens == -(-len("user\n" + "x" * 100 + "\n") // 4) + 4
    assert figures["estimated_prompts_total",] == 1


def test_a_refusal_of_the_engine_passes_and_is_no_failure(client: httpx.Client) -> None:
    with Upstream() as up, ProxyThread([up.url]) as proxy:
        answer = client.post(proxy.url + COMPLETIONS, json=ask(max_tokens=0))
        figures = samples(proxy, client)
    assert (answer.status_code, len(up.seen)) == (400, 1)
    assert answer.json()["error"]["message"] == "max_tokens must be positive"
    assert figures["attempts_total", "a", "rejected"] == 1
    assert figures["engine_condition", "a"] == 0


def test_a_body_without_a_prompt_is_refused_at_the_door(client: httpx.Client) -> None:
    with Upstream() as up, ProxyThread([up.url]) as proxy:
        answer = client.post(proxy.url + COMPLETIONS, content=b"{")
        other = client.get(proxy.url + COMPLETIONS)
    assert (answer.status_code, other.status_code) == (400, 405)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not up.seen


def test_other_paths_go_to_any_engine_in_turn(client: httpx.Client) -> None:
    with Upstream("one") as one, Upstream("two") as two, ProxyThread([one.url, two.url]) as proxy:
        models = [client.get(f"{proxy.url}/v1/models").json()["data"][0]["id"] for _ in range(4)]
        echo = client.put(f"{proxy.url}/echo/a%2Fb?q=1", content=b'{"k": 1}')
        head = client.head(f"{proxy.url}/head")
        missing = client.get(f"{proxy.url}/nowhere")
    assert models == ["one", "two", "one", "two"]
    assert (echo.status_code, echo.text, echo.headers["x-custom"]) == (418, "one", "kept")
    assert (one.seen[-1].method, one.seen[-1].body) == ("PUT", b'{"k": 1}')
    assert (head.status_code, head.headers["content-length"]) == (200, "5")
    assert missing.status_code == 404
    assert not proxy.gateway.router.policy.requests, "no policy is asked"


def test_the_client_that_leaves_ends_the_engines_work(client: httpx.Client) -> None:
    with FakeServer(token_s=0.02) as engine, ProxyThread([engine.url]) as proxy:
        with client.stream("POST", proxy.url + COMPLETIONS, json=ask(max_tokens=5000)) as answer:
            chunks = answer.iter_raw()  # closes the connection when it is collected
            next(chunks)
            assert samples(proxy, client)["in_flight", "a"] == 1
        wait_until(lambda: engine.served[0].dropped)
        wait_until(lambda: samples(proxy, client)["in_flight", "a"] == 0)
        assert samples(proxy, client)["attempts_total", "a", "aborted"] == 1
        assert samples(proxy, client)["engine_condition", "a"] == 0


def test_the_client_that_leaves_before_the_first_byte_too(client: httpx.Client) -> None:
    with FakeServer(mode="silent") as engine, ProxyThread([engine.url]) as proxy:
        leaving = http.client.HTTPConnection(proxy.url.removeprefix("http://"))
        leaving.request("POST", COMPLETIONS, json.dumps(ask()))
        wait_until(lambda: engine.served)
        leaving.close()
        wait_until(lambda: engine.served[0].dropped)
        wait_until(lambda: samples(proxy, client)["in_flight", "a"] == 0)
        assert samples(proxy, client)["attempts_total", "a", "aborted"] == 1


def test_a_killed_engine_is_masked_and_let_in_again(client: httpx.Client) -> None:
    with Fleet(2) as (a, b), ProxyThread([a.url, b.url]) as proxy:
        a.stop()
        answer = client.post(proxy.url + COMPLETIONS, json=ask())
        assert answer.headers["x-synergy-gym-engine"] == "b"
        assert events(answer.text)[-1] == "[DONE]"
        wait_until(lambda: samples(proxy, client)["engine_up", "a"] == 0)
        assert client.get(f"{proxy.url}/health").json() == {"engines_up": {"a": False, "b": True}}
        a.start()
        wait_until(lambda: samples(proxy, client)["engine_up", "a"] == 1)
        answer = client.post(proxy.url + COMPLETIONS, json=ask())
        assert answer.headers["x-synergy-gym-engine"] == "a"


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.parametrize("streamed", [True, False])
def test_an_engine_that_fails_before_the_first_byte_is_replaced(
    client: httpx.Client, status: int, streamed: bool
) -> None:
    with (
        FakeServer(mode="error", status=status) as a,
        Upstream() as b,
        ProxyThread([a.url, b.url]) as proxy,
    ):
        answer = client.post(proxy.url + COMPLETIONS, json=ask(stream=streamed))
        figures = samples(proxy, client)
        policy = proxy.gateway.router.policy
    assert (answer.status_code, answer.headers["x-synergy-gym-engine"]) == (200, "b")
    assert figures["failed_attempts_total", "a"] == 1
    assert figures["attempts_total", "a", "failed"] == 1
    assert figures["attempts_total", "b", "finished"] == 1
    assert [request.attempt for request in policy.requests] == [0, 1]
    assert policy.views[1].alive.tolist() == [False, True], "not where it has just failed"


def test_when_every_engine_fails_its_own_answer_is_passed_on(client: httpx.Client) -> None:
    with (
        Fleet(2, {"mode": "error", "status": 500}) as (a, b),
        ProxyThread([a.url, b.url]) as proxy,
    ):
        answer = client.post(proxy.url + COMPLETIONS, json=ask())
        figures = samples(proxy, client)
    assert (answer.status_code, answer.json()) == (500, {"error": {"message": "out of order"}})
    assert (len(a.served), len(b.served)) == (1, 1)
    assert figures["engine_up", "a"] == figures["engine_up", "b"] == 1


def test_a_stream_that_breaks_ends_with_an_error_event(client: httpx.Client) -> None:
    with Fleet(2, {"mode": "cut"}) as (a, b), ProxyThread([a.url, b.url]) as proxy:
        answer = client.post(proxy.url + COMPLETIONS, json=ask(max_tokens=9))
        figures = samples(proxy, client)
    *tokens, last = events(answer.text)
    assert len(tokens) == 2
    assert last["error"]["type"] == "engine_failed"
    assert "engine a broke its stream" in last["error"]["message"]
    assert not b.served, "what was streamed cannot be taken back"
    assert figures["attempts_total", "a", "failed"] == 1


def test_an_engines_own_error_event_passes_once(client: httpx.Client) -> None:
    with FakeServer(mode="error-in-stream") as a, ProxyThread([a.url]) as proxy:
        answer = client.post(proxy.url + COMPLETIONS, json=ask(max_tokens=9))
        figures = samples(proxy, client)
    assert [event.get("error", {}).get("message") for event in events(answer.text)] == [
        None,
        None,
        "the engine died",
    ]
    assert figures["attempts_total", "a", "failed"] == 1


def test_a_stream_that_stalls_ends_within_the_timeout(client: httpx.Client) -> None:
    with FakeServer(mode="stall") as a, ProxyThread([a.url], timeout_s=SILENCE_S) as proxy:
        answer = client.post(proxy.url + COMPLETIONS, json=ask(max_tokens=9))
        wait_until(lambda: a.served[0].dropped)
    assert "ReadTimeout" in events(answer.text)[-1]["error"]["message"]


def test_a_silent_engine_loses_the_request_within_the_timeout(client: httpx.Client) -> None:
    with (
        FakeServer(mode="silent") as a,
        FakeServer() as b,
        ProxyThread([a.url, b.url], timeout_s=SILENCE_S) as proxy,
    ):
        answer = client.post(proxy.url + COMPLETIONS, json=ask())
    assert answer.headers["x-synergy-gym-engine"] == "b"
    assert [view.in_flight.tolist() for view in proxy.gateway.router.policy.views] == [[0, 0]] * 2


def test_requests_leave_an_engine_whose_probes_fail(client: httpx.Client) -> None:
    """A hanging engine is noticed by its probes, long before the request's own timeout."""
    with (
        FakeServer(mode="silent", health="silent") as a,
        FakeServer() as b,
        ProxyThread(
            [a.url, b.url], Pinned((0, 1)), health=replace(QUICK, timeout_s=1.0), timeout_s=600.0
        ) as proxy,
    ):
        answer = client.post(proxy.url + COMPLETIONS, json=ask())
        figures = samples(proxy, client)
    assert answer.headers["x-synergy-gym-engine"] == "b"
    assert figures["engine_up", "a"] == 0


def test_no_engine_is_a_clear_503(client: httpx.Client) -> None:
    with FakeServer() as a, ProxyThread([a.url]) as proxy:
        a.stop()
        first = client.post(proxy.url + COMPLETIONS, json=ask())
        wait_until(lambda: samples(proxy, client)["engine_up", "a"] == 0)
        second = client.post(proxy.url + COMPLETIONS, json=ask())
        models = client.get(f"{proxy.url}/v1/models")
        health = client.get(f"{proxy.url}/health")
        figures = samples(proxy, client)
    for answer in (first, second, models):
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "no_engine"
        assert answer.headers["retry-after"] == "1"
    assert health.status_code == 503
    assert figures["no_engine_total",] >= 1


class Faulty(RouterPolicy):
    """Fails in one way."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        if self.answer is None:
            raise ZeroDivisionError("the policy divides by zero")
        return self.answer  # type: ignore[no-any-return]

    def observe(self, completion: CompletionView) -> None:
        if self.answer is None:
            raise RuntimeError("it cannot learn")


@pytest.mark.parametrize("answer", [None, 2, -1, 1.0, "0", True, np.float64(0)])
def test_a_failing_policy_costs_no_request(
    client: httpx.Client, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "raised" if answer is None else "illegal"
    with Upstream() as a, Upstream() as b, ProxyThread([a.url, b.url], Faulty(answer)) as proxy:
        with caplog.at_level(logging.ERROR):
            answers = [client.post(proxy.url + COMPLETIONS, json=ask()) for _ in range(4)]
        figures = samples(proxy, client)
    assert [reply.headers["x-synergy-gym-engine"] for reply in answers] == ["a", "b", "a", "b"]
    assert figures["policy_failures_total", kind] == 4
    assert "round-robin" in caplog.text
    if answer is None:
        assert figures["policy_failures_total", "observe"] == 3
        assert "the policy divides by zero" in caplog.text


def test_a_choice_that_is_down_is_replaced(client: httpx.Client) -> None:
    with Fleet(2) as (a, b), ProxyThread([a.url, b.url], Faulty(0)) as proxy:
        a.stop()
        wait_until(lambda: samples(proxy, client)["engine_up", "a"] == 0)
        answer = client.post(proxy.url + COMPLETIONS, json=ask())
        assert answer.headers["x-synergy-gym-engine"] == "b"
        assert samples(proxy, client)["policy_failures_total", "illegal"] == 1


def test_sessions_classes_and_prefixes_reach_the_policy(client: httpx.Client) -> None:
    with Upstream() as up, ProxyThread([up.url]) as proxy:
        for _ in range(2):
            body = ask(priority=5, vllm_xargs={"slo_class": "other"})
            client.post(proxy.url + COMPLETIONS, json=body, headers={"X-Session-Id": "alice"})
        client.post(proxy.url + COMPLETIONS, json=ask(vllm_xargs={"slo_class": "gold"}))
        figures = samples(proxy, client)
        policy = proxy.gateway.router.policy
    first, second, third = policy.requests
    assert first.session == second.session >= 0
    assert (first.slo_class, first.priority, first.prompt_tokens) == (1, 5, 40)
    assert [view.session_engine for view in policy.views] == [-1, 0, -1]
    assert 0 <= policy.views[1].session_age_s < PATIENCE_S
    assert len(first.block_hashes) == 2
    assert (first.block_hashes == third.block_hashes).all()
    assert (third.session, third.slo_class) == (-1, 0)
    assert figures["unknown_slo_classes_total",] == 1


def test_completions_show_what_the_router_saw(client: httpx.Client) -> None:
    with FakeServer() as engine, ProxyThread([engine.url]) as proxy:
        for _ in range(2):
            client.post(proxy.url + COMPLETIONS, json=ask(max_tokens=6))
        (seen,) = proxy.gateway.router.policy.completions
    assert (seen.outcome, seen.output_tokens, seen.prompt_tokens) == (Outcome.FINISHED, 6, 40)
    assert 0 < seen.ttft_s < seen.e2e_s < PATIENCE_S


def test_output_lengths_reach_no_view(client: httpx.Client) -> None:
    """`max_tokens` passes to the engine, and every view is the same whatever it is."""
    shown = []
    for tokens in (3, 1017):
        with Upstream() as up, ProxyThread([up.url]) as proxy:
            client.post(proxy.url + COMPLETIONS, json=ask(max_tokens=tokens, min_tokens=tokens))
            policy = proxy.gateway.router.policy
        assert json.loads(up.seen[0].body)["max_tokens"] == tokens
        (request,), (view,) = policy.requests, policy.views
        values = {name: getattr(request, name) for name in RequestView.__slots__}
        values |= {"rows": view.rows, "in_flight": view.in_flight}
        for timed in ("arrival_s",):
            del values[timed]
        shown.append(values)
        assert request.expected_output_tokens is None
        assert not any(np.any(np.asarray(v, dtype=object) == tokens) for v in values.values())
    for name in shown[0]:
        assert np.array_equal(shown[0][name], shown[1][name]), name


def test_pushed_state_reaches_the_view(client: httpx.Client) -> None:
    with Upstream() as up, ProxyThread([up.url], pushes=True) as proxy:
        assert proxy.inbox is not None
        state = [0, 3, 2, 64, 256, 777, 5_000_000, 1500, 0, 1, *[0] * 11]
        assert len(state) == PUSH_SIZE
        address = (proxy.inbox.host, proxy.inbox.port)
        host = up.url.removeprefix("http://")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as engine:
            for number, name in enumerate(["a", "stranger", host]):
                push = Push(name, 1, number, 10_000_000, tuple(state))
                engine.sendto(encode(push), address)
            engine.sendto(b"noise", address)
        wait_until(lambda: samples(proxy, client)["rejected_pushes",] == 1)
        client.post(proxy.url + COMPLETIONS, json=ask())
        client.post(proxy.url + COMPLETIONS, json=ask())
        figures = samples(proxy, client)
        views = proxy.gateway.router.policy.views
    assert figures["pushes_total", "a"] == 2
    assert figures["unknown_pushes_total",] == 1
    assert views[0].pushed.running.tolist() == [3]
    assert views[0].pushed.kv_usage.tolist() == [0.25]
    assert views[0].pushed.pending_tokens.tolist() == [777]
    assert 0.01 <= views[0].pushed.age_s[0] < PATIENCE_S
    assert [view.routed_tokens_since_push.tolist() for view in views] == [[0], [40]]


def test_scraped_metrics_reach_the_view(client: httpx.Client) -> None:
    with (
        FakeServer(token_s=0.05) as a,
        FakeServer(metrics="missing") as b,
        ProxyThread([a.url, b.url], scrape_interval_s=0.05) as proxy,
    ):
        with client.stream("POST", proxy.url + COMPLETIONS, json=ask(max_tokens=5000)) as answer:
            chunks = answer.iter_raw()  # closes the connection when it is collected
            next(chunks)
            view = proxy.gateway.state.cluster_view
            rng = np.random.default_rng(0)
            wait_until(lambda: view(0, rng=rng).scraped.running[0] == 1)
        wait_until(lambda: samples(proxy, client).get(("scrape_failures_total", "b"), 0) > 1)
        assert samples(proxy, client)["engine_up", "b"] == 1, "no metrics, but it serves"


def test_nothing_is_lost_under_fire(client: httpx.Client, rng: np.random.Generator) -> None:
    """Random faults: every request is answered or left by its client, and all counts return."""
    import concurrent.futures

    modes = rng.choice(["ok", "ok", "error", "cut", "error-in-stream"], 3).tolist()
    plans = [(int(rng.integers(1, 30)), bool(rng.random() < 0.3)) for _ in range(60)]

    def play(tokens: int, leave: bool) -> str:
        with httpx.Client(timeout=PATIENCE_S, trust_env=False) as own:
            body = ask(max_tokens=tokens)
            with own.stream("POST", proxy.url + COMPLETIONS, json=body) as answer:
                if leave:
                    return "left"
                answer.read()
            if answer.status_code != 200:
                return "refused"
            last = events(answer.text)[-1]
            return "done" if last == "[DONE]" else "broken" if "error" in last else "lost"

    with (
        FakeServer(mode=modes[0]) as a,
        FakeServer(mode=modes[1]) as b,
        FakeServer(mode=modes[2]) as c,
        ProxyThread([s.url for s in (a, b, c)], Spread()) as proxy,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        ends = list(pool.map(lambda plan: play(*plan), plans))
        wait_until(lambda: not proxy.gateway.state.rows()[:, 1:3].any())
        figures = samples(proxy, client)
    attempts = {k: v for k, v in figures.items() if k[0] == "attempts_total"}
    print(modes, {end: ends.count(end) for end in sorted(set(ends))}, attempts)
    assert "lost" not in ends
    assert sum(v for k, v in attempts.items() if k[2] == "finished") >= ends.count("done")
    assert sum(attempts.values()) >= len(plans) - figures["no_engine_total",]


class Spread(RouterPolicy):
    """Any engine that is up, at random."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        return int(cluster.rng.choice(np.flatnonzero(cluster.alive)))


def test_small_chunks_are_not_held_back() -> None:
    """Nagle's algorithm is off on accepted connections: it would cost 40 ms per answer."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.proto == socket.IPPROTO_TCP, "what asyncio looks at"
