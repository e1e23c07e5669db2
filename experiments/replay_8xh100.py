"""Play measured 8xH100 runs again and compare TTFT, TPOT and E2E quantiles.

Commands (from the repository root; SYNERGY_GYM_DATA names the folder that holds
`measurements/requests_*.csv.gz` and `measurements/e2e_client_rounds.csv`):

    SYNERGY_GYM_DATA=../shared .venv/bin/python experiments/replay_8xh100.py --fit all
    SYNERGY_GYM_DATA=../shared .venv/bin/python experiments/replay_8xh100.py
    SYNERGY_GYM_DATA=../shared .venv/bin/python experiments/replay_8xh100.py --variants
    SYNERGY_GYM_DATA=../shared .venv/bin/python experiments/replay_8xh100.py --quick

The first fits the clock's coefficients, each time without one run (`--fit RUN` does one of
them), and keeps them in `results/replay_8xh100/coefficients.csv`. The second replays every run
with the coefficients that were fitted without it. The third plays variants of PRISM, whose
version in the runs is unknown. The last replays stretches of the runs, in half a minute.

Writes `comparison.csv` (per-request logs), `rounds.csv` (runs of which only the clients' own
quantiles per minute exist), `front_end.csv` (token streams faster than an engine step),
`cdfs.png`, `timeline.png` and `manifest.json`; `variants.csv`; `quick.csv`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from common import figure, parser, save, show, write_csv, write_manifest
from replay_client import STEADY, WaitWhileReading, Window, front_end, sustained
from replay_fit import Coefficients, Fit, Stretches, stretch_of
from replay_rounds import (
    CELLS,
    LENS_RR_05,
    PERCENTILES,
    ROUNDS,
    cell_arrivals,
    measured_means,
    simulated_means,
)
from replay_runs import (
    ENGINE_POLICIES,
    LENS_PRISM_07,
    LENS_QPS_07,
    LENS_RR_07,
    METRICS,
    NATIVE_05,
    NATIVE_07,
    NO_OVERHEAD,
    PACED_07,
    RUNS,
    LowestQps,
    Run,
    add_wait,
    cluster_with,
    read_run,
    simulate,
)

from synergy_gym.evaluation.manifest import policy_entry
from synergy_gym.types import FloatArray

NAME = "replay_8xh100"
COEFFICIENTS = Path(__file__).parent / "results" / NAME / "coefficients.csv"
ALL = "none"
FITS: Mapping[str, tuple[Run, ...]] = MappingProxyType(
    {
        str(NATIVE_05): (PACED_07, LENS_RR_07),
        str(PACED_07): (NATIVE_05, LENS_RR_07),
        str(LENS_RR_07): (NATIVE_05, PACED_07, LENS_RR_05),
        str(LENS_RR_05): (NATIVE_05, PACED_07, LENS_RR_07),
        ALL: (NATIVE_05, PACED_07, LENS_RR_07, LENS_RR_05),
    }
)
"""What coefficients are fitted on, by the run that is left out. Only runs whose router is known
and whose front end kept up; `ALL` is for the runs that are not among them."""
GOALS_PERCENT: Mapping[tuple[str, int], float] = MappingProxyType(
    {("e2e_s", 50): 5.0, ("e2e_s", 90): 5.0, ("e2e_s", 99): 5.0, ("ttft_s", 50): 15.0}
)

WHOLE = Window("whole", 0.0, np.inf)
FIRST_HALF = Window("first 300 s", 0.0, 300.0)
WINDOWS: Mapping[Run, tuple[Window, ...]] = MappingProxyType(
    {
        NATIVE_05: (STEADY, WHOLE),
        PACED_07: (STEADY,),
        LENS_RR_07: (STEADY, WHOLE),
        LENS_QPS_07: (STEADY, WHOLE),
        LENS_PRISM_07: (FIRST_HALF, STEADY),
        NATIVE_07: (STEADY,),
    }
)
READING_RUNS = (NATIVE_05, LENS_RR_07, LENS_QPS_07)
"""Where the waits of reading clients are measured (timestamp mode, front end kept up)."""
VARIANTS = ("prism-ref", "prism-ref:compensation=true", "prism-ref:affinity=false", "prism-fixed")
SETTLE_S = 45.0
"""A replay of the steady part alone begins this much earlier, with an empty cluster."""


def waits(run: Run, logs: Mapping[Run, pd.DataFrame]) -> FloatArray:
    """Waits in the clients of a run, drawn from what other runs show (qps mode: no other run)."""
    if run.mode != "timestamp":
        return np.zeros(len(logs[run]))
    others = [logs[r] for r in READING_RUNS if r != run]
    return WaitWhileReading.of(others).draw(logs[run], np.random.default_rng(0))


# --- comparison -----------------------------------------------------------------------------


def compare(
    run: Run, window: Window, measured: pd.DataFrame, simulated: pd.DataFrame, coefficients: str
) -> list[dict[str, Any]]:
    """One row per metric and quantile of the requests inside the window."""
    inside = window.of(measured)
    holds = sustained(measured[inside])
    head = {"run": str(run), "policy": run.policy, "window": window.name}
    head |= {"coefficients": coefficients, "requests": int(inside.sum()), "sustained": holds}
    rows = []
    for metric in METRICS:
        pair = [np.percentile(f[metric][inside], PERCENTILES) for f in (measured, simulated)]
        for percentile, real, played in zip(PERCENTILES, *pair, strict=True):
            row = verdict(metric, percentile, float(real), float(played), holds)
            rows.append(head | row)
    return rows


def verdict(
    metric: str, percentile: int, measured: float, simulated: float, holds: bool
) -> dict[str, Any]:
    """Error, goal and whether it is met; without a goal the verdict is empty."""
    error = 100 * (simulated / measured - 1)
    goal = GOALS_PERCENT.get((metric, percentile)) if holds else None
    return {
        "metric": metric,
        "quantile": f"P{percentile}",
        "measured": measured,
        "simulated": simulated,
        "error_percent": error,
        "goal_percent": goal,
        "within_goal": "" if goal is None else "yes" if abs(error) <= goal else "no",
    }


def read_coefficients(path: Path = COEFFICIENTS) -> dict[str, Coefficients]:
    """Fitted coefficients by the run that they have not seen.

    Raises:
        SystemExit: nothing has been fitted yet.
    """
    if not path.is_file():
        raise SystemExit(f"{path} not found; run this script with --fit all first")
    table = pd.read_csv(path)
    return {row["held_out"]: Coefficients.from_row(row) for row in table.to_dict("records")}


def coefficients_for(run: Run, known: Mapping[str, Coefficients]) -> tuple[str, Coefficients]:
    """What was fitted without this run, and how the tables call it."""
    held = str(run) if str(run) in FITS else ALL
    if held not in known:
        raise SystemExit(f"no coefficients fitted without {held!r}; run with --fit {held!r}")
    return "fitted without this run", known[held]


@dataclass(frozen=True, slots=True)
class Replay:
    """A run, or a part of it, measured and simulated; rows agree."""

    run: Run
    measured: pd.DataFrame
    simulated: pd.DataFrame


def replay(
    run: Run,
    log: pd.DataFrame,
    coefficients: Coefficients | None,
    begin_s: float = 0.0,
    to_s: float = np.inf,
    **how: Any,
) -> Replay:
    """Play what was sent in [begin_s, to_s); None: packaged profile, no overhead.

    Further arguments go to `simulate`.
    """
    part = log[(log.send_s >= begin_s) & (log.send_s < to_s)]
    terms = None if coefficients is None else coefficients.terms
    overhead = NO_OVERHEAD if coefficients is None else coefficients.overhead
    simulated = simulate(run, part, terms, begin_s=begin_s, **how)
    return Replay(run, part, add_wait(simulated, overhead.of(part.tokens_in.to_numpy(float))))


def replay_whole(
    run: Run, logs: Mapping[Run, pd.DataFrame], known: Mapping[str, Coefficients]
) -> tuple[Replay, list[dict[str, Any]]]:
    """A whole run with the clients' waiting, and its rows for every window."""
    label, coefficients = coefficients_for(run, known)
    played = replay(run, logs[run], coefficients, wait_s=waits(run, logs))
    rows = []
    for window in WINDOWS[run]:
        rows += compare(run, window, played.measured, played.simulated, label)
    return played, rows


