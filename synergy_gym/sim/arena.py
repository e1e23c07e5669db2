"""Building the arena of one simulation from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synergy_gym.latency.terms import CLOCK_SIZE, FS_PER_MS, TABLES, UNIT
from synergy_gym.sim import layout as L
from synergy_gym.sim.adverts import NOT_PREDICTED
from synergy_gym.types import (
    SLO,
    ClientSpec,
    DecisionRule,
    EngineSpec,
    EngineStateField,
    Event,
    IntArray,
    RouterRow,
    TelemetrySpec,
)
from synergy_gym.workload.base import Workload

ITL_ROWS = 1 << 15
CALENDAR = 1024
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
_EVENTS = {
    "down": L.EV_DOWN,
    "up": L.EV_UP,
    "slowdown": L.EV_SLOWDOWN,
    "lose_blocks": L.EV_LOSE,
}


def nanoseconds(seconds: float) -> int:
    """Seconds as integer nanoseconds, rounded to nearest."""
    return round(seconds * 1e9)


class Sizer:
    """Hands out consecutive regions of the arena."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, count: int) -> int:
        """Position of a new region of `count` values."""
        at = self.size
        self.size += count
        return at


def _shift(size: int) -> int:
    """log2 of a power of two, else -1: a shift is ten times faster than a division."""
    return size.bit_length() - 1 if size & (size - 1) == 0 else -1


def _map_slots(blocks: int) -> int:
    return 1 << max(4, (2 * blocks).bit_length())


