"""The raw layouts in which captioned pictures are handed around: which one a folder has, and what must hold in all.

`find(raw_dir)` looks at a folder and gives a `Source` that says which layout it is and why; `read(source, seed)` gives
one record per picture. Only captions are read: pictures are not looked at, and nothing is created or changed. A new
layout is a reader and a line in LAYOUTS, or where names do not tell it a function (raw_dir) -> Source and a line in
OTHERS. Recognised, in this order:

1. Karpathy JSON       `dataset_*.json`   images -> filename, split, sentences -> raw
2. COCO captions JSON  `captions_train2014.json`, `captions_val2014.json`, ...: the split in the file's name
3. captions.jsonl      one object a line: "file_name" or "image", "caption" or "captions", optional "split"
4. captions.csv        columns file_name | image | filename, caption, optional split
5. Hub annotations     `flickr_annotations_30k.csv`   columns raw (JSON list), split, filename
6. Kaggle captions.txt a comma CSV headed image,caption
7. Kaggle results.csv  image_name| comment_number| comment
8. original .token     name#k<TAB>caption, optional lists *trainImages.txt, *devImages.txt, *testImages.txt
9. parquet             rows with the pictures' bytes, as the Hub keeps them (packed.py)
10. WebDataset         tar shards of name.jpg with name.txt or name.json (tars.py)
11. sidecars           name.txt, name.caption or name.json beside each picture (sidecars.py)

Splits keep their own names, so that "restval" can be chosen with TRAIN_SPLITS; "dev" and "validation" become "val".
"""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nanocaption.base.files import is_junk
from nanocaption.data.prepared import Record
from nanocaption.prepare import archives, caption_files, inventory, packed, sidecars, splits, tars
from nanocaption.prepare.caption_files import SPLIT_LIST, NotThereError, Row, Rows, Source, refuse
from nanocaption.prepare.picture_files import plain_name

SPLITS = ("train", "val", "test")
SPLIT_NAME = r"[\w.-]{1,40}"


class Layout(NamedTuple):
    """A layout that is known by the name of its caption file."""

    name: str
    pattern: str  # of the file's name
    read: Callable[..., Rows]  # (path, ...) -> rows and notes
    by_split: bool = False  # whether several files belong together, one of each split
    lists: bool = False  # whether the files of SPLIT_LIST beside it are given to `read` as well


LAYOUTS = (
    Layout("Karpathy JSON", r"dataset_(?!infos?\.json).*\.json", caption_files.read_karpathy),
    Layout("COCO captions JSON", r"captions_.*\.json", caption_files.read_coco, by_split=True),
    Layout("captions.jsonl", r"captions\.jsonl", caption_files.read_jsonl),
    Layout("captions.csv", r"captions\.csv", caption_files.read_csv),
    Layout("Hub annotations CSV", r"flickr_annotations_\w+\.csv", caption_files.read_annotations),
    Layout("Kaggle captions.txt", r"captions\.txt", caption_files.read_csv),
    Layout("Kaggle results.csv", r"results\.csv", caption_files.read_results),
    Layout("original .token", r"(?!.*lemma).*\.token(\.txt)?", caption_files.read_token, lists=True),
)
# (raw_dir) -> Source, or None where it is another layout
OTHERS = (packed.find_parquet, tars.find_webdataset, sidecars.find_sidecars)


class Contents(NamedTuple):
    """A source that was read: its records, in its own order."""

    source: Source
    records: list[Record]
    notes: list[str]  # lines a person should read: what was left out, repaired or derived
    drawn: bool  # whether the splits come from the seed, because the source has none


def read_layout(raw_dir: Path, seed: int) -> Contents:
    """Recognise the layout of `raw_dir` and read it. Raises what `find` and `read` do."""
    return read(find(Path(raw_dir)), seed)


def read(source: Source, seed: int) -> Contents:
    """The records of a source. Splits are its own, otherwise drawn from names and seed alone (splits.py).

    Raises ValueError with one line for faults that a reader must not guess about: duplicate ids, unsafe file names,
    unknown or contradicting splits, a split list that would leave its split empty. Captions are given as they stand,
    also empty ones and what is no text.
    """
    rows, notes = source.read()
    records, more = clean_records(rows, seed, source.origin)
    return Contents(source, records, notes + more, drawn=any(not row.split for row in rows))


def find(raw_dir: Path) -> Source:
    """The captions that lie in `raw_dir`, or one folder below. Raises NotThereError for an unknown layout."""
    if source := find_caption_files(raw_dir):
        return source
    if source := next(filter(None, (find_other(raw_dir) for find_other in OTHERS)), None):
        return source
    raise NotThereError(
        f"{raw_dir} holds no captions in a known layout. {inventory.describe(raw_dir)}. Give it one of: "
        "captions.csv, captions.jsonl, dataset_*.json (Karpathy), captions_train2014.json (COCO), captions.txt or "
        "results.csv (Kaggle), *.token[.txt] (original), *.parquet with the pictures inside, a WebDataset *.tar, a "
        ".txt of the same name beside each picture, or a .zip or .tar of pictures and captions"
    )


