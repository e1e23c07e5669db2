"""Suites: what `full` promises, families of scenarios, tracks, oracles."""

from __future__ import annotations

import json

import pytest

from synergy_gym.evaluation.board.board import read_board
from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER, Part, Suite, family_of
from synergy_gym.evaluation.board.suites import (
    FULL_PAIRS,
    MATRIX_ENGINES,
    MATRIX_ROUTERS,
    chosen_suite,
    find_suite,
    list_suites,
)
from synergy_gym.evaluation.clairvoyant import ORACLE
from synergy_gym.evaluation.submission.standing import board_folder
from synergy_gym.policies.agent_file import packaged_agents
from synergy_gym.policies.registry import engine_policies, router_policies
from synergy_gym.scenario import list_scenarios, load_scenario
from synergy_gym.seasons import SEASON

FULL = find_suite("full")
ARCHIVED = find_suite("season1/full")


def test_full_has_one_part_per_track_and_ten_test_seeds() -> None:
    assert [part.track for part in FULL.parts] == ["engine", "router", "joint"]
    for part in FULL.parts:
        seeds: dict[str, set[int]] = {name: set() for name in part.scenarios}
        for name, _, seed in part.cells():
            seeds[name].add(seed)
        assert all(found == set(load_scenario(n).test_seeds) for n, found in seeds.items())
        assert all(len(found) >= 10 for found in seeds.values())


def test_full_has_every_policy_and_trained_agent() -> None:
    engine, router, _ = FULL.parts
    static = {name for name in engine_policies() if name.startswith("static-")}
    assert set(engine.competitors()) >= set(engine_policies()) - static
    assert set(router.competitors()) >= set(router_policies())
    agents = {f"agent:{name}" for name in packaged_agents()}
    assert agents <= {*engine.competitors(), *router.competitors()}
    assert len({*engine.competitors(), *router.competitors()}) >= 20


def test_full_has_every_family_of_its_own() -> None:
    names = {name for part in FULL.parts for name in part.scenarios}
    assert {family_of(name) for name in names} == {"development", "held-out", "paper"}
    names = {name for part in ARCHIVED.parts for name in part.scenarios}
    families = {family_of(name, 1) for name in names}
    assert families == {"development", "refit", "held-out", "paper"}
    assert names >= {name for name in list_scenarios(1) if name.endswith("-refit")}


@pytest.mark.parametrize("suite", [FULL, ARCHIVED], ids=lambda suite: str(suite.label))
def test_a_scenario_has_one_window_so_that_rows_are_unique(suite: Suite) -> None:
    jobs = suite.jobs()
    assert len({job.key for job in jobs}) == len(jobs)


def test_the_baseline_and_an_oracle_play_every_part() -> None:
    for part in FULL.parts:
        assert (DEFAULT_ENGINE, DEFAULT_ROUTER) in part.matchups()
        (oracle,) = part.oracle_names()
        assert ORACLE in oracle
        assert oracle not in part.competitors()
        played = {(job.engine_policy, job.router_policy) for job in part.jobs("full")}
        assert played == {*part.matchups(), *part.oracles}


def test_pairs_hold_a_whole_matrix() -> None:
    assert len(FULL_PAIRS) == len(set(FULL_PAIRS))
    assert {(e, r) for e in MATRIX_ENGINES for r in MATRIX_ROUTERS} <= set(FULL_PAIRS)


def test_loads_of_single_scenarios() -> None:
    engine = FULL.parts[0]
    own = dict(engine.loads_of)
    for name in engine.scenarios:
        loads = {load for scenario, load, _ in engine.cells() if scenario == name}
        assert loads == set(own.get(name, engine.loads))


def test_one_track_of_a_suite() -> None:
    only = chosen_suite("full", "router")
    assert only.name == "full"
    assert [part.track for part in only.parts] == ["router"]
    with pytest.raises(ValueError, match="choose one of engine, router, joint"):
        chosen_suite("full", "both")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("chat-h100", "development"),
        ("season1/chat-h100-refit", "refit"),
        ("season1/heldout-rtxpro-3", "held-out"),
        ("heldout-rtxpro-3", "held-out"),
        ("paper-coder-hetero", "paper"),
        ("incident-hot-prefix", "incident"),
    ],
)
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family


def test_archived_suites_are_found_by_their_season() -> None:
    for suite in list_suites(1):
        assert suite == find_suite(f"season1/{suite.name}") == find_suite(suite.name, 1)
        assert suite.label == f"season1/{suite.name}"
        assert suite.season == 1
        assert {job.season for job in suite.jobs()} == {1}
    assert find_suite("full").season == SEASON
    assert find_suite("full").label == "full"
    assert chosen_suite("season1/full", "router") == ARCHIVED.only("router")
    with pytest.raises(ValueError, match=r"'season1/fulll'; choose one of season1/quick, "):
        find_suite("season1/fulll")
    with pytest.raises(ValueError, match="no season 9; choose one of 1, 2"):
        find_suite("season9/full")


@pytest.mark.parametrize("suite", [*list_suites(), *list_suites(1)], ids=lambda s: str(s.label))
def test_a_part_is_read_as_it_was_written(suite: Suite) -> None:
    for part in suite.parts:
        entry = json.loads(json.dumps(part.entry()))
        assert "season" not in entry
        assert Part.from_entry(entry, part.season) == part


@pytest.mark.parametrize("name", ["full", "incidents", "quick"])
def test_the_committed_boards_of_season_1_are_its_suites(name: str) -> None:
    board = read_board(board_folder(find_suite(name, 1)))
    assert board.suite == find_suite(name, 1)
