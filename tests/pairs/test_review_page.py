"""The review's page in headless Chromium: every action by keyboard and by touch, a reload, a server that is killed.

It takes a Chromium on this machine (Debian: apt install chromium), or the one that CHROMIUM names, and playwright.
Set REVIEW_SHOTS to a folder to keep what the pages look like.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import CHROMIUM, CONTRAST, OVERLAPS, SIZES, chromium
from PIL import Image
from review_site import Site, served

from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import Pair, Span
from minipovid.pairs.review import decisions_file
from minipovid.pairs.review.decisions import History

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

GOOD, BAD = "A red boat lies on calm water.", "A red boat lies on calm water, next to a pier."
SPAN = Span(BAD.index("next"), BAD.index("."), "object")
NASTY_GOOD = "<b>Bold</b> & <img src=x onerror=\"document.title='owned'\"> 🐈 A cat."
NASTY_BAD = "<script>document.title='owned'</script> 🐈🐈 Two cats & a <i>dog</i>."
CONTROLS = "header button, #filters select, #filters input, footer button, form button"


def pairs(count: int) -> list[Pair]:
    source = {"chosen": "ground truth", "rejected": "povid v1"}
    made = [Pair(f"n{n}", "boat.png", "Describe it.", GOOD, f"{BAD} {n}", source, (SPAN,)) for n in range(1, count + 1)]
    made[2] = Pair("n3", "boat.png", "<h1>What?</h1>", NASTY_GOOD, NASTY_BAD, {"rejected": "<i>rule</i>"})
    return made


class Killable:
    """`review` in a process of its own, that can be killed and started again on the same port."""

    def __init__(self, path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.pairs, self.url = path, f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        program = f"from minipovid.pairs.review import review; review({str(self.pairs)!r}, port={self.port})"
        self.child = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True)
        assert self.child.stdout is not None
        assert self.child.stdout.readline().strip() == self.url

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()


def states(server: Site | Killable) -> dict[str, str]:
    """What stands on the disk."""
    history = History.read(decisions_file(server.pairs))
    return {id: state.label for id, (_, state) in history.states.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture()
def written(tmp_path: Path) -> Path:
    Image.new("RGB", (320, 200), (60, 120, 160)).save(tmp_path / "boat.png")
    jsonl.write(tmp_path / "pairs.jsonl", pairs(90))
    return tmp_path / "pairs.jsonl"


@pytest.fixture()
def server(written: Path) -> Iterator[Site]:
    with served(written) as site:
        yield site


@pytest.fixture()
def killable(written: Path) -> Iterator[Killable]:
    running = Killable(written)
    yield running
    running.kill()


class Tab:
    """An open page, and what its console said."""

    def __init__(self, browser: Any, server: Site | Killable, size: str = "desktop", scheme: str = "light") -> None:
        touch = {"has_touch": True, "is_mobile": True} if size == "phone" else {}
        self.context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, **touch)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.name = f"{size}-{scheme}"
        self.open(server.url)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.at(1)

    def at(self, n: int) -> None:
        playwright.expect(self.page.locator("#title")).to_have_text(f"Row {n} of 90")

    def state(self, label: str) -> None:
        playwright.expect(self.page.locator("#badge")).to_have_text(label)

    def says(self, text: str) -> None:
        playwright.expect(self.page.locator("#say")).to_contain_text(text)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def shot(self, what: str) -> None:
        if folder := os.environ.get("REVIEW_SHOTS"):
            self.page.screenshot(path=Path(folder) / f"{self.name}-{what}.png")

    def close(self) -> None:
        self.context.close()


@pytest.fixture()
def tab(browser: Any, server: Site) -> Iterator[Tab]:
    tab = Tab(browser, server)
    yield tab
    tab.close()


@pytest.fixture()
def mortal(browser: Any, killable: Killable) -> Iterator[Tab]:
    tab = Tab(browser, killable)
    yield tab
    tab.close()


def test_a_review_by_keyboard_survives_a_reload(tab: Tab, server: Site) -> None:
    tab.press("a")
    tab.at(2)
    tab.says("Row 1 accepted.")
    tab.press("r")
    tab.at(3)
    tab.press("n")
    tab.at(4)
    tab.press("s")
    tab.state("swapped")
    assert tab.page.inner_text("#rejected") == GOOD
    tab.press("n")
    tab.at(5)
    tab.press("e")
    tab.page.locator("#new-rejected").fill("A red boat and a whale.")
    tab.press("Control+Enter")
    tab.at(6)
    tab.says("Row 5 saved.")
    assert states(server) == {"n1": "accepted", "n2": "rejected", "n4": "swapped", "n5": "edited"}
    tab.press("p")
    tab.at(5)
    tab.page.reload()
    tab.at(5)
    tab.state("edited")
    assert tab.page.inner_text("#rejected") == "A red boat and a whale."
    assert tab.page.inner_text("#counts") == "4 of 90 decided: 1 accepted, 1 edited, 1 swapped, 1 rejected"
    tab.press("u")
    tab.says("Row 5: undone, it is undecided.")
    tab.press("u")
    tab.at(4)
    tab.state("undecided")
    assert states(server) == {"n1": "accepted", "n2": "rejected", "n4": "undecided", "n5": "undecided"}
    assert tab.said == []


def test_words_that_differ_are_marked_and_spans_framed(tab: Tab) -> None:
    page = tab.page
    assert page.inner_text("#rejected") == f"{BAD[:-1]}object. 1"
    assert page.locator("#rejected mark").all_inner_texts() == [", ", "next to a pier", "1"]
    assert page.locator("#rejected .span").all_inner_texts() == ["next to a pier"]
    assert page.locator("#rejected .label").all_inner_texts() == ["object"]
    assert page.locator("#chosen mark").count() == 0


def test_html_in_a_models_text_stays_text(tab: Tab) -> None:
    tab.press("n", "n")
    tab.at(3)
    page = tab.page
    assert page.inner_text("#chosen") == NASTY_GOOD and page.inner_text("#rejected") == NASTY_BAD
    assert page.inner_text("#prompt") == "<h1>What?</h1>" and "<i>rule</i>" in page.inner_text("#about")
    assert page.locator("#answers :is(b, i, img, script), #prompt *, #rows :is(b, i, img, script, h1)").count() == 0
    tab.press("s")
    tab.state("swapped")
    tab.press("e")
    page.locator("#new-chosen").fill("<svg onload=\"document.title='owned'\">")
    tab.press("Control+Enter")
    tab.says("Row 3 saved.")
    tab.press("p")
    tab.at(3)
    assert page.inner_text("#chosen") == "<svg onload=\"document.title='owned'\">"
    assert page.title() == "pairs.jsonl: review" and page.evaluate("document.scripts.length") == 1
    assert tab.said == []
    with pytest.raises(playwright.Error, match="TrustedHTML|Trusted Type"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")


def test_filter_search_and_pages(tab: Tab) -> None:
    page = tab.page
    tab.press("/")
    page.keyboard.type("cats & a <i>dog")
    playwright.expect(page.locator("#place")).to_have_text("1 of 1")
    tab.at(3)
    page.fill("#search", "no such words at all")
    playwright.expect(page.locator("#empty")).to_be_visible()
    tab.press("a")  # the focus is in the search field: it types
    page.fill("#search", "")
    playwright.expect(page.locator("#place")).to_have_text("1 of 90")
    assert page.locator("#rows li").count() == 40, "only what is seen is sent"
    page.click("#later")
    tab.at(41)
    playwright.expect(page.locator("#place")).to_have_text("41 of 90")
    tab.page.locator("#row").focus()
    tab.press("p")
    tab.at(40)
    tab.press("n")
    tab.at(41)
    page.fill("#goto", "90")
    page.locator("#goto").press("Enter")
    tab.at(90)
    page.locator("#row").focus()
    tab.press("n")
    tab.says("This is the last row that matches.")
    tab.press("a")
    tab.says("Row 90 accepted. This is the last row that matches.")
    page.select_option("#state", "accepted")
    playwright.expect(page.locator("#place")).to_have_text("1 of 1")
    page.select_option("#state", "undecided")
    playwright.expect(page.locator("#place")).to_have_text("1 of 89")
    page.select_option("#kind", "object")
    playwright.expect(page.locator("#place")).to_have_text("1 of 88")
    tab.page.reload()
    playwright.expect(page.locator("#place")).to_have_text("1 of 88")
    assert tab.said == []


def test_what_is_typed_survives_closing_and_a_reload(tab: Tab, server: Site) -> None:
    page = tab.page
    tab.press("e")
    page.locator("#new-chosen").fill("Half a sent")
    tab.press("Escape")
    tab.says("Closed; what you typed is kept")
    page.reload()
    playwright.expect(page.locator("#new-chosen")).to_have_value("Half a sent")
    page.locator("#new-chosen").press("Control+Enter")
    tab.at(2)
    assert states(server) == {"n1": "edited"}
    tab.press("e")
    page.locator("#new-rejected").fill("gone")
    page.click("#discard")
    playwright.expect(page.locator("#editor")).to_be_hidden()
    tab.press("e")
    playwright.expect(page.locator("#new-rejected")).to_have_value(f"{BAD} 2")
    page.locator("#new-rejected").fill(" ")
    tab.press("Control+Enter")
    tab.says("The rejected answer is empty; a pair needs both.")
    assert states(server) == {"n1": "edited"}


def test_a_killed_server_is_told_and_nothing_is_lost(mortal: Tab, killable: Killable) -> None:
    page, gone = mortal.page, mortal.page.locator("#gone")
    mortal.press("a")
    mortal.at(2)
    killable.kill()
    mortal.press("e")
    page.locator("#new-rejected").fill("Typed while it was down.")
    mortal.press("Control+Enter")
    playwright.expect(gone).to_contain_text("The server does not answer")
    playwright.expect(gone).to_contain_text("One decision waits")
    mortal.says("Row 2: not saved yet.")
    mortal.shot("gone")
    playwright.expect(page.locator("#new-rejected")).to_have_value("Typed while it was down.")
    assert states(killable) == {"n1": "accepted"}
    killable.start()
    playwright.expect(gone).to_be_hidden()
    mortal.says("The server is back, and the decision is saved.")
    mortal.at(2)
    mortal.state("edited")
    assert page.inner_text("#rejected") == "Typed while it was down."
    assert states(killable) == {"n1": "accepted", "n2": "edited"}


def test_a_killed_browser_finds_what_was_typed_when_the_server_is_back(mortal: Tab, killable: Killable) -> None:
    """The page is closed while a decision waits; the next page of the same browser sends it."""
    killable.kill()
    mortal.press("r")
    mortal.says("Row 1: not saved yet.")
    mortal.page.close()
    killable.start()
    assert states(killable) == {}
    page = mortal.context.new_page()
    page.goto(killable.url)
    playwright.expect(page.locator("#say")).to_have_text("What waited is saved now.")
    playwright.expect(page.locator("#badge")).to_have_text("rejected")
    assert states(killable) == {"n1": "rejected"}


@pytest.mark.slow
def test_a_row_that_changed_meanwhile_is_not_decided(mortal: Tab, killable: Killable) -> None:
    killable.kill()
    mortal.press("r")
    mortal.says("not saved yet")
    made = pairs(90)
    jsonl.write(killable.pairs, [Pair("n1", "boat.png", "Describe it.", GOOD, "Another text."), *made[1:]])
    killable.start()
    mortal.says("The decision on row 1 was refused: The pairs have changed")
    assert states(killable) == {}


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        *(("desktop", "light"), ("phone", "dark")),
        pytest.param("desktop", "dark", marks=pytest.mark.slow),
        pytest.param("phone", "light", marks=pytest.mark.slow),
    ],
)
def test_it_fits_and_can_be_read(browser: Any, server: Site, size: str, scheme: str) -> None:
    """Nothing sticks out, no control hides another, and text stands out from its ground by 4.5 : 1 (WCAG AA)."""
    tab = Tab(browser, server, size, scheme)
    page = tab.page
    tab.shot("row")
    for keys, what in ((("s",), "swapped"), (("n", "n"), "html"), (("e",), "edit")):
        for key in keys:
            tab.press(key)
            page.wait_for_timeout(150)
        tab.shot(what)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OVERLAPS, CONTROLS) == []
        assert page.evaluate(CONTRAST) == []
    tab.press("Escape")
    if size == "phone":
        for button in ("#open-filters", "#open-list"):
            page.tap(button)
        tab.shot("list")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(CONTRAST) == []
        page.tap("#open-list")
        assert (
            page.evaluate("Math.min(...[...document.querySelectorAll('footer button')].map(b => b.offsetHeight))") >= 44
        )
        page.tap("#accept")
        tab.at(4)
        page.tap("#next")
        tab.at(5)
        page.tap("#undo")
        tab.at(3)
    else:
        tab.press("?")
        playwright.expect(page.locator("#help")).to_be_visible()
        tab.shot("keys")
        assert page.evaluate(CONTRAST) == []
        tab.press("Escape")
    assert tab.said == []
    tab.close()


def test_every_control_has_a_name_and_shows_the_focus(tab: Tab) -> None:
    page = tab.page
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, progress, dialog, nav, img')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.length"
        " || e.textContent.trim() || e.alt)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    seen = []
    for _ in range(30):
        tab.press("Tab")
        seen.append(page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"))
    assert {name for name, _ in seen} >= {"state", "maker", "kind", "search", "goto"}
    assert {outline for name, outline in seen if name} == {"solid"}


def test_a_missing_picture_is_told(tab: Tab, server: Site) -> None:
    (server.pairs.parent / "boat.png").unlink()
    tab.page.reload()
    playwright.expect(tab.page.locator("#missing")).to_contain_text(re.compile(r"boat\.png cannot be read"))
