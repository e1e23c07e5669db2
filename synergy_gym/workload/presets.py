"""Built-in traffic: the numbers of public traces, each with its source.

Quantile tables list values at the shares of `LEVELS`. The 50 %, 90 %, 99 % and 100 % values
are those of the whole trace; the others are those of its first part (Azure 2023: 12,000 and
5,500 rows; Mooncake: 7,500 rows), moved where needed so that the mean is that of the whole
trace. tests/workload/test_generators.py compares both.
"""

from __future__ import annotations

from synergy_gym.workload.spec import ArrivalSpec, LengthSpec, SessionSpec, TrafficSpec

LEVELS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


def _table(*values: int) -> LengthSpec:
    return LengthSpec("quantiles", {"levels": LEVELS, "values": values})


_AZURE_CONV = TrafficSpec(
    # Gaps of the whole trace: 5.53 requests/s, CV 1.094.
    arrivals=ArrivalSpec("gamma", {"cv": 1.094}),
    # Whole trace: mean 1155, P50 1020, P90 2734, P99 4142, maximum 14050.
    prompt=_table(
        2, 42, 191, 368, 390, 404, 738, 1020, 1076, 1144, 1395, 2734, 3600, 4142, 5069, 14050
    ),
    # Whole trace: mean 211, P50 129, P90 424, P99 601, maximum 1000.
    output=_table(7, 16, 38, 49, 69, 85, 100, 129, 215, 338, 396, 424, 452, 601, 937, 1000),
    correlation=-0.03,  # normal scores, first 12,000 rows
)

_AZURE_CODE = TrafficSpec(
    # Whole trace: 2.567 requests/s, gap CV 13.15, index of dispersion 71.6 in 10 s windows. An
    # on/off process with rate m in a burst, s = 1 / on_s and a = 1 / on_s + 1 / off_s has
    # CV^2 = 1 + 2 m s / a^2 and IDC(t) = 1 + (CV^2 - 1) (1 - (1 - exp(-a t)) / (a t))
    # (Heffes and Lucantoni, IEEE JSAC 1986): a = 0.110, on_s = 11.5, off_s = 42.6.
    arrivals=ArrivalSpec("on-off", {"on_s": 11.5, "off_s": 42.6}),
    # Whole trace: mean 2048, P50 1469, P90 5188, P99 7436, maximum 7437.
    prompt=_table(
        3, 17, 76, 148, 386, 768, 1064, 1469, 1884, 2408, 3140, 5188, 6870, 7436, 7437, 7437
    ),
    # Whole trace: mean 27.9, P50 13, P90 55, P99 251.5, maximum 1899.
    output=_table(6, 6, 6, 7, 8, 9, 11, 13, 15, 18, 24, 55, 74, 251, 520, 1899),
    correlation=-0.01,  # normal scores, first 5,500 rows
)

_MOONCAKE = TrafficSpec(
    # Timestamps are quantised to 3 s, so the trace says nothing about shorter gaps.
    arrivals=ArrivalSpec("poisson"),
    # Whole conversation trace: mean 12040, P50 6909, P90 27370, P99 85400, maximum 126200.
    prompt=_table(
        *(891, 894, 900, 960, 1650, 3250, 4800, 6909, 9200, 12400, 16900, 27370),
        *(36500, 85400, 108000, 126200),
    ),
    # Whole conversation trace: mean 342.6, P50 350, P90 597, P99 1119, maximum 2000.
    output=_table(1, 3, 9, 24, 101, 212, 285, 350, 390, 438, 493, 597, 680, 1119, 1900, 2000),
    correlation=0.07,  # normal scores, first 7,500 rows
    sessions=SessionSpec(
        # Turns of a hundred sessions; first 7,500 rows: 30 % have a second turn, 12 % a
        # third, 6 % a fourth, 3.4 % a fifth, 1 % an eighth; mean 1.585.
        turns=LengthSpec(
            "empirical",
            {"values": (1,) * 70 + (2,) * 18 + (3,) * 6 + (4,) * 3 + (5, 7, 14)},
        ),
        think_s=195.7,  # between turns; median 123 s gives the CV of a lognormal
        think_cv=1.24,
        growth="window",
        # Chosen so that 37 % of prompt tokens are in an earlier prompt (whole trace: 37.4 %).
        prompt_correlation=0.995,
        system_prompts=1,  # all requests of the trace begin with the same 512-token block
        system_tokens=512,
    ),
)

_FLOWGPT = TrafficSpec(
    # Counts of the 8xH100 run: index of dispersion 1.36 in 1 s; the log's timestamps have a
    # resolution of 1 s, so that gaps below it are unknown.
    arrivals=ArrivalSpec("poisson"),
    # SynergySched's request logs of the 8xH100 runs (YNewsoul/llm-inference-benchmarking): mean
    # 4087, P50 4222, P90 6384, P99 6982, maximum 7407.
    prompt=_table(
        *(205, 452, 769, 1141, 1859, 2591, 3227, 4222, 5517, 6071, 6239, 6384),
        *(6484, 6982, 7310, 7407),
    ),
    # Capped at 200 by the client (78 % hit the cap); mean 177.
    output=_table(5, 18, 38, 73, 193, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200),
    correlation=0.0,  # -0.04 of logarithms
    sessions=SessionSpec(
        # Conversations of the log: mean 4.8 requests, 20 % singletons, maximum 31.
        turns=LengthSpec("geometric", {"mean": 4.8}, maximum=31),
        think_s=70.8,  # between requests of a session in the 8xH100 run, standard deviation 58.5
        think_cv=0.83,
        growth="window",
        prompt_correlation=0.99,  # normal scores of successive prompts correlate by 0.99
        # Token reuse was measured as 5.6 % under round robin on 8 engines and 10.1 % under
        # session routing. The share x of a session's turns that finds an earlier one on its
        # engine is 0.79 and 0.32 for 4.8 turns; global + x * private = reuse gives 400 private
        # and 100 global tokens of a mean prompt of 4087: the window slides behind its beginning.
        reused_tokens=500,
        system_prompts=1,
        system_tokens=100,
    ),
)

_SHAREGPT = TrafficSpec(
    arrivals=ArrivalSpec("poisson"),
    # User turns: mean 161.31 tokens (Kwon et al., SOSP 2023, figure 11), 95 % below 500 (the
    # SynergySched authors' `sharegpt_token_stats.csv`), hence the lognormal's median and sigma.
    prompt=LengthSpec("lognormal", {"median": 100.0, "sigma": 0.979}, maximum=2048),
    # Outputs of 0 to 250 tokens, by the same file.
    output=LengthSpec("uniform", {"low": 1, "high": 250}),
    correlation=0.0,
    # SynergySched's multi-round client in the heterogeneous experiment: 5 rounds, a shared system
    # prompt of 1000 tokens and a history of 2000. The think time is not given; 30 s is our choice.
    sessions=SessionSpec(
        turns=LengthSpec("constant", {"value": 5}),
        think_s=30.0,
        think_cv=1.0,
        growth="append",
        system_prompts=1,
        system_tokens=1000,
        history_tokens=2000,
    ),
)

PRESETS: dict[str, TrafficSpec] = {
    "azure-conv-like": _AZURE_CONV,
    "azure-code-like": _AZURE_CODE,
    "mooncake-like": _MOONCAKE,
    "flowgpt-like": _FLOWGPT,
    "sharegpt-like": _SHAREGPT,
}
"""Built-in generators by name."""
