"""What routers can know and how old it is (`docs/telemetry.md`), compiled."""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import inner
from synergy_gym.latency.clock import SEED, _mix_kernel
from synergy_gym.sim.compiled.layout import (
    A_CAPACITY,
    A_MODEL,
    HEARTBEAT_NONE,
    HEARTBEAT_OVERWRITE,
    MEAN_STEPS,
    MODEL_COLUMN,
    PUSH,
)
from synergy_gym.sim.compiled.reach import (
    advert_of,
    clock_of,
    engine_of,
    last_of,
    pool_of,
    push_of,
    recent_of,
    row_of,
    telemetry_of,
)
from synergy_gym.sim.compiled.records import address_of, copy, int64s
from synergy_gym.types import ADVERT_TERMS

LOSS_STREAM = 0x2545F4914F6CDD1D
# SynergySched's stand-in for a prediction, in nanoseconds: base, per token, per request.
GUESS_NS, GUESS_TOKEN_NS, GUESS_REQUEST_NS = 8_700_000, 20_000, 500_000
LATENCY_BELOW, THROUGHPUT_ABOVE = 256, 1024
"""Mean tokens per step that bound the scheduling modes (`docs/telemetry.md`)."""
_MODEL_PLACE = PUSH.place("model")
_MODEL_SIZE = 1 + len(ADVERT_TERMS)


@inner
def scrape_until(world, engine, now):  # type: ignore[no-untyped-def]
    """Capture every scrape that is due before or at `now` (committed state only)."""
    telemetry = telemetry_of(engine)
    while telemetry.next_scrape_ns <= now:
        telemetry.dirty = True
        if not engine.down:
            row, n = row_of(world, engine.index), max(telemetry.finished, 1)
            row.scrape_ns = telemetry.next_scrape_ns
            row.scrape_running = telemetry.running
            row.scrape_waiting = telemetry.waiting
            row.scrape_used_blocks = telemetry.used_blocks
            row.scrape_total_blocks = telemetry.total_blocks
            row.scrape_ttft_ns = telemetry.ttft_ns // n
            row.scrape_tpot_ns = telemetry.tpot_ns // n
            row.scrape_e2e_ns = telemetry.e2e_ns // n
            row.scrape_finished = telemetry.finished
        telemetry.finished = 0
        telemetry.ttft_ns = telemetry.tpot_ns = telemetry.e2e_ns = 0
        telemetry.next_scrape_ns += world.scrape_interval_ns


@inner
def note_step(engine):  # type: ignore[no-untyped-def]
    """Enter the finished iteration into the means over the last ten non-empty ones."""
    telemetry, last = telemetry_of(engine), last_of(engine)
    recent = recent_of(telemetry, telemetry.mean_steps % MEAN_STEPS)
    if telemetry.mean_steps >= MEAN_STEPS:
        telemetry.mean_ns -= recent.ns
        telemetry.mean_tokens -= recent.tokens
        telemetry.mean_predicted_ns -= recent.predicted_ns
    predicted = telemetry.predicted_ns
    if predicted < 0:
        predicted = GUESS_NS + GUESS_TOKEN_NS * last.tokens + GUESS_REQUEST_NS * last.sequences
    recent.ns, recent.tokens, recent.predicted_ns = last.duration_ns, last.tokens, predicted
    telemetry.mean_ns += last.duration_ns
    telemetry.mean_tokens += last.tokens
    telemetry.mean_predicted_ns += predicted
    telemetry.mean_steps += 1


@inner
def commit_counts(engine):  # type: ignore[no-untyped-def]
    """What the engine's own metrics say after an iteration."""
    telemetry, pool = telemetry_of(engine), pool_of(engine)
    telemetry.running, telemetry.waiting = engine.running, engine.waiting
    telemetry.used_blocks = pool.total + pool.owed - pool.free
    telemetry.total_blocks = pool.total


@inner
def _append_push(world, telemetry, at_ns):  # type: ignore[no-untyped-def]
    """A new entry stamped `at_ns`; the caller fills the rest."""
    sent = push_of(telemetry, telemetry.pushes % world.ring_size)
    telemetry.pushes += 1
    sent.at_ns = at_ns
    return sent


@inner
def _append_beat(world, engine, at_ns):  # type: ignore[no-untyped-def]
    """A heartbeat: the idle vector, and about the engine's model what was sent last."""
    telemetry = telemetry_of(engine)
    before = push_of(telemetry, (telemetry.pushes - 1) % world.ring_size)
    beat = _append_push(world, telemetry, at_ns)
    copy(beat, before)
    beat.at_ns = at_ns
    beat.running = beat.waiting = beat.used_blocks = beat.pending_tokens = 0
    beat.step_ns = beat.step_millitokens = beat.predicted_ns = 0
    beat.mode = beat.capacity = 0
    beat.total_blocks = pool_of(engine).total


@inner
def _origin(world, engine):  # type: ignore[no-untyped-def]
    """Instant from which heartbeats are counted, or -1 while none are sent."""
    if engine.down or world.heartbeat == HEARTBEAT_NONE:
        return np.int64(-1)
    if world.heartbeat == HEARTBEAT_OVERWRITE:
        return np.int64(0)
    if not engine.in_flight and engine.running + engine.waiting == 0:
        return telemetry_of(engine).idle_since_ns
    return np.int64(-1)


