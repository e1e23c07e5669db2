"""vLLM's own V1 scheduler without a model: the oracle of the parity tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from synergy_gym.live.hosting.steering import ScheduledStep, Steering
from synergy_gym.live.vllm.tiny_model import write_model
from synergy_gym.live.vllm.version import load_vllm
from synergy_gym.types import BatchDecision, EngineSpec
from tests.parity.cases import Case
from tests.parity.sides import Result, State, report_features


class VllmSide:
    """vLLM's `Scheduler`, steered as a live engine is, and given true tokens as its samples."""

    def __init__(self, vllm: VllmModules, case: Case) -> None:
        self._vllm, self._case = vllm, case
        self._scheduler = vllm.scheduler(case.spec)
        self._steering = Steering(self._scheduler)
        assert self._steering.spec.watermark_blocks == case.spec.watermark_blocks
        assert self._steering.spec.kv_blocks == case.spec.kv_blocks
        self._evictions = _count_evictions(self._scheduler.kv_cache_manager.block_pool)
        self._tokens: dict[int, Sequence[int]] = {}
        self._rejected: list[int] = []
        self._output: Any = None
        self._step: ScheduledStep | None = None

    def accept(self, aborts: Sequence[int], arrivals: Sequence[int]) -> None:
        for request in aborts:
            self._abort(request)
        for request in arrivals:
            wanted = self._case.requests[request]
            if not self._vllm.accepts(self._case.spec, wanted.prompt):
                self._rejected.append(request)
                continue
            self._tokens[request] = tokens = self._case.tokens(request)
            self._scheduler.add_request(
                self._vllm.request(
                    _name(request), tokens, wanted, block_size=self._case.spec.block_size
                )
            )

    def state(self, step: int) -> State:
        running, waiting = self._steering.queues()
        tables = self._scheduler.kv_cache_manager.get_block_ids
        return State(
            running=[
                (_number(r.request_id), r.num_computed_tokens, r.num_output_tokens) for r in running
            ],
            waiting=[_number(r.request_id) for r in waiting],
            free_blocks=self._steering.free_blocks(),
            rejected=self._rejected.copy(),
            evictions=self._evictions[0],
            blocks=[tables(r.request_id)[0] for r in running],
        )

    def schedule(self, decision: BatchDecision) -> bool:
        self._steering.apply(decision)
        self._steering.before_schedule()
        self._output = self._scheduler.schedule()
        self._step = self._steering.scheduled(self._output, 0)
        return bool(self._step.scheduled)

    def end(self, aborts: set[int]) -> Result:
        step, output = self._step, self._output
        assert step is not None
        free = self._steering.free_blocks()
        running = [_number(r.request_id) for r in self._scheduler.running]
        for request in [r for r in running if r in aborts]:
            self._abort(request)
        for request in sorted(aborts.difference(running)):
            self._abort(request)
        finished = self._update(output)
        return Result(
            scheduled=_numbered(step.scheduled),
            tokens=output.total_num_scheduled_tokens,
            admitted=_numbered(step.admitted),
            preempted={_number(name) for name in step.preempted},
            finished=finished,
            features=report_features(step.report(0, 0, len(finished))),
            free_blocks=free,
        )

    def _abort(self, request: int) -> None:
        self._scheduler.finish_requests(_name(request), self._vllm.aborted)

    def _update(self, output: Any) -> list[int]:
        names = list(output.num_scheduled_tokens)
        sampled = [self._sample(name) for name in names]
        result = self._scheduler.update_from_output(output, self._vllm.output(names, sampled))
        outputs = [one for group in result.values() for one in group.outputs]
        return [_number(one.request_id) for one in outputs if one.finish_reason is not None]

    def _sample(self, name: str) -> list[int]:
        request = self._scheduler.requests.get(name)
        if request is None or request.num_computed_tokens < request.num_tokens:
            return []
        return [self._tokens[_number(name)][request.num_tokens]]


