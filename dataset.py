"""Prepared data -> batches of tensors: pictures as `transform` makes them, captions as ids, the epoch's order.

The order of an epoch is a pure function of (seed, epoch), so a resume finds its place without replaying anything,
with any number of workers.
"""

import copy
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

import signals
from packing import Places, find_places
from transform import load_image, resized

# (image, its captions that travel together), numbers within the data set; and, where a weight brings the image again
# in one epoch, which time this is, from 1.
Group = tuple[int, tuple[int, ...]] | tuple[int, tuple[int, ...], int]


class Batch(NamedTuple):
    """N images, B captions, T tokens of the longest caption here, without its <end> or its <start>."""

    images: Tensor  # uint8 (N, 3, S, S); features float16 (N, P, E) of a cache; numbers int64 (N,) of resident ones
    decoder_input_tokens: Tensor  # int64 (B, T), <start> first
    target_tokens: Tensor  # int64 (B, T), <end> last, then padding
    image_index: Tensor  # int64 (B,), which image each caption belongs to
    places: Places  # where the real tokens stand

    def to(self, device: torch.device, resident: Tensor | None = None) -> "Batch":
        """The batch on `device`, its image numbers replaced by what `resident` (images, ...), there already, holds."""
        images, *tokens, places = (part.to(device, non_blocking=True) if isinstance(part, Tensor) else part.to(device)
                                   for part in self)
        return Batch(images if resident is None else resident[images], *tokens, places)


def load_records(folder: Path | str, splits: str | Sequence[str], cutoff: int | None = None) -> list[dict[str, Any]]:
    """The images of some splits of a prepared data set: {"file_name", "captions", ...} each, in the set's own order.

    cutoff: only the first so many of each split, and of each set where several are mixed. Raises ValueError where a
    split has no image.
    """
    path = Path(folder) / "captions.json"
    records = json.loads(path.read_text(encoding="utf-8"))["images"]
    splits = (splits,) if isinstance(splits, str) else splits
    there = sorted({record["split"] for record in records})
    absent = [repr(split) for split in splits if split not in there]
    if absent:
        raise ValueError(
            f"{path} has no image of the split {', '.join(absent)}; it has {', '.join(there) or 'no images'}. Which "
            "are used is set with TRAIN_SPLITS, VAL_SPLITS and TEST_SPLITS."
        )
    seen: Counter = Counter()
    chosen = []
    for record in records:
        if record["split"] in splits:
            seen[part := (record["split"], record.get("set"))] += 1
            if cutoff is None or seen[part] <= cutoff:
                chosen.append(record)
    return chosen


