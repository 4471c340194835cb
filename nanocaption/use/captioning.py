"""Captions of a data set's pictures, batch by batch."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from nanocaption.base import devices
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.loader import make_loader
from nanocaption.data.order import chunks, seed_of
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.captions import CaptionText, decode_pictures
from nanocaption.model.options import Options


def caption_batches(
    model: ImageToTextModel | Sequence[ImageToTextModel],
    tokenizer: Tokenizer,
    images: ImageTextDataset,
    *,
    batch_size: int,
    options: Options,
    device: torch.device,
    precision: str,
    workers: int,
    seed: int = 0,
) -> Iterator[list[list[CaptionText]]]:
    """Captions of the data set's images in its order, batch by batch; per image the best first.

    model: several are averaged (decode.ensemble); each reads the pictures as its own encoder wants them.
    options: beam search or random captions; what is drawn for a picture depends on `seed` and its file name alone.
    """
    members = [model] if isinstance(model, ImageToTextModel) else list(model)
    specs = [member.image_spec for member in members]
    views = [specs.index(spec) for spec in specs]  # members of one image_spec share one reading of the pictures
    batches = chunks([(i, ()) for i in range(len(images))], batch_size)
    sets = {view: images.seen_with(specs[view]) for view in views}
    loaders = {view: make_loader(seen, batches, workers) for view, seen in sets.items()}
    for chunk, *parts in zip(batches, *loaders.values(), strict=True):
        seeds = [seed_of(seed, images.paths[i].name) for i, _ in chunk]
        pixels = {view: part.to(device, sets[view].resident).images for view, part in zip(sets, parts, strict=True)}
        with devices.autocast(device, devices.pick_dtype(precision, device)):
            found = decode_pictures(members, tokenizer, [pixels[v] for v in views], options, seeds)
        if any(math.isnan(captions[0].log_prob) for captions in found):  # always the same text: it is told once
            warnings.warn(
                "the model gives no numbers (NaN) for some pictures, whose captions are empty. Half precision may be "
                "too coarse for it: PRECISION = 'fp32'",
                stacklevel=2,
            )
        yield found


def caption_images(
    model: ImageToTextModel | Sequence[ImageToTextModel],
    tokenizer: Tokenizer,
    images: ImageTextDataset,
    *,
    progress: str | None = None,
    **how: Any,
) -> list[list[CaptionText]]:
    """The captions of all batches of `caption_batches(**how)` in one list, with a progress bar if it has a name."""
    results = []
    with tqdm(total=len(images), desc=progress, unit="image", disable=progress is None, mininterval=1) as bar:
        for captions in caption_batches(model, tokenizer, images, **how):
            results += captions
            bar.update(len(captions))
    return results
