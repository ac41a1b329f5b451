"""Which token comes next: the likeliest, or one drawn by llama.cpp's samplers, under a grammar where one is given."""

from __future__ import annotations

import codecs
import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipovid.common.arrays import Floats
from minipovid.common.errors import MinipovidError
from minipovid.inference.llama_cpp import schema as schemas
from minipovid.inference.llama_cpp.language import Language
from minipovid.inference.llama_cpp.libraries import libraries

# struct llama_token_data
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_COLDEST = 1e-6  # below, logits divided by it can pass float32's range, and llama.cpp would draw from NaN
_SEEDS = 2**32 - 1  # llama.cpp takes this very number for "draw a seed"
_PENALISED = 2**16  # of an answer's last tokens, those that penalties look at; more than any answer here has


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Temperature 0 (below 10^-6) is greedy; then none of `top_k`, `top_p`, `min_p` and `seed`
    matters. The penalties are for tokens that the answer has used already, and hold for greedy answers as well."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0  # of the likeliest tokens; 0 or less: all
    top_p: float = 1.0  # the smallest set of tokens that holds so much probability
    min_p: float = 0.0  # tokens at least so likely, as a share of the likeliest one's probability
    presence_penalty: float = 0.0  # taken from the logit of a token that was used
    frequency_penalty: float = 0.0  # and for each time that it was
    repeat_penalty: float = 1.0  # that logit is divided by this, or multiplied where it is negative
    seed: int = 0
    stop: tuple[str, ...] = ()  # texts before which the answer ends
    schema: dict[str, Any] | None = None  # a JSON schema that the answer follows

    def check(self) -> None:
        """Raises MinipovidError for a value out of range."""
        if self.max_tokens < 0:
            raise MinipovidError(f"max_tokens is {self.max_tokens}, but it must not be negative.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise MinipovidError(f"temperature is {self.temperature}, but it must be a number from 0 up.")
        if not 0 < self.top_p <= 1:
            raise MinipovidError(f"top_p is {self.top_p}, but it must be above 0 and at most 1.")
        if not 0 <= self.min_p <= 1:
            raise MinipovidError(f"min_p is {self.min_p}, but it must be from 0 to 1.")
        if not (math.isfinite(self.repeat_penalty) and self.repeat_penalty > 0):
            raise MinipovidError(f"repeat_penalty is {self.repeat_penalty}, but it must be a number above 0.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise MinipovidError(f"{name} is {getattr(self, name)}, but it must be a finite number.")
        if "" in self.stop:
            raise MinipovidError("A stop text is empty, and would end every answer before it begins; leave it out.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _COLDEST

    @property
    def is_penalised(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty, self.repeat_penalty) != (0, 0, 1)


class Sampler:
    """The choices of one answer; llama.cpp's samplers are freed with it.

    Raises MinipovidError for a schema of which no grammar can be made.
    """

    def __init__(self, sampling: Sampling, language: Language) -> None:
        sampling.check()
        self._llama, _ = libraries()
        self._draws = None if sampling.is_greedy and not sampling.is_penalised else self._chain(sampling, language)
        self._grammar = None if sampling.schema is None else self._grammar_of(sampling.schema, language)
        self._language, self._utf8 = language, codecs.getincrementaldecoder("utf-8")()

    def pick(self, logits: Floats) -> int:
        """The next token, given the logits [V]. It counts as taken.

        Raises MinipovidError where the schema leaves none.
        """
        token = self._choose(logits) if self._grammar is None else self._choose_allowed(logits)
        if self._draws is not None:
            self._llama.llama_sampler_accept(self._draws, token)
        return token

    def _choose_allowed(self, logits: Floats) -> int:
        """Under the grammar, for which the token counts as taken."""
        logits = self._allowed(logits)
        while np.isfinite(logits).any():
            token = self._choose(logits)
            if self._language.ends(token) or self._is_text(self._language.piece(token)):
                self._llama.llama_sampler_accept(self._grammar, token)
                return token
            logits[token] = -np.inf
        raise MinipovidError("The schema leaves no token of this model's vocabulary to go on with; loosen it.")

    def _choose(self, logits: Floats) -> int:
        if self._draws is None:
            return int(logits.argmax())
        candidates = _candidates(logits)
        chosen = self._apply(self._draws, candidates)
        return int(candidates["id"][chosen])

    def _allowed(self, logits: Floats) -> Floats:
        """A copy in which the tokens that the grammar forbids are minus infinity."""
        candidates = _candidates(logits)
        self._apply(self._grammar, candidates)
        return candidates["logit"].copy()

    def _is_text(self, piece: bytes) -> bool:
        """Do these bytes go on with whole characters? If so, they count as taken.

        The grammar lets through surrogates and first bytes beyond Unicode, and takes a special token, which no answer
        shows, for the letters of its name.
        """
        before = self._utf8.getstate()
        try:
            self._utf8.decode(piece)
            pending = self._utf8.getstate()[0]  # Python does not refuse a surrogate before its last byte
            is_text = piece != b"" and not (pending[:1] == b"\xed" and pending[1:2] >= b"\xa0")
        except UnicodeDecodeError:
            is_text = False
        if not is_text:
            self._utf8.setstate(before)
        return is_text

    def _apply(self, sampler: Any, candidates: np.ndarray[Any, Any]) -> int:
        """Have llama.cpp change the candidates in place; the place of the one that it selected, if it selects."""
        data = ctypes.cast(candidates.ctypes.data, self._llama.llama_token_data_p)
        array = self._llama.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
        self._llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(array.selected)

    def _chain(self, sampling: Sampling, language: Language) -> Any:
        """llama.cpp's samplers in the order in which its own programs apply them."""
        llama = self._llama
        chain = self._owned(llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params()))
        parts = []
        if sampling.is_penalised:
            penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
            last = min(sampling.max_tokens, _PENALISED)
            parts.append(llama.llama_sampler_init_penalties(language.n_vocab, last, *penalties))
        if sampling.is_greedy:
            parts.append(llama.llama_sampler_init_greedy())
        else:
            parts += [
                *([llama.llama_sampler_init_top_k(sampling.top_k)] if sampling.top_k > 0 else []),
                llama.llama_sampler_init_top_p(sampling.top_p, 1),
                *([llama.llama_sampler_init_min_p(sampling.min_p, 1)] if sampling.min_p > 0 else []),
                llama.llama_sampler_init_temp(sampling.temperature),
                llama.llama_sampler_init_dist(sampling.seed % _SEEDS),
            ]
        for part in parts:
            llama.llama_sampler_chain_add(chain, part)
        return chain

    def _grammar_of(self, schema: dict[str, Any], language: Language) -> Any:
        grammar = self._llama.llama_sampler_init_grammar(language.vocab, schemas.grammar(schema).encode(), b"root")
        if not grammar:  # a null pointer, not None
            raise MinipovidError("The schema holds itself in a way that llama.cpp cannot follow; simplify it.")
        return self._owned(grammar)

    def _owned(self, sampler: Any) -> Any:
        weakref.finalize(self, self._llama.llama_sampler_free, sampler)
        return sampler


def _candidates(logits: Floats) -> np.ndarray[Any, Any]:
    """Every token with its logit, as llama.cpp's samplers take them."""
    candidates = np.zeros(len(logits), _CANDIDATE)
    candidates["id"], candidates["logit"] = np.arange(len(logits)), logits
    return candidates
