"""Pictures that stay in the shards they came in: where each lies, and its bytes. A prepared set of such pictures has

    stream/shards.json   the shards: path or address, size, time or ETag, and the column of pictures in parquet
    stream/index.npy     a row of INDEX for each picture, in the order of captions.json; read from the disk when needed
    stream/names.bin     the pictures' names, one behind the other

instead of images/. A member of a tar is read by its offset, so that nothing before it needs to be read. A picture in
parquet is a cell of a row group, which is read as a whole: the last row groups stay in memory, see GROUPS_BYTES.

Every picture is compared with the CRC-32 that its bytes had when the set was made, so that a shard that changes while
it is read, or a server that sends other bytes than were asked for, is an error and never another picture.
"""

import collections
import functools
import importlib
import json
import os
import threading
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict

from nanocaption.base.files import cases, read_bounded
from nanocaption.data import remote
from nanocaption.data.parquet import column_of_group, import_pyarrow, open_parquet

BLOCK_BYTES = 16 * 2**20  # of a tar, read together; of parquet a row group is one
GROUPS_BYTES = 3 * 2**28  # of row groups that a process keeps: a window of stream.py and what lies beside it in them
MAX_LIST_BYTES = 2**28  # of shards.json, a million shards
OPEN_SHARDS = 64  # of a process
ANEW = ("put the old ones back, or run prepare_dataset.py --stream --remake with the same recipe and flags: a run goes "
        "on with the set that is made then if its shards hold the same")  # fmt: skip


class ChangedError(remote.ShardError):
    """A shard is not what it was when the set was made."""


class Packed(NamedTuple):
    """A picture in a shard. Read as files are: by pictures.read_picture and transform.load_image."""

    file_name: str  # in the set
    shard: str  # its path or address
    start: int  # of a tar: the offset; of parquet: the row group
    row: int  # of parquet: within the row group
    length: int  # bytes
    crc: int | None = None  # CRC-32 of the bytes; None: not known yet
    column: str = ""  # of parquet

    @property
    def name(self) -> str:
        """As Path.name."""
        return PurePosixPath(self.file_name).name

    def __str__(self) -> str:
        return f"{self.file_name} in {self.shard}"


class Shard(TypedDict):
    """What shards.json says of a shard."""

    path: str  # or its address
    bytes: int
    time: int  # of its last change, ns; 0 of an address
    etag: str  # of an address, as far as its server tells it
    column: str


def is_streamed(folder: Path) -> bool:
    """Whether the prepared set in `folder` has its pictures in shards."""
    try:
        return "stream" in json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False


def read_shards(folder: Path) -> list[Shard]:
    path = folder / "stream" / "shards.json"
    try:
        found: list[Shard] = json.loads(read_bounded(path, MAX_LIST_BYTES))["shards"]
        sound = all(type(shard[name]) is kind for shard in found for name, kind in Shard.__annotations__.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound or not isinstance(found, list):
        raise ValueError(f"{path} is damaged: it holds no list of shards")
    return found


def check_shards(folder: Path) -> None:
    """Raises ChangedError, naming them, where shards are missing or others than when the set in `folder` was made.

    Files are asked for size and time, addresses for size and ETag.
    """
    missing, changed = [], []
    for shard in read_shards(folder):
        try:
            size, time, etag = state_of(shard["path"])
        except FileNotFoundError:
            missing.append(shard["path"])
            continue
        if (size, time, etag) != (shard["bytes"], shard["time"], shard["etag"]):
            changed.append(shard["path"])
    told = [f"{cases(missing, 'shard')} not there"] * bool(missing)
    told += [f"{cases(changed, 'shard')} changed since"] * bool(changed)
    if told:
        raise ChangedError(f"{folder} is streamed from shards that are not what they were: {'; '.join(told)}. {ANEW}")


def state_of(path: str) -> tuple[int, int, str]:
    """(bytes, time of change in ns, ETag) of a shard, 0 and "" where there is none. Raises FileNotFoundError."""
    if remote.is_address(path):
        found = remote.ask(path)
        return found.size, 0, found.etag
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns, ""


def read_bytes(picture: Packed) -> bytes:
    """The bytes of a picture. Raises ChangedError where they are not those the set was made with, and OSError."""
    if picture.column:
        data = _row_groups(os.getpid()).cell(picture)
    elif remote.is_address(picture.shard):
        data = remote.read(picture.shard, picture.start, picture.length)
    else:
        file = _opened(picture.shard, os.getpid())
        data = os.pread(file.descriptor, picture.length, picture.start)
    if len(data) != picture.length or (picture.crc is not None and zlib.crc32(data) != picture.crc):
        raise ChangedError(f"its shard has changed since the set was made, or came damaged; {ANEW}")
    return data


def will_need(picture: Packed) -> None:
    """Tell the system that a picture of a tar and those around it are wanted soon, so that it reads them in one go."""
    if not picture.column and not remote.is_address(picture.shard) and hasattr(os, "posix_fadvise"):
        _announce(picture.shard, picture.start // BLOCK_BYTES, os.getpid())


@functools.lru_cache(128)
def _announce(shard: str, number: int, process: int) -> None:
    descriptor = _opened(shard, process).descriptor
    os.posix_fadvise(descriptor, number * BLOCK_BYTES, BLOCK_BYTES, os.POSIX_FADV_WILLNEED)


class _File:
    """A file that is open as long as this object lives."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(OPEN_SHARDS)
def _opened(path: str, _process: int) -> _File:
    """The file, kept open. A forked process opens its own."""
    return _File(path)


def cell_lengths(shard: str, group: int, column: str) -> list[int]:
    """How many bytes each picture of a row group has, 0 for none. The row group stays in memory, to be read next."""
    return _row_groups(os.getpid()).lengths((shard, group), column)


class _RowGroups:
    """The row groups of parquet files that were read last, GROUPS_BYTES of them. Threads may share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self.groups: collections.OrderedDict[tuple[str, int], Any] = collections.OrderedDict()
        self.size = 0

    def cell(self, picture: Packed) -> bytes:
        cell = self._group((picture.shard, picture.start), picture.column)[picture.row].as_py()
        data = cell["bytes"] if isinstance(cell, dict) else cell
        return data or b""

    def lengths(self, key: tuple[str, int], column: str) -> list[int]:
        compute = importlib.import_module("pyarrow.compute")
        cells = self._group(key, column)
        cells = compute.struct_field(cells, "bytes") if column.endswith(".bytes") else cells
        if import_pyarrow()[0].types.is_null(cells.type):
            return [0] * len(cells)
        return [length or 0 for length in compute.binary_length(cells).to_pylist()]

    def _group(self, key: tuple[str, int], column: str) -> Any:
        with self.lock:
            if key not in self.groups:
                self._keep(key, self._read(*key, column))
            self.groups.move_to_end(key)
            return self.groups[key]

    def _read(self, shard: str, group: int, column: str) -> Any:
        if shard not in self.files:
            if len(self.files) >= OPEN_SHARDS:
                self.files.popitem(last=False)[1].close()
            self.files[shard] = open_parquet(shard)
        self.files.move_to_end(shard)
        return column_of_group(self.files[shard], shard, group, column)

    def _keep(self, key: tuple[str, int], cells: Any) -> None:
        self.groups[key] = cells
        self.size += cells.nbytes
        while self.size > GROUPS_BYTES and len(self.groups) > 1:
            self.size -= self.groups.popitem(last=False)[1].nbytes


@functools.lru_cache(1)
def _row_groups(_process: int) -> _RowGroups:
    """Those of this process: a forked one reads its own."""
    return _RowGroups()
