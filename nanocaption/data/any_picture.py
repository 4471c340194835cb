"""A picture in any form in which a program holds one -> what an encoder is given: the same pixels, the same tensor.

What is taken, and how it is read:

    path                str or os.PathLike: any file that pictures.read_picture reads
    bytes               bytes, bytearray or memoryview of such a file, or a binary file, read from where it stands
    PIL.Image.Image     of any mode; turned upright as its EXIF says, as a file is
    numpy.ndarray       (H, W, 3) or grey (H, W) or (H, W, 1): uint8 from 0 to 255, or floating point from 0 to 1
    torch.Tensor        (3, H, W) or grey (H, W) or (1, H, W), of the same types, on any device

An array whose shape can be read both ways, e.g. (3, 40, 3), is refused, and so are other types and ranges: nothing is
guessed. Floating point is rounded to 256 levels, which gives back what uint8 / 255 was.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocaption.data.pictures import PictureError, check_shape, convert_image, decode_picture
from nanocaption.data.transform import ImageSpec, decoded_jpeg, fitted, load_image


@runtime_checkable
class BinaryFile(Protocol):
    """A file object opened in binary mode."""

    def read(self) -> bytes: ...


AnyPicture: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray | Tensor
)
ONE = (str, os.PathLike, bytes, bytearray, memoryview, BinaryFile, Image.Image, np.ndarray, Tensor)
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*://|https?:/|data:[\w/+.;=-]*,)", re.IGNORECASE)  # a Path has one slash less
_CHANNELS = (1, 3)


def fitted_picture(picture: AnyPicture, image_spec: ImageSpec) -> Tensor:
    """The picture as an encoder wants it: uint8 (3, S, S). ValueError, one line, where it is not taken or damaged."""
    if isinstance(picture, str | os.PathLike):
        name = os.fspath(picture)
        if isinstance(name, str) and _URL.match(name):
            raise ValueError(f"{name[:80]} is a URL: nothing is fetched here. Download it, and give its path or bytes.")
        return load_image(os.fsdecode(name), image_spec)
    try:
        return fitted(pixels_of(picture), image_spec)
    except PictureError as error:
        raise ValueError(f"The picture {_name(picture)} cannot be read: {error}") from error


def fitted_pictures(pictures: Iterable[AnyPicture], image_spec: ImageSpec) -> Iterator[Tensor]:
    """`fitted_picture` of each, as they are asked for. ValueError for what is one picture itself; says which fails."""
    if isinstance(pictures, ONE):
        raise ValueError(f"{type(pictures).__name__}: is one picture, not a list of them: put it into a list.")
    if not isinstance(pictures, Iterable) or isinstance(pictures, Mapping):
        raise ValueError(f"{type(pictures).__name__}: no picture, and no list of pictures. {_TAKEN}")
    for number, picture in enumerate(pictures):
        try:
            yield fitted_picture(picture, image_spec)
        except ValueError as error:
            if number == 0 or isinstance(picture, str | os.PathLike):  # the only one perhaps; named by its path
                raise
            raise ValueError(f"Picture {number} (counted from 0): {error}") from error


def pixels_of(picture: AnyPicture) -> Tensor:
    """uint8 (3, H, W) of anything but a path. ValueError, of which PictureError is one, with one line.

    In memory by rows of pixels, as files are decoded: resizing rounds otherwise where the channels lie apart.
    """
    if isinstance(picture, Image.Image):
        return torch.from_numpy(convert_image(picture).pixels).permute(2, 0, 1)
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if isinstance(picture, Tensor):
        return _of_tensor(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return _of_bytes(bytes(picture))
    if not isinstance(picture, BinaryFile):
        raise ValueError(f"{type(picture).__name__}: no picture. {_TAKEN}")
    data = picture.read()
    if not isinstance(data, bytes):
        raise ValueError(f"{type(picture).__name__}: gives {type(data).__name__}, no bytes: open it as 'rb'.")
    if not data:
        raise PictureError("empty file", "or it was read to its end before: seek(0)")
    return _of_bytes(data)


_TAKEN = "Pictures are paths, bytes, binary files, PIL images, numpy arrays and torch tensors."


def _of_bytes(data: bytes) -> Tensor:
    pixels = decoded_jpeg(np.frombuffer(bytearray(data), dtype=np.uint8))
    return torch.from_numpy(decode_picture(data).pixels).permute(2, 0, 1) if pixels is None else pixels


def _of_array(array: np.ndarray) -> Tensor:
    layout = _layout(array.shape, "An array", "(H, W, 3) or grey (H, W)")
    if layout == "channels first":
        raise ValueError(f"An array of shape {array.shape}: numpy's are (H, W, 3), give array.transpose(1, 2, 0).")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(_TYPES.format("an array", array.dtype))
    array = array[:, :, None] if array.ndim == 2 else array
    return _of_levels(torch.from_numpy(array.astype(np.uint8 if array.dtype == np.uint8 else np.float64)))  # a copy


def _of_tensor(tensor: Tensor) -> Tensor:
    shape = tuple(tensor.shape)
    layout = _layout(shape, "A tensor", "(3, H, W) or grey (H, W)")
    if layout == "channels last":
        raise ValueError(f"A tensor of shape {shape}: torch's are (3, H, W), give tensor.permute(2, 0, 1).")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ValueError(_TYPES.format("a tensor", str(tensor.dtype).removeprefix("torch.")))
    tensor = tensor.detach().cpu()
    return _of_levels(tensor[:, :, None] if tensor.ndim == 2 else tensor.permute(1, 2, 0))


_TYPES = "A picture as {} of {}: must be uint8 from 0 to 255, or floating point from 0 to 1."


def _layout(shape: tuple[int, ...], what: str, wanted: str) -> str:
    """Where the channels of a shape are. ValueError where it is none of a picture, or can be read in two ways."""
    if len(shape) == 4:
        raise ValueError(f"{what} of shape {shape} is a batch: give its pictures one by one, as list(...).")
    if len(shape) not in (2, 3):
        raise ValueError(f"{what} of shape {shape} is no picture: must be {wanted}.")
    if len(shape) == 2:
        check_shape(*_sides(shape, what))
        return "grey"
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    if first and last:
        raise ValueError(f"{what} of shape {shape} can be read with its channels first or last: give a PIL image.")
    if not first and not last:
        alpha = " An alpha channel is laid on white where a PIL image is given." if 4 in (shape[0], shape[2]) else ""
        raise ValueError(f"{what} of shape {shape} has no 3 channels: must be {wanted}.{alpha}")
    check_shape(*_sides(shape[1:] if first else shape[:2], what))
    return "channels first" if first else "channels last"


def _sides(sides: tuple[int, ...], what: str) -> tuple[int, int]:
    if 0 in sides:
        raise ValueError(f"{what} of {sides[0]} x {sides[1]} pixels is empty.")
    return sides[0], sides[1]


def _of_levels(values: Tensor) -> Tensor:
    """(H, W, C) uint8, or floating point from 0 to 1 -> uint8 (3, H, W). C: 3, or 1 of a grey picture."""
    if values.dtype != torch.uint8:
        values = values.double()
        if not values.isfinite().all():
            raise ValueError(f"A picture with {int((~values.isfinite()).sum()):,} values that are NaN or infinite.")
        low, high = values.min().item(), values.max().item()
        if low < 0 or high > 1:
            raise ValueError(
                f"A picture of floating point from {low:.4g} to {high:.4g}: must be from 0 to 1, before any "
                "normalisation; whole numbers up to 255 as uint8."
            )
        values = (values * 255).round().to(torch.uint8)
    return values.expand(-1, -1, 3).contiguous().permute(2, 0, 1)


def _name(thing: object) -> str:
    """What a message calls a picture that has no path: nothing of its content."""
    if isinstance(thing, str | os.PathLike):
        return repr(os.fspath(thing))[:80]
    if isinstance(thing, bytes | bytearray | memoryview):
        return f"of {len(thing):,} bytes"
    return f"({type(thing).__name__} object)"
