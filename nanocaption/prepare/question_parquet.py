"""Parquet shards of questions: a picture's bytes and what is asked about it in one row, or chat rows of many turns.

    image_bytes, question, answer, source          and other names of the columns, see IMAGE and question_files.py
    images (a list of {bytes, path}), texts (a list of {user, assistant})

Pictures are named by their content, so that all rows of one picture are its questions. A shard is never held in memory
as a whole.
"""

from collections.abc import Collection, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nanocaption.base import on_disk
from nanocaption.base.files import cases
from nanocaption.data.parquet import batches, open_parquet
from nanocaption.prepare import archives
from nanocaption.prepare.caption_files import Row, Rows, merged
from nanocaption.prepare.packed import content_name, split_of, write_pictures
from nanocaption.prepare.question_files import questions_in, split_in

IMAGE = ("image_bytes", "image", "images", "jpg", "picture", "img")
TEXTS = ("texts", "conversations", "messages")


def holds_questions(shard: Path) -> bool:
    """Whether a shard has pictures and questions. Raises ValueError where it is no parquet file."""
    with open_parquet(shard) as file:
        names = set(file.schema_arrow.names)
    return bool(names & set(IMAGE)) and ("question" in names or bool(names & set(TEXTS)))


def read_shards(raw_dir: Path, shards: Sequence[Path]) -> Rows:
    """One row a picture; what holds none or several, and what asks nothing, is left out or refused, and noted."""
    rows: list[Row] = []
    first_split: MutableMapping[str, Any] = on_disk.table(None)
    lost: list[str] = []
    several: list[str] = []
    empty: list[str] = []
    labels = archives.labels_of(shards)
    for shard, label in tqdm(labels.items(), desc="questions", unit="shard", disable=len(shards) < 2):
        by_shard = split_of(raw_dir, shard)
        for number, row, pictures in _rows(shard):
            where = f"{shard.name} row {number}"
            questions = questions_in(row)
            if len(pictures) > 1:
                several.append(where)
            elif not questions:
                lost.append(where)
            else:
                name, data = _named(label, number, pictures)
                empty += [where] * (not data)
                split = first_split.setdefault(name, split_in(row) or by_shard)
                rows.append(Row(name, split, questions))
    notes = [f"{cases(empty, 'row')} with an empty picture cell, bad pictures"] * bool(empty)
    notes += [f"{cases(lost, 'row')} without a question, left out"] * bool(lost)
    notes += [f"{cases(several, 'row')} about several pictures, left out"] * bool(several)
    return merged(rows, raw_dir), [*notes, *archives.unread(raw_dir, shards)]


def unpack_shards(shards: Sequence[Path], file_names: Collection[str], folder: Path) -> None:
    """Write the pictures `file_names` to `folder`, of empty cells an empty file; those already there are kept."""

    def named(shard: Path, label: str) -> Iterator[tuple[str | None, bytes]]:
        for number, _, pictures in _rows(shard):
            yield _named(label, number, pictures)

    write_pictures(shards, set(file_names), folder, named)


def _named(label: str, number: int, pictures: Sequence[bytes]) -> tuple[str, bytes]:
    """(the name of a row's picture, its bytes); of one without a picture after the row, and b""."""
    return (content_name(pictures[0]), pictures[0]) if pictures else (f"{label}-row-{number}", b"")


def _rows(shard: Path) -> Iterator[tuple[int, dict[str, Any], list[bytes]]]:
    """(number from 1, what is not the picture, the bytes of the pictures) of each row."""
    with open_parquet(shard) as file:
        names = file.schema_arrow.names
        image = next((name for name in IMAGE if name in names), None)
        if image is None:
            raise ValueError(f"{shard} has the columns {', '.join(names)[:200]}: expected one with the bytes of "
                             f"pictures, {' or '.join(IMAGE[:3])}")
        rows = (row for batch in batches(file, shard, names) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            cell = row.pop(image)
            cells = cell if isinstance(cell, list) else [cell]
            found = [part.get("bytes") if isinstance(part, dict) else part for part in cells]
            yield number, row, [data for data in found if isinstance(data, bytes) and data]
