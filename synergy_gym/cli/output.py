"""What the command line prints: rich tables on stdout, progress and errors on stderr."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from synergy_gym.seasons import SEASON

if TYPE_CHECKING:
    import pandas as pd

    from synergy_gym.evaluation.runner import Result

PIPE_WIDTH = 500
"""Columns of a table when stdout is not a terminal and COLUMNS is not set."""


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    told = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if told else PIPE_WIDTH, highlight=False)


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
        justify: JustifyMethod = "left" if index < left else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=index == 0)
    return table


def plain(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of texts, all columns flush left."""
    table = _table(title, *columns, left=len(columns))
    for row in rows:
        table.add_row(*(escape(text) for text in row))
    return table


def frame(title: str, content: pd.DataFrame, left: int = 2) -> Table:
    """A DataFrame whose cells are texts or whole numbers; the first `left` columns flush left."""
    table = _table(title, *map(str, content.columns), left=left)
    for row in content.itertuples(index=False, name=None):
        table.add_row(*(escape(str(value)) for value in row))
    return table


def number(value: float, digits: int = 3) -> str:
    """A figure with `digits` significant digits, 0: a whole number; `-` without data."""
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}g}" if digits else f"{value:.0f}"


def percent(value: float) -> str:
    """A share in percent; `-` without data."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _ms(value: float) -> str:
    return number(1000 * value)


class Played(NamedTuple):
    """One episode and the policies that played it."""

    engine: str
    router: str
    result: Result


class Column(NamedTuple):
    """A column of a table that must fit the terminal.

    The columns with the highest `spare` are left out first; 0 stays whatever the width.
    """

    title: str
    text: Callable[[Any], str]
    spare: int = 0


def _figures(title: str, name: str, form: Callable[[float], str], spare: int = 0) -> Column:
    return Column(title, lambda played: form(played.result.summary[name]), spare)


COMPARISON: tuple[Column, ...] = (
    _figures("offered", "offered", str),
    _figures("finished", "finished", str, 2),
    _figures("SLO\nmet", "slo_attainment", percent),
    _figures("TTFT s\np50", "ttft_p50_s", number),
    _figures("\np99", "ttft_p99_s", number),
    _figures("TPOT ms\np50", "tpot_p50_s", _ms),
    _figures("\np99", "tpot_p99_s", _ms),
    _figures("E2E s\np50", "e2e_p50_s", number),
    _figures("\np99", "e2e_p99_s", number),
    _figures("goodput\nreq/s", "goodput_rps", number, 3),
    _figures("output\ntok/s", "throughput_tps", lambda value: number(value, 0), 4),
    _figures("preempted", "preemptions", str, 5),
    _figures("prefix\nhits", "prefix_hit_share", percent, 6),
)
"""Columns of `comparison` after the policies."""


def _fitted(title: str, columns: list[Column], rows: list[Any], left: int, width: int) -> Table:
    """A table no wider than `width`, as far as columns may be left out."""
    kept = sorted(columns, key=lambda column: column.spare)
    wide = _console().options.update(max_width=10_000)
    while True:
        shown = [column for column in columns if column in kept]
        table = _table(title, *(column.title for column in shown), left=left)
        for row in rows:
            table.add_row(*(escape(column.text(row)) for column in shown))
        if not kept[-1].spare or _console().measure(table, options=wide).maximum <= width:
            break
        kept.pop()
    names = [column.title.replace("\n", " ").strip() for column in columns if column not in kept]
    if names:
        table.caption = f"Left out to fit {width} columns: {', '.join(names)}"
        table.caption_justify = "left"
    return table


def comparison(title: str, results: list[Played], width: int | None = None) -> Table:
    """One line per pair of policies over the scored window, best attainment first.

    A layer that has one policy in all lines is named in the title instead of a column.
    `width` in characters is the console's by default.
    """
    rows = sorted(results, key=lambda played: -_or_zero(played.result.summary["slo_attainment"]))
    varied = [x for x in ("engine", "router") if len({getattr(row, x) for row in rows}) > 1]
    layers = varied or ["engine", "router"]
    for layer in {"engine", "router"} - set(layers):
        title += f", {layer} policy {getattr(rows[0], layer)}"
    names = [Column(f"{layer}\npolicy", attrgetter(layer)) for layer in layers]
    columns = [*names, *COMPARISON]
    return _fitted(title, columns, rows, len(names), width or _console().width)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


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


def ranking_table(title: str, ranked: pd.DataFrame, width: int | None = None) -> Table:
    """A ranking as `synergy_gym.evaluation.board.scores.ranking` makes it, shares in percent.

    `width` in characters is the console's by default.
    """
    loads = [str(name) for name in ranked.columns if str(name).startswith("load ")]
    columns = [
        Column("rank", lambda row: str(row["rank"])),
        Column("policy", lambda row: str(row["policy"])),
        Column("IQM", lambda row: _share(row["iqm"])),
        Column("95 %\ninterval", _score_interval),
        Column("gap\nclosed", lambda row: _share(row["gap"]), 6),
        Column("mean", lambda row: _share(row["slo_attainment"]), 5),
        *(Column(name.replace(" ", "\n"), _share_of(name)) for name in loads),
        Column("capacity\nload", lambda row: str(row["capacity_text"])),
        Column("TTFT s\np99", lambda row: number(row["ttft_p99_s"]), 1),
        Column("E2E s\np99", lambda row: number(row["e2e_p99_s"]), 2),
        Column("preempted", lambda row: str(row["preemptions"]), 3),
        Column("episodes", lambda row: str(row["episodes"]), 4),
    ]
    rows = ranked.to_dict("records")
    text = f"{title}: requests that met every SLO, %"
    return _fitted(text, columns, rows, 2, width or _console().width)


def _score_interval(row: Any) -> str:
    return f"{_share(row['iqm_low'])}..{_share(row['iqm_high'])}"


def _share(value: float) -> str:
    return percent(value).removesuffix(" %")


def _share_of(column: str) -> Callable[[Any], str]:
    return lambda row: _share(row[column])


def scenarios(season: int = SEASON) -> Table:
    """The scenarios that come with the package, of one season."""
    from synergy_gym.scenario import list_scenarios, load_scenario

    title = f"Scenarios of season {season}"
    table = _table(title, "name", "engines", "rate req/s", "loads", "what", left=1)
    table.columns[-1].justify = "left"
    for name in list_scenarios(season):
        world = load_scenario(name, season)
        gpus: dict[str, int] = {}
        for engine in world.engines:
            gpus[engine.gpu] = gpus.get(engine.gpu, 0) + 1
        engines = " + ".join(f"{n} x ({gpu})" for gpu, n in gpus.items())
        loads = " ".join(f"{load:g}" for load in world.loads)
        summary = world.description.strip().split("\n")[0]
        table.add_row(world.label, engines, f"{world.rate_rps:g}", loads, escape(summary))
    return table


def profiles() -> Table:
    """The latency profiles that come with the package, each with how far it was checked."""
    from synergy_gym.latency.profiles import list_profiles, load_profile

    table = _table("Latency profiles", "name", "model", "engine loop", "checked against", left=4)
    for name in list_profiles():
        profile = load_profile(name)
        loops = " ".join(profile.loops) or "as measured"
        table.add_row(name, escape(profile.model), loops, profile.tier_label)
    return table


def policies() -> Table:
    """The registered policies of both layers, and the trained agents that come with the package."""
    from synergy_gym.policies.agent_file import AGENT_PREFIX, packaged_agents
    from synergy_gym.policies.registry import describe, engine_policies, router_policies

    table = _table("Policies", "layer", "name", "reads", "parameters", "what", left=5)
    registered = {"engine": engine_policies(), "router": router_policies()}
    kinds: tuple[Literal["engine", "router"], ...] = ("engine", "router")
    for kind in kinds:
        agents = [f"{AGENT_PREFIX}:{name}" for name in packaged_agents(kind)]
        for name in [*registered[kind], *agents]:
            info = describe(name, kind)
            parameters = ", ".join(f"{key}={value}" for key, value in info.parameters.items())
            reads = ", ".join(info.information)
            table.add_row(kind, name, reads, escape(parameters), escape(info.summary))
    return table


def suites(season: int = SEASON) -> Table:
    """The leaderboard's suites of one season, and how many episodes each has."""
    from synergy_gym.evaluation.board.suites import list_suites

    table = _table(f"Suites of season {season}", "name", "episodes", "what", left=1)
    table.columns[-1].justify = "left"
    for suite in list_suites(season):
        table.add_row(suite.label, str(len(suite.jobs())), suite.description)
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
    from synergy_gym.workload.traces.catalog import list_traces

    table = _table("Traces", "name", "format", "licence", "MB", "SHA-256", "url", left=6)
    table.columns[3].justify = "right"
    for trace in list_traces():
        size = "-" if trace.bytes is None else f"{trace.bytes / 1e6:.1f}"
        known = "unknown" if trace.sha256 is None else "known"
        url = escape(trace.url)
        table.add_row(trace.name, trace.format, trace.licence, size, known, url)
    return table


ALL = "all"


INTERRUPTED = 130


def command_line() -> str:
    """The command as it was typed, quoted for a shell."""
    return shlex.join(["synergy-gym", *sys.argv[1:]])
