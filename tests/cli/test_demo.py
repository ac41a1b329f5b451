"""The demo's showcase: a picture that was wrong before and is right now, and how many of all got better or worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from minipovid.cli.demo import one_picture
from minipovid.evaluate import Result, evaluate, find
from minipovid.inference.backends import Question

THINGS = ("arrow", "circle", "cross", "heart", "square", "star")


class Describing:
    """A backend that names what is there, and `absent[n]` things of picture n that are not; of further ones none."""

    name, concurrency = "gguf-f16", 1
    decoding: Mapping[str, Any] = {}

    def __init__(self, absent: Sequence[int]) -> None:
        self.absent = dict(enumerate(absent))

    def identity(self) -> dict[str, Any]:
        return {}

    def check(self, questions: Sequence[Question]) -> None:
        self.places = {question.id: place for place, question in enumerate(questions)}

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str | None]:
        for question in questions:
            there = question.truth["objects"]
            lies = [name for name in THINGS if name not in there][: self.absent.get(self.places[question.id], 0)]
            yield " ".join(f"There is a {name}." for name in [*there, *lies])

    def close(self) -> None: ...


def examined(folder: Path, absent: Sequence[int]) -> Result:
    chair = [seat for seat in find(["tinyworld"]) if seat.label == "chair"]
    (result,) = evaluate(folder, chair, Describing(absent))
    return result


@pytest.mark.parametrize(
    ("before", "after", "place", "count"),
    [
        # The second is better and not yet right; the third got worse; the fourth is the first that is right now.
        ((0, 2, 0, 1, 1), (0, 1, 1, 0, 0), 3, "3 better, 1 worse, {} alike"),
        ((0, 2, 1), (1, 1, 1), 0, "1 better, 1 worse, {} alike; none was wrong before and is right now, so this is "),
        ((), (), 0, "0 better, 0 worse, {} alike; none was wrong before and is right now, so this is simply the first"),
    ],
)
def test_what_is_shown_was_wrong_and_is_right(
    tmp_path: Path, before: Sequence[int], after: Sequence[int], place: int, count: str
) -> None:
    old, new = examined(tmp_path / "base", before), examined(tmp_path / "run", after)
    shown = one_picture(tmp_path / "base", tmp_path / "run", old, new)
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    total = old.questions
    assert shown["all"].startswith(f"of {total} pictures: {count.format(total - changed)}")
    (seat,) = [seat for seat in find(["tinyworld"]) if seat.label == "chair"]
    question = seat.exam.questions[place]
    assert Path(shown["picture"]) == (seat.root / question.image).resolve() and Path(shown["picture"]).is_file()
    assert shown["in it"] == ", ".join(question.truth["objects"])
    said = [f"There is a {name}." for name in question.truth["objects"]]
    assert shown["before"].startswith(" ".join(said)) and shown["after"].startswith(" ".join(said))
    if place == 3:
        assert shown["before"] != shown["after"] == " ".join(said)
