"""How often the interesting things of `goals.GOALS` happen in one case.

Everything is counted on the oracle's side, from states, decisions and results.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from synergy_gym.types import BatchDecision
from tests.parity.cases import Case
from tests.parity.sides import Result, State


class Coverage:
    """Counts for one case."""

    def __init__(self, case: Case) -> None:
        self.counts: Counter[str] = Counter()
        self._case = case
        self._preempted: set[int] = set()
        self._evictions = self._rejected = 0

    def began(self, state: State, aborts: list[int]) -> None:
        """Requests were cancelled and accepted; an iteration begins."""
        self.counts["aborts_between"] += len(aborts)
        self.counts["aborts_resumed"] += len(self._preempted.intersection(aborts))
        assert state.evictions is not None
        self.counts["evictions"] += state.evictions - self._evictions
        self.counts["rejected"] += len(state.rejected) - self._rejected
        self._evictions, self._rejected = state.evictions, len(state.rejected)

    def ended(
        self, state: State, decision: BatchDecision, result: Result, aborts: set[int]
    ) -> None:
        """One iteration was played."""
        self._count_step(state, decision, result)
        self._count_decision(state, decision)
        self._count_victims(state, decision, result)
        self._count_admissions(state, result)
        self._count_chunks(state, decision, result)
        self._count_queue(state, decision, result)
        self._count_ends(state, result, aborts)
        self._preempted.update(result.preempted)

    def _count_step(self, state: State, decision: BatchDecision, result: Result) -> None:
        counts, spec = self.counts, self._case.spec
        counts["steps"] += 1
        counts["tokens"] += result.tokens or 0
        counts[f"steps_block_{spec.block_size}"] += 1
        counts["steps_caching"] += spec.prefix_caching
        counts["steps_priority"] += spec.scheduling == "priority"
        counts["wide_steps"] += len(state.running) >= 16
        counts["empty_steps"] += not result.scheduled
        decodes = sum(self._known(r, made) - done == 1 for r, done, made in state.running if made)
        counts["starved_decodes"] += decision.token_budget < decodes

    def _count_decision(self, state: State, decision: BatchDecision) -> None:
        counts, running = self.counts, len(state.running)
        if decision.token_caps is not None:
            counts["skips_running"] += int((decision.token_caps[:running] == 0).sum())
            counts["skips_waiting"] += int((decision.token_caps[running:] == 0).sum())
        for name in ("running_order", "waiting_order"):
            order = getattr(decision, name)
            moved = order is not None and not np.array_equal(order, np.arange(len(order)))
            counts[f"reordered_{name.removesuffix('_order')}"] += moved

    def _count_victims(self, state: State, decision: BatchDecision, result: Result) -> None:
        if not result.preempted:
            return
        order = self._order(state, decision)
        skipped = self._skipped(state, decision)
        last = order[len(order) - len(result.preempted) :]
        served = [order.index(r) for r in result.scheduled if r in order]
        for victim in result.preempted:
            self.counts["preemptions"] += 1
            self.counts["priority_victims"] += victim not in last
            passed = bool(served) and order.index(victim) < max(served)
            self.counts["returned_budgets"] += passed and victim not in skipped

    def _count_admissions(self, state: State, result: Result) -> None:
        counts, size = self.counts, self._case.spec.block_size
        for r, hit in result.admitted.items():
            again = r in self._preempted
            known = self._known(r, 0)
            counts["resumed"] += again
            counts["boundary_prompts"] += not again and (known + 1) % size <= 2
            assert hit is not None
            if hit:
                counts["cache_hits"] += 1
                counts["hit_tokens"] += hit
                counts["resumed_hits"] += again
                counts["whole_hits"] += not again and hit == (known - 1) // size * size
                counts["recomputed_blocks"] += not again and hit == known - size

    def _count_chunks(self, state: State, decision: BatchDecision, result: Result) -> None:
        chunk, lone = decision.prefill_chunk, len(state.alive) == 1
        missing = {r: self._known(r, made) - done for r, done, made in state.running}
        missing |= {
            r: self._known(r, 0) - (hit or 0)
            for r, hit in result.admitted.items()
            if r not in self._preempted
        }
        for r, tokens in result.scheduled.items():
            assert tokens is not None
            short = tokens < missing.get(r, tokens)
            self.counts["capped_chunks"] += short and tokens == chunk
            self.counts["budget_cuts"] += short and tokens != chunk
            self.counts["lone_prefills"] += lone and 0 < chunk < tokens

    def _count_queue(self, state: State, decision: BatchDecision, result: Result) -> None:
        """Who still waits although the step had tokens to give, and why."""
        skipped = self._skipped(state, decision)
        left = [r for r in state.waiting if r not in result.admitted and r not in skipped]
        if not left or result.preempted or (result.tokens or 0) >= decision.token_budget:
            return
        spec, most = self._case.spec, decision.max_running
        seats = spec.max_num_seqs if most is None else most
        if len(state.running) + len(result.admitted) >= seats:
            self.counts["seat_blocked"] += 1
            return
        self.counts["gate_blocked"] += 1
        head = left[0]
        assert result.free_blocks is not None
        fits = -(-self._known(head, 0) // spec.block_size) <= result.free_blocks
        plain = head not in self._preempted and decision.waiting_order is None
        self.counts["watermark_blocked"] += plain and fits

    def _count_ends(self, state: State, result: Result, aborts: set[int]) -> None:
        counts = self.counts
        counts["finished"] += len(result.finished)
        room = self._case.spec.max_model_len
        counts["cut_outputs"] += sum(
            self._known(r, self._case.requests[r].output) > room for r in result.finished
        )
        counts["aborts_scheduled"] += len(aborts.intersection(result.scheduled))
        counts["aborts_waiting"] += len(aborts.intersection(state.waiting))
        counts["aborts_resumed"] += len(aborts & self._preempted)

    def _known(self, request: int, generated: int) -> int:
        return self._case.requests[request].prompt + generated

    def _order(self, state: State, decision: BatchDecision) -> list[int]:
        """The running list as it was scheduled."""
        running = [r for r, *_ in state.running]
        order = decision.running_order
        return running if order is None else [running[i] for i in order]

    def _skipped(self, state: State, decision: BatchDecision) -> set[int]:
        if decision.token_caps is None:
            return set()
        requests = [*(r for r, *_ in state.running), *state.waiting]
        return {r for r, cap in zip(requests, decision.token_caps, strict=True) if cap == 0}
