"""Where everything lies in the simulator's arena, one flat int64 array.

Compiled code takes the arena and offsets only: each further array argument would cost about
30 ns per call, and views of rows would cost reference counts. Offsets stored in the headers
are absolute positions in the arena.
"""

from __future__ import annotations

from synergy_gym.latency.terms import CLOCK_SIZE
from synergy_gym.types import ADVERT_TERMS

INF = 1 << 62

# Simulation header, relative to the simulation's base.
(
    H_NOW,
    H_N,
    H_E,
    H_REQ,
    H_ENG,
    H_STRIDE,
    H_PTR,
    H_HEAP,
    H_HEAP_N,
    H_POINT,
    H_PREQ,
    H_PENG,
    H_MET,
    H_WARM,
    H_HORIZON,
    H_STOP,
    H_TIMEOUT,
    H_RETRIES,
    H_BACKOFF,
    H_TOQ,
    H_TO_HEAD,
    H_TO_TAIL,
    H_TO_SIZE,
    H_EV,
    H_EV_N,
    H_EV_PTR,
    H_ORDERED,
    H_AUTO,
    H_SLO,
    H_COMP,
    H_COMP_N,
    H_ITL,
    H_ITL_N,
    H_ITL_SIZE,
    H_SESSION,
    H_SESSION_TABLE,
    H_ROWS,
    H_TELEMETRY,
    H_PUSH_INTERVAL,
    H_PUSH_DELAY,
    H_PUSH_LOSS,
    H_HEARTBEAT,
    H_HB_INTERVAL,
    H_SCRAPE_INTERVAL,
    H_RING,
    H_CHILD,
    H_SIBLING,
    H_THINK,
    H_BLOCK_OFFSETS,
    H_BLOCK_IDS,
    H_NUM_ALIVE,
    H_STATE,
    H_REQUEST,
    H_SLO_CLASSES,
    H_SEEN_NOW,
    H_SEEN_MET,
    H_TRUE_OUTPUT,
    H_CHECK,
) = range(58)
H_SIZE = 64

# Request row.
(
    F_ARRIVAL,
    F_PROMPT,
    F_OUTPUT,
    F_OFF,
    F_GEN,
    F_SCHEDULED,
    F_FIRST,
    F_LAST,
    F_NEXT,
    F_PREV,
    F_CAL,
    F_STATE,
    F_COUNTS,
    F_PLACE,
    F_META,
) = range(15)
REQUEST_SIZE = 15

# F_STATE: life cycle in the low bits, then flags and the outcome.
PENDING, WAITING, PREFILL, DECODE, LEFT = 0, 1, 2, 3, 4
STATE_MASK = 7
ABORTING = 1 << 3
STALLED = 1 << 4
SKIPPED = 1 << 5
RAN = 1 << 6  # scheduled in this iteration by the walking path
OUTCOME_SHIFT = 8
# F_META: SLO class, scored flag, attempts, priority.
CLASS_MASK = 0xFF
SCORED = 1 << 8
ATTEMPT_SHIFT = 16
ATTEMPT_MASK = 0xFFFF
PRIORITY_SHIFT = 32
# F_COUNTS: cached tokens of the first admission (+1 once known), preemptions above.
PREEMPTION_SHIFT = 40
CACHED_MASK = (1 << 40) - 1
# F_PLACE: engine (+1), KV slot above.
ENGINE_MASK = 0xFFFF
SLOT_SHIFT = 16

