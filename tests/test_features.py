"""Features: bounds, formulas, equality of compiled and plain code, layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym import features as f
from synergy_gym.observation import Group, ObservationLayout, Slot
from synergy_gym.types import (
    SLO,
    ClusterView,
    EngineSpec,
    EngineStateField,
    IntArray,
    RequestView,
    RouterRow,
)

SLOS = (SLO("chat", ttft_s=1.0, tpot_s=0.05), SLO("batch", e2e_s=30.0))


def spec(seqs: int = 256, tokens: int = 8192, weight: float = 1.0) -> EngineSpec:
    return EngineSpec("e", "H100", "m", "p", seqs, tokens, 16384, 4000, weight=weight)


ENGINES = (spec(), spec(128, 2048, 0.5), spec(64, 2048, 0.25))
counts = st.integers(0, 10**12)


@given(st.lists(counts, min_size=16, max_size=16))
def test_engine_features_are_bounded(values: list[int]) -> None:
    features = f.EngineFeatures(spec(), SLOS)
    result = features.write(np.array(values, np.int64))
    assert np.isfinite(result).all()
    assert (result >= features.layout.low).all()
    assert (result <= features.layout.high).all()


@given(
    st.lists(counts, min_size=3 * len(RouterRow), max_size=3 * len(RouterRow)),
    st.lists(counts, min_size=8, max_size=8),
    st.integers(-1, 2),
    st.integers(0, 1),
    st.integers(-(10**9), 10**9),
)
def test_router_features_are_bounded(
    values: list[int], request_values: list[int], session: int, slo_class: int, priority: int
) -> None:
    rows = np.array(values, np.int64).reshape(3, len(RouterRow))
    vector = np.array(request_values, np.int64)
    times = [RouterRow.PUSH_NS, RouterRow.SCRAPE_NS]
    vector[f.RequestField.NOW_NS] = rows[:, times].max()
    vector[f.RequestField.SESSION_ENGINE] = session
    vector[f.RequestField.SLO_CLASS] = slo_class
    vector[f.RequestField.PRIORITY] = priority
    features = f.RouterFeatures(ENGINES, SLOS)
    result = features.write(rows, vector)
    assert np.isfinite(result).all()
    assert (result >= features.layout.low).all()
    assert (result <= features.layout.high).all()


def plain(function: Any) -> Any:
    """The Python function behind a kernel, its callees compiled."""
    return function.py_func


def test_kernels_equal_plain_python(rng: np.random.Generator) -> None:
    state = rng.integers(1, 10**4, 16)
    out, again = np.zeros(20, np.float32), np.zeros(20, np.float32)
    scale = f.engine_scale(spec(), SLOS)
    f.write_engine_features(state, 0, scale, out, 2)
    plain(f.write_engine_features)(state, 0, scale, again, 2)
    np.testing.assert_array_equal(out, again)
    assert not out[:2].any()


def test_offsets_select_engine_and_place(rng: np.random.Generator) -> None:
    arena = rng.integers(1, 10**4, 100)
    features = f.EngineFeatures(spec(), SLOS)
    out = np.zeros(40, np.float32)
    f.write_engine_features(arena, 30, features.scale, out, 11)
    end = 11 + f.NUM_ENGINE_FEATURES
    np.testing.assert_array_equal(out[11:end], features.write(arena[30:46]))
    assert not out[:11].any()
    assert not out[end:].any()


def state(**values: int) -> IntArray:
    vector = np.zeros(len(EngineStateField), np.int64)
    vector[EngineStateField.KV_TOTAL_BLOCKS] = 4000
    for name, value in values.items():
        vector[EngineStateField[name]] = value
    return vector


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("running.requests", {"RUNNING": 64}, 0.25),
        ("running.prefill_tokens", {"PREFILL_TOKENS": 8192}, 0.5),
        ("running.decode_context", {"DECODE_CONTEXT_TOKENS": 64000, "DECODES": 4}, 0.5),
        ("running.mean_context", {"DECODE_CONTEXT_TOKENS": 32768, "DECODES": 4}, 0.5),
        ("waiting.requests", {"WAITING": 768}, 0.75),
        ("waiting.tokens", {"WAITING_TOKENS": 8192}, 0.5),
        ("waiting.mean_tokens", {"WAITING_TOKENS": 8192, "WAITING": 2}, 0.25),
        ("waiting.head_wait", {"HEAD_WAIT_NS": 10**9}, 0.5),
        ("kv.free", {"KV_FREE_BLOCKS": 1000}, 0.25),
        ("kv.total", {"KV_TOTAL_BLOCKS": 3000}, 0.75),
        ("last_step.duration", {"LAST_STEP_NS": 50_000_000}, 0.5),
        ("last_step.preempted", {"LAST_PREEMPTED": 8}, 0.5),
        ("last_step.budget", {"LAST_BUDGET": 2048}, 0.25),
    ],
)
def test_engine_formulas(name: str, values: dict[str, int], wanted: float) -> None:
    features = f.EngineFeatures(spec(), SLOS)
    assert features.write(state(**values))[features.layout.index(name)] == pytest.approx(wanted)


def test_unbounded_counts_are_not_clipped() -> None:
    features = f.EngineFeatures(spec(), SLOS)
    index = features.layout.index("waiting.requests")
    seen = [features.write(state(WAITING=w))[index] for w in (100, 1000, 10_000, 100_000)]
    assert seen == sorted(set(seen))


def cluster(session_engine: int = -1, age_s: float = float("inf")) -> ClusterView:
    rows = np.zeros((3, len(RouterRow)), np.int64)
    rows[:, RouterRow.ALIVE] = [1, 0, 1]
    rows[:, RouterRow.IN_FLIGHT] = [256, 0, 64]
    rows[:, RouterRow.PUSH_NS] = [2 * 10**9, 10**9, 0]
    return ClusterView(
        now_ns=2 * 10**9,
        engines=ENGINES,
        rows=rows,
        session_engine=session_engine,
        session_age_s=age_s,
        rng=np.random.default_rng(0),
    )


def test_router_formulas() -> None:
    features = f.RouterFeatures(ENGINES, SLOS)
    result = features(RequestView(8192, 2.0, slo_class=1, priority=-3), cluster(2, 60.0))
    table = result[features.layout["engines"]].reshape(3, f.NUM_ROUTER_FEATURES)
    columns = {slot.name: i for i, slot in enumerate(f.ROUTER_SLOTS)}
    assert table[:, columns["router.alive"]].tolist() == [1, 0, 1]
    assert table[:, columns["router.weight"]].tolist() == [1, 0.5, 0.25]
    assert table[:, columns["router.session"]].tolist() == [0, 0, 1]
    assert table[:, columns["router.in_flight"]].tolist() == [0.5, 0, 0.5]
    assert table[:, columns["pushed.age"]] == pytest.approx([0, 0.5, 2 / 3])
    wanted = [0.5, 0.5, 0, 1, 0.5, 0, -0.75, 1, 1, 0.75]
    assert result[features.layout["request"]] == pytest.approx(wanted)


def test_requests_without_session_or_expectation() -> None:
    view = RequestView(100, 2.0, expected_output_tokens=256.0, attempt=1)
    vector = f.request_vector(view, cluster())
    assert vector[f.RequestField.SESSION_AGE_NS] == -1
    result = f.RouterFeatures(ENGINES, SLOS)(view, cluster())
    assert result[2:6].tolist() == [0.5, 0.0, 0.0, 0.5]


def test_partial_writers_compose(rng: np.random.Generator) -> None:
    rows = rng.integers(1, 10**6, (3, len(RouterRow)))
    vector = f.request_vector(RequestView(100, 2.0), cluster())
    vector[f.RequestField.NOW_NS] = 10**9
    features = f.RouterFeatures(ENGINES, SLOS)
    flat, common = rows.reshape(-1), 3 * f.ROUTER_ENGINE_SCALE_SIZE
    out = np.zeros(features.layout.size, np.float32)
    blocks = f.NUM_REQUEST_FEATURES
    f.write_request(vector, 0, features.scale, common, out, 0)
    f.write_router_ages(flat, 0, 3, vector, 0, out, blocks)
    for engine in (2, 0, 1):
        f.write_router_row(
            flat,
            engine * len(RouterRow),
            features.scale,
            engine * f.ROUTER_ENGINE_SCALE_SIZE,
            common,
            out,
            blocks + engine * f.NUM_ROUTER_FEATURES,
        )
    np.testing.assert_array_equal(out, features.write(rows, vector))


def test_given_buffers_are_filled() -> None:
    features = f.EngineFeatures(spec(), SLOS)
    out = np.empty(f.NUM_ENGINE_FEATURES, np.float32)
    assert features.write(state(), out) is out


def test_layouts_cover_the_observation() -> None:
    for layout, size in (
        (f.engine_layout(), f.NUM_ENGINE_FEATURES),
        (f.router_layout(5), f.NUM_REQUEST_FEATURES + 5 * f.NUM_ROUTER_FEATURES),
    ):
        assert layout.size == size == len(layout.names()) == len(set(layout.names()))
        assert [part.start for part in layout.values()][1:] == [
            part.stop for part in layout.values()
        ][:-1]
        assert layout.low.shape == layout.high.shape == (size,)
    assert "engines=10:115" in repr(f.router_layout(5))


def test_unknown_names_are_errors() -> None:
    layout = ObservationLayout((Group("a", (Slot("x", "share(x, 1)"), Slot("y", "y"))),))
    assert layout.index("a.y") == 1
    with pytest.raises(KeyError, match=r"a\.x"):
        layout.index("a.z")


def test_undeclared_objectives_have_default_scales() -> None:
    scale = f.engine_scale(spec(), (SLO("batch", e2e_s=3.0),))
    assert scale[5:].tolist() == [f.DEFAULT_TTFT_S * 1e9, f.DEFAULT_TPOT_S * 1e9]
