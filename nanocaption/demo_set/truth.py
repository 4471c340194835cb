"""How much of a caption is true of its scene: things, colours, counts and relations, read from plain English.

Made for captions of a model trained on the demo set, so it reads words and word order, not grammar: wrong,
clumsy or unfinished sentences give the claims that can still be made out.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

TRUTH_KINDS = ("things", "colours", "counts", "relations")
CONFUSION_KINDS = ("colours", "things")
NOTHING = "nothing"


def _meanings(table: dict[str, str]) -> dict[str, str]:
    """Word → what it means, from what it means → its words."""
    return {word: meaning for meaning, words in table.items() for word in words.split()}


NOUNS = _meanings({
    "house": "house houses home homes cottage cottages", "tree": "tree trees", "car": "car cars",
    "bus": "bus buses", "boat": "boat boats sailboat sailboats ship ships", "ball": "ball balls",
    "cat": "cat cats kitten kittens", "dog": "dog dogs puppy puppies", "flower": "flower flowers",
    "umbrella": "umbrella umbrellas parasol parasols", "fish": "fish fishes", "snowman": "snowman snowmen",
    "kite": "kite kites", "balloon": "balloon balloons", "bird": "bird birds", "sun": "sun suns",
    "moon": "moon moons",
})  # fmt: skip
COLOUR_WORDS = {"violet": "purple", "gray": "grey"} | {colour: colour for colour in (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown", "grey", "gold", "silver",
    "beige", "turquoise",
)}  # fmt: skip
NUMBER_WORDS = {
    "a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "both": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10,
}  # fmt: skip
SIZE_WORDS = _meanings({"small": "small little tiny", "big": "big large huge"})
FILLERS = (
    "the", "some", "this", "that", "hot", "air", "bright", "nice", "lovely", "pretty", "beautiful", "shining",
)  # fmt: skip
BOUNDARIES = (",", ".", ";", "and", "while", "with", "but")
PRONOUNS = ("it", "them")
RELATION_PHRASES = {
    "left of": ("to the left of", "on the left of", "at the left of", "on the left side of", "left of"),
    "right of": ("to the right of", "on the right of", "at the right of", "on the right side of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath", "underneath"),
    "in front of": ("in front of",),
    "behind": ("behind",),
    "next to": ("next to", "beside", "near", "close to"),
}
POSITION_PHRASES = {
    "left": ("on the left", "to the left", "at the left", "on the left of the picture"),
    "right": ("on the right", "to the right", "at the right", "on the right of the picture"),
    "middle": ("in the middle", "in the center", "in the centre"),
    "sky": ("in the sky",),
}
# (words of the phrase, what it means), longer phrases first
_PHRASES = sorted(
    ((text.split(), meaning) for table in (RELATION_PHRASES, POSITION_PHRASES)
     for meaning, texts in table.items() for text in texts),
    key=lambda phrase: -len(phrase[0]),
)  # fmt: skip


class Claim(NamedTuple):
    about: str  # one of TRUTH_KINDS, or "sizes"
    text: str
    true: bool


class Mention(NamedTuple):
    kind: str
    start: int  # tokens [start, end), its article and adjectives included
    end: int
    colours: list[str]
    counts: list[int]  # none, or the one that is said of it
    sizes: list[str]  # the same


def caption_truth(caption: str, scene: dict) -> dict[str, tuple[int, int]]:
    """For each of TRUTH_KINDS the pair (true claims, claims) that a caption makes about a scene.

    things     each thing named ("car"): is one in the scene? Places ("beach", "sky") are not things.
    colours    each colour bound to a thing ("red car", "the car is red"): is there a car, and is it red?
    counts     each number or indefinite article bound to a thing ("two boats", "a boat"): exactly that many?
    relations  each relation of two things ("a kite above a house") and each position in the picture
               ("a ball on the left", "a bird in the sky"): do the boxes of the scene say so?

    Any text is accepted; a claim about a thing that is not there is false; no claims give (0, 0).
    """
    claims = caption_claims(caption, scene)
    told = {kind: [claim.true for claim in claims if claim.about == kind] for kind in TRUTH_KINDS}
    return {kind: (sum(true), len(true)) for kind, true in told.items()}


def total_truth(captions: Iterable[str], scenes: Iterable[dict]) -> dict[str, dict[str, int]]:
    """{kind: {"true", "claims"}} for each of TRUTH_KINDS, summed over a set of captions."""
    totals = {kind: {"true": 0, "claims": 0} for kind in TRUTH_KINDS}
    for caption, scene in zip(captions, scenes, strict=True):
        for kind, (true, claims) in caption_truth(caption, scene).items():
            totals[kind]["true"] += true
            totals[kind]["claims"] += claims
    return totals


def caption_claims(caption: str, scene: dict) -> list[Claim]:
    """Every claim read in a caption, true or not; beyond TRUTH_KINDS also the "sizes" ("a big house")."""
    tokens = _tokens(caption)
    mentions = find_mentions(tokens)
    things = _by_kind(scene)
    claims = []
    for mention in mentions:
        thing = things.get(mention.kind, {})
        claims.append(Claim("things", mention.kind, bool(thing)))
        said = (("colours", "color", mention.colours), ("counts", "count", mention.counts),
                ("sizes", "size", mention.sizes))  # fmt: skip
        for about, field, values in said:
            claims += [Claim(about, f"{value} {mention.kind}", thing.get(field) == value) for value in values]
    return claims + _relation_claims(tokens, mentions, scene)


def caption_confusions(caption: str, scene: dict) -> dict[str, list[tuple[str, str]]]:
    """For each of CONFUSION_KINDS the pairs (true, said) of a caption; true == said where it is right.

    colours  for each colour bound to a thing that is in the scene: the thing's own colour, and the one said
    things   for each thing named: itself if it is there; else the thing it was most likely taken for, one that the
             caption leaves out, one of the colour said before any other; else "nothing"

    Any text is accepted.
    """
    mentions, things = find_mentions(_tokens(caption)), _by_kind(scene)
    named = {mention.kind for mention in mentions}
    left_out = [thing for kind, thing in things.items() if kind not in named]
    pairs: dict[str, list[tuple[str, str]]] = {kind: [] for kind in CONFUSION_KINDS}
    for mention in mentions:
        if mention.kind in things:
            pairs["things"].append((mention.kind, mention.kind))
            pairs["colours"] += [(things[mention.kind]["color"], colour) for colour in mention.colours]
            continue
        left_out.sort(key=lambda thing: thing["color"] not in mention.colours)
        pairs["things"].append((left_out.pop(0)["kind"] if left_out else NOTHING, mention.kind))
    return pairs


def total_confusions(captions: Iterable[str], scenes: Iterable[dict]) -> dict[str, list[tuple[str, str, int]]]:
    """For each of CONFUSION_KINDS all (true, said, how often) over a set of captions, the most frequent first."""
    counts: dict[str, Counter] = {kind: Counter() for kind in CONFUSION_KINDS}
    for caption, scene in zip(captions, scenes, strict=True):
        for kind, pairs in caption_confusions(caption, scene).items():
            counts[kind].update(pairs)
    return {kind: [(*pair, n) for pair, n in counter.most_common()] for kind, counter in counts.items()}


def _tokens(caption: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+|[,.;]", caption.lower())


def _by_kind(scene: dict) -> dict[str, dict]:
    return {thing["kind"]: thing for thing in scene["things"]}


def find_mentions(tokens: list[str]) -> list[Mention]:
    """The things named in a tokenised caption, each with the adjectives and the number directly before it."""
    mentions: list[Mention] = []
    for place, token in enumerate(tokens):
        if token not in NOUNS:
            continue
        start = _modifiers_start(tokens, mentions[-1].end if mentions else 0, place)
        before = tokens[start:place]
        colours = [COLOUR_WORDS[word] for word in before if word in COLOUR_WORDS]
        counts = [NUMBER_WORDS.get(word) or int(word) for word in before if _is_number(word)]
        sizes = [SIZE_WORDS[word] for word in before if word in SIZE_WORDS]
        said = [*tokens[place + 1 : place + 4], "", "", ""]
        if said[0] in ("is", "are") and said[1] in COLOUR_WORDS and said[2] not in NOUNS:
            colours.append(COLOUR_WORDS[said[1]])
        mentions.append(Mention(NOUNS[token], start, place + 1, colours, counts[:1], sizes[:1]))
    return mentions


def _is_number(word: str) -> bool:
    return word in NUMBER_WORDS or word.isdecimal()


def _modifiers_start(tokens: list[str], floor: int, place: int) -> int:
    """Where the run of articles, numbers and adjectives before tokens[place] begins, not before `floor`."""
    start = place
    while start > floor:
        word = tokens[start - 1]
        if _is_number(word):
            return start - 1 - (start - 1 > floor and tokens[start - 2] == "the")
        two_colours = word == "and" and start - 2 >= floor and {tokens[start - 2], tokens[start]} <= set(COLOUR_WORDS)
        if not (word in COLOUR_WORDS or word in SIZE_WORDS or word in FILLERS or two_colours):
            break
        start -= 1
    return start


def _relation_claims(tokens: list[str], mentions: list[Mention], scene: dict) -> list[Claim]:
    claims = []
    place = 0
    while place < len(tokens):
        words, name = next((p for p in _PHRASES if tokens[place : place + len(p[0])] == p[0]), ([], ""))
        end = place + max(1, len(words))
        subject = _subject(tokens, mentions, place, end) if words else None
        if subject and name in RELATION_PHRASES:
            claims += _related(tokens, mentions, subject, name, end, scene)
        elif subject:
            thing = _by_kind(scene).get(subject.kind)
            true = thing is not None and name in (thing["level"], thing["position"])
            claims.append(Claim("relations", f"{subject.kind} {' '.join(words)}", true))
        place = end
    return claims


def _subject(tokens: list[str], mentions: list[Mention], start: int, end: int) -> Mention | None:
    """The thing a phrase at tokens [start, end) speaks of: the last before it, else the next after it.

    The one after it is meant where a clause begins with the phrase: "and on the left is a car".
    """
    before = [mention for mention in mentions if mention.end <= start]
    after = [mention for mention in mentions if mention.start >= end]
    opens_clause = start == 0 or tokens[start - 1] in BOUNDARIES
    if before and not opens_clause:
        return before[-1]
    return next(iter(after or before[-1:]), None)


def _related(
    tokens: list[str], mentions: list[Mention], subject: Mention, relation: str, end: int, scene: dict
) -> list[Claim]:
    """The claim "subject relation object", the object following at once or a pronoun; [] for a place."""
    targets = [mention for mention in mentions if mention.start == end]
    if not targets and tokens[end : end + 1] and tokens[end] in PRONOUNS:
        targets = [mention for mention in mentions if mention.end <= subject.start][-1:]
    if not targets or targets[0] is subject:
        return []
    kinds = [thing["kind"] for thing in scene["things"]]
    told = (subject.kind, relation, targets[0].kind)
    true = any((kinds[a], name, kinds[b]) == told for a, name, b in scene["relations"])
    return [Claim("relations", " ".join(told), true)]
