"""How many layers go to a GPU: worked by hand, with cards that are not there; and none where llama.cpp has no GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest

from minipovid.inference.llama_cpp import offload
from minipovid.inference.llama_cpp.libraries import Card, devices
from minipovid.inference.llama_cpp.offload import ALL, GIB, LayerSizes, fitting

# 32 layers and a head share 3.3 GiB; keys and values of a token take 32 * 2 * 4096 * 2 bytes, of 2,048 tokens 1 GiB.
SIZES = LayerSizes(32, int(3.3 * GIB), 2 * 32 * 2 * 4096)


@pytest.mark.parametrize(
    ("free", "layers"), [(0.0, 0), (-1.0, 0), (0.13, 0), (0.14, 1), (2.1, 16), (4.2, 32), (4.4, ALL)]
)
def test_layers_by_hand(free: float, layers: int) -> None:
    """A layer takes 0.1 GiB of weights and 1/32 GiB of cache, 0.13125 together; 33 of them 4.33."""
    assert fitting(SIZES, 2048, free * GIB) == layers


def a_file(folder: Path, **keys: int) -> Path:
    path = folder / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        writer.add_uint32(f"llama.{key.replace('__', '.')}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_sizes_are_the_file_s(tmp_path: Path) -> None:
    """Grouped heads keep less: 2 of 4, 16 wide; 2 layers * 2 heads * (16 + 16) * 2 bytes."""
    path = a_file(tmp_path, block_count=2, embedding_length=64, attention__head_count=4, attention__head_count_kv=2)
    assert offload._sizes(path) == LayerSizes(2, path.stat().st_size, 2 * 2 * 32 * 2)


@pytest.fixture
def with_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [Card("RTX 4060", 8 * GIB), Card("RTX 3060", 12 * GIB)]
    library: Any = SimpleNamespace(llama_supports_gpu_offload=lambda: True)
    monkeypatch.setattr(offload, "libraries", lambda: (library, None))
    monkeypatch.setattr(offload, "devices", lambda: cards)


def test_what_a_card_gets_is_said_in_a_line(
    tmp_path: Path, with_cards: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_file(tmp_path, block_count=2, embedding_length=64, attention__head_count=4)
    assert offload.automatic(path, path, 2048) == ALL
    assert capsys.readouterr().err == (
        "m.gguf: all layers on RTX 4060 (8.0 GiB free) and RTX 3060 (12.0 GiB free); --n-gpu-layers sets it\n"
    )
    monkeypatch.setattr(offload, "_sizes", lambda path: LayerSizes(40, 25 * GIB, 0))
    assert offload.automatic(path, None, 2048) == 30  # 18.6 GiB by 25/41 a layer
    assert capsys.readouterr().err.startswith("m.gguf: 30 of 40 layers on RTX 4060")


def test_a_llama_without_gpus_gets_none_and_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if devices():
        pytest.skip("this llama.cpp has a GPU")
    assert offload.automatic(tmp_path / "absent.gguf", None, 2048) == 0
    assert not any(capsys.readouterr())
