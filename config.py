"""Every setting of nanoCaption. Edit the values here, then run `python train.py`.

Three ways to change a setting, each stronger than the one before:
    1. edit the constant in this file
    2. name a recipe:      python train.py recipes/flickr8k_vit_tiny.py
    3. give a flag:        python train.py --batch-size 64 --no-freeze-encoder --resume-checkpoint-path last
The value `none` on the command line stands for None. `python train.py --help` lists all settings.
"""

import argparse
import ast
import dataclasses
import difflib
import runpy
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

import config_checks

# --- Data ---
DATASET: str = "demo"  # "demo" (drawn), "flickr30k" (downloaded), your own; or a mix, e.g. "flickr30k,mine*2"
DATA_DIR: str = "data"  # prepared sets are kept in DATA_DIR/DATASET
RAW_DATA_DIR: str | None = None  # folder or archive with your pictures and captions; read, never changed
HF_DATASET_ID: str = "nlphuji/flickr30k"  # where "flickr30k" comes from; as parquet: AnyModal/flickr30k
HF_DATASET_REVISION: str = "main"  # branch, tag or commit of HF_DATASET_ID
DATA_CUTOFF: int | None = None  # take only the first N images of each split (quick trials); None = all
TRAIN_SPLITS: tuple[str, ...] = ("train",)  # splits of the set to train on; of COCO as Karpathy cut it: train,restval
VAL_SPLITS: tuple[str, ...] = ("val",)  # to validate on after each epoch; choosing a checkpoint goes by these
TEST_SPLITS: tuple[str, ...] = ("test",)  # evaluate.py's --split test
DATA_SEED: int = 1  # fixes the drawn demo set, and the splits of a set that comes without its own
MAX_BAD_FRACTION: float = 0.01  # largest share of pictures, or captions, that may be unusable and are left out
CAPTION_CASE: Literal["keep", "lower"] = "keep"  # of the prepared captions; the other rules of their text: captions.py
NUM_WORKERS: int = 0  # processes that read images; 0 reads in the training process, and checks new data on every core
RANDOM_CROP_AREA: float = 1.0  # training pictures are cropped at random to this share of their area or more; 1 = never
RANDOM_FLIP: bool = False  # mirror half of the training pictures; wrong where captions say left and right
CACHE_FEATURES: bool = True  # a frozen encoder runs once per image, its output is kept in DATA_DIR/DATASET/cache
CACHE_IMAGES: bool = True  # otherwise each picture is decoded and resized once, and kept there
CACHE_LIMIT_GB: float = 50.0  # largest file of either cache; above it the work is done anew every epoch

# --- Text ---
VOCAB_SIZE: int = 1000  # byte-level BPE trained on the training captions; 256 bytes and 4 special tokens included
MAX_SEQ_LEN: int = 40  # longest caption in tokens, <start> and <end> included; longer ones are cut
PAD_TOKEN_ID: int = 0  # fills up the shorter captions of a batch; these four are fixed, the tokenizer's own
START_TOKEN_ID: int = 1  # the first token of every caption
END_TOKEN_ID: int = 2  # the last token of every caption
UNK_TOKEN_ID: int = 3  # never occurs: every byte has a token

# --- Encoder ---
ENCODER_MODEL_NAME: str | None = None  # Hub id or folder of a ViT, CLIP, SigLIP, DINOv2 or DeiT; None = from scratch
FREEZE_ENCODER: bool = False  # keep a pretrained encoder as it is
IMAGE_SIZE: int | None = None  # side in pixels of the encoder's input; None = a pretrained encoder's own, else 64
VIT_PATCH_SIZE: int = 8  # from scratch: one token per patch of this side, pixels
VIT_STEM: Literal["conv", "patch"] = "conv"  # from scratch: small convolutions (learns faster) or one linear patch map
VIT_EMBED_DIM: int = 128  # from scratch: width
VIT_LAYERS: int = 2  # from scratch: depth
VIT_HEADS: int = 4  # from scratch: attention heads

