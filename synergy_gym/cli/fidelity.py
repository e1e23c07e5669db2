"""`synergy-gym fidelity`: the same traffic and policies in simulation and on real engines."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from synergy_gym.cli import output as tables
from synergy_gym.cli.live_options import engine_arguments

INTERRUPTED = 130


def fidelity(
    out: Annotated[Path, typer.Option(help="Folder for tables, plots, profiles and manifest.")],
    scenarios: Annotated[
        str | None, typer.Option(help="Names or TOML files, comma separated; default live-chat.")
    ] = None,
    policies: Annotated[
        str | None, typer.Option(help="Engine policies for scenarios with one engine.")
    ] = None,
    routers: Annotated[
        str | None, typer.Option(help="Router policies for scenarios with several engines.")
    ] = None,
    loads: Annotated[str | None, typer.Option(help="Multiples of the rate, e.g. 1.0,1.3.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Live episodes per cell; default 3.")] = None,
    clock: Annotated[str, typer.Option(help="cpu (processor time) or wall.")] = "cpu",
    model: Annotated[str, typer.Option(help="tiny, mid, big or a model folder.")] = "tiny",
    horizon: Annotated[float | None, typer.Option(help="Seconds of arrivals per episode.")] = None,
    dtype: Annotated[str, typer.Option(help="vLLM's dtype.")] = "float32",
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="Further vLLM argument, e.g. enforce_eager=false.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Five policies, short episodes.")] = False,
) -> None:
    """Calibrate on this machine, play live and simulated, and report how far they are apart.

    The table names the largest error that counts as good (goal) beside each figure, and how far
    live repeats differ among themselves. An interrupted run goes on where it stopped.
    """
    from synergy_gym.cli.output import command_line
    from synergy_gym.fidelity.compare import QUICK, Plan, compare
    from synergy_gym.fidelity.report import write_report
    from synergy_gym.live.backend import LiveOptions

    options = LiveOptions(
        model=model, clock=clock, dtype=dtype, engine_args=engine_arguments(engine_arg)
    )
    given: dict[str, Any] = {
        "scenarios": names(scenarios), "engine_policies": names(policies),
        "router_policies": names(routers), "loads": numbers(loads), "repeats": repeats,
        "horizon_s": horizon,
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    plan = replace(QUICK if quick else Plan(), options=options, **changes)
    with tables.progress() as bar:
        task = bar.add_task("starting the engines", total=None)

        def progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)
            if bar.disable and done * 10 // total > (done - 1) * 10 // total:
                tables.note(f"{done} of {total} parts")

        try:
            comparison = compare(plan, out, progress)
        except KeyboardInterrupt:
            tables.error(f"interrupted; the same command with --out {out} goes on from here")
            raise typer.Exit(INTERRUPTED) from None
    report = write_report(comparison, out, command_line())
    for title, frame in report.views():
        tables.show(tables.frame(title, frame))
    tables.note(f"written to {out}")


def names(text: str | None) -> tuple[str, ...] | None:
    """Comma separated names; `policy:a=1,b=2` is one.

    Raises:
        ValueError: there is none.
    """
    if text is None:
        return None
    found = tuple(part.strip() for part in re.split(r",(?!\w+=)", text) if part.strip())
    if not found:
        raise ValueError(f"{text!r} names nothing; separate names by commas")
    return found


def numbers(text: str | None) -> tuple[float, ...] | None:
    """Comma separated positive numbers.

    Raises:
        ValueError: one is none.
    """
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) <= 0:
        raise ValueError(f"--loads {text} must be positive numbers separated by commas: 1.0,1.3")
    return found