class EngineRegions:
    """Where one engine's side structures lie."""

    def __init__(self, spec: EngineSpec, ring: int, clock: IntArray, sizer: Sizer) -> None:
        self.step_tables = sizer.take(len(clock) - CLOCK_SIZE)
        self.calendar = sizer.take(CALENDAR)
        self.phase = sizer.take(spec.block_size)
        self.prefills = sizer.take(2 * spec.max_num_seqs)
        self.ring = sizer.take(ring * L.PUSH_SIZE)
        self.means = sizer.take(L.MEAN_SIZE * L.MEAN_STEPS)
        self.advert = sizer.take(L.ADVERT_SIZE)
        self.table = self.slots = self.nodes = self.map = 0
        self.width = 0
        if spec.prefix_caching:
            self.width = -(-spec.max_model_len // spec.block_size) + 1
            self.table = sizer.take(spec.max_num_seqs * self.width)
            self.slots = sizer.take(spec.max_num_seqs)
            self.nodes = sizer.take((spec.kv_blocks + 1) * L.NODE_SIZE)
            self.map = sizer.take(_map_slots(spec.kv_blocks) * L.MAP_SIZE)


def check_spec(spec: EngineSpec) -> None:
    """Raise `ValueError` when an engine cannot exist."""
    for name in (
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "kv_blocks",
        "block_size",
    ):
        if getattr(spec, name) < 1:
            raise ValueError(
                f"engine {spec.name!r}: {name} is {getattr(spec, name)}; it must be >= 1"
            )
    if spec.max_num_seqs >= 1 << 21 or spec.max_num_batched_tokens >= 1 << 21:
        raise ValueError(f"engine {spec.name!r}: limits above 2,097,151 are not supported")


def fill_engine(
    a: IntArray,
    e: int,
    index: int,
    spec: EngineSpec,
    clock: IntArray,
    rule: DecisionRule | None,
    regions: EngineRegions,
) -> None:
    """Write one engine's header and empty side structures."""
    head = {
        L.E_RUN_HEAD: -1, L.E_RUN_TAIL: -1, L.E_WAIT_HEAD: -1, L.E_WAIT_TAIL: -1,
        L.E_FREE: spec.kv_blocks, L.E_TOTAL: spec.kv_blocks, L.E_LAST_END: -1,
        L.E_MAX_SEQS: spec.max_num_seqs, L.E_MAX_TOKENS: spec.max_num_batched_tokens,
        L.E_MAX_LEN: spec.max_model_len, L.E_BLOCK_SIZE: spec.block_size,
        L.E_SHIFT: _shift(spec.block_size),
        L.E_CACHING: int(spec.prefix_caching), L.E_PRIORITY: int(spec.scheduling == "priority"),
        L.E_WATERMARK: spec.watermark_blocks, L.E_INDEX: index, L.E_CAL: regions.calendar,
        L.E_CAL_MASK: CALENDAR - 1, L.E_PHASE: regions.phase, L.E_PRE: regions.prefills,
        L.T_LAST_PUSH: -1, L.T_RING: regions.ring, L.T_MEAN_RING: regions.means,
        L.C_TOTAL: spec.kv_blocks, L.L_NS: -1, L.B_TABLE: regions.table,
        L.B_TABLE_WIDTH: regions.width, L.B_SLOTS: regions.slots, L.B_NODES: regions.nodes,
        L.B_MAP: regions.map,
        L.B_MAX: spec.kv_blocks, L.T_ADVERT: regions.advert, L.T_PREDICTED: NOT_PREDICTED,
    }  # fmt: skip
    for field, value in head.items():
        a[e + field] = value
    _fill_clock(a, e + L.E_CLOCK, clock, regions.step_tables)
    a[regions.calendar : regions.calendar + CALENDAR] = -1
    a[regions.ring + 4] = spec.kv_blocks
    a[e + L.T_PUSHES] = 1
    if rule is not None:
        fill_rule(a, e, spec, rule)
    if spec.prefix_caching:
        _fill_cache(a, e, spec, regions)


def _fill_clock(a: IntArray, at: int, clock: IntArray, tables: int) -> None:
    """Write the head at `at` and the tables, if any, at `tables`."""
    a[at : at + CLOCK_SIZE] = clock[:CLOCK_SIZE]
    a[tables : tables + len(clock) - CLOCK_SIZE] = clock[CLOCK_SIZE:]
    for field in TABLES:
        if clock[field]:
            a[at + field] = tables + clock[field] - CLOCK_SIZE


def _fill_cache(a: IntArray, e: int, spec: EngineSpec, regions: EngineRegions) -> None:
    a[e + L.B_MAP_MASK] = _map_slots(spec.kv_blocks) - 1
    a[e + L.B_SLOTS_N] = spec.max_num_seqs
    a[regions.slots : regions.slots + spec.max_num_seqs] = np.arange(spec.max_num_seqs)
    nodes = a[regions.nodes : regions.nodes + (spec.kv_blocks + 1) * L.NODE_SIZE].reshape(
        -1, L.NODE_SIZE
    )
    numbers = np.arange(spec.kv_blocks + 1)
    nodes[:, L.N_QPREV] = numbers - 1
    nodes[:, L.N_QNEXT] = numbers + 1
    nodes[-1, L.N_QNEXT] = 0
    a[e + L.B_HEAD] = 1
    a[e + L.B_TAIL] = spec.kv_blocks


def fill_rule(a: IntArray, e: int, spec: EngineSpec, rule: DecisionRule) -> None:
    """Write a declarative decision into an engine's header."""
    a[e + L.E_RULE] = 1
    a[e + L.R_BUDGET] = rule.token_budget
    a[e + L.R_CAP] = spec.max_num_seqs if rule.max_running is None else rule.max_running
    a[e + L.R_CHUNK] = rule.prefill_chunk
    a[e + L.R_COVER] = int(rule.cover_decodes)
    a[e + L.R_ORDER] = _ORDERS[rule.order]


def fill_requests(a: IntArray, base: int, workload: Workload) -> None:
    """Write the request rows."""
    rows = a[base : base + len(workload) * L.REQUEST_SIZE].reshape(-1, L.REQUEST_SIZE)
    rows[:, L.F_ARRIVAL] = np.where(workload.after >= 0, -1, workload.arrival_ns)
    rows[:, L.F_PROMPT] = workload.prompt_tokens
    rows[:, L.F_OUTPUT] = workload.output_tokens
    for field in (L.F_SCHEDULED, L.F_FIRST, L.F_LAST, L.F_NEXT, L.F_PREV, L.F_CAL):
        rows[:, field] = -1
    rows[:, L.F_META] = workload.slo_class
    rows[:, L.F_META] |= workload.priority << L.PRIORITY_SHIFT


def fill_events(a: IntArray, base: int, events: Sequence[Event]) -> None:
    """Write the world events in time order (ties in the order given)."""
    ordered = sorted(events, key=lambda event: event.at_s)
    for i, event in enumerate(ordered):
        value = event.blocks if event.kind == "lose_blocks" else round(event.factor * UNIT)
        a[base + i * L.EVENT_SIZE : base + (i + 1) * L.EVENT_SIZE] = (
            nanoseconds(event.at_s), _EVENTS[event.kind], event.engine, value,
        )  # fmt: skip


def fill_closed_loop(a: IntArray, o: int, workload: Workload, sizer_at: int) -> None:
    """Write who arrives after whom: first child, next sibling, think time (-1: open loop)."""
    n = len(workload)
    child, sibling, think = sizer_at, sizer_at + n, sizer_at + 2 * n
    a[child : child + 2 * n] = -1
    a[think : think + n] = np.where(workload.after >= 0, workload.arrival_ns, -1)
    for r in range(n - 1, -1, -1):
        parent = int(workload.after[r])
        if parent >= 0:
            a[sibling + r] = a[child + parent]
            a[child + parent] = r
    a[o + L.H_CHILD], a[o + L.H_SIBLING], a[o + L.H_THINK] = child, sibling, think


def fill_telemetry(a: IntArray, o: int, telemetry: TelemetrySpec) -> None:
    """Write how state reaches routers."""
    a[o + L.H_PUSH_INTERVAL] = nanoseconds(telemetry.push_interval_s)
    a[o + L.H_PUSH_DELAY] = nanoseconds(telemetry.push_delay_s)
    a[o + L.H_PUSH_LOSS] = round(telemetry.push_loss * (1 << 32))
    a[o + L.H_HEARTBEAT] = _HEARTBEATS[telemetry.heartbeat]
    a[o + L.H_HB_INTERVAL] = max(nanoseconds(telemetry.heartbeat_interval_s), 1)
    a[o + L.H_SCRAPE_INTERVAL] = max(nanoseconds(telemetry.scrape_interval_s), 1)


def ring_size(telemetry: TelemetrySpec, clocks: Sequence[IntArray]) -> int:
    """Pushes that can be under way at once, with room for heartbeats."""
    # Noise shortens an iteration to an eighth at most (StepTerms.noise_sd <= 0.25).
    step_s = min(int(clock[0]) for clock in clocks) / (8 * FS_PER_MS * 1000)
    pushed_s = max(telemetry.push_interval_s, step_s)
    shortest_s = max(min(pushed_s, telemetry.heartbeat_interval_s), 1e-6)
    return 4 + 2 * int(telemetry.push_delay_s / shortest_s)


def fill_slos(a: IntArray, base: int, slos: Sequence[SLO]) -> None:
    """Write TTFT, TPOT and E2E limits per class in nanoseconds (-1: not declared)."""
    for i, slo in enumerate(slos):
        for j, limit in enumerate((slo.ttft_s, slo.tpot_s, slo.e2e_s)):
            a[base + 3 * i + j] = -1 if limit is None else nanoseconds(limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that an arena is built from; see `Simulator` for the fields."""

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

    @property
    def sessions(self) -> int:
        """Session ids that the router's memory must hold."""
        n = len(self.workload)
        return int(self.workload.session.max()) + 1 if n and not self.auto_route else 0


def _reserve(world: World, sizer: Sizer) -> dict[int, int]:
    """Regions of the arena that the header points to, but for engines and requests."""
    n = len(world.workload)
    attempts = n * (1 + world.client.max_retries)
    header = {
        L.H_ENG: sizer.take(len(world.engines) * L.E_SIZE),
        L.H_ROWS: sizer.take(len(world.engines) * len(RouterRow)),
        L.H_STATE: sizer.take(len(EngineStateField)),
        L.H_REQUEST: sizer.take(8),
        L.H_SLO: sizer.take(3 * max(len(world.slos), 1)),
        L.H_EV: sizer.take(L.EVENT_SIZE * len(world.events)),
        L.H_HEAP: sizer.take(2 * n + 2 if world.dynamic else 2),
    }
    if world.client.max_retries > 0:
        header[L.H_TRUE_OUTPUT] = sizer.take(n)
    if world.client.timeout_s > 0:
        header[L.H_TO_SIZE] = attempts + 1
        header[L.H_TOQ] = sizer.take(2 * attempts + 2)
    if not world.auto_route:
        header[L.H_COMP] = sizer.take(8 * attempts + 8)
    if world.record_itl:
        header[L.H_ITL_SIZE] = ITL_ROWS + 4 * max(spec.max_num_seqs for spec in world.engines)
        header[L.H_ITL] = sizer.take(2 * header[L.H_ITL_SIZE])
    if world.sessions:
        header[L.H_SESSION] = sizer.take(n)
        header[L.H_SESSION_TABLE] = sizer.take(2 * world.sessions)
    return header


def _constants(world: World) -> dict[int, int]:
    """Header fields that are plain numbers."""
    waiting = len(world.engines) > 1 and any(rule is None for rule in world.rules)
    return {
        L.H_N: len(world.workload),
        L.H_E: len(world.engines),
        L.H_STRIDE: L.E_SIZE,
        L.H_WARM: world.warmup_ns,
        L.H_HORIZON: world.horizon_ns,
        L.H_STOP: world.stop_ns,
        L.H_TIMEOUT: nanoseconds(world.client.timeout_s),
        L.H_RETRIES: world.client.max_retries,
        L.H_BACKOFF: nanoseconds(world.client.backoff_s),
        L.H_EV_N: len(world.events),
        L.H_AUTO: int(world.auto_route),
        L.H_TELEMETRY: int(not world.auto_route),
        L.H_RING: ring_size(world.telemetry, world.clocks),
        L.H_NUM_ALIVE: len(world.engines),
        L.H_SLO_CLASSES: len(world.slos),
        L.H_CHECK: int(world.check),
        L.H_ORDERED: int(world.dynamic or waiting),
    }


def build_arena(world: World) -> IntArray:
    """The arena of one simulation, at base 0, before the first arrival."""
    n = len(world.workload)
    sizer = Sizer()
    sizer.take(L.H_SIZE)
    header = _reserve(world, sizer)
    ring = ring_size(world.telemetry, world.clocks)
    regions = [
        EngineRegions(spec, ring, clock, sizer)
        for spec, clock in zip(world.engines, world.clocks, strict=True)
    ]
    closed_at = sizer.take(3 * n if world.closed_loop else 0)
    ids = offsets = np.empty(0, np.int64)
    if world.needs_blocks:
        offsets, ids = world.workload.block_ids(world.engines[0].block_size)
        header[L.H_BLOCK_OFFSETS] = sizer.take(len(offsets))
        header[L.H_BLOCK_IDS] = sizer.take(len(ids))
    header[L.H_REQ] = sizer.take(n * L.REQUEST_SIZE)
    a = np.zeros(sizer.size, np.int64)
    for field, value in (header | _constants(world)).items():
        a[field] = value
    _fill_world(a, world, header)
    if world.closed_loop:
        fill_closed_loop(a, 0, world.workload, closed_at)
        _skip_leading(a, world.workload)
    if world.needs_blocks:
        a[header[L.H_BLOCK_OFFSETS] :][: len(offsets)] = offsets
        a[header[L.H_BLOCK_IDS] :][: len(ids)] = ids
    for index, part in enumerate(regions):
        _fill_engine_and_row(a, world, header, index, part)
    return a


def _fill_world(a: IntArray, world: World, header: dict[int, int]) -> None:
    fill_telemetry(a, 0, world.telemetry)
    fill_slos(a, header[L.H_SLO], world.slos)
    fill_events(a, header[L.H_EV], world.events)
    fill_requests(a, header[L.H_REQ], world.workload)
    if world.client.max_retries > 0:
        a[header[L.H_TRUE_OUTPUT] :][: len(world.workload)] = world.workload.output_tokens
    if world.sessions:
        a[header[L.H_SESSION] :][: len(world.workload)] = world.workload.session
        a[header[L.H_SESSION_TABLE] :][: 2 * world.sessions] = -1


def _fill_engine_and_row(
    a: IntArray, world: World, header: dict[int, int], index: int, regions: EngineRegions
) -> None:
    spec = world.engines[index]
    e = header[L.H_ENG] + index * L.E_SIZE
    fill_engine(a, e, index, spec, world.clocks[index], world.rules[index], regions)
    a[e + L.T_NEXT_SCRAPE] = a[L.H_SCRAPE_INTERVAL]
    told = world.adverts[index]
    a[regions.advert : regions.advert + L.ADVERT_SIZE] = told
    a[regions.ring + L.PUSH_MODEL : regions.ring + L.PUSH_SIZE] = told[L.A_MODEL :]
    at = header[L.H_ROWS] + index * len(RouterRow)
    a[at + RouterRow.ALIVE] = 1
    a[at + RouterRow.PUSH_TOTAL_BLOCKS] = spec.kv_blocks
    a[at + RouterRow.PUSH_PEAK_MILLITPS : at + len(RouterRow)] = told[L.A_MODEL :]


def _skip_leading(a: IntArray, workload: Workload) -> None:
    opened = np.flatnonzero(workload.after < 0)
    a[L.H_PTR] = int(opened[0]) if len(opened) else len(workload)
