"""What a latency profile's file may hold: strict tables.

`profiles.py` turns a valid file into a `Profile`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from synergy_gym.latency.clock import check_knots
from synergy_gym.strict_toml import Table

Tier = Literal["measured steps", "deployments", "few points", "kernels only"]
"""How far a profile was checked: fitted on steps of a whole engine; made of kernels and held
against measured deployments of that GPU and model family (ten or more, or fewer); or against
nothing (`unvalidated`)."""

_MS = "a time in milliseconds, >= 0"
_RANGE = "the ends of a 95 % range"


class TermsTable(Table):
    """`[terms]`: coefficients of `latency.clock.StepTerms`."""

    base_ms: float = Field(ge=0, description=_MS)
    per_sequence_ms: float = Field(0.0, ge=0, description=_MS)
    per_token_ms: float = Field(0.0, ge=0, description=_MS)
    per_decode_context_ms: float = Field(0.0, ge=0, description=_MS)
    per_prefill_pair_ms: float = Field(0.0, ge=0, description=_MS)
    per_prefill_context_ms: float = Field(0.0, ge=0, description=_MS)
    prefill_step_ms: float = Field(0.0, ge=0, description=_MS)
    per_mixed_context_ms: float = Field(0.0, ge=0, description=_MS)
    floor_ms: float = Field(gt=0, description="a time in milliseconds, > 0")
    floor_per_token_ms: float = Field(0.0, ge=0, description=_MS)
    noise_sd: float = Field(0.0, ge=0, le=0.25, description="a relative deviation, 0 to 0.25")
    straggler_probability: float = Field(0.0, ge=0, le=1, description="a share, 0 to 1")
    straggler_factor: float = Field(1.0, ge=1, description="a factor, >= 1")


class RangesTable(Table):
    """`[ranges]`: 95 % ranges of coefficients."""

    base_ms: tuple[float, float] | None = Field(None, description=_RANGE)
    per_sequence_ms: tuple[float, float] | None = Field(None, description=_RANGE)
    per_token_ms: tuple[float, float] | None = Field(None, description=_RANGE)
    per_decode_context_ms: tuple[float, float] | None = Field(None, description=_RANGE)
    per_prefill_pair_ms: tuple[float, float] | None = Field(None, description=_RANGE)
    per_prefill_context_ms: tuple[float, float] | None = Field(None, description=_RANGE)
    per_mixed_context_ms: tuple[float, float] | None = Field(None, description=_RANGE)
    floor_ms: tuple[float, float] | None = Field(None, description=_RANGE)
    floor_per_token_ms: tuple[float, float] | None = Field(None, description=_RANGE)


class FitErrorTable(Table):
    """`[fit_error_percent]`: of the form against the kernel sums, by kind of step."""

    decode: float = Field(ge=0, description="percent")
    prefill: float = Field(ge=0, description="percent")
    mixed: float = Field(ge=0, description="percent")
    small: float = Field(ge=0, description="percent, steps of 65 to 700 tokens with prompts")


class EngineTable(Table):
    """`[engine]`: what the engine adds to every step, by its loop."""

    loop: Literal["async", "sync"] = Field("async", description='"async" or "sync": the default')
    async_ms: float = Field(description="milliseconds with asynchronous scheduling")
    async_range: tuple[float, float] = Field(description=_RANGE)
    sync_ms: float = Field(description="milliseconds without")
    sync_range: tuple[float, float] = Field(description=_RANGE)
    source: str = Field(min_length=1, description="the evidence")


class SamplerTable(Table):
    """`[sampler]`: what top-k / top-p sampling adds."""

    step_ms: float = Field(ge=0, description=_MS)
    step_range: tuple[float, float] = Field(description=_RANGE)
    per_sequence_ms: float = Field(ge=0, description=_MS)
    per_sequence_range: tuple[float, float] = Field(description=_RANGE)
    source: str = Field(min_length=1, description="the evidence")


class SustainedTable(Table):
    """`[sustained]`: compute-bound work of a busy GPU against one kernel at a time."""

    factor: float = Field(ge=1, le=3, description="a factor, 1 to 3")
    range: tuple[float, float] = Field(description=_RANGE)
    source: str = Field(min_length=1, description="the evidence")


class ExpertsTable(Table):
    """`[experts]`: time of a mixture-of-experts model's experts by tokens."""

    tokens: tuple[int, ...] = Field(min_length=2, description="token counts, increasing")
    ms: tuple[float, ...] = Field(min_length=2, description="a time for each, milliseconds")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.tokens) != len(self.ms):
            raise ValueError(f"ms: has {len(self.ms)} times for {len(self.tokens)} token counts")
        check_knots("tokens", self.knots)
        return self

    @property
    def knots(self) -> tuple[tuple[int, float], ...]:
        """(tokens, ms)."""
        return tuple(zip(self.tokens, self.ms, strict=True))


class KernelTable(Table):
    """`[table]`: interpolated kernel times, the truth that no formula has (`table_terms.py`)."""

    tokens: tuple[int, ...] = Field(min_length=2, description="token counts, increasing")
    dense_ms: tuple[float, ...] = Field(min_length=2, description="layers without attention")
    sequences: tuple[int, ...] = Field(min_length=2, description="sequence counts, increasing")
    head_ms: tuple[float, ...] = Field(min_length=2, description="output head")
    decode_ms: tuple[tuple[float, ...], ...] = Field(
        min_length=2, description="attention: a row per power of two of decodes, from 1 on, a "
        "column per power of two of context tokens each, from 1 on",
    )  # fmt: skip
    prefill_ms: tuple[float, ...] = Field(
        min_length=2, description="attention by powers of two of prefill pairs, from 1 on"
    )
    per_prefill_context_ms: float = Field(ge=0, description=_MS)
    mixed: float = Field(ge=0, le=4, description="a share, 0 to 4")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, sizes, times in (
            ("dense_ms", self.tokens, self.dense_ms),
            ("head_ms", self.sequences, self.head_ms),
        ):
            if len(sizes) != len(times):
                raise ValueError(f"{name}: has {len(times)} times for {len(sizes)} sizes")
            check_knots(name, tuple(zip(sizes, times, strict=True)))
        if len({len(row) for row in self.decode_ms}) != 1:
            raise ValueError("decode_ms: rows differ in length; give each batch the same contexts")
        return self


class ProfileFile(Table):
    """The whole file."""

    gpu: str = Field(min_length=1, description='what it runs on, e.g. "1xH100"')
    model: str = Field(min_length=1, description="the model's public name")
    source: str = Field(min_length=1, description="where the coefficients come from")
    tier: Tier = Field("measured steps", description="how far it was checked")
    terms: TermsTable = Field(description="the table [terms]")
    ranges: RangesTable = Field(RangesTable(), description="the table [ranges]")
    fit_error_percent: FitErrorTable | None = Field(None, description="a table")
    engine: EngineTable | None = Field(None, description="the table [engine]")
    sampler: SamplerTable | None = Field(None, description="the table [sampler]")
    sustained: SustainedTable | None = Field(None, description="the table [sustained]")
    experts: ExpertsTable | None = Field(None, description="the table [experts]")
    table: KernelTable | None = Field(None, description="the table [table]")
