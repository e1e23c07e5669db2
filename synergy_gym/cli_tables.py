"""What the command line prints: rich tables on stdout, progress and errors on stderr."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from synergy_gym.evaluation.runner import Result

PIPE_WIDTH = 180
"""Columns of a table when stdout is not a terminal."""


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def show(table: Table) -> None:
    """Print a table on stdout."""
    _console().print(table)


def note(text: str) -> None:
    """Print one line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def error(text: str) -> None:
    """Print one error line on stderr."""
    print("error: " + " ".join(text.split()), file=sys.stderr, flush=True)


def progress() -> Progress:
    """A progress bar on stderr; silent when stderr is not a terminal."""
    console = _console(stderr=True)
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
    )


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", overflow="fold")
    return table


def number(value: float, digits: int = 3) -> str:
    """A figure with `digits` significant digits; `-` without data."""
    return "-" if math.isnan(value) else f"{value:.{digits}g}"


def percent(value: float) -> str:
    """A share in percent; `-` without data."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _ms(value: float) -> str:
    return number(1000 * value)


COMPARISON = (
    "engine policy",
    "router policy",
    "offered",
    "finished",
    "SLO met",
    "TTFT p50 s",
    "p99",
    "TPOT p50 ms",
    "p99",
    "E2E p50 s",
    "p99",
    "goodput req/s",
    "output tok/s",
    "preempted",
    "prefix hits",
)


class Played(NamedTuple):
    """One episode and the policies that played it."""

    engine: str
    router: str
    result: Result


def comparison(title: str, results: list[Played]) -> Table:
    """One line per pair of policies, over the scored window."""
    table = _table(title, *COMPARISON, left=2)
    for engine, router, result in results:
        s = result.summary
        table.add_row(
            escape(engine),
            escape(router),
            str(s["offered"]),
            str(s["finished"]),
            percent(s["slo_attainment"]),
            number(s["ttft_p50_s"]),
            number(s["ttft_p99_s"]),
            _ms(s["tpot_p50_s"]),
            _ms(s["tpot_p99_s"]),
            number(s["e2e_p50_s"]),
            number(s["e2e_p99_s"]),
            number(s["goodput_rps"]),
            number(s["throughput_tps"], 5),
            str(s["preemptions"]),
            percent(s["prefix_hit_share"]),
        )
    return table


def details(result: Result) -> Table:
    """The figures of one episode, scored window beside full run."""
    table = _table("", "figure", "scored window", "full run")
    summary, full = result.summary, result.summary["full"]
    for name, value in summary.items():
        if isinstance(value, (int, float)):
            table.add_row(name, _figure(name, value), _figure(name, full.get(name)))
    table.add_row("log_hash", result.log_hash, "")
    return table


def _figure(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith(("_attainment", "_share")):
        return percent(value)
    return number(value, 4) if isinstance(value, float) else str(value)


def ranking_table(title: str, ranked: pd.DataFrame) -> Table:
    """A ranking as `synergy_gym.evaluation.tables.ranking` makes it."""
    from synergy_gym.evaluation.tables import figure

    columns = [str(name) for name in ranked.columns]
    table = _table(title, *columns, left=2)
    for row in ranked.itertuples(index=False, name=None):
        table.add_row(*(escape(figure(c, v)) for c, v in zip(columns, row, strict=True)))
    return table


def scenarios() -> Table:
    """The scenarios that come with the package."""
    from synergy_gym.scenario import list_scenarios, load_scenario

    table = _table("Scenarios", "name", "engines", "rate req/s", "loads", "what", left=1)
    table.columns[-1].justify = "left"
    for name in list_scenarios():
        world = load_scenario(name)
        gpus: dict[str, int] = {}
        for engine in world.engines:
            gpus[engine.gpu] = gpus.get(engine.gpu, 0) + 1
        engines = " + ".join(f"{n} x {gpu}" for gpu, n in gpus.items())
        loads = " ".join(f"{load:g}" for load in world.loads)
        summary = world.description.strip().split("\n")[0]
        table.add_row(name, engines, f"{world.rate_rps:g}", loads, escape(summary))
    return table


def policies() -> Table:
    """The registered policies of both layers."""
    from synergy_gym.policies.registry import describe, engine_policies, router_policies

    table = _table("Policies", "layer", "name", "reads", "parameters", "what", left=5)
    for kind, names in (("engine", engine_policies()), ("router", router_policies())):
        for name in names:
            info = describe(name, "engine" if kind == "engine" else "router")
            parameters = ", ".join(f"{key}={value}" for key, value in info.parameters.items())
            reads = ", ".join(info.information)
            table.add_row(kind, name, reads, escape(parameters), escape(info.summary))
    return table


def suites() -> Table:
    """The leaderboard's suites and how many episodes each has."""
    from synergy_gym.evaluation.suites import SUITES

    table = _table("Suites", "name", "episodes", "what", left=1)
    table.columns[-1].justify = "left"
    for suite in SUITES.values():
        table.add_row(suite.name, str(len(suite.jobs())), suite.description)
    return table


def environments() -> Table:
    """The registered Gymnasium environments."""
    import gymnasium

    table = _table("Environments", "id", "entry point", left=2)
    for name, spec in sorted(gymnasium.registry.items()):
        if name.startswith("SynergyGym/"):
            table.add_row(name, str(spec.entry_point))
    return table


def traces() -> Table:
    """The public traces in the catalogue."""
    from synergy_gym.workload.catalog import list_traces

    table = _table("Traces", "name", "format", "licence", "url", left=4)
    for trace in list_traces():
        table.add_row(trace.name, trace.format, trace.licence, escape(trace.url))
    return table
