"""The review without a browser: the decisions' file, the book of rows, the HTTP side over real sockets, the result."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from review_site import Site, served

from minipovid.common.errors import MinipovidError
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import BadRow, Pair, Span
from minipovid.pairs.review import apply, decisions_file, review
from minipovid.pairs.review.book import PAGE, Book, Filter
from minipovid.pairs.review.decisions import UNDECIDED, Decisions, History, ReviewRow, State
from minipovid.pairs.review.marks import pieces
from minipovid.pairs.source import find

GOOD, BAD = "A cat lies on the mat.", "A dog lies on the mat."


def pair(number: int, **changes: Any) -> Pair:
    source = {"chosen": "ground truth", "rejected": "rule v1" if number % 2 else "povid v1, gpt-4o"}
    spans = (Span(2, 5, "object"),) if number % 3 else (Span(2, 5, "attribute"),)
    plain = Pair(f"n{number}", f"{number}.png", f"What is in picture {number}?", GOOD, BAD, source, spans)
    return replace(plain, **changes)


def written(folder: Path, made: list[Pair]) -> Path:
    for each in made:
        path = folder / each.image
        if not path.exists():
            Image.new("RGB", (32, 24), (200, 30, 30)).save(path)
    jsonl.write(folder / "pairs.jsonl", made)
    return folder / "pairs.jsonl"


@pytest.fixture()
def site(tmp_path: Path) -> Iterator[Site]:
    with served(written(tmp_path, [pair(n) for n in range(1, 8)])) as site:
        yield site


# --- pieces of a text


def shown(text: str, other: str, *spans: Span) -> str:
    """[changed], {in a span of:kind}."""
    parts = []
    for piece in pieces(text, other, spans):
        part = f"[{piece.text}]" if piece.changed else piece.text
        parts.append(f"{{{part}:{piece.kind}}}" if piece.kind else part)
    return "".join(parts)


@pytest.mark.parametrize(
    ("text", "other", "marked"),
    [
        (GOOD, BAD, "A [cat] lies on the mat."),
        (GOOD, GOOD.upper(), GOOD),
        ("A cat and a dog.", "A cat.", "A cat [and a dog]."),
        ("A cat.", "A cat and a dog.", "A cat."),
        ("One two", "three four", "[One two]"),
        ("", "x", ""),
        ("  spaces\n\nstay ", "spaces stay", "  spaces\n\nstay "),
        ("🐈 Two <b>cats</b>", "🐈 One <b>cats</b>", "🐈 [Two] <b>cats</b>"),
    ],
)
def test_words_that_the_other_answer_has_not_are_marked(text: str, other: str, marked: str) -> None:
    assert shown(text, other) == marked
    assert "".join(piece.text for piece in pieces(text, other)) == text


def test_spans_cut_marks_and_the_text_stays_whole() -> None:
    assert shown(BAD, GOOD, Span(0, 5, "object"), Span(9, 11, "relation")) == (
        "{A :object}{[dog]:object} lie{s :relation}on the mat."
    )
    rng = random.Random(0)
    for _ in range(200):
        text, other = ("".join(rng.choices("ab c.é🐈\n", k=rng.randrange(12))) for _ in range(2))
        edges = sorted(rng.sample(range(len(text) + 1), 2)) if len(text) > 1 else [0, 0]
        found = pieces(text, other, [Span(*edges, "object")])
        assert "".join(piece.text for piece in found) == text and all(piece.text for piece in found)


def test_two_long_texts_without_a_common_word_do_not_keep_anybody_waiting() -> None:
    began = time.monotonic()
    text, other = (" ".join(f"{letter}{n}" for n in range(20_000)) for letter in "ab")
    assert [piece.changed for piece in pieces(text, other)] == [True]
    assert time.monotonic() - began < 5


# --- the decisions' file


def test_the_last_line_counts_and_undo_goes_back_through_a_restart(tmp_path: Path) -> None:
    file, row = tmp_path / "p.decisions.jsonl", ReviewRow.of_pair(pair(1))
    other = ReviewRow.of_pair(pair(2))
    with Decisions(file) as decisions:
        decisions.decide(row, State("accepted"))
        decisions.decide(other, State("rejected"))
        decisions.decide(row, State("edited", None, "A cow."))

    class Known:
        def find(self, id: str) -> ReviewRow | None:
            return {each.id: each for each in (row, other)}.get(id)

        def settle(self, id: str, state: State) -> None:
            raise AssertionError("nobody asked")

    with Decisions(file) as again:
        assert again.history.state(row.id, row.of) == State("edited", None, "A cow.")
        seen = []
        while (last := again.undoable(Known())) is not None:
            seen.append((last[0].id, last[1]))
            again.decide(*last, undo=True)
    assert seen == [(row.id, State("accepted")), (other.id, UNDECIDED), (row.id, UNDECIDED)]
    assert {each: History.read(file).state(each.id, each.of) for each in (row, other)} == dict.fromkeys(
        (row, other), UNDECIDED
    )
    assert len(file.read_text().splitlines()) == 6, "nothing is ever taken out of the file"


@pytest.mark.parametrize("cut", [1, 7, 40, -1, -2])
def test_a_line_that_a_crash_cut_short_is_passed_over_and_never_glued_to_the_next(tmp_path: Path, cut: int) -> None:
    file, row, other = tmp_path / "p.decisions.jsonl", ReviewRow.of_pair(pair(1)), ReviewRow.of_pair(pair(2))
    with Decisions(file) as decisions:
        decisions.decide(row, State("accepted"))
    first = file.read_bytes()
    with Decisions(file) as decisions:
        decisions.decide(other, State("edited", "Ünïcödé 🐈", None))
    whole = file.read_bytes()
    file.write_bytes(first + whole[len(first) :][:cut])
    with Decisions(file) as again:
        whole_line = cut == -1  # only the line feed is missing
        assert again.history.torn == (0 if whole_line else 1)
        assert again.history.state(other.id, other.of).label == ("edited" if whole_line else "undecided")
        again.decide(other, State("rejected"))
    read = History.read(file)
    assert read.state(row.id, row.of).label == "accepted" and read.state(other.id, other.of).label == "rejected"


def test_a_second_server_on_the_same_pairs_is_refused(tmp_path: Path) -> None:
    with Decisions(tmp_path / "d.jsonl"), pytest.raises(MinipovidError, match="Another `minipovid pairs show` has"):
        Decisions(tmp_path / "d.jsonl")
    assert not (tmp_path / "d.jsonl").exists(), "no decision, no file"


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, row = tmp_path / "d.jsonl", ReviewRow.of_pair(pair(1))
    with Decisions(file) as decisions:
        decisions.decide(row, State("accepted"))
        before = file.read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                decisions.decide(row, State("rejected"))
        assert file.read_bytes() == before and decisions.history.state(row.id, row.of).label == "accepted"
        decisions.decide(row, State("rejected"))
    assert History.read(file).state(row.id, row.of).label == "rejected"


def test_what_was_decided_about_another_text_does_not_count(tmp_path: Path) -> None:
    path = written(tmp_path, [pair(1), pair(2)])
    with Decisions(decisions_file(path)) as decisions:
        decisions.decide(ReviewRow.of_pair(pair(1)), State("rejected"))
        decisions.decide(ReviewRow.of_pair(pair(9)), State("rejected"))
        decisions.decide(ReviewRow.of_pair(pair(2)), State("rejected"))
    jsonl.write(path, [pair(1, rejected="A cow lies there."), pair(2)])
    with Book(find(path)) as book, Decisions(decisions_file(path)) as again:
        again.meet(book)
        assert again.stale == 2 and book.counts()["rejected"] == 1
    told = apply(path, tmp_path / "out.jsonl")
    assert (told.pairs, told.rejected, told.stale) == (1, 1, 2)


# --- the book


def test_filters_search_and_pages(tmp_path: Path) -> None:
    made = [pair(n, chosen=GOOD if n != 77 else "Ein ÄPFEL-Korb.") for n in range(1, 101)]
    with Book(find(written(tmp_path, made))) as book:
        rows, matches, ahead = book.page(Filter())
        assert [row["n"] for row in rows] == list(range(1, PAGE + 1)) and (matches, ahead) == (100, 0)
        rows, _, ahead = book.page(Filter(), after=PAGE)
        assert rows[0]["n"] == PAGE + 1 and ahead == PAGE
        rows, _, ahead = book.page(Filter(), before=PAGE + 1)
        assert [row["n"] for row in rows] == list(range(1, PAGE + 1)) and ahead == 0
        assert [row["n"] for row in book.page(Filter(search="äpfel"))[0]] == [77]
        assert book.page(Filter(search="picture 5"))[1] == 11  # 5, 50 ... 59
        assert book.page(Filter(search="100%_"))[1] == 0
        assert book.page(Filter(kind="attribute"))[1] == 33
        assert book.page(Filter(maker="ground truth / rule v1", kind="attribute"))[1] == 17
        assert book.page(Filter(state="accepted"))[1] == 0
        book.settle("n5", State("edited", None, "A zebra."))
        assert [row["n"] for row in book.page(Filter(state="edited", search="ZEBRA"))[0]] == [5]
        assert book.page(Filter(state="edited", search="dog"))[1] == 0, "what is no longer said is not found"
        assert book.choices() == {
            "makers": ["ground truth / povid v1, gpt-4o", "ground truth / rule v1"],
            "kinds": ["object", "attribute"],
        }


def test_pictures_inside_the_data_file_are_served(tmp_path: Path) -> None:
    import base64

    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    data = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    row = {"images": [{"bytes": data}], "prompt": "What?", "chosen": "A cup.", "rejected": "A cow."}
    (tmp_path / "trl.jsonl").write_text(json.dumps(row))
    with served(tmp_path / "trl.jsonl") as site:
        status, picture, headers = site.ask("GET", "/picture/1")
        assert (status, headers["content-type"]) == (200, "image/png")
        assert picture == (tmp_path / "a.png").read_bytes()
        site.act(1, "accept")
    told = apply(tmp_path / "trl.jsonl", tmp_path / "out" / "pairs.jsonl")
    (kept,) = jsonl.read(tmp_path / "out" / "pairs.jsonl")
    assert told.pairs == 1 and isinstance(kept, Pair)
    assert (tmp_path / "out" / kept.image).read_bytes() == picture


# ru_maxrss would begin with what pytest itself took, before exec.
PROGRAM = r"""
import json, re, sys, time
from minipovid.pairs.source import find
from minipovid.pairs.review.book import Book, Filter
began = time.monotonic()
with Book(find(sys.argv[1])) as book:
    read = time.monotonic() - began
    began = time.monotonic()
    found = book.page(Filter(search="number 99,999"))
    took = time.monotonic() - began
    peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
    told = {"mib": peak, "read_s": read, "search_s": took, "found": found[1]}
    print(json.dumps({**told, "torch": "torch" in sys.modules}))
