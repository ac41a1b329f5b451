"""A JSON schema as a grammar of llama.cpp (GBNF): every text that it allows is JSON that fits the schema.

    grammar({"type": "object", "properties": {"red": {"type": "boolean"}}})
    # root ::= r0 ...

llama-cpp-python's own converter leaves backslashes bare, allows line breaks inside strings and writes a minItems of
10^9 out. This one knows less and says what it does not know: nothing that a schema demands is silently lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.inference.llama_cpp import ambiguity
from minipovid.inference.llama_cpp.ambiguity import GrammarRule

Schema = Mapping[str, Any]
MOST = 1000  # of a repetition: llama.cpp writes each one out
_REMARKS = {"title", "description", "default", "examples", "deprecated", "$schema", "$id", "$comment", "$defs"}
_REMARKS |= {"definitions"}
_KEYS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
}
_BASE = {
    "gap": '" "?',
    "letter": r'[^"\\\x00-\x1F\x7F] | "\\" ["\\/bfnrt]',
    "string": r'"\"" letter* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "array": '"[" (value ("," gap value)*)? "]"',
    "member": 'string ":" gap value',
    "object": '"{" (member ("," gap member)*)? "}"',
    "value": "object | array | string | number | boolean | null",
}
_BASE_PARTS = {
    "value": GrammarRule("", ("object", "array")),
    "array": GrammarRule("[", ("value",)),
    "object": GrammarRule("{", ("value",)),
}


def grammar(schema: Schema) -> str:
    """The grammar, its first symbol called root. Raises MinipovidError for what a grammar cannot or need not say."""
    try:
        return _Grammar(schema).text()
    except RecursionError:
        raise MinipovidError("The schema is nested too deeply; flatten it.") from None
    except (TypeError, AttributeError) as error:  # a list where an object must stand, and the like
        raise MinipovidError(f"The schema is no JSON schema ({error}).") from None


class _Grammar:
    def __init__(self, schema: Schema) -> None:
        self._whole = schema
        self._rules, self._parts = dict(_BASE), dict(_BASE_PARTS)
        self._references: dict[str, str] = {}  # path in the schema -> rule
        self._rules["root"] = root = self._any(schema)
        ambiguity.check(self._parts, root)

    def text(self) -> str:
        return "\n".join(f"{name} ::= {rule}" for name, rule in self._rules.items())

    def _named(self, rule: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = rule
        return name

    def _holding(self, rule: str, begins: str, inside: Iterable[str]) -> str:
        name = self._named(rule)
        self._parts[name] = GrammarRule(begins, tuple(inside))
        return name

    def _any(self, schema: Any) -> str:
        """What stands for a schema in a rule: the name of another rule, or a literal."""
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise MinipovidError(f"The schema holds {schema!r:.40}, where a schema must stand.")
        for key, make in (("$ref", self._reference), ("const", _literal), ("enum", self._enum)):
            if key in schema:
                self._check(schema, {key, "type"})
                return make(schema[key])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                self._check(schema, {key})
                choices = schema[key]
                if not isinstance(choices, list) or not choices:
                    raise MinipovidError(f"The schema's {key} holds no choices; name some.")
                return self._either(map(self._any, choices))
        kinds = schema.get("type", [])
        if isinstance(kinds, str):
            return self._kind(schema, kinds, set())
        self._check(schema, {"type"}.union(*(_KEYS.get(str(kind), ()) for kind in kinds)))
        others = {key for kind in kinds for key in _KEYS.get(str(kind), ())}
        return self._either(self._kind(schema, kind, others) for kind in kinds) if kinds else "value"

    def _kind(self, schema: Schema, kind: Any, others: set[str]) -> str:
        """One type's values; `others` are keys that speak of another type beside it."""
        own = _KEYS.get(str(kind), set())
        self._check(schema, own | others | {"type"})
        is_free = not own & set(schema)
        if kind in _BASE and kind in ("object", "array", "string", "number", "integer", "boolean", "null"):
            return str(kind) if is_free else getattr(self, f"_{kind}")(schema)
        raise MinipovidError(f"The schema's type {kind!r} is none of JSON's.")

    def _object(self, schema: Schema) -> str:
        """Its properties in their order, those not required left out at will; none besides them.

        `rest` is what may follow a member, `start` what may follow the brace.
        """
        properties, required = schema.get("properties") or {}, schema.get("required", [])
        unknown = sorted(set(required) - set(properties))
        if unknown:
            raise MinipovidError(f"The schema requires {unknown[0]!r}, which is none of its properties.")
        if not properties:
            extra = schema.get("additionalProperties", True)
            if extra is False:
                return '"{}"'
            inside = self._any(extra)
            member = self._named(f'string ":" gap {inside}')
            return self._holding(f'"{{" ({member} ("," gap {member})*)? "}}"', "{", [inside])
        values = {name: self._any(value) for name, value in properties.items()}
        rest = start = self._named('""')
        for name, value in reversed(values.items()):
            member = self._named(f'{_literal(name)} ":" gap {value}')
            optional = "" if name in required else "?"
            first = f"{member} {rest}"
            start = self._named(first if name in required else f"{first} | {start}")
            rest = self._named(f'("," gap {member}){optional} {rest}')
        return self._holding(f'"{{" {start} "}}"', _beginning(values, required), values.values())

    def _array(self, schema: Schema) -> str:
        item = self._any(schema.get("items", True))
        least, most = _range(schema, "minItems", "maxItems")
        if most == 0:
            return '"[]"'
        more = f'("," gap {item}){_times(max(least - 1, 0), None if most is None else most - 1)}'
        return self._holding(f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"', "[", [item])

    def _string(self, schema: Schema) -> str:
        return self._named(rf'"\"" letter{_times(*_range(schema, "minLength", "maxLength"))} "\""')

    def _enum(self, values: Any) -> str:
        if not isinstance(values, list) or not values:
            raise MinipovidError("The schema's enum holds no values; name some.")
        return self._either(map(_literal, values))

    def _either(self, choices: Iterable[str]) -> str:
        either = list(choices)
        return self._holding(" | ".join(either), "", either)

    def _reference(self, path: Any) -> str:
        """A part of the schema by its path (#/$defs/dog), which may hold itself."""
        if path not in self._references:
            self._references[path] = name = self._named("")
            root, *steps = str(path).split("/")
            part: Any = self._whole
            for step in steps:
                part = part.get(step) if isinstance(part, Mapping) else None
            if root != "#" or part is None:
                raise MinipovidError(f"The schema refers to {path!r}, which is no part of it.")
            self._rules[name] = rule = self._any(part)
            self._parts[name] = GrammarRule("", (rule,))
        return self._references[path]

    def _check(self, schema: Schema, known: set[str]) -> None:
        """Every key must have been understood."""
        unknown = sorted(set(schema) - known - _REMARKS)
        if unknown:
            raise MinipovidError(f"The schema's keyword {unknown[0]!r} cannot be followed here; leave it out.")


def _literal(value: Any) -> str:
    """A value's JSON text between quotes."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ": "))
        text.encode()
    except (TypeError, ValueError):
        raise MinipovidError(f"The schema holds {value!r:.40}, which is no JSON.") from None
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _beginning(values: Mapping[str, str], required: Iterable[str]) -> str:
    """What each text of an object begins with, between quotes as in the grammar; rules stand for its values."""
    begins = "{"
    for name, value in values.items():
        if name not in required:
            break
        begins += _literal(name)
        if not value.startswith('"'):
            break
        begins += value
    return begins


def _range(schema: Schema, least: str, most: str) -> tuple[int, int | None]:
    """(fewest, most), where most may be open."""
    both = (schema.get(least, 0), schema.get(most))
    for key, value in zip((least, most), both, strict=True):
        if value is not None and (not isinstance(value, int) or not 0 <= value <= MOST):
            raise MinipovidError(f"The schema's {key} is {value!r:.40}, but it must be a number from 0 to {MOST}.")
    if both[1] is not None and both[1] < both[0]:
        raise MinipovidError(f"The schema's {least} is {both[0]}, more than its {most} of {both[1]}.")
    return both


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"
