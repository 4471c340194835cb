"""A VisionEncoderDecoderModel with a GPT-2 decoder -> a checkpoint's state, to caption with or to train on from.

Everything of it is taken as it is: encoder, map between the two where there is one, decoder with its activation, and
tokenizer. It has no norm between encoder and decoder, and so the model made of it has none (encoder.Tower). Our four
special tokens have the ids 0 to 3, so the vocabulary is numbered anew: theirs for padding, start and end are among
these, all others follow in their order. Where one token of theirs has several of these roles (GPT-2's <|endoftext|>),
each role has a copy of it, and only the one that ends is ever chosen; where there is none, that of the end stands in.
What cannot be followed is refused by its name. Nothing in the folder is run.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from nanocaption.base.settings import CHECKPOINT_SETTINGS, DATA_SETTINGS, Settings, differences
from nanocaption.base.tensors import State
from nanocaption.data.tokenizer import END, PAD, SPECIAL_TOKENS, START, UNK, check_tokenizer
from nanocaption.model.captioner import build_model
from nanocaption.model.decoder import ACTIVATIONS
from nanocaption.model.encoder import TOWER_TYPES, Tower, quiet
from nanocaption.model.preprocessor import read_image_spec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, VisionEncoderDecoderModel

MODEL_TYPE = "vision-encoder-decoder"
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}  # other names of it
_LARGEST_TOKENIZER = 100_000_000  # bytes; GPT-2's has 3.6 million
# Keys of a GPT-2 config that change what it computes -> the one value that is followed.
_FOLLOWED = {
    "add_cross_attention": True, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "layer_norm_epsilon": 1e-5,
}  # fmt: skip


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds a model of this kind, by its config.json."""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("model_type") == MODEL_TYPE


def read_foreign(folder: Path, settings: Settings) -> tuple[Settings, State]:
    """(the settings with the model's sizes, the state of a checkpoint after no step) of such a folder.

    Recipe and flags stay stronger than what the folder says of the search for captions and MAX_SEQ_LEN, which may be
    smaller than its own. ValueError, with one line, for what cannot be followed.
    """
    try:
        return _read(folder, settings)
    except (OSError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder} cannot be loaded: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{folder} cannot be followed: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def _read(folder: Path, settings: Settings) -> tuple[Settings, State]:
    theirs = _load(folder)
    decoder = theirs.config.decoder
    about, unknown = _their_tokenizer(folder)
    roles = _roles(theirs, unknown)
    tokenizer, rows = _tokenizer(about, roles, decoder.vocab_size)
    settings = _settings(folder, theirs, settings, tokenizer.get_vocab_size())
    activation = _ACTIVATIONS.get(decoder.activation_function, decoder.activation_function)
    arguments: Tower = {
        "encoder_config": theirs.config.encoder.to_dict(),
        "image_spec": read_image_spec(str(folder)),
        "memory_norm": False,
        "decoder_activation": activation,
    }  # fmt: skip
    order = (END, PAD, START, UNK)
    silent = sorted(role for at, role in enumerate(order) if roles[role] in [roles[other] for other in order[:at]])
    if silent:  # copies
        arguments["never_chosen"] = silent
    model = build_model(settings.values, tokenizer.get_vocab_size(), arguments)
    model.load_state_dict(_weights(theirs, model.state_dict(), rows))
    state = {
        "config": dict(settings.values) | {"DATASET": "unknown"},
        "tokenizer": tokenizer.to_str(), "model_arguments": model.arguments(),
        "model_state_dict": dict(model.state_dict()), "epoch": 0, "step": 0, "best_val_loss": None, "best_cider": None,
        "captions_sha256": "", "written_by": "transformers",
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    }  # fmt: skip
    return settings, cast(State, state)


