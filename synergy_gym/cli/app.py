"""The command line: `synergy-gym run | leaderboard | list | traces | train | agent | bench | ...`.

For real vLLM: `fidelity | serve | route`, `run --backend vllm`, `calibrate --model`.

Results go to stdout, progress and errors to stderr. Wrong input is one line that names the
place, the value and the cure, with exit code 2; set SYNERGY_GYM_DEBUG=1 for the traceback.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synergy_gym.cli import live_options as cli_live
from synergy_gym.cli import output as tables
from synergy_gym.cli import route as cli_route
from synergy_gym.cli import serve as cli_serve
from synergy_gym.cli.agent import agent
from synergy_gym.cli.calibrate import calibrate
from synergy_gym.cli.clock import clock
from synergy_gym.cli.fidelity import fidelity
from synergy_gym.cli.incidents import incidents
from synergy_gym.cli.report import TimelineOption, report, timeline_of, write_timeline_file
from synergy_gym.cli.submit import submit
from synergy_gym.cli.train import train
from synergy_gym.cli.verify import verify
from synergy_gym.isolation import COMMAND, start_over

if TYPE_CHECKING:
    from rich.table import Table

    from synergy_gym.evaluation.timeline import Timeline
    from synergy_gym.live.backend import LiveOptions
    from synergy_gym.scenario import Scenario
    from synergy_gym.workload.base import Workload

ALL = "all"
DEBUG_VARIABLE = "SYNERGY_GYM_DEBUG"
INTERRUPTED = 130

app = typer.Typer(
    name="synergy-gym",
    help="Benchmark gym for LLM-serving schedulers: play policies, rank them, replay the tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
traces_app = typer.Typer(help="Public request traces.", no_args_is_help=True)
app.add_typer(traces_app, name="traces")
app.command()(agent)
app.command()(calibrate)
app.command()(clock)
app.command()(fidelity)
app.command()(incidents)
app.command()(report)
app.command()(train)
app.command()(verify)
app.command()(submit)


class Listed(StrEnum):
    """What `list` can show."""

    SCENARIOS = "scenarios"
    POLICIES = "policies"
    PROFILES = "profiles"
    SUITES = "suites"
    SCENARIOS_1 = "season1/scenarios"
    SUITES_1 = "season1/suites"
    ENVS = "envs"
    TRACES = "traces"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `synergy-gym`; always exits.

    Exit codes: 0 done, 1 an episode failed, 2 wrong input, 130 interrupted.
    """
    if arguments is None and sys.argv[1:2] == [COMMAND]:
        start_over()
    raise SystemExit(_exit_code(list(arguments) if arguments is not None else None))


