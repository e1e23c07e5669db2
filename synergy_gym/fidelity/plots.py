"""Plots of a fidelity run: simulated against live latencies, and scores of the policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synergy_gym.evaluation.report.png import COLOURS, MARKERS, SETTINGS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SHOWN: Sequence[tuple[str, str]] = (
    ("step", "step"),
    ("ttft", "TTFT"),
    ("tpot", "TPOT"),
    ("e2e", "E2E"),
)
FIGURES = ("p50", "p90", "p99")


def write_plots(cells: pd.DataFrame, ranking: pd.DataFrame, out: Path) -> None:
    """Write `latency.png` and `ranking.png`."""
    import matplotlib as mpl

    with mpl.rc_context(SETTINGS):
        for name, figure in (("latency", latency_plot(cells)), ("ranking", ranking_plot(ranking))):
            figure.savefig(out / f"{name}.png", dpi=110, metadata={"Software": None})


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def latency_plot(cells: pd.DataFrame) -> Figure:
    """Simulated over live, one dot per cell and percentile; bars span the live repeats."""
    figure, axes = _figure(2, len(SHOWN), 3.2, 3.1)
    for row, world in enumerate(("sim", "matched")):
        for panel, (metric, title) in zip(axes[row], SHOWN, strict=True):
            _scatter(panel, cells[cells["metric"] == metric], world)
            panel.set_title(f"{title} ({'simulated' if world == 'sim' else 'at the live speed'})")
        axes[row][0].set_ylabel("simulated, s")
    for panel in axes[-1]:
        panel.set_xlabel("live (measured), s")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(FIGURES))
    return figure


def _scatter(panel: Any, rows: pd.DataFrame, world: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for index, name in enumerate(FIGURES):
        part = rows[rows["figure"] == name]
        panel.errorbar(
            part["live_s"],
            part[f"{world}_s"],
            xerr=[part["live_s"] - part["live_min_s"].clip(upper=part["live_s"]),
                  part["live_max_s"].clip(lower=part["live_s"]) - part["live_s"]],
            fmt=MARKERS[index], ms=4, lw=0.8, color=COLOURS[index], label=name.upper(),
        )  # fmt: skip
    shown = rows[rows["figure"].isin(FIGURES)]
    low = float(min(shown["live_s"].min(), shown[f"{world}_s"].min())) * 0.8
    high = float(max(shown["live_s"].max(), shown[f"{world}_s"].max())) * 1.25
    panel.plot([low, high], [low, high], color="0.5", lw=0.8)
    panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def ranking_plot(ranking: pd.DataFrame) -> Figure:
    """SLO attainment per policy: live with its interval, and both simulations."""
    rows = ranking[ranking["score"] == "slo_attainment"]
    groups = list(rows.groupby(["scenario", "load"], sort=False))
    figure, axes = _figure(len(groups), 1, 8.0, 2.2)
    for panel, ((scenario, load), part) in zip(axes[:, 0], groups, strict=True):
        places = range(len(part))
        live = 100 * part["live"]
        spread = [
            (live - 100 * part["live_low"]).clip(lower=0),
            (100 * part["live_high"] - live).clip(lower=0),
        ]
        panel.errorbar(
            places, live, yerr=spread, fmt="o", color=COLOURS[6], label="live", capsize=3
        )
        panel.plot(places, 100 * part["sim"], "s", color=COLOURS[0], ms=5, label="simulated")
        panel.plot(places, 100 * part["matched"], "x", color=COLOURS[1], label="at the live speed")
        panel.set_xticks(list(places), part["policy"], rotation=20, ha="right", fontsize=7)
        panel.set(title=f"{scenario}, load {load:g}", ylabel="SLO met, %", ylim=(-5, 105))
    axes[0, 0].legend(loc="lower left", fontsize=7)
    return figure
