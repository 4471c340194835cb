"""Which picture on the disk a name in the captions means, also where it was written on another machine.

`plain_name` makes a relative path of whatever stands in a list; `find_pictures` finds its file. A name that no file has
letter by letter is matched by the same name in other Unicode (NFC, NFD), case, ending or folder, only where exactly one
file fits, and a note says so. Files are never renamed: the name in the set becomes that of the file.
"""

import difflib
import filecmp
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from nanocaption.base.files import PICTURE_SUFFIXES, cases, walk_files
from nanocaption.prepare.caption_files import NotThereError, refuse, split_in_name

SAME_FORMAT = {".jpeg": ".jpg", ".tiff": ".tif"}


class Found(NamedTuple):
    """What `find_pictures` found below a folder."""

    pictures: dict[str, Path]  # name in the captions -> file
    unused: list[str]  # pictures that no name asks for
    names: dict[str, str]  # name in the captions -> name in the set, where the file has another
    notes: list[str]


class Match(NamedTuple):
    """A file that is not called as the captions say but nearly so."""

    path: str
    tail: int  # how many parts of the two paths are the same, from the end
    kind: int  # place in KINDS: in what the last part differs


def plain_name(name: object) -> object:
    """A name as other machines write it -> relative, with "/": no drive, root, leading "./" or "../", no site of a URL.

    What is no text is given back; ".." inside a path stays, for is_safe_name to refuse.
    """
    if not isinstance(name, str):
        return name
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        parts = urlsplit(name)
        name = f"{parts.netloc}/{unquote(parts.path)}"
    inside = re.sub(r"^(?:[A-Za-z]:)?/*(?:\.{1,2}/+)*", "", name.replace("\\", "/"))
    return PurePosixPath(inside).as_posix() if inside.strip() else inside


def find_pictures(raw_dir: Path, file_names: Sequence[str]) -> Found:
    """The pictures below `raw_dir` that the names mean.

    A name means the path that equals it, or else the one that ends in it, so images/, Images/, flickr30k-images/ and
    doubled folders need no setting. The same name in two folders is accepted when the files are equal byte for byte.
    Raises NotThereError for missing pictures with the nearest name there is, ValueError for two different ones of one
    name, and for one that two names mean.
    """
    paths = [*walk_files(raw_dir)]
    by_name = _grouped(paths, last_part)
    same = {name: _literal(raw_dir, name, by_name.get(last_part(name), [])) for name in file_names}
    found = {name: its[0] for name, its in same.items() if its}
    strangers = [name for name in file_names if name not in found]
    left = _without([*filter(is_picture, paths)], [path for its in same.values() for path in its])
    near = _near(raw_dir, strangers, left, foreign=not found) if strangers else {}
    _refuse_missing(raw_dir, [name for name in strangers if name not in near], by_name)
    found |= {name: match.path for name, match in near.items()}
    used = Counter(found.values())
    shared = [str(raw_dir / path) for path, count in used.items() if count > 1]
    refuse(shared, "picture", raw_dir, "under two file names in the captions; keep one name")
    pictures = {name: raw_dir / found[name] for name in file_names}
    return Found(pictures, _without(left, used), _names_in_set(found, near), _notes(near))


def last_part(path: str) -> str:
    return path.rpartition("/")[2]


def is_picture(path: str) -> bool:
    return path.lower().endswith(PICTURE_SUFFIXES)


def _without(paths: Sequence[str], used: Collection[str]) -> list[str]:
    used = {*used}
    return [path for path in paths if path not in used]