"""


@pytest.mark.slow
def test_100_000_rows_are_at_hand_below_500_mib(tmp_path: Path) -> None:
    text = " ".join(f"word{n}" for n in range(100))
    made = (pair(n, prompt=f"Number {n:,}", chosen=text, rejected=f"{text} {n}") for n in range(100_000))
    jsonl.write(tmp_path / "pairs.jsonl", made)
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "pairs.jsonl")], capture_output=True, text=True, check=True
    )
    told = json.loads(child.stdout)
    print(told)
    assert told["mib"] < 500 and told["found"] == 1 and told["search_s"] < 5 and not told["torch"]


# --- the HTTP side


def test_each_action_is_on_the_disk_when_it_is_answered(site: Site) -> None:
    assert site.act(1, "accept")["row"]["state"] == "accepted"
    assert site.lines()[-1] == {**site.lines()[-1], "id": "n1", "decision": "accepted"}
    assert site.act(2, "reject")["counts"] == {
        **dict.fromkeys(("edited", "swapped"), 0),
        "undecided": 5,
        "accepted": 1,
        "rejected": 1,
    }
    told = site.act(3, "edit", chosen=GOOD, rejected="A cow lies on the mat.")["row"]
    assert (told["state"], told["rejected"]["text"], told["rejected"]["own"]) == (
        "edited",
        "A cow lies on the mat.",
        BAD,
    )
    assert "".join(piece[0] for piece in told["rejected"]["pieces"]) == told["rejected"]["text"]
    assert not any(piece[2] for piece in told["rejected"]["pieces"]), "spans speak of the row's own text"
    told = site.act(4, "swap", chosen=BAD, rejected=GOOD)["row"]
    assert (told["state"], told["chosen"]["text"]) == ("swapped", BAD)
    assert [line["decision"] for line in site.lines()] == ["accepted", "rejected", "edited", "swapped"]
    assert "chosen" not in site.lines()[2] and site.lines()[3]["chosen"] == BAD

    assert site.act(4, "accept")["row"]["state"] == "swapped", "accepted as it is shown"
    assert site.act(3, "reject")["row"]["rejected"]["text"] == "A cow lies on the mat.", "an edit is not forgotten"
    assert site.act(3, "accept")["row"]["state"] == "edited"
    assert site.act(4, "swap", chosen=GOOD, rejected=BAD)["row"]["state"] == "undecided", "swapped back"
    assert site.act(1, "edit", chosen=GOOD, rejected=BAD)["row"]["state"] == "accepted", "nothing was changed"


def test_undo_takes_back_one_after_the_other(site: Site) -> None:
    site.act(1, "accept")
    site.act(2, "swap", chosen=BAD, rejected=GOOD)
    site.act(1, "reject")
    seen = []
    while (told := site.ask("POST", "/api/undo", {}))[0] == 200:
        seen.append((told[1]["row"]["n"], told[1]["row"]["state"]))
    assert seen == [(1, "accepted"), (2, "undecided"), (1, "undecided")]
    assert told[0] == 404 and "nothing to undo" in told[1]["error"]


def test_a_restart_shows_what_was_decided(tmp_path: Path) -> None:
    path = written(tmp_path, [pair(n) for n in range(1, 4)])
    with served(path) as site:
        site.act(1, "edit", chosen=GOOD, rejected="A cow.")
        site.act(3, "reject")
    with served(path) as site:
        assert site.get("/api/state")["counts"] == {
            "undecided": 1,
            "accepted": 0,
            "edited": 1,
            "swapped": 0,
            "rejected": 1,
        }
        assert site.get("/api/rows/1")["rejected"]["text"] == "A cow."
        assert [row["state"] for row in site.get("/api/rows")["rows"]] == ["edited", "undecided", "rejected"]


@pytest.mark.parametrize(
    ("wish", "status", "sentence"),
    [
        ({"action": "accept", "of": "0" * 16}, 409, "have changed since"),
        ({"action": "delete"}, 422, "accept, reject, edit or swap"),
        ({"action": "edit", "chosen": " ", "rejected": "x"}, 422, "chosen answer is empty"),
        ({"action": "edit", "chosen": "A cat."}, 422, "rejected answer is empty"),
        ({"action": "edit", "chosen": "A cat.", "rejected": " A cat. "}, 422, "are equal"),
        ({"action": "edit", "chosen": "A cat.", "rejected": "\ud83d"}, 422, "half a character"),
        ({"action": "edit", "chosen": ["A"], "rejected": "x"}, 422, "chosen answer is empty"),
        ([1], 400, "not a JSON object"),
        (b"{", 400, "not a JSON object"),
        (b"[" * 200_000, 400, "not a JSON object"),
        (b'"' + b"x" * 2**20 + b'"', 413, "longer than 1 MiB"),
    ],
)
def test_a_wish_that_makes_no_pair_is_refused_and_nothing_is_written(
    site: Site, wish: Any, status: int, sentence: str
) -> None:
    if isinstance(wish, dict):
        wish = {"of": site.get("/api/rows/1")["of"], **wish}
    told = site.ask("POST", "/api/rows/1", wish)
    assert told[0] == status and sentence in told[1]["error"]
    assert site.get("/api/rows/1")["state"] == "undecided" and decisions_file(site.pairs).read_bytes() == b""


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"Origin": "http://evil.example"}, "Only the review's own page"),
        ({"Origin": "null"}, "Only the review's own page"),
        ({"Origin": ""}, "Only the review's own page"),
        ({"Origin": "http://127.0.0.1:1"}, "Only the review's own page"),
        ({"Host": "evil.example"}, "for this machine alone"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, "for this machine alone"),
        ({"Host": "127.0.0.1.evil.example"}, "for this machine alone"),
        ({"Sec-Fetch-Site": "cross-site"}, "Another site's page"),
        ({"Sec-Fetch-Site": "same-site"}, "Another site's page"),
    ],
)
def test_other_sites_cannot_decide(site: Site, headers: dict[str, str], sentence: str) -> None:
    of = site.get("/api/rows/1")["of"]
    names = {name.replace("-", "_"): value for name, value in headers.items()}
    status, told, _ = site.ask("POST", "/api/rows/1", {"of": of, "action": "reject"}, **names)
    assert status == 403 and sentence in told["error"]
    assert site.get("/api/rows/1")["state"] == "undecided"


def test_other_sites_cannot_read(site: Site) -> None:
    for path in ("/", "/api/rows/1", "/picture/1"):
        assert site.ask("GET", path, Host=f"evil.example:{site.port}")[0] == 403
    for path in ("/api/rows/1", "/picture/1"):
        assert site.ask("GET", path, Sec_Fetch_Site="cross-site")[0] == 403
        headers = site.ask("GET", path)[2]
        assert "access-control-allow-origin" not in headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert site.ask("GET", "/", Host=f"localhost:{site.port}")[0] == 200
    assert site.ask("GET", "/", Host=f"[::1]:{site.port}")[0] == 200


def test_the_policy_allows_the_pages_own_script_and_nothing_else(site: Site) -> None:
    import base64
    import hashlib

    status, page, headers = site.ask("GET", "/")
    policy = headers["content-security-policy"]
    assert status == 200 and headers["x-content-type-options"] == "nosniff"
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
        own = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert re.search(rf"{directive} '([^;]*)'", policy)[1] == f"sha256-{own}"  # type: ignore[index]
    for word in ("default-src 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"):
        assert word in policy
    assert "unsafe" not in policy and "http" not in policy
    text = page.decode()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\son\w+=|\sstyle=|https?://|eval\(", text
    )


def test_pictures_are_served_by_number_and_only_from_their_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "secret.png")
    Image.new("RGB", (8, 8), (5, 5, 5)).save(root / "5.tiff")
    (root / "text.png").write_text("<svg onload=alert(1)>")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    made = [pair(1), pair(2, image="5.tiff"), pair(3, image="text.png"), pair(4, image="link.png")]
    made += [pair(5, image="../secret.png"), pair(6, image=str(tmp_path / "secret.png")), pair(7, image="gone.png")]
    Image.new("RGB", (32, 24)).save(root / "1.png")
    jsonl.write(root / "pairs.jsonl", made)
    with served(root / "pairs.jsonl") as site:
        status, data, headers = site.ask("GET", "/picture/1")
        assert (status, headers["content-type"], data) == (200, "image/png", (root / "1.png").read_bytes())
        assert site.ask("GET", "/picture/1", If_None_Match=headers["etag"])[0] == 304
        status, data, headers = site.ask("GET", "/picture/2")
        assert (status, headers["content-type"], data[:4]) == (200, "image/png", b"\x89PNG")
        for n, sentence in (
            (3, "not a picture"),
            (4, "outside the image folder"),
            (5, "outside the image folder"),
            (6, "outside the image folder"),
            (7, "cannot be read"),
            (8, "no such row"),
            (10**30, "no such row"),
        ):
            status, told, headers = site.ask("GET", f"/picture/{n}")
            assert status == 404 and "json" in headers["content-type"] and sentence in told["error"], n
        for path in ("/picture/../secret.png", "/picture/%2e%2e%2fsecret.png", "/picture/-1", "/pairs.jsonl"):
            assert site.ask("GET", path)[0] == 404


def test_the_page_stays_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match=r"stays on this machine and 0\.0\.0\.0 is not taken.*ssh -L 8090"):
        review(written(tmp_path, [pair(1)]), host="0.0.0.0")


def test_pairs_without_a_usable_row_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"id": "1", "image": "1.png", "prompt": "", "chosen": "a", "rejected": "b"}')
    with pytest.raises(MinipovidError, match=r"holds no usable pair; `minipovid pairs check` says why"):
        review(tmp_path / "pairs.jsonl", port=0, format="jsonl")
    assert not decisions_file(tmp_path / "pairs.jsonl").exists()


# --- the result


def test_apply_leaves_rejected_rows_out_and_says_who_decided(tmp_path: Path) -> None:
    path = written(tmp_path, [pair(n) for n in range(1, 8)])
    before = path.read_bytes()
    with served(path) as site:
        site.act(1, "accept")
        site.act(2, "reject")
        site.act(3, "edit", chosen=GOOD, rejected="A cow lies on the mat.")
        site.act(4, "swap", chosen=BAD, rejected=GOOD)
        site.act(5, "edit", chosen="A kitten lies there.", rejected=BAD)
    told = apply(path, tmp_path / "reviewed.jsonl")
    assert told._asdict() == {
        **{"pairs": 6, "accepted": 1, "edited": 2, "swapped": 1, "undecided": 2, "rejected": 1},
        **{"left_out": 0, "bad": 0, "stale": 0, "torn": 0},
    }
    made = {each.id: each for each in jsonl.read(tmp_path / "reviewed.jsonl") if isinstance(each, Pair)}
    assert list(made) == ["n1", "n3", "n4", "n5", "n6", "n7"]
    maker = {n: pair(n).source["rejected"] for n in range(1, 8)}
    assert made["n1"] == pair(1, source={**pair(1).source, "preference": "person"})
    assert made["n3"].rejected == "A cow lies on the mat." and made["n3"].spans == ()
    assert made["n3"].source == {"chosen": "ground truth", "rejected": "person", "preference": "person"}
    assert (made["n4"].chosen, made["n4"].rejected, made["n4"].spans) == (BAD, GOOD, ())
    assert made["n4"].source == {"chosen": maker[4], "rejected": "ground truth", "preference": "person"}
    assert made["n5"].source == {"chosen": "person", "rejected": maker[5], "preference": "person"}
    assert made["n5"].spans == pair(5).spans
    assert made["n6"] == pair(6) and path.read_bytes() == before
    decided = apply(path, tmp_path / "decided.jsonl", decided_only=True)
    assert (decided.pairs, decided.left_out) == (4, 2)


def test_apply_takes_pictures_along_when_the_file_lies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = written(tmp_path / "a", [pair(1), pair(2)])
    with served(path) as site:
        site.act(1, "accept")
    apply(path, tmp_path / "b" / "pairs.jsonl")
    made = [each for each in jsonl.read(tmp_path / "b" / "pairs.jsonl") if not isinstance(each, BadRow)]
    assert [(tmp_path / "b" / each.image).read_bytes() for each in made] == [
        (tmp_path / "a" / f"{n}.png").read_bytes() for n in (1, 2)
    ]
    (tmp_path / "a" / "2.png").unlink()
    with pytest.raises(MinipovidError, match=r"row 2 \(id n2\): there is no picture .*2\.png; reject the row"):
        apply(path, tmp_path / "c" / "pairs.jsonl")
    assert not (tmp_path / "c" / "pairs.jsonl").exists()


@pytest.mark.parametrize("to", ["pairs.jsonl", "pairs.jsonl.decisions.jsonl", "out.json"])
def test_apply_never_writes_over_what_it_reads(tmp_path: Path, to: str) -> None:
    path = written(tmp_path, [pair(1)])
    with pytest.raises(MinipovidError, match=r"There is no .*decisions\.jsonl; decide with"):
        apply(path, tmp_path / to)
    with served(path) as site:
        site.act(1, "accept")
    with pytest.raises(MinipovidError, match=r"must be another file, and end in \.jsonl"):
        apply(path, tmp_path / to)


def test_a_server_that_is_killed_keeps_every_decision_that_it_answered(tmp_path: Path) -> None:
    path = written(tmp_path, [pair(n) for n in range(1, 31)])
    program = f"from minipovid.pairs.review import review; review({str(path)!r}, port=0)"
    child = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
    site = Site(urlsplit(url).port or 0, path)
    for n in range(1, 21):
        site.act(n, "reject" if n % 2 else "accept")
    child.kill()
    child.wait()
    with served(path) as again:
        counts = again.get("/api/state")["counts"]
    assert (counts["accepted"], counts["rejected"], counts["undecided"]) == (10, 10, 10)


def test_ctrl_c_ends_the_server_in_peace(tmp_path: Path) -> None:
    import signal

    path = written(tmp_path, [pair(1)])
    program = f"from minipovid.pairs.review import review; review({str(path)!r}, port=0); print('ended')"
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    out, errors = child.communicate(timeout=30)
    assert (child.returncode, out.strip(), errors) == (0, "ended", "")


def test_sigterm_leaves_no_temporary_folder(tmp_path: Path) -> None:
    """The rows lie in one while the page is served."""
    path = written(tmp_path, [pair(1)])
    (tmp_path / "temporary").mkdir()
    program = f"from minipovid.pairs.review import review; review({str(path)!r}, port=0)"
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert list((tmp_path / "temporary").iterdir())
    child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == 143 and not list((tmp_path / "temporary").iterdir())
