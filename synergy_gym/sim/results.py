"""Request records of a compiled episode."""

from __future__ import annotations

import numpy as np

from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.memory import Memory
from synergy_gym.types import IntArray, Outcome, RequestRecords


def request_records(memory: Memory, session: IntArray) -> RequestRecords:
    """Columns of the memory's requests; see `RequestRecords`."""
    requests, details = memory.requests, memory.details
    outcome = _outcomes(memory)
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


def _outcomes(memory: Memory) -> IntArray:
    """What became of every request: until the episode has ended, of some nothing yet."""
    requests, world = memory.requests, memory.world
    left = requests["state"] == L.LEFT
    if world["over"]:
        return np.where(left, requests["outcome"], int(Outcome.UNFINISHED)).astype(np.int64)
    outcome = np.where(left, requests["outcome"], int(Outcome.PENDING)).astype(np.int64)
    if world["closed_loop"]:
        outcome[_never_arriving(memory)] = int(Outcome.UNFINISHED)
    return outcome


def _never_arriving(memory: Memory) -> list[int]:
    """Requests of a closed loop that were due after the horizon, and all that wait for them."""
    requests = memory.requests
    families = memory.records(L.FAMILY, memory.world["families"], len(requests))
    unborn = (requests["attempts"] == 0) & (requests["outcome"] == int(Outcome.UNFINISHED))
    never: list[int] = np.flatnonzero(unborn).tolist()
    for request in never:  # grows meanwhile
        child = int(families["first_child"][request])
        while child >= 0:
            never.append(child)
            child = int(families["next_sibling"][child])
    return never


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