@inner
def settle_heartbeats(world, engine, now):  # type: ignore[no-untyped-def]
    """Before an engine's heartbeats change: keep those sent that are under way or visible."""
    origin, telemetry = _origin(world, engine), telemetry_of(engine)
    if origin < 0:
        return
    every = world.heartbeat_interval_ns
    # Earlier beats are superseded by one that is visible already.
    after = max(max(now - world.push_delay_ns, telemetry.beats_ns) - origin, every)
    beat = origin + after // every * every
    if beat <= telemetry.beats_ns:
        beat += every
    while beat <= now:
        _append_beat(world, engine, beat)
        beat += every
    telemetry.beats_ns = now


@inner
def _mode(telemetry, n):  # type: ignore[no-untyped-def]
    """Scheduling mode over the last `n` non-empty steps: latency, balanced, throughput."""
    if telemetry.mean_tokens > THROUGHPUT_ABOVE * n:
        return 2
    some = telemetry.mean_steps > 0
    return 0 if some and telemetry.mean_tokens < LATENCY_BELOW * n else 1


@inner
def push(world, engine, now):  # type: ignore[no-untyped-def]
    """Send the state vector if the interval has passed since the last one."""
    telemetry = telemetry_of(engine)
    if world.heartbeat == HEARTBEAT_OVERWRITE:
        settle_heartbeats(world, engine, now)
    if telemetry.last_push_ns >= 0 and now - telemetry.last_push_ns < world.push_interval_ns:
        return
    telemetry.last_push_ns = now
    attempt = telemetry.push_attempts
    telemetry.push_attempts = attempt + 1
    if world.push_loss != 0:
        draw = _mix_kernel((clock_of(engine)[SEED] + attempt) ^ LOSS_STREAM)
        if np.int64(draw >> np.uint64(32)) < world.push_loss:
            return
    sent = _append_push(world, telemetry, now)
    n = max(min(telemetry.mean_steps, MEAN_STEPS), 1)
    sent.running, sent.waiting = telemetry.running, telemetry.waiting
    sent.used_blocks, sent.total_blocks = telemetry.used_blocks, telemetry.total_blocks
    sent.pending_tokens = engine.waiting_tokens + engine.prefill_tokens + engine.decodes
    sent.step_ns = telemetry.mean_ns // n
    sent.step_millitokens = telemetry.mean_tokens * 1000 // n
    sent.predicted_ns = telemetry.mean_predicted_ns // n
    sent.mode = _mode(telemetry, n)
    sent.capacity = advert_of(telemetry, A_CAPACITY).value
    model = int64s(address_of(sent) + _MODEL_PLACE, _MODEL_SIZE)
    for i in range(_MODEL_SIZE):
        model[i] = advert_of(telemetry, A_MODEL + i).value


@inner
def _show(telemetry, row, at_ns):  # type: ignore[no-untyped-def]
    """A heartbeat or push stamped `at_ns` becomes visible in a row; true if it is new."""
    if row.push_ns == at_ns:
        return False
    row.push_ns = at_ns
    row.routed_since_push = 0
    telemetry.dirty = True
    return True


@inner
def _show_push(row, sent):  # type: ignore[no-untyped-def]
    row.push_running, row.push_waiting = sent.running, sent.waiting
    row.push_used_blocks, row.push_total_blocks = sent.used_blocks, sent.total_blocks
    row.push_pending_tokens = sent.pending_tokens
    row.push_step_ns, row.push_step_millitokens = sent.step_ns, sent.step_millitokens
    row.push_predicted_ns, row.push_mode = sent.predicted_ns, sent.mode
    row.push_capacity = sent.capacity
    _show_model(row, sent)


@inner
def _show_beat(row, engine, sent):  # type: ignore[no-untyped-def]
    """A heartbeat is the idle vector, with the model that was sent last."""
    row.push_running = row.push_waiting = row.push_used_blocks = row.push_pending_tokens = 0
    row.push_step_ns = row.push_step_millitokens = row.push_predicted_ns = 0
    row.push_mode = row.push_capacity = 0
    row.push_total_blocks = pool_of(engine).total
    _show_model(row, sent)


@inner
def _show_model(row, sent):  # type: ignore[no-untyped-def]
    model = int64s(address_of(sent) + _MODEL_PLACE, _MODEL_SIZE)
    shown = int64s(address_of(row) + 8 * MODEL_COLUMN, _MODEL_SIZE)
    for i in range(_MODEL_SIZE):
        shown[i] = model[i]


@inner
def refresh_row(world, engine, now):  # type: ignore[no-untyped-def]
    """Bring one engine's row of the router table up to date."""
    scrape_until(world, engine, now)
    row, telemetry = row_of(world, engine.index), telemetry_of(engine)
    seen = now - world.push_delay_ns
    beat = np.int64(-1)
    origin = _origin(world, engine)
    if origin >= 0 and seen - origin >= world.heartbeat_interval_ns:
        beat = seen - (seen - origin) % world.heartbeat_interval_ns
        if beat <= telemetry.beats_ns:
            beat = np.int64(-1)
    i = telemetry.pushes - 1
    oldest = max(telemetry.pushes - world.ring_size, 0)
    sent = push_of(telemetry, i % world.ring_size)
    while i > oldest and sent.at_ns > seen:
        i -= 1
        sent = push_of(telemetry, i % world.ring_size)
    if beat > sent.at_ns:
        if _show(telemetry, row, beat):
            _show_beat(row, engine, sent)
    elif _show(telemetry, row, sent.at_ns):
        _show_push(row, sent)


@inner
def refresh_rows(world, now):  # type: ignore[no-untyped-def]
    """Bring the whole router table up to date."""
    for i in range(world.num_engines):
        refresh_row(world, engine_of(world, i), now)
