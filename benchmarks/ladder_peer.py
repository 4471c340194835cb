"""The ladder's peer: transformers' VisionEncoderDecoderModel by cross-entropy on our prepared set, for a given time.

    python benchmarks/ladder_peer.py --minutes 12 --output ladder/peer-1 RECIPE and settings, as train.py takes them

It gets what our run gets: the same training captions as the same tokens, the same cached features of the frozen
encoder, label smoothing, AdamW, warmup and cosine of the recipe, 40 captions a step, which suits it best on a CPU. Its
decoder is GPT-2 with cross-attention in our sizes. How many steps fit into the minutes is found by taking some; the
cosine then ends where the time does. Writes dev.json, its captions of the val split by beam search (the recipe's
BEAM_SIZE, early_stopping=False), for evaluate.py --predictions. Stopped, it goes on from its last whole epoch.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutput

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanocaption.base.settings import Settings, load_settings  # noqa: E402
from nanocaption.data.dataset import ImageTextDataset  # noqa: E402
from nanocaption.data.inputs import make_inputs  # noqa: E402
from nanocaption.data.prepared import Record  # noqa: E402
from nanocaption.data.tokenizer import END, PAD, START, text_of  # noqa: E402
from nanocaption.train.setup import learnt_from, load_splits, make_model, make_tokenizer  # noqa: E402

BATCH = 40  # captions a step
TRIAL = 20  # steps whose time says how many there will be


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="of training")
    parser.add_argument("--output", type=Path, required=True, help="folder for dev.json and what is needed to go on")
    a, rest = parser.parse_known_args()
    settings = load_settings(rest)
    a.output.mkdir(parents=True, exist_ok=True)
    sets, records, tokenizer = inputs(settings)
    torch.manual_seed(settings.SEED)
    model = make_peer(settings, tokenizer.get_vocab_size(), sets["train"].cached[0].shape[1])
    fit(model, sets["train"], settings, a.minutes, a.output / "state.pt")
    captions = [text_of(tokenizer, ids) for ids in caption(model, sets["val"], settings)]
    rows = [{"file_name": r["file_name"], "caption": text} for r, text in zip(records, captions, strict=True)]
    (a.output / "dev.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(f"{len(rows)} captions: {a.output / 'dev.json'}")


def inputs(settings: Settings) -> tuple[dict[str, ImageTextDataset], list[Record], Tokenizer]:
    """The sets of our run with their cached features, the val records, the tokenizer."""
    folder, references = load_splits(settings)
    records = learnt_from(settings, references)
    tokenizer = make_tokenizer(settings, folder, records["train"], None)
    device = torch.device("cpu")
    ours = make_model(settings, tokenizer, None, "", device, resumed=False)
    sets = make_inputs(settings, folder, records, tokenizer, ours, device)
    return sets, references["val"], tokenizer


def make_peer(settings: Settings, vocabulary: int, width: int) -> transformers.VisionEncoderDecoderModel:
    """Its encoder is not used: features come from the cache, as for ours. width: of a feature."""
    decoder = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=settings.DECODER_EMBED_DIM, n_layer=settings.DECODER_LAYERS,
        n_head=settings.DECODER_HEADS, n_inner=settings.DECODER_FF_DIM, n_positions=settings.MAX_SEQ_LEN,
        resid_pdrop=settings.DECODER_DROPOUT, embd_pdrop=settings.DECODER_DROPOUT, attn_pdrop=settings.DECODER_DROPOUT,
        bos_token_id=START, eos_token_id=END,
    )  # fmt: skip
    encoder = transformers.ViTConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=1)
    both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = transformers.VisionEncoderDecoderModel(both)
    model.config.decoder_start_token_id, model.config.pad_token_id = START, PAD
    model.encoder.requires_grad_(False)
    return model


def fit(
    model: transformers.VisionEncoderDecoderModel, images: ImageTextDataset, settings: Settings, minutes: float,
    state_file: Path,
) -> None:  # fmt: skip
    """Train for so many minutes of work; epochs are kept in state_file."""
    s = settings
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=s.ADAM_BETAS, weight_decay=s.WEIGHT_DECAY, fused=True)
    rows = [(image, n) for image, captions in enumerate(images.token_ids) for n in range(len(captions))]
    epoch, step, total, spent = 0, 0, 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, step, total, spent = state["epoch"], state["step"], state["total"], state["spent"]
    bar = tqdm(total=minutes, initial=round(spent / 60, 2), unit="min", desc="peer")
    while not total or step < total:
        random.Random(f"{s.SEED}-{epoch}").shuffle(rows)
        for batch in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH)):
            start = time.perf_counter()
            warmup = s.WARMUP_RATIO * (total or 10**9)
            done = step / total if total else 0.0
            rate = s.MIN_LR + (s.LEARNING_RATE - s.MIN_LR) * (1 + math.cos(math.pi * done)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / max(1.0, warmup if total else 10 * TRIAL))
            take_step(model, optimizer, images, batch, s)
            step, spent = step + 1, spent + time.perf_counter() - start
            if step == TRIAL:
                total = max(TRIAL, int(60 * minutes * TRIAL / spent))
            bar.update(round((time.perf_counter() - start) / 60, 4))
            if total and step >= total:
                break
        epoch += 1
        kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(kept | {"epoch": epoch, "step": step, "total": total, "spent": spent}, state_file)
    print(f"peer: {step} steps of {BATCH} captions, {step * BATCH / len(rows):.1f} epochs, {spent / 60:.1f} minutes")


def take_step(
    model: transformers.VisionEncoderDecoderModel, optimizer: torch.optim.Optimizer, images: ImageTextDataset,
    batch: list[tuple[int, int]], settings: Settings,
) -> None:  # fmt: skip
    model.train()
    longest = max(len(images.token_ids[image][n]) for image, n in batch)
    ids = torch.full((len(batch), longest), PAD)
    for row, (image, n) in zip(ids, batch, strict=True):
        caption = torch.from_numpy(images.token_ids[image][n])
        row[: len(caption)] = caption
    features = torch.stack([torch.tensor(images.cached[image]) for image, _ in batch]).float()  # (B, P, E)
    found = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=features), decoder_input_ids=ids[:, :-1],
        decoder_attention_mask=(ids[:, :-1] != PAD).long(),
    )  # fmt: skip
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == PAD, -100)
    loss = torch.nn.functional.cross_entropy(
        found.logits.flatten(0, 1), targets.flatten(), label_smoothing=settings.LABEL_SMOOTHING
    )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.GRAD_CLIP_VALUE)
    optimizer.step()


def caption(
    model: transformers.VisionEncoderDecoderModel, images: ImageTextDataset, settings: Settings
) -> Iterator[list[int]]:
    """The ids of a caption of each image, without special tokens."""
    model.eval()
    how: dict[str, Any] = {
        "num_beams": settings.BEAM_SIZE, "max_new_tokens": settings.MAX_SEQ_LEN - 1, "early_stopping": False,
        "length_penalty": settings.LENGTH_PENALTY, "do_sample": False, "bos_token_id": START, "eos_token_id": END,
        "pad_token_id": PAD, "decoder_start_token_id": START,
    }  # fmt: skip
    for start in tqdm(range(0, len(images), 50), desc="peer: captions"):
        rows = range(start, min(start + 50, len(images)))
        features = torch.stack([torch.tensor(images.cached[row]) for row in rows]).float()
        with torch.inference_mode():
            found = model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=features), **how)
        yield from ([token for token in row if token > END] for row in found.tolist())


if __name__ == "__main__":
    main()
