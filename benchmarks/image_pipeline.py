"""Pictures per second on one core: PIL with transformers' processor, our load_image, and rows of an image cache.

    python benchmarks/image_pipeline.py [--repeats 5] [--pictures 200] [--folder FOLDER]

peer     Image.open(...).convert("RGB"), then the ViT processor of transformers as its guides call it: PIL images of a
         batch in, a tensor out, default backend (the one on torchvision). Bilinear to 224 x 224, normalised.
ours     transform.load_image: decode and resize to the same size, as bytes; the model normalises them, per batch.
cached   the image cache of a training run, in batches as training gets them: dataset.make_loader and its collate_fn,
         caption tokens included, over training_sets.pictures.

The sides take turns, batch by batch, over the same pictures: the photographs in ../shared/data/flickr8k_native where
they are, otherwise JPEGs of 500 x 375 drawn here. One thread; files and cache are in the system's page cache.
"""

import argparse
import collections
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.data.dataset import ImageTextDataset  # noqa: E402
from nanocaption.data.inputs import cached_pictures  # noqa: E402
from nanocaption.data.loader import make_loader  # noqa: E402
from nanocaption.data.transform import load_image  # noqa: E402

NATIVE = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "flickr8k_native"
SPEC = {"size": 224, "resize": 224, "crop": False, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
BATCH = 32


def draw_pictures(folder: Path, number: int) -> list[Path]:
    """`number` JPEGs of 500 x 375 in `folder`: noise over colours, about 50 kB each."""
    rng, found = np.random.default_rng(1), []
    for index in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-9, 10, (375, 500, 1))
        path = folder / f"{index:04d}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)
        found.append(path)
    return found


def cached_set(paths: list[Path], folder: Path) -> ImageTextDataset:
    """All pictures, five captions of 13 tokens each, read from the cache that a training run would make in `folder`."""
    settings = load_settings(["--cache-limit-gb", "10"])
    token_ids = [[list(range(1, 14))] * 5 for _ in paths]
    (folder / "images").mkdir()
    for path in paths:
        (folder / "images" / path.name).symlink_to(path.absolute())
    images = ImageTextDataset([{"file_name": path.name} for path in paths], folder / "images", token_ids, SPEC)
    images.cached = cached_pictures(settings, folder, "train", images)
    if images.cached is None:
        raise SystemExit(f"the pictures could not be kept in {folder}: see above")
    return images


def measure(repeats: int = 5, number: int = 200, folder: str | None = None) -> list[dict[str, Any]]:
    """One row per comparison: name, ours, peer (pictures/s), ratio (ours / peer), its range over the repeats, unit."""
    from transformers import AutoImageProcessor, ViTConfig, ViTImageProcessor

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as place:
            ViTConfig().save_pretrained(place)
            ViTImageProcessor().save_pretrained(place)
            processor = AutoImageProcessor.from_pretrained(place)  # as for google/vit-base-patch16-224
            paths = sorted(Path(folder or NATIVE).glob("*.jpg"))[:number]
            if folder and len(paths) < 2:
                raise SystemExit(f"--folder {folder}: needs at least two .jpg files in it")
            paths = paths or draw_pictures(Path(place), number)
            kept = cached_set(paths, Path(place))

            def peer(batch: list[int]) -> torch.Tensor:
                images = [Image.open(paths[i]).convert("RGB") for i in batch]
                return processor(images, return_tensors="pt")["pixel_values"]

            def ours(batch: list[int]) -> torch.Tensor:
                return torch.stack([load_image(paths[i], SPEC) for i in batch])

            def cached(batch: list[int]) -> torch.Tensor:
                (found,) = make_loader(kept, [[(i, tuple(range(5))) for i in batch]], workers=0)
                return found.images

            _require_alike(peer([0, 1]), ours([0, 1]), cached([0, 1]))
            rates = _rates({"peer": peer, "ours": ours, "cached": cached}, len(paths), repeats)
    finally:
        torch.set_num_threads(threads)
    results = []
    for name, side in (("image_pipeline", "ours"), ("image_pipeline_cached", "cached")):
        ratios = [a / b for a, b in zip(rates[side], rates["peer"], strict=True)]
        results.append({
            "name": name, "ours": statistics.median(rates[side]), "peer": statistics.median(rates["peer"]),
            "ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)], "unit": "pictures/s",
        })  # fmt: skip
    return results


def _rates(sides: dict[str, Any], number: int, repeats: int) -> dict[str, list[float]]:
    """Pictures per second of each side in each repeat; the sides take turns after every batch."""
    rates: dict[str, list[float]] = collections.defaultdict(list)
    for repeat in range(repeats + 1):
        order = random.Random(repeat).sample(range(number), number)
        taken: dict[str, float] = collections.defaultdict(float)
        for start in range(0, number, BATCH):
            for name, work in sides.items():
                before = time.perf_counter()
                work(order[start : start + BATCH])
                taken[name] += time.perf_counter() - before
        if repeat:  # the first one warms up
            for name, seconds in taken.items():
                rates[name].append(number / seconds)
    return rates


def _require_alike(peer: torch.Tensor, ours: torch.Tensor, cached: torch.Tensor) -> None:
    """All sides must give the same pictures: to one grey level, the cache exactly."""
    levels = 255 * (peer * 0.5 + 0.5)
    if (levels - ours).abs().max() > 1.01 or not torch.equal(ours, cached):
        raise SystemExit("The sides do not give the same pictures: nothing to compare.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs over all pictures; the median counts [5]")
    parser.add_argument("--pictures", type=int, default=200, help="pictures in a run [200]")
    parser.add_argument("--folder", help="JPEGs to read [../shared/data/flickr8k_native, or drawn ones]")
    arguments = parser.parse_args()
    for row in measure(arguments.repeats, arguments.pictures, arguments.folder):
        print(
            f"{row['name']:24} ours {row['ours']:9.0f} {row['unit']}  transformers {row['peer']:6.0f} {row['unit']}  "
            f"ratio {row['ratio']:6.2f}x [{row['range'][0]:.2f}-{row['range'][1]:.2f}]"
        )


if __name__ == "__main__":
    main()
