"""Every question gets its row, by all that the row says of it: id, picture, words, and what the benchmark itself says.

What a row says must agree, and mean one question. Only rows that name nothing are taken in the order of the questions,
or that name their words alone and have at every place those of the question that stands there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from minipovid.common.data_files import short
from minipovid.common.errors import MinipovidError
from minipovid.inference.answer_files import columns
from minipovid.inference.answer_files.columns import Naming
from minipovid.inference.answer_files.questions import Places, Questions
from minipovid.inference.answer_files.reading import Row
from minipovid.inference.backends import Question
from minipovid.inference.thoughts import spoken


class Matched(NamedTuple):
    """The answers by the questions' ids. `column` is the one that they stand in, and `rivals` what it was chosen from;
    `order`: the rows named no question, and were taken as they stand."""

    answers: Mapping[str, str]
    column: str
    rivals: Sequence[str]
    order: bool


def matched(path: Path, rows: Sequence[Row], questions: Sequence[Question], column: str | None) -> Matched:
    """Raises MinipovidError where a question has no row, or two; a row has no answer, or no question, or contradicts
    itself; and where it is not clear which column is the answer."""
    rows = _in_order(rows)
    known, table = Questions(questions), [row.about for row in rows]
    try:
        column = columns.answering([row.written for row in rows], known, column)
    except MinipovidError as error:
        raise MinipovidError(f"{path} {error}.") from None
    texts = [_answer(path, row, column) for row in rows]
    if not any(map(str.strip, texts)):
        raise MinipovidError(f"{path} has no answer: its {column} is empty in every row; ask those questions again.")
    match = _Match(path, rows, known, columns.naming(table, known, column))
    places = match.by_place() if match.is_ordered else match.by_name()
    match.check_truths(places)
    answers = {questions[place].id: text for place, text in zip(places, texts, strict=True)}
    return Matched(answers, column, columns.candidates([row.written for row in rows]), match.is_ordered)


def _in_order(rows: Sequence[Row]) -> Sequence[Row]:
    """As lmms-eval asked them, whose `doc_id` is a place and nobody's id; else as they stand."""
    order = [row.about.get("doc_id") for row in rows]
    is_whole = all(type(place) is int for place in order) and {*order} == {*range(len(order))}
    return sorted(rows, key=lambda row: int(row.about["doc_id"])) if is_whole else rows


def _answer(path: Path, row: Row, column: str) -> str:
    written = row.written.get(column)
    if column.lower() in columns.LISTS and isinstance(written, str) and written[:1] == "[":
        raise MinipovidError(
            f"{path}: row {row.number} has no answer, its {column} is {short(written)}, a list that became text; save "
            "the rows as JSON lines or parquet."
        )
    cell = columns.unwrapped(written)
    if isinstance(cell, str) and (spoken(cell) or not cell):
        return cell
    if isinstance(cell, str):
        raise MinipovidError(
            f"{path}: row {row.number} has no answer, its {column} holds thoughts alone; give that model more tokens."
        )
    if cell is None or cell == [] or cell != cell:
        raise MinipovidError(
            f"{path}: row {row.number} has no answer, its {column} is {'null' if cell is None else short(cell)}; ask "
            'that question again (an answer without a word is "").'
        )
    raise MinipovidError(
        f"{path}: row {row.number} has no answer, its {column} is {short(cell)}, which is no text; write what the "
        "model said, once, in quotes."
    )


