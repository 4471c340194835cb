"""What a raw layout gives, `Row` and `Source`, and readers of caption files: paths -> one Row per picture, and notes.

Which file is read, and what is checked afterwards, is layouts.py's. Raises ValueError with one line that names the
file, the first cases and their count, for whatever a reader must not guess about.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from nanocaption.base.files import PICTURE_SUFFIXES, cases

SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
FILE_NAME_KEYS = ("file_name", "image", "filename", "image_name")
CAPTION_KEYS = ("caption", "comment")
SPLIT_LIST = re.compile(r"(train|dev|val|test)[^/]*images\.txt$", re.IGNORECASE)  # Flickr_8k.trainImages.txt


class NotThereError(ValueError):
    """No captions of a known layout, or pictures that are missing: they may lie in an archive."""


class Row(NamedTuple):
    """One picture as its caption file describes it, before any check: every field may still be wrong."""

    file_name: Any
    split: Any
    captions: list[Any]
    image_id: int | None = None  # COCO's own number of the picture


Rows = tuple[list[Row], list[str]]  # what every reader gives: the rows, and notes of what it repaired or left out


class Source(NamedTuple):
    """Captioned pictures in one layout, recognised and not yet read. Whatever a set is made from comes as one of these.

    name: the layout's. why: how it was recognised. origin: what messages call it. files: those that are read.
    read: gives the rows. unpack: (file names, folder) -> None writes these pictures, already there or not; None where
    they are files of their own.
    """

    name: str
    why: str
    origin: str
    files: list[Path]
    read: Callable[[], Rows]
    unpack: Callable[[Collection[str], Path], None] | None = None


def read_karpathy(path: Path) -> Rows:
    images = _read_json(path).get("images")
    if not _have(images, "filename", "sentences") or not all(isinstance(image["sentences"], list) for image in images):
        raise ValueError(f"{path} is not in Karpathy's layout: "
                         '{"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}')
    return [
        Row(image["filename"], image.get("split"),
            [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in image["sentences"]],
            _number(image.get("cocoid")))
        for image in images
    ], []


def read_coco(*paths: Path) -> Rows:
    """COCO's captions_train2014.json, captions_val2014.json, ...: the split stands in the file's name."""
    rows: list[Row] = []
    for path in paths:
        data = _read_json(path)
        images, annotations = data.get("images"), data.get("annotations")
        if not _have(images, "id", "file_name") or not _have(annotations, "image_id", "caption"):
            raise ValueError(f"{path} is not in COCO's layout: "
                             '{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}')
        refuse_duplicates([str(image["id"]) for image in images], f"{path}, images")
        refuse_duplicates([str(entry["id"]) for entry in annotations if "id" in entry], f"{path}, annotations")
        captions: dict[str, list[Any]] = {str(image["id"]): [] for image in images}
        strangers = [str(entry["image_id"]) for entry in annotations if str(entry["image_id"]) not in captions]
        refuse(strangers, "caption", path, "of pictures that are not in its list of images")
        for entry in annotations:
            captions[str(entry["image_id"])].append(entry["caption"])
        split = split_in_name(path.name)
        rows += [Row(image["file_name"], split, captions[str(image["id"])], _number(image["id"])) for image in images]
    return rows, []


def _have(entries: object, *keys: str) -> TypeGuard[list[dict[str, Any]]]:
    """Whether `entries` is a list of JSON objects that all have these keys."""
    return isinstance(entries, list) and all(isinstance(entry, dict) and entry.keys() >= set(keys) for entry in entries)


def read_jsonl(path: Path) -> Rows:
    rows: list[Row] = []
    singles: list[Row] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not a JSON object ({error})") from None
        keys = entry.keys() if isinstance(entry, dict) else set()
        name = next((key for key in FILE_NAME_KEYS if key in keys), None)
        if name is None or not {"caption", "captions"} & keys:
            raise ValueError(f'{path}, line {number}: expected an object with "file_name" (or "image") '
                             'and "caption" (or "captions")')
        captions = entry.get("captions", entry.get("caption"))
        if isinstance(captions, list):
            rows.append(Row(entry[name], entry.get("split"), captions))
        else:
            singles.append(Row(entry[name], entry.get("split"), [captions]))
    return rows + merged(singles, path), []


def read_annotations(path: Path) -> Rows:
    """The CSV of nlphuji/flickr30k: columns raw (all captions of a picture as a JSON list), split, filename."""
    text, again = read_text(path), f"delete {path.resolve()} and run again"
    header, table = csv_table(path, text, again)
    if not {"raw", "split", "filename"} <= set(header):
        raise ValueError(f"{path} begins with {text[:60]!r}, not with the columns raw, split, filename; {again}")
    rows = []
    for number, line in enumerate(table, start=1):
        try:
            captions = json.loads(line["raw"])
        except json.JSONDecodeError:
            captions = None
        if not isinstance(captions, list):
            raise ValueError(f"{path}, row {number}: the column raw is no JSON list; {again}")
        rows.append(Row(line["filename"], line["split"], captions))
    return rows, []


def read_csv(path: Path) -> Rows:
    """captions.csv and Kaggle's captions.txt: comma CSV with a header; captions with commas in double quotes.

    Or tabs between the columns, where quotes mean nothing and a first line with a picture's name needs no header.
    """
    text = read_text(path)
    first = text.partition("\n")[0].split("\t")
    if len(first) == 2 and first[0].strip().lower().endswith(PICTURE_SUFFIXES):
        text = "file_name\tcaption\n" + text
    fix = "a caption holds no tab" if len(first) > 1 else (
        'a caption with a comma or quotes stands in double quotes, and a quote inside it is doubled ("")')  # fmt: skip
    header, table = csv_table(path, text, fix, tabs=len(first) > 1)
    name = next((key for key in FILE_NAME_KEYS if key in header), None)
    caption = next((key for key in CAPTION_KEYS if key in header), None)
    if name is None or caption is None:
        raise ValueError(f"{path} begins with {','.join(header)[:80]!r}: expected a header with the columns image "
                         "(or file_name), caption and optionally split, separated by commas or tabs")
    rows = (Row(line[name].strip(), line.get("split", "").strip(), [line[caption]]) for line in table)
    return merged(rows, path), []


def csv_table(path: Path, text: str, fix: str, tabs: bool = False) -> tuple[list[str], list[dict[str, str]]]:
    """The header, in lower case, and the rows by its names. Raises ValueError, ending in `fix`, where it is no table.

    tabs: these stand between the columns and quotes mean nothing, instead of commas and quotes.
    """
    csv.field_size_limit(2**27)  # all captions of a picture may stand in one cell
    # strict: otherwise a caption that merely opens with a quoted word loses its quotes, and an unclosed quote eats the
    # lines below
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter="\t" if tabs else ",",
                        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)  # fmt: skip
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: broken quotes ({error}); {fix}") from None
    uneven = [f"line {number} ({len(cells)} cells)" for number, cells in lines if len(cells) != len(header)]
    refuse(uneven, "row", path, f"unlike the header's {len(header)} columns; {fix}")
    return header, [dict(zip(header, cells, strict=True)) for _, cells in lines]


def read_results(path: Path) -> Rows:
    """Kaggle's results.csv. Its one known broken row lacks the second "|" ("name.jpg| 4   A dog ..."): mended."""
    header, *lines = read_text(path).split("\n")
    if [cell.strip() for cell in header.split("|")] != ["image_name", "comment_number", "comment"]:
        raise ValueError(f"{path} begins with {header.strip()[:80]!r}: expected 'image_name| comment_number| comment'")
    mended = [re.sub(r"([^|]*\|\s*\d+)\s+([^|]*\S)\s*", r"\1|\2", line) if line.count("|") == 1 else line
              for line in lines]  # fmt: skip
    repaired = [f"line {number} ({line.partition('|')[0].strip()})"
                for number, (line, better) in enumerate(zip(lines, mended, strict=True), start=2) if line != better]
    notes = [f"{path.name}: repaired {cases(repaired, 'row')} lacking the second '|'"] if repaired else []
    form = r"\s*(?P<key>(?P<name>[^|]*?)\s*\|\s*[^|]*?)\s*\|\s*(?P<caption>.*?)\s*"
    return numbered_captions(path, ["", *mended], form, "row", "'image| number| caption'"), notes


