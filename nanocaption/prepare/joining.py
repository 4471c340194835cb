"""Several caption files as one set: which split each is of, which picture each name means, and what stands twice."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nanocaption.base.files import PICTURE_SUFFIXES, cases, walk_files
from nanocaption.prepare.caption_files import URLS, Row, Rows, plain_split, refuse, split_of_path

UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # what Label Studio calls a picture that was uploaded to it


def read_files(raw_dir: Path, readers: Mapping[str, Callable[[], Rows]], may_draw: bool) -> Rows:
    """The rows of all these files, below `raw_dir`: file -> its reader.

    A file's name or folder tells the split of rows that have none. may_draw: whether that is left to be drawn where all
    files are called train: nearly every small set has no other. Raises ValueError for a picture that stands in two
    splits, or with the same captions in two files.
    """
    parts: dict[str, list[Row]] = {}
    notes: list[str] = []
    for file, read in readers.items():
        parts[file], more = read()
        notes += more
    notes += split_by_names(parts, may_draw)
    return joined(raw_dir, located(raw_dir, parts, notes), notes), notes


def split_by_names(parts: dict[str, list[Row]], may_draw: bool) -> list[str]:
    """Give rows without a split that of their file's name or folder, in place; notes of what was found."""
    splits = {file: split_of_path(file) for file in parts}
    notes = own_splits_told(parts, splits)
    told = Counter(splits[file] for file, rows in parts.items() if not all(row.split for row in rows))
    if may_draw and {*told} == {"train"} == {*splits.values()}:
        return [*notes, "all captions are of a split called train: val and test are drawn from it"]
    if may_draw and any(told):
        named = ", ".join(f"{split} ({count})" for split, count in told.items() if split)
        notes.append(f"splits are those of the files' names or folders: {named}")
    for file, rows in parts.items():
        parts[file] = [row if row.split else row._replace(split=splits[file]) for row in rows]
    return notes


def own_splits_told(parts: Mapping[str, list[Row]], splits: Mapping[str, str | None]) -> list[str]:
    """A note of rows whose split is not the one that their file's name tells."""
    other = [str(row.file_name) for file, rows in parts.items() for row in rows
             if row.split and splits[file] not in (None, plain_split(row.split))]  # fmt: skip
    return [f"{cases(other, 'picture')} of another split by the captions than by their file's name: the captions' own "
            "counts"] * bool(other)  # fmt: skip


def located(raw_dir: Path, parts: Mapping[str, list[Row]], notes: list[str]) -> Mapping[str, list[Row]]:
    """The rows with names that lead from `raw_dir` where they alone do not tell the picture.

    That is: captions in several folders, each naming pictures of its own; equal names in several splits or (Karpathy's
    filepath) folders; names without an ending; Label Studio's names of uploads, a note tells of these two; and urls
    whose last part is a picture here. Raises ValueError for other urls.
    """
    several = len({file.rpartition("/")[0] for file in parts}) > 1
    if not several and _names_are_places([row for rows in parts.values() for row in rows]):
        return parts
    pictures = Pictures.below(raw_dir)
    mended: dict[str, str] = {}
    placed = {file: [pictures.place(row, file.rpartition("/")[0] if several else "", mended) for row in rows]
              for file, rows in parts.items()}  # fmt: skip
    urls = [row.file_name for rows in placed.values() for row in rows if is_url(row.file_name)]
    refuse(urls, "name", ", ".join(parts), f"not of files: {URLS}")
    if mended:
        shown = [f"{name} is {better}" for name, better in mended.items()]
        notes.append(f"{cases(shown, 'name')} found by what comes before the ending")
    return placed


def _names_are_places(rows: Sequence[Row]) -> bool:
    """Whether every row tells its picture, and each another one."""
    return all(map(tells_its_picture, rows)) and len({str(row.file_name) for row in rows}) == len(rows)


def tells_its_picture(row: Row) -> bool:
    name = str(row.file_name)
    plain = name.lower().endswith(PICTURE_SUFFIXES) and not is_url(name)
    return plain and not row.folder and not UPLOADED.fullmatch(name.rpartition("/")[2])


