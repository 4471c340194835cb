"""An index of a folder's pictures, on the disk: a vector of each, by which they are found.

    index.json       what made it: the digest of the checkpoint, the kind and width of the vectors
    pictures.jsonl   a line for each picture in the order of the vectors: its path below the folder, size and time; of
                     one that cannot be read "fault", and no vector
    vectors.f16      the vectors, float16, one after the other

Both files only grow while pictures are read, vectors first, so that an index whose making was killed goes on where it
was. A later start adds what is new, makes anew what has changed, and takes out what is gone. Search is exact, a matrix
product: 10,000 pictures take a millisecond.
"""

import fcntl
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from nanocaption.base import devices
from nanocaption.base.files import (
    PICTURE_SUFFIXES,
    cases,
    json_lines,
    sync_to_disk,
    walk_files,
    whole,
    write_atomically,
)
from nanocaption.data.caption_text import fault, normalise
from nanocaption.data.order import chunks
from nanocaption.data.tokenizer import encode
from nanocaption.data.transform import load_image
from nanocaption.score import results
from nanocaption.use.load import Loaded
from nanocaption.use.ranking import computing, text_vectors

FORMAT = 1
_AT_ONCE = 32  # pictures
HEAD, FEATURES = "contrastive head", "mean features"


class Index(NamedTuple):
    """The pictures that can be found."""

    folder: Path
    names: list[str]  # paths below it
    vectors: np.ndarray  # float32 (pictures, width) of length 1, as float16 holds them
    faults: list[str]  # one line for each picture that cannot be read


class Hit(NamedTuple):
    """A picture that was found."""

    path: Path
    cosine: float


def kind_of(loaded: Loaded) -> str:
    """What the vectors of a model's index are: without a contrastive head those of pictures alone are to be had."""
    return FEATURES if loaded.models[0].retrieval is None else HEAD


def place_for(data_dir: str, folder: Path, checkpoint: str) -> Path:
    """Where the index of a folder lies by default: one for each checkpoint, by its digest."""
    own = results.digest(os.path.realpath(folder))[:8]
    return Path(data_dir) / "index" / f"{folder.resolve().name}-{own}-{checkpoint[:8]}"


def open_index(loaded: Loaded, folder: Path, place: Path, checkpoint: str) -> Index:
    """The index in `place` of the pictures in and below `folder`, brought up to date first.

    checkpoint: the digest of the model's file. SystemExit with one line where the folder holds no pictures, or the
    index is of another checkpoint or another process is at it.
    """
    names = [name for name in walk_files(folder) if name.lower().endswith(PICTURE_SUFFIXES)]
    names = [name for name in names if (folder / name).is_file()]
    if not names:
        raise SystemExit(f"The folder {str(folder)!r} holds no pictures ({', '.join(PICTURE_SUFFIXES)}).")
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is at {place}; waiting for it.", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        about = {"format": FORMAT, "checkpoint": checkpoint, "kind": kind_of(loaded), "width": width_of(loaded)}
        check_made_by(place, about, folder)
        rows, vectors = read_rows(place, about["width"])
        now = {name: stat_of(folder / name) for name in names}
        keep = [n for n, row in enumerate(rows) if now.get(row["file"]) == [row["size"], row["mtime_ns"]]]
        if len(keep) < len(rows):
            rows, vectors = rewrite(place, rows, vectors, keep)
        todo = [name for name in names if name not in {row["file"] for row in rows}]
        if todo:
            extend(loaded, folder, place, todo, now)
            rows, vectors = read_rows(place, about["width"])
    found = [row["file"] for row in rows if "fault" not in row]
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    return Index(folder, found, vectors.astype(np.float32) / np.maximum(lengths, 1e-6),
                 [f"{row['file']}: {row['fault']}" for row in rows if "fault" in row])  # fmt: skip


def check_made_by(place: Path, about: dict[str, Any], folder: Path) -> None:
    """Write who makes the index; SystemExit where another checkpoint did, or the format or the folder is another."""
    about = about | {"folder": os.path.realpath(folder)}
    there = results.read_object(place / "index.json")
    if not there and (place / "pictures.jsonl").exists():
        raise SystemExit(f"{place} holds an index without its index.json: delete the folder, it is made again")
    if there and there != about:
        changed = next(name for name, value in about.items() if there.get(name) != value)
        raise SystemExit(f"{place} is an index with another {changed} ({there.get(changed)}, not {about[changed]}): "
                         "name another place with --index, or delete that one")  # fmt: skip
    if not there:
        write_atomically(place / "index.json", json.dumps(about, indent=1) + "\n")


def width_of(loaded: Loaded) -> int:
    model = loaded.models[0]
    return model.encoder.width if model.retrieval is None else model.retrieval.image.out.out_features


