"""Scene -> questions about it with their answers, a pure function of the scene: any drawn set has them.

    colour      "What colour is the kite?"           what has more than one colour to choose from
    count       "How many cats are there?"           1, 2 or 3
    relation    "What is left of the tree?"          where one thing alone is there, and not the sun or the moon
    is there    "Is there a dog in the picture?"     as many yes as no for each picture

Nothing but the picture should tell an answer: the thing that is not there is one of another scene, so that each kind is
asked for about as often with either answer, and of a car of another colour ("Is there a red car in the picture?") the
car is there.
"""

import random
from typing import TypedDict

from nanocaption.demo_set.captions import PLURALS
from nanocaption.demo_set.scenes import KINDS, LIGHTS, sample_scene

RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
MOST_RELATIONS = 3  # questions of a picture
STRAIGHT = 0.35  # farther to the side is not what a person would call above or below


class Asked(TypedDict):
    """A question about a scene."""

    question: str
    answer: str
    type: str  # colour, count, relation, is there
    answer_type: str  # of VQA: yes/no, number, other


def ask_scene(scene: dict) -> list[Asked]:
    """Questions about a scene from `sample_scene` with their only answers; at least two, each once."""
    rng = random.Random(f"questions-{scene['look']}")
    return [*_colours(scene), *_counts(rng, scene), *_relations(rng, scene), *_presence(rng, scene)]


def _noun(thing: dict) -> str:
    return thing["kind"] if thing["count"] == 1 else _plural(thing["kind"])


def _plural(kind: str) -> str:
    return PLURALS.get(kind, kind + "s")


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _colours(scene: dict) -> list[Asked]:
    return [
        Asked(question=f"What colour {'is' if thing['count'] == 1 else 'are'} the {_noun(thing)}?",
              answer=thing["color"], type="colour", answer_type="other")
        for thing in scene["things"] if len(KINDS[thing["kind"]].colours) > 1
    ]  # fmt: skip


def _counts(rng: random.Random, scene: dict) -> list[Asked]:
    """All groups, and a quarter of the single things, so that one is not nearly always the answer."""
    some = [thing for thing in scene["things"] if thing["kind"] not in LIGHTS and
            (thing["count"] > 1 or rng.random() < 0.25)]  # fmt: skip
    return [Asked(question=f"How many {_plural(thing['kind'])} are there?", answer=str(thing["count"]), type="count",
                  answer_type="number") for thing in some]  # fmt: skip


def _relations(rng: random.Random, scene: dict) -> list[Asked]:
    things, found = scene["things"], []
    for place, thing in enumerate(things):
        for relation in RELATIONS:
            subjects = [things[a] for a, name, b in scene["relations"] if (name, b) == (relation, place)]
            vague = relation in ("above", "below") and any(abs(one["x"] - thing["x"]) > STRAIGHT for one in subjects)
            if len(subjects) == 1 and not vague and subjects[0]["kind"] not in LIGHTS:
                found.append(Asked(question=f"What is {relation} the {_noun(thing)}?", answer=_noun(subjects[0]),
                                   type="relation", answer_type="other"))  # fmt: skip
    return rng.sample(found, min(MOST_RELATIONS, len(found)))


def _presence(rng: random.Random, scene: dict) -> list[Asked]:
    """One yes and one no by kind, and where something has a colour to choose from another two by colour."""
    there = [thing for thing in scene["things"] if thing["kind"] not in LIGHTS]
    named = [(rng.choice(there)["kind"], "yes"), (_absent_kind(rng, scene), "no")]
    if colourful := [thing for thing in there if len(KINDS[thing["kind"]].colours) > 1]:
        one, other = rng.choice(colourful), rng.choice(colourful)
        colour = rng.choice([colour for colour in KINDS[other["kind"]].colours if colour != other["color"]])
        named += [(f"{one['color']} {one['kind']}", "yes"), (f"{colour} {other['kind']}", "no")]
    return [Asked(question=f"Is there {_a(words)} in the picture?", answer=answer, type="is there",
                  answer_type="yes/no") for words, answer in named]  # fmt: skip


def _absent_kind(rng: random.Random, scene: dict) -> str:
    """The kind of a thing of another scene that this one does not have."""
    own = {thing["kind"] for thing in scene["things"]} | set(LIGHTS)
    while True:
        other = sample_scene(rng.randrange(1 << 30), 0)
        kinds = [thing["kind"] for thing in other["things"] if thing["kind"] not in own]
        if kinds:
            return rng.choice(kinds)
