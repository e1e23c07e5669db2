"""Steering vLLM's V1 scheduler: views of its queues, decisions applied, steps reported.

Nothing here imports vLLM: the scheduler is an object that `check_scheduler` has accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from synergy_gym.live.vllm.version import check_scheduler
from synergy_gym.sim.decisions import check_decision
from synergy_gym.sim.plain.engine import Features
from synergy_gym.sim.plain.server import engine_state, step_report
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    EngineSpec,
    EngineView,
    IntArray,
    RequestArrays,
    StepReport,
)


@dataclass(slots=True)
class Note:
    """What vLLM's own `Request` does not keep; times in nanoseconds of the caller's clock."""

    arrival_ns: int
    slo_class: int = 0
    first_token_ns: int = -1
    cached_tokens: int = 0
    """Prefix-cache hit of the first admission."""
    admitted: bool = False


NO_FEATURES = Features.counted(())


@dataclass(slots=True)
class ScheduledStep:
    """One call of `schedule()`; a `StepReport` once its duration is known."""

    start_ns: int
    token_budget: int
    scheduled: dict[str, int]
    """Tokens per request id, in scheduling order."""
    admitted: dict[str, int]
    """Prefix-cache hit in tokens per request that was admitted (or resumed)."""
    preempted: list[str]
    features: Features = NO_FEATURES

    def report(self, engine: int, step_ns: int, finished: int) -> StepReport:
        """The step as policies see it, `step_ns` after its start."""
        return step_report(
            self.features,
            engine=engine,
            start_ns=self.start_ns,
            step_ns=step_ns,
            preempted=len(self.preempted),
            admitted=len(self.admitted),
            finished=finished,
            token_budget=self.token_budget,
        )


@dataclass(slots=True)
class _Skipped:
    """Waiting requests that one decision passes over, and what to put back afterwards."""

    requests: list[Any] = field(default_factory=list)
    stale_tokens: list[int] = field(default_factory=list)


def spec_of(scheduler: Any, name: str = "vllm", *, gpu: str = "unknown") -> EngineSpec:
    """The limits that a vLLM scheduler was started with (block 0 is vLLM's null block)."""
    config, cache = scheduler.scheduler_config, scheduler.cache_config
    manager = scheduler.kv_cache_manager
    model = scheduler.vllm_config.model_config
    return EngineSpec(
        name=name,
        gpu=gpu,
        model=str(model.model),
        profile="",
        max_num_seqs=int(config.max_num_seqs),
        max_num_batched_tokens=int(config.max_num_batched_tokens),
        max_model_len=int(model.max_model_len),
        kv_blocks=int(manager.block_pool.num_gpu_blocks) - 1,
        block_size=int(scheduler.block_size),
        prefix_caching=bool(cache.enable_prefix_caching),
        scheduling="priority" if config.policy == "priority" else "fcfs",
        watermark_blocks=int(getattr(manager, "watermark_blocks", 0)),
    )


class Steering:
    """One vLLM scheduler, seen and steered as the simulator's engines are.

    Args:
        scheduler: a V1 `Scheduler` before its first request.
        spec: the engine's limits; read from the scheduler by default.
        slos: the classes that requests refer to.

    Attributes:
        notes: per request id, what vLLM does not keep. Whoever adds a request writes its note
            before the next view, and removes it when the request has left.
    """

    def __init__(
        self, scheduler: Any, *, spec: EngineSpec | None = None, slos: tuple[SLO, ...] = ()
    ) -> None:
        check_scheduler(scheduler)
        self.scheduler = scheduler
        self.spec = spec_of(scheduler) if spec is None else spec
        self.slos = slos
        self.notes: dict[str, Note] = {}
        self._skipped = _Skipped()
        self._before: dict[str, int] = {}
        self._stock = (
            scheduler.max_num_scheduled_tokens,
            scheduler.max_num_active_reqs,
            scheduler.scheduler_config.long_prefill_token_threshold,
        )

    def queues(self) -> tuple[list[Any], list[Any]]:
        """The `Request` objects that run (list order) and wait (queue order)."""
        scheduler = self.scheduler
        return list(scheduler.running), [*scheduler.kv_holding_waiting, *scheduler.waiting]

    def free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def pending_tokens(self) -> int:
        """Known minus computed tokens over all requests (`docs/telemetry.md`)."""
        running, waiting = self.queues()
        return sum(r.num_tokens - r.num_computed_tokens for r in (*running, *waiting))

    def view(self, now_ns: int, last_step: StepReport | None) -> EngineView:
        """What an engine policy sees of the scheduler before it schedules."""
        running, waiting = (self._arrays(queue, now_ns) for queue in self.queues())
        state = engine_state(
            running, waiting, now_ns, last_step, self.free_blocks(), self.spec.kv_blocks
        )
        return EngineView(
            spec=self.spec,
            slos=self.slos,
            state=state,
            last_step=last_step,
            fetch=lambda: (running, waiting),
        )

    def apply(self, decision: BatchDecision) -> None:
        """Make the next `schedule()` follow `decision`; `scheduled` must be called after it.

        Raises:
            ValueError: the decision is illegal now, or holds token caps above zero, which vLLM
                has no means for (`EnginePolicy.uses_token_caps`).
        """
        running, waiting = self.queues()
        check_decision(self.spec, decision, len(running), len(waiting))
        caps = decision.token_caps
        if caps is not None and bool((caps > 0).any()):
            raise ValueError(
                f"token_caps holds {int(caps.max())}; vLLM can skip a request (0) but not cap its "
                "tokens: use a prefill_chunk, or a policy without uses_token_caps"
            )
        scheduler = self.scheduler
        limit = decision.max_running
        scheduler.max_num_scheduled_tokens = decision.token_budget
        scheduler.max_num_active_reqs = self.spec.max_num_seqs if limit is None else limit
        scheduler.scheduler_config.long_prefill_token_threshold = decision.prefill_chunk
        if caps is not None:
            self._skip(running, waiting, caps)
        if decision.running_order is not None:
            scheduler.running[:] = [running[i] for i in decision.running_order]
        if decision.waiting_order is not None:
            self._reorder_waiting([waiting[i] for i in decision.waiting_order])

    def apply_stock(self) -> None:
        """Give the next `schedule()` the limits that the server was started with."""
        scheduler = self.scheduler
        tokens, seats, chunk = self._stock
        scheduler.max_num_scheduled_tokens = tokens
        scheduler.max_num_active_reqs = seats
        scheduler.scheduler_config.long_prefill_token_threshold = chunk

    def before_schedule(self) -> None:
        """Remember who runs and its output; call it right before vLLM's own `schedule()`."""
        self._before = {r.request_id: _generated(r) for r in self.scheduler.running}

    def scheduled(self, output: Any, start_ns: int) -> ScheduledStep:
        """Describe what `schedule()` has just returned, and undo the decision's skips."""
        for request, stale in zip(self._skipped.requests, self._skipped.stale_tokens, strict=True):
            request.num_stale_output_tokens = stale
        self._skipped = _Skipped()
        counts: dict[str, int] = dict(output.num_scheduled_tokens)
        step = ScheduledStep(
            start_ns=start_ns,
            token_budget=int(self.scheduler.max_num_scheduled_tokens),
            scheduled=counts,
            admitted={},
            preempted=sorted(output.preempted_req_ids or ()),
        )
        step.features = Features.counted(self._entry(step, *item) for item in counts.items())
        return step

    def _entry(self, step: ScheduledStep, name: str, tokens: int) -> tuple[int, int, bool]:
        """A request's scheduled and computed tokens, and whether it decodes; notes admissions."""
        request = self.scheduler.requests[name]
        computed = request.num_computed_tokens - tokens  # vLLM has advanced it already
        if name not in self._before or name in step.preempted:
            step.admitted[name] = computed
            note = self.notes.get(name)
            if note is not None and not note.admitted:
                note.admitted, note.cached_tokens = True, computed
        # Asynchronous scheduling has counted this step's own output already.
        generated = self._before.get(name, request.num_output_tokens)
        decodes = generated > 0 and request.num_prompt_tokens + generated - computed <= 1
        return tokens, computed, decodes

    def _skip(self, running: list[Any], waiting: list[Any], caps: IntArray) -> None:
        for request, cap in zip(running, caps[: len(running)], strict=True):
            if cap == 0:
                # `schedule()` counts the step first and compares then.
                due = self.scheduler.current_step + 2
                request.next_decode_eligible_step = max(request.next_decode_eligible_step, due)
        for request, cap in zip(waiting, caps[len(running) :], strict=True):
            if cap == 0:
                self._skipped.requests.append(request)
                self._skipped.stale_tokens.append(request.num_stale_output_tokens)
                # The scan passes over a request whose output of an earlier step is still due.
                request.num_stale_output_tokens = 1

    def _reorder_waiting(self, ordered: Sequence[Any]) -> None:
        scheduler = self.scheduler
        holding = set(scheduler.kv_holding_waiting)
        for queue, members in (
            (scheduler.kv_holding_waiting, [r for r in ordered if r in holding]),
            (scheduler.waiting, [r for r in ordered if r not in holding]),
        ):
            queue.clear()
            queue.extend(members)

    def _arrays(self, requests: Sequence[Any], now_ns: int) -> RequestArrays:
        notes = [self.notes[r.request_id] for r in requests]
        ages = [now_ns - n.first_token_ns if n.first_token_ns >= 0 else -NS_PER_S for n in notes]
        return RequestArrays(
            prompt_tokens=_column([r.num_prompt_tokens for r in requests]),
            computed_tokens=_column([r.num_computed_tokens for r in requests]),
            generated_tokens=_column([_generated(r) for r in requests]),
            cached_tokens=_column([n.cached_tokens for n in notes]),
            waited_s=_column([now_ns - n.arrival_ns for n in notes]) / NS_PER_S,
            first_token_age_s=_column(ages) / NS_PER_S,
            slo_class=_column([n.slo_class for n in notes]),
            priority=_column([r.priority for r in requests]),
        )


def without_positive_caps(decision: BatchDecision) -> tuple[BatchDecision, int]:
    """The decision as a live engine can obey it, and how many token caps were dropped.

    A cap above zero becomes -1 (free); skips (0) stay.
    """
    if decision.token_caps is None:
        return decision, 0
    caps = np.asarray(decision.token_caps)
    positive = caps > 0
    dropped = int(np.count_nonzero(positive))
    if not dropped:
        return replace(decision, token_caps=caps), 0
    kept = np.where(positive, -1, caps)
    return replace(decision, token_caps=kept if bool((kept == 0).any()) else None), dropped


def _generated(request: Any) -> int:
    """Output tokens, those of steps in flight (async scheduling) included."""
    return int(request.num_output_tokens + request.num_output_placeholders)


def _column(values: list[int]) -> IntArray:
    return np.array(values, np.int64)
