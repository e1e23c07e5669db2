"""Which simulator an environment steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.readiness import simulator_for

MOST_PLAIN_S = 60.0
"""Episodes that take longer in plain Python wait for the compiled simulator."""


def simulator_class(backend: str) -> Callable[..., Any]:
    """The simulator behind a backend name: `reference` (plain Python) or `sim`.

    `sim` is the compiled one, and until that is compiled the plain one.

    Raises:
        ValueError: an unknown backend.
    """
    if backend == "sim":
        return _soonest
    if backend == "reference":
        return ReferenceSimulator
    raise ValueError(f"backend={backend!r} is unknown; choose 'sim', 'reference' or 'vllm'")


def _soonest(**episode: Any) -> Any:
    """A simulator that is stepped: nobody waits for the whole episode."""
    return simulator_for(episode["workload"], MOST_PLAIN_S)(**episode)
