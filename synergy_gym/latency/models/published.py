"""The step models that SynergySched's authors fitted, by GPU, model and form.

Read from the parameter files of the authors' repository (KevinCheung2259/vllm, branch
exp-v0.9.1): vLLM step logs of a FlowGPT replay at token budgets 256 to 4096 (8196 for QwQ-32B).
These are published figures, not measurements of this project. Parameters that sit on a bound
of the fit are not identified: kB = 5 and kS = 2 (stable), kB = 10 and w1 = 1e-9 (six, eight).

A file belongs to what it was fitted on, not to a clock of this project. Their engines
(exp/profiling_result_*/PROFILING.md in YNewsoul/vllm) served `meta-llama/Llama-3.1-8B-Instruct` in
bf16, and `Qwen/QwQ-32B` with `--quantization fp8 --kv-cache-dtype fp8`, under that name.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from synergy_gym.latency.models.saturation_fit import Form, SaturationModel
from synergy_gym.types import EngineAdvert, EngineSpec

_STABLE = {  # n = 312,620 / 66,495 / 66,328 / 46,162; R2 = 0.994 / 0.982 / 0.984 / 0.971
    ("1xH100", "llama-3.1-8b"): SaturationModel(
        form="stable", b_scale=9, s_scale=10, pmax=3.884416, k_b=5.0, k_s=1.454348,
        t_b=1.924476, t_s=0.240524, base_ms=5.205735,
    ),
    ("1xA100", "llama-3.1-8b"): SaturationModel(
        form="stable", b_scale=7, s_scale=9, pmax=1.358783, k_b=5.0, k_s=2.0,
        t_b=5.675449, t_s=0.637130, base_ms=5.870179,
    ),
    ("2xA6000", "llama-3.1-8b"): SaturationModel(
        form="stable", b_scale=7, s_scale=9, pmax=0.830376, k_b=5.0, k_s=2.0,
        t_b=9.879871, t_s=1.063064, base_ms=2.191305,
    ),
    ("1xH100", "qwq-32b"): SaturationModel(
        form="stable", b_scale=9, s_scale=10, pmax=1.381462, k_b=5.0, k_s=0.679512,
        t_b=7.463211, t_s=0.656672, base_ms=5.397012,
    ),
}  # fmt: skip
_SIX = {  # n = 312,620, R2 = 0.993, B 1..137, S 2..4096 (commit 1b47cdc)
    ("1xH100", "llama-3.1-8b"): SaturationModel(
        form="six", b_scale=9, s_scale=10, pmax=4.0949, k_b=10.0, k_s=0.000134,
        t_b=1.8512, t_s=0.2353, w1=0.003907,
    ),
}  # fmt: skip
_EIGHT = {  # n = 312,620 / 66,495 / 64,971; R2 = 0.995 / 0.988 / 0.989
    ("1xH100", "llama-3.1-8b"): SaturationModel(
        form="eight", b_scale=9, s_scale=10, pmax=1.195061, k_b=10.0, k_s=0.052799,
        t_b=1.816008, t_s=3.2e-10, base_ms=2.522155, w0=0.026559, w1=0.299833,
    ),
    ("1xA100", "llama-3.1-8b"): SaturationModel(
        form="eight", b_scale=7, s_scale=9, pmax=13.449053, k_b=10.0, k_s=1.711141,
        t_b=4.117527, t_s=0.626882, base_ms=9.402611, w0=9.989563, w1=5.5e-8,
    ),
    ("2xA6000", "llama-3.1-8b"): SaturationModel(
        form="eight", b_scale=7, s_scale=9, pmax=79.655663, k_b=10.0, k_s=2.28372e-4,
        t_b=6.052494, t_s=1.094971, base_ms=9.242766, w0=0.009438, w1=1e-9,
    ),
}  # fmt: skip
_PUBLISHED = MappingProxyType({"stable": _STABLE, "six": _SIX, "eight": _EIGHT})

StepModelFile = Literal["engine", "authors-default"]
"""Which of the authors' files an engine has loaded: the one that was fitted on its GPU and model,
or the one that their configuration names unless it is told otherwise (`AUTHORS_DEFAULT`)."""
AUTHORS_DEFAULT = ("1xH100", "meta-llama/Llama-3.1-8B-Instruct")
"""GPU and model of `stable_model_h100.pkl`, the default of `VLLM_SLA_PRETRAINED_PATH` in the
authors' config.py (YNewsoul/vllm, commit 2e27e17; KevinCheung2259/vllm, commit 1b47cdc)."""

_TRAINING_ONLY = frozenset({"meta", "base", "instruct", "chat", "it", "hf"})
"""Words of a model's name that say how it was trained: the weights to stream are the same."""
_AS_SERVED = MappingProxyType(
    {"qwq-32b-fp8": "qwq-32b", "qwq-32b-fp8-dynamic": "qwq-32b", "qwq-32b-fp8-block": "qwq-32b"}
)
"""Quantised names of what the authors' engines quantised when they loaded it."""


def same_work(model: str) -> str:
    """What a model's steps cost, as a name: models with equal names are the same work for a GPU.

    The owner, case and words such as Instruct do not count; a size, a version and a
    quantisation do, except FP8 for QwQ-32B, which the authors served as FP8 under its plain
    name. A fine-tune with a name of its own is taken for another model.

    >>> same_work("meta-llama/Meta-Llama-3.1-8B-Instruct"), same_work("unsloth/Llama-3.1-8B")
    ('llama-3.1-8b', 'llama-3.1-8b')
    >>> same_work("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8"), same_work("Qwen/QwQ-32B-FP8")
    ('llama-3.1-8b-fp8', 'qwq-32b')
    """
    words = model.rsplit("/", 1)[-1].lower().split("-")
    name = "-".join(word for word in words if word not in _TRAINING_ONLY)
    return _AS_SERVED.get(name, name)


def published_model(gpu: str, model: str, form: Form) -> SaturationModel | None:
    """The authors' fit for a GPU and model, or None where they published none.

    Args:
        gpu: count and kind, as scenarios write it, e.g. `2xA6000`.
        model: the model's public name, e.g. `Qwen/QwQ-32B`; see `same_work`.
        form: the form of the step model.

    Raises:
        ValueError: an unknown form.
    """
    if form not in _PUBLISHED:
        raise ValueError(f"unknown form {form!r} of the latency model; use {', '.join(_PUBLISHED)}")
    return _PUBLISHED[form].get((gpu, same_work(model)))


def loaded_model(spec: EngineSpec, form: Form, file: StepModelFile) -> SaturationModel | None:
    """The step model that an engine of the authors would have loaded; None where there is none."""
    gpu, model = AUTHORS_DEFAULT if file == "authors-default" else (spec.gpu, spec.model)
    return published_model(gpu, model, form)


def published_advert(spec: EngineSpec) -> EngineAdvert | None:
    """What an engine tells routers that has only loaded its deployed (stable) parameters.

    None where nothing is published for its GPU and model.
    """
    known = published_model(spec.gpu, spec.model, "stable")
    if known is None:
        return None
    return EngineAdvert(
        capacity=known.capacity("code"),
        peak_tps=known.capacity("physical"),
        step_ms=known.linear_ms(),
    )
