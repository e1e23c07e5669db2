"""The card of a submission: what it is, how it scored, where it stood, how to check it.

The facts between the two marks follow from the data of the folder, and `synergy-gym verify`
compares them. The rest is prose, and its author's.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synergy_gym.evaluation.board.board import FIRST_SEASON
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.submission.plan import accepted_folder
from synergy_gym.evaluation.submission.policy import policy_file, split_spec
from synergy_gym.evaluation.submission.standing import Standing
from synergy_gym.policies.agent_card import summary
from synergy_gym.policies.agent_file import load_agent
from synergy_gym.seasons import full_name

CARD_FILE = "card.md"
BEGIN, END = "<!-- facts:begin -->", "<!-- facts:end -->"


def card_text(
    folder: Path, manifest: Mapping[str, Any], rows: Sequence[Row], found: Sequence[Standing]
) -> str:
    """The card as `synergy-gym submit` writes it.

    Args:
        folder: of the submission, for what its policies say about themselves.
        manifest: content of its `manifest.json`.
        rows: of its `results.csv`.
        found: where it stood.
    """
    submission = manifest["submission"]
    about = [about_policy(folder, spec) for spec in own_specs(manifest)]
    lines = [f"# {submission['name']}", "", *about, "", BEGIN, facts_text(manifest, rows), END]
    lines += ["", "## Rank when it was submitted", "", _others_text(manifest), ""]
    lines += [f"- {standing}" for standing in found]
    lines += ["", "## Checking it", "", "```bash", f"synergy-gym verify {_shown(manifest)} --log"]
    lines += [
        f"synergy-gym verify {_shown(manifest)} --policy --run-code   # runs the policy's own code",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _shown(manifest: Mapping[str, Any]) -> str:
    home = accepted_folder(manifest.get("season", FIRST_SEASON))
    return f"{home}/{manifest['submission']['name']}"


def _others_text(manifest: Mapping[str, Any]) -> str:
    return (
        f"Among the committed rows of suite `{_suite(manifest)}` (simulated). The score is the "
        "interquartile mean, over scenario x load x seed, of the share of offered requests that "
        "met every SLO, with its 95 % interval; policies that cannot be told apart share a rank. "
        "Behind the rank are the middle 95 % of the places when whole seeds are drawn again."
    )


def _suite(manifest: Mapping[str, Any]) -> str:
    return full_name(manifest["suite"], manifest.get("season", FIRST_SEASON))


def own_specs(manifest: Mapping[str, Any]) -> list[str]:
    """Specifications of the policies that a submission brings, engine before router."""
    return [
        manifest["policies"][layer][name]["policy"]
        for layer, name in sorted(manifest["submission"]["policies"].items())
        if split_spec(manifest["policies"][layer][name]["policy"])[1].startswith("policy/")
    ]


def about_policy(folder: Path, spec: str) -> str:
    """First paragraph of a class's docstring, or the summary of an agent; runs nothing."""
    prefix, path, suffix = split_spec(spec)
    file = policy_file(folder, path)
    if prefix:
        return summary(load_agent(file))
    name = suffix[1:].partition(":")[0].split(".")[-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return ""


def facts_text(manifest: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Two tables, of what was played and of how it scored; the same data give the same text."""
    submission = manifest["submission"]
    facts = {"track": submission["track"], "suite": manifest["suite"], "episodes": str(len(rows))}
    for layer, name in sorted(submission["policies"].items()):
        entry = manifest["policies"][layer][name]
        facts[f"{layer} policy"] = f"{name} (`{entry['policy']}`)"
        facts[f"{layer} policy reads"] = ", ".join(entry["information"]) or "-"
        facts[f"{layer} policy SHA-256"] = entry["sha256"]
    for name, check in sorted(submission["checks"].items()):
        verdict = "passed" if check["passed"] else "FAILED"
        facts[f"check {name}"] = f"{verdict}: {check['reason']}"
    facts["synergy-gym"] = manifest["synergy_gym"]
    scores = ["| scenario | loads | seeds | mean SLO attainment |", "|---|---|---|---|"]
    scores += [_score_text(name, rows) for name in sorted({row["scenario"] for row in rows})]
    table = [f"| {key} | {_plain(value)} |" for key, value in facts.items()]
    return "\n".join(["| fact | value |", "|---|---|", *table, "", *scores])


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _score_text(scenario: str, rows: Sequence[Row]) -> str:
    chosen = [row for row in rows if row["scenario"] == scenario]
    loads = ", ".join(f"{load:g}" for load in sorted({row["load"] for row in chosen}))
    scores = [row["slo_attainment"] for row in chosen if not math.isnan(row["slo_attainment"])]
    mean = f"{100 * float(np.mean(scores)):.1f} %" if scores else "-"
    return f"| {scenario} | {loads} | {len({row['seed'] for row in chosen})} | {mean} |"


def facts_in(card: str) -> str | None:
    """The facts of a card; `None` where it has not exactly one block of them."""
    if card.count(BEGIN) != 1 or card.count(END) != 1:
        return None
    _, _, rest = card.partition(BEGIN)
    return rest.partition(END)[0].strip("\n")
