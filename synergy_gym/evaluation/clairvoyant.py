"""Clairvoyant policies: they know how long every output will be. Oracles, never competitors.

They show what is reachable by playing, beside the proven bound of `evaluation/bound.py`; a
policy that may not look into the future can do worse than they do and still be as good as
possible. They are built for one episode's traffic, are in no registry, and declare the information
class `oracle`:

    traffic = scenario.workload(load, seed)
    evaluate(scenario, ClairvoyantEngine(OutputOracle(traffic)), load=load, seed=seed)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from synergy_gym.evaluation.manifest import workload_hash
from synergy_gym.evaluation.runner import (
    EnginePolicySpec,
    RouterPolicySpec,
    ScenarioSpec,
    resolve_scenario,
)
from synergy_gym.jit import kernel
from synergy_gym.policies import pacing
from synergy_gym.policies.engine.lens_plus import HOPELESS, LensPlus
from synergy_gym.policies.router.prism_plus import PrismPlus
from synergy_gym.types import (
    ADVERT_TERMS,
    NS_PER_S,
    SLO,
    BatchDecision,
    BoolArray,
    ClusterView,
    EngineSpec,
    EngineStateField,
    EngineView,
    FloatArray,
    IntArray,
    RequestArrays,
    RequestView,
)
from synergy_gym.workload.base import Workload

ORACLE = "clairvoyant"
"""Name of a policy that stands for an oracle of a job's traffic."""
LOST = 0.6
"""A decode is lost when what it may still spend is below this share of what it needs."""
SCARCE = 0.1
"""Below this share of free KV blocks lost decodes run too, and free theirs."""


class OutputOracle:
    """True output lengths of an episode's requests, found by arrival and prompt length.

    Args:
        workload: open-loop traffic.

    Raises:
        ValueError: closed-loop traffic, whose arrivals depend on the policies.
    """

    def __init__(self, workload: Workload) -> None:
        if bool(np.any(workload.after >= 0)):
            raise ValueError("an output oracle needs open-loop traffic; arrivals are looked up")
        self.content = workload_hash(workload)
        self._arrival_ns = workload.arrival_ns
        self._prompt = workload.prompt_tokens
        self._output = workload.output_tokens

    def lengths(self, arrival_ns: IntArray, prompt_tokens: IntArray) -> IntArray:
        """Output tokens of requests; of several alike the first one's.

        Raises:
            ValueError: no such request; the oracle was built for other traffic.
        """
        rows = np.searchsorted(self._arrival_ns, arrival_ns - 1)  # seconds round to 1 ns
        rows = np.minimum(rows, len(self._arrival_ns) - 1)
        for _ in range(8):  # requests that arrive at the same instant
            wrong = self._prompt[rows] != prompt_tokens
            if not wrong.any():
                break
            rows = np.minimum(rows + wrong, len(self._arrival_ns) - 1)
        far = np.abs(self._arrival_ns[rows] - arrival_ns) > 2
        if far.any() or (self._prompt[rows] != prompt_tokens).any():
            bad = int(np.argmax(far | (self._prompt[rows] != prompt_tokens)))
            raise ValueError(
                f"the oracle knows no request of {prompt_tokens[bad]} prompt tokens that arrives "
                f"at {arrival_ns[bad]} ns; build it from the workload of this episode"
            )
        found: IntArray = self._output[rows]
        return found


