"""Questions go picture by picture to a backend and come back in order; answers and scores land in the run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minipovid.cli import demo
from minipovid.common.errors import MinipovidError
from minipovid.evaluate import Result, evaluate, find, results
from minipovid.evaluate.ask import ask
from minipovid.evaluate.benchmarks import Answer, objects
from minipovid.evaluate.reading.coco import _coco_objects
from minipovid.inference import backends
from minipovid.inference.backends import GREEDY, Question, predictions


class Scripted:
    """A backend that says yes of the first picture and no of the others, and remembers what it was asked."""

    name = "scripted"
    decoding: Mapping[str, Any] = {}

    def __init__(self, concurrency: int = 1, silent: Sequence[str] = (), version: int = 1) -> None:
        self.concurrency, self.silent, self.version = concurrency, silent, version
        self.asked: list[tuple[str, str]] = []

    def identity(self) -> dict[str, Any]:
        return {"version": self.version}

    def check(self, questions: Sequence[Question]) -> None: ...

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str | None]:
        for question in questions:
            name = picture.name if picture else ""
            self.asked.append((name, question.prompt))
            yield None if question.id in self.silent else "Yes." if name == "a.png" else "No."

    def close(self) -> None: ...


ROWS = [("b.png", "q1", "no"), ("a.png", "q2", "yes"), ("b.png", "q3", "yes"), ("a.png", "q4", "no")]


@pytest.fixture
def exam_file(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"question_id": number, "image": image, "text": text, "label": label})
        for number, (image, text, label) in enumerate(ROWS)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name)
    return tmp_path / "questions.jsonl"


def examined(exam_file: Path, run: Path, backend: Any, **settings: Any) -> Result:
    (result,) = evaluate(run, find([f"pope={exam_file}"], {"pope": {"suffix": "", **settings}}), backend)
    return result


def test_each_picture_once_and_answers_in_order(exam_file: Path, tmp_path: Path) -> None:
    backend = Scripted()
    result = examined(exam_file, tmp_path / "run", backend)
    assert backend.asked == [("b.png", "q1"), ("b.png", "q3"), ("a.png", "q2"), ("a.png", "q4")]
    rows = results.rows(tmp_path / "run", result)
    assert [row["prompt"] for row in rows] == ["q1", "q2", "q3", "q4"]
    assert [row["answer"] for row in rows] == ["No.", "Yes.", "No.", "Yes."]


def test_equal_ids_do_not_mix_answers_up(exam_file: Path, tmp_path: Path) -> None:
    """Two questions of one id, as a careless benchmark may have, keep their own answers."""
    questions = [Question("1", name, "?", {}, 5) for name in ("b.png", "a.png")]
    pictures = {name: tmp_path / name for name in ("a.png", "b.png")}
    answers = ask(questions, pictures, Scripted(), tmp_path / "run", "x")
    assert [answer.text for answer in answers] == ["No.", "Yes."]


def test_many_hands_give_the_same(exam_file: Path, tmp_path: Path) -> None:
    one, many = (examined(exam_file, tmp_path / str(hands), Scripted(hands)) for hands in (1, 4))
    assert one.figures == many.figures
    assert results.rows(tmp_path / "1", one) == results.rows(tmp_path / "4", many)


def test_evaluate_writes_answers_and_scores(exam_file: Path, tmp_path: Path) -> None:
    """Truth no yes yes no, said no yes no yes: accuracy 1/2, false yes 1/2; scores.json tells of all results.

    A damaged one is written anew.
    """
    run = tmp_path / "run"
    examined(exam_file, run, Scripted(version=2), mode="robust")
    (run / "eval" / "pope.scripted.json").rename(run / "eval" / "other.json")
    (run / "scores.json").write_text("{damaged")
    result = examined(exam_file, run, Scripted())
    assert result.figures["accuracy"].value == result.figures["false_yes"].value == 0.5
    assert result.figures["words"].value == 1.0 and result.questions == 4
    scores = json.loads((run / "scores.json").read_text())
    assert len(scores) == 1  # the other one bears the same name inside
    told = scores["pope.scripted"]
    assert told["headline"] == ["accuracy", "f1", "false_yes", "words"]
    assert told["figures"]["accuracy"] == [0.5, *result.figures["accuracy"][1:]]
    lines = (run / "eval" / "pope.scripted.jsonl").read_text().splitlines()
    row = {"id": "1", "image": "a.png", "prompt": "q2", "answer": "Yes."}
    assert json.loads(lines[1]) == row | {"unit": "a.png", "verdict": "yes", "right": True, "wrong": []}
    (run / "eval" / "other.json").unlink()
    assert list(results.read(run)) == [result]


def test_nothing_is_asked_twice(exam_file: Path, tmp_path: Path) -> None:
    """Neither in a second run nor with another reading of the answers; another model or prompt is asked."""
    run, again = tmp_path / "run", Scripted()
    first = examined(exam_file, run, Scripted())
    assert examined(exam_file, run, again) == first and again.asked == []
    robust = examined(exam_file, run, again, mode="robust")
    assert again.asked == [] and robust.protocol != first.protocol
    examined(exam_file, run, other := Scripted(version=2))
    assert len(other.asked) == 4
    examined(exam_file, run, again, suffix=" Really?")
    assert len(again.asked) == 4 and again.asked[0] == ("b.png", "q1 Really?")


def test_a_picture_that_changed_is_asked_about_again(exam_file: Path, tmp_path: Path) -> None:
    examined(exam_file, tmp_path / "run", Scripted())
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png")
    examined(exam_file, tmp_path / "run", again := Scripted())
    assert again.asked == [("a.png", "q2"), ("a.png", "q4")]


def test_what_was_not_answered_is_asked_again(exam_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MinipovidError) as error:
        examined(exam_file, tmp_path / "run", Scripted(silent=["2"]))
    assert str(error.value) == (
        "1 of 4 questions of pope by scripted got no answer from scripted; the others are kept, and the same command "
        "asks these again."
    )
    assert not (tmp_path / "run" / "scores.json").exists()
    examined(exam_file, tmp_path / "run", again := Scripted())
    assert again.asked == [("b.png", "q3")]


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/../helpers"]
from test_evaluate import Scripted, examined
class Slow(Scripted):
    def answers(self, questions, picture):
        for text in super().answers(questions, picture):
            with open({log!r}, "a") as log:
                log.write(questions[0].prompt + "\\n")
            yield text
            time.sleep(0.05)
examined(Path({file!r}), Path({run!r}), Slow())
print("done", flush=True)
"""


