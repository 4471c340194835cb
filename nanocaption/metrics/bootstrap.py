"""How far a score, or the difference of two, depends on the images that happen to be in the set.

The bootstrap draws images with replacement and computes every corpus score anew from the sums over the images
drawn (Koehn, 2004, "Statistical significance tests for machine translation evaluation"). The document
frequencies of CIDEr-D stay those of the whole set: they belong to the metric, not to the sample. What the
interval does not hold: other seeds of the training, other annotators.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nanocaption.metrics.scores import Measured, columns_of, names_of, scores_of

RESAMPLES = 1000
SHUFFLES = 10_000
LEVEL = 0.95
_ROWS = 2_000_000  # resamples * images held at once: 16 MB


class Difference(NamedTuple):
    first: float
    second: float
    difference: float  # second - first
    low: float  # its interval
    high: float
    p: float  # how often chance alone makes a difference as large


def intervals(
    measured: Measured, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """{score: (low, high)}: percentile bootstrap intervals over images, at `level`.

    The same images and seed give the same interval. With a single image every resample is that image, so low
    and high are the score itself: no interval at all. Raises ValueError for fewer than 1 resample.
    """
    columns, names = columns_of(measured), names_of(measured)
    drawn = _resampled(columns, resamples, seed)
    return dict(zip(names, _percentiles(scores_of(drawn, len(columns), names), level), strict=True))


def mean_intervals(
    columns: Mapping[str, Sequence[float]], owners: Sequence[str], resamples: int = RESAMPLES, seed: int = 0,
    level: float = LEVEL,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """{name: (low, high)} of the means of these columns, over pictures: several values of one are drawn together.

    owners: the picture of each value. One of the values counts as much as another one, whichever its picture.
    """
    places = {owner: place for place, owner in enumerate(dict.fromkeys(owners))}
    rows = np.array([places[owner] for owner in owners])
    sums = [np.bincount(rows, weights=values, minlength=len(places)) for values in columns.values()]
    drawn = _resampled(np.stack([*sums, np.bincount(rows, minlength=len(places))], axis=1), resamples, seed)
    return dict(zip(columns, _percentiles(drawn[:, :-1] / drawn[:, -1:], level), strict=True))


def compare(
    first: Measured, second: Measured, resamples: int = RESAMPLES, shuffles: int = SHUFFLES, seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Difference]:  # fmt: skip
    """{score: Difference}: second minus first on the same images, paired.

    The interval comes from a bootstrap that draws the same images for both; p from approximate randomisation
    (Noreen, 1989): the two captions of each image change sides or not, by a coin, `shuffles` times, and p is
    (1 + shuffles with a difference at least as large) / (1 + shuffles), two-sided. Every score is a test of its own:
    six scores, six chances to find a small p. Raises ValueError if the images or their order differ.
    """
    if first.images != second.images:
        raise ValueError("the two sets of captions are for different images, or in another order: pair them first")
    names = names_of(first)
    if names != names_of(second):
        raise ValueError("METEOR or SPICE is there for one of the two sets of captions only: measure both alike")
    a, b = columns_of(first), columns_of(second)
    count, width = a.shape
    # One draw for both: the columns of the two stand side by side.
    drawn = _resampled(np.hstack((a, b)), resamples, seed)
    spread = _percentiles(scores_of(drawn[:, width:], count, names) - scores_of(drawn[:, :width], count, names), level)
    points = [scores_of(columns.sum(0, keepdims=True), count, names)[0] for columns in (a, b)]
    observed = points[1] - points[0]
    moved = _in_parts(lambda rng, rows: rng.integers(0, 2, (rows, count), np.uint8) @ (b - a), shuffles, count, seed)
    chance = scores_of(b.sum(0) - moved, count, names) - scores_of(a.sum(0) + moved, count, names)
    # Sums in another order differ in their last digits.
    p = (1 + (np.abs(chance) >= np.abs(observed) - 1e-12).sum(0)) / (1 + shuffles)
    return {
        name: Difference(float(points[0][i]), float(points[1][i]), float(observed[i]), *spread[i], float(p[i]))
        for i, name in enumerate(names)
    }


def differences_table(differences: dict[str, Difference]) -> str:
    """Lines of text, scores times 100 as the field prints them."""
    lines = [f"{'':10}{'first':>8}{'second':>8}{'difference':>12}   {'95 % interval':<18}{'p':>7}"]
    for name, row in differences.items():
        first, second, difference, low, high = (100 * value for value in row[:5])
        spread = f"{low:+.1f} to {high:+.1f}"
        lines.append(f"{name:10}{first:8.1f}{second:8.1f}{difference:+12.1f}   {spread:<18}{row.p:7.4f}")
    note = "Paired over the same images: bootstrap interval, approximate randomisation p. Not held: training seeds."
    return "\n".join([*lines, note])


def _resampled(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, columns): the sums over as many images as there are, drawn with replacement."""
    count = len(columns)

    def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
        drawn = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        return times.astype(np.float64) @ columns

    return _in_parts(draw, resamples, count, seed)


def _in_parts(draw: Callable[[np.random.Generator, int], np.ndarray], rows: int, images: int, seed: int) -> np.ndarray:
    """draw(generator, number of rows) until there are `rows`, so that the memory does not grow with the set."""
    if rows < 1:
        raise ValueError(f"resamples = {rows}, but an interval needs at least 1, and 1000 to be steady")
    rng, size = np.random.default_rng(seed), max(1, _ROWS // images)
    return np.concatenate([draw(rng, min(size, rows - start)) for start in range(0, rows, size)])


def _percentiles(values: np.ndarray, level: float) -> list[tuple[float, float]]:
    tail = 50 * (1 - level)
    low, high = np.percentile(values, (tail, 100 - tail), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
