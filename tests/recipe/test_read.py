"""Recipes are read strictly: each mistake has its exact sentence, and every key that can be set is read somewhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from minipovid.common.errors import MinipovidError
from minipovid.recipe import read as recipe
from minipovid.recipe import strict
from minipovid.recipe.read import read
from minipovid.recipe.schema import Recipe
from minipovid.train import losses

ROOT = Path(__file__).parents[2]
GOOD = """
name: good
model: {path: tinyworld}
data: {path: tinyworld}
stages:
  - loss: {name: dpo, beta: 0.1}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str, *overrides: str) -> str:
    """The message of a bad recipe, the path cut off each line."""
    path = written(folder, text)
    with pytest.raises(MinipovidError) as caught:
        read(path, overrides)
    return str(caught.value).replace(f"{path}: ", "").replace(str(path), "r.yaml")


def section(name: str, line: str) -> str:
    """The good recipe with one more line in a section."""
    return GOOD.replace(f"{name}: {{path: tinyworld}}", f"{name}: {{path: tinyworld, {line}}}")


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    good = read(written(tmp_path, GOOD))
    assert (good.name, good.seed, good.lora.r, good.stages[0].loss) == ("good", 42, 16, {"name": "dpo", "beta": 0.1})


@pytest.mark.parametrize(
    ("text", "unknown", "hint"),
    [
        # The nearest name, where it belongs, or what is allowed.
        (GOOD + "sede: 1", "sede", "did you mean seed?"),
        (GOOD + "train: {learnig_rate: 1.0}", "train.learnig_rate", "did you mean train.learning_rate?"),
        (GOOD + "learning_rate: 1.0", "learning_rate", "did you mean train.learning_rate?"),
        (GOOD + "epochs: 3", "epochs", "did you mean stages.0.epochs?"),
        (GOOD + "lora: {zzz: 1}", "lora.zzz", "allowed here: r, alpha, rslora."),
        (GOOD + "    epoch: 2", "stages.0.epoch", "did you mean stages.0.epochs?"),
        # Other tools' names. LLaMA-Factory:
        (GOOD + "model_name_or_path: x", "model_name_or_path", "here it is called model.path."),
        (GOOD + "quantization_bit: 4", "quantization_bit", "here it is called model.load_in_4bit."),
        (GOOD + "lora_rank: 8", "lora_rank", "here it is called lora.r."),
        (GOOD + "cutoff_len: 2048", "cutoff_len", "here it is called data.max_length."),
        (GOOD + "pref_beta: 0.1", "pref_beta", "here it is called stages.0.loss.beta."),
        (GOOD + "pref_loss: sigmoid", "pref_loss", "here it is called stages.0.loss.name."),
        # axolotl:
        (GOOD + "base_model: x", "base_model", "here it is called model.path."),
        (GOOD + "sequence_len: 2048", "sequence_len", "here it is called data.max_length."),
        (
            GOOD + "train: {micro_batch_size: 2}",
            "train.micro_batch_size",
            "here it is called train.per_device_train_batch_size.",
        ),
        (GOOD + "rl_beta: 0.1", "rl_beta", "here it is called stages.0.loss.beta."),
        # TRL and transformers:
        (GOOD + "num_train_epochs: 3", "num_train_epochs", "here it is called stages.0.epochs."),
        (GOOD + "loss_type: sigmoid", "loss_type", "here it is called stages.0.loss.name."),
        (GOOD + "output_dir: x", "output_dir", "here it is called name."),
        # ms-swift:
        (GOOD + "quant_bits: 4", "quant_bits", "here it is called model.load_in_4bit."),
    ],
)
def test_an_unknown_key_is_pointed_to_ours(tmp_path: Path, text: str, unknown: str, hint: str) -> None:
    assert complaint(tmp_path, text) == f"{unknown} is not a key of a recipe; {hint}"


LIST_LOSS = GOOD.replace("stages:\n  - loss:", "stages:\n    loss:")


