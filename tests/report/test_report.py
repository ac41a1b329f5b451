"""The report: its numbers are the statistics' own, its sentences claim no more, and whatever a file says stays text."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from report_runs import SIDE, Model, examine, pictures, train, verified

from minipovid import __version__, tinyworld
from minipovid.cli.report import report as command
from minipovid.common.errors import MinipovidError
from minipovid.evaluate import results
from minipovid.evaluate.benchmarks import Label
from minipovid.evaluate.statistics import Change, Interval, paired
from minipovid.images import load as images
from minipovid.images import views
from minipovid.images.views import noised as noise
from minipovid.models.families import llava
from minipovid.recipe import read as recipe
from minipovid.report import Report, answers, curves, noised, numbers, report, sizes, svg, texts
from minipovid.report.numbers import PERCENT, PLAIN, WORDS
from minipovid.report.page import typeset
from minipovid.report.runs import NamedRun, Results
from minipovid.report.verdict import ReportVerdict, _of_rates, kind


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def demo(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like the demo's: a base that is often wrong, the trained model in three ways, a log and a verification."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    train(run)
    verified(run)
    examine(run / "base", file, Model(wrong=0.5, salt="base"))
    examine(run, file, Model(wrong=0.1))
    examine(run, file, Model(wrong=0.12, name="gguf-q4_k_m", size=700_000))
    examine(run, file, Model(wrong=0.1, name="hf"))
    return run


@pytest.fixture(scope="module")
def told(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report([demo], tmp_path_factory.mktemp("out") / "page.html")


def read(told: Report) -> str:
    return told.page.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser's parser would find: the elements, and the text outside of script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else self.inside

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))


def one(run: Path, name: str) -> results.Result:
    return next(result for result in results.read(run) if result.name == name)


# --- the numbers ---


def test_the_table_says_what_the_statistics_say(demo: Path, told: Report) -> None:
    old, new = one(demo / "base", "chair.gguf-f16"), one(demo, "chair.gguf-f16")
    change = paired(old.units, new.units, results.figures_of(new.built))["chair_i"]
    value, low, high = new.figures["chair_i"]
    row = next(row for row in told.rows if row["figure"] == "chair_i" and row["who"] == "demo (gguf-f16)")
    assert row == {
        "benchmark": "chair",
        "figure": "chair_i",
        "who": "demo (gguf-f16)",
        "value": f"{100 * value:.1f} %",
        "95 %": f"{100 * low:.1f} to {100 * high:.1f}",
        "change": f"{100 * change.value:+.1f}",
        "its 95 %": f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
        "p": "< 0.001",
    }
    text = Page(read(told)).text
    for cell in (row["value"], row["95 %"], row["its 95 %"]):
        assert str(typeset(cell)) in text
    before = next(row for row in told.rows if row["figure"] == "chair_i" and row["who"] == "base (gguf-f16)")
    assert before["value"] == f"{100 * old.figures['chair_i'].value:.1f} %" and before["change"] == before["p"] == ""


def test_every_rate_stands_beside_words_and_recall(told: Report) -> None:
    for who in ("base (gguf-f16)", "demo (gguf-f16)", "demo (gguf-q4_k_m)", "demo (hf)"):
        shown = {row["figure"] for row in told.rows if row["who"] == who and row["benchmark"] == "chair"}
        assert shown == {"chair_s", "chair_i", "recall", "words"}


def test_mcnemar_counts_answer_by_answer(demo: Path, told: Report) -> None:
    """By hand: the exact two-sided binomial test over the answers that differ, for each kind of question."""
    old, new = ([*rows(folder, "pope.gguf-f16")] for folder in (demo / "base", demo))
    pope = next(exam for exam in told.results.exams if exam.label == "pope")
    scored = pope.main
    assert scored is not None
    found = {pairing.part: pairing for pairing in scored.pairings()}
    assert set(found) == {"random", "popular", "adversarial"}
    for part, pairing in found.items():
        both = [(a["right"], b["right"]) for a, b in zip(old, new, strict=True) if a["id"].startswith(f"{part}/")]
        mended, lost = both.count((False, True)), both.count((True, False))
        n = mended + lost
        p = min(1.0, 2 * sum(comb(n, k) for k in range(min(mended, lost) + 1)) / 2**n)
        assert (pairing.mended, pairing.lost) == (mended, lost) and pairing.p == pytest.approx(p)
        assert pairing.both + pairing.neither + n == len(both) == 96


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "eval" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("unit", "number", "value", "change"),
    [
        (PERCENT, 0.0934, "9.3 %", "+9.3"),
        (PERCENT, -0.3166, "-31.7 %", "-31.7"),
        (PERCENT, -0.0001, "0.0 %", "0.0"),
        (WORDS, 26.37, "26.4", "+26.4"),
        (PLAIN, 4.125, "4.12", "+4.12"),
        (PLAIN, math.nan, "n/a", "n/a"),
    ],
)
def test_how_numbers_are_printed(unit: numbers.Unit, number: float, value: str, change: str) -> None:
    assert (unit.value(number), unit.change(number)) == (value, change)


@pytest.mark.parametrize(
    ("name", "label", "interval", "unit"),
    [
        ("adversarial/false_yes", Label("false yes"), Interval(0.1, 0.0, 1.0), PERCENT),
        ("words", Label(), Interval(0.9, 0.8, 1.0), WORDS),
        ("score", Label(is_score=True), Interval(0.9, 0.8, 1.0), PLAIN),
        ("complex", Label(), Interval(62.1, 55.0, 70.0), PLAIN),
        ("f1", Label(), Interval(math.nan, math.nan, math.nan), PERCENT),
    ],
)
def test_shares_are_told_from_scores(name: str, label: Label, interval: Interval, unit: numbers.Unit) -> None:
    assert numbers.unit_of(name, label, [interval]) is unit


@pytest.mark.parametrize(
    ("name", "label", "called", "spoken"),
    [
        ("f1", Label("F1"), "F1", "F1"),
        ("obj_rec", Label(), "obj rec", "obj rec"),
        ("hard_ones/f1", Label("F1"), "F1, hard ones", "F1 on hard ones questions"),
    ],
)
def test_what_a_figure_is_called(name: str, label: Label, called: str, spoken: str) -> None:
    assert (numbers.called(name, label), numbers.spoken(name, label)) == (called, spoken)


@pytest.mark.parametrize(("p", "said"), [(0.0009995, "p < 0.001"), (0.001, "p = 0.001"), (1.0, "p = 1.000")])
def test_a_p_is_never_said_smaller_than_it_is(p: float, said: str) -> None:
    assert numbers.chance(p) == said


def test_the_page_sets_minus_and_percent_and_escapes() -> None:
    assert str(typeset("fell by -3.1 % to gguf-f16 <b>")) == (
        "fell by \N{MINUS SIGN}3.1\N{NARROW NO-BREAK SPACE}% to gguf-f16 &lt;b&gt;"
    )


# --- who is held against whom ---


def test_a_single_run_is_held_against_its_base(told: Report) -> None:
    chair = next(exam for exam in told.results.exams if exam.label == "chair")
    assert [(each.name, each.against.name if each.against else None) for each in chair.scores] == [
        ("base (gguf-f16)", None),
        ("demo (gguf-f16)", "base (gguf-f16)"),
        ("demo (gguf-q4_k_m)", "base (gguf-f16)"),
        ("demo (hf)", "base (gguf-f16)"),
    ]
    assert chair.main is chair.scores[1] and told.results.title == "demo"


def test_a_base_asked_through_transformers_is_the_before_of_what_is_asked_so(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for model in (Model(0.5, name="hf-base"), Model(0.1, name="hf"), Model(0.1)):
        examine(run, file, model)
    chair = Results.of([run]).exams[0]
    assert [each.result.backend for each in chair.scores] == ["hf-base", "gguf-f16", "hf"]
    assert chair.main is chair.scores[2], "the one that was asked in the same way"
    assert [each.is_before for each in chair.scores] == [True, False, False]


def test_several_runs_are_held_against_the_first(file: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, wrong in zip(folders, (0.5, 0.3, 0.1), strict=True):
        examine(folder, file, Model(wrong))
    told = report(folders)
    assert told.page == tmp_path / "three" / "report.html" and not (tmp_path / "one" / "report.html").exists()
    assert told.results.title == "one, two and three"
    for exam in told.results.exams:
        assert [each.against.run.name if each.against else "" for each in exam.scores] == ["", "one", "one"]
        assert exam.main is exam.scores[2]


def test_runs_of_one_name_are_told_apart(file: Path, tmp_path: Path) -> None:
    folders = [tmp_path / parent / "run" for parent in ("a", "b")]
    for folder in folders:
        examine(folder, file, Model(0.3))
    assert [run.name for run in Results.of(folders).runs] == ["a/run", "b/run"]


def test_another_protocol_is_said_and_not_compared(file: Path, tmp_path: Path) -> None:
    examine(tmp_path / "base", file, Model(0.5))
    examine(tmp_path, file, Model(0.1), mode="robust")
    told = report([tmp_path])
    pope = [row for row in told.rows if row["benchmark"] == "pope"]
    assert {row["change"] for row in pope} == {""}
    assert any(remark.startswith("Not compared: pope.gguf-f16 and pope.gguf-f16 cannot") for remark in told.remarks)
    assert {finding.exam.label for finding in told.verdict.findings} == {"chair"}
    assert "not compared" in Page(read(told)).text


def test_unread_answers_are_told(tmp_path: Path, file: Path) -> None:
    class Mumbling(Model):
        def answers(self, questions: Any, picture: Any) -> Any:
            yield from ("Perhaps." for _ in questions)

    examine(tmp_path, file, Mumbling(), mode="robust")
    told = report([tmp_path])
    name = f"{tmp_path.name} (gguf-f16)"
    assert f"{name}: 288 of 288 answers to pope could not be read." in told.remarks
    assert f"{name}: 288 of 288 answers to pope could not be read." in Page(read(told)).text


# --- the verdict ---


def verdict(tmp_path: Path, file: Path, before: Model, after: Model) -> ReportVerdict:
    examine(tmp_path / "base", file, before)
    examine(tmp_path, file, after)
    return ReportVerdict.of(Results.of([tmp_path]))


def test_better_is_said_with_numbers(told: Report) -> None:
    assert told.verdict.headline == "It hallucinates less, and it finds more of what is there."
    finding = next(each for each in told.verdict.findings if each.figure == "adversarial/false_yes")
    pattern = (
        r"False yes on adversarial questions fell from \d+\.\d % to \d+\.\d % "
        r"\(-\d+\.\d points, 95 % -\d+\.\d to -\d+\.\d, p < 0\.001\)\."
    )
    assert re.fullmatch(pattern, finding.text) and finding.kind == "better"
    assert told.verdict.bounds == "demo (gguf-f16) against base (gguf-f16): 24 answers to chair, 288 answers to pope."


def test_the_same_model_has_not_changed(tmp_path: Path, file: Path) -> None:
    found = verdict(tmp_path, file, Model(0.3), Model(0.3, also_says=" "))
    assert found.headline == "No clear change in hallucination."
    assert {finding.kind for finding in found.findings} == {"unclear"}
    assert all("no clear change" in each.text and "fell" not in each.text for each in found.findings)


def test_worse_is_said(tmp_path: Path, file: Path) -> None:
    found = verdict(tmp_path, file, Model(0.1), Model(0.6))
    assert found.headline.startswith("It hallucinates more")


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["better"], "It hallucinates less"),
        (["worse", "worse"], "It hallucinates more"),
        (["better", "unclear", "unclear"], "Less hallucination by 1 of 3 measures"),
        (["unclear", "worse"], "More hallucination by 1 of 2 measures"),
        (["better", "worse", "unclear"], "Some hallucination fell and some rose"),
        (["unclear"], "No clear change in hallucination"),
    ],
)
def test_the_headline_is_as_strong_as_its_figures(kinds: list[Any], said: str) -> None:
    assert _of_rates(kinds) == said


def test_silence_does_not_pass_for_truth(tmp_path: Path, file: Path) -> None:
    """A model that names a third of what is there names less that is absent, too."""

    class Silent(Model):
        def answers(self, questions: Any, picture: Any) -> Any:
            for said in super().answers(questions, picture):
                yield said.partition(".")[0] + "."

    found = verdict(tmp_path, file, Model(0.4), Silent(0.4))
    assert found.headline == "Less hallucination by 2 of 3 measures, but it misses more of what is there."


def test_a_change_that_is_printed_as_nothing_is_none(tmp_path: Path, file: Path) -> None:
    """Its interval leaves one side, and is narrower than what is printed: 0.04 points are 0.0."""
    examine(tmp_path / "base", file, Model(0.3))
    examine(tmp_path, file, Model(0.3, also_says=" "))
    exam = Results.of([tmp_path]).exams[0]
    scored, figure = exam.main, "chair_i"
    assert scored is not None
    for value, said in ((-0.0004, "unclear"), (-0.0006, "better")):
        changed = replace(scored, changes={figure: Change(value, value - 1e-5, value + 1e-5, 0.001)})
        assert kind(figure, changed, numbers.PERCENT) == said


def test_a_model_that_likes_the_rejected_answers_is_not_praised_alone(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    told = json.loads((tmp_path / "demo" / "verify.json").read_text())
    told |= {"ok": False, "faults": ["prefers the rejected answer"]}
    (tmp_path / "demo" / "verify.json").write_text(json.dumps(told))
    headline = ReportVerdict.of(Results.of([tmp_path / "demo"])).headline
    assert headline.startswith("It hallucinates less") and headline.endswith(
        ", but on held-out pairs it prefers the rejected answers."
    )


def test_a_verification_of_few_pairs_is_not_called_well(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    told = json.loads((tmp_path / "demo" / "verify.json").read_text())
    (tmp_path / "demo" / "verify.json").write_text(json.dumps({**told, "ok": None, "pairs": 2}))
    assert (
        "on 2 pairs that training never saw: minipovid verify could not judge on so few."
        in Page(read(report([tmp_path / "demo"]))).text
    )


@pytest.mark.parametrize("change", [Change(-0.1, -0.2, 0.0, 0.05), Change(0.1, -0.01, 0.3, 0.06)])
def test_an_interval_that_holds_nothing_else_but_one_side_is_needed(change: Change) -> None:
    from minipovid.report.tables import is_clear

    assert not is_clear(change)
    assert is_clear(Change(-0.1, -0.2, -0.01, 0.01)) and is_clear(Change(0.1, 0.01, 0.2, 0.01))


def test_nothing_examined_and_nothing_to_compare(file: Path, tmp_path: Path) -> None:
    train(tmp_path)
    told = report([tmp_path])
    assert told.verdict.headline == "Nothing was examined yet." and told.rows == []
    text = Page(read(told)).text
    for what in ("Scores: minipovid eval RUN tinyworld", "What the files kept: minipovid verify RUN"):
        assert what in text
    examine(tmp_path, file, Model(0.3))
    told = report([tmp_path])
    assert told.verdict.headline == "These are the scores; there is nothing to hold them against yet."
    assert "Before and after: minipovid eval RUN tinyworld --backend hf --weights base" in Page(read(told)).text


# --- answers ---


def test_answers_are_sorted_into_fixed_new_and_still(told: Report, demo: Path) -> None:
    """Counted by hand from the files; what got worse is shown beside what was mended."""
    expected = {"fixed": 0, "new": 0, "still": 0}
    for label in ("pope", "chair"):
        for old, new in zip(rows(demo / "base", f"{label}.gguf-f16"), rows(demo, f"{label}.gguf-f16"), strict=True):
            was, now = (len(row["wrong"]) if row["right"] is None else int(not row["right"]) for row in (old, new))
            if was or now:
                expected["fixed" if now < was else "new" if now > was else "still"] += 1
    album = answers.Album.of(told.results)
    assert dict(album.counts) == expected and min(expected.values()) > 3
    order = [list(answers.KINDS).index(card.kind) for card in album.cards]
    assert order == sorted(order) and all(len(card.cases) <= answers.EACH for card in album.cards)


def test_what_got_worse_keeps_its_room(file: Path) -> None:
    """Of 10 places, 4 are kept for what got worse, were there ever so much that was mended."""
    said = answers.ShownAnswer(texts.marked("x", ()), "yes", True)
    cards = []
    for number in range(40):
        kind: answers.Kind = "fixed" if number < 30 else "new"
        cards.append(answers.PictureCard(str(number), None, [answers.Case("pope", "?", kind, 1, said, said)]))
    chosen = answers._chosen(cards, 10)
    assert [card.kind for card in chosen] == ["fixed"] * 6 + ["new"] * 4


def test_what_got_worse_is_not_cut_from_a_picture_either() -> None:
    """Three are shown of four that were mended, asked twice the same, and one that got worse."""
    said = [answers.ShownAnswer(texts.marked(str(number), ()), "yes", True) for number in range(5)]
    cases = [answers.Case("pope", "?", "fixed", 1, None, said[number]) for number in (0, 0, 1, 2, 3)]
    shown = answers._telling([*cases, answers.Case("pope", "?", "new", 1, None, said[4])])
    assert [(case.kind, case.after.text) for case in shown] == [("fixed", "0"), ("fixed", "1"), ("new", "4")]


@pytest.mark.parametrize(
    ("text", "spans", "html"),
    [
        ("a red dog", [(2, 5)], "a <mark>red</mark> dog"),
        ("a red dog", [(6, 9), (2, 5)], "a <mark>red</mark> <mark>dog</mark>"),
        ("a red dog", [(2, 6), (4, 9)], "a <mark>red dog</mark>"),
        ("a red dog", [(6, 99), (-4, 1), (3, 3)], "<mark>a</mark> red <mark>dog</mark>"),
        ("<b> & dog", [(1, 2)], "&lt;<mark>b</mark>&gt; &amp; dog"),
        ("<i>x & y", [(0, 3), (5, 6)], "<mark>&lt;i&gt;</mark>x <mark>&amp;</mark> y"),
        ("", [(0, 4)], ""),
    ],
)
def test_marks(text: str, spans: list[tuple[int, int]], html: str) -> None:
    assert texts.marked(text, spans) == html


NASTY = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> & \"q\" {{ 7 * 7 }}"


def test_html_stays_text(tmp_path: Path) -> None:
    """In answers, prompts, names of pictures and runs, notes, the log, the recipe and verify's table."""
    file = pictures(tmp_path / "pictures", 6)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["prompt"] = f"Describe {NASTY}"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    run = tmp_path / "<i>run<"
    train(run)
    (run / "verify.json").write_text(
        json.dumps({"ok": False, "pairs": 1, "table": [{"file": NASTY, "verdict": NASTY}], "causes": [NASTY]})
    )
    examine(run / "base", file, Model(0.9, also_says=NASTY))
    examine(run, file, Model(0.9, also_says=NASTY + "x"))
    told = report([run])
    page = Page(read(told))
    assert [attributes.get("type") for tag, attributes in page.elements if tag == "script"] == [
        "application/json",
        None,
    ]
    assert not [attributes for tag, attributes in page.elements if tag == "img" and not attributes["src"]]
    assert all(str(attributes["src"]).startswith("data:image/") for tag, attributes in page.elements if tag == "img")
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert NASTY in "".join(page.words) and "<i>run<" in page.text and "The chosen answers <sink>." in page.text


