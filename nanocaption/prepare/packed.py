"""Sets whose pictures are packed together with their captions: parquet as the Hub keeps it; tars.py has WebDataset.

`find_*` say whether a folder holds one; `read_*` give the rows without keeping a picture, and `unpack_*` go over the
shards again and write the pictures as files. A shard is never held in memory as a whole.

A name that several different pictures have is told apart by its shard, SHARD/NAME, and where one shard has several of
them by content as well, so that every run gives the same names. Equal bytes of one split and name are one picture.
"""

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Container, Iterator, MutableMapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from nanocaption.base import on_disk
from nanocaption.base.files import cases, require_space, size_of, write_file
from nanocaption.data.parquet import Allowance, batches, import_pyarrow, open_parquet
from nanocaption.prepare import archives
from nanocaption.prepare.caption_files import Row, Rows, Source, merged, split_in_name
from nanocaption.prepare.picture_files import plain_name
from nanocaption.prepare.sidecars import find_sidecars, texts_of

if TYPE_CHECKING:
    import pyarrow

NAME_COLUMNS = ("filename", "file_name", "image_name")
# In this order: in the captioned copies that have both, alt_text was rewritten by a language model.
CAPTION_COLUMNS = ("original_alt_text", "captions", "caption", "sentences", "raw", "text", "alt_text")
NUMBERED_CAPTION = re.compile(r"caption_?\d+")  # a column each, instead of these
IMAGE_COLUMNS = ("image", "img", "jpg", "picture")
MAGIC = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}


class Columns(NamedTuple):
    """Which column of a parquet shard holds what; "a.b" is the part b of the column a."""

    image: str
    data: str  # the pictures' bytes
    captions: list[str]  # one, or several that hold a caption each
    several: bool  # whether a row has all captions of its picture
    others: list[str]  # that might have been the captions as well
    name: str | None
    split: str | None
    status: str | None  # of img2dataset: whether the picture could be fetched
    gaps: bool  # whether cells without a picture are possible

    @property
    def reads_pictures(self) -> bool:
        """Whether names and empty cells cannot be told without reading the bytes."""
        return self.gaps or self.name is None


class Content(NamedTuple):
    """A picture of a shard, as far as names need it."""

    shard: str  # of archives.labels_of
    name: str
    digest: str  # of its bytes; "" where no other picture has the name
    split: str | None  # that the shard's name tells


class PackedRow(NamedTuple):
    """A row of a shard: number from 1; data: its picture, b"" where it has none or it was not read."""

    number: int
    row: Row
    data: bytes
    failed: str | None  # why img2dataset has no picture of it


def find_parquet(raw_dir: Path) -> Source | None:
    """The parquet shards in `raw_dir`, or directly below it, that hold pictures.

    Lists without pictures that img2dataset writes beside tars and pictures are not taken for a set.
    """
    shards = archives.find_shards(raw_dir, (".parquet",))
    packed = [shard for shard in shards if holds_pictures(shard)]
    if shards and not packed and (archives.find_shards(raw_dir, archives.TARS) or find_sidecars(raw_dir)):
        return None
    shards = packed or shards  # reading them says what they lack
    why = f"{cases([path.name for path in shards], 'shard')} found"
    return packed_source("parquet", why, raw_dir, shards, read_parquet, unpack_parquet)


def packed_source(
    name: str, why: str, raw_dir: Path, shards: list[Path], reader: Callable[[Path, list[Path]], Rows],
    unpacker: Callable[[list[Path], Collection[str], Path], None],
) -> Source | None:  # fmt: skip
    origin = f"{raw_dir}, {cases([shard.name for shard in shards], 'shard')}"
    read, unpack = functools.partial(reader, raw_dir, shards), functools.partial(unpacker, shards)
    return Source(name, why, origin, shards, read, unpack) if shards else None


def split_of(raw_dir: Path, shard: Path) -> str | None:
    return split_in_name(shard.relative_to(raw_dir).as_posix() if raw_dir in shard.parents else shard.name)


