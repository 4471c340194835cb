"""A checkpoint put to use: find it, load it, caption pictures with it. Shared by evaluate, caption and train."""

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

import attention
import checkpoint
import config
import dataset as data
import decode
import model as models
import pretrained
import runs
import tokenizer as tokenizers
from hub import WEIGHTS
from pretrained import CaptionText


def load_state(path: Path, argv: list[str]) -> tuple[dict[str, Any], Any]:
    """A checkpoint, and the settings for using it: its own where they fix the model, else config.py; then argv.

    path: as find_checkpoint gives it, so also the weights of an exported folder, whose state has no optimizer.
    """
    try:
        state = pretrained.read(path.parent) if is_exported(path) else checkpoint.load(path)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    own = {name: state["config"][name] for name in config.CHECKPOINT_SETTINGS if name in state["config"]}
    place = {name: state["config"][name] for name in ("DATA_DIR",) if name in state["config"]}
    settings = config.load(argv, base=own | place)
    changed = config.differences(settings, own, [n for n in own if n not in config.DATA_SETTINGS])
    if changed:
        raise SystemExit(f"{path} was trained with other settings, which cannot change now: {'; '.join(changed)}")
    return state, settings


def load_model(state: dict[str, Any], device: torch.device) -> tuple[models.ImageToTextModel, Tokenizer]:
    """The trained model in eval mode and its tokenizer, from the checkpoint alone: no download, no data set."""
    try:
        model, tokenizer = pretrained.assemble(state, models.build)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return model.to(device), tokenizer


class Loaded(NamedTuple):
    """One model or several of an ensemble, in eval mode on `device`, and the settings for using them."""

    models: list[models.ImageToTextModel]
    tokenizer: Tokenizer
    states: list[dict[str, Any]]  # the checkpoints, as checkpoint.load gives them
    settings: Any
    device: torch.device


def load_models(paths: Sequence[Path], argv: list[str]) -> Loaded:
    """The models of one or several checkpoints. The settings are those of the first, then argv.

    Raises SystemExit with one line where one cannot be used, or where their tokenizers differ: an ensemble averages
    probabilities of the same tokens.
    """
    states, settings = [], None
    for path in paths:
        state, own = load_state(path, argv)
        states.append(state)
        settings = settings or own
    device = pick_device(settings.DEVICE)
    loaded = [load_model(state, device) for state in states]
    digests = [tokenizers.tokenizer_digest(tokenizer) for _, tokenizer in loaded]
    for path, digest in zip(paths, digests, strict=True):
        if digest != digests[0]:
            raise SystemExit(
                f"{path} has another tokenizer than {paths[0]}; only models of one tokenizer can be averaged. Train it "
                f"with the same captions and VOCAB_SIZE, or start it with --init-checkpoint-path {paths[0]}."
            )
    return Loaded([model for model, _ in loaded], loaded[0][1], states, settings, device)


def find_checkpoints(paths: str | None, output_dir: str, hub: bool = False) -> list[Path]:
    """The files of `paths`, separated by commas, as `find_checkpoint` finds them. SystemExit where one is missing."""
    if paths is None or Path(paths).exists():
        return [find_checkpoint(paths, output_dir, hub)]
    return [find_checkpoint(path, output_dir, hub) for path in paths.split(",")]


def find_checkpoint(path: str | None, output_dir: str, hub: bool = False) -> Path:
    """A checkpoint file; of an exported folder its weights; without `path` the newest run's best under `output_dir`.

    hub: whether `path` may also be the id of an exported model on the Hub. SystemExit where there is none.
    """
    if path is None:
        best = runs.best_of_newest(output_dir)
        if best is None:
            raise SystemExit(f"There is no run with a checkpoint under {output_dir!r}. Train first: python train.py")
        newest = runs.newest(output_dir)
        if newest not in (None, best.parent):
            warnings.warn(f"{newest} saved later, but has had no validation yet: taking {best}", stacklevel=2)
        return best
    if Path(path).is_file():
        return Path(path)
    if Path(path).is_dir() or (hub and path.count("/") == 1 and not path.endswith(".safetensors")):
        try:
            folder = pretrained.locate(path)
        except ValueError as error:
            raise SystemExit(str(error)) from error
        if not is_exported(folder / WEIGHTS):
            raise SystemExit(f"{path} is a folder, but no export: name one, or a .safetensors file of a run.")
        return folder / WEIGHTS
    beside = sorted(found.name for found in Path(path).parent.glob("*.safetensors"))
    there = f" In its folder are: {', '.join(beside)}." if beside else ""
    raise SystemExit(
        f"There is no checkpoint {path!r}. Name a .safetensors file of a run, or an exported folder.{there}"
    )


