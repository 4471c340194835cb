"""How likely a captioner finds given captions for given images: log p(caption | image).

One teacher-forced pass over many captions per image. The keys of cross-attention are made once per image, padding is
never computed, and captions that begin alike share the states of their beginning, which a causal decoder makes equal:
of Flickr8k's 5,000 dev captions a quarter of all tokens. So a caption that stands twice costs nothing the second time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanocaption.data.packing import Places
from nanocaption.model.captioner import ImageToTextModel

AT_ONCE = 256  # captions of one pass: its states stay in a CPU's cache
_LOGITS = 2**20  # made at once


class Packed(NamedTuple):
    """Captions made ready for any number of images: B captions, T tokens of the longest, R different beginnings."""

    tokens: Tensor  # int64 (B, T) inputs, <start> first
    places: Places  # of the beginnings, for one image
    caption: Tensor  # int64 (S,) of every token that is predicted its caption, among all that were packed together
    row: Tensor  # int64 (S,) ascending: the beginning that predicts it
    target: Tensor  # int64 (S,) the token

    def to(self, device: torch.device) -> "Packed":
        return Packed._make(part.to(device) for part in self)


def pack_captions(token_ids: Sequence[Sequence[int]], pad: int, at_once: int = AT_ONCE) -> list[Packed]:
    """Captions as tokenizer.encode gives them, for `log_likelihoods`; at least one. Neighbours in the alphabet of their
    ids come together, `at_once` of them."""
    order = sorted(range(len(token_ids)), key=lambda number: list(token_ids[number]))
    return [_pack(token_ids, order[start : start + at_once], pad) for start in range(0, len(order), at_once)]


def _pack(token_ids: Sequence[Sequence[int]], chosen: Sequence[int], pad: int) -> Packed:
    """The captions of these numbers, whose ids are sorted."""
    inputs = [list(token_ids[number])[:-1] for number in chosen]
    longest = max(map(len, inputs))
    tokens = np.full((len(inputs), longest), pad, dtype=np.int64)
    rows = np.zeros((len(inputs), longest), dtype=np.int64)
    places: list[int] = []  # of the first caption that has each beginning
    before: list[int] = []
    for n, ids in enumerate(inputs):
        tokens[n, : len(ids)] = ids
        shared = 0
        while shared < min(len(ids), len(before)) and ids[shared] == before[shared]:
            shared += 1
        rows[n, :shared] = rows[n - 1, :shared]
        rows[n, shared : len(ids)] = range(len(places), len(places) + len(ids) - shared)
        places += range(n * longest + shared, n * longest + len(ids))
        before = ids
    lengths = [len(ids) for ids in inputs]
    row = np.concatenate([rows[n, :length] for n, length in enumerate(lengths)])
    target = np.concatenate([np.asarray(list(token_ids[number])[1:], dtype=np.int64) for number in chosen])
    sorting = np.argsort(row, kind="stable")
    first = torch.tensor(places)
    of_one = torch.arange(len(first))
    return Packed(
        torch.from_numpy(tokens),
        Places(first, tokens.shape, of_one, (1, len(first)), first % longest, torch.from_numpy(rows).flatten()),
        torch.from_numpy(np.repeat(np.asarray(chosen, dtype=np.int64), lengths)[sorting]),
        torch.from_numpy(row[sorting]), torch.from_numpy(target[sorting]),
    )  # fmt: skip


@torch.inference_mode()
def log_likelihoods(model: ImageToTextModel, image: Tensor, captions: Sequence[Packed]) -> Tensor:
    """log p(caption | image) in nats, <end> included: float32 (captions,), in the order that pack_captions was given.

    image: (1, 3, S, S) as for `encode`, or its features (1, P, E). The model is in eval mode; the packed captions are
    on its device.
    """
    memory = model.memory(image)
    keys = model.decoder.memory_keys(memory)
    number = 1 + max(int(part.caption.max()) for part in captions)
    found = torch.zeros(number, device=memory.device)
    for part in captions:
        hidden = model.decoder(part.tokens, memory, part.places, keys=keys)  # (R, D)
        found.index_add_(0, part.caption, _token_log_probs(model, hidden, part.row, part.target))
    return found


def _token_log_probs(model: ImageToTextModel, hidden: Tensor, row: Tensor, target: Tensor) -> Tensor:
    """log p of each target (S,) by the state hidden (R, D) of its row (S,), which ascends: float32 (S,)."""
    size = max(64, _LOGITS // len(model.decoder.embedding.weight))
    bounds = torch.searchsorted(row, torch.arange(0, len(hidden) + size, size, device=row.device)).tolist()
    found = []
    for number, start in enumerate(range(0, len(hidden), size)):
        logits = model.decoder.logits(hidden[start : start + size]).float()  # (r, V)
        own = slice(bounds[number], bounds[number + 1])
        found.append(logits[row[own] - start, target[own]] - logits.logsumexp(-1)[row[own] - start])
    return torch.cat(found)
