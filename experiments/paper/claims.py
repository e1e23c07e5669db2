"""SynergySched's claims, judged by stated rules from the tables that the experiments wrote.

`paper_verdicts` has the rules.

Simulated effects are those at matched load (see paper_end_to_end.py) where both exist: at the
paper's own rates the simulated cluster is not where the authors' was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.common import paired_interval
from experiments.paper import common as pc
from experiments.paper.verdicts import NAN, Claim

POINTS = 2.0
"""Tolerance of differences of attainment, percentage points."""
RELATIVE = 5.0
"""Tolerance of relative differences, percent."""
RATIO = 0.05
"""Tolerance of (throughput ratio - 1)."""
SYNERGY, RIVAL = pc.SYNERGY.label, pc.SARATHI_RR.label


# --- end to end -----------------------------------------------------------------------------


def end_to_end(folder: Path) -> list[Claim]:
    """Attainment against the baselines and E2E latency against Sarathi RR."""
    table = pd.read_csv(folder / "end_to_end.csv")
    if SYNERGY not in set(table.line):
        return []
    return [_average_gain(table), *_gain_per_dataset(table), _latency(table)]


def _wide(table: pd.DataFrame, name: str, column: str) -> pd.DataFrame:
    return table[table.set == name].pivot_table(
        index=["dataset", "published_rate_rps"], columns="line", values=column, sort=False
    )


def _lead(wide: pd.DataFrame) -> pd.Series:
    """LENS+PRISM's attainment minus the mean of the four baselines', per cell."""
    base = wide[[line for line in wide.columns if line.startswith(("Sarathi", "vLLM"))]]
    return wide[SYNERGY] - base.mean(axis=1)


def _average_gain(table: pd.DataFrame) -> Claim:
    """The headline says 43 %; the published figures give 41 points, so points are meant."""
    sets = {name: _wide(table, name, "attainment_pct_simulated") for name in table.set.unique()}
    lead = _lead(sets["matched"])
    low, high = paired_interval(lead.to_numpy())
    headline = pc.published("headline").set_index("claim").value
    return Claim(
        "a end to end",
        "LENS+PRISM attains more than the mean of four baselines (mean over workloads and rates)",
        "points",
        published=float(headline["attainment-gain"]),
        simulated=float(lead.mean()),
        tolerance=POINTS,
        interval_low=low,
        interval_high=high,
        at_published_rates=float(_lead(sets["published"]).mean()) if "published" in sets else NAN,
    )


def _gain_per_dataset(table: pd.DataFrame) -> list[Claim]:
    later = pc.published("later_measurements").set_index("line").attainment_pct
    claims = []
    for dataset in table.dataset.unique():
        part = table[table.dataset == dataset]

        def ahead(name: str, column: str, part: pd.DataFrame = part) -> pd.Series:
            wide = _wide(part, name, column)
            return wide[SYNERGY] - wide[RIVAL]

        gain = ahead("matched", "attainment_pct_simulated")
        low, high = paired_interval(gain.to_numpy())
        claims.append(
            Claim(
                "a end to end",
                f"LENS+PRISM attains more than Sarathi RR: {dataset}",
                "points",
                published=float(ahead("published", "attainment_pct_published").mean()),
                simulated=float(gain.mean()),
                tolerance=POINTS,
                interval_low=low,
                interval_high=high,
                later=later[SYNERGY] - later[RIVAL] if dataset == "flowgpt-q" else NAN,
                at_published_rates=float(ahead("published", "attainment_pct_simulated").mean()),
            )
        )
    return claims


def _latency(table: pd.DataFrame) -> Claim:
    def cut(name: str, column: str) -> float:
        wide = _wide(table, name, column)
        known = wide.replace(np.inf, np.nan).dropna(subset=[SYNERGY, RIVAL])
        return float(100 * (1 - known[SYNERGY] / known[RIVAL]).max())

    headline = pc.published("headline").set_index("claim").value
    return Claim(
        "a end to end",
        "P50 E2E falls against Sarathi RR, largest reduction of any cell",
        "%",
        published=float(headline["e2e-latency"]),
        simulated=cut("matched", "e2e_p50_s_simulated"),
        tolerance=RELATIVE,
        at_published_rates=cut("published", "e2e_p50_s_simulated"),
    )


# --- ablation -------------------------------------------------------------------------------


def ablation(folder: Path) -> list[Claim]:
    """Main effects of the layers, and whether the whole is more than its parts."""
    table = pd.read_csv(folder / "effects.csv")
    table = table[table.dataset == "all"].set_index(["figures", "effect"])
    texts = {
        "engine": "LENS raises attainment (mean over routers and workloads)",
        "router": "PRISM raises attainment (mean over engines and workloads)",
        "synergy": "the whole is more than its parts: min(interaction, LENS+PRISM - Sarathi RR)",
    }
    claims = []
    for effect, text in texts.items():
        row = table.loc[("simulated, matched rates", effect)]
        other = ("simulated, published rates", effect)
        claims.append(
            Claim(
                "b ablation",
                text,
                "points",
                published=float(table.loc[("published", effect), "points"]),
                simulated=float(row.points),
                tolerance=POINTS,
                interval_low=float(row.interval_low),
                interval_high=float(row.interval_high),
                at_published_rates=float(table.points.get(other, NAN)),
            )
        )
    return claims


# --- heterogeneous cluster ------------------------------------------------------------------


def heterogeneous(folder: Path) -> list[Claim]:
    """Attainment at the published rates, throughput at equal attainment, steady shares."""
    table = pd.read_csv(folder / "heterogeneous.csv")
    known = table[table.attainment_pct_published.notna()]
    claims = []
    for rival in ("Weighted", "Least-Loaded", "Latency-Based"):
        gaps = {}
        for figures in ("simulated", "published"):
            wide = _by_rate(known, figures)
            gaps[figures] = (wide["PRISM"] - wide[rival]).to_numpy()
        low, high = paired_interval(gaps["simulated"])
        claims.append(
            Claim(
                "c heterogeneous",
                f"PRISM (LENS engines) attains more than {rival}, mean over workloads and rates",
                "points",
                published=float(gaps["published"].mean()),
                simulated=float(gaps["simulated"].mean()),
                tolerance=POINTS,
                interval_low=low,
                interval_high=high,
            )
        )
    return [*claims, *_router_alone(table, known), *_throughput(folder), _steady_shares(folder)]


def _by_rate(table: pd.DataFrame, figures: str) -> pd.DataFrame:
    return table.pivot_table(
        index=["dataset", "rate_rps"], columns="line", values=f"attainment_pct_{figures}"
    )


def _router_alone(table: pd.DataFrame, known: pd.DataFrame) -> list[Claim]:
    """The router without LENS: all engines run Sarathi; at the published rates."""
    wide = _by_rate(table, "simulated")
    if "PRISM, Sarathi engines" not in wide:
        return []
    wide = wide.loc[_by_rate(known, "published").index]
    gap = wide["PRISM, Sarathi engines"] - wide["Weighted"]
    low, high = paired_interval(gap.to_numpy())
    return [
        Claim(
            "c heterogeneous",
            "PRISM alone (all engines Sarathi) attains more than Weighted, mean over workloads "
            "and rates",
            "points",
            published=NAN,
            simulated=float(gap.mean()),
            tolerance=POINTS,
            interval_low=low,
            interval_high=high,
        )
    ]


def _throughput(folder: Path) -> list[Claim]:
    table = pd.read_csv(folder / "capacities.csv")
    claims = []
    for rivals, text in (
        (("Weighted", "Least-Loaded", "Latency-Based"), "any of the paper's routers"),
        (("Weighted",), "Weighted"),
    ):
        part = table[table.line.isin(rivals)].set_index("figures").prism_ratio
        headline = pc.published("headline").set_index("claim").value["hetero-throughput"]
        claims.append(
            Claim(
                "c heterogeneous",
                f"throughput at 90 % attainment over {text}, largest ratio - 1 of any workload",
                "ratio - 1",
                published=float(headline - 1 if len(rivals) > 1 else part["published"].max() - 1),
                simulated=float(part["simulated"].max() - 1),
                tolerance=RATIO,
            )
        )
    return claims


def _steady_shares(folder: Path) -> Claim:
    table = pd.read_csv(folder / "shares.csv")
    spread = table.groupby("line").over_time_sd_pct.mean()
    gap = spread[["Least-Loaded", "Latency-Based"]].mean() - spread[["PRISM", "Weighted"]].mean()
    return Claim(
        "c heterogeneous",
        "Least-Loaded and Latency-Based oscillate, PRISM and Weighted do not (sd of shares, 20 s)",
        "points",
        published=NAN,
        simulated=float(gap),
        tolerance=POINTS,
    )


# --- long contexts, warm-up, later comparison -----------------------------------------------


def long_context(folder: Path) -> list[Claim]:
    """Throughput at equal attainment."""
    table = pd.read_csv(folder / "capacities.csv").set_index(["judged_by", "line"])
    if ("both limits", SYNERGY) not in table.index:
        return []
    ratio = table.ratio_to_sarathi_rr
    headline = pc.published("headline").set_index("claim").value["long-context-throughput"]
    return [
        Claim(
            "f long context",
            "throughput of LENS+PRISM at 90 % attainment over Sarathi RR, ratio - 1",
            "ratio - 1",
            published=float(headline - 1),
            simulated=float(ratio["both limits", SYNERGY] - 1),
            tolerance=RATIO,
        )
    ]


def warmup(folder: Path) -> list[Claim]:
    """The change of ranking, and what LENS trades for what."""
    halves = pd.read_csv(folder / "warmup.csv")
    claims = [_comes_from_behind(halves)] if SYNERGY in set(halves.line) else []
    online = "LENS online + PRISM"
    if {online, SYNERGY} <= set(halves.line):
        claims.append(_comes_from_behind(halves, online))
    return [*claims, *_trade(pd.read_csv(folder / "episodes.csv"))]


def _comes_from_behind(halves: pd.DataFrame, line: str = SYNERGY) -> Claim:
    """Smaller of (seconds behind Sarathi RR early, seconds ahead of it late): > 0 is a flip.

    Over the cells in which the published figures flip (FlowGPT-Q below 18 requests/s).
    """
    halves = halves[(halves.dataset == "flowgpt-q") & (halves.rate_rps < 18)]

    def flip(figures: str, name: str) -> float:
        wide = halves.pivot_table(
            index=["dataset", "rate_rps"],
            columns="line",
            values=[f"early_p50_s_{figures}", f"late_p50_s_{figures}"],
        )
        early, late = (wide[f"{half}_p50_s_{figures}"] for half in ("early", "late"))
        behind, ahead = early[name] - early[RIVAL], late[RIVAL] - late[name]
        return float(np.median(np.minimum(behind, ahead).dropna()))

    return Claim(
        "g warm-up",
        f"{line} comes from behind Sarathi RR: min(s behind early, s ahead late), median of cells",
        "s",
        published=flip("published", SYNERGY),
        simulated=flip("simulated", line),
        tolerance=0.1,
    )


def _trade(episodes: pd.DataFrame) -> list[Claim]:
    """Shares within 1 s to the first token and within 50 ms per token, FlowGPT-Q at 16, whole run.

    Published: 45 and 77 % with LENS+PRISM, 87 and 30 % with Sarathi RR.
    """
    full = episodes[(episodes.window == "full") & (episodes.rate_rps == 16)]
    full = full[full.scenario == "paper-flowgpt-q-8xh100"]
    means = full.groupby("line")[["ttft_1s", "tpot_50ms"]].mean() * 100
    if SYNERGY not in means.index:
        return []
    texts = {
        "ttft_1s": ("LENS gives TTFT away: fewer within 1 s than Sarathi RR", 87.0 - 45.0, -1),
        "tpot_50ms": ("LENS gains TPOT: more within 50 ms than Sarathi RR", 77.0 - 30.0, 1),
    }
    return [
        Claim(
            "g warm-up",
            text,
            "points",
            published=effect,
            simulated=sign * float(means.loc[SYNERGY, name] - means.loc[RIVAL, name]),
            tolerance=POINTS,
        )
        for name, (text, effect, sign) in texts.items()
    ]


def later(folder: Path) -> list[Claim]:
    """The authors' later finding, which contradicts their paper."""
    table = pd.read_csv(folder / "later.csv")
    columns = ["attainment_pct_diary", "attainment_pct_simulated"]
    part = table[table.set == "matched"].set_index("line")[columns]
    lines = {
        "RR veto + Sarathi": "an RR-veto router with plain engines attains more than LENS+PRISM",
        RIVAL: "plain round-robin and engines attain more than LENS+PRISM",
    }
    claims = []
    for line, text in lines.items():
        if {line, SYNERGY} <= set(part.index):
            gap = part.loc[line] - part.loc[SYNERGY]
            claims.append(
                Claim(
                    "later (E.9)",
                    f"{text}: FlowGPT-Q, 10 s",
                    "points",
                    published=NAN,
                    later=float(gap.attainment_pct_diary),
                    simulated=float(gap.attainment_pct_simulated),
                    tolerance=POINTS,
                )
            )
    return claims