class _Match:
    """Rows and questions, and which questions each row may mean."""

    def __init__(self, path: Path, rows: Sequence[Row], questions: Questions, naming: Sequence[Naming]) -> None:
        self.path, self.questions, self.naming = path, questions, naming
        self.rows = rows
        self.said = [self._said(row) for row in rows]  # by column
        self.is_ordered = self._is_ordered()

    def _said(self, row: Row) -> dict[str, Places]:
        found = ((each.column, each.of(row.about.get(each.column))) for each in self.naming)
        return {column: places for column, places in found if places is not None}

    def _is_ordered(self) -> bool:
        if not any(self.said):
            return True
        in_words = all(self.said) and all(each.kind == "words" for each in self.naming)
        fits = in_words and len(self.rows) == len(self.questions.all)
        return fits and all(at in places for at, said in enumerate(self.said) for places in said.values())

    def by_place(self) -> list[int]:
        if len(self.rows) != len(self.questions.all):
            raise MinipovidError(
                f"{self.path} has {len(self.rows):,} answers without ids, and there are {len(self.questions.all):,} "
                "questions; give each its id."
            )
        return list(range(len(self.rows)))

    def by_name(self) -> list[int]:
        nameless = sum(not said for said in self.said)
        if nameless:
            for row, said in zip(self.rows, self.said, strict=True):
                if said and not any(said.values()):
                    self._refuse(row, said, "and no question has that")
            raise MinipovidError(f"{self.path}: {nameless:,} rows have no id, and others have; give each its id.")
        found = [self._place(row, said) for row, said in zip(self.rows, self.said, strict=True)]
        taken: dict[int, Row] = {}
        for row, place in zip(self.rows, found, strict=True):
            if place is not None and taken.setdefault(place, row) is not row:
                name = self.questions.all[place].id
                raise MinipovidError(f"{self.path}: row {row.number} answers {name} again; keep one of the two.")
        self._check_whole(found, taken)
        return [place for place in found if place is not None]

    def _check_whole(self, found: Sequence[int | None], taken: Mapping[int, Row]) -> None:
        asked = self.questions.all
        missing = [question.id for place, question in enumerate(asked) if place not in taken]
        strange = [row for row, place in zip(self.rows, found, strict=True) if place is None]
        if missing and len(strange) == 1:
            row = strange[0]
            self._refuse(row, self._said(row), "and no question has that")
        if missing:
            raise MinipovidError(
                f"{self.path} has no answer to {len(missing):,} of {len(asked):,} questions, {missing[0]} among them; "
                "every question needs one."
            )
        if strange:
            name = next(strange[0].about[each.column] for each in self.naming if each.column in strange[0].about)
            raise MinipovidError(
                f"{self.path} answers {len(strange):,} questions that are not asked here, {name} among them; it "
                "belongs to another file of questions."
            )

    def _place(self, row: Row, said: Mapping[str, Places]) -> int | None:
        """The one question that a row means; None where all that it says names none."""
        said = self._understood(row, said)
        if not any(said.values()):
            return None
        places = reduce(lambda one, two: one & two, sorted(said.values(), key=len))
        if not places:
            self._contradiction(row, said)
        if len(places) > 1:
            names = " and ".join(self._cells(row, said))
            raise MinipovidError(
                f"{self.path}: row {row.number} has {names}, which {len(places):,} questions have; give each row the "
                "id of its question, or both picture and question."
            )
        return next(iter(places))

    def _understood(self, row: Row, said: Mapping[str, Places]) -> Mapping[str, Places]:
        """Words that are no question's may still be those of the one that the rest means, in a template say."""
        strange = [each for each in self.naming if each.kind == "words" and said.get(each.column) == frozenset()]
        rest = [places for column, places in said.items() if column not in {each.column for each in strange}]
        if not strange or not rest:
            return said
        meant = reduce(lambda one, two: one & two, rest)
        return {
            **said,
            **{
                each.column: {place for place in meant if self.questions.holds(place, row.about[each.column])}
                for each in strange
            },
        }

    def _contradiction(self, row: Row, said: Mapping[str, Places]) -> NoReturn:
        columns = list(said)
        pairs = [(one, two) for at, one in enumerate(columns) for two in columns[at + 1 :]]
        apart = next((pair for pair in pairs if not said[pair[0]] & said[pair[1]]), columns)
        self._refuse(row, apart, "and no question has both")

    def _refuse(self, row: Row, names: Sequence[str] | Mapping[str, Any], why: str) -> NoReturn:
        raise MinipovidError(
            f"{self.path}: row {row.number} has {' and '.join(self._cells(row, names))}, {why}; take the answers to "
            "these very questions, or leave out the column that is wrong."
        )

    def _cells(self, row: Row, names: Sequence[str] | Mapping[str, Any]) -> list[str]:
        return [f"{name} {short(columns.unwrapped(row.about[name]))}" for name in names]

    def check_truths(self, places: Sequence[int]) -> None:
        """What a row says is right must be what the benchmark says: else it is about another question."""
        asked = self.questions.all
        labels = [str(question.truth.get("label", "")).lower() for question in asked]
        for name in dict.fromkeys(name for row in self.rows for name in row.about if name.lower() in columns.TRUTHS):
            cells = [str(row.about.get(name)).strip().lower() for row in self.rows]
            if not {*cells} <= {*labels}:
                continue  # it says it in other words
            wrong = [each for each in zip(self.rows, cells, places, strict=True) if each[1] != labels[each[2]]]
            if wrong:
                row, cell, place = wrong[0]
                raise MinipovidError(
                    f"{self.path}: row {row.number} has {name} {cell!r}, and question {asked[place].id}, which it "
                    f"would answer, {labels[place]!r}; these are the answers to other questions, or in another order."
                )
