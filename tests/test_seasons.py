"""Seasons: an archived one is found under its name, complete, and as it was."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from synergy_gym import scenario as scenario_module
from synergy_gym import seasons
from synergy_gym.envs.randomisation import knobs
from synergy_gym.envs.randomisation.worlds import WorldRanges
from synergy_gym.evaluation.board.incident_library import find_incident, list_incidents
from synergy_gym.evaluation.board.rank import rank
from synergy_gym.evaluation.board.suites import list_suites
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.profiles import list_profiles, load_profile
from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.scenario import ScenarioError, list_scenarios, load_scenario
from synergy_gym.seasons import FILES, SEASON, SeasonFiles, full_name, season_files, split_name

ARCHIVED = {1: "9a1dae32b92bb1cab1240e039da0aba700818c6c3e4dd903e31a1770fadc753d"}
"""SHA-256 over the files of an archived season. They never change: boards stand on them."""


def digest(season: int) -> str:
    files = season_files(season)
    places = [*files.scenarios.iterdir(), *files.profiles.iterdir(), files.suites, files.incidents]
    found = hashlib.sha256()
    for path in sorted(place for place in places if place is not None):
        found.update(f"{path.parent.name}/{path.name}\n".encode())
        found.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return found.hexdigest()


@pytest.mark.parametrize("season", [season for season in FILES if season != SEASON])
def test_an_archive_stays_as_it_is(season: int) -> None:
    assert digest(season) == ARCHIVED[season]


def test_season_1_is_complete() -> None:
    names = list_scenarios(1)
    assert len(names) == 40
    profiles = {engine.profile for name in names for engine in load_scenario(name, 1).engines}
    assert profiles == set(list_profiles(1))
    played = {name for suite in list_suites(1) for part in suite.parts for name in part.scenarios}
    assert played <= set(names)
    incidents = {incident.name for incident in list_incidents(1)}
    assert incidents == {name for name in names if name.startswith("incident-")}
    assert all(find_incident(name, 1).season == 1 for name in incidents)


@pytest.mark.parametrize("name", [f"season1/{name}" for name in list_scenarios(1)])
def test_an_archived_scenario_loads_under_its_name(name: str) -> None:
    found = load_scenario(name)
    assert (found.season, found.label, f"season1/{found.name}") == (1, name, name)
    assert load_scenario(found.name, 1).hash() == found.hash()
    assert load_scenario(season_files(1).scenarios / f"{found.name}.toml").season == 1


def test_names() -> None:
    assert split_name("season1/a@b") == (1, "a@b")
    assert split_name("a/b") == (SEASON, "a/b")
    assert split_name("a", 1) == (1, "a")
    assert split_name("season2/a", 1) == (2, "a")
    assert (full_name("a", 1), full_name("a", SEASON)) == ("season1/a", "a")
    with pytest.raises(ValueError, match="no season 7; choose one of 1, 2"):
        season_files(7)


def test_the_season_is_not_in_the_hash_and_stays_with_the_clock() -> None:
    current = load_scenario("chat-h100")
    assert current.season == SEASON
    assert replace(current, season=1).hash() == current.hash()
    twin = load_scenario("season1/chat-h100@saturation")
    assert (twin.name, twin.label) == ("chat-h100@saturation", "season1/chat-h100@saturation")
    assert load_scenario(twin.label).hash() == twin.hash()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "chat-h100-refit",
            r"no scenario 'chat-h100-refit'; season 1 has 'season1/chat-h100-refit",
        ),
        ("season1/chat-h10", "did you mean 'season1/chat-h100'"),
        ("season1/x", "packaged scenarios: season1/chat-a6000, "),
        ("season9/chat-h100", "'season9/chat-h100': no season 9; choose one of 1, 2"),
        ("season1/chat-h100@warp", "chat-h100: no clock 'warp'"),
    ],
)
def test_wrong_names_have_a_cure_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        load_scenario(name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current season is season 1 with a slower H100."""
    home = season_files(1).scenarios.parent
    for folder in ("scenarios", "profiles"):
        shutil.copytree(home / folder, tmp_path / folder)
    profile = tmp_path / "profiles" / "h100-llama-3.1-8b.toml"
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text.replace("floor_ms = ", "floor_ms = 1"), encoding="utf-8")
    now = SeasonFiles(tmp_path / "scenarios", tmp_path / "profiles")
    files = {1: FILES[1], SEASON: now}
    monkeypatch.setattr(seasons, "FILES", files)
    monkeypatch.setattr(scenario_module, "FILES", files)
    knobs._packaged.cache_clear()
    yield
    knobs._packaged.cache_clear()


