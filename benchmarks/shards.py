"""Captions of shards against the plain loop over the same files, with one and with two processes.

    python benchmarks/shards.py CHECKPOINT FOLDER [--pictures 320] [--rounds 3]

Of the pictures in FOLDER tars of 40 are made. Each round does all of them in each way in turn, with one thread of
torch a process, the model loaded before: the ratios of a round are what is worth quoting on a machine that others use.
"""

import argparse
import multiprocessing
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.commands.caption import caption_pictures  # noqa: E402
from nanocaption.model.options import search_options  # noqa: E402
from nanocaption.use import shards  # noqa: E402
from nanocaption.use.load import load_models  # noqa: E402

EACH = 40


def make_shards(pictures: list[Path], folder: Path) -> list[str]:
    places = []
    for number, start in enumerate(range(0, len(pictures), EACH)):
        places.append(str(folder / f"{number:05}.tar"))
        with tarfile.open(places[-1], "w") as tar:
            for picture in pictures[start : start + EACH]:
                tar.add(picture, picture.name)
    return places


def seconds_of(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures = sorted(arguments.folder.glob("*.jpg"))[: arguments.pictures]
    loaded = load_models([arguments.checkpoint], load_settings(["--num-workers", "1", "--eval-batch-size", str(EACH)]))
    options = search_options(loaded.settings.values)
    facts = shards.facts_of(loaded, [arguments.checkpoint], options, 1)
    context = multiprocessing.get_context("fork")

    with tempfile.TemporaryDirectory() as temporary:
        places = make_shards(pictures, Path(temporary))
        outputs = (Path(temporary) / f"out{number}" for number in range(10**6))

        def plain() -> None:
            for _ in caption_pictures(loaded, pictures, options, False):
                pass

        def of_shards(output: Path, rank: int = 0, processes: int = 1) -> None:
            jobs = shards.part_of(shards.plan(places, output, facts, False), (1, 1), rank, processes)
            counts = shards.caption_shards(loaded, jobs, options, 1, shown=False)
            assert counts.shards == len(jobs) and not counts.bad

        def of_two() -> None:
            output = next(outputs)
            both = [context.Process(target=of_shards, args=(output, rank, 2)) for rank in range(2)]
            for one in both:
                one.start()
            for one in both:
                one.join()
                assert one.exitcode == 0

        caption_some = pictures[:EACH]
        for _ in caption_pictures(loaded, caption_some, options, False):  # warm
            pass
        ratios: dict[str, list[float]] = {"1 process": [], "2 processes": []}
        for number in range(arguments.rounds):
            base = seconds_of(plain)
            one, two = seconds_of(lambda: of_shards(next(outputs))), seconds_of(of_two)
            rates = [f"{len(pictures) / seconds:.1f}" for seconds in (base, one, two)]
            names = ("plain loop", "shards", "two processes")
            told = ", ".join(f"{name} {rate}" for name, rate in zip(names, rates, strict=True))
            print(f"round {number + 1}: {told} images/s", flush=True)
            ratios["1 process"].append(base / one)
            ratios["2 processes"].append(base / two)
        for name, found in ratios.items():
            print(f"shards, {name}: {statistics.median(found):.2f} times the plain loop "
                  f"[{min(found):.2f}-{max(found):.2f}]")  # fmt: skip


if __name__ == "__main__":
    main()