def read_token(path: Path, *lists: Path) -> Rows:
    """name#k<TAB>caption, and the lists of pictures of each split where there are any."""
    form = r"\s*(?P<key>(?P<name>[^\t]*)#\d+)[^\S\t]*\t(?P<caption>.*)"
    rows = numbered_captions(path, read_text(path).split("\n"), form, "line", "name.jpg#0<TAB>caption")
    return apply_split_lists(rows, lists) if lists else (rows, [])


def numbered_captions(path: Path, lines: Sequence[str], form: str, noun: str, shown: str) -> list[Row]:
    """Lines of one caption each, of the regular expression `form` with the groups key, name and caption.

    noun, shown: what messages call a line and the form.
    """
    found = [(number, re.fullmatch(form, line)) for number, line in enumerate(lines, start=1) if line.strip()]
    broken = [f"line {number}" for number, match in found if match is None]
    refuse(broken, noun, path, f"not of the form {shown}; mend or delete")
    matches = [match for _, match in found if match]
    refuse_duplicates([re.sub(r"\s*\|\s*", "|", match["key"]) for match in matches], path)
    return merged((Row(match["name"], None, [match["caption"]]) for match in matches), path)


def apply_split_lists(rows: list[Row], lists: Sequence[Path]) -> Rows:
    """Give each row the split whose list (Flickr_8k.trainImages.txt) names it; rows in no list are left out, noted."""
    split_of: dict[str, str] = {}
    list_of: dict[str, str] = {}
    notes, known = [], {row.file_name for row in rows}
    for path in lists:
        split = plain_split(SPLIT_LIST.findall(path.name)[0])
        if split in list_of:
            raise ValueError(f"{path.parent} holds two lists for {split} ({list_of[split]}, {path.name}): keep one")
        list_of[split] = path.name
        names = listed_names(path, known)
        twice = [name for name in names if split_of.setdefault(name, split) != split]
        refuse(twice, "picture", path, "also in another split's list; list each once")
        if not known.intersection(names):
            raise ValueError(f"{path} names no picture that has captions, so {split} would be empty: mend or delete it")
        if bare := [name for name in names if name not in known]:
            notes.append(f"{path.name} lists {cases(bare, 'picture')} without captions, left out")
    if unlisted := [row.file_name for row in rows if row.file_name not in split_of]:
        notes.append(f"{cases(unlisted, 'captioned picture')} in none of the split lists, left out")
    return [row._replace(split=split_of[row.file_name]) for row in rows if row.file_name in split_of], notes


