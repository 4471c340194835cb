"""The pictures and captions that a run uses: noted when it starts, found again when it goes on.

A checkpoint holds the note, so that a resume depends on these alone: other splits, another cutoff, pictures that came
since and captions that the run does not read change nothing. It is one line of JSON a picture, compressed: some 30
bytes a picture.

A picture is known by its file's sha256, one in a shard by CRC-32 and size. What check.py has noted of a file is
believed as long as size and time are the same; else the file is read.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nanocaption.base.files import cases, json_lines
from nanocaption.base.settings import Settings
from nanocaption.data.caption_text import as_trained
from nanocaption.data.prepared import Record, iter_records, sha256_of
from nanocaption.data.shard_index import paths_of
from nanocaption.data.shards import Packed
from nanocaption.prepare.check import size_and_time

PICTURE_DIGITS, CAPTION_DIGITS = 16, 8  # of their hexadecimal digests: enough to tell a change, too few to prove one
SHOWN = 3  # captions that a message names


class Used(NamedTuple):
    """A picture that a run uses."""

    role: str  # "train" or "val"
    split: str  # in which it stood
    name: str
    picture: str  # its digest
    captions: list[str]  # theirs


def note_used(settings: Settings, folder: Path, records: Mapping[str, Sequence[Record]]) -> list[Used]:
    """What a fresh run has to note of its pictures. records: as they are written, by role."""
    found = []
    for role, rows in records.items():
        for record, digest in zip(rows, picture_digests(folder, rows), strict=True):
            captions = [_digest(text) for text in texts_used(settings, role, record)]
            found.append(Used(role, record["split"], record["file_name"], digest, captions))
    return found


def packed(used: Iterable[Used]) -> Tensor:
    """uint8 (n,), for a checkpoint."""
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in used)
    return torch.frombuffer(bytearray(zlib.compress(lines.encode(), 6)), dtype=torch.uint8)


def unpacked(note: Tensor) -> list[Used]:
    """What `packed` was given. Raises ValueError where it is no such note."""
    try:
        return [Used(*json.loads(line)) for line in zlib.decompress(note.numpy().tobytes()).splitlines()]
    except (zlib.error, ValueError, TypeError) as error:
        raise ValueError(f"The checkpoint's note of its pictures cannot be read ({error}).") from error


def texts_used(settings: Settings, role: str, record: Record) -> list[str]:
    """The captions of a picture as the run reads them: scores read those of validation as they are written, and so do
    the rewards of self-critical training; what else is learnt from is normalised, each caption once."""
    if role != "train" or settings.OBJECTIVE == "scst":
        return record["captions"]
    return as_trained([record], settings.CAPTION_CASE)[0][0]["captions"]


def picture_digests(folder: Path, records: Sequence[Record]) -> list[str]:
    """Of each record's picture in the set at `folder`; "" where it is missing."""
    paths = paths_of(folder / "images", records)
    known = _scanned(folder, records)
    digests = []
    for record, path in zip(records, paths, strict=True):
        if isinstance(path, Packed):
            digests.append(f"{path.crc or 0:08x}{path.length:08x}")
            continue
        size_time, digest = known.get(record["file_name"], ((0, 0), ""))
        if not digest or size_and_time(path) != size_time:
            digest = sha256_of(path) if path.is_file() else ""
        digests.append(digest[:PICTURE_DIGITS])
    return digests


def _scanned(folder: Path, records: Sequence[Record]) -> dict[str, tuple[tuple[int, int], str]]:
    """file_name -> ((bytes, time), sha256), of the pictures that check.py has looked at; of a mix those of its sets."""
    wanted = {record["file_name"] for record in records}
    parts = {record.get("set") for record in records}
    found = {}
    for part in parts:
        log, prefix = (folder, "") if part is None else (folder.parent / part, f"{part}/")
        for _, line in json_lines(log / "scan.jsonl") if (log / "scan.jsonl").is_file() else ():
            if line and (name := f"{prefix}{line.get('name')}") in wanted and line.get("sha256"):
                found[name] = ((int(str(line.get("bytes"))), int(str(line.get("time")))), str(line["sha256"]))
    return found


