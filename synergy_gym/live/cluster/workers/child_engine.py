"""A vLLM engine that batches by a policy, in the process of a worker."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from synergy_gym.live.cluster.messages import StepEnded
from synergy_gym.live.cluster.workers.messages import Add, Begin, Left, Start, Stepped
from synergy_gym.live.hosting.host import HostClock, HostedStep, PolicyHost
from synergy_gym.live.hosting.rehearsal import rehearse
from synergy_gym.live.hosting.steering import Steering
from synergy_gym.live.vllm.version import load_vllm
from synergy_gym.policies.registry import make_engine_policy
from synergy_gym.seeding import policy_stream
from synergy_gym.types import SLO, Outcome

WARM_UP = Add(
    ticket=0,
    tokens=[4, 5, 6, 7],
    output=2,
    slo_class=0,
    priority=0,
    arrival_ns=0,
    cache_salt="warm-up",
)
"""Played once before an engine is ready: the first steps of a process are slow."""


@dataclass(slots=True)
class _Attempt:
    """An attempt on this engine."""

    message: Add
    scheduled_ns: int = -1
    cached_tokens: int = 0
    preemptions: int = 0


class _LastStep:
    """Keeps the step that has just ended (a `StepListener`)."""

    def __init__(self) -> None:
        self.step: HostedStep | None = None

    def work_came(self, host: PolicyHost, now_ns: int) -> None:
        """Nothing: the parent knows when it sends work."""

    def step_ended(self, host: PolicyHost, step: HostedStep) -> None:
        """Keep it."""
        self.step = step

    def close(self) -> None:
        """Nothing is held."""


class HostedEngine:
    """An engine, its policy and the attempts on it.

    The tokens that the model samples are replaced by those of the workload, so that the next turn
    of a session finds its cached prefix.

    Args:
        start: limits, and what vLLM is started with.

    Raises:
        VllmUnavailableError: vLLM is absent, broken or of another release.
    """

    def __init__(self, start: Start) -> None:
        vllm = load_vllm(in_process=True)
        self.vllm_version = str(vllm.__version__)
        self._index = start.engine
        self._spec = start.spec
        self._last = _LastStep()
        self._zero_ns = time.monotonic_ns()
        self._orders = Begin(0, make_engine_policy("vllm-v1"), 0, (SLO("default"),))
        self._attempts: dict[str, _Attempt] = {}
        self._names: dict[int, str] = {}
        self._step_began_ns = -1
        self._rehearsed: set[str] = set()
        arguments = vllm.EngineArgs(scheduler_cls=_hosted_scheduler(self), **start.arguments)
        self._engine = vllm.LLMEngine.from_engine_args(arguments)
        self._scheduler = self._engine.engine_core.engine_core.scheduler
        self._scheduler.kv_cache_manager.watermark_blocks = start.spec.watermark_blocks
        self.vocabulary = int(self._engine.model_config.get_vocab_size())
        self._limit = min(start.spec.max_model_len, start.spec.kv_blocks * start.spec.block_size)
        self.add(WARM_UP)
        while self.has_work:
            self.step()

    @property
    def has_work(self) -> bool:
        """Whether there is something to step for."""
        return bool(self._attempts)

    def make_host(self, scheduler: Any) -> PolicyHost:
        """A host of the current episode's policy, which it resets."""
        orders = self._orders
        return PolicyHost(
            orders.policy,
            Steering(scheduler, spec=self._spec, slos=orders.slos),
            rng=policy_stream(orders.seed, self._index),
            clock=HostClock(now_ns=lambda: time.monotonic_ns() - self._zero_ns, wall_s=None),
            name=self._spec.name,
            engine=self._index,
            listeners=[self._last],
        )

    def begin(self, orders: Begin) -> None:
        """Forget everything, the prefix cache included, and follow another policy."""
        self._engine.abort_request(list(self._scheduler.requests), internal=True)
        self._attempts, self._names = {}, {}
        if self._scheduler.has_requests():  # tells the model runner who has gone
            self._engine.step()
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: blocks are still in use")
        if orders.policy.label not in self._rehearsed:
            rehearse(orders.policy, self._spec, orders.slos)
            self._rehearsed.add(orders.policy.label)
        self._orders, self._zero_ns = orders, time.monotonic_ns()
        self._scheduler.host.steering.apply_stock()
        self._scheduler.host = self.make_host(self._scheduler)

    def add(self, message: Add) -> Stepped | None:
        """Queue an attempt; returns its refusal when it can never be served."""
        prompt = message.tokens[: len(message.tokens) - message.output]
        if len(prompt) >= self._limit:
            return _refusal(message, f"{len(prompt)} prompt tokens, the limit is {self._limit}")
        try:
            name = self._engine.add_request(
                str(message.ticket),
                {"prompt_token_ids": prompt, "cache_salt": message.cache_salt},
                _sampling(message),
                priority=message.priority,
            )
        except ValueError as error:
            return _refusal(message, str(error))
        arrival_ns = message.arrival_ns - self._zero_ns
        self._scheduler.host.steering.notes[name].arrival_ns = arrival_ns
        self._attempts[name] = _Attempt(message)
        self._names[message.ticket] = name
        return None

    def abort(self, ticket: int) -> None:
        """Take an attempt out, if it is still here."""
        name = self._names.pop(ticket, None)
        if name is not None:
            self._engine.abort_request([name], internal=True)
            del self._attempts[name]

    def step(self) -> Stepped:
        """Run one iteration; tells what it did."""
        self._last.step = None
        outputs = self._engine.step()
        hosted, host = self._last.step, self._scheduler.host
        left = tuple(self._leave(int(o.request_id)) for o in outputs if o.finished)
        at_ns = self._zero_ns + (host.now_ns() if hosted is None else hosted.end_ns)
        return Stepped(
            at_ns=at_ns,
            tokens=tuple((int(o.request_id), len(o.outputs[0].token_ids)) for o in outputs),
            left=left,
            step=None if hosted is None else self._told(hosted, host, at_ns),
            failures=host.failed_steps,
            dropped_caps=host.dropped_caps,
        )

    # -- called by the scheduler -----------------------------------------------------------

    def sampled(self, output: Any) -> None:
        """The model has sampled: put the workload's own tokens in, and note who was admitted."""
        samples, notes = output.sampled_token_ids, self._scheduler.host.steering.notes
        for name, index in output.req_id_to_index.items():
            attempt, request = self._attempts.get(name), self._scheduler.requests.get(name)
            if attempt is None or request is None:
                continue
            if attempt.scheduled_ns < 0:
                attempt.scheduled_ns = self._step_began_ns
                attempt.cached_tokens = notes[name].cached_tokens
            attempt.preemptions = int(request.num_preemptions)
            if index < len(samples) and len(samples[index]):
                place = request.num_prompt_tokens + request.num_output_tokens
                samples[index] = [attempt.message.tokens[place]]

    def scheduling(self) -> None:
        """A step begins."""
        self._step_began_ns = time.monotonic_ns()

    # -- internals -------------------------------------------------------------------------

    def _leave(self, ticket: int) -> Left:
        attempt = self._attempts.pop(self._names.pop(ticket))
        return Left(
            ticket=ticket,
            outcome=Outcome.FINISHED,
            scheduled_ns=attempt.scheduled_ns,
            cached_tokens=attempt.cached_tokens,
            preemptions=attempt.preemptions,
        )

    def _told(self, hosted: HostedStep, host: PolicyHost, at_ns: int) -> StepEnded:
        return StepEnded(
            engine=self._index,
            at_ns=at_ns,
            report=hosted.report,
            gauges=host.gauges(),
            predicted_ns=hosted.ended.predicted_ns,
            told=tuple(host.told),
        )


def _refusal(message: Add, reason: str) -> Stepped:
    left = (Left(message.ticket, Outcome.REJECTED, reason),)
    return Stepped(at_ns=time.monotonic_ns(), left=left)


def _sampling(message: Add) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=message.output,
        ignore_eos=True,
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"slo_class": message.slo_class},
    )


def _hosted_scheduler(engine: HostedEngine) -> Any:
    """The plug-in's scheduler, which also tells `engine` what the model sampled."""
    from synergy_gym.live.scheduler import PolicyScheduler, with_host

    class HostedScheduler(PolicyScheduler):
        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            engine.scheduling()
            return super().schedule(*args, **kwargs)

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            engine.sampled(model_runner_output)
            return super().update_from_output(scheduler_output, model_runner_output)

    return with_host(engine.make_host, HostedScheduler)
