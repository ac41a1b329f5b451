"""HOW IT IS EXAMINED: one file per benchmark, named as on the command line; this page holds what they share.

    benchmark = build("pope", {"mode": "robust"})
    exam = benchmark.read(Path("coco_pope_adversarial.json"))
    sheet = benchmark.grade(answers)
    benchmark.figures(total(sheet.units))

A score is `official`, the official script's number with its quirks, or `robust`, which reads answers sensibly and says
how many it could not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from minipovid import rows, shelf
from minipovid.english import Mention
from minipovid.errors import MinipovidError
from minipovid.recipe import validated
from minipovid.types import Benchmark, Counts, Mark

NAN = float("nan")
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_MARKDOWN = re.compile(r"[*_`#]+")
_WORD = re.compile(r"[\w’']+")
_NEGATIVE = frozenset(("no", "not", "cannot", "nope", "none", "neither"))


def build(name: str, options: Mapping[str, Any]) -> Benchmark:
    """The benchmark of a file on the shelf. Raises MinipovidError for an unknown name or option, or a wrong value."""
    module = shelf.load("benchmarks", name)
    return validated(module.Benchmark, options, name)  # type: ignore[no-any-return]


def total(units: Mapping[str, Counts]) -> dict[str, float]:
    """The sums of the units' counts."""
    sums: dict[str, float] = {}
    for counts in units.values():
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


class Tally:
    """Counts by unit, while answers are graded."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, float]] = {}

    def add(self, unit: str, **counts: float) -> None:
        """A unit is there from its first answer on, even where that counts nothing."""
        held = self.units.setdefault(unit, {})
        for name, value in counts.items():
            held[name] = held.get(name, 0.0) + value


def share(part: float, whole: float) -> float:
    """nan where there is nothing to divide by."""
    return part / whole if whole else NAN


def objects(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSON list, JSON lines or a table, with their numbers.

    Raises MinipovidError, saying that it should be `what`, for a row that is none.
    """
    for number, row in rows.rows(path):
        if not isinstance(row, dict):
            raise MinipovidError(f"{path}: row {number} is not {what}.")
        yield number, row


def described(unit: str, said: Sequence[Mention], absent: Sequence[Mention]) -> Mark:
    """The mark of a description: how many of the things that it names are not there, and where it names them."""
    where = tuple((mention.start, mention.end) for mention in absent if mention.end > mention.start)
    return Mark(unit, f"{len(absent)} of {len(said)} absent", None, where)


class Coco(NamedTuple):
    """What COCO says of a picture: the categories that are drawn in it, and what people wrote of it."""

    categories: set[str]
    captions: list[str]


COCO = "annotations_trainval2014.zip of cocodataset.org"
_COCO_SPLITS = ("val2014", "train2014")


def coco(folder: Path, images: Set[int]) -> tuple[dict[int, Coco], list[Path]]:
    """COCO's annotations of these pictures, by their numbers, and the files that were read; train only if needed.

    Raises MinipovidError where a file is missing, or a picture that no file knows.
    """
    found: dict[int, Coco] = {}
    files: list[Path] = []
    for split in _COCO_SPLITS:
        if images <= found.keys():
            break
        drawn, written = (coco_file(folder, f"{kind}_{split}.json") for kind in ("instances", "captions"))
        for each in rows.within(written, "annotations"):
            if each["image_id"] in images:
                found.setdefault(each["image_id"], Coco(set(), [])).captions.append(each["caption"])
        for image, name in _coco_objects(drawn, images):
            found.setdefault(image, Coco(set(), [])).categories.add(name)
        files += [drawn, written]
    if missing := sorted(images - found.keys()):
        raise MinipovidError(f"COCO's annotations in {folder} know no picture {missing[0]}; are they those of 2014?")
    return found, files


def _coco_objects(file: Path, images: Set[int]) -> Iterator[tuple[int, str]]:
    """The category of each object that is drawn in these pictures; what categories are called may come last."""
    names: dict[int, str] = {}
    seen: set[tuple[int, int]] = set()
    for key, each in rows.lists(file, "annotations", "categories"):
        if key == "categories":
            names[each["id"]] = each["name"]
        elif each["image_id"] in images:
            seen.add((each["image_id"], each["category_id"]))
    return ((image, names[category]) for image, category in sorted(seen))


def coco_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise MinipovidError(f"{folder} holds no {name}; unpack {COCO} and name its folder annotations.")
    return folder / name


