"""A checkpoint put to use: find it, load it, caption pictures with it. Shared by evaluate, caption and train."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

import checkpoint
import config
import dataset as data
import decode
import model as models
import runs
import tokenizer as tokenizers


def load_state(path: Path, argv: list[str]) -> tuple[dict[str, Any], Any]:
    """A checkpoint, and the settings for using it: its own where they fix the model, else config.py; then argv."""
    try:
        state = checkpoint.load(path)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    own = {name: state["config"][name] for name in config.CHECKPOINT_SETTINGS if name in state["config"]}
    settings = config.load(argv, base=own | {"DATA_DIR": state["config"]["DATA_DIR"]})
    changed = config.differences(settings, own, [n for n in own if n not in ("DATASET", "DATA_CUTOFF", "DATA_SEED")])
    if changed:
        raise SystemExit(f"{path} was trained with other settings, which cannot change now: {'; '.join(changed)}")
    return state, settings


def load_model(state: dict[str, Any], device: torch.device) -> tuple[models.ImageToTextModel, Tokenizer]:
    """The trained model in eval mode and its tokenizer, from the checkpoint alone: no download, no data set."""
    try:
        tokenizer = tokenizers.from_json(state["tokenizer"])
        model = models.build(state["config"], tokenizer.get_vocab_size(), state["model_arguments"])
        checkpoint.check_fits(model, state["model_state_dict"], "The checkpoint")
    except ValueError as error:
        raise SystemExit(str(error)) from error
    model.load_state_dict(state["model_state_dict"])
    return model.to(device).eval(), tokenizer


def find_checkpoint(path: str | None, output_dir: str) -> Path:
    """`path`, or the best checkpoint of the newest run under `output_dir`. SystemExit where there is none."""
    if path is not None:
        if not Path(path).is_file():
            raise SystemExit(f"There is no checkpoint {path!r}. Name a .safetensors file of a run.")
        return Path(path)
    best = runs.best_of_newest(output_dir)
    if best is None:
        raise SystemExit(f"There is no run with a checkpoint under {output_dir!r}. Train first: python train.py")
    return best


def pick_device(name: str) -> torch.device:
    """auto: cuda, else mps, else cpu. SystemExit where the named device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SystemExit(f"DEVICE = {name!r}: this machine has {torch.cuda.device_count()} CUDA device(s). Use 'auto'.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SystemExit("DEVICE = 'mps': this machine has none. Use 'auto'.")
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """auto: bf16 on a CUDA device that has it, else fp16 there; fp32 elsewhere."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()


class CaptionText(NamedTuple):
    text: str
    log_prob: float  # sum over its tokens
    score: float  # what the captions of an image are ranked by


def caption_batches(
    model: models.ImageToTextModel,
    tokenizer: Tokenizer,
    images: data.ImageTextDataset,
    *,
    batch_size: int,
    beam_size: int,
    length_penalty: float,
    device: torch.device,
    precision: str,
    workers: int,
) -> Iterator[list[list[CaptionText]]]:
    """Beam-search captions of the data set's images in its order, batch by batch; per image the best first."""
    loader = data.make_loader(images, data.chunks([(i, ()) for i in range(len(images))], batch_size), workers)
    for batch in loader:
        with autocast(device, pick_dtype(precision, device)):
            results = decode.beam_search(
                model.start_decoding(batch.images.to(device)), len(batch.images), beam_size,
                start_id=tokenizers.START, end_id=tokenizers.END, max_length=model.decoder.max_seq_len - 1,
                length_penalty=length_penalty, device=device,
            )  # fmt: skip
        yield [
            [CaptionText(tokenizers.decode(tokenizer, found.ids), found.log_prob, found.score) for found in captions]
            for captions in results
        ]


def caption_images(
    model: models.ImageToTextModel,
    tokenizer: Tokenizer,
    images: data.ImageTextDataset,
    *,
    progress: str | None = None,
    **how: Any,
) -> list[list[CaptionText]]:
    """The captions of all batches of `caption_batches(**how)` in one list, with a progress bar if it has a name."""
    results = []
    with tqdm(total=len(images), desc=progress, unit="image", disable=progress is None, mininterval=1) as bar:
        for captions in caption_batches(model, tokenizer, images, **how):
            results += captions
            bar.update(len(captions))
    return results
