"""Reward terms of the environments, by name.

The default reward has one term, `slo_met`: a scored request pays 1 once, when it finishes
with all SLOs of its class met, and 0 otherwise, so the undiscounted return of an episode is
the number that the leaderboard counts. All reward of (t_k, t_k+1] belongs to step k.

Shaping adds F = discount * Phi(s') - Phi(s) with Phi = 0 once the episode is over, which
leaves the optimal policies unchanged (Ng, Harada and Russell, ICML 1999). In continuous time
the discount of a step is exp(-beta * dt). Every potential here is <= 0 and measures
congestion, so draining it pays early what it later saves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp

from synergy_gym.types import EngineSpec, EngineStateField, IntArray, RouterRow

SLO_MET = "slo_met"
"""Name of the default reward term."""
SHAPING = "shaping"
"""Name of the potential-based term."""

EnginePotential = Callable[[IntArray, EngineSpec], float]
"""`(state vector, engine) -> Phi`."""
RouterPotential = Callable[[IntArray, Sequence[EngineSpec]], float]
"""`(router table, engines) -> Phi`."""

_ENGINE_POTENTIALS: dict[str, EnginePotential] = {}
_ROUTER_POTENTIALS: dict[str, RouterPotential] = {}


def engine_potential(name: str) -> Callable[[EnginePotential], EnginePotential]:
    """Register a potential over the engine state vector under `name`."""

    def register(function: EnginePotential) -> EnginePotential:
        _ENGINE_POTENTIALS[name] = function
        return function

    return register


def router_potential(name: str) -> Callable[[RouterPotential], RouterPotential]:
    """Register a potential over the router's table under `name`."""

    def register(function: RouterPotential) -> RouterPotential:
        _ROUTER_POTENTIALS[name] = function
        return function

    return register


def engine_potentials() -> list[str]:
    """Names that `shaping=` of the engine environment takes."""
    return sorted(_ENGINE_POTENTIALS)


def router_potentials() -> list[str]:
    """Names that `shaping=` of the routing environment takes."""
    return sorted(_ROUTER_POTENTIALS)


def find_engine_potential(name: str) -> EnginePotential:
    """The engine potential called `name`.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in _ENGINE_POTENTIALS:
        raise ValueError(f"unknown shaping {name!r}; choose None or one of {engine_potentials()}")
    return _ENGINE_POTENTIALS[name]


def find_router_potential(name: str) -> RouterPotential:
    """The router potential called `name`.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in _ROUTER_POTENTIALS:
        raise ValueError(f"unknown shaping {name!r}; choose None or one of {router_potentials()}")
    return _ROUTER_POTENTIALS[name]


@engine_potential("waiting")
def _waiting(state: IntArray, spec: EngineSpec) -> float:
    """-(waiting requests) / max_num_seqs."""
    return -float(state[EngineStateField.WAITING]) / spec.max_num_seqs


@engine_potential("backlog")
def _backlog(state: IntArray, spec: EngineSpec) -> float:
    """-(prompt tokens still to compute, running or waiting) / max_num_batched_tokens."""
    tokens = state[EngineStateField.PREFILL_TOKENS] + state[EngineStateField.WAITING_TOKENS]
    return -float(tokens) / spec.max_num_batched_tokens


@router_potential("in-flight")
def _in_flight(rows: IntArray, engines: Sequence[EngineSpec]) -> float:
    """-(requests in flight) / sum(max_num_seqs)."""
    capacity = sum(spec.max_num_seqs for spec in engines)
    return -float(rows[:, RouterRow.IN_FLIGHT].sum()) / capacity


@router_potential("imbalance")
def _imbalance(rows: IntArray, engines: Sequence[EngineSpec]) -> float:
    """-(largest - smallest share of running slots in flight) over engines that are up."""
    up = rows[:, RouterRow.ALIVE] != 0
    shares = [
        rows[i, RouterRow.IN_FLIGHT] / spec.max_num_seqs for i, spec in enumerate(engines) if up[i]
    ]
    return float(min(shares) - max(shares)) if shares else 0.0


class PotentialShaping:
    """The running potential of one episode.

    Args:
        weight: factor of the term; it must be finite.
        beta_per_s: discount rate of continuous time, 1/s; 0 for undiscounted returns.
    """

    __slots__ = ("beta_per_s", "last", "weight")

    def __init__(self, weight: float = 1.0, beta_per_s: float = 0.0) -> None:
        if not (abs(weight) < float("inf") and 0 <= beta_per_s < float("inf")):
            raise ValueError(
                f"shaping weight {weight} and rate {beta_per_s}/s must be finite, the rate >= 0"
            )
        self.weight = weight
        self.beta_per_s = beta_per_s
        self.last = 0.0

    def start(self, potential: float) -> None:
        """Begin an episode in a state of this potential."""
        self.last = potential

    def step(self, potential: float, dt_s: float) -> float:
        """The shaping reward of a step of `dt_s` seconds; pass potential 0 at the end."""
        discount = exp(-self.beta_per_s * dt_s) if self.beta_per_s else 1.0
        reward = self.weight * (discount * potential - self.last)
        self.last = potential
        return reward
