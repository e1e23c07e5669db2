"""Scenarios: packaged files are sound, and every mistake names file, key and cure."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.latency.clock_saturation import SaturationTerms
from synergy_gym.latency.models.published import published_model
from synergy_gym.scenario import (
    NO_DEADLINE_NS,
    Scenario,
    ScenarioError,
    list_scenarios,
    load_scenario,
    stop_time_ns,
    windowed,
)
from synergy_gym.seasons import SEASON, season_files
from synergy_gym.types import SLO, EngineSpec, Event
from synergy_gym.workload.base import make_workload

FILES = season_files(SEASON)
REQUIRED = {
    "chat-h100": ("1xH100",),
    "code-a100": ("1xA100",),
    "summarization-h100": ("1xH100",),
    "chat-a6000": ("2xA6000",),
    "flowgpt-8xh100": ("1xH100",) * 8,
    "flowgpt-8xh100-llama8b": ("1xH100",) * 8,
    "hetero-3": ("1xH100", "1xA100", "2xA6000"),
    "long-context-4xh100": ("1xH100",) * 4,
    "smoke": ("1xH100",),
    "smoke-cluster": ("1xH100", "1xH100", "1xA100"),
    "live-chat": ("1-cpu-thread",),
    "live-long-prompts": ("1-cpu-thread",),
    "live-cluster": ("1-cpu-thread",) * 2,
}

REFIT = [f"season1/{name}" for name in list_scenarios(1) if name.endswith("-refit")]

Edit = Callable[[str], Path]


@pytest.fixture
def smoke(tmp_path: Path) -> Edit:
    """Writes the packaged smoke scenario with a part replaced, as `mine.toml`."""

    def write(*changes: tuple[str, str], extra: str = "") -> Path:
        text = (FILES.scenarios / "smoke.toml").read_text()
        for pattern, replacement in changes:
            text, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
            assert count == 1, pattern
        path = tmp_path / "mine.toml"
        path.write_text(extra + text if extra.startswith("#") else text + "\n" + extra)
        return path

    return write  # type: ignore[return-value]


@pytest.fixture(scope="module", params=[*list_scenarios(), *REFIT])
def scenario(request: pytest.FixtureRequest) -> Scenario:
    return load_scenario(request.param)


def test_required_scenarios_exist() -> None:
    assert set(REQUIRED) <= set(list_scenarios())
    for name, gpus in REQUIRED.items():
        assert tuple(engine.gpu for engine in load_scenario(name).engines) == gpus


def test_packaged_scenarios_follow_the_rules(scenario: Scenario) -> None:
    assert {0.6, 0.8, 1.0, 1.2, 1.5} <= set(scenario.loads)
    assert len(scenario.test_seeds) >= 10
    splits = (scenario.train_seeds, scenario.validation_seeds, scenario.test_seeds)
    for one, other in itertools.combinations(map(set, splits), 2):
        assert not one & other
    assert 0 <= scenario.warmup_s < scenario.horizon_s
    assert scenario.clock == "measured"
    assert len(scenario.terms) == len(scenario.engines)
    assert len({engine.name for engine in scenario.engines}) == len(scenario.engines)
    for engine in scenario.engines:
        assert engine.kv_blocks * engine.block_size >= engine.max_model_len
        if not scenario.name.startswith("live-"):
            assert_server_defaults(engine)


def assert_server_defaults(engine: EngineSpec) -> None:
    """vLLM's own limits on the GPU that the engine names."""
    server = (8192, 1024) if "H100" in engine.gpu else (2048, 256)
    assert engine.max_num_batched_tokens == server[0]
    assert engine.max_num_seqs in (server[1], 256)


def test_packaged_traffic_fits_its_cluster(scenario: Scenario) -> None:
    traffic = [scenario.workload(load=1.0, seed=seed) for seed in scenario.train_seeds]
    mean = sum(map(len, traffic)) / len(traffic)
    assert mean == pytest.approx(scenario.rate_rps * scenario.horizon_s, rel=0.25)
    workload = traffic[0]
    assert workload.arrival_ns.min() >= 0
    assert workload.arrival_ns.max() < scenario.horizon_s * 1e9
    assert workload.slo_class.max() < len(scenario.slos)
    limit = min(engine.max_model_len for engine in scenario.engines)
    total = workload.prompt_tokens + workload.output_tokens
    assert (total > limit).mean() <= 0.01


