"""Write a latency profile that `load_profile` reads, with a comment beside every coefficient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from synergy_gym.latency.clock import StepTerms

DIGITS = 6
"""Significant digits of a coefficient; far below the noise of any measurement."""


def profile_text(
    *,
    gpu: str,
    model: str,
    source: str,
    terms: StepTerms,
    head: Sequence[str] = (),
    comments: Mapping[str, str] | None = None,
) -> str:
    """The file's text; terms at their defaults are left out, `base_ms` and `floor_ms` never.

    Args:
        gpu: what it runs on, as the scenario's engines name it.
        model: likewise.
        source: one sentence on where the coefficients come from.
        terms: the clock.
        head: comment lines for the beginning.
        comments: per coefficient, what stands beside it.
    """
    lines = [f"# {line}".rstrip() for line in head] + [""] * bool(head)
    lines += [f'{name} = "{_plain(value)}"' for name, value in
              (("gpu", gpu), ("model", model), ("source", source))]  # fmt: skip
    lines += ["", "[terms]"]
    for item in fields(terms):
        value = getattr(terms, item.name)
        if value == item.default and item.name != "floor_ms":
            continue
        note = (comments or {}).get(item.name, "fitted")
        lines.append(f"{item.name} = {_number(value)}  # {note}")
    return "\n".join(lines) + "\n"


def write_profile(path: Path, text: str) -> None:
    """Write a profile and read it back.

    Raises:
        ProfileError: what was written is no valid profile.
        OSError: the file cannot be written.
    """
    from synergy_gym.latency.profiles import load_profile

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    load_profile(path)


def _number(value: float) -> str:
    text = f"{value:.{DIGITS}g}"
    return text if any(c in text for c in ".e") else f"{text}.0"


def _plain(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'").replace("\n", " ")
