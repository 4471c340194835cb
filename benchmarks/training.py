"""Time of a training step against transformers' VisionEncoderDecoderModel with its Trainer, side by side.

    python benchmarks/training.py [--steps 12] [--captions N] [--repeats 3] [--only train_step_frozen_tiny]

Both sides train the same sizes on the same captions, 160 a step, as recipes/flickr8k_vit_tiny.py and
recipes/finetune.py do, or, in rows of their own, 80 and 40: a ViT, trained or frozen, and a decoder of 3 layers x 256
(the peer's is a GPT-2 with cross-attention, the usual choice). The more captions, the better for us: the peer's tensors
of more than about 60 rows are larger than what the C library keeps for reuse. The rows named "divided" let the peer
take the 160 in four passes of 40, which suits it best; ours takes them in one. The ViT-B's step has 80 captions, so
that the peer's takes half a minute only.
The peer gets one caption per row, padded to the longest of its batch, and its pictures as ready floats in memory, which
costs it no reading; ours reads its caches. Captions are random tokens, with lengths like Flickr8k's: 13.5 tokens on
average. Ours is train.train_one_epoch with all that belongs to it, log rows included; the peer's is Trainer.train with
its own log switched off. The two alternate within one process. A row of the frozen encoders also says what filling the
cache costs: after how much of the first epoch over 5 captions a picture the two sides have taken the same time, live
encoding included.
"""

import argparse
import gc
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from nanocaption.base.files import open_to_append  # noqa: E402
from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.data.dataset import ImageTextDataset  # noqa: E402
from nanocaption.data.tokenizer import END, PAD, START  # noqa: E402
from nanocaption.model.captioner import ImageToTextModel, build_model  # noqa: E402
from nanocaption.runs import signals  # noqa: E402
from nanocaption.train import optim  # noqa: E402
from nanocaption.train.setup import Plan, Progress, Run  # noqa: E402

SPEC = {"size": 224, "resize": 224, "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
TINY = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


class Case(NamedTuple):
    encoder: dict[str, int]  # of transformers.ViTConfig
    frozen: bool
    captions: int  # a step
    passes: int = 1  # in which the peer takes them, gradients summed


CASES = {
    "train_step_encoder_trained": Case(TINY, False, 160),
    "train_step_encoder_trained_divided": Case(TINY, False, 160, passes=4),
    "train_step_encoder_trained_80": Case(TINY, False, 80),
    "train_step_encoder_trained_40": Case(TINY, False, 40),
    "train_step_frozen_tiny": Case(TINY, True, 160),
    "train_step_frozen_tiny_divided": Case(TINY, True, 160, passes=4),
    "train_step_frozen_tiny_40": Case(TINY, True, 40),
    "train_step_frozen_base": Case(BASE, True, 80),
}
VOCAB_SIZE = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="of ours per turn; the peer takes a quarter [12]")
    parser.add_argument("--captions", type=int, help="per step [of each comparison its own]")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; the median counts [3]")
    parser.add_argument("--only", choices=CASES, help="one comparison instead of all")
    a = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, median of {a.repeats}")
    for row in measure(a.steps, a.captions, a.repeats, [a.only] if a.only else list(CASES)):
        low, high = row["range"]
        print(
            f"{row['name']:<28} ours {row['ours']:8.1f}  Trainer {row['peer']:7.1f} {row['unit']}"
            f"   {row['ratio']:5.1f}x [{low:.1f}-{high:.1f}]   {row['note']}"
        )


def measure(
    steps: int = 12, captions: int | None = None, repeats: int = 3, names: list[str] | None = None
) -> list[dict]:
    """[{"name", "ours", "peer", "ratio", "unit", "range", "note"}]: median captions/s of each side, and the median of
    ours / peer over the repeats with its smallest and largest value.
    """
    rows = []
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
            torch.manual_seed(0)
            case = CASES[name]
            ours, peer, note = make_sides(Path(place), case._replace(captions=captions or case.captions), steps)
            rates: list[tuple[float, float]] = []
            for turn in range(repeats + 1):
                pair = next(ours), next(peer)
                if turn:  # the first one warms up
                    rates.append(pair)
            ours.close()
        ratios = [own / theirs for own, theirs in rates]
        own, theirs = (statistics.median(side) for side in zip(*rates, strict=True))
        rows.append({
            "name": name, "ours": own, "peer": theirs, "ratio": statistics.median(ratios), "unit": "captions/s",
            "range": [min(ratios), max(ratios)], "note": note(own, theirs),
        })  # fmt: skip
        del ours, peer
        gc.collect()
    return rows


