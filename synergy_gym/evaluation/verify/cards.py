"""What is wrong with the incident cards of a board, without playing anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from synergy_gym.evaluation.board.incident_library import find_incident
from synergy_gym.evaluation.board.tables import Row, row_key
from synergy_gym.evaluation.incidents.cards import CARDS_FILE, CardRow, read_cards
from synergy_gym.evaluation.incidents.measures import MEASURES
from synergy_gym.seasons import SEASON


def card_problems(folder: Path, rows: Sequence[Row], season: int = SEASON) -> Iterator[str]:
    """Lines of a board's `incidents.csv` that contradict the criteria, or `results.csv`.

    Args:
        folder: of the board; nothing is yielded where it has no cards.
        rows: its `results.csv`; every row of an incident must have all its lines, and every line
            its row. Cards without a single row of an incident are a file of their own and only
            checked against the criteria.
        season: in which the board was played.
    """
    path = folder / CARDS_FILE
    if not path.is_file():
        return
    try:
        found = read_cards(path)
    except (ValueError, OSError) as error:
        yield str(error)
        return
    played = {row_key(row): row for row in rows if str(row["scenario"]).startswith("incident-")}
    for row in found:
        yield from _line_problems(path, row, played, season)
    yield from _missing(path, found, played, season)


def _where(path: Path, row: CardRow) -> str:
    pair = f"{row.engine_policy} + {row.router_policy}"
    return f"{path}: {row.incident} {pair} seed {row.seed} {row.measure}"


def _line_problems(
    path: Path, row: CardRow, played: Mapping[tuple[Any, ...], Row], season: int
) -> Iterator[str]:
    where = _where(path, row)
    try:
        incident = find_incident(row.incident, season)
    except ValueError as error:
        yield f"{path}: {error}"
        return
    if (row.measure, row.limit) not in [criterion.key for criterion in incident.criteria]:
        yield f"{where}: no criterion with limit {row.limit:g}; write the cards again"
        return
    if (row.layer, row.load) != (incident.layer, incident.load):
        yield (
            f"{where}: layer {row.layer}, load {row.load:g}; this incident is played on layer "
            f"{incident.layer} at load {incident.load:g}"
        )
    if row.met != MEASURES[row.measure].meets(row.value, row.limit):
        yield f"{where}: met is {row.met}, but the value is {row.value:g}; write the cards again"
    if played:
        yield from _hash_problems(where, row, played)


def _hash_problems(
    where: str, row: CardRow, played: Mapping[tuple[Any, ...], Row]
) -> Iterator[str]:
    key = (row.incident, row.load, row.seed, row.engine_policy, row.router_policy)
    if key not in played:
        yield f"{where}: results.csv has no such episode; play suite and cards again"
    elif played[key]["log_hash"] != row.log_hash:
        yield (
            f"{where}: log_hash is {row.log_hash}, that of results.csv {played[key]['log_hash']}; "
            "play suite and cards again"
        )


def _missing(
    path: Path, found: Sequence[CardRow], played: Mapping[tuple[Any, ...], Row], season: int
) -> Iterator[str]:
    lines = [
        (row.incident, row.load, row.seed, row.engine_policy, row.router_policy, row.measure)
        for row in found
    ]
    for line in sorted(line for line, count in Counter(lines).items() if count > 1):
        yield f"{path}: {line}: there more than once; keep one line"
    have = set(lines)
    for key in sorted(played):
        for criterion in find_incident(key[0], season).criteria:
            if (*key, criterion.measure) not in have:
                yield f"{path}: {key}: no line of {criterion.measure}; play the cards again"
