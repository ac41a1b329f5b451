"""Chat requests in OpenAI's words; through inference.serve.request.

The oracle is OpenAI's reference of the chat API and docs/export.md: a conversation with pictures as data URLs that ends
in a question, and the settings of one answer. A field that is null is a field that is left out. What would change the
answer must be followed or refused, unless it is switched off; what nobody knows is ignored.
"""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.case import REFUSED, Case, harmed, words

Tree = dict[str, Any]
MODEL, DEFAULT = "mine", 2048
REFUSES = ["logprobs", "logit_bias", "grammar", "top_a"]
COLOURS = [(200, 10, 30), (0, 90, 250), (17, 17, 17)]


def case(dice: Random, folder: Path) -> Case:
    tree, notes = _request(dice), []
    is_damaged = dice.random() < 0.5
    if is_damaged:
        how, tree = _hurt(dice, tree)
        notes.append(how)
    body = json.dumps(tree, ensure_ascii=dice.random() < 0.5, indent=dice.choice([None, 2])).encode(
        "utf-8", "surrogatepass"
    )
    body = body.replace(b'"@@deep@@"', b"[" * 20_000 + b"]" * 20_000)
    if is_damaged and dice.random() < 0.3:
        how, body = harmed(dice, body)
        notes.append(how)
    return Case(" ".join(["request", *notes]), body, lambda: _read(body), lambda: _meant(body), is_damaged)


def _read(body: bytes) -> Any:
    from minipovid.inference.serve.request import read

    wanted = read(body, MODEL)
    turns = [(turn.role, turn.text, [picture.getpixel((0, 0)) for picture in turn.pictures]) for turn in wanted.turns()]
    sampling = wanted.sampling(DEFAULT)
    penalty = getattr(sampling, "presence_penalty", 0)
    settings = (
        sampling.max_tokens,
        sampling.temperature,
        sampling.top_p,
        penalty,
        list(sampling.stop),
        sampling.schema,
    )
    seed = None if json.loads(body).get("seed") is None else sampling.seed  # else drawn anew each time
    return turns, settings, seed, bool(wanted.stream), wanted.include_usage


# --- spellings ---


def _picture(dice: Random) -> Tree:
    from PIL import Image

    file, form = BytesIO(), dice.choice(["PNG", "BMP"])
    Image.new("RGB", (2, 2), dice.choice(COLOURS)).save(file, form)
    text = base64.b64encode(file.getvalue()).decode()
    text = dice.choice([text, text, text.rstrip("="), base64.encodebytes(file.getvalue()).decode()])
    head = dice.choice(
        [
            f"data:image/{form.lower()};base64,",
            "data:;base64,",
            "data:image/png;charset=utf-8;base64,",
            "DATA:image/jpeg;BASE64,",
        ]
    )
    return {"type": "image_url", "image_url": {"url": head + text, **dice.choice([{}, {"detail": "auto"}])}}


