"""Replays: even or by timestamp, with the log's requests, order and conversations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from synergy_gym.types import NS_PER_S
from synergy_gym.workload.base import prefix_hit_share
from synergy_gym.workload.presets import PRESETS
from synergy_gym.workload.spec import LengthSpec, ReplaySpec, SessionSpec, TrafficSpec
from synergy_gym.workload.table import TrafficTable
from synergy_gym.workload.traffic import build_workload

LOG = TrafficSpec("flowgpt-like")
EVEN = replace(LOG, replay=ReplaySpec("even"))
STAMPED = replace(LOG, replay=ReplaySpec("timestamps"))
UNRELATED = TrafficSpec(
    prompt=LengthSpec("uniform", {"low": 1, "high": 9}), output=LengthSpec("constant", {"value": 1})
)


def test_even_sends_at_exactly_the_rate(seed: int) -> None:
    workload = build_workload(EVEN, 14.0, 60.0, seed)
    assert len(workload) == 14 * 60
    times = workload.arrival_ns / NS_PER_S
    # Three clients of 14 / 3 requests/s, each at its own phase.
    assert np.allclose(times[3:] - times[:-3], 3 / 14, atol=1e-8)
    assert 0 <= times[0] < 3 / 14


def test_even_keeps_the_order_and_lengths_of_the_log(seed: int) -> None:
    log, sent = (build_workload(spec, 14.0, 60.0, seed) for spec in (LOG, EVEN))
    n = min(len(log), len(sent))
    assert n > 700
    for name in ("prompt_tokens", "output_tokens", "session"):
        assert np.array_equal(getattr(log, name)[:n], getattr(sent, name)[:n])
    assert prefix_hit_share(sent, 16)[1] == pytest.approx(prefix_hit_share(log, 16)[1], abs=0.02)


def test_even_extends_a_log_that_is_too_short() -> None:
    # Sessions come in lumps: some seeds have fewer requests than the rate asks for.
    counts = [len(build_workload(LOG, 2.0, 40.0, seed)) for seed in range(30)]
    assert min(counts) < 80 < max(counts)
    assert {len(build_workload(EVEN, 2.0, 40.0, seed)) for seed in range(30)} == {80}


def test_timestamps_bunch_a_client_second(seed: int) -> None:
    workload = build_workload(STAMPED, 14.0, 60.0, seed)
    log = build_workload(LOG, 14.0, 60.0, seed)
    phases = np.unique(workload.arrival_ns % NS_PER_S)
    assert len(phases) == 3
    assert len(np.unique(workload.arrival_ns)) <= 3 * 60
    # Only what the last second would send after the horizon is missing.
    late = (log.arrival_ns >= 59 * NS_PER_S).sum()
    assert len(log) - late <= len(workload) <= len(log)
    for session in np.unique(workload.session)[:50]:
        assert len(np.unique(workload.arrival_ns[workload.session == session] % NS_PER_S)) == 1


def test_timestamps_delay_less_than_one_tick(seed: int) -> None:
    spec = replace(UNRELATED, replay=ReplaySpec("timestamps", client_rps=1e9, resolution_s=0.5))
    log, sent = (build_workload(s, 40.0, 20.0, seed) for s in (UNRELATED, spec))
    n = len(sent)
    shift = sent.arrival_ns - log.arrival_ns[:n]
    assert np.array_equal(sent.prompt_tokens, log.prompt_tokens[:n])
    assert np.abs(shift).max() < 0.5 * NS_PER_S
    assert len(np.unique(sent.arrival_ns % (NS_PER_S // 2))) == 1


@pytest.mark.parametrize("spec", [EVEN, STAMPED])
def test_replays_are_sorted_inside_the_horizon_and_repeatable(spec: TrafficSpec, seed: int) -> None:
    one, again = (build_workload(spec, 7.0, 33.3, seed) for _ in range(2))
    assert np.array_equal(one.arrival_ns, again.arrival_ns)
    assert np.array_equal(one.prompt_tokens, again.prompt_tokens)
    assert np.all(np.diff(one.arrival_ns) >= 0)
    assert 0 <= one.arrival_ns.min() <= one.arrival_ns.max() < 33.3 * NS_PER_S
    assert len(one.block_ids(16)[1]) == int(((one.prompt_tokens + one.output_tokens) // 16).sum())


def test_another_load_sends_the_same_requests() -> None:
    slow, fast = (build_workload(EVEN, rate, 100.0, 5) for rate in (4.0, 5.0))
    lengths = [
        set(zip(w.prompt_tokens.tolist(), w.output_tokens.tolist(), strict=True))
        for w in (slow, fast)
    ]
    assert len(lengths[0] & lengths[1]) > 0.5 * len(lengths[0])


def test_wrong_replays_are_errors() -> None:
    closed = SessionSpec(turns=LengthSpec("constant", {"value": 2}), think_s=1.0, closed_loop=True)
    cases: list[tuple[TrafficSpec, str]] = [
        (replace(LOG, replay=ReplaySpec("slow")), "unknown pace 'slow'; choose one of even"),  # type: ignore[arg-type]
        (replace(LOG, replay=ReplaySpec("even", client_rps=0.0)), "must be > 0"),
        (replace(STAMPED, sessions=closed), "cannot be closed-loop"),
    ]
    for spec, message in cases:
        with pytest.raises(ValueError, match=message):
            build_workload(spec, 10.0, 10.0, 0)


def table(**replay: Any) -> dict[str, Any]:
    return {"generator": "flowgpt-like", "replay": replay}


def test_the_table_becomes_the_spec() -> None:
    made = TrafficTable.model_validate(table(pace="timestamps", resolution_s=2.0)).spec()
    assert made.replay == ReplaySpec("timestamps", 5.0, 2.0)
    assert TrafficTable.model_validate({"generator": "flowgpt-like"}).spec().replay is None
    with pytest.raises(ValidationError, match="pace"):
        TrafficTable.model_validate(table(pace="slow"))
    sessions = {"turns": {"kind": "constant", "value": 2}, "think_s": 1.0, "closed_loop": True}
    with pytest.raises(ValidationError, match="closed_loop = false"):
        TrafficTable.model_validate({**table(pace="even"), "sessions": sessions})


def test_generators_do_not_replay_by_themselves() -> None:
    assert all(preset.replay is None for preset in PRESETS.values())
