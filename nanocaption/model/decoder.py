"""The decoder: causal self-attention over a caption, cross-attention over the features of its image.

Pre-norm (Xiong et al. 2020) with learned positions and tied token embeddings (Press & Wolf 2017).
Shapes: N images, B captions, T tokens, R real tokens of the batch, P patches, D width, H heads, V vocabulary, K
captions per image decoded at once (beams), L tokens so far. With questions: Q of them, M of the image that has most.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanocaption.base.settings import ModelSettings
from nanocaption.data.packing import Places, pack, ranks, unpack

# per layer: "memory_k" (N, H, D/H, P), "memory_v" (N, H, P, D/H); of the tokens so far "k" (N, H, D/H, C*K) and
# "v" (N, H, C*K, D/H), where C is how many of them have room. With questions the last two have Q in the place of N, and
# begin with the T tokens of the longest question, once for all K beams: (Q, H, D/H, T + C*K)
Cache = list[dict[str, Tensor]]
Keys = tuple[Tensor, Tensor]  # of a layer for a memory: keys and values, each (N, H, P, D/H)
_ROOM = 16  # tokens by which that grows
# Of the feed-forward layers. "gelu" is ours; "gelu_new", its approximation by tanh, comes with models of GPT-2's kind.
ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh"}
_NEVER = -30_000.0  # a logit: low enough to have no probability, and still a number in float16


class Prefix(NamedTuple):
    """What stands before the tokens that are decoded: Q questions, several of which may be about one image."""

    tokens: Tensor  # int64 (Q, T), padding at the end
    images: Tensor  # int64 (Q,) which image each is about


class Asked(NamedTuple):
    """Where the questions stand that are still being answered, for each step."""

    lengths: Tensor  # int64 (Q,) tokens of each
    longest: int  # T
    padding: Tensor  # bool (Q, 1, 1, T) True where the question has ended
    cells: Tensor  # int64 (Q,) its place among the N * M that the cross-attention works on, image by image
    grid: tuple[int, int]  # (N, M)

    def of(self, kept: Tensor) -> "Asked":
        """Those of some questions, by their places."""
        lengths, padding, cells = (part.index_select(0, kept) for part in (self.lengths, self.padding, self.cells))
        return self._replace(lengths=lengths, padding=padding, cells=cells)

    def hidden(self, own: Tensor | None, beams: int, length: int) -> Tensor:
        """What a row may not see, (Q, 1, K, T + L*K): the padding, and `own` of the L*K tokens since; None: nothing."""
        padding = self.padding.expand(-1, -1, beams, -1)
        since = padding.new_zeros(len(padding), 1, beams, length * beams) if own is None else own
        return torch.cat([padding, since], -1)


class Decoder(nn.Module):
    """Token and position embeddings, decoder layers, final norm, output map tied to the embeddings."""

    def __init__(
        self,
        settings: ModelSettings,
        vocab_size: int,
        dropout: float,
        activation: str = "gelu",
        never_chosen: Sequence[int] = (),
    ):
        super().__init__()
        s, width = settings, settings.DECODER_EMBED_DIM
        self.activation, self.never_chosen = activation, list(never_chosen)
        self.max_seq_len = s.MAX_SEQ_LEN
        self.pad, self.end = s.PAD_TOKEN_ID, s.END_TOKEN_ID
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=self.pad)
        self.position_embedding = nn.Embedding(self.max_seq_len, width)
        self.dropout = Dropout(dropout)
        sizes = (width, s.DECODER_HEADS, s.DECODER_FF_DIM, dropout, activation)
        layers = [DecoderLayer(*sizes) for _ in range(s.DECODER_LAYERS)]
        self.layers = cast(list[DecoderLayer], nn.ModuleList(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, memory: Tensor | None, places: Places, seen: list[Tensor] | None = None,
        cache: Cache | None = None, keys: Sequence[Keys] | None = None,
    ) -> Tensor:  # fmt: skip
        """tokens (B, T) with its places, memory (N, P, D) -> hidden states of the real tokens (R, D).

        memory: None leaves cross-attention out, so that the states are of the text alone. seen: gets per layer the
        weights (R, H * P) of the real tokens' attention over the memory. cache: gets per layer the keys and values of
        all tokens, B = Q questions with which a decoding begins. keys: what `memory_keys` gave of the memory, for
        several passes over it.
        """
        length = tokens.shape[1]
        if length > self.max_seq_len:
            raise ValueError(f"{length} tokens: the decoder holds at most {self.max_seq_len} (MAX_SEQ_LEN).")
        real = tokens.flatten().index_select(0, places.in_captions)  # (R,)
        x = self.dropout(self.embedding(real) + self.position_embedding(places.positions))
        for number, layer in enumerate(self.layers):
            kept: dict[str, Tensor] | None = None if cache is None else {}
            x = layer(x, places, memory, seen, kept, keys and keys[number])
            if cache is not None and kept is not None:
                cache.append(kept)
        return self.norm(x)

    def memory_keys(self, memory: Tensor) -> list[Keys]:
        """Of every layer the keys and values of memory (N, P, D)."""
        return [layer.memory_keys(memory) for layer in self.layers]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        return F.linear(hidden, self.embedding.weight)

    def step(
        self, tokens: Tensor, position: int, cache: Cache, hidden: Tensor | None, rows: Tensor | None = None,
        asked: Asked | None = None,
    ) -> Tensor:  # fmt: skip
        """tokens (N*K,) at `position` -> logits (N*K, V). hidden, rows, asked: see DecoderLayer.step.

        asked: then tokens are (Q*K,), and position is counted from the end of each question. A row that has no room
        left is given <end>, and nothing else, with probability 1: whatever else is in the batch, it ends there.
        The logits of what is not among `rows` are 0.
        """
        if asked is not None:
            return self._answer_step(tokens, position, cache, hidden, rows, asked)
        if position >= self.max_seq_len:
            raise ValueError(f"Token {position + 1}: the decoder holds at most {self.max_seq_len} (MAX_SEQ_LEN).")
        x = self.embedding(tokens if rows is None else tokens[rows]) + self.position_embedding.weight[position]
        return self._step(x, position, cache, hidden, rows, len(tokens), None)

    def _answer_step(
        self, tokens: Tensor, position: int, cache: Cache, hidden: Tensor | None, rows: Tensor | None, asked: Asked
    ) -> Tensor:
        places = (asked.lengths + position).repeat_interleave(len(tokens) // len(asked.lengths))  # (Q*K,)
        at = self.position_embedding.weight[_among(places, rows).clamp(max=self.max_seq_len - 1)]
        x = self.embedding(_among(tokens, rows)) + at
        logits = self._step(x, position, cache, hidden, rows, len(tokens), asked)
        full = places[:, None] >= self.max_seq_len - 1  # the last place is no longer fed, as in training
        ends = torch.arange(logits.shape[-1], device=logits.device) == self.end
        return torch.where(full, torch.where(ends, 0.0, _NEVER).to(logits.dtype), logits)

    def _step(
        self, x: Tensor, position: int, cache: Cache, hidden: Tensor | None, rows: Tensor | None, every: int,
        asked: Asked | None,
    ) -> Tensor:  # fmt: skip
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer.step(x, position, layer_cache, hidden, rows, every, asked)
        logits = _spread(self.logits(self.norm(x)), rows, every)
        if self.never_chosen:
            logits[:, self.never_chosen] = _NEVER
        return logits


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention over the patches, feed-forward; each pre-norm with a residual."""

    def __init__(self, width: int, heads: int, ff_dim: int, dropout: float, activation: str = "gelu"):
        super().__init__()
        self.heads = heads
        gelu = nn.GELU(ACTIVATIONS[activation])
        self.self_norm = nn.LayerNorm(width)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_q = nn.Linear(width, width)
        self.cross_kv = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, ff_dim), gelu, nn.Linear(ff_dim, width))
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, places: Places, memory: Tensor | None, seen: list[Tensor] | None = None,
        kept: dict[str, Tensor] | None = None, keys: Keys | None = None,
    ) -> Tensor:  # fmt: skip
        """x: real tokens (R, D), at `places` of their captions and images; memory, seen and keys: see Decoder.

        kept: gets the layer's part of a Cache.
        """
        x = self._attend_to_caption(x, places, kept)
        if memory is None:
            return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        # All tokens of an image's captions are queries (N, H, Q, D/H) to one set of keys, made once per image.
        (q,) = self._split(unpack(self.cross_q(self.cross_norm(x)), places.in_images, places.images), 1)
        k, v = keys or self.memory_keys(memory)
        if kept is not None:
            kept |= {"memory_k": k.transpose(-1, -2).contiguous(), "memory_v": v.contiguous()}
        if seen is not None:
            weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)  # (N, H, Q, P)
            seen.append(pack(_join(weights), places.in_images))
        mixed = _join(F.scaled_dot_product_attention(q, k, v))  # (N, Q, D)
        x = x + self.dropout(self.cross_out(pack(mixed, places.in_images)))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))

    def memory_keys(self, memory: Tensor) -> Keys:
        """The keys and the values of memory (N, P, D), each (N, H, P, D/H)."""
        k, v = self._split(self.cross_kv(memory), 2)
        return k, v

    def _attend_to_caption(self, x: Tensor, places: Places, kept: dict[str, Tensor] | None) -> Tensor:
        qkv = self.self_qkv(self.self_norm(x))  # (R, 3D)
        if places.rows is None:
            qkv = unpack(qkv, places.in_captions, places.captions)  # (B, T, 3D)
        else:  # a row stands in every caption that begins so
            qkv = qkv.index_select(0, places.rows).view(*places.captions, -1)
        q, k, v = self._split(qkv, 3)  # each (B, H, T, D/H)
        if kept is not None:
            kept |= {"k": k.transpose(-1, -2), "v": v}
        mixed = _join(F.scaled_dot_product_attention(q, k, v, is_causal=True))  # (B, T, D)
        return x + self.dropout(self.self_out(pack(mixed, places.in_captions)))

    def memory_cache(self, memory: Tensor) -> dict[str, Tensor]:
        """The layer's part of a Cache, before any token."""
        k, v = self._split(self.cross_kv(memory), 2)
        k = k.transpose(-1, -2)
        return {"memory_k": k.contiguous(), "memory_v": v.contiguous(), "k": k[..., :0], "v": v[:, :, :0]}

    def step(
        self, x: Tensor, position: int, cache: dict[str, Tensor], hidden: Tensor | None, rows: Tensor | None,
        every: int, asked: Asked | None = None,
    ) -> Tensor:  # fmt: skip
        """One new token per row, x (N*K, D); its keys and values are put into the cache.

        hidden (N, 1, K, L*K): True for what a row may not see of the L tokens so far, this one included; None: nothing.
        rows (A,): those that x (A, D) has of the `every` = N*K; None: all. Only attention has room for the others.
        asked: of answers, Q in the place of N, and T more tokens before the L*K; all questions of an image are queries
        to its one set of keys.
        """
        searches, width = len(cache["v"]), x.shape[1]
        beams = every // searches
        end = (position + 1) * beams + (asked.longest if asked else 0)
        if end > cache["v"].shape[2]:
            cache["k"], cache["v"] = F.pad(cache["k"], (0, _ROOM * beams)), F.pad(cache["v"], (0, 0, 0, _ROOM * beams))
        qkv = _spread(self.self_qkv(self.self_norm(x)), rows, every).view(searches, beams, 3 * width)
        q, k, v = self._split(qkv, 3)  # each (N, H, K, D/H)
        cache["k"][..., end - beams : end] = k.transpose(-1, -2)
        cache["v"][:, :, end - beams : end] = v
        x = x + self.self_out(_among(_attend(q, cache["k"][..., :end], cache["v"][:, :, :end], hidden), rows))
        queries = _spread(self.cross_q(self.cross_norm(x)), rows, every)  # (N*K, D)
        if asked is None:
            (q,) = self._split(queries.view(searches, beams, width), 1)
            mixed = _attend(q, cache["memory_k"], cache["memory_v"], None)
        else:
            images, most = asked.grid
            cells = (asked.cells[:, None] * beams + torch.arange(beams, device=x.device)).flatten()  # (Q*K,)
            (q,) = self._split(_spread(queries, cells, images * most * beams).view(images, most * beams, width), 1)
            mixed = _attend(q, cache["memory_k"], cache["memory_v"], None).index_select(0, cells)
        x = x + self.cross_out(_among(mixed, rows))
        return x + self.feedforward(self.feedforward_norm(x))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts * D) -> `parts` tensors (B, H, L, D/H)."""
        b, length, width = x.shape
        return x.view(b, length, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4).unbind(0)


class Dropout(nn.Dropout):
    """nn.Dropout with a cheaper mask on the CPU: 16 random bits an element instead of 64, a third of its time.

    `p` is rounded to 1/65536 there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or self.p == 0 or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = round(self.p * 2**16)
        # random_() alone leaves the sign bit unset.
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = bits[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * keep.to(x.dtype).mul_(2**16 / (2**16 - dropped))


def _spread(x: Tensor, rows: Tensor | None, every: int) -> Tensor:
    """x (A, D) at its `rows` of (every, D), zeros elsewhere; as it is where `rows` are all, None."""
    return x if rows is None else x.new_zeros(every, x.shape[1]).index_copy_(0, rows, x)


def _among(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _join(x: Tensor) -> Tensor:
    """(B, H, L, D/H) -> (B, L, D)"""
    return x.transpose(1, 2).flatten(2)


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """q (N, H, K, D/H), k (N, H, D/H, L), v (N, H, L, D/H), hidden (N, 1, K, L) -> (N*K, D).

    Few queries are little for the fused kernel: on a CPU plain products on this layout take 2/3 of its time or less.
    """
    scores = q / math.sqrt(q.shape[-1]) @ k  # (N, H, K, L)
    if hidden is not None:
        scores = scores.masked_fill_(hidden, -torch.inf)
    return _join(scores.softmax(-1).to(v.dtype) @ v).flatten(0, 1)


def follow(slots: Tensor, cache: Cache, parents: Tensor) -> tuple[Tensor, Cache]:
    """Slots and cache of the captions that continue the rows `parents`.

    slots (N, K, L): which of its image's K keys each token so far of a caption has, among those of its position.
    """
    images, beams, length = slots.shape
    if len(parents) < images * beams:
        kept = parents[::beams] // beams
        cache = [{name: part.index_select(0, kept) for name, part in layer.items()} for layer in cache]
    return slots.flatten(0, 1).index_select(0, parents).view(-1, beams, length), cache


def follow_answers(slots: Tensor, cache: Cache, asked: Asked, parents: Tensor) -> tuple[Tensor, Cache, Asked]:
    """`follow` for the questions that are still being answered; the keys of their images stay."""
    questions, beams, _ = slots.shape
    images = [{name: layer.pop(name) for name in ("memory_k", "memory_v")} for layer in cache]
    after, left = follow(slots, cache, parents)
    if len(parents) < questions * beams:
        asked = asked.of(parents[::beams] // beams)
    return after, [own | of_image for own, of_image in zip(left, images, strict=True)], asked


def begin_answers(decoder: Decoder, memory: Tensor, prefix: Prefix, places: Places) -> tuple[Cache, Asked]:
    """Feed the questions in one packed pass: what the steps of their answers find in the cache, and where.

    memory (N, P, D). places: of prefix.tokens.
    """
    cache: Cache = []
    decoder(prefix.tokens, memory, places, cache=cache)
    real = prefix.tokens != decoder.pad  # (Q, T)
    rank, counts = ranks(prefix.images, len(memory))
    most = int(counts.max())
    cells = prefix.images * most + rank
    return cache, Asked(real.sum(1), prefix.tokens.shape[1], ~real[:, None, None], cells, (len(memory), most))
