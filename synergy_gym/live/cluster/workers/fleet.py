"""Worker processes as a live cluster: one vLLM engine each, under any engine policy."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from synergy_gym.live.cluster.fleet import EngineOrders, Fleet
from synergy_gym.live.cluster.messages import Patience
from synergy_gym.live.cluster.workers.messages import Begin, Start
from synergy_gym.live.cluster.workers.remote_engine import WorkerEngine


class WorkerFleet(Fleet):
    """Workers, started side by side.

    Args:
        starts: their engines, in index order.
        patience: the timeouts.
        folder: gets `engine-<i>.log`, what the workers write.
        threads: with which each of them computes.
        release: called last by `close`.
    """

    tells_steps = True

    def __init__(
        self,
        starts: Sequence[Start],
        patience: Patience,
        *,
        folder: Path,
        threads: int = 1,
        release: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(patience)
        self._release = release
        self._episodes = itertools.count(1)
        self.connections: list[WorkerEngine] = []
        try:
            self.hub.ask(self._launch(starts, folder, threads))
        except BaseException:
            self.close()
            raise

    async def _launch(self, starts: Sequence[Start], folder: Path, threads: int) -> None:
        for start in starts:
            log = folder / f"engine-{start.engine}.log"
            self.connections.append(WorkerEngine(start, self.hub, self.patience, log, threads))

    def begin(self, orders: EngineOrders) -> None:
        """Empty all engines and give each its policy; dead workers are started again.

        Raises:
            WorkerError: one does not start.
        """
        number = next(self._episodes)
        begins = [Begin(number, policy, orders.seed, orders.slos) for policy in orders.policies]
        self.hub.ask(self._begin(begins))

    async def _begin(self, begins: Sequence[Begin]) -> None:
        pairs = zip(self.connections, begins, strict=True)
        await asyncio.gather(*(engine.begin(begin) for engine, begin in pairs))

    def vocabulary(self) -> int:
        """Token ids that every model knows.

        Raises:
            RuntimeError: no episode has begun.
        """
        ready = [engine.ready for engine in self.connections]
        known = [message.vocabulary for message in ready if message is not None]
        if len(known) < len(ready):
            raise RuntimeError("a worker has not started yet; call begin() first")
        return min(known)

    def entry(self) -> dict[str, Any]:
        """Release of vLLM, and what happened to processes and policies."""
        first = self.connections[0].ready
        return {
            "vllm": "" if first is None else first.vllm,
            "restarts": [engine.restarts for engine in self.connections],
            "policy_failures": [engine.failures for engine in self.connections],
            "dropped_token_caps": [engine.dropped_caps for engine in self.connections],
        }

    def close(self) -> None:
        """End all workers; a second call does nothing."""
        if self.is_open:
            super().close()
            self._release()
