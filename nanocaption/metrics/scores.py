"""BLEU-1 to 4, CIDEr-D and ROUGE-L of captions, as pycocoevalcap computes them."""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from nanocaption.metrics import java
from nanocaption.metrics.characters import without_spaces
from nanocaption.metrics.ngrams import MAX_ORDER, ReferenceIndex, closest_lengths, index_references, overlap_of
from nanocaption.metrics.ptb import Tokenize, ptb_tokenize

Id = Hashable
AnyId = TypeVar("AnyId", bound=Hashable)  # of arguments: a dict[str, ...] is no Mapping[Hashable, ...] to mypy
NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "CIDEr", "ROUGE_L")
ROUGE_BETA = 1.2
MANY_UNSPACED = 0.05  # share of the references from which they are warned of


class References(NamedTuple):
    """Reference captions made ready for repeated scoring; see `prepare_references`."""

    position: dict[Id, int]  # image id -> image index, in the order given
    ngrams: ReferenceIndex
    rouge_words: list[list[list[str]]]  # the words of each caption of each image
    tokenize: Tokenize


class Scores(NamedTuple):
    corpus: dict[str, float]
    per_image: dict[Id, dict[str, float]]


class Measured(NamedTuple):
    """What each of N images adds to the corpus scores; any corpus score is a function of sums over images."""

    images: list[Id]
    matches: np.ndarray  # (N, 4) float64: clipped n-gram matches
    guesses: np.ndarray  # (N, 4) int64: n-grams of the caption
    lengths: np.ndarray  # (N,) int64: words of the caption
    closest: np.ndarray  # (N,) int64: words of the reference closest in length
    cider: np.ndarray  # (N,) float64
    rouge: np.ndarray  # (N,) float64
    meteor: np.ndarray | None = None  # (N, 23) float64: java.meteor_statistics
    spice: np.ndarray | None = None  # (N,) float64: java.spice_scores


def score(
    references: Mapping[AnyId, Sequence[str]], candidates: Mapping[AnyId, str], tokenize: Tokenize = ptb_tokenize
) -> dict[str, float]:
    """Corpus scores of `candidates` {image: caption} against `references` {image: [captions]}, as written.

    Returns `Bleu_1` to `Bleu_4`, `CIDEr` and `ROUGE_L` as fractions, the values and names of pycocoevalcap.
    What is called CIDEr there and here is CIDEr-D, its document frequencies are those of the references
    given: numbers from different image sets do not compare, and with a single image CIDEr is 0 (warned of).
    An empty caption is legal; its CIDEr is 0, its BLEU 0 for any printed digit, its ROUGE_L 0 unless a
    reference is empty too. An empty reference counts as a caption of no words (warned of).

    `tokenize` takes one batch of captions; pass `list` for captions that are already tokenised. Raises ValueError if
    an image has a candidate but no references or the other way round, if a list of references is empty, or if a
    caption is not a string.
    """
    return score_prepared(prepare_references(references, tokenize), candidates).corpus


def score_per_image(
    references: Mapping[AnyId, Sequence[str]], candidates: Mapping[AnyId, str], tokenize: Tokenize = ptb_tokenize
) -> dict[Id, dict[str, float]]:
    """As `score`, for each image: {image: {"Bleu_1": ..., ...}}, in the order of `references`."""
    return score_prepared(prepare_references(references, tokenize), candidates).per_image


def prepare_references(references: Mapping[AnyId, Sequence[str]], tokenize: Tokenize = ptb_tokenize) -> References:
    """Tokenise and index references once, for `score_prepared` at every epoch or `cider_rewards` at every step.

    Raises ValueError as `score` does.
    """
    if not references:
        raise ValueError("references are empty: give at least one image with one caption")
    for image, texts in references.items():
        _require_references(image, texts)
    captions = [text for texts in references.values() for text in texts]
    counts = [len(texts) for texts in references.values()]
    tokens = tokenize(captions)
    _warn_of_no_words(captions, tokens, by_ptb=tokenize is ptb_tokenize)
    first = np.concatenate(([0], np.cumsum(counts)))
    words = [caption.split(" ") for caption in tokens]
    grouped = [words[start:end] for start, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True)]
    position: dict[Id, int] = {image: place for place, image in enumerate(references)}
    return References(position, index_references(tokens, first), grouped, tokenize)


