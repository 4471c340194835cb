"""Real commands on a raw folder that grows: a resume needs the prepared set alone, a fresh start says what changed."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file

import nanocaption
from nanocaption.train import setup
from tests import processes
from tests.conftest import TINY_MODEL
from tests.raw_sets import write_csv

ROOT = Path(nanocaption.__file__).resolve().parents[1]
FLAGS = [*TINY_MODEL.split(), "--num-epochs", "2", "--decoder-dropout", "0.1", "--random-flip", "--keep-best", "9"]


def grow(raw: Path, pictures: range) -> None:
    raw.mkdir(exist_ok=True)
    for number in pictures:
        Image.new("RGB", (32, 32), (number * 4, 255 - number * 3, number)).save(raw / f"{number}.png")
    texts = [[f"{n}.png", f"a {kind} square number {n}"] for n in range(pictures.stop) for kind in ("dark", "plain")]
    write_csv(raw / "captions.csv", ["image", "caption"], texts)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which two epochs were trained on raw/, and the checkpoint after the first one lies in runs/again."""
    folder = tmp_path_factory.mktemp("grows")
    grow(folder / "raw", range(60))
    flags = ("--dataset", "mine", "--raw-data-dir", "raw", "--run-name", "first", *FLAGS)
    done = processes.command(folder, "train.py", *flags)
    assert done.code == 0, done.err
    first = next((folder / "runs" / "first").glob("checkpoint_epoch_1_*"))
    for name in ("again", "grown"):
        (folder / "runs" / name).mkdir()
        shutil.copy(first, folder / "runs" / name / "last.safetensors")
    return folder


def weights(place: Path, name: str) -> dict[str, bytes]:
    return {key: tensor.tobytes() for key, tensor in load_file(place / "runs" / name / "last.safetensors").items()
            if key.startswith(("model/", "optim/"))}  # fmt: skip


def test_a_set_that_grew(place):
    assert weights(place, "again") != weights(place, "first")  # the control: it has an epoch to go
    captions = (place / "data" / "mine" / "captions.json").read_bytes()
    grow(place / "raw", range(63))
    resume = ("--resume-checkpoint-path", "runs/again/last.safetensors")
    done = processes.command(place, "train.py", *resume)
    assert done.code == 0, done.err
    assert weights(place, "again") == weights(place, "first") and len(weights(place, "first")) > 20
    assert processes.command(place, "evaluate.py", "--checkpoint", "runs/again/last.safetensors").code == 0

    fresh = ("--dataset", "mine", "--raw-data-dir", "raw", "--run-name", "fresh", *FLAGS)
    done = processes.command(place, "train.py", *fresh)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1, done.err
    assert "3 pictures (60.png, 61.png, 62.png) more" in done.err and "--remake" in done.err
    assert not (place / "runs" / "fresh").exists()
    assert (place / "data" / "mine" / "captions.json").read_bytes() == captions

    done = processes.command(place, "prepare_dataset.py", "--remake", *fresh)
    assert done.code == 0, done.err
    assert "60 pictures keep the split that they had" in done.out
    old, new = (splits(text) for text in (captions, (place / "data" / "mine" / "captions.json").read_bytes()))
    assert old.items() <= new.items() and len(new) == 63

    (kept,) = (place / "data" / "mine").glob("captions.replaced-*.json")
    assert kept.read_bytes() == captions
    done = processes.command(place, "train.py", "--resume-checkpoint-path", "runs/grown/last.safetensors")
    assert done.code == 0, done.err
    assert weights(place, "grown") == weights(place, "first")  # on its own pictures, whatever has come since
    done = processes.command(place, "train.py", *fresh)
    assert done.code == 0, done.err


def test_a_drawn_set_with_copies_killed_at_random_is_the_same_set(tmp_path):
    grow(tmp_path / "raw", range(80))
    for number in range(0, 80, 3):
        shutil.copy(tmp_path / "raw" / f"{number}.png", tmp_path / "raw" / f"{(number + 40) % 80}.png")
    flags = ["--dataset", "mine", "--raw-data-dir", "raw", "--data-dir"]
    start = time.monotonic()
    assert processes.command(tmp_path, "prepare_dataset.py", *flags, "whole").code == 0
    took, seed = time.monotonic() - start, random.randrange(10**6)
    print(f"seed {seed}")
    for part in sorted(random.Random(seed).sample(range(30, 100), 3)):
        with subprocess.Popen([sys.executable, ROOT / "prepare_dataset.py", *flags, "killed"], cwd=tmp_path,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # fmt: skip
            time.sleep(took * part / 100)
            process.kill()
    assert processes.command(tmp_path, "prepare_dataset.py", *flags, "killed").code == 0
    for name in ("captions.json", "manifest.json", "report.json"):
        assert (tmp_path / "killed" / "mine" / name).read_bytes() == (tmp_path / "whole" / "mine" / name).read_bytes()
    assert not list((tmp_path / "killed" / "mine").glob("captions.replaced*"))
    names = [sorted(path.name for path in (tmp_path / of / "mine" / "images").iterdir()) for of in ("killed", "whole")]
    assert names[0] == names[1] and len(names[0]) == 80


def splits(text: bytes) -> dict[str, str]:
    return {record["file_name"]: record["split"] for record in json.loads(text)["images"]}


def test_a_wrong_raw_folder_is_told_before_the_hub_is_asked(place):
    def asked() -> None:
        def refuse(name: str, *_: object) -> None:
            raise ValueError(f"the Hub was asked for {name}")

        setup.check_available = refuse

    flags = ("--dataset", "other", "--encoder-model-name", "someone/vit", *FLAGS)
    (place / "empty").mkdir()
    for raw, message in (("nowhere", "no such folder"), ("empty", "no captions in a known layout")):
        done = processes.command(place, "train.py", *flags, "--raw-data-dir", raw, prelude=asked)
        assert done.code == 1 and message in done.err, done.err
    done = processes.command(place, "train.py", *flags, "--raw-data-dir", "raw", prelude=asked)  # the control
    assert done.code == 1 and "the Hub was asked for someone/vit" in done.err, done.err
    assert not (place / "data" / "other").exists()
