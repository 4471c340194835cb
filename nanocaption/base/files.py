"""Files: which pictures lie where, how they are brought over whole or not at all, whether the disk is large enough."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
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


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[bool]:
    """Hold the lock file `path`, which is made and stays; gives whether another process had to be waited for.

    waiting: printed before that. The system takes a lock back when its holder ends, however it does, and processes that
    it has forked hold none of it. Where a file system has no locks the block runs all the same, and that is told.
    """
    with path.open("ab") as file:
        waited = False
        try:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                print(waiting, flush=True)
                waited = True
                fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:
            print(f"Note: {path.parent} cannot be locked here ({error.strerror}): do not start a second process that "
                  "makes the same.", flush=True)  # fmt: skip
        yield waited


def read_only(error: OSError) -> bool:
    """Whether a file could not be written because nothing can be written there."""
    return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


def links_work(source: Path, folder: Path) -> bool:
    """Whether a file can have a hard link in `folder`: not on another disk, nor where the file system has none."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".nanocaption-") as place:
            os.link(os.path.realpath(source), Path(place) / "link")
    except OSError:
        return False
    return True


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
        yield from parsed_lines(file)


def parsed_lines(file: IO[bytes]) -> Iterator[tuple[bytes, dict[str, object] | None]]:
    """`json_lines` of an open file, from where it stands."""
    for line in file:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            row = None
        if row is not None or line.endswith(b"\n"):
            yield line, row


def copy_bytes(source: IO[bytes], target: IO[bytes], number: int) -> None:
    """So many bytes from where `source` stands, or all that are there, piece by piece."""
    while number and (some := source.read(min(number, 2**16))):
        target.write(some)
        number -= len(some)


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


def lines_backwards(path: Path, block: int = 2**16) -> Iterator[tuple[int, bytes]]:
    """(where it begins, the line with its end) of each whole line, the last first; held are a block and a line."""
    with path.open("rb") as file:
        start, rest = file.seek(0, os.SEEK_END), b""
        torn = True  # what follows the last line end
        while start:
            end, start = start, max(0, start - block)
            file.seek(start)
            parts = (file.read(end - start) + rest).split(b"\n")
            place = start + len(parts[0]) + 1 + sum(len(part) + 1 for part in parts[1:])
            for part in reversed(parts[1:]):
                place -= len(part) + 1
                if not torn:
                    yield place, part + b"\n"
                torn = False
            rest = parts[0]
        if not torn:
            yield 0, rest + b"\n"


def log_rows(path: Path | str) -> Iterator[dict[str, object]]:
    """The rows of a log.jsonl, one after the other; blank lines and a torn last line (`json_lines`) are left out.

    Any other line that is not a JSON object raises ValueError naming file and line; so does a missing file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such log; give the log.jsonl of a run folder")
    for number, (line, row) in enumerate(json_lines(path), start=1):
        if row is not None:
            yield row
        elif line.strip():
            raise ValueError(f"{path}, line {number}: not a JSON object ({line.strip()[:60]!r}); repair or delete it")


def read_log(path: Path | str) -> list[dict[str, object]]:
    """All `log_rows` at once, of a short log: a row takes some 500 bytes of memory."""
    return list(log_rows(path))
