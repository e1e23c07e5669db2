"""LENS's search of one step, compiled: what `lens_search.search` defines, in microseconds.

Running prefills are sorted once; with prefix sums of what they and the waiting requests may get,
the greedy allocation of a candidate is two binary searches, and only the winner's is written
out. A test holds this equal to the definition, allocation per request included.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import hot, kernel
from synergy_gym.latency.models.saturation import (
    FLOOR_MS,
    INVERT_LIMIT,
    INVERT_STEPS,
    INVERT_TOLERANCE_MS,
)
from synergy_gym.policies.lens_search import (
    FREE,
    MIN_START_TOKENS,
    SKIP,
    Allocation,
    SearchSettings,
    StepTables,
)
from synergy_gym.types import IntArray

# Slots of the settings, and of the results behind caps and order.
I_MAX, I_CHUNK, I_CANDIDATES, I_ABSENT, I_COVER, I_BACKLOG, I_E2E, I_FLOOR = range(8)
F_EARLY, F_OUTPUT, F_QUEUE, F_OFFSET, F_LOW, F_TARGET, F_PREDICTED = range(7)
R_BUDGET, R_SEQUENCES, R_TOKENS, R_ROTATED, R_SLOTS, R_GIVEN, R_STARTED, RESULTS = range(8)


class CompiledSearch:
    """`search` for one policy and one model."""

    def __init__(self, tables: StepTables, settings: SearchSettings) -> None:
        s, self._tables = settings, tables
        self._ints = np.array(
            [
                min(s.max_tokens, INVERT_LIMIT),
                s.chunk_tokens,
                -1 if s.max_candidates is None else s.max_candidates,
                FREE if s.spill else SKIP,
                s.cover_decodes,
                s.backlog_tokens,
                s.objective == "e2e",
                s.batch_floor,
            ],
            np.int64,
        )
        fixed = (s.early_stop, s.output_tokens, s.queue_weight, tables.offset, tables.least_peak)
        self._floats = np.array([*fixed, 0.0, 0.0])
        self._work = np.empty(1024, np.int64)

    def __call__(
        self, prompts: IntArray, computed: IntArray, waiting: IntArray, target_ms: float
    ) -> Allocation | None:
        """As `search`, from prompt and computed tokens of running, prompts of waiting requests."""
        running, count = len(prompts), len(prompts) + len(waiting)
        self._tables.ensure(count)
        if len(self._work) < 4 * count + 2:
            self._work = np.empty(8 * count, np.int64)
        work, floats, tables = self._work, self._floats, self._tables
        work[:running] = prompts
        work[running : 2 * running] = computed
        work[2 * running : running + count] = waiting
        floats[F_TARGET] = target_ms
        out = np.empty(count + running + RESULTS, np.int64)
        found = _search(
            work, self._ints, floats, tables.batches, tables.tokens, running, count, out
        )
        if not found:
            return None
        budget, sequences, tokens, rotated = out[count + running :][: R_ROTATED + 1].tolist()
        order = out[count : count + running] if rotated else None
        predicted = floats[F_PREDICTED].item()
        return Allocation(budget, sequences, tokens, predicted, out[:count], order)


@hot
def _predict(batches, tokens, f, b, s):  # type: ignore[no-untyped-def]
    work = tokens[3 * s] / max(batches[2 * b] * tokens[3 * s + 1], f[F_LOW])
    return max(f[F_OFFSET] + work + batches[2 * b + 1] + tokens[3 * s + 2], FLOOR_MS)


@hot
def _invert(batches, tokens, f, b):  # type: ignore[no-untyped-def]
    low, high, found, target = 1, INVERT_LIMIT, 1, f[F_TARGET]
    for _ in range(INVERT_STEPS):
        if low > high:
            break
        middle = (low + high) >> 1
        predicted = _predict(batches, tokens, f, b, middle)
        if abs(predicted - target) < INVERT_TOLERANCE_MS:
            return middle
        if predicted < target:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found


@hot
def _sort(w, at, n):  # type: ignore[no-untyped-def]
    """Shell sort of the n distinct keys at w[at:]."""
    gap = n >> 1
    while gap > 0:
        for i in range(gap, n):
            key, j = w[at + i], i
            while j >= gap and w[at + j - gap] > key:
                w[at + j] = w[at + j - gap]
                j -= gap
            w[at + j] = key
        gap >>= 1


@hot
def _fitting(w, sums, n, tokens):  # type: ignore[no-untyped-def]
    """How many of n requests fit whole into `tokens`; w[sums:] holds their prefix sums."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) >> 1
        if w[sums + middle] <= tokens:
            low = middle
        else:
            high = middle - 1
    return low


@hot
def _sum_prefills(w, chunk, running, keys, sums):  # type: ignore[no-untyped-def]
    """Sort the running prefills, shortest rest first, and sum up what they may get."""
    n = 0
    for i in range(running):
        left = w[i] - w[running + i]
        if left > 0:
            w[keys + n] = (left << 24) | i
            n += 1
    _sort(w, keys, n)
    w[sums] = 0
    for k in range(n):
        w[sums + k + 1] = w[sums + k] + min(w[keys + k] >> 24, chunk)
    return n