def find_caption_files(raw_dir: Path) -> Source | None:
    """The first of LAYOUTS in `raw_dir`, or else in the first folder directly below it that has any."""
    if raw_dir.is_file():
        return None
    if not raw_dir.is_dir():
        raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r}: no such folder; give the one with pictures and captions")
    folders = sorted(path for path in raw_dir.iterdir() if path.is_dir() and not is_junk(path.name))
    return next(filter(None, map(caption_files_in, [raw_dir, *folders])), None)


def caption_files_in(folder: Path) -> Source | None:
    """The first of LAYOUTS directly in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not is_junk(path.name))
    found = [(layout, its) for layout in LAYOUTS if (its := names_of(layout, folder, names))]
    if not found:
        return None
    layout, its = found[0]
    files = [folder / name for name in [*its, *(name for name in names if layout.lists and SPLIT_LIST.search(name))]]
    why = f"{', '.join(its)} stands in {folder}"
    if len(found) > 1:
        unread = ", ".join(name for _, theirs in found[1:] for name in theirs)
        why += f" (first of the known layouts; not read: {unread})"
    return Source(layout.name, why, ", ".join(map(str, files)), files, functools.partial(layout.read, *files))


def names_of(layout: Layout, folder: Path, names: Sequence[str]) -> list[str]:
    """The files of a layout among the `names` in a folder. Raises ValueError for several that are not of one set."""
    matching = [name for name in names if re.fullmatch(layout.pattern, name)]
    # Two files of one split are of different years.
    allowed = len({caption_files.split_in_name(name) for name in matching}) if layout.by_split else 1
    if len(matching) > allowed:
        raise ValueError(f"{folder} holds {len(matching)} files of the layout {layout.name} "
                         f"({', '.join(matching)}): keep the one that belongs to the pictures")
    return matching


def is_caption_file(name: str) -> bool:
    """Whether a file of this name may be needed to read some layout."""
    last = PurePosixPath(name).name
    known = any(re.fullmatch(layout.pattern, last) for layout in LAYOUTS) or SPLIT_LIST.search(last) is not None
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
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode() + file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()


def clean_records(rows: Sequence[Row], seed: int, source: str) -> tuple[list[Record], list[str]]:
    """Rows of any source -> records {"file_name", "split", "captions"} fit for captions.json, and notes.

    Those of COCO have their "image_id" as well.
    File names become relative paths with "/"; captions stay as they are, text or not: check.py cleans them. Raises
    ValueError naming `source`, the first cases and their count.
    """
    unsafe = [repr(row.file_name) for row in rows if not is_safe_name(plain_name(row.file_name))]
    refuse(unsafe, "file name", source, "not a plain path below the picture folder (with '..' inside, empty or not "
           "text); mend them")  # fmt: skip
    names = [str(plain_name(row.file_name)) for row in rows]
    caption_files.refuse_duplicates(names, source)
    of_rows, notes = splits_of(names, rows, seed, source)
    records: list[Record] = []
    for name, row, split in zip(names, rows, of_rows, strict=True):
        records.append({"file_name": name, "split": split, "captions": list(row.captions)})
        if row.image_id is not None:
            records[-1]["image_id"] = row.image_id
    if not any(isinstance(caption, str) and caption.strip() for record in records for caption in record["captions"]):
        raise ValueError(f"{source} gives no picture with a caption: is this the right file?")
    absent = [split for split in SPLITS if split not in of_rows]
    if absent:
        notes.append(f"the source has no {' and no '.join(absent)} pictures, kept as it is")
    return records, notes


def splits_of(names: Sequence[str], rows: Sequence[Row], seed: int, source: str) -> tuple[list[str], list[str]]:
    """The split of each row and notes: its own, or a drawn one where no row has one."""
    without = [name for name, row in zip(names, rows, strict=True) if not row.split]
    if len(without) < len(rows):
        refuse(without, "picture", source, "without a split, others have one; give all or none")
    if without:
        if len(names) < splits.LEAST:
            raise ValueError(f"{source}: {len(names)} pictures are too few to draw train, val and test: "
                             f"{splits.LEAST} are needed; add pictures, or a split column")
        drawn = splits.draw(names, seed)
        return [drawn[name] for name in names], [f"no split given: drawn with DATA_SEED = {seed}, {splits.RULE}"]
    own = [caption_files.plain_split(row.split) for row in rows]
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
