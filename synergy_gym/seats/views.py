"""Views as plain columns: what goes onto a tape or to another process, and back."""

from __future__ import annotations

import numpy as np

from synergy_gym.types import (
    SLO,
    ClusterView,
    EngineSpec,
    EngineView,
    IntArray,
    RequestArrays,
    RequestView,
    StepReport,
)

EngineContent = tuple[IntArray, RequestArrays, RequestArrays, StepReport | None]
"""State, running and waiting requests, the last finished iteration."""
ClusterContent = tuple[RequestView, int, IntArray, tuple[int, float]]
"""The request, the time in ns, the router's table, engine and age (s) of the session."""


def engine_content(view: EngineView) -> EngineContent:
    """An engine's view as columns; `engine_view` is the way back."""
    return view.state, view.running, view.waiting, view.last_step


def engine_view(
    state: IntArray,
    running: RequestArrays,
    waiting: RequestArrays,
    last_step: StepReport | None,
    spec: EngineSpec,
    slos: tuple[SLO, ...],
) -> EngineView:
    """An engine's view from its columns."""
    return EngineView(
        spec=spec, slos=slos, state=state, last_step=last_step, fetch=lambda: (running, waiting)
    )


def cluster_content(request: RequestView, cluster: ClusterView) -> ClusterContent:
    """A router's views as columns; `cluster_view` is the way back."""
    session = (cluster.session_engine, cluster.session_age_s)
    return request, cluster.now_ns, cluster._rows, session


def cluster_view(
    rng: np.random.Generator,
    information: frozenset[str],
    engines: tuple[EngineSpec, ...],
    request: RequestView,
    now_ns: int,
    rows: IntArray,
    session: tuple[int, float],
) -> tuple[RequestView, ClusterView]:
    """A router's views from their columns."""
    cluster = ClusterView(
        now_ns=now_ns,
        engines=engines,
        rows=rows,
        session_engine=session[0],
        session_age_s=session[1],
        rng=rng,
        information=frozenset(information),
    )
    return request, cluster
