"""Lists and tables that may be larger than memory: where `scratch` is a folder they lie in files of it, else in memory.

A list there is a file of pickles, a table a database of sqlite. The files have no name, so that nothing of them is left
when the process ends, however it ends, and nobody else can write what is unpickled here: no file that was there before
is ever read. What is in them is read anew each time it is asked for: changing what was read
may change nothing.
"""

import contextlib
import itertools
import os
import pickle
import sqlite3
import tempfile
from collections.abc import Hashable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

CACHE_KIB = 4096  # of each table
WRITTEN_AT_ONCE = 64  # items of a list


class StoredRows(Sequence[T]):
    """A list to which is appended, and which is read from its beginning."""

    def __init__(self, scratch: Path):
        scratch.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115, it is open as long as this object lives
        self._latest: list[T] = []  # not in the file yet
        self._written = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def append(self, item: T) -> None:
        self._latest.append(item)
        if len(self._latest) == WRITTEN_AT_ONCE:
            data = pickle.dumps(self._latest, -1)
            self._file.write(len(data).to_bytes(8, "little") + data)
            self._written += len(self._latest)
            self._latest = []

    def extend(self, items: Iterable[T]) -> None:
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return self._written + len(self._latest)

    def __iter__(self) -> Iterator[T]:
        latest, place = [*self._latest], 0
        self._file.flush()
        end = self._file.tell()
        while place < end:
            length = int.from_bytes(os.pread(self._file.fileno(), 8, place), "little")
            yield from pickle.loads(os.pread(self._file.fileno(), length, place + 8))
            place += 8 + length
        yield from latest

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return list(itertools.islice(self, *place.indices(len(self))))
        return next(itertools.islice(self, range(len(self))[place], None))


class StoredTable(MutableMapping[K, V]):
    """A dict, in the order in which its keys came first. A key is known by its repr."""

    def __init__(self, scratch: Path):
        self._base = _database(scratch)

    def __del__(self) -> None:
        if hasattr(self, "_base"):
            self._base.close()

    def __getitem__(self, key: K) -> V:
        found = self._base.execute("SELECT item FROM held WHERE key = ?", (_blob(key),)).fetchone()
        if found is None:
            raise KeyError(key)
        value: V = pickle.loads(found[0])[1]
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self._base.execute("INSERT INTO held (key, item) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET item = "
                           "excluded.item", (_blob(key), pickle.dumps((key, value), -1)))  # fmt: skip

    def __delitem__(self, key: K) -> None:
        if not self._base.execute("DELETE FROM held WHERE key = ?", (_blob(key),)).rowcount:
            raise KeyError(key)

    def __len__(self) -> int:
        found: int = self._base.execute("SELECT count(*) FROM held").fetchone()[0]
        return found

    def __contains__(self, key: object) -> bool:
        return self._base.execute("SELECT 1 FROM held WHERE key = ?", (_blob(key),)).fetchone() is not None

    def __iter__(self) -> Iterator[K]:
        return (key for key, _ in self.items())

    def items(self) -> "_Items[K, V]":
        return _Items(self)


class _Items(ItemsView[K, V]):
    """Keys and values without a search for each."""

    def __iter__(self) -> Iterator[tuple[K, V]]:
        found = self._mapping._base.execute("SELECT item FROM held ORDER BY number")
        for (item,) in found:
            yield pickle.loads(item)


Rows = list[T] | StoredRows[T]


def rows(scratch: Path | None, items: Iterable[T] = ()) -> Rows[T]:
    """A list of these items."""
    if scratch is None:
        return list(items)
    found: StoredRows[T] = StoredRows(scratch)
    found.extend(items)
    return found


def table(scratch: Path | None, pairs: Iterable[tuple[K, V]] = ()) -> MutableMapping[K, V]:
    """A dict of these keys and values."""
    found: MutableMapping[K, V] = {} if scratch is None else StoredTable(scratch)
    for key, value in pairs:
        found[key] = value
    return found


def values_of(keys: Iterable[K], held: Mapping[K, V]) -> Iterator[V]:
    """The value of each key. Of keys that come in the order of a table on the disk none is searched for."""
    pairs = iter(()) if isinstance(held, dict) else iter(held.items())
    for key in keys:
        found = next((value for other, value in pairs if other == key), None)
        yield held[key] if found is None else found


class Repeated:
    """Those of `items` that come more than once, and by chance hardly any other; known by their hashes.

    8 bytes an item are held while they are read, and afterwards 8 bytes of each that is repeated.
    """

    def __init__(self, items: Iterable[Hashable]):
        import numpy as np  # which --help need not wait for

        hashes = np.fromiter(map(hash, items), np.int64)
        hashes.sort()
        self._hashes = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])

    def __bool__(self) -> bool:
        return len(self._hashes) > 0

    def __contains__(self, item: Hashable) -> bool:
        place = int(self._hashes.searchsorted(hash(item)))
        return place < len(self._hashes) and int(self._hashes[place]) == hash(item)


@contextlib.contextmanager
def full_told(folder: Path) -> Iterator[None]:
    """What sqlite says of a disk that is full or broken becomes an OSError of `folder`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"{folder}: {error}; free some space there") from error


def _database(scratch: Path) -> sqlite3.Connection:
    scratch.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=scratch)
    os.close(handle)
    try:
        # One transaction, never ended: what does not fit into the cache is written to the file, and no more.
        base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for command in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", "PRAGMA locking_mode = EXCLUSIVE",
                        f"PRAGMA cache_size = -{CACHE_KIB}", "BEGIN EXCLUSIVE",
                        "CREATE TABLE held (number INTEGER PRIMARY KEY, key BLOB UNIQUE, item BLOB)"):  # fmt: skip
            base.execute(command)
    finally:
        os.unlink(path)
    return base


def _blob(key: Any) -> bytes:
    return repr(key).encode()
