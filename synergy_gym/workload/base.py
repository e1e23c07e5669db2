"""The traffic of one episode as columns, and the content of its prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.limits import MOST_NS, MOST_TOKENS
from synergy_gym.types import IntArray
from synergy_gym.workload.blocks import Content, block_ids

_LENGTHS = "vLLM serves lengths >= 1, drop the row or raise it to 1"
# Column -> (smallest, largest, what to do about a number that is too small).
_RANGES = {
    "prompt_tokens": (1, MOST_TOKENS, _LENGTHS),
    "output_tokens": (1, MOST_TOKENS, _LENGTHS),
    "arrival_ns": (0, MOST_NS, "sort the rows by arrival and let time begin at 0"),
    "slo_class": (0, MOST_TOKENS, "classes count from 0"),
    "priority": (-MOST_TOKENS, MOST_TOKENS, "any order fits smaller numbers"),
}


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
        ValueError: a column has another length, arrivals run backwards, or a number is out of
            range; the message names the first offending row.
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
    workload = Workload(**columns, content=content)
    check_workload(workload)
    return workload


def check_workload(workload: Workload) -> None:
    """Raise `ValueError` naming the first row that no simulation can play."""
    for name, (least, most, cure) in _RANGES.items():
        column = getattr(workload, name)
        if len(column) and not least <= int(column.min()) <= int(column.max()) <= most:
            row = int(np.flatnonzero((column < least) | (column > most))[0])
            if int(column[row]) > most:
                cure = f"at most {most:,} is possible"
            raise ValueError(f"workload row {row}: {name} is {column[row]}; {cure}")
    arrivals = workload.arrival_ns[workload.after < 0]
    if bool(np.any(arrivals[1:] < arrivals[:-1])):
        raise ValueError(
            "workload arrivals must be >= 0 and non-decreasing; sort the rows by arrival"
        )
    after = workload.after
    bad = np.flatnonzero(after >= np.arange(len(after)))
    if len(bad):
        raise ValueError(
            f"workload row {bad[0]}: `after` must name an earlier row, it is {after[bad[0]]}"
        )
    if workload.content is not None:
        _check_content(workload.content, len(workload))


def check_classes(workload: Workload, classes: int) -> None:
    """Raise `ValueError` naming the first row whose SLO class is not declared."""
    bad = np.flatnonzero((workload.slo_class < 0) | (workload.slo_class >= classes))
    if len(bad):
        raise ValueError(
            f"workload row {bad[0]}: slo_class is {workload.slo_class[bad[0]]}, and {classes} SLO "
            f"classes are declared; choose 0..{classes - 1} or declare its SLO"
        )


def _check_content(content: Content, requests: int) -> None:
    nodes = len(content.parent)
    if len(content.leaf) != requests or len(content.start) != nodes:
        raise ValueError(
            f"workload content has {len(content.leaf)} leaves for {requests} requests and "
            f"{len(content.start)} starts for {nodes} parents; give one each"
        )
    columns = {
        "leaf": (content.leaf < 0) | (content.leaf >= nodes),
        "parent": (content.parent < -1) | (content.parent >= np.arange(nodes)),
        "start": content.start < 0,
    }
    for name, wrong in columns.items():
        if bool(wrong.any()):
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"workload content: {name}[{row}] is {getattr(content, name)[row]}; a leaf is a "
                "node, a parent an earlier node or -1, a start at least 0"
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
