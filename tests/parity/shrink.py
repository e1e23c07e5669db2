"""Making a failing workload small: fewer steps and requests, plainer decisions, short lengths.

Every change makes a case smaller in one of these and is kept when the case still fails, in
whatever way. What is left is small, not smallest: a change that hides a mismatch alone might
not hide it together with another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tests.parity.cases import NEVER, Case, Decisions, Request, stop_at
from tests.parity.lockstep import Build, Mismatch, find_mismatch

TRIES = 600
"""Most cases that are played to shrink one."""

Fails = Callable[[Case], Mismatch | None]


@dataclass
class Shrinker:
    """Shrinks one case.

    Args:
        fails: what goes wrong in a case, if anything does.
        mismatch: how the case fails before it is shrunk.
        tries: cases that may still be played.
    """

    fails: Fails
    mismatch: Mismatch
    tries: int = TRIES

    def __post_init__(self) -> None:
        self.case = self._cut(self.mismatch.case)

    def run(self) -> Mismatch:
        """Change the case as long as it gets smaller; returns how the small one fails."""
        shrinking = True
        while shrinking and self.tries > 0:
            # Not `any` of a generator: each pass has its turn in every round.
            shrinking = any([self._pass(changes) for changes in PASSES])
        return self.mismatch

    def _pass(self, changes: Callable[[Case], Iterator[Case]]) -> bool:
        """Make changes of one kind until none of them is left that keeps the failure."""
        shrunk = False
        kept = True
        while kept:
            kept = any(self._keeps(case) for case in changes(self.case))
            shrunk |= kept
        return shrunk

    def _keeps(self, case: Case) -> bool:
        if self.tries <= 0 or case == self.case:
            return False
        self.tries -= 1
        mismatch = self.fails(case)
        if mismatch is None:
            return False
        self.case, self.mismatch = self._cut(case, mismatch), mismatch
        return True

    def _cut(self, case: Case, mismatch: Mismatch | None = None) -> Case:
        """Nothing after the failing step matters."""
        return stop_at(case, (mismatch or self.mismatch).step)


def shrink(case: Case, oracle: Build, side: str, build: Build, tries: int = TRIES) -> Mismatch:
    """How a small version of `case`, in which `side` fails, fails.

    Raises:
        ValueError: `side` does not fail in `case`.
    """
    sides = {side: build}
    mismatch = find_mismatch(case, oracle, sides)
    if mismatch is None:
        raise ValueError(f"{side} does what the oracle does in workload {case.seed}")
    return Shrinker(lambda smaller: find_mismatch(smaller, oracle, sides), mismatch, tries).run()


def shrunk(oracle: Build, sides: Mapping[str, Build]) -> Callable[[Mismatch], str]:
    """How to put a mismatch into words: its workload shrunk."""

    def tell(mismatch: Mismatch) -> str:
        build = sides[mismatch.side]
        return report(shrink(mismatch.case, oracle, mismatch.side, build))

    return tell


def report(mismatch: Mismatch) -> str:
    """A mismatch with its whole workload, to be read and to be played again."""
    return f"{mismatch}\n{mismatch.case.describe()}"


def _without_requests(case: Case) -> Iterator[Case]:
    requests = case.requests
    size = len(requests) // 2
    while size >= 1:
        for first in range(len(requests) - size, -1, -size):
            left = requests[:first] + requests[first + size :]
            if left:
                yield replace(case, requests=left)
        size //= 2


def _plainer_decisions(case: Case) -> Iterator[Case]:
    most = case.spec.max_num_batched_tokens
    plain = Decisions(case.decisions.seed, (most,))
    for item in fields(Decisions):
        value = getattr(plain, item.name)
        yield replace(case, decisions=replace(case.decisions, **{item.name: value}))
    if len(case.decisions.budgets) > 1:
        for budget in case.decisions.budgets:
            yield replace(case, decisions=replace(case.decisions, budgets=(budget,)))
    if len(case.decisions.chunks) > 1:
        for chunk in case.decisions.chunks:
            yield replace(case, decisions=replace(case.decisions, chunks=(chunk,)))


def _plainer_cases(case: Case) -> Iterator[Case]:
    yield replace(case, timeout_steps=NEVER)
    yield _changed(case, range(len(case.requests)), priority=0)
    apart = tuple(replace(r, leaf=i) for i, r in enumerate(case.requests))
    yield replace(case, requests=apart, nodes=((-1, 0),) * len(apart))
    yield replace(case, spec=replace(case.spec, watermark_blocks=0))
    yield replace(case, spec=replace(case.spec, prefix_caching=False))
    if case.decisions.reorder_waiting == 0:
        yield replace(case, spec=replace(case.spec, scheduling="fcfs"))


def _smaller_memory(case: Case) -> Iterator[Case]:
    spec = case.spec
    for blocks in dict.fromkeys((spec.kv_blocks // 2, spec.kv_blocks * 3 // 4, spec.kv_blocks - 1)):
        # vLLM takes a request that can never fit, and waits for ever.
        capacity = blocks * spec.block_size
        fits = all(r.prompt + r.output < capacity for r in case.requests)
        if 0 < blocks < spec.kv_blocks and (fits or spec.max_model_len <= capacity):
            yield replace(case, spec=replace(spec, kv_blocks=blocks))


def _earlier(case: Case) -> Iterator[Case]:
    requests = case.requests
    first = min(r.arrival_step for r in requests)
    if first > 0:
        moved = tuple(replace(r, arrival_step=r.arrival_step - first) for r in requests)
        yield replace(case, requests=moved)
    for i in range(1, len(requests)):
        gap = requests[i].arrival_step - requests[i - 1].arrival_step
        for less in dict.fromkeys((gap, gap // 2, 1)):
            if 0 < less <= gap:
                moved = tuple(replace(r, arrival_step=r.arrival_step - less) for r in requests[i:])
                yield replace(case, requests=requests[:i] + moved)


def _shorter(case: Case) -> Iterator[Case]:
    for name in ("output", "prompt"):
        for i, request in enumerate(case.requests):
            length: int = getattr(request, name)
            for shorter in dict.fromkeys((1, length // 2, length - length // 8, length - 1)):
                if 1 <= shorter < length:
                    yield _changed(case, [i], **{name: shorter})


def _earlier_ends(case: Case) -> Iterator[Case]:
    """Output turned into prompt: a prompt is computed in one step, an output token takes one."""
    for i, request in enumerate(case.requests):
        for moved in dict.fromkeys((request.output - 1, request.output // 2, 1)):
            if 0 < moved < request.output:
                changes = {"prompt": request.prompt + moved, "output": request.output - moved}
                yield _changed(case, [i], **changes)


def _changed(case: Case, which: Sequence[int], **changes: Any) -> Case:
    requests: list[Request] = list(case.requests)
    for i in which:
        requests[i] = replace(requests[i], **changes)
    return replace(case, requests=tuple(requests))


PASSES: tuple[Callable[[Case], Iterator[Case]], ...] = (
    _without_requests,
    _plainer_decisions,
    _plainer_cases,
    _smaller_memory,
    _earlier,
    _earlier_ends,
    _shorter,
)
"""In the order of what they save."""
