"""How long outputs are, learned from the requests that an engine has finished.

A policy never sees the output length of a request before it has ended. Requests that were
running at one decision and are in neither queue at a later one have ended, with about as many
tokens as they had then; the lengths of the last `memory` of them are kept.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.types import FloatArray, IntArray, RequestArrays


class OutputLengths:
    """Quantiles of finished output lengths, in tokens.

    Args:
        low: quantile of the tokens that a running request at least has left.
        high: quantile of the length that an output hardly exceeds.
        every: decisions between two looks at the queues.
        memory: finished requests that are remembered.
        least: finished requests before anything is said.
    """

    def __init__(
        self, low: float, high: float, *, every: int = 8, memory: int = 512, least: int = 32
    ) -> None:
        self._low, self._high = low, high
        self._every, self._memory, self._least = every, memory, least
        self._looks = 0
        self._seen: tuple[IntArray, IntArray] | None = None
        self._lengths: list[int] = []
        self.remaining: IntArray = np.ones(1, np.int64)
        """Tokens that a request with `i` generated ones still has with probability 1 - low."""
        self.high = 0.0
        """Length that the share `high` of all outputs does not exceed; 0 while unknown."""

    def look(self, now_s: float, running: RequestArrays, waiting: RequestArrays) -> None:
        """See the queues at a decision; every `every`-th one counts."""
        self._looks += 1
        if self._looks % self._every:
            return
        here = _arrivals(now_s, running.waited_s)
        if self._seen is not None:
            arrivals, generated = self._seen
            left = ~np.isin(arrivals, here)
            if left.any() and len(waiting):  # preempted requests wait again
                left &= ~np.isin(arrivals, _arrivals(now_s, waiting.waited_s))
            if left.any():
                # Between two looks a request has got half of `every` tokens on average.
                self._learn((generated[left] + self._every // 2).tolist())
        started = running.generated_tokens > 0
        self._seen = (here[started], running.generated_tokens[started])

    def _learn(self, lengths: list[int]) -> None:
        self._lengths = (self._lengths + lengths)[-self._memory :]
        if len(self._lengths) < self._least:
            return
        ordered = np.sort(np.array(self._lengths, np.int64))
        self.high = float(np.quantile(ordered, self._high))
        generated = np.arange(int(ordered[-1]) + 1)
        longer = np.searchsorted(ordered, generated, side="right")
        place = longer + ((len(ordered) - longer) * self._low).astype(np.int64)
        reached = ordered[np.minimum(place, len(ordered) - 1)]
        self.remaining = np.maximum(reached - generated, 1)


def _arrivals(now_s: float, waited_s: FloatArray) -> IntArray:
    """Arrival instants in whole microseconds: what tells requests apart."""
    return np.rint((now_s - waited_s) * 1e6).astype(np.int64)
