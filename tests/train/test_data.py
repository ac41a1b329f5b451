"""Rows that cannot be trained on, each with its exact sentence; and that nothing is ever cut."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llava
import torch
from PIL import Image
from training_cases import STAGES, a_recipe, lines
from transformers import AutoTokenizer

from minipovid.common.errors import MinipovidError
from minipovid.images import views as shelf_of_views
from minipovid.images.transform import ImageTransform
from minipovid.models import chat_template
from minipovid.models.encoder import Encoder
from minipovid.pairs.pair import Pair
from minipovid.pairs.source import load_pairs
from minipovid.recipe import read as recipes
from minipovid.recipe.schema import DataSection, ModelSection, Recipe, StageSection
from minipovid.train import losses, plan
from minipovid.train.data import PairDataset, collate, visiting_order
from minipovid.train.loop import train

GOOD = {"id": "1", "image": "cat.png", "prompt": "What is this?", "chosen": "A cat.", "rejected": "A dog."}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tiny_llava.build(tmp_path_factory.mktemp("model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Encoder(chat_template.of(folder, tokenizer), tokenizer, tiny_llava.IMAGE, 16, max_length=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder with one good picture."""
    root = tmp_path / "photos"
    root.mkdir()
    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(root / "cat.png")  # a crop looks otherwise
    return root


def section(folder: Path, rows: list[Any], **changes: Any) -> DataSection:
    path = folder.parent / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return DataSection(path=str(path), images=str(folder), max_length=64, **changes)


def truncated(root: Path) -> None:
    whole = (root / "cat.png").read_bytes()
    (root / "half.png").write_bytes(whole[: len(whole) - 40])


def wide(root: Path) -> None:
    Image.new("1", (100_000, 1)).save(root / "wide.png")


def not_an_image(root: Path) -> None:
    (root / "notes.png").write_text("buy milk")


def nothing(root: Path) -> None:
    pass


BAD_ROWS: list[tuple[dict[str, Any], Callable[[Path], None], str]] = [
    ({"image": "dog.png"}, nothing, "There is no picture {root}/dog.png; check the name and the image folder"),
    ({"image": "half.png"}, truncated, "The picture {root}/half.png is cut short or damaged"),
    ({"image": "notes.png"}, not_an_image, "{root}/notes.png is not a picture that minipovid can read"),
    ({"image": "../secret.png"}, nothing, "The picture '../secret.png' lies outside the image folder {root}"),
    ({"image": "/etc/passwd"}, nothing, "The picture '/etc/passwd' lies outside the image folder {root}"),
    (
        {"image": "wide.png"},
        wide,
        "The picture {root}/wide.png is 100000 x 1 pixels, and a side may have at most 20000",
    ),
    ({"chosen": " "}, nothing, "the chosen answer is empty."),
    ({"rejected": "A cat."}, nothing, "the chosen and the rejected answer are equal, so there is nothing to prefer."),
    (
        {"rejected": "no " * 60},
        nothing,
        "prompt (29), picture (16) and rejected answer (182) take 227 tokens, more than data.max_length 64; "
        "shorten the row or raise data.max_length.",
    ),
    (
        {"chosen": "A <image> of a cat."},
        nothing,
        "the chosen answer holds the placeholder <image>; leave it out.",
    ),
    ({"chosen": "A </s> cat."}, nothing, "the chosen answer holds the sign that ends a turn, </s>; leave it out."),
    (
        {"prompt": "Use <s> for strike-through?"},
        nothing,
        "the question holds <s>, a special token of this model; write it otherwise, or leave it out.",
    ),
    ({"rejected": "<pad>"}, nothing, "the rejected answer holds <pad>, a special token of this model; write it other"),
    ({"rejected": "</s>"}, nothing, "the rejected answer is empty but for the sign that ends it; write one."),
    ({"rejected": "A cat.</s>"}, nothing, "the answers are the same but for the sign that ends them; make them dif"),
]


