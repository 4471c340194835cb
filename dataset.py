"""Prepared data -> batches of tensors: the one image transform, captions as ids, the epoch's order, feature cache.

The order of an epoch is a pure function of (seed, epoch), so a resume finds its place without replaying anything,
with any number of workers.
"""

import copy
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

import signals
from pictures import load_image, resized

KEEP_BYTES = 2**28  # decoded pictures that a data set keeps in memory; the rest is read from the disk every time

Group = tuple[int, tuple[int, ...]]  # (image, its captions that travel together), numbers within the data set


class Batch(NamedTuple):
    """N images, B captions, T tokens of the longest caption here, without its <end> or its <start>."""

    images: Tensor  # uint8 (N, 3, S, S); features float16 (N, P, E) where a cache is used
    decoder_input_tokens: Tensor  # int64 (B, T), <start> first
    target_tokens: Tensor  # int64 (B, T), <end> last, then padding
    image_index: Tensor  # int64 (B,), which image each caption belongs to

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def load_records(folder: Path | str, split: str, cutoff: int | None = None) -> list[dict[str, Any]]:
    """The images of a split of a prepared data set: {"file_name", "captions", ...} each, in the set's own order.

    cutoff: only the first so many. Raises ValueError where the split has no image.
    """
    path = Path(folder) / "captions.json"
    records = json.loads(path.read_text(encoding="utf-8"))["images"]
    chosen = [record for record in records if record["split"] == split]
    if not chosen:
        splits = sorted({record["split"] for record in records})
        raise ValueError(f"{path} has no image of the split {split!r}; it has {', '.join(splits) or 'no images'}.")
    return chosen[:cutoff]


class ImageTextDataset(Dataset):
    """Pictures with their captions as token ids. Items are chosen by Group, see `epoch_groups`.

    records: as load_records gives them. token_ids: per image its captions, each [<start>, ..., <end>].
    image_spec: how the encoder wants its pictures (encoder.read_image_spec).
    features: (images, P, E), takes the place of the pictures.
    augment: changes a picture at random, see `Augment`; only what `at_epoch` gives is changed.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        images_dir: Path | str,
        token_ids: Sequence[Sequence[Sequence[int]]],
        image_spec: dict[str, Any],
        features: np.ndarray | None = None,
        augment: "Augment | None" = None,
    ):
        self.paths = [Path(images_dir) / record["file_name"] for record in records]
        self.token_ids = [[np.asarray(ids, dtype=np.int32) for ids in captions] for captions in token_ids]
        self.image_spec = image_spec
        self.features = features
        self.augment = augment
        self.epoch: int | None = None
        self.kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def first(self, number: int) -> "ImageTextDataset":
        """The same set with only its first `number` images."""
        part = copy.copy(self)
        part.paths, part.token_ids = self.paths[:number], self.token_ids[:number]
        return part

    def at_epoch(self, epoch: int) -> "ImageTextDataset":
        """The same set as training sees it in `epoch`: with that epoch's augmentation."""
        part = copy.copy(self)
        part.epoch = epoch
        return part

    def __getitem__(self, group: Group) -> tuple[Tensor, list[np.ndarray]]:
        """(image uint8 (3, S, S) or its features (P, E), the captions' ids)"""
        image, captions = group
        pixels = self._pixels(image) if self.features is None else torch.from_numpy(np.array(self.features[image]))
        if self.augment is not None and self.epoch is not None:
            # A function of seed, epoch and item: which worker reads it, and what it read before, cannot matter.
            pixels = augmented(pixels, self.augment, random.Random(f"{self.augment.seed}-{self.epoch}-{group}"))
        return pixels, [self.token_ids[image][caption] for caption in captions]

    def _pixels(self, image: int) -> Tensor:
        if image in self.kept:
            return self.kept[image]
        pixels = load_image(self.paths[image], self.image_spec)
        if (len(self.kept) + 1) * pixels.numel() <= KEEP_BYTES:
            self.kept[image] = pixels
        return pixels


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


def collate_fn(items: Sequence[tuple[Tensor, Sequence[np.ndarray]]], pad_id: int = 0) -> Batch:
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
    images = torch.stack([pixels for pixels, _ in items])
    return Batch(images, torch.from_numpy(inputs), torch.from_numpy(targets), torch.tensor(index, dtype=torch.int64))


def epoch_groups(caption_counts: Sequence[int], per_image: int, seed: int, epoch: int) -> list[Group]:
    """Every (image, caption) pair once, in groups of at most `per_image` captions of one image, shuffled.

    A pure function of its arguments; which captions of an image travel together changes from epoch to epoch.
    """
    rng = random.Random(f"order-{seed}-{epoch}")
    groups = []
    for image, count in enumerate(caption_counts):
        captions = list(range(count))
        rng.shuffle(captions)
        groups += [(image, tuple(captions[i : i + per_image])) for i in range(0, count, per_image)]
    rng.shuffle(groups)
    return groups


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


def chunks(groups: Sequence[Group], size: int) -> list[Sequence[Group]]:
    return [groups[i : i + size] for i in range(0, len(groups), size)]


def cached_features(
    folder: Path, split: str, key: str, dataset: ImageTextDataset, encode: Callable[[Tensor], Tensor], workers: int
) -> np.ndarray:
    """A frozen encoder's output for every image of `dataset`, float16 (images, P, E), memory-mapped from `folder`.

    Computed now, with a progress bar, unless `folder` holds it for the same split and `key` (see `features_key`).
    encode: uint8 images (N, 3, S, S) -> features (N, P, E).
    """
    from tqdm import tqdm

    path = folder / f"features_{split}_{key[:16]}.npy"
    if path.is_file():
        return np.load(path, mmap_mode="r")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    loader = make_loader(dataset, chunks([(image, ()) for image in range(len(dataset))], 32), workers)
    store, done = None, 0
    try:
        with tqdm(total=len(dataset), desc=f"encoder features, {split}", unit="image", mininterval=1) as bar:
            for batch in loader:
                features = encode(batch.images).to(torch.float16).cpu().numpy()
                if store is None:
                    shape = (len(dataset), *features.shape[1:])
                    bar.write(f"Keeping the frozen encoder's output, {2 * np.prod(shape) / 1e9:.2f} GB, in {path}")
                    store = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
                store[done : done + len(features)] = features
                done += len(features)
                bar.update(len(features))
        store.flush()
        os.replace(temporary, path)  # under its name the file is always whole
    finally:
        temporary.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def features_key(dataset: ImageTextDataset, weights: dict[str, Tensor], precision: str) -> str:
    """sha256 over what features depend on: weights, precision, image transform, pictures' names, sizes and times."""
    digest = hashlib.sha256(json.dumps([precision, dataset.image_spec], sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for path in dataset.paths:
        about = path.stat()
        digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()
