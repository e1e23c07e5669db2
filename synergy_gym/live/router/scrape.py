"""Metrics of a real engine, read from vLLM's `/metrics`, as the table's scrape columns.

Latencies are means over the requests of the window between two scrapes, from the difference of
the counters. vLLM counts TTFT at the first token and the others when a request finishes, so the
TTFT of a window may be that of requests which finish in the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synergy_gym.types import NS_PER_S

TTFT = "vllm:time_to_first_token_seconds"
TPOT = "vllm:request_time_per_output_token_seconds"
E2E = "vllm:e2e_request_latency_seconds"
FINISHED = "vllm:request_success_total"
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USAGE = "vllm:kv_cache_usage_perc"
CACHE = "vllm:cache_config_info"
REQUIRED = (RUNNING, WAITING, KV_USAGE)
MAX_VALUE = 1e9
"""Seconds, requests: thirty years in one counter."""

_HISTOGRAMS = (TTFT, TPOT, E2E)
_COUNTERS = (FINISHED, *(f"{name}_{part}" for name in _HISTOGRAMS for part in ("sum", "count")))


class ScrapeError(RuntimeError):
    """An engine's metrics cannot be read; the message names URL, problem and cure."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """One reading: sample values by name (summed over labels), and the cache's description."""

    values: Mapping[str, float]
    cache: Mapping[str, str]

    @property
    def total_blocks(self) -> int:
        """Usable KV blocks, without vLLM's null block; 0 when the engine does not say."""
        text = self.cache.get("num_gpu_blocks", "")
        return max(int(text) - 1, 0) if text.isdigit() else 0


def parse(text: str) -> Metrics:
    """Read the exposition format.

    Raises:
        ScrapeError: it is malformed, or no vLLM engine's.
    """
    from prometheus_client.parser import text_string_to_metric_families

    wanted = {*REQUIRED, *_COUNTERS}
    values: dict[str, float] = {}
    cache: dict[str, str] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in wanted:
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
                elif sample.name == CACHE:
                    cache = dict(sample.labels)
    except (ValueError, KeyError, IndexError) as error:
        raise ScrapeError(f"metrics are malformed: {error}") from error
    if wrong := [name for name, value in values.items() if not 0 <= value < MAX_VALUE]:
        raise ScrapeError(f"metric {wrong[0]} is {values[wrong[0]]}; it must be >= 0 and finite")
    if missing := [name for name in REQUIRED if name not in values]:
        raise ScrapeError(f"metrics lack {', '.join(missing)}; is this a vLLM server?")
    return Metrics(values, cache)


class MetricsWindow:
    """Turns successive readings of one engine into scrape columns.

    Args:
        kv_blocks: usable blocks, for engines that do not say.
    """

    def __init__(self, kv_blocks: int) -> None:
        self._kv_blocks = kv_blocks
        self._before: dict[str, int] = {}

    def columns(self, metrics: Metrics, now_ns: int) -> list[int]:
        """The table's scrape columns for a reading at `now_ns`, in their order."""
        values, total = metrics.values, metrics.total_blocks or self._kv_blocks
        # In whole billionths, so that differences of large sums stay exact.
        now = {name: round(values.get(name, 0.0) * NS_PER_S) for name in _COUNTERS}
        grown = {name: self._growth(name, value) for name, value in now.items()}
        self._before = now
        return [
            now_ns,
            round(values[RUNNING]),
            round(values[WAITING]),
            round(values[KV_USAGE] * total),
            total,
            *(_mean_ns(grown[f"{name}_sum"], grown[f"{name}_count"]) for name in _HISTOGRAMS),
            grown[FINISHED] // NS_PER_S,
        ]

    def _growth(self, name: str, value: int) -> int:
        before = self._before.get(name, 0)
        return value - before if value >= before else value  # a restarted server counts anew


def _mean_ns(total_ns: int, billionths: int) -> int:
    """Rounded down; `billionths` is a count in the unit of the sums."""
    return total_ns // (billionths // NS_PER_S) if billionths >= NS_PER_S else 0


async def fetch_metrics(client: Any, url: str, timeout_s: float) -> Metrics:
    """Read `url`/metrics.

    Args:
        client: an `httpx.AsyncClient`.
        url: the engine's base URL.
        timeout_s: longest wait.

    Raises:
        ScrapeError: no answer, another status than 200, or no metrics of vLLM.
    """
    import httpx

    place = f"{url.rstrip('/')}/metrics"
    try:
        answer = await client.get(place, timeout=timeout_s)
    except httpx.HTTPError as error:
        raise ScrapeError(f"{place}: {type(error).__name__}: {error}") from error
    if answer.status_code != 200:
        raise ScrapeError(f"{place}: answered {answer.status_code}; start it with metrics on")
    try:
        return parse(answer.text)
    except ScrapeError as error:
        raise ScrapeError(f"{place}: {error}") from error
