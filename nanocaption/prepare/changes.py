"""What has changed since a set was made: its own pictures, which may be hard links, and the raw folder behind it."""

import contextlib
import filecmp
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from nanocaption.base.files import cases, json_lines, open_to_append
from nanocaption.data.prepared import Record
from nanocaption.prepare import check
from nanocaption.prepare.check_report import Examined

ANEW = ("To make it anew from what is there now, run prepare_dataset.py --remake with the same recipe and flags: "
        "pictures keep the splits that were drawn for them and the old captions.json is kept; runs of before go on "
        "with their own pictures, but not where these or their captions are others then")  # fmt: skip


def read_records(folder: Path) -> list[Record]:
    return cast(list[Record], json.loads((folder / "captions.json").read_bytes())["images"])


def left_out(folder: Path) -> dict[str, str]:
    """file_name -> reason, of what the set in `folder` was given and does not hold; {} where no report says so."""
    with contextlib.suppress(FileNotFoundError):
        pictures = json.loads((folder / "report.json").read_bytes())["pictures"]
        return dict.fromkeys(pictures["copies"]["left_out"], "copy") | pictures["refused_pictures"]
    return {}


def altered(paths: Mapping[str, Path], log: Path) -> list[str]:
    """Names whose file is none that `log`, a scan.jsonl, describes under that name; names unknown to it are not told.

    Files are asked for size and time. Where only the time is another one, as in a copied folder, the file is read, and
    the log gets a line with that time, so that this is done once.
    """
    lines: dict[str, list[Examined]] = {}
    for _, line in json_lines(log) if log.exists() else ():
        if line and {"name", "bytes", "time", "sha256", "refused"} <= line.keys():
            lines.setdefault(str(line["name"]), []).append(cast(Examined, line))
    other, again = [], []
    for name in paths.keys() & lines.keys():
        size, time = check.size_and_time(paths[name])
        of_size = [line for line in lines[name] if line["bytes"] == size]
        if all(line["time"] != time for line in of_size):
            same = [line for line in of_size if _is_of(line, paths[name])]
            again += [line | {"time": time} for line in same[-1:]]
            other += [name] * (not same)
    if again:
        with contextlib.suppress(OSError), open_to_append(log) as file:  # a set may lie where nothing can be written
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in again))
    return sorted(other)


def _is_of(line: Examined, path: Path) -> bool:
    """Whether a line of the log is of the content of a file; one that could not be read then is tried again."""
    if line["refused"]:
        return check.examine(str(path))["refused"] == line["refused"]
    return line["sha256"] == _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replaced(folder: Path, pictures: Mapping[str, Path]) -> list[str]:
    """Which of the raw `pictures`, by file_name, are no longer those that the set in `folder` holds or left out."""
    held = {name: folder / "images" / name for name in pictures}
    others = [name for name, path in held.items() if path.exists() and not filecmp.cmp(pictures[name], path)]
    refused = {name: pictures[name] for name, path in held.items() if not path.exists()}
    return others + altered(refused, folder / "scan.jsonl")


def of_captions(
    folder: Path, raw: Sequence[Record], case: str | None, drawn: bool, all_of_it: bool
) -> list[str]:  # fmt: skip
    """What the raw records say otherwise than the set in `folder`: '2 pictures (a.jpg, b.jpg) more' and the like.

    case: CAPTION_CASE; None: the set's captions were cleaned by other rules and are not compared. drawn: the splits are
    not the source's. all_of_it: whether the set was to hold each picture of the source.
    """
    old = {record["file_name"]: record for record in read_records(folder)}
    now = {record["file_name"]: record for record in check.clean_captions(raw, case or "keep")[0]}
    both = [name for name in now if name in old]
    kinds = {
        "more": _more(now, old, left_out(folder)) if all_of_it else [],
        "less": sorted(old.keys() - now.keys()),
        "with other captions": [name for name in both if case and now[name]["captions"] != old[name]["captions"]],
        "in another split": [name for name in both if not drawn and now[name]["split"] != old[name]["split"]],
    }
    return [f"{cases(names, 'picture')} {kind}" for kind, names in kinds.items() if names]


def _more(now: Mapping[str, Record], old: Mapping[str, Record], without: Mapping[str, str]) -> list[str]:
    """Those with captions that the set does not hold, but for what it left out for the picture's sake."""
    return [name for name, record in now.items()
            if record["captions"] and name not in old and without.get(name, "no caption left") == "no caption left"]
