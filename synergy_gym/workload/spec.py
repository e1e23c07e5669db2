"""What traffic to generate: frozen descriptions, filled from scenario files or from code.

What follows from a description is worked out once, so its options are not to be changed either:
another one is made with `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ArrivalSpec:
    """An arrival process: a name of `arrivals.ARRIVALS` and its keyword options."""

    kind: str = "poisson"
    options: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LengthSpec:
    """A distribution of token counts: a name of `lengths.LENGTHS`, its options, its bounds.

    Draws outside [minimum, maximum] are moved to the nearer bound (a cap keeps its mass:
    an output stopped by `max_tokens` has exactly that length).
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    minimum: int = 1
    maximum: int = 2**31


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """Conversations of several turns.

    Attributes:
        turns: distribution of turns per session.
        think_s: mean time between two turns of a session, seconds. Open loop: from arrival
            to arrival. Closed loop: from the end of a turn to the next arrival.
        think_cv: coefficient of variation of that time (lognormal), >= 0.
        growth: "append": a turn's prompt is the previous prompt + output + new tokens, and
            `TrafficSpec.prompt` gives the new tokens. "window": `TrafficSpec.prompt` gives
            whole prompts, which grow along a session (its draws are sorted).
        prompt_correlation: "window" only: correlation of (normal scores of) the prompts of
            one session, in [0, 1].
        reused_tokens: leading tokens of the previous turn that a turn repeats; `None`: its
            whole prompt and output. A client that slides its context window repeats few.
        system_prompts: number of system prompts; sessions choose one at random. 0: none.
        system_tokens: length of each; "append" adds it to the first prompt, "window" counts
            it as part of the prompt.
        history_tokens: "append" only: private tokens that a first prompt also carries.
        context_limit_tokens: "append" only: a session ends before a turn whose
            prompt + output would be longer. 0: no limit.
        closed_loop: turns wait for the turn before (`Workload.after`).
    """

    turns: LengthSpec
    think_s: float
    think_cv: float = 1.0
    growth: str = "append"
    prompt_correlation: float = 0.0
    reused_tokens: int | None = None
    system_prompts: int = 0
    system_tokens: int = 0
    history_tokens: int = 0
    context_limit_tokens: int = 0
    closed_loop: bool = False


@dataclass(frozen=True, slots=True)
class ReplaySpec:
    """Load-generator clients that send the requests of a log again.

    Attributes:
        pace: "even": in the order of the log at even distances, whatever its timestamps;
            "timestamps": at the log's times, which are whole multiples of `resolution_s`, so
            that all requests of a client with one timestamp come at once.
        client_rps: the most requests per second that one client sends; there are
            ceil(rate / client_rps) of them, each with its own phase.
        resolution_s: resolution of the log's timestamps, seconds; "timestamps" only.
    """

    pace: Literal["even", "timestamps"]
    client_rps: float = 5.0
    resolution_s: float = 1.0


@dataclass(frozen=True, slots=True)
class TrafficSpec:
    """All that decides an episode's requests, except rate, horizon and seed.

    With `generator`, fields left at `None` come from that built-in generator; without one,
    `prompt` and `output` must be given and the others are neutral (Poisson, no sessions).

    Attributes:
        generator: name of a built-in generator (`generators.list_generators`), or `None`.
        arrivals: the arrival process of requests, or of session starts with `sessions`.
        prompt: prompt lengths ("append" sessions: new tokens per turn).
        output: output lengths.
        correlation: correlation of the normal scores of prompt and output length, [-1, 1].
        sessions: conversations, or `None` for single requests.
        replay: send what the fields above describe as a load generator does, or `None`.
        slo_mix: share of each SLO class, in the order of the scenario's classes; sums to 1.
            A session belongs to one class.
        priorities: priority of each SLO class (vLLM: smaller is more urgent); empty: all 0.
    """

    generator: str | None = None
    arrivals: ArrivalSpec | None = None
    prompt: LengthSpec | None = None
    output: LengthSpec | None = None
    correlation: float | None = None
    sessions: SessionSpec | None = None
    replay: ReplaySpec | None = None
    slo_mix: tuple[float, ...] = (1.0,)
    priorities: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TrafficMix(TrafficSpec):
    """Several kinds of traffic at once, e.g. chat and code on the same engines.

    Each part arrives by itself, at its share of the rate. The fields of `TrafficSpec` are those
    of the parts; what stands in them here is not used.

    Attributes:
        parts: (share of the rate, traffic), shares > 0 with sum 1; open loop.
    """

    parts: tuple[tuple[float, TrafficSpec], ...] = ()
