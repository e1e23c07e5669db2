"""Latency profiles: measured `StepTerms` per GPU and model, read from strict TOML files.

Each coefficient in `profiles/*.toml` has its source in a comment beside it. An archived season has
profiles of its own (`synergy_gym.seasons`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from synergy_gym.latency.clock import StepTerms
from synergy_gym.latency.profile_schema import ProfileFile, Tier
from synergy_gym.seasons import SEASON, season_files
from synergy_gym.strict_toml import read_toml, suggest

Loop = Literal["async", "sync"]
"""vLLM's asynchronous scheduling (default from 0.14 on), or the step-by-step loop before it."""
Sampling = Literal["greedy", "top-p"]
BUSY_EXPERTS = 1024
"""Tokens from which on all experts are loaded anyway, and more tokens are more computation."""


class ProfileError(ValueError):
    """A latency profile is missing or malformed; the message names file, key and cure."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The clock of one engine type.

    A profile of `tier` "measured steps" times whole steps of an engine. The others are sums of
    kernels, to which the engine's loop, the sampler and the slowdown of a busy GPU are added as
    named parts: `timed` puts them together.

    Attributes:
        name: the file's name without its ending.
        gpu: what it runs on, e.g. `1xH100`; must agree with the engine that uses the profile.
        model: likewise.
        source: in one sentence where the coefficients come from; the file has the details.
        file: everything that the file holds.
    """

    name: str
    gpu: str
    model: str
    source: str
    file: ProfileFile

    @property
    def tier(self) -> Tier:
        """How far it was checked."""
        return self.file.tier

    @property
    def tier_label(self) -> str:
        """How tables name the tier: what was held against nothing is `unvalidated`."""
        return f"{self.tier}: unvalidated" if self.tier == "kernels only" else self.tier

    @property
    def terms(self) -> StepTerms:
        """The clock as the file says, which is vLLM's default: asynchronous scheduling."""
        return self.timed()

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The loops that it can time; none where whole steps were measured."""
        return () if self.file.engine is None else ("async", "sync")

    def overhead_ms(self, loop: Loop | None = None) -> float:
        """What the engine adds to every step, ms; `None`: with the file's own loop.

        Raises:
            ProfileError: the profile has no such loop.
        """
        if self.file.engine is None:
            if loop is not None:
                raise ProfileError(
                    f"profile {self.name!r} times whole measured steps and has no {loop} variant; "
                    "leave it out, or choose a profile with a table [engine]"
                )
            return 0.0
        engine = self.file.engine
        return engine.sync_ms if (loop or engine.loop) == "sync" else engine.async_ms

    def timed(
        self,
        loop: Loop | None = None,
        sampling: Sampling = "greedy",
        sustained: float | None = None,
    ) -> StepTerms:
        """The clock's terms.

        Args:
            loop: the engine's; `None`: the file's own.
            sampling: whether every sequence's logits are filtered.
            sustained: factor of compute-bound work instead of the profile's.

        Raises:
            ProfileError: the profile has no such variant.
        """
        step_ms, per_sample_ms = self._sampler(sampling)
        added = self.overhead_ms(loop) + step_ms
        t, factor = self.file.terms, self._sustained(sustained)
        return StepTerms(
            **t.model_dump(exclude=_COMPOSED),
            base_ms=max(t.base_ms + added, 0.0),
            floor_ms=max(t.floor_ms + added, 0.0),
            per_token_ms=t.per_token_ms * factor,
            per_prefill_pair_ms=t.per_prefill_pair_ms * factor,
            per_prefill_context_ms=t.per_prefill_context_ms * factor,
            per_sample_ms=per_sample_ms,
            experts_ms=self._experts(factor),
        )

    def _sampler(self, sampling: Sampling) -> tuple[float, float]:
        if sampling == "greedy":
            return 0.0, 0.0
        if self.file.sampler is None:
            raise ProfileError(
                f"profile {self.name!r} has no table [sampler], so it cannot time {sampling} "
                'sampling; use "greedy"'
            )
        return self.file.sampler.step_ms, self.file.sampler.per_sequence_ms

    def _sustained(self, given: float | None) -> float:
        own = self.file.sustained
        if given is None:
            return 1.0 if own is None else own.factor
        if own is None:
            raise ProfileError(
                f"profile {self.name!r} times whole measured steps, so a sustained factor of "
                f"{given} has no meaning; leave it out"
            )
        return given

    def _experts(self, factor: float) -> tuple[tuple[int, float], ...]:
        """Knots; what they grow beyond `BUSY_EXPERTS` tokens is computation."""
        if self.file.experts is None:
            return ()
        knots = self.file.experts.knots
        tokens, times = zip(*knots, strict=True)
        busy = float(np.interp(BUSY_EXPERTS, tokens, times))
        return tuple((n, ms + max(ms - busy, 0.0) * (factor - 1)) for n, ms in knots)


_COMPOSED = {
    "base_ms", "floor_ms", "per_token_ms", "per_prefill_pair_ms", "per_prefill_context_ms"
}  # fmt: skip


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
    file = read_toml(path, ProfileFile, ProfileError)
    return Profile(path.stem, file.gpu, file.model, file.source, file)


def _locate(name: str | Path, season: int) -> Path:
    if isinstance(name, Path) or name.endswith(".toml"):
        return Path(name)
    known = list_profiles(season)
    if name not in known:
        guess = suggest(name, known)
        cure = f"did you mean {guess!r}?" if guess else "`synergy-gym list profiles` shows all"
        raise ProfileError(
            f"no latency profile {name!r}; {cure} (or give the path of a .toml file)"
        )
    return season_files(season).profiles / f"{name}.toml"
