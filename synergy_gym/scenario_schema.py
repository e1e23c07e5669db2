"""What a scenario file may hold: strict tables, and the checks that span several keys.

`scenario.py` turns a valid file into a `Scenario`. Every message says what to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, Self

from pydantic import Field, model_validator

from synergy_gym.limits import (
    MOST_BLOCK_TOKENS,
    MOST_COUNT,
    MOST_ENGINES,
    MOST_FACTOR,
    MOST_PER_STEP,
    MOST_RETRIES,
    MOST_S,
    SECONDS,
)
from synergy_gym.strict_toml import Table, suggest
from synergy_gym.workload.table import TrafficTable

GIB = 2**30

_SECONDS = f"a time in {SECONDS}"
_COUNT = f"a whole number >= 1, at most {MOST_COUNT:,}"
_PER_STEP = f"a whole number >= 1, at most {MOST_PER_STEP:,}"
_Kind = Literal["down", "up", "slowdown", "lose_blocks"]


class KVTable(Table):
    """`[engine.kv]`: the memory sum behind `kv_blocks`, per GPU unless the name says otherwise."""

    gpus: int = Field(1, ge=1, description="GPUs that share the model (tensor parallel), >= 1")
    gpu_memory_gib: float = Field(gt=0, description="memory of one GPU in GiB, > 0")
    memory_utilization: float = Field(gt=0, le=1, description="a share, above 0 up to 1")
    weights_gib: float = Field(gt=0, description="weights of the whole model in GiB, > 0")
    activation_gib: float = Field(ge=0, description="activations and graphs in GiB, >= 0")
    kv_bytes_per_token: int = Field(ge=1, description="KV bytes of the whole model per token")
    kv_blocks: int = Field(ge=1, le=MOST_COUNT, description=_COUNT)

    def derived_blocks(self, block_size: int) -> int:
        """Usable blocks by the sum that the file states.

        gpus * (gpu_memory * utilization - weights / gpus - activation), in blocks of
        block_size * kv_bytes_per_token bytes, less vLLM's null block; exact arithmetic on
        the decimals as written.
        """
        memory = Fraction(str(self.gpu_memory_gib)) * Fraction(str(self.memory_utilization))
        free = memory * self.gpus - Fraction(str(self.weights_gib))
        free -= Fraction(str(self.activation_gib)) * self.gpus
        return int(free * GIB // (block_size * self.kv_bytes_per_token)) - 1


class EngineTable(Table):
    """`[[engine]]`: `count` equal engines; named NAME, or NAME-0, NAME-1, ... if several."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="a name of a-z, 0-9, . _ -")
    count: int = Field(1, ge=1, le=MOST_ENGINES, description=_COUNT)
    gpu: str = Field(min_length=1, description="the profile's GPU")
    model: str = Field(min_length=1, description="the profile's model")
    profile: str = Field(min_length=1, description="a latency profile's name")
    max_num_seqs: int = Field(ge=1, le=MOST_PER_STEP, description=_PER_STEP)
    max_num_batched_tokens: int = Field(ge=1, le=MOST_PER_STEP, description=_PER_STEP)
    max_model_len: int = Field(
        ge=2, le=MOST_COUNT, description="the longest prompt + output in tokens, >= 2"
    )
    block_size: int = Field(
        16, ge=1, le=MOST_BLOCK_TOKENS, description=f"tokens from 1 to {MOST_BLOCK_TOKENS:,}"
    )
    prefix_caching: bool = Field(False, description="true or false")
    scheduling: Literal["fcfs", "priority"] = Field("fcfs", description='"fcfs" or "priority"')
    watermark_blocks: int = Field(0, ge=0, le=MOST_COUNT, description="a number of blocks, >= 0")
    weight: float = Field(1.0, gt=0, description="a relative capacity, > 0")
    async_scheduling: bool | None = Field(None, description="true or false, as vLLM's option")
    sampling: Literal["greedy", "top-p"] = Field("greedy", description='"greedy" or "top-p"')
    saturation: Literal["stable", "six", "eight"] | None = Field(
        None, description='"stable", "six" or "eight"'
    )
    kv: KVTable = Field(description="the table [engine.kv]")

    def names(self) -> list[str]:
        """Names of the group's engines, in order."""
        return [self.name] if self.count == 1 else [f"{self.name}-{i}" for i in range(self.count)]

    @model_validator(mode="after")
    def _kv_adds_up(self) -> Self:
        derived = self.kv.derived_blocks(self.block_size)
        if self.kv.kv_blocks != derived:
            raise ValueError(
                f"kv.kv_blocks: is {self.kv.kv_blocks}, but the memory sum of this table gives "
                f"{derived}; write {derived} or correct the sum"
            )
        tokens = (self.kv.kv_blocks - self.watermark_blocks) * self.block_size
        if tokens < self.max_model_len:
            raise ValueError(
                f"kv.kv_blocks: {tokens} tokens fit, fewer than max_model_len = "
                f"{self.max_model_len}; lower max_model_len or give the cache more memory"
            )
        return self


