"""Everything that lies in a simulation's memory: one page of records.

The memory is one block: the `WORLD` at its start, then what its places lead to. A *place* counts
bytes from the start of the record that holds it. Times are nanoseconds since the episode began,
-1 before they happen; requests, engines and spans are named by their numbers, -1 (or for spans
0) is nobody. Python sees the same memory as structured arrays (`sim/memory.py`).
"""

from __future__ import annotations

from synergy_gym.sim.compiled.records import Layout
from synergy_gym.types import ADVERT_TERMS, RouterRow

INF = 1 << 62

# Where a request is in its life (REQUEST.state).
PENDING, WAITING, PREFILL, DECODE, LEFT = 0, 1, 2, 3, 4

REQUEST = Layout("Request", [
    ("computed_tokens", "i4"),   # in the KV cache; of a decode minus ENGINE.busy_steps (`decodes`)
    ("prompt_tokens", "i4"),
    ("generated_tokens", "i4"),  # emitted; of a decode as it was when it became one
    ("output_tokens", "i4"),     # what it will emit: true output, cut at the engine's length limit
    ("next", "i4"),              # behind it in its engine's running list or waiting queue
    ("previous", "i4"),
    ("token_cap", "i4"),         # of a decision, -1 none; of a decode the next in its bucket
    ("state", "u1"),             # PENDING ... LEFT
    ("slo_class", "u1"),
    ("scored", "?"),             # it arrived in [warm-up, horizon)
    ("stalled", "?"),            # a decode whose last token is older than the last iteration
    ("skipped", "?"),            # a decode that the present iteration passes over
    ("ran", "?"),                # scheduled by the walk that is under way
    ("aborting", "?"),           # its client gave up during the iteration in flight
    ("outcome", "u1"),           # Outcome, once it has LEFT
    ("engine", "i2"),            # where it was routed, plus 1
    ("attempts", "u2"),
    ("arrival_ns", "i8"),        # of the first attempt
    ("first_token_ns", "i8"),
    ("last_token_ns", "i8"),     # of a decode while it is stalled; of a finished one its end
])  # fmt: skip
"""A request, hot enough to be one cache line."""

DETAIL = Layout("Detail", [
    ("scheduled_ns", "i8"),      # first scheduled
    ("cached_tokens", "i4"),     # prefix-cache hit of the first admission, plus 1; 0 before it
    ("preemptions", "i4"),
    ("priority", "i4"),
    ("seat", "i4"),              # its row of the pool's block table, with prefix caching
    ("rank", "i8"),              # grows along the running list
    ("looks", "?"),              # with prefix caching: others may have filled its next block, too
])  # fmt: skip
"""The rest of a request: what an ordinary iteration does not touch."""

STEP = Layout("Step", [
    ("start_ns", "i8"),
    ("duration_ns", "i8"),       # -1: there was none yet
    ("context", "i8"),           # tokens already computed of the scheduled decodes
    ("prefill_context", "i8"),   # and of the scheduled prefills
    ("prefill_pairs", "i8"),     # sum of chunk * computed + chunk * (chunk + 1) / 2 over prefills
    ("sequences", "i4"),
    ("tokens", "i4"),
    ("decodes", "i4"),
    ("prefills", "i4"),
    ("prefill_tokens", "i4"),
    ("preempted", "i4"),
    ("admitted", "i4"),
    ("finished", "i4"),
    ("token_budget", "i4"),      # these three are the decision
    ("max_running", "i4"),
    ("prefill_chunk", "i8"),     # 0: no cap
])  # fmt: skip
"""One iteration: what was decided, and what was scheduled."""

POOL = Layout("Pool", [
    ("free", "i4"),              # blocks in the free queue
    ("total", "i4"),             # blocks that the engine may count on
    ("block_size", "i4"),        # tokens per block
    ("block_shift", "i4"),       # its logarithm, -1 when it is no power of two
    ("caching", "?"),
    ("owed", "i4"),              # lost blocks that are still in the pool
    ("plain", "i4"),             # free blocks without content: the front of the free queue
    ("first_free", "i4"),        # ends of the rest of it, which is SPANs
    ("last_free", "i4"),
    ("size", "i4"),              # blocks that it began with
    ("made", "i4"),              # highest number of a SPAN so far
    ("spare", "i4"),             # first of a list of those no longer used, through queue_next
    ("map_mask", "i4"),
    ("row_width", "i4"),         # NUMBERs in a row of the table
    ("num_seats", "i4"),         # free rows of the table
    ("spans", "i8"),             # place of SPANs; span 0 is nobody
    ("map", "i8"),               # place of NUMBERs: first span of each bucket of a hash map
    ("table", "i8"),             # place of NUMBERs: a row of spans per running request (`cache`)
    ("seats", "i8"),             # place of NUMBERs: the stack of free rows
])  # fmt: skip
"""An engine's KV blocks; without prefix caching they are only counted."""

