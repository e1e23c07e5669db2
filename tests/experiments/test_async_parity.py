"""`AsyncSimulator` against vLLM's own asynchronous scheduler, the same policy inside both.

vLLM's scheduler runs without a model in the loop of its engine core, under a virtual clock. All
that the policy is shown and told must be equal, and when each request gets its tokens. Memory is
ample: blocks that ending requests still hold are the one thing that the simulator does not know of.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.clocks.async_simulator import VLLM, AsyncSimulator
from synergy_gym.latency.clock import StepTerms, step_ns
from synergy_gym.live.hosting.host import HostClock, PolicyHost
from synergy_gym.live.hosting.steering import Steering
from synergy_gym.live.vllm.tiny_model import write_model
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.registry import make_engine_policy
from synergy_gym.policies.router.round_robin import RoundRobin
from synergy_gym.seats import play_policies
from synergy_gym.types import SLO, BatchDecision, EngineSpec, EngineView, StepReport
from synergy_gym.workload.base import Workload, make_workload
from tests.live.alone import Loop, build_scheduler
from tests.strategies import spec

pytestmark = pytest.mark.vllm

TERMS = StepTerms(base_ms=1.0, per_token_ms=0.01)
SLOS = (SLO("chat", ttft_s=0.2, tpot_s=0.02, e2e_s=2.0),)
REQUESTS, EPISODES = 60, 4


class Diary(EnginePolicy):
    """Keeps all that a policy is shown and told, and decides like `inner`, or at random."""

    def __init__(self, inner: EnginePolicy | None) -> None:
        self.inner = inner
        self.pages: list[tuple[Any, ...]] = []

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        if self.inner is not None:
            self.inner.reset(rng, spec, slos)

    def observe(self, step: StepReport) -> None:
        self.pages.append(("told", step))
        if self.inner is not None:
            self.inner.observe(step)

    def decide(self, engine: EngineView) -> BatchDecision:
        running, waiting = engine.running, engine.waiting
        columns = [
            getattr(queue, name).tolist() for queue in (running, waiting) for name in SHOWN_COLUMNS
        ]
        self.pages.append(("shown", engine.state.tolist(), engine.last_step, columns))
        if self.inner is not None:
            return self.inner.decide(engine)
        return _random_decision(engine, len(self.pages))


SHOWN_COLUMNS = (
    *("prompt_tokens", "computed_tokens", "generated_tokens", "waited_s", "first_token_age_s"),
    "priority",
)


def _random_decision(engine: EngineView, number: int) -> BatchDecision:
    """Any decision that vLLM can obey and that serves somebody, drawn from what is shown."""
    rng = np.random.default_rng([number, *engine.state[:10].tolist()])
    running, waiting = engine.num_running, engine.num_waiting
    skips = np.where(rng.random(running + waiting) < 0.3, 0, -1)
    skips[:1] = -1
    may_sort = engine.spec.scheduling == "fcfs" and rng.random() < 0.3
    return BatchDecision(
        token_budget=int(rng.integers(1, engine.spec.max_num_batched_tokens + 1)),
        max_running=int(rng.integers(1, engine.spec.max_num_seqs + 1)),
        prefill_chunk=int(rng.choice([0, 5, 16])),
        running_order=rng.permutation(running) if rng.random() < 0.3 else None,
        waiting_order=rng.permutation(waiting) if may_sort else None,
        token_caps=skips if rng.random() < 0.4 else None,
    )


def _traffic(rng: np.random.Generator) -> Workload:
    gaps = rng.exponential(rng.choice([2e6, 8e6, 30e6]), REQUESTS)
    gaps += 60e6 * (rng.random(REQUESTS) < 0.05)
    columns = rng.integers(1, [120, 30], (REQUESTS, 2)).T
    return make_workload(
        np.round(gaps).astype(np.int64).cumsum(), *columns, priority=rng.integers(0, 3, REQUESTS)
    )


class Core:
    """`EngineCore.step_with_batch_queue` of vLLM under a virtual clock.

    A step of the GPU begins when it is submitted and the one before it has ended.
    """

    def __init__(self, policy: Diary, traffic: Workload, engine: EngineSpec, model: Path) -> None:
        from synergy_gym.live.scheduler import AsyncPolicyScheduler, with_host

        def host(scheduler: Any) -> PolicyHost:
            steering = Steering(scheduler, spec=engine, slos=SLOS)
            clock = HostClock(lambda: self.now_ns, None)
            return PolicyHost(policy, steering, rng=np.random.default_rng(0), clock=clock)

        self.now_ns = 0
        self.traffic = traffic
        cls = with_host(host, AsyncPolicyScheduler)
        self.scheduler = build_scheduler(cls, model, engine, asynchronous=True)
        self.loop = Loop(self.scheduler, depth=2)
        self.first_ns, self.finish_ns = ([-1] * len(traffic) for _ in range(2))
        self._queue: deque[tuple[int, int]] = deque()
        self._arrived = 0

    def play(self) -> None:
        """Serve all traffic."""
        arrivals, scheduler = self.traffic.arrival_ns.tolist(), self.scheduler
        while True:
            if not (scheduler.has_requests() or self._queue):
                if self._arrived == len(arrivals):
                    return
                self.now_ns = max(self.now_ns, arrivals[self._arrived])
            self._arrive()
            if scheduler.has_requests():
                tokens = self._submit()
                if len(self._queue) < 2 and (tokens or scheduler.has_requests()):
                    continue
            self._wait()

    def _submit(self) -> int:
        output = self.loop.schedule()
        tokens, sequences = output.total_num_scheduled_tokens, len(output.num_scheduled_tokens)
        lasts_ns = step_ns(TERMS.clock(), 0, sequences, tokens, 0, 0, 0, 0, 0) if tokens else 0
        self._queue.append((self.now_ns, lasts_ns))
        return int(tokens)

    def _wait(self) -> None:
        submitted_ns, lasts_ns = self._queue.popleft()
        self.now_ns = max(self.now_ns, submitted_ns) + lasts_ns
        for group in self.loop.answer().values():
            for answer in group.outputs:
                request = int(answer.request_id)
                if self.first_ns[request] < 0:
                    self.first_ns[request] = self.now_ns
                if answer.finish_reason is not None:
                    self.finish_ns[request] = self.now_ns

    def _arrive(self) -> None:
        now_ns = self.now_ns
        for request in range(self._arrived, len(self.traffic)):
            if (arrival_ns := int(self.traffic.arrival_ns[request])) > now_ns:
                break
            self.now_ns = arrival_ns
            self.scheduler.add_request(self._request(request))
            self._arrived += 1
        self.now_ns = now_ns

    def _request(self, index: int) -> Any:
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.request import Request

        init_none_hash(sha256)
        rng = np.random.default_rng(index)  # prompts that share nothing
        return Request(
            request_id=str(index),
            prompt_token_ids=rng.integers(10, 1000, self.traffic.prompt_tokens[index]).tolist(),
            sampling_params=SamplingParams(
                max_tokens=int(self.traffic.output_tokens[index]), ignore_eos=True
            ),
            pooling_params=None,
            priority=int(self.traffic.priority[index]),
            arrival_time=float(self.traffic.arrival_ns[index]),
            block_hasher=get_request_block_hasher(16, sha256),
        )


@pytest.mark.parametrize(
    ("policy", "engine"),
    [
        (None, {}),
        (None, {"prefix_caching": True}),
        (None, {"scheduling": "priority"}),
        ("vllm-v1", {}),
        ("lens-plus", {}),
    ],
    ids=["random", "caching", "priority", "vllm-v1", "lens-plus"],
)
def test_equal_to_vllms_asynchronous_scheduler(
    vllm: Any, tmp_path: Path, rng: np.random.Generator, policy: str | None, engine: dict[str, Any]
) -> None:
    model, empty_steps = write_model(tmp_path / "tiny"), 0
    for _ in range(EPISODES):
        limits = {
            "max_num_seqs": int(rng.choice([2, 8, 16])),
            "max_num_batched_tokens": int(rng.choice([16, 64, 256])),
            "max_model_len": 256,
            "kv_blocks": 400,
        }
        shape, traffic = spec(**limits, **engine), _traffic(rng)
        ours, theirs = (
            Diary(None if policy is None else make_engine_policy(policy)) for _ in range(2)
        )
        sim = AsyncSimulator(
            VLLM, engines=[shape], clocks=[TERMS.clock()], workload=traffic, slos=SLOS,
            auto_route=True,
        )  # fmt: skip
        ours.reset(np.random.default_rng(0), shape, SLOS)
        play_policies(sim, [ours], RoundRobin(), np.random.default_rng(0))
        core = Core(theirs, traffic, shape, model)
        core.play()
        records = sim.records()
        # vLLM is asked once more, when its last step is in flight: that step is empty.
        assert ours.pages == theirs.pages[: len(ours.pages)]
        assert [page[0] for page in theirs.pages[len(ours.pages) :]].count("shown") == 1
        assert records.first_token_ns.tolist() == core.first_ns
        assert records.finish_ns.tolist() == core.finish_ns
        assert sim.tight_steps == 0
        empty_steps += sim.empty_steps
    assert empty_steps > 0
