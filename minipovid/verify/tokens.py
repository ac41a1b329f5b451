"""Does llama.cpp read and write the tokens that training saw? Template, beginning of sequence, vocabulary.

What the trained model's own tokenizer says stands in the sheet, so neither transformers nor the base is needed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any, Protocol

from minipovid.common.errors import MinipovidError
from minipovid.models.chat_template import IMAGE, Chat, Turn
from minipovid.verify.causes import Cause
from minipovid.verify.files import value

NORMAL = 1  # llama.cpp's type of an ordinary token
SPM = "llama"  # llama.cpp's name for vocabularies that are cut by their tokens' scores
QUESTION, ANSWER = "Is there a red circle?\nAnswer yes or no.", "Yes, there is."
PICTURE = (Path("picture"),)


class PromptTokenizer(Protocol):
    """Whoever turns text into tokens: minipovid.inference.llama_cpp.Runtime is one."""

    @property
    def chat(self) -> Chat: ...

    def prompt_ids(self, prompt: str) -> list[int]: ...

    def answer_tokens(self, prompt: str, answer: str) -> list[int]: ...


def examine(file: str, header: Any, chat: Chat) -> Iterator[Cause]:
    """Faults of a text GGUF's vocabulary and of its chat template, which other programs than ours use.

    `header` is the open GGUF, `chat` how the trained model writes a conversation down.
    """
    if _is_flat(header):
        what = "all of its tokens have one score, by which llama.cpp decides how a text is cut"
        yield Cause.of(file, "tokenizer scores flattened", what)
    first = str(value(header, "minipovid.first") or "")
    template = value(header, "tokenizer.chat_template")
    if not template:
        yield Cause.of(file, "wrong template", "it has no chat template; other programs would make one up")
        return
    question, answer = Turn("user", QUESTION, PICTURE), Turn("assistant", ANSWER)
    conversations = [[question], [question, answer, Turn("user", "Why?")]]
    if chat.system is not None:
        conversations.append([Turn("system", "Be brief."), question])
    for turns in conversations:
        written, wanted = _rendered(template, turns, header), first + chat.render(turns, True)
        begin = _text(header, "bos")
        if value(header, "tokenizer.ggml.add_bos_token") and begin and written.removeprefix(first).startswith(begin):
            yield Cause.of(file, "double BOS", f"its chat template writes {begin}, which llama.cpp adds by itself")
            return
        if written != wanted:
            yield Cause.of(file, "wrong template", f"its chat template writes {_difference(written, wanted)}")
            return


def compare(
    file: str, header: Any, tokenizer: PromptTokenizer, chat: Chat, prompt: str, expected: Sequence[int]
) -> Cause | None:
    """Why the prompt's tokens, as our own runtime makes them, are not those of training."""
    written, wanted = tokenizer.chat.prompt(prompt), chat.prompt(prompt)
    if written.count(IMAGE) != 1:  # there is nothing to cut it at
        what = f"its prompts have {written.count(IMAGE)} places for a picture, and are written"
        return Cause.of(file, "wrong template", f"{what} {_difference(written, wanted)}")
    ids = tokenizer.prompt_ids(prompt)
    if list(ids) == list(expected):
        return None
    begin = value(header, "tokenizer.ggml.bos_token_id")
    if list(ids) == [begin, *expected]:
        return Cause.of(
            file, "double BOS", f"a prompt begins with {_text(header, 'bos')} twice, where training saw one"
        )
    if [begin, *ids] == list(expected):
        return Cause.of(file, "BOS missing", f"a prompt does not begin with {_text(header, 'bos')}, as training saw it")
    if written != wanted:
        return Cause.of(file, "wrong template", f"its prompts are written {_difference(written, wanted)}")
    if _is_flat(header):
        return None  # said already
    return _other_tokens(file, wanted, ids, expected)


def answers(file: str, tokenizer: PromptTokenizer, chat: Chat) -> Cause | None:
    """A difference in how answers are written."""
    written, wanted = tokenizer.chat.answer(ANSWER), chat.answer(ANSWER)
    if written == wanted:
        return None
    return Cause.of(file, "wrong template", f"its answers are written {_difference(written, wanted)}")


def compare_answer(
    file: str, header: Any, tokenizer: PromptTokenizer, prompt: str, answer: str, expected: Sequence[int]
) -> Cause | None:
    """Why an answer's tokens behind its prompt are not those of training, where prompts and template are well."""
    if _is_flat(header):
        return None  # said already
    try:
        ids = tokenizer.answer_tokens(prompt, answer)
    except MinipovidError:
        what = f"the answer {answer!r} melts into the prompt's last token, which it did not in training"
        return Cause.of(file, "other tokens", what)
    return None if list(ids) == list(expected) else _other_tokens(file, answer, ids, expected)


def _other_tokens(file: str, text: str, ids: Sequence[int], expected: Sequence[int]) -> Cause:
    at = len(commonprefix([list(ids), list(expected)]))
    ours, theirs = list(ids[at : at + 6]), list(expected[at : at + 6])
    return Cause.of(file, "other tokens", f"{text!r} goes on at token {at} as {ours}, where training saw {theirs}")


def _is_flat(header: Any) -> bool:
    """Have all ordinary tokens one score, where llama.cpp cuts texts by these?"""
    if value(header, "tokenizer.ggml.model") != SPM:
        return False
    scores, kinds = (value(header, f"tokenizer.ggml.{key}") or [] for key in ("scores", "token_type"))
    return len({score for score, kind in zip(scores, kinds, strict=False) if kind == NORMAL}) <= 1


def _rendered(template: str, turns: Sequence[Turn], header: Any) -> str:
    """By Jinja, in its sandbox: the file may be anybody's."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    messages = [
        {"role": turn.role, "content": [*[{"type": "image"}] * len(turn.pictures), {"type": "text", "text": turn.text}]}
        for turn in turns
    ]
    try:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(template).render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=_text(header, "bos"),
            eos_token=_text(header, "eos"),
        )
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:  # it is a program
        return f"nothing ({error})"


def _text(header: Any, role: str) -> str:
    """The text of a special token; "" where there is none."""
    index, tokens = value(header, f"tokenizer.ggml.{role}_token_id"), value(header, "tokenizer.ggml.tokens")
    return str(tokens[index]) if index is not None and tokens and index < len(tokens) else ""


def _difference(written: str, wanted: str) -> str:
    """From a little before the first character that differs."""
    at = max(len(commonprefix([written, wanted])) - 10, 0)
    return f"{written[at : at + 40]!r}, where training wrote {wanted[at : at + 40]!r}"
