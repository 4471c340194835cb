"""Captions of pictures: a model, a tokenizer and options -> texts with their probabilities."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanocaption.base.tensors import State
from nanocaption.data.tokenizer import END, START, read_text
from nanocaption.data.transform import ImageSpec, load_image
from nanocaption.model import decode
from nanocaption.model.decoder import Decoder
from nanocaption.model.endings import endings_of
from nanocaption.model.options import Options

_PICTURES = 32  # captioned at once


class CaptionText(NamedTuple):
    text: str
    log_prob: float  # sum over its tokens
    score: float  # log_prob / length ** length_penalty, see decode.py
    ids: list[int]  # its tokens without <start> and <end>
    broken: bool = False  # whether they ended within a character or were no UTF-8; `text` is what was whole


class Captioner(Protocol):
    """What captions need of a model: ImageToTextModel is one."""

    decoder: Decoder
    image_spec: ImageSpec
    mean: Tensor  # on the model's device
    tokenizer: Tokenizer | None
    about: State | None

    def start_decoding(self, images: Tensor) -> decode.Step: ...


@torch.inference_mode()
def caption_files(model: Captioner, paths: Sequence[str | Path], **options: float) -> list[list[CaptionText]]:
    """Captions of picture files with a model of nanocaption.load, per picture the best first.

    options: fields of Options, in place of the search settings the model was saved with.
    Raises ValueError with one line for a picture that cannot be read.
    """
    if model.tokenizer is None or model.about is None:
        raise ValueError("This model has no tokenizer of its own: ImageToTextModel.from_pretrained gives one that has.")
    strange = [path for path in paths if not isinstance(path, str | os.PathLike)]
    if strange:
        raise ValueError(f"{strange[0]!r:.60} is no path of a picture file: save the picture, and give its path")
    chosen = Options(**{**search_options(model.about["config"])._asdict(), **options})
    found = []
    for start in range(0, len(paths), _PICTURES):
        chunk = [load_image(path, model.image_spec) for path in paths[start : start + _PICTURES]]
        found += decode_pictures([model], model.tokenizer, [torch.stack(chunk).to(model.mean.device)], chosen)
    return found


def decode_pictures(
    models: Sequence[Captioner],
    tokenizer: Tokenizer,
    pixels: Sequence[Tensor],
    options: Options,
    seeds: Sequence[int] | None = None,
) -> list[list[CaptionText]]:
    """Captions of N pictures by one model, or by several whose probabilities are averaged; per picture the best first.

    pixels: per model its own reading of the pictures, uint8 (N, 3, S, S) on the models' device.
    seeds: of random captions, one per picture, see decode.sample.
    """
    results = decode.decode(_step(models, pixels), len(pixels[0]), options, _limits(models, tokenizer, pixels, options),
                            seeds)  # fmt: skip
    return [[_with_text(tokenizer, caption) for caption in found] for found in results]


def search_pictures(
    models: Sequence[Captioner], tokenizer: Tokenizer, pixels: Sequence[Tensor], options: Options,
    penalties: Sequence[float],
) -> list[list[list[CaptionText]]]:  # fmt: skip
    """`decode_pictures` by beam search, for each length penalty, in one search: see decode.beam_searches."""
    limits = _limits(models, tokenizer, pixels, options)
    limits = limits._replace(max_length=min(options.max_length or limits.max_length, limits.max_length))
    results = decode.beam_searches(_step(models, pixels), len(pixels[0]), options, limits, penalties)
    return [[[_with_text(tokenizer, caption) for caption in found] for found in each] for each in results]


def _step(models: Sequence[Captioner], pixels: Sequence[Tensor]) -> decode.Step:
    return decode.ensemble([model.start_decoding(images) for model, images in zip(models, pixels, strict=True)])


def _limits(
    models: Sequence[Captioner], tokenizer: Tokenizer, pixels: Sequence[Tensor], options: Options
) -> decode.Limits:
    longest, device = min(model.decoder.max_seq_len for model in models) - 1, pixels[0].device
    endings = endings_of(tokenizer).on(device) if options.no_bad_endings else None
    return decode.Limits(START, END, longest, device, endings)


def _with_text(tokenizer: Tokenizer, caption: decode.Caption) -> CaptionText:
    text, broken = read_text(tokenizer, caption.ids)
    return CaptionText(text, caption.log_prob, caption.score, caption.ids, broken)


def search_options(settings: Mapping[str, object]) -> Options:
    """The beam search that settings, by name, ask for."""
    names = ("beam_size", "length_penalty", "min_length", "no_repeat_ngram")
    chosen: dict[str, Any] = {name: settings[name.upper()] for name in names}
    # Earlier checkpoints and exports do not say.
    return Options(**chosen, no_bad_endings=bool(settings.get("NO_BAD_ENDINGS", False)))
