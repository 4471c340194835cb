"""The raw layouts in which captioned pictures are handed around: which one a folder has, and what must hold in all.

`read_layout(raw_dir, seed)` looks at a folder, says which layout it is and why, and returns one record per picture. It
reads the captions only: pictures are not looked at, and nothing is created or changed. Recognised, in this order:

1. Karpathy JSON       `dataset_*.json`   images -> filename, split, sentences -> raw
2. COCO captions JSON  `captions_train2014.json`, `captions_val2014.json`, ...: the split in the file's name
3. captions.jsonl      one object a line: "file_name" or "image", "caption" or "captions", optional "split"
4. captions.csv        columns file_name | image | filename, caption, optional split
5. Hub annotations     `flickr_annotations_30k.csv`   columns raw (JSON list), split, filename
6. Kaggle captions.txt a comma CSV headed image,caption
7. Kaggle results.csv  image_name| comment_number| comment
8. original .token     name#k<TAB>caption, optional lists *trainImages.txt, *devImages.txt, *testImages.txt
9. parquet             rows with the pictures' bytes, as the Hub keeps them (packed.py)
10. WebDataset         tar shards of name.jpg with name.txt or name.json (packed.py)

Splits keep their own names, so that "restval" can be chosen with TRAIN_SPLITS; "dev" and "validation" become "val".
"""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from nanocaption.base.files import cases, is_junk
from nanocaption.prepare import archives, packed
from nanocaption.prepare.caption_files import (
    SPLIT_ALIASES,
    SPLIT_LIST,
    Row,
    read_annotations,
    read_coco,
    read_csv,
    read_jsonl,
    read_karpathy,
    read_results,
    read_token,
    refuse_duplicates,
    split_in_name,
    split_lists,
)
from nanocaption.prepare.raw import NotThereError

SPLITS = ("train", "val", "test")
SPLIT_NAME = r"[\w.-]{1,40}"
TRAIN_SHARE, VAL_SHARE = 0.90, 0.05  # of a set that brings no split of its own; the rest is test


class Layout(NamedTuple):
    """What `read_layout` found.

    records: [{"file_name", "split", "captions": [str, ...], of COCO "image_id"}, ...] in the order of the source.
    notes: lines a person should read: what was left out, repaired or derived.
    drawn: whether the splits come from the seed, because the source has none.
    unpack: (file names, folder) -> None, writes these pictures there; None where they are files of their own.
    """

    name: str
    why: str
    records: list[dict]
    notes: list[str]
    drawn: bool
    unpack: Callable[[Collection[str], Path], None] | None = None


class Found(NamedTuple):
    """Caption files recognised by their names; several only in the layouts of SEVERAL."""

    layout: str
    paths: list[Path]
    reader: Callable[..., tuple[list[Row], list[str]]]


def read_layout(raw_dir: Path, seed: int) -> Layout:
    """Recognise the layout of `raw_dir` and read it.

    The captions may lie in `raw_dir` or one folder below. Splits are the layout's own, otherwise drawn picture by
    picture (`hashed_split`). Raises ValueError with one line for an unknown layout and for faults that a reader must
    not guess about: duplicate ids, unsafe file names, unknown or contradicting splits, a split list that would leave
    its split empty. Captions are given as they stand, also empty ones and what is no text.
    """
    raw_dir = Path(raw_dir)
    found = find_caption_files(raw_dir)
    if not found:
        return read_packed(raw_dir, seed)
    first, *others = found
    rows, notes = first.reader(*first.paths)
    records, more = clean_records(rows, seed, ", ".join(map(str, first.paths)))
    why = f"{', '.join(path.name for path in first.paths)} stands in {first.paths[0].parent}"
    if others:
        names = [path.name for other in others for path in other.paths]
        why += f" (first of the known layouts; not read: {', '.join(names)})"
    return Layout(first.layout, why, records, notes + more, drawn=any(not row.split for row in rows))


def read_packed(raw_dir: Path, seed: int) -> Layout:
    """The records of parquet files or WebDataset shards. Raises NotThereError where there are none."""
    for name, why, shards, reader, unpack in packed.find(raw_dir):
        rows, notes = reader(raw_dir, shards)
        records, more = clean_records(rows, seed, f"{raw_dir}, {cases([shard.name for shard in shards], 'shard')}")
        return Layout(name, why, records, notes + more, drawn=any(not row.split for row in rows),
                      unpack=functools.partial(unpack, raw_dir, shards))
    raise NotThereError(
        f"{raw_dir} holds no captions in a known layout; give it one of: captions.csv, captions.jsonl, dataset_*.json "
        "(Karpathy), captions_train2014.json (COCO), captions.txt or results.csv (Kaggle), *.token[.txt] (original), "
        "*.parquet with the pictures inside, a WebDataset *.tar, or a .zip or .tar of pictures and captions"
    )


def find_caption_files(raw_dir: Path) -> list[Found]:
    """The caption files of `raw_dir`, or else of the first folder directly below it that has any, best layout first."""
    if raw_dir.is_file():
        return []
    if not raw_dir.is_dir():
        raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r}: no such folder; give the one with pictures and captions")
    folders = sorted(path for path in raw_dir.iterdir() if path.is_dir() and not is_junk(path.name))
    for folder in [raw_dir, *folders]:
        names = sorted(path.name for path in folder.iterdir() if path.is_file() and not is_junk(path.name))
        found = []
        for layout, pattern, reader in LAYOUTS:
            matching = [name for name in names if re.fullmatch(pattern, name)]
            # Several files of COCO belong together, but for two of one split: those are of different years.
            splits = {split_in_name(name) for name in matching} if layout in SEVERAL else {None}
            if len(matching) > len(splits):
                raise ValueError(f"{folder} holds {len(matching)} files of the layout {layout} "
                                 f"({', '.join(matching)}): keep the one that belongs to the pictures")
            if matching:
                found.append(Found(layout, [folder / name for name in matching], reader))
        if found:
            return found
    return []