# --- Decoder ---
DECODER_EMBED_DIM: int = 128  # width
DECODER_HEADS: int = 4  # attention heads
DECODER_LAYERS: int = 2  # depth
DECODER_FF_DIM: int = 512  # width of the feed-forward layers
DECODER_DROPOUT: float = 0.0  # on embeddings, attention outputs and feed-forward outputs

# --- Training ---
SEED: int = 1  # fixes the initial weights, the data order and the dropout
DEVICE: str = "auto"  # "auto", "cpu", "mps", "cuda" or "cuda:1"
PRECISION: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"  # auto = bf16 (else fp16) on CUDA, fp32 elsewhere
COMPILE: bool = False  # torch.compile: a minute or more at the start, for a GPU's time in every step after it
GRADIENT_CHECKPOINTING: bool = False  # a trained encoder keeps less for the backward pass, and computes it twice
FSDP: bool = False  # torchrun: spread weights and optimizer over the GPUs, for models that one card cannot hold
PROFILE: bool = False  # train no run: time 20 steps, print where the time goes, and leave
DETERMINISTIC: bool = False  # only operations that repeat to the bit: for exact resumes on CUDA, where it costs speed
NUM_EPOCHS: int = 12  # an epoch visits each image-caption pair once (or as its set's weight in DATASET says)
BATCH_SIZE: int | Literal["auto"] = 80  # image-caption pairs per forward pass and process; auto = what a GPU can hold
CAPTIONS_PER_IMAGE: int = 5  # captions that share one encoder pass in a batch; 1 = one row per pair
GRAD_ACCUM_STEPS: int = 1  # forward passes per optimizer step
LEARNING_RATE: float = 1e-3  # peak rate of all weights that are not the encoder's
ENCODER_LEARNING_RATE: float | None = None  # peak rate of the encoder; None = LEARNING_RATE
LR_SCHEDULE: Literal["constant", "linear", "cosine", "step"] = "cosine"  # after the warmup
WARMUP_STEPS: int = 100  # optimizer steps from WARMUP_LR to LEARNING_RATE
WARMUP_RATIO: float | None = None  # the warmup as a share of all steps; replaces WARMUP_STEPS
WARMUP_LR: float = 0.0  # rate at the start of the warmup
MIN_LR: float = 1e-5  # rate at the end of "linear" and "cosine", floor of "step"
LR_DECAY_RATE: float = 0.8  # "step": factor applied after every epoch
WEIGHT_DECAY: float = 0.05  # not on biases, norms and embeddings
ADAM_BETAS: tuple[float, float] = (0.9, 0.98)  # AdamW's decay rates of the mean gradient and of its mean square
ADAM_EPS: float = 1e-8  # AdamW's guard against division by zero
GRAD_CLIP_VALUE: float = 1.0  # largest norm of the whole gradient; 0 = no clipping
MAX_NONFINITE_STEPS: int = 3  # steps in a row without a finite loss and gradient, all skipped, before the run stops
LABEL_SMOOTHING: float = 0.1  # training loss only; the validation loss is the plain one
VALIDATION_INTERVAL: int = 1  # epochs between validations; the last epoch always validates
VALIDATION_SCORE_IMAGES: int = 100  # validation images captioned (greedy) and scored each time; 0 = loss only
EARLY_STOPPING_PATIENCE: int = 0  # validations without a better loss before the run stops; 0 = never

