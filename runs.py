"""The folders of runs under OUTPUT_DIR: their names, lock and checkpoints, and what a resume takes over.

A run's folder holds last.safetensors, previous.safetensors (the one before it), the best checkpoints by validation
loss, best_cider.safetensors, log.jsonl and, while it runs, the lock.
"""

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint
import config
import distributed
import mixing

LAST, PREVIOUS, BEST_CIDER = "last.safetensors", "previous.safetensors", "best_cider.safetensors"
_NEW = ".new.safetensors"
_STRAY = re.compile(
    r"\.(\.new|last|previous|best_cider|checkpoint_epoch_\S+)\.safetensors\.\d+\.tmp|\.log\.jsonl\.\d+\.tmp"
    r"|\.nanocaption-\w+|\.new\.safetensors|\.export\.\d+\.tmp"
)


class Resume(NamedTuple):
    """A checkpoint to go on from, the settings to go on with, and what the user should know about them."""

    path: Path
    state: dict[str, Any]
    settings: Any
    notes: list[str]


# --- Folders ---


def new_folder(settings: Any) -> Path:
    """RUN_NAME, or the next free number under OUTPUT_DIR, taken at once; one choice for all ranks.

    SystemExit where RUN_NAME holds a run, except for one that asked for its "last" checkpoint and has no whole one.
    """
    output, name = Path(settings.OUTPUT_DIR), settings.RUN_NAME
    if distributed.rank() == 0 and name is None:
        name = _take_number(output, f"{mixing.folder_name(settings.DATASET)}-")
    elif distributed.rank() == 0 and settings.RESUME_CHECKPOINT_PATH != "last" and _holds_files(output / name):
        raise SystemExit(f"RUN_NAME = {name!r}: {output / name} holds a run. Resume it, or choose another name.")
    return output / distributed.gather([name])[0]


def _take_number(output: Path, prefix: str) -> str:
    names = [path.name.removeprefix(prefix) for path in output.glob("*") if path.name.startswith(prefix)]
    number = max((int(n) for n in names if n.isdecimal()), default=0) + 1
    while True:
        try:
            (output / f"{prefix}{number:03d}").mkdir(parents=True)
        except FileExistsError:
            if not output.is_dir():
                break
            number += 1  # another start was a moment earlier
        except OSError:
            break  # check_writable says why
        else:
            break
    return f"{prefix}{number:03d}"


def _holds_files(folder: Path) -> bool:
    """Whether there is more than the lock of a start that was killed before it had made anything."""
    return folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())


def newest(output_dir: Path | str) -> Path | None:
    """The run under `output_dir` that saved a checkpoint last, by the checkpoints' own clock; None without any."""
    found = []
    for run in sorted(path for path in Path(output_dir).glob("*") if path.is_dir()):
        times = [_saved_at(path) for path in _checkpoints(run)]
        if times:
            found.append((max(times), run))
    return max(found)[1] if found else None


def best_of_newest(output_dir: Path | str) -> Path | None:
    """The best checkpoint of the newest run that has been validated, or else the newest run's last; None without."""
    validated = [run for run in Path(output_dir).glob("*") if run.is_dir() and checkpoint.best_files(run)]
    if validated:
        return checkpoint.best_files(max(validated, key=lambda run: max(map(_saved_at, _checkpoints(run)))))[0]
    run = newest(output_dir)
    return run and next(iter(_checkpoints(run)))


