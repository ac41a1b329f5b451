"""NLTK's data for tests, since what users download cannot be had here.

WordNet is the real one, of Debian's package wordnet-base. The tagger is NLTK's perceptron, taught the words below by
heart; punkt is NLTK's, knowing no abbreviation but these.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minipovid.evaluate.reading import english

WORDNET = Path("/usr/share/wordnet")
ABBREVIATIONS = "dr\nmr\n"
TAGS = {
    "DT": "a an the two",
    "IN": "on at with near of",
    "CC": "and",
    "VBZ": "is are sits",
    "VBN": "parked seated",
    "VBP": "play",
    "JJ": "blue red up",
    "NNS": "buses ties canoes puppies boats ships tracks dogs people Puppies",
    "NN": "bus bird bow tie seat toilet desk mouse dog cat man car sky pizza boat water chair A sea puppy ship chairs",
    "NNP": "Boat Water",
    ".": ". !",
}


@contextmanager
def only(folder: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> Iterator[None]:
    """NLTK with these data, or with none but a WordNet that it holds already, and what it read forgotten afterwards."""
    nltk = pytest.importorskip("nltk", reason="minipovid[benchmarks] is not installed")
    monkeypatch.setattr(nltk.data, "path", [str(make(folder) if full else folder)])
    held = (nltk.tag._get_tagger, nltk.tokenize._get_punkt_tokenizer, english.grammar)
    for each in held:
        each.cache_clear()
    yield
    for each in held:
        each.cache_clear()


def make(folder: Path) -> Path:
    """A folder for nltk.data.path."""
    shutil.copytree(WORDNET, folder / "corpora" / "wordnet")
    files = "".join(f"{number:02}\tfile.{number}\t1\n" for number in range(45))
    (folder / "corpora" / "wordnet" / "lexnames").write_text(files, encoding="ascii")  # Debian has these two not,
    (folder / "corpora" / "wordnet" / "index.sense").write_text("", encoding="ascii")  # and no lemma needs them
    _tagger(folder / "taggers" / "averaged_perceptron_tagger_eng")
    punkt = folder / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (punkt / name).write_text("", encoding="ascii")
    (punkt / "abbrev_types.txt").write_text(ABBREVIATIONS, encoding="ascii")
    return folder


def _tagger(folder: Path) -> None:
    """Its three files: no weight, and a tag for each word; any other word is a ZZ."""
    folder.mkdir(parents=True)
    known = {word: tag for tag, words in TAGS.items() for word in words.split()}
    parts = {"weights": {}, "tagdict": known, "classes": [*TAGS, "ZZ"]}
    for name, part in parts.items():
        (folder / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(part), encoding="utf-8")
