"""Configuration of a hosted policy by environment variables."""

from __future__ import annotations

import pytest

from synergy_gym.live.vllm.settings import VARIABLES, HostSettings, parse_slos
from synergy_gym.policies.engine.sarathi import Sarathi
from synergy_gym.scenario import load_scenario
from synergy_gym.types import SLO


def test_settings_survive_the_environment() -> None:
    settings = HostSettings("sarathi-512:chunk_tokens=64", "ttft_s=1", "udp://h:1", "e0", "d", "7")
    environment = settings.environment() | {"PATH": "/bin"}
    assert HostSettings.from_environment(environment) == settings
    assert set(settings.environment()) == set(VARIABLES.values())
    policy = settings.make_policy()
    assert isinstance(policy, Sarathi)
    assert policy.chunk_tokens == 64
    assert settings.make_seed() == 7


def test_empty_settings_set_no_variable() -> None:
    assert HostSettings().environment() == {}
    assert HostSettings.from_environment({"SYNERGY_GYM_POLICY": ""}) == HostSettings()


def test_a_server_without_or_with_an_unknown_policy_is_told_the_names() -> None:
    with pytest.raises(ValueError, match=r"SYNERGY_GYM_POLICY is not set; .*lens-plus"):
        HostSettings().make_policy()
    with pytest.raises(ValueError, match="did you mean lens-plus"):
        HostSettings("lens-pluss").make_policy()


@pytest.mark.parametrize("seed", ["-1", "x", "1.5"])
def test_a_wrong_seed_is_named(seed: str) -> None:
    with pytest.raises(ValueError, match="SYNERGY_GYM_SEED is"):
        HostSettings(seed=seed).make_seed()


def test_objectives_are_read() -> None:
    assert parse_slos("") == (SLO("default"),)
    assert parse_slos("ttft_s=1, tpot_s=0.05") == (SLO("default", 1.0, 0.05),)
    assert parse_slos("chat:ttft_s=1,tpot_s=0.05; batch:e2e_s=60") == (
        SLO("chat", 1.0, 0.05),
        SLO("batch", e2e_s=60.0),
    )
    assert parse_slos("two-class-h100") == load_scenario("two-class-h100").slos


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ttft=1", "no objective 'ttft'; write ttft_s"),
        ("ttft_s=", "ttft_s is ''; give seconds above 0"),
        ("ttft_s=0", "give seconds above 0"),
        ("ttft_s=nan", "give seconds above 0"),
        ("ttft_s=inf", "give seconds above 0"),
        ("a:ttft_s=1;a:ttft_s=2", "names a class twice"),
        ("no-such-scenario", "no-such-scenario"),
    ],
)
def test_wrong_objectives_name_the_value_and_the_cure(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_slos(text)