SPAN = Layout("Span", [
    ("content", "i8"),           # chained id of its first block
    ("ids", "i8"),               # where that id lies among the world's, those behind it follow
    ("begin", "i4"),             # place of the first block in the prompts that have it
    ("length", "i4"),            # blocks
    ("references", "i4"),        # requests that hold it, all of it
    ("queue_previous", "i4"),    # links of the free queue, where it lies with its last block first
    ("queue_next", "i4"),
    ("same_previous", "i4"),     # links among spans of the same content, oldest first; the oldest
    ("same_next", "i4"),         # one's previous is the newest
    ("bucket_next", "i4"),       # behind it in its bucket, of the oldest of its content
    ("rest", "i4"),              # what was split off its end last
    ("holder", "i4"),            # the only request that ever held it, while it is
    ("alone", "?"),              # its holder's last one, which grows with it (`cache`)
])  # fmt: skip
"""A stretch of KV blocks whose contents follow each other."""

NUMBER = Layout("Number", [("value", "i4")])
WIDE = Layout("Wide", [("value", "i8")])

PLANNED = Layout("Prefill", [("request", "i4"), ("tokens", "i4")])
"""A running request that is no decode, and what the present iteration gives it."""

PHASE = Layout("Phase", [
    ("decodes", "i4"),           # how many have computed + this index = 0 modulo the block size
    ("looking", "i4"),           # and of these, who have DETAIL.looks
])  # fmt: skip

RULE = Layout("Rule", [
    ("prefill_chunk", "i8"),
    ("token_budget", "i4"),
    ("max_running", "i4"),
    ("given", "?"),              # false: a policy decides at BATCH points
    ("cover_decodes", "?"),
    ("order", "u1"),             # ORDER_QUEUE ...
])  # fmt: skip
ORDER_QUEUE, ORDER_SHORTEST, ORDER_DEADLINE = 0, 1, 2

TELEMETRY = Layout("Telemetry", [
    ("last_push_ns", "i8"),      # -1: none yet
    ("push_attempts", "i8"),     # lost ones included
    ("pushes", "i8"),            # entries that the ring has ever had
    ("beats_ns", "i8"),          # heartbeats up to here are in the ring, or superseded
    ("idle_since_ns", "i8"),
    ("next_scrape_ns", "i8"),
    ("finished", "i8"),          # since the last scrape, like the three sums
    ("ttft_ns", "i8"),
    ("tpot_ns", "i8"),
    ("e2e_ns", "i8"),
    ("mean_steps", "i8"),        # non-empty iterations so far
    ("mean_ns", "i8"),           # sums over the last MEAN_STEPS of them
    ("mean_tokens", "i8"),
    ("mean_predicted_ns", "i8"),
    ("predicted_ns", "i8"),      # of the iteration in flight; -1: its policy predicted nothing
    ("ring", "i8"),              # place of PUSHes
    ("recent", "i8"),            # place of MEAN_STEPS RECENTs
    ("advert", "i8"),            # place of ADVERT_SIZE WIDEs: what its policy tells routers
    ("running", "i4"),           # at the last commit, like the next three
    ("waiting", "i4"),
    ("used_blocks", "i4"),
    ("total_blocks", "i4"),
    ("dirty", "?"),              # its row of the router's table has changed since it was observed
])  # fmt: skip
"""What an engine tells about itself."""

MEAN_STEPS = 10
RECENT = Layout("Recent", [("ns", "i8"), ("tokens", "i8"), ("predicted_ns", "i8")])

PUSH = Layout("Push", [
    ("at_ns", "i8"),
    ("running", "i8"),
    ("waiting", "i8"),
    ("used_blocks", "i8"),
    ("total_blocks", "i8"),
    ("pending_tokens", "i8"),
    ("step_ns", "i8"),
    ("step_millitokens", "i8"),
    ("predicted_ns", "i8"),
    ("mode", "i8"),
    ("capacity", "i8"),
    ("model", "i8", (1 + len(ADVERT_TERMS),)),  # peak throughput, then a step model
])  # fmt: skip
"""A state vector on its way to routers."""
# What an engine tells about itself: capacity, then its model: peak throughput and coefficients.
A_CAPACITY, A_MODEL = 0, 1
ADVERT_SIZE = 2 + len(ADVERT_TERMS)

ROW = Layout("Row", [(column.name.lower(), "i8") for column in RouterRow])
"""A row of the router's table; the columns are explained at `types.RouterRow`."""
MODEL_COLUMN = int(RouterRow.PUSH_PEAK_MILLITPS)
"""Where a row holds what PUSH.model has."""

