"""Answers that follow a JSON schema: always JSON, always to the schema, whatever the model would rather say."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import tiny_llava

from minipovid.common.errors import MinipovidError
from minipovid.export import export_base
from minipovid.inference.llama_cpp import Runtime, Sampling, schema
from minipovid.inference.llama_cpp.sampling import Sampler
from minipovid.models.chat_template import Turn


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def runtime(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A SentencePiece vocabulary with bytes to fall back on, and a byte-level one."""
    folder = tiny_llava.build(tmp_path_factory.mktemp("models") / "tiny-7b", text=request.param, dtype="float16")
    with Runtime(export_base(str(folder), folder.parent / "gguf", ["f16"])[0], None, n_ctx=512) as runtime:
        yield runtime


TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 4}, "kids": {"$ref": "#/$defs/kids"}},
            "required": ["name"],
        },
        "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
    },
}
SHORT = {"type": "string", "minLength": 2, "maxLength": 5}
SCHEMAS: list[dict[str, Any]] = [
    {"enum": ["dog", 'a "quoted" one', "back\\slash", "Ω 猫", "two\nlines", 1.5, None, {"a": [1, "b"]}]},
    {"const": 'Ω "\\" 猫'},
    {
        "type": "object",
        "properties": {"red": {"type": "boolean"}, "size": {"enum": [1, 22]}},
        "required": ["red", "size"],
    },
    {"type": "object", "properties": {'odd "name" Ω': SHORT, "b": SHORT, "c": {"type": "null"}}, "required": ["b"]},
    {"type": "object", "properties": {"a": SHORT, "b": {"type": "boolean"}}},
    {"type": "array", "items": {"type": ["integer", "null"]}, "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 0},
    {"anyOf": [{"type": "number"}, SHORT]},
    {"type": ["string", "array"], "maxLength": 3, "maxItems": 2, "items": {"type": "null"}},
    {"type": "object", "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    TREE,
]
TYPES = {"string": str, "array": list, "object": dict, "null": type(None), "boolean": bool, "integer": int}


def fits(value: Any, wanted: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """A small judge, written the other way round: from the value to the schema."""
    if "$ref" in wanted:
        return fits(value, whole["$defs"][wanted["$ref"].rpartition("/")[2]], whole)
    if "enum" in wanted or "const" in wanted:
        return any(value == other and type(value) is type(other) for other in wanted.get("enum", [wanted.get("const")]))
    if "anyOf" in wanted:
        return any(fits(value, other, whole) for other in wanted["anyOf"])
    kinds = [wanted["type"]] if isinstance(wanted["type"], str) else wanted["type"]
    if not any(type(value) in (int, float) if kind == "number" else type(value) is TYPES[kind] for kind in kinds):
        return False
    if isinstance(value, str):
        return wanted.get("minLength", 0) <= len(value) <= wanted.get("maxLength", 99)
    if isinstance(value, list):
        inside = all(fits(item, wanted["items"], whole) for item in value)
        return inside and wanted.get("minItems", 0) <= len(value) <= wanted.get("maxItems", 99)
    if isinstance(value, dict):
        known, extra = wanted.get("properties", {}), wanted.get("additionalProperties")
        return set(wanted.get("required", [])) <= set(value) and all(
            fits(item, known[name], whole) if name in known else extra and fits(item, extra, whole)
            for name, item in value.items()
        )
    return True


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_a_schema_is_followed(runtime: Runtime, number: int) -> None:
    """Greedy and drawn at a heat at which this model says anything: JSON to the schema, or cut short by max_tokens."""
    wanted, finished = SCHEMAS[number], 0
    for seed in range(12):
        sampling = Sampling(150, temperature=3.0 * (seed > 0), seed=seed, schema=wanted)
        reply = runtime.say([Turn("user", "What is this?")], sampling)
        text = "".join(reply)
        if reply.finish_reason == "stop":
            finished += 1
            assert fits(json.loads(text), wanted, wanted), text
        assert begins_json(text), text
    assert finished


# What may be missing behind a text that was cut short, before its brackets are closed.
ENDS = ["", "0", "null", ":null", '"":null']
ENDS += [word[cut:] for word in ("true", "false", "null") for cut in range(1, len(word))]
ENDS += [rest + end for rest in ("", "n", "0", "00", "000", "0000") for end in ('"', '":null')]


def begins_json(text: str) -> bool:
    """Does some JSON begin like this? Its strings are blanked, to see which brackets are open."""
    blanked, closing = re.sub(r'"(?:[^"\\]|\\.)*(?:"|\\?$)', '""', text, flags=re.DOTALL), ""
    for sign in blanked:
        closing = {"[": "]", "{": "}"}[sign] + closing if sign in "[{" else closing[sign in "]}" :]
    return any(is_json(text + end + closing) for end in ENDS)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("texts", "begin"),
    [
        (
            ["", '[1,{"a":[true,"b\\n"]},', '{"a', '{"a"', '{"a":', '"\\u0', '"\\', "tr", "-", "1.", "1e", "[", '["]'],
            True,
        ),
        (
            ["Hello", "'a'", "{a", "[1}", '{"a" 1', "[,", '{"a":1,}', "truth", "01", '"\\x', '"a\nb', "1.e", "[1] 2"],
            False,
        ),
    ],
)
def test_the_judge_of_beginnings(texts: list[str], begin: bool) -> None:
    assert [text for text in texts if begins_json(text) is not begin] == []


@pytest.mark.parametrize("wanted", [{}, {"type": "object"}, {"description": "no more than a remark"}])
def test_any_json(runtime: Runtime, wanted: dict[str, Any]) -> None:
    """Every answer is JSON, or the beginning of some where it was cut short; some are whole."""
    finished = 0
    for seed in range(8):
        reply = runtime.say([Turn("user", "What is this?")], Sampling(150, temperature=2.0, seed=seed, schema=wanted))
        text = "".join(reply)
        finished += reply.finish_reason == "stop"
        assert is_json(text) if reply.finish_reason == "stop" else begins_json(text), text
        assert text.startswith("{") or "type" not in wanted
    assert finished


def allows(runtime: Runtime, wanted: dict[str, Any], text: str) -> bool:
    """Does the grammar let this text through to its end? Asked of llama.cpp, token by token."""
    sampler, language = Sampler(Sampling(schema=wanted), runtime._language), runtime._language
    ids = [next(id for id in range(language.n_vocab) if language.piece(id) == bytes([byte])) for byte in text.encode()]
    end = next(id for id in range(language.n_vocab) if language.ends(id) and not language.piece(id))
    for token in [*ids, end]:
        if not np.isfinite(sampler._allowed(np.zeros(language.n_vocab, np.float32))[token]):
            return False
        sampler._llama.llama_sampler_accept(sampler._grammar, token)
    return True


PAIR = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}}


