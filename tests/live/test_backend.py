"""Options of real engines: what is refused, and that nothing needs vLLM before it is used."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import synergy_gym
from synergy_gym.cli.app import main
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.live.backend import TRANSPORTS, LiveOptions, live_options
from synergy_gym.live.inprocess.machine_config import MachineConfig, kv_block_bytes, read_model
from synergy_gym.live.inprocess.machines import EngineHouse
from synergy_gym.live.vllm.tiny_model import write_model
from synergy_gym.live.vllm.version import VllmUnavailableError
from synergy_gym.scenario import load_scenario
from tests.strategies import spec

ENGINE, ROUTER = "SynergyGym/EngineBatching-v1", "SynergyGym/ClusterRouting-v1"
ROOT = Path(synergy_gym.__file__).parents[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"clock": "sundial"}, "choose one of .*wall.*cpu.*model"),
        ({"transport": "pigeon"}, "choose one of .*inprocess"),
        ({"token_caps": "ignore"}, "error.*drop"),
        ({"threads": 0}, "threads=0 must be positive"),
        ({"request_timeout_s": -1.0}, "request_timeout_s"),
        ({"model": " "}, "model is empty"),
    ],
)
def test_wrong_options_name_the_value_and_the_choice(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LiveOptions(**options)


def test_single_options_change_those_that_were_given() -> None:
    given = live_options("vllm", LiveOptions(model="mid", clock="cpu"), clock="model", urls=None)
    assert given == LiveOptions(model="mid", clock="model")
    assert live_options("sim", None, model=None) is None


@pytest.mark.parametrize("name", [ENGINE, ROUTER])
def test_options_of_real_engines_need_them(name: str) -> None:
    with pytest.raises(ValueError, match=r"model, clock can be given with backend='vllm' only"):
        gym.make(name, model="tiny", clock="cpu")


def test_a_transport_without_batch_points_cannot_be_stepped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = {**TRANSPORTS, "elsewhere": "nowhere:build"}
    monkeypatch.setattr("synergy_gym.live.backend.TRANSPORTS", more)
    options = LiveOptions(transport="elsewhere")
    with pytest.raises(ValueError, match="use transport='inprocess'"):
        gym.make(ENGINE, scenario="live-chat", backend="vllm", live=options)


def test_a_cluster_is_no_engine() -> None:
    with pytest.raises(ValueError, match="ClusterRouting"):
        gym.make(ENGINE, scenario="live-cluster", backend="vllm")


def test_without_vllm_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    scenario = load_scenario("live-chat")
    odd = replace(scenario, engines=(replace(scenario.engines[0], max_num_seqs=5),))
    with pytest.raises(VllmUnavailableError, match="make vllm"):
        evaluate(odd, backend="vllm")
    env = gym.make(ENGINE, scenario=odd, backend="vllm")
    with pytest.raises(VllmUnavailableError, match="make vllm"):
        env.reset(seed=0)


def test_the_backend_is_checked_before_anything_is_started() -> None:
    with pytest.raises(ValueError, match="choose 'sim' or 'vllm'"):
        evaluate("live-chat", backend="triton")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--backend", "gpu"], "choose sim or vllm"),
        (["--model", "tiny"], "backend='vllm' only"),
        (["--backend", "vllm", "--clock", "saturation"], "wall, cpu, model"),
        (["--backend", "vllm", "--transport", "pigeon"], "inprocess"),
        (["--backend", "vllm", "--model", "no/such/folder"], "config.json"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "live-chat", "--engine-policy", "vllm-v1", *arguments])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err.replace("\n", " ")


def test_a_model_must_hold_the_longest_request(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "short", "tiny", max_model_len=512)
    config = MachineConfig.of(spec(max_model_len=513, block_size=32), folder)
    with pytest.raises(ValueError, match=r"max_model_len is 513.*ends at 512"):
        config.arguments()
    assert MachineConfig.of(spec(max_model_len=512, block_size=32), folder).arguments()


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_model(tmp_path)


def test_kv_blocks_are_sized_by_the_model_file(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path, "tiny"))
    # 2 (keys, values) x 2 layers x 2 KV heads x 32 dimensions x 4 bytes x 32 tokens
    assert kv_block_bytes(model, 32, "float32") == 32_768
    assert kv_block_bytes({"text_config": model}, 32, "float32") is None


def test_weights_in_the_folder_are_loaded(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "tiny")
    config = MachineConfig.of(spec(block_size=32), folder)
    assert config.arguments()["load_format"] == "dummy"
    (folder / "model.safetensors").touch()
    assert config.arguments()["load_format"] == "auto"


def test_engines_of_equal_limits_are_interchangeable() -> None:
    house = EngineHouse()
    named = [house.configuration(spec(name=name, gpu=name), LiveOptions()) for name in "ab"]
    assert named[0] == named[1]
    assert named[0] != house.configuration(spec(kv_blocks=99), LiveOptions())
    assert house.started == 0


def test_nothing_heavy_is_loaded_by_making_an_environment() -> None:
    code = (
        "import sys, gymnasium as gym, synergy_gym; "
        f"gym.make('{ENGINE}', scenario='live-chat', backend='vllm'); "
        "print(sorted({'vllm', 'torch', 'httpx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
