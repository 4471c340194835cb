"""A picture file -> the tensor of bytes that an encoder is given: the one image transform."""

import contextlib
import functools
import importlib.util
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanocaption.data.fitting import ImageSpec, resized_shape
from nanocaption.data.pictures import LARGE_PIXELS, THUMBNAIL_SIZE, check_shape, plain_jpeg_size, read_picture
from nanocaption.data.shards import Packed, read_bytes


def load_image(path: Path | str | Packed, image_spec: ImageSpec) -> Tensor:
    """The picture as an encoder wants it: uint8 (3, S, S), resized with antialiasing, upright as its EXIF says.

    Raises ValueError with the path where it cannot be read.
    """
    try:
        pixels = _decoded(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"The picture {path} cannot be read: {error}") from error
    return fitted(pixels, image_spec)


def fitted(pixels: Tensor, image_spec: ImageSpec) -> Tensor:
    """uint8 (3, H, W) resized and cropped as an encoder wants it -> (3, S, S)."""
    # Resizing a tensor of bytes is about three times as fast as PIL's resize, and differs from it by one grey level at
    # most, with "bicubic" by two (in noise of black and white).
    height, width = resized_shape(pixels.shape[1], pixels.shape[2], image_spec)
    pixels = resized(pixels, height, width, image_spec["interpolation"])
    if not image_spec["crop"]:
        return pixels.contiguous()
    cut = image_spec["size"]
    if min(height, width) < cut:
        across, down = max(0, cut - width), max(0, cut - height)
        pixels = F.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))
    # An odd rest is halved downwards, as the encoders' own processors do.
    top, left = ((length - cut) // 2 for length in pixels.shape[-2:])
    return pixels[:, top : top + cut, left : left + cut].contiguous()


def seen_part(path: Path | Packed, image_spec: ImageSpec) -> list[float]:
    """[left, top, right, bottom] of what `load_image` leaves of a picture, as fractions, for the "box" of its maps.

    With black borders it is more than the picture: below 0 and above 1.
    """
    if not image_spec["crop"]:
        return [0.0, 0.0, 1.0, 1.0]
    height, width, _ = read_picture(path, 2 * THUMBNAIL_SIZE).pixels.shape
    side, shorter = image_spec["resize"], min(width, height)
    lengths = side[::-1] if isinstance(side, list) else [length / shorter * side for length in (width, height)]
    across, down = (image_spec["size"] / length for length in lengths)
    return [(1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2]


def resized(pixels: Tensor, height: int, width: int, mode: str) -> Tensor:
    """uint8 (3, H, W) -> (3, height, width); mode: "bilinear" or "bicubic", antialiased, "nearest-exact" or "nearest".

    The same kernels as torchvision's, whose import takes three seconds of every start.
    """
    return F.interpolate(pixels[None], (height, width), mode=mode, antialias=not mode.startswith("nearest"))[0]


def _decoded(path: Path | str | Packed) -> Tensor:
    """uint8 (3, H, W), in memory by rows of pixels, which resizing reads fastest.

    A plain JPEG goes through torchvision's decoder, 0.3 ms faster than PIL with its copies for 500 x 375; the pixels
    are the same. Everything else, and whatever that decoder refuses, is read_picture's.
    """
    if _jpeg_decoder() is not None and (isinstance(path, Packed) or os.path.isfile(path)):
        pixels = decoded_jpeg(_bytes_at(path))
        if pixels is not None:
            return pixels
    return torch.from_numpy(read_picture(path).pixels).permute(2, 0, 1)


def _bytes_at(path: Path | str | Packed) -> np.ndarray:
    """uint8 (bytes,), writable"""
    if isinstance(path, Packed):
        return np.frombuffer(bytearray(read_bytes(path)), dtype=np.uint8)
    return np.fromfile(path, dtype=np.uint8)


def decoded_jpeg(data: np.ndarray) -> Tensor | None:
    """The file `data`, uint8 (bytes,), through that decoder; None where it is no plain JPEG, or that decoder is not."""
    decode, size = _jpeg_decoder(), plain_jpeg_size(data[:65536].tobytes())
    if decode is None or size is None:
        return None
    check_shape(*size)
    if size[0] * size[1] > LARGE_PIXELS:  # read_picture bounds the memory of these
        return None
    with contextlib.suppress(RuntimeError):
        return decode(torch.from_numpy(data), 3, False)  # 3: as RGB
    return None


@functools.cache
def _jpeg_decoder() -> Callable[[Tensor, int, bool], Tensor] | None:
    """torchvision's JPEG decoder without the import of torchvision, which takes three seconds; None where it is not."""
    spec = importlib.util.find_spec("torchvision")
    for library in sorted(Path(spec.origin).parent.glob("image*.so")) if spec and spec.origin else ():
        with contextlib.suppress(OSError, AttributeError):
            torch.ops.load_library(str(library))
            return torch.ops.image.decode_jpeg.default
    return None


class Augment(NamedTuple):
    """How training pictures are changed at random."""

    crop_area: float  # a crop takes at least this share of the area; 1 = never cropped
    flip: bool  # half of the pictures are mirrored
    seed: int


def augmented(pixels: Tensor, how: Augment, rng: random.Random) -> Tensor:
    """A picture uint8 (3, S, S) -> the same size and type, cropped and mirrored as `rng` decides."""
    pixels = cropped(pixels, how.crop_area, rng)
    return pixels.flip(-1) if how.flip and rng.random() < 0.5 else pixels


def view_of(pixels: Tensor, how: Augment, view: int, rng: random.Random) -> Tensor:
    """View number `view` of a picture uint8 (3, S, S): 0 is the picture itself, every second one is mirrored."""
    if view:
        pixels = cropped(pixels, how.crop_area, rng)
    return pixels.flip(-1) if how.flip and view % 2 else pixels


def cropped(pixels: Tensor, crop_area: float, rng: random.Random) -> Tensor:
    """A picture uint8 (3, S, S) -> the same size, a part of it of at least the share crop_area, as `rng` decides.

    The crop's share of the area and its shape (3:4 to 4:3, log-uniform) are drawn as in Szegedy et al. 2015, but only
    shapes that fit into the picture.
    """
    if crop_area >= 1:
        return pixels
    size, area = pixels.shape[-1], rng.uniform(crop_area, 1)
    widest = math.log(min(4 / 3, 1 / area))  # a wider or higher one would be cut off and lose area
    shape = math.exp(rng.uniform(-widest, widest))
    height, width = (min(size, max(1, round(size * math.sqrt(area * s)))) for s in (1 / shape, shape))
    top, left = rng.randint(0, size - height), rng.randint(0, size - width)
    return resized(pixels[:, top : top + height, left : left + width], size, size, "bilinear")
