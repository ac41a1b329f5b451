"""How a model writes a conversation down: measured from its own chat template; training and llama.cpp share it.

    chat = chat_template.of(folder, tokenizer)
    chat.prompt("What is this?")   # "USER: <image>\\nWhat is this? ASSISTANT:"
    chat.answer("A red circle.")   # " A red circle.</s>"

A template is a program; what is needed of it are eight pieces of text. Rendering a few made-up conversations shows them
all, so that no list of models and their formats has to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from minipovid.common.errors import MinipovidError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE = "<image>"  # the picture's placeholder
Role = Literal["system", "user", "assistant"]
Render = Callable[[list[dict[str, Any]], bool], str]  # (messages, add_generation_prompt) -> text


class Turn(NamedTuple):
    """What one side says; pictures stand before the text."""

    role: Role
    text: str
    pictures: tuple[Image | Path, ...] = ()


@dataclass(frozen=True)
class Chat:
    """The pieces of a conversation."""

    begin: str  # what a conversation without a system turn begins with
    system: tuple[str, str] | None  # around the text; None: it opens the first user turn, an empty line behind it
    user: tuple[str, str, str]  # before the pictures, between them and the text, behind the text
    picture: str  # holds IMAGE
    opening: str  # ends a prompt: here the model goes on
    assistant: str  # before an answer; begins with `opening`
    end: str  # ends an answer: the model's own sign that it is done
    after: str = ""  # between an answer and the next turn

    def prompt(self, question: str) -> str:
        """One picture and one question, up to where the answer begins."""
        return self.begin + self._user(question, 1) + self.opening

    def answer(self, text: str) -> str:
        """What follows a prompt, the end of the turn included."""
        return self.assistant.removeprefix(self.opening) + text + self.end

    def render(self, turns: Sequence[Turn], opened: bool = True) -> str:
        """A whole conversation, IMAGE standing for each picture in order; `opened`: ready for the next answer.

        Raises MinipovidError for a text that holds IMAGE, or the sign that ends a turn: it would be obeyed.
        """
        text, system = "" if turns and turns[0].role == "system" and self.system else self.begin, ""
        for turn in turns:
            for sign, what in ((IMAGE, "the placeholder"), (self.end, "the sign that ends a turn,")):
                if sign in turn.text:
                    raise MinipovidError(f"The text {turn.text[:40]!r} holds {what} {sign}; leave it out.")
            if turn.role == "user":
                text, system = text + self._user(system + turn.text, len(turn.pictures)), ""
            elif turn.role == "assistant":
                text += self.assistant + turn.text + self.end + self.after
            elif self.system:
                text += turn.text.join(self.system)
            else:
                system += turn.text + "\n\n"
        return text + (self.opening if opened else "")

    def _user(self, text: str, pictures: int) -> str:
        before, between, behind = self.user
        return f"{before}{self.picture * pictures}{between}{text}{behind}"

    def template(self, first: str) -> str:
        """The same in Jinja, for llama.cpp. One line: no option trims it. `first` stands before everything.

        Pictures come first, then the texts. A client that has put its picture's marker into a text part
        (`<__media...`) is understood; a message whose content is one string stands as it is.
        """
        before, behind = self.picture.split(IMAGE)
        has_marker = "part['type'] == 'text' and '<__media' in part['text']"
        pictures = (
            "{%- if message['content'] is not string -%}{%- for part in message['content'] -%}"
            f"{{%- if {has_marker} -%}}{{{{ {before!r} + part['text'] + {behind!r} }}}}"
            f"{{%- elif part['type'] != 'text' -%}}{{{{ {self.picture!r} }}}}{{%- endif -%}}"
            "{%- endfor -%}{%- endif -%}"
        )
        begin, system, opens_user = _say(self.begin), "", ""
        if self.system:
            begin = "{%- if messages[0]['role'] != 'system' -%}" + begin + "{%- endif -%}"
            system = _say(self.system[0]) + _text("message") + _say(self.system[1])
        else:
            is_second = "loop.index0 == 1 and messages[0]['role'] == 'system'"
            opens_user = f"{{%- if {is_second} -%}}" + _text("messages[0]") + _say("\n\n") + "{%- endif -%}"
        user = _say(self.user[0]) + pictures + _say(self.user[1]) + opens_user + _text("message") + _say(self.user[2])
        assistant = _say(self.assistant) + _text("message") + _say(self.end + self.after)
        return (
            f"{_say(first)}{begin}"
            "{%- for message in messages -%}"
            f"{{%- if message['role'] == 'user' -%}}{user}"
            f"{{%- elif message['role'] == 'assistant' -%}}{assistant}"
            f"{{%- else -%}}{system}{{%- endif -%}}"
            "{%- endfor -%}"
            f"{{%- if add_generation_prompt -%}}{_say(self.opening)}{{%- endif -%}}"
        )

    def dumps(self) -> str:
        """As JSON, for a GGUF's metadata."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def loads(cls, text: str) -> Chat:
        """The inverse of `dumps`."""
        pieces = json.loads(text)
        pairs = {name: tuple(pieces[name]) for name in ("system", "user") if pieces[name] is not None}
        return cls(**{**pieces, **pairs})


