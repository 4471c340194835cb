"""What a start takes, against the build before its imports were made lazy: CPU time and memory of real processes.

    python benchmarks/starts.py [--repeats 5]

start_caption         `nanocaption caption photo.jpg --checkpoint FOLDER` from start to end; a ViT-Tiny at 224 px
                      with the decoder of recipes/flickr8k_vit_tiny.py, random weights
start_caption_memory  the most memory that these processes had
start_train           `python train.py` on the demo set, prepared and cached, from its start to its first step

Seconds are those that a processor worked for the process, user and system, one thread: waiting for others on a busy
machine is none of them. The two builds alternate; the earlier one comes from this repository's history.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import light, table  # noqa: E402

BEFORE = "c51546f"
TELL = """
import json, os, resource, sys
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    memory = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
    print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "mib": memory / 1024, "modules": len(sys.modules)}),
          flush=True)
"""
CAPTION = f"""{TELL}
import atexit, runpy
atexit.register(tell)
sys.argv[0] = "nanocaption"
runpy.run_module("nanocaption", run_name="__main__")
"""
TRAIN = f"""{TELL}
import train
written = train.write_row
def write_row(log, row, *copies):
    written(log, row, *copies)
    if row["type"] == "train":
        tell()
        os._exit(0)
train.write_row = write_row
train.main(sys.argv[1:])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of both builds; the median counts [5]")
    for row in measure(parser.parse_args().repeats):
        print(f"{row['name']:<24} {table.line(row)}   {row['note']}")


def measure(repeats: int = 5) -> list[dict[str, Any]]:
    """[{"name", "ours", "peer", "ratio", "unit", "range", "note"}], as the text above says."""
    with tempfile.TemporaryDirectory() as folder:
        place, before = Path(folder), earlier_build(Path(folder) / "before")
        captions, trainings = make(place)
        started(ROOT, TRAIN, trainings)  # fills the caches
        pairs: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {"caption": [], "train": []}
        for turn in range(repeats + 1):
            for name, code, words in (("caption", CAPTION, captions), ("train", TRAIN, trainings)):
                pair = started(ROOT, code, words), started(before, code, words)
                if turn:  # the first one reads the files
                    pairs[name].append(pair)
    rows = [("start_caption", "caption", "cpu", "s"), ("start_caption_memory", "caption", "mib", "MiB"),
            ("start_train", "train", "cpu", "s")]  # fmt: skip
    return [light.row(name, [(own[what], theirs[what]) for own, theirs in pairs[kind]], unit,
                      note(pairs[kind][0], what)) for name, kind, what, unit in rows]  # fmt: skip


def note(pair: tuple[dict[str, float], dict[str, float]], what: str) -> str:
    own, theirs = (f"{side['modules']:,.0f}" for side in pair)
    measured = "CPU time" if what == "cpu" else "most memory"
    return f"{measured} of the process, one thread; against {BEFORE}; modules loaded: {own}, before {theirs}"


def earlier_build(folder: Path) -> Path:
    """That build's files in `folder`. Raises CannotRun where this is no checkout with its history."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise table.CannotRun(f"the build before, {BEFORE}, is not in a history here")
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder


def make(place: Path) -> tuple[list[str], list[str]]:
    """The words of either command: an export and a picture, a prepared set."""
    from nanocaption.demo_set import draw_scene, sample_scene
    from nanocaption.model import exported
    from nanocaption.prepare.make import prepare

    exported.write(place / "export", light.make_state(place), "A benchmark's model.")
    draw_scene(sample_scene(2, 0), 500).save(place / "photo.jpg")
    with contextlib.redirect_stdout(sys.stderr):
        prepare("demo", place / "data", cutoff=100)
    places = ["--data-dir", str(place / "data"), "--output-dir", str(place / "runs")]
    caption = ["caption", str(place / "photo.jpg"), "--checkpoint", str(place / "export"), "--max-length", "13"]
    return caption, [*places, "--data-cutoff", "100", "--device", "cpu"]


def started(build: Path, code: str, words: Sequence[str]) -> dict[str, float]:
    """{"cpu": seconds, "mib", "modules"} of a process of this build."""
    environment = os.environ | {"PYTHONPATH": str(build), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=build, env=environment, capture_output=True,
                          text=True)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