class VllmModules:
    """vLLM's classes, imported once, and how to build a scheduler from them.

    Raises:
        VllmUnavailableError: vLLM cannot be used here; the message says why.
    """

    def __init__(self, folder: Path) -> None:
        self.version = str(load_vllm(in_process=True).__version__)

        import torch
        from vllm import config
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1 import kv_cache_interface
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine.input_processor import InputProcessor
        from vllm.v1.outputs import ModelRunnerOutput
        from vllm.v1.request import Request, RequestStatus
        from vllm.v1.structured_output import StructuredOutputManager

        init_none_hash(sha256)
        self._torch, self._config, self._kv = torch, config, kv_cache_interface
        self._sampling, self._request, self._output = SamplingParams, Request, ModelRunnerOutput
        self._scheduler, self._structured = Scheduler, StructuredOutputManager
        self._hasher: Callable[[int], Any] = lambda size: get_request_block_hasher(size, sha256)
        self._validate, self._invalid = InputProcessor._validate_prompt_len, VLLMValidationError
        self.aborted = RequestStatus.FINISHED_ABORTED
        self._folder = write_model(folder, max_model_len=8192)
        self.model = lru_cache(maxsize=None)(self._model)

    def side(self, case: Case) -> VllmSide:
        """A fresh scheduler for `case`."""
        return VllmSide(self, case)

    def accepts(self, spec: EngineSpec, prompt: int) -> bool:
        """Whether vLLM's front end takes a prompt of this length."""
        front = SimpleNamespace(
            skip_prompt_length_check=False,
            supports_mm_inputs=False,
            model_config=self.model(spec.max_model_len),
        )
        try:
            self._validate(front, prompt, "decoder")
        except self._invalid:
            return False
        return True

    def scheduler(self, spec: EngineSpec) -> Any:
        """A scheduler with the limits of `spec` (block 0 is vLLM's null block)."""
        blocks = spec.kv_blocks + 1
        watermark = (spec.watermark_blocks + 0.5) / blocks if spec.watermark_blocks else 0.0
        scheduling = self._config.SchedulerConfig(
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            max_model_len=spec.max_model_len,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy=spec.scheduling,
            watermark=watermark,
        )
        cache = self._config.CacheConfig(
            block_size=spec.block_size, enable_prefix_caching=spec.prefix_caching
        )
        cache.num_gpu_blocks = blocks
        config = self._config.VllmConfig(
            model_config=self.model(spec.max_model_len),
            scheduler_config=scheduling,
            cache_config=cache,
            device_config=self._config.DeviceConfig(device="cpu"),
        )
        attention = self._kv.FullAttentionSpec(
            block_size=spec.block_size, num_kv_heads=1, head_size=1, dtype=self._torch.float32
        )
        return self._scheduler(
            vllm_config=config,
            kv_cache_config=self._kv.KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[self._kv.KVCacheGroupSpec(["layer"], attention)],
            ),
            structured_output_manager=self._structured(config),
            block_size=spec.block_size,
            log_stats=False,
        )

    def request(self, name: str, tokens: Sequence[int], wanted: Any, *, block_size: int) -> Any:
        """vLLM's own request for `wanted`; `tokens` are its prompt and its true output."""
        return self._request(
            request_id=name,
            prompt_token_ids=list(tokens[: wanted.prompt]),
            sampling_params=self._sampling(max_tokens=wanted.output, ignore_eos=True),
            pooling_params=None,
            arrival_time=float(wanted.arrival_step),
            priority=wanted.priority,
            block_hasher=self._hasher(block_size),
        )

    def output(self, names: list[str], sampled: list[list[int]]) -> Any:
        """What a model runner would return for these sampled tokens."""
        return self._output(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def _model(self, max_model_len: int) -> Any:
        return self._config.ModelConfig(
            model=str(self._folder),
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=max_model_len,
            seed=0,
        )


def _count_evictions(pool: Any) -> list[int]:
    """A counter, in a list of one, of the cached blocks that `pool` gives away."""
    count, evict = [0], pool._maybe_evict_cached_block

    def counted(block: Any) -> bool:
        evicted = bool(evict(block))
        count[0] += evicted
        return evicted

    pool._maybe_evict_cached_block = counted
    return count


def _numbered(values: dict[str, int]) -> dict[int, int]:
    return {_number(name): value for name, value in values.items()}


def _name(request: int) -> str:
    return f"{request:04d}"


def _number(name: str) -> int:
    return int(name)
