"""How far scores move when a policy's arithmetic differs a little.

    python -m experiments.studies.last_bit_effect

Plays policies as they are, and with every duration that they observe longer by a factor: by a last
bit, as another processor's arithmetic might make it, and by more, so that decisions turn. Writes
experiments/results/last_bit_effect/{rows.csv,manifest.json}: per episode the attainments, whether
the log hash is the same, and the largest differences, from which the tolerances of
`synergy-gym verify --policy` on other platforms are taken (docs/verification.md).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pandas as pd

from experiments.common import command_line, parser, show, write_csv
from synergy_gym.evaluation.manifest import software, write_json
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.policies.base import EnginePolicy, RouterPolicy
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.scenario import load_scenario

NUDGES = (2.0**-52, 1e-9, 1e-6)
"""Relative changes of observed durations."""
PAIRS = (
    ("chat-h100", 1.2, "lens-ref", "round-robin"),
    ("chat-h100", 1.2, "lens-plus", "round-robin"),
    ("chat-h100", 1.2, "lens-guarded", "round-robin"),
    ("summarization-h100", 1.2, "lens-ref", "round-robin"),
    ("two-class-h100", 1.2, "lens-plus", "round-robin"),
    ("hetero-3", 1.5, "lens-ref", "prism-ref"),
    ("hetero-3", 2.5, "vllm-v1", "prism-plus"),
    ("hetero-3", 2.5, "vllm-v1", "latency-based"),
)
"""Scenario, load and two policies of which at least one computes with observed durations."""


class NudgedEngine(EnginePolicy):
    """Decides as another engine policy that sees every step longer by a factor."""

    def __init__(self, policy: EnginePolicy, nudge: float) -> None:
        self.policy = policy
        self.nudge = nudge
        self.information = policy.information  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> NudgedEngine:
        return NudgedEngine(copy.deepcopy(self.policy, memo), self.nudge)

    def reset(self, *arguments: Any) -> None:
        self.policy.reset(*arguments)

    def observe(self, step: Any) -> None:
        self.policy.observe(replace(step, step_s=step.step_s * (1 + self.nudge)))

    def decide(self, engine: Any) -> Any:
        return self.policy.decide(engine)

    def rule(self) -> Any:
        return self.policy.rule()


class NudgedRouter(RouterPolicy):
    """Decides as another router policy that sees every latency longer by a factor."""

    def __init__(self, policy: RouterPolicy, nudge: float) -> None:
        self.policy = policy
        self.nudge = nudge
        self.information = policy.information  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> NudgedRouter:
        return NudgedRouter(copy.deepcopy(self.policy, memo), self.nudge)

    def reset(self, *arguments: Any) -> None:
        self.policy.reset(*arguments)

    def observe(self, completion: Any) -> None:
        ttft_s, e2e_s = (x * (1 + self.nudge) for x in (completion.ttft_s, completion.e2e_s))
        self.policy.observe(replace(completion, ttft_s=ttft_s, e2e_s=e2e_s))

    def route(self, request: Any, cluster: Any) -> int:
        return self.policy.route(request, cluster)


def main() -> None:
    """Play every pair on some seeds, both ways."""
    given = parser(__doc__, "last_bit_effect").parse_args()
    seeds, horizon_s = (1, 30.0) if given.quick else (4, 60.0)
    rows = []
    for scenario, load, engine, router in PAIRS:
        for seed in load_scenario(scenario).validation_seeds[:seeds]:
            window = {"horizon_s": horizon_s, "warmup_s": 10.0}
            plain = evaluate(scenario, engine, router, load, seed, **window)
            for nudge in NUDGES:
                engines = NudgedEngine(make_engine_policy(engine), nudge)
                routers = NudgedRouter(make_router_policy(router), nudge)
                other = evaluate(scenario, engines, routers, load, seed, **window)
                scores = [r.summary["slo_attainment"] for r in (plain, other)]
                rows.append(
                    {
                        "scenario": scenario,
                        "load": load,
                        "seed": seed,
                        "engine_policy": engine,
                        "router_policy": router,
                        "nudge": nudge,
                        "slo_attainment": scores[0],
                        "difference": scores[1] - scores[0],
                        "same_log": plain.log_hash == other.log_hash,
                    }
                )
    table = pd.DataFrame(rows)
    write_csv(table, given.out / "rows.csv")
    found = {
        f"nudge {nudge:.3g}": {
            "episodes": len(part),
            "other_logs": int((~part["same_log"]).sum()),
            "largest_difference": float(part["difference"].abs().max()),
            "mean_difference": float(part["difference"].mean()),
        }
        for nudge, part in table.groupby("nudge")
    }
    write_json(
        given.out / "manifest.json", {"command": command_line(), "found": found, **software()}
    )
    show("Last-bit effect", table)
    print(found)


if __name__ == "__main__":
    main()
