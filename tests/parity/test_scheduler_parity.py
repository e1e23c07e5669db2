"""The simulator's engine against vLLM's own V1 scheduler, step by step, without a model.

Random workloads with prefix caching off and on (shared prefixes, follow-up turns that contain
an earlier prompt and output), FCFS and priority, random budgets, seats and chunk caps,
reordered queues, skips, aborts at and between iterations, and KV pools small enough to preempt
and evict. Both sides see the same decisions; every state before and every result of an
iteration must be equal. `SYNERGY_GYM_PARITY_WORKLOADS` sets the number of workloads (200).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pytest

from synergy_gym.latency.terms import StepTerms
from synergy_gym.sim.points import BATCH
from synergy_gym.sim.reference import ReferenceEngine, ReferenceSimulator
from synergy_gym.sim.reference_engine import Job
from synergy_gym.types import SLO, BatchDecision, ClientSpec, EngineSpec, EngineView, IntArray
from synergy_gym.workload.base import Content, Workload, make_workload

pytestmark = pytest.mark.parity

WORKLOADS = int(os.environ.get("SYNERGY_GYM_PARITY_WORKLOADS", "200"))
STEP_NS = 1_000_000
NEVER = 1 << 40
LEAST_PER_WORKLOAD = {
    "steps": 50,
    "preemptions": 2,
    "priority_victims": 0.1,
    "hit_tokens": 200,
    "capped_chunks": 2,
    "skips": 20,
    "gate_blocked": 2,
    "aborts": 0.5,
    "evictions": 10,
}
"""What the workloads must have exercised on average (`evictions` where a side tells)."""

State = tuple[list[tuple[int, int, int]], list[int], int]


@dataclass(frozen=True)
class Case:
    """One random workload: an engine, requests that arrive at planned steps, and a timeout."""

    seed: int
    spec: EngineSpec
    arrival_step: IntArray
    workload: Workload
    tokens: list[list[int]]
    """Per request the true tokens of prompt and output; equal exactly where content is."""
    timeout_steps: float

    def due(self, request: int) -> float:
        """Step (or instant within one) at which the client gives up."""
        return float(self.arrival_step[request]) + self.timeout_steps


class Side(Protocol):
    """A simulated engine that replays what vLLM was asked to do."""

    def begin(self, step: int, arrivals: list[int], aborts: list[int]) -> State:
        """Cancel, then accept requests; returns the state that step `step` starts from."""
        ...

    def step(self, decision: BatchDecision, abort_during: set[int]) -> dict[str, Any]:
        """Run one iteration."""
        ...


@dataclass(frozen=True)
class Moment:
    """One step as vLLM did it."""

    step: int
    arrivals: list[int]
    aborts: list[int]
    state: State
    decision: BatchDecision
    abort_during: set[int]
    result: dict[str, Any]


class EngineSide:
    """`ReferenceEngine` driven directly."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.engine = ReferenceEngine(case.spec)
        self._jobs: dict[int, Job] = {}

    def begin(self, step: int, arrivals: list[int], aborts: list[int]) -> State:
        for request in aborts:
            self.engine.remove(self._jobs[request])
        for request in arrivals:
            self._jobs[request] = job = _job(self._case, request)
            self.engine.add(job)
        running = [(job.request, job.computed, job.generated) for job in self.engine.running]
        return running, [job.request for job in self.engine.waiting], self.engine.pool.free

    def step(self, decision: BatchDecision, abort_during: set[int]) -> dict[str, Any]:
        step = self.engine.plan(decision, 0)
        scheduled = {job.request: n for job, n in step.scheduled.items()}
        hits = {job.request: job.computed for job in step.admitted}
        for request in abort_during:
            job = self._jobs[request]
            job.abort_due = job in self.engine.running
            if not job.abort_due:
                self.engine.remove(job)
        outputs = self.engine.commit(step)
        self.engine.check()
        return {
            "scheduled": scheduled,
            "tokens": step.features.tokens,
            "preempted": {job.request for job in step.preempted},
            "admitted": hits,
            "finished": [job.request for job in outputs.finished],
        }