def test_killed_and_run_again_asks_nothing_twice(exam_file: Path, tmp_path: Path) -> None:
    """SIGKILL after a few answers: the log of what was asked holds at most one question more than once, the one whose
    answer was on its way; the scores are those of an undisturbed run."""
    rows = [
        json.dumps({"question_id": n, "image": "ab"[n % 2] + ".png", "text": f"q{n}", "label": "no"}) for n in range(40)
    ]
    exam_file.write_text("\n".join(rows) + "\n")
    log, run = tmp_path / "log", tmp_path / "run"
    script = KILLED.format(tests=str(Path(__file__).parent), log=str(log), file=str(exam_file), run=str(run))
    for after in (5, 12):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        end = time.monotonic() + 60
        while (not log.exists() or len(log.read_text().split()) < after) and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"done\n"
    assert 40 <= len(log.read_text().split()) <= 42
    undisturbed = examined(exam_file, tmp_path / "other", Scripted())
    assert next(iter(results.read(run))).brief() == undisturbed.brief()


def test_missing_pictures_are_said_before_anything_is_asked(exam_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").unlink()
    with pytest.raises(MinipovidError) as error:
        examined(exam_file, tmp_path / "run", backend := Scripted())
    assert backend.asked == []
    assert str(error.value) == (
        f"1 of 2 pictures are not in {tmp_path}, a.png among them; name their folder with --images."
    )


def test_a_picture_outside_its_folder_is_refused(exam_file: Path, tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "../../etc/passwd", "text": "?", "label": "no"}
    exam_file.write_text(json.dumps(row) + "\n")
    with pytest.raises(MinipovidError, match=r"\.\./\.\./etc/passwd"):
        examined(exam_file, tmp_path / "run", Scripted())


def test_two_runs_are_compared_by_what_they_keep(exam_file: Path, tmp_path: Path) -> None:
    """Without the question file. Other protocols are not compared."""
    examined(exam_file, tmp_path / "one", Scripted())

    class Sure(Scripted):
        def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str | None]:
            labels = {text: label for _, text, label in ROWS}
            yield from (labels[question.prompt].capitalize() for question in questions)

    examined(exam_file, tmp_path / "two", Sure())
    exam_file.unlink()
    (one,), (two,) = (list(results.read(tmp_path / name)) for name in ("one", "two"))
    change = one.changes(two)["accuracy"]
    assert change.value == 0.5 and change.low >= 0 and 0 < change.p <= 1
    assert one.is_lower_better("x/false_yes") and not one.is_lower_better("accuracy")
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "image": "a.png", "text": "?", "label": "no"}\n')
    other = examined(tmp_path / "q.jsonl", tmp_path / "two", Scripted())
    with pytest.raises(MinipovidError, match="cannot be compared: they were examined as pope/official/"):
        one.changes(other)


