"""The captioner: an image encoder, and a Transformer decoder that attends to all patch features.

Shapes: N images, B captions (each belongs to one image), T tokens, R real tokens of the batch (padding left out),
P patches, E encoder width, D decoder width, H heads, V vocabulary, K captions per image decoded at once (beams).

The decoder is pre-norm (Xiong et al. 2020) with learned positions and tied token embeddings (Press & Wolf 2017).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import encoder as encoders
import pretrained
from packing import Places, find_places, pack, unpack

# per layer: "memory_k" (N, H, D/H, P), "memory_v" (N, H, P, D/H); of the tokens so far "k" (N, H, D/H, C*K) and
# "v" (N, H, C*K, D/H), where C is how many of them have room
Cache = list[dict[str, Tensor]]
_ROOM = 16  # tokens by which that grows
# How many patches a CPU encodes at a time without gradients, those of 16 images of 224 x 224: their activations stay in
# its cache and on pages it already has. 50 such images in a ViT-Tiny take 15-20 % less time so.
_CPU_PATCHES = 16 * 14**2


class ImageToTextModel(nn.Module):
    """Images and the tokens so far -> logits of each next token.

    encoder_model_name: Hub id or folder of a pretrained tower; None = a ViT from scratch of the vit_* sizes.
    encoder_config, image_spec: of a checkpoint, to rebuild a pretrained tower without loading or downloading it.
    image_size: side of the input in pixels; None = the pretrained encoder's own.
    Raises ValueError with one line where the encoder cannot be loaded, or its patches are wider than the images.
    """

    def __init__(
        self,
        decoder_vocab_size: int,
        decoder_embed_dim: int = 256,
        decoder_heads: int = 4,
        decoder_layers: int = 3,
        decoder_ff_dim: int = 1024,
        decoder_max_seq_len: int = 40,
        decoder_dropout: float = 0.1,
        decoder_pad_idx: int = 0,
        encoder_model_name: str | None = None,
        freeze_encoder: bool = False,
        image_size: int | None = None,
        vit_patch_size: int = 8,
        vit_stem: str = "conv",
        vit_embed_dim: int = 128,
        vit_layers: int = 3,
        vit_heads: int = 4,
        encoder_config: dict[str, Any] | None = None,
        image_spec: dict[str, Any] | None = None,
    ):
        super().__init__()
        if encoder_model_name is None:
            image_size = image_size or 64
            sizes = (image_size, vit_patch_size, vit_stem, vit_embed_dim, vit_layers, vit_heads)
            self.encoder = encoders.VisionTransformer(*sizes)
            self.image_spec = encoders.scratch_image_spec(image_size)
        elif encoder_config is not None and image_spec is not None:
            self.encoder = encoders.rebuild_pretrained(encoder_config)
            self.image_spec = image_spec
        else:
            self.encoder, self.image_spec = encoders.load_pretrained(encoder_model_name)
            if image_size is not None and image_size > (patch := self.encoder.patch_size) and image_size % patch:
                lower = image_size // patch * patch
                raise ValueError(
                    f"IMAGE_SIZE = {image_size}: must be a multiple of the encoder's patch of {patch}, or the last "
                    f"pixels are not seen. Give {lower} or {lower + patch}."
                )
            if image_size is not None:
                self.image_spec = {**self.image_spec, "size": image_size, "resize": image_size}
        side, patch = self.image_spec["size"], self.encoder.patch_size
        if side < patch:
            raise ValueError(f"IMAGE_SIZE = {side}: less than one patch of the encoder. Give {patch} or more, or None.")
        self.freeze_encoder = freeze_encoder
        if freeze_encoder:
            self.encoder.requires_grad_(False)
        # Some towers (CLIP) give patch features without a final norm.
        self.memory_norm = nn.LayerNorm(self.encoder.width)
        self.memory_projection = nn.Linear(self.encoder.width, decoder_embed_dim)
        self.decoder = Decoder(
            decoder_vocab_size, decoder_embed_dim, decoder_heads, decoder_layers, decoder_ff_dim,
            decoder_max_seq_len, decoder_dropout, decoder_pad_idx,
        )  # fmt: skip
        self.register_buffer("mean", torch.tensor(self.image_spec["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.image_spec["std"]).view(3, 1, 1), persistent=False)
        self._initialise()
        self.encode_in_parts = True  # on a CPU, without gradients
        self.tokenizer = self.about = None  # from_pretrained sets them: a model that can caption files by itself

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "ImageToTextModel":
        """The model of an exported folder, or of the Hub by its id and a revision, in eval mode on the CPU.

        A folder needs no network. Raises ValueError with one line where there is none or it is damaged.
        """
        return pretrained.load(name, revision, build)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write such a folder, of a model that from_pretrained gave; see pretrained.write for what is refused."""
        pretrained.save(self, Path(folder))

    def caption(self, path: str | Path, **options: Any) -> str:
        """The best caption of a picture file; options as in pretrained.captions, which gives more than this one."""
        return pretrained.captions(self, [path], **options)[0][0].text

    def _initialise(self) -> None:
        """Linear and embedding weights of the decoder normal(0, D ** -0.5), biases 0; a pretrained encoder stays.

        GPT-2's 0.02 suits widths near 768; at 128 it leaves attention flat for several epochs. Layers that write into
        the residual stream start smaller by sqrt(number of such layers), so that its variance does not grow with depth.
        """
        width = self.memory_projection.out_features
        for module in self.decoder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=width**-0.5)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        writers = [w for layer in self.decoder.layers for w in (layer.self_out, layer.cross_out, layer.feedforward[2])]
        for writer in writers:
            nn.init.normal_(writer.weight, std=(writer.in_features * len(writers)) ** -0.5)
        scratch = [] if isinstance(self.encoder, encoders.PretrainedTower) else self.encoder.modules()
        for module in (self.memory_projection, *scratch):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> "ImageToTextModel":
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()  # a frozen encoder has no dropout
        return self

    def compile_parts(self) -> None:
        """Compile the encoder and the decoder, in place and when first used; parameter names stay.

        The decoder's sizes change with every batch and are compiled as unknowns: the number of compilations is bounded,
        whatever the captions' lengths.
        """
        self.decoder.compile(dynamic=True)
        self.encoder.compile()

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S), uint8 as the dataset gives them or float and normalised -> features (N, P, E)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            few = images.device.type == "cpu" and not torch.is_grad_enabled() and self.encode_in_parts
            patches = (images.shape[-1] // self.encoder.patch_size) ** 2
            parts = images.split(max(1, _CPU_PATCHES // patches)) if few else (images,)
            return torch.cat([self.encoder(self._normalised(part)) for part in parts])

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std if images.dtype == torch.uint8 else images

    def forward(self, images: Tensor, decoder_input_tokens: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `decoder_input_tokens` (B, T).

        images: (N, 3, S, S) as for `encode`, or features (N, P, E) that `encode` gave.
        image_index: (B,), which image each caption belongs to; None = one caption per image, in order.
        Padding stands at the end, where no real token sees it. It is never computed; its logits are 0.
        """
        places = find_places(decoder_input_tokens, self.decoder.pad, image_index, len(images))
        logits = self.decoder.logits(self.hidden(images, decoder_input_tokens, places))  # (R, V)
        return unpack(logits, places.in_captions, places.captions)

    def hidden(self, images: Tensor, decoder_input_tokens: Tensor, places: Places) -> Tensor:
        """`forward` without the last map, for the real tokens only, caption after caption: (R, D)."""
        return self.decoder(decoder_input_tokens, self.memory(images), places)

    def memory(self, images: Tensor) -> Tensor:
        """Images or features -> what the decoder attends to, (N, P, D)."""
        features = images if images.ndim == 3 else self.encode(images)
        return self.memory_projection(self.memory_norm(features.to(self.memory_norm.weight.dtype)))

    @torch.inference_mode()
    def start_decoding(self, images: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The step function that decode.py works with, holding the KV cache of these images.

        step(tokens (N*K,), parents (N*K,) or None) -> logits (N*K, V) of the next token. `parents` says which row of
        the step before each row continues; rows stay with their image, so the K captions of image n are rows
        n*K .. n*K+K-1 and share its cross-attention keys, computed once here. Where whole images are missing from
        `parents`, they are dropped, and N is smaller from there on.
        """
        memory = self.memory(images)
        cache: Cache = [layer.memory_cache(memory) for layer in self.decoder.layers]
        slots = torch.empty(len(memory), 0, 0, dtype=torch.long, device=memory.device)

        @torch.inference_mode()
        def step(tokens: Tensor, parents: Tensor | None = None) -> Tensor:
            nonlocal slots, cache
            if slots.shape[2] and parents is not None:
                slots, cache = _follow(slots, cache, parents)
            beams = torch.arange(len(tokens) // len(slots), device=tokens.device)  # (K,)
            newest = beams.expand(len(slots), -1)[:, :, None]  # (N, K, 1)
            slots = torch.cat([slots, newest], 2) if slots.shape[2] else newest
            # All K captions of an image attend to the keys of all K, and each is shown its own: that spares reordering
            # the cache at every step, and turns K products with a vector into one with a matrix.
            hidden = (slots[..., None] != beams).flatten(2)[:, None] if len(beams) > 1 else None  # (N, 1, K, L*K)
            return self.decoder.step(tokens, slots.shape[2] - 1, cache, hidden)

        return step

    @torch.inference_mode()
    def cross_attention(
        self, images: Tensor, decoder_input_tokens: Tensor, image_index: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """What each token looks at, in one pass over whole captions, with the arguments of `forward`.

        Returns (weights (layers, B, T, H, P), side): weights of the attention over an image's features, which sum to
        1 over P and are 0 for padding; the last side * side of the P are the grid of patches, row by row. The
        features before them are a tower's class and register tokens.
        """
        memory, tokens = self.memory(images), decoder_input_tokens
        places = find_places(tokens, self.decoder.pad, image_index, len(memory))
        weights = self.decoder.cross_attention(tokens, memory, places)  # layers x (R, H * P)
        heads, patches = self.decoder.layers[0].heads, memory.shape[1]
        stacked = torch.stack([unpack(layer, places.in_captions, places.captions) for layer in weights])
        # A grid of `side` with e extra tokens is side^2 + e < (side + 1)^2, as long as e <= 2 * side.
        return stacked.view(*stacked.shape[:3], heads, patches), math.isqrt(patches)

    def arguments(self) -> dict[str, Any]:
        """What rebuilds a pretrained encoder from a checkpoint, JSON-ready; empty for one from scratch."""
        if isinstance(self.encoder, encoders.PretrainedTower):
            return {"encoder_config": self.encoder.config, "image_spec": self.image_spec}
        return {}


def build(config: dict[str, Any], vocab_size: int, arguments: dict[str, Any] | None = None) -> ImageToTextModel:
    """The model that `config` (settings by name) describes. arguments: of a checkpoint, see `arguments()`."""
    names = (
        "ENCODER_MODEL_NAME", "FREEZE_ENCODER", "IMAGE_SIZE",
        "VIT_PATCH_SIZE", "VIT_STEM", "VIT_EMBED_DIM", "VIT_LAYERS", "VIT_HEADS",
        "DECODER_EMBED_DIM", "DECODER_HEADS", "DECODER_LAYERS", "DECODER_FF_DIM", "DECODER_DROPOUT",
    )  # fmt: skip
    return ImageToTextModel(
        decoder_vocab_size=vocab_size,
        decoder_max_seq_len=config["MAX_SEQ_LEN"],
        decoder_pad_idx=config["PAD_TOKEN_ID"],
        **{name.lower(): config[name] for name in names},
        **(arguments or {}),
    )


class Decoder(nn.Module):
    """Token and position embeddings, `layers` decoder layers, final norm, output map tied to the embeddings."""

    def __init__(
        self,
        vocab_size: int,
        width: int,
        heads: int,
        layers: int,
        ff_dim: int,
        max_seq_len: int,
        dropout: float,
        pad: int,
    ):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.pad = pad
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=pad)
        self.position_embedding = nn.Embedding(max_seq_len, width)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList([DecoderLayer(width, heads, ff_dim, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, memory: Tensor, places: Places) -> Tensor:
        """tokens (B, T) with its places, memory (N, P, D) -> hidden states of the real tokens (R, D)."""
        x = self._embed(tokens, places)
        for layer in self.layers:
            x = layer(x, places, memory)
        return self.norm(x)

    def _embed(self, tokens: Tensor, places: Places) -> Tensor:
        captions, length = tokens.shape
        if length > self.max_seq_len:
            raise ValueError(f"{length} tokens: the decoder holds at most {self.max_seq_len} (MAX_SEQ_LEN).")
        real = tokens.flatten().index_select(0, places.in_captions)  # (R,)
        return self.dropout(self.embedding(real) + self.position_embedding(places.positions))

    def cross_attention(self, tokens: Tensor, memory: Tensor, places: Places) -> list[Tensor]:
        """Per layer the weights (R, H * P) of the real tokens' attention over the memory; arguments as `forward`."""
        x = self._embed(tokens, places)
        found = []
        for layer in self.layers:
            found.append(layer.cross_attention(x, places, memory))
            x = layer(x, places, memory)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)

    def step(self, tokens: Tensor, position: int, cache: Cache, hidden: Tensor | None) -> Tensor:
        """tokens (N*K,) at `position` -> logits (N*K, V). hidden: see DecoderLayer.step."""
        if position >= self.max_seq_len:
            raise ValueError(f"Token {position + 1}: the decoder holds at most {self.max_seq_len} (MAX_SEQ_LEN).")
        x = self.embedding(tokens) + self.position_embedding.weight[position]  # (N*K, D)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer.step(x, position, layer_cache, hidden)
        return self.logits(self.norm(x))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention over the patches, feed-forward; each pre-norm with a residual."""

    def __init__(self, width: int, heads: int, ff_dim: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.self_norm = nn.LayerNorm(width)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_q = nn.Linear(width, width)
        self.cross_kv = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, ff_dim), nn.GELU(), nn.Linear(ff_dim, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, places: Places, memory: Tensor) -> Tensor:
        """x: real tokens (R, D), at `places` of their captions and images; memory (N, P, D)."""
        x = self._attend_to_caption(x, places)
        q, k, v = self._cross(x, places, memory)
        mixed = _join(F.scaled_dot_product_attention(q, k, v))  # (N, Q, D)
        x = x + self.dropout(self.cross_out(pack(mixed, places.in_images)))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))

    def _attend_to_caption(self, x: Tensor, places: Places) -> Tensor:
        qkv = unpack(self.self_qkv(self.self_norm(x)), places.in_captions, places.captions)  # (B, T, 3D)
        q, k, v = self._split(qkv, 3)  # each (B, H, T, D/H)
        mixed = _join(F.scaled_dot_product_attention(q, k, v, is_causal=True))  # (B, T, D)
        return x + self.dropout(self.self_out(pack(mixed, places.in_captions)))

    def _cross(self, x: Tensor, places: Places, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H, Q, D/H), keys and values (N, H, P, D/H) of the attention over the memory."""
        # All tokens of an image's captions are queries to one set of keys, made once per image.
        (q,) = self._split(unpack(self.cross_q(self.cross_norm(x)), places.in_images, places.images), 1)
        return (q, *self._split(self.cross_kv(memory), 2))

    def cross_attention(self, x: Tensor, places: Places, memory: Tensor) -> Tensor:
        """The weights (R, H * P) that `forward` gives the memory; arguments as there."""
        q, k, _ = self._cross(self._attend_to_caption(x, places), places, memory)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)  # (N, H, Q, P)
        return pack(_join(weights), places.in_images)

    def memory_cache(self, memory: Tensor) -> dict[str, Tensor]:
        k, v = self._split(self.cross_kv(memory), 2)
        k = k.transpose(-1, -2)
        return {"memory_k": k.contiguous(), "memory_v": v.contiguous(), "k": k[..., :0], "v": v[:, :, :0]}

    def step(self, x: Tensor, position: int, cache: dict[str, Tensor], hidden: Tensor | None) -> Tensor:
        """One new token per row, x (N*K, D); its keys and values are put into the cache.

        hidden (N, 1, K, L*K): True for what a row may not see of the L tokens so far, this one included; None: nothing.
        """
        images, width = len(cache["memory_k"]), x.shape[1]
        beams = len(x) // images
        end = (position + 1) * beams
        if end > cache["v"].shape[2]:
            cache["k"], cache["v"] = F.pad(cache["k"], (0, _ROOM * beams)), F.pad(cache["v"], (0, 0, 0, _ROOM * beams))
        qkv = self.self_qkv(self.self_norm(x)).view(images, beams, 3 * width)
        q, k, v = self._split(qkv, 3)  # each (N, H, K, D/H)
        cache["k"][..., end - beams : end] = k.transpose(-1, -2)
        cache["v"][:, :, end - beams : end] = v
        x = x + self.self_out(_attend(q, cache["k"][..., :end], cache["v"][:, :, :end], hidden))
        (q,) = self._split(self.cross_q(self.cross_norm(x)).view(images, beams, width), 1)
        x = x + self.cross_out(_attend(q, cache["memory_k"], cache["memory_v"], None))
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


def _follow(slots: Tensor, cache: Cache, parents: Tensor) -> tuple[Tensor, Cache]:
    """Slots and cache of the captions that continue the rows `parents`.

    slots (N, K, L): which of its image's K keys each token so far of a caption has, among those of its position.
    """
    images, beams, length = slots.shape
    if len(parents) < images * beams:
        kept = parents[::beams] // beams
        cache = [{name: part.index_select(0, kept) for name, part in layer.items()} for layer in cache]
    return slots.flatten(0, 1).index_select(0, parents).view(-1, beams, length), cache
