"""The folder of an ONNX export on disk: what is in it, and its checks. Without torch, and without onnxruntime.

    encoder_model.onnx          and decoder_model_merged.onnx, see export/as_onnx.py; with int8 weights their names end
                                in _quantized; one pair or both
    config.json                 sizes, image_spec, the search, special ids; sha256 of the files above and the tokenizer
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, preprocessor_config.json, README.md
                                as in the other export, see exported.py
    config.json names under "page" what lies beside them for browsers, see export/web_export.py
Nothing in it is code. What is read is bounded before it is used: whoever wrote the folder may be anybody.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from nanocaption.base import hub
from nanocaption.base.hub import CONFIG, TOKENIZER
from nanocaption.base.version import VERSION

if TYPE_CHECKING:  # imports numpy, which a look at config.json can do without
    from nanocaption.data.fitting import ImageSpec

MODEL_TYPE = "nanocaption_onnx"
FORMAT_VERSION = 1
PRECISIONS = ("fp32", "int8")
OTHERS = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json", "README.md", CONFIG,
)  # fmt: skip
HINT = "`nanocaption export CHECKPOINT FOLDER --format onnx` writes such folders."
_LARGEST = {".onnx": 2_147_483_647, ".json": 100_000_000}  # bytes; of a protobuf it is the limit itself
_SIZES = {  # name -> (least, most)
    "layers": (1, 200), "heads": (1, 1000), "width": (1, 65_536), "vocab_size": (4, 1_000_000),
    "max_seq_len": (2, 10_000), "patches": (1, 100_000), "grid": (1, 1000),
}  # fmt: skip
_SEARCH = {"BEAM_SIZE": (1, 100), "MIN_LENGTH": (0, 10_000), "NO_REPEAT_NGRAM": (0, 10_000)}


class OnnxExport(NamedTuple):
    """What a folder says of its model, checked."""

    folder: Path
    layers: int  # of the decoder
    heads: int
    width: int
    vocab_size: int
    max_seq_len: int
    patches: int  # keys of a picture
    grid: int  # the last grid * grid of them are its patches, row by row
    image_spec: "ImageSpec"
    settings: dict[str, Any]  # those of the search, by name
    precisions: tuple[str, ...]
    sha256: dict[str, str]


def graph_names(precision: str) -> tuple[str, str]:
    """(encoder, decoder): the names of the files."""
    end = "_quantized.onnx" if precision == "int8" else ".onnx"
    return f"encoder_model{end}", f"decoder_model_merged{end}"


def memory_names(kind: str, layers: int) -> list[str]:
    """Of a picture's keys and values. kind: "present" of what a graph gives, "past_key_values" of what it takes."""
    return [f"{kind}.{layer}.encoder.{part}" for layer in range(layers) for part in ("key", "value")]


def token_names(kind: str, layers: int) -> list[str]:
    """Of the keys and values of the tokens so far."""
    return [f"{kind}.{layer}.decoder.{part}" for layer in range(layers) for part in ("key", "value")]


def is_onnx_export(folder: Path) -> bool:
    """Whether the folder's config.json says that it is one of these, in whatever version."""
    try:
        return _read_json(folder / CONFIG).get("model_type") == MODEL_TYPE
    except (ValueError, OSError):
        return False


def is_page(folder: Path) -> bool:
    """Whether it is one of these with a page beside it, see export/web_export.py."""
    try:
        return is_onnx_export(folder) and isinstance(_read_json(folder / CONFIG).get("page"), list)
    except (ValueError, OSError):
        return False


def is_plain_onnx_export(folder: Path) -> bool:
    """Whether it is one of these without a page, which would go on with other graphs than its own."""
    return is_onnx_export(folder) and not is_page(folder)


def find_onnx_export(name: str | Path, revision: str | None = None, precision: str = "fp32") -> Path | None:
    """The folder of an ONNX export: `name` itself, or of the Hub's model of that id what a precision needs.

    None where it is something else. ValueError with one line where the Hub has no such model or does not answer.
    """
    path = Path(name).expanduser()
    if is_onnx_export(path):
        if revision is not None:
            raise ValueError(f"revision = {revision!r} belongs to a model of the Hub; {name} is a folder here.")
        return path
    if not hub.is_id(str(name)) or importlib.util.find_spec("huggingface_hub") is None:
        return None
    folder = hub.download(str(name), revision, (CONFIG,))
    if not is_onnx_export(folder):
        return None
    there = read_onnx_export(folder).precisions
    graphs = graph_names(precision if precision in there else there[0])
    return hub.download(str(name), revision, (*graphs, *OTHERS))


