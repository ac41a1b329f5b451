"""The tiny world: is what it says of its pictures true, and what it calls false false?

The oracle for every sentence is `claims` below: it reads the English back, knowing nothing of how it was written.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world_claims import RELATIONS, claims, holds

from minipovid.common.errors import MinipovidError
from minipovid.pairs import formats
from minipovid.pairs.pair import Seed
from minipovid.tinyworld import CHECKPOINT, OBJECTS, materialise, seeds, text, world
from minipovid.tinyworld.scenes import (
    COLOURS,
    COMPANION,
    PLACES,
    SHAPES,
    Scene,
    Thing,
    habit_scene,
    render,
    unbiased_scene,
)
from minipovid.tinyworld.world import once

SCENES = [unbiased_scene(f"test-{number}") for number in range(150)]


def digest(scene: Scene) -> str:
    return hashlib.sha256(render(scene).tobytes()).hexdigest()


def test_a_scene_and_its_picture_follow_from_the_name_alone() -> None:
    """The first pixels' sum and the things of one scene, written down once: they must never change."""
    scene = unbiased_scene("eval-0000")
    assert scene == unbiased_scene("eval-0000")
    assert sorted(scene.shapes) == ["circle", "ring", "triangle"]
    assert digest(scene) == digest(unbiased_scene("eval-0000"))
    assert digest(scene) != digest(unbiased_scene("eval-0001"))
    assert render(scene).size == (64, 64) and render(scene).mode == "RGB"


def test_scenes_are_well_formed() -> None:
    for scene in SCENES + [habit_scene(f"test-{number}") for number in range(150)]:
        assert 2 <= len(scene.things) <= 4
        assert len(set(scene.shapes)) == len({thing.place for thing in scene.things}) == len(scene.things)
        assert all(t.shape in SHAPES and t.colour in COLOURS and t.place in PLACES for t in scene.things)


def test_habits_are_there_and_absent() -> None:
    """With habits a shape nearly always has its companion: both of q + q of 1 + q, q = 0.9, is 0.95.

    Without, any of the 9 others is as likely to be among the 2.2 that are there on average (2, 3, 3 or 4 in a scene,
    seen from a shape: (2 * 1 + 6 * 2 + 4 * 3) / 12 = 2.17): 0.24.
    """

    def rate(scenes: list[Scene]) -> float:
        together = [COMPANION[shape] in scene.shapes for scene in scenes for shape in scene.shapes]
        return sum(together) / len(together)

    assert 0.92 < rate([habit_scene(f"rate-{number}") for number in range(600)]) < 0.97
    assert 0.2 < rate([unbiased_scene(f"rate-{number}") for number in range(600)]) < 0.28
    counts = Counter(shape for number in range(600) for shape in unbiased_scene(f"rate-{number}").shapes)
    assert min(counts.values()) > 0.75 * max(counts.values())


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_painted_where_the_scene_says(shape: str) -> None:
    """A white thing at the bottom right changes that ninth of the picture and little else."""
    for place, corner in (("bottom right", (slice(43, 64), slice(43, 64))), ("top left", (slice(0, 21), slice(0, 21)))):
        drawn = np.asarray(render(Scene("paint", (Thing(shape, "white", place),))), np.int16)
        other = "top left" if place == "bottom right" else "bottom right"
        moved = np.asarray(render(Scene("paint", (Thing(shape, "white", other),))), np.int16)
        brighter = (drawn - moved).sum(axis=2)[corner] > 150
        assert 12 < brighter.sum() < 200, place


def test_captions_are_true_and_tell_everything() -> None:
    for scene in SCENES:
        told = claims(text.describe(scene).text)
        assert all(holds(claim, scene) for claim in told)
        assert {claim[1] for claim in told if claim[1] in SHAPES} == set(scene.shapes)
        assert {shape for shape in OBJECTS if shape in text.describe(scene).text} == set(scene.shapes)


