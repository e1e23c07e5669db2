"""Scheduling policies (import as `synergy_gym.policies`).

An engine policy decides what the next iteration of one engine may take, a router policy
which engine gets an arriving request. Each lives in one file of `engine/` or `router/`;
`make_engine_policy("sarathi-512")` and `make_router_policy("round-robin")` build them.
Nothing here needs more than NumPy, so the same objects run inside a real server.
"""

if __name__ != "synergy_gym.policies":
    raise ImportError(f"import this package as `synergy_gym.policies`, not as {__name__!r}")

from synergy_gym.policies.base import EnginePolicy, Policy, RouterPolicy
from synergy_gym.policies.registry import (
    PolicyInfo,
    describe,
    engine_policies,
    engine_policy,
    make_engine_policy,
    make_router_policy,
    router_policies,
    router_policy,
)

__all__ = [
    "EnginePolicy",
    "Policy",
    "PolicyInfo",
    "RouterPolicy",
    "describe",
    "engine_policies",
    "engine_policy",
    "make_engine_policy",
    "make_router_policy",
    "router_policies",
    "router_policy",
]
