"""A judge model reads the answers: each is asked about until the benchmark understands the reply, or asks no more.

    answers, by = judged(benchmark, answers, teacher, "mmhal")
    answers[0].judgement      # the judge's last reply, understood or not; None: there was none
    by["model"]               # who replied, as the server names itself

What was replied is in the teacher's cache the moment it comes, so that the same command asks nothing twice. A retry is
a question of its own there, even where its words are those of the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from tqdm import tqdm

from minipovid.common.errors import MinipovidError
from minipovid.common.pool import Pool
from minipovid.evaluate.benchmarks import Answer, Judging
from minipovid.inference.remote import ChatModel, Message, Stopped, Unanswered, Usage

_SHOWN = 5  # different reasons for no reply that are recorded


class JudgeReply(NamedTuple):
    """What came of asking about one answer: the last reply, who gave it, and why there was none."""

    text: str | None
    models: frozenset[str] = frozenset()
    why: str = ""


def judged(
    benchmark: Judging, answers: Sequence[Answer], teacher: ChatModel, label: str
) -> tuple[list[Answer], dict[str, Any]]:
    """The answers with their judgements, in order; and who judged and what it took, ready for JSON.

    An answer that no reply came to keeps None. Raises MinipovidError where no more may be asked (a budget, a key):
    what was judged until then is kept.
    """
    before = teacher.spent()
    with tqdm(
        total=len(answers), desc=f"{label} judged", unit="answer", disable=not sys.stderr.isatty(), file=sys.stderr
    ) as bar:
        verdicts, stopped = _through(benchmark, answers, teacher, bar.update)
    if stopped is not None:
        why = str(stopped).rstrip(".")
        raise MinipovidError(
            f"{len(verdicts):,} of {len(answers):,} answers of {label} are judged: {why}. They are kept; the same "
            "command goes on from there."
        )
    judged_answers = [replace(answer, judgement=verdicts[place].text) for place, answer in enumerate(answers)]
    return judged_answers, _account(teacher, before, list(verdicts.values()))


def _through(
    benchmark: Judging, answers: Sequence[Answer], teacher: ChatModel, step: Callable[[], object]
) -> tuple[dict[int, JudgeReply], Stopped | None]:
    """The verdicts by the answers' places, and what ended it early."""
    verdicts: dict[int, JudgeReply] = {}
    ended: Stopped | None = None

    def work(item: tuple[int, Answer]) -> tuple[int, JudgeReply | Stopped]:
        place, answer = item
        try:
            return place, _verdict(benchmark, answer, teacher)
        except Stopped as stopped:
            return place, stopped

    with Pool(work, enumerate(answers), teacher.concurrency, teacher.stop) as crew:
        for place, verdict in crew.results():
            if isinstance(verdict, Stopped):
                crew.close()
                ended = verdict  # they all say why the first one stopped
            else:
                verdicts[place] = verdict
                step()
    return verdicts, ended


def _verdict(benchmark: Judging, answer: Answer, teacher: ChatModel) -> JudgeReply:
    """Raises Stopped."""
    text, why = None, ""
    models: set[str] = set()
    for attempt in count():
        request = benchmark.ask(answer, attempt)
        if request is None:
            break
        try:
            turns, version = [Message(*turn) for turn in request.turns], f"judge {attempt}"
            reply = teacher.ask(turns, None, version, temperature=request.temperature, max_tokens=request.max_tokens)
        except Unanswered as error:
            return JudgeReply(None, frozenset(models), str(error))  # what the next attempts had brought, nobody knows
        models |= {reply.model} - {""}
        why = reply.why_none
        if why:
            continue  # no judgement, whatever it says
        text = reply.text
        if benchmark.understands(answer, text):
            break
    return JudgeReply(text, frozenset(models), why if text is None else "")


def _account(teacher: ChatModel, before: Usage, verdicts: Sequence[JudgeReply]) -> dict[str, Any]:
    """`model` is who replied; who was asked, where the server never says."""
    models = sorted({model for verdict in verdicts for model in verdict.models})
    now = teacher.spent()
    took = Usage(
        now.requests - before.requests,
        now.prompt_tokens - before.prompt_tokens,
        now.answer_tokens - before.answer_tokens,
        now.estimated - before.estimated,
    )
    return {
        "model": ", ".join(models) or teacher.model,
        "asked": teacher.model,
        "requests": took.requests,
        "prompt_tokens": took.prompt_tokens,
        "answer_tokens": took.answer_tokens,
        "cost": teacher.prices.of(took) if teacher.prices else None,
        "no_reply": sorted({verdict.why for verdict in verdicts} - {""})[:_SHOWN],
    }
