"""Sets whose pictures are packed together with their captions: parquet as the Hub keeps it, and WebDataset tars.

`find_*` say whether a folder holds one; `read_*` give the rows without keeping a picture, and `unpack_*` go over the
shards again and write the pictures as files. A shard is never held in memory as a whole.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple

from tqdm import tqdm

from nanocaption.base.files import PICTURE_SUFFIXES, cases, is_junk, require_space, size_of, write_file
from nanocaption.prepare import archives
from nanocaption.prepare.caption_files import CAPTION_KEYS, Row, Rows, Source, merged, split_in_name

NAME_COLUMNS = ("filename", "file_name", "image_name")
# In this order: in the captioned copies that have both, alt_text was rewritten by a language model.
CAPTION_COLUMNS = ("original_alt_text", "captions", "caption", "sentences", "raw", "text", "alt_text")
IMAGE_COLUMNS = ("image", "img", "jpg", "picture")
SENTENCE_KEYS = ("raw", *CAPTION_KEYS)  # of captions that are objects
MAGIC = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
ROWS_AT_ONCE = 32  # pictures in memory
TEXT_SUFFIXES = (".txt", ".json")
LOOKED_AT = 200  # members of a tar, until it is clear whether it is a WebDataset


class Columns(NamedTuple):
    """Which column of a parquet shard holds what; "a.b" is the part b of the column a."""

    image: str
    data: str  # the pictures' bytes
    caption: str
    several: bool  # whether a row has all captions of its picture
    others: list[str]  # that might have been the captions as well
    name: str | None
    split: str | None


def find_parquet(raw_dir: Path) -> Source | None:
    """The parquet shards in `raw_dir`, or directly below it."""
    shards = find_shards(raw_dir, (".parquet",))
    why = f"{cases([path.name for path in shards], 'shard')} found"
    return packed_source("parquet", why, raw_dir, shards, read_parquet, unpack_parquet)


def find_webdataset(raw_dir: Path) -> Source | None:
    """The tars in `raw_dir`, or directly below it, that are shards of a WebDataset."""
    shards = [path for path in find_shards(raw_dir, archives.TARS) if is_webdataset(path)]
    why = f"{cases([path.name for path in shards], 'tar')} with pairs of name.jpg and name.txt or name.json"
    return packed_source("WebDataset", why, raw_dir, shards, read_tars, unpack_tars)


def packed_source(
    name: str, why: str, raw_dir: Path, shards: list[Path], reader: Callable[[Path, list[Path]], Rows],
    unpacker: Callable[[list[Path], Collection[str], Path], None],
) -> Source | None:  # fmt: skip
    origin = f"{raw_dir}, {cases([shard.name for shard in shards], 'shard')}"
    read, unpack = functools.partial(reader, raw_dir, shards), functools.partial(unpacker, shards)
    return Source(name, why, origin, shards, read, unpack) if shards else None


def find_shards(raw_dir: Path, endings: tuple[str, ...]) -> list[Path]:
    if raw_dir.is_file():
        return [raw_dir] if raw_dir.name.lower().endswith(endings) else []
    paths = [*raw_dir.iterdir(), *raw_dir.glob("*/*")]
    return sorted(path for path in paths if path.name.lower().endswith(endings) and path.is_file()
                  and not is_junk(path.relative_to(raw_dir).as_posix()))


def split_of(raw_dir: Path, shard: Path) -> str | None:
    return split_in_name(shard.relative_to(raw_dir).as_posix() if raw_dir in shard.parents else shard.name)


def read_parquet(raw_dir: Path, shards: list[Path]) -> Rows:
    """One row per picture. Pictures without a name are named by their content."""
    rows: list[Row] = []
    notes: set[str] = set()
    split_named: dict[str, Any] = {}  # of pictures named by content: one that comes again keeps its first split
    grouped = False  # whether a picture may come in several rows
    for shard in tqdm(shards, desc="captions", unit="shard", disable=len(shards) < 2):
        columns, by_name = parquet_columns(shard), split_of(raw_dir, shard)
        others = f", not of {', '.join(columns.others)}" if columns.others else ""
        notes.add(f"captions are of the column {columns.caption!r}{others}")
        if columns.name is None:
            notes.add("pictures without a name are called by the first digits of their sha256")
        grouped = grouped or columns.name is None or not columns.several
        for row, _ in parquet_rows(shard, columns, pictures=False):
            row = row if columns.split else row._replace(split=by_name)
            if columns.name is None:
                row = row._replace(split=split_named.setdefault(row.file_name, row.split))
            rows.append(row)
    if grouped:
        rows = merged(rows, raw_dir)
    return rows, sorted(notes)


def unpack_parquet(shards: list[Path], file_names: Collection[str], folder: Path) -> None:
    """Write the pictures `file_names` to `folder`; those already there are kept."""
    left, written = set(file_names), set()
    there = sum(size_of(folder / name) or 0 for name in left)
    require_space(folder, max(0, sum(shard.stat().st_size for shard in shards) - there), "DATA_DIR")
    with tqdm(total=len(left), desc="pictures", unit="picture", mininterval=0.5) as bar:
        for shard in shards:
            for (name, *_), data in parquet_rows(shard, parquet_columns(shard), pictures=True):
                if name in written and (folder / name).read_bytes() != data:
                    raise ValueError(f"{shard}: two different pictures are called {name}; rename one of them")
                if name in left:
                    if size_of(folder / name) != len(data):
                        write_file(folder / name, data)
                    left.remove(name)
                    written.add(name)
                    bar.update()


def _open_parquet(shard: Path) -> Any:
    pyarrow, parquet = import_pyarrow()
    try:
        return parquet.ParquetFile(shard)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{shard} is no whole parquet file ({str(error).splitlines()[0]}); fetch it again") from None


def parquet_columns(shard: Path) -> Columns:
    """Raises ValueError where the shard is no parquet file, or has no pictures or captions in it."""
    with _open_parquet(shard) as file:
        schema = file.schema_arrow
        structs = [field.name for field in schema if _has_part(field, "bytes")]
        plain = [field.name for field in schema if field.name in IMAGE_COLUMNS and str(field.type) == "binary"]
        images = [*structs, *sorted(plain, key=IMAGE_COLUMNS.index)]
        captions = [name for name in CAPTION_COLUMNS if name in schema.names]
        if not images or not captions:
            raise ValueError(f"{shard} has the columns {', '.join(schema.names)[:200]}: expected one with the bytes of "
                             f"pictures, and one of {', '.join(CAPTION_COLUMNS)}")
        name = next((name for name in NAME_COLUMNS if name in schema.names), None) or _path_part(file, images[0])
        several = "list" in str(schema.field(captions[0]).type).partition("<")[0]
    return Columns(images[0], f"{images[0]}.bytes" if structs else images[0], captions[0], several, captions[1:], name,
                   "split" if "split" in schema.names else None)  # fmt: skip


def _path_part(file: Any, image: str) -> str | None:
    """The part of the pictures' column that names each of them, if there is one."""
    if not _has_part(file.schema_arrow.field(image), "path"):
        return None
    paths = file.read(columns=[f"{image}.path"]).column(0).combine_chunks()
    return f"{image}.path" if len(paths) and all(paths.field("path").to_pylist()) else None


