"""N engines and one clock, compiled: the simulator that environments and evaluation use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from synergy_gym.sim.adverts import predicted_ns, published, started_with
from synergy_gym.sim.arguments import (
    cached_block_size,
    check_engine,
    check_episode,
    check_messages,
    check_times,
)
from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.compiled.clock import batch, route, run
from synergy_gym.sim.compiled.decision_log import chain_arrays
from synergy_gym.sim.compiled.exports import (
    ARRIVAL_FIELDS,
    QUEUE_FIELDS,
    engine_state,
    router_rows,
    set_caps,
    set_order,
    write_ages,
    write_arrival,
    write_queue,
)
from synergy_gym.sim.decisions import check_decision, is_integer
from synergy_gym.sim.memory import Memory
from synergy_gym.sim.memory_build import World, build_memory
from synergy_gym.sim.points import BATCH, DONE, ROUTE
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
    RouterRule,
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
        router: routes by this rule, with (a copy of) this generator, instead of ROUTE points.

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
        router: tuple[RouterRule, np.random.Generator] | None = None,
    ) -> None:
        # Policies are shown copies: whoever writes into one changes no limit and no objective.
        self.engines = tuple(replace(spec) for spec in engines)
        self.slos = tuple(replace(slo) for slo in slos)
        self._specs = tuple(engines)
        # The traffic itself is in the memory: a million requests need not be kept twice.
        self._session = workload.session
        self._has_content = workload.content is not None
        self._shown_ids: tuple[IntArray, IntArray] | None = None
        telemetry, chosen = telemetry or TelemetrySpec(), rules or [None] * len(self.engines)
        rule = None if router is None else router[0]
        check_episode(engines, clocks, chosen, workload, slos, events, rule, auto_route=auto_route)
        check_times(warmup_ns=warmup_ns, horizon_ns=horizon_ns, stop_ns=stop_ns)
        check_messages(telemetry, clocks)
        self._auto_route = auto_route
        world = World(
            engines=self._specs,
            clocks=clocks,
            workload=workload,
            slos=tuple(slos),
            telemetry=telemetry,
            client=client or ClientSpec(),
            events=events,
            rules=chosen,
            adverts=started_with(adverts, len(self.engines)),
            warmup_ns=warmup_ns,
            horizon_ns=horizon_ns,
            stop_ns=stop_ns,
            auto_route=auto_route,
            record_itl=record_itl,
            check=os.environ.get(CHECK_VARIABLE) == "1",
            router=router,
        )
        self._memory = build_memory(world)
        shown = self._specs[0].block_size
        if self._has_content and shown != cached_block_size(self._specs):
            self._shown_ids = workload.block_ids(shown)  # those of the memory have another size
        self._itl: list[IntArray] = []
        self._waiting_for: int = -1
        self._arrival: list[int] = []
        self._arrival_key: tuple[int, int] = (-1, -1)

    @property
    def memory(self) -> Memory:
        """What compiled steps work on (`sim/compiled/layout.py`); not for policies."""
        return self._memory

    # -- running -----------------------------------------------------------------------

    def advance(self) -> int:
        """Run to the next decision point that no rule answers; returns its kind."""
        if self._waiting_for > 0:
            raise RuntimeError("answer the current decision point before advancing")
        point = run(self._memory.address)
        while point in (L.POINT_GAPS_FULL, L.POINT_CHECK):
            if point == L.POINT_CHECK:
                self.check()
            else:
                self._drain_gaps()
            point = run(self._memory.address)
        self._waiting_for = int(point)
        return self._waiting_for

    @property
    def now_ns(self) -> int:
        """The instant of the current point, nanoseconds since the episode began."""
        return int(self._memory.world["now_ns"])

    @property
    def point_request(self) -> int:
        """The request that a ROUTE point is about."""
        return int(self._memory.world["point_request"])

    @property
    def point_engine(self) -> int:
        """The engine that a BATCH point is about."""
        return int(self._memory.world["point_engine"])

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
        if self._memory.engines[engine]["down"]:
            raise ValueError(f"engine {engine} is down; choose one whose `alive` is true")
        route(self._memory.address, int(engine))
        self._waiting_for = -1

    def batch(self, decision: BatchDecision) -> None:
        """Give the engine of a BATCH point the decision for its next iteration.

        Raises:
            ValueError: no engine waits, or a value is out of range.
        """
        if self._waiting_for != BATCH:
            raise ValueError("no engine waits for a batch decision; call advance() first")
        index = self.point_engine
        engine, spec = self._memory.engines[index], self._specs[index]
        cap = spec.max_num_seqs if decision.max_running is None else decision.max_running
        check_decision(spec, decision, int(engine["running"]), int(engine["waiting"]))
        plan = engine["plan"]
        plan["token_budget"], plan["max_running"] = decision.token_budget, cap
        plan["prefill_chunk"] = decision.prefill_chunk
        self._tell(index, decision.advert)
        if (
            decision.running_order is not None
            or decision.waiting_order is not None
            or decision.token_caps is not None
        ):
            self._apply_lists(index, decision)
        batch(self._memory.address)
        self._waiting_for = -1

    def _tell(self, index: int, advert: EngineAdvert | None) -> None:
        """From its next commit on the engine publishes what `advert` says."""
        telemetry = self._memory.engines[index]["telemetry"]
        telemetry["predicted_ns"] = predicted_ns(advert)
        if advert is not None:
            at = self._memory.part(index, "telemetry") + int(telemetry["advert"])
            told = self._memory.numbers(at, L.ADVERT_SIZE)
            told[:] = published(advert, told.tolist())

    def _apply_lists(self, index: int, decision: BatchDecision) -> None:
        if decision.token_caps is not None:
            caps = np.ascontiguousarray(decision.token_caps, np.int64)
            set_caps(self._memory.address, index, caps)
        self._permute(index, decision.running_order, running=True)
        self._permute(index, decision.waiting_order, running=False)
        self._hash_lists(index, decision)

    def _permute(self, index: int, order: IntArray | None, *, running: bool) -> None:
        if order is not None and len(order):
            requests = self._queue(index, running=running)[0][np.asarray(order, np.int64)]
            moved = np.ascontiguousarray(requests)
            set_order(self._memory.address, index, int(running), moved)

    def _hash_lists(self, index: int, decision: BatchDecision) -> None:
        lists = decision.running_order, decision.waiting_order, decision.token_caps
        arrays = [np.ascontiguousarray(() if items is None else items, np.int64) for items in lists]
        present = sum(1 << i for i, items in enumerate(lists) if items is not None)
        engine = self._memory.engines[index]
        engine["decision_hash"] = chain_arrays(engine["decision_hash"], *arrays, present)

    # -- views -------------------------------------------------------------------------

    def engine_state(self, engine: int) -> IntArray:
        """The engine state vector (`EngineStateField`) at the current instant.

        Raises:
            IndexError: there is no such engine.
        """
        check_engine(engine, len(self.engines))
        out = np.zeros(len(EngineStateField), np.int64)
        engine_state(self._memory.address, engine, out)
        return out

    def engine_view(self, engine: int) -> EngineView:
        """What a policy of `engine` sees now."""
        state = self.engine_state(engine)
        return EngineView(
            spec=self.engines[engine],
            slos=self.slos,
            state=state,
            last_step=self.last_step(engine),
            fetch=lambda: (
                self._arrays(engine, running=True),
                self._arrays(engine, running=False),
            ),
        )

    def request_view(self) -> RequestView:
        """The request of the current ROUTE point."""
        now_ns, prompt, slo_class, priority, attempts, _, *_, place = self._arrived()
        request = self.point_request
        hashes, blocks = np.empty(0, np.int64), prompt // self._specs[0].block_size
        if self._shown_ids is not None:
            offsets, ids = self._shown_ids
            hashes = ids[int(offsets[request]) :][:blocks]
        elif self._has_content:
            hashes = self._memory.numbers(place, blocks).copy()
        return RequestView(
            prompt_tokens=prompt,
            arrival_s=now_ns / NS_PER_S,
            session=int(self._session[request]),
            slo_class=slo_class,
            priority=priority,
            attempt=attempts - 1,
            block_hashes=hashes,
        )

    def router_rows(self) -> IntArray:
        """The router's table (`RouterRow`), one row per engine, at the current instant."""
        router_rows(self._memory.address)
        return self._memory.rows.copy()

    def cluster_view(
        self,
        rng: np.random.Generator,
        information: frozenset[str] = frozenset(INFORMATION_CLASSES),
    ) -> ClusterView:
        """What a router policy sees at the current ROUTE point."""
        now_ns, *_, engine, at_ns, _ = self._arrived()
        return ClusterView(
            now_ns=now_ns,
            engines=self.engines,
            rows=self._memory.rows.copy(),
            session_engine=engine,
            session_age_s=(now_ns - at_ns) / NS_PER_S if engine >= 0 else float("inf"),
            rng=rng,
            information=information,
        )

    def completions(self) -> list[CompletionView]:
        """Requests that left since the last call, by (time, engine, request)."""
        if not self._memory.world["completions"]:
            return []
        world = self._memory.world
        rows = self._memory.records(
            L.COMPLETION, world["completions"], int(world["num_completions"])
        )
        world["num_completions"] = 0
        order = np.lexsort((rows["request"], rows["engine"], rows["now_ns"]))
        return [self._completion(*rows[i].tolist()) for i in order]

    def _completion(
        self, now: int, engine: int, r: int, outcome: int, first: int, emitted: int, arrival: int
    ) -> CompletionView:
        return CompletionView(
            now_s=now / NS_PER_S,
            engine=engine,
            session=int(self._session[r]),
            prompt_tokens=int(self._memory.requests[r]["prompt_tokens"]),
            output_tokens=emitted,
            ttft_s=(first - arrival) / NS_PER_S if first >= 0 else -1.0,
            e2e_s=(now - arrival) / NS_PER_S,
            outcome=Outcome(outcome),
        )

    def last_step(self, engine: int) -> StepReport | None:
        """The engine's last finished iteration, `None` before the first."""
        last = self._memory.engines[engine]["last"]
        step = dict(zip(L.STEP.dtype.names or (), last.tolist(), strict=True))
        if step["duration_ns"] < 0:
            return None
        return StepReport(
            engine=engine,
            start_s=step["start_ns"] / NS_PER_S,
            step_s=step["duration_ns"] / NS_PER_S,
            sequences=step["sequences"],
            tokens=step["tokens"],
            decodes=step["decodes"],
            prefill_tokens=step["prefill_tokens"],
            context_tokens=step["context"],
            prefill_context_tokens=step["prefill_context"],
            prefill_pairs=step["prefill_pairs"],
            preempted=step["preempted"],
            admitted=step["admitted"],
            finished=step["finished"],
            token_budget=step["token_budget"],
        )

    # -- results -----------------------------------------------------------------------

    def met(self) -> int:
        """Scored requests that have met all their SLOs so far."""
        return int(self._memory.world["met"])

    def met_by_engine(self) -> IntArray:
        """`met()` by the engine that served the request to its end, one count per engine."""
        return self._memory.engines["met"].copy()

    def steps(self, engine: int) -> int:
        """Iterations that `engine` has planned so far, empty ones included."""
        return int(self._memory.engines[engine]["steps"])

    def itl(self) -> tuple[IntArray, IntArray]:
        """Inter-token gaps of scored requests: (nanoseconds, how often each occurred)."""
        self._drain_gaps()
        rows = np.concatenate([*self._itl, np.empty((0, 2), np.int64)])
        return rows[:, 0], rows[:, 1]

    def records(self) -> RequestRecords:
        """What happened to every offered request, in the order of the workload."""
        from synergy_gym.sim.results import request_records

        return request_records(self._memory, self._session)

    def log_hash(self) -> str:
        """Hash of all decisions and of when every request got its tokens."""
        records = self.records()
        hashes = self._memory.engines["decision_hash"]
        digest = hashlib.sha256(hashes.astype("<i8").tobytes())
        for column in (records.engine, records.first_token_ns, records.finish_ns):
            digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def snapshot(self) -> object:
        """The whole state; give it to `restore` of a simulator of the same episode."""
        return self._memory.bytes(), list(self._itl), self._waiting_for

    def restore(self, snapshot: object) -> None:
        """Return to a state that `snapshot()` gave."""
        state: Any = snapshot
        self._memory.overwrite(state[0])
        self._arrival_key = -1, -1
        self._itl = list(state[1])
        self._waiting_for = state[2]

    def check(self) -> None:
        """Raise `AssertionError` naming the first violated invariant (docs/invariants.md)."""
        from synergy_gym.sim.compiled.checks import check_memory

        check_memory(self._memory)

    # -- internals ---------------------------------------------------------------------

    def _queue(self, index: int, *, running: bool) -> IntArray:
        n = int(self._memory.engines[index]["running" if running else "waiting"])
        out = np.empty(n * QUEUE_FIELDS, np.int64)
        write_queue(self._memory.address, index, int(running), n, out)
        return out.reshape(QUEUE_FIELDS, n)

    def _arrays(self, index: int, *, running: bool) -> RequestArrays:
        columns = self._queue(index, running=running)
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

    def _arrived(self) -> list[int]:
        """What the ROUTE point is about (`write_arrival`), with the router's table up to date."""
        world = self._memory.world
        key = int(world["num_arrivals"]), int(world["now_ns"])
        if key != self._arrival_key:  # compiled steps of environments come between
            out = np.empty(ARRIVAL_FIELDS, np.int64)
            write_arrival(self._memory.address, out)
            self._arrival, self._arrival_key = out.tolist(), key
        return self._arrival

    def _drain_gaps(self) -> None:
        world = self._memory.world
        n = int(world["num_gaps"])
        if n:
            rows = self._memory.numbers(int(world["gaps"]), 2 * n).reshape(n, 2)
            self._itl.append(rows.copy())
            world["num_gaps"] = 0


__all__ = ["BATCH", "DONE", "ROUTE", "Simulator"]
