"""`synergy-gym agent`: the card of a trained agent."""

from __future__ import annotations

from typing import Annotated

import typer


def agent(
    name: Annotated[str, typer.Argument(help="Name of a packaged agent, or an .npz file.")],
) -> None:
    """Show what a trained agent is: how it decides, how it was trained, how it scored.

    The card is Markdown; on a terminal it is set in type.
    """
    import sys

    from synergy_gym.policies.agent_card import read_card

    text = read_card(name.removeprefix("agent:"))
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))
