"""The one normalisation of caption text, and what is done about captions that are no text.

captions.json holds captions as they were written, and scores read them so: any repair would change the yardstick, as
would leaving out a reference that says the same again. What a model learns from goes through `normalise` when a run
reads the set (`as_trained`, `as_read`). Rules:

1. HTML's &amp; &quot; &apos; &lt; &gt; &nbsp; become characters; Unicode is composed (NFC)
2. control characters and invisible marks go (not the joiners of emoji and of some scripts)
3. every run of white space, line ends included, becomes one space; none at the ends
4. detached punctuation is attached again, of which some copies of Flickr's captions are full: "a yard ." "one , two"
   "( a dog )" "a dog 's" "do n't" and quotes in pairs; PTB's `` and '' become "
5. CAPTION_CASE = "lower": all in lower case

What stays: words, spelling, dashes with spaces, numbers, quotes without a partner.
"""

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from nanocaption.data.prepared import Record

TEXT_VERSION = 2  # goes up when other text stands in captions.json; in the manifest. 1: the captions were normalised
MAX_WORDS, MAX_CHARACTERS = 500, 5000  # of a caption; more is a document that slipped in
_AMPERSANDS = re.compile("&(?:amp;)+")  # escaped again and again: one by one they would take time by their square
_ENTITY = re.compile(r"&(?:amp|quot|apos|lt|gt|nbsp|#34|#39);")
_LINE_END = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_JOINERS = re.compile("[\u200c\u200d\U000e0020-\U000e007f]")
_NOT_UTF8 = re.compile("[\ud800-\udfff\ufffd]")  # halves of surrogate pairs, and what decoders put for broken bytes
_SUSPECT = re.compile(r"[^ -~]|^ |  | $|[&\"'`]| [.,!?;:)\]]|[(\[] ")  # a text without these is right
_CLOSING = re.compile(r" +([.,!?;:]+(?=[\s\"]|$)|[)\]])")
_OPENING = re.compile(r"([(\[]) +")
_CONTRACTION = re.compile(r"(?<=\w) (n't|'(?:s|t|m|d|re|ll|ve))(?=[\s.,!?;:-]|$)", re.IGNORECASE)
_MARK_ALONE = re.compile(r"(?<!\S)'(?=[\s.,!?;:]|$)")


def normalise(text: str, case: str = "keep") -> str:
    """`text` by the rules above; case: "keep" or "lower". Pure, and doing it twice changes nothing more."""
    while _SUSPECT.search(text) and (better := _once(text)) != text:  # what one rule changes can wake another
        text = better
    if case == "lower" and (lower := text.lower()) != text:
        return normalise(lower, case)  # a few letters become several, which must be composed
    return text


def _once(text: str) -> str:
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found[0]), _AMPERSANDS.sub("&amp;", text))
    if not (text.isascii() and text.isprintable()):
        text = "".join(letter for letter in unicodedata.normalize("NFC", text) if not _is_control(letter))
    text = " ".join(text.split())
    text = _CLOSING.sub(r"\1", text)
    text = _OPENING.sub(r"\1", text)
    if "'" in text or "`" in text:
        text = text.replace("``", '"').replace("''", '"')
        text = _CONTRACTION.sub(r"\1", text)
        alone = [found.start() for found in _MARK_ALONE.finditer(text)]
        if len(alone) == 1 and text[: alone[0]].lower().endswith("s "):
            text = text[: alone[0] - 1] + text[alone[0] :]  # "the boys ' ball"
        elif len(alone) % 2 == 0:
            text = _attach_pairs(text, alone)
    if text.count('"') % 2 == 0:
        text = _attach_pairs(text, [place for place, letter in enumerate(text) if letter == '"'])
    return text


def _attach_pairs(text: str, places: Sequence[int]) -> str:
    """Quotes at `places` open and close in turn: the spaces inside go, where a quote stands alone or almost so."""
    drop = set()
    for number, place in enumerate(places):
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        if number % 2 == 0 and after == " " and before in ("", " ", "(", "["):
            drop.add(place + 1)
        elif number % 2 == 1 and before == " " and after in ("", *' .,!?;:)]'):
            drop.add(place - 1)
    return "".join(letter for place, letter in enumerate(text) if place not in drop)


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf") and not letter.isspace() and not _JOINERS.match(letter)


class Cleaned(NamedTuple):
    """The captions of one picture after `clean`."""

    kept: list[str]  # as written
    changed: list[tuple[str, str, str]]  # what training will find else: (what is repaired, before, after)
    refused: list[tuple[str, str]]  # (reason, the caption as far as it can be shown)


def clean(captions: Sequence[str], case: str = "keep") -> Cleaned:
    """Refuse what is no caption, and tell what training will repair or leave out of the others."""
    kept, changed, refused, trained = [], [], [], set()
    for caption in captions:
        reason = fault(caption)
        text = "" if reason else normalise(caption, case)
        if not reason and not any(letter.isalnum() for letter in text):
            reason = "no word in it" if text else "empty"
        if reason:
            refused.append((reason, ascii(caption)[:80]))
            continue
        kept.append(caption)
        if text in trained:
            changed.append(("said twice, one dropped", caption, text))
        elif text != caption:
            changed.append((_repair(caption, text), caption, text))
        trained.add(text)
    return Cleaned(kept, changed, refused)


def as_read(records: Sequence[Record], case: str) -> list[Record]:
    """The records with their captions normalised, none left out: for the validation loss."""
    return [record | {"captions": [normalise(text, case) for text in record["captions"]]} for record in records]


def as_trained(records: Sequence[Record], case: str) -> tuple[list[Record], int]:
    """`as_read`, each caption of a picture once, and how many that leaves out."""
    read = as_read(records, case)
    once: list[Record] = [record | {"captions": list(dict.fromkeys(record["captions"]))} for record in read]
    return once, sum(len(record["captions"]) for record in read) - sum(len(record["captions"]) for record in once)


def fault(caption: object) -> str | None:
    """Why a caption cannot be used, before any repair, or None."""
    if not isinstance(caption, str):
        return "not text"
    if _NOT_UTF8.search(caption):
        return "not valid UTF-8"
    if len(caption) > MAX_CHARACTERS or len(caption.split()) > MAX_WORDS:
        return f"above {MAX_WORDS} words or {MAX_CHARACTERS:,} characters"
    return None


def _repair(before: str, after: str) -> str:
    if _LINE_END.search(before.strip()):
        return "line ends inside"
    if not before.isprintable() and any(_is_control(letter) for letter in before):
        return "control characters"
    return "case only" if before.lower() == after else "spaces and punctuation"
