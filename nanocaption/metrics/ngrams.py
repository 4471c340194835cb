"""N-gram tables over integer word ids: the one join from which BLEU and CIDEr-D both fall out.

N-grams get ids by ranking pairs: an n-gram is the pair (id of its first n-1 words, last word), so that every
order costs one sort of int64 keys and no tuple or string is ever built. The references are one table over all
orders, sorted by (image, n-gram, caption): a few candidates touch only the rows of their own images, and find
them by binary search.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

MAX_ORDER = 4
_END = np.array([np.iinfo(np.int64).max])
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # an odd number near 2**64 over the golden ratio: spreads keys over all bits
_SHIFT = 32  # key = (id of the first n-1 words << _SHIFT) | id of the last word


class WordIds(dict):
    """Word -> id; -1 for a stranger. Three times as fast over many words as dict.get with a default."""

    def __missing__(self, word: str) -> int:
        return -1


class ReferenceIndex(NamedTuple):
    """All n-grams of the references. One *pair* is an n-gram in a caption, one *group* an n-gram in an image;
    the pairs of a group are neighbours. G n-grams, those of one order after those of the order before."""

    vocabulary: "WordIds"
    first_caption: np.ndarray  # (images + 1,) index of each image's first caption
    lengths: np.ndarray  # (captions,) number of words
    keys: tuple[np.ndarray, ...]  # per order int64, sorted; the position of a key is its n-gram's id in its order.
    # Like group_keys closed by _END, so that a search always ends on a key.
    slots: tuple[np.ndarray, ...]  # per order int32, see _slots_of
    first_gram: np.ndarray  # (5,) id of the first n-gram of each order; the last one is G
    idf: np.ndarray  # (G,) float64: ln(images) - ln(images whose references contain it)
    group_keys: np.ndarray  # (groups,) int64, sorted: image * G + id
    first_group: np.ndarray  # (images + 1,) first group of each image
    group_starts: np.ndarray  # (groups + 1,) first pair of each group
    group_max: np.ndarray  # (groups,) largest count of the n-gram in one reference of the image
    pair_caption: np.ndarray  # (pairs,) caption index
    pair_count: np.ndarray  # (pairs,) float64: count of the n-gram in the caption
    norms: np.ndarray  # (captions, 4) float64: length of the caption's tf-idf vector of each order


class Overlap(NamedTuple):
    """What each candidate shares with the references of its image."""

    matches: np.ndarray  # (candidates, 4) float64: n-grams found, clipped by the largest count in a reference
    lengths: np.ndarray  # (candidates,) int64: words
    cider: np.ndarray  # (candidates,) float64: CIDEr-D


def index_references(captions: Sequence[str], first_caption: np.ndarray) -> ReferenceIndex:
    """Index tokenised `captions`; image i has those from `first_caption[i]` up to `first_caption[i + 1]`."""
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    words, lengths = _split(captions)
    ids = np.fromiter(map(vocabulary.__getitem__, chain.from_iterable(words)), np.int64, int(lengths.sum()))
    tables: list[np.ndarray] = []

    def ranked(order: int, keys: np.ndarray) -> np.ndarray:
        table, gram = np.unique(keys, return_inverse=True)
        tables.append(np.concatenate((table, _END)))
        return gram

    captions_of, grams = _grams(ids, lengths, ranked)
    first_gram = np.cumsum([0, *(len(table) - 1 for table in tables)])
    gram = np.concatenate([ids + first for ids, first in zip(grams, first_gram[:-1].tolist(), strict=True)])
    pairs = _pairs(gram, np.concatenate(captions_of), first_caption, int(first_gram[-1]))
    return ReferenceIndex(WordIds(vocabulary), first_caption, lengths, tuple(tables), tuple(map(_slots_of, tables)),
                          first_gram, *_weighted(*pairs, first_caption, first_gram))  # fmt: skip


def _split(captions: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
    """The words of each caption, and their number: (captions,) int64."""
    words = [caption.split() for caption in captions]
    return words, np.fromiter(map(len, words), np.int64, len(words))


def _grams(
    ids: np.ndarray, lengths: np.ndarray, rank: Callable[[int, np.ndarray], np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The caption and the id of every n-gram, one array for each order, from the ids of all words in a row.

    rank(order - 1, keys) gives the ids; a key is the word's id or the pair of (id of the first n-1 words, last word).
    """
    caption_at = np.append(np.repeat(np.arange(len(lengths)), lengths), -1)
    starts, keys = np.arange(len(ids)), ids
    captions: list[np.ndarray] = []
    grams: list[np.ndarray] = []
    for order in range(MAX_ORDER):
        if order:
            longer = caption_at[starts] == caption_at[starts + order]
            starts = starts[longer]
            keys = (grams[-1][longer] << _SHIFT) | ids[starts + order]
        captions.append(caption_at[starts])
        grams.append(rank(order, keys))
    return captions, grams


