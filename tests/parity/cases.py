"""Random workloads for one engine, and random decisions that survive when a workload is shrunk.

A case is plain data: its `repr` builds it again. Decisions are drawn from (seed, step), and those
about single requests from the request's own key, so that taking requests away leaves the
decisions about the others as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from synergy_gym.sim.plain.engine import Job
from synergy_gym.types import BatchDecision, EngineSpec, IntArray
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import Content

STEP_NS = 1_000_000
NEVER = 1 << 40
MOST_STEPS = 300
"""A workload ends here at the latest; its rest would only repeat what it has shown."""
WIDTH = 64
"""Most requests of a workload: decisions draw this many values per step."""


@dataclass(frozen=True)
class Request:
    """One request; `key` is its number in the workload that was drawn, shrunk or not."""

    key: int
    arrival_step: int
    prompt: int
    output: int
    priority: int
    leaf: int
    """Deepest content node of prompt + output."""


@dataclass(frozen=True)
class Decisions:
    """How the decisions of a workload are drawn, step by step.

    Attributes:
        seed: fixes every draw, with the number of the step.
        budgets: token budgets to choose from.
        chunks: chunk caps to choose from (0: no cap).
        seats: whether `max_running` varies.
        reorder_running: probability of a new order of the running list.
        reorder_waiting: the same for the waiting queue (never under priority scheduling).
        skips: probabilities, one of which is drawn per step, of skipping a request.
    """

    seed: int
    budgets: tuple[int, ...]
    chunks: tuple[int, ...] = (0,)
    seats: bool = False
    reorder_running: float = 0.0
    reorder_waiting: float = 0.0
    skips: tuple[float, ...] = (0.0,)

    def at(
        self, step: int, spec: EngineSpec, running: Sequence[int], waiting: Sequence[int]
    ) -> BatchDecision:
        """The decision of `step` for queues that hold the requests with these keys."""
        rng = np.random.default_rng([self.seed, step])
        scalars, keys, skipped = rng.random(7), rng.random(WIDTH), rng.random(WIDTH)
        unordered = spec.scheduling == "priority" or scalars[4] >= self.reorder_waiting
        skips = skipped[[*running, *waiting]] < _pick(self.skips, scalars[5])
        return BatchDecision(
            token_budget=min(_pick(self.budgets, scalars[0]), spec.max_num_batched_tokens),
            max_running=(
                1 + int(scalars[2] * spec.max_num_seqs) if self.seats and scalars[1] < 0.3 else None
            ),
            prefill_chunk=_pick(self.chunks, scalars[6]),
            running_order=(
                np.argsort(keys[list(running)]) if scalars[3] < self.reorder_running else None
            ),
            waiting_order=None if unordered else np.argsort(keys[list(waiting)]),
            token_caps=np.where(skips, 0, -1) if skips.any() else None,
        )


@dataclass(frozen=True)
class Case:
    """An engine, its requests in order of arrival, and what is decided.

    Attributes:
        nodes: content tree as (parent, start) per node.
        timeout_steps: steps after which a client gives up.
        last_step: steps after this one are not played.
    """

    seed: int
    spec: EngineSpec
    requests: tuple[Request, ...]
    nodes: tuple[tuple[int, int], ...]
    decisions: Decisions
    timeout_steps: float = NEVER
    last_step: int = MOST_STEPS

    def due(self, request: int) -> float:
        """Step (or instant within one) at which the client gives up."""
        return self.requests[request].arrival_step + self.timeout_steps

    def decision(self, step: int, running: Sequence[int], waiting: Sequence[int]) -> BatchDecision:
        """What is decided at `step`; the queues hold request numbers of this case."""
        keys = [[self.requests[r].key for r in queue] for queue in (running, waiting)]
        return self.decisions.at(step, self.spec, *keys)

    @cached_property
    def workload(self) -> Workload:
        """The requests as a simulator takes them; their SLO class tells them apart."""
        column = self._column
        n = len(self.requests)
        leaves = [request.leaf for request in self.requests]
        related = self.spec.prefix_caching and len({self._root(leaf) for leaf in leaves}) < n
        tree = np.array(self.nodes, np.int64).reshape(-1, 2)
        return make_workload(
            column("arrival_step") * STEP_NS,
            column("prompt"),
            column("output"),
            slo_class=np.arange(n),
            priority=column("priority"),
            content=Content(column("leaf"), tree[:, 0], tree[:, 1]) if related else None,
        )

    def tokens(self, request: int) -> list[int]:
        """Token ids of prompt and output, equal exactly where the covering node is the same."""
        wanted = self.requests[request]
        end = wanted.prompt + wanted.output
        tokens = np.arange(end)
        node = wanted.leaf
        while node >= 0:
            parent, start = self.nodes[node]
            tokens[start:end] += node + 1 << 16
            node, end = parent, min(start, end)
        return tokens.tolist()

    @cached_property
    def block_ids(self) -> list[list[int]]:
        """Per request the content ids of its full blocks; empty without prefix caching."""
        if not self.spec.prefix_caching:
            return [[] for _ in self.requests]
        offsets, ids = self.workload.block_ids(self.spec.block_size)
        return [ids[a:b].tolist() for a, b in pairwise(offsets)]

    def job(self, request: int, room: int) -> Job:
        """The request as the reference engine takes it; `room` is left beside its prompt."""
        wanted = self.requests[request]
        return Job(
            request=request,
            prompt=wanted.prompt,
            output=min(wanted.output, room),
            arrival_ns=wanted.arrival_step * STEP_NS,
            priority=wanted.priority,
            block_ids=self.block_ids[request],
        )

    def describe(self) -> str:
        """The workload for a reader, and as Python."""
        limits = {
            name: getattr(self.spec, name)
            for name in (
                "max_num_seqs",
                "max_num_batched_tokens",
                "max_model_len",
                "kv_blocks",
                "block_size",
                "prefix_caching",
                "scheduling",
                "watermark_blocks",
            )
        }
        rows = [
            f"  request {i}: step {r.arrival_step}, {r.prompt} + {r.output} tokens, "
            f"priority {r.priority}, content {self._path(r.leaf)}"
            for i, r in enumerate(self.requests)
        ]
        patience = "never" if self.timeout_steps >= NEVER else f"after {self.timeout_steps} steps"
        return "\n".join(
            [
                ", ".join(f"{name}={value}" for name, value in limits.items()),
                *rows,
                f"  clients give up: {patience}; {self.decisions}",
                repr(self),
            ]
        )

    def _column(self, name: str) -> IntArray:
        return np.array([getattr(request, name) for request in self.requests], np.int64)

    def _root(self, node: int) -> int:
        return self._path(node)[0][0]

    def _path(self, node: int) -> list[tuple[int, int]]:
        """(node, first position) from the root to `node`."""
        path: list[tuple[int, int]] = []
        while node >= 0:
            path.insert(0, (node, self.nodes[node][1]))
            node = self.nodes[node][0]
        return path


def random_case(seed: int) -> Case:
    """The workload of this seed: caching in every second, priorities in two of four.

    A third is crowded: short prompts that are admitted together and outgrow the memory.
    """
    rng = np.random.default_rng(seed)
    spec = _random_spec(rng, caching=seed % 2 == 0, priority=seed // 2 % 2 == 1)
    crowded = rng.random() < 0.33
    if crowded:
        spec = replace(spec, max_num_seqs=32, kv_blocks=max(700 // spec.block_size, 6))
    n = int(rng.choice([6, 12, 24, 24, 32, 40]))
    arrival = np.cumsum(rng.integers(0, int(rng.choice([1, 3, 3, 8, 20])), n))
    prompt, output, leaf, nodes = _random_content(rng, n, spec, crowded)
    if rng.random() < 0.15:  # nothing is shared
        leaf, nodes = list(range(n)), [(-1, 0)] * n
    urgencies = int(rng.choice([1, 3, 3, 12]))
    columns = zip(
        range(n),
        arrival.tolist(),
        prompt,
        output,
        rng.integers(0, urgencies, n).tolist(),
        leaf,
        strict=True,
    )
    return Case(
        seed=seed,
        spec=spec,
        requests=tuple(Request(*row) for row in columns),
        nodes=tuple(nodes),
        decisions=_random_decisions(rng, seed),
        timeout_steps=float(
            rng.choice([NEVER, NEVER, NEVER, NEVER, 12.25, 30, 60.5, 90.5, 150.25, 200])
        ),
    )


def _random_spec(rng: np.random.Generator, *, caching: bool, priority: bool) -> EngineSpec:
    size = int(rng.choice([16, 16, 32, 64, 128]))
    kv_tokens = int(rng.choice([700, 1000, 1000, 1500, 1500, 2500, 2500, 6000]))
    return EngineSpec(
        name="parity",
        gpu="none",
        model="none",
        profile="none",
        max_num_seqs=int(rng.choice([1, 4, 16, 16, 32, 32, 64])),
        max_num_batched_tokens=int(rng.choice([64, 512, 512, 2048])),
        max_model_len=int(rng.choice([4096, 4096, 4096, 1024, 640, 333])),
        kv_blocks=max(kv_tokens // size, 6),
        block_size=size,
        prefix_caching=caching,
        scheduling="priority" if priority else "fcfs",
        watermark_blocks=int(rng.choice([0, 0, 0, 1, 3])),
    )


STYLES: tuple[Mapping[str, Any], ...] = (
    {"budgets": (4096,)},
    {"budgets": (1, 2, 4, 8, 64, 512), "chunks": (0, 0, 3, 16)},
    {"budgets": (1, 8, 16, 64, 200, 512), "chunks": (0, 0, 3, 16, 50, 128)},
    {"budgets": (32, 100, 512), "chunks": (0, 16, 50, 128)},
    {"budgets": (64, 256, 512, 2048), "chunks": (0, 0, 0, 128)},
)
"""Stock vLLM; budgets below the number of decodes; and three mixtures."""


def _random_decisions(rng: np.random.Generator, seed: int) -> Decisions:
    style = int(rng.choice([0, 1, 2, 3, 3, 4, 4, 4]))
    if style == 0:
        return Decisions(seed, **STYLES[0])
    skips = [(0.0,), (0.0, 0.0, 0.0, 0.1, 0.4), (0.0, 0.05)][int(rng.integers(3))]
    return Decisions(
        seed,
        **STYLES[style],
        seats=bool(rng.random() < 0.5),
        reorder_running=float(rng.choice([0.0, 0.15, 0.5])),
        reorder_waiting=float(rng.choice([0.0, 0.15, 0.5])),
        skips=skips,
    )


def _random_content(
    rng: np.random.Generator, n: int, spec: EngineSpec, crowded: bool
) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
    """Lengths and a content tree: shared prefixes, repeated prompts, follow-up turns.

    Prompts end at, before and after block boundaries more often than chance would have it.
    Where `max_model_len` is what limits a request, some are too long for it.
    """
    size = spec.block_size
    capacity = spec.kv_blocks * size
    limited = spec.max_model_len <= capacity
    most_output = min(200 if crowded else int(rng.choice([4, 40, 100, 150])), capacity // 2)
    # Several that fit together, and outgrow the memory only later, are what preempts.
    longest = int(capacity * (0.08 if crowded else rng.choice([0.1, 0.2, 0.2, 0.4, 1.0])))
    nodes = [(-1, 0)] * 3
    leaf: list[int] = []
    prompt: list[int] = []
    output: list[int] = rng.integers(1, most_output + 1, n).tolist()
    for r in range(n):
        own, blocks = int(rng.integers(1, 200)), int(rng.integers(1, 10))
        extra = int(rng.choice([1, 3, size, own, size * blocks]))
        above, shared, same = _random_beginning(rng, leaf, prompt, output, size)
        if not same:
            nodes.append((above, max(shared, nodes[above][1]) if above >= 0 else 0))
            above = len(nodes) - 1
        leaf.append(above)
        wanted = shared + (extra if not same or rng.random() < 0.5 else 0)
        if rng.random() < 0.3:
            wanted = -(-wanted // size) * size + int(rng.choice([-1, 0, 0, 1]))
        if rng.random() < 0.9:
            wanted = min(wanted, longest, spec.max_model_len - 1 - int(rng.integers(0, 40)))
        most = spec.max_model_len + size if limited else capacity - 1 - output[r]
        prompt.append(min(max(wanted, 1), most))
    return prompt, output, leaf, nodes


def _random_beginning(
    rng: np.random.Generator, leaf: list[int], prompt: list[int], output: list[int], size: int
) -> tuple[int, int, bool]:
    """(node that the next request continues, tokens before its own part, whether it has none)."""
    kind = rng.choice(["prefix", "new", "again", "follow"])
    if kind in ("again", "follow") and leaf:
        earlier = int(rng.integers(len(leaf)))
        shared = prompt[earlier] + output[earlier] * (kind == "follow")
        return leaf[earlier], shared, kind == "again"
    shared = int(rng.choice([size * rng.integers(0, 12), rng.integers(0, 400)]))
    return int(rng.integers(3)) if kind == "prefix" else -1, shared, False


def _pick(options: Sequence[Any], draw: float) -> Any:
    return options[int(draw * len(options))]


def stop_at(case: Case, step: int) -> Case:
    """The same case up to and with `step`."""
    arrived = tuple(r for r in case.requests if r.arrival_step <= step)
    return replace(case, requests=arrived, last_step=step)
