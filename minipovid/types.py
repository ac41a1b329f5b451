"""The nouns that every floor shares. Nothing here imports torch.

Shapes are written with these letters throughout the code:
    B pairs in a batch    A answer positions, padded to the batch's longest    V vocabulary    H hidden size
    P prompt positions, image tokens included    N image tokens    S side of the square model input, in pixels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minipovid.images.load import ImageTransform

AnswerKind = Literal["chosen", "rejected"]
ImageKind = Literal["clean", "noised", "cropped"]
ViewKey = tuple[AnswerKind, ImageKind]
Asked = Literal["nothing", "own", "any"]


class Span(NamedTuple):
    """Characters [start, end) of the rejected answer that were made wrong, and how: a POVID error family."""

    start: int
    end: int
    kind: str  # "object" | "relation" | "attribute"


@dataclass(frozen=True)
class Pair:
    """One preference: for this picture and prompt, `chosen` is better than `rejected`.

    `image` is relative to the image root. `source` says who made each half, for example
    {"chosen": "ground truth", "rejected": "rule"}.
    """

    id: str
    image: str
    prompt: str
    chosen: str
    rejected: str
    source: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()


class BadRow(NamedTuple):
    """A row that is no Pair: where it stands and one sentence that says why and what to do."""

    where: str  # "row 12" or "row 12 (id 000000393212)"
    why: str


class PairReader(Protocol):
    """A module on the `pairs` shelf, named by the format: `data.format: povid` is `pairs/povid.py`."""

    def read(self, path: Path) -> Iterator[Pair | BadRow]:
        """Every row of the file, in order. Raises MinipovidError where the file as a whole is not this format."""


class View(NamedTuple):
    """One scored sequence that a loss asks for: which answer under which picture.

    `grad` says whether the policy's pass needs gradients; `reference` what the loss asks of the reference model here:
    nothing, the log-probabilities of the answer's own tokens, or anything (other tokens', the most probable ones,
    logits). The less it asks, the less is computed and kept on disk.
    """

    answer: AnswerKind
    image: ImageKind
    grad: bool = True
    reference: Asked = "any"

    @property
    def key(self) -> ViewKey:
        return self.answer, self.image


class Scores(Protocol):
    """What a model said of one answer under one picture, at the answer's positions only; padded positions hold 0."""

    ids: Tensor  # [B, A] the answer's own tokens, end-of-sequence included
    mask: Tensor  # [B, A] True at real answer positions

    def logps(self, ids: Tensor | None = None) -> Tensor:
        """Float32 log-probabilities [B, A] of `ids` (default: the answer itself) given the answer's own prefix."""

    def argmax(self) -> Tensor:
        """The most probable token [B, A] at each position; carries no gradient."""

    def logits(self) -> Tensor:
        """Float32 logits [B, A, V]: ask only where log-probabilities will not do."""


ScoreTable = Mapping[ViewKey, Scores]


class Judged(NamedTuple):
    """What a loss says of a batch: the value to minimise and the rewards to log, one per pair."""

    loss: Tensor  # [B]
    chosen_rewards: Tensor  # [B] beta * (log pi - log ref) of the chosen answer, detached
    rejected_rewards: Tensor  # [B]


class Loss(Protocol):
    """A frozen dataclass whose fields are the recipe's keys under `loss:`."""

    @property
    def views(self) -> Sequence[View]:
        """The passes it needs of policy and reference."""

    def __call__(self, policy: ScoreTable, reference: ScoreTable) -> Judged: ...


@dataclass(frozen=True)
class Question:
    """One benchmark question; `truth` holds what the benchmark needs to score the answer.

    `image` is relative to the pictures' folder, or a pictures.Embedded, or "" where the question is about text alone.
    """

    id: str
    image: str
    prompt: str
    truth: Mapping[str, Any]
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """What a backend answered, and what a judge replied about it; None where none was asked or none replied."""

    question: Question
    text: str
    judgement: str | None = None


Mode = Literal["official", "robust"]
Counts = Mapping[str, float]
UNPARSED, FAILED = "unparsed", "failed"  # verdicts with a meaning of their own: not understood; no judge replied


class Mark(NamedTuple):
    """How one answer was read. What shares a `unit` (a picture, a set of questions) is not independent."""

    unit: str
    verdict: str  # "yes", "B", "2 of 5 absent", UNPARSED, FAILED, ...
    right: bool | None = None  # None: there is no such thing (a description), or nobody knows (FAILED)
    wrong: tuple[tuple[int, int], ...] = ()  # characters [start, end) of the answer that name what is not there


class Sheet(NamedTuple):
    """All answers, graded: a mark for each, and what each unit adds to the sums that the figures are made of."""

    marks: Sequence[Mark]
    units: Mapping[str, Counts]


class Exam(NamedTuple):
    """A benchmark's questions, the files they came from, and what a reader should know of them."""

    questions: Sequence[Question]
    files: Sequence[Path]
    notes: Sequence[str] = ()  # one sentence each: which version, what is not official about it


class Benchmark(Protocol):
    """A frozen dataclass `Benchmark` in a module on the `benchmarks` shelf; its fields are the options that users set.

    Pure: it reads its files and scores answers, and knows no model. `grade` and `figures` are apart so that intervals
    and paired tests can draw the units again: every figure is a function of sums over units.
    """

    source: ClassVar[str]  # where its files come from, as a clause: "output/coco of github.com/RUCAIBox/POPE"
    headline: ClassVar[Sequence[str]]  # figures of the overview; "f1" stands for "adversarial/f1" as well
    lower_is_better: ClassVar[Set[str]]  # likewise
    coverage: ClassVar[Set[str]]  # likewise: what a model loses that says less, such as recall

    def read(self, path: Path) -> Exam:
        """Raises MinipovidError where the file or folder is not this benchmark's, saying what it should be."""

    def grade(self, answers: Sequence[Answer]) -> Sheet: ...

    def figures(self, totals: Counts) -> dict[str, float]:
        """From the sums of the units' counts; nan where the official script divides by zero."""


@runtime_checkable
class Judging(Protocol):
    """What a benchmark has beside that, where a judge model reads the answers.

    `ask` is called with attempt 0, 1, ... until it returns None or `understands` the reply to it.
    """

    @property
    def judge(self) -> str:
        """The official script's judge model; empty where no judge is asked, as the options are set."""

    def ask(self, answer: Answer, attempt: int) -> Request | None: ...

    def understands(self, answer: Answer, reply: str) -> bool: ...


class Request(NamedTuple):
    """What a judge is asked: turns of (role, text), and how it decodes."""

    turns: Sequence[tuple[Literal["system", "user", "assistant"], str]]
    temperature: float = 0.0
    max_tokens: int = 1024


class Family(Protocol):
    """What one kind of vision-language model must say of itself: a module on the `families` shelf, named by
    config.json's `model_type`."""

    LORA_TARGETS: str  # regex over module names: the language model's linear layers, and nothing of the vision side

    COLUMNWISE: Sequence[str]  # modules within a decoder layer that compute each position by itself, behind attention

    def image_token(self, config: Any) -> tuple[int, int]:
        """(id of the placeholder token, how many image tokens one picture takes)."""

    def image_transform(self, folder: Path) -> ImageTransform: ...

    def text_model(self, model: nn.Module) -> nn.Module: ...

    def vision_modules(self, model: nn.Module) -> Sequence[nn.Module]:
        """Tower and projector: never quantised, never trained."""

    def image_features(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Projected features [B, N, H] of pixels [B, 3, S, S]."""
