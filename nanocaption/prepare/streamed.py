"""Shards -> data/<name>/ without their pictures: the bounded first pass of STREAM = True.

It reads captions as `prepare` does (tars.py, packed.py), decodes every picture once (check.py), and keeps
captions.json, the report and an index of where each picture lies (data/shards.py). In memory it holds some 50 bytes of
each picture at a time, and the listing of one tar; captions, names and findings lie in files (base/on_disk.py) that are
gone when it ends, however it ends. A pass that was stopped goes on with the pictures that were not checked yet.

Of tars on a server only headers and texts are kept, each tar as a file with holes where the pictures were.
"""

import fnmatch
import functools
import glob
import hashlib
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from nanocaption.base import on_disk
from nanocaption.base.files import cases, whole
from nanocaption.data import shards
from nanocaption.data.remote import AHEAD, Address, File, is_address
from nanocaption.data.shards import Packed, Shard
from nanocaption.prepare import archives, download, packed, tars
from nanocaption.prepare.caption_files import Source
from nanocaption.prepare.picture_files import is_picture

WHAT = ("STREAM = True reads WebDataset tars or parquet with pictures inside: set RAW_DATA_DIR to their folder, a "
        "pattern (shards/{00000..00331}.tar, shards/*.parquet) or several with commas between; for anything else set "
        "STREAM = False (--no-stream)")  # fmt: skip
ENDINGS = (".tar", ".parquet")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_SHARDS = 1_000_000
UNKNOWN = Packed("", "", 0, 0, 0)  # where a picture lies, before it is looked for


class Stream(NamedTuple):
    """Shards that were found: what reads their captions, and where their pictures lie."""

    source: Source
    locate: Callable[[Iterable[str]], Mapping[str, Packed]]  # names in the set -> the picture of each
    shards: list[Shard]


def find(where: str, kept: Path, scratch: Path) -> Stream:
    """The shards that RAW_DATA_DIR means. kept: a folder for what is read of tars on a server. scratch: for what is
    read of captions and pictures, as on_disk.rows takes it.

    Raises ValueError with one line where there are none, or they cannot be streamed.
    """
    places = expanded(where)
    kinds = {PurePosixPath(place).suffix.lower() for place in places}
    if len(kinds) > 1:
        raise ValueError(f"RAW_DATA_DIR = {where!r} means tars and parquet files: name those of one kind")
    own = [Path(place) if not is_address(place) else Address(place) for place in places]
    column = {}
    if kinds == {".parquet"}:
        readable = own
        column = {place: packed.parquet_columns(path).data for place, path in zip(places, own, strict=True)}
        reader, locate = packed.read_parquet, _locate_parquet
    else:
        readable = [skeleton(path, kept) if isinstance(path, Address) else path for path in own]
        reader, locate = tars.read_tars, _locate_tars
        if not any(tars.is_webdataset(path) for path in readable):
            raise ValueError(f"{cases(places, 'tar')} without pairs of name.jpg and name.txt or name.json. {WHAT}")
    raw_dir = _common(places)
    about = [_about(place, column.get(place, "")) for place in places]
    name = "parquet" if column else "WebDataset"
    why = f"{cases([path.name for path in own], 'shard')} stand for RAW_DATA_DIR = {where!r}"
    read = functools.partial(reader, raw_dir, list(readable), scratch)
    source = Source(f"{name}, streamed", why, where, list(readable), read)
    place_of = dict(zip(map(str, readable), places, strict=True))

    def located(names: Iterable[str]) -> Mapping[str, Packed]:
        found = on_disk.table(scratch, ((name, UNKNOWN) for name in names))
        for picture in locate(readable, found):
            if found[picture.file_name] == UNKNOWN:
                at = place_of[picture.shard]
                found[picture.file_name] = picture._replace(shard=at, column=column.get(at, ""))
        if lost := sorted(name for name, picture in found.items() if picture == UNKNOWN):
            raise ValueError(f"{where}: {cases(lost, 'picture')} not to be found again in the shards: did one change?")
        return found

    return Stream(source, located, about)


def _about(place: str, column: str) -> Shard:
    size, time, etag = shards.state_of(place)
    return {"path": place, "bytes": size, "time": time, "etag": etag, "column": column}


def _common(places: Sequence[str]) -> Path:
    """The folder of local shards, of which names of splits and neighbours are told."""
    return Path(places[0] if is_address(places[0]) else os.path.commonpath([*map(os.path.dirname, places)]))


def expanded(where: str, name: str = "RAW_DATA_DIR = ", what: str = WHAT) -> list[str]:
    """'a/{00..02}.tar,b/*.tar', a folder -> whole paths and addresses, sorted. Raises ValueError for one not there.

    name, what: what stands before `where` in messages, and what is told of shards.
    """
    found: list[str] = []
    # A folder or file that is there may have commas and braces in its name.
    patterns = [where] if os.path.exists(where) else itertools.chain.from_iterable(map(braces, _split(where)))
    for pattern in patterns:
        its = _in_repository(pattern) if pattern.startswith("hf://") else [pattern] if is_address(pattern) else (
            _on_disk(pattern))  # fmt: skip
        if not its:
            raise ValueError(f"{name}{where!r}: {pattern} leads to no shard. {what}")
        found += its
    others = [place for place in found if not place.lower().endswith(ENDINGS)]
    if packed_tars := [place for place in others if place.lower().endswith((".tar.gz", ".tgz"))]:
        raise ValueError(f"{cases(packed_tars, 'shard')} compressed as a whole, of which no picture can be read "
                         "without all before it: unpack with gunzip, pictures are compressed already")  # fmt: skip
    if others:
        raise ValueError(f"{name}{where!r}: {cases(others, 'file')} no .tar and no .parquet. {what}")
    return sorted(set(found))


