"""A checkpoint put to use: find it and load it."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from nanocaption.base import devices
from nanocaption.base.hub import WEIGHTS
from nanocaption.base.settings import AS_BEFORE, CHECKPOINT_SETTINGS, DATA_SETTINGS, Settings, differences
from nanocaption.base.tensors import State, weights_told
from nanocaption.data.tokenizer import tokenizer_digest
from nanocaption.model import exported
from nanocaption.model.captioner import ImageToTextModel, assemble
from nanocaption.model.onnx_folder import is_onnx_export
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import best_of_newest, newest_run


def load_captioner(
    name: str | Path, revision: str | None, device: str | torch.device, dtype: str | torch.dtype
) -> ImageToTextModel:
    """nanocaption.load: the model of an exported folder, of the Hub, or of a checkpoint file."""
    if Path(name).is_file():
        if revision is not None:
            raise ValueError(f"revision = {revision!r} belongs to a model of the Hub; {name} is a file here.")
        place, kind = devices.named_device(device), devices.named_dtype(dtype)
        return assemble(checkpoint.load(name)).to(place, kind)
    return ImageToTextModel.from_pretrained(name, revision, device=device, dtype=dtype)


def load_state(path: Path, settings: Settings) -> tuple[State, Settings]:
    """A checkpoint, and the settings for using it: its own where they fix the model, else those given.

    Where its weights are an average, stderr says so.
    path: as find_checkpoint gives it, so also the weights of an exported folder, whose state has no optimizer.
    ValueError with one line where it is damaged, SystemExit where it was trained with other settings than those given.
    """
    state = exported.read(path.parent) if is_exported(path) else checkpoint.load(path)
    if (told := weights_told(state)) and devices.rank() == 0:
        print(f"{path}: the weights are {told}", file=sys.stderr)
    config = {"QUESTIONS": AS_BEFORE["QUESTIONS"]} | state["config"]
    own = {name: config[name] for name in (*CHECKPOINT_SETTINGS, "DATA_DIR") if name in config}
    settings = settings.on(own)
    fixed = [name for name in own if name not in (*DATA_SETTINGS, "DATA_DIR")]
    if changed := differences(settings, own, fixed):
        raise SystemExit(f"{path} was trained with other settings, which cannot change now: {'; '.join(changed)}")
    return state, settings


def load_model(state: State, device: torch.device) -> tuple[ImageToTextModel, Tokenizer]:
    """The trained model in eval mode and its tokenizer, from the checkpoint alone: no download, no data set.

    Raises ValueError with one line where it does not fit together.
    """
    model = assemble(state).to(device)
    assert model.tokenizer is not None
    return model, model.tokenizer


class Loaded(NamedTuple):
    """One model or several of an ensemble, in eval mode on `device`, and the settings for using them."""

    models: list[ImageToTextModel]
    tokenizer: Tokenizer
    states: list[State]  # the checkpoints
    settings: Settings
    device: torch.device


def load_models(paths: Sequence[Path], settings: Settings) -> Loaded:
    """The models of one or several checkpoints. The settings are those of the first, under those given.

    Raises as load_state and load_model do, and SystemExit where their tokenizers differ: an ensemble averages
    probabilities of the same tokens.
    """
    states, used = zip(*(load_state(path, settings) for path in paths), strict=True)
    device = devices.pick_device(used[0].DEVICE)
    models, tokenizers = zip(*(load_model(state, device) for state in states), strict=True)
    digests = [tokenizer_digest(tokenizer) for tokenizer in tokenizers]
    for path, digest in zip(paths, digests, strict=True):
        if digest != digests[0]:
            raise SystemExit(
                f"{path} has another tokenizer than {paths[0]}; only models of one tokenizer can be averaged. Train it "
                f"with the same captions and VOCAB_SIZE, or start it with --init-checkpoint-path {paths[0]}."
            )
    return Loaded(list(models), tokenizers[0], list(states), used[0], device)


def refuse_captioner(loaded: Loaded, name: Path) -> None:
    """SystemExit with one line where the model was not trained on questions."""
    if not loaded.settings.QUESTIONS:
        raise SystemExit(f"{name} captions pictures and was not trained on questions (docs/questions.md): try one that "
                         "was, e.g. nanocaption train recipes/vqa_demo.py")


def refuse_answerer(loaded: Loaded, name: Path) -> None:
    """SystemExit with one line where the model was trained on questions alone."""
    if loaded.settings.QUESTIONS:
        raise SystemExit(f"{name} answers questions, it has learnt no captions: nanocaption ask PICTURE QUESTION "
                         f"--checkpoint {name}")  # fmt: skip


def trained_by_reward(state: State) -> bool:
    """Whether self-critical training has made the weights, in its own run or in one that this began with.

    A score has to say it, and that the end was a word of the reward (arXiv 2305.12254).
    """
    return state.get("rewarded_steps", 0) > 0


def find_checkpoints(paths: str | None, output_dir: str, hub: bool = False) -> list[Path]:
    """The files of `paths`, separated by commas, as `find_checkpoint` finds them. SystemExit where one is missing."""
    if paths is None or Path(paths).exists():
        return [find_checkpoint(paths, output_dir, hub)]
    return [find_checkpoint(path, output_dir, hub) for path in paths.split(",")]


def find_checkpoint(path: str | None, output_dir: str, hub: bool = False) -> Path:
    """A checkpoint file; of an exported folder its weights; without `path` the newest run's best under `output_dir`.

    hub: whether `path` may also be the id of an exported model on the Hub. SystemExit where there is none, ValueError
    where the Hub does not give it.
    """
    if path is None:
        best = best_of_newest(output_dir)
        if best is None:
            raise SystemExit(f"There is no run with a checkpoint under {output_dir!r}. Train first: python train.py")
        newest = newest_run(output_dir)
        if newest not in (None, best.parent):
            warnings.warn(f"{newest} saved later, but has had no validation yet: taking {best}", stacklevel=2)
        return best
    if Path(path).is_file():
        return Path(path)
    if Path(path).is_dir() or (hub and path.count("/") == 1 and not path.endswith(".safetensors")):
        folder = exported.locate(path)
        if is_onnx_export(folder):
            raise SystemExit(f"{path} is an ONNX export, which only `nanocaption caption` and nanocaption.load use. "
                             "Give the checkpoint it was made from, or an export of --format nanocaption.")  # fmt: skip
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
    return path.name == WEIGHTS and exported.is_export(path.parent)
