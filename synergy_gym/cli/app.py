"""The command line: `synergy-gym run | leaderboard | list | traces | train | agent | bench | ...`.

For real vLLM: `fidelity | serve | route`, `run --backend vllm`, `calibrate --model`.

Results go to stdout, progress and errors to stderr. Wrong input is one line that names the
place, the value and the cure, with exit code 2; set SYNERGY_GYM_DEBUG=1 for the traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synergy_gym.cli import output as tables
from synergy_gym.cli import route as cli_route
from synergy_gym.cli import serve as cli_serve
from synergy_gym.cli.agent import agent
from synergy_gym.cli.calibrate import calibrate
from synergy_gym.cli.clock import clock
from synergy_gym.cli.fidelity import fidelity
from synergy_gym.cli.incidents import incidents
from synergy_gym.cli.leaderboard import leaderboard
from synergy_gym.cli.output import ALL, INTERRUPTED
from synergy_gym.cli.report import report
from synergy_gym.cli.run import run
from synergy_gym.cli.submit import submit
from synergy_gym.cli.train import train
from synergy_gym.cli.verify import verify
from synergy_gym.isolation import COMMAND, start_over

if TYPE_CHECKING:
    from rich.table import Table


DEBUG_VARIABLE = "SYNERGY_GYM_DEBUG"

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
app.command()(run)
app.command()(leaderboard)


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
    from synergy_gym.evaluation.workers.executor import ExecutorError
    from synergy_gym.live.vllm.version import VllmUnavailableError
    from synergy_gym.seats import PolicyError
    from synergy_gym.types import InformationError

    written = (ValueError, OSError, ExecutorError, PolicyError, InformationError)
    return isinstance(error, (*written, VllmUnavailableError))


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
