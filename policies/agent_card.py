"""The card of a trained agent: what it decides, how it was made, how well it did.

A card is Markdown beside the agent's file: `policies/agents/NAME.md` for the packaged agent NAME,
`agent.md` for the `agent.npz` of a training. An agent without one gets a card from its own
description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synergy_gym.policies.agent_file import Agent, find_agent, load_agent

_LEFT_OUT = ("format", "name", "training", "features", "grid")


def read_card(source: str | Path) -> str:
    """The card beside an agent's file, or one made from the file.

    Args:
        source: name of a packaged agent, or path of an `.npz` file.

    Raises:
        AgentError: there is no such agent, or it cannot be read.
    """
    path = find_agent(source)
    agent, beside = load_agent(path), path.with_suffix(".md")
    return beside.read_text("utf-8") if beside.is_file() else card(agent)


def card(agent: Agent) -> str:
    """What an agent says about itself, as Markdown: network, grid, training, digest."""
    parts = [f"# {agent.name}", summary(agent), "## What it is", _table(_facts(agent))]
    if training := agent.meta["training"]:
        parts += ["## Training", _table({key: _text(training[key]) for key in sorted(training)})]
    return "\n\n".join(parts) + "\n"


def summary(agent: Agent) -> str:
    """One line: what decides for what, and how long it was trained."""
    training = agent.meta["training"]
    plan = training.get("plan")
    by = plan.get("algorithm") if isinstance(plan, Mapping) else training.get("algorithm")
    made = f", trained with {by}" if by else ""
    steps = training.get("timesteps")
    size = f" for {steps:,} decisions" if isinstance(steps, int) else ""
    return f"Trained {agent.kind} agent, network `{agent.meta['network']}`{made}{size}."


def _facts(agent: Agent) -> dict[str, str]:
    facts = {key: _text(agent.meta[key]) for key in sorted(agent.meta) if key not in _LEFT_OUT}
    facts["observed numbers"] = str(len(agent.meta["features"]))
    facts["weights"] = f"{sum(array.size for array in agent.arrays.values()):,}"
    if grid := agent.meta.get("grid"):
        facts |= {f"grid: {axis}": _text(grid[axis]) for axis in sorted(grid)}
    return {**facts, "SHA-256": agent.digest()}


def _text(value: Any) -> str:
    """A value in a table cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(value[key])}" for key in sorted(value))
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def _table(facts: Mapping[str, str]) -> str:
    cells = [(k, v.replace("|", "\\|").replace("\n", " ")) for k, v in facts.items()]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [("entry", "value"), ("---", "---"), *cells]
    )
