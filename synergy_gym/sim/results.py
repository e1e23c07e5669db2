"""Request records of a compiled episode."""

from __future__ import annotations

import numpy as np

from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.memory import Memory
from synergy_gym.types import IntArray, Outcome, RequestRecords


def request_records(memory: Memory, session: IntArray) -> RequestRecords:
    """Columns of the memory's requests; see `RequestRecords`."""
    requests, details = memory.requests, memory.details
    left = requests["state"] == L.LEFT
    outcome = np.where(left, requests["outcome"], int(Outcome.UNFINISHED)).astype(np.int64)
    finished = outcome == int(Outcome.FINISHED)
    return RequestRecords(
        arrival_ns=requests["arrival_ns"].copy(),
        scheduled_ns=details["scheduled_ns"].copy(),
        first_token_ns=requests["first_token_ns"].copy(),
        finish_ns=np.where(finished, requests["last_token_ns"], -1),
        prompt_tokens=requests["prompt_tokens"].astype(np.int64),
        output_tokens=requests["output_tokens"].astype(np.int64),
        emitted_tokens=_emitted(memory),
        cached_tokens=np.maximum(details["cached_tokens"].astype(np.int64) - 1, 0),
        preemptions=details["preemptions"].astype(np.int64),
        engine=requests["engine"].astype(np.int64) - 1,
        outcome=outcome,
        slo_class=requests["slo_class"].astype(np.int64),
        session=session.copy(),
        attempts=requests["attempts"].astype(np.int64),
    )


def _emitted(memory: Memory) -> IntArray:
    """Output tokens streamed by the last attempt, running decodes included."""
    requests = memory.requests
    emitted: IntArray = requests["generated_tokens"].astype(np.int64)
    decoding = requests["state"] == L.DECODE
    if bool(decoding.any()):
        rows = requests[decoding]
        steps = memory.engines["busy_steps"][rows["engine"] - 1]
        emitted[decoding] = rows["computed_tokens"] + steps - rows["prompt_tokens"] + 1
    return emitted
