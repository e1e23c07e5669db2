"""What the LENS policies share: target latency, step model, search, decision.

LENS is the engine layer of SynergySched (arXiv 2509.23384; engine code of its authors,
KevinCheung2259/vllm, branch exp-v0.9.1, v1/core/sched/sla_aware). Before every step it takes a
target latency that grows with the queue, looks for the batch whose predicted time is nearest,
and gives tokens to single requests.

How the decision is said here: the budget is the solved token count (not the allocated sum), the
allocation goes into `token_caps`, decode priority into `running_order`. A live engine has no
hook for caps above zero of single requests. Requests are decodes when their *prompt* is computed
and waiting requests count their prompt only, so a preempted request recomputes its output one
token per step, as in the authors' code. Their 1 ms limit of wall time is `max_candidates`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from synergy_gym.latency.models.base import StepFeatures
from synergy_gym.latency.models.published import StepModelFile, loaded_model
from synergy_gym.latency.models.saturation import (
    FALLBACK_BASE_MS,
    FALLBACK_PER_TOKEN_MS,
    Form,
    SaturationModel,
)
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.lens_search import (
    MIN_START_TOKENS,
    Allocation,
    SearchSettings,
    StepTables,
)
from synergy_gym.types import (
    SLO,
    BatchDecision,
    EngineAdvert,
    EngineSpec,
    EngineView,
    StepReport,
)

if TYPE_CHECKING:  # compiled code: loaded by the first `reset`, not by a list of policies
    from synergy_gym.latency.models.online import OnlineSaturationModel
    from synergy_gym.policies.lens_compiled import CompiledSearch

Mode = Literal["auto", "pretrained", "hybrid", "online"]

RETRY_S = 1.0
"""While no fit is accepted, simulated seconds between tries (the authors: every step)."""


@dataclass
class Lens(EnginePolicy):
    """Base class of the LENS policies; see the module and `lens_search`.

    Attributes:
        slo_tpot_ms: the longest target latency of a step.
        chunk_tokens: most prefill tokens per request and step, >= 16.
        max_candidates: batch sizes that are tried (None: all).
        spill: left-over budget may go to requests that the allocation did not reach.
        mode: where the step model comes from. "pretrained": the published one for the engine's
            GPU and model, never updated; "hybrid": that one, updated; "online": learnt from
            the engine's own steps; "auto": pretrained where one is published, else online.
        step_model: which of the authors' files is the published one: "engine", the one fitted on
            the engine's GPU and model, or "authors-default", the one that their configuration
            names for every engine (`latency.models.published.AUTHORS_DEFAULT`).
    """

    slo_tpot_ms: float = 50.0
    chunk_tokens: int = 512
    max_candidates: int | None = None
    spill: bool = True
    mode: Mode = "auto"
    step_model: StepModelFile = "engine"
    _tables: StepTables | None = field(default=None, init=False, repr=False, compare=False)

    uses_token_caps: ClassVar[bool] = True
    form: ClassVar[Form] = "stable"

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Load the step model, or start to learn one.

        Raises:
            ValueError: a parameter out of range, or no published model for mode "pretrained"
                or "hybrid".
        """
        self._check()
        self._settings = self.search_settings(spec)
        self._model = self._start_model(spec)
        self._use(self._model.current)
        self.bypassed = 0
        """Decisions taken without LENS: no model, or nothing to allocate."""

    def search_settings(self, spec: EngineSpec) -> SearchSettings:
        """What the search needs to know of this policy and engine."""
        return SearchSettings(
            max_tokens=spec.max_num_batched_tokens,
            chunk_tokens=self.chunk_tokens,
            max_candidates=self.max_candidates,
            spill=self.spill,
        )

    def target_ms(self, waiting: int) -> float:
        """Target latency of a step with `waiting` requests in the queue."""
        return self.slo_tpot_ms

    def decide(self, engine: EngineView) -> BatchDecision:
        """The allocation nearest to the target; plain chunked prefill without one."""
        if self._model.current is not self._used:
            self._use(self._model.current)
        if self._search is None:
            return self._bypass(engine, "no step model has been accepted yet")
        running, waiting = engine.running, engine.waiting
        target_ms = self.target_ms(len(waiting))
        found = self._search(
            running.prompt_tokens, running.computed_tokens, waiting.prompt_tokens, target_ms
        )
        if found is None:
            return self._bypass(engine, "no candidate gives any request a token")
        return self._decision(found)

    def observe(self, step: StepReport) -> None:
        """Let the step model learn, where the mode says so."""
        end_s = step.start_s + step.step_s
        self._model.observe(StepFeatures.of(step), step.step_s * 1000, end_s)

    def _use(self, model: SaturationModel | None) -> None:
        from synergy_gym.policies.lens_compiled import CompiledSearch

        self._used = model
        self._told = False
        self._search: CompiledSearch | None = None
        if model is not None:
            if self._tables is None or self._tables.model != model:
                self._tables = StepTables(model)  # milliseconds, so kept across episodes
            self._search = CompiledSearch(self._tables, self._settings)

    def _decision(self, found: Allocation) -> BatchDecision:
        return BatchDecision(
            token_budget=found.budget,
            running_order=found.running_order,
            token_caps=found.caps,
            advert=self._advert(found.predicted_ms),
        )

    def _bypass(self, engine: EngineView, reason: str) -> BatchDecision:
        if not self.bypassed:
            logging.getLogger(__name__).warning(
                "%s on engine %r: %s, so it schedules like vLLM (logged once, counted)",
                self.label,
                engine.spec.name,
                reason,
            )
        self.bypassed += 1
        limit = engine.spec.max_num_batched_tokens
        return BatchDecision(limit, advert=self._advert(self.slo_tpot_ms))

    def _advert(self, predicted_ms: float) -> EngineAdvert:
        """The predicted step, and the model's figures when they are new."""
        predicted_s = predicted_ms / 1000
        if self._told:
            return EngineAdvert(predicted_s)
        self._told = True
        return replace(self._model.advert(), predicted_step_s=predicted_s)

    def _start_model(self, spec: EngineSpec) -> OnlineSaturationModel:
        from synergy_gym.latency.models.online import OnlineSaturationModel, online_settings

        published, mode = loaded_model(spec, self.form, self.step_model), self.mode
        if mode == "auto":
            mode = "online" if published is None else "pretrained"
            if published is None:
                self._warn_online(spec)
        elif mode != "online" and published is None:
            raise ValueError(
                f"policy {self.label}: no {self.form} model is published for {spec.model} on "
                f"{spec.gpu} (engine {spec.name!r}); use mode=online or mode=auto"
            )
        settings = online_settings("env", form=self.form, mode=mode, retry_s=RETRY_S)
        return OnlineSaturationModel(settings, None if mode == "online" else published)

    def _warn_online(self, spec: EngineSpec) -> None:
        logging.getLogger(__name__).warning(
            "%s on engine %r: no %s model is published for %s on %s, so it learns one from its "
            "own steps",
            self.label,
            spec.name,
            self.form,
            spec.model,
            spec.gpu,
        )

    def _check(self) -> None:
        if self.slo_tpot_ms <= 0:
            raise ValueError(f"policy {self.label}: slo_tpot_ms={self.slo_tpot_ms}; use above 0")
        if self.mode == "online" and self.step_model != "engine":
            raise ValueError(
                f"policy {self.label}: mode=online loads no file; leave step_model out, or use "
                "mode=pretrained or mode=hybrid"
            )
        if self.chunk_tokens < MIN_START_TOKENS:
            raise ValueError(
                f"policy {self.label}: chunk_tokens={self.chunk_tokens}; LENS starts no prompt "
                f"with fewer than {MIN_START_TOKENS} tokens, so use at least that"
            )
        if self.max_candidates is not None and self.max_candidates < 1:
            raise ValueError(
                f"policy {self.label}: max_candidates={self.max_candidates}; use none or 1 and more"
            )


