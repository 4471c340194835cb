"""The tables of ending_tables.py as tensors, for decode.py."""

import functools
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanocaption.model.ending_tables import tables_of


class Endings(NamedTuple):
    """ending_tables.Tables. On the CPU."""

    following: Tensor  # (S, V) int64
    forbidden: Tensor  # (S, V) bool
    last: Tensor  # (S, V) bool

    def on(self, device: torch.device) -> "Endings":
        return Endings(*(part.to(device) for part in self))


@functools.lru_cache(maxsize=4)
def endings_of(tokenizer: Tokenizer) -> Endings:
    """The table of a byte-level tokenizer for metrics.diversity.BAD_ENDINGS, as `ends_badly` there sees them."""
    return Endings(*map(torch.from_numpy, tables_of(tokenizer)))