def qualified(contents: Sequence[Content], scratch: Path | None = None) -> tuple[Sequence[str], list[str]]:
    """The name of each picture in the set, and a note of those that share one. See the head of this file.

    scratch: as on_disk.rows takes it.
    """
    twice = on_disk.Repeated(content.name for content in contents)
    if not twice:
        return on_disk.rows(scratch, (content.name for content in contents)), []
    first, number, apart = _differing(contents, twice, scratch)
    names: on_disk.Rows[str] = on_disk.rows(scratch)
    made: MutableMapping[str, None] = on_disk.table(scratch)
    for _, name, digest, split in contents:
        new = name
        if name in twice and number[name] > 1:
            shard = first[name, digest, split]
            alone = apart[shard, name] == 1
            new = f"{shard}/{name}" if alone else f"{shard}/{with_digest(name, digest)}"
            if new != name:
                made[new] = None
        names.append(new)
    if clash := sorted({content.name for content in contents if content.name in made} if made else ()):
        raise ValueError(f"{cases(clash, 'name')} given to a picture by its shard, and by the set to another: rename "
                         "that shard")
    shared = on_disk.rows(scratch, (name for name, different in number.items() if different > 1))
    return names, [f"{cases(shared, 'name')} of several different pictures, called SHARD/NAME "
                   f"(first: {next(iter(made))})"] if shared else []


def _differing(
    contents: Sequence[Content], twice: on_disk.Repeated, scratch: Path | None
) -> tuple[
    MutableMapping[tuple[str, str, str | None], str], MutableMapping[str, int], MutableMapping[tuple[str, str], int]
]:
    """Of the names that come several times: the first shard of each content, how many contents, how many in a shard."""
    first: MutableMapping[tuple[str, str, str | None], str] = on_disk.table(scratch)
    number: MutableMapping[str, int] = on_disk.table(scratch)
    in_shard: MutableMapping[tuple[str, str, str, str | None], None] = on_disk.table(scratch)
    apart: MutableMapping[tuple[str, str], int] = on_disk.table(scratch)
    for shard, name, digest, split in contents:
        if name not in twice:
            continue
        if (name, digest, split) not in first:
            first[name, digest, split] = shard
            number[name] = number.get(name, 0) + 1
        if (shard, name, digest, split) not in in_shard:
            in_shard[shard, name, digest, split] = None
            apart[shard, name] = apart.get((shard, name), 0) + 1
    return first, number, apart


def with_digest(name: str, digest: str) -> str:
    path = PurePosixPath(name)
    return path.with_name(f"{path.stem}-{digest[:12]}{path.suffix}").as_posix()


def merged_by_name(rows: Sequence[Row], raw_dir: Path, scratch: Path | None = None) -> Sequence[Row]:
    """One row per picture, where a name comes several times. scratch: as on_disk.rows takes it."""
    return merged(rows, raw_dir, scratch) if on_disk.Repeated(str(row.file_name) for row in rows) else rows


