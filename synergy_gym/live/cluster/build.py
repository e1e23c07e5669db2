"""From a scenario to a live cluster in real time: the transports "workers" and "http"."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from synergy_gym.latency.models.published import published_advert
from synergy_gym.live.backend import LiveEpisode, LiveOptions
from synergy_gym.live.cluster.cluster import LiveCluster
from synergy_gym.live.cluster.episode import ClusterEpisode
from synergy_gym.live.cluster.fleet import EngineOrders, Fleet
from synergy_gym.live.cluster.fleet_pool import FleetPool, fleet_pool
from synergy_gym.live.cluster.http.fleet import SMALLEST_VOCABULARY, HttpFleet, engine_name
from synergy_gym.live.cluster.messages import Patience
from synergy_gym.live.cluster.workers.fleet import WorkerFleet
from synergy_gym.live.cluster.workers.messages import Start
from synergy_gym.live.inprocess.machine_config import MachineConfig, read_model
from synergy_gym.live.router.push import PushInbox
from synergy_gym.live.vllm.prompts import Prompts
from synergy_gym.live.vllm.servers import ServerSpec, start_servers
from synergy_gym.live.vllm.settings import HostSettings
from synergy_gym.live.vllm.tiny_model import SIZES, write_model
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.registry import make_engine_policy
from synergy_gym.scenario import stop_time_ns
from synergy_gym.sim.adverts import started_with
from synergy_gym.sim.plain.telemetry import nanoseconds
from synergy_gym.types import SLO, EngineSpec

MOST_WAIT_S = 60.0
"""An episode whose SLOs have no deadline is cut so long after its horizon."""
STOCK = "vllm-v1"


def build_workers(episode: LiveEpisode) -> LiveCluster:
    """Worker processes of this machine, one vLLM engine each.

    Raises:
        ValueError: options or events that real engines in real time cannot follow.
        WorkerError: a worker does not start.
    """
    _check(episode)
    policy = make_engine_policy(episode.engine_policy)
    _check_caps(policy, episode.options)
    key = ("workers", episode.scenario.engines, _options_key(episode.options))
    fleet = _pool(episode).lease(key, lambda: _start_workers(episode))
    return _cluster(fleet, episode, policy)


def build_http(episode: LiveEpisode) -> LiveCluster:
    """OpenAI-compatible servers: those of `urls`, or new ones that run the engine policy.

    Raises:
        ValueError: options, events or a policy that they cannot follow.
        ServerError: a server does not start.
        RuntimeError: no server answers.
    """
    _check(episode)
    policy = make_engine_policy(episode.engine_policy)
    engines, options = episode.scenario.engines, episode.options
    if options.urls:
        _check_urls(options.urls, len(engines), policy)
        key: tuple[Any, ...] = ("urls", engines, _options_key(options))
        fleet = _pool(episode).lease(
            key, lambda: HttpFleet(engines, options.urls, _patience(options))
        )
        return _cluster(fleet, episode, policy)
    _check_caps(policy, options)
    settings = _settings(policy, tuple(episode.scenario.slos), episode.seed)
    key = ("servers", engines, _options_key(options), settings[:2])
    fleet = _pool(episode).lease(key, lambda: _start_http(episode, settings))
    return _cluster(fleet, episode, policy)


def _pool(episode: LiveEpisode) -> FleetPool:
    return fleet_pool() if episode.pool is None else episode.pool


def _cluster(fleet: Fleet, episode: LiveEpisode, policy: EnginePolicy) -> LiveCluster:
    scenario = episode.scenario
    given = episode.workload
    workload = scenario.workload(episode.load, episode.seed) if given is None else given
    policies = [copy.deepcopy(policy) for _ in scenario.engines]
    slos = tuple(scenario.slos)
    try:
        fleet.begin(EngineOrders(policies, episode.seed, slos, scenario.telemetry))
    except BaseException:
        fleet.close()
        raise
    stop_ns = stop_time_ns(workload, slos, scenario.horizon_s)
    latest_ns = int(workload.arrival_ns.max(initial=0)) + nanoseconds(scenario.horizon_s)
    prompts = Prompts(workload, fleet.vocabulary(), scenario.engines[0].block_size)
    played = ClusterEpisode(
        engines=tuple(scenario.engines),
        workload=workload,
        tokens=prompts.tokens,
        slos=slos,
        telemetry=scenario.telemetry,
        client=scenario.client,
        events=tuple(scenario.events),
        told=started_with([published_advert(spec) for spec in scenario.engines], len(policies)),
        warmup_ns=nanoseconds(scenario.warmup_s),
        horizon_ns=nanoseconds(scenario.horizon_s),
        stop_ns=min(stop_ns, latest_ns + nanoseconds(MOST_WAIT_S)),
        auto_route=episode.auto_route,
        record_itl=episode.record_itl,
        options=episode.options.entry(),
    )
    return LiveCluster(fleet, played)


def _check(episode: LiveEpisode) -> None:
    clock, transport = episode.options.clock, episode.options.transport
    if clock != "wall":
        raise ValueError(
            f"clock={clock!r} is not possible with transport={transport!r}, whose engines run by "
            "themselves in real time; use clock='wall', or transport='inprocess'"
        )


def _check_caps(policy: EnginePolicy, options: LiveOptions) -> None:
    if policy.uses_token_caps and options.token_caps == "error":
        raise ValueError(
            f"policy {policy.label!r} caps the tokens of single requests, which vLLM cannot; "
            "choose another, or token_caps='drop' to let these requests run free (counted)"
        )


def _check_urls(urls: Sequence[str], engines: int, policy: EnginePolicy) -> None:
    if len(urls) != engines:
        raise ValueError(
            f"{len(urls)} urls for {engines} engines; give one per engine of the scenario, in order"
        )
    if policy.label != STOCK:
        raise ValueError(
            f"servers given by `urls` batch as they were started, not by {policy.label!r}; start "
            "them with that policy and leave engine_policy alone, or leave `urls` out"
        )


def _options_key(options: LiveOptions) -> str:
    return json.dumps(options.entry(), sort_keys=True, default=str)


def _patience(options: LiveOptions) -> Patience:
    return Patience(
        start_s=options.start_timeout_s,
        first_token_s=options.request_timeout_s,
        token_gap_s=options.request_timeout_s,
    )


def _model_folder(options: LiveOptions, engines: Sequence[EngineSpec], folder: Path) -> Path:
    if options.model not in SIZES:
        return Path(options.model).expanduser().resolve()
    longest = max(spec.max_model_len for spec in engines)
    return write_model(folder / options.model, options.model, longest)


def _start_workers(episode: LiveEpisode) -> WorkerFleet:
    options, engines = episode.options, episode.scenario.engines
    place = tempfile.TemporaryDirectory(prefix="synergy-gym-workers-")
    folder = _model_folder(options, engines, Path(place.name))
    starts = [
        Start(
            engine=index,
            spec=spec,
            arguments=MachineConfig.of(
                spec,
                folder,
                dtype=options.dtype,
                load_format=options.load_format,
                threads=options.threads,
                engine_args=options.engine_args,
            ).arguments(),
        )
        for index, spec in enumerate(engines)
    ]
    return WorkerFleet(
        starts,
        _patience(options),
        folder=Path(place.name),
        threads=options.threads,
        release=place.cleanup,
    )


def _settings(policy: EnginePolicy, slos: tuple[SLO, ...], seed: int) -> tuple[str, str, int]:
    """What a server is told: policy, classes, seed."""
    return policy.label, _slo_text(slos), seed


def _slo_text(slos: tuple[SLO, ...]) -> str:
    """Classes as `host_settings.parse_slos` reads them.

    Raises:
        ValueError: a class without objectives beside others, which the text cannot say.
    """
    classes = []
    for slo in slos:
        limits = {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s, "e2e_s": slo.e2e_s}
        given = [f"{name}={value!r}" for name, value in limits.items() if value is not None]
        if not given and len(slos) > 1:
            raise ValueError(
                f"SLO class {slo.name!r} declares no objective, and servers cannot be told of such "
                "a class beside others; declare one, or use transport='workers'"
            )
        classes += [f"{slo.name}:{','.join(given)}"] if given else []
    return ";".join(classes)


def _start_http(episode: LiveEpisode, settings: tuple[str, str, int]) -> HttpFleet:
    options, engines = episode.options, episode.scenario.engines
    place = tempfile.TemporaryDirectory(prefix="synergy-gym-servers-")
    folder = _model_folder(options, engines, Path(place.name))
    inbox = PushInbox()
    label, slo, seed = settings
    try:
        specs = [
            _server_spec(
                spec,
                folder,
                options,
                HostSettings(
                    policy=label,
                    slo=slo,
                    push=inbox.url,
                    engine=engine_name(index),
                    seed=str(seed),
                ),
            )
            for index, spec in enumerate(engines)
        ]
        servers = start_servers(specs, Path(place.name), options.start_timeout_s)
    except BaseException:
        inbox.close()
        place.cleanup()
        raise
    vocabulary = int(read_model(folder).get("vocab_size", SMALLEST_VOCABULARY))
    release: Callable[[], object] = place.cleanup
    return HttpFleet(
        engines,
        [server.url for server in servers],
        _patience(options),
        inbox=inbox,
        servers=servers,
        vocabulary=vocabulary,
        release=release,
    )


def _server_spec(
    spec: EngineSpec, folder: Path, options: LiveOptions, settings: HostSettings
) -> ServerSpec:
    """A server with the limits of `spec`."""
    config = MachineConfig.of(
        spec, folder, dtype=options.dtype, load_format=options.load_format
    ).arguments()
    flags = {
        "load-format": config["load_format"],
        "dtype": options.dtype,
        "kv-cache-memory-bytes": config["kv_cache_memory_bytes"],
        "scheduling-policy": spec.scheduling,
        **{name.replace("_", "-"): value for name, value in options.engine_args.items()},
    }
    arguments = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return ServerSpec(
        model=str(folder),
        settings=settings,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=spec.max_model_len,
        block_size=spec.block_size,
        kv_blocks=spec.kv_blocks,
        prefix_caching=spec.prefix_caching,
        arguments=(
            "--enforce-eager",
            "--skip-tokenizer-init",
            "--enable-prompt-tokens-details",
            *arguments,
        ),
        environment={"OMP_NUM_THREADS": str(options.threads)},
    )
