"""The whole demo set: scenes sampled in one go, pictures drawn in parallel, captions beside them."""

import multiprocessing
import sys
from pathlib import Path

from tqdm import tqdm

from nanocaption.demo_set.captions import describe_scene
from nanocaption.demo_set.drawing import draw_scene
from nanocaption.demo_set.scenes import sample_scenes

JPEG_QUALITY = 92


def draw_demo_set(
    images_dir: Path, seed: int, counts: dict[str, int], workers: int, progress: bool = True
) -> list[dict]:
    """Draw the demo set into `images_dir` (made if missing) and return its records in index order.

    counts: pictures per split, e.g. {"train": 2000, "val": 200, "test": 200}; the splits follow each other in
    this order. Picture n is `scene_{n:05d}.jpg`, 160 x 160, and depends on `seed` and n alone: the number of
    workers (processes) changes nothing. No two pictures show the same content (`scenes.scene_key`).
    Each record is {"file_name", "split", "captions": five strings, "scene"}. Raises ValueError on a negative
    count or fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, but drawing needs at least 1 process: set it to 1 or more")
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"the count of split {split!r} is {count}, below the least, 0: set 0 or more")
    images_dir = Path(images_dir)
    images_dir.mkdir(parents=True, exist_ok=True)
    splits = [split for split, count in counts.items() for _ in range(count)]
    scenes = sample_scenes(seed, len(splits))
    names = [f"scene_{index:05d}.jpg" for index in range(len(splits))]
    _draw_all([(images_dir / name, scene) for name, scene in zip(names, scenes, strict=True)], workers, progress)
    return [
        {"file_name": name, "split": split, "captions": describe_scene(scene, seed, index), "scene": scene}
        for index, (name, split, scene) in enumerate(zip(names, splits, scenes, strict=True))
    ]


def _draw_all(jobs: list[tuple[Path, dict]], workers: int, progress: bool) -> None:
    bar = {"total": len(jobs), "desc": "drawing", "unit": "picture", "disable": not progress}
    workers = min(workers, len(jobs))
    if workers <= 1:
        for _ in tqdm(map(_draw_file, jobs), **bar):
            pass
        return
    # Forking skips importing the caller's main module (and torch with it) once per worker; the children only
    # use Pillow. Where forking is unsafe or missing, spawn works too: the job function is importable.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(workers) as pool:
        for _ in tqdm(pool.imap_unordered(_draw_file, jobs, chunksize=16), **bar):
            pass


def _draw_file(job: tuple[Path, dict]) -> None:
    path, scene = job
    draw_scene(scene).save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)
