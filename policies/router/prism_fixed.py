"""PRISM (SynergySched, arXiv 2509.23384) without its known defects; see `policies/prism.py`.

Capacity in physical tokens/s; tokens routed since the last push count as pending (a later version
of the authors' router does that); a term for this router's own requests in flight (their diary
names one, normalised by tanh, without its formula or scale: here 1 - tanh(n / 24), 24 being the
requests per engine at which they once held further ones back); random ties. Each is a parameter.
Information class: pushed, router.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from synergy_gym.policies.prism import Prism
from synergy_gym.policies.registry import router_policy


@router_policy("prism-fixed", information=("router", "pushed"))
@dataclass
class PrismFixed(Prism):
    """PRISM's sum in physical units, compensated, with requests in flight, ties at random."""

    capacity_units: Literal["code", "physical"] = "physical"
    compensation: bool = True
    in_flight_weight: float = 1.0
    random_ties: bool = True