class ImageTextDataset(Dataset):
    """Pictures with their captions as token ids. Items are chosen by Group, see `epoch_groups`.

    records: as load_records gives them. token_ids: per image its captions, each [<start>, ..., <end>].
    image_spec: how the encoder wants its pictures (encoder.read_image_spec).
    cached: features (images, P, E) or pictures uint8 (images, 3, S, S), read instead of the files.
    resident: the same on the device: batches then hold image numbers, see `Batch.to`.
    augment: changes a picture at random, see `Augment`; only what `at_epoch` gives is changed.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        images_dir: Path | str,
        token_ids: Sequence[Sequence[Sequence[int]]],
        image_spec: dict[str, Any],
        cached: np.ndarray | None = None,
        augment: "Augment | None" = None,
    ):
        self.paths = [Path(images_dir) / record["file_name"] for record in records]
        self.token_ids = [[np.asarray(ids, dtype=np.int32) for ids in captions] for captions in token_ids]
        self.weights = [float(record.get("weight", 1)) for record in records]  # visits of its pairs in an epoch
        self.image_spec = image_spec
        self.cached = cached
        self.rows: Sequence[int] = range(len(records))  # of each image in `cached` or `resident`
        self.resident: Tensor | None = None
        self.augment = augment
        self.epoch: int | None = None
        self.kept: dict[int, Tensor] = {}  # pictures that were read already

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, places: Sequence[int]) -> "ImageTextDataset":
        """The same set with only the images at `places`, which are in order."""
        part = copy.copy(self)
        part.paths, part.token_ids, part.weights, part.rows = (
            [values[place] for place in places] for values in (self.paths, self.token_ids, self.weights, self.rows)
        )
        part.kept = {}
        return part

    def at_epoch(self, epoch: int) -> "ImageTextDataset":
        """The same set as training sees it in `epoch`: with that epoch's augmentation."""
        part = copy.copy(self)
        part.epoch = epoch
        return part

    def __getitem__(self, group: Group) -> tuple[Tensor | np.ndarray, list[np.ndarray]]:
        """(image uint8 (3, S, S), its features (P, E), or its number; the captions' ids)"""
        image, captions, *_ = group
        found = self._image(image)
        if self.augment is not None and self.epoch is not None:
            # A function of seed, epoch and item: which worker reads it, and what it read before, cannot matter.
            rng = random.Random(f"{self.augment.seed}-{self.epoch}-{group}")
            pixels = found if isinstance(found, Tensor) else torch.from_numpy(np.array(found))
            found = augmented(pixels, self.augment, rng)
        return found, [self.token_ids[image][caption] for caption in captions]

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is started, not forked: a memory-mapped file goes by name, or all of it would be copied."""
        mapped = isinstance(self.cached, np.memmap)
        return {**self.__dict__, "cached": str(self.cached.filename) if mapped else self.cached, "resident": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.cached, str):
            self.cached = np.load(self.cached, mmap_mode="r")

    def _image(self, image: int) -> Tensor | np.ndarray:
        if self.resident is not None:
            return torch.tensor(self.rows[image])
        if self.cached is not None:
            return self.cached[self.rows[image]]  # a view: copied once, into the batch
        return self.kept[image] if image in self.kept else load_image(self.paths[image], self.image_spec)


class Augment(NamedTuple):
    """How training pictures are changed at random."""

    crop_area: float  # a crop takes at least this share of the area; 1 = never cropped
    flip: bool  # half of the pictures are mirrored
    seed: int


def augmented(pixels: Tensor, how: Augment, rng: random.Random) -> Tensor:
    """A picture uint8 (3, S, S) -> the same size and type, cropped and mirrored as `rng` decides.

    The crop's share of the area and its shape (3:4 to 4:3, log-uniform) are drawn as in Szegedy et al. 2015, but only
    shapes that fit into the picture.
    """
    size = pixels.shape[-1]
    if how.crop_area < 1:
        area = rng.uniform(how.crop_area, 1)
        widest = math.log(min(4 / 3, 1 / area))  # a wider or higher one would be cut off and lose area
        shape = math.exp(rng.uniform(-widest, widest))
        height, width = (min(size, max(1, round(size * math.sqrt(area * s)))) for s in (1 / shape, shape))
        top, left = rng.randint(0, size - height), rng.randint(0, size - width)
        pixels = resized(pixels[:, top : top + height, left : left + width], size, size, "bilinear")
    if how.flip and rng.random() < 0.5:
        pixels = pixels.flip(-1)
    return pixels


def collate_fn(items: Sequence[tuple[Tensor | np.ndarray, Sequence[np.ndarray]]], pad_id: int = 0) -> Batch:
    """Items of ImageTextDataset -> a Batch, padded to its longest caption."""
    captions = [ids for _, group in items for ids in group]
    index = [number for number, (_, group) in enumerate(items) for _ in group]
    length = max((len(ids) for ids in captions), default=1) - 1
    tokens = np.full((len(captions), length + 1), pad_id, dtype=np.int64)
    for row, ids in zip(tokens, captions, strict=True):
        row[: len(ids)] = ids
    inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    # The input never holds <end>: where it stood, nothing real follows.
    for row, ids in zip(inputs, captions, strict=True):
        row[len(ids) - 1 :] = pad_id
    images = [image for image, _ in items]
    stacked = torch.stack(images) if isinstance(images[0], Tensor) else torch.from_numpy(np.stack(images))
    tokens, image_index = torch.from_numpy(inputs), torch.tensor(index, dtype=torch.int64)
    places = find_places(tokens, pad_id, image_index, len(items))
    return Batch(stacked, tokens, torch.from_numpy(targets), image_index, places)


def epoch_groups(
    caption_counts: Sequence[int], per_image: int, seed: int, epoch: int, weights: Sequence[float] | None = None
) -> list[Group]:
    """Every (image, caption) pair once, in groups of at most `per_image` captions of one image, shuffled.

    weights: how often the pairs of each image come instead: 2 = twice, 0.5 = half of these images' groups in one epoch
    and the others in the next. A pure function of its arguments, with equally many groups in every epoch; which
    captions of an image travel together changes from epoch to epoch.
    """
    rng = random.Random(f"order-{seed}-{epoch}")
    weights = weights or [1.0] * len(caption_counts)
    groups = []
    for image, count in enumerate(caption_counts):
        for visit in range(int(weights[image])):
            groups += visited(image_groups(image, count, per_image, rng), visit)
    for weight in sorted(set(weights)):
        if share := round(weight % 1, 6):
            counts = {image: caption_counts[image] for image, own in enumerate(weights) if own == weight}
            groups += share_of_groups(counts, per_image, share, seed, epoch, int(weight))
    rng.shuffle(groups)
    return groups


def visited(groups: list[Group], visit: int) -> list[Group]:
    """The groups marked as those of visit number `visit`, so that their pictures are changed at random anew."""
    return [(*group, visit) for group in groups] if visit else groups


def image_groups(image: int, count: int, per_image: int, rng: random.Random) -> list[Group]:
    """The captions of an image, shuffled, in groups."""
    captions = list(range(count))
    rng.shuffle(captions)
    return [(image, tuple(captions[i : i + per_image])) for i in range(0, count, per_image)]


def share_of_groups(
    counts: dict[int, int], per_image: int, share: float, seed: int, epoch: int, visit: int = 0
) -> list[Group]:
    """This epoch's piece of an endless row of passes over the images of `counts`, each pass in an order of its own.

    visit: how often the images came in this epoch before; a second pass that begins within it counts one more.
    """
    total = sum(math.ceil(count / per_image) for count in counts.values())
    take, taken = math.ceil(round(share * total, 6)), []
    while len(taken) < take:
        number, start = divmod(epoch * take + len(taken), total)
        rng = random.Random(f"share-{seed}-{share}-{number}")
        one_pass = [group for image, count in counts.items() for group in image_groups(image, count, per_image, rng)]
        rng.shuffle(one_pass)
        taken += visited(one_pass[start : start + take - len(taken)], visit)
        visit += 1
    return taken


def sample_places(records: Sequence[dict[str, Any]], number: int) -> list[int]:
    """Which `number` images stand for all: the first, and of several sets or splits evenly spaced ones."""
    kinds = {(record.get("set"), record["split"]) for record in records}
    if len(kinds) == 1 or number >= len(records):
        return list(range(min(number, len(records))))
    return [place * len(records) // number for place in range(number)]


def in_order(caption_counts: Sequence[int]) -> list[Group]:
    """Every image once with all its captions, in the set's own order: for validation and captioning."""
    return [(image, tuple(range(count))) for image, count in enumerate(caption_counts)]


