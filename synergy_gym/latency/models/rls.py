"""Recursive least squares for the step time, compiled; `ContextAwareModel` is its face.

All state is one flat float64 array; the constants below are offsets into it. The step time is
linear in `NUM_TERMS` terms with coefficients >= 0:

    T = base + per_sequence*B + sum_k slope_k*max(S - knot_k, 0) + per_decode_context*C
        + per_prefill_pair*A + per_prefill_context*P + prefill_step*[prefill]
        + per_mixed_context*C*[prefill and decodes]

with the letters of `step_model.StepFeatures`. The hinges are there because a small step costs a
constant, all weights being streamed once, and where that ends is learned with the rest. The form
is what policies believe; it stays as it is whatever the simulator's clock becomes.

Method: errors are relative (rows are divided by the prediction); forgetting acts along the
direction of the observed step only (Kulhavy, Kybernetika 23, 1987), so that terms which do not
occur keep what is known of them and the covariance cannot wind up; variances are capped besides;
negative coefficients are projected out in the metric of the covariance (Simon and Chia, IEEE
TAES 38, 2002); errors beyond 3 sd are clipped (Huber); a two-sided CUSUM of the errors (Page,
Biometrika 41, 1954) or their size shows a change: all coefficients are rescaled at once by the
common factor of the last steps, and become less certain.
"""

from __future__ import annotations

import math

from synergy_gym.jit import hot, kernel
from synergy_gym.latency.models.base import MIN_STEP_MS

NUM_KNOTS = 6
NUM_TERMS = 7 + NUM_KNOTS
BASE, SEQUENCE, SLOPE = 0, 1, 2
CONTEXT = SLOPE + NUM_KNOTS
PAIR, PREFILL_CONTEXT, PREFILL, MIXED = CONTEXT + 1, CONTEXT + 2, CONTEXT + 3, CONTEXT + 4

VARIANCE = 0
"""Variance of the relative error of one step."""
MEMORY = 1
"""Forgetting factor, 1 - 1/steps."""
MAX_MS = 2
ACCEPTED, REJECTED, IDLE, REGIMES, RESETS = 3, 4, 5, 6, 7
UP, DOWN = 8, 9
"""The two sums of the CUSUM."""
RECENT = 10
"""Logarithms of measured / predicted of the last `NUM_RECENT` steps, a ring."""
NUM_RECENT = 5
ALARMS = 15
"""All alarms; `REGIMES` counts those that changed the speed."""
SURPRISE = 16
"""Moving mean of the squared clipped error, in units of its expectation."""
KNOTS = 17
THETA = KNOTS + NUM_KNOTS
"""Coefficients, milliseconds per scaled unit of their term."""
SCALE = THETA + NUM_TERMS
"""Units of each term in one scaled unit."""
PHI = SCALE + NUM_TERMS
GAIN = PHI + NUM_TERMS
CAP = GAIN + NUM_TERMS
"""Largest variance of each coefficient, in units of `VARIANCE`."""
COVARIANCE = CAP + NUM_TERMS
SCRATCH = COVARIANCE + NUM_TERMS * NUM_TERMS
STATE_SIZE = SCRATCH + NUM_TERMS * NUM_TERMS

OK, IDLE_STEP, BAD_INPUT, REGIME_CHANGE, LOST_COVARIANCE = 0, 1, 2, 3, 4
"""What `observe` returns."""

CLIP_SD = 3.0
CUSUM_DRIFT_SD = 0.5
CUSUM_LIMIT_SD = 12.0
"""In control a Gaussian error crosses it about once in a million steps (Siegmund's formula);
with clipping at 3 sd at least `NUM_RECENT` steps are needed, so single stragglers do not, and
the last `NUM_RECENT` steps lie behind the change."""
MIN_CHANGE = math.log(1.08)
"""An alarm with a smaller common change only makes the coefficients less certain."""
SURPRISE_RATE, SURPRISE_LIMIT = 1 / 16, 3.0
"""In control the moving mean has sd 0.25 around 1; single terms that change alarm through it."""
INFLATION = 4.0
"""After an alarm every variance grows by this factor (up to its cap)."""
SPEED_VARIANCE = 1.0
"""Variance of an estimated speed in units of `VARIANCE` (a median of 5 has 0.31)."""
MIN_VARIANCE, MAX_VARIANCE = 0.002**2, 0.5**2
PRIOR_STEPS = 20.0
VARIANCE_STEPS = 500.0
HUGE = 1e12


@hot
def _clean(value):  # type: ignore[no-untyped-def]
    return min(max(value, 0.0), HUGE) if value == value else 0.0


@hot
def _valid(sequences, tokens, context, pairs, prefill_context, decodes):  # type: ignore[no-untyped-def]
    least = min(min(sequences, tokens), min(min(context, pairs), min(prefill_context, decodes)))
    total = sequences + tokens + context + pairs + prefill_context + decodes
    return least >= 0.0 and total <= HUGE


