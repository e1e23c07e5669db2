"""How a policy inside a vLLM server is configured: by environment variables of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.registry import engine_policies, make_engine_policy
from synergy_gym.scenario import load_scenario
from synergy_gym.types import SLO

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "policy": "SYNERGY_GYM_POLICY",
        "slo": "SYNERGY_GYM_SLO",
        "push": "SYNERGY_GYM_PUSH",
        "engine": "SYNERGY_GYM_ENGINE",
        "decisions": "SYNERGY_GYM_DECISIONS",
        "seed": "SYNERGY_GYM_SEED",
    }
)
"""Environment variable of each field of `HostSettings`."""

_OBJECTIVES = ("ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a server needs to know to run a policy; every value is text of the environment.

    Attributes:
        policy: specification of an engine policy (`lens-plus`, `sarathi-512:chunk_tokens=256`).
        slo: a scenario's name or file, or objectives (see `parse_slos`); empty: none declared.
        push: where state vectors go, `udp://host:port`; empty: nowhere.
        engine: name of the engine in pushed state, logs and the decisions file.
        decisions: file that gets one JSON line per step; empty: none.
        seed: of the policy's random generator.
    """

    policy: str = ""
    slo: str = ""
    push: str = ""
    engine: str = ""
    decisions: str = ""
    seed: str = "0"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> HostSettings:
        """The settings that the variables hold; absent ones keep their defaults."""
        known = {name: environment.get(variable, "") for name, variable in VARIABLES.items()}
        return cls(**{name: value for name, value in known.items() if value})

    def environment(self) -> dict[str, str]:
        """The variables that give a server these settings; defaults are left out."""
        return {
            VARIABLES[f.name]: str(getattr(self, f.name))
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }

    def make_policy(self) -> EnginePolicy:
        """The policy.

        Raises:
            ValueError: none is named, or the registry does not know it.
        """
        if not self.policy:
            raise ValueError(
                f"{VARIABLES['policy']} is not set; name the engine policy that schedules this "
                f"server, one of {', '.join(engine_policies())}"
            )
        return make_engine_policy(self.policy)

    def make_slos(self) -> tuple[SLO, ...]:
        """The request classes (`parse_slos`)."""
        return parse_slos(self.slo)

    def make_seed(self) -> int:
        """The seed as a number.

        Raises:
            ValueError: it is not a whole number of 0 or more.
        """
        if not self.seed.isdecimal():
            raise ValueError(f"{VARIABLES['seed']} is {self.seed!r}; give a whole number >= 0")
        return int(self.seed)


def parse_slos(text: str) -> tuple[SLO, ...]:
    """Request classes from text; a request names its class in `vllm_xargs`, else it is the first.

    `ttft_s=1,tpot_s=0.05` declares one class, `chat:ttft_s=1;batch:e2e_s=60` two; anything
    without `=` is the name or file of a scenario, whose classes are taken.

    Raises:
        ValueError: an unknown objective, a value that is not a positive number, a name twice,
            or an unknown scenario.
    """
    if not text.strip():
        return (SLO("default"),)
    if "=" not in text:
        return tuple(load_scenario(text.strip()).slos)
    slos = tuple(_parse_class(part) for part in text.split(";") if part.strip())
    names = [slo.name for slo in slos]
    if len(set(names)) < len(names):
        raise ValueError(f"SLO {text!r} names a class twice; write name:ttft_s=1;other:e2e_s=60")
    return slos


def _parse_class(text: str) -> SLO:
    name, colon, rest = text.rpartition(":")
    values: dict[str, float] = {}
    for part in rest.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in _OBJECTIVES:
            raise ValueError(
                f"SLO {text!r} has no objective {key!r}; write {', '.join(_OBJECTIVES)} with "
                "seconds, such as ttft_s=1,tpot_s=0.05"
            )
        values[key] = _seconds(text, key, value)
    return SLO(name.strip() if colon else "default", **values)


def _seconds(text: str, key: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"SLO {text!r}: {key} is {value!r}; give seconds above 0")
    return seconds
