"""Output lengths learned from requests that are gone."""

from __future__ import annotations

import numpy as np

from synergy_gym.policies.output_lengths import OutputLengths
from synergy_gym.types import RequestArrays


def queue(arrivals: list[float], generated: list[int], now: float) -> RequestArrays:
    n = len(arrivals)
    zeros = np.zeros(n, np.int64)
    waited = now - np.array(arrivals, np.float64)
    tokens = np.array(generated, np.int64)
    return RequestArrays(zeros + 9, zeros + 9, tokens, zeros, waited, waited, zeros, zeros)


EMPTY = queue([], [], 0.0)


def learned(lengths: list[int], **options: int) -> OutputLengths:
    """Each request is seen once with its length and then gone."""
    known = OutputLengths(0.1, 0.9, every=1, **options)
    for i, length in enumerate(lengths):
        known.look(float(i), queue([float(i)], [length], float(i)), EMPTY)
    known.look(float(len(lengths)), EMPTY, EMPTY)
    return known


def test_nothing_is_said_before_enough_have_finished() -> None:
    known = learned([100] * 31, least=32)
    assert known.high == 0.0
    assert known.remaining.tolist() == [1]


def test_quantiles_of_what_finished(rng: np.random.Generator) -> None:
    lengths = rng.integers(1, 400, 300).tolist()
    known = learned(lengths, least=32)
    assert known.high == np.quantile(lengths, 0.9)
    for generated in (0, 50, 200):
        longer = sorted(x for x in lengths if x > generated)
        assert known.remaining[generated] == longer[int(0.1 * len(longer))] - generated
    assert known.remaining[-1] == 1


def test_only_the_last_ones_are_remembered() -> None:
    assert learned([1000] * 64 + [10] * 64, least=32, memory=64).high == 10.0


def test_a_preempted_request_has_not_finished() -> None:
    known = OutputLengths(0.1, 0.9, every=1, least=1)
    known.look(1.0, queue([0.5], [40], 1.0), EMPTY)
    known.look(2.0, EMPTY, queue([0.5], [40], 2.0))
    assert known.high == 0.0


def test_between_looks_nothing_is_read() -> None:
    known = OutputLengths(0.1, 0.9, every=4, least=1)
    for k in range(1, 9):
        known.look(float(k), queue([0.5], [k], float(k)) if k < 8 else EMPTY, EMPTY)
    assert known.high == 4 + 2  # seen with 4 tokens; gone four decisions later
