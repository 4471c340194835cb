"""What a demo picture shows: kinds, colours, sizes, counts, places and relations, sampled from a seed.

A scene is plain JSON. All lengths are fractions of the picture's side, y grows downwards:

    {"background": "meadow", "look": 81234,           # `look` seeds clouds, hills and other unnamed detail
     "things": [{"kind", "color", "size", "count", "level", "position", "x", "y",
                 "box": [x0, y0, x1, y1], "items": [[x0, y0, x1, y1], ...], "flip": [bool, ...]}, ...],
     "relations": [[0, "left of", 1], ...]}            # indices into `things`; the inverses are listed too

A kind occurs once in a scene, so naming the kind names the thing. `box` spans all `items` (one per count).
"""

import itertools
import random
from typing import NamedTuple

RAINBOW = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
DIM = ("black", "brown", "blue", "purple")
LIGHTS = ("sun", "moon")
MARGIN = 0.02
MAX_RESAMPLES = 200


class Kind(NamedTuple):
    small: float  # height of the small one, as a fraction of the picture's side
    big: float
    aspect: float  # width / height
    colours: tuple[str, ...]
    base_small: float = 0.82  # where the small one touches the ground; small things stand further away
    base_big: float = 0.92


KINDS: dict[str, Kind] = {
    "house": Kind(0.30, 0.46, 0.98, ("red", "yellow", "blue", "pink", "white", "purple"), 0.76, 0.84),
    "tree": Kind(0.31, 0.48, 0.70, ("green",), 0.77, 0.85),
    "car": Kind(0.19, 0.27, 1.85, ("green", "blue", "orange", "purple", "pink", "white"), 0.84, 0.91),
    "bus": Kind(0.25, 0.37, 1.45, ("red", "yellow"), 0.84, 0.92),
    "boat": Kind(0.28, 0.45, 0.92, ("red", "orange", "yellow", "green", "purple", "white"), 0.72, 0.84),
    "ball": Kind(0.20, 0.32, 1.00, RAINBOW),
    "cat": Kind(0.28, 0.41, 0.80, ("black", "orange"), 0.84, 0.93),
    "dog": Kind(0.26, 0.38, 1.14, ("white", "brown"), 0.84, 0.93),
    "flower": Kind(0.27, 0.43, 0.62, ("red", "orange", "yellow", "purple", "pink", "white"), 0.83, 0.92),
    "umbrella": Kind(0.30, 0.45, 0.96, ("red", "orange", "green", "blue", "purple", "pink"), 0.82, 0.89),
    "fish": Kind(0.18, 0.28, 1.66, ("red", "orange", "yellow", "green", "purple", "pink"), 0.86, 0.93),
    "snowman": Kind(0.29, 0.44, 0.66, ("white",), 0.81, 0.90),
    "kite": Kind(0.28, 0.40, 0.74, RAINBOW),
    "balloon": Kind(0.27, 0.39, 0.74, RAINBOW),
    "bird": Kind(0.20, 0.31, 1.32, ("black", "white")),
    "sun": Kind(0.20, 0.20, 1.00, ("yellow",)),
    "moon": Kind(0.18, 0.18, 1.00, ("yellow",)),
}


class Background(NamedTuple):
    ground: tuple[str, ...]
    sky: tuple[str, ...]
    lost_on_ground: tuple[str, ...]  # colours without contrast to the ground; trees and snowmen have outlines
    lost_in_sky: tuple[str, ...] = ("white",)


FLYING = ("kite", "balloon", "bird")
BACKGROUNDS: dict[str, Background] = {
    "meadow": Background(("house", "tree", "cat", "dog", "ball", "flower"), FLYING, ("green",)),
    "beach": Background(("umbrella", "ball", "dog", "cat", "boat"), FLYING, ("yellow", "white")),
    "street": Background(("house", "tree", "car", "bus", "dog", "umbrella"), ("balloon", "bird"), ()),
    "snow": Background(("house", "tree", "snowman", "car", "dog", "cat"), FLYING, ("white",)),
    "night": Background(("house", "tree", "car", "cat", "flower"), ("balloon", "bird"), DIM, DIM),
    "sea": Background(("boat", "fish"), FLYING, ("blue",)),
}

RARE = ("bus", "snowman", "kite", "umbrella")  # at home in few backgrounds: drawn twice as often there
FRONT_KINDS = ("cat", "dog", "ball", "flower", "car", "snowman")
BACK_KINDS = ("house", "tree")
LAYOUTS = {"one": 18, "group": 18, "pair": 24, "front": 10, "sky": 8, "one+sky": 14, "pair+sky": 8}
SLOTS = {"left": 0.26, "middle": 0.5, "right": 0.74}
INVERSE = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above",
    "in front of": "behind", "behind": "in front of", "next to": "next to",
}  # fmt: skip


