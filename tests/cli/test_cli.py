"""The command line: instant help, exact sentences, exit codes, and calls that the rooms behind it understand."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from minipovid.cli import doctor, main
from minipovid.recipe import read as recipe
from minipovid.recipe import schema

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "llama_cpp", "gguf")
HEAVY += ("numpy", "PIL", "yaml", "pydantic")


def run(*arguments: str) -> Result:
    """Run the command; anything but a clean exit still raises."""
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def as_real(real: Any, fake: Any) -> Any:
    """The fake, which refuses with a TypeError what the real function's signature does not take.

    Of a class: with the real one's signatures of the methods that it has.
    """
    if isinstance(fake, type):
        for name in [name for name in vars(fake) if not name.startswith("__")]:
            setattr(fake, name, as_real(getattr(real, name), getattr(fake, name)))
        return fake

    def bound(*arguments: Any, **named: Any) -> Any:
        inspect.signature(real).bind(*arguments, **named)
        return fake(*arguments, **named)

    return bound


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **names: Any) -> None:
    """Put these names into `minipovid.<module>` in the place of the real ones; calls must suit the real ones."""
    real = importlib.import_module(f"minipovid.{module}")
    for name, fake in names.items():
        monkeypatch.setattr(real, name, as_real(getattr(real, name), fake))


def every_command(group: click.Group = main, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [path]
    for name, command in group.commands.items():
        found += every_command(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["recipes", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom minipovid.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stderr == "[]\n" and len(child.stdout) > 10


def test_every_command_has_its_page() -> None:
    commands = every_command()
    assert len(commands) >= 12
    for path in commands:
        page = run(*path, "--help").stdout
        assert page.startswith(" ".join(["Usage: minipovid", *path])) and "  -h, --help" in page
        assert all(len(line) <= 110 for line in page.split("\n"))


def test_what_the_user_can_mend_is_one_bare_sentence() -> None:
    result = run("train", "tinyword")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "There is no recipe 'tinyword', neither a file nor one that ships with minipovid. Did you mean tinyworld? "
        "Shipped: llava7b_8gb, llava7b_qlora, tinyworld.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "Missing argument 'RECIPE'. `minipovid train --help` shows how it is used."),
        (
            ["train", "tinyworld", "--outt", "x"],
            "No such option '--outt'. Did you mean '--out'? `minipovid train --help`",
        ),
        (["eval", "runs/x"], "Missing argument 'BENCHMARK...'. `minipovid eval --help` shows how it is used."),
        (["plan", "tinyworld", "--vram", "0"], "Invalid value for '--vram': 0.0 is not in the range x>0."),
        (
            ["export", "absent"],
            "There is no folder absent; name a run folder, which `minipovid train` makes.",
        ),
        (
            ["recipes", "show", "tinyword"],
            "There is no recipe 'tinyword', neither a file nor one that ships with minipovid.",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], sentence: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(sentence) and result.stderr.count("\n") == 1


def test_mistakes_in_a_recipe_are_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nmodel: {path: tinyworld}\ndata: {path: tinyworld}\nstagse: []\n")
    result = run("train", str(tmp_path / "r.yaml"))
    assert result.exit_code == 2
    assert result.stderr == (
        f"{tmp_path}/r.yaml: stages is missing.\n"
        f"{tmp_path}/r.yaml: stagse is not a key of a recipe; did you mean stages?\n"
    )


def test_an_interrupt_says_that_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Path:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "train.loop", train=interrupted)
    result = run("train", "tinyworld")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted. What was finished is kept; the same command goes on from there.\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: Any, **__: Any) -> Path:
        raise ZeroDivisionError

    stand_in(monkeypatch, "train.loop", train=faulty)
    with pytest.raises(ZeroDivisionError):
        run("train", "tinyworld")


def test_train_reads_the_recipe_and_prints_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def train(resolved: schema.Recipe, out: Path, progress: bool) -> Path:
        calls.append((resolved.train.max_steps, [stage.loss["beta"] for stage in resolved.stages], out, progress))
        return out

    stand_in(monkeypatch, "train.loop", train=train)
    result = run("train", "tinyworld", "--set", "loss.beta=0.2", "--set", "train.max_steps=3")
    assert result.stdout == "runs/tinyworld\n"
    assert run("train", "tinyworld", "--out", "elsewhere").stdout == "elsewhere\n"
    stages = len(recipe.read(recipe.find("tinyworld")).stages)
    assert calls[0] == (3, [0.2] * stages, Path("runs/tinyworld"), True)
    assert calls[1][2] == Path("elsewhere")


def test_export_prints_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def export(run: Path, *settings: Any, progress: Any) -> list[Path]:
        calls.append((run, *settings))
        progress("a.gguf", 5, 10)
        progress("a.gguf", 10, 10)
        return [run / "gguf" / "a.gguf", run / "gguf" / "mmproj-a.gguf"]

    def one(run: Path, setting: Any, progress: Any) -> Path:
        calls.append((run, setting))
        return run / "one"

    def lm_studio(folder: Path, home: Path) -> Path:
        return home / "there"

    stand_in(monkeypatch, "export", export=export, export_lora=one, export_merged=one, lm_studio=lm_studio)
    result = run("export", "r")
    assert (result.stdout, result.stderr) == ("r/gguf/a.gguf\nr/gguf/mmproj-a.gguf\n", "")
    options = [
        "--quant",
        "q8_0",
        "--quant",
        "q4_k_m",
        "--merge-base",
        "nf4",
        "--mmproj",
        "q8_0",
        "--imatrix",
        "8",
        "--lm-studio",
        "h",
    ]
    assert run("export", "r", *options).stdout.endswith("h/there\n")
    assert run("export", "r", "--lora-only").stdout == "r/one\n"
    assert run("export", "r", "--lora-only", "--quant", "f32").stdout == "r/one\n"
    assert run("export", "r", "--merged", "--merge-base", "original").stdout == "r/one\n"
    plain = (Path("r"), None, None, None, None)
    chosen = (Path("r"), ("q8_0", "q4_k_m"), "nf4", "q8_0", 8)
    assert calls == [plain, chosen, (Path("r"), "f16"), (Path("r"), "f32"), (Path("r"), "original")]
    refused = run("export", "r", "--lora-only", "--merged")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "--lora-only and --merged name two outputs; give one of them.\n",
    )


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1), (None, 3)])
def test_verify_prints_its_table_and_causes(monkeypatch: pytest.MonkeyPatch, ok: bool | None, code: int) -> None:
    """Exit 1 where a file answers otherwise, 3 on too few pairs; the card is told in all cases."""
    events: list[Any] = []
    causes = [] if ok is not False else ["a.gguf: the adapter was not applied."]
    verdict = SimpleNamespace(
        ok=ok, notes=["On two pairs."], causes=causes, table=lambda: [{"file": "a.gguf", "KL": 0.5}], as_dict=lambda: {}
    )

    def verify(run: Path, quants: Any, pairs: int, progress: Any, n_gpu_layers: int | None) -> Any:
        events.append((run, quants, pairs, n_gpu_layers))
        return verdict

    stand_in(monkeypatch, "verify", verify=verify)
    stand_in(monkeypatch, "export", refresh_card=events.append)
    result = run("verify", "r", "--quant", "q8_0", "--pairs", "2")
    assert result.stdout == "\n".join(["file     KL", "a.gguf  0.5", "On two pairs.", *causes, ""])
    assert result.exit_code == code
    assert events == [(Path("r"), ("q8_0",), 2, None), Path("r")]
    assert run("verify", "r", "--json").stdout == "{}\n"


def test_chat_and_serve_pass_their_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    stand_in(monkeypatch, "inference.llama_cpp", Sampling=lambda **settings: SimpleNamespace(**settings))
    stand_in(monkeypatch, "inference.chat", converse=lambda run, **options: calls.append((run, options)))
    stand_in(
        monkeypatch,
        "inference.serve",
        serve=lambda run, **options: calls.append((run, options)),
        key_from=lambda variable: variable,
    )
    runtime = {"quant": "q8_0", "n_ctx": 512, "n_gpu_layers": -1, "n_threads": 3, "lora": Path("l.gguf")}
    options = ["--quant", "q8_0", "--n-ctx", "512", "--n-gpu-layers", "-1", "--n-threads", "3", "--lora", "l.gguf"]
    assert run("chat", "r", *options, "--max-tokens", "9").exit_code == 0
    assert run("serve", "r", *options, "--port", "0", "--api-key-env", "K", "--name", "me").exit_code == 0
    (_, talked), (_, served) = calls
    sampling = talked.pop("sampling")
    assert talked == runtime and (sampling.max_tokens, sampling.temperature, sampling.seed) == (9, 0, 0)
    announce = served.pop("announce")
    assert announce is click.echo
    named = {"host": "127.0.0.1", "port": 0, "api_key": "K", "no_key": False, "model_name": "me"}
    named["allow_origins"] = ()
    assert served == runtime | named


def test_ask_prints_the_answer_and_closes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    class Runtime:
        @classmethod
        def open(cls, run: Path, quant: str | None = None, **options: Any) -> Runtime:
            events.append((run, quant, options))
            return cls()

        def __enter__(self) -> Runtime:
            return self

        def __exit__(self, *_: object) -> None:
            events.append("closed")

        def answer(self, image: Path, prompt: str, max_tokens: int = 256) -> str:
            return f"{image} {prompt} {max_tokens}"

    stand_in(monkeypatch, "inference.llama_cpp", Runtime=Runtime)
    assert run("ask", "r", "cat.png", "What is this?", "--quant", "q8_0").stdout == "cat.png What is this? 256\n"
    options = {"n_ctx": None, "n_gpu_layers": None, "n_threads": None, "lora": None}
    assert events == [(Path("r"), "q8_0", options), "closed"]


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_demo_ends_in_a_table_and_a_verdict(monkeypatch: pytest.MonkeyPatch, ok: bool, code: int) -> None:
    rows = [{"model": "base", "false yes": 0.2}, {"model": "tuned", "false yes": 0.1}]
    stand_in(monkeypatch, "cli.demo", walk=lambda out: {"run": str(out), "rows": rows, "ok": ok})
    result = run("demo", "--out", "runs/d")
    assert result.exit_code == code
    assert result.stdout == f"run: runs/d\nmodel  false yes\nbase         0.2\ntuned        0.1\nok: {ok}\n"
    assert json.loads(run("demo", "--json").stdout) == {"run": "runs/demo", "rows": rows, "ok": ok}


def test_a_stand_in_takes_only_what_the_real_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A room that calls a parameter otherwise than the command line does, and another that asks for one more."""

    class Renamed:
        @classmethod
        def open(cls, run: Path, quantisation: str | None = None) -> None: ...

    class Fake:
        @classmethod
        def open(cls, run: Path, **options: Any) -> None: ...

    def with_another(run: Path, quants: Any, pairs: int, progress: Any, n_gpu_layers: int, device: str) -> None: ...

    monkeypatch.setattr(importlib.import_module("minipovid.inference.llama_cpp"), "Runtime", Renamed)
    stand_in(monkeypatch, "inference.llama_cpp", Runtime=Fake)
    with pytest.raises(TypeError, match="unexpected keyword argument 'quant'"):
        run("ask", "r", "cat.png", "What is this?")
    monkeypatch.setattr(importlib.import_module("minipovid.verify"), "verify", with_another)
    stand_in(monkeypatch, "verify", verify=lambda *_: None)
    with pytest.raises(TypeError, match="missing a required argument: 'device'"):
        run("verify", "r")


