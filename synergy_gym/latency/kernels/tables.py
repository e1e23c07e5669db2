"""Measured kernel times of aiconfigurator-core, interpolated between what was measured.

A kernel never takes longer than a larger one of its kind (it could be padded), so a time that is
more than `OUTLIER` above that of any larger shape is a bad choice of the tuner in that one
measurement, and is replaced by the larger shape's. Between measured shapes times are interpolated
in logarithms over the sizes of a layer and in straight lines over tokens; outside of them nothing
is guessed, except that the output head and long messages go on in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.arrays import FloatArray
from synergy_gym.latency.kernels.errors import ClockError
from synergy_gym.latency.kernels.hardware import Gpu

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "aiconfigurator_core"
OUTLIER = 1.10
NEEDS = (
    "kernel tables are in the extra `clocks`, which is not installed; "
    "pip install 'synergy-gym[clocks]'"
)
LAUNCHED = frozenset({("vllm", "fp8_block"), ("trtllm", "fp8"), ("trtllm", "nvfp4")})
"""Tables (engine, type of layer) whose times hold a launch or the scaling of the input.

The smallest layer takes 55 us on an H100 and 151 us on a B200 in the first (4 to 5 us with the
other engine), 12 us in the second (5 us); the third is 4 us above the other engine at every size.
"""
EXPERT_LOAD = "power_law_1.2"
"""How unequal the experts' load was when they were measured; the wheel's own default."""


def package_folder() -> Path:
    """Where aiconfigurator-core lies.

    Raises:
        ClockError: it, or what reads its files, is not installed.
    """
    from importlib.util import find_spec

    found = find_spec(PACKAGE)
    if found is None or found.origin is None or find_spec("pyarrow") is None:
        raise ClockError(NEEDS)
    return Path(found.origin).parent


def package_version() -> str:
    """Version of aiconfigurator-core."""
    from importlib import metadata

    return metadata.version(PACKAGE.replace("_", "-"))


@dataclass(frozen=True, slots=True)
class Source:
    """The tables of one GPU, measured with the kernels of one engine.

    Attributes:
        gpu: whose.
        engine: "vllm" or "trtllm".
    """

    gpu: Gpu
    engine: str = "vllm"

    def read(self, family: str, table: str) -> tuple[pd.DataFrame, str]:
        """A table of the newest version that has it, and which version that is.

        Raises:
            ClockError: there is none for this GPU.
        """
        home = package_folder() / "systems" / "data" / self.gpu.system / family / self.engine
        found = [path for path in home.glob(f"*/{table}.parquet")] if home.is_dir() else []
        if not found:
            raise ClockError(
                f"GPU {self.gpu.name!r}: no {table} of {self.engine} kernels in {PACKAGE} "
                f"{package_version()}"
            )
        newest = max(found, key=lambda path: _version(path.parent.name))
        return _parquet(newest), newest.parent.name


def _version(text: str) -> tuple[int, ...]:
    """Numbers of a version; release candidates before their release."""
    main, _, candidate = text.partition("rc")
    numbers = [int(part) for part in main.split(".") if part.isdigit()]
    return (*numbers, *(0,) * (3 - len(numbers)), int(candidate) if candidate.isdigit() else 10**6)


@lru_cache(maxsize=32)
def _parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(path)


def without_outliers(times: FloatArray) -> FloatArray:
    """Times (nan where not measured) with those replaced that exceed a larger shape's.

    Args:
        times: increasing sizes along every axis.
    """
    least = np.where(np.isnan(times), np.inf, times)
    for axis in range(times.ndim):
        least = np.flip(np.minimum.accumulate(np.flip(least, axis), axis), axis)
    return np.where(times > OUTLIER * least, least, times)


def _pivot(frame: Any, axes: tuple[str, ...]) -> tuple[tuple[FloatArray, ...], FloatArray]:
    """Sizes along each axis, and least latencies over their product, nan where not measured."""
    best = frame.groupby(list(axes), as_index=False).latency.min()
    sizes = tuple(np.sort(best[name].unique()).astype(float) for name in axes)
    times = np.full(tuple(map(len, sizes)), np.nan)
    at = tuple(np.searchsorted(s, best[n].to_numpy()) for s, n in zip(sizes, axes, strict=True))
    times[at] = best.latency
    return sizes, times


def _place(sizes: FloatArray, value: float) -> tuple[int, int, float]:
    """Neighbours of a size and how far it is towards the second, in logarithms."""
    at = int(np.searchsorted(sizes, value))
    if at < len(sizes) and sizes[at] == value:
        return at, at, 0.0
    at = min(max(at - 1, 0), len(sizes) - 2)
    low, high = np.log(sizes[at]), np.log(sizes[at + 1])
    return at, at + 1, float((np.log(value) - low) / (high - low))


def _with_other_engine(source: Source, frame: Any) -> Any:
    """Linear layers of both engines; the engine's own alone where the other has none."""
    import pandas as pd

    other = Source(source.gpu, "trtllm" if source.engine == "vllm" else "vllm")
    try:
        return pd.concat([frame, other.read("gemm", "gemm_perf")[0]])
    except ClockError:
        return frame