# --- Runs ---
OUTPUT_DIR: str = "runs"  # each run gets a folder of its own in here
RUN_NAME: str | None = None  # name of that folder; None = DATASET and the next free number
RESUME_CHECKPOINT_PATH: str | None = None  # a checkpoint file, or "last": the newest whole one, or else a fresh start
CHECKPOINT_EVERY_STEPS: int = 0  # save last.safetensors after so many optimizer steps; 0 = by time and epoch only
CHECKPOINT_EVERY_MINUTES: float = 10.0  # and after so many minutes; 0 = never. Every epoch's end saves as well
INIT_CHECKPOINT_PATH: str | None = None  # start a fresh run with the weights and the tokenizer of this checkpoint
KEEP_BEST: int = 2  # best checkpoints kept in a run's folder
HF_REPO_ID: str | None = None  # "user/name" on the Hub: new best checkpoints are exported and uploaded beside the run
HF_PRIVATE: bool = True  # a repository that is made for HF_REPO_ID is private
LOG_WANDB: bool = False  # copy the log to Weights & Biases; WANDB_MODE=offline in the environment needs no login
WANDB_PROJECT: str = "nanocaption"  # where W&B files the run
WANDB_ENTITY: str | None = None  # None = your default entity
LOG_TENSORBOARD: bool = False  # copy it to TensorBoard as well, into the run's folder; needs: pip install tensorboard

# --- Captioning and scores ---
EVAL_BATCH_SIZE: int = 100  # images captioned at once
BEAM_SIZE: int = 3  # 1 = greedy
LENGTH_PENALTY: float = 1.0  # beam score = log-probability / length ** LENGTH_PENALTY; larger = longer captions
MIN_LENGTH: int = 0  # fewest tokens of a caption before its <end>
NO_REPEAT_NGRAM: int = 0  # no sequence of this many tokens occurs twice in a caption; 0 = off

# The data of a run: as its checkpoint has them, but free to change where the model is put to another use.
DATA_SETTINGS = ("DATASET", "DATA_CUTOFF", "DATA_SEED", "TRAIN_SPLITS", "VAL_SPLITS", "TEST_SPLITS")
# What fixes the model and what it reads and writes. It is taken from the checkpoint when one is used, and may
# not change on a resume.
CHECKPOINT_SETTINGS = (
    *DATA_SETTINGS, "CAPTION_CASE", "VOCAB_SIZE", "MAX_SEQ_LEN",
    "PAD_TOKEN_ID", "START_TOKEN_ID", "END_TOKEN_ID", "UNK_TOKEN_ID",
    "ENCODER_MODEL_NAME", "FREEZE_ENCODER", "IMAGE_SIZE",
    "VIT_PATCH_SIZE", "VIT_STEM", "VIT_EMBED_DIM", "VIT_LAYERS", "VIT_HEADS",
    "DECODER_EMBED_DIM", "DECODER_HEADS", "DECODER_LAYERS", "DECODER_FF_DIM",
)  # fmt: skip
# On top of these, what fixes the course of the training itself. (BATCH_SIZE and GRAD_ACCUM_STEPS may change as long as
# their product with the number of processes stays.)
RESUME_SETTINGS = (
    *CHECKPOINT_SETTINGS,
    "SEED", "CAPTIONS_PER_IMAGE", "PRECISION", "COMPILE", "DECODER_DROPOUT", "RANDOM_CROP_AREA", "RANDOM_FLIP",
    "LEARNING_RATE", "ENCODER_LEARNING_RATE", "LR_SCHEDULE", "WARMUP_STEPS", "WARMUP_RATIO", "WARMUP_LR", "MIN_LR",
    "LR_DECAY_RATE", "WEIGHT_DECAY", "ADAM_BETAS", "ADAM_EPS", "GRAD_CLIP_VALUE", "LABEL_SMOOTHING",
)  # fmt: skip

_SHORT = {"--lr": "LEARNING_RATE"}  # further names of flags

_HINTS = typing.get_type_hints(sys.modules[__name__])
_TYPES: dict[str, Any] = {name: kind for name, kind in _HINTS.items() if name.isupper() and name[0] != "_"}
CONSTANTS: dict[str, Any] = {name: globals()[name] for name in _TYPES}
Settings = dataclasses.make_dataclass("Settings", list(_TYPES.items()), frozen=True)
Settings.__doc__ = "All settings of config.py, checked, as attributes; frozen."


