"""A request in OpenAI's words, checked and brought into ours.

    wanted = read(body)
    runtime.say(wanted.turns(), wanted.sampling(default_tokens=2048))

Of what a client may send beyond this, the names below that are known to change answers are refused unless they are
switched off, and all else is ignored.
Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from PIL.Image import Image
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.embedded import from_base64
from minipovid.inference.llama_cpp import Sampling
from minipovid.models.chat_template import Turn

CHARACTERS = 2**20  # in a request; more than any context holds, and less than what takes long to count
PICTURES = 16  # in a request
PICTURE_MIB = 20  # of one picture, as it was sent
PIXELS = 8192 * 6144  # in a request: one photograph of a 50-megapixel phone; a pixel takes up to 20 bytes
STOPS = 16  # stop texts in a request; every new token is searched for each
STOP_CHARACTERS = 1000
SCHEMA_CHARACTERS = 32_768
SCHEMA_COUNT = 1000  # llama.cpp builds a repetition as nested groups, and is torn down by about 20,000 of them
# Each would change the answer and none is built. Clients send many by habit, switched off: empty, zero, false, or as
# named here. The first lines are OpenAI's, the others are known to vLLM, llama.cpp or text-generation-webui.
_REFUSED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("tools", "functions", "audio", "logprobs", "top_logprobs", "logit_bias"), ()),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "web_search_options"), ()),
    **{"tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "modalities": (["text"],)},
    **dict.fromkeys(("top_k", "top_n_sigma", "n_predict"), (-1,)),
    **dict.fromkeys(("typical_p", "typical", "tfs", "tfs_z", "repetition_penalty", "repeat_penalty"), (1,)),
    **dict.fromkeys(("length_penalty", "best_of", "num_beams"), (1,)),
    **dict.fromkeys(("min_p", "top_a", "epsilon_cutoff", "eta_cutoff", "mirostat", "mirostat_mode"), ()),
    **dict.fromkeys(("xtc_probability", "dry_multiplier", "dynatemp_range", "smoothing_factor", "samplers"), ()),
    **dict.fromkeys(("min_tokens", "max_new_tokens", "no_repeat_ngram_size", "use_beam_search", "ignore_eos"), ()),
    **dict.fromkeys(("stop_token_ids", "bad_words", "allowed_token_ids", "include_stop_str_in_output"), ()),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), ()),
    **dict.fromkeys(("grammar", "json_schema", "n_probs", "prompt_logprobs", "echo", "lora"), ()),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "continue_final_message"), ()),
}


class RefusedError(MinipovidError):
    """What the client can mend, with what OpenAI's error object holds beside the sentence."""

    def __init__(self, sentence: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code


def _picture(url: object) -> bytes:
    """The bytes of a data: URL. Nothing is fetched: who follows links lends his network and disk to strangers."""
    head, _, data = url.lstrip().partition(",") if isinstance(url, str) else ("", "", "")
    if not (head.lower().startswith("data:") and head.lower().endswith(";base64")):
        raise ValueError("no link is followed; send the picture itself as data:image/png;base64,...")
    if len(data) > PICTURE_MIB * 2**20 * 4 // 3:
        raise RefusedError(f"A picture is larger than {PICTURE_MIB} MiB; scale it down.", 413, "messages")
    try:
        return from_base64(data)
    except ValueError:
        raise ValueError("this is not valid base64; encode the picture's bytes again") from None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Link(_Strict):
    url: Annotated[bytes, BeforeValidator(_picture)]


class _Part(_Strict):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: _Link | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> _Part:
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of this type needs `{self.type}`")
        return self


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[_Part], BeforeValidator(lambda said: [{"type": "text", "text": said}] if isinstance(said, str) else said)
    ]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if part.text is not None)

    @property
    def pictures(self) -> list[bytes]:
        return [part.image_url.url for part in self.content if part.image_url]