def test_the_rooms_understand_the_calls() -> None:
    """What each command calls exists and takes these arguments."""
    calls: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
        ("train.loop", "train", (None, Path()), {"progress": True}),
        ("export", "export", (Path(),), {"quants": ("q8_0",), "merge_base": None, "progress": None}),
        ("inference.llama_cpp", "Runtime.open", (Path(),), {"quant": None}),
        ("inference.llama_cpp", "Runtime.answer", (None, Path(), "Q?"), {"max_tokens": 1}),
        ("evaluate", "evaluate", (Path(), [], None), {}),
        ("cli.demo", "walk", (Path(),), {}),
    ]
    for module, name, arguments, named in calls:
        thing: Any = importlib.import_module(f"minipovid.{module}")
        for part in name.split("."):
            thing = getattr(thing, part)
        inspect.signature(thing).bind(*arguments, **named)


def test_plan_prints_what_it_predicts() -> None:
    result = run("plan", "llava7b_qlora", "--vram", "24")
    assert result.exit_code == 0
    assert result.stdout.startswith(
        "GPU memory at its peak, when the backward pass begins, GiB (predicted)\n"
        "  language model                   3.11\n"
    )
    assert result.stdout.split("\n")[-2].startswith("It fits: ")
    assert "\n  RTX 4060      8   10.9  no    all layers     1  " in result.stdout
    tight = run("plan", "llava7b_qlora", "--vram", "8", "--json", "--set", "train.gradient_checkpointing=false")
    told = json.loads(tight.stdout)
    assert (tight.exit_code, told["fits"], list(told["changes"])[0]) == (1, False, "train.gradient_checkpointing")
    assert told["peak_gib"] == pytest.approx(sum(told["memory_gib"].values()), abs=0.05)


