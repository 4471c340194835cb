"""The names of a pretrained tower's weights in files, whatever the version of transformers calls them in memory.

Checkpoints and exports have the names that transformers' own files have. These stay; those in memory changed between
5.17 and 5.23, which are both supported, and the SwiGLU layer of DINOv2 became two matrices there that are one in files.
What a version to come renames needs a row here. Until then its models do not fit, and `versions_told` says why.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_TOWER = "encoder.tower."  # captioner.ImageToTextModel's name of it
_ATTENTION = {
    "q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense",
}  # fmt: skip
# (in memory, in files): ViT and DeiT from 5.17 on, DINOv2 from 5.23 on. CLIP and SigLIP have one name for both.
_RULES = (
    *((rf"layers\.(\d+)\.attention\.{new}\.", rf"encoder.layer.\1.attention.{old}.")
      for new, old in _ATTENTION.items()),
    (r"layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"layers\.(\d+)\.(layernorm_\w+)\.", r"encoder.layer.\1.\2."),
    *((rf"encoder\.layer\.(\d+)\.attention\.{new}\.", rf"encoder.layer.\1.attention.{old}.")
      for new, old in _ATTENTION.items()),
    (r"encoder\.layer\.(\d+)\.mlp\.down_proj\.", r"encoder.layer.\1.mlp.weights_out."),
)  # fmt: skip
# Two in memory that lie one above the other in files.
_HALVES = {"gate_proj": 0, "up_proj": 1}
_HALF = re.compile(r"encoder\.layer\.(\d+)\.mlp\.(gate_proj|up_proj)\.")


class Place(NamedTuple):
    """Where files have a weight."""

    name: str
    half: int | None = None  # 0, 1: of its rows


def place_of(name: str) -> Place:
    """Where files have the weight that a model has under `name`; a name of files leads to itself."""
    if not name.startswith(_TOWER):
        return Place(name)
    own = name.removeprefix(_TOWER)
    if half := _HALF.match(own):
        return Place(f"{_TOWER}encoder.layer.{half[1]}.mlp.weights_in.{own[half.end() :]}", _HALVES[half[2]])
    for pattern, replacement in _RULES:
        if match := re.match(pattern, own):
            return Place(_TOWER + match.expand(replacement) + own[match.end() :])
    return Place(name)


def is_of_tower(name: str) -> bool:
    """Whether a model has a weight of that name in a pretrained tower."""
    return name.startswith(_TOWER)


def file_names(names: Iterable[str]) -> list[str]:
    """The names in files of weights, each once, in their order."""
    return list(dict.fromkeys(place_of(name).name for name in names))


def as_filed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, of any version, as files have them. Where two lie in one, that one is new memory.

    Raises ValueError where a half is missing, or two have one name.
    """
    found: dict[str, Tensor] = {}
    halves: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        place = place_of(name)
        if place.half is not None:
            halves.setdefault(place.name, {})[place.half] = tensor
        elif place.name in found:
            raise ValueError(f"{name} and another weight have one name in files, {place.name}.")
        else:
            found[place.name] = tensor
    for name, its in halves.items():
        if name in found or len(its) != 2 or its[0].shape != its[1].shape:
            raise ValueError(f"{name} is there by half, or twice.")
        # A number of steps has no rows, and is that of both.
        found[name] = torch.cat([its[0], its[1]]) if its[0].ndim else its[0]
    return found


def as_in_memory(saved: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """`saved`, by names of whatever version, by those of `names` that it holds; what belongs to none of them stays.

    names: those of the model at hand. Halves share the memory of the whole.
    """
    filed = as_filed(saved)
    found, used = {}, set()
    for name in names:
        place = place_of(name)
        if place.name in filed:
            whole = filed[place.name]
            found[name] = whole if place.half is None or not whole.ndim else whole.chunk(2)[place.half]
            used.add(place.name)
    return found | {name: tensor for name, tensor in filed.items() if name not in used}


def versions_told(encoder_config: Mapping[str, object] | None) -> str:
    """Which transformers wrote a tower and which one is here, for a message of what does not fit; "" where alike.

    encoder_config: of a checkpoint or export, None of an encoder from scratch.
    """
    if not encoder_config:
        return ""
    import transformers  # whoever has a tower at hand has waited for it

    wrote, here = str(encoder_config.get("transformers_version"))[:40], transformers.__version__
    if wrote == here:
        return ""
    return f" Its encoder was written with transformers {wrote}, this is {here}: try with that version."
