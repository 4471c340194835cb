"""What a caption costs, what memory is kept, and how long a start takes, for 1,000 to 145,000 captions.

    python benchmarks/scaling.py [--images 200 2000 29000] [--repeats 3] [--epochs 4]

A prepared set of Flickr30k's shape, 29,000 images with 5 captions each: Flickr30k's own captions where they lie in
../shared/data, else generated ones; the pictures are links to a few tiny ones. A frozen ViT of 32 px gives 5 features
of 32 numbers, and the decoder has one layer x 32: so little that what is kept book of shows. Sizes are the set's first
images. They take turns; a turn is whole epochs of train.train_one_epoch, their planning included, at least 50 steps.

scaling_captions_*_vs_1000   captions/s at that size against 1,000; 1 = the cost of a caption is the same
memory_epochs                MB of this process after the last epoch of the largest size, against after the first
startup_145000               seconds of training_run.prepare with tokenizer and caches there; its parts in the note, and
                             what encoding the captions would take without their cache
"""

import argparse
import contextlib
import dataclasses
import gc
import itertools
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from benchmarks import scoring  # noqa: E402
from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.data.dataset import ImageTextDataset  # noqa: E402
from nanocaption.data.inputs import cached_features, encoded_captions  # noqa: E402
from nanocaption.data.prepared import load_records, verify  # noqa: E402
from nanocaption.data.tokenizer import encode_batch, load_or_train  # noqa: E402
from nanocaption.prepare.store import bring, write_set  # noqa: E402
from nanocaption.runs import signals  # noqa: E402
from nanocaption.runs.folder import check_writable, new_folder  # noqa: E402
from nanocaption.runs.resume import Start  # noqa: E402
from nanocaption.train.setup import Progress, Run, prepare  # noqa: E402
from nanocaption.train.steps import steps_of_epoch  # noqa: E402

SIZES = (200, 2_000, 29_000)  # images, 5 captions each
VALIDATION = 20  # images
BATCH = 40  # captions; divides those of every size
LEAST_STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=SIZES, help="sizes, the first is compared with")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each size; the median counts [3]")
    parser.add_argument("--epochs", type=int, default=4, help="epochs after which the memory is looked at [4]")
    a = parser.parse_args()
    for row in measure(a.images, a.repeats, a.epochs):
        print(f"{row['name']:<34} ours {row['ours']:10.2f} {row['unit']}  compared {row['peer'] or math.nan:10.2f}  "
              f"{row['note']}")  # fmt: skip


def measure(images: Sequence[int] = SIZES, repeats: int = 3, epochs: int = 4) -> list[dict[str, Any]]:
    """[{"name", "ours", "peer", "ratio", "unit", "range", "note"}], as the text above says."""
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
        flags, source = make_set(Path(place), max(images))
        settings = load_settings(flags)
        with contextlib.redirect_stdout(sys.stderr):
            started(settings).log.close()  # trains the tokenizer, fills the caches
            start = time.perf_counter()
            run = started(settings)
            seconds = time.perf_counter() - start
        with run.log:
            parts = parts_of_a_start(settings, run, Path(place) / "many")
            turns = {count: turn(run, count) for count in images}
            rates: dict[int, list[float]] = {count: [] for count in images}
            memory = []
            for repeat in range(max(repeats, epochs - 1) + 1):
                for count in images if repeat <= repeats else images[-1:]:
                    rate = next(turns[count])
                    if repeat:  # the first one warms up
                        rates[count].append(rate)
                memory.append(resident_mb())
    first, rows = images[0], []
    for count in images[1:]:
        ratios = [rate / base for rate, base in zip(rates[count], rates[first], strict=False)]
        rows.append({
            "name": f"scaling_captions_{5 * count}_vs_{5 * first}", "ours": statistics.median(rates[count]),
            "peer": statistics.median(rates[first]), "ratio": statistics.median(ratios), "unit": "captions/s",
            "range": [min(ratios), max(ratios)], "note": f"whole epochs, planning included; captions: {source}",
        })  # fmt: skip
    rows.append({
        "name": "memory_epochs", "ours": memory[-1], "peer": memory[0], "ratio": memory[0] / memory[-1], "unit": "MB",
        "range": [memory[0] / max(memory), memory[0] / min(memory)],
        "note": f"{5 * max(images):,} captions; after each epoch: {', '.join(f'{mb:.0f}' for mb in memory)}",
    })  # fmt: skip
    rows.append({
        "name": f"startup_{5 * max(images)}", "ours": seconds, "peer": None, "ratio": None, "unit": "s", "range": None,
        "note": ", ".join(f"{name} {value:.2f}" for name, value in parts.items()), "parts": parts,
    })  # fmt: skip
    return rows


