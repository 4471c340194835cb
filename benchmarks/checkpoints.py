"""Saving and loading a checkpoint of Flickr30k's model against torch.save, and what a save costs the training.

    python benchmarks/checkpoints.py [--repeats 5] [--folder /tmp]

A ViT-B/16 with random weights, frozen and trained, and a decoder of 6 x 512 with AdamW's moments. torch.save writes the
same tensors; an fsync, a digest and reading back what was written are no part of it. "stall" is how long the training
waits for our save: the copy of the tensors. The rest is written beside it.
"""

import argparse
import collections
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanocaption.base.settings import ModelSettings, load_settings  # noqa: E402
from nanocaption.model.captioner import ImageToTextModel  # noqa: E402
from nanocaption.runs import checkpoint  # noqa: E402
from nanocaption.runs.saver import Saver  # noqa: E402
from nanocaption.train import optim  # noqa: E402
from nanocaption.train.state import take_state  # noqa: E402

# What a save costs the training is the comparison that counts: as long as torch.save works, the training waits.
NAMES = {"checkpoint_stall_frozen_base": "checkpoint_save"}
NOTES = {
    "stall": "how long the training waits; the file is written beside it",
    "ours": "until the file is whole, hashed and read back; torch.save does neither",
    "load": "ours hashes all of the file",
}


def build(frozen: bool) -> tuple[ImageToTextModel, torch.optim.Optimizer]:
    """The captioner and an optimizer that has taken one step."""
    import transformers

    vit = transformers.ViTConfig().to_dict()  # B/16, 224 px
    spec = {"size": 224, "resize": 224, "crop": False, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    sizes = {
        "DECODER_EMBED_DIM": 512, "DECODER_HEADS": 8, "DECODER_LAYERS": 6, "DECODER_FF_DIM": 2048,
        "ENCODER_MODEL_NAME": "ViT-B/16", "FREEZE_ENCODER": frozen,
    }  # fmt: skip
    settings = ModelSettings.of(load_settings([]).values | sizes)
    model = ImageToTextModel(settings, 10_000, tower={"encoder_config": vit, "image_spec": spec})
    optimizer = optim.build_optimizer(model, weight_decay=0.05, betas=(0.9, 0.98), eps=1e-8, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def measure(repeats: int = 5, folder: str | None = None) -> list[dict[str, Any]]:
    """One row per comparison: name, ours, peer (seconds or MB), ratio (peer / ours), its range, unit, note."""
    rows = []
    for frozen in (True, False):
        kind = "frozen" if frozen else "trained"
        model, optimizer = build(frozen)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        values = {
            "epoch": 1, "step": 1, "step_in_epoch": 0, "best_val_loss": 2.5, "config": {}, "config_constants": {},
            "tokenizer": "{}",
        }  # fmt: skip
        take = functools.partial(take_state, model, optimizer, scaler, values)
        taken: dict[str, list[float]] = collections.defaultdict(list)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            run = Path(place)
            theirs, ours = run / "theirs.pt", run / "ours.safetensors"
            plain = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            writer = Saver(run, keep_best=1)
            sides = {
                "torch.save": functools.partial(torch.save, plain, theirs),
                "ours": functools.partial(_ours, ours, take),
                "stall": functools.partial(_stall, writer, take),
                "rest": writer.wait,
                "torch.load": functools.partial(torch.load, theirs, weights_only=True),
                "load": functools.partial(checkpoint.load, ours),
                "torch.save and fsync": functools.partial(_save_and_sync, plain, theirs),
            }
            for _ in range(repeats):
                for name, work in sides.items():
                    start = time.perf_counter()
                    work()
                    taken[name].append(time.perf_counter() - start)
            if writer.failed:
                raise SystemExit(writer.problem())
            sizes = [path.stat().st_size / 1e6 for path in (ours, theirs)]
        for name, a, b in (
            ("checkpoint_save", "ours", "torch.save"), ("checkpoint_save_fsync", "ours", "torch.save and fsync"),
            ("checkpoint_stall", "stall", "torch.save"), ("checkpoint_load", "load", "torch.load"),
        ):  # fmt: skip
            ratios = [y / x for x, y in zip(taken[a], taken[b], strict=True)]
            name = f"{name}_{kind}_base"
            rows.append({
                "name": NAMES.get(name, name), "ours": statistics.median(taken[a]), "unit": "s", "note": NOTES[a],
                "peer": statistics.median(taken[b]), "ratio": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
            })  # fmt: skip
        rows.append({
            "name": f"checkpoint_size_{kind}_base", "ours": sizes[0], "peer": sizes[1], "unit": "MB",
            "ratio": sizes[1] / sizes[0], "range": [sizes[1] / sizes[0]] * 2,
        })  # fmt: skip
    return rows


def _ours(path: Path, take: Callable[[], dict[str, Any]]) -> None:
    checkpoint.save(path, take())


def _stall(writer: Saver, take: Callable[[], dict[str, Any]]) -> None:
    writer.start(take())


def _save_and_sync(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of both sides; the median counts [5]")
    parser.add_argument("--folder", help="where to write [the system's temporary folder]")
    arguments = parser.parse_args()
    for row in measure(arguments.repeats, arguments.folder):
        print(
            f"{row['name']:36} ours {row['ours']:9.3f} {row['unit']:2}  torch {row['peer']:9.3f} {row['unit']:2}  "
            f"ratio {row['ratio']:6.2f}x [{row['range'][0]:.2f}-{row['range'][1]:.2f}]"
        )


if __name__ == "__main__":
    main()
