"""WebDataset: tar shards of pictures with texts of the same key, name.jpg with name.txt, name.caption or name.json.

WebDataset ends a key at the first point of a name, so that "img 2.150.jpg" would be a part ".150.jpg" of the sample
"img 2". Here pictures and texts pair by all before the last point, which is the same where names have one point, and
wherever in the tar they stand. Members that are not used are counted and named.
"""

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Container, MutableMapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from nanocaption.base import on_disk
from nanocaption.base.files import PICTURE_SUFFIXES, cases, is_junk
from nanocaption.prepare import archives
from nanocaption.prepare.caption_files import Row, Rows, Source
from nanocaption.prepare.packed import (
    Content,
    merged_by_name,
    packed_source,
    qualified,
    split_of,
)
from nanocaption.prepare.picture_files import is_picture
from nanocaption.prepare.sidecars import TEXT_ENDINGS, Key, Text, choose, parse_text, stem_of, with_folder_splits

FIRST_POINT = "WebDataset ends a key at the first point of a name, here pictures and texts pair by all before the last"


def find_webdataset(raw_dir: Path) -> Source | None:
    """The tars in `raw_dir`, or directly below it, that are shards of a WebDataset."""
    shards = [path for path in archives.find_shards(raw_dir, archives.TARS) if is_webdataset(path)]
    why = f"{cases([path.name for path in shards], 'tar')} with pairs of name.jpg and name.txt or name.json"
    return packed_source("WebDataset", why, raw_dir, shards, read_tars, unpack_tars)


def is_webdataset(path: Path) -> bool:
    """Whether a picture and a text in it have the same key; they need not be neighbours."""
    pictures: set[str] = set()
    texts: set[str] = set()
    for member, _ in archives.entries(path):
        if member.kind == "file" and is_sample(member.name):
            mine, others = (pictures, texts) if is_picture(member.name) else (texts, pictures)
            mine.add(key_of(member.name))
            if key_of(member.name) in others:
                return True
    return False


def is_sample(name: str) -> bool:
    return not is_junk(name) and name.lower().endswith((*PICTURE_SUFFIXES, *TEXT_ENDINGS))


def key_of(name: str) -> str:
    """'./train/a.1.jpg' -> 'train/a.1'"""
    return stem_of(PurePosixPath(name).as_posix())


class Members(NamedTuple):
    """What the shards hold, in order."""

    pictures: on_disk.Rows[Content]
    texts: MutableMapping[Key, dict[str, Text]]  # of pictures, by their ending
    lonely: on_disk.Rows[str]  # texts without a picture
    others: on_disk.Rows[str]  # what is neither


def read_tars(raw_dir: Path, shards: list[Path], scratch: Path | None = None) -> Rows:
    """One row per picture that has a text of the same key, named by its path in the tar. See the head of the file.

    scratch: as on_disk.rows takes it.
    """
    found = _members(raw_dir, shards, scratch)
    chosen, notes = choose(found.texts, scratch)
    captioned: on_disk.Rows[Content] = on_disk.rows(scratch)
    said: on_disk.Rows[Text] = on_disk.rows(scratch)
    wordless: on_disk.Rows[str] = on_disk.rows(scratch)
    for content in found.pictures:
        if (text := chosen.get(_key(content))) is None:
            wordless.append(content.name)
        else:
            captioned.append(content)
            said.append(text)
    names, more = qualified(captioned, scratch)
    rows = on_disk.rows(scratch, (Row(name, text.split or content.split, text.captions)
                                  for content, name, text in zip(captioned, names, said, strict=True)))  # fmt: skip
    if not rows:
        raise ValueError(f"{raw_dir}: no text says anything of its picture: {'; '.join(notes)}")
    one_each, unsplit = with_folder_splits(merged_by_name(rows, raw_dir, scratch), scratch)
    return one_each, [*notes, *more, *unsplit, *_left_out(wordless, found.lonely, found.others),
                      *_how_paired(captioned, scratch), *archives.unread(raw_dir, shards)]  # fmt: skip


def _key(content: Content) -> Key:
    return content.shard, key_of(content.name)


