"""Packaged profiles: sources, sanity, agreement with published figures, strict files."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest

from synergy_gym.latency.clock import step_ns
from synergy_gym.latency.profiles import Loop, ProfileError, list_profiles, load_profile
from synergy_gym.seasons import SEASON, season_files

NAMES = ("2xa6000-llama-3.1-8b", "a100-llama-3.1-8b", "h100-llama-3.1-8b", "h100-qwq-32b")
PROFILES = season_files(SEASON).profiles
CONTEXT = 4155
"""Mean context of a decode in the authors' FlowGPT profiling logs."""
PAIRS = 2551
"""Mean attention pairs per prefill token there."""


def _step_ms(
    name: str, sequences: int, tokens: int, context: int = CONTEXT, loop: Loop | None = None
) -> float:
    """A step of `sequences` decodes, or of all but one plus a prefill chunk, without noise."""
    clock = load_profile(name).timed(loop).clock()
    clock[9] = 0
    mixed = int(tokens > sequences)
    decodes = sequences - mixed
    pairs = (tokens - decodes) * PAIRS * mixed
    return step_ns(clock, 0, sequences, tokens, decodes * context, pairs, 0, mixed, mixed) / 1e6


def test_all_profiles_load() -> None:
    assert set(NAMES) <= set(list_profiles())
    for name in list_profiles():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.source
        assert load_profile(PROFILES / f"{name}.toml") == profile


@pytest.mark.parametrize("name", NAMES)
def test_every_coefficient_has_its_source_beside_it(name: str) -> None:
    text = (PROFILES / f"{name}.toml").read_text()
    keys = tomllib.loads(text)["terms"]
    for key in keys:
        assert re.search(rf"^{key} = \S+ +# \S", text, re.MULTILINE), f"{name}: {key}"


@pytest.mark.parametrize(
    ("sequences", "tokens"),
    [*((b, b) for b in (1, 2, 8, 32, 128)), *itertools.product((1, 8, 64), (256, 1024, 4096))],
)
@pytest.mark.parametrize("context", [0, 500, 4155, 100_000])
def test_faster_hardware_is_faster(sequences: int, tokens: int, context: int) -> None:
    times = [
        _step_ms(name, sequences, tokens, context)
        for name in ("h100-llama-3.1-8b", "a100-llama-3.1-8b", "2xa6000-llama-3.1-8b")
    ]
    assert times == sorted(times)
    assert len(set(times)) == 3
    assert _step_ms("h100-qwq-32b", sequences, tokens, context) > times[0]


@pytest.mark.parametrize(
    ("name", "measured_ms"),
    [("h100-llama-3.1-8b", 7.35), ("2xa6000-llama-3.1-8b", 14.47), ("h100-qwq-32b", 17.0)],
)
def test_single_decodes_take_their_measured_time(name: str, measured_ms: float) -> None:
    """Of the authors' vLLM 0.9, which schedules synchronously."""
    assert _step_ms(name, 1, 1, loop="sync") == pytest.approx(measured_ms, rel=0.05)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # (B, S): milliseconds by the authors' own fits of the same logs, where these are sound.
        (
            "h100-llama-3.1-8b-8xh100run",
            {(8, 256): 13.1, (16, 1024): 33.3, (32, 2048): 61.3, (32, 4096): 110.6},
        ),
        (
            "a100-llama-3.1-8b",
            {(8, 256): 30.5, (16, 1024): 91.3, (32, 2048): 176.8, (32, 4096): 321.8},
        ),
        ("2xa6000-llama-3.1-8b", {(8, 256): 43.7, (16, 1024): 145.7, (32, 2048): 289.3}),
        ("h100-qwq-32b", {(16, 512): 52.3, (16, 1024): 85.9, (32, 2048): 166.4, (32, 4096): 300.9}),
    ],
)
def test_prefill_steps_agree_with_published_fits(
    name: str, published: dict[tuple[int, int], float]
) -> None:
    for (sequences, tokens), expected in published.items():
        assert _step_ms(name, sequences, tokens) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # Medians of measured decode-only steps by batch size (3.3k to 4.7k context tokens each).
        ("h100-qwq-32b", {8: 19.45, 12: 22.17, 16: 23.59, 20: 25.85, 24: 26.90, 32: 27.15}),
        ("2xa6000-llama-3.1-8b", {4: 15.74, 8: 17.90, 12: 20.38, 16: 21.60, 24: 26.71, 48: 41.82}),
    ],
)
def test_decode_steps_agree_with_measured_medians(name: str, published: dict[int, float]) -> None:
    for sequences, expected in published.items():
        assert _step_ms(name, sequences, sequences) == pytest.approx(expected, rel=0.08)


def _write(tmp_path: Path, terms: str, head: str = 'gpu = "g"\nmodel = "m"\nsource = "s"') -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(f"{head}\n[terms]\n{terms}\n")
    return path


def test_a_profile_of_my_own(tmp_path: Path) -> None:
    profile = load_profile(str(_write(tmp_path, "base_ms = 1\nfloor_ms = 2.5")))
    assert profile.name == "mine"
    assert profile.terms.floor_ms == 2.5


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (
            "base_ms = 1.0\nfloor_ms = 1.0\nper_token_s = 1.0",
            "terms.per_token_s.*use `per_token_ms`",
        ),
        ("base_ms = 1.0\nfloor_ms = 1.0\nper_token = 1.0", "terms.per_token: .*use `per_token_ms`"),
        ("base_ms = -1.0\nfloor_ms = 1.0", r"terms.base_ms: is -1.0.*milliseconds, >= 0"),
        ("base_ms = 1.0", "terms.floor_ms: missing; add a time in milliseconds"),
        ('base_ms = "1"\nfloor_ms = 1.0', "terms.base_ms: is '1'"),
        ("base_ms = nan\nfloor_ms = 1.0", "terms.base_ms: is nan"),
        ("base_ms = \nfloor_ms = 1.0", "not valid TOML"),
    ],
)
def test_malformed_profiles_are_refused(tmp_path: Path, terms: str, expected: str) -> None:
    path = _write(tmp_path, terms)
    with pytest.raises(ProfileError, match=expected) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


def test_missing_profiles_name_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="did you mean 'h100-qwq-32b'"):
        load_profile("h100-qwq-32")
    with pytest.raises(ProfileError, match="`synergy-gym list profiles` shows all"):
        load_profile("zzz")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path / "none.toml")
