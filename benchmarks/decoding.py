"""Time of beam search against transformers' VisionEncoderDecoderModel.generate, side by side on the CPU.

    python benchmarks/decoding.py [--images N] [--beams 3] [--repeats 3] [--threads N]

Both sides have a ViT of the same random weights and a decoder of the same sizes; the peer's is a GPT-2 with
cross-attention, the usual choice. Two kinds: a ViT-Tiny at 224 pixels with the decoder of recipes/flickr8k_vit_tiny.py,
and the sizes that config.py itself has (a ViT of 2 layers at 64 pixels). They alternate within one process.

Random weights would end captions anywhere, so each image is given a length at which all its captions end, on both sides
by the same change of the logits. The lengths are spread as those of the captions that the recipe's trained model makes
of Flickr8k's dev pictures: mean 13.3 tokens, standard deviation 3.1.

Three rows each: pixels to captions; the same from the encoder's features on, which is what the two do differently; the
encoder alone, which is the same network. 100 pictures at once (config.py's EVAL_BATCH_SIZE) or, in rows of their own,
50 and 10: the more, the better for us. Beyond about 60 the peer's copies of the keys, one for each beam, are larger
than what the C library keeps for reuse, so that each is new pages from the system. About 50 suit it best: in the rows
named "divided" it takes the 100 in two parts.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.data.tokenizer import END, PAD, START  # noqa: E402
from nanocaption.model import decode  # noqa: E402
from nanocaption.model.captioner import ImageToTextModel, build_model  # noqa: E402
from nanocaption.model.encoder import scratch_image_spec  # noqa: E402
from nanocaption.model.options import Options  # noqa: E402

LONGEST = 30
RECIPE = str(ROOT / "recipes" / "flickr8k_vit_tiny.py")
ONE_BLOCK = (RECIPE, "--encoder-layers", "none")  # of the encoder, as the peer has it


class Kind(NamedTuple):
    """Sizes to compare at."""

    suffix: str  # of the rows' names
    images: int  # at once
    argv: tuple[str, ...]  # of config.load: the decoder
    encoder: dict[str, int]  # of transformers.ViTConfig
    parts: int = 1  # in which the peer takes the images


TINY = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768,
        "image_size": 224, "patch_size": 16}  # fmt: skip
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512,
         "image_size": 64, "patch_size": 8}  # fmt: skip
KINDS = (
    Kind("", 100, ONE_BLOCK, TINY),
    Kind("_divided", 100, ONE_BLOCK, TINY, parts=2),
    Kind("_50", 50, ONE_BLOCK, TINY),
    Kind("_10", 10, ONE_BLOCK, TINY),
    Kind("_default_sizes", 100, (), SMALL),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Captioning time against transformers.")
    parser.add_argument("--images", type=int, help="at once [of each comparison its own]")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    print(f"{a.beams} beams, {a.threads} thread(s), median of {a.repeats}")
    for row in measure(a.images, a.beams, a.repeats, a.threads):
        low, high = row["range"]
        print(
            f"{row['name']:<32} ours {row['ours']:7.3f} {row['unit']}   transformers {row['peer']:7.3f} {row['unit']}"
            f"   {row['ratio']:4.2f}x faster [{low:.2f} - {high:.2f}]"
        )


def measure(
    images: int | None = None,
    beams: int = 3,
    repeats: int = 3,
    threads: int | None = None,
    kinds: Sequence[Kind] = KINDS,
) -> list[dict]:
    """[{"name", "ours", "peer", "ratio", "unit", "range"}]: median seconds of each side for the whole batch, and the
    median of peer / ours over the repeats with its smallest and largest value.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    times: dict[str, list[tuple[float, float]]] = {}
    try:
        for kind in kinds:
            sides = make_sides(kind, images or kind.images, beams)
            for repeat in range(repeats + 1):
                for name, (ours, peer) in sides.items():
                    pair = timed(ours), timed(peer)
                    if repeat:  # the first round warms up
                        times.setdefault(name, []).append(pair)
    finally:
        torch.set_num_threads(before)
    rows = []
    for name, pairs in times.items():
        ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [theirs / own for own, theirs in pairs]
        ends = min(ratios), max(ratios)
        ratio = statistics.median(ratios)
        rows.append({"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": "s", "range": ends})
    return rows


