"""Prepared data -> batches of tensors: pictures as `transform` makes them, captions as ids."""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nanocaption.data.caches import Rows
from nanocaption.data.order import Group
from nanocaption.data.packing import Places, find_places, padded
from nanocaption.data.prepared import Record
from nanocaption.data.question_tokens import answer_starts
from nanocaption.data.shard_index import paths_of
from nanocaption.data.shards import Packed
from nanocaption.data.transform import Augment, ImageSpec, augmented, load_image, view_of

ImageInput = Tensor | np.ndarray  # a picture uint8 (3, S, S), its features float16 (P, E), or its number int64 ()
ImageInputs = Rows | np.ndarray | Tensor | Sequence[Tensor]  # those of a data set, by image


# Words that a mirrored picture would make untrue, in English.
SIDES = re.compile(r"\b(left|right)(most|ward|wards|hand|handed|side)?\b", re.IGNORECASE)


class Batch(NamedTuple):
    """N images, B captions, T tokens of the longest caption here, without its <end> or its <start>; R real tokens."""

    images: Tensor  # uint8 (N, 3, S, S); features float16 (N, P, E) of a cache; numbers int64 (N,) of resident ones
    decoder_input_tokens: Tensor  # int64 (B, T), <start> first
    target_tokens: Tensor  # int64 (B, T), <end> last unless the caption was cut, then padding
    image_index: Tensor  # int64 (B,), which image each caption belongs to
    places: Places  # where the real tokens stand
    advantages: Tensor | None = None  # float32 (S,) of the first S real tokens, where those are of drawn captions
    answers: Tensor | None = None  # int64 (A,) which real tokens are followed by one of an answer; None: no questions
    kept: Tensor | None = None  # int64 (N, J) patches of each image that the decoder may see; None: all
    names: Tensor | None = None  # int64 (N,) numbers of the images in the data set, for the contrastive loss

    def to(self, device: torch.device, resident: Tensor | None = None) -> "Batch":
        """The batch on `device`, its image numbers replaced by what `resident` (images, ...), there already, holds."""
        moved = Batch._make([
            part.to(device, non_blocking=True) if isinstance(part, Tensor) else part and part.to(device)
            for part in self
        ])  # fmt: skip
        return moved if resident is None else moved._replace(images=resident[moved.images])


