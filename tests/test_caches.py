"""Rows that are made once: whole or not there, going on after a kill, damage noticed; and the training sets on them."""

import json
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
from nanocaption.data.tokenizer import encode_batch, load_or_train, train_tokenizer
from nanocaption.model.captioner import ImageToTextModel, build_model
from tests.conftest import ROOT
from tests.test_dataset import pattern, picture_set

COUNT = 3 * caches.CHUNK + 10
LIMIT = 10**9


def row(number: int) -> np.ndarray:
    return np.full((4, 3), number % 251, np.uint8)


class Source:
    """rows_from of COUNT rows, 32 at a time, that counts its rows and fails before row `fails_at`."""

    def __init__(self, fails_at: int | None = None):
        self.made, self.starts, self.fails_at = 0, [], fails_at

    def __call__(self, start: int):
        self.starts.append(start)
        for first in range(start, COUNT, 32):
            if self.fails_at is not None and first >= self.fails_at:
                raise RuntimeError("out of memory")
            rows = np.stack([row(number) for number in range(first, min(first + 32, COUNT))])
            self.made += len(rows)
            yield rows


EXPECTED = np.stack([row(number) for number in range(COUNT)])


def make(path, source, key="a" * 64, count=COUNT, limit=LIMIT):
    return caches.cached_rows(path, key, count, source, limit, "test rows")


def test_rows_are_made_once_and_equal_what_was_given(tmp_path):
    path, source = tmp_path / "cache" / "rows.npy", Source()
    first, again = make(path, source), make(path, source)
    np.testing.assert_array_equal(first, EXPECTED)
    np.testing.assert_array_equal(again, EXPECTED)
    assert source.made == COUNT and isinstance(again, np.memmap) and not again.flags.writeable
    assert sorted(file.name for file in path.parent.iterdir()) == ["rows.json", "rows.npy"]


def test_what_was_done_before_an_error_is_not_done_again(tmp_path):
    path = tmp_path / "rows.npy"
    with pytest.raises(RuntimeError, match="out of memory"):
        make(path, Source(fails_at=caches.CHUNK * 2 + 64))
    assert not path.exists()
    source = Source()
    np.testing.assert_array_equal(make(path, source), EXPECTED)
    assert source.starts == [2 * caches.CHUNK]


@pytest.mark.parametrize("change", ["key", "count", "bytes"])
def test_the_rest_of_another_start_is_not_taken_for_ones_own(tmp_path, change):
    path = tmp_path / "rows.npy"
    with pytest.raises(RuntimeError):
        make(path, Source(fails_at=caches.CHUNK * 2), count=COUNT + 1 if change == "count" else COUNT)
    if change == "bytes":
        with open(path.with_suffix(".part"), "r+b") as file:
            file.seek(-(COUNT * 12) + 5, os.SEEK_END)
            file.write(b"\xff")
    source = Source()
    found = make(path, source, key="b" * 64 if change == "key" else "a" * 64)
    np.testing.assert_array_equal(found, EXPECTED)
    assert source.starts == [0]


