"""Readers of tables, with commas, semicolons or tabs between the columns: path -> one Row per picture, and notes."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nanocaption.base.files import PICTURE_SUFFIXES, cases
from nanocaption.prepare.caption_files import (
    CAPTION_KEYS,
    FILE_NAME_KEYS,
    NUMBERED,
    URLS,
    Row,
    Rows,
    merged,
    numbered,
    read_text,
    read_token,
    refuse,
    texts_of,
    without_marked,
)

URL_KEYS = ("url", "image_url", "image url", "img_url", "link")
OF_LABEL_STUDIO = {"annotation_id", "annotator", "lead_time"}  # in every one of its CSV and JSON-MIN exports
UPLOAD = re.compile(r"(?:https?://[^/]+)?/data/(?:upload/(?:.*/)?|local-files/?\?d=)(?P<name>.+)")


class Table(NamedTuple):
    """A table with a header. lines: (number, cells by the header's names)."""

    header: list[str]  # in lower case
    lines: list[tuple[int, dict[str, str]]]
    notes: list[str]


class Columns(NamedTuple):
    """Which columns hold what."""

    name: str
    captions: list[str]
    others: list[str]  # that might have been the captions as well


def read_csv(path: Path) -> Rows:
    """captions.csv, metadata.csv, captions.txt and their like; of names#0 with a tab behind them as `read_token`.

    Columns are known by the header; a first line with a picture's name needs none where there are two columns. Several
    columns caption_0, caption_1, ... are captions of one picture, and cells may hold lists of them (`texts_of`).
    """
    text = read_text(path)
    if re.match(r"[^\t\n]*#\d+[^\S\t\n]*\t", text):
        return read_token(path)
    table = read_table(path, text)
    columns, notes = columns_of(path, table.header), table.notes
    first, *more = columns.captions
    lines = used_lines(path, table, first)
    if columns.others:
        notes.append(f"{path.name}: captions are of the column {first!r}, not of {', '.join(columns.others)}")
    if more:
        notes.append(f"{path.name}: captions are of the {1 + len(more)} columns {first} to {more[-1]}")
    singles = [(number, cells, cells[key]) for number, cells in lines for key in filled(cells, columns.captions)]
    texts, told = texts_of([(f"line {number}", cell) for number, _, cell in singles], path)
    rows = (Row(upload_name(cells[columns.name].strip()), cells.get("split", "").strip(), captions)
            for (_, cells, _), captions in zip(singles, texts, strict=True))  # fmt: skip
    return merged(rows, path), notes + told


def used_lines(path: Path, table: Table, caption: str) -> list[tuple[int, dict[str, str]]]:
    """The lines without VizWiz's marked ones and Label Studio's without an annotation, which table.notes tells."""
    used, marked = without_marked([cells for _, cells in table.lines], path)
    wanted = {id(cells) for cells in used}
    lines = [line for line in table.lines if id(line[1]) in wanted]
    bare = [f"line {number}" for number, cells in lines if not cells[caption].strip()]
    table.notes.extend(marked)
    if not bare or len(OF_LABEL_STUDIO.intersection(table.header)) < 2:
        return lines
    table.notes.append(f"{path.name}: {cases(bare, 'row')} without an annotation, left out")
    return [line for line in lines if line[1][caption].strip()]


def filled(cells: dict[str, str], captions: Sequence[str]) -> list[str]:
    """The columns of captions that hold one; the first where none does, for the check to count."""
    return [key for key in captions if cells[key].strip()] or [captions[0]]


def columns_of(path: Path, header: Sequence[str]) -> Columns:
    """Raises ValueError where the header has no column of names or none of captions."""
    name = next((key for key in FILE_NAME_KEYS if key in header), None)
    several = numbered(key for key in header if NUMBERED.fullmatch(key))
    plain = [key for key in CAPTION_KEYS if key in header]
    if (name is None or name == "image_id") and set(URL_KEYS).intersection(header):
        raise ValueError(f"{path} has the columns {','.join(header)[:80]!r}: {URLS}")
    if name is None or not plain + several:
        raise ValueError(f"{path} begins with {','.join(header)[:80]!r}: expected a header with the columns image "
                         "(or file_name), caption and optionally split, separated by commas, semicolons or tabs")
    return Columns(name, plain[:1] + several, plain[1:])


def upload_name(name: str) -> str:
    """Label Studio's /data/upload/3/dog.jpg -> dog.jpg; other names as they are."""
    upload = UPLOAD.fullmatch(name)
    return upload["name"] if upload else name


def read_table(path: Path, text: str) -> Table:
    """A table of captions as read_csv takes it, with a header made where its first line is none."""
    start = re.match(r"sep=(.)\n", text)  # Excel's own first line
    text = text[start.end() :] if start else text
    first = text.partition("\n")[0]
    delimiter = start[1] if start else "\t" if "\t" in first else ";" if _is_header(first.split(";")) else ","
    sign = {",": "comma", ";": "semicolon"}.get(delimiter, delimiter)
    tabs, notes = delimiter == "\t", []
    fix = "a caption holds no tab" if tabs else (
        f'a caption with a {sign} or quotes stands in double quotes, a quote inside it is doubled ("")')  # fmt: skip
    made = made_header(path, text, delimiter)
    text, shift = (delimiter.join(made) + "\n" + text if made else text), bool(start) - bool(made)
    try:
        header, lines = csv_table(path, text, fix, delimiter, not tabs, shift)
    except ValueError:
        try:  # pandas quotes a cell with a tab or a line end in it
            header, lines = csv_table(path, text, fix, delimiter, True, shift)
            tabs = False
        except ValueError:
            header, lines = csv_table(path, text, fix, delimiter, not tabs, shift)
    if tabs and (count := unquote(lines)):
        notes.append(f"{path.name}: {count:,} cells freed of the quotes that a spreadsheet or pandas put around them")
        header = [_unquoted(name) or name for name in header]
        lines = [(number, dict(zip(header, cells.values(), strict=True))) for number, cells in lines]
    return Table(header, lines, notes)


def made_header(path: Path, text: str, delimiter: str) -> list[str] | None:
    """The header of a table of two columns that begins without one; None where it has its own, or more columns."""
    first = [_unquoted(cell) or cell for cell in text.partition("\n")[0].split(delimiter)]
    if _is_header(first) or len(first) < 2:
        return None
    if any(re.match(r"\s*https?://\S+\s*$", cell) for cell in first):
        raise ValueError(f"{path} begins with {first[0][:40]!r}, {first[1][:60]!r}: {URLS}")
    if len(first) > 2 and delimiter == "\t":
        return None
    begins, ends = (cell.strip().strip('"').lower().endswith(PICTURE_SUFFIXES) for cell in (first[0], first[-1]))
    if begins or ends:
        return ["file_name", "caption"] if begins else ["caption", "file_name"]
    return ["file_name", "caption"] if delimiter == "\t" and _are_ids(text) else None


def _are_ids(text: str) -> bool:
    """Whether each line is an id without an ending, a tab, a caption, as in ROCO."""
    rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    ids = all(len(row) == 2 and re.fullmatch(r"\S*[\d_]\S*", row[0].strip()) for row in rows)
    return ids and any(" " in row[1].strip() for row in rows)


def _is_header(cells: Sequence[str]) -> bool:
    names = {(_unquoted(cell.strip()) or cell).strip().strip('"').lower() for cell in cells}
    captions = names.intersection(CAPTION_KEYS) or any(NUMBERED.fullmatch(name) for name in names)
    return bool(captions and names.intersection((*FILE_NAME_KEYS, *URL_KEYS)))


def unquote(lines: Sequence[tuple[int, dict[str, str]]]) -> int:
    """Free cells of the quotes that pandas and Excel put around them, in place; how many.

    Only where a cell shows the doubled quotes of such a file, or every cell of a column is quoted, or (Excel) every one
    with a comma: a caption may be a title in quotes.
    """
    count = 0
    columns = [*(lines[0][1] if lines else {})]
    doubled = any('""' in text and _unquoted(text) is not None for _, cells in lines for text in cells.values())
    for key in columns:
        free = {place: inside for place, (_, cells) in enumerate(lines)
                if (inside := _unquoted(cells[key])) is not None}  # fmt: skip
        if not doubled and len(free) < len(lines):
            commas = {place for place, (_, cells) in enumerate(lines) if "," in cells[key]}
            free = {place: free[place] for place in commas} if commas <= free.keys() else {}
        for place, inside in free.items():
            lines[place][1][key] = inside
        count += len(free)
    return count


def _unquoted(text: str) -> str | None:
    """The inside of a cell that begins and ends with a quote and holds only doubled ones, else None."""
    cell = re.fullmatch(r'"((?:[^"]|"")*)"', text)
    return cell[1].replace('""', '"') if cell else None


def csv_table(
    path: Path, text: str, fix: str, delimiter: str = ",", quotes: bool = True, shift: int = 0,
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:  # fmt: skip
    """The header, in lower case, and (line, cells by its names). Raises ValueError, ending in `fix`, for no table.

    quotes: whether they mean anything. shift: of the lines in the file against those of `text`.
    """
    csv.field_size_limit(2**27)  # all captions of a picture may stand in one cell
    # strict: otherwise a caption that merely opens with a quoted word loses its quotes, and an unclosed quote eats the
    # lines below
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter,
                        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE)  # fmt: skip
    try:
        header = [cell.strip().lower() or f"column {place}" for place, cell in enumerate(next(reader, []), start=1)]
        lines = [(reader.line_num + shift, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + shift}: broken quotes ({error}); {fix}") from None
    refuse([name for name, count in Counter(header).items() if count > 1], "column", path, "named twice; rename one")
    uneven = [f"line {number} ({len(cells)} cells)" for number, cells in lines if len(cells) != len(header)]
    refuse(uneven, "row", path, f"unlike the header's {len(header)} columns; {fix}")
    return header, [(number, dict(zip(header, cells, strict=True))) for number, cells in lines]


def is_table(path: Path) -> str:
    """The name of its layout for a table of captions of any file name. Raises ValueError where it is none."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.read(2**16)
    head = re.sub(r"sep=.\n", "", head, count=1)
    first = head.partition("\n")[0]
    for delimiter in ("\t", ";", ","):
        cells = first.split(delimiter)
        if _is_header(cells):
            columns_of(path, [cell.strip().strip('"').lower() for cell in cells])
            return "captions.csv"
    delimiter = "\t" if "\t" in first else ","
    if made_header(path, head.rpartition("\n")[0] or head, delimiter):
        return "captions.csv"
    raise ValueError(f"{path.name} has no header with the columns image (or file_name) and caption")


def is_spreadsheet(path: Path) -> str:
    raise ValueError(f"{path.name} is a spreadsheet: save it as CSV (UTF-8)")


def read_annotations(path: Path) -> Rows:
    """The CSV of nlphuji/flickr30k: columns raw (all captions of a picture as a JSON list), split, filename."""
    text, again = read_text(path), f"delete {path.resolve()} and run again"
    header, table = csv_table(path, text, again)
    if not {"raw", "split", "filename"} <= set(header):
        raise ValueError(f"{path} begins with {text[:60]!r}, not with the columns raw, split, filename; {again}")
    rows = []
    for number, (_, line) in enumerate(table, start=1):
        try:
            captions = json.loads(line["raw"])
        except json.JSONDecodeError:
            captions = None
        if not isinstance(captions, list):
            raise ValueError(f"{path}, row {number}: the column raw is no JSON list; {again}")
        rows.append(Row(line["filename"], line["split"], captions))
    return rows, []
