"""Characters as tokens, for languages that are written without spaces between words, and how to tell their captions.

PTB cuts at spaces: a whole Chinese sentence is one token to it, and two captions share none unless they are equal.
"""

import re
import unicodedata
from collections.abc import Sequence

from nanocaption.metrics.ptb import ptb_tokenize

# Letters, marks and digits of Thai, Lao, Tibetan, Burmese, Khmer, Tai; Chinese, Japanese, Bopomofo, Yi. Not Korean,
# which has spaces.
_LETTER = (
    "[\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59\u0e81-\u0eff\u0f00\u0f20-\u0f33\u0f40-\u0f84\u0f86-\u0fbc\u1000-\u1049\u1050-\u109d"
    "\u1780-\u17d3\u17d7\u17dc\u17dd\u17e0-\u17e9\u1950-\u19df\u1a20-\u1a99\ua9e0-\ua9fe\uaa60-\uaa7f"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u302f\u3031-\u3035\u303b\u303c\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003fffd]"
)
_RUN = re.compile(f"({_LETTER}+)")
_GAP = re.compile(rf"(?<={_LETTER})\s+(?={_LETTER})")
_FEW_GAPS = 0.1  # a space per letter: where words are set apart there are 0.2 to 0.5, in Thai prose below 0.05


def character_tokenize(captions: Sequence[str]) -> list[str]:
    """As `ptb_tokenize`, but letters of scripts without spaces are tokens one by one, each with its marks.

    Raises ValueError as `ptb_tokenize` does.
    """
    plain = ptb_tokenize(captions)  # for captions without such letters, whose neighbours matter; and it checks them
    strange = [place for place, caption in enumerate(captions) if _RUN.search(caption)]
    # Alternately what is left to PTB and a run of letters. The marks of one letter may be one character or several.
    pieces = {place: _RUN.split(unicodedata.normalize("NFC", captions[place])) for place in strange}
    others = iter(ptb_tokenize([piece for row in pieces.values() for piece in row[::2]]))
    for place, row in pieces.items():
        tokens = [" ".join(_letters(piece)) if number % 2 else next(others) for number, piece in enumerate(row)]
        plain[place] = " ".join(filter(None, tokens))
    return plain


def _letters(run: str) -> list[str]:
    letters: list[str] = []
    for character in run:
        if letters and unicodedata.category(character).startswith("M"):
            letters[-1] += character
        else:
            letters.append(character)
    return letters


def without_spaces(captions: Sequence[str]) -> int:
    """How many captions are mostly in scripts without spaces, and have (nearly) none between their letters."""
    return sum(not caption.isascii() and _is_without_spaces(caption) for caption in captions)


def _is_without_spaces(caption: str) -> bool:
    letters = sum(map(len, _RUN.findall(caption)))
    all_letters = sum(letter.isalnum() or unicodedata.category(letter).startswith("M") for letter in caption)
    return letters > 1 and 2 * letters >= all_letters and len(_GAP.findall(caption)) < _FEW_GAPS * letters
