"""The constants of the timed variant: mean processor time of a decision, per policy.

    python -m experiments.studies.decision_constants

Reads `timings.csv` of a season's committed boards (experiments/leaderboard/season1/*, `--season`
takes another), weighs every episode by its decisions, and writes
`synergy_gym/evaluation/decision_times.csv`. The figures are those of the machine that ran the
boards; committed, they are the same for everybody (docs/protocol.md).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from synergy_gym.evaluation.timed import DECISION_TIMES

BOARDS = Path(__file__).parents[1] / "leaderboard"
COLUMNS = ("layer", "policy", "decision_us", "source")
LAYERS = ("engine", "router")


def timing_rows(files: Iterable[Path]) -> Iterator[dict[str, str]]:
    """The rows of several `timings.csv`."""
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def constants(rows: Iterable[dict[str, str]], source: str) -> list[dict[str, str]]:
    """One line per layer and policy; a rule that nobody was asked for costs 0."""
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for row in rows:
        for layer in LAYERS:
            key = (layer, row[f"{layer}_policy"])
            count, total = sums.get(key, (0, 0.0))
            asked = int(row[f"{layer}_decisions"])
            spent = asked * float(row[f"{layer}_decision_mean_us"] or 0) if asked else 0.0
            sums[key] = (count + asked, total + spent)
    return [
        {
            "layer": layer,
            "policy": policy,
            "decision_us": f"{total / count:.1f}" if count else "0",
            "source": f"{source}, {count} decisions" if count else "a compiled rule",
        }
        for (layer, policy), (count, total) in sorted(sums.items())
        if policy != "clairvoyant"
    ]


def main() -> None:
    """Command line."""
    given = argparse.ArgumentParser(description="Constants of the timed variant")
    given.add_argument("--out", type=Path, default=DECISION_TIMES)
    given.add_argument("--season", type=int, default=1)
    options = given.parse_args()
    files = sorted((BOARDS / f"season{options.season}").glob("*/timings.csv"))
    names = ", ".join(path.parent.name for path in files)
    with options.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(constants(timing_rows(files), f"mean of boards {names}"))


if __name__ == "__main__":
    main()