def _load(folder: Path) -> "VisionEncoderDecoderModel":
    """The model, whole and of the kind that is followed."""
    from transformers import AutoConfig, VisionEncoderDecoderModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    decoder = config.decoder
    if decoder.model_type != "gpt2":
        raise ValueError(f"its decoder is of the type {decoder.model_type!r}, only gpt2 is followed.")
    if config.encoder.model_type not in TOWER_TYPES:
        raise ValueError(f"its encoder is a {config.encoder.model_type!r}, only {', '.join(TOWER_TYPES)} are followed.")
    for key, value in _FOLLOWED.items():
        if getattr(decoder, key, value) != value:
            raise ValueError(f"its decoder's {key} = {getattr(decoder, key)}, only {value} is followed.")
    activation = decoder.activation_function
    if _ACTIVATIONS.get(activation, activation) not in ACTIVATIONS:
        known = ", ".join([*ACTIVATIONS, *_ACTIVATIONS])
        raise ValueError(f"its decoder's activation_function = {activation!r}, only {known} are followed.")
    _check_sizes(folder, config)
    with quiet():
        model, report = VisionEncoderDecoderModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    lacking = sorted(name for name in report["missing_keys"] if ".pooler." not in name)
    if lacking:
        raise ValueError(f"{len(lacking)} of its weights are missing, e.g. {lacking[0]}.")
    embeddings, head = model.decoder.transformer.wte.weight, model.decoder.lm_head.weight
    if not torch.equal(embeddings, head):
        raise ValueError("its decoder's lm_head is not tied to the token embeddings (tie_word_embeddings), ours is.")
    return model


def _check_sizes(folder: Path, config: "PreTrainedConfig") -> None:
    """ValueError where a config asks for more than its weights file holds, before anything of that size is made."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for part, layers in (("encoder", config.encoder.num_hidden_layers), ("decoder", config.decoder.n_layer)):
        numbers = (re.match(rf"{part}\..*?\.(?:h|layers?)\.(\d+)\.", name) for name in shapes)
        held = len({number[1] for number in numbers if number})
        if held != layers:
            raise ValueError(f"its {part} has {layers} layers by its config, and {held} by its weights.")
    rows = shapes.get("decoder.transformer.wte.weight")
    if rows not in (None, (config.decoder.vocab_size, config.decoder.n_embd)):
        raise ValueError(f"its decoder has {config.decoder.vocab_size} tokens of width {config.decoder.n_embd} by its "
                         f"config, and {rows[0]} of {rows[1]} by its weights.")  # fmt: skip


def _roles(model: "VisionEncoderDecoderModel", unknown: int | None) -> list[int]:
    """Their id for each of our special tokens, in the order of ours; the end's where they have none."""
    found: list[int | None] = []
    for name in ("pad_token_id", "decoder_start_token_id", "eos_token_id"):
        places = (model.generation_config, model.config, model.config.decoder)
        value = next((own for place in places if (own := getattr(place, name, None)) is not None), None)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is not None and not isinstance(value, int):
            raise ValueError(f"its {name} = {value}, only one is followed.")
        found.append(value)
    pad, start, end = found
    if end is None or start is None:
        raise ValueError("neither its generation_config.json nor its config.json says decoder_start_token_id and "
                         "eos_token_id.")  # fmt: skip
    return [end if role is None else role for role in (pad, start, end, unknown)]


# --- The tokenizer ---


def _their_tokenizer(folder: Path) -> tuple[dict[str, Any], int | None]:
    """(the content of its tokenizer.json, the id of its unknown token). ValueError unless it is a byte-level BPE."""
    from transformers import AutoTokenizer

    path = folder / "tokenizer.json"
    if path.is_file() and path.stat().st_size > _LARGEST_TOKENIZER:
        raise ValueError(f"its tokenizer.json has {path.stat().st_size / 1e6:.0f} MB, at most 100 are read.")
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    backend = getattr(theirs, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"its tokenizer, {type(theirs).__name__}, has no tokenizer.json.")
    about = json.loads(backend.to_str())
    model, before = about["model"], about["pre_tokenizer"] or {}
    if (model["type"], before.get("type")) != ("BPE", "ByteLevel") or about["normalizer"] is not None:
        kind = f"{model['type']} after {before.get('type')}"
        raise ValueError(f"its tokenizer is {kind}, only byte-level BPE without a normalizer is followed.")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(name):
            raise ValueError(f"its tokenizer's {name} = {model[name]!r} is not followed.")
    if before.get("use_regex") is False:
        raise ValueError("its tokenizer's use_regex = False is not followed.")
    return about, theirs.unk_token_id


def _tokenizer(about: Mapping[str, Any], roles: Sequence[int], vocab_size: int) -> tuple[Tokenizer, Tensor]:
    """Their tokenizer with our special tokens, and which row of theirs each of its tokens has, (V,)."""
    ids: dict[str, int] = dict(about["model"]["vocab"]) | {one["content"]: one["id"] for one in about["added_tokens"]}
    if sorted(ids.values()) != list(range(vocab_size)):
        raise ValueError(f"its tokenizer has {len(ids)} tokens, and its decoder {vocab_size} rows for them.")
    if max(roles) >= vocab_size:
        raise ValueError(f"its special tokens have the ids {roles}, and there are {vocab_size} tokens.")
    kept = [token for token, number in sorted(ids.items(), key=lambda item: item[1]) if number not in roles]
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    for token in kept:
        if token in SPECIAL_TOKENS or not letters.issuperset(token):
            raise ValueError(f"its tokenizer's token {token!r} cannot be an ordinary one of ours.")
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *kept))}
    rows = torch.tensor([*roles, *(ids[token] for token in kept)])
    return _rebuilt(vocabulary, about["model"]["merges"]), rows