class Gemm:
    """Time of a linear layer of one type: tokens x (in, out) features.

    Where an engine's kernels were timed with their launch (`LAUNCHED`), which a CUDA graph saves,
    the other engine's time of the same layer counts if it is shorter.

    Args:
        source: whose kernels.
        dtype: one of `shape.GEMM_TYPES`.

    Raises:
        ClockError: no such type was measured.
    """

    def __init__(self, source: Source, dtype: str) -> None:
        frame, self.version = source.read("gemm", "gemm_perf")
        known = sorted(frame.gemm_dtype.unique())
        if dtype not in known:
            raise ClockError(
                f"GPU {source.gpu.name!r}: no linear layers of type {dtype} in the tables of "
                f"{source.engine} {self.version}; measured are {', '.join(known)}"
            )
        self.dtype = dtype
        if (source.engine, dtype) in LAUNCHED:
            frame = _with_other_engine(source, frame)
        axes, times = _pivot(frame[frame.gemm_dtype == dtype], ("m", "n", "k"))
        self.tokens, self.outs, self.ins = axes
        self._log = np.log(without_outliers(times))
        self._curves: dict[tuple[int, int], tuple[FloatArray, FloatArray]] = {}

    def ms(self, tokens: int, out: int, into: int) -> float:
        """Time of `tokens` rows through a layer from `into` to `out` features, ms.

        Raises:
            ClockError: a width outside the table.
        """
        grid, times = self._curve(out, into)
        if tokens > grid[-1]:
            return float(times[-1] * tokens / grid[-1])
        return float(np.interp(tokens, grid, times))

    def _curve(self, out: int, into: int) -> tuple[FloatArray, FloatArray]:
        if (out, into) not in self._curves:
            self._check(out, into)
            i, i1, a = _place(self.outs, out)
            j, j1, b = _place(self.ins, into)
            log = (1 - a) * ((1 - b) * self._log[:, i, j] + b * self._log[:, i, j1])
            log = log + a * ((1 - b) * self._log[:, i1, j] + b * self._log[:, i1, j1])
            good = np.isfinite(log)
            self._curves[out, into] = self.tokens[good], np.exp(log[good])
        return self._curves[out, into]

    def _check(self, out: int, into: int) -> None:
        for what, value, sizes in (("out", out, self.outs), ("in", into, self.ins)):
            if not sizes[0] <= value <= sizes[-1]:
                raise ClockError(
                    f"a linear layer with {value} features {what} is outside the tables "
                    f"({sizes[0]:.0f} to {sizes[-1]:.0f}); use fewer or more GPUs (--tp)"
                )

    def head_ms(self, rows: int, vocabulary: int, hidden: int) -> float:
        """Time of the output head; beyond the widest layer in proportion, ms."""
        wide = min(vocabulary, int(self.outs[-1]))
        return self.ms(rows, wide, hidden) * vocabulary / wide


