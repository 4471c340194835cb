"""The folders of runs under OUTPUT_DIR: a new one, the newest, the lock, and what a resume takes over."""

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoint
import config
import distributed


def new_folder(settings: Any) -> Path:
    """RUN_NAME, which must be new, or the next free number under OUTPUT_DIR; one choice for all ranks."""
    output = Path(settings.OUTPUT_DIR)
    name = settings.RUN_NAME
    if name is None:
        numbers = [path.name.removeprefix(f"{settings.DATASET}-") for path in output.glob(f"{settings.DATASET}-*")]
        name = f"{settings.DATASET}-{max((int(n) for n in numbers if n.isdecimal()), default=0) + 1:03d}"
    elif distributed.rank() == 0 and (output / name).is_dir() and any((output / name).iterdir()):
        raise SystemExit(f"RUN_NAME = {name!r}: {output / name} holds a run. Resume it, or choose another name.")
    return output / distributed.gather([name])[0]


def newest(output_dir: Path | str) -> Path | None:
    """The run under `output_dir` whose last.safetensors is the newest of all; None without any."""
    found = [(path.stat().st_mtime, path.parent) for path in Path(output_dir).glob("*/last.safetensors")]
    return max(found)[1] if found else None


def resume_path(settings: Any) -> Path:
    """The checkpoint RESUME_CHECKPOINT_PATH means. SystemExit where it is not there: never a silent fresh start."""
    given = settings.RESUME_CHECKPOINT_PATH
    if given == "last":
        run = newest(settings.OUTPUT_DIR)
        if run is None:
            raise SystemExit(f"RESUME_CHECKPOINT_PATH = 'last': no run under {settings.OUTPUT_DIR!r} has a checkpoint.")
        return run / "last.safetensors"
    if not Path(given).is_file():
        raise SystemExit(f"RESUME_CHECKPOINT_PATH = {given!r}: no such file. Give a checkpoint, 'last' or none.")
    return Path(given)


def load_initial(settings: Any) -> dict[str, Any]:
    """The checkpoint of INIT_CHECKPOINT_PATH. ValueError, naming old -> new, where the settings want another model."""
    initial = checkpoint.load(settings.INIT_CHECKPOINT_PATH)
    free = ("DATASET", "DATA_CUTOFF", "DATA_SEED", "VOCAB_SIZE", "FREEZE_ENCODER")
    names = [name for name in config.CHECKPOINT_SETTINGS if name not in free]
    changed = config.differences(settings, initial["config"], names)
    if changed:
        raise ValueError(f"INIT_CHECKPOINT_PATH {settings.INIT_CHECKPOINT_PATH} is another model: {'; '.join(changed)}")
    return initial


def load_for_resume(path: Path, argv: list[str]) -> tuple[dict[str, Any], Any]:
    """The checkpoint's state, and the settings of the resumed run: its own, but for what was changed since, in
    config.py, by recipe or by flag.

    SystemExit where the file is not sound, and, naming old -> new, where a change would make it another run.
    """
    try:
        saved = checkpoint.load(path)
    except ValueError as error:
        raise SystemExit(f"Cannot resume: {error}") from error
    keep = config.unchanged_since(saved["config_constants"]) - {"RESUME_CHECKPOINT_PATH", "INIT_CHECKPOINT_PATH"}
    settings = config.load(argv, base={name: saved["config"][name] for name in keep})
    changed = config.differences(settings, saved["config"], config.RESUME_SETTINGS)
    if changed:
        raise SystemExit(
            "A resume continues the same run, so these cannot change (start a fresh run for them):\n"
            + "\n".join(f"  - {line}" for line in changed)
        )
    return saved, settings


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold a run's folder; a second process gets SystemExit at once. The kernel frees the lock of a killed process."""
    if distributed.rank() != 0:
        yield
        return
    with open(run / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise SystemExit(f"{run} is in use by {holder}. Wait for it, or set another RUN_NAME.") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            if [path.name for path in run.iterdir()] == [".lock"]:  # a mistake was found before anything was made
                (run / ".lock").unlink()
                run.rmdir()


def check_writable(folder: Path) -> None:
    """Raise SystemExit, in the first second of a run, where files cannot be written in `folder` (it is made)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SystemExit(f"Cannot write in {folder}: {error.strerror}. Set OUTPUT_DIR to a folder of yours.") from error