def make_set(place: Path, images: int) -> tuple[list[str], str]:
    """A prepared set "many" in `place`; gives the flags of a run on it, and where the captions come from."""
    import transformers as t

    source, captions = scoring.load_references(images)
    folder = place / "many"
    (folder / "images").mkdir(parents=True)
    samples = []
    for number in range(64):  # a file takes only so many links
        samples.append(place / f"{number}.png")
        Image.new("RGB", (32, 32), (4 * number, 128, 255 - 4 * number)).save(samples[-1])
    records = []
    for number, sample in zip(range(images + VALIDATION), itertools.cycle(samples), strict=False):
        name = f"{number:06d}.png"
        bring(sample, folder / "images" / name)
        split = "train" if number < images else "val"
        records.append({"file_name": name, "captions": captions[number % images], "split": split})
    with contextlib.redirect_stdout(sys.stderr):
        write_set(folder, records, [])
    encoder = place / "vit"
    t.ViTModel(t.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16,
    ), add_pooling_layer=False).save_pretrained(encoder)  # fmt: skip
    t.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(encoder)
    return [
        "--dataset", "many", "--data-dir", str(place), "--output-dir", str(place / "runs"),
        "--encoder-model-name", str(encoder), "--freeze-encoder", "--device", "cpu", "--batch-size", str(BATCH),
        "--decoder-embed-dim", "32", "--decoder-heads", "2", "--decoder-layers", "1", "--decoder-ff-dim", "64",
    ], source  # fmt: skip


def started(settings: Any) -> Run:
    """A run as train.main starts it, on one process."""
    folder = new_folder(settings)
    check_writable(folder)
    run, _ = prepare(Start(settings), folder, torch.device("cpu"), signals.Requests())
    return run


def parts_of_a_start(settings: Any, run: Run, folder: Path) -> dict[str, float]:
    """Seconds of what of a start grows with the captions, each done once more by itself."""
    records = load_records(folder, "train")
    captions = [caption for record in records for caption in record["captions"]]
    images = run.train_set
    parts: dict[str, Callable[[], Any]] = {
        "verify": lambda: verify(folder),
        "read captions.json": lambda: load_records(folder, "train"),
        "tokenizer": lambda: load_or_train(captions, folder / "tokenizer", settings.VOCAB_SIZE),
        "encode captions anew": lambda: encode_batch(run.tokenizer, captions, settings.MAX_SEQ_LEN),
        "captions' cache": lambda: encoded_captions(settings, folder, "train", captions, run.tokenizer),
        "data set": lambda: ImageTextDataset(records, folder / "images", images.token_ids, images.image_spec),
        "feature cache": lambda: cached_features(settings, folder, "train", images, run.model, run.device),
        "plan of an epoch": lambda: steps_of_epoch(settings, images, epoch=1),
    }
    return {name: timed(call) for name, call in parts.items()}


def timed(call: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 4)


def turn(run: Run, images: int) -> Iterator[float]:
    """Train whole epochs on the first `images` for each captions/s it gives."""
    run = dataclasses.replace(run, train_set=run.train_set.part(range(images)))
    progress = Progress()
    while True:
        captions, steps, start = 0, 0, time.perf_counter()
        with tqdm(disable=True) as bar:
            while steps < LEAST_STEPS:
                for reached in train.train_one_epoch(run, progress, bar):
                    progress, steps = reached, steps + 1
                captions += 5 * images
                progress = progress._replace(epoch=progress.epoch + 1, step_in_epoch=0)
        yield captions / (time.perf_counter() - start)


def resident_mb() -> float:
    """Memory this process holds, MB; where the system does not say, the most it has held."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux; macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
