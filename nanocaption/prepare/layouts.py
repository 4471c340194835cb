"""The raw layouts in which captioned pictures are handed around: which one a folder has, and what must hold in all.

`find(raw_dir)` looks at a folder and gives a `Source` that says which layout it is and why; `read(source, seed)` gives
one record per picture. Only captions are read: pictures are not looked at, and nothing is created or changed. A new
layout is a reader and a line in LAYOUTS (known by the file's name) or BY_CONTENT (any name), or a function
(raw_dir) -> Source and a line in OTHERS. They are asked in this order; docs/data.md has a table of all:

1. LAYOUTS      Karpathy's and COCO's JSON, captions*.jsonl, captions*.csv and .tsv, metadata.* of image folders,
                flickr_annotations_*.csv, captions*.txt, results.csv, *.token with its split lists
2. BY_CONTENT   .json, .jsonl, .csv and .tsv of any other name
3. OTHERS       parquet with the pictures' bytes (packed.py), WebDataset tars (tars.py), texts beside each picture
                (sidecars.py)

All files of one layout, in RAW_DATA_DIR and below, are one set (joining.py); the others are named. Splits keep their
own names, so that "restval" can be chosen with TRAIN_SPLITS; "dev" and "validation" become "val".
"""

import functools
import hashlib
import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nanocaption.base import on_disk
from nanocaption.base.files import PICTURE_SUFFIXES, cases, walk_files
from nanocaption.data.prepared import Record
from nanocaption.prepare import (
    archives,
    caption_files,
    caption_json,
    caption_tables,
    inventory,
    joining,
    packed,
    sidecars,
    splits,
    tars,
)
from nanocaption.prepare.caption_files import SPLIT_LIST, NotThereError, Row, Rows, Source, refuse
from nanocaption.prepare.picture_files import plain_name

SPLITS = ("train", "val", "test")
SPLIT_NAME = r"[\w.-]{1,40}"


TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".xls", ".ods")
MOST_LOOKED_AT = 200  # files under names of their own; more are one file a picture


class Layout(NamedTuple):
    """A layout that is known by the name of its caption file."""

    name: str
    pattern: str  # of the file's name
    read: Callable[..., Rows]  # (path, and where `lists` the files of SPLIT_LIST beside it) -> rows and notes
    several: str = "all"  # how many files may belong together: "all", one "of each split", "one"
    lists: bool = False


LAYOUTS = (
    Layout("Karpathy JSON", r"dataset_(?!infos?\.json).*\.json", caption_json.read_json, "one"),
    Layout("COCO captions JSON", r"captions_.*\.json", caption_json.read_json, "of each split"),
    Layout("captions.jsonl", r"(captions.*|metadata)\.jsonl", caption_json.read_jsonl),
    Layout("captions.csv", r"(captions.*|metadata)\.(csv|tsv)", caption_tables.read_csv),
    Layout("metadata.parquet", r"metadata\.parquet", caption_json.read_metadata_parquet),
    Layout("Hub annotations CSV", r"flickr_annotations_\w+\.csv", caption_tables.read_annotations, "one"),
    Layout("Kaggle captions.txt", r"captions.*\.txt", caption_tables.read_csv),
    Layout("Kaggle results.csv", r"results\.csv", caption_files.read_results, "one"),
    Layout("original .token", r"(?!.*lemma).*\.token(\.txt)?", caption_files.read_token, "one", lists=True),
)
# Where no name is known: (layout, (path) -> what it is called, or ValueError with why it is none).
BY_CONTENT = (
    (Layout("JSON", r".*\.json", caption_json.read_json, "of each split"), caption_json.is_json),
    (Layout("JSON lines", r".*\.jsonl", caption_json.read_jsonl), caption_json.is_jsonl),
    (Layout("table", r".*\.(csv|tsv)", caption_tables.read_csv), caption_tables.is_table),
    (Layout("spreadsheet", r".*\.(xlsx|xls|ods)", caption_tables.read_csv), caption_tables.is_spreadsheet),
)
# (raw_dir) -> Source, or None where it is another layout
OTHERS = (packed.find_parquet, tars.find_webdataset, sidecars.find_sidecars)


