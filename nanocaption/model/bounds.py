"""What a checkpoint or an export says of its model, bounded before anything of that size is made.

Whoever wrote the file may be anybody. Every number that decides how much memory or how many modules a model has, or how
long its search takes, has a largest value here; deeper than its file has weights no model can be.
"""

from collections.abc import Mapping

from nanocaption.data.fitting import check_image_spec

_SIZES = {  # setting -> (least, most)
    "MAX_SEQ_LEN": (2, 2**20), "VIT_PATCH_SIZE": (1, 8192), "VIT_EMBED_DIM": (1, 2**20), "VIT_LAYERS": (1, 1000),
    "VIT_HEADS": (1, 2**20), "DECODER_EMBED_DIM": (1, 2**20), "DECODER_HEADS": (1, 2**20), "DECODER_LAYERS": (1, 1000),
    "DECODER_FF_DIM": (1, 2**22),
}  # fmt: skip
_SEARCH = {"BEAM_SIZE": (1, 100), "MIN_LENGTH": (0, 2**20), "NO_REPEAT_NGRAM": (0, 2**20)}
_FRACTIONS = {"LENGTH_PENALTY": 10.0, "DECODER_DROPOUT": 1.0}  # from 0 to this
_TOWER_SIZES = {  # of a tower's configuration, as transformers names them
    "hidden_size": (1, 65_536), "num_hidden_layers": (1, 1000), "num_attention_heads": (1, 1000),
    "intermediate_size": (1, 2**20), "mlp_ratio": (1, 1024), "image_size": (1, 8192), "patch_size": (1, 8192),
    "num_channels": (3, 3), "num_register_tokens": (0, 1000), "pooler_output_size": (1, 2**20),
}  # fmt: skip
_LARGEST = 1e9  # of any other number


def check_settings(config: Mapping[str, object], weights: int) -> None:
    """Raise ValueError, naming it, for a setting of a model, or of its search, that is absurd or of another type.

    config: settings by name; of those of the search only those that are there. weights: how many tensors the model has.
    """
    for name, (least, most) in _SIZES.items():
        deep = name.endswith("LAYERS") and (name[:3] != "VIT" or config.get("ENCODER_MODEL_NAME") is None)
        check_whole(name, config.get(name), least, min(most, weights) if deep else most)
    for name, limits in _SEARCH.items():
        if config.get(name) is not None:
            check_whole(name, config[name], *limits)
    for name, top in _FRACTIONS.items():
        value = config.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= top:
            raise ValueError(f"{name} = {str(value)[:40]}: must be a number from 0 to {top:g}")
    ids = [config.get(f"{name}_TOKEN_ID") for name in ("PAD", "START", "END", "UNK")]
    if ids != [0, 1, 2, 3]:
        raise ValueError(f"PAD, START, END, UNK_TOKEN_ID = {str(ids)[:60]}: must be 0, 1, 2, 3")
    _check_encoder(config)
    _check_divides(config, "DECODER_HEADS", "DECODER_EMBED_DIM")


def _check_encoder(config: Mapping[str, object]) -> None:
    name, layers = config.get("ENCODER_MODEL_NAME"), config.get("ENCODER_LAYERS")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"ENCODER_MODEL_NAME = {str(name)[:40]}: must be a text, or none")
    if layers is not None:
        if not isinstance(layers, list | tuple) or not 0 < len(layers) <= 100:
            raise ValueError(f"ENCODER_LAYERS = {str(layers)[:40]}: must be a list of up to 100 blocks")
        for layer in layers:
            check_whole("a block of ENCODER_LAYERS", layer, 1, 1000)
    if config.get("IMAGE_SIZE") is not None:
        check_whole("IMAGE_SIZE", config["IMAGE_SIZE"], 1, 8192)
    if name is None:
        if config.get("VIT_STEM") not in ("conv", "patch"):
            raise ValueError(f"VIT_STEM = {str(config.get('VIT_STEM'))[:40]}: must be conv or patch")
        if config["VIT_STEM"] == "conv" and config["VIT_PATCH_SIZE"] not in (2, 4, 8, 16, 32):
            raise ValueError(f"VIT_PATCH_SIZE = {config['VIT_PATCH_SIZE']}: must be 2, 4, 8, 16 or 32 with VIT_STEM "
                             "'conv'")  # fmt: skip
        _check_divides(config, "VIT_HEADS", "VIT_EMBED_DIM")


def _check_divides(config: Mapping[str, object], part: str, whole: str) -> None:
    heads, width = config[part], config[whole]
    if isinstance(heads, int) and isinstance(width, int) and width % heads:
        raise ValueError(f"{whole} = {width}: must be a multiple of {part} = {heads}")


def check_tower(arguments: Mapping[str, object], weights: int) -> None:
    """Raise ValueError for a pretrained tower's `Tower` that is absurd. weights: how many tensors the model has."""
    about = arguments.get("encoder_config")
    if not isinstance(about, Mapping):
        raise ValueError("it names a pretrained encoder (ENCODER_MODEL_NAME) and does not describe it (encoder_config)")
    check_tower_config(about, weights)
    spec = arguments.get("image_spec")
    if not isinstance(spec, Mapping):
        raise ValueError("it does not say how its encoder wants pictures (image_spec)")
    check_image_spec(spec)
    if not isinstance(arguments.get("memory_norm", True), bool):
        raise ValueError("memory_norm: must be true or false")
    if arguments.get("decoder_activation", "gelu") not in ("gelu", "gelu_new"):
        raise ValueError(f"decoder_activation = {str(arguments['decoder_activation'])[:40]}: must be gelu or gelu_new")
    silent = arguments.get("never_chosen", [])
    if not isinstance(silent, list) or len(silent) > 4:
        raise ValueError("never_chosen: must be a list of up to 4 ids")
    for token in silent:
        check_whole("an id of never_chosen", token, 0, 3)


def check_tower_config(about: Mapping[str, object], weights: int) -> None:
    """Raise ValueError, naming it, for an absurd number in a tower's configuration. weights: as of check_tower."""
    for name, (least, most) in _TOWER_SIZES.items():
        if about.get(name) is not None:
            value = about[name]
            sides = value if isinstance(value, list | tuple) and 0 < len(value) <= 2 else [value]
            for side in sides:
                check_whole(f"{name} of its encoder", side, least, min(most, weights) if "layers" in name else most)
    for name, value in about.items():
        if type(value) in (int, float) and not -_LARGEST <= value <= _LARGEST:  # type: ignore[operator]
            raise ValueError(f"{str(name)[:40]} of its encoder = {str(value)[:40]}: is no number that is met")


def check_whole(name: str, value: object, least: int, most: int) -> int:
    """The value. ValueError where it is no whole number between the two."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} = {str(value)[:40]}: must be a whole number from {least:,} to {most:,}")
    return value