@pytest.mark.parametrize(("change", "prepare", "sentence"), BAD_ROWS, ids=[str(row[0])[:40] for row in BAD_ROWS])
def test_a_bad_row_stops_with_its_sentence(
    folder: Path, encoder: Encoder, change: dict[str, Any], prepare: Callable[[Path], None], sentence: str
) -> None:
    prepare(folder)
    with pytest.raises(MinipovidError) as error:
        load_pairs(section(folder, [GOOD, {**GOOD, "id": "2", **change}]), encoder)
    first, last = str(error.value).split("\n")
    assert first.startswith(f"pairs.jsonl: row 2 (id 2): {sentence.format(root=folder)}")
    assert last == "Mend or remove these rows, or set data.on_bad_row: skip."


def test_skip_keeps_the_good_and_names_each_bad(folder: Path, encoder: Encoder) -> None:
    for _, prepare, _ in BAD_ROWS:
        prepare(folder)
    rows = [GOOD, *({**GOOD, "id": f"bad{i}", **change} for i, (change, _, _) in enumerate(BAD_ROWS)), "{half"]
    pairs, bad = load_pairs(section(folder, rows, on_bad_row="skip"), encoder)
    assert [pair.id for pair in pairs] == ["1"]
    assert len(bad) == len(BAD_ROWS) + 1
    assert [row.where for row in bad[:2]] == ["row 2 (id bad0)", "row 3 (id bad1)"]


def test_a_file_with_no_usable_row_is_refused(folder: Path, encoder: Encoder) -> None:
    with pytest.raises(MinipovidError, match="holds no usable pair among 1 rows"):
        load_pairs(section(folder, [{**GOOD, "chosen": ""}], on_bad_row="skip"), encoder)


@pytest.mark.parametrize("name", ["cat.png", "photos/cat.png"])
def test_pictures_may_be_named_with_their_folder(folder: Path, encoder: Encoder, name: str) -> None:
    pairs, _ = load_pairs(section(folder, [{**GOOD, "image": name}]), encoder)
    assert pairs[0].image == "cat.png"


@pytest.mark.parametrize("end", ["</s>", " </s>", "</s>\n"])
def test_an_end_that_is_written_out_is_trained_once(encoder: Encoder, end: str) -> None:
    plain, written = ({"chosen": f"A cat.{tail}", "rejected": f"A dog.{tail}"} for tail in ("", end))
    assert encoder("What?", written) == encoder("What?", plain)
    for ids in encoder("What?", written).answers.values():
        assert [index for index in ids if index in encoder.tokenizer.all_special_ids] == [
            encoder.tokenizer.eos_token_id
        ]


def test_example_is_what_the_tokenizer_says_of_the_whole_text(encoder: Encoder) -> None:
    """One placeholder becomes 16 image tokens; the rest is the tokenisation of prompt and answer as one text."""
    pair = Pair(**GOOD)
    example = encoder(pair.prompt, pair.texts())
    for kind in pair.texts():
        text = f"USER: <image>\nWhat is this? ASSISTANT: {getattr(pair, kind)}</s>"
        whole = encoder.tokenizer(text).input_ids
        at = whole.index(tiny_llava.IMAGE)
        assert example.prompt + example.answers[kind] == whole[:at] + [tiny_llava.IMAGE] * 16 + whole[at + 1 :]
        assert example.answers[kind][-1] == 2  # </s>
    assert example.prompt[0] == 1  # <s>


def test_max_length_is_exact(encoder: Encoder) -> None:
    """A row of exactly max_length tokens passes; with one token less allowed it is refused, never cut."""
    pair = Pair(**GOOD)
    example = encoder(pair.prompt, pair.texts())
    longest = len(example.prompt) + max(len(ids) for ids in example.answers.values())
    exact = Encoder(encoder.chat, encoder.tokenizer, encoder.image_token_id, 16, longest)
    assert exact(pair.prompt, pair.texts()) == example
    with pytest.raises(MinipovidError, match="shorten the row"):
        Encoder(encoder.chat, encoder.tokenizer, encoder.image_token_id, 16, longest - 1)(pair.prompt, pair.texts())