# --- specs ---


@pytest.mark.parametrize(
    ("specs", "settings", "sentence"),
    [
        (["pope"], {}, "pope needs its files: write pope=PATH; they are the folder output/coco of "),
        (["pope=nowhere.json"], {}, "There is no nowhere.json; pope's files are the folder output/coco of "),
        (["popes=."], {}, "There is no 'popes' among the benchmarks. Did you mean 'pope'? Known: "),
        (["pope=.", "pope=."], {}, "Two benchmarks are called pope; give one a label: pope:mine=PATH."),
        (["pope=."], {"chair": {}}, "There is an option for chair, but no such benchmark here: pope."),
        (["pope=."], {"pope": 3}, "--set pope: an option has two names, pope.KEY=VALUE."),
        (["pope:../out=."], {}, "The label '../out' becomes a file's name; write it with letters, digits, - and _."),
        (["pope=."], {"pope": {"each": -1}}, "pope: each is -1, but it must be at least 1."),
        (["pope=."], {"pope": {"suffx": ""}}, "pope: "),
        (["pope=."], {"pope": {"mode": "wild"}}, "pope: mode is 'wild'"),
    ],
)
def test_bad_specs(specs: list[str], settings: Any, sentence: str) -> None:
    with pytest.raises(MinipovidError) as error:
        find(specs, settings)
    assert str(error.value).startswith(sentence)


def test_what_is_no_benchmark_names_those_that_are() -> None:
    with pytest.raises(MinipovidError) as error:
        find(["tinywrld"])
    assert str(error.value).startswith("'tinywrld' names no benchmark; write NAME=PATH with one of amber, chair, ")


def test_labels_options_and_folders(tmp_path: Path) -> None:
    """An option may name the benchmark or the label, and the label wins."""
    settings = {"pope": {"suffix": "", "each": 2}, "mine": {"each": 1}}
    seats = find(
        [f"pope={tmp_path}", f"pope:mine={tmp_path}"], settings, {"": Path("all"), "mine": Path("m")}, mode="robust"
    )
    assert [(seat.label, seat.options["each"], seat.root) for seat in seats] == [
        ("pope-robust", 2, Path("all")),
        ("mine", 1, Path("m")),
    ]
    assert all(seat.options["mode"] == "robust" for seat in seats)