def check_writable(folder: Path) -> None:
    """Raise SystemExit, in the first second of a run, where files cannot be written in `folder` (it is made)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".nanocaption-"):
            pass
    except OSError as error:
        raise SystemExit(f"Cannot write in {folder}: {error.strerror}. Set OUTPUT_DIR to a folder of yours.") from error


def check_space(folder: Path, checkpoint_bytes: int) -> None:
    """Raise SystemExit, before training starts, where the disk cannot hold last, previous, a best and a new one."""
    needed, free = 4 * checkpoint_bytes, checkpoint.free_bytes(folder)
    if free < needed:
        raise SystemExit(
            f"The disk of {folder} has {free / 1e9:.2f} GB free; checkpoints of {checkpoint_bytes / 1e9:.2f} GB need "
            f"{needed / 1e9:.2f} GB (last, previous, best and the one being written). Make room, or set OUTPUT_DIR."
        )


def remove_strays(run: Path) -> None:
    """Delete what a kill in the middle of a write left. Only for the holder of the run's lock."""
    for path in run.iterdir():
        if _STRAY.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold a run's folder; a second process gets SystemExit at once. The kernel frees the lock of a killed process.

    A record lock belongs to this process alone: the workers it forks do not hold it on after a kill.
    """
    if distributed.rank() != 0:
        yield
        return
    with open(run / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip()
            raise SystemExit(f"{run} is in use by {holder}. Wait for it, or set another RUN_NAME.") from None
        except OSError as error:
            print(f"Note: {run} cannot be locked here ({error.strerror}); do not start a second run in it.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            if not _holds_files(run):  # a mistake was found before anything was made
                with contextlib.suppress(OSError):  # a link cannot be removed as a folder
                    (run / ".lock").unlink()
                    run.rmdir()


# --- Checkpoints of a run ---


def save(run: Path, state: dict[str, Any], *, names: Sequence[str], keep: int, last_is_whole: bool) -> None:
    """Write `state` as the run's last.safetensors; the one before becomes previous.safetensors.

    names: further names to give it, as one of the best. keep: how many best ones by validation loss stay in the run.
    last_is_whole: whether the present last.safetensors is known to be sound. If not it is verified first, and a
        damaged one does not displace the previous one: two whole checkpoints stay.
    Every name appears complete or not at all; old files go only after the new one is verified. Raises as
    checkpoint.save.
    """
    new, last = run / _NEW, run / LAST
    try:
        checkpoint.save(new, state)
        for name in names:
            checkpoint.copy(new, run / name)
        if last.exists() and (last_is_whole or _defect(last) is None):
            checkpoint.copy(last, run / PREVIOUS)
        os.replace(new, last)
    finally:
        new.unlink(missing_ok=True)
    checkpoint.sync_folder(run)
    for path in checkpoint.best_files(run)[keep:]:
        path.unlink()


def newest_whole(run: Path) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """(path, state, defects) of the furthest sound checkpoint of a run; defects: what was skipped and why.

    Path and state are None where there is none. Content decides: names and times of files play no part.
    """
    found, defects = [], []
    for number, path in enumerate(_checkpoints(run)):  # last.safetensors first among equals
        try:
            found.append((position(checkpoint.read_header(path)), -number, path))
        except checkpoint.OtherFormat as error:
            raise SystemExit(str(error)) from error
        except ValueError as error:
            defects.append(str(error))
    for _, _, path in sorted(found, reverse=True):
        try:
            return path, checkpoint.load(path), defects
        except ValueError as error:
            defects.append(str(error))
    return None, None, defects


def check_still_newest(run: Path, state: dict[str, Any]) -> None:
    """SystemExit where the run has a sound checkpoint beyond `state`: its former process saved it a moment ago."""
    for path in _checkpoints(run):
        with contextlib.suppress(ValueError):
            if position(checkpoint.read_header(path)) > position(state) and _defect(path) is None:
                raise SystemExit(f"{run} went on while this start was reading it. Start again.")


def set_aside(run: Path, reached: tuple[int, int]) -> list[str]:
    """Rename checkpoints of the run that lie beyond position `reached`, and unreadable ones, to replaced_*.

    A run that goes on from an earlier checkpoint would overwrite them. Returns the new names.
    """
    names = []
    for path in _checkpoints(run):
        with contextlib.suppress(ValueError):  # what cannot be read is set aside, too
            if position(checkpoint.read_header(path)) <= reached and _defect(path) is None:
                continue
        target, number = run / f"replaced_{path.name}", 1
        while target.exists():
            number += 1
            target = run / f"replaced_{number}_{path.name}"
        path.rename(target)
        names.append(target.name)
    return names


def position(state: dict[str, Any]) -> tuple[int, int]:
    """How far a checkpoint is: (finished optimizer steps, finished epochs). ValueError where it does not say."""
    try:
        return int(state["step"]), int(state["epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a checkpoint without a position: {error!r}") from error


def _checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint files by name: last, previous, best ones."""
    names = [run / LAST, run / PREVIOUS, run / BEST_CIDER]
    return [path for path in names if path.is_file()] + checkpoint.best_files(run)