def _members(raw_dir: Path, shards: list[Path], scratch: Path | None) -> Members:
    """Texts are read where a picture has their key, pictures only where another shard has their name."""
    found = Members(on_disk.rows(scratch), on_disk.table(scratch), on_disk.rows(scratch), on_disk.rows(scratch))
    listed: on_disk.Rows[str] = on_disk.rows(scratch)
    ends = []  # of each shard's pictures in this list
    for shard in shards:
        listed.extend(filter(is_picture, archives.checked(shard, is_sample)))
        ends.append(len(listed))
    twice = on_disk.Repeated(listed)
    left = iter(listed)
    labels = archives.labels_of(shards)
    bar = tqdm(labels.items(), desc="captions", unit="shard", disable=len(shards) < 2)
    for (shard, label), start, end in zip(bar, [0, *ends], ends, strict=False):
        keys = set(map(key_of, itertools.islice(left, end - start)))
        for member, open_member in archives.entries(shard):
            name = PurePosixPath(member.name).as_posix()
            if member.kind != "file" or is_junk(name):
                continue
            if not is_sample(name):
                found.others.append(name)
            elif is_picture(name):
                digest = hashlib.sha256(_bytes_of(shard, open_member)).hexdigest() if name in twice else ""
                found.pictures.append(Content(label, name, digest, split_of(raw_dir, shard)))
            elif key_of(name) in keys:
                ending = PurePosixPath(name).suffix.lower()
                text = parse_text(_bytes_of(shard, open_member), ending, f"{shard}: {member.name}")
                key = (label, key_of(name))
                found.texts[key] = found.texts.get(key, {}) | {ending: text}
            else:
                found.lonely.append(name)
    return found


def _bytes_of(shard: Path, open_member: Callable[[], IO[bytes]]) -> bytes:
    with archives.damage_told(shard), open_member() as file:
        return b"".join(iter(lambda: file.read(archives.MAX_HEADER_BYTES), b""))


def _left_out(wordless: Sequence[str], lonely: Sequence[str], others: Sequence[str]) -> list[str]:
    notes = []
    if wordless:
        rule = f" ({FIRST_POINT})" if any("." in PurePosixPath(key_of(name)).name for name in wordless) else ""
        notes.append(f"{cases(wordless, 'picture')} without a text of the same key, left out{rule}")
    if lonely:
        notes.append(f"{cases(sorted(lonely), 'text')} without a picture of the same key, left out")
    if others:
        endings = ", ".join(sorted({PurePosixPath(name).suffix or "no ending" for name in others}))
        notes.append(f"{cases(others, 'member')} that are neither picture nor text ({endings}), not read")
    return notes


def _how_paired(contents: Sequence[Content], scratch: Path | None) -> list[str]:
    names = (content.name for content in contents)
    pointed = on_disk.rows(scratch, (name for name in names if "." in PurePosixPath(key_of(name)).name))
    shared: on_disk.Rows[str] = on_disk.rows(scratch)
    for _, its in itertools.groupby(contents, key=lambda content: content.shard):
        shared.extend(key for (_, key), count in Counter(map(_key, its)).items() if count > 1)
    return [*[f"{cases(pointed, 'picture')} with several points in the name: {FIRST_POINT}"] * bool(pointed),
            *[f"{cases(shared, 'text')} for several pictures of that key"] * bool(shared)]  # fmt: skip


def unpack_tars(shards: list[Path], file_names: Collection[str], folder: Path) -> None:
    """Write the pictures `file_names` to `folder`; those already there are kept."""
    wanted = set(file_names)
    for shard, label in archives.labels_of(shards).items():
        in_set = functools.partial(name_in_set, label=label, wanted=wanted)
        members = archives.checked(shard, lambda name, in_set=in_set: in_set(name) is not None)
        archives.unpack(shard, members, lambda name, in_set=in_set: folder / (in_set(name) or name))


def name_in_set(name: str, label: str, wanted: Container[str]) -> str | None:
    """Which of the names that `qualified` gives a member of the shard `label` is wanted."""
    return next((name for name in (name, f"{label}/{name}") if name in wanted), None)
