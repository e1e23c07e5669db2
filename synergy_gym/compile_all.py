"""Compiles what the first episodes and environments need: `python -m synergy_gym.compile_all`.

Machine code goes into the cache. Images of containers and shared installations do it when they are
built; otherwise a first episode starts it in the background (`sim/readiness.py`).
"""

from __future__ import annotations

from typing import Any


def main() -> None:
    """Play a moment of everything that is common."""
    import gymnasium as gym

    import synergy_gym  # noqa: F401  # registers the environments
    from synergy_gym.evaluation import evaluate
    from synergy_gym.sim.compiled.clock import load
    from synergy_gym.sim.simulator import Simulator

    load()
    short: dict[str, Any] = {"horizon_s": 1.0, "warmup_s": 0.0, "simulator": Simulator}
    evaluate("smoke-cluster", "random", "least-outstanding", **short)
    for name in ("EngineBatching", "ClusterRouting", "CrossLayer"):
        env = gym.make(f"SynergyGym/{name}-v1")
        env.reset(seed=0)
        env.action_space.seed(0)
        env.step(env.action_space.sample())
        env.close()


if __name__ == "__main__":
    main()
