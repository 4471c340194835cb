"""Rows that are made once and read from then on: decoded pictures, a frozen encoder's features, captions' ids.

A cache is a folder of files `00000-<its sha256>.npy`, each a chunk of the rows. A chunk gets its name once all of it is
on the disk, so that a start that was killed goes on where it was. The folder's name has the key of what the rows depend
on (pictures, transform, encoder weights): another key is another folder.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nanocaption.base.files import in_units

CHUNK = 256  # rows of a chunk: as many may be lost by a kill
CHECKED_BYTES = 2**28  # so much of a whole cache is read and compared when it is opened, evenly spread


class Rows:
    """The rows of a cache, memory-mapped and read-only. Pickled it is the names of its files."""

    def __init__(self, files: Sequence[Path]):
        self.files = files
        # As plain arrays: a row of a np.memmap is another np.memmap, which takes longer to make.
        self.chunks = [np.asarray(np.load(file, mmap_mode="r")) for file in files]
        self._chunk = len(self.chunks[0])

    def __len__(self) -> int:
        return self._chunk * (len(self.chunks) - 1) + len(self.chunks[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        if row < 0:
            raise IndexError(f"row {row}: a cache counts from its first row, 0")
        return self.chunks[row // self._chunk][row % self._chunk]

    def __reduce__(self) -> tuple[type["Rows"], tuple[Sequence[Path]]]:
        return Rows, (self.files,)


class Source(NamedTuple):
    """What the rows of a cache are made from."""

    length: int  # rows, at least 1
    make: Callable[[list[int]], Iterable[np.ndarray]]  # numbers of rows -> these, in arrays (n, *row), n dividing chunk
    title: str  # of the progress bar
    unit: str = "image"  # what a row is
    chunk: int = CHUNK


def cached_rows(folder: Path, source: Source, limit: int) -> Rows | None:
    """The rows of the cache `folder`; those that are not there or damaged, which is told, are made now.

    limit: bytes. Returns None, and says why, where the rows take more than that or than the disk has. Raises OSError
    where the disk fills up meanwhile.
    """
    chunks = math.ceil(source.length / source.chunk)
    files = _sound(folder, source, CHECKED_BYTES)
    if len(files) < chunks:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another process is making {folder}; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            files = _sound(folder, source, None)
            for file in set(folder.glob("?????-*.npy")) - set(files.values()):
                print(f"{file} is damaged: made again")
                file.unlink()
            missing = [number for number in range(chunks) if number not in files]
            if missing and not _fill(folder, source, missing, limit):
                return None
        files = _sound(folder, source, 0)
    return Rows([files[number] for number in range(chunks)])


def key_of(
    paths: Iterable[Path], root: Path, about: object, weights: Mapping[str, np.ndarray] | None = None
) -> str:
    """sha256 over what rows depend on: `about` (JSON), `weights` by name, and names below `root`, sizes and times."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, values in sorted((weights or {}).items()):
        digest.update(name.encode())
        digest.update(values.data)
    for path in paths:
        found = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _sound(folder: Path, source: Source, most: int | None) -> dict[int, Path]:
    """The chunks by number, without damaged ones; at least two, or `most` bytes, are compared with their checksums.

    most: None = all of them.
    """
    files = sorted(folder.glob("?????-*.npy"))
    number = len(files)
    if files and most is not None:
        number = min(number, max(2, most // (1 + files[0].stat().st_size)))
    spread = {round(place) for place in np.linspace(0, len(files) - 1, number)}
    sound = {}
    for place, file in enumerate(files):
        try:
            number, length = int(file.name[:5]), len(np.load(file, mmap_mode="r"))
            content = file.read_bytes() if place in spread else None
        except (OSError, ValueError, EOFError):  # ValueError: of one that is too short
            continue
        whole = length == min(source.chunk, source.length - number * source.chunk)
        if whole and (content is None or _digest(content) == file.stem[6:]):
            sound[number] = file
    return sound


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _fill(folder: Path, source: Source, missing: list[int], limit: int) -> bool:
    """Make the chunks of these numbers; False where the cache is too large to be kept."""
    count, chunk = source.length, source.chunk
    places = [row for number in missing for row in range(number * chunk, min((number + 1) * chunk, count))]
    if len(places) < count:
        print(f"{source.title}: going on with {source.unit} {places[0]:,} of {count:,}")
    done, held = 0, []  # rows; those of a chunk that is not complete
    with tqdm(total=count, initial=count - len(places), desc=source.title, unit=source.unit, mininterval=1) as bar:
        for rows in source.make(places):
            if done == 0 and not _fits(folder, rows[0].nbytes, count, len(places), limit):
                return False
            held.append(rows)
            done += len(rows)
            bar.update(len(rows))
            if done % chunk == 0 or done == len(places):
                _write(folder, places[done - 1] // chunk, np.concatenate(held))
                held = []
    if done != len(places):
        raise ValueError(f"{source.title}: {done} rows came, must be {len(places)}")
    return True


def _write(folder: Path, number: int, rows: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    content = buffer.getbuffer()
    unfinished = folder / "unfinished"
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(folder / f"{number:05}-{_digest(content)}.npy")
    finally:
        unfinished.unlink(missing_ok=True)


def _fits(folder: Path, row: int, count: int, missing: int, limit: int) -> bool:
    """Announce the size of `count` rows of `row` bytes; False, said, where that or the disk's room forbids them."""
    size, free = row * count, shutil.disk_usage(folder).free
    if size > limit:
        tqdm.write(f"Not kept: {in_units(size)} are more than CACHE_LIMIT_GB = {limit / 1e9:g}; made anew every epoch.")
        return False
    if row * missing > free:
        tqdm.write(f"Not kept: {in_units(row * missing)} are more than the {in_units(free)} free at {folder.parent}.")
        return False
    others = sum(file.stat().st_size for file in folder.parent.rglob("*.npy"))
    beside = f"; caches there take {in_units(others)}" if others else ""
    tqdm.write(f"Keeping {in_units(size)} in {folder} ({in_units(free)} free{beside})")
    if old := sorted(folder.parent.glob("*.npy")):
        names = ", ".join(file.name for file in old)
        tqdm.write(f"Made by an earlier version and not read any more, so delete them: {names} in {folder.parent}")
    return True
