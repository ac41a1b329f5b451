"""How a model writes a conversation down: measured from its own chat template; training and llama.cpp share it.

    chat = chat_template.of(folder, tokenizer)
    chat.prompt("What is this?")   # "USER: <image>\\nWhat is this? ASSISTANT:"
    chat.answer("A red circle.")   # " A red circle.</s>"

A template is a program; what is needed of it are eight pieces of text. Rendering a few made-up conversations shows them
all, so that no list of models and their formats has to be kept.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from os.path import commonprefix
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from minipovid.common.errors import MinipovidError
from minipovid.models.hub import settings
from minipovid.models.tokenizer import SpecialTokens, adds_begin

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE = "<image>"  # the picture's placeholder, whatever the model's own is called
STEPS = 2_000_000  # lines of Python that a template may take for one conversation: a second or two
Role = Literal["system", "user", "assistant"]
Message = dict[str, Any]  # as templates of transformers get them
Render = Callable[[list[Message], bool], str]  # (messages, add_generation_prompt) -> text


class Turn(NamedTuple):
    """What one side says; pictures stand before the text."""

    role: Role
    text: str
    pictures: tuple[Image | Path, ...] = ()


@dataclass(frozen=True)
class Chat:
    """The pieces of a conversation.

    `prompt`, `answer` and `render` raise MinipovidError for a text that holds IMAGE, the sign that ends a turn or any
    special token of the model: it would be obeyed.
    """

    begin: str  # what a conversation without a system turn begins with
    system: tuple[str, str] | None  # around the text; None: it opens the first user turn, an empty line behind it
    user: tuple[str, str, str]  # before the pictures, between them and the text, behind the text
    picture: str  # holds IMAGE
    opening: str  # ends a prompt: here the model goes on
    assistant: str  # before an answer; begins with `opening`
    end: str  # ends an answer: the model's own sign that it is done
    after: str = ""  # between an answer and the next turn
    plain: str | None = None  # before a text without pictures, where that is not user[0] + user[1]
    special: SpecialTokens = field(default=SpecialTokens(), compare=False, repr=False)  # `dumps` leaves them out

    def prompt(self, question: str) -> str:
        """One picture and one question, up to where the answer begins."""
        return self.begin + self._user(self._checked(question), 1) + self.opening

    def answer(self, text: str) -> str:
        """What follows a prompt, the end of the turn included; it may stand in the text already (see `bare`)."""
        return self.assistant.removeprefix(self.opening) + self._checked(self.bare(text)) + self.end

    def bare(self, answer: str) -> str:
        """An answer without the sign that ends it, where a data set writes that out."""
        return self.special.without_end(answer, self.end)

    def obeyed(self, text: str) -> str:
        """What of a text would be obeyed instead of read, as the end of a sentence; "" where there is nothing."""
        for sign, what in ((IMAGE, "the placeholder"), (self.end, "the sign that ends a turn,")):
            if sign and sign in text:
                return f"holds {what} {sign}; leave it out"
        token = self.special.first(text)
        return token and f"holds {token}, a special token of this model; write it otherwise, or leave it out"

    def _checked(self, text: str) -> str:
        if why := self.obeyed(text):
            raise MinipovidError(f"The text {text[:40]!r} {why}.")
        return text

    def render(self, turns: Sequence[Turn], opened: bool = True) -> str:
        """A whole conversation, IMAGE standing for each picture in order; `opened`: ready for the next answer."""
        text, system = "" if turns and turns[0].role == "system" and self.system else self.begin, ""
        for turn in turns:
            self._checked(turn.text)
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
        if self.plain is not None and not pictures:
            return f"{self.plain}{text}{behind}"
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
        opens = _say(self.user[0]) + pictures + _say(self.user[1])
        if self.plain is not None:
            opens = _if_pictures(opens, _say(self.plain))
        user = opens + opens_user + _text("message") + _say(self.user[2])
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
        """As JSON, for a GGUF's metadata; its vocabulary knows which tokens are special."""
        pieces = asdict(self)
        del pieces["special"]
        if self.plain is None:
            del pieces["plain"]
        return json.dumps(pieces, ensure_ascii=False)

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