def test_the_page_needs_nothing_but_itself(told: Report) -> None:
    html = read(told)
    page = Page(html)
    policy = next(each["content"] for tag, each in page.elements if tag == "meta" and each.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; ")
    assert not [each for _, each in page.elements if str(each.get("href", "#"))[:1] not in ("#", "d")]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html) and "@import" not in html and "url(" not in html


def test_nobody_is_named(demo: Path, told: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither by the recipe's paths nor by verify's notes; the environment tells of versions alone."""
    settings = recipe.read(demo / "recipe.yaml")
    data = settings.data.model_copy(update={"path": "/home/ann/secret/pairs.json", "images": "/home/ann/photos"})
    recipe.write(settings.model_copy(update={"data": data}), tmp_path / "recipe.yaml")
    verified(tmp_path)
    html = read(report([tmp_path]))
    assert "ann" not in re.sub(r"\bcannot|channel|annotat\w*", "", Page(html).text) and "/home" not in html
    text = Page(html).text
    assert "path: '.../pairs.json'" in text and "images: '.../photos'" in text and "Read .../y.gguf." in text
    assert f"minipovid {__version__}" in Page(read(told)).text and str(demo.parent) not in read(told)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("from /data/bob/x.json, and", "from .../x.json, and"),
        (r"C:\Users\bob\x.json", ".../x.json"),
        ("a/b and 3/4 and https://x.org/a/b", "a/b and 3/4 and https://x.org/a/b"),
    ],
)
def test_paths_lose_their_folders(text: str, shown: str) -> None:
    assert texts.anonymous(text) == shown


# --- pictures ---


def test_a_hundred_photographs_stay_below_five_mebibytes(tmp_path: Path) -> None:
    """Noise compresses worse than any photograph."""
    file = pictures(tmp_path / "pictures", 130, side=480)
    examine(tmp_path / "base", file, Model(0.5, also_says=" And so on." * 30))
    examine(tmp_path, file, Model(0.3, also_says=" And so on." * 30))
    told = report([tmp_path])
    shown = [each for tag, each in Page(read(told)).elements if tag == "img"]
    assert len(shown) == 100 and told.page.stat().st_size < 5 * 2**20


def test_missing_and_broken_pictures_break_nothing(tmp_path: Path) -> None:
    file = pictures(tmp_path / "pictures", 8)
    examine(tmp_path, file, Model(0.9))
    for number, path in enumerate(sorted(file.parent.glob("*.png"))):
        path.unlink() if number % 2 else path.write_bytes(b"no picture")
    told = report([tmp_path])
    page = Page(read(told))
    assert not [each for tag, each in page.elements if tag == "img"]
    assert "8 of them could not be found" in page.text and "003.png" in page.text


def test_the_noised_picture_is_the_one_of_training(tmp_path: Path, built_in_pairs: tuple[Path, Path]) -> None:
    """Recomputed from the schedule: x_k = sqrt(abar) x + sqrt(1 - abar) e, e drawn by seed, pair and epoch."""
    train(tmp_path)
    pairs, root = built_in_pairs
    lines = pairs.read_text(encoding="utf-8").splitlines()[:9]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = recipe.read(tmp_path / "recipe.yaml")
    found = noised.examples(tmp_path, settings)
    assert len(found) == noised.SHOWN
    transform = llava.image_transform(tinyworld.CHECKPOINT)
    first = next(row for row in map(json.loads, lines) if len(row["chosen"]) >= 40)
    clean = transform(images.load(root / first["image"]))
    e = views.generator(settings.seed, first["id"], 0, "noised").standard_normal(clean.shape, dtype=np.float32)
    abar = float(noise.schedule()[1][settings.noise.step])
    pixels = (math.sqrt(abar) * clean + math.sqrt(1 - abar) * e).astype(np.float16).astype(np.float32)
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (transform.mean, transform.std))
    due = np.clip((pixels * std + mean) * 255, 0, 255).transpose(1, 2, 0)
    assert np.abs(opened(found[0].noised) - due).max() <= 1
    assert np.abs(opened(found[0].clean) - np.asarray(images.load(root / first["image"]), np.float32)).max() <= 1
    assert found[0].chosen == first["chosen"] and "<mark>" in found[0].rejected


def opened(url: str) -> np.ndarray:
    content = base64.b64decode(url.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float32)


def test_noised_pictures_are_left_out_where_the_model_is_not_here(tmp_path: Path) -> None:
    train(tmp_path)
    settings = recipe.read(tmp_path / "recipe.yaml")
    for path in ("nobody/nothing", "/no/such/folder", "x y z"):
        model = settings.model.model_copy(update={"path": path})
        assert noised.examples(tmp_path, settings.model_copy(update={"model": model})) == []


def test_small_pictures_are_kept_as_they_are(file: Path, told: Report) -> None:
    card = next(card for card in answers.Album.of(told.results).cards if card.name == "000.png")
    assert (opened(card.picture) == np.asarray(Image.open(file.parent / "000.png"), np.float32)).all()
    assert opened(card.picture).shape == (SIDE, SIDE, 3)


# --- curves and charts ---


def test_the_log_becomes_charts(demo: Path) -> None:
    log = curves.read(NamedRun("demo", demo), ["dpo", "povid"])
    assert len(log.steps) == 20 and log.warnings == ["The chosen answers <sink>."]
    assert log.marks() == [(10, "1 dpo"), (110, "2 povid")]
    charts = {chart.title: chart for chart in curves.charts([log])}
    assert list(charts) == [title for title, _, _ in curves.CHARTS]
    assert [name for name, _, _ in charts["Rewards"].data] == ["chosen", "rejected"]
    assert charts["Loss"].data[0][2][0] == (10, pytest.approx(0.69))


def test_several_logs_share_their_charts(demo: Path) -> None:
    logs = [curves.read(NamedRun(name, demo)) for name in ("one", "two")]
    charts = curves.charts(logs)
    assert [chart.title for chart in charts][:3] == ["Loss", "Rewards, chosen", "Rewards, rejected"]
    assert [name for name, _, _ in charts[0].data] == ["one", "two"]


def test_a_log_with_one_step_nan_and_nonsense_is_drawn(tmp_path: Path) -> None:
    lines = ['{"step": 1, "loss": 0.5, "grad_norm": NaN, "learning_rate": 1e-6}', "[]", '"x"', "{", '{"step": "2"}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    charts = curves.charts([curves.read(NamedRun("x", tmp_path))])
    assert [chart.title for chart in charts] == ["Loss", "Learning rate"]
    assert "nan" not in "".join(chart.drawing for chart in charts)


def test_long_logs_are_thinned(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("".join(f'{{"step": {n}, "loss": {n}}}\n' for n in range(1, 5001)))
    (chart,) = curves.charts([curves.read(NamedRun("x", tmp_path))])
    assert 500 <= len(chart.data[0][2]) <= 600


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.54, 0.94], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ([0, 41.2], [0, 20, 40, 60]),
        ([-1.5, 0.05], [-1.5, -1.0, -0.5, 0, 0.5]),
        ([3, 3], [2.6, 2.8, 3.0, 3.2, 3.4]),
        ([0, 0], [-1, -0.5, 0, 0.5, 1]),
        ([1e-6, 2e-5], [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
    ],
)
def test_ticks_stand_at_round_numbers(values: list[float], ticks: list[float]) -> None:
    scale = svg.Scale.round(values, 100, 0)
    assert scale.ticks() == pytest.approx(ticks)
    assert all(0 <= scale(value) <= 100 for value in values)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1500, "1,500"), (0.5, "0.5"), (1e-6, "1e-6"), (1.5e-5, "1.5e-5"), (-20, "-20")]
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert svg.label(value) == text


# --- quantisation, verify, what is around ---


def test_sizes_stand_against_rates(demo: Path, told: Report) -> None:
    """The trained model's, transformers first; changes against that one are paired."""
    found = {each.label: each for each in sizes.of(told.results)}
    pope = found["pope"]
    assert [(backend.name, backend.size) for backend in pope.backends] == [
        ("hf", ""),
        ("gguf-f16", "2.0 MB"),
        ("gguf-q4_k_m", "700 kB"),
    ]
    assert pope.figures[0] == "false yes, adversarial" and [title for title, _ in pope.charts] == pope.figures[:1]
    change = one(demo, "pope.hf").changes(one(demo, "pope.gguf-q4_k_m"))["adversarial/false_yes"]
    cell = pope.backends[2].cells[0]
    assert cell is not None and cell.change == PERCENT.change(change.value)
    assert [each.change for each in pope.backends[1].cells if each] == ["0.0"] * 4, "hf and f16 gave the same answers"
    assert "No difference to hf" in found["chair"].agreement or "Beyond chance" in found["chair"].agreement


def test_verify_and_environment_are_there(told: Report) -> None:
    text = Page(read(told)).text
    assert "minipovid verify found nothing wrong" in text and "m-F16.gguf nf4 1.9 2e-07 99.6" in text
    assert "Python" in text and "numpy" in text and "llama-cpp-python" in text
    assert "seed: 42" in text


def test_a_damaged_verification_is_left_out(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "verify.json").write_text('{"ok": true')
    assert "What the files kept: minipovid verify RUN" in Page(read(report([tmp_path]))).text


# --- the command ---


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments], catch_exceptions=False)


