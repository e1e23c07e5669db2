"""Both simulators refuse, in the same words, what no episode can be made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numba import njit

from synergy_gym.latency.clock import SLOW, UNIT, StepTerms, _times_kernel, step_ns, step_ns_kernel
from synergy_gym.limits import MOST_FACTOR, MOST_NS, MOST_RETRIES, MOST_S
from synergy_gym.metrics import slo_met
from synergy_gym.scenario import NO_DEADLINE_NS, stop_time_ns
from synergy_gym.seeding import policy_stream
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import (
    SLO,
    BatchDecision,
    ClientSpec,
    DecisionRule,
    Event,
    Outcome,
    RequestRecords,
    RouterRule,
    TelemetrySpec,
)
from synergy_gym.workload.base import Content, Workload, make_workload
from tests.sim.test_equivalence import same
from tests.strategies import SIMULATORS, choose, give, spec

TERMS = StepTerms(base_ms=5, per_token_ms=0.01, per_decode_context_ms=1e-5)
RULE = DecisionRule(token_budget=512)


def traffic(count: int = 5, prompt: int = 20, output: int = 20, **more: Any) -> Workload:
    arrivals = more.pop("arrival_ns", np.arange(count) * 10**7)
    lengths = np.full(count, prompt), np.full(count, output)
    return make_workload(arrivals, *lengths, **more)


def cluster(count: int) -> dict[str, Any]:
    return {"engines": tuple(spec(name=f"e{i}") for i in range(count))}


def build(simulator: type, **changes: Any) -> Any:
    """A small episode, by default of one engine; engines follow a rule."""
    specs = changes.pop("engines", cluster(1)["engines"])
    terms = changes.pop("terms", TERMS)
    arguments: dict[str, Any] = {
        "engines": specs,
        "clocks": tuple(terms.clock(i) for i in range(len(specs))),
        "workload": traffic(),
        "slos": (SLO("a", ttft_s=1.0, tpot_s=0.1),),
        "rules": [RULE] * len(specs),
    }
    return simulator(**(arguments | changes))


def played(sim: Any, seed: int = 0) -> Any:
    """The episode with random answers."""
    rng = random.Random(seed)
    while (point := sim.advance()) != DONE:
        give(sim, point, choose(sim, point, rng))
    return sim


def both_play(seed: int = 0, **changes: Any) -> Any:
    """Both simulators play it alike; the records."""
    runs = [played(build(simulator, **changes), seed) for simulator in SIMULATORS]
    assert runs[0].log_hash() == runs[1].log_hash()
    assert runs[0].met() == runs[1].met()
    same(runs[0].records(), runs[1].records(), "records")
    return runs[0].records()


def both_refuse(match: str, **changes: Any) -> None:
    for simulator in SIMULATORS:
        with pytest.raises(ValueError, match=match):
            build(simulator, **changes)


# -- what is refused where it is written down ------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SLO("a", tpot_s=1e9), r"SLO 'a': tpot_s is 1000000000.0; .* 315,360,000"),
        (lambda: SLO("a", ttft_s=float("inf")), "SLO 'a': ttft_s is inf"),
        (lambda: SLO("a", e2e_s=True), "SLO 'a': e2e_s is True"),
        (lambda: SLO("a", e2e_s=np.float64("nan")), "SLO 'a': e2e_s is nan"),
        (lambda: ClientSpec(timeout_s=9.2e9), "client: timeout_s is 9200000000.0; give"),
        (lambda: ClientSpec(backoff_s=-1.0), "client: backoff_s is -1.0; give 0 or more"),
        (lambda: ClientSpec(max_retries=65535), "max_retries is 65535; .* from 0 to 65,534"),
        (lambda: ClientSpec(max_retries=1.5), "max_retries is 1.5"),  # type: ignore[arg-type]
        (lambda: TelemetrySpec(push_delay_s=1e9), "telemetry: push_delay_s is 1000000000.0"),
        (lambda: TelemetrySpec(push_loss=1.5), "telemetry: push_loss is 1.5; give a share"),
        (lambda: TelemetrySpec(heartbeat="x"), "heartbeat is 'x'; choose"),  # type: ignore[arg-type]
        (lambda: Event(1e10, "down", 0), "event: at_s is 10000000000.0; give"),
        (lambda: Event(1.0, "down", -1), "event at 1 s: engine is -1; give the index"),
        (lambda: Event(1.0, "down", 0.5), "engine is 0.5"),  # type: ignore[arg-type]
        (lambda: Event(1.0, "slowdown", 0, factor=1e9), "factor is 1000000000.0; .* 1,000,000"),
        (lambda: Event(1.0, "slowdown", 0, factor=float("nan")), "factor is nan"),
        (lambda: Event(1.0, "slowdown", 0, factor=-1.0), "factor is -1.0"),
        (lambda: Event(1.0, "lose_blocks", 0, blocks=-5), "blocks is -5; give a number"),
        (lambda: Event(1.0, "sleep", 0), "kind is 'sleep'; choose one of"),  # type: ignore[arg-type]
        (lambda: StepTerms(base_ms=1e7), "base_ms is 10000000.0; an iteration lasts at most"),
        (lambda: StepTerms(base_ms=1, straggler_factor=1e9), "straggler_factor is 1000000000.0"),
    ],
)  # fmt: skip
def test_a_number_is_refused_where_it_is_given(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_limits_themselves_are_legal() -> None:
    SLO("a", ttft_s=MOST_S, tpot_s=MOST_S, e2e_s=0)
    client = ClientSpec(timeout_s=MOST_S, max_retries=MOST_RETRIES, backoff_s=MOST_S)
    assert client.max_retries == 65_534
    Event(MOST_S, "slowdown", 0, factor=MOST_FACTOR)


def test_numpy_scalars_are_numbers() -> None:
    """They are kept as Python's: uint8 would wrap at 255 + 1."""
    client = ClientSpec(np.float32(0.5), np.uint8(255), np.int64(1))  # type: ignore[arg-type]
    assert [type(x) for x in (client.timeout_s, client.max_retries)] == [float, int]
    assert client.max_retries + 1 == 256
    event = Event(np.float64(0.1), "down", np.int8(0), blocks=np.uint64(3))  # type: ignore[arg-type]
    assert (type(event.engine), type(event.blocks)) == (int, int)
    narrow = spec(max_num_seqs=np.int16(8), max_model_len=np.int16(4096), kv_blocks=np.uint8(200))
    wide = spec(max_num_seqs=8, max_model_len=4096, kv_blocks=200)
    assert narrow == wide
    slos = (SLO("a", ttft_s=np.float32(1.0)),)
    both_play(engines=(narrow,), client=client, events=(event,), slos=slos, auto_route=True)


