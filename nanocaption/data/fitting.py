"""A decoded picture -> the pixels that an encoder is given, with numpy alone: the same bytes as transform.fitted gives.

That is torch's resizing of bytes with antialiasing, which follows Pillow's: a row of weights per new pixel, rounded to
16 bits, first across and then down, each result rounded to a byte. Sums of whole numbers are equal in whatever order,
so nothing is left to differ. On processors without AVX2 torch resizes with 32 bits instead: there one grey level may.
"""

import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np


class ImageSpec(TypedDict):
    """How an encoder wants its pictures: preprocessor.read_image_spec."""

    size: int  # side of the input, pixels
    # With crop the shorter side gets this length, or a list squashes the picture to [height, width] before it is cut;
    # without, the whole picture is squashed to `size`.
    resize: int | list[int]
    crop: bool  # to `size` from the middle; what is shorter than that gets black borders
    mean: list[float]  # per channel of values 0..1
    std: list[float]
    interpolation: str  # "bilinear", "bicubic" or "nearest-exact"; "nearest" in files of before


INTERPOLATIONS = ("bilinear", "bicubic", "nearest-exact", "nearest")
LARGEST_SIDE = 8192  # pixels of what an encoder is given


def check_image_spec(given: Mapping[str, object]) -> None:
    """Raise ValueError, one line, for an ImageSpec from elsewhere that is none, or asks for absurd pictures."""
    size, resize = given.get("size"), given.get("resize")
    sides = resize if isinstance(resize, list) else [resize]
    for side in (size, *sides):
        if type(side) is not int or not 1 <= side <= LARGEST_SIDE:
            raise ValueError(f"a side of image_spec = {str(side)[:40]}: must be a whole number from 1 to "
                             f"{LARGEST_SIDE:,}")  # fmt: skip
    mean, std = given.get("mean"), given.get("std")
    for channels in (mean, std):
        if not isinstance(channels, list) or len(channels) != 3 or not all(
            type(each) in (int, float) and -1000 < each < 1000 for each in channels
        ):
            raise ValueError(f"image_spec: {str(channels)[:60]} must be three numbers")
    if (len(sides) > 2 or 0 in std or given.get("interpolation") not in INTERPOLATIONS  # type: ignore[operator]
            or not isinstance(given.get("crop"), bool)):  # fmt: skip
        raise ValueError(f"image_spec: {str(dict(given))[:200]} is not followed")


def resized_shape(height: int, width: int, image_spec: ImageSpec) -> tuple[int, int]:
    """(height, width) that a picture of these sides is resized to, before it is cropped."""
    side = image_spec["resize"]
    if isinstance(side, list):
        return side[0], side[1]
    if not image_spec["crop"]:
        return side, side
    shorter = min(height, width)  # gets the length `side`, and the picture keeps its shape
    return side * height // shorter, side * width // shorter


def fitted_array(pixels: np.ndarray, image_spec: ImageSpec) -> np.ndarray:
    """uint8 (H, W, 3) resized and cropped as an encoder wants it -> (S, S, 3)."""
    height, width = resized_shape(*pixels.shape[:2], image_spec)
    pixels = resized_array(pixels, height, width, image_spec["interpolation"])
    if not image_spec["crop"]:
        return pixels
    cut = image_spec["size"]
    across, down = max(0, cut - width), max(0, cut - height)
    if across or down:
        pixels = np.pad(pixels, ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)))
    top, left = ((length - cut) // 2 for length in pixels.shape[:2])
    return pixels[top : top + cut, left : left + cut]


def resized_array(pixels: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    """uint8 (H, W, 3) -> (height, width, 3); mode: as transform.resized."""
    if mode.startswith("nearest"):
        shift = 0.5 if mode == "nearest-exact" else 0.0
        return pixels[_nearest(pixels.shape[0], height, shift)][:, _nearest(pixels.shape[1], width, shift)]
    if pixels.shape[1] != width:
        pixels = _resample(pixels, *_weights(pixels.shape[1], width, mode))
    if pixels.shape[0] != height:
        pixels = _resample(pixels.transpose(1, 0, 2), *_weights(pixels.shape[0], height, mode)).transpose(1, 0, 2)
    return np.ascontiguousarray(pixels)


def _nearest(old: int, new: int, shift: float) -> np.ndarray:
    places = (np.arange(new, dtype=np.float32) + np.float32(shift)) * np.float32(old / new)
    return np.minimum(places.astype(int), old - 1)


def _weights(old: int, new: int, mode: str) -> tuple[np.ndarray, np.ndarray, int]:
    """(starts (new,), weights (new, taps), shift): a new pixel is the sum of its weights times the old pixels from its
    start on, by 2 ** -shift."""
    kernel, reach = (_linear, 1.0) if mode == "bilinear" else (_cubic, 2.0)
    scale = old / new
    stretch = max(scale, 1.0)
    support = reach * stretch
    centre = scale * (np.arange(new) + 0.5)
    start = np.maximum((centre - support + 0.5).astype(int), 0)
    end = np.minimum((centre + support + 0.5).astype(int), old)
    taps = np.arange(min(old, 2 * math.ceil(support) + 1))
    places = start[:, None] + taps
    weights = np.where(places < end[:, None], kernel((places - centre[:, None] + 0.5) / stretch), 0.0)
    weights /= weights.sum(1, keepdims=True)
    largest = weights.max()
    shift = 0
    while shift < 22 and int(0.5 + largest * 2 ** (shift + 1)) < 2**15:
        shift += 1
    whole = np.trunc(weights * 2**shift + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    return start, whole, shift


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys's kernel with a = -0.5."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))


def _resample(pixels: np.ndarray, start: np.ndarray, weights: np.ndarray, shift: int) -> np.ndarray:
    """(A, old, 3) -> (A, new, 3), uint8."""
    total = np.full((len(pixels), len(start), 3), 2**shift // 2, np.int32)
    last = pixels.shape[1] - 1
    for tap, weight in enumerate(weights.T):
        total += pixels[:, np.minimum(start + tap, last)] * weight[:, None]
    return (total >> shift).clip(0, 255).astype(np.uint8)
