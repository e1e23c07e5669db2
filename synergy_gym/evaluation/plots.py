"""Plots of a leaderboard, the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.capacity import TARGET
from synergy_gym.evaluation.jobs import CDF_EDGES_S, JobResult, competitor
from synergy_gym.evaluation.suites import Part
from synergy_gym.evaluation.tables import row_key
from synergy_gym.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from synergy_gym.evaluation.leaderboard import Report

# Okabe-Ito, readable with colour-blindness; line styles repeat after all colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SETTINGS: Any = {
    "svg.hashsalt": "synergy-gym",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Attainment against load and latency CDFs, per part and scenario, as PNG and SVG."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    results = sorted(report.results.values(), key=lambda result: row_key(result.row))
    paths = []
    with mpl.rc_context(SETTINGS):
        for part in report.suite.parts:
            keys = part.keys()
            for scenario in part.scenarios:
                chosen = [r for r in results if row_key(r.row) in keys]
                chosen = [r for r in chosen if r.row["scenario"] == scenario]
                if not chosen:
                    continue
                name = f"{part.track}-{scenario}"
                paths += _save(
                    attainment_plot(part, scenario, chosen), folder, f"attainment-{name}"
                )
                paths += _save(latency_plot(part, scenario, chosen), folder, f"latency-{name}")
    return paths


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * columns + 2.2, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure.savefig(paths[0], metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def _look(index: int) -> dict[str, Any]:
    n = len(COLOURS)
    return {"color": COLOURS[index % n], "linestyle": STYLES[index // n % len(STYLES)]}


def attainment_plot(part: Part, scenario: str, results: Sequence[JobResult]) -> Figure:
    """Mean attainment of each policy against the offered load."""
    figure, (axes,) = _figure(1)
    for index, policy in enumerate(part.competitors()):
        rows = [r.row for r in results if competitor(part.track, r.row) == policy]
        loads = sorted({row["load"] for row in rows})
        means = [
            np.mean([row["slo_attainment"] for row in rows if row["load"] == load])
            for load in loads
        ]
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(loads, 100 * np.array(means), marker=marker, ms=4, label=policy, **_look(index))
    axes.axhline(100 * TARGET, color="0.5", lw=0.8)
    axes.set_xlabel("load (1.0: vLLM V1 + round-robin attains 90 %)")
    axes.set_xticks(sorted({r.row["load"] for r in results}))
    axes.set_ylabel("requests that met every SLO, %")
    axes.set_ylim(-2, 102)
    axes.set_title(f"{scenario} (simulated)")
    figure.legend(loc="outside right upper")
    return figure


def latency_plot(part: Part, scenario: str, results: Sequence[JobResult]) -> Figure:
    """TTFT and E2E distributions at the load closest to 1.0, over all offered requests."""
    load = min({r.row["load"] for r in results}, key=lambda x: (abs(x - 1), x))
    figure, panels = _figure(2)
    for index, policy in enumerate(part.competitors()):
        chosen = [r for r in results if r.row["load"] == load]
        chosen = [r for r in chosen if competitor(part.track, r.row) == policy]
        if not chosen:
            continue
        for axes, name in zip(panels, ("ttft", "e2e"), strict=True):
            label = policy if name == "ttft" else None
            axes.plot(CDF_EDGES_S, 100 * cdf(chosen, name), label=label, **_look(index))
    for axes, name in zip(panels, ("TTFT", "E2E latency"), strict=True):
        _log_seconds(axes)
        axes.set_xlim(*_limits(results, "ttft" if name == "TTFT" else "e2e", load))
        axes.set_xlabel(f"{name}, s")
        axes.set_ylim(-2, 102)
    panels[0].set_ylabel("offered requests at or below, %")
    figure.suptitle(f"{scenario}, load {load:g} (simulated)")
    figure.legend(loc="outside right upper")
    return figure


def _log_seconds(axes: Axes) -> None:
    """A logarithmic axis labelled 0.01, 0.02, 0.05, 0.1 ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def cdf(results: Sequence[JobResult], name: str) -> FloatArray:
    """Share of offered requests that finished with a latency below each of `CDF_EDGES_S`."""
    counts = np.sum([r.histograms[name] for r in results], axis=0)
    offered = sum(r.row["offered"] for r in results)
    shares: FloatArray = np.cumsum(counts)[:-1] / max(offered, 1)
    return shares


def _limits(results: Sequence[JobResult], name: str, load: float) -> tuple[float, float]:
    counts = np.sum([r.histograms[name] for r in results if r.row["load"] == load], axis=0)
    used = np.flatnonzero(counts)
    if not len(used):
        return float(CDF_EDGES_S[0]), float(CDF_EDGES_S[-1])
    last = len(CDF_EDGES_S) - 1
    low, high = max(int(used[0]) - 1, 0), min(int(used[-1]), last)
    return float(CDF_EDGES_S[min(low, last - 1)]), float(CDF_EDGES_S[max(high, low + 1)])