class ImageTextDataset(Dataset):
    """Pictures with their captions as token ids. Items are chosen by Group, see `epoch_groups`.

    records: as load_records gives them. token_ids: per image its captions, each as `tokenizer.encode` gives it.
    image_spec: how the encoder wants its pictures (preprocessor.read_image_spec).
    cached: features (images, P, E) or pictures uint8 (images, 3, S, S), taken instead of the files.
    augment: changes a picture at random, see `Augment`; only what `at_epoch` gives is changed. A picture whose captions
    name left or right is never mirrored.
    views: rows of `cached` that each image has, all first views before all second ones; what `at_epoch` gives takes one
    at random, anything else the first, which is the picture as it is.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images_dir: Path | str,
        token_ids: Sequence[Sequence[Sequence[int]]],
        image_spec: ImageSpec,
        cached: ImageInputs | None = None,
        augment: Augment | None = None,
    ):
        self.images_dir = Path(images_dir)
        self.paths: Sequence[Path | Packed] = paths_of(self.images_dir, records)
        self.token_ids: Sequence[list[np.ndarray]] = [
            [np.asarray(ids, dtype=np.int32) for ids in captions] for captions in token_ids
        ]
        # visits of each image's pairs in an epoch
        self.weights: Sequence[float] = [float(record.get("weight", 1)) for record in records]
        self.rounded_up = False  # shares of weights, see order.share_of_groups
        self.image_spec = image_spec
        self.cached = cached
        self.rows: Sequence[int] = range(len(records))  # of each image in `cached`
        self.resident: Tensor | None = None  # see `keep_on`
        self.augment = augment
        self.views = 1
        self.one_sided: Sequence[bool] | np.ndarray = [
            any(map(SIDES.search, record.get("captions", ()))) for record in records
        ]
        self.epoch: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def keep_on(self, resident: Tensor) -> None:
        """resident: what `cached` holds, on the device. Batches then have image numbers, see `Batch.to`."""
        self.resident, self.cached = resident, torch.arange(len(resident))

    def part(self, places: Sequence[int]) -> "ImageTextDataset":
        """The same set with only the images at `places`."""
        names = ("paths", "token_ids", "weights", "rows", "one_sided")
        return self._but({name: [getattr(self, name)[place] for place in places] for name in names})

    def at_epoch(self, epoch: int) -> "ImageTextDataset":
        """The same set as training sees it in `epoch`: with that epoch's augmentation."""
        return self._but({"epoch": epoch})

    def seen_with(self, image_spec: ImageSpec) -> "ImageTextDataset":
        """The same set as another encoder wants its pictures; read from their files unless it wants the same."""
        same = image_spec == self.image_spec
        return self if same else self._but({"image_spec": image_spec, "cached": None, "resident": None, "views": 1})

    def __getitem__(self, group: Group) -> tuple[ImageInput, list[np.ndarray]]:
        """(the picture, the captions' ids)"""
        image, captions, *_ = group
        how = None if self.epoch is None or self.augment is None else self._augment(image)
        # A function of seed, epoch and item: which worker reads it, and what it read before, cannot matter.
        rng = random.Random(f"{how.seed}-{self.epoch}-{group}") if how else None
        if self.cached is None:
            found = load_image(self.paths[image], self.image_spec)
        else:  # a row of a cache is a view: it is copied once, into the batch
            view = rng.randrange(self.views) if rng and self.views > 1 else 0
            found = self.cached[self.rows[image] + view * (len(self.cached) // self.views)]
        if how and rng and self.views == 1:
            pixels = found if isinstance(found, Tensor) else torch.from_numpy(np.array(found))
            found = augmented(pixels, how, rng)
        ids = self.token_ids[image]
        return found, [ids[caption] for caption in captions]

    def view(self, image: int, view: int) -> Tensor:
        """View number `view` of a picture, from its file: a function of these and of the augmentation alone."""
        pixels = load_image(self.paths[image], self.image_spec)
        if self.augment is None:
            return pixels
        how = self._augment(image)
        return view_of(pixels, how, view, random.Random(f"{how.seed}-view-{view}-{self.paths[image].name}"))

    def _augment(self, image: int) -> Augment:
        assert self.augment is not None
        return self.augment._replace(flip=self.augment.flip and not self.one_sided[image])

    def __getstate__(self) -> dict[str, object]:
        """For a worker that is started, not forked: it needs nothing that lies on the device."""
        return self.__dict__ | {"resident": None}

    def _but(self, changes: dict[str, object]) -> "ImageTextDataset":
        """A copy with other values of these fields. (copy.copy would leave out `resident`, as __getstate__ does.)"""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__ | changes)
        return other


class Views(Dataset):
    """The views of an ImageTextDataset's pictures, by (image, (), view)."""

    def __init__(self, images: ImageTextDataset):
        self.images = images

    def __getitem__(self, group: Group) -> tuple[Tensor, list[np.ndarray]]:
        image, _, *view = group
        return self.images.view(image, view[0]), []


def collate_fn(items: Sequence[tuple[ImageInput, Sequence[np.ndarray]]], pad_id: int = 0) -> Batch:
    """Items of ImageTextDataset -> a Batch, padded to its longest caption."""
    captions = [ids for _, group in items for ids in group]
    images = torch.from_numpy(np.stack([np.asarray(image) for image, _ in items]))
    inputs, targets = (
        torch.from_numpy(padded([ids[part] for ids in captions], pad_id)) for part in (slice(-1), slice(1, None))
    )
    index = [number for number, (_, group) in enumerate(items) for _ in group]
    image_index = torch.tensor(index, dtype=torch.int64)
    places = find_places(inputs, pad_id, image_index, len(items))
    return Batch(images, inputs, targets, image_index, places, answers=_answers(captions))


def _answers(rows: Sequence[np.ndarray]) -> Tensor | None:
    """Batch.answers of rows of ids, which stand behind each other there without their last id."""
    starts = [answer_starts(ids) for ids in rows]
    if not any(starts):
        return None
    places, before = [], 0
    for start, ids in zip(starts, rows, strict=True):
        places += range(before + max(0, start - 1), before + len(ids) - 1)  # the token before predicts
        before += len(ids) - 1
    return torch.tensor(places, dtype=torch.int64)
