"""Pairs of policies: what one layer's choice makes of the other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synergy_gym.evaluation.board.part import Part
from synergy_gym.evaluation.board.scores import score_table
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.interaction import (
    InteractionMatrix,
    complete_matrix,
    interaction_matrix,
)
from synergy_gym.evaluation.jobs import TRACK_LAYERS, pair_label
from synergy_gym.types import FloatArray


@dataclass(frozen=True, eq=False)
class Interaction:
    """How the layers interact on the largest complete matrix of pairs that a part played."""

    engines: Sequence[str]
    routers: Sequence[str]
    effects: InteractionMatrix
    scores: Mapping[str, FloatArray]


def interaction_of(part: Part, rows: Sequence[Row]) -> Interaction | None:
    """The interaction of a part's layers; None where no matrix of pairs and seeds was played."""
    scores = score_table(rows, part.track).of
    pairs = [pair for pair in part.matchups() if pair_label(pair) in scores]
    engines, routers = complete_matrix(pairs)
    if len(TRACK_LAYERS[part.track]) < 2 or not engines or len(next(iter(scores.values()))) < 2:
        return None
    matrix = np.stack(
        [[scores[pair_label((e, r))].mean(axis=1) for r in routers] for e in engines]
    ).transpose(2, 0, 1)
    return Interaction(engines, routers, interaction_matrix(matrix), scores)