def _exit_code(arguments: list[str] | None) -> int:
    debug = bool(os.environ.get(DEBUG_VARIABLE))
    if (arguments or sys.argv[1:])[:1] != [COMMAND]:
        _see_own_modules()
    try:
        return int(app(args=arguments, prog_name="synergy-gym", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        tables.error("interrupted")
        return INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own usage errors
            return _usage_error(error)
        if debug or not _is_input_error(error):
            raise
        for line in _lines(error):
            tables.error(line)
        return 2


def _see_own_modules() -> None:
    """Let `--router-policy module:Class` name a module of the working directory."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _lines(error: Exception) -> list[str]:
    """One line per mistake of a scenario file, else one line."""
    from synergy_gym.scenario import ScenarioError

    if isinstance(error, ScenarioError):
        return str(error).splitlines()
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}; check the path or choose another"
    return ["; ".join([text, *getattr(error, "__notes__", ())])]


def _usage_error(error: Any) -> int:
    message = str(error.format_message())
    if message:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "synergy-gym"
        tables.error(f"{message.removesuffix('.')}; see `{command} --help`")
    return int(error.exit_code)


def _is_input_error(error: Exception) -> bool:
    """Errors whose message is written for the person at the keyboard."""
    from synergy_gym.evaluation.runner import PolicyError
    from synergy_gym.evaluation.workers.local import ExecutorError
    from synergy_gym.live.vllm.version import VllmUnavailableError
    from synergy_gym.types import InformationError

    written = (ValueError, OSError, ExecutorError, PolicyError, InformationError)
    return isinstance(error, (*written, VllmUnavailableError))


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="Name (see `list scenarios`) or TOML file.")],
    engine_policy: Annotated[
        str | None, typer.Option(help="Engine policy, or `all` for every registered one.")
    ] = None,
    router_policy: Annotated[
        str | None, typer.Option(help="Router policy, or `all` for every registered one.")
    ] = None,
    load: Annotated[float | None, typer.Option(help="Multiple of the scenario's rate.")] = None,
    clock: cli_live.ClockOption = None,
    backend: cli_live.BackendOption = "sim",
    model: cli_live.ModelOption = None,
    transport: cli_live.TransportOption = None,
    url: cli_live.UrlOption = None,
    seed: Annotated[int, typer.Option(help="Seed of traffic, noise and policies.", min=0)] = 0,
    trace: Annotated[Path | None, typer.Option(help="Play this trace instead.")] = None,
    format: Annotated[str | None, typer.Option(help="Layout of the trace.")] = None,
    rate_scale: Annotated[float | None, typer.Option(help="Play the trace so much faster.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many requests.")] = None,
    start: Annotated[float | None, typer.Option(help="Skip the first seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="Stop at this second of the trace.")] = None,
    zero_output: Annotated[
        str | None, typer.Option(help="Rows without output tokens: error, drop or one.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests/s for a trace without arrival times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write tables and manifest here.")] = None,
    timeline: TimelineOption = None,
) -> None:
    """Play one episode per policy and print its figures.

    Without a policy option, every policy of the deciding layer is played: engine policies
    on a single engine, router policies on a cluster.
    """
    world, live = cli_live.chosen_world(
        scenario, backend, clock, model=model, transport=transport, urls=url or None
    )
    options = {"format": format, "rate_scale": rate_scale, "limit": limit, "start": start}
    options |= {"end": end, "zero_output": zero_output, "rate": rate}
    workload = _trace_workload(trace, options)
    if workload is not None and load is not None:
        raise ValueError("--load scales generated traffic; scale a trace with --rate-scale")
    pairs = _pairs(world, engine_policy, router_policy, live)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # a wrong path costs no episodes
    seen = timeline_of(timeline, len(pairs), simulated=live is None)
    results = _play(world, pairs, 1.0 if load is None else load, seed, workload, live, seen)
    if seen is not None and timeline is not None:
        write_timeline_file(timeline, seen, world, f"{pairs[0][0]} + {pairs[0][1]}")
    tables.show(tables.comparison(_title(world, load, trace, live), results))
    if len(results) == 1:
        tables.show(tables.details(results[0].result))
    if out is not None:
        _write_run(out, results)


def _title(
    world: Scenario, load: float | None, trace: Path | None, live: LiveOptions | None
) -> str:
    traffic = f"load {1.0 if load is None else load:g}" if trace is None else trace.name
    world_of = "simulated" if live is None else f"vLLM, {live.clock} clock"
    return f"{world.label}, {traffic} ({world_of})"


def _trace_workload(trace: Path | None, options: dict[str, Any]) -> Workload | None:
    """The trace that the options ask for; `None` without one."""
    given = {name: value for name, value in options.items() if value is not None}
    if trace is None:
        if given:
            raise ValueError(f"--{next(iter(given)).replace('_', '-')} needs --trace FILE")
        return None
    from synergy_gym.workload.traces.load import list_formats, load_trace

    if "format" not in given:
        raise ValueError(f"--trace {trace} needs --format, one of {', '.join(list_formats())}")
    seconds = {"start": "start_s", "end": "end_s", "rate": "rate_rps"}
    named = {seconds.get(name, name): value for name, value in given.items()}
    workload = load_trace(trace, **named)
    if not len(workload):
        raise ValueError(
            f"{trace}: no requests to play; check the file, or widen --start, --end and --limit"
        )
    return workload


def _pairs(
    world: Scenario, engine: str | None, router: str | None, live: LiveOptions | None
) -> list[tuple[str, str]]:
    """The (engine policy, router policy) pairs that the options ask for."""
    from synergy_gym.evaluation.board.suites import DEFAULT_ENGINE, DEFAULT_ROUTER
    from synergy_gym.policies.registry import engine_policies, router_policies

    single = len(world.engines) == 1
    if engine is None and router is None:
        engine, router = (ALL, None) if single else (None, ALL)
    if single and router == ALL:
        raise ValueError(
            f"{world.name} has one engine, so there is nothing to route; drop --router-policy all"
        )
    engines = _playable(engine_policies(), live) if engine == ALL else [engine or DEFAULT_ENGINE]
    routers = router_policies() if router == ALL else [router or DEFAULT_ROUTER]
    return [(e, r) for e in engines for r in routers]


def _playable(names: list[str], live: LiveOptions | None) -> list[str]:
    """Without the policies that a real engine cannot follow; they are named on stderr."""
    if live is None or live.token_caps == "drop":
        return names
    from synergy_gym.policies.registry import make_engine_policy

    left_out = [name for name in names if make_engine_policy(name).uses_token_caps]
    if left_out:
        tables.note(f"left out, vLLM cannot cap single requests: {', '.join(left_out)}")
    return [name for name in names if name not in left_out]


def _play(
    world: Scenario,
    pairs: list[tuple[str, str]],
    load: float,
    seed: int,
    workload: Workload | None,
    live: LiveOptions | None,
    seen: Timeline | None,
) -> list[tables.Played]:
    from synergy_gym.evaluation.runner import evaluate

    results = []
    options: dict[str, Any] = {"backend": "sim" if live is None else "vllm", "live": live}
    options |= {} if seen is None else {"simulator": seen.simulator}
    with tables.progress() as bar:
        task = bar.add_task("playing", total=len(pairs))
        for engine, router in pairs:
            bar.update(task, description=f"{engine} + {router}")
            result = evaluate(world, engine, router, load, seed, workload=workload, **options)
            results.append(tables.Played(engine, router, result))
            bar.advance(task)
    return results


def _write_run(out: Path, results: list[tables.Played]) -> None:
    from synergy_gym.evaluation.manifest import write_json

    for played in results:
        name, result = f"{played.engine}+{played.router}", played.result
        folder = out if len(results) == 1 else out / _slug(name)
        folder.mkdir(parents=True, exist_ok=True)
        result.requests.to_csv(
            folder / "requests.csv", index=False, float_format="%.9f", lineterminator="\n"
        )
        write_json(folder / "summary.json", {**result.summary, "log_hash": result.log_hash})
        write_json(folder / "manifest.json", {**result.manifest, "command": command_line()})
    tables.note(f"written to {out}")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-+.=" else "_" for c in name)


def command_line() -> str:
    """The command as it was typed, quoted for a shell."""
    return shlex.join(["synergy-gym", *sys.argv[1:]])


@app.command()
def leaderboard(
    out: Annotated[Path, typer.Option(help="Folder for tables, plots and manifest.")],
    suite: Annotated[
        str, typer.Option(help="See `list suites`; season1/NAME for an archived one.")
    ] = "quick",
    track: Annotated[
        str | None, typer.Option(help="Only this part of the suite: engine, router or joint.")
    ] = None,
    timed: Annotated[
        bool, typer.Option("--timed", help="Charge a constant per decision to the simulated clock.")
    ] = False,
    times: Annotated[
        Path | None,
        typer.Option("--decision-times", help="Other constants for --timed, a CSV file."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Worker processes; 1.", min=1)] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for a Ray cluster.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="host:port of the cluster; by default this machine's.")
    ] = None,
) -> None:
    """Play a suite and rank its policies; an interrupted run goes on where it stopped."""
    from synergy_gym.evaluation.board.suites import chosen_suite
    from synergy_gym.evaluation.leaderboard import run_leaderboard
    from synergy_gym.evaluation.workers.local import make_executor

    chosen = chosen_suite(suite, track, timed=timed, decision_times=times)
    where = make_executor(executor, jobs, ray_address)
    with tables.progress() as bar:
        task = bar.add_task("loading", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)
            if bar.disable and done * 10 // total > (done - 1) * 10 // total:
                tables.note(f"{done} of {total} episodes")

        try:
            report = run_leaderboard(
                chosen, out, executor=where, command=command_line(), on_progress=on_progress
            )
        except KeyboardInterrupt:
            tables.error(f"interrupted; the same command with --out {out} goes on from here")
            raise typer.Exit(INTERRUPTED) from None
    for part, ranked in report.rankings():
        title = f"{part.title} on {', '.join(part.scenarios)} (simulated)"
        tables.show(tables.ranking_table(title, ranked))
    tables.note(f"written to {out}")
    for job, text in report.failures.items():
        tables.error(f"{job}: {text}")
    if report.failures:
        tables.error(f"{len(report.failures)} episodes failed; repeat the command to retry them")
        raise typer.Exit(1)


@app.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
) -> None:
    """List scenarios, policies, latency profiles, suites, environments or traces.

    Those of an archived season are named `season1/NAME` wherever a name goes.
    """
    makers: dict[Listed, Callable[[], Table]] = {
        Listed.SCENARIOS: tables.scenarios,
        Listed.POLICIES: tables.policies,
        Listed.PROFILES: tables.profiles,
        Listed.SUITES: tables.suites,
        Listed.SCENARIOS_1: partial(tables.scenarios, 1),
        Listed.SUITES_1: partial(tables.suites, 1),
        Listed.ENVS: tables.environments,
        Listed.TRACES: tables.traces,
    }
    tables.show(makers[what]())


@traces_app.command("list")
def traces_list() -> None:
    """List the public traces that `traces download` fetches."""
    tables.show(tables.traces())


@traces_app.command("download")
def traces_download(
    names: Annotated[list[str], typer.Argument(help="Names of `traces list`, or `all`.")],
    out: Annotated[Path | None, typer.Option(help="Folder; a user cache by default.")] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Hash of a copy that you trust, for one without a known one.")
    ] = None,
) -> None:
    """Fetch traces by URL, check their SHA-256 and print where they are.

    `all` fetches those with a known SHA-256.
    """
    from synergy_gym.workload.traces.catalog import download_trace, list_traces

    known = [trace.name for trace in list_traces() if trace.sha256 is not None]
    chosen = known if names == [ALL] else names
    if sha256 is not None and len(chosen) > 1:
        raise ValueError(f"--sha256 is the hash of one trace, not of {len(chosen)}; name one")
    for name in chosen:
        print(download_trace(name, out, sha256=sha256))
    if names == [ALL]:
        left_out = [trace.name for trace in list_traces() if trace.name not in known]
        tables.note(f"left out, no SHA-256 is known (give --sha256): {', '.join(left_out)}")


@app.command()
def bench(
    out: Annotated[Path | None, typer.Option(help="Also write the rows to this CSV file.")] = None,
) -> None:
    """Measure the speed goals, each beside Gymnasium's CartPole where it is the yardstick."""
    from synergy_gym.bench.bench import run_bench

    run_bench(out)


app.command()(cli_route.route)
app.command()(cli_serve.serve)