ENGINE = Layout("Engine", [
    ("end_ns", "i8"),            # of the iteration in flight
    ("ready_ns", "i8"),          # when the next one can be planned
    ("busy_steps", "i8"),        # non-empty iterations: what lazy decodes count from
    ("decode_context", "i8"),    # computed tokens of all decodes
    ("waiting_tokens", "i8"),    # known tokens of the waiting requests
    ("prefill_tokens", "i8"),    # tokens that running prefills still have to compute
    ("last_end_ns", "i8"),       # of the last non-empty iteration
    ("in_flight", "?"),          # an iteration runs
    ("down", "?"),
    ("capped", "?"),             # the decision has token caps
    ("priority", "?"),           # schedules by priority
    ("running", "i4"),
    ("waiting", "i4"),
    ("decodes", "i4"),
    ("prefills", "i4"),          # running requests that are no decodes, listed at `planned`
    ("scored_decodes", "i4"),
    ("stalled", "i4"),           # decodes that are
    ("skipped", "i4"),           # decodes that the iteration being planned or in flight passes over
    ("ahead", "i4"),             # 1: it serves every decode, and has given them their blocks
    ("aborting", "i4"),
    ("first_running", "i4"),
    ("last_running", "i4"),
    ("first_waiting", "i4"),
    ("last_waiting", "i4"),
    ("phase", "i4"),             # index of the PHASE whose decodes need a block with the next token
    ("index", "i4"),
    ("max_num_seqs", "i4"),
    ("max_num_batched_tokens", "i4"),
    ("max_model_len", "i4"),
    ("watermark_blocks", "i4"),
    ("bucket_mask", "i4"),
    ("admission_left", "i4"),    # token budget that is left while an iteration is planned
    ("chunk", "i8"),             # prefill cap of the iteration being planned, 0: none
    ("planned", "i8"),           # place of `prefills` PLANNEDs, in order of the running list
    ("phases", "i8"),            # place of block_size PHASEs
    ("buckets", "i8"),           # place of NUMBERs: decodes by the iteration of their last token
    ("clock", "i8"),             # place of the step-latency vector (`latency.clock`)
    ("clock_size", "i8"),
    ("steps", "i8"),             # iterations planned so far, empty ones included
    ("decision_hash", "i8"),
    ("met", "i8"),               # scored requests that finished here within their SLOs
    ("seen_met", "i8"),          # what an environment has reported of them
    ("last_rank", "i8"),         # of the running list
    ("pool", POOL.dtype),
    ("plan", STEP.dtype),        # the iteration being planned or in flight
    ("last", STEP.dtype),        # the last finished one
    ("rule", RULE.dtype),
    ("telemetry", TELEMETRY.dtype),
])  # fmt: skip
"""An engine, hot fields first."""

ROUTER = Layout("Router", [
    ("turn", "i8"),              # requests routed so far
    ("state_high", "i8"),        # the generator (PCG64): its 128-bit state,
    ("state_low", "i8"),
    ("increment_high", "i8"),    # the odd number that a step adds,
    ("increment_low", "i8"),
    ("spare", "i8"),             # and the half of a 64-bit draw that the next 32-bit one takes
    ("has_spare", "?"),
    ("kind", "u1"),              # BY_POLICY ...
    ("num_owners", "i4"),
    ("weights", "i8"),           # place of float64 numbers, one per engine
    ("num_weights", "i8"),
    ("owners", "i8"),            # place of NUMBERs: engine of every place of the ring
    ("session_places", "i8"),    # place of NUMBERs: where each session begins on the ring
])  # fmt: skip
"""A declarative router (`types.RouterRule`)."""
(
    BY_POLICY,
    ROUND_ROBIN,
    RANDOM,
    WEIGHTED,
    BY_SESSION,
    LEAST_OUTSTANDING,
    POWER_OF_TWO,
    LEAST_KV,
    LEAST_LOADED,
) = range(9)

HEARTBEAT_NONE, HEARTBEAT_IDLE, HEARTBEAT_OVERWRITE = 0, 1, 2

