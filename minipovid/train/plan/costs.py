"""Bytes and floating point operations (FLOP) of a training step, from a model's shapes. No weight is touched.

A loss's views make trees, [picture and prompt | answer | answer], one for each picture and each of grad, no grad. With
T columns in one micro-batch (W of them in a row), L layers, hidden size H, all heads' width A, feed-forward size I,
rank r and b bytes per number (2 in 16 bits, 4 in float32), autograd keeps of a layer, for transformers' Llama under
peft's LoRA with SDPA:

    the inputs of the two norms                      2 T H * n      and 2 T * 4 of their scales; n is b on a GPU, else 4
    the norms' outputs, which LoRA's A reads         2 T H * b      (query, key, value share one; gate and up the other)
    query, key, value, output of attention           4 T A * b      keys and values repeated to all heads
    the log-sum-exp of attention                     T * heads * 4
    gate, its SiLU, up, their product                4 T I * b
    what LoRA's B reads, seven times                 7 T r * b
    adapters that autocast made 16 bits wide         b per weight, if b is 2

A frozen linear layer keeps nothing, in 4 bits neither (it is dequantised again). Where attention is
split (attention.py), its output is kept twice. In the last layer everything behind the attention is done for the
columns that predict something alone (layers.py). With gradient checkpointing a layer keeps only its input,
T H * b; the last one never is checkpointed (load.py), and down_proj's frozen product is not computed again. Once: the
tree mask
T W * b, the rotary tables, the last norm's input, and per scored answer rows [N, H].

Memory has its peak when the backward pass begins (everything is kept), when it comes to the first checkpointed layer
(all inputs and one whole layer), when it ends (all gradients are there; the optimisers of optimisers.py then make no
temporaries), or in the views without gradients, which come first. A layer at work also takes T (H + 2 I) * b for
gradients and one dequantised matrix, or, in views without gradients, T (2 H + 4 I) * b; the head's chunk of logits is
gone by then.

All this is derived from the code and tested on a CPU in float32; of bfloat16 under autocast, as CUDA runs it, the kept
tensors are tested, and what CUDA takes beside them (1 GiB, half of it its context) is assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from minipovid.models.shapes import Shapes
from minipovid.models.tree_attention import attention
from minipovid.models.tree_attention.forest import MULTIPLE
from minipovid.recipe.schema import Recipe
from minipovid.train.losses import View
from minipovid.train.scoring import ROW_CHUNK, VOCAB_CHUNK

GIB = 2**30
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # per weight: 4 bits, 8 per 64, 32 per 64 * 256 (arXiv 2305.14314)
EIGHT_BIT = 2 * (1 + 4 / 256)  # Adam's moments in 8 bits, and a float32 scale for 256 of them
MOMENTS = {"adamw_torch": 8.0, "adamw_8bit": EIGHT_BIT, "paged_adamw_32bit": 8.0, "paged_adamw_8bit": EIGHT_BIT}
PAGED_FROM = 100_000  # weights of a tensor whose moments bitsandbytes pages
CUDA_OWN = GIB  # context, cuBLAS and the gaps that the allocator leaves; assumed
CPU_OWN = 48 * 2**20  # pages of libraries first touched in a step, buffers of the matrix products; measured


class Tree(NamedTuple):
    """What is scored of one pair in one sequence: a prefix and its answers, in tokens."""

    image: str
    grad: bool
    prefix: int
    answers: tuple[int, ...]

    @property
    def columns(self) -> int:
        return -(-(self.prefix + sum(self.answers)) // MULTIPLE) * MULTIPLE

    @property
    def attended(self) -> int:
        """Scores of attention where prefix and answers are computed apart: prefix with itself, answers with all."""
        return self.prefix**2 + self.rows * (self.prefix + self.rows)

    @property
    def asked(self) -> int:
        """The same in the last layer, where of the prefix only its end asks."""
        return (self.rows + 1) * (self.prefix + self.rows)

    @property
    def rows(self) -> int:
        """Answer positions, N."""
        return sum(self.answers)

    @property
    def read(self) -> int:
        """Columns that predict something: the prefix's end for every answer, and all of an answer but its own."""
        return self.rows - len(self.answers) + 1


