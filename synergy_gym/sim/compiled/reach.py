"""From one record of a simulation to the next."""

from __future__ import annotations

from numba import types

from synergy_gym.sim.compiled.layout import (
    COMPLETION,
    DETAIL,
    ENGINE,
    EVENT,
    FAMILY,
    GAP,
    NUMBER,
    OBJECTIVE,
    PHASE,
    PLANNED,
    POOL,
    PUSH,
    RECENT,
    REQUEST,
    RETURN,
    ROUTER,
    ROW,
    RULE,
    SESSION,
    SPAN,
    STEP,
    TELEMETRY,
    TIMEOUT,
    WIDE,
    WORLD,
)
from synergy_gym.sim.compiled.records import at, member, part, vector

world_at = at(WORLD)
engine_at = at(ENGINE)

request_of = member(WORLD, "requests", REQUEST)
detail_of = member(WORLD, "details", DETAIL)
engine_of = member(WORLD, "engines", ENGINE)
objective_of = member(WORLD, "objectives", OBJECTIVE)
return_of = member(WORLD, "returns", RETURN)
event_of = member(WORLD, "events", EVENT)
timeout_of = member(WORLD, "timeouts", TIMEOUT)
gap_of = member(WORLD, "gaps", GAP)
completion_of = member(WORLD, "completions", COMPLETION)
true_output_of = member(WORLD, "true_outputs", NUMBER)
family_of = member(WORLD, "families", FAMILY)
block_offset_of = member(WORLD, "block_offsets", WIDE)
block_id_of = member(WORLD, "block_ids", WIDE)
session_of = member(WORLD, "sessions", NUMBER)
session_place_of = member(WORLD, "session_places", SESSION)
row_of = member(WORLD, "rows", ROW)
table_of_rows = vector(WORLD, "rows", "rows_size")
state_of = vector(WORLD, "state", "state_size")
request_vector_of = vector(WORLD, "request_vector", "request_vector_size")

clock_of = vector(ENGINE, "clock", "clock_size")
router_of = part(WORLD, "router", ROUTER)
owner_of = member(ROUTER, "owners", NUMBER)
ring_place_of = member(ROUTER, "session_places", NUMBER)
weights_of = vector(ROUTER, "weights", "num_weights", types.float64)

pool_of = part(ENGINE, "pool", POOL)
plan_of = part(ENGINE, "plan", STEP)
last_of = part(ENGINE, "last", STEP)
rule_of = part(ENGINE, "rule", RULE)
telemetry_of = part(ENGINE, "telemetry", TELEMETRY)
planned_of = member(ENGINE, "planned", PLANNED)
phase_of = member(ENGINE, "phases", PHASE)
bucket_of = member(ENGINE, "buckets", NUMBER)

span_of = member(POOL, "spans", SPAN)
bucket_head_of = member(POOL, "map", NUMBER)
table_of = member(POOL, "table", NUMBER)
seat_of = member(POOL, "seats", NUMBER)

push_of = member(TELEMETRY, "ring", PUSH)
recent_of = member(TELEMETRY, "recent", RECENT)
advert_of = member(TELEMETRY, "advert", WIDE)
