"""One policy, three places: simulator, in-process vLLM, and the plug-in of a vLLM server.

The same arrivals are played under the scenario's step-latency model: by the simulator, by real
engines in virtual time (`backend="vllm"`, clock "model"), and by vLLM's scheduler with the policy
inside, whose clock is moved by hand from `schedule()` to `update_from_output()`. Whatever the
policy sees must be equal, so every decision must be: budget, seats, orders, skips, adverts, and
the instant at which it was taken.

LENS's caps on the tokens of single requests have no means in vLLM; both sides play without them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.latency.clock import FLOOR_NS, FS_PER_NS, step_ns
from synergy_gym.live.backend import LiveEpisode, LiveOptions, build_live
from synergy_gym.live.hosting.host import HostClock, HostedStep, PolicyHost
from synergy_gym.live.hosting.steering import ScheduledStep, Steering, without_positive_caps
from synergy_gym.live.inprocess.machine import MachineConfig, undisturbed
from synergy_gym.live.vllm.prompts import Prompts
from synergy_gym.live.vllm.tiny_model import SIZES
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.registry import make_engine_policy
from synergy_gym.policies.router.round_robin import RoundRobin
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.seats import play_policies
from synergy_gym.seeding import policy_stream, stream_seed
from synergy_gym.sim.build import build_simulator
from synergy_gym.sim.plain.server import LEAST_EMPTY_STEP_NS
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.types import BatchDecision, EngineSpec, EngineView, Outcome, StepReport
from synergy_gym.workload.base import Workload
from tests.engines import H100
from tests.live.alone import Loop, build_scheduler

pytestmark = pytest.mark.vllm

POLICIES = (
    "vllm-v1",
    "sarathi-512:chunk_tokens=96",
    "shortest-prompt",
    "lens-guarded",
    "lens-plus",
)
OVERLOAD = 1.8
"""Factor of the rate that the engine can just serve, so that requests wait and are reordered."""
Taken = tuple[Any, ...]


class AsLive(EnginePolicy):
    """A policy without the token caps that a live engine has to drop."""

    def __init__(self, policy: EnginePolicy) -> None:
        self.policy = policy
        self.reset = policy.reset  # type: ignore[method-assign]
        self.observe = policy.observe  # type: ignore[method-assign]

    def decide(self, engine: EngineView) -> BatchDecision:
        return without_positive_caps(self.policy.decide(engine))[0]


def as_taken(now_ns: int, decision: BatchDecision) -> Taken:
    orders = (decision.running_order, decision.waiting_order, decision.token_caps)
    lists = tuple(None if x is None else np.asarray(x).tolist() for x in orders)
    limits = (int(decision.token_budget), decision.max_running, int(decision.prefill_chunk))
    return now_ns, *limits, *lists, decision.advert


def world(policy: str, horizon_s: float) -> Scenario:
    """`live-chat` for a while; an engine that LENS need not begin to learn for `lens-guarded`."""
    scenario = load_scenario("live-chat")
    [engine] = scenario.engines
    if policy == "lens-guarded":
        engine = replace(engine, gpu=H100[0], model=H100[1])
    return replace(scenario, engines=(engine,), horizon_s=horizon_s, warmup_s=0.0)


def simulator(scenario: Scenario, workload: Workload, seed: int) -> Any:
    """The plain-Python simulator, which goes on until everything has left."""
    return build_simulator(
        scenario,
        seed=seed,
        workload=workload,
        auto_route=True,
        cls=lambda **given: ReferenceSimulator(**{**given, "stop_ns": 1 << 62}),  # type: ignore[arg-type]
    )


def played(sim: Any, scenario: Scenario, policy: str, seed: int) -> list[Taken]:
    """Play `sim` to its end with `policy`; returns its decisions."""
    taken: list[Taken] = []
    deciding = AsLive(make_engine_policy(policy))
    deciding.reset(policy_stream(seed, 0), scenario.engines[0], scenario.slos)

    class Recorded:
        def __getattr__(self, name: str) -> Any:
            return getattr(sim, name)

        def batch(self, decision: BatchDecision) -> None:
            taken.append(as_taken(sim.now_ns, decision))
            sim.batch(decision)

    play_policies(Recorded(), [deciding], RoundRobin(), policy_stream(seed))
    return taken


class Watched(Steering):
    """Keeps the last scheduled step."""

    step: ScheduledStep

    def scheduled(self, output: Any, start_ns: int) -> ScheduledStep:
        self.step = super().scheduled(output, start_ns)
        return self.step


class Steps:
    """A listener that keeps decisions, reports and ends of requests."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.reports: list[StepReport] = []
        self.finish_ns: dict[int, int] = {}

    def work_came(self, host: PolicyHost, now_ns: int) -> None:
        pass

    def step_ended(self, host: PolicyHost, step: HostedStep) -> None:
        assert step.decision is not None
        start_ns = step.end_ns - round(step.report.step_s * 1e9)
        self.taken.append(as_taken(start_ns, step.decision))
        self.reports.append(step.report)
        self.finish_ns |= {int(name.split("-")[0]): step.end_ns for name in step.finished}

    def close(self) -> None:
        pass


