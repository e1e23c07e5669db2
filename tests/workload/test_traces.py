"""Trace readers: original layouts, options, and errors that name file, line, value and cure."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.types import NS_PER_S
from synergy_gym.workload.base import prefix_hit_share
from synergy_gym.workload.traces.csv import parse_timestamp
from synergy_gym.workload.traces.load import (
    FORMATS,
    TraceError,
    list_formats,
    load_trace,
    trace_info,
)

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 02:00:00.017335+02:00,2399,6
2024-05-10 00:00:01+00:00,76,15
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
"""
BURSTGPT_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Log Type
19440110.0,abc,43,GPT-4,906,446,Conversation log
19440161.5,def,2,ChatGPT,36,29,Conversation log
19440192.0,abc,8,GPT-4,1779,123,Conversation log
"""
VIDUR = """arrived_at,num_prefill_tokens,num_decode_tokens
0.0,374,44
4.314579,396,109
"""
VIDUR_LENGTHS = """num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
3772,54,3826,69.85
2015,156,2171,12.9
"""
FLOWGPT = """arrival_s,session_id,prompt_tokens,output_tokens,client
0.0,7,5528,200,0
0.5,9,1428,200,0
1.0,7,5700,172,0
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 0, "input_length": 1300, "output_length": 490, "hash_ids": [0, 1, 3]}
{"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [0, 4]}
"""


def write(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, format: str, **options: Any) -> Any:
    return load_trace(write(folder, text), format, **options)


@pytest.mark.parametrize(
    ("text", "format", "arrival_ns", "prompt", "output"),
    [
        (AZURE_2023, "azure", [0, 4_314_579_000, 4_541_877_000], [374, 396, 879], [44, 109, 55]),
        (AZURE_2024, "azure", [0, 7_405_000, 990_070_000], [2162, 2399, 76], [5, 6, 15]),
        (
            BURSTGPT,
            "burstgpt",
            [0, 40 * NS_PER_S, 113 * NS_PER_S],
            [472, 1087, 417],
            [18, 230, 276],
        ),
        (
            BURSTGPT_3,
            "burstgpt",
            [0, 51_500_000_000, 82 * NS_PER_S],
            [906, 36, 1779],
            [446, 29, 123],
        ),
        (VIDUR, "vidur", [0, 4_314_579_000], [374, 396], [44, 109]),
        (FLOWGPT, "flowgpt", [0, 500_000_000, NS_PER_S], [5528, 1428, 5700], [200, 200, 172]),
        (MOONCAKE, "mooncake", [0, 0, 3 * NS_PER_S], [1100, 1300, 600], [500, 490, 7]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_original_layouts(
    tmp_path: Path,
    packed: bool,
    text: str,
    format: str,
    arrival_ns: list[int],
    prompt: list[int],
    output: list[int],
) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    workload = load_trace(path, format)
    assert workload.arrival_ns.tolist() == arrival_ns
    assert workload.prompt_tokens.tolist() == prompt
    assert workload.output_tokens.tolist() == output


def test_sessions_are_numbered_by_first_row(tmp_path: Path) -> None:
    assert load(tmp_path, BURSTGPT_3, "burstgpt").session.tolist() == [0, 1, 0]
    assert load(tmp_path, FLOWGPT, "flowgpt").session.tolist() == [0, 1, 0]
    assert load(tmp_path, BURSTGPT, "burstgpt").session.tolist() == [-1, -1, -1]


def test_mooncake_hashes_become_shared_blocks(tmp_path: Path) -> None:
    offsets, ids = load(tmp_path, MOONCAKE, "mooncake").block_ids(512)
    one, two, three = (ids[offsets[r] : offsets[r + 1]].tolist() for r in range(3))
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert three[:1] == one[:1]
    # The second block of the third prompt ends in its own output.
    assert len(three) == 1


def test_timed_trace_takes_vllms_options(tmp_path: Path) -> None:
    rows = [
        {"t": "0.5", "in": 40, "out": 3, "h": [1, 2, 3]},
        {"t": 2, "in": 40, "out": 3, "h": [1, 2, 9]},
        {"t": 3.25, "in": 9, "out": 1},
    ]
    names = {"timestamp_key": "t", "input_key": "in", "output_key": "out", "hash_key": "h"}
    text = "\n".join(json.dumps(row) for row in rows)
    workload = load(tmp_path, text, "vllm-timed-trace", **names)
    assert workload.arrival_ns.tolist() == [0, 1_500_000_000, 2_750_000_000]
    offsets, ids = workload.block_ids(16)
    assert ids[offsets[0] : offsets[0] + 2].tolist() == ids[offsets[1] : offsets[1] + 2].tolist()
    fast = load(tmp_path, text, "vllm-timed-trace", seconds_per_unit=0.001, **names)
    assert fast.arrival_ns.tolist() == [0, 1_500_000, 2_750_000]


def test_rate_scale_window_and_limit(tmp_path: Path) -> None:
    full = load(tmp_path, BURSTGPT, "burstgpt")
    assert load(tmp_path, BURSTGPT, "burstgpt", rate_scale=2.0).arrival_ns.tolist() == [
        0,
        20 * NS_PER_S,
        56_500_000_000,
    ]
    late = load(tmp_path, BURSTGPT, "burstgpt", start_s=30.0, end_s=113.0)
    assert late.arrival_ns.tolist() == [10 * NS_PER_S]
    assert late.prompt_tokens.tolist() == [1087]
    assert len(load(tmp_path, BURSTGPT, "burstgpt", limit=2)) == 2
    assert len(load(tmp_path, BURSTGPT, "burstgpt", limit=0)) == 0
    assert len(load(tmp_path, BURSTGPT, "burstgpt", start_s=1000.0)) == 0
    assert len(full) == 3


def test_rows_are_put_in_order_of_arrival(tmp_path: Path) -> None:
    lines = AZURE_2023.splitlines()
    shuffled = "\n".join([lines[0], lines[3], lines[1], lines[2]])
    workload = load(tmp_path, shuffled, "azure")
    assert workload.prompt_tokens.tolist() == [374, 396, 879]


def test_zero_outputs(tmp_path: Path) -> None:
    text = BURSTGPT.replace(",230,", ",0,")
    with pytest.raises(TraceError, match=r"trace:3: output of 0 tokens \(1 rows in all\); pass"):
        load(tmp_path, text, "burstgpt")
    assert load(tmp_path, text, "burstgpt", zero_output="drop").prompt_tokens.tolist() == [472, 417]
    assert load(tmp_path, text, "burstgpt", zero_output="one").output_tokens.tolist() == [
        18,
        1,
        276,
    ]


def test_jitter_spreads_a_tick_and_keeps_its_order(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000 * (i // 50), "input_length": i + 1, "output_length": 1}
        for i in range(200)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    workload = load(tmp_path, text, "mooncake", jitter_s=3.0, seed=5)
    assert len(set(workload.arrival_ns.tolist())) == 200
    assert workload.prompt_tokens.tolist() == list(range(1, 201))
    tick = workload.arrival_ns // (3 * NS_PER_S)
    assert tick.tolist() == [i // 50 for i in range(200)]
    again = load(tmp_path, text, "mooncake", jitter_s=3.0, seed=5)
    assert again.arrival_ns.tolist() == workload.arrival_ns.tolist()


def test_lengths_without_arrivals_need_a_rate(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no column of arrival times; pass rate_rps="):
        load(tmp_path, VIDUR_LENGTHS, "vidur")
    workload = load(tmp_path, VIDUR_LENGTHS, "vidur", rate_rps=2.0)
    assert workload.prompt_tokens.tolist() == [3772, 2015]
    assert 0 < workload.arrival_ns[0] < workload.arrival_ns[1]


@pytest.mark.parametrize("format", ["azure", "burstgpt", "vidur", "flowgpt"])
def test_a_header_alone_is_an_empty_workload(tmp_path: Path, format: str) -> None:
    text = {"azure": AZURE_2023, "burstgpt": BURSTGPT, "vidur": VIDUR, "flowgpt": FLOWGPT}[format]
    workload = load(tmp_path, text.splitlines()[0] + "\n", format)
    assert len(workload) == 0
    assert trace_info(workload).requests == 0


def test_a_file_without_header_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"trace:1: .*'TIMESTAMP' \(found: nothing\).*header line"):
        load(tmp_path, "", "azure")
    with pytest.raises(TraceError, match=r"trace:1: the header lacks the column 'TIMESTAMP'"):
        load(tmp_path, AZURE_2023.split("\n", 1)[1], "azure")


def test_an_empty_json_lines_file_is_an_empty_workload(tmp_path: Path) -> None:
    assert len(load(tmp_path, "\n", "mooncake")) == 0


LINE = '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [0]}'


@pytest.mark.parametrize(
    ("format", "good", "bad", "message"),
    [
        ("azure", "396", "3x6", "3: ContextTokens is '3x6'; give a whole number"),
        ("azure", "396,109", "396,-1", "3: GeneratedTokens is '-1'; give a whole number"),
        ("azure", "396,109", "396", "3: 2 cells, the header has 3; fix the row"),
        ("azure", "50.9951690", "99.1", "3: TIMESTAMP is '2023-11-16 18:15:99.1'; write it as"),
        ("azure", "2023-11-16 18:15:50", "2023-13-16 18:15:50", "3: TIMESTAMP is '2023-13-16"),
        ("azure", "396", "0", "3: prompt of 0 tokens; remove the row"),
        ("azure", "396", '"396', "not valid CSV"),
        ("vidur", "4.314579", "nan", "3: arrived_at is 'nan'; give a time in seconds"),
        ("vidur", "4.314579", "1e30", "3: arrived_at is '1e30'; give a time in seconds"),
        ("mooncake", LINE, LINE[:-1], "2: not valid JSON"),
        ("mooncake", LINE, "[1]", "2: is '[1]'; write one JSON object per line"),
        ("mooncake", LINE, LINE.replace("5", "5.5"), "2: input_length is 5.5; give a whole"),
        ("mooncake", LINE, LINE.replace("5", "true"), "2: input_length is True; give a whole"),
        ("mooncake", LINE, LINE.replace("[0]", '["a"]'), "2: hash_ids is ['a']; give a list"),
        ("mooncake", LINE, LINE.replace('"timestamp": 0, ', ""), "2: no field 'timestamp' (found:"),
        ("mooncake", LINE, LINE.replace(": 0", ": null"), "2: timestamp is None; give a number"),
        ("mooncake", LINE, LINE.replace(": 0", ": NaN"), "2: timestamp is nan; give a time"),
    ],
)
def test_a_malformed_row_names_line_value_and_cure(
    tmp_path: Path, format: str, good: str, bad: str, message: str
) -> None:
    text = {"azure": AZURE_2023, "vidur": VIDUR, "mooncake": f"{LINE}\n{LINE}\n"}[format]
    head, tail = text.rsplit(good, 1) if format == "mooncake" else text.split(good, 1)
    with pytest.raises(TraceError, match=re.escape(message)) as caught:
        load(tmp_path, head + bad + tail, format)
    assert str(tmp_path / "trace") in str(caught.value)


def test_unreadable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot be read .* check the path"):
        load_trace(tmp_path / "missing.csv", "azure")
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(AZURE_2023.encode())[:-12])
    with pytest.raises(TraceError, match="damaged gzip archive"):
        load_trace(broken, "azure")
    binary = tmp_path / "binary"
    binary.write_bytes(b"TIMESTAMP,\xff\xfe\n")
    with pytest.raises(TraceError, match="not UTF-8 text"):
        load_trace(binary, "azure")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "unknown trace format 'csv'; choose one of azure"),
        ({"rate_scale": 0.0}, "rate_scale is 0.0"),
        ({"start_s": 5.0, "end_s": 1.0}, "give 0 <= start_s <= end_s"),
        ({"limit": -1}, "limit is -1"),
        ({"zero_output": "skip"}, "zero_output is 'skip'"),
        ({"jitter_s": -1.0}, "jitter_s is -1.0"),
        ({"rate_rps": 0.0}, "rate_rps is 0.0"),
        ({"block_tokens": 16}, "format 'azure' has no option 'block_tokens'; it takes none"),
    ],
)
def test_wrong_options_are_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_trace(write(tmp_path, AZURE_2023), **{"format": "azure", **options})


def test_formats_are_described() -> None:
    assert list_formats().keys() == FORMATS.keys()
    assert all(list_formats().values())


@given(st.datetimes(timezones=st.timezones() | st.none()))
def test_timestamps_are_exact(moment: Any) -> None:
    from datetime import UTC, datetime, timedelta

    offset = moment.utcoffset() or timedelta(0)
    if offset.total_seconds() % 60 or not 1900 < moment.year < 2200:
        return
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    expected = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    found = parse_timestamp(Path("x"), 1, "TIMESTAMP", moment.isoformat(sep=" "))
    assert found == expected


REAL = {
    "azure_2023_conv.csv": ("azure", 12_000),
    "azure_2023_code.csv": ("azure", 5_500),
    "burstgpt_schema_fixture.csv": ("burstgpt", 3),
    "burstgpt_v3_schema_fixture.csv": ("burstgpt", 4),
    "flowgpt_8xh100_timestamp_0.5.csv.gz": ("flowgpt", 15_639),
    "mooncake_conversation_trace.jsonl.gz": ("mooncake", 7_500),
    "mooncake_synthetic_trace.jsonl.gz": ("mooncake", 2_500),
    "vidur_splitwise_conv.csv": ("vidur", 1_000),
    "vidur_splitwise_code.csv": ("vidur", 1_000),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_load_whole(traces_dir: Path, name: str) -> None:
    format, rows = REAL[name]
    workload = load_trace(traces_dir / name, format)
    assert len(workload) == rows
    assert workload.arrival_ns[0] == 0


def test_real_lengths_without_arrivals(traces_dir: Path) -> None:
    workload = load_trace(traces_dir / "vidur_arxiv_summarization.csv", "vidur", rate_rps=5.0)
    assert len(workload) == 18_000
    assert trace_info(workload).rate_rps == pytest.approx(5.0, rel=0.03)


def test_vidur_and_azure_agree_on_the_same_requests(traces_dir: Path) -> None:
    azure = load_trace(traces_dir / "azure_2023_conv.csv", "azure", limit=1000)
    vidur = load_trace(traces_dir / "vidur_splitwise_conv.csv", "vidur")
    assert np.abs(azure.arrival_ns - vidur.arrival_ns).max() <= 1000
    assert azure.prompt_tokens.tolist() == vidur.prompt_tokens.tolist()
    assert azure.output_tokens.tolist() == vidur.output_tokens.tolist()


def test_real_mooncake_prefixes_are_found_again(traces_dir: Path) -> None:
    path = traces_dir / "mooncake_conversation_trace.jsonl.gz"
    workload = load_trace(path, "mooncake")
    entries = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    seen: set[int] = set()
    repeated = blocks = 0
    for entry in entries:
        whole = entry["hash_ids"][: entry["input_length"] // 512]
        blocks += len(whole)
        repeated += sum(value in seen for value in whole)
        seen.update(whole)
    assert prefix_hit_share(workload, 512)[0] == pytest.approx(repeated / blocks, abs=1e-12)