def test_traffic_is_fixed_by_seed_and_scales_with_load() -> None:
    scenario = load_scenario("smoke")
    first, again = scenario.workload(1.0, 7), scenario.workload(1.0, 7)
    for column in ("arrival_ns", "prompt_tokens", "output_tokens", "session"):
        assert np.array_equal(getattr(first, column), getattr(again, column))
    assert not np.array_equal(first.arrival_ns, scenario.workload(1.0, 8).arrival_ns)
    counts = [sum(len(scenario.workload(x, seed)) for seed in range(20)) for x in (0.5, 1.0, 2.0)]
    assert counts[0] < 0.75 * counts[1] < counts[1] < 0.75 * counts[2]
    with pytest.raises(ValueError, match="load is 0"):
        scenario.workload(load=0.0)


def test_hash_follows_content_not_prose(smoke: Edit) -> None:
    path = smoke()
    base = load_scenario(path).hash()
    assert re.fullmatch(r"[0-9a-f]{64}", base)
    assert load_scenario(path).hash() == base
    assert (
        load_scenario(smoke(('^description = ".*"', 'description = "other words"'))).hash() == base
    )
    assert load_scenario(smoke(('^rate_source = ".*"', 'rate_source = "measured"'))).hash() == base
    assert load_scenario(smoke(("^horizon_s = .*", "horizon_s = 21.0"))).hash() != base
    assert load_scenario(smoke(("^tpot_s = .*", "tpot_s = 0.051"))).hash() != base
    hashes = {load_scenario(name).hash() for name in list_scenarios()}
    assert len(hashes) == len(list_scenarios())


def test_hetero_weights_and_names() -> None:
    hetero = load_scenario("hetero-3")
    assert [engine.weight for engine in hetero.engines] == [64.0, 22.4, 13.7]
    flow = load_scenario("flowgpt-8xh100")
    assert [engine.name for engine in flow.engines] == [f"h100-{i}" for i in range(8)]
    assert {engine.model for engine in flow.engines} == {"Qwen/QwQ-32B"}
    long = load_scenario("long-context-4xh100")
    assert {engine.max_model_len for engine in long.engines} == {131072}
    assert all(engine.prefix_caching for engine in long.engines)


