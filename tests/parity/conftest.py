"""vLLM's own V1 scheduler without a model: the oracle of the parity tests."""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from synergy_gym.types import BatchDecision, EngineSpec

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}
PINNED = "0.32.0"


EngineState = tuple[list[tuple[int, int, int]], list[int], int]
"""(request, computed, generated) of the running list; the waiting queue; free blocks."""


class VllmScheduler:
    """The `Scheduler` object of vLLM, driven one iteration at a time with true tokens.

    `coverage` counts how often the interesting cases occur.
    """

    def __init__(self, vllm: Any, spec: EngineSpec, coverage: Counter[str]) -> None:
        self._vllm = vllm
        self._size = spec.block_size
        self._scheduler = vllm.build(spec)
        self._tokens: dict[int, Sequence[int]] = {}
        self._coverage = coverage

    def add(
        self, request: int, prompt: int, tokens: Sequence[int], priority: int, arrival: float
    ) -> None:
        """Queue a request; `tokens` are its prompt and the output it is going to emit."""
        self._tokens[request] = tokens
        self._scheduler.add_request(
            self._vllm.request(_name(request), prompt, tokens, priority, arrival, self._size)
        )

    def abort(self, requests: Iterable[int]) -> None:
        """Cancel requests, one after the other."""
        for request in requests:
            self._coverage["aborts"] += 1
            self._scheduler.finish_requests(_name(request), self._vllm.aborted)

    def state(self) -> EngineState:
        """The queues and the number of free blocks."""
        scheduler = self._scheduler
        running = [
            (_number(r), r.num_computed_tokens, r.num_output_tokens) for r in scheduler.running
        ]
        waiting = [_number(r) for r in scheduler.waiting]
        return running, waiting, scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def step(
        self, decision: BatchDecision, due_if_idle: set[int], due: set[int]
    ) -> tuple[dict[str, Any], set[int]]:
        """Schedule, cancel the requests that are due, then hand in the sampled tokens.

        An iteration that schedules nothing lasts longer, so that others may be due then.
        Returns what happened and the requests that were cancelled.
        """
        scheduler = self._scheduler
        skipped = self._apply(decision)
        before = list(scheduler.running)
        missing = {r.request_id: r.num_tokens - r.num_computed_tokens for r in before}
        output = scheduler.schedule()
        for request in skipped:
            request.num_stale_output_tokens = 0
        scheduled = {int(name): n for name, n in output.num_scheduled_tokens.items()}
        admitted = [r for r in scheduler.running if r not in before]
        hits = {_number(r): r.num_computed_tokens - scheduled[_number(r)] for r in admitted}
        preempted = {int(name) for name in output.preempted_req_ids or ()}
        self._count(decision, before, missing, output, hits, skipped)
        running = [_number(r) for r in scheduler.running]
        abort_during = due if scheduled else due_if_idle
        self.abort([r for r in running if r in abort_during])
        self.abort(sorted(abort_during.difference(running)))
        finished = self._update(output)
        result = {
            "scheduled": scheduled,
            "tokens": sum(scheduled.values()),
            "preempted": preempted,
            "admitted": hits,
            "finished": finished,
        }
        return result, abort_during

    def _apply(self, decision: BatchDecision) -> list[Any]:
        """Set caps, orders and skips; returns the waiting requests that are skipped."""
        scheduler = self._scheduler
        scheduler.max_num_scheduled_tokens = decision.token_budget
        limit = decision.max_running
        scheduler.max_num_active_reqs = scheduler.max_num_running_reqs if limit is None else limit
        scheduler.scheduler_config.long_prefill_token_threshold = decision.prefill_chunk
        skipped = self._skip(decision)
        if decision.running_order is not None:
            scheduler.running = [scheduler.running[i] for i in decision.running_order]
        if decision.waiting_order is not None:
            ordered = [scheduler.waiting[i] for i in decision.waiting_order]
            assert isinstance(scheduler.waiting, deque)
            scheduler.waiting.clear()
            scheduler.waiting.extend(ordered)
        return skipped

    def _skip(self, decision: BatchDecision) -> list[Any]:
        scheduler = self._scheduler
        if decision.token_caps is None:
            return []
        requests = [*scheduler.running, *scheduler.waiting]
        passed = [r for r, cap in zip(requests, decision.token_caps, strict=True) if cap == 0]
        running = [r for r in passed if r in scheduler.running]
        waiting = [r for r in passed if r not in scheduler.running]
        for request in running:
            request.next_decode_eligible_step = scheduler.current_step + 2
        for request in waiting:
            # The scan passes over a request whose output of an earlier step is still due.
            request.num_stale_output_tokens = 1
        self._coverage["skips"] += len(passed)
        return waiting

    def _update(self, output: Any) -> list[int]:
        names = list(output.num_scheduled_tokens)
        sampled = [self._sample(name) for name in names]
        result = self._scheduler.update_from_output(output, self._vllm.output(names, sampled))
        outputs = [one for group in result.values() for one in group.outputs]
        return [int(one.request_id) for one in outputs if one.finish_reason is not None]

    def _sample(self, name: str) -> list[int]:
        request = self._scheduler.requests.get(name)
        if request is None or request.num_computed_tokens < request.num_tokens:
            return []
        return [self._tokens[int(name)][request.num_tokens]]

    def _count(
        self,
        decision: BatchDecision,
        before: list[Any],
        missing: dict[str, int],
        output: Any,
        hits: dict[int, int],
        skipped: list[Any],
    ) -> None:
        coverage, scheduler = self._coverage, self._scheduler
        scheduled = output.num_scheduled_tokens
        preempted = output.preempted_req_ids or ()
        coverage["steps"] += 1
        coverage["preemptions"] += len(preempted)
        last = {r.request_id for r in before[len(before) - len(preempted) :]}
        coverage["priority_victims"] += sum(name not in last for name in preempted)
        coverage["hit_tokens"] += sum(hits.values())
        chunk = decision.prefill_chunk
        missing = missing | {
            _name(r): scheduler.requests[_name(r)].num_tokens - hit for r, hit in hits.items()
        }
        coverage["capped_chunks"] += sum(0 < chunk == n < missing[r] for r, n in scheduled.items())
        stopped = len(scheduler.waiting) > len(skipped) and not preempted
        seats = scheduler.max_num_active_reqs - len(scheduler.running)
        budget = decision.token_budget - output.total_num_scheduled_tokens
        coverage["gate_blocked"] += stopped and seats > 0 and budget > 0


