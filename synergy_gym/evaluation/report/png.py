"""Plots of a leaderboard, the same bytes for the same rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.latency import LATENCY_FIGURES
from synergy_gym.evaluation.board.part import Part
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.capacity import TARGET
from synergy_gym.evaluation.jobs import CDF_EDGES_S
from synergy_gym.evaluation.report.curves import LatencyCurves, attainment_curves, latency_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito, readable with colour-blindness; line styles repeat after all colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def write_plots(board: Board, folder: Path) -> list[Path]:
    """Attainment against load and, where histograms are kept, latency CDFs, as PNG."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(SETTINGS):
        for part in board.suite.parts:
            rows = part.rows(board.rows)
            for scenario in part.scenarios:
                chosen = [row for row in rows if row["scenario"] == scenario]
                if not chosen:
                    continue
                name = f"{part.track}-{Path(scenario).stem}"
                figure = attainment_plot(part, scenario, chosen)
                paths.append(_save(figure, folder / f"attainment-{name}.png"))
                curves = latency_curves(part, chosen, board.latency)
                if curves:
                    figure = latency_plot(scenario, curves)
                    paths.append(_save(figure, folder / f"latency-{name}.png"))
    return paths


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * columns + 2.2, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def _save(figure: Figure, path: Path) -> Path:
    """Write a PNG of 64 colours: lines and text need no more, and it is a third of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    image = Image.open(buffer).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _look(index: int) -> dict[str, Any]:
    n = len(COLOURS)
    return {"color": COLOURS[index % n], "linestyle": STYLES[index // n % len(STYLES)]}


def attainment_plot(part: Part, scenario: str, rows: Sequence[Row]) -> Figure:
    """Mean attainment of each policy against the offered load."""
    figure, (axes,) = _figure(1)
    for index, (policy, points) in enumerate(attainment_curves(part, rows).items()):
        marker = MARKERS[index % len(MARKERS)]
        shares = [100 * share for share in points.values()]
        axes.plot(list(points), shares, marker=marker, ms=4, label=policy, **_look(index))
    axes.axhline(100 * TARGET, color="0.5", lw=0.8)
    axes.set_xlabel("load (1.0: vLLM V1 + round-robin attains 90 %)")
    axes.set_xticks(sorted({row["load"] for row in rows}))
    axes.set_ylabel("requests that met every SLO, %")
    axes.set_ylim(-2, 102)
    axes.set_title(f"{scenario} (simulated)")
    figure.legend(loc="outside right upper")
    return figure


def latency_plot(scenario: str, curves: LatencyCurves) -> Figure:
    """TTFT and E2E distributions at one load, over all offered requests."""
    figure, panels = _figure(2)
    for axes, name, title in zip(panels, LATENCY_FIGURES, ("TTFT", "E2E latency"), strict=True):
        for index, (policy, shares) in enumerate(curves.shares[name].items()):
            label = policy if name == LATENCY_FIGURES[0] else None
            axes.plot(CDF_EDGES_S, 100 * shares, label=label, **_look(index))
        _log_seconds(axes)
        axes.set_xlim(*curves.limits_s[name])
        axes.set_xlabel(f"{title}, s")
        axes.set_ylim(-2, 102)
    panels[0].set_ylabel("offered requests at or below, %")
    figure.suptitle(f"{scenario}, load {curves.load:g} (simulated)")
    figure.legend(loc="outside right upper")
    return figure


def _log_seconds(axes: Axes) -> None:
    """A logarithmic axis labelled 0.01, 0.02, 0.05, 0.1 ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
