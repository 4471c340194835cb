"""A raw folder's pictures: which file each name means, and how it is brought over."""

import filecmp
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nanocaption.base.files import PICTURE_SUFFIXES, cases, link_or_copy, walk_files


class NotThereError(ValueError):
    """No captions of a known layout, or pictures that are missing: they may lie in an archive."""


def find_pictures(raw_dir: Path, file_names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """file_name -> path below `raw_dir`, and the pictures that no file_name asks for.

    A name matches the path that equals it or ends in it, so images/, Images/, flickr30k-images/ and doubled folders
    need no setting. The same name in two folders is accepted when the files are equal byte for byte. Raises ValueError
    for missing pictures, for two different ones of one name, and for one that two names mean.
    """
    by_name: dict[str, list[str]] = {}
    for path in walk_files(raw_dir):
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    pictures, missing = {}, []
    for file_name in file_names:
        same_name = by_name.get(file_name.rpartition("/")[2], ())
        paths = [path for path in same_name if f"/{path}".endswith(f"/{file_name}")]
        if not paths:
            missing.append(file_name)
            continue
        first, *copies = [file_name] if file_name in paths else sorted(paths, key=lambda path: (path.count("/"), path))
        different = [copy for copy in copies if not filecmp.cmp(raw_dir / first, raw_dir / copy, shallow=False)]
        if different:
            raise ValueError(f"{raw_dir}: two different pictures are called {file_name} ({first}, {different[0]}); "
                             "name the folder in the captions, or keep one of them")
        pictures[file_name] = raw_dir / first
    if missing:
        raise NotThereError(f"{raw_dir}: {cases(missing, 'picture')} named by the captions but missing; add "
                                    "the pictures or delete their captions")
    shared = [str(path) for path, count in Counter(pictures.values()).items() if count > 1]
    if shared:
        raise ValueError(f"{raw_dir}: {cases(shared, 'picture')} under two file names in the captions; keep one name")
    used = {path.name for path in pictures.values()}
    unused = [path for name, paths in by_name.items() if name not in used and name.lower().endswith(PICTURE_SUFFIXES)
              for path in paths]
    return pictures, unused


def bring(source: Path, target: Path) -> None:
    """Bring a picture to its place, by `link_or_copy`; one of the same size and time that is there is kept."""
    if target.exists():
        there, here = target.stat(), source.stat()
        if (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target)
