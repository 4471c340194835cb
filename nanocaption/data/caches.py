"""Rows that are made once and read from then on: decoded pictures, a frozen encoder's features, captions' ids.

A cache is a folder whose name has the key of what the rows depend on (pictures, transform, encoder weights), so that
another key is another folder. In it:

    00000-<its sha256>.npy   a chunk of the rows, under this name only when whole: a start that was killed goes on
    whole                    an empty file, once all chunks are on the disk; until then each start compares them all
    lock                     held by the process that makes them
    used_by                  the folders of the runs that read it
"""

import contextlib
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

from nanocaption.base.files import in_units, locked, read_only, write_file

USERS = "used_by"  # of a cache: the folders of the runs that read it, a line each
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


def cached_rows(folder: Path, source: Source, limit: int, user: Path | None = None) -> Rows | None:
    """The rows of the cache `folder`; those that are not there or damaged, which is told, are made now.

    limit: bytes. user: the folder of the run that wants them. Returns None, and says why, where the rows take more than
    the limit or than the disk has, and where nothing can be written. Raises OSError where the disk fills up meanwhile:
    what is done is kept, and the next start goes on.
    """
    chunks = math.ceil(source.length / source.chunk)
    files = _sound(folder, source, CHECKED_BYTES) if (folder / "whole").exists() else {}
    if len(files) < chunks:
        try:
            found = _made(folder, source, chunks, limit, user)
        except OSError as error:
            if not read_only(error):
                raise
            tqdm.write(f"Not kept: {source.title}: {folder.parent} cannot be written ({error.strerror}); made anew "
                       "every epoch. CACHE_DIR names another place.")  # fmt: skip
            return None
        if found is None:
            return None
        files = found
    else:
        note_user(folder, user)
    return Rows([files[number] for number in range(chunks)])


def _made(
    folder: Path, source: Source, chunks: int, limit: int, user: Path | None
) -> dict[int, Path] | None:
    """The chunks by number, made where they are not there; None where they are too large to be kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", f"Another process is making {folder}; waiting for it."):
        note_user(folder, user)  # before: what a kill leaves half-made belongs to the run that goes on
        files = _sound(folder, source, None)
        for file in set(folder.glob("?????-*.npy")) - set(files.values()):
            print(f"{file} is damaged: made again")
            file.unlink()
        missing = [number for number in range(chunks) if number not in files]
        if missing and not _fill(folder, source, missing, limit):
            (folder / USERS).unlink(missing_ok=True)
            return None
        files = _sound(folder, source, 0)
        for file in files.values():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        (folder / "whole").touch()
    return files


def note_user(folder: Path, user: Path | None) -> None:
    """Write down in a cache that a run reads it, for `nanocaption clean`; user: the run's folder."""
    if user is None:
        return
    noted, line = folder / USERS, f"{user.resolve()}\n"
    with contextlib.suppress(OSError):  # it may lie where nothing can be written
        if not noted.is_file() or line not in noted.read_text(encoding="utf-8"):
            with noted.open("a", encoding="utf-8") as file:
                file.write(line)


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
    """The chunks by number, without damaged ones; `most` bytes are compared with their checksums, None = all."""
    files = sorted(folder.glob("?????-*.npy"))
    compared = len(files)
    if files and most is not None:
        compared = min(compared, math.ceil(most / (1 + files[0].stat().st_size)))
    spread = {round(place) for place in np.linspace(0, len(files) - 1, compared)}
    sound = {}
    for place, file in enumerate(files):
        try:
            number, length = int(file.name[:5]), len(np.load(file, mmap_mode="r"))
            with file.open("rb") as opened:
                same = place not in spread or _digest(opened) == file.stem[6:]
        except (OSError, ValueError, EOFError):  # ValueError: of one that is too short
            continue
        if same and length == min(source.chunk, source.length - number * source.chunk):
            sound[number] = file
    return sound


def _digest(file: io.BufferedReader | io.BytesIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


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
                file = io.BytesIO()
                np.save(file, np.concatenate(held))
                write_file(folder / f"{places[done - 1] // chunk:05}-{_digest(file)}.npy", file.getvalue())
                held = []
    if done != len(places):
        raise ValueError(f"{source.title}: {done} rows came, must be {len(places)}")
    return True


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
    for file in sorted(folder.parent.glob(f"{folder.name.rpartition('_')[0]}_*.npy")):
        tqdm.write(f"{file} is a cache of an earlier version and no longer read: delete it and its .json")
    return True
