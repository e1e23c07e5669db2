"""PRISM as its authors submitted it (SynergySched, arXiv 2509.23384; see `policies/prism.py`).

Weights 1, capacity in the authors' normalised unit, no compensation of what the router has sent
since the last push, first engine on ties. That unit makes the load term saturate: one pending
prompt of 4,000 tokens takes it from 1 to 0.006 on an H100 with QwQ-32B. A predicted step of 50 ms,
which their engines aim at under load, takes the latency term to 0. Information class: pushed,
router.
"""

from __future__ import annotations

from dataclasses import dataclass

from synergy_gym.policies.prism import Prism
from synergy_gym.policies.registry import router_policy


@router_policy("prism-ref", information=("router", "pushed"))
@dataclass
class PrismRef(Prism):
    """The highest sum of latency, load, mode and session affinity, all as pushed."""