def sample_scene(seed: int, index: int, attempt: int = 0) -> dict:
    """Scene number `index` of the set `seed`, JSON-serialisable; a pure function of its three arguments.

    `attempt` > 0 gives another scene for the same index; `sample_scenes` uses it to avoid duplicates.
    """
    rng = random.Random(f"{seed}-{index}-{attempt}")
    for _ in range(MAX_RESAMPLES):
        background = rng.choice(tuple(BACKGROUNDS))
        layout = rng.choices(tuple(LAYOUTS), weights=tuple(LAYOUTS.values()))[0]
        things = _sample_things(rng, background, layout)
        if things and _fits(things, may_overlap=layout == "front"):
            things += _sample_light(rng, background, things)
            return {"background": background, "look": rng.randrange(1 << 30), "things": things,
                    "relations": find_relations(things)}  # fmt: skip
    raise RuntimeError(f"no scene of {seed}-{index} fits its picture after {MAX_RESAMPLES} samples")


def sample_scenes(seed: int, total: int) -> list[dict]:
    """The first `total` scenes of the set `seed`; no two have the same `scene_key`.

    A repeated scene is sampled again, looking at earlier indices: a longer set begins like a shorter one.
    """
    seen: set[tuple] = set()
    scenes = []
    for index in range(total):
        attempts = (sample_scene(seed, index, attempt) for attempt in itertools.count())
        scene = next(scene for scene in attempts if scene_key(scene) not in seen)
        seen.add(scene_key(scene))
        scenes.append(scene)
    return scenes


def scene_key(scene: dict) -> tuple:
    """What a scene shows, without jitter and unnamed detail: equal keys mean equal content."""
    fields = ("kind", "color", "size", "count", "position")
    things = sorted(tuple(thing[field] for field in fields) for thing in scene["things"])
    kinds = [thing["kind"] for thing in scene["things"]]
    fronts = sorted((kinds[a], kinds[b]) for a, relation, b in scene["relations"] if relation == "in front of")
    return (scene["background"], *things, *fronts)


def find_relations(things: list[dict]) -> list[list]:
    """Every relation that holds, as [index, relation, index], read off the boxes; inverses included."""
    found: list[list] = []
    for (i, a), (j, b) in itertools.permutations(enumerate(things), 2):
        shared = min(a["box"][2], b["box"][2]) - max(a["box"][0], b["box"][0])
        grounded = a["level"] == b["level"] == "ground"
        holds = {
            "left of": a["x"] < b["x"] - 0.2,
            "above": a["box"][3] < b["box"][1] + 0.02,
            "next to": grounded and i < j and -0.35 < shared < 0,
            "in front of": grounded and shared > 0 and a["box"][3] > b["box"][3],
        }
        for relation in filter(holds.get, holds):
            found += [[i, relation, j], [j, INVERSE[relation], i]]
    return found


def _sample_things(rng: random.Random, background: str, layout: str) -> list[dict]:
    """The ground things from left to right (or the front one before the back one), then those in the sky."""
    if layout == "front":
        return _sample_front(rng, background)
    ground, sky = BACKGROUNDS[background].ground, BACKGROUNDS[background].sky
    things: list[dict] = []
    if layout.startswith("pair"):
        left, right = _choose(rng, ground), _choose(rng, ground)
        if left == right:
            return []
        things = [_sample_thing(rng, background, kind, slot, 0.46)
                  for kind, slot in ((left, "left"), (right, "right"))]  # fmt: skip
        if things[0]["count"] > 1 and things[1]["count"] > 1 and rng.random() < 0.6:
            return []
    # What else may be there: its kinds, the room it has, how many.
    for part, kinds, room, counts in (("one", ground, 0.5, (1,)), ("group", ground, 0.94, (2, 3)),
                                      ("sky", sky, 0.9, (1, 2, 3) if layout == "sky" else (1, 1, 2))):  # fmt: skip
        if part in layout.split("+"):
            kind, slot = _choose(rng, kinds), rng.choice(tuple(SLOTS))
            things.append(_sample_thing(rng, background, kind, slot, room, counts))
    return things


def _choose(rng: random.Random, kinds: tuple[str, ...]) -> str:
    return rng.choices(kinds, weights=[2 if kind in RARE else 1 for kind in kinds])[0]


def _sample_front(rng: random.Random, background: str) -> list[dict]:
    """A small thing before a big one, offset to a side so that both stay recognisable; [] where none fits."""
    fronts = [kind for kind in FRONT_KINDS if kind in BACKGROUNDS[background].ground]
    backs = [kind for kind in BACK_KINDS if kind in BACKGROUNDS[background].ground]
    if not fronts or not backs:
        return []
    x = rng.choice(tuple(SLOTS.values()))
    back = _make_thing(rng, rng.choice(backs), "big", 1, x, background, base=0.80)
    offset = rng.choice((-1, 1)) * rng.uniform(0.10, 0.13)
    front = _make_thing(rng, rng.choice(fronts), "small", 1, back["x"] + offset, background, base=0.94)
    return [front, back] if front["color"] != back["color"] else []


