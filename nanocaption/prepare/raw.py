"""A raw folder's pictures: which file each name means, and how it is brought over."""

import filecmp
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nanocaption.base.files import PICTURE_SUFFIXES, cases, link_or_copy, walk_files
from nanocaption.prepare.caption_files import refuse


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
    found = {name: _path_of(raw_dir, name, by_name.get(name.rpartition("/")[2], [])) for name in file_names}
    pictures = {name: raw_dir / path for name, path in found.items() if path is not None}
    if missing := [name for name in file_names if name not in pictures]:
        raise NotThereError(f"{raw_dir}: {cases(missing, 'picture')} named by the captions but missing; add the "
                            "pictures or delete their captions")
    shared = [str(path) for path, count in Counter(pictures.values()).items() if count > 1]
    refuse(shared, "picture", raw_dir, "under two file names in the captions; keep one name")
    used = {path.name for path in pictures.values()}
    unused = [path for name, paths in by_name.items() if name not in used and name.lower().endswith(PICTURE_SUFFIXES)
              for path in paths]
    return pictures, unused


def _path_of(raw_dir: Path, file_name: str, same_name: Sequence[str]) -> str | None:
    """Which of the paths that end in the same name `file_name` means; None where it is none of them."""
    paths = [path for path in same_name if f"/{path}".endswith(f"/{file_name}")]
    if not paths:
        return None
    first, *copies = [file_name] if file_name in paths else sorted(paths, key=lambda path: (path.count("/"), path))
    different = [copy for copy in copies if not filecmp.cmp(raw_dir / first, raw_dir / copy, shallow=False)]
    if different:
        raise ValueError(f"{raw_dir}: two different pictures are called {file_name} ({first}, {different[0]}); "
                         "name the folder in the captions, or keep one of them")
    return first


def bring(source: Path, target: Path) -> None:
    """Bring a picture to its place, by `link_or_copy`; one of the same size and time that is there is kept."""
    if target.exists():
        there, here = target.stat(), source.stat()
        if (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target)
