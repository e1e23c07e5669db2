"""The files of a fidelity run: tables as CSV and Markdown, profiles, plots, a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.board.tables import markdown
from synergy_gym.evaluation.manifest import software, write_json
from synergy_gym.fidelity import tables
from synergy_gym.fidelity.calibration import contention
from synergy_gym.fidelity.compare import SLICE, Comparison
from synergy_gym.fidelity.plots import write_plots
from synergy_gym.fidelity.profile_text import calibration_text, processor
from synergy_gym.fidelity.store import reference_steps
from synergy_gym.latency.profile_writer import write_profile

if TYPE_CHECKING:
    import pandas as pd

DIGITS = "%.6g"


@dataclass(frozen=True, slots=True, eq=False)
class FidelityReport:
    """The tables of a fidelity run (`fidelity_tables`)."""

    cells: pd.DataFrame
    summary: pd.DataFrame
    ranking: pd.DataFrame
    agreement: pd.DataFrame
    calibration: pd.DataFrame
    episodes: pd.DataFrame

    @classmethod
    def of(cls, comparison: Comparison) -> FidelityReport:
        """All tables of a comparison."""
        cells = tables.cell_table(comparison)
        ranking = tables.fidelity_ranking(comparison)
        return cls(
            cells,
            tables.summary_table(cells),
            ranking,
            tables.agreement_table(ranking),
            tables.calibration_table(comparison),
            episode_table(comparison),
        )

    def views(self) -> list[tuple[str, pd.DataFrame]]:
        """Titles and rounded tables for people."""
        return [
            (
                "Simulated against live: absolute errors over the cells, percent",
                summary_view(self.summary),
            ),
            ("Ranking of the policies: simulated against live", agreement_view(self.agreement)),
            ("Calibration and contention (measured)", calibration_view(self)),
        ]


def episode_table(comparison: Comparison) -> pd.DataFrame:
    """One row per live episode: its steps, and how fast the machine was meanwhile."""
    import pandas as pd

    rows = []
    for played in comparison.cells:
        for repeat, episode in enumerate(played.live):
            reference = reference_steps(episode.reference)
            spread, waited = contention(reference)
            rows.append(
                {
                    "scenario": played.cell.scenario,
                    "load": played.cell.load,
                    "policy": played.policy,
                    "repeat": repeat,
                    "offered": episode.summary["offered"],
                    "finished": episode.summary["finished"],
                    "steps": len(episode.step_s),
                    "step_mean_ms": 1e3 * float(episode.step_s.mean()),
                    "probe_mean_ms": float(np.mean([step.ms for step in reference])),
                    "contention_p90_over_p10": spread,
                    "wall_over_clock": waited,
                }
            )
    return pd.DataFrame(rows)


def write_report(comparison: Comparison, out: Path, command: str) -> FidelityReport:
    """Write everything into `out`; returns the tables."""
    report = FidelityReport.of(comparison)
    out.mkdir(parents=True, exist_ok=True)
    for name in report.__slots__:
        frame = getattr(report, name)
        path = out / f"{name}.csv"
        frame.to_csv(path, index=False, float_format=DIGITS, lineterminator="\n")
    for scenario, fitted in comparison.calibrations.items():
        for found in fitted:
            path = out / "profiles" / f"{scenario}-{found.engine.name}.toml"
            write_profile(path, calibration_text(found, command, comparison.software))
    write_plots(report.cells, report.ranking, out)
    (out / "fidelity.md").write_text(text(report, comparison), encoding="utf-8")
    write_json(out / "manifest.json", _manifest(comparison, command))
    return report


def _manifest(comparison: Comparison, command: str) -> dict[str, Any]:
    worlds = {scenario: fitted for scenario, fitted in comparison.calibrations.items()}
    return {
        "command": command,
        "plan": comparison.plan.entry(),
        "rates_rps": comparison.rates_rps,
        "live": comparison.software,
        "processor": processor(),
        "engines": {name: [c.engine.name for c in fitted] for name, fitted in worlds.items()},
        "slices": SLICE,
        **software(),
    }


def text(report: FidelityReport, comparison: Comparison) -> str:
    """The tables as a page in Markdown."""
    plan = comparison.plan
    parts = [
        "# Simulated against live",
        f"vLLM {comparison.software.get('vllm')}, model {plan.options.model}, clock "
        f"`{plan.options.clock}`, {processor()}; {plan.repeats} live repeats per cell, all with "
        "the same traffic. Live figures are measured; `sim` and `matched` are simulated, the "
        "latter at the speed that the machine had in each live episode (from a reference step "
        "that runs beside it). Errors are absolute, over the cells (load and policy) of a "
        "scenario; goals are for the median cell. Load 1.0 is "
        + ", ".join(f"{rate:g} requests/s on {n}" for n, rate in comparison.rates_rps.items())
        + ".",
    ]
    parts += [f"## {title}\n\n{markdown(frame)}" for title, frame in report.views()]
    parts.append("![latencies](latency.png)\n\n![ranking](ranking.png)")
    return "\n\n".join(parts) + "\n"


def summary_view(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with few, rounded columns and verdicts."""
    import pandas as pd

    rows = []
    for row in summary.to_dict("records"):
        goal = row["goal_percent"]
        shown = {"scenario": row["scenario"], "figure": f"{row['metric']} {row['figure']}"}
        for world in ("sim", "matched"):
            middle = row[f"{world}_error_median_percent"]
            shown |= {
                f"{world} median": f"{middle:.1f}",
                f"{world} mean": f"{row[f'{world}_error_percent']:.1f}",
                f"{world} worst": f"{row[f'{world}_error_max_percent']:.1f}",
            }
        shown["live-live"] = f"{row['live_difference_percent']:.1f}"
        shown["goal"] = "" if np.isnan(goal) else f"{goal:g}"
        verdicts = [
            tables.verdict(row[f"{w}_error_median_percent"], goal) for w in ("sim", "matched")
        ]
        shown["sim / matched"] = " / ".join(verdicts) if verdicts[0] else ""
        rows.append(shown)
    return pd.DataFrame(rows)


