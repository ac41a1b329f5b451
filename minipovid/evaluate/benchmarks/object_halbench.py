"""Object HalBench: which COCO objects does a description name that are not there? (Rohrbach et al., arXiv 1809.02156;
Yu et al., arXiv 2312.00849, section 4.1)

300 pictures of COCO are described. A judge that never sees them lists the objects of each description, and those that
are COCO's are looked up among what is drawn in the picture and what five people wrote of it. The file is JSON lines:

    {"image_id": 391895, "question": "Describe the picture.", "image": "/9j/4AAQSkZJRgABAQ..."}

`image` is a picture as base64, or its path. synonyms_refine.txt stands beside it, a line for each object: "dog, puppy".
`coco` is the folder of COCO's annotations; a file whose rows have `objects`, a list of names, needs none.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from minipovid.common import text_files
from minipovid.common.data_files import Bad
from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, Counts, Exam, Grades, Mark, Mode, named
from minipovid.evaluate.reading.coco import coco
from minipovid.evaluate.reading.replies import plain
from minipovid.images import embedded
from minipovid.inference.backends import Question
from minipovid.pairs import lexicon

ITEMS = 300
SHORT = 3  # words; of an answer no longer than that the judge is not asked: it names nothing
TEMPERATURE, TOKENS = 0.2, 512
NAMES = ("obj_halbench_300_with_image.jsonl",)
_ASKED = "a picture of Object HalBench; it needs image_id (a number), question and image"
_YOUNG = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_PAST = re.compile(r"..[^be]ed$")  # "parked", and not "bed" or "seaweed"
_LIST = re.compile(r"\[[^\[\]]*\]")

PROMPT = """A person was asked about a picture and answered. Take the answer for true, and list the things that it \
says can be seen in the picture.

<question>
{question}
</question>
<answer>
{answer}
</answer>