WORLD = Layout("World", [
    ("now_ns", "i8"),
    ("stop_ns", "i8"),           # nothing later than this happens
    ("met", "i8"),               # scored requests that have met all their SLOs
    ("requests", "i8"),          # place of REQUESTs
    ("details", "i8"),           # place of DETAILs
    ("engines", "i8"),           # place of ENGINEs
    ("objectives", "i8"),        # place of OBJECTIVEs, one per SLO class
    ("num_requests", "i4"),
    ("num_engines", "i4"),
    ("next_request", "i4"),      # first of the trace that has not arrived
    ("num_returns", "i4"),
    ("returns", "i8"),           # place of RETURNs: a heap of arrivals beside the trace
    ("next_event", "i4"),
    ("num_events", "i4"),
    ("events", "i8"),            # place of EVENTs in time order
    ("point", "i4"),             # kind of the decision point that stopped the run
    ("point_request", "i4"),
    ("point_engine", "i4"),
    ("num_alive", "i4"),
    ("num_arrivals", "i8"),      # attempts that have arrived
    ("ordered", "?"),            # iterations of all engines are taken in time order
    ("auto_route", "?"),         # one engine, no ROUTE points
    ("telemetry", "?"),          # somebody looks at routers' rows
    ("check", "?"),              # stop after every iteration, to check invariants
    ("records_gaps", "?"),
    ("closed_loop", "?"),        # some request arrives only after another has left
    ("over", "?"),               # the episode has ended
    ("heartbeat", "u1"),         # HEARTBEAT_NONE ...
    ("warmup_ns", "i8"),
    ("horizon_ns", "i8"),
    ("timeout_ns", "i8"),        # clients' patience, 0: without end
    ("backoff_ns", "i8"),
    ("max_retries", "i4"),
    ("num_slo_classes", "i4"),
    ("timeouts", "i8"),          # place of a ring of TIMEOUTs
    ("first_timeout", "i8"),
    ("end_timeout", "i8"),
    ("timeouts_size", "i8"),
    ("gaps", "i8"),              # place of GAPs, which Python drains
    ("num_gaps", "i4"),
    ("gaps_size", "i4"),
    ("completions", "i8"),       # place of COMPLETIONs, which Python drains; 0: not kept
    ("num_completions", "i8"),
    ("true_outputs", "i8"),      # place of NUMBERs; 0: no request comes twice
    ("families", "i8"),          # place of FAMILYs, in closed loops
    ("block_offsets", "i8"),     # place of WIDEs: where each request's block ids begin
    ("block_ids", "i8"),         # place of WIDEs
    ("sessions", "i8"),          # place of NUMBERs: session of each request; 0: there are none
    ("session_places", "i8"),    # place of SESSIONs
    ("rows", "i8"),              # place of ROWs: the router's table
    ("ring_size", "i8"),         # PUSHes that an engine's ring holds
    ("push_interval_ns", "i8"),
    ("push_delay_ns", "i8"),
    ("push_loss", "i8"),         # probability in 2^-32
    ("heartbeat_interval_ns", "i8"),
    ("scrape_interval_ns", "i8"),
    ("rows_size", "i8"),         # numbers in it
    ("state", "i8"),             # place of an EngineStateField vector, for environments
    ("state_size", "i8"),
    ("request_vector", "i8"),    # place of a RequestField vector, for environments
    ("request_vector_size", "i8"),
    ("router", ROUTER.dtype),    # decides at arrivals, unless a policy does
    ("seen_now_ns", "i8"),       # what an environment has reported: time
    ("seen_met", "i8"),          # and requests within their SLOs
])  # fmt: skip
"""The world: traffic, clients, events and engines on one clock."""

OBJECTIVE = Layout("Objective", [("ttft_ns", "i8"), ("tpot_ns", "i8"), ("e2e_ns", "i8")])
"""Limits of an SLO class, -1 where it declares none."""
RETURN = Layout("Return", [("at_ns", "i8"), ("request", "i8")])
TIMEOUT = Layout("Timeout", [("at_ns", "i8"), ("request", "i4"), ("attempt", "i4")])
EVENT = Layout("Event", [("at_ns", "i8"), ("value", "i8"), ("kind", "i4"), ("engine", "i4")])
EVENT_DOWN, EVENT_UP, EVENT_SLOWDOWN, EVENT_LOSE = 0, 1, 2, 3
GAP = Layout("Gap", [("ns", "i8"), ("count", "i8")])
FAMILY = Layout("Family", [
    ("think_ns", "i8"),          # from the parent's end to the arrival; -1: it has no parent
    ("first_child", "i4"),
    ("next_sibling", "i4"),
])  # fmt: skip
SESSION = Layout("Session", [("at_ns", "i8"), ("engine", "i8")])
"""Where and when the last request of a session was sent."""
COMPLETION = Layout("Completion", [
    ("now_ns", "i8"),
    ("engine", "i8"),
    ("request", "i8"),
    ("outcome", "i8"),
    ("first_token_ns", "i8"),
    ("emitted", "i8"),
    ("arrival_ns", "i8"),
])  # fmt: skip

# Reasons for which the compiled loop returns, beside the public points.
POINT_GAPS_FULL = 3
POINT_CHECK = 4
