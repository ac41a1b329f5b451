"""The trained side of the comparison, computed by transformers on the way of training: base, adapter, pictures.

Also what known faults would make of a picture (verify/vision compares): the tower is run once for each of them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from minipovid.common.arrays import Array
from minipovid.common.errors import MinipovidError
from minipovid.export.gguf_pair import GgufPair
from minipovid.images.transform import ImageTransform
from minipovid.models import load
from minipovid.models.encoder import Encoder
from minipovid.models.model import Model
from minipovid.models.stored_tensors import Tensors
from minipovid.pairs.pair import Pair
from minipovid.recipe.schema import Recipe
from minipovid.train.batch import Batch
from minipovid.train.data import PairDataset, collate
from minipovid.train.losses import View
from minipovid.train.scoring import score
from minipovid.verify import vision
from minipovid.verify.float32 import widen
from minipovid.verify.inputs import VerifyProgress
from minipovid.verify.sheet import ANSWERS, TOP, TrainedAnswer, TrainedPair, TrainedSheet

AT_ONCE = 4  # pairs that pass the model together
VIEWS = [View(kind, "clean", grad=False) for kind in ANSWERS]


def compute(
    origin: GgufPair,
    recipe: Recipe,
    pairs: Sequence[Pair],
    digests: Sequence[str],
    root: Path,
    progress: VerifyProgress,
) -> TrainedSheet:
    """Load the trained model and let it say what it has to. Raises MinipovidError where it cannot be loaded.

    The base is taken from where `origin` has it, so that nothing is downloaded.
    """
    assert origin.adapter is not None
    section = recipe.model.model_copy(update={"path": str(origin.model), "revision": None})
    model = load.load(section, recipe.lora, seed=recipe.seed)
    model.load_adapter(origin.adapter)
    widen(model, origin.base)
    encoder = Encoder.of(model, recipe.data.max_length)
    transform = model.family.image_transform(model.folder)
    rows: list[TrainedPair] = []
    for batch in batches(recipe, pairs, root, encoder, transform):
        rows += _rows(model, batch, encoder, digests[len(rows) : len(rows) + len(batch)])
        progress("trained model", len(rows), len(pairs))
    return TrainedSheet(rows, _features(model, transform), encoder.chat, model.scales())


def logits_of_merged(recipe: Recipe, folder: Path, pairs: Sequence[Pair], root: Path) -> Iterator[Mapping[str, Array]]:
    """Float32 logits [A, V] of both answers of each pair, by a merged model as it is stored, not in 4 bits again, and
    under an adapter that adds nothing. Raises MinipovidError where the GPU has no room for it."""
    section = load.settled(recipe.model)
    section = section.model_copy(update={"path": str(folder), "revision": None, "load_in_4bit": False})
    _need_room(folder)
    model = load.load(section, recipe.lora, seed=recipe.seed)
    widen(model, {model.family.canonical(name): tensor for name, tensor in Tensors(folder).items()})
    return _answers(model, recipe, pairs, root)


def _need_room(folder: Path) -> None:
    if not torch.cuda.is_available():
        return
    gc.collect()  # the trained model's modules know each other
    torch.cuda.empty_cache()
    wanted, free = sum(path.stat().st_size for path in folder.glob("*.safetensors")), torch.cuda.mem_get_info()[0]
    if wanted * 1.2 > free:
        raise MinipovidError(f"the GPU has {free / 2**30:.1f} GiB free, and they take {wanted * 1.2 / 2**30:.1f} GiB.")


def _answers(model: Model, recipe: Recipe, pairs: Sequence[Pair], root: Path) -> Iterator[Mapping[str, Array]]:
    encoder = Encoder.of(model, recipe.data.max_length)
    transform = model.family.image_transform(model.folder)
    for batch in batches(recipe, pairs, root, encoder, transform):
        batch = batch.to(model.device)
        logits = _logits(model, batch)
        for pair in range(len(batch)):
            yield {kind: logits[kind][pair].cpu().numpy() for kind in ANSWERS}


def batches(
    recipe: Recipe, pairs: Sequence[Pair], root: Path, encoder: Encoder, transform: ImageTransform
) -> Iterator[Batch]:
    """The pairs as training sees them. Raises MinipovidError for one that it would refuse."""
    dataset = PairDataset(pairs, root, encoder, transform, recipe)
    for start in range(0, len(pairs), AT_ONCE):
        batch = collate([dataset[0, row] for row in range(start, min(start + AT_ONCE, len(pairs)))])
        if isinstance(batch, MinipovidError):
            raise batch
        yield batch


@torch.inference_mode()
def _logits(model: Model, batch: Batch) -> dict[str, list[Tensor]]:
    """[A, V] of each answer of each pair, padding left out; both answers stand behind one prefix."""
    table = score(model, batch, VIEWS)
    return {
        kind: [each[:n] for each, n in zip(table[kind, "clean"].logits(), batch.answers[kind].lengths, strict=True)]
        for kind in ANSWERS
    }


@torch.inference_mode()
def _rows(model: Model, batch: Batch, encoder: Encoder, digests: Sequence[str]) -> Iterator[TrainedPair]:
    batch = batch.to(model.device)
    answers: dict[str, list[TrainedAnswer]] = {}
    trained = _logits(model, batch)
    with model.as_reference():
        base = _logits(model, batch)
    for kind, tokens in batch.answers.items():
        ids = [row[:length] for row, length in zip(tokens.ids, tokens.lengths, strict=True)]
        answers[kind] = [_answer(*each) for each in zip(ids, trained[kind], base[kind], strict=True)]
    for pair, digest in enumerate(digests):
        prompt = batch.prompt.ids[pair, : batch.prompt.lengths[pair]].tolist()
        yield TrainedPair(digest, _folded(prompt, encoder), {kind: answers[kind][pair] for kind in ANSWERS})


def _answer(ids: Tensor, trained: Tensor, base: Tensor) -> TrainedAnswer:
    """Of token ids [A] and the logits [A, V] of the trained model and of its base."""
    ours, theirs = trained.double().log_softmax(-1), base.double().log_softmax(-1)
    top = ours.topk(min(TOP, ours.shape[-1]), -1)
    return TrainedAnswer(
        ids=_array(ids.int()),
        logps=_array(ours.gather(1, ids[:, None])[:, 0].float()),
        base_logps=_array(theirs.gather(1, ids[:, None])[:, 0].float()),
        base_kl=_array((ours.exp() * (ours - theirs)).sum(-1).float()),
        base_same=_array(ours.argmax(-1) == theirs.argmax(-1)),
        top_ids=_array(top.indices.int()),
        top_logps=_array(top.values.float()),
    )


def _folded(prompt: Sequence[int], encoder: Encoder) -> Array:
    """The prompt with one -1 for the picture, as llama.cpp's runtime tells it."""
    at = prompt.index(encoder.image_token_id)
    return np.array([*prompt[:at], -1, *prompt[at + encoder.image_tokens :]], np.int32)


def _array(tensor: Tensor) -> Array:
    return tensor.cpu().numpy()


# --- what the tower sees ---


@torch.inference_mode()
def _features(model: Model, transform: ImageTransform) -> dict[str, Array]:
    """float32 [pictures, N, k] of the probe pictures: as they should be, and under each fault that can be had here.

    The model computes in float32 (float32.widen): faults are told apart by less than bfloat16's rounding.
    """
    canvases = {vision.TRUE: vision.padded, **vision.CANVASES}
    ways: list[tuple[str, Callable[[Image, ImageTransform], Array], Callable[[], Any]]] = [
        *((name, canvas, nullcontext) for name, canvas in canvases.items()),
        *((name, vision.padded, plant) for name, plant in model.family.vision_faults(model.base).items()),
    ]
    features: dict[str, Array] = {}
    for name, canvas, plant in ways:
        pixels = np.stack([transform.normalise(canvas(picture, transform)) for picture in vision.probes()])
        with plant():  # the model has the fault in this context
            seen = model.family.image_features(model.base, torch.from_numpy(pixels).to(model.device))
        features[name] = vision.projected(_array(seen.float()))
    shape = features[vision.TRUE].shape
    return {name: value for name, value in features.items() if value.shape == shape}
