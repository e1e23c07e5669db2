"""How well models of the step time predict, and how fast they follow a world that changes.

Command (from the repository root; SYNERGY_GYM_DATA names the folder that holds
`measurements/profiling_steps.csv`):

    SYNERGY_GYM_DATA=../shared .venv/bin/python -m experiments.step_time.model_adaptation

Accuracy: every form on measured steps (each page predicted from the others) and on simulated
steps (another episode than the one learned), decode-only and mixed steps apart. Adaptation: step
streams recorded under `vllm-v1` are replayed into the online models. After a cold start, a GPU
throttled by 30 % and a change of the traffic: how many steps until the mean error of the next 50
predictions is at most 5 %? Last, the settings of the authors' own adaptation experiments.

Writes `accuracy.csv`, `adaptation.csv`, `windows.csv`, `updates.csv`, `curves.csv`, two plots and
`manifest.json` to `results/model_adaptation/`. The column `kind` tells published, measured and
simulated figures apart.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from experiments.common import figure, parser, play, save, show, write_csv, write_manifest
from experiments.step_time.fit_step_latency import INPUT, input_file
from experiments.step_time.model_accuracy import (
    Row,
    measured_rows,
    published_rows,
    score,
    simulated_rows,
)
from experiments.step_time.step_streams import Stream, record, replay, single_engine
from synergy_gym.evaluation.report.png import COLOURS
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.models.online import (
    ContextAwareModel,
    OnlineSaturationModel,
    StepModel,
    online_settings,
)
from synergy_gym.latency.models.published import published_advert, published_model
from synergy_gym.latency.models.saturation_fit import Form, SaturationModel
from synergy_gym.policies.lens import RampLens
from synergy_gym.scenario import load_scenario
from synergy_gym.types import EngineSpec, FloatArray

NAME = "model_adaptation"
WINDOW_STEPS = 50
TARGET = 0.05
FINAL_STEPS = 1000
LOAD, CHANGE_S, HORIZON_S = 0.8, 150.0, 300.0
SCENARIOS = ("chat-h100", "flowgpt-8xh100", "chat-a6000")
SEEDS = (2000, 2001, 2002)
"""Validation seeds."""
FLOWGPT = "flowgpt-8xh100-llama8b"
CURVE_POINTS = 60
NOISE_SD = 0.03
NEVER = 10**9
"""More rows than any stream has: the fallback 8.7 + 0.0215*S answers for ever."""


Make = Callable[[EngineSpec], StepModel]
"""A model for an engine."""


# --- the models ----------------------------------------------------------------------------------


def _stored_model(spec: EngineSpec, form: Form) -> SaturationModel | None:
    return published_model(spec.gpu, spec.model, form)


def _richest(spec: EngineSpec) -> SaturationModel:
    """The authors' stored model of the latest form: six, else eight, else stable (QwQ-32B)."""
    found = (_stored_model(spec, form) for form in ("six", "eight", "stable"))
    return next(model for model in found if model is not None)


def _stored(preset: str, form: Form | None = None, **changes: object) -> Make:
    """A preset that starts from a stored model and is fitted in that model's form."""

    def make(spec: EngineSpec) -> StepModel:
        model = _stored_model(spec, form) if form else _richest(spec)
        assert model is not None
        return OnlineSaturationModel(online_settings(preset, form=model.form, **changes), model)

    return make


def _cold(preset: str, **changes: object) -> Make:
    return lambda spec: OnlineSaturationModel(online_settings(preset, **changes))


def _context(spec: EngineSpec) -> StepModel:
    advert = published_advert(spec)
    assert advert is not None
    return ContextAwareModel(advert.step_ms)


MODELS: MappingProxyType[str, Make] = MappingProxyType(
    {
        "linear fallback": _cold("env", mode="online", buffer=NEVER, min_samples=NEVER),
        "pretrained stable (env)": _stored("env", form="stable"),
        "online eight (adaptive-2025)": _cold("adaptive-2025"),
        "online six (multi-timescale-2026)": _cold("multi-timescale-2026"),
        "online stable (multi-timescale-2026)": _cold("multi-timescale-2026", form="stable"),
        "online six, short window": _cold("short-window-2026"),
        "online six, long window": _cold("long-window-2026"),
        "hybrid (multi-timescale-2026)": _stored("multi-timescale-2026", mode="hybrid"),
        "partial fit (partial-fit-2026)": _stored("partial-fit-2026"),
        "context-aware, generic prior": lambda spec: ContextAwareModel(),
        "context-aware, published prior": _context,
    }
)