@pytest.mark.usefixtures("slower")
def test_a_scenario_takes_the_profiles_of_its_season(tmp_path: Path) -> None:
    old, new = load_profile("h100-llama-3.1-8b", 1), load_profile("h100-llama-3.1-8b")
    assert old.terms.floor_ms < new.terms.floor_ms
    assert load_scenario("season1/chat-h100").terms == (old.terms,)
    assert load_scenario("chat-h100").terms == (new.terms,)
    file = season_files(SEASON).scenarios / "chat-h100.toml"
    assert load_scenario(file, 1).terms == (new.terms,)  # it lies in the other season
    copied = shutil.copy(file, tmp_path / "mine.toml")
    assert load_scenario(copied).terms == (new.terms,)
    assert load_scenario(copied, 1).terms == (old.terms,)


@pytest.mark.usefixtures("slower")
@pytest.mark.parametrize(
    ("name", "scenario"),
    [("EngineBatching", "chat-h100"), ("ClusterRouting", "hetero-3"), ("CrossLayer", "hetero-3")],
)
def test_the_version_of_an_environment_says_its_season(name: str, scenario: str) -> None:
    worlds = {}
    for version, season in {"v0": 1, "v1": 2}.items():
        env = gym.make(f"SynergyGym/{name}-{version}", scenario=scenario)
        worlds[season] = env.unwrapped.scenario  # type: ignore[attr-defined]
        assert worlds[season].season == season
        other = f"season{3 - season}/{scenario}"
        env = gym.make(f"SynergyGym/{name}-{version}", scenario=other)
        assert env.unwrapped.scenario.season == 3 - season  # type: ignore[attr-defined]
    assert worlds[1].hash() == load_scenario(f"season1/{scenario}").hash()
    assert worlds[1].hash() != worlds[2].hash()


@pytest.mark.parametrize(("version", "season"), [("v0", 1), ("v1", 2)])
def test_vector_environments_follow_the_version(version: str, season: int) -> None:
    mode = "vector_entry_point"
    envs = gym.make_vec(f"SynergyGym/EngineBatching-{version}", num_envs=2, vectorization_mode=mode)
    scenarios = [env.unwrapped.scenario for env in envs.unwrapped.envs]  # type: ignore[attr-defined]
    assert [found.season for found in scenarios] == [season, season]
    envs.close()


def test_multi_agent_environments_take_a_season() -> None:
    pytest.importorskip("pettingzoo")
    from synergy_gym.envs.pettingzoo import ClusterAEC, ClusterParallel

    for make in (ClusterAEC, ClusterParallel):
        assert make("smoke-cluster", season=1)._world.core.scenario.season == 1
        assert make("smoke-cluster")._world.core.scenario.season == SEASON


@pytest.mark.usefixtures("slower")
def test_drawn_worlds_stay_in_their_season() -> None:
    engines = {"engines": [("hetero-3/h100",)]}
    floors = {}
    for season in (1, SEASON):
        ranges = WorldRanges("chat-h100", knobs=engines, season=season)
        world = ranges.draw(np.random.default_rng(3)).scenario
        assert world.season == season
        floors[season] = world.measured_terms[0].floor_ms
    assert floors[1] < floors[SEASON]
    assert knobs.engine_kind("season1/hetero-3/h100").terms.floor_ms == floors[1]
    named = WorldRanges(["season1/smoke", load_scenario("season1/chat-h100"), "chat-h100"])
    assert named.ranges["scenario"].values == ("season1/smoke", "season1/chat-h100", "chat-h100")  # type: ignore[attr-defined]


def test_plans_and_evaluations_take_archived_names() -> None:
    plan = TrainingPlan(kind="engine", algorithm="ppo", scenarios=("season1/chat-h100", "smoke"))
    assert [world.season for world in plan.worlds] == [1, SEASON]
    result = evaluate("season1/smoke", horizon_s=3, warmup_s=0)
    assert (result.manifest["scenario"], result.manifest["season"]) == ("smoke", 1)
    short: dict[str, Any] = {"loads": [1.0], "horizon_s": 3, "warmup_s": 0}
    table = rank("engine", ["vllm-v1"], scenarios="season1/smoke", **short)
    assert table.loc[0, "episodes"] == 2
