"""Answers to the questions of a data set: batch by batch, each picture encoded once for all that is asked about it."""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from nanocaption.base import devices
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.order import seed_of
from nanocaption.data.questions import Asking, asking
from nanocaption.model.answers import answer_log_probs, answer_questions
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.captions import CaptionText
from nanocaption.model.options import Options
from nanocaption.score import results
from nanocaption.score.answer_files import read_kept_answers
from nanocaption.score.answers import likeliest, options_in
from nanocaption.score.split import Split
from nanocaption.use.captioning import How, read_pixels, split_images
from nanocaption.use.load import Loaded

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


def answer_split(
    loaded: Loaded, options: Options, split: Split, output: Path, key: str, pictures: Sequence[int] | None = None
) -> list[str]:
    """The best answer to every question of the split, in their order. On every process, each of which has its share.

    pictures: for each record whose picture is shown in the place of its own. Answers are written to `output` batch by
    batch under `key`, and taken from there if they are there already. To a question that is too long it is "".
    """
    rank, settings = devices.rank(), loaded.settings
    output.mkdir(parents=True, exist_ok=True)
    found = read_kept_answers(output, key)
    devices.barrier()  # all have read before the first one writes
    left = [i for i in range(len(split.records)) if i not in found]
    mine = left[rank :: devices.world_size()]
    seen = mine if pictures is None else [pictures[i] for i in mine]
    images = split_images(loaded, split, cached=bool(left)).part(seen)
    asked = [[asking(question, settings.CAPTION_CASE) for question in split.records[i]["questions"]] for i in mine]
    if found and rank == 0:
        print(f"answers about {len(found)} pictures are there from a start that was stopped")
    quiet, what = rank != 0 or not mine, "answering" if pictures is None else "answering, pictures shuffled,"
    bar = tqdm(total=len(mine), desc=f"{what} {split.name}", unit="image", disable=quiet, mininterval=1)
    how = How(batch_size=settings.EVAL_BATCH_SIZE, options=options, device=loaded.device,
              precision=settings.PRECISION, workers=settings.NUM_WORKERS, seed=settings.SEED)  # fmt: skip
    rows: list[tuple[int, list[str]]] = []
    with results.open_kept(output, key, rank) as file, bar:
        for answers in answer_batches(loaded.models, loaded.tokenizer, images, asked, **how) if mine else ():
            places = mine[len(rows) : len(rows) + len(answers)]
            batch = [(i, [best[0].text if best else "" for best in of_picture])
                     for i, of_picture in zip(places, answers, strict=True)]  # fmt: skip
            file.write("".join(json.dumps({"image": i, "answers": texts}) + "\n" for i, texts in batch))
            file.flush()
            rows += batch
            bar.update(len(batch))
    found |= dict(devices.gather(rows))
    return [text for i in range(len(split.records)) for text in found[i]]


def choose_letters(loaded: Loaded, split: Split) -> list[str] | None:
    """For each question of multiple choice the letter that the one model finds likeliest among those that it lists.

    None where a question lists no options (answers.options_in), or several models answer.
    """
    settings = loaded.settings
    letters = [[list(options_in(question["question"])) for question in record["questions"]] for record in split.records]
    if len(loaded.models) > 1 or not all(own for of_picture in letters for own in of_picture):
        return None
    (model,), found = loaded.models, []
    batches = _in_batches([sum(map(len, of_picture)) for of_picture in letters], settings.EVAL_BATCH_SIZE)
    images = split_images(loaded, split)
    dtype = devices.pick_dtype(settings.PRECISION, loaded.device)
    readings = read_pixels([model], images, batches, loaded.device, settings.NUM_WORKERS)
    for batch, (pixels,) in zip(batches, readings, strict=True):
        own = [(place, asking(question, settings.CAPTION_CASE), options) for place, image in enumerate(batch)
               for question, options in zip(split.records[image]["questions"], letters[image], strict=True)]
        asked = [(place, one._replace(answer=letter)) for place, one, options in own for letter in options]
        with devices.autocast(loaded.device, dtype):
            values = iter(answer_log_probs(model, loaded.tokenizer, pixels, asked))
        found += likeliest([{letter: next(values) for letter in options} for _, _, options in own])
    return found


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