def _has_part(field: Any, part: str) -> bool:
    """Whether a field of a schema is a struct with this part."""
    pyarrow, _ = import_pyarrow()
    return pyarrow.types.is_struct(field.type) and field.type.get_field_index(part) >= 0


def parquet_rows(shard: Path, columns: Columns, pictures: bool) -> Iterator[tuple[Row, bytes]]:
    """Each row of a shard, and its picture's bytes.

    pictures: whether the bytes are wanted; without, they are read only where pictures are named by them, else b"".
    """
    pictures = pictures or columns.name is None
    read = [columns.caption, columns.name, columns.split, columns.data if pictures else None]
    with _open_parquet(shard) as file:
        batches = file.iter_batches(ROWS_AT_ONCE, columns=[name for name in read if name])
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            image = row.get(columns.image)
            data = image.get("bytes") if isinstance(image, dict) else image
            if pictures and not isinstance(data, bytes):
                raise ValueError(f"{shard}, row {number}: no bytes of a picture in the column {columns.image!r}")
            yield Row(_name_of(row, columns, data), row.get("split"), texts_of(row[columns.caption])), data or b""


def _name_of(row: dict[str, Any], columns: Columns, data: Any) -> Any:
    """As layouts.clean_records writes it; what is no text is left for it to refuse."""
    if columns.name is None:
        return content_name(data)
    name = row[columns.image]["path"] if columns.name.endswith(".path") else row[columns.name]
    return PurePosixPath(name.replace("\\", "/")).as_posix() if isinstance(name, str) and name else name