def test_the_command_prints_headline_table_and_page(demo: Path) -> None:
    printed = run(demo)
    assert printed.exit_code == 0
    lines = printed.stdout.splitlines()
    assert lines[0] == "It hallucinates less, and it finds more of what is there."
    heads = next(line for line in lines if line.startswith("benchmark"))
    assert heads.split() == ["benchmark", "figure", "who", "value", "95", "%", "change", "its", "95", "%", "p"]
    assert lines[-1] == f"page: {demo / 'report.html'}" and (demo / "report.html").is_file()
    assert printed.stdout.isascii()
    (demo / "report.html").unlink()


def test_markdown_is_a_table(demo: Path, tmp_path: Path) -> None:
    printed = run(demo, "--markdown", "--out", tmp_path / "x.html").stdout
    lines = printed.splitlines()
    assert lines[0].startswith("**It hallucinates less, and it finds more of what is there.** demo (gguf-f16) against")
    assert "| benchmark | figure | who | value | 95 % | change | its 95 % | p |" in lines
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {9} and r"| chair | chair\_i | demo (hf) |" in printed


def test_json_is_one_object_on_the_last_line(demo: Path, tmp_path: Path) -> None:
    told = json.loads(run(demo, "--json", "--out", tmp_path / "x.html").stdout.splitlines()[-1])
    assert told["page"] == str(tmp_path / "x.html") and told["bytes"] == (tmp_path / "x.html").stat().st_size
    after = next(each for each in told["results"] if each["backend"] == "gguf-f16" and each["run"] == "demo")
    assert after["figures"]["chair_i"] == list(one(demo, "chair.gguf-f16").figures["chair_i"])
    assert set(after["changes"]["chair_i"]) == {"value", "low", "high", "p"}


