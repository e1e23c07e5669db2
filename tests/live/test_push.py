"""State pushes: datagrams, what a receiver refuses, and when a sender sends."""

from __future__ import annotations

import json
import logging
import select
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from synergy_gym.live.router.push import (
    Push,
    PushError,
    PushInbox,
    PushSender,
    decode,
    encode,
    push_address,
)
from synergy_gym.live.router.state import HEARTBEAT_SIZE, PUSH_SIZE
from synergy_gym.sim.plain.telemetry import Ended, Gauges, PushChannel, guessed_ns
from synergy_gym.types import TelemetrySpec

MS = 1_000_000
TOLD = list(range(100, 111))
GOOD = {
    "version": 1,
    "engine": "a",
    "run": 7,
    "number": 0,
    "age_ns": 0,
    "state": [0] * PUSH_SIZE,
}


@pytest.fixture
def inbox() -> Iterator[PushInbox]:
    box = PushInbox()
    yield box
    box.close()


def arrived(inbox: PushInbox, count: int) -> list[Push]:
    """The next `count` pushes."""
    pushes: list[Push] = []
    while len(pushes) < count:
        readable, _, _ = select.select([inbox], [], [], 20.0)
        assert readable, f"{len(pushes)} of {count} pushes came"
        pushes += inbox.drain()
    return pushes


def sender_to(inbox: PushInbox, **options: Any) -> PushSender:
    return PushSender(inbox.url, "a", told=TOLD, kv_blocks=99, **options)


@pytest.mark.parametrize("size", [PUSH_SIZE, HEARTBEAT_SIZE])
def test_a_push_survives_the_wire(rng: np.random.Generator, size: int) -> None:
    values = rng.integers(0, 1 << 61, size).tolist()
    values[9] = int(rng.integers(3))
    push = Push("h100 é", int(rng.integers(1 << 48)), 5, 17, tuple(values), failures=3)
    assert decode(encode(push)) == push
    assert push.vector(1000)[0] == 983
    assert push.vector(1000)[1:] == values[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"engine": ""}, "engine is ''"),
        ({"engine": 3}, "engine is 3"),
        ({"run": -1}, "run is -1"),
        ({"number": 1.5}, "number is 1.5"),
        ({"age_ns": True}, "age_ns is True"),
        ({"failures": -1}, "failures is -1"),
        ({"state": None}, "NoneType numbers"),
        ({"state": [0] * 20}, "20 numbers"),
        ({"state": [0, -5, *[0] * 19]}, "PUSH_RUNNING is -5"),
        ({"state": [0, 1 << 62, *[0] * 19]}, "PUSH_RUNNING is 4611686018427387904"),
        ({"state": [*[0] * 9, 3, *[0] * 11]}, "mode"),
    ],
)
def test_wrong_fields_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PushError, match=message):
        decode(json.dumps(GOOD | change).encode())


@pytest.mark.parametrize("datagram", [b"", b"\xff\xfe", b"[1]", b"nonsense", b"[" * 4000])
def test_other_datagrams_are_refused(datagram: bytes) -> None:
    with pytest.raises(PushError):
        decode(datagram)


def test_random_bytes_never_pass(rng: np.random.Generator) -> None:
    for _ in range(500):
        with pytest.raises(PushError):
            decode(rng.bytes(int(rng.integers(1, 200))))


