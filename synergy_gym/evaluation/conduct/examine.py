"""How a policy has to behave, whatever it scores; docs/conduct.md argues for the rules.

    for verdict in examine("my_policy.py:MyRouter", "router"):
        print(verdict)

`examine` runs the policy's code. What it finds are verdicts; one that failed is a reason to reject.
"""

from __future__ import annotations

import copy
import os
import random
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from synergy_gym.evaluation.conduct.alone import MAKERS, decides_alone
from synergy_gym.evaluation.conduct.starvation import starvation
from synergy_gym.evaluation.conduct.two_futures import two_futures
from synergy_gym.evaluation.conduct.verdict import Verdict, one_line
from synergy_gym.evaluation.conduct.watch import (
    RecordedEngine,
    RecordedRouter,
    Watch,
    Watcher,
)
from synergy_gym.evaluation.runner import Result, evaluate, resolve_scenario
from synergy_gym.policies.base import Layer
from synergy_gym.scenario import Scenario
from synergy_gym.seats import Observer, PolicyError
from synergy_gym.types import FloatArray

LIMIT_S = 0.02
"""Most wall-clock time per decision, as a mean of all but the slowest 1 % of them."""
HANG_S = 300.0
"""Longest wait for one decision; the first ones may have to compile."""
CHANCE = 1e-4
"""How rarely an honest policy may fail a check that is statistical."""
PROFIT = 0.01
"""Attainment that is worth an objection in such a check."""
SEEDS = 8
"""Of each kind in such a check."""
BASELINE: dict[Layer, str] = {"engine": "vllm-v1", "router": "round-robin"}
Swap = Callable[[np.random.Generator], np.random.Generator]


@dataclass(frozen=True)
class Stage:
    """The episode in which a policy is watched.

    Attributes:
        scenario: name, or the scenario itself.
        load: as multiple of its rate; in overload there are lost requests to be treated well.
        seed: one that the policy will be scored on, in case it knows it.
        other: the policy of the other layer.
        horizon_s: end of arrivals; `None` is the scenario's.
        warmup_s: start of the scored window; `None` is the scenario's.
    """

    scenario: str | Scenario
    load: float
    seed: int
    other: str
    horizon_s: float | None = None
    warmup_s: float | None = None

    def play(
        self,
        layer: Layer,
        policy: Any,
        seed: int | None = None,
        observers: Sequence[Observer] = (),
    ) -> Result:
        """Play a policy of that layer, on this seed or another."""
        engine, router = (policy, self.other) if layer == "engine" else (self.other, policy)
        return evaluate(
            self.scenario,
            engine,
            router,
            self.load,
            self.seed if seed is None else seed,
            horizon_s=self.horizon_s,
            warmup_s=self.warmup_s,
            observers=observers,
        )


STAGES: dict[Layer, Stage] = {
    "engine": Stage("smoke", 1.5, 3000, "round-robin"),
    "router": Stage("smoke-cluster", 1.5, 3000, "vllm-v1"),
}
"""Where a policy is watched unless told otherwise."""
SIEGES: dict[Layer, Stage] = {
    "engine": Stage("two-class-h100", 1.5, 2000, "round-robin", 120.0, 30.0),
    "router": Stage("hetero-3", 2.5, 2000, "vllm-v1", 120.0, 30.0),
}
"""Where starvation is judged: overload that lasts, so that debts can grow."""


def examine(
    policy: Any,
    layer: Layer,
    *,
    stage: Stage | None = None,
    worlds: int = 20,
    limit_s: float = LIMIT_S,
    hang_s: float = HANG_S,
) -> list[Verdict]:
    """Every check of one policy: two futures, then its conduct in one episode.

    Args:
        policy: specification; or a class or instance that can be pickled.
        layer: "engine" or "router".
        stage: where it is watched.
        worlds: pairs of futures.
        limit_s: most wall-clock time per decision (`LIMIT_S`).
        hang_s: longest wait for a single one.

    Returns:
        Verdicts in the order of the checks. A policy that fails while it is watched gets no
        further ones.

    Raises:
        ValueError, TypeError: no such policy.
    """
    made: Any = MAKERS[layer](policy)
    watched = Examination(policy, layer, stage or STAGES[layer], limit_s, hang_s)
    found = [watched.failure or watched.plays()]
    if watched.failure is None:
        found += [check() for check in watched.checks()]
    return [*found, two_futures(made, layer, range(worlds))]


