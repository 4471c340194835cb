"""Miniature captioned sets in every raw layout, written as the real ones are, for the tests of the data room."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from nanocaption.prepare import splits
from tests import processes
from tests.conftest import ROOT

NAMES = [f"{number}_{number * 7919:010x}.jpg" for number in range(1000092795, 1000092801)]
SPLITS = ["train", "train", "train", "train", "val", "test"]
# commas, quotes, umlauts, an apostrophe: what the CSV readers must not stumble over
CAPTIONS = {
    name: [f"A dog, a cat and {count} children .", f'Two men in "Team {count}" shirts look at a café', "dogs racing"]
    for count, name in enumerate(NAMES)
}


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 2 * shade % 256, 90)).save(file, "JPEG")
    return file.getvalue()


def draw(folder: Path, names: list[str] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(20 + shade))
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def karpathy_images() -> list[dict]:
    """Without the imgid of the real files, which would be the "image_id" of each record (test_json_layouts.py)."""
    return [
        {"filename": name, "split": split, "sentids": [0, 1, 2],
         "sentences": [{"raw": text, "tokens": text.split(), "imgid": number, "sentid": k}
                       for k, text in enumerate(CAPTIONS[name])]}
        for number, (name, split) in enumerate(zip(NAMES, SPLITS, strict=True))
    ]  # fmt: skip


def write_karpathy(folder: Path) -> None:
    write(folder / "dataset_flickr30k.json", json.dumps({"images": karpathy_images(), "dataset": "flickr30k"}))


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([header, *rows])
    write(path, file.getvalue())


def pairs() -> list[tuple[str, int, str]]:
    return [(name, k, text) for name in NAMES for k, text in enumerate(CAPTIONS[name])]


def write_jsonl(folder: Path) -> None:
    lines = [json.dumps({"file_name": name, "captions": CAPTIONS[name], "split": split}, ensure_ascii=False)
             for name, split in zip(NAMES, SPLITS, strict=True)]
    write(folder / "captions.jsonl", "\n".join(lines) + "\n\n")


def write_plain_csv(folder: Path) -> None:
    split_of = dict(zip(NAMES, SPLITS, strict=True))
    rows = [[name, text, split_of[name]] for name, _, text in pairs()]
    write_csv(folder / "captions.csv", ["filename", "caption", "split"], rows)


def write_kaggle_txt(folder: Path) -> None:
    write_csv(folder / "captions.txt", ["image", "caption"], [[name, text] for name, _, text in pairs()])


def write_results(folder: Path) -> None:
    lines = [f"{name}| {k}| {text}" for name, k, text in pairs()]
    lines[7] = lines[7].replace("| 1| ", "| 1   ")  # as in the public file
    write(folder / "results.csv", "image_name| comment_number| comment\r\n" + "\r\n".join(lines))


def write_token(folder: Path) -> None:
    write(folder / "Flickr8k.token.txt", "".join(f"{name}#{k}\t{text}\n" for name, k, text in pairs()))
    write(folder / "Flickr8k.lemma.token.txt", "".join(f"{name}#{k}\tlemma\n" for name, k, _ in pairs()))
    for split, word in (("train", "train"), ("val", "dev"), ("test", "test")):
        names = [name for name, given in zip(NAMES, SPLITS, strict=True) if given == split]
        write(folder / f"Flickr_8k.{word}Images.txt", "\n".join(names) + "\n")


OFFICIAL = {"Karpathy JSON": write_karpathy, "captions.jsonl": write_jsonl, "captions.csv": write_plain_csv,
            "original .token": write_token}  # fmt: skip
UNSPLIT = {"Kaggle captions.txt": write_kaggle_txt, "Kaggle results.csv": write_results}


def expected_records() -> list[dict]:
    return [{"file_name": name, "split": split, "captions": CAPTIONS[name]}
            for name, split in zip(NAMES, SPLITS, strict=True)]  # fmt: skip

def prepared_records() -> list[dict]:
    """expected_records in captions.json: captions as they were written."""
    return expected_records()


def fix_splits(monkeypatch) -> None:
    """Instead of being drawn the six pictures get SPLITS in order."""
    of_names = dict(zip(NAMES, SPLITS, strict=True))
    monkeypatch.setattr(splits, "draw", lambda names, *_: [of_names[name] for name in names])


def make_raw(folder: Path, pictures: str = "flickr30k-images") -> Path:
    draw(folder / pictures)
    write_karpathy(folder)
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run_script(tmp_path: Path, *argv: str | Path, anew: bool = False, **environment: str) -> processes.Done:
    """prepare_dataset.py in a process of its own, with warnings as errors; `anew`: with another interpreter."""
    clean = {key: value for key, value in os.environ.items() if not re.match("HF_|.*PROXY", key.upper())}
    clean |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", **environment}
    words = ["--data-dir", str(tmp_path / "data"), *map(str, argv)]
    if anew:
        program = [sys.executable, "-W", "error", ROOT / "prepare_dataset.py", *words]
        done = subprocess.run(program, env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        return processes.Done(done.returncode, done.stdout, done.stderr)

    def prelude() -> None:
        os.environ.clear()
        os.environ.update(clean)
        processes.forget_modules("huggingface_hub", "nanocaption.prepare")  # the first reads the environment
        warnings.simplefilter("error")

    return processes.command(tmp_path, "prepare_dataset.py", *words, prelude=prelude)


def stop_at_rename(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """The rename after `step` others raises KeyboardInterrupt; the list fills with the names that were given before."""
    replace, done = os.replace, []

    def stop(source, target):
        if len(done) == step:
            raise KeyboardInterrupt
        done.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    return done
