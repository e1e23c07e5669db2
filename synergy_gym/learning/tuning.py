"""Hyperparameters by search (Optuna): short trainings, then the best arguments for the long one.

The study lives in `FOLDER/tune/study.db` (SQLite), so that an interrupted search goes on; what
each trial trained is beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from synergy_gym.learning.algorithms import Algorithm, find_algorithm
from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.learning.run import Quiet, Reporter, Stopped, write_csv
from synergy_gym.learning.training import train

STARTUP_TRIALS = 4
"""Trials that are drawn at random and never pruned."""


class _TrialReporter(Quiet):
    """Tells Optuna every score, and ends trials that are worse than the median."""

    def __init__(self, trial: Any, outer: Reporter) -> None:
        self._trial, self._outer = trial, outer

    def advance(self, done: int, total: int, text: str) -> None:
        self._outer.advance(done, total, f"trial {self._trial.number}: {text}")

    def evaluated(self, timesteps: int, score: float) -> None:
        self._trial.report(score, timesteps)
        if self._trial.should_prune():
            raise Stopped


def tune(
    plan: TrainingPlan,
    folder: str | Path,
    *,
    trials: int,
    timesteps: int,
    reporter: Reporter | None = None,
) -> TrainingPlan:
    """Search until there are `trials` finished trials; returns the plan with the best arguments.

    Args:
        plan: what is to be trained; its own `hyper` is kept where the search has no say.
        folder: of the run; the study goes into its subfolder `tune`.
        trials: how many in all, with those of an earlier call.
        timesteps: decisions per trial.
        reporter: is told how it goes.

    Raises:
        ValueError: the algorithm has nothing to search, or no trial finished.
    """
    algorithm = find_algorithm(plan.algorithm, plan.kind)
    if algorithm.suggest is None:
        raise ValueError(f"{algorithm.name} has no arguments to search; leave --tune out")
    outer = reporter or Quiet()
    place = Path(folder) / "tune"
    place.mkdir(parents=True, exist_ok=True)
    study = _study(plan, place)
    while (done := len(_finished(study))) < trials:
        outer.note(f"trial {done + 1} of {trials}")
        study.optimize(_objective(plan, algorithm, place, timesteps, outer), n_trials=1)
        _write_trials(study, place / "trials.csv")
    best = study.best_trial
    outer.note(f"best of {done} trials: number {best.number}, attainment {best.value:.4f}")
    return plan.with_hyper(best.user_attrs["hyper"])


def _study(plan: TrainingPlan, place: Path) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{place / 'study.db'}"
    study = optuna.create_study(
        study_name=plan.name,
        storage=storage,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
    )
    # A resumed search must not propose again what it has tried.
    stream = [plan.seed, len(study.trials)]
    seed = int(np.random.SeedSequence(stream).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return study


def _finished(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def _objective(
    plan: TrainingPlan, algorithm: Algorithm, place: Path, timesteps: int, outer: Reporter
) -> Callable[[Any], float]:
    suggest = algorithm.suggest
    assert suggest is not None

    def objective(trial: Any) -> float:
        import optuna

        hyper = suggest(trial, plan.kind)
        trial.set_user_attr("hyper", hyper)
        short = replace(plan.with_hyper(hyper), timesteps=timesteps, baselines=(), patience=0)
        folder = place / f"trial-{trial.number:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            run = train(short, folder, reporter=_TrialReporter(trial, outer))
        except Stopped:
            raise optuna.TrialPruned from None
        return run.progress.best

    return objective


def _write_trials(study: Any, path: Path) -> None:
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "score": float("nan") if trial.value is None else trial.value,
            **{name: trial.params.get(name, "") for name in _names(study)},
        }
        for trial in _finished(study)
    ]
    write_csv(path, rows)


def _names(study: Any) -> list[str]:
    return sorted({name for trial in study.trials for name in trial.params})
