"""What engines tell routers (`docs/telemetry.md`), on episodes to be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from synergy_gym.latency.clock import StepTerms
from synergy_gym.latency.models.published import published_advert
from synergy_gym.scenario import load_scenario
from synergy_gym.sim.build import build_simulator
from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.plain.telemetry import PUSH_COLUMNS, Mode
from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.types import (
    ADVERT_TERMS,
    NS_PER_S,
    SLO,
    BatchDecision,
    DecisionRule,
    EngineAdvert,
    PushedState,
    RouterRow,
    TelemetrySpec,
)
from synergy_gym.workload.base import make_workload
from tests.strategies import SIMULATORS, spec

STEP_MS = 10
EVERY_STEP = TelemetrySpec(push_interval_s=0.0)
TERMS = tuple(float(i + 1) for i in range(len(ADVERT_TERMS)))
MODEL = EngineAdvert(capacity=3884.4, peak_tps=38844.0, step_ms=TERMS)


@dataclass
class Watch:
    """What a router saw of engine 0 at each instant (ms) at which a request arrived."""

    at_ms: list[float] = field(default_factory=list)
    pushed: list[PushedState] = field(default_factory=list)

    def __getitem__(self, at_ms: float) -> dict[str, Any]:
        """The state seen at that instant: plain numbers."""
        state = self.pushed[self.at_ms.index(at_ms)]
        names = ("running", "pending_tokens", "predicted_step_s", "mode", "capacity", "peak_tps")
        values = {name: getattr(state, name)[0].item() for name in names}
        return values | {"step_ms": tuple(state.step_ms[0].tolist()), "age_s": state.age_s[0]}


def watch(
    simulator: type,
    arrivals: list[tuple[float, int, int]],
    telemetry: TelemetrySpec = EVERY_STEP,
    *,
    decisions: list[BatchDecision] | None = None,
    **arguments: Any,
) -> Watch:
    """Play (arrival ms, prompt, output) on one engine with steps of 10 ms; see every arrival."""
    at, prompt, output = zip(*arrivals, strict=True)
    rules = [DecisionRule(2048)] if decisions is None else None
    sim = simulator(
        engines=[spec(max_num_batched_tokens=2048, kv_blocks=1000)],
        clocks=[StepTerms(base_ms=STEP_MS).clock()],
        workload=make_workload(np.array(at) * 10**6, np.array(prompt), np.array(output)),
        slos=[SLO("any")],
        telemetry=telemetry,
        rules=rules,
        **arguments,
    )
    seen, left = Watch(), list(decisions or [])
    while (point := sim.advance()) != DONE:
        if point == BATCH:
            sim.batch(left.pop(0) if left else BatchDecision(2048))
            continue
        view = sim.cluster_view(np.random.default_rng(0), frozenset({"router", "pushed"}))
        seen.at_ms.append(sim.now_ns / 10**6)
        seen.pushed.append(view.pushed)
        sim.route(0)
    return seen


@pytest.mark.parametrize("simulator", SIMULATORS)
class TestPrediction:
    def test_heuristic_without_a_prediction(self, simulator: type) -> None:
        seen = watch(simulator, [(0, 100, 9), (15, 7, 2), (25, 7, 2)])
        assert seen[15]["predicted_step_s"] == (8_700_000 + 20_000 * 100 + 500_000) / NS_PER_S
        # The second iteration had one decode, the third (still running at 25 ms) is not seen.
        mean = ((8_700_000 + 2_000_000 + 500_000) + (8_700_000 + 20_000 + 500_000)) // 2
        assert seen[25]["predicted_step_s"] == mean / NS_PER_S

    def test_mean_of_the_last_ten_predictions(self, simulator: type) -> None:
        said = [BatchDecision(99, advert=EngineAdvert(predicted_step_s=i / 1e3)) for i in range(12)]
        seen = watch(simulator, [(0, 9, 13), (31, 9, 1), (125, 9, 1)], decisions=said)
        assert seen[31]["predicted_step_s"] == pytest.approx((0 + 1 + 2) / 3e3)
        assert seen[125]["predicted_step_s"] == pytest.approx(sum(range(2, 12)) / 10e3)

    def test_a_prediction_holds_for_its_own_iteration(self, simulator: type) -> None:
        said = [BatchDecision(99, advert=EngineAdvert(predicted_step_s=0.5)), BatchDecision(99)]
        seen = watch(simulator, [(0, 9, 3), (25, 9, 1)], decisions=said)
        assert seen[25]["predicted_step_s"] == (500_000_000 + 9_220_000) // 2 / NS_PER_S

    def test_an_empty_iteration_does_not_count(self, simulator: type) -> None:
        said = [
            BatchDecision(99, token_caps=np.array([0]), advert=EngineAdvert(predicted_step_s=9.0))
        ]
        seen = watch(simulator, [(0, 9, 3), (12, 9, 1), (24, 9, 1)], decisions=said)
        assert (seen[12]["predicted_step_s"], seen[12]["mode"]) == (0.0, Mode.BALANCED)
        # It lasts until the next arrival; the iteration after it serves both.
        assert seen[24]["predicted_step_s"] == (8_700_000 + 360_000 + 1_000_000) / NS_PER_S


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize(
    ("tokens", "mode"),
    [
        (255, Mode.LATENCY_OPTIMIZED),
        (256, Mode.BALANCED),
        (1024, Mode.BALANCED),
        (1025, Mode.THROUGHPUT_OPTIMIZED),
    ],
)
def test_mode_by_mean_tokens(simulator: type, tokens: int, mode: Mode) -> None:
    seen = watch(simulator, [(0, tokens, 1), (11, 5, 1)])
    assert seen[11]["mode"] == mode


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_mode_is_the_mean_of_ten_steps(simulator: type) -> None:
    """1500 + 9 decodes: throughput, then below 1024 and below 256 on average, then all decodes."""
    seen = watch(simulator, [(0, 1500, 15), (11, 3, 1), (31, 3, 1), (61, 3, 1)])
    assert [seen[at]["mode"] for at in (11, 31, 61)] == [2, 1, 0]


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_pending_tokens_count_decodes_and_prefills(simulator: type) -> None:
    """At the end of a step: 1 per decode, the rest of prompts, whole prompts that wait."""
    said = [BatchDecision(10)] * 9
    seen = watch(simulator, [(0, 8, 9), (5, 30, 5), (22, 5, 1)], decisions=said)
    assert seen[22]["pending_tokens"] == 1 + (30 - 9)


@pytest.mark.parametrize("simulator", SIMULATORS)
class TestAdvert:
    def test_start_up_message_carries_the_model_alone(self, simulator: type) -> None:
        first = watch(simulator, [(0, 9, 1)], adverts=[MODEL])[0]
        assert first["peak_tps"] == 38844.0
        assert first["step_ms"] == TERMS
        told = [first[name] for name in ("predicted_step_s", "mode", "pending_tokens", "capacity")]
        assert told == [0.0, Mode.LATENCY_OPTIMIZED, 0.0, 0.0]

    def test_a_rule_publishes_what_it_was_started_with(self, simulator: type) -> None:
        seen = watch(simulator, [(0, 9, 3), (11, 9, 1)], adverts=[MODEL])[11]
        assert (seen["capacity"], seen["peak_tps"]) == (3884.4, 38844.0)
        assert seen["step_ms"] == TERMS

    def test_zeros_without_an_advert(self, simulator: type) -> None:
        seen = watch(simulator, [(0, 9, 3), (11, 9, 1)])[11]
        assert (seen["capacity"], seen["peak_tps"]) == (0.0, 0.0)
        assert seen["step_ms"] == (0.0,) * len(ADVERT_TERMS)

    def test_what_a_decision_leaves_out_stays(self, simulator: type) -> None:
        said = [
            BatchDecision(99),
            BatchDecision(99, advert=EngineAdvert(capacity=7.0)),
            BatchDecision(99, advert=EngineAdvert(step_ms=TERMS[::-1])),
        ]
        arrivals = [(0, 9, 9), (12, 9, 1), (22, 9, 1), (32, 9, 1)]
        seen = watch(simulator, arrivals, decisions=said, adverts=[MODEL])
        assert [seen[at]["capacity"] for at in (12, 22, 32)] == [3884.4, 7.0, 7.0]
        assert [seen[at]["peak_tps"] for at in (12, 22, 32)] == [38844.0] * 3
        assert [seen[at]["step_ms"] for at in (12, 22, 32)] == [TERMS, TERMS, TERMS[::-1]]

    def test_decisions_hash_alike_with_and_without(self, simulator: type) -> None:
        hashes = set()
        for advert in (None, MODEL, EngineAdvert(predicted_step_s=1.0)):
            sim = simulator(
                engines=[spec(), spec()],
                clocks=[StepTerms(base_ms=STEP_MS, noise_sd=0.05).clock(i) for i in range(2)],
                workload=make_workload(np.arange(9) * 10**6, np.full(9, 50), np.full(9, 5)),
                slos=[SLO("any")],
                adverts=[advert if advert is MODEL else None, None],
            )
            while (point := sim.advance()) != DONE:
                if point == BATCH:
                    sim.batch(BatchDecision(64, advert=advert))
                else:
                    sim.route(sim.point_request % 2)
            hashes.add(sim.log_hash())
        assert len(hashes) == 1

    @pytest.mark.parametrize(
        ("advert", "message"),
        [
            (EngineAdvert(predicted_step_s=-1.0), r"advert.predicted_step_s is -1.0"),
            (EngineAdvert(predicted_step_s=float("nan")), "advert.predicted_step_s is nan"),
            (EngineAdvert(capacity=float("inf")), "advert.capacity is inf"),
            (EngineAdvert(peak_tps=1e13), "advert.peak_tps is .* 0..1e"),
            (EngineAdvert(step_ms=(1.0, 2.0)), "has 2 coefficients; give 9"),
            (EngineAdvert(step_ms=(*TERMS[:-1], -0.1)), r"step_ms \(floor_ms\) is -0.1"),
            (EngineAdvert(step_ms=(None, *TERMS[1:])), r"step_ms \(base_ms\) is None"),  # type: ignore[arg-type]
            (EngineAdvert(capacity="big"), "advert.capacity is 'big'"),  # type: ignore[arg-type]
            ("model", "give an EngineAdvert"),
        ],
    )
    def test_what_cannot_be_published_is_refused(
        self, simulator: type, advert: Any, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            watch(simulator, [(0, 9, 3)], decisions=[BatchDecision(99, advert=advert)])
        with pytest.raises(ValueError, match=message):
            watch(simulator, [(0, 9, 3)], adverts=[advert])

    def test_adverts_fit_the_engines(self, simulator: type) -> None:
        with pytest.raises(ValueError, match="2 adverts for 1 engines"):
            watch(simulator, [(0, 9, 3)], adverts=[None, None])
        with pytest.raises(ValueError, match="engine 0 starts with predicts a step"):
            watch(simulator, [(0, 9, 3)], adverts=[EngineAdvert(predicted_step_s=0.1)])


@pytest.mark.parametrize("simulator", SIMULATORS)
class TestHeartbeats:
    """An engine that is busy for 5 s, looked at every 10 ms, with pushes every 200 ms."""

    def seen(self, simulator: type, heartbeat: Any) -> Watch:
        looks: list[tuple[float, int, int]] = [(at + 5.0, 1, 1) for at in range(10, 5000, 10)]
        telemetry = TelemetrySpec(heartbeat=heartbeat)
        return watch(simulator, [(0, 9, 500), *looks], telemetry, adverts=[MODEL])

    def idle_looks(self, seen: Watch) -> list[float]:
        """When the busy engine looked idle (ms), the start-up message left out."""
        vectors = [seen[at] for at in seen.at_ms]
        idle = [v["running"] + v["pending_tokens"] + v["capacity"] == 0 for v in vectors]
        return [at for at, is_idle in zip(seen.at_ms, idle, strict=True) if is_idle and at > 100]

    def test_overwrite_shows_a_busy_engine_idle(self, simulator: type) -> None:
        """The authors' defect: once per 2 s, from the heartbeat to the next push."""
        idle = self.idle_looks(self.seen(simulator, "overwrite"))
        beats = {2000.0: 0, 4000.0: 0}
        for at in idle:
            beats[at // 2000 * 2000] += 1
            assert at % 2000 <= 200 + 2 * STEP_MS, "the next push ends it"
        assert all(1 <= count <= 22 for count in beats.values())

    def test_an_idle_look_keeps_the_model(self, simulator: type) -> None:
        seen = self.seen(simulator, "overwrite")
        at = self.idle_looks(seen)[0]
        told = [seen[at][name] for name in ("predicted_step_s", "mode", "capacity")]
        assert told == [0.0, Mode.LATENCY_OPTIMIZED, 0.0]
        assert seen[at]["peak_tps"] == MODEL.peak_tps
        assert seen[at]["step_ms"] == TERMS

    @pytest.mark.parametrize("heartbeat", ["idle-only", "none"])
    def test_other_modes_never_do(self, simulator: type, heartbeat: str) -> None:
        assert self.idle_looks(self.seen(simulator, heartbeat)) == []

    @pytest.mark.parametrize(("heartbeat", "idle"), [("idle-only", True), ("none", False)])
    def test_an_idle_engine_says_so_or_stays_silent(
        self, simulator: type, heartbeat: Any, idle: bool
    ) -> None:
        """A push at 10 ms shows one decode; idle from 20 ms on, so a heartbeat at 2020 ms."""
        telemetry = TelemetrySpec(heartbeat=heartbeat)
        before, then = (
            watch(simulator, [(0, 9, 2), (at, 9, 1)], telemetry)[at] for at in (2019, 2020)
        )
        assert before["running"] == 1
        assert then["running"] == (0 if idle else 1)


def test_pushes_lie_as_the_rows_say() -> None:
    assert L.PUSH.size == 8 * len(PUSH_COLUMNS)
    *told, model = L.PUSH.dtype.names or ()
    columns = [RouterRow(i).name.removeprefix("PUSH_").lower() for i in PUSH_COLUMNS]
    assert ["ns", *told[1:]] == columns[: len(told)]
    assert PUSH_COLUMNS[len(told)] == L.MODEL_COLUMN == RouterRow.PUSH_PEAK_MILLITPS
    assert model == "model"
    names = [column.name for column in RouterRow][RouterRow.PUSH_BASE_FS :]
    assert names == [f"PUSH_{term.removesuffix('_ms').upper()}_FS" for term in ADVERT_TERMS]


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_engines_start_with_the_fit_published_for_them(simulator: type) -> None:
    scenario = load_scenario("hetero-3")
    sim = build_simulator(scenario, workload=make_workload([0], [9], [9]), cls=simulator)
    sim.advance()
    pushed = sim.cluster_view(np.random.default_rng(0), frozenset({"pushed"})).pushed
    adverts = [published_advert(engine) for engine in scenario.engines]
    assert pushed.peak_tps == pytest.approx([a.peak_tps for a in adverts if a], abs=1e-3)
    assert pushed.step_ms == pytest.approx(np.array([a.step_ms for a in adverts if a]), abs=1e-9)
    assert pushed.capacity.tolist() == [0, 0, 0]