def is_exported(path: Path) -> bool:
    """Whether `path` are the weights of an exported folder."""
    return path.name == WEIGHTS and pretrained.is_export(path.parent)


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """auto: cuda, else mps, else cpu. SystemExit where the named device is not there.

    local_rank: which of this machine's processes asks; where no GPU is named it gets that one, as its current device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SystemExit(f"DEVICE = {name!r}: this machine has {torch.cuda.device_count()} CUDA device(s). Use 'auto'.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SystemExit("DEVICE = 'mps': this machine has none. Use 'auto'.")
    if device.type == "cuda" and local_rank is not None:
        torch.cuda.set_device(device)  # NCCL gathers through the current device
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """auto: bf16 on a CUDA device that has it, else fp16 there; fp32 elsewhere."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()


GREEDY = decode.Options()


def search_options(settings: Any) -> decode.Options:
    """The beam search that the settings ask for."""
    return pretrained.search_options(config.as_dict(settings))


def caption_batches(
    model: models.ImageToTextModel | Sequence[models.ImageToTextModel],
    tokenizer: Tokenizer,
    images: data.ImageTextDataset,
    *,
    batch_size: int,
    options: decode.Options,
    device: torch.device,
    precision: str,
    workers: int,
    seed: int = 0,
) -> Iterator[list[list[CaptionText]]]:
    """Captions of the data set's images in its order, batch by batch; per image the best first.

    model: several are averaged (decode.ensemble); each reads the pictures as its own encoder wants them.
    options: beam search or random captions; what is drawn for a picture depends on `seed` and its file name alone.
    """
    members = [model] if isinstance(model, models.ImageToTextModel) else list(model)
    specs = [member.image_spec for member in members]
    views = [specs.index(spec) for spec in specs]  # members of one image_spec share one reading of the pictures
    batches = data.chunks([(i, ()) for i in range(len(images))], batch_size)
    sets = {view: _seen_with(images, specs[view]) for view in views}
    loaders = {view: data.make_loader(seen, batches, workers) for view, seen in sets.items()}
    for chunk, *parts in zip(batches, *loaders.values(), strict=True):
        seeds = [data.seed_of(seed, images.paths[i].name) for i, _ in chunk]
        pixels = {view: part.to(device, sets[view].resident).images for view, part in zip(sets, parts, strict=True)}
        with autocast(device, pick_dtype(precision, device)):
            found = pretrained.decode_pictures(members, tokenizer, [pixels[v] for v in views], options, seeds)
        if any(math.isnan(captions[0].log_prob) for captions in found):  # always the same text: it is told once
            warnings.warn(
                "the model gives no numbers (NaN) for some pictures, whose captions are empty. Half precision may be "
                "too coarse for it: PRECISION = 'fp32'",
                stacklevel=2,
            )
        yield found


def _seen_with(images: data.ImageTextDataset, image_spec: dict[str, Any]) -> data.ImageTextDataset:
    if images.image_spec == image_spec:
        return images
    other = copy.copy(images)
    other.image_spec, other.kept, other.cached, other.resident = image_spec, {}, None, None
    return other


def caption_images(
    model: models.ImageToTextModel | Sequence[models.ImageToTextModel],
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


def attend(
    model: models.ImageToTextModel, tokenizer: Tokenizer, images: torch.Tensor, captions: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """What each word of a caption looked at, JSON-ready, see attention.as_json; one entry per caption.

    images: (N, 3, S, S) on any device, as `ImageToTextModel.encode` takes them, or (1, 3, S, S) for captions of one
    picture. captions: N lists of ids without <start> and <end>, the model's own or any others.
    """
    return [attention.as_json(seen) for seen in attend_maps(model, tokenizer, images, captions)]


def attend_maps(
    model: models.ImageToTextModel, tokenizer: Tokenizer, images: torch.Tensor, captions: Sequence[Sequence[int]]
) -> list[attention.CaptionMaps]:
    """`attend` before its rounding."""
    if not captions:
        return []
    longest = max(1, max(len(ids) for ids in captions))
    tokens = torch.full((len(captions), longest), tokenizers.PAD)
    for row, ids in zip(tokens, captions, strict=True):
        inputs = [tokenizers.START, *ids][: max(1, len(ids))]  # a token is chosen at the place of the one before
        row[: len(inputs)] = torch.tensor(inputs)
    image_index = torch.zeros(len(captions), dtype=torch.long) if len(images) == 1 else None
    weights, side = model.cross_attention(images.to(model.mean.device), tokens.to(model.mean.device), image_index)
    return [
        attention.word_maps(tokenizer, ids, weights[:, row, : len(ids)].cpu(), side) for row, ids in enumerate(captions)
    ]
