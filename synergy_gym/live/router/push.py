"""Engine state by UDP: one JSON datagram per push, at most one per interval.

A datagram is an object: `version`, `engine` (its name), `run` (a number per start of the engine),
`number` (counts up within a run), `age_ns` (snapshot to sending), `failures` (steps that stock vLLM
scheduled because the engine's policy had failed, so far; 0 when absent) and `state`, a vector in
the order of `sim/plain/telemetry.PUSH_COLUMNS` (without what follows `PUSH_CAPACITY` in a
heartbeat); `docs/telemetry.md` explains its numbers.
No clocks are compared: the router takes the snapshot to be `age_ns` older than the arrival. Whoever
reaches the port can send state, so bind it to an address that only the engines reach.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from synergy_gym.live.log import is_loud
from synergy_gym.live.router.state import HEARTBEAT_SIZE, PUSH_SIZE
from synergy_gym.sim.compiled.layout import ADVERT_SIZE
from synergy_gym.sim.plain.telemetry import (
    PUSH_COLUMNS,
    Ended,
    Gauges,
    Mode,
    PushSource,
    first_vector,
)
from synergy_gym.types import RouterRow, TelemetrySpec

VERSION = 1
MAX_DATAGRAM_BYTES = 8192
MODE = PUSH_COLUMNS.index(RouterRow.PUSH_MODE)

_log = logging.getLogger(__name__)
_MAX_VALUE = 1 << 62


class PushError(ValueError):
    """A datagram is no state vector of this protocol."""


@dataclass(frozen=True, slots=True)
class Push:
    """One state vector on its way.

    Attributes:
        engine: name of the engine.
        run: drawn when the engine started.
        number: counts its datagrams, from 0.
        age_ns: time from the snapshot to the sending.
        state: the vector; its first entry is the engine's own time.
        failures: steps that the engine's policy failed to decide, so far.
    """

    engine: str
    run: int
    number: int
    age_ns: int
    state: tuple[int, ...]
    failures: int = 0

    def vector(self, now_ns: int) -> list[int]:
        """The vector with its snapshot's time on the clock of a receiver where it is `now_ns`."""
        return [now_ns - self.age_ns, *self.state[1:]]


