"""vLLM's scheduler classes without a model: built, given requests, and answered by hand."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from synergy_gym.types import EngineSpec

SPEC = EngineSpec(
    name="alone",
    gpu="none",
    model="tiny",
    profile="",
    max_num_seqs=8,
    max_num_batched_tokens=128,
    max_model_len=1024,
    kv_blocks=200,
    block_size=16,
)


def build_scheduler(
    cls: Any, model: Path, spec: EngineSpec = SPEC, *, asynchronous: bool = False
) -> Any:
    """A scheduler of class `cls` with the limits of `spec` (block 0 is vLLM's null block).

    vLLM turns asynchronous scheduling off on processors, so it is set after its own checks.
    """
    import torch
    from vllm import config
    from vllm.v1 import kv_cache_interface as kv
    from vllm.v1.structured_output import StructuredOutputManager

    cache = config.CacheConfig(
        block_size=spec.block_size, enable_prefix_caching=spec.prefix_caching
    )
    cache.num_gpu_blocks = spec.kv_blocks + 1
    whole = config.VllmConfig(
        model_config=config.ModelConfig(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=spec.max_model_len,
            seed=0,
        ),
        scheduler_config=config.SchedulerConfig(
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            max_model_len=spec.max_model_len,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy=spec.scheduling,
        ),
        cache_config=cache,
        device_config=config.DeviceConfig(device="cpu"),
    )
    whole.scheduler_config.async_scheduling = asynchronous
    attention = kv.FullAttentionSpec(
        block_size=spec.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    return cls(
        vllm_config=whole,
        kv_cache_config=kv.KVCacheConfig(
            num_blocks=spec.kv_blocks + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[kv.KVCacheGroupSpec(["layer"], attention)],
        ),
        structured_output_manager=StructuredOutputManager(whole),
        block_size=spec.block_size,
        log_stats=False,
    )


def add_request(
    scheduler: Any,
    name: str,
    prompt: int,
    output: int,
    *,
    priority: int = 0,
    **extra: Any,
) -> Any:
    """Queue a request that emits `output` tokens; `extra` are its extra arguments."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    sampling = SamplingParams(max_tokens=output, ignore_eos=True, extra_args=extra or None)
    request = Request(
        request_id=name,
        prompt_token_ids=[7] * prompt,
        sampling_params=sampling,
        pooling_params=None,
        priority=priority,
    )
    scheduler.add_request(request)
    return request


def abort(scheduler: Any, *names: str) -> None:
    """Cancel requests, as a client that hangs up does."""
    from vllm.v1.request import RequestStatus

    scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)


class Loop:
    """The engine core's loop: one step at a time, or with `depth` of them in flight."""

    def __init__(self, scheduler: Any, depth: int = 1) -> None:
        self.scheduler = scheduler
        self.depth = depth
        self._batches: deque[tuple[Any, dict[str, bool]]] = deque()

    def schedule(self) -> Any:
        """Schedule a step and send it off."""
        output = self.scheduler.schedule()
        samples = {name: self._samples(name) for name in output.num_scheduled_tokens}
        self._batches.append((output, samples))
        return output

    def answer(self) -> Any:
        """The oldest step's output comes back."""
        from vllm.v1.outputs import ModelRunnerOutput

        output, samples = self._batches.popleft()
        names = list(output.num_scheduled_tokens)
        return self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: i for i, name in enumerate(names)},
                sampled_token_ids=[[7] if samples[name] else [] for name in names],
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )

    def step(self) -> Any:
        """What the engine core does once; returns what was scheduled."""
        output = self.schedule() if self.scheduler.has_requests() else None
        while len(self._batches) >= self.depth or (self._batches and not self._useful(output)):
            self.answer()
            if self.depth > 1:
                break
        return output

    def run(self, most: int = 10_000) -> int:
        """Step until everything has finished; returns the steps."""
        for number in range(most):
            if not self.scheduler.has_requests() and not self._batches:
                return number
            self.step()
        raise AssertionError(f"requests are left after {most} steps")

    def _useful(self, output: Any) -> bool:
        return output is not None and output.total_num_scheduled_tokens > 0

    def _samples(self, name: str) -> bool:
        request = self.scheduler.requests[name]
        return not request.is_prefill_chunk