SHOWN = (
    "pretrained stable (env)",
    "online eight (adaptive-2025)",
    "online six (multi-timescale-2026)",
    "online six, short window",
    "partial fit (partial-fit-2026)",
    "context-aware, published prior",
    "context-aware, generic prior",
)
"""The models of the plot."""
KEY = ("case", "scenario")


# --- adaptation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One piece of work: `kind` names a function of `WORK`."""

    kind: str
    scenario: str
    seed: int = 0

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.kind, self.scenario, self.seed or "") if part)


def rolling(errors: FloatArray) -> FloatArray:
    """Mean error of the `WINDOW_STEPS` predictions from each step on (shorter by the window)."""
    sums = np.concatenate([[0.0], np.cumsum(errors)])
    return np.asarray((sums[WINDOW_STEPS:] - sums[:-WINDOW_STEPS]) / WINDOW_STEPS)


def adaptation(errors: FloatArray) -> Row:
    """What the errors of one segment (from its change to its end) say.

    `steps`: steps before the first window of 50 predictions whose mean error is at most 5 %.
    NaN: never. One window may get there by chance (the linear fallback does on an H100), so
    `share_within` is the share of all windows of the segment within 5 %.
    """
    means = rolling(errors)
    within = means <= TARGET
    return {
        "steps": float(np.argmax(within)) if within.any() else np.nan,
        "share_within": float(np.mean(within)),
        "first_window_mape": 100 * float(means[0]),
        "final_mape": 100 * float(errors[-FINAL_STEPS:].mean()),
    }


def _fits(model: StepModel, start_s: float = 0.0, stop_s: float = np.inf) -> float:
    """Refits between two times; NaN for a model that learns from every step."""
    if not isinstance(model, OnlineSaturationModel):
        return np.nan
    times = [entry.now_s for entry in model.history if entry.kind in ("fit", "partial")]
    return float(sum(start_s <= time <= stop_s for time in times))


def adapt(
    stream: Stream, spec: EngineSpec, head: Row, segments: dict[str, tuple[int, int]]
) -> list:
    """Replay a stream into every model; one row per model and segment, with its curve."""
    rows = []
    for name, make in MODELS.items():
        model = make(spec)
        errors = np.abs(replay(model, stream) / stream.ms - 1)
        for case, (start, stop) in segments.items():
            fits = _fits(model, stream.end_s[start], stream.end_s[stop - 1])
            row = head | {"case": case, "model": name, "segment_steps": stop - start}
            row |= adaptation(errors[start:stop]) | {"fits": fits}
            rows.append(row | {"curve": _curve(errors[start:stop])})
    return rows


def _curve(errors: FloatArray) -> list[tuple[int, float]]:
    """Rolling MAPE (%) by the steps that the window ends after, evenly spaced on a log axis."""
    means = rolling(errors)
    ends = np.geomspace(WINDOW_STEPS, len(means) + WINDOW_STEPS - 1, CURVE_POINTS)
    return [(int(end), 100 * float(means[int(end) - WINDOW_STEPS])) for end in ends]


def throttled(cell: Cell) -> list[Row]:
    """Cold start, and a GPU that loses 30 % of its speed in the middle of the episode."""
    world = single_engine(cell.scenario, HORIZON_S, slow_at_s=CHANGE_S)
    stream = record(world, LOAD, cell.seed)
    change = stream.index_at(CHANGE_S)
    segments = {"cold start": (0, change), "throttled by 30 %": (change, len(stream))}
    head = {"kind": "simulated", "scenario": cell.scenario, "seed": cell.seed}
    return adapt(stream, world.engines[0], head, segments)


