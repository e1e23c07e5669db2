"""Do verdicts on LENS depend on the H100 clock? The packaged one against one fitted to real runs.

    python experiments/clock_sensitivity.py --processes 2

`packaged` is the scenario's own clock (published fits, fixed cost 7.1 ms per step), `fitted` the
profile `h100-llama-3.1-8b-8xh100run` (experiments/replay_8xh100.py: intercept below its floor). All
figures are simulated; rates are those of the packaged clock in both, so a world's load 1.0 is
not where its own `vllm-v1` attains 90 %. Validation seeds, round-robin, 90 s with 30 s of warm-up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import common
import pandas as pd

from synergy_gym.evaluation import evaluate
from synergy_gym.latency.profiles import load_profile
from synergy_gym.scenario import Scenario, load_scenario

FITTED = "h100-llama-3.1-8b-8xh100run"
SCENARIOS = ("chat-h100", "summarization-h100", "flowgpt-8xh100-llama8b")
LOADS = (0.8, 1.0, 1.2)
POLICIES = ("vllm-v1", "lens-ref", "lens-guarded", "lens-plus")
SEEDS = (2000, 2001)


@dataclass(frozen=True)
class Cell:
    """One episode."""

    scenario: str
    clock: str
    load: float
    seed: int
    engine_policy: str


def world(cell: Cell) -> Scenario:
    """The scenario, timed by the cell's clock; LENS keeps its published model."""
    scenario = load_scenario(cell.scenario)
    if cell.clock == "packaged":
        return scenario
    return replace(scenario, terms=(load_profile(FITTED).terms,) * len(scenario.engines))


def play(cell: Cell) -> dict[str, Any]:
    """The cell and its attainment."""
    options: dict[str, Any] = {"horizon_s": 90.0, "warmup_s": 30.0, "record_itl": False}
    result = evaluate(world(cell), cell.engine_policy, load=cell.load, seed=cell.seed, **options)
    return {**asdict(cell), "slo_attainment": result.summary["slo_attainment"]}


def main() -> None:
    """Command line."""
    given = common.parser("Do verdicts on LENS depend on the clock?", "clock_sensitivity")
    options = given.parse_args()
    seeds = SEEDS[:1] if options.quick else SEEDS
    cells = [Cell(*x) for x in product(SCENARIOS, ("packaged", "fitted"), LOADS, seeds, POLICIES)]
    episodes = pd.DataFrame(common.play(play, cells, options.processes))
    table = 100 * episodes.pivot_table(
        index=["scenario", "load", "clock"], columns="engine_policy", values="slo_attainment"
    )
    table = table[list(POLICIES)].reset_index()
    common.write_csv(episodes, options.out / "episodes.csv")
    common.write_csv(table, options.out / "table.csv")
    common.write_manifest(
        options.out, [load_scenario(name) for name in SCENARIOS], POLICIES, ["round-robin"],
        loads=LOADS, seeds=seeds, episodes=len(episodes), fitted_profile=FITTED,
    )  # fmt: skip
    common.show("Requests that met every SLO, % (simulated)", table)


if __name__ == "__main__":
    main()
