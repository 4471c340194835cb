"""One picture has one bound of memory, whatever its format and mode; a process of its own reads each."""

import ctypes
import io
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nanocaption.data import pictures

SIDE = 2000
SLACK = 14 * 2**20  # strips in conversion, tables of decoders: the same for a picture of any size
if not Path("/proc/self/clear_refs").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
    pytest.skip("the peak of a process can be measured on Linux only", allow_module_level=True)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Path]:
    """A picture of every kind, with little in it, so that its file is small."""
    folder = tmp_path_factory.mktemp("kinds")
    blocks = np.random.default_rng(0).integers(0, 256, (SIDE // 40, SIDE // 40, 4), dtype=np.uint8)
    rgba = Image.fromarray(blocks.repeat(40, 0).repeat(40, 1))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette, levels = rgb.quantize(16), np.asarray(grey)
    turned = Image.Exif()
    turned[pictures.ORIENTATION] = 6
    made = {
        "rgb.png": (rgb, {"compress_level": 1}), "rgba.png": (rgba, {"compress_level": 1}),
        "l.png": (grey, {"compress_level": 1}), "la.png": (rgba.convert("LA"), {"compress_level": 1}),
        "p.png": (palette, {"compress_level": 1}), "transparent.png": (palette, {"transparency": 3}),
        "one.png": (grey.convert("1"), {}), "sixteen.png": (Image.fromarray(levels.astype(np.uint16) * 200), {}),
        "f.tif": (Image.fromarray(levels.astype(np.float32) / 255), {"compression": "tiff_adobe_deflate"}),
        "i.tif": (Image.fromarray(levels.astype(np.int32)), {"compression": "tiff_adobe_deflate"}),
        "cmyk.tif": (rgb.convert("CMYK"), {"compression": "tiff_adobe_deflate"}),
        "ycbcr.tif": (rgb.convert("YCbCr"), {"compression": "jpeg"}),
        "one_strip.tif": (rgb, {"compression": "packbits", "tiffinfo": {278: SIDE}}),
        "plain.jpg": (rgb, {}), "turned.jpg": (rgb, {"exif": turned}), "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "progressive.jpg": (rgb, {"progressive": True, "subsampling": 0}),
        "cmyk_progressive.jpg": (rgb.convert("CMYK"), {"progressive": True}),
        "animated.gif": (palette, {"save_all": True, "append_images": [grey]}),
        "lossy.webp": (rgb, {"method": 0}), "rgba.webp": (rgba, {"method": 0}),
        "animated.webp": (rgb, {"method": 0, "save_all": True, "append_images": [rgb.transpose(0)]}),
        "plain.bmp": (rgb, {}), "plain.ppm": (rgb, {}),
        "a.jp2": (rgba, {}), "a.avif": (rgba, {"speed": 10}),
    }  # fmt: skip
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in made}


def needed(path: Path) -> int:
    with Image.open(path) as image:
        return pictures.memory_needed(image, path)


def peak_of(path: Path, most_pixels: int) -> tuple[int, str]:
    """(bytes above those before, what came out) of reading a picture in a process of its own."""
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        pictures.MAX_PIXELS = most_pixels
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would be used again, uncounted
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        try:
            told = " ".join(pictures.read_picture(path).conversions)
        except pictures.PictureError as error:
            told = str(error)
        os.write(ends[1], f"{_status('VmHWM') - before} {told}".encode())
        os._exit(0)
    os.close(ends[1])
    with os.fdopen(ends[0]) as answer:
        size, _, told = answer.read().partition(" ")
    os.waitpid(child, 0)
    return int(size), told


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_reading_any_kind_takes_at_most_eight_bytes_for_each_pixel_that_a_picture_may_have(kinds):
    for path in kinds.values():
        most = max(SIDE * SIDE, -(-needed(path) // pictures.BYTES_A_PIXEL))  # it just fits
        peak, told = peak_of(path, most)
        assert "too large" not in told and "reduced" not in told, (path.name, told)
        assert peak <= pictures.BYTES_A_PIXEL * most + SLACK, (path.name, peak / SIDE**2)


def test_the_control_converted_whole_a_picture_takes_more(kinds, monkeypatch):
    monkeypatch.setattr(pictures, "STRIP_PIXELS", SIDE * SIDE)
    peak, _ = peak_of(kinds["rgba.png"], SIDE * SIDE)
    assert peak > pictures.BYTES_A_PIXEL * SIDE * SIDE + SLACK


def test_what_does_not_fit_is_decoded_smaller_or_refused_by_its_kind(kinds):
    for name, path in kinds.items():
        most = SIDE * SIDE
        if needed(path) <= pictures.BYTES_A_PIXEL * most:
            continue
        peak, told = peak_of(path, most)
        assert peak <= pictures.BYTES_A_PIXEL * most + SLACK, name
        if path.suffix in (".jpg", ".jp2") and name != "cmyk_progressive.jpg":  # four coefficients of each pixel
            assert "reduced" in told, name
        else:
            assert told.startswith("too large: 2000 x 2000, above the ") and "that are read within" in told, name


def test_a_picture_that_is_read_smaller_is_the_picture(kinds, monkeypatch):
    whole = pictures.read_picture(kinds["progressive.jpg"]).pixels
    monkeypatch.setattr(pictures, "MAX_PIXELS", SIDE * SIDE)
    half = pictures.read_picture(kinds["progressive.jpg"]).pixels
    assert half.shape == (SIDE // 2, SIDE // 2, 3)
    expected = Image.fromarray(whole).resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX)
    assert np.abs(half.astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize("turn", pictures.TURNS)
def test_turned_by_exif_it_is_what_pil_makes_of_it(turn):
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    expected = np.asarray(Image.fromarray(pixels).transpose(pictures.TURNS[turn]))
    found = pictures._turned(pixels, pictures.TURNS[turn])
    assert np.array_equal(found, expected) and found.flags.writeable and found.flags.c_contiguous
    assert not np.array_equal(found, pixels)


def test_strips_give_what_the_whole_picture_gives(kinds, monkeypatch):
    for name in ("rgba.png", "la.png", "transparent.png", "one.png", "sixteen.png", "f.tif", "cmyk.jpg"):
        with Image.open(kinds[name]) as image:
            part = image.crop((0, 0, 61, 83))
            part.info.update(image.info)
            strips = []
            for size in (61 * 83, 61 * 7, 1):
                monkeypatch.setattr(pictures, "STRIP_PIXELS", size)
                strips.append(pictures.convert_image(part).pixels.tobytes())
            assert strips[0] == strips[1] == strips[2], name


def test_two_processes_read_large_pictures_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.tempfile, "gettempdir", lambda: str(tmp_path))
    ends, child = os.pipe(), 0
    with pictures._turn_of_large(pictures.LARGE_PIXELS + 1):
        child = os.fork()
        if child == 0:
            with pictures._turn_of_large(pictures.LARGE_PIXELS):  # a small one does not wait
                os.write(ends[1], b"small ")
            with pictures._turn_of_large(pictures.LARGE_PIXELS + 1):
                os.write(ends[1], b"large")
            os._exit(0)
        assert os.read(ends[0], 100) == b"small "
        os.set_blocking(ends[0], False)
        with pytest.raises(BlockingIOError):  # the large one waits, also where that takes long
            os.read(ends[0], 100)
        os.set_blocking(ends[0], True)
    assert os.read(ends[0], 100) == b"large"
    os.waitpid(child, 0)


def test_a_jpeg_tells_its_scans(kinds):
    def held(name: str) -> float:
        return pictures._coefficients(io.BytesIO(kinds[name].read_bytes()))

    assert (held("plain.jpg"), held("cmyk.jpg")) == (0, 0)
    assert (held("progressive.jpg"), held("cmyk_progressive.jpg")) == (6, 8)
    assert pictures._coefficients(io.BytesIO(b"\xff\xd8nothing")) == 8


def test_a_limit_of_the_system_is_kept_as_well(kinds):
    """The bound itself, of a process that may not take more: RLIMIT_AS above what it has."""
    child = os.fork()
    if child == 0:
        most = pictures.BYTES_A_PIXEL * SIDE * SIDE + 6 * SLACK  # addresses, not memory: libraries map more
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + most,) * 2)
        pictures.read_picture(kinds["rgba.png"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