class Contents(NamedTuple):
    """A source that was read: its records, in its own order."""

    source: Source
    records: Sequence[Record]
    notes: list[str]  # lines a person should read: what was left out, repaired or derived
    drawn: bool  # whether the splits come from the seed, because the source has none


def read_layout(raw_dir: Path, seed: int) -> Contents:
    """Recognise the layout of `raw_dir` and read it. Raises what `find` and `read` do."""
    return read(find(Path(raw_dir)), seed)


def read(source: Source, seed: int, scratch: Path | None = None) -> Contents:
    """The records of a source. Splits are its own, otherwise drawn from names and seed alone (splits.py).

    Raises ValueError with one line for faults that a reader must not guess about: duplicate ids, unsafe file names,
    unknown or contradicting splits, a split list that would leave its split empty. Captions are given as they stand,
    also empty ones and what is no text. scratch: where the records lie that memory need not hold, see on_disk.rows.
    """
    rows, notes = source.read()
    records, more = clean_records(rows, seed, source.origin, scratch)
    return Contents(source, records, notes + more, drawn=any(not row.split for row in rows))


def find(raw_dir: Path) -> Source:
    """The captions that lie in `raw_dir` or below. Raises NotThereError for an unknown layout."""
    source, why_not = find_caption_files(raw_dir)
    if source := source or next(filter(None, (find_other(raw_dir) for find_other in OTHERS)), None):
        return source
    raise NotThereError(
        f"{raw_dir} holds no captions in a known layout. {inventory.describe(raw_dir)}. Give it one of: "
        "captions.csv, captions.jsonl, dataset_*.json (Karpathy), captions_train2014.json (COCO), captions.txt or "
        "results.csv (Kaggle), *.token[.txt] (original), *.parquet with the pictures inside, a WebDataset *.tar, a "
        ".txt of the same name beside each picture, or a .zip or .tar of pictures and captions"
        + "".join(f"; not read: {reason}" for reason in why_not[:3])
    )


def find_caption_files(raw_dir: Path) -> tuple[Source | None, list[str]]:
    """All files of one layout in `raw_dir` and below, and where there are none why the others hold no captions.

    The layout is the one whose files lie least deep, of several there the first of LAYOUTS.
    """
    if raw_dir.is_file():
        return None, []
    if not raw_dir.is_dir():
        raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r}: no such folder; give the one with pictures and captions")
    files = caption_candidates(raw_dir)
    found = known_by_name(files)
    if not found:
        found, why_not = recognised(raw_dir, files)
        if not found:
            return None, why_not
    depths = {key: min(file.count("/") for file in its) for key, its in found.items()}
    (layout, name), depth = min(depths.items(), key=lambda item: item[1])  # the first of equals
    its = [file for file in found[layout, name] if layout.several == "all" or file.count("/") == depth]
    return source_of(raw_dir, layout, name, its, [file for file in files if file not in set(its)]), []


def known_by_name(files: Sequence[str]) -> dict[tuple[Layout, str], list[str]]:
    named = [(layout, [file for file in files if has_pattern(layout, file)]) for layout in LAYOUTS]
    return {(layout, layout.name): its for layout, its in named if its}


def has_pattern(layout: Layout, file: str) -> bool:
    return re.fullmatch(layout.pattern, file.rpartition("/")[2], re.IGNORECASE) is not None


def caption_candidates(raw_dir: Path) -> list[str]:
    """The files in `raw_dir` and below that may hold captions of many pictures, by their names.

    Not: what has a picture of the same name beside it, which is about that one.
    """
    found = []
    for _, group in itertools.groupby(walk_files(raw_dir), key=lambda path: path.rpartition("/")[0]):
        paths = [*group]
        stems = {path.rpartition(".")[0] for path in paths if path.lower().endswith(PICTURE_SUFFIXES)}
        found += [path for path in paths if may_hold_captions(path) and path.rpartition(".")[0] not in stems]
    return found