def _say(piece: str) -> str:
    """A piece of text in Jinja, which reads Python's string literals."""
    return f"{{{{ {piece!r} }}}}" if piece else ""


def _text(message: str) -> str:
    """A message's text in Jinja: its content as it stands, or all parts that are text and no marker."""
    plain = "part['type'] == 'text' and '<__media' not in part['text']"
    return (
        f"{{%- if {message}['content'] is string -%}}{{{{ {message}['content'] }}}}{{%- else -%}}"
        f"{{%- for part in {message}['content'] if {plain} -%}}{{{{ part['text'] }}}}{{%- endfor -%}}{{%- endif -%}}"
    )


# LLaVA 1.5's, for a checkpoint that ships no template.
VICUNA = Chat(
    begin="",
    system=("", " "),
    user=("USER: ", "", " "),
    picture="<image>\n",
    opening="ASSISTANT:",
    assistant="ASSISTANT: ",
    end="</s>",
)


def of(folder: Path, tokenizer: Any) -> Chat:
    """The format of a checkpoint: its processor's chat template, else its tokenizer's, else LLaVA 1.5's.

    Raises MinipovidError for a template that is no sequence of turns.
    """
    template = _template(folder) or tokenizer.chat_template
    if not template:
        return replace(VICUNA, end=tokenizer.eos_token or VICUNA.end)

    def render(messages: list[dict[str, Any]], opened: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=opened
        )
        return text.removeprefix(tokenizer.bos_token or "")  # whoever tokenises adds it

    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    try:
        return measure(render, tokenizer.eos_token, special)
    except _Odd as odd:
        raise MinipovidError(f"The chat template in {folder} cannot be followed: {odd}.") from None


