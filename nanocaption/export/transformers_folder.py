"""The folder of `--format transformers`: what VisionEncoderDecoderModel, AutoTokenizer and AutoImageProcessor load."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nanocaption.base import hub
from nanocaption.base.tensors import State
from nanocaption.base.version import VERSION
from nanocaption.data.tokenizer import END, PAD, START
from nanocaption.export.as_transformers import as_transformers, drawn_pictures
from nanocaption.model import exported
from nanocaption.model.captioner import ImageToTextModel, assemble
from nanocaption.model.captions import decode_pictures
from nanocaption.model.encoder import quiet
from nanocaption.model.options import search_options

FILES = (
    hub.WEIGHTS, "generation_config.json", hub.TOKENIZER, "tokenizer_config.json", "special_tokens_map.json",
    "preprocessor_config.json", "README.md", hub.CONFIG,
)  # fmt: skip
_MADE_BY = "nanocaption_version"  # the key of config.json by which such a folder is known again
_PICTURES = 8  # drawn, that an export is compared on
_MOST = 1e-4  # between logits, besides what float32 itself rounds in ours


class Compared(NamedTuple):
    """How far a folder's model is from ours on some pictures."""

    pictures: int
    logits: float  # the largest difference
    captions: int  # by greedy and beam search, all with the same ids


def write_transformers(folder: Path, state: State, card: str) -> Compared:
    """Write `folder` from a checkpoint's state, and compare what loads from it with ours before it takes its place.

    Raises ValueError with one line where the model cannot be expressed or does not give the same, OSError for a disk.
    """
    with exported.made_beside(folder, FILES, is_transformers_export) as new:
        with quiet():
            model = as_transformers(state)
            setattr(model.config, _MADE_BY, VERSION)
            model.save_pretrained(new)
        tokenizer = json.loads(state["tokenizer"])
        # The one space that a caption begins with for its first word is no part of the text.
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], strip]}
        (new / hub.TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
        exported.write_preprocessing(new, state)
        # The processors of ViT, DeiT and SigLIP refuse a grey picture, or take it for three; this one converts it.
        picture = json.loads((new / "preprocessor_config.json").read_text(encoding="utf-8"))
        exported.write_json(new / "preprocessor_config.json", picture | {"image_processor_type": "CLIPImageProcessor"})
        (new / "README.md").write_text(card, encoding="utf-8")
        return compare(assemble(state), new)


def is_transformers_export(folder: Path) -> bool:
    """Whether a folder was written by `write_transformers`."""
    try:
        about = json.loads((folder / hub.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and _MADE_BY in about


@torch.inference_mode()
def compare(ours: ImageToTextModel, folder: Path, pixels: Tensor | None = None) -> Compared:
    """What transformers loads from `folder`, beside `ours`: logits of whole captions, ids of greedy and beam search.

    pixels: uint8 (N, 3, S, S); None: drawn pictures. ValueError, with one line, where they are not the same.
    """
    from transformers import VisionEncoderDecoderModel

    with quiet():
        theirs = VisionEncoderDecoderModel.from_pretrained(folder, local_files_only=True).eval()
    assert ours.tokenizer is not None and ours.about is not None
    pixels = drawn_pictures(ours, _PICTURES) if pixels is None else pixels
    normal = (pixels.float() / 255 - ours.mean) / ours.std
    # transformers has no rule against bad endings: the search is compared without it.
    search, far, same = search_options(ours.about["config"])._replace(no_bad_endings=False), 0.0, 0
    for beams in sorted({1, search.beam_size}):
        found = decode_pictures([ours], ours.tokenizer, [pixels], search._replace(beam_size=beams))
        ids = [captions[0].ids for captions in found]
        rows = theirs.generate(pixel_values=normal, num_beams=beams).tolist()
        for number, (own, row) in enumerate(zip(ids, rows, strict=True)):
            if own != written(row[1:]):
                raise ValueError(
                    f"transformers does not give the same caption: picture {number}, {beams} beams, {written(row[1:])} "
                    f"instead of {own}. Nothing was written; this model can be exported as nanocaption."
                )
        same += len(ids)
        tokens = torch.full((len(ids), 1 + max(map(len, ids))), PAD)
        for row_of, own in zip(tokens, ids, strict=True):
            # An untrained model may write <pad>, which ours takes for padding where it reads.
            row_of[: 1 + len(own)] = torch.tensor([START, *(token or END for token in own)])
        expected = ours(pixels, tokens)  # 0 for padding
        logits = theirs(pixel_values=normal, decoder_input_ids=tokens, decoder_attention_mask=torch.ones_like(tokens))
        real = torch.arange(tokens.shape[1]) <= torch.tensor([[len(own)] for own in ids])
        far = max(far, (logits.logits - expected).abs()[real].max().item())
    rounding = (_in_float64(ours, normal, tokens) - expected).abs()[real].max().item()
    if not far <= _MOST + 4 * rounding:
        raise ValueError(
            f"transformers gives other logits, by {far:.1e} where our own rounding is {rounding:.1e}: its encoder is "
            "not followed closely enough. Nothing was written; this model can be exported as nanocaption."
        )
    return Compared(len(pixels), far, same)


def _in_float64(model: ImageToTextModel, normal: Tensor, tokens: Tensor) -> Tensor:
    twice = copy.deepcopy(model).double()
    return twice(normal.double(), tokens).float()


def written(ids: Sequence[int]) -> list[int]:
    """Of what `generate` gives after <start>, the tokens up to <end>; padding fills up the shorter rows behind it."""
    ids = list(ids)
    return ids[: ids.index(END)] if END in ids else ids