def load(argv: list[str], base: dict[str, Any] | None = None) -> Any:
    """The settings: constants, then `base`, then the recipe and then the flags in argv.

    argv: e.g. sys.argv[1:]; at most one positional, the path of a recipe.
    base: values by name that replace the constants, e.g. those a checkpoint was trained with; unknown names are left
        out, so that a checkpoint of an older program still serves.
    Returns a frozen Settings. Raises SystemExit with every problem found, one line each; --help prints and exits.
    """
    _require_settings()
    values = dict(CONSTANTS)
    # A value of this file may be wrong as well: it was edited by hand.
    checked = [config_checks.type_problem(name, value, _TYPES[name]) for name, value in values.items()]
    problems = [problem for problem in checked if problem]
    constants_fit = not problems
    for name, value in (base or {}).items():
        if name in values:
            values[name] = tuple(value) if isinstance(value, list) else value
    recipe, flags, flag_problems = _parse_argv(argv)
    # After a misspelt flag, "the recipe" may be that flag's value.
    for name, value in _read_recipe(recipe).items() if recipe and not flag_problems else ():
        problems += _assign(values, name, value, f"{recipe}: ")
    for name, value in flags.items():
        problems += _assign(values, name, value, "")
    problems += flag_problems
    understood = not problems
    if constants_fit:
        problems += config_checks.range_problems(values)
    if understood:  # these compare settings with each other: misleading where one of them was not understood
        problems += config_checks.cross_problems(values)
    if problems:
        raise SystemExit("Settings are not right:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return Settings(**values)


def _require_settings() -> None:
    """SystemExit where this file, edited by hand, lacks a setting, its type, or has a line that is no setting."""
    known = {*RESUME_SETTINGS, *config_checks.NAMES}
    own = {"DATA_SETTINGS", "CHECKPOINT_SETTINGS", "RESUME_SETTINGS", "CONSTANTS"}
    bare = [name for name in globals() if name.isupper() and name[0] != "_" and name not in {*_TYPES, *own}]
    problems = [
        f"{name} has lost its type: write {name}: <type> = {globals()[name]!r}, with the type that stood there"
        if name in known else f"{name} is not a setting{_nearest(name, {*_TYPES, *known})}"
        for name in bare
    ]  # fmt: skip
    problems += [f"{name} is missing: put its line back" for name in sorted(known - {*_TYPES, *bare})]
    if problems:
        raise SystemExit("config.py is not right:\n" + "\n".join(f"  - {problem}" for problem in problems))


def take_settings(argv: list[str]) -> tuple[list[str], list[str]]:
    """argv -> (the flags that are settings, with their values; the rest), for a script with arguments of its own."""
    own, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        flag = word.partition("=")[0]
        name = _SHORT.get(flag, flag.removeprefix("--").replace("-", "_").upper())
        if not word.startswith("--") or (name not in _TYPES and name.removeprefix("NO_") not in _TYPES):
            rest.append(word)
            continue
        own.append(word)
        if "=" not in word and _TYPES.get(name) not in (bool, None) and words:
            own.append(words.pop(0))
    return own, rest


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings by name."""
    return dataclasses.asdict(settings)


def unchanged_since(saved: dict[str, Any]) -> set[str]:
    """The settings whose constant in this file is what it was when `saved` (CONSTANTS, through JSON) was stored."""
    return {name for name, value in CONSTANTS.items() if name in saved and _same(value, saved[name])}


def differences(settings: Any, saved: dict[str, Any], names: typing.Iterable[str]) -> list[str]:
    """"NAME: old -> new" for each of `names` whose value is not the saved one (which went through JSON)."""
    current = as_dict(settings)
    pairs = [(name, saved[name], current[name]) for name in names if name in saved]  # not: settings of later versions
    return [f"{name}: {old!r} -> {new!r}" for name, old, new in pairs if not _same(old, new)]


def _same(a: Any, b: Any) -> bool:
    return (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)


def _assign(values: dict[str, Any], name: str, value: Any, origin: str) -> list[str]:
    if name not in values:
        return [f"{origin}{name} is not a setting{_nearest(name, values)}"]
    if isinstance(value, int) and not isinstance(value, bool) and _accepts(name, float) and not _accepts(name, int):
        value = float(value)  # LEARNING_RATE = 1 means 1.0
    problem = config_checks.type_problem(name, value, _TYPES[name])
    if problem:
        return [origin + problem]
    values[name] = value
    return []


def _accepts(name: str, kind: type) -> bool:
    return kind is _TYPES[name] or kind in typing.get_args(_TYPES[name])


def _read_recipe(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise SystemExit(f"There is no recipe {path!r}. A recipe is a Python file of settings, see recipes/.")
    try:
        namespace = runpy.run_path(path)
    except Exception as error:
        raise SystemExit(f"The recipe {path!r} does not run: {type(error).__name__}: {error}") from error
    # A setting in small letters would change nothing, silently.
    return {name: value for name, value in namespace.items() if name.isupper() or name.upper() in _TYPES}


def _parse_argv(argv: list[str]) -> tuple[str | None, dict[str, Any], list[str]]:
    """argv -> (recipe path, values by name, problems). Types are checked here, so that all problems come at once."""
    parser = _parser()
    known, unknown = parser.parse_known_args(argv)
    flags, problems = {}, []
    for name, text in vars(known).items():
        if name == "recipe" or text is None:
            continue
        flags[name] = _from_text(name, text)
    options = ["--" + name.lower().replace("_", "-") for name in _TYPES]
    for word in unknown:
        if word.startswith("--"):
            problems.append(f"{word} is not a flag{_nearest(word.split('=')[0], options)}")
        elif not problems:
            problems.append(f"{word!r} is one word too many: give one recipe, and each flag one value")
    return known.recipe, flags, problems


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [recipe] [--setting value ...]",  # argparse's own would list all flags after every mistake
        description="All settings. [Defaults] are those of config.py; a recipe changes them, a flag has the last word.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120),
    )
    parser.add_argument("recipe", nargs="?", help="a Python file of settings, e.g. recipes/flickr8k_vit_tiny.py")
    for section, names in _comments().items():
        group = parser.add_argument_group(section)
        for name, comment in names.items():
            flags = ["--" + name.lower().replace("_", "-"), *(flag for flag, of in _SHORT.items() if of == name)]
            text = (comment + " " if comment else "") + f"[{CONSTANTS[name]}]"
            text = text.replace("%", "%%")
            if _TYPES[name] is bool:
                group.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
            else:
                group.add_argument(*flags, dest=name, metavar=name.split("_")[-1], help=text)
    return parser


def _from_text(name: str, text: Any) -> Any:
    """A flag's text as the setting's type; text that does not fit is returned as it is and refused by type."""
    if isinstance(text, bool) or (text.lower() == "none" and _accepts(name, types.NoneType)):
        return text if isinstance(text, bool) else None
    try:
        if typing.get_origin(_TYPES[name]) is tuple:
            one = str.strip if Ellipsis in typing.get_args(_TYPES[name]) else float
            return tuple(one(part) for part in text.split(","))
        if _accepts(name, int):
            return int(text)
        if _accepts(name, float):
            return float(text)
    except ValueError:
        pass
    return text


def _comments() -> dict[str, dict[str, str]]:
    """{section: {setting: its comment}}, read from this file, so that the help cannot disagree with it."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    sections: dict[str, dict[str, str]] = {}
    starts = {node.lineno: node.target.id for node in ast.parse("\n".join(lines)).body
              if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}  # fmt: skip
    for number, line in enumerate(lines, start=1):
        if line.startswith("# --- "):
            section = line.strip("# -")
            sections[section] = {}
        elif starts.get(number) in _TYPES:
            sections[section][starts[number]] = line.partition("  # ")[2]
    return sections


def _nearest(word: str, choices: typing.Collection[str]) -> str:
    exact = [name for name in (word.upper(), _SHORT.get(f"--{word.lower()}")) if name in choices]
    close = exact or difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; `python train.py --help` lists them all"
