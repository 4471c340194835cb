"""Streamed sets against the same set unpacked: pictures per second of a first epoch, and memory by size.

    python benchmarks/streaming.py [--pictures 600] [--repeats 5] [--workers 0] [--folder FOLDER]
    python benchmarks/streaming.py --memory 1000 20000 100000

The first form reads an epoch's steps as training does (dataset, loader, collate_fn; no model, no cache on any side),
JPEGs of 500 x 375 to 224 x 224, from the unpacked set, from tars and from parquet; where `webdataset` is installed
also with it, from the same tars, with the same decoding and resizing, its own shuffling of 1,000 samples. The sides
take turns, epoch by epoch. A ratio is a side's pictures per second over those of the unpacked set in the same round.
Files are in the system's page cache.

The second form prints what each process had of its own at most, and what was resident (data_scale.py), for sets of
JPEGs of 64 x 64 with five captions in tars: the first pass, the start with the captions' ids, and later epochs.
"""

import argparse
import importlib.util
import io
import json
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data_scale import MODEL, WORDS, measured  # noqa: E402
from benchmarks.image_pipeline import SPEC, draw_pictures  # noqa: E402
from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.data.dataset import ImageTextDataset  # noqa: E402
from nanocaption.data.loader import make_loader  # noqa: E402
from nanocaption.data.order import flattened  # noqa: E402
from nanocaption.data.prepared import load_records  # noqa: E402
from nanocaption.data.stream import StreamedDataset, TrainingRecords, encode  # noqa: E402
from nanocaption.data.tokenizer import encode_batch, train_tokenizer  # noqa: E402
from nanocaption.data.transform import _jpeg_decoder, fitted  # noqa: E402
from nanocaption.prepare.make import prepare  # noqa: E402
from nanocaption.train.steps import steps_of_epoch  # noqa: E402

Samples = Iterator[tuple[str, bytes, list[str]]]


