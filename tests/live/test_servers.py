"""Servers as child processes: ready, faulty, and gone afterwards (a small stand-in, no vLLM)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from synergy_gym.live.vllm.servers import (
    SCHEDULER,
    Server,
    ServerError,
    ServerSpec,
    running_servers,
)
from synergy_gym.live.vllm.settings import HostSettings

STAND_IN = """
import http.server, subprocess, sys
port, mode = int(sys.argv[1]), sys.argv[2]
if mode == "fails":
    sys.exit("no such model")
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as vLLM's engine core
if mode == "deaf":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if mode != "starting" else 503)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class StandIn(ServerSpec):
    """A server that only answers /health, and has a child as vLLM has."""

    mode: str = "good"

    def command(self) -> list[str]:
        return [sys.executable, "-c", STAND_IN, str(self.port), self.mode]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_and_all_its_processes_end(tmp_path: Path) -> None:
    with running_servers([StandIn("m"), StandIn("m")], tmp_path) as servers:
        assert all(server.is_ready for server in servers)
        assert len({server.url for server in servers}) == 2
        pids = [pid for server in servers for pid in server.pids()]
        assert len(pids) == 4
    assert not any(lives(pid) for pid in pids)
    assert not any(server.alive for server in servers)
    assert servers[0].stop() == servers[0].stop(), "stopping twice is harmless"


def test_a_killed_server_takes_its_children_along(tmp_path: Path) -> None:
    with running_servers([StandIn("m")], tmp_path) as [server]:
        pids = server.pids()
        os.kill(min(pids), signal.SIGKILL)  # the one that answers; its child lives on
        assert eventually(lambda: not server.alive)
        assert not any(lives(pid) for pid in pids)
        assert not server.is_ready


def test_kill_ends_everything_at_once(tmp_path: Path) -> None:
    with running_servers([StandIn("m", mode="deaf")], tmp_path) as [server]:
        pids = server.pids()
        server.kill()
        assert not server.alive
        assert not any(lives(pid) for pid in pids)


def test_a_suspended_server_answers_again_and_can_be_stopped(tmp_path: Path) -> None:
    with running_servers([StandIn("m")], tmp_path) as [server]:
        server.suspend()
        assert server.alive
        server.resume()
        assert eventually(lambda: server.is_ready)
        server.suspend()  # ends all the same


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"ended with 1; its log .*\n(?s:.*)no such model"),
        running_servers([StandIn("m", mode="fails")], tmp_path),
    ):
        pass


def test_a_server_that_never_gets_ready_is_stopped(tmp_path: Path) -> None:
    server = Server(StandIn("m", mode="starting"), tmp_path / "log")
    with pytest.raises(ServerError, match=r"did not answer within 0\.5 s"):
        server.wait_ready(0.5)
    assert not server.alive


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_servers_end_with_the_process_that_started_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    program = textwrap.dedent(f"""
        import pathlib, sys, threading, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_servers import StandIn
        from synergy_gym.live.vllm.servers import Server
        made = []
        start = lambda: made.append(Server(StandIn("m"), pathlib.Path({str(tmp_path / "log")!r})))
        thread = threading.Thread(target=start)  # its end must not end the server
        thread.start()
        thread.join()
        made[0].wait_ready()
        time.sleep(0.5)
        print(*made[0].pids(), flush=True)
        time.sleep(600)
    """)
    starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout as printed:
        pids = [int(word) for word in printed.readline().split()]
        assert len(pids) == 2
        starter.send_signal(number)
        starter.wait()
    assert eventually(lambda: not any(lives(pid) for pid in pids))


def test_the_command_of_a_stock_and_of_a_hosted_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    stock = ServerSpec("folder", port=8000, kv_blocks=100, max_model_len=None)
    assert stock.command()[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert "--num-gpu-blocks-override=101" in stock.command()
    assert not any("max-model-len" in part or "scheduler" in part for part in stock.command())
    assert "SYNERGY_GYM_POLICY" not in stock.variables()
    hosted = ServerSpec("folder", settings=HostSettings("lens-plus", engine="e0"))
    assert f"--scheduler-cls={SCHEDULER}" in hosted.command()
    assert "--no-async-scheduling" in hosted.command()
    variables = hosted.variables()
    assert variables["SYNERGY_GYM_POLICY"] == "lens-plus"
    assert variables["SYNERGY_GYM_ENGINE"] == "e0"
    assert "OMP_NUM_THREADS" not in variables, "the caller's own value wins"
    assert variables["PYTHONPATH"].endswith(os.pathsep + "/elsewhere")
