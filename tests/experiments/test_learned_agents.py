"""The evaluation of trained agents: what is played, kept, compared and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.agents import learned_agents as learned
from experiments.agents import learned_tables as tables
from synergy_gym.scenario import load_scenario

SMALL = {"horizon_s": 6.0, "warmup_s": 1.0}
ROWS = (
    learned.Row("engine", "test", ("smoke",), (1.0, 2.0), **SMALL),
    learned.Row("router", "test", ("smoke-cluster",), (1.0,), **SMALL),
)
AGENTS = {"engine": ["static-1024"], "router": ["lmetric"]}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Every file of a small run, and its episodes."""
    out = tmp_path_factory.mktemp("learned")
    episodes = learned.play_all(list(learned.cells(ROWS, AGENTS, seeds=3)), out, 1)
    assert learned.finish(episodes, ROWS, AGENTS, out) == 0
    return out, episodes


def test_every_policy_meets_the_same_test_traffic(played: tuple[Path, pd.DataFrame]) -> None:
    _, episodes = played
    assert set(episodes.seed) == set(load_scenario("smoke").test_seeds[:3])
    offered = episodes.groupby(["track", "scenario", "load", "seed"]).offered.nunique()
    assert (offered == 1).all()
    engine = episodes[episodes.track == "engine"]
    assert list(dict.fromkeys(engine.policy)) == [
        "vllm-v1", "lens-ref", "lens-plus", "static-1024", "clairvoyant", "bound",
    ]  # fmt: skip
    assert len(episodes) == 3 * (2 * 6 + 1 * 8)


def test_every_file_is_written(played: tuple[Path, pd.DataFrame]) -> None:
    out, _ = played
    assert {path.name for path in out.iterdir()} == {
        "episodes.csv", "summary.csv", "comparisons.csv", "scenarios.csv", "table.md",
        "attainment.png", "profiles.png", "differences.png", "manifest.json",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["agents"] == AGENTS
    assert set(manifest["scenarios"]) == {"smoke", "smoke-cluster"}
    page = (out / "table.md").read_text()
    assert "Everything here is simulated" in page
    assert "`static-1024` less each rival" in page
    found = pd.read_csv(out / "summary.csv")
    bounds = found[found.policy == "bound"].set_index(["track", "row"])["mean"]
    others = found[found.policy != "bound"].groupby(["track", "row"])["mean"].max()
    assert (bounds + 0.02 >= others).all()


def test_finished_episodes_are_kept(
    played: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, episodes = played

    def never(cell: learned.Cell) -> dict[str, object]:
        raise AssertionError(f"{cell} is played again")

    monkeypatch.setattr(learned, "play", never)
    again = learned.play_all(list(learned.cells(ROWS, AGENTS, seeds=3)), out, 1)
    assert not (again.error != "").any()
    assert again.met.tolist() == pytest.approx(episodes.met.tolist(), rel=1e-5)


def test_what_changes_is_played_again() -> None:
    cell = next(learned.cells(ROWS, AGENTS, seeds=1))
    marks = {
        learned.stamp(changed)
        for changed in (
            cell,
            replace(cell, seed=cell.seed + 1),
            replace(cell, load=1.1),
            replace(cell, policy="lens-ref"),
            replace(cell, scenario="chat-h100"),
            replace(cell, row=replace(cell.row, horizon_s=7.0)),
        )
    }
    assert len(marks) == 6


def test_a_killed_run_loses_no_whole_line(tmp_path: Path) -> None:
    store = tmp_path / "progress.jsonl"
    whole = json.dumps({"stamp": "a", "offered": 3, "met": 2, "error": ""})
    store.write_text(whole + "\n" + whole.replace('"a"', '"b"')[:20])
    assert set(learned.kept(store, tmp_path / "none.csv")) == {"a"}


def test_one_broken_policy_costs_only_its_own_rows(tmp_path: Path) -> None:
    agents = {"engine": ["static-999999"], "router": []}
    rows = (replace(ROWS[0], loads=(1.0,)),)
    played = [c for c in learned.cells(rows, agents, seeds=2) if c.policy != "clairvoyant"]
    episodes = learned.play_all(played, tmp_path, 1)
    assert learned.finish(episodes, rows, {"engine": [], "router": []}, tmp_path) == 2
    assert "static-999999" not in set(pd.read_csv(tmp_path / "summary.csv").policy)
    assert (tmp_path / "progress.jsonl").is_file()  # so that a repaired run goes on from here
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "max_num_batched_tokens" in manifest["failures"][0]


def test_hindsight_is_the_best_played_policy_of_each_episode() -> None:
    found = {
        "a": np.array([[0.1], [0.9]]),
        "b": np.array([[0.5], [0.2]]),
        tables.BOUND: np.ones((2, 1)),
    }
    assert tables.hindsight(found).ravel().tolist() == [0.5, 0.9]


def test_agents_are_named_by_track() -> None:
    found = learned.chosen_agents(["engine=agent:a.npz", "router=lmetric"])
    assert found == {"engine": ["agent:a.npz"], "router": ["lmetric"]}


def test_rows_shift_what_they_say() -> None:
    test = [row for row in learned.ROWS if row.name == "test"]
    assert {row.track for row in test} == {"engine", "router"}
    assert all(0.8 <= load <= 1.3 for row in test for load in row.loads)
    trained = {name for row in test for name in row.scenarios}
    for row in learned.ROWS:
        assert len(load_scenario(row.scenarios[0]).test_seeds) >= learned.SEEDS
        if row.name.startswith(("GPU", "mix", "size")):
            assert not trained & set(row.scenarios)


def test_a_trace_is_cut_into_one_window_per_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "traces").mkdir()
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:{i // 60:02d}:{i % 60:02d}.0000000,100,5" for i in range(601)]
    (tmp_path / "traces" / "t.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("SYNERGY_GYM_DATA", str(tmp_path))
    row = learned.Row("engine", "trace", ("smoke",), (1.0,), trace=learned.Trace("t.csv", "azure"))
    assert learned.available([row]) == [row]
    scenario = load_scenario("smoke")
    parts = [
        learned.traffic(learned.Cell(row, "smoke", 1.0, seed, "")) for seed in scenario.test_seeds
    ]
    assert sum(len(part) for part in parts) == 600  # the last request closes the last window
    rates = [len(part) / (part.arrival_ns[-1] / 1e9) for part in parts]
    assert np.mean(rates) == pytest.approx(scenario.rate_rps, rel=0.05)
    monkeypatch.delenv("SYNERGY_GYM_DATA")
    assert learned.available([row]) == []