def a_dataset(folder: Path, encoder: Encoder, refresh: str = "never") -> PairDataset:
    recipe = Recipe(
        name="x",
        model=ModelSection(path="x"),
        data=DataSection(path="x"),
        stages=[StageSection(loss={"name": "dpo"})],
        noise={"refresh": refresh},  # type: ignore[arg-type]
    )
    transform = ImageTransform(28, tiny_llava.MEAN, tiny_llava.STD)
    pairs = [Pair(**GOOD), replace(Pair(**GOOD), id="2", chosen="A cat that sleeps.")]
    dataset = PairDataset(pairs, folder, encoder, transform, recipe)
    dataset.kinds = ("clean", "noised", "cropped")
    return dataset


def test_batch_pads_and_cuts_nothing(folder: Path, encoder: Encoder) -> None:
    dataset = a_dataset(folder, encoder)
    batch = collate([dataset[0, 0], dataset[0, 1]])
    for kind in batch.answers:
        for row in range(2):
            ids = batch.answers[kind].ids[row][batch.answers[kind].mask[row]].tolist()
            assert ids == dataset[0, row][0].answers[kind]
    shapes = {kind: tuple(pictures.pixels.shape) for kind, pictures in batch.images.items()}
    both_show_it = {"clean": (1, 3, 28, 28)}  # noise and crops are each pair's own
    assert shapes == both_show_it | dict.fromkeys(("noised", "cropped"), (2, 3, 28, 28))
    for kind, (pixels, which) in batch.images.items():
        for row in range(2):
            assert np.array_equal(pixels[which[row]], dataset[0, row][1][kind])


def test_a_key_changes_with_what_a_view_shows_and_says(folder: Path, encoder: Encoder) -> None:
    """One letter of the rejected answer: the chosen one's keys stay. Another epoch, fresh noise: the clean one's."""
    dataset, fresh = a_dataset(folder, encoder), a_dataset(folder, encoder, "epoch")
    before = collate([dataset[0, 0]]).keys
    assert len({key for (key,) in before.values()}) == 6
    dataset.pairs[0] = replace(dataset.pairs[0], rejected=dataset.pairs[0].rejected + "!")
    after = collate([dataset[0, 0]]).keys
    assert {view for view in before if before[view] != after[view]} == {
        ("rejected", kind) for kind in ("clean", "noised", "cropped")
    }
    later = collate([fresh[1, 0]]).keys
    assert {image for answer, image in before if before[answer, image] != later[answer, image]} == {"noised", "cropped"}


def test_a_subset_is_what_a_smaller_batch_would_be(folder: Path, encoder: Encoder) -> None:
    dataset = a_dataset(folder, encoder)
    some, alone = collate([dataset[0, 0], dataset[0, 1]]).subset([1]), collate([dataset[0, 1]])
    assert some.keys == alone.keys and some.prompt.lengths == alone.prompt.lengths
    for ours, theirs in zip(some.answers.values(), alone.answers.values(), strict=True):
        assert torch.equal(ours.ids.flatten()[ours.real], theirs.ids.flatten()[theirs.real])
    for kind, (pixels, which) in some.images.items():
        assert torch.equal(pixels[which], alone.images[kind].pixels)


