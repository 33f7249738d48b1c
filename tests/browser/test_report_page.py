"""A report in a real browser: drawn in light and dark, sorted, reached by keyboard, narrow and wide, and printed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import toy_records

OpenPage = Callable[..., Any]

pytest.importorskip("altair", reason="reports need: pip install 'triune[report]'")

MARKS = """() => [...document.querySelectorAll('.plot')].map((plot) => {
  const marks = [...plot.querySelectorAll('svg .mark-rect path, svg .mark-symbol path, svg .mark-line path')]
    .concat([...plot.querySelectorAll('svg .mark-rule line, svg .mark-text text')])
    .filter((m) => m.closest('.role-mark'));
  const boxes = marks.map((m) => m.getBoundingClientRect());
  const place = plot.getBoundingClientRect();
  return {
    name: plot.dataset.spec,
    marks: boxes.filter((b) => b.width > 0 || b.height > 0).length,
    outside: boxes.filter((b) => b.right < place.left - 2 || b.left > place.right + 2).length,
    width: place.width,
    height: place.height,
    role: plot.getAttribute('role'),
    label: plot.ariaLabel ?? '',
  };
})"""


@pytest.fixture(scope="module")
def report(make_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One input of each kind, hostile names among them."""
    import triune

    root = tmp_path_factory.mktemp("report")
    inputs = toy_records.write_everything(make_toy(root / "models", layers=3), root)
    return triune.report(inputs, root / "report.html", title="A report of everything")


@pytest.fixture
def drawn(report: Path, open_page: OpenPage) -> OpenPage:
    """The page, once all figures are there."""

    def open_it(**how: Any) -> Any:
        page = open_page(report.as_uri(), **how)
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        return page

    return open_it


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_figures_are_drawn(drawn: OpenPage, keep: Callable[[Any, str], Path], dark: bool) -> None:
    page = drawn(dark=dark)
    plots = page.evaluate(MARKS)
    assert len(plots) == page.locator(".plot").count() > 40
    for plot in plots:
        assert plot["marks"] > 0, plot
        assert plot["outside"] == 0, plot
        assert plot["width"] > 100, plot
        assert plot["height"] > 40, plot
        assert plot["role"] == "graphics-document", plot
        assert len(plot["label"]) > 40, plot
    assert page.locator("figure").count() == 21
    paper, ink = (page.evaluate(f"getComputedStyle(document.body).{what}") for what in ("backgroundColor", "color"))
    assert (_light(paper), _light(ink)) == (not dark, dark)
    axis = page.locator(".plot .role-axis-label text").first
    assert _light(axis.evaluate("e => getComputedStyle(e).fill")) == dark  # axes take the colour of the text
    keep(page, f"report-{'dark' if dark else 'light'}")


def _light(colour: str) -> bool:
    red, green, blue = (float(v) for v in colour.split("(")[1].rstrip(")").split(",")[:3])
    return (red + green + blue) / 3 > 128


def test_a_table_is_sorted_by_keyboard(drawn: OpenPage) -> None:
    page = drawn()
    table = page.locator("table.board").first
    head = table.locator("thead th", has_text="honest").first
    column = head.evaluate("e => e.cellIndex")

    def values() -> list[float]:
        texts = table.locator(f"tbody tr > :nth-child({column + 1})").evaluate_all("es => es.map(e => e.dataset.sort)")
        return [float(t) for t in texts]

    before = values()
    assert head.get_attribute("aria-sort") is None
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert (head.get_attribute("aria-sort"), values()) == ("ascending", sorted(before))
    page.keyboard.press("Space")
    assert (head.get_attribute("aria-sort"), values()) == ("descending", sorted(before, reverse=True))
    assert before != sorted(before)
    names = table.locator("thead th", has_text="model").first
    names.get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    shown = table.locator("tbody th").all_inner_texts()
    assert shown == sorted(shown, key=str.casefold)


def test_a_keyboard_reaches_everything(drawn: OpenPage) -> None:
    page = drawn()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    reached = set()
    for _ in range(60):
        reached.add(page.evaluate("document.activeElement.tagName"))
        page.keyboard.press("Tab")
    assert {"BUTTON", "SUMMARY", "PRE"} <= reached
    first = page.locator("figure details").first
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert first.evaluate("e => e.open")


def test_everything_has_a_name(drawn: OpenPage) -> None:
    """What a screen reader says: headings in order, captions, labelled figures and regions."""
    page = drawn()
    levels = page.locator("h1, h2, h3").evaluate_all("es => es.map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("thead th:not([scope])").count() == 0
    for figure in page.get_by_role("figure").all():
        assert page.locator(f"#{figure.get_attribute('aria-labelledby')}").inner_text()
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("[id]").evaluate_all("es => es.length === new Set(es.map(e => e.id)).size")


@pytest.mark.parametrize("width", [400, 1600])
def test_narrow_and_wide(drawn: OpenPage, keep: Callable[[Any, str], Path], width: int) -> None:
    page = drawn(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    over = page.evaluate(
        "() => [...document.querySelectorAll('figure, .panel, p, h1, h2, h3, dl')]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert over == []
    contents, main = (page.locator(what).bounding_box() for what in ("nav", "main"))
    assert (contents["x"] + contents["width"] < main["x"]) == (width > 1100)  # beside, or above
    keep(page, f"report-{width}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone_what_is_wide_scrolls_and_shows_it(
    drawn: OpenPage, keep: Callable[[Any, str], Path], dark: bool
) -> None:
    page = drawn(width=400, dark=dark)
    wide = page.locator(".scroll:visible, .plot.fixed").filter(has=page.locator("table.board, svg"))
    cut = [e for e in wide.all() if e.evaluate("e => e.scrollWidth > e.clientWidth + 1")]
    assert len(cut) >= 3  # the ternary plot and leaderboards
    for e in cut:
        assert e.evaluate("e => getComputedStyle(e).overflowX") == "auto"
        assert e.evaluate("e => getComputedStyle(e).backgroundAttachment") == "local, local, scroll, scroll"
    board = page.locator(".scroll:has(table.board)").first
    assert not board.locator(".kind").first.is_visible()
    board.evaluate("e => { e.scrollIntoView(); e.scrollLeft = 120; }")
    place, name, cell = (
        e.bounding_box()
        for e in (board, board.locator("tbody th.model").first, board.locator("tbody tr > :last-child").first)
    )
    assert abs(name["x"] - place["x"]) < 2  # still at the edge
    assert 100 < name["width"] < 0.4 * place["width"]
    assert cell["x"] > name["x"] + name["width"]
    keep(page, f"report-phone-{'dark' if dark else 'light'}")


def test_the_kind_is_shown_where_there_is_room(drawn: OpenPage) -> None:
    assert drawn(width=1200).locator(".board .kind").first.is_visible()


def test_nothing_hostile_ran_and_nothing_was_fetched(report: Path, open_page: OpenPage) -> None:
    page = open_page("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog was opened: {dialog.message}"))
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=60_000)
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.locator("img").count() == 0
    assert page.get_by_text("alert(1)").count() >= 5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_prints(drawn: OpenPage, tmp_path: Path, dark: bool) -> None:
    page = drawn(dark=dark)
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf[:5] == b"%PDF-"
    assert 4 < pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") < 60
    page.emulate_media(media="print")
    assert _light(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert not _light(page.locator(".plot .role-axis-label text").first.evaluate("e => getComputedStyle(e).fill"))
    assert not page.locator("nav").is_visible()


def test_without_scripts_the_numbers_are_there(report: Path, chromium: Any) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("figure table").count() == 21
    assert page.locator("th button").count() == 0
    context.close()