@pytest.mark.parametrize(
    ("text", "value", "must_be"),
    [
        (GOOD + "seed: many", "seed is 'many'", "a whole number"),
        (GOOD + "seed: 1.5", "seed is 1.5", "a whole number"),
        (GOOD + "seed: true", "seed is True", "a whole number"),
        (GOOD + "lora: {r: 0}", "lora.r is 0", "at least 1"),
        (GOOD + "lora: 16", "lora is 16", "a group of keys"),
        (GOOD + "train: {learning_rate: fast}", "train.learning_rate is 'fast'", "a number"),
        (GOOD + "train: {learning_rate: 0}", "train.learning_rate is 0", "greater than 0"),
        (GOOD + "train: {learning_rate: .inf}", "train.learning_rate is inf", "a finite number"),
        (GOOD + "train: {warmup_ratio: 1}", "train.warmup_ratio is 1", "less than 1"),
        (GOOD + "noise: {step: 1000}", "noise.step is 1000", "at most 999"),
        (GOOD + "noise: {domain: pixel}", "noise.domain is 'pixel'", "one of normalized, clamp, wrap"),
        (section("model", "load_in_4bit: 'yes'"), "model.load_in_4bit is 'yes'", "true or false"),
        (section("model", "revision: 5"), "model.revision is 5", "text"),
        (LIST_LOSS, "stages is {'loss': {'name': 'dpo', 'beta': 0.1}}", "a list (its lines begin with '-')"),
        (GOOD.replace("{name: dpo, beta: 0.1}", "dpo"), "stages.0.loss is 'dpo'", "a group of keys"),
        (GOOD.replace("  - loss: {name: dpo, beta: 0.1}", "  []"), "stages is []", "a list with at least one entry"),
        (GOOD.replace("good", "a b/c"), "name is 'a b/c'", "letters, digits, '.', '_' and '-' alone"),
        (GOOD.replace("good", "1e5"), "name is 100000.0", "text"),
    ],
)
def test_a_wrong_value_is_told_what_it_must_be(tmp_path: Path, text: str, value: str, must_be: str) -> None:
    assert complaint(tmp_path, text) == f"{value}, but it must be {must_be}."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("name: good", ""), "name is missing."),
        (GOOD.replace("model: {path: tinyworld}", "model: {}"), "model.path is missing."),
        (GOOD.replace("model: {path: tinyworld}\n", ""), "model is missing."),
        (
            GOOD.replace("name: dpo, ", ""),
            "stages.0.loss.name is missing; it names a file in minipovid/train/losses, for example povid.",
        ),
        ("", "r.yaml does not hold a recipe: it should begin with `name:`."),
        ("- a\n- b", "r.yaml does not hold a recipe: it should begin with `name:`."),
        (GOOD + "seed: 1\nseed: 2", "r.yaml is not valid YAML: the key 'seed' stands twice, again in line 8."),
    ],
)
def test_what_is_missing_or_no_recipe_is_said(tmp_path: Path, text: str, sentence: str) -> None:
    assert complaint(tmp_path, text) == sentence


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    assert complaint(tmp_path, GOOD + "sede: 1\nlora: {r: 0}") == (
        "lora.r is 0, but it must be at least 1.\nsede is not a key of a recipe; did you mean seed?"
    )


def test_what_is_not_yaml_is_said_with_its_place(tmp_path: Path) -> None:
    sentence = complaint(tmp_path, GOOD + "train: {learning_rate: 1.0")
    assert sentence.startswith("r.yaml is not valid YAML: ") and "line" in sentence and "\n" not in sentence
    assert complaint(tmp_path, "[" * 50_000).startswith("r.yaml is not valid YAML: maximum recursion depth")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_is_read_as_editors_save_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "plain.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "saved.yaml").write_bytes(GOOD.replace("\n", "\r\n").encode(encoding))
    assert read(tmp_path / "saved.yaml") == read(tmp_path / "plain.yaml")


def test_a_folder_or_nothing_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="There is no recipe .*; `minipovid recipes` lists those that ship"):
        read(tmp_path / "absent.yaml")
    with pytest.raises(MinipovidError, match="cannot be read"):
        read(tmp_path)


