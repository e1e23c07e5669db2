"""Incidents: the library, the measures on made-up records, cards and their files, who passes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation.board.incident_library import (
    INCIDENTS,
    LAYERS,
    Incident,
    find_incident,
    incidents_of,
)
from synergy_gym.evaluation.board.suites import find_suite
from synergy_gym.evaluation.incidents.cards import (
    CALM,
    CARDS_FILE,
    SUITE,
    CardRow,
    calm_world,
    cards,
    incident_jobs,
    play_cards,
    read_cards,
    write_cards,
)
from synergy_gym.evaluation.incidents.measures import MEASURES, PlayedIncident
from synergy_gym.evaluation.incidents.page import cards_text, library_text, matrix
from synergy_gym.evaluation.jobs import Job
from synergy_gym.evaluation.runner import Result
from synergy_gym.evaluation.verify.cards import card_problems
from synergy_gym.scenario import list_scenarios, load_scenario
from synergy_gym.types import NS_PER_S, SLO, Outcome, RequestRecords, TelemetrySpec

WITH_CALM = [incident for incident in INCIDENTS if incident.calm is not None]

# -- the library -----------------------------------------------------------------------


def test_every_incident_scenario_is_in_the_library_and_the_suite() -> None:
    names = {name for name in list_scenarios() if name.startswith("incident-")}
    assert names == {incident.name for incident in INCIDENTS}
    assert len(names) >= 8
    for part in find_suite(SUITE).parts:
        played = {(name, load) for name, load, _ in part.cells()}
        assert played == {(incident.name, incident.load) for incident in incidents_of(part.track)}  # type: ignore[arg-type]


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.name)
def test_an_incident_can_be_judged(incident: Incident) -> None:
    world = load_scenario(incident.name)
    assert incident.layer in LAYERS
    assert (len(world.engines) > 1) == (incident.layer == "router")
    assert len({criterion.key for criterion in incident.criteria}) == len(incident.criteria) > 0
    for criterion in incident.criteria:
        assert incident.calm is not None or not MEASURES[criterion.measure].needs_calm
        assert world.warmup_s <= criterion.window_s[0] < criterion.window_s[1] <= world.horizon_s
        assert criterion.why
    assert all(url.startswith("https://github.com/") for url in incident.sources)
    assert incident.sources[0] in library_text()


@pytest.mark.parametrize("incident", WITH_CALM, ids=lambda incident: incident.name)
def test_the_calm_world_differs_in_one_thing(incident: Incident) -> None:
    world = load_scenario(incident.name)
    calm = calm_world(incident, world)
    assert calm is not None
    assert calm.hash() != world.hash()
    same = {
        "events": replace(calm, events=world.events),
        "telemetry": replace(calm, telemetry=world.telemetry),
        "cache": replace(calm, engines=world.engines),
    }
    assert set(same) == set(CALM)
    assert same[str(incident.calm)].hash() == world.hash()
    seed = world.validation_seeds[0]
    assert np.array_equal(world.workload(1.0, seed).arrival_ns, calm.workload(1.0, seed).arrival_ns)


def test_calm_worlds_have_nothing_that_could_go_wrong() -> None:
    kinds = {str(incident.calm): incident for incident in WITH_CALM}
    calm = {kind: calm_world(one, load_scenario(one.name)) for kind, one in kinds.items()}
    assert calm["events"] is not None
    assert calm["events"].events == ()
    assert calm["telemetry"] is not None
    assert calm["telemetry"].telemetry == TelemetrySpec(scrape_interval_s=1.0)
    assert calm["cache"] is not None
    assert (
        calm["cache"].engines[0].kv_blocks
        == 4 * load_scenario("incident-kv-cliff").engines[0].kv_blocks
    )
    with pytest.raises(ValueError, match="unknown incident 'incident-x'; choose one of incident-c"):
        find_incident("incident-x")


# -- measures --------------------------------------------------------------------------


def result_of(rows: list[dict[str, float]]) -> Result:
    """An episode with a TTFT objective of 1 s; rows say arrival_s, and ttft_s, engine, attempts."""
    n = len(rows)

    def column(name: str, default: float) -> np.ndarray[Any, Any]:
        return np.array([row.get(name, default) for row in rows])

    arrival_ns = (column("arrival_s", 0.0) * NS_PER_S).astype(np.int64)
    ttft_s = column("ttft_s", 0.5)
    answered = np.isfinite(ttft_s)
    first_ns = np.where(answered, arrival_ns + np.nan_to_num(ttft_s) * NS_PER_S, -1).astype(
        np.int64
    )
    outcome = np.where(answered, int(Outcome.FINISHED), int(Outcome.ABORTED))
    records = RequestRecords(
        arrival_ns=arrival_ns,
        scheduled_ns=first_ns,
        first_token_ns=first_ns,
        finish_ns=first_ns,
        prompt_tokens=np.full(n, 10),
        output_tokens=np.ones(n, np.int64),
        emitted_tokens=answered.astype(np.int64),
        cached_tokens=np.zeros(n, np.int64),
        preemptions=np.zeros(n, np.int64),
        engine=column("engine", 0).astype(np.int64),
        outcome=outcome,
        slo_class=np.zeros(n, np.int64),
        session=np.full(n, -1),
        attempts=column("attempts", 1).astype(np.int64),
    )
    window = (0, 100 * NS_PER_S)
    return Result({}, records, (SLO("one", ttft_s=1.0),), window, "hash", {}, {})


def measured(name: str, incident: list[dict[str, float]], calm: list[dict[str, float]]) -> float:
    played = PlayedIncident(result_of(incident), result_of(calm), (0.0, 20.0))
    return MEASURES[name].compute(played)


GOOD = [{"arrival_s": float(t)} for t in range(20)]


def late(*seconds: float, ttft_s: float = 2.0) -> list[dict[str, float]]:
    return [{**row, "ttft_s": ttft_s} if row["arrival_s"] in seconds else row for row in GOOD]


def test_attainment_counts_what_arrives_in_the_window() -> None:
    beyond = [*late(3.0, 4.0), {"arrival_s": 20.0, "ttft_s": 9.0}]
    assert measured("attainment", beyond, GOOD) == 0.9
    assert measured("attainment_kept", late(3.0, 4.0), late(7.0)) == pytest.approx(18 / 19)
    nothing = late(*range(20))
    assert math.isnan(measured("attainment_kept", GOOD, nothing))
    assert not MEASURES["attainment_kept"].meets(float("nan"), 0.9)


def test_recovery_ends_with_the_last_bad_slice() -> None:
    assert measured("recovery_s", GOOD, GOOD) == 0.0
    assert measured("recovery_s", late(1.0), GOOD) == 0.0  # 4 of 5 are 80 %
    assert measured("recovery_s", late(1.0, 2.0), GOOD) == 5.0
    assert measured("recovery_s", late(1.0, 2.0, 11.0, 12.0), GOOD) == 15.0
    assert measured("recovery_s", late(16.0, 17.0), GOOD) == float("inf")
    assert measured("recovery_s", late(16.0, 17.0), late(15.0, 16.0, 17.0, 18.0, 19.0)) == 0.0
    assert math.isnan(measured("recovery_s", GOOD, late(*range(20))))


def test_shares_and_retries() -> None:
    spread = [{"arrival_s": 1.0, "engine": float(engine)} for engine in (0, 0, 0, 1, 2, -1)]
    assert measured("largest_share", spread, GOOD) == 0.5
    tries = [{"arrival_s": 1.0, "attempts": float(n)} for n in (1, 2, 4, 1)]
    assert measured("retries_per_request", tries, GOOD) == 1.0
    assert MEASURES["largest_share"].meets(0.5, 0.5)
    assert not MEASURES["retries_per_request"].meets(1.01, 1.0)


def test_a_request_without_a_token_has_waited_for_ever() -> None:
    assert measured("ttft_p99_ratio", late(3.0, ttft_s=1.5), GOOD) == pytest.approx(3.0)
    assert measured("ttft_p99_ratio", late(3.0, ttft_s=float("nan")), GOOD) == float("inf")
    lonely = PlayedIncident(result_of(GOOD), None, (0.0, 20.0))
    with pytest.raises(ValueError, match="the incident has none"):
        MEASURES["ttft_p99_ratio"].compute(lonely)


# -- cards and their files -------------------------------------------------------------


def lines(values: list[float], incident: str = "incident-same-replica") -> list[CardRow]:
    one = find_incident(incident)
    (criterion,) = one.criteria
    return [
        CardRow(incident, one.layer, one.load, "vllm-v1", "mine", seed, criterion.measure, value,
                criterion.limit, value <= criterion.limit, f"hash{seed}", "")
        for seed, value in enumerate(values, 3000)
    ]  # fmt: skip


def test_the_median_seed_decides() -> None:
    (card,) = cards(lines([0.3, 0.9, 0.4]))
    (verdict,) = card.verdicts
    assert (verdict.value, verdict.worst, verdict.seeds, card.passed) == (0.4, 0.9, 3, True)
    assert not cards(lines([0.6, 0.7, 0.3]))[0].passed
    assert not cards(lines([0.3, float("nan"), 0.4]))[0].passed


def test_cards_survive_their_file(tmp_path: Path) -> None:
    rows = lines([0.25, float("inf"), float("nan"), 0.125])
    write_cards(tmp_path / CARDS_FILE, rows)
    back = read_cards(tmp_path / CARDS_FILE)
    assert repr(back) == repr(rows)
    write_cards(tmp_path / "again.csv", back)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / CARDS_FILE).read_bytes()


def test_a_page_says_who_passes() -> None:
    other = [row._replace(router_policy="worse") for row in lines([0.9])]
    found = cards([*lines([0.3]), *other])
    headings, rows = matrix(found, "router")
    assert headings == ["router policy", "passed", "same-replica"]
    assert rows == [["mine", "1", "pass"], ["worse", "0", "FAIL"]]
    text = cards_text(found, "the command")
    assert "| worse | FAIL | 0.9 (0.9) |" in text
    assert "Simulated" in text


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda t: t.replace("0.5,True", "0.6,True"), "no criterion with limit 0.6"),
        (lambda t: t.replace("0.25,0.5,True", "0.75,0.5,True"), "met is True, but the value"),
        (
            lambda t: t.replace(",hash3000", ",hash9"),
            "log_hash is hash9, that of results.csv hash3",
        ),
        (lambda t: t.replace("same-replica", "same-replicas"), "unknown incident"),
        (lambda t: t.replace("0.02", "0.05"), "at load 0.02"),
        (lambda t: t.replace(",3000,", ",3007,"), "results.csv has no such episode"),
        (lambda t: t.replace("True", "yes"), "incidents.csv:2: KeyError"),
        (lambda t: t[: t.rindex(",")], "incidents.csv:3: TypeError"),
        (lambda t: t.replace("layer,", ""), "the columns are not incident, layer"),
        (lambda t: t[: t.index("\n") + 1], "no line of largest_share"),
        (lambda t: t + t.splitlines()[1] + "\n", "there more than once"),
    ],
)
def test_every_change_of_a_file_is_found(tmp_path: Path, edit: Any, problem: str) -> None:
    rows = lines([0.25, 0.4])
    path = tmp_path / CARDS_FILE
    played = [
        {"scenario": row.incident, "load": row.load, "seed": row.seed, "log_hash": row.log_hash}
        | {"engine_policy": row.engine_policy, "router_policy": row.router_policy}
        for row in rows
    ]
    assert list(card_problems(tmp_path, played)) == []
    write_cards(path, rows)
    assert list(card_problems(tmp_path, played)) == []
    path.write_text(edit(path.read_text()))
    found = list(card_problems(tmp_path, played))
    assert any(problem in line for line in found), found


def test_lines_of_other_criteria_make_no_card() -> None:
    with pytest.raises(ValueError, match="0 lines of largest_share"):
        cards([row._replace(measure="attainment") for row in lines([0.3])])
    with pytest.raises(ValueError, match="2 lines of largest_share"):
        cards([*lines([0.3]), *lines([0.3])])
    extra = lines([0.3])[0]._replace(measure="attainment")
    with pytest.raises(ValueError, match="lines of other criteria"):
        cards([*lines([0.3]), extra])


# -- who passes ------------------------------------------------------------------------

KNOWN = {
    "incident-cold-restart": ("least-outstanding", "preble"),
    "incident-cold-start-herd": ("round-robin", "prism-ref"),
    "incident-death-spiral": ("least-outstanding", "weighted"),
    "incident-fewer-blocks": ("sarathi-512", "vllm-v1"),
    "incident-hot-prefix": ("round-robin", "preble"),
    "incident-kv-cliff": ("shortest-prompt", "vllm-v1"),
    "incident-lost-telemetry": ("round-robin", "prism-ref"),
    "incident-resend-livelock": ("lens-plus", "vllm-v1"),
    "incident-same-replica": ("round-robin", "least-outstanding"),
    "incident-slow-engine": ("least-outstanding", "round-robin"),
    "incident-stuck-counter": ("least-outstanding", "least-kv"),
}
"""Per incident a policy that passes it and one that fails it, on validation seeds."""
SEEDS = {"incident-fewer-blocks": 3}
"""How many seeds the verdict needs there; one elsewhere."""


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.name)
def test_somebody_passes_and_somebody_fails(incident: Incident) -> None:
    good, bad = KNOWN[incident.name]
    seeds = load_scenario(incident.name).validation_seeds[: SEEDS.get(incident.name, 1)]
    jobs = []
    for policy in (good, bad):
        pair = (policy, "round-robin") if incident.layer == "engine" else ("vllm-v1", policy)
        jobs += [Job(SUITE, incident.name, incident.load, seed, *pair) for seed in seeds]
    rows, failures = play_cards(jobs)
    assert not failures
    policy_of = f"{incident.layer}_policy"
    passed = {getattr(card, policy_of): card.passed for card in cards(rows)}
    assert passed == {good: True, bad: False}


def test_jobs_are_those_of_the_suite() -> None:
    jobs = incident_jobs([("vllm-v1", "round-robin")], incidents_of("router"))
    assert set(jobs) <= set(find_suite(SUITE).parts[1].jobs(SUITE))
    assert len(jobs) == 3 * len(incidents_of("router"))
