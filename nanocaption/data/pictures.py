"""Any picture file -> upright RGB with eight bits a channel: the one way pictures are read, by scan and training.

What is turned into what, each counted by the scan under the name given here:

    grey, two colours   the same level in all three channels
    palette             looked up
    alpha               laid on white
    CMYK                as printed; JPEGs hold it inverted, as Adobe began it
    16 bit, 32 bit      whole numbers: the range is the smallest of 8, 12 and 16 bits that holds the brightest pixel
    floating point      0 to 1, 0 to 255 or 0 to 65535, whichever holds the brightest pixel (clipped at 1 up to 4)
    turned by EXIF      upright, as its orientation says; an EXIF block that cannot be read is left aside
    first frame         of an animation or of several pages
    other suffix        read by its content, whatever its name says

Numbers below 0 or beyond those ranges are stretched from the lowest to the highest. Colour profiles are not applied.
"""

import base64
import contextlib
import io
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from nanocaption.data.remote import ShardError
from nanocaption.data.shards import Packed, read_bytes

# EPS and its like are programs that need another program to run: left out.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")
MAX_PIXELS = 120_000_000  # a phone's 108 megapixels pass; reading one takes 0.9 GB. More is refused before decoding
MAX_ASPECT = 20  # longer side : shorter side; a longer strip holds nothing once it is made square
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".jpg", ".jpeg", ".mpo"), "PNG": (".png", ".apng"),
    "GIF": (".gif",), "BMP": (".bmp", ".dib"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"), "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"), "AVIF": (".avif", ".avifs"),
}  # fmt: skip
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag
FOREIGN = (  # what files without a known picture in them begin with
    (b"<!doctype", "a web page (HTML), not a picture"), (b"<html", "a web page (HTML), not a picture"),
    (b"<svg", "SVG, a format that is not read"), (b"<?xml", "XML, not a picture"), (b"{", "JSON, not a picture"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture"), (b"%pdf", "PDF, a format that is not read"),
    (b"%!ps", "PostScript, a format that is not read"),
)  # fmt: skip


class PictureError(ValueError):
    """A picture that cannot be used. `reason` is one of a few, for counting; the message may say more."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Picture(NamedTuple):
    """A picture as it was read."""

    pixels: np.ndarray  # uint8 (H, W, 3), RGB, upright, writable
    conversions: tuple[str, ...]  # what had to be done, by the names above; () for a plain RGB picture


def read_picture(path: Path | str | Packed, at_least: int | None = None, data: bytes | None = None) -> Picture:
    """The picture at `path`, decoded whole. Raises PictureError where that is not possible, whatever the file is.

    at_least: for a look at it, a JPEG may come out 2, 4 or 8 times smaller, with sides no shorter than this; faster.
    data: the bytes of a packed one, where they were read already. What `check_shape` refuses is refused from the
    header, before anything is decoded. Raises ShardError where a shard cannot be read, or is another one than before.
    """
    with _told_as_picture_error():
        if isinstance(path, Packed):
            if path.length == 0:
                raise PictureError("empty file")
            stored = io.BytesIO(read_bytes(path) if data is None else data)
            return _read(stored, PurePosixPath(path.name).suffix, at_least)
        path = Path(path)
        _check_file(path)
        return _read(path, path.suffix, at_least)


def decode_picture(data: bytes) -> Picture:
    """`read_picture` of the bytes of a file."""
    with _told_as_picture_error():
        if not data:
            raise PictureError("empty file")
        return _read(io.BytesIO(data), None, None)


def convert_image(image: Image.Image) -> Picture:
    """`read_picture` of what PIL has opened or made, its present frame; the image itself stays as it is."""
    with _told_as_picture_error():
        check_shape(image.height, image.width)
        image.load()
        return Picture(_rgb(_upright(image))[0], ())


@contextlib.contextmanager
def _told_as_picture_error() -> Iterator[None]:
    """Whatever a decoder raises becomes a PictureError; its warnings are told by what is done."""
    try:
        with _without_warnings():  # of PIL, on odd EXIF blocks and large pictures
            yield
    except (PictureError, ShardError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PictureError("too large", f"above {MAX_PIXELS / 1e6:.0f} megapixels") from error
    except Exception as error:  # PIL's decoders raise nearly any error on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise PictureError("cannot be opened", error.strerror or "") from error
        detail = str(error).strip().split("\n")[0] or type(error).__name__
        raise PictureError("truncated or damaged", detail) from error


_readers: list[warnings.catch_warnings] = []  # one entry for each thread that reads; the first holds the old filters
_readers_change = threading.Lock()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """As warnings.catch_warnings, for threads: the filters are the process's, and put back when the last one leaves.

    Where threads cross, each of them alone would put back what another one had set, and silence would stay for ever.
    """
    with _readers_change:
        if not _readers:
            first = warnings.catch_warnings()
            first.__enter__()
            warnings.simplefilter("ignore")
        else:
            first = _readers[0]
        _readers.append(first)
    try:
        yield
    finally:
        with _readers_change:
            _readers.pop()
            if not _readers:
                first.__exit__(None, None, None)


def check_shape(height: int, width: int) -> None:
    """Raises PictureError above MAX_PIXELS, for a longer shape than MAX_ASPECT, and where there is no pixel."""
    if max(width, height) < 1:
        raise PictureError("empty picture", f"{width} x {height}")
    if width * height > MAX_PIXELS:
        raise PictureError("too large", f"{width} x {height}, above {MAX_PIXELS / 1e6:.0f} megapixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError("too long a shape", f"{width} x {height}, above {MAX_ASPECT} : 1")


def _read(source: Path | io.BytesIO, suffix: str | None, at_least: int | None) -> Picture:
    try:
        opened = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError(*_foreign(_head_of(source))) from None
    with opened as image:
        check_shape(image.height, image.width)
        # MPO: a photograph with its preview
        frames = image.format != "MPO" and getattr(image, "is_animated", False)
        sixteen = bool(image.tile) and "16" in str(image.tile[0][3])  # 16 bit colour: PIL takes the upper byte
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        turned = _upright(image)
        pixels, kind = _rgb(turned)
    conversions = {
        "other suffix": suffix is not None and suffix.lower() not in SUFFIXES.get(opened.format or "", ()),
        "first frame": frames,
        "turned by EXIF": turned is not image,
        kind or "16 bit": bool(kind) or sixteen,
    }
    return Picture(pixels, tuple(name for name, done in conversions.items() if done))


def _check_file(path: Path) -> None:
    try:
        about = path.stat()
    except FileNotFoundError:
        raise PictureError("link to nothing" if path.is_symlink() else "missing") from None
    if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait for ever
        raise PictureError("a folder" if stat.S_ISDIR(about.st_mode) else "no regular file")
    if about.st_size == 0:
        raise PictureError("empty file")


def _upright(image: Image.Image) -> Image.Image:
    """The loaded image turned as its EXIF says. (TIFF: PIL has turned it already, and taken the tag away.)"""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block; the picture itself is whole
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> tuple[np.ndarray, str]:
    """(uint8 (H, W, 3), what had to be done)"""
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        kind = "floating point" if mode == "F" else "16 bit" if mode.startswith("I;16") else "32 bit"
        return np.repeat(_levels(np.asarray(image))[:, :, None], 3, axis=2), kind
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("LA") if mode == "La" else image
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.array(Image.alpha_composite(white, image).convert("RGB")), "alpha"
    if mode == "RGB":
        return np.array(image), ""
    kind = {"1": "two colours", "L": "grey", "P": "palette", "CMYK": "CMYK"}.get(mode, mode)
    return np.array(image.convert("RGB")), kind


def _levels(values: np.ndarray) -> np.ndarray:
    """Grey values (H, W) of a type without a stated range -> uint8, by the rules at the top of this file."""
    whole = values.dtype.kind in "iu"
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    tops = ((255, 255), (4095, 4095), (65535, 65535)) if whole else ((4, 1), (255, 255), (65535, 65535))
    top = next((top for limit, top in tops if high <= limit), None)
    if low < 0 or top is None:
        if high == low:
            return np.full(values.shape, 128, dtype=np.uint8)
        values, top = (values - low) / (high - low), 1
    return np.rint((values * (255 / top)).clip(0, 255)).astype(np.uint8)


def _head_of(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:64]
    with source.open("rb") as file:
        return file.read(64)


def _foreign(head: bytes) -> tuple[str, str]:
    """(reason, detail) for a file of this beginning in which PIL found no picture."""
    for start, what in FOREIGN:
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(start):
            return "not a picture", what
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "not a picture", "HEIC, a format that is not read: save it as JPEG"
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")):
        return "truncated or damaged", "its header cannot be read"
    return "not a picture", "no format that is read here"


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG with three channels of eight bits and no EXIF or XMP block; None for anything else.

    For a decoder that knows no more than that: all else is left to `read_picture`.
    """
    at = 2
    if data[:2] != b"\xff\xd8":
        return None
    while data[at : at + 1] == b"\xff" and at + 10 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive frame
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return (height, width) if (data[at + 4], data[at + 9]) == (8, 3) and height and width else None
        if marker == 0xE1 or not 0xC4 <= marker < 0xFF or marker == 0xDA:  # EXIF or XMP; filling; the pixels
            return None
        at += 2 + length
    return None


THUMBNAIL_SIZE = 224  # pixels of the longer side: about 10 kB as JPEG, so 200 pictures make some 3 MB


def thumbnail(path: Path | Packed, size: int = THUMBNAIL_SIZE) -> Image.Image:
    """A small RGB picture, `size` pixels at most, read as the encoder's are; ValueError where that is not possible."""
    try:
        picture = Image.fromarray(read_picture(path, 2 * size).pixels)
    except PictureError as error:
        raise ValueError(f"The picture {path} cannot be read: {error}") from error
    picture.thumbnail((size, size))
    return picture


def data_uri(picture: Image.Image, kind: str = "JPEG") -> str:
    """A picture as a JPEG or PNG that can stand in a page."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=80, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