def content_name(data: bytes) -> str:
    ending = next((ending for magic, ending in MAGIC.items() if data.startswith(magic)), ".img")
    return hashlib.sha256(data).hexdigest()[:24] + ending


def texts_of(cell: object) -> list[object]:
    """The captions in a cell: one or several, each as text or in {"raw": ...}; what is no text stays as it is."""
    return [next((sentence[key] for key in SENTENCE_KEYS if key in sentence), None) if isinstance(sentence, dict)
            else sentence for sentence in (cell if isinstance(cell, list) else [cell])]  # fmt: skip


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("parquet files need pyarrow: pip install pyarrow") from None
    return pyarrow, pyarrow.parquet


def is_webdataset(path: Path) -> bool:
    """Whether one of the first members is a picture with a text of the same key."""
    found = [key_of(member.name) for member, _ in itertools.islice(archives.entries(path), LOOKED_AT)]
    pictures = {key for key, ending in found if ending in PICTURE_SUFFIXES}
    return any(key in pictures for key, ending in found if ending in TEXT_SUFFIXES)


def key_of(name: str) -> tuple[str, str]:
    """'train/000.jpg' -> ('train/000', '.jpg'): in a WebDataset the ending begins at the first point."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return (path.parent / stem).as_posix(), f".{ending.lower()}"


def read_tars(raw_dir: Path, shards: list[Path]) -> Rows:
    """One row per picture, named key.jpg. Captions: "captions" or "caption" of key.json, else the lines of key.txt."""
    rows: list[Row] = []
    notes: list[str] = []
    wordless: list[str] = []
    lonely: list[str] = []
    for shard in tqdm(shards, desc="captions", unit="shard", disable=len(shards) < 2):
        archives.checked(shard, is_sample)
        pictures: dict[str, list[str]] = {}
        texts: dict[str, dict[str, Any]] = {}
        for member, open_member in archives.entries(shard):
            key, ending = key_of(member.name)
            if member.kind != "file" or not is_sample(member.name):
                continue
            if ending in PICTURE_SUFFIXES:
                pictures.setdefault(key, []).append(PurePosixPath(member.name).as_posix())
            else:
                with archives.damage_told(shard), open_member() as file:
                    texts.setdefault(key, {}).update(sample_text(file.read(), ending, f"{shard}: {member.name}"))
        lonely += texts.keys() - pictures.keys()
        by_name = split_of(raw_dir, shard)
        for key, names in pictures.items():
            about = texts.get(key, {})
            captions = about.get("captions", about.get("caption", about.get(".txt")))
            if captions is None:
                wordless += names
                continue
            rows += [Row(name, about.get("split", by_name), texts_of(captions)) for name in names]
    if wordless:
        notes.append(f"{cases(wordless, 'picture')} without a text of the same key, left out")
    if lonely:
        notes.append(f"{cases(sorted(lonely), 'text')} without a picture of the same key, left out")
    return rows, notes


def is_sample(name: str) -> bool:
    return not is_junk(name) and key_of(name)[1] in (*TEXT_SUFFIXES, *PICTURE_SUFFIXES)


def sample_text(data: bytes, ending: str, where: str) -> dict[str, object]:
    """The object of a .json, or {".txt": the lines of a .txt}."""
    try:
        text = data.decode("utf-8-sig")
        if ending == ".txt":
            return {".txt": [line for line in text.splitlines() if line.strip()]}
        about = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no {'UTF-8' if ending == '.txt' else 'JSON'} ({error}); mend it") from None
    if not isinstance(about, dict):
        raise ValueError(f"{where} is no JSON object")
    return about


def unpack_tars(shards: list[Path], file_names: Collection[str], folder: Path) -> None:
    """Write the pictures `file_names` to `folder`; those already there are kept."""
    wanted = set(file_names)
    for shard in shards:
        archives.unpack(shard, archives.checked(shard, wanted.__contains__), folder.joinpath)
