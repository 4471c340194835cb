"""Scene → five captions, by five annotators with habits of their own, who say nothing that is untrue.

    terse      names what is there:                 "A red car and two trees."
    painter    every colour, and the sky:           "A red car and two green trees on the grey street."
    counter    numbers and relations:               "There is one large red car to the left of two trees."
    guide      the place first, then who does what: "On the street, a big red car stands next to two trees."
    talker     full sentences, small talk:          "It is a sunny day and a big red car ..."

Each claim a caption makes is marked with a control character while it is written; the marks are counted and
removed at the end, so that a parser of captions can be held against what was really said.
"""

import random

from nanocaption.demo_set.scenes import LIGHTS

THING, COLOUR, COUNT, RELATION = "\x01", "\x02", "\x03", "\x04"
MARKS = {"things": THING, "colours": COLOUR, "counts": COUNT, "relations": RELATION}
NUMBERS = {1: "one", 2: "two", 3: "three"}
PLURALS = {"bus": "buses", "fish": "fish", "snowman": "snowmen"}
PLAIN = ("tree", "snowman", "sun", "moon")  # always of one colour: only the painter mentions it
VERBS = {
    "house": "stand", "tree": "stand", "car": "stand", "bus": "stand", "boat": "sail", "ball": "lie",
    "cat": "sit", "dog": "stand", "flower": "grow", "umbrella": "stand", "fish": "swim", "snowman": "stand",
    "kite": "fly", "balloon": "fly", "bird": "fly", "sun": "shine", "moon": "shine",
}  # fmt: skip
PLACES = {
    "meadow": "in the meadow", "beach": "on the beach", "street": "on the street", "snow": "in the snow",
    "night": "at night", "sea": "on the sea",
}  # fmt: skip
PAINTER_PLACES = {
    "meadow": "in the green meadow", "beach": "on the yellow beach", "street": "on the grey street",
    "snow": "in the white snow", "night": "in the dark night", "sea": "on the blue sea",
}  # fmt: skip
TALKER_PLACES = PLACES | {"meadow": "on the grass", "street": "in town", "sea": "on the water"}
UNDER_SKY = {
    "meadow": "over the meadow", "beach": "over the beach", "street": "over the street",
    "snow": "over the snow", "night": "at night", "sea": "over the sea",
}  # fmt: skip


def describe_scene(scene: dict, seed: int, index: int) -> list[str]:
    """Five different true captions of a scene, one per annotator in a fixed order; pure in its arguments."""
    return [strip_marks(draft) for draft in draft_captions(scene, seed, index)]


def draft_captions(scene: dict, seed: int, index: int) -> list[str]:
    """The captions of `describe_scene` with a control character (`MARKS`) before each claim."""
    drafts = []
    for annotator in ANNOTATORS:
        rng = random.Random(f"{seed}-{index}-{annotator.__name__}")
        text = annotator(rng, scene, *_split(scene))
        start = next(n for n, letter in enumerate(text) if letter.isalpha())
        drafts.append(text[:start] + text[start].upper() + text[start + 1 :] + ".")
    return drafts


def strip_marks(draft: str) -> str:
    return draft.translate({ord(mark): None for mark in MARKS.values()})


def _split(scene: dict) -> tuple[list[dict], dict | None, dict | None]:
    """(things on the ground, the thing in the sky, sun or moon); the latter two may be missing."""
    ground = [thing for thing in scene["things"] if thing["level"] == "ground"]
    sky = [thing for thing in scene["things"] if thing["level"] == "sky" and thing["kind"] not in LIGHTS]
    light = [thing for thing in scene["things"] if thing["kind"] in LIGHTS]
    return ground, (sky or [None])[0], (light or [None])[0]


def _holds(scene: dict, a: dict, relation: str, b: dict) -> bool:
    return [scene["things"].index(a), relation, scene["things"].index(b)] in scene["relations"]


def _name(thing: dict, article: str = "a", sizes: dict | None = None, plain: bool = True) -> str:
    """A phrase like "a small red car"; `sizes` are words for small and big, `plain` omits obvious colours."""
    words = []
    if sizes and thing["count"] == 1:
        words.append(sizes[thing["size"]])
    if not (plain and thing["kind"] in PLAIN):
        words.append(COLOUR + thing["color"])
    noun = thing["kind"] if thing["count"] == 1 else PLURALS.get(thing["kind"], thing["kind"] + "s")
    words.append(THING + noun)
    if thing["count"] > 1:
        article = NUMBERS[thing["count"]]
    elif article == "a" and words[0].strip("".join(MARKS.values()))[0] in "aeiou":
        article = "an"
    return " ".join(["the" if article == "the" else COUNT + article, *words])


def _verb(thing: dict, continuous: bool = False) -> str:
    verb = VERBS[thing["kind"]]
    if continuous:
        stem = {"sit": "sitt", "swim": "swimm", "shine": "shin", "lie": "ly"}.get(verb, verb)
        return ("is " if thing["count"] == 1 else "are ") + stem + "ing"
    return verb if thing["count"] > 1 else {"fly": "flies"}.get(verb, verb + "s")


def _position(thing: dict) -> str:
    return RELATION + ("in the middle" if thing["position"] == "middle" else f"on the {thing['position']}")


def _is(thing: dict) -> str:
    return "is" if thing["count"] == 1 else "are"