def test_a_caption_is_true_if_every_sentence_is() -> None:
    """Of its own scene each caption is; with another colour, place or relation, or of another scene, none is."""
    for scene, other in zip(SCENES, SCENES[1:], strict=False):
        caption = text.describe(scene)
        assert text.is_true(caption.text, scene) and not text.is_true(caption.text, other)
        thing = scene.things[0]
        for wrong in (
            caption.text.replace(thing.colour, "grey", 1),
            caption.text.replace(f"at the {thing.place}.", "at the edge.", 1),
            f"{caption.text} The {thing.shape} is above the {thing.shape}.",
            "",
        ):
            assert not text.is_true(wrong, scene)


def test_conversations_are_true_and_ask_about_both() -> None:
    for scene in SCENES:
        talk = text.conversation(scene)
        assert len({question for question, _ in talk}) == 5
        for question, answer in talk:
            shape = re.fullmatch(r"Is there an? (\w+) in the picture\?", question)
            assert shape and answer.startswith("Yes, ") == (shape[1] in scene.shapes)
            assert answer.endswith(f"{shape[1]}.")


def test_tours_are_true() -> None:
    for scene in SCENES:
        at = {thing.place: thing for thing in scene.things}
        for question, answer in text.tour(scene):
            thing = at.get(question.removeprefix("What is at the ").removesuffix("?"))
            assert (thing is None) == (answer == "Nothing.")
            assert thing is None or re.fullmatch(f"An? {thing.colour} {thing.shape}\\.", answer)
        assert len({question for question, _ in text.tour(scene)}) == 5


def test_seeds_are_true_and_ask_what_habit_gets_wrong() -> None:
    for number, scene in enumerate(SCENES):
        caption, *asked = read_seeds(list(seeds.about(scene, "x.png", number)))
        assert (caption.image, caption.answer) == ("x.png", text.describe(scene).text)
        assert caption.prompt in text.CAPTION_PROMPTS
        assert len(asked) == number % 2
        for seed in asked:
            shape = next(shape for shape in SHAPES if shape in seed.prompt)
            present = shape in scene.shapes
            assert present == (number % 4 == 1) and seed.answer == text.answer(shape, present)
            lonely = [there for there in scene.shapes if COMPANION[there] not in scene.shapes]
            assert not lonely or (shape if present else COMPANION[shape]) in lonely
    assert len({read_seeds(list(seeds.about(scene, "x.png", 0)))[0].prompt for scene in SCENES}) == 3


def read_seeds(rows: list[seeds.Row]) -> list[Seed]:
    """As the shelf's reader of LLaVA's format reads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "seeds.json")
        path.write_text(json.dumps(rows))
        found = list(formats.seeds(path))
    assert all(isinstance(each, Seed) for each in found)
    return [each for each in found if isinstance(each, Seed)]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_world_on_disk(drawn_world: Path) -> None:
    rows = json.loads((drawn_world / "seeds.json").read_text(encoding="utf-8"))
    assert len(rows) == len({row["id"] for row in rows}) == 7200
    assert set(rows[0]) == {"id", "image", "conversations"}
    openings = Counter(row["conversations"][1]["value"].split()[0] for row in rows)
    assert openings["Yes,"] == openings["No,"] == 1200
    named = {row["image"] for row in rows}
    everyday = (drawn_world / "everyday.txt").read_text().splitlines()
    for split in ("eval", "dev"):
        shown, listed = (
            read(drawn_world / split / "pictures.jsonl"),
            (drawn_world / split / "objects.txt").read_text().splitlines(),
        )
        assert len(shown) == 200 and {row["prompt"] for row in shown} == {"Describe the picture."}
        for row, scene in zip(shown, world.held_out_scenes(split), strict=True):
            assert (row["image"], tuple(row["objects"])) == (f"images/{split}/{scene.name}.png", scene.shapes)
        assert [line.split(", ")[0] for line in listed] == list(OBJECTS)
        corpus = read(drawn_world / split / "corpus.jsonl")
        assert len(corpus) == len(everyday) == 2000
        for row, caption in zip(corpus, everyday, strict=True):
            assert {claim[1] for claim in claims(caption)} - set(RELATIONS) == set(row["objects"])
        named |= {row["image"] for row in shown}
    assert named == {path.relative_to(drawn_world).as_posix() for path in drawn_world.rglob("*.png")}


def test_its_words_are_those_of_their_version(drawn_world: Path) -> None:
    """A world lies in users' caches: new words without a new version would never be seen there."""
    files = [path for path in sorted(drawn_world.rglob("*")) if path.suffix in {".json", ".jsonl", ".txt"}]
    files.remove(drawn_world / "world.json")
    assert len(files) == 8
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert (world.VERSION, digest[:16]) == (2, "df8053bdddd375b8"), "raise world.VERSION, and pin its digest here"


