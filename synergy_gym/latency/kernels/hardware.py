"""The GPUs whose kernels are measured, and what a table of kernels does not say of them.

Kernel timings are those of the package aiconfigurator-core (Apache-2.0), extra `clocks`. What is
stated here has its source beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from synergy_gym.latency.kernels.errors import ClockError

ELEMENTWISE_MS = 0.0025
"""A small kernel (norm, rotation, activation, KV write) inside a CUDA graph: 2.4 to 2.8 us at 1 to
64 tokens on an RTX PRO 6000 (casys-kaist/LLMServingSim, MIT: layernorm, rotary_emb, act_fn)."""
ELEMENTWISE_BANDWIDTH = 0.8
"""Share of the memory bandwidth that such a kernel reaches (aiconfigurator-core's own factor)."""


@dataclass(frozen=True, slots=True)
class Attention:
    """How a GPU's attention kernels treat what the tables do not hold.

    Attributes:
        name: the kernel family that vLLM takes there.
        tile_rows: prompt tokens of one tile where a chunk with history is not split along its
            keys, so that a short chunk costs as much as one that fills the GPU; 0: it is split.
        mixed: how much longer decode attention takes in a step that also prefills, a share.
        source: of both.
    """

    name: str
    tile_rows: int
    mixed: float
    source: str


FLASH_2 = Attention(
    "FlashAttention 2",
    64,
    0.55,
    "18,960 measured steps of an RTX PRO 6000 (casys-kaist/LLMServingSim, MIT): chunks of 16 to "
    "256 tokens take equally long behind the same history; 0.54 to 0.64 at 3,000 to 300,000 "
    "tokens (2xA6000 step log of SynergySched's authors: 0.83)",
)
FLASH_3 = Attention(
    "FlashAttention 3",
    0,
    0.10,
    "34,560 steps of SynergySched's authors' H100 log: 9.67e-5 ms per context token of all steps, "
    "8.78e-5 of decode-only ones; short chunks are split along their keys",
)
FLASH_INFER = Attention(
    "FlashInfer (TRT-LLM kernels)",
    0,
    0.0,
    "prefills and decodes are launched apart",
)


@dataclass(frozen=True, slots=True)
class Sustained:
    """How much longer compute-bound work takes on a busy GPU than one kernel at a time.

    Attributes:
        factor: of what takes time in proportion to prompt tokens and pairs.
        low: end of its 95 % range.
        high: the other end.
        source: the evidence.
    """

    factor: float
    low: float
    high: float
    source: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: as profiles and `--gpu` name it.
        system: folder of its kernel tables.
        label: as engines of scenarios name it, after the number of GPUs.
        multiprocessors: streaming multiprocessors.
        bandwidth_bytes_per_ms: of the memory.
        attention: what vLLM takes there.
        sustained: see `Sustained`; for bf16 layers.
        fuses_sums: whether vLLM fuses sums over GPUs with the norm that follows (FlashInfer's
            kernels, which are TRT-LLM's), as InferenceMAX's scripts have it on the B200.
    """

    name: str
    system: str
    label: str
    multiprocessors: int
    bandwidth_bytes_per_ms: float
    attention: Attention
    sustained: Sustained
    fuses_sums: bool = False

    def sustained_for(self, gemm: str) -> Sustained:
        """`Sustained` for linear layers of a type."""
        return self.sustained if gemm == "bfloat16" else QUANTISED

    def engine_label(self, tp: int) -> str:
        """What a scenario's engine calls `tp` of them, e.g. `1xH100`."""
        return f"{tp}x{self.label}"


_H100 = Sustained(
    1.17,
    1.0,
    1.3,
    "between 1.10 of a single H100 (SynergySched's authors: 3,058 steps of 4,096 tokens, 104.3 ms "
    "on average) and 1.24 of eight busy ones in a node (experiments/replay/eight_h100.py)",
)
_H200 = Sustained(1.17, 1.0, 1.3, "the H100's chip at the same 700 W: its value, assumed")
_A100 = Sustained(
    1.12,
    1.0,
    1.2,
    "SynergySched's authors' fit of 66,495 steps of an A100: 0.0708 ms per token with 2,551 pairs",
)
_ASSUMED = Sustained(
    1.17, 1.0, 1.3, "no measurement under sustained load: the H100's value, assumed"
)
QUANTISED = Sustained(
    1.0,
    0.9,
    1.3,
    "quantised layers: 34,560 steps of QwQ-32B with FP8 weights on an H100 (SynergySched's "
    "authors) took 0.92 of the kernels' time per prompt token; on other GPUs assumed, up to the "
    "unquantised layers' upper end",
)

GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            Gpu("h100", "h100_sxm", "H100", 132, 3.350e9, FLASH_3, _H100),
            Gpu("h200", "h200_sxm", "H200", 132, 4.800e9, FLASH_3, _H200),
            Gpu("a100", "a100_sxm", "A100", 108, 2.039e9, FLASH_2, _A100),
            Gpu("b200", "b200_sxm", "B200", 148, 8.000e9, FLASH_INFER, _ASSUMED, True),
            Gpu("l40s", "l40s", "L40S", 142, 0.864e9, FLASH_2, _ASSUMED),
            Gpu(
                "rtxpro6000", "rtx_pro_6000_server", "RTX-PRO-6000", 188, 1.792e9, FLASH_2,
                _ASSUMED,
            ),
        )
    }
)  # fmt: skip
"""By name. Bandwidths and multiprocessors are the vendor's data sheets'."""


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in any spelling of case, blanks and dashes.

    Raises:
        ClockError: there are no kernel tables of it here.
    """
    key = "".join(c for c in name.lower() if c.isalnum()).removesuffix("sxm")
    if key in GPUS:
        return GPUS[key]
    close = difflib.get_close_matches(key, GPUS, n=1, cutoff=0.6)
    cure = f"did you mean {close[0]!r}? " if close else ""
    raise ClockError(
        f"GPU {name!r}: no kernel tables; {cure}measured are {', '.join(GPUS)} (for another GPU "
        "measure a running engine: synergy-gym calibrate --model)"
    )
