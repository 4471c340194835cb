"""The plain ViT of transformers in a few lines: the same names of weights, the same operations in the same order.

A model that is loaded to caption, or to train on, needs nothing else of that library, whose import takes longer than
torch's own and as much memory. What a config asks for beyond the plain ViT is left to transformers (`is_plain`).
N images, P tokens (the class token, then the patches), E width.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
# What a ViTConfig must say besides for these lines to be all of it.
_PLAIN = {
    "model_type": "vit", "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "num_channels": 3,
}  # fmt: skip
_UNKNOWN = ("head_dim", "attn_implementation", "_attn_implementation", "quantization_config")


def is_plain(config: Mapping[str, object]) -> bool:
    """Whether `ViT` computes what transformers' ViTModel of this config, `to_dict()` of its own, does."""
    sizes = [config.get(name) for name in _SIZES]
    if any(type(size) is not int or size <= 0 for size in sizes) or any(config.get(name) for name in _UNKNOWN):
        return False
    if any(config.get(name) != value for name, value in _PLAIN.items()) or type(config.get("qkv_bias")) is not bool:
        return False
    width, _, heads, _, side, patch = (size for size in sizes if isinstance(size, int))
    return type(config.get("layer_norm_eps")) is float and not width % heads and not side % patch


class Config:
    """A ViTConfig as it was stored, its values as attributes."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    qkv_bias: bool
    return_dict: bool

    def __init__(self, values: Mapping[str, object]):
        self._values = dict(values)
        self.__dict__ |= self._values

    def to_dict(self) -> dict[str, object]:
        return dict(self._values)


class Output(NamedTuple):
    last_hidden_state: Tensor  # (N, P, E), normalised
    hidden_states: tuple[Tensor, ...] | None  # before the first block and after each, not normalised


class ViT(nn.Module):
    """The tower that a plain config describes, with untrained weights: all of them are about to be loaded."""

    def __init__(self, config: Mapping[str, object]):
        super().__init__()
        self.config = c = Config(config)
        self.embeddings = _Embeddings(c)
        self.layers = nn.ModuleList([_Layer(c) for _ in range(c.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.checkpointing = False

    def gradient_checkpointing_enable(self, how: Mapping[str, bool]) -> None:
        self.checkpointing = True

    def forward(
        self, pixels: Tensor, interpolate_pos_encoding: bool = False, output_hidden_states: bool = False
    ) -> Output:
        x = self.embeddings(pixels, interpolate_pos_encoding)  # (N, P, E)
        found = [x]
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing and self.training else layer(x)
            found.append(x)
        return Output(self.layernorm(x), tuple(found) if output_hidden_states else None)


class _Embeddings(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.side = c.image_size // c.patch_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, c.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, self.side**2 + 1, c.hidden_size))
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(3, c.hidden_size, c.patch_size, c.patch_size)
        for embedding in (self.cls_token, self.position_embeddings):
            nn.init.trunc_normal_(embedding, std=0.02)

    def forward(self, pixels: Tensor, resized: bool) -> Tensor:
        projection = self.patch_embeddings.projection
        patches = projection(pixels.to(projection.weight.dtype))  # (N, E, side, side)
        rows, columns = patches.shape[-2:]
        tokens = torch.cat((self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        if resized:
            return tokens + self.interpolate_pos_encoding(rows, columns)
        return tokens + self.position_embeddings

    def interpolate_pos_encoding(self, rows: int, columns: int) -> Tensor:
        """The position embeddings of the class token and of a grid of patches of another size."""
        own, grid = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        if rows * columns == self.side**2 and rows == columns:
            return self.position_embeddings
        grid = grid.reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((own, grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)), dim=1)


class _Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.attention = _Attention(c)
        self.layernorm_before = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.mlp.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.layernorm_before(x)) + x
        return self.mlp.fc2(F.gelu(self.mlp.fc1(self.layernorm_after(x)))) + x


class _Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        width, self.heads = c.hidden_size, c.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=c.qkv_bias) for _ in range(3))
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, p, width = x.shape
        q, k, v = (part(x).view(n, p, self.heads, -1).transpose(1, 2)
                   for part in (self.q_proj, self.k_proj, self.v_proj))  # fmt: skip
        mixed = F.scaled_dot_product_attention(q, k, v)  # (N, heads, P, E/heads)
        return self.o_proj(mixed.transpose(1, 2).reshape(n, p, width))
