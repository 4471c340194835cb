"""Shards of drawn pictures for the tests of streamed sets, and the same set unpacked."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

WORDS = ("a", "dog", "cat", "child", "man", "woman", "red", "blue", "runs", "sits", "jumps", "over", "near", "tree")


class Sample(NamedTuple):
    """A picture of a shard: its name without ending, its bytes, its captions (None: no text), its split."""

    key: str
    data: bytes
    captions: list[str] | None
    split: str | None = None


def jpeg(number: int, side: int = 40) -> bytes:
    """A picture of noise, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side - 8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def samples(number: int, captions: int = 5) -> list[Sample]:
    """Pictures with 1 to `captions` captions, a fifth of them for val."""
    rng = np.random.default_rng(0)
    return [
        Sample(f"{place:05}", jpeg(place), [" ".join(rng.choice(WORDS, 6)) for _ in range(1 + place % captions)],
               "val" if place % 5 == 4 else "test" if place == 3 else "train")
        for place in range(number)
    ]  # fmt: skip


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, its: Iterable[Sample], others: Mapping[str, bytes] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for sample in its:
            add(tar, f"{sample.key}.jpg", sample.data)
            if sample.captions is not None:
                about = {"captions": sample.captions} | ({"split": sample.split} if sample.split else {})
                add(tar, f"{sample.key}.json", json.dumps(about).encode())
        for name, data in (others or {}).items():
            add(tar, name, data)
    return path


def write_tars(folder: Path, its: list[Sample], each: int) -> Path:
    for number, start in enumerate(range(0, len(its), each)):
        write_tar(folder / f"{number:05}.tar", its[start : start + each])
    return folder


def write_parquets(folder: Path, its: list[Sample], each: int) -> Path:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(its), each)):
        rows = [{"image": {"bytes": sample.data, "path": f"{sample.key}.jpg"}, "captions": sample.captions,
                 "split": sample.split} for sample in its[start : start + each]]  # fmt: skip
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{number:05}.parquet", row_group_size=7)
    return folder


WRITERS = {"tar": write_tars, "parquet": write_parquets}
