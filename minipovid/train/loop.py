"""Training: pairs in, one adapter out, in a folder that says everything about the run (recipe/run_folder.py).

    loop.py                  stage after stage
    stage.py                 which pairs when, at what rate; checkpoints
    step.py                  one optimiser step
    stages/preference.py     what policy and reference say of a batch
    losses/povid.py          what that is worth

The same call on the same folder resumes. A run that was killed and resumed ends with the same bytes as one that was
not (on a CPU; CUDA's attention adds up in an order of its own). Under `accelerate launch` every process computes its
share of each step, and the first one writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from accelerate.utils import get_int_from_env

from minipovid.common import interrupts
from minipovid.common.errors import MinipovidError
from minipovid.common.files import alone, finished
from minipovid.models.device import is_out_of_memory
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe
from minipovid.train import checkpoint, plan
from minipovid.train.checkpoint import Position
from minipovid.train.run import Run
from minipovid.train.stage import Stage


def train(recipe: Recipe, folder: Path, progress: bool = True) -> Path:
    """Train every stage of `recipe` into the run folder and return it; a finished run is left as it is.

    Raises MinipovidError for bad input, where another process trains there and where memory runs out, and
    KeyboardInterrupt, with a checkpoint saved, on Ctrl-C.
    """
    with memory_explained(folder), _claimed(folder):
        run = Run.open(recipe, folder, progress)
        if run is not None:
            with interrupts.deferred(run.interrupted.set):
                for _ in steps(run):
                    pass
    return folder


@contextmanager
def memory_explained(folder: Path) -> Iterator[None]:
    """Within: memory that runs out for the run of `folder` becomes a MinipovidError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if _is_out_of_shared_memory(error):
            raise MinipovidError(
                "The processes that prepare pictures ran out of shared memory (/dev/shm; Docker gives 64 MB): start "
                "the container with --shm-size=2g or --ipc=host, or set train.dataloader_num_workers: 0."
            ) from None
        if not is_out_of_memory(error):
            raise
        begun = checkpoint.exists(folder)
        other = " Settings that would change the result want another --out, as this run has begun." if begun else ""
        raise MinipovidError(plan.advice(run_folder.recipe(folder)) + other) from None


def _claimed(folder: Path) -> AbstractContextManager[None]:
    """The folder for this training alone. Of the processes of one training the first holds it, for all of them."""
    rank = get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0)  # as accelerate
    return alone(folder) if rank == 0 else nullcontext()


def steps(run: Run) -> Iterator[Position]:
    """Take every step that is left, stage after stage, one for each item; then write the adapter."""
    run.tracked.start(run.accelerator, run.recipe, run.folder, run.position.global_step)
    for index in range(run.position.stage, len(run.recipe.stages)):
        for position in Stage(run, index).steps():
            run.position = position
            yield position
    if run.accelerator.is_main_process:
        with finished(run.folder / run_folder.ADAPTER) as draft:
            run.model.save_adapter(draft)
    run.accelerator.wait_for_everyone()
    run.tracked.finish(run.accelerator)


def _is_out_of_shared_memory(error: RuntimeError) -> bool:
    """Workers hand batches on through /dev/shm: torch says how they end there, in several ways."""
    text = str(error)
    return "shared memory" in text or "/torch_" in text and "No space left" in text
