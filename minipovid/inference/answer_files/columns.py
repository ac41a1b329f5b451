"""What each column of a file of answers says, decided against the questions.

A name alone decides little: `text` is the question in one program's file and the answer in another's, `answer` is what
the model said or what is right. A column whose values are the benchmark's questions is the question, and no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

from minipovid.common.errors import MinipovidError
from minipovid.inference.answer_files.questions import Places, Questions, called

Table = Sequence[Mapping[str, Any]]
Lookup = Callable[[Any], Places | None]

IDS = ("question_id", "questionid", "id", "index")
PICTURES = (
    *("image_id", "image", "img", "image_path", "image_file", "image_name", "imagename", "image_source"),
    *("file_name", "filename", "img_id", "img_path", "imageid", "images", "image_src", "picture"),
)
WORDS = ("question", "prompt", "query", "instruction", "input")
# What is right, and what else stands beside the answer: never what the model said.
TRUTHS = (
    *("label", "labels", "gt", "gt_answer", "gt_answer_details", "gt_ans", "ground_truth", "groundtruth", "target"),
    *("reference", "gold", "gold_answer", "correct_answer"),
)
# Who says "prediction" means the model, and then `answer` beside it is the truth, as in VLMEvalKit's tables.
PREDICTIONS = ("model_prediction", "prediction", "pred", "model_answer", "model_output")
LISTS = ("filtered_resps", "resps")  # lmms-eval's: a list round each answer
ANSWERS = (*PREDICTIONS, "response", "output", "generated_text", *LISTS)
MAYBE = ("caption", "text", "answer")  # the model, the truth, or the question
_KNOWN = frozenset((*IDS, *PICTURES, *WORDS, *TRUTHS, *ANSWERS, *MAYBE))


class Naming(NamedTuple):
    """A column that names questions, and how its values are looked up."""

    column: str
    kind: str  # "id", "picture", "words" or "fact"
    of: Lookup


def is_known(name: str) -> bool:
    """Whether a key is a column's name as programs write it."""
    return name.lower() in _KNOWN


def is_name(name: str) -> bool:
    """Whether a key is that of a column that names a question or its picture."""
    return name.lower() in (*IDS, *PICTURES)


def naming(table: Table, questions: Questions, answers: str) -> list[Naming]:
    """The columns that name the rows' questions. `answers` is the column of the answers, and names none."""
    columns = (_naming(name, table, questions) for name in _names(table) if name != answers)
    found = [each for each in columns if each is not None]
    # A program's own running number is no id where the row says otherwise what it is about; nor is the name that
    # a picture has elsewhere, where words or another column's pictures are all known here. Such a column is filled in
    # every row: one row's stray value is a mistake.
    numbers = [each for each in found if each.kind == "id" and each.column.lower() != "question_id"]
    uncertain = [each for each in numbers if not _all(table, each)]
    certain = [each for each in found if each not in uncertain]
    strays = [each for each in uncertain if not _agrees(table, each, certain)]
    if any(each.kind in ("words", "picture") and _all(table, each) for each in found):
        strays += [each for each in found if each.kind == "picture" and not _hits(table, each)[0]]
    strays = [each for each in strays if _hits(table, each)[1] == len(table)]
    return [each for each in found if each not in strays or len(strays) == len(found)]


def _agrees(table: Table, id: Naming, others: Sequence[Naming]) -> bool:
    """Whether most rows' ids are those of a question that all else in the row may mean."""
    agreeing = 0
    for row in table:
        said = [places for each in (id, *others) if (places := each.of(row.get(each.column))) is not None]
        agreeing += len(said) > 1 and bool(reduce(lambda one, two: one & two, said))
    return 2 * agreeing > len(table)


def _naming(name: str, table: Table, questions: Questions) -> Naming | None:
    key = name.lower()
    ways = {"picture": questions.by_picture, "id": questions.by_id, "words": questions.by_words}
    by = {kind: Naming(name, kind, look) for kind, look in ways.items()}
    if key in TRUTHS or key in ANSWERS:
        return None
    if key in questions.facts and key not in MAYBE:
        fact = Naming(name, "fact", lambda value: questions.by_fact(key, value))
        if _all(table, fact):
            return fact
    if key in WORDS and questions.are_alike and len({str(row.get(name)) for row in table}) == 1:
        return None  # one question to all, in whatever words
    if key in WORDS or (_mostly(table, by["words"]) and key not in (*IDS, *PICTURES)):
        return by["words"]
    if key in MAYBE:
        return None
    if key in PICTURES:
        return by["id"] if not _mostly(table, by["picture"]) and _mostly(table, by["id"]) else by["picture"]
    if key in IDS:
        return by["picture"] if not _mostly(table, by["id"]) and _mostly(table, by["picture"]) else by["id"]
    return next((by[kind] for kind in ("picture", "id") if _one_to_one(table, by[kind], questions)), None)


def answering(table: Table, questions: Questions, chosen: str | None) -> str:
    """The column of the answers. Raises MinipovidError, with the columns that there are, where it is not clear."""
    names = _names(table)
    if chosen is not None:
        if chosen not in names:
            raise MinipovidError(f"has no column {chosen!r}; its columns are {', '.join(names)}")
        return chosen
    those = candidates(table)
    words = [name for name in those if _is_question(table, name, questions)]
    those = [name for name in those if name not in words]
    if any(name.lower() in PREDICTIONS for name in those):
        those = [name for name in those if name.lower() != "answer"]
    if any(_other(row, those[0], name) for row in table for name in those[1:]):
        raise MinipovidError(f"has several columns that may be the answers, {' and '.join(those)}; {_SAY}")
    if those:
        return those[0]
    asked = f"; {' and '.join(words)} holds the questions" if words else ""
    raise MinipovidError(f"has no column of answers among {', '.join(names)}{asked}; {_SAY}")


_SAY = "say which one is with --option answers_column=NAME"


def _is_question(table: Table, name: str, questions: Questions) -> bool:
    """Whether a column that might be the answers holds the questions; of one question to all, in every row."""
    if questions.are_alike:
        return all(questions.is_first(row.get(name)) for row in table)
    return _mostly(table, Naming(name, "words", questions.by_words))


def candidates(table: Table) -> list[str]:
    """The columns that by their name may hold the answers."""
    return [name for name in _names(table) if name.lower() in (*ANSWERS, *MAYBE)]


def unwrapped(cell: Any) -> Any:
    """An answer without the lists that are round it: [["Yes"]]."""
    while isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    return cell


def _other(row: Mapping[str, Any], one: str, two: str) -> bool:
    return bool(unwrapped(row.get(one)) != unwrapped(row.get(two)))


def _names(table: Table) -> list[str]:
    return list(dict.fromkeys(name for row in table for name in row))


def _hits(table: Table, naming: Naming) -> tuple[int, int]:
    """How many values name a question, and how many there are."""
    found = [naming.of(row.get(naming.column)) for row in table]
    said = [places for places in found if places is not None]
    return sum(bool(places) for places in said), len(said)


def _all(table: Table, naming: Naming) -> bool:
    hits, said = _hits(table, naming)
    return 0 < hits == said


def _mostly(table: Table, naming: Naming) -> bool:
    hits, said = _hits(table, naming)
    return 2 * hits > said


def _one_to_one(table: Table, naming: Naming, questions: Questions) -> bool:
    """Whether a column of an unknown name has for every row a question, and each another one."""
    values = [called(row.get(naming.column)) for row in table]
    if len({*values}) < len(table):
        return False
    return _all(table, naming) and len(values) == len(questions.all) > 1
