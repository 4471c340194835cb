"""Splits that are drawn: exact counts, from names and seed alone, copies together, growth that moves nothing."""

import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from nanocaption.data.prepared import verify
from nanocaption.prepare import check, splits
from nanocaption.prepare.make import prepare
from tests.raw_sets import write_csv


def names(number: int, first: int = 0) -> list[str]:
    return [f"{place}.jpg" for place in range(first, first + number)]


def drawn_from(names: list[str], *how) -> dict[str, str]:
    return dict(zip(names, splits.draw(names, *how), strict=True))


def counts(drawn: dict[str, str]) -> tuple[int, int, int]:
    found = Counter(drawn.values())
    return found["train"], found["val"], found["test"]


@pytest.mark.parametrize(("pictures", "expected"), [
    (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (6, 3, 1)), (59, (35, 19, 5)), (60, (34, 20, 6)), (61, (35, 20, 6)),
    (100, (70, 20, 10)), (200, (160, 20, 20)), (400, (360, 20, 20)), (1000, (900, 50, 50)),
    (8091, (7281, 405, 405)), (30_000, (27_000, 1500, 1500)),
])  # fmt: skip
def test_counts_are_exact(pictures, expected):
    for seed in (1, 2):
        assert counts(drawn_from(names(pictures), seed)) == expected


def test_a_larger_set_never_gives_a_split_fewer_pictures():
    before = splits.quotas(3)
    for number in range(4, 3000):
        now = splits.quotas(number)
        assert now["val"] >= before["val"] >= 1 and now["test"] >= before["test"] >= 1 and sum(now.values()) < number
        before = now


def test_order_and_seed():
    given = names(500)
    drawn = drawn_from(given, 1)
    random.Random(0).shuffle(given)
    assert drawn_from(given, 1) == drawn
    assert drawn_from(given, 2) != drawn


def test_a_set_made_afresh_after_growth_moves_few_and_none_between_val_and_test():
    before, after = drawn_from(names(1000), 1), drawn_from(names(1020), 1)
    moved = {(before[name], after[name]) for name in before if before[name] != after[name]}
    assert moved <= {("val", "train"), ("test", "train"), ("train", "val"), ("train", "test")}
    assert sum(before[name] != after[name] for name in before) <= 6


def test_known_pictures_stay_and_new_ones_fill_up():
    known = drawn_from(names(60), 1)
    grown = drawn_from(names(500), 1, (), known)
    assert {name: grown[name] for name in known} == known
    assert counts(grown) == (450, 25, 25)
    assert drawn_from(names(500), 1, (), grown) == grown
    few = drawn_from(names(61), 1, (), dict.fromkeys(names(60), "train"))
    assert counts(few)[0] == 60  # what is known does not move, however little is left to draw from


def test_copies_lie_in_one_split_and_the_counts_hold():
    for seed in range(20):
        copies = [[f"{place}.jpg", f"{place + 1}.jpg"] for place in range(0, 40, 2)]
        drawn = drawn_from(names(200), seed, copies)
        assert all(drawn[a] == drawn[b] for a, b in copies)
        assert counts(drawn) == (160, 20, 20)
        # The control: without knowing of them some would be parted.
        apart = drawn_from(names(200), seed)
        assert any(apart[a] != apart[b] for a, b in copies)


def test_a_copy_of_a_known_picture_goes_where_that_one_is():
    known = {"0.jpg": "test", "1.jpg": "val", "2.jpg": "train"}
    drawn = drawn_from(names(9), 1, [["0.jpg", "3.jpg"], ["1.jpg", "4.jpg"], ["2.jpg", "5.jpg"]], known)
    assert [drawn[name] for name in names(6)] == ["test", "val", "train"] * 2
    assert drawn_from(names(3), 1, [["0.jpg", "2.jpg"]], known)["2.jpg"] == "test"


def test_groups_too_large_for_a_split_go_to_training_unless_it_would_stay_empty():
    drawn = drawn_from(names(100), 1, [names(50)])
    assert {drawn[name] for name in names(50)} == {"train"} and counts(drawn) == (70, 20, 10)
    assert set(drawn_from(names(6), 1, [names(2), names(2, 2), names(2, 4)]).values()) == {"train", "val", "test"}
    for seed in range(10):
        assert set(drawn_from(names(6), seed, [names(4)]).values()) == {"train", "val", "test"}


