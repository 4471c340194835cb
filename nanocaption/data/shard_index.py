"""The index of a streamed set: where each of its pictures lies, a row of numbers each. See shards.py for its files."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
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

WRITTEN_AT_ONCE = 2**14  # pictures


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
        if not isinstance(self.rows, np.ndarray) or self.rows.dtype != INDEX or self.rows.ndim != 1:
            raise ValueError(f"{folder / 'stream' / 'index.npy'} is no index of pictures")
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


def write_index(folder: Path, shards: Sequence[Shard], pictures: Iterable[Packed], number: int) -> None:
    """Write the index of a set that has these pictures, so many, in their order, each with its CRC-32.

    Held of each picture are some 30 bytes: those by which they are brought into the order of the shards.
    """
    numbers = {shard["path"]: place for place, shard in enumerate(shards)}
    (folder / "stream").mkdir(parents=True, exist_ok=True)
    with (whole(folder / "stream" / "index.npy", sync=True) as made,
          whole(folder / "stream" / "names.bin", sync=True) as made_names):  # fmt: skip
        rows = np.lib.format.open_memmap(made, "w+", INDEX, (number,))
        end, source = 0, iter(pictures)
        with made_names.open("wb") as names:
            for start in range(0, number, WRITTEN_AT_ONCE):
                some = list(itertools.islice(source, WRITTEN_AT_ONCE))
                texts = [picture.file_name.encode() for picture in some]
                part = rows[start : start + len(some)]
                part["name_end"] = end + np.cumsum([len(text) for text in texts])
                for field in ("start", "row", "length", "crc"):
                    part[field] = [getattr(picture, field) for picture in some]
                part["shard"] = [numbers[picture.shard] for picture in some]
                names.write(b"".join(texts))
                end += sum(map(len, texts))
        _write_blocks(rows, np.array([bool(shard["column"]) for shard in shards]))
        rows.flush()
    write_atomically(folder / "stream" / "shards.json", json.dumps({"shards": list(shards)}, indent=1) + "\n")


def _write_blocks(rows: np.ndarray, in_groups: np.ndarray) -> None:
    """The number of each picture's block: up to shards.BLOCK_BYTES of a tar in its order, or a row group."""
    order = np.lexsort((rows["row"], rows["start"], rows["shard"]))
    block, filled, last = -1, 0, None
    for first in range(0, len(order), WRITTEN_AT_ONCE):
        places = order[first : first + WRITTEN_AT_ONCE]
        numbers = []
        for shard, start, length in rows[["shard", "start", "length"]][places].tolist():
            own = (shard, start) if in_groups[shard] else (shard, 0)
            if own != last or (not in_groups[shard] and filled + length > shards.BLOCK_BYTES):
                block, filled, last = block + 1, 0, own
            filled += length
            numbers.append(block)
        rows["block"][places] = numbers


def check_index(folder: Path, pictures: int) -> None:
    """Raises ValueError where the index of the set in `folder` is not there or not of so many pictures."""
    try:
        index = Index(folder)
        held = len(index)
        _check_places(index)
    except Exception as error:  # numpy raises nearly any on a damaged header
        told = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{folder} is not whole: its stream/ cannot be read ({told})") from None
    if held != pictures:
        raise ValueError(f"{folder} is not whole: its stream/ has {held:,} pictures, must be {pictures:,}")


def _check_places(index: Index) -> None:
    """Raises ValueError where a picture's shard or name is none of those there are."""
    end = 0
    for start in range(0, len(index), WRITTEN_AT_ONCE):
        some = index.rows[start : start + WRITTEN_AT_ONCE]
        ends = some["name_end"].astype(np.int64)
        if some["shard"].max() >= len(index.shards):
            raise ValueError("a picture lies in a shard that is not listed")
        if ends[0] < end or (np.diff(ends) < 0).any() or ends[-1] > len(index.names):
            raise ValueError("the names of its pictures do not follow each other")
        end = int(ends[-1])
