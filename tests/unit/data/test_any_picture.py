"""A picture in every form gives the tensor of its file, to the bit; what is no picture, or unclear, is one line."""

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nanocaption.data import pictures
from nanocaption.data.any_picture import fitted_picture, fitted_pictures
from nanocaption.data.transform import ImageSpec, load_image

SPEC: ImageSpec = {
    "size": 32, "resize": 32, "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
}  # fmt: skip
NOISE = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)


def forms_of(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {
        "str": str(path), "Path": path, "bytes": data, "bytearray": bytearray(data), "memoryview": memoryview(data),
        "file": io.BytesIO(data), "PIL": Image.open(path),
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_file_in_every_form_gives_the_tensor_of_its_path(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(NOISE).save(path)
    expected = load_image(path, SPEC)
    pixels = np.array(Image.open(path).convert("RGB"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    arrays = {
        "array": pixels, "fortran": np.asfortranarray(pixels), "float64": pixels / 255, "reversed": pixels[::-1][::-1],
        "float32": (pixels / 255).astype(np.float32), "big-endian": (pixels / 255).astype(">f4"),
        "tensor": tensor, "contiguous": tensor.contiguous(), "float tensor": tensor / 255,
        "half": (tensor / 255).half(), "with gradient": (tensor / 255).requires_grad_(),
    }  # fmt: skip
    for name, form in (forms_of(path) | arrays).items():
        assert torch.equal(fitted_picture(form, SPEC), expected), name
    other = pixels.copy()
    other[:8] = 255 - other[:8]
    assert not torch.equal(fitted_picture(other, SPEC), expected)  # the control


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_every_mode_of_pil_is_read_as_its_file_is(tmp_path, mode):
    grey = Image.fromarray(NOISE).convert("L")
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.asarray(grey).astype(np.uint16 if mode == "I;16" else np.int32) * 200)
    elif mode == "F":
        image = Image.fromarray(np.asarray(grey).astype(np.float32))
    else:
        image = Image.fromarray(NOISE).convert("RGBA" if mode in ("RGBA", "LA") else "RGB").convert(mode)
    path = tmp_path / "a.tif"
    image.save(path)
    for name, form in (forms_of(path) | {"made": image}).items():
        assert torch.equal(fitted_picture(form, SPEC), load_image(path, SPEC)), name


def test_grey_arrays_are_grey_pictures(tmp_path):
    grey = Image.fromarray(NOISE).convert("L")
    grey.save(tmp_path / "a.png")
    values, expected = np.array(grey), load_image(tmp_path / "a.png", SPEC)
    tensor = torch.from_numpy(values)
    for form in (values, values[:, :, None], values / 255, tensor, tensor[None], tensor[None] / 255):
        assert torch.equal(fitted_picture(form, SPEC), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_turns_an_image_of_pil_as_it_turns_its_file(tmp_path, orientation):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    expected = load_image(tmp_path / "a.jpg", SPEC)
    for name, form in forms_of(tmp_path / "a.jpg").items():
        assert torch.equal(fitted_picture(form, SPEC), expected), name
    Image.fromarray(NOISE).save(tmp_path / "plain.jpg")
    assert torch.equal(load_image(tmp_path / "plain.jpg", SPEC), expected) == (orientation == 1)


def bomb() -> bytes:
    """A PNG whose header promises 10 GB of pixels."""
    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", b"") + part(b"IEND", b"")


def picture(shape, dtype=np.uint8, value=0):
    return np.full(shape, value, dtype=dtype)


BAD = {
    "url": ("https://example.org/a.jpg", "is a URL: nothing is fetched"),
    "url as a path": (Path("http://example.org/a.jpg"), "is a URL: nothing is fetched"),
    "data url": ("data:image/png;base64,AAAA", "is a URL: nothing is fetched"),
    "missing": ("nowhere.jpg", "nowhere.jpg cannot be read: missing"),
    "no bytes": (b"", "of 0 bytes cannot be read: empty file"),
    "no picture": (b"hello", "not a picture"),
    "web page": (b"<!doctype html><p>", "a web page"),
    "header of 10 GB": (bomb(), "too large"),
    "read before": (io.BytesIO(), r"seek\(0\)"),
    "text file": (io.StringIO("x"), "gives str, no bytes"),
    "both ways": (picture((3, 40, 3)), r"\(3, 40, 3\) can be read with its channels first or last"),
    "both ways, grey": (torch.zeros(1, 40, 3), "channels first or last"),
    "channels first": (picture((3, 40, 40)), r"array.transpose\(1, 2, 0\)"),
    "channels last": (torch.zeros(40, 40, 3), r"tensor.permute\(2, 0, 1\)"),
    "alpha": (picture((40, 40, 4)), "has no 3 channels.*alpha"),
    "batch": (picture((2, 40, 40, 3)), "is a batch"),
    "one number": (np.array(3.0), "is no picture"),
    "no pixels": (picture((0, 40, 3)), "0 x 40 pixels is empty"),
    "strip": (picture((2, 4000, 3)), "too long a shape"),
    "int64": (picture((40, 40, 3), np.int64), "int64: must be uint8"),
    "bool": (picture((40, 40, 3), bool), "bool: must be uint8"),
    "objects": (picture((40, 40, 3), object), "object: must be uint8"),
    "int64 tensor": (torch.zeros(3, 40, 40, dtype=torch.int64), "int64: must be uint8"),
    "bool tensor": (torch.zeros(3, 40, 40, dtype=torch.bool), "bool: must be uint8"),
    "above 1": (picture((40, 40, 3), float, 1.01), "from 1.01 to 1.01: must be from 0 to 1"),
    "below 0": (torch.full((3, 40, 40), -0.5), "must be from 0 to 1, before any normalisation"),
    "NaN": (picture((40, 40, 3), float, np.nan), "4,800 values that are NaN"),
    "number": (3, "int: no picture"),
    "nothing": (None, "NoneType: no picture"),
    "list": ([3], "list: no picture"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_or_unclear_is_one_line(name):
    form, told = BAD[name]
    with pytest.raises(ValueError, match=told) as caught:
        fitted_picture(form, SPEC)
    assert "\n" not in str(caught.value)


def test_lists_and_iterators_are_read_as_they_are_asked_for_and_say_which_one_is_bad(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    several = fitted_pictures(iter([NOISE, tmp_path / "a.png", b"x"]), SPEC)
    assert torch.equal(next(several), next(several))
    with pytest.raises(ValueError, match="^Picture 2 .*: The picture of 1 bytes cannot be read"):
        next(several)
    for one in ("a.png", b"x", NOISE, io.BytesIO(), Image.new("RGB", (9, 9)), torch.zeros(3, 9, 9)):
        with pytest.raises(ValueError, match="put it into a list"):
            next(fitted_pictures(one, SPEC))
    for none in (3, {"a.png": 1}):
        with pytest.raises(ValueError, match="no list of pictures"):
            next(fitted_pictures(none, SPEC))


def test_threads_that_read_leave_the_filters_of_warnings_as_they_were():
    before, inside, go = list(warnings.filters), threading.Event(), threading.Event()

    def first():
        with pictures._without_warnings():
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    second = pictures._without_warnings()
    second.__enter__()
    go.set()
    thread.join()  # the first leaves before the second
    warnings.warn("not heard", UserWarning, stacklevel=1)
    second.__exit__(None, None, None)
    assert warnings.filters == before
    # The control: catch_warnings alone leaves the silence of the first behind.
    one, two = warnings.catch_warnings(), warnings.catch_warnings()
    one.__enter__()
    warnings.simplefilter("ignore")
    two.__enter__()
    one.__exit__(None, None, None)
    two.__exit__(None, None, None)
    assert warnings.filters != before
    warnings.filters[:] = before
    warnings._filters_mutated()
