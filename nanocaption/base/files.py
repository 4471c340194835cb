"""Files: which pictures lie where, how they are brought over whole or not at all, whether the disk is large enough."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import IO

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def walk_files(folder: Path, unreadable: Callable[[OSError], object] | None = None) -> Iterable[str]:
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


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file, a link or a folder in the making: nothing is there before the block, nor after.

    It is ".NAME.PID.tmp", of which base/cli.told makes NAME again in messages of errors.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(made)  # of a killed process with this number it may be a link to a file that must not be written into
    try:
        yield made
    finally:
        _remove(made)


@contextlib.contextmanager
def whole(path: Path, sync: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to. What is there takes the name `path` at the end of the block.

    Where the block raises or the process is killed, `path` stays what it was. The folder must exist. sync: put the file
    on the disk before, and its new name after, so that this also holds after a power cut.
    """
    with beside(path) as made:
        yield made
        if sync:
            sync_to_disk(made)
        os.replace(made, path)
    if sync:
        sync_to_disk(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or the names of a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds all of it or what it held before, also after a power cut."""
    with whole(path, sync=True) as made:
        made.write_text(text, encoding="utf-8", newline="\n")


def write_file(target: Path, source: IO[bytes] | bytes) -> None:
    """The bytes of `source` under the name `target`, whole or not at all; its folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as made, made.open("wb") as file:
        if isinstance(source, bytes):
            file.write(source)
        else:
            shutil.copyfileobj(source, file, 2**16)  # as much as archives.LimitedReader gives


def link_or_copy(source: Path, target: Path, sync: bool = False) -> None:
    """Make `target` a hard link to `source` (no space, no time), or a copy where the disk allows no link.

    Whole or not at all, sync: as of `whole`. Of a symbolic link the file itself is linked.
    """
    with whole(target, sync) as made:
        try:
            os.link(os.path.realpath(source), made)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            shutil.copy2(source, made)


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file of at most so many bytes. ValueError, before more is read, where it has more."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= most else b""  # room for as much is taken beforehand
        while size < len(data) <= most and (more := file.read(2**20)):  # no file, or one that grows
            data += more
    if max(size, len(data)) > most:
        raise ValueError(f"{path} has {in_units(max(size, len(data)))}, and {in_units(most)} are read at most")
    return data


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def free_bytes(folder: Path) -> int:
    """What is free where `folder` is, or will be."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, setting: str) -> None:
    """Raises ValueError unless `needed` bytes are free where `folder` is or will be."""
    free = free_bytes(folder)
    if needed > free:
        raise ValueError(f"{folder} has {in_units(free)} free but {in_units(needed)} are needed: free some space, "
                         f"or set {setting} to a larger disk")


def in_units(size: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.2f} {name}"


def is_junk(path: str) -> bool:
    """Whether a relative path leads to hidden files, among them AppleDouble `._name`, or macOS' folder in archives."""
    return any(part == "__MACOSX" or (part.startswith(".") and part != ".") for part in path.split("/"))


def cases(items: Sequence[str], noun: str) -> str:
    """'5 pictures (a.jpg, b.jpg, c.jpg, ...)': the count and the first three."""
    shown = ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'} ({shown})"


def json_lines(path: Path) -> Iterator[tuple[bytes, dict[str, object] | None]]:
    """Each line of a file of JSON objects, line end included, with its object; None where it holds none.

    A last line that a kill has torn, so without line end and without object, is left out.
    """
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                row = None
            if row is not None or line.endswith(b"\n"):
                yield line, row


def open_to_append(path: Path) -> FileIO:
    """A file of lines, opened to append without buffer; a torn last line is cut off, which the next one would join."""
    file = path.open("a+b", buffering=0)
    end = file.seek(0, os.SEEK_END)
    found = 0
    while end and not found:  # block by block from the end: a log may be large
        start = max(0, end - 2**16)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n") + 1
        end = start + found
    file.truncate(end)
    return file


def read_log(path: Path | str) -> list[dict[str, object]]:
    """The rows of a log.jsonl, in file order; blank lines and a torn last line (`json_lines`) are left out.

    Any other line that is not a JSON object raises ValueError naming file and line; so does a missing file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such log; give the log.jsonl of a run folder")
    rows = []
    for number, (line, row) in enumerate(json_lines(path), start=1):
        if row is not None:
            rows.append(row)
        elif line.strip():
            raise ValueError(f"{path}, line {number}: not a JSON object ({line.strip()[:60]!r}); repair or delete it")
    return rows