def _saved_at(path: Path) -> float:
    """Seconds since 1970, by the checkpoint's own word; by the file's time where it cannot be read."""
    try:
        return float(checkpoint.read_header(path)["saved_at"])
    except (ValueError, KeyError, TypeError):
        return path.stat().st_mtime


def _same_newest(run: Path, other: Path) -> bool:
    times = [max(map(_saved_at, _checkpoints(one)), default=0.0) for one in (run, other) if one.is_dir()]
    return len(times) == 2 and times[0] == times[1] > 0


def _defect(path: Path) -> str | None:
    try:
        checkpoint.load(path)
    except ValueError as error:
        return str(error)
    return None


# --- What a resume takes over ---


def find_resume(settings: Any, argv: list[str]) -> tuple[Resume | None, list[str]]:
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
        return _resume(Path(given), state, argv), []
    output = Path(settings.OUTPUT_DIR)
    run = output / settings.RUN_NAME if settings.RUN_NAME else newest(output)
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
    return _resume(path, state, argv), notes


def _resume(path: Path, saved: dict[str, Any], argv: list[str]) -> Resume:
    """The resumed run keeps its own settings, but for what was changed since, in config.py, by recipe or by flag.

    SystemExit, naming old -> new, where a change would make it another run.
    """
    keep = config.unchanged_since(saved["config_constants"]) - {"RESUME_CHECKPOINT_PATH", "INIT_CHECKPOINT_PATH"}
    settings = config.load(argv, base={name: saved["config"][name] for name in keep if name in saved["config"]})
    if settings.BATCH_SIZE == "auto":  # asked for again: what was found at the start stays
        settings = dataclasses.replace(settings, BATCH_SIZE=saved["config"]["BATCH_SIZE"])
    refused = config.differences(settings, saved["config"], config.RESUME_SETTINGS)
    if settings.RUN_NAME not in (None, saved["config"]["RUN_NAME"], path.parent.name):
        refused.append(f"RUN_NAME: {path.parent.name!r} -> {settings.RUN_NAME!r}")
    old, new = (
        (values["BATCH_SIZE"], values["GRAD_ACCUM_STEPS"], processes)
        for values, processes in (
            (saved["config"], len(saved["rng_state_dict"]) or 1),
            (config.as_dict(settings), distributed.world_size_of_environment()),
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
    if old != new or config.differences(settings, saved["config"], rounding):
        what = "processes, micro-batches, FSDP or CACHE_FEATURES"
        notes.append(f"Other {what}: the same data and order, but sums may round otherwise.")
    silent = {*config.RESUME_SETTINGS, "RESUME_CHECKPOINT_PATH", "INIT_CHECKPOINT_PATH", "RUN_NAME"}
    changed = config.differences(settings, saved["config"], [n for n in config.CONSTANTS if n not in silent])
    notes += [f"changed since: {line}" for line in changed]
    stretched = settings.NUM_EPOCHS not in (saved["config"]["NUM_EPOCHS"], *range(saved["epoch"] + 1))
    if stretched and settings.LR_SCHEDULE in ("linear", "cosine"):
        notes.append(f"The {settings.LR_SCHEDULE} schedule now ends with the new NUM_EPOCHS; it followed the old one.")
    return Resume(path, saved, settings, notes)


def load_initial(settings: Any) -> dict[str, Any]:
    """The checkpoint of INIT_CHECKPOINT_PATH. ValueError, naming old -> new, where the settings want another model."""
    initial = checkpoint.load(settings.INIT_CHECKPOINT_PATH)
    free = (*config.DATA_SETTINGS, "VOCAB_SIZE", "FREEZE_ENCODER")
    names = [name for name in config.CHECKPOINT_SETTINGS if name not in free]
    changed = config.differences(settings, initial["config"], names)
    if changed:
        raise ValueError(
            f"INIT_CHECKPOINT_PATH {settings.INIT_CHECKPOINT_PATH} is another model: {'; '.join(changed)}. Set these "
            "back, or leave it out"
        )
    return initial