@pytest.mark.usefixtures("built_in_pairs")
def test_tinyworld_is_pope_and_chair() -> None:
    pope, chair = find(["tinyworld"])
    assert (pope.label, len(pope.exam.questions)) == ("pope", 1800)
    assert (chair.label, len(chair.exam.questions)) == ("chair", 200)
    for seat in (pope, chair):
        assert (seat.root / seat.exam.questions[0].image).is_file()
    assert [seat.label for seat in find(["tinyworld"], split="dev")] == ["pope-dev", "chair-dev"]


# --- answers from a file ---


def written(tmp_path: Path, text: str, name: str = "answers.jsonl") -> predictions.PredictionsBackend:
    (tmp_path / name).write_text(text)
    return predictions.open(tmp_path, predictions.Options(tmp_path / name), GREEDY)


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "text",
    [
        lines(*({"question_id": n, "text": t} for n, t in ((3, "Yes"), (1, "Yes"), (0, "No"), (2, "No")))),
        json.dumps([{"id": str(n), "response": t} for n, t in enumerate(["No", "Yes", "No", "Yes"])]),
        json.dumps({"0": "No", "1": "Yes", "2": "No", "3": "Yes"}),
        lines(*({"answer": t} for t in ("No", "Yes", "No", "Yes"))),
        "id,answer\n0,No\n1,Yes\n2,No\n3,Yes\n",
    ],
    ids=["lines", "list", "object", "in order", "table"],
)
def test_predictions_are_found_by_id(exam_file: Path, tmp_path: Path, text: str) -> None:
    """As the scripted backend answers: accuracy 1/2. A file without ids is taken in the order of the questions."""
    name = "answers.csv" if text.startswith("id,") else "answers.jsonl"
    result = examined(exam_file, tmp_path / "run", written(tmp_path, text, name))
    assert result.figures["accuracy"].value == 0.5 and result.name == "pope.predictions"
    assert [row["answer"] for row in results.rows(tmp_path / "run", result)] == ["No", "Yes", "No", "Yes"]


ALL = [{"id": n, "answer": "No"} for n in range(4)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (lines(*ALL[:2]), "{file} has no answer to 2 of 4 questions, 2 among them; every question needs one."),
        (
            lines(*ALL, {"id": 9, "answer": "No"}),
            "{file} answers 1 questions that are not asked here, 9 among them; it belongs to another file of "
            "questions.",
        ),
        (lines(*ALL, ALL[1]), "{file}: row 5 answers 1 again; keep one of the two."),
        (
            lines(*({"answer": "No"} for _ in range(3))),
            "{file} has 3 answers without ids, and there are 4 questions; give each its id.",
        ),
        (lines(*ALL[:3], {"answer": "No"}), "{file}: 1 rows have no id, and others have; give each its id."),
        (
            lines({"id": 1, "said": "No"}),
            "{file} has no column of answers among id, said; say which one is with --option answers_column=NAME.",
        ),
    ],
)
def test_bad_predictions_are_one_sentence(exam_file: Path, tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(MinipovidError) as error:
        examined(exam_file, tmp_path / "run", written(tmp_path, text))
    assert str(error.value) == sentence.format(file=tmp_path / "answers.jsonl")


def test_the_right_answer_in_a_file_is_not_the_model_s(exam_file: Path, tmp_path: Path) -> None:
    """VLMEvalKit's rows hold the label as `answer`; the model said yes to everything."""
    rows = [{"index": n, "answer": ROWS[n][2], "prediction": "Yes"} for n in range(4)]
    result = examined(exam_file, tmp_path / "run", written(tmp_path, lines(*rows)))
    assert result.figures["false_yes"].value == 1.0


def test_a_file_that_cannot_be_read_is_called_what_it_is(tmp_path: Path) -> None:
    """The benchmark's, COCO's and a program's answers: nobody who evaluates has pairs or a data.path."""
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "latin.json").write_bytes(b'{"annotations": ["caf\xe9"]}')
    readings = {
        "There is no file .*none.json; name the benchmark's file.": lambda: list(objects(tmp_path / "none.json", "it")),
        "The benchmark's file .*cut.parquet cannot be read: ": lambda: list(objects(tmp_path / "cut.parquet", "it")),
        "The annotations .*latin.json cannot be read: ": lambda: list(_coco_objects(tmp_path / "latin.json", {1})),
        "The answers .*cut.parquet cannot be read: ": lambda: predictions.open(
            tmp_path, predictions.Options(tmp_path / "cut.parquet"), GREEDY
        ),
    }
    for sentence, read in readings.items():
        with pytest.raises(MinipovidError, match=f"^{sentence}"):
            read()


