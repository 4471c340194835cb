"""Prepared data -> batches of tensors: pictures as `transform` makes them, captions as ids, the epoch's order.

The order of an epoch is a pure function of (seed, epoch), so a resume finds its place without replaying anything,
with any number of workers.
"""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nanocaption.data.order import Group
from nanocaption.data.packing import Places, find_places
from nanocaption.data.transform import Augment, augmented, load_image


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
