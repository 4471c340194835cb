"""Rows that are made once: whole or not there, going on after a kill, damage noticed; and the training sets on them."""

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from nanocaption.base.settings import load_settings
from nanocaption.data import caches, inputs
from nanocaption.data.inputs import encoded_captions, make_inputs
from nanocaption.data.loader import make_loader
from nanocaption.data.order import chunks
from nanocaption.data.tokenizer import encode_batch, load_or_train, train_tokenizer
from nanocaption.model.captioner import ImageToTextModel, build_model
from tests.conftest import ROOT
from tests.unit.data.test_dataset import pattern, picture_set

COUNT = 3 * caches.CHUNK + 10
LIMIT = 10**9


def row(number: int) -> np.ndarray:
    return np.full((4, 3), number % 251, np.uint8)


class Maker:
    """Makes rows, 32 at a time, notes which were asked for, and fails before row `fails_at`."""

    def __init__(self, fails_at: int | None = None):
        self.made, self.asked, self.fails_at = 0, [], fails_at

    def __call__(self, places: list[int]):
        self.asked += places
        for some in chunks(places, 32):
            if self.fails_at is not None and some[0] >= self.fails_at:
                raise RuntimeError("out of memory")
            self.made += len(some)
            yield np.stack([row(number) for number in some])


EXPECTED = np.stack([row(number) for number in range(COUNT)])


def make(path, maker, count=COUNT, limit=LIMIT, chunk=caches.CHUNK):
    return caches.cached_rows(path, caches.Source(count, maker, "test rows", chunk=chunk), limit)


def chunk_files(path):
    return sorted(path.glob("*.npy"))


def test_rows_are_made_once_and_equal_what_was_given(tmp_path):
    path, maker = tmp_path / "cache" / "rows", Maker()
    first, again = make(path, maker), make(path, maker)
    np.testing.assert_array_equal(np.stack([first[number] for number in range(COUNT)]), EXPECTED)
    np.testing.assert_array_equal(list(again), EXPECTED)
    assert maker.made == COUNT == len(again) and not again[0].flags.writeable and not again[0].flags.owndata
    assert sorted(file.name[:5] for file in path.iterdir()) == ["00000", "00001", "00002", "00003", "lock", "whole"]
    with pytest.raises(IndexError, match="row -1"):
        again[-1]


def test_what_was_done_before_an_error_is_not_done_again(tmp_path):
    path = tmp_path / "rows"
    with pytest.raises(RuntimeError, match="out of memory"):
        make(path, Maker(fails_at=caches.CHUNK * 2 + 64))
    maker = Maker()
    np.testing.assert_array_equal(list(make(path, maker)), EXPECTED)
    assert maker.asked == list(range(2 * caches.CHUNK, COUNT))


@pytest.mark.parametrize("change", ["count", "chunk"])
def test_chunks_of_another_length_are_not_taken_for_ones_own(tmp_path, change):
    path = tmp_path / "rows"
    make(path, Maker(), **{"count": {"count": COUNT - 1}, "chunk": {"chunk": 64}}[change])
    maker = Maker()
    np.testing.assert_array_equal(list(make(path, maker)), EXPECTED)
    assert maker.asked == list(range(3 * caches.CHUNK if change == "count" else 0, COUNT))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "header", "gone"])
