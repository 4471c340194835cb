"""Readers of the raw layouts in which captioned pictures are handed around.

`read_layout(raw_dir, seed)` looks at a folder, says which layout it is and why, and returns one record per picture. It
reads the captions only: pictures are not looked at, and nothing is created or changed. Recognised, in this order:

1. Karpathy JSON       `dataset_*.json`   images -> filename, split, sentences -> raw ("restval" counts as train)
2. captions.jsonl      one object a line: "file_name" or "image", "caption" or "captions", optional "split"
3. captions.csv        columns file_name | image | filename, caption, optional split
4. Kaggle captions.txt a comma CSV headed image,caption
5. Kaggle results.csv  image_name| comment_number| comment
6. original .token     name#k<TAB>caption, optional lists *trainImages.txt, *devImages.txt, *testImages.txt
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"training": "train", "restval": "train", "valid": "val", "validation": "val", "dev": "val"}
FILE_NAME_KEYS = ("file_name", "image", "filename", "image_name")
CAPTION_KEYS = ("caption", "comment")
TRAIN_SHARE, VAL_SHARE = 0.90, 0.05  # of a set that brings no split of its own; the rest is test


class Layout(NamedTuple):
    """What `read_layout` found.

    records: [{"file_name", "split", "captions": [str, ...]}, ...] in the order of the caption file.
    notes: lines a person should read: what was left out, repaired or derived.
    drawn: whether the splits come from the seed, because the source has none.
    """

    name: str
    why: str
    records: list[dict]
    notes: list[str]
    drawn: bool


class Row(NamedTuple):
    """One picture as its caption file describes it, before any check: every field may still be wrong."""

    file_name: Any
    split: Any
    captions: list


class Found(NamedTuple):
    """A caption file recognised by its name."""

    layout: str
    path: Path
    reader: Callable[[Path], tuple[list[Row], list[str]]]


def read_layout(raw_dir: Path, seed: int) -> Layout:
    """Recognise the layout of `raw_dir` and read it.

    The captions may lie in `raw_dir` or one folder below. Splits are the layout's own, otherwise drawn picture by
    picture (`hashed_split`). Raises ValueError with one line for an unknown layout and for faults that a reader must
    not guess about: duplicate ids, unsafe file names, unknown or contradicting splits, a split list that would leave
    its split empty. Captions are given as they stand, also empty ones and what is no text.
    """
    raw_dir = Path(raw_dir)
    found, *others = find_caption_files(raw_dir)
    rows, notes = found.reader(found.path)
    records, more = clean_records(rows, seed, str(found.path))
    why = f"{found.path.name} stands in {found.path.parent}"
    if others:
        why += f" (first of the known layouts; not read: {', '.join(other.path.name for other in others)})"
    return Layout(found.layout, why, records, notes + more, drawn=any(not row.split for row in rows))


def find_caption_files(raw_dir: Path) -> list[Found]:
    """The caption files of `raw_dir`, or else of the first folder directly below it that has any, best layout first."""
    if not raw_dir.is_dir():
        raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r}: no such folder; give the one with pictures and captions")
    folders = sorted(path for path in raw_dir.iterdir() if path.is_dir() and not is_junk(path.name))
    for folder in [raw_dir, *folders]:
        names = sorted(path.name for path in folder.iterdir() if path.is_file() and not is_junk(path.name))
        found = []
        for layout, pattern, reader in LAYOUTS:
            matching = [name for name in names if re.fullmatch(pattern, name)]
            if len(matching) > 1:
                raise ValueError(f"{folder} holds {len(matching)} files of the layout {layout} "
                                 f"({', '.join(matching)}): keep the one that belongs to the pictures")
            found += [Found(layout, folder / name, reader) for name in matching]
        if found:
            return found
    raise ValueError(f"{raw_dir} holds no captions in a known layout; give it one of: captions.csv, captions.jsonl, "
                     "dataset_*.json (Karpathy), captions.txt or results.csv (Kaggle), *.token[.txt] (original)")


def captions_digest(raw_dir: Path) -> str:
    """sha256 over the caption file that `read_layout` would read and its split lists: has the raw set changed?"""
    found = find_caption_files(Path(raw_dir))[0]
    digest = hashlib.sha256()
    for path in [found.path, *(split_lists(found.path.parent).values() if found.reader is read_token else [])]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# --- the layouts: path of the caption file -> rows and notes ------------------------------------------------

def read_karpathy(path: Path) -> tuple[list[Row], list[str]]:
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); fetch or unpack it again") from None
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not all(
        isinstance(image, dict) and "filename" in image and isinstance(image.get("sentences"), list) for image in images
    ):
        raise ValueError(f"{path} is not in Karpathy's layout: "
                         '{"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}')
    return [
        Row(image["filename"], image.get("split"),
            [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in image["sentences"]])
        for image in images
    ], []


def read_jsonl(path: Path) -> tuple[list[Row], list[str]]:
    rows, pairs = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not a JSON object ({error})") from None
        keys = entry.keys() if isinstance(entry, dict) else ()
        name = next((key for key in FILE_NAME_KEYS if key in keys), None)
        if name is None or not {"caption", "captions"} & set(keys):
            raise ValueError(f'{path}, line {number}: expected an object with "file_name" (or "image") '
                             'and "caption" (or "captions")')
        captions = entry.get("captions", entry.get("caption"))
        if isinstance(captions, list):
            rows.append(Row(entry[name], entry.get("split"), captions))
        else:
            pairs.append((entry[name], captions, entry.get("split")))
    return rows + group_pairs(pairs, path), []


def read_csv(path: Path) -> tuple[list[Row], list[str]]:
    """captions.csv and Kaggle's captions.txt: comma CSV with a header; captions with commas in double quotes."""
    # strict: otherwise a caption that merely opens with a quoted word loses its quotes, and an unclosed quote eats the
    # lines below
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: broken quotes ({error}); a caption with commas or quotes "
                         'stands in double quotes, and a quote inside it is doubled ("")') from None
    name = next((key for key in FILE_NAME_KEYS if key in header), None)
    caption = next((key for key in CAPTION_KEYS if key in header), None)
    if name is None or caption is None:
        raise ValueError(f"{path} begins with {','.join(header)[:80]!r}: expected a header with the columns image "
                         "(or file_name), caption and optionally split, separated by commas")
    uneven = [f"line {number} ({len(cells)} cells)" for number, cells in lines if len(cells) != len(header)]
    if uneven:
        raise ValueError(f"{path}: {cases(uneven, 'row')} unlike the header's {len(header)} columns; "
                         "a caption with a comma stands in double quotes")
    table = [dict(zip(header, cells, strict=True)) for _, cells in lines]
    return group_pairs([(line[name].strip(), line[caption], line.get("split", "").strip()) for line in table], path), []


