"""The training pictures of a streamed set, none of which is held in memory, nor its captions.

The order of an epoch is a pure function of (seed, epoch), as that of a prepared set is: pictures that lie together,
16 MB of a tar or a row group of parquet, are a block. The blocks of all shards are shuffled and read window by window,
WINDOW_BYTES together, and within a window the pairs are shuffled as order.epoch_groups does it. A set that fits into
one window so has the order of the same set unpacked. A step is found again by planning the steps before it, which
reads nothing.

What is held is 10 bytes a picture, the pairs of one window, and where parquet is read the row groups of a window. The
captions' ids are read from the disk when they are needed, from files made once, of 2 or 4 bytes an id.
"""

import array
import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from nanocaption.base.files import locked, read_only, whole, write_atomically
from nanocaption.data.caption_text import as_trained
from nanocaption.data.dataset import SIDES, ImageInput, ImageTextDataset
from nanocaption.data.order import (
    Group,
    Steps,
    filled,
    group_sizes,
    image_groups,
    number_of_steps,
    step_target,
)
from nanocaption.data.prepared import Record, iter_records
from nanocaption.data.remote import is_address
from nanocaption.data.shard_index import Index
from nanocaption.data.shards import Packed, will_need
from nanocaption.data.tokenizer import cut_lengths, encode_batch, tokenizer_digest
from nanocaption.data.transform import Augment, ImageSpec

WINDOW_BYTES = 2**28  # of pictures
WINDOW_PICTURES = 2**14  # at most: their pairs are planned in memory
ENCODED_AT_ONCE = 2048  # pictures
REQUESTS = 8  # to a server at the same time, of each process


class TrainingRecords:
    """The records of a split as training reads them, one after the other, as often as they are asked for."""

    def __init__(self, folder: Path, splits: Sequence[str], cutoff: int | None, case: str):
        self.folder, self.splits, self.cutoff, self.case = folder, tuple(splits), cutoff, case
        self.first: dict[str, int] | None = None  # see `only`

    def counts(self) -> dict[str, int]:
        """How many pictures of each split these are."""
        held = json.loads((self.folder / "manifest.json").read_bytes())["counts"]
        there = {split: held.get(split, {"images": 0})["images"] for split in self.splits}
        bound = {split: count if self.cutoff is None else min(count, self.cutoff) for split, count in there.items()}
        return {split: min(count, (self.first or bound)[split]) for split, count in bound.items()}

    def only(self, counts: dict[str, int]) -> None:
        """Leave out what came to the set after a run had begun on so many pictures of each split."""
        self.first = counts if counts != self.counts() else None

    def raw(self) -> Iterator[Record]:
        """As they are written, each with its place."""
        seen, most = dict.fromkeys(self.splits, 0), self.counts()
        for place, record in enumerate(iter_records(self.folder / "captions.json")):
            if record["split"] in seen:
                seen[record["split"]] += 1
                if seen[record["split"]] <= most[record["split"]]:
                    yield record | {"place": place}

    def __iter__(self) -> Iterator[Record]:
        for record in self.raw():
            yield as_trained([record], self.case)[0][0]


class Texts(Sequence[str]):
    """Their captions, for the tokenizer; counted without being held."""

    def __init__(self, records: TrainingRecords):
        self.records, self.length = records, 0

    def __iter__(self) -> Iterator[str]:
        return (caption for record in self.records for caption in record["captions"])

    def __len__(self) -> int:
        self.length = self.length or sum(1 for _ in self)
        return self.length

    def __getitem__(self, place: int) -> str:  # type: ignore[override]
        raise TypeError("captions of a streamed set come in their order alone")


class Encoded(NamedTuple):
    """What `encode` has made of the captions, on the disk."""

    folder: Path
    captions: int
    cut: list[int]  # how many ids each caption would have that MAX_SEQ_LEN cuts
    repeats: int  # captions that say the same as another of their picture, left out
    counts: dict[str, int]  # pictures of each split