class SLOTable(Table):
    """`[[slo]]`: one request class; leave out what is not promised."""

    name: str = Field(min_length=1, description="the class's name")
    ttft_s: float | None = Field(None, gt=0, le=MOST_S, description=f"{_SECONDS}, > 0")
    tpot_s: float | None = Field(None, gt=0, le=MOST_S, description=f"{_SECONDS}, > 0")
    e2e_s: float | None = Field(None, gt=0, le=MOST_S, description=f"{_SECONDS}, > 0")

    @model_validator(mode="after")
    def _promises_something(self) -> Self:
        if self.ttft_s is None and self.tpot_s is None and self.e2e_s is None:
            raise ValueError("promises nothing; give at least one of ttft_s, tpot_s, e2e_s")
        return self


class TelemetryTable(Table):
    """`[telemetry]`: how engine state reaches routers."""

    push_interval_s: float = Field(0.2, gt=0, le=MOST_S, description=f"{_SECONDS}, > 0")
    push_delay_s: float = Field(0.0, ge=0, le=MOST_S, description=f"{_SECONDS}, >= 0")
    push_loss: float = Field(0.0, ge=0, le=1, description="a share, 0 to 1")
    heartbeat: Literal["idle-only", "overwrite", "none"] = Field(
        "idle-only", description='"idle-only", "overwrite" or "none"'
    )
    heartbeat_interval_s: float = Field(2.0, gt=0, le=MOST_S, description=f"{_SECONDS}, > 0")
    scrape_interval_s: float = Field(10.0, gt=0, le=MOST_S, description=f"{_SECONDS}, > 0")


class ClientTable(Table):
    """`[client]`: when clients give up, and how often they come back."""

    timeout_s: float = Field(0.0, ge=0, le=MOST_S, description=f"{_SECONDS}, 0 for never")
    max_retries: int = Field(
        0, ge=0, le=MOST_RETRIES, description=f"a whole number from 0 to {MOST_RETRIES:,}"
    )
    backoff_s: float = Field(0.0, ge=0, le=MOST_S, description=f"{_SECONDS}, >= 0")


class EventTable(Table):
    """`[[events]]`: a change of the world."""

    at_s: float = Field(ge=0, le=MOST_S, description=f"{_SECONDS}, >= 0 and before horizon_s")
    kind: _Kind = Field(description='"down", "up", "slowdown" or "lose_blocks"')
    engine: str = Field(min_length=1, description="an engine's name")
    factor: float | None = Field(
        None,
        gt=0,
        le=MOST_FACTOR,
        description=f"a factor > 0 up to {MOST_FACTOR:,.0f} (1 ends the slowdown)",
    )
    blocks: int | None = Field(None, ge=1, le=MOST_COUNT, description=_COUNT)

    @model_validator(mode="after")
    def _has_its_value(self) -> Self:
        needs = {"slowdown": "factor", "lose_blocks": "blocks"}.get(self.kind)
        for key in ("factor", "blocks"):
            given = getattr(self, key) is not None
            if given and key != needs:
                raise ValueError(f'{key}: has no meaning for kind = "{self.kind}"; remove it')
            if not given and key == needs:
                raise ValueError(f'{key}: missing; kind = "{self.kind}" needs it')
        return self


class SeedsTable(Table):
    """`[seeds]`: disjoint episode seeds; tuning never sees the test ones."""

    train: tuple[int, ...] = Field(min_length=1, description="a list of whole numbers >= 0")
    validation: tuple[int, ...] = Field(min_length=1, description="a list of whole numbers >= 0")
    test: tuple[int, ...] = Field(min_length=10, description="at least 10 whole numbers >= 0")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: dict[int, str] = {}
        for split in ("train", "validation", "test"):
            for seed in getattr(self, split):
                if seed < 0:
                    raise ValueError(f"{split}: seed {seed} is negative; use whole numbers >= 0")
                if seed in seen:
                    other = "twice" if seen[seed] == split else f"in {seen[seed]} too"
                    raise ValueError(f"{split}: seed {seed} stands {other}; use each seed once")
                seen[seed] = split
        return self


