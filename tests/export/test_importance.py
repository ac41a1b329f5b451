"""Mean squares by hand, the file and its key, and the same figures from transformers' own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_llava
from PIL import Image

from minipovid.common.errors import MinipovidError
from minipovid.export import importance
from minipovid.export.importance import Importance, Observe


class Fake:
    """A model of two matrices; each answer makes it see as many rows as the answer has letters."""

    def __init__(self, observe: Observe) -> None:
        self.observe = observe

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def logps(self, picture: Path, prompt: str, answer: str) -> list[float]:
        rows = np.array([[ord(letter) - ord("a"), 1.0] for letter in answer], np.float32)
        self.observe("blk.0.ffn_up.weight", rows)
        self.observe("blk.0.ffn_down.weight", 2 * rows[-1:])
        return []


def examples(folder: Path, answers: str = "cab") -> list[importance.CalibrationExample]:
    picture = folder / "a.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    return [(picture, "What?", answers), (picture, "Where?", "d")]


def test_means_by_hand(tmp_path: Path) -> None:
    """ "cab" and "d" are rows (2, 1), (0, 1), (1, 1) and (3, 1): mean squares (4 + 0 + 1 + 9) / 4 and 1. The other
    matrix saw 2 (1, 1) and 2 (3, 1): (4 + 36) / 2 and 4."""
    means = importance.gather(Fake, examples(tmp_path)).means()  # type: ignore[arg-type]
    assert means.keys() == {"blk.0.ffn_up.weight", "blk.0.ffn_down.weight"}
    assert means["blk.0.ffn_up.weight"].tolist() == [3.5, 1.0]
    assert means["blk.0.ffn_down.weight"].tolist() == [20.0, 4.0]
    assert means["blk.0.ffn_up.weight"].dtype == np.float32


def test_no_examples(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="needs at least one pair with its picture; the run has none"):
        importance.gather(Fake, [])  # type: ignore[arg-type]


def test_the_file_is_kept_for_the_same_inputs_alone(tmp_path: Path) -> None:
    rows = examples(tmp_path)
    found = importance.gather(Fake, rows)  # type: ignore[arg-type]
    path, stamp = tmp_path / "imatrix.gguf", importance.key("model", rows)
    assert importance.load(path, stamp) is None
    importance.save(path, found, stamp)
    again = importance.load(path, stamp)
    assert again is not None and again.keys() == found.means().keys()
    assert all(np.allclose(again[name], mean, rtol=1e-6) for name, mean in found.means().items())

    others = [importance.key("another model", rows), importance.key("model", examples(tmp_path, "abc"))]
    Image.new("RGB", (4, 4), "blue").save(rows[0][0])
    others.append(importance.key("model", rows))
    assert len({stamp, *others}) == 4
    assert all(importance.load(path, other) is None for other in others)


def test_it_is_llama_cpp_s_own_format(tmp_path: Path) -> None:
    """Sums and counts, a pair of tensors for each weight; llama-quantize divides one by the other."""
    path = tmp_path / "imatrix.gguf"
    importance.save(path, importance.gather(Fake, examples(tmp_path)), "stamp")  # type: ignore[arg-type]
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data.tolist() for tensor in reader.tensors}
    assert tensors["blk.0.ffn_up.weight.in_sum2"] == [[14.0, 4.0]]
    assert tensors["blk.0.ffn_up.weight.counts"] == [[4.0]]
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.chunk_size").contents() == 4
    assert len(reader.get_field("imatrix.datasets").contents()) == 1


def test_a_long_sum_keeps_its_digits() -> None:
    """A million rows of 0.1 in float32 alone would lose the third digit: the sums are float64."""
    found = Importance()
    for _ in range(1000):
        found("w", np.full((1000, 1), 0.1, np.float32))
    assert found.means()["w"][0] == pytest.approx(0.01, rel=1e-6)


# --- through llama.cpp ---


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("models") / "toy-7b")


def picture(folder: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = folder / f"{seed}.png"
    Image.fromarray(pixels).resize((28, 28), Image.Resampling.NEAREST).save(path)
    return path


def squares_in_transformers(base: Path, ids: list[int], pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The squared inputs [rows, columns] of every linear layer of the language model, by module name."""
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    found: dict[str, np.ndarray] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.update({name: np.square(inputs[0][0].detach().double().numpy())})

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ("language_model" in name or name == "lm_head"):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), pixel_values=torch.from_numpy(pixels)[None])
    return found


