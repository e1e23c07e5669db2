"""What does model error cost LENS? Its step model perfect, fitted, and as published.

    nice .venv/bin/python -m experiments.step_time.model_error

LENS plans with SynergySched's T(B,S). All figures are simulated, in two kinds of worlds:

    perfect     the world is T(B,S) itself (clock `saturation`, or `saturation-six` for lens-6p)
    fitted      the world is the measured clock; T(B,S) of the same form is fitted to its steps
    published   the world is the measured clock; T(B,S) is what the authors published

From perfect to fitted the form is wrong (no context, no mixed batches, no noise), from fitted to
published the parameters too. vllm-v1, which needs no model, plays in every world. Worlds differ in
speed, so each has its own load 1.0: where vllm-v1 + round-robin attain 90 %. What counts is LENS's
lead over vllm-v1 within one world.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from experiments import common
from synergy_gym.evaluation.board.suites import ENGINE_SCENARIOS
from synergy_gym.evaluation.capacity import calibrate_rate
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.models.online import OnlineSaturationModel, online_settings
from synergy_gym.latency.models.published import published_model
from synergy_gym.latency.models.saturation_fit import Form, SaturationModel, fit_saturation
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.lens import Lens
from synergy_gym.policies.registry import make_engine_policy
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import EngineSpec, StepReport

BASELINE = "vllm-v1"
ROUTER = "round-robin"
SCENARIOS = (*ENGINE_SCENARIOS, "flowgpt-8xh100")
LENS = ("lens-ref", "lens-guarded", "lens-e2e", "lens-6p")
PERFECT_CLOCKS: Mapping[Form, str] = MappingProxyType(
    {"stable": "saturation", "six": "saturation-six"}
)
MODELS = ("perfect", "fitted", "published")
LOADS = (0.8, 1.0, 1.2)
SEEDS = 3
HORIZON_S, WARMUP_S = 100.0, 30.0
CALIBRATION_SEEDS = 3
TRAINED_ON = ("vllm-v1", "lens-ref", "lens-guarded")
"""The policies whose steps the fitted models see, on training seeds at loads 0.8 and 1.0."""
QUICK: dict[str, Any] = {"scenarios": ("chat-h100",), "seeds": 1, "loads": (0.8, 1.0)}


@dataclass(frozen=True)
class Cell:
    """One episode; `load` counts from the world's own load 1.0."""

    scenario: str
    clock: str
    policy: str
    kind: str
    model: SaturationModel | None
    load: float
    seed: int
    rate_rps: float

    def __str__(self) -> str:
        where = f"{self.scenario}@{self.clock} load {self.load:g} seed {self.seed}"
        return f"{where} {self.policy} {self.kind}"


@lru_cache
def world(name: str, clock: str) -> Scenario:
    """The scenario with that clock and short episodes."""
    scenario = load_scenario(name).with_clock(clock)
    return replace(scenario, horizon_s=HORIZON_S, warmup_s=WARMUP_S)


def published(name: str, form: Form) -> SaturationModel | None:
    """The authors' model of the scenario's only kind of engine, if there is one."""
    ((gpu, model),) = {(engine.gpu, engine.model) for engine in load_scenario(name).engines}
    return published_model(gpu, model, form)


def form_of(policy: str) -> Form:
    """The form of T(B,S) that a LENS policy plans with."""
    made = make_engine_policy(policy)
    assert isinstance(made, Lens)
    return made.form


def rate(cell: tuple[str, str]) -> float:
    """Requests/s at load 1.0 of a (scenario, clock)."""
    scenario = world(*cell)
    seeds = scenario.validation_seeds[:CALIBRATION_SEEDS]
    return calibrate_rate(scenario, seeds=seeds, tolerance=0.01).rate_rps


# --- step models -----------------------------------------------------------------------------


def recording(policy: str, steps: list[StepReport]) -> EnginePolicy:
    """The policy, which appends every step that it is told of to `steps`."""
    base = make_engine_policy(policy)

    class Recorder(type(base)):  # type: ignore[misc]
        """Decides like its base class, and is asked even where that has a rule."""

        def observe(self, step: StepReport) -> None:
            """Note the step."""
            steps.append(step)
            super().observe(step)

        def rule(self) -> None:
            """No rule: be asked."""

    return Recorder(**base.parameters())


def steps_of(name: str, policies: Sequence[str], loads: Sequence[float], seed: int) -> pd.DataFrame:
    """Steps of the measured world: sequences, tokens, step_ms, decode_only."""
    steps: list[StepReport] = []
    scenario = world(name, "measured")
    for policy, load in product(policies, loads):
        evaluate(scenario, recording(policy, steps), ROUTER, load, seed, record_itl=False)
    columns = {
        "sequences": [step.sequences for step in steps],
        "tokens": [step.tokens for step in steps],
        "step_ms": [1e3 * step.step_s for step in steps],
        "decode_only": [step.prefill_tokens == 0 for step in steps],
    }
    frame = pd.DataFrame(columns)
    return frame[frame.tokens > 0]


