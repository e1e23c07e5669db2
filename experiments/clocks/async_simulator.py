"""The simulator with what asynchronous scheduling lets a policy know.

vLLM plans step n+1 when step n begins (`step_with_batch_queue` in vllm/v1/engine/core.py): the
tokens of step n are counted by then, but nobody has left in it, nobody has arrived, and nobody
knows how long it takes. `AsyncSimulator` plans step n+1 when step n has ended, as the simulator
does, from what vLLM knew: it shows the policy that older view, and carries its decision over to the
requests that are there now. A step that vLLM would plan empty takes no time: the policy is asked
again at once, with everything known. So a policy is asked, and told of steps, in vLLM's order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.decisions import check_decision
from synergy_gym.sim.plain.server import engine_state
from synergy_gym.sim.simulator import BATCH, Simulator
from synergy_gym.types import (
    BatchDecision,
    EngineStateField,
    EngineView,
    IntArray,
    RequestArrays,
    StepReport,
)

NOBODY = np.empty(0, np.int64)
Fetch = Callable[[], tuple[RequestArrays, RequestArrays]]


@dataclass(frozen=True)
class Information:
    """What the plan of step n+1 knows of step n, and whom it may take in.

    Attributes:
        view: what the policy decides from. "now": step n has ended. "planned": step n begins, and
            its tokens are counted, as vLLM counts them with placeholders. "before": step n begins,
            and nothing of it is counted.
        late_arrivals: a request that arrives in step n joins step n+2 at the earliest.
        late_reports: the last step that the policy is told of is n-1.
        held_seats: a request that ends with step n still counts as running. Needs "planned".

    Raises:
        ValueError: held seats without the view "planned", which says who holds them.
    """

    view: Literal["now", "planned", "before"] = "now"
    late_arrivals: bool = False
    late_reports: bool = False
    held_seats: bool = False

    def __post_init__(self) -> None:
        if self.held_seats and self.view != "planned":
            raise ValueError(f"held_seats with view={self.view!r}; use view='planned'")

    @property
    def is_old(self) -> bool:
        """Whether the policy knows more when it is asked again."""
        return self.view != "now" or self.late_reports


EXACT = Information()
VLLM = Information("planned", late_arrivals=True, late_reports=True, held_seats=True)
"""vLLM's own, for outputs of fixed length; the view is that of `AsyncPolicyScheduler`."""


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """An engine at the start of a step: a view, and the requests that its lists are about.

    `running` and `waiting` are request numbers in the order of the view's lists.
    """

    view: EngineView
    running: IntArray
    waiting: IntArray

    @property
    def requests(self) -> IntArray:
        """All of them, in the order of token caps."""
        return np.concatenate([self.running, self.waiting])


