"""An ONNX export without torch, beside the same model with torch, side by side on the CPU.

    python benchmarks/light.py [--repeats 5] [--pictures 64]

cold_start_onnx         `nanocaption caption photo.jpg --checkpoint FOLDER` in a process of its own, from its start to
                        its end, the export of `--format onnx` against that of `--format nanocaption`
cold_start_onnx_memory  the most memory that these processes had, as the system counts it
caption_onnx            pictures/s of `model.caption(paths)` with beam 3, a loaded model of each kind, one thread
caption_onnx_int8       the same of the graphs of 8 bits

The model has the sizes of recipes/flickr8k_vit_tiny.py and random weights, its tokenizer is made of the demo set's
captions, and all captions have 13 tokens, about as many as that recipe's have. The pictures are drawn, 500 x 375, JPEG.
the same captions, but for those of 8 bits; they alternate.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import table  # noqa: E402

RECIPE = str(ROOT / "recipes" / "flickr8k_vit_tiny.py")
LENGTH = 13
# `python -m nanocaption`, which says at its end how much memory it had: what the system says of an ended process counts
# the memory of the one that started it.
COMMAND = """
import atexit, runpy, sys
atexit.register(lambda: print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr))
sys.argv[0] = "nanocaption"
runpy.run_module("nanocaption", run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of both sides; the median counts [5]")
    parser.add_argument("--pictures", type=int, default=64, help="captioned at once [64]")
    a = parser.parse_args()
    for row in measure(a.repeats, a.pictures):
        print(f"{row['name']:<24} {table.line(row)}")


def measure(repeats: int = 5, pictures: int = 64) -> list[dict[str, Any]]:
    """[{"name", "ours", "peer", "ratio", "unit", "range", "note"}], as the text above says."""
    with tempfile.TemporaryDirectory() as place:
        folders, paths = make(Path(place), pictures)
        rows = cold_start(folders, paths[0], repeats)
        return rows + throughput(folders, paths, repeats)


def make(place: Path, pictures: int) -> tuple[dict[str, Path], list[Path]]:
    """({"torch", "onnx": an exported folder}, the pictures) in `place`."""
    from nanocaption.demo_set import draw_scene, sample_scene
    from nanocaption.export.onnx_export import write_onnx
    from nanocaption.model import exported

    state = make_state(place)
    exported.write(place / "torch", state, "A benchmark's model.")
    write_onnx(place / "onnx", state, "A benchmark's model.", "both")
    paths = [place / f"{number}.jpg" for number in range(pictures)]
    for number, path in enumerate(paths):
        draw_scene(sample_scene(2, number), 500).crop((0, 60, 500, 435)).save(path, quality=90)
    return {"torch": place / "torch", "onnx": place / "onnx"}, paths


def make_state(place: Path) -> Any:
    """What exported.write wants, of the model that the text above describes."""
    import torch
    from transformers import ViTConfig

    from benchmarks.decoding import TINY
    from nanocaption.base.settings import load_settings
    from nanocaption.data.tokenizer import train_tokenizer
    from nanocaption.demo_set import describe_scene, sample_scene
    from nanocaption.model.captioner import build_model
    from nanocaption.model.encoder import scratch_image_spec

    flags = ["--encoder-model-name", "random", "--encoder-layers", "none", "--max-seq-len", "32"]
    settings = dict(load_settings([RECIPE, *flags]).values)
    captions = [text for number in range(500) for text in describe_scene(sample_scene(1, number), 1, number)]
    tokenizer = train_tokenizer(captions, place / "tokenizer", settings["VOCAB_SIZE"])
    arguments = {"encoder_config": ViTConfig(**TINY).to_dict(), "image_spec": scratch_image_spec(TINY["image_size"])}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(settings, tokenizer.get_vocab_size(), arguments)
    return {
        "epoch": 0, "step": 0, "best_val_loss": None, "best_cider": None, "config": settings,
        "tokenizer": tokenizer.to_str(), "model_arguments": model.arguments(),
        "model_state_dict": dict(model.state_dict()), "captions_sha256": "", "written_by": "benchmarks/light.py",
    }  # fmt: skip


def cold_start(folders: dict[str, Path], picture: Path, repeats: int) -> list[dict[str, Any]]:
    def start(kind: str) -> tuple[float, float, str]:
        """(seconds, MiB, what was printed)"""
        words = ["caption", str(picture), "--checkpoint", str(folders[kind]), "--max-length", str(LENGTH)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", COMMAND, *words], env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(f"nanocaption {' '.join(words)} ended with status {done.returncode}: {done.stderr}")
        return seconds, int(done.stderr.split()[-1]) / 1024, done.stdout

    pairs = [(start("onnx"), start("torch")) for _ in range(repeats + 1)][1:]  # the first round reads the files
    if any(own[2] != theirs[2] for own, theirs in pairs):
        raise SystemExit("the two sides print different captions")
    note = "process start to its end, one picture, one thread; the same model exported both ways"
    return [row("cold_start_onnx", [(own[0], theirs[0]) for own, theirs in pairs], "s", note),
            row("cold_start_onnx_memory", [(own[1], theirs[1]) for own, theirs in pairs], "MiB", note)]  # fmt: skip


def throughput(folders: dict[str, Path], paths: Sequence[Path], repeats: int) -> list[dict[str, Any]]:
    import torch

    import nanocaption

    before, threads = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        models = [nanocaption.load(folders["onnx"]), nanocaption.load(folders["onnx"], dtype="int8"),
                  nanocaption.load(folders["torch"])]  # fmt: skip
        texts = [model.caption(paths, num_beams=3, max_new_tokens=LENGTH) for model in models]
        if texts[0] != texts[2]:
            raise SystemExit("the two sides give different captions")
        times = [[timed(lambda: model.caption(paths, num_beams=3, max_new_tokens=LENGTH))  # noqa: B023
                  for model in models] for _ in range(repeats)]  # fmt: skip
    finally:
        torch.set_num_threads(before)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
    rates = [[len(paths) / seconds for seconds in one] for one in times]
    note = "files to captions, beam 3, ViT-Tiny at 224 px, one thread, 32 pictures at once"
    return [row("caption_onnx", [(one[0], one[2]) for one in rates], "images/s", note, more=True),
            row("caption_onnx_int8", [(one[1], one[2]) for one in rates], "images/s", note, more=True)]  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(name: str, pairs: Sequence[tuple[float, float]], unit: str, note: str, more: bool = False) -> dict[str, Any]:
    """pairs: (ours, the peer's). more: whether more is better."""
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [own / theirs if more else theirs / own for own, theirs in pairs]
    return {"name": name, "ours": ours, "peer": peer, "ratio": statistics.median(ratios), "unit": unit,
            "range": (min(ratios), max(ratios)), "note": note}  # fmt: skip


if __name__ == "__main__":
    main()
