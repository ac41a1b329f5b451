"""Every file on the families' shelf, asked what the page models/families/__init__.py promises for it.

A family brings tests/helpers/tiny_<family>.py: CASES are keywords of its `build(folder, **case)`, which writes a random
checkpoint of that kind in Hub layout.
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.models import chat_template, families
from minipovid.models.families import PHOTO, Family
from minipovid.models.parts import mmproj
from minipovid.models.shapes import skeleton
from minipovid.models.stored_tensors import Tensors
from minipovid.verify import vision

NAMES = shelf.names("models.families")
CASES = [(name, case) for name in NAMES for case in importlib.import_module(f"tiny_{name}").CASES]
MEMBERS = {name: member for name, member in vars(Family).items() if inspect.isfunction(member) and name[0] != "_"}
CONSTANTS = Family.__annotations__.keys() - {"__name__"}
SIZES = [(1, 1), (28, 28), (90, 31), PHOTO]  # of pictures
SIMPLE = (bool, int, float, str)  # what a GGUF's keys may be


class Tiny:
    """A random model of a family."""

    def __init__(self, folder: Path, config: Any = None) -> None:
        self.folder = folder
        self.config = config or AutoConfig.from_pretrained(folder)

    @cached_property
    def skeleton(self) -> nn.Module:
        return skeleton(self.config)

    @cached_property
    def model(self) -> Any:
        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def names(self) -> list[str]:
        return [name for name, _ in self.skeleton.named_parameters()]


@pytest.fixture(scope="module", params=CASES, ids=str)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Tiny]:
    """A family, and a model of its kind."""
    name, case = request.param
    folder = importlib.import_module(f"tiny_{name}").build(tmp_path_factory.mktemp(name) / "base", **case)
    return families.of(name), Tiny(folder)


def linear(module: nn.Module) -> set[int]:
    return {id(part) for part in module.modules() if isinstance(part, nn.Linear)}


def weights(*modules: nn.Module) -> set[int]:
    return {id(weight) for module in modules for weight in module.parameters()}


# --- what holds of every family; each is given a family and a tiny model of its kind ---


def has_every_member(family: Family, tiny: Tiny) -> None:
    """Under the page's names, with the page's parameters; and no other room can lean on what the page does not say."""
    assert [name for name in (*CONSTANTS, *MEMBERS) if not hasattr(family, name)] == []
    for name, member in MEMBERS.items():
        promised = list(inspect.signature(member).parameters)[1:]
        assert list(inspect.signature(getattr(family, name)).parameters) == promised, name
    own = {name for name, value in vars(family).items() if getattr(value, "__module__", "") == family.__name__}
    assert {name for name in own if not name.startswith("_")} <= set(MEMBERS)


def adapters_stand_on_the_language_model(family: Family, tiny: Tiny) -> None:
    """On all of its linear layers, and on nothing else."""
    model = tiny.skeleton
    targets = {id(part) for name, part in model.named_modules() if re.fullmatch(family.LORA_TARGETS, name)}
    assert targets == linear(family.text_model(model)) and targets


def each_weight_has_one_owner(family: Family, tiny: Tiny) -> None:
    """Language model, vision side or output head: together they are the whole model."""
    model: Any = tiny.skeleton
    text, head = weights(family.text_model(model)), weights(model.get_output_embeddings())
    eyes = weights(*family.vision_modules(model))
    assert text and eyes and not eyes & (text | head)
    assert text | eyes | head == weights(model)


@torch.inference_mode()
def columnwise_parts_know_no_neighbour(family: Family, tiny: Tiny) -> None:
    """What such a module makes of a column is the same wherever it stands; in every layer."""
    layers: Any = family.text_model(tiny.model).layers
    order = torch.tensor([3, 0, 4, 1, 2])
    for layer in layers:
        for name in family.COLUMNWISE:
            module = layer.get_submodule(name)
            first = next(part for part in module.modules() if isinstance(part, nn.Linear))
            x = torch.randn(1, 5, first.in_features)
            torch.testing.assert_close(module(x[:, order]), module(x)[:, order])
    assert family.COLUMNWISE and len(layers) > 1


def one_spelling(family: Family, tiny: Tiny) -> None:
    """`canonical` settles at once, keeps tensors apart, and knows the names under which they are stored."""
    spelt = [family.canonical(name) for name in tiny.names]
    assert [family.canonical(name) for name in spelt] == spelt
    assert len(set(spelt)) == len(tiny.names) > 20
    tiny.model.save_pretrained(tiny.folder / "saved")
    for folder in (tiny.folder, tiny.folder / "saved"):
        assert {family.canonical(name) for name in Tensors(folder)} == set(spelt)


def one_place_for_each_tensor(family: Family, tiny: Tiny) -> None:
    """Or none, and no two tensors in one place; what QLoRA quantises is known by its place too."""
    model, eyes = tiny.skeleton, weights(*family.vision_modules(tiny.skeleton))
    quantised = {id(part.weight) for part in family.text_model(model).modules() if isinstance(part, nn.Linear)}
    places = []
    for name, weight in model.named_parameters():
        place = family.place(family.canonical(name), tiny.config)
        is_vision = id(weight) in eyes
        if place is None:
            assert is_vision, f"{name} has no place, and the language model is exported whole"
            continue
        assert place.file == ("mmproj" if is_vision else "text"), name
        assert place.in_4bit == (id(weight) in quantised), name
        assert not place.heads or len(weight) % (2 * place.heads) == 0, name
        places.append((place.file, place.name))
    assert len(set(places)) == len(places) > 20
    for foreign in ("language_model.layers.0.nonsense.weight", "vision_tower.nonsense.weight", "nonsense"):
        with pytest.raises(MinipovidError, match=re.escape(foreign)):
            family.place(foreign, tiny.config)


@torch.inference_mode()
def as_many_image_tokens_as_the_tower_gives(family: Family, tiny: Tiny) -> None:
    transform = family.image_transform(tiny.folder)
    for size in SIZES:
        pixels = transform(Image.new("RGB", size, "red"))
        assert pixels.shape == (3, transform.size, transform.size) and pixels.dtype == "float32"
        features = family.image_features(tiny.model, torch.from_numpy(pixels)[None].expand(2, -1, -1, -1))
        width = family.text_model(tiny.model).config.hidden_size  # type: ignore[union-attr]
        assert features.shape == (2, family.image_tokens(tiny.config, size), width)


def the_placeholder_is_one_token(family: Family, tiny: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    prompt = tokenizer(chat_template.of(tiny.folder, tokenizer).prompt("What is this?")).input_ids
    assert prompt.count(family.image_token_id(tiny.config)) == 1


def metadata_says_what_training_does(family: Family, tiny: Tiny) -> None:
    """In types that a GGUF holds; context and picture as the other members have them."""
    text = family.text_metadata(tiny.config)
    sight = family.mmproj_metadata(tiny.config, family.processor(tiny.folder))
    for keys in (text, sight):
        assert next(iter(keys)) == "general.architecture"
        for value in keys.values():
            assert all(isinstance(each, SIMPLE) for each in (value if isinstance(value, list) else [value]))
    assert text[f"{text['general.architecture']}.context_length"] == family.context(tiny.config) > 0
    transform = family.image_transform(tiny.folder)
    assert sight["general.architecture"] == mmproj.ARCHITECTURE
    assert sight[mmproj.IMAGE_SIZE] == transform.size
    assert (tuple(sight[mmproj.IMAGE_MEAN]), tuple(sight[mmproj.IMAGE_STD])) == (transform.mean, transform.std)


@torch.inference_mode()
def plans_count_the_work_of_the_tower(family: Family, tiny: Tiny) -> None:
    """As torch counts it; on a CPU it can only where attention is plain products."""
    side = family.image_transform(tiny.folder).size
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.image_features(tiny.model, torch.zeros(1, 3, side, side))
    assert family.vision_flop(tiny.skeleton, PHOTO) == pytest.approx(counter.get_total_flops(), rel=0.01)


@torch.inference_mode()
def faults_change_features_and_go_away(family: Family, tiny: Tiny) -> None:
    """verify has a sentence for each."""
    pixels = torch.from_numpy(family.image_transform(tiny.folder)(vision.probes()[0]))[None]
    right = family.image_features(tiny.model, pixels)
    faults = family.vision_faults(tiny.model)
    assert faults
    for name, plant in faults.items():
        assert name in vision.SENTENCES or re.fullmatch(r"layer \d+", name)
        with plant():
            wrong = family.image_features(tiny.model, pixels)
        assert wrong.shape != right.shape or not torch.allclose(wrong, right, rtol=0.01), name
        assert torch.equal(family.image_features(tiny.model, pixels), right), name


def known_models_are_of_this_kind(family: Family, tiny: Tiny) -> None:
    for repo, settings in family.KNOWN.items():
        assert repo.count("/") == 1
        config = AutoConfig.for_model(**settings)
        assert family.__name__.endswith(f".{config.model_type}")
        assert family.context(config) > 0 and family.image_tokens(config, PHOTO) > 0
        one_place_for_each_tensor(family, Tiny(tiny.folder, config))


Check = Callable[[Family, Tiny], None]
CHECKS: tuple[Check, ...] = (
    *(has_every_member, adapters_stand_on_the_language_model, each_weight_has_one_owner),
    *(columnwise_parts_know_no_neighbour, one_spelling, one_place_for_each_tensor),
    *(as_many_image_tokens_as_the_tower_gives, the_placeholder_is_one_token, metadata_says_what_training_does),
    *(plans_count_the_work_of_the_tower, faults_change_features_and_go_away, known_models_are_of_this_kind),
)


def test_the_shelf_was_seen() -> None:
    files = {path.stem for path in Path(families.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(NAMES) == files and {name for name, _ in CASES} == files
    assert len(files) >= 1 and len(CASES) >= 3 and len(MEMBERS) + len(CONSTANTS) >= 16


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_family(both: tuple[Family, Tiny], check: Check) -> None:
    check(*both)


def test_families_load_no_torch() -> None:
    modules = [f"minipovid.models.families.{name}" for name in NAMES]
    program = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    program += "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the checks themselves, each tried on a family with a fault ---


def faults(family: Any) -> Iterator[tuple[Check, dict[str, Any]]]:
    """(the check that must notice, members laid over the family's own)."""
    yield has_every_member, {"context": lambda: 1}
    yield adapters_stand_on_the_language_model, {"LORA_TARGETS": r".*(q_proj|k_proj|v_proj)"}
    yield each_weight_has_one_owner, {"vision_modules": lambda model: family.vision_modules(model)[:1]}
    yield columnwise_parts_know_no_neighbour, {"COLUMNWISE": (*family.COLUMNWISE, "self_attn.nonsense")}
    yield one_spelling, {"canonical": lambda name: family.canonical(name).replace(".weight", "").replace(".bias", "")}
    yield one_spelling, {"canonical": lambda name: f"x.{family.canonical(name)}"}
    yield one_place_for_each_tensor, {"place": lambda name, config: _first_layer(family.place(name, config))}
    yield one_place_for_each_tensor, {"place": lambda name, config: None}
    yield as_many_image_tokens_as_the_tower_gives, {"image_tokens": lambda config, size: 17}
    yield the_placeholder_is_one_token, {"image_token_id": lambda config: 3}
    yield metadata_says_what_training_does, {"context": lambda config: 77}
    yield plans_count_the_work_of_the_tower, {"vision_flop": lambda m, size: 0.97 * family.vision_flop(m, size)}
    yield faults_change_features_and_go_away, {"vision_faults": lambda model: {"nonsense": nullcontext}}
    yield faults_change_features_and_go_away, {"vision_faults": lambda model: {"layer 0": nullcontext}}
    yield known_models_are_of_this_kind, {"KNOWN": {"a/bert": {"model_type": "bert"}}}


def _first_layer(place: Any) -> Any:
    return place and place._replace(name=re.sub(r"blk\.\d+", "blk.0", place.name))


def test_a_planted_fault_is_caught(both: tuple[Family, Tiny]) -> None:
    family, tiny = both
    planted = list(faults(family))
    assert {check for check, _ in planted} == set(CHECKS)
    for check, members in planted:
        broken: Any = SimpleNamespace(**{**vars(family), **members})
        with pytest.raises((AssertionError, AttributeError)):
            check(broken, tiny)
            print(f"{check.__name__} did not notice {members}")
