"""`synergy-gym train`: train an engine or router agent, and show what it has become."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synergy_gym.cli import output as tables

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from synergy_gym.learning.plan import TrainingPlan
    from synergy_gym.learning.run import Run

BAR = 40
"""Characters of a full bar in the printed curve."""

_Option = typer.Option
_ALGO = "ppo, maskable-ppo, dqn, qr-dqn, or another registered one."
_SCENARIO = "Scenario to train on; repeat for several. Default: four engines or two clusters."
_LOAD = "Load of training episodes; repeat for several. Default: 0.8 to 1.3."
_IMITATE = "Clone this registered policy first, e.g. lens-plus or prism-plus (ppo only)."
_AXIS = "Engine: values of one axis of the grid, e.g. budgets=0,512,2048; repeat for several."
_HYPER = "Argument of the algorithm, e.g. learning_rate=1e-4; repeat for several."
_TUNE = "First search for hyperparameters with so many trials (Optuna)."
_VARY = "Vary a knob of the worlds, e.g. output_scale=0.5:2 or slo_scale=0.8:1.5; repeat."
_EPISODE = "Traffic of a training episode in seconds; 0: as the scenario says."
_PATIENCE = "Stop after so many evaluations without a better score; 0: never."
_INTERVAL = "Engine: shortest time between two decisions in seconds; 0: every iteration."

_REWARD = "met: finished in time; lost: minus what no longer can be (default for engines)."

Kind = Annotated[str, typer.Argument(help="engine or router.")]
Out = Annotated[Path, _Option(help="Folder for agent, curve, card and checkpoint.")]
Algo = Annotated[str, _Option(help=_ALGO)]
Scenarios = Annotated[list[str] | None, _Option("--scenario", help=_SCENARIO)]
Loads = Annotated[list[float] | None, _Option("--load", help=_LOAD)]
Vary = Annotated[list[str] | None, _Option(help=_VARY)]
Timesteps = Annotated[int | None, _Option(help="Decisions in all.", min=1)]
Seed = Annotated[int | None, _Option(help="Seed of weights and exploration.", min=0)]
Name = Annotated[str | None, _Option(help="What the agent is called.")]
Resume = Annotated[bool, _Option("--resume", help="Go on with the run in --out.")]
Imitate = Annotated[str | None, _Option(help=_IMITATE)]
ImitateRounds = Annotated[int | None, _Option(help="1: cloning; more: DAgger.", min=1)]
ImitateEpisodes = Annotated[int | None, _Option(help="Per scenario, load and round.", min=1)]
CriticSteps = Annotated[int | None, _Option(help="Decisions before a cloned actor learns.", min=0)]
Tune = Annotated[int, _Option(help=_TUNE, min=0)]
TuneTimesteps = Annotated[int | None, _Option(help="Decisions per trial; a fifth by default.")]
EvalEvery = Annotated[int | None, _Option(help="Decisions between evaluations.", min=1)]
EvalLoads = Annotated[list[float] | None, _Option("--eval-load", help="Load of evaluations.")]
EvalSeeds = Annotated[int | None, _Option(help="Validation seeds per scenario and load.", min=1)]
Patience = Annotated[int | None, _Option(help=_PATIENCE, min=0)]
NumEnvs = Annotated[int | None, _Option(help="Environments side by side.", min=1)]
Interval = Annotated[float | None, _Option(help=_INTERVAL, min=0.0)]
Frames = Annotated[int | None, _Option(help="Engine: stacked observations.", min=1)]
Axes = Annotated[list[str] | None, _Option("--axis", help=_AXIS)]
EnginePolicy = Annotated[str | None, _Option(help="Router: how engines batch.")]
Hidden = Annotated[list[int] | None, _Option(help="Width of a hidden layer; repeat.", min=1)]
Prior = Annotated[list[int] | None, _Option(help="Engine: cell preferred at first; repeat.")]
Episode = Annotated[float | None, _Option(help=_EPISODE, min=0.0)]
Reward = Annotated[str | None, _Option(help=_REWARD)]
Shaping = Annotated[str | None, _Option(help="Potential added to the reward, e.g. backlog.")]
ShapingWeight = Annotated[float | None, _Option(help="Its factor.")]
Hyper = Annotated[list[str] | None, _Option(help=_HYPER)]
Baselines = Annotated[list[str] | None, _Option("--baseline", help="Policy to show beside it.")]


def train(
    kind: Kind,
    out: Out,
    algo: Algo = "ppo",
    scenario: Scenarios = None,
    load: Loads = None,
    vary: Vary = None,
    timesteps: Timesteps = None,
    seed: Seed = None,
    name: Name = None,
    resume: Resume = False,
    imitate: Imitate = None,
    imitate_rounds: ImitateRounds = None,
    imitate_episodes: ImitateEpisodes = None,
    critic_steps: CriticSteps = None,
    tune: Tune = 0,
    tune_timesteps: TuneTimesteps = None,
    eval_every: EvalEvery = None,
    eval_load: EvalLoads = None,
    eval_seeds: EvalSeeds = None,
    patience: Patience = None,
    num_envs: NumEnvs = None,
    interval_s: Interval = None,
    frames: Frames = None,
    axis: Axes = None,
    engine_policy: EnginePolicy = None,
    hidden: Hidden = None,
    prior: Prior = None,
    episode_s: Episode = None,
    reward: Reward = None,
    shaping: Shaping = None,
    shaping_weight: ShapingWeight = None,
    hyper: Hyper = None,
    baseline: Baselines = None,
) -> None:
    """Train an agent in simulation and write it as agent.npz, which any command takes as a policy.

    Prints how the best agent does on validation seeds before and after training, beside registered
    policies. Played afterwards with `--engine-policy agent:OUT/agent.npz` or `--router-policy`.
    """
    given = dict(locals())
    plan = _plan(given)
    with _reporter() as reporter:
        if tune:
            plan = _tuned(plan, out, tune, tune_timesteps, reporter)
        run = _trained(plan, out, resume, reporter)
    tables.show(curve_table(run))
    tables.show(result_table(run))
    tables.note(f"written to {out}; play it as agent:{run.agent_path}")


_RENAMED = {
    "algo": "algorithm",
    "scenario": "scenarios",
    "load": "loads",
    "eval_load": "eval_loads",
    "baseline": "baselines",
}
_NOT_PLANNED = ("out", "resume", "tune", "tune_timesteps", "axis", "hyper", "vary")


def _plan(given: dict[str, Any]) -> TrainingPlan:
    """The plan that the options say, with the defaults of its kind."""
    from synergy_gym.learning.algorithms import find_algorithm
    from synergy_gym.learning.plan import BASELINES, REWARDS, SCENARIOS, TrainingPlan, default_name

    kind = given["kind"]
    if kind not in SCENARIOS:
        raise ValueError(f"cannot train a {kind!r}; choose one of {', '.join(SCENARIOS)}")
    values: dict[str, Any] = {"scenarios": SCENARIOS[kind], "baselines": BASELINES[kind]}
    values["name"] = default_name(kind, given["algo"])
    values["reward"] = "met" if given["shaping"] else REWARDS[kind]
    values |= find_algorithm(given["algo"], kind).fixed
    for option, value in given.items():
        if option not in _NOT_PLANNED and value is not None and value != []:
            plain = tuple(value) if isinstance(value, list) else value
            values[_RENAMED.get(option, option)] = plain
    if given["axis"]:
        values["grid"] = _grid(given["axis"])
    values["vary"] = dict(_bounds(text) for text in given["vary"] or ())
    values["hyper"] = dict(_assigned(text, "--hyper") for text in given["hyper"] or ())
    return TrainingPlan(**values)


def _assigned(text: str, option: str) -> tuple[str, Any]:
    """`KEY=VALUE` with a JSON value, or a text where it is none."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"{option} {text!r}: write KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _bounds(text: str) -> tuple[str, tuple[float, ...]]:
    name, _, values = text.partition("=")
    try:
        return name, tuple(float(value) for value in values.split(":"))
    except ValueError:
        raise ValueError(f"--vary {text!r}: write KNOB=LOWEST:HIGHEST") from None