def epoch_steps(
    groups: Sequence[Group], batch_size: int, accumulate: int, rank: int = 0, ranks: int = 1
) -> list[list[list[Group]]]:
    """The optimizer steps of an epoch for one process: per step its micro-batches, each a list of groups.

    A step has `accumulate` micro-batches; the last one may have fewer, and one more where a rest joined it.

    batch_size: groups per micro-batch. A step takes the next ranks * accumulate * batch_size groups, dealt out to the
    ranks, so that the order of the data does not depend on their number. A rest too small to give every rank something
    joins the step before. Raises ValueError where there are fewer groups than ranks.
    """
    if len(groups) < ranks:
        raise ValueError(f"{len(groups)} groups of captions cannot be dealt out to {ranks} processes.")
    per_step = ranks * accumulate * batch_size
    steps = [list(groups[i : i + per_step]) for i in range(0, len(groups), per_step)]
    if len(steps[-1]) < ranks:
        rest = steps.pop()
        steps[-1] += rest
    dealt = [step[rank::ranks] for step in steps]
    return [chunks(mine, batch_size) for mine in dealt]


class _Batches(Sampler):
    def __init__(self, batches: Sequence[Sequence[Group]]):
        self.batches = batches

    def __iter__(self) -> Iterator[Sequence[Group]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def make_loader(
    dataset: ImageTextDataset, batches: Sequence[Sequence[Group]], workers: int, pin_memory: bool = False
) -> DataLoader:
    """The given batches of groups, in the order given, as `Batch`, read by `workers` processes."""
    return DataLoader(
        dataset,
        batch_sampler=_Batches(batches),
        collate_fn=collate_fn,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=signals.leave_to_the_main_process,
        # Making an iterator draws from the global generator otherwise, and so would change the training.
        generator=torch.Generator(),
    )


def seed_of(*parts: Any) -> int:
    """A seed that depends on all parts and on nothing else; Python's hash() differs from process to process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def chunks(groups: Sequence[Group], size: int) -> list[Sequence[Group]]:
    return [groups[i : i + size] for i in range(0, len(groups), size)]
