"""The captions of a shard as a parquet file: its rows, its footer, and how it takes its name."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from nanocaption.base.files import sync_to_disk
from nanocaption.data import shards
from nanocaption.model.captions import CaptionText
from nanocaption.prepare.shard_pictures import Entry

FOOTER = b"nanocaption"  # the key of what made a file, in its schema's metadata
ROWS_AT_ONCE = 8192  # of captions in memory, and in a row group
Facts = dict[str, object]


def difference_of(output: Path, facts: Mapping[str, object]) -> str | None:
    """None: there is no such file; "": these facts made it; else what is different."""
    if not os.path.lexists(output):
        return None
    its = (footer_of(output) or {}).get("facts")
    if not isinstance(its, dict):
        return "no captions of shards, or damaged"
    names = [name for name in {**facts, **its} if facts.get(name) != its.get(name)]
    return ", ".join(f"{name} {its.get(name)} there, {facts.get(name)} now" for name in names)


def footer_of(output: Path) -> dict[str, object] | None:
    """What an output's footer says: {"facts": ..., "pictures": ..., "without": ...}; None of another file."""
    pyarrow, parquet = shards.import_pyarrow()
    try:
        found = json.loads((parquet.read_metadata(output).metadata or {}).get(FOOTER, b"null"))
    except (pyarrow.ArrowException, OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "facts" in found else None


class Rows:
    """The rows of an output, written to an open file as parquet, ROWS_AT_ONCE at a time."""

    def __init__(self, file: IO[bytes], captions: int):
        self.pyarrow, parquet = shards.import_pyarrow()
        text, number = self.pyarrow.string(), self.pyarrow.float64()
        fields = [("key", text), ("file_name", text), ("row", self.pyarrow.int64()), ("caption", text),
                  ("log_prob", number), ("score", number), ("error", text)]  # fmt: skip
        if captions > 1:
            fields += [("captions", self.pyarrow.list_(text)), ("log_probs", self.pyarrow.list_(number)),
                       ("scores", self.pyarrow.list_(number))]  # fmt: skip
        self.schema = self.pyarrow.schema(fields)
        self.writer = parquet.ParquetWriter(file, self.schema, compression="zstd")
        self.held: list[dict[str, object]] = []

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def add(self, entry: Entry, reason: str, found: Sequence[CaptionText]) -> None:
        """A picture's captions, the best first, or the reason why it has none."""
        row: dict[str, object] = {"key": plain(entry.key), "file_name": plain(entry.picture.file_name),
                                  "row": entry.row, "error": plain(reason) or None}  # fmt: skip
        if found:
            texts, log_probs, scores = zip(*((one.text, *_numbers(one)) for one in found), strict=True)
            row |= {"caption": texts[0], "log_prob": log_probs[0], "score": scores[0], "captions": list(texts),
                    "log_probs": list(log_probs), "scores": list(scores)}  # fmt: skip
        self.held.append(row)
        if len(self.held) >= ROWS_AT_ONCE:
            self._write()

    def finish(self, footer: Facts) -> None:
        """Write what is held, and what made the file."""
        self._write()
        self.writer.add_key_value_metadata({FOOTER: json.dumps(footer, sort_keys=True).encode()})

    def _write(self) -> None:
        if self.held:
            self.writer.write_table(self.pyarrow.Table.from_pylist(self.held, self.schema))
        self.held = []


def _numbers(caption: CaptionText) -> tuple[float | None, float | None]:
    """(log-probability, score), null of a model that gives no numbers, as in the JSON of `nanocaption caption`."""
    known = caption.log_prob == caption.log_prob
    return (caption.log_prob, caption.score) if known else (None, None)


def plain(name: str) -> str:
    r"""A name as UTF-8 text; bytes of a tar that are none come out as \udc80 to \udcff."""
    return name.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[IO[bytes] | None]:
    """An empty file to write to, which `publish` gives the name `output`; None where another process is at it.

    The claim is a lock on the file in the making, which the system takes back when its holder ends, however it does:
    what a killed process left is taken over by the next. File systems without locks have no claims.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    made = output.with_name(f".{output.name}.0.tmp")
    with made.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        if not _is_at(file, made):  # published by another process between open and lock
            yield None
            return
        file.truncate(0)
        try:
            yield file
        finally:
            if _is_at(file, made):
                made.unlink()


def publish(file: IO[bytes], output: Path) -> None:
    """Give the file of `claimed` its name, on the disk before and after: also a power cut leaves it whole."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(output.with_name(f".{output.name}.0.tmp"), output)
    sync_to_disk(output.parent)


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