@hot
def _fill(a, sequences, tokens, context, pairs, prefill_context, decodes):  # type: ignore[no-untyped-def]
    """Write the scaled terms of a step to `PHI` and return its predicted time in ms."""
    has_prefill = 1.0 if tokens > decodes else 0.0
    mixed = has_prefill if decodes > 0 else 0.0
    a[PHI + BASE] = 1.0
    a[PHI + SEQUENCE] = sequences
    for k in range(NUM_KNOTS):
        a[PHI + SLOPE + k] = max(tokens - a[KNOTS + k], 0.0)
    a[PHI + CONTEXT] = context
    a[PHI + PAIR] = pairs
    a[PHI + PREFILL_CONTEXT] = prefill_context
    a[PHI + PREFILL] = has_prefill
    a[PHI + MIXED] = context * mixed
    predicted = 0.0
    for i in range(NUM_TERMS):
        a[PHI + i] /= a[SCALE + i]
        predicted += a[PHI + i] * a[THETA + i]
    return max(predicted, MIN_STEP_MS)


@hot
def _gain(a, weight):  # type: ignore[no-untyped-def]
    """Write covariance * row to `GAIN`; return row * covariance * row, row = PHI * weight."""
    spread = 0.0
    for i in range(NUM_TERMS):
        total = 0.0
        for j in range(NUM_TERMS):
            total += a[COVARIANCE + i * NUM_TERMS + j] * a[PHI + j]
        a[GAIN + i] = total * weight
        spread += a[PHI + i] * total
    return spread * weight * weight


@hot
def _forget_and_learn(a, spread):  # type: ignore[no-untyped-def]
    """Covariance after a step: information along its row is added and old one forgotten."""
    memory = a[MEMORY]
    factor = (memory - (1.0 - memory) / spread) / (memory * (1.0 + spread))
    for i in range(NUM_TERMS):
        for j in range(NUM_TERMS):
            a[COVARIANCE + i * NUM_TERMS + j] -= factor * a[GAIN + i] * a[GAIN + j]


@hot
def _cap(a):  # type: ignore[no-untyped-def]
    """Scale rows and columns whose variance is above its cap: stays positive definite."""
    for i in range(NUM_TERMS):
        variance = a[COVARIANCE + i * NUM_TERMS + i]
        if variance > a[CAP + i]:
            factor = math.sqrt(a[CAP + i] / variance)
            for j in range(NUM_TERMS):
                a[COVARIANCE + i * NUM_TERMS + j] *= factor
                a[COVARIANCE + j * NUM_TERMS + i] *= factor


@hot
def _most_negative(a):  # type: ignore[no-untyped-def]
    worst, least = -1, 0.0
    for i in range(NUM_TERMS):
        if a[THETA + i] < least:
            worst, least = i, a[THETA + i]
    return worst


@hot
def _project(a):  # type: ignore[no-untyped-def]
    """Set negative coefficients to 0 and move the others as their covariance says."""
    used = 0
    for _ in range(NUM_TERMS):
        worst = _most_negative(a)
        if worst < 0:
            break
        column = SCRATCH + used * NUM_TERMS
        for i in range(NUM_TERMS):
            total = a[COVARIANCE + i * NUM_TERMS + worst]
            for k in range(used):
                total -= a[SCRATCH + k * NUM_TERMS + i] * a[SCRATCH + k * NUM_TERMS + worst]
            a[column + i] = total
        variance = a[column + worst]
        if variance > 1e-12 * a[COVARIANCE + worst * NUM_TERMS + worst]:
            root, value = math.sqrt(variance), a[THETA + worst]
            for i in range(NUM_TERMS):
                a[column + i] /= root
                a[THETA + i] -= a[column + i] * value / root
            used += 1
        a[THETA + worst] = 0.0
    for i in range(NUM_TERMS):
        a[THETA + i] = max(a[THETA + i], 0.0)


@hot
def _restart(a):  # type: ignore[no-untyped-def]
    """Independent coefficients, each as uncertain as its cap allows."""
    for i in range(NUM_TERMS):
        for j in range(NUM_TERMS):
            a[COVARIANCE + i * NUM_TERMS + j] = a[CAP + i] if i == j else 0.0


@hot
def _doubt(a, factor, speed_variance):  # type: ignore[no-untyped-def]
    """All coefficients times a common factor, and less certain.

    The factor is uncertain, so what is learned next moves them together; and each is by itself
    less certain, because they need not have changed alike.
    """
    for i in range(NUM_TERMS):
        a[THETA + i] *= factor
        a[CAP + i] *= factor * factor
    for i in range(NUM_TERMS):
        for j in range(NUM_TERMS):
            a[COVARIANCE + i * NUM_TERMS + j] *= factor * factor * INFLATION
            a[COVARIANCE + i * NUM_TERMS + j] += speed_variance * a[THETA + i] * a[THETA + j]
    _cap(a)


@hot
def _median_recent(a):  # type: ignore[no-untyped-def]
    """The ring's element that as many others are below as above (ties count by place)."""
    for i in range(NUM_RECENT):
        below = 0
        for j in range(NUM_RECENT):
            first, second = a[RECENT + j], a[RECENT + i]
            if first < second or (first == second and j < i):
                below += 1
        if below == NUM_RECENT // 2:
            break
    return a[RECENT + i]