class Virtual:
    """A server's scheduler under a clock that is moved by hand.

    Args:
        scenario: its first engine is played.
        workload: the arrivals.
        policy: specification of the policy inside.
        seed: of step noise and policy.
    """

    def __init__(self, scenario: Scenario, workload: Workload, policy: str, seed: int) -> None:
        self.scenario, self.workload, self.policy, self.seed = scenario, workload, policy, seed
        self.spec: EngineSpec = scenario.engines[0]
        self.now_ns = 0
        self.steps = Steps()
        self.prompts = Prompts(workload, SIZES["tiny"].vocabulary, self.spec.block_size)
        self.tokens: dict[str, list[int]] = {}
        self.arrivals = [(int(at), r) for r, at in enumerate(workload.arrival_ns)]
        heapq.heapify(self.arrivals)
        self.clock = scenario.terms[0].clock(stream_seed(seed, "noise", 0))

    def scheduler_class(self) -> Any:
        """`PolicyScheduler` with this clock, and the workload's own tokens as samples."""
        from synergy_gym.live.scheduler import PolicyScheduler, with_host

        virtual = self

        class Scheduler(with_host(self.make_host, PolicyScheduler)):  # type: ignore[misc]
            def schedule(self, *args: Any, **kwargs: Any) -> Any:
                had_work = bool(self.running or self.waiting)
                output = super().schedule(*args, **kwargs)
                if had_work:
                    virtual.now_ns += virtual.duration_ns(self.host)
                return output

            def update_from_output(self, scheduler_output: Any, model_output: Any) -> Any:
                for name, index in model_output.req_id_to_index.items():
                    if model_output.sampled_token_ids[index]:
                        request = self.requests[name]
                        token = virtual.tokens[name][request.num_tokens]
                        model_output.sampled_token_ids[index] = [token]
                return super().update_from_output(scheduler_output, model_output)

        return Scheduler

    def make_host(self, scheduler: Any) -> PolicyHost:
        return PolicyHost(
            make_engine_policy(self.policy),
            Watched(scheduler, spec=self.spec, slos=self.scenario.slos),
            rng=policy_stream(self.seed, 0),
            clock=HostClock(lambda: self.now_ns, lambda: self.now_ns / 1e9),
            listeners=[self.steps],
        )

    def duration_ns(self, host: PolicyHost) -> int:
        assert isinstance(host.steering, Watched)
        step = host.steering.step
        if step.scheduled:
            return step_ns(self.clock, host.steps, *step.features.arguments())
        least = max(int(self.clock[FLOOR_NS]), int(self.clock[0]) // FS_PER_NS, LEAST_EMPTY_STEP_NS)
        return max(least, self.arrivals[0][0] - self.now_ns if self.arrivals else 0)

    def run(
        self, add: Callable[[int], None], step: Callable[[], Any], busy: Callable[[], bool]
    ) -> None:
        """Arrivals that are due, then a step, until everything has left."""
        while self.arrivals or busy():
            if not busy():
                self.now_ns = max(self.now_ns, self.arrivals[0][0])
            while self.arrivals and self.arrivals[0][0] <= self.now_ns:
                add(heapq.heappop(self.arrivals)[1])
            step()


def run_scheduler(virtual: Virtual, model: Path) -> Any:
    """Play the workload on vLLM's scheduler without a model; returns the scheduler."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    hasher = get_request_block_hasher(virtual.spec.block_size, sha256)
    scheduler = build_scheduler(virtual.scheduler_class(), model, virtual.spec)
    loop, traffic = Loop(scheduler), virtual.workload

    def add(request: int) -> None:
        name = f"{request:06d}"
        tokens = virtual.tokens[name] = virtual.prompts.tokens(request)
        sampling = SamplingParams(
            max_tokens=int(traffic.output_tokens[request]),
            ignore_eos=True,
            extra_args={"slo_class": int(traffic.slo_class[request])},
        )
        prompt = tokens[: int(traffic.prompt_tokens[request])]
        arrival_s = int(traffic.arrival_ns[request]) / 1e9
        scheduler.add_request(
            Request(name, prompt, sampling, None, arrival_time=arrival_s, block_hasher=hasher)
        )

    virtual.run(add, loop.step, scheduler.has_requests)
    return scheduler


def run_engine(virtual: Virtual, model: Path) -> Any:
    """Play the workload on a whole vLLM engine with its model; returns the scheduler."""
    import vllm

    config = MachineConfig.of(virtual.spec, model)
    arguments = config.arguments() | {"scheduler_cls": virtual.scheduler_class()}
    with undisturbed(1):
        engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
    # An engine that is shut down takes what all engines of the process share along.
    engine.engine_core._finalizer.detach()
    scheduler, traffic = engine.engine_core.engine_core.scheduler, virtual.workload

    def add(request: int) -> None:
        tokens = virtual.prompts.tokens(request)
        sampling = vllm.SamplingParams(
            max_tokens=int(traffic.output_tokens[request]),
            ignore_eos=True,
            detokenize=False,
            extra_args={"slo_class": int(traffic.slo_class[request])},
        )
        prompt = {
            "type": "token",
            "prompt_token_ids": tokens[: int(traffic.prompt_tokens[request])],
        }
        arrival_s = int(traffic.arrival_ns[request]) / 1e9
        name = engine.add_request(f"{request:06d}", prompt, sampling, arrival_time=arrival_s)
        virtual.tokens[str(name)] = tokens

    virtual.run(add, engine.step, scheduler.has_requests)
    return scheduler


def check(virtual: Virtual, sim: Any, taken: list[Taken], scheduler: Any) -> None:
    """Everything that the plug-in decided and saw equals what the simulator did."""
    records = sim.records()
    assert set(records.outcome.tolist()) == {int(Outcome.FINISHED)}
    host, steps = scheduler.host, virtual.steps
    assert host.failures == {}
    assert not host.steering.notes
    assert len(taken) == len(steps.taken) == host.steps
    for number, (simulated, live) in enumerate(zip(taken, steps.taken, strict=True)):
        assert simulated == live, f"decision {number} of {virtual.policy}"
    assert [steps.finish_ns[r] for r in range(len(records))] == records.finish_ns.tolist()
    assert steps.reports[-1] == sim.last_step(0)
    assert int(records.cached_tokens.sum()) > 1000, "the prefix cache plays its part"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_plug_in_decides_as_the_simulator_does(
    vllm: Any, tiny_model: Path, policy: str, seed: int
) -> None:
    scenario = world(policy, 3.0)
    workload = scenario.workload(OVERLOAD, seed)
    sim = simulator(scenario, workload, seed)
    taken = played(sim, scenario, policy, seed)
    virtual = Virtual(scenario, workload, policy, seed)
    scheduler = run_scheduler(virtual, tiny_model)
    check(virtual, sim, taken, scheduler)
    assert len(taken) > 400
    budgets = len({step[1] for step in taken})
    if policy == "lens-plus":
        assert budgets > 5
        assert any(step[5] is not None for step in taken), "reordered queues"
    if policy == "lens-guarded":
        assert budgets > 3
        assert scheduler.host.dropped_caps > 100


@pytest.mark.parametrize("policy", ["shortest-prompt", "lens-guarded", "lens-plus"])
def test_three_places_one_sequence_of_decisions(
    vllm: Any, tiny_model: Path, policy: str, seed: int
) -> None:
    scenario = world(policy, 1.0)
    workload = scenario.workload(OVERLOAD, seed)
    sim = simulator(scenario, workload, seed)
    taken = played(sim, scenario, policy, seed)
    options = LiveOptions(model=str(tiny_model), clock="model", token_caps="drop")
    live = build_live(
        LiveEpisode(
            scenario=scenario, options=options, seed=seed, workload=workload, auto_route=True
        )
    )
    try:
        in_process = played(live, scenario, policy, seed)
    finally:
        live.close()
    # In-process episodes stop at the last deadline; this simulator goes on.
    assert len(in_process) > 100
    assert in_process == taken[: len(in_process)]
    virtual = Virtual(scenario, workload, policy, seed)
    check(virtual, sim, taken, run_engine(virtual, tiny_model))
