"""A trained model on its own: its folder, and captions of pictures, without anything of the training.

    import nanocaption

    model = nanocaption.load("folder")
    print(model.caption("photo.jpg"))

The folder, as `nanocaption export` writes it (hub.FILES):
    model.safetensors          the weights; tied ones stand once
    config.json                sizes, encoder, image_spec, special ids; sha256 of weights and tokenizer
    tokenizer.json             and tokenizer_config.json, special_tokens_map.json: for transformers.AutoTokenizer, too
    preprocessor_config.json   for transformers.AutoImageProcessor
    README.md                  the model card, see export/card.py
A folder needs no network. Nothing in it is code, nothing is unpickled.
"""

import contextlib
import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch

from nanocaption.base import hub, tower_names
from nanocaption.base.files import read_bounded, sync_to_disk
from nanocaption.base.settings import CHECKPOINT_SETTINGS
from nanocaption.base.tensors import State, is_member, write_tensors
from nanocaption.base.version import VERSION
from nanocaption.data.tokenizer import END, FOR_TRANSFORMERS, MAX_BYTES, PAD, START, UNK
from nanocaption.data.transform import ImageSpec
from nanocaption.model.encoder import SCRATCH_SIZE, nameless, scratch_image_spec
from nanocaption.model.onnx_folder import checked_image_spec, checked_search
from nanocaption.model.preprocessor import preprocessor

MODEL_TYPE = "nanocaption"
FORMAT_VERSION = 2  # a tower's weights have the names of transformers' files; in 1 those that they had in memory
WITHOUT_TOWER = 1
READ = (1, 2)
# What a folder keeps of the settings: the model, what it reads and writes, and how captions are searched for. Paths and
# names of the machine stay there.
# Of later versions: kept where they are set.
OPTIONAL = {"NO_BAD_ENDINGS": False, "ENCODER_LAYERS": None, "QUESTIONS": False}
SETTINGS = (
    *(name for name in CHECKPOINT_SETTINGS if name not in OPTIONAL),
    "DECODER_DROPOUT", "BEAM_SIZE", "LENGTH_PENALTY", "MIN_LENGTH", "NO_REPEAT_NGRAM",
)  # fmt: skip
_FACTS = (  # of a checkpoint, kept
    "epoch", "step", "best_val_loss", "best_cider", "captions_sha256", "written_by", "average_of", "averaged_steps",
)  # fmt: skip
# Of encoder.Tower: what models that came from elsewhere do otherwise, and whether there is a contrastive head.
_FOREIGN = ("memory_norm", "decoder_activation", "never_chosen", "contrastive")
_MAX_TEXT = 2**24  # bytes of config.json, and of the card
_SAMPLES = re.compile(rf"^!\[[^\]\n]*\]\({hub.SAMPLES}\)\n\n", re.MULTILINE)  # of a card: a file that no state has
HINT = "`nanocaption export CHECKPOINT FOLDER` writes such folders."


def write(folder: Path, state: State, card: str) -> None:
    """Write `folder` from a checkpoint's state (checkpoint.load, or `read`) and the text of its README.md.

    All is written and verified beside it first. An older export there gets new files, and keeps what else it holds;
    config.json comes last, so that a folder that is half old fails its own check. Raises as `check_target`, or OSError.
    """
    with made_beside(folder, hub.FILES) as new:
        filed = tower_names.as_filed(state["model_state_dict"])
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in filed.items()}
        write_tensors(new / hub.WEIGHTS, weights, {"format": "pt"})
        (new / hub.TOKENIZER).write_text(state["tokenizer"], encoding="utf-8")
        (new / "README.md").write_text(card, encoding="utf-8")
        about = describe(state)
        about["sha256"] = {name: _sha256(new / name) for name in (hub.WEIGHTS, hub.TOKENIZER)}
        write_preprocessing(new, state)
        write_json(new / hub.CONFIG, about)


