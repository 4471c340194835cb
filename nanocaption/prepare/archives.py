"""Zip and tar files from strangers: their whole listing is checked before anything is written.

`entries` goes through an archive and hands out each member, `checked` refuses what must not be unpacked, `unpack`
writes chosen members, each atomically, and keeps those already there. Links, devices, names that lead out of the
folder, doubled names and bombs are refused with one line.
"""

import contextlib
import functools
import gzip
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from os.path import commonpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from tqdm import tqdm

from nanocaption.base.files import PICTURE_SUFFIXES, cases, is_junk, require_space, size_of, write_file

TARS = (".tar", ".tar.gz", ".tgz")
SUFFIXES = (".zip", *TARS)
MAX_PICTURE_BYTES = 64 * 2**20  # the largest file of Flickr30k is below 1 MB
MAX_TEXT_BYTES = 2**30  # COCO's captions are 60 MB a file
MAX_HEADER_BYTES = 2**16  # of a tar: long names and what else is said of a member
MAX_RATIO = 100  # unpacked : packed; JPEGs are near 1, captions near 10, bombs near 1,000


class Member(NamedTuple):
    """A member of an archive, as its listing describes it."""

    name: str
    size: int  # bytes, unpacked
    packed: int | None  # bytes; None in a tar, which packs all members together
    kind: str  # "file", "folder", "link or device"
    encrypted: bool = False
    hidden_name: str = ""  # zipfile cuts a name at a NUL; this one is whole
    offset: int | None = None  # where the content of a file in a tar begins


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not is_junk(path.name) and path.is_file()


def find(raw_dir: Path) -> list[Path]:
    """The archive `raw_dir` itself, or those that lie directly in it."""
    if raw_dir.is_file():
        return [raw_dir] if is_archive(raw_dir) else []
    return sorted(path for path in raw_dir.iterdir() if is_archive(path)) if raw_dir.is_dir() else []


def find_shards(raw_dir: Path, endings: tuple[str, ...]) -> list[Path]:
    """`raw_dir` itself, or the files in it and directly below it, that end so."""
    if raw_dir.is_file():
        return [raw_dir] if raw_dir.name.lower().endswith(endings) else []
    paths = [*raw_dir.iterdir(), *raw_dir.glob("*/*")]
    return sorted(path for path in paths if path.name.lower().endswith(endings) and path.is_file()
                  and not is_junk(path.relative_to(raw_dir).as_posix()))


def labels_of(packed: Sequence[Path]) -> dict[Path, str]:
    """What packed files are called in the names of their pictures: no ending, no folder, where they are told apart."""
    top = commonpath([path.parent for path in packed]) if packed else ""
    places = {path: path.relative_to(top) for path in packed}
    stems = {path: place.with_name(place.name.partition(".")[0]) for path, place in places.items()}
    names = {path: stem.name for path, stem in stems.items()}
    for labels in (names, {path: stem.as_posix() for path, stem in stems.items()}):
        if len({*labels.values()}) == len(packed):
            return labels
    return {path: place.as_posix() for path, place in places.items()}


def unread(raw_dir: Path, read: Collection[Path]) -> list[str]:
    """A note of packed files that lie beside those that are read, if there are any."""
    there = find_shards(raw_dir, (".parquet", *SUFFIXES)) if raw_dir.exists() else []
    beside = [path.name for path in there if path not in read]
    return [f"{cases(beside, 'packed file')} beside what is read, not read (of img2dataset, a list without pictures)"
            ] * bool(beside)


def entries(archive: Path) -> Iterator[tuple[Member, Callable[[], IO[bytes]]]]:
    """Each member with a function that opens it, which serves until the next member. Raises ValueError for damage."""
    with damage_told(archive):
        yield from zip_entries(archive) if archive.name.lower().endswith(".zip") else tar_entries(archive)