def test_json_knows_no_nan(tmp_path: Path) -> None:
    """A model that names nothing has no CHAIR_i."""
    file = pictures(tmp_path / "pictures", 4)
    examine(tmp_path / "run", file, Model(names=0))
    (line,) = run(tmp_path / "run", "--json").stdout.splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["results"][0]["figures"]["chair_i"][0] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{0}/none"], "There is no folder {0}/none; name a run folder, which `minipovid train` makes."),
        (["{0}", "--json", "--markdown"], "--markdown and --json are two ways to print the result; give one of them."),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(MinipovidError) as error:
        run(*(each.format(tmp_path) for each in arguments))
    assert str(error.value) == sentence.format(tmp_path)


def test_a_damaged_result_is_one_sentence(file: Path, tmp_path: Path) -> None:
    examine(tmp_path, file, Model())
    (tmp_path / "eval" / "chair.gguf-f16.json").write_text("{")
    sentence = r"chair\.gguf-f16\.json is damaged, or of another version; remove it and run `minipovid eval` again\."
    with pytest.raises(MinipovidError, match=sentence):
        report([tmp_path])


def test_torch_is_not_imported(demo: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom minipovid.report import report\n"
        f"report([Path({str(demo)!r})], Path({str(tmp_path / 'x.html')!r}))\n"
        "print(sorted({'torch', 'transformers', 'llama_cpp'} & set(sys.modules)))"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout == "[]\n"
