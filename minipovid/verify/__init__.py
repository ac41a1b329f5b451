"""Does the exported file answer as the trained model does? What did quantisation cost? If it is more, why?

    verdict = verify(Path("runs/my-run"))
    verdict.ok (None: too few pairs to judge), verdict.table(), verdict.causes      # also in RUN/verify.json

Pairs that training never saw go, with their pictures, through the trained model in transformers, the merged weights and
every GGUF in RUN/gguf. Beside these numbers stand checks that need no threshold on answers: a file's weights against
base + adapter (weights.py), its tokens (tokens.py) and how it sees a picture (vision.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.common.files import alone, finished
from minipovid.pairs import source
from minipovid.recipe import run_folder
from minipovid.verify import inputs
from minipovid.verify.inputs import VerifyProgress
from minipovid.verify.table import VerifyTable
from minipovid.verify.verdict import Verdict

__all__ = ["Verdict", "VerifyProgress", "verify"]


def verify(
    run: Path,
    quants: Sequence[str] | None = None,
    pairs: int = 32,
    progress: VerifyProgress | None = None,
    n_gpu_layers: int | None = None,
) -> Verdict:
    """Compare every GGUF of a run (or those of `quants`) with the trained model on `pairs` held-out pairs.

    `progress` is called with (who is being asked, pairs done, pairs in all); `n_gpu_layers` go to llama.cpp (Runtime).

    Writes RUN/verify.json, and keeps what the trained model said in RUN/verify. Raises MinipovidError where there are
    no files to verify, or neither the trained model's sheet nor the means to compute it, and where another process
    verifies this run.
    """
    if pairs < 1:
        raise MinipovidError(f"Verifying takes at least one pair, and {pairs} were asked for.")
    recipe, notes = inputs.settings(run), list[str]()
    names = inputs.quantisations(run, quants)
    held_out = inputs.held_out(run, recipe, pairs, notes)
    origin, root = inputs.origin(run, recipe, notes), source.locate(recipe.data)[1]
    table = VerifyTable(run, recipe, held_out, root, origin, progress or (lambda who, done, total: None), n_gpu_layers)
    with alone(run / run_folder.VERIFY):
        verdict = Verdict.of(table.rows(names, notes), len(held_out), notes)
        with finished(run / run_folder.VERDICT) as draft:
            draft.write_text(json.dumps(verdict.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return verdict