def test_events_and_clients(smoke: Edit) -> None:
    extra = """
[client]
timeout_s = 15.0
max_retries = 1
backoff_s = 0.5

[[events]]
at_s = 3.0
kind = "slowdown"
engine = "h100"
factor = 2.5

[[events]]
at_s = 5.0
kind = "lose_blocks"
engine = "h100"
blocks = 100

[[events]]
at_s = 6.0
kind = "down"
engine = "h100"

[[events]]
at_s = 9
kind = "up"
engine = "h100"
"""
    scenario = load_scenario(smoke(extra=extra))
    assert scenario.client.timeout_s == 15.0
    assert scenario.events == (
        Event(3.0, "slowdown", 0, factor=2.5),
        Event(5.0, "lose_blocks", 0, blocks=100),
        Event(6.0, "down", 0),
        Event(9.0, "up", 0),
    )


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        (r"^horizon_s = ", "horizon = ", "horizon: unknown key; use `horizon_s`"),
        (r"^horizon_s = ", "horizon_ms = ", "horizon_ms: unknown key; use `horizon_s`"),
        (r"^rate_rps = ", "rate_rpm = ", "rate_rpm: unknown key; use `rate_rps`"),
        (
            r"^rate_rps = .*",
            "rate_rps = -2.0",
            "rate_rps: is -2.0.*greater than 0.*requests per second",
        ),
        (r"^rate_rps = .*", 'rate_rps = "8"', "rate_rps: is '8'"),
        (r"^rate_rps = .*", "rate_rps = inf", "rate_rps: is inf"),
        (r"^clock = .*", 'clock = "wall"', 'clock: is \'wall\'.*give "measured" or "saturation"'),
        (r"^clock = .*", "", 'clock: missing; add "measured"'),
        (
            r"^profile = ",
            'saturation = "six"\nprofile = ',
            r"engine\[0\].saturation: has no meaning for clock = 'measured'; remove it, or",
        ),
        (
            r"^profile = ",
            'saturation = "seven"\nprofile = ',
            r'engine\[0\].saturation: is .seven.*give "stable", "six" or "eight"',
        ),
        (r"^loads = .*", "loads = [0.5, 2.0]", "loads: 1.0 is missing"),
        (r"^loads = .*", "loads = [1.0, 0.5]", "loads: .*increasing"),
        (r"^loads = .*", "loads = [-1.0, 1.0]", "loads: .*positive"),
        (r"^warmup_s = .*", "warmup_s = 20.0", "warmup_s: 20.0 is not below horizon_s"),
        (r"^ttft_s = .*", "ttft_ms = 1000.0", r"slo\[0\].ttft_ms: unknown key; use `ttft_s`"),
        (r"^tpot_s = .*", "tpot_s = 0.0", r"slo\[0\].tpot_s: is 0.0"),
        (r"^tpot_s = .*", "tpot_s = 1e9", r"slo\[0\].tpot_s: is 1000000000.0.*ten years"),
        (r"^horizon_s = .*", "horizon_s = 1e10", r"horizon_s: is 1\d*.0.*ten years"),
        (
            r"^\[traffic\]",
            "[client]\nmax_retries = 65535\n[traffic]",
            r"client.max_retries: is 65535.*from 0 to 65,534",
        ),
        (
            r"^push_interval_s = .*",
            "push_interval_s = 0.2\npush_delay_s = 1e9",
            r"telemetry.push_delay_s: is 1000000000.0.*ten years",
        ),
        (
            r"^push_interval_s = .*",
            "push_interval = 0.2",
            "telemetry.push_interval: .*`push_interval_s`",
        ),
        (r"^heartbeat = .*", 'heartbeat = "always"', "telemetry.heartbeat: is 'always'"),
        (
            r"^profile = .*",
            'profile = "h100-llama-3.1-7b"',
            r"engine\[0\].profile: .*did you mean 'h100-llama-3.1-8b'",
        ),
        (
            r"^profile = .*",
            'profile = "none.toml"',
            r"engine\[0\].profile: .*none.toml: cannot be read",
        ),
        (
            r"^gpu = .*",
            'gpu = "1xB200"',
            r"engine\[0\].gpu: is '1xB200'.*measured on '1xH100'.*agree",
        ),
        (r"^model = .*", 'model = "gpt-2"', r"engine\[0\].model: is 'gpt-2'.*agree"),
        (r"^max_num_seqs = .*", "max_seqs = 4", r"engine\[0\].max_seqs: .*use `max_num_seqs`"),
        (
            r"^max_num_seqs = .*",
            "max_num_seqs = 0",
            r"engine\[0\].max_num_seqs: is 0.*whole number >= 1",
        ),
        (r"^max_num_seqs = .*", "max_num_seqs = 4.5", r"engine\[0\].max_num_seqs: is 4.5"),
        (
            r"^max_model_len = .*",
            "max_model_len = 99999",
            r"engine\[0\].*fewer than max_model_len = 99999; lower",
        ),
        (
            r"^kv_blocks = .*",
            "kv_blocks = 1441",
            r"engine\[0\].kv.kv_blocks: is 1441.*gives 1440; write 1440",
        ),
        (
            r"^weights_gib = .*",
            "weights_gb = 16.06",
            r"engine\[0\].kv.weights_gb: .*use `weights_gib`",
        ),
        (r"^memory_utilization = .*", "memory_utilization = 1.2", r"kv.memory_utilization: is 1.2"),
        (
            r"^validation = \[[^]]*\]",
            "validation = [1000]",
            r"seeds.validation: seed 1000 stands in train too",
        ),
        (
            r"^validation = \[[^]]*\]",
            "validation = [5, 5]",
            r"seeds.validation: seed 5 stands twice",
        ),
        (r"^validation = \[[^]]*\]", "validation = [-5]", "seeds.*seed -5 is negative"),
        (r"^test = .*", "test = [1, 2, 3]", "seeds.test: .*at least 10"),
        (r"^test = .*", "tset = [1, 2, 3]", "seeds.tset: unknown key; use `test`"),
        (r"^\[traffic\]", "[trafic]", r"trafic: unknown key; use `traffic`"),
    ],
)
def test_mistakes_name_file_key_and_cure(
    smoke: Edit, pattern: str, replacement: str, expected: str
) -> None:
    path = smoke((pattern, replacement))
    with pytest.raises(ScenarioError, match=expected) as caught:
        load_scenario(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("h101", "down", 1.0, "")], r"events\[0\].engine: no engine 'h101'; did you mean 'h100'"),
        ([("h100", "down", 20.0, "")], r"events\[0\].at_s: 20.0 is not before horizon_s"),
        ([("h100", "down", -1.0, "")], r"events\[0\].at_s: is -1.0"),
        ([("h100", "up", 1.0, "")], r"events\[0\].kind: h100 is not down"),
        ([("h100", "down", 1.0, ""), ("h100", "down", 2.0, "")], r"events\[1\].*down already"),
        ([("h100", "down", 5.0, ""), ("h100", "up", 2.0, "")], r"events\[1\].at_s: .*sort events"),
        ([("h100", "slowdown", 1.0, "")], r"events\[0\].*factor: missing"),
        ([("h100", "slowdown", 1.0, "factor = 0.0")], r"events\[0\].factor: is 0.0"),
        ([("h100", "slowdown", 1.0, "factor = 1e9")], r"events\[0\].factor: .*up to 1,000,000"),
        ([("h100", "lose_blocks", 1.0, "blocks = -4")], r"events\[0\].blocks: is -4"),
        ([("h100", "down", 1.0, "factor = 2.0")], r"events\[0\].*factor: has no meaning"),
        ([("h100", "lose_blocks", 1.0, "blocks = 1440")], r"events\[0\].blocks: .*take fewer"),
        ([("h100", "explode", 1.0, "")], r"events\[0\].kind: is 'explode'"),
    ],
)
def test_impossible_events_are_refused(
    smoke: Edit, events: list[tuple[str, str, float, str]], expected: str
) -> None:
    extra = "".join(
        f'\n[[events]]\nat_s = {at}\nkind = "{kind}"\nengine = "{engine}"\n{rest}\n'
        for engine, kind, at, rest in events
    )
    with pytest.raises(ScenarioError, match=expected):
        load_scenario(smoke(extra=extra))


