"""Latency profiles: measured `StepTerms` per GPU and model, read from strict TOML files.

Each coefficient in `profiles/*.toml` has its source in a comment beside it. An archived season has
profiles of its own (`synergy_gym.seasons`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from synergy_gym.latency.terms import StepTerms
from synergy_gym.seasons import SEASON, season_files
from synergy_gym.strict_toml import Table, read_toml, suggest

_MS = "a time in milliseconds, >= 0"


class ProfileError(ValueError):
    """A latency profile is missing or malformed; the message names file, key and cure."""


class _Terms(Table):
    base_ms: float = Field(ge=0, description=_MS)
    per_sequence_ms: float = Field(0.0, ge=0, description=_MS)
    per_token_ms: float = Field(0.0, ge=0, description=_MS)
    per_decode_context_ms: float = Field(0.0, ge=0, description=_MS)
    per_prefill_pair_ms: float = Field(0.0, ge=0, description=_MS)
    per_prefill_context_ms: float = Field(0.0, ge=0, description=_MS)
    prefill_step_ms: float = Field(0.0, ge=0, description=_MS)
    per_mixed_context_ms: float = Field(0.0, ge=0, description=_MS)
    floor_ms: float = Field(gt=0, description="a time in milliseconds, > 0")
    noise_sd: float = Field(0.0, ge=0, le=0.25, description="a relative deviation, 0 to 0.25")
    straggler_probability: float = Field(0.0, ge=0, le=1, description="a share, 0 to 1")
    straggler_factor: float = Field(1.0, ge=1, description="a factor, >= 1")


class _ProfileFile(Table):
    gpu: str = Field(min_length=1, description='what it runs on, e.g. "1xH100"')
    model: str = Field(min_length=1, description="the model's public name")
    source: str = Field(min_length=1, description="where the coefficients come from")
    terms: _Terms = Field(description="the table [terms]")


@dataclass(frozen=True, slots=True)
class Profile:
    """The clock of one engine type.

    `source` says in one sentence where the coefficients come from; the file has the
    details. `gpu` and `model` must agree with the engine that uses the profile.
    """

    name: str
    gpu: str
    model: str
    source: str
    terms: StepTerms


def list_profiles(season: int = SEASON) -> list[str]:
    """Names of the profiles that ship with the package for a season, sorted."""
    return sorted(path.stem for path in season_files(season).profiles.glob("*.toml"))


def load_profile(name: str | Path, season: int = SEASON) -> Profile:
    """Read a profile by its packaged name or by the path of a TOML file.

    Args:
        name: a name of `list_profiles(season)`, or a path.
        season: whose profile of that name.

    Raises:
        ProfileError: no such profile, or a malformed file.
    """
    path = _locate(name, season)
    content = read_toml(path, _ProfileFile, ProfileError)
    terms = StepTerms(**content.terms.model_dump())
    return Profile(path.stem, content.gpu, content.model, content.source, terms)


def _locate(name: str | Path, season: int) -> Path:
    if isinstance(name, Path) or name.endswith(".toml"):
        return Path(name)
    known = list_profiles(season)
    if name not in known:
        guess = suggest(name, known)
        cure = f"did you mean {guess!r}?" if guess else f"packaged profiles: {', '.join(known)}"
        raise ProfileError(
            f"no latency profile {name!r}; {cure} (or give the path of a .toml file)"
        )
    return season_files(season).profiles / f"{name}.toml"
