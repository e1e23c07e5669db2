"""The report in a headless Chromium: sorts, filters, colours lines, fits a phone, no errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from synergy_gym.evaluation.board.board import read_board
from synergy_gym.evaluation.report.html import COLOURS, report_html
from tests.devtools import Page, browser_page, find_browser
from tests.evaluation.board_samples import ENGINES, HOSTILE, write_sample_board

TABLE = ".part .numbers"
NAMES = f"[...document.querySelector('{TABLE}').tBodies[0].rows].filter(r => !r.hidden)"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab with the report of the sample board."""
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium: install `chromium` to open the report in a browser")
    pytest.importorskip("websockets", reason="needs websockets to talk to Chromium")
    folder = tmp_path_factory.mktemp("browser")
    write_sample_board(folder / "board", np.random.default_rng(6))
    path = folder / "report.html"
    path.write_text(report_html(read_board(folder / "board")), encoding="utf-8")
    with browser_page(program, folder / "profile") as page:
        page.show(1280)
        page.open(path.as_uri())
        yield page
        assert page.requests == [path.as_uri()]  # nothing else was fetched
        assert page.errors == []


def column(tab: Page, index: int) -> list[str]:
    """Texts of a column of the first ranking, as shown."""
    texts: list[str] = tab.run(f"{NAMES}.map(r => r.cells[{index}].textContent)")
    return texts


def click(tab: Page, selector: str, index: int = 0) -> None:
    tab.run(f"document.querySelectorAll({selector!r})[{index}].click()")


def test_a_click_on_a_head_sorts(tab: Page) -> None:
    heads = tab.run(
        f"[...document.querySelector('{TABLE}').tHead.rows[0].cells].map(c=>c.innerText)"
    )
    place = heads.index("mean attainment")
    click(tab, f"{TABLE} thead button", place)
    down = [float(text.split()[0]) for text in column(tab, place)]
    assert down == sorted(down, reverse=True)
    click(tab, f"{TABLE} thead button", place)
    assert [float(text.split()[0]) for text in column(tab, place)] == down[::-1]
    click(tab, f"{TABLE} thead button", 0)
    names = column(tab, 0)
    assert sorted(names) == sorted(ENGINES.competitors())
    assert names == tab.run(f"{names}.sort((a, b) => a.localeCompare(b, 'en'))")
    sorts = f"document.querySelector('{TABLE}').querySelectorAll('[aria-sort]').length"
    assert tab.run(sorts) == 1


def test_typing_filters(tab: Page) -> None:
    field = "document.querySelector('.part .filter input')"
    enter = f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    tab.run(f"{field}.value = 'LENS'; {enter}")
    assert set(column(tab, 0)) == {"lens-ref", "lens-plus"}
    assert tab.run("document.querySelector('.part .filter output').textContent") == "2 of 7"
    tab.run(f"{field}.value = ''; {enter}")
    assert len(column(tab, 0)) == 7


def test_chips_colour_at_most_so_many_lines(tab: Page) -> None:
    part = "document.querySelector('.part')"
    pressed = f"[...{part}.querySelectorAll('.chips [aria-pressed=true]')]"
    lines = f"[...{part}.querySelectorAll('.series.on')].map(g => g.dataset.p)"
    for name in ("static-256", "random", "vllm-v0", "lens-ref", "lens-plus", "vllm-v1"):
        if name not in tab.run(f"{pressed}.map(b => b.dataset.p)"):
            click(tab, f".part .chips [data-p={name}]")
        assert tab.run(lines).count(name) == 6  # two scenarios, three charts each
        assert tab.run(f"{pressed}.length") <= COLOURS
    colours = tab.run(f"{pressed}.map(b => b.style.getPropertyValue('--c'))")
    assert len(set(colours)) == len(colours) == COLOURS
    click(tab, ".part .chips [data-p=lens-plus]")
    assert "lens-plus" not in tab.run(lines)


def test_names_are_not_run(tab: Page) -> None:
    assert HOSTILE in column(tab, 0)
    assert tab.run("document.title").startswith("Leaderboard")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(tab: Page, width: int) -> None:
    tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.show(width)
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.show(1280)


def test_dark_is_dark(tab: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    tab.show(1280, dark=True)
    dark = tab.run(ground)
    tab.show(1280)
    assert max(dark) < 60 < 200 < min(tab.run(ground))
