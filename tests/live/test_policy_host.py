"""A policy inside vLLM's own scheduler (no model): asked, timed, and replaced when it fails."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.live.hosting import build as hosting
from synergy_gym.live.hosting.decision_file import DecisionFile
from synergy_gym.live.hosting.host import HostClock, HostedStep, PolicyHost
from synergy_gym.live.hosting.rehearsal import rehearse
from synergy_gym.live.hosting.steering import Steering, without_positive_caps
from synergy_gym.live.router.push import PushInbox
from synergy_gym.live.vllm.settings import HostSettings
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.sim.plain.telemetry import PUSH_COLUMNS
from synergy_gym.types import SLO, BatchDecision, EngineView, RouterRow, StepReport
from tests.live.alone import SPEC, Loop, abort, add_request, build_scheduler

pytestmark = pytest.mark.vllm

SLOS = (SLO("chat", 1.0), SLO("batch"))
SMALL = 40
"""A token budget that no stock step keeps while prompts wait."""
KINDS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@dataclass
class Recorder(EnginePolicy):
    """A small budget; keeps what it is shown."""

    views: list[EngineView] = field(default_factory=list)
    steps: list[StepReport] = field(default_factory=list)

    def decide(self, engine: EngineView) -> BatchDecision:
        self.views.append(engine)
        assert len(engine.running) == engine.num_running
        return BatchDecision(SMALL)

    def observe(self, step: StepReport) -> None:
        self.steps.append(step)


@dataclass
class Failing(Recorder):
    """Fails where it is told to, on every `every`-th call."""

    where: str = "decide"
    every: int = 1
    calls: int = 0

    def _maybe(self, where: str) -> bool:
        self.calls += where == self.where
        return where == self.where and self.calls % self.every == 0

    def reset(self, *arguments: Any) -> None:
        if self._maybe("reset"):
            raise RuntimeError("no reset today")

    def observe(self, step: StepReport) -> None:
        super().observe(step)
        if self._maybe("observe"):
            raise RuntimeError("no observing today")

    def decide(self, engine: EngineView) -> BatchDecision:
        decision = super().decide(engine)
        if self._maybe("decide"):
            raise RuntimeError("no decision today")
        if self._maybe("type"):
            return None  # type: ignore[return-value]
        if self._maybe("illegal"):
            return BatchDecision(engine.spec.max_num_batched_tokens + 1)
        return decision


class Time:
    """A clock that stands still between the moments that a test moves it."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns


class Listener:
    """Keeps every hosted step."""

    def __init__(self) -> None:
        self.steps: list[HostedStep] = []
        self.came: list[int] = []

    def work_came(self, host: PolicyHost, now_ns: int) -> None:
        self.came.append(now_ns)

    def step_ended(self, host: PolicyHost, step: HostedStep) -> None:
        self.steps.append(step)

    def close(self) -> None:
        pass


Build = Callable[..., Any]


@pytest.fixture
def build(vllm: Any, tiny_model: Path) -> Build:
    """Builds a scheduler that hosts a policy, with a stopped clock unless told otherwise."""
    from synergy_gym.live.scheduler import AsyncPolicyScheduler, PolicyScheduler, with_host

    def make(
        policy: EnginePolicy,
        *,
        asynchronous: bool = False,
        spec: Any = SPEC,
        clock: HostClock | None = None,
        listeners: Any = (),
    ) -> Any:
        def host(scheduler: Any) -> PolicyHost:
            return PolicyHost(
                policy,
                Steering(scheduler, slos=SLOS),
                rng=np.random.default_rng(0),
                clock=clock or HostClock(Time(), None),
                listeners=listeners,
            )

        base = AsyncPolicyScheduler if asynchronous else PolicyScheduler
        cls = with_host(host, base)
        return build_scheduler(cls, tiny_model, spec, asynchronous=asynchronous)

    return make


def depth(scheduler: Any) -> int:
    return 2 if scheduler.asynchronous else 1


