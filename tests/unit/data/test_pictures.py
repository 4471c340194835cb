"""Every kind of picture file comes out upright and in its true colours, or is refused with the reason."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from nanocaption.data import pictures, transform
from nanocaption.data.pictures import ORIENTATION, TURNS, PictureError, plain_jpeg_size, read_picture
from nanocaption.data.transform import _jpeg_decoder, load_image
from tests.conftest import ROOT

NATIVE = ROOT.parent / "shared" / "data" / "flickr8k_native"
# the four quarters of the test picture: top left, top right, bottom left, bottom right
QUARTERS = [(200, 30, 40), (20, 180, 60), (30, 60, 210), (240, 220, 10)]
GREYS = [10, 90, 170, 250]


def quarters(colours: list, mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    image = Image.new(mode, size)
    draw, (w, h) = ImageDraw.Draw(image), size
    for (x, y), colour in zip(((0, 0), (w // 2, 0), (0, h // 2), (w // 2, h // 2)), colours, strict=True):
        draw.rectangle((x, y, x + w // 2 - 1, y + h // 2 - 1), fill=colour)
    return image


def middles(pixels: np.ndarray) -> list[tuple]:
    """The colours in the middles of the quarters."""
    h, w, _ = pixels.shape
    return [tuple(pixels[y, x].tolist()) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]


def off(pixels: np.ndarray, colours: list) -> int:
    return int(np.abs(np.array(middles(pixels)) - np.array(colours)).max())


def grey16(dtype: str, scale: float) -> np.ndarray:
    return (np.asarray(quarters(GREYS, "L")).astype(np.float64) * scale).astype(dtype)


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG by hand: for what PIL does not write."""
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def alpha_quarters() -> Image.Image:
    image = quarters(QUARTERS).convert("RGBA")
    image.putalpha(quarters([255, 0, 128, 255], "L"))
    return image


