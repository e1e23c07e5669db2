"""ServeGen folders: windows, distributions, and malformed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synergy_gym.types import NS_PER_S
from synergy_gym.workload.traces.load import TraceError, load_trace, trace_info

TRACE = """0,0,0,,0,0
600,2.0,1.0,Gamma,1.0,0.5
1200,4.0,3.0,Weibull,0.5,0.1
1800,0,0,,0,0
"""
DATASET = """{
  "0": {"input_tokens": "{10: 0.25, 30: 0.75}", "output_tokens": "{5: 1.0}", "ratio": "{}"},
  "1200": {"input_tokens": "{100: 1.0}", "output_tokens": "{7: 0.5, 9: 0.5}"},
  "1800": {"input_tokens": "{}", "output_tokens": "{}"}
}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chunk-3-trace.csv").write_text(TRACE)
    (tmp_path / "chunk-3-dataset.json").write_text(DATASET)
    return tmp_path


def test_windows_have_their_rate_and_lengths(folder: Path) -> None:
    workload = load_trace(folder, "servegen", seed=1)
    times = workload.arrival_ns / NS_PER_S
    early = times < 1200
    assert early.sum() == 1200
    assert (~early).sum() == 2400
    assert times.min() >= 600
    assert times.max() < 1800
    assert set(workload.prompt_tokens[~early].tolist()) == {100}
    assert (workload.prompt_tokens[early] == 30).mean() == pytest.approx(0.75, abs=0.05)
    assert (workload.output_tokens[~early] == 7).mean() == pytest.approx(0.5, abs=0.05)


def test_gaps_have_the_shape_of_their_family(folder: Path) -> None:
    late = load_trace(folder, "servegen", start_s=1200.0)
    # Weibull with shape 0.5 has a coefficient of variation of sqrt(5).
    assert trace_info(late).iat_cv == pytest.approx(np.sqrt(5), rel=0.15)
    assert late.arrival_ns[-1] < 600 * NS_PER_S


def test_a_window_cut_out_holds_the_same_requests(folder: Path) -> None:
    whole = load_trace(folder, "servegen", seed=2)
    part = load_trace(folder, "servegen", seed=2, start_s=900.0, end_s=1500.0)
    times = whole.arrival_ns
    inside = (times >= 900 * NS_PER_S) & (times < 1500 * NS_PER_S)
    assert part.arrival_ns.tolist() == (times[inside] - 900 * NS_PER_S).tolist()
    assert part.prompt_tokens.tolist() == whole.prompt_tokens[inside].tolist()


def test_clients_are_chosen_and_seeded(folder: Path) -> None:
    (folder / "chunk-1-trace.csv").write_text(TRACE)
    (folder / "chunk-1-dataset.json").write_text(DATASET)
    both = load_trace(folder, "servegen")
    one, other = (load_trace(folder, "servegen", clients=[c]) for c in (1, 3))
    assert len(both) == len(one) + len(other)
    assert one.arrival_ns.tolist() != other.arrival_ns.tolist()
    assert load_trace(folder, "servegen", seed=1).arrival_ns.tolist() != both.arrival_ns.tolist()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("trace.csv", "600,2.0", "600,x", r"trace.csv:2: rate is 'x'; give"),
        ("trace.csv", "600,2.0", "600,-2", r"trace.csv:2: rate is '-2'; give a rate >= 0"),
        ("trace.csv", "Gamma", "Pareto", r"trace.csv:2: family is 'Pareto'; choose from Gamma"),
        ("trace.csv", "Gamma,1.0", "Gamma,0", r"trace.csv:2: first parameter is '0'; give a"),
        ("trace.csv", "1200,4.0", "500,4.0", r"trace.csv:3: window start 500 is not after 600"),
        ("trace.csv", "600,2.0,", "600,", r"trace.csv:2: 5 cells instead of 6"),
        ("dataset.json", '"{5: 1.0}"', '"{5: 0.9}"', r"window 0: output_tokens sums to 0.9"),
        ("dataset.json", '"{5: 1.0}"', '"{5: open(0)}"', r"window 0: output_tokens is malformed"),
        ("dataset.json", '"0": {', '"0" {', r"dataset.json:2: not valid JSON"),
        ("dataset.json", '"0"', '"700"', r"no lengths for the window at 600 s.*clients="),
    ],
)
def test_malformed_files_are_errors(
    folder: Path, file: str, old: str, new: str, message: str
) -> None:
    path = folder / f"chunk-3-{file}"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(TraceError, match=message):
        load_trace(folder, "servegen")


def test_missing_files_are_errors(folder: Path) -> None:
    with pytest.raises(TraceError, match=r"no dataset of client 9; choose from \[3\]"):
        load_trace(folder, "servegen", clients=[9])
    (folder / "chunk-3-trace.csv").unlink()
    with pytest.raises(TraceError, match=r"chunk-3-trace.csv is missing"):
        load_trace(folder, "servegen")
    (folder / "chunk-3-dataset.json").unlink()
    with pytest.raises(TraceError, match=r"no chunk-\*-dataset.json"):
        load_trace(folder, "servegen")
    with pytest.raises(TraceError, match="not a folder"):
        load_trace(folder / "nothing", "servegen")


@pytest.mark.parametrize("model", ["reason/deepseek-r1", "language/m-large"])
def test_real_windows_keep_their_rate(traces_dir: Path, model: str) -> None:
    folder = traces_dir / "servegen" / model
    workload = load_trace(folder, "servegen", end_s=86_400.0)
    with_lengths = [p.name.split("-")[1] for p in folder.glob("chunk-*-dataset.json")]
    expected = 0.0
    for client in with_lengths:
        windows = np.loadtxt(
            folder / f"chunk-{client}-trace.csv", delimiter=",", usecols=(0, 1), ndmin=2
        )
        expected += 600 * windows[windows[:, 0] < 86_400, 1].sum()
    assert len(workload) == pytest.approx(expected, rel=0.01)
