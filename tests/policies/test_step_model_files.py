"""Which of the authors' step-model files LENS and PRISM plan with: `step_model`."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest

from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.jobs import run_job
from synergy_gym.evaluation.submission.policy import is_registered
from synergy_gym.latency.models.published import published_model
from synergy_gym.policies import make_engine_policy, make_router_policy
from synergy_gym.policies.lens import Lens
from synergy_gym.types import EngineSpec, RouterRow
from tests.engines import H100, QWQ
from tests.policies.routing import Cluster

DEFAULT = "step_model=authors-default"
LENS = ("lens-ref", "lens-6p", "lens-guarded", "lens-e2e")
SPEC = EngineSpec("e", *QWQ, "", 256, 8192, 16384, 20_000)
UNKNOWN = dataclasses.replace(SPEC, gpu="1xGH200", model="m")


def lens(name: str, spec: EngineSpec = SPEC) -> Lens:
    policy = make_engine_policy(name)
    assert isinstance(policy, Lens)
    policy.reset(np.random.default_rng(0), spec, ())
    return policy


@pytest.mark.parametrize("name", LENS)
def test_every_lens_loads_the_file_that_it_is_told(name: str) -> None:
    form = lens(name).form
    by_engine, default = published_model(*QWQ, form), published_model(*H100, form)
    assert lens(f"{name}:step_model=engine")._model.current == lens(name)._model.current
    assert lens(name)._model.current == by_engine  # six: nothing is published, so it learns
    assert lens(f"{name}:{DEFAULT}")._model.current == default
    assert lens(f"{name}:{DEFAULT}", UNKNOWN)._model.current == default
    assert lens(f"{name}:{DEFAULT}")._model.settings.mode == "pretrained"


def test_what_a_qwq_engine_then_believes() -> None:
    """Eight decodes at a target of 15 ms: the published budgets, 32 tokens and 320."""
    qwq, llama = lens("lens-ref")._model, lens(f"lens-ref:{DEFAULT}")._model
    assert (qwq.invert(8, 15.0), llama.invert(8, 15.0)) == (32, 320)
    assert qwq.predict(1, 1) == pytest.approx(193.6, abs=0.05)
    assert llama.predict(1, 1) == pytest.approx(90.5, abs=0.05)
    assert (qwq.advert().capacity, llama.advert().capacity) == pytest.approx((1381.462, 3884.416))


def test_hybrid_starts_from_the_file_that_it_is_told() -> None:
    model = lens(f"lens-ref:mode=hybrid,{DEFAULT}")._model
    assert model.settings.mode == "hybrid"
    assert model.current == published_model(*H100, "stable")


def test_a_model_that_is_learned_has_no_file() -> None:
    with pytest.raises(ValueError, match=r"mode=online loads no file; leave step_model out"):
        lens(f"lens-ref:mode=online,{DEFAULT}")


@pytest.mark.parametrize("make", [make_engine_policy, make_router_policy])
def test_an_unknown_file_is_refused(make: type) -> None:
    name = "lens-ref" if make is make_engine_policy else "prism-ref"
    with pytest.raises(
        ValueError, match=r"step_model.*'qwq' is not one of engine, authors-default"
    ):
        make(f"{name}:step_model=qwq")


@pytest.mark.parametrize(
    ("policy", "capacity"),
    [
        ("prism-ref", 1381.462),
        (f"prism-ref:{DEFAULT}", 3884.416),
        ("prism-fixed", 13814.62),
        (f"prism-fixed:{DEFAULT}", 38844.16),
    ],
)
def test_prism_weighs_pending_tokens_by_the_capacity_of_the_file(
    policy: str, capacity: float
) -> None:
    """One prompt of 4,000 tokens: a load term of 0.006 or 0.226 in the authors' unit."""
    cluster = Cluster(policy)
    cluster.set(RouterRow.PUSH_CAPACITY, *[1_381_462] * 3)
    cluster.set(RouterRow.PUSH_PEAK_MILLITPS, *[13_814_620] * 3)
    cluster.set(RouterRow.PUSH_PENDING_TOKENS, 4000, 0, 4000)
    view = cluster.view()
    scores = cluster.policy.scores(view, view.pushed)
    load = 1 - np.tanh(4000 / capacity)
    assert scores[1] - scores[0] == pytest.approx(1 - load, abs=1e-6)
    assert scores[0] == scores[2]


def test_a_suite_plays_both_files() -> None:
    pairs = [
        (engine, router)
        for engine, router in product(
            ("lens-ref", f"lens-ref:{DEFAULT}"), ("prism-ref", f"prism-ref:{DEFAULT}")
        )
    ]
    part = Part(
        "joint", ("flowgpt-8xh100",), pairs=tuple(pairs), loads=(1.0,), seeds=1,
        horizon_s=12.0, warmup_s=2.0,
    )  # fmt: skip
    rows = [run_job(job).row for job in Suite("files", "both files", (part,)).jobs()]
    assert [(row["engine_policy"], row["router_policy"]) for row in rows] == pairs
    hashes = [row["log_hash"] for row in rows]
    assert len(set(hashes[:3])) == 3
    assert hashes[2] == hashes[3]  # engines that have loaded it publish its capacity already
    assert len({row["scenario_hash"] for row in rows}) == 1
    assert all(is_registered("engine", engine) for engine, _ in pairs)
    for engine, router in pairs:
        assert make_engine_policy(engine).label == engine
        assert make_router_policy(router).label == router