ON_WHITE = [QUARTERS[0], (255, 255, 255), (142, 157, 232), QUARTERS[3]]
RGB_GREYS = [(level,) * 3 for level in GREYS]
CMYK = [(0, 255, 255, 0), (255, 0, 255, 0), (0, 0, 0, 128), (255, 255, 0, 0)]
CMYK_AS_RGB = [(255, 0, 0), (0, 255, 0), (127, 127, 127), (0, 0, 255)]
# name -> (image, ending, arguments of save, colours it must have, conversions)
KINDS = {
    "plain jpeg": (quarters(QUARTERS), "jpg", {"quality": 95}, QUARTERS, ()),
    "progressive": (quarters(QUARTERS), "jpg", {"quality": 95, "progressive": True}, QUARTERS, ()),
    "plain png": (quarters(QUARTERS), "png", {}, QUARTERS, ()),
    "webp": (quarters(QUARTERS), "webp", {"lossless": True}, QUARTERS, ()),
    "bmp": (quarters(QUARTERS), "bmp", {}, QUARTERS, ()),
    "tiff": (quarters(QUARTERS), "tif", {}, QUARTERS, ()),
    "grey": (quarters(GREYS, "L"), "jpg", {"quality": 95}, RGB_GREYS, ("grey",)),
    "two colours": (quarters([0, 1, 1, 0], "1"), "png", {}, [(v,) * 3 for v in (0, 255, 255, 0)], ("two colours",)),
    "palette": (quarters(QUARTERS).quantize(16), "png", {}, QUARTERS, ("palette",)),
    "gif": (quarters(QUARTERS).quantize(16), "gif", {}, QUARTERS, ("palette",)),
    "alpha": (alpha_quarters(), "png", {}, ON_WHITE, ("alpha",)),
    "alpha webp": (alpha_quarters(), "webp", {"lossless": True, "exact": True}, ON_WHITE, ("alpha",)),
    "CMYK jpeg": (quarters(CMYK, "CMYK"), "jpg", {"quality": 95}, CMYK_AS_RGB, ("CMYK",)),  # inverted
    "CMYK tiff": (quarters(CMYK, "CMYK"), "tif", {}, CMYK_AS_RGB, ("CMYK",)),  # not inverted
    "16 bit png": (Image.fromarray(grey16("uint16", 257)), "png", {}, RGB_GREYS, ("16 bit",)),
    "16 bit tiff": (Image.fromarray(grey16("uint16", 257)), "tif", {}, RGB_GREYS, ("16 bit",)),
    "12 bit in 16": (Image.fromarray(grey16("uint16", 16.06)), "tif", {}, RGB_GREYS, ("16 bit",)),
    "8 bit in 16": (Image.fromarray(grey16("uint16", 1)), "tif", {}, RGB_GREYS, ("16 bit",)),
    "8 bit in 32": (Image.fromarray(grey16("int32", 1)), "tif", {}, RGB_GREYS, ("32 bit",)),
    "16 bit in 32": (Image.fromarray(grey16("int32", 257)), "tif", {}, RGB_GREYS, ("32 bit",)),
    "float to 1": (Image.fromarray(grey16("float32", 1 / 255)), "tif", {}, RGB_GREYS, ("floating point",)),
    "float to 255": (Image.fromarray(grey16("float32", 1)), "tif", {}, RGB_GREYS, ("floating point",)),
    "float to 65535": (Image.fromarray(grey16("float32", 257)), "tif", {}, RGB_GREYS, ("floating point",)),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_comes_out_in_its_true_colours(tmp_path, name):
    image, ending, arguments, colours, conversions = KINDS[name]
    image.save(tmp_path / f"a.{ending}", **arguments)
    picture = read_picture(tmp_path / f"a.{ending}")
    assert picture.pixels.shape == (48, 64, 3) and picture.pixels.dtype == np.uint8
    assert off(picture.pixels, colours) <= 4, middles(picture.pixels)
    assert picture.conversions == conversions


def test_the_check_of_colours_can_fail():
    plain = np.asarray(quarters(QUARTERS))
    assert off(plain, QUARTERS) == 0 and off(plain[:, ::-1], QUARTERS) > 100 and off(255 - plain, QUARTERS) > 100


def test_kinds_that_pil_does_not_write(tmp_path):
    """16 bit colour, 16 bit grey with alpha, big-endian 16 bit, transparency by colour, floats beyond all ranges."""
    rgb = np.asarray(quarters(QUARTERS)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    (tmp_path / "rgb16.png").write_bytes(png(64, 48, 16, 2, rows))
    read = read_picture(tmp_path / "rgb16.png")
    assert off(read.pixels, QUARTERS) <= 1 and read.conversions == ("16 bit",)

    grey = np.asarray(quarters(GREYS, "L")).astype(">u2") * 257
    opaque = np.stack([grey, np.full_like(grey, 65535)], axis=-1)
    (tmp_path / "la16.png").write_bytes(png(64, 48, 16, 4, b"".join(b"\0" + row.tobytes() for row in opaque)))
    assert off(read_picture(tmp_path / "la16.png").pixels, RGB_GREYS) <= 1

    big = b"MM\0*" + struct.pack(">I", 8)
    tags = [(256, 3, 1, 64 << 16), (257, 3, 1, 48 << 16), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16),
            (262, 3, 1, 1 << 16), (273, 4, 1, 8 + 2 + 8 * 12 + 4), (277, 3, 1, 1 << 16), (279, 4, 1, 6144)]
    big += struct.pack(">H", 8) + b"".join(struct.pack(">HHII", *tag) for tag in tags) + b"\0" * 4 + grey.tobytes()
    (tmp_path / "big.tif").write_bytes(big)
    assert off(read_picture(tmp_path / "big.tif").pixels, RGB_GREYS) <= 1

    quarters(QUARTERS).save(tmp_path / "trns.png", transparency=QUARTERS[1])
    assert off(read_picture(tmp_path / "trns.png").pixels, [QUARTERS[0], (255, 255, 255), *QUARTERS[2:]]) == 0

    Image.fromarray(grey16("float32", 1000) - 50_000).save(tmp_path / "wide.tif")
    assert off(read_picture(tmp_path / "wide.tif").pixels, [(v,) * 3 for v in (0, 85, 170, 255)]) <= 1
    odd = grey16("float32", 1 / 255)
    odd[0, 0], odd[0, 1] = np.nan, 1.5  # one pixel over and one not a number must not darken the rest
    Image.fromarray(odd).save(tmp_path / "odd.tif")
    assert off(read_picture(tmp_path / "odd.tif").pixels, RGB_GREYS) <= 1
    Image.fromarray(np.full((9, 9), -7, np.float32)).save(tmp_path / "flat.tif")
    assert read_picture(tmp_path / "flat.tif").pixels.max() == 128


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_once(tmp_path, ending, orientation):
    upright = quarters(QUARTERS)
    back = {**TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright if orientation == 1 else upright.transpose(back[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if ending == "webp" else {"quality": 95} if ending == "jpg" else {}
    stored.save(tmp_path / f"a.{ending}", exif=exif, **lossless)
    picture = read_picture(tmp_path / f"a.{ending}")
    assert picture.pixels.shape == (48, 64, 3) and off(picture.pixels, QUARTERS) <= 4
    spec = {"size": 16, "resize": 16, "crop": False, "interpolation": "bilinear"}
    assert off(load_image(tmp_path / f"a.{ending}", spec).permute(1, 2, 0).numpy(), QUARTERS) <= 4


def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path):
    quarters(QUARTERS).save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
    assert off(read_picture(tmp_path / "a.jpg").pixels, QUARTERS) <= 4


def test_animations_give_their_first_frame_and_wrong_suffixes_are_read(tmp_path):
    frames = [quarters(QUARTERS), Image.new("RGB", (64, 48), "black")]
    for ending in ("gif", "webp", "png", "tif"):
        lossless = {"lossless": True} if ending == "webp" else {}
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **lossless)
        picture = read_picture(tmp_path / f"a.{ending}")
        assert off(picture.pixels, QUARTERS) <= 4 and "first frame" in picture.conversions, ending
    os.rename(tmp_path / "a.png", tmp_path / "b.jpg")
    assert read_picture(tmp_path / "b.jpg").conversions == ("other suffix", "first frame")


def jpeg() -> bytes:
    file = io.BytesIO()
    quarters(QUARTERS, size=(400, 300)).save(file, "JPEG")
    return file.getvalue()


def whole_png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(file, "PNG")
    return file.getvalue()


REFUSED = {
    "empty.jpg": (b"", "empty file"),
    "cut.jpg": (jpeg()[:1500], "truncated or damaged"),
    "head.jpg": (jpeg()[:100], "truncated or damaged"),
    "cut.png": (whole_png()[:9000], "truncated or damaged"),
    "flipped.png": (whole_png()[:60] + b"\0" * 50 + whole_png()[110:], "truncated or damaged"),
    "page.jpg": (b"\n<!DOCTYPE html><html><body>Not found</body></html>", r"not a picture: a web page \(HTML\)"),
    "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "not a picture: a Git LFS"),
    "text.png": (b"hello", "not a picture"),
    "vector.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture: PostScript"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "not a picture: HEIC"),
    "bomb.png": (png(20_000, 20_000, 8, 0, b"\0" * 99), "too large: above 120"),
    "larger.png": (png(12_000, 12_000, 8, 0, b"\0" * 99), "too large: 12000 x 12000, above 120"),
    "strip.png": (png(1, 60_000, 8, 0, b"\0" * 120_000), "too long a shape: 1 x 60000, above 20 : 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_with_the_reason(tmp_path, name):
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PictureError, match=reason) as caught:
        read_picture(tmp_path / name)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(caught.value.reason)


def test_folders_pipes_and_links_to_nothing_are_refused(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (("folder", "a folder"), ("link", "link to nothing"), ("pipe", "no regular file")):
        with pytest.raises(PictureError, match=reason):
            read_picture(tmp_path / f"{name}.jpg")
    quarters(QUARTERS).save(tmp_path / "real.png")
    (tmp_path / "good.png").symlink_to(tmp_path / "real.png")
    assert off(read_picture(tmp_path / "good.png").pixels, QUARTERS) == 0


def test_a_large_picture_below_the_cap_is_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # PIL warns above it, and refuses above twice as much
    quarters(QUARTERS).save(tmp_path / "a.png")
    assert off(read_picture(tmp_path / "a.png").pixels, QUARTERS) == 0
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2000)
    with pytest.raises(PictureError, match="too large"):
        read_picture(tmp_path / "a.png")


# --- the short way for plain JPEGs ---


def test_plain_jpegs_are_told_from_all_others(tmp_path):
    def size(image: Image.Image, **arguments) -> tuple[int, int] | None:
        file = io.BytesIO()
        image.save(file, **{"format": "JPEG", **arguments})
        return plain_jpeg_size(file.getvalue())

    plain = quarters(QUARTERS)
    assert size(plain) == size(plain, progressive=True) == size(plain, comment=b"x" * 300) == (48, 64)
    assert size(plain.convert("L")) is size(plain.convert("CMYK")) is size(plain, format="PNG") is None
    assert size(plain, exif=Image.Exif()) in (None, (48, 64)) and size(plain, exif=b"Exif\0\0MM\0*") is None
    for cut in range(0, 200, 7):
        plain_jpeg_size(jpeg()[:cut])


def test_both_ways_give_the_same_pixels_and_refuse_the_same(tmp_path, monkeypatch):
    spec = {"size": 40, "resize": 48, "crop": True, "interpolation": "bicubic"}
    files = sorted(NATIVE.glob("*.jpg"))[:20]
    for quality, subsampling in ((60, 2), (90, 1), (98, 0)):
        noise = Image.merge("RGB", [Image.effect_noise((201, 133), 60) for _ in range(3)])
        noise.save(tmp_path / f"{quality}.jpg", quality=quality, subsampling=subsampling)
        files.append(tmp_path / f"{quality}.jpg")
    assert _jpeg_decoder() is not None, "torchvision's decoder was not found: the slow way only"
    short = [load_image(path, spec) for path in files]
    (tmp_path / "cut.jpg").write_bytes(files[-1].read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut.jpg cannot be read: truncated or damaged"):
        load_image(tmp_path / "cut.jpg", spec)
    monkeypatch.setattr(transform, "_jpeg_decoder", lambda: None)
    long = [load_image(path, spec) for path in files]
    assert max((a.int() - b.int()).abs().max() for a, b in zip(short, long, strict=True)) <= 1
    assert all(pixels.is_contiguous() and pixels.dtype == torch.uint8 for pixels in short + long)
    assert (short[-1].int() - long[-2].int()).abs().max() > 1


def test_the_short_way_imports_no_torchvision(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    assert transform._jpeg_decoder.__wrapped__() is not None  # not what the cache holds
    assert "torchvision" not in sys.modules
