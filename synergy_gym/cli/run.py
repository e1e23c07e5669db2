"""`synergy-gym run`: one pair of policies on one scenario."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synergy_gym.cli import live_options as cli_live
from synergy_gym.cli import output as tables
from synergy_gym.cli.output import ALL, command_line
from synergy_gym.cli.report import TimelineOption

if TYPE_CHECKING:
    from synergy_gym.evaluation.timeline import Timeline
    from synergy_gym.live.backend import LiveOptions
    from synergy_gym.scenario import Scenario
    from synergy_gym.workload.base import Workload


def timeline_of(path: Path | None, episodes: int, *, simulated: bool) -> Timeline | None:
    """An empty timeline when one is asked for.

    Raises:
        ValueError: it would be of several episodes, or of real engines.
    """
    if path is None:
        return None
    if episodes != 1:
        raise ValueError(
            f"--timeline {path} shows one episode, not {episodes}; give --engine-policy or "
            "--router-policy one name"
        )
    if not simulated:
        raise ValueError(f"--timeline {path} shows simulated engines; drop --backend vllm")
    from synergy_gym.evaluation.timeline import Timeline

    path.parent.mkdir(parents=True, exist_ok=True)
    return Timeline()


def write_timeline_file(path: Path, seen: Timeline, scenario: Scenario, policies: str) -> None:
    """Write a played timeline and say where it is."""
    from synergy_gym.evaluation.timeline import write_timeline

    write_timeline(path, seen, scenario, f"{scenario.name}, {policies}")
    tables.note(f"timeline written to {path}; open it at https://ui.perfetto.dev")


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
    from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER
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
    options |= {} if seen is None else {"observers": [seen]}
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
