"""How far is simulation from a real vLLM engine? The same traffic and policies in both.

    OMP_NUM_THREADS=1 python -m experiments.studies.sim_to_real

Nine engine policies on `live-chat` and six routers on `live-cluster` (two engines in this
process under one virtual clock), three live repeats each, timed by processor time (`--clock
cpu`), which other load on the machine distorts least; `--clock wall` takes elapsed time. vLLM is
calibrated on the spot, in slices between the live episodes. `--quick` is a smaller version. An
interrupted run goes on where it stopped (`OUT/episodes`).

Live figures are measured; simulated ones come from the fitted clock, once as it is (`sim`) and
once at the speed that the machine had during each live episode (`matched`). Results:
`fidelity.md`, `summary.csv` (errors beside live against live and goals), `cells.csv`,
`ranking.csv`, `agreement.csv`, `calibration.csv`, `episodes.csv` (contention), two plots, the
fitted profiles and a manifest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments import common
from synergy_gym.cli import output as cli_tables
from synergy_gym.fidelity.compare import QUICK, Plan, compare
from synergy_gym.fidelity.report import write_report
from synergy_gym.live.backend import LiveOptions

PLAN = Plan(scenarios=("live-chat", "live-cluster"), loads=(0.8, 1.2), horizon_s=6.0)


def plan_of(given: Any) -> Plan:
    """The plan that the options ask for."""
    plan = replace(QUICK, scenarios=PLAN.scenarios) if given.quick else PLAN
    options = LiveOptions(model=given.model, clock=given.clock)
    return replace(plan, options=options, repeats=given.repeats)


def main() -> None:
    """Command line."""
    options = common.parser("Simulated against real vLLM engines.", "sim_to_real")
    options.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="what is timed")
    options.add_argument("--model", default="tiny", help="tiny, mid, big or a model folder")
    options.add_argument("--repeats", type=int, default=3, help="live episodes per cell")
    given = options.parse_args()
    comparison = compare(
        plan_of(given),
        given.out,
        lambda done, total, text: cli_tables.note(f"{done}/{total} {text}"),
    )
    report = write_report(comparison, given.out, common.command_line())
    for title, frame in report.views():
        common.show(title, frame)


if __name__ == "__main__":
    main()
