"""Several prepared sets as one: DATASET = "flickr30k,mine*2" or "coco*0.5,mine".

The number behind a name says how often an epoch visits each training pair of that set: 2 is twice, 0.5 one half of them
and in the next epoch the other half. Validation and test take every picture of all the sets that have them, once: a
weight there would make scores that no other set of pictures can be compared with.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

FORM = 'write names with commas between, each with an optional weight above 0: "flickr30k,mine*2"'


class Part(NamedTuple):
    """One set of a mix."""

    name: str
    weight: float


def is_mix(dataset: str) -> bool:
    return "," in dataset or re.fullmatch(r".*\*\s*[-+.\d]\S*", dataset) is not None


def parse(dataset: str) -> list[Part]:
    """"flickr30k,mine*2" -> its parts. Raises ValueError with one line where it is not of that form."""
    parts = []
    for text in dataset.split(","):
        name, star, number = (piece.strip() for piece in text.partition("*"))
        try:
            weight = float(number) if star else 1.0
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise ValueError(f"DATASET = {dataset!r}: {text.strip()!r} is no set with a weight; {FORM}")
        parts.append(Part(name, weight))
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"DATASET = {dataset!r} names a set twice: give it a weight instead; {FORM}")
    return parts


def folder_name(dataset: str) -> str:
    """The name of the folder in DATA_DIR: DATASET itself, and for a mix "flickr30k+mine@2"."""
    if not is_mix(dataset):
        return dataset
    return "+".join(part.name + ("" if part.weight == 1 else f"@{part.weight:g}") for part in parse(dataset))


def mixed_records(parts: Sequence[Part], records: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The records of all parts, each with its "set" and, unless it is 1, the "weight" of its training pairs.

    A file name begins with the set's name, so that pictures of one name in two sets stay apart.
    """
    return [
        record | {"file_name": f"{part.name}/{record['file_name']}", "set": part.name}
        | ({} if part.weight == 1 else {"weight": part.weight})
        for part, rows in zip(parts, records, strict=True) for record in rows
    ]  # fmt: skip


def link_pictures(images_dir: Path, name: str, target: Path) -> None:
    """images_dir/name becomes a link to the folder `target`, relative, so that DATA_DIR can be moved as a whole."""
    link, way = images_dir / name, os.path.relpath(target, images_dir)
    if link.is_symlink() and os.readlink(link) == way:
        return
    part = images_dir / f".{name}.{os.getpid()}.part"
    part.unlink(missing_ok=True)
    part.symlink_to(way, target_is_directory=True)
    os.replace(part, link)