@dataclass
class RampLens(Lens):
    """LENS with the submission's target latency: a ramp over the length of the queue.

    Attributes:
        t_min_ms: target latency of a step while nothing waits.
        queue_threshold: waiting requests at which the ramp ends (0 or less: no ramp).
        early_stop: the search stops below this relative error of the predicted time.
    """

    t_min_ms: float = 15.0
    queue_threshold: int = 5
    early_stop: float = 0.1

    def search_settings(self, spec: EngineSpec) -> SearchSettings:
        """The shared settings with this early stop."""
        return replace(super().search_settings(spec), early_stop=self.early_stop)

    def target_ms(self, waiting: int) -> float:
        """`t_min_ms` with an empty queue, `slo_tpot_ms` from the threshold on."""
        target = self.t_min_ms
        if self.queue_threshold > 0:
            target += (self.slo_tpot_ms - self.t_min_ms) / self.queue_threshold * waiting
        least = max(self.t_min_ms, FALLBACK_BASE_MS + FALLBACK_PER_TOKEN_MS)
        return min(max(target, least), self.slo_tpot_ms)

    def _check(self) -> None:
        super()._check()
        if not 0 < self.t_min_ms <= self.slo_tpot_ms:
            raise ValueError(
                f"policy {self.label}: t_min_ms={self.t_min_ms} and "
                f"slo_tpot_ms={self.slo_tpot_ms}; use 0 < t_min_ms <= slo_tpot_ms"
            )
        if self.early_stop < 0:
            raise ValueError(f"policy {self.label}: early_stop={self.early_stop}; use 0 and more")