class Examination:
    """One watched episode, and what there is to say about it.

    Args:
        policy: specification, class or instance.
        layer: "engine" or "router".
        stage: the episode; its scenario is loaded once.
        limit_s: most wall-clock time per decision.
        hang_s: longest wait for a single one.

    Attributes:
        failure: why the episode has no end; the checks need one.
        result: of the episode.
    """

    def __init__(
        self,
        policy: Any,
        layer: Layer,
        stage: Stage,
        limit_s: float = LIMIT_S,
        hang_s: float = HANG_S,
    ) -> None:
        self.policy = policy
        self.layer = layer
        self.stage = stage = replace(stage, scenario=resolve_scenario(stage.scenario))
        self.limit_s = limit_s
        self.watch = Watch(slow_s=limit_s, hang_s=hang_s)
        self.failure: Verdict | None = None
        before = surroundings(stage.scenario)
        try:
            self.result = self._play(self.watch)
        except (Exception, SystemExit) as error:
            text = one_line(f"{type(error).__name__}: {error}")
            self.failure = Verdict("plays", False, f"the episode ended with {text}")
        self.touched = [*changed(before, surroundings(stage.scenario))]

    def _play(self, watch: Watch, seed: int | None = None) -> Result:
        policy: Any = MAKERS[self.layer](self.policy)
        return self.stage.play(self.layer, policy, seed, [Watcher(self.layer, watch)])

    def checks(self) -> list[Callable[[], Verdict]]:
        """The checks of a finished episode, the cheapest first."""
        return [
            self.leaves_views_alone,
            self.leaves_surroundings_alone,
            self.is_quick,
            self.acts_by_decisions_alone,
            self.repeats_itself,
            self.is_blind_to_its_generator,
            self.is_as_good_on_fresh_seeds,
            self.starves_nobody,
            lambda: decides_alone(self.policy, self.layer, self.watch.tapes),
        ]

    def plays(self) -> Verdict:
        """It answered every decision point with what is allowed there."""
        count = sum(len(tape.answers) for tape in self.watch.tapes)
        attainment = float(self.result.summary["slo_attainment"])
        figures = {"decisions": count, "slo_attainment": attainment}
        reason = f"{count} legal decisions, attainment {attainment:.3f}"
        return Verdict("plays", bool(count), reason, figures)

    def leaves_views_alone(self) -> Verdict:
        """It wrote to nothing that it was given."""
        written = [tape.written for tape in self.watch.tapes if tape.written]
        if written:
            return Verdict("views", False, f"wrote to {written[0]}; copy what you change")
        return Verdict("views", True, "nothing that it was given was written to")

    def leaves_surroundings_alone(self) -> Verdict:
        """It changed nothing of the process."""
        if self.touched:
            names = ", ".join(self.touched[:5])
            cure = "keep state in the policy, draw from the generator that reset gives"
            return Verdict("surroundings", False, f"changed {names}; {cure}")
        return Verdict("surroundings", True, "global state of the process is as it was")

    def is_quick(self) -> Verdict:
        """Its decisions take less than the limit."""
        times = np.sort([s for tape in self.watch.tapes for s in tape.wall_s])
        mean_s = float(times[: max(int(0.99 * len(times)), 1)].mean())
        figures = {"mean_ms": round(mean_s * 1e3, 4), "limit_ms": self.limit_s * 1e3}
        text = f"a decision takes {mean_s * 1e3:.3f} ms (limit {self.limit_s * 1e3:.0f} ms)"
        cure = "" if mean_s <= self.limit_s else "; an engine would stand still meanwhile"
        return Verdict("decision-time", mean_s <= self.limit_s, text + cure, figures)

    def starves_nobody(self) -> Verdict:
        """Lost requests get their share (`evaluation.conduct.starvation`)."""
        played = SIEGES[self.layer].play(self.layer, self.policy)
        return starvation(played.records, played.slos)

    def acts_by_decisions_alone(self) -> Verdict:
        """Its recorded decisions, given by somebody else, make the same episode."""
        cls = RecordedEngine if self.layer == "engine" else RecordedRouter
        try:
            again = self.stage.play(self.layer, cls(iter(self.watch.tapes))).log_hash
        except PolicyError:  # they do not fit it
            again = "none, they do not fit"
        same = again == self.result.log_hash
        reason = "its recorded decisions make the same episode"
        if not same:
            reason = (
                f"its recorded decisions make another episode (log hash {self.result.log_hash}, "
                f"replayed {again}); it changed more than it decided"
            )
        return Verdict("replay", same, reason)

    def repeats_itself(self) -> Verdict:
        """Unwatched, and by its rule where it has one, it plays the same episode."""
        again = self.stage.play(self.layer, self.policy).log_hash
        same = again == self.result.log_hash
        reason = f"two plays of one episode have the log hash {again}"
        if not same:
            reason = (
                f"two plays of one episode differ (log hash {self.result.log_hash}, then {again}); "
                "draw from the generator that reset gives, forget everything in reset, and let "
                "rule say what decide does"
            )
        return Verdict("determinism", same, reason)

    def is_blind_to_its_generator(self) -> Verdict:
        """With another generator it decides alike, or as well if it draws from it."""
        swapped = Watch(swap=_foreign)
        other = self._play(swapped)
        if not any(tape.drew for tape in self.watch.tapes):
            same = other.log_hash == self.result.log_hash
            reason = "it draws nothing, and decides the same with another generator"
            if not same:
                reason = (
                    "it draws nothing, and decides otherwise with another generator on the same "
                    "traffic; a generator is to draw from, not to tell seeds by"
                )
            return Verdict("generator", same, reason)
        return self._draws_without_profit()

    def _draws_without_profit(self) -> Verdict:
        """Seeds that a policy is scored on must not be luckier for it than any generator."""
        own = self._attainments(self._test_seeds())
        foreign = self._attainments(self._test_seeds(), swap=_foreign)
        gain = np.subtract(own, foreign)
        chance = _chance(gain, np.zeros(len(gain)))
        text = f"the episode's own generator is worth {gain.mean():+.4f} of attainment"
        return _judged("generator", text, float(gain.mean()), chance, len(gain))

    def is_as_good_on_fresh_seeds(self) -> Verdict:
        """What it gains over the baseline, it gains on seeds that nobody has seen, too."""
        known, fresh = self._test_seeds(), fresh_seeds(SEEDS)
        gains = [
            np.subtract(self._attainments(seeds), self._attainments(seeds, BASELINE[self.layer]))
            for seeds in (known, fresh)
        ]
        more = float(gains[0].mean() - gains[1].mean())
        text = (
            f"its gain over {BASELINE[self.layer]} is {gains[0].mean():+.4f} on test seeds and "
            f"{gains[1].mean():+.4f} on fresh ones"
        )
        verdict = _judged("fresh-seeds", text, more, _chance(*gains), len(known))
        return replace(verdict, figures={**verdict.figures, "fresh_seeds": [*fresh]})

    def _test_seeds(self) -> tuple[int, ...]:
        return tuple(resolve_scenario(self.stage.scenario).test_seeds[:SEEDS])

    def _attainments(
        self, seeds: Sequence[int], policy: Any = None, swap: Swap | None = None
    ) -> FloatArray:
        """Attainment on every seed: unwatched, or with other generators."""
        found = []
        for seed in seeds:
            if swap is None:
                result = self.stage.play(self.layer, policy or self.policy, seed)
            else:
                result = self._play(Watch(swap=swap), seed)
            found.append(float(result.summary["slo_attainment"]))
        return np.array(found)


