"""The image encoder: a pretrained vision tower of the transformers library, or a small ViT from scratch.

Both map images (N, 3, S, S) to one feature per patch (N, P, E).
N images, S side in pixels, P patch tokens (class token included where the tower has one), E encoder width.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanocaption.base.settings import ModelSettings
from nanocaption.data.transform import ImageSpec
from nanocaption.model import vit
from nanocaption.model.bounds import check_tower_config
from nanocaption.model.preprocessor import read_image_spec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel  # takes seconds, and only a pretrained tower needs it

# model_type of the tower or of the full model -> (tower class, arguments that leave unused heads out)
_TOWERS = {
    "vit": ("ViTModel", {"add_pooling_layer": False}),
    "deit": ("DeiTModel", {"add_pooling_layer": False}),
    "dinov2": ("Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
    "clip": ("CLIPVisionModel", {}),
    "clip_vision_model": ("CLIPVisionModel", {}),
    "siglip": ("SiglipVisionModel", {}),
    "siglip_vision_model": ("SiglipVisionModel", {}),
}
TOWER_TYPES = tuple(kind for kind in _TOWERS if kind not in ("clip", "siglip"))  # of towers alone
_DEEPEST = 1000  # blocks of a tower whose weights are still to be loaded
_NOT_OF_A_TOWER = {"transformers_version", "architectures", "dtype", "is_encoder_decoder", "problem_type"}
_HINT = (
    "Give a Hub id or a folder of a ViT, CLIP, SigLIP, DINOv2 or DeiT; ENCODER_MODEL_NAME = None with FREEZE_ENCODER = "
    "False needs none."
)
_OF_A_LAYER = re.compile(r"^(?!.*\btext_model\.).*\blayers?\.\d+\.")  # a weight of the tower's blocks
SCRATCH_SIZE = 64  # side of the input in pixels, from scratch, where IMAGE_SIZE is None


class Tower(TypedDict, total=False):
    """What rebuilds a pretrained tower without loading it anew, JSON-ready; empty for an encoder from scratch."""

    encoder_config: dict[str, object]  # of transformers
    image_spec: ImageSpec
    memory_norm: bool  # False: of a model of another program, which has no norm between encoder and decoder
    decoder_activation: str  # of such a model, where it is not "gelu": a key of decoder.ACTIVATIONS
    never_chosen: list[int]  # ids of such a model that stand for what it has no token of its own for
    contrastive: bool  # True: there is a contrastive head, see model/retrieval.py; also of an encoder from scratch


class Available(NamedTuple):
    """A pretrained tower that can be loaded, and how."""

    path: str  # a folder or Hub id
    local: bool  # only this machine is to be asked: a folder, or no network
    image_spec: ImageSpec


class VisionTransformer(nn.Module):
    """A ViT from scratch: stem, learned position embeddings, pre-norm blocks, final norm (Dosovitskiy et al. 2021).

    The "conv" stem halves the picture with 3x3 convolutions until one position is left per patch (Xiao et al. 2021,
    "Early convolutions help transformers see better"): on a few thousand pictures it learns several times faster than
    the single linear map of the "patch" stem.
    """

    def __init__(self, image_size: int, patch_size: int, stem: str, width: int, layers: int, heads: int):
        super().__init__()
        self.width, self.patch_size = width, patch_size
        self.stem = _conv_stem(patch_size, width) if stem == "conv" else nn.Conv2d(3, width, patch_size, patch_size)
        self.position = nn.Parameter(torch.zeros(1, (image_size // patch_size) ** 2, width))
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.checkpointing = False
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """kept: see PretrainedTower.forward."""
        x = self.stem(images)  # (N, E, S/patch, S/patch)
        x = pick_patches(x.flatten(2).transpose(1, 2) + self.position, kept, self.position.shape[1])  # (N, P, E)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        return self.norm(x)

    def checkpoint_blocks(self) -> None:
        """In training keep only what enters each block, and compute the rest again in the backward pass."""
        self.checkpointing = True


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, p, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, p, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, P, E/heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(n, p, width))
        return x + self.feedforward(self.feedforward_norm(x))


def _conv_stem(patch_size: int, width: int) -> nn.Sequential:
    halvings = patch_size.bit_length() - 1
    layers: list[nn.Module] = []
    channels = 3
    for remaining in range(halvings - 1, -1, -1):
        out = max(16, width >> remaining)  # e.g. 32, 64, 128
        # GroupNorm, not BatchNorm: no running averages, so training does not depend on the batch's other images.
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(min(8, out // 4), out), nn.GELU()]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


class PretrainedTower(nn.Module):
    """A vision tower of transformers. `config` is what rebuilds it without any download.

    layers: the blocks, counted from 1, whose outputs stand side by side in the features, each normalised by itself;
    of the last block it is the tower's own output, as it is. None = that alone. A classifier's last block keeps what
    its classes need; those before it know more of the rest of a picture.
    """

    tower: "PreTrainedModel | vit.ViT"  # the latter of a checkpoint's plain ViT: the same to the bit

    def __init__(self, tower: "PreTrainedModel | vit.ViT", layers: Sequence[int] | None = None):
        super().__init__()
        self.tower, self.layers = tower, tuple(layers or ())
        tower.config.return_dict = True  # a config may ask for tuples
        self.patch_size, depth = _side(tower.config.patch_size), tower.config.num_hidden_layers
        self.width = tower.config.hidden_size * max(1, len(self.layers))
        if any(layer > depth for layer in self.layers):
            raise ValueError(f"ENCODER_LAYERS = {self.layers}: it has {depth} blocks.")

    @property
    def config(self) -> dict[str, object]:
        """What `rebuild_pretrained` takes, JSON-ready."""
        return self.tower.config.to_dict()

    def checkpoint_blocks(self) -> None:
        """As VisionTransformer's."""
        # transformers 5.23 renamed it.
        begin = getattr(self.tower, "activation_checkpointing_enable", self.tower.gradient_checkpointing_enable)
        begin({"use_reentrant": False})

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """kept: (N, J) numbers of the patches that enter the blocks, 0 .. patches - 1; None = all (Li et al. 2023)."""
        if kept is None:
            return self._features(images)
        patches = (images.shape[-1] // self.patch_size) ** 2
        # What makes tokens of patches is the one part that every tower's class has under a common method.
        embeddings = next(part for part in self.tower.modules() if hasattr(part, "interpolate_pos_encoding"))
        hook = embeddings.register_forward_hook(lambda part, given, made: pick_patches(made, kept, patches))
        try:
            return self._features(images)
        finally:
            hook.remove()

    def _features(self, images: Tensor) -> Tensor:
        # A side other than the tower's own needs its position embeddings resized.
        resized = images.shape[-1] != _side(self.tower.config.image_size)
        if not self.layers:
            return self.tower(images, interpolate_pos_encoding=resized).last_hidden_state  # (N, P, E)
        found = self.tower(images, interpolate_pos_encoding=resized, output_hidden_states=True)
        depth = len(found.hidden_states) - 1  # before the first block, then after each
        shape = (self.tower.config.hidden_size,)
        parts = [
            found.last_hidden_state if layer == depth else F.layer_norm(found.hidden_states[layer], shape)
            for layer in self.layers
        ]
        return torch.cat(parts, -1)  # (N, P, layers * E)


def pick_patches(tokens: Tensor, kept: Tensor | None, patches: int) -> Tensor:
    """Of tokens (N, P, E), the last `patches` of them a picture's patches, those before and the `kept` (N, J) ones."""
    if kept is None:
        return tokens
    others = tokens.shape[1] - patches
    before = torch.arange(others, device=kept.device).expand(len(kept), -1)
    rows = torch.cat([before, kept + others], 1)[:, :, None]  # (N, others + J, 1)
    return tokens.gather(1, rows.expand(-1, -1, tokens.shape[2]))


def make_encoder(
    settings: ModelSettings, tower: Tower | None
) -> tuple[VisionTransformer | PretrainedTower, ImageSpec]:
    """The encoder that the settings describe and how it wants its pictures: from scratch, rebuilt or loaded."""
    s = settings
    if s.ENCODER_MODEL_NAME is None:
        size = s.IMAGE_SIZE or SCRATCH_SIZE
        shape = (size, s.VIT_PATCH_SIZE, s.VIT_STEM, s.VIT_EMBED_DIM, s.VIT_LAYERS, s.VIT_HEADS)
        return VisionTransformer(*shape), scratch_image_spec(size)
    if tower is not None:  # of a checkpoint or an export, which never asks the Hub
        if "encoder_config" not in tower:
            raise ValueError("it names a pretrained encoder (ENCODER_MODEL_NAME) and does not describe it")
        return rebuild_pretrained(tower["encoder_config"], s.ENCODER_LAYERS), tower["image_spec"]
    return load_pretrained(s.ENCODER_MODEL_NAME, s.IMAGE_SIZE, s.ENCODER_LAYERS)


def check_available(name: str, image_size: int | None = None, layers: Sequence[int] | None = None) -> Available:
    """Raise ValueError, with one line, unless `name` is a vision tower that can be loaded and given its pictures.

    image_size: side of the input in pixels; None = the tower's own. layers: see PretrainedTower. Cheap, it reads the
    config and the preprocessor file and runs a tower without weights, so that a mistake shows before data is made.
    """
    import transformers

    path = str(Path(name).expanduser())
    if name.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise ValueError(f"ENCODER_MODEL_NAME = {name!r}: there is no such folder. {_HINT}")
    local = Path(path).is_dir()
    path = path if local else name
    with _told_in_one_line(name):
        local = local or not _hub_answers(name)
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=local)
    if config.model_type not in _TOWERS:
        raise ValueError(f"ENCODER_MODEL_NAME = {name!r} is a {config.model_type!r} model. {_HINT}")
    with _told_in_one_line(name):
        tower_config = getattr(config, "vision_config", config)
        for key in ("image_size", "patch_size", "num_channels"):
            _check_shape(key, getattr(tower_config, key))
        check_tower_config(vars(tower_config), _DEEPEST)
        spec = read_image_spec(path, local)
    patch = _side(tower_config.patch_size)
    if image_size is not None:
        spec = at_size(spec, image_size)
    _check_side(spec["size"], image_size, patch)
    with _told_in_one_line(name):
        values = _try(_TOWERS[config.model_type], tower_config, spec["size"], layers)
        if local and Path(path).is_dir() and values > (held := _bytes_in(Path(path))):
            raise ValueError(f"its config describes a tower of {values:,} numbers, its folder holds {held:,} bytes.")
    return Available(path, local, spec)


