"""A picture in any form in which a program holds one -> its pixels, uint8 (H, W, 3), without torch.

any_picture.py says which forms are taken; it adds torch's tensors to them, and gives a tensor of each.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import numpy as np
from PIL import Image

from nanocaption.data.fitting import ImageSpec, fitted_array
from nanocaption.data.pictures import PictureError, check_shape, convert_image, decode_picture, read_picture


@runtime_checkable
class BinaryFile(Protocol):
    """A file object opened in binary mode."""

    def read(self) -> bytes: ...


class TorchTensor(Protocol):
    """Of a torch.Tensor what is asked for here, where nothing imports torch."""

    shape: Sequence[int]
    dtype: object
    layout: object
    device: object
    is_meta: bool

    def is_floating_point(self) -> bool: ...

    def detach(self) -> "TorchTensor": ...

    def cpu(self) -> "TorchTensor": ...

    def double(self) -> "TorchTensor": ...

    def numpy(self) -> np.ndarray: ...


Pixels = TypeVar("Pixels")
OnePicture: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray
FORMS = (str, os.PathLike, bytes, bytearray, memoryview, BinaryFile, Image.Image, np.ndarray)
_TYPES = "A picture as {} of {}: must be uint8 from 0 to 255, or floating point from 0 to 1."
_TAKEN = "Pictures are paths, bytes, binary files, PIL images, numpy arrays and torch tensors."
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*://|https?:/|data:[\w/+.;=-]*,)", re.IGNORECASE)  # a Path has one slash less
_CHANNELS = (1, 3)


def fitted_form(picture: object, image_spec: ImageSpec) -> np.ndarray:
    """A picture as an encoder wants it: uint8 (S, S, 3). ValueError, one line, where it is not taken or damaged.

    The bytes of any_picture.fitted_picture. A torch.Tensor is taken as well: whoever has one has torch.
    """
    if isinstance(picture, str | os.PathLike):
        path = path_of(picture)
        try:
            return fitted_array(read_picture(path).pixels, image_spec)
        except (OSError, ValueError) as error:
            raise ValueError(f"The picture {path} cannot be read: {error}") from error
    try:
        return fitted_array(_pixels_of(picture), image_spec)
    except PictureError as error:
        raise ValueError(f"The picture {name_of(picture)} cannot be read: {error}") from error


def fitted_forms(pictures: Iterable[object], image_spec: ImageSpec) -> Iterator[np.ndarray]:
    """`fitted_form` of each, as they are asked for; see `each`."""
    return each(pictures, lambda picture: fitted_form(picture, image_spec))


def is_one(thing: object) -> bool:
    """Whether something is one picture, in whatever form, and no list of them."""
    return isinstance(thing, FORMS) or _is_tensor(thing)


def _is_tensor(thing: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.Tensor)


def _pixels_of(picture: object) -> np.ndarray:
    if _is_tensor(picture):
        return pixels_of_tensor(cast(TorchTensor, picture))
    if isinstance(picture, Image.Image):
        return convert_image(picture).pixels
    return pixels_of_array(picture) if isinstance(picture, np.ndarray) else decode_picture(bytes_of(picture)).pixels


def each(pictures: Iterable[object], fit: Callable[[object], Pixels]) -> Iterator[Pixels]:
    """fit(picture) of each, as they are asked for. ValueError for what is one picture itself; says which fails."""
    if is_one(pictures):
        raise ValueError(f"{type(pictures).__name__}: is one picture, not a list of them: put it into a list.")
    if not isinstance(pictures, Iterable) or isinstance(pictures, Mapping):
        raise ValueError(f"{type(pictures).__name__}: no picture, and no list of pictures. {_TAKEN}")
    for number, picture in enumerate(pictures):
        try:
            yield fit(picture)
        except ValueError as error:
            if number == 0 or isinstance(picture, str | os.PathLike):  # the only one perhaps; named by its path
                raise
            raise ValueError(f"Picture {number} (counted from 0): {error}") from error


def path_of(picture: "str | os.PathLike[str]") -> str:
    """The path of a picture file. ValueError where it is a URL."""
    name = os.fspath(picture)
    if isinstance(name, str) and _URL.match(name):
        raise ValueError(f"{name[:80]} is a URL: nothing is fetched here. Download it, and give its path or bytes.")
    return os.fsdecode(name)


def bytes_of(picture: object) -> bytes:
    """What is in a file, of its bytes or of the open file. ValueError, of which PictureError is one, with one line."""
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if not isinstance(picture, BinaryFile):
        raise ValueError(f"{type(picture).__name__}: no picture. {_TAKEN}")
    data = picture.read()
    if not isinstance(data, bytes):
        raise ValueError(f"{type(picture).__name__}: gives {type(data).__name__}, no bytes: open it as 'rb'.")
    if not data:
        raise PictureError("empty file", "or it was read to its end before: seek(0)")
    return data


def pixels_of_array(array: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), a copy. ValueError with one line."""
    layout = _layout(array.shape, "An array", "(H, W, 3) or grey (H, W)")
    if layout == "channels first":
        raise ValueError(f"An array of shape {array.shape}: numpy's are (H, W, 3), give array.transpose(1, 2, 0).")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(_TYPES.format("an array", array.dtype))
    return _levels_of(array[:, :, None] if array.ndim == 2 else array)


def pixels_of_tensor(tensor: TorchTensor) -> np.ndarray:
    """uint8 (H, W, 3), a copy. ValueError with one line."""
    shape = tuple(tensor.shape)
    layout = _layout(shape, "A tensor", "(3, H, W) or grey (H, W)")
    if layout == "channels last":
        raise ValueError(f"A tensor of shape {shape}: torch's are (3, H, W), give tensor.permute(2, 0, 1).")
    if str(tensor.layout) != "torch.strided" or tensor.is_meta:
        raise ValueError(f"A tensor of layout {tensor.layout} on {tensor.device} has no pixels: give a dense one.")
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind != "uint8" and not tensor.is_floating_point():
        raise ValueError(_TYPES.format("a tensor", kind))
    tensor = tensor.detach().cpu()
    values = (tensor if kind == "uint8" else tensor.double()).numpy()
    return _levels_of(values[:, :, None] if values.ndim == 2 else values.transpose(1, 2, 0))


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


def _levels_of(values: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8, or floating point from 0 to 1 -> uint8 (H, W, 3), a copy. C: 3, or 1 of a grey picture."""
    if values.dtype != np.uint8:
        values = values.astype(np.float64)
        if strange := values.size - int(np.isfinite(values).sum()):
            raise ValueError(f"A picture with {strange:,} values that are NaN or infinite.")
        low, high = values.min(), values.max()
        if low < 0 or high > 1:
            raise ValueError(
                f"A picture of floating point from {low:.4g} to {high:.4g}: must be from 0 to 1, before any "
                "normalisation; whole numbers up to 255 as uint8."
            )
        values = np.rint(values * 255).astype(np.uint8)
    return np.array(np.broadcast_to(values, (*values.shape[:2], 3)), order="C")


def name_of(thing: object) -> str:
    """What a message calls a picture that has no path: nothing of its content."""
    if isinstance(thing, bytes | bytearray | memoryview):
        return f"of {len(thing):,} bytes"
    return f"({type(thing).__name__} object)"