def read_parquet(raw_dir: Path, shards: list[Path], scratch: Path | None = None) -> Rows:
    """One row per picture. Pictures without a name are named by their content, cells without one by their row.

    scratch: as on_disk.rows takes it.
    """
    rows: on_disk.Rows[Row] = on_disk.rows(scratch)
    contents: on_disk.Rows[Content] = on_disk.rows(scratch)
    notes: set[str] = set()
    empty, failed = on_disk.rows(scratch), on_disk.rows(scratch)
    # Of pictures named by content: one that comes again keeps its first split.
    split_named: MutableMapping[Any, Any] = on_disk.table(scratch)
    labels = archives.labels_of(shards)
    for shard, label in tqdm(labels.items(), desc="captions", unit="shard", disable=len(shards) < 2):
        columns = parquet_columns(shard)
        by_shard = None if columns.split else split_of(raw_dir, shard)
        notes.update(_column_notes(columns))
        for number, row, data, why in parquet_rows(shard, columns, label, pictures=False):
            if why:
                failed.append(f"{shard.name} row {number}: {why}")
                continue
            if columns.reads_pictures and not data:
                empty.append(f"{shard.name} row {number}")
            row = row._replace(split=row.split or by_shard)
            if columns.name is None:
                row = row._replace(split=split_named.setdefault(row.file_name, row.split))
            rows.append(row)
            known = (row.file_name, None) if columns.name is None else ("", by_shard)
            contents.append(Content(label, row.file_name, *known))
    if not len(rows) > len(empty):
        raise ValueError(_no_pictures(shards[0]))
    if empty:
        notes.add(f"{cases(empty, 'row')} with an empty picture cell, bad pictures")
    if failed:
        notes.add(f"{cases(failed, 'row')} whose picture could not be fetched, left out")
    told, more = _told_apart(shards, rows, contents, scratch)
    merged_rows = merged_by_name(told, raw_dir, scratch)
    return merged_rows, [*sorted(notes), *more, *archives.unread(raw_dir, shards)]


def _told_apart(shards: list[Path], rows: Sequence[Row], contents: Sequence[Content], scratch: Path | None) -> Rows:
    """The rows with the names that `qualified` gives them, where they have any."""
    named = on_disk.rows(scratch, (content for content in contents if isinstance(content.name, str)))
    names, notes = qualified(with_contents(shards, named, scratch), scratch)
    given = iter(names)
    return on_disk.rows(scratch, (row._replace(file_name=next(given)) if isinstance(row.file_name, str) else row
                                  for row in rows)), notes  # fmt: skip


def _column_notes(columns: Columns) -> list[str]:
    others = f", not of {', '.join(columns.others)}" if columns.others else ""
    columns_ = f"column{'s' * (len(columns.captions) > 1)} {', '.join(map(repr, columns.captions))}"
    named = ["pictures without a name are called by the first digits of their sha256"] * (columns.name is None)
    return [f"captions are of the {columns_}{others}", *named]


def with_contents(
    shards: list[Path], contents: Sequence[Content], scratch: Path | None = None
) -> Sequence[Content]:
    """`contents`, which stand in the order of the shards, with the digest of each picture whose name comes again.

    scratch: as on_disk.rows takes it.
    """
    twice = on_disk.Repeated(content.name for content in contents if not content.digest)
    if not twice:
        return contents
    found: on_disk.Rows[Content] = on_disk.rows(scratch)
    path_of = {label: shard for shard, label in archives.labels_of(shards).items()}
    for label, its in itertools.groupby(contents, key=lambda content: content.shard):
        mine, shard = list(its), path_of[label]
        if any(content.name in twice for content in mine):
            rows = (packed for packed in parquet_rows(shard, parquet_columns(shard), label, pictures=True)
                    if not packed.failed and isinstance(packed.row.file_name, str))  # fmt: skip
            mine = [content._replace(digest=hashlib.sha256(packed.data).hexdigest() if content.name in twice else "")
                    for content, packed in zip(mine, rows, strict=True)]  # fmt: skip
        found.extend(mine)
    return found


def unpack_parquet(shards: list[Path], file_names: Collection[str], folder: Path) -> None:
    """Write the pictures `file_names` to `folder`, of empty cells an empty file; those already there are kept."""
    wanted = set(file_names)

    def pictures(shard: Path, label: str) -> Iterator[tuple[str | None, bytes]]:
        for _, row, data, _ in parquet_rows(shard, parquet_columns(shard), label, pictures=True):
            yield name_in_set(row.file_name, label, data, wanted), data

    write_pictures(shards, wanted, folder, pictures)


