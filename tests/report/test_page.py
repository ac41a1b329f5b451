"""The report in headless Chromium: read by pointer, keys and touch, searched, in both themes, on a desk and a phone.

It takes what pages.py says. Set REPORT_SHOTS to a folder to keep what the pages look like.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import CHROMIUM, COLLISIONS, CONTRAST, OVERLAPS, SIZES, chromium
from report_runs import Model, examine, pictures, train, verified

from minipovid.report import report

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

NASTY = " <script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
LONG = " " + "unbroken" * 30
ALL = ["verdict", "results", "training", "noise", "answers", "sizes", "proof", "setup"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, built_in_pairs: tuple[Path, Path]) -> Path:
    """A page with every section, and with answers that want to break out of it."""
    folder = tmp_path_factory.mktemp("report")
    file, run = pictures(folder / "pictures"), folder / "a-run-with-a-rather-long-name"
    train(run)
    verified(run)
    pairs, _ = built_in_pairs
    with pairs.open(encoding="utf-8") as lines:
        (run / "pairs.jsonl").write_text("".join(next(lines) for _ in range(9)), encoding="utf-8")
    examine(run / "base", file, Model(0.5, also_says=LONG))
    examine(run, file, Model(0.15, also_says=NASTY, salt="x"))
    examine(run, file, Model(0.2, name="gguf-q8_0", size=1_040_000, salt="x"))
    examine(run, file, Model(0.2, name="gguf-q4_k_m", size=960_000, salt="x"))
    examine(run, file, Model(0.15, name="hf", salt="x"))
    return report([run]).page


class Tab:
    """An open page, and what its console said."""

    def __init__(self, browser: Any, page: Path, size: str = "desktop", scheme: str = "light") -> None:
        touch = {"has_touch": True, "is_mobile": True} if size == "phone" else {}
        self.context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, **touch)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._ask(request.url))
        self.asked: list[str] = []
        self.name = f"{size}-{scheme}"
        self.page.goto(page.as_uri())

    def _ask(self, url: str) -> None:
        if not url.startswith("data:"):
            self.asked.append(url)

    def shots(self) -> None:
        """Each section by itself: one picture of the whole page would take gigabytes."""
        if folder := os.environ.get("REPORT_SHOTS"):
            for section in self.page.locator("main > section").all():
                name, box = section.get_attribute("id"), section.bounding_box()
                self.page.set_viewport_size({"width": self.page.viewport_size["width"], "height": 800})
                height = min(int(box["height"]) + 40, 2400)
                self.page.set_viewport_size({"width": self.page.viewport_size["width"], "height": height})
                section.evaluate("section => section.scrollIntoView()")
                self.page.screenshot(path=Path(folder) / f"{self.name}-{name}.png")


@pytest.fixture()
def tab(browser: Any, written: Path) -> Iterator[Tab]:
    tab = Tab(browser, written)
    yield tab
    assert tab.said == []
    tab.context.close()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        *(("desktop", "light"), ("phone", "dark")),
        pytest.param("desktop", "dark", marks=pytest.mark.slow),
        pytest.param("phone", "light", marks=pytest.mark.slow),
    ],
)
def test_it_fits_and_can_be_read(browser: Any, written: Path, size: str, scheme: str) -> None:
    """Nothing sticks out or lies on another; text stands out by 4.5 : 1 (WCAG AA); nothing is asked of a network."""
    tab = Tab(browser, written, size, scheme)
    page = tab.page
    assert page.evaluate("[...document.querySelectorAll('main > section')].map(each => each.id)") == ALL
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(COLLISIONS) == []
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(OVERLAPS, "button, input, nav a") == []
    tab.shots()
    assert tab.said == [] and tab.asked == [written.as_uri()]
    tab.context.close()


def test_html_in_an_answer_stays_text(tab: Tab) -> None:
    page = tab.page
    assert page.title() == "a-run-with-a-rather-long-name: minipovid report"
    assert page.evaluate("document.scripts.length") == 2
    assert page.locator("#answers :is(script, .text img)").count() == 0
    assert page.locator("#answers .text", has_text="<script>document.title='owned'</script>").count() > 0


def test_a_script_that_got_in_would_not_run(browser: Any, written: Path, tmp_path: Path) -> None:
    """The page's policy is no decoration: with a script put into it by hand, the title stays."""
    html = written.read_text(encoding="utf-8")
    planted = html.replace("</main>", "<script>document.title = 'owned'</script></main>")
    assert planted != html
    (tmp_path / "planted.html").write_text(planted, encoding="utf-8")
    tab = Tab(browser, tmp_path / "planted.html")
    assert tab.page.title() == "a-run-with-a-rather-long-name: minipovid report"
    assert any("Content Security Policy" in each for each in tab.said)
    tab.context.close()


