"""The simulator's engine against vLLM's own V1 scheduler, step by step, without a model.

Three sides, the reference engine, the reference simulator and the compiled simulator, meet the
same random workloads and the same random decisions as vLLM. Every state before an iteration and
every result of one must be equal: queues, computed and generated tokens, scheduled tokens,
admissions with their cache hits, preemptions, finish order, free blocks, block tables, evictions,
step features. docs/parity.md says what is covered.

Environment variables:
    SYNERGY_GYM_PARITY_WORKLOADS: number of workloads (200), rounded up to hundreds.
"""

from __future__ import annotations

import json
import os
from collections import Counter

import pytest

from tests.parity.cases import random_case
from tests.parity.goals import missed
from tests.parity.lockstep import find_mismatch
from tests.parity.oracle import VllmModules
from tests.parity.record import CHUNK, FILE, play_chunk
from tests.parity.shrink import report, shrink, shrunk
from tests.parity.sides import SIDES, EngineSide
from tests.parity.test_shrink import WrongVictim

pytestmark = pytest.mark.parity

WORKLOADS = int(os.environ.get("SYNERGY_GYM_PARITY_WORKLOADS", "200"))
FRESH = 10


@pytest.mark.parametrize("first", range(0, WORKLOADS, CHUNK))
def test_every_step_equals_vllm(first: int, vllm_modules: VllmModules) -> None:
    """0 mismatches, every interesting case often enough, and vLLM as docs/parity.md records it."""
    oracle = vllm_modules.side
    chunk = play_chunk(first, oracle, SIDES, shrunk(oracle, SIDES))
    print(f"workloads {first} to {first + CHUNK - 1}: {dict(chunk.counts)}")
    assert not chunk.mismatches, "\n\n".join(chunk.mismatches)
    short = missed(Counter(chunk.counts), CHUNK)
    assert not short, f"hardly exercised (count, minimum): {short}"
    record = json.loads(FILE.read_text())
    assert vllm_modules.version == record["vllm"]
    assert chunk.digest == record["first_digests"].get(str(first), chunk.digest), (
        "the workloads have changed since the record was made: python scripts/parity_record.py"
    )


def test_fresh_workloads(seed: int, vllm_modules: VllmModules) -> None:
    """Workloads that nobody has seen before."""
    oracle = vllm_modules.side
    for workload in range(seed, seed + FRESH):
        mismatch = find_mismatch(random_case(workload), oracle, SIDES)
        assert mismatch is None, shrunk(oracle, SIDES)(mismatch)


def test_vllm_is_not_fooled_by_a_broken_engine(vllm_modules: VllmModules) -> None:
    """An engine with another victim rule is caught, and the printed workload is small."""
    oracle, broken = vllm_modules.side, {"broken": lambda case: EngineSide(case, WrongVictim)}
    cases = map(random_case, range(CHUNK))
    found = next(m for case in cases if (m := find_mismatch(case, oracle, broken)) is not None)
    small = shrink(found.case, oracle, "broken", broken["broken"])
    assert len(small.case.requests) <= 3, report(small)
