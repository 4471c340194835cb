"""N-gram tables over integer word ids: the one join from which BLEU and CIDEr-D both fall out.

N-grams get ids by ranking pairs: an n-gram is the pair (id of its first n-1 words, last word), so that every
order costs one sort of int64 keys and no tuple or string is ever built. References are indexed once per
order, sorted by (n-gram, image, caption); candidates find their rows by binary search.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

MAX_ORDER = 4
_SHIFT = 32  # key = (id of the first n-1 words << _SHIFT) | id of the last word


class OrderTable(NamedTuple):
    """All n-grams of one order in the references. One *pair* is an n-gram in a caption, one *group* an n-gram
    in an image; pairs are sorted by (n-gram, caption), so the pairs of a group are neighbours."""

    keys: np.ndarray  # (n-grams,) int64, sorted; the position of a key is the id of its n-gram
    idf: np.ndarray  # (n-grams,) float64: ln(images) - ln(images whose references contain it)
    group_keys: np.ndarray  # (groups,) int64, sorted: id * images + image
    group_starts: np.ndarray  # (groups + 1,) first pair of each group
    group_max: np.ndarray  # (groups,) largest count of the n-gram in one reference of the image
    pair_caption: np.ndarray  # (pairs,) caption index
    pair_count: np.ndarray  # (pairs,) float64: count of the n-gram in the caption
    norms: np.ndarray  # (captions,) float64: length of the caption's tf-idf vector


class ReferenceIndex(NamedTuple):
    vocabulary: dict[str, int]
    first_caption: np.ndarray  # (images + 1,) index of each image's first caption
    lengths: np.ndarray  # (captions,) number of words
    orders: tuple[OrderTable, ...]


class Overlap(NamedTuple):
    """What each candidate shares with the references of its image."""

    matches: np.ndarray  # (candidates, 4) float64: n-grams found, clipped by the largest count in a reference
    lengths: np.ndarray  # (candidates,) int64: words
    closest: np.ndarray  # (candidates,) int64: length of the reference closest in length, shorter on a tie
    cider: np.ndarray  # (candidates,) float64: CIDEr-D


def index_references(captions: Sequence[str], first_caption: np.ndarray) -> ReferenceIndex:
    """Index tokenised `captions`; image i has those from `first_caption[i]` up to `first_caption[i + 1]`."""
    words = [caption.split() for caption in captions]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    ids = np.fromiter(map(vocabulary.__getitem__, chain.from_iterable(words)), np.int64, int(lengths.sum()))
    images = len(first_caption) - 1
    image_of = np.repeat(np.arange(images), np.diff(first_caption))
    caption_at = np.repeat(np.arange(len(words)), lengths)
    starts, prefix = np.arange(len(ids)), None
    orders = []
    for order in range(1, MAX_ORDER + 1):
        starts, prefix, keys = _keys(ids, caption_at, starts, prefix, order)
        table, prefix = _order_table(keys, caption_at[starts], image_of, images)
        orders.append(table)
    return ReferenceIndex(dict(vocabulary), first_caption, lengths, tuple(orders))


def _keys(
    ids: np.ndarray, caption_at: np.ndarray, starts: np.ndarray, prefix: np.ndarray | None, order: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Where the n-grams of this order start, the ids of their first n-1 words, and their keys."""
    if order == 1:
        return starts, None, ids
    inside = starts + (order - 1) < len(ids)
    starts, prefix = starts[inside], prefix[inside]
    inside = caption_at[starts] == caption_at[starts + (order - 1)]
    starts, prefix = starts[inside], prefix[inside]
    return starts, prefix, (prefix << _SHIFT) | ids[starts + (order - 1)]


def _order_table(
    keys: np.ndarray, captions: np.ndarray, image_of: np.ndarray, images: int
) -> tuple[OrderTable, np.ndarray]:
    """The table of one order, and the n-gram id at each position."""
    by_key = np.argsort(keys, kind="stable")  # positions come in caption order, and so stay within a key
    keys, caption = keys[by_key], captions[by_key]
    image = image_of[caption]
    new_gram = _changes(keys)
    new_group = new_gram | _changes(image)
    new_pair = new_gram | _changes(caption)
    gram = np.cumsum(new_gram) - 1
    ids = np.empty_like(gram)
    ids[by_key] = gram
    pair_start = np.flatnonzero(new_pair)
    pair_count = np.diff(pair_start, append=len(keys)).astype(np.float64)
    group_start = np.flatnonzero(new_group)
    group_starts = np.append(np.searchsorted(pair_start, group_start), len(pair_start))
    documents = np.bincount(gram[group_start]) if len(keys) else np.zeros(0)
    idf = np.log(float(images)) - np.log(np.maximum(1.0, documents))
    pair_caption, weight = caption[pair_start], pair_count * idf[gram[pair_start]]
    table = OrderTable(
        keys=keys[new_gram],
        idf=idf,
        group_keys=gram[group_start] * images + image[group_start],
        group_starts=group_starts,
        group_max=np.maximum.reduceat(pair_count, group_starts[:-1]) if len(keys) else pair_count,
        pair_caption=pair_caption,
        pair_count=pair_count,
        norms=np.sqrt(_sums(pair_caption, weight * weight, len(image_of))),
    )
    return table, ids


def _changes(values: np.ndarray) -> np.ndarray:
    """True where a value differs from the one before it, and at the first."""
    return np.concatenate((np.ones(min(1, len(values)), bool), values[1:] != values[:-1]))


