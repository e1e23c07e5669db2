"""Verdicts follow the rules, and the effects are what their formulas say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.paper import ablation as paper_ablation
from experiments.paper import claims as paper_claims
from experiments.paper import heterogeneous as paper_heterogeneous
from experiments.paper import warmup as paper_warmup
from experiments.paper.verdicts import Claim, judge


@pytest.mark.parametrize(
    ("simulated", "published", "interval", "verdict"),
    [
        (30.0, 40.0, (20.0, 38.0), "reproduced"),
        (20.0, 40.0, (), "reproduced"),
        (19.9, 40.0, (), "in part"),
        (19.9, float("nan"), (), "reproduced"),
        (30.0, 40.0, (-1.0, 60.0), "not reproduced"),
        (2.0, 40.0, (), "not reproduced"),
        (-2.0, 40.0, (), "not reproduced"),
        (-2.1, 40.0, (), "contradicted"),
        (-9.0, 40.0, (-20.0, 1.0), "not reproduced"),
        (3.0, -4.0, (1.0, 5.0), "reproduced"),
    ],
)
def test_rules(
    simulated: float, published: float, interval: tuple[float, ...], verdict: str
) -> None:
    assert judge(simulated, published, 2.0, *interval) == verdict


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(ValueError, match="no simulated effect"):
        judge(float("nan"), 1.0, 2.0)


def test_effects_of_a_2x2_design() -> None:
    y = pd.DataFrame([[90.0, 70.0, 50.0, 40.0]], columns=list(paper_ablation.DESIGN))
    effects = paper_ablation.effects_of(y).iloc[0]
    assert dict(effects) == {
        "engine": 35.0, "router": 15.0, "interaction": 10.0, "whole": 50.0, "synergy": 10.0,
    }  # fmt: skip
    floor = pd.DataFrame([[0.0, 0.0, 30.0, 40.0]], columns=list(paper_ablation.DESIGN))
    assert paper_ablation.effects_of(floor).iloc[0].interaction == 10.0
    assert paper_ablation.effects_of(floor).iloc[0].synergy == -40.0


def test_published_interactions() -> None:
    table = paper_ablation.published_effects(("summarization", "flowgpt-q", "flowgpt-t"))
    found = table[table.effect == "interaction"].set_index("dataset").points
    assert found["flowgpt-q"] == pytest.approx(96.29 - 75.88 - 28.84 + 14.16)
    assert found["flowgpt-t"] == pytest.approx(80.47 - 69.43 - 64.11 + 29.09)
    assert found["all"] == pytest.approx(found.drop("all").mean())


def test_intervals_come_from_the_seeds() -> None:
    index = pd.MultiIndex.from_product(
        [["matched"], ["a", "b"], [1, 2, 3]], names=["set", "dataset", "seed"]
    )
    values = [[60 + s, 50, 50, 40] for s in (0, 3, 6, 100, 103, 106)]
    y = pd.DataFrame(values, index, list(paper_ablation.DESIGN), dtype=float)
    rows = paper_ablation.summarise(y).set_index(["dataset", "effect"])
    assert rows.loc[("a", "interaction"), "points"] == pytest.approx(3.0)
    assert rows.loc[("all", "interaction"), "points"] == pytest.approx(53.0)
    low, high = rows.loc[("all", "interaction"), ["interval_low", "interval_high"]]
    assert 50.0 <= low < 53.0 < high <= 56.0


def test_throughput_ratios_and_their_bounds() -> None:
    frame = pd.DataFrame(
        [
            {"dataset": "d", "rate_rps": rate, "line": line, "attainment_pct_simulated": y,
             "attainment_pct_published": np.nan}
            for line, curve in {"PRISM": (100, 100, 80), "Weighted": (100, 80, 60),
                                "Latency-Based": (70, 60, 50)}.items()
            for rate, y in zip((2.0, 4.0, 6.0), curve, strict=True)
        ]
    )  # fmt: skip
    table = paper_heterogeneous.capacities(frame).set_index("line")
    assert table.capacity_rps.to_dict() == {"PRISM": 5.0, "Weighted": 3.0, "Latency-Based": 0.0}
    assert table.prism_ratio["Weighted"] == pytest.approx(5 / 3)
    assert (table.prism_ratio["Latency-Based"], table.at_least["Latency-Based"]) == (2.5, True)


def halves(early: tuple[float, float], late: tuple[float, float]) -> pd.DataFrame:
    rows = [
        {"dataset": "flowgpt-q", "rate_rps": 14.0, "line": line, "early_p50_s_simulated": a,
         "late_p50_s_simulated": b, "early_p50_s_published": a, "late_p50_s_published": b}
        for line, a, b in zip(("LENS+PRISM", "Sarathi RR"), early, late, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_flip_is_behind_first_and_ahead_later() -> None:
    flips = halves(early=(12.0, 10.0), late=(7.0, 8.5))
    (row,) = paper_warmup.ranking(flips)[lambda t: t.figures == "simulated"].to_dict("records")
    assert row["flips"]
    assert (row["early_order"], row["late_order"]) == (
        "Sarathi RR < LENS+PRISM", "LENS+PRISM < Sarathi RR",
    )  # fmt: skip
    claim = paper_claims._comes_from_behind(flips)
    assert claim.simulated == pytest.approx(1.5)
    assert claim.verdict == "reproduced"
    never = paper_claims._comes_from_behind(halves(early=(12.0, 10.0), late=(9.0, 8.5)))
    assert never.simulated == pytest.approx(-0.5)
    assert never.verdict == "contradicted"


def test_end_to_end_claims(tmp_path: Path) -> None:
    names = ("LENS+PRISM", "Sarathi RR", "Sarathi Session", "vLLM RR", "vLLM Session")
    shares = dict(zip(names, (90.0, 60.0, 50.0, 30.0, 20.0), strict=True))
    rows = []
    for name in ("published", "matched"):
        for rate in (14, 15):
            for line, share in shares.items():
                rows.append(
                    {"set": name, "dataset": "flowgpt-q", "published_rate_rps": rate,
                     "rate_rps": rate, "line": line, "attainment_pct_simulated": share,
                     "attainment_pct_published": share,
                     "e2e_p50_s_simulated": 100 - share}
                )  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "end_to_end.csv", index=False)
    gain, dataset, latency = paper_claims.end_to_end(tmp_path)
    assert gain.simulated == pytest.approx(90 - 40)
    assert (dataset.simulated, dataset.interval_low, dataset.interval_high) == pytest.approx(
        (30.0, 30.0, 30.0)
    )
    assert dataset.later == pytest.approx(13.0 - 75.2)
    assert latency.simulated == pytest.approx(75.0)
    assert {gain.verdict, dataset.verdict, latency.verdict} == {"reproduced"}


def test_the_table_holds_the_verdicts() -> None:
    claims = [
        Claim("a", "one", "points", 10.0, 8.0, 2.0),
        Claim("b", "two", "points", 1.0, -8.0, 2),
    ]
    table = paper_claims.frame(claims)
    assert table.verdict.tolist() == ["reproduced", "contradicted"]
    assert {"claim", "published", "later", "simulated", "verdict"} <= set(table.columns)
