"""A trained model on its own: its folder, and captions of pictures, without anything of the training.

    from model import ImageToTextModel

    model = ImageToTextModel.from_pretrained("folder")
    print(model.caption("photo.jpg"))

The folder, as export.py writes it (hub.FILES):
    model.safetensors          the weights; tied ones stand once
    config.json                sizes, encoder, image_spec, special ids; sha256 of weights and tokenizer
    tokenizer.json             and tokenizer_config.json, special_tokens_map.json: for transformers.AutoTokenizer, too
    preprocessor_config.json   for transformers.AutoImageProcessor
    README.md                  the model card, see card.py
A folder needs no network. Nothing in it is code, nothing is unpickled.
"""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch import Tensor

import checkpoint
import decode
import encoder
import hub
import tokenizer as tokenizers
from transform import load_image

MODEL_TYPE = "nanocaption"
FORMAT_VERSION = 1
# What a folder keeps of the settings: the model, what it reads and writes, and how captions are searched for. Paths and
# names of the machine stay there.
SETTINGS = (
    "DATASET", "DATA_CUTOFF", "DATA_SEED", "TRAIN_SPLITS", "VAL_SPLITS", "TEST_SPLITS", "CAPTION_CASE",
    "VOCAB_SIZE", "MAX_SEQ_LEN",
    "PAD_TOKEN_ID", "START_TOKEN_ID", "END_TOKEN_ID", "UNK_TOKEN_ID",
    "ENCODER_MODEL_NAME", "FREEZE_ENCODER", "IMAGE_SIZE",
    "VIT_PATCH_SIZE", "VIT_STEM", "VIT_EMBED_DIM", "VIT_LAYERS", "VIT_HEADS",
    "DECODER_EMBED_DIM", "DECODER_HEADS", "DECODER_LAYERS", "DECODER_FF_DIM", "DECODER_DROPOUT",
    "BEAM_SIZE", "LENGTH_PENALTY", "MIN_LENGTH", "NO_REPEAT_NGRAM",
)  # fmt: skip
_FACTS = ("epoch", "step", "best_val_loss", "best_cider", "captions_sha256", "written_by")  # of a checkpoint, kept
_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # PIL's numbers
_PICTURES = 32  # captioned at once
_HINT = "python export.py CHECKPOINT FOLDER writes such folders."


# --- The folder ---