def test_recipes_are_listed_shown_and_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = run("recipes")
    assert listed.stdout == run("recipes", "list").stdout
    assert [line.split()[0] for line in listed.stdout.split("\n")[1:-1]] == sorted(recipe.shipped())
    assert set(json.loads(run("recipes", "list", "--json").stdout)) == set(recipe.shipped())
    text = recipe.shipped()["tinyworld"].read_text("utf-8")
    assert run("recipes", "show", "tinyworld").stdout == text
    assert run("recipes", "copy", "tinyworld").stdout == "tinyworld.yaml\n"
    assert (tmp_path / "tinyworld.yaml").read_text("utf-8") == text
    (tmp_path / "tinyworld.yaml").write_text("mine")
    again = run("recipes", "copy", "tinyworld")
    assert (again.exit_code, again.stderr) == (
        2,
        "tinyworld.yaml already exists; name another file: `minipovid recipes copy tinyworld other.yaml`.\n",
    )
    assert (tmp_path / "tinyworld.yaml").read_text() == "mine"
    assert run("recipes", "copy", "llava7b_8gb", "absent/x.yaml").exit_code == 2
    assert "\nllava7b_8gb    llava7b_qlora  POVID on LLaVA-1.5-7B" in listed.stdout
    assert run("recipes", "copy", "llava7b_8gb", "small.yaml").exit_code == 0
    assert recipe.read(Path("small.yaml")) == recipe.read(recipe.find("llava7b_8gb"))


