"""nanoCaption: photographs and captions in, a trained captioner with honest scores out.

    import nanocaption

    model = nanocaption.load("my_captioner")   # an exported folder, an id of the Hub, or a checkpoint file
    model.caption("photo.jpg")                 # "A dog runs on the beach."
    nanocaption.score({1: ["A dog runs.", "The dog is running"]}, {1: "A dog running"})   # {"Bleu_1": ...}

The command is `nanocaption`, see `nanocaption --help`. Importing this module is quick: `load` alone imports
torch, and of an ONNX export onnxruntime instead.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nanocaption.base.version import VERSION

if TYPE_CHECKING:
    import torch

    from nanocaption.model.captioner import ImageToTextModel as ImageToTextModel
    from nanocaption.model.onnx_captioner import OnnxCaptioner as OnnxCaptioner

ImageId = TypeVar("ImageId", bound=Hashable)  # a dict[str, ...] is no Mapping[Hashable, ...] to a type checker
__version__ = VERSION
__all__ = ["ImageToTextModel", "OnnxCaptioner", "__version__", "load", "score"]


def load(
    name: str | Path,
    revision: str | None = None,
    *,
    device: "str | torch.device" = "cpu",
    dtype: "str | torch.dtype" = "float32",
) -> "ImageToTextModel":
    """A trained captioner in eval mode: `.caption(picture)`, `.captions(pictures)`.

    name: a folder that `nanocaption export` wrote, such a model's id on the Hub (user/name, at `revision`), or a
    checkpoint file of a run. device: "cpu", "cuda", "cuda:1", "mps", or "auto" for what is there. dtype: of the
    weights, "float32", "bfloat16" or "float16". docs/use.md shows more.
    A folder of `nanocaption export --format onnx` or `web`, here or on the Hub, gives an OnnxCaptioner instead, which
    runs without torch and has `caption`, `captions` and `push_to_hub` alone: on "cpu", as its graphs are, or with
    dtype="int8" those of 8 bits where it has both.
    (A type checker is told ImageToTextModel; nanocaption.OnnxCaptioner(folder) is exact there.)
    Raises ValueError with one line where it cannot be had, ImportError where torch or onnxruntime is not installed.
    """
    from nanocaption.base.cli import require
    from nanocaption.model.onnx_folder import find_onnx_export

    folder = find_onnx_export(name, revision, str(dtype))
    if folder is not None:
        require("onnxruntime", "onnx", "nanocaption.load of an ONNX export")
        from nanocaption.model.onnx_captioner import load_onnx

        light = load_onnx(folder, str(device), str(dtype))
        return cast("ImageToTextModel", light)  # of the two types that of nearly all callers, who go on with `.to`

    require("torch", "caption", "nanocaption.load")
    from nanocaption.use.load import load_captioner

    return load_captioner(name, revision, device, dtype)


def score(references: Mapping[ImageId, Sequence[str]], candidates: Mapping[ImageId, str]) -> dict[str, float]:
    """BLEU-1 to 4, CIDEr-D and ROUGE-L over a corpus, as fractions, equal to pycocoevalcap's.

    references: {image: its captions}; candidates: {image: one caption} of the same images. Raises ValueError where
    they do not belong together.
    """
    from nanocaption import metrics

    return metrics.score(references, candidates)


def __getattr__(name: str) -> Any:
    if name == "ImageToTextModel":
        from nanocaption.base.cli import require

        require("torch", "caption", "nanocaption.ImageToTextModel")
        from nanocaption.model.captioner import ImageToTextModel

        return ImageToTextModel
    if name == "OnnxCaptioner":
        from nanocaption.base.cli import require

        require("onnxruntime", "onnx", "nanocaption.OnnxCaptioner")
        from nanocaption.model.onnx_captioner import OnnxCaptioner

        return OnnxCaptioner
    raise AttributeError(f"module 'nanocaption' has no attribute {name!r}")
