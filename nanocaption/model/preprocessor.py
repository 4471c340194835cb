"""An encoder's preprocessor file, as transformers writes it <-> our image_spec: every key is followed, or refused."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from nanocaption.data.fitting import LARGEST_SIDE
from nanocaption.data.transform import ImageSpec, fitted

if TYPE_CHECKING:
    from transformers import BaseImageProcessor  # takes seconds

INTERPOLATIONS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, as preprocessor files write them
_FOLLOWED = {
    "do_resize", "size", "default_to_square", "resample", "do_center_crop", "crop_size", "do_rescale",
    "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb", "do_pad", "pad_size",
}  # fmt: skip
# Where and in which container the processor works, not what it computes.
_WITHOUT_EFFECT = {
    "data_format", "input_data_format", "device", "return_tensors", "disable_grouping", "image_seq_length",
}  # fmt: skip
_FIX = "Write what is followed into the preprocessor_config.json of a copy of its folder, and give that."
# Grey levels between our pixels and the processor's, at most and on average. Measured over 200 pictures (noise, black
# and white, smooth; sides of 20 to 900 pixels made 32 to 384): 0 beside transformers with torchvision; beside its PIL
# half 1 for bilinear and 2 for bicubic, 0.03 on average. One that never rounds to whole levels is 0.4 off on average.
_MOST, _MEAN = 2.01, 0.5


def read_image_spec(path: str, local: bool = True) -> ImageSpec:
    """How an encoder, a Hub id or a folder, wants its pictures, from its preprocessor file.

    Three random pictures are compared with what its own processor makes of them. Raises ValueError, with one line that
    names the key and its value, for what is not followed, and as transformers does where there is no such file.
    """
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(path, local_files_only=local, trust_remote_code=False)
    names = getattr(type(processor), "valid_kwargs", None)
    if names is None:
        raise ValueError(f"its {type(processor).__name__} is not an image processor that is known here. {_FIX}")
    keys = {name: getattr(processor, name, None) for name in names.__annotations__}
    spec = spec_of_keys(keys)
    difference = _difference(processor, spec, {})
    if difference:
        raise ValueError(
            f"{_key_at_fault(processor, keys)}: its {type(processor).__name__} does more with it than is followed, a "
            f"random picture differs by {difference}. {_FIX}"
        )
    return spec


def preprocessor(image_spec: ImageSpec) -> dict[str, object]:
    """The image_spec as transformers' image processors write it; read_image_spec reads it back."""
    size, crop, resize = image_spec["size"], image_spec["crop"], image_spec["resize"]
    if isinstance(resize, list):
        lengths = {"height": resize[0], "width": resize[1]}
    else:
        lengths = {"shortest_edge": resize} if crop else {"height": size, "width": size}
    return {
        "image_processor_type": "CLIPImageProcessor" if crop else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": lengths,
        # The "nearest" of old files is 0, too: transformers has no other.
        "resample": next((n for n, name in INTERPOLATIONS.items() if name == image_spec["interpolation"]), 0),
        "do_center_crop": crop,
        **({"crop_size": {"height": size, "width": size}} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": image_spec["mean"],
        "image_std": image_spec["std"],
    }


def spec_of_keys(keys: Mapping[str, object]) -> ImageSpec:
    """The image_spec of a processor's keys. ValueError for the first that is not followed."""
    more = set(keys) - _FOLLOWED - _WITHOUT_EFFECT
    for name in sorted(name for name in more if keys[name] not in (None, False)):
        raise _refusal(keys, name, "is not followed")
    if keys.get("do_pad") and keys.get("pad_size"):
        raise _refusal(keys, "pad_size", "is not followed, a border comes from a crop_size above size")
    if not keys.get("do_resize"):
        raise _refusal(keys, "do_resize", "is not followed, pictures must get one size: set it to true")
    interpolation = INTERPOLATIONS.get(_whole(keys.get("resample")))
    if interpolation is None:
        raise _refusal(keys, "resample", f"is not followed, only {', '.join(map(str, INTERPOLATIONS))} are")
    size, resize = _lengths(keys)
    mean, std = _normalisation(keys)
    return {
        "size": size, "resize": resize, "crop": bool(keys.get("do_center_crop")), "mean": mean, "std": std,
        "interpolation": interpolation,
    }  # fmt: skip


def _lengths(keys: Mapping[str, object]) -> tuple[int, int | list[int]]:
    """The size and the resize of an image_spec."""
    size = _edges(keys.get("size"))
    if set(size) not in ({"height", "width"}, {"shortest_edge"}) or min(size.values()) < 1:
        raise _refusal(keys, "size", "is not followed, only height and width, or shortest_edge with do_center_crop")
    if not keys.get("do_center_crop"):
        if "shortest_edge" in size or size["height"] != size["width"]:
            raise _refusal(keys, "size", "without do_center_crop gives pictures that are not square")
        return size["height"], size["height"]
    crop = _edges(keys.get("crop_size"))
    if set(crop) != {"height", "width"} or crop["height"] != crop["width"] or crop["height"] < 1:
        raise _refusal(keys, "crop_size", "is not followed, only a square is")
    return crop["height"], size.get("shortest_edge") or [size["height"], size["width"]]


def _normalisation(keys: Mapping[str, object]) -> tuple[list[float], list[float]]:
    """Mean and std per channel, for values 0..1: what rescaling and normalising come to together."""
    factor = _numbers(keys, "rescale_factor")[0] if keys.get("do_rescale") else 1.0
    if factor == 0 or not math.isfinite(factor):
        raise _refusal(keys, "rescale_factor", "leaves nothing of a picture")
    scale = 255 * factor  # 1, but for odd files
    if not keys.get("do_normalize"):
        return [0.0] * 3, [1 / scale] * 3
    mean, std = (_numbers(keys, name) for name in ("image_mean", "image_std"))
    for name, values in (("image_mean", mean), ("image_std", std)):
        if len(values) != 3 or not all(map(math.isfinite, values)):
            raise _refusal(keys, name, "is not one number per channel, and pictures have 3")
    if 0 in std:
        raise _refusal(keys, "image_std", "would divide by 0")
    return [value / scale for value in mean], [value / scale for value in std]


def _numbers(keys: Mapping[str, object], name: str) -> list[float]:
    """One number stands for all three channels."""
    value = keys.get(name)
    values = [float(v) for v in (value if isinstance(value, list | tuple) else [value])
              if isinstance(v, int | float) and abs(v) <= 1e9]  # fmt: skip
    if not values or isinstance(value, list | tuple) and len(values) != len(value):
        raise _refusal(keys, name, "is not a number, or one per channel")
    return values * (3 if len(values) == 1 else 1)


def _edges(size: object) -> dict[str, int]:
    """A processor's size or crop_size without the names that it leaves open."""
    if not isinstance(size, Mapping):
        size = vars(size) if hasattr(size, "__dict__") else {}
    found = {str(name): length for name, length in size.items() if length is not None}
    sound = all(type(length) in (int, float) and 0 <= length <= LARGEST_SIDE for length in found.values())
    return {name: int(length) for name, length in found.items()} if sound else {}


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int) else -1


