"""Captions of a data set's pictures: batch by batch, and of a whole split with what is kept of a stopped start."""

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict, Unpack

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from nanocaption import metrics
from nanocaption.base import devices
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.inputs import cached_features
from nanocaption.data.loader import make_loader
from nanocaption.data.order import chunks, seed_of
from nanocaption.data.shards import is_streamed
from nanocaption.metrics.ptb import Tokenize
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.captions import CaptionText, decode_pictures
from nanocaption.model.options import Options
from nanocaption.score import results
from nanocaption.score.split import Split, training_records
from nanocaption.use.load import Loaded


class How(TypedDict):
    """How pictures are captioned."""

    batch_size: int
    options: Options  # beam search or random captions
    device: torch.device
    precision: str  # the setting PRECISION
    workers: int  # processes that read pictures
    seed: NotRequired[int]  # of random captions; what is drawn for a picture depends on it and the file name alone
    judged: NotRequired["Judged | None"]  # consensus: the beams in the order of the judges' liking


class Judged(NamedTuple):
    """Consensus decoding: the best beam is the one that agrees most with random captions of the same picture."""

    samples: int  # random captions a picture, at temperature 1
    training: metrics.References  # whose document frequencies weigh the agreement
    digest: str  # of these captions


def caption_batches(
    model: ImageToTextModel | Sequence[ImageToTextModel],
    tokenizer: Tokenizer,
    images: ImageTextDataset,
    **how: Unpack[How],
) -> Iterator[list[list[CaptionText]]]:
    """Captions of the data set's images in its order, batch by batch; per image the best first.

    model: several are averaged (decode.ensemble); each reads the pictures as its own encoder wants them.
    """
    members = [model] if isinstance(model, ImageToTextModel) else list(model)
    batches = chunks(range(len(images)), how["batch_size"])
    device = how["device"]
    for chunk, pixels in zip(batches, read_pixels(members, images, batches, device, how["workers"]), strict=True):
        seeds = [seed_of(how.get("seed", 0), images.paths[i].name) for i in chunk]
        with devices.autocast(device, devices.pick_dtype(how["precision"], device)):
            found = _decode(members, tokenizer, pixels, how["options"], seeds, how.get("judged"))
        if any(math.isnan(captions[0].log_prob) for captions in found):  # always the same text: it is told once
            warnings.warn(
                "the model gives no numbers (NaN) for some pictures, whose captions are empty. Half precision may be "
                "too coarse for it: PRECISION = 'fp32'",
                stacklevel=2,
            )
        yield found


def read_pixels(
    models: Sequence[ImageToTextModel], images: ImageTextDataset, batches: Sequence[Sequence[int]],
    device: torch.device, workers: int,
) -> Iterator[list[torch.Tensor]]:  # fmt: skip
    """For each batch of pictures, by their numbers: per model its own reading of them, on `device`."""
    specs = [model.image_spec for model in models]
    views = [specs.index(spec) for spec in specs]  # models of one image_spec share one reading of the pictures
    groups = [[(image, ()) for image in batch] for batch in batches]
    sets = {view: images.seen_with(specs[view]) for view in views}
    loaders = {view: make_loader(seen, groups, workers) for view, seen in sets.items()}
    for parts in zip(*loaders.values(), strict=True):
        pixels = {view: part.to(device, sets[view].resident).images for view, part in zip(sets, parts, strict=True)}
        yield [pixels[view] for view in views]


@torch.inference_mode()
def _decode(
    members: Sequence[ImageToTextModel], tokenizer: Tokenizer, pixels: Sequence[torch.Tensor], options: Options,
    seeds: Sequence[int], judged: Judged | None,
) -> list[list[CaptionText]]:  # fmt: skip
    """Captions of a batch, per picture the best first: by their score, or `judged`, and by score among equals."""
    if judged is None:
        return decode_pictures(members, tokenizer, pixels, options, seeds)
    encoded = [images if images.ndim == 3 else member.encode(images)
               for member, images in zip(members, pixels, strict=True)]  # fmt: skip
    found = decode_pictures(members, tokenizer, encoded, options, seeds)
    drawing = options._replace(samples=judged.samples, temperature=1.0, top_k=0, top_p=1.0, beam_groups=1)
    drawn = decode_pictures(members, tokenizer, encoded, drawing, seeds)
    texts = [[[caption.text for caption in captions] for captions in rows] for rows in (found, drawn)]
    liking = metrics.consensus(judged.training, *texts)
    orders = [(-own).argsort(kind="stable").tolist() for own in liking]
    return [[row[place] for place in order] for row, order in zip(found, orders, strict=True)]


def judged_by(loaded: Loaded, tokenize: Tokenize = metrics.ptb_tokenize) -> Judged | None:
    """What CONSENSUS asks for; None where it is 0.

    The document frequencies are those of the set that the (first) model was trained on, as it is under DATA_DIR.
    ValueError with one line where it is not there.
    """
    settings = loaded.settings
    if not settings.CONSENSUS:
        return None
    config = loaded.states[0]["config"]
    records = training_records(Path(settings.DATA_DIR), config)
    references = {number: record["captions"] for number, record in enumerate(records)}
    if not references:
        raise ValueError(f"CONSENSUS = {settings.CONSENSUS} weighs words as the training captions of "
                         f"{config['DATASET']} do, which are not under DATA_DIR = {settings.DATA_DIR!r}: name their "
                         "place with --data-dir, or leave CONSENSUS at 0")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of references without words: told where they are scored
        training = metrics.prepare_references(references, tokenize)
    return Judged(settings.CONSENSUS, training, results.digest(list(references.values())))