def stat_of(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def read_rows(place: Path, width: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """(lines of pictures.jsonl, float16 (those without a fault, width)): what both files hold whole."""
    path, data = place / "pictures.jsonl", place / "vectors.f16"
    rows: list[dict[str, Any]] = []
    for _, row in json_lines(path) if path.is_file() else ():
        if row is None or not {"file", "size", "mtime_ns"} <= row.keys():
            raise SystemExit(f"{path} is damaged: delete the folder {place}, the index is made again")
        rows.append(row)
    held = data.stat().st_size // (2 * width) if data.is_file() else 0
    vectors = np.fromfile(data, np.float16, held * width).reshape(held, width) if held else np.zeros((0, width), "f2")
    whole_rows, count = [], 0
    for row in rows:
        count += "fault" not in row
        if count > held:
            break
        whole_rows.append(row)
    return whole_rows, vectors[: sum("fault" not in row for row in whole_rows)]


def rewrite(
    place: Path, rows: list[dict[str, Any]], vectors: np.ndarray, keep: Sequence[int]
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The rows at the places `keep` alone, on the disk as well."""
    places = np.cumsum(["fault" not in row for row in rows]) - 1
    kept = [rows[n] for n in keep]
    left = vectors[[places[n] for n in keep if "fault" not in rows[n]]]
    (place / "pictures.jsonl").unlink()  # in between there are vectors of nothing, which the next start cuts off
    with whole(place / "vectors.f16", sync=True) as made:
        left.tofile(made)
    write_atomically(place / "pictures.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
    return kept, left


def extend(loaded: Loaded, folder: Path, place: Path, todo: Sequence[str], stats: dict[str, list[int]]) -> None:
    """Read these pictures and add them, a few at a time."""
    rows, vectors = read_rows(place, width_of(loaded))
    with open(place / "vectors.f16", "ab") as data, open(place / "pictures.jsonl", "ab") as lines:
        data.truncate(vectors.nbytes)  # what a kill left half done
        written = json_lines(place / "pictures.jsonl")
        lines.truncate(sum(len(line) for (line, _), _ in zip(written, rows, strict=False)))
        for some in tqdm(list(chunks(todo, _AT_ONCE)), desc="reading pictures", unit="batch", mininterval=1):
            read, told = read_pictures(loaded, folder, some)
            made = picture_vectors(loaded, [read[name] for name in some if name in read])
            data.write(made.astype(np.float16).tobytes())
            data.flush()
            new = [{"file": name, "size": stats[name][0], "mtime_ns": stats[name][1],
                    **({"fault": told[name]} if name in told else {})} for name in some]  # fmt: skip
            lines.write("".join(json.dumps(row) + "\n" for row in new).encode("utf-8", "backslashreplace"))
            lines.flush()
    sync_to_disk(place / "vectors.f16")
    sync_to_disk(place / "pictures.jsonl")


def read_pictures(
    loaded: Loaded, folder: Path, names: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(pixels of those that can be read, why the others cannot), by name."""
    pixels, told = {}, {}
    for name in names:
        try:
            pixels[name] = load_image(folder / name, loaded.models[0].image_spec)
        except ValueError as error:
            told[name] = str(error).removeprefix(f"The picture {folder / name} cannot be read: ")
    return pixels, told


@torch.inference_mode()
def picture_vectors(loaded: Loaded, pixels: Sequence[torch.Tensor]) -> np.ndarray:
    """float32 (pictures, width) of length 1: by the contrastive head, or the mean of the encoder's features."""
    model = loaded.models[0]
    if not pixels:
        return np.zeros((0, width_of(loaded)), np.float32)
    with computing(loaded):
        features = model.encode(torch.stack(list(pixels)).to(loaded.device))
        if model.retrieval is None:
            found = normalize(features.float().mean(1), dim=-1)
        else:
            found = model.image_vectors(features)
    found = found.float()
    if not found.isfinite().all():
        raise ValueError("the model gives no numbers (NaN) for some pictures: set PRECISION = 'fp32'")
    return found.cpu().numpy()


def query_vector(loaded: Loaded, text: str) -> np.ndarray:
    """float32 (width,) of a sentence. ValueError with one line where it is no text, or the model cannot read any."""
    if loaded.models[0].retrieval is None:
        raise ValueError("The model has no contrastive head, which words are found by: train one on it with "
                         "--objective contrastive --init-checkpoint-path CHECKPOINT")  # fmt: skip
    read = normalise(text, loaded.settings.CAPTION_CASE)
    if not read or (wrong := fault(text)):
        raise ValueError(f"{text!r} is nothing to look for{f': {wrong}' if read else ''}")
    return text_vectors(loaded, [encode(loaded.tokenizer, read, loaded.settings.MAX_SEQ_LEN)])[0]


def search(index: Index, vector: np.ndarray, top: int) -> list[Hit]:
    """The `top` pictures whose vectors are nearest to a vector of length 1, the nearest first, equals by their name."""
    cosines = index.vectors @ vector
    number = min(top, len(cosines))
    first = np.argpartition(-cosines, number - 1)[:number] if number else np.zeros(0, int)
    ranked = sorted(first.tolist(), key=lambda place: (-cosines[place], index.names[place]))
    return [Hit(index.folder / index.names[place], float(cosines[place])) for place in ranked]


def tell_faults(index: Index) -> None:
    """Tell, on stderr, which pictures cannot be found because they cannot be read."""
    if index.faults and devices.rank() == 0:
        print(f"{cases(index.faults, 'picture')} cannot be read", file=sys.stderr)
