"""SynergySched's evaluation run again: every claim beside what the simulator shows.

Commands (from the repository root):

    python -m experiments.paper.reproduce_synergysched --quick --processes 2    # < 5 minutes
    python -m experiments.paper.reproduce_synergysched --processes 2            # everything
    python -m experiments.paper.reproduce_synergysched --reuse                  # the table alone

Runs the script of every part (those of measured data need SYNERGY_GYM_DATA) and writes one
table, `claims.csv` and `claims.md`: claim, published figure, the authors' own later measurement
where there is one, simulated figure, verdict. Verdicts come from the figures by the rules of
`paper_verdicts.py`.
A quick run plays fewer workloads, rates and seeds in shorter episodes, so single verdicts can
differ from the full run's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.common import RESULTS, command_line, parser
from experiments.paper import claims as paper_claims
from experiments.paper import common as pc
from synergy_gym.cli import output as cli_tables
from synergy_gym.evaluation.board.tables import markdown
from synergy_gym.evaluation.manifest import software, write_json

NAME = "reproduce_synergysched"
NEED_DATA = ("model_adaptation", "replay_8xh100")
TEXT = """# SynergySched's claims

Simulated figures are this repository's simulator, published ones the paper's figures, later ones
the authors' diary of 2026. `interval_low`..`interval_high` is a 95 % bootstrap interval over
seeds or cells. An effect above zero supports the claim; an effect of at most `tolerance` counts as
none. Simulated effects are at matched load (Sarathi RR fails where the published one does);
`at_published_rates` is the same effect at the paper's absolute rates. Rules:
`experiments/paper/verdicts.py`.
"""


def play(part: str, folder: Path, quick: bool, processes: int) -> float:
    """Run one part's own script; returns its seconds of wall clock.

    Raises:
        SystemExit: the script is missing or failed; its messages stand above.
    """
    began = time.perf_counter()
    script = paper_claims.SCRIPTS[part]
    command = [sys.executable, "-m", script, "--processes", str(processes), "--out", str(folder)]
    cli_tables.note(f"{part} ...")
    done = subprocess.run([*command, *(["--quick"] if quick else [])], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}; correct that and repeat")
    return time.perf_counter() - began


def parts(reuse: bool) -> list[str]:
    """The parts to judge; those that need data that is not there are named on stderr."""
    data = os.environ.get("SYNERGY_GYM_DATA")
    found = list(paper_claims.RULES)
    if not reuse and not data:
        for part in NEED_DATA:
            cli_tables.note(f"SKIPPED {part}: set SYNERGY_GYM_DATA to the folder of measurements")
        found = [part for part in found if part not in NEED_DATA]
    return found


def report(claims: pd.DataFrame, out: Path, seconds: dict[str, float]) -> None:
    """Write the table and its manifest."""
    out.mkdir(parents=True, exist_ok=True)
    pc.write_csv(claims, out / "claims.csv")
    counts = ", ".join(f"{n} {name}" for name, n in claims.verdict.value_counts().items())
    text = f"{TEXT}\n{len(claims)} claims: {counts}.\n\n{markdown(claims)}"
    (out / "claims.md").write_text(text, encoding="utf-8")
    write_json(out / "manifest.json", {"command": command_line(), **software()})
    if seconds:
        write_json(out / "seconds.json", {name: round(x, 1) for name, x in seconds.items()})


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser("SynergySched's evaluation run again", NAME)
    options.add_argument("--reuse", action="store_true", help="take the results that are there")
    given = options.parse_args(argv)
    if given.quick and given.out == options.get_default("out"):
        given.out = RESULTS / f"{NAME}-quick"
    claims: list[paper_claims.Claim] = []
    seconds: dict[str, float] = {}
    for part in parts(given.reuse):
        folder = given.out / part if given.quick else RESULTS / part
        if not given.reuse:
            seconds[part] = play(part, folder, given.quick, given.processes)
        elif not folder.is_dir():
            cli_tables.note(f"SKIPPED {part}: no results in {folder}")
            continue
        claims += paper_claims.RULES[part](folder)
    table = paper_claims.frame(claims)
    report(table, given.out, seconds)
    pc.show("SynergySched's claims (simulated beside published)", table)
    cli_tables.note(f"written to {given.out}; {sum(seconds.values()):.0f} s")


if __name__ == "__main__":
    main()
