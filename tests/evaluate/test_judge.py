"""A judge on loopback that answers well, badly, never, or with several ratings: what is asked, kept and scored."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer
from minipovid.evaluate.benchmarks.object_halbench import CocoNames
from minipovid.evaluate.judge import judged
from minipovid.inference.backends import Question
from minipovid.inference.remote import Limits, Prices, Usage
from minipovid.inference.remote.client import Teacher
from minipovid.inference.remote.retry import Pause
from minipovid.inference.remote.server import Server

KEY = "sk-very-secret-0123456789"
TESTS = Path(__file__).parent


def teacher(server: BadServer, **settings: Any) -> Teacher:
    settings = {"timeout_s": 30, "concurrency": 4, "pause": Pause(first=0.01, cap=0.02), "attempts": 2} | settings
    return Teacher("asked-for", Server(server.url, KEY), **settings)


def answers(count: int, **truth: Any) -> list[Answer]:
    """About "row 0", "row 1", ...: the server knows them by that."""
    return [
        Answer(Question(str(at), f"{at}.jpg", "?", {"question": f"row {at}?", **truth}, 9), "There is a dog here.")
        for at in range(count)
    ]


def mmhal(count: int) -> list[Answer]:
    return answers(count, type="other", content="Dog", answer="Two.")


def mmvet(count: int) -> list[Answer]:
    return answers(count, answer="two", capabilities=["ocr"])


def llava(count: int) -> list[Answer]:
    return answers(count, category="conv", context="A dog.", reference="Two dogs.")


def scored(name: str, mode: str, found: Sequence[Answer]) -> tuple[dict[str, float], list[str]]:
    benchmark = benchmarks.build(name, {"mode": mode})
    sheet = benchmark.grade(found)
    return benchmark.figures(benchmarks.total(sheet.units)), [mark.verdict for mark in sheet.marks]


def ask(
    name: str, asked: Teacher, about: Sequence[Answer], mode: str = "official"
) -> tuple[list[Answer], dict[str, Any]]:
    return judged(benchmarks.build(name, {"mode": mode}), about, asked, name)  # type: ignore[arg-type]


# --- well, badly, never, with several ratings ---


BEHAVED = {
    "0": ["say Good.\nRating: 6"],
    "1": ["say It may be Rating: 5, or Rating: 2"],  # several: official 0
    "2": ["say I like it."],  # none: official 0
    "3": ["500", "500"],  # never
    "4": ["429", "say **Rating:** 4"],  # late, and in bold: official 0
    "5": ["refusal_field"],  # the server says that it refused: no judgement
    "6": ["filtered"],
    "7": ["hang", "cut"],
    "8": ["say Rating: 3"],
    "9": ["empty"],  # a reply, if an empty one: official 0
    "10": ["400"],
}


def test_every_kind_of_judge_is_counted_as_what_it_is() -> None:
    """Eleven answers. No reply to 3, 5, 6, 7, 10: they count nowhere.

    Official: 6, 0, 0, 0, 3, 0 for 0, 1, 2, 4, 8, 9: mean 1.5, four of six below three. Robust reads 4 as well, and
    leaves 1, 2 and 9 out: (6 + 4 + 3) / 3.
    """
    with BadServer(BEHAVED) as server:
        found, by = ask("mmhal", teacher(server, timeout_s=2), mmhal(11))
    assert [each.question.id for each in found] == [str(at) for at in range(11)]
    assert [each.judgement is None for each in found] == [at in (3, 5, 6, 7, 10) for at in range(11)]
    figures, verdicts = scored("mmhal", "official", found)
    assert figures["score"] == 1.5 and figures["hallucination_rate"] == pytest.approx(4 / 6)
    wanted = ["6", UNPARSED, UNPARSED, FAILED, UNPARSED, FAILED, FAILED, FAILED, "3", UNPARSED, FAILED]
    assert verdicts == wanted
    figures, verdicts = scored("mmhal", "robust", found)
    assert figures["score"] == pytest.approx(13 / 3) and verdicts == [*wanted[:4], "4", *wanted[5:]]
    assert by["model"] == "bad" and by["asked"] == "asked-for"
    assert len(by["no_reply"]) == 5 and any("HTTP 400" in why for why in by["no_reply"])


def test_a_judge_that_never_replies_scores_nothing() -> None:
    with BadServer({"*": ["500"] * 99}) as server:
        found, by = ask("llava_bench", teacher(server, attempts=1), llava(5))
    figures, verdicts = scored("llava_bench", "official", found)
    assert verdicts == [FAILED] * 5 and all(math.isnan(value) for value in figures.values())
    assert by["model"] == "asked-for"


def test_minus_one_is_for_unread_replies_alone() -> None:
    """(8, 4), unread, and no reply: means (8 - 1) / 2 = 3.5 and (4 - 1) / 2 = 1.5, 42.9 %."""
    with BadServer({"0": ["say 8 4"], "1": ["say 8 / 4"], "2": ["500", "500"]}) as server:
        found, _ = ask("llava_bench", teacher(server), llava(3))
        bodies = [each.body for each in server.seen if each.row == "0"]
    assert scored("llava_bench", "official", found) == (
        {"score": 42.9, "reference": 35.0, "model": 15.0, "conv": 42.9},
        ["8 : 4", UNPARSED, FAILED],
    )
    assert (bodies[0]["temperature"], bodies[0]["max_tokens"]) == (0.2, 1024) and "response_format" not in bodies[0]
    assert [each["role"] for each in bodies[0]["messages"]] == ["system", "user"]


def test_a_judge_that_is_not_understood_is_asked_again() -> None:
    """MM-Vet: row 0 is understood at the third attempt, row 1 never, after five; each at its temperature."""
    with BadServer({"0": ["say well", "say  0.5", "say 0.7"], "1": ["say no"] * 9, "2": ["say 1.0"]}) as server:
        found, by = ask("mmvet", teacher(server), mmvet(3))
        heat = {row: [each.body["temperature"] for each in server.seen if each.row == row] for row in "012"}
        assert {each.body["max_tokens"] for each in server.seen} == {3}
    assert heat == {"0": [0.0, 0.0, 0.5], "1": [0.0, 0.0, 0.5, 1.0, 1.5], "2": [0.0]}
    assert [each.judgement for each in found] == ["0.7", "no", "1.0"]
    assert scored("mmvet", "official", found) == (
        {"total": pytest.approx(1.7 / 3), "ocr": pytest.approx(1.7 / 3)},
        ["0.7", UNPARSED, "1"],
    )
    assert scored("mmvet", "robust", found)[0] == {"total": 0.85, "ocr": 0.85}
    assert by["requests"] == 9 and (by["prompt_tokens"], by["answer_tokens"]) == (900, 90)


def test_a_retry_in_the_same_words_is_asked_really(tmp_path: Path) -> None:
    """Object HalBench asks the same again: the cache must not answer with the reply that was not understood."""
    (tmp_path / "names.txt").write_text("dog, puppy\ncat\n")
    about = answers(2, names=CocoNames.read(tmp_path / "names.txt"), there=["cat"])
    short = Answer(about[1].question, "A dog.")
    with BadServer({"0": ["say ```", "say Sure!", 'say ["dog"]']}) as server:
        for _ in range(2):
            asked = teacher(server, cache=tmp_path / "c.sqlite")
            found, _by = ask("object_halbench", asked, [about[0], short])
            asked.close()
            assert [each.judgement for each in found] == ['["dog"]', None]
            assert Counter(each.row for each in server.seen) == {"0": 3}
    figures, verdicts = scored("object_halbench", "official", found)
    assert verdicts == ["1 of 1 absent", "0 of 0 absent"] and figures["chair_s"] == 0.5


def test_a_trouble_between_attempts_is_no_judgement() -> None:
    """What the next reply had been, nobody knows: the unread one is not scored."""
    with BadServer({"0": ["say well", "500", "500"]}) as server:
        found, _ = ask("mmvet", teacher(server), mmvet(1))
    assert found[0].judgement is None


def test_a_refusal_is_asked_again_where_the_protocol_does() -> None:
    with BadServer({"0": ["refusal_field", "say 0.5"]}) as server:
        found, _ = ask("mmvet", teacher(server), mmvet(1))
    assert found[0].judgement == "0.5"


# --- what is kept ---


def test_a_rerun_asks_nothing_twice(tmp_path: Path) -> None:
    """But for those whom nobody replied about: they are asked again, and only they."""
    script = {str(at): ["say Rating: 5"] for at in range(8)} | {"3": ["500", "500", "say Rating: 1"], "5": ["say no"]}
    with BadServer(script) as server:
        runs = []
        for _ in range(3):
            asked = teacher(server, cache=tmp_path / "c.sqlite")
            runs.append(ask("mmhal", asked, mmhal(8)))
            asked.close()
        assert Counter(each.row for each in server.seen) == {**{str(at): 1 for at in range(8)}, "3": 3}
    (first, _), (second, by), (third, last) = runs
    assert first[3].judgement is None and second[3].judgement == "Rating: 1" and third == second
    assert first[:3] + first[4:] == second[:3] + second[4:]
    assert (by["requests"], last["requests"]) == (1, 0) and last["model"] == "bad"


def test_another_benchmark_prompt_or_judge_asks_anew(tmp_path: Path) -> None:
    with BadServer({"*": ["say Rating: 5"] * 9}) as server:
        (tmp_path / "own.txt").write_text("{} {} {} {}")
        asked = teacher(server, cache=tmp_path / "c.sqlite")
        ask("mmhal", asked, mmhal(1))
        own = benchmarks.build("mmhal", {"prompt": str(tmp_path / "own.txt")})
        judged(own, mmhal(1), asked, "mmhal")  # type: ignore[arg-type]
        other = Teacher("other", Server(server.url, KEY), cache=tmp_path / "c.sqlite")
        ask("mmhal", other, mmhal(1))
        assert len(server.seen) == 3
        ask("mmhal", other, mmhal(1), mode="robust")  # read otherwise, asked the same
        assert len(server.seen) == 3


def test_a_budget_ends_it_with_what_is_finished_kept(tmp_path: Path) -> None:
    with BadServer({"*": ["say Rating: 5"] * 9}) as server:
        limited = teacher(server, cache=tmp_path / "c.sqlite", limits=Limits(requests=5))
        with pytest.raises(MinipovidError) as caught:
            ask("mmhal", limited, mmhal(12))
        assert str(caught.value) == (
            "5 of 12 answers of mmhal are judged: the limit of 5 requests is reached. They are kept; the same command "
            "goes on from there."
        )
        limited.close()
        found, by = ask("mmhal", teacher(server, cache=tmp_path / "c.sqlite", prices=Prices(10, 100)), mmhal(12))
        assert len(server.seen) == 12 and {each.judgement for each in found} == {"Rating: 5"}
    assert by["requests"] == 7 and by["cost"] == pytest.approx(7 * (100 * 10 + 10 * 100) / 1e6)


def test_a_key_that_is_wrong_ends_it_at_once() -> None:
    with BadServer({"*": ["401"] * 99}) as server:
        with pytest.raises(
            MinipovidError, match="0 of 30 answers of mmhal are judged: The teacher .* does not accept"
        ) as e:
            ask("mmhal", teacher(server), mmhal(30))
        assert len(server.seen) <= 4 and KEY not in str(e.value)


def test_what_is_spent_is_this_benchmarks_alone() -> None:
    with BadServer({"*": ["say Rating: 5"] * 9}) as server:
        asked = teacher(server)
        ask("mmhal", asked, mmhal(3))
        _, by = ask("mmhal", asked, mmhal(5))
    assert by["requests"] == 2 and asked.spent() == Usage(5, 500, 50)


def test_many_are_asked_at_once() -> None:
    with BadServer({"*": ["say Rating: 5"] * 99}, seconds=0.05) as server:
        ask("mmhal", teacher(server, concurrency=3), mmhal(12))
        assert server.most_flying == 3


INTERRUPTED = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/../helpers"]
from test_judge import *
pause = Pause(first=60, draw=lambda low, high: high)
asked = Teacher("asked-for", Server({url!r}, KEY), cache=Path({cache!r}), concurrency=2, pause=pause)
print("ready", flush=True)
try:
    ask("mmhal", asked, mmhal(40))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def _hears_ctrl_c() -> None:
    """Even where the shell that runs the tests ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_what_came_and_a_kill_as_well(tmp_path: Path) -> None:
    """Both in the middle of forty answers; the third run asks what is left, each question once in all.

    Row 0 is out of order twice, and waited for by a minute: Ctrl-C wakes whoever waits.
    """
    script = {"*": ["say Rating: 5"] * 3, "0": ["503", "503", "say Rating: 5"]}
    with BadServer(script, seconds=0.1) as server:
        code = INTERRUPTED.format(tests=str(TESTS), url=server.url, cache=str(tmp_path / "c.sqlite"))
        for number, wanted in ((signal.SIGINT, 8), (signal.SIGKILL, 20)):
            child = subprocess.Popen(
                [sys.executable, "-c", code],
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=_hears_ctrl_c,
            )
            while len(server.answered) < wanted:
                threading.Event().wait(0.01)
            os.kill(child.pid, number)
            began = time.monotonic()
            said, _ = child.communicate(timeout=30)
            assert time.monotonic() - began < 5
            assert ("interrupted" in said) == (number == signal.SIGINT)
        server.seconds = 0.0
        found, _ = ask("mmhal", teacher(server, cache=tmp_path / "c.sqlite"), mmhal(40))
        assert {each.judgement for each in found} == {"Rating: 5"}
        asked = Counter(each.row for each in server.seen)
    # Row 0 was asked in each run, and a kill may lose a reply that was on its way.
    assert len(asked) == 40 and asked["0"] == 3 and sum(asked.values()) <= 43


# --- the key ---


def test_the_key_shows_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not where a server quotes it in a refusal or a reply, not in what is recorded, logged or kept."""
    caplog.set_level(logging.DEBUG)
    with BadServer({"0": ["400"], "1": [f"say {KEY} Rating: 4"], "2": ["say Rating: 2"]}) as server:
        asked = teacher(server, cache=tmp_path / "c.sqlite")
        found, by = ask("mmhal", asked, mmhal(3))
        assert server.seen[0].key == f"Bearer {KEY}"
        asked.close()
    assert found[1].judgement == "*** Rating: 4" and "***" in by["no_reply"][0]
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY not in json.dumps(by) + repr(found) + caplog.text and KEY.encode() not in files