def write_pictures(
    shards: Sequence[Path], wanted: Collection[str], folder: Path,
    pictures: Callable[[Path, str], Iterator[tuple[str | None, bytes]]],
) -> None:  # fmt: skip
    """Write the pictures of these names to `folder`. pictures: (a shard, its label) -> each name and its bytes."""
    written: set[str] = set()
    there = sum(size_of(folder / name) or 0 for name in wanted)
    require_space(folder, max(0, sum(shard.stat().st_size for shard in shards) - there), "DATA_DIR")
    with tqdm(total=len(wanted), desc="pictures", unit="picture", mininterval=0.5) as bar:
        for shard, label in archives.labels_of(shards).items():
            for name, data in pictures(shard, label):
                if name is not None and name in wanted and name not in written:
                    if size_of(folder / name) != len(data):
                        write_file(folder / name, data)
                    written.add(name)
                    bar.update()


def name_in_set(name: str, label: str, data: bytes, wanted: Container[str]) -> str | None:
    """Which of the names that `qualified` gives a picture is wanted."""
    for made in (name, f"{label}/{name}"):
        if made in wanted:
            return made
    if not isinstance(name, str):
        return None
    made = f"{label}/{with_digest(name, hashlib.sha256(data).hexdigest())}"
    return made if made in wanted else None


def holds_pictures(shard: Path) -> bool:
    """Whether a shard has a column for pictures, or is broken, which reading it will tell."""
    try:
        with open_parquet(shard) as file:
            return _image_column(file.schema_arrow) is not None
    except ValueError:
        return True


def parquet_columns(shard: Path) -> Columns:
    """Raises ValueError where the shard is no parquet file, or has no pictures or captions in it."""
    with open_parquet(shard) as file:
        schema = file.schema_arrow
        image, (captions, several, others) = _image_column(schema), _caption_columns(schema)
        if image is None or not captions:
            urls = [name for name in schema.names if "url" in name.lower()]
            fetch = f" ({urls[0]} gives addresses: fetch the pictures with img2dataset first)" if urls else ""
            raise ValueError(f"{shard} has the columns {', '.join(schema.names)[:200]}: expected one with the bytes of "
                             f"pictures, and one of {', '.join(CAPTION_COLUMNS)}, or caption_0, caption_1, ...{fetch}")
        data = picture_column(schema) or image
        gaps = _may_be_empty(file.metadata, data)
        named = next((name for name in NAME_COLUMNS if name in schema.names), None)
        name = named or _path_part(file, shard, image, gaps)
    split, status = (key if key in schema.names else None for key in ("split", "status"))
    return Columns(image, data, captions, several, others, name, split, status, gaps)


def picture_column(schema: "pyarrow.Schema") -> str | None:
    """The column, or its part, with the bytes of the pictures."""
    image = _image_column(schema)
    return f"{image}.bytes" if image is not None and _bytes_part(schema.field(image)) else image


def _caption_columns(schema: Any) -> tuple[list[str], bool, list[str]]:
    """The columns with the captions, whether a row has all of its picture, and columns that might have been them."""
    captions = [name for name in CAPTION_COLUMNS if name in schema.names]
    numbered = [name for name in schema.names if NUMBERED_CAPTION.fullmatch(name)]
    if not captions:
        return sorted(numbered, key=_number_in), True, []
    kind = str(schema.field(captions[0]).type).partition("<")[0]
    return captions[:1], "list" in kind or "struct" in kind, [*captions[1:], *numbered]


def _number_in(name: str) -> int:
    return int("".join(filter(str.isdigit, name)))


def _image_column(schema: Any) -> str | None:
    """The column with the pictures: a struct with bytes, else bytes under a known name, else the only one of bytes."""
    structs = [field.name for field in schema if _bytes_part(field)]
    plain = [field.name for field in schema if _is_bytes(field.type)]
    known = [name for names in (structs, plain) for name in IMAGE_COLUMNS if name in names]
    return next(iter([*known, *structs, *plain[: len(plain) == 1]]), None)


def _is_bytes(type_: Any) -> bool:
    types = import_pyarrow()[0].types
    if types.is_dictionary(type_):
        return _is_bytes(type_.value_type)
    return any(test(type_) for test in (types.is_binary, types.is_large_binary, types.is_binary_view))


