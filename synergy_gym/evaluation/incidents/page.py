"""Incident cards as text: who passes what, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from synergy_gym.evaluation.board.incident_library import INCIDENTS, LAYERS, Incident
from synergy_gym.evaluation.incidents.cards import AMPLE, Card, IncidentVerdict, figure, rule
from synergy_gym.policies.base import Layer

PASS, FAIL = "pass", "FAIL"


def verdict(card: Card) -> str:
    """`pass` or `FAIL`."""
    return PASS if card.passed else FAIL


def on_trial(card: Card) -> str:
    """The policy of the incident's layer."""
    return card.engine_policy if card.incident.layer == "engine" else card.router_policy


def short(incident: Incident) -> str:
    """An incident's name without what all have in common."""
    return incident.name.removeprefix("incident-")


def heading(incident: Incident) -> str:
    """Its title with a capital letter."""
    return incident.title[0].upper() + incident.title[1:]


def library_text(incidents: Sequence[Incident] = INCIDENTS) -> str:
    """What was reported, how it is rebuilt and what passes, incident by incident; Markdown."""
    return "\n\n".join(_story(incident) for incident in incidents)


def _story(incident: Incident) -> str:
    sources = ", ".join(f"[{_thread(url)}]({url})" for url in incident.sources)
    file = f"../synergy_gym/scenarios/{incident.name}.toml"
    criteria = [f"- {rule(c)}: {c.why}." for c in incident.criteria]
    return "\n".join(
        [
            f"### {heading(incident)}",
            "",
            f"[`{incident.name}`]({file}), {incident.layer} layer, load {incident.load:g}. "
            f"Reported: {sources}.",
            "",
            incident.report,
            "",
            f"Rebuilt: {incident.rebuilt} {_CALM[incident.calm]}",
            "",
            *criteria,
        ]
    )


def _thread(url: str) -> str:
    """`https://github.com/OWNER/NAME/pull/1` as `OWNER/NAME#1`."""
    owner, name, _, number = url.removeprefix("https://github.com/").split("/")
    return f"{owner}/{name}#{number}"


_CALM = {
    "events": "Compared with the same world without the events.",
    "telemetry": "Compared with a world of timely telemetry (pushes every 0.2 s, scrapes every "
    "second).",
    "cache": f"Compared with a cache {AMPLE} times as large.",
    None: "There is no world without it to compare with: it lies in the start or the traffic.",
}


def matrix(found: Sequence[Card], layer: Layer) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: policies of one layer against its incidents; most passed first."""
    mine = [card for card in found if card.incident.layer == layer]
    names = sorted({short(card.incident) for card in mine})
    by_policy: dict[str, dict[str, Card]] = {}
    for card in mine:
        by_policy.setdefault(on_trial(card), {})[short(card.incident)] = card
    rows = [
        [policy, str(sum(c.passed for c in own.values())), *(_cell(own, name) for name in names)]
        for policy, own in by_policy.items()
    ]
    rows.sort(key=lambda row: (-int(row[1]), row[0]))
    return [f"{layer} policy", "passed", *names], rows


def _cell(own: dict[str, Card], name: str) -> str:
    return verdict(own[name]) if name in own else ""


def cards_text(found: Sequence[Card], command: str) -> str:
    """The page `incidents.md`: a table per layer, then what was measured in each incident."""
    lines = [
        "# Incidents",
        "",
        "Simulated. Scenarios rebuilt from public incident reports; docs/incidents.md says which,",
        "and why the limits lie where they do. A criterion counts its median seed; the worst one",
        f"stands in brackets. Written by `{command}`.",
    ]
    for layer in LAYERS:
        headings, rows = matrix(found, layer)
        if rows:
            lines += ["", f"## {layer.capitalize()} policies", "", *_markdown(headings, rows)]
    for incident in dict.fromkeys(card.incident for card in found):
        mine = [card for card in found if card.incident == incident]
        lines += ["", f"## {heading(incident)}", ""]
        lines += [f"- {rule(criterion)}." for criterion in incident.criteria]
        lines += ["", *_measured(incident, mine)]
    return "\n".join(lines) + "\n"


def _measured(incident: Incident, mine: Sequence[Card]) -> list[str]:
    headings = [f"{incident.layer} policy", "", *(c.measure for c in incident.criteria)]
    rows = [
        [
            on_trial(card),
            verdict(card),
            *(
                f"{figure(v.criterion, v.value)} ({figure(v.criterion, v.worst)})"
                for v in card.verdicts
            ),
        ]
        for card in sorted(mine, key=lambda card: (not card.passed, on_trial(card)))
    ]
    return _markdown(headings, rows)


def _both(judged: IncidentVerdict) -> str:
    value, worst = (figure(judged.criterion, x) for x in (judged.value, judged.worst))
    return f"{value} ({worst})"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]