def test_the_doctor_of_this_machine() -> None:
    """The libraries that the package needs are here, or no other test would run."""
    findings = {finding.name: finding for finding in doctor.examine()}
    assert list(findings) == ["python", "packages", "torch", "GPU", "bitsandbytes", "llama.cpp", "memory", "disk"]
    assert {findings[name].state for name in ("python", "torch", "bitsandbytes", "llama.cpp")} == {"ok"}
    assert "NF4 works on" in findings["bitsandbytes"].found and "mtmd ready" in findings["llama.cpp"].found


def test_the_doctor_prints_the_remedy_and_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        doctor.Check("python", "ok", "3.11"),
        doctor.Check("torch", "missing", "No module named 'torch'", "pip install 'torch>=2.8'"),
    ]
    stand_in(monkeypatch, "cli.doctor", examine=lambda: found)
    result = run("doctor")
    assert result.exit_code == 1
    assert result.stdout == (
        "ok      python        3.11\n"
        "missing torch         No module named 'torch'\n"
        "                      -> pip install 'torch>=2.8'\n"
    )
    assert json.loads(run("doctor", "--json").stdout)["findings"][1]["remedy"] == "pip install 'torch>=2.8'"
    monkeypatch.setattr(doctor, "examine", lambda: found[:1])
    assert run("doctor").exit_code == 0


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import os; os.abort()", "crashed with signal 6"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("print('noise'); raise AssertionError('NF4 is off by 1.00')", "AssertionError: NF4 is off by 1.00"),
    ],
)
def test_a_library_that_fails_is_a_finding(program: str, found: str) -> None:
    assert doctor._try("x", program, "mend it") == doctor.Check("x", "missing", found, "mend it")


def test_a_library_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE_S", 0.5)
    assert doctor._try("x", "import time; time.sleep(60)", "wait").found == "did not answer within 0.5 s"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch>=2.8", "no-such.package>=2", 'pytest; extra == "dev"', "numpy"]
    monkeypatch.setattr(doctor, "requires", lambda _: declared)
    assert doctor._packages() == doctor.Check(
        "packages", "missing", "without no-such.package", "pip install 'no-such.package>=2'"
    )


def test_a_driver_without_a_cuda_torch_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert doctor._gpu("2.13.0+cpu on CPU, 2 threads").remedy == doctor.CUDA_TORCH
    card = doctor._gpu("2.13.0 on NVIDIA GeForce RTX 4090, 24 GiB, compute capability 8.9, 16 threads")
    assert (card.state, card.found) == ("ok", "NVIDIA GeForce RTX 4090, 24 GiB, compute capability 8.9, 16 threads")


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("Tesla T4, 15 GiB, compute capability 7.5", "no bfloat16, in which training computes; exported models answer"),
        ("AMD Radeon RX 7900 XTX, 24 GiB, ROCm", "nobody has tried it on ROCm"),
        ("CPU beside an Apple GPU", "exported models answer on it (llama.cpp, Metal); torch computes on the CPU"),
    ],
)
def test_a_card_that_cannot_do_all_is_told_what_it_can(card: str, told: str) -> None:
    found = doctor._gpu(f"2.13.0 on {card}, 16 threads")
    assert found.state == "note" and told in found.found


@pytest.mark.parametrize(("program", "switch"), [("nvidia-smi", "CUDA"), ("rocminfo", "HIP"), ("vulkaninfo", "VULKAN")])
def test_a_llama_without_the_card_comes_with_the_build(
    monkeypatch: pytest.MonkeyPatch, program: str, switch: str
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name if name == program else None)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    plain = doctor.Check("llama.cpp", "ok", "0.3.36, CPU only, mtmd ready")
    told = doctor._llama(plain)
    assert told.state == "note" and told.remedy == (
        f'CMAKE_ARGS="-DGGML_{switch}=on" pip install --force-reinstall --no-deps --no-cache-dir '
        "--no-binary llama-cpp-python llama-cpp-python==0.3.36"
    )
    able = doctor.Check("llama.cpp", "ok", "0.3.36, with GPU, mtmd ready")
    assert doctor._llama(able) == able
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor._llama(plain) == plain