def fitted(name: str) -> dict[Form, SaturationModel]:
    """T(B,S) fitted to steps of the measured world, per form that has a published model."""
    seed, models = load_scenario(name).train_seeds[0], {}
    steps = steps_of(name, TRAINED_ON, (0.8, 1.0), seed)
    for form in PERFECT_CLOCKS:
        known = published(name, form)
        if known is not None:
            scales = (known.b_scale, known.s_scale)
            columns = (steps.sequences, steps.tokens, steps.step_ms)
            models[form] = fit_saturation(form, *columns, scales=scales).model
    return models


def accuracy(cell: tuple[str, dict[Form, SaturationModel]]) -> list[dict[str, Any]]:
    """Rows of accuracy.csv: both models on steps of LENS that no fit has seen."""
    name, models = cell
    steps = steps_of(name, ("lens-guarded",), (1.0,), load_scenario(name).train_seeds[1])
    rows = []
    for form, model in models.items():
        for kind, used in (("fitted", model), ("published", published(name, form))):
            assert used is not None
            for part, chosen in (
                ("all", steps),
                ("decodes only", steps[steps.decode_only]),
                ("with prefill", steps[~steps.decode_only]),
            ):
                key = {"scenario": name, "form": form, "model": kind, "steps": part}
                rows += [key | scores(used, chosen)] if len(chosen) else []
    return rows


def scores(model: SaturationModel, steps: pd.DataFrame) -> dict[str, float]:
    """Number of steps, MAPE in percent, bias in percent and R2 of a model on steps."""
    predicted = model.predict_many_ms(steps.sequences, steps.tokens)
    measured = steps.step_ms.to_numpy(float)
    relative = (predicted - measured) / measured
    spread = ((measured - measured.mean()) ** 2).sum()
    return {
        "count": len(steps),
        "mape_percent": 100 * float(np.abs(relative).mean()),
        "bias_percent": 100 * float(relative.mean()),
        "r2": 1 - float(((predicted - measured) ** 2).sum() / spread),
    }


def with_model(policy: str, model: SaturationModel) -> EnginePolicy:
    """A LENS policy that plans with `model` and never updates it."""
    base = make_engine_policy(policy)

    class Given(type(base)):  # type: ignore[misc]
        """Decides like its base class."""

        def _start_model(self, spec: EngineSpec) -> OnlineSaturationModel:
            settings = online_settings("env", form=model.form, mode="pretrained")
            return OnlineSaturationModel(settings, model)

    return Given(**base.parameters())


# --- episodes --------------------------------------------------------------------------------


def play(cell: Cell) -> dict[str, Any]:
    """One row of episodes.csv."""
    scenario = world(cell.scenario, cell.clock)
    policy = cell.policy if cell.model is None else with_model(cell.policy, cell.model)
    load = cell.load * cell.rate_rps / scenario.rate_rps
    result = evaluate(scenario, policy, ROUTER, load, cell.seed, record_itl=False)
    names = ("offered", "slo_attainment", "ttft_attainment", "tpot_attainment", "e2e_attainment")
    times = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "e2e_p99_s")
    return {
        "scenario": cell.scenario,
        "clock": cell.clock,
        "policy": cell.policy,
        "model": cell.kind,
        "load": cell.load,
        "rate_rps": cell.load * cell.rate_rps,
        "seed": cell.seed,
        **{name: result.summary[name] for name in (*names, *times)},
        "log_hash": result.log_hash,
    }


def line_up(
    name: str, models: Mapping[Form, SaturationModel], policies: Sequence[str]
) -> Iterator[tuple[str, str, str, SaturationModel | None]]:
    """Every (clock, policy, kind of model, model) of a scenario."""
    for clock in ("measured", *(PERFECT_CLOCKS[form] for form in models)):
        yield clock, BASELINE, "none", None
    for policy in policies:
        form = form_of(policy)
        if form in models:
            known = published(name, form)
            yield PERFECT_CLOCKS[form], policy, "perfect", known
            yield "measured", policy, "fitted", models[form]
            yield "measured", policy, "published", known


# --- tables ----------------------------------------------------------------------------------


