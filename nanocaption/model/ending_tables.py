"""Captions that end in a word which must go on ("a dog on a"): which tokens would make one.

decode.py knows ids only, and a word may be several tokens, or lie in one with others. So this is an automaton over the
bytes of the text, whatever tokens carry them: its state says which bad word, if any, the text ends in. For every state
and token it holds the state that follows, and whether the token may not come. Bytes that are no UTF-8 count as letters
here and stand in no text: only a caption that is told as broken may end badly by them.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from nanocaption.data.tokenizer import END, UNK, token_bytes
from nanocaption.metrics.diversity import BAD_ENDINGS

_OUTSIDE, _WORD, _AFTER, CLOSED = range(4)  # between words; in another word; behind a bad word; and a stop behind that
_JOINING = b"'-"  # belong to a word once it has begun: "drive-in" is not "in"
_BYTES_OF_WORDS = (*b"0123456789_abcdefghijklmnopqrstuvwxyz", *range(128, 256))


class Tables(NamedTuple):
    """S states of a text, the first of which is that of an empty one; V tokens."""

    following: np.ndarray  # (S, V) int64: the state after each token
    forbidden: np.ndarray  # (S, V) bool: <end> where the text ends badly, and a token that puts a full stop behind it
    last: np.ndarray  # (S, V) bool: what would end badly if nothing came after it


@functools.lru_cache(maxsize=4)
def tables_of(tokenizer: Tokenizer) -> Tables:
    """The table of a byte-level tokenizer for metrics.diversity.BAD_ENDINGS, as `ends_badly` there sees them."""
    after, bad = automaton()
    pieces = [b"" if i <= UNK else token_bytes(tokenizer, i) for i in range(tokenizer.get_vocab_size())]
    lengths = np.array([len(piece) for piece in pieces])
    # (V, longest) bytes of each token, 0 behind its last one
    letters = np.array([[*piece, *[0] * (lengths.max() - len(piece))] for piece in pieces], dtype=np.int64)
    state = np.repeat(np.arange(len(after))[:, None], len(pieces), axis=1)  # (S, V)
    closed = state == CLOSED
    for place in range(lengths.max()):
        going = np.flatnonzero(lengths > place)  # few tokens of a large vocabulary are long
        state[:, going] = after[state[:, going], letters[going, place]]
        closed[:, going] |= state[:, going] == CLOSED
    closed[:, lengths == 0] = False
    ends = bad[state]
    forbidden = closed.copy()
    forbidden[:, END] = bad
    last = ends | closed
    last[:, END] = bad
    return Tables(state, forbidden, last)


def automaton(words: Sequence[str] = BAD_ENDINGS) -> tuple[np.ndarray, np.ndarray]:
    """(state after each state and byte (S, 256), whether a text ends badly in each (S,)); 0 is that of an empty one."""
    places = {word[:n]: 0 for word in words for n in range(1, len(word) + 1)}  # beginnings of bad words
    places = {beginning: 4 + number for number, beginning in enumerate(places)}
    after = np.full((4 + len(places), 256), _OUTSIDE)
    bad = np.zeros(len(after), dtype=bool)
    bad[[_AFTER, CLOSED, *(places[word] for word in words)]] = True
    _mark_letters(after, places)
    _mark_others(after, bad)
    for upper, lower in zip(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz", strict=True):
        after[:, upper] = after[:, lower]
    return after, bad


def _mark_letters(after: np.ndarray, places: Mapping[str, int]) -> None:
    """Within words: a word's bytes lead from beginning to beginning of a bad word, or into some other word."""
    for state in (_OUTSIDE, _AFTER, CLOSED):
        for byte in _BYTES_OF_WORDS:
            after[state, byte] = places.get(chr(byte), _WORD)
    for state, beginning in ((_WORD, None), *((place, text) for text, place in places.items())):
        for byte in (*_BYTES_OF_WORDS, *_JOINING):
            after[state, byte] = _WORD if beginning is None else places.get(beginning + chr(byte), _WORD)


def _mark_others(after: np.ndarray, bad: np.ndarray) -> None:
    """Between words: after a bad word a text ends badly until another word begins."""
    others = [byte for byte in range(128) if byte not in _BYTES_OF_WORDS]
    for state in np.flatnonzero(bad).tolist():
        stays = [byte for byte in others if state in (_AFTER, CLOSED) or byte not in _JOINING]
        after[state, stays] = CLOSED if state == CLOSED else _AFTER
        after[state, list(b".!?")] = CLOSED
