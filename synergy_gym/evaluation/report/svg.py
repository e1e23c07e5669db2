"""Line charts as inline SVG, coloured by the style sheet of the page that holds them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 8, 36
"""Size of a chart and of its margins, in units of its view box; about CSS pixels."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """One axis: its range, its ticks with their labels, and its title."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        low, high = self._scale(self.low), self._scale(self.high)
        return (self._scale(value) - low) / ((high - low) or 1.0)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value


def percent_axis(title: str) -> Axis:
    """0 to 100 %, for shares."""
    return Axis(0.0, 1.0, [(x / 4, f"{25 * x}") for x in range(5)], title)


def seconds_axis(low_s: float, high_s: float, title: str) -> Axis:
    """A logarithmic axis with ticks at 1, 2 and 5 in every decade, or at 1 where it is long."""
    decades = math.log10(high_s / low_s)
    steps = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)
    found = [
        mantissa * 10.0**power
        for power in range(math.floor(math.log10(low_s)), math.ceil(math.log10(high_s)) + 1)
        for mantissa in steps
    ]
    inside = [value for value in found if low_s <= value <= high_s]
    return Axis(low_s, high_s, [(value, f"{value:g}") for value in inside], title, log=True)


def load_axis(loads: Sequence[float], title: str) -> Axis:
    """The offered loads; labels that would touch are left out."""
    low, high = min(loads), max(loads)
    pad = 0.04 * ((high - low) or 1.0)
    ticks: list[tuple[float, str]] = []
    for load in sorted(loads):
        if not ticks or (load - ticks[-1][0]) / ((high - low) or 1.0) > 0.08:
            ticks.append((load, f"{load:g}"))
    return Axis(low - pad, high + pad, ticks, title)


def line_chart(
    name: str,
    series: Mapping[str, Points],
    x: Axis,
    y: Axis,
    *,
    marked: Mapping[str, int],
    bounds: Collection[str] = (),
    level: float | None = None,
    markers: bool = False,
) -> str:
    """A chart of one line per series.

    Args:
        name: what it shows, for screen readers.
        series: points of each line by name.
        x: horizontal axis.
        y: vertical axis.
        marked: series that are drawn in colour, with the number of their colour.
        bounds: series that are drawn dashed, in the colour of text.
        level: a horizontal line at this y.
        markers: draw a dot at each point, with its values as a tooltip.
    """
    order = sorted(series, key=lambda item: (item in marked, item in bounds))
    looks = {item: "series bound" if item in bounds else _look(marked.get(item)) for item in series}
    lines = [_series(item, series[item], (x, y), looks[item], markers) for item in order]
    parts = [*_axes(x, y), *([] if level is None else [_level(y, level)]), *lines]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(name)}">{"".join(parts)}</svg>'
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _axes(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value, text in y.ticks:
        at = _number(_y(y, value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{at}" dy=".32em">{escape(text)}</text>')
    bottom = HEIGHT - BOTTOM
    for value, text in x.ticks:
        at = _number(_x(x, value))
        parts.append(f'<line class="notch" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick mid" x="{at}" y="{bottom + 16}">{escape(text)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{_number(middle)}" y="{HEIGHT - 5}">{escape(x.title)}</text>'
    )
    return parts


def _level(y: Axis, value: float) -> str:
    at = _number(_y(y, value))
    return f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'


def _look(colour: int | None) -> str:
    return "series" if colour is None else f'series on" style="--c:var(--s{colour})'


def _series(name: str, points: Points, axes: tuple[Axis, Axis], look: str, markers: bool) -> str:
    x, y = axes
    places = [(_number(_x(x, a)), _number(_y(y, b))) for a, b in points]
    line = " ".join(f"{a},{b}" for a, b in places)
    dots = (
        f'<circle cx="{a}" cy="{b}" r="2.5"><title>{escape(name)}: {100 * share:.1f} % at load '
        f"{value:g}</title></circle>"
        for (a, b), (value, share) in zip(places, points, strict=True)
    )
    return (
        f'<g class="{look}" data-p="{escape(name)}"><polyline points="{line}">'
        f"<title>{escape(name)}</title></polyline>{''.join(dots) if markers else ''}</g>"
    )
