"""Worlds: ranges, knobs, rates, held-out values, and the environment that plays them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.randomisation.knobs import apply_knobs, engine_kind, knobs
from synergy_gym.envs.randomisation.nominal_rate import (
    demand,
    engine_rates_rps,
    round_robin_rate_rps,
)
from synergy_gym.envs.randomisation.ranges import (
    Choice,
    Integers,
    LogUniform,
    Outages,
    Several,
    Shares,
    Uniform,
    as_range,
)
from synergy_gym.envs.randomisation.worlds import DomainRandomization, WorldRanges
from synergy_gym.envs.wrappers.engine_blocks import EngineBlocks
from synergy_gym.scenario import Scenario, list_scenarios, load_scenario
from synergy_gym.workload.spec import ArrivalSpec, TrafficMix

GPUS = ("hetero-3/h100", "hetero-3/a100", "hetero-3/a6000")
VALUES: dict[str, Any] = {
    "engines": ("hetero-3/a100", "hetero-3/a100", "smoke-cluster/h100-0"),
    "traffic": "azure-conv-like",
    "mix": (("azure-conv-like", 0.25), ("flowgpt-like", 0.75)),
    "prompt_scale": 0.5,
    "output_scale": 2.0,
    "burstiness": 2.0,
    "slo_mix": (2.0,),
    "slo_scale": 0.5,
    "speed": 2.0,
    "noise_sd": 0.1,
    "kv_share": 0.5,
    "push_interval_s": 0.5,
    "horizon_s": 10.0,
    "outage": (0.5, 0.25, 4.0),
}


@pytest.fixture(scope="module")
def cluster() -> Scenario:
    return load_scenario("smoke-cluster")


@pytest.fixture
def wide() -> WorldRanges:
    return WorldRanges(
        ["smoke-cluster", "hetero-3"],
        load=Uniform(0.8, 1.3),
        knobs={
            "engines": Several(Choice(GPUS), Integers(2, 4)),
            "traffic": ("azure-conv-like", "sharegpt-like", "mooncake-like"),
            "output_scale": LogUniform(0.5, 2.0),
            "horizon_s": 8.0,
            "outage": Outages(0.5, 1.0, 3.0),
        },
        held_out={"load": [(1.0, 1.1)], "engines": ["hetero-3/a6000"]},
    )


def blocks(scenario: Scenario) -> Any:
    return EngineBlocks(ClusterRoutingEnv(scenario), 4)


def test_ranges_draw_inside_their_bounds(rng: np.random.Generator) -> None:
    for _ in range(200):
        assert 0.5 <= Uniform(0.5, 2.0).draw(rng) <= 2.0
        assert 0.5 <= LogUniform(0.5, 2.0).draw(rng) <= 2.0
        assert Integers(2, 4).draw(rng) in {2, 3, 4}
        assert Choice(("a", "b"), (0.0, 3.0)).draw(rng) == "b"
        assert 1 <= len(Several(Choice(("a",)), Integers(0, 3)).draw(rng)) <= 3
        assert Outages(0.0, 1.0, 2.0).draw(rng) is None
        names, shares = zip(*Shares(("a", "b", "c"), 0.1).draw(rng), strict=True)
        assert names == ("a", "b", "c")
        assert sum(shares) == pytest.approx(1.0)
        assert min(shares) > 5e-4
        engine, start, duration_s = Outages(1.0, 1.0, 2.0).draw(rng) or (9.0, 9.0, 9.0)
        assert 0 <= engine < 1
        assert 0 <= start < 1
        assert 1 <= duration_s <= 2
    assert as_range([1, 2]) == Choice((1, 2))
    assert as_range("a") == Choice(("a",))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(2, 1),
        lambda: LogUniform(0, 1),
        lambda: Integers(0, float("inf")),  # type: ignore[arg-type]
        lambda: Choice(()),
        lambda: Choice(("a", "b"), (1.0,)),
        lambda: Choice(("a",), (0.0,)),
        lambda: Shares(("a",)),
        lambda: Shares(("a", "b"), 0.0),
        lambda: Outages(1.5, 1, 2),
        lambda: Outages(0.5, 2, 1),
    ],
)
def test_wrong_ranges(make: Any) -> None:
    with pytest.raises(ValueError, match=r"Uniform|Integers|Choice|Shares|Outages"):
        make()


@pytest.mark.parametrize("name", knobs())
def test_every_knob_changes_the_scenario_and_it_still_plays(cluster: Scenario, name: str) -> None:
    scenario = replace(cluster, horizon_s=5.0, warmup_s=1.0)
    ranges = WorldRanges(scenario, knobs={name: Choice((VALUES[name],))})
    changed = ranges.draw(np.random.default_rng(0), seed=5).scenario
    if name == "slo_mix":  # one class: its share is 1 whatever is given
        assert changed.hash() == scenario.hash()
        return
    assert changed.hash() != scenario.hash()
    env = ClusterRoutingEnv(replace(changed, horizon_s=5.0, warmup_s=0.5))
    _, info = env.reset(seed=5)
    truncated, count = False, 0
    while not truncated:
        count += 1
        _, _, _, truncated, info = env.step(int(env.action_masks().argmax()))
    assert count > 3
    assert info["episode_metrics"]["rejected"] == 0


def test_knobs_do_what_they_say(cluster: Scenario) -> None:
    def changed(**values: Any) -> Scenario:
        return apply_knobs(cluster, values)[0]

    assert [e.gpu for e in changed(engines=GPUS).engines] == ["1xH100", "1xA100", "2xA6000"]
    assert changed(engines=GPUS).terms == load_scenario("hetero-3").terms
    halved = changed(prompt_scale=0.5).traffic.prompt
    assert halved is not None
    assert halved.options == {"median": 100, "sigma": 0.8}
    assert halved.maximum == 750
    before, after = cluster.measured_terms[0], changed(speed=2.0).measured_terms[0]
    assert (after.base_ms, after.per_token_ms) == (before.base_ms / 2, before.per_token_ms / 2)
    assert after.noise_sd == before.noise_sd
    assert changed(slo_scale=0.5).slos[0].ttft_s == 0.5
    assert changed(kv_share=0.5).engines[0].kv_blocks == 720
    assert changed(kv_share=1e-3).engines[0].kv_blocks == 4096 / 16
    short = changed(horizon_s=10.0)
    assert (short.horizon_s, short.warmup_s) == (10.0, 1.0)
    down, up = changed(outage=(0.5, 0.25, 4.0)).events
    assert (down.kind, down.engine, down.at_s) == ("down", 1, 5.0)
    assert (up.kind, up.engine, up.at_s) == ("up", 1, 9.0)
    assert len(changed(outage=(0.5, 0.9, 4.0)).events) == 1
    assert changed(outage=None) is cluster
    two = load_scenario("two-class-h100")
    assert apply_knobs(two, {"slo_mix": (3, 1)})[0].traffic.slo_mix == (0.75, 0.25)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"engines": ("a100",)}, "SCENARIO/ENGINE"),
        ({"engines": ("hetero-3/b200",)}, r"no engine 'b200'.*'h100', 'a100', 'a6000'"),
        ({"traffic": "poems"}, "unknown generator"),
        ({"mix": ()}, "one generator or more"),
        ({"mix": (("poems", 1.0),)}, "unknown generator"),
        ({"prompt_scale": 0.0}, "> 0"),
        ({"burstiness": -1.0}, "> 0"),
        ({"slo_mix": (0.5, 0.5)}, "1 shares"),
        ({"noise_sd": 0.5}, "0.25"),
        ({"kv_share": 0.0}, "> 0"),
        ({"horizon_s": 0.0}, "> 0"),
    ],
)
def test_wrong_values_name_the_knob(cluster: Scenario, values: Any, match: str) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=rf"(?s)knob {name}=.*{match}"):
        apply_knobs(cluster, values)


def test_knobs_change_every_part_of_a_mix(cluster: Scenario) -> None:
    mix = (("azure-conv-like", 0.5), ("azure-code-like", 0.5))
    values = {"mix": mix, "output_scale": 0.5, "burstiness": 3.0, "slo_mix": (1.0,)}
    traffic = apply_knobs(cluster, values)[0].traffic
    assert isinstance(traffic, TrafficMix)
    assert [share for share, _ in traffic.parts] == [0.5, 0.5]
    for _, part in traffic.parts:
        assert part.arrivals == ArrivalSpec("gamma", {"cv": 3.0})
        assert part.output is not None
        assert max(part.output.options["values"]) in (500, 950)


def test_worlds_that_do_not_fit_are_errors(cluster: Scenario) -> None:
    single = load_scenario("smoke")
    with pytest.raises(ValueError, match="two or more"):
        apply_knobs(single, {"outage": (0.0, 0.5, 1.0)})
    failing, _ = apply_knobs(cluster, {"outage": (0.0, 0.5, 1.0)})
    with pytest.raises(ValueError, match="events"):
        apply_knobs(failing, {"engines": GPUS})
    with pytest.raises(ValueError, match="measured"):
        apply_knobs(load_scenario("hetero-3@saturation"), {"speed": 2.0})


def test_engine_kinds_are_those_of_the_scenarios() -> None:
    kind = engine_kind("hetero-3/a6000")
    scenario = load_scenario("hetero-3")
    assert (kind.spec, kind.terms) == (scenario.engines[2], scenario.measured_terms[2])


STEADY = [name for name in list_scenarios() if name != "code-a100"]  # bursts need reserves


@pytest.mark.parametrize("name", STEADY)
def test_the_estimated_rate_is_near_the_calibrated_one(name: str) -> None:
    scenario = load_scenario(name)
    ratio = round_robin_rate_rps(scenario, demand(scenario)) / scenario.rate_rps
    assert 0.7 < ratio < 1.5


def test_rates_follow_what_the_engines_can_carry(cluster: Scenario) -> None:
    def rate(**values: Any) -> float:
        ranges = WorldRanges(cluster, knobs={k: Choice((v,)) for k, v in values.items()})
        return ranges.draw(np.random.default_rng(0)).scenario.rate_rps

    assert rate(speed=1.0) == pytest.approx(cluster.rate_rps)
    assert rate(speed=2.0) > 1.9 * cluster.rate_rps
    assert rate(output_scale=2.0) < 0.7 * cluster.rate_rps
    assert rate(slo_scale=0.9) == cluster.rate_rps
    kept = WorldRanges(cluster, knobs={"speed": 2.0}, rescale=False)
    assert kept.draw(np.random.default_rng(0)).scenario.rate_rps == cluster.rate_rps


def test_drawn_engines_are_weighted_by_what_they_carry(cluster: Scenario) -> None:
    ranges = WorldRanges(cluster, knobs={"engines": Choice((GPUS,))})
    scenario = ranges.draw(np.random.default_rng(0)).scenario
    weights = [spec.weight for spec in scenario.engines]
    assert weights == engine_rates_rps(scenario, demand(scenario))
    assert weights == sorted(weights, reverse=True)


def test_a_seed_gives_the_same_world(wide: WorldRanges, seed: int) -> None:
    one, two = DomainRandomization(blocks, wide), DomainRandomization(blocks, wide)
    for episode in (seed, None, None, seed + 1, seed):
        ours, theirs = one.reset(seed=episode), two.reset(seed=episode)
        assert ours[1]["world"] == theirs[1]["world"]
        assert ours[1]["seed"] == theirs[1]["seed"]
        assert (ours[0] == theirs[0]).all()
    assert one.unwrapped.scenario.hash() == two.unwrapped.scenario.hash()  # type: ignore[attr-defined]
    worlds = [str(one.reset(seed=k)[1]["world"]) for k in range(6)]
    assert len(set(worlds)) == 6


def test_the_seed_of_reset_is_the_episode_seed(wide: WorldRanges) -> None:
    env = DomainRandomization(blocks, wide)
    assert env.reset(seed=77)[1]["seed"] == 77
    drawn = {env.reset()[1]["seed"] for _ in range(12)}
    assert drawn <= set(load_scenario("hetero-3").train_seeds)
    assert len(drawn) > 1


def test_the_info_holds_what_was_drawn(wide: WorldRanges, seed: int) -> None:
    env = DomainRandomization(blocks, wide)
    for episode in range(seed, seed + 4):
        _, info = env.reset(seed=episode)
        world = info["world"]
        scenario: Scenario = env.unwrapped.scenario  # type: ignore[attr-defined]
        assert list(world) == [*wide.ranges]
        assert info["load"] == world["load"]
        assert info["scenario"] == scenario.name == world["scenario"]
        assert len(scenario.engines) == len(world["engines"])
        assert bool(scenario.events) == (world["outage"] is not None)


def test_held_out_values_are_never_drawn(wide: WorldRanges, rng: np.random.Generator) -> None:
    for _ in range(40):
        drawn = wide.draw(rng).drawn
        assert not 1.0 <= drawn["load"] <= 1.1
        assert "hetero-3/a6000" not in drawn["engines"]
    assert wide.is_held_out("load", 1.05)
    assert wide.is_held_out("engines", ("hetero-3/h100", "hetero-3/a6000"))
    assert not wide.is_held_out("load", 1.2)
    assert not wide.is_held_out("traffic", "poems")


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"load: 1000 draws .* all held out"):
        WorldRanges("smoke", load=Uniform(0.8, 1.0), held_out={"load": [(0.5, 2.0)]})
    with pytest.raises(ValueError, match="scenario: 1000 draws"):
        WorldRanges(["smoke"], held_out={"scenario": ["smoke"]})
    with pytest.raises(ValueError, match=r"held_out=\['speed'\] names no range"):
        WorldRanges("smoke", held_out={"speed": [1.0]})
    with pytest.raises(ValueError, match="no knob 'gpu'"):
        WorldRanges("smoke", knobs={"gpu": 1.0})
    with pytest.raises(ValueError, match="split='all'"):
        WorldRanges("smoke", split="all")  # type: ignore[arg-type]


def test_ranges_are_described_in_plain_values(wide: WorldRanges) -> None:
    text = json.loads(json.dumps(wide.describe()))
    assert text["ranges"]["load"] == {"kind": "Uniform", "low": 0.8, "high": 1.3}
    assert text["ranges"]["engines"]["count"] == {"kind": "Integers", "low": 2, "high": 4}
    assert text["held_out"]["load"] == [[1.0, 1.1]]


def test_options_replace_what_was_drawn(short_engine: Scenario, small_traffic: Any) -> None:
    ranges = WorldRanges(short_engine, load=Uniform(0.8, 1.3))
    env = DomainRandomization(lambda s: EngineBatchingEnv(s, action="grid"), ranges)
    assert env.reset(seed=1, options={"load": 2.0})[1]["load"] == 2.0
    fixed = small_traffic(1.0, 0)
    assert env.reset(seed=1, options={"workload": fixed})[1]["load"] == 1.0


def test_engines_with_other_limits_share_a_grid() -> None:
    ranges = WorldRanges(["chat-h100", "code-a100"], load=Uniform(0.8, 1.3))
    env = DomainRandomization(lambda s: EngineBatchingEnv(s, action="grid"), ranges)
    seen = {env.reset(seed=k)[1]["scenario"] for k in range(8)}
    assert seen == {"chat-h100", "code-a100"}
    env.step(env.action_space.sample())
    limits = DomainRandomization(lambda s: EngineBatchingEnv(s, action="limits"), ranges)
    with pytest.raises(ValueError, match=r'action_space .*action="grid"'):
        [limits.reset(seed=k) for k in range(8)]
    bare = DomainRandomization(ClusterRoutingEnv, WorldRanges(["smoke-cluster", "flowgpt-8xh100"]))
    with pytest.raises(ValueError, match="EngineBlocks"):
        [bare.reset(seed=k) for k in range(8)]


def test_the_same_scenario_keeps_its_environment(cluster: Scenario) -> None:
    env = DomainRandomization(blocks, WorldRanges(cluster, load=Uniform(0.8, 1.3)))
    first = env.env
    env.reset(seed=1)
    env.reset()
    assert env.env is first


def test_worlds_in_gymnasium_vectors(wide: WorldRanges) -> None:
    envs = gym.vector.SyncVectorEnv([lambda: DomainRandomization(blocks, wide)] * 2)
    _, infos = envs.reset(seed=3)
    single = DomainRandomization(blocks, wide)
    for i in range(2):
        _, info = single.reset(seed=3 + i)
        assert infos["world"]["load"][i] == info["world"]["load"]
        assert infos["world"]["engines"][i] == info["world"]["engines"]
    envs.close()


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_gymnasium_accepts_it(wide: WorldRanges) -> None:
    from synergy_gym.envs.wrappers.discount import RerouteIllegal

    check_env(RerouteIllegal(DomainRandomization(blocks, wide)), skip_render_check=True)


def test_the_page_lists_every_range() -> None:
    page = (Path(__file__).parents[2] / "docs" / "learning.md").read_text(encoding="utf-8")
    table = page.partition("| range |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert listed == ["scenario", "load", *knobs()]