# --- step-latency model, measured runs --------------------------------------------------------


def adaptation(folder: Path) -> list[Claim]:
    """How well T(B,S) fits (R2: the paper), what an online model is worth (the authors' diary)."""
    accuracy = pd.read_csv(folder / "accuracy.csv")
    is_fit = accuracy.model.str.startswith("T(B,S)") & accuracy.model.str.endswith("fitted")
    lowest = accuracy[is_fit & (accuracy.kind == "simulated")].r2.min()
    updates = pd.read_csv(folder / "updates.csv")
    r2 = updates[updates.kind == "simulated"].groupby("model").r2.mean()
    e2e = pd.read_csv(folder / "windows.csv").groupby("setting").p50_e2e_s.mean()
    headline = pc.published("headline").set_index("claim").value
    return [
        Claim(
            "d model",
            "T(B,S) explains the step times: lowest R2 of its fitted forms - 0.9",
            "R2",
            published=float(headline["model-r2"]) - 0.9,
            simulated=float(lowest) - 0.9,
            tolerance=0.0,
        ),
        Claim(
            "d model",
            "fitting three coefficients online beats the static model (R2 over updates)",
            "R2",
            published=0.932 - 0.038,
            simulated=float(r2["partial fit"] - r2["static"]),
            tolerance=0.05,
        ),
        Claim(
            "d model",
            "LENS with its adaptive model lowers P50 E2E against plain vLLM (one H100, 5 req/s)",
            "%",
            published=100 * (1 - 3.67 / 4.72),
            simulated=float(100 * (1 - e2e["adaptive"] / e2e["native (no LENS)"])),
            tolerance=RELATIVE,
        ),
    ]


