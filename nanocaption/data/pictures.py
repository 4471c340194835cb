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

    reduced             2, 4 or 8 times smaller: a JPEG or JPEG 2000 whose whole takes more than the bound below

Numbers below 0 or beyond those ranges are stretched from the lowest to the highest. Colour profiles are not applied.

Reading any picture takes at most BYTES_A_PIXEL bytes for each of MAX_PIXELS: 0.96 GB. A decoder that needs more of a
pixel gets pictures of fewer pixels, which is said where one is refused. Of all processes of a user on a machine one at
a time reads a picture above LARGE_PIXELS; the others hold an eighth of the bound at most.
"""

import base64
import contextlib
import io
import os
import stat
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from nanocaption.data.remote import ShardError
from nanocaption.data.shards import Packed, read_bytes

# EPS and its like are programs that need another program to run: left out.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")
MAX_PIXELS = 120_000_000  # a phone's 108 megapixels pass. More is refused before decoding
BYTES_A_PIXEL = 8  # of memory, see the head of this file
LARGE_PIXELS = MAX_PIXELS // 8
STRIP_PIXELS = 2**18  # that are converted at once
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
# What decoders hold of each pixel beside PIL's picture and ours, in bytes: canvases, planes of 32 bits.
_EXTRA = {"WEBP": 10, "JPEG2000": 18, "AVIF": 13}
_REDUCED = ("JPEG", "MPO", "JPEG2000")  # formats whose pictures can be decoded smaller
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
        return Picture(_turned(_rgb(image)[0], _turn_of(image)), ())


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


_SMALL_FILE = 2**20
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
    # A damaged chunk may say that it has gigabytes. A file that is asked for them makes room first; bytes do not.
    if isinstance(source, Path) and source.stat().st_size <= _SMALL_FILE:
        source = io.BytesIO(source.read_bytes())
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
        reduced = _fit_memory(image, source)
        with _turn_of_large(image.height * image.width):
            image.load()
            turn = _turn_of(image)
            pixels, kind = _rgb(image)
    opened.close()  # PIL's pixels as well
    pixels = _turned(pixels, turn)
    conversions = {
        "other suffix": suffix is not None and suffix.lower() not in SUFFIXES.get(opened.format or "", ()),
        "first frame": frames,
        "turned by EXIF": turn is not None,
        "reduced": reduced,
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


def _fit_memory(image: Image.Image, source: Path | io.BytesIO) -> bool:
    """Whether a JPEG is to be decoded smaller, which `image` is then told, to keep within the bound of memory.

    Raises PictureError where its format cannot, naming what would fit.
    """
    height, width = image.height, image.width
    most = BYTES_A_PIXEL * MAX_PIXELS
    needed = [memory_needed(image, source, scale) for scale in ((1, 2, 4, 8) if image.format in _REDUCED else (1,))]
    fitting = next((place for place, size in enumerate(needed) if size <= most), None)
    if fitting is None:
        fits = most * height * width / needed[0] / 1e6
        raise PictureError("too large", f"{width} x {height}, above the {fits:.0f} megapixels of this kind of "
                           f"{image.format} that are read within {most / 1e9:.2f} GB")  # fmt: skip
    if fitting and image.format == "JPEG2000":
        image.reduce = fitting  # type: ignore[assignment,method-assign]
    elif fitting:
        image.draft(None, (width // 2**fitting, height // 2**fitting))
    return fitting > 0


def memory_needed(image: Image.Image, source: Path | io.BytesIO, scale: int = 1) -> int:
    """About how many bytes reading an opened picture takes, at most, measured with Pillow 12: what the decoder holds,
    PIL's picture, our pixels. scale: how many times smaller its sides are decoded."""
    pixels = image.height * image.width
    # Of PIL's picture. That, and our three bytes of a pixel, are there when the decoder has given back what it held.
    held = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}.get(image.mode, 4)
    if image.format in ("JPEG", "MPO"):
        coefficients = _coefficients(source) * pixels
        return int(max(coefficients + pixels * held / scale**2, pixels * (held + 3) / scale**2))
    if image.format == "TIFF":
        return pixels * (held + 3) + _strip_bytes(image)
    collected = 4 if image.tile and image.tile[0][0] in ("ppm", "ppm_plain", "bmp_rle") else 0
    return pixels * (held + 3 + _EXTRA.get(image.format or "", collected)) // scale**2