def _require_references(image: Id, texts: object) -> None:
    """Raises ValueError, as `score` says, for what is no list of captions."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ValueError(
            f"references of image {image!r} must be a list of captions, got {type(texts).__name__}: {texts!r:.60}"
        )
    if not texts:
        raise ValueError(f"image {image!r} has an empty list of references: remove it or give it a caption")
    for text in texts:
        _require_text(text, "a reference", image)


def _warn_of_no_words(captions: Sequence[str], tokens: Sequence[str], by_ptb: bool) -> None:
    """Warn of references without a word, and where PTB finds one word in each (`by_ptb`: these are PTB's tokens)."""
    if blank := sum(not text.strip() for text in tokens):
        signs = " or signs alone" if blank > sum(not text.strip() for text in captions) else ""
        warnings.warn(
            f"{blank} of {len(captions)} references are empty texts{signs}, which count as captions of no words, as in "
            "pycocoevalcap: take them out",
            stacklevel=3,
        )
    if by_ptb and (share := without_spaces(captions) / len(captions)) > MANY_UNSPACED:
        warnings.warn(
            f"{share:.0%} of the references are written without spaces between words, and PTB takes each for one "
            "word: captions score 0 unless they are equal, so that these scores say nothing. Characters as words: "
            "nanocaption score or evaluate.py with --tokenize characters",
            stacklevel=3,
        )


def score_prepared(references: References, candidates: Mapping[AnyId, str]) -> Scores:
    """Scores of one caption for every image of `references`: over the corpus and image by image.

    Values as in `score`; the corpus CIDEr and ROUGE_L are the means over images, BLEU is not. Raises
    ValueError as `score` does.
    """
    return total(measure(references, candidates))


def measure(
    references: References, candidates: Mapping[AnyId, str], meteor: bool = False, spice: bool = False
) -> Measured:
    """What each image adds to the scores, in the order of `references`: for `total`, `intervals`, `compare`.

    METEOR and SPICE are computed by their Java programs, see metrics/java.py. Raises ValueError as `score` does,
    and where these programs are missing.
    """
    _require_same_images(references.position, candidates)
    for image, text in candidates.items():
        _require_text(text, "the caption", image)
    images = list(references.position)
    by_image: dict[Id, str] = dict(candidates.items())
    tokens = references.tokenize([by_image[image] for image in images])
    overlap = overlap_of(references.ngrams, tokens, np.arange(len(images)))
    if len(images) == 1:
        warnings.warn("CIDEr of a single image is always 0: its document frequencies need other images", stacklevel=3)
    rouge = [_rouge_l(caption.split(" "), words) for caption, words in zip(tokens, references.rouge_words, strict=True)]
    guesses = np.maximum(0, overlap.lengths[:, None] - np.arange(MAX_ORDER))
    java_texts = references.rouge_words if meteor or spice else []
    texts = [[" ".join(words) for words in captions] for captions in java_texts]
    return Measured(
        images, overlap.matches, guesses, overlap.lengths, closest_lengths(references.ngrams, overlap.lengths),
        overlap.cider, np.array(rouge),
        java.meteor_statistics(texts, tokens) if meteor else None,
        java.spice_scores(texts, tokens) if spice else None,
    )  # fmt: skip


def names_of(measured: Measured) -> list[str]:
    return [*NAMES, *["METEOR"] * (measured.meteor is not None), *["SPICE"] * (measured.spice is not None)]


def total(measured: Measured) -> Scores:
    """The corpus scores and those of each image."""
    columns, names = columns_of(measured), names_of(measured)
    corpus = scores_of(columns.sum(0, keepdims=True), len(columns), names)[0].tolist()
    rows = zip(measured.images, scores_of(columns, 1, names).tolist(), strict=True)
    per_image = {image: dict(zip(names, row, strict=True)) for image, row in rows}
    return Scores(dict(zip(names, corpus, strict=True)), per_image)


def part_of(measured: Measured, places: Sequence[int]) -> Measured:
    """Some of the images; the document frequencies of their CIDEr stay those of all that were measured."""
    parts = [None if part is None else part[list(places)] for part in measured[1:]]
    return Measured([measured.images[place] for place in places], *parts)


def columns_of(measured: Measured) -> np.ndarray:
    """(images, 12 or more) float64: everything whose sums over images make the corpus scores."""
    return np.column_stack([part for part in measured[1:] if part is not None]).astype(np.float64)


def scores_of(sums: np.ndarray, images: int, names: Sequence[str]) -> np.ndarray:
    """Rows of sums over so many images each -> (rows, names) scores in the order of names_of."""
    bleu = bleu_scores(sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9])
    scores = [bleu, sums[:, 10:12] / images]
    if "METEOR" in names:
        scores.append(java.meteor_scores(sums[:, 12 : 12 + java.METEOR_COLUMNS]))
    if "SPICE" in names:
        scores.append(sums[:, -1] / images)
    return np.column_stack(scores)


def cider_rewards(references: References, images: Sequence[Id], captions: Sequence[str]) -> np.ndarray:
    """CIDEr-D of each caption against the references of its image: (captions,) float64.

    `images` names the image of each caption; images may repeat (several samples each) and need not be all.
    The document frequencies are those of all prepared references. Raises ValueError for an image without
    references, lists of different lengths, or a caption that is no string.
    """
    places = _places_of(references, images, captions)
    return overlap_of(references.ngrams, references.tokenize(list(captions)), places).cider


