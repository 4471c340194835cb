"""Scoring of (image, caption) pairs by a captioner's likelihood, and search in an index, on the CPU, one thread.

    python benchmarks/retrieval.py [--repeats 3] [--images 2] [--captions 60]

likelihood_pairs           pairs/s from pixels: ours, each image encoded once and one packed pass over its captions,
                           against a double loop over transformers' VisionEncoderDecoderModel, a pass for each pair
likelihood_pairs_batched   the same against passes of 12 pairs, one pair a row
likelihood_pairs_features  the same against passes of 12 pairs whose images' features are given, padded
search_10000               processor time from the words of a query to the ten nearest of 10,000 pictures, all loaded

Both sides have a ViT-Tiny at 224 pixels, the decoder sizes of recipes/flickr8k_vit_tiny.py and random weights. The
captions are random ids, 12 tokens on average, whose beginnings are all different: those of real captions are not, which
is to our advantage and left out here. They alternate; the peer takes 12 captions of each image.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import table  # noqa: E402
from benchmarks.decoding import KINDS, make_models  # noqa: E402
from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.data.tokenizer import END, PAD, START, train_tokenizer  # noqa: E402
from nanocaption.model.captioner import ImageToTextModel  # noqa: E402
from nanocaption.model.likelihood import log_likelihoods, pack_captions  # noqa: E402

ROWS = 12  # pairs of a batched pass, and the captions that the peer takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="alternating runs of both sides; the median counts [3]")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--captions", type=int, default=60)
    a = parser.parse_args()
    for row in measure(a.repeats, a.images, a.captions):
        print(f"{row['name']:<26} {table.line(row)}")


def measure(repeats: int = 3, images: int = 2, captions: int = 60) -> list[dict[str, Any]]:
    """[{"name", "ours", "peer", "ratio", "unit", "range", "note"}], as the text above says."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*likelihood(repeats, images, captions), searching(repeats)]
    finally:
        torch.set_num_threads(before)


def likelihood(repeats: int, images: int, captions: int) -> list[dict[str, Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, peer, _ = make_models(KINDS[0], beams=1)
        pixels = torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8)
    ids = random_captions(captions, len(ours.decoder.embedding.weight))
    check(ours, pixels[:1], ids[:8])
    with torch.inference_mode():
        features = ours.encode(pixels)

    def packed(source: torch.Tensor) -> None:
        parts = pack_captions(ids, PAD)
        for n in range(images):
            with torch.inference_mode():
                found = source[n : n + 1] if source.ndim == 3 else ours.encode(source[n : n + 1])
            log_likelihoods(ours, found, parts)

    sides = {
        "likelihood_pairs": (pixels, 1), "likelihood_pairs_batched": (pixels, ROWS),
        "likelihood_pairs_features": (features, ROWS),
    }  # fmt: skip
    rows = []
    for name, (source, at_once) in sides.items():
        given = source if source.ndim == 3 else (source.float() / 255 - 0.5) / 0.5
        times = [(timed(lambda: packed(source)), timed(lambda: double_loop(peer, given, ids[:ROWS], at_once)))  # noqa: B023
                 for _ in range(repeats + 1)][1:]  # fmt: skip  # the first round warms up
        note = f"{images} images, {captions} captions, one thread, decoder 3 x 256"
        rates = [(images * captions / own, images * ROWS / theirs) for own, theirs in times]
        rows.append(row(name, rates, note))
    return rows


def random_captions(number: int, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 17, number)
    return [[START, *rng.integers(4, vocabulary, length - 1).tolist(), END] for length in lengths]


def check(model: ImageToTextModel, image: torch.Tensor, ids: Sequence[list[int]]) -> None:
    """SystemExit where the packed pass is not that of each pair by itself."""
    found = log_likelihoods(model, image, pack_captions(ids, PAD))
    for value, one in zip(found, ids, strict=True):
        with torch.inference_mode():
            logits = model(image, torch.tensor([one[:-1]]))[0].log_softmax(-1)
        alone = logits.gather(1, torch.tensor(one[1:])[:, None]).sum()
        if abs(value - alone) > 1e-3:
            raise SystemExit(f"packed {value:.4f}, alone {alone:.4f}: they differ")


@torch.inference_mode()
def double_loop(peer: torch.nn.Module, images: torch.Tensor, ids: Sequence[list[int]], rows: int) -> torch.Tensor:
    """log p of every caption for every image, pixels or features, `rows` pairs a pass."""
    from transformers.modeling_outputs import BaseModelOutput

    found = torch.zeros(len(images), len(ids))
    for n in range(len(images)):
        for start in range(0, len(ids), rows):
            some = ids[start : start + rows]
            longest = max(map(len, some))
            tokens = torch.tensor([own + [PAD] * (longest - len(own)) for own in some])
            each = images[n : n + 1].expand(len(some), *images.shape[1:]).contiguous()
            how = {"encoder_outputs": BaseModelOutput(each)} if images.ndim == 3 else {"pixel_values": each}
            logits = peer(**how, decoder_input_ids=tokens[:, :-1]).logits.log_softmax(-1)
            token = logits.gather(2, tokens[:, 1:, None])[:, :, 0]
            found[n, start : start + rows] = (token * (tokens[:, 1:] != PAD)).sum(1)
    return found


def searching(repeats: int) -> dict[str, Any]:
    import tempfile

    from nanocaption.model.captioner import build_model
    from nanocaption.use.index import Index, query_vector, search
    from nanocaption.use.load import Loaded

    settings = load_settings(["--decoder-embed-dim", "256", "--decoder-layers", "3", "--decoder-ff-dim", "1024"])
    with tempfile.TemporaryDirectory() as folder:
        words = [f"a {colour} dog runs in the {place}" for colour in ("red", "brown") for place in ("snow", "park")]
        tokenizer = train_tokenizer(words, Path(folder), settings.VOCAB_SIZE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(settings.values, tokenizer.get_vocab_size(), None).eval()
        model.add_contrastive_head()
    loaded = Loaded([model.eval()], tokenizer, [], settings, torch.device("cpu"))
    vectors = np.random.default_rng(0).standard_normal((10_000, 256)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = Index(Path("."), [f"{n}.jpg" for n in range(10_000)], vectors, [])
    times = []
    for _ in range(10 * (repeats + 1)):
        start = time.process_time()
        search(index, query_vector(loaded, "a brown dog in the snow"), 10)
        times.append(time.process_time() - start)
    times = times[10:]
    note = f"processor time, words to the ten nearest, one thread; slowest of {len(times)}: {max(times):.4f} s"
    return {"name": "search_10000", "ours": statistics.median(times), "peer": None, "ratio": None, "unit": "s",
            "range": None, "note": note}  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(name: str, pairs: Sequence[tuple[float, float]], note: str) -> dict[str, Any]:
    """pairs: (ours, the peer's) in pairs/s."""
    ratios = [own / theirs for own, theirs in pairs]
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"name": name, "ours": ours, "peer": peer, "ratio": statistics.median(ratios), "unit": "pairs/s",
            "range": (min(ratios), max(ratios)), "note": note}  # fmt: skip


if __name__ == "__main__":
    main()
