"""Image-text retrieval: recall both ways from one matrix of scores, with honest ranks.

Where scores are equal a query has its expected rank. Counting only what is strictly better would give a model that
scores all pairs alike 100 %, and sorting whatever the sort leaves. NaN, which such a sort puts first, is refused.

    caption -> image   the rank of its one image among all images
    image -> captions  the rank of its best caption among the captions of other images and itself: its own other
                       captions cannot push it down

A rank counts from 1: 1 + what is better + half of what is equal. R@k is the share of queries, in per cent, with a rank
of k at most. r_mean is the mean of the six.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nanocaption.data.prepared import Record

KS = (1, 5, 10)
NAMES = tuple(f"{way}_R@{k}" for way in ("i2t", "t2i") for k in KS)
CAPTIONS = 5  # of an image that the protocols take, the first ones
FOLDS, FOLD = 5, 1000  # COCO's second protocol: the mean of five sets of 1,000 images
RESAMPLES, LEVEL = 1000, 0.95
_CELLS = 2**24  # scores looked at at once


class Ranks(NamedTuple):
    """The expected rank of every query, from 1."""

    i2t: np.ndarray  # float64 (images,)
    t2i: np.ndarray  # float64 (captions,)


def retrieval_scores(scores: np.ndarray, image_of_caption: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Recall in per cent both ways, median ranks, and the mean of the six recalls.

    scores: (images, captions), higher is better; image_of_caption: (captions,), the image of each, 0 .. images - 1.
    Gives i2t_R@1, i2t_R@5, i2t_R@10, t2i_R@1, t2i_R@5, t2i_R@10, i2t_median_rank, t2i_median_rank and r_mean.
    Raises ValueError as `ranks_of`.
    """
    return scores_of(ranks_of(scores, image_of_caption))


def scores_of(ranks: Ranks) -> dict[str, float]:
    """What retrieval_scores gives, from the ranks."""
    found = {f"{way}_R@{k}": 100 * float(np.mean(own <= k)) for way, own in ranks._asdict().items() for k in KS}
    medians = {f"{way}_median_rank": float(np.median(own)) for way, own in ranks._asdict().items()}
    return {**found, **medians, "r_mean": float(np.mean([found[name] for name in NAMES]))}