@pytest.mark.parametrize(
    ("wanted", "yes", "no"),
    [
        ({"type": "integer"}, ["0", "-12", "907"], ["", "01", "1.5", "--1", "1 "]),
        ({"type": "number"}, ["0", "-0.5", "1e9", "1.25E-3"], [".5", "1.", "1e", "NaN"]),
        ({"type": "string"}, ['""', '"a b"', r'"\"\\\n"', '"é猫"'], ['"a', '"a\nb"', '"\\x"', '"""', '"\t"']),
        ({**SHORT}, ['"ab"', '"abcde"', '"é猫"'], ['"a"', '"abcdef"']),
        (PAIR, ["{}", '{"a":null}', '{"b":null,"c":null}', '{"a":null, "c": null}'], ['{"b":null,"a":null}', "{,}"]),
        (PAIR, [], ['{"a":null,}', '{"a":null,"a":null}', '{"d":null}', '{"a":null"b":null}', "{null}", "{ }"]),
        ({**PAIR, "required": ["a", "c"]}, ['{"a":null,"c":null}'], ["{}", '{"a":null}', '{"c":null}']),
        ({**PAIR, "required": ["b"]}, ['{"b":null}', '{"a":null,"b":null,"c":null}'], ["{}", '{"a":null,"c":null}']),
        ({"type": "array", "minItems": 1}, ['[1,"a",[],{}]', "[null]"], ["[]", "[,1]", "[1,]"]),
        ({"type": "array", "maxItems": 1, "items": True}, ["[]", "[{}]"], ["[1,2]"]),
        ({"enum": [1, "1"]}, ["1", '"1"'], ["11", "true"]),
        ({"oneOf": [{"const": "a"}, {"type": "boolean"}]}, ['"a"', "true", "false"], ["a", "null"]),
        (TREE, ['{"name":"a","kids":[{"name":"b"},{"name":"c","kids":[]}]}'], ['{"name":"a","kids":[{}]}']),
    ],
)
def test_what_a_grammar_allows(runtime: Runtime, wanted: dict[str, Any], yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not allows(runtime, wanted, text)] == []
    assert [text for text in no if allows(runtime, wanted, text)] == []


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"type": "dog"}, "The schema's type 'dog' is none of JSON's"),
        ({"type": "string", "pattern": "^a$"}, "The schema's keyword 'pattern' cannot be followed here; leave it out"),
        ({"type": "integer", "minimum": 3}, "keyword 'minimum'"),
        ({"type": "string", "minItems": 3}, "keyword 'minItems'"),
        ({"type": "array", "minItems": 10**9}, "minItems is 1000000000, but it must be a number from 0 to 1000"),
        ({"type": "string", "maxLength": -1}, "maxLength is -1"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength is 5, more than its maxLength of 2"),
        ({"$ref": "https://example.org/a.json"}, "refers to 'https://example.org/a.json', which is no part of it"),
        ({"$ref": "#/$defs/none"}, "refers to '#/\\$defs/none', which is no part"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "requires 'a', which is none of its properties"),
        ({"type": "object", "properties": ["a"]}, "is no JSON schema"),
        ({"type": "object", "properties": {"a": 3}}, "holds 3, where a schema must stand"),
        ({"enum": []}, "enum holds no values"),
        ({"anyOf": []}, "anyOf holds no choices"),
        ({"const": "\ud800"}, "which is no JSON"),
    ],
)
def test_schemas_that_cannot_be_followed(wanted: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MinipovidError, match=sentence):
        schema.grammar(wanted)


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def listed(inside: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": inside, "minItems": 1}


def named(first: str, **parts: dict[str, Any]) -> dict[str, Any]:
    return {**ref(first), "$defs": parts}


def tagged(tag: str, **members: dict[str, Any]) -> dict[str, Any]:
    properties = {"op": {"const": tag}, **members}
    return {"type": "object", "properties": properties, "required": list(properties)}


def either(*choices: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(choices)}


def doubled(depth: int) -> dict[str, Any]:
    """2^depth arrays of arrays, written out."""
    return either(listed(doubled(depth - 1)), listed(doubled(depth - 1))) if depth else {"type": "null"}


LOOSE = {"type": "object", "properties": {"a": ref("a")}}
CHAIN = {f"a{i}": either(listed(ref(f"a{i + 1}")), listed(ref(f"a{i + 1}"))) for i in range(40)}


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (named("a", a=either(listed(ref("a")), listed(ref("a")))), "begin alike and nest"),
        (named("a", a={"oneOf": [listed(ref("b")), ref("c")]}, b=ref("a"), c=either(listed(ref("a")), SHORT)), "alike"),
        (named("a", a=either(listed(ref("a")), {"type": "array"})), "begin alike and nest; begin with a required"),
        (named("a", a=either(LOOSE, LOOSE)), "begin alike and nest"),
        (named("a", a=either(tagged("x", l=ref("a")), tagged("x", l=ref("a"), r=ref("a")))), "begin alike and nest"),
        (named("a", a={"type": ["array", "array"], "items": ref("a"), "minItems": 1}), "begin alike and nest"),
        (named("a0", **CHAIN, a40={"type": "null"}), "can be read in 512 ways at once, above 256"),
        (doubled(9), "can be read in 512 ways at once, above 256"),
    ],
)
def test_schemas_with_too_many_readings(wanted: dict[str, Any], sentence: str) -> None:
    """The first needs 1.5 s for the 14th token and twice as much for the next; those written out, as long a schema."""
    with pytest.raises(MinipovidError, match=sentence):
        schema.grammar(wanted)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (named("a", a=either(listed(ref("a")), listed({"type": "null"}))), "[" * 200),
        (named("a", a=either(ref("b"), ref("b")), b=listed(ref("a"))), "[" * 200),
        (
            named("e", e=either(tagged("+", l=ref("e"), r=ref("e")), tagged("-", l=ref("e")), SHORT)),
            '{"op":"+","l":' * 20,
        ),
        (either(listed({}), {"type": "array"}, {}), "[" * 200),
        (named("a", a={"type": ["array", "object"], "items": ref("a"), "minItems": 1}), "[" * 200),
        (doubled(8), "[" * 8),
        (either(*(tagged(f"t{i}", x={}) for i in range(400))), '{"op":"t399","x":'),
    ],
)
def test_choices_that_can_be_told_apart(runtime: Runtime, wanted: dict[str, Any], text: str) -> None:
    """Each token is checked in milliseconds (3 measured at most), however deep; the limit allows for other work."""
    language, before = runtime._language, time.process_time()
    sampler = Sampler(Sampling(schema=wanted), language)
    of = {language.piece(id): id for id in reversed(range(language.n_vocab))}
    for byte in text.encode():
        token = of[bytes([byte])]
        assert np.isfinite(sampler._allowed(np.zeros(language.n_vocab, np.float32))[token])
        sampler._llama.llama_sampler_accept(sampler._grammar, token)
    assert time.process_time() - before < 3


