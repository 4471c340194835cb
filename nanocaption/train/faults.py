"""What a training run says when something goes wrong."""

import sys

import torch
from tqdm import tqdm

from nanocaption.base import devices
from nanocaption.data.order import Group
from nanocaption.runs.log import write_row
from nanocaption.train.setup import Progress, Run
from nanocaption.train.step import Found


def explain_fault(run: Run, error: BaseException) -> str | None:
    """For an error of the machine: what happened and what to change."""
    if isinstance(error, torch.OutOfMemoryError):
        captioned = "" if run.model.training else (
            f" A validation captions {run.settings.EVAL_BATCH_SIZE} pictures at once: lower EVAL_BATCH_SIZE as well."
        )
        return (
            f"{run.device} is out of memory with BATCH_SIZE = {run.settings.BATCH_SIZE} captions at a time. Halve "
            "BATCH_SIZE and double GRAD_ACCUM_STEPS: the same steps in smaller parts, which a resume accepts."
            f"{captioned}"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            f"A process that reads pictures died ({str(error).splitlines()[0]}). Most often the memory they share, "
            "/dev/shm, or the machine's memory was full: lower NUM_WORKERS, 0 reads without such processes."
        )
    return None


def pictures_of_step(run: Run, groups: list[list[Group]]) -> list[str]:
    """The names of a step's pictures on all ranks, which ask for them together."""
    return devices.gather([run.train_set.paths[image].name for batch in groups for image, *_ in batch])


def report_nonfinite(run: Run, progress: Progress, names: list[str], found: Found, bar: tqdm) -> None:
    """Log a skipped step with its pictures, so that a bad one can be found."""
    row = {
        "type": "nonfinite", "step": progress.step, "epoch": progress.epoch, "loss": str(found.loss),
        "grad_norm": str(found.norm), "images": names,
    }  # fmt: skip
    write_row(run.log, row)
    if devices.rank() == 0:
        bar.write(
            f"Step {progress.step}: loss {found.loss}, gradient norm {found.norm}: skipped, the weights stay. Its "
            f"{len(names)} pictures are in log.jsonl, the first is {names[0]}."
        )


def check_sound(run: Run, progress: Progress) -> None:
    """Raise SystemExit where training has come to nothing: too many skipped steps, no scale at which fp16 is finite."""
    settings = run.settings
    if progress.nonfinite_in_a_row >= settings.MAX_NONFINITE_STEPS:
        raise SystemExit(
            f"Step {progress.step}: no finite loss and gradient in MAX_NONFINITE_STEPS = {progress.nonfinite_in_a_row} "
            f"steps in a row, all skipped. Begin a fresh run from the last good weights (INIT_CHECKPOINT_PATH) with a "
            f"LEARNING_RATE below {settings.LEARNING_RATE} or PRECISION = 'fp32'."
        )
    if run.scaler.is_enabled() and run.scaler.get_scale() < 2**-10:
        raise SystemExit(
            f"Step {progress.step}: fp16 gradients overflow at every scale: begin a fresh run (INIT_CHECKPOINT_PATH) "
            "with PRECISION = 'fp32' or 'bf16'."
        )


def tell_problem(run: Run) -> None:
    """Say that a checkpoint could not be written, and go on: it is tried again."""
    problem = run.saver.problem()
    if problem:
        write_row(run.log, {"type": "save_failed", "problem": problem})
        tqdm.write(f"WARNING: {problem} Training goes on and tries again.", file=sys.stderr)