def table(episodes: pd.DataFrame, metric: str) -> pd.DataFrame:
    """LENS's lead over vllm-v1 in its own world, and what the error of the model costs.

    Per scenario and policy: mean of `metric` over loads and seeds of vllm-v1 and of LENS in the
    perfect, the fitted and the published case (percent), the leads over vllm-v1 (points), and
    `cost`: lead with the perfect model less lead with the published one, with the 95 %
    bootstrap interval of the mean over (load, seed) cells.
    """
    rows = []
    keys = ["scenario", "clock", "load", "seed"]
    base = episodes[episodes.policy == BASELINE].set_index(keys)[metric]
    lens = episodes[episodes.policy != BASELINE].set_index(keys)
    lens = lens.assign(lead=100 * (lens[metric] - base.loc[lens.index]))
    for (scenario, policy), part in lens.groupby(["scenario", "policy"], sort=False):
        leads = part.reset_index().pivot_table("lead", ["load", "seed"], "model")[list(MODELS)]
        shares = 100 * part.groupby("model")[metric].mean()
        cost = leads["perfect"] - leads["published"]
        low, high = common.paired_interval(cost.to_list())
        row: dict[str, Any] = {"metric": metric, "scenario": scenario, "policy": policy}
        row |= {model: round(shares[model], 1) for model in MODELS}
        row |= {f"lead, {model}": round(leads[model].mean(), 1) for model in MODELS}
        rows.append(row | {"cost": cost.mean(), "cost_low": low, "cost_high": high})
    return pd.DataFrame(rows).round({"cost": 1, "cost_low": 1, "cost_high": 1})


COLOURS_OF = dict(zip(MODELS, ("#009E73", "#0072B2", "#D55E00"), strict=True))


def plot(episodes: pd.DataFrame, summary: pd.DataFrame) -> Any:
    """Lead over vllm-v1 per scenario and policy: perfect, fitted, published."""
    names = list(dict.fromkeys(summary.scenario))
    chart, panels = common.figure(-(-len(names) // 3), min(3, len(names)), height=2.5)
    for axes, name in zip(panels.flat, names, strict=False):
        part = summary[summary.scenario == name]
        for shift, model in enumerate(MODELS):
            places = np.arange(len(part)) + 0.27 * (shift - 1)
            label = model if name == names[0] else None
            axes.bar(places, part[f"lead, {model}"], 0.25, color=COLOURS_OF[model], label=label)
        axes.axhline(0, color="0.3", lw=0.8)
        axes.set_xticks(np.arange(len(part)), [p.removeprefix("lens-") for p in part.policy])
        axes.grid(axis="x", visible=False)
        axes.set_title(name)
    for axes in list(panels.flat)[len(names) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("lead over vllm-v1, points")
    chart.legend(loc="outside right upper", title="LENS's model")
    chart.suptitle("SLO attainment of LENS less that of vllm-v1 in the same world (simulated)")
    return chart


def main() -> None:
    """Command line."""
    options = common.parser("What does model error cost LENS?", "model_error")
    options.add_argument("--policies", nargs="+", default=LENS, help="LENS policies")
    given = options.parse_args()
    size = QUICK if given.quick else {"scenarios": SCENARIOS, "seeds": SEEDS, "loads": LOADS}
    names: Sequence[str] = size["scenarios"]
    models = dict(zip(names, common.play(fitted, names, given.processes), strict=True))
    scored = common.play(accuracy, list(models.items()), given.processes)
    lines = [(n, *line) for n in names for line in line_up(n, models[n], given.policies)]
    worlds = list(dict.fromkeys((name, clock) for name, clock, *_ in lines))
    rates = dict(zip(worlds, common.play(rate, worlds, given.processes), strict=True))
    cells = [
        Cell(name, clock, policy, kind, model, load, seed, rates[name, clock])
        for name, clock, policy, kind, model in lines
        for load in size["loads"]
        for seed in load_scenario(name).test_seeds[: size["seeds"]]
    ]
    episodes = pd.DataFrame(common.play(play, cells, given.processes))
    write(
        given.out, episodes, pd.DataFrame([row for rows in scored for row in rows]), models, rates
    )


def write(
    out: Path,
    episodes: pd.DataFrame,
    scored: pd.DataFrame,
    models: Mapping[str, Mapping[Form, SaturationModel]],
    rates: Mapping[tuple[str, str], float],
) -> None:
    """Write the result files and print the tables."""
    summary, e2e = table(episodes, "slo_attainment"), table(episodes, "e2e_attainment")
    common.write_csv(episodes, out / "episodes.csv")
    common.write_csv(pd.concat([summary, e2e]), out / "table.csv")
    common.write_csv(scored, out / "accuracy.csv")
    common.save(plot(episodes, summary), out / "model_error.png")
    common.write_manifest(
        out,
        [world(*key) for key in rates],
        [BASELINE, *dict.fromkeys(episodes[episodes.policy != BASELINE].policy)],
        [ROUTER],
        rates_rps={f"{name}@{clock}": value for (name, clock), value in rates.items()},
        fitted={f"{n} {f}": asdict(m) for n, of in models.items() for f, m in of.items()},
        episodes=len(episodes),
    )
    common.show("The step models on steps of the measured clock (simulated)", scored)
    common.show("LENS with a perfect, a fitted and the published model (simulated)", summary)
    common.show("The same by E2E latency alone, as the paper judges (simulated)", e2e)


if __name__ == "__main__":
    main()
