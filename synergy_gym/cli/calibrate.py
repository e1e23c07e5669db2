"""`synergy-gym calibrate`: the rate of a scenario, or the clock of a real engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synergy_gym.cli import output as tables
from synergy_gym.cli.live_options import engine_arguments

if TYPE_CHECKING:
    from rich.table import Table

    from synergy_gym.fidelity.calibration import Calibration
    from synergy_gym.live.backend import LiveOptions

LIKE = "live-chat"


def calibrate(
    scenario: Annotated[
        str | None, typer.Argument(help="Find this scenario's rate: name or TOML file.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Rate: put it into the scenario's file.")
    ] = False,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", help="Rate: repeat for several; default: validation."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Rate: relative width of the search; default 0.005.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Measure a real engine: tiny, mid, big or a model folder.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Engine: the profile to write, .toml.")] = None,
    clock: Annotated[str | None, typer.Option(help="Engine: cpu (default) or wall.")] = None,
    like: Annotated[
        str | None,
        typer.Option(help=f"Engine: take limits and traffic from this scenario; default {LIKE}."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Engine: times everything is measured; default 3.", min=1),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Engine: vLLM dtype; default float32.")] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(help="Engine: further vLLM argument, e.g. enforce_eager=false."),
    ] = None,
    measure_kv: Annotated[
        bool, typer.Option("--measure-kv", help="Engine: let vLLM find how many KV blocks fit.")
    ] = False,
) -> None:
    """Find a scenario's load 1.0, or (with --model) measure a real engine's latency profile.

    Load 1.0 is the rate at which vllm-v1 + round-robin attain 90 % in simulation. A profile
    is fitted on steps of a vLLM engine in this process; scenarios name it in `profile`.
    """
    rate: dict[str, Any] = {"SCENARIO": scenario, "--write": write or None, "--seed": seeds or None}
    rate |= {"--tolerance": tolerance}
    engine: dict[str, Any] = {"--model": model, "--out": out, "--clock": clock, "--like": like}
    engine |= {
        "--rounds": rounds,
        "--dtype": dtype,
        "--engine-arg": engine_arg,
        "--measure-kv": measure_kv or None,
    }
    _check_mode(rate, engine)
    if scenario is not None:
        _rate(scenario, write, seeds, 0.005 if tolerance is None else tolerance)
        return
    assert model is not None
    assert out is not None
    options = _options(model, clock, dtype, engine_arg)
    _engine(out, like or LIKE, options, rounds or 3, measure_kv)


def _check_mode(rate: dict[str, Any], engine: dict[str, Any]) -> None:
    """Raise `ValueError` unless exactly one of the two modes is asked for, and completely."""
    asked_rate = [name for name, value in rate.items() if value is not None]
    asked_engine = [name for name, value in engine.items() if value is not None]
    if asked_rate and asked_engine:
        raise ValueError(
            f"{asked_rate[0]} finds a scenario's rate by simulation, {asked_engine[0]} measures a "
            "real engine; give `calibrate SCENARIO` or `calibrate --model MODEL --out FILE.toml` "
            "(--like SCENARIO names the limits of the engine)"
        )
    if asked_rate and rate["SCENARIO"] is None:
        raise ValueError(f"{asked_rate[0]} needs a scenario: `synergy-gym calibrate SCENARIO`")
    missing = [name for name in ("--model", "--out") if engine[name] is None]
    if not asked_rate and missing:
        raise ValueError(
            f"{missing[0]} is missing; give `calibrate SCENARIO` or "
            "`calibrate --model tiny --out FILE.toml`"
        )


def _rate(scenario: str, write: bool, seeds: list[int] | None, tolerance: float) -> None:
    from synergy_gym.evaluation.capacity import calibrate_rate, write_rate
    from synergy_gym.scenario import load_scenario
    from synergy_gym.seasons import SEASON, season_files

    world = load_scenario(scenario)
    if write and world.season != SEASON:
        raise ValueError(
            f"{scenario}: season {world.season} is archived and stays as it is; copy the file and "
            "calibrate the copy"
        )

    def progress(rate: float, attainment: float) -> None:
        tables.note(f"{rate:10.4g} requests/s: attainment {attainment:.4f}")

    found = calibrate_rate(scenario, seeds=seeds or None, tolerance=tolerance, progress=progress)
    print(f'rate_rps = {found.rate_rps:g}\nrate_source = "{found.source}"')
    if write:
        home = season_files(SEASON).scenarios
        path = Path(scenario) if scenario.endswith(".toml") else home / f"{scenario}.toml"
        write_rate(path, found)
        tables.note(f"written to {path}")


def _options(
    model: str, clock: str | None, dtype: str | None, given: list[str] | None
) -> LiveOptions:
    from synergy_gym.live.backend import LiveOptions

    return LiveOptions(
        model=model,
        clock="cpu" if clock is None else clock,
        dtype="float32" if dtype is None else dtype,
        engine_args=engine_arguments(given),
    )


def _engine(out: Path, like: str, options: LiveOptions, rounds: int, measure_kv: bool) -> None:
    from synergy_gym.cli.output import command_line
    from synergy_gym.fidelity.calibration import calibrate_scenario
    from synergy_gym.fidelity.profile_text import calibration_text
    from synergy_gym.latency.profile_writer import write_profile
    from synergy_gym.scenario import load_scenario

    if out.suffix != ".toml":
        raise ValueError(f"--out {out} is no .toml file; a profile is one")
    world = load_scenario(like)
    if len(world.engines) != 1:
        raise ValueError(
            f"--like {like} has {len(world.engines)} engines; name a scenario with one engine"
        )
    fitted, software = calibrate_scenario(
        world, options, rounds=rounds, measure_kv=measure_kv, progress=tables.note
    )
    write_profile(out, calibration_text(fitted[0], command_line(), software))
    tables.show(_table(fitted[0]))
    tables.note(f"written to {out}")


def _table(found: Calibration) -> Table:
    from synergy_gym.fidelity.profile_text import COMMENTS, quality_words

    spec = found.engine
    rows = [(n, f"{getattr(found.terms, n):.4g}", text) for n, text in COMMENTS.items()]
    rows += [
        ("kv_blocks", str(spec.kv_blocks), f"of {spec.block_size} tokens, read from the engine"),
        ("held-out", "", quality_words(found.held_out)),
        ("", "", f"at constant speed of the machine: {quality_words(found.held_out_steady)}"),
        ("contention", f"{found.contention:.2f}", "p90/p10 of equal steps"),
        ("", f"{found.wall_over_clock:.2f}", f"wall over {found.clock} time of the same"),
    ]
    title = f"Step latency of {spec.model} on {spec.gpu}, {found.clock} clock (measured)"
    return tables.plain(title, ("term", "value", "meaning"), rows)
