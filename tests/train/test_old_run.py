"""A run that the code of commit 3c92b16 began, and was killed in, goes on here and ends as it ended there.

old_run/make.py says how the run was made and what stands where. One process walks its commands in a new place; then
its files are compared. What only the same libraries or the same processor can give is asked where they are the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from old_run import make
from safetensors.numpy import load_file

MADE = json.loads((make.HERE / "made.json").read_text(encoding="utf-8"))
MACHINE = ("pairs_per_s", "tokens_per_s", "data_wait", "peak_gib")  # figures that are the machine's
WEIGHTS = Path("adapter", "adapter_model.safetensors")


class Walked(NamedTuple):
    """Both states of the old run's place, and how it came from one to the other."""

    before: Path  # as the archive has it
    after: Path
    codes: dict[str, int]  # with which each command ended
    same_keys: bool  # the same versions and kind of machine: all that a key holds
    same_bytes: bool  # the same processor, too


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    folder = tmp_path_factory.mktemp("old").resolve()
    before, after = folder / "before", folder / "after"
    for place in (before, after):
        place.mkdir()
        make.unpack(place)
    results, facts = make.walk(after, make.WALK, MADE["version"])
    same_keys = all(facts[key] == MADE[key] for key in ("versions", "machine", "system", "capability"))
    same_bytes = same_keys and all(facts[key] == MADE[key] for key in ("cpu", "threads"))
    yield Walked(before, after, {name: code for name, (code, _) in results.items()}, same_keys, same_bytes)
    shutil.rmtree(folder)


@pytest.mark.parametrize("command", make.WALK)
def test_every_command_ends_well(walked: Walked, command: str) -> None:
    """But for verify, which finds nothing wrong and calls its two pairs too few to judge."""
    assert walked.codes[command] == (3 if command == "verify" else 0)


# --- training ---


def test_the_killed_run_ends_with_the_same_bytes(walked: Walked) -> None:
    """Adapter, and the newest checkpoint with the optimiser's moments; no draft is left."""
    killed, finished = walked.after / "killed", walked.before / "finished"
    names = ["adapter", "checkpoint-24", "checkpoint-28", "log.jsonl", "pairs.jsonl", "recipe.yaml"]
    assert sorted(path.name for path in killed.iterdir()) == names
    for file in (WEIGHTS, *(path.relative_to(finished) for path in finished.glob("checkpoint-*/*.safetensors"))):
        same_tensors(killed / file, finished / file, walked.same_bytes)
    for file in ("pairs.jsonl", "adapter/adapter_config.json", "checkpoint-28/adapter_config.json"):
        assert (killed / file).read_bytes() == (finished / file).read_bytes(), file
    states = [json.loads((run / "checkpoint-28" / "state.json").read_text()) for run in (killed, finished)]
    assert not differences(*states, exactly=walked.same_bytes)


def test_its_log_is_the_one_that_the_old_code_wrote(walked: Walked) -> None:
    """Every figure but the machine's, the number of reference scores that had to be computed among them."""
    left_out = {*MACHINE}
    if not walked.same_keys:
        left_out.add("reference/computed")
    if not walked.same_bytes:
        left_out.add("rewards/accuracies")  # in a stage's first step a last digit decides
    logs = [
        [{key: value for key, value in line.items() if key not in left_out} for line in lines(run / "log.jsonl")]
        for run in (walked.after / "killed", walked.before / "finished")
    ]
    assert len(logs[0]) == len(logs[1]) == 7
    assert not differences(*logs, exactly=walked.same_bytes)
    computed = [line["reference/computed"] for line in lines(walked.before / "finished" / "log.jsonl")[3:]]
    assert computed[0] < 1 and computed[-1] == 0  # else the old run says nothing of the cache


def test_its_caches_are_found_current(walked: Walked) -> None:
    """The stores have the old names; entries are added for what the old run had not seen when it was killed, alone."""
    needs_keys(walked)
    old, new = (make.references(place / "cache") for place in (walked.before, walked.after))
    assert {name: len(new[name]) for name in old} == MADE["caches"]["references"]
    assert all(keys <= new[name] for name, keys in old.items())
    assert new.keys() == old.keys() or not walked.same_bytes  # `again` trains stage 1 anew, which stage 2's name tells
    old, new = (make.noised(place / "cache") for place in (walked.before, walked.after))
    assert new[: len(old)] == old and len(new) == MADE["caches"]["noised"] > len(old)


def test_another_run_of_the_recipe_finds_them_too(walked: Walked) -> None:
    """From its first step on: the scores of stage 1 hang on nothing that was trained.

    Scores that were computed in other company differ in a last digit; the end is the same but for that.
    """
    needs_keys(walked)
    steps = [line for line in lines(walked.after / "again" / "log.jsonl") if "step" in line]
    assert [line["reference/computed"] for line in steps if line["stage"] == 0] == [0, 0]
    if walked.same_bytes:
        assert [line["reference/computed"] for line in steps if line["stage"] == 1] == [0, 0, 0, 0]
    same_tensors(walked.after / "again" / WEIGHTS, walked.before / "finished" / WEIGHTS, exactly=False)


