"""The GGUF pair of a model: the language model in one quantisation, and the vision side (mmproj)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from minipovid.common.errors import MinipovidError
from minipovid.export import quants, vocabulary, writer
from minipovid.export.merge import Merged, RowReader
from minipovid.export.quants import QUANTS
from minipovid.export.source import ExportSource
from minipovid.models.parts import Place
from minipovid.models.stored_tensors import StoredTensor, Tensors, fingerprint
from minipovid.recipe.schema import Recipe

FORMAT = 2  # of what is written: raise it when the same inputs shall give other files
STAMP = "minipovid.inputs"
File = Literal["text", "mmproj"]
Progress = Callable[[int, int], None]  # (bytes written, bytes in all)


class GgufPair(ExportSource):
    """Everything that both files of a pair are made of. Nothing is written before a `write_` method is called.

    `dtype` is the one that training loaded a 4-bit base in. Raises MinipovidError where base or adapter holds what
    cannot be exported.
    """

    def __init__(
        self,
        model: Path,
        adapter: Path | None,
        name: str,
        dtype: str,
        recipe: Recipe | None = None,
        run: Path | None = None,
        texts: Sequence[str] = (),
        called: str | None = None,
    ):
        super().__init__(model, adapter, name, recipe, run, texts, called)
        self.dtype = dtype
        tensors = Tensors(model)
        self.base = {self.family.canonical(name): tensor for name, tensor in tensors.items()}
        if len(self.base) != len(tensors):
            raise MinipovidError(f"The model folder {model} holds some tensors twice, under two spellings.")
        places = {name: self.family.place(name, self.config) for name in self.base}
        self.places: dict[str, Place] = {name: place for name, place in places.items() if place is not None}
        self._check_base()

    def _check_base(self) -> None:
        """Every weight of the model must be there: llama.cpp would tie a missing head, or crash over a projector."""
        missing = sorted(name for name in self.weights - set(self.base) if self.family.place(name, self.config))
        if missing:
            raise MinipovidError(
                f"The model folder {self.model} holds no {missing[0]}"
                + (f" and {len(missing) - 1} more of its weights" if len(missing) > 1 else "")
                + "; fetch it again."
            )

    def parameters(self) -> int:
        return sum(self.base[name].size for name, place in self.places.items() if place.file == "text")

    @cached_property
    def _base_sha256(self) -> str:
        return fingerprint({name: self.base[name] for name in self.places})

    def stamp(self, metadata: Mapping[str, Any], imatrix: str | None = None) -> str:
        """A digest of all that a file's numbers and words depend on; `imatrix` is the key of an importance matrix.

        What only describes it does not count: who fetches a licence later need not write 14 GB again.
        """
        description = {*self.named_as("model"), *self.provenance()}
        keys = {key: value for key, value in metadata.items() if key not in description}
        inputs = [FORMAT, self._base_sha256, self.adapter_sha256, self.dtype, imatrix, keys]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def metadata(self, file: File, quant: str, merge_base: str = "original") -> dict[str, Any]:
        """The keys of one file, but for the stamp."""
        parts = self._text_metadata if file == "text" else self._mmproj_metadata
        return {
            "general.architecture": parts["general.architecture"],
            **self.provenance(),
            "minipovid.merge_base": merge_base,
            **self.named_as("model" if file == "text" else "mmproj"),
            "general.file_type": QUANTS[quant].file_type,
            "general.quantization_version": 2,
            **parts,
        }

    def settings(self, file: File) -> Mapping[str, Any]:
        """The keys that the model's own configuration settles."""
        if file == "text":
            return self.family.text_metadata(self.config)
        return self.family.mmproj_metadata(self.config, self.family.processor(self.model))

    @property
    def context_length(self) -> int:
        """Tokens that the language model was trained for."""
        keys = self.settings("text")
        return int(keys[f"{keys['general.architecture']}.context_length"])

    @cached_property
    def _text_metadata(self) -> dict[str, Any]:
        tokenizer, spaces = self.words
        embeddings = next(name for name, place in self.places.items() if place.name == "token_embd.weight")
        return {
            **self.settings("text"),
            **self.chat_keys(),
            **vocabulary.metadata(self.model, tokenizer, self.base[embeddings].shape[0], spaces, self.chat.end),
            "tokenizer.chat_template": self.chat.template(spaces.first),
        }

    @cached_property
    def _mmproj_metadata(self) -> dict[str, Any]:
        transform = self.family.image_transform(self.model)
        return {**self.settings("mmproj"), "minipovid.image_transform": transform.name}

    def write_text(self, path: Path, quant: str, merge_base: str, progress: Progress | None = None) -> None:
        """The language model, in a quantisation that is written here. Checks the tokenizer first: it takes a second."""
        metadata = self.metadata("text", quant, merge_base)
        writer.write(path, metadata, [])
        self.check_vocabulary(path)
        self._write(path, "text", quant, metadata, progress)

    def write_mmproj(self, path: Path, quant: str = "f16", progress: Progress | None = None) -> None:
        """Tower and projector."""
        self._write(path, "mmproj", quant, self.metadata("mmproj", quant), progress)

    def _write(
        self, path: Path, file: File, quant: str, metadata: Mapping[str, Any], progress: Progress | None
    ) -> None:
        merged = self.merged(metadata["minipovid.merge_base"])
        keys = {**metadata, STAMP: self.stamp(metadata)}
        writer.write(path, keys, self._entries(file, quant, merged), progress)
        merged.check_used(name for name in self.factors if self.places[name].file == file)

    def _entries(self, file: File, quant: str, merged: Merged) -> list[writer.TensorEntry]:
        return [
            writer.TensorEntry(
                place.name,
                self.base[name].shape,
                quants.kind_of(quant, self.base[name].shape, place.full, place.half),
                partial(merged.blocks, name, place),
            )
            for name, place in self.places.items()
            if place.file == file
        ]

    def n_bytes(self, file: File, quant: str, share: float = 1.0) -> int:
        """What a file takes on the disk, but for its metadata: a few MB of vocabulary. With `share`, matrices that
        llama.cpp's blocks of 256 fit take so much of it."""
        entries = self._entries(file, quant, self.merged("original"))
        fits = [entry for entry in entries if len(entry.shape) > 1 and entry.shape[-1] % 256 == 0]
        return writer.size(entries) - int((1 - share) * writer.size(fits))

    def merged(self, merge_base: str) -> Merged:
        """Every tensor with the adapter added: to what training in 4 bits saw of it ("nf4"), or to it ("original")."""

        def nf4(tensor: StoredTensor) -> RowReader:
            from minipovid.export.nf4 import Nf4Tensor  # needs bitsandbytes

            return Nf4Tensor(tensor, self.dtype)

        return Merged(self.base, self.factors, nf4 if merge_base == "nf4" else None)
