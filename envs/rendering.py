"""Drawing an environment's state: text, a live terminal, or an RGB image.

An environment describes itself as a `Frame`; a renderer for its render mode draws it. Nothing
here runs inside `step()` unless the render mode is `human`.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

RENDER_MODES = ("human", "ansi", "rgb_array")
RENDER_FPS = 30
HISTORY = 240
"""Frames that the curves of `human` and `rgb_array` look back."""
MAX_GAUGES = 24
"""Rows shown of a large cluster."""
BAR_WIDTH = 24
IMAGE_SIZE_PX = (720, 480)
_DPI = 90


@dataclass(frozen=True, slots=True)
class Gauge:
    """One horizontal bar: `value` in [0, 1] and a text beside it."""

    label: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything a renderer needs: a title, a line of facts, bars, and points of curves."""

    title: str
    facts: str
    gauges: tuple[Gauge, ...]
    points: dict[str, float]
    """Curve name -> its value in [0, 1] now."""


class Renderer(Protocol):
    """Draws frames of one render mode."""

    def draw(self, frame: Frame) -> str | NDArray[np.uint8] | None:
        """Draw one frame; returns what `Env.render()` returns in this mode."""

    def reset(self) -> None:
        """Forget the curves: a new episode begins."""

    def close(self) -> None:
        """Free the terminal or the figure."""


def make_renderer(mode: str) -> Renderer:
    """The renderer of a render mode.

    Raises:
        ValueError: there is no such mode; the message lists them.
    """
    if mode not in _RENDERERS:
        raise ValueError(f"render_mode={mode!r} is unknown; choose None or one of {RENDER_MODES}")
    return _RENDERERS[mode]()


def bar(value: float, width: int = BAR_WIDTH) -> str:
    """A bar of block characters, full at 1."""
    filled = round(min(max(value, 0.0), 1.0) * width)
    return "█" * filled + "░" * (width - filled)


def frame_text(frame: Frame) -> str:
    """The frame as lines of text, without control codes."""
    shown = frame.gauges[:MAX_GAUGES]
    width = max((len(gauge.label) for gauge in shown), default=0)
    lines = [frame.title, frame.facts]
    lines += [f"  {g.label:<{width}} {bar(g.value)} {g.text}" for g in shown]
    if len(frame.gauges) > len(shown):
        lines.append(f"  ... and {len(frame.gauges) - len(shown)} more")
    return "\n".join(lines)


class AnsiRenderer:
    """`ansi`: `render()` returns text."""

    def draw(self, frame: Frame) -> str:
        """The frame as text."""
        return frame_text(frame)

    def reset(self) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to free."""


class TerminalRenderer:
    """`human`: a live panel on standard error, redrawn at most `RENDER_FPS` times a second.

    The simulation is not slowed down; frames in between are skipped.
    """

    def __init__(self) -> None:
        self._live: Any = None
        self._due_s = 0.0

    def draw(self, frame: Frame) -> None:
        """Show the frame, unless the last one is younger than 1 / RENDER_FPS."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + 1 / RENDER_FPS
        from rich.panel import Panel
        from rich.text import Text

        title, _, body = frame_text(frame).partition("\n")
        self._open().update(Panel(Text(body), title=title, title_align="left"), refresh=True)

    def _open(self) -> Any:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        return self._live

    def reset(self) -> None:
        """Draw the next frame at once."""
        self._due_s = 0.0

    def close(self) -> None:
        """Leave the last frame standing and free the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class ImageRenderer:
    """`rgb_array`: `render()` returns a uint8 array `(height, width, 3)`, drawn with Agg.

    Bars on the left, the curves of the last `HISTORY` frames on the right. The figure is
    kept and only its artists move.
    """

    def __init__(self) -> None:
        self._figure: Any = None
        self._shape: tuple[object, ...] = ()
        self._curves: dict[str, deque[float]] = {}

    def draw(self, frame: Frame) -> NDArray[np.uint8]:
        """The frame as an image."""
        shown = frame.gauges[:MAX_GAUGES]
        shape = (tuple(g.label for g in shown), tuple(frame.points))
        if self._figure is None or shape != self._shape:
            self._build(*shape)
            self._shape = shape
        self._title.set_text(f"{frame.title}\n{frame.facts}")
        for patch, label, gauge in zip(self._bars, self._labels, shown, strict=True):
            patch.set_width(gauge.value)
            label.set_text(gauge.text)
        for name, value in frame.points.items():
            self._extend(name, value)
        self._figure.canvas.draw()
        pixels = np.asarray(self._figure.canvas.buffer_rgba())
        return np.ascontiguousarray(pixels[:, :, :3])

    def _extend(self, name: str, value: float) -> None:
        curve = self._curves.setdefault(name, deque(maxlen=HISTORY))
        curve.append(value)
        self._lines[name].set_data(range(HISTORY - len(curve), HISTORY), curve)

    def _build(self, labels: tuple[str, ...], curves: tuple[str, ...]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        width, height = IMAGE_SIZE_PX
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasAgg(self._figure)
        self._title = self._figure.text(0.02, 0.98, "", va="top", fontsize=9)
        self._build_bars(labels)
        self._build_curves(curves)

    def _build_bars(self, labels: tuple[str, ...]) -> None:
        axes = self._figure.add_axes((0.14, 0.06, 0.4, 0.78))
        rows = range(len(labels))
        self._bars = axes.barh(rows, [0.0] * len(labels), color="#a8c8e8")
        self._labels = [axes.text(0.02, row, "", va="center", fontsize=7) for row in rows]
        axes.set(xlim=(0, 1), ylim=(len(labels) - 0.4, -0.6), xticks=())
        axes.set_yticks(rows, labels, fontsize=7)

    def _build_curves(self, names: tuple[str, ...]) -> None:
        axes = self._figure.add_axes((0.6, 0.06, 0.38, 0.78))
        self._lines = {name: axes.plot((), (), label=name, lw=1)[0] for name in names}
        axes.set(xlim=(0, HISTORY - 1), ylim=(-0.02, 1.02), xticks=())
        axes.tick_params(labelsize=7)
        axes.legend(loc="upper left", fontsize=7)

    def reset(self) -> None:
        """Forget the curves."""
        self._curves.clear()

    def close(self) -> None:
        """Free the figure."""
        self._figure = None
        self._curves.clear()


_RENDERERS: dict[str, type[AnsiRenderer] | type[TerminalRenderer] | type[ImageRenderer]] = {
    "human": TerminalRenderer,
    "ansi": AnsiRenderer,
    "rgb_array": ImageRenderer,
}
