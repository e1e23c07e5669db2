"""One vLLM engine in this process: stepped one iteration at a time, reset in milliseconds.

Importing this module loads no vLLM; making a `Machine` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from synergy_gym.live.host import undisturbed
from synergy_gym.live.hosting.steering import ScheduledStep, Steering
from synergy_gym.live.inprocess.machine_config import MachineConfig
from synergy_gym.live.vllm.prompts import FIRST_ID
from synergy_gym.live.vllm.version import VllmUnavailableError, load_vllm
from synergy_gym.types import BatchDecision

WARM_UP_TOKENS = 4
CPU_BLOCK_TOKENS = 32
Timer = Callable[[], int]
"""A clock in nanoseconds, read before and after an iteration."""


@dataclass(slots=True)
class MachineStep:
    """What one `LLMEngine.step()` did; requests are named by their engine ids."""

    scheduled: ScheduledStep
    running: list[str]
    """Running list after scheduling, before anything finished."""
    waiting: list[str]
    refused: list[str]
    """Requests that can never fit any more; they have left."""
    emitted: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    elapsed_ns: int = -1


class Machine:
    """One in-process vLLM engine; it serves what `add` gives it, one `step` at a time.

    The KV blocks of requests that finish in a step are freed by `settle`, which ends it: what
    the client aborts at the same moment is freed first, as in the simulator.

    Args:
        config: limits, model and number format.

    Raises:
        VllmUnavailableError: vLLM cannot be used.
        ValueError: vLLM refuses the configuration.
    """

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.broken = False
        """A step failed half-way: nothing about the engine is known any more."""
        arguments = config.arguments()
        vllm = load_vllm(in_process=True)
        _check_blocks(config.spec.block_size)
        with undisturbed(config.threads):
            self._engine = _start(vllm, arguments)
        self._core = self._engine.engine_core.engine_core
        self.scheduler = self._core.scheduler
        self._check_synchronous()
        self.scheduler.kv_cache_manager.watermark_blocks = config.spec.watermark_blocks
        self.steering = Steering(self.scheduler, spec=config.spec)
        self.scheduler.director = self
        self.vocabulary = int(self._engine.model_config.get_vocab_size())
        self._params = vllm.SamplingParams
        self._delta = _output_kind()
        self._tokens: dict[str, list[int]] = {}
        self._identity: dict[str, str] = {}
        self._lost: list[Any] = []
        self._held: list[Any] = []
        self._step: MachineStep | None = None
        self._refusing_above = config.spec.kv_blocks * config.spec.block_size
        self._read: Timer | None = None
        self._aside_ns = 0
        self._start_ns = 0
        self._stepping = False
        self._warm_up()

    def add(self, name: str, tokens: list[int], output: int, priority: int, order: float) -> str:
        """Put a request into the waiting queue; returns its id in the engine.

        Args:
            name: a name that no other request here has; it breaks ties of priority scheduling.
            tokens: ids of prompt and output; the model's own samples are replaced by the latter.
            output: how many of `tokens` are output.
            priority: smaller is more urgent.
            order: breaks ties of priority; vLLM's `arrival_time`.
        """
        params = self._params(
            max_tokens=output, ignore_eos=True, temperature=0.0, detokenize=False,
            output_kind=self._delta,
        )  # fmt: skip
        prompt = {"type": "token", "prompt_token_ids": tokens[: len(tokens) - output]}
        identity = str(
            self._engine.add_request(name, prompt, params, arrival_time=order, priority=priority)
        )
        self._tokens[identity] = tokens
        self._identity[name] = identity
        return identity

    def abort(self, identities: Iterable[str]) -> None:
        """Take requests out that have not finished; their blocks are free at once."""
        wanted = list(identities)
        self._engine.abort_request(wanted, internal=True)
        for identity in wanted:
            self._forget(identity)

    def step(self, decision: BatchDecision, start_ns: int, read: Timer | None) -> MachineStep:
        """Run one iteration as `decision` says; `settle` must follow.

        Args:
            decision: checked by the caller.
            start_ns: when it starts, on the caller's clock.
            read: measures the iteration; `None` leaves `elapsed_ns` at -1.

        Raises:
            ValueError: the decision holds token caps above zero.
        """
        self.steering.apply(decision)
        self._start_ns = start_ns
        outputs, elapsed = self._run(read)
        step = self._step
        assert step is not None, "vLLM took a step without scheduling"
        step.elapsed_ns = elapsed
        step.emitted = [self._identity[output.request_id] for output in outputs]
        step.finished = [self._identity[o.request_id] for o in outputs if o.finished]
        for identity in step.finished:
            self._forget(identity)
        if step.refused:
            self.abort(step.refused)
            step.waiting = [name for name in step.waiting if name not in step.refused]
        return step

    def settle(self, aborted: Sequence[str] = ()) -> None:
        """End the step: free what the client aborted meanwhile, then what finished in it."""
        for identity in aborted:
            held = [request for request in self._held if request.request_id == identity]
            if held:
                self._held.remove(held[0])
                self.scheduler.release(held[0])
            else:
                self.abort([identity])
        for request in self._held:
            self.scheduler.release(request)
        self._held = []

    def reset(self) -> None:
        """Forget all requests and all cached content; also in the middle of an episode."""
        self.settle()
        if self.scheduler.requests:
            self.abort(list(self.scheduler.requests))
        if self.scheduler.has_requests():  # tells the model runner who has gone
            self._engine.step()
        self._return_blocks()
        if not self._engine.reset_prefix_cache():
            self.broken = True
            raise RuntimeError("vLLM did not reset its prefix cache: blocks are still in use")
        self._tokens, self._identity = {}, {}
        self._refusing_above = self.config.spec.kv_blocks * self.config.spec.block_size
        self.steering.apply_stock()
        _use_threads(self.config.threads)

    def queues(self) -> tuple[list[Any], list[Any]]:
        """The `Request` objects of vLLM that run and that wait."""
        return self.steering.queues()

    def free_blocks(self) -> int:
        """KV blocks that no request holds and that are not lost."""
        return self.steering.free_blocks()

    @property
    def lost_blocks(self) -> int:
        """KV blocks that were taken out of use."""
        return len(self._lost)

    def lose_free_blocks(self, blocks: int) -> None:
        """Take blocks out of use, from the front of the free queue."""
        self._lost += self.scheduler.kv_cache_manager.block_pool.get_new_blocks(blocks)

    def refuse_above(self, tokens: int) -> None:
        """Turn requests away, when they would be admitted, that have more known tokens."""
        self._refusing_above = tokens

    def software(self) -> dict[str, Any]:
        """The release of vLLM, and where it computes."""
        import vllm
        from vllm.platforms import current_platform

        device = str(current_platform.get_device_name())
        return {"vllm": str(vllm.__version__), "device": device}

    # -- called by the scheduler -------------------------------------------------------

    @property
    def is_stepping(self) -> bool:
        """Whether an iteration is being run (and not the queue emptied)."""
        return self._stepping

    def before_schedule(self) -> None:
        """Remember who runs, and be ready to note refusals."""
        self._step = MachineStep(ScheduledStep(self._start_ns, 0, {}, {}, []), [], [], [])
        self.steering.before_schedule()

    def refuses(self, request: Any) -> bool:
        """Whether the request at the head of the queue can never fit; it is noted if so."""
        if self._step is None or request.num_tokens <= self._refusing_above:
            return False
        if not request.num_stale_output_tokens:  # else the decision skips it
            self._step.refused.append(request.request_id)
        return True

    def after_schedule(self, output: Any) -> None:
        """Note what vLLM has scheduled; the time that this takes is not the engine's."""
        since = self._read() if self._read is not None else 0
        step = self._step
        assert step is not None
        step.scheduled = self.steering.scheduled(output, self._start_ns)
        running, waiting = self.queues()
        step.running = [request.request_id for request in running]
        step.waiting = [request.request_id for request in waiting]
        if self._read is not None:
            self._aside_ns += self._read() - since

    def replace_samples(self, output: Any) -> None:
        """Put the workload's own tokens in the place of those that the model sampled."""
        since = self._read() if self._read is not None else 0
        samples = output.sampled_token_ids
        for identity, index in output.req_id_to_index.items():
            request = self.scheduler.requests.get(identity)
            if request is None or index >= len(samples) or not len(samples[index]):
                continue
            place = request.num_prompt_tokens + request.num_output_tokens
            samples[index] = [self._tokens[identity][place]]
        if self._read is not None:
            self._aside_ns += self._read() - since

    def hold(self, request: Any) -> None:
        """Keep the blocks of a request that finished until the step ends."""
        self._held.append(request)

    # -- internals ---------------------------------------------------------------------

    def _run(self, read: Timer | None) -> tuple[list[Any], int]:
        """The step of vLLM, and how long it took without what is done here meanwhile."""
        self._read, self._aside_ns, self._step, self._stepping = read, 0, None, True
        try:
            began = read() if read is not None else 0
            outputs = self._engine.step()
            elapsed = read() - began - self._aside_ns if read is not None else -1
        except BaseException:
            self.broken = True
            raise
        finally:
            self._stepping = False
        return outputs, elapsed

    def _warm_up(self) -> None:
        """Serve one longest prompt, so that the first iterations that count are not the first.

        A real server does the same before it reports healthy.
        """
        spec = self.config.spec
        most = min(spec.max_model_len, spec.kv_blocks * spec.block_size)
        prompt = max(min(most - WARM_UP_TOKENS, spec.max_num_batched_tokens), 1)
        output = min(WARM_UP_TOKENS, most - prompt)
        if output > 0:
            self.add("warm-up", [FIRST_ID] * (prompt + output), output, 0, 0.0)
            while self.scheduler.has_unfinished_requests():
                self.step(BatchDecision(spec.max_num_batched_tokens), 0, None)
                self.settle()
        self.reset()

    def _forget(self, identity: str) -> None:
        self._tokens.pop(identity, None)
        self._identity.pop(identity.rpartition("-")[0], None)

    def _return_blocks(self) -> None:
        self.scheduler.kv_cache_manager.block_pool.free_blocks(self._lost)
        self._lost = []

    def _check_synchronous(self) -> None:
        config = self.scheduler.scheduler_config
        if config.async_scheduling or self._core.batch_queue is not None:
            raise VllmUnavailableError(
                "this vLLM schedules asynchronously although it was told not to; an engine that "
                "is stepped needs async_scheduling=False, take it out of engine_args"
            )