List only what the answer itself names as being in the picture. Name each thing by its noun, without its colour, size, \
number, material or anything else that describes it. Reply with a JSON list of texts on one line, such as \
["cup", "table"], and nothing else; with [] where the answer names no thing."""


@dataclass(frozen=True)
class Benchmark:
    """`official` is RLHF-V's eval_gpt_obj_halbench.py, but for its nouns, which spaCy finds there.

    `prompt` is the judge's, a file with {question} and {answer}; the package has its own wording. `attempts` is how
    often the judge is asked about one answer at most.
    """

    mode: Mode = "official"
    suffix: str = ""
    max_tokens: benchmarks.Count = 1024
    coco: str = ""
    synonyms: str = ""
    prompt: str = ""
    attempts: benchmarks.Count = 100

    source: ClassVar[str] = (
        "obj_halbench_300_with_image.jsonl and synonyms_refine.txt in eval/data of github.com/RLHF-V/RLHF-V"
    )
    headline: ClassVar[Sequence[str]] = ("chair_s_refine", "chair_i")
    lower_is_better: ClassVar[frozenset[str]] = frozenset(("chair_s", "chair_s_refine", "chair_i"))
    coverage: ClassVar[frozenset[str]] = frozenset(("obj_rec",))
    labels: ClassVar[Mapping[str, benchmarks.Label]] = {
        "chair_s": benchmarks.Label("CHAIR_s", "descriptions that name something absent"),
        "chair_s_refine": benchmarks.Label("CHAIR_s, refined"),
        "chair_i": benchmarks.Label("CHAIR_i", "named things that are absent"),
        "obj_rec": benchmarks.Label("object recall", "of what is there, the share that is named"),
    }
    judge: ClassVar[str] = "gpt-3.5-turbo-0613"

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        file = benchmarks.file_in(path, self.source, *NAMES)
        listed = Path(self.synonyms).expanduser() if self.synonyms else file.with_name("synonyms_refine.txt")
        names = CocoNames.read(listed)
        rows = list(benchmarks.objects(file, _ASKED))
        truths, files = self._truths(file, rows, names)
        questions = [
            self._question(file, number, row, {"there": sorted(there), "names": names})
            for (number, row), there in zip(rows, truths, strict=True)
        ]
        _ = self._wording
        files = [file, listed, *files, *named(self.prompt)]
        return Exam(_distinct(questions), files, self._notes(file, len(questions)))

    def _notes(self, file: Path, count: int) -> list[str]:
        notes = ["Object HalBench, 300 descriptions."]
        if count != ITEMS:
            notes = [f"{file.name} has {count:,} descriptions, and Object HalBench {ITEMS}."]
        notes.append(
            "Nouns and their singulars are found by minipovid's own word lists, not by spaCy's en_core_web_trf and "
            "WordNet, so the score is not official."
        )
        if not self.prompt:
            notes.append(
                "The judge's prompt is minipovid's own wording of the published one; object_halbench.prompt=FILE takes "
                "the official template."
            )
        return notes

    def _truths(
        self, file: Path, rows: Sequence[tuple[str, Mapping[str, Any]]], names: CocoNames
    ) -> tuple[list[set[str]], list[Path]]:
        """The objects in each row's picture, and the files that say so beside this one."""
        if all("objects" in row for _, row in rows):
            return [self._own(file, number, row, names) for number, row in rows], []
        if not self.coco:
            raise MinipovidError(
                "Object HalBench needs COCO's annotations of 2014: object_halbench.coco=FOLDER, the folder annotations "
                "of annotations_trainval2014.zip from cocodataset.org."
            )
        numbers = [_number(file, number, row) for number, row in rows]
        by_image, files = coco(Path(self.coco).expanduser(), set(numbers))
        truths = {
            image: {names.of[each] for each in annotation.categories if each in names.of}
            | {names.of[word] for caption in annotation.captions for word in names.in_text(caption)}
            for image, annotation in by_image.items()
        }
        return [truths[number] for number in numbers], files

    def _own(self, file: Path, number: str, row: Mapping[str, Any], names: CocoNames) -> set[str]:
        there = row["objects"]
        if not isinstance(there, list) or not all(isinstance(each, str) for each in there):
            raise MinipovidError(f"{file}: row {number} has objects that are no list of names.")
        return {names.of.get(each, each) for each in there}

    def _question(self, file: Path, number: str, row: Mapping[str, Any], truth: Mapping[str, Any]) -> Question:
        try:
            image, question = embedded.of(row, "image"), row["question"] + ""
        except (KeyError, TypeError, Bad) as error:
            why = f" ({error})" if isinstance(error, Bad) and row.get("image") else ""
            raise MinipovidError(f"{file}: row {number} is not {_ASKED}{why}.") from None
        name = str(row.get("image_id", number))
        truth = {**truth, "question": question, "image_id": name}
        return Question(name, image, question + self.suffix, truth, self.max_tokens)

    # --- the judge ---

    @cached_property
    def _wording(self) -> str:
        text = benchmarks.wording(self.prompt, PROMPT)
        if not ("{question}" in text and "{answer}" in text):
            raise MinipovidError(f"The judge's prompt {self.prompt} needs {{question}} and {{answer}}.")
        return text

    def ask(self, answer: Answer, attempt: int) -> benchmarks.Request | None:
        text = _description(answer)
        if attempt >= self.attempts or _is_short(text):
            return None
        prompt = self._wording.replace("{question}", answer.question.truth["question"]).replace("{answer}", text)
        return benchmarks.Request([("system", prompt)], TEMPERATURE, TOKENS)

    def understands(self, answer: Answer, reply: str) -> bool:
        return self._reads(reply) is not None

    def _reads(self, reply: str) -> list[str] | None:
        return official_list(reply) if self.mode == "official" else robust_list(reply)

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        """What could not be read in all attempts ends the official script in an error; robustly it is left out."""
        tally, marks = benchmarks.Tally(), []
        for answer in answers:
            image = answer.question.image
            text = _description(answer)
            if answer.judgement is None and not _is_short(text):
                tally.add(image)
                marks.append(Mark(image, FAILED))
                continue
            listed = [] if _is_short(text) else self._reads(answer.judgement or "")
            if listed is None:
                tally.add(image, **({"unread": 1} if self.mode == "official" else {}))
                marks.append(Mark(image, UNPARSED))
                continue
            mark, counts = _graded(answer, listed)
            tally.add(image, **counts)
            marks.append(mark)
        return Grades(marks, tally.units)

    def figures(self, totals: Counts) -> dict[str, float]:
        """Shares in [0, 1]. RLHF-V and RLAIF-V print chair_s_refine as Resp. and chair_i as Mention, times 100."""
        sums = {name: benchmarks.NAN if totals.get("unread") else totals.get(name, 0.0) for name in _COUNTED}
        return {
            "chair_s": benchmarks.share(sums["with_absent"], sums["answers"]),
            "chair_s_refine": benchmarks.share(sums["with_absent"], sums["with_any"]),
            "chair_i": benchmarks.share(sums["absent"], sums["mentions"]),
            "obj_rec": benchmarks.share(sums["named"], sums["there"]),
        }