def agreement_view(agreement: pd.DataFrame) -> pd.DataFrame:
    """Tau and regret with rounded columns and verdicts."""
    import pandas as pd

    rows = []
    for row in agreement.to_dict("records"):
        reached = row["sim_tau"] >= row["tau_goal"]
        rows.append(
            {
                "scenario": row["scenario"],
                "score": row["score"],
                "policies": row["policies"],
                "disjoint pairs": f"{row['disjoint_pairs']} of {row['all_pairs']}",
                "sim tau": f"{row['sim_tau']:.3f}",
                "matched tau": f"{row['matched_tau']:.3f}",
                "sim regret": f"{row['sim_regret']:.4f}",
                "matched regret": f"{row['matched_regret']:.4f}",
                "tau goal": f"{row['tau_goal']:g} {'reached' if reached else 'missed'}",
            }
        )
    return pd.DataFrame(rows)


def calibration_view(report: FidelityReport) -> pd.DataFrame:
    """Quality of the clocks, and the contention of calibration and live episodes."""
    import pandas as pd

    rows = []
    for row in report.calibration.to_dict("records"):
        live = report.episodes[report.episodes["scenario"] == row["scenario"]]
        rows.append(
            {
                "scenario": row["scenario"],
                "engine": row["engine"],
                "KV blocks": row["kv_blocks"],
                "held-out MAPE %": f"{row['held_out_mape_percent']:.1f}",
                "R2": f"{row['held_out_r2']:.3f}",
                "total time %": f"{row['held_out_bias_percent']:+.1f}",
                "at constant speed %": f"{row['steady_bias_percent']:+.1f}",
                "p90/p10 calibration": f"{row['contention_p90_over_p10']:.2f}",
                "p90/p10 live": f"{live['contention_p90_over_p10'].mean():.2f}",
                "probe live min..max": f"{live['probe_mean_ms'].min():.2f}.."
                f"{live['probe_mean_ms'].max():.2f} ms",
                "wall/clock": f"{live['wall_over_clock'].mean():.2f}",
            }
        )
    return pd.DataFrame(rows)
