"""`synergy-gym clock`: a latency profile of a GPU and a model from measured kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synergy_gym.cli import output as tables

if TYPE_CHECKING:
    from rich.table import Table

    from synergy_gym.latency.profiles import Profile

LOOPS = ("async", "sync")


def clock(
    model: Annotated[
        str, typer.Option(help="Model: its Hugging Face name, config.json, or the folder of one.")
    ],
    gpu: Annotated[str, typer.Option(help="GPU: h100, h200, a100, b200, l40s or rtxpro6000.")],
    out: Annotated[Path, typer.Option(help="The profile to write, .toml.")],
    tp: Annotated[int, typer.Option(help="GPUs that share the model.", min=1)] = 1,
    engine: Annotated[
        str, typer.Option(help="What the profile stands for by default: async or sync scheduling.")
    ] = "async",
    kv: Annotated[str, typer.Option(help="Type of the KV cache: bf16 or fp8.")] = "bf16",
    weights: Annotated[
        str | None,
        typer.Option(help="Weights: bfloat16, fp8, fp8_block, nvfp4; default: the model's own."),
    ] = None,
    kernels: Annotated[str, typer.Option(help="Whose kernels: vllm or trtllm.")] = "vllm",
    name: Annotated[
        str | None, typer.Option(help="What the profile calls the model; default: --model.")
    ] = None,
) -> None:
    """Make a latency profile from measured kernels (extra `clocks`).

    Sums the kernels of a step, adds what an engine adds, fits the simulator's clock and writes
    coefficients, 95 % ranges, fit errors and sources. Scenarios name the file in `profile`.
    """
    from synergy_gym.latency.kernels.make import Request, make_profile
    from synergy_gym.latency.profile_writer import write_profile
    from synergy_gym.latency.profiles import Loop, load_profile

    for option, value, allowed in (
        ("--engine", engine, LOOPS), ("--kernels", kernels, ("vllm", "trtllm"))
    ):  # fmt: skip
        if value not in allowed:
            raise ValueError(f"{option} {value!r}: choose one of {', '.join(allowed)}")
    if out.suffix != ".toml":
        raise ValueError(f"--out {out} is no .toml file; a profile is one")
    loop: Loop = "sync" if engine == "sync" else "async"
    request = Request(model, gpu, tp, kv, weights, kernels, name, loop)
    with tables.progress() as bar:
        bar.add_task(f"{model} on {tp} x {gpu}: kernels, fit, ranges", total=None)
        text = make_profile(request)
    write_profile(out, text)
    tables.show(_table(load_profile(out)))
    tables.note(f"written to {out}")


def _table(profile: Profile) -> Table:
    """Coefficients with their ranges, and what is added to them; at most 80 columns."""
    file = profile.file
    ranges = file.ranges.model_dump()
    rows = []
    for name, value in file.terms.model_dump(exclude_defaults=True).items():
        low, high = ranges.get(name) or ("", "")
        span = f"{low:.3g} to {high:.3g}" if ranges.get(name) else ""
        rows.append((name, f"{value:.4g}", span))
    for loop in profile.loops:
        low, high = getattr(file.engine, f"{loop}_range")
        value = profile.overhead_ms(loop)
        rows.append((f"engine {loop}", f"+{value:g}", f"{low:g} to {high:g}"))
    if file.sustained is not None:
        low, high = file.sustained.range
        rows.append(("sustained", f"x{file.sustained.factor:g}", f"{low:g} to {high:g}"))
    if file.fit_error_percent is not None:
        for kind, percent in file.fit_error_percent.model_dump().items():
            rows.append((f"fit error, {kind}", f"{percent:.1f} %", "of the kernel sums"))
    title = f"{profile.gpu}, {profile.model} ({profile.tier_label})"
    return tables.plain(title, ("term (ms)", "value", "95 % range"), rows)
