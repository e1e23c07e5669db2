"""`synergy-gym clock`: the profile it writes, the table it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synergy_gym.cli.app import main
from synergy_gym.latency.profiles import load_profile
from synergy_gym.scenario import load_scenario
from synergy_gym.seasons import SEASON, season_files

pytest.importorskip("aiconfigurator_core", reason="needs the extra clocks")

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["clock", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def test_the_profile_is_the_packaged_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "mine.toml"
    code, table, note = cli(capsys, "--model", LLAMA, "--gpu", "a100", "--out", out)
    assert code == 0
    assert max(map(len, table.splitlines())) <= 80
    for text in ("floor_ms", "engine async", "engine sync", "sustained", "fit error, mixed"):
        assert text in table
    assert "unvalidated" in table
    assert str(out) in note.replace("\n", "")
    packaged, made = load_profile("a100-llama-3.1-8b").terms, load_profile(out).terms
    assert made.floor_ms == pytest.approx(packaged.floor_ms, rel=0.01)
    assert made.per_token_ms == pytest.approx(packaged.per_token_ms, rel=0.01)


def test_an_engine_of_a_scenario_takes_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "mine.toml"
    code, *_ = cli(capsys, "--model", LLAMA, "--gpu", "H100-SXM", "--engine", "sync", "--out", out)
    assert code == 0
    scenario = (season_files(SEASON).scenarios / "smoke.toml").read_text()
    assert 'profile = "h100-llama-3.1-8b"' in scenario
    own = tmp_path / "world.toml"
    own.write_text(scenario.replace('"h100-llama-3.1-8b"', f'"{out}"'))
    packaged, mine = load_scenario("smoke"), load_scenario(own)
    assert packaged.terms[0].floor_ms == pytest.approx(mine.terms[0].floor_ms, rel=0.01)  # type: ignore[union-attr]
    assert load_profile(out).terms.floor_ms == pytest.approx(
        load_profile(out).timed("async").floor_ms + 1.0
    )


def test_a_configuration_of_my_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "my-model" / "config.json"
    config.parent.mkdir()
    config.write_text(
        json.dumps(
            {
                "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
                "intermediate_size": 8192, "vocab_size": 128256,
            }
        )
    )  # fmt: skip
    out = tmp_path / "mine.toml"
    code, *_ = cli(
        capsys, "--model", config.parent, "--gpu", "l40s", "--name", "me/small", "--out", out
    )
    assert code == 0
    assert load_profile(out).model == "me/small"
    assert load_profile(out).terms.floor_ms < load_profile("l40s-llama-3.1-8b").terms.floor_ms / 2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--gpu", "h20"), "GPU 'h20': no kernel tables; did you mean 'h200'?"),
        (("--model", "org/nobody"), "give the path of its config.json"),
        (("--model", "deepseek-ai/DeepSeek-V3"), "has latent attention (MLA)"),
        (("--tp", "3"), "--tp 3 does not divide its 32 query heads"),
        (("--kv", "int4"), "KV cache 'int4': choose one of bf16, fp8"),
        (("--weights", "int3"), "weights 'int3': choose one of"),
        (("--engine", "fast"), "--engine 'fast': choose one of async, sync"),
        (("--kernels", "mine"), "--kernels 'mine': choose one of vllm, trtllm"),
        (("--out", "mine.txt"), "--out mine.txt is no .toml file"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, str], why: str
) -> None:
    options = {"--model": LLAMA, "--gpu": "h100", "--out": str(tmp_path / "mine.toml")}
    options[arguments[0]] = arguments[1]
    code, out, err = cli(capsys, *(part for pair in options.items() for part in pair))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert why in err
    assert not (tmp_path / "mine.toml").exists()


def test_without_the_extra_the_cure_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = cli(capsys, "--model", LLAMA, "--gpu", "h100", "--out", tmp_path / "mine.toml")
    assert code == 2
    assert "pip install 'synergy-gym[clocks]'" in err