def steady_rows(run: Run, log: pd.DataFrame, coefficients: Coefficients | None) -> Any:
    """Rows of the steady part alone."""
    label = "packaged profile" if coefficients is None else "fitted without this run"
    played = replay(run, log, coefficients, STEADY.from_s - SETTLE_S, STEADY.to_s)
    return played, compare(run, STEADY, played.measured, played.simulated, label)


def compare_cell(
    cell: Run,
    logs: Mapping[Run, pd.DataFrame],
    known: Mapping[str, Coefficients],
    rounds: pd.DataFrame,
) -> list[dict[str, Any]]:
    """Means over clients and steady rounds of the quantiles per round."""
    _, coefficients = coefficients_for(cell, known)
    played = replay(cell, cell_arrivals(cell, logs), coefficients, STEADY.from_s - SETTLE_S)
    mine = simulated_means(played.measured, played.simulated)
    theirs = measured_means(rounds, cell)
    head = {"run": str(cell), "policy": cell.policy}
    return [
        head | verdict(metric, percentile, real, float(mine[metric, percentile]), True)
        for (metric, percentile), real in theirs.items()
    ]


# --- files ------------------------------------------------------------------------------------


def plot_cdfs(replays: Sequence[Replay], path: Path) -> None:
    """Distribution of each metric in the steady part, measured and simulated."""
    chart, axes = figure(len(replays), len(METRICS), width=3.2, height=1.9)
    for row, played in zip(axes, replays, strict=True):
        inside = STEADY.of(played.measured)
        pair = (("measured", played.measured, "-"), ("simulated", played.simulated, "--"))
        for axis, metric in zip(row, METRICS, strict=True):
            for label, frame, style in pair:
                values = np.sort(frame[metric].to_numpy()[inside])
                axis.plot(values, np.linspace(0, 1, len(values)), style, label=label, lw=1.2)
            end = np.percentile(played.measured[metric].to_numpy()[inside], 99.8)
            axis.set(xlabel=metric, ylim=(0, 1), xlim=(0, end))
        note = "" if sustained(played.measured[inside]) else "\n(front end overloaded)"
        row[0].set_ylabel("share")
        row[1].set_title(f"{played.run}: {played.run.policy}{note}", fontsize=8)
    axes[0][0].legend(fontsize=7)
    save(chart, path)


