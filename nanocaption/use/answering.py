"""Answers to the questions of a data set: batch by batch, each picture encoded once for all that is asked about it."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Unpack

import torch
from tokenizers import Tokenizer

from nanocaption.base import devices
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.order import seed_of
from nanocaption.data.questions import Asking
from nanocaption.model.answers import answer_questions
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.captions import CaptionText
from nanocaption.use.captioning import How, read_pixels

Answers = list[list[CaptionText]]  # of one picture: for each question the answers, the best first


@torch.inference_mode()
def answer_batches(
    models: Sequence[ImageToTextModel],
    tokenizer: Tokenizer,
    images: ImageTextDataset,
    asked: Sequence[Sequence[Asking]],
    **how: Unpack[How],
) -> Iterator[list[Answers]]:
    """Answers to what is asked about each of the images, in their order, batch by batch.

    how: batch_size counts questions; a picture is never divided. Several models are averaged. A question that is too
    long has no answer, an empty list.
    """
    device, dtype = how["device"], devices.pick_dtype(how["precision"], how["device"])
    batches = _in_batches([len(questions) for questions in asked], how["batch_size"])
    for batch, pixels in zip(batches, read_pixels(models, images, batches, device, how["workers"]), strict=True):
        numbered = [(place, image, number) for place, image in enumerate(batch) for number in range(len(asked[image]))]
        places = [(place, asked[image][number]) for place, image, number in numbered]
        seeds = [seed_of(how.get("seed", 0), images.paths[image].name, number) for _, image, number in numbered]
        with devices.autocast(device, dtype):
            found = iter(answer_questions(models, tokenizer, pixels, places, how["options"], seeds))
        answers = [[next(found) for _ in asked[image]] for image in batch]
        if any(math.isnan(row[0].log_prob) for of_picture in answers for row in of_picture if row):
            warnings.warn("the model gives no numbers (NaN) for some pictures, whose answers are empty. Half precision "
                          "may be too coarse for it: PRECISION = 'fp32'", stacklevel=2)  # fmt: skip
        yield answers


def _in_batches(questions: Sequence[int], size: int) -> list[list[int]]:
    """The pictures in their order, by their numbers, in batches of at most `size` questions; one alone may have more.

    questions: how many each picture has.
    """
    batches: list[list[int]] = []
    room = 0
    for image, number in enumerate(questions):
        if number > room or not batches:
            batches.append([])
            room = size
        batches[-1].append(image)
        room -= number
    return batches