def at_size(spec: ImageSpec, side: int) -> ImageSpec:
    """The image_spec for another side of the input: nothing is cut off any more but what makes a picture square."""
    resize = spec["resize"]
    if isinstance(resize, list):
        return {**spec, "size": side, "resize": [round(each * side / min(resize)) for each in resize]}
    return {**spec, "size": side, "resize": side}


def _side(size: int | list[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _check_shape(key: str, value: int | list[int]) -> None:
    sides = value if isinstance(value, list | tuple) else [value]
    if key == "num_channels" and value != 3:
        raise ValueError(f"its config's num_channels = {value}, and pictures have 3.")
    if len({*sides}) != 1 or len(sides) > 2:
        raise ValueError(f"its config's {key} = {value} is not followed, only a square is.")


def _check_side(side: int, image_size: int | None, patch: int) -> None:
    if side < patch:
        raise ValueError(f"IMAGE_SIZE = {side}: less than one patch of the encoder. Give {patch} or more, or None.")
    if image_size is not None and image_size % patch:
        lower = image_size // patch * patch
        raise ValueError(
            f"IMAGE_SIZE = {image_size}: must be a multiple of the encoder's patch of {patch}, or the last pixels are "
            f"not seen. Give {lower} or {lower + patch}."
        )


def _try(
    kind: tuple[str, dict[str, bool]], config: "PreTrainedConfig", side: int, layers: Sequence[int] | None
) -> int:
    """Run one picture through the tower on the meta device, which computes shapes only; how many weights it has."""
    with torch.device("meta"), torch.no_grad():
        tower = PretrainedTower(_empty_tower(kind, config), layers)
        tower(torch.empty(1, 3, side, side))
    return sum(parameter.numel() for parameter in tower.parameters())


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _empty_tower(kind: tuple[str, dict[str, bool]], config: "PreTrainedConfig") -> "PreTrainedModel":
    import transformers

    class_name, arguments = kind
    return getattr(transformers, class_name)(config, **arguments)


def _hub_answers(name: str) -> bool:
    """Whether the Hub can be asked for `name` now. One request: the download functions retry for most of a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import httpx

    try:
        HfApi().model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError):
        raise
    except (OSError, httpx.HTTPError):  # no network, HF_HUB_OFFLINE, a server in trouble: what is cached may do
        return False
    return True


def load_pretrained(
    name: str, image_size: int | None = None, layers: Sequence[int] | None = None
) -> tuple[PretrainedTower, ImageSpec]:
    """The vision tower `name`, a Hub id or a local folder, and its image_spec (see `read_image_spec`).

    image_size: side of the input in pixels; None = the tower's own. layers: see PretrainedTower. Raises ValueError with
    one line where the tower cannot be loaded, or its patches do not divide the side.
    """
    import transformers

    path, local, spec = check_available(name, image_size, layers)
    with _told_in_one_line(name):
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=local)
        class_name, arguments = _TOWERS[config.model_type]
        tower, report = getattr(transformers, class_name).from_pretrained(
            path, dtype=torch.float32, local_files_only=local, output_loading_info=True, ignore_mismatched_sizes=True,
            **arguments,
        )  # fmt: skip
        # transformers would leave these at random values, and go on.
        lacking = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
        if lacking:
            raise ValueError(f"{len(lacking)} of its weights are missing or of another size, e.g. {lacking[0]}.")
        # Heads and text models may be left out, and these as well, without a word: a config of fewer layers.
        unused = sorted(key for key in report["unexpected_keys"] if _OF_A_LAYER.search(key))
        if unused:
            raise ValueError(f"{len(unused)} of its weights have no place in a tower of its config, e.g. {unused[0]}.")
    return PretrainedTower(tower, layers), spec


def nameless(config: Mapping[str, object] | None) -> dict[str, object] | None:
    """A tower's configuration without where it lay, and without the classes of a head that is not there."""
    names = ("_name_or_path", "id2label", "label2id")
    return None if config is None else {name: value for name, value in config.items() if name not in names}


def rebuild_pretrained(config: dict[str, object], layers: Sequence[int] | None = None) -> PretrainedTower:
    """The tower of a checkpoint with random weights, from its stored `PretrainedTower.config`; needs no network.

    A plain ViT is built without transformers, whose import takes longer than torch's.
    """
    if vit.is_plain(config):
        return PretrainedTower(vit.ViT(config), layers)
    if str(config["model_type"]) not in _TOWERS:
        raise ValueError(f"its encoder is a {str(config['model_type'])[:40]!r} model. {_HINT}")
    kind = _TOWERS[str(config["model_type"])]
    return PretrainedTower(_empty_tower(kind, _config_of(kind, config)), layers)


def of_transformers(encoder: PretrainedTower) -> "PreTrainedModel":
    """The tower as transformers' own class, with these weights: its own where it is one."""
    if not isinstance(encoder.tower, vit.ViT):
        return encoder.tower
    kind = _TOWERS["vit"]
    tower = _empty_tower(kind, _config_of(kind, encoder.config))
    tower.load_state_dict(encoder.tower.state_dict())
    return tower.train(encoder.tower.training)


def _config_of(kind: tuple[str, dict[str, bool]], config: dict[str, object]) -> "PreTrainedConfig":
    import transformers

    config_class = getattr(transformers, kind[0]).config_class
    # What else a configuration may hold names code, or counts of things that no tower has.
    known = config_class().to_dict().keys() - _NOT_OF_A_TOWER
    return config_class.from_dict({name: value for name, value in config.items() if name in known})


def scratch_image_spec(image_size: int) -> ImageSpec:
    """The image_spec of an encoder from scratch: the whole picture squashed, values about -1..1."""
    return {
        "size": image_size, "resize": image_size, "crop": False,
        "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear",
    }  # fmt: skip


@contextlib.contextmanager
def _told_in_one_line(name: str) -> Iterator[None]:
    """Silence transformers' loading report and progress bar; its errors become one ValueError of one line."""
    try:
        with quiet():
            yield
    except (
        OSError, ImportError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError,
    ) as error:  # fmt: skip
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"ENCODER_MODEL_NAME = {name!r} cannot be loaded: {reason} {_HINT}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loading reports and progress bars."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
