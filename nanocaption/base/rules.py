"""What values the settings of config.py may have; every problem is a line with the value, the rule and the fix."""

import itertools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

_AT_LEAST_ONE = (
    "MAX_SEQ_LEN", "VIT_PATCH_SIZE", "VIT_EMBED_DIM", "VIT_LAYERS", "VIT_HEADS", "DECODER_EMBED_DIM",
    "DECODER_HEADS", "DECODER_LAYERS", "DECODER_FF_DIM", "NUM_EPOCHS", "BATCH_SIZE", "CAPTIONS_PER_IMAGE",
    "GRAD_ACCUM_STEPS", "MAX_NONFINITE_STEPS", "VALIDATION_INTERVAL",
    "KEEP_BEST", "EVAL_BATCH_SIZE", "BEAM_SIZE", "DATA_CUTOFF", "IMAGE_SIZE", "SCST_SAMPLES", "K_TEST",
)  # fmt: skip
_NOT_NEGATIVE = (
    "FEATURE_VIEWS",
    "NUM_WORKERS", "SEED", "DATA_SEED", "WARMUP_STEPS", "WARMUP_LR", "MIN_LR", "WEIGHT_DECAY", "GRAD_CLIP_VALUE",
    "CHECKPOINT_EVERY_STEPS", "CHECKPOINT_EVERY_MINUTES",
    "VALIDATION_SCORE_IMAGES", "EARLY_STOPPING_PATIENCE", "LENGTH_PENALTY", "ENCODER_LEARNING_RATE",
    "SCST_START_EPOCH", "SCST_XE_WEIGHT", "PATCH_DROP_WHOLE_EPOCHS", "CONTRASTIVE_WEIGHT",
    "MIN_LENGTH", "NO_REPEAT_NGRAM", "CONSENSUS", "CACHE_LIMIT_GB",
)  # fmt: skip
_ABOVE_ZERO = ("LEARNING_RATE", "SCST_LEARNING_RATE", "ADAM_EPS", "LR_DECAY_RATE")
_FRACTIONS = ("DECODER_DROPOUT", "LABEL_SMOOTHING", "WARMUP_RATIO", "PATCH_DROP", "EMA_DECAY")  # 0 <= value < 1
NAMES = (*_AT_LEAST_ONE, *_NOT_NEGATIVE, *_ABOVE_ZERO, *_FRACTIONS)
_REPO_ID = r"(?!.*(--|\.\.))\w([\w.-]*\w)?/\w([\w.-]{0,94}\w)?"


def type_problem(name: str, value: object, kind: object) -> str | None:
    """What is wrong with a value where the setting's annotation is `kind`; None where it fits."""
    if any(_fits(value, option) for option in options_of(kind)):
        return None
    return f"{name} = {value!r}: must be {_type_text(kind)}"


def accepts(kind: object, part: type) -> bool:
    """Whether a setting annotated as `kind` may be of the type `part`."""
    return part in options_of(kind)


def options_of(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if union else (kind,)


def _fits(value: object, kind: Any) -> bool:
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value in parts
    if typing.get_origin(kind) is not tuple:
        return type(value) is kind or (kind is float and type(value) is int)
    if not isinstance(value, tuple):
        return False
    if Ellipsis in parts:
        return value != () and all(type(part) is parts[0] and part for part in value)
    return len(value) == len(parts) and all(type(part) in (int, float) for part in value)


def _type_text(kind: Any) -> str:
    if len(options := options_of(kind)) > 1:
        return " or ".join(map(_type_text, options))
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        if int in typing.get_args(kind) and Ellipsis in typing.get_args(kind):
            return "whole numbers, e.g. 6,9,12 on the command line and (6, 9, 12) in a file"
        if Ellipsis in typing.get_args(kind):
            return "one name or more, e.g. train,restval on the command line and ('train', 'restval') in a file"
        return f"{len(typing.get_args(kind))} numbers, e.g. 0.9,0.98"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", types.NoneType: "none"}
    return names[kind]


def range_problems(values: Mapping[str, object]) -> list[str]:
    """What is wrong with each value by itself."""
    rules: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (_AT_LEAST_ONE, lambda v: v >= 1, "must be 1 or more"),
        (_NOT_NEGATIVE, lambda v: 0 <= v < float("inf"), "must be 0 or more, and finite"),
        (_ABOVE_ZERO, lambda v: 0 < v < float("inf"), "must be above 0, and finite"),
        (_FRACTIONS, lambda v: 0 <= v < 1, "must be at least 0 and below 1"),
    )
    return [
        f"{name} = {values[name]!r}: {text}"
        for names, holds, text in rules
        for name in names
        if not isinstance(values[name], str | None) and not holds(values[name])
    ]


