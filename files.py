"""Files: which pictures lie where, how they are brought over whole or not at all, whether the disk is large enough."""

import errno
import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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


def walk_files(folder: Path, unreadable: Callable[[OSError], Any] | None = None) -> Iterable[str]:
    """Every file below `folder`, and folders named like pictures, as relative paths with "/", sorted folder by folder.

    Linked folders are entered once, hidden files and macOS junk are skipped. unreadable: told of folders that are.
    """
    entered = set()
    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not is_junk(name))
        inside = Path(parent).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        named_so = [name for name in folders if name.lower().endswith(PICTURE_SUFFIXES)]  # the check refuses them
        yield from (prefix + name for name in sorted(files + named_so) if not is_junk(name))


def link_or_copy(source: Path, target: Path) -> None:
    """Bring `source` to `target`, atomically: as a hard link (no space, no time), across file systems as a copy.

    A target that is the same file, or has the same size and time, is kept.
    """
    if target.exists():
        there, here = target.stat(), source.stat()
        if (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)  # of a killed run it may be a link to a raw picture, which a copy would write into
    try:
        try:
            os.link(os.path.realpath(source), part)  # a hard link to a symbolic link would not hold the picture
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            shutil.copy2(source, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds all of it or what it held before, also after a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_file(target: Path, source: Any) -> None:
    """The bytes of `source`, a file or bytes, under the name `target`: whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as sink:
            if isinstance(source, bytes):
                sink.write(source)
            else:
                shutil.copyfileobj(source, sink)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def nearest_folder(path: Path) -> Path:
    """The first existing folder at or above `path`."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def require_space(folder: Path, needed: int, setting: str) -> None:
    """Raises ValueError unless `needed` bytes are free where `folder` is or will be."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    if needed > free:
        raise ValueError(f"{folder} has {in_units(free)} free but {in_units(needed)} are needed: free some space, "
                         f"or set {setting} to a larger disk")


def in_units(size: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.2f} {name}"


def is_junk(name: str) -> bool:
    """Hidden files, among them AppleDouble `._name`, and the folder that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def cases(items: Sequence[str], noun: str) -> str:
    """'5 pictures (a.jpg, b.jpg, c.jpg, ...)': the count and the first three."""
    shown = ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'} ({shown})"
