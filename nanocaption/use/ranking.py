"""Pictures and captions ranked for each other: by a captioner's likelihood, by its contrastive head, and by both.

    likelihood   log p(caption | image) - alpha log p(caption). For text to image the second part changes nothing; for
                 image to text the same short common captions would win everywhere without it (arXiv 2306.01879). p is
                 the mean of the probability, not of its logarithm, over MARGINAL training pictures, evenly spaced.
    head         the cosine of two vectors
    both         the head's first K_TEST candidates of each query get scale * cosine + weight * likelihood; all others
                 stay behind them, in the head's order. A pair that either way chose counts both ways.

alpha and weight are chosen on the first CHOSEN_ON pictures of the val split, by the mean of the six recalls.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nanocaption.base import devices
from nanocaption.data.caption_text import as_read
from nanocaption.data.dataset import ImageTextDataset, padded
from nanocaption.data.loader import make_loader
from nanocaption.data.order import chunks
from nanocaption.data.packing import find_places
from nanocaption.data.prepared import Record, folder_name, load_records
from nanocaption.data.tokenizer import PAD, encode_batch
from nanocaption.model.likelihood import log_likelihoods, pack_captions
from nanocaption.score.retrieval import Queries, queries_of, retrieval_scores
from nanocaption.use.load import Loaded

MARGINAL = 32  # training pictures
CHOSEN_ON = 100  # pictures of the val split
ALPHAS = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
_READ = 16  # pictures at once
_EMBEDDED = 500  # captions at once
_QUERIES = 256  # whose candidates are chosen at once


class Pairs(NamedTuple):
    """N pictures and their M captions, ready to be ranked."""

    images: ImageTextDataset
    queries: Queries
    token_ids: list[list[int]]  # of the captions


class Chosen(NamedTuple):
    """What the scores are mixed with."""

    alpha: float  # of the likelihood alone
    mixed_alpha: float  # of the likelihood beside the head
    weight: float  # of the likelihood beside the head
    where: str  # on which pictures it was chosen


def pairs_of(loaded: Loaded, records: Sequence[Record], images: ImageTextDataset) -> Pairs:
    """records with their images; captions as training reads them. Raises as score.retrieval.queries_of."""
    queries = queries_of(as_read(records, loaded.settings.CAPTION_CASE))
    return Pairs(images, queries, encode_batch(loaded.tokenizer, queries.texts, loaded.settings.MAX_SEQ_LEN))


def some_pictures(loaded: Loaded, splits: Sequence[str], number: int | None, first: bool = False) -> list[Record]:
    """Evenly spaced (or the first) `number` pictures of splits of the set that the model was trained on.

    Those with a caption; empty where the set is not on this disk.
    """
    folder = trained_on(loaded)
    try:
        records = [record for record in load_records(folder, splits) if record["captions"]]
    except (OSError, ValueError, KeyError):
        return []
    if number is None or first or len(records) <= number:
        return records[:number]
    return [records[(2 * i + 1) * len(records) // (2 * number)] for i in range(number)]


def trained_on(loaded: Loaded) -> Path:
    """The folder of the set that the (first) model was trained on, whether or not it is there."""
    return Path(loaded.settings.DATA_DIR) / folder_name(loaded.states[0]["config"]["DATASET"])


# --- Likelihood ---


def features(loaded: Loaded, images: ImageTextDataset, places: Sequence[int]) -> Iterator[torch.Tensor]:
    """The features (1, P, E) of the pictures at `places`, one after the other."""
    model = loaded.models[0]
    batches = chunks([(place, ()) for place in places], _READ)
    for batch in make_loader(images, batches, loaded.settings.NUM_WORKERS):
        pixels = batch.to(loaded.device, images.resident).images
        with torch.inference_mode(), computing(loaded):
            found = pixels if pixels.ndim == 3 else model.encode(pixels)
        yield from found.split(1)


def computing(loaded: Loaded) -> contextlib.AbstractContextManager[None]:
    """In the number format of the settings."""
    return devices.autocast(loaded.device, devices.pick_dtype(loaded.settings.PRECISION, loaded.device))


def likelihoods(
    loaded: Loaded, images: ImageTextDataset, token_ids: Sequence[Sequence[int]], title: str,
    kept: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """log p(caption | image) of all pairs: float32 (images, captions), on every process, each of which makes a share.

    kept: where rows are written as they are made, and taken from; NaN is what is not there yet.
    """
    found = np.full((len(images), len(token_ids)), np.nan, np.float32) if kept is None else kept
    todo = np.flatnonzero(np.isnan(found).any(1))
    devices.barrier()  # all have looked before the first one writes
    mine = todo[devices.rank() :: devices.world_size()].tolist()
    packed = [part.to(loaded.device) for part in pack_captions(token_ids, PAD)]
    rows = []
    for place, image in zip(mine, bar(features(loaded, images, mine) if mine else (), len(mine), title), strict=True):
        with computing(loaded):
            found[place] = log_likelihoods(loaded.models[0], image, packed).cpu().numpy()
        rows.append((place, found[place]))
    if devices.world_size() > 1:
        for place, own in devices.gather(rows):
            found[place] = own
    return found


def log_marginal(loaded: Loaded, token_ids: Sequence[Sequence[int]], training: ImageTextDataset) -> np.ndarray:
    """log p(caption), the log-mean-exp of its likelihood over the pictures of `training`: float32 (captions,)."""
    return log_mean_exp(likelihoods(loaded, training, token_ids, "marginal"))


def log_mean_exp(rows: np.ndarray) -> np.ndarray:
    """(n, captions) -> (captions,)"""
    top = rows.max(0)
    return (top + np.log(np.exp(rows - top).mean(0, dtype=np.float64))).astype(np.float32)


def some_likelihoods(
    loaded: Loaded, pairs: Pairs, wanted: np.ndarray, title: str, kept: np.ndarray | None = None
) -> np.ndarray:
    """As `likelihoods`, of the pairs that are True in wanted (images, captions) alone; NaN elsewhere.

    An image's captions share its keys. kept: as of `likelihoods`.
    """
    found = np.full(wanted.shape, np.nan, np.float32) if kept is None else kept
    todo = np.flatnonzero((np.isnan(found) & wanted).any(1))
    devices.barrier()
    mine = todo[devices.rank() :: devices.world_size()].tolist()
    rows = []
    images = features(loaded, pairs.images, mine) if mine else ()
    for place, image in zip(mine, bar(images, len(mine), title), strict=True):
        columns = np.flatnonzero(wanted[place])
        packed = [part.to(loaded.device) for part in pack_captions([pairs.token_ids[c] for c in columns], PAD)]
        with computing(loaded):
            found[place, columns] = log_likelihoods(loaded.models[0], image, packed).cpu().numpy()
        rows.append((place, found[place]))
    if devices.world_size() > 1:
        for place, own in devices.gather(rows):
            found[place] = own
    return found


def bar(items: Iterable[torch.Tensor], total: int, title: str) -> "tqdm[torch.Tensor]":
    return tqdm(items, total=total, desc=title, unit="image", disable=devices.rank() != 0 or not total, mininterval=1)


# --- The head ---


@torch.inference_mode()
def image_vectors(loaded: Loaded, images: ImageTextDataset) -> np.ndarray:
    """float32 (images, WIDTH) of length 1, on every process, each of which makes a share."""
    model, found = loaded.models[0], []
    mine = list(range(len(images)))[devices.rank() :: devices.world_size()]
    batches = chunks([(place, ()) for place in mine], _READ)
    for batch in make_loader(images, batches, loaded.settings.NUM_WORKERS) if mine else ():
        with computing(loaded):
            found.append(model.image_vectors(batch.to(loaded.device, images.resident).images).float().cpu().numpy())
    rows = dict(devices.gather(list(zip(mine, np.concatenate(found) if found else (), strict=True))))
    return np.stack([rows[place] for place in range(len(images))])


@torch.inference_mode()
def text_vectors(loaded: Loaded, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Of captions as tokenizer.encode gives them: float32 (captions, WIDTH) of length 1."""
    found = []
    for some in chunks(token_ids, _EMBEDDED):
        tokens = torch.from_numpy(padded([ids[:-1] for ids in some], PAD))  # as in training
        places = find_places(tokens, PAD, None, len(tokens))
        with computing(loaded):
            vectors = loaded.models[0].text_vectors(tokens.to(loaded.device), places.to(loaded.device))
        found.append(vectors.float().cpu().numpy())
    return np.concatenate(found)