Rules = Iterator[tuple[bool, str]]  # (whether it holds, what to say where it does not)


def cross_problems(values: Mapping[str, object]) -> list[str]:
    """What is wrong with values beside each other."""
    v = types.SimpleNamespace(**values)
    rules = (
        _decoder_rules(v), _encoder_rules(v), _training_rules(v), _reward_rules(v), _question_rules(v), _data_rules(v),
        _run_rules(v),
    )  # fmt: skip
    return [text for holds, text in itertools.chain(*rules) if not holds]


def _decoder_rules(v: types.SimpleNamespace) -> Rules:
    ids = (v.PAD_TOKEN_ID, v.START_TOKEN_ID, v.END_TOKEN_ID, v.UNK_TOKEN_ID)
    yield (ids == (0, 1, 2, 3), f"PAD, START, END, UNK_TOKEN_ID = {ids}: must be 0, 1, 2, 3, the tokenizer's own")
    yield (v.VOCAB_SIZE >= 260, f"VOCAB_SIZE = {v.VOCAB_SIZE}: needs at least 260 (256 bytes and 4 special tokens)")
    yield (v.MAX_SEQ_LEN >= 3, f"MAX_SEQ_LEN = {v.MAX_SEQ_LEN}: needs at least 3 (<start>, one token, <end>)")
    yield (
        max(0, v.MAX_SEQ_LEN - 2) >= v.MIN_LENGTH,
        f"MIN_LENGTH = {v.MIN_LENGTH}: at most {v.MAX_SEQ_LEN - 2} go between <start> and <end> "
        f"(MAX_SEQ_LEN = {v.MAX_SEQ_LEN})",
    )
    yield (v.LENGTH_PENALTY <= 10, f"LENGTH_PENALTY = {v.LENGTH_PENALTY}: at most 10, 1 is usual")
    yield (v.CONSENSUS <= 1000, f"CONSENSUS = {v.CONSENSUS}: at most 1000 random captions, 20 do")
    yield (
        v.CONSENSUS == 0 or v.BEAM_SIZE > 1,
        f"CONSENSUS = {v.CONSENSUS} chooses among beams: BEAM_SIZE = {v.BEAM_SIZE} leaves no choice, 10 is good",
    )
    yield (v.BEAM_SIZE <= 100, f"BEAM_SIZE = {v.BEAM_SIZE}: at most 100, give fewer")
    yield (
        _divides(v.DECODER_HEADS, v.DECODER_EMBED_DIM),
        f"DECODER_EMBED_DIM = {v.DECODER_EMBED_DIM} must be a multiple of DECODER_HEADS = {v.DECODER_HEADS}",
    )


def _encoder_rules(v: types.SimpleNamespace) -> Rules:
    layers = v.ENCODER_LAYERS
    yield (
        layers is None or (v.ENCODER_MODEL_NAME and layers[0] >= 1 and list(layers) == sorted(set(layers))),
        f"ENCODER_LAYERS = {layers}: names blocks of a pretrained encoder (ENCODER_MODEL_NAME), from 1, each once "
        "and in their order",
    )
    if v.ENCODER_MODEL_NAME is not None:
        return
    yield (
        not v.FREEZE_ENCODER,
        "FREEZE_ENCODER = True needs a pretrained encoder: set ENCODER_MODEL_NAME, or FREEZE_ENCODER = False "
        "(--no-freeze-encoder)",
    )
    yield (
        _divides(v.VIT_PATCH_SIZE, v.IMAGE_SIZE or 64),
        f"IMAGE_SIZE = {v.IMAGE_SIZE or 64} must be a multiple of VIT_PATCH_SIZE = {v.VIT_PATCH_SIZE}",
    )
    yield (
        _divides(v.VIT_HEADS, v.VIT_EMBED_DIM),
        f"VIT_EMBED_DIM = {v.VIT_EMBED_DIM} must be a multiple of VIT_HEADS = {v.VIT_HEADS}",
    )
    yield (
        v.VIT_STEM == "patch" or v.VIT_PATCH_SIZE in (2, 4, 8, 16, 32),
        f"VIT_PATCH_SIZE = {v.VIT_PATCH_SIZE}: VIT_STEM 'conv' halves the picture each time: 2, 4, 8, 16 or 32",
    )


