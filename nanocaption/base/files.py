"""Files: which pictures lie where, how they are brought over whole or not at all, whether the disk is large enough."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def walk_files(folder: Path, unreadable: Callable[[OSError], Any] | None = None) -> Iterable[str]:
    """Every file below `folder`, and folders named like pictures, as relative paths with "/", sorted folder by folder.

    Linked folders are entered once, hidden files and macOS junk are skipped. unreadable: told of folders that are.
    """
    entered = set()
    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not is_junk(name))
        inside = Path(parent).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        named_so = [name for name in folders if name.lower().endswith(PICTURE_SUFFIXES)]  # the check refuses them
        yield from (prefix + name for name in sorted(files + named_so) if not is_junk(name))


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds all of it or what it held before, also after a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(target: Path, source: Any) -> None:
    """The bytes of `source`, a file or bytes, under the name `target`: whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as sink:
            if isinstance(source, bytes):
                sink.write(source)
            else:
                shutil.copyfileobj(source, sink)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def nearest_folder(path: Path) -> Path:
    """The first existing folder at or above `path`."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def require_space(folder: Path, needed: int, setting: str) -> None:
    """Raises ValueError unless `needed` bytes are free where `folder` is or will be."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    if needed > free:
        raise ValueError(f"{folder} has {in_units(free)} free but {in_units(needed)} are needed: free some space, "
                         f"or set {setting} to a larger disk")


def in_units(size: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.2f} {name}"


def is_junk(name: str) -> bool:
    """Hidden files, among them AppleDouble `._name`, and the folder that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def cases(items: Sequence[str], noun: str) -> str:
    """'5 pictures (a.jpg, b.jpg, c.jpg, ...)': the count and the first three."""
    shown = ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'} ({shown})"


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def read_log(path: Path | str) -> list[dict]:
    """The rows of a log.jsonl, in file order; blank lines are skipped.

    A last line without newline that does not parse is what a kill leaves behind: it is left out. Any other
    line that is not a JSON object raises ValueError naming file and line; so does a missing file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such log; give the log.jsonl of a run folder")
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number}: not a JSON object ({line[:60]!r}); repair or delete it")
    return rows