def plot_timeline(replays: Sequence[Replay], path: Path) -> None:
    """Medians per 20 s of sending: the clients' reading phase and the stalls are visible."""
    chart, axes = figure(len(replays), 2, width=4.6, height=1.7)
    for row, played in zip(axes, replays, strict=True):
        bins = (played.measured.send_s // 20 * 20).to_numpy()
        for axis, metric in zip(row, METRICS, strict=False):
            for label, frame in (("measured", played.measured), ("simulated", played.simulated)):
                medians = frame[metric].groupby(bins).median()
                axis.plot(medians.index, medians.to_numpy(), label=label, lw=1.2)
            axis.set(ylabel=f"median {metric}", ylim=(0, None), xlabel="sent at (s)")
        row[0].set_title(str(played.run), fontsize=8)
    axes[0][0].legend(fontsize=7)
    save(chart, path)


def data_folder() -> Path:
    """The folder that SYNERGY_GYM_DATA names.

    Raises:
        SystemExit: it is not set, or a log is missing in it.
    """
    folder = os.environ.get("SYNERGY_GYM_DATA")
    if not folder:
        raise SystemExit("SYNERGY_GYM_DATA is not set; it names the folder with measurements/")
    for name in (*(run.file for run in RUNS), ROUNDS):
        if not (Path(folder) / name).is_file():
            raise SystemExit(f"{Path(folder) / name} not found; see SYNERGY_GYM_DATA")
    return Path(folder)


def write_manifest_of(out: Path, data: Path) -> None:
    """What the results were made from."""
    names = (*(run.file for run in RUNS), ROUNDS)
    inputs = {n: hashlib.sha256((data / n).read_bytes()).hexdigest() for n in names}
    write_manifest(
        out,
        [cluster_with(None)],
        sorted(ENGINE_POLICIES.values()),
        ["prism-ref", "round-robin"],
        assumed_router=policy_entry(LowestQps()),
        inputs=inputs,
        coefficients=hashlib.sha256(COEFFICIENTS.read_bytes()).hexdigest(),
        fits={name: [str(run) for run in runs] for name, runs in FITS.items()},
    )


def run_fits(which: str, logs: Mapping[Run, pd.DataFrame], rounds: pd.DataFrame, out: Path) -> None:
    """Fit without one run, or all of these fits, and keep the coefficients."""
    if which not in ("all", *FITS):
        raise SystemExit(f"--fit {which!r}: choose all or one of {', '.join(map(repr, FITS))}")
    path, stretches = out / COEFFICIENTS.name, Stretches(logs, rounds)
    rows = pd.read_csv(path).set_index("held_out").T.to_dict() if path.is_file() else {}
    for name in FITS if which == "all" else [which]:
        found = Fit(stretches, FITS[name]).run()
        rows[name] = {"fitted_on": "; ".join(map(str, FITS[name]))} | found.row()
        table = pd.DataFrame([{"held_out": n, **rows[n]} for n in FITS if n in rows])
        write_csv(table, path)
        show(f"Coefficients fitted without {name}", table[table.held_out == name].T.reset_index())


def run_quick(logs: Mapping[Run, pd.DataFrame], known: Mapping[str, Coefficients]) -> pd.DataFrame:
    """Steady part of the native runs, and the fitted stretch of LENS."""
    rows: list[dict[str, Any]] = []
    for run in (NATIVE_05, PACED_07, NATIVE_07):
        rows += steady_rows(run, logs[run], coefficients_for(run, known)[1])[1]
    part = stretch_of(LENS_RR_07)
    label, coefficients = coefficients_for(LENS_RR_07, known)
    played = replay(LENS_RR_07, logs[LENS_RR_07], coefficients, part.begin_s, part.to_s)
    window = Window("40 s", part.from_s, part.to_s)
    rows += compare(LENS_RR_07, window, played.measured, played.simulated, label)
    return pd.DataFrame(rows)


def run_variants(
    logs: Mapping[Run, pd.DataFrame], known: Mapping[str, Coefficients]
) -> pd.DataFrame:
    """The first half of the run under PRISM, with other versions of the router.

    The last line has the arrivals as they are logged, without the clients' waits.
    """
    run = LENS_PRISM_07
    inside = FIRST_HALF.of(logs[run])
    log, wait = logs[run][inside], waits(run, logs)[inside]
    lines = [(router, router, wait) for router in VARIANTS]
    lines.append(("prism-ref, arrivals as logged", "prism-ref", np.zeros(len(log))))
    rows: list[dict[str, Any]] = []
    for label, router, spread in lines:
        played = replay(run, log, known[ALL], router=router, wait_s=spread)
        found = compare(run, FIRST_HALF, played.measured, played.simulated, ALL)
        rows += [{"variant": label, **row} for row in found]
    return pd.DataFrame(rows)


def run_all(
    logs: Mapping[Run, pd.DataFrame],
    known: Mapping[str, Coefficients],
    rounds: pd.DataFrame,
    out: Path,
) -> pd.DataFrame:
    """Every run, the packaged profile beside it, the cells, and the plots."""
    rows: list[dict[str, Any]] = []
    replays = []
    for run in RUNS:
        played, found = replay_whole(run, logs, known)
        replays.append(played)
        rows += found
        if str(run) in FITS:
            rows += steady_rows(run, logs[run], None)[1]
    cells = [row for cell in CELLS for row in compare_cell(cell, logs, known, rounds)]
    write_csv(pd.DataFrame(cells), out / "rounds.csv")
    show("Runs known by their clients' quantiles", pd.DataFrame(cells))
    write_csv(front_end(logs), out / "front_end.csv")
    plot_cdfs(replays, out / "cdfs.png")
    plot_timeline(replays, out / "timeline.png")
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__.splitlines()[0], NAME)
    options.add_argument("--fit", metavar="RUN", help='fit without RUN, or "all" of these fits')
    options.add_argument("--variants", action="store_true", help="versions of PRISM")
    chosen = options.parse_args(argv)
    data, out = data_folder(), chosen.out
    logs = {run: read_run(data / run.file) for run in RUNS}
    rounds = pd.read_csv(data / ROUNDS)
    if chosen.fit:
        run_fits(chosen.fit, logs, rounds, out)
        return
    known = read_coefficients()
    if chosen.quick:
        name, table = "quick", run_quick(logs, known)
    elif chosen.variants:
        name, table = "variants", run_variants(logs, known)
    else:
        name, table = "comparison", run_all(logs, known, rounds, out)
        write_manifest_of(out, data)
    show("Measured against simulated", table)
    write_csv(table, out / f"{name}.csv")


if __name__ == "__main__":
    main()
