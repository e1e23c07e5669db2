"""One million requests on one engine, measured in a process of its own (JSON on stdout)."""

import json
import resource
import sys
import time

BEGIN = time.perf_counter()


def main() -> None:
    """Generate, simulate, report seconds and peak memory."""
    import numpy as np

    from synergy_gym.latency.terms import StepTerms
    from synergy_gym.sim.cluster import Simulator
    from synergy_gym.types import SLO, DecisionRule, EngineSpec
    from synergy_gym.workload.base import Workload, make_workload

    n = 1_000_000
    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(1e9 / 7.0, n)).astype(np.int64)
    prompt = np.clip(rng.lognormal(np.log(512), 1.0, n), 1, 4000).astype(np.int64)
    output = np.clip(rng.lognormal(np.log(200), 0.8, n), 1, 1000).astype(np.int64)
    spec = EngineSpec(
        name="bench",
        gpu="any",
        model="any",
        profile="bench",
        max_num_seqs=128,
        max_num_batched_tokens=2048,
        max_model_len=8192,
        kv_blocks=60_000,
    )
    terms = StepTerms(
        base_ms=7.0, per_sequence_ms=0.3, per_token_ms=0.0235, per_decode_context_ms=2e-5
    )
    workload = make_workload(arrival, prompt, output)

    def simulator_of(traffic: Workload) -> Simulator:
        return Simulator(
            engines=[spec],
            clocks=[terms.clock()],
            workload=traffic,
            slos=[SLO("default", ttft_s=1.0, tpot_s=0.05)],
            rules=[DecisionRule(2048)],
            auto_route=True,
        )

    simulator = simulator_of(workload)
    one = make_workload(*(column[:1].copy() for column in (arrival, prompt, output)))
    del workload, arrival, prompt, output  # the simulator has its own copy
    # Loading machine code is part of the process, not of the simulation.
    simulator_of(one).advance()
    started = time.perf_counter()
    simulator.advance()
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "simulate_s": ended - started,
        "process_s": time.perf_counter() - BEGIN,
        "peak_mb": peak / 1024 if sys.platform != "darwin" else peak / 1024**2,
        "iterations": simulator.steps(0),
        "met": simulator.met(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