class _Schema(_Strict):
    tree: dict[str, Any] = Field(alias="schema")

    @field_validator("tree")
    @classmethod
    def _is_small(cls, tree: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(tree)
        if len(text) > SCHEMA_CHARACTERS:
            raise ValueError(f"a schema may have at most {SCHEMA_CHARACTERS} characters")
        if any(len(count) > 9 or int(count) > SCHEMA_COUNT for count in _COUNTS.findall(text)):
            raise ValueError(f"a schema may repeat things at most {SCHEMA_COUNT} times (minItems, maxLength, {{n,m}})")
        return tree


class _Format(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> _Format:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("this type needs `json_schema`")
        return self


class _StreamOptions(_Strict):
    include_usage: bool | None = None


_Tokens = Annotated[int, Field(ge=1)]
_COUNTS = re.compile(r'(?:(?:min|max)(?:Items|Length)": |\{\d*,|\{)(\d+)')  # in a schema and in its patterns
_TREE = TypeAdapter(dict[str, Any])


class ChatRequest(_Strict):
    """One request. Its pictures are bytes until `turns` decodes them."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    n: Literal[1] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]],
        Field(max_length=STOPS),
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop or []),
    ] = []
    response_format: _Format = _Format(type="text")
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @field_validator("messages")
    @classmethod
    def _can_be_answered(cls, messages: list[_Message]) -> list[_Message]:
        if any(message.pictures for message in messages if message.role != "user"):
            raise ValueError("pictures belong into the user's messages")
        if messages[-1].role != "user":
            raise ValueError("the last message must be the user's, which the model then answers")
        if sum(len(message.text) for message in messages) > CHARACTERS:
            raise ValueError(f"there are more than {CHARACTERS:,} characters of text; send fewer")
        if sum(len(message.pictures) for message in messages) > PICTURES:
            raise ValueError(f"there are more than {PICTURES} pictures; send fewer")
        return messages

    def turns(self) -> list[Turn]:
        """The conversation with its pictures decoded. Raises RefusedError for one that is broken or too large."""
        decoded = iter(_decoded(data for message in self.messages for data in message.pictures))
        return [
            Turn(
                "system" if message.role == "developer" else message.role,
                message.text,
                tuple(next(decoded) for _ in message.pictures),
            )
            for message in self.messages
        ]

    def sampling(self, default_tokens: int) -> Sampling:
        """Greedy unless a temperature is given; a seed is drawn anew each time, so that "regenerate" has a meaning."""
        form = self.response_format
        schema = form.json_schema.tree if form.json_schema else {"type": "object"}
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens or default_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(31) if self.seed is None else self.seed % 2**32,
            stop=tuple(self.stop),
            schema=None if form.type == "text" else schema,
        )

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def read(raw: bytes, model: str) -> ChatRequest:
    """The request to `model` in a body of JSON. Raises RefusedError."""
    try:
        tree = _TREE.validate_json(raw)  # unlike Python's own it knows no half characters and no bottomless nesting
    except ValidationError:
        raise RefusedError("The body is no JSON object; send one with `model` and `messages`.") from None
    for name, off in _REFUSED.items():
        if tree.get(name) and tree[name] not in off:
            sentence = f"minipovid cannot do `{name}`; leave it out."
            raise RefusedError(sentence, param=name, code="unsupported_parameter")
    try:
        wanted = ChatRequest.model_validate(tree)
    except ValidationError as errors:
        raise _refusal(errors) from None
    if wanted.model != model:
        sentence = f"There is no model {wanted.model[:80]!r} here; ask for {model!r}."
        raise RefusedError(sentence, 404, "model", "model_not_found")
    return wanted


def _refusal(errors: ValidationError) -> RefusedError:
    """The first mistake as a sentence. It tells no value: that may be a long text, or half of a picture."""
    first = errors.errors(include_input=False, include_url=False)[0]
    param = ".".join(str(step) for step in first["loc"])
    if first["type"] == "missing":
        return RefusedError(f"`{param}` is missing; add it.", param=param)
    why = first["msg"].removeprefix("Value error, ")
    return RefusedError(f"`{param}` is refused: {why[0].lower()}{why[1:]}.", param=param)


def _decoded(sent: Iterable[bytes]) -> list[Image]:
    """Each picture may have as many pixels as those before it left over; its header tells, before it is decoded."""
    pictures: list[Image] = []
    left = PIXELS
    for data in sent:
        try:
            picture = images.decode(data, f"no. {len(pictures) + 1}", max_pixels=left)
        except MinipovidError as error:
            sentence = str(error)
            if f"more than {left:,} pixels" in sentence:
                sentence += f" All pictures together may have {PIXELS:,}."
            raise RefusedError(sentence, param="messages") from None
        pictures.append(picture)
        left -= picture.width * picture.height
    return pictures