def fresh_seeds(count: int) -> tuple[int, ...]:
    """Seeds that nobody can have prepared for: 62 bits each from the system's entropy."""
    return tuple(secrets.randbits(62) for _ in range(count))


def _chance(gains: FloatArray, others: FloatArray) -> float:
    """P value of Welch's one-sided t test (Biometrika 34, 1947) that gains are larger."""
    from scipy.stats import ttest_ind

    if np.ptp(gains) == np.ptp(others) == 0:
        return float(gains[0] <= others[0])
    return float(ttest_ind(gains, others, equal_var=False, alternative="greater").pvalue)


def _judged(check: str, text: str, more: float, chance: float, seeds: int) -> Verdict:
    """A verdict on a gain that should not be there: neither large nor beyond chance."""
    passed = chance >= CHANCE or more < PROFIT
    cure = "" if passed else "; learn from the views, not from seeds"
    figures = {"gain": round(more, 6), "p_value": round(chance, 8), "seeds": seeds}
    return Verdict(check, passed, f"{text} ({seeds} seeds, p = {chance:.2g}){cure}", figures)


def _foreign(rng: np.random.Generator) -> np.random.Generator:
    """A generator that belongs to no seed, always the same for the same `rng`."""
    words = copy.deepcopy(rng).integers(0, 2**63, 4)
    return np.random.Generator(np.random.PCG64([0x5EED, *words.tolist()]))


def surroundings(scenario: str | Scenario) -> dict[str, Any]:
    """What a policy must leave as it was, by name."""
    world = resolve_scenario(scenario)
    found: dict[str, Any] = {
        "NumPy's global generator": repr(np.random.get_state()),  # noqa: NPY002
        "the generator of `random`": hash(random.getstate()),
        "the environment variables": dict(os.environ),
        "the working directory": os.getcwd(),
        "the scenario": world.hash(),
    }
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "synergy_gym" and module is not None:
            found |= {f"{name}.{key}": id(value) for key, value in vars(module).items()}
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Names of what is no longer as it was; what is new does not count."""
    for name, value in before.items():
        if name not in after or after[name] != value:
            yield name