def trees(views: Iterable[View], prefix: int, answer: int) -> list[Tree]:
    """The sequences in which `views` are scored, each picture's prefix once (minipovid.scoring groups them so)."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for view in views:
        group = groups.setdefault((view.image, view.grad), [])
        if view.answer not in group:
            group.append(view.answer)
    return [Tree(image, grad, prefix, (answer,) * len(group)) for (image, grad), group in groups.items()]


def reference(views: Iterable[View]) -> list[View]:
    """The views that the reference model must score, none of them with gradients."""
    return [view._replace(grad=False) for view in views if view.reference != "nothing"]


@dataclass(frozen=True)
class Setting:
    """What the arithmetic needs to know of a recipe; `auto` is settled."""

    rank: int
    in_4bit: bool
    width: int  # b, bytes of a number that is not quantised
    on_gpu: bool
    checkpointing: bool | int  # of all layers, none, or so many
    pairs: int  # in one micro-batch
    passes: int  # micro-batches in an optimiser step
    optim: str
    frozen_adapter: bool  # a later stage refers to the adapter as it began

    @classmethod
    def of(cls, recipe: Recipe, on_gpu: bool) -> Setting:
        """Raises TypeError where train.micro_batch is still auto."""
        train = recipe.train
        pairs = min(int(train.micro_batch), train.pairs_per_step)
        wide = recipe.model.dtype == "float32" or (recipe.model.dtype == "auto" and not on_gpu)
        return cls(
            rank=recipe.lora.r,
            in_4bit=recipe.model.load_in_4bit,
            width=4 if wide else 2,
            on_gpu=on_gpu,
            checkpointing=False if train.gradient_checkpointing == "auto" else train.gradient_checkpointing,
            pairs=pairs,
            passes=-(-train.pairs_per_step // pairs),
            optim=train.optim,
            frozen_adapter=len(recipe.stages) > 1 or recipe.start_from is not None,
        )


# --- Bytes ---


class Memory(NamedTuple):
    """Bytes by part at the moment when most is taken."""

    moment: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory(model: Shapes, setting: Setting, policy: Sequence[Tree]) -> Memory:
    """The peak of a step whose policy scores these trees of each pair, in this order."""
    always = {
        "language model": model.linear * (NF4_BYTES if setting.in_4bit else setting.width),
        "embeddings and output head": model.embeddings * setting.width,
        "vision tower and projector": model.vision * setting.width,
        "adapters": float((4 + setting.width * setting.frozen_adapter) * _adapter(model, setting)),
    }
    own = CUDA_OWN if setting.on_gpu else CPU_OWN
    moments = MOMENTS[setting.optim] * _adapter(model, setting) - paged(model, setting)

    def at(moment: str, gradients: float, activations: float, head: float, work: float) -> Memory:
        passing = {"activations": activations, "logits": head, "workspace": own + work}
        return Memory(moment, always | {"optimiser": moments + gradients} | passing)

    return max((at(*each) for each in _moments(model, setting, policy)), key=lambda memory: memory.total)


def _moments(
    model: Shapes, setting: Setting, policy: Sequence[Tree]
) -> Iterator[tuple[str, float, float, float, float]]:
    """(name, gradients, activations, logits, work) of each moment that may be the peak."""
    gradients, copies = 4 * _adapter(model, setting), 2 * _adapter(model, setting) * (setting.width == 2)
    taught, quiet = [tree for tree in policy if tree.grad], [tree for tree in policy if not tree.grad]
    head, work = logits(model, setting, policy), layer_work(model, setting, taught)
    one = max((layer(model, setting, tree) for tree in policy if tree.grad), default=0.0)
    begun = gradients if setting.passes > 1 else 0  # left by the micro-batches before
    if quiet:
        yield "views without gradients are scored", begun, 0.0, 0.0, copies / 2 + layer_work(model, setting, quiet)
    yield "the backward pass begins", begun, kept(model, setting, policy), head, copies + max(work - head, 0)
    if recomputed(model, setting):
        there = max(begun, gradients * (1 - recomputed(model, setting) / model.layers))
        yield "recomputation begins", there, inputs(model, setting, policy) + one, 0, copies + work
    yield "the backward pass ends", gradients, one, 0, work


def paged(model: Shapes, setting: Setting) -> float:
    """Bytes of the optimiser's moments that may leave the card for the computer's memory: of large weights alone."""
    sizes = [width * setting.rank for width in model.adapter_widths]
    large = sum(size for size in sizes if size >= PAGED_FROM)
    return MOMENTS[setting.optim] * large if setting.optim.startswith("paged_") else 0.0


def _adapter(model: Shapes, setting: Setting) -> int:
    return model.adapter_per_rank * setting.rank


def kept(model: Shapes, setting: Setting, policy: Sequence[Tree]) -> float:
    """Bytes that autograd keeps of one micro-batch until the backward pass, adapters' 16-bit copies left out."""
    b, hidden, pairs = setting.width, model.hidden, setting.pairs
    total = inputs(model, setting, policy)
    for tree in policy:
        if not tree.grad:
            continue
        columns = tree.columns * pairs
        total += (model.layers - recomputed(model, setting) - 1) * layer(model, setting, tree)
        total += last_layer(model, setting, tree)
        total += columns * tree.columns * b  # the mask
        total += 2 * tree.columns * model.head_width * b  # rotary tables, the same for every row
        total += columns * (hidden * norm_width(setting) + 4)  # the last norm
        total += pairs * tree.rows * hidden * (4 + 2 * b)  # wanted columns of the head, rows and their gradient
    return total