def _grid(axes: list[str]) -> Any:
    from synergy_gym.actions import AXES, DEFAULT_GRID, EngineGrid

    values = DEFAULT_GRID.to_dict()
    for text in axes:
        name, _ = _assigned(text, "--axis")
        if name not in AXES:
            raise ValueError(f"--axis {text!r}: a grid has the axes {', '.join(AXES)}")
        items = text.partition("=")[2].split(",")
        values[name] = [_assigned(f"{name}={item}", "--axis")[1] for item in items]
    return EngineGrid.from_dict(values)


def _tuned(
    plan: TrainingPlan, out: Path, trials: int, timesteps: int | None, reporter: Reporting
) -> TrainingPlan:
    from synergy_gym.learning.tuning import tune

    each = max(plan.timesteps // 5, 1) if timesteps is None else timesteps
    return tune(plan, out, trials=trials, timesteps=each, reporter=reporter)


def _trained(plan: TrainingPlan, out: Path, resume: bool, reporter: Reporting) -> Run:
    from synergy_gym.learning.training import train as run_training

    try:
        return run_training(plan, out, resume=resume, command=training_command(), reporter=reporter)
    except KeyboardInterrupt:
        tables.error(f"interrupted; the same command with --resume goes on from {out}")
        raise typer.Exit(130) from None


def training_command() -> str:
    """The command as typed, without what does not change the agent: --out and --resume."""
    from synergy_gym.cli.output import command_line

    words = [word for word in shlex.split(command_line()) if word != "--resume"]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return shlex.join(word for word in words if not word.startswith("--out="))


class Reporting:
    """A progress bar and notes on stderr."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def advance(self, done: int, total: int, text: str) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total, description=text)

    def note(self, text: str) -> None:
        """One line, above the bar."""
        if self._bar.disable:
            tables.note(text)
        else:
            self._bar.console.print(text)

    def evaluated(self, timesteps: int, score: float) -> None:
        """Nothing more than the note that was printed."""


@contextmanager
def _reporter() -> Iterator[Reporting]:
    with tables.progress() as bar:
        yield Reporting(bar, bar.add_task("preparing", total=None))


def curve_table(run: Run) -> Table:
    """The learning curve as bars."""
    rows = [
        (
            f"{int(row['timesteps']):,}",
            tables.percent(row["score"]),
            "█" * round(BAR * row["score"]),
        )
        for row in run.progress.curve
    ]
    title = f"{run.plan.name}: requests that met every SLO, on validation seeds (simulated)"
    return tables.plain(title, ("decisions", "attainment", ""), rows)


def result_table(run: Run) -> Table:
    """Before and after training beside the baselines, per scenario and load."""
    first = run.progress.curve[0]
    best = max(run.progress.curve, key=lambda row: row["score"])
    cells = [name for name in first if "@x" in name]
    shown: list[tuple[str, float, Any]] = [
        (policy, found.mean, found.cells) for policy, found in run.baselines().items()
    ]
    before = f"{run.plan.name}, " + ("cloned" if run.plan.imitate else "untrained")
    shown += [(before, first["score"], first)]
    shown += [(f"{run.plan.name}, trained", best["score"], best)]
    rows = [
        (policy, tables.percent(mean), *(tables.percent(values[cell]) for cell in cells))
        for policy, mean, values in shown
    ]
    return tables.plain("Attainment (simulated)", ("policy", "mean", *cells), rows)
