"""A request in OpenAI's words, checked and brought into ours.

    wanted = read(body)
    runtime.say(wanted.turns(), wanted.sampling(default_tokens=2048))

null stands for a field that is absent. Of what a client may send beyond what is read here, the names below that are
known to change answers are refused unless they are switched off; all else is ignored (`ignored` names it, for the log),
tools among it: this server's models call none.
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
    **dict.fromkeys(("audio", "logprobs", "top_logprobs", "logit_bias", "web_search_options"), ()),
    **{"tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "modalities": (["text"],)},
    **dict.fromkeys(("top_n_sigma",), (-1,)),
    **dict.fromkeys(("typical_p", "typical", "tfs", "tfs_z", "length_penalty", "best_of", "num_beams"), (1,)),
    **dict.fromkeys(("top_a", "epsilon_cutoff", "eta_cutoff", "mirostat", "mirostat_mode"), ()),
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

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, tree: Any) -> Any:
        """null is how many clients spell what they leave out."""
        return {name: value for name, value in tree.items() if value is not None} if isinstance(tree, dict) else tree


class _Link(_Strict):
    url: Annotated[bytes, BeforeValidator(_picture)]


class _Part(_Strict):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Annotated[
        _Link | None, BeforeValidator(lambda link: {"url": link} if isinstance(link, str) else link)
    ] = None

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

    @model_validator(mode="before")
    @classmethod
    def _may_say_nothing(cls, message: Any) -> Any:
        """An assistant's turn that called a tool has no content, or null."""
        is_silent = isinstance(message, dict) and message.get("role") == "assistant" and message.get("content") is None
        return {**message, "content": ""} if is_silent else message

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


# -1 is what llama.cpp's clients send for "as many as fit".
_Tokens = Annotated[
    Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda number: None if number == -1 else number)
]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Repeat = Annotated[float, Field(gt=0, le=10)]
_COUNTS = re.compile(r'(?:(?:min|max)(?:Items|Length)": |\{\d*,|\{)(\d+)')  # in a schema and in its patterns
_TREE = TypeAdapter(dict[str, Any])


class ChatRequest(_Strict):
    """One request. Its pictures are bytes until `turns` decodes them."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    n: Annotated[int, Field(ge=1, le=1)] | None = None  # no Literal: true equals 1
    max_tokens: _Tokens = None
    max_completion_tokens: _Tokens = None
    n_predict: _Tokens = None  # llama.cpp's name
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    repeat_penalty: _Repeat = 1.0
    repetition_penalty: _Repeat = 1.0  # vLLM's name
    seed: int | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]],
        Field(max_length=STOPS),
        BeforeValidator(lambda stop: [stop] * bool(stop) if isinstance(stop, str) else stop),
    ] = []
    response_format: _Format = _Format(type="text")
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

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
            max_tokens=self.max_completion_tokens or self.max_tokens or self.n_predict or default_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repeat_penalty=self.repeat_penalty if self.repeat_penalty != 1 else self.repetition_penalty,
            seed=secrets.randbits(31) if self.seed is None else self.seed % 2**32,
            stop=tuple(self.stop),
            schema=None if form.type == "text" else schema,
        )

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options.include_usage)

    @property
    def ignored(self) -> list[str]:
        """Names of what the client sent, switched on, and nobody reads."""
        return [name for name, value in (self.model_extra or {}).items() if value and name not in _REFUSED]


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
        raise no_model(wanted.model, model)
    return wanted


def no_model(named: str, model: str) -> RefusedError:
    """What a client gets that asks for another model than the one that is here."""
    sentence = f"There is no model {named[:80]!r} here; ask for {model!r}."
    return RefusedError(sentence, 404, "model", "model_not_found")


def _refusal(errors: ValidationError) -> RefusedError:
    """The first mistake as a sentence. It tells no value: that may be a long text, or half of a picture."""
    first = errors.errors(include_input=False, include_url=False)[0]
    param = ".".join(str(step) for step in first["loc"])
    if first["type"] == "missing":
        return RefusedError(f"`{param}` is missing; add it.", param=param)
    why = "it must be a JSON object" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
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