def _sums(bins: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    # Of nothing, bincount makes integers.
    return np.bincount(bins, weights, size).astype(np.float64, copy=False)


def overlap_of(index: ReferenceIndex, captions: Sequence[str], images: np.ndarray) -> Overlap:
    """Compare tokenised `captions` with the references of `images` (image index of each; may repeat)."""
    words = [caption.split() for caption in captions]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ids = _word_ids(index.vocabulary, words, int(lengths.sum()))
    caption_at = np.repeat(np.arange(len(words)), lengths)
    # One cell per (candidate, reference of its image).
    first = index.first_caption[images]
    count = index.first_caption[images + 1] - first
    cell_start = np.cumsum(count) - count
    cell_caption = np.repeat(first - cell_start, count) + np.arange(count.sum())
    cell_candidate = np.repeat(np.arange(len(words)), count)
    difference = np.maximum(lengths - 1, 0)[cell_candidate] - np.maximum(index.lengths[cell_caption] - 1, 0)
    penalty = np.exp(-(difference.astype(np.float64) ** 2) / (2 * 6.0**2))
    similarity = np.zeros(len(cell_caption))
    cells = (cell_start - first, len(cell_caption))
    matches = np.zeros((len(words), MAX_ORDER))
    starts, prefix = np.arange(len(ids)), None
    for order, table in enumerate(index.orders, start=1):
        starts, prefix, keys = _keys(ids, caption_at, starts, prefix, order)
        prefix = _ids_of(table.keys, keys)
        candidate, gram, tf = _counted(caption_at[starts], prefix, len(words))
        counts = (candidate, gram, tf)
        products, matches[:, order - 1] = _join(table, counts, images, len(index.first_caption) - 1, cells)
        known = gram < len(table.keys)
        idf = np.full(len(gram), np.log(float(len(index.first_caption) - 1)))  # strangers are in no image
        idf[known] = table.idf[gram[known]]
        norms = np.sqrt(_sums(candidate, (tf * idf) ** 2, len(words)))
        both = norms[cell_candidate] * table.norms[cell_caption]
        similarity += np.divide(products, both, out=products, where=both != 0)
    cider = _sums(cell_candidate, similarity * penalty, len(words)) / MAX_ORDER / count * 10.0
    closest = _closest(index, cell_start, cell_caption, lengths[cell_candidate])
    return Overlap(matches, lengths, closest, cider)


def _word_ids(vocabulary: dict[str, int], words: list[list[str]], total: int) -> np.ndarray:
    ids = list(map(vocabulary.get, chain.from_iterable(words)))
    if None in ids:
        fresh: dict[str, int] = {}
        ids = [
            fresh.setdefault(word, len(vocabulary) + len(fresh)) if known is None else known
            for known, word in zip(ids, chain.from_iterable(words), strict=True)
        ]
    return np.array(ids, np.int64) if total else np.zeros(0, np.int64)


def _ids_of(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The n-gram ids of `keys`: their place in the sorted `table`; strangers get ids behind it."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    place = np.searchsorted(table, distinct)  # in sorted order the search stays in the cache
    stranger = place == len(table)
    stranger[~stranger] = table[place[~stranger]] != distinct[~stranger]
    place[stranger] = len(table) + np.arange(np.count_nonzero(stranger))
    return place[inverse]


def _counted(
    candidate: np.ndarray, gram: np.ndarray, candidates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct (candidate, n-gram) and how often each occurs, sorted by n-gram as the tables are."""
    keys, counts = np.unique(gram * candidates + candidate, return_counts=True)
    return keys % candidates, keys // candidates, counts.astype(np.float64)


def _join(
    table: OrderTable,
    counts: tuple[np.ndarray, np.ndarray, np.ndarray],
    images: np.ndarray,
    image_count: int,
    cells: tuple[np.ndarray, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of min(h, r) * r * idf^2 for each cell, and the clipped matches of each candidate.

    `counts` are candidate, n-gram and count of each distinct pair; `cells` the number to add to a caption's
    index to get its cell, for each candidate, and how many cells there are.
    """
    known = counts[1] < len(table.keys)
    candidate, gram, tf = (values[known] for values in counts)
    wanted = gram * image_count + images[candidate]
    group = np.searchsorted(table.group_keys, wanted)
    found = group < len(table.group_keys)
    found[found] = table.group_keys[group[found]] == wanted[found]
    candidate, gram, tf, group = candidate[found], gram[found], tf[found], group[found]
    matches = _sums(candidate, np.minimum(tf, table.group_max[group]), len(images))
    first = table.group_starts[group]
    size = table.group_starts[group + 1] - first
    pair = np.repeat(first - (np.cumsum(size) - size), size) + np.arange(size.sum())
    count = table.pair_count[pair]
    weight = np.minimum(np.repeat(tf, size), count) * count * np.repeat(table.idf[gram] ** 2, size)
    cell = table.pair_caption[pair] + np.repeat(cells[0][candidate], size)
    return _sums(cell, weight, cells[1]), matches


def _closest(
    index: ReferenceIndex, cell_start: np.ndarray, cell_caption: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Length of the reference closest in length to each candidate; on a tie the shorter."""
    reference = index.lengths[cell_caption]
    if not len(reference):
        return reference
    # One number orders first by distance, then by length.
    scale = int(max(reference.max(), lengths.max())) + 1
    return np.minimum.reduceat(np.abs(reference - lengths) * scale + reference, cell_start) % scale