def may_hold_captions(name: str) -> bool:
    last = PurePosixPath(name).name
    return last.lower().endswith(TABLE_SUFFIXES) or any(has_pattern(layout, last) for layout in LAYOUTS)


def recognised(raw_dir: Path, files: Sequence[str]) -> tuple[dict[tuple[Layout, str], list[str]], list[str]]:
    """Files of captions under any name: (layout, what it is called) -> files, in the order of BY_CONTENT; why not."""
    found: dict[tuple[Layout, str], list[str]] = {}
    why_not = []
    for layout, is_one in BY_CONTENT:
        its = [file for file in files if has_pattern(layout, file)]
        if len(its) > MOST_LOOKED_AT:
            why_not.append(f"{cases(its, 'file')}, more than are looked at one by one; put the captions into one file")
            continue
        for file in its:
            try:
                found.setdefault((layout, is_one(raw_dir / file)), []).append(file)
            except ValueError as error:
                why_not.append(str(error))
    return found, why_not


def source_of(raw_dir: Path, layout: Layout, name: str, files: Sequence[str], unread: Sequence[str]) -> Source:
    """The source that these files are. Raises ValueError for several that are not of one set."""
    # Two files of one split are of different years, and the sets of Karpathy are three.
    splits = {caption_files.split_of_path(file) for file in files}
    allowed = {"one": 1, "of each split": len(splits)}.get(layout.several, len(files))
    if len(files) > allowed:
        raise ValueError(f"{raw_dir} holds {len(files)} files of the layout {name} ({', '.join(files[:10])}): keep the "
                         "one that belongs to the pictures")
    folders = sorted({file.rpartition("/")[0] for file in files})
    if len(folders) == 1:
        why = f"{all_or_cases([file.rpartition('/')[2] for file in files])} stands in {raw_dir / folders[0]}"
    else:
        why = f"{all_or_cases(files)} stand in {raw_dir}"
    if unread:
        why += f" (first of the known layouts; not read: {all_or_cases(unread)}; {len(unread)} in all)"
    lists = {folder: sorted(path for path in (raw_dir / folder).iterdir() if SPLIT_LIST.search(path.name))
             for folder in folders if layout.lists}  # fmt: skip
    paths = [*(raw_dir / file for file in files), *(path for its in lists.values() for path in its)]
    readers = {file: functools.partial(layout.read, raw_dir / file, *lists.get(file.rpartition("/")[0], ()))
               for file in files}  # fmt: skip
    may_draw = not layout.pattern.startswith("captions_")  # COCO's files come one by one
    return Source(name, why, all_or_cases([*map(str, paths)]), paths,
                  functools.partial(joining.read_files, raw_dir, readers, may_draw))  # fmt: skip


def all_or_cases(files: Sequence[str]) -> str:
    return ", ".join(files) if len(files) <= 10 else cases(files, "file")


def is_caption_file(name: str) -> bool:
    """Whether a file of this name may be needed to read some layout."""
    last = PurePosixPath(name).name
    known = may_hold_captions(name) or SPLIT_LIST.search(last) is not None
    return known or last.lower().endswith(sidecars.TEXT_ENDINGS)


def captions_digest(raw_dir: Path) -> str:
    """sha256 over the files that `read_layout` would read: has the raw set changed?

    Of packed sources and archives, which may be large: names, sizes and the first and last MiB, where a zip and a
    parquet file keep their listing.
    """
    digest = hashlib.sha256()
    try:
        source = find(Path(raw_dir))
    except NotThereError:
        source = None
    if source and source.unpack is None:
        for path in source.files:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()
    for path in source.files if source else archives.find(raw_dir):
        digest.update(ends_of(path))
    return digest.hexdigest()


def ends_of(path: Path) -> bytes:
    """The name, the size, and the first and the last MiB of a file."""
    with path.open("rb") as file:
        size = path.stat().st_size
        first = file.read(2**20)
        file.seek(max(0, size - 2**20))
        return f"{path.name} {size}\n".encode() + first + file.read()


