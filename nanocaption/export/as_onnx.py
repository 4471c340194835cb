"""A trained model as two ONNX graphs: what is done once for a picture, and one token more.

    encoder_model.onnx
        in   pixel_values (N, 3, S, S) float32, normalised
        out  of each layer I of the decoder the picture's keys and values: present.I.encoder.key (N, H, D/H, P) and
             present.I.encoder.value (N, H, P, D/H)
    decoder_model_merged.onnx
        in   input_ids (N, K) int64, position_ids (1,) int64, these keys and values as past_key_values.I.encoder..., and
             those of the tokens so far, past_key_values.I.decoder.key and .value (N, K, H, L, D/H)
        out  logits (N, K, V); attention (N, K, P), what the token looks at, the mean over layers and heads;
             present.I.decoder.key and .value (N, K, H, L+1, D/H)

N pictures, K captions of each at once (beams), L tokens so far, 0 at the first step, which so needs no file of its own:
all three are free. S side in pixels, P patches, H heads, D width of the decoder, V vocabulary. All K captions of a
picture share its keys; whoever searches reorders the keys of the tokens. Names as such files have them elsewhere.
"""

import contextlib
import copy
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.decoder import Decoder
from nanocaption.model.encoder import PretrainedTower, of_transformers, quiet
from nanocaption.model.onnx_folder import graph_names, memory_names, token_names

OPSET = 18
_MOST_BYTES = 1.9e9  # of the weights of one file: protobuf ends at 2 GB


class _Once(nn.Module):
    """What is done once for a picture."""

    def __init__(self, model: ImageToTextModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        memory = model.memory_projection(model.memory_norm(model.encoder(pixel_values)))
        caches = [layer.memory_cache(memory) for layer in model.decoder.layers]
        return tuple(cache[name] for cache in caches for name in ("memory_k", "memory_v"))


class _OneMore(nn.Module):
    """One token more of every caption."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder
        never = torch.zeros(len(decoder.embedding.weight), dtype=torch.bool)
        never[decoder.never_chosen] = True
        self.register_buffer("never", never if decoder.never_chosen else None)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, memory: list[Tensor], past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """memory, past: of every layer its keys and its values."""
        decoder, present, seen = self.decoder, [], []
        x = decoder.embedding(input_ids) + decoder.position_embedding(position_ids)  # (N, K, D)
        for number, layer in enumerate(decoder.layers):
            q, k, v = (self._heads(part) for part in layer.self_qkv(layer.self_norm(x)).chunk(3, -1))  # (N, K, H, 1, .)
            k, v = torch.cat([past[2 * number], k], 3), torch.cat([past[2 * number + 1], v], 3)
            present += [k, v]
            weights = (q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)).softmax(-1)  # (N, K, H, 1, L+1)
            x = x + layer.self_out((weights @ v).flatten(2))
            q = self._heads(layer.cross_q(layer.cross_norm(x)))[:, :, :, 0].transpose(1, 2)  # (N, H, K, D/H)
            weights = (q / math.sqrt(q.shape[-1]) @ memory[2 * number]).softmax(-1)  # (N, H, K, P)
            seen.append(weights.mean(1))
            x = x + layer.cross_out((weights @ memory[2 * number + 1]).transpose(1, 2).flatten(2))
            x = x + layer.feedforward(layer.feedforward_norm(x))
        logits = F.linear(decoder.norm(x), decoder.embedding.weight)
        if self.never is not None:
            logits = logits.masked_fill(self.never, -30_000.0)
        return logits, torch.stack(seen).mean(0), *present

    def _heads(self, x: Tensor) -> Tensor:
        """(N, K, D) -> (N, K, H, 1, D/H)"""
        return x.unflatten(-1, (self.decoder.layers[0].heads, -1))[:, :, :, None]


@torch.inference_mode()
def write_graphs(model: ImageToTextModel, folder: Path) -> None:
    """Write both files. ValueError, with one line, where a part is too large for one file."""
    for part, what in ((model.encoder, "encoder"), (model.decoder, "decoder")):
        size = sum(4 * parameter.numel() for parameter in part.parameters())
        if size > _MOST_BYTES:
            raise ValueError(f"The {what} has {size / 1e9:.1f} GB of weights, and a file of ONNX holds 2 GB at most.")
    model = copy.deepcopy(model).float().eval()
    decoder, side = model.decoder, model.image_spec["size"]
    layers, heads, width = len(decoder.layers), decoder.layers[0].heads, decoder.embedding.weight.shape[1]
    pixels = torch.zeros(2, 3, side, side)
    if isinstance(model.encoder, PretrainedTower):
        model.encoder.tower = of_transformers(model.encoder)
        model.encoder.tower.set_attn_implementation("eager")  # fewer nodes than the fused one is taken apart into
    _fix_positions(model, pixels)
    images, beams, length = (torch.export.Dim(name) for name in ("images", "beams", "length"))
    once, (encoder_file, decoder_file) = _Once(model).eval(), graph_names("fp32")
    memory = list(once(pixels))
    _write(once, (pixels,), ({0: images},), (["pixel_values"], memory_names("present", layers)), folder / encoder_file)
    past = [torch.zeros(2, 3, heads, 4, width // heads) for _ in range(2 * layers)]
    given = (torch.full((2, 3), 5), torch.tensor([4]), memory, past)
    rows = {0: images, 1: beams}
    free = (rows, None, [{0: images} for _ in memory], [{**rows, 3: length} for _ in past])
    kept = [*memory_names("past_key_values", layers), *token_names("past_key_values", layers)]
    inputs = ["input_ids", "position_ids", *kept]
    outputs = ["logits", "attention", *token_names("present", layers)]
    _write(_OneMore(decoder).eval(), given, free, (inputs, outputs), folder / decoder_file)


def _write(
    module: nn.Module, given: tuple[object, ...], free: tuple[object, ...], names: tuple[list[str], list[str]],
    path: Path,
) -> None:  # fmt: skip
    """free: which sizes of what is `given` are. names: of inputs and outputs."""
    with without_advice(), quiet():
        torch.onnx.export(
            module, given, path, input_names=names[0], output_names=names[1], opset_version=OPSET, dynamo=True,
            dynamic_shapes=free, external_data=False, verbose=False,
        )  # fmt: skip


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Exporter and quantisers tell of their own insides, and one of them sets the logging of the whole program."""
    root = logging.root
    before, level, handlers = root.manager.disable, root.level, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.setLevel(level)
        root.handlers[:] = handlers


def _fix_positions(model: ImageToTextModel, pixels: Tensor) -> None:
    """Position embeddings at the one size of the pictures become constants: resizing in a graph rounds otherwise."""
    for module in model.encoder.modules():
        if not hasattr(module, "interpolate_pos_encoding"):
            continue
        made: list[Tensor] = []
        module.interpolate_pos_encoding = _kept(module.interpolate_pos_encoding, made)
        model.encoder(pixels)
        if made:
            module.interpolate_pos_encoding = functools.partial(_constant, made[0].clone())
        else:  # not asked for at this size
            del module.interpolate_pos_encoding


def _kept(make: Callable[..., Tensor], made: list[Tensor]) -> Callable[..., Tensor]:
    def keep(*arguments: object) -> Tensor:
        made.append(make(*arguments))
        return made[-1]

    return keep


def _constant(value: Tensor, *_: object) -> Tensor:
    return value
