"""The length penalty that scores best on the validation split: one beam search for all that are tried."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nanocaption import metrics
from nanocaption.base import devices
from nanocaption.data.loader import make_loader
from nanocaption.data.order import chunks
from nanocaption.metrics.ptb import Tokenize
from nanocaption.model.captions import search_pictures
from nanocaption.model.options import Options
from nanocaption.score.split import Split
from nanocaption.use.captioning import split_images
from nanocaption.use.load import Loaded


class Tried(NamedTuple):
    """One length penalty and what its captions score, as fractions."""

    penalty: float
    cider: float
    bleu_4: float
    words: float  # a caption
    bad_endings: float  # share of the captions


def try_penalties(
    loaded: Loaded, options: Options, split: Split, penalties: Sequence[float], tokenize: Tokenize
) -> list[Tried]:
    """The scores of the split with each length penalty, on every process, each of which captions its share."""
    texts = caption_with_each(loaded, options, split, penalties)
    references = {record["file_name"]: record["captions"] for record in split.records}
    prepared = metrics.prepare_references(references, tokenize)
    found = []
    for penalty, captions in zip(penalties, texts, strict=True):
        corpus = metrics.score_prepared(prepared, dict(zip(references, captions, strict=True))).corpus
        text = metrics.text_statistics(captions, tokenize)
        found.append(Tried(penalty, corpus["CIDEr"], corpus["Bleu_4"], text.mean_length, text.bad_endings))
    return found


def best_of(tried: Sequence[Tried]) -> float:
    """The penalty of the highest CIDEr; of equals the one nearest to 1."""
    return max(tried, key=lambda row: (row.cider, -abs(row.penalty - 1))).penalty


def table(tried: Sequence[Tried]) -> str:
    """Lines to print, scores times 100; the best is marked."""
    lines = [f"{'penalty':>8}{'CIDEr':>8}{'BLEU-4':>8}{'words':>8}{'bad endings':>13}"]
    for row in tried:
        mark = "   <- best CIDEr" if row.penalty == best_of(tried) else ""
        lines.append(f"{row.penalty:8g}{100 * row.cider:8.1f}{100 * row.bleu_4:8.1f}{row.words:8.1f}"
                     f"{row.bad_endings:13.1%}{mark}")  # fmt: skip
    return "\n".join(lines)


@torch.inference_mode()
def caption_with_each(
    loaded: Loaded, options: Options, split: Split, penalties: Sequence[float]
) -> list[list[str]]:
    """Per penalty the best caption of every picture of the split, in order, as a search with it alone finds it."""
    settings, device = loaded.settings, loaded.device
    mine = list(range(len(split.records)))[devices.rank() :: devices.world_size()]
    images = split_images(loaded, split, cached=True).part(mine)
    dtype = devices.pick_dtype(settings.PRECISION, device)
    views = [images.seen_with(model.image_spec) for model in loaded.models]
    batches = chunks([(i, ()) for i in range(len(images))], settings.EVAL_BATCH_SIZE) if mine else []
    loaders = [make_loader(view, batches, settings.NUM_WORKERS) for view in views] if mine else []
    rows: list[tuple[int, list[str]]] = []
    for parts in zip(*loaders, strict=True):
        pixels = [part.to(device, view.resident).images for part, view in zip(parts, views, strict=True)]
        with devices.autocast(device, dtype):
            found = search_pictures(loaded.models, loaded.tokenizer, pixels, options, penalties)
        of_each = zip(*found, strict=True)  # picture after picture
        rows += [(i, [captions[0].text for captions in each])
                 for i, each in zip(mine[len(rows) :], of_each, strict=False)]  # fmt: skip
    by_place = dict(devices.gather(rows))
    return [[by_place[i][number] for i in range(len(split.records))] for number in range(len(penalties))]