# Engine header, relative to the engine's base.
(
    E_FLIGHT,
    E_END,
    E_START,
    E_READY,
    E_K,
    E_J,
    E_RUNNING,
    E_DECODES,
    E_PREFILLS,
    E_WAITING,
    E_FREE,
    E_TOTAL,
    E_CONTEXT,
    E_RUN_HEAD,
    E_RUN_TAIL,
    E_WAIT_HEAD,
    E_WAIT_TAIL,
    E_WAIT_TOKENS,
    E_PREFILL_TOKENS,
    E_SCORED_DECODES,
    E_LAST_END,
    E_STALLED,
    E_ABORTS,
    E_SKIPPED,
    P_SEQUENCES,
    P_TOKENS,
    P_DECODES,
    P_PREFILL_TOKENS,
    P_CONTEXT,
    P_PREFILL_CONTEXT,
    P_PAIRS,
    P_PREEMPTED,
    P_ADMITTED,
    P_PREFILLS,
    P_BUDGET,
    P_CAP,
    P_CHUNK,
    E_STEPS,
    E_HASH,
    E_DOWN,
    E_DEBT,
    E_MAX_SEQS,
    E_MAX_TOKENS,
    E_MAX_LEN,
    E_BLOCK_SIZE,
    E_CACHING,
    E_PRIORITY,
    E_WATERMARK,
    E_RULE,
    R_BUDGET,
    R_CAP,
    R_CHUNK,
    R_COVER,
    R_ORDER,
    E_INDEX,
    E_CAL,
    E_CAL_MASK,
    E_PHASE,
    E_PRE,
    E_LEFT,
    E_CAPS_ON,
    L_START,
    L_NS,
    L_SEQUENCES,
    L_TOKENS,
    L_DECODES,
    L_PREFILL_TOKENS,
    L_CONTEXT,
    L_PREFILL_CONTEXT,
    L_PAIRS,
    L_PREEMPTED,
    L_ADMITTED,
    L_FINISHED,
    L_BUDGET,
    T_LAST_PUSH,
    T_ATTEMPTS,
    T_PUSHES,
    T_IDLE_SINCE,
    T_NEXT_SCRAPE,
    T_FINISHED,
    T_TTFT,
    T_TPOT,
    T_E2E,
    C_RUNNING,
    C_WAITING,
    C_USED,
    C_TOTAL,
    T_RING,
    T_MEAN_N,
    T_MEAN_NS,
    T_MEAN_TOKENS,
    T_MEAN_RING,
    B_TABLE,
    B_TABLE_WIDTH,
    B_SLOTS,
    B_SLOTS_N,
    B_NODES,
    B_HEAD,
    B_TAIL,
    B_MAP,
    B_MAP_MASK,
    E_CHUNK,
    T_BEATS,
    T_DIRTY,
    E_SHIFT,
    B_MAX,
    T_PREDICTED,
    T_MEAN_PREDICTED,
    T_ADVERT,
    E_MET,
) = range(110)
E_CLOCK = 112
E_SIZE = E_CLOCK + CLOCK_SIZE

MEAN_STEPS = 10
# Entry of the means' ring: duration, tokens, predicted duration.
MEAN_SIZE = 3
# What an engine tells about itself: capacity, then its model: peak throughput and coefficients.
A_CAPACITY, A_MODEL = 0, 1
ADVERT_SIZE = 2 + len(ADVERT_TERMS)
# A push: RouterRow's columns 4-11, then those from PUSH_PREDICTED_NS on. Heartbeats say nothing
# about the fields from PUSH_MODEL on.
PUSH_TOLD = 8
PUSH_MODEL = 11
PUSH_SIZE = PUSH_MODEL + ADVERT_SIZE - A_MODEL
# KV block node: reference count, hash id (0: none), free-queue links, same-hash links.
N_REF, N_HASH, N_QPREV, N_QNEXT, N_HPREV, N_HNEXT = range(6)
NODE_SIZE = 6
# Hash map slot: id (0: empty), oldest block, newest block.
MAP_SIZE = 3

# World events.
EV_DOWN, EV_UP, EV_SLOWDOWN, EV_LOSE = 0, 1, 2, 3
EVENT_SIZE = 4

# Waiting orders of a rule and heartbeat modes.
ORDER_QUEUE, ORDER_SHORTEST, ORDER_DEADLINE = 0, 1, 2
HEARTBEAT_NONE, HEARTBEAT_IDLE, HEARTBEAT_OVERWRITE = 0, 1, 2

# Reasons for which the compiled loop returns, beside the public points.
POINT_ITL_FULL = 3
POINT_CHECK = 4