class SimulatorSide:
    """A simulator driven through BATCH points; every iteration lasts one millisecond.

    Requests are told apart by their SLO class. Views do not show the cache hit of a
    re-admission, the order of finishing, nor a request that was cancelled in or right after
    the iteration, so these stay out of the comparison (their effects do not).
    """

    def __init__(self, case: Case, simulator: Any) -> None:
        n = len(case.workload)
        self._case = case
        timeout_s = case.timeout_steps / 1000 if case.timeout_steps < NEVER else 0.0
        self._simulator = simulator(
            engines=[case.spec],
            clocks=[StepTerms(base_ms=1.0).clock()],
            workload=case.workload,
            slos=[SLO(str(r)) for r in range(n)],
            client=ClientSpec(timeout_s=timeout_s),
            auto_route=True,
        )
        self._point = self._simulator.advance()

    def begin(self, step: int, arrivals: list[int], aborts: list[int]) -> State:
        assert self._point == BATCH, f"no BATCH point at step {step}"
        assert self._simulator.now_ns == step * STEP_NS, f"at {self._simulator.now_ns} ns"
        return _state(self._simulator.engine_view(0))

    def step(self, decision: BatchDecision, abort_during: set[int]) -> dict[str, Any]:
        simulator = self._simulator
        before, waiting, _ = _state(simulator.engine_view(0))
        preemptions = simulator.records().preemptions.copy()
        simulator.batch(decision)
        self._point = simulator.advance()
        records = simulator.records()
        state = _state(simulator.engine_view(0))
        present = {*waiting, *(r for r, *_ in before)}
        finished = {r for r in present if records.finish_ns[r] >= 0}
        computed = {r: done for r, done, _ in state[0]}
        for r in finished:
            computed[r] = int(records.prompt_tokens[r] + records.output_tokens[r]) - 1
        grown = {r: computed[r] - done for r, done, _ in before if computed.get(r, 0) > done}
        admitted: dict[int, int | None] = {r: None for r in waiting if r in computed}
        scheduled: dict[int, int | None] = {**grown, **admitted}
        for r in admitted:
            if preemptions[r] == 0:
                admitted[r] = int(records.cached_tokens[r])
                scheduled[r] = computed[r] - int(records.cached_tokens[r])
        return {
            "scheduled": scheduled,
            "tokens": simulator.last_step(0).tokens,
            "preempted": set(np.flatnonzero(records.preemptions > preemptions).tolist()),
            "admitted": admitted,
            "finished": finished,
            "gone": present - finished - _everybody(state),
        }


def compiled_side(case: Case) -> SimulatorSide:
    """The compiled simulator."""
    from synergy_gym.sim.cluster import Simulator

    return SimulatorSide(case, Simulator)


SIDES: dict[str, Any] = {
    "reference-engine": EngineSide,
    "reference-simulator": lambda case: SimulatorSide(case, ReferenceSimulator),
    "compiled-simulator": compiled_side,
}


@pytest.fixture(scope="module")
def traces(vllm_modules: Any) -> Any:
    """What vLLM does in workload `seed`: (case, moments, coverage); the last 256 are kept."""

    @lru_cache(maxsize=256)
    def trace(seed: int) -> tuple[Case, list[Moment], Counter[str]]:
        case, coverage = random_case(seed), Counter[str]()
        return case, list(play_vllm(case, vllm_modules.scheduler(case.spec, coverage))), coverage

    return trace


@pytest.mark.parametrize("name", SIDES)
def test_every_step_equals_vllm(name: str, traces: Any) -> None:
    """0 mismatches, and every interesting case has occurred often enough."""
    total: Counter[str] = Counter()
    for seed in range(WORKLOADS):
        case, moments, coverage = traces(seed)
        side = SIDES[name](case)
        for moment in moments:
            _replay(case, moment, side)
        total += coverage
        if isinstance(side, EngineSide):
            total["evictions"] += side.engine.pool.evictions
    print(f"{name}: {WORKLOADS} workloads, {dict(total)}")
    missed = {
        what: total[what]
        for what, least in LEAST_PER_WORKLOAD.items()
        if total[what] < least * WORKLOADS and (what != "evictions" or what in total)
    }
    assert not missed or WORKLOADS < 100, f"hardly exercised in {WORKLOADS} workloads: {missed}"


