"""The pictures of one shard in its order, with or without captions: a tar (WebDataset), or parquet.

A tar is gone through by its headers alone: of each picture it is said where its bytes lie (data/shards.py), so that
whoever decodes it reads them, and few are in memory at a time. Of parquet one row group is.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from nanocaption.base.files import is_junk
from nanocaption.data import shards
from nanocaption.data.parquet import column_of_group
from nanocaption.data.pictures import SUFFIXES
from nanocaption.data.shards import Packed
from nanocaption.prepare import archives, packed, tars

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

ENDINGS = frozenset(ending for endings in SUFFIXES.values() for ending in endings)
KEY_COLUMNS = ("__key__", "key", *packed.NAME_COLUMNS, "image_id", "id")


class Entry(NamedTuple):
    """A picture that a shard has, or should have."""

    key: str  # its name without the ending; of parquet what its column of keys says, or else its row
    row: int  # which picture of a tar it is, or which row of a parquet file, from 0
    picture: Packed
    problem: str  # why it need not be tried; "" for most
    share: float  # of the shard that lies before the picture's end


def pictures_of(shard: Path) -> Iterator[Entry]:
    """Each picture of a shard, a data/remote.Address included. Raises ValueError with one line for a damaged shard."""
    return _in_parquet(shard) if shard.name.lower().endswith(".parquet") else _in_tar(shard)


def _in_tar(shard: Path) -> Iterator[Entry]:
    size = max(1, shard.stat().st_size)
    row = 0
    for member, _ in archives.entries(shard):
        name = PurePosixPath(member.name).as_posix()
        if member.kind == "folder" or is_junk(name) or PurePosixPath(name).suffix.lower() not in ENDINGS:
            continue
        start = member.offset or 0
        problem = "no regular file: a link or a device" if member.kind != "file" else _too_large(member.size)
        picture = Packed(name, str(shard), start, 0, member.size)
        yield Entry(tars.key_of(member.name), row, picture, problem, min(1.0, (start + member.size) / size))
        row += 1


def _in_parquet(shard: Path) -> Iterator[Entry]:
    with shards.open_parquet(shard) as file:
        column = packed.picture_column(file.schema_arrow)
        if column is None:
            names = ", ".join(file.schema_arrow.names)
            raise ValueError(f"{shard} has the columns {names[:200]}: none with the bytes of pictures")
        named = key_column(file.schema_arrow, column)
        rows, row = max(1, file.metadata.num_rows), 0
        for group in range(file.num_row_groups):
            keys = _keys(file, shard, group, named)
            for place, length in enumerate(shards.cell_lengths(str(shard), group, column)):
                key = str(keys[place]) if keys and keys[place] is not None else str(row)
                picture = Packed(key, str(shard), group, place, length, column=column)
                problem = _too_large(length) if length else "the row has no picture"
                yield Entry(key, row, picture, problem, (row + 1) / rows)
                row += 1


def key_column(schema: "pyarrow.Schema", pictures: str) -> str | None:
    """The column, or its part, that says what each row is called, if there is one. pictures: that of their bytes."""
    named = next((name for name in KEY_COLUMNS if name in schema.names), None)
    image, _, part = pictures.rpartition(".")
    has_path = part == "bytes" and image in schema.names and schema.field(image).type.get_field_index("path") >= 0
    return named or (f"{image}.path" if has_path else None)


def _keys(file: "ParquetFile", shard: Path, group: int, named: str | None) -> Sequence[object] | None:
    if named is None:
        return None
    cells = column_of_group(file, shard, group, named).to_pylist()
    return [(cell or {}).get("path") for cell in cells] if named.endswith(".path") else cells


def _too_large(size: int) -> str:
    most = archives.MAX_PICTURE_BYTES
    return f"too large: a file of {size:,} bytes, above {most:,}" if size > most else ""