@contextlib.contextmanager
def damage_told(archive: Path) -> Iterator[None]:
    """Whatever zipfile, tarfile and gzip raise for a damaged archive becomes a ValueError; also where one is read."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({error}); delete {archive.resolve()} and fetch it again") from None


def zip_entries(archive: Path) -> Iterator[tuple[Member, Callable[[], IO[bytes]]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            kind = "folder" if info.is_dir() else "file"
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "link or device"
            member = Member(info.filename, info.file_size, info.compress_size, kind, bool(info.flag_bits & 1),
                            info.orig_filename)  # fmt: skip
            yield member, functools.partial(opened.open, info)


def tar_entries(archive: Path) -> Iterator[tuple[Member, Callable[[], IO[bytes]]]]:
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(archive.open("rb"))
        if archive.name.lower().endswith("gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        opened = stack.enter_context(tarfile.open(fileobj=LimitedReader(file), mode="r:"))
        most = MAX_RATIO * max(archive.stat().st_size, 2**20)
        for info in opened:
            if info.offset_data + info.size > most and not info.issparse():
                raise ValueError(f"{archive}: member {info.name!r:.200} brings the unpacked size to "
                                 f"{info.offset_data + info.size:,} bytes, more than {MAX_RATIO} times the file: "
                                 "refused")  # fmt: skip
            kind = "file" if info.isreg() and not info.issparse() else "folder" if info.isdir() else "link or device"
            member = Member(info.name, info.size, None, kind, offset=info.offset_data)
            yield member, lambda info=info: opened.extractfile(info)
            opened.members.clear()  # otherwise a tar of a million pictures fills the memory with its listing


class LimitedReader:
    """A file for tarfile, which reads a long name or a header of whatever announced size at once into memory.

    And takes time by its square to read what such a header says. Contents are read piece by piece.
    """

    def __init__(self, file: IO[bytes]):
        self.file, self.tell, self.seek = file, file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def checked(archive: Path, wanted: Callable[[str], bool]) -> dict[str, Member]:
    """name -> member for the files that `wanted` accepts by their name, macOS junk left out.

    Raises ValueError, before anything is written, where any member is dangerous, a wanted name comes twice, or the
    archive would unpack to far more than it is.
    """
    found: dict[str, Member] = {}
    total, packed = 0, archive.stat().st_size
    listing = entries(archive)  # of a tar.gz it takes as long as unpacking
    for member, _ in tqdm(listing, desc=f"checking {archive.name}", unit="file", mininterval=0.5, delay=1):
        danger = danger_of(member)
        total += member.size
        if danger is None and total > MAX_RATIO * max(packed, 2**20):
            danger = f"brings the unpacked size to {total:,} bytes, of {packed:,} packed"
        name = PurePosixPath(member.name).as_posix()
        chosen = member.kind == "file" and not is_junk(name) and wanted(name)
        if danger is None and chosen:
            most = MAX_PICTURE_BYTES if name.lower().endswith(PICTURE_SUFFIXES) else MAX_TEXT_BYTES
            if member.size > most:
                danger = f"has {member.size:,} bytes, more than the {most:,} that such a file may have"
            elif name in found:
                danger = "is there twice"
        if danger:
            raise ValueError(f"{archive}: member {member.hidden_name or member.name!r} {danger}: refused, nothing was "
                             "unpacked")
        if chosen:
            found[name] = member
    return found


def danger_of(member: Member) -> str | None:
    """Why an archive with this member must not be unpacked, or None."""
    if leads_out(member.name) or leads_out(member.hidden_name):
        return "leads out of the folder"
    if member.kind == "link or device":
        return "is a link or a device"
    if member.encrypted:
        return "is encrypted"
    if member.packed is not None and member.size > MAX_RATIO * max(member.packed, 1024):
        return f"unpacks from {member.packed:,} to {member.size:,} bytes"
    return None


def leads_out(name: str) -> bool:
    """Whether a path does not stay below the folder it is joined to, on any system."""
    path = PureWindowsPath(name)  # which knows both kinds of slashes
    return bool(path.drive or path.root) or ".." in path.parts or "\0" in name


def unpack(archive: Path, members: Mapping[str, Member], place: Callable[[str], Path]) -> None:
    """Write members, as `checked` gave them, to the place of their name. What is there in the right size is kept."""
    todo = {name: place(name) for name, member in members.items() if size_of(place(name)) != member.size}
    if not todo:
        return
    require_space(next(iter(todo.values())).parent, sum(members[name].size for name in todo), "DATA_DIR")
    bar = tqdm(total=len(todo), desc=f"unpacking {archive.name}", unit="file", mininterval=0.5)
    with damage_told(archive), bar:
        for member, open_member in entries(archive):
            target = todo.get(PurePosixPath(member.name).as_posix()) if member.kind == "file" else None
            if target is not None:
                with open_member() as source:
                    write_file(target, source)
                bar.update()


def unpack_beside(packed: list[Path], raw_dir: Path, folder: Path, is_caption_file: Callable[[str], bool]) -> Path:
    """`folder`, or its only one, filled as if `raw_dir` had been unpacked in it: pictures and caption files only.

    Where archives share a name, each is filled into a folder of its own name. What else lies in `raw_dir` is linked
    there. All listings are checked before anything is written; a rerun goes on.
    """
    plans = {archive: checked(archive, lambda name: name.lower().endswith(PICTURE_SUFFIXES) or is_caption_file(name))
             for archive in packed}  # fmt: skip
    for archive, members in plans.items():
        print(f"{archive}: an archive with {len(members):,} pictures and caption files, unpacked to {folder}")
    times = Counter(name for members in plans.values() for name in members)
    places = dict.fromkeys(packed, folder)
    if shared := [name for name, count in times.items() if count > 1]:
        print(f"{cases(shared, 'name')} in several archives, so each is unpacked to a folder of its own name")
        places = own_places(packed, raw_dir, folder)
    for archive, members in plans.items():
        unpack(archive, members, places[archive].joinpath)
    folder.mkdir(parents=True, exist_ok=True)
    link_others(packed, raw_dir, folder)
    while len(inside := [path for path in folder.iterdir() if not is_junk(path.name)]) == 1 and inside[0].is_dir():
        folder = inside[0]  # the one top folder that archives like to have
    return folder


def own_places(packed: list[Path], raw_dir: Path, folder: Path) -> dict[Path, Path]:
    """A folder in `folder` for each archive, which nothing else in `raw_dir` has the name of."""
    return {archive: folder / (archive.name if (raw_dir / label).exists() else label)
            for archive, label in labels_of(packed).items()}  # fmt: skip


def link_others(packed: list[Path], raw_dir: Path, folder: Path) -> None:
    """Link to `folder` what lies in `raw_dir` beside the archives."""
    for path in sorted(raw_dir.iterdir()) if raw_dir.is_dir() else ():
        link = folder / path.name
        if path not in packed and not is_junk(path.name) and not link.exists():
            link.unlink(missing_ok=True)  # a link to a place that is no more
            link.symlink_to(path.resolve())