def _training_rules(v: types.SimpleNamespace) -> Rules:
    yield (
        v.BATCH_SIZE == "auto" or v.BATCH_SIZE >= v.CAPTIONS_PER_IMAGE,
        f"BATCH_SIZE = {v.BATCH_SIZE} counts captions and must be at least CAPTIONS_PER_IMAGE = {v.CAPTIONS_PER_IMAGE}",
    )
    yield (v.MIN_LR <= v.LEARNING_RATE, f"MIN_LR = {v.MIN_LR} must not be above LEARNING_RATE = {v.LEARNING_RATE}")
    yield (0 < v.RANDOM_CROP_AREA <= 1, f"RANDOM_CROP_AREA = {v.RANDOM_CROP_AREA}: must be above 0, and 1 at most")
    changed = v.RANDOM_FLIP or v.RANDOM_CROP_AREA < 1
    yield (
        v.FEATURE_VIEWS == 0 or (v.FEATURE_VIEWS > 1 and changed and v.FREEZE_ENCODER and v.CACHE_FEATURES),
        f"FEATURE_VIEWS = {v.FEATURE_VIEWS}: is 0, or 2 and more with FREEZE_ENCODER and CACHE_FEATURES, and with "
        "RANDOM_FLIP or RANDOM_CROP_AREA below 1, which make the views",
    )
    yield (
        v.FEATURE_VIEWS <= 2 or v.RANDOM_CROP_AREA < 1,
        f"FEATURE_VIEWS = {v.FEATURE_VIEWS}: RANDOM_FLIP alone gives 2 different views; for more set RANDOM_CROP_AREA",
    )
    yield (
        all(0 <= beta < 1 for beta in v.ADAM_BETAS),
        f"ADAM_BETAS = {v.ADAM_BETAS}: each must be at least 0 and below 1",
    )


def _reward_rules(v: types.SimpleNamespace) -> Rules:
    yield (
        v.SCST_SAMPLES != 1,  # below that is told by its own rule
        f"SCST_SAMPLES = {v.SCST_SAMPLES}: needs at least 2, a caption is measured against the mean of the others; "
        "5 is usual",
    )
    yield (
        v.CONTRASTIVE_WEIGHT == 0 or v.OBJECTIVE == "xe",
        f"CONTRASTIVE_WEIGHT = {v.CONTRASTIVE_WEIGHT} goes with OBJECTIVE = 'xe', not {v.OBJECTIVE!r}: drawn captions "
        "are no pairs, and a head alone has no other loss to be weighed against; set it to 0",
    )
    head = v.OBJECTIVE == "contrastive" or v.CONTRASTIVE_WEIGHT > 0
    yield (not (head and v.FSDP), "FSDP does not go with a contrastive head: set FSDP to False, or the head aside")
    yield (
        not (head and v.BATCH_SIZE == "auto"),
        "BATCH_SIZE = 'auto' would let the machine decide how many images a contrastive loss compares: give a number",
    )
    if v.OBJECTIVE != "scst":
        return
    yield (
        v.NUM_EPOCHS == "auto" or v.SCST_START_EPOCH < v.NUM_EPOCHS,
        f"SCST_START_EPOCH = {v.SCST_START_EPOCH}: must be below NUM_EPOCHS = {v.NUM_EPOCHS}, which counts the epochs "
        "of both objectives",
    )
    yield (
        v.VALIDATION_SCORE_IMAGES > 0,
        "OBJECTIVE = 'scst' with VALIDATION_SCORE_IMAGES = 0: its best checkpoint is the one of the best CIDEr; score "
        "at least 100 images",
    )
    yield (
        v.SCST_LR_SCHEDULE == "constant" or v.MIN_LR <= v.SCST_LEARNING_RATE,
        f"MIN_LR = {v.MIN_LR} must not be above SCST_LEARNING_RATE = {v.SCST_LEARNING_RATE}",
    )


