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
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocaption.data import picture_forms
from nanocaption.data.picture_forms import BinaryFile
from nanocaption.data.pictures import PictureError, convert_image, decode_picture
from nanocaption.data.transform import ImageSpec, decoded_jpeg, fitted, load_image

AnyPicture: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray | Tensor
)
ONE = (*picture_forms.FORMS, Tensor)


def fitted_picture(picture: AnyPicture, image_spec: ImageSpec) -> Tensor:
    """The picture as an encoder wants it: uint8 (3, S, S). ValueError, one line, where it is not taken or damaged."""
    if isinstance(picture, str | os.PathLike):
        return load_image(picture_forms.path_of(picture), image_spec)
    try:
        return fitted(pixels_of(picture), image_spec)
    except PictureError as error:
        raise ValueError(f"The picture {picture_forms.name_of(picture)} cannot be read: {error}") from error


def fitted_pictures(pictures: Iterable[AnyPicture], image_spec: ImageSpec) -> Iterator[Tensor]:
    """`fitted_picture` of each, as they are asked for. ValueError for what is one picture itself; says which fails."""
    return picture_forms.each(pictures, lambda picture: fitted_picture(picture, image_spec))  # type: ignore[arg-type]


def pixels_of(picture: AnyPicture) -> Tensor:
    """uint8 (3, H, W) of anything but a path. ValueError, of which PictureError is one, with one line.

    In memory by rows of pixels, as files are decoded: resizing rounds otherwise where the channels lie apart.
    """
    if isinstance(picture, Image.Image):
        return _channels_first(convert_image(picture).pixels)
    if isinstance(picture, np.ndarray):
        return _channels_first(picture_forms.pixels_of_array(picture))
    if isinstance(picture, Tensor):
        return _channels_first(picture_forms.pixels_of_tensor(picture))
    data = picture_forms.bytes_of(picture)
    pixels = decoded_jpeg(np.frombuffer(bytearray(data), dtype=np.uint8))
    return _channels_first(decode_picture(data).pixels) if pixels is None else pixels


def _channels_first(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W), the same memory"""
    return torch.from_numpy(pixels).permute(2, 0, 1)
