"""The folders of runs under OUTPUT_DIR: their names, lock and checkpoints, and what a resume takes over.

A run's folder holds last.safetensors, previous.safetensors (the one before it), the best checkpoints by validation
loss, best_cider.safetensors, log.jsonl and, while it runs, the lock.
"""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanocaption.base import devices
from nanocaption.base.files import free_bytes, link_or_copy, sync_to_disk
from nanocaption.base.settings import Settings
from nanocaption.base.tensors import State
from nanocaption.data.prepared import folder_name
from nanocaption.runs import checkpoint

_BEST = re.compile(r"checkpoint_epoch_(\d+)_val_loss_(\d+\.\d{4})\.safetensors")


def best_name(epoch: int, val_loss: float) -> str:
    return f"checkpoint_epoch_{epoch}_val_loss_{val_loss:.4f}.safetensors"


def best_files(run: Path) -> list[Path]:
    """The best checkpoints of a run's folder, lowest validation loss first, the later one of two equal names."""
    found = [(float(m[2]), -int(m[1]), path) for path in run.iterdir() if (m := _BEST.fullmatch(path.name))]
    return [path for _, _, path in sorted(found)]


def best_of(run: Path) -> Path | None:
    """The checkpoint of a run to use: that of the lowest validation loss, and of a run with OBJECTIVE "scst", which
    raises that loss, that of the best CIDEr. None where nothing has been validated."""
    by_loss, by_cider = next(iter(best_files(run)), None), run / BEST_CIDER
    if by_cider.is_file():
        with contextlib.suppress(ValueError):  # a damaged one
            config = checkpoint.read_header(by_cider)["config"]
            if isinstance(config, dict) and config.get("OBJECTIVE") == "scst":
                return by_cider
    return by_loss


LAST, PREVIOUS, BEST_CIDER = "last.safetensors", "previous.safetensors", "best_cider.safetensors"
_NEW = ".new.safetensors"
_STRAY = re.compile(r"\.\S+\.\d+\.tmp|\.nanocaption-\w+|\.new\.safetensors")  # of files.beside and of this module


def is_name_of_run(name: str) -> bool:
    """Whether training gives this name to a checkpoint in its folder."""
    return name in (LAST, PREVIOUS, BEST_CIDER) or _BEST.fullmatch(name) is not None


def new_folder(settings: Settings) -> Path:
    """RUN_NAME, or the next free number under OUTPUT_DIR, taken at once; one choice for all ranks.

    SystemExit where RUN_NAME holds a run, except for one that asked for its "last" checkpoint and has no whole one.
    """
    output, name = Path(settings.OUTPUT_DIR), settings.RUN_NAME
    if devices.rank() == 0 and name is None:
        name = _take_number(output, f"{folder_name(settings.DATASET)}-")
    elif devices.rank() == 0 and settings.RESUME_CHECKPOINT_PATH != "last" and _holds_files(output / name):
        raise SystemExit(f"RUN_NAME = {name!r}: {output / name} holds a run. Resume it, or choose another name.")
    return output / devices.gather([name])[0]


def _take_number(output: Path, prefix: str) -> str:
    """The first free number; its folder is made at once. Where none can be made, check_writable says why."""
    names = [path.name.removeprefix(prefix) for path in output.glob("*") if path.name.startswith(prefix)]
    number = max((int(n) for n in names if n.isdecimal()), default=0) + 1
    with contextlib.suppress(OSError):
        output.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.suppress(FileExistsError):  # another start was a moment earlier
                (output / f"{prefix}{number:03d}").mkdir()
                break
            number += 1
    return f"{prefix}{number:03d}"


def _holds_files(folder: Path) -> bool:
    """Whether there is more than the lock of a start that was killed before it had made anything."""
    return folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())


def newest_run(output_dir: Path | str) -> Path | None:
    """The run under `output_dir` that saved a checkpoint last, by the checkpoints' own clock; None without any."""
    return max(_runs(output_dir), key=lambda run: (_last_save(run), run), default=None)


