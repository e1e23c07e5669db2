"""One simulated episode as a trace that Perfetto and `chrome://tracing` open.

The file is the JSON object of the Trace Event Format
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). Every engine
is a process: its iterations are slices, the requests that it served last asynchronous slices
(waiting, prefill, decode), and what it holds counters. The router is a process of its own, whose
choices are instants. Times are simulated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from synergy_gym.scenario import Scenario
from synergy_gym.seats import Observer
from synergy_gym.simulation import Simulation
from synergy_gym.types import NS_PER_S, DecisionRule, EngineStateField, Outcome, StepReport

NS_PER_US = 1_000
ROUTER_PID = 1
FIRST_ENGINE_PID = 2
STEP_DETAILS = (
    *("token_budget", "tokens", "sequences", "decodes", "prefill_tokens"),
    *("preempted", "admitted", "finished"),
)
REQUEST_TIMES = ("arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns")
REQUEST_DETAILS = ("prompt_tokens", "emitted_tokens", "cached_tokens", "preemptions")
TraceEvent = dict[str, Any]


class Held(NamedTuple):
    """What an engine held at a decision."""

    now_ns: int
    engine: int
    running: int
    waiting: int
    kv_used_blocks: int


class RoutedRequest(NamedTuple):
    """One routed request; `attempt` is 0 for the first."""

    now_ns: int
    request: int
    engine: int
    attempt: int


@dataclass
class Timeline(Observer):
    """What one episode did, filled in while it is played.

    Make it, give it to `evaluate(observers=[...])`, then `write_timeline`. Policies are asked in
    Python before every iteration, also those with a rule; decisions and log hash are the same.
    """

    asks_engines = True
    asks_router = True

    steps: list[StepReport] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    choices: list[RoutedRequest] = field(default_factory=list)
    sim: Simulation | None = None

    def began(self, sim: Simulation, rules: Sequence[DecisionRule | None]) -> None:
        """Begin with an episode of engines without rules."""
        self.sim = sim
        self._last_s = [-1.0] * len(rules)

    def before(self, sim: Simulation, engine: int | None, answer: Any) -> None:
        """Note where a request goes; note the last iteration, and what the engine holds."""
        if engine is None:
            attempt = sim.request_view().attempt
            self.choices.append(RoutedRequest(sim.now_ns, sim.point_request, int(answer), attempt))
            return
        self.note_step(sim, engine)
        state = sim.engine_view(engine).state.tolist()
        used = state[EngineStateField.KV_TOTAL_BLOCKS] - state[EngineStateField.KV_FREE_BLOCKS]
        running, waiting = state[EngineStateField.RUNNING], state[EngineStateField.WAITING]
        self.held.append(Held(sim.now_ns, engine, running, waiting, used))

    def end(self) -> None:
        """Note the last iteration of every engine."""
        for engine in range(len(self._last_s) if self.sim is not None else 0):
            self.note_step(self.sim, engine)  # type: ignore[arg-type]

    def note_step(self, sim: Simulation, engine: int) -> None:
        """Note an engine's last finished iteration, unless it was noted before."""
        step = sim.last_step(engine)
        if step is not None and step.start_s > self._last_s[engine]:
            self._last_s[engine] = step.start_s
            self.steps.append(step)