def ranks_of(scores: np.ndarray, image_of_caption: Sequence[int] | np.ndarray) -> Ranks:
    """The ranks of all images and all captions. Arguments as of `retrieval_scores`.

    Raises ValueError with one line for scores that are NaN, shapes that do not fit, an image without a caption, and
    fewer than two images, among which there is nothing to find.
    """
    scores, owner = np.asarray(scores), np.asarray(image_of_caption)
    check(scores, owner)
    images, captions = scores.shape
    own = scores[owner, np.arange(captions)]  # (captions,)
    best = np.full(images, -np.inf)
    np.maximum.at(best, owner, own)
    better, equal = np.zeros(captions), np.zeros(captions)
    i2t = np.ones(images)
    own_equal = np.bincount(owner, own == best[owner], minlength=images)
    rows = max(1, _CELLS // captions)
    for start in range(0, images, rows):
        part, top = scores[start : start + rows], best[start : start + rows, None]
        better += (part > own).sum(0)
        equal += (part == own).sum(0)
        others_equal = (part == top).sum(1) - own_equal[start : start + rows]
        i2t[start : start + rows] += (part > top).sum(1) + others_equal / 2
    return Ranks(i2t, 1 + better + (equal - 1) / 2)


def check(scores: np.ndarray, owner: np.ndarray) -> None:
    """Raise ValueError with one line where scores (images, captions) and owner (captions,) cannot be ranked."""
    if scores.ndim != 2 or owner.ndim != 1 or scores.shape[1] != len(owner):
        raise ValueError(f"scores {scores.shape} and image_of_caption {owner.shape}: must be (images, captions) and "
                         "(captions,)")  # fmt: skip
    images = len(scores)
    if images < 2 or not len(owner):
        raise ValueError(f"{images} images and {len(owner)} captions: ranks need two images or more, with captions")
    if owner.dtype.kind not in "iu" or owner.min() < 0 or owner.max() >= images:
        raise ValueError(f"image_of_caption must be whole numbers from 0 to {images - 1}, the images of the scores")
    if len(bare := np.setdiff1d(np.arange(images), owner)):
        raise ValueError(f"{len(bare)} of {images} images have no caption, the first is image {bare[0]}: leave them "
                         "out, there is nothing that they could find")  # fmt: skip
    if scores.dtype.kind not in "fiu":
        raise ValueError(f"scores are {scores.dtype}: must be numbers")
    if scores.dtype.kind == "f" and (lost := int(np.isnan(scores).sum())):
        raise ValueError(f"{lost:,} of {scores.size:,} scores are NaN: they have no rank. Half precision may be too "
                         "coarse for the model (PRECISION = 'fp32')")  # fmt: skip


def intervals(
    ranks: Ranks, image_of_caption: Sequence[int] | np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """{recall or r_mean: (low, high)} at LEVEL, in per cent: a percentile bootstrap over images with their captions.

    The captions of an image are not independent of each other. What is ranked against stays the whole set.
    """
    owner, images = np.asarray(image_of_caption), len(ranks.i2t)
    counts = np.bincount(owner, minlength=images).astype(float)
    hits = [ranks.i2t <= k for k in KS] + [np.bincount(owner, ranks.t2i <= k, minlength=images) for k in KS]
    columns = np.stack([*hits, np.ones(images), counts], 1).astype(float)  # (images, 8)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)  # (resamples, images)
    sums = times @ columns
    drawn = 100 * sums[:, :6] / np.repeat(sums[:, 6:], len(KS), axis=1)
    tail = 50 * (1 - LEVEL)
    values = dict(zip(NAMES, drawn.T, strict=True)) | {"r_mean": drawn.mean(1)}
    return {name: tuple(np.percentile(own, (tail, 100 - tail)).tolist()) for name, own in values.items()}


def fold_scores(
    scores: np.ndarray, image_of_caption: Sequence[int] | np.ndarray, folds: int = FOLDS
) -> dict[str, float]:
    """The mean of retrieval_scores over `folds` equal parts of the images, in their order: COCO's 1k protocol.

    Each part is ranked within itself. Images that do not fill the last part are left out. Raises as `ranks_of`.
    """
    scores, owner = np.asarray(scores), np.asarray(image_of_caption)
    check(scores, owner)
    size = len(scores) // folds
    parts = []
    for start in range(0, folds * size, max(1, size)):
        own = (owner >= start) & (owner < start + size)
        parts.append(retrieval_scores(scores[start : start + size, own], owner[own] - start))
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


class Queries(NamedTuple):
    """The captions of a protocol, image after image, and the image of each."""

    texts: list[str]
    image_of_caption: np.ndarray  # int64 (captions,)
    left_out: int  # captions beyond the CAPTIONS first of their image


def queries_of(records: Sequence[Record], most: int = CAPTIONS) -> Queries:
    """The first `most` captions of each image.

    Raises ValueError where an image has none, or there are fewer than two images.
    """
    if bare := [record["file_name"] for record in records if not record["captions"]]:
        raise ValueError(f"{len(bare)} of {len(records)} pictures have no caption, the first {bare[0]!r}: give them "
                         "one or take them out, there is nothing that they could find")  # fmt: skip
    if len(records) < 2:
        raise ValueError(f"{len(records)} picture: retrieval ranks a picture among others; give two or more")
    own = [record["captions"][:most] for record in records]
    owner = np.repeat(np.arange(len(records)), [len(captions) for captions in own])
    left = sum(len(record["captions"]) for record in records) - len(owner)
    return Queries([text for captions in own for text in captions], owner, left)


def repeated(queries: Queries) -> int:
    """How many captions say, word for word, what a caption of another image says: no score can tell these apart."""
    images: dict[str, set[int]] = {}
    for text, image in zip(queries.texts, queries.image_of_caption.tolist(), strict=True):
        images.setdefault(text, set()).add(image)
    return sum(len(images[text]) > 1 for text in queries.texts)


def told(scores: Mapping[str, float]) -> str:
    """The scores in one line."""
    i2t, t2i = ("/".join(f"{scores[f'{way}_R@{k}']:.1f}" for k in KS) for way in ("i2t", "t2i"))
    return f"R@1/5/10 image to text {i2t}, text to image {t2i}; mean {scores['r_mean']:.1f}"