def _strip_bytes(image: Image.Image) -> int:
    """Of the largest strip or tile of a TIFF, which its decoder holds."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (8,))
    depth = sum(bits) if isinstance(bits, tuple) else int(bits)
    rows, across, down = (int(tags.get(tag) or 0) for tag in (278, 322, 323))
    area = min(rows or image.height, image.height) * image.width
    return max(area, across * down) * max(1, depth) // 8


def _coefficients(source: Path | io.BytesIO) -> float:
    """How many bytes of each pixel a JPEG's decoder holds until the last of several scans: 2 a coefficient.

    None of a file whose pixels come in one scan. Where its markers are not found, as many as there may be.
    """
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source.getbuffer()) as file:
        components, share, progressive = 0, 4.0, False
        file.seek(2)
        while len(head := file.read(2)) == 2 and head[0] == 0xFF:
            if head[1] == 0xFF:  # filling
                file.seek(-1, io.SEEK_CUR)
                continue
            length = max(0, int.from_bytes(file.read(2), "big") - 2)
            if head[1] == 0xDA:
                return 0.0 if not progressive and file.read(1) == bytes([components]) else 2 * share
            content = file.read(length)
            if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC) and length > 8:
                components, progressive = content[5], head[1] > 0xC1
                factors = [(byte >> 4, byte & 15) for byte in content[7::3]]
                largest = max(h for h, _ in factors) * max(v for _, v in factors)
                share = sum(h * v for h, v in factors) / max(1, largest)
    return 8.0


@contextlib.contextmanager
def _turn_of_large(pixels: int) -> Iterator[None]:
    """Inside, no other process of this user on this machine reads a picture above LARGE_PIXELS, if this one does.

    Where the system or its temporary folder has no locks: without.
    """
    if pixels <= LARGE_PIXELS or fcntl is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path = Path(tempfile.gettempdir()) / f"nanocaption-{os.getuid()}-large-picture"
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, handle)
            if os.fstat(handle).st_uid == os.getuid():
                fcntl.flock(handle, fcntl.LOCK_EX)
                # A process forked meanwhile has this lock as well: closing alone would leave it there.
                stack.callback(fcntl.flock, handle, fcntl.LOCK_UN)
        yield


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """How to turn the loaded image as its EXIF says. (TIFF: PIL has turned it already, and taken the tag away.)"""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block; the picture itself is whole
        return None


def _turned(pixels: np.ndarray, turn: Image.Transpose | None) -> np.ndarray:
    """(H, W, 3), writable and in memory by rows, turned as PIL turns an image: here PIL's own is gone by now."""
    if turn is None:
        return pixels
    kinds = Image.Transpose
    flipped = {
        kinds.FLIP_LEFT_RIGHT: (slice(None), slice(None, None, -1)), kinds.FLIP_TOP_BOTTOM: (slice(None, None, -1),),
        kinds.ROTATE_180: (slice(None, None, -1),) * 2, kinds.TRANSPOSE: (),
        kinds.TRANSVERSE: (slice(None, None, -1),) * 2,
        kinds.ROTATE_270: (slice(None, None, -1),), kinds.ROTATE_90: (slice(None), slice(None, None, -1)),
    }[turn]  # fmt: skip
    across = turn in (kinds.TRANSPOSE, kinds.TRANSVERSE, kinds.ROTATE_90, kinds.ROTATE_270)
    found = pixels[flipped]
    return np.ascontiguousarray(found.transpose(1, 0, 2) if across else found)


def _rgb(image: Image.Image) -> tuple[np.ndarray, str]:
    """(uint8 (H, W, 3), what had to be done). Strip by strip: whole conversions would each hold a picture more."""
    mode = image.mode
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    if mode == "F" or mode.startswith("I"):
        kind = "floating point" if mode == "F" else "16 bit" if mode.startswith("I;16") else "32 bit"
        limits = _limits(np.asarray(strip) for _, strip in _strips(image))
        for rows, strip in _strips(image):
            pixels[rows] = _levels(np.asarray(strip), *limits)[:, :, None]
        return pixels, kind
    alpha = mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    for rows, strip in _strips(image):
        pixels[rows] = np.asarray(_on_white(strip) if alpha else strip if mode == "RGB" else strip.convert("RGB"))
    named = {"1": "two colours", "L": "grey", "P": "palette", "CMYK": "CMYK", "RGB": ""}
    return pixels, "alpha" if alpha else named.get(mode, mode)


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The image in strips of some rows each."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        end = min(top + rows, image.height)
        yield slice(top, end), image.crop((0, top, image.width, end))


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _limits(parts: Iterable[np.ndarray]) -> tuple[float, float]:
    """(lowest, highest) of grey values of a type without a stated range."""
    found = [(values.min(), values.max()) for values in (np.nan_to_num(part.astype(np.float64)) for part in parts)]
    lows, highs = zip(*found, strict=True)
    return float(min(lows)), float(max(highs))


def _levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Grey values (H, W), a part of those between the limits -> uint8, by the rules at the top of this file."""
    whole = values.dtype.kind in "iu"
    values = np.nan_to_num(values.astype(np.float64))
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