def _and(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _in_front(scene: dict, ground: list[dict]) -> bool:
    return len(ground) == 2 and _holds(scene, ground[0], "in front of", ground[1])


def _flies_above(scene: dict, sky: dict, thing: dict) -> bool:
    """Above and not far to the side: what a person would call above."""
    return _holds(scene, sky, "above", thing) and abs(sky["x"] - thing["x"]) < 0.35


def _place(places: dict[str, str], scene: dict, ground: list[dict]) -> str:
    """Where the ground things are; fish alone are in the water, not on it."""
    place = places[scene["background"]]
    if scene["background"] == "sea" and all(thing["kind"] == "fish" for thing in ground):
        return place.replace("on", "in", 1)
    return place


def _terse(rng: random.Random, scene: dict, ground: list[dict], sky: dict | None, light: dict | None) -> str:
    names = [_name(thing) for thing in ground]
    if not ground:
        return f"{_name(sky)} {UNDER_SKY[scene['background']]}"
    if _in_front(scene, ground):
        return f"{names[0]} {RELATION}in front of {names[1]}"
    if not sky:
        return _and(names) if len(ground) > 1 else f"{names[0]} {_place(PLACES, scene, ground)}"
    if len(ground) == 1 and _flies_above(scene, sky, ground[0]):
        under = rng.random() < 0.3
        return (
            f"{names[0]} {RELATION}under {_name(sky)}"
            if under
            else f"{_name(sky)} {RELATION}above {names[0]}"
        )
    return _and([*names, _name(sky)])


def _painter(
    rng: random.Random, scene: dict, ground: list[dict], sky: dict | None, light: dict | None
) -> str:
    names = [_name(thing, plain=False) for thing in ground]
    extras = [_name(thing, plain=False) for thing in (sky, light) if thing]
    if not ground:
        return f"{_and(extras)} {RELATION}in the sky {UNDER_SKY[scene['background']]}"
    text = f"{_and(names)} {_place(PAINTER_PLACES, scene, ground)}"
    if _in_front(scene, ground):
        text = f"{names[1]} {RELATION}behind {names[0]} {_place(PAINTER_PLACES, scene, ground)}"
    return text + (f" with {_and(extras)} {RELATION}in the sky" if extras else "")


def _counter(
    rng: random.Random, scene: dict, ground: list[dict], sky: dict | None, light: dict | None
) -> str:
    names = [_name(thing, "one", {"small": "small", "big": "large"}) for thing in ground]
    in_sky = f"{_name(sky, 'one')} {RELATION}in the sky" if sky else ""
    if not ground:
        return f"there {_is(sky)} {in_sky}" + (f" and {_name(light, 'one')}" if light else "")
    if len(ground) == 1:
        text = f"there {_is(ground[0])} {names[0]} {_position(ground[0])}"
        if sky and _flies_above(scene, sky, ground[0]):
            in_sky = f"{_name(sky, 'one')} {RELATION}above {'it' if ground[0]['count'] == 1 else 'them'}"
    else:
        front = _in_front(scene, ground)
        first, second = (0, 1) if front or rng.random() < 0.65 else (1, 0)
        relation = "in front of" if front else f"to the {('left', 'right')[first]} of"
        text = f"there {_is(ground[first])} {names[first]} {RELATION}{relation} {names[second]}"
    return text + (f" and {in_sky}" if sky else "")


def _guide(rng: random.Random, scene: dict, ground: list[dict], sky: dict | None, light: dict | None) -> str:
    sizes = {"small": "small", "big": "big"}
    if not ground:
        place = UNDER_SKY[scene["background"]]
        return f"{place}, {_name(sky, sizes=sizes)} {_verb(sky)} {_position(sky)}"
    names = [_name(thing, sizes=sizes) for thing in ground]
    where = _position(ground[0])
    if _in_front(scene, ground):
        where = f"{RELATION}in front of {names[1]}"
    elif len(ground) == 2 and _holds(scene, ground[0], "next to", ground[1]) and (sky or rng.random() < 0.4):
        where = f"{RELATION}next to {names[1]}"
    elif len(ground) == 2:
        where += f" and {names[1]} {_position(ground[1])}"
    text = f"{_place(PLACES, scene, ground)}, {names[0]} {_verb(ground[0])} {where}"
    return text + (f" while {_name(sky)} {_verb(sky)} {RELATION}in the sky" if sky else "")


def _talker(rng: random.Random, scene: dict, ground: list[dict], sky: dict | None, light: dict | None) -> str:
    sizes = (
        None if sky and len(ground) == 2 else {"small": "little", "big": "big"}
    )  # more things, fewer words
    names = [_name(thing, sizes=sizes) for thing in ground or [sky]]
    subject, place, where, above = (ground or [sky])[0], UNDER_SKY[scene["background"]], "", ""
    if ground:
        place = _place(TALKER_PLACES, scene, ground)
        above = f" with {_name(sky)} {RELATION}in the sky" if sky else ""
    if _in_front(scene, ground):
        where = f" {RELATION}in front of {names[1]}"
    elif len(ground) == 2:
        near = _holds(scene, ground[0], "next to", ground[1])
        where = f" {RELATION}next to {names[1]}" if near else f" and {names[1]}"
    if light and light["kind"] == "sun":
        opening = rng.choice(("it is a sunny day and", "on a sunny day,")) if sizes else "on a sunny day,"
        return f"{opening} {names[0]} {_verb(subject, True)} {place}{where}{above}"
    if light:
        where = where if ground else f" {RELATION}in the sky"
        return f"{_name(light, 'the')} is shining and there {_is(subject)} {names[0]}{where}{above}"
    opening = rng.choice(("this is a nice picture of", "here you can see"))
    return f"{opening} {names[0]}{where} {place}{above}"


ANNOTATORS = (_terse, _painter, _counter, _guide, _talker)
