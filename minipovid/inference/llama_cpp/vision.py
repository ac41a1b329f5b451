"""Pictures on their way into the language model: a square canvas, then the tower's rows, each made once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from PIL.Image import Image

from minipovid.common.arrays import Floats
from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.transform import ImageTransform
from minipovid.inference.llama_cpp import self_test
from minipovid.inference.llama_cpp.class_token import ClassToken
from minipovid.inference.llama_cpp.gguf_files import Header
from minipovid.inference.llama_cpp.tower import Canvas, Tower
from minipovid.models.parts import mmproj

REMEMBERED = 8  # pictures whose rows are kept: 9 MiB each beside a 7B model
Value = TypeVar("Value")


class PreparedPicture(NamedTuple):
    """A picture as the tower takes it; two with the same digest are the same."""

    canvas: Canvas
    digest: bytes


class Recent(Generic[Value]):
    """The last few things made, by key."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit, self._items = limit, OrderedDict[Hashable, Value]()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` makes, or made when the key was last seen."""
        value = self._items.pop(key, None)
        self._items[key] = value = make() if value is None else value
        while len(self._items) > self._limit:
            self._items.popitem(last=False)
        return value


class VisionModel:
    """An mmproj file beside a language model. Raises MinipovidError where it is none or does not fit the model.

    `class_token` tells what the pictures need: see `self_test`.
    """

    def __init__(self, path: Path, model: Any, *, use_gpu: bool, n_threads: int) -> None:
        if not path.is_file():
            raise MinipovidError(f"There is no file {path}; `minipovid export` writes the GGUF pair of a run.")
        header = Header(path)
        self.transform = ImageTransform(
            size=header.keys[mmproj.IMAGE_SIZE],
            mean=tuple(header.keys[mmproj.IMAGE_MEAN]),
            std=tuple(header.keys[mmproj.IMAGE_STD]),
        )
        # Other projectors want the class token last.
        is_two_linear = header.keys.get(mmproj.PROJECTOR) == mmproj.TWO_LINEAR
        has_class_token = is_two_linear and mmproj.CLASS_TOKEN in header.tensors
        self.class_token: str = self_test.verdict(model, use_gpu) if has_class_token else "no class token"
        self._remedy = ClassToken() if self.class_token == "moved" else None
        self._pictures: Recent[PreparedPicture] = Recent()
        self._features: Recent[Floats] = Recent()
        self._tower = Tower(path, model, use_gpu=use_gpu, n_threads=n_threads, class_token=self._remedy)
        try:
            self.rows = self._checked(path)
        except BaseException:
            self.close()
            raise

    def _checked(self, path: Path) -> int:
        """Rows per picture. Raises MinipovidError for a tower whose rows this runtime would not read as they are."""
        blank = np.zeros((self.transform.size, self.transform.size, 3), np.uint8)
        if not self._tower.is_read_in_order(blank):
            raise MinipovidError(f"{path} is of a kind of model whose pictures minipovid cannot read to it.")
        return self._tower.count(blank)

    def look(self, image: Image | Path) -> PreparedPicture:
        """The picture as the tower takes it, the same from a file and opened. A file is read again when it has changed.

        Raises MinipovidError for what is no picture.
        """
        if not isinstance(image, Path):
            return self._prepared(images.upright_rgb(image))
        if not image.is_file():
            return self._prepared(images.load(image))
        state = image.stat()
        key = (image, state.st_mtime_ns, state.st_size)
        return self._pictures.get(key, lambda: self._prepared(images.load(image)))

    def _prepared(self, image: Image) -> PreparedPicture:
        canvas = self.transform.canvas(image)
        return PreparedPicture(canvas, hashlib.sha256(canvas.tobytes()).digest())

    def features(self, picture: PreparedPicture) -> Floats:
        """What the language model gets to see [N, H]."""
        return self._features.get(picture.digest, lambda: self.encode(picture.canvas))

    def encode(self, canvas: Canvas) -> Floats:
        """The tower's rows [N, H]."""
        features = self._tower.encode(canvas)
        if self._remedy and not self._remedy.moved:
            raise RuntimeError("the remedy for CLIP's class token found nothing to mend, so the features are wrong")
        return features

    def close(self) -> None:
        """Free everything. May be called twice."""
        self._tower.close()