class Scaling:
    """Time of scaling a linear layer's input by what is in it (dynamic quantisation).

    Args:
        source: whose kernels.

    Raises:
        ClockError: not measured.
    """

    def __init__(self, source: Source) -> None:
        self._parts = []
        for table in ("computescale_perf", "scale_matrix_perf"):
            frame, self.version = source.read("quantize", table)
            (tokens, widths), times = _pivot(frame, ("m", "k"))
            self._parts.append((tokens, widths, np.log(np.maximum(times, 1e-6))))

    def ms(self, tokens: int, width: int) -> float:
        """Time for `tokens` rows of `width` values, ms."""
        total = 0.0
        for rows, widths, log in self._parts:
            i, i1, a = _place(widths, min(max(width, widths[0]), widths[-1]))
            curve = np.exp((1 - a) * log[:, i] + a * log[:, i1])
            good = np.isfinite(curve)
            time = float(np.interp(tokens, rows[good], curve[good]))
            total += time * max(tokens / rows[-1], 1.0)
        return total


@dataclass(frozen=True, slots=True)
class Heads:
    """What an attention kernel depends on.

    Attributes:
        query: query heads on one GPU.
        key_value: key-value heads on one GPU.
        dim: width of a head.
        cache: type of the KV cache, "bfloat16" or "fp8".
        window: sliding window in tokens, 0 for full attention.
    """

    query: int
    key_value: int
    dim: int
    cache: str
    window: int


class AttentionTimes:
    """Time of one layer's attention.

    Args:
        source: whose kernels.
        heads: of which shape.

    Raises:
        ClockError: no such heads were measured.
    """

    def __init__(self, source: Source, heads: Heads) -> None:
        self.heads = heads
        decode, self.version = source.read("attention", "generation_attention_perf")
        prefill, _ = source.read("attention", "context_attention_perf")
        self._batches, self._contexts, self._decode = _decode_grid(source, decode, heads)
        self._chunks, self._prefill = _prefill_curve(source, prefill, heads)
        self.launch_ms = float(self._prefill.min())
        last = self._chunks[-1]
        self.pair_ms = float((self._prefill[-1] - self.launch_ms) / (last * (last + 1) / 2))
        tile = source.gpu.attention.tile_rows
        self._rows = tile * source.gpu.multiprocessors / heads.query if tile else 1.0

    def decode_ms(self, decodes: int, context: float) -> float:
        """Time for `decodes` requests with `context` tokens each, ms."""
        if decodes <= 0:
            return 0.0
        context = min(max(context, 1.0), self.heads.window or np.inf)
        i, a = _line(self._batches, decodes)
        j, b = _line(self._contexts, context)
        low = (1 - b) * self._decode[i, j] + b * self._decode[i, j + 1]
        high = (1 - b) * self._decode[i + 1, j] + b * self._decode[i + 1, j + 1]
        return float(max(low + a * (high - low), self._decode[0, 0]))

    def prefill_ms(self, chunk: int, history: int) -> float:
        """Time for one chunk of `chunk` tokens after `history` computed ones, ms.

        Tables hold chunks without history; with it time grows in proportion to the pairs of
        tokens, and where the kernel does not split keys as if the chunk filled the GPU.
        """
        last = self._chunks[-1]
        if chunk <= last:
            time = float(np.interp(chunk, self._chunks, self._prefill))
        else:
            time = self.launch_ms + self.pair_ms * chunk * (chunk + 1) / 2
        keys = min(history, self.heads.window) if self.heads.window else history
        return time + self.pair_ms * keys * max(chunk, self._rows)


def _line(sizes: FloatArray, value: float) -> tuple[int, float]:
    """Left neighbour, and how far the value is towards the next (beyond the ends: further)."""
    at = int(np.clip(np.searchsorted(sizes, value) - 1, 0, len(sizes) - 2))
    return at, float((value - sizes[at]) / (sizes[at + 1] - sizes[at]))


def _decode_grid(
    source: Source, frame: Any, heads: Heads
) -> tuple[FloatArray, FloatArray, FloatArray]:
    chosen = _of_heads(source, frame, heads, "decode")
    (batches, contexts), times = _pivot(chosen, ("batch_size", "step"))
    times = without_outliers(times)
    for i, j in np.argwhere(np.isnan(times)):  # large batches of long contexts: in proportion
        if i > 0 and np.isfinite(times[i - 1, j]):
            times[i, j] = times[i - 1, j] * batches[i] / batches[i - 1]
        else:
            times[i, j] = times[i, j - 1] * contexts[j] / contexts[j - 1]
    return batches, contexts, times


