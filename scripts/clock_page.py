"""The generated tables of docs/clocks.md: profiles, and how they were held against measurements.

Read from the packaged profiles and from `experiments/results/`; `update_readme.py` puts them in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from synergy_gym.evaluation.board.tables import markdown
from synergy_gym.latency.profiles import list_profiles, load_profile

RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"
VALIDATION = RESULTS / "validate_clocks"
REPLAY = RESULTS / "replay_8xh100"
LATENCIES = {"ttft_s": "TTFT", "tpot_ms": "TPOT", "tpot_s": "TPOT", "e2e_s": "E2E"}


def profiles() -> str:
    """One row per packaged profile: what it is of, how far it was checked, fit error."""
    rows = []
    for name in list_profiles():
        profile = load_profile(name)
        file = profile.file
        errors = file.fit_error_percent
        rows.append(
            {
                "profile": f"[`{name}`](../synergy_gym/latency/profiles/{name}.toml)",
                "model": profile.model.rpartition("/")[2],
                "GPU": profile.gpu,
                "checked against": profile.tier_label,
                "sustained": f"{file.sustained.factor:g}" if file.sustained else "-",
                "fit error, %": "-" if errors is None else _worst(errors.model_dump()),
            }
        )
    return _table(pd.DataFrame(rows))


def _worst(errors: Mapping[str, float]) -> str:
    return " / ".join(f"{errors[kind]:.1f}" for kind in ("decode", "prefill", "mixed", "small"))


def cells() -> str:
    """Labelled vLLM deployments: the rows that goals are set on."""
    table = _read(VALIDATION / "cells.csv")
    chosen = table[table.labelled & (table.engine == "vllm") & (table.sustained == "fitted")]
    return _errors(chosen, {"gpu": "GPU", "family": "family", "precision": "weights",
                            "gpus": "TP", "goal_percent": "goal", "within": "median within",
                            "p90_within": "P90 within 12"})  # fmt: skip


def other_cells() -> str:
    """TRT-LLM, and vLLM rows whose loop and sampling nobody recorded, under every variant."""
    table = _read(VALIDATION / "cells.csv")
    table = table[(table.sustained == "fitted") & ~(table.labelled & (table.engine == "vllm"))]
    table = table.assign(
        variant=table["loop"] + ", " + table.sampling + table.labelled.map({True: "", False: " ?"})
    )
    return _errors(table, {"engine": "engine", "gpu": "GPU", "family": "family",
                           "precision": "weights", "gpus": "TP", "variant": "variant"})  # fmt: skip


def totals() -> str:
    """The same by engine and kind of model."""
    return _errors(_read(VALIDATION / "totals.csv"),
                   {"engine": "engine", "kind": "model", "gpus": "TP"})  # fmt: skip


def _errors(table: pd.DataFrame, keys: Mapping[str, str]) -> str:
    """Keys, then rows, bias, median and P90 of the absolute error; verdicts last."""
    last = [key for key in keys if key in ("goal_percent", "within", "p90_within")]
    first = [key for key in keys if key not in last]
    shown = table[[*first, "rows", "bias_percent", "median_percent", "p90_percent", *last]].copy()
    for name in ("bias_percent", "median_percent", "p90_percent"):
        sign = "+" if name == "bias_percent" else ""
        shown[name] = shown[name].map(f"{{:{sign}.1f}}".format)
    shown = shown.astype({key: object for key in last}).fillna("-").replace("", "-")
    names = {"bias_percent": "bias, %", "median_percent": "median, %", "p90_percent": "P90, %"}
    return _table(shown.rename(columns={**keys, **names}))


def rank() -> str:
    """Kendall's tau beside that of the two dummies."""
    table = _read(VALIDATION / "rank.csv").rename(
        columns={"tau_tpot_ms": "tau", "tau_dummy_tp": "tau of 1/TP",
                 "tau_dummy_bandwidth": "tau of 1/(TP x bandwidth)"}
    )  # fmt: skip
    for name in table.columns[3:]:
        table[name] = table[name].map("{:.2f}".format)
    return _table(table)


def mlenergy() -> str:
    """Median inter-token latency of models that the sampler was not fitted on."""
    return _errors(_read(VALIDATION / "mlenergy_cells.csv"), {"model": "model", "gpu": "GPU"})


def runs() -> str:
    """Replayed 8xH100 runs: errors of the quantiles in percent, by what the clock has seen."""
    whole = _read(REPLAY / "comparison.csv")
    steady = whole[whole.window.isin(["steady", "first 300 s"]) & whole.sustained]
    table = pd.concat([steady, _read(REPLAY / "rounds.csv")])
    wide = _quantiles(table, ["run", "policy", "coefficients"])
    return _table(wide.rename(columns={"policy": "simulated as", "coefficients": "clock"}))


def single_run() -> str:
    """The run on one RTX PRO 6000."""
    return _table(_quantiles(_read(VALIDATION / "runs.csv"), ["run"]))


def _quantiles(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row per key: errors at P50 / P90 / P99 of each latency."""
    rows = []
    for key, part in table.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True))
        for metric, own in part.groupby("metric", sort=False):
            errors = own.set_index("quantile").error_percent
            row[f"{LATENCIES[str(metric)]}, %"] = " / ".join(
                f"{errors[q]:+.1f}" for q in ("P50", "P90", "P99")
            )
        rows.append(row)
    return pd.DataFrame(rows)


def contrasts() -> str:
    """Differences between policies, simulated against measured."""
    table = _read(VALIDATION / "contrasts_summary.csv")
    error = table["mean absolute error"].map("{:.1f}".format) + " " + table.unit
    table["mean absolute error"] = error
    return _table(table.drop(columns="unit"))


BLOCKS: Mapping[str, Callable[[], str]] = {
    "profiles": profiles, "cells": cells, "other-cells": other_cells, "totals": totals,
    "rank": rank, "mlenergy": mlenergy, "runs": runs, "single-run": single_run,
    "contrasts": contrasts,
}  # fmt: skip


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


def _table(table: pd.DataFrame) -> str:
    return markdown(table).rstrip()
