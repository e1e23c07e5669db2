"""The speed probe's engine and traffic; run as a module with a number of requests.

The module prints JSON: processor seconds of the simulation, peak memory of the process in MB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np

from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import SLO, DecisionRule, EngineSpec
from synergy_gym.workload.base import Workload, make_workload

SPEC = EngineSpec(
    name="bench",
    gpu="any",
    model="any",
    profile="bench",
    max_num_seqs=128,
    max_num_batched_tokens=2048,
    max_model_len=8192,
    kv_blocks=60_000,
)
TERMS = StepTerms(base_ms=7.0, per_sequence_ms=0.3, per_token_ms=0.0235, per_decode_context_ms=2e-5)
SLOS = (SLO("default", ttft_s=1.0, tpot_s=0.05),)
RATE_RPS = 7.0


def traffic(requests: int, rate_rps: float = RATE_RPS, seed: int = 0) -> Workload:
    """Poisson arrivals, lognormal lengths of median 512 (prompt) and 200 (output) tokens."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1e9 / rate_rps, requests)).astype(np.int64)
    prompt = np.clip(rng.lognormal(np.log(512), 1.0, requests), 1, 4000).astype(np.int64)
    output = np.clip(rng.lognormal(np.log(200), 0.8, requests), 1, 1000).astype(np.int64)
    return make_workload(arrival, prompt, output)


def simulator_of(
    workload: Workload, spec: EngineSpec = SPEC, terms: StepTerms = TERMS, cls: Any = Simulator
) -> Any:
    """One engine that decides by its budget alone, before the first arrival."""
    return cls(
        engines=[spec],
        clocks=[terms.clock()],
        workload=workload,
        slos=SLOS,
        rules=[DecisionRule(spec.max_num_batched_tokens)],
        auto_route=True,
    )


def main() -> None:
    """Generate, simulate, report."""
    simulator = simulator_of(traffic(int(sys.argv[1])))
    # Loading machine code is part of the process, not of the simulation.
    simulator_of(traffic(1)).advance()
    started = time.process_time()
    simulator.advance()
    ended = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "simulate_s": ended - started,
        "peak_mb": peak / 1024 if sys.platform != "darwin" else peak / 1024**2,
        "iterations": simulator.steps(0),
        "met": simulator.met(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