def new_traffic(cell: Cell) -> list[Row]:
    """Another scenario's traffic on the same engine from the middle of the stream on."""
    before, after = cell.scenario.split(" -> ")
    first = single_engine(before, CHANGE_S)
    other = load_scenario(after)
    second = replace(first, traffic=other.traffic, rate_rps=other.rate_rps / len(other.engines))
    stream = record(first, LOAD, cell.seed)
    change = len(stream)
    stream = stream.then(record(second, LOAD, cell.seed))
    head = {"kind": "simulated", "scenario": cell.scenario, "seed": cell.seed}
    return adapt(stream, first.engines[0], head, {"new traffic": (change, len(stream))})


def saturated(cell: Cell) -> list[Row]:
    """A cold start where the world is T(B, S): the stable form with the published parameters."""
    world = single_engine(cell.scenario, CHANGE_S)
    spec = world.engines[0]
    truth = _stored_model(spec, "stable")
    assert truth is not None
    recorded = record(world, LOAD, cell.seed)
    noise = 1 + NOISE_SD * np.random.default_rng(cell.seed).standard_normal(len(recorded))
    ms = truth.predict_many_ms(*recorded.table[:, :2].T) * noise
    stream = Stream(recorded.steps, ms, np.cumsum(ms) / 1e3)
    name = f"{cell.scenario}, timed by T(B,S)"
    head = {"kind": "simulated", "scenario": name, "seed": cell.seed}
    return adapt(stream, spec, head, {"cold start": (0, len(stream))})


# --- the authors' own adaptation experiments -----------------------------------------------------

SETTINGS: MappingProxyType[str, tuple[Make, float]] = MappingProxyType(
    {  # with the published P50 E2E in s, 30 to 90 s of the authors' rerun of 2026
        "offline": (_stored("env", "six"), 3.43),
        "adaptive": (MODELS["online six (multi-timescale-2026)"], 3.67),
        "long window": (MODELS["online six, long window"], 3.71),
        "short window": (MODELS["online six, short window"], 4.08),
        "native (no LENS)": (MODELS["linear fallback"], 4.72),
    }
)
SPAN_S, ROUND_S = (30, 90), 10


@dataclass
class AdaptiveLens(RampLens):
    """LENS with the step model of one of `SETTINGS`, in the six-parameter form."""

    setting: str = "adaptive"
    form = "six"

    def _start_model(self, spec: EngineSpec) -> OnlineSaturationModel:
        model = SETTINGS[self.setting][0](spec)
        assert isinstance(model, OnlineSaturationModel)
        return model