def readings(parts: dict[str, dict[str, Any]], name: str, depth: int) -> int:
    """The most chains of arrays that "[", "[[", ... can stand for, counted from the inside out."""

    def arrays(inside: dict[str, Any]) -> dict[str, str]:
        """The arrays that a schema can be: who they are, and what stands in them."""
        if "anyOf" in inside:
            return {who: what for choice in inside["anyOf"] for who, what in arrays(choice).items()}
        if "$ref" in inside:
            where = inside["$ref"].rpartition("/")[2]
            return {where: parts[where]["items"]["$ref"]} if "items" in parts[where] else arrays(parts[where])
        return {str(id(inside)): inside["items"]["$ref"]} if "items" in inside else {}

    found = {f"#/$defs/{part}": arrays(ref(part)) for part in parts}
    count, most = dict.fromkeys(found, 1), 0
    for _ in range(depth):
        count = {part: sum(count[what] for what in found[part].values()) for part in found}
        most = max(most, count[f"#/$defs/{name}"])
    return most


def test_what_is_refused_is_what_explodes() -> None:
    """400 random schemas of five parts, which lead to each other: those let through have few readings 60 deep."""
    rng, counts = np.random.default_rng(0), {True: [], False: []}
    for _ in range(400):
        parts: dict[str, dict[str, Any]] = {}
        for number in range(5):
            others = [ref(f"p{other}") for other in rng.integers(5, size=3)]
            array, choice = listed(others[0]), either(listed(others[1]), *([listed(others[2])] * (rng.random() < 0.5)))
            leaf = either({"type": "null"}, ref(f"p{min(number + 1, 4)}")) if number < 4 else {"type": "null"}
            parts[f"p{number}"] = [array, choice, leaf][rng.integers(3)]
        try:
            schema.grammar(named("p0", **parts))
            is_let_through = True
        except MinipovidError:
            is_let_through = False
        counts[is_let_through].append(readings(parts, "p0", 60))
    assert max(counts[True]) < 100 and len(counts[True]) > 100
    assert sum(count > 1000 for count in counts[False]) > 20


