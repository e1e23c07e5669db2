"""Seasons: what a board stands for stays playable after scenarios and clocks have changed.

A season is a set of scenarios, latency profiles, suites and incidents. The current one changes
until the next begins; an archived one never does. Text names a scenario or a suite of an archived
season as `season1/NAME`; a plain name is of the current season.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

SEASON = 2
"""The current season."""

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class SeasonFiles:
    """Where a season lies in the package.

    Attributes:
        scenarios: folder of `NAME.toml`.
        profiles: folder of the latency profiles that these scenarios name.
        suites: file of an archived season's suites and scenario families (JSON); `None` for the
            current season, whose suites are code (`evaluation/board/suites.py`).
        incidents: file of an archived season's incidents (JSON); `None` likewise
            (`evaluation/board/incident_library.py`).
    """

    scenarios: Path
    profiles: Path
    suites: Path | None = None
    incidents: Path | None = None


def _archived(name: str) -> SeasonFiles:
    home = _PACKAGE / name
    return SeasonFiles(
        home / "scenarios", home / "profiles", home / "suites.json", home / "incidents.json"
    )


FILES: Mapping[int, SeasonFiles] = MappingProxyType(
    {
        1: _archived("season1"),
        SEASON: SeasonFiles(_PACKAGE / "scenarios", _PACKAGE / "latency" / "profiles"),
    }
)
"""Every season, by number."""


def season_files(season: int) -> SeasonFiles:
    """Where a season lies.

    Raises:
        ValueError: no such season.
    """
    if season not in FILES:
        raise ValueError(f"no season {season!r}; choose one of {', '.join(map(str, FILES))}")
    return FILES[season]


def split_name(text: str, season: int = SEASON) -> tuple[int, str]:
    """Season and plain name of `season1/NAME`; a plain name is of `season`."""
    found = re.fullmatch(r"season(\d+)/(.+)", text)
    return (int(found[1]), found[2]) if found else (season, text)


def full_name(name: str, season: int) -> str:
    """The text that names a scenario or a suite of a season: `season1/NAME`, or a plain name."""
    return name if season == SEASON else f"season{season}/{name}"
