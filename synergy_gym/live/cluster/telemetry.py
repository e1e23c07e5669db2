"""State of engines that report every iteration, as the scenario lets it reach the router.

Workers tell everything at once; intervals, delay, loss, heartbeats and scrapes of the scenario's
telemetry are applied here, by the simulator's own channels. Servers push and are scraped by
themselves: their state needs nothing of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from synergy_gym.live.cluster.episode import ClusterEpisode
from synergy_gym.live.cluster.messages import StepEnded
from synergy_gym.live.router.state import RouterState
from synergy_gym.sim.compiled.layout import ADVERT_SIZE
from synergy_gym.sim.plain.engine import Job
from synergy_gym.sim.plain.telemetry import Ended, PushChannel, ScrapeChannel
from synergy_gym.types import NS_PER_S, EngineSpec, StepReport, TelemetrySpec


class Telemetry(Protocol):
    """What happens to an engine, for those who look after its telemetry; times of the episode."""

    def routed(self, engine: int, now_ns: int) -> None:
        """A request was sent to `engine`."""

    def finished(self, engine: int, job: Job) -> None:
        """A request finished on `engine`."""

    def step(self, event: StepEnded, now_ns: int) -> None:
        """`engine` told of an iteration."""

    def health(self, engine: int, alive: bool, now_ns: int) -> None:
        """`engine` is up, or down, from now on."""

    def sync(self, now_ns: int) -> None:
        """Show the router everything that is visible at `now_ns`."""

    def last_step(self, engine: int) -> StepReport | None:
        """The last iteration that `engine` told of."""


def step_telemetry(episode: ClusterEpisode, tells_steps: bool, state: RouterState) -> Telemetry:
    """Channels for engines that tell their steps; nothing for those that do not."""
    if not tells_steps:
        return _Nothing()
    return StepTelemetry(episode.engines, episode.telemetry, episode.told, state)


class _Nothing:
    """Engines push and are scraped by themselves."""

    def routed(self, engine: int, now_ns: int) -> None:
        return

    def finished(self, engine: int, job: Job) -> None:
        return

    def step(self, event: StepEnded, now_ns: int) -> None:
        return

    def health(self, engine: int, alive: bool, now_ns: int) -> None:
        return

    def sync(self, now_ns: int) -> None:
        return

    def last_step(self, engine: int) -> StepReport | None:
        return None


class StepTelemetry:
    """The simulator's push and scrape channels, fed by real iterations.

    Args:
        engines: limits of the engines.
        spec: intervals, delay, loss and heartbeats.
        told: per engine what it says about itself at first; zeros by default.
        state: the router's table.
    """

    def __init__(
        self,
        engines: Sequence[EngineSpec],
        spec: TelemetrySpec,
        told: Sequence[Sequence[int]] | None,
        state: RouterState,
    ) -> None:
        start = [[0] * ADVERT_SIZE] * len(engines) if told is None else told
        self._state = state
        self._push = [
            PushChannel(spec, index, engine.kv_blocks, list(words))
            for index, (engine, words) in enumerate(zip(engines, start, strict=True))
        ]
        self._scrape = [ScrapeChannel(spec, engine.kv_blocks) for engine in engines]
        self._blocks = [engine.kv_blocks for engine in engines]
        self._idle = [True] * len(engines)
        self._alive = [True] * len(engines)
        self._steps: list[StepReport | None] = [None] * len(engines)
        self._seen_ns = 0

    def routed(self, engine: int, now_ns: int) -> None:
        """A request was sent to `engine`: it is not idle any more."""
        if self._idle[engine]:
            self._idle[engine] = False
            self._push[engine].work_came(now_ns)

    def finished(self, engine: int, job: Job) -> None:
        """A request finished on `engine`."""
        gaps = max(job.generated - 1, 1)
        self._scrape[engine].finished(
            job.first_token_ns - job.arrival_ns,
            (job.last_token_ns - job.first_token_ns) // gaps,
            job.last_token_ns - job.arrival_ns,
        )

    def step(self, event: StepEnded, now_ns: int) -> None:
        """An iteration ended at `now_ns`."""
        engine, gauges = event.engine, event.gauges
        # News that took longer than a look at the table cannot change what was seen there.
        now_ns = max(now_ns, self._seen_ns)
        took_ns = round(event.report.step_s * NS_PER_S)
        self._steps[engine] = replace(event.report, start_s=(now_ns - took_ns) / NS_PER_S)
        if not self._alive[engine]:
            return
        push, scrape = self._push[engine], self._scrape[engine]
        if gauges.running + gauges.waiting:
            self.routed(engine, now_ns)
        push.told = list(event.told)
        scrape.committing(now_ns)
        push.committed(now_ns, gauges, Ended(took_ns, event.report.tokens, event.predicted_ns))
        scrape.committed(gauges)
        self._idle[engine] = not gauges.running + gauges.waiting

    def health(self, engine: int, alive: bool, now_ns: int) -> None:
        """`engine` is up, or down, from now on."""
        if alive == self._alive[engine]:
            return
        now_ns = max(now_ns, self._seen_ns)
        self._alive[engine] = alive
        if alive:
            self._push[engine].came_up(now_ns)
            self._scrape[engine].came_up(now_ns, self._blocks[engine])
            self._idle[engine] = True
        else:
            self._push[engine].went_down(now_ns)
            self._scrape[engine].went_down(now_ns)

    def sync(self, now_ns: int) -> None:
        """Show the router everything that is visible at `now_ns`."""
        self._seen_ns = max(self._seen_ns, now_ns)
        for engine, (push, scrape) in enumerate(zip(self._push, self._scrape, strict=True)):
            shown, read = push.visible, scrape.visible
            push.sync(now_ns)
            scrape.sync(now_ns)
            if push.visible is not shown:
                self._state.pushed(engine, push.visible)
            if scrape.visible is not read:
                self._state.scraped(engine, scrape.visible)

    def last_step(self, engine: int) -> StepReport | None:
        """The last iteration that `engine` told of."""
        return self._steps[engine]
