"""Several sets as one: which pairs an epoch visits, whose pictures are whose, and which splits are used for what."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest

import train
from nanocaption.base.settings import load_settings
from nanocaption.commands import demo
from nanocaption.data.order import Group, epoch_groups
from nanocaption.data.prepared import folder_name, is_mix, load_records, parse_mix, sample_places, verify
from nanocaption.export.card import write_card
from nanocaption.export.facts import find_facts
from nanocaption.prepare.make import prepare
from nanocaption.runs import checkpoint
from nanocaption.score.split import load_split
from nanocaption.train.steps import check_visits
from nanocaption.use.load import load_models
from tests.raw_sets import CAPTIONS, NAMES, draw, jpeg, make_raw, prepared_records, write


def test_parts_weights_and_folder_names():
    assert parse_mix("coco*0.5, mine") == [("coco", 0.5), ("mine", 1.0)]
    assert folder_name("flickr30k,mine*2.0") == "flickr30k+mine@2"
    assert folder_name("demo") == "demo" and not is_mix("demo")
    assert is_mix("mine*2") and not is_mix("mine*")  # a star may stand in a name
    for wrong in ("a,,b", "a*", "a*0", "a*-1", "a*two", "a*inf", "a*nan", "*2"):
        with pytest.raises(ValueError, match="is no set with a weight; write names with commas"):
            parse_mix(wrong)
    with pytest.raises(ValueError, match="names a set twice: give it a weight"):
        parse_mix("a,a*2")


COUNTS = [5, 3, 0, 1, 4, 2, 5, 5, 5]


def visits(groups: list[Group]) -> Counter:
    return Counter((image, caption) for image, captions, *_ in groups for caption in captions)


@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_a_whole_weight_visits_each_pair_so_often(per_image):
    weights = [1, 2, 2, 3, 1, 1, 1, 2, 1]
    for epoch in range(3):
        seen = visits(epoch_groups(COUNTS, per_image, 7, epoch, weights))
        assert seen == {(i, k): weights[i] for i, count in enumerate(COUNTS) for k in range(count)}
        groups = epoch_groups(COUNTS, per_image, 7, epoch, weights)
        of_caption = [(i, k, *visit) for i, captions, *visit in groups for k in captions]
        assert len(set(of_caption)) == len(of_caption)  # each visit has augmentations of its own


def test_a_share_that_begins_a_new_pass_within_an_epoch_visits_anew():
    for epoch in range(4):
        groups = epoch_groups([1] * 100, 1, 1, epoch, [0.75] * 100)
        assert len(set(groups)) == len(groups) == 75
    assert any(len(group) == 3 for group in epoch_groups([1] * 100, 1, 1, 1, [0.75] * 100))


def test_a_tenth_of_fifteen_pictures_is_three_visits_in_thirty_epochs_and_not_four():
    for rounded_up, expected in ((False, 3), (True, 4)):
        total = Counter()
        for epoch in range(30):
            total += visits(epoch_groups([1] * 15, 1, 1, epoch, [0.1] * 15, rounded_up))
        assert set(total.values()) == {expected}


def test_a_weight_that_would_never_be_visited_is_refused_with_the_least_that_would():
    def check(weights: list[float], epochs: int) -> None:
        settings = load_settings(["--num-epochs", str(epochs), "--captions-per-image", "5", "--dataset", "a,b*0.001"])
        check_visits(settings, SimpleNamespace(token_ids=[[[1]] * 5] * 50, weights=weights, rounded_up=False))

    mixed = [1.0] * 40 + [0.001] * 10
    with pytest.raises(ValueError, match=r"weight of 0.001 none of its 10 pictures .* NUM_EPOCHS = 99: give 0.00101"):
        check(mixed, 99)
    check(mixed, 100)  # once in the run
    with pytest.raises(ValueError, match="the first epoch has no picture"):
        check([0.001] * 50, 1000)


def test_shares_are_not_rounded_up_for_a_rounding_error():
    for share, images in ((0.07, 100), (0.14, 50), (0.55, 100)):
        assert len(epoch_groups([1] * images, 1, 1, 0, [share] * images)) == round(share * images)


def test_each_set_has_its_own_share_in_every_epoch():
    """Two sets of weights with one fraction: 0.5 and 1.5."""
    for epoch in range(6):
        seen = visits(epoch_groups([1] * 34, 1, 3, epoch, [0.5] * 30 + [1.5] * 4))
        of_first = sum(count for (image, _), count in seen.items() if image < 30)
        assert (of_first, sum(seen.values()) - of_first) == (15, 6)


def test_the_scored_validation_images_stand_for_every_set():
    records = [{"split": "val", "set": name} for name in ["a"] * 24 + ["b"] * 8]
    chosen = sample_places(records, 8)
    assert [records[place]["set"] for place in chosen] == ["a"] * 6 + ["b"] * 2 and len(set(chosen)) == 8
    assert sample_places(records[:24], 8) == list(range(8)) and sample_places(records, 99) == list(range(32))
    assert sample_places([{"split": "val"}, {"split": "extra"}] * 5, 0) == []


def test_weights_of_one_are_the_order_there_was():
    for epoch in range(3):
        assert epoch_groups(COUNTS, 2, 7, epoch, [1.0] * 9) == epoch_groups(COUNTS, 2, 7, epoch)


@pytest.mark.parametrize(("weight", "per_image"), [
    (0.5, 1), (0.5, 5), (0.25, 1), (1.5, 1), (0.3, 2), (2.7, 5), (0.01, 1),
])  # fmt: skip
def test_a_broken_weight_visits_a_share_and_then_the_others(weight, per_image):
    weights = [weight if image % 2 else 1.0 for image in range(9)]
    epochs = [epoch_groups(COUNTS, per_image, 7, epoch, weights) for epoch in range(40)]
    assert {len(groups) for groups in epochs} <= {len(epochs[0]), len(epochs[0]) + 1}
    weighed = [visits(groups) for groups in epochs]
    own = [(image, k) for image in range(1, 9, 2) for k in range(COUNTS[image])]
    total = sum((Counter({pair: seen[pair] for pair in own}) for seen in weighed), Counter())
    for pair in own:  # over all epochs every pair comes equally often
        assert abs(total[pair] - 40 * weight) <= 2
    groups = sum(-(-COUNTS[image] // per_image) for image in range(1, 9, 2))
    came = sum(len(groups) for groups in epochs) - 40 * (sum(-(-COUNTS[i] // per_image) for i in range(0, 9, 2)))
    assert came == (40 * round(weight * 100) * groups) // 100  # to the group: nothing is rounded up
    before = [epoch_groups(COUNTS, per_image, 7, epoch, weights, rounded_up=True) for epoch in range(40)]
    assert len({len(groups) for groups in before}) == 1  # the control: as runs of before go on
    assert sum(map(len, before)) >= sum(map(len, epochs))
    others = [(image, k) for image in range(0, 9, 2) for k in range(COUNTS[image])]
    assert all(seen[pair] == 1 for seen in weighed for pair in others)
    assert epochs[3] == epoch_groups(COUNTS, per_image, 7, 3, weights)
    assert epochs[3] != epoch_groups(COUNTS, per_image, 8, 3, weights)


def test_two_halves_in_a_row_are_the_whole():
    counts, weights = [1] * 10, [0.5] * 10
    halves = [visits(epoch_groups(counts, 1, 1, epoch, weights)) for epoch in range(4)]
    assert halves[0] + halves[1] == halves[2] + halves[3] == {(image, 0): 1 for image in range(10)}
    assert halves[0] != halves[2]


@pytest.fixture
def two_sets(tmp_path):
    """DATA_DIR with two sets that have file names in common, but other pictures and captions."""
    prepare("mine", tmp_path, raw_dir=make_raw(tmp_path / "raw"))
    other = draw(tmp_path / "raw2" / "images", [*NAMES[1:4], "z.jpg"])
    for shade, path in enumerate(sorted(other.iterdir())):
        path.write_bytes(jpeg(40 + shade))
    splits = zip([*NAMES[1:4], "z.jpg"], ["train", "train", "val", "extra"], strict=True)
    lines = [{"file_name": name, "captions": [f"another {name}"], "split": split} for name, split in splits]
    write(other.parent / "captions.jsonl", "\n".join(map(json.dumps, lines)))
    prepare("other", tmp_path, raw_dir=other.parent)
    return tmp_path


def test_pictures_of_one_name_stay_apart_and_all_splits_are_there(two_sets, capsys):
    folder = prepare("mine,other*2", two_sets)
    assert folder.name == "mine+other@2"
    for name, shade in ((f"mine/{NAMES[1]}", 21), (f"other/{NAMES[1]}", 40)):
        assert (folder / "images" / name).read_bytes() == jpeg(shade)
    rows = load_records(folder, ("train",))
    assert [row["file_name"] for row in rows] == [f"mine/{n}" for n in NAMES[:4]] + [f"other/{n}" for n in NAMES[1:3]]
    assert [row.get("weight", 1) for row in rows] == [1, 1, 1, 1, 2, 2]
    rows = load_records(folder, ("val",))
    assert [row["file_name"] for row in rows] == [f"mine/{NAMES[4]}", f"other/{NAMES[3]}"]
    assert len(load_records(folder, ("test",))) == 1
    assert [len(load_records(folder, ("train", "val"), cutoff=1))] == [4]  # the first of each split of each set
    assert load_records(folder, "extra")[0]["captions"] == ["another z.jpg"]
    manifest = verify(folder)
    assert manifest["counts"]["train"] == {"images": 6, "captions": 14} and set(manifest["parts"]) == {"mine", "other"}
    shutil.move(two_sets / "mine+other@2", two_sets / "elsewhere")  # what was mixed is links: cheap to make again
    capsys.readouterr()
    before = (prepare("mine,other*2", two_sets) / "captions.json").stat().st_mtime_ns
    assert (prepare("mine,other*2", two_sets) / "captions.json").stat().st_mtime_ns == before


def test_a_picture_in_another_split_of_another_set_is_left_out_and_told(two_sets, capsys):
    copies = {NAMES[0]: "val", NAMES[5]: "train", NAMES[2]: "train"}  # in "mine": train, test, train
    for name in copies:
        write(two_sets / "raw3" / "captions.jsonl", "")
        (two_sets / "raw3" / f"copy of {name}").write_bytes((two_sets / "mine" / "images" / name).read_bytes())
    lines = [{"file_name": f"copy of {name}", "caption": "a copy", "split": split} for name, split in copies.items()]
    write(two_sets / "raw3" / "captions.jsonl", "\n".join(map(json.dumps, lines)))
    prepare("copied", two_sets, raw_dir=two_sets / "raw3")
    capsys.readouterr()
    folder = prepare("mine,copied", two_sets)
    names = f"copied/copy of {NAMES[5]}, mine/{NAMES[0]}"
    told = f"2 pictures ({names}) with a copy in another split of another set, left out"
    assert f"note: {told}" in capsys.readouterr().out and verify(folder)["notes"] == [told]
    train = [row["file_name"] for row in load_records(folder, "train")]
    assert train == [*(f"mine/{name}" for name in NAMES[1:4]), f"copied/copy of {NAMES[2]}"]
    assert f"copied/copy of {NAMES[0]}" in [row["file_name"] for row in load_records(folder, "val")]
    before = (folder / "captions.json").stat().st_mtime_ns
    assert (prepare("mine,copied", two_sets) / "captions.json").stat().st_mtime_ns == before
    manifest = verify(folder)
    del manifest["copies_left_out"]  # mixed by an earlier version, which did not look
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "copies_left_out" in verify(prepare("mine,copied", two_sets))


def test_a_mix_follows_its_sets_and_never_replaces_one(two_sets, monkeypatch):
    digest = verify(prepare("mine,other", two_sets))["captions_sha256"]
    shutil.rmtree(two_sets / "other")
    with pytest.raises(ValueError, match="DATASET = 'other' is not in"):
        prepare("mine,other", two_sets)
    write(two_sets / "raw2" / "captions.jsonl", json.dumps({"file_name": "z.jpg", "caption": "new", "split": "train"}))
    prepare("other", two_sets, raw_dir=two_sets / "raw2")
    assert verify(prepare("mine,other", two_sets))["captions_sha256"] != digest
    with pytest.raises(ValueError, match="names several sets: prepare the one in that folder by itself first"):
        prepare("mine,other", two_sets, raw_dir=two_sets / "raw2")
    (two_sets / "mine").rename(two_sets / "a+b")
    for name in "ab":
        shutil.copytree(two_sets / "other", two_sets / name)
    with pytest.raises(ValueError, match="is a set of its own, not the mix"):
        prepare("a,b", two_sets)


def test_a_run_trains_on_a_mix_and_chosen_splits_and_goes_on_with_them(
    demo_data, tmp_path, flags, capsys, monkeypatch
):
    monkeypatch.setattr(train, "plot_curves", lambda *_, **__: None)
    places = tmp_path / "data"
    places.mkdir()
    (places / "demo").symlink_to(demo_data / "demo")
    images = demo_data / "demo" / "images"
    rows = json.loads((images.parent / "captions.json").read_text())["images"][:6]
    splits = zip(rows, ["train", "extra", "extra", "val", "val", "val"], strict=True)
    write(tmp_path / "raw" / "captions.jsonl", "\n".join(json.dumps(row | {"split": own}) for row, own in splits))
    (tmp_path / "raw" / "images").symlink_to(images)
    prepare("own", places, raw_dir=tmp_path / "raw")
    argv = [*flags, "--data-dir", str(places), "--dataset", "demo,own*1.5", "--train-splits", "train,extra",
            "--num-epochs", "1", "--validation-score-images", "0"]  # fmt: skip
    totals = []
    bar = train.progress_bar
    monkeypatch.setattr(train, "progress_bar", lambda *run: totals.append(bar(*run)) or totals[-1])
    train.main(argv)
    assert abs(totals[0].n - totals[0].total) < 4  # the half of 3 pictures with 5 captions each varies by epoch
    assert "data: 27 images with 135 captions; validation 27" in capsys.readouterr().out
    last = tmp_path / "runs" / "demo+own@1.5-001" / "last.safetensors"
    train.main(["--resume-checkpoint-path", str(last), "--num-epochs", "2"])
    assert "resumed after epoch 1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="TRAIN_SPLITS"):
        train.main(["--resume-checkpoint-path", str(last), "--train-splits", "train"])

    settings = load_settings(argv)
    saved = dict(settings.values)
    split = load_split(settings, "val", saved)
    assert (split.name, len(split.records), len([*split.training])) == ("val", 27, 135)
    assert load_split(settings, "extra", saved).name == "extra"
    split = load_split(load_settings([*argv, "--test-splits", "val,test"]), "test", saved)
    assert (split.name, len(split.records)) == ("val+test", 51)
    with pytest.raises(ValueError, match="no image of the split 'nowhere'; it has extra, test, train, val. Which are"):
        load_split(settings, "nowhere", saved)
    # The card and the demo page find a mix by the name of its folder.
    facts = find_facts(checkpoint.load(last), last, places, "captioner")
    text = write_card(checkpoint.load(last), None, 32, facts)
    assert "- source: a mix of the sets demo, own\n" in text and "- extra: 2 images, 10 captions" in text
    assert "drawn scenes" not in text and r"pictures of the data set demo,own\*1.5" in text
    assert len(demo.held_out(load_models([last], load_settings([])))) == demo.EXAMPLES


def test_records_of_a_plain_set_are_what_they_were(tmp_path):
    folder = prepare("mine", tmp_path, raw_dir=make_raw(tmp_path / "raw"))
    assert load_records(folder, "val") == [row for row in prepared_records() if row["split"] == "val"]
    assert verify(folder)["counts"]["val"]["captions"] == len(CAPTIONS[NAMES[4]])
