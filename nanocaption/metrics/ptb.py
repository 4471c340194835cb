"""Penn Treebank tokens for captions, as the Java tokenizer of pycocoevalcap gives them, without Java."""

import re
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate

from nanocaption.metrics.ptb_characters import shadow
from nanocaption.metrics.ptb_rules import NEVER_PLAIN, SPACES, Render, compile_rules, plain, spaces_kept

Tokenize = Callable[[Sequence[str]], list[str]]  # one batch of captions -> the tokens of each, joined by spaces

# Dropped from the scores. Brackets are escaped in lower case (-lrb-), which the reference misses: they stay.
PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

LINE_ENDS = re.compile("[\r\v\f\u2028\u2029]")
# A chunk between two spaces has the same tokens in every caption, unless it, or the end of its tokens, looks
# like one of the first two patterns (a tag, an odd character, part of a phone number or fraction, a last word
# whose period depends on the next word) and its caption looks like the third.
ODD_CHUNK = re.compile(r"<|[^!-~]|[0-9]\)?$")
ODD_ENDING = re.compile(r"(?:^| )(?:[a-z]\.|(?:art|ca|figs?|nos?|op|pp|prop) \.)$")
ODD_CAPTION = re.compile(
    r"<|[^ -~]|[0-9]\)? [0-9]|[A-Za-z]\. *(?:$| [A-Z])|(?i:art|ca|figs?|nos?|op|pp|prop)\.(?: [0-9]|$)"
)
# No look-ahead tells the end of the batch from a line end after such a word.
PLAIN_END = re.compile(r"(?:^| )[a-z]{2,} ?\.?$")
CACHE_LIMIT = 500_000
# How far a token with its look-ahead may reach: without a limit a text without spaces takes time by its square.
LONGEST_TOKEN = 1000
_chunk_cache: dict[str, str] = {}  # chunk -> kept tokens; a memo, bounded
_odd_chunk_cache: dict[str, str] = {}  # the same, for chunks whose caption has to be looked at


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """The tokens of each caption, lower case, punctuation dropped, joined by single spaces.

    `captions` is one batch, in order: as in the reference, a word at the end of a caption can depend on how
    the next caption begins ("plan b." keeps its period before "Two men", not before "The dog"). Tokenise the
    references as one batch and the candidates as another, both in annotation order. Equal to pycocoevalcap
    1.2 (CoreNLP 3.4.1), with one deliberate difference: a carriage return, form feed, vertical tab, U+2028 or
    U+2029 inside a caption is taken as a space, with a warning, where the reference would move all later
    captions to wrong images. Raises ValueError for anything that is not a string, and for half a surrogate
    pair. A token ends after LONGEST_TOKEN characters, where the reference's may go on; the time is linear.
    """
    captions = _clean_lines(captions)
    cached = _chunk_cache.get
    tokens: list[str] = []
    batch: tuple[str, str, list[int]] | None = None
    reached = 0  # where a token ended that began in an earlier caption: a tag can cross lines
    last = len(captions) - 1
    for index, caption in enumerate(captions):
        chunks = caption.split(" ")
        parts: list[str | None] = list(map(cached, chunks))
        context = reached > 0 or ". ." in caption or (index == last and not PLAIN_END.search(caption))
        if None in parts and not context:
            odd = False
            for place, part in enumerate(parts):
                if part is None:
                    parts[place] = _chunk_tokens(chunks[place])
                    odd = odd or chunks[place] in _odd_chunk_cache
            context = odd and ODD_CAPTION.search(caption) is not None
        if context:
            batch = batch or _batch_text(captions)
            scanned, reached = _scan_caption(batch, index, reached)
            parts = [*scanned]
        tokens.append(" ".join(filter(None, parts)))
    return tokens