def is_caption_file(name: str) -> bool:
    """Whether a file of this name may be needed to read some layout."""
    last = PurePosixPath(name).name
    return any(re.fullmatch(pattern, last) for _, pattern, _ in LAYOUTS) or SPLIT_LIST.search(last) is not None


def captions_digest(raw_dir: Path) -> str:
    """sha256 over the caption files that `read_layout` would read and their split lists: has the raw set changed?

    Of packed sources and archives, which may be large: names, sizes and the first and last MiB, where a zip and a
    parquet file keep their listing.
    """
    digest = hashlib.sha256()
    if found := find_caption_files(Path(raw_dir)):
        first = found[0]
        lists = split_lists(first.paths[0].parent).values() if first.reader is read_token else []
        for path in [*first.paths, *lists]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()
    shards = next((shards for _, _, shards, _, _ in packed.find(raw_dir)), archives.find(raw_dir))
    for path in shards:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode() + file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()


LAYOUTS = (
    ("Karpathy JSON", r"dataset_(?!infos?\.json).*\.json", read_karpathy),
    ("COCO captions JSON", r"captions_.*\.json", read_coco),
    ("captions.jsonl", r"captions\.jsonl", read_jsonl),
    ("captions.csv", r"captions\.csv", read_csv),
    ("Hub annotations CSV", r"flickr_annotations_\w+\.csv", read_annotations),
    ("Kaggle captions.txt", r"captions\.txt", read_csv),
    ("Kaggle results.csv", r"results\.csv", read_results),
    ("original .token", r"(?!.*lemma).*\.token(\.txt)?", read_token),
)
SEVERAL = ("COCO captions JSON",)


def clean_records(rows: Sequence[Row], seed: int, source: str) -> tuple[list[dict], list[str]]:
    """Rows of any source -> records {"file_name", "split", "captions"} fit for captions.json, and notes.

    Those of COCO have their "image_id" as well.
    File names become relative paths with "/"; captions stay as they are, text or not: preflight.py cleans them. Raises
    ValueError naming `source`, the first cases and their count.
    """
    unsafe = [repr(row.file_name) for row in rows if not is_safe_name(row.file_name)]
    if unsafe:
        raise ValueError(f"{source}: {cases(unsafe, 'file name')} not a plain path below the picture folder (absolute, "
                         "with '..', empty or not text); mend them")
    names = [PurePosixPath(row.file_name.replace("\\", "/")).as_posix() for row in rows]
    refuse_duplicates(names, source)
    notes: list[str] = []
    splits = splits_of(names, rows, seed, source, notes)
    records = [
        {"file_name": name, "split": split, "captions": list(row.captions)}
        | ({} if row.image_id is None else {"image_id": row.image_id})
        for name, row, split in zip(names, rows, splits, strict=True)
    ]
    if not any(isinstance(caption, str) and caption.strip() for record in records for caption in record["captions"]):
        raise ValueError(f"{source} gives no picture with a caption: is this the right file?")
    absent = [split for split in SPLITS if not any(record["split"] == split for record in records)]
    if absent:
        notes.append(f"the source has no {' and no '.join(absent)} pictures, kept as it is")
    return records, notes


def splits_of(names: Sequence[str], rows: Sequence[Row], seed: int, source: str, notes: list[str]) -> list[str]:
    """The split of each row: its own, or by hash where no row has one (which is added to `notes`)."""
    without = [name for name, row in zip(names, rows, strict=True) if not row.split]
    if without and len(without) < len(rows):
        raise ValueError(f"{source}: {cases(without, 'picture')} without a split, others have one; give all or none")
    if without:
        splits = [hashed_split(name, seed) for name in names]
        notes.append(f"no split given: drawn by a hash of the file name, 90 / 5 / 5 (seed {seed})")
        if not {"train", "val"} <= set(splits):
            raise ValueError(f"{source}: {len(names)} pictures are too few to draw train and val by hash; "
                             "add pictures, or a split column with train, val and test")
    else:
        splits = [SPLIT_ALIASES.get(str(row.split).lower(), str(row.split).lower()) for row in rows]
        unfit = sorted({repr(split) for split in splits if not re.fullmatch(SPLIT_NAME, split)})
        if unfit:
            raise ValueError(f"{source}: {cases(unfit, 'split name')} not a plain word; use train, val and test, or "
                             "words of your own that TRAIN_SPLITS, VAL_SPLITS and TEST_SPLITS name")
        own = Counter(split for split in splits if split not in SPLITS)
        if own:
            counts = ", ".join(f"{split} ({count:,})" for split, count in own.items())
            notes.append(f"pictures in use only where TRAIN_SPLITS, VAL_SPLITS or TEST_SPLITS name them: {counts}")
    return splits


def hashed_split(file_name: str, seed: int) -> str:
    """train, val or test (90 / 5 / 5) from the seed and the file name alone, so that adding pictures moves none."""
    digest = hashlib.sha256(f"{seed}:{file_name}".encode()).digest()
    number = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if number < TRAIN_SHARE else "val" if number < TRAIN_SHARE + VAL_SHARE else "test"


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_safe_name(name: Any) -> bool:
    """Whether `name` stays below the folder it is joined to, on any system."""
    if not isinstance(name, str) or not name.strip() or "\0" in name or not is_encodable(name):
        return False
    path, windows = PurePosixPath(name.replace("\\", "/")), PureWindowsPath(name)
    return bool(path.parts) and not (path.is_absolute() or windows.drive or windows.root or ".." in path.parts)