def write(folder: Path, state: dict[str, Any], card: str) -> None:
    """Write `folder` from a checkpoint's state (checkpoint.load, or `read`) and the text of its README.md.

    All is written and verified beside it first. An older export there gets new files, and keeps what else it holds;
    config.json comes last, so that a folder that is half old fails its own check. Raises as `check_target`, or OSError.
    """
    folder = Path(os.path.realpath(folder))
    check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state["model_state_dict"].items()}
        checkpoint.write_tensors(new / hub.WEIGHTS, weights, {"format": "pt"})
        (new / hub.TOKENIZER).write_text(state["tokenizer"], encoding="utf-8")
        (new / "README.md").write_text(card, encoding="utf-8")
        about = describe(state)
        about["sha256"] = {name: _sha256(new / name) for name in (hub.WEIGHTS, hub.TOKENIZER)}
        longest = {"model_max_length": state["config"]["MAX_SEQ_LEN"]}
        special = {name: token for name, token in tokenizers.FOR_TRANSFORMERS.items() if name.endswith("_token")}
        for name, content in (
            ("tokenizer_config.json", tokenizers.FOR_TRANSFORMERS | longest),
            ("special_tokens_map.json", special),
            ("preprocessor_config.json", preprocessor(about["image_spec"])),
            (hub.CONFIG, about),
        ):
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            (new / name).write_text(text + "\n", encoding="utf-8")
        if folder.is_dir() and any(folder.iterdir()):
            for name in hub.FILES:
                os.replace(new / name, folder / name)
        else:
            if folder.is_dir():
                folder.rmdir()
            os.replace(new, folder)
        checkpoint.sync_folder(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Raise ValueError where `folder` is a file, or holds files and is not an export of nanoCaption."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not is_export(folder):
        raise ValueError(f"{folder} holds files and is no export of nanoCaption: name a new or an empty folder.")


def is_export(folder: Path) -> bool:
    """Whether the folder's config.json says that it is one of these."""
    try:
        return _read_config(folder)["model_type"] == MODEL_TYPE
    except (ValueError, KeyError, OSError):
        return False


def describe(state: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json, but for the sha256s. Its first names are those that transformers gives them."""
    settings = {name: state["config"][name] for name in SETTINGS}
    tower = settings["ENCODER_MODEL_NAME"]
    if tower is not None and not is_hub_id(tower):
        settings["ENCODER_MODEL_NAME"] = Path(tower).name  # a folder's path says nothing to anyone else
    encoder_config = copy.deepcopy(encoder.nameless(state["model_arguments"].get("encoder_config")))
    scratch = encoder.scratch_image_spec(settings["IMAGE_SIZE"] or 64)
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["ImageToTextModel"],
        "is_encoder_decoder": True,
        "dtype": "float32",
        "vocab_size": len(json.loads(state["tokenizer"])["model"]["vocab"]),
        "pad_token_id": tokenizers.PAD,
        "bos_token_id": tokenizers.START,
        "decoder_start_token_id": tokenizers.START,
        "eos_token_id": tokenizers.END,
        "unk_token_id": tokenizers.UNK,
        "library_name": MODEL_TYPE,
        "library_version": checkpoint.VERSION,
        "format_version": FORMAT_VERSION,
        "settings": settings,
        "encoder_config": encoder_config,
        "image_spec": state["model_arguments"].get("image_spec", scratch),
        "trained": {name: state[name] for name in _FACTS if name in state},
    }


def is_hub_id(name: str) -> bool:
    """Whether an ENCODER_MODEL_NAME is an id of the Hub, not a folder of this machine."""
    return not (name.startswith((".", "/", "~")) or Path(name).is_dir() or name.count("/") > 1 or "\\" in name)


def preprocessor(image_spec: Mapping[str, Any]) -> dict[str, Any]:
    """The image_spec as transformers' image processors write it; encoder.read_image_spec reads it back."""
    size, crop = image_spec["size"], image_spec["crop"]
    kind = "CLIPImageProcessor" if crop else "ViTImageProcessor"
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_spec["resize"]} if crop else {"height": size, "width": size},
        "resample": _RESAMPLE[image_spec["interpolation"]],
        "do_center_crop": crop,
        **({"crop_size": {"height": size, "width": size}} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": image_spec["mean"],
        "image_std": image_spec["std"],
    }


def read(name: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The state in an exported folder, or in one of the Hub: as checkpoint.load gives it, without the training's part.

    Raises ValueError with one line where there is none, or where it is damaged or not one of ours.
    """
    folder = locate(name, revision)
    about = _read_config(folder)
    if about.get("model_type") != MODEL_TYPE:
        kind = about.get("model_type", "unknown")
        raise ValueError(f"{folder} holds a model of the type {kind!r}, not one of nanoCaption. {_HINT}")
    if about.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} was written by nanoCaption {about.get('library_version')} in format version "
            f"{about.get('format_version')}; this program, {checkpoint.VERSION}, reads version {FORMAT_VERSION}."
        )
    try:
        for file in (hub.WEIGHTS, hub.TOKENIZER):
            _check_file(folder / file, about["sha256"][file])
        arguments = {}
        if about["encoder_config"] is not None:
            arguments = {"encoder_config": about["encoder_config"], "image_spec": about["image_spec"]}
        card = folder / "README.md"
        return {
            **about["trained"],
            "config": {name: about["settings"][name] for name in SETTINGS},
            "model_arguments": arguments,
            "model_state_dict": safetensors.torch.load_file(folder / hub.WEIGHTS, backend="pread"),
            "tokenizer": (folder / hub.TOKENIZER).read_text(encoding="utf-8"),
            "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged: its config.json lacks what belongs there ({error!r}).") from error
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error


def locate(name: str | Path, revision: str | None = None) -> Path:
    """`name` where it is a folder, else the folder that the Hub has under that id. ValueError with one line."""
    if Path(name).expanduser().is_dir():
        if revision is not None:
            raise ValueError(f"revision = {revision!r} belongs to a model of the Hub; {name} is a folder here.")
        return Path(name).expanduser()
    if Path(name).is_file() or str(name).count("/") != 1 or not is_hub_id(str(name)):
        what = "a file, not an exported folder" if Path(name).is_file() else "no folder, and no USER/NAME of the Hub"
        raise ValueError(f"{name} is {what}. {_HINT}")
    return hub.download(str(name), revision)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / hub.CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not an exported model: it has no {hub.CONFIG}. {_HINT}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path} is damaged: it holds no settings.")
    return about


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path.parent} is not whole: it has no {path.name}. Export or download it again.")
    if _sha256(path) == expected:
        return
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(f"{path} is only a pointer to the file: run `git lfs pull` in {path.parent}.")
    raise ValueError(f"{path} is damaged, or not the file of its {hub.CONFIG}. Export or download the folder again.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- The model ---


def assemble(state: dict[str, Any], build: Callable[..., Any]) -> tuple[Any, Tokenizer]:
    """(the model in eval mode on the CPU, its tokenizer) from a state alone: no download, no data set.

    build: model.build. Raises ValueError with one line where the parts do not fit each other.
    """
    tokenizer = tokenizers.from_json(state["tokenizer"])
    try:
        model = build(state["config"], tokenizer.get_vocab_size(), state["model_arguments"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"The model cannot be built from its settings: {error!r}") from error
    checkpoint.check_fits(model, state["model_state_dict"], "The checkpoint")
    model.load_state_dict(state["model_state_dict"])
    return model.eval(), tokenizer


def load(name: str | Path, revision: str | None, build: Callable[..., Any]) -> Any:
    """ImageToTextModel.from_pretrained."""
    state = read(name, revision)
    try:
        model, model.tokenizer = assemble(state, build)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    model.about = {key: value for key, value in state.items() if key != "model_state_dict"}
    return model


def save(model: Any, folder: Path) -> None:
    """ImageToTextModel.save_pretrained: the folder it came from once more, with the weights it has now."""
    if model.about is None:
        raise ValueError("This model has no tokenizer and no card of its own: save what from_pretrained gave. " + _HINT)
    write(folder, {**model.about, "model_state_dict": model.state_dict()}, model.about["card"])


# --- Captions ---


class CaptionText(NamedTuple):
    text: str
    log_prob: float  # sum over its tokens
    score: float  # log_prob / length ** length_penalty, see decode.py
    ids: list[int]  # its tokens without <start> and <end>


@torch.inference_mode()
def captions(model: Any, paths: Sequence[str | Path], **options: Any) -> list[list[CaptionText]]:
    """Captions of picture files with a model of from_pretrained, per picture the best first.

    options: fields of decode.Options, in place of the search settings the model was saved with.
    Raises ValueError with one line for a picture that cannot be read.
    """
    if model.tokenizer is None:
        raise ValueError("This model has no tokenizer of its own: ImageToTextModel.from_pretrained gives one that has.")
    strange = [path for path in paths if not isinstance(path, str | os.PathLike)]
    if strange:
        raise ValueError(f"{strange[0]!r:.60} is no path of a picture file: save the picture, and give its path")
    chosen = search_options(model.about["config"])._replace(**options)
    found = []
    for start in range(0, len(paths), _PICTURES):
        chunk = [load_image(path, model.image_spec) for path in paths[start : start + _PICTURES]]
        found += decode_pictures([model], model.tokenizer, [torch.stack(chunk).to(model.mean.device)], chosen)
    return found


def decode_pictures(
    models: Sequence[Any],
    tokenizer: Tokenizer,
    pixels: Sequence[Tensor],
    options: decode.Options,
    seeds: Sequence[int] | None = None,
) -> list[list[CaptionText]]:
    """Captions of N pictures by one model, or by several whose probabilities are averaged; per picture the best first.

    pixels: per model its own reading of the pictures, uint8 (N, 3, S, S) on the models' device.
    seeds: of random captions, one per picture, see decode.sample.
    """
    steps = [model.start_decoding(images) for model, images in zip(models, pixels, strict=True)]
    results = decode.decode(
        decode.ensemble(steps), len(pixels[0]), options, start_id=tokenizers.START, end_id=tokenizers.END,
        max_length=min(model.decoder.max_seq_len for model in models) - 1, seeds=seeds,
        device=pixels[0].device,
    )  # fmt: skip
    return [
        [CaptionText(tokenizers.decode(tokenizer, c.ids), c.log_prob, c.score, c.ids) for c in found]
        for found in results
    ]


def search_options(settings: Mapping[str, Any]) -> decode.Options:
    """The beam search that settings, by name, ask for."""
    return decode.Options(
        beam_size=settings["BEAM_SIZE"], length_penalty=settings["LENGTH_PENALTY"], min_length=settings["MIN_LENGTH"],
        no_repeat_ngram=settings["NO_REPEAT_NGRAM"],
    )  # fmt: skip