def clean_records(
    rows: Sequence[Row], seed: int, source: str, scratch: Path | None = None
) -> tuple[Sequence[Record], list[str]]:
    """Rows of any source -> records {"file_name", "split", "captions"} fit for captions.json, and notes.

    Those of COCO have their "image_id" as well, number or text as it came, and those of nocaps their "domain".
    File names become relative paths with "/"; captions stay as they are, text or not: check.py cleans them. Raises
    ValueError naming `source`, the first cases and their count.
    """
    names, of_rows, notes = named_rows(rows, seed, source, scratch)
    captions, more = caption_files.texts_of_rows(rows, source, scratch)
    records = on_disk.rows(scratch, (record_of(*parts) for parts in zip(rows, names, of_rows, captions, strict=True)))
    notes += more
    if not any(isinstance(caption, str) and caption.strip() for record in records for caption in record["captions"]):
        raise ValueError(f"{source} gives no picture with a caption: is this the right file?")
    absent = [split for split in SPLITS if split not in of_rows]
    if absent:
        notes.append(f"the source has no {' and no '.join(absent)} pictures, kept as it is")
    return records, notes


def named_rows(
    rows: Sequence[Row], seed: int, source: str, scratch: Path | None = None
) -> tuple[Sequence[str], list[str], list[str]]:
    """(the file name of each row as a relative path, its split, notes). Raises ValueError as `clean_records`."""
    unsafe = [repr(row.file_name) for row in rows if not is_safe_name(plain_name(row.file_name))]
    refuse(unsafe, "file name", source, "not a plain path below the picture folder (with '..' inside, empty or not "
           "text); mend them")  # fmt: skip
    names = on_disk.rows(scratch, (str(plain_name(row.file_name)) for row in rows))
    caption_files.refuse_duplicates(names, source)
    splits, notes = splits_of(names, rows, seed, source, scratch)
    return names, splits, notes


def record_of(row: Row, name: str, split: str, captions: list[str]) -> Record:
    record: Record = {"file_name": name, "split": split, "captions": captions}
    if row.image_id is not None:
        record["image_id"] = row.image_id
    if isinstance(row.domain, str):
        record["domain"] = row.domain
    return record


def splits_of(
    names: Sequence[str], rows: Sequence[Row], seed: int, source: str, scratch: Path | None = None
) -> tuple[list[str], list[str]]:
    """The split of each row and notes: its own, or a drawn one where no row has one."""
    without = on_disk.rows(scratch, (name for name, row in zip(names, rows, strict=True) if not row.split))
    if len(without) < len(rows):
        refuse(without, "picture", source, "without a split, others have one; give all or none")
    if without:
        if len(names) < splits.LEAST:
            raise ValueError(f"{source}: {len(names)} pictures are too few to draw train, val and test: "
                             f"{splits.LEAST} are needed; add pictures, or a split column")
        return splits.draw(names, seed), [f"no split given: drawn with DATA_SEED = {seed}, {splits.RULE}"]
    own = [sys.intern(caption_files.plain_split(row.split)) for row in rows]  # one text for each split, not each row
    unfit = sorted({repr(split) for split in own if not re.fullmatch(SPLIT_NAME, split)})
    refuse(unfit, "split name", source, "not a plain word; use train, val and test, or words of your own that "
           "TRAIN_SPLITS, VAL_SPLITS and TEST_SPLITS name")  # fmt: skip
    others = [f"{split} ({count:,})" for split, count in Counter(own).items() if split not in SPLITS]
    return own, [f"pictures in use only where TRAIN_SPLITS, VAL_SPLITS or TEST_SPLITS name them: {', '.join(others)}"
                 ] * bool(others)  # fmt: skip


def is_safe_name(name: object) -> bool:
    """Whether `name` is text that stays below the folder it is joined to, on any system."""
    if not isinstance(name, str) or not name.strip() or any("\ud800" <= letter <= "\udfff" for letter in name):
        return False
    return not archives.leads_out(name) and bool(PurePosixPath(name).parts)