def test_a_schema_nested_too_deeply() -> None:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(5000):
        deep = {"anyOf": [deep]}
    with pytest.raises(MinipovidError, match="nested too deeply"):
        schema.grammar(deep)


@pytest.mark.parametrize("begun", [b"\xf7", b"\xed\xa0", b"\xe0\x80", b"\xf4\x90", b"\xc0", b"\xe7a", b'\xe7"'])
def test_what_is_no_character_is_not_begun(runtime: Runtime, begun: bytes) -> None:
    """The model would say it, a byte at a time, and llama.cpp's grammar would let most of these through."""
    language = runtime._language
    of = {language.piece(id): id for id in reversed(range(language.n_vocab))}
    sampler, said = Sampler(Sampling(schema={"type": "string"}), language), b""
    for byte in b'"' + begun:
        logits = np.zeros(language.n_vocab, np.float32)
        logits[of[bytes([byte])]] = 50
        said += language.piece(sampler.pick(logits))
    assert not said.startswith(b'"' + begun)


def test_special_tokens_are_no_letters(runtime: Runtime) -> None:
    """llama.cpp's grammar takes <pad> for five letters; an answer shows none of them."""
    sampler, language = Sampler(Sampling(schema={"const": "<pad>, <|im_start|>"}), runtime._language), runtime._language
    said = b""
    while not said.endswith(b'>"'):
        token = sampler.pick(np.arange(language.n_vocab, dtype=np.float32))
        assert language.piece(token)
        said += language.piece(token)
    assert json.loads(said) == "<pad>, <|im_start|>"


def test_a_vocabulary_that_cannot_follow(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, where llama.cpp itself would end the process."""
    sampler = Sampler(Sampling(schema={"type": "null"}), runtime._language)
    monkeypatch.setattr(sampler, "_allowed", lambda logits: np.full_like(logits, -np.inf))
    with pytest.raises(MinipovidError, match="leaves no token of this model's vocabulary to go on with"):
        sampler.pick(np.zeros(runtime.n_vocab, np.float32))