def best_of_newest(output_dir: Path | str) -> Path | None:
    """The best checkpoint of the newest run that has been validated, or else the newest run's last; None without."""
    validated = {run: best for run in _runs(output_dir) if (best := best_of(run))}
    if validated:
        return validated[max(validated, key=_last_save)]
    run = newest_run(output_dir)
    return run and _checkpoints(run)[0]


def copies_of(run: Path, output_dir: Path) -> list[Path]:
    """Other runs under `output_dir` whose newest checkpoint is that of `run`."""
    return [other for other in _runs(output_dir) if other != run and _last_save(other) == _last_save(run) > 0]


def _runs(output_dir: Path | str) -> list[Path]:
    return [path for path in Path(output_dir).glob("*") if path.is_dir() and _checkpoints(path)]


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
    needed, free = 4 * checkpoint_bytes, free_bytes(folder)
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
    if devices.rank() != 0:
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


def save_checkpoint(run: Path, state: State, *, names: Sequence[str], keep: int, last_is_whole: bool) -> None:
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
            link_or_copy(new, run / name, sync=True)
        if last.exists() and (last_is_whole or _defect(last) is None):
            link_or_copy(last, run / PREVIOUS, sync=True)
        os.replace(new, last)
    finally:
        new.unlink(missing_ok=True)
    sync_to_disk(run)
    for path in best_files(run)[keep:]:
        path.unlink()


def newest_whole(run: Path) -> tuple[Path | None, State | None, list[str]]:
    """(path, state, defects) of the furthest sound checkpoint of a run; defects: what was skipped and why.

    Path and state are None where there is none. Content decides: names and times of files play no part.
    """
    found, defects = [], []
    for number, path in enumerate(_checkpoints(run)):  # last.safetensors first among equals
        try:
            found.append((_position_of(checkpoint.read_header(path)), -number, path))
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


def check_still_newest(run: Path, state: State) -> None:
    """SystemExit where the run has a sound checkpoint beyond `state`: its former process saved it a moment ago."""
    for path in _checkpoints(run):
        with contextlib.suppress(ValueError):
            if _position_of(checkpoint.read_header(path)) > _position_of(state) and _defect(path) is None:
                raise SystemExit(f"{run} went on while this start was reading it. Start again.")


def set_aside(run: Path, reached: tuple[int, int]) -> list[str]:
    """Rename checkpoints of the run that lie beyond position `reached`, and unreadable ones, to replaced_*.

    A run that goes on from an earlier checkpoint would overwrite them. Returns the new names.
    """
    names = []
    for path in _checkpoints(run):
        with contextlib.suppress(ValueError):  # what cannot be read is set aside, too
            if _position_of(checkpoint.read_header(path)) <= reached and _defect(path) is None:
                continue
        target, number = run / f"replaced_{path.name}", 1
        while target.exists():
            number += 1
            target = run / f"replaced_{number}_{path.name}"
        path.rename(target)
        names.append(target.name)
    return names


def _position_of(state: Mapping[str, Any]) -> tuple[int, int]:
    """How far a checkpoint is: (finished optimizer steps, finished epochs). ValueError where it does not say."""
    try:
        return int(state["step"]), int(state["epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a checkpoint without a position: {error!r}") from error


def _checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint files by name: last, previous, best ones."""
    names = [run / LAST, run / PREVIOUS, run / BEST_CIDER]
    return [path for path in names if path.is_file()] + best_files(run)


def _saved_at(path: Path) -> float:
    """Seconds since 1970, by the checkpoint's own word; by the file's time where it cannot be read."""
    try:
        return float(str(checkpoint.read_header(path)["saved_at"]))
    except (ValueError, KeyError, TypeError):
        return path.stat().st_mtime


def _last_save(run: Path) -> float:
    return max(map(_saved_at, _checkpoints(run)))


def _defect(path: Path) -> str | None:
    try:
        checkpoint.load(path)
    except ValueError as error:
        return str(error)
    return None
