"""Incident cards in an HTML report: who passes what, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER
from synergy_gym.evaluation.jobs import competitor, pair_label
from synergy_gym.evaluation.report.html_tables import HtmlCell, HtmlTable

if TYPE_CHECKING:
    from synergy_gym.evaluation.board.incident_library import Incident
    from synergy_gym.evaluation.incidents.cards import Card

OTHERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "engine": ("router_policy", DEFAULT_ROUTER),
        "router": ("engine_policy", DEFAULT_ENGINE),
    }
)
"""Per layer on trial, who plays the other one when a policy is alone on trial."""


@dataclass(frozen=True)
class IncidentSection:
    """One incident: its story, its criteria in words, and what every policy made of it."""

    incident: Incident
    rules: Sequence[str]
    table: HtmlTable


@dataclass(frozen=True)
class CardSection:
    """The incidents of one layer, and who passes them."""

    title: str
    table: HtmlTable
    incidents: Sequence[IncidentSection]


def board_cards(board: Board) -> list[Card]:
    """The cards of a board's `incidents.csv`; none where it has no such file.

    Raises:
        ValueError: the file is damaged; names the line and the cure.
    """
    from synergy_gym.evaluation.incidents.cards import CARDS_FILE, cards, read_cards

    path = board.folder / CARDS_FILE
    return cards(read_cards(path), board.suite.season) if path.is_file() else []


def on_trial(card: Card) -> str:
    """Who a card is about: a policy of the incident's layer, or the pair that played."""
    layer = card.incident.layer
    policies = {"engine_policy": card.engine_policy, "router_policy": card.router_policy}
    other, default = OTHERS.get(layer, ("", ""))
    if policies.get(other) == default:
        return competitor(layer, policies)
    return pair_label((card.engine_policy, card.router_policy))


def passed(cards: Sequence[Card]) -> dict[tuple[str, str], tuple[int, int]]:
    """By layer and who is on trial, how many incidents were passed, and how many played."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for card in cards:
        key = (card.incident.layer, on_trial(card))
        won, of = found.get(key, (0, 0))
        found[key] = (won + card.passed, of + 1)
    return found


def passed_cell(count: tuple[int, int] | None) -> HtmlCell:
    """`7 of 8`; empty for who was not on trial."""
    return HtmlCell("") if count is None else HtmlCell(f"{count[0]} of {count[1]}", count[0])


def card_sections(cards: Sequence[Card]) -> list[CardSection]:
    """One section per layer that has cards."""
    layers = dict.fromkeys(card.incident.layer for card in cards)
    return [_section(layer, [c for c in cards if c.incident.layer == layer]) for layer in layers]


def _section(layer: str, cards: Sequence[Card]) -> CardSection:
    incidents = list({card.incident.name: card.incident for card in cards}.values())
    counts = passed(cards)
    names = sorted({on_trial(card) for card in cards}, key=lambda n: (-counts[layer, n][0], n))
    of = {(card.incident.name, on_trial(card)): card for card in cards}
    rows = [
        [
            HtmlCell(name, name),
            passed_cell(counts[layer, name]),
            *(_verdict_cell(of.get((incident.name, name))) for incident in incidents),
        ]
        for name in names
    ]
    heads = ["policy", "passed", *(incident.title for incident in incidents)]
    title = f"Incidents, {layer} policies"
    sections = [
        _incident(one, [of[one.name, n] for n in names if (one.name, n) in of]) for one in incidents
    ]
    return CardSection(title, HtmlTable(title, heads, rows), sections)


def _verdict_cell(card: Card | None) -> HtmlCell:
    if card is None:
        return HtmlCell("")
    return HtmlCell("pass" if card.passed else "fail", int(card.passed), passed=card.passed)


def _incident(incident: Incident, cards: Sequence[Card]) -> IncidentSection:
    from synergy_gym.evaluation.incidents.cards import figure, rule
    from synergy_gym.evaluation.incidents.measures import MEASURES

    heads = ["policy", "verdict", *(MEASURES[c.measure].text for c in incident.criteria)]
    rows = [
        [
            HtmlCell(on_trial(card), on_trial(card)),
            _verdict_cell(card),
            *(HtmlCell(figure(v.criterion, v.value), v.value, passed=v.met) for v in card.verdicts),
        ]
        for card in cards
    ]
    rules = [f"{rule(criterion)}; {criterion.why}" for criterion in incident.criteria]
    return IncidentSection(incident, rules, HtmlTable(incident.title, heads, rows))