def test_the_figures_are_those_of_transformers(base: Path, tmp_path: Path) -> None:
    """One example through both: the same mean square for each column, picture rows included. In the last layer
    llama.cpp computes what follows attention for the rows that predict the answer alone."""
    from transformers import AutoConfig

    from minipovid.export import export_base
    from minipovid.inference.llama_cpp import Runtime
    from minipovid.models.families import llava

    text, vision = export_base(str(base), tmp_path, ["f32"])
    seen: dict[str, Any] = {}
    example = (picture(tmp_path, 1), "Is there a red circle?", "A small dog is left of the table.")

    def opened(observe: Observe) -> Runtime:
        runtime = Runtime(text, vision, n_ctx=256, kv_f32=True, observe=observe)
        prompt, answer = runtime.prompt_ids(example[1]), runtime.answer_tokens(*example[1:])
        at = prompt.index(-1)
        seen["ids"] = [*prompt[:at], *[tiny_llava.IMAGE] * 16, *prompt[at + 1 :], *answer[:-1]]
        seen["pixels"], seen["predicting"] = runtime.transform(Image.open(example[0])), len(answer)
        return runtime

    found = importance.gather(opened, [example])
    config = AutoConfig.from_pretrained(base)
    expected = squares_in_transformers(base, seen["ids"], seen["pixels"])
    assert len(expected) == len(found.counts) == 2 * 7 + 1
    means = found.means()
    for module, squares in expected.items():
        place = llava.place(llava.canonical(f"{module}.weight"), config)
        assert place is not None
        is_late = place.name.startswith(("output", "blk.1.ffn"))
        rows = squares[-seen["predicting"] :] if is_late else squares
        assert found.counts[place.name] == len(rows), place.name
        np.testing.assert_allclose(means[place.name], rows.mean(0), rtol=0.02, atol=1e-4, err_msg=place.name)
    assert np.array_equal(means["blk.0.attn_q.weight"], means["blk.0.attn_v.weight"])


def test_it_spends_the_bits_where_the_run_s_pictures_need_them(tmp_path: Path) -> None:
    """A model with loud and quiet columns, as real ones have. What counts, sum_j mean(x_j^2) * error_j^2, falls for
    examples that were gathered on, and for others."""
    from safetensors.numpy import load_file, save_file

    from minipovid.export import export_base, quants
    from minipovid.inference.llama_cpp import Runtime

    base = tiny_llava.build(tmp_path / "wide-2b", hidden=256, ffn=512, heads=8, kv_heads=4)
    tensors, rng = load_file(base / "model.safetensors"), np.random.default_rng(0)
    for name, value in tensors.items():
        if "language_model" in name and "norm" in name:
            tensors[name] = (value * np.exp(rng.normal(0, 1.5, value.shape))).astype(np.float32)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    text, vision = export_base(str(base), tmp_path / "gguf", ["f16"])

    def gathered(seeds: range) -> dict[str, np.ndarray]:
        rows = [(picture(tmp_path, seed), "What is this?", "A red circle is left of the dog.") for seed in seeds]
        return importance.gather(lambda observe: Runtime(text, vision, n_ctx=256, observe=observe), rows).means()

    def weights(path: Path) -> dict[str, np.ndarray]:
        return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}

    ours, others = gathered(range(3)), gathered(range(3, 6))
    exact = weights(text)
    for quant in ("q4_k_m", "q3_k_m"):
        for name, imatrix in (("plain", None), ("weighted", ours)):
            quants.by_llama_cpp(text, tmp_path / f"{name}.gguf", quant, imatrix)
        for energy in (ours, others):
            plain, weighted = (
                sum(float((np.square(got[each] - exact[each]) * energy[each]).sum()) for each in energy)
                for got in (weights(tmp_path / "plain.gguf"), weights(tmp_path / "weighted.gguf"))
            )
            assert weighted < 0.8 * plain, quant