def _rebuilt(vocabulary: Mapping[str, int], merges: Sequence[Any]) -> Tokenizer:
    """As tokenizer.train_tokenizer builds one."""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE(dict(vocabulary), pairs, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    check_tokenizer(tokenizer, "its tokenizer")
    return tokenizer


# --- Settings and weights ---


def _settings(
    folder: Path, model: "VisionEncoderDecoderModel", settings: Settings, vocab_size: int
) -> Settings:
    decoder: PreTrainedConfig = model.config.decoder
    search = model.generation_config
    fixed = {
        "ENCODER_MODEL_NAME": str(folder), "IMAGE_SIZE": None, "DECODER_EMBED_DIM": decoder.n_embd,
        "DECODER_HEADS": decoder.n_head, "DECODER_LAYERS": decoder.n_layer,
        "DECODER_FF_DIM": decoder.n_inner or 4 * decoder.n_embd,
    }  # fmt: skip
    free = {
        "VOCAB_SIZE": vocab_size, "MAX_SEQ_LEN": min(decoder.n_positions, settings.MAX_SEQ_LEN),
        "BEAM_SIZE": search.num_beams or 1, "NO_REPEAT_NGRAM": search.no_repeat_ngram_size or 0,
        "LENGTH_PENALTY": 1.0 if search.length_penalty is None else float(search.length_penalty),
    }  # fmt: skip
    settings = settings.on({**fixed, **free})
    names = [name for name in CHECKPOINT_SETTINGS if name not in DATA_SETTINGS and name in fixed]
    if changed := differences(settings, fixed, names):
        raise ValueError(f"the settings want another model: {'; '.join(changed)}. Leave them out.")
    if decoder.n_positions < settings.MAX_SEQ_LEN:
        raise ValueError(f"MAX_SEQ_LEN = {settings.MAX_SEQ_LEN}: its decoder has {decoder.n_positions} positions.")
    return settings


def _weights(
    theirs: "VisionEncoderDecoderModel", expected: Mapping[str, Tensor], rows: Tensor
) -> dict[str, Tensor]:
    """Their weights by our names. expected: ours, for their shapes."""
    known = {f"encoder.tower.{name}": tensor for name, tensor in theirs.encoder.state_dict().items()}
    found = {name: tensor for name, tensor in known.items() if name in expected}  # without a pooler or a head
    gpt = theirs.decoder.transformer
    if hasattr(theirs, "enc_to_dec_proj"):
        found["memory_projection.weight"] = theirs.enc_to_dec_proj.weight
        found["memory_projection.bias"] = theirs.enc_to_dec_proj.bias
    else:
        found["memory_projection.weight"] = torch.eye(len(expected["memory_projection.weight"]))
        found["memory_projection.bias"] = torch.zeros_like(expected["memory_projection.bias"])
    found["decoder.embedding.weight"] = gpt.wte.weight[rows]
    found["decoder.position_embedding.weight"] = gpt.wpe.weight[: len(expected["decoder.position_embedding.weight"])]
    found["decoder.norm.weight"], found["decoder.norm.bias"] = gpt.ln_f.weight, gpt.ln_f.bias
    for number, block in enumerate(gpt.h):
        place = f"decoder.layers.{number}."
        for name, norm in (
            ("self_norm", block.ln_1), ("cross_norm", block.ln_cross_attn), ("feedforward_norm", block.ln_2),
        ):  # fmt: skip
            found[f"{place}{name}.weight"], found[f"{place}{name}.bias"] = norm.weight, norm.bias
        for name, linear in (
            ("self_qkv", block.attn.c_attn), ("self_out", block.attn.c_proj), ("cross_q", block.crossattention.q_attn),
            ("cross_kv", block.crossattention.c_attn), ("cross_out", block.crossattention.c_proj),
            ("feedforward.0", block.mlp.c_fc), ("feedforward.2", block.mlp.c_proj),
        ):  # fmt: skip
            found[f"{place}{name}.weight"], found[f"{place}{name}.bias"] = linear.weight.T, linear.bias
    return found
