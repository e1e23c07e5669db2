"""Training from a plan to a folder with an agent, its curve and its card."""

from __future__ import annotations

from pathlib import Path

from synergy_gym.learning.algorithms import find_algorithm
from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.learning.report import write_report
from synergy_gym.learning.run import Reporter, Run


def train(
    plan: TrainingPlan,
    folder: str | Path,
    *,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> Run:
    """Carry out a plan.

    The same plan gives the same agent, byte for byte, on one machine, also when it was interrupted
    and resumed. An interruption leaves the last checkpoint, the best agent and the curve.

    Args:
        plan: what is to be trained.
        folder: where everything goes; see `synergy_gym.learning.run`.
        resume: go on with the run that the folder holds.
        command: as typed, for card and manifest.
        reporter: is told how it goes.

    Returns:
        The run, with `progress` and the paths of its files.

    Raises:
        ValueError: the plan does not fit the algorithm, or the folder holds another run.
    """
    algorithm = find_algorithm(plan.algorithm, plan.kind)
    algorithm.check(plan)
    if plan.imitate and not algorithm.imitates:
        raise ValueError(
            f"{algorithm.name} has no distribution over actions to clone {plan.imitate!r} with; "
            "use --algo ppo or maskable-ppo with --imitate"
        )
    if plan.prior and (plan.kind == "router" or not algorithm.imitates):
        raise ValueError("a prior needs an engine's grid and an actor: use --algo ppo")
    run = Run(plan, Path(folder), resume=resume, command=command, reporter=reporter)
    run.baselines()
    try:
        if not run.done:
            algorithm.train(run)
    finally:
        if run.progress.curve:
            write_report(run)
    return run
