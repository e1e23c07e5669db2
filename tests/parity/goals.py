"""What the random workloads must exercise, so that easy ones cannot fill the figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Goal:
    """What a counter counts, and its minimum in 100 workloads."""

    least: int
    meaning: str


GOALS: Mapping[str, Goal] = MappingProxyType(
    {
        "steps": Goal(8000, "iterations compared"),
        "tokens": Goal(150000, "tokens scheduled"),
        "finished": Goal(500, "requests that finished"),
        "steps_block_16": Goal(2000, "steps with blocks of 16 tokens"),
        "steps_block_32": Goal(700, "steps with blocks of 32 tokens"),
        "steps_block_64": Goal(1000, "steps with blocks of 64 tokens"),
        "steps_block_128": Goal(1000, "steps with blocks of 128 tokens"),
        "steps_caching": Goal(4000, "steps with prefix caching"),
        "steps_priority": Goal(4000, "steps with priority scheduling"),
        "wide_steps": Goal(30, "steps with 16 running requests or more"),
        "empty_steps": Goal(35, "steps that scheduled nothing"),
        "preemptions": Goal(200, "requests preempted"),
        "priority_victims": Goal(40, "victims that were not the last of the running list"),
        "returned_budgets": Goal(25, "victims that had been scheduled in the same step"),
        "resumed": Goal(150, "preempted requests admitted again"),
        "resumed_hits": Goal(20, "of these, with a prefix-cache hit"),
        "cache_hits": Goal(200, "admissions with a prefix-cache hit"),
        "hit_tokens": Goal(30000, "tokens of these hits"),
        "whole_hits": Goal(80, "hits of every block that may be reused"),
        "recomputed_blocks": Goal(6, "hits of all but the last, full block of the known tokens"),
        "evictions": Goal(1000, "cached blocks given away under pressure"),
        "boundary_prompts": Goal(
            200, "first admissions with a prompt within 1 of a block boundary"
        ),
        "capped_chunks": Goal(800, "prefills that the chunk cap stopped"),
        "lone_prefills": Goal(5, "prefills over the chunk cap, as the engine's only request"),
        "budget_cuts": Goal(800, "requests that the token budget stopped in mid-prefill"),
        "starved_decodes": Goal(250, "steps with a budget below the number of decodes"),
        "seat_blocked": Goal(600, "steps in which max_running alone kept the queue waiting"),
        "gate_blocked": Goal(2500, "steps in which memory alone kept the queue waiting"),
        "watermark_blocked": Goal(120, "of these, steps in which the head fitted but for the mark"),
        "skips_running": Goal(1000, "running requests skipped by decision"),
        "skips_waiting": Goal(1200, "waiting requests skipped by decision"),
        "reordered_running": Goal(800, "steps with a new order of the running list"),
        "reordered_waiting": Goal(250, "steps with a new order of the waiting queue"),
        "aborts_between": Goal(70, "requests cancelled between two steps"),
        "aborts_scheduled": Goal(100, "requests cancelled while their tokens were computed"),
        "aborts_waiting": Goal(50, "waiting requests cancelled"),
        "aborts_resumed": Goal(25, "requests cancelled after a preemption"),
        "cut_outputs": Goal(4, "outputs ended by max_model_len"),
        "rejected": Goal(2, "prompts rejected for max_model_len"),
    }
)
"""All counters. A run that is short of a minimum is too easy, and fails."""


def missed(counts: Counter[str], workloads: int) -> dict[str, tuple[int, float]]:
    """Counters below their minimum: (count, minimum for this many workloads)."""
    least = {name: goal.least * workloads / 100 for name, goal in GOALS.items()}
    return {name: (counts[name], most) for name, most in least.items() if counts[name] < most}