def test_engines_that_cache_have_one_block_size(tmp_path: Path) -> None:
    text = (FILES.scenarios / "smoke-cluster.toml").read_text()
    path = tmp_path / "mine.toml"
    for old, new in (("weight = 2.0", "weight = 2.0\nblock_size = 8"), ("s = 1440", "s = 2881")):
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"mine.toml: engine\[\].block_size: .*\[8, 16\]; give"):
        load_scenario(path)
    path.write_text(text.replace("prefix_caching = true", "prefix_caching = false", 1))
    assert [engine.block_size for engine in load_scenario(path).engines] == [8, 8, 16]


SATURATION = ("^clock = .*", 'clock = "saturation"')


def test_the_saturation_clock_is_the_model_published_for_the_engine(smoke: Edit) -> None:
    scenario = load_scenario(smoke(SATURATION))
    (engine,), (terms,) = scenario.engines, scenario.terms
    assert isinstance(terms, SaturationTerms)
    assert terms.model == published_model(engine.gpu, engine.model, "stable")
    assert (terms.max_sequences, terms.max_tokens) == (
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
    )
    assert terms.noise_sd == 0.0
    six = load_scenario(smoke(SATURATION, ("^profile = ", 'saturation = "six"\nprofile = ')))
    assert six.terms[0].model == published_model(engine.gpu, engine.model, "six")  # type: ignore[union-attr]
    assert six.hash() != scenario.hash()


def test_an_engine_without_a_published_model_is_refused(smoke: Edit, tmp_path: Path) -> None:
    forms = ("^profile = .*", 'saturation = "six"\nprofile = "a100-llama-3.1-8b"')
    with pytest.raises(
        ScenarioError,
        match=r"engine\[0\].saturation: no 'six' .*Instruct on 1xA100; use 'stable' or 'eight'",
    ):
        load_scenario(smoke(SATURATION, forms, ("^gpu = .*", 'gpu = "1xA100"')))
    text = (FILES.profiles / "h100-llama-3.1-8b.toml").read_text()
    (tmp_path / "own.toml").write_text(text)
    own = ("^profile = .*", 'profile = "own.toml"')
    assert load_scenario(smoke(SATURATION, own)).clock == "saturation"  # another clock, same GPU
    (tmp_path / "own.toml").write_text(text.replace('"1xH100"', '"1xGH200"'))
    gpu = ("^gpu = .*", 'gpu = "1xGH200"')
    with pytest.raises(ScenarioError, match=r"Instruct on 1xGH200; use clock = .measured"):
        load_scenario(smoke(SATURATION, own, gpu))
    assert load_scenario(smoke(own, gpu)).clock == "measured"


