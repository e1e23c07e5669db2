"""`synergy-gym route` as a process: its ports, its table, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import synergy_gym
from synergy_gym.cli.app import main
from synergy_gym.live.proxy.discover import parse_engine
from tests.live.fake_server import FakeServer, Fleet
from tests.live.fake_upstream import PATIENCE_S

ROOT = Path(synergy_gym.__file__).parents[1]


class Routing:
    """A running `synergy-gym route`."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "synergy_gym", "route", "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.table = ""
        assert self.process.stdout is not None
        while "└" not in self.table:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            self.table += line
        found = re.search(r"http://127\.0\.0\.1:\d+", self.table)
        assert found is not None
        self.url = found[0]
        self.stderr = ""

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, self.stderr = self.process.communicate(timeout=2 * PATIENCE_S)
        return self.process.returncode


@contextmanager
def routing(*arguments: str) -> Iterator[Routing]:
    running = Routing(*arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()


def post(url: str, tokens: int, timeout_s: float = PATIENCE_S) -> httpx.Response:
    body = {"prompt": [1] * 30, "max_tokens": tokens, "stream": True}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=timeout_s, trust_env=False)


def test_sigterm_lets_open_requests_end() -> None:
    arguments = ("--policy", "prism-plus", "--push-port", "0", "--weight", "1", "--weight", "2.5")
    with Fleet(2, {"token_s": 0.02}) as (a, b):
        engines = ("--engine", f"first={a.url}", "--engine", b.url)
        with routing(*arguments, *engines) as running:
            assert "prism-plus" in running.table
            assert "udp://127.0.0.1:" in running.table
            assert "first" in running.table
            assert "2.5" in running.table
            post(running.url, 2)
            answers: list[httpx.Response] = []
            slow = threading.Thread(target=lambda: answers.append(post(running.url, 100)))
            slow.start()
            while not any(s.tokens for s in [*a.served[1:], *b.served]):
                assert slow.is_alive()
            assert running.end() == 0
            slow.join(PATIENCE_S)
            assert answers[0].text.rstrip().endswith("[DONE]")
            assert "never published a step-latency model" in running.stderr
            with pytest.raises(httpx.ConnectError):
                post(running.url, 1)


def test_open_requests_are_cut_when_draining_takes_too_long() -> None:
    failed: list[Exception] = []

    def ask() -> None:
        try:
            post(running.url, 100)
        except httpx.HTTPError as error:
            failed.append(error)

    with (
        FakeServer(mode="stall") as engine,
        routing("--engine", engine.url, "--drain-s", "1") as running,
    ):
        slow = threading.Thread(target=ask)
        slow.start()
        while not any(s.tokens for s in engine.served):
            assert slow.is_alive()
        assert running.end(signal.SIGINT) == 0
        slow.join(PATIENCE_S)
    assert isinstance(failed[0], httpx.RemoteProtocolError)


def test_an_engine_that_does_not_answer_yet_gets_defaults() -> None:
    with FakeServer() as engine:
        engine.stop()
        with routing("--engine", engine.url, "--block-size", "777") as running:
            assert "4096" in running.table
            assert "777" in running.table
            answer = post(running.url, 1)
            assert answer.status_code == 503
            assert running.end() == 0
    assert "/v1/models cannot be read" in running.stderr


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["route", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "engine"),
        (("--engine", "localhost:1"), "is no URL"),
        (("--engine", "a=ftp://h:1"), "is no URL"),
        (("--engine", "http://h:1/v1"), "leave out the path"),
        (("--engine", "http://h:1", "--policy", "prsm-plus"), "did you mean"),
        (("--engine", "http://h:1", "--weight", "1", "--weight", "2"), "2 --weight for 1"),
        (("--engine", "http://h:1", "--scenario", "hetero-3"), "and there are 1 --engine"),
        (("--engine", "http://h:1", "--timeout-s", "0"), "timeout_s is 0.0"),
        (("--engine", "http://h:1", "--max-num-seqs", "0"), "max_num_seqs is 0"),
        (("--engine", "http://h:1", "--block-size", "-4"), "block_size is -4"),
        (("--engine", "http://h:1", "--health-interval-s", "-1"), "interval_s is -1.0"),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in failing(capsys, *arguments)


def test_wrong_objectives_and_names_are_clear(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as engine:
        known = ("--engine", engine.url)
        assert "no objective 'ttft'" in failing(capsys, *known, "--slo", "ttft=1")
        twice = ("--engine", f"a={engine.url}", "--engine", f"a={engine.url}")
        assert "give each its own name" in failing(capsys, *twice)
        taken = ("--port", str(engine.port))
        assert "choose another --port" in failing(capsys, *known, *taken)


def test_specs_of_a_scenario_go_in_order() -> None:
    with Fleet(3, {"max_model_len": 2048}) as servers:
        engines = [x for s in servers[:2] for x in ("--engine", s.url)]
        with routing("--scenario", "hetero-3", *engines, "--engine", f"mine={servers[2].url}") as r:
            assert r.end() == 0
    assert "mine" in r.table
    assert "2048" not in r.table, "the limits are the scenario's"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("http://h:8000", ("h:8000", "http://h:8000")),
        ("https://h/", ("h", "https://h")),
        ("a=http://h:1/", ("a", "http://h:1")),
    ],
)
def test_engines_have_names(text: str, parsed: tuple[str, str]) -> None:
    assert parse_engine(text) == parsed
