"""The contrastive head: a vector for an image and one for a caption, near each other where they belong together.

The image's vector pools the encoder's features; the caption's the states of our own decoder without cross-attention,
which are of the text alone: another pass over weights that every checkpoint has. A pooler has POOLS learned queries,
each a weighted mean over patches or tokens, and maps all of these side by side to WIDTH numbers. Queries meet the
features themselves, not keys made from them: an attention pooler whose key map is folded into its query, at a
sixteenth of the cost, so that a step can hold hundreds of images.

Shapes: N images, P patches, E encoder width, B captions, T tokens, R real tokens, D decoder width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanocaption.data.packing import Places, unpack

WIDTH, POOLS = 256, 8
# The scale of cosines, 1 / temperature: where it begins (CLIP's 0.07), and what it is kept within.
FIRST_SCALE, SCALES = 1 / 0.07, (1.0, 100.0)
DROPOUT = 0.3  # on what the queries pooled


class Pooler(nn.Module):
    """Rows of `width` numbers -> a unit vector of WIDTH numbers."""

    def __init__(self, width: int):
        super().__init__()
        # Without weights of its own, which the linear maps behind it have: nothing of it is needed backwards where the
        # features are a frozen encoder's.
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.queries = nn.Parameter(torch.randn(POOLS, width) * width**-0.5)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(POOLS * width, WIDTH)

    def forward(self, rows: Tensor, missing: Tensor | None = None) -> Tensor:
        """rows (N, L, width), missing (N, L) True where there is none -> float32 (N, WIDTH)."""
        rows = self.norm(rows)
        scores = rows @ self.queries.T  # (N, L, POOLS)
        if missing is not None:
            scores = scores.masked_fill(missing[:, :, None], -torch.inf)
        pooled = scores.softmax(1).to(rows.dtype).transpose(1, 2) @ rows  # (N, POOLS, width)
        return F.normalize(self.out(self.dropout(pooled.flatten(1))).float(), dim=-1)


class ContrastiveHead(nn.Module):
    """Vectors of images and of captions; a scale and a bias for their cosines in the losses.

    features: the encoder's width; states: the decoder's.
    """

    def __init__(self, features: int, states: int):
        super().__init__()
        self.image, self.text = Pooler(features), Pooler(states)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.bias = nn.Parameter(torch.zeros(()))  # beside the log-odds of the batch's share of positives

    def images(self, features: Tensor) -> Tensor:
        """features (N, P, E) as `encode` gives them -> float32 (N, WIDTH) of length 1."""
        return self.image(features.to(self.image.out.weight.dtype))

    def texts(self, states: Tensor, places: Places) -> Tensor:
        """states (R, D) of the real tokens, at `places` -> float32 (B, WIDTH) of length 1."""
        ones = states.new_ones(len(states), 1)
        there = unpack(ones, places.in_captions, places.captions)[:, :, 0]  # (B, T)
        return self.text(unpack(states, places.in_captions, places.captions), there == 0)

    def scale(self) -> Tensor:
        """By which cosines are multiplied, within SCALES: ()."""
        low, high = map(math.log, SCALES)
        # The value is clamped and the gradient is not, or a scale that has left its bounds could never come back.
        return (self.log_scale + (self.log_scale.clamp(low, high) - self.log_scale).detach()).exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the scale itself back within its bounds, so that it does not drift away beyond them."""
        self.log_scale.clamp_(*map(math.log, SCALES))
