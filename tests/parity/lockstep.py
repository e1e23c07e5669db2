"""Playing a case on an oracle and on the sides that must do the same, step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from synergy_gym.types import BatchDecision
from tests.parity.cases import Case
from tests.parity.coverage import Coverage
from tests.parity.sides import Result, Side, State, difference

Build = Callable[[Case], Side]


class Mismatch(AssertionError):
    """A side did something else than the oracle, or raised."""

    def __init__(
        self, case: Case, side: str, step: int, what: str, theirs: Any, mine: Any, decision: Any
    ) -> None:
        self.case, self.side, self.step = case, side, step
        super().__init__(
            f"workload {case.seed}, step {step}: {what}\n  vLLM {theirs}\n  {side} {mine}\n"
            f"  {decision}"
        )


@dataclass
class Play:
    """A case on an oracle and some sides.

    Args:
        case: what is played.
        oracle: builds the side that is right; it must tell everything.
        sides: builds the sides that are compared with it.
    """

    case: Case
    oracle: Build
    sides: Mapping[str, Build]

    def __post_init__(self) -> None:
        self.coverage = Coverage(self.case)
        self.digest = hashlib.sha256()
        """Of everything that the oracle said."""
        self._step = 0
        self._decision: BatchDecision | None = None
        self._truth = self.oracle(self.case)
        self._sides: dict[str, Side] = {}

    def run(self) -> None:
        """Play to the end.

        Raises:
            Mismatch: at the first difference.
        """
        for name, build in self.sides.items():
            self._sides[name] = self._guard(name, build, self.case)
        try:
            self._run()
        except Exception as error:
            error.add_note(f"in workload {self.case.seed} at step {self._step}")
            raise

    def _run(self) -> None:
        case = self.case
        arrivals = [request.arrival_step for request in case.requests]
        accepted = 0
        alive: set[int] = set()
        while accepted < len(arrivals) or alive:
            if not alive:
                self._step = max(self._step, arrivals[accepted])
            if self._step > case.last_step:
                break
            aborts = sorted(r for r in alive if case.due(r) == self._step)
            new = [r for r in range(accepted, len(arrivals)) if arrivals[r] <= self._step]
            accepted += len(new)
            state = self._begin(aborts, new)
            alive = state.alive
            if not alive:
                continue
            following = arrivals[accepted] if accepted < len(arrivals) else 0
            result, gone, self._step = self._iterate(state, following)
            alive -= gone | set(result.finished)

    def _begin(self, aborts: list[int], new: list[int]) -> State:
        self._truth.accept(aborts, new)
        for name, side in self._sides.items():
            self._guard(name, side.accept, aborts, new)
        state = self._truth.state(self._step)
        self.coverage.began(state, aborts)
        if state.alive:
            for name, side in self._sides.items():
                self._compare(name, state, self._guard(name, side.state, self._step))
        return state

    def _iterate(self, state: State, following: int) -> tuple[Result, set[int], int]:
        """One iteration: (what happened, who was cancelled in it, number of the next step)."""
        self._decision = decision = self.case.decision(
            self._step, [r for r, *_ in state.running], state.waiting
        )
        busy = self._truth.schedule(decision)
        # An iteration that schedules nothing lasts until somebody arrives.
        end = self._step + 1 if busy else max(self._step + 1, following)
        due = {r for r in state.alive if self._step < self.case.due(r) < end}
        result = self._truth.end(due)
        told = replace(result, preempted=sorted(result.preempted))
        self.digest.update(repr((self._step, state, told)).encode())
        self.coverage.ended(state, decision, result, due)
        for name, side in self._sides.items():
            self._guard(name, side.schedule, decision)
            self._compare(name, result, self._guard(name, side.end, due))
        return result, due, end

    def _compare(self, name: str, theirs: Any, mine: Any) -> None:
        found = difference(theirs, mine)
        if found is not None:
            raise Mismatch(self.case, name, self._step, *found, self._decision)

    def _guard(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `call` returns; a mismatch when it raises."""
        try:
            return call(*arguments)
        except Exception as error:
            raise Mismatch(
                self.case, name, self._step, "raised", "nothing", repr(error), self._decision
            ) from error


def find_mismatch(case: Case, oracle: Build, sides: Mapping[str, Build]) -> Mismatch | None:
    """The first difference in `case`, if there is one."""
    try:
        Play(case, oracle, sides).run()
    except Mismatch as mismatch:
        return mismatch
    return None
