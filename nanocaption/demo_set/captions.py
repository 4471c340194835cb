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
from typing import NamedTuple

from nanocaption.demo_set.scenes import LIGHTS

THING, COLOUR, COUNT, RELATION = "\x01", "\x02", "\x03", "\x04"
MARKS = {"things": THING, "colours": COLOUR, "counts": COUNT, "relations": RELATION}
NUMBERS = {1: "one", 2: "two", 3: "three"}
PLURALS = {"bus": "buses", "fish": "fish", "snowman": "snowmen"}
PLAIN = ("tree", "snowman", "sun", "moon")  # always of one colour: only the painter mentions it
VERBS = {
    "boat": "sail", "ball": "lie", "cat": "sit", "flower": "grow", "fish": "swim", "kite": "fly", "balloon": "fly",
    "bird": "fly",
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
UNDER_SKY = {background: f"over the {background}" for background in PLACES} | {"night": "at night"}


class View(NamedTuple):
    """A scene as the annotators see it."""

    background: str
    ground: list[dict]
    sky: list[dict]  # what is there beside the light: one thing or none
    light: list[dict]  # sun or moon, or none
    in_front: bool  # two things on the ground, the first in front of the second
    beside: bool  # two things on the ground, next to each other
    above: bool  # one thing on the ground, and the one in the sky is what a person would call above it


def describe_scene(scene: dict, seed: int, index: int) -> list[str]:
    """Five different true captions of a scene, one per annotator in a fixed order; pure in its arguments."""
    return [strip_marks(draft) for draft in draft_captions(scene, seed, index)]


def draft_captions(scene: dict, seed: int, index: int) -> list[str]:
    """The captions of `describe_scene` with a control character (`MARKS`) before each claim."""
    drafts = []
    for annotator in ANNOTATORS:
        text = annotator(random.Random(f"{seed}-{index}-{annotator.__name__}"), look_at(scene))
        start = next(n for n, letter in enumerate(text) if letter.isalpha())
        drafts.append(text[:start] + text[start].upper() + text[start + 1 :] + ".")
    return drafts


def strip_marks(draft: str) -> str:
    return draft.translate({ord(mark): None for mark in MARKS.values()})


def look_at(scene: dict) -> View:
    things = scene["things"]
    ground = [thing for thing in things if thing["level"] == "ground"]
    sky = [thing for thing in things if thing["level"] == "sky" and thing["kind"] not in LIGHTS]
    light = [thing for thing in things if thing["kind"] in LIGHTS]

    def holds(relation: str, pair: list[dict]) -> bool:
        places = [things.index(thing) for thing in pair]
        return len(places) == 2 and [places[0], relation, places[1]] in scene["relations"]

    # Far to the side is not what a person would call above.
    above = len(sky) == 1 and holds("above", sky + ground) and abs(sky[0]["x"] - ground[0]["x"]) < 0.35
    return View(
        scene["background"], ground, sky, light, holds("in front of", ground), holds("next to", ground), above
    )


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
    verb = VERBS.get(thing["kind"], "stand")
    if continuous:
        stem = {"sit": "sitt", "swim": "swimm", "lie": "ly"}.get(verb, verb)
        return ("is " if thing["count"] == 1 else "are ") + stem + "ing"
    return verb if thing["count"] > 1 else {"fly": "flies"}.get(verb, verb + "s")


def _position(thing: dict) -> str:
    return RELATION + ("in the middle" if thing["position"] == "middle" else f"on the {thing['position']}")


def _is(thing: dict) -> str:
    return "is" if thing["count"] == 1 else "are"


def _and(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _place(view: View, places: dict[str, str] = PLACES) -> str:
    """Where the things are; fish alone are in the water, not on it."""
    if not view.ground:
        return UNDER_SKY[view.background]
    place = places[view.background]
    only_fish = view.background == "sea" and all(thing["kind"] == "fish" for thing in view.ground)
    return place.replace("on", "in", 1) if only_fish else place


def _terse(rng: random.Random, view: View) -> str:
    names = [_name(thing) for thing in view.ground + view.sky]
    if view.in_front:
        return f"{names[0]} {RELATION}in front of {names[1]}"
    if view.above:
        under = rng.random() < 0.3
        return f"{names[0]} {RELATION}under {names[1]}" if under else f"{names[1]} {RELATION}above {names[0]}"
    return _and(names) if len(names) > 1 else f"{names[0]} {_place(view)}"


def _painter(rng: random.Random, view: View) -> str:
    names = [_name(thing, plain=False) for thing in view.ground]
    extras = [_name(thing, plain=False) for thing in view.sky + view.light]
    place = _place(view, PAINTER_PLACES)
    if not names:
        return f"{_and(extras)} {RELATION}in the sky {place}"
    text = f"{names[1]} {RELATION}behind {names[0]}" if view.in_front else _and(names)
    return f"{text} {place}" + (f" with {_and(extras)} {RELATION}in the sky" if extras else "")


def _counter(rng: random.Random, view: View) -> str:
    ground, sky = view.ground, view.sky
    names = [_name(thing, "one", {"small": "small", "big": "large"}) for thing in ground]
    in_sky = f"{_name(sky[0], 'one')} {RELATION}in the sky" if sky else ""
    if not ground:
        return f"there {_is(sky[0])} {in_sky}" + (f" and {_name(view.light[0], 'one')}" if view.light else "")
    if len(ground) == 1:
        text = f"there {_is(ground[0])} {names[0]} {_position(ground[0])}"
        if view.above:
            in_sky = f"{_name(sky[0], 'one')} {RELATION}above {'it' if ground[0]['count'] == 1 else 'them'}"
    else:
        first, second = (0, 1) if view.in_front or rng.random() < 0.65 else (1, 0)
        relation = "in front of" if view.in_front else f"to the {('left', 'right')[first]} of"
        text = f"there {_is(ground[first])} {names[first]} {RELATION}{relation} {names[second]}"
    return text + (f" and {in_sky}" if sky else "")


def _guide(rng: random.Random, view: View) -> str:
    things, sky = view.ground or view.sky, view.sky
    names = [_name(thing, sizes={"small": "small", "big": "big"}) for thing in things]
    where = _position(things[0])
    if view.in_front:
        where = f"{RELATION}in front of {names[1]}"
    elif view.beside and (sky or rng.random() < 0.4):
        where = f"{RELATION}next to {names[1]}"
    elif len(things) == 2:
        where += f" and {names[1]} {_position(things[1])}"
    text = f"{_place(view)}, {names[0]} {_verb(things[0])} {where}"
    return text + (f" while {_name(sky[0])} {_verb(sky[0])} {RELATION}in the sky" if sky and view.ground else "")


def _talker(rng: random.Random, view: View) -> str:
    things, light = view.ground or view.sky, view.light
    # More things, fewer words.
    sizes = None if view.sky and len(view.ground) == 2 else {"small": "little", "big": "big"}
    names = [_name(thing, sizes=sizes) for thing in things]
    place, where = _place(view, TALKER_PLACES), ""
    above = f" with {_name(view.sky[0])} {RELATION}in the sky" if view.sky and view.ground else ""
    if len(things) == 2:
        relation = f"{RELATION}in front of" if view.in_front else f"{RELATION}next to" if view.beside else "and"
        where = f" {relation} {names[1]}"
    if light and light[0]["kind"] == "sun":
        opening = rng.choice(("it is a sunny day and", "on a sunny day,")) if sizes else "on a sunny day,"
        return f"{opening} {names[0]} {_verb(things[0], True)} {place}{where}{above}"
    if light:
        where = where if view.ground else f" {RELATION}in the sky"
        return f"{_name(light[0], 'the')} is shining and there {_is(things[0])} {names[0]}{where}{above}"
    opening = rng.choice(("this is a nice picture of", "here you can see"))
    return f"{opening} {names[0]}{where} {place}{above}"


ANNOTATORS = (_terse, _painter, _counter, _guide, _talker)