def test_places_are_found_before_the_step(folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a batch finds where its tokens stand: the step takes that along and works nothing out."""
    dataset, both = a_dataset(folder, encoder), ("chosen", "rejected")
    items = [dataset[0, 0], dataset[0, 1]]
    late = collate(items).forest(both)
    batch = collate(items, together=[both]).to(torch.device("cpu"))
    monkeypatch.setattr("minipovid.train.batch.Forest", None)
    early = batch.forest(both)
    for name in ("ids", "positions", "order", "read"):
        assert torch.equal(getattr(early, name), getattr(late, name))
    assert torch.equal(early.mask(torch.float32), late.mask(torch.float32)) and early.trees == late.trees


def test_pixels_are_rounded_as_the_tower_would(folder: Path, encoder: Encoder) -> None:
    """In 16 bits they take half; what names a view's scores is still all that there was."""
    items = [a_dataset(folder, encoder)[0, row] for row in range(2)]
    wide, narrow = collate(items), collate(items, dtype=torch.bfloat16)
    assert narrow.keys == wide.keys
    for kind, (pixels, which) in wide.images.items():
        assert torch.equal(narrow.images[kind].pixels, pixels.to(torch.bfloat16))
        assert torch.equal(narrow.images[kind].which, which)


def test_an_error_is_handed_over_as_a_value(folder: Path, encoder: Encoder) -> None:
    """A data loader's worker would wrap a raised one in its traceback."""
    dataset = a_dataset(folder, encoder)
    dataset.pairs[1] = replace(dataset.pairs[1], image="gone.png")
    found = collate([dataset[0, 0], dataset[0, 1]])
    assert isinstance(found, MinipovidError)
    assert str(found).startswith("There is no picture")


def test_views_depend_on_pair_and_epoch_alone(folder: Path, encoder: Encoder) -> None:
    never, epoch = a_dataset(folder, encoder), a_dataset(folder, encoder, "epoch")

    def views(dataset: PairDataset, at: int, row: int) -> dict[str, np.ndarray]:
        return dataset[at, row][1]  # type: ignore[return-value]

    for kind in ("clean", "noised", "cropped"):
        assert np.array_equal(views(never, 0, 0)[kind], views(never, 0, 0)[kind])
    assert np.array_equal(views(never, 0, 0)["noised"], views(never, 1, 0)["noised"])
    assert not np.array_equal(views(epoch, 0, 0)["noised"], views(epoch, 1, 0)["noised"])
    assert not np.array_equal(views(never, 0, 0)["noised"], views(never, 0, 1)["noised"])


def test_visiting_order() -> None:
    order = list(visiting_order(5, range(2, 5), seed=1))
    assert [epoch for epoch, _ in order] == [2] * 5 + [3] * 5 + [4] * 5
    epochs = [[row for at, row in order if at == epoch] for epoch in range(2, 5)]
    assert all(sorted(rows) == list(range(5)) for rows in epochs)
    assert epochs[0] != epochs[1]
    assert order == list(visiting_order(5, range(2, 5), seed=1))
    assert order != list(visiting_order(5, range(2, 5), seed=2))


# --- a view is a file ---


BRANDNEW = '''
"""Every picture a little darker than the last epoch's, from a shade that the pair draws."""
from dataclasses import dataclass
from functools import partial
from PIL import ImageEnhance
from minipovid.images.views import Spoiled

@dataclass(frozen=True)
class Settings:
    shade: float = 0.5
    fresh: bool = True
    cache_gib: float = 0.25  # nothing is kept; `plan` is to count it

def is_fresh_each_epoch(settings):
    return settings.fresh

def opened(settings, transform, seed):
    return Spoiled("brandnew", partial(dark, settings), transform, seed, settings.fresh)

def dark(settings, image, rng):
    return ImageEnhance.Brightness(image).enhance(settings.shade * rng.uniform(0.5, 1))
'''
GLOOMY = '''
"""The chosen answer under the picture, against itself under the new view."""
from dataclasses import dataclass
from minipovid.train import losses
from minipovid.train.losses import Judged, View

@dataclass(frozen=True)
class Loss:
    image: str = "brandnew"
    answer: str = "chosen"
    views = property(lambda self: [View("chosen", "clean"), View(self.answer, self.image)])

    def __call__(self, policy, reference):
        clean, dark = (losses.log_ratio(policy[view.key], reference[view.key]) for view in self.views)
        return Judged(losses.prefer(clean, dark, 0.1))
'''


@pytest.fixture
def shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a new view and, to look at it, a new loss: two files, and no edit anywhere."""
    for package, name, body in ((shelf_of_views, "brandnew", BRANDNEW), (losses, "gloomy", GLOOMY)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(body)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


def gloomy(world: Path, path: Path, **changes: Any) -> Recipe:
    usual = {"stages": [{"loss": {"name": "gloomy"}, "epochs": 3}], "train__max_steps": 2}
    return a_recipe(world, path, **{**usual, "train__logging_steps": 1, "train__warmup_ratio": 0.0, **changes})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_new_view_is_one_new_file(world: Path, tmp_path: Path, shelves: None, workers: int) -> None:
    changes = {"views": {"brandnew": {"shade": 0.25}}, "train__dataloader_num_workers": workers}
    recipe = gloomy(world, tmp_path / "r.yaml", **changes)
    assert pickle.dumps(shelf_of_views.open_view("brandnew", recipe, ImageTransform(8, (0,), (1,))))
    run = train(recipe, tmp_path / "run", progress=False)
    first, second = (line for line in lines(run) if "step" in line)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5) and first["grad_norm"] > 1e-4
    assert abs(second["loss"] - first["loss"]) > 1e-5  # it learned from the difference
    assert recipes.read(run / "recipe.yaml").views.others == {"brandnew": {"shade": 0.25}}
    train(gloomy(world, tmp_path / "r.yaml", **changes), run, progress=False)  # found finished, the recipe the same
    changes["views"] = {"brandnew": {"shade": 0.25, "cache_gib": 1.0}}
    train(gloomy(world, tmp_path / "r.yaml", **changes), run, progress=False)
    with pytest.raises(MinipovidError, match="views.brandnew.shade is 0.25 there and 0.5 here"):
        train(
            gloomy(world, tmp_path / "r.yaml", **{**changes, "views": {"brandnew": {"shade": 0.5}}}),
            run,
            progress=False,
        )


def test_plan_counts_a_new_view(world: Path, tmp_path: Path, shelves: None) -> None:
    """A pass of its own in memory; its disk; the reference anew in each of three epochs, or once."""
    fresh = gloomy(world, tmp_path / "r.yaml")
    lasting = gloomy(world, tmp_path / "r.yaml", views={"brandnew": {"fresh": False}})
    looks = list(losses.of_stages(fresh)[0].views)
    assert list(plan._reference(fresh, looks, 3)) == [
        (1, [looks[0]._replace(grad=False)]),
        (3, [looks[1]._replace(grad=False)]),
    ]
    assert [times for times, _ in plan._reference(lasting, looks, 3)] == [1]
    clean = gloomy(world, tmp_path / "r.yaml", stages=[{"loss": {"name": "gloomy", "image": "clean"}, "epochs": 3}])
    with_view, without = (plan.predict(each, 24) for each in (fresh, clean))
    assert with_view.disk["brandnew pictures, at most"] == 0.25 and "brandnew pictures, at most" not in without.disk
    assert with_view.peak_gib > without.peak_gib


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"stages": [STAGES[0], {"loss": {"name": "gloomy", "image": "nosied"}}]},
            "stages.1.loss: There is no 'nosied' among the views. Did you mean 'noised'? Known: brandnew, cropped, ",
        ),
        (
            {"stages": [{"loss": {"name": "gloomy", "answer": "revised"}}]},
            "stages.0.loss: pairs have no answer 'revised'; they have chosen and rejected.",
        ),
        ({"views": {"brandnew": {"shades": 1}}}, "views.brandnew: shades is not a key of a recipe; did you mean shade"),
        ({"views": {"brandnew": {"shade": "x"}}}, "views.brandnew: shade is 'x', but it must be a number."),
        ({"views": {"brandnwe": {}}}, "views.brandnwe: There is no 'brandnwe' among the views. Did you mean 'brandnew"),
    ],
)
def test_a_view_that_is_none_is_refused_before_anything_is_loaded(
    world: Path, tmp_path: Path, shelves: None, changes: dict[str, Any], sentence: str
) -> None:
    recipe = gloomy(world, tmp_path / "r.yaml", **changes)
    for act in (lambda: train(recipe, tmp_path / "run", progress=False), lambda: plan.predict(recipe)):
        with pytest.raises(MinipovidError) as caught:
            act()
        assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_begun_with_noise_goes_on_with_views_noised(world: Path, tmp_path: Path) -> None:
    """The resolved recipe is the same; another step is another run."""
    changes = {"train__max_steps": 1, "stages": STAGES[1:]}
    run = train(a_recipe(world, tmp_path / "r.yaml", noise={"step": 300}, **changes), tmp_path / "run", progress=False)
    before = (run / "recipe.yaml").read_bytes()
    train(a_recipe(world, tmp_path / "r.yaml", views={"noised": {"step": 300}}, **changes), run, progress=False)
    assert (run / "recipe.yaml").read_bytes() == before
    with pytest.raises(MinipovidError, match=r"\(noise.step is 300 there and 301 here\)"):
        train(a_recipe(world, tmp_path / "r.yaml", views={"noised": {"step": 301}}, **changes), run, progress=False)