def caption_images(
    model: ImageToTextModel | Sequence[ImageToTextModel],
    tokenizer: Tokenizer,
    images: ImageTextDataset,
    **how: Unpack[How],
) -> list[list[CaptionText]]:
    """The captions of all batches of `caption_batches` in one list."""
    return list(itertools.chain.from_iterable(caption_batches(model, tokenizer, images, **how)))


def caption_split(
    loaded: Loaded, options: Options, split: Split, output: Path, key: str, judged: Judged | None = None
) -> tuple[list[str], int]:
    """The best caption of every image of the split, in order, and how many of them were broken (see CaptionText).

    On every process, each of which captions its share.

    Captions are written to `output` batch by batch under `key`, and taken from there if they are there already.
    """
    rank, settings = devices.rank(), loaded.settings
    output.mkdir(parents=True, exist_ok=True)
    found = results.read_kept(output, key)
    devices.barrier()  # all have read before the first one writes
    left = [i for i in range(len(split.records)) if i not in found]
    mine = left[rank :: devices.world_size()]
    images = split_images(loaded, split, cached=bool(left)).part(mine)
    if found and rank == 0:
        print(f"{len(found)} captions are there from a start that was stopped")
    quiet = rank != 0 or not mine
    bar = tqdm(total=len(mine), desc=f"captioning {split.name}", unit="image", disable=quiet, mininterval=1)
    how = How(batch_size=settings.EVAL_BATCH_SIZE, options=options, device=loaded.device,
              precision=settings.PRECISION, workers=settings.NUM_WORKERS, seed=settings.SEED,
              judged=judged)  # fmt: skip
    rows: list[tuple[int, tuple[str, bool]]] = []
    with results.open_kept(output, key, rank) as file, bar:
        for captions in caption_batches(loaded.models, loaded.tokenizer, images, **how) if mine else ():
            places = mine[len(rows) : len(rows) + len(captions)]
            batch = [(i, (row[0].text, row[0].broken)) for i, row in zip(places, captions, strict=True)]
            lines = ({"image": i, "caption": text, "broken": broken} for i, (text, broken) in batch)
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            rows += batch
            bar.update(len(batch))
    found |= dict(devices.gather(rows))
    texts, broken = zip(*(found[i] for i in range(len(split.records))), strict=True)
    return list(texts), sum(broken)


def split_images(loaded: Loaded, split: Split, cached: bool = False) -> ImageTextDataset:
    """The pictures of the split, as the first of the models wants them.

    cached: for all processes together, a frozen encoder's features of them, from the cache that training uses too.
    """
    settings, model, token_ids = loaded.settings, loaded.models[0], [[] for _ in split.records]
    images = ImageTextDataset(split.records, split.folder / "images", token_ids, model.image_spec)
    kept = settings.FREEZE_ENCODER and settings.CACHE_FEATURES and not is_streamed(split.folder)
    if cached and kept and len(loaded.models) == 1:
        images.cached = cached_features(settings, split.folder, split.name, images, model, loaded.device)
    return images


def decoding_facts(loaded: Loaded, options: Options, judged: Judged | None = None) -> dict[str, object]:
    """Everything that can change a caption of a given checkpoint: part of the signature and of the captions' key."""
    o, settings, dtype = options, loaded.settings, devices.pick_dtype(loaded.settings.PRECISION, loaded.device)
    limit = {"cut at": o.max_length} if o.max_length else {}
    how: dict[str, object] = {"beam": o.beam_size, "length penalty": o.length_penalty}
    if o.samples:
        how = {"sampled with seed": settings.SEED, "temperature": o.temperature, "top-k": o.top_k, "top-p": o.top_p}
    elif o.beam_groups > 1:
        how |= {"groups": o.beam_groups, "diversity penalty": o.diversity_penalty}
    if judged:
        how |= {"consensus of": judged.samples, "seed": settings.SEED, "document frequencies": judged.digest}
    how |= {"no bad endings": True} if o.no_bad_endings else {}
    longest = min(model.decoder.max_seq_len for model in loaded.models)
    return how | limit | {
        "longest": longest, "shortest": o.min_length, "no repeated n-gram": o.no_repeat_ngram,
        "precision": str(dtype).removeprefix("torch."),
    }


def results_name(loaded: Loaded, options: Options, split: Split, judged: Judged | None = None) -> str:
    """The name of the folder for the results: split, epochs, and what was chosen of the decoding."""
    o, settings = options, loaded.settings
    if o.samples:
        parts = [f"sampled{settings.SEED}", f"temperature{o.temperature:g}", f"topk{o.top_k}", f"topp{o.top_p:g}"]
    else:
        parts = [f"beam{o.beam_size}", f"penalty{o.length_penalty:g}"]
        parts += [f"groups{o.beam_groups}", f"diversity{o.diversity_penalty:g}"] if o.beam_groups > 1 else []
    parts += [f"consensus{judged.samples}"] if judged else []
    parts += ["goodendings"] if o.no_bad_endings else []
    limits = {"max": o.max_length, "min": o.min_length, "ngram": o.no_repeat_ngram, "first": settings.DATA_CUTOFF}
    parts += [f"{name}{value}" for name, value in limits.items() if value]
    return "_".join(["eval", split.name, "epoch" + "+".join(str(state["epoch"]) for state in loaded.states), *parts])