def make_sides(
    folder: Path, case: Case, steps: int
) -> tuple[Iterator[float], Iterator[float], Callable[[float, float], str]]:
    """Two iterators that train a turn for each captions/s they give, and what to say of the result."""
    import transformers as t

    encoder, frozen, captions, passes = case
    if captions % passes:
        raise SystemExit(f"--captions {captions}: the peer cannot take them in {passes} equal passes.")
    images = max(steps * captions // 5, captions)
    rng = random.Random(0)
    token_ids = [[_caption(rng) for _ in range(5)] for _ in range(images)]
    pixels = torch.randint(0, 256, (images, 3, SPEC["size"], SPEC["size"]), dtype=torch.uint8)
    settings = load_settings([
        "--vocab-size", str(VOCAB_SIZE), "--decoder-embed-dim", "256", "--decoder-heads", "4", "--decoder-layers", "3",
        "--decoder-ff-dim", "1024", "--decoder-dropout", "0.1", "--batch-size", str(captions), "--label-smoothing", "0",
        "--freeze-encoder" if frozen else "--no-freeze-encoder", "--encoder-model-name", "random", "--device", "cpu",
    ])  # fmt: skip
    vit = t.ViTConfig(**encoder)
    arguments = {"encoder_config": vit.to_dict(), "image_spec": SPEC}
    model = build_model(dict(settings.values), VOCAB_SIZE, arguments)
    peer = _peer_model(vit, frozen)
    floats = (pixels[:captions].float() / 255 - 0.5) / 0.5
    model.encoder.tower.load_state_dict(peer.encoder.state_dict(), strict=False)
    with torch.no_grad():
        features = torch.cat([model.eval().encode(part) for part in pixels[: min(images, 32)].split(8)])
        if not torch.allclose(features[:4], peer.eval().encoder(floats[:4]).last_hidden_state, atol=1e-4):
            raise SystemExit("the two encoders differ")
    train_set = _train_set(folder, token_ids, pixels)
    fill_rate = None
    if frozen:
        start = time.perf_counter()
        with torch.inference_mode():
            model.encode(pixels[:32])
        fill_rate = 32 / (time.perf_counter() - start)  # images/s
        repeated = features.to(torch.float16).numpy()
        train_set.cached = np.resize(repeated, (images, *repeated.shape[1:]))  # what they hold costs no time
    rows = [(n, caption) for n, captions_ in enumerate(token_ids) for caption in captions_]

    divided = f"{captions} captions a step" + (f", the peer's in {passes} passes" if passes > 1 else "")

    def note(own: float, theirs: float) -> str:
        if fill_rate is None:
            return f"{divided}, encoder trained on both sides"
        with_fill = 1 / (1 / (5 * fill_rate) + 1 / own)  # captions/s over the first epoch
        first = f"first epoch, filling the cache ({fill_rate:.0f} images/s) included: {with_fill / theirs:.1f}x"
        return f"{divided}; {first}"

    theirs = _their_turns(folder, peer, rows, floats, captions, passes, max(2, steps // 4))
    return _our_turns(folder, settings, model, train_set, steps), theirs, note


def _caption(rng: random.Random) -> list[int]:
    """Random tokens between <start> and <end>; 13.5 in all on average, as Flickr8k's have with 4,000 tokens."""
    words = min(30, max(3, round(rng.gauss(11.5, 4))))
    return [START, *(rng.randrange(260, VOCAB_SIZE) for _ in range(words)), END]


def _train_set(folder: Path, token_ids: list[list[list[int]]], pixels: torch.Tensor) -> ImageTextDataset:
    records = [{"file_name": f"{number}.jpg"} for number in range(len(token_ids))]
    images = ImageTextDataset(records, folder, token_ids, SPEC)
    images.cached = pixels.numpy()  # as its cache holds them
    return images


def _our_turns(
    folder: Path, settings: Any, model: ImageToTextModel, train_set: ImageTextDataset, steps: int
) -> Iterator[float]:
    optimizer = optim.build_optimizer(model, weight_decay=0.05, betas=(0.9, 0.98), eps=1e-8, fused=True)
    requests = signals.Requests()
    schedule = optim.Schedule(1e-4, "constant", 0, 1, 1, 0.0, 0.0, 1.0)
    run = Run(
        settings=settings, folder=folder, device=torch.device("cpu"), model=model, tokenizer=None, optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False), train_set=train_set, val_set=train_set,
        val_images=train_set, val_records=[], plan=Plan(1, schedule, 1.0), about={}, saver=None, requests=requests,
        log=open_to_append(folder / "log.jsonl"),
    )  # fmt: skip
    with run.log:
        for epoch in itertools.count():
            with tqdm(disable=True) as bar:
                progress = Progress(epoch=epoch)
                start, captions = time.perf_counter(), 0
                for number, _ in enumerate(train.train_one_epoch(run, progress, bar)):
                    captions += settings.BATCH_SIZE
                    if number + 1 == steps:
                        break
                yield captions / (time.perf_counter() - start)


def _peer_model(vit: Any, frozen: bool) -> torch.nn.Module:
    import transformers as t

    decoder = t.GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=256, n_layer=3, n_head=4, n_inner=1024, n_positions=40,
        bos_token_id=START, eos_token_id=END,
    )  # fmt: skip
    peer = t.VisionEncoderDecoderModel(t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, decoder))
    peer.config.decoder_start_token_id, peer.config.pad_token_id = START, PAD
    peer.encoder.requires_grad_(not frozen)
    return peer


def _their_turns(
    folder: Path, peer: torch.nn.Module, rows: list[tuple[int, list[int]]], floats: torch.Tensor, captions: int,
    passes: int, steps: int,
) -> Iterator[float]:  # fmt: skip
    import transformers as t

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, number: int) -> dict[str, Any]:
            image, caption = rows[number]
            return {"pixel_values": floats[image % len(floats)], "labels": caption[1:]}

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(item["labels"]) for item in items)
        labels = torch.full((len(items), longest), -100)
        for row, item in zip(labels, items, strict=True):
            row[: len(item["labels"])] = torch.tensor(item["labels"])
        return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": labels}

    class Clock(t.TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    while True:
        clock = Clock()
        how = t.TrainingArguments(
            output_dir=str(folder / "peer"), per_device_train_batch_size=captions // passes,
            gradient_accumulation_steps=passes, max_steps=steps + 1, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-4, dataloader_pin_memory=False,
        )  # fmt: skip
        t.Trainer(model=peer, args=how, train_dataset=Rows(), data_collator=collate, callbacks=[clock]).train()
        # From the end of the first step on: what Trainer does before is not counted.
        yield captions * steps / (clock.times[-1] - clock.times[0])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    main()