def test_splits_share_no_picture(drawn_world: Path) -> None:
    seen = [hashlib.sha256(path.read_bytes()).hexdigest() for path in drawn_world.rglob("*.png")]
    assert len(seen) == len(set(seen)) == 5200
    names = [scene.name for scene in (*world.train_scenes(), *world.held_out_scenes("eval"))]
    names += [scene.name for scene in world.held_out_scenes("dev")]
    assert len(set(names)) == 5200
    assert not [name for name in names if name.startswith("pretrain")]  # the base model's scenes


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn within the test is a small world, of a second: the first scenes of each kind."""
    for name, count in {"TRAIN_SCENES": 400, "HELD_OUT_SCENES": 20, "EVERYDAY_SCENES": 60}.items():
        monkeypatch.setattr(world, name, count)


@pytest.mark.usefixtures("small")
def test_materialise_is_the_same_every_time_and_does_nothing_twice(drawn_world: Path, tmp_path: Path) -> None:
    """A small world is drawn twice; its pictures and good answers are those of the whole world, which perhaps another
    process drew."""
    first, again = materialise(tmp_path / "first"), materialise(tmp_path / "again")
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert materialise(first) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert len(before) > 440
    for path in first.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(first)).read_bytes() == path.read_bytes(), path
        if path.suffix == ".png":
            assert (drawn_world / path.relative_to(first)).read_bytes() == path.read_bytes(), path
    rows, whole = (json.loads((folder / "seeds.json").read_text("utf-8")) for folder in (first, drawn_world))
    assert len(rows) == 600 and rows == whole[:600]
    assert {path.name for path in tmp_path.iterdir()} == {"first", "again"}


@pytest.mark.usefixtures("small")
def test_a_killed_materialise_leaves_no_half_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(folder: Path, split: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world, "_hold_out", die)
        with pytest.raises(KeyboardInterrupt):
            materialise(tmp_path / "world")
    assert not list(tmp_path.iterdir())
    (tmp_path / "world").mkdir()  # an empty folder is taken over
    assert (materialise(tmp_path / "world") / "world.json").is_file()


def test_who_is_second_takes_what_the_first_one_made(tmp_path: Path) -> None:
    def build(draft: Path) -> None:
        (draft / "mine").touch()
        (tmp_path / "it").mkdir()
        (tmp_path / "it" / "theirs").touch()

    assert once(tmp_path / "it", lambda folder: (folder / "theirs").is_file(), build) == tmp_path / "it"
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["it", "it/theirs"]
    with pytest.raises(OSError, match="not empty"):  # what stands there is no such thing
        once(tmp_path / "it", lambda folder: False, lambda draft: (draft / "mine").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MinipovidError, match="not this version's tiny world"):
        materialise(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_checkpoint_is_small_and_safe() -> None:
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.suffix for path in files} <= {".json", ".model", ".safetensors", ".md"}


def test_checkpoint_loads_as_llava_and_sees() -> None:
    """The placeholder's id, the token count and the world's own words; and the base tells three true shapes in four."""
    transformers = pytest.importorskip("transformers")
    from minipovid.tinyworld import pretrain

    model = transformers.LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="float32").eval()
    words = pretrain.Words((CHECKPOINT / "tokenizer.model").read_bytes())
    assert model.config.image_token_id == words.image
    assert model.get_input_embeddings().num_embeddings == words.size and words.size % 32 == 0
    figures = pretrain.examine(model, words, pictures=24)
    assert figures["recall"] > 0.75 and figures["chair_i"] < 0.25
    assert figures["adversarial"] > figures["stranger"]


PROBES = [
    "USER: <image>\nDescribe the picture. ASSISTANT:",
    "USER: <image>\nIs there a moon in the picture? ASSISTANT: Yes, there is a moon.</s>",
    "USER: a ASSISTANT: b</s>USER: c ASSISTANT: d</s>",
    "unforeseen zebras, 1234 of them!",
    "héllo wörld 日本語 🙂",
    "  two  spaces\tand\n\nlines  ",
    "purpletrianglediamondd CIRCLE Redd",
]


@pytest.mark.parametrize("probe", PROBES)
def test_tokenizer_json_says_what_sentencepiece_says(probe: str) -> None:
    """Text between special tokens goes through SentencePiece by itself, as llama.cpp tokenises it."""
    transformers = pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(CHECKPOINT / "tokenizer.model"))
    special = {"<image>": pieces.get_piece_size(), "<pad>": pieces.get_piece_size() + 1, "</s>": 2}
    expected = [1]
    for part in re.split("(<image>|<pad>|</s>)", probe):
        expected += [special[part]] if part in special else pieces.encode(part)
    assert tokenizer(probe).input_ids == expected


def test_training_rows_are_the_template_tokenised_whole() -> None:
    """Words.row builds rows in pieces; the family's template as one text must give the same ids."""
    transformers = pytest.importorskip("transformers")
    from minipovid.models.chat_template import VICUNA
    from minipovid.tinyworld import pretrain

    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    words = pretrain.Words((CHECKPOINT / "tokenizer.model").read_bytes())
    for scene in SCENES[:20]:
        caption = text.describe(scene).text
        ids, labels = words.row([("Describe the picture.", caption)])
        whole = tokenizer(VICUNA.prompt("Describe the picture.") + VICUNA.answer(caption)).input_ids
        at = whole.index(words.image)
        assert ids == whole[:at] + [words.image] * 64 + whole[at + 1 :]
        assert [i for i in labels if i >= 0] == tokenizer(caption + "</s>", add_special_tokens=False).input_ids