def encode(
    records: TrainingRecords, tokenizer: Tokenizer, longest: int, encoding: int, place: Path | None = None
) -> Encoded:
    """The ids of all captions, made once and kept in `place`; None: in the set's cache/.

    ids.bin has them one after the other, ends.npy where each caption ends, firsts.npy which caption is the first of
    each picture, places.npy which picture of captions.json it is, sides.npy whether its captions name left or right. A
    start that is killed here begins this again. Raises ValueError where nothing can be written there.
    """
    digest = json.loads((records.folder / "manifest.json").read_bytes())["captions_sha256"]
    about = [digest, records.splits, records.cutoff, records.case, encoding, tokenizer_digest(tokenizer), longest]
    about += [records.first] if records.first is not None else []
    name = f"stream_{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"
    folder = (place or records.folder / "cache") / name
    told = folder / "whole.json"
    if not told.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", f"Another process is making {folder}; waiting for it."):
                if not told.exists():
                    write_atomically(told, json.dumps(_encode(records, folder, tokenizer, longest, encoding)))
        except OSError as error:
            if not read_only(error):
                raise
            raise ValueError(f"{folder} cannot be written ({error.strerror}), and the captions' ids of a streamed set "
                             "have to lie on a disk: set CACHE_DIR to a place that can be written") from error
    found = json.loads(told.read_bytes())
    return Encoded(folder, found["captions"], found["cut"], found["repeats"], records.counts())


def _encode(
    records: TrainingRecords, folder: Path, tokenizer: Tokenizer, longest: int, encoding: int
) -> dict[str, object]:  # fmt: skip
    kind = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    ends, firsts, places, sides = array.array("q"), array.array("q", [0]), array.array("I"), array.array("B")
    cut: list[int] = []
    raw = end = 0
    with whole(folder / "ids.bin") as made, made.open("wb") as file:
        for some in _chunks(tqdm(records.raw(), desc="captions", unit="picture", mininterval=1, delay=1)):
            trained, _ = as_trained(some, records.case)
            texts = [caption for record in trained for caption in record["captions"]]
            raw += sum(len(record["captions"]) for record in some)
            rows = encode_batch(tokenizer, texts, longest, encoding)
            cut += cut_lengths(tokenizer, texts, rows, longest)
            file.write(np.concatenate([np.asarray(row, dtype=kind) for row in rows]).tobytes())
            for row in rows:
                ends.append(end := end + len(row))
            for record in trained:
                firsts.append(firsts[-1] + len(record["captions"]))
                places.append(record["place"])
                sides.append(any(map(SIDES.search, record["captions"])))
    for name, values in (("ends", ends), ("firsts", firsts), ("places", places), ("sides", sides)):
        with whole(folder / f"{name}.npy") as made, made.open("wb") as file:
            np.save(file, np.frombuffer(values, dtype=values.typecode))
    return {"captions": len(ends), "cut": cut, "repeats": raw - len(ends), "kind": kind.__name__}


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    some: list[Record] = []
    for record in records:
        some.append(record)
        if len(some) == ENCODED_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


class StoredCaptions(Sequence[list[np.ndarray]]):
    """Per picture its captions' ids, int32 each, read from the files of `encode`."""

    def __init__(self, folder: Path):
        self.folder = folder
        kind = json.loads((folder / "whole.json").read_bytes())["kind"]
        self.ids = np.asarray(np.memmap(folder / "ids.bin", dtype=kind, mode="r"))
        self.ends, self.firsts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ends", "firsts"))

    def __reduce__(self) -> tuple[type["StoredCaptions"], tuple[Path]]:
        return StoredCaptions, (self.folder,)

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def __getitem__(self, picture: int) -> list[np.ndarray]:  # type: ignore[override]
        first, end = self.firsts[picture : picture + 2].tolist()
        bounds = [int(self.ends[first - 1]) if first else 0, *self.ends[first:end].tolist()]
        return [self.ids[a:b].astype(np.int32) for a, b in zip(bounds, bounds[1:], strict=False)]


class StoredPictures(Sequence[Packed]):
    """Where each training picture lies."""

    def __init__(self, index: Index, places: np.ndarray):
        self.index, self.places = index, places  # uint32 (pictures,)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, picture: int) -> Packed:  # type: ignore[override]
        return self.index.picture(int(self.places[picture]))


class Same(Sequence[float]):
    """A value `length` times."""

    def __init__(self, value: float, length: int):
        self.value, self.length = value, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> float:  # type: ignore[override]
        return self.value