def test_the_finished_run_is_left_as_it_is(walked: Walked) -> None:
    files = ["log.jsonl", "pairs.jsonl", "adapter/*", "checkpoint-*/*"]
    assert len(untouched(walked, files)) == 2 + 2 + 2 * 5


# --- files ---


def test_exported_files_are_found_current(walked: Walked) -> None:
    """The pair in three quantisations, by llama.cpp and an importance matrix too, the LoRA and the merged model."""
    found = untouched(walked, ["gguf/*.gguf", "imatrix.gguf", "merged/*"])
    kinds = ["F16-LoRA.gguf", "F16.gguf", "Q6_K.gguf", "Q8_0.gguf", "imatrix.gguf", "merged/minipovid.json"]
    assert [kind for kind in kinds if any(name.endswith(kind) for name in found)] == kinds
    assert "merged/model.safetensors" in found


def test_what_the_trained_model_said_is_found_current(walked: Walked) -> None:
    """verify measures the same files against the same sheet: the same rows, stamps and verdicts, and nearly the same
    figures, which llama.cpp's 16 bits move."""
    assert untouched(walked, ["verify/*"]) == ["verify/trained.safetensors"]
    new, old = (json.loads((place / "finished" / "verify.json").read_text()) for place in (walked.after, walked.before))
    assert old["ok"] is True and new["ok"] is None  # what was called well is now called too few pairs to judge
    old["ok"], old["notes"] = None, [*old["notes"], new["notes"][-1]]
    for row in old["table"]:
        row["verdict"] = {"ok": "too few to judge"}.get(row["verdict"], row["verdict"])
    assert not differences(new, old, exactly=False, atol=0.05)
    assert [row["stamp"] != "" for row in old["table"]] == [False, False, False, True, True]


# --- scores ---


@pytest.mark.parametrize("backend", ["gguf-f16", "hf", "predictions"])
def test_scores_are_found_current(walked: Walked, backend: str) -> None:
    """Nothing is asked again, and the answers are read as they were: protocols, verdicts and figures are the same."""
    if backend == "hf":
        needs_keys(walked)
    new, old = (place / "finished" for place in (walked.after, walked.before))
    for label in ("pope", "chair"):
        name = f"{label}.{backend}"
        scores = [json.loads((run / "scores.json").read_text())[name] for run in (new, old)]
        assert not differences(*scores, exactly=False, rtol=1e-9)
        assert lines(new / "eval" / f"{name}.jsonl") == lines(old / "eval" / f"{name}.jsonl")
        results = [json.loads((run / "eval" / f"{name}.json").read_text()) for run in (new, old)]
        for result, place in zip(results, (walked.after, walked.before), strict=True):
            assert result.pop("pictures") == str(place / "data" / "pictures")
        assert not differences(*results, exactly=False, rtol=1e-9)


def test_nothing_is_asked_again(walked: Walked) -> None:
    """transformers' answers are known by its version, too: where that is another, they alone are asked for."""
    folders = [place / "finished" / "eval" for place in (walked.after, walked.before)]
    assert len({tuple(sorted(path.name for path in folder.iterdir())) for folder in folders}) == 1
    new, old = (lines(folder / "answers.jsonl") for folder in folders)
    assert new[: len(old)] == old and len(old) == 3 * (24 + 4)
    assert len(new) == len(old) or (not walked.same_keys and len(new) == len(old) + 24 + 4)


# --- comparing ---


def needs_keys(walked: Walked) -> None:
    if not walked.same_keys:
        pytest.skip("the keys hold versions, and those of old_run/made.json are others: see old_run/make.py")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def untouched(walked: Walked, patterns: list[str]) -> list[str]:
    """Names of the finished run's files that match; each is as it was unpacked, content and time of writing."""
    old, new = walked.before / "finished", walked.after / "finished"
    names = sorted(str(path.relative_to(old)) for pattern in patterns for path in old.glob(pattern))
    assert names == sorted(str(path.relative_to(new)) for pattern in patterns for path in new.glob(pattern))
    for name in names:
        assert (new / name).stat().st_mtime_ns == make.WRITTEN * 10**9, f"{name} was written again"
        assert (new / name).read_bytes() == (old / name).read_bytes(), name
    return names


def same_tensors(file: Path, other: Path, exactly: bool) -> None:
    if exactly:
        assert digest(file) == digest(other), f"{file} differs from the old code's"
        return
    ours, theirs = load_file(file), load_file(other)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def differences(one: Any, other: Any, exactly: bool, rtol: float = 1e-3, atol: float = 1e-5, at: str = "") -> list[str]:
    """Where two JSON values differ, and how; floats may differ a little, unless `exactly`."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        both: Any = ((f"{at}.{key}", one[key], other[key]) for key in one)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        both = ((f"{at}[{number}]", *each) for number, each in enumerate(zip(one, other, strict=True)))
    else:
        are_floats = isinstance(one, float) and isinstance(other, float) and not exactly
        are_near = math.isclose(one, other, rel_tol=rtol, abs_tol=atol) if are_floats else one == other
        return [] if are_near else [f"{at}: {one} instead of {other}"]
    return [found for place, *each in both for found in differences(*each, exactly, rtol, atol, place)]