def _question_rules(v: types.SimpleNamespace) -> Rules:
    told = f"CAPTION_QUESTION = {v.CAPTION_QUESTION!r}"
    yield (v.CAPTION_QUESTION is None or v.QUESTIONS, f"{told} goes with QUESTIONS = True; captions alone need none")
    yield (
        v.CAPTION_QUESTION is None or any(map(str.isalnum, v.CAPTION_QUESTION)),
        f"{told} asks nothing: write what captions answer, 'Describe the picture.', or none",
    )
    if not v.QUESTIONS:
        return
    yield (v.OBJECTIVE == "xe", "QUESTIONS = True with OBJECTIVE = 'scst': rewards are for captions; set it to 'xe'")
    yield (not v.STREAM, "QUESTIONS = True with STREAM = True: a streamed set has captions alone; set STREAM to False")
    yield (v.CONSENSUS == 0, f"QUESTIONS = True with CONSENSUS = {v.CONSENSUS}: it judges captions; set it to 0")
    yield (v.MAX_SEQ_LEN >= 6, f"MAX_SEQ_LEN = {v.MAX_SEQ_LEN}: a question with its answer needs 6 tokens at least")


def _data_rules(v: types.SimpleNamespace) -> Rules:
    yield (0 <= v.MAX_BAD_FRACTION <= 1, f"MAX_BAD_FRACTION = {v.MAX_BAD_FRACTION}: must be from 0 to 1")
    yield (
        not v.STREAM or v.RAW_DATA_DIR is not None,
        "STREAM = True needs the shards: set RAW_DATA_DIR to their folder or a pattern (shards/{00000..00331}.tar)",
    )
    for name in ("VAL_SPLITS", "TEST_SPLITS"):
        shared = sorted(set(v.TRAIN_SPLITS) & set(getattr(v, name)))
        yield (not shared, f"{name} and TRAIN_SPLITS both name {', '.join(shared)}: give each split one use")
    for name in ("DATASET", "RUN_NAME"):
        text = getattr(v, name)
        yield (
            text is None or (text not in ("", ".", "..") and not set(text) & set("/\\\0")),
            f"{name} = {text!r}: is a folder's name, without / or \\ (set DATA_DIR or OUTPUT_DIR for the place)",
        )


def _run_rules(v: types.SimpleNamespace) -> Rules:
    yield (
        re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", v.DEVICE) is not None,
        f"DEVICE = {v.DEVICE!r}: must be auto, cpu, mps, cuda or cuda:<number>",
    )
    yield (
        v.HF_REPO_ID is None or re.fullmatch(_REPO_ID, v.HF_REPO_ID, re.ASCII) is not None,
        f"HF_REPO_ID = {v.HF_REPO_ID!r}: must be 'user/name' of letters, digits and single '-', '_' or '.' between",
    )
    yield (
        v.INIT_CHECKPOINT_PATH is None or v.RESUME_CHECKPOINT_PATH in (None, "last"),
        "INIT_CHECKPOINT_PATH starts a fresh run, RESUME_CHECKPOINT_PATH continues one: set one of them to none",
    )
    yield (
        v.INIT_CHECKPOINT_PATH is None or v.RESUME_CHECKPOINT_PATH != "last" or v.RUN_NAME is not None,
        "INIT_CHECKPOINT_PATH with RESUME_CHECKPOINT_PATH 'last' needs a RUN_NAME: 'last' could be another run",
    )
    yield (
        not v.PROFILE or v.RESUME_CHECKPOINT_PATH is None,
        "PROFILE trains no run, RESUME_CHECKPOINT_PATH continues one: set one of them to none",
    )
    for name in ("COMPILE", "PROFILE"):
        yield (not (v.FSDP and getattr(v, name)), f"FSDP and {name} do not go together: set one of them to False")


def _divides(part: int, whole: int) -> bool:
    return part < 1 or whole % part == 0  # below 1 is told by its own rule