def _prefill_curve(source: Source, frame: Any, heads: Heads) -> tuple[FloatArray, FloatArray]:
    chosen = _of_heads(source, frame[frame.attn_dtype == "bfloat16"], heads, "prefill")
    alone = chosen[chosen.batch_size == 1]
    (chunks,), times = _pivot(alone, ("isl",))
    return chunks, without_outliers(times)


def _of_heads(source: Source, frame: Any, heads: Heads, what: str) -> Any:
    """Rows of these heads, or of the next larger number of query heads that was measured."""
    rows = frame[(frame.head_dim == heads.dim) & (frame.kv_cache_dtype == heads.cache)]
    if "window_size" in rows:
        rows = rows[rows.window_size == heads.window]
    elif heads.window:
        rows = rows.iloc[:0]
    rows = rows[rows.num_key_value_heads == heads.key_value]
    larger = sorted(n for n in rows.num_heads.unique() if n >= heads.query)
    if not larger:
        window = f", window {heads.window}" if heads.window else ""
        raise ClockError(
            f"GPU {source.gpu.name!r}: {what} attention of {heads.query} query and "
            f"{heads.key_value} KV heads of width {heads.dim} with a {heads.cache} cache{window} "
            f"is outside the tables of {source.engine} kernels; try another --tp or --kv"
        )
    return rows[rows.num_heads == larger[0]]


class ExpertTimes:
    """Time of one layer's experts by tokens.

    Args:
        source: whose kernels.
        key: hidden size, width of an expert, chosen and all experts, their type.
        tp: GPUs that share each expert.

    Raises:
        ClockError: no such experts were measured.
    """

    def __init__(self, source: Source, key: tuple[int, int, int, int, str], tp: int) -> None:
        frame, self.version = source.read("moe", "moe_perf")
        hidden, width, chosen, count, dtype = key
        rows = frame[(frame.hidden_size == hidden) & (frame.inter_size == width)]
        rows = rows[(rows.topk == chosen) & (rows.num_experts == count)]
        rows = rows[(rows.moe_dtype == dtype) & (rows.moe_ep_size == 1) & (rows.moe_tp_size == tp)]
        rows = rows[rows.distribution == EXPERT_LOAD]
        if rows.empty:
            raise ClockError(
                f"GPU {source.gpu.name!r}: {count} experts of width {width} ({chosen} a token, "
                f"{dtype}, tensor parallel {tp}) behind a hidden size of {hidden} are outside the "
                f"tables of {source.engine} {self.version}; try another --tp"
            )
        (self.tokens,), times = _pivot(rows, ("num_tokens",))
        self.times = without_outliers(times)

    def ms(self, tokens: int) -> float:
        """Time of one layer's experts, ms."""
        last = self.tokens[-1]
        if tokens > last:
            return float(self.times[-1] * tokens / last)
        return float(np.interp(tokens, self.tokens, self.times))


class AllReduce:
    """Time of summing activations over the GPUs of an engine.

    Args:
        source: whose kernels.
        gpus: that share the model, 2, 4 or 8.

    Raises:
        ClockError: not measured for so many.
    """

    def __init__(self, source: Source, gpus: int) -> None:
        frame, self.version = source.read("comm", "custom_allreduce_perf")
        rows = frame[frame.num_gpus == gpus]
        if "backend" in rows and rows.backend.str.contains("graph").any():
            rows = rows[rows.backend.str.contains("graph")]
        if rows.empty:
            raise ClockError(
                f"GPU {source.gpu.name!r}: sums over {gpus} GPUs are not in the tables of "
                f"{source.engine} {self.version}; choose --tp from "
                f"{', '.join(map(str, sorted(frame.num_gpus.unique())))}"
            )
        (self.sizes,), times = _pivot(rows, ("message_size",))
        self.times = without_outliers(times)

    def ms(self, elements: int) -> float:
        """Time for so many numbers (the tables count elements, not bytes), ms."""
        if elements >= self.sizes[-1]:
            return float(self.times[-1] * elements / self.sizes[-1])
        at = np.log(max(elements, self.sizes[0]))
        return float(np.exp(np.interp(at, np.log(self.sizes), np.log(self.times))))
