"""`synergy-gym incidents`: the card of a policy, rebuilt public incidents passed and failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synergy_gym.cli import output as tables

if TYPE_CHECKING:
    from rich.table import Table

    from synergy_gym.evaluation.board.part import Suite
    from synergy_gym.evaluation.incidents.cards import Card, CardRow
    from synergy_gym.evaluation.jobs import Job, JobResult


ALL = "all"
SUITE = "incidents"


def incidents(
    engine_policy: Annotated[
        str | None, typer.Option(help="Engine policy on trial, or `all` of the suite.")
    ] = None,
    router_policy: Annotated[
        str | None, typer.Option(help="Router policy on trial, or `all` of the suite.")
    ] = None,
    incident: Annotated[
        list[str] | None, typer.Option(help="Only this incident; may be repeated.")
    ] = None,
    suite: Annotated[
        str, typer.Option(help=f"season1/{SUITE} for those of the archived season.")
    ] = SUITE,
    seeds: Annotated[int, typer.Option(help="Test seeds per incident.", min=1, max=10)] = 3,
    jobs: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Write incidents.csv and incidents.md into this folder.")
    ] = None,
) -> None:
    """Play the incidents and say which a policy passes.

    One policy meets the incidents of its layer beside `vllm-v1` or `round-robin`; an engine and a
    router policy together meet all of them; without either, all policies of the suite are played.
    """
    from synergy_gym.evaluation.incidents.cards import cards, play_cards

    played = _suite(suite)
    chosen = _jobs(played, engine_policy, router_policy, incident or [], seeds)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # a wrong path costs no episodes
    with tables.progress() as bar:
        task = bar.add_task("playing", total=len(chosen))

        def on_result(job: Job, outcome: JobResult | str) -> None:
            bar.update(task, advance=1, description=str(job))

        rows, failures = play_cards(chosen, jobs, on_result)
    found = cards(rows, played.season) if not failures else []
    for table in _tables(found):
        tables.show(table)
    if out is not None and not failures:
        _write(out, rows, found)
    for job, text in failures.items():
        tables.error(f"{job}: {text}")
    if failures:
        raise typer.Exit(1)


def _suite(name: str) -> Suite:
    """The incidents of a season.

    Raises:
        ValueError: no such suite, or one of other scenarios.
    """
    from synergy_gym.evaluation.board.suites import find_suite

    found = find_suite(name)
    if found.name != SUITE:
        raise ValueError(f"suite {name!r} has no incidents; choose {SUITE} or season1/{SUITE}")
    return found


def _jobs(
    suite: Suite, engine: str | None, router: str | None, names: Sequence[str], seeds: int
) -> list[Job]:
    from synergy_gym.evaluation.board.incident_library import find_incident, list_incidents
    from synergy_gym.evaluation.incidents.cards import incident_jobs

    pairs = _pairs(suite, engine, router)
    wanted = [find_incident(name, suite.season) for name in names] or list_incidents(suite.season)
    jobs = [job for one in wanted for job in incident_jobs(pairs[one.layer], [one], seeds)]
    if not jobs:
        raise ValueError(
            f"no policy of the layer that is on trial in {', '.join(names)}; "
            "give --engine-policy or --router-policy for it"
        )
    return jobs


def _pairs(
    suite: Suite, engine: str | None, router: str | None
) -> dict[str, list[tuple[str, str]]]:
    """By the layer on trial, the (engine policy, router policy) pairs that play.

    Raises:
        ValueError: no such policy, or `all` beside another one.
    """
    from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER
    from synergy_gym.policies import registry

    if engine not in (None, ALL):
        registry.make_engine_policy(str(engine))  # a wrong name costs no episodes
    if router not in (None, ALL):
        registry.make_router_policy(str(router))
    if engine is not None and router is not None:
        if ALL in (engine, router):
            raise ValueError(
                "--engine-policy and --router-policy together name one pair; give `all` for one "
                "of them alone"
            )
        return {"engine": [(engine, router)], "router": [(engine, router)]}
    if engine is None and router is None:
        engine = router = ALL
    every = {part.track: part.competitors() for part in suite.parts}
    engines = every["engine"] if engine == ALL else [engine] if engine else []
    routers = every["router"] if router == ALL else [router] if router else []
    return {
        "engine": [(name, DEFAULT_ROUTER) for name in engines],
        "router": [(DEFAULT_ENGINE, name) for name in routers],
    }


def _write(out: Path, rows: Sequence[CardRow], found: Sequence[Card]) -> None:
    from synergy_gym.cli.output import command_line
    from synergy_gym.evaluation.incidents.cards import CARDS_FILE, PAGE_FILE, write_cards
    from synergy_gym.evaluation.incidents.page import cards_text

    write_cards(out / CARDS_FILE, rows)
    text = cards_text(found, command_line())
    (out / PAGE_FILE).write_text(text, encoding="utf-8", newline="\n")
    tables.note(f"written to {out}")


def _tables(found: Sequence[Card]) -> list[Table]:
    """A list of criteria for one pair of policies; else who passed what, layer by layer."""
    from synergy_gym.evaluation.board.incident_library import LAYERS
    from synergy_gym.evaluation.incidents.page import matrix

    if len({(card.engine_policy, card.router_policy) for card in found}) == 1:
        return [_card_table(found)]
    pages = ((layer, *matrix(found, layer)) for layer in LAYERS)
    return [
        tables.plain(f"Incidents of the {layer} layer (simulated)", headings, rows)
        for layer, headings, rows in pages
        if rows
    ]


def _card_table(found: Sequence[Card]) -> Table:
    from synergy_gym.evaluation.incidents.cards import figure, rule
    from synergy_gym.evaluation.incidents.page import verdict

    rows = [
        (
            *((card.incident.title, verdict(card)) if judged == card.verdicts[0] else ("", "")),
            rule(judged.criterion),
            figure(judged.criterion, judged.value),
            figure(judged.criterion, judged.worst),
            "met" if judged.met else "not met",
        )
        for card in found
        for judged in card.verdicts
    ]
    passed = sum(card.passed for card in found)
    pair = f"{found[0].engine_policy} + {found[0].router_policy}"
    title = f"{pair}: {passed} of {len(found)} incidents passed (simulated)"
    columns = ("incident", "", "criterion", "median seed", "worst seed", "")
    return tables.plain(title, columns, rows)
