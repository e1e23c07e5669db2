"""What a run leaves for people: the curve, the card, the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synergy_gym.evaluation.manifest import software, write_json
from synergy_gym.learning.run import Run
from synergy_gym.learning.scoring import Score
from synergy_gym.policies.agent_file import load_agent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIBRARIES = ("torch", "stable-baselines3", "sb3-contrib", "optuna")


def write_report(run: Run) -> None:
    """Write curve, card and manifest of what a run has found so far."""
    baselines = run.baselines()
    plot_curve(run, baselines, run.folder / "curve.png")
    (run.folder / "agent.md").write_text(card(run, baselines), encoding="utf-8")
    write_json(
        run.folder / "manifest.json",
        {
            "command": run.command,
            "plan": run.plan.to_dict(),
            "scenario_hashes": {world.label: world.hash() for world in run.plan.worlds},
            "timesteps": run.progress.timesteps,
            "best_score": run.progress.best,
            "agent_sha256": load_agent(run.agent_path).digest(),
            "libraries": {name: version(name) for name in LIBRARIES},
            **software(),
        },
    )


def version(distribution: str) -> str:
    """Version of an installed distribution, or that it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def plot_curve(run: Run, baselines: Mapping[str, Score], path: Path) -> None:
    """Validation score against decisions seen, with a line per baseline, as PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from synergy_gym.evaluation.report.png import SETTINGS

    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(7.2, 4.0), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.add_subplot(1, 1, 1), run, baselines)
        figure.legend(loc="outside right upper")
        figure.savefig(path, metadata={"Software": None})


def _draw(axes: Axes, run: Run, baselines: Mapping[str, Score]) -> None:
    from synergy_gym.evaluation.report.png import COLOURS

    rows = run.progress.curve
    steps = [row["timesteps"] for row in rows]
    axes.plot(steps, [100 * r["score"] for r in rows], "o-", ms=4, label=run.plan.name, color="k")
    for i, (policy, found) in enumerate(baselines.items()):
        axes.axhline(100 * found.mean, ls="--", label=policy, color=COLOURS[i % len(COLOURS)])
    axes.set_xlabel("decisions in training")
    axes.set_ylabel("requests that met every SLO, %")
    axes.set_title("Mean over validation seeds (simulated)")


def card(run: Run, baselines: Mapping[str, Score]) -> str:
    """The card of the best agent: how it was made, and how it did on validation seeds."""
    plan, best = run.plan, _best_row(run)
    head = [
        f"# {plan.name}",
        "",
        f"{_ABOUT[plan.kind]}, trained with {plan.algorithm} in simulation.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(run, int(best["timesteps"]))),
        "",
        "Share of requests that met every SLO, in percent, on validation seeds (simulated):",
        "",
    ]
    return "\n".join([*head, *_table(best, baselines, plan.name), ""])


_ABOUT = {"engine": "An engine agent (batching)", "router": "A router agent (routing)"}


def _facts(run: Run, timesteps: int) -> list[tuple[str, str]]:
    plan = run.plan
    listed = ", ".join
    seeds = {f"{min(w.train_seeds)}-{max(w.train_seeds)}" for w in plan.worlds}
    facts = [
        ("command", f"`{run.command}`" if run.command else "(called from Python)"),
        ("decisions", f"{timesteps:,} of {run.progress.timesteps:,} (the best on validation)"),
        ("seed", str(plan.seed)),
        ("scenarios", listed(plan.scenarios)),
        ("loads", listed(f"{load:g}" for load in plan.loads)),
        ("traffic seeds", f"train {listed(sorted(seeds))}; chosen on validation seeds"),
        ("imitated first", plan.imitate or "nothing"),
        ("sources", f"sha256 {software()['source_sha256'][:16]}"),
        ("weights", f"sha256 {load_agent(run.agent_path).digest()[:16]}"),
    ]
    own = f"every {plan.interval_s:g} s" if plan.interval_s else "every iteration"
    return [*facts, ("decides", own if plan.kind == "engine" else "every request")]


def _table(best: Mapping[str, float], baselines: Mapping[str, Score], name: str) -> list[str]:
    cells = [cell for cell in best if "@x" in cell]
    rows: list[tuple[str, float, Any]] = [(name, best["score"], best)]
    rows += [(policy, found.mean, found.cells) for policy, found in baselines.items()]
    lines = [f"| policy | mean | {' | '.join(cells)} |", "|---|" + "---:|" * (len(cells) + 1)]
    for policy, mean, values in rows:
        figures = " | ".join(f"{100 * values[cell]:.1f}" for cell in cells)
        lines.append(f"| {policy} | {100 * mean:.1f} | {figures} |")
    return lines


def _best_row(run: Run) -> dict[str, float]:
    return max(run.progress.curve, key=lambda row: row["score"])