def read_results(path: Path) -> tuple[list[Row], list[str]]:
    """Kaggle's results.csv. Its one known broken row lacks the second "|" ("name.jpg| 4   A dog ..."): mended."""
    header, *lines = read_text(path).split("\n")
    if [cell.strip() for cell in header.split("|")] != ["image_name", "comment_number", "comment"]:
        raise ValueError(f"{path} begins with {header.strip()[:80]!r}: expected 'image_name| comment_number| comment'")
    pairs, keys, broken, repaired = [], [], [], []
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("|", 2)]
        if len(cells) == 2 and (parts := re.fullmatch(r"(\d+)\s+(.+)", cells[1])):
            repaired.append(f"line {number} ({cells[0]})")
            cells = [cells[0], *parts.groups()]
        if len(cells) != 3:
            broken.append(f"line {number}")
            continue
        keys.append(f"{cells[0]}|{cells[1]}")
        pairs.append((cells[0], cells[2], None))
    if broken:
        raise ValueError(f"{path}: {cases(broken, 'row')} not of the form 'image| number| caption'; mend or delete")
    refuse_duplicates(keys, path)
    notes = [f"{path.name}: repaired {cases(repaired, 'row')} lacking the second '|'"] if repaired else []
    return group_pairs(pairs, path), notes