def inputs(model: Shapes, setting: Setting, policy: Sequence[Tree]) -> float:
    """Bytes that the checkpointed layers keep of one micro-batch: what they were given."""
    columns = sum(tree.columns for tree in policy if tree.grad) * setting.pairs
    return float(recomputed(model, setting) * columns * model.hidden * setting.width)


def recomputed(model: Shapes, setting: Setting) -> int:
    """How many layers are checkpointed."""
    wanted = model.layers if setting.checkpointing is True else int(setting.checkpointing)
    return min(wanted, model.layers - 1)


def layer(model: Shapes, setting: Setting, tree: Tree) -> float:
    """Bytes that autograd keeps of one layer: the table of the module's docstring."""
    b, hidden, columns = setting.width, model.hidden, tree.columns * setting.pairs
    heads = (5 if splits(setting, tree) else 4) * model.attention
    numbers = 2 * hidden + heads + 4 * model.feed_forward + 7 * setting.rank
    return float(columns * (numbers * b + 2 * hidden * norm_width(setting) + 4 * model.heads + 8))


def norm_width(setting: Setting) -> int:
    """Bytes of a number that a norm keeps: as it came where the norm is one kernel (layers.py), else in float32."""
    return setting.width if setting.on_gpu else 4


def last_layer(model: Shapes, setting: Setting, tree: Tree) -> float:
    """The same of the last layer: all columns up to the keys and values, then those that are read."""
    b, hidden, columns, read = setting.width, model.hidden, tree.columns * setting.pairs, tree.read * setting.pairs
    asked = (tree.rows + 1) * setting.pairs if splits(setting, tree) else columns
    norms = 2 * hidden * norm_width(setting) + 8
    before = columns * ((hidden + 3 * model.attention + 3 * setting.rank) * b + norms)
    behind = read * (model.attention + hidden + 4 * model.feed_forward + 4 * setting.rank) * b
    return float(before + asked * (model.attention * b + 4 * model.heads) + behind)


def layer_work(model: Shapes, setting: Setting, policy: Sequence[Tree]) -> float:
    """Bytes that the layer in hand takes beside what is kept."""
    b, hidden, inner = setting.width, model.hidden, model.feed_forward
    dequantised = model.largest * b if setting.in_4bit else 0
    each = [(hidden + 2 * inner if tree.grad else 2 * hidden + 4 * inner) * tree.columns for tree in policy]
    return float(max(each, default=0) * setting.pairs * b + dequantised)


def logits(model: Shapes, setting: Setting, policy: Sequence[Tree]) -> float:
    """Bytes of one chunk of the head, in float32, and of the rows that go through it."""
    longest = max(tree.read for tree in policy) * setting.pairs
    chunk = min(model.vocabulary, VOCAB_CHUNK)
    weights = chunk * model.hidden if setting.width == 2 else 0
    return 4.0 * (min(longest, ROW_CHUNK) * chunk + weights + 3 * longest * model.hidden)


# --- FLOP: 2 for each multiplication with its addition ---