def test_python_objects_are_not_made(tmp_path: Path) -> None:
    assert "is not valid YAML: could not determine a constructor" in complaint(
        tmp_path, GOOD + "seed: !!python/object/apply:os.getpid []"
    )


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.e-5", "0.1e-4", "+1e-5", ".1e-4", "0.00001"])
def test_a_number_may_be_written_as_everybody_writes_it(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads `1e-5` as text, in the loss's own keys too."""
    at = written(tmp_path, GOOD.replace("beta: 0.1", f"beta: {text}") + f"train: {{learning_rate: {text}}}")
    assert read(at).train.learning_rate == pytest.approx(1e-5)
    assert read(at).stages[0].loss["beta"] == pytest.approx(1e-5)
    assert read(at, (f"lora.alpha={text}",)).lora.alpha == pytest.approx(1e-5)


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    """A folder whose name looks like a number must stay text."""
    resolved = read(written(tmp_path, GOOD.replace("name: good", "name: '1e5'") + "train: {learning_rate: 1e-7}"))
    recipe.write(resolved, tmp_path / "again.yaml")
    assert read(tmp_path / "again.yaml") == resolved


def test_noise_and_views_noised_are_one(tmp_path: Path) -> None:
    """Whatever of both is written, a run folder has it as `noise`, as folders have that are older than `views`."""
    old = GOOD + "noise: {step: 300, domain: clamp}"
    trees = []
    for text in (
        old,
        GOOD + "views: {noised: {step: 300, domain: clamp}}",
        GOOD + "noise: {step: 300}\nviews: {noised: {domain: clamp}}",
        GOOD + "noise: {step: 300, domain: clamp}\nviews: {noised: {step: 300}}",
    ):
        resolved = read(written(tmp_path, text))
        recipe.write(resolved, tmp_path / "out.yaml")
        assert resolved.noise == read(tmp_path / "out.yaml").noise
        trees.append((tmp_path / "out.yaml").read_text("utf-8"))
    assert set(trees) == {trees[0]} and "views" not in trees[0]
    assert "noise:\n  step: 300\n  domain: clamp\n  refresh: never\n  cache_gib: 4.0\n" in trees[0]
    assert read(written(tmp_path, old), ("views.noised.refresh=epoch",)).noise.refresh == "epoch"
    assert complaint(tmp_path, old + "\nviews: {noised: {step: 301}}") == (
        "noise.step is 300 and views.noised.step is 301; they are one key, so write one of them."
    )


def test_other_views_are_written_as_they_stand(tmp_path: Path) -> None:
    """Their keys are judged where their shelf is known; see tests/images/test_views.py."""
    resolved = read(written(tmp_path, GOOD + "views: {cropped: {}, other: {a: [1, x]}, noised: {step: 7}}"))
    recipe.write(resolved, tmp_path / "out.yaml")
    again = read(tmp_path / "out.yaml")
    assert (again.noise.step, again.views.others) == (7, {"cropped": {}, "other": {"a": [1, "x"]}})
    assert (again.view("noised")["step"], again.view("other"), again.view("absent")) == (7, {"a": [1, "x"]}, {})
    assert recipe.flat(again.model_dump()) == recipe.flat(resolved.model_dump())


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    text = GOOD.replace("model: {path: tinyworld}", "model: {path: model}")
    resolved = read(written(tmp_path, text.replace("data: {path: tinyworld}", "data: {path: sub/pairs.json}")))
    assert resolved.model.path == str(tmp_path / "model")
    assert (resolved.data.path, resolved.data.images) == (str(tmp_path / "sub/pairs.json"), str(tmp_path / "sub"))
    own = (
        GOOD
        + "    data: {path: more.json}\n  - loss: {name: dpo}\n    data: {path: tinyworld}\n  - loss: {name: dpo}\n"
    )
    first, second, third = (stage.data for stage in read(written(tmp_path, own)).stages)
    assert first and (first.path, first.images) == (str(tmp_path / "more.json"), str(tmp_path))
    assert second and (second.path, second.images, third) == ("tinyworld", None, None)
    hub = read(written(tmp_path, GOOD.replace("model: {path: tinyworld}", "model: {path: org/name}")))
    assert hub.model.path == "org/name"


def test_set_changes_a_key_and_loss_every_stage(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "  - loss: {name: povid}\n")
    changed = read(path, ("loss.beta=0.2", "train.max_steps=7", "stages.1.epochs=3", "lora.rslora=true"))
    assert [stage.loss["beta"] for stage in changed.stages] == [0.2, 0.2]
    assert (changed.train.max_steps, changed.stages[1].epochs, changed.lora.rslora) == (7, 3, True)
    assert read(path, ("train.max_steps=null",)).train.max_steps is None


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "--set takes key.path=value, for example train.learning_rate=1e-6; this is 'seed'."),
        ("=5", "--set takes key.path=value, for example train.learning_rate=1e-6; this is '=5'."),
        ("stages.3.epochs=1", "--set stages.3.epochs: there is no entry 3 in a list of 1."),
        ("stages.x.epochs=1", "--set stages.x.epochs: there is no entry x in a list of 1."),
        ("stages.0=1", "--set stages.0: stages holds no keys."),
        ("name=[1", "--set name: '[1' is not a YAML value; put quotes round a text."),
        ("train.lr=1e-6", "train.lr is not a key of a recipe; here it is called train.learning_rate."),
        ("lora.r=big", "lora.r is 'big', but it must be a whole number."),
    ],
)
def test_a_bad_override_gets_its_sentence(tmp_path: Path, override: str, sentence: str) -> None:
    assert complaint(tmp_path, GOOD, override) == sentence