def write_timeline(path: Path, timeline: Timeline, scenario: Scenario, title: str) -> None:
    """Write the trace of a played episode.

    Args:
        path: the JSON file.
        timeline: filled in by an episode.
        scenario: what was played; names the engines and the events.
        title: shown with the trace.

    Raises:
        ValueError: no episode was played with this timeline.
    """
    if timeline.sim is None:
        raise ValueError("the timeline is empty; give it to `evaluate(observers=[...])` first")
    timeline.end()
    # Stable: at one instant, a request's phases stay in their order.
    events = [*_names(scenario), *sorted(_happenings(timeline, scenario), key=itemgetter("ts"))]
    head = {"title": title, "time": "simulated, microseconds since the episode began"}
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"displayTimeUnit":"ms","otherData":{json.dumps(head)},"traceEvents":[\n')
        file.write(",\n".join(json.dumps(event, separators=(",", ":")) for event in events))
        file.write("\n]}\n")


def _happenings(timeline: Timeline, scenario: Scenario) -> Iterator[TraceEvent]:
    yield from map(_slice, timeline.steps)
    yield from _counters(timeline.held)
    yield from map(_instant, timeline.choices)
    yield from _requests(timeline)
    yield from _world_events(scenario)


def _us(time_ns: int) -> float:
    """Microseconds whose thousandfold, cut to a whole number as Perfetto does, is `time_ns`."""
    time_us = time_ns / NS_PER_US
    return time_us if int(time_us * NS_PER_US) == time_ns else math.nextafter(time_us, math.inf)


def _pid(engine: int) -> int:
    return FIRST_ENGINE_PID + engine if engine >= 0 else ROUTER_PID


def _names(scenario: Scenario) -> Iterator[TraceEvent]:
    engines = [f"engine {index}: {spec.name}" for index, spec in enumerate(scenario.engines)]
    for pid, name in enumerate(["router", *engines], ROUTER_PID):
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
        order = {"sort_index": pid}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": order}
        thread = {"name": "choices" if pid == ROUTER_PID else "iterations"}
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": 1, "args": thread}


def _slice(step: StepReport) -> TraceEvent:
    begin_ns, length_ns = round(step.start_s * NS_PER_S), round(step.step_s * NS_PER_S)
    kinds = {"prefill": step.prefill_tokens > 0, "decode": step.decodes > 0}
    return {
        "ph": "X",
        "cat": "iteration",
        "name": "+".join(name for name, there in kinds.items() if there) or "empty",
        "pid": _pid(step.engine),
        "tid": 1,
        "ts": _us(begin_ns),
        "dur": _us(length_ns),
        "args": {name: getattr(step, name) for name in STEP_DETAILS},
    }


def _counters(held: Sequence[Held]) -> Iterator[TraceEvent]:
    """Counters of every engine, where they change."""
    last: dict[tuple[int, str], dict[str, int]] = {}
    for one in held:
        tracks = {
            "requests": {"running": one.running, "waiting": one.waiting},
            "KV cache": {"used blocks": one.kv_used_blocks},
        }
        for name, values in tracks.items():
            if last.get((one.engine, name)) != values:
                last[one.engine, name] = values
                at = {"pid": _pid(one.engine), "tid": 0, "ts": _us(one.now_ns)}
                yield {"ph": "C", "name": name, **at, "args": values}


def _instant(choice: RoutedRequest) -> TraceEvent:
    return {
        "ph": "i",
        "s": "t",
        "cat": "route",
        "name": f"to engine {choice.engine}",
        "pid": ROUTER_PID,
        "tid": 1,
        "ts": _us(choice.now_ns),
        "args": {"request": choice.request, "engine": choice.engine, "attempt": choice.attempt},
    }


def _requests(timeline: Timeline) -> Iterator[TraceEvent]:
    """A slice from arrival to finish per request, its phases inside.

    A request that never finished ends where its last known phase began; its outcome says why.
    """
    if timeline.sim is None:
        return
    records = timeline.sim.records()
    columns = (*REQUEST_TIMES, "engine", "outcome", *REQUEST_DETAILS)
    values = zip(*(getattr(records, name).tolist() for name in columns), strict=True)
    for index, row in enumerate(values):
        yield from _request(index, dict(zip(columns, row, strict=True)))


def _request(index: int, row: dict[str, int]) -> Iterator[TraceEvent]:
    known = [row[name] for name in REQUEST_TIMES if row[name] >= 0]
    outcome = Outcome(row["outcome"]).name.lower()
    details = {"request": index, "outcome": outcome}
    details |= {name: row[name] for name in REQUEST_DETAILS}
    common = {"cat": "request", "id": index, "pid": _pid(row["engine"]), "tid": 0}
    yield {"ph": "b", "name": "request", **common, "ts": _us(known[0]), "args": details}
    phases = ("waiting", "prefill", "decode")
    for name, begin, end in zip(phases, known, known[1:], strict=False):
        yield {"ph": "b", "name": name, **common, "ts": _us(begin)}
        yield {"ph": "e", "name": name, **common, "ts": _us(end)}
    yield {"ph": "e", "name": "request", **common, "ts": _us(known[-1])}


def _world_events(scenario: Scenario) -> Iterator[TraceEvent]:
    for event in scenario.events:
        at = {"pid": _pid(event.engine), "tid": 1, "ts": _us(round(event.at_s * NS_PER_S))}
        details = {"factor": event.factor, "blocks": event.blocks}
        yield {"ph": "i", "s": "p", "cat": "event", "name": event.kind, **at, "args": details}
