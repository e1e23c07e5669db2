"""Suites: what `full` promises, families of scenarios, tracks, oracles."""

from __future__ import annotations

import pytest

from synergy_gym.evaluation.jobs import ORACLE
from synergy_gym.evaluation.suites import (
    DEFAULT_ENGINE,
    DEFAULT_ROUTER,
    FULL_PAIRS,
    MATRIX_ENGINES,
    MATRIX_ROUTERS,
    chosen_suite,
    family_of,
    find_suite,
)
from synergy_gym.policies.agent_file import packaged_agents
from synergy_gym.policies.registry import engine_policies, router_policies
from synergy_gym.scenario import list_scenarios, load_scenario

FULL = find_suite("full")


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
    assert {family_of(name) for name in names} == {"development", "refit", "held-out", "paper"}
    assert names >= {name for name in list_scenarios() if name.endswith("-refit")}


def test_a_scenario_has_one_window_so_that_rows_are_unique() -> None:
    jobs = FULL.jobs()
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
        ("chat-h100-refit", "refit"),
        ("heldout-rtxpro-3", "held-out"),
        ("paper-coder-hetero", "paper"),
        ("incident-hot-prefix", "incident"),
    ],
)
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family
