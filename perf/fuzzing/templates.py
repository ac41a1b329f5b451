"""Chat templates of made-up checkpoints; through models.chat_template.of and Chat.render.

A template is put together from pieces: what stands before the system's text, the user's, the picture, the answer, and
behind them. Some count turns, change a text, stop at a system turn or are cut. The oracle renders the same conversation
of one to five turns with jinja2 itself; a template that minipovid takes must give the same text for it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.case import REFUSED, Case, harmed, words

BOS, EOS = "<s>", "</s>"  # of the tiny world's tokenizer, which is asked below
PICTURE = "<image>"
_ANY = "{% if part.type == 'image' %}PIC{% else %}{{ part.text }}{% endif %}"
_PARTS = "{% for part in message['content'] %}" + _ANY + "{% endfor %}"
_STRING = "{{ message['content'] }}"
_TEXTS = {  # how a template finds what a message says
    "parts": _PARTS,
    "pictures first": "{% for part in message['content'] if part['type'] == 'image' %}PIC{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}",
    "strings": _STRING,
    "both": "{% if message['content'] is string %}" + _STRING + "{% else %}" + _PARTS + "{% endif %}",
}


def case(dice: Random, folder: Path) -> Case:
    _tokenizer()  # whose import takes longer than any case may
    texts = dice.choice(list(_TEXTS))
    template, notes = _template(dice, texts)
    is_sound = not notes
    if dice.random() < 0.25:
        how, data = harmed(dice, template.encode())
        template, is_sound = data.decode("utf-8", "replace"), False
        notes.append(how)
    place, told = _placed(dice, folder, template)
    turns = [] if dice.random() < 0.7 else [("system", words(dice), 0)]
    for number in range(dice.choice([1, 1, 3, 5])):
        role = "assistant" if number % 2 else "user"
        turns.append((role, words(dice), 0 if number % 2 else dice.choice([0, 1, 1, 1, 2])))
    if dice.random() < 0.05:  # a text that says what only a template may say
        role, text, pictures = turns[-1]
        turns[-1] = role, text + dice.choice([PICTURE, f" {EOS}"]), pictures
        notes.append("control token in a text")
    made = " ".join([texts, "in", *place, *notes])
    shown = f"{template!r} with {turns}"
    is_broken = "broken" in place or "control token in a text" in notes

    def meant() -> Any:
        return REFUSED if is_broken else _meant(template, texts, turns)

    return Case(made, shown, lambda: _said(folder, told, turns), meant, not is_sound or is_broken, _differs)


def _differs(got: str, want: str) -> str:
    """A template may leave out the sign that ends an answer: minipovid then writes it for the white space there."""
    without = r"\s*".join(map(re.escape, got.split(EOS)))
    return "" if got == want or EOS not in want and re.fullmatch(without, want) else "another text"


def _said(folder: Path, told: Any, turns: list[tuple[Any, str, int]]) -> str:
    """The conversation as minipovid writes it."""
    from minipovid.models import chat_template

    tokenizer = _tokenizer()
    tokenizer.chat_template = told
    chat = chat_template.of(folder, tokenizer)
    written = [chat_template.Turn(role, text, (Path("a.png"),) * pictures) for role, text, pictures in turns]
    return chat.render(written)


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    from minipovid.tinyworld import CHECKPOINT

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS), (tokenizer.bos_token, tokenizer.eos_token)
    return tokenizer


# --- spellings ---


def _template(dice: Random, texts: str) -> tuple[str, list[str]]:
    """(a template, what is odd about it)."""
    notes: list[str] = []
    begin = dice.choice(["", "", "{{ bos_token }}", "A chat.\n\n", "{{ bos_token }}A chat. "])
    user, system = dice.choice(
        [("USER: ", ""), ("<|user|>\n", "<|system|>\n"), ("[INST] ", "[SYS] "), ("### Human: ", "### System: ")]
    )
    close, answer = dice.choice(
        [(" ", "ASSISTANT: "), ("\n", "<|assistant|>\n"), (" [/INST] ", ""), ("\n", "### Assistant:")]
    )
    end = "{{ eos_token }}" + dice.choice(["", "\n", " "])
    picture = dice.choice([PICTURE, f"{PICTURE}\n", f"[IMG]{PICTURE}[/IMG]", f"{PICTURE} "])
    text = _TEXTS[texts].replace("PIC", picture)
    opened = answer.rstrip() if dice.random() < 0.3 and answer.strip() else answer
    odd = dice.choice(
        [""] * 10 + ["counts", "upper", "first", "last", "date", "dead", "no end", "strips", "turns", "tools", "eval"]
    )
    notes += [odd] * bool(odd)
    behind = {
        "counts": "{{ loop.index }}",
        "last": "{% if loop.last %}!{% endif %}",
        "turns": "{{ messages | length }}",
    }.get(odd, "")
    if odd == "upper":
        text = "{% filter upper %}" + text + "{% endfilter %}"
    if odd == "strips":
        text = "{% filter trim %}" + text + "{% endfilter %}"
    if odd == "first":
        user = "{% if loop.first %}Hello. {% endif %}" + user
    if odd == "no end":
        end = "\n"
    guard = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turn') }}{% endif %}"
    has_system = dice.choice(["says it", "stops", "merges"]) if system else "stops"
    said = {
        "says it": "{% elif message['role'] == 'system' %}" + system + text + "\n",
        "stops": "",
        "merges": "",
    }[has_system]
    start = guard if has_system == "stops" else ""
    if odd == "date":
        start += "{{ strftime_now('%Y-%m-%d') }} "
    if odd == "dead":
        start += dice.choice(
            ["{{ 1 // 0 }}", "{{ nothing.there }}", "{{ messages[7]['role'] }}", "{{ range(999999999) | list }}"]
        )
    if odd == "eval":
        start += "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    if odd == "tools":
        start += "{% if tools %}{{ tools | tojson }}{% endif %}"
    body = (
        "{% for message in messages %}{% if message['role'] == 'user' %}" + user + text + close + behind
        + "{% elif message['role'] == 'assistant' %}" + answer + text.replace("upper", "lower") + end + said
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}" + opened + "{% endif %}"
    )  # fmt: skip
    return f"{start}{begin}{body}", notes


def _placed(dice: Random, folder: Path, template: str) -> tuple[list[str], Any]:
    """Where the checkpoint keeps it: (words for that, what the tokenizer has)."""
    named = [{"name": "tool_use", "template": "TOOLS"}, {"name": "default", "template": template}]
    where = dice.choice(["jinja", "json", "json list", "tokenizer", "tokenizer named"])
    if dice.random() < 0.06:
        broken = [
            "{not json",
            "[1]",
            '{"chat_template": 3}',
            '{"chat_template": [{"name": "tool_use", "template": "x"}]}',
        ]
        (folder / "chat_template.json").write_text(dice.choice([*broken, '{"chat_template": [1]}', "[" * 20_000]))
        return ["broken", "json"], "{{ 'the tokenizer has another' }}"
    other = "{{ 'the tokenizer has another' }}"
    if where == "jinja":
        (folder / "chat_template.jinja").write_bytes(template.encode("utf-8", "replace"))
        return [where], other
    if where.startswith("json"):
        tree = {"chat_template": named if where == "json list" else template}
        (folder / "chat_template.json").write_text(json.dumps(tree), encoding="utf-8")
        return where.split(), other
    if where == "tokenizer named":  # transformers makes a dict of the list in tokenizer_config.json
        return where.split(), {each["name"]: each["template"] for each in named}
    return [where], template


# --- the oracle ---


def _meant(template: str, texts: str, turns: list[tuple[Any, str, int]]) -> Any:
    """The conversation as jinja2 renders it, as transformers sets it up; a beginning of sequence is the tokenizer's."""
    from jinja2 import Undefined
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    def content(text: str, pictures: int) -> Any:
        if is_string:
            return f"{PICTURE}\n" * pictures + text
        return [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]

    def rendered(turns: list[tuple[Any, str, int]]) -> str:
        messages = [{"role": role, "content": content(text, n)} for role, text, n in turns]
        names = {"bos_token": BOS, "eos_token": EOS, "add_generation_prompt": True}
        return compiled.render(messages=messages, tools=None, documents=None, **names).removeprefix(BOS)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], undefined=Undefined
    )
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    is_string = texts == "strings"
    try:
        compiled = environment.from_string(template)
        if texts == "both" and "Zq7" not in rendered([("user", "Zq7", 1)]):
            is_string = True  # cut, it knows only strings: parts are passed over
        (_, system, _), *others = turns if turns[0][0] == "system" else [("system", "", 0), *turns]
        if system:
            try:
                if "Zq7" in rendered([("system", "Zq7", 0), *others]):
                    return rendered(turns)
            except TemplateError:
                pass
            others[0] = (
                "user",
                f"{system}\n\n{others[0][1]}",
                others[0][2],
            )  # no place for it: before the first question
        return rendered(others)
    except (
        TemplateError,
        TypeError,
        KeyError,
        ValueError,
        ArithmeticError,
        MemoryError,
        OverflowError,
        RecursionError,
    ):
        return REFUSED