def test_an_inbox_counts_what_it_refuses(
    inbox: PushInbox, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw, caplog.at_level(logging.WARNING):
        for _ in range(5):
            raw.sendto(b"nonsense", (inbox.host, inbox.port))
        raw.sendto(json.dumps(GOOD).encode(), (inbox.host, inbox.port))
        (push,) = arrived(inbox, 1)
    assert push.engine == "a"
    assert (inbox.rejected, inbox.received) == (5, 1)
    assert "no JSON" in caplog.text
    assert len(caplog.records) == 3, "the 1st, 2nd and 4th are logged"


def test_overtaken_pushes_are_left_out_and_restarts_are_not(inbox: PushInbox) -> None:
    states = [(7, 0), (7, 2), (7, 1), (7, 2), (8, 0), (8, 1)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        for run, number in states:
            push = Push("a", run, number, 0, (0,) * PUSH_SIZE)
            raw.sendto(encode(push), (inbox.host, inbox.port))
        seen = [(push.run, push.number) for push in arrived(inbox, 4)]
    assert seen == [(7, 0), (7, 2), (8, 0), (8, 1)]
    assert inbox.late == 2


def test_a_taken_port_is_a_clear_error(inbox: PushInbox) -> None:
    with pytest.raises(OSError, match="choose another port"):
        PushInbox(port=inbox.port)


@pytest.mark.parametrize("url", ["127.0.0.1:9", "udp://", "udp://host", "http://h:1", "udp://h:x"])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(ValueError, match="udp://HOST:PORT"):
        push_address(url)


def test_a_sender_starts_with_its_model_and_keeps_the_interval(inbox: PushInbox) -> None:
    sender = sender_to(inbox)
    sender.started(0)
    gauges, step = Gauges(2, 1, 10, 99, 50), Ended(30 * MS, 64, 20 * MS)
    sender.work_came(5 * MS)
    for now_ms in (40, 100, 239, 240, 300):  # the interval is 200 ms
        sender.committed(now_ms * MS, gauges, step)
    first, second, third = arrived(inbox, 3)
    sender.close()
    assert list(first.state[4:5]) == [99]
    assert list(first.state[10:]) == [0, *TOLD[1:]], "a start-up message says no capacity"
    assert second.state[1:] == (2, 1, 10, 99, 50, 30 * MS, 64_000, 20 * MS, 0, *TOLD)
    assert (second.state[0], third.state[0]) == (40 * MS, 240 * MS)
    assert (sender.sent, sender.failed) == (3, 0)


def test_heartbeats_come_while_the_engine_is_idle_only(inbox: PushInbox) -> None:
    sender = sender_to(inbox, spec=TelemetrySpec(heartbeat_interval_s=2.0))
    sender.started(0)
    sender.pulse(1_900 * MS)
    sender.pulse(2_100 * MS)
    sender.work_came(2_200 * MS)
    sender.pulse(9_000 * MS)
    sender.committed(9_100 * MS, Gauges(0, 0, 0, 99, 0), Ended(MS, 1, MS))
    sender.pulse(11_000 * MS)
    sender.pulse(11_200 * MS)
    lengths = [len(push.state) for push in arrived(inbox, 4)]
    sender.close()
    assert lengths == [PUSH_SIZE, HEARTBEAT_SIZE, PUSH_SIZE, HEARTBEAT_SIZE]
    assert sender.sent == 4


def test_the_pulse_thread_sends_by_itself(inbox: PushInbox) -> None:
    sender = sender_to(inbox, spec=TelemetrySpec(heartbeat_interval_s=0.02))
    ticks = iter(range(0, 1 << 40, 20 * MS))
    sender.started(0)
    sender.start_pulse(lambda: next(ticks))
    pushes = arrived(inbox, 4)
    sender.close()
    assert [len(push.state) for push in pushes[1:4]] == [HEARTBEAT_SIZE] * 3


def test_nobody_listening_costs_the_engine_nothing(inbox: PushInbox) -> None:
    sender = sender_to(inbox)
    inbox.close()
    for now_ms in range(0, 4000, 200):
        sender.committed(now_ms * MS, Gauges(1, 0, 1, 9, 1), Ended(MS, 1, MS))
    sender.close()
    assert sender.sent + sender.failed == 20


def test_sender_and_simulator_tell_the_same(inbox: PushInbox, rng: np.random.Generator) -> None:
    """The same iterations, sent by UDP and over the simulator's channel."""
    spec = TelemetrySpec(push_interval_s=0.1, heartbeat="none")
    channel = PushChannel(spec, 1, 99, TOLD)
    sender = sender_to(inbox, spec=spec)
    now_ns, visible = 0, []
    for _ in range(200):
        now_ns += int(rng.integers(1, 80 * MS))
        tokens, running = int(rng.integers(0, 2000)), int(rng.integers(0, 9))
        step = Ended(int(rng.integers(MS, 50 * MS)), tokens, guessed_ns(tokens, running))
        gauges = Gauges(running, int(rng.integers(0, 9)), 7, 99, int(rng.integers(0, 5000)))
        before = channel.visible
        channel.committed(now_ns, gauges, step)
        channel.sync(now_ns)
        sender.committed(now_ns, gauges, step)
        if channel.visible is not before:
            visible.append(channel.visible)
    got = [list(push.state) for push in arrived(inbox, len(visible))]
    sender.close()
    assert len(visible) > 20
    assert got == visible
