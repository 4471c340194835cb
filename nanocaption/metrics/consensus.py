"""Minimum Bayes risk: which of several captions agrees most with others of the same picture, measured by CIDEr-D.

The judges stand where references would (arXiv 1505.04467), the document frequencies are those of real references, of
the training set: n-grams that all captions share then weigh little.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from nanocaption.metrics.ngrams import MAX_ORDER, counted
from nanocaption.metrics.scores import References


def consensus(
    training: References, candidates: Sequence[Sequence[str]], judges: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Per image (its candidates,) float64: each one's mean CIDEr-D to the judges, captions as written.

    training: whose document frequencies weigh the n-grams, and whose tokenizer cuts the captions. Up to 1e-9 equal to
    `cider_rewards` where the judges of an image are its references in `training`. Raises ValueError where an image has
    no judge.
    """
    if bare := sum(not texts for texts in judges):
        raise ValueError(f"{bare} of {len(judges)} images have no caption to judge by")
    texts = [text for pair in zip(candidates, judges, strict=True) for own in pair for text in own]
    # A caption's tokens can depend on the caption after it; with a fixed one behind each, images stay independent.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd characters: told where captions are scored
        tokens = training.tokenize([each for text in texts for each in (text, "A")])[::2]
    words = [text.split() for text in tokens]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    index = training.ngrams
    caption, order, gram, count = counted(index, words, lengths)
    known = gram < np.diff(index.first_gram)[order]
    weight = np.full(len(gram), np.log(float(len(index.first_caption) - 1)))  # of an n-gram of no training picture
    weight[known] = index.idf[gram[known] + index.first_gram[order[known]]]
    place = np.searchsorted(caption, np.arange(len(words) + 1))  # where each caption's n-grams begin
    found, start = [], 0
    for own, its in zip(candidates, judges, strict=True):
        middle, end = start + len(own), start + len(own) + len(its)
        rows = slice(place[start], place[end])
        vectors = _vectors(caption[rows] - start, order[rows], gram[rows], count[rows] * weight[rows], end - start)
        # Rounded: sums in another order, beside other images, must not decide between equals.
        found.append(_similarity(vectors, lengths[start:end], middle - start).mean(1).round(9))
        start = end
    return found


def _vectors(caption: np.ndarray, order: np.ndarray, gram: np.ndarray, weight: np.ndarray, captions: int) -> np.ndarray:
    """(MAX_ORDER, captions, n-grams of these captions): the tf-idf vector of each."""
    grams, column = np.unique(gram << 2 | order, return_inverse=True)
    vectors = np.zeros((MAX_ORDER, captions, len(grams)))
    vectors[order, caption, column] = weight
    return vectors


def _similarity(vectors: np.ndarray, lengths: np.ndarray, candidates: int) -> np.ndarray:
    """CIDEr-D of the first `candidates` captions against each of the others, (candidates, others)."""
    own, other = vectors[:, :candidates], vectors[:, candidates:]
    clipped = (np.minimum(row[:, None], other) * other for row in own.swapaxes(0, 1))
    products = np.stack([each.sum(2) for each in clipped], 1)  # (4, C, J)
    norms = np.linalg.norm(own, axis=2)[:, :, None] * np.linalg.norm(other, axis=2)[:, None]
    cosine = np.divide(products, norms, out=np.zeros_like(products), where=norms != 0).mean(0)
    pairs = np.maximum(lengths - 1, 0).astype(np.float64)  # the reference scorer takes the number of word pairs
    apart = pairs[:candidates, None] - pairs[candidates:]
    return 10.0 * cosine * np.exp(-(apart**2) / (2 * 6.0**2))
