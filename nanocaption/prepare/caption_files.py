"""What every reader of captions gives, `Row` and `Source`; several captions in a cell; readers of files of plain lines.

caption_tables.py and caption_json.py read tables and JSON. Which file is read, and what is checked afterwards, is
layouts.py's. Readers raise ValueError with one line that names the file, the first cases and their count, for whatever
a reader must not guess about.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nanocaption.base import on_disk
from nanocaption.base.files import cases, read_bounded

SPLIT_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
# The first that is there counts. "image_id" is a name where there is no other: in STAIR's and TextCaps' kind of lists.
FILE_NAME_KEYS = ("file_name", "image", "filename", "image_name", "file_path", "filepath", "image_path", "path",
                  "image_file", "image_filename", "img_path", "img_name", "img", "picture", "photo", "file", "image_id")
CAPTION_KEYS = ("captions", "caption", "comment", "raw", "sentences", "sentence", "text", "texts", "description")
NUMBERED = re.compile(rf"(?:{'|'.join(CAPTION_KEYS)})s?[ _-]?(\d+)")  # caption_0, caption_1, ...
MARKS = ("is_rejected", "is_precanned")  # VizWiz: spam, and a ready-made sentence about a bad picture
MAX_TEXT_BYTES = 2**30  # of a file of captions, whose rows take some ten times of it in memory; COCO's are 60 MB
MAX_CELL, MAX_DEPTH = 2**20, 50  # of a list of captions in a cell: characters, brackets within each other
MAX_CAPTIONS = 1000  # of a picture, where rows lie on the disk and are read and written for each
URLS = "pictures are urls: fetch them with img2dataset, and give the folder that it writes"
SPLIT_LIST = re.compile(r"(train|dev|val|test)[^/]*images\.txt$", re.IGNORECASE)  # Flickr_8k.trainImages.txt
SPLIT_WORDS = "train|training|restval|val|valid|validation|dev|test|testing"
SPLIT_FOLDER = re.compile(rf"({SPLIT_WORDS})([-_ ]?(set|split|data|images?|captions?|\d))*", re.IGNORECASE)
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
# A string that another one follows without a comma, and what numpy and pandas write around strings
_PRINTED = re.compile(rf"""(?P<text>{_STRING})(?P<next>\s*(?=['"]))?|np\.str_|\barray\b|,\s*dtype=({_STRING}|\w+)""",
                      re.DOTALL)


class NotThereError(ValueError):
    """No captions of a known layout, or pictures that are missing: they may lie in an archive."""


class Row(NamedTuple):
    """One picture as its caption file describes it, before any check: every field may still be wrong."""

    file_name: Any
    split: Any
    captions: list[Any]
    image_id: int | str | None = None  # COCO's own number of the picture, as it stands there
    domain: str | None = None  # nocaps: near-domain, ...
    folder: str | None = None  # Karpathy's filepath: where file_name lies, which is needed where names are equal


Rows = tuple[Sequence[Row], list[str]]  # what every reader gives: the rows, and notes of what it repaired or left out


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


def read_results(path: Path) -> Rows:
    """Kaggle's results.csv. Its one known broken row lacks the second "|" ("name.jpg| 4   A dog ..."): mended."""
    header, *lines = read_text(path).split("\n")
    if [cell.strip() for cell in header.split("|")] != ["image_name", "comment_number", "comment"]:
        raise ValueError(f"{path} begins with {header.strip()[:80]!r}: expected 'image_name| comment_number| comment'")
    mended = [_with_second_bar(line) if line.count("|") == 1 else line for line in lines]
    repaired = [f"line {number} ({line.partition('|')[0].strip()})"
                for number, (line, better) in enumerate(zip(lines, mended, strict=True), start=2) if line != better]
    notes = [f"{path.name}: repaired {cases(repaired, 'row')} lacking the second '|'"] if repaired else []
    return numbered_captions(path, ["", *mended], _between_bars, "row", "'image| number| caption'"), notes


def _with_second_bar(line: str) -> str:
    name, _, rest = line.partition("|")
    found = re.match(r"(\d+)\s+(?=\S)", rest := rest.strip())
    return f"{name}|{found[1]}|{rest[found.end() :]}" if found else line


def _between_bars(line: str) -> tuple[str, str, str] | None:
    """(key, name, caption) of "name| number| caption"; as `_before_tab`. By hand: expressions take time by the square
    of a run of spaces."""
    parts = [part.strip() for part in line.split("|", 2)]
    return (f"{parts[0]}|{parts[1]}", parts[0], parts[2]) if len(parts) == 3 else None


def _before_tab(line: str) -> tuple[str, str, str] | None:
    """(key, name, caption) of "name#k<TAB>caption"; None for anything else."""
    key, tab, caption = line.lstrip().partition("\t")
    name, sign, number = (key := key.rstrip()).rpartition("#")
    return (key, name, caption) if tab and sign and number.isdecimal() else None


def read_token(path: Path, *lists: Path) -> Rows:
    """name#k<TAB>caption, and the lists of pictures of each split where there are any."""
    rows = numbered_captions(path, read_text(path).split("\n"), _before_tab, "line", "name.jpg#0<TAB>caption")
    if lists:
        return apply_split_lists(rows, lists)
    # Flickr8k's file calls one picture name.jpg.1; with lists it is in none of them, and left out with a note
    names = {row.file_name: re.sub(r"(\.jpe?g)\.\d+$", r"\1", row.file_name) for row in rows}
    mended = [name for name, better in names.items() if name != better]
    rows = merged((row._replace(file_name=names[row.file_name]) for row in rows), path)
    return rows, [f"{path.name}: {cases(mended, 'name')} mended, the number behind .jpg left out"] * bool(mended)


def numbered_captions(
    path: Path, lines: Sequence[str], parts: Callable[[str], tuple[str, str, str] | None], noun: str, shown: str
) -> Sequence[Row]:
    """Lines of one caption each. parts: (what no other line has, the picture's name, the caption) of a line, or None.

    noun, shown: what messages call a line and its form.
    """
    found = [(number, parts(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    broken = [f"line {number}" for number, match in found if match is None]
    refuse(broken, noun, path, f"not of the form {shown}; mend or delete")
    matches = [match for _, match in found if match]
    refuse_duplicates([key for key, _, _ in matches], path)
    return merged((Row(name, None, [caption]) for _, name, caption in matches), path)


def apply_split_lists(rows: Sequence[Row], lists: Sequence[Path]) -> Rows:
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


def texts_of(
    cells: Iterable[tuple[str, Any]], source: Path | str, scratch: Path | None = None
) -> tuple[Sequence[list[Any]], list[str]]:
    """The captions in each cell, which may be one text, or a list or object of texts, as such or printed; and notes.

    cells: (where it stands, its content). Raises ValueError with the first case for what is a container without being
    read as one: objects without a caption, lists cut off (unless no cell is a list and fewer than one in 1,000 is so,
    as pages of the web have it), and lists without quotes where these are half of all cells (fewer are captions).
    scratch: as on_disk.rows takes it.
    """
    found: on_disk.Rows[list[Any]] = on_disk.rows(scratch)
    kinds: dict[str, on_disk.Rows[str]] = {kind: on_disk.rows(scratch) for kind in ("list", "broken", "bracketed")}
    for where, cell in cells:
        kind, texts = read_cell(cell)
        found.append(texts)
        if kind:
            kinds[kind].append(where if kind == "list" else f"{where}: {_shown(cell)}")
    lists, broken, bracketed = kinds.values()
    number = len(found)
    if broken and not lists and 1000 * len(broken) < number:
        return found, [f"{cases(broken, 'caption')} of {number:,} begin like lists of captions and are none"]
    broken.extend(bracketed if 2 * (len(bracketed) + len(lists)) >= number > 1 else [])
    refuse(broken, "cell", source, "that should hold several captions cannot be read: write them as a JSON list of "
           'texts, ["a dog", "the dog"], or one caption a row')  # fmt: skip
    of_file = f"{source.name}: " if isinstance(source, Path) else ""
    told = f"{of_file}{cases(lists, 'cell')} of {number:,} hold lists of captions: each text in them is a caption"
    return found, [told] if lists else []


def read_cell(cell: Any) -> tuple[str, list[Any]]:
    """What a cell is, and its captions: "list", "broken", "bracketed" (text in brackets), or "" for one caption."""
    if isinstance(cell, str) and cell.lstrip()[:1] not in ("[", "(", "{") and not cell.startswith("array("):
        return "", [cell]  # nearly all are plain texts
    try:
        content = container_in(cell)
        if content is not None:
            return "list", list(texts_within(content))
    except (LookupError, RecursionError):
        return "broken", [cell]
    if not isinstance(cell, str):
        return "", [cell]
    in_brackets = re.fullmatch(r"\[.*\]", cell.strip(), re.DOTALL)
    return "broken" if _is_cut_off(cell) else "bracketed" if in_brackets else "", [cell]


def texts_of_rows(
    rows: Sequence[Row], source: str, scratch: Path | None = None
) -> tuple[Sequence[list[Any]], list[str]]:
    """`texts_of` for the captions of each row, which may be cells of any reader."""
    cells, notes = texts_of(((str(row.file_name), cell) for row in rows for cell in row.captions), source, scratch)
    left = iter(cells)
    return on_disk.rows(scratch, ([text for _ in row.captions for text in next(left)] for row in rows)), notes


def container_in(cell: Any) -> Any:
    """The list, tuple or object in a cell, as JSON or Python write it; None where it holds none."""
    if not isinstance(cell, str):
        return cell if isinstance(cell, list | tuple | dict) else None
    text = cell.strip()
    if not re.match(r"[\[({]|array\(", text) or text[-1] not in "])}" or len(text) > MAX_CELL:
        return None
    try:
        content = json.loads(text)
    except ValueError:
        # literal_eval alone would make one text of two that stand side by side, as numpy prints them. What is nested
        # deeper than any list of captions is not handed to it: its documentation tells of crashes.
        if _depth(text) > MAX_DEPTH:
            return None
        try:
            content = ast.literal_eval(_PRINTED.sub(_with_comma, text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    is_container = isinstance(content, dict) or (
        isinstance(content, list | tuple) and not any(isinstance(part, int | float) for part in content))
    return content if is_container else None


def _depth(text: str) -> int:
    """How deep brackets and signs stand within each other at most, also where they are part of a text."""
    deepest = depth = signs = 0
    for letter in text:
        depth += letter in "[({"
        depth -= letter in "])}" and depth > 0
        signs = signs + 1 if letter in "+-~" else 0
        deepest = max(deepest, depth + signs)
    return deepest


def _with_comma(found: re.Match[str]) -> str:
    return (found["text"] or "") + ("" if found["next"] is None else ",")


def texts_within(content: Any) -> Iterable[Any]:
    """The captions in a list or object, whatever its depth. Raises LookupError for an object without any."""
    if isinstance(content, list | tuple):
        for part in content:
            yield from texts_within(part)
    elif isinstance(content, dict) and content:
        keys = [key for key in ("raw", *CAPTION_KEYS) if key in content][:1] or numbered(content)
        if not keys:
            raise LookupError
        for key in keys:
            yield from texts_within(content[key])
    elif not isinstance(content, dict):
        yield content


def numbered(keys: Iterable[str]) -> list[str]:
    """Those of the keys that are caption_0, caption_1, ... or, where all are, numbers alone; in the numbers' order."""
    keys = [key for key in keys if isinstance(key, str)]
    places = {key: int(match[1]) for key in keys if (match := NUMBERED.fullmatch(key))}
    if not places and all(re.fullmatch(r"\d{1,3}", key) for key in keys):
        places = {key: int(key) for key in keys}
    return sorted(places, key=places.__getitem__)


def _is_cut_off(cell: str) -> bool:
    """Whether a cell opens as a list of quoted texts or an object does, without a caption's words after its end."""
    text = cell.strip()
    opens = re.match(r"""\[\s*['"{\[]|\{\s*['"]|array\(""", text)
    return opens is not None and (text[-1] in "]})" or not re.search(r"[\]}]", text))


def _shown(cell: Any) -> str:
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."


def without_marked(annotations: Sequence[dict[str, Any]], path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The annotations that VizWiz's own evaluator reads, and notes of the others."""

    def marked(entry: dict[str, Any], key: str) -> bool:
        return str(entry.get(key)).lower() in ("true", "1", "1.0")

    counts = {key: sum(marked(entry, key) for entry in annotations) for key in MARKS}
    used = [entry for entry in annotations if not any(marked(entry, key) for key in MARKS)]
    told = ", ".join(f"{key} ({count:,})" for key, count in counts.items() if count)
    return used, [f"{path.name}: {len(annotations) - len(used):,} of {len(annotations):,} captions are marked {told}, "
                  "left out as the set's own evaluator does"] * bool(told)  # fmt: skip


def plain_split(split: object) -> str:
    """A split's name in lower case; "dev" and "validation" are "val"."""
    return SPLIT_ALIASES.get(str(split).strip().lower(), str(split).strip().lower())


def split_in_name(name: str) -> str | None:
    """The split that a file's name or path tells, e.g. captions_val2014.json, train-00000-of-00011.parquet."""
    found = re.findall(rf"(?<![a-z])({SPLIT_WORDS})(?![a-z])", name.lower())
    return plain_split(found[-1]) if found else None


def split_of_path(path: str) -> str | None:
    """The split of a caption file: of its name, else of the innermost folder that is named after a split."""
    *folders, name = path.split("/")
    named = [match[1] for folder in reversed(folders) if (match := SPLIT_FOLDER.fullmatch(folder))]
    return split_in_name(name) or (plain_split(named[0]) if named else None)


def read_text(path: Path) -> str:
    """The file as text; line ends become "\\n". Raises ValueError where it is not UTF-8.

    A lone "\\r" ends a line only in a file without any other line end: elsewhere it stands within a caption.
    """
    data = read_bounded(path, MAX_TEXT_BYTES)
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
        return text if "\n" in text else text.replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte {data[error.start]:#04x}"
        raise ValueError(f"{path}, line {line}: not UTF-8 ({byte}); save the file as UTF-8") from None


def merged(rows: Iterable[Row], source: Path, scratch: Path | None = None) -> Sequence[Row]:
    """Rows of one caption each -> one row per picture, in order of first appearance. scratch: see on_disk.rows."""
    found: MutableMapping[str, Row] = on_disk.table(scratch)
    torn: dict[str, None] = {}
    for row in rows:
        first = found.setdefault(str(row.file_name), row._replace(captions=[]))
        first.captions.extend(row.captions)
        if scratch is not None:
            if len(first.captions) > MAX_CAPTIONS:
                refuse([repr(row.file_name)], "picture", source, f"with more than {MAX_CAPTIONS:,} captions; is it the "
                       "name of one picture?")  # fmt: skip
            found[str(row.file_name)] = first
        if first.split != row.split:
            torn[repr(row.file_name)] = None
    refuse([*torn], "picture", source, "in two splits at once; give each picture one split")
    return on_disk.rows(scratch, (row for _, row in found.items()))


def refuse_duplicates(ids: Sequence[str], source: Path | str) -> None:
    perhaps = on_disk.Repeated(ids)
    twice = [name for name, count in Counter(name for name in ids if name in perhaps).items() if count > 1]
    refuse(twice, "id", source, "given more than once; keep one of each")


def refuse(found: Sequence[str], noun: str, source: Path | str, why: str) -> None:
    """Raises ValueError with the count and the first of the cases that were found, if any was."""
    if found:
        raise ValueError(f"{source}: {cases(found, noun)} {why}")