def test_answers_without_ids_follow_the_questions_order(exam_file: Path, tmp_path: Path) -> None:
    """The same file against the questions turned round: nothing of the first time counts."""
    told = lines(*({"answer": t} for t in ("No", "Yes", "No", "Yes")))
    examined(exam_file, tmp_path / "run", written(tmp_path, told))
    exam_file.write_text("\n".join(reversed(exam_file.read_text().splitlines())) + "\n")
    result = examined(exam_file, tmp_path / "run", written(tmp_path, told))
    assert [row["answer"] for row in results.rows(tmp_path / "run", result)] == ["No", "Yes", "No", "Yes"]


@pytest.mark.parametrize(
    "text",
    ["null", '"x"', "[]", "{}", "{whole", '{"figures": []}'],
)
def test_a_damaged_result_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "pope.gguf-f16.json").write_text(text)
    with pytest.raises(MinipovidError, match="pope.gguf-f16.json is damaged, or of another version; remove it and run"):
        list(results.read(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("units", []),
        ("units", {"a.png": {"x": "y"}}),
        ("questions", "8"),
        ("notes", None),
        ("benchmark", "gone"),
        ("options", {"old": 1}),
    ],
)
def test_a_result_with_a_wrong_part_is_one_sentence(exam_file: Path, tmp_path: Path, key: str, value: Any) -> None:
    examined(exam_file, tmp_path / "run", Scripted())
    path = tmp_path / "run" / "eval" / "pope.scripted.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(MinipovidError, match="is damaged, or of another version"):
        list(results.read(tmp_path / "run"))


def test_predictions_must_be_named(tmp_path: Path) -> None:
    with (
        pytest.raises(MinipovidError, match="name it with --predictions"),
        backends.opened("predictions", tmp_path),
    ):
        pass
    with (
        pytest.raises(MinipovidError, match="There is no 'ggufs' among the backends"),
        backends.opened("ggufs", tmp_path),
    ):
        pass


# --- the demo's verdict ---


@pytest.mark.parametrize(
    ("false_yes", "chair_i", "recall", "cured"),
    [(0.19, 0.05, 0.8, True), (0.21, 0.05, 0.8, False), (0.19, 0.07, 0.8, False), (0.19, 0.05, 0.79, False)],
)
def test_cured_is_a_third_less_without_loss_of_recall(
    false_yes: float, chair_i: float, recall: float, cured: bool
) -> None:
    before = {"false yes, adversarial": 0.3, "CHAIR_i": 0.09, "object recall": 0.8}
    after = {"false yes, adversarial": false_yes, "CHAIR_i": chair_i, "object recall": recall}
    assert demo.is_cured(before, after) is cured


def test_every_answer_has_its_words_counted() -> None:
    """Two words and four about one picture: three words on average, whatever the benchmark counts."""
    from minipovid.evaluate import benchmarks

    benchmark = benchmarks.build("pope", {})
    questions = [Question(str(n), "a.png", "?", {"label": "no", "category": ""}, 9) for n in range(2)]
    answers = [Answer(questions[0], "No dog."), Answer(questions[1], "No, no dog there.")]
    sheet = results.graded(benchmark, answers)
    figures = results.figures_of(benchmark)(benchmarks.total(sheet.units))
    assert figures["words"] == 3.0 and figures["accuracy"] == 1.0
