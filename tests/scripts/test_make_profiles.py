"""Packaged profiles are what the kernel tables give: some of them are made again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from synergy_gym.latency.profiles import list_profiles, load_profile
from synergy_gym.seasons import SEASON, season_files
from tests.loading import load_script

PROFILES = season_files(SEASON).profiles
MEASURED = {"2xa6000-llama-3.1-8b", "cpu-tiny-llama", "h100-qwq-32b"}
DRAWN = 4

pytest.importorskip("aiconfigurator_core", reason="needs the extra clocks")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("scripts/make_profiles.py")


@pytest.fixture(scope="module")
def requests(script: ModuleType) -> dict[str, Any]:
    return dict(script.requests())


def numbers(content: dict[str, Any], path: str = "") -> dict[str, float]:
    """Every number of a file by its place, ranges apart: those are resampled."""
    found: dict[str, float] = {}
    for key, value in content.items():
        if isinstance(value, dict) and key != "ranges":
            found |= numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float):
            found[f"{path}{key}"] = float(value)
        elif isinstance(value, list) and key != "ranges":
            flat = np.array(value, float).ravel()
            found |= {f"{path}{key}[{i}]": float(x) for i, x in enumerate(flat)}
    return found


def test_every_profile_is_made_or_measured(script: ModuleType, requests: dict[str, Any]) -> None:
    assert {*requests, script.NODE, *MEASURED} == set(list_profiles())
    for name in MEASURED:
        assert load_profile(name).tier == "measured steps"


def test_gpus_and_models_that_must_be_there(requests: dict[str, Any]) -> None:
    for gpu in ("h100", "h200", "a100", "b200", "l40s", "rtxpro6000"):
        for model in ("llama-3.1-8b", "qwen3-8b", "qwen3-14b", "qwen3-32b", "qwen3-30b-a3b"):
            assert any(name.endswith(f"{gpu}-{model}") for name in requests), (gpu, model)
    for gpu in ("h100", "h200", "b200", "l40s", "rtxpro6000"):
        for model in ("qwq-32b-fp8", "gpt-oss-20b", "gpt-oss-120b", "llama-3.1-70b-fp8"):
            assert any(name.endswith(f"{gpu}-{model}") for name in requests), (gpu, model)


def test_profiles_made_again_have_the_same_coefficients(
    script: ModuleType, requests: dict[str, Any], rng: np.random.Generator
) -> None:
    for name in rng.choice(sorted(requests), DRAWN, replace=False):
        request = requests[str(name)]
        made = tomllib.loads(script.make_profile(request, script.tier_of(request)))
        packaged = tomllib.loads((PROFILES / f"{name}.toml").read_text(encoding="utf-8"))
        assert made["tier"] == packaged["tier"], name
        assert numbers(made) == pytest.approx(numbers(packaged), rel=0.01, abs=1e-9), name


def test_the_node_s_profile_is_the_kernels_one_and_what_was_fitted(
    script: ModuleType, requests: dict[str, Any]
) -> None:
    kernels = (PROFILES / "h100-llama-3.1-8b.toml").read_text(encoding="utf-8")
    assert (PROFILES / f"{script.NODE}.toml").read_text(encoding="utf-8") == script.node_profile(
        kernels
    )
    node = load_profile(script.NODE)
    assert node.file.terms == load_profile("h100-llama-3.1-8b").file.terms
    assert node.file.engine is not None
    assert node.file.engine.loop == "sync"


def test_the_check_sees_a_change(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    request = script.Request("meta-llama/Llama-3.1-8B-Instruct", "a100")
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr(script, "requests", lambda: [("mine", request)])

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["make_profiles.py", *arguments])
        with pytest.raises(SystemExit) as done:
            script.main()
        return done.value.code, capsys.readouterr().out.strip()

    assert run("--check") == (True, "mine")
    assert not (tmp_path / "mine.toml").exists()
    assert run() == (False, "mine")
    assert run("--check") == (False, "all profiles are as they would be written")
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace("floor_ms = 1", "floor_ms = 2"))
    assert run("--check") == (True, "mine")
