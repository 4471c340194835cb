"""The demo set: pictures are reproducible, captions are true, and the truth check catches what is not."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from nanocaption.demo_set import TRUTH_KINDS, caption_truth, describe_scene, draw_demo_set, draw_scene, sample_scene
from nanocaption.demo_set.captions import ANNOTATORS, MARKS, draft_captions, strip_marks
from nanocaption.demo_set.scenes import BACKGROUNDS, INVERSE, KINDS, sample_scenes, scene_key
from nanocaption.demo_set.things import DRAW_KIND, PALETTE
from nanocaption.demo_set.truth import caption_claims

SEED = 3
TOTAL = 300


@pytest.fixture(scope="module")
def scenes() -> list[dict]:
    return sample_scenes(SEED, TOTAL)


@pytest.fixture(scope="module")
def captions(scenes: list[dict]) -> list[list[str]]:
    return [describe_scene(scene, SEED, index) for index, scene in enumerate(scenes)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def thing(
    kind: str, color: str, count: int, box: list[float], size: str = "big", level: str = "ground"
) -> dict:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    position = "left" if x < 0.4 else "right" if x > 0.6 else "middle"
    return {
        "kind": kind, "color": color, "size": size, "count": count, "level": level, "position": position,
        "x": x, "y": y, "box": box,
    }  # fmt: skip


@pytest.fixture
def harbour() -> dict:
    """A red car left of two green boats, a blue kite above the car."""
    return {
        "background": "beach",
        "things": [
            thing("car", "red", 1, [0.05, 0.6, 0.45, 0.8]),
            thing("boat", "green", 2, [0.55, 0.5, 0.95, 0.8], size="small"),
            thing("kite", "blue", 1, [0.1, 0.05, 0.3, 0.3], level="sky"),
        ],
        "relations": [
            [0, "left of", 1], [1, "right of", 0], [0, "next to", 1], [1, "next to", 0],
            [2, "above", 0], [0, "below", 2], [2, "above", 1], [1, "below", 2], [2, "left of", 1],
        ],
    }  # fmt: skip


# Scenes and pictures


def test_a_seed_gives_the_same_files_for_any_number_of_workers(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 2, "test": 2}
    one = draw_demo_set(tmp_path / "one", SEED, counts, workers=1, progress=False)
    two = draw_demo_set(tmp_path / "two", SEED, counts, workers=2, progress=False)
    other = draw_demo_set(tmp_path / "other", SEED + 1, counts, workers=1, progress=False)
    assert one == two and files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert other != one
    assert not set(files_of(tmp_path / "other").values()) & set(files_of(tmp_path / "one").values())


def test_a_picture_alone_equals_the_same_picture_in_the_set(tmp_path: Path) -> None:
    records = draw_demo_set(tmp_path / "set", SEED, {"train": 9}, workers=2, progress=False)
    assert sample_scene(SEED, 7) == records[7]["scene"]
    draw_scene(sample_scene(SEED, 7)).save(tmp_path / "alone.jpg", "JPEG", quality=92, subsampling=0)
    assert (tmp_path / "alone.jpg").read_bytes() == (tmp_path / "set" / "scene_00007.jpg").read_bytes()
    assert draw_scene(sample_scene(SEED, 7)).tobytes() != draw_scene(sample_scene(SEED, 8)).tobytes()


def test_records_name_their_files_splits_and_captions_in_index_order(tmp_path: Path) -> None:
    records = draw_demo_set(tmp_path, SEED, {"train": 3, "val": 2, "test": 1}, workers=1, progress=False)
    assert [record["split"] for record in records] == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert [record["file_name"] for record in records] == sorted(files_of(tmp_path))
    assert json.loads(json.dumps(records)) == records
    for index, record in enumerate(records):
        assert record["captions"] == describe_scene(record["scene"], SEED, index)
        with Image.open(tmp_path / record["file_name"]) as picture:
            assert (picture.size, picture.mode, picture.format) == ((160, 160), "RGB", "JPEG")


def test_wrong_counts_and_workers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'val' is -1"):
        draw_demo_set(tmp_path, SEED, {"train": 1, "val": -1}, workers=1)
    with pytest.raises(ValueError, match="workers is 0"):
        draw_demo_set(tmp_path, SEED, {"train": 1}, workers=0)


def test_no_scene_occurs_twice_and_a_longer_set_begins_like_a_shorter_one(scenes: list[dict]) -> None:
    assert len({scene_key(scene) for scene in scenes}) == TOTAL
    raw = [sample_scene(SEED, index) for index in range(TOTAL)]
    assert len({scene_key(scene) for scene in raw}) < TOTAL, "resampling is never exercised"
    assert sample_scenes(SEED, 50) == scenes[:50]


def test_300_scenes_show_every_kind_colour_background_count_and_relation(scenes: list[dict]) -> None:
    things = [t for scene in scenes for t in scene["things"]]
    assert {t["kind"] for t in things} == set(KINDS) == set(DRAW_KIND)
    assert {t["color"] for t in things} == set(PALETTE)
    assert {scene["background"] for scene in scenes} == set(BACKGROUNDS)
    assert {t["count"] for t in things} == {1, 2, 3}
    assert {t["position"] for t in things} == {"left", "middle", "right"}
    assert {relation for scene in scenes for _, relation, _ in scene["relations"]} == set(INVERSE)


def test_things_stay_in_the_frame_and_only_front_things_overlap(scenes: list[dict]) -> None:
    for scene in scenes:
        things = scene["things"]
        for t in things:
            assert len(t["items"]) == len(t["flip"]) == t["count"]
            assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in [t["box"], *t["items"]])
        for i, a in enumerate(things):
            for j, b in enumerate(things[:i]):
                wide = min(a["box"][2], b["box"][2]) - max(a["box"][0], b["box"][0])
                high = min(a["box"][3], b["box"][3]) - max(a["box"][1], b["box"][1])
                assert wide <= 0 or high <= 0 or [j, "in front of", i] in scene["relations"]


def test_each_relation_is_listed_with_its_inverse(scenes: list[dict]) -> None:
    for scene in scenes:
        found = {tuple(relation) for relation in scene["relations"]}
        assert found == {(b, INVERSE[relation], a) for a, relation, b in found}


def test_things_are_drawn_in_their_box_and_in_their_colour(scenes: list[dict]) -> None:
    for scene in scenes[:24]:
        bare = draw_scene(scene | {"things": []})
        for t in scene["things"]:
            picture = draw_scene(scene | {"things": [t]})
            x0, y0, x1, y1 = (round(160 * v) for v in t["box"])
            pixels = list(picture.crop((x0, y0, x1, y1)).get_flattened_data())
            near = sum(
                max(abs(a - b) for a, b in zip(p, PALETTE[t["color"]], strict=True)) < 60 for p in pixels
            )
            assert near > 0.12 * len(pixels), (t["kind"], t["color"])
            assert picture.crop((x0, y0, x1, y1)).tobytes() != bare.crop((x0, y0, x1, y1)).tobytes()


def test_edges_are_smooth(scenes: list[dict]) -> None:
    """Blended edges make many more colours than the same drawing with every pixel taken from one point."""
    for scene in scenes[:4]:
        soft = draw_scene(scene)
        hard = draw_scene(scene, 480).resize((160, 160), Image.Resampling.NEAREST)
        assert len(soft.getcolors(160 * 160)) > 1.4 * len(hard.getcolors(160 * 160))


# Captions


def test_five_captions_differ_and_read_as_sentences(captions: list[list[str]]) -> None:
    for five in captions:
        assert len(five) == len(ANNOTATORS) == len(set(five)) == 5
        for caption in five:
            assert re.fullmatch(r"[A-Z][a-z, ]+\.", caption), caption
            assert len(caption.split()) <= 24, caption
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | ,", caption), caption


def test_annotators_agree_without_repeating_each_other(captions: list[list[str]]) -> None:
    """A caption shares most words with the other four, and far fewer with those of another picture."""

    def shared(words: list[str], others: list[str]) -> float:
        known = set(" ".join(others).split())
        return sum(word in known for word in words) / len(words)

    own, foreign = [], []
    for index, five in enumerate(captions):
        for n, caption in enumerate(five):
            words = caption.split()
            own.append(shared(words, five[:n] + five[n + 1 :]))
            foreign.append(shared(words, captions[index - 1][:n] + captions[index - 1][n + 1 :]))
    assert 0.6 < sum(own) / len(own) < 0.9
    assert sum(foreign) / len(foreign) < 0.75 * sum(own) / len(own)


def test_vocabulary_stays_small(captions: list[list[str]]) -> None:
    words = {word for five in captions for caption in five for word in re.findall("[a-z]+", caption.lower())}
    assert 80 <= len(words) <= 150


def test_every_caption_is_true(scenes: list[dict], captions: list[list[str]]) -> None:
    for scene, five in zip(scenes, captions, strict=True):
        for caption in five:
            false = [claim for claim in caption_claims(caption, scene) if not claim.true]
            assert not false, (caption, false)


def test_every_claim_written_is_read(scenes: list[dict]) -> None:
    totals = dict.fromkeys(TRUTH_KINDS, 0)
    for index, scene in enumerate(scenes):
        for draft in draft_captions(scene, SEED, index):
            found = {kind: claims for kind, (_, claims) in caption_truth(strip_marks(draft), scene).items()}
            assert found == {kind: draft.count(MARKS[kind]) for kind in TRUTH_KINDS}, strip_marks(draft)
            totals = {kind: totals[kind] + found[kind] for kind in TRUTH_KINDS}
    assert all(total > TOTAL for total in totals.values())


# Truth


def swap(text: str, pairs: dict[str, str]) -> str:
    return re.sub(r"\b(" + "|".join(pairs) + r")\b", lambda match: pairs[match[0]], text)


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        ("colours", {"red": "blue", "blue": "red", "yellow": "pink", "pink": "yellow", "green": "white",
                     "white": "green", "orange": "black", "black": "orange",
                     "purple": "brown", "brown": "purple"}),
        ("counts", {"one": "two", "two": "three", "three": "one", "a": "four", "an": "four"}),
        ("relations", {"left": "right", "right": "left", "middle": "left", "above": "below", "under": "above",
                       "front": "the sky", "behind": "in front of", "sky": "middle"}),
        ("things", {"house": "boat", "boat": "house", "car": "fish", "tree": "kite", "cat": "bus",
                    "dog": "snowman",
                    "bird": "ball", "ball": "bird", "sun": "flower", "fish": "umbrella", "flower": "moon"}),
    ],
)  # fmt: skip
def test_corrupted_captions_are_caught(
    scenes: list[dict], captions: list[list[str]], kind: str, pairs: dict[str, str]
) -> None:
    true = claims = 0
    for scene, five in zip(scenes, captions, strict=True):
        for caption in five:
            wrong = swap(caption.lower(), pairs)
            if wrong != caption.lower():
                right_now, made_now = caption_truth(wrong, scene)[kind]
                true, claims = true + right_now, claims + made_now
    assert claims > TOTAL
    assert true / claims < 0.6, f"{true} of {claims} corrupted {kind} pass as true"


def test_captions_of_other_pictures_are_mostly_untrue(scenes: list[dict], captions: list[list[str]]) -> None:
    for kind in TRUTH_KINDS:
        pairs = [
            caption_truth(caption, scenes[index - 1])[kind]
            for index, five in enumerate(captions)
            for caption in five
        ]
        assert sum(true for true, _ in pairs) < 0.5 * sum(claims for _, claims in pairs), kind


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A red car.", {"things": (1, 1), "colours": (1, 1), "counts": (1, 1), "relations": (0, 0)}),
        ("A blue car.", {"things": (1, 1), "colours": (0, 1), "counts": (1, 1)}),
        ("two cars", {"things": (1, 1), "counts": (0, 1), "colours": (0, 0)}),
        ("Two GREEN sailboats", {"things": (1, 1), "colours": (1, 1), "counts": (1, 1)}),
        ("2 boats and 3 kites", {"things": (2, 2), "counts": (1, 2)}),
        ("The car is red and the kite is pink.", {"colours": (1, 2), "counts": (0, 0)}),
        ("a red and white car", {"colours": (1, 2), "counts": (1, 1)}),
        ("a purple elephant on the yellow beach", {"things": (0, 0), "colours": (0, 0), "counts": (0, 0)}),
        ("a dog left of a cat", {"things": (0, 2), "counts": (0, 2), "relations": (0, 1)}),
        ("a car to the left of two boats", {"relations": (1, 1)}),
        ("two boats to the left of a car", {"relations": (0, 1)}),
        ("two boats on the right of the car", {"relations": (1, 1)}),
        ("a car is standing next to two boats", {"relations": (1, 1)}),
        (
            "the car to the right of the two green boats",
            {"colours": (1, 1), "counts": (1, 1), "relations": (0, 1)},
        ),
        ("the car on the left of the picture", {"relations": (1, 1)}),
        ("a car in front of two boats", {"relations": (0, 1)}),
        ("a kite flies over a car", {"relations": (1, 1)}),
        ("a kite flies over the beach", {"relations": (0, 0)}),
        ("a car under a kite", {"relations": (1, 1)}),
        ("a car and a blue kite above it", {"relations": (1, 1)}),
        ("a kite and a car above it", {"relations": (0, 1)}),
        ("a car on the left and two boats on the right", {"relations": (2, 2)}),
        ("a car on the right and two boats on the left side", {"relations": (0, 2)}),
        ("on the left is a car and on the right are two boats", {"relations": (2, 2)}),
        ("a car in the sky with a kite in the sky", {"relations": (1, 2)}),
        ("", {"things": (0, 0), "colours": (0, 0), "counts": (0, 0), "relations": (0, 0)}),
        ("a red red a the car car of", {"things": (2, 2)}),
    ],
)
def test_claims_are_read_from_plain_and_clumsy_english(
    harbour: dict, caption: str, expected: dict[str, tuple[int, int]]
) -> None:
    truth = caption_truth(caption, harbour)
    assert tuple(truth) == TRUTH_KINDS
    assert {kind: truth[kind] for kind in expected} == expected


def test_sizes_are_checked_too(harbour: dict) -> None:
    claims = caption_claims("A big red car and a large boat.", harbour)
    assert [claim.true for claim in claims if claim.about == "sizes"] == [True, False]
