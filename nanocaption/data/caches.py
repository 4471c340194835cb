"""Rows that are made once and read from then on: decoded pictures, or a frozen encoder's features, memory-mapped.

    <name>.npy         the rows, under this name only when whole
    <name>.json        their key, shape, dtype, and a sha256 per CHUNK rows
    <name>.part(.json) while they are made: a start that was killed goes on where it was

The key says what the rows depend on: pictures, transform, encoder weights. Another key is another file.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanocaption.base.files import write_atomically

CHUNK = 256  # rows that share a checksum
CHECKED_BYTES = 2**28  # so much of a cache is read and compared when it is opened, evenly spread
SAVE_SECONDS = 5.0  # a kill loses at most so much work, and a chunk


def cached_rows(
    path: Path, key: str, count: int, rows_from: Callable[[int], Iterator[np.ndarray]], limit: int, title: str,
    unit: str = "image",
) -> np.ndarray | None:  # fmt: skip
    """The `count` rows of `path` (a .npy), memory-mapped and read-only; made now unless they are there.

    rows_from(start): arrays (n, *row), n dividing CHUNK (the last may be shorter), the first of which is row `start`.
    limit: bytes. Returns None, and says why, where the rows take more than that or than the disk has.
    title: of the progress bar; unit: what a row is. Raises OSError where the disk fills up meanwhile.
    """
    rows = _open(path, key, count)
    if rows is not None:
        return rows
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "ab") as part:
        _wait_for(part, path)
        rows = _open(path, key, count)  # another process may have made it meanwhile
        if rows is None and _fill(path, key, count, rows_from, limit, title, unit):
            rows = _open(path, key, count)
    if rows is not None:
        path.with_suffix(".part").unlink(missing_ok=True)  # of one who only waited
    return rows


def key_of(
    paths: Iterable[Path], root: Path, about: Any, weights: Mapping[str, np.ndarray] | None = None
) -> str:
    """sha256 over what rows depend on: `about` (JSON), `weights` by name, and names below `root`, sizes and times."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(weights or ()):
        digest.update(name.encode())
        digest.update(weights[name])
    for path in paths:
        found = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _open(path: Path, key: str, count: int) -> np.ndarray | None:
    """The rows, or None where they are not there; damaged ones are removed, and that is said."""
    if not path.is_file():
        return None
    try:
        about = json.loads(path.with_suffix(".json").read_bytes())
        rows = np.load(path, mmap_mode="r")
        whole = about["key"] == key and list(rows.shape) == about["shape"] and str(rows.dtype) == about["dtype"]
        problem = _damage(rows, about["chunks"]) if whole and len(rows) == count else "is not what its .json says"
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        problem = f"cannot be read ({error})"
    if problem is None:
        return rows
    print(f"{path} {problem}: made again")
    path.unlink()
    return None


def _damage(rows: np.ndarray, chunks: list[str]) -> str | None:
    """What is wrong with the rows that `chunks` has checksums of, as far as CHECKED_BYTES show it."""
    if not chunks:
        return None
    number = max(2, CHECKED_BYTES // max(1, rows[:CHUNK].nbytes))
    for chunk in sorted({round(place) for place in np.linspace(0, len(chunks) - 1, min(number, len(chunks)))}):
        if _digest(rows, chunk) != chunks[chunk]:
            return f"is damaged in rows {chunk * CHUNK} to {(chunk + 1) * CHUNK - 1}"
    return None


def _digest(rows: np.ndarray, chunk: int) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows[chunk * CHUNK : (chunk + 1) * CHUNK])).hexdigest()


def _fill(
    path: Path, key: str, count: int, rows_from: Callable[[int], Iterator[np.ndarray]], limit: int, title: str,
    unit: str,
) -> bool:  # fmt: skip
    """Make the rows, or as many as are missing; False where they are too large to be kept."""
    from tqdm import tqdm

    part, notes = path.with_suffix(".part"), path.with_suffix(".part.json")
    store, chunks = _unfinished(part, notes, key, count)
    done = len(chunks) * CHUNK
    if done:
        print(f"{title}: going on with {unit} {done:,} of {count:,}")
    saved_at = time.monotonic()
    try:
        with tqdm(total=count, initial=done, desc=title, unit=unit, mininterval=1) as bar:
            for rows in rows_from(done):
                if store is None:
                    if not _fits(path, rows, count, limit, bar.write):
                        part.unlink()
                        return False
                    store = _reserve(part, rows, count)
                store[done : done + len(rows)] = rows
                done += len(rows)
                bar.update(len(rows))
                if done % CHUNK == 0 or done == count:
                    chunks.append(_digest(store, (done - 1) // CHUNK))
                    if time.monotonic() > saved_at + SAVE_SECONDS:
                        _note(store, notes, key, chunks)
                        saved_at = time.monotonic()
    finally:
        if store is not None:
            _note(store, notes, key, chunks)  # a signal or an error in the middle: what is done stays
    if done != count:
        raise ValueError(f"{title}: {done} rows came, must be {count}")
    os.replace(notes, path.with_suffix(".json"))
    os.replace(part, path)
    return True


def _unfinished(part: Path, notes: Path, key: str, count: int) -> tuple[np.ndarray | None, list[str]]:
    """The rows of a start that did not finish, and the checksums of those that are done."""
    try:
        about = json.loads(notes.read_bytes())
        store = np.load(part, mmap_mode="r+")
        if about["key"] != key or list(store.shape) != about["shape"] or len(store) != count:
            return None, []
        whole = about["chunks"][: count // CHUNK]  # the rest of a last, shorter chunk is quickly made again
        return (store, whole) if _damage(store, whole) is None else (None, [])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None, []  # nothing that could be used: begun anew


def _reserve(part: Path, rows: np.ndarray, count: int) -> np.ndarray:
    """Room for all rows, on the disk at once: running out of it later would be a SIGBUS, not an error."""
    store = np.lib.format.open_memmap(part, mode="w+", dtype=rows.dtype, shape=(count, *rows.shape[1:]))
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(part, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    return store


def _note(store: np.ndarray, notes: Path, key: str, chunks: list[str]) -> None:
    """Put the rows on the disk, and then the word that they are there."""
    store.flush()
    about = {"key": key, "shape": list(store.shape), "dtype": str(store.dtype), "chunks": chunks}
    write_atomically(notes, json.dumps(about))


def _fits(path: Path, rows: np.ndarray, count: int, limit: int, say: Callable[[str], Any]) -> bool:
    """Announce the size; False, said, where it is above the limit or the free disk."""
    size = rows[0].nbytes * count
    free = shutil.disk_usage(path.parent).free
    others = sum(other.stat().st_size for other in path.parent.glob("*.npy"))
    if size > limit:
        say(f"Not kept: {_gb(size)} are more than CACHE_LIMIT_GB = {limit / 1e9:g}; made anew every epoch.")
    elif size > free:
        say(f"Not kept: {_gb(size)} are more than the {_gb(free)} free at {path.parent}.")
    else:
        beside = f"; caches beside it take {_gb(others)}" if others else ""
        say(f"Keeping {_gb(size)} in {path} ({_gb(free)} free{beside})")
        return True
    return False


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _wait_for(part: Any, path: Path) -> None:
    """Lock the unfinished file; said, where another process is at it."""
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        print(f"Another process is making {path}; waiting for it.")
        fcntl.flock(part, fcntl.LOCK_EX)
