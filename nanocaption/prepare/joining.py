"""Several caption files as one set: which split each is of, which picture each name means, and what stands twice."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nanocaption.base.files import PICTURE_SUFFIXES, cases, walk_files
from nanocaption.prepare.caption_files import Row, Rows, plain_split, refuse, split_of_path

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
    splits = {file: split_of_path(file) for file in parts}
    if may_draw and set(splits.values()) == {"train"} and any(not row.split for rows in parts.values() for row in rows):
        notes.append("all captions are of a split called train: val and test are drawn from it")
        splits = dict.fromkeys(parts)
    other = []
    for file, rows in parts.items():
        of_file = splits[file]
        other += [str(row.file_name) for row in rows if row.split and of_file and plain_split(row.split) != of_file]
        parts[file] = [row if row.split else row._replace(split=of_file) for row in rows]
    if other:
        notes.append(f"{cases(other, 'picture')} of another split by the captions than by their file's name: the "
                     "captions' own counts")
    return joined(raw_dir, located(raw_dir, parts, notes), notes), notes


def located(raw_dir: Path, parts: Mapping[str, list[Row]], notes: list[str]) -> Mapping[str, list[Row]]:
    """The rows with names that lead from `raw_dir` where they alone do not tell the picture.

    That is: captions in several folders, each naming pictures of its own; equal names in several splits or (Karpathy's
    filepath) folders; names without an ending; Label Studio's names of uploads. A note tells of the last two.
    """
    counts = Counter(row.file_name for rows in parts.values() for row in rows if isinstance(row.file_name, str))
    several = len({file.rpartition("/")[0] for file in parts}) > 1
    odd = any(count > 1 or not name.lower().endswith(PICTURE_SUFFIXES) or UPLOADED.fullmatch(name.rpartition("/")[2])
              for name, count in counts.items())  # fmt: skip
    if not (several or odd or any(row.folder for rows in parts.values() for row in rows)):
        return parts
    pictures = Pictures.below(raw_dir)
    mended: dict[str, str] = {}
    placed = {}
    for file, rows in parts.items():
        folder = file.rpartition("/")[0] if several else ""
        placed[file] = [row if not isinstance(row.file_name, str) else
                        row._replace(file_name=pictures.place(row, folder, mended)) for row in rows]  # fmt: skip
    if mended:
        shown = [f"{name} is {better}" for name, better in mended.items()]
        notes.append(f"{cases(shown, 'name')} found by what comes before the ending")
    return placed


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

    def place(self, row: Row, folder: str, mended: dict[str, str]) -> str:
        """The row's file name, with folders where it needs them. mended: gets what was found by another name."""
        name = PurePosixPath(row.file_name.replace("\\", "/")).as_posix()
        before, _, last = name.rpartition("/")
        if last not in self.by_name:
            uploaded = UPLOADED.fullmatch(last)
            others = self.by_stem.get(last) or ({uploaded[1]} & self.by_name.keys() if uploaded else set())
            if len(others) != 1:
                return row.file_name
            mended[last] = last = next(iter(others))
            name = f"{before}/{last}" if before else last
        same = [path for path in self.by_name[last] if f"/{path}".endswith(f"/{name}")]
        if len(same) > 1 and row.folder and any(f"/{path}".endswith(f"/{row.folder}/{name}") for path in same):
            return f"{row.folder}/{name}"
        if folder and (inside := [path for path in same if path.startswith(f"{folder}/")]):
            return inside[0] if len(inside) == 1 else f"{folder}/{name}"
        of_split = [path for path in same if split_of_path(path.rpartition("/")[0] + "/") == row.split]
        return of_split[0] if len(of_split) == 1 < len(same) and not folder and row.split else name


def joined(raw_dir: Path, parts: Mapping[str, Iterable[Row]], notes: list[str]) -> list[Row]:
    """One list of rows. A picture may have captions in several files of one folder, as parts of one list have it."""
    rows: list[Row] = []
    first_of: dict[str, tuple[str, Row]] = {}  # file name -> where it came first
    torn, apart, together, again = [], [], [], []
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
