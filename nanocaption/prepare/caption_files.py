"""Readers of caption files: the path of a file in a known layout -> one Row per picture, and notes.

Which file is read, and what is checked afterwards, is layouts.py's. Raises ValueError with one line that names the
file, the first cases and their count, for whatever a reader must not guess about.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nanocaption.base.files import PICTURE_SUFFIXES, cases, is_junk

SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
FILE_NAME_KEYS = ("file_name", "image", "filename", "image_name")
CAPTION_KEYS = ("caption", "comment")
SPLIT_LIST = re.compile(r"(train|dev|val|test)[^/]*images\.txt$", re.IGNORECASE)  # Flickr_8k.trainImages.txt


class Row(NamedTuple):
    """One picture as its caption file describes it, before any check: every field may still be wrong."""

    file_name: Any
    split: Any
    captions: list
    image_id: int | None = None  # COCO's own number of the picture


def read_karpathy(path: Path) -> tuple[list[Row], list[str]]:
    data = read_json(path)
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not all(
        isinstance(image, dict) and "filename" in image and isinstance(image.get("sentences"), list) for image in images
    ):
        raise ValueError(f"{path} is not in Karpathy's layout: "
                         '{"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}')
    return [
        Row(image["filename"], image.get("split"),
            [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in image["sentences"]],
            _number(image.get("cocoid")))
        for image in images
    ], []


def read_annotations(path: Path) -> tuple[list[Row], list[str]]:
    """The CSV of nlphuji/flickr30k: columns raw (all captions of a picture as a JSON list), split, filename."""
    csv.field_size_limit(2**27)  # all captions of a picture in one cell
    try:
        table = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is no whole CSV ({error}); delete {path.resolve()} and run again") from None
    if not table or not {"raw", "split", "filename"} <= table[0].keys():
        raise ValueError(f"{path} begins with {read_text(path)[:60]!r}, not with the columns raw, split, filename; "
                         f"delete {path.resolve()} and run again")
    rows = []
    for number, line in enumerate(table, start=1):
        try:
            captions = json.loads(line["raw"])
        except (TypeError, json.JSONDecodeError):
            captions = None
        if not isinstance(captions, list):
            raise ValueError(f"{path}, row {number}: the column raw is no JSON list; delete the file and run again")
        rows.append(Row(line["filename"], line["split"], captions))
    return rows, []


def read_coco(*paths: Path) -> tuple[list[Row], list[str]]:
    """COCO's captions_train2014.json, captions_val2014.json, ...: the split stands in the file's name."""
    rows: list[Row] = []
    for path in paths:
        data = read_json(path)
        if not isinstance(data, dict) or not all(
            isinstance(data.get(part), list) and all(isinstance(entry, dict) and keys <= entry.keys()
                                                     for entry in data[part])
            for part, keys in (("images", {"id", "file_name"}), ("annotations", {"image_id", "caption"}))
        ):  # fmt: skip
            raise ValueError(f"{path} is not in COCO's layout: "
                             '{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}')
        refuse_duplicates([str(image["id"]) for image in data["images"]], f"{path}, images")
        refuse_duplicates([str(entry["id"]) for entry in data["annotations"] if "id" in entry], f"{path}, annotations")
        captions: dict[str, list] = {str(image["id"]): [] for image in data["images"]}
        strangers = [str(e["image_id"]) for e in data["annotations"] if str(e["image_id"]) not in captions]
        if strangers:
            raise ValueError(f"{path}: {cases(strangers, 'caption')} of pictures that are not in its list of images")
        for entry in data["annotations"]:
            captions[str(entry["image_id"])].append(entry["caption"])
        split = split_in_name(path.name)
        rows += [Row(image["file_name"], split, captions[str(image["id"])], _number(image["id"]))
                 for image in data["images"]]  # fmt: skip
    return rows, []


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
    """captions.csv and Kaggle's captions.txt: comma CSV with a header; captions with commas in double quotes.

    Or tabs between the columns, where quotes mean nothing and a first line with a picture's name needs no header.
    """
    text = read_text(path)
    first = text.partition("\n")[0].split("\t")
    if len(first) == 2 and first[0].strip().lower().endswith(PICTURE_SUFFIXES):
        text = "file_name\tcaption\n" + text
    # strict: otherwise a caption that merely opens with a quoted word loses its quotes, and an unclosed quote eats the
    # lines below
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if len(first) > 1 else {"strict": True}
    reader = csv.reader(io.StringIO(text, newline=""), **form)
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
                         "(or file_name), caption and optionally split, separated by commas or tabs")
    uneven = [f"line {number} ({len(cells)} cells)" for number, cells in lines if len(cells) != len(header)]
    if uneven:
        rule = "a caption holds no tab" if len(first) > 1 else "a caption with a comma stands in double quotes"
        raise ValueError(f"{path}: {cases(uneven, 'row')} unlike the header's {len(header)} columns; {rule}")
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
        match = SPLIT_LIST.search(path.name)
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


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); fetch or unpack it again") from None


def _number(image_id: Any) -> int | None:
    return image_id if type(image_id) is int else None


def split_in_name(name: str) -> str | None:
    """The split that a file's name or path tells, e.g. captions_val2014.json, train-00000-of-00011.parquet."""
    found = re.findall(r"(?<![a-z])(train|training|restval|val|valid|validation|dev|test)(?![a-z])", name.lower())
    return SPLIT_ALIASES.get(found[-1], found[-1]) if found else None


def read_text(path: Path) -> str:
    """The file as text; line ends become "\\n". Raises ValueError where it is not UTF-8.

    A lone "\\r" ends a line only in a file without any other line end: elsewhere it stands within a caption.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
        return text if "\n" in text else text.replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte {data[error.start]:#04x}"
        raise ValueError(f"{path}, line {line}: not UTF-8 ({byte}); save the file as UTF-8") from None


def group_pairs(pairs: Iterable[tuple[Any, Any, Any]], source: Path) -> list[Row]:
    """(file_name, caption, split) lines -> one row per picture, in order of first appearance."""
    rows: dict[str, Row] = {}
    torn: list[str] = []
    for name, caption, split in pairs:
        row = rows.setdefault(name if isinstance(name, str) else repr(name), Row(name, split, []))
        row.captions.append(caption)
        if row.split != split and repr(name) not in torn:
            torn.append(repr(name))
    if torn:
        raise ValueError(f"{source}: {cases(torn, 'picture')} in two splits at once; give each picture one split")
    return list(rows.values())


def refuse_duplicates(ids: Sequence[str], source: Path | str) -> None:
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{source}: {cases(twice, 'id')} given more than once; keep one of each")
