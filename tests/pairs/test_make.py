"""Making pairs against a teacher that behaves badly: every row ends as a pair or a recorded failure, asked once."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bad_server import KITE, BadServer
from PIL import Image

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.images.embedded import embedded
from minipovid.inference.remote import Limits, Prices, Usage
from minipovid.inference.remote.client import Teacher
from minipovid.inference.remote.retry import Pause
from minipovid.inference.remote.server import Server
from minipovid.pairs import make as making
from minipovid.pairs.formats import jsonl
from minipovid.pairs.make.makers import MakerInputs, Outcome, povid
from minipovid.pairs.pair import BadRow, Pair, Seed

KEY = "sk-very-secret-0123456789"
ANSWER = "A red boat number {n} lies on the sand beside two people."


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        Image.new("RGB", (40, 30), (80 * n, 0, 0)).save(folder / f"{n}.png")
    return folder


def seeds(count: int) -> list[Seed | BadRow]:
    return [Seed(str(n), f"{n % 3}.png", f"Describe row {n}.", ANSWER.format(n=n)) for n in range(count)]


def teacher(server: BadServer, **settings: Any) -> Teacher:
    settings = {"timeout_s": 30, "concurrency": 4, "pause": Pause(first=0.02, cap=0.05)} | settings
    return Teacher("bad", Server(server.url, KEY), **settings)


def maker(server: BadServer, **settings: Any) -> povid.Injector:
    return povid.Injector(teacher(server, **settings))


def run(rows: Sequence[Seed | BadRow], by: Any, to: Path, photos: Path) -> making.MakeCounts:
    return making.make(lambda: rows, by, to, root=photos, progress=False)


def pairs_of(to: Path) -> list[Pair]:
    pairs = list(jsonl.read(to / "pairs.jsonl"))
    assert all(isinstance(pair, Pair) for pair in pairs)
    return [pair for pair in pairs if isinstance(pair, Pair)]


def failures_of(to: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (to / "failures.jsonl").read_text("utf-8").splitlines()]


# What each row meets, and how often it must then be asked; rows that heal, and rows that fail with this reason.
HEALED = {
    "429 with Retry-After": (["429"], 2),
    "429 in milliseconds": (["429ms", "429ms"], 3),
    "500": (["500", "500"], 3),
    "503": (["503"], 2),
    "cut": (["cut"], 2),
    "half an answer": (["half"], 2),
    "a gateway's page": (["html"], 2),
    "no choices": (["no_choices"], 2),
    "malformed": (["malformed"], 2),
    "a comma too many": (["comma"], 1),
    "prose": (["prose"], 2),
    "cut off": (["cut_off"], 2),
    "filtered": (["filtered"], 2),
    "refusal": (["refusal"], 2),
    "refusal in JSON": (["refusal_in_json"], 2),
    "refusal field": (["refusal_field"], 2),
    "meta-talk": (["meta"], 2),
    "empty": (["empty"], 2),
    "null": (["null"], 2),
    "empty answer": (["empty_rejected"], 2),
    "the same": (["same"], 2),
    "French": (["french"], 2),
    "Russian": (["russian"], 2),
    "no such span": (["no_span"], 2),
    "a span that is no change": (["old_span"], 2),
    "too long": (["long"], 2),
    "duplicate": (["duplicate"], 2),
    "half a character": (["surrogate"], 2),
    "a list": (["list"], 2),
    "wrong types": (["wrong_type"], 2),
    "all at once": (["500", "refusal", "cut", "french", "429ms"], 6),
}
FAILED = {
    "malformed": (["malformed"] * 9, 3, "the reply is not JSON"),
    "refusal": (["refusal"] * 9, 3, "the reply holds no JSON object"),
    "refusal in JSON": (["refusal_in_json"] * 9, 3, "refuses or talks about the task"),
    "empty": (["empty"] * 9, 3, "the reply is empty"),
    "French": (["french"] * 9, 3, "keeps too few of the words"),
    "Russian": (["russian"] * 9, 3, "another script (CYRILLIC in place of LATIN)"),
    "no such span": (["no_span"] * 9, 3, "'an elephant' does not occur"),
    "500 for ever": (["500"] * 9, 4, "no answer in 4 attempts; the last: HTTP 500: "),
    "400": (["400"] * 9, 1, "HTTP 400: "),
}


def test_a_server_that_hangs(tmp_path: Path, photos: Path) -> None:
    """Row 0 once, row 1 for ever. Nobody else waits beside them: on a busy machine a good answer may take a second."""
    with BadServer({"0": ["hang"], "1": ["hang"] * 9}) as server:
        counts = run(seeds(2), maker(server, attempts=2, timeout_s=2), tmp_path / "to", photos)
        assert (server.asked("0"), server.asked("1"), counts.pairs) == (2, 2, 1)
    (failure,) = failures_of(tmp_path / "to")
    assert "no answer in 2 attempts; the last: Request timed out." in str(failure)


def test_every_row_ends_as_a_pair_or_a_failure(tmp_path: Path, photos: Path) -> None:
    """Must show 1: nothing lost, nothing asked twice, the counts add up, and no key anywhere."""
    script = [["good"], *(behaviours for behaviours, *_ in (*HEALED.values(), *FAILED.values()))]
    rows = [*seeds(len(script)), BadRow("row 99", "the answer is empty")]
    with BadServer({str(n): behaviours for n, behaviours in enumerate(script)}) as server:
        counts = run(rows, maker(server, attempts=4, cache=tmp_path / "a.sqlite"), tmp_path / "to", photos)
        asked = [1, *(times for _, times in HEALED.values()), *(times for _, times, _ in FAILED.values())]
        assert {n: server.asked(str(n)) for n in range(len(script))} == dict(enumerate(asked))
        assert counts.this_run.requests == len(server.seen) == sum(asked)
    assert (counts.rows, counts.pairs, counts.failures, counts.left) == (len(rows), 1 + len(HEALED), len(FAILED) + 1, 0)
    good, bad = pairs_of(tmp_path / "to"), failures_of(tmp_path / "to")
    assert [pair.id for pair in good] == [str(n) for n in range(1 + len(HEALED))]  # in the seeds' order
    assert all(pair.rejected[slice(*pair.spans[0][:2])] == KITE for pair in good)
    assert [row.get("id") for row in bad] == [*map(str, range(1 + len(HEALED), len(script))), None]
    for row, (_, times, reason) in zip(bad, FAILED.values(), strict=False):
        assert reason in row["reasons"][-1]
        assert len(row["reasons"]) == (3 if times == 3 else 1)
    assert bad[-1] == {"where": "row 99", "reasons": ["the answer is empty"]}


def test_a_rerun_asks_nothing_that_was_answered(tmp_path: Path, photos: Path) -> None:
    """Neither with the journal nor, in another folder, with the answers alone; trouble of the server may heal."""
    script = {"1": ["refusal"] * 3, "2": ["500"] * 4, "3": ["malformed"]}
    with BadServer(script) as server:
        for to, sent in (("a", 11), ("a", 1), ("b", 0)):
            before = len(server.seen)
            by = maker(server, attempts=4, cache=tmp_path / "a.sqlite")
            counts = run(seeds(5), by, tmp_path / to, photos)
            assert len(server.seen) - before == counts.this_run.requests == sent
            assert (counts.pairs, counts.failures) == ((3, 2) if sent == 11 else (4, 1))
            assert counts.usage.tokens == 110 * (8 if sent == 0 or sent == 1 else 7)
    assert (tmp_path / "a/pairs.jsonl").read_bytes() == (tmp_path / "b/pairs.jsonl").read_bytes()


def test_the_teacher_is_told_what_was_wrong(tmp_path: Path, photos: Path) -> None:
    with BadServer({"0": ["no_span", "empty"]}) as server:
        run(seeds(1), maker(server), tmp_path / "to", photos)
        first, second, third = (each.body["messages"] for each in server.seen)
    assert [message["role"] for message in third] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert second[:2] == first and third[:4] == second
    assert "'an elephant' does not occur in the rewritten answer" in second[3]["content"]
    assert third[4]["content"] == "(nothing)" and "the reply is empty" in third[5]["content"]
    assert [part["type"] for part in first[1]["content"]] == ["image_url", "text"]


def test_a_teacher_that_only_reads_gets_no_picture(tmp_path: Path, photos: Path) -> None:
    with BadServer() as server:
        run(seeds(1), povid.Injector(teacher(server), povid.Options(picture=False)), tmp_path / "to", photos)
        assert server.seen[0].body["messages"][1]["content"].endswith(ANSWER.format(n=0))


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("Describe the image.", "Yes, it is likely a zoo.", "description"),
        ("What is in the picture?", "A cat.", "description"),
        ("What colour is the cat?", "Black.", "description"),
        ("How many cats are there?", "Two.", "description"),
        ("Where is the cat?", "On the sofa, because it likes it.", "reasoning"),
        ("Is there a cat?", "Yes.", "reasoning"),
        ("Why is the street wet?", "It rained.", "reasoning"),
        ("What might happen next?", "The ball falls.", "reasoning"),
        ("How can you tell it is winter?", "Snow lies.", "reasoning"),
        ("Which season is it?", "The snow suggests winter.", "reasoning"),
    ],
)
def test_the_prompt_fits_question_and_answer(question: str, answer: str, kind: str) -> None:
    assert povid.kind_of(question, answer) == kind


def test_the_prompts_are_whole_and_named_in_the_pair(tmp_path: Path, photos: Path) -> None:
    rows = [
        Seed("a", "0.png", "Describe row a.", ANSWER.format(n=0), "person"),
        Seed("b", "0.png", "Why row b?", "It is a {question} of {answer}."),
    ]
    with BadServer() as server:
        run(rows, maker(server, concurrency=1), tmp_path / "to", photos)
        told = {each.row: each.body["messages"] for each in server.seen}
    assert "rests on something that is seen" in told["b"][0]["content"]
    assert told["b"][1]["content"][1]["text"].endswith("\n\nCorrect answer:\nIt is a {question} of {answer}.")
    assert [dict(pair.source) for pair in pairs_of(tmp_path / "to")] == [
        {"chosen": "person", "rejected": "povid description.v1, bad"},
        {"chosen": "ground truth", "rejected": "povid reasoning.v1, bad"},
    ]
    assert all("=== " not in part for version in povid.PROMPTS.values() for part in povid.prompt(version))


def test_an_unknown_kind_of_prompt_is_refused() -> None:
    with pytest.raises(MinipovidError, match="no kind 'wild' of prompt; known: auto, description, reasoning"):
        making.maker("povid", MakerInputs(lambda: [], lambda: pytest.fail("asked")), {"kind": "wild"})


def test_makers_are_found_on_the_shelf() -> None:
    names = shelf.names("pairs.make.makers")
    assert {"povid", "rule"} <= set(names)
    with pytest.raises(MinipovidError, match=f"There is no 'jsonl' among the makers. Known: {', '.join(names)}."):
        making.maker("jsonl", MakerInputs(lambda: [], lambda: pytest.fail("asked")))


@pytest.mark.parametrize(("limits", "pairs"), [(Limits(requests=7), 7), (Limits(tokens=780), 7)])
def test_a_budget_leaves_rows_for_a_later_run(tmp_path: Path, photos: Path, limits: Limits, pairs: int) -> None:
    """Must show 3: of 20 rows at 110 tokens, seven; the rest when there is more to spend."""
    with BadServer() as server:
        counts = run(seeds(20), maker(server, limits=limits), tmp_path / "to", photos)
        assert (counts.pairs, counts.failures, counts.left, len(server.seen)) == (pairs, 0, 20 - pairs, pairs)
        assert "the limit of" in counts.stopped
        assert len(pairs_of(tmp_path / "to")) == pairs
        counts = run(seeds(20), maker(server), tmp_path / "to", photos)
        assert (counts.pairs, counts.left, counts.stopped, len(server.seen)) == (20, 0, "", 20)
        assert (counts.this_run.requests, counts.usage.requests) == (20 - pairs, 20)


def test_a_wrong_key_ends_it_with_all_that_is_finished_written(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(povid.Injector, "workers", 1)  # two would wait for one place, and row 4 might overtake row 3
    with BadServer({"4": ["401"]}) as server:
        with pytest.raises(MinipovidError, match=r"does not accept the key; .* What was finished is kept") as caught:
            run(seeds(9), maker(server, concurrency=1), tmp_path / "to", photos)
        assert KEY not in str(caught.value)
        told = json.loads((tmp_path / "to/make.json").read_text())
        answered = [seen.row for seen in server.seen if seen.behaviour == "good"]
        assert sorted(pair.id for pair in pairs_of(tmp_path / "to")) == sorted(answered)
        assert told["pairs"] == len(answered) == 4 and told["rows"] == told["pairs"] + told["left"] == 9


def test_make_json_tells_who_made_it_and_what_it_took(tmp_path: Path, photos: Path) -> None:
    with BadServer({"1": ["empty"], "2": ["429ms"]}) as server:
        counts = run(seeds(3), maker(server, prices=Prices(2, 30)), tmp_path / "to", photos)
        host = server.url.removeprefix("http://")
    told = json.loads((tmp_path / "to/make.json").read_text())
    assert told == json.loads(json.dumps({**counts.as_dict(), "maker": told["maker"]}))
    assert told["maker"] == {
        **{"server": host, "model": "bad", "temperature": 0.7, "max_tokens": 1024, "maker": "povid"},
        **{"prompts": ["description.v1", "reasoning.v1"], "kind": "auto", "picture": True},
    }
    assert (told["asked_again"], told["kinds"]) == (1, {"object": 3})
    assert told["usage"] == {"requests": 4, "prompt_tokens": 400, "answer_tokens": 40, "estimated": 0}
    assert told["this_run"]["requests"] == 5
    assert told["cost"] == told["cost_of_this_run"] == pytest.approx(4 * 0.0005)


def test_duplicate_answers_are_flagged(tmp_path: Path, photos: Path) -> None:
    """Rows 0 and 2 ask the same of pictures that differ."""
    rows = [Seed(str(n), f"{n}.png", "Describe.", ANSWER.format(n=n % 2)) for n in range(3)]
    with BadServer() as server:
        counts = run(rows, maker(server), tmp_path / "to", photos)
    assert (counts.pairs, counts.duplicates) == (3, [("2", "0")])


def test_rows_that_are_one_question_are_asked_once(tmp_path: Path, photos: Path) -> None:
    rows = [Seed(str(n), "0.png", "Describe.", ANSWER.format(n=0)) for n in range(6)]
    with BadServer(seconds=0.05) as server:
        assert run(rows, maker(server), tmp_path / "to", photos).pairs == 6
        assert len(server.seen) == 1


def test_a_picture_that_cannot_be_sent_is_a_failure_until_it_can(tmp_path: Path, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    rows = [seeds(1)[0], *(Seed(name, name, "Describe.", "A boat.") for name in ("none.png", "bad.png", "../x.png"))]
    with BadServer() as server:
        counts = run(rows, maker(server), tmp_path / "to", photos)
        assert (counts.pairs, counts.failures, len(server.seen)) == (1, 3, 1)
        reasons = [row["reasons"][0] for row in failures_of(tmp_path / "to")]
        assert "There is no picture" in reasons[0] and "bad.png" in reasons[1] and "lies outside" in reasons[2]
        Image.new("RGB", (8, 8)).save(photos / "none.png")
        assert run(rows, maker(server), tmp_path / "to", photos).pairs == 2


def test_a_picture_from_inside_a_data_file_gets_a_file(tmp_path: Path, photos: Path) -> None:
    inside = embedded((photos / "1.png").read_bytes())
    assert inside is not None
    with BadServer() as server:
        run([Seed("a", inside, "Describe.", ANSWER.format(n=1))], maker(server), tmp_path / "to", photos)
    (pair,) = pairs_of(tmp_path / "to")
    assert (tmp_path / "to/images" / pair.image).read_bytes() == inside.data


def test_an_estimate_sends_nothing_and_counts_what_is_left(tmp_path: Path, photos: Path) -> None:
    """A row: task, question and answer by four bytes a token, a picture of one tile (255), four for each turn."""
    rows = [*seeds(5), BadRow("row 9", "no")]
    with BadServer({"3": ["500"] * 9}) as server:
        by = maker(server, prices=Prices(2, 30), attempts=1)
        told = making.estimate(lambda: rows, by, tmp_path / "to", root=photos)
        assert not server.seen and not (tmp_path / "to").exists()
        assert (told.rows, told.finished, told.requests) == (6, 0, 5)
        task, asked = povid.prompt("description.v1"), f"Question:\nDescribe row 0.\n\nCorrect answer:\n{ANSWER}"
        one = 4 + len(task.task.encode()) // 4 + 4 + len(asked.format(n=0).encode()) // 4 + 255
        assert told.prompt_tokens == 5 * one
        assert told.cost == pytest.approx((told.prompt_tokens * 2 + told.answer_tokens * 30) / 1e6)
        run(rows, by, tmp_path / "to", photos)
        left = making.estimate(lambda: rows, by, tmp_path / "to", root=photos)
        assert (left.finished, left.requests, left.prompt_tokens) == (4, 1, one)


def test_a_journal_that_was_cut_short_or_spoilt_loses_only_those_rows(tmp_path: Path, photos: Path) -> None:
    with BadServer() as server:
        run(seeds(4), maker(server, concurrency=1), tmp_path / "to", photos)
        path = tmp_path / "to" / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + b"\x00\x00nonsense\n" + lines[2] + lines[3][:-9])
        assert run(seeds(4), maker(server), tmp_path / "to", photos).pairs == 4
        assert len(server.seen) == 6
        assert run(seeds(4), maker(server), tmp_path / "to", photos).pairs == 4
        assert len(server.seen) == 6


def test_another_teacher_begins_anew_in_the_same_folder(tmp_path: Path, photos: Path) -> None:
    with BadServer() as server:
        run(seeds(2), maker(server), tmp_path / "to", photos)
        run(seeds(2), maker(server, temperature=0.0), tmp_path / "to", photos)
        assert len(server.seen) == 4 and len(pairs_of(tmp_path / "to")) == 2


class Broken:
    """A maker with a mistake in it, on the third seed."""

    workers = 2

    def identity(self) -> dict[str, Any]:
        return {}

    def stop(self) -> None: ...

    def spent(self) -> Usage:
        return Usage()

    def cost(self, usage: Usage) -> None:
        return None

    def make(self, seed: Seed, picture: Path) -> Outcome:
        if seed.id == "2":
            raise ZeroDivisionError("a mistake")
        return Outcome(None, ("no",))


def test_a_mistake_in_a_maker_is_not_swallowed(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        run(seeds(50), Broken(), tmp_path / "to", photos)


def test_a_seed_file_that_breaks_off_is_told_and_what_came_before_is_kept(tmp_path: Path, photos: Path) -> None:
    def breaking() -> Iterator[Seed | BadRow]:
        yield from seeds(3)
        raise MinipovidError("the file ends in the middle")

    with BadServer() as server:
        with pytest.raises(MinipovidError, match="in the middle"):
            making.make(breaking, maker(server), tmp_path / "to", root=photos, progress=False)
        assert run(seeds(3), maker(server), tmp_path / "to", photos).pairs == 3
        assert len(server.seen) == 3


def test_plain_lines_tell_the_progress_where_there_is_no_terminal(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "minipovid")
    monkeypatch.setattr("minipovid.pairs.make.progress.EVERY", 0.0)
    with BadServer() as server:
        by = maker(server, prices=Prices(2, 30), concurrency=1)
        making.make(lambda: seeds(3), by, tmp_path / "to", root=photos)
    assert "3 of 3 rows" in caplog.text and "3 requests, cost 0.00" in caplog.text


PROGRAM = """
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from minipovid.pairs import make as making
from minipovid.pairs.make.makers import povid
from minipovid.pairs.pair import Seed
from minipovid.inference.remote.client import Teacher
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored
to, photos, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def seeds():
    for n in range(rows):
        yield Seed(str(n), f"{n % 3}.png", f"Describe row {n}.", f"A red boat number {n} lies beside two people.")
