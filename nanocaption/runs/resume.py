"""What a resume takes over from a checkpoint, and what a fresh run takes from one: settings, position, weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nanocaption.base import devices
from nanocaption.base.settings import (
    AS_BEFORE,
    CHECKPOINT_SETTINGS,
    DATA_SETTINGS,
    RESUME_SETTINGS,
    Settings,
    differences,
    unchanged_since,
)
from nanocaption.base.tensors import State
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import copies_of, newest_run, newest_whole


class Start(NamedTuple):
    """What a training begins with."""

    settings: Settings
    notes: Sequence[str] = ()  # for the user
    path: Path | None = None  # the checkpoint to go on from, and what it holds; None: a fresh start
    state: State | None = None
    initial: State | None = None  # the checkpoint whose weights a fresh start takes


def find_resume(settings: Settings) -> Start:
    """What RESUME_CHECKPOINT_PATH means.

    A path must lead to a sound checkpoint: SystemExit names the defect. "last" is the furthest sound checkpoint of the
    newest run under OUTPUT_DIR, or of RUN_NAME where it is set; a fresh start where there is none.
    """
    if settings.RESUME_CHECKPOINT_PATH != "last":
        path = Path(settings.RESUME_CHECKPOINT_PATH)
        return _resume(path, _load_given(path), settings)
    output = Path(settings.OUTPUT_DIR)
    run = output / settings.RUN_NAME if settings.RUN_NAME else newest_run(output)
    fresh = "RESUME_CHECKPOINT_PATH = 'last': no {} in {}: THIS IS A FRESH START."
    if run is None or not run.is_dir():
        return Start(settings, [fresh.format("checkpoint", run or f"any run under {output}")])
    if not settings.RUN_NAME and (twins := copies_of(run, output)):
        raise SystemExit(
            f"RESUME_CHECKPOINT_PATH = 'last': {run} and {twins[0]} have the same newest checkpoint, one is a copy. "
            "Set RUN_NAME to the one to go on with."
        )
    found, state, defects = newest_whole(run)
    notes = [f"skipped: {defect}" for defect in defects]
    if found is None or state is None:
        return Start(settings, [*notes, fresh.format("whole checkpoint", run)])
    return _resume(found, state, settings, notes)


def _load_given(path: Path) -> State:
    if path.is_dir():
        raise SystemExit(f"RESUME_CHECKPOINT_PATH = '{path}' is a folder: name a file of it, or 'last', RUN_NAME.")
    if not path.is_file():
        raise SystemExit(f"RESUME_CHECKPOINT_PATH = '{path}': no such file. Give a checkpoint, 'last' or none.")
    try:
        return checkpoint.load(path)
    except ValueError as error:
        raise SystemExit(f"Cannot resume: {error}") from error


def _resume(path: Path, saved: State, settings: Settings, notes: Sequence[str] = ()) -> Start:
    """The resumed run keeps its own settings, but for what was changed since, in config.py, by recipe or by flag.

    SystemExit, naming old -> new, where a change would make it another run, and for a mean of checkpoints.
    """
    if saved.get("average_of"):
        raise SystemExit(
            f"Cannot resume: {path} is a mean of checkpoints, which has no optimizer state. Resume one of its members, "
            f"or start a fresh run from it with --init-checkpoint-path {path}"
        )
    keep = unchanged_since(settings, saved["config_constants"]) - {"RESUME_CHECKPOINT_PATH", "INIT_CHECKPOINT_PATH"}
    settings = settings.on({name: saved["config"][name] for name in keep if name in saved["config"]})
    for name in ("BATCH_SIZE", "NUM_EPOCHS"):
        if settings.values[name] == "auto":  # asked for again: what was found at the start stays
            settings = settings.replace(**{name: saved["config"][name]})
    processes = saved.get("environment", {}).get("processes", 1)
    old = (saved["config"]["BATCH_SIZE"], saved["config"]["GRAD_ACCUM_STEPS"], processes)
    new = (settings.BATCH_SIZE, settings.GRAD_ACCUM_STEPS, devices.world_size_of_environment())
    _refuse_another_run(path, saved, settings, old, new)
    return Start(settings, [*notes, *_notes(saved, settings, divided_otherwise=old != new)], path, saved)


def _refuse_another_run(
    path: Path, saved: State, settings: Settings, old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    """SystemExit, naming old -> new, where the settings, or the division of a step's captions, make it another run."""
    refused = differences(settings, AS_BEFORE | saved["config"], RESUME_SETTINGS)
    if settings.RUN_NAME not in (None, saved["config"]["RUN_NAME"], path.parent.name):
        refused.append(f"RUN_NAME: {path.parent.name!r} -> {settings.RUN_NAME!r}")
    if math.prod(old) != math.prod(new):
        refused.append(
            f"BATCH_SIZE x GRAD_ACCUM_STEPS x processes: {' x '.join(map(str, old))} -> {' x '.join(map(str, new))} "
            f"(the product, {math.prod(old)} captions a step, must stay: {_division(math.prod(old), new[2])})"
        )
    if refused:
        raise SystemExit(
            f"Going on from {path} continues the same run, so these cannot change (start a fresh run for them, with "
            "--init-checkpoint-path to begin with its weights):\n" + "\n".join(f"  - {line}" for line in refused)
        )


