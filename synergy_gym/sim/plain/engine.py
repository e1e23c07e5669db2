"""One serving engine in plain Python: the definition of an iteration.

`ReferenceEngine.plan` restates `Scheduler.schedule` of vLLM 0.32.0 (`v1/core/sched/scheduler.py`,
`v1/core/kv_cache_manager.py`), `commit` its `update_from_output`; only token caps above zero
have no counterpart there.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from synergy_gym.sim.plain.cache import BlockPool
from synergy_gym.types import BatchDecision, EngineSpec, IntArray


@dataclass(slots=True, eq=False)
class Job:
    """One attempt of a request on one engine; times in nanoseconds, -1 before they happen."""

    request: int
    prompt: int
    output: int
    """Tokens that this attempt emits: the true output, cut at the engine's length limit."""
    arrival_ns: int
    """First arrival of the request: a retried one keeps it."""
    priority: int = 0
    slo_class: int = 0
    block_ids: Sequence[int] = ()
    """Chained content ids of the full blocks of prompt + output."""
    computed: int = 0
    generated: int = 0
    cached: int = 0
    """Prefix-cache hit of the first admission, tokens."""
    preemptions: int = 0
    scheduled_ns: int = -1
    first_token_ns: int = -1
    last_token_ns: int = -1
    abort_due: bool = False
    blocks: list[int] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Prompt plus emitted tokens."""
        return self.prompt + self.generated

    @property
    def missing(self) -> int:
        """Known tokens that are not computed; 1 for a decode."""
        return self.known - self.computed

    @property
    def is_decode(self) -> bool:
        """Whether only the last emitted token is uncomputed."""
        return self.generated > 0 and self.missing == 1

    @property
    def urgency(self) -> tuple[int, int]:
        """Order of priority scheduling, smaller first (vLLM's `priority`, `arrival_time`)."""
        return self.priority, self.arrival_ns


@dataclass(frozen=True, slots=True)
class Features:
    """What times an iteration (`latency.clock`); counts of requests and tokens."""

    sequences: int
    tokens: int
    decodes: int
    decode_context: int
    """Tokens already computed of the scheduled decodes."""
    prefill_tokens: int
    prefill_pairs: int
    """Sum of chunk * computed + chunk * (chunk + 1) / 2 over prefill chunks."""
    prefill_context: int
    """Tokens already computed of the scheduled prefills."""

    @classmethod
    def of(cls, scheduled: dict[Job, int]) -> Features:
        """Features of the scheduled tokens, before any of them is computed."""
        return cls.counted((n, job.computed, job.is_decode) for job, n in scheduled.items())

    @classmethod
    def counted(cls, requests: Iterable[tuple[int, int, bool]]) -> Features:
        """Features of (scheduled tokens, computed tokens, is a decode) per request."""
        rows = list(requests)
        contexts = [before for _, before, is_decode in rows if is_decode]
        prefills = [(n, before) for n, before, is_decode in rows if not is_decode]
        return cls(
            sequences=len(rows),
            tokens=sum(n for n, *_ in rows),
            decodes=len(contexts),
            decode_context=sum(contexts),
            prefill_tokens=sum(n for n, _ in prefills),
            prefill_pairs=sum(n * before + n * (n + 1) // 2 for n, before in prefills),
            prefill_context=sum(before for _, before in prefills),
        )

    def arguments(self) -> tuple[int, int, int, int, int, int, int]:
        """Arguments of `latency.clock.step_ns` after the step number."""
        prefill = int(self.sequences > self.decodes)
        return (
            self.sequences,
            self.tokens,
            self.decode_context,
            self.prefill_pairs,
            self.prefill_context,
            prefill,
            int(prefill and self.decodes > 0),
        )


@dataclass(slots=True, eq=False)
class Step:
    """One iteration: what was decided and what was scheduled."""

    number: int
    start_ns: int
    budget: int
    end_ns: int = 0
    scheduled: dict[Job, int] = field(default_factory=dict)
    """Tokens per request, in scheduling order."""
    preempted: list[Job] = field(default_factory=list)
    admitted: list[Job] = field(default_factory=list)
    rejected: list[Job] = field(default_factory=list)
    """Heads of the queue whose known tokens need more blocks than the engine has."""
    features: Features = field(default_factory=lambda: Features.of({}))
    measured_ns: int = -1
    """How long a real engine took for it; -1: the step-latency model says."""

    @property
    def duration_ns(self) -> int:
        """Length of the iteration."""
        return self.end_ns - self.start_ns


@dataclass(slots=True, eq=False)
class Outputs:
    """What the end of an iteration brought."""

    emitted: list[tuple[Job, int]] = field(default_factory=list)
    """Requests that got a token, with the time since their last one (void for the first)."""
    finished: list[Job] = field(default_factory=list)
    aborted: list[Job] = field(default_factory=list)


class _Limits:
    """What is left of a decision while one iteration is being scheduled."""

    def __init__(self, decision: BatchDecision, engine: ReferenceEngine) -> None:
        jobs = [*engine.running, *engine.waiting]
        caps = decision.token_caps
        self.budget = decision.token_budget
        self.chunk = decision.prefill_chunk if len(jobs) > 1 else 0
        self.caps = {} if caps is None else dict(zip(jobs, caps.tolist(), strict=True))

    def skips(self, job: Job) -> bool:
        return self.caps.get(job) == 0

    def allow(self, job: Job, wanted: int) -> int:
        """Tokens of `wanted` that chunk cap, own cap and budget leave."""
        own = self.caps.get(job, -1)
        bounds = [self.budget, *[cap for cap in (self.chunk, own) if cap > 0]]
        return min(wanted, *bounds)


class ReferenceEngine:
    """Queues and KV pool of one engine, advanced one iteration at a time.

    `running` is in list order; `waiting` in queue order, which under priority scheduling is
    always (priority, arrival, request).
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.pool = BlockPool(spec.kv_blocks, spec.block_size, spec.prefix_caching)
        self.running: list[Job] = []
        self.waiting: list[Job] = []
        self.steps = 0

    @property
    def has_work(self) -> bool:
        """Whether an iteration has somebody to serve."""
        return bool(self.running or self.waiting)

    @property
    def max_length(self) -> int:
        """Longest prompt + output that can be served at present, tokens."""
        return min(self.spec.max_model_len, self.pool.total * self.spec.block_size)

    @property
    def num_decodes(self) -> int:
        """Running requests that miss only their last emitted token."""
        return sum(job.is_decode for job in self.running)

    def add(self, job: Job) -> None:
        """Put a newly arrived request into the waiting queue."""
        self._enqueue(job, len(self.waiting))

    def plan(self, decision: BatchDecision, start_ns: int) -> Step:
        """Schedule one iteration; nothing is computed or emitted before `commit`.

        The caller sets `end_ns` of the result and has checked the decision
        (`decisions.check_decision`). Without work left (all was rejected) there is no
        iteration to commit.
        """
        limits = _Limits(decision, self)
        self._reorder(decision)
        step = Step(self.steps, start_ns, decision.token_budget)
        self._schedule_running(step, limits)
        if not step.preempted:
            limit = decision.max_running
            self._admit(step, limits, self.spec.max_num_seqs if limit is None else limit)
        step.features = Features.of(step.scheduled)
        self.steps += self.has_work
        return step

    def commit(self, step: Step) -> Outputs:
        """End an iteration: aborted requests leave, tokens are emitted, requests finish."""
        outputs = Outputs(aborted=[job for job in self.running if job.abort_due])
        for job in outputs.aborted:
            self.remove(job)
        for job, tokens in step.scheduled.items():
            if job.abort_due:
                continue
            job.computed += tokens
            if job.missing == 0:
                outputs.emitted.append((job, step.end_ns - job.last_token_ns))
                self._emit(job, step.end_ns)
        outputs.finished = [job for job, _ in outputs.emitted if job.generated == job.output]
        for job in outputs.finished:
            self.remove(job)
        return outputs

    def remove(self, job: Job) -> None:
        """Take a request out and free its blocks (it finished or was aborted)."""
        queue = self.running if job in self.running else self.waiting
        queue.remove(job)
        self._free(job)

    def clear(self) -> list[Job]:
        """Lose everything (the engine went down); returns the requests it had."""
        lost = [*self.running, *self.waiting]
        self.running, self.waiting = [], []
        self.pool.reset()
        return lost

    def check(self) -> None:
        """Raise `AssertionError` when an invariant of one engine is broken."""
        self.pool.check()
        assert len(self.running) <= self.spec.max_num_seqs, "more running than max_num_seqs"
        for job in self.running:
            assert 0 <= job.computed <= job.known, "computed tokens out of range"
            assert len(job.blocks) >= self.pool.blocks_for(job.computed), "tokens without block"
        idle = all(not job.blocks and job.computed == 0 for job in self.waiting)
        assert idle, "a waiting request holds blocks"

    def _schedule_running(self, step: Step, limits: _Limits) -> None:
        index = 0
        while index < len(self.running) and limits.budget > 0:
            job = self.running[index]
            if limits.skips(job):
                index += 1
                continue
            tokens = limits.allow(job, job.missing)
            needed = self.pool.blocks_for(job.computed + tokens) - len(job.blocks)
            while needed > self.pool.free:
                victim = self._pick_victim()
                index -= self.running.index(victim) < index
                self._preempt(victim, step, limits)
                if victim is job:
                    return
            self._schedule(job, tokens, step, limits)
            index += 1

    def _pick_victim(self) -> Job:
        if self.spec.scheduling == "fcfs":
            return self.running[-1]
        return max(self.running, key=lambda job: job.urgency)

    def _preempt(self, victim: Job, step: Step, limits: _Limits) -> None:
        limits.budget += step.scheduled.pop(victim, 0)
        step.preempted.append(victim)
        victim.preemptions += 1
        self.running.remove(victim)
        self._free(victim)
        self._enqueue(victim, 0)

    def _admit(self, step: Step, limits: _Limits, max_running: int) -> None:
        position = 0
        while position < len(self.waiting):
            job = self.waiting[position]
            if limits.budget == 0 or len(self.running) >= max_running:
                break
            if limits.skips(job):
                position += 1
            elif self.pool.blocks_for(job.known) > self.pool.total:
                step.rejected.append(self.waiting.pop(position))
            elif not self._admit_one(job, step, limits):
                break

    def _admit_one(self, job: Job, step: Step, limits: _Limits) -> bool:
        # At least one token is recomputed: logits are needed even when all is cached.
        hits = self.pool.lookup(job.block_ids[: (job.known - 1) // self.spec.block_size])
        needed = self.pool.blocks_for(job.known) - len(hits) + self.pool.idle(hits)
        watermark = self.spec.watermark_blocks if self.running else 0
        if needed + watermark > self.pool.free:
            return False
        self.waiting.remove(job)
        self.running.append(job)
        step.admitted.append(job)
        self.pool.adopt(hits)
        job.blocks = hits
        job.computed = len(hits) * self.spec.block_size
        if job.scheduled_ns < 0:
            job.scheduled_ns = step.start_ns
            job.cached = job.computed
        self._schedule(job, limits.allow(job, job.missing), step, limits)
        return True

    def _schedule(self, job: Job, tokens: int, step: Step, limits: _Limits) -> None:
        filled_before, after = job.computed // self.spec.block_size, job.computed + tokens
        job.blocks += self.pool.take(self.pool.blocks_for(after) - len(job.blocks))
        if self.spec.prefix_caching:
            for k in range(filled_before, after // self.spec.block_size):
                self.pool.fill(job.blocks[k], job.block_ids[k])
        step.scheduled[job] = tokens
        limits.budget -= tokens

    def _emit(self, job: Job, now_ns: int) -> None:
        job.generated += 1
        job.last_token_ns = now_ns
        if job.first_token_ns < 0:
            job.first_token_ns = now_ns

    def _free(self, job: Job) -> None:
        self.pool.release(job.blocks)
        job.blocks = []
        job.computed = 0

    def _enqueue(self, job: Job, position: int) -> None:
        if self.spec.scheduling == "priority":
            insort(self.waiting, job, key=lambda other: (*other.urgency, other.request))
        else:
            self.waiting.insert(position, job)

    def _reorder(self, decision: BatchDecision) -> None:
        self.running = _permuted(self.running, decision.running_order)
        self.waiting = _permuted(self.waiting, decision.waiting_order)


def _permuted(jobs: list[Job], order: IntArray | None) -> list[Job]:
    return jobs if order is None else [jobs[i] for i in order.tolist()]
