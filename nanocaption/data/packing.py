"""Where the real tokens of a batch stand, so that no padding is computed.

In a batch of captions about half the positions are padding. Everything but attention works on the R real tokens in one
row; attention works on two padded layouts, made here on the CPU, in the process that makes the batch: on a GPU each
question for a size would wait for all that was begun before.

B captions, T tokens of the longest, R real tokens, N images, Q most tokens that one image's captions have together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Places(NamedTuple):
    """Where the R real tokens of a batch stand."""

    in_captions: Tensor  # int64 (R,) position in the flattened (B, T)
    captions: tuple[int, int]  # (B, T)
    in_images: Tensor  # int64 (R,) position in the flattened (N, Q)
    images: tuple[int, int]  # (N, Q)
    positions: Tensor  # int64 (R,) position within the caption, 0..T-1
    # int64 (B*T,) of each position in the flattened (B, T) its row among the R, where captions that begin alike share
    # the rows of their beginning; None: every caption has rows of its own
    rows: Tensor | None = None

    def to(self, device: torch.device) -> "Places":
        return Places._make(p.to(device, non_blocking=True) if isinstance(p, Tensor) else p for p in self)


def find_places(tokens: Tensor, pad: int, image_index: Tensor | None, images: int) -> Places:
    """The places of all tokens that are not `pad`.

    tokens: (B, T), padding at the end. image_index: (B,), the image of each caption, None = one each. Raises ValueError
    where the numbers do not fit.
    """
    real = tokens != pad  # (B, T)
    captions, length = real.shape
    rows = images if image_index is None else len(image_index)
    if rows != captions:
        raise ValueError(f"{captions} captions but images for {rows}: give image_index, one entry per caption.")
    if image_index is None:
        image_index = torch.arange(captions)
    token_image = image_index.to(real.device)[:, None].expand(captions, length)[real]  # (R,)
    rank, counts = ranks(token_image, images)  # of a token among those of its image
    longest = max(1, int(counts.max()))
    in_captions = real.flatten().nonzero()[:, 0]
    return Places(
        in_captions, (captions, length), token_image * longest + rank, (images, longest), in_captions % length
    )


def ranks(owners: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """(the place (R,) of each row among those of the same owner, in their order; how many rows each owner has).

    owners: (R,) from 0 to number - 1; the second result is (number,).
    """
    counts = torch.bincount(owners, minlength=number)
    order = torch.argsort(owners, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[owners[order]]
    return rank, counts


def unpack(x: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """Rows of the real tokens (R, D) -> their places in a padded layout (*shape, D), zeros elsewhere."""
    padded = x.new_zeros(shape[0] * shape[1], x.shape[-1])
    return padded.index_copy(0, index, x).view(*shape, x.shape[-1])


def pack(x: Tensor, index: Tensor) -> Tensor:
    """The inverse of `unpack`: a padded layout -> (R, D)."""
    return x.flatten(0, 1).index_select(0, index)


def padded(rows: Sequence[Sequence[int] | np.ndarray], pad_id: int, length: int | None = None) -> np.ndarray:
    """int64 (len(rows), length), filled up with `pad_id`; length: of the longest row unless given."""
    found = np.full((len(rows), max(map(len, rows), default=0) if length is None else length), pad_id, dtype=np.int64)
    for row, ids in zip(found, rows, strict=True):
        row[: len(ids)] = ids
    return found