def _refusal(keys: Mapping[str, object], name: str, why: str) -> ValueError:
    value = keys.get(name)
    told = str(_edges(value) or value if name in ("size", "crop_size", "pad_size") else value)[:100]
    return ValueError(f"its preprocessor's {name} = {told} {why}. {_FIX}".replace("\n", " "))


def _difference(processor: "BaseImageProcessor", spec: ImageSpec, changed: Mapping[str, bool]) -> str | None:
    """How far the spec's pixels are from those of the processor with some keys changed; None within rounding."""
    generator = np.random.default_rng(0)
    mean, std = (torch.tensor(spec[name]).view(3, 1, 1) for name in ("mean", "std"))
    # One to be enlarged, one to be made smaller, one so long that a rule for the longer side would show.
    for height, width in ((37, 53), (2 * spec["size"] + 61, 3 * spec["size"]), (600, 41)):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        result = processor(Image.fromarray(pixels), return_tensors="pt", device="cpu", **changed)  # type: ignore[arg-type]
        theirs = torch.as_tensor(result["pixel_values"])[0].float()
        ours = fitted(torch.from_numpy(pixels).permute(2, 0, 1), spec).float()
        if theirs.shape != ours.shape:
            return f"its shape, {list(theirs.shape)} for {list(ours.shape)}"
        off = (255 * (theirs * std + mean) - ours).abs()
        if not (off.max() <= _MOST and off.mean() <= _MEAN):
            return f"{off.mean():.2f} grey levels of 255 on average"
    return None


def _key_at_fault(processor: "BaseImageProcessor", keys: Mapping[str, object]) -> str:
    """The key without which the difference is gone, and its value."""
    for name in ("do_normalize", "do_rescale", "do_center_crop"):
        try:
            if keys.get(name) and not _difference(processor, spec_of_keys({**keys, name: False}), {name: False}):
                return f"its preprocessor's {name} = {keys[name]}"
        except (KeyError, TypeError, ValueError, RuntimeError):  # e.g. not square without the crop
            continue
    size, crop = _edges(keys["size"]), _edges(keys.get("crop_size"))
    return f"its preprocessor's size = {size}, crop_size = {crop} or resample = {keys['resample']}"