def _request(dice: Random) -> Tree:
    messages: list[Tree] = []
    if dice.random() < 0.4:
        messages.append({"role": dice.choice(["system", "developer"]), "content": words(dice)})
    for number in range(dice.choice([1, 1, 3])):
        text: Any = words(dice)
        if number % 2:
            message = {"role": "assistant", "content": text, **dice.choice([{}, {"refusal": None, "tool_calls": None}])}
        else:
            parts = [{"type": "text", "text": text}, *(_picture(dice) for _ in range(dice.choice([0, 1, 2])))]
            dice.shuffle(parts)
            message = {"role": "user", "content": dice.choice([text, parts])}
        messages.append(message | dice.choice([{}, {}, {"name": "Ann"}, {"name": None}]))
    settings: Tree = {
        "max_tokens": dice.choice([1, 17, None]),
        "max_completion_tokens": dice.choice([9, None]),
        "temperature": dice.choice([0, 0.7, 2, 1, None]),
        "top_p": dice.choice([1, 0.5, 1.0, None]),
        "seed": dice.choice([0, 7, -1, 2**40, None]),
        "stop": dice.choice(["\n", ["a", "b"], [], None]),
        "n": dice.choice([1, None]),
        "stream": dice.choice([True, False, None]),
        "stream_options": dice.choice([{"include_usage": True}, {}, None]),
        "response_format": dice.choice([{"type": "text"}, {"type": "json_object"}, _schema(dice), None]),
        "user": "somebody",
        "metadata": {"a": "b"},
        "store": False,
        "tools": dice.choice([None, []]),
        "logprobs": dice.choice([None, False]),
        "presence_penalty": dice.choice([None, 0, 0.0]),
        "logit_bias": dice.choice([None, {}]),
        "tool_choice": dice.choice([None, "none"]),
    }
    chosen = {key: value for key, value in settings.items() if dice.random() < 0.3}
    items = list({"model": MODEL, "messages": messages, **chosen}.items())
    dice.shuffle(items)
    return dict(items)


def _schema(dice: Random) -> Tree:
    tree = {"type": "object", "properties": {"a": {"type": "string", "maxLength": dice.choice([5, 1000])}}}
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": dice.choice([True, None]), "schema": tree}}


