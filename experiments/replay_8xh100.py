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
from replay_fit import Coefficients, Fit, Stretches, held_out, stretch_of
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
ROUNDS = "measurements/e2e_client_rounds.csv"
COEFFICIENTS = Path(__file__).parent / "results" / NAME / "coefficients.csv"
FITTING_RUNS = (NATIVE_05, PACED_07, LENS_RR_07, LENS_QPS_07)
"""The runs whose steady part the cluster and its front end sustained."""
ALL = "none"
"""`held_out` of the coefficients that are fitted on all of them."""
PERCENTILES = (50, 90, 99)
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
CELLS = tuple(
    [Run("timestamp", "sla", router, 0.5) for router in ("roundrobin", "qps", "elrar")]
    + [Run("qps", "native", "roundrobin", 0.5)]
)
"""Runs without a per-request log; their arrivals are those of another run (`cell_arrivals`)."""
VARIANTS = ("prism-ref", "prism-ref:compensation=true", "prism-ref:affinity=false", "prism-fixed")
SETTLE_S = 45.0
"""A replay of the steady part alone begins this much earlier, with an empty cluster."""
CELL_ROUNDS = range(5, 9)
ROUND_S = 60.0


def waits(run: Run, logs: Mapping[Run, pd.DataFrame]) -> FloatArray:
    """Waits in the clients of a run, drawn from what other runs show (qps mode: no other run)."""
    if run.mode != "timestamp":
        return np.zeros(len(logs[run]))
    others = [logs[r] for r in held_out(FITTING_RUNS, run) if r.mode == run.mode]
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
    held = str(run) if run in FITTING_RUNS else ALL
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


# --- runs of which only quantiles exist -------------------------------------------------------


def cell_arrivals(cell: Run, logs: Mapping[Run, pd.DataFrame]) -> pd.DataFrame:
    """The requests of a cell: the same slices of the same log, as another run sent them.

    Timestamp mode: the run with as many clients. qps mode: the first clients of the longer
    run, which all send the same prompts at 5 requests per second.
    """
    if cell.mode == "timestamp":
        return logs[NATIVE_05]
    log = logs[PACED_07]
    return log[log.client < round(10 * cell.upper)]


def round_quantiles(log: pd.DataFrame, simulated: pd.DataFrame) -> pd.DataFrame:
    """P50, P90, P99 per client and minute of its life, as clients report them.

    A round holds what finished in it; TPOT is (E2E - TTFT) / (output tokens - 1) there.
    """
    frame = simulated.assign(
        client=log.client,
        round=((log.age_s + simulated.e2e_s) // ROUND_S).astype(int),
        tpot_ms=simulated.tpot_ms * log.tokens_out / np.maximum(log.tokens_out - 1, 1),
    )
    frame = frame[frame["round"].isin(CELL_ROUNDS)]
    groups = frame.groupby(["client", "round"])[list(METRICS)]
    return groups.quantile([p / 100 for p in PERCENTILES]).unstack()


def compare_cell(
    cell: Run, logs: Mapping[Run, pd.DataFrame], known: Mapping[str, Coefficients], data: Path
) -> list[dict[str, Any]]:
    """Means over clients and steady rounds of the quantiles per round."""
    log = cell_arrivals(cell, logs)
    log = log[log.send_s >= STEADY.from_s - SETTLE_S]
    played = replay(cell, log, known[ALL], STEADY.from_s - SETTLE_S, np.inf)
    mine = round_quantiles(played.measured, played.simulated).mean()
    theirs = measured_rounds(data / ROUNDS, cell)
    head = {"run": str(cell), "policy": cell.policy, "rounds": len(theirs)}
    rows = []
    for metric in METRICS:
        for percentile in PERCENTILES:
            real = float(theirs[f"{metric}_p{percentile}"].mean())
            played_value = float(mine[metric, percentile / 100])
            rows.append(head | verdict(metric, percentile, real, played_value, True))
    return rows


def measured_rounds(path: Path, cell: Run) -> pd.DataFrame:
    """The clients' own quantiles of the steady rounds."""
    table = pd.read_csv(path)
    chosen = (table["set"] == "exp_new") & (table.arrival_mode == cell.mode)
    chosen &= (table.engine == cell.engine) & (table.router == cell.router)
    chosen &= (table.sample_upper == cell.upper) & table["round"].isin(CELL_ROUNDS)
    return table[chosen]


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
            axis.set(xlabel=metric, ylim=(0, 1), xlim=(0, None))
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
            axis.set(ylabel=f"median {metric}", yscale="log", xlabel="sent at (s)")
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
        fitting_runs=[str(run) for run in FITTING_RUNS],
    )


def run_fits(which: str, logs: Mapping[Run, pd.DataFrame], out: Path) -> None:
    """Fit without one run, or all of these fits, and keep the coefficients."""
    names = [*(str(run) for run in FITTING_RUNS), ALL]
    if which != "all" and which not in names:
        raise SystemExit(f"--fit {which!r}: choose all or one of {', '.join(map(repr, names))}")
    path, stretches = out / COEFFICIENTS.name, Stretches(logs)
    rows = pd.read_csv(path).set_index("held_out").T.to_dict() if path.is_file() else {}
    for name in names if which == "all" else [which]:
        used = [run for run in FITTING_RUNS if str(run) != name]
        found = Fit(stretches, used).run()
        rows[name] = {"fitted_on": "; ".join(map(str, used))} | found.row()
        table = pd.DataFrame([{"held_out": n, **rows[n]} for n in names if n in rows])
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
    logs: Mapping[Run, pd.DataFrame], known: Mapping[str, Coefficients], data: Path, out: Path
) -> pd.DataFrame:
    """Every run, the packaged profile beside it, the cells, and the plots."""
    rows: list[dict[str, Any]] = []
    replays = []
    for run in RUNS:
        played, found = replay_whole(run, logs, known)
        replays.append(played)
        rows += found
        if run in FITTING_RUNS:
            rows += steady_rows(run, logs[run], None)[1]
    cells = [row for cell in CELLS for row in compare_cell(cell, logs, known, data)]
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
    if chosen.fit:
        run_fits(chosen.fit, logs, out)
        return
    known = read_coefficients()
    if chosen.quick:
        name, table = "quick", run_quick(logs, known)
    elif chosen.variants:
        name, table = "variants", run_variants(logs, known)
    else:
        name, table = "comparison", run_all(logs, known, data, out)
        write_manifest_of(out, data)
    show("Measured against simulated", table)
    write_csv(table, out / f"{name}.csv")


if __name__ == "__main__":
    main()
