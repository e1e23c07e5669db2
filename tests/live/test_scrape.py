"""Metrics of vLLM's `/metrics` as the table's scrape columns."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from synergy_gym.live.router.scrape import Metrics, MetricsWindow, ScrapeError, fetch_metrics, parse

MS = 1_000_000


def exposition(
    *,
    running: int = 3,
    waiting: int = 2,
    usage: float = 0.25,
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0),
    count: int = 0,
    cache: bool = True,
) -> str:
    """Text as a vLLM server writes it, with two reasons of success and a few other metrics."""
    labels = '{engine="0",model_name="m"}'
    lines = [
        "# HELP python_info Python platform information",
        "# TYPE python_info gauge",
        'python_info{implementation="CPython"} 1.0',
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{labels} {float(running)}",
        "# TYPE vllm:num_requests_waiting gauge",
        f"vllm:num_requests_waiting{labels} {float(waiting)}",
        "# TYPE vllm:kv_cache_usage_perc gauge",
        f"vllm:kv_cache_usage_perc{labels} {usage!r}",
        "# TYPE vllm:request_success_total counter",
        f'vllm:request_success_total{{engine="0",finished_reason="stop"}} {float(count // 2)}',
        f'vllm:request_success_total{{engine="0",finished_reason="length"}} '
        f"{float(count - count // 2)}",
    ]
    if cache:
        lines.append("# TYPE vllm:cache_config_info gauge")
        lines.append('vllm:cache_config_info{block_size="32",num_gpu_blocks="257"} 1.0')
    names = ("time_to_first_token", "request_time_per_output_token", "e2e_request_latency")
    for name, total in zip(names, sums, strict=True):
        lines.append(f"# TYPE vllm:{name}_seconds histogram")
        lines.append(f'vllm:{name}_seconds_bucket{{engine="0",le="+Inf"}} {float(count)}')
        lines.append(f"vllm:{name}_seconds_count{labels} {float(count)}")
        lines.append(f"vllm:{name}_seconds_sum{labels} {total!r}")
    return "\n".join(lines) + "\n"


def test_the_gauges_are_read() -> None:
    columns = MetricsWindow(999).columns(parse(exposition()), 17)
    assert columns == [17, 3, 2, 64, 256, 0, 0, 0, 0]


def test_blocks_come_from_the_configuration_when_the_engine_does_not_say() -> None:
    columns = MetricsWindow(400).columns(parse(exposition(cache=False)), 0)
    assert columns[3:5] == [100, 400]


def test_means_are_those_of_the_window() -> None:
    window = MetricsWindow(0)
    window.columns(parse(exposition(sums=(1.0, 0.1, 5.0), count=4)), 0)
    second = parse(exposition(sums=(1.5, 0.13, 8.0), count=6))
    assert window.columns(second, 1)[5:] == [250 * MS, 15 * MS, 1500 * MS, 2]
    assert window.columns(second, 2)[5:] == [0, 0, 0, 0], "nothing finished since"


def test_a_restarted_server_counts_from_zero() -> None:
    window = MetricsWindow(0)
    window.columns(parse(exposition(sums=(10.0, 1.0, 50.0), count=40)), 0)
    columns = window.columns(parse(exposition(sums=(0.5, 0.02, 1.0), count=1)), 1)
    assert columns[5:] == [500 * MS, 20 * MS, 1000 * MS, 1]


def test_several_engine_cores_behind_one_server_are_added_up() -> None:
    text = exposition() + 'vllm:num_requests_running{engine="1",model_name="m"} 5.0\n'
    # The sample repeats a family's name after others, as data-parallel servers may write it.
    assert parse(text).values["vllm:num_requests_running"] == 8.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lack vllm:num_requests_running"),
        ("<html>not metrics</html>", "malformed|lack"),
        ("# TYPE a gauge\na{ 1\n", "malformed|lack"),
        (exposition(usage=float("nan")), "kv_cache_usage_perc is nan"),
        (exposition(running=-1), "num_requests_running is -1.0"),
    ],
)
def test_what_is_no_engine_is_a_clear_error(text: str, message: str) -> None:
    with pytest.raises(ScrapeError, match=message):
        parse(text)


def fetch(handler: httpx.MockTransport) -> Metrics:
    async def run() -> Metrics:
        async with httpx.AsyncClient(transport=handler) as client:
            return await fetch_metrics(client, "http://e:1/", 1.0)

    return asyncio.run(run())


def test_metrics_are_fetched_from_their_place() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://e:1/metrics"
        return httpx.Response(200, text=exposition())

    assert fetch(httpx.MockTransport(answer)).total_blocks == 256


def test_no_metrics_and_no_server_name_the_place() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody there")

    with pytest.raises(ScrapeError, match=r"http://e:1/metrics: answered 404"):
        fetch(httpx.MockTransport(lambda request: httpx.Response(404)))
    with pytest.raises(ScrapeError, match=r"http://e:1/metrics: ConnectError: nobody there"):
        fetch(httpx.MockTransport(refuse))
    with pytest.raises(ScrapeError, match=r"http://e:1/metrics: metrics lack"):
        fetch(httpx.MockTransport(lambda request: httpx.Response(200, text="a 1\n")))
