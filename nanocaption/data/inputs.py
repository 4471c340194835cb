"""The train and val sets as a run sees them: captions as ids, pictures or a frozen encoder's features from caches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.data import caches
from nanocaption.data.dataset import Batch, ImageTextDataset
from nanocaption.data.loader import make_loader
from nanocaption.data.order import chunks
from nanocaption.data.tokenizer import PAD, encode_batch, tokenizer_digest
from nanocaption.data.transform import Augment

READ_AT_ONCE = 32  # pictures; divides caches.CHUNK
KEPT_FROM = 20_000  # captions of a split; fewer are encoded in a second


class Captioner(Protocol):
    """What of a model features depend on: model.captioner.ImageToTextModel."""

    encoder: nn.Module
    image_spec: dict[str, Any]

    def eval(self) -> Any: ...
    def encode(self, images: torch.Tensor) -> torch.Tensor: ...
    def encoder_identity(self) -> Any: ...


def make_inputs(
    settings: Settings,
    folder: Path,
    records: dict[str, list[dict[str, Any]]],
    tokenizer: Tokenizer,
    model: Captioner,
    device: torch.device,
) -> dict[str, ImageTextDataset]:
    """A data set per split of `records`, made from the prepared data in `folder`.

    A frozen encoder's features are cached (CACHE_FEATURES); the decoded pictures (CACHE_IMAGES) where these are what is
    needed: the encoder trains, or RANDOM_CROP_AREA or RANDOM_FLIP change them. On a GPU with room features stay there.
    """
    sets = {}
    changes = settings.RANDOM_CROP_AREA < 1 or settings.RANDOM_FLIP
    augment = Augment(settings.RANDOM_CROP_AREA, settings.RANDOM_FLIP, settings.SEED) if changes else None
    for split, rows in records.items():
        captions = [caption for row in rows for caption in row["captions"]]
        ids = iter(encoded_captions(settings, folder, split, captions, tokenizer))
        token_ids = [[next(ids) for _ in row["captions"]] for row in rows]
        sets[split] = ImageTextDataset(rows, folder / "images", token_ids, model.image_spec)
        sets[split].augment = augment if split == "train" else None
    for split, images in sets.items():
        if settings.FREEZE_ENCODER and settings.CACHE_FEATURES:
            if images.augment is None:
                images.cached = devices.first_rank_first(
                    lambda split=split, images=images: cached_features(settings, folder, split, images, model, device)
                )
                images.resident = on_device(images, device)
            else:
                devices.console("The training pictures change at random: the frozen encoder runs on them every epoch.")
        if images.cached is None and settings.CACHE_IMAGES:
            images.cached = devices.first_rank_first(
                lambda split=split, images=images: cached_pictures(settings, folder, split, images)
            )
    return sets


def encoded_captions(
    settings: Settings, folder: Path, split: str, captions: list[str], tokenizer: Tokenizer
) -> Sequence[Sequence[int]]:
    """The ids of every caption; those of KEPT_FROM captions or more are kept, encoding them takes 70 us each."""
    length = settings.MAX_SEQ_LEN
    if len(captions) < KEPT_FROM:
        return encode_batch(tokenizer, captions, length)

    def rows_from(start: int) -> Iterator[np.ndarray]:
        for at in range(start, len(captions), caches.CHUNK):
            ids = encode_batch(tokenizer, captions[at : at + caches.CHUNK], length)
            rows = np.full((len(ids), length), PAD, dtype=np.int32)
            for row, own in zip(rows, ids, strict=True):
                row[: len(own)] = own
            yield rows

    key = caches.key_of((), folder, ["tokens", tokenizer_digest(tokenizer), length, captions])
    path = folder / "cache" / f"tokens_{split}_{key[:16]}.npy"
    title, limit = f"captions, {split}", _limit(settings)
    found = devices.first_rank_first(
        lambda: caches.cached_rows(path, key, len(captions), rows_from, limit, title, "caption")
    )
    if found is None:
        return encode_batch(tokenizer, captions, length)
    rows = np.array(found)  # (captions, MAX_SEQ_LEN); in memory, as a memory-mapped one is slow to cut up
    lengths = (rows != PAD).sum(1)  # no caption's text gives <pad>
    return [row[:number] for row, number in zip(rows, lengths.tolist(), strict=True)]


def cached_features(
    settings: Settings,
    folder: Path,
    split: str,
    images: ImageTextDataset,
    model: Captioner,
    device: torch.device,
) -> np.ndarray | None:
    """The frozen encoder's output for every picture, float16 (images, P, E); None where CACHE_LIMIT_GB forbids it."""
    dtype = devices.pick_dtype(settings.PRECISION, device)
    model.eval()

    def rows_from(start: int) -> Iterator[np.ndarray]:
        for batch in _pictures_from(start, images, settings.NUM_WORKERS):
            with torch.no_grad(), devices.autocast(device, dtype):
                found = model.encode(batch.images.to(device)).to(torch.float16).cpu()  # (n, P, E)
            if not found.isfinite().all():
                raise ValueError("The encoder's features do not fit into float16: set CACHE_FEATURES = False.")
            yield found.numpy()

    weights = {name: _bytes(tensor) for name, tensor in model.encoder.state_dict().items()}
    about = ["features", str(dtype), images.image_spec, model.encoder_identity()]
    key = caches.key_of(images.paths, folder / "images", about, weights)
    path = folder / "cache" / f"features_{split}_{key[:16]}.npy"
    title = f"encoder features, {split}"
    return caches.cached_rows(path, key, len(images), rows_from, _limit(settings), title)


def cached_pictures(settings: Settings, folder: Path, split: str, images: ImageTextDataset) -> np.ndarray | None:
    """Every picture as the encoder wants it, uint8 (images, 3, S, S); None where CACHE_LIMIT_GB forbids it."""

    def rows_from(start: int) -> Iterator[np.ndarray]:
        for batch in _pictures_from(start, images, settings.NUM_WORKERS):
            yield batch.images.numpy()

    key = caches.key_of(images.paths, folder / "images", ["pictures", images.image_spec])
    path = folder / "cache" / f"pictures_{split}_{key[:16]}.npy"
    return caches.cached_rows(path, key, len(images), rows_from, _limit(settings), f"pictures, {split}")


def on_device(images: ImageTextDataset, device: torch.device) -> torch.Tensor | None:
    """The cached rows on a GPU, where they take at most half of what is free there; else None."""
    if device.type != "cuda" or images.cached is None:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if images.cached.nbytes > free // 2:
        return None
    resident = torch.empty(images.cached.shape, dtype=torch.float16, device=device)
    for start in range(0, len(resident), 1024):
        rows = np.array(images.cached[start : start + 1024])
        resident[start : start + len(rows)] = torch.from_numpy(rows)
    devices.console(f"{images.cached.nbytes / 1e9:.2f} GB of features stay in the memory of {device}")
    return resident


def _pictures_from(start: int, images: ImageTextDataset, workers: int) -> Iterator[Batch]:
    groups = [(image, ()) for image in range(start, len(images))]
    yield from make_loader(images, chunks(groups, READ_AT_ONCE), workers)


def _limit(settings: Settings) -> int:
    return int(settings.CACHE_LIMIT_GB * 1e9)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