class ClairvoyantEngine(LensPlus):
    """`lens-plus` that knows output lengths: the cheapest requests first, none that is lost.

    Where not all prompts can be on time, those that cost the most engine time, decode included,
    are left behind (Moore's rule on the whole work; Moore, Management Science 15, 1968). Decodes
    that cannot meet their objectives any more wait while there are others and memory is free, and
    nothing is spent on overdue prompts for fairness' sake.

    Args:
        oracle: the lengths.
    """

    information: ClassVar[frozenset[str]] = frozenset({"engine", "oracle"})

    def __init__(self, oracle: OutputOracle) -> None:
        super().__init__(late_share=0.0)
        self.oracle = oracle

    @property
    def label(self) -> str:
        """Name in tables."""
        return ORACLE

    def parameters(self) -> dict[str, Any]:
        """Those of lens-plus, and the traffic that it knows."""
        return {**super().parameters(), "workload": self.oracle.content}

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Start an episode."""
        super().reset(rng, spec, slos)
        self._now_ns = 0

    def decide(self, engine: EngineView) -> BatchDecision:
        """The decision of lens-plus with true lengths; lost decodes wait."""
        self._now_ns = int(engine.state[EngineStateField.NOW_NS])
        decision = super().decide(engine)
        lost = self._lost(engine.running)
        scarce = engine.kv_free_blocks < SCARCE * engine.kv_total_blocks
        if scarce or not lost.any() or lost.all():
            return decision
        caps = decision.token_caps
        if caps is None:
            caps = np.full(len(lost) + len(engine.waiting), -1, np.int64)
        caps[: len(lost)][lost] = 0
        return replace(decision, token_caps=caps)

    def _true(self, requests: RequestArrays) -> IntArray:
        arrival = self._now_ns - np.rint(requests.waited_s * NS_PER_S).astype(np.int64)
        return self.oracle.lengths(arrival, requests.prompt_tokens)

    def _lost(self, running: RequestArrays) -> BoolArray:
        """Decodes that miss an objective even with steps of decodes alone, or have missed it."""
        if not self._work[pacing.DECODES]:
            return np.zeros(len(running), bool)
        ttft, tpot, e2e = self._limits.reshape(-1, 3)[running.slo_class].T
        length, age = self._true(running), running.first_token_age_s
        spare = np.minimum(tpot * (length - 1) - age, e2e - running.waited_s)
        least = (length - running.generated_tokens) * self._work[pacing.DECODE_MS] / 1e3
        lost: BoolArray = running.is_decode & (
            (spare < LOST * least) | (running.waited_s - age > ttft)
        )
        return lost

    def _queue(self, waiting: RequestArrays, rate: float, start_s: float) -> tuple[IntArray, int]:
        """As lens-plus, but the requests that are given up are those with the most work."""
        n = len(waiting)
        slack, order = np.empty(n), np.empty(n, np.int64)
        pacing.slack(waiting.waited_s, waiting.slo_class, self._limits, 0.0, slack)
        known = waiting.prompt_tokens + waiting.generated_tokens
        work = self._uncached / rate * known
        punctual: int = cheapest_on_time(
            slack.argsort(kind="stable"), slack, work, work + self._decode_s(waiting, known),
            waiting.generated_tokens > 0, start_s, HOPELESS, np.empty(n, np.int64), order,
        )  # fmt: skip
        return order, punctual

    def _decode_s(self, waiting: RequestArrays, known: IntArray) -> FloatArray:
        """Engine time of the tokens after the first, without fixed costs, by the learned model."""
        after = self._true(waiting) - waiting.generated_tokens - 1
        terms = self._model.step_ms()
        per_token = terms[ADVERT_TERMS.index("per_token_ms")]
        per_context = terms[ADVERT_TERMS.index("per_decode_context_ms")]
        seconds: FloatArray = (per_token * after + per_context * after * (known + after / 2)) / 1e3
        return seconds


@kernel
def cheapest_on_time(  # type: ignore[no-untyped-def]
    by_slack, slack_s, work_s, cost_s, streams, start_s, hopeless, keep, order
):
    """As `pacing.on_time`, with one measure for the time until the first token and another cost.

    Requests are added by due time; whenever one would be late, the one that costs the most in all
    is taken out. Writes `order`; returns how many are kept.
    """
    now = start_s
    n = len(by_slack)
    for place in range(n):
        i = by_slack[place]
        keep[i] = 1
        if streams[i]:
            keep[i] = 2
            now += work_s[i]
        elif slack_s[i] < hopeless * work_s[i]:
            keep[i] = 0
        else:
            now += work_s[i]
            while now > slack_s[i]:
                worst = -1
                for other in range(place + 1):
                    j = by_slack[other]
                    if keep[j] == 1 and (worst < 0 or cost_s[j] > cost_s[worst]):
                        worst = j
                if worst < 0:
                    break
                keep[worst] = 0
                now -= work_s[worst]
                if keep[i] == 0:
                    break
    return pacing.in_groups(by_slack, keep, order)


class ClairvoyantRouter(PrismPlus):
    """`prism-plus` that knows the output length of the request that it routes."""

    information: ClassVar[frozenset[str]] = frozenset({"router", "pushed", "oracle"})

    def __init__(self, oracle: OutputOracle) -> None:
        super().__init__()
        self.oracle = oracle

    @property
    def label(self) -> str:
        """Name in tables."""
        return ORACLE

    def parameters(self) -> dict[str, Any]:
        """Those of prism-plus, and the traffic that it knows (once it does)."""
        oracle = getattr(self, "oracle", None)  # the parent checks its own before there is one
        return super().parameters() | ({} if oracle is None else {"workload": oracle.content})

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The engine with the fewest expected further misses, given the true length."""
        arrival = np.array([round(request.arrival_s * NS_PER_S)], np.int64)
        length = self.oracle.lengths(arrival, np.array([request.prompt_tokens]))
        return super().route(replace(request, expected_output_tokens=float(length[0])), cluster)


def clairvoyant_pair(
    scenario: ScenarioSpec,
    engine_policy: EnginePolicySpec,
    router_policy: RouterPolicySpec,
    load: float,
    seed: int,
    horizon_s: float | None = None,
) -> tuple[EnginePolicySpec, RouterPolicySpec]:
    """A pair of policies in which the name `clairvoyant` stands for an oracle of the traffic."""
    world = resolve_scenario(scenario)
    if horizon_s is not None:
        world = replace(world, horizon_s=float(horizon_s))
    oracle = OutputOracle(world.workload(load, seed))
    engine = ClairvoyantEngine(oracle) if engine_policy == ORACLE else engine_policy
    router = ClairvoyantRouter(oracle) if router_policy == ORACLE else router_policy
    return engine, router
