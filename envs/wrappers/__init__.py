"""Wrappers: other actions, observations, rewards and layers of the environments."""

from synergy_gym.envs.wrappers.actions import (
    DecisionInterval,
    DeltaActions,
    FlatActions,
    flat_mask,
    flat_size,
)
from synergy_gym.envs.wrappers.authors import AuthorsScheduler
from synergy_gym.envs.wrappers.discount import RerouteIllegal, SemiMarkovDiscount, rerouted
from synergy_gym.envs.wrappers.engine_blocks import EngineBlocks
from synergy_gym.envs.wrappers.forecast import ForecastObservation
from synergy_gym.envs.wrappers.one_layer import OneLayer
from synergy_gym.envs.wrappers.vector import (
    VectorFlatActions,
    VectorRerouteIllegal,
    VectorSemiMarkovDiscount,
    vector_action_masks,
)

__all__ = [
    "AuthorsScheduler",
    "DecisionInterval",
    "DeltaActions",
    "EngineBlocks",
    "FlatActions",
    "ForecastObservation",
    "OneLayer",
    "RerouteIllegal",
    "SemiMarkovDiscount",
    "VectorFlatActions",
    "VectorRerouteIllegal",
    "VectorSemiMarkovDiscount",
    "flat_mask",
    "flat_size",
    "rerouted",
    "vector_action_masks",
]