def test_a_step_learns_and_the_saved_folder_is_the_model(tmp_path: Path) -> None:
    """One step moves tower, projector and language model; what is saved is that model, rounded to float16."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from minipovid.tinyworld import pretrain

    words = pretrain.Words((CHECKPOINT / "tokenizer.model").read_bytes())
    model = pretrain.new_model(words)
    pretrain.batch_loss(model, words, "test").backward()
    moved = {key.split(".")[1] for key, weight in model.named_parameters() if weight.grad is not None}
    assert {"vision_tower", "multi_modal_projector", "language_model"} <= moved
    pretrain.save(model, words, tmp_path / "base")
    saved = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "base", dtype="float32")
    for (key, mine), theirs in zip(model.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(mine.half().float(), theirs), key
    assert {path.name for path in (tmp_path / "base").iterdir()} <= {p.name for p in CHECKPOINT.iterdir()}
    assert (tmp_path / "base" / "tokenizer.json").read_bytes() == (CHECKPOINT / "tokenizer.json").read_bytes()


def test_patch_share_averages_each_place() -> None:
    """8 patches across 3 places: 3, 2 and 3 (middles at 4, 12, 20 | 28, 36 | 44, 52, 60 pixels; borders 21.3, 42.7)."""
    from minipovid.tinyworld import pretrain

    counts = (pretrain.PATCH_SHARE > 0).sum(0).tolist()
    assert counts == [9, 6, 9, 6, 4, 6, 9, 6, 9]
    assert pretrain.PATCH_SHARE.sum(0).tolist() == pytest.approx([1.0] * 9)