def _division(product: int, processes: int) -> str:
    """How so many captions a step can be shared by so many processes."""
    if product % processes == 0:
        return f"{processes} processes need a BATCH_SIZE x GRAD_ACCUM_STEPS of {product // processes}"
    divisors = [number for number in range(1, 65) if product % number == 0]
    return f"{processes} processes cannot share them equally, {', '.join(map(str, divisors))} can"


def _notes(saved: State, settings: Settings, divided_otherwise: bool) -> list[str]:
    """What changed since the run was saved, and what follows from it."""
    notes = []
    rounding = ["FSDP", *(["CACHE_FEATURES"] if settings.FREEZE_ENCODER else [])]  # features are kept in float16
    if divided_otherwise or differences(settings, saved["config"], rounding):
        what = "processes, micro-batches, FSDP or CACHE_FEATURES"
        notes.append(f"Other {what}: the same data and order, but sums may round otherwise.")
    silent = {*RESUME_SETTINGS, "RESUME_CHECKPOINT_PATH", "INIT_CHECKPOINT_PATH", "RUN_NAME"}
    changed = differences(settings, saved["config"], [n for n in settings.values if n not in silent])
    notes += [f"changed since: {line}" for line in changed]
    stretched = settings.NUM_EPOCHS not in (saved["config"]["NUM_EPOCHS"], *range(saved["epoch"] + 1))
    if stretched and settings.LR_SCHEDULE in ("linear", "cosine"):
        notes.append(f"The {settings.LR_SCHEDULE} schedule now ends with the new NUM_EPOCHS; it followed the old one.")
    average = "raw_state_dict" in saved
    if settings.EMA_DECAY and not average:
        notes.append("EMA_DECAY is new: the average begins with the weights of this checkpoint; validations before "
                     "it were of the weights themselves.")  # fmt: skip
    if average and not settings.EMA_DECAY:
        notes.append("EMA_DECAY is 0 now: the average ends, the weights themselves go on; validations before this were "
                     "of the average.")  # fmt: skip
    return notes


def load_initial(settings: Settings) -> State:
    """The checkpoint of INIT_CHECKPOINT_PATH. ValueError, naming old -> new, where the settings want another model."""
    initial = checkpoint.load(settings.INIT_CHECKPOINT_PATH)
    free = (*DATA_SETTINGS, "VOCAB_SIZE", "FREEZE_ENCODER", "QUESTIONS")
    names = [name for name in CHECKPOINT_SETTINGS if name not in free]
    changed = differences(settings, initial["config"], names)
    if changed:
        raise ValueError(
            f"INIT_CHECKPOINT_PATH {settings.INIT_CHECKPOINT_PATH} is another model: {'; '.join(changed)}. Set these "
            "back, or leave it out"
        )
    return initial