class StreamedDataset(ImageTextDataset):
    """The training pictures of a streamed set, as ImageTextDataset has those of another."""

    def __init__(self, folder: Path, encoded: Encoded, image_spec: ImageSpec, augment: Augment | None = None):
        index, places = Index(folder), np.load(encoded.folder / "places.npy")
        super().__init__([], folder / "images", [], image_spec, augment=augment)
        self.paths: StoredPictures = StoredPictures(index, places)
        self.token_ids = StoredCaptions(encoded.folder)
        self.weights = Same(1.0, len(places))
        self.rows = range(len(places))
        self.counted = encoded.counts
        self.one_sided = np.load(encoded.folder / "sides.npy", mmap_mode="r")
        self.counts = array.array("H", np.diff(self.token_ids.firsts).astype(np.uint16).tobytes())
        blocks = index.rows["block"][places]
        self.by_block = np.argsort(blocks, kind="stable").astype(np.uint32)  # pictures, those of a block together
        starts = np.flatnonzero(np.diff(blocks[self.by_block], prepend=-1))
        self.bounds = np.append(starts, len(places))  # of each block in by_block
        lengths = index.rows["length"][places][self.by_block].astype(np.int64)
        self.block_bytes = np.add.reduceat(lengths, starts)

    def digest(self) -> str:
        """sha256 over the pictures, and all but seed and epoch that the order depends on."""
        rows = self.paths.index.rows[self.paths.places]
        found = hashlib.sha256(f"{WINDOW_BYTES} {WINDOW_PICTURES}".encode())
        for values in (rows["crc"], rows["length"], self.by_block, self.bounds, self.paths.places):
            found.update(np.ascontiguousarray(values).data)
        return found.hexdigest()

    def own_digest(self) -> str:
        """The same without the places, which pictures of other splits move, and with the captions' ids."""
        rows, captions = self.paths.index.rows[self.paths.places], self.token_ids
        found = hashlib.sha256(f"{WINDOW_BYTES} {WINDOW_PICTURES}".encode())
        for values in (rows["crc"], rows["length"], self.by_block, self.bounds, captions.ids, captions.ends,
                       captions.firsts):  # fmt: skip
            found.update(np.ascontiguousarray(values).data)
        return found.hexdigest()

    def __getitem__(self, group: Group) -> tuple[ImageInput, list[np.ndarray]]:
        will_need(self.paths[group[0]])
        return super().__getitem__(group)

    def __getitems__(self, groups: Sequence[Group]) -> list[tuple[ImageInput, list[np.ndarray]]]:
        """Those of a batch, for torch's loader; from a server several at once."""
        if not is_address(self.paths[groups[0][0]].shard):
            return [self[group] for group in groups]
        with ThreadPoolExecutor(REQUESTS) as threads:
            return list(threads.map(self.__getitem__, groups))

    def steps(self, per_image: int, per_step: int, seed: int, epoch: int) -> Steps[list[Group]]:
        """The optimizer steps of an epoch, as order.epoch_steps fills them. A pure function of its arguments."""
        counts = np.frombuffer(self.counts, dtype=np.uint16).astype(np.int64)
        kinds = np.unique(counts).tolist()
        target, captions = step_target(kinds, per_image, per_step), int(counts.sum())
        number = number_of_steps(captions, target, group_sizes(kinds, per_image))
        groups = int(np.ceil(counts / per_image).sum())
        goals = range(target, number * target, target)
        return Steps(number, lambda: filled(self.groups(per_image, seed, epoch), groups, goals))

    def groups(self, per_image: int, seed: int, epoch: int) -> Iterator[Group]:
        """Every (picture, caption) pair once, in groups of one picture, shuffled as the head of this file says."""
        for number, pictures in enumerate(self.windows(seed, epoch)):
            rng = random.Random(f"order-{seed}-{epoch}" + f"-{number}" * bool(number))  # as order.epoch_groups
            groups = [group for picture in pictures
                      for group in image_groups(picture, self.counts[picture], per_image, rng, 0)]  # fmt: skip
            rng.shuffle(groups)
            yield from groups

    def windows(self, seed: int, epoch: int) -> Iterator[list[int]]:
        """The pictures of one window after the other, in ascending order. Windows are about equally large."""
        order = list(range(len(self.block_bytes)))
        random.Random(f"blocks-{seed}-{epoch}").shuffle(order)
        total, pictures = int(self.block_bytes.sum()), len(self)
        windows = max(1, math.ceil(total / WINDOW_BYTES), math.ceil(pictures / WINDOW_PICTURES))
        held: list[np.ndarray] = []
        filled_bytes, made = 0, 0
        for place, block in enumerate(order):
            held.append(self.by_block[self.bounds[block] : self.bounds[block + 1]])
            filled_bytes += int(self.block_bytes[block])
            if filled_bytes * windows >= (made + 1) * total or place == len(order) - 1:
                yield np.sort(np.concatenate(held)).tolist()
                held, made = [], made + 1