def _replay(case: Case, moment: Moment, side: Side) -> None:
    where = f"workload {case.seed} step {moment.step} ({case.spec})"
    state = side.begin(moment.step, moment.arrivals, moment.aborts)
    assert state == moment.state, f"{where}: state\nvLLM {moment.state}\nsim  {state}"
    mine, theirs = side.step(moment.decision, moment.abort_during), moment.result
    for what, expected in theirs.items():
        assert _same(mine[what], expected, mine.get("gone", set())), (
            f"{where}: {what}\nvLLM {expected}\nsim  {mine[what]}\n{moment.decision}"
        )


def _same(mine: Any, theirs: Any, gone: set[int]) -> bool:
    """Equal, where `mine` says anything (`None`, or a set for a list, says less).

    `gone` are requests that were cancelled before a simulator could be asked about them.
    """
    if isinstance(mine, set):
        return mine == set(theirs)
    if not isinstance(mine, dict):
        return bool(mine == theirs)
    expected = {r: n for r, n in theirs.items() if r not in gone}
    return mine.keys() == expected.keys() and all(n in (None, expected[r]) for r, n in mine.items())


def play_vllm(case: Case, vllm: Any) -> Iterator[Moment]:
    """Let vLLM serve the workload under random decisions."""
    arrivals = case.arrival_step.tolist()
    accepted = step = 0
    alive: set[int] = set()
    while accepted < len(arrivals) or alive:
        if not alive:
            step = max(step, arrivals[accepted])
        aborts = sorted(r for r in alive if case.due(r) == step)
        vllm.abort(aborts)
        new = [r for r in range(accepted, len(arrivals)) if arrivals[r] <= step]
        for r in new:
            prompt, priority = case.workload.prompt_tokens[r], case.workload.priority[r]
            vllm.add(r, int(prompt), case.tokens[r], int(priority), float(step))
        accepted += len(new)
        following = arrivals[accepted] if accepted < len(arrivals) else 0
        state = vllm.state()
        alive = _everybody(state)
        if not alive:
            continue
        decision = random_decision(case, step, len(state[0]), len(state[1]))
        ends = [max(step + 1, following), step + 1]
        due = [{r for r in alive if step < case.due(r) < end} for end in ends]
        result, during = vllm.step(decision, *due)
        yield Moment(step, new, aborts, state, decision, during, result)
        alive -= during | set(result["finished"])
        step = ends[bool(result["tokens"])]


def random_decision(case: Case, step: int, running: int, waiting: int) -> BatchDecision:
    """Any decision that is legal with these queue lengths; drawn from (seed, step)."""
    rng = np.random.default_rng([case.seed, step])
    style = case.seed % 3
    budgets = [[1, 8, 16, 64, 200, 512], [32, 100, 512], [8, 256, 512, 512]][style]
    seats = case.spec.max_num_seqs
    reorders = case.spec.scheduling == "fcfs" and rng.random() < 0.15
    skips = rng.random(running + waiting) < rng.choice([0.0, 0.0, 0.0, 0.1, 0.4])
    return BatchDecision(
        token_budget=int(rng.choice(budgets)),
        max_running=None if rng.random() < 0.5 else int(rng.integers(1, seats + 1)),
        prefill_chunk=int(rng.choice([0, 0, 0, 3, 16, 50, 128])),
        running_order=rng.permutation(running) if rng.random() < 0.15 else None,
        waiting_order=rng.permutation(waiting) if reorders else None,
        token_caps=np.where(skips, 0, -1) if skips.any() else None,
    )