def bleu_rewards(references: References, images: Sequence[Id], captions: Sequence[str]) -> np.ndarray:
    """BLEU-4 of each caption by itself, smoothed: (captions,) float64; arguments and errors as of `cider_rewards`.

    Matches and guesses of 2 to 4 words count one more than there are (Lin & Och 2004): a single caption mostly shares
    no four words with its references, and its BLEU-4 without that is 0.
    """
    places = _places_of(references, images, captions)
    overlap = overlap_of(references.ngrams, references.tokenize(list(captions)), places)
    more = np.arange(MAX_ORDER) > 0
    guesses = np.maximum(0, overlap.lengths[:, None] - np.arange(MAX_ORDER)) + more
    closest = closest_lengths(references.ngrams, overlap.lengths, places)
    return bleu_scores(overlap.matches + more, guesses, overlap.lengths, closest)[:, -1]


def _places_of(references: References, images: Sequence[Id], captions: Sequence[str]) -> np.ndarray:
    """The index (captions,) of the image of each caption."""
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images for {len(captions)} captions: give one image id per caption")
    try:
        return np.fromiter(map(references.position.__getitem__, images), np.int64, len(images))
    except KeyError as error:
        raise ValueError(f"image {error.args[0]!r} has no references: prepare them with the others") from None


def leave_one_out(references: Mapping[AnyId, Sequence[str]], tokenize: Tokenize = ptb_tokenize) -> dict[str, float]:
    """How well people agree: each image's i-th caption scored against its other captions, mean over i.

    i runs up to the smallest number of captions an image has; the document frequencies of CIDEr come from the
    references that remain. Each round equals `score(remaining, i-th captions)`. Raises ValueError if an image
    has fewer than two captions.
    """
    for image, texts in references.items():
        if len(texts) < 2:
            raise ValueError(f"image {image!r} has {len(texts)} caption(s): leaving one out takes at least two")
    rounds = min(map(len, references.values()), default=0)
    if rounds == 0:
        raise ValueError("references are empty: give at least one image with two captions")
    results = [
        score({image: [*texts[:i], *texts[i + 1 :]] for image, texts in references.items()},
              {image: texts[i] for image, texts in references.items()}, tokenize)
        for i in range(rounds)
    ]  # fmt: skip
    return {name: sum(result[name] for result in results) / rounds for name in NAMES}


def bleu_scores(matches: np.ndarray, guesses: np.ndarray, lengths: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """BLEU-1 to 4 for each row: (rows, 4) clipped matches and guesses, (rows,) candidate and reference lengths.

    The constants are those of coco-caption, whose digits they decide for very short texts; no other smoothing.
    """
    precision = np.cumprod((matches + 1e-15) / (guesses + 1e-9), axis=1)
    ratio = (lengths + 1e-15) / (closest + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return precision ** (1 / np.arange(1, MAX_ORDER + 1)) * brevity[:, None]


def _rouge_l(candidate: list[str], references: list[list[str]]) -> float:
    """ROUGE-L with the largest precision and the largest recall over references, each taken on its own.

    The longest common subsequence is found bit by bit: after each reference word the zeros of `rows` mark the
    lengths reached so far (Hyyro, 2004), 64 candidate words at the price of one.
    """
    bits: dict[str, int] = {}
    for place, word in enumerate(candidate):
        bits[word] = bits.get(word, 0) | 1 << place
    full = (1 << len(candidate)) - 1
    longest, recall = 0, 0.0
    for reference in references:
        rows = full
        for hits in filter(None, map(bits.get, reference)):
            hits &= rows
            rows = (rows + hits) | (rows - hits)
        common = len(candidate) - (rows & full).bit_count()
        if common:
            longest, recall = max(longest, common), max(recall, common / len(reference))
    if longest == 0:
        return 0.0
    precision = longest / len(candidate)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _require_text(text: object, what: str, image: Id) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{what} of image {image!r} must be a string, got {type(text).__name__}: {text!r:.60}")


def _require_same_images(position: dict[Id, int], candidates: Mapping[AnyId, str]) -> None:
    unknown = [image for image in candidates if image not in position]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(candidates)} predictions are for images without references, the first "
            f"{_few(unknown)}: check that both files are of one split and that ids have one type"
        )
    missing = [image for image in position if image not in candidates]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(position)} images have no prediction, the first {_few(missing)}: "
            "predict a caption for each, or remove their references"
        )


def _few(images: Sequence[Hashable]) -> str:
    return ", ".join(map(repr, images[:3]))