@pytest.mark.parametrize("name", REFIT)
def test_a_refit_twin_differs_in_its_clock_alone(name: str) -> None:
    twin, base = load_scenario(name), load_scenario(name.removesuffix("-refit"))
    assert {e.profile for e in twin.engines} == {"h100-llama-3.1-8b-8xh100run"}
    assert {e.profile for e in base.engines} == {"h100-llama-3.1-8b"}
    assert twin.rate_rps != base.rate_rps
    assert f"calibrate {twin.name}`" in twin.rate_source
    pairs = zip(twin.engines, base.engines, strict=True)
    engines = tuple(replace(ours, profile=theirs.profile) for ours, theirs in pairs)
    same = replace(twin, engines=engines, terms=base.terms, name=base.name, rate_rps=base.rate_rps)
    assert same.hash() == base.hash()


UNPUBLISHED = ("live-", "heldout-rtxpro-")
PUBLISHED = [name for name in list_scenarios() if not name.startswith(UNPUBLISHED)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_scenario_of_a_published_gpu_has_a_saturation_twin(name: str) -> None:
    measured, twin = load_scenario(name), load_scenario(f"{name}@saturation")
    assert twin.hash() == measured.with_clock("saturation").hash() != measured.hash()
    assert (twin.name, twin.clock) == (f"{name}@saturation", "saturation")
    assert all(isinstance(terms, SaturationTerms) for terms in twin.terms)
    assert twin.engines == measured.engines
    back = twin.with_clock("measured")
    assert back.terms == measured.terms == measured.measured_terms
    assert measured.with_clock("measured") is measured


def test_the_forms_of_the_saturation_clock() -> None:
    six = load_scenario("smoke").with_clock("saturation-six")
    assert six.name == "smoke@saturation-six"
    assert six.with_clock("saturation-eight").name == "smoke@saturation-eight"
    assert six.terms[0].model.form == "six"  # type: ignore[union-attr]
    with pytest.raises(ScenarioError, match="cluster@saturation-six: engine 'a100': no 'six'"):
        load_scenario("smoke-cluster@saturation-six")
    with pytest.raises(
        ScenarioError, match="smoke: no clock 'wall'; choose one of measured, async, sync, table"
    ):
        load_scenario("smoke@wall")
    with pytest.raises(ScenarioError, match="did you mean 'smoke'"):
        load_scenario("smok@saturation")


def test_every_mistake_is_listed(smoke: Edit) -> None:
    path = smoke(("^horizon_s", "horizon_ms"), ("^rate_rps = .*", "rate_rps = -1.0"))
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "horizon_ms" in lines[0]
    assert "rate_rps" in lines[1]


def test_repeated_names_are_refused(smoke: Edit) -> None:
    extra = '\n[[slo]]\nname = "default"\nttft_s = 1.0\n'
    mix = (r"^\[traffic\]", "[traffic]\nslo_mix = [0.5, 0.5]")
    with pytest.raises(ScenarioError, match=r"slo\[\].name: 'default' is used twice"):
        load_scenario(smoke(mix, extra=extra))


def test_two_classes_share_the_traffic(smoke: Edit) -> None:
    extra = '\n[[slo]]\nname = "batch"\ne2e_s = 60.0\n'
    mix = (r"^\[traffic\]", "[traffic]\nslo_mix = [0.7, 0.3]\npriorities = [0, 5]")
    workload = load_scenario(smoke(mix, extra=extra)).workload(seed=3)
    assert set(workload.slo_class.tolist()) == {0, 1}
    assert np.array_equal(workload.priority, 5 * workload.slo_class)
    with pytest.raises(ScenarioError, match=r"traffic.slo_mix: has 1 shares for 2 \[\[slo\]\]"):
        load_scenario(smoke(extra=extra))


def test_a_class_must_promise_something(smoke: Edit) -> None:
    with pytest.raises(ScenarioError, match=r"slo\[1\]: promises nothing"):
        load_scenario(smoke(extra='\n[[slo]]\nname = "batch"\n'))


def test_unknown_scenarios_name_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="did you mean 'chat-h100'"):
        load_scenario("chat-h10")
    with pytest.raises(ScenarioError, match="packaged scenarios: chat-a6000"):
        load_scenario("zzz")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("horizon_s = = 3")
    with pytest.raises(ScenarioError, match=r"broken.toml: not valid TOML: .*line 1"):
        load_scenario(broken)