@pytest.mark.parametrize("stages", ["1.5", "true", "'text'", "{a: 1}"])
def test_a_losses_override_leaves_what_is_no_list_to_its_sentence(tmp_path: Path, stages: str) -> None:
    text = f"{GOOD.partition('stages:')[0]}stages: {stages}\n"
    for overrides in ((), ("loss.beta=0.2",)):
        assert "but it must be a list (its lines begin with '-')." in complaint(tmp_path, text, *overrides)


def test_a_loss_refuses_what_it_does_not_know() -> None:
    """Its keys are the fields of its dataclass; the recipe leaves them alone and the shelf judges them."""
    for settings, sentence in [
        ({"name": "dpoo"}, "There is no 'dpoo' among the losses. Did you mean 'dpo'? Known: "),
        ({"name": "dpo", "bta": 1.0}, "stages.0.loss: bta is not a key of a recipe; did you mean beta?"),
        ({"name": "povid", "variant": "best"}, "stages.0.loss: variant is 'best', but it must be one of "),
    ]:
        with pytest.raises(MinipovidError) as caught:
            losses.build(settings, "stages.0.loss")
        assert str(caught.value).startswith(sentence)


def test_every_shipped_recipe_parses_and_says_what_it_is() -> None:
    shipped = recipe.shipped()
    assert sorted(shipped) == ["llava7b_8gb", "llava7b_qlora", "tinyworld"]
    for name, path in shipped.items():
        resolved = read(path)
        assert resolved.name == name == path.stem
        for stage in resolved.stages:
            losses.build(stage.loss)
        head = path.read_text("utf-8").split("\nname:")[0]
        assert all(line.startswith("#") for line in head.split("\n"))
        assert all(f"\n# {word} " in head for word in ("Download", "Run", "Needs")), name


def test_shipped_and_own_recipes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = written(tmp_path, GOOD)
    assert recipe.find("tinyworld") == recipe.shipped()["tinyworld"]
    assert recipe.find("r.yaml") == Path("r.yaml") and recipe.find(str(mine)) == mine
    (tmp_path / "tinyworld").mkdir()  # a folder of that name is in nobody's way
    assert recipe.find("tinyworld") == recipe.shipped()["tinyworld"]
    with pytest.raises(MinipovidError) as caught:
        recipe.find("tinyword")
    assert str(caught.value) == (
        "There is no recipe 'tinyword', neither a file nor one that ships with minipovid. Did you mean tinyworld? "
        "Shipped: llava7b_8gb, llava7b_qlora, tinyworld."
    )


def test_every_foreign_name_points_to_a_key_of_ours() -> None:
    """And none of them is a key of ours by itself, where it would never be looked up."""
    ours = set(strict._dotted_keys(Recipe))
    for foreign, target in strict.FOREIGN_KEYS.items():
        plain = target.replace("stages.0.", "stages.")
        assert plain in ours or plain.startswith("stages.loss."), f"{foreign} -> {target}"
        assert foreign not in ours


# A key that nobody reads is a bug.


def attributes_read(folder: Path) -> set[str]:
    """Every attribute that the package reads, outside recipe/: `settings.save_steps` gives save_steps."""
    found = set()
    for path in folder.rglob("*.py"):
        if path.parent.name != "recipe":
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
    return found


def test_every_key_is_read_by_somebody() -> None:
    read_somewhere = attributes_read(ROOT / "minipovid")
    keys = strict._dotted_keys(Recipe)
    assert len(keys) >= 40
    resolved_here = ["extends", "views.noised"]  # by recipe/ itself: no recipe that is read holds them any more
    assert [key for key in keys if key.rpartition(".")[2] not in read_somewhere] == resolved_here


def test_a_key_that_nobody_reads_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def f(s):\n    s.written = s.read\n")
    assert attributes_read(tmp_path) == {"read"}


def test_a_resolved_recipe_is_plain_yaml(tmp_path: Path) -> None:
    """Any tool can read the run folder's recipe; nothing in it is a Python object."""
    recipe.write(read(written(tmp_path, GOOD)), tmp_path / "out.yaml")
    tree = yaml.safe_load((tmp_path / "out.yaml").read_text("utf-8"))
    assert tree["train"]["learning_rate"] == 1e-6 and tree["stages"][0]["loss"] == {"name": "dpo", "beta": 0.1}