@pytest.mark.parametrize("damage", ["flip", "cut", "no words", "other key", "no json"])
def test_damage_is_noticed_said_and_mended(tmp_path, capsys, damage):
    path = tmp_path / "rows.npy"
    make(path, Source())
    capsys.readouterr()
    if damage in ("flip", "cut"):
        raw = bytearray(path.read_bytes())
        if damage == "flip":
            raw[-7] ^= 1  # in the last chunk
        path.write_bytes(raw if damage == "flip" else raw[: len(raw) // 2])
    elif damage == "no json":
        path.with_suffix(".json").write_text("{")
    elif damage == "no words":
        path.with_suffix(".json").unlink()
    else:
        about = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps({**about, "key": "c" * 64}))
    source = Source()
    np.testing.assert_array_equal(make(path, source), EXPECTED)
    assert source.made == COUNT and "made again" in capsys.readouterr().out


def test_too_large_a_cache_is_refused_with_its_size_and_leaves_nothing(tmp_path, capsys):
    path = tmp_path / "rows.npy"
    source = Source()
    assert make(path, source, limit=EXPECTED.nbytes - 1) is None
    assert "CACHE_LIMIT_GB" in capsys.readouterr().out and source.made == 32 and list(tmp_path.iterdir()) == []
    assert make(path, source, limit=EXPECTED.nbytes) is not None


KILLED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
import numpy as np
import caches
caches.SAVE_SECONDS = 0
def rows_from(start):
    for first in range(start, {count}, 32):
        numbers = range(first, min(first + 32, {count}))
        yield np.stack([np.full((4, 3), number % 251, np.uint8) for number in numbers])
        print("made", numbers[-1] + 1, flush=True)
        if numbers[-1] + 1 == {at}:
            {then}
caches.cached_rows(Path({path!r}), "a" * 64, {count}, rows_from, 10**9, "test rows")
"""


def start(path, at, then):
    """A process, without torch, that makes the rows and does `then` once `at` of them are made."""
    code = KILLED.format(root=str(ROOT), path=str(path), count=COUNT, at=at, then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_loses_at_most_a_chunk_and_one_that_waits_finds_the_rows(tmp_path, capfd):
    path = tmp_path / "rows.npy"
    with start(path, 2 * caches.CHUNK + 32, "os.kill(os.getpid(), signal.SIGKILL)") as killed:
        assert killed.wait() == -signal.SIGKILL
    assert not path.exists() and path.with_suffix(".part").exists()
    with start(path, 2 * caches.CHUNK + 32, "time.sleep(1.5)") as busy:
        assert f"going on with image {2 * caches.CHUNK}" in busy.stdout.readline()
        source = Source()
        np.testing.assert_array_equal(make(path, source), EXPECTED)
        assert source.made == 0 and "waiting" in capfd.readouterr().out
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
    names = sorted(file.name.partition("_")[0] for file in (folder / "cache").glob("*.npy"))
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
    assert cached["train"].cached.dtype == np.uint8 and cached["val"].cached.dtype == np.float16
    before = np.array(cached["train"].cached)
    a, b = (one_batch(sets["train"].at_epoch(3)) for sets in (cached, live))
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, one_batch(live["train"]).images)
    np.testing.assert_array_equal(cached["train"].cached, before)


def test_resident_rows_are_the_batchs_own(folder):
    sets, _ = sets_of(folder, True)
    plain = one_batch(sets["train"]).to(torch.device("cpu"))
    sets["train"].resident = torch.from_numpy(np.array(sets["train"].cached))
    numbers = one_batch(sets["train"])
    assert numbers.images.tolist() == [2, 0]
    assert torch.equal(numbers.to(torch.device("cpu"), sets["train"].resident).images, plain.images)


def test_a_worker_that_is_started_maps_the_cache_itself(folder):
    images = sets_of(folder, False)[0]["train"]
    pickled = pickle.dumps(images)
    assert len(pickled) < images.cached.nbytes + 1500  # the rows themselves are not in it
    again = pickle.loads(pickled)
    assert isinstance(again.cached, np.memmap) and torch.equal(one_batch(again).images, one_batch(images).images)


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
    assert len(list((tmp_path / "cache").glob("tokens_train_*.npy"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "encode_batch", lambda *_: pytest.fail("encoded again"))
        assert ids(small) == expected["small"]
        with pytest.raises(pytest.fail.Exception, match="encoded again"):
            ids(small, "--max-seq-len", "19")
    assert ids(small, "--max-seq-len", "18", "--cache-limit-gb", "0") == encode_batch(small, texts, 18)
    assert "more than CACHE_LIMIT_GB" in capsys.readouterr().out
    monkeypatch.setattr(inputs, "KEPT_FROM", 1000)
    monkeypatch.setattr(caches, "cached_rows", lambda *_: pytest.fail("kept a small set"))
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
