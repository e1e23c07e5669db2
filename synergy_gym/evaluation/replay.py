"""Play recorded decisions again: no policy is asked, so it works on every platform."""

from __future__ import annotations

from typing import Any

from synergy_gym.evaluation.decision_log import DecisionLog, DecisionLogError, Replay
from synergy_gym.evaluation.jobs import Job, episode_row, job_observers
from synergy_gym.evaluation.runner import episode_result, observed_simulator
from synergy_gym.sim.build import build_simulator
from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.simulation import Simulation


def replayed_row(job: Job, log: DecisionLog) -> dict[str, Any]:
    """The columns of `results.csv` after the key, from recorded decisions.

    Traffic and step noise come from the job's seed, as they did when the decisions were taken.

    Raises:
        DecisionLogError: the decisions do not fit this episode.
        ScenarioError, ValueError: the job names a world that does not exist.
    """
    world = job.world()
    if len(log.engines) != len(world.engines):
        raise DecisionLogError(
            f"decisions of {len(log.engines)} engines, but {job.scenario} has {len(world.engines)}"
        )
    observers = job_observers(job)
    sim = build_simulator(
        world,
        load=job.load,
        seed=job.seed,
        rules=log.rules,
        auto_route=len(world.engines) == 1,
        record_itl=True,
        cls=observed_simulator(Simulator, observers),
    )
    _play(sim, Replay(log))
    manifest = {"scenario_hash": world.hash()}
    return episode_row(episode_result(world, sim, {}, manifest, True, observers))


def _play(sim: Simulation, replay: Replay) -> None:
    while (point := sim.advance()) != DONE:
        try:
            if point == BATCH:
                sim.batch(replay.batch(sim.point_engine))
            else:
                sim.route(replay.route())
        except ValueError as error:
            raise DecisionLogError(f"at {sim.now_ns / 1e9:.6f} s: {error}") from None
    replay.check_finished()