def _template(folder: Path) -> str | None:
    """The processor's, which knows of pictures: chat_template.jinja (transformers 5) or chat_template.json (4)."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        template = json.loads((folder / "chat_template.json").read_text(encoding="utf-8")).get("chat_template")
        return template if isinstance(template, str) else None
    return None


class _Odd(ValueError):
    """What keeps a template from being eight pieces of text."""


_SYSTEM, _QUESTION, _ANSWER, _NEXT = "Behave-yourself", "First-question", "First-answer", "Second-question"


def measure(render: Render, eos: str, special: Sequence[str]) -> Chat:
    """A template's pieces. `render` writes messages without a beginning-of-sequence token; `special` are the texts of
    the special tokens, one of which ends an answer."""
    from jinja2.exceptions import TemplateError

    def write(*messages: dict[str, Any], opened: bool = False) -> str:
        try:
            return render(list(messages), opened)
        except (TemplateError, TypeError, KeyError) as error:
            raise _Odd(f"it stops with {error!r}") from None

    user, says = _spelling(write)
    question, prompt = write(user(_QUESTION)), write(user(_QUESTION), opened=True)
    if not prompt.startswith(question):
        raise _Odd("the place for an answer does not stand at the end")
    opening = prompt[len(question) :]
    head, close = _around(question, _QUESTION)
    exchange = write(user(_QUESTION), says(_ANSWER))
    between, ending = _around(_after(exchange, _QUESTION), _ANSWER)
    longer = write(user(_QUESTION), says(_ANSWER), user(_NEXT))
    next_user = _around(_after(longer, _ANSWER), _NEXT)[0]
    if not next_user.startswith(ending):
        raise _Odd("an answer ends otherwise when a question follows")
    open_user = next_user.removeprefix(ending)
    if not head.endswith(open_user):
        raise _Odd("the first question is not written like the second")
    begin, assistant = head.removesuffix(open_user), between.removeprefix(close)
    end, after = _end(ending, eos, special)
    picture, place = _picture(write, user)
    return Chat(
        begin=begin,
        system=_system(write, user, open_user),
        user=(head[len(begin) : place], head[place:], close),
        picture=picture,
        opening=opening,
        assistant=assistant if assistant.startswith(opening) else opening,
        end=end,
        after=after,
    )


def _spelling(write: Callable[..., str]) -> tuple[Callable[..., dict[str, Any]], Callable[[str], dict[str, Any]]]:
    """Messages as this template wants them: content in parts, or, for a template that knows only text, as a string
    in which pictures stand as LLaVA writes them."""

    def parts(text: str, pictures: int = 0) -> dict[str, Any]:
        return {"role": "user", "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}

    def string(text: str, pictures: int = 0) -> dict[str, Any]:
        return {"role": "user", "content": f"{IMAGE}\n" * pictures + text}

    try:
        if write(parts(_QUESTION, 1)).count(IMAGE) == 1:
            return parts, lambda text: {"role": "assistant", "content": [{"type": "text", "text": text}]}
    except _Odd:
        pass  # it adds strings
    return string, lambda text: {"role": "assistant", "content": text}


def _picture(write: Callable[..., str], user: Callable[..., dict[str, Any]]) -> tuple[str, int]:
    """What one picture adds to a question, and where; two must add it twice."""
    none, one, two = (write(user(_QUESTION, pictures)) for pictures in range(3))
    at = one.find(IMAGE)
    piece = one[at : at + len(one) - len(none)]
    if at < 0 or one.replace(piece, "", 1) != none or two != one.replace(piece, piece * 2, 1):
        raise _Odd("a picture does not add the same text to every question")
    return piece, at


def _system(write: Callable[..., str], user: Callable[..., dict[str, Any]], open_user: str) -> tuple[str, str] | None:
    """Around a system turn; None where the template has no place for one."""
    content = user(_SYSTEM)["content"]
    try:
        text = write({"role": "system", "content": content}, user(_QUESTION))
        before, behind = _around(text.partition(_QUESTION)[0], _SYSTEM)
    except _Odd:
        return None
    return (before, behind.removesuffix(open_user)) if behind.endswith(open_user) else None


def _end(ending: str, eos: str, special: Sequence[str]) -> tuple[str, str]:
    """(up to and with the token that ends an answer, the rest). A template may leave that token out."""
    ends = [(ending.find(token), token) for token in (eos, *special) if token and token in ending]
    if not ends:
        return eos, "" if not ending.strip() else ending
    at, token = min(ends)
    return ending[: at + len(token)], ending[at + len(token) :]


def _around(text: str, part: str) -> tuple[str, str]:
    before, match, behind = text.partition(part)
    if not match:
        raise _Odd(f"it leaves out a text ({part!r})")
    return before, behind


def _after(text: str, part: str) -> str:
    return _around(text, part)[1]