def _split(where: str) -> list[str]:
    """Patterns with commas between; commas within braces are theirs."""
    return [part.strip() for part in re.split(r",(?![^{}]*\})", where) if part.strip()]


def braces(pattern: str) -> list[str]:
    """'{00..02}.tar' -> 00.tar, 01.tar, 02.tar, as a shell does; '{a,b}' as well, and several in one pattern."""
    opened = re.search(r"\{([^{}]*)\}", pattern)
    if opened is None:
        return [pattern]
    inside = RANGE.fullmatch(opened[1])
    if inside:
        first, last = int(inside[1]), int(inside[2])
        if not 0 <= last - first < MOST_SHARDS:
            raise ValueError(f"{opened[0]} is no range: write {{00000..00331}}, the smaller number first")
        width = len(inside[1]) if inside[1].startswith("0") or len(inside[1]) == len(inside[2]) else 0
        words = [str(number).zfill(width) for number in range(first, last + 1)]
    else:
        words = opened[1].split(",")
    rests = braces(pattern[opened.end() :])
    return [pattern[: opened.start()] + word + rest for word in words for rest in rests]


def _on_disk(pattern: str) -> list[str]:
    path = Path(pattern)
    if path.is_dir():
        its: Sequence[Path] = archives.find_shards(path, ENDINGS)
        parquet = [shard for shard in its if shard.suffix.lower() == ".parquet"]
        # img2dataset writes lists without pictures beside its tars.
        its = [shard for shard in its if shard not in parquet or packed.holds_pictures(shard)]
        its = its or archives.find_shards(path, archives.TARS)
    else:
        its = [path] if path.is_file() else [Path(name) for name in glob.glob(pattern) if os.path.isfile(name)]
    return [os.path.abspath(shard) for shard in its]


def _in_repository(pattern: str) -> list[str]:
    """Files of a data set on the Hub, under the commit that its revision means now."""
    form = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", pattern)
    if form is None:
        raise ValueError(f"{pattern}: write hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH")
    commit, names = _listing(form[1], form[2] or "main")
    return [f"hf://datasets/{form[1]}@{commit}/{name}" for name in names if _matches(name, form[3])]


def _matches(name: str, pattern: str) -> bool:
    """As a file system matches: * stops at /."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


@functools.lru_cache(8)
def _listing(repository: str, revision: str) -> tuple[str, list[str]]:
    return download.listing(repository, revision)


def _locate_tars(paths: Sequence[Path], wanted: Container[str]) -> Iterator[Packed]:
    for path, label in archives.labels_of(paths).items():
        for member, _ in archives.entries(path):
            name = tars.name_in_set(PurePosixPath(member.name).as_posix(), label, wanted)
            if name is not None and member.kind == "file":
                yield Packed(name, str(path), member.offset or 0, 0, member.size)


def _locate_parquet(paths: Sequence[Path], wanted: Container[str]) -> Iterator[Packed]:
    for path, label in archives.labels_of(paths).items():
        with shards.open_parquet(path) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        places = ((group, row) for group, number in enumerate(rows) for row in range(number))
        its = packed.parquet_rows(path, packed.parquet_columns(path), label, pictures=True)
        for (group, row), found in zip(places, its, strict=True):
            name = packed.name_in_set(found.row.file_name, label, found.data, wanted)
            if name is not None:
                yield Packed(name, str(path), group, row, len(found.data))


def skeleton(address: Address, kept: Path) -> Path:
    """A file that reads as the tar at `address` does, with holes where its pictures are; made once per content.

    A picture's hole begins with its digest, so that equal pictures, and no others, look equal.
    """
    told = shards.state_of(str(address))
    key = hashlib.sha256(f"{address} {told}".encode()).hexdigest()[:16]
    target = kept / key / address.name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=told[0], desc=address.name, unit="B", unit_scale=True, mininterval=0.5)
    with archives.damage_told(Path(address)), bar, whole(target) as made, made.open("wb") as file:
        file.truncate(told[0])
        with File(str(address)) as source, tarfile.open(fileobj=archives.LimitedReader(source), mode="r:") as opened:
            end = 0
            for member in opened:
                _copy(source, file, end, member.offset_data)
                end = member.offset_data
                if member.isreg() and is_picture(member.name) and member.size > 32:
                    _write_digest(source, file, end, member.size)
                    end += member.size
                opened.members.clear()  # as in archives.tar_entries
                bar.update(end - bar.n)
            _copy(source, file, end, told[0])
            bar.update(told[0] - bar.n)
    return target


def _copy(source: IO[bytes], target: IO[bytes], start: int, end: int) -> None:
    source.seek(start)
    target.seek(start)
    while (left := end - source.tell()) > 0:
        if not (data := source.read(min(left, AHEAD))):
            raise EOFError(f"it ends at byte {source.tell():,}, within a member")
        target.write(data)


def _write_digest(source: IO[bytes], target: IO[bytes], start: int, size: int) -> None:
    """The sha256 of these bytes of `source` in the place of their first ones."""
    digest = hashlib.sha256()
    source.seek(start)
    while (left := start + size - source.tell()) > 0:
        if not (data := source.read(min(left, AHEAD))):
            raise EOFError(f"it ends at byte {source.tell():,}, within a picture")
        digest.update(data)
    target.seek(start)
    target.write(digest.digest())