def _workload(
    arrival_s: list[float], output: list[int], classes: list[int] | None = None, after: int = -1
):  # type: ignore[no-untyped-def]
    n = len(arrival_s)
    return make_workload(
        np.array([round(t * 1e9) for t in arrival_s], np.int64),
        np.full(n, 10, np.int64),
        np.array(output, np.int64),
        slo_class=np.array(classes or [0] * n, np.int64),
        after=np.array([-1] * (n - 1) + [after], np.int64),
    )


def test_stop_time_is_the_last_deadline() -> None:
    both = SLO("both", ttft_s=1.0, tpot_s=0.05)
    e2e = SLO("e2e", ttft_s=1.0, tpot_s=0.05, e2e_s=8.0)
    open_loop = _workload([0.0, 3.0], [101, 11])
    assert stop_time_ns(open_loop, [both], 10.0) == 6_000_000_000
    assert stop_time_ns(open_loop, [e2e], 10.0) == 11_000_000_000
    assert (
        stop_time_ns(_workload([0.0, 3.0], [101, 11], [0, 1]), [both, e2e], 10.0) == 11_000_000_000
    )
    assert stop_time_ns(open_loop, [SLO("ttft", ttft_s=1.0)], 10.0) == NO_DEADLINE_NS
    assert stop_time_ns(open_loop, [SLO("tpot", tpot_s=1.0)], 10.0) == NO_DEADLINE_NS
    unused = [both, SLO("unused", ttft_s=1.0)]
    assert stop_time_ns(open_loop, unused, 10.0) == 6_000_000_000


def test_stop_time_of_a_closed_loop_counts_from_the_horizon() -> None:
    closed = _workload([0.0, 3.0], [101, 11], after=0)
    assert stop_time_ns(closed, [SLO("both", ttft_s=1.0, tpot_s=0.05)], 10.0) == 16_000_000_000


def test_stop_time_of_empty_traffic_is_the_horizon() -> None:
    empty = make_workload(*(np.empty(0, np.int64) for _ in range(3)))
    assert stop_time_ns(empty, [SLO("a", e2e_s=1.0)], 10.0) == 10_000_000_000


def test_a_window_shortens_or_lengthens_an_episode() -> None:
    scenario = load_scenario("smoke")
    assert windowed(scenario, None, None) is scenario
    short = windowed(scenario, 1, np.float32(5.0))
    assert (short.warmup_s, short.horizon_s) == (1.0, 5.0)
    assert short.workload(seed=3).arrival_ns.max() < 5 * 10**9
    assert windowed(scenario, None, 5.0).warmup_s == scenario.warmup_s
    long = windowed(scenario, 0.0, 60.0).workload(seed=3)
    assert 50 * 10**9 < long.arrival_ns.max() < 60 * 10**9


@pytest.mark.parametrize(
    ("window", "match"),
    [
        ((None, 0), "horizon_s=0 must be a finite number of seconds > 0; None keeps the"),
        ((None, -3.0), "horizon_s=-3.0 must be"),
        ((None, float("inf")), "horizon_s=inf must be .* scenario's own 20 s"),
        ((None, float("nan")), "horizon_s=nan must be"),
        ((None, True), "horizon_s=True must be"),
        ((None, "5"), "horizon_s='5' must be"),
        ((-1.0, None), "warmup_s=-1.0 must be a finite number of seconds >= 0; None keeps"),
        ((float("nan"), None), "warmup_s=nan must be"),
        ((False, None), "warmup_s=False must be"),
        ((20.0, None), "warm-up 20.0 s and horizon 20.0 s leave no scored window"),
        ((None, 2.0), "warm-up 2.0 s and horizon 2.0 s leave no scored window"),
    ],
    ids=str,
)
def test_impossible_windows_name_the_cure(window: tuple[Any, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        windowed(load_scenario("smoke"), *window)
    assert "\n" not in str(error.value)


def test_a_window_ends_after_the_last_event() -> None:
    scenario = load_scenario("incident-cold-restart")
    last = scenario.events[-1].at_s
    assert windowed(scenario, 0.0, last + 1).events == scenario.events
    with pytest.raises(ValueError, match=f"before its event .* at {last:g} s"):
        windowed(scenario, 0.0, last)
    assert windowed(scenario, 0.0, None).events == scenario.events