class ScenarioFile(Table):
    """The whole file."""

    description: str = Field(min_length=1, description="what the scenario is")
    clock: Literal["measured", "saturation"] = Field(description='"measured" or "saturation"')
    horizon_s: float = Field(gt=0, le=MOST_S, description=f"{_SECONDS}, > 0: arrivals stop there")
    warmup_s: float = Field(ge=0, le=MOST_S, description=f"{_SECONDS}, >= 0 and below horizon_s")
    rate_rps: float = Field(gt=0, description="requests per second at load 1.0, > 0")
    rate_source: str = Field(min_length=1, description='"estimate" or the command that found it')
    loads: tuple[float, ...] = Field(min_length=1, description="factors of rate_rps, increasing")
    engine: tuple[EngineTable, ...] = Field(min_length=1, description="a table [[engine]]")
    slo: tuple[SLOTable, ...] = Field(min_length=1, description="a table [[slo]]")
    telemetry: TelemetryTable = Field(TelemetryTable(), description="the table [telemetry]")
    client: ClientTable = Field(ClientTable(), description="the table [client]")
    events: tuple[EventTable, ...] = Field((), description="tables [[events]]")
    seeds: SeedsTable = Field(description="the table [seeds]")
    traffic: TrafficTable = Field(description="the table [traffic]")

    def engine_names(self) -> list[str]:
        """Names of all engines, in index order."""
        return [name for group in self.engine for name in group.names()]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if self.warmup_s >= self.horizon_s:
            yield (
                f"warmup_s: {self.warmup_s} is not below horizon_s = {self.horizon_s}; "
                "no arrival would be scored"
            )
        if any(load <= 0 for load in self.loads) or list(self.loads) != sorted(set(self.loads)):
            yield f"loads: {list(self.loads)} must be positive and increasing; sort them"
        if 1.0 not in self.loads:
            yield "loads: 1.0 is missing; add it, rate_rps is defined there"
        if len(self.traffic.slo_mix) != len(self.slo):
            yield (
                f"traffic.slo_mix: has {len(self.traffic.slo_mix)} shares for {len(self.slo)} "
                "[[slo]] tables; give one share per class"
            )
        for index, group in enumerate(self.engine):
            if group.saturation is not None and self.clock != "saturation":
                yield (
                    f"engine[{index}].saturation: has no meaning for clock = {self.clock!r}; "
                    'remove it, or write clock = "saturation"'
                )
        cached = {group.block_size for group in self.engine if group.prefix_caching}
        if len(cached) > 1:
            yield (
                f"engine[].block_size: engines with prefix_caching have {sorted(cached)}; "
                "give them one size"
            )
        yield from _repeated("engine[].name", self.engine_names())
        yield from _repeated("slo[].name", [slo.name for slo in self.slo])
        yield from _event_problems(self)


def _repeated(key: str, names: list[str]) -> Iterator[str]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{key}: {name!r} is used twice; give each its own"


def _event_problems(file: ScenarioFile) -> Iterator[str]:
    names = file.engine_names()
    down: set[str] = set()
    blocks = {name: group.kv.kv_blocks for group in file.engine for name in group.names()}
    for index, event in enumerate(file.events):
        key = f"events[{index}]"
        if event.engine not in blocks:
            guess = suggest(event.engine, names)
            cure = f"did you mean {guess!r}?" if guess else f"engines: {', '.join(names)}"
            yield f"{key}.engine: no engine {event.engine!r}; {cure}"
            continue
        if event.at_s >= file.horizon_s:
            yield f"{key}.at_s: {event.at_s} is not before horizon_s = {file.horizon_s}; move it"
        if index and event.at_s < file.events[index - 1].at_s:
            yield f"{key}.at_s: {event.at_s} is before the previous event; sort events by time"
        yield from _updown_problems(key, event, down)
        blocks[event.engine] -= event.blocks or 0
        if blocks[event.engine] < 1:
            yield f"{key}.blocks: {event.engine} would have no block left; take fewer"


def _updown_problems(key: str, event: EventTable, down: set[str]) -> Iterator[str]:
    if event.kind == "down":
        if event.engine in down:
            yield f"{key}.kind: {event.engine} is down already; bring it up first"
        down.add(event.engine)
    elif event.kind == "up":
        if event.engine not in down:
            yield f"{key}.kind: {event.engine} is not down; remove this event"
        down.discard(event.engine)
