"""Parquet files of anybody, in bounded memory and in time linear in their bytes.

A few hundred bytes of parquet may stand for gigabytes: pages are compressed, and a cell that comes again is a number.
What the footer says of a row group is looked at before it is read; a batch has as few rows as keep it below BATCH_BYTES
even where each of them is the largest cell that there can be; and what came is counted. Held at once are a page, which
parquet itself bounds by 2 GiB, and two times BATCH_BYTES.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nanocaption.data import remote

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

MAX_RATIO = 100  # unpacked : packed; pictures are near 1, captions near 10
FREE_BYTES = 2**26  # unpacked, of however few
LEAST_BYTES = 2**20  # as which fewer count, where cells come again
FREE_VALUES = 10_000_000
ROWS_AT_ONCE = 32
BATCH_BYTES = 2**29
GROUP_BYTES = 2**31  # of a row group that is held whole
MAX_CELL_BYTES = 2**26  # as of a picture in an archive


def open_parquet(shard: Path | str) -> "ParquetFile":
    """A pyarrow ParquetFile. Raises ValueError where it is none, or pyarrow is missing."""
    pyarrow, parquet = import_pyarrow()
    try:
        return parquet.ParquetFile(remote.File(str(shard)) if remote.is_address(str(shard)) else shard)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, remote.ShardError):
            raise
        raise _damaged(shard, error) from None


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("parquet files need pyarrow: pip install pyarrow") from None
    return pyarrow, pyarrow.parquet


def batches(
    file: "ParquetFile", shard: Path | str, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator["pyarrow.RecordBatch"]:
    """The rows of these columns ("a.b" is the part b of a), up to ROWS_AT_ONCE in each. groups: row groups, or all.

    Raises ValueError, naming the shard, where it is damaged or stands for far more than it is.
    """
    pyarrow, _ = import_pyarrow()
    try:
        for group in range(file.num_row_groups) if groups is None else groups:
            rows, allowed = _checked(file, shard, group, columns)
            for batch in file.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False):
                allowed -= sum(part.nbytes for part in batch.columns if not pyarrow.types.is_dictionary(part.type))
                if allowed < 0:
                    raise _expands(shard, group, "its cells come again and again")
                yield batch
    except remote.ShardError:
        raise
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        raise _damaged(shard, error) from None


def column_of_group(file: "ParquetFile", shard: Path | str, group: int, column: str) -> "pyarrow.ChunkedArray":
    """A column of a row group, whole. Raises ValueError as `batches`, and above GROUP_BYTES."""
    pyarrow, _ = import_pyarrow()
    parts, size = [], 0
    for batch in batches(file, shard, [column], [group]):
        part = batch.column(0)
        if pyarrow.types.is_dictionary(part.type):  # its cells stay numbers
            part = part.dictionary_decode()
        parts.append(part)
        size += part.nbytes
        if size > GROUP_BYTES:
            raise ValueError(f"{shard}: row group {group} has above {GROUP_BYTES / 2**30:.0f} GiB of pictures, which "
                             "are held in memory together: write it with smaller row groups")  # fmt: skip
    return pyarrow.chunked_array(parts) if parts else file.read_row_group(group, columns=[column]).column(0)


class Allowance:
    """How many bytes of cells a shard may still give, for readers that copy each cell."""

    def __init__(self, file: "ParquetFile", shard: Path | str):
        about = file.metadata
        groups = [about.row_group(group) for group in range(about.num_row_groups)]
        places = range(about.num_columns)
        packed = sum(group.column(place).total_compressed_size for group in groups for place in places)
        self.shard, self.left = shard, MAX_RATIO * max(packed, LEAST_BYTES)

    def take(self, cell: bytes, row: int) -> None:
        """Raises ValueError, naming shard and row, for a cell that is too large, or one too many."""
        self.left -= len(cell)
        if len(cell) > MAX_CELL_BYTES or self.left < 0:
            raise ValueError(f"{self.shard}, row {row}: a picture of {len(cell):,} bytes, above {MAX_CELL_BYTES:,}, or "
                             f"more in all than {MAX_RATIO} times the file: refused")  # fmt: skip


def _checked(file: "ParquetFile", shard: Path | str, group: int, columns: Sequence[str]) -> tuple[int, int]:
    """(rows of a batch, bytes that may come) of a row group. Raises ValueError where its footer tells too much."""
    metadata = file.metadata
    about = metadata.row_group(group)
    chunks: list[Any] = []
    for place in range(metadata.num_columns):
        chunk = about.column(place)
        if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in columns):
            chunks.append(chunk)
    packed = sum(chunk.total_compressed_size for chunk in chunks)
    whole = sum(chunk.total_uncompressed_size for chunk in chunks)
    values = max([about.num_rows, *(chunk.num_values for chunk in chunks)])
    allowed = max(MAX_RATIO * packed, FREE_BYTES)
    if packed < 0 or not 0 <= whole <= allowed:
        raise _expands(shard, group, f"unpacks from {packed:,} to {whole:,} bytes")
    if not 0 <= values <= max(FREE_VALUES, MAX_RATIO * packed):
        raise _expands(shard, group, f"has {values:,} values in {packed:,} bytes")
    largest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    # Repeated cells count as often as they come: of one picture with its captions, some hundred times.
    return max(1, min(ROWS_AT_ONCE, BATCH_BYTES // max(1, largest))), MAX_RATIO * max(packed, LEAST_BYTES)


def _expands(shard: Path | str, group: int, why: str) -> ValueError:
    return ValueError(f"{shard}: row group {group} {why}, which stands for far more than {MAX_RATIO} times the file: "
                      "refused")  # fmt: skip


def _damaged(shard: Path | str, error: BaseException) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ValueError(f"{shard} is no whole parquet file ({reason}); fetch it again")
