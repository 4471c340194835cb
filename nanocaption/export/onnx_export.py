"""The folder of `--format onnx`: graphs, tokenizer and what a runtime without torch needs, see model/onnx_folder.py."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import torch

from nanocaption.base import hub
from nanocaption.base.tensors import State
from nanocaption.base.version import VERSION
from nanocaption.data.tokenizer import END, PAD, START, UNK
from nanocaption.export.as_onnx import OPSET, write_graphs
from nanocaption.export.as_transformers import drawn_pictures
from nanocaption.model import exported, onnx_folder
from nanocaption.model.captioner import ImageToTextModel, assemble
from nanocaption.model.captions import decode_pictures
from nanocaption.model.onnx_captioner import OnnxCaptioner
from nanocaption.model.onnx_folder import graph_names
from nanocaption.model.options import Options, search_options

_PICTURES = 8  # drawn, that an export is compared on
_LARGE = 256  # numbers: what has fewer stays float32
_MOST = {"fp32": 1e-3, "int8": 0.1}  # by how much of their spread logits may be others
Result = TypeVar("Result")


class Compared(NamedTuple):
    """How an export does beside the model it was made from, on some pictures."""

    precision: str
    pictures: int
    captions: int  # by greedy and beam search
    same: int  # of these, with the same ids
    logits: float  # the mean difference, as a share of the logits' standard deviation
    bytes: int  # of the two graphs
    seconds: float  # for the captions
    torch_seconds: float  # for the same by torch, on as many threads


def files_of(precision: str) -> tuple[str, ...]:
    """What a folder holds. precision: "fp32", "int8" or "both"."""
    wanted = onnx_folder.PRECISIONS if precision == "both" else (precision,)
    return (*(name for one in wanted for name in graph_names(one)), *onnx_folder.OTHERS)


def write_onnx(folder: Path, state: State, card: str, precision: str) -> list[Compared]:
    """Write `folder` from a checkpoint's state; compare each precision with torch before it takes its place.

    Raises ValueError with one line where a graph does not give the same, OSError for a disk.
    """
    with exported.made_beside(folder, files_of(precision), onnx_folder.is_plain_onnx_export) as new:
        found = fill(new, state, card, precision)
    drop_other_graphs(folder, precision)
    return found


def fill(new: Path, state: State, card: str, precision: str, page: Sequence[str] = ()) -> list[Compared]:
    """The files of `write_onnx`, into the empty folder `new`. page: what will lie beside them for browsers."""
    model = assemble(state)
    write_graphs(model, new)
    if precision != "fp32":
        quantize(new)
    if precision == "int8":
        for name in graph_names("fp32"):
            (new / name).unlink()
    (new / hub.TOKENIZER).write_text(state["tokenizer"], encoding="utf-8")
    (new / "README.md").write_text(card, encoding="utf-8")
    exported.write_preprocessing(new, state)
    exported.write_json(new / hub.CONFIG, _describe(model, state, new) | ({"page": list(page)} if page else {}))
    wanted = onnx_folder.PRECISIONS if precision == "both" else (precision,)
    return [compare(model, OnnxCaptioner(new, one)) for one in wanted]


def drop_other_graphs(folder: Path, precision: str) -> None:
    """Of an older export, which the present one took the place of."""
    for name in {*graph_names("fp32"), *graph_names("int8")} - {*files_of(precision)}:
        (folder / name).unlink(missing_ok=True)


def quantize(folder: Path) -> None:
    """Write beside the graphs of float32 in `folder` those whose large weights are stored with 8 bits.

    Each output of a map, and each row of the embedding, has a scale of its own (DequantizeLinear). What meets the
    weights stays float32, and the runtime makes float32 of them once, when it loads them (OnnxCaptioner): so captions
    are the same on every processor, in a browser, alone and in any batch, and take no longer. Rounding what meets the
    weights as well, as quantize_dynamic does, has one scale for a whole batch: of 40 pictures 5 got another caption in
    a batch than alone, and a few numbers of a ViT's that are hundreds of times as large as the others spoil the rest.
    """
    for name, small in zip(graph_names("fp32"), graph_names("int8"), strict=True):
        model = onnx.load(folder / name)
        _store_with_8_bits(model.graph)
        onnx.save(model, folder / small)


def _store_with_8_bits(graph: onnx.GraphProto) -> None:
    uses: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            uses.setdefault(name, set()).add((node.op_type, place))
    stored, nodes = [], []
    for tensor in graph.initializer:
        kind = uses.get(tensor.name, set()) & {("MatMul", 1), ("Gather", 0)}
        values = onnx.numpy_helper.to_array(tensor)
        if not kind or values.dtype != np.float32 or values.ndim != 2 or values.size < _LARGE:
            stored.append(tensor)
            continue
        axis = 0 if ("Gather", 0) in kind else 1  # (V, D) by row, (in, out) by output
        scale = np.maximum(np.abs(values).max(1 - axis, keepdims=True), 1e-12) / 127
        whole = np.rint(values / scale).astype(np.int8)
        names = [f"{tensor.name}_quantized", f"{tensor.name}_scale"]
        stored += [onnx.numpy_helper.from_array(part, name) for part, name in
                   zip((whole, scale.ravel().astype(np.float32)), names, strict=True)]  # fmt: skip
        nodes.append(onnx.helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis))
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(stored)
    graph.node.extend(nodes)


def _describe(model: ImageToTextModel, state: State, folder: Path) -> dict[str, object]:
    """The content of config.json."""
    decoder, encoder, side = model.decoder, model.encoder, model.image_spec["size"]
    with torch.inference_mode():
        patches = model.encode(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
    settings = ("BEAM_SIZE", "LENGTH_PENALTY", "MIN_LENGTH", "NO_REPEAT_NGRAM")
    hashed = [hub.TOKENIZER, *(path.name for path in folder.glob("*.onnx"))]
    return {
        "model_type": onnx_folder.MODEL_TYPE, "format_version": onnx_folder.FORMAT_VERSION, "opset": OPSET,
        "library_name": exported.MODEL_TYPE, "library_version": VERSION, "vocab_size": len(decoder.embedding.weight),
        "pad_token_id": PAD, "bos_token_id": START, "decoder_start_token_id": START, "eos_token_id": END,
        "unk_token_id": UNK,
        "sizes": {
            "layers": len(decoder.layers), "heads": decoder.layers[0].heads, "width": decoder.embedding.weight.shape[1],
            "vocab_size": len(decoder.embedding.weight), "max_seq_len": decoder.max_seq_len, "patches": patches,
            "grid": side // encoder.patch_size,
        },
        "image_spec": model.image_spec,
        "settings": {name: state["config"][name] for name in settings}
        | ({"NO_BAD_ENDINGS": True} if state["config"].get("NO_BAD_ENDINGS") else {}),
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(hashed)},
    }  # fmt: skip


@torch.inference_mode()
def compare(ours: ImageToTextModel, export: OnnxCaptioner, pixels: torch.Tensor | None = None) -> Compared:
    """An export beside the model it was made from: ids of greedy and beam search, logits of whole captions.

    pixels: uint8 (N, 3, S, S); None: drawn pictures. ValueError, with one line, where the ids of fp32 are not the same,
    or the logits are too far from ours.
    """
    assert ours.tokenizer is not None and ours.about is not None
    tokenizer, precision = ours.tokenizer, export.precision
    pixels = drawn_pictures(ours, _PICTURES) if pixels is None else pixels
    array, search = pixels.permute(0, 2, 3, 1).numpy(), search_options(ours.about["config"])
    kinds = [Options(), search] if search.beam_size > 1 else [search]
    expected, torch_seconds = _timed(lambda: [decode_pictures([ours], tokenizer, [pixels], kind) for kind in kinds])
    found, seconds = _timed(lambda: [export.decode(array, kind) for kind in kinds])
    pairs = [(own[0].ids, theirs[0].ids) for ours_of, theirs_of in zip(expected, found, strict=True)
             for own, theirs in zip(ours_of, theirs_of, strict=True)]  # fmt: skip
    different = [number for number, (own, theirs) in enumerate(pairs) if own != theirs]
    far = _logits_apart(ours, export, pixels, [own for own, _ in pairs[: len(pixels)]])
    if different and precision == "fp32":
        number = different[0]
        raise ValueError(
            f"onnxruntime does not give the same caption: picture {number % len(pixels)}, {pairs[number][1]} instead "
            f"of {pairs[number][0]}, with logits {far:.1e} of their spread apart. Nothing was written."
        )
    if not far <= _MOST[precision]:
        advice = "" if precision == "fp32" else " Export it with --precision fp32."
        raise ValueError(
            f"onnxruntime's logits with {precision} are {far:.1%} of their spread apart from torch's, more than "
            f"{_MOST[precision]:.1%}. Nothing was written.{advice}"
        )
    size = sum((export.export.folder / name).stat().st_size for name in graph_names(precision))
    return Compared(precision, len(pixels), len(pairs), len(pairs) - len(different), far, size, seconds, torch_seconds)


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _logits_apart(
    ours: ImageToTextModel, export: OnnxCaptioner, pixels: torch.Tensor, captions: list[list[int]]
) -> float:
    """The mean difference of the logits of these captions' tokens, divided by the standard deviation of ours."""
    longest = max(1, *map(len, captions))
    memory = export.encode(pixels.permute(0, 2, 3, 1).numpy())
    steps = (ours.start_decoding(pixels), export.start_decoding(memory))
    apart, spread = [], []
    for place in range(longest):
        tokens = np.array([START if not place else ids[place - 1] if place <= len(ids) else END for ids in captions])
        real = np.array([place < max(1, len(ids)) for ids in captions])
        own, theirs = steps[0](torch.from_numpy(tokens), None).float().numpy()[real], steps[1](tokens, None)[real]
        apart.append(np.abs(theirs - own).mean())
        spread.append(own.std())
    return float(np.mean(apart) / np.mean(spread))