class Found(NamedTuple):
    """What a set holds of a run's pictures."""

    records: dict[str, list[Record]]  # by role, in the run's order and with the splits that they had
    missing: list[str]  # file names
    changed: list[str]  # what else is not as it was, a line each
    notes: list[str]


def find_used(settings: Settings, folder: Path, used: Sequence[Used]) -> Found:
    """The pictures of a run in the set at `folder`, in whatever split they are now.

    One that the set no longer holds is taken from an earlier captions.json that it keeps, where its file is still
    there. Raises ValueError where there is no captions.json to read.
    """
    current = _records_of(folder / "captions.json", {one.name for one in used})
    left = {one.name for one in used} - current.keys()
    kept: dict[str, Record] = {}
    for path in sorted(folder.glob("captions.replaced-*.json")) if left else ():
        kept |= _records_of(path, left)
    rows = [(one, found) for one in used if (found := current.get(one.name) or kept.get(one.name))]
    digests = picture_digests(folder, [record for _, record in rows])
    there = [(one, record, digest) for (one, record), digest in zip(rows, digests, strict=True) if digest]
    records: dict[str, list[Record]] = {one.role: [] for one in used}
    for one, record, _ in there:
        records[one.role].append(record | {"split": one.split})
    names = {one.name for one, _, _ in there}
    moved = sorted({one.name for one, record, _ in there if record["split"] != one.split})
    gone = sorted(left & names)
    notes = [f"{cases(moved, 'picture')} of this run are in another split now; it goes on with them as they were, and "
             "scores on that split would be of pictures that it knows"] * bool(moved)  # fmt: skip
    notes += [f"{cases(gone, 'picture')} of this run are no longer in {folder / 'captions.json'}; it goes on with the "
              "captions that are kept there of before"] * bool(gone)  # fmt: skip
    missing = list(dict.fromkeys(one.name for one in used if one.name not in names))
    return Found(records, missing, list(_changes(settings, there)), notes)


def _records_of(path: Path, names: set[str]) -> dict[str, Record]:
    """The records of these file names in a captions.json; of a streamed set with their places."""
    try:
        rows = enumerate(iter_records(path))
        streamed = (path.parent / "stream" / "index.npy").is_file() and path.name == "captions.json"
        return {record["file_name"]: record | {"place": place} if streamed else record
                for place, record in rows if record["file_name"] in names}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def _changes(settings: Settings, there: Sequence[tuple[Used, Record, str]]) -> Iterator[str]:
    """What is said of pictures and captions that are others than in the run."""
    pictures = sorted({one.name for one, _, digest in there if digest != one.picture})
    if pictures:
        yield f"{cases(pictures, 'picture')} replaced by other files"
    others: dict[str, str] = {}
    for one, record, _ in there:
        texts = texts_used(settings, one.role, record)
        if [_digest(text) for text in texts] != one.captions:
            others.setdefault(one.name, _told(one, texts))
    if others:
        more = f"; and {len(others) - SHOWN:,} more" if len(others) > SHOWN else ""
        yield f"captions of {cases(list(others), 'picture')}: {'; '.join([*others.values()][:SHOWN])}{more}"


def _told(one: Used, texts: Sequence[str]) -> str:
    """Which captions of a picture are others."""
    new = [(number, text) for number, text in enumerate(texts, start=1) if _digest(text) not in one.captions]
    lost = len(set(one.captions) - {_digest(text) for text in texts})
    if not new and not lost:
        return f"{one.name}: the same captions in another order or number"
    shown = ", ".join(f"caption {number} is {text[:60]!r} now" for number, text in new[:SHOWN])
    return f"{one.name}: " + (shown or f"{lost} of {len(one.captions)} captions gone")


def refuse_changed(found: Found, folder: Path) -> None:
    """SystemExit, naming pictures and captions, where the run cannot go on as it was."""
    lines = [f"{cases(found.missing, 'picture')} missing"] * bool(found.missing) + found.changed
    if lines:
        raise SystemExit(
            f"The data of this run in {folder} has changed, and a resume needs what the run used:\n"
            + "\n".join(f"  - {line}" for line in lines)
            + "\nPut these back, or start a fresh run, with --init-checkpoint-path to begin with the weights of this."
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:CAPTION_DIGITS]
