"""The parameters that SynergySched's authors fitted, by latency profile and form.

Read from the parameter files of the authors' repository (KevinCheung2259/vllm, branch
exp-v0.9.1): vLLM step logs of a FlowGPT replay at token budgets 256 to 4096 (8196 for QwQ-32B).
These are published figures, not measurements of this project. Parameters that sit on a bound
of the fit are not identified: kB = 5 and kS = 2 (stable), kB = 10 and w1 = 1e-9 (six, eight).
"""

from __future__ import annotations

from types import MappingProxyType

from synergy_gym.latency.saturation import Form, SaturationModel
from synergy_gym.types import EngineAdvert

_STABLE = {  # n = 312,620 / 66,495 / 66,328 / 46,162; R2 = 0.994 / 0.982 / 0.984 / 0.971
    "h100-llama-3.1-8b": SaturationModel(
        form="stable", b_scale=9, s_scale=10, pmax=3.884416, k_b=5.0, k_s=1.454348,
        t_b=1.924476, t_s=0.240524, base_ms=5.205735,
    ),
    "a100-llama-3.1-8b": SaturationModel(
        form="stable", b_scale=7, s_scale=9, pmax=1.358783, k_b=5.0, k_s=2.0,
        t_b=5.675449, t_s=0.637130, base_ms=5.870179,
    ),
    "2xa6000-llama-3.1-8b": SaturationModel(
        form="stable", b_scale=7, s_scale=9, pmax=0.830376, k_b=5.0, k_s=2.0,
        t_b=9.879871, t_s=1.063064, base_ms=2.191305,
    ),
    "h100-qwq-32b": SaturationModel(
        form="stable", b_scale=9, s_scale=10, pmax=1.381462, k_b=5.0, k_s=0.679512,
        t_b=7.463211, t_s=0.656672, base_ms=5.397012,
    ),
}  # fmt: skip
_SIX = {  # n = 312,620, R2 = 0.993, B 1..137, S 2..4096 (commit 1b47cdc)
    "h100-llama-3.1-8b": SaturationModel(
        form="six", b_scale=9, s_scale=10, pmax=4.0949, k_b=10.0, k_s=0.000134,
        t_b=1.8512, t_s=0.2353, w1=0.003907,
    ),
}  # fmt: skip
_EIGHT = {  # n = 312,620 / 66,495 / 64,971; R2 = 0.995 / 0.988 / 0.989
    "h100-llama-3.1-8b": SaturationModel(
        form="eight", b_scale=9, s_scale=10, pmax=1.195061, k_b=10.0, k_s=0.052799,
        t_b=1.816008, t_s=3.2e-10, base_ms=2.522155, w0=0.026559, w1=0.299833,
    ),
    "a100-llama-3.1-8b": SaturationModel(
        form="eight", b_scale=7, s_scale=9, pmax=13.449053, k_b=10.0, k_s=1.711141,
        t_b=4.117527, t_s=0.626882, base_ms=9.402611, w0=9.989563, w1=5.5e-8,
    ),
    "2xa6000-llama-3.1-8b": SaturationModel(
        form="eight", b_scale=7, s_scale=9, pmax=79.655663, k_b=10.0, k_s=2.28372e-4,
        t_b=6.052494, t_s=1.094971, base_ms=9.242766, w0=0.009438, w1=1e-9,
    ),
}  # fmt: skip
_PUBLISHED = MappingProxyType({"stable": _STABLE, "six": _SIX, "eight": _EIGHT})
_SAME_HARDWARE = MappingProxyType({"h100-llama-3.1-8b-8xh100run": "h100-llama-3.1-8b"})
"""Profiles that time the GPU and model of another one; the authors' fits belong to the hardware."""


def published_model(profile: str, form: Form) -> SaturationModel | None:
    """The authors' fit for a latency profile's GPU and model, or None where they published none.

    Args:
        profile: name of a packaged latency profile, e.g. `h100-qwq-32b`.
        form: the form of the model.

    Raises:
        ValueError: an unknown form.
    """
    if form not in _PUBLISHED:
        raise ValueError(f"unknown form {form!r} of the latency model; use {', '.join(_PUBLISHED)}")
    return _PUBLISHED[form].get(_SAME_HARDWARE.get(profile, profile))


def published_advert(profile: str) -> EngineAdvert | None:
    """What an engine tells routers that has only loaded the deployed (stable) parameters."""
    model = published_model(profile, "stable")
    if model is None:
        return None
    return EngineAdvert(
        capacity=model.capacity("code"),
        peak_tps=model.capacity("physical"),
        step_ms=model.linear_ms(),
    )