@pytest.mark.parametrize("number", [0, 3])
def test_damage_is_noticed_and_the_damaged_chunk_alone_is_made_again(tmp_path, capsys, damage, number):
    path = tmp_path / "rows"
    make(path, Maker())
    capsys.readouterr()
    file = chunk_files(path)[number]
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[-7] ^= 1
    elif damage == "header":
        raw = raw.replace(b"4, 3)", b"3, 4)")
    file.write_bytes(raw[: {"cut": len(raw) // 2, "empty": 0}.get(damage, len(raw))])
    if damage == "gone":
        file.unlink()
    maker = Maker()
    np.testing.assert_array_equal(list(make(path, maker)), EXPECTED)
    assert maker.asked == list(range(COUNT))[number * caches.CHUNK :][: caches.CHUNK]
    printed = capsys.readouterr().out
    assert f"going on with image {number * caches.CHUNK} of" in printed
    assert damage == "gone" or f"{file} is damaged: made again" in printed


def test_where_damage_is_found_everything_is_compared(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    make(path, Maker())
    files = chunk_files(path)
    monkeypatch.setattr(caches, "CHECKED_BYTES", 2 * files[0].stat().st_size)  # the first and the last chunk
    for number in (1, 3):
        files[number].write_bytes(files[number].read_bytes()[:-1] + b"\xff")
    maker = Maker()
    np.testing.assert_array_equal(list(make(path, maker)), EXPECTED)
    assert maker.asked == [*range(caches.CHUNK, 2 * caches.CHUNK), *range(3 * caches.CHUNK, COUNT)]


def test_what_a_power_cut_tore_before_the_end_is_found_wherever_it_is(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    with pytest.raises(RuntimeError):
        make(path, Maker(fails_at=3 * caches.CHUNK))
    monkeypatch.setattr(caches, "CHECKED_BYTES", 1)
    file = chunk_files(path)[1]
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    np.testing.assert_array_equal(list(make(path, Maker())), EXPECTED)


def test_too_few_rows_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=f"512 rows came, must be {COUNT}"):
        make(tmp_path / "rows", lambda places: Maker()(places[: 2 * caches.CHUNK]))


def test_a_full_disk_is_an_error_that_keeps_what_is_done(tmp_path, monkeypatch):
    path, real = tmp_path / "rows", os.replace

    def full(source, target):
        if len(chunk_files(path)) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        make(path, Maker())
    assert len(chunk_files(path)) == 2 and len(list(path.iterdir())) == 3  # and the lock
    monkeypatch.undo()
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    assert make(path, Maker()) is None


def test_caches_of_the_old_form_are_named_for_deletion(tmp_path, capsys):
    for name in ("features_train_0123.npy", "pictures_train_0123.npy"):
        (tmp_path / name).write_bytes(b"x" * 2000)
    make(tmp_path / "features_train_4567", Maker())
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'features_train_0123.npy'} is a cache of an earlier version" in printed
    assert "pictures_train" not in printed


def test_too_large_a_cache_is_refused_with_its_size_and_leaves_nothing(tmp_path, capsys):
    path = tmp_path / "rows"
    maker = Maker()
    assert make(path, maker, limit=EXPECTED.nbytes - 1) is None
    assert "CACHE_LIMIT_GB" in capsys.readouterr().out and maker.made == 32 and not chunk_files(path)
    assert make(path, maker, limit=EXPECTED.nbytes) is not None


KILLED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
import numpy as np
from nanocaption.data import caches
def make(places):
    for start in range(0, len(places), 32):
        numbers = places[start : start + 32]
        yield np.stack([np.full((4, 3), number % 251, np.uint8) for number in numbers])
        print("made", numbers[-1] + 1, flush=True)
        if numbers[-1] + 1 == {at}:
            {then}
caches.cached_rows(Path({path!r}), caches.Source({count}, make, "test rows"), 10**9)
"""


def start(path, at, then):
    """A process, without torch, that makes the rows and does `then` once `at` of them are made."""
    code = KILLED.format(root=str(ROOT), path=str(path), count=COUNT, at=at, then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_loses_at_most_a_chunk_and_one_that_waits_finds_the_rows(tmp_path, capfd):
    path = tmp_path / "rows"
    with start(path, 2 * caches.CHUNK + 32, "os.kill(os.getpid(), signal.SIGKILL)") as killed:
        assert killed.wait() == -signal.SIGKILL
    assert len(chunk_files(path)) == 2
    with start(path, 2 * caches.CHUNK + 32, "time.sleep(1.5)") as busy:
        assert f"going on with image {2 * caches.CHUNK}" in busy.stdout.readline()
        maker = Maker()
        np.testing.assert_array_equal(list(make(path, maker)), EXPECTED)
        assert maker.made == 0 and "waiting" in capfd.readouterr().out
        assert busy.wait() == 0, busy.stderr.read()


# --- what the training sets put into them ---


def settings_for(folder, *flags):
    return load_settings([
        "--data-dir", str(folder), "--image-size", "16", "--vit-patch-size", "8", "--vit-embed-dim", "16",
        "--vit-heads", "2", "--vit-layers", "1", "--decoder-embed-dim", "16", "--decoder-heads", "2", "--device", "cpu",
        *flags,
    ])  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        pattern(24, 20 + number).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


RECORDS = [{"file_name": f"{number}.png", "captions": [f"a picture {number}", "a dog"]} for number in range(6)]


def sets_of(folder, frozen, *flags):
    settings = settings_for(folder, *flags)
    settings = settings.replace(FREEZE_ENCODER=frozen)
    captions = [caption for record in RECORDS for caption in record["captions"]]
    tokenizer, _ = load_or_train(captions, folder / "tokenizer", 260)
    torch.manual_seed(0)
    arguments = dict(settings.values) | {"FREEZE_ENCODER": False}
    model = build_model(arguments, tokenizer.get_vocab_size())
    sets = make_inputs(
        settings, folder, {"train": RECORDS[:4], "val": RECORDS[4:]}, tokenizer, model, torch.device("cpu")
    )
    return sets, model


def one_batch(images):
    return next(iter(make_loader(images, [[(2, (0, 1)), (0, (1,))]], workers=0)))


@pytest.mark.parametrize("frozen", [True, False])
def test_batches_from_a_cache_are_those_without_it(folder, frozen):
    (cached, model), (live, _) = (
        sets_of(folder, frozen), sets_of(folder, frozen, "--no-cache-features", "--no-cache-images")
    )  # fmt: skip
    names = sorted(file.name.partition("_")[0] for file in (folder / "cache").iterdir())
    assert names == (["features"] * 2 if frozen else ["pictures"] * 2)
    a, b = one_batch(cached["train"]), one_batch(live["train"])
    assert cached["train"].cached is not None and live["train"].cached is None
    if frozen:
        with torch.no_grad():
            encoded = model.eval().encode(b.images)
        assert a.images.dtype == torch.float16 and torch.equal(a.images, encoded.half())
    else:
        assert a.images.dtype == torch.uint8 and torch.equal(a.images, b.images)
    assert torch.equal(a.target_tokens, b.target_tokens) and not torch.equal(a.images[0], a.images[1])


def test_augmented_pictures_come_from_the_cache_and_are_those_without_it(folder):
    flags = ("--random-crop-area", "0.5", "--random-flip")
    cached, live = sets_of(folder, True, *flags)[0], sets_of(folder, True, *flags, "--no-cache-images")[0]
    assert cached["train"].cached[0].dtype == np.uint8 and cached["val"].cached[0].dtype == np.float16
    before = np.stack(list(cached["train"].cached))
    a, b = (one_batch(sets["train"].at_epoch(3)) for sets in (cached, live))
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, one_batch(live["train"]).images)
    np.testing.assert_array_equal(list(cached["train"].cached), before)


def test_resident_rows_are_the_batchs_own(folder):
    """Also in the set of an epoch, in a part, and from a worker that was started."""
    sets, _ = sets_of(folder, True)
    plain = one_batch(sets["train"]).to(torch.device("cpu"))
    sets["train"].keep_on(torch.from_numpy(np.stack(list(sets["train"].cached))))
    for images in (sets["train"], sets["train"].at_epoch(1), sets["train"].part([0, 1, 2])):
        numbers = one_batch(images)
        assert numbers.images.tolist() == [2, 0]
        assert torch.equal(numbers.to(torch.device("cpu"), images.resident).images, plain.images)
    assert one_batch(sets["train"].part([3, 2, 1])).images.tolist() == [1, 3]
    worker = pickle.loads(pickle.dumps(sets["train"]))
    assert worker.resident is None and one_batch(worker).images.tolist() == [2, 0]


def test_a_worker_that_is_started_maps_the_cache_itself(folder):
    images = sets_of(folder, False)[0]["train"]
    pickled = pickle.dumps(images)
    assert pickled.count(np.array(images.cached[0]).tobytes()) == 0  # the rows themselves are not in it
    again = pickle.loads(pickled)
    assert len(again.cached) == len(images) and torch.equal(one_batch(again).images, one_batch(images).images)


def test_kept_captions_are_those_encoded_anew(tmp_path, monkeypatch, capsys):
    """Read again, not encoded again; another tokenizer or length asks for others; too large a file is no error."""
    texts = [f"A dog number {n}, <pad> {'and a cat ' * (n % 9)}" for n in range(300)] + ["", "\ud83d is 东京"[1:]]
    small, large = (train_tokenizer(texts, tmp_path / str(size), size) for size in (270, 300))
    settings = load_settings(["--max-seq-len", "20"])
    expected = {name: encode_batch(t, texts, 20) for name, t in (("small", small), ("large", large))}
    assert max(map(len, expected["small"])) == 20 and expected["small"] != expected["large"]
    monkeypatch.setattr(inputs, "KEPT_FROM", 300)

    def ids(tokenizer, *flags):
        how = load_settings(["--max-seq-len", "20", *flags]) if flags else settings
        return [list(map(int, row)) for row in encoded_captions(how, tmp_path, "train", texts, tokenizer)]

    assert ids(small) == expected["small"] and ids(large) == expected["large"]
    assert len(list((tmp_path / "cache").glob("tokens_train_*"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "encode_batch", lambda *_: pytest.fail("encoded again"))
        assert ids(small) == expected["small"]
        with pytest.raises(pytest.fail.Exception, match="encoded again"):
            ids(small, "--max-seq-len", "19")
    assert ids(small, "--max-seq-len", "18", "--cache-limit-gb", "0") == encode_batch(small, texts, 18)
    assert "more than CACHE_LIMIT_GB" in capsys.readouterr().out
    monkeypatch.setattr(inputs, "KEPT_FROM", 1000)
    monkeypatch.setattr(inputs, "cached_rows", lambda *_: pytest.fail("kept a small set"))
    assert ids(small) == expected["small"]


def test_features_that_float16_cannot_hold_are_an_error_with_its_fix(folder, monkeypatch):
    monkeypatch.setattr(ImageToTextModel, "encode", lambda self, images: torch.full((len(images), 4, 2), 1e6))
    with pytest.raises(ValueError, match="CACHE_FEATURES = False"):
        sets_of(folder, True)


def test_the_key_follows_weights_about_and_pictures(tmp_path):
    images = picture_set(tmp_path, [1, 1])
    weights = {"a": np.arange(6, dtype=np.uint8), "b": np.ones(2, dtype=np.uint8)}
    keys = [caches.key_of(images.paths, tmp_path, ["x", 1], weights)]
    assert caches.key_of(images.paths, tmp_path, ["x", 1], dict(reversed(weights.items()))) == keys[0]
    keys.append(caches.key_of(images.paths, tmp_path, ["x", 2], weights))
    keys.append(caches.key_of(images.paths[:1], tmp_path, ["x", 1], weights))
    keys.append(caches.key_of(images.paths, tmp_path, ["x", 1], {**weights, "a": weights["a"] + np.uint8(1)}))
    keys.append(caches.key_of(images.paths, tmp_path, ["x", 1]))
    pattern(20, 16).save(tmp_path / "1.png")
    keys.append(caches.key_of(images.paths, tmp_path, ["x", 1], weights))
    for name in ("train", "restval"):  # pictures of one name, size and time
        (tmp_path / name).mkdir()
        shutil.copy2(tmp_path / "0.png", tmp_path / name)
        keys.append(caches.key_of([tmp_path / name / "0.png"], tmp_path, ["x", 1], weights))
    assert len(set(keys)) == len(keys)