def _sample_thing(
    rng: random.Random, background: str, kind: str, slot: str, room: float, counts: tuple[int, ...] = (1, 1, 1, 2, 3)
) -> dict:
    """A thing of this kind whose items side by side are no wider than `room` (fewer items where they are)."""
    size = rng.choice(("small", "big"))
    count = rng.choice(counts)
    if count > 1 and group_width(kind, size, count) > room:
        size = "small"
    while count > 1 and group_width(kind, size, count) > room:
        count -= 1
    x = SLOTS[slot] if group_width(kind, size, count) < 0.5 else 0.5
    return _make_thing(rng, kind, size, count, x + rng.uniform(-0.02, 0.02), background)


def group_width(kind: str, size: str, count: int) -> float:
    """Width of `count` things side by side, as a fraction of the picture's side."""
    width = getattr(KINDS[kind], size) * KINDS[kind].aspect
    return count * width + (count - 1) * _gap(kind)


def _gap(kind: str) -> float:
    return 0.01 if kind == "tree" else 0.03


def _make_thing(
    rng: random.Random, kind: str, size: str, count: int, x: float, background: str, base: float | None = None
) -> dict:
    level = "sky" if kind in BACKGROUNDS[background].sky else "ground"
    height = getattr(KINDS[kind], size)
    width, total = height * KINDS[kind].aspect, group_width(kind, size, count)
    x = min(max(x, MARGIN + total / 2), 1 - MARGIN - total / 2)
    if base is None:
        base = KINDS[kind].base_small if size == "small" else KINDS[kind].base_big
        base += rng.uniform(-0.012, 0.012)
    if level == "sky":
        base = height + rng.uniform(0.035, 0.06)
    items = []
    for n in range(count):
        left = x - total / 2 + n * (width + _gap(kind))
        bottom = base + (rng.uniform(0.0, 0.03) if count > 1 else 0.0)
        items.append([round(v, 4) for v in (left, bottom - height, left + width, bottom)])
    lost = BACKGROUNDS[background].lost_in_sky if level == "sky" else BACKGROUNDS[background].lost_on_ground
    outlined = len(KINDS[kind].colours) == 1
    colours = [colour for colour in KINDS[kind].colours if outlined or colour not in lost]
    return _thing(kind, rng.choice(colours), size, level, items, [rng.random() < 0.5 for _ in items])


def _thing(kind: str, color: str, size: str, level: str, items: list, flip: list[bool]) -> dict:
    x0s, y0s, x1s, y1s = zip(*items, strict=True)
    box = [min(x0s), min(y0s), max(x1s), max(y1s)]
    x, y = round((box[0] + box[2]) / 2, 4), round((box[1] + box[3]) / 2, 4)
    position = "left" if x < 0.4 else "right" if x > 0.6 else "middle"
    return {
        "kind": kind, "color": color, "size": size, "count": len(items), "level": level, "position": position,
        "x": x, "y": y, "box": box, "items": items, "flip": flip,
    }  # fmt: skip


def _sample_light(rng: random.Random, background: str, things: list[dict]) -> list[dict]:
    """The sun by day, the moon by night, in an upper corner that is free, in about half of the pictures."""
    kind = "moon" if background == "night" else "sun"
    if rng.random() > (0.7 if kind == "moon" else 0.45):
        return []
    for x in rng.sample((0.15, 0.85), 2):
        half, y = KINDS[kind].big / 2, rng.uniform(0.13, 0.16)
        item = [round(v, 4) for v in (x - half, y - half, x + half, y + half)]
        light = _thing(kind, "yellow", "big", "sky", [item], [x > 0.5])
        if not any(overlap(light["box"], thing["box"], 0.03) for thing in things):
            return [light]
    return []


def _fits(things: list[dict], may_overlap: bool) -> bool:
    """Nothing out of the frame and, unless one stands in front of the other, nothing hidden."""
    inside = all(min(t["box"]) >= 0 and max(t["box"]) <= 1 for t in things)
    apart = all(not overlap(a["box"], b["box"], 0.02) for i, a in enumerate(things) for b in things[:i])
    return inside and (apart or may_overlap)


def overlap(a: list[float], b: list[float], margin: float = 0.0) -> bool:
    """Whether two boxes [x0, y0, x1, y1], the first grown by `margin`, share any area."""
    return a[0] - margin < b[2] and b[0] < a[2] + margin and a[1] - margin < b[3] and b[1] < a[3] + margin