def files_in(folder: Path) -> tuple[str, ...]:
    """The names of all files that belong to an export. ValueError with one line where one is not there."""
    about, read = _read_json(folder / CONFIG), read_onnx_export(folder)
    page = [name for name in about.get("page", []) if isinstance(name, str)]
    names = (*(name for one in read.precisions for name in graph_names(one)), *OTHERS, *page)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is not whole: it has no {missing[0][:60]!r}. Export or copy it again.")
    return names


def read_onnx_export(folder: Path) -> OnnxExport:
    """What config.json says; ValueError with one line where it is of another version, damaged or absurd.

    The files beside it are not looked at: `checked_file` gives the path of one.
    """
    about = _read_json(folder / CONFIG)
    if about.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} was written by nanoCaption {str(about.get('library_version'))[:20]!r} in version "
            f"{str(about.get('format_version'))[:20]!r} of the ONNX format; this program, {VERSION}, reads version "
            f"{FORMAT_VERSION}. Export the model again: {HINT}"
        )
    try:
        sizes = {name: _whole(name, about["sizes"][name], *limits) for name, limits in _SIZES.items()}
        if sizes["grid"] ** 2 > sizes["patches"]:
            raise ValueError(f"grid = {sizes['grid']}: has more places than there are patches, {sizes['patches']}")
        if sizes["width"] % sizes["heads"]:
            raise ValueError(f"width = {sizes['width']}: must be a multiple of heads = {sizes['heads']}")
        precisions = tuple(name for name in PRECISIONS if set(graph_names(name)) <= about["sha256"].keys())
        if not precisions:
            raise ValueError("sha256: names no pair of an encoder and a decoder")
        settings = checked_search(about["settings"])
        if about["settings"].get("NO_BAD_ENDINGS"):
            settings["NO_BAD_ENDINGS"] = True
        sha256 = {str(name): str(digest) for name, digest in about["sha256"].items()}
        return OnnxExport(folder, **sizes, image_spec=checked_image_spec(about["image_spec"]), settings=settings,
                          precisions=precisions, sha256=sha256)  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} lacks what belongs there ({error!r}). {HINT}") from error
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged: {error}. {HINT}") from error


def checked_file(export: OnnxExport, name: str) -> bytes:
    """The content of one of the files. ValueError, with one line, where it is missing, too large or another file."""
    path = export.folder / name
    if not path.is_file():
        raise ValueError(f"{export.folder} is not whole: it has no {name}. Export or copy it again.")
    data = _read_bounded(path)
    if hashlib.sha256(data).hexdigest() == export.sha256.get(name):
        return data
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is only a pointer to the file: run `git lfs pull` in {export.folder}.")
    raise ValueError(f"{path} is damaged, or not the file of its {CONFIG}. Export or copy the folder again.")


def _read_bounded(path: Path) -> bytes:
    size, most = path.stat().st_size, _LARGEST[path.suffix]
    if size > most:
        raise ValueError(f"{path} has {size / 1e6:,.0f} MB, and {most / 1e6:,.0f} MB are read at most.")
    return path.read_bytes()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} is not an exported model: it has no {path.name}. {HINT}")
    try:
        about = json.loads(_read_bounded(path).decode())
    except RecursionError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path} is damaged: it holds no settings.")
    return about


def _whole(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} = {str(value)[:40]}: must be a whole number from {least} to {most:,}")
    return value


def _number(name: str, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10:
        raise ValueError(f"{name} = {str(value)[:40]}: must be a number from 0 to 10")
    return value


def checked_search(given: Mapping[str, object]) -> dict[str, Any]:
    """The settings of the search among those of a folder. ValueError where one is absurd, KeyError where it lacks."""
    settings: dict[str, Any] = {"LENGTH_PENALTY": _number("LENGTH_PENALTY", given["LENGTH_PENALTY"])}
    return settings | {name: _whole(name, given[name], *limits) for name, limits in _SEARCH.items()}


def checked_image_spec(given: Mapping[str, Any]) -> "ImageSpec":
    """The image_spec of a folder. ValueError where it is absurd, KeyError where it lacks something."""
    from nanocaption.data.fitting import check_image_spec  # with numpy, which a look at config.json can do without

    check_image_spec(given)
    names = ("size", "resize", "crop", "mean", "std", "interpolation")
    if lacking := [name for name in names if name not in given]:
        raise KeyError(lacking[0])
    return cast("ImageSpec", {name: value for name, value in given.items() if name in names})