def random_case(seed: int) -> Case:
    """An engine and a workload; half of them with prefix caching, half with priorities."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([16, 16, 32, 64, 128]))
    kv_tokens = int(rng.choice([700, 1000, 1500, 2500, 20000]))
    spec = EngineSpec(
        name="parity",
        gpu="none",
        model="none",
        profile="none",
        max_num_seqs=int(rng.choice([2, 8, 32])),
        max_num_batched_tokens=512,
        max_model_len=4096,
        kv_blocks=max(kv_tokens // size, 7),
        block_size=size,
        prefix_caching=seed % 2 == 0,
        scheduling="priority" if seed // 2 % 2 else "fcfs",
        watermark_blocks=int(rng.choice([0, 0, 0, 1, 3])),
    )
    n = 24
    arrival = np.cumsum(rng.integers(0, int(rng.choice([3, 10, 25])), n))
    room = min(spec.kv_blocks * size, spec.max_model_len) - 1
    prompt, output, content = _random_content(rng, n, room, size)
    shared = spec.prefix_caching and rng.random() < 0.9
    unrelated = Content(np.arange(n), np.full(n, -1), np.zeros(n, np.int64))
    workload = make_workload(
        arrival * STEP_NS,
        prompt,
        output,
        slo_class=np.arange(n),
        priority=rng.integers(0, 3, n),
        content=content if shared else None,
    )
    timeout = float(rng.choice([NEVER, NEVER, 60, 90.5, 200, 150.25]))
    tokens = [_tokens(content if shared else unrelated, r, prompt[r] + output[r]) for r in range(n)]
    return Case(seed, spec, arrival, workload, tokens, timeout)


def _random_content(
    rng: np.random.Generator, n: int, room: int, size: int
) -> tuple[IntArray, IntArray, Content]:
    """Lengths and a content tree: shared prefixes, repeated prompts, follow-up turns."""
    parent, start = [-1, -1, -1], [0, 0, 0]
    leaf: list[int] = []
    prompt = np.empty(n, np.int64)
    output = rng.integers(1, min(70, room // 2), n)
    for r in range(n):
        kind = rng.choice(["prefix", "new", "again", "follow"])
        extra = int(rng.choice([1, 3, size, rng.integers(1, 200), size * rng.integers(1, 10)]))
        if kind in ("again", "follow") and r > 0:
            earlier = int(rng.integers(r))
            shared = int(prompt[earlier] + output[earlier] * (kind == "follow"))
            above = leaf[earlier]
        else:
            shared = int(rng.choice([size * rng.integers(0, 12), rng.integers(0, 400)]))
            above = int(rng.integers(3)) if kind == "prefix" else -1
        if kind == "again" and r > 0:
            leaf.append(above)
            wanted = shared + int(rng.choice([0, extra]))
        else:
            leaf.append(len(parent))
            parent.append(above)
            start.append(max(shared, start[above]) if above >= 0 else 0)
            wanted = shared + extra
        prompt[r] = min(max(wanted, 1), room - output[r])
    return prompt, output, Content(np.array(leaf), np.array(parent), np.array(start))


def _tokens(content: Content, request: int, length: int) -> list[int]:
    """Token ids that are equal exactly where the covering node is the same."""
    tokens = [0] * length
    node, end = int(content.leaf[request]), length
    while node >= 0:
        begin = int(content.start[node])
        for position in range(begin, end):
            tokens[position] = (node + 1 << 16) + position
        end = min(end, begin)
        node = int(content.parent[node])
    return tokens


def _job(case: Case, request: int) -> Job:
    workload, spec = case.workload, case.spec
    ids: list[int] = []
    if spec.prefix_caching:
        offsets, all_ids = workload.block_ids(spec.block_size)
        ids = all_ids[offsets[request] : offsets[request + 1]].tolist()
    return Job(
        request=request,
        prompt=int(workload.prompt_tokens[request]),
        output=int(workload.output_tokens[request]),
        arrival_ns=int(workload.arrival_ns[request]),
        priority=int(workload.priority[request]),
        block_ids=ids,
    )


def _everybody(state: State) -> set[int]:
    return {r for r, *_ in state[0]} | set(state[1])


def _state(view: EngineView) -> State:
    running, waiting = view.running, view.waiting
    columns = (running.slo_class, running.computed_tokens, running.generated_tokens)
    rows = [tuple(values) for values in zip(*(c.tolist() for c in columns), strict=True)]
    return rows, waiting.slo_class.tolist(), view.kv_free_blocks