maker = povid.Injector(Teacher("bad", cache=to / "answers.sqlite", concurrency=8, timeout_s=5, attempts=2))
print(making.make(seeds, maker, to, root=photos))
"""


def program(server: BadServer, to: Path, photos: Path, rows: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "MINIPOVID_TEACHER_BASE_URL": server.url,
        "MINIPOVID_TEACHER_API_KEY": KEY,
        "OPENAI_LOG": "debug",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", PROGRAM, str(to), str(photos), str(rows)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_run_goes_on_and_repeats_no_finished_request(tmp_path: Path, photos: Path) -> None:
    """Must show 2, small: what had an answer in the cache when SIGKILL came is not asked again."""
    with BadServer(seconds=0.05) as server:
        killed = program(server, tmp_path / "to", photos, 100)
        wait_for(lambda: len(server.seen) > 40)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        time.sleep(0.2)
        with sqlite3.connect(tmp_path / "to/answers.sqlite") as cache:
            kept = cache.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
        assert kept >= 20 and not (tmp_path / "to/pairs.jsonl").exists()
        before = len(server.seen)
        assert program(server, tmp_path / "to", photos, 100).wait(60) == 0
        asked = {each.row for each in server.seen[:before]}
        assert len(server.seen) - before == 100 - kept
        assert len(asked) - kept <= 8  # those in the air
    assert [pair.id for pair in pairs_of(tmp_path / "to")] == [str(n) for n in range(100)]


def test_ctrl_c_keeps_everything(tmp_path: Path, photos: Path) -> None:
    """Requests on their way come home; the rerun asks for the rest alone."""
    with BadServer(seconds=0.05) as server:
        stopped = program(server, tmp_path / "to", photos, 100)
        wait_for(lambda: len(server.seen) > 30)
        stopped.send_signal(signal.SIGINT)
        _, said = stopped.communicate(timeout=30)
        assert said.rstrip().endswith("KeyboardInterrupt") and stopped.returncode != 0
        told = json.loads((tmp_path / "to/make.json").read_text())
        assert told["stopped"] == "interrupted" and told["rows"] == 100 == told["pairs"] + told["left"]
        assert told["pairs"] == len(server.seen) == len(pairs_of(tmp_path / "to"))
        assert program(server, tmp_path / "to", photos, 100).wait(60) == 0
        assert len(server.seen) == 100 == len(pairs_of(tmp_path / "to"))


def test_the_key_is_in_no_file_and_no_output(tmp_path: Path, photos: Path) -> None:
    """Must show 3: from a server that quotes it, with the client's own debug log switched on."""
    with BadServer({"1": ["400"] * 2, "2": ["500"] * 2, "29": ["401"]}) as server:
        out, err = program(server, tmp_path / "to", photos, 30).communicate(timeout=30)
        assert server.seen[0].key == f"Bearer {KEY}"
    written = [path for path in (tmp_path / "to").rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"pairs.jsonl", "failures.jsonl", "make.json", "journal.jsonl"}
    assert "***" in (tmp_path / "to/failures.jsonl").read_text() and "does not accept the key" in err
    assert KEY not in out + err
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)
