"""The HTML report: complete, self-contained, escaped; its charts show the rows' figures."""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from synergy_gym.evaluation.board.board import read_board
from synergy_gym.evaluation.report.curves import attainment_curves
from synergy_gym.evaluation.report.html import marked_policies, report_html
from synergy_gym.evaluation.report.html_incidents import board_cards, passed
from synergy_gym.evaluation.report.html_tables import heat_cell, pair_heat
from synergy_gym.evaluation.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    line_chart,
    load_axis,
    percent_axis,
    seconds_axis,
)
from tests.evaluation.board_samples import ENGINES, HOSTILE, PAIRS, write_sample_board

VOID = {"meta", "link", "input", "circle", "line", "polyline", "br"}


class Reader(HTMLParser):
    """Collects tags and links, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loads = ("src", "srcset", "data") if tag == "a" else ("href", "src", "srcset", "data")
        self.links += [v or "" for k, v in attrs if k in loads]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path: Path, rng: np.random.Generator) -> str:
    """The report of the sample board."""
    write_sample_board(tmp_path, rng)
    return report_html(read_board(tmp_path))


def test_it_is_one_well_formed_file_without_links_to_elsewhere(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.links == ["data:,"]  # what a reader may click on does not load by itself
    assert not re.search(r"@import|url\(", page)
    assert reader.tags.count("script") == 1
    assert reader.tags.count("html") == 1


def test_it_shows_every_part_scenario_and_policy(page: str) -> None:
    for part in (ENGINES, PAIRS):
        assert f"<h2>{part.title}</h2>" in page
        for name in (*part.scenarios, *part.competitors()):
            assert escape(name, quote=True).replace("&#x27;", "&#39;") in page
    assert "Router x engine" in page
    assert "simulated" in page
    assert page.count('class="chart"') == 3 * 3  # attainment, TTFT, E2E in three scenarios
    assert HOSTILE not in page


def test_cards_stand_beside_the_score(tmp_path: Path, rng: np.random.Generator) -> None:
    write_sample_board(tmp_path, rng)
    board = read_board(tmp_path)
    cards = board_cards(board)
    engine = [card for card in cards if card.incident.layer == "engine"]
    assert passed(cards)["engine", "lens-plus"] == (len(engine) // 2, len(engine) // 2)
    assert passed(cards)["engine", "vllm-v0"] == (0, len(engine) // 2)
    page = report_html(board)
    for card in cards:
        assert f"<h4>{escape(card.incident.title)}</h4>" in page
    assert ">incidents passed</button>" in page
    assert f">{len(engine) // 2} of {len(engine) // 2}<" in page
    assert page.count('<td class="pass"') >= len(cards) // 2 <= page.count('<td class="fail"')
    (tmp_path / "incidents.csv").unlink()
    assert "Incidents, " not in report_html(read_board(tmp_path))


def test_equal_data_give_equal_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    write_sample_board(tmp_path, rng)
    board = read_board(tmp_path)
    assert report_html(board) == report_html(board)


def test_a_line_passes_through_its_points() -> None:
    x, y = Axis(0.0, 2.0, [(1.0, "1")]), percent_axis("")
    chart = line_chart("c", {"a": [(0.0, 0.0), (2.0, 1.0)]}, x, y, marked={"a": 2}, markers=True)
    line = f"{LEFT},{HEIGHT - BOTTOM} {WIDTH - RIGHT},{TOP}"
    assert f'points="{line}"' in chart
    assert "a: 100.0 % at load 2" in chart
    assert "--c:var(--s2)" in chart


def test_axes() -> None:
    seconds = seconds_axis(0.01, 10.0, "s")
    assert seconds.share(0.01) == 0
    assert seconds.share(10.0) == pytest.approx(1)
    assert seconds.share(0.1) == pytest.approx(1 / 3)
    assert all(0.01 <= value <= 10.0 for value, _ in seconds.ticks)
    assert len(seconds_axis(0.5, 3.0, "s").ticks) >= 3
    assert load_axis([1.0], "").share(1.0) == pytest.approx(0.5)
    assert [text for _, text in load_axis([1.0, 1.01, 3.0], "").ticks] == ["1", "3"]


def test_curves_and_heat_map_are_means_of_the_rows(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    write_sample_board(tmp_path, rng)
    rows = read_board(tmp_path).rows
    chosen = [row for row in rows if row["scenario"] == "chat-h100"]
    points = attainment_curves(ENGINES, chosen)["lens-plus"]
    assert list(points) == [0.8, 1.0, 1.2]
    of = [r for r in chosen if r["engine_policy"] == "lens-plus" and r["load"] == 1.0]
    assert len(of) == 2
    assert points[1.0] == pytest.approx(np.mean([row["slo_attainment"] for row in of]))
    heat = pair_heat(PAIRS, PAIRS.rows(rows))
    assert list(heat.columns) == ["engine policy", "round-robin", "prism-plus", "prism-ref"]
    assert [cell.text for cell in heat.rows[1]][::3] == ["lens-plus", ""]
    pair = [r for r in PAIRS.rows(rows) if r["router_policy"] == "prism-plus"]
    assert heat.rows[1][2] == heat_cell(float(np.mean([r["slo_attainment"] for r in pair])))


def test_the_best_and_the_baseline_are_coloured() -> None:
    ranked = ["lens-plus", "random", "lens-ref", "vllm-v0", "vllm-v1"]
    assert marked_policies(ENGINES, ranked) == {
        "lens-plus": 1,
        "random": 2,
        "lens-ref": 3,
        "vllm-v1": 4,
    }
    assert "vllm-v1" in list(marked_policies(ENGINES, ["vllm-v1", "random", "lens-ref"]))
