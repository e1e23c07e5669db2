"""Timelines: valid trace events that say what the episode did, and do not change it."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.cli import app as cli
from synergy_gym.evaluation.runner import Result, evaluate
from synergy_gym.evaluation.timeline import FIRST_ENGINE_PID, ROUTER_PID, Timeline, write_timeline
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.specs import Event

TraceEvent = dict[str, Any]
REQUIRED = {
    "M": {"name", "pid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "b": {"name", "cat", "id", "pid", "ts"},
    "e": {"name", "cat", "id", "pid", "ts"},
    "i": {"name", "pid", "tid", "ts", "s"},
    "C": {"name", "pid", "ts", "args"},
}
"""Fields that the Trace Event Format asks for, by phase."""


def play(
    path: Path, scenario: Scenario, **options: Any
) -> tuple[list[TraceEvent], Result, Timeline]:
    timeline = Timeline()
    result = evaluate(scenario, observers=[timeline], **options)
    write_timeline(path, timeline, scenario, "a test")
    content = json.loads(path.read_text())
    assert set(content) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert content["displayTimeUnit"] in ("ms", "ns")
    return content["traceEvents"], result, timeline


def ns(time_us: float) -> int:
    """As Perfetto reads microseconds."""
    return int(time_us * 1000)


def check_format(events: list[TraceEvent]) -> None:
    """Every rule of the format that these events could break."""
    last = 0.0
    slices: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    stacks: dict[tuple[str, int], list[str]] = defaultdict(list)
    for event in events:
        phase = event["ph"]
        assert set(event) >= REQUIRED[phase], event
        if phase == "M":
            continue
        assert event["ts"] >= last, "events are in the order of time"
        last = event["ts"]
        stack = stacks[event.get("cat", ""), event.get("id", -1)]
        if phase == "b":
            stack.append(event["name"])
        elif phase == "e":
            assert stack.pop() == event["name"], "asynchronous slices nest"
        elif phase == "X":
            begin = ns(event["ts"])
            slices[event["pid"], event["tid"]].append((begin, begin + ns(event["dur"])))
        elif phase == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
        else:
            assert event["s"] in ("g", "p", "t")
    assert not any(stacks.values()), "every asynchronous slice ends"
    for spans in slices.values():
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans)), "slices overlap"


def test_a_cluster(tmp_path: Path) -> None:
    scenario = load_scenario("hetero-3")
    options: dict[str, Any] = {"router_policy": "least-outstanding", "seed": 11, "load": 2.0}
    options |= {"horizon_s": 12.0, "warmup_s": 2.0}
    events, result, timeline = play(tmp_path / "t.json", scenario, **options)
    check_format(events)
    assert result.log_hash == evaluate(scenario, **options).log_hash
    of = {phase: [event for event in events if event["ph"] == phase] for phase in REQUIRED}
    names = {e["pid"]: e["args"]["name"] for e in of["M"] if e["name"] == "process_name"}
    assert len(names) == 1 + len(scenario.engines)
    assert names[ROUTER_PID] == "router"
    for index, spec in enumerate(scenario.engines):
        assert spec.name in names[FIRST_ENGINE_PID + index]
    records = result.records
    outer = [e for e in of["b"] if e["name"] == "request"]
    assert [ns(e["ts"]) for e in outer] == sorted(records.arrival_ns.tolist())
    ends = {e["id"]: ns(e["ts"]) for e in of["e"] if e["name"] == "request"}
    finished = np.flatnonzero(records.finish_ns >= 0)
    assert len(finished)
    assert all(ends[i] == records.finish_ns[i] for i in finished.tolist())
    assert {e["id"]: e["pid"] - FIRST_ENGINE_PID for e in outer} == dict(
        enumerate(records.engine.tolist())
    )
    choices = {e["args"]["request"]: e["args"]["engine"] for e in of["i"]}
    assert choices == dict(enumerate(records.engine.tolist()))
    assert sum(e["args"]["finished"] for e in of["X"]) == len(finished)
    assert sum(e["args"]["prefill_tokens"] for e in of["X"]) > 0
    assert len(timeline.held) >= len(of["X"])


def test_every_iteration_of_a_single_engine_is_there(tmp_path: Path) -> None:
    scenario = load_scenario("chat-h100")
    options: dict[str, Any] = {"seed": 5, "horizon_s": 8.0, "warmup_s": 1.0}
    events, result, timeline = play(tmp_path / "t.json", scenario, **options)
    check_format(events)
    assert timeline.sim is not None
    steps = [event for event in events if event["ph"] == "X"]
    # The last iteration that was planned may not have ended.
    assert timeline.sim.steps(0) - len(steps) in (0, 1)
    assert all(e["args"]["tokens"] <= e["args"]["token_budget"] for e in steps)
    emitted = int(result.records.emitted_tokens.sum())
    prompts = len(result.records)
    decodes = sum(event["args"]["decodes"] for event in steps)
    assert decodes == emitted - prompts  # the first token of each comes with its prefill


def test_events_and_lost_requests(tmp_path: Path) -> None:
    outage = (Event(4.0, "down", 0), Event(8.0, "up", 0))
    scenario = replace(load_scenario("hetero-3"), events=outage)
    options: dict[str, Any] = {"router_policy": "random", "horizon_s": 12.0, "warmup_s": 1.0}
    events, result, _ = play(tmp_path / "t.json", scenario, **options)
    check_format(events)
    told = [event for event in events if event.get("cat") == "event"]
    assert [(event["name"], event["ts"]) for event in told] == [("down", 4e6), ("up", 8e6)]
    outcomes = [e["args"]["outcome"] for e in events if e["ph"] == "b" and e["name"] == "request"]
    assert outcomes.count("failed") == result.summary["full"]["failed"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--router-policy", "all"], "shows one episode, not"),
        (["--router-policy", "random", "--backend", "vllm", "--model", "m"], "--backend vllm"),
    ],
)
def test_what_has_no_timeline(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(SystemExit) as done:
        cli.main(["run", "hetero-3", *options, "--timeline", str(path)])
    assert done.value.code == 2
    assert told in capsys.readouterr().err
    assert not path.exists()


def test_an_unplayed_timeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the timeline is empty"):
        write_timeline(tmp_path / "t.json", Timeline(), load_scenario("hetero-3"), "nothing")
