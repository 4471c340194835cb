"""Time of the CIDEr-D reward of sampled captions, as self-critical training needs it, against plain dictionaries.

    python benchmarks/rewards.py [--repeats 20]

250 candidates, 5 for each of 50 images, against the references of 5,000 images. The peer is the usual way to write
CIDEr-D: n-grams as tuples, tf-idf vectors as dictionaries, the references of the image made into vectors at every
call, the document frequencies kept. Both sides get tokenised captions, alternate within one run, and must agree.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import scoring  # noqa: E402
from nanocaption.metrics import cider_rewards, prepare_references, ptb_tokenize  # noqa: E402

IMAGES, SAMPLED, PER_IMAGE = 5000, 50, 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of CIDEr-D rewards.")
    parser.add_argument("--repeats", type=int, default=20)
    for row in measure(parser.parse_args().repeats):
        print(f"{row['name']}: ours {1000 * row['ours']:.2f} ms, dictionaries {1000 * row['peer']:.1f} ms, "
              f"{row['ratio']:.1f}x faster")  # fmt: skip


def measure(repeats: int = 20) -> list[dict[str, Any]]:
    """[{"name", "ours", "peer", "ratio", "unit", "range"}]: median times, and the median of the ratios of
    neighbours in time.
    """
    references, images, captions = make_batch(random.Random(0))
    prepared = prepare_references(references, list)
    frequencies = document_frequencies(references)
    ours, peer = [], []
    for _ in range(repeats):
        rewards = timed(ours, lambda: cider_rewards(prepared, images, captions))
        expected = timed(peer, lambda: plain_rewards(references, frequencies, images, captions))
        worst = max(abs(a - b) for a, b in zip(rewards, expected, strict=True))
        if worst > 1e-9:
            raise SystemExit(f"rewards differ by {worst}")
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    return [{"name": "rewards", "ours": statistics.median(ours), "peer": statistics.median(peer),
             "ratio": statistics.median(ratios), "unit": "s", "range": [min(ratios), max(ratios)]}]  # fmt: skip


def timed(into: list[float], call: Any) -> Any:
    start = time.perf_counter()
    result = call()
    into.append(time.perf_counter() - start)
    return result


def make_batch(rng: random.Random) -> tuple[dict[int, list[str]], list[int], list[str]]:
    """Tokenised references of all images; per candidate its image and its tokens."""
    _, written = scoring.load_references(IMAGES)
    tokens = iter(ptb_tokenize([caption for captions in written.values() for caption in captions]))
    references = {image: [next(tokens) for _ in captions] for image, captions in written.items()}
    images, captions = [], []
    for image in rng.sample(list(references), SAMPLED):
        for _ in range(PER_IMAGE):
            other = rng.choice(list(references.values()))
            images.append(image)
            captions.append(scoring.make_candidates({image: references[image], -1: other}, rng)[image])
    return references, images, captions


def document_frequencies(references: dict[int, list[str]]) -> Counter:
    frequencies: Counter = Counter()
    for captions in references.values():
        frequencies.update(set().union(*(counted(caption) for caption in captions)))
    return frequencies


def counted(caption: str) -> Counter:
    words = caption.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def plain_rewards(
    references: dict[int, list[str]], frequencies: Counter, images: list[int], captions: list[str]
) -> list[float]:
    """CIDEr-D (Vedantam et al., 2015) with one dictionary of weights per caption and order."""
    log_images = math.log(len(references))

    def vector(caption: str) -> tuple[list[dict], list[float], int]:
        weights: list[dict] = [{} for _ in range(4)]
        for gram, count in counted(caption).items():
            weights[len(gram) - 1][gram] = count * (log_images - math.log(max(1, frequencies.get(gram, 0))))
        norms = [math.sqrt(sum(value * value for value in order.values())) for order in weights]
        return weights, norms, max(0, len(caption.split()) - 1)

    rewards = []
    for image, caption in zip(images, captions, strict=True):
        own, own_norms, own_length = vector(caption)
        total = 0.0
        for reference in references[image]:
            other, other_norms, other_length = vector(reference)
            penalty = math.exp(-((own_length - other_length) ** 2) / (2 * 6.0**2))
            for n in range(4):
                product = sum(min(value, other[n].get(gram, 0.0)) * other[n].get(gram, 0.0)
                              for gram, value in own[n].items())  # fmt: skip
                if own_norms[n] and other_norms[n]:
                    total += product / (own_norms[n] * other_norms[n]) * penalty
        rewards.append(10 * total / 4 / len(references[image]))
    return rewards


if __name__ == "__main__":
    main()