@hot
def _sum_waiting(w, chunk, most, prompts, waiting, sums):  # type: ignore[no-untyped-def]
    """The same for waiting requests in queue order, as far as `most` tokens reach."""
    n = 0
    w[sums] = 0
    while n < waiting and w[sums + n] <= most:
        w[sums + n + 1] = w[sums + n] + min(w[prompts + n], chunk)
        n += 1
    return n


@hot
def _count(  # type: ignore[no-untyped-def]
    w, prompts, decodes, sums, prefills, waiting_sums, free_slots, reachable, budget, out, r
):
    """Sequences, tokens and started requests of one candidate's greedy allocation."""
    sequences, started = min(decodes, budget), 0
    left = budget - sequences
    whole = _fitting(w, sums, prefills, left)
    left -= w[sums + whole]
    sequences += whole
    if whole < prefills:
        sequences += left > 0
        left = 0
    else:
        most = min(free_slots, reachable)
        started = _fitting(w, waiting_sums, most, left)
        left -= w[waiting_sums + started]
        if started < most and left >= min(MIN_START_TOKENS, w[prompts + started]):
            started += 1
            left = 0
    out[r + R_SEQUENCES] = sequences + started
    out[r + R_GIVEN] = budget - left
    out[r + R_STARTED] = started


@hot
def _score(batches, tokens, f, e2e, waiting, out, r):  # type: ignore[no-untyped-def]
    sequences = out[r + R_SEQUENCES]
    if sequences == 0:
        return np.inf
    if e2e:
        alone = _predict(batches, tokens, f, sequences, sequences)
        return alone * f[F_OUTPUT] * (1.0 + f[F_QUEUE] * (waiting - out[r + R_STARTED]))
    return abs(_predict(batches, tokens, f, sequences, out[r + R_GIVEN]) - f[F_TARGET])


@kernel
def _search(w, ints, f, batches, tokens, running, count, out):  # type: ignore[no-untyped-def]
    """The winner's caps, order and results in `out`; False when nobody gets a token.

    w holds prompts and computed tokens of the running requests and prompts of the waiting ones;
    behind them is room for sort keys and two rows of prefix sums.
    """
    waiting, e2e, r = count - running, ints[I_E2E] != 0, running + count
    sums = r + running
    waiting_sums = sums + running + 1
    prefills = _sum_prefills(w, ints[I_CHUNK], running, r, sums)
    reachable = _sum_waiting(w, ints[I_CHUNK], ints[I_MAX], 2 * running, waiting, waiting_sums)
    decodes = running - prefills
    least = decodes if ints[I_COVER] else 1
    if prefills + waiting > 0:
        least += ints[I_BACKLOG]
    slots = max(running, 1)
    if e2e:
        slots = max(slots, min(1 + 2 * waiting, ints[I_FLOOR], count))
    best, tried = np.inf, 0
    while slots <= count and tried != ints[I_CANDIDATES]:
        tried += 1
        budget = min(max(_invert(batches, tokens, f, slots), least), ints[I_MAX])
        _count(
            w, 2 * running, decodes, sums, prefills, waiting_sums, slots - running, reachable,
            budget, out, r,
        )  # fmt: skip
        score = _score(batches, tokens, f, e2e, waiting, out, r)
        if score < best:
            best = score
            out[r + R_BUDGET], out[r + R_SLOTS] = budget, slots
        if not e2e and best < f[F_EARLY] * f[F_TARGET]:
            break
        slots += 1
    if best == np.inf:
        return False
    _allocate(w, ints, running, count, prefills, out)
    f[F_PREDICTED] = _predict(batches, tokens, f, out[r + R_SEQUENCES], out[r + R_TOKENS])
    if e2e:
        out[r + R_BUDGET] = out[r + R_TOKENS]
    return True


@hot
def _allocate(w, ints, running, count, prefills, out):  # type: ignore[no-untyped-def]
    """Greedy allocation of the winner: caps in out[:count], order in out[count:]."""
    r, last, served = running + count, -1, 0
    left, slots = out[r + R_BUDGET], out[r + R_SLOTS] - running
    for i in range(running):
        out[i] = 0
        if w[running + i] >= w[i] and left > 0:
            out[i] = 1
            left -= 1
            last = i
            served += 1
    for k in range(prefills):
        i = w[r + k] & 0xFFFFFF
        out[i] = min(w[r + k] >> 24, ints[I_CHUNK], left)
        left -= out[i]
        served += out[i] > 0
    for i in range(running, count):
        prompt = w[running + i]
        if slots <= 0 or left < min(MIN_START_TOKENS, prompt):
            slots = 0
            out[i] = ints[I_ABSENT]
        else:
            out[i] = min(prompt, ints[I_CHUNK], left)
            left -= out[i]
            slots -= 1
            served += 1
    out[r + R_SEQUENCES] = served
    out[r + R_TOKENS] = out[r + R_BUDGET] - left
    _rotate(w, running, count, last, out)


@hot
def _rotate(w, running, count, last, out):  # type: ignore[no-untyped-def]
    """Order of the running list with the prefills before `last` at its tail."""
    at = count
    for i in range(running):
        if i > last or w[running + i] >= w[i]:
            out[at] = i
            at += 1
    out[count + running + R_ROTATED] = at < count + running
    for i in range(last):
        if w[running + i] < w[i]:
            out[at] = i
            at += 1
