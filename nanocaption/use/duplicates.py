"""Pictures of one split that are nearly those of another: a score on them says what was learnt by heart.

Copies to the byte are found when a set is prepared. Here two pictures count as near where the cosine of their vectors
is NEAR or more: by a model's contrastive head, or the means of its encoder's features less the mean of the whole set.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nanocaption.base import devices
from nanocaption.base.files import write_atomically
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.prepared import iter_records
from nanocaption.use.index import kind_of
from nanocaption.use.load import Loaded
from nanocaption.use.ranking import bar, features

NEAR = 0.99
FILE = "near_duplicates.json"
_ROWS = 1024


class Pair(NamedTuple):
    """Two pictures of different splits."""

    first: str
    second: str
    cosine: float
    splits: tuple[str, str]


def near_pairs(vectors: np.ndarray, splits: Sequence[str], names: Sequence[str], near: float = NEAR) -> list[Pair]:
    """All pairs of different splits whose vectors (pictures, width) of length 1 have a cosine of at least `near`, the
    nearest first. Exact, a block of rows at a time."""
    split = np.asarray(splits)
    found = []
    for start in range(0, len(vectors), _ROWS):
        cosines = vectors[start : start + _ROWS] @ vectors.T
        for row, column in zip(*np.nonzero(cosines >= near), strict=True):
            a, b = start + int(row), int(column)
            if a < b and split[a] != split[b]:
                found.append(Pair(names[a], names[b], float(cosines[row, column]), (splits[a], splits[b])))
    return sorted(found, key=lambda pair: (-pair.cosine, pair.first, pair.second))


def set_vectors(loaded: Loaded, images: ImageTextDataset) -> np.ndarray:
    """float32 (pictures, width) of length 1, by the head or by centred features."""
    rows = []
    head = loaded.models[0].retrieval
    for found in bar(features(loaded, images, range(len(images))), len(images), "vectors of all pictures"):
        with torch.inference_mode():
            rows.append((found.float().mean(1) if head is None else head.images(found))[0].float().cpu().numpy())
    vectors = np.stack(rows)
    if head is None:
        vectors = vectors - vectors.mean(0)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def report(loaded: Loaded, folder: Path, model: str) -> list[Pair]:
    """Compare all splits of the prepared set in `folder`, tell what is near, and write FILE into it."""
    records = list(iter_records(folder / "captions.json"))
    if len({record["split"] for record in records}) < 2:
        devices.console(f"{folder} has one split: there is nothing to compare")
        return []
    empty: list[list[list[int]]] = [[] for _ in records]
    images = ImageTextDataset(records, folder / "images", empty, loaded.models[0].image_spec)
    names = [record["file_name"] for record in records]
    pairs = near_pairs(set_vectors(loaded, images), [record["split"] for record in records], names)
    content = {"model": model, "by": kind_of(loaded), "cosine": NEAR, "pairs": [pair._asdict() for pair in pairs]}
    write_atomically(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    devices.console(f"near-duplicates across splits (cosine {NEAR} or more by the {kind_of(loaded)} of {model}): "
                    f"{len(pairs):,} pairs among {len(records):,} pictures, see {folder / FILE}")  # fmt: skip
    for pair in pairs[:5]:
        devices.console(f"    {pair.cosine:.4f}  {pair.first} ({pair.splits[0]})  {pair.second} ({pair.splits[1]})")
    return pairs