# --- sets ---


def raw_pictures(folder: Path, pictures: dict[str, Image.Image | bytes]) -> Path:
    """captions.csv without splits, and the pictures."""
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        if isinstance(picture, bytes):
            (folder / name).write_bytes(picture)
        else:
            picture.save(folder / name)
    write_csv(folder / "captions.csv", ["image", "caption"], [[name, f"a dog {name[:-4]}"] for name in pictures])
    return folder


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (10, 10), (number % 256, number // 256 * 50, 99))


def split_of(folder: Path) -> dict[str, str]:
    return {row["file_name"]: row["split"] for row in json.loads((folder / "captions.json").read_text())["images"]}


def test_sixty_pictures_make_a_set(tmp_path):
    raw = raw_pictures(tmp_path / "raw", {f"{n}.png": picture(n) for n in range(60)})
    folder = prepare("mine", tmp_path, raw_dir=raw)
    assert {name: found["images"] for name, found in verify(folder)["counts"].items()} == {
        "train": 34, "val": 20, "test": 6}  # fmt: skip
    assert "drawn with DATA_SEED = 1" in verify(folder)["notes"][0]


def test_copies_are_not_parted_and_nothing_is_left_out(tmp_path, monkeypatch):
    """Every picture twice: as the same file, and as another file with the same pixels. Each is decoded once."""
    twice: dict[str, Image.Image | bytes] = {}
    for n in range(40):
        file = io.BytesIO()
        picture(n).save(file, "PNG", compress_level=1)
        twice |= {f"a{n}.png": picture(n), f"b{n}.png": file.getvalue() if n % 2 else picture(n)}
    raw = raw_pictures(tmp_path / "raw", twice)
    decoded, examine = [], check.examine
    monkeypatch.setattr(check, "examine", lambda path: decoded.append(path) or examine(path))
    folder = prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(workers=1))
    found = split_of(folder)
    assert len(found) == len(decoded) == 80
    assert all(found[f"a{n}.png"] == found[f"b{n}.png"] for n in range(40))
    copies = json.loads((folder / "report.json").read_text())["pictures"]["copies"]
    assert copies["groups"] == 40 and copies["across_splits"] == 0 and copies["left_out"] == []
    assert counts(found) == (52, 20, 8)


def test_counts_are_those_of_the_pictures_that_can_be_used(tmp_path):
    files = {f"{n}.png": picture(n) for n in range(100)} | {f"bad{n}.png": b"no picture" for n in range(20)}
    folder = prepare("mine", tmp_path, raw_dir=raw_pictures(tmp_path / "raw", files),
                     rules=check.Rules(max_bad_fraction=0.5))  # fmt: skip
    assert counts(split_of(folder)) == (70, 20, 10)


@pytest.mark.parametrize(("files", "message"), [
    ({"a.png": picture(1), "b.png": picture(2)}, r"2 pictures are too few to draw train, val and test: 3 are needed"),
    ({"a.png": picture(1), "b.png": picture(2), "c.png": picture(2)}, "3 pictures can be used: too few .* no copies"),
    ({"a.png": picture(1), "b.png": picture(2), "c.png": b"none"}, "2 pictures can be used: too few"),
])  # fmt: skip
def test_too_few_are_refused_with_the_number_needed(tmp_path, files, message):
    raw = raw_pictures(tmp_path / "raw", files)
    with pytest.raises(ValueError, match=message):
        prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(max_bad_fraction=0.5))


def test_a_cutoff_is_a_part_of_the_whole_draw(tmp_path):
    raw = raw_pictures(tmp_path / "raw", {f"{n}.png": picture(n) for n in range(100)})
    part = split_of(prepare("part", tmp_path, raw_dir=raw, cutoff=5))
    assert counts(part) == (5, 5, 5)
    whole = split_of(prepare("whole", tmp_path, raw_dir=raw))
    assert part.items() <= whole.items()
    assert split_of(prepare("part", tmp_path, raw_dir=raw)) == whole