def write_tars(folder: Path, samples: Samples, each: int) -> None:
    folder.mkdir(parents=True)
    for number, some in enumerate(_in_chunks(samples, each)):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for key, picture, captions in some:
                text = json.dumps({"captions": captions}).encode()
                for name, data in ((f"{key}.jpg", picture), (f"{key}.json", text)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_parquets(folder: Path, samples: Samples, each: int) -> None:
    """Row groups of 100 pictures, as `datasets` writes them."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True)
    for number, some in enumerate(_in_chunks(samples, each)):
        rows = [{"image": {"bytes": picture, "path": f"{key}.jpg"}, "captions": captions}
                for key, picture, captions in some]  # fmt: skip
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{number:05}.parquet", row_group_size=100)


def _in_chunks(samples: Samples, each: int) -> Iterator[list[tuple[str, bytes, list[str]]]]:
    some: list[tuple[str, bytes, list[str]]] = []
    for sample in samples:
        some.append(sample)
        if len(some) == each:
            yield some
            some = []
    if some:
        yield some


def captions_of(number: int) -> list[str]:
    words = random.Random(number)
    return [" ".join(words.choices(WORDS, k=8)) for _ in range(5)]


def photographs(folder: Path, number: int) -> Samples:
    paths = draw_pictures(folder, min(number, 200))
    for place in range(number):
        yield f"{place:07}", paths[place % len(paths)].read_bytes() + bytes(str(place), "ascii"), captions_of(place)


def small_pictures(number: int) -> Samples:
    rng = np.random.default_rng(0)
    for place in range(number):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(file, "JPEG", quality=80)
        yield f"{place:07}", file.getvalue(), captions_of(place)


def sides(folder: Path, pictures: int, workers: int) -> dict[str, Callable[[int], int]]:
    """What reads an epoch of each side, and says how many pictures that were."""
    (folder / "drawn").mkdir()
    write_tars(folder / "tar", photographs(folder / "drawn", pictures), 150)
    write_parquets(folder / "parquet", photographs(folder / "drawn", pictures), 150)
    for kind in ("tar", "parquet"):
        prepare(f"{kind}s", folder, raw_dir=folder / kind, stream=str(folder / kind))
    prepare("unpacked", folder, raw_dir=folder / "tar")
    settings = load_settings(["--batch-size", "80"])
    records = load_records(folder / "unpacked", "train")
    tokenizer = train_tokenizer([c for record in records for c in record["captions"]], folder / "tokenizer", 300)
    ids = [encode_batch(tokenizer, record["captions"], 40) for record in records]
    sets = {"unpacked": ImageTextDataset(records, folder / "unpacked" / "images", ids, SPEC)}
    for kind in ("tar", "parquet"):
        training = TrainingRecords(folder / f"{kind}s", ("train",), None, "keep")
        sets[kind] = StreamedDataset(folder / f"{kind}s", encode(training, tokenizer, 40, 2), SPEC)

    def epoch_of(images: ImageTextDataset) -> Callable[[int], int]:
        def read(epoch: int) -> int:
            batches = flattened(steps_of_epoch(settings, images, epoch))
            return sum(len(batch.images) for batch in make_loader(images.at_epoch(epoch), batches, workers))

        return read

    found = {name: epoch_of(images) for name, images in sets.items()}
    if importlib.util.find_spec("webdataset"):
        found["webdataset"] = with_webdataset(sorted(map(str, (folder / "tar").iterdir())), workers)
    return found


def with_webdataset(shards: list[str], workers: int) -> Callable[[int], int]:
    import webdataset

    decode = _jpeg_decoder()

    def picture(sample: dict[str, bytes]) -> tuple[torch.Tensor, list[str]]:
        data = torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8)
        return fitted(decode(data, 3, False), SPEC), json.loads(sample["json"])["captions"]

    def read(epoch: int) -> int:
        samples = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=epoch, empty_check=False)
        samples = samples.shuffle(1000).map(picture)
        samples = samples.batched(16, collation_fn=lambda its: torch.stack([pixels for pixels, _ in its]))
        loader = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=workers)
        return sum(len(batch) for batch in loader)

    return read


def measure_speed(folder: Path, pictures: int, repeats: int, workers: int) -> None:
    torch.set_num_threads(1)
    readers = sides(folder, pictures, workers)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for epoch in range(repeats + 1):  # the first round is not counted: it fills the page cache
        for name in list(readers) if epoch % 2 else list(readers)[::-1]:
            start = time.perf_counter()
            read = readers[name](epoch)
            rates[name].append(read / (time.perf_counter() - start))
    for name, own in rates.items():
        ratios = [a / b for a, b in zip(own[1:], rates["unpacked"][1:], strict=True)]
        print(f"{name:10} {statistics.median(own[1:]):7.1f} pictures/s, {statistics.median(ratios):.2f} of the "
              f"unpacked set's ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)  # fmt: skip


def measure_memory(folder: Path, pictures: int) -> None:
    write_tars(folder / "tar", small_pictures(pictures), 1000)
    data = ["--dataset", "set", "--data-dir", str(folder / "data")]
    where = [*data, "--raw-data-dir", str(folder / "tar"), "--stream"]
    how = ["--num-epochs", "1", "--device", "cpu", "--validation-score-images", "0"]
    run = ["--output-dir", str(folder / "runs"), *how, *MODEL]
    steps = {"first pass": ("prepare_dataset.py", *where), "first run": ("train.py", *where, *run),
             "second run": ("train.py", *where, *run)}  # fmt: skip
    for step, command in steps.items():
        seconds, own, resident = measured(*command)
        print(f"{pictures:7,} pictures, {step:10}: {seconds:6.1f} s, {1000 * seconds / pictures:6.3f} ms a picture, "
              f"{own:5.0f} MiB of its own, {resident:5.0f} resident", flush=True)  # fmt: skip
    kept = folder / "data" / "set"
    sizes = {path.relative_to(kept).parts[0]: 0 for path in kept.rglob("*") if path.is_file()}
    for path in kept.rglob("*"):
        if path.is_file():
            sizes[path.relative_to(kept).parts[0]] += path.stat().st_size
    each = ", ".join(f"{name} {size / pictures:.0f}" for name, size in sizes.items())
    print(f"  on the disk, bytes a picture: {each}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--memory", type=int, nargs="+", metavar="PICTURES", help="the table of memory for these sizes")
    parser.add_argument("--folder", type=Path, help="for the sets, deleted afterwards [the system's temporary folder]")
    arguments = parser.parse_args()
    for pictures in arguments.memory or [arguments.pictures]:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            if arguments.memory:
                measure_memory(Path(folder), pictures)
            else:
                measure_speed(Path(folder), pictures, arguments.repeats, arguments.workers)


if __name__ == "__main__":
    main()