def _grouped(paths: Sequence[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return groups


def _literal(raw_dir: Path, file_name: str, same_name: Sequence[str]) -> list[str]:
    """The path that `file_name` means letter by letter, and its copies; [] where there is none."""
    if file_name in same_name:
        return [file_name]
    paths = [path for path in same_name if path.endswith(f"/{file_name}")]
    return _only_one(raw_dir, file_name, sorted(paths, key=lambda path: (path.count("/"), path)))


def _only_one(raw_dir: Path, file_name: str, paths: list[str]) -> list[str]:
    """`paths`. Raises ValueError where they are not one picture, byte by byte."""
    different = [path for path in paths[1:] if not filecmp.cmp(raw_dir / paths[0], raw_dir / path, shallow=False)]
    if different:
        raise ValueError(f"{raw_dir}: two different pictures are called {file_name} ({paths[0]}, {different[0]}); "
                         "name the folder in the captions, or keep one of them")
    return paths


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """In lower case, composed, runs of spaces as one."""
    return " ".join(composed(composed(name).casefold()).split())


def same_format(name: str) -> str:
    """In lower case, with .jpeg as .jpg."""
    stem, ending = without_ending(folded(name))
    return stem + SAME_FORMAT.get(ending, ending)


def without_ending(name: str) -> tuple[str, str]:
    """A name without the ending of a picture, and that ending or ""."""
    ending = PurePosixPath(name).suffix
    return (name.removesuffix(ending), ending) if ending.lower() in PICTURE_SUFFIXES else (name, "")


# How the last part of a file's path may equal that of a name, the nearest first.
KINDS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("in another folder", str),
    ("in other Unicode (NFC, NFD)", composed),
    ("in other case or with other spaces", folded),
    ("with another ending", same_format),
    ("with another or no ending", lambda name: without_ending(folded(name))[0]),
)


def _near(raw_dir: Path, names: Sequence[str], paths: Sequence[str], foreign: bool) -> dict[str, Match]:
    """name -> the file that it nearly names, where there is exactly one.

    foreign: no name of the captions is that of a file, so the folders in them are those of another machine.
    Raises ValueError where two files fit equally well and differ.
    """
    def coarse(path: str) -> str:
        return KINDS[-1][1](last_part(path))

    by_key = _grouped(paths, coarse)
    found = {}
    for name in names:
        matches = [_match(name, path) for path in by_key.get(coarse(name), [])]
        fitting = sorted((match for match in matches if _may_mean(name, match, foreign)), key=_rank)
        best = [match.path for match in fitting if _rank(match)[:2] == _rank(fitting[0])[:2]]
        if best and _only_one(raw_dir, name, best):
            found[name] = fitting[0]
    # A name that fits less far than its neighbours in the list is a picture that is missing, not one that moved.
    longest: Counter[str] = Counter()
    for name, match in found.items():
        folder = name.rpartition("/")[0]
        longest[folder] = max(longest[folder], match.tail)
    return {name: match for name, match in found.items() if match.tail == longest[name.rpartition("/")[0]]}


def _match(name: str, path: str) -> Match:
    """How near `path` is to `name`; their last parts are the same by the last of KINDS."""
    wanted, there = name.split("/"), path.split("/")
    tail = 1
    for ours, theirs in zip(wanted[-2::-1], there[-2::-1], strict=False):
        if folded(ours) != folded(theirs):
            break
        tail += 1
    kind = next(place for place, (_, key) in enumerate(KINDS) if key(wanted[-1]) == key(there[-1]))
    return Match(path, tail, kind)


def _rank(match: Match) -> tuple[int, int, int, str]:
    return -match.tail, match.kind, match.path.count("/"), match.path


def _may_mean(name: str, match: Match, foreign: bool) -> bool:
    """Whether the folders allow it: one path ends in the other, or all names are foreign and no split contradicts."""
    ours, theirs = name.split("/")[:-match.tail], match.path.split("/")[:-match.tail]
    if not ours or not theirs:
        return True
    splits = {split_in_name("/".join(folders)) for folders in (ours, theirs)} - {None}
    return foreign and len(splits) < 2


def _names_in_set(found: dict[str, str], near: dict[str, Match]) -> dict[str, str]:
    """name in the captions -> name in the set: as much of the file's path as the two have in common."""
    short = {name: composed("/".join(match.path.split("/")[-match.tail :])) for name, match in near.items()}
    times = Counter([*(name for name in found if name not in near), *short.values()])
    return {name: composed(match.path) if times[short[name]] > 1 else short[name] for name, match in near.items()}


def _notes(near: dict[str, Match]) -> list[str]:
    notes = []
    for kind, (how, _) in enumerate(KINDS):
        if alike := [f"{name} is {match.path}" for name, match in near.items() if match.kind == kind]:
            notes.append(f"{cases(alike, 'name')} found {how}, exactly one file fits each")
    return notes


def _refuse_missing(raw_dir: Path, missing: Sequence[str], there: Collection[str]) -> None:
    if missing:
        raise NotThereError(f"{raw_dir}: {cases(missing, 'picture')} named by the captions but missing"
                            f"{_hint(missing, there)}; add the pictures or delete their captions")


def _hint(missing: Sequence[str], there: Collection[str]) -> str:
    """The nearest name on the disk for the first missing one that has any."""
    pictures = [*filter(is_picture, there)]
    for name in map(last_part, missing[:3]):
        pool = pictures if len(pictures) < 2000 else [other for other in pictures if other[:3] == name[:3]][:2000]
        if close := difflib.get_close_matches(name, pool, 1, 0.7):
            return f" (nearest to {name}: {close[0]})"
    return ""