def listed_names(path: Path, known: Collection[str]) -> list[str]:
    """The pictures in a split's list, which may leave out the .jpg."""
    names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    return [f"{name}.jpg" if name not in known and f"{name}.jpg" in known else name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, {} where it is something else."""
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); fetch or unpack it again") from None
    return data if isinstance(data, dict) else {}


def _number(image_id: Any) -> int | None:
    return image_id if type(image_id) is int else None


def plain_split(split: object) -> str:
    """A split's name in lower case; "dev" and "validation" are "val"."""
    return SPLIT_ALIASES.get(str(split).lower(), str(split).lower())


def split_in_name(name: str) -> str | None:
    """The split that a file's name or path tells, e.g. captions_val2014.json, train-00000-of-00011.parquet."""
    found = re.findall(r"(?<![a-z])(train|training|restval|val|valid|validation|dev|test)(?![a-z])", name.lower())
    return plain_split(found[-1]) if found else None


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


def merged(rows: Iterable[Row], source: Path) -> list[Row]:
    """Rows of one caption each -> one row per picture, in order of first appearance."""
    found: dict[str, Row] = {}
    torn: dict[str, None] = {}
    for row in rows:
        first = found.setdefault(str(row.file_name), row._replace(captions=[]))
        first.captions.extend(row.captions)
        if first.split != row.split:
            torn[repr(row.file_name)] = None
    refuse([*torn], "picture", source, "in two splits at once; give each picture one split")
    return list(found.values())


def refuse_duplicates(ids: Sequence[str], source: Path | str) -> None:
    twice = [name for name, count in Counter(ids).items() if count > 1]
    refuse(twice, "id", source, "given more than once; keep one of each")


def refuse(found: Sequence[str], noun: str, source: Path | str, why: str) -> None:
    """Raises ValueError with the count and the first of the cases that were found, if any was."""
    if found:
        raise ValueError(f"{source}: {cases(found, noun)} {why}")
