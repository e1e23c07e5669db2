"""Speed of `evaluate`: requests per second with everything that an episode costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from synergy_gym.bench.row import FULL, Effort, Row, best, processor_s
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.sim.simulator import Simulator

SCENARIO = "flowgpt-8xh100-llama8b"
_ROUTER = "round-robin"


def evaluate_rows(effort: Effort = FULL) -> Iterator[Row]:
    """Eight H100 engines, without and with prefix caching: a rule, and a router in Python."""
    cached = load_scenario(SCENARIO)
    plain = tuple(replace(engine, prefix_caching=False) for engine in cached.engines)
    uncached = replace(cached, name="8 uncached H100", engines=plain)
    for scenario, goals in ((uncached, (200_000, 60_000)), (cached, (None, None))):
        for cls, goal in zip((None, Simulator), goals, strict=True):
            yield _row(scenario, cls, goal, effort)


def _row(scenario: Scenario, cls: Any, goal: float | None, effort: Effort) -> Row:
    """Whoever names a simulator wants to see the routes, so the policy is asked then."""
    horizon_s = max(scenario.horizon_s * effort.share, 1.0)
    window: dict[str, Any] = {
        "warmup_s": scenario.warmup_s * horizon_s / scenario.horizon_s,
        "horizon_s": horizon_s,
    }

    def play() -> Any:
        return evaluate(scenario, "vllm-v1", _ROUTER, record_itl=False, simulator=cls, **window)

    result = play()
    seconds = best(lambda: processor_s(play), 2 * effort.repeats)
    requests = len(result.records)
    how = "as a rule" if cls is None else "asked in Python"
    note = f"{requests:,} requests in {seconds:.3f} s"
    name = f"evaluate, {scenario.name}, {_ROUTER} {how}"
    return Row(name, requests / seconds, "requests/s", goal, True, note)
