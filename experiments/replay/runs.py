"""The measured 8xH100 runs, and how one is played again in the simulator.

A run is a per-request log of YNewsoul/llm-inference-benchmarking (Llama-3.1-8B-Instruct on eight
H100 behind vLLM's production-stack router, FlowGPT prompts). Its send times, prompt and output
lengths and sessions are replayed; everything else comes from the scenario
`flowgpt-8xh100-llama8b` and the coefficients given.

What the log does not hold, and what is assumed: prompt contents (`shared_prefixes`), the rule of
the router labelled "qps" (`LowestQps`), and what happens between client and engine, which is no
part of the simulator (`Overhead`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.clock import StepTerms
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.prism import RequestRates
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import NS_PER_S, SLO, ClusterView, EngineSpec, FloatArray, RequestView
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import Content, session_content

SCENARIO = "flowgpt-8xh100-llama8b"
FOLDER = "measurements"
COLUMNS = ("client", "session_id", "send_s", "ttft_s", "e2e_s", "tokens_in", "tokens_out")
METRICS = ("ttft_s", "tpot_ms", "e2e_s")


@dataclass
class LowestQps(RouterPolicy):
    """Fewest requests in the last `window_s` seconds; ties to the first engine.

    The rule that vLLM's production-stack router has for requests without a session
    (`_qps_routing` of routing_logic.py), with the window of the launch script beside the data
    (`--request-stats-window 2` of exp_3/create_router.sh). That the runs labelled "qps" used them
    is an assumption: the label is documented nowhere. Windows of 10 to 60 s come near
    round-robin.
    """

    window_s: float = 2.0

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Forget all requests."""
        self._rates = RequestRates(len(engines), self.window_s)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The engine with the lowest count in the window."""
        self._rates.expire(cluster.now_s)
        choice = cluster.argmin(self._rates.counts)
        self._rates.note(cluster.now_s, choice)
        return choice


ENGINE_POLICIES: Mapping[str, str] = MappingProxyType({"native": "vllm-v1", "sla": "lens-ref"})
ROUTER_POLICIES: Mapping[str, str | type[RouterPolicy]] = MappingProxyType(
    {"roundrobin": "round-robin", "elrar": "prism-ref", "qps": LowestQps}
)
"""The logs' labels: native is stock vLLM, sla is LENS, elrar is PRISM."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run.

    Attributes:
        mode: "timestamp" (bursts at whole seconds) or "qps" (constant pace; every client
            sends the same prompts).
        engine: label of the engine policy.
        router: label of the router policy.
        upper: the log's sample_upper; 10 times it is the number of clients, which start 10 s
            apart and send about 5 requests per second each.
    """

    mode: str
    engine: str
    router: str
    upper: float

    def __str__(self) -> str:
        return f"{self.mode} {self.engine} {self.router} {self.upper}"

    @property
    def policy(self) -> str:
        """What plays it: engine policy + router policy."""
        router = ROUTER_POLICIES[self.router]
        name = router if isinstance(router, str) else "lowest-qps (assumed)"
        return f"{ENGINE_POLICIES[self.engine]} + {name}"

    @property
    def file(self) -> str:
        """Its log below the data folder."""
        return f"{FOLDER}/requests_{self.mode}_{self.engine}_{self.router}_0.0_{self.upper}.csv.gz"


NATIVE_05 = Run("timestamp", "native", "roundrobin", 0.5)
NATIVE_07 = Run("timestamp", "native", "roundrobin", 0.7)
PACED_07 = Run("qps", "native", "roundrobin", 0.7)
LENS_RR_07 = Run("timestamp", "sla", "roundrobin", 0.7)
LENS_QPS_07 = Run("timestamp", "sla", "qps", 0.7)
LENS_PRISM_07 = Run("timestamp", "sla", "elrar", 0.7)
RUNS = (NATIVE_05, PACED_07, LENS_RR_07, LENS_QPS_07, LENS_PRISM_07, NATIVE_07)


def read_run(path: Path) -> pd.DataFrame:
    """One row per request, in order of sending, with TPOT and the client's age.

    TPOT is (E2E - TTFT) / output tokens, as in the data's own summaries; `age_s` is the time
    since the request's client sent its first one.

    Raises:
        ValueError: a column is missing, or a row holds an impossible value.
    """
    frame = pd.read_csv(path)
    if missing := [name for name in COLUMNS if name not in frame]:
        raise ValueError(f"{path}: no column {missing[0]!r}; a log has {', '.join(COLUMNS)}")
    good = (frame.send_s >= 0) & (frame.ttft_s > 0) & (frame.e2e_s >= frame.ttft_s)
    good &= (frame.tokens_in >= 1) & (frame.tokens_out >= 1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ValueError(f"{path}: row {row}: {frame.loc[row].to_dict()} is no finished request")
    frame = frame.sort_values("send_s", kind="stable").reset_index(drop=True)
    frame["tpot_ms"] = (frame.e2e_s - frame.ttft_s) / frame.tokens_out * 1000
    frame["age_s"] = frame.send_s - frame.groupby("client").send_s.transform("min")
    return frame


# --- replay ---------------------------------------------------------------------------------


def shared_prefixes(requests: pd.DataFrame) -> Content:
    """Which prompts begin alike: an assumption, as the logs hold lengths only.

    Equal length in one session means the same prompt again (a regenerated answer; in qps mode
    another client's copy). A prompt longer than the session's last prompt and answer together
    continues them. Any other prompt is new: FlowGPT cuts the oldest messages, which moves all
    that follows.
    """
    count = len(requests)
    previous, shared = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    same: dict[tuple[int, int], int] = {}
    last: dict[int, tuple[int, int]] = {}
    columns = (requests[name].tolist() for name in ("session_id", "tokens_in", "tokens_out"))
    for row, (session, prompt, output) in enumerate(zip(*columns, strict=True)):
        before, known = last.get(session, (-1, 0))
        if (session, prompt) in same:
            previous[row], shared[row] = same[session, prompt], prompt
        elif before >= 0 and prompt >= known:
            previous[row], shared[row] = before, known
        same[session, prompt] = row
        last[session] = (row, prompt + output)
    return session_content(previous, shared)


def to_workload(requests: pd.DataFrame, begin_s: float = 0.0) -> Workload:
    """The requests (in order of sending) as traffic that starts at `begin_s` of the run."""
    return make_workload(
        np.round((requests.send_s.to_numpy() - begin_s) * NS_PER_S).astype(np.int64),
        requests.tokens_in.to_numpy(np.int64),
        requests.tokens_out.to_numpy(np.int64),
        session=requests.session_id.to_numpy(np.int64),
        content=shared_prefixes(requests),
    )


def cluster_with(terms: StepTerms | None) -> Scenario:
    """The scenario, timed by `terms` (None: its packaged profile); no request is cut off.

    The engines keep the profile's name: LENS and PRISM believe the published fit of the GPU,
    whatever the clock is.
    """
    scenario = load_scenario(SCENARIO)
    slos = tuple(replace(slo, e2e_s=3600.0) for slo in scenario.slos)
    clock = scenario.terms if terms is None else (terms,) * len(scenario.engines)
    return replace(scenario, slos=slos, terms=clock, warmup_s=0.0)


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a client waits for outside the engine, in seconds; added, not simulated.

    HTTP on both sides, the router process and tokenisation: a part per request and one per
    prompt token. It delays the first token and with it the end.
    """

    per_request_s: float = 0.0
    per_prompt_token_s: float = 0.0

    def of(self, prompt_tokens: FloatArray) -> FloatArray:
        """Per request."""
        return self.per_request_s + self.per_prompt_token_s * prompt_tokens


NO_OVERHEAD = Overhead()


def simulate(
    run: Run,
    requests: pd.DataFrame,
    terms: StepTerms | None,
    *,
    begin_s: float = 0.0,
    wait_s: FloatArray | float = 0.0,
    router: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Play the requests again; `ttft_s`, `tpot_ms`, `e2e_s` per request from `send_s` on.

    Args:
        run: names the policies.
        requests: rows of the run's log, in order of sending; none before `begin_s`.
        terms: the clock's coefficients; None for the packaged profile.
        begin_s: where the replayed part of the run begins.
        wait_s: how long each request waits in its client before it really leaves.
        router: a router policy instead of the run's.
        seed: of the step noise.
    """
    left = requests.assign(send_s=requests.send_s + wait_s).sort_values("send_s", kind="stable")
    result = evaluate(
        cluster_with(terms),
        ENGINE_POLICIES[run.engine],
        router or ROUTER_POLICIES[run.router],
        seed=seed,
        workload=to_workload(left, begin_s),
        record_itl=False,
    )
    table = result.requests.set_axis(left.index).reindex(requests.index)
    table["tpot_ms"] = 1000 * (table.e2e_s - table.ttft_s) / requests.tokens_out
    return add_wait(table[[*METRICS, "cached_tokens"]], wait_s)


def add_wait(simulated: pd.DataFrame, wait_s: FloatArray | float) -> pd.DataFrame:
    """The latencies as a client sees them who waits `wait_s` more for the first token."""
    return simulated.assign(ttft_s=simulated.ttft_s + wait_s, e2e_s=simulated.e2e_s + wait_s)
