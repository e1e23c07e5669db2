"""Which rows of a board the installed policies can still decide.

A policy's version rises when it decides otherwise than before under its name. That makes the rows
of the version before it no less true, but only their recorded decisions can show it.
"""

from __future__ import annotations

from collections.abc import Iterator

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.submission.policy import MAKERS
from synergy_gym.policies.base import Layer

LAYERS: tuple[Layer, ...] = ("engine", "router")


def registered(board: Board) -> Iterator[tuple[Layer, str]]:
    """Layer and name of the policies in a board's rows that an installation must have.

    A submission brings its own policies, and oracles are made for an episode.
    """
    submitted = board.manifest.get("submission", {}).get("policies", {})
    for layer in LAYERS:
        entries = board.manifest.get("policies", {}).get(layer, {})
        for name in sorted({row[f"{layer}_policy"] for row in board.rows}):
            oracle = "oracle" in entries.get(name, {}).get("information", ())
            if name != submitted.get(layer) and not oracle:
                yield layer, name


def installed_version(layer: Layer, name: str) -> int:
    """The version of a registered policy here."""
    return MAKERS[layer](name).version


def hash_here(layer: Layer, name: str) -> str:
    """The hash of a registered policy here."""
    return MAKERS[layer](name).policy_hash()


def decidable(board: Board) -> tuple[list[Row], tuple[str, ...]]:
    """Rows whose policies have the versions that are installed, and a note on the others.

    Args:
        board: with an entry for every registered policy in its manifest.
    """
    risen: dict[tuple[Layer, str], str] = {}
    for layer, name in registered(board):
        told = board.manifest["policies"][layer][name]["version"]
        if told != (version := installed_version(layer, name)):
            risen[layer, name] = f"{name} (version {told}, now {version})"
    rows = [
        row
        for row in board.rows
        if not any((layer, row[f"{layer}_policy"]) in risen for layer in LAYERS)
    ]
    if not risen:
        return rows, ()
    names = ", ".join(dict.fromkeys(risen.values()))
    left = len(board.rows) - len(rows)
    return rows, (f"{left} rows are not decided again, their policies have changed: {names}",)
