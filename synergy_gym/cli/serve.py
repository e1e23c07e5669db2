"""`synergy-gym serve`: a vLLM server that an engine policy schedules."""

from __future__ import annotations

import shlex
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from synergy_gym.cli import output as tables

if TYPE_CHECKING:
    from synergy_gym.live.vllm.servers import Server, ServerSpec

POLL_S = 0.2


def serve(
    model: Annotated[
        str, typer.Option(help="tiny, mid, big (random weights), a model folder or a hub name.")
    ] = "tiny",
    policy: Annotated[
        str | None, typer.Option(help="Engine policy; without one vLLM schedules by itself.")
    ] = None,
    slo: Annotated[
        str, typer.Option(help="Objectives (`ttft_s=1,tpot_s=0.05`), or a scenario's.")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.")] = 8000,
    name: Annotated[str, typer.Option(help="The engine's name in pushed state and logs.")] = "",
    push: Annotated[str, typer.Option(help="Push state to this router, udp://HOST:PORT.")] = "",
    decisions: Annotated[
        Path | None, typer.Option(help="Append one JSON line per step to this file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the policy.", min=0)] = 0,
    log: Annotated[Path | None, typer.Option(help="The server's output; default: stderr.")] = None,
    timeout_s: Annotated[float, typer.Option(help="Longest start.")] = 300.0,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="After `--`: further arguments of vLLM.")
    ] = None,
) -> None:
    """Start a real vLLM server with an engine policy inside; Ctrl-C or SIGTERM ends it.

    The command that is run, with the environment that it gets, goes to stdout.
    """
    from synergy_gym.live.vllm.servers import Server, server_spec
    from synergy_gym.live.vllm.settings import HostSettings

    settings = HostSettings(
        policy=policy or "",
        slo=slo,
        push=push,
        engine=name,
        decisions=str(decisions.resolve()) if decisions else "",
        seed=str(seed),
    )
    if policy is not None:  # a wrong word costs no start
        settings.make_policy()
        settings.make_slos()
    spec = server_spec(model, settings, host=host, port=port, arguments=tuple(arguments or ()))
    _interrupt_on_sigterm()
    server = Server(spec, log)
    print(shell_line(server.spec), flush=True)
    serving = f"serving {model} with {policy or 'stock vLLM'} at {server.url}"
    raise typer.Exit(_watch(server, timeout_s, serving))


def shell_line(spec: ServerSpec) -> str:
    """The server's command with the environment that it gets, to be pasted into a shell."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in spec.variables().items()]
    return " \\\n  ".join([" ".join(variables), shlex.join(spec.command())])


def _watch(server: Server, timeout_s: float, serving: str) -> int:
    """Stay until the server ends, or Ctrl-C or SIGTERM; returns the exit code."""
    from synergy_gym.live.vllm.servers import ServerError

    try:
        server.wait_ready(timeout_s)
        tables.note(serving)
        while server.alive:
            time.sleep(POLL_S)
        tables.error(f"the server has ended by itself, with exit code {server.stop()}")
    except ServerError as error:
        first, *log_lines = str(error).splitlines()
        tables.error(first)
        tables.note("\n".join(log_lines))
    except KeyboardInterrupt:
        tables.note("stopping")
        return 0
    finally:
        server.stop()
    return 1


def _interrupt_on_sigterm() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