def _clean_lines(captions: Sequence[str]) -> list[str]:
    if isinstance(captions, str):
        raise ValueError(f"captions must be a list of strings, got one string: {captions[:60]!r}")
    captions = list(captions)
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"caption {index} must be a string, got {type(caption).__name__}: {caption!r:.60}")
    text = "\n".join(captions)
    if text.count("\n") >= max(1, len(captions)):
        captions = [caption.replace("\n", " ") for caption in captions]
        text = "\n".join(captions)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        index = text.count("\n", 0, error.start)
        raise ValueError(
            f"caption {index} contains half a surrogate pair, which is no character: {captions[index]!r:.60}; "
            "decode the file as UTF-8"
        ) from error
    if LINE_ENDS.search(text):
        odd = sum(LINE_ENDS.search(caption) is not None for caption in captions)
        warnings.warn(
            f"{odd} of {len(captions)} captions contain a line separator (such as \\r or U+2028): taken as a "
            "space; pycocoevalcap would shift every later caption to a wrong image there",
            stacklevel=3,
        )
        captions = [LINE_ENDS.sub(" ", caption) for caption in captions]
    return captions


def _batch_text(captions: list[str]) -> tuple[str, str, list[int]]:
    text = "\n".join(captions)
    return text, shadow(text), [0, *accumulate(len(caption) + 1 for caption in captions)]


def _scan_caption(batch: tuple[str, str, list[int]], index: int, reached: int) -> tuple[list[str], int]:
    """The kept tokens of one caption, and where its last token ended if beyond the line end, else 0."""
    text, alphabet, starts = batch
    start, end = starts[index], starts[index + 1] - 1
    carried = [spaces_kept(text[start : min(reached, end)])] if reached else []
    tokens, stop = scan(text, alphabet, max(start, reached), end)
    if stop > end and tokens:
        tokens[-1] = tokens[-1].split("\n")[0]
    # Trailing white space of the line goes, as in the reference, even where it belongs to a token.
    tokens = " ".join(carried + tokens).rstrip().split(" ")
    return [token for token in tokens if token not in PUNCTUATION], stop if stop > end else 0


def _chunk_tokens(chunk: str) -> str:
    """The kept tokens of a chunk without spaces that needs no context, joined by spaces."""
    known = _chunk_cache.get(chunk)
    if known is None:
        known = _odd_chunk_cache.get(chunk)
    if known is not None:
        return known
    word = chunk[:-1] if chunk[-1:] in (".", ",") else chunk
    if word.isascii() and word.isalpha() and len(word) > 1 and word.lower() not in NEVER_PLAIN:
        kept, odd = word.lower(), False
    else:
        tokens, _ = scan(chunk + "\n", shadow(chunk + "\n"), 0, len(chunk))
        kept = " ".join(token for token in tokens if token not in PUNCTUATION)
        odd = bool(ODD_CHUNK.search(chunk) or ODD_ENDING.search(" ".join(tokens[-2:])))
    cache = _odd_chunk_cache if odd else _chunk_cache
    if len(cache) >= CACHE_LIMIT:
        cache.clear()
    cache[chunk] = kept
    return kept


def clear_cache() -> None:
    """Forget the tokens of all chunks seen; changes no result, only the time of the next call."""
    _chunk_cache.clear()
    _odd_chunk_cache.clear()


def scan(text: str, alphabet: str, position: int, end: int) -> tuple[list[str], int]:
    """All tokens of `text[position:end]`, nothing dropped, and where the last match ended.

    `alphabet` is `shadow(text)`; look-ahead sees beyond `end`, and a token may run beyond it.
    """
    rules = compile_rules()
    tokens: list[str] = []
    token_of: Render = plain
    while position < end:
        longest, stop = position, position
        for match, render in rules.get(alphabet[position], ()):
            found = match(alphabet, position, position + LONGEST_TOKEN)
            if found and found.end() > longest:
                longest, stop, token_of = found.end(), found.end(1), render
        if longest == position:
            spaces = SPACES.match(alphabet, position)
            position = spaces.end() if spaces else position + 1
        else:
            tokens.append(token_of(text[position:stop]))
            position = stop
    return list(filter(None, tokens)), position