_COUNTED = ("answers", "with_any", "with_absent", "mentions", "absent", "named", "there")


def _description(answer: Answer) -> str:
    """As the official script takes it from the file of answers."""
    return answer.text.replace("Assistant:", "").strip()


def _is_short(text: str) -> bool:
    return len(text.split()) <= SHORT


def _graded(answer: Answer, listed: Sequence[str]) -> tuple[Mark, dict[str, float]]:
    """A word counts once for a description, two words for one object twice: "dog" and "puppy"."""
    names: CocoNames = answer.question.truth["names"]
    there = set(answer.question.truth["there"])
    words = names.listed_names(listed)
    absent = [word for word in words if names.of[word] not in there]
    named = {names.of[word] for word in words} & there
    counts: dict[str, float] = {
        "answers": 1,
        "with_any": 1 if words else 0,
        "with_absent": 1 if absent else 0,
        "mentions": len(words),
        "absent": len(absent),
        "named": len(named),
        "there": len(there),
    }
    spans = tuple(
        span for text in listed if set(names.listed_names([text])) & set(absent) for span in _spans(text, answer.text)
    )
    return Mark(answer.question.image, f"{len(absent)} of {len(words)} absent", None, spans), counts


def _spans(listed: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where the answer says what the judge listed, in either number."""
    words = [re.escape(word) for word in listed.split()]
    if words:
        pattern = r"\b" + r"[\s-]+".join(words) + r"(?:e?s)?\b"
        for match in re.finditer(pattern, answer, re.IGNORECASE):
            yield match.span()


def _number(file: Path, number: str, row: Mapping[str, Any]) -> int:
    try:
        return int(row["image_id"])
    except (KeyError, TypeError, ValueError):
        raise MinipovidError(f"{file}: row {number} is not {_ASKED}.") from None


def _distinct(questions: Sequence[Question]) -> list[Question]:
    """A second question about a picture gets a number behind its id. Raises MinipovidError for the same one again."""
    prompts: dict[str, list[str]] = {}
    distinct = []
    for question in questions:
        before = prompts.setdefault(question.id, [])
        if question.prompt in before:
            raise MinipovidError(f"The picture {question.id} is asked about twice in the same words; remove one row.")
        before.append(question.prompt)
        name = question.id if len(before) == 1 else f"{question.id}/{len(before)}"
        distinct.append(Question(name, question.image, question.prompt, question.truth, question.max_tokens))
    return distinct


class CocoNames(NamedTuple):
    """What COCO's objects are called: every synonym -> the first of its line, and what a pair of words is read as."""

    of: Mapping[str, str]
    pairs: Mapping[str, str]
    singulars: Mapping[str, str]

    @classmethod
    def read(cls, file: Path) -> CocoNames:
        """Raises MinipovidError where there is no such list."""
        if not file.is_file():
            raise MinipovidError(
                f"There is no list of synonyms {file}; take eval/data/synonyms_refine.txt of github.com/RLHF-V/RLHF-V."
            )
        lines = text_files.read(file, "list of synonyms").splitlines()
        entries = [[name.strip() for name in line.split(", ")] for line in lines if line.strip()]
        of = {name: entry[0] for entry in entries for name in entry}
        pairs = {name: name for name in (*of, "home plate", "train track") if " " in name}
        pairs |= {f"{age} {animal}": animal for animal in _YOUNG for age in ("baby", "adult")}
        pairs |= {"passenger jet": "jet", "passenger train": "train", "bow tie": "tie", "toilet seat": "toilet"}
        return cls(of, pairs, _singulars({word for name in (*of, *pairs) for word in name.split()}))

    def words(self, text: str) -> list[str]:
        """In lower case and singular; "dog's" is two."""
        return [self._singular(word) for word in _WORD.findall(text.lower())]

    def _singular(self, word: str) -> str:
        for plural, singular in (("men", "man"), ("children", "child")):
            if word.endswith(plural) and word.removesuffix(plural) + singular in self.of:
                return word.removesuffix(plural) + singular
        return self.singulars.get(word, word)

    def in_text(self, text: str) -> list[str]:
        """The objects' names that a sentence holds, in order, as often as it does."""
        return self._known([pair or word for pair, word in self._paired(self.words(text))])

    def listed_names(self, listed: Sequence[str]) -> list[str]:
        """The objects' names among what the judge listed, each once.

        Of a text with known pairs of words only those are taken, else each run of nouns as a whole: "dog house" is no
        dog.
        """
        read: dict[str, None] = {}
        for text in listed:
            words = self.words(text)
            read |= dict.fromkeys([pair for pair, _ in self._paired(words) if pair] or _runs(words))
        return self._known(list(read))

    def _paired(self, words: Sequence[str]) -> Iterator[tuple[str | None, str]]:
        """(what a known pair of words is read as, its first word) in order, or (None, a word alone)."""
        at = 0
        while at < len(words):
            pair = self.pairs.get(" ".join(words[at : at + 2]))
            yield pair, words[at]
            at += 2 if pair else 1

    def _known(self, words: Sequence[str]) -> list[str]:
        """The seat of a toilet is no chair."""
        left_out = {"seat"} if "toilet" in words else set()
        return [word for word in words if word in self.of and word not in left_out]


def _singulars(known: set[str]) -> dict[str, str]:
    """Plural -> singular, of the list's own words and of the lexicon's things; a listed word is its own singular."""
    things = {form: name for form, (name, plural) in lexicon.things().names.items() if plural}
    plurals = {lexicon.plural_of(word): word for word in sorted(known)}
    halves = {f"{word.removesuffix('f').removesuffix('fe')}ves": word for word in known if re.search("fe?$", word)}
    return {plural: word for plural, word in (things | plurals | halves).items() if plural not in known}


def _runs(words: Sequence[str]) -> list[str]:
    """The nouns that stand together, joined; other words part them."""
    nouns = [word if _is_noun(word, behind) else "\n" for word, behind in zip_longest(words, words[1:], fillvalue="")]
    return [run.strip() for run in " ".join(nouns).split("\n") if run.strip()]


def _is_noun(word: str, behind: str) -> bool:
    """By the lexicon: no small word, no number, and no property of the noun behind it ("orange", before "cat")."""
    if word in lexicon.SMALL or word.isdigit() or len(word) == 1:  # as the s of "dog's"
        return False
    swap = lexicon.swaps().get(word)
    is_property = _PAST.search(word) is not None or (swap is not None and swap.kind == "attribute")
    return not is_property or not behind or behind in lexicon.SMALL


def official_list(reply: str) -> list[str] | None:
    """The reply as JSON, or its last line where it holds [" somewhere. An object is a list of its keys."""
    tree = _json(reply)
    if tree is None and '["' in reply:
        tree = _json(reply.strip().split("\n")[-1])
    return [str(each) for each in tree] if isinstance(tree, (list, dict, str)) else None


def robust_list(reply: str) -> list[str] | None:
    """The last list of texts that the reply holds, whatever stands round it."""
    lists = (_json(part) or _literal(part) for part in _LIST.findall(plain(reply)))
    good = [part for part in lists if isinstance(part, list) and all(isinstance(each, str) for each in part)]
    return good[-1] if good else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _literal(text: str) -> Any:
    """['cat'], which is no JSON."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
