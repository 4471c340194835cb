"""Time of a self-critical training step beside a cross-entropy step of as many captions, on one thread.

    python benchmarks/scst.py [--steps 6] [--repeats 3]

32 pictures a step, a frozen ViT-Tiny's cached features (random here) and the decoder of recipes/flickr8k_vit_tiny.py;
5 captions drawn and rewarded per picture, or the picture's own 5. Both are train.train_one_epoch with all that belongs
to it; they alternate on the same weights. Captions are words at random, 11.5 on average, one token each of a vocabulary
of 4,000, and the model learns their lengths by some steps of cross-entropy first, so that it draws captions as long.
Times are CPU seconds of one thread, which neighbours on the machine change less than the clock's.
"""

import argparse
import dataclasses
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from benchmarks.training import SPEC, TINY  # noqa: E402
from nanocaption.base.files import open_to_append, read_log  # noqa: E402
from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.data.dataset import ImageTextDataset  # noqa: E402
from nanocaption.data.tokenizer import encode_batch, train_tokenizer  # noqa: E402
from nanocaption.model.captioner import build_model  # noqa: E402
from nanocaption.runs import signals  # noqa: E402
from nanocaption.train import optim  # noqa: E402
from nanocaption.train.rewards import make_rewards  # noqa: E402
from nanocaption.train.setup import Plan, Progress, Run  # noqa: E402

IMAGES, PER_STEP, LEARNING = 1280, 32, 40  # pictures of the set, of a step; steps before anything is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="of each side per turn [6]")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; the median counts [3]")
    a = parser.parse_args()
    for row in measure(a.steps, a.repeats):
        print(f"{row['name']}: {row['ours']:.2f} s, cross-entropy {row['peer']:.2f} s, {row['ratio']:.2f} "
              f"[{row['range'][0]:.2f}-{row['range'][1]:.2f}]; {row['note']}")  # fmt: skip


def measure(steps: int = 6, repeats: int = 3) -> list[dict[str, Any]]:
    """[{"name", "ours", "peer", "ratio", "unit", "range", "note"}]: median seconds of a step of each side, and the
    median of peer / ours over neighbouring turns.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
        torch.manual_seed(0)
        run = make_run(Path(place))
        with run.log:
            schedule = run.plan.schedule
            seconds_of_step(dataclasses.replace(run, plan=Plan(1, schedule._replace(peak=3e-3), 1.0)), LEARNING)
            by_reward = dataclasses.replace(run, settings=run.settings.replace(OBJECTIVE="scst"))
            turns = [(seconds_of_step(by_reward, steps), seconds_of_step(run, steps)) for _ in range(repeats + 1)][1:]
        drawn = [row["length"] for row in read_log(Path(place) / "log.jsonl") if "length" in row]
    ours, peer = (statistics.median(side) for side in zip(*turns, strict=True))
    ratios = [theirs / own for own, theirs in turns]
    return [{
        "name": "train_step_scst", "ours": ours, "peer": peer, "ratio": statistics.median(ratios), "unit": "s",
        "range": [min(ratios), max(ratios)],
        "note": f"160 captions a step, drawn or the pictures' own; {statistics.fmean(drawn):.1f} words in a drawn one, "
        f"11.5 in the others; CPU time of one thread; it costs {1 / statistics.median(ratios):.2f}x the other",
    }]  # fmt: skip


def make_run(folder: Path) -> Run:
    import transformers as t

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(1200)]
    records = [
        {"file_name": f"{n}.jpg", "split": "train", "captions": [_caption(rng, words) for _ in range(5)]}
        for n in range(IMAGES)
    ]
    captions = [caption for record in records for caption in record["captions"]]
    tokenizer = train_tokenizer(captions, folder / "tokenizer", 4000)
    ids = iter(encode_batch(tokenizer, captions, 32))
    settings = load_settings([
        str(ROOT / "recipes" / "flickr8k_vit_tiny.py"), "--device", "cpu", "--batch-size", str(5 * PER_STEP),
        "--encoder-model-name", "random", "--encoder-layers", "none", "--label-smoothing", "0",
    ])  # fmt: skip
    arguments = {"encoder_config": t.ViTConfig(**TINY).to_dict(), "image_spec": SPEC}
    model = build_model(dict(settings.values), tokenizer.get_vocab_size(), arguments)
    images = ImageTextDataset(records, folder, [[next(ids) for _ in range(5)] for _ in records], SPEC)
    images.cached = np.random.default_rng(0).standard_normal((IMAGES, 197, 192)).astype(np.float16)
    optimizer = optim.build_optimizer(model, weight_decay=0.05, betas=(0.9, 0.98), eps=1e-8, fused=True)
    schedule = optim.Schedule(1e-6, "constant", 0, 1, 1, 0.0, 0.0, 1.0)
    return Run(
        settings=settings, folder=folder, device=torch.device("cpu"), model=model, tokenizer=tokenizer,
        optimizer=optimizer, scaler=torch.amp.GradScaler("cpu", enabled=False), train_set=images, val_set=images,
        val_images=images, val_records=[], plan=Plan(1, schedule, 1.0), about={}, saver=None,
        requests=signals.Requests(), log=open_to_append(folder / "log.jsonl"),
        rewards=make_rewards(records, "cider")[0],
    )  # fmt: skip


def _caption(rng: random.Random, words: list[str]) -> str:
    return " ".join(rng.choices(words, k=min(28, max(3, round(rng.gauss(11.5, 4)))))) + "."


def seconds_of_step(run: Run, steps: int) -> float:
    """Of this thread's CPU time, the mean over so many steps of a first epoch."""
    with tqdm(disable=True) as bar:
        start = time.thread_time()
        for number, _ in enumerate(train.train_one_epoch(run, Progress(), bar), start=1):
            if number == steps:
                return (time.thread_time() - start) / steps
    raise SystemExit(f"an epoch has {number} steps, fewer than {steps}: give fewer --steps")


if __name__ == "__main__":
    main()