def _if_pictures(then: str, otherwise: str) -> str:
    """In Jinja: `then` where the message's parts hold a picture or a client's marker of one, else `otherwise`."""
    is_picture = "part['type'] != 'text' or '<__media' in part['text']"
    return (
        "{%- set seen = namespace(picture=false) -%}"
        "{%- if message['content'] is string -%}"
        "{%- if '<__media' in message['content'] -%}{%- set seen.picture = true -%}{%- endif -%}"
        "{%- else -%}{%- for part in message['content'] -%}"
        f"{{%- if {is_picture} -%}}{{%- set seen.picture = true -%}}{{%- endif -%}}"
        "{%- endfor -%}{%- endif -%}"
        f"{{%- if seen.picture -%}}{then}{{%- else -%}}{otherwise}{{%- endif -%}}"
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


def of(folder: Path, tokenizer: Any, image_token_id: int | None = None) -> Chat:
    """The format of a checkpoint: its processor's chat template, else its tokenizer's, else LLaVA 1.5's.

    `image_token_id` is the placeholder's; without it that is called IMAGE. Raises MinipovidError for a template that
    is no sequence of turns, and for damaged files.
    """
    special, image = SpecialTokens.of(tokenizer), placeholder(tokenizer, image_token_id)
    special = replace(special, texts=(*special.texts, image))
    begin = tokenizer.bos_token if adds_begin(tokenizer) else ""
    template = _template(folder, tokenizer.chat_template)
    if template is None:
        return replace(VICUNA, end=tokenizer.eos_token or VICUNA.end, special=special)

    def render(messages: list[Message], opened: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=opened
        )
        return text.removeprefix(begin)  # whoever tokenises adds it

    try:
        return replace(measure(render, tokenizer.eos_token, special.texts, image), special=special)
    except _Odd as odd:
        raise MinipovidError(f"The chat template in {folder} cannot be followed: {odd}.") from None


def placeholder(tokenizer: Any, image_token_id: int | None) -> str:
    """The text of a picture's placeholder. Raises MinipovidError for a number that is no token."""
    text = IMAGE if image_token_id is None else tokenizer.convert_ids_to_tokens(image_token_id)
    if not isinstance(text, str):
        raise MinipovidError(
            f"config.json calls token {image_token_id} a picture's placeholder (image_token_index), but the tokenizer "
            "has no such token; take both from the same model."
        )
    return text


def _template(folder: Path, tokenizers: Any) -> str | None:
    """The processor's, which knows of pictures: chat_template.jinja (transformers 5) or chat_template.json (4); else
    `tokenizers`, which transformers has read."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise MinipovidError(f"{path} is damaged and holds no text; download it again.") from None
    path = folder / "chat_template.json"
    if not path.is_file():
        return _main(tokenizers, f"The tokenizer in {folder}") if tokenizers else None
    template = _main(settings(path).get("chat_template"), str(path))
    if template is None:
        raise MinipovidError(f"{path} holds no chat template; download it again, or remove it.")
    return template


def _main(templates: Any, where: str) -> str | None:
    """The template that counts where several are named: as {name: text}, or as [{"name": ..., "template": ...}].

    None for what is neither one nor several.
    """
    if isinstance(templates, str):
        return templates
    if isinstance(templates, list) and all(isinstance(each, dict) for each in templates):
        templates = {each.get("name"): each.get("template") for each in templates}
    if not templates or not isinstance(templates, dict):
        return None
    if not isinstance(templates.get("default"), str):
        names = ", ".join(map(str, templates))
        raise MinipovidError(f"{where} has the chat templates {names} and none called default; name one so.")
    return str(templates["default"])


class _Odd(ValueError):
    """What keeps a template from being a few pieces of text."""

    @classmethod
    def differs(cls, what: str, one: str, other: str) -> _Odd:
        return cls(f"{what} ({_short(one)}, and {_short(other)})")


def _short(text: str) -> str:
    """The end of a piece that may be long: there the pieces of a conversation meet."""
    return repr(text if len(text) <= 60 else "..." + text[-57:])


_SYSTEM, _QUESTION, _ANSWER, _NEXT = "Behave-yourself", "First-question", "First-answer", "Second-question"


def measure(render: Render, eos: str, special: Sequence[str], image: str = IMAGE) -> Chat:
    """A template's pieces. `render` writes messages without a beginning-of-sequence token that is added later;
    `special` are the texts of the special tokens, one of which ends an answer; `image` is the placeholder's."""

    def write(*messages: Message, opened: bool = False) -> str:
        try:
            with _limited():
                return render(list(messages), opened).replace(image, IMAGE)
        except _Odd:
            raise
        except Exception as error:  # it is a program
            raise _Odd(f"it stops with {error!r}") from None

    user, says = _spelling(write, image)
    question, prompt = write(user(_QUESTION)), write(user(_QUESTION), opened=True)
    if not prompt.startswith(question):
        raise _Odd.differs("the place for an answer does not stand at the end", question, prompt)
    opening = prompt[len(question) :]
    head, close = _around(question, _QUESTION)
    exchange = write(user(_QUESTION), says(_ANSWER))
    between, ending = _around(_after(exchange, _QUESTION), _ANSWER)
    longer = write(user(_QUESTION), says(_ANSWER), user(_NEXT))
    next_user = _around(_after(longer, _ANSWER), _NEXT)[0]
    if not next_user.startswith(ending):
        raise _Odd.differs("an answer ends otherwise when a question follows", ending, next_user)
    open_user = next_user.removeprefix(ending)
    if not head.endswith(open_user):
        raise _Odd.differs("the first question is not written like the second", head, open_user)
    begin, assistant = head.removesuffix(open_user), between.removeprefix(close)
    end, after = _end(ending, eos, special)
    if not end:
        raise _Odd("nothing ends an answer, and the tokenizer names no eos_token")
    before, picture, behind = _picture(write, user, close)
    if not before.startswith(begin):
        raise _Odd.differs("a picture changes how a conversation begins", before, begin)
    around = (before.removeprefix(begin), behind)
    chat = Chat(
        begin=begin,
        system=_system(write, user, open_user),
        user=(*around, close),
        picture=picture,
        opening=opening,
        assistant=assistant,
        end=end,
        after=after,
        plain=None if "".join(around) == open_user else open_user,
    )
    _compare(write, user, says, replace(chat, end="", after=ending))  # the template's own: it may leave the end out
    if assistant.startswith(opening):
        return chat
    if assistant.split() != opening.split():  # white space alone: LLaVA-OneVision's and LLaVA-Interleave's
        raise _Odd.differs("an answer does not begin with what opens its place", assistant, opening)
    return replace(chat, assistant=opening)


def _compare(
    write: Callable[..., str], user: Callable[..., Message], says: Callable[[str], Message], chat: Chat
) -> None:
    """Raises _Odd for a template that writes conversations otherwise than its pieces do: one that counts turns, looks
    at what comes behind, or changes a turn after a picture."""
    systems = [[], [Turn("system", "Be-brief")]] if chat.system else [[]]
    for system, pictures in itertools.product(systems, ((0,), (1, 0), (0, 1, 0), (2, 1, 0, 0))):
        turns, messages = list(system), [{**user(turn.text), "role": "system"} for turn in system]
        for number, count in enumerate(pictures):
            asks, answers = f"Question-{number}", f"Answer-{number}"  # not the texts that the pieces were found by
            for turn, message in (
                (Turn("user", asks, (Path(),) * count), user(asks, count)),
                (Turn("assistant", answers), says(answers)),
            ):
                turns.append(turn)
                messages.append(message)
                opened = turn.role == "user"
                written, expected = write(*messages, opened=opened), chat.render(turns, opened)
                if written != expected:
                    end = len(commonprefix((written, expected))) + 20
                    raise _Odd.differs("it does not write all turns alike", written[:end], expected[:end])


@contextmanager
def _limited() -> Iterator[None]:
    """Within, a template that goes on for ever is stopped: by counting lines, since it may write nothing."""
    left = STEPS

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Odd("it does not come to an end")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _spelling(write: Callable[..., str], image: str) -> tuple[Callable[..., Message], Callable[[str], Message]]:
    """Messages as this template wants them: content in parts, or, for a template that knows only text, as a string
    in which pictures stand as LLaVA writes them. One that reads parts and leaves pictures out is refused."""

    def parts(text: str, pictures: int = 0) -> Message:
        return {"role": "user", "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}

    def string(text: str, pictures: int = 0) -> Message:
        return {"role": "user", "content": f"{image}\n" * pictures + text}

    try:
        seen = write(parts(_QUESTION, 1))
    except _Odd:
        seen = ""  # it adds strings
    if IMAGE in seen:
        return parts, lambda text: {"role": "assistant", "content": [{"type": "text", "text": text}]}
    if _QUESTION in seen and not re.search(r"""['"]type['"]""", seen):  # else it wrote the list itself down
        raise _Odd.differs(f"it writes no placeholder {image} for a picture", seen, write(parts(_QUESTION)))
    return string, lambda text: {"role": "assistant", "content": text}


def _picture(write: Callable[..., str], user: Callable[..., Message], close: str) -> tuple[str, str, str]:
    """(what stands before the pictures, what each of them adds, what stands between them and the text).

    The piece of one picture is what two of them have twice. It may begin before its placeholder (Qwen's marks do).
    """
    one, two = (write(user(_QUESTION, pictures)) for pictures in (1, 2))
    length, text = len(two) - len(one), one.find(_QUESTION)
    for start in range(one.find(IMAGE), -1, -1):
        piece = one[start : start + length]
        if IMAGE in piece and start + length <= text and two == one[:start] + piece + one[start:]:
            if one[text:] != _QUESTION + close:
                raise _Odd.differs("a picture changes what stands behind a question", one[text:], _QUESTION + close)
            return one[:start], piece, one[start + length : text]
    raise _Odd.differs("a picture does not add the same text to every question", one, two)


def _system(write: Callable[..., str], user: Callable[..., Message], open_user: str) -> tuple[str, str] | None:
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