def _check_blocks(block_size: int) -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and block_size % CPU_BLOCK_TOKENS:
        raise ValueError(
            f"block_size is {block_size}; vLLM's attention on a CPU needs a multiple of "
            f"{CPU_BLOCK_TOKENS} tokens: change the scenario's block_size, or take a scenario made "
            "for a CPU, such as live-chat"
        )


def _use_threads(threads: int) -> None:
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _output_kind() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.DELTA


def _start(vllm: Any, arguments: dict[str, Any]) -> Any:
    try:
        engine = vllm.LLMEngine.from_engine_args(
            vllm.EngineArgs(scheduler_cls=stepped_scheduler(), **arguments)
        )
    except (ValueError, TypeError) as error:
        shown = {k: arguments[k] for k in ("model", "max_model_len", "block_size", "dtype")}
        raise ValueError(
            f"vLLM does not start an engine with {shown}: {error}; change the scenario's limits, "
            "the model or engine_args"
        ) from error
    # An engine that is collected would tear down what all engines of the process share.
    engine.engine_core._finalizer.detach()
    return engine


@functools.cache
def stepped_scheduler() -> Any:
    """The V1 scheduler of vLLM, telling its `director` (a `Machine`) what it does.

    Made on demand, because its base class is vLLM's.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    class SteppedScheduler(Scheduler):  # type: ignore[misc]
        director: Machine | None = None
        _holding = False

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            director = self.director
            if director is None or not director.is_stepping:
                return super().schedule(*args, **kwargs)
            director.before_schedule()
            output = super().schedule(*args, **kwargs)
            director.after_schedule(output)
            return output

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            director = self.director
            if director is None or not director.is_stepping:
                return super().update_from_output(scheduler_output, model_runner_output)
            director.replace_samples(model_runner_output)
            self._holding = True
            try:
                return super().update_from_output(scheduler_output, model_runner_output)
            finally:
                self._holding = False

        def release(self, request: Any) -> None:
            super()._free_request_blocks(request)

        def _free_request_blocks(self, request: Any) -> None:
            if self._holding and self.director is not None:
                self.director.hold(request)
            else:
                super()._free_request_blocks(request)

        def _handle_blocked_waiting_request(self, request: Any) -> bool:
            if self.director is not None and self.director.refuses(request):
                return False
            return bool(super()._handle_blocked_waiting_request(request))

    return SteppedScheduler