def encode(push: Push) -> bytes:
    """The datagram of `push`."""
    fields = {
        "version": VERSION,
        "engine": push.engine,
        "run": push.run,
        "number": push.number,
        "age_ns": push.age_ns,
        "failures": push.failures,
        "state": [int(value) for value in push.state],
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def decode(datagram: bytes) -> Push:
    """The push in a datagram.

    Raises:
        PushError: it is something else; the message says what is wrong.
    """
    try:
        fields = json.loads(datagram)
    except (ValueError, RecursionError) as error:
        raise PushError(f"a datagram of {len(datagram)} bytes is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise PushError(f"a datagram holds a {type(fields).__name__}; send a JSON object")
    if fields.get("version") != VERSION:
        raise PushError(
            f"a datagram of version {fields.get('version')!r}; this receiver reads version "
            f"{VERSION}, run the same synergy-gym on both sides"
        )
    engine = fields.get("engine")
    if not isinstance(engine, str) or not engine:
        raise PushError(f"engine is {engine!r}; send the engine's name")
    run, number, age_ns = (_whole(name, fields.get(name)) for name in ("run", "number", "age_ns"))
    failures = _whole("failures", fields.get("failures", 0))
    return Push(engine, run, number, age_ns, _state(fields.get("state"), engine), failures)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_VALUE:
        raise PushError(f"{name} is {value!r}; send a whole number, >= 0 and below 2**62")
    return value


def _state(values: Any, engine: str) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) not in (PUSH_SIZE, HEARTBEAT_SIZE):
        size = len(values) if isinstance(values, list) else type(values).__name__
        raise PushError(
            f"the state of {engine!r} has {size} numbers; send {PUSH_SIZE}, or {HEARTBEAT_SIZE} "
            "as a heartbeat"
        )
    names = [RouterRow(column).name for column in PUSH_COLUMNS]
    state = tuple(_whole(name, v) for name, v in zip(names, values, strict=False))
    if state[MODE] > max(Mode):
        raise PushError(
            f"the mode of {engine!r} is {state[MODE]}; send one of {list(map(int, Mode))}"
        )
    return state


class PushInbox:
    """A non-blocking UDP socket that engines push to.

    `fileno()` lets an event loop wait for it (`loop.add_reader(inbox, ...)`).

    Args:
        host: address to listen on.
        port: port, or 0 for a free one (`inbox.port` says which).

    Attributes:
        received: datagrams that were pushes.
        rejected: datagrams that were none.
        late: pushes that a newer one of the same engine has overtaken; they are left out.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise OSError(
                f"no engine state can be received on {host}:{port} ({error}); choose another port"
            ) from error
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self.received = self.rejected = self.late = 0
        self._newest: dict[str, tuple[int, int]] = {}

    @property
    def url(self) -> str:
        """Where engines send to (`SYNERGY_GYM_PUSH`)."""
        return f"udp://{self.host}:{self.port}"

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self._socket.fileno()

    def drain(self) -> list[Push]:
        """Every push that has arrived; wrong datagrams are counted and logged."""
        pushes: list[Push] = []
        while True:
            try:
                datagram, sender = self._socket.recvfrom(MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return pushes
            except ConnectionError:  # an answer of ours bounced; nothing was received
                continue
            try:
                push = decode(datagram)
            except PushError as error:
                self._reject(f"{sender[0]}:{sender[1]}: {error}")
                continue
            self.received += 1
            if self._is_newest(push):
                pushes.append(push)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def _is_newest(self, push: Push) -> bool:
        run, number = self._newest.get(push.engine, (-1, -1))
        if push.run == run and push.number <= number:
            self.late += 1
            return False
        self._newest[push.engine] = (push.run, push.number)
        return True

    def _reject(self, text: str) -> None:
        self.rejected += 1
        if is_loud(self.rejected):
            _log.warning("state push rejected (%d so far): %s", self.rejected, text)


def push_address(url: str) -> tuple[str, int]:
    """Host and port of `udp://host:port`.

    Raises:
        ValueError: the URL is something else.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "udp" or not parts.hostname or not port or parts.path not in ("", "/"):
        raise ValueError(f"state is pushed to {url!r}; write it as udp://HOST:PORT")
    return parts.hostname, port


class PushSender(PushSource):
    """Sends the state of one engine; nothing here waits or raises in the engine's way.

    Args:
        url: the router's `udp://host:port`.
        engine: the name that the router knows the engine by.
        spec: push interval and heartbeats.
        kv_blocks: usable blocks of the engine.
        told: what the engine says about itself at first (`adverts.published`); set `told`
            when a decision's advert says more.

    Attributes:
        sent: datagrams handed to the system.
        failed: datagrams that it refused (counted, the first one logged).
        policy_failures: sent as `Push.failures`; the engine sets it.
    """

    def __init__(
        self,
        url: str,
        engine: str,
        *,
        spec: TelemetrySpec = TelemetrySpec(),  # noqa: B008 - frozen
        kv_blocks: int = 0,
        told: Sequence[int] = (0,) * ADVERT_SIZE,
    ) -> None:
        super().__init__(spec, kv_blocks, list(told))
        found = socket.getaddrinfo(*push_address(url), type=socket.SOCK_DGRAM)[0]
        self._address = found[4]
        self._socket = socket.socket(found[0], socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._engine = engine
        self._run = secrets.randbits(48)
        self._number = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._pulse: threading.Thread | None = None
        self.sent = self.failed = self.policy_failures = 0

    def started(self, now_ns: int) -> None:
        """Send the start-up message: idle, and what the engine says about itself."""
        with self._lock:
            self.came_up(now_ns)
            self._send([now_ns, *first_vector(self.kv_blocks, self.told)[1:]])

    def committed(self, now_ns: int, gauges: Gauges, step: Ended) -> None:
        """An iteration ended at `now_ns`, leaving `gauges`; sends at most once per interval."""
        with self._lock:
            vector = self.after_step(now_ns, gauges, step)
            if vector is not None:
                self._send(vector)

    def work_came(self, now_ns: int) -> None:
        """The engine got work; heartbeats end."""
        with self._lock:
            super().work_came(now_ns)

    def pulse(self, now_ns: int) -> None:
        """Send a heartbeat if one is due."""
        with self._lock:
            due = self.beats(now_ns)
            if due:
                self._send([now_ns, *due[-1][1:]])

    def start_pulse(self, clock: Callable[[], int]) -> None:
        """Send heartbeats from a daemon thread; `clock` gives nanoseconds, as in `committed`."""
        if self._pulse is not None or self._beat <= 0 or self._heartbeat == "none":
            return

        def run() -> None:
            while not self._closed.wait(self._beat / 4e9):
                self.pulse(clock())

        self._pulse = threading.Thread(target=run, name="synergy-gym-heartbeat", daemon=True)
        self._pulse.start()

    def close(self) -> None:
        """Send nothing more."""
        self._closed.set()
        if self._pulse is not None:
            self._pulse.join()
        self._socket.close()

    def _send(self, vector: Sequence[int]) -> None:
        failures = self.policy_failures
        push = Push(self._engine, self._run, self._number, 0, tuple(vector), failures)
        self._number += 1
        try:
            self._socket.sendto(encode(push), self._address)
        except OSError as error:  # a full buffer or no route: state is not worth waiting for
            self.failed += 1
            if self.failed == 1:
                _log.warning("engine %s: its state cannot be pushed: %s", self._engine, error)
            return
        self.sent += 1