# -- what only the whole episode can tell ----------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_blocks": 2**31}, "engine 'e': kv_blocks is 2147483648; give .* 2,147,483,647"),
        ({"max_model_len": 2**31}, "engine 'e': max_model_len is 2147483648"),
        ({"watermark_blocks": 2**31}, "engine 'e': watermark_blocks is 2147483648"),
        ({"watermark_blocks": -5}, "engine 'e': watermark_blocks is -5"),
        ({"block_size": 2**31}, "engine 'e': block_size is 2147483648; give .* 1,048,576"),
        ({"max_num_seqs": 2**21}, "engine 'e': max_num_seqs is 2097152"),
        ({"kv_blocks": 0}, "engine 'e': kv_blocks is 0; give a whole number from 1"),
        ({"kv_blocks": 10.5}, "engine 'e': kv_blocks is 10.5"),
        ({"kv_blocks": True}, "engine 'e': kv_blocks is True"),
    ],
)
def test_an_engine_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    both_refuse(said, engines=(spec(name="e", **changes),))


def test_an_event_of_an_engine_that_is_not_there() -> None:
    for engine in (1, 7, 10**6):
        both_refuse(
            f"names engine {engine} of 1; choose 0..0", events=(Event(0.1, "down", engine),)
        )


def test_slo_classes_must_be_declared() -> None:
    both_refuse(r"row 1: slo_class is 1, and 1 SLO classes", workload=traffic(2, slo_class=[0, 1]))
    wrong = replace(traffic(2), slo_class=np.array([-1, 0]))
    both_refuse("row 0: slo_class is -1; classes count from 0", workload=wrong)


def test_times_and_messages_have_an_end() -> None:
    for name in ("warmup_ns", "horizon_ns", "stop_ns"):
        both_refuse(f"{name} is 9223372036854775808", **{name: 2**63})
    far = TelemetrySpec(push_delay_s=MOST_S)
    both_refuse("push_delay_s is 315360000.0: over 524,288", telemetry=far)