def file_in(path: Path, source: str, *names: str) -> Path:
    """The file itself, or the first of these names in a folder. Raises MinipovidError, saying where to get it."""
    if not path.is_dir():
        return path
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise MinipovidError(f"{path} holds no {' or '.join(names)}; take {source}.")
    return found


def in_images(file: Path, name: str) -> str:
    """A picture's path beside its data file: in the folder images/, as the archives unpack, or bare."""
    return f"images/{name}" if (file.parent / "images").is_dir() else name


def wording(file: str, own: str, *blanks: str) -> str:
    """A judge's prompt: the file's, or our own where none is named. Each {} in it is for one of the blanks.

    Raises MinipovidError where the file cannot be read or has another number of {}.
    """
    if not file:
        return own
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MinipovidError(f"The judge's prompt {file} cannot be read: {error}.") from None
    if blanks and text.count("{}") != len(blanks):
        raise MinipovidError(f"The judge's prompt {file} needs {{}} {len(blanks)} times, for {', '.join(blanks)}.")
    return text


def named(*files: str) -> list[Path]:
    """Those of the options' files that are named."""
    return [Path(file).expanduser() for file in files if file]


def filled(wording: str, *texts: str) -> str:
    """The blanks filled in order; braces within a text stay what they are."""
    parts = wording.split("{}")
    return "".join(part + text for part, text in zip(parts, [*texts, ""], strict=True))


def plain(reply: str) -> str:
    """A judge's reply without its thoughts and Markdown's signs."""
    return _MARKDOWN.sub("", _THOUGHT.sub("", reply))


def says_yes(answer: str) -> bool | None:
    """The robust reading of an answer to a yes/no question: None where it is neither.

    A leading yes or no decides; else a negation in the first sentence; else a yes anywhere.
    """
    words: list[str] = [word.strip("'’").replace("’", "'") for word in _WORD.findall(answer.casefold())]
    if words and words[0] in ("yes", "no"):
        return words[0] == "yes"
    first = _WORD.findall(re.split(r"[.!?\n]", answer.casefold().strip(" .!?\n"), maxsplit=1)[0])
    if any(word in _NEGATIVE or word.replace("’", "'").endswith("n't") for word in first):
        return False
    return True if "yes" in words else None


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BY_LETTER = "\nAnswer with the option's letter from the given choices directly."  # LLaVA-1.5's suffix
_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])[).:](?=\s))")
_NAMED = re.compile(
    r"\b(?:answer|option|choice)\b\W*(?:is\b)?\W*([A-Za-z])\b(?![’'])(?=\W*(?:$|[).,:;!\n]))", re.IGNORECASE
)
_LETTER = re.compile(r"(?<![\w’'])([A-Z])(?![\w’'])")
_ARTICLE = re.compile(r" (?!or\b|and\b|is\b|because\b|since\b|as\b)[a-z]")


def lettered(options: Mapping[str, str]) -> str:
    """The options of a question, one a line, as LLaVA writes them."""
    return "".join(f"\n{letter}. {text}" for letter, text in options.items())


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """The robust reading of an answer to a multiple-choice question: one of the options' letters, or None.

    A letter that is all of the answer, or begins it with a bracket or dot, decides; else the one that it calls the
    answer; else the only capital that stands alone; else, where no letter does, the only option whose text it holds.
    """
    text = plain(answer).strip()
    for found in (_ALONE.fullmatch(text), _LEADING.match(text)):
        letter = str(found[found.lastindex or 1]).upper() if found else ""
        if letter in options:
            return letter
    capitals = _capitals(text, options)
    for letters in ({str(each).upper() for each in _NAMED.findall(text)} & options.keys(), capitals & options.keys()):
        if len(letters) == 1:
            return letters.pop()
    return None if capitals else _held(text, options)


def _capitals(text: str, options: Mapping[str, str]) -> set[str]:
    """Capitals that stand alone, and are neither the article A nor the pronoun I."""
    words = {"I"} - options.keys()
    found = (each for each in _LETTER.finditer(text) if each[1] != "A" or not _ARTICLE.match(text, each.end()))
    return {str(each[1]) for each in found} - words


def _held(text: str, options: Mapping[str, str]) -> str | None:
    """The one option that the text holds as whole words; one within another counts only by itself: red, red car."""
    whole = {letter: " ".join(_WORD.findall(each.casefold())) for letter, each in options.items()}
    said = f" {' '.join(_WORD.findall(text.casefold()))} "
    held = [letter for letter, each in whole.items() if each and f" {each} " in said]
    longest = [one for one in held if not any(one != two and f" {whole[one]} " in f" {whole[two]} " for two in held)]
    return longest[0] if len(longest) == 1 else None
