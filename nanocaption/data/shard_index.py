"""The index of a streamed set: where each of its pictures lies, a row of numbers each. See shards.py for its files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from nanocaption.base.files import whole, write_atomically
from nanocaption.data import shards
from nanocaption.data.shards import Packed, Shard, read_shards

INDEX = np.dtype([
    ("shard", "<u4"), ("start", "<u8"), ("row", "<u4"), ("length", "<u4"), ("crc", "<u4"), ("block", "<u4"),
    ("name_end", "<u8"),
])  # fmt: skip


def paths_of(images_dir: Path, records: Sequence[Mapping[str, object]]) -> list[Path | Packed]:
    """Where the picture of each record lies: a file in `images_dir`, or of a streamed set, whose records have their
    "place" (see prepared.load_records), the shard."""
    if not records or "place" not in records[0]:
        return [images_dir / str(record["file_name"]) for record in records]
    index = Index(images_dir.parent)
    return [index.picture(cast(int, record["place"])) for record in records]


class Index:
    """The pictures of the streamed set in `folder`, by their place in captions.json."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = np.load(folder / "stream" / "index.npy", mmap_mode="r")  # (pictures,) of INDEX
        self.names = np.memmap(folder / "stream" / "names.bin", mode="r")
        self.shards = read_shards(folder)

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[type["Index"], tuple[Path]]:
        return Index, (self.folder,)

    def picture(self, place: int) -> Packed:
        shard, start, row, length, crc, _, end = self.rows[place].item()
        begin = int(self.rows["name_end"][place - 1]) if place else 0
        about = self.shards[shard]
        name = self.names[begin:end].tobytes().decode()
        return Packed(name, about["path"], start, row, length, crc, about["column"])


def write_index(folder: Path, shards: Sequence[Shard], pictures: Sequence[Packed]) -> None:
    """Write the index of a set that has these pictures, in their order, each with its CRC-32."""
    numbers = {shard["path"]: number for number, shard in enumerate(shards)}
    rows = np.zeros(len(pictures), INDEX)
    names = [picture.file_name.encode() for picture in pictures]
    rows["name_end"] = np.cumsum([len(name) for name in names])
    for field in ("start", "row", "length", "crc"):
        rows[field] = [getattr(picture, field) for picture in pictures]
    rows["shard"] = [numbers[picture.shard] for picture in pictures]
    rows["block"] = _blocks(rows, np.array([bool(shard["column"]) for shard in shards]))
    (folder / "stream").mkdir(parents=True, exist_ok=True)
    with whole(folder / "stream" / "index.npy", sync=True) as made, made.open("wb") as file:
        np.save(file, rows)
    with whole(folder / "stream" / "names.bin", sync=True) as made:
        made.write_bytes(b"".join(names))
    write_atomically(folder / "stream" / "shards.json", json.dumps({"shards": list(shards)}, indent=1) + "\n")


def _blocks(rows: np.ndarray, in_groups: np.ndarray) -> np.ndarray:
    """The number of each picture's block: up to shards.BLOCK_BYTES of a tar in its order, or a row group."""
    order = np.lexsort((rows["row"], rows["start"], rows["shard"]))
    block, filled, last, numbers = -1, 0, None, np.zeros(len(rows), "<u4")
    for place in order.tolist():
        shard, start, length = (int(rows[field][place]) for field in ("shard", "start", "length"))
        own = (shard, start) if in_groups[shard] else (shard, 0)
        if own != last or (not in_groups[shard] and filled + length > shards.BLOCK_BYTES):
            block, filled, last = block + 1, 0, own
        filled += length
        numbers[place] = block
    return numbers


def check_index(folder: Path, pictures: int) -> None:
    """Raises ValueError where the index of the set in `folder` is not there or not of so many pictures."""
    try:
        held = len(Index(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not whole: its stream/ cannot be read ({error})") from None
    if held != pictures:
        raise ValueError(f"{folder} is not whole: its stream/ has {held:,} pictures, must be {pictures:,}")
