"""What each word of a caption looked at: the decoder's cross-attention as one map per word, as data and as a picture.

P features of an image, of which the last side * side are the grid of patches; H heads.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from nanocaption.data.packing import padded
from nanocaption.data.pictures import read_picture
from nanocaption.data.tokenizer import PAD, START, UNK, text_of
from nanocaption.data.transform import ImageSpec, load_image
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.captions import CaptionText

_SHOWN_SIDE = 448  # pixels of a drawn picture


class WordMap(NamedTuple):
    text: str  # as it stands in the caption, its punctuation with it
    weights: Tensor  # float32 (side, side), rows from the top; sums to at most 1


class CaptionMaps(NamedTuple):
    side: int
    words: list[WordMap]


class WordWeights(TypedDict):
    text: str
    weights: list[int]  # 0..255, rows * cols of them, row by row; each word's largest is 255


class JsonMaps(TypedDict):
    """CaptionMaps, JSON-ready."""

    rows: int
    cols: int
    words: list[WordWeights]


def word_maps(tokenizer: Tokenizer, ids: Sequence[int], weights: Tensor, side: int) -> CaptionMaps:
    """The map of every word of a caption, in order.

    ids: the caption's tokens without <start> and <end>. weights (layers, len(ids), H, P): what the decoder looked at
    when it chose each of them, that is the weights at the place of the token before.
    A map is the mean over layers, heads and the tokens of its word; what went to a class or register token is left
    out, so that a map sums to less than 1 there.
    """
    means = weights.float().mean((0, 2))  # (len(ids), P)
    patches = means[:, means.shape[1] - side * side :].unflatten(1, (side, side))
    words = [WordMap(text, patches[places].mean(0)) for text, places in words_of(tokenizer, ids)]
    return CaptionMaps(side, words)


def words_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """A caption's words, split at spaces, and which of its tokens each is made of; special tokens belong to none."""
    groups: list[list[int]] = []
    for place, token in enumerate(ids):
        if token <= UNK:
            continue
        if not groups or (tokenizer.id_to_token(token) or "").startswith("Ġ"):  # byte-level BPE writes a space so
            groups.append([])
        groups[-1].append(place)
    words = [(text_of(tokenizer, [ids[place] for place in group]).strip(), group) for group in groups]
    return [(text, group) for text, group in words if text]


def maps_as_json(maps: CaptionMaps) -> JsonMaps:
    """The maps rounded, JSON-ready."""
    words: list[WordWeights] = [
        {"text": text, "weights": _to_255(weights).int().flatten().tolist()} for text, weights in maps.words
    ]
    return {"rows": maps.side, "cols": maps.side, "words": words}


def _to_255(weights: Tensor) -> Tensor:
    return (255 * weights / weights.max().clamp(min=1e-12)).round()


def draw_words(picture: Image.Image, caption: str, maps: CaptionMaps) -> bytes:
    """A PNG of the picture, and for each word of its caption of the picture lit where the word looked.

    picture: what the encoder saw, in any size and proportion.
    """
    from matplotlib.figure import Figure  # takes about a second, and only this function needs it

    panels = [("", None), *((word.text, word.weights) for word in maps.words)]
    columns = min(6, len(panels))
    rows = -(-len(panels) // columns)
    ratio = picture.height / picture.width
    figure = Figure(figsize=(2 * columns, (1.9 * ratio + 0.32) * rows + 0.4), dpi=150, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(caption, 16 * columns)), fontsize=12, parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, (text, weights) in zip(axes, panels, strict=False):
        axis.set_title(text or " ", fontsize=11, parse_math=False)
        axis.imshow(picture if weights is None else _lit(picture, weights))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_picture(
    model: ImageToTextModel, tokenizer: Tokenizer, path: Path, caption: CaptionText, head: Sequence[int] = (START,)
) -> bytes:
    """The PNG of `draw_words` for one caption of a picture file. ValueError where that cannot be read.

    head: of an answer, see attend.
    """
    spec = model.image_spec
    (maps,) = attend_maps(model, tokenizer, load_image(path, spec)[None], [caption.ids], [head])
    # The same cut of the picture as the encoder's, only larger and, where that was squashed, in its own proportions.
    factor, side = _SHOWN_SIDE / spec["size"], spec["resize"]
    resize = [round(each * factor) for each in side] if isinstance(side, list) else round(side * factor)
    larger: ImageSpec = {**spec, "size": _SHOWN_SIDE, "resize": resize}
    drawing = Image.fromarray(load_image(path, larger).permute(1, 2, 0).numpy())
    if isinstance(side, list) or not spec["crop"]:
        height, width, _ = read_picture(path).pixels.shape
        squashed = side[0] / side[1] if isinstance(side, list) else 1
        drawing = drawing.resize((_SHOWN_SIDE, max(1, round(_SHOWN_SIDE * height / width / squashed))))
    return draw_words(drawing, caption.text, maps)


def _lit(picture: Image.Image, weights: Tensor) -> Image.Image:
    """The picture in grey and dark, with its own light and colours where the weights are large.

    What got an even share of the weights or less stays dark, and full light takes at least five even shares. A word
    that looked nowhere in particular so leaves its picture dim, instead of lit all over.
    """
    even = weights.mean()
    full = torch.maximum(weights.max(), 5 * even)
    light = ((weights - even) / (full - even).clamp(min=1e-12)).clamp(min=0)
    mask = Image.fromarray((255 * light).round().to(torch.uint8).numpy())
    mask = mask.resize(picture.size, Image.Resampling.BICUBIC)
    dark = picture.convert("L").point(lambda grey: 0.25 * grey).convert("RGB")
    return Image.composite(picture, dark, mask)


def attend(
    model: ImageToTextModel, tokenizer: Tokenizer, images: Tensor, captions: Sequence[Sequence[int]],
    heads: Sequence[Sequence[int]] | None = None,
) -> list[JsonMaps]:  # fmt: skip
    """What each word of a caption looked at, JSON-ready; one entry per caption.

    images: (N, 3, S, S) on any device, as `ImageToTextModel.encode` takes them, or (1, 3, S, S) for captions of one
    picture. captions: N lists of ids without <start> and <end>, the model's own or any others. heads: the ids that
    stand before each; of captions <start>, of answers the question and <sep>, see answers.head_of.
    """
    return [maps_as_json(seen) for seen in attend_maps(model, tokenizer, images, captions, heads)]


def attend_maps(
    model: ImageToTextModel, tokenizer: Tokenizer, images: Tensor, captions: Sequence[Sequence[int]],
    heads: Sequence[Sequence[int]] | None = None,
) -> list[CaptionMaps]:  # fmt: skip
    """`attend` before its rounding."""
    if not captions:
        return []
    heads = [[START]] * len(captions) if heads is None else heads
    # A token is chosen at the place of the one before.
    rows = [[*head, *ids[:-1]] for head, ids in zip(heads, captions, strict=True)]
    tokens = torch.from_numpy(padded(rows, PAD))
    image_index = torch.zeros(len(captions), dtype=torch.long) if len(images) == 1 else None
    weights, side = model.cross_attention(images.to(model.mean.device), tokens.to(model.mean.device), image_index)
    return [
        word_maps(tokenizer, ids, weights[:, row, len(head) - 1 :][:, : len(ids)].cpu(), side)
        for row, (head, ids) in enumerate(zip(heads, captions, strict=True))
    ]