def windows(cell: Cell) -> list[Row]:
    """1xH100, Llama-3.1-8B, FlowGPT at 5 requests/s, 30 to 90 s: model error and E2E under LENS.

    Errors are those of each model on one and the same stream of `vllm-v1`; E2E is the mean over
    the rounds of 10 s of the median of their arrivals, with that model inside LENS.
    """
    world = replace(single_engine(cell.scenario, float(SPAN_S[1])), rate_rps=5.0)
    stream = record(world, 1.0, cell.seed)
    part = slice(stream.index_at(SPAN_S[0]), len(stream))
    rows = []
    for setting, (make, published_s) in SETTINGS.items():
        predicted = replay(make(world.engines[0]), stream)
        figures = score(stream.ms[part], predicted[part], stream.decode_only[part])
        policy = "vllm-v1" if setting.startswith("native") else AdaptiveLens(setting=setting)
        requests = evaluate(world, policy, seed=cell.seed, record_itl=False).requests
        requests = requests[requests.arrival_s.between(*SPAN_S)]
        rounds = requests.groupby(requests.arrival_s // ROUND_S).e2e_s.median()
        row: Row = {"kind": "simulated", "setting": setting, "seed": cell.seed}
        row |= {"r2": figures["r2"], "mape_percent": figures["mape_percent"]}
        row |= {"p50_e2e_s": rounds.mean(), "published_p50_e2e_s": published_s}
        rows.append(row)
    return rows


def partial_updates(cell: Cell) -> list[Row]:
    """FlowGPT at 3, 5, 3 requests/s, 120 s each: partial fits against the static model."""
    world = single_engine(cell.scenario, 120.0)
    parts = [record(replace(world, rate_rps=rate), 1.0, cell.seed) for rate in (3.0, 5.0, 3.0)]
    stream = parts[0].then(parts[1]).then(parts[2])
    stored = _stored_model(world.engines[0], "six")
    rows = []
    for label, changes in {"partial fit": {}, "static": {"eval_only": True}}.items():
        settings = online_settings("partial-fit-2026", **changes)
        model = OnlineSaturationModel(settings, stored)
        replay(model, stream)
        for entry in model.history:
            assert entry.model is not None
            values = {name: getattr(entry.model, name) for name in ("w1", "t_b", "t_s")}
            row = {"kind": "simulated", "model": label, "seed": cell.seed, "now_s": entry.now_s}
            rows.append(row | {"r2": entry.r2, "mape": entry.mape} | values)
    return rows


# --- tables --------------------------------------------------------------------------------------


def _median(values: pd.Series) -> float:
    return float(values.fillna(np.inf).median())


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds: median of the steps (never: infinite), means of the rest."""
    groups = rows.groupby([*KEY, "model"], sort=False)
    return groups.agg(
        steps=("steps", _median),
        share_within=("share_within", "mean"),
        first_window_mape=("first_window_mape", "mean"),
        final_mape=("final_mape", "mean"),
        fits=("fits", "mean"),
    ).reset_index()


def _curves(played: list[Row]) -> pd.DataFrame:
    """Rolling MAPE of the first seed: a row per case and place, a column per model shown."""
    rows = [
        {name: row[name] for name in KEY} | {"model": row["model"], "steps": end, "mape": value}
        for row in played
        if row["seed"] == SEEDS[0] and row["model"] in SHOWN
        for end, value in row["curve"]
    ]
    keys = [*KEY, "steps"]
    long = pd.DataFrame(rows).drop_duplicates([*keys, "model"])
    return long.pivot(index=keys, columns="model", values="mape")[list(SHOWN)].reset_index()


def _update_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and range of R2 over the updates, and the variation of what was refitted."""
    published = [
        {"kind": "published", "model": "partial fit", "updates": 24, "r2": 0.932, "r2_low": 0.913,
         "r2_high": 0.953, "cv_w1": 0.123, "cv_t_b": 0.337, "cv_t_s": 0.096},
        {"kind": "published", "model": "static", "r2": 0.038, "r2_low": -0.26, "r2_high": 0.428},
    ]  # fmt: skip
    for name, part in rows.groupby("model", sort=False):
        row: Row = {"kind": "simulated", "model": name, "updates": len(part) / part.seed.nunique()}
        row |= {"r2": part.r2.mean(), "r2_low": part.r2.min(), "r2_high": part.r2.max()}
        spread = {f"cv_{c}": part[c].std() / part[c].mean() for c in ("w1", "t_b", "t_s")}
        published.append(row | (spread if name == "partial fit" else {}))
    return pd.DataFrame(published)


# --- plots ---------------------------------------------------------------------------------------


def plot_curves(curves: pd.DataFrame, path: Path) -> None:
    """Rolling MAPE after each change, one panel per scenario and case."""
    panels = list(curves.groupby(list(KEY)))
    columns = 5
    chart, axes = figure(-(-len(panels) // columns), columns, width=3.2, height=2.6)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, ((case, scenario), part) in zip(axes.flat, panels, strict=False):
        for number, name in enumerate(SHOWN):
            axis.plot(part.steps, part[name], linewidth=1.1, label=name, color=COLOURS[number])
        axis.axhline(100 * TARGET, color="black", linewidth=0.6)
        axis.set(xscale="log", yscale="log", ylim=(1.5, 300), title=f"{case}\n{scenario}")
        axis.set_xlabel(f"steps (end of a window of {WINDOW_STEPS})")
    axes[0][0].set_ylabel("MAPE of the window (%)")
    chart.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(chart, path)


def plot_accuracy(accuracy: pd.DataFrame, path: Path) -> None:
    """MAPE of decode-only and mixed steps per model, one panel per source."""
    tables = accuracy[accuracy.mape_mixed.notna()]
    panels = list(tables.groupby("source", sort=False))
    chart, axes = figure(-(-len(panels) // 2), 2, width=5.2, height=2.9)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (source, part) in zip(axes.flat, panels, strict=False):
        place = np.arange(len(part))
        for shift, column, label in (
            (-0.2, "mape_decode", "decode-only"),
            (0.2, "mape_mixed", "mixed"),
        ):
            axis.barh(place + shift, part[column], 0.38, label=label)
        axis.set_yticks(place, part.model, fontsize=7)
        axis.invert_yaxis()
        axis.set(xscale="log", xlim=(1, 100), title=f"{part.kind.iloc[0]}\n{source}")
        axis.set_xlabel("MAPE (%)")
    axes[0][0].legend(loc="lower right")
    save(chart, path)


# --- the whole -----------------------------------------------------------------------------------

WORK: MappingProxyType[str, Callable[[Cell], list[Row]]] = MappingProxyType(
    {
        "accuracy": lambda cell: simulated_rows(cell.scenario),
        "throttled": throttled,
        "new traffic": new_traffic,
        "saturated": saturated,
        "windows": windows,
        "updates": partial_updates,
    }
)


def work(cell: Cell) -> list[Row]:
    """The rows of one cell; what the models warn of shows in the rows."""
    logging.getLogger("synergy_gym.latency").setLevel(logging.ERROR)
    return WORK[cell.kind](cell)


def cells(quick: bool) -> list[Cell]:
    """What is played; the quick version has one seed and one scenario."""
    scenarios, seeds = (SCENARIOS[:1], SEEDS[:1]) if quick else (SCENARIOS, SEEDS)
    mixes = ("chat-h100 -> summarization-h100", "summarization-h100 -> chat-h100")
    found = [Cell("accuracy", name) for name in scenarios]
    for seed in seeds:
        found += [Cell("throttled", name, seed) for name in scenarios]
        found += [Cell("new traffic", mix, seed) for mix in (mixes[:1] if quick else mixes)]
        found += [Cell("saturated", name, seed) for name in scenarios[:2]]
        found += [Cell("windows", FLOWGPT, seed), Cell("updates", FLOWGPT, seed)]
    return found


def write(out: Path, data: Path, tables: dict[str, pd.DataFrame], seeds: int) -> None:
    """CSV files, plots and the manifest."""
    for name, table in tables.items():
        write_csv(table, out / f"{name}.csv")
    plot_curves(tables["curves"], out / "adaptation.png")
    plot_accuracy(tables["accuracy"], out / "accuracy.png")
    write_manifest(
        out,
        [load_scenario(name) for name in (*SCENARIOS, "summarization-h100", FLOWGPT)],
        ["vllm-v1"],
        [],
        inputs={INPUT: hashlib.sha256(data.read_bytes()).hexdigest()},
        load=LOAD,
        seeds=list(SEEDS[:seeds]),
        window_steps=WINDOW_STEPS,
    )


def run(data: Path, quick: bool, processes: int) -> dict[str, pd.DataFrame]:
    """All tables by name."""
    plan = cells(quick)
    rows: dict[str, list[Row]] = {cell.kind: [] for cell in plan}
    for cell, result in zip(plan, play(work, plan, processes), strict=True):
        rows[cell.kind] += result
    accuracy = [*published_rows(), *measured_rows(data), *rows["accuracy"]]
    played = rows["throttled"] + rows["new traffic"] + rows["saturated"]
    return {
        "accuracy": pd.DataFrame(accuracy),
        "adaptation": pd.DataFrame(played).drop(columns="curve"),
        "windows": pd.DataFrame(rows["windows"]),
        "updates": pd.DataFrame(rows["updates"]),
        "curves": _curves(played),
    }


def main() -> None:
    """Command line."""
    options = parser("Accuracy and adaptation of models of the step time.", NAME).parse_args()
    data = input_file()
    tables = run(data, options.quick, options.processes)
    show("Accuracy (R2; MAPE in percent)", tables["accuracy"])
    show("Adaptation (simulated; MAPE in percent)", _summary(tables["adaptation"]))
    groups = tables["windows"].drop(columns=["kind", "seed"]).groupby("setting", sort=False)
    show("Authors' settings, FlowGPT at 5 requests/s (simulated)", groups.mean().reset_index())
    show("Partial fits, 3-5-3 requests/s", _update_summary(tables["updates"]))
    write(options.out, data, tables, 1 if options.quick else len(SEEDS))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