class AsyncSimulator(Simulator):
    """A simulator whose policies know what `information` says; routers see what they always see.

    Attributes:
        empty_steps: steps that were planned empty, took no time, and were decided again.
        tight_steps: steps that might have been planned otherwise if the requests that end with the
            step before had still held their KV blocks, as they do in vLLM. This one difference, for
            outputs of fixed length, is not reproduced; it is counted with the view "planned".

    Args:
        information: what plans know.
        episode: the arguments of `Simulator`; rules are left to the policies' own `decide` unless
            the information is exact.
    """

    def __init__(self, information: Information = EXACT, **episode: Any) -> None:
        if information != EXACT:
            episode["rules"] = None
        super().__init__(**episode)
        self.information = information
        self.empty_steps = self.tight_steps = 0
        self._sights: list[Sight | None] = [None] * len(self.engines)
        self._again = False

    def advance(self) -> int:
        """As `Simulator.advance`; after an empty step, the same point again."""
        return BATCH if self._again else super().advance()

    def engine_view(self, engine: int) -> EngineView:
        """What a policy of `engine` knows at its BATCH point."""
        now, sight = super().engine_view(engine), self._sights[engine]
        if sight is None or self._again:
            return now
        shown = now if self.information.view == "now" else sight.view
        told = sight.view if self.information.late_reports else now
        if shown is told:
            return shown
        state = shown.state.copy()
        state[EngineStateField.LAST_STEP_NS :] = told.state[EngineStateField.LAST_STEP_NS :]
        return _changed(shown, state, told.last_step, lambda: (shown.running, shown.waiting))

    def batch(self, decision: BatchDecision) -> None:
        """Plan a step by a decision on the view that was shown.

        Raises:
            ValueError: no engine waits, or the decision does not fit what was shown.
        """
        engine = self.point_engine
        sight = None if self._again else self._sights[engine]
        carried = decision if sight is None else self._carried(engine, sight, decision)
        self._again = carried is None
        if carried is not None and self.information == EXACT:
            super().batch(carried)
        elif carried is not None:
            self._plan(engine, carried, sight)

    def snapshot(self) -> object:
        """The whole state; give it to `restore` of a simulator of the same episode."""
        own = list(self._sights), self._again, self.empty_steps, self.tight_steps
        return super().snapshot(), own

    def restore(self, snapshot: object) -> None:
        """Return to a state that `snapshot()` gave."""
        state: Any = snapshot
        super().restore(state[0])
        sights, self._again, self.empty_steps, self.tight_steps = state[1]
        self._sights = list(sights)

    def _plan(self, engine: int, decision: BatchDecision, sight: Sight | None) -> None:
        """Begin a step, and keep what the plan of the next one will know of it."""
        before = self._sight(engine)
        if self.information.view == "before":
            _ = before.view.running  # a view reads its lists when it is asked, which is too late
        super().batch(decision)
        if self.information.view == "planned":
            self._count_tight(engine, before, sight)
            before = self._planned(engine)
        self._sights[engine] = before

    def _carried(self, engine: int, sight: Sight, decision: BatchDecision) -> BatchDecision | None:
        """The decision on the requests that are there; `None` if the step would be empty."""
        information, spec, now = self.information, self.engines[engine], self._sight(engine)
        shown = now if information.view == "now" else sight
        check_decision(spec, decision, len(shown.running), len(shown.waiting))
        carried, runs = _moved(decision, shown, now), len(now.running)
        known = _looked_up(now.waiting, sight.requests, 1, 0) == 1
        caps = _caps(carried, now)
        if information.late_arrivals:
            caps[runs:][~known] = 0
        seats = spec.max_num_seqs if carried.max_running is None else carried.max_running
        if information.held_seats:
            seats -= len(sight.running) - runs
            carried, caps = _chunked(carried, caps, sight)
        serves = caps[:runs].any() or (seats > runs and caps[runs:].any())
        if not (serves and (runs or known.any())):
            if not information.is_old:
                return decision
            self._left_empty(engine, carried)
            return None
        # With one running already, one seat admits nobody.
        return replace(
            carried, max_running=max(seats, 1), token_caps=caps if (caps >= 0).any() else None
        )

    def _left_empty(self, engine: int, decision: BatchDecision) -> None:
        """An empty step serves nobody, but an order of its decision lasts."""
        self.empty_steps += 1
        orders = decision.running_order, decision.waiting_order
        if any(order is not None for order in orders):
            self._apply_lists(engine, BatchDecision(1, None, 0, *orders))

    def _sight(self, engine: int) -> Sight:
        running, waiting = (self._queue(engine, running=which)[0] for which in (True, False))
        return Sight(super().engine_view(engine), running, waiting)

    def _planned(self, engine: int) -> Sight:
        """The engine with the tokens counted that the step in flight will have computed."""
        sight = self._sight(engine)
        view, running, waiting = sight.view, sight.view.running, sight.view.waiting
        requests = self.memory.requests[sight.running]
        # A chunk counts as computed when it is planned, a decode's token when the step ends.
        decoded = (requests["state"] == L.DECODE) & ~requests["skipped"]
        computed = running.computed_tokens + decoded
        emits = computed == running.prompt_tokens + running.generated_tokens
        generated = running.generated_tokens + emits
        running = replace(running, computed_tokens=computed, generated_tokens=generated)
        blocks = view.kv_free_blocks, view.kv_total_blocks
        state = engine_state(running, waiting, self.now_ns, view.last_step, *blocks)
        return replace(
            sight, view=_changed(view, state, view.last_step, lambda: (running, waiting))
        )

    def _count_tight(self, engine: int, before: Sight, sight: Sight | None) -> None:
        if sight is None:
            return  # the engine was idle: vLLM knew of every free block
        freed = before.view.kv_free_blocks - sight.view.kv_free_blocks
        record = self.memory.engines[engine]
        short = record["pool"]["free"] < freed or record["plan"]["preempted"] > 0
        self.tight_steps += int(freed > 0 and short)


def _changed(
    view: EngineView, state: IntArray, last_step: StepReport | None, fetch: Fetch
) -> EngineView:
    return EngineView(spec=view.spec, slos=view.slos, state=state, last_step=last_step, fetch=fetch)


def _looked_up(
    asked: IntArray, requests: IntArray, values: IntArray | int, default: int
) -> IntArray:
    """Per request in `asked` its value, or the default where it is not among `requests`."""
    most = max(asked.max(initial=0), requests.max(initial=0))
    table = np.full(most + 1, default, np.int64)
    table[requests] = values
    found: IntArray = table[asked]
    return found


def _moved(decision: BatchDecision, shown: Sight, now: Sight) -> BatchDecision:
    """The decision on the lists of `shown`, by request, on those of `now`."""
    if shown is now:
        return decision
    caps, running, waiting = decision.token_caps, decision.running_order, decision.waiting_order
    if caps is not None:
        caps = _looked_up(now.requests, shown.requests, np.asarray(caps, np.int64), -1)
    if running is not None:
        running = _order(now.running, shown.running[running])
    if waiting is not None:
        waiting = _order(now.waiting, shown.waiting[waiting], preempted=shown.running)
    return replace(decision, token_caps=caps, running_order=running, waiting_order=waiting)


def _order(now: IntArray, wanted: IntArray, preempted: IntArray = NOBODY) -> IntArray:
    """Order of the requests `now`: as `wanted`, with those beside them behind, or in front."""
    requests = np.concatenate([preempted, wanted])
    places = np.arange(len(requests)) - len(preempted)
    ranks = _looked_up(now, requests, places, len(wanted))
    return np.argsort(np.maximum(ranks, -1), kind="stable")


def _caps(decision: BatchDecision, now: Sight) -> IntArray:
    if decision.token_caps is None:
        return np.full(len(now.running) + len(now.waiting), -1, np.int64)
    return np.array(decision.token_caps, np.int64)


def _chunked(
    decision: BatchDecision, caps: IntArray, sight: Sight
) -> tuple[BatchDecision, IntArray]:
    """The chunk cap holds while vLLM counts more than one request; the simulator counts now."""
    chunk = decision.prefill_chunk
    if chunk and len(sight.running) + len(sight.waiting) == 1:
        decision = replace(decision, prefill_chunk=0)
    elif chunk and len(caps) == 1 and caps[0]:
        caps = np.array([min(chunk, caps[0]) if caps[0] > 0 else chunk], np.int64)
    return decision, caps
