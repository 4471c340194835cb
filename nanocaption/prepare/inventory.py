"""What a folder holds, in one line, for whoever gave one that no reader knows."""

import csv
import json
from collections import Counter
from pathlib import Path, PurePosixPath

from nanocaption.base.files import PICTURE_SUFFIXES, walk_files

PEEKED = 2**26  # bytes of a JSON file that is opened for its keys
TABLES = (".csv", ".tsv", ".jsonl", ".json")


def describe(raw_dir: Path) -> str:
    """'It holds 200 pictures (.jpg); 200 .txt files, 200 of them with a picture's name; ...'."""
    if raw_dir.is_file():
        return f"It is a file of {raw_dir.stat().st_size:,} bytes, not a folder"
    paths = [*walk_files(raw_dir)]
    if not paths:
        return "It holds no files"
    pictures = [path for path in paths if path.lower().endswith(PICTURE_SUFFIXES)]
    stems = {PurePosixPath(path).stem.casefold() for path in pictures}
    counts = Counter(PurePosixPath(path).suffix.lower() for path in paths if path not in set(pictures))
    kinds = sorted({PurePosixPath(path).suffix.lower() for path in pictures})
    told = [f"{len(pictures):,} pictures ({', '.join(kinds)})" if pictures else "no pictures"]
    shown = counts.most_common(6)
    for ending, count in shown:
        its = [path for path in paths if PurePosixPath(path).suffix.lower() == ending]
        told.append(f"{count:,} {ending or 'other'} file{'s' * (count > 1)}{_about(raw_dir, its, ending, stems)}")
    told += [f"{counts.total() - sum(count for _, count in shown):,} others"] * (len(counts) > 6)
    return f"It holds {'; '.join(told)}"


def _about(raw_dir: Path, paths: list[str], ending: str, stems: set[str]) -> str:
    """More of the files of one kind: how many have a picture's name, and what stands in the first."""
    alike = sum(PurePosixPath(path).stem.casefold() in stems for path in paths)
    if alike:
        return " of the same names" if alike == len(paths) else f", {alike:,} of them with a picture's name"
    if ending not in TABLES:
        return f" ({paths[0]})"
    return f": {paths[0]} {_content(raw_dir / paths[0], ending)}"


def _content(path: Path, ending: str) -> str:
    if path.stat().st_size > PEEKED and ending == ".json":
        return "is too large to look into"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if ending in (".csv", ".tsv"):
                line = file.readline(10_000)
                header = next(csv.reader([line], delimiter="\t" if "\t" in line else ";" if ";" in line else ","), [])
                return f"begins with the columns {', '.join(header)[:100]}"
            data = json.loads(file.readline(10**7) if ending == ".jsonl" else file.read())
    except (ValueError, OSError, RecursionError, csv.Error):
        return "cannot be read as such"
    if isinstance(data, list):
        return f"holds a list of {len(data):,} {_entries([*data, *data][:2])}"
    return f"holds {_entries([data])}{' in each line' if ending == '.jsonl' else ''}"


def _entries(data: list[object]) -> str:
    first = data[0] if data else None
    if not isinstance(first, dict):
        return "texts" if isinstance(first, str) else "values"
    keys = ", ".join([*first][:8])[:120] + ", ..." * (len(first) > 8)
    return f"{'objects' if len(data) != 1 else 'an object'} with the keys {keys or '(none)'}"
