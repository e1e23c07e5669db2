"""Play measured 8xH100 runs again and compare TTFT, TPOT and E2E quantiles.

Commands (from the repository root; SYNERGY_GYM_DATA names the folder that holds
`measurements/requests_*.csv.gz` and `measurements/e2e_client_rounds.csv`):

    SYNERGY_GYM_DATA=../shared .venv/bin/python -m experiments.replay.eight_h100 --fit
    SYNERGY_GYM_DATA=../shared .venv/bin/python -m experiments.replay.eight_h100
    SYNERGY_GYM_DATA=../shared .venv/bin/python -m experiments.replay.eight_h100 --variants
    SYNERGY_GYM_DATA=../shared .venv/bin/python -m experiments.replay.eight_h100 --quick

The first fits what a busy node adds to kernel times (`replay_fit.py`), each time without one run,
and keeps it in `results/replay_8xh100/coefficients.csv`, together with a rival explanation. The
second replays every run with what was fitted without it, and with the kernels' clock that saw none.
The third plays variants of PRISM, whose version in the runs is unknown. The last replays stretches
of the runs, in half a minute.

Writes `comparison.csv` (per-request logs), `rounds.csv` (runs of which only the clients' own
quantiles per minute exist), `front_end.csv` (token streams faster than an engine step),
`cdfs.png`, `timeline.png` and `manifest.json`; `rival.csv`; `variants.csv`; `quick.csv`.
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

from experiments.common import figure, parser, save, show, write_csv, write_manifest
from experiments.replay.client import STEADY, WaitWhileReading, Window, front_end, sustained
from experiments.replay.fit import (
    PROFILE,
    STRETCH,
    Coefficients,
    Stretches,
    fit,
    fit_rival,
    node_grid,
    rival_grid,
)
from experiments.replay.rounds import (
    CELLS,
    LENS_RR_05,
    PERCENTILES,
    ROUNDS,
    cell_arrivals,
    measured_means,
    simulated_means,
)
from experiments.replay.runs import (
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
from synergy_gym.latency.kernels.engine import SYNC
from synergy_gym.latency.profiles import load_profile
from synergy_gym.types import FloatArray

NAME = "replay_8xh100"
COEFFICIENTS = Path(__file__).parents[1] / "results" / NAME / "coefficients.csv"
ALL = "none"
FITS: Mapping[str, tuple[Run, ...]] = MappingProxyType(
    {
        str(NATIVE_05): (PACED_07, LENS_RR_07),
        str(PACED_07): (NATIVE_05, LENS_RR_07),
        str(LENS_RR_07): (NATIVE_05, PACED_07),
        str(LENS_RR_05): (NATIVE_05, PACED_07),
        ALL: (NATIVE_05, PACED_07, LENS_RR_07),
    }
)
"""What coefficients are fitted on, by the run that is left out: runs whose router is known and
whose front end kept up. What is said of LENS has seen no run under LENS. `ALL` is for the runs that
are not among them, and the packaged profile."""
UNSEEN = Coefficients(load_profile(PROFILE).file.sustained.factor, SYNC.ms, NO_OVERHEAD)
"""The kernels' clock with an engine's parts as packaged: it saw none of these runs."""
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
        raise SystemExit(f"{path} not found; run this script with --fit first")
    table = pd.read_csv(path)
    return {row["held_out"]: Coefficients.from_row(row) for row in table.to_dict("records")}


def coefficients_for(run: Run, known: Mapping[str, Coefficients]) -> tuple[str, Coefficients]:
    """What was fitted without this run, and how the tables call it."""
    held = str(run) if str(run) in FITS else ALL
    if held not in known:
        raise SystemExit(f"no coefficients fitted without {held!r}; run with --fit")
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
    coefficients: Coefficients,
    begin_s: float = 0.0,
    to_s: float = np.inf,
    **how: Any,
) -> Replay:
    """Play what was sent in [begin_s, to_s). Further arguments go to `simulate`."""
    part = log[(log.send_s >= begin_s) & (log.send_s < to_s)]
    simulated = simulate(run, part, coefficients.terms, begin_s=begin_s, **how)
    wait_s = coefficients.overhead.of(part.tokens_in.to_numpy(float))
    return Replay(run, part, add_wait(simulated, wait_s))


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


def steady_rows(
    run: Run, log: pd.DataFrame, coefficients: Coefficients, label: str
) -> tuple[Replay, list[dict[str, Any]]]:
    """Rows of the steady part alone."""
    played = replay(run, log, coefficients, STEADY.from_s - SETTLE_S, STEADY.to_s)
    return played, compare(run, STEADY, played.measured, played.simulated, label)


def compare_cell(
    cell: Run,
    logs: Mapping[Run, pd.DataFrame],
    rounds: pd.DataFrame,
    coefficients: Coefficients,
    label: str,
) -> list[dict[str, Any]]:
    """Means over clients and steady rounds of the quantiles per round."""
    played = replay(cell, cell_arrivals(cell, logs), coefficients, STEADY.from_s - SETTLE_S)
    mine = simulated_means(played.measured, played.simulated)
    theirs = measured_means(rounds, cell)
    head = {"run": str(cell), "policy": cell.policy, "coefficients": label}
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


def run_fits(logs: Mapping[Run, pd.DataFrame], out: Path) -> None:
    """All fits, and the rival explanation held against the same runs and those under LENS."""
    stretches = Stretches(logs, node_grid())
    rows = []
    for name, runs in FITS.items():
        found = fit(stretches, runs)
        rows.append({"held_out": name, "fitted_on": "; ".join(map(str, runs)), **found.row()})
    table = pd.DataFrame(rows)
    write_csv(table, out / COEFFICIENTS.name)
    show("What a busy node adds", table.T.reset_index())
    rival = run_rival(logs, read_coefficients(out / COEFFICIENTS.name))
    write_csv(rival, out / "rival.csv")
    show("Two causes, fitted on stock vLLM", rival)


def run_rival(logs: Mapping[Run, pd.DataFrame], known: Mapping[str, Coefficients]) -> pd.DataFrame:
    """Errors of both explanations: busy GPUs (`sustained`), busy CPUs (time per sequence)."""
    terms, wait, per_sequence_ms = fit_rival(Stretches(logs, rival_grid()), FITS[str(LENS_RR_07)])
    busy = known[str(LENS_RR_07)]
    both = {
        f"GPUs: sustained {busy.sustained:.2f}": (busy.terms, busy.overhead),
        f"CPUs: {per_sequence_ms:.3f} ms per sequence": (terms, wait),
    }
    rows: list[dict[str, Any]] = []
    for label, (clock, overhead) in both.items():
        for run in (NATIVE_05, PACED_07, LENS_RR_07):
            log = logs[run]
            part = log[(log.send_s >= STRETCH.begin_s) & (log.send_s < STRETCH.to_s)]
            simulated = simulate(run, part, clock, begin_s=STRETCH.begin_s)
            played = add_wait(simulated, overhead.of(part.tokens_in.to_numpy(float)))
            rows += compare(run, STEADY, part, played, label)
    return pd.DataFrame(rows)


def run_quick(logs: Mapping[Run, pd.DataFrame], known: Mapping[str, Coefficients]) -> pd.DataFrame:
    """Steady part of the runs of stock vLLM, and the first minutes of it under LENS."""
    rows: list[dict[str, Any]] = []
    for run in (NATIVE_05, PACED_07, NATIVE_07):
        label, coefficients = coefficients_for(run, known)
        rows += steady_rows(run, logs[run], coefficients, label)[1]
    label, coefficients = coefficients_for(LENS_RR_07, known)
    window = Window("60 s", STEADY.from_s, STEADY.from_s + 60)
    played = replay(
        LENS_RR_07, logs[LENS_RR_07], coefficients, STEADY.from_s - SETTLE_S, window.to_s
    )
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
    """Every run, the clock that saw none beside it, the cells, and the plots."""
    rows: list[dict[str, Any]] = []
    replays = []
    for run in RUNS:
        played, found = replay_whole(run, logs, known)
        replays.append(played)
        rows += found
        rows += steady_rows(run, logs[run], UNSEEN, "kernels, saw no run")[1]
    cells = []
    for cell in CELLS:
        label, coefficients = coefficients_for(cell, known)
        cells += compare_cell(cell, logs, rounds, coefficients, label)
        cells += compare_cell(cell, logs, rounds, UNSEEN, "kernels, saw no run")
    write_csv(pd.DataFrame(cells), out / "rounds.csv")
    show("Runs known by their clients' quantiles", pd.DataFrame(cells))
    write_csv(front_end(logs), out / "front_end.csv")
    plot_cdfs(replays, out / "cdfs.png")
    plot_timeline(replays, out / "timeline.png")
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__.splitlines()[0], NAME)
    options.add_argument("--fit", action="store_true", help="fit what a busy node adds")
    options.add_argument("--variants", action="store_true", help="versions of PRISM")
    chosen = options.parse_args(argv)
    data, out = data_folder(), chosen.out
    logs = {run: read_run(data / run.file) for run in RUNS}
    rounds = pd.read_csv(data / ROUNDS)
    if chosen.fit:
        run_fits(logs, out)
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