def is_url(name: object) -> bool:
    return isinstance(name, str) and re.match("https?://", name) is not None


class Pictures(NamedTuple):
    """The pictures below a folder: base name -> paths, and the same for what may stand for a base name."""

    by_name: dict[str, list[str]]
    by_stem: dict[str, set[str]]  # without the ending -> base names; of COCO also the number without zeros

    @staticmethod
    def below(raw_dir: Path) -> "Pictures":
        by_name: dict[str, list[str]] = {}
        by_stem: dict[str, set[str]] = {}
        for path in walk_files(raw_dir):
            if path.lower().endswith(PICTURE_SUFFIXES):
                name = path.rpartition("/")[2]
                by_name.setdefault(name, []).append(path)
                stem = name.rpartition(".")[0]
                number = re.fullmatch(r"(?:COCO_.*_)?0*(\d+)", stem)
                for key in {stem, number[1]} if number else {stem}:
                    by_stem.setdefault(key, set()).add(name)
        return Pictures(by_name, by_stem)

    def place(self, row: Row, folder: str, mended: dict[str, str]) -> Row:
        """The row with a file name that has the folders it needs. mended: gets what was found by another name."""
        if not isinstance(row.file_name, str):
            return row
        path = row.file_name.replace("\\", "/")
        name = PurePosixPath(path.rpartition("/")[2] if is_url(path) else path)
        if name.name not in self.by_name:
            better = self.other_name(name.name)
            if better is None:
                return row
            mended[name.name] = better
            name = name.with_name(better)
        same = [path for path in self.by_name[name.name] if f"/{path}".endswith(f"/{name}")]
        return row._replace(file_name=chosen(same, name.as_posix(), row, folder))

    def other_name(self, name: str) -> str | None:
        """The base name of the only picture that may be meant by one that is not there."""
        uploaded = UPLOADED.fullmatch(name)
        others = self.by_stem.get(name) or ({uploaded[1]} & self.by_name.keys() if uploaded else set())
        return next(iter(others)) if len(others) == 1 else None


def chosen(same: Sequence[str], name: str, row: Row, folder: str) -> str:
    """Which of the paths that end in `name` a row of a file in `folder` means; `name` where that is not told."""
    if row.folder and len(same) > 1 and any(f"/{path}".endswith(f"/{row.folder}/{name}") for path in same):
        return f"{row.folder}/{name}"
    if folder:
        inside = [path for path in same if path.startswith(f"{folder}/")]
        if inside:
            return inside[0] if len(inside) == 1 else f"{folder}/{name}"
    of_split = [path for path in same if row.split and split_of_path(path.rpartition("/")[0] + "/") == row.split]
    return of_split[0] if len(of_split) == 1 < len(same) else name


def joined(raw_dir: Path, parts: Mapping[str, Iterable[Row]], notes: list[str]) -> list[Row]:
    """One list of rows. A picture may have captions in several files of one folder, as parts of one list have it."""
    rows: list[Row] = []
    first_of: dict[str, tuple[str, Row]] = {}  # file name -> where it came first
    torn: list[str] = []
    apart: list[str] = []
    together: list[str] = []
    again: list[str] = []
    for file, its in parts.items():
        for row in its:
            first_file, first = first_of.setdefault(str(row.file_name), (file, row))
            if first_file == file:  # also what stands twice in one file, which is judged later
                rows.append(row)
                continue
            case = f"{row.file_name} in {first_file} and {file}"
            (torn if first.split != row.split else together).append(case)
            if first_file.rpartition("/")[0] != file.rpartition("/")[0]:
                apart.append(case)
            if set(map(str, first.captions)) & set(map(str, row.captions)):
                again.append(case)
            first.captions.extend(row.captions)
    refuse(torn, "picture", raw_dir, "in two splits at once; give each picture one split")
    refuse(apart, "picture", raw_dir, "in files of two folders; keep one of them, or put their captions into one file")
    if 2 * len(again) > len(together):
        refuse(again, "picture", raw_dir, "with the same captions in two files; keep one of them")
    if together:
        notes.append(f"{cases(together, 'picture')} with captions in several files, put together")
    return rows