def test_each_step_is_decided_observed_once_and_timed(build: Build) -> None:
    policy, now, listener = Recorder(), Time(), Listener()
    scheduler = build(policy, clock=HostClock(now, None), listeners=[listener])
    loop = Loop(scheduler)
    for number in range(6):
        add_request(scheduler, str(number), 50, 4)
    starts, lasted, number = [], [], 0
    while scheduler.has_requests():
        number += 1
        starts.append(now.ns)
        output = loop.schedule()
        now.ns += 1000 * number
        lasted.append(1000 * number)
        loop.answer()
        now.ns += 77  # between steps: belongs to none
    real = len(listener.steps)
    assert real in (number, number - 1), "the last call only says which requests have finished"
    assert [step.report.step_s for step in listener.steps] == [ns / 1e9 for ns in lasted[:real]]
    assert [step.report.start_s for step in listener.steps] == [ns / 1e9 for ns in starts[:real]]
    assert [step.number for step in listener.steps] == list(range(1, real + 1))
    assert policy.steps == [step.report for step in listener.steps][: len(policy.steps)]
    assert len(policy.views) == real
    assert len(policy.steps) == real - 1, "the last step is observed with the next decision"
    assert [v.last_step for v in policy.views] == [None, *policy.steps]
    assert [v.now_s for v in policy.views] == [ns / 1e9 for ns in starts[:real]]
    assert all(step.report.tokens <= SMALL for step in listener.steps)
    assert sum(step.report.prefill_tokens for step in listener.steps) == 300
    assert sum(step.report.decodes for step in listener.steps) == 6 * 3
    assert sum(len(step.finished) for step in listener.steps) == 6
    assert listener.came == [1_000_000_000]
    assert output is not None


def test_first_tokens_and_arrivals_are_on_the_hosts_clock(build: Build) -> None:
    policy, now = Recorder(), Time()
    scheduler = build(policy, clock=HostClock(now, None))
    loop = Loop(scheduler)
    add_request(scheduler, "a", 30, 5)
    now.ns += 400
    loop.schedule()
    now.ns += 1000
    loop.answer()
    now.ns += 600
    loop.schedule()
    [waited] = policy.views[0].waiting.waited_s
    assert waited == 400 / 1e9
    [age] = policy.views[1].running.first_token_age_s
    assert age == 600 / 1e9
    [waited] = policy.views[1].running.waited_s
    assert waited == 2000 / 1e9


def test_arrival_is_vllms_own_where_the_wall_clock_is_known(build: Build) -> None:
    wall, now = 1e9, Time()
    scheduler = build(Recorder(), clock=HostClock(now, lambda: wall))
    from vllm.v1.request import Request

    def arrives(age_s: float) -> int:
        request = Request("r", [7] * 10, _sampling(), None, arrival_time=wall - age_s)
        scheduler.add_request(request)
        note = scheduler.host.steering.notes["r"]
        abort(scheduler, "r")
        return now.ns - int(note.arrival_ns)

    assert arrives(2.5) == 2_500_000_000
    assert arrives(-3.0) == 0, "a front end whose clock is ahead"


def _sampling() -> Any:
    from vllm.sampling_params import SamplingParams

    return SamplingParams(max_tokens=2, ignore_eos=True)