def test_content_must_be_a_tree() -> None:
    for name, wrong in (("leaf", [0, 9]), ("parent", [0]), ("start", [-1])):
        tree = {"leaf": [0, 0], "parent": [-1], "start": [0], name: wrong}
        content = Content(**{key: np.array(value) for key, value in tree.items()})
        with pytest.raises(ValueError, match=rf"workload content: {name}\["):
            traffic(2, content=content)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (RouterRule("foo"), "kind is 'foo'; choose one of round-robin"),  # type: ignore[arg-type]
        (RouterRule("weighted"), r"weights is \(\); give 3 finite numbers"),
        (RouterRule("weighted", weights=(1.0, 1.0)), "give 3 finite"),
        (RouterRule("weighted", weights=(1.0,) * 4), "give 3 finite"),
        (RouterRule("weighted", weights=(0.0,) * 3), "not all zero"),
        (RouterRule("weighted", weights=(1.0, -3.0, 1.0)), "-3.0"),
        (RouterRule("weighted", weights=(1.0, float("nan"), 1.0)), "nan"),
        (RouterRule("weighted", weights=(1.0, float("inf"), 1.0)), "inf"),
        (RouterRule("weighted", weights=(1e308,) * 3), "finite"),
        (RouterRule("session", place_of=int), "owners is empty; give engines of 0..2"),
        (RouterRule("session", owners=(0, 7), place_of=int), "owners has 7"),
        (RouterRule("session", owners=(0, 10**6), place_of=int), "owners has 1000000"),
        (RouterRule("session", owners=(-1,), place_of=int), "owners has -1"),
        (RouterRule("session", owners=(0, True), place_of=int), "owners has True"),
        (RouterRule("session", owners=(0, 1, 2)), "place_of is None"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_route(rule: RouterRule, said: str) -> None:
    both_refuse(f"router rule: .*{said}", **cluster(3), router=(rule, policy_stream(1)))


def test_a_place_must_be_a_number() -> None:
    rule = RouterRule("session", owners=(0, 1), place_of=lambda s: s / 2)  # type: ignore[return-value]
    for simulator in SIMULATORS:
        with pytest.raises(ValueError, match=r"place_of\(3\) is 1.5; return a whole number"):
            played(
                build(
                    simulator,
                    **cluster(2),
                    workload=traffic(2, session=[3, 3]),
                    router=(rule, policy_stream(1)),
                )
            )


def test_places_are_counted_round_the_ring(seed: int) -> None:
    rng = random.Random(seed)
    places = [rng.choice([-1, 1]) * rng.randrange(1 << 40) for _ in range(7)]
    rule = RouterRule("session", owners=(0, 1, 2, 1), place_of=lambda s: places[s])
    both_play(
        seed,
        **cluster(3),
        workload=traffic(30, session=np.arange(30) % 7),
        router=(rule, policy_stream(seed)),
        events=(Event(0.05, "down", 1), Event(0.1, "up", 1)),
    )


def test_some_owner_must_stay_up() -> None:
    rule, up = RouterRule("session", owners=(0,), place_of=int), policy_stream(1)
    work = traffic(session=np.arange(5))
    both_play(**cluster(2), workload=work, router=(rule, up), events=(Event(0.02, "down", 1),))
    events = (Event(0.02, "down", 0),)
    both_refuse(
        "owners leaves out engine 1", **cluster(2), workload=work, router=(rule, up), events=events
    )


# -- numbers that must not wrap --------------------------------------------------------


def test_a_session_may_have_any_number() -> None:
    """Also one that a table by number could not hold."""
    ids = [2**33, -5, 7, 2**33, 2**62]
    records = both_play(**cluster(2), workload=traffic(session=ids))
    assert records.session.tolist() == ids
    shown = []
    for simulator in SIMULATORS:
        sim = build(simulator, **cluster(2), workload=traffic(session=ids))
        seen = []
        while sim.advance() == ROUTE:
            cluster_view = sim.cluster_view(policy_stream(0), frozenset())
            seen.append((sim.request_view().session, cluster_view.session_engine))
            sim.route(1)
        shown.append(seen)
    assert shown[0] == shown[1]
    assert [engine for _, engine in shown[0]] == [-1, -1, -1, 1, -1]


@pytest.mark.parametrize("tpot_s", [1.0, 1e8, MOST_S])
def test_a_generous_objective_is_met(tpot_s: float) -> None:
    slos = (SLO("a", ttft_s=100.0, tpot_s=tpot_s),)
    work = traffic(output=200)
    records = both_play(slos=slos, workload=work, auto_route=True)
    assert slo_met(records, slos).slo.all()
    sims = [played(build(s, slos=slos, workload=work, auto_route=True)) for s in SIMULATORS]
    assert [sim.met() for sim in sims] == [5, 5]
    assert stop_time_ns(work, slos, 10.0) <= NO_DEADLINE_NS
    if tpot_s == 1.0:
        assert stop_time_ns(work, slos, 10.0) == (40_000_000 + 10**9 * (100 + 199))


def test_an_objective_is_compared_exactly(rng: np.random.Generator) -> None:
    """Also at the very nanosecond at which it is missed."""
    n = 1000
    tokens, tpot = rng.integers(1, 50, n), int(rng.integers(1, 10**6))
    finish = np.where(tokens > 1, tpot * (tokens - 1) + rng.integers(-2, 3, n), 0)
    zeros = np.zeros(n, np.int64)
    columns = dict.fromkeys(RequestRecords.__dataclass_fields__, zeros)
    columns |= {"finish_ns": finish, "emitted_tokens": tokens, "outcome": zeros + Outcome.FINISHED}
    met = slo_met(RequestRecords(**columns), (SLO("a", tpot_s=tpot / 1e9),))
    wanted = [f <= tpot * (t - 1) for f, t in zip(finish.tolist(), tokens.tolist(), strict=True)]
    assert met.tpot.tolist() == wanted


QUIET = TelemetrySpec(scrape_interval_s=1e8, heartbeat="none")
"""For episodes that last years: nobody reads the metrics every ten seconds."""


def test_late_timeouts_and_backoffs_do_not_wrap() -> None:
    client = ClientSpec(timeout_s=MOST_S, max_retries=2, backoff_s=MOST_S)
    work = traffic(2, arrival_ns=[0, MOST_NS])
    records = both_play(client=client, workload=work, auto_route=True, telemetry=QUIET)
    assert (records.outcome == Outcome.FINISHED).all()
    impatient = replace(client, timeout_s=0.01)
    both_play(client=impatient, workload=traffic(output=50), auto_route=True, telemetry=QUIET)


def test_many_retries_are_counted() -> None:
    client = ClientSpec(max_retries=MOST_RETRIES, backoff_s=1e-6)
    records = both_play(
        client=client, workload=traffic(1), auto_route=True, events=(Event(0.0, "down", 0),)
    )
    assert records.attempts.tolist() == [MOST_RETRIES + 1]
    assert records.outcome.tolist() == [Outcome.FAILED]


def test_the_slowest_step_does_not_wrap() -> None:
    events = (Event(0.01, "slowdown", 0, factor=MOST_FACTOR),)
    both_play(events=events, auto_route=True, telemetry=QUIET)
    slow = StepTerms(base_ms=1e6, noise_sd=0.2, straggler_probability=1.0, straggler_factor=9.0)
    both_play(terms=slow, workload=traffic(2), auto_route=True, telemetry=QUIET)


def test_an_iteration_that_never_ends_is_refused() -> None:
    wide = spec(max_num_seqs=4, max_model_len=2**30, kv_blocks=2**13, block_size=2**17)
    both_refuse(
        r"by its clock an iteration can last .* s, more than 3,600 s; lower the clock's terms",
        engines=(wide,),
        terms=StepTerms(base_ms=5, per_prefill_pair_ms=1e-1),
        workload=traffic(1, 2**27, 3),
    )
    both_refuse(
        "with its stragglers and a slowdown of factor 1e.06 an iteration can last",
        terms=StepTerms(base_ms=1e6, straggler_probability=0.1, straggler_factor=1e6),
        events=(Event(0.1, "slowdown", 0, factor=MOST_FACTOR),),
    )


def test_products_beyond_int64_are_exact(rng: np.random.Generator) -> None:
    times = njit(lambda ns, factor: _times_kernel(ns, factor))
    for _ in range(300):
        ns = int(rng.integers(0, 1 << int(rng.integers(1, 44))))
        most = min(MOST_NS * UNIT // max(ns, 1), round(MOST_FACTOR * UNIT))
        factor = int(rng.integers(0, most + 1))
        assert times(np.int64(ns), np.int64(factor)) == ns * factor >> 20


# -- block sizes -----------------------------------------------------------------------


def content(requests: int) -> Content:
    return Content(np.arange(requests) % 5, np.full(5, -1), np.zeros(5, np.int64))


@pytest.mark.parametrize(("first", "second"), [(64, 4), (4, 64), (1024, 1), (16, 16)])
def test_blocks_have_the_size_of_the_engines_that_cache(first: int, second: int) -> None:
    plain = spec(name="a", block_size=first, kv_blocks=2000)
    caching = spec(name="b", block_size=second, kv_blocks=2000, prefix_caching=True)
    for engines in ((plain, caching), (caching, plain)):
        for tree in (None, content(30)):
            work = traffic(30, 200, 10, content=tree)
            records = both_play(engines=engines, workload=work)
            assert tree is not None or not records.cached_tokens.any()


@pytest.mark.parametrize("sizes", [(64, 4), (4, 64)])
def test_routers_see_blocks_of_the_first_engine(sizes: tuple[int, int]) -> None:
    engines = tuple(
        spec(name=str(i), block_size=size, kv_blocks=2000, prefix_caching=bool(i))
        for i, size in enumerate(sizes)
    )
    work, shown = traffic(9, 200, 10, content=content(9)), []
    for simulator in SIMULATORS:
        sim, seen = build(simulator, engines=engines, workload=work), []
        while sim.advance() == ROUTE:
            seen.append(sim.request_view().block_hashes.tolist())
            sim.route(0)
        shown.append(seen)
    assert shown[0] == shown[1]
    assert {len(hashes) for hashes in shown[0]} == {200 // sizes[0]}


def test_caching_engines_share_a_block_size() -> None:
    engines = tuple(spec(name=f"e{n}", block_size=n, prefix_caching=True) for n in (16, 32))
    both_refuse("engines 'e16' and 'e32' cache prefixes in blocks of 16 and 32", engines=engines)


# -- decisions and views ---------------------------------------------------------------


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_no_engine_has_such_an_index(simulator: type) -> None:
    sim = build(simulator, **cluster(2))
    for engine in (-1, 2, 99, 10**9):
        for view in (sim.engine_state, sim.engine_view):
            with pytest.raises(IndexError, match=rf"engine {engine} does not exist; choose 0..1"):
                view(engine)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_decisions_beyond_int64_are_refused(simulator: type) -> None:
    sim = build(simulator, rules=None, auto_route=True)
    assert sim.advance() == BATCH
    with pytest.raises(ValueError, match="prefill_chunk is 9223372036854775808; use 0"):
        sim.batch(BatchDecision(512, None, 2**63))
    caps = np.array([2**63 + 5], np.uint64)
    with pytest.raises(ValueError, match="token_caps must hold"):
        sim.batch(BatchDecision(512, token_caps=caps))  # type: ignore[arg-type]
    sim.batch(BatchDecision(512, None, 2**63 - 1))
    rule = DecisionRule(token_budget=512, prefill_chunk=2**63)
    with pytest.raises(ValueError, match="prefill_chunk is 9223372036854775808; use 0"):
        build(simulator, rules=[rule])


def test_records_while_an_episode_lasts(seed: int) -> None:
    """What is not decided yet is pending; what will never arrive is not."""
    after = np.array([-1, 0, 1, 1, -1, 4, 5, -1])
    arrivals = np.array([0, 10**6, 10**6, 10**7, 10**7, 10**6, 10**12, 10**8])
    work = traffic(8, arrival_ns=arrivals, after=after)
    client = ClientSpec(timeout_s=0.1, max_retries=1)
    sims = [
        build(s, workload=work, rules=None, client=client, horizon_ns=150 * 10**6, auto_route=True)
        for s in SIMULATORS
    ]
    rng, seen = random.Random(seed), set()
    while True:
        outcomes = [sim.records().outcome.tolist() for sim in sims]
        assert outcomes[0] == outcomes[1]
        seen.update(outcomes[0])
        points = [sim.advance() for sim in sims]
        assert points[0] == points[1]
        if points[0] == DONE:
            break
        answer = choose(sims[0], points[0], rng)
        for sim in sims:
            give(sim, points[0], answer)
    assert Outcome.PENDING in seen
    last = [sim.records().outcome.tolist() for sim in sims]
    assert last[0] == last[1]
    assert Outcome.PENDING not in last[0]


def test_a_snapshot_of_another_size_is_refused() -> None:
    sim = build(SIMULATORS[0])
    blocks, *rest = sim.snapshot()
    with pytest.raises(ValueError, match="snapshot"):
        sim.restore((blocks[:1], *rest))


def test_the_kernel_times_steps_as_python(rng: np.random.Generator) -> None:
    terms = StepTerms(
        base_ms=1e6, noise_sd=0.25, straggler_probability=0.5, straggler_factor=1e4, per_token_ms=1
    )
    clock = terms.clock(int(rng.integers(1 << 30)))
    clock[SLOW] = 3 * UNIT
    kernel = njit(lambda c, step: step_ns_kernel(c, 0, step, 3, 50, 100, 10, 5, 1, 1))
    for step in range(200):
        assert kernel(clock, step) == step_ns(clock, step, 3, 50, 100, 10, 5, 1, 1)
