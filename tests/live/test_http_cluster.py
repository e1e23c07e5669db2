"""A live cluster of HTTP servers under every fault, against small fake servers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.live.cluster.cluster import LiveCluster
from synergy_gym.live.cluster.http.fleet import HttpFleet
from synergy_gym.live.cluster.messages import LiveEvent, MetricsScraped
from synergy_gym.sim.points import DONE, ROUTE
from synergy_gym.types import SLO, ClientSpec, Event, Outcome, RouterRow
from tests.live.clusters import (
    IMPATIENT,
    PATIENT,
    SPEC,
    alive,
    episode,
    fake_fleet,
    in_turn,
    orders,
    outcomes,
    play,
    to_first,
    traffic,
    wait_until,
)
from tests.live.fake_server import FakeServer, Fleet

FINISHED, FAILED, ABORTED = Outcome.FINISHED, Outcome.FAILED, Outcome.ABORTED


def test_requests_stream_and_are_measured() -> None:
    with Fleet(2) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(30), 2))
        records = play(cluster)
        assert outcomes(records) == {FINISHED: 30}
        assert np.array_equal(records.engine, np.arange(30) % 2)
        assert np.all(records.attempts == 1)
        assert cluster.met() == 30
        gaps, counts = cluster.itl()
        assert counts.sum() == 30 * 4
        assert gaps.min() >= 0
        assert len(cluster.completions()) == 30
        assert sorted(len(fake.served) for fake in fakes) == [15, 15]
        body = fakes[0].served[0].body
        assert (len(body["prompt"]), body["max_tokens"], body["ignore_eos"]) == (20, 5, True)
        assert body["vllm_xargs"] == {"slo_class": "default"}
        assert body["cache_salt"]


def test_the_sender_keeps_absolute_deadlines_whatever_the_servers_do() -> None:
    # Open loop: slow answers delay no arrival, and a slow decision makes the next one late, but
    # latency counts from when the request was due.
    with Fleet(1, {"first_token_s": 0.3}) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(10), 1))
        records = play(cluster, before=lambda n: time.sleep(0.1 if n == 3 else 0))
        assert np.array_equal(records.arrival_ns, np.arange(10) * 20_000_000)
        assert np.all(records.first_token_ns - records.arrival_ns >= 300_000_000)
        assert records.first_token_ns[4] - records.arrival_ns[4] >= 380_000_000
        assert cluster.live_report()["late_max_s"] >= 0.08


def test_scraped_metrics_and_own_counts_reach_the_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Fleet(2, {"token_s": 0.02}) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(30, output=10), 2))
        scrapes: dict[int, list[MetricsScraped]] = {0: [], 1: []}
        seen = []

        def note(event: LiveEvent, take_in: Any = cluster._desk.take_in) -> None:
            take_in(event)
            if isinstance(event, MetricsScraped):
                scrapes[event.engine].append(event)

        def look(number: int) -> None:
            seen.append(cluster.router_rows())
            for fake in fakes if number == 29 else ():
                wait_until(lambda fake=fake: len(fake.finished) > 5)
                reads = fake.paths.count("/metrics")
                wait_until(lambda fake=fake, reads=reads: fake.paths.count("/metrics") > reads + 1)

        monkeypatch.setattr(cluster._desk, "take_in", note)
        play(cluster, before=look)
        in_flight = np.array(seen)[:, :, RouterRow.IN_FLIGHT]
        assert np.all(in_flight.max(axis=0) > 0)
        tokens = np.array(seen)[:, :, RouterRow.IN_FLIGHT_TOKENS]
        assert np.array_equal(tokens, 20 * in_flight)
        rows = cluster.router_rows()
        for engine, events in scrapes.items():
            table = np.array([event.values for event in events])
            tpot = table[:, RouterRow.SCRAPE_TPOT_NS - RouterRow.SCRAPE_NS]
            assert abs(tpot.max() - 20_000_000) < 1000
            finished = table[:, RouterRow.SCRAPE_FINISHED - RouterRow.SCRAPE_NS]
            assert 5 < finished.sum() <= 15
            last = rows[engine, RouterRow.SCRAPE_NS : RouterRow.SCRAPE_FINISHED + 1]
            assert np.array_equal(last[1:], table[-1, 1:])
            assert 0 < last[0] <= cluster.now_ns
            assert last[RouterRow.SCRAPE_TOTAL_BLOCKS - RouterRow.SCRAPE_NS] == SPEC.kv_blocks


def test_true_output_lengths_reach_no_view() -> None:
    # The same past with other output lengths: views and rows of the first decision are equal.
    def first_views(output: int) -> tuple[object, np.ndarray]:
        with Fleet(1) as fakes, fake_fleet(fakes) as fleet:
            cluster = LiveCluster(fleet, episode(traffic(3, output=output), 1))
            assert cluster.advance() == ROUTE
            view, rows = cluster.request_view(), cluster.router_rows()
            cluster.close()
            return view, rows

    short, long = first_views(2), first_views(900)
    for name in ("prompt_tokens", "session", "slo_class", "priority", "attempt"):
        assert getattr(short[0], name) == getattr(long[0], name)
    assert getattr(long[0], "expected_output_tokens", None) is None
    own = [RouterRow.ALIVE, RouterRow.IN_FLIGHT, RouterRow.IN_FLIGHT_TOKENS]
    assert np.array_equal(short[1][:, own], long[1][:, own])


def test_a_killed_server_is_masked_and_let_in_again_when_it_is_back() -> None:
    # Healthy servers are not probed during the episode: a request meets the dead one first.
    seldom = replace(PATIENT, health=replace(PATIENT.health, interval_s=60.0))
    with Fleet(2) as fakes, fake_fleet(fakes, seldom) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(60), 2))
        masks: list[int] = []
        marks: list[int] = []

        def disturb(number: int) -> None:
            masks.append(len(alive(cluster)))
            if number in (15, 40):
                marks.append(cluster.point_request)
            if number == 15:
                fakes[0].stop()
            if number == 40:
                fakes[0].start()
                wait_until(lambda: fleet.connections[0].is_up)

        records = play(cluster, before=disturb)
        report = cluster.live_report()
        # What had streamed when the server died has failed, all else was served elsewhere.
        failed = records.outcome == FAILED
        assert np.all(records.emitted_tokens[failed] > 0)
        assert (masks[0], min(masks), masks[-1]) == (2, 1, 2)
        stopped, back = marks
        assert np.all(records.engine[stopped:back] == 1)
        assert 0 in records.engine[back:]
        assert report["downs"] == [1, 0]
        assert report["retried_elsewhere"] == (records.attempts - 1).sum() > 0


@pytest.mark.parametrize("mode", ["error", "silent"])
def test_what_has_not_streamed_is_served_elsewhere(mode: str) -> None:
    with Fleet(2) as fakes, fake_fleet(fakes, IMPATIENT) as fleet:
        fakes[0].behaviour.mode = mode
        cluster = LiveCluster(fleet, episode(traffic(6), 2))
        began = time.monotonic()
        records = play(cluster, to_first)
        assert time.monotonic() - began < 60
        assert outcomes(records) == {FINISHED: 6}
        assert np.all(records.engine == 1)
        moved = records.attempts == 2
        assert moved[0]
        assert records.attempts.max() == 2
        assert cluster.live_report()["retried_elsewhere"] == moved.sum()
        # The failed attempt keeps its arrival: its client waits all the time.
        if mode == "silent":
            waited_s = (records.first_token_ns - records.arrival_ns)[0] / 1e9
            assert waited_s > IMPATIENT.first_token_s


@pytest.mark.parametrize("mode", ["cut", "stall", "error-in-stream", "garbage"])
def test_what_has_streamed_fails_within_its_timeout(mode: str) -> None:
    with Fleet(2) as fakes, fake_fleet(fakes, IMPATIENT) as fleet:
        fakes[0].behaviour.mode = mode
        cluster = LiveCluster(fleet, episode(traffic(4, gap_s=0.001), 2))
        records = play(cluster, lambda c, n: 0 if 0 in alive(c) and n == 0 else alive(c)[-1])
        assert outcomes(records) == {FINISHED: 3, FAILED: 1}
        assert records.outcome[0] == FAILED
        assert records.emitted_tokens[0] == fakes[0].behaviour.tokens_before
        assert records.attempts[0] == 1
        assert cluster.live_report()["failed_attempts"] == [1, 0]


def test_a_stream_cut_before_its_first_token_is_served_elsewhere() -> None:
    with Fleet(2, {"tokens_before": 0}) as fakes, fake_fleet(fakes) as fleet:
        fakes[0].behaviour.mode = "cut"
        records = play(LiveCluster(fleet, episode(traffic(5), 2)), to_first)
        assert outcomes(records) == {FINISHED: 5}
        assert np.all(records.engine == 1)


def test_clients_retry_what_failed_after_it_had_streamed() -> None:
    client = ClientSpec(max_retries=1, backoff_s=0.05)
    with Fleet(2) as fakes, fake_fleet(fakes) as fleet:
        fakes[0].behaviour.mode = "cut"
        cluster = LiveCluster(fleet, episode(traffic(1), 2, client=client))
        records = play(cluster, lambda c, n: n)
        assert outcomes(records) == {FINISHED: 1}
        assert (records.attempts[0], records.engine[0]) == (2, 1)
        assert records.first_token_ns[0] >= 50_000_000
        ended = cluster.completions()
        assert [view.outcome for view in ended] == [FAILED, FINISHED]


def test_when_every_engine_fails_a_request_it_fails_once() -> None:
    with Fleet(2, {"mode": "error"}) as fakes, fake_fleet(fakes) as fleet:
        records = play(LiveCluster(fleet, episode(traffic(3, gap_s=0.2), 2)), to_first)
        assert outcomes(records) == {FAILED: 3}
        assert np.all(records.attempts <= 2)
        assert max(len(fake.served) for fake in fakes) <= 3


def test_no_engine_at_all() -> None:
    with Fleet(2) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(30), 2))
        down = []

        def disturb(number: int) -> None:
            if number == 5:
                for fake in fakes:
                    fake.stop()
                down.append(cluster.now_ns)

        records = play(cluster, before=disturb)
        assert outcomes(records)[FAILED] >= 20
        assert cluster.live_report()["unrouted"] > 0


def test_a_hanging_server_is_found_by_its_health_and_returns() -> None:
    # Accepts connections and answers nothing at all, as a stopped process does.
    hasty = replace(PATIENT, health=replace(PATIENT.health, timeout_s=0.5))
    with Fleet(2) as fakes, fake_fleet(fakes, hasty) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(60), 2))
        engine = fleet.connections[0]

        def disturb(number: int) -> None:
            if number == 10:
                fakes[0].behaviour.health = fakes[0].behaviour.mode = "silent"
            if number == 30:
                wait_until(lambda: not engine.is_up)
                fakes[0].behaviour.health = fakes[0].behaviour.mode = "ok"
                wait_until(lambda: engine.is_up)

        records = play(cluster, before=disturb)
        assert outcomes(records) == {FINISHED: 60}
        assert cluster.live_report()["downs"][0] >= 1
        assert 0 in records.engine[32:]
        assert records.attempts.max() == 2


def test_unhealthy_answers_take_a_server_out() -> None:
    with Fleet(2) as fakes, fake_fleet(fakes) as fleet:
        fakes[0].behaviour.health = "error"
        cluster = LiveCluster(fleet, episode(traffic(40), 2))
        engine = fleet.connections[0]

        def wait(number: int) -> None:
            if number == 20:
                wait_until(lambda: not engine.is_up)

        records = play(cluster, before=wait)
        assert outcomes(records)[FINISHED] >= 20
        assert np.all(records.engine[-10:] == 1)


@pytest.mark.parametrize("metrics", ["missing", "garbage", "silent"])
def test_without_metrics_everything_else_goes_on(
    metrics: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Fleet(1, {"metrics": metrics}) as fakes, caplog.at_level(logging.WARNING):
        with fake_fleet(fakes) as fleet:
            cluster = LiveCluster(fleet, episode(traffic(20), 1))
            assert outcomes(play(cluster)) == {FINISHED: 20}
            rows = cluster.router_rows()
            assert np.all(rows[:, RouterRow.SCRAPE_NS] == 0)
            assert cluster.live_report()["engines"]["failed_scrapes"][0] >= 1
        assert "no metrics" in caplog.text


def test_a_prompt_that_is_too_long_is_rejected() -> None:
    with Fleet(2) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(2, prompt=1024), 2))
        records = play(cluster)
        assert outcomes(records) == {Outcome.REJECTED: 2}
        assert np.all(records.attempts == 1)
        assert all("max_tokens" in s.body for fake in fakes for s in fake.served)


def test_outputs_end_at_the_longest_sequence() -> None:
    with Fleet(1) as fakes, fake_fleet(fakes) as fleet:
        records = play(LiveCluster(fleet, episode(traffic(1, prompt=1020, output=50), 1)))
        assert (records.output_tokens[0], records.emitted_tokens[0]) == (4, 4)


def test_client_timeouts_abort_at_the_server_and_are_retried() -> None:
    # A server that works answers in milliseconds; no pause of a busy machine lasts seconds.
    client = ClientSpec(timeout_s=4.0, max_retries=1, backoff_s=0.05)
    with Fleet(2) as fakes, fake_fleet(fakes) as fleet:
        fakes[0].behaviour.first_token_s = 30.0
        fakes[0].behaviour.mode = "silent"
        cluster = LiveCluster(fleet, episode(traffic(4, gap_s=0.01), 2, client=client))
        first = {0: 0, 1: 1, 2: 0, 3: 1}
        records = play(cluster, lambda c, n: first.get(n, 1))
        assert outcomes(records) == {FINISHED: 4}
        assert records.attempts.tolist() == [2, 1, 2, 1]
        ended = [view for view in cluster.completions() if view.outcome == ABORTED]
        assert len(ended) == 2
        assert all(abs(view.e2e_s - 4.0) < 0.001 for view in ended)
        wait_until(lambda: fakes[0].open_streams == 0)


def test_client_timeouts_are_punctual_while_the_caller_is_busy() -> None:
    client = ClientSpec(timeout_s=1.0)
    with Fleet(1, {"mode": "silent"}) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(2, gap_s=0.01), 1, client=client))
        assert cluster.advance() == ROUTE
        cluster.route(0)
        assert cluster.advance() == ROUTE
        # The caller does something else meanwhile.
        wait_until(lambda: any(served.dropped for served in fakes[0].served))
        cluster.route(0)
        assert cluster.advance() == DONE
        assert outcomes(cluster.records()) == {ABORTED: 2}


def test_the_episode_is_cut_and_nothing_is_left_open() -> None:
    with Fleet(1, {"mode": "silent"}) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(3), 1, stop_ns=300_000_000))
        assert outcomes(play(cluster)) == {Outcome.UNFINISHED: 3}
        wait_until(lambda: fakes[0].open_streams == 0)


def test_one_fleet_plays_one_episode_after_the_other() -> None:
    with Fleet(2, {"token_s": 0.05}) as fakes, fake_fleet(fakes) as fleet:
        left = LiveCluster(fleet, episode(traffic(5), 2))
        for _ in range(5):
            assert left.advance() == ROUTE
            left.route(0)
        left.close()
        left.close()
        with pytest.raises(RuntimeError, match="closed"):
            left.advance()
        fleet.begin(orders())
        again = LiveCluster(fleet, episode(traffic(8), 2))
        assert outcomes(play(again)) == {FINISHED: 8}


def test_scenario_events_take_engines_down_as_in_the_simulator() -> None:
    events = (Event(0.0, "down", 1), Event(0.2, "down", 0), Event(0.2, "up", 1))
    with Fleet(2, {"token_s": 0.1}) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(50), 2, events=events))
        records = play(cluster)
        # What ran on engine 0 fails, streamed or not; nothing is tried elsewhere by the router.
        assert records.engine[0] == 0
        assert np.all(records.engine[11:] == 1)
        failed = records.outcome == FAILED
        assert np.array_equal(failed, records.engine == 0)
        assert np.all(records.attempts == 1)
    with pytest.raises(ValueError, match="slowdown"):
        episode(traffic(1), 1, events=(Event(0.1, "slowdown", 0, factor=2.0),))


def test_closed_loop_sessions_arrive_after_their_think_time() -> None:
    workload = traffic(3, gap_s=0.05, after=np.array([-1, 0, 1]), session=np.zeros(3))
    with Fleet(2) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(workload, 2))
        seen = []

        def look(number: int) -> None:
            view = cluster.cluster_view(np.random.default_rng(0), frozenset({"router"}))
            seen.append(view.session_engine)

        records = play(cluster, before=look)
        assert outcomes(records) == {FINISHED: 3}
        assert seen == [-1, 0, 1]
        think = records.arrival_ns[1:] - records.finish_ns[:-1]
        assert np.all(think >= workload.arrival_ns[1:])
        assert np.all(think < workload.arrival_ns[1:] + 5_000_000_000)


def test_one_engine_needs_no_router() -> None:
    with Fleet(1) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(10), 1, auto_route=True))
        assert cluster.advance() == DONE
        assert outcomes(cluster.records()) == {FINISHED: 10}


def test_misuse_is_refused() -> None:
    with Fleet(1) as fakes, fake_fleet(fakes) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(2), 1))
        with pytest.raises(ValueError, match="ROUTE"):
            cluster.route(0)
        assert cluster.advance() == ROUTE
        with pytest.raises(ValueError, match="does not exist"):
            cluster.route(1)
        with pytest.raises(RuntimeError, match="unanswered"):
            cluster.advance()
        with pytest.raises(NotImplementedError, match="sim"):
            cluster.snapshot()
        cluster.close()
    with pytest.raises(ValueError, match="exactly one engine"):
        episode(traffic(1), 2, auto_route=True)


def test_servers_that_are_not_there_are_named() -> None:
    fake = FakeServer()
    with fake:
        pass
    fleet = HttpFleet([SPEC], [fake.url], IMPATIENT)
    try:
        with pytest.raises(RuntimeError, match=str(fake.port)):
            fleet.begin(orders())
    finally:
        fleet.close()


def test_a_server_that_starts_late_is_let_in() -> None:
    with Fleet(2) as fakes:
        fakes[1].stop()
        with fake_fleet(fakes) as fleet:
            cluster = LiveCluster(fleet, episode(traffic(40), 2))

            def start(number: int) -> None:
                if number == 20:
                    fakes[1].start()
                    wait_until(lambda: fleet.connections[1].is_up)

            records = play(cluster, before=start)
            assert outcomes(records) == {FINISHED: 40}
            assert set(records.engine[:20]) == {0}
            assert 1 in records.engine[22:]


def test_servers_of_others_are_sent_plain_requests() -> None:
    behaviour = {"token_ids": False, "owned_by": "somebody"}
    with Fleet(1, behaviour) as fakes, fake_fleet(fakes) as fleet:
        records = play(LiveCluster(fleet, episode(traffic(5), 1)))
        assert records.emitted_tokens.tolist() == [5] * 5
        assert not {"vllm_xargs", "cache_salt"} & set(fakes[0].served[0].body)


@pytest.mark.parametrize(
    ("status", "is_refusal"), [(400, True), (422, True), (429, False), (404, False)]
)
def test_which_answers_blame_the_request(
    status: int, is_refusal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Fleet(1, {"mode": "error", "status": status}) as fakes, fake_fleet(fakes) as fleet:
        records = play(LiveCluster(fleet, episode(traffic(1), 1)))
        assert outcomes(records) == {Outcome.REJECTED if is_refusal else FAILED: 1}
        assert ("refused" in caplog.text) == is_refusal


def test_latencies_meet_objectives_as_in_the_records() -> None:
    slos = (SLO("default", ttft_s=0.1, e2e_s=5.0),)
    with Fleet(2) as fakes, fake_fleet(fakes) as fleet:
        fakes[1].behaviour.first_token_s = 0.2
        cluster = LiveCluster(fleet, episode(traffic(10, gap_s=0.05), 2, slos=slos))
        records = play(cluster, in_turn)
        on_time = records.first_token_ns - records.arrival_ns <= 100_000_000
        assert cluster.met() == on_time.sum() <= 5


def test_any_mixture_of_faults_loses_no_request(rng: np.random.Generator) -> None:
    modes = ["ok", "ok", "error", "silent", "stall", "cut", "error-in-stream", "garbage"]
    client = ClientSpec(timeout_s=1.5, max_retries=1, backoff_s=0.02)
    with Fleet(3) as fakes, fake_fleet(fakes, IMPATIENT) as fleet:
        cluster = LiveCluster(fleet, episode(traffic(150, gap_s=0.01), 3, client=client))
        stopped = [False] * 3

        def disturb(number: int) -> None:
            if number % 8:
                return
            index = int(rng.integers(3))
            fake = fakes[index]
            fake.behaviour.mode = str(rng.choice(modes))
            fake.behaviour.tokens_before = int(rng.integers(4))
            fake.behaviour.health = str(rng.choice(["ok", "ok", "error", "silent"]))
            fake.behaviour.metrics = str(rng.choice(["ok", "missing", "garbage"]))
            if stopped[index] or rng.random() < 0.3:
                (fake.start if stopped[index] else fake.stop)()
                stopped[index] = not stopped[index]

        records = play(cluster, lambda c, n: int(rng.choice(alive(c))), before=disturb)
        report = cluster.live_report()
        # Every attempt was sent once, or met no engine; each ended once (a view per attempt).
        assert records.attempts.sum() == report["sent"] + report["unrouted"]
        ended = cluster.completions()
        assert len(ended) == records.attempts.sum()
        # Two patient attempts and a pause: nothing waits longer, on a machine that keeps up.
        assert max(view.e2e_s for view in ended) < 2 * 1.5 + 0.02 + 30
        assert np.all(records.attempts <= 2 * 3)


def test_pushed_state_reaches_the_router_by_udp() -> None:
    from synergy_gym.live.cluster.http.fleet import engine_name
    from synergy_gym.live.router.push import PushInbox, PushSender
    from synergy_gym.sim.plain.telemetry import Ended, Gauges

    with Fleet(2) as fakes:
        inbox = PushInbox()
        fleet = HttpFleet([SPEC] * 2, [fake.url for fake in fakes], PATIENT, inbox=inbox)
        sender = PushSender(inbox.url, engine_name(1), kv_blocks=SPEC.kv_blocks)
        stranger = PushSender(inbox.url, "nobody", kv_blocks=1)
        try:
            fleet.begin(orders())
            cluster = LiveCluster(fleet, episode(traffic(30), 2))

            def push(number: int) -> None:
                if number == 10:
                    gauges = Gauges(3, 2, 17, SPEC.kv_blocks, 400)
                    sender.committed(time.monotonic_ns(), gauges, Ended(5_000_000, 64, 0))
                    stranger.started(time.monotonic_ns())

            play(cluster, before=push)
            rows = cluster.router_rows()
            assert rows[1, RouterRow.PUSH_RUNNING : RouterRow.PUSH_STEP_NS].tolist() == [
                *(3, 2, 17, SPEC.kv_blocks, 400)
            ]
            assert 0 < rows[1, RouterRow.PUSH_NS] < cluster.now_ns
            assert rows[0, RouterRow.PUSH_NS] == 0
            assert cluster.live_report()["engines"]["pushes"] == 2
        finally:
            sender.close()
            stranger.close()
            fleet.close()


def test_a_forgotten_cluster_does_not_keep_the_interpreter() -> None:
    with Fleet(1) as fakes:
        script = (
            "from tests.live.clusters import *\n"
            f"fleet = HttpFleet([SPEC], [{fakes[0].url!r}], PATIENT)\n"
            "fleet.begin(orders())\n"
            "cluster = LiveCluster(fleet, episode(traffic(3, output=900), 1))\n"
            "cluster.advance(); cluster.route(0)\n"
        )
        root = str(Path(__file__).resolve().parents[2])
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