def test_slo_classes_by_name_and_index(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = build(Recorder())
    notes = scheduler.host.steering.notes
    asked = {"chat": 0, "batch": 1, 0: 0, 1: 1, "gold": 0, 2: 0, -1: 0}
    for number, (value, index) in enumerate(asked.items()):
        add_request(scheduler, str(number), 5, 2, slo_class=value)
        assert notes[str(number)].slo_class == index, value
    add_request(scheduler, "none", 5, 2)
    assert notes["none"].slo_class == 0
    assert scheduler.host.unknown_classes == sum(v in ("gold", 2, -1) for v in asked)
    assert "asks for slo_class 'gold'; declared are chat, batch" in caplog.text


@KINDS
def test_no_note_is_left_behind(build: Build, rng: np.random.Generator, asynchronous: bool) -> None:
    spec = SPEC.__class__(**{**_fields(SPEC), "kv_blocks": 32})
    scheduler = build(Recorder(), asynchronous=asynchronous, spec=spec)
    loop, notes = Loop(scheduler, depth(scheduler)), scheduler.host.steering.notes
    preempted = aborted = 0
    for number in range(300):
        prompt, output = int(rng.integers(1, 300)), int(rng.integers(1, 90))
        add_request(scheduler, str(number), prompt, output)
        for _ in range(int(rng.integers(0, 12))):
            stepped = loop.step()
            preempted += len(stepped.preempted_req_ids or ()) if stepped is not None else 0
            if rng.random() < 0.1 and scheduler.requests:
                abort(scheduler, str(rng.choice(list(scheduler.requests))))
                aborted += 1
            assert set(notes) == set(scheduler.requests)
        if number % 20 == 19:
            loop.run()
            assert not notes
    assert preempted >= 3
    assert aborted >= 20
    assert scheduler.host.failures == {}
    assert scheduler.host.in_flight == 0


def _fields(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


@KINDS
@pytest.mark.parametrize("where", ["reset", "observe", "decide", "type", "illegal"])
def test_a_failing_policy_means_stock_scheduling(
    build: Build,
    tiny_model: Path,
    where: str,
    asynchronous: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    stock_class = AsyncScheduler if asynchronous else Scheduler
    stock = build_scheduler(stock_class, tiny_model, asynchronous=asynchronous)
    listener = Listener()
    hosted = build(Failing(where=where), asynchronous=asynchronous, listeners=[listener])
    expected, seen = (_schedules(s, 2 if asynchronous else 1) for s in (stock, hosted))
    # Nothing was there to be observed before the first step.
    own = 1 + asynchronous if where == "observe" else 0
    budgets = [step.report.token_budget for step in listener.steps]
    assert budgets == [SMALL] * own + [SPEC.max_num_batched_tokens] * (len(budgets) - own)
    assert own or seen == expected
    host = hosted.host
    counted = {"type": "decision", "illegal": "decision"}.get(where, where)
    assert set(host.failures) == {counted}
    assert host.failed_steps >= host.steps - 2
    assert host.failures[counted] > 16
    told = [r for r in caplog.records if r.levelno == logging.ERROR]
    powers = [2**n for n in range(20) if 2**n <= host.failures[counted]]
    assert len(told) == len(powers), "the 1st, 2nd, 4th, 8th ... failure"
    assert told[0].exc_info
    assert not any(record.exc_info for record in told[1:])
    assert f"{powers[-1]} such failures so far" in told[-1].getMessage()


def _schedules(scheduler: Any, in_flight: int) -> list[dict[str, int]]:
    """The scheduled tokens of every step of one fixed workload."""
    draw, loop, schedules = random.Random(5), Loop(scheduler, in_flight), []
    for number in range(25):
        add_request(scheduler, str(number), draw.randint(1, 300), draw.randint(1, 20))
    while scheduler.has_requests():
        output = loop.step()
        schedules.append(dict(output.num_scheduled_tokens))
    return schedules


def test_a_policy_that_fails_now_and_then_decides_the_other_steps(build: Build) -> None:
    listener = Listener()
    scheduler = build(Failing(where="decide", every=3), listeners=[listener])
    _schedules(scheduler, 1)
    budgets = [step.report.token_budget for step in listener.steps]
    assert budgets == [
        SPEC.max_num_batched_tokens if n % 3 == 2 else SMALL for n in range(len(budgets))
    ]
    assert [step.decision is None for step in listener.steps] == [b != SMALL for b in budgets]
    assert scheduler.host.failures == {"decide": len(budgets) // 3}
    policy = scheduler.host.policy
    assert policy.steps == [step.report for step in listener.steps][:-1]


def test_a_reset_that_fails_is_tried_again(build: Build) -> None:
    policy = Failing(where="reset", every=2, calls=1)  # the first fails, the second works
    scheduler = build(policy)
    assert scheduler.host.failures == {"reset": 1}
    _schedules(scheduler, 1)
    assert scheduler.host.failures == {"reset": 1}
    assert policy.steps


def test_a_listener_that_raises_harms_nobody(build: Build) -> None:
    class Bad(Listener):
        def step_ended(self, host: PolicyHost, step: HostedStep) -> None:
            raise OSError("disk full")

    good = Listener()
    scheduler = build(Recorder(), listeners=[Bad(), good])
    _schedules(scheduler, 1)
    host = scheduler.host
    assert len(good.steps) == host.steps == host.failures["listener"]
    assert host.failed_steps == 0


def test_positive_token_caps_are_dropped_and_counted(build: Build) -> None:
    @dataclass
    class Capping(EnginePolicy):
        uses_token_caps = True

        def decide(self, engine: EngineView) -> BatchDecision:
            caps = np.full(engine.num_running + engine.num_waiting, 3, np.int64)
            caps[1::3], caps[2::3] = 0, -1
            return BatchDecision(100, token_caps=caps)

    scheduler = build(Capping())
    for number in range(6):
        add_request(scheduler, str(number), 20, 2)
    output = Loop(scheduler).step()
    assert set(output.num_scheduled_tokens) == {"0", "2", "3", "5"}, "the skips hold"
    assert scheduler.host.dropped_caps == 2
    assert scheduler.host.failures == {}


def test_decisions_without_positive_caps() -> None:
    decision = BatchDecision(5)
    assert without_positive_caps(decision) == (decision, 0)
    kept, dropped = without_positive_caps(BatchDecision(5, token_caps=np.array([-1, 0, 4, 9])))
    assert dropped == 2
    assert kept.token_caps is not None
    assert kept.token_caps.tolist() == [-1, 0, -1, -1]
    kept, dropped = without_positive_caps(BatchDecision(5, token_caps=np.array([1, -1])))
    assert (kept.token_caps, dropped) == (None, 1)


def test_asynchronous_steps_last_from_output_to_output(build: Build) -> None:
    policy, now, listener = Recorder(), Time(), Listener()
    scheduler = build(policy, asynchronous=True, clock=HostClock(now, None), listeners=[listener])
    loop = Loop(scheduler, 2)
    add_request(scheduler, "a", 30, 6)
    ends: list[int] = []
    loop.schedule()
    began = now.ns
    for number in range(1, 5):
        now.ns += 10  # the next step is scheduled while this one runs
        loop.schedule()
        now.ns += 1000 * number
        ends.append(now.ns)
        loop.answer()
    lengths = np.diff([began, *ends])
    assert [round(s.report.step_s * 1e9) for s in listener.steps] == lengths.tolist()
    reports = [step.report for step in listener.steps]
    assert [(r.decodes, r.prefill_tokens) for r in reports] == [(0, 30), (1, 0), (1, 0), (1, 0)]
    assert [r.context_tokens for r in reports] == [0, 30, 31, 32]
    assert policy.steps == reports[:3]
    loop.run()
    assert policy.steps == [step.report for step in listener.steps][: len(policy.steps)]
    assert all(step.report.tokens for step in listener.steps), "waiting for output is no step"
    assert sum(step.report.tokens for step in listener.steps) == 30 + 5


@pytest.mark.parametrize(("name", "cure"), [
    ("PolicyScheduler", "add --no-async-scheduling, or use --scheduler-cls .*AsyncPolicyScheduler"),
    ("AsyncPolicyScheduler", r"use --scheduler-cls .*\.PolicyScheduler"),
])  # fmt: skip
def test_the_wrong_class_for_the_mode_is_one_clear_error(
    vllm: Any, tiny_model: Path, name: str, cure: str
) -> None:
    from synergy_gym.live import scheduler

    with pytest.raises(ValueError, match=cure):
        build_scheduler(
            getattr(scheduler, name), tiny_model, asynchronous=name == "PolicyScheduler"
        )


def test_a_server_is_configured_by_its_environment(
    vllm: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synergy_gym.live.scheduler import PolicyScheduler

    inbox = PushInbox()
    settings = HostSettings(
        "sarathi-512:chunk_tokens=64", "a:ttft_s=1;b:e2e_s=9", inbox.url, "e7", str(tmp_path / "d")
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    scheduler = build_scheduler(PolicyScheduler, tiny_model)
    assert scheduler.host.steering.slos == (SLO("a", 1.0), SLO("b", e2e_s=9.0))
    _schedules(scheduler, 1)
    scheduler.host.close()
    engine, *steps = map(json.loads, (tmp_path / "d").read_text().splitlines())
    assert engine["policy"] == "sarathi-512:chunk_tokens=64"
    assert engine["spec"]["kv_blocks"] == SPEC.kv_blocks
    assert {step["decision"]["token_budget"] for step in steps} == {64}
    assert len(steps) == scheduler.host.steps
    assert all(step["step"]["tokens"] <= 64 and step["by"] == "policy" for step in steps)
    pushes = inbox.drain()
    inbox.close()
    assert {push.engine for push in pushes} == {"e7"}
    waiting = PUSH_COLUMNS.index(RouterRow.PUSH_WAITING)
    assert pushes[0].state[waiting] == 0, "the start-up message"
    assert any(push.state[waiting] > 0 for push in pushes)


def test_failures_are_in_the_decisions_file(build: Build, tmp_path: Path) -> None:
    policy = Failing(where="decide", every=2)
    file = DecisionFile(tmp_path / "d", "e", policy, SPEC, SLOS)
    scheduler = build(policy, listeners=[file])
    _schedules(scheduler, 1)
    file.close()
    lines = [json.loads(line) for line in (tmp_path / "d").read_text().splitlines()][1:]
    assert [line["by"] for line in lines[:4]] == ["policy", "stock", "policy", "stock"]
    assert lines[3]["failures"] == {"decide": 2}
    assert lines[3]["decision"] is None


def test_a_rehearsal_leaves_the_policy_alone(caplog: pytest.LogCaptureFixture) -> None:
    policy = Recorder()
    rehearse(policy, SPEC, SLOS)
    assert policy == Recorder()
    rehearse(Failing(where="decide"), SPEC, SLOS)
    assert "failed in its rehearsal: RuntimeError: no decision today" in caplog.text


@pytest.mark.parametrize("name", ["lens-plus", "lens-guarded", "vllm-v0", "lens-ref"])
def test_registered_policies_schedule_both_kinds_of_scheduler(
    vllm: Any, tiny_model: Path, name: str
) -> None:
    from synergy_gym.live.scheduler import AsyncPolicyScheduler, PolicyScheduler, with_host

    for base, asynchronous in ((PolicyScheduler, False), (AsyncPolicyScheduler, True)):
        cls = with_host(lambda s: hosting.host(s, HostSettings(name), "e"), base)
        scheduler = build_scheduler(cls, tiny_model, asynchronous=asynchronous)
        began = time.monotonic()
        _schedules(scheduler, depth(scheduler))
        assert scheduler.host.failures == {}, (name, time.monotonic() - began)
        assert not scheduler.requests