def read_token(path: Path) -> tuple[list[Row], list[str]]:
    pairs, keys, broken = [], [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        key, tab, caption = line.partition("\t")
        name, mark, index = key.strip().rpartition("#")
        if tab and mark and index.isdigit():
            keys.append(key.strip())
            pairs.append((name, caption, None))
        elif line.strip():
            broken.append(f"line {number}")
    if broken:
        raise ValueError(f"{path}: {cases(broken, 'line')} not of the form name.jpg#0<TAB>caption; mend or delete them")
    refuse_duplicates(keys, path)
    rows, lists = group_pairs(pairs, path), split_lists(path.parent)
    return apply_split_lists(rows, lists) if lists else (rows, [])


def split_lists(folder: Path) -> dict[str, Path]:
    """split -> the file that lists its pictures: Flickr_8k.trainImages.txt, flickr30k_val_images.txt, ..."""
    lists: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.search(r"(train|dev|val|test)[^/]*images\.txt$", path.name, re.IGNORECASE)
        if match and not is_junk(path.name):
            split = SPLIT_ALIASES.get(match[1].lower(), match[1].lower())
            if split in lists:
                raise ValueError(f"{folder} holds two lists for {split} ({lists[split].name}, {path.name}): keep one")
            lists[split] = path
    return lists


def apply_split_lists(rows: list[Row], lists: dict[str, Path]) -> tuple[list[Row], list[str]]:
    """Give each row the split whose list names it; rows in no list are left out and noted."""
    split_of: dict[str, str] = {}
    notes, known = [], {row.file_name for row in rows}
    for split, path in lists.items():
        names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        names = [f"{name}.jpg" if name not in known and f"{name}.jpg" in known else name for name in names]
        twice = [name for name in names if split_of.setdefault(name, split) != split]
        if twice:
            raise ValueError(f"{path}: {cases(twice, 'picture')} also in another split's list; list each once")
        if not known.intersection(names):
            raise ValueError(f"{path} names no picture that has captions, so {split} would be empty: mend or delete it")
        bare = [name for name in names if name not in known]
        if bare:
            notes.append(f"{path.name} lists {cases(bare, 'picture')} without captions, left out")
    unlisted = [row.file_name for row in rows if row.file_name not in split_of]
    if unlisted:
        notes.append(f"{cases(unlisted, 'captioned picture')} in none of the split lists, left out")
    return [row._replace(split=split_of[row.file_name]) for row in rows if row.file_name in split_of], notes


LAYOUTS = (
    ("Karpathy JSON", r"dataset_(?!infos?\.json).*\.json", read_karpathy),
    ("captions.jsonl", r"captions\.jsonl", read_jsonl),
    ("captions.csv", r"captions\.csv", read_csv),
    ("Kaggle captions.txt", r"captions\.txt", read_csv),
    ("Kaggle results.csv", r"results\.csv", read_results),
    ("original .token", r"(?!.*lemma).*\.token(\.txt)?", read_token),
)


# --- checks that hold for every source ----------------------------------------------------------------------

def clean_records(rows: Sequence[Row], seed: int, source: str) -> tuple[list[dict], list[str]]:
    """Rows of any source -> records {"file_name", "split", "captions"} fit for captions.json, and notes.

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
    records = [{"file_name": name, "split": split, "captions": list(row.captions)}
               for name, row, split in zip(names, rows, splits, strict=True)]  # fmt: skip
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
        unknown = [repr(row.split) for row, split in zip(rows, splits, strict=True) if split not in SPLITS]
        if unknown:
            raise ValueError(f"{source}: {cases(unknown, 'split name')} not known; use train, val or test")
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


def is_junk(name: str) -> bool:
    """Hidden files, among them AppleDouble `._name`, and the folder that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


# --- small helpers ------------------------------------------------------------------------------------------

def read_text(path: Path) -> str:
    """The file as text; line ends become "\\n". Raises ValueError where it is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte {data[error.start]:#04x}"
        raise ValueError(f"{path}, line {line}: not UTF-8 ({byte}); save the file as UTF-8") from None


def group_pairs(pairs: Iterable[tuple[Any, Any, Any]], source: Path) -> list[Row]:
    """(file_name, caption, split) lines -> one row per picture, in order of first appearance."""
    rows: dict[str, Row] = {}
    torn = []
    for name, caption, split in pairs:
        row = rows.setdefault(name if isinstance(name, str) else repr(name), Row(name, split, []))
        row.captions.append(caption)
        if row.split != split:
            torn.append(repr(name))
    if torn:
        raise ValueError(f"{source}: {cases(torn, 'picture')} in two splits at once; give each picture one split")
    return list(rows.values())


def refuse_duplicates(ids: Sequence[str], source: Path | str) -> None:
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{source}: {cases(twice, 'id')} given more than once; keep one of each")


def cases(items: Sequence[str], noun: str) -> str:
    """'5 pictures (a.jpg, b.jpg, c.jpg, ...)': the count and the first three."""
    shown = ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'} ({shown})"
