"""The traffic of one episode as columns, and the content of its prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.types import IntArray
from synergy_gym.workload.blocks import Content, block_ids


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests in arrival order; every column has one entry per request.

    Attributes:
        arrival_ns: arrival since the episode began, nanoseconds, non-decreasing; for a
            request with `after >= 0`, the think time after that request has left.
        prompt_tokens: prompt length, >= 1.
        output_tokens: true output length, >= 1; no policy ever sees it.
        session: conversation id, -1 without one.
        slo_class: index into the scenario's SLO classes.
        priority: smaller is more urgent (vLLM's meaning); used by priority scheduling.
        after: closed loop: index of the earlier request that must leave first, or -1.
        content: shared prefixes; `None` when all prompts are unrelated.
    """

    arrival_ns: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    session: IntArray
    slo_class: IntArray
    priority: IntArray
    after: IntArray
    content: Content | None = None

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def block_ids(self, block_size: int) -> tuple[IntArray, IntArray]:
        """Chained block identities of prompt + output.

        Returns `(offsets, ids)`: request r owns `ids[offsets[r]:offsets[r + 1]]`, one
        positive id per full block of its prompt + output tokens. Equal ids mean equal
        content from position 0 to the end of that block.
        """
        return block_ids(self.prompt_tokens + self.output_tokens, self.content, block_size)


def make_workload(
    arrival_ns: IntArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    *,
    session: IntArray | None = None,
    slo_class: IntArray | None = None,
    priority: IntArray | None = None,
    after: IntArray | None = None,
    content: Content | None = None,
) -> Workload:
    """Build a `Workload`, filling absent columns with their neutral value.

    Raises:
        ValueError: a column has another length, arrivals run backwards, or a length is
            smaller than 1; the message names the first offending row.
    """
    n = len(arrival_ns)
    columns: dict[str, IntArray] = {}
    given = {
        "arrival_ns": (arrival_ns, 0),
        "prompt_tokens": (prompt_tokens, 1),
        "output_tokens": (output_tokens, 1),
        "session": (session, -1),
        "slo_class": (slo_class, 0),
        "priority": (priority, 0),
        "after": (after, -1),
    }
    for name, (column, neutral) in given.items():
        values = (
            np.broadcast_to(np.int64(neutral), (n,))  # takes no memory
            if column is None
            else np.ascontiguousarray(column, np.int64)
        )
        if len(values) != n:
            raise ValueError(f"workload column {name} has {len(values)} rows, arrival_ns has {n}")
        columns[name] = values
    _check(columns)
    return Workload(**columns, content=content)


def _check(columns: dict[str, IntArray]) -> None:
    for name in ("prompt_tokens", "output_tokens"):
        bad = np.flatnonzero(columns[name] < 1)
        if len(bad):
            raise ValueError(
                f"workload row {bad[0]}: {name} is {columns[name][bad[0]]}; "
                "vLLM serves lengths >= 1, drop the row or raise it to 1"
            )
    open_loop = columns["after"] < 0
    arrivals = columns["arrival_ns"][open_loop]
    if len(arrivals) and (arrivals[0] < 0 or bool(np.any(np.diff(arrivals) < 0))):
        raise ValueError(
            "workload arrivals must be >= 0 and non-decreasing; sort the rows by arrival"
        )
    after = columns["after"]
    bad = np.flatnonzero(after >= np.arange(len(after)))
    if len(bad):
        raise ValueError(
            f"workload row {bad[0]}: `after` must name an earlier row, it is {after[bad[0]]}"
        )


def prefix_hit_share(workload: Workload, block_size: int) -> tuple[float, float]:
    """Prompt blocks that an earlier prompt already held: an unbounded cache's hit rate.

    Outputs are not counted as cached, as in the trace statistics of the Mooncake paper
    (FAST'25), whose hashes cover prompts only.

    Returns:
        `(share of full prompt blocks, share of prompt tokens)`, each in [0, 1].
    """
    offsets, ids = workload.block_ids(block_size)
    prompt_blocks = workload.prompt_tokens // block_size
    index = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets))
    of_prompt = ids[index < np.repeat(prompt_blocks, np.diff(offsets))]
    if not len(of_prompt):
        return 0.0, 0.0
    repeated = len(of_prompt) - len(np.unique(of_prompt))
    return repeated / len(of_prompt), repeated * block_size / int(workload.prompt_tokens.sum())
