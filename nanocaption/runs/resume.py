"""What a resume takes over from a checkpoint, and what a fresh run takes from one: settings, position, weights."""

from pathlib import Path
from typing import Any, NamedTuple

from nanocaption.base import devices
from nanocaption.base.settings import (
    CHECKPOINT_SETTINGS,
    DATA_SETTINGS,
    RESUME_SETTINGS,
    Settings,
    differences,
    unchanged_since,
)
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import _same_newest, newest_run, newest_whole


class Resume(NamedTuple):
    """A checkpoint to go on from, the settings to go on with, and what the user should know about them."""

    path: Path
    state: dict[str, Any]
    settings: Settings
    notes: list[str]


def find_resume(settings: Settings) -> tuple[Resume | None, list[str]]:
    """What RESUME_CHECKPOINT_PATH means, and notes for the user.

    A path must lead to a sound checkpoint: SystemExit names the defect. "last" is the furthest sound checkpoint of the
    newest run under OUTPUT_DIR, or of RUN_NAME where it is set; (None, notes) where there is none: a fresh start.
    """
    given = settings.RESUME_CHECKPOINT_PATH
    if given != "last":
        if Path(given).is_dir():
            raise SystemExit(f"RESUME_CHECKPOINT_PATH = {given!r} is a folder: name a file of it, or 'last', RUN_NAME.")
        if not Path(given).is_file():
            raise SystemExit(f"RESUME_CHECKPOINT_PATH = {given!r}: no such file. Give a checkpoint, 'last' or none.")
        try:
            state = checkpoint.load(given)
        except ValueError as error:
            raise SystemExit(f"Cannot resume: {error}") from error
        return _resume(Path(given), state, settings), []
    output = Path(settings.OUTPUT_DIR)
    run = output / settings.RUN_NAME if settings.RUN_NAME else newest_run(output)
    if run is None or not run.is_dir():
        place = run or f"any run under {output}"
        return None, [f"RESUME_CHECKPOINT_PATH = 'last': no checkpoint in {place}: THIS IS A FRESH START."]
    names = [] if settings.RUN_NAME else output.glob("*")
    twins = [other for other in names if other != run and _same_newest(run, other)]
    if twins:
        raise SystemExit(
            f"RESUME_CHECKPOINT_PATH = 'last': {run} and {twins[0]} have the same newest checkpoint, one is a copy. "
            "Set RUN_NAME to the one to go on with."
        )
    path, state, defects = newest_whole(run)
    notes = [f"skipped: {defect}" for defect in defects]
    if state is None:
        return None, [*notes, f"RESUME_CHECKPOINT_PATH = 'last': no whole checkpoint in {run}: THIS IS A FRESH START."]
    return _resume(path, state, settings), notes


def _resume(path: Path, saved: dict[str, Any], settings: Settings) -> Resume:
    """The resumed run keeps its own settings, but for what was changed since, in config.py, by recipe or by flag.

    SystemExit, naming old -> new, where a change would make it another run.
    """
    keep = unchanged_since(settings, saved["config_constants"]) - {"RESUME_CHECKPOINT_PATH", "INIT_CHECKPOINT_PATH"}
    settings = settings.on({name: saved["config"][name] for name in keep if name in saved["config"]})
    if settings.BATCH_SIZE == "auto":  # asked for again: what was found at the start stays
        settings = settings.replace(BATCH_SIZE=saved["config"]["BATCH_SIZE"])
    refused = differences(settings, saved["config"], RESUME_SETTINGS)
    if settings.RUN_NAME not in (None, saved["config"]["RUN_NAME"], path.parent.name):
        refused.append(f"RUN_NAME: {path.parent.name!r} -> {settings.RUN_NAME!r}")
    old, new = (
        (values["BATCH_SIZE"], values["GRAD_ACCUM_STEPS"], processes)
        for values, processes in (
            (saved["config"], len(saved["rng_state_dict"]) or 1),
            (settings.values, devices.world_size_of_environment()),
        )
    )
    if old[0] * old[1] * old[2] != new[0] * new[1] * new[2]:
        refused.append(
            f"BATCH_SIZE x GRAD_ACCUM_STEPS x processes: {' x '.join(map(str, old))} -> {' x '.join(map(str, new))} "
            f"(the product, {old[0] * old[1] * old[2]} captions a step, must stay)"
        )
    if refused:
        raise SystemExit(
            f"Going on from {path} continues the same run, so these cannot change (start a fresh run for them, with "
            "--init-checkpoint-path to begin with its weights):\n" + "\n".join(f"  - {line}" for line in refused)
        )
    notes = []
    rounding = ["FSDP", *(["CACHE_FEATURES"] if settings.FREEZE_ENCODER else [])]  # features are kept in float16
    if old != new or differences(settings, saved["config"], rounding):
        what = "processes, micro-batches, FSDP or CACHE_FEATURES"
        notes.append(f"Other {what}: the same data and order, but sums may round otherwise.")
    silent = {*RESUME_SETTINGS, "RESUME_CHECKPOINT_PATH", "INIT_CHECKPOINT_PATH", "RUN_NAME"}
    changed = differences(settings, saved["config"], [n for n in settings.values if n not in silent])
    notes += [f"changed since: {line}" for line in changed]
    stretched = settings.NUM_EPOCHS not in (saved["config"]["NUM_EPOCHS"], *range(saved["epoch"] + 1))
    if stretched and settings.LR_SCHEDULE in ("linear", "cosine"):
        notes.append(f"The {settings.LR_SCHEDULE} schedule now ends with the new NUM_EPOCHS; it followed the old one.")
    return Resume(path, saved, settings, notes)


def load_initial(settings: Settings) -> dict[str, Any]:
    """The checkpoint of INIT_CHECKPOINT_PATH. ValueError, naming old -> new, where the settings want another model."""
    initial = checkpoint.load(settings.INIT_CHECKPOINT_PATH)
    free = (*DATA_SETTINGS, "VOCAB_SIZE", "FREEZE_ENCODER")
    names = [name for name in CHECKPOINT_SETTINGS if name not in free]
    changed = differences(settings, initial["config"], names)
    if changed:
        raise ValueError(
            f"INIT_CHECKPOINT_PATH {settings.INIT_CHECKPOINT_PATH} is another model: {'; '.join(changed)}. Set these "
            "back, or leave it out"
        )
    return initial
