"""A router policy in front of a cluster whose table the test fills in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from synergy_gym.policies import make_router_policy
from synergy_gym.types import (
    NS_PER_S,
    ClusterView,
    CompletionView,
    EngineSpec,
    Outcome,
    RequestView,
    RouterRow,
)

BLOCK = 16


class Cluster:
    """Engines with 16 slots, a budget of 1,000 tokens and 100 KV blocks; all of them up."""

    def __init__(self, policy: str, engines: int = 3) -> None:
        self.specs = tuple(
            EngineSpec(f"e{i}", "g", "m", "p", 16, 1000, 8192, 100, block_size=BLOCK)
            for i in range(engines)
        )
        self.rows = np.zeros((engines, len(RouterRow)), np.int64)
        self.rows[:, RouterRow.ALIVE] = 1
        self.now_s = 0.0
        self.rng = np.random.default_rng(11)
        self.policy: Any = make_router_policy(policy)
        self.policy.reset(self.rng, self.specs, ())

    def set(self, column: RouterRow, *values: float) -> None:
        """One value per engine."""
        self.rows[:, column] = values

    def publish(self, *models: Sequence[float]) -> None:
        """One step-latency model per engine, milliseconds."""
        first, last = RouterRow.PUSH_BASE_FS, RouterRow.PUSH_FLOOR_FS
        self.rows[:, first : last + 1] = np.round(np.array(models) * 1e12)

    def view(self, session: tuple[int, float] = (-1, np.inf)) -> ClusterView:
        """What the router sees; `session` is (engine, age in seconds)."""
        return ClusterView(
            now_ns=round(self.now_s * NS_PER_S),
            engines=self.specs,
            rows=self.rows,
            session_engine=session[0],
            session_age_s=session[1],
            rng=self.rng,
            information=self.policy.information,
        )

    def route(
        self,
        prompt: int = 100,
        *,
        session: tuple[int, float] = (-1, np.inf),
        blocks: Sequence[int] = (),
        expected: float | None = None,
    ) -> int:
        """Where a request goes."""
        request = RequestView(
            prompt,
            self.now_s,
            expected_output_tokens=expected,
            block_hashes=np.array(blocks, np.int64),
        )
        choice: int = self.policy.route(request, self.view(session))
        return choice

    def shares(self, draws: int = 3000) -> list[float]:
        """Share of equal requests that every engine gets."""
        counts = np.bincount([self.route() for _ in range(draws)], minlength=len(self.specs))
        return [round(float(count) / draws, 3) for count in counts]

    def finish(
        self, engine: int, tokens: int, tpot_s: float = 0.0, outcome: Outcome = Outcome.FINISHED
    ) -> None:
        """An answer of that many tokens ends."""
        e2e_s = 0.5 + tpot_s * (tokens - 1)
        self.policy.observe(CompletionView(self.now_s, engine, -1, 9, tokens, 0.5, e2e_s, outcome))
