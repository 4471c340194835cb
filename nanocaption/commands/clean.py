"""Say what lies under DATA_DIR, CACHE_DIR and OUTPUT_DIR and whose it is, and remove what nobody uses any more.

    nanocaption clean --dry-run     only say it
    nanocaption clean               and remove what is marked "unused"

Unused is: a cache whose runs are all gone, what a killed process left half-written, files that were unpacked or
downloaded for a set that is whole by now, the folder of a start that made nothing, and uploads of a page that ended.
Everything else stays: sets, tokenizers, runs, checkpoints, results, exports, and caches that do not say which runs read
them: those of an earlier version and of evaluations.
"""

import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nanocaption.base import cli
from nanocaption.base.files import in_units

_STRAY = re.compile(r"\.\S+\.(\d+)\.tmp|\.nanocaption-\w+")  # of files.beside, and of looks at a disk


class Found(NamedTuple):
    """A file or folder, whose it is, and whether nobody uses it."""

    path: Path
    whose: str
    unused: bool

    def size(self) -> int:
        """Bytes on the disk; hard links count once."""
        paths = self.path.rglob("*") if self.path.is_dir() and not self.path.is_symlink() else [self.path]
        kept = {(about.st_dev, about.st_ino): about.st_blocks * 512 for path in paths
                if not path.is_dir() and (about := path.lstat())}  # fmt: skip
        return sum(kept.values())


def main(argv: list[str]) -> None:
    parser = cli.parser("nanocaption clean", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="remove nothing, only say what would be")
    arguments, settings = cli.parse(parser, argv)
    found = [*of_data(Path(settings.DATA_DIR), settings.CACHE_DIR), *of_runs(Path(settings.OUTPUT_DIR)), *of_pages()]
    for one in found:
        print(f"{'unused' if one.unused else 'kept':7}{in_units(one.size()):>10}  {one.path}: {one.whose}")
    unused = [one for one in found if one.unused]
    total = in_units(sum(one.size() for one in unused))
    if arguments.dry_run:
        print(f"{len(unused)} of {len(found)} are unused, {total}; nothing was removed (--dry-run)")
        return
    left = [one.path for one in unused if not removed(one.path)]
    for path in left:
        print(f"{path} could not be removed", file=sys.stderr)
    print(f"{len(unused) - len(left)} of {len(found)} removed, {total} with those that could not be" if left else
          f"{len(unused)} of {len(found)} removed, {total}")  # fmt: skip


def of_data(data_dir: Path, cache_dir: str | None) -> Iterator[Found]:
    """Below DATA_DIR, and below CACHE_DIR."""
    folders = sorted(path for path in data_dir.glob("*") if path.is_dir())
    for folder in folders:
        whole = (folder / "manifest.json").is_file()
        yield Found(folder, "a prepared set" if whole else "not whole: the next start goes on with it", False)
        for name in ("unpacked", "download", "stream/read"):
            if (folder / name).is_dir() and not is_held(folder / ".lock"):
                why = "the set is whole, with copies of its own" if whole else "for the set, which is not whole yet"
                yield Found(folder / name, why, whole)
        yield from strays(folder)
    places = [*folders, *(Path(cache_dir).glob("*") if cache_dir else ())]
    for place in places:
        for cache in sorted((place / "cache").glob("*")):
            yield cache_of(cache)


def cache_of(cache: Path) -> Found:
    """A cache: of which runs, and whether one of them is still there."""
    if is_held(cache / "lock"):
        return Found(cache, "being made by a process", False)
    noted = cache / "used_by"
    if not noted.is_file():
        begun = cache.is_file() or any(path.name != "lock" for path in cache.iterdir())
        return Found(cache, "a cache that does not say which runs read it: deleted by hand, it is made anew when needed"
                     if begun else "the empty folder of a cache that was not made", not begun)  # fmt: skip
    runs = [Path(line) for line in noted.read_text(encoding="utf-8").splitlines()]
    there = [run for run in runs if run.is_dir()]
    if there:
        return Found(cache, f"a cache of {', '.join(run.name for run in there)}", False)
    return Found(cache, f"a cache of {', '.join(run.name for run in runs)}, which are not there any more", True)


def of_runs(output_dir: Path) -> Iterator[Found]:
    """Below OUTPUT_DIR."""
    for run in sorted(path for path in output_dir.glob("*") if path.is_dir()):
        if is_held(run / ".lock"):
            yield Found(run, "a run that is being trained", False)
            continue
        inside = [path for path in run.iterdir() if path.name != ".lock" and not _is_stray(path)]
        files = sum(path.suffix == ".safetensors" for path in inside)
        if not inside and (run / ".lock").exists():
            yield Found(run, "a start that made nothing", True)
            continue
        yield Found(run, f"a run with {files} checkpoints" if files else "no run, or one without a checkpoint", False)
        if (run / ".lock").exists():
            yield from strays(run)
            new = run / ".new.safetensors"
            if new.exists():
                yield Found(new, "a checkpoint that a killed process left half-written", True)


def of_pages() -> Iterator[Found]:
    """Folders of pages: the uploads of one that was killed stay in the system's folder for temporary files."""
    for folder in sorted(Path(tempfile.gettempdir()).glob("nanocaption-demo-*")):
        mine = folder.is_dir() and folder.stat().st_uid == os.getuid() and (folder / ".lock").exists()
        if mine:
            served = is_held(folder / ".lock")
            yield Found(folder, f"uploads of a page that {'is served' if served else 'ended'}", not served)


def strays(folder: Path) -> Iterator[Found]:
    """What killed processes left half-written in a folder and its caches."""
    for path in sorted([*folder.glob(".*"), *folder.glob("images/.*"), *folder.glob("cache/*/.*")]):
        if _is_stray(path):
            yield Found(path, "left half-written by a process that has ended", True)


def _is_stray(path: Path) -> bool:
    """Whether a process made this for a moment, and is not running any more (on this machine)."""
    match = _STRAY.fullmatch(path.name)
    return match is not None and not (match[1] and Path(f"/proc/{match[1]}").exists())


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock file; where there are no locks it is taken for held."""
    if not lock.is_file():
        return False
    try:
        with lock.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def removed(path: Path) -> bool:
    """Whether nothing is left of it."""
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError:
        return False
    return True
