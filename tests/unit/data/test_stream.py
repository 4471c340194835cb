"""A streamed set is the unpacked one: pictures, captions, order; and the order of a larger one, window by window."""

import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from nanocaption.base.settings import load_settings
from nanocaption.data import shard_index, shards, stream
from nanocaption.data.dataset import ImageTextDataset, collate_fn
from nanocaption.data.order import Steps, epoch_steps, filled, flattened, number_of_captions
from nanocaption.data.prepared import load_records
from nanocaption.data.tokenizer import encode_batch, train_tokenizer
from nanocaption.data.transform import load_image
from nanocaption.prepare.check import Rules
from nanocaption.prepare.make import prepare
from nanocaption.train import steps as train_steps
from tests.shard_sets import WRITERS, samples, write_tars

SPEC = {"size": 24, "resize": 24, "crop": True, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
NUMBER, EACH, LONGEST = 47, 12, 9


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """A DATA_DIR with one set as tars and as parquet, streamed, and unpacked."""
    folder = tmp_path_factory.mktemp("sets")
    for kind, writer in WRITERS.items():
        raw = writer(folder / f"raw_{kind}", samples(NUMBER), EACH)
        prepare(kind, folder, raw_dir=raw, stream=str(raw))
    prepare("unpacked", folder, raw_dir=folder / "raw_tar")
    return folder


@pytest.fixture(scope="module")
def tokenizer(sets, tmp_path_factory):
    records = load_records(sets / "unpacked", "train")
    return train_tokenizer([c for record in records for c in record["captions"]], tmp_path_factory.mktemp("t"), 320)


def streamed(folder: Path, tokenizer, case: str = "keep") -> stream.StreamedDataset:
    records = stream.TrainingRecords(folder, ("train",), None, case)
    return stream.StreamedDataset(folder, stream.encode(records, tokenizer, LONGEST, 2), SPEC)


def unpacked(folder: Path, tokenizer) -> ImageTextDataset:
    records = load_records(folder, "train")
    ids = [encode_batch(tokenizer, record["captions"], LONGEST) for record in records]
    return ImageTextDataset(records, folder / "images", ids, SPEC)


@pytest.mark.parametrize("kind", WRITERS)
def test_pictures_captions_and_order_are_those_of_the_unpacked_set(sets, tokenizer, kind):
    assert (sets / kind / "captions.json").read_bytes() == (sets / "unpacked" / "captions.json").read_bytes()
    ours, theirs = streamed(sets / kind, tokenizer), unpacked(sets / "unpacked", tokenizer)
    settings = load_settings(["--batch-size", "10"])
    for epoch in range(2):
        steps = [*train_steps.whole_steps(settings, ours, epoch)]
        assert steps == train_steps.whole_steps(settings, theirs, epoch)
        for step in steps:
            mine, other = (collate_fn([images[group] for group in step]) for images in (ours, theirs))
            assert all((a == b).all() for a, b in zip(mine[:4], other[:4], strict=True))
    assert [path.name for path in ours.paths] == [path.name for path in theirs.paths]
    other = ours.paths[1]._replace(file_name="another")
    assert not (load_image(other, SPEC) == load_image(ours.paths[0], SPEC)).all(), "the control: pictures differ"


@pytest.mark.parametrize("kind", WRITERS)
def test_validation_pictures_are_found_by_their_records(sets, kind):
    records = load_records(sets / kind, ("val", "test"))
    plain = load_records(sets / "unpacked", ("val", "test"))
    assert [{**record, "place": 0} for record in records] == [{**record, "place": 0} for record in plain]
    for record, path in zip(records, shard_index.paths_of(sets / kind / "images", records), strict=True):
        assert (load_image(path, SPEC) == load_image(sets / "unpacked" / "images" / record["file_name"], SPEC)).all()


def test_a_worker_that_is_started_reads_the_same(sets, tokenizer):
    for kind in WRITERS:
        ours = streamed(sets / kind, tokenizer)
        again = pickle.loads(pickle.dumps(ours))
        group = (5, tuple(range(ours.counts[5])))
        assert (again[group][0] == ours[group][0]).all() and list(map(list, again[group][1])) == list(
            map(list, ours[group][1]))  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_BYTES", 4000)
        raw = write_tars(folder / "raw", samples(200), 30)
        return prepare("large", folder, raw_dir=raw, stream=str(raw), rules=Rules(workers=1))


@pytest.fixture
def small_windows(large, tokenizer, monkeypatch) -> stream.StreamedDataset:
    """A set of many windows of several blocks each."""
    monkeypatch.setattr(stream, "WINDOW_BYTES", 25_000)
    return streamed(large, tokenizer)


def test_each_pair_once_an_epoch_in_an_order_of_seed_and_epoch_alone(small_windows):
    images = small_windows
    everything = [(image, caption) for image, count in enumerate(images.counts) for caption in range(count)]
    orders = []
    for epoch in range(3):
        steps = [*images.steps(5, 20, 7, epoch)]
        assert steps == [*images.steps(5, 20, 7, epoch)] and len(steps) == len(images.steps(5, 20, 7, epoch))
        pairs = [(image, caption) for step in steps for image, captions in step for caption in captions]
        assert sorted(pairs) == everything
        assert {number_of_captions(step) for step in steps[:-1]} <= set(range(15, 26))
        orders.append(pairs)
    assert orders[0] != orders[1] != orders[2] and [*images.steps(5, 20, 8, 0)] != [*images.steps(5, 20, 7, 0)]
    assert len({len(images.steps(5, 20, 7, epoch)) for epoch in range(5)}) == 1


def test_what_is_read_together_lies_in_a_few_blocks_from_all_over_the_set(small_windows):
    images = small_windows
    windows = [*images.windows(1, 0)]
    assert len(windows) > 5 and sorted(itertools.chain(*windows)) == list(range(len(images)))
    block = images.paths.index.rows["block"][images.paths.places]
    shard = images.paths.index.rows["shard"][images.paths.places]
    for window in windows:
        assert len(window) < len(images) / 4
        own = {*block[window].tolist()}
        assert {place for place in range(len(images)) if block[place] in own} == set(window), "whole blocks"
    assert max(len({*shard[window].tolist()}) for window in windows) > 2
    sizes = [sum(images.paths[place].length for place in window) for window in windows]
    assert max(sizes) < 2 * sum(sizes) / len(sizes)


def test_two_processes_have_each_pair_once_between_them(small_windows, monkeypatch):
    settings = load_settings(["--batch-size", "10"])
    monkeypatch.setattr(train_steps.devices, "world_size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr(train_steps.devices, "rank", lambda rank=rank: rank)
        steps = train_steps.steps_of_epoch(settings, small_windows, 0)
        assert isinstance(steps, Steps)
        found.append([(image, c) for step in steps for batch in step for image, its in batch for c in its])
    assert abs(len(found[0]) - len(found[1])) < 60 and not set(found[0]) & set(found[1])
    assert sorted(found[0] + found[1]) == [
        (image, caption) for image, count in enumerate(small_windows.counts) for caption in range(count)]  # fmt: skip


def test_steps_are_made_anew_whenever_they_are_asked_for():
    made = []
    steps = Steps(5, lambda: made.append(1) or iter("abcde"))
    assert [*steps] == [*steps] == list("abcde") and len(made) == 2
    rest = steps[2:]
    assert isinstance(rest, Steps) and len(rest) == 3 and [*rest] == list("cde") and [*rest[1:]] == list("de")
    assert steps[:2] == ["a", "b"] and steps[1] == "b" and steps[-1] == "e" and not steps[5:]
    with pytest.raises(IndexError):
        steps[5]
    assert [*flattened(Steps(2, lambda: iter([[1, 2], [3]])))] == flattened([[1, 2], [3]]) == [1, 2, 3]


def test_steps_take_no_more_groups_than_the_next_ones():
    counts, taken = [1 + place % 5 for place in range(300)], []
    groups = [(place, tuple(range(count))) for place, count in enumerate(counts)]
    source = (taken.append(group) or group for group in groups)
    goals = list(range(20, sum(counts) - 20, 20))
    steps = filled(source, len(groups), goals)
    first = next(steps)
    assert len(taken) < 60 and first == next(filled(groups, len(groups), goals))
    whole = epoch_steps(counts, 5, 20, 3, 1)
    assert sorted(group for step in whole for group in step) == sorted(
        (image, its) for step in whole for image, its in step)  # fmt: skip


def test_a_changed_picture_is_an_error_and_never_another_picture(sets, tokenizer, tmp_path):
    raw = write_tars(tmp_path / "raw", samples(20), 20)
    images = streamed(prepare("mine", tmp_path, raw_dir=raw, stream=str(raw)), tokenizer)
    path, group = images.paths[2], (2, (0,))
    before = images[group][0]
    shard, about = Path(path.shard), os.stat(path.shard)
    data = bytearray(shard.read_bytes())
    data[path.start + path.length // 2] ^= 1
    with shard.open("r+b") as file:  # in place, as size and time tell nothing
        file.write(data)
    os.utime(shard, ns=(about.st_atime_ns, about.st_mtime_ns))
    shards.check_shards(images.images_dir.parent)
    with pytest.raises(ValueError, match=rf"{path.file_name} in .*00000.tar cannot be read: .*changed since") as told:
        images[group]
    assert "\n" not in str(told.value)
    data[path.start + path.length // 2] ^= 1
    shard.write_bytes(data)
    assert (images[group][0] == before).all(), "the control: with the old bytes it is read"


def test_repeats_are_left_out_of_training_and_counted(tmp_path, tokenizer):
    its = samples(20)
    its[0] = its[0]._replace(captions=["a dog  runs", "a dog runs", "a cat"])
    raw = write_tars(tmp_path / "raw", its, 20)
    folder = prepare("mine", tmp_path, raw_dir=raw, stream=str(raw))
    records = stream.TrainingRecords(folder, ("train",), None, "keep")
    found = stream.encode(records, tokenizer, LONGEST, 2)
    images = stream.StreamedDataset(folder, found, SPEC)
    assert found.repeats == 1 and images.counts[0] == 2
    assert [list(ids) for ids in images.token_ids[0]] == encode_batch(tokenizer, ["a dog runs", "a cat"], LONGEST)
    assert found.cut == [number for number in found.cut if number > LONGEST]
    assert stream.encode(records, tokenizer, LONGEST, 2) == found, "the second time it is read"
    few = stream.TrainingRecords(folder, ("train",), 3, "keep")
    assert len(stream.StreamedDataset(folder, stream.encode(few, tokenizer, LONGEST, 2), SPEC)) == 3


def test_what_is_held_of_a_picture_is_a_few_bytes(small_windows):
    held = [small_windows.counts, small_windows.by_block, small_windows.paths.places]
    assert sum(np.asarray(one).nbytes for one in held) == 10 * len(small_windows)
    assert len(pickle.dumps(small_windows)) < 100 * len(small_windows)