def make_sides(
    kind: Kind, images: int, beams: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, tuple[Callable, Callable]]:
    """name -> (ours, the peer's), calls that do the work once and give a list of ids per image, or features.

    dtype: of the weights of both sides.
    """
    from transformers.modeling_outputs import BaseModelOutput

    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, peer, generation = make_models(kind, beams)
        side = kind.encoder["image_size"]
        pixels = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8)
    ours, peer, pixels = ours.to(device), peer.to(device), pixels.to(device)
    floats = (pixels.float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        features = ours.encode(pixels)
        if not torch.allclose(features, peer.encoder(floats).last_hidden_state, atol=1e-4):
            raise SystemExit("the two encoders differ")
    ours, peer, floats, features = (part.to(dtype) for part in (ours, peer, floats, features))
    lengths = caption_lengths(images).to(device)
    options = Options(beam_size=beams)
    limits = decode.Limits(START, END, LONGEST, device)

    @torch.inference_mode()
    def caption(source: torch.Tensor) -> list[list[int]]:
        step = ending_step(ours.start_decoding(source), lengths.repeat_interleave(beams))
        return [captions[0].ids for captions in decode.decode(step, images, options, limits)]

    @torch.inference_mode()
    def generate(source: torch.Tensor) -> list[list[int]]:
        found: list[list[int]] = []
        for part, long in zip(source.chunk(kind.parts), lengths.chunk(kind.parts), strict=True):
            given = {"pixel_values": part}
            if source.ndim == 3:  # generate() may change what it is given
                given = {"encoder_outputs": BaseModelOutput(last_hidden_state=part.clone())}
            ending = EndingProcessor(long.repeat_interleave(beams))
            rows = peer.generate(**given, generation_config=generation, logits_processor=[ending])[:, 1:].tolist()
            found += [row[: row.index(END)] for row in rows]
        return found

    sides = {
        f"beam{beams}_captioning{kind.suffix}": (lambda: caption(pixels), lambda: generate(floats)),
        f"beam{beams}_decoder{kind.suffix}": (lambda: caption(features), lambda: generate(features)),
    }
    for name, pair in sides.items():
        for side in pair:
            if (found := [len(ids) + 1 for ids in side()]) != lengths.tolist():
                raise SystemExit(f"{name}: captions of {found} tokens, must be {lengths.tolist()}")
    encode, peer_encode = torch.inference_mode()(ours.encode), torch.inference_mode()(peer.encoder)
    sides[f"encoder{kind.suffix}"] = (
        lambda: encode(pixels), lambda: [peer_encode(part) for part in floats.chunk(kind.parts)]
    )  # fmt: skip
    return sides


def caption_lengths(images: int) -> torch.Tensor:
    """Tokens of each image's captions, <end> included: the quantiles of a normal distribution, in mixed order."""
    shares = (torch.arange(images, dtype=torch.float64) + 0.5) / images
    lengths = (13.3 + 3.1 * torch.special.ndtri(shares)).round().long().clamp(5, LONGEST)
    return lengths[torch.randperm(images, generator=torch.Generator().manual_seed(0))]


def end_in_time(logits: torch.Tensor, lengths: torch.Tensor, position: int) -> torch.Tensor:
    """logits (R, V) of token number `position`, changed so that rows end with token number `lengths` (R,).

    -80 is small enough beside these logits, and exp(-80) still a normal number: of far smaller ones exp() is slow.
    """
    forbidden = (lengths <= position)[:, None].repeat(1, logits.shape[1])
    forbidden[:, END] = lengths > position
    return logits.masked_fill(forbidden, -80.0)


def ending_step(step: decode.Step, lengths: torch.Tensor) -> decode.Step:
    position = 0

    def ending(tokens: torch.Tensor, parents: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal position, lengths
        position += 1
        lengths = lengths if parents is None else lengths[parents]
        return end_in_time(step(tokens, parents), lengths, position)

    return ending


class EndingProcessor:
    """The same for generate()."""

    def __init__(self, lengths: torch.Tensor):
        self.lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return end_in_time(scores, self.lengths, input_ids.shape[1])


def make_models(kind: Kind, beams: int) -> tuple[ImageToTextModel, torch.nn.Module, object]:
    """Our model, the peer's, and the peer's GenerationConfig, with random weights."""
    import transformers as t

    settings = load_settings([*kind.argv, "--max-seq-len", str(LONGEST + 2), "--encoder-model-name", "random"])
    encoder = t.ViTConfig(**kind.encoder)
    decoder = t.GPT2Config(
        vocab_size=settings.VOCAB_SIZE, n_embd=settings.DECODER_EMBED_DIM, n_layer=settings.DECODER_LAYERS,
        n_head=settings.DECODER_HEADS, n_inner=settings.DECODER_FF_DIM, n_positions=LONGEST + 2,
        bos_token_id=START, eos_token_id=END,
    )  # fmt: skip
    both = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    peer = t.VisionEncoderDecoderModel(both).eval()
    spec = scratch_image_spec(encoder.image_size)
    arguments = {"encoder_config": encoder.to_dict(), "image_spec": spec}
    ours = build_model(dict(settings.values), settings.VOCAB_SIZE, arguments).eval()
    ours.encoder.tower.load_state_dict(peer.encoder.state_dict(), strict=False)
    generation = t.GenerationConfig(
        num_beams=beams, max_new_tokens=LONGEST, do_sample=False, early_stopping=False,
        decoder_start_token_id=START, bos_token_id=START, eos_token_id=END,
        pad_token_id=PAD,
    )  # fmt: skip
    return ours, peer, generation


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
