"""What captions look like on their own, without references: variety, length, repetition."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nanocaption.metrics.ptb import Tokenize, ptb_tokenize

# Words that a caption cannot end in: those of ruotianluo/ImageCaptioning.pytorch (`bad_endings`), and some more that
# need another word behind them.
BAD_ENDINGS = (
    "with", "in", "on", "of", "a", "at", "to", "for", "an", "this", "his", "her", "that", "the",
    "and", "while", "by", "from", "as", "is", "are", "wearing", "holding",
)  # fmt: skip
_STOPS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")
TOKENIZED_AT_ONCE = 200_000  # training captions
_WORD = re.compile(r"[0-9a-z_\x80-\U0010ffff][0-9a-z_'\-\x80-\U0010ffff]*")


class TextStatistics(NamedTuple):
    captions: int
    distinct_1: float  # different words / words, over all captions together (Li et al., 2016)
    distinct_2: float  # different word pairs / word pairs
    mean_length: float  # words per caption
    vocabulary: int  # different words
    repetition: float  # share of captions with a word twice in a row, or three words in a row that come again
    empty: int  # captions without any word
    broken: int  # captions with U+FFFD, which stands for bytes that are no character
    bad_endings: float  # share of captions that end in one of BAD_ENDINGS, see ends_badly
    unstopped: float  # share of captions without a full stop (or ! or ?) at their end; empty ones are among them
    seen: float | None  # share of captions that stand word for word in the training captions, where these are given


def text_statistics(
    captions: Sequence[str], tokenize: Tokenize = ptb_tokenize, training: Iterable[str] | None = None
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
    known = None if training is None else _held(training, set(tokens), tokenize)
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
        bad_endings=sum(map(ends_badly, captions)) / len(sentences),
        unstopped=sum(not caption.rstrip().endswith(_STOPS) for caption in captions) / len(sentences),
        seen=None if known is None else sum(caption in known for caption in tokens) / len(tokens),
    )


def _held(training: Iterable[str], tokens: set[str], tokenize: Tokenize) -> set[str]:
    """Which of `tokens` the training captions hold, of which some are in memory at a time."""
    source = iter(training)
    held: set[str] = set()
    some = list(itertools.islice(source, TOKENIZED_AT_ONCE))
    while some:
        following = list(itertools.islice(source, TOKENIZED_AT_ONCE))
        # With the next one, on which the tokens of the last may depend.
        held |= tokens.intersection(tokenize(some + following[:1])[: len(some)])
        some = following
    return held


def ends_badly(caption: str) -> bool:
    """Whether the last word of a caption, as written, is one of BAD_ENDINGS, in capitals too, whatever sign is behind.

    A word goes on through apostrophes and hyphens ("drive-in" is not "in"); what is not ASCII counts as letters.
    """
    words = _WORD.findall("".join(letter.lower() if letter.isascii() else letter for letter in caption))
    return bool(words) and words[-1] in BAD_ENDINGS


def repeats(words: Sequence[str]) -> bool:
    """Whether a word follows itself, or three words in a row occur again in the same caption."""
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) < len(triples) or any(a == b for a, b in zip(words, words[1:], strict=False))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
