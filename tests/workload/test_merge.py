"""Merging workloads, and traffic mixes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.generators import generate
from synergy_gym.workload.merge import merged
from synergy_gym.workload.spec import TrafficMix, TrafficSpec
from synergy_gym.workload.traffic import build_workload

CHAT, FLOW = TrafficSpec("azure-conv-like"), TrafficSpec("flowgpt-like")


def blocks_of(workload: Workload, row: int) -> list[int]:
    offsets, ids = workload.block_ids(16)
    return ids[offsets[row] : offsets[row + 1]].tolist()


def test_every_request_keeps_its_columns(seed: int) -> None:
    parts = [
        generate(name, rate_rps=2.0, horizon_s=60.0, seed=seed + i)
        for i, name in enumerate(("azure-conv-like", "flowgpt-like", "sharegpt-like"))
    ]
    whole = merged(parts)
    assert len(whole) == sum(len(part) for part in parts)
    assert (np.diff(whole.arrival_ns) >= 0).all()

    def rows(workload: Workload) -> list[Any]:
        names = ("arrival_ns", "prompt_tokens", "output_tokens", "slo_class", "priority")
        return list(zip(*(getattr(workload, name).tolist() for name in names), strict=True))

    assert sorted(rows(whole)) == sorted(row for part in parts for row in rows(part))
    sessions = [len(np.unique(part.session[part.session >= 0])) for part in parts]
    assert len(np.unique(whole.session[whole.session >= 0])) == sum(sessions)


def test_parts_share_prefixes_within_and_never_between(seed: int) -> None:
    one = generate("flowgpt-like", rate_rps=1.0, horizon_s=120.0, seed=seed)
    two = generate("flowgpt-like", rate_rps=1.0, horizon_s=120.0, seed=seed)
    whole = merged([one, two])
    first, second = whole.block_ids(16)[1], one.block_ids(16)[1]
    assert len(np.unique(first)) == 2 * len(np.unique(second))
    # Equal arrivals: the first part's request comes first, then the second part's twin.
    assert not set(blocks_of(whole, 0)) & set(blocks_of(whole, 1))
    plain = make_workload(np.array([0, 10**9]), np.array([64, 64]), np.array([1, 1]))
    assert merged([plain, plain]).content is None
    mixed = merged([plain, one])
    assert mixed.content is not None
    assert len(np.unique(mixed.block_ids(16)[1])) == len(np.unique(second)) + 8


def test_a_mix_is_the_sum_of_its_parts(seed: int) -> None:
    mix = TrafficMix(parts=((0.25, CHAT), (0.75, FLOW)))
    workload = build_workload(mix, 8.0, 200.0, seed)
    assert abs(len(workload) - 1600) < 300
    sessions = workload.session >= 0  # only FlowGPT has conversations
    assert 0.6 < sessions.mean() < 0.9
    again = build_workload(mix, 8.0, 200.0, seed)
    assert (again.arrival_ns == workload.arrival_ns).all()
    assert (again.prompt_tokens == workload.prompt_tokens).all()
    other = build_workload(mix, 8.0, 200.0, seed + 1)
    assert len(other) != len(workload) or (other.arrival_ns != workload.arrival_ns).any()


def test_what_cannot_be_merged() -> None:
    waiting = make_workload(
        np.array([0, 5]), np.array([1, 1]), np.array([1, 1]), after=np.array([-1, 0])
    )
    with pytest.raises(ValueError, match="closed-loop"):
        merged([waiting])
    with pytest.raises(ValueError, match="nothing to merge"):
        merged([])
    for shares in ((), ((0.5, CHAT),), ((0.0, CHAT), (1.0, FLOW))):
        with pytest.raises(ValueError, match="sum to 1"):
            build_workload(TrafficMix(parts=shares), 1.0, 10.0, 0)  # type: ignore[arg-type]