def flop(model: Shapes, setting: Setting, policy: Sequence[Tree]) -> dict[str, float]:
    """Of the policy for one pair, by part; each of the trees' pictures passes the tower once."""
    grad = [tree for tree in policy if tree.grad]
    again = sum(_forward(model, setting, grad, whole=True).values()) / model.layers
    # Not down_proj's product; nor that of its B where nothing behind it keeps a tensor, as a layer in 4 bits does not.
    unread = model.feed_forward + setting.rank * setting.in_4bit
    again -= 2 * sum(tree.columns for tree in grad) * model.hidden * unread
    return {
        "vision": float(len({tree.image for tree in policy}) * model.vision_flop),
        **_forward(model, setting, policy),
        "head": head_flop(model, policy),
        "recomputed": again * recomputed(model, setting),
        **_backward(model, setting, grad),
    }


def reference_flop(model: Shapes, setting: Setting, trees: Sequence[Tree], adapted: bool) -> float:
    """Of the reference for one pair: a forward pass, through a frozen adapter in later stages (`adapted`)."""
    plain = setting if adapted else replace(setting, rank=0)
    return sum(_forward(model, plain, trees).values()) + head_flop(model, trees)


def _forward(model: Shapes, setting: Setting, trees: Sequence[Tree], whole: bool = False) -> dict[str, float]:
    """`whole`: as if the last layer were like the others."""
    columns, idle = _columns(trees, whole)
    lora = columns * model.adapter_per_rank - idle * model.columnwise_per_rank
    return {
        "linear": 2 * (columns * model.linear - idle * model.columnwise),
        "LoRA": 2 * setting.rank * lora,
        "attention": 2 * _attention(model, setting, trees, whole),
    }


def _backward(model: Shapes, setting: Setting, trees: Sequence[Tree]) -> dict[str, float]:
    """Through frozen weights to their inputs; for A and B to input and weight; nothing reaches the embeddings. Fused
    attention computes its scores again and then four products: five."""
    columns, idle = _columns(trees)
    lora = columns * (2 * model.adapter_per_rank - 3 * model.hidden) - idle * 2 * model.columnwise_per_rank
    return {
        "backward, linear": 2 * (columns * (model.linear - model.first) - idle * model.columnwise),
        "backward, LoRA": 2 * setting.rank * lora,
        "backward, attention": 5 * _attention(model, setting, trees),
    }


def _columns(trees: Sequence[Tree], whole: bool = False) -> tuple[float, float]:
    """All columns, and those of which the last layer leaves out what is behind the attention."""
    idle = 0 if whole else sum(tree.columns - tree.read for tree in trees)
    return float(sum(tree.columns for tree in trees)), float(idle)


def _attention(model: Shapes, setting: Setting, trees: Sequence[Tree], whole: bool = False) -> float:
    """One of attention's products in all layers; a dense mask lets every column meet every other."""
    scores = 0
    for tree in trees:
        each = tree.attended if splits(setting, tree) else tree.columns**2
        last = tree.asked if splits(setting, tree) and not whole else each
        scores += each * (model.layers - 1) + last
    return 2.0 * scores * model.attention


def splits(setting: Setting, tree: Tree) -> bool:
    """Whether minipovid.attention computes prefix and answers apart."""
    return attention.splits(tree.columns, "cuda" if setting.on_gpu else "cpu")


def head_flop(model: Shapes, trees: Sequence[Tree]) -> float:
    """The logits of every row that is read; with gradients also the mean of the head's rows under the softmax."""
    return sum((4 if tree.grad else 2) * tree.read * model.hidden * model.vocabulary for tree in trees)


def dequantised(model: Shapes, setting: Setting, trees: Sequence[Tree]) -> float:
    """Bytes that a micro-batch moves to turn 4-bit weights into 16 bits: read and written once for each way through."""
    again = 1 - model.layers * model.feed_forward * model.hidden / model.linear  # all but down_proj
    each = 2 + again * recomputed(model, setting) / model.layers
    ways = sum(each if tree.grad else 1 for tree in trees)
    return ways * model.linear * (NF4_BYTES + setting.width) if setting.in_4bit else 0.0


def optimiser_traffic(model: Shapes, setting: Setting) -> float:
    """Bytes that the optimiser's step moves: weight, gradient and moments read, all but the gradient written."""
    return (12 + 2 * MOMENTS[setting.optim]) * model.adapter_per_rank * setting.rank
