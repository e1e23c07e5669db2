"""SynergySched's T(B, S) as the simulator's clock: the world in which its model is perfect.

Every form of `latency/models/saturation.py` is

    T = max(0.1 ms, t0 + (u0 + u1 s) / (gB(B) gS(S)) + tB b + tS s)

so a step is an affine part, as in `latency/clock.py`, plus f(B) * g(S) with f = 1/gB and
g = (u0 + u1 s)/gS. Both functions are tabulated in fixed point. `decimal` computes the tables:
its `exp` is correctly rounded, so they are equal on every platform, which `math.exp` is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache

import numpy as np

from synergy_gym.latency.clock import (
    BY_SEQUENCES,
    BY_TOKENS,
    CLOCK_SIZE,
    FS_PER_MS,
    UNIT,
    clock_head,
)
from synergy_gym.latency.models.saturation import (
    B_SCALE,
    FLOOR_MS,
    K_B,
    K_S,
    MIN_GAIN,
    MIN_PEAK,
    OFFSET,
    PEAK,
    S_SCALE,
    T_B,
    T_S,
    WORK,
    WORK_PER_S,
    SaturationModel,
)
from synergy_gym.types import IntArray

PS_PER_MS = 10**9
DIGITS = 40
"""Decimal digits of the table computation; a table needs 19."""
LIMIT = 1 << 62
"""Products of table entries stay below this; the longest step is about 4 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturationTerms:
    """A clock that times a step by T(B, S) alone: no context terms, no stragglers.

    Steps equal `model.predict_ms` to 1 ns + 1e-6 of it, before noise and slowdowns.

    Attributes:
        model: the parameters.
        max_sequences: largest B of a step, the engine's `max_num_seqs`.
        max_tokens: largest S of a step, its `max_num_batched_tokens`.
        noise_sd: relative standard deviation of the multiplicative noise; none by default.

    Raises:
        ValueError: a limit below 1, noise outside 0..0.25, or a model with steps so long that
            the fixed point does not hold them.
    """

    model: SaturationModel
    max_sequences: int
    max_tokens: int
    noise_sd: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_sequences", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"SaturationTerms.{name} is {getattr(self, name)}; it must be >= 1"
                )
        if not 0 <= self.noise_sd <= 0.25:
            raise ValueError(f"SaturationTerms.noise_sd is {self.noise_sd}; use 0 to 0.25")
        _tables(self.model, self.max_sequences, self.max_tokens)

    def clock(self, seed: int = 0) -> IntArray:
        """The fixed-point vector that `latency.clock.step_ns` reads: head, then two tables."""
        v = self.model.vector()
        head = clock_head(seed, FLOOR_MS, self.noise_sd)
        per_unit = (v[OFFSET], v[T_B] / v[B_SCALE], v[T_S] / v[S_SCALE])
        head[: len(per_unit)] = [round(float(value) * FS_PER_MS) for value in per_unit]
        head[BY_SEQUENCES] = CLOCK_SIZE
        head[BY_TOKENS] = CLOCK_SIZE + self.max_sequences + 1
        return np.concatenate([head, _tables(self.model, self.max_sequences, self.max_tokens)])


@lru_cache(maxsize=64)
def _tables(model: SaturationModel, max_sequences: int, max_tokens: int) -> IntArray:
    """f(B) in 1/`UNIT` for B = 0..max_sequences, then g(S) in ps for S = 0..max_tokens.

    Entries 0 are never read (a step has a sequence and a token) and hold 0. Read-only.
    """
    with localcontext(Context(prec=DIGITS, rounding=ROUND_HALF_EVEN)):
        v = [Decimal(float(value)) for value in model.vector()]
        gain_b = _gains(v[K_B] / v[B_SCALE], v[MIN_GAIN], max_sequences)
        gain_s = _gains(v[K_S] / v[S_SCALE], v[MIN_GAIN], max_tokens)
        if v[PEAK] * gain_b[0] * gain_s[0] < v[MIN_PEAK]:
            raise ValueError(
                f"{model}: the throughput of one sequence with one token is below its least value "
                f"{v[MIN_PEAK]:.0e}, so T(B,S) is no product of tables; raise pmax, k_b or k_s"
            )
        inverse = [_whole(UNIT / gain) for gain in gain_b]
        work = [
            _whole((v[WORK] + v[WORK_PER_S] * s / v[S_SCALE]) / (v[PEAK] * gain) * PS_PER_MS)
            for s, gain in enumerate(gain_s, start=1)
        ]
    if max(inverse) * max(work) >= LIMIT:
        raise ValueError(
            f"{model}: its steps last up to {max(inverse) * max(work) / UNIT / 1e12:.3g} s, more "
            f"than the clock holds ({LIMIT / UNIT / 1e12:.3g} s); use a model with faster steps"
        )
    tables = np.array([0, *inverse, 0, *work], np.int64)
    tables.flags.writeable = False
    return tables


def _gains(rate: Decimal, least: Decimal, count: int) -> list[Decimal]:
    """max(1 - exp(-rate * x), least) for x = 1..count, by powers: one `exp` is enough."""
    factor = (-rate).exp()
    power, gains = Decimal(1), []
    for _ in range(count):
        power *= factor
        gains.append(max(1 - power, least))
    return gains


def _whole(value: Decimal) -> int:
    return int(value.to_integral_value())
