"""N engines and one clock, compiled: the simulator that environments and evaluation use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from synergy_gym.latency.terms import check_reach
from synergy_gym.sim import layout as L
from synergy_gym.sim.adverts import predicted_ns, published, started_with
from synergy_gym.sim.arena import World, build_arena, check_spec
from synergy_gym.sim.clock import advance, take_batch, take_route
from synergy_gym.sim.decision_log import chain_arrays
from synergy_gym.sim.decisions import check_decision, check_rule, is_integer
from synergy_gym.sim.exports import QUEUE_FIELDS, set_caps, write_ages, write_queue, write_state
from synergy_gym.sim.lists import relink
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.sim.telemetry import refresh_rows
from synergy_gym.types import (
    INFORMATION_CLASSES,
    NS_PER_S,
    SLO,
    BatchDecision,
    ClientSpec,
    ClusterView,
    CompletionView,
    DecisionRule,
    EngineAdvert,
    EngineSpec,
    EngineStateField,
    EngineView,
    Event,
    IntArray,
    Outcome,
    RequestArrays,
    RequestRecords,
    RequestView,
    RouterRow,
    StepReport,
    TelemetrySpec,
)
from synergy_gym.workload.base import Workload

CHECK_VARIABLE = "SYNERGY_GYM_CHECK"
"""Environment variable: 1 checks the invariants after every iteration."""


class Simulator:
    """Heterogeneous engines behind one router, stopping where a decision is needed.

    Call `advance()`; answer `ROUTE` with `route(engine)` and `BATCH` with `batch(decision)`;
    repeat until `DONE`. Engines with a `DecisionRule` decide by themselves in compiled code.

    Args:
        engines: the cluster.
        clocks: one step-latency vector per engine (`StepTerms.clock(seed)`).
        workload: the traffic.
        slos: SLO classes that `workload.slo_class` indexes.
        telemetry: how engine state reaches the router.
        client: timeouts and retries.
        events: changes of the world.
        warmup_ns: scored are arrivals in [warmup_ns, horizon_ns).
        horizon_ns: end of arrivals (dynamic ones included, retries not).
        stop_ns: nothing later than this happens.
        rules: per engine a compiled decision, or `None` for BATCH points.
        adverts: per engine what it tells routers until a decision's advert says otherwise, or
            `None` for zeros.
        auto_route: one engine only; arrivals reach it without ROUTE points.
        record_itl: keep inter-token gaps for `itl()`.

    Raises:
        ValueError: inconsistent arguments; the message names the first one.
    """

    def __init__(
        self,
        *,
        engines: Sequence[EngineSpec],
        clocks: Sequence[IntArray],
        workload: Workload,
        slos: Sequence[SLO],
        telemetry: TelemetrySpec | None = None,
        client: ClientSpec | None = None,
        events: Sequence[Event] = (),
        warmup_ns: int = 0,
        horizon_ns: int = L.INF,
        stop_ns: int = L.INF,
        rules: Sequence[DecisionRule | None] | None = None,
        adverts: Sequence[EngineAdvert | None] | None = None,
        auto_route: bool = False,
        record_itl: bool = False,
    ) -> None:
        # Policies are shown copies: whoever writes into one changes no limit and no objective.
        self.engines = tuple(replace(spec) for spec in engines)
        self.slos = tuple(replace(slo) for slo in slos)
        self._specs = tuple(engines)
        # The traffic itself is in the arena: a million requests need not be kept twice.
        self._session = workload.session
        self._has_content = workload.content is not None
        self._check(workload, clocks, rules, auto_route)
        self._auto_route = auto_route
        world = World(
            engines=self._specs,
            clocks=clocks,
            workload=workload,
            slos=tuple(slos),
            telemetry=telemetry or TelemetrySpec(),
            client=client or ClientSpec(),
            events=events,
            rules=rules or [None] * len(self.engines),
            adverts=started_with(adverts, len(self.engines)),
            warmup_ns=warmup_ns,
            horizon_ns=horizon_ns,
            stop_ns=stop_ns,
            auto_route=auto_route,
            record_itl=record_itl,
            check=os.environ.get(CHECK_VARIABLE) == "1",
        )
        self._a = build_arena(world)
        self._itl: list[IntArray] = []
        self._waiting_for: int = -1

    def _check(
        self,
        workload: Workload,
        clocks: Sequence[IntArray],
        rules: Sequence[DecisionRule | None] | None,
        auto_route: bool,
    ) -> None:
        if not self.engines:
            raise ValueError("a simulation needs at least one engine")
        for spec in self.engines:
            check_spec(spec)
        if len(clocks) != len(self.engines) or (rules and len(rules) != len(self.engines)):
            raise ValueError("give one clock, and one rule or None, per engine")
        if auto_route and len(self.engines) > 1:
            raise ValueError("auto_route needs a single engine; answer ROUTE points instead")
        sizes = {spec.block_size for spec in self.engines if spec.prefix_caching}
        if len(sizes) > 1:
            raise ValueError(f"engines with prefix caching must share a block size, not {sizes}")
        n = len(workload)
        if n and int(workload.slo_class.max()) >= max(len(self.slos), 1):
            raise ValueError("workload.slo_class names a class beyond `slos`")
        for spec, clock in zip(self.engines, clocks, strict=True):
            check_reach(clock, spec)
        for spec, rule in zip(self.engines, rules or (), strict=False):
            if rule is not None:
                check_rule(spec, rule)

    @property
    def arena(self) -> IntArray:
        """The simulator's memory (`sim/layout.py`), for compiled steps; not for policies."""
        return self._a

    # -- running -----------------------------------------------------------------------

    def advance(self) -> int:
        """Run to the next decision point that no rule answers; returns its kind."""
        if self._waiting_for > 0:
            raise RuntimeError("answer the current decision point before advancing")
        point = advance(self._a, 0)
        while point in (L.POINT_ITL_FULL, L.POINT_CHECK):
            if point == L.POINT_CHECK:
                self.check()
            else:
                self._drain_itl()
            point = advance(self._a, 0)
        self._waiting_for = int(point)
        return self._waiting_for

    @property
    def now_ns(self) -> int:
        """The instant of the current point, nanoseconds since the episode began."""
        return int(self._a[L.H_NOW])

    @property
    def point_request(self) -> int:
        """The request that a ROUTE point is about."""
        return int(self._a[L.H_PREQ])

    @property
    def point_engine(self) -> int:
        """The engine that a BATCH point is about."""
        return int(self._a[L.H_PENG])

    def route(self, engine: int) -> None:
        """Send the arriving request to `engine`.

        Raises:
            ValueError: no request waits, the index is out of range, or the engine is down.
        """
        if self._waiting_for != ROUTE:
            raise ValueError("no request waits for routing; call advance() first")
        if not is_integer(engine):
            raise ValueError(f"engine {engine!r} is no index; choose 0..{len(self.engines) - 1}")
        if not 0 <= engine < len(self.engines):
            raise ValueError(f"engine {engine} does not exist; choose 0..{len(self.engines) - 1}")
        if self._a[self._base(engine) + L.E_DOWN]:
            raise ValueError(f"engine {engine} is down; choose one whose `alive` is true")
        self._remember_session(engine)
        take_route(self._a, 0, engine)
        self._waiting_for = -1

    def batch(self, decision: BatchDecision) -> None:
        """Give the engine of a BATCH point the decision for its next iteration.

        Raises:
            ValueError: no engine waits, or a value is out of range.
        """
        if self._waiting_for != BATCH:
            raise ValueError("no engine waits for a batch decision; call advance() first")
        index = self.point_engine
        e, spec = self._base(index), self._specs[index]
        cap = spec.max_num_seqs if decision.max_running is None else decision.max_running
        a = self._a
        check_decision(spec, decision, int(a[e + L.E_RUNNING]), int(a[e + L.E_WAITING]))
        a[e + L.P_BUDGET], a[e + L.P_CAP] = decision.token_budget, cap
        a[e + L.P_CHUNK] = decision.prefill_chunk
        self._tell(e, decision.advert)
        if (
            decision.running_order is not None
            or decision.waiting_order is not None
            or decision.token_caps is not None
        ):
            self._apply_lists(e, decision)
        take_batch(a, 0, e)
        self._waiting_for = -1

    def _tell(self, e: int, advert: EngineAdvert | None) -> None:
        """From its next commit on the engine publishes what `advert` says."""
        self._a[e + L.T_PREDICTED] = predicted_ns(advert)
        if advert is not None:
            at = int(self._a[e + L.T_ADVERT])
            told = self._a[at : at + L.ADVERT_SIZE]
            told[:] = published(advert, told.tolist())

    def _apply_lists(self, e: int, decision: BatchDecision) -> None:
        if decision.token_caps is not None:
            set_caps(self._a, 0, e, np.ascontiguousarray(decision.token_caps, np.int64))
        if decision.running_order is not None:
            running = self._queue(e, running=True)[0]
            moved = running[np.asarray(decision.running_order, np.int64)]
            self._relink(moved, e + L.E_RUN_HEAD, e + L.E_RUN_TAIL)
            self._reorder_prefills(e, moved)
        if decision.waiting_order is not None:
            waiting = self._queue(e, running=False)[0]
            moved = waiting[np.asarray(decision.waiting_order, np.int64)]
            self._relink(moved, e + L.E_WAIT_HEAD, e + L.E_WAIT_TAIL)
        self._hash_lists(e, decision)

    def _relink(self, requests: IntArray, head: int, tail: int) -> None:
        if not len(requests):
            return
        relink(self._a, 0, np.ascontiguousarray(requests), head, tail)

    def _reorder_prefills(self, e: int, running: IntArray) -> None:
        a = self._a
        rows = a[L.H_REQ] + running * L.REQUEST_SIZE
        prefills = running[(a[rows + L.F_STATE] & L.STATE_MASK) == L.PREFILL]
        at = a[e + L.E_PRE]
        a[at : at + 2 * len(prefills) : 2] = prefills

    def _hash_lists(self, e: int, decision: BatchDecision) -> None:
        lists = decision.running_order, decision.waiting_order, decision.token_caps
        arrays = [np.ascontiguousarray(() if items is None else items, np.int64) for items in lists]
        present = sum(1 << i for i, items in enumerate(lists) if items is not None)
        self._a[e + L.E_HASH] = chain_arrays(self._a[e + L.E_HASH], *arrays, present)

    # -- views -------------------------------------------------------------------------

    def engine_state(self, engine: int) -> IntArray:
        """The engine state vector (`EngineStateField`) at the current instant."""
        out = np.zeros(len(EngineStateField), np.int64)
        write_state(self._a, 0, self._base(engine), out, 0)
        return out

    def engine_view(self, engine: int) -> EngineView:
        """What a policy of `engine` sees now."""
        e = self._base(engine)
        return EngineView(
            spec=self.engines[engine],
            slos=self.slos,
            state=self.engine_state(engine),
            last_step=self.last_step(engine),
            fetch=lambda: (self._arrays(e, running=True), self._arrays(e, running=False)),
        )

    def request_view(self) -> RequestView:
        """The request of the current ROUTE point."""
        r = self.point_request
        q = int(self._a[L.H_REQ]) + r * L.REQUEST_SIZE
        meta = int(self._a[q + L.F_META])
        hashes = np.empty(0, np.int64)
        if self._has_content:
            at = int(self._a[L.H_BLOCK_IDS]) + int(self._a[int(self._a[L.H_BLOCK_OFFSETS]) + r])
            blocks = int(self._a[q + L.F_PROMPT]) // self._specs[0].block_size
            hashes = self._a[at : at + blocks].copy()
        return RequestView(
            prompt_tokens=int(self._a[q + L.F_PROMPT]),
            arrival_s=self.now_ns / NS_PER_S,
            session=int(self._session[r]),
            slo_class=meta & L.CLASS_MASK,
            priority=meta >> L.PRIORITY_SHIFT,
            attempt=(meta >> L.ATTEMPT_SHIFT & L.ATTEMPT_MASK) - 1,
            block_hashes=hashes,
        )

    def router_rows(self) -> IntArray:
        """The router's table (`RouterRow`), one row per engine, at the current instant."""
        count = len(self.engines)
        refresh_rows(self._a, 0, count, self._a[L.H_NOW])
        at = int(self._a[L.H_ROWS])
        return self._a[at : at + count * len(RouterRow)].reshape(count, -1).copy()

    def cluster_view(
        self,
        rng: np.random.Generator,
        information: frozenset[str] = frozenset(INFORMATION_CLASSES),
    ) -> ClusterView:
        """What a router policy sees at the current ROUTE point."""
        engine, at = self._session_entry()
        return ClusterView(
            now_ns=self.now_ns,
            engines=self.engines,
            rows=self.router_rows(),
            session_engine=engine,
            session_age_s=(self.now_ns - at) / NS_PER_S if engine >= 0 else float("inf"),
            rng=rng,
            information=information,
        )

    def completions(self) -> list[CompletionView]:
        """Requests that left since the last call, by (time, engine, request)."""
        if self._auto_route:
            return []
        a, n = self._a, int(self._a[L.H_COMP_N])
        at = int(a[L.H_COMP])
        rows = a[at : at + 8 * n].reshape(n, 8)
        a[L.H_COMP_N] = 0
        order = np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))
        return [self._completion(rows[i].tolist()) for i in order]

    def _completion(self, values: list[int]) -> CompletionView:
        now, engine, r, outcome, first, emitted, arrival, _ = values
        return CompletionView(
            now_s=now / NS_PER_S,
            engine=engine,
            session=int(self._session[r]),
            prompt_tokens=int(self._a[int(self._a[L.H_REQ]) + r * L.REQUEST_SIZE + L.F_PROMPT]),
            output_tokens=emitted,
            ttft_s=(first - arrival) / NS_PER_S if first >= 0 else -1.0,
            e2e_s=(now - arrival) / NS_PER_S,
            outcome=Outcome(outcome),
        )

    def last_step(self, engine: int) -> StepReport | None:
        """The engine's last finished iteration, `None` before the first."""
        e = self._base(engine)
        values = self._a[e + L.L_START : e + L.L_BUDGET + 1].tolist()
        if values[1] < 0:
            return None
        return StepReport(
            engine=engine,
            start_s=values[0] / NS_PER_S,
            step_s=values[1] / NS_PER_S,
            sequences=values[2],
            tokens=values[3],
            decodes=values[4],
            prefill_tokens=values[5],
            context_tokens=values[6],
            prefill_context_tokens=values[7],
            prefill_pairs=values[8],
            preempted=values[9],
            admitted=values[10],
            finished=values[11],
            token_budget=values[12],
        )

    # -- results -----------------------------------------------------------------------

    def met(self) -> int:
        """Scored requests that have met all their SLOs so far."""
        return int(self._a[L.H_MET])

    def met_by_engine(self) -> IntArray:
        """`met()` by the engine that served the request to its end, one count per engine."""
        at = self._base(0) + L.E_MET
        return self._a[at : at + len(self.engines) * L.E_SIZE : L.E_SIZE].copy()

    def steps(self, engine: int) -> int:
        """Iterations that `engine` has planned so far, empty ones included."""
        return int(self._a[self._base(engine) + L.E_STEPS])

    def itl(self) -> tuple[IntArray, IntArray]:
        """Inter-token gaps of scored requests: (nanoseconds, how often each occurred)."""
        self._drain_itl()
        rows = np.concatenate([*self._itl, np.empty((0, 2), np.int64)])
        return rows[:, 0], rows[:, 1]

    def records(self) -> RequestRecords:
        """What happened to every offered request, in the order of the workload."""
        from synergy_gym.sim.results import request_records

        return request_records(self._a, self._session)

    def log_hash(self) -> str:
        """Hash of all decisions and of when every request got its tokens."""
        records = self.records()
        hashes = [self._a[self._base(i) + L.E_HASH] for i in range(len(self.engines))]
        digest = hashlib.sha256(np.array(hashes, np.int64).astype("<i8").tobytes())
        for column in (records.engine, records.first_token_ns, records.finish_ns):
            digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def snapshot(self) -> object:
        """The whole state; give it to `restore` of a simulator of the same episode."""
        return self._a.copy(), list(self._itl), self._waiting_for

    def restore(self, snapshot: object) -> None:
        """Return to a state that `snapshot()` gave."""
        state: Any = snapshot
        self._a[:] = state[0]
        self._itl = list(state[1])
        self._waiting_for = state[2]

    def check(self) -> None:
        """Raise `AssertionError` naming the first violated invariant (docs/invariants.md)."""
        from synergy_gym.sim.checks import check_arena

        check_arena(self._a)

    # -- internals ---------------------------------------------------------------------

    def _base(self, engine: int) -> int:
        return int(self._a[L.H_ENG]) + engine * L.E_SIZE

    def _queue(self, e: int, *, running: bool) -> IntArray:
        n = int(self._a[e + (L.E_RUNNING if running else L.E_WAITING)])
        out = np.empty(n * QUEUE_FIELDS, np.int64)
        write_queue(self._a, 0, e, int(running), n, out)
        return out.reshape(QUEUE_FIELDS, n)

    def _arrays(self, e: int, *, running: bool) -> RequestArrays:
        columns = self._queue(e, running=running)
        ages = np.empty((2, columns.shape[1]))
        write_ages(self.now_ns, columns[5], columns[6], ages.reshape(-1))
        return RequestArrays(
            prompt_tokens=columns[1],
            computed_tokens=columns[2],
            generated_tokens=columns[3],
            cached_tokens=columns[4],
            waited_s=ages[0],
            first_token_age_s=ages[1],
            slo_class=columns[7],
            priority=columns[8],
        )

    def _session_entry(self) -> tuple[int, int]:
        session = int(self._session[self.point_request])
        if session < 0 or not self._a[L.H_SESSION_TABLE]:
            return -1, 0
        at = int(self._a[L.H_SESSION_TABLE]) + 2 * session
        return int(self._a[at]), int(self._a[at + 1])

    def _remember_session(self, engine: int) -> None:
        session = int(self._session[self.point_request])
        if session >= 0 and self._a[L.H_SESSION_TABLE]:
            at = int(self._a[L.H_SESSION_TABLE]) + 2 * session
            self._a[at], self._a[at + 1] = engine, self._a[L.H_NOW]

    def _drain_itl(self) -> None:
        n, at = int(self._a[L.H_ITL_N]), int(self._a[L.H_ITL])
        if n:
            self._itl.append(self._a[at : at + 2 * n].reshape(n, 2).copy())
            self._a[L.H_ITL_N] = 0


__all__ = ["BATCH", "DONE", "ROUTE", "Simulator"]