@hot
def _alarm(a, deviation, log_ratio):  # type: ignore[no-untyped-def]
    """Whether errors have kept one sign for too long (CUSUM), or have been too large."""
    a[RECENT + int(a[ACCEPTED]) % NUM_RECENT] = log_ratio
    a[UP] = max(a[UP] + deviation - CUSUM_DRIFT_SD, 0.0)
    a[DOWN] = max(a[DOWN] - deviation - CUSUM_DRIFT_SD, 0.0)
    a[SURPRISE] += SURPRISE_RATE * (deviation * deviation - a[SURPRISE])
    if max(a[UP], a[DOWN]) <= CUSUM_LIMIT_SD and a[SURPRISE] <= SURPRISE_LIMIT:
        return False
    a[UP] = 0.0
    a[DOWN] = 0.0
    a[SURPRISE] = 1.0
    return True


@kernel
def observe(a, sequences, tokens, context, pairs, prefill_context, decodes, step_ms):  # type: ignore[no-untyped-def]
    """Learn from one step; returns `OK` or what was special about it."""
    if not _valid(sequences, tokens, context, pairs, prefill_context, decodes):
        a[REJECTED] += 1.0
        return BAD_INPUT
    if sequences == 0.0 or tokens == 0.0:
        a[IDLE] += 1.0
        return IDLE_STEP
    if not (0.0 < step_ms <= a[MAX_MS]):
        a[REJECTED] += 1.0
        return BAD_INPUT
    predicted = _fill(a, sequences, tokens, context, pairs, prefill_context, decodes)
    result = OK
    spread = _gain(a, 1.0 / predicted)
    if not (1e-12 < spread < HUGE):
        _restart(a)
        a[RESETS] += 1.0
        result = LOST_COVARIANCE
        spread = _gain(a, 1.0 / predicted)
    a[ACCEPTED] += 1.0
    sd = math.sqrt(a[VARIANCE] * (1.0 + spread))
    error = (step_ms - predicted) / predicted
    deviation = min(max(error / sd, -CLIP_SD), CLIP_SD)
    for i in range(NUM_TERMS):
        a[THETA + i] += a[GAIN + i] * deviation * sd / (1.0 + spread)
    _forget_and_learn(a, spread)
    _cap(a)
    _project(a)
    rate = max(1.0 / (a[ACCEPTED] + PRIOR_STEPS), 1.0 / VARIANCE_STEPS)
    variance = a[VARIANCE] * (1.0 + rate * (deviation * deviation - 1.0))
    a[VARIANCE] = min(max(variance, MIN_VARIANCE), MAX_VARIANCE)
    if _alarm(a, deviation, math.log(step_ms / predicted)):
        change = _median_recent(a)
        a[ALARMS] += 1.0
        if abs(change) > MIN_CHANGE:
            _doubt(a, math.exp(change), SPEED_VARIANCE)
            a[REGIMES] += 1.0
            result = REGIME_CHANGE
        else:
            _doubt(a, 1.0, 0.0)
    return result


@hot
def _predict(a, sequences, tokens, context, pairs, prefill_context, decodes):  # type: ignore[no-untyped-def]
    return _fill(
        a,
        _clean(sequences),
        _clean(tokens),
        _clean(context),
        _clean(pairs),
        _clean(prefill_context),
        _clean(decodes),
    )


@kernel
def predict(a, sequences, tokens, context, pairs, prefill_context, decodes):  # type: ignore[no-untyped-def]
    """Predicted step time in ms; negative (its value still valid) if a feature was not."""
    value = _predict(a, sequences, tokens, context, pairs, prefill_context, decodes)
    if _valid(sequences, tokens, context, pairs, prefill_context, decodes):
        return value
    return -value


@kernel
def predict_many(a, rows, out):  # type: ignore[no-untyped-def]
    """`predict` for each row of six features in the flat `rows`; returns how many were invalid."""
    invalid = 0
    for n in range(len(out)):
        r = 6 * n
        out[n] = _predict(
            a, rows[r], rows[r + 1], rows[r + 2], rows[r + 3], rows[r + 4], rows[r + 5]
        )
        if not _valid(rows[r], rows[r + 1], rows[r + 2], rows[r + 3], rows[r + 4], rows[r + 5]):
            invalid += 1
    return invalid


@kernel
def relative_sd(a, sequences, tokens, context, pairs, prefill_context, decodes):  # type: ignore[no-untyped-def]
    """Standard deviation of the next such step around its prediction, noise included."""
    predicted = _predict(a, sequences, tokens, context, pairs, prefill_context, decodes)
    return math.sqrt(a[VARIANCE] * (1.0 + max(_gain(a, 1.0 / predicted), 0.0)))


@kernel
def invert(a, decodes, context, target_ms, prefill_context, limit):  # type: ignore[no-untyped-def]
    """Most prefill tokens of one chunk beside the decodes so that T <= target; 0: none fits."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        pairs = middle * (prefill_context + 0.5 * (middle + 1))
        ms = _predict(a, decodes + 1.0, decodes + middle, context, pairs, prefill_context, decodes)
        if ms <= target_ms:
            low = middle
        else:
            high = middle - 1
    return low
