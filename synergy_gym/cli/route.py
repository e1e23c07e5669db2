"""`synergy-gym route`: a proxy in front of vLLM servers, with any router policy."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synergy_gym.cli import output as tables

if TYPE_CHECKING:
    from synergy_gym.live.proxy.gateway import Engine, Gateway
    from synergy_gym.live.proxy.proxy import ProxyOptions
    from synergy_gym.live.router.push import PushInbox
    from synergy_gym.policies.base import RouterPolicy
    from synergy_gym.types import SLO

DEFAULT_SLO = "ttft_s=1,tpot_s=0.05"
"""The client flags of SynergySched's experiments."""


def route(
    engine: Annotated[list[str], typer.Option(help="http://HOST:PORT or NAME=URL; repeat it.")],
    policy: Annotated[str, typer.Option(help="Router policy.")] = "round-robin",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.")] = 8000,
    push_port: Annotated[
        int | None, typer.Option(help="UDP port for the engines' state; 0: a free one.")
    ] = None,
    push_host: Annotated[str, typer.Option(help="Address of that port.")] = "127.0.0.1",
    scenario: Annotated[
        str | None, typer.Option(help="Take engine specs and SLOs from this scenario.")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(help=f"Objectives, or a scenario's; default {DEFAULT_SLO}.")
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Relative capacity, one per engine.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="The engines' limit.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(help="The engines' limit.")] = 8192,
    block_size: Annotated[
        int, typer.Option(help="Tokens per KV block, where the engines do not tell.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the policy.", min=0)] = 0,
    timeout_s: Annotated[float, typer.Option(help="Longest silence of an engine.")] = 300.0,
    max_retries: Annotated[int, typer.Option(help="Engines to try before the first byte.")] = 2,
    scrape_interval_s: Annotated[float, typer.Option(help="Of /metrics; 0: never.")] = 10.0,
    health_interval_s: Annotated[float, typer.Option(help="Of /health.")] = 5.0,
    drain_s: Annotated[float, typer.Option(help="For open requests on SIGTERM.")] = 60.0,
) -> None:
    """Route OpenAI requests to vLLM servers; SIGTERM lets open requests end.

    Engines push state to --push-port when they run with SYNERGY_GYM_PUSH. /metrics and /health
    are the proxy's own.
    """
    from synergy_gym.live.proxy.discover import Limits
    from synergy_gym.live.proxy.gateway import Gateway
    from synergy_gym.live.proxy.proxy import ProxyOptions
    from synergy_gym.live.router.health import HealthSpec
    from synergy_gym.policies.registry import make_router_policy

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    options = ProxyOptions(
        timeout_s=timeout_s,
        max_retries=max_retries,
        scrape_interval_s=scrape_interval_s,
        drain_s=drain_s,
    )
    health, chosen = HealthSpec(interval_s=health_interval_s), make_router_policy(policy)
    slos = _slos(slo, scenario)
    limits = Limits(max_num_seqs, max_num_batched_tokens, block_size=block_size)
    engines = _engines(engine, weight, scenario, limits)
    gateway = Gateway(engines, chosen, slos, seed=seed, health=health)
    _run(gateway, options, (host, port), _inbox(chosen, push_host, push_port))


def _run(
    gateway: Gateway, options: ProxyOptions, address: tuple[str, int], inbox: PushInbox | None
) -> None:
    from synergy_gym.live.proxy.proxy import Proxy, listen, run_proxy
    from synergy_gym.live.router.rehearsal import rehearse_routing

    host, port = address
    listener = listen(host, port)
    policy = gateway.router.policy
    rehearse_routing(policy, gateway.state.engines, gateway.slos)

    def announce() -> None:
        url = f"http://{host}:{listener.getsockname()[1]}"
        tables.show(_table(gateway.engines, policy.label, url, inbox))
        sys.stdout.flush()  # whoever started this may wait for the port

    run_proxy(Proxy(gateway, options, inbox), listener, announce)


def _engines(
    texts: Sequence[str], weights: Sequence[float] | None, scenario: str | None, limits: Any
) -> list[Engine]:
    from synergy_gym.live.proxy.discover import discover, parse_engine
    from synergy_gym.live.proxy.gateway import Engine
    from synergy_gym.scenario import load_scenario

    named = [parse_engine(text) for text in texts]
    if weights is not None and len(weights) != len(named):
        raise ValueError(f"{len(weights)} --weight for {len(named)} --engine; give one each")
    if scenario is None:
        shares = [1.0] * len(named) if weights is None else weights
        return asyncio.run(discover(named, limits, shares))
    specs = load_scenario(scenario).engines
    if len(specs) != len(named):
        raise ValueError(
            f"scenario {scenario!r} has {len(specs)} engines and there are {len(named)} --engine; "
            "give one each, in the scenario's order"
        )
    if weights is not None:
        specs = tuple(replace(s, weight=w) for s, w in zip(specs, weights, strict=True))
    # A name of its own is what pushes bear; without one, the scenario's.
    return [
        Engine(url, replace(spec, name=name) if text.partition("=")[0] == name else spec)
        for text, (name, url), spec in zip(texts, named, specs, strict=True)
    ]


def _slos(text: str | None, scenario: str | None) -> tuple[SLO, ...]:
    from synergy_gym.live.vllm.settings import parse_slos

    return parse_slos(text or scenario or DEFAULT_SLO)


def _inbox(policy: RouterPolicy, host: str, port: int | None) -> PushInbox | None:
    from synergy_gym.live.router.push import PushInbox

    if port is not None:
        return PushInbox(host, port)
    if "pushed" in policy.information:
        tables.note(
            f"{policy.label} reads state that engines push, and there is no --push-port: it will "
            "see idle engines without a model"
        )
    return None


def _table(engines: Sequence[Engine], policy: str, url: str, inbox: PushInbox | None) -> Any:
    from rich.table import Table

    where = f", engine state on {inbox.url}" if inbox else ""
    table = Table(title=f"{policy} on {url}{where}")
    for name in ("engine", "URL", "model", "max_model_len", "KV blocks", "block size", "weight"):
        table.add_column(name)
    for engine in engines:
        spec = engine.spec
        sizes = (spec.max_model_len, spec.kv_blocks, spec.block_size)
        texts = (str(size) for size in sizes)
        table.add_row(spec.name, engine.url, spec.model, *texts, f"{spec.weight:g}")
    return table
