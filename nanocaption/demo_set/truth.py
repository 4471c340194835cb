"""How much of a caption is true of its scene: things, colours, counts and relations, read from plain English.

Made for captions of a model trained on the demo set, so it reads words and word order, not grammar: wrong,
clumsy or unfinished sentences give the claims that can still be made out.
"""

import re
from typing import NamedTuple

TRUTH_KINDS = ("things", "colours", "counts", "relations")

_SYNONYMS = {
    "house": "house houses home homes cottage cottages", "tree": "tree trees", "car": "car cars",
    "bus": "bus buses", "boat": "boat boats sailboat sailboats ship ships", "ball": "ball balls",
    "cat": "cat cats kitten kittens", "dog": "dog dogs puppy puppies", "flower": "flower flowers",
    "umbrella": "umbrella umbrellas parasol parasols", "fish": "fish fishes", "snowman": "snowman snowmen",
    "kite": "kite kites", "balloon": "balloon balloons", "bird": "bird birds", "sun": "sun suns",
    "moon": "moon moons",
}  # fmt: skip
NOUNS = {word: kind for kind, words in _SYNONYMS.items() for word in words.split()}
COLOUR_WORDS = {
    "red": "red", "orange": "orange", "yellow": "yellow", "green": "green", "blue": "blue",
    "purple": "purple", "violet": "purple", "pink": "pink", "white": "white", "black": "black",
    "brown": "brown", "grey": "grey", "gray": "grey", "gold": "gold",
    "silver": "silver", "beige": "beige", "turquoise": "turquoise",
}  # fmt: skip
NUMBER_WORDS = {
    "a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "both": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10,
}  # fmt: skip
SIZE_WORDS = {
    "small": "small",
    "little": "small",
    "tiny": "small",
    "big": "big",
    "large": "big",
    "huge": "big",
}
FILLERS = (
    "the",
    "some",
    "this",
    "that",
    "hot",
    "air",
    "bright",
    "nice",
    "lovely",
    "pretty",
    "beautiful",
    "shining",
)
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


def _by_first_word(*tables: dict[str, tuple[str, ...]]) -> dict[str, list[tuple[list[str], str]]]:
    """First word → (words of the phrase, what it means), longer phrases first."""
    phrases: dict[str, list[tuple[list[str], str]]] = {}
    for meaning, texts in (item for table in tables for item in table.items()):
        for text in texts:
            phrases.setdefault(text.split()[0], []).append((text.split(), meaning))
    return {word: sorted(found, key=lambda phrase: -len(phrase[0])) for word, found in phrases.items()}


_PHRASES = _by_first_word(RELATION_PHRASES, POSITION_PHRASES)


class Claim(NamedTuple):
    about: str  # one of TRUTH_KINDS, or "sizes"
    text: str
    true: bool


class Mention(NamedTuple):
    kind: str
    start: int  # tokens [start, end), its article and adjectives included
    end: int
    colours: tuple[str, ...]
    count: int | None
    size: str | None


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
    return {
        kind: (sum(c.true for c in claims if c.about == kind), sum(c.about == kind for c in claims))
        for kind in TRUTH_KINDS
    }


def caption_claims(caption: str, scene: dict) -> list[Claim]:
    """Every claim read in a caption, true or not; beyond TRUTH_KINDS also the "sizes" ("a big house")."""
    tokens = re.findall(r"[a-z]+|\d+|[,.;]", caption.lower())
    mentions = find_mentions(tokens)
    things = {thing["kind"]: thing for thing in scene["things"]}
    claims = []
    for mention in mentions:
        thing = things.get(mention.kind)
        claims.append(Claim("things", mention.kind, thing is not None))
        for colour in mention.colours:
            true = bool(thing and thing["color"] == colour)
            claims.append(Claim("colours", f"{colour} {mention.kind}", true))
        if mention.count is not None:
            true = bool(thing and thing["count"] == mention.count)
            claims.append(Claim("counts", f"{mention.count} {mention.kind}", true))
        if mention.size:
            true = bool(thing and thing["size"] == mention.size)
            claims.append(Claim("sizes", f"{mention.size} {mention.kind}", true))
    return claims + _relation_claims(tokens, mentions, scene, things)


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
        mentions.append(
            Mention(NOUNS[token], start, place + 1, tuple(colours), (*counts, None)[0], (*sizes, None)[0])
        )
    return mentions


def _is_number(word: str) -> bool:
    return word in NUMBER_WORDS or word.isdecimal()


def _modifiers_start(tokens: list[str], floor: int, place: int) -> int:
    """Where the run of articles, numbers and adjectives before tokens[place] begins, not before `floor`."""
    start = place
    while start > floor:
        word = tokens[start - 1]
        two_colours = (
            word == "and" and start - 2 >= floor and {tokens[start - 2], tokens[start]} <= set(COLOUR_WORDS)
        )
        if not (
            word in COLOUR_WORDS or word in SIZE_WORDS or word in FILLERS or _is_number(word) or two_colours
        ):
            break
        start -= 1
        if _is_number(word):
            return start - (start > floor and tokens[start - 1] == "the")
    return start


def _relation_claims(tokens: list[str], mentions: list[Mention], scene: dict, things: dict) -> list[Claim]:
    claims = []
    place = 0
    while place < len(tokens):
        found = _PHRASES.get(tokens[place], [])
        words, name = next((p for p in found if tokens[place : place + len(p[0])] == p[0]), ([], ""))
        if not words:
            place += 1
            continue
        end = place + len(words)
        subject = _subject(tokens, mentions, place, end)
        if subject and name in RELATION_PHRASES:
            claims += _related(tokens, mentions, subject, name, end, scene)
        elif subject:
            thing = things.get(subject.kind)
            true = bool(thing and name in (thing["level"], thing["position"]))
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
    return after[0] if after else (before or [None])[-1]


def _related(
    tokens: list[str], mentions: list[Mention], subject: Mention, relation: str, end: int, scene: dict
) -> list[Claim]:
    """The claim "subject relation object", the object following at once or a pronoun; [] for a place."""
    target = next((mention for mention in mentions if mention.start == end), None)
    if target is None and tokens[end : end + 1] and tokens[end] in PRONOUNS:
        earlier = [mention for mention in mentions if mention.end <= subject.start]
        target = earlier[-1] if earlier else None
    if target is None or target is subject:
        return []
    true = any(
        scene["things"][a]["kind"] == subject.kind and scene["things"][b]["kind"] == target.kind
        for a, name, b in scene["relations"] if name == relation
    )  # fmt: skip
    return [Claim("relations", f"{subject.kind} {relation} {target.kind}", true)]
