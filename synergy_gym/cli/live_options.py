"""What `synergy-gym run` needs to play on real engines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synergy_gym.live.backend import LiveOptions
    from synergy_gym.scenario import Scenario

BACKENDS = ("sim", "vllm")

ClockOption = Annotated[
    str | None,
    typer.Option(
        help="Time steps by async, sync, table (docs/clocks.md) or saturation; with --backend vllm "
        "by wall, cpu or model."
    ),
]
BackendOption = Annotated[str, typer.Option(help="sim, or vllm: real engines.")]
ModelOption = Annotated[
    str | None, typer.Option(help="vllm: tiny, mid, big (random weights) or a model folder.")
]
TransportOption = Annotated[
    str | None, typer.Option(help="vllm: how engines are reached, e.g. inprocess.")
]
UrlOption = Annotated[
    list[str] | None, typer.Option(help="vllm: a running server; repeat it for every engine.")
]


def chosen_world(
    scenario: str, backend: str, clock: str | None, *, urls: Sequence[str] | None, **given: Any
) -> tuple[Scenario, LiveOptions | None]:
    """The scenario with the clock that was asked for, and the options of real engines.

    Args:
        scenario: name or TOML file.
        backend: one of `BACKENDS`.
        clock: of the simulator (`Scenario.with_clock`), or of real engines.
        urls: running servers.
        given: further options of real engines; `None` where nothing was said.

    Raises:
        ValueError: an unknown backend or clock, or options of real engines without them.
    """
    from synergy_gym.live.backend import CLOCKS, live_options
    from synergy_gym.scenario import load_scenario

    if backend not in BACKENDS:
        raise ValueError(f"--backend {backend} is unknown; choose {' or '.join(BACKENDS)}")
    world = load_scenario(scenario)
    given["urls"] = None if urls is None else tuple(urls)
    if backend == "vllm":
        if clock is not None and clock not in CLOCKS:
            raise ValueError(
                f"--clock {clock} is no clock of real engines; choose one of {', '.join(CLOCKS)} "
                f"(SCENARIO@{clock} names the model behind the last)"
            )
        return world, live_options(backend, None, clock=clock, **given)
    live_options(backend, None, **given)
    return (world if clock is None else world.with_clock(clock)), None


def engine_arguments(given: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` texts as arguments of vLLM; values are JSON, or text where they are not.

    Raises:
        ValueError: no `=` in one of them.
    """
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--engine-arg {text} is no NAME=VALUE; write enforce_eager=false")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    return found