class VllmModules:
    """vLLM's classes, imported once, and how to build a scheduler from them."""

    def __init__(self, model_dir: Path) -> None:
        import torch
        import vllm
        from vllm import config
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1 import kv_cache_interface
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.outputs import ModelRunnerOutput
        from vllm.v1.request import Request, RequestStatus
        from vllm.v1.structured_output import StructuredOutputManager

        if not vllm.__version__.startswith(PINNED):
            raise ImportError(f"vLLM {vllm.__version__} is installed, these tests pin {PINNED}")
        init_none_hash(sha256)
        self._torch, self._config, self._kv = torch, config, kv_cache_interface
        self._sampling, self._request, self._output = SamplingParams, Request, ModelRunnerOutput
        self._scheduler, self._structured = Scheduler, StructuredOutputManager
        self._hasher: Callable[[int], Any] = lambda size: get_request_block_hasher(size, sha256)
        self.aborted = RequestStatus.FINISHED_ABORTED
        self._model = config.ModelConfig(
            model=str(model_dir),
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=4096,
            seed=0,
        )

    def scheduler(self, spec: EngineSpec, coverage: Counter[str]) -> VllmScheduler:
        """A fresh scheduler behind the interface of the tests."""
        return VllmScheduler(self, spec, coverage)

    def build(self, spec: EngineSpec) -> Any:
        """A scheduler with the limits of `spec` (block 0 is vLLM's null block)."""
        blocks = spec.kv_blocks + 1
        scheduling = self._config.SchedulerConfig(
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            max_model_len=4096,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy=spec.scheduling,
        )
        cache = self._config.CacheConfig(
            block_size=spec.block_size, enable_prefix_caching=spec.prefix_caching
        )
        cache.num_gpu_blocks = blocks
        config = self._config.VllmConfig(
            model_config=self._model,
            scheduler_config=scheduling,
            cache_config=cache,
            device_config=self._config.DeviceConfig(device="cpu"),
        )
        attention = self._kv.FullAttentionSpec(
            block_size=spec.block_size, num_kv_heads=1, head_size=1, dtype=self._torch.float32
        )
        scheduler = self._scheduler(
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
        scheduler.kv_cache_manager.watermark_blocks = spec.watermark_blocks
        return scheduler

    def request(
        self,
        name: str,
        prompt: int,
        tokens: Sequence[int],
        priority: int,
        arrival: float,
        block_size: int,
    ) -> Any:
        """A request whose output ends after `len(tokens) - prompt` tokens."""
        sampling = self._sampling(max_tokens=len(tokens) - prompt, ignore_eos=True)
        return self._request(
            request_id=name,
            prompt_token_ids=list(tokens[:prompt]),
            sampling_params=sampling,
            pooling_params=None,
            arrival_time=arrival,
            priority=priority,
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


@pytest.fixture(scope="session")
def vllm_modules(tmp_path_factory: pytest.TempPathFactory) -> VllmModules:
    """vLLM, or a skip that says why it cannot be used here."""
    os.environ.update(ENVIRONMENT)
    state = random.getstate()
    try:
        from transformers import LlamaConfig

        folder = tmp_path_factory.mktemp("tiny-llama")
        LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=1024,
            max_position_embeddings=8192,
            architectures=["LlamaForCausalLM"],
        ).save_pretrained(folder)
        return VllmModules(folder)
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"vLLM {PINNED} is not usable here (`make vllm`): {error!r}")
    finally:
        random.setstate(state)


def _name(request: int) -> str:
    return f"{request:04d}"


def _number(request: Any) -> int:
    return int(request.request_id)
