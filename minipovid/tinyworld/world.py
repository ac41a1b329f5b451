"""The tiny world as files, in the formats that users have: pictures, pairs.jsonl, POPE files and a CHAIR list.

    world.json                                     which world this is; the folder is complete where it stands
    pairs.jsonl, images/train/                     preference pairs
    eval/pope_<rule>.jsonl, eval/chair.jsonl, eval/objects.txt, images/eval/
    dev/ ...                                       the same over other scenes, for whoever tunes

Image paths in every file are relative to the world's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from minipovid.errors import MinipovidError
from minipovid.tinyworld import pairs, questions, text
from minipovid.tinyworld.scenes import Scene, render, unbiased_scene
from minipovid.types import Pair

TRAIN_SCENES = 4800  # more than a run visits; each gives a caption pair, every other one a question pair
SEEDS = {"dev": "dev-", "eval": "eval-b"}  # eval was drawn anew (b) when the shipped recipe had been settled on dev
HELD_OUT_SCENES = 200  # in each of eval and dev
POPE_SCENES = 150  # of those: 600 questions under each rule
VERSION = 1  # raise it when anything in the files changes: another version's folder is not used
NAME = f"tinyworld-{VERSION}"
CAPTION_FAMILIES = ("object", "relation", "object", "attribute")  # in turn: habit invents objects above all
_MARK = {"world": "minipovid tinyworld", "version": VERSION}


def materialise(folder: Path) -> Path:
    """Write the world into `folder` and return it; nothing is done where it already stands. Takes some seconds.

    Raises MinipovidError where `folder` holds something else.
    """
    if _stands(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _build(draft)
        draft.chmod(0o755)
        _rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _stands(folder: Path) -> bool:
    """Whether the finished world is there. A folder appears by rename alone, so what else is there is not ours."""
    mark = folder / "world.json"
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == _MARK:
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MinipovidError(f"{folder} is not this version's tiny world; delete it or name another folder.")
    return False


def _rename(draft: Path, folder: Path) -> None:
    try:
        os.replace(draft, folder)
    except OSError:  # another process was first
        if not _stands(folder):
            raise


def _build(folder: Path) -> None:
    scenes = train_scenes()
    _draw(folder, scenes, "train")
    rows = [_row(pair) for number, scene in enumerate(scenes) for pair in _pairs(scene, number)]
    _write_lines(folder / "pairs.jsonl", rows)
    for split in ("eval", "dev"):
        _hold_out(folder, split)
    (folder / "world.json").write_text(json.dumps(_MARK) + "\n", encoding="utf-8")


def train_scenes() -> list[Scene]:
    """The scenes of the pairs: without habits, for it is where the companion is missing that habit can be unlearnt."""
    return [unbiased_scene(f"train-{number:04}") for number in range(TRAIN_SCENES)]


def held_out_scenes(split: str) -> list[Scene]:
    """The scenes of "eval" or "dev": no habits, and names that no other scene bears."""
    return [unbiased_scene(f"{SEEDS[split]}{number:04}") for number in range(HELD_OUT_SCENES)]


def picture(scene: Scene) -> str:
    """Where a scene's picture lies: images/eval/eval-0007.png."""
    return f"images/{scene.name.partition('-')[0]}/{scene.name}.png"


def _pairs(scene: Scene, number: int) -> Iterable[Pair]:
    """A caption pair of each family in turn; for every other scene a question, to be answered no and yes in turn."""
    yield pairs.caption_pair(scene, picture(scene), CAPTION_FAMILIES[number % len(CAPTION_FAMILIES)])
    if number % 2:
        yield pairs.question_pair(scene, picture(scene), present=number % 4 == 1)


def _row(pair: Pair) -> Mapping[str, object]:
    spans = [{"start": span.start, "end": span.end, "kind": span.kind} for span in pair.spans]
    return {
        "id": pair.id,
        "image": pair.image,
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "source": dict(pair.source),
        "spans": spans,
    }


def _hold_out(folder: Path, split: str) -> None:
    scenes = held_out_scenes(split)
    _draw(folder, scenes, split)
    for rule in questions.RULES:
        rows = questions.pope(scenes[:POPE_SCENES], rule, picture)
        _write_lines(folder / split / f"pope_{rule}.jsonl", rows)
    asked = [
        {"image": picture(scene), "prompt": text.CAPTION_PROMPTS[0], "objects": sorted(scene.shapes)}
        for scene in scenes
    ]
    _write_lines(folder / split / "chair.jsonl", asked)
    lines = [", ".join((name, *text.SYNONYMS.get(name, ()))) for name in text.OBJECTS]
    (folder / split / "objects.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw(folder: Path, scenes: Iterable[Scene], split: str) -> None:
    (folder / "images" / split).mkdir(parents=True)
    for scene in scenes:
        render(scene).save(folder / picture(scene), compress_level=1)


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
