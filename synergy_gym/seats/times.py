"""How long policies take to decide: a histogram of fixed size per layer."""

from __future__ import annotations

import time

_BITS = 7
"""Significant bits that a duration keeps: bins are 1/64 wide, quantiles within 0.8 %."""
TIMED_FIRST, TIMED_EVERY = 256, 16
_HALF = 1 << (_BITS - 1)
_BINS = _HALF * (64 - _BITS + 2)


class DecisionTimes:
    """Durations of decisions in nanoseconds; memory does not grow with their number.

    Bins are exact below 128 ns and 1/64 of their value wide above (the layout of an HDR
    histogram, Tene 2012).

    Reading the clock can cost more than a simple decision, so of many only some are timed: the
    first `TIMED_FIRST` and every `TIMED_EVERY`th behind them.

    Attributes:
        decisions: decisions so far, timed or not.
        count: timed ones.
        total_ns: their sum.
        first_ns: the first one, in which a policy's compiled parts are loaded.
    """

    def __init__(self) -> None:
        self.decisions = 0
        self.count = 0
        self.total_ns = 0
        self.first_ns = 0
        self._bins = [0] * _BINS

    def begin(self) -> int:
        """Before a decision: processor time of this thread, -1 when it is not timed."""
        self.decisions += 1
        timed = self.decisions <= TIMED_FIRST or self.decisions % TIMED_EVERY == 0
        return time.thread_time_ns() if timed else -1

    def end(self, began_ns: int) -> None:
        """After the decision that `begin` gave this for."""
        if began_ns >= 0:
            self.add(time.thread_time_ns() - began_ns)

    def add(self, duration_ns: int) -> None:
        """Enter one decision, `duration_ns` >= 0."""
        shift = max(duration_ns.bit_length() - _BITS, 0)
        self._bins[shift * _HALF + (duration_ns >> shift)] += 1
        if not self.count:
            self.first_ns = duration_ns
        self.count += 1
        self.total_ns += duration_ns

    def mean_us(self) -> float:
        """Mean of all but the first in microseconds; of one decision that one, of none NaN."""
        if self.count < 2:
            return self.first_ns / 1e3 if self.count else float("nan")
        return (self.total_ns - self.first_ns) / (self.count - 1) / 1e3

    def quantile_us(self, share: float) -> float:
        """The shortest time that at least `share` of the decisions needed, in microseconds.

        The middle of its bin; NaN without decisions.
        """
        wanted, seen = share * self.count, 0
        for index, entries in enumerate(self._bins):
            seen += entries
            if entries and seen >= wanted:
                return _middle_ns(index) / 1e3
        return float("nan")


def _middle_ns(index: int) -> float:
    """The middle of a bin of whole nanoseconds."""
    shift = max(index // _HALF - 1, 0)
    low = (index - shift * _HALF) << shift
    return low + ((1 << shift) - 1) / 2