def head_scores(loaded: Loaded, pairs: Pairs) -> np.ndarray:
    """scale * cosine of all pairs: float32 (images, captions)."""
    head = loaded.models[0].retrieval
    assert head is not None
    scale = head.scale().item()
    return scale * image_vectors(loaded, pairs.images) @ text_vectors(loaded, pairs.token_ids).T


# --- Both ---


def candidates(scores: np.ndarray, k: int) -> np.ndarray:
    """bool (images, captions): the k best captions of each image and the k best images of each caption; all where there
    are no more than k."""
    found = np.zeros(scores.shape, bool)
    for queries, into in ((scores, found), (scores.T, found.T)):
        own = min(k, queries.shape[1])
        for start in range(0, len(queries), _QUERIES):  # the places of all at once would take twice the scores
            part = slice(start, start + _QUERIES)
            first = np.argpartition(-queries[part], own - 1, 1)[:, :own]
            np.put_along_axis(into[part], first, True, 1)
    return found


def reranked(head: np.ndarray, likelihood: np.ndarray, marginal: np.ndarray, chosen: Chosen) -> np.ndarray:
    """The scores of `both`. likelihood: NaN where a pair is no candidate."""
    mixed = mix(head, likelihood, marginal, chosen.mixed_alpha, chosen.weight)
    there = ~np.isnan(likelihood)
    # Behind every candidate, in the head's order.
    below = np.nanmin(mixed) - 1 - float(head.max()) if there.any() else 0.0
    return np.where(there, mixed, head + below).astype(np.float32)


def mix(head: np.ndarray, likelihood: np.ndarray, marginal: np.ndarray, alpha: float, weight: float) -> np.ndarray:
    return head + weight * (likelihood - alpha * marginal)


def choose(
    likelihood: np.ndarray, marginal: np.ndarray, head: np.ndarray | None, owner: np.ndarray, where: str
) -> Chosen:
    """The alphas and the weight whose recalls are highest on average for these pairs; of equals the first of the lists.

    likelihood (images, captions), marginal (captions,), head: scores, None where there is no head.
    """
    def best(options: Sequence[tuple[float, ...]], make: Callable[..., np.ndarray]) -> tuple[float, ...]:
        return max(options, key=lambda option: retrieval_scores(make(*option), owner)["r_mean"])

    (alpha,) = best([(a,) for a in ALPHAS], lambda a: likelihood - a * marginal)
    if head is None:
        return Chosen(alpha, alpha, 1.0, where)
    options = [(a, w) for w in WEIGHTS for a in ALPHAS]
    mixed_alpha, weight = best(options, lambda a, w: mix(head, likelihood, marginal, a, w))
    return Chosen(alpha, mixed_alpha, weight, where)


def without_val(training: bool) -> Chosen:
    """Where there are no val pictures to choose on."""
    alpha = 1.0 if training else 0.0
    return Chosen(alpha, alpha, 0.5, "not chosen, there is no val split")
