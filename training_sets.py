"""The train and val sets as a run sees them: captions as ids, pictures or a frozen encoder's cached features."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

import dataset as data
import distributed
import inference
import model as models
import runlog
import tokenizer as tokenizers


def make(
    settings: Any,
    folder: Path,
    records: dict[str, list[dict[str, Any]]],
    tokenizer: Tokenizer,
    model: models.ImageToTextModel,
    device: torch.device,
) -> dict[str, data.ImageTextDataset]:
    """A data set per split of `records`, made from the prepared data in `folder`.

    Features of a frozen encoder are cached, but for training pictures that RANDOM_CROP_AREA or RANDOM_FLIP change.
    """
    sets = {}
    changes = settings.RANDOM_CROP_AREA < 1 or settings.RANDOM_FLIP
    augment = data.Augment(settings.RANDOM_CROP_AREA, settings.RANDOM_FLIP, settings.SEED) if changes else None
    for split, rows in records.items():
        flat = tokenizers.encode_batch(tokenizer, [c for row in rows for c in row["captions"]], settings.MAX_SEQ_LEN)
        ids = iter(flat)
        token_ids = [[next(ids) for _ in row["captions"]] for row in rows]
        sets[split] = data.ImageTextDataset(rows, folder / "images", token_ids, model.image_spec)
        sets[split].augment = augment if split == "train" else None
    if settings.FREEZE_ENCODER and settings.CACHE_FEATURES:
        model.eval()
        dtype = inference.pick_dtype(settings.PRECISION, device)

        @torch.no_grad()
        def encode(images: Tensor) -> Tensor:
            with inference.autocast(device, dtype):
                return model.encode(images.to(device))

        for split, images in sets.items():
            if images.augment is not None:
                runlog.console("The training pictures change at random: the frozen encoder runs on them every epoch.")
                continue
            key = data.features_key(images, model.encoder.state_dict(), str(dtype))
            images.features = distributed.first_rank_first(
                lambda split=split, images=images, key=key: data.cached_features(
                    folder / "cache", split, key, images, encode, settings.NUM_WORKERS
                )
            )
    return sets
