"""Request records of a compiled episode."""

from __future__ import annotations

import numpy as np

from synergy_gym.sim import layout as L
from synergy_gym.types import IntArray, Outcome, RequestRecords


def request_records(a: IntArray, session: IntArray) -> RequestRecords:
    """Columns of the arena's request rows; see `RequestRecords`."""
    n = len(session)
    rows = a[a[L.H_REQ] : a[L.H_REQ] + n * L.REQUEST_SIZE].reshape(n, L.REQUEST_SIZE)
    state = rows[:, L.F_STATE]
    left = (state & L.STATE_MASK) == L.LEFT
    outcome = np.where(left, state >> L.OUTCOME_SHIFT, int(Outcome.UNFINISHED))
    finished = outcome == int(Outcome.FINISHED)
    return RequestRecords(
        arrival_ns=rows[:, L.F_ARRIVAL].copy(),
        scheduled_ns=rows[:, L.F_SCHEDULED].copy(),
        first_token_ns=rows[:, L.F_FIRST].copy(),
        finish_ns=np.where(finished, rows[:, L.F_LAST], -1),
        prompt_tokens=rows[:, L.F_PROMPT].copy(),
        output_tokens=rows[:, L.F_OUTPUT].copy(),
        emitted_tokens=_emitted(a, rows),
        cached_tokens=np.maximum((rows[:, L.F_COUNTS] & L.CACHED_MASK) - 1, 0),
        preemptions=rows[:, L.F_COUNTS] >> L.PREEMPTION_SHIFT,
        engine=(rows[:, L.F_PLACE] & L.ENGINE_MASK) - 1,
        outcome=outcome,
        slo_class=rows[:, L.F_META] & L.CLASS_MASK,
        session=session.copy(),
        attempts=rows[:, L.F_META] >> L.ATTEMPT_SHIFT & L.ATTEMPT_MASK,
    )


def _emitted(a: IntArray, rows: IntArray) -> IntArray:
    """Output tokens streamed by the last attempt, running decodes included."""
    emitted = rows[:, L.F_GEN].copy()
    decoding = (rows[:, L.F_STATE] & L.STATE_MASK) == L.DECODE
    if bool(decoding.any()):
        engine = (rows[decoding, L.F_PLACE] & L.ENGINE_MASK) - 1
        steps = a[a[L.H_ENG] + engine * L.E_SIZE + L.E_K]
        emitted[decoding] = rows[decoding, L.F_OFF] + steps - rows[decoding, L.F_PROMPT] + 1
    return emitted
