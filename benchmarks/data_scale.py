"""Time per picture and peak memory of the steps of a run, for data sets of several sizes.

    python benchmarks/data_scale.py [--pictures 1000 10000 100000] [--captions 5] [--folder FOLDER]

Each step is one process, timed by the clock. Its memory: the most that was its own (sampled from /proc, so on Linux
only), and the most that was resident, which counts the pages of cache files that the system may drop at any time.

prepare    prepare_dataset.py from a folder of JPEGs of 64 x 64 and a captions.csv, the check included
again      the same command, where the set is there
epoch      train.py, one epoch: tokenizer, tokens, image cache, plan of the epoch, steps of 400 captions, a validation
evaluate   evaluate.py on the test split, a twentieth of the pictures, greedy; scores and report

The ratio after a time is that time per picture over the one of the smallest set: 1 or less is linear.
"""

import argparse
import csv
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WORDS = shlex.split("a the dog cat child man woman red blue green runs sits jumps over under near big small tree house")
MODEL = shlex.split(
    "--encoder-model-name none --no-freeze-encoder --image-size 64 --vit-embed-dim 32 --vit-layers 1 "
    "--vit-heads 2 --decoder-embed-dim 32 --decoder-layers 1 --decoder-heads 2 --decoder-ff-dim 64 "
    "--vocab-size 300 --batch-size 400"
)


def write_source(folder: Path, pictures: int, captions: int) -> None:
    """JPEGs of noise, 64 x 64, and captions.csv with random words."""
    rng, words = np.random.default_rng(0), random.Random(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for number in range(pictures):
            name = f"{number:06d}.jpg"
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((64, 64)).save(folder / "images" / name, quality=80)
            rows.writerows([name, " ".join(words.choices(WORDS, k=8))] for _ in range(captions))


def measured(*command: str) -> tuple[float, float, float]:
    """(seconds, MiB of its own at most, MiB resident at most) of a command that must succeed."""
    start, own = time.perf_counter(), 0
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=told)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            status = Path(f"/proc/{process.pid}/status").read_text()
            own = max(own, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if ended[1]:
            told.seek(0)
            raise SystemExit(f"{' '.join(command)} failed: {told.read().decode()[-2000:]}")
    return seconds, own / 1024, ended[2].ru_maxrss / 1024


def steps(folder: Path, pictures: int, captions: int) -> dict[str, tuple[float, float, float]]:
    """{step: its `measured`} of a set of `pictures`, made and trained on in `folder`."""
    write_source(folder / "source", pictures, captions)
    data = ["--dataset", "scale", "--data-dir", str(folder / "data"), "--raw-data-dir", str(folder / "source")]
    prepare = ("prepare_dataset.py", *data)
    run = ["--output-dir", str(folder / "runs"), "--run-name", "scale", "--num-epochs", "1", "--device", "cpu", *MODEL]
    checkpoint = folder / "runs" / "scale" / "last.safetensors"
    evaluate = ("evaluate.py", *data, "--checkpoint", str(checkpoint), "--beam-size", "1")
    return {
        "prepare": measured(*prepare), "again": measured(*prepare), "epoch": measured("train.py", *data, *run),
        "evaluate": measured(*evaluate),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the sets, deleted afterwards [the system's temporary folder]")
    arguments = parser.parse_args()
    first: dict[str, float] = {}
    for pictures in arguments.pictures:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for step, (seconds, own, resident) in steps(Path(folder), pictures, arguments.captions).items():
                each = 1000 * seconds / pictures
                ratio = each / first.setdefault(step, each)
                print(f"{pictures:7,} pictures, {step:8}: {seconds:7.1f} s, {each:7.3f} ms a picture ({ratio:.2f}x), "
                      f"{own:5.0f} MiB of its own, {resident:5.0f} resident", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
