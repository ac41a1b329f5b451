"""Real photographs in a POVID-format JSON: any size and aspect, EXIF rotation, grayscale, alpha; train, export, ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import skimage
import yaml
from click.testing import CliRunner
from PIL import Image

from minipovid.cli import main
from minipovid.images import load as images

SAMPLES = Path(skimage.__file__).parent / "data"
# name, size, mode as it lies in scikit-image
PHOTOS = [
    ("astronaut.png", (512, 512), "RGB"),
    ("chelsea.png", (451, 300), "RGB"),
    ("coffee.png", (600, 400), "RGB"),
    ("rocket.jpg", (640, 427), "RGB"),
    ("hubble_deep_field.jpg", (1000, 872), "RGB"),
    ("camera.png", (512, 512), "L"),
    ("coins.png", (384, 303), "L"),
    ("logo.png", (500, 500), "RGBA"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs, one more turned by its EXIF tag, and povid.json beside it."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "photos").mkdir()
    for name, size, mode in PHOTOS:
        with Image.open(SAMPLES / name) as image:
            assert (image.size, image.mode) == (size, mode)
            image.save(folder / "photos" / name)
    lying = Image.open(SAMPLES / "rocket.jpg").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned clockwise
    lying.save(folder / "photos" / "turned.jpg", exif=exif, quality=95)
    names = [name for name, *_ in PHOTOS] + ["turned.jpg"]
    rows = [row(number, name) for number, name in enumerate(names)]
    (folder / "povid.json").write_text(json.dumps(rows))
    return folder


def row(number: int, name: str) -> dict[str, object]:
    """As in POVID's file; every other row already names the folder, as its README does."""

    def talk(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": "<image>\nDescribe the picture."}, {"from": "gpt", "value": answer}]

    image = f"photos/{name}" if number % 2 else name
    chosen, rejected = "There is a red circle at the top.", "There is a red circle at the top. There is a blue star."
    return {
        "id": f"{number:012}",
        "image": image,
        "conversations": talk(chosen),
        "rejected_conversations": talk(rejected),
    }


def test_the_turned_photograph_stands_upright(photos: Path) -> None:
    upright, turned = (images.load(photos / "photos" / name) for name in ("rocket.jpg", "turned.jpg"))
    assert upright.size == turned.size == (640, 427)
    thumbs = [image.resize((32, 32)).tobytes() for image in (upright, turned)]
    assert max(abs(a - b) for a, b in zip(*thumbs, strict=True)) < 24


def test_train_export_ask(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {
        "name": "photos",
        "model": {"path": "tinyworld"},
        "lora": {"r": 4},
        "data": {"path": str(photos / "povid.json"), "images": str(photos / "photos"), "format": "povid"},
        "stages": [{"loss": {"name": "povid"}}],
        "train": {"learning_rate": 1e-3, "per_device_train_batch_size": 3, "logging_steps": 1},
        "export": {"quants": ["q8_0"]},
    }
    Path("photos.yaml").write_text(yaml.safe_dump(recipe))
    for arguments in (["train", "photos.yaml"], ["export", "runs/photos"]):
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    steps = [json.loads(line) for line in Path("runs/photos/log.jsonl").read_text().splitlines()]
    assert steps[0] == {"event": "data", "pairs": 9, "bad_rows": 0, "bad": []}
    assert len(steps) == 1 + 3
    for name in ("turned.jpg", "logo.png", "camera.png"):
        question = ["ask", "runs/photos", str(photos / "photos" / name), "Describe the picture."]
        answer = CliRunner().invoke(main, question, catch_exceptions=False)
        assert answer.exit_code == 0
        assert answer.stdout.strip()
