"""A simulation's memory before its first arrival, from plain descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from synergy_gym.latency.clock import UNIT
from synergy_gym.sim.adverts import NOT_PREDICTED
from synergy_gym.sim.arguments import cached_block_size, ring_place, ring_size
from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.compiled.pcg64 import write_state
from synergy_gym.sim.compiled.records import Layout
from synergy_gym.sim.memory import LINE, Memory, Records, empty_block
from synergy_gym.types import (
    SLO,
    ClientSpec,
    DecisionRule,
    EngineSpec,
    EngineStateField,
    Event,
    IntArray,
    RouterRow,
    RouterRule,
    TelemetrySpec,
)
from synergy_gym.workload.base import Workload

GAPS = 1 << 15
BUCKETS = 1024
REQUEST_VECTOR = 8
MOST_BYTES = 1 << 36
"""The largest memory of an episode."""
_ORDERS = {
    "queue": L.ORDER_QUEUE,
    "shortest-prompt": L.ORDER_SHORTEST,
    "earliest-deadline": L.ORDER_DEADLINE,
}
_HEARTBEATS = {
    "none": L.HEARTBEAT_NONE,
    "idle-only": L.HEARTBEAT_IDLE,
    "overwrite": L.HEARTBEAT_OVERWRITE,
}
_ROUTERS = {
    "round-robin": L.ROUND_ROBIN,
    "random": L.RANDOM,
    "weighted": L.WEIGHTED,
    "session": L.BY_SESSION,
    "least-outstanding": L.LEAST_OUTSTANDING,
    "power-of-two": L.POWER_OF_TWO,
    "least-kv": L.LEAST_KV,
    "least-loaded": L.LEAST_LOADED,
}
_EVENTS = {
    "down": L.EVENT_DOWN,
    "up": L.EVENT_UP,
    "slowdown": L.EVENT_SLOWDOWN,
    "lose_blocks": L.EVENT_LOSE,
}


def nanoseconds(seconds: float) -> int:
    """Seconds as integer nanoseconds, rounded to nearest."""
    return round(seconds * 1e9)


class Sizer:
    """Hands out consecutive regions of the memory."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, layout: Layout, count: int) -> int:
        """Place of a new region of `count` records: at a cache line when it is a long one."""
        size = count * layout.size
        step = LINE if size >= LINE else 8
        at = -(-self.size // step) * step
        self.size = at + size
        return at


def _shift(size: int) -> int:
    """log2 of a power of two, else -1: a shift is ten times faster than a division."""
    return size.bit_length() - 1 if size & (size - 1) == 0 else -1


def _map_slots(blocks: int) -> int:
    """Few, so that they stay in a core's caches: a span has dozens of blocks as a rule."""
    return 1 << max(4, (blocks // 8).bit_length())


class EngineRegions:
    """Where one engine's side structures lie."""

    def __init__(self, spec: EngineSpec, ring: int, clock: IntArray, sizer: Sizer) -> None:
        self.planned = sizer.take(L.PLANNED, spec.max_num_seqs)
        self.phases = sizer.take(L.PHASE, spec.block_size)
        self.buckets = sizer.take(L.NUMBER, BUCKETS)
        self.clock = sizer.take(L.WIDE, len(clock))
        self.ring = sizer.take(L.PUSH, ring)
        self.recent = sizer.take(L.RECENT, L.MEAN_STEPS)
        self.advert = sizer.take(L.WIDE, L.ADVERT_SIZE)
        self.table = self.seats = self.spans = self.map = 0
        self.width = 0
        if spec.prefix_caching:
            self.width = -(-spec.max_model_len // spec.block_size) + 2
            self.table = sizer.take(L.NUMBER, spec.max_num_seqs * self.width)
            self.seats = sizer.take(L.NUMBER, spec.max_num_seqs)
            self.spans = sizer.take(L.SPAN, spec.kv_blocks + 1)  # none is without a block
            self.map = sizer.take(L.NUMBER, _map_slots(spec.kv_blocks))


def fill_engine(
    memory: Memory, index: int, spec: EngineSpec, clock: IntArray, regions: EngineRegions
) -> None:
    """Write one engine and its empty side structures; its rule apart (`fill_rule`)."""
    at, engine = memory.part(index), memory.engines[index]
    values = {
        "index": index, "last_end_ns": -1, "first_running": -1, "last_running": -1,
        "first_waiting": -1, "last_waiting": -1, "priority": spec.scheduling == "priority",
        "max_num_seqs": spec.max_num_seqs, "max_num_batched_tokens": spec.max_num_batched_tokens,
        "max_model_len": spec.max_model_len, "watermark_blocks": spec.watermark_blocks,
        "bucket_mask": BUCKETS - 1, "planned": regions.planned - at,
        "phases": regions.phases - at, "buckets": regions.buckets - at,
        "clock": regions.clock - at, "clock_size": len(clock),
    }  # fmt: skip
    for field, value in values.items():
        engine[field] = value
    engine["last"]["duration_ns"] = -1
    memory.numbers(regions.clock, len(clock))[:] = clock
    memory.records(L.NUMBER, regions.buckets, BUCKETS)["value"] = -1
    _fill_pool(memory, index, spec, regions)
    _fill_messages(memory, index, spec, regions)


def _fill_pool(memory: Memory, index: int, spec: EngineSpec, regions: EngineRegions) -> None:
    at, pool = memory.part(index, "pool"), memory.engines[index]["pool"]
    pool["free"] = pool["total"] = pool["size"] = spec.kv_blocks
    pool["block_size"], pool["block_shift"] = spec.block_size, _shift(spec.block_size)
    pool["caching"] = spec.prefix_caching
    if not spec.prefix_caching:
        return
    for field in ("spans", "map", "table", "seats"):
        pool[field] = getattr(regions, field) - at
    pool["map_mask"] = _map_slots(spec.kv_blocks) - 1
    pool["row_width"], pool["num_seats"] = regions.width, spec.max_num_seqs
    pool["plain"] = spec.kv_blocks
    seats = memory.records(L.NUMBER, regions.seats, spec.max_num_seqs)
    seats["value"] = np.arange(spec.max_num_seqs)


def _fill_messages(memory: Memory, index: int, spec: EngineSpec, regions: EngineRegions) -> None:
    """The engine has sent one message, at its start."""
    at, telemetry = memory.part(index, "telemetry"), memory.engines[index]["telemetry"]
    for field in ("ring", "recent", "advert"):
        telemetry[field] = getattr(regions, field) - at
    telemetry["last_push_ns"], telemetry["predicted_ns"] = -1, NOT_PREDICTED
    telemetry["total_blocks"], telemetry["pushes"] = spec.kv_blocks, 1
    memory.records(L.PUSH, regions.ring, 1)["total_blocks"] = spec.kv_blocks


def fill_rule(memory: Memory, index: int, spec: EngineSpec, rule: DecisionRule) -> None:
    """Write a declarative decision into an engine."""
    record = memory.engines[index]["rule"]
    record["given"], record["cover_decodes"] = True, rule.cover_decodes
    record["token_budget"], record["prefill_chunk"] = rule.token_budget, rule.prefill_chunk
    record["max_running"] = spec.max_num_seqs if rule.max_running is None else rule.max_running
    record["order"] = _ORDERS[rule.order]


def fill_requests(memory: Memory, workload: Workload) -> None:
    """Write the requests."""
    requests, details = memory.requests, memory.details
    requests["arrival_ns"] = np.where(workload.after >= 0, -1, workload.arrival_ns)
    requests["prompt_tokens"] = workload.prompt_tokens
    requests["output_tokens"] = workload.output_tokens
    for field in ("first_token_ns", "last_token_ns", "next", "previous", "token_cap"):
        requests[field] = -1
    requests["slo_class"] = workload.slo_class
    details["scheduled_ns"] = -1
    details["priority"] = workload.priority


def fill_events(records: Records, events: Sequence[Event]) -> None:
    """Write the world events in time order (ties in the order given)."""
    for i, event in enumerate(sorted(events, key=lambda event: nanoseconds(event.at_s))):
        value = event.blocks if event.kind == "lose_blocks" else round(event.factor * UNIT)
        records[i] = (nanoseconds(event.at_s), value, _EVENTS[event.kind], event.engine)


def fill_families(records: Records, workload: Workload) -> None:
    """Write who arrives after whom: first child, next sibling, think time (-1: open loop)."""
    child, sibling = np.full(len(workload), -1), np.full(len(workload), -1)
    for r in range(len(workload) - 1, -1, -1):
        parent = int(workload.after[r])
        if parent >= 0:
            sibling[r], child[parent] = child[parent], r
    records["first_child"], records["next_sibling"] = child, sibling
    records["think_ns"] = np.where(workload.after >= 0, workload.arrival_ns, -1)


def fill_objectives(records: Records, slos: Sequence[SLO]) -> None:
    """Write TTFT, TPOT and E2E limits per class in nanoseconds (-1: not declared)."""
    for i, slo in enumerate(slos):
        limits = (slo.ttft_s, slo.tpot_s, slo.e2e_s)
        records[i] = tuple(-1 if limit is None else nanoseconds(limit) for limit in limits)


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that a memory is built from; see `Simulator` for the fields."""

    engines: tuple[EngineSpec, ...]
    clocks: Sequence[IntArray]
    workload: Workload
    slos: tuple[SLO, ...]
    telemetry: TelemetrySpec
    client: ClientSpec
    events: Sequence[Event]
    rules: Sequence[DecisionRule | None]
    adverts: Sequence[Sequence[int]]
    warmup_ns: int
    horizon_ns: int
    stop_ns: int
    auto_route: bool
    record_itl: bool
    check: bool
    router: tuple[RouterRule, np.random.Generator] | None = None

    @property
    def closed_loop(self) -> bool:
        """Whether some request arrives only after another has left."""
        return bool(np.any(self.workload.after >= 0))

    @property
    def dynamic(self) -> bool:
        """Whether something that leaves an engine can become an arrival."""
        return self.closed_loop or self.client.max_retries > 0

    @property
    def needs_blocks(self) -> bool:
        """Whether block identities matter to an engine or a router."""
        caching = any(spec.prefix_caching for spec in self.engines)
        return caching or self.workload.content is not None

    @cached_property
    def sessions(self) -> tuple[IntArray, IntArray]:
        """Session ids that the router's memory must hold; the place of each request's, -1: none."""
        session = self.workload.session
        most = -1 if self.auto_route else int(session.max(initial=-1))
        if most < len(session):
            return np.arange(most + 1), np.maximum(session, -1)
        ids, places = np.unique(session, return_inverse=True)
        first = int(ids.searchsorted(0))
        return ids[first:], np.maximum(places - first, -1)

    @property
    def first_request(self) -> int:
        """The first request that nobody has to wait for."""
        opened = np.flatnonzero(self.workload.after < 0)
        return int(opened[0]) if len(opened) else len(self.workload)


def _reserve(world: World, sizer: Sizer) -> dict[str, int]:
    """Places of the world, but for block ids."""
    n, engines = len(world.workload), len(world.engines)
    attempts = n * (1 + world.client.max_retries)
    places = {
        "engines": sizer.take(L.ENGINE, engines),
        "rows": sizer.take(L.ROW, engines),
        "state": sizer.take(L.WIDE, len(EngineStateField)),
        "request_vector": sizer.take(L.WIDE, REQUEST_VECTOR),
        "objectives": sizer.take(L.OBJECTIVE, max(len(world.slos), 1)),
        "events": sizer.take(L.EVENT, len(world.events)),
        "returns": sizer.take(L.RETURN, n + 1 if world.dynamic else 1),
    }
    if world.client.max_retries > 0:
        places["true_outputs"] = sizer.take(L.NUMBER, n)
    if world.client.timeout_s > 0:
        places["timeouts_size"] = attempts + 1
        places["timeouts"] = sizer.take(L.TIMEOUT, attempts + 1)
    if not world.auto_route and world.router is None:
        places["completions"] = sizer.take(L.COMPLETION, attempts + 1)
    if world.record_itl:
        places["gaps_size"] = GAPS + 4 * max(spec.max_num_seqs for spec in world.engines)
        places["gaps"] = sizer.take(L.GAP, places["gaps_size"])
    sessions = len(world.sessions[0])
    if sessions:
        places["sessions"] = sizer.take(L.NUMBER, n)
        places["session_places"] = sizer.take(L.SESSION, sessions)
    if world.closed_loop:
        places["families"] = sizer.take(L.FAMILY, n)
    places["requests"] = sizer.take(L.REQUEST, n)
    places["details"] = sizer.take(L.DETAIL, n)
    return places


def _constants(world: World) -> dict[str, Any]:
    """Fields of the world that are no places."""
    waiting = len(world.engines) > 1 and any(rule is None for rule in world.rules)
    telemetry, client = world.telemetry, world.client
    return {
        "num_requests": len(world.workload),
        "num_engines": len(world.engines),
        "rows_size": len(world.engines) * len(RouterRow),
        "state_size": len(EngineStateField),
        "request_vector_size": REQUEST_VECTOR,
        "next_request": world.first_request,
        "warmup_ns": world.warmup_ns,
        "horizon_ns": world.horizon_ns,
        "stop_ns": world.stop_ns,
        "timeout_ns": nanoseconds(client.timeout_s),
        "max_retries": client.max_retries,
        "backoff_ns": nanoseconds(client.backoff_s),
        "num_events": len(world.events),
        "auto_route": world.auto_route,
        "telemetry": not world.auto_route,
        "ring_size": ring_size(telemetry, world.clocks),
        "num_alive": len(world.engines),
        "num_slo_classes": len(world.slos),
        "check": world.check,
        "ordered": world.dynamic or waiting,
        "records_gaps": world.record_itl,
        "closed_loop": world.closed_loop,
        "push_interval_ns": nanoseconds(telemetry.push_interval_s),
        "push_delay_ns": nanoseconds(telemetry.push_delay_s),
        "push_loss": round(telemetry.push_loss * (1 << 32)),
        "heartbeat": _HEARTBEATS[telemetry.heartbeat],
        "heartbeat_interval_ns": max(nanoseconds(telemetry.heartbeat_interval_s), 1),
        "scrape_interval_ns": max(nanoseconds(telemetry.scrape_interval_s), 1),
    }


def build_memory(world: World) -> Memory:
    """The memory of a simulation before the first arrival."""
    sizer = Sizer()
    sizer.take(L.WORLD, 1)
    places = _reserve(world, sizer)
    ring = ring_size(world.telemetry, world.clocks)
    regions = [
        EngineRegions(spec, ring, clock, sizer)
        for spec, clock in zip(world.engines, world.clocks, strict=True)
    ]
    offsets = ids = np.empty(0, np.int64)
    if world.needs_blocks:
        offsets, ids = world.workload.block_ids(cached_block_size(world.engines))
        places["block_offsets"] = sizer.take(L.WIDE, len(offsets))
        places["block_ids"] = sizer.take(L.WIDE, len(ids))
    ring_places = _reserve_router(world, sizer)
    _check_size(world, sizer.size)
    block = empty_block(sizer.size)
    head = block[: L.WORLD.size].view(L.WORLD.dtype)
    for field, value in (places | _constants(world)).items():
        head[field] = value
    memory = Memory(block)
    _fill_world(memory, world)
    _fill_router(memory, world, ring_places)
    if world.needs_blocks:
        memory.numbers(places["block_offsets"], len(offsets))[:] = offsets
        memory.numbers(places["block_ids"], len(ids))[:] = ids
    for index, part in enumerate(regions):
        _fill_engine_and_row(memory, world, index, part)
    return memory


def _check_size(world: World, size: int) -> None:
    if size <= MOST_BYTES:
        return
    retries, gib = world.client.max_retries, 2**30
    raise ValueError(
        f"the episode takes {size / gib:,.0f} GiB of memory, above {MOST_BYTES / gib:.0f}: "
        f"{len(world.workload):,} requests with {retries:,} retries on {len(world.engines)} "
        "engines; lower client.max_retries, the number of requests, or kv_blocks, max_num_seqs "
        "and max_model_len where prefixes are cached"
    )


def _fill_world(memory: Memory, world: World) -> None:
    n, head = len(world.workload), memory.world
    fill_objectives(memory.records(L.OBJECTIVE, head["objectives"], len(world.slos)), world.slos)
    fill_events(memory.records(L.EVENT, head["events"], len(world.events)), world.events)
    fill_requests(memory, world.workload)
    if world.closed_loop:
        fill_families(memory.records(L.FAMILY, head["families"], n), world.workload)
    if world.client.max_retries > 0:
        outputs = memory.records(L.NUMBER, head["true_outputs"], n)
        outputs["value"] = world.workload.output_tokens
    ids, numbers = world.sessions
    if len(ids):
        memory.records(L.NUMBER, head["sessions"], n)["value"] = numbers
        known = memory.records(L.SESSION, head["session_places"], len(ids))
        known["engine"] = known["at_ns"] = -1


def _reserve_router(world: World, sizer: Sizer) -> dict[str, int]:
    if world.router is None:
        return {}
    rule = world.router[0]
    return {
        "weights": sizer.take(L.WIDE, len(rule.weights)),
        "owners": sizer.take(L.NUMBER, len(rule.owners)),
        "session_places": sizer.take(L.NUMBER, _on_ring(world, rule)),
    }


def _on_ring(world: World, rule: RouterRule) -> int:
    """How many sessions have a place on the rule's ring."""
    return len(world.sessions[0]) if rule.kind == "session" else 0


def _fill_router(memory: Memory, world: World, places: dict[str, int]) -> None:
    if world.router is None:
        return
    rule, rng = world.router
    record, at = memory.world["router"], L.WORLD.place("router")
    write_state(record, rng)
    record["kind"] = _ROUTERS[rule.kind]
    record["num_weights"], record["num_owners"] = len(rule.weights), len(rule.owners)
    for field, place in places.items():
        record[field] = place - at
    weights = memory.numbers(places["weights"], len(rule.weights))
    weights.view(np.float64)[:] = rule.weights
    memory.records(L.NUMBER, places["owners"], len(rule.owners))["value"] = rule.owners
    if _on_ring(world, rule):
        begins = [ring_place(rule, session) for session in world.sessions[0].tolist()]
        memory.records(L.NUMBER, places["session_places"], len(begins))["value"] = begins


def _fill_engine_and_row(memory: Memory, world: World, index: int, regions: EngineRegions) -> None:
    spec, rule, told = world.engines[index], world.rules[index], world.adverts[index]
    fill_engine(memory, index, spec, world.clocks[index], regions)
    if rule is not None:
        fill_rule(memory, index, spec, rule)
    telemetry = memory.engines[index]["telemetry"]
    telemetry["next_scrape_ns"] = memory.world["scrape_interval_ns"]
    memory.numbers(regions.advert, L.ADVERT_SIZE)[:] = told
    memory.records(L.PUSH, regions.ring, 1)["model"] = told[L.A_MODEL :]
    row = memory.rows[index]
    row[RouterRow.ALIVE] = 1
    row[RouterRow.PUSH_TOTAL_BLOCKS] = spec.kv_blocks
    row[RouterRow.PUSH_PEAK_MILLITPS :] = told[L.A_MODEL :]