def test_charts_are_read_by_keys_and_by_pointer(tab: Tab) -> None:
    page = tab.page
    chart, readout = page.locator("svg[data-chart]").nth(1), page.locator(".readout").nth(1)
    playwright.expect(readout).to_have_text("step 200: chosen 0.4, rejected \N{MINUS SIGN}1")
    chart.focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    playwright.expect(readout).to_have_text("step 190: chosen 0.38, rejected \N{MINUS SIGN}0.95")
    page.keyboard.press("Home")
    playwright.expect(readout).to_have_text("step 10: chosen 0.02, rejected \N{MINUS SIGN}0.05")
    assert chart.locator(".cursor circle").count() == 2
    page.keyboard.press("Tab")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * (48 + (300 - 8 * 7) * 90 / 190) / 360, box["y"] + box["height"] / 2)
    playwright.expect(readout).to_have_text("step 100: chosen 0.2, rejected \N{MINUS SIGN}0.5")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_answers_are_filtered_and_searched(tab: Tab) -> None:
    page, shown = tab.page, tab.page.locator("#shown")
    every = page.locator(".card").count()
    playwright.expect(shown).to_have_text(f"{every} of {every} pictures")
    assert page.locator(".card:visible").count() == 10
    page.click("#more")
    assert page.locator(".card:visible").count() == every
    playwright.expect(page.locator("#more")).to_be_hidden()
    page.click("button[data-kind=new]")
    kinds = page.evaluate(
        "[...document.querySelectorAll('.case')].filter(e => e.checkVisibility()).map(e => e.dataset.kind)"
    )
    assert kinds and set(kinds) == {"new"}
    page.click("button[data-kind='']")
    page.fill("#search", "IS there BOAT")
    cases = page.locator(".case:visible")
    assert cases.count() > 0
    assert all({"is", "there", "boat"} <= words(text) for text in cases.all_inner_texts())
    page.fill("#search", "no such words at all")
    playwright.expect(page.locator("#nothing")).to_be_visible()
    playwright.expect(shown).to_have_text(f"0 of {every} pictures")


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_hallucinated_words_are_marked(tab: Tab) -> None:
    """In descriptions, exactly the names of things; what is marked is not in the picture, so it was drawn as absent."""
    marked = tab.page.locator("#answers mark").all_inner_texts()
    assert marked and set(marked) <= {"dog", "cat", "boat", "tree", "car", "lamp"}


def test_the_theme_can_be_changed(tab: Tab) -> None:
    page, button = tab.page, tab.page.locator("#theme")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    playwright.expect(button).to_have_text("Dark")
    button.click()
    playwright.expect(button).to_have_text("Light")
    assert page.evaluate(ground) != light
    assert page.evaluate(CONTRAST) == []
    button.click()
    assert page.evaluate(ground) == light


def test_every_control_has_a_name(tab: Tab) -> None:
    unnamed = tab.page.evaluate(
        "[...document.querySelectorAll('button, input, img, svg, [role=region], nav')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim() || e.alt))"
        ".map(e => e.outerHTML.slice(0, 200))"
    )
    assert unnamed == []


def test_it_prints(browser: Any, written: Path) -> None:
    """In black on white whatever the theme, without what only a screen can use, and no wider than the paper."""
    tab = Tab(browser, written, scheme="dark")
    page = tab.page
    page.set_viewport_size({"width": 760, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("#filter").is_hidden() and page.locator("nav").is_hidden()
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert min(red, green, blue) > 240
    if folder := os.environ.get("REPORT_SHOTS"):
        page.pdf(path=Path(folder) / "report.pdf")
    tab.context.close()


def test_it_is_all_there_without_scripts(browser: Any, written: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written.as_uri())
    assert page.locator("#filter").is_hidden() and page.locator("#theme").is_hidden()
    assert page.locator(".card:visible").count() == page.locator(".card").count() > 10
    context.close()
