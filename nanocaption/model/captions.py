"""Captions of pictures: a model, a tokenizer and options -> texts with their probabilities."""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Unpack

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanocaption.base.tensors import State
from nanocaption.data.any_picture import AnyPicture, fitted_pictures
from nanocaption.data.packing import Places
from nanocaption.data.tokenizer import END, PAD, START
from nanocaption.data.transform import ImageSpec
from nanocaption.model import decode
from nanocaption.model.caption_types import CaptionText, with_text
from nanocaption.model.decoder import Decoder, Prefix
from nanocaption.model.endings import endings_of
from nanocaption.model.options import Names, Options, asked, search_options

_PICTURES = 32  # captioned at once


class Captioner(Protocol):
    """What captions need of a model: ImageToTextModel is one."""

    decoder: Decoder
    image_spec: ImageSpec
    mean: Tensor  # on the model's device
    tokenizer: Tokenizer | None
    about: State | None

    def start_decoding(self, images: Tensor, prefix: Prefix | None = None) -> decode.Step: ...

    def hidden(self, images: Tensor, decoder_input_tokens: Tensor, places: Places) -> Tensor: ...

    def cross_attention(
        self, images: Tensor, decoder_input_tokens: Tensor, image_index: Tensor | None = None
    ) -> tuple[Tensor, int]: ...


def caption_files(
    model: Captioner, paths: Iterable[AnyPicture], **options: Unpack[Names]
) -> list[list[CaptionText]]:
    """`caption_pictures` in one list, by its name of before."""
    return list(itertools.chain.from_iterable(caption_pictures(model, paths, False, options)))


@torch.inference_mode()
def caption_pictures(
    model: Captioner, pictures: Iterable[AnyPicture], attention: bool, options: Names
) -> Iterator[list[list[CaptionText]]]:
    """Captions of pictures in any form of data/any_picture.py, some at a time; per picture the best first.

    attention: whether each caption gets what its tokens looked at when they were chosen: the mean of the weights over
    layers and heads, on the grid of patches; what a class or register token got is left out, so that a map sums to 1
    or less.
    options: in place of the search settings the model was saved with, see options.Names. With a seed, what is drawn for
    a picture depends on that and the picture alone.
    Raises ValueError with one line for a picture or an option that is not taken, and where there is no picture.
    """
    if model.tokenizer is None or model.about is None:
        raise ValueError("This model has no tokenizer of its own: ImageToTextModel.from_pretrained gives one that has.")
    if model.about["config"].get("QUESTIONS"):
        raise ValueError("This model answers questions and has learnt no captions: model.answer(picture, question).")
    how = asked(options, search_options(model.about["config"]))
    fitted, none = fitted_pictures(pictures, model.image_spec), True
    while chunk := list(itertools.islice(fitted, _PICTURES)):
        none = False
        pixels = torch.stack(chunk).to(model.mean.device)
        seeds = None if how.seed is None else [how.seed] * len(chunk)
        found = decode_pictures([model], model.tokenizer, [pixels], how.options, seeds)
        found = [captions[: how.captions] for captions in found]
        if any(math.isnan(captions[0].log_prob) for captions in found):
            warnings.warn("the model gives no numbers (NaN) for some pictures, whose captions are empty: half precision"
                          " may be too coarse for it, load it with dtype='float32'", stacklevel=2)  # fmt: skip
        yield _with_attention(model, pixels, found) if attention else found
    if none:
        raise ValueError("There is no picture to caption: the list is empty.")


def _with_attention(
    model: Captioner, pixels: Tensor, found: list[list[CaptionText]]
) -> list[list[CaptionText]]:
    index = [image for image, captions in enumerate(found) for _ in captions]
    flat = [caption for captions in found for caption in captions]
    tokens = torch.full((len(flat), max(1, *(len(caption.ids) for caption in flat), 1)), PAD)
    for row, caption in zip(tokens, flat, strict=True):
        inputs = [START, *caption.ids][: max(1, len(caption.ids))]  # a token is chosen at the place of the one before
        row[: len(inputs)] = torch.tensor(inputs)
    device = pixels.device
    weights, side = model.cross_attention(pixels, tokens.to(device), torch.tensor(index, device=device))
    maps = weights.float().mean((0, 3))[..., -side * side :].unflatten(-1, (side, side)).cpu()  # (B, T, side, side)
    seen = iter([c._replace(attention=maps[row, : len(c.ids)].clone()) for row, c in enumerate(flat)])
    return [[next(seen) for _ in captions] for captions in found]


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
    return [[with_text(tokenizer, caption) for caption in found] for found in results]


def search_pictures(
    models: Sequence[Captioner], tokenizer: Tokenizer, pixels: Sequence[Tensor], options: Options,
    penalties: Sequence[float],
) -> list[list[list[CaptionText]]]:  # fmt: skip
    """`decode_pictures` by beam search, for each length penalty, in one search: see decode.beam_searches."""
    limits = _limits(models, tokenizer, pixels, options)
    limits = limits._replace(max_length=min(options.max_length or limits.max_length, limits.max_length))
    results = decode.beam_searches(_step(models, pixels), len(pixels[0]), options, limits, penalties)
    return [[[with_text(tokenizer, caption) for caption in found] for found in each] for each in results]


def _step(models: Sequence[Captioner], pixels: Sequence[Tensor]) -> decode.Step:
    return decode.ensemble([model.start_decoding(images) for model, images in zip(models, pixels, strict=True)])


def _limits(
    models: Sequence[Captioner], tokenizer: Tokenizer, pixels: Sequence[Tensor], options: Options
) -> decode.Limits:
    longest, device = min(model.decoder.max_seq_len for model in models) - 1, pixels[0].device
    endings = endings_of(tokenizer).on(device) if options.no_bad_endings else None
    return decode.Limits(START, END, longest, device, endings)