def replayed(folder: Path) -> list[Claim]:
    """Whether steady windows of unseen measured runs are simulated within their goals.

    No claim of the paper's, but what the other rows rest on: by how much the quantile that fits
    worst stays inside its goal.
    """
    files = [folder / name for name in ("comparison.csv", "quick.csv")]
    table = pd.concat([pd.read_csv(path) for path in files if path.is_file()])
    unseen = (table.coefficients == "fitted without this run") & ~table.window.isin(
        ["whole", "first 300 s"]
    )
    judged = table[unseen & table.within_goal.isin(["yes", "no"])]
    margins = judged.goal_percent - judged.error_percent.abs()
    return [
        Claim(
            "e replay (measured)",
            f"latencies within their goals of measured ones, least margin: {policy}",
            "%",
            published=NAN,
            simulated=float(least),
            tolerance=0.0,
        )
        for policy, least in margins.groupby(judged.policy).min().items()
    ]


RULES: Mapping[str, Callable[[Path], list[Claim]]] = {
    "paper_end_to_end": end_to_end,
    "paper_ablation": ablation,
    "paper_heterogeneous": heterogeneous,
    "model_adaptation": adaptation,
    "replay_8xh100": replayed,
    "paper_long_context": long_context,
    "paper_warmup": warmup,
    "paper_later": later,
}
"""The claims that the tables of each part answer."""
SCRIPTS: Mapping[str, str] = {
    "model_adaptation": "experiments.step_time.model_adaptation",
    "replay_8xh100": "experiments.replay.eight_h100",
    **{
        name: f"experiments.paper.{name.removeprefix('paper_')}"
        for name in RULES
        if name.startswith("paper_")
    },
}
"""The module that plays each part."""


def frame(claims: Sequence[Claim]) -> pd.DataFrame:
    """The table: claim, published, later, simulated, verdict."""
    columns = ["part", "claim", "unit", "published", "later", "simulated", "interval_low",
               "interval_high", "at_published_rates", "tolerance"]  # fmt: skip
    rows = [{**asdict(claim), "verdict": claim.verdict} for claim in claims]
    return pd.DataFrame(rows, columns=[*columns, "verdict"])
