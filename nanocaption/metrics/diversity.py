"""What captions look like on their own, without references: variety, length, repetition."""

from collections.abc import Sequence
from typing import NamedTuple

from nanocaption.metrics.ptb import Tokenize, ptb_tokenize


class TextStatistics(NamedTuple):
    captions: int
    distinct_1: float  # different words / words, over all captions together (Li et al., 2016)
    distinct_2: float  # different word pairs / word pairs
    mean_length: float  # words per caption
    vocabulary: int  # different words
    repetition: float  # share of captions with a word twice in a row, or three words in a row that come again
    empty: int  # captions without any word
    broken: int  # captions with U+FFFD, which stands for bytes that are no character
    seen: float | None  # share of captions that stand word for word in the training captions, where these are given


def text_statistics(
    captions: Sequence[str], tokenize: Tokenize = ptb_tokenize, training: Sequence[str] | None = None
) -> TextStatistics:
    """Statistics of one set of captions, as written; `tokenize=list` for captions that are already tokenised.

    `training`: the captions the model was trained on; a caption counts as seen by its tokens, so case and punctuation
    do not matter.

    Distinct-1 and distinct-2 fall as the set grows: compare sets of one size. A ratio without anything to
    count (no word pair in any caption) is 0. Raises ValueError for an empty set or a caption that is no
    string.
    """
    if not captions:
        raise ValueError("no captions: text statistics need at least one")
    tokens = tokenize(captions)
    sentences = [caption.split() for caption in tokens]
    known = set(tokenize(training)) if training is not None else None
    words = [word for sentence in sentences for word in sentence]
    pairs = [pair for sentence in sentences for pair in zip(sentence, sentence[1:], strict=False)]
    return TextStatistics(
        captions=len(sentences),
        distinct_1=_ratio(len(set(words)), len(words)),
        distinct_2=_ratio(len(set(pairs)), len(pairs)),
        mean_length=len(words) / len(sentences),
        vocabulary=len(set(words)),
        repetition=sum(map(repeats, sentences)) / len(sentences),
        empty=sum(not sentence for sentence in sentences),
        broken=sum("\ufffd" in caption for caption in captions),
        seen=None if known is None else sum(caption in known for caption in tokens) / len(tokens),
    )


def repeats(words: Sequence[str]) -> bool:
    """Whether a word follows itself, or three words in a row occur again in the same caption."""
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) < len(triples) or any(a == b for a, b in zip(words, words[1:], strict=False))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
