"""Rows that say what an earlier row says, or its contrary. Of each row only a few 8-byte hashes are kept."""

from __future__ import annotations

import hashlib

from minipovid.pairs.check.findings import Finding
from minipovid.pairs.pair import Pair

LONG = 10  # words of a good answer; shorter ones ("No, there is no dog.") are rightly alike under many pictures


class Repeats:
    """What the rows so far said."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.whole: dict[int, int] = {}  # hash -> the first row that has it
        self.questions: dict[int, int] = {}
        self.answers: dict[int, int] = {}

    def see(self, pair: Pair, place: str) -> list[Finding]:
        """What this row repeats, the worst alone."""
        about, good, bad = (pair.image, pair.prompt.strip()), pair.chosen.strip(), pair.rejected.strip()
        row, contrary = _hash(*about, good, bad), _hash(*about, bad, good)
        question, answers = _hash(*about), _hash(good, bad)
        findings = []
        # A foreign row whose id was taken has got one of its own from the reader: "17 (row 12)".
        number, _, name = place.removesuffix(")").partition(" (id ")
        if name and str(pair.id) == f"{name} ({number})":
            findings.append(Finding("repeated id", f"an earlier row has the id {name!r} too"))
        if contrary in self.whole:
            findings.append(Finding("contradiction", f"it prefers what {self.places[self.whole[contrary]]} rejects"))
        elif row in self.whole:
            findings.append(Finding("repeated pair", f"it is the same as {self.places[self.whole[row]]}"))
        elif question in self.questions:
            earlier = self.places[self.questions[question]]
            findings.append(Finding("repeated question", f"it asks what {earlier} asks of the same picture"))
        elif len(good.split()) >= LONG and answers in self.answers:
            why = f"both answers are those of {self.places[self.answers[answers]]}, which asks something else"
            findings.append(Finding("repeated answers", why))
        for known, key in ((self.whole, row), (self.questions, question), (self.answers, answers)):
            known.setdefault(key, len(self.places))
        self.places.append(place)
        return findings


def _hash(*texts: str) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")
