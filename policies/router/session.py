"""Session affinity on a consistent-hash ring (vLLM production-stack, `SessionRouter`).

Karger et al., "Consistent Hashing and Random Trees", STOC 1997. A session whose engine is
down goes to the next one on the ring, which is what removing the node does there. Requests
without a session go to the engine with the fewest requests in flight (ties: lowest index);
production-stack takes the lowest request rate of a window. Information class: router.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import SLO, ClusterView, EngineSpec, RequestView, RouterRule


@router_policy("session", information="router")
@dataclass
class Session(RouterPolicy):
    """Every session stays on the engine that its hash names.

    `virtual_nodes` is how many points of the ring each engine owns.
    """

    virtual_nodes: int = 160

    def __post_init__(self) -> None:
        """Refuse a ring without points."""
        if self.virtual_nodes < 1:
            raise ValueError(f"session: virtual_nodes is {self.virtual_nodes}; use 1 or more")

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Build the ring."""
        ring = sorted(
            (_position(f"engine {index} {spec.name} {node}"), index)
            for index, spec in enumerate(engines)
            for node in range(self.virtual_nodes)
        )
        self._positions = [position for position, _ in ring]
        self._owners = [owner for _, owner in ring]

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The first engine on the ring, from the session's position on, that is up."""
        if request.session < 0:
            return cluster.argmin(cluster.in_flight)
        alive = cluster.alive.tolist()
        place = bisect_left(self._positions, _position(f"session {request.session}"))
        while not alive[self._owners[place % len(self._owners)]]:
            place += 1
        return self._owners[place % len(self._owners)]

    def rule(self) -> RouterRule:
        """The same in the simulator."""
        positions = self._positions
        return RouterRule(
            "session",
            owners=tuple(self._owners),
            place_of=lambda session: bisect_left(positions, _position(f"session {session}")),
        )


def _position(key: str) -> int:
    # Python's own hash of text differs between processes.
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
