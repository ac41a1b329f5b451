"""The tiny world as files, in the formats that users have: pictures, good answers, annotations.

    world.json                    which world this is; the folder is complete where it stands
    seeds.json, images/train/     good answers about pictures (seeds.py), of which a maker makes pairs
    everyday.txt                  captions of the world with habits, one a line: what people tend to say
    eval/pictures.jsonl, images/eval/    held-out pictures with what is in them
         objects.txt                     every object that there is, with its synonyms
         corpus.jsonl                    what is in everyday pictures: which objects are frequent and go together
    dev/ ...                      the same over other scenes, for whoever tunes

Image paths in every file are relative to the world's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.tinyworld import seeds, text
from minipovid.tinyworld.scenes import Scene, habit_scene, render, unbiased_scene

TRAIN_SCENES = 4800  # more than a run visits
SEEDS = {"dev": "dev-", "eval": "eval-b"}  # eval was drawn anew (b) when the shipped recipe had been settled on dev
HELD_OUT_SCENES = 200  # in each of eval and dev
EVERYDAY_SCENES = 2000  # that are told, and counted
VERSION = 2  # raise it when anything in the files changes: another version's folder is not used
NAME = f"tinyworld-{VERSION}"
SEEDS_FORMAT = "llava"  # of seeds.json, among pairs/formats
_MARK = {"world": "minipovid tinyworld", "version": VERSION}


def materialise(folder: Path) -> Path:
    """Write the world into `folder` and return it; nothing is done where it already stands. Takes some seconds.

    Raises MinipovidError where `folder` holds something else.
    """
    return once(folder, _stands, _build)


def once(folder: Path, stands: Callable[[Path], bool], build: Callable[[Path], object]) -> Path:
    """`folder`, filled by `build` unless it `stands` already. It appears by rename alone; of two builders one wins."""
    if stands(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        build(draft)
        draft.chmod(0o755)
        os.replace(draft, folder)
    except OSError:
        if not stands(folder):  # else another process was first
            raise
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


def _build(folder: Path) -> None:
    scenes = train_scenes()
    _draw(folder, scenes, "train")
    rows = [row for number, scene in enumerate(scenes) for row in seeds.about(scene, picture(scene), number)]
    (folder / "seeds.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    told = [text.describe(scene).text + "\n" for scene in everyday_scenes()]
    (folder / "everyday.txt").write_text("".join(told), encoding="utf-8")
    for split in ("eval", "dev"):
        _hold_out(folder, split)
    (folder / "world.json").write_text(json.dumps(_MARK) + "\n", encoding="utf-8")


def train_scenes() -> list[Scene]:
    """The scenes of the pairs: without habits, for it is where the companion is missing that habit can be unlearnt."""
    return [unbiased_scene(f"train-{number:04}") for number in range(TRAIN_SCENES)]


def held_out_scenes(split: str) -> list[Scene]:
    """The scenes of "eval" or "dev": no habits, and names that no other scene bears."""
    return [unbiased_scene(f"{SEEDS[split]}{number:04}") for number in range(HELD_OUT_SCENES)]


def everyday_scenes() -> list[Scene]:
    """Scenes of the world with habits, in which the base model grew up: here its habits can be counted."""
    return [habit_scene(f"census {number}") for number in range(EVERYDAY_SCENES)]


def picture(scene: Scene) -> str:
    """Where a scene's picture lies: images/eval/eval-0007.png."""
    return f"images/{scene.name.partition('-')[0]}/{scene.name}.png"


def _hold_out(folder: Path, split: str) -> None:
    scenes = held_out_scenes(split)
    _draw(folder, scenes, split)
    prompt = text.CAPTION_PROMPTS[0]
    shown = [{"image": picture(scene), "prompt": prompt, "objects": scene.shapes} for scene in scenes]
    _write_lines(folder / split / "pictures.jsonl", shown)
    _write_lines(folder / split / "corpus.jsonl", [{"objects": scene.shapes} for scene in everyday_scenes()])
    lines = [", ".join((name, *text.SYNONYMS.get(name, ()))) for name in text.OBJECTS]
    (folder / split / "objects.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw(folder: Path, scenes: Iterable[Scene], split: str) -> None:
    (folder / "images" / split).mkdir(parents=True)
    for scene in scenes:
        render(scene).save(folder / picture(scene), compress_level=1)


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