@contextlib.contextmanager
def made_beside(folder: Path, files: Sequence[str], is_older: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """A new folder to write `files` into, which then take their place in `folder`, in that order.

    is_older: whether a folder holds an export that may be replaced [is_export]. Raises as check_target, or OSError.
    """
    folder = Path(os.path.realpath(folder))
    check_target(folder, is_older)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        if folder.is_dir() and any(folder.iterdir()):
            for name in files:
                os.replace(new / name, folder / name)
        else:
            if folder.is_dir():
                folder.rmdir()
            os.replace(new, folder)
        sync_to_disk(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_preprocessing(folder: Path, state: State) -> None:
    """What tells transformers how to use the tokenizer and how to prepare pictures."""
    longest = {"model_max_length": state["config"]["MAX_SEQ_LEN"]}
    special = {name: token for name, token in FOR_TRANSFORMERS.items() if name.endswith("_token")}
    write_json(folder / "tokenizer_config.json", FOR_TRANSFORMERS | longest)
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "preprocessor_config.json", preprocessor(image_spec_of(state)))


def write_json(path: Path, content: Mapping[str, object]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def check_target(folder: Path, is_older: Callable[[Path], bool] | None = None) -> None:
    """Raise ValueError where `folder` is a file, or holds files and is not an export of nanoCaption in this format."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (is_older or is_export)(folder):
        raise ValueError(f"{folder} holds files and is no export of nanoCaption in this format: name a new folder.")


def is_export(folder: Path) -> bool:
    """Whether the folder's config.json says that it is one of these."""
    try:
        return _read_config(folder)["model_type"] == MODEL_TYPE
    except (ValueError, KeyError, OSError):
        return False


def image_spec_of(state: State) -> ImageSpec:
    """How the model of a state wants its pictures."""
    scratch = scratch_image_spec(state["config"]["IMAGE_SIZE"] or SCRATCH_SIZE)
    return state["model_arguments"].get("image_spec", scratch)


def describe(state: State) -> dict[str, object]:
    """The content of config.json, but for the sha256s. Its first names are those that transformers gives them."""
    known, settings = dict(state.items()), {name: state["config"][name] for name in SETTINGS}
    settings |= {name: value for name in OPTIONAL if (value := state["config"].get(name))}
    tower = settings["ENCODER_MODEL_NAME"]
    if tower is not None and not is_hub_id(tower):
        settings["ENCODER_MODEL_NAME"] = Path(tower).name  # a folder's path says nothing to anyone else
    rewarded = {"rewarded_steps": steps} if (steps := state.get("rewarded_steps")) else {}
    encoder_config = copy.deepcopy(nameless(state["model_arguments"].get("encoder_config")))
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["ImageToTextModel"],
        "is_encoder_decoder": True,
        "dtype": "float32",
        "vocab_size": len(json.loads(state["tokenizer"])["model"]["vocab"]),
        "pad_token_id": PAD,
        "bos_token_id": START,
        "decoder_start_token_id": START,
        "eos_token_id": END,
        "unk_token_id": UNK,
        "library_name": MODEL_TYPE,
        "library_version": VERSION,
        "format_version": FORMAT_VERSION if encoder_config else WITHOUT_TOWER,
        "settings": settings,
        "encoder_config": encoder_config,
        "image_spec": image_spec_of(state),
        **{name: value for name, value in state["model_arguments"].items() if name in _FOREIGN},
        # A model that is no moving average need not say so.
        "trained": {n: known[n] for n in _FACTS if n in known and (n, known[n]) != ("averaged_steps", 0)} | rewarded,
    }


def is_hub_id(name: str) -> bool:
    """Whether an ENCODER_MODEL_NAME is an id of the Hub, not a folder of this machine."""
    return not (name.startswith((".", "/", "~")) or Path(name).is_dir() or name.count("/") > 1 or "\\" in name)


def read(name: str | Path, revision: str | None = None) -> State:
    """The state in an exported folder, or in one of the Hub: as checkpoint.load gives it, without the training's part.

    Raises ValueError with one line where there is none, or where it is damaged or not one of ours.
    """
    folder = locate(name, revision)
    about = _read_config(folder)
    if about.get("model_type") != MODEL_TYPE:
        kind = about.get("model_type", "unknown")
        own = kind == "vision-encoder-decoder"
        hint = f"`nanocaption export {name} FOLDER` takes over one with GPT-2." if own else HINT
        raise ValueError(f"{folder} holds a model of the type {kind!r}, not one of nanoCaption. {hint}")
    version = about.get("format_version")
    if type(version) is not int or version not in READ:
        raise ValueError(
            f"{folder} was written by nanoCaption {str(about.get('library_version'))[:20]} in format version "
            f"{str(version)[:20]}; this program, {VERSION}, reads versions {READ[0]} to {READ[-1]}."
        )
    try:
        for file in (hub.WEIGHTS, hub.TOKENIZER):
            _check_file(folder / file, about["sha256"][file])
        arguments = {}
        spec = _checked(folder, about)
        if about["encoder_config"] is not None:
            arguments = {"encoder_config": about["encoder_config"], "image_spec": spec}
        arguments |= {name: about[name] for name in _FOREIGN if name in about}
        card = folder / "README.md"
        return cast(State, {
            **_facts(about["trained"]),
            "config": {name: about["settings"][name] for name in SETTINGS}
            | {name: about["settings"].get(name, default) for name, default in OPTIONAL.items()},
            "model_arguments": arguments,
            "model_state_dict": tower_names.as_filed(
                safetensors.torch.load_file(folder / hub.WEIGHTS, backend="pread")
            ),
            "tokenizer": read_bounded(folder / hub.TOKENIZER, MAX_BYTES).decode(),
            "card": _SAMPLES.sub("", read_bounded(card, _MAX_TEXT).decode()) if card.is_file() else "",
        })  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged: its config.json lacks what belongs there ({error!r}).") from error
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error


def _facts(about: Mapping[str, object]) -> dict[str, object]:
    """What config.json says of the training, of the types that it has. ValueError with one line."""
    kinds: dict[str, tuple[type, ...]] = {
        "epoch": (int,), "step": (int,), "averaged_steps": (int,), "rewarded_steps": (int,), "average_of": (list,),
        "best_val_loss": (int, float, type(None)), "best_cider": (int, float, type(None)),
        "captions_sha256": (str,), "written_by": (str,),
    }  # fmt: skip
    found = {name: about[name] for name in kinds if name in about}
    for name, value in found.items():
        if type(value) not in kinds[name] or (type(value) is int and not 0 <= value < 2**53):
            raise ValueError(f"config.json is damaged: trained: {name} = {str(value)[:40]}")
    for member in cast(list[object], found.get("average_of", [])):
        if not is_member(member):
            raise ValueError(f"config.json is damaged: average_of holds {str(member)[:60]}")
    return {"epoch": 0, "step": 0, **found}


def renamed(card: str, name: str) -> str:
    """The card of a folder that goes by another name from now on: how people load it."""
    old = re.search(r'nanocaption\.load\("([^"\n]+)"\)', card)
    if old is None:
        return card
    return re.sub(rf'(?<=["\s]){re.escape(old[1])}(?=["`\s])', lambda _: name, card)


def locate(name: str | Path, revision: str | None = None) -> Path:
    """`name` where it is a folder, else the folder that the Hub has under that id. ValueError with one line."""
    if Path(name).expanduser().is_dir():
        if revision is not None:
            raise ValueError(f"revision = {revision!r} belongs to a model of the Hub; {name} is a folder here.")
        return Path(name).expanduser()
    if Path(name).is_file() or str(name).count("/") != 1 or not is_hub_id(str(name)):
        what = "a file, not an exported folder" if Path(name).is_file() else "no folder, and no USER/NAME of the Hub"
        raise ValueError(f"{name} is {what}. {HINT}")
    return hub.download(str(name), revision)


def _checked(folder: Path, about: Mapping[str, Any]) -> ImageSpec:
    """The image_spec of a config.json. ValueError where it, or a setting of the search, is absurd."""
    try:
        checked_search(about["settings"])
        return checked_image_spec(about["image_spec"])
    except ValueError as error:
        raise ValueError(f"{folder / hub.CONFIG} is damaged: {error}. {HINT}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / hub.CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not an exported model: it has no {hub.CONFIG}. {HINT}")
    try:
        about = json.loads(read_bounded(path, _MAX_TEXT).decode())
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