def _hurt(dice: Random, tree: Tree) -> tuple[str, Tree]:
    tree = json.loads(json.dumps(tree))
    how = dice.choice(["setting", "setting", "message", "dropped", "cannot", "text", "within", "within"])
    message = dice.choice(tree["messages"])
    if how == "setting":
        key = dice.choice(
            [
                "max_tokens",
                "temperature",
                "top_p",
                "seed",
                "stop",
                "n",
                "stream",
                "response_format",
                "model",
                "messages",
                "stream_options",
            ]
        )
        tree[key] = dice.choice(
            [-1, 0, 2, 1.5, True, "1", [], {}, [1], {"type": "x"}, float("nan"), 1e300, 10**400, [""], "@@deep@@", None]
        )
    elif how == "message":
        message[dice.choice(["role", "content"])] = dice.choice(
            ["user", "tool", "", None, 5, [], [None], [{"type": "text"}], {"type": "text", "text": "a"}, "@@deep@@"]
        )
    elif how == "dropped":
        del tree[dice.choice(["model", "messages"])]
    elif how == "cannot":
        tree[dice.choice([*REFUSES, "presence_penalty", "tools"])] = dice.choice(
            [[{"type": "function"}], True, 0.5, 2, "x"]
        )
    elif how == "text":
        message["content"] = dice.choice(
            ["\ud800", "a\0b", "x" * 2**20 + "y", [{"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}]]
        )
    else:
        message["content"] = [
            {"type": "text", "text": "a"},
            {
                "type": "image_url",
                "image_url": dice.choice([None, {}, "data:,", {"url": None}, {"url": "data:image/png;base64,AAAA"}]),
            },
        ]
    return how, tree


# --- the oracle ---


class _No(Exception):
    """A request that must be refused."""


def _meant(body: bytes) -> Any:
    try:
        tree = json.loads(body.decode("utf-8"))
        _check(isinstance(tree, dict) and tree.get("model") == MODEL)
        for name in REFUSES:
            _check(not tree.get(name))
        _check(tree.get("tool_choice") in (None, "none", "auto", ""))
        turns = _turns(tree.get("messages"))
        limit = [
            _whole(None if tree.get(key) == -1 else tree.get(key)) for key in ("max_completion_tokens", "max_tokens")
        ]
        _check(all(each is None or each >= 1 for each in limit))
        temperature, top_p = _number(tree.get("temperature"), 0.0), _number(tree.get("top_p"), 1.0)
        _check(0 <= temperature <= 2 and 0 < top_p <= 1)
        _check(_whole(tree.get("n")) in (None, 1))
        stop = tree.get("stop")
        stop = [] if stop is None or stop == "" else [stop] if isinstance(stop, str) else stop
        _check(isinstance(stop, list) and all(isinstance(each, str) and each for each in stop))
        options = {} if tree.get("stream_options") is None else tree["stream_options"]
        _check(isinstance(options, dict) and options.get("include_usage") in (None, True, False))
        _check(tree.get("stream") is None or isinstance(tree["stream"], bool))
        seed = _whole(tree.get("seed"))
        penalty = _number(tree.get("presence_penalty"), 0)
        _check(-2 <= penalty <= 2)
        length = limit[0] or limit[1] or DEFAULT
        settings = (length, temperature, top_p, penalty, stop, _format(tree.get("response_format")))
        return (
            turns,
            settings,
            None if seed is None else seed % 2**32,
            bool(tree.get("stream")),
            bool(options.get("include_usage")),
        )
    except (_No, ValueError, RecursionError):
        return REFUSED


def _check(holds: bool) -> None:
    if not holds:
        raise _No


def _whole(value: Any) -> int | None:
    _check(value is None or isinstance(value, int) and not isinstance(value, bool))
    return value


def _number(value: Any, default: float) -> float:
    _check(value is None or isinstance(value, (int, float)) and not isinstance(value, bool))
    return default if value is None else value


def _format(form: Any) -> Any:
    if form is None:
        return None
    _check(isinstance(form, dict) and form.get("type") in ("text", "json_object", "json_schema"))
    if form["type"] == "json_schema":
        _check(isinstance(form.get("json_schema"), dict) and isinstance(form["json_schema"].get("schema"), dict))
        return form["json_schema"]["schema"]
    return {"type": "object"} if form["type"] == "json_object" else None


def _turns(messages: Any) -> list[Any]:
    _check(isinstance(messages, list) and bool(messages))
    turns = []
    for message in messages:
        _check(isinstance(message, dict) and message.get("role") in ("system", "developer", "user", "assistant"))
        said = message.get("content")
        if said is None and message["role"] == "assistant":
            said = ""  # it called a tool
        parts = [{"type": "text", "text": said}] if isinstance(said, str) else said
        _check(isinstance(parts, list))
        texts, pictures = [], []
        for part in parts:
            _check(isinstance(part, dict) and part.get("type") in ("text", "image_url"))
            if part["type"] == "text":
                _check(isinstance(part.get("text"), str))
                texts.append(part["text"])
            else:
                pictures.append(_pixel(part.get("image_url")))
        _check(message["role"] == "user" or not pictures)
        turns.append(("system" if message["role"] == "developer" else message["role"], "".join(texts), pictures))
    _check(turns[-1][0] == "user" and sum(len(text) for _, text, _ in turns) <= 2**20)
    _check(not re.search("[\ud800-\udfff]", "".join(text for _, text, _ in turns)))
    return turns


def _pixel(link: Any) -> tuple[int, ...]:
    """The first pixel of a picture in a data URL: base64 by RFC 2397 and the browsers, which mind no white space and no
    padding."""
    from PIL import Image

    url = link.get("url") if isinstance(link, dict) else link
    _check(isinstance(url, str))
    head, _, text = str(url).partition(",")
    _check(head.lower().startswith("data:") and head.lower().endswith(";base64"))
    text = re.sub(r"[ \t\r\n\f]", "", text)
    text = text[: -text[-2:].count("=")] if len(text) % 4 == 0 and text.endswith("=") else text
    _check(not re.search("[^A-Za-z0-9+/]", text) and len(text) % 4 != 1)
    try:
        with Image.open(
            BytesIO(base64.b64decode(text + "=" * (-len(text) % 4))), formats=["PNG", "BMP", "JPEG"]
        ) as image:
            pixel = image.convert("RGB").getpixel((0, 0))
    except Exception as error:  # whatever Pillow makes of broken bytes
        raise _No from error
    return tuple(pixel)  # type: ignore[arg-type]
