"""The packaged profiles that are made of measured kernels (extra `clocks`).

    python scripts/make_profiles.py            # write what is missing or differs
    python scripts/make_profiles.py --check    # exit 1 if a file differs from what would be written

Each GPU takes as few cards as leave a quarter of their memory for the KV cache. What the kernel
tables do not hold is left out and named. The tier of a profile is what docs/clocks.md found.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from synergy_gym.latency.kernels.errors import ClockError
from synergy_gym.latency.kernels.hardware import GPUS
from synergy_gym.latency.kernels.make import Request, make_profile
from synergy_gym.latency.kernels.memory import weights_gib
from synergy_gym.latency.profile_schema import Tier
from synergy_gym.seasons import SEASON, season_files

MODELS = {
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", None),
    "llama-3.3-70b": ("meta-llama/Llama-3.3-70B-Instruct", None),
    "llama-3.1-70b-fp8": ("nvidia/Llama-3.1-70B-Instruct-FP8", None),
    "qwen3-8b": ("Qwen/Qwen3-8B", None),
    "qwen3-14b": ("Qwen/Qwen3-14B", None),
    "qwen3-32b": ("Qwen/Qwen3-32B", None),
    "qwq-32b-fp8": ("Qwen/QwQ-32B", "fp8"),
    "qwen3-30b-a3b": ("Qwen/Qwen3-30B-A3B", None),
    "gpt-oss-20b": ("openai/gpt-oss-20b", None),
    "gpt-oss-120b": ("openai/gpt-oss-120b", None),
}
"""Name in profiles, name of the model, type of the weights where it is not the model's own."""
MEMORY_GIB = {"h100": 80, "h200": 141, "a100": 80, "b200": 180, "l40s": 48, "rtxpro6000": 96}
MOST_WEIGHTS = 0.75
FOLDER = season_files(SEASON).profiles
CELLS = Path(__file__).parents[1] / "experiments" / "results" / "validate_clocks" / "cells.csv"
ENOUGH_ROWS = 10
NODE = "h100-llama-3.1-8b-8xh100run"
COEFFICIENTS = (
    Path(__file__).parents[1] / "experiments" / "results" / "replay_8xh100" / "coefficients.csv"
)


def requests() -> Iterator[tuple[str, Request]]:
    """Every packaged profile, by name; what was not measured is printed."""
    for gpu in GPUS:
        for short, (model, weights) in MODELS.items():
            for tp in (1, 2, 4, 8):
                request = Request(model, gpu, tp, weights=weights)
                try:
                    shape = request.kernels().shape
                except ClockError as error:
                    print(f"left out: {error}", file=sys.stderr)
                    break
                if weights_gib(shape) / tp <= MOST_WEIGHTS * MEMORY_GIB[gpu]:
                    cards = "" if tp == 1 else f"{tp}x"
                    yield f"{cards}{gpu}-{short}", request
                    break


def tier_of(request: Request) -> Tier:
    """How far the profile's GPU and model family were checked."""
    if not CELLS.is_file():
        return "kernels only"
    family = family_of(request.model)
    with CELLS.open(encoding="utf-8", newline="") as file:
        rows = [
            int(row["rows"])
            for row in csv.DictReader(file)
            if row["gpu"] == request.gpu and row["family"] == family
        ]
    if not rows:
        return "kernels only"
    return "deployments" if sum(rows) >= ENOUGH_ROWS else "few points"


def family_of(model: str) -> str:
    """The family that a model is validated with: its name without owner, version and size."""
    name = model.rpartition("/")[2].lower()
    for family in ("llama-3", "qwen3-30b-a3b", "qwen3", "qwq", "gpt-oss", "minimax-m2"):
        if family in name:
            return family
    return name


def node_profile(text: str) -> str:
    """The kernels' profile with what a busy 8xH100 node adds, as fitted on measured runs."""
    with COEFFICIENTS.open(encoding="utf-8", newline="") as file:
        rows = {row["held_out"]: row for row in csv.DictReader(file)}
    found = rows["none"]
    head, _, rest = text.partition("[engine]")
    engine, _, rest = rest.partition("[sampler]")
    sampler, _, rest = rest.partition("[sustained]")
    _, _, table = rest.partition("[table]")
    head = head.replace(
        "# which says again where each number comes from (docs/clocks.md has the method).",
        "# and experiments/replay_8xh100.py --fit: what eight busy engines in a node add, fitted\n"
        "# on three measured runs of vLLM 0.9, two stock and one under LENS\n"
        "# (YNewsoul/llm-inference-benchmarking, FlowGPT). Ranges: fits that leave one out.",
    ).replace('added up; see docs/clocks.md"', 'added up; what a busy node adds is fitted on runs"')
    head = head.replace('tier = "kernels only"', 'tier = "deployments"')

    def spread(name: str) -> str:
        values = sorted(float(row[name]) for row in rows.values())
        return f"[{values[0]:.3g}, {values[-1]:.3g}]"

    engine = (
        "[engine]  # vLLM 0.9 plans a step after the last one has ended\n"
        'loop = "sync"\n'
        "async_ms = 0.2\nasync_range = [0.0, 0.4]\n"
        f"sync_ms = {float(found['sync_ms']):.3g}\nsync_range = {spread('sync_ms')}\n"
        'source = "sync: fitted, experiments/replay_8xh100.py; async: as in h100-llama-3.1-8b"\n\n'
    )
    busy = (
        "[sustained]  # compute-bound work of a busy GPU\n"
        f"factor = {float(found['sustained']):.3g}\nrange = {spread('sustained')}\n"
        'source = "fitted on three measured runs, experiments/replay_8xh100.py"\n\n'
    )
    return f"{head}{engine}[sampler]{sampler}{busy}[table]{table}"


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="write nothing")
    options.add_argument("names", nargs="*", help="only these profiles")
    chosen = options.parse_args()
    differ = []
    for name, request in requests():
        if chosen.names and name not in chosen.names:
            continue
        texts = {name: make_profile(request, tier_of(request))}
        if name == "h100-llama-3.1-8b":
            texts[NODE] = node_profile(texts[name])
        for profile, text in texts.items():
            path = FOLDER / f"{profile}.toml"
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                differ.append(profile)
                if not chosen.check:
                    path.write_text(text, encoding="utf-8")
    print("\n".join(differ) or "all profiles are as they would be written")
    raise SystemExit(bool(differ and chosen.check))


if __name__ == "__main__":
    main()
