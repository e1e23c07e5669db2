"""The calibration grid: designed steps on a real engine.

It crosses decodes and their context with prefill chunks, what was computed before them and how
many requests share them. Order and choice are random, so that drift of the machine does not look
like an effect of size. Steps of played episodes, which cost more than these (requests come and
go, caches are colder), join them in `fidelity.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from synergy_gym.fidelity.meter import MeasuredStep, StepMeter
from synergy_gym.types import EngineSpec

DECODE_STEPS = 8
"""Pure decode steps per session."""
CHUNKS_PER_SESSION = 12
"""Mixed (or pure prefill) cells per session."""
EVERY_SIZE = 512
"""Steps of every size up to this are warmed up, larger ones in powers of two."""
LONGEST_SESSION = 8 * CHUNKS_PER_SESSION + DECODE_STEPS
"""More tokens than a session's decodes emit."""


@dataclass(frozen=True, slots=True)
class Session:
    """Decodes that stay while prefill chunks come and go."""

    decodes: int
    context: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """`parts` equal prompts of `tokens` in all, after `computed` tokens of each."""

    tokens: int
    computed: int = 0
    parts: int = 1


def sessions(spec: EngineSpec) -> list[Session]:
    """Numbers of decodes (none and powers of two) with short, middle and long contexts."""
    kv_tokens = spec.kv_blocks * spec.block_size
    found = [Session(0, 0)]
    for count in powers(spec.max_num_seqs):
        room = min(spec.max_model_len, int(0.6 * kv_tokens) // count) - LONGEST_SESSION
        contexts = {max(int(share * room), 8) for share in (0.05, 0.4, 1.0)} if room > 0 else set()
        found += [Session(count, context) for context in sorted(contexts)]
    return found


def chunks(spec: EngineSpec, decodes: int) -> list[Chunk]:
    """Prefill chunks that fit beside `decodes` in one step."""
    room, seats = spec.max_num_batched_tokens - decodes, spec.max_num_seqs - decodes
    if room < 1 or seats < 1:
        return []
    longest = min(spec.max_model_len - 2, int(0.3 * spec.kv_blocks * spec.block_size))
    found = []
    for tokens in powers(room):
        before = {share for share in (0, longest // 4, longest - tokens) if share >= 0}
        found += [Chunk(tokens, n) for n in sorted(before) if tokens + n <= longest]
        parts = [n for n in (2, 4, 8) if n <= min(seats, tokens // 4)]
        found += [Chunk(tokens // n * n, 0, n) for n in parts]
    return found


def powers(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit itself."""
    return sorted({2**k for k in range(limit.bit_length()) if 2**k <= limit} | {limit})


def warm_up(meter: StepMeter) -> None:
    """Run a step of every size, to `EVERY_SIZE` tokens: a CPU compiles kernels for each."""
    longest = min(meter.spec.max_num_batched_tokens, meter.spec.max_model_len - 1)
    sizes = range(1, min(longest, EVERY_SIZE) + 1)
    for tokens in (*sizes, *(n for n in powers(longest) if n > EVERY_SIZE)):
        meter.add(tokens, 1)
        meter.step("warm-up")
    for _ in range(meter.spec.max_num_seqs):
        meter.add(1, 2 * meter.spec.max_num_seqs)
        meter.step("warm-up")
    meter.reset()


def measure_grid(
    meter: StepMeter, rng: np.random.Generator, share: float = 1.0
) -> Iterator[MeasuredStep]:
    """Play the sessions in random order; yields every step.

    Args:
        meter: the engine; its limits shape the grid.
        rng: chooses the order, and the chunks of each session.
        share: of the sessions, 0 to 1 (at least one).
    """
    every = sessions(meter.spec)
    count = max(1, round(share * len(every)))
    for index in rng.permutation(len(every))[:count].tolist():
        yield from _session(meter, every[index], rng)
    meter.reset()


def _session(
    meter: StepMeter, session: Session, rng: np.random.Generator
) -> Iterator[MeasuredStep]:
    meter.reset()
    for _ in range(session.decodes):
        meter.add(session.context, meter.spec.max_model_len - session.context)
    while meter.prefills_left:
        yield meter.step("fill")
    if session.decodes:
        yield from (meter.step(f"{session}") for _ in range(DECODE_STEPS))
    every = chunks(meter.spec, session.decodes)
    for index in rng.permutation(len(every))[:CHUNKS_PER_SESSION].tolist():
        yield from _chunk(meter, session, every[index])


def _chunk(meter: StepMeter, session: Session, chunk: Chunk) -> Iterator[MeasuredStep]:
    """Steps that compute what comes before a chunk, and the chunk."""
    for _ in range(chunk.parts):
        meter.add(chunk.computed + chunk.tokens // chunk.parts, 1)
    left, room = chunk.computed, meter.spec.max_num_batched_tokens - session.decodes
    while left > 0:
        yield meter.step("prefix", session.decodes + min(left, room))
        left -= min(left, room)
    yield meter.step(f"{session} {chunk}", session.decodes + chunk.tokens)