def _bytes_part(field: Any) -> bool:
    """Whether a field of a schema is a struct {bytes, ...}, as `datasets` keeps pictures; without any they are null."""
    types = import_pyarrow()[0].types
    if not types.is_struct(field.type) or field.type.get_field_index("bytes") < 0:
        return False
    part = field.type.field("bytes").type
    return _is_bytes(part) or types.is_null(part)


def _may_be_empty(metadata: Any, data: str) -> bool:
    """Whether a column may hold nulls: its statistics say so, or are not there."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            about = metadata.row_group(group).column(column)
            if about.path_in_schema == data:
                statistics = about.statistics
                if statistics is None or not statistics.has_null_count or statistics.null_count:
                    return True
    return False


def _path_part(file: Any, shard: Path, image: str, gaps: bool) -> str | None:
    """The part of the pictures' column that names each of them, if there is one."""
    field = file.schema_arrow.field(image)
    if not _bytes_part(field) or field.type.get_field_index("path") < 0:
        return None
    read = [f"{image}.path", f"{image}.bytes"] if gaps else [f"{image}.path"]
    cells = (row[image] or {} for batch in batches(file, shard, read) for row in batch.to_pylist())
    found = [(bool(cell.get("path")), bool(cell.get("bytes")) or not gaps) for cell in cells]
    named = [path for path, data in found if data] or [path for path, _ in found]
    return f"{image}.path" if named and all(named) else None


def parquet_rows(shard: Path, columns: Columns, label: str, pictures: bool) -> Iterator[PackedRow]:
    """Each row of a shard. label: what the shard is called in names.

    pictures: whether the bytes are wanted; without, they are read only where names or empty cells depend on them.
    """
    pictures = pictures or columns.reads_pictures
    read = [*columns.captions, columns.name, columns.split, columns.status, columns.data if pictures else None]
    with open_parquet(shard) as file:
        some, allowance = batches(file, shard, [name for name in read if name]), Allowance(file, shard)
        for number, row in enumerate((row for batch in some for row in batch.to_pylist()), start=1):
            image = row.get(columns.image)
            data = (image.get("bytes") if isinstance(image, dict) else image) or b""
            allowance.take(data, number)
            name = _name_of(row, columns, data)
            failed = None
            if pictures and not data:
                name = name or f"{label}-row-{number}"
                status = row.get(columns.status or "")
                failed = None if status in (None, "success") else str(status)
            yield PackedRow(number, Row(name, row.get("split"), _captions_of(row, columns)), data, failed)


def _captions_of(row: dict[str, Any], columns: Columns) -> list[object]:
    captions = [text for column in columns.captions for text in texts_of(row[column])]
    if len(columns.captions) > 1:
        return [text for text in captions if text is not None]  # a picture with fewer than others
    return captions


def _name_of(row: dict[str, Any], columns: Columns, data: bytes) -> Any:
    """As layouts.clean_records writes it; what is no text is left for it to refuse."""
    if columns.name is None:
        return content_name(data) if data else None
    name = (row[columns.image] or {}).get("path") if columns.name.endswith(".path") else row[columns.name]
    if isinstance(name, str) and (archives.leads_out(name) or "://" in name):
        return PurePosixPath(str(plain_name(name))).name  # the folders of another machine
    return plain_name(name)


def _no_pictures(shard: Path) -> str:
    columns = parquet_columns(shard)
    path = next((row.file_name for _, row, _, _ in parquet_rows(shard, columns, shard.stem, pictures=False)), None)
    return (f"{shard}: no bytes of a picture in the column {columns.image!r}: this file holds no pictures, only their "
            f"names (first: {path}); write it again with the bytes in it (datasets: push_to_hub or "
            "table.embed_table_storage), or give the folder of pictures with a captions.csv of file_name,caption")


def content_name(data: bytes) -> str:
    ending = next((ending for magic, ending in MAGIC.items() if data.startswith(magic)), ".img")
    return hashlib.sha256(data).hexdigest()[:24] + ending
