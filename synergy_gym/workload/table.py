"""The `[traffic]` table of a scenario file: strict keys that become a `TrafficSpec`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from synergy_gym.limits import MOST_S
from synergy_gym.strict_toml import Table, suggest
from synergy_gym.workload.arrivals import ARRIVALS, options_of
from synergy_gym.workload.lengths import LENGTHS
from synergy_gym.workload.presets import PRESETS
from synergy_gym.workload.spec import (
    ArrivalSpec,
    LengthSpec,
    ReplaySpec,
    SessionSpec,
    TrafficSpec,
)

_SECONDS = "a time in seconds"
_TOKENS = "a number of tokens"
_SHARE = "a share, 0 to 1"


class ArrivalTable(Table):
    """`[traffic.arrivals]`: how requests (or session starts) are spread over time."""

    kind: str = Field(description=f"one of {', '.join(ARRIVALS)}")
    cv: float | None = Field(None, gt=0, description="a coefficient of variation, > 0")
    on_s: float | None = Field(None, gt=0, description=f"{_SECONDS}, > 0")
    off_s: float | None = Field(None, gt=0, description=f"{_SECONDS}, > 0")
    quiet_share: float | None = Field(None, ge=0, le=1, description=_SHARE)
    period_s: float | None = Field(None, gt=0, description=f"{_SECONDS}, > 0")
    amplitude: float | None = Field(None, ge=0, le=1, description=_SHARE)
    peak_s: float | None = Field(None, ge=0, description=f"{_SECONDS}, >= 0")
    start_factor: float | None = Field(None, ge=0, description="a factor of the rate, >= 0")
    end_factor: float | None = Field(None, ge=0, description="a factor of the rate, >= 0")

    @model_validator(mode="after")
    def _kind_has_its_options(self) -> Self:
        _known("kind", self.kind, list(ARRIVALS))
        given = self.model_dump(exclude={"kind"}, exclude_none=True)
        _matches(self.kind, given, options_of(ARRIVALS[self.kind]))
        return self

    def spec(self) -> ArrivalSpec:
        """The description that this table stands for."""
        return ArrivalSpec(self.kind, self.model_dump(exclude={"kind"}, exclude_none=True))


class LengthTable(Table):
    """`[traffic.prompt]`, `[traffic.output]`, `[traffic.sessions.turns]`: a distribution."""

    kind: str = Field(description=f"one of {', '.join(LENGTHS)}")
    minimum: int = Field(1, ge=1, description="the smallest count, >= 1")
    maximum: int = Field(2**31, ge=1, description="the largest count, >= 1")
    value: int | None = Field(None, ge=1, description="a count, >= 1")
    mean: float | None = Field(None, ge=1, description="a mean, >= 1")
    median: float | None = Field(None, gt=0, description="a median, > 0")
    sigma: float | None = Field(None, ge=0, description="a deviation of logarithms, >= 0")
    low: int | None = Field(None, ge=1, description="a count, >= 1")
    high: int | None = Field(None, ge=1, description="a count, >= 1")
    values: tuple[int, ...] | None = Field(None, min_length=1, description="a list of counts")
    levels: tuple[float, ...] | None = Field(None, min_length=2, description="shares, 0 to 1")

    @model_validator(mode="after")
    def _kind_has_its_options(self) -> Self:
        _known("kind", self.kind, list(LENGTHS))
        given = self._options()
        _matches(self.kind, given, options_of(LENGTHS[self.kind]))
        if self.minimum > self.maximum:
            raise ValueError(
                f"minimum: {self.minimum} is above maximum = {self.maximum}; swap them"
            )
        LENGTHS[self.kind](**given)
        return self

    def _options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"kind", "minimum", "maximum"}, exclude_none=True)

    def spec(self) -> LengthSpec:
        """The description that this table stands for."""
        return LengthSpec(self.kind, self._options(), self.minimum, self.maximum)


class SessionTable(Table):
    """`[traffic.sessions]`: conversations of several turns."""

    turns: LengthTable = Field(description="the table [traffic.sessions.turns]")
    think_s: float = Field(gt=0, le=MOST_S, description=f"{_SECONDS}, > 0")
    think_cv: float = Field(1.0, ge=0, description="a coefficient of variation, >= 0")
    growth: Literal["append", "window"] = Field("append", description='"append" or "window"')
    prompt_correlation: float = Field(0.0, ge=0, le=1, description=_SHARE)
    reused_tokens: int | None = Field(None, ge=0, description=f"{_TOKENS}, >= 0")
    system_prompts: int = Field(0, ge=0, description="a whole number >= 0")
    system_tokens: int = Field(0, ge=0, description=f"{_TOKENS}, >= 0")
    history_tokens: int = Field(0, ge=0, description=f"{_TOKENS}, >= 0")
    context_limit_tokens: int = Field(0, ge=0, description=f"{_TOKENS}, 0 for no limit")
    closed_loop: bool = Field(False, description="true or false")

    @model_validator(mode="after")
    def _system_prompts_have_a_length(self) -> Self:
        if (self.system_prompts == 0) != (self.system_tokens == 0):
            raise ValueError("system_tokens: give it together with system_prompts, or neither")
        only = "prompt_correlation" if self.growth == "append" else "history_tokens"
        if getattr(self, only):
            raise ValueError(f'{only}: has no meaning for growth = "{self.growth}"; remove it')
        return self

    def spec(self) -> SessionSpec:
        """The description that this table stands for."""
        return SessionSpec(turns=self.turns.spec(), **self.model_dump(exclude={"turns"}))


class ReplayTable(Table):
    """`[traffic.replay]`: the requests sent again by load-generator clients."""

    pace: Literal["even", "timestamps"] = Field(description='"even" or "timestamps"')
    client_rps: float = Field(5.0, gt=0, description="requests per second of one client, > 0")
    resolution_s: float = Field(1.0, gt=0, description=f"{_SECONDS}, > 0")

    def spec(self) -> ReplaySpec:
        """The description that this table stands for."""
        return ReplaySpec(**self.model_dump())


class TrafficTable(Table):
    """`[traffic]`: a built-in generator, or arrivals and lengths, or both (the latter win)."""

    generator: str | None = Field(None, description=f"one of {', '.join(PRESETS)}")
    arrivals: ArrivalTable | None = Field(None, description="the table [traffic.arrivals]")
    prompt: LengthTable | None = Field(None, description="the table [traffic.prompt]")
    output: LengthTable | None = Field(None, description="the table [traffic.output]")
    correlation: float | None = Field(None, ge=-1, le=1, description="a correlation, -1 to 1")
    sessions: SessionTable | None = Field(None, description="the table [traffic.sessions]")
    replay: ReplayTable | None = Field(None, description="the table [traffic.replay]")
    slo_mix: tuple[float, ...] = Field((1.0,), min_length=1, description="shares that sum to 1")
    priorities: tuple[int, ...] = Field((), description="one priority per SLO class")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.generator is not None:
            _known("generator", self.generator, list(PRESETS))
        elif self.prompt is None or self.output is None:
            raise ValueError("generator: missing; name one, or give both prompt and output")
        if min(self.slo_mix) < 0 or abs(sum(self.slo_mix) - 1) > 1e-9:
            raise ValueError(f"slo_mix: {list(self.slo_mix)} must be shares that sum to 1")
        if self.priorities and len(self.priorities) != len(self.slo_mix):
            raise ValueError("priorities: must be as many as slo_mix")
        if self.replay and self.sessions and self.sessions.closed_loop:
            raise ValueError("replay: a log has fixed times; set sessions.closed_loop = false")
        return self

    def spec(self) -> TrafficSpec:
        """The description that this table stands for."""
        return TrafficSpec(
            generator=self.generator,
            arrivals=None if self.arrivals is None else self.arrivals.spec(),
            prompt=None if self.prompt is None else self.prompt.spec(),
            output=None if self.output is None else self.output.spec(),
            correlation=self.correlation,
            sessions=None if self.sessions is None else self.sessions.spec(),
            replay=None if self.replay is None else self.replay.spec(),
            slo_mix=self.slo_mix,
            priorities=self.priorities,
        )


def _known(key: str, value: str, known: list[str]) -> None:
    if value not in known:
        guess = suggest(value, known)
        cure = f"did you mean {guess!r}?" if guess else f"choose one of {', '.join(known)}"
        raise ValueError(f"{key}: no {value!r}; {cure}")


def _matches(kind: str, given: dict[str, Any], known: dict[str, bool]) -> None:
    """`known` says of each option of `kind` whether it must be given."""
    for name in given:
        if name not in known:
            raise ValueError(f'{name}: has no meaning for kind = "{kind}"; remove it')
    for name, required in known.items():
        if required and name not in given:
            raise ValueError(f'{name}: missing; kind = "{kind}" needs it')