def _slots_of(table: np.ndarray) -> np.ndarray:
    """A hash table of the keys before _END: in each slot the place of its key, or -1; where several keys belong into
    it, -2 - the place of one of them. At most a quarter is taken, so that one look mostly settles where a key is."""
    slots = np.full(4 << len(table).bit_length(), -1, np.int32)
    slot, place = _slot(table[:-1], slots), np.arange(len(table) - 1, dtype=np.int32)
    slots[slot] = place
    shared = slot[slots[slot] != place]
    slots[shared] = np.minimum(slots[shared], -2 - slots[shared])
    return slots


def _slot(keys: np.ndarray, slots: np.ndarray) -> np.ndarray:
    return ((keys.view(np.uint64) * _SPREAD) >> np.uint64(65 - len(slots).bit_length())).view(np.int64)


def _pairs(
    gram: np.ndarray, caption: np.ndarray, first_caption: np.ndarray, grams: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct (image, n-gram, caption), sorted: (image * grams + gram), caption and count of each."""
    counts = np.diff(first_caption)
    image = np.repeat(np.arange(len(counts)), counts)[caption]
    most = int(counts.max())
    keys, times = np.unique((image * grams + gram) * most + (caption - first_caption[image]), return_counts=True)
    group, place = np.divmod(keys, most)
    return group, first_caption[group // max(1, grams)] + place, times.astype(np.float64)


def _weighted(
    group: np.ndarray, caption: np.ndarray, count: np.ndarray, first_caption: np.ndarray, first_gram: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The fields of ReferenceIndex from `idf` on."""
    images, grams = len(first_caption) - 1, int(first_gram[-1])
    keys, start = np.unique(group, return_index=True)
    gram = group % max(1, grams)
    documents = np.bincount(gram[start], minlength=grams)
    idf = np.log(float(images)) - np.log(np.maximum(1.0, documents))
    order = np.repeat(np.arange(MAX_ORDER), np.diff(first_gram))
    weight = count * idf[gram]
    norms = np.sqrt(_sums(caption * MAX_ORDER + order[gram], weight * weight, int(first_caption[-1]) * MAX_ORDER))
    largest = np.maximum.reduceat(count, start) if len(start) else count
    first_group = np.searchsorted(keys, np.arange(images + 1) * grams)
    keys, starts = np.concatenate((keys, _END)), np.append(start, len(group))
    return idf, keys, first_group, starts, largest, caption, count, norms.reshape(-1, MAX_ORDER)


def _runs(first: np.ndarray, size: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (size[0] numbers), then those from first[1], and so on."""
    return np.repeat(first - (np.cumsum(size) - size), size) + np.arange(size.sum())


def _sums(bins: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    # Of nothing, bincount makes integers.
    return np.bincount(bins, weights, size).astype(np.float64, copy=False)


def overlap_of(index: ReferenceIndex, captions: Sequence[str], images: np.ndarray) -> Overlap:
    """Compare tokenised `captions` with the references of `images` (image index of each; may repeat)."""
    words, lengths = _split(captions)
    # One cell per (candidate, reference of its image).
    first = index.first_caption[images]
    count = index.first_caption[images + 1] - first
    cell_start = np.cumsum(count) - count
    cell_caption = _runs(first, count)
    cell_candidate = np.repeat(np.arange(len(words)), count)
    difference = np.maximum(lengths - 1, 0)[cell_candidate] - np.maximum(index.lengths[cell_caption] - 1, 0)
    penalty = np.exp(-(difference.astype(np.float64) ** 2) / (2 * 6.0**2))
    candidate, order, gram, tf = counted(index, words, lengths)
    known = np.flatnonzero(gram < np.diff(index.first_gram)[order])
    gram = gram[known] + index.first_gram[order[known]]
    idf = np.full(len(tf), np.log(float(len(index.first_caption) - 1)))  # strangers are in no image
    idf[known] = index.idf[gram]
    row = candidate * MAX_ORDER + order
    norms = np.sqrt(_sums(row, (tf * idf) ** 2, len(words) * MAX_ORDER)).reshape(-1, MAX_ORDER)
    group, hit = _find_groups(index, images, candidate[known], gram)
    entries = tuple(values[known[hit]] for values in (candidate, order, tf, idf))
    products, matches = _join(index, group[hit], entries, (cell_start - first, len(cell_caption)))
    both = norms.take(cell_candidate, axis=0) * index.norms.take(cell_caption, axis=0)
    similarity = np.divide(products, both, out=products, where=both != 0).sum(1)
    cider = _sums(cell_candidate, similarity * penalty, len(words)) / MAX_ORDER / count * 10.0
    return Overlap(matches, lengths, cider)


def counted(
    index: ReferenceIndex, words: list[list[str]], lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct (candidate, order, n-gram), sorted: candidate, order - 1, id within the order, and count.

    The ids of n-grams that no reference has lie behind those of the references.
    """
    ids = _word_ids(index.vocabulary, words, int(lengths.sum()))
    # For single words the key is the id.
    captions, grams = _grams(ids, lengths, lambda order, keys: _ids_of(index, order, keys) if order else keys)
    gram = np.concatenate(grams)
    places = np.concatenate([caption << 2 | order for order, caption in enumerate(captions)])  # four orders: two bits
    bits = int(gram.max(initial=0)).bit_length()
    keys, counts = np.unique(places << bits | gram, return_counts=True)
    place = keys >> bits
    return place >> 2, place & 3, keys & ((1 << bits) - 1), counts.astype(np.float64)


def _word_ids(vocabulary: WordIds, words: list[list[str]], total: int) -> np.ndarray:
    ids = np.fromiter(map(vocabulary.__getitem__, chain.from_iterable(words)), np.int64, total)
    strangers = np.flatnonzero(ids < 0)
    if len(strangers):
        flat = list(chain.from_iterable(words))
        fresh: dict[str, int] = {}
        for place in strangers.tolist():
            ids[place] = fresh.setdefault(flat[place], len(vocabulary) + len(fresh))
    return ids


def _ids_of(index: ReferenceIndex, order: int, keys: np.ndarray) -> np.ndarray:
    """The n-gram ids of `keys`: their place in the sorted table of that order; strangers get ids behind it.

    A binary search would miss the cache at nearly every step; it is left for keys that share their slot with another.
    """
    table, slots = index.keys[order], index.slots[order]
    place = slots[_slot(keys, slots)].astype(np.int64)
    shared = place < -1
    place = np.where(shared, -2 - place, place)
    search = np.flatnonzero(shared & (table[place] != keys))
    place[search] = np.searchsorted(table, keys[search])
    stranger = np.flatnonzero(table[place] != keys)  # an empty slot, -1, leads to _END
    place[stranger] = np.unique(keys[stranger], return_inverse=True)[1] + (len(table) - 1)
    return place


def _find_groups(
    index: ReferenceIndex, images: np.ndarray, candidate: np.ndarray, gram: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The group of each (candidate, n-gram) in the image of that candidate, and which of them are there."""
    distinct = np.unique(images)
    first, size = index.first_group[distinct], np.diff(index.first_group)[distinct]
    # The groups of these images alone fit into the cache.
    rows = _runs(first, size)
    keys = np.append(index.group_keys[rows], _END)
    wanted = images[candidate] * len(index.idf) + gram
    place = np.searchsorted(keys, wanted)
    there = np.flatnonzero(keys[place] == wanted)
    place[there] = rows[place[there]]
    return place, there


def _join(
    index: ReferenceIndex, group: np.ndarray, entries: tuple[np.ndarray, ...], cells: tuple[np.ndarray, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of min(h, r) * r * idf^2: (cells, 4), and the clipped matches: (candidates, 4).

    `group` is the group of each (candidate, n-gram) that is in a reference, `entries` are its candidate, order - 1,
    count and idf; `cells` the number to add to a caption's index to get its cell, for each candidate, and how many
    cells there are.
    """
    candidate, order, tf, idf = entries
    clipped = np.minimum(tf, index.group_max[group])
    matches = _sums(candidate * MAX_ORDER + order, clipped, len(cells[0]) * MAX_ORDER)
    first = index.group_starts[group]
    size = index.group_starts[group + 1] - first
    pair = _runs(first, size)
    count = index.pair_count[pair]
    weight = np.minimum(np.repeat(tf, size), count) * count * np.repeat(idf**2, size)
    cell = index.pair_caption[pair] + np.repeat(cells[0][candidate], size)
    products = _sums(cell * MAX_ORDER + np.repeat(order, size), weight, cells[1] * MAX_ORDER)
    return products.reshape(-1, MAX_ORDER), matches.reshape(-1, MAX_ORDER)


def closest_lengths(index: ReferenceIndex, lengths: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
    """The length of each candidate's closest reference in length, on a tie the shorter: (candidates,).

    lengths: of the candidates. images: the image index of each; None: one candidate for each image, in their order.
    """
    images = np.arange(len(lengths)) if images is None else images
    first = index.first_caption[images]
    count = index.first_caption[images + 1] - first
    own = index.lengths[_runs(first, count)]
    # One number orders first by distance, then by length.
    scale = int(max(index.lengths.max(), lengths.max())) + 1
    return np.minimum.reduceat(np.abs(own - np.repeat(lengths, count)) * scale + own, np.cumsum(count) - count) % scale
