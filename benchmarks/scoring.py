"""Time of a whole scoring, tokens to numbers, against pycocoevalcap with its Java tokenizer, side by side.

    python benchmarks/scoring.py [--images 1000 5000] [--repeats 5]

Both sides alternate within one run and must print the same scores. Captions are those of Flickr8k or
Flickr30k if the project's shared data lie beside the checkout, else generated. "Cold" empties the chunk cache
and indexes the references anew; "prepared" keeps the references, as an evaluation at every epoch does. The
time of the first call in a process also holds the compilation of the token rules and is printed apart.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanocaption.metrics import prepare_references, ptb, score_prepared  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description="Scoring time against pycocoevalcap.")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    start = time.perf_counter()
    ptb.compile_rules()
    print(f"compiling the token rules, once in a process: {1000 * (time.perf_counter() - start):.0f} ms")
    for row in measure(args.images, args.repeats, verbose=True):
        low, high = row["range"] or (0, 0)
        ratio = f"   {row['ratio']:5.1f}x faster [{low:.1f} - {high:.1f}]" if row["ratio"] else ""
        print(f"{row['name']:<24}{row['ours']:8.4f} s{ratio}")


def measure(images: Sequence[int] = (1000, 5000), repeats: int = 5, verbose: bool = False) -> list[dict[str, Any]]:
    """[{"name", "ours", "peer", "ratio", "unit", "range", "note"}]: medians over alternating repeats.

    names: scoring_<images>x5_cold and _prepared. peer, ratio and range are None without Java or pycocoevalcap, and
    the note says so.
    """
    reference, rows = load_reference(), []
    for number in images:
        source, references = load_references(number)
        times = compare(references, make_candidates(references, random.Random(0)), reference, repeats)
        if verbose:
            peer = f"; pycocoevalcap {statistics.median(times['peer']):.4f} s" if times["peer"] else ""
            print(f"{number} images ({source}), {repeats} alternating repeats{peer}")
        for kind in ("cold", "prepared"):
            ratios = [peer / own for peer, own in zip(times["peer"], times[kind], strict=False)]
            rows.append({
                "name": f"scoring_{number}x5_{kind}", "ours": statistics.median(times[kind]),
                "peer": statistics.median(times["peer"]) if ratios else None,
                "ratio": statistics.median(ratios) if ratios else None, "unit": "s",
                "range": [min(ratios), max(ratios)] if ratios else None,
                "note": f"captions: {source}" + ("" if ratios else "; pycocoevalcap not run, it needs Java"),
            })  # fmt: skip
    return rows


def compare(references: dict, candidates: dict, reference: Callable | None, repeats: int) -> dict[str, list[float]]:
    """Times of both sides, which must give the same scores."""
    times: dict[str, list[float]] = {"peer": [], "cold": [], "prepared": []}
    for _ in range(repeats):
        if reference is not None:
            theirs = timed(times["peer"], lambda: reference(references, candidates))
        ptb.clear_cache()
        ours = timed(times["cold"], lambda: score_prepared(prepare_references(references), candidates).corpus)
        prepared = prepare_references(references)
        again = timed(times["prepared"], lambda kept=prepared: score_prepared(kept, candidates).corpus)
        if again != ours or (reference is not None and max(abs(ours[k] - theirs[k]) for k in ours) > 1e-9):
            raise SystemExit(f"scores differ: {ours} {again} {theirs}")
    return times


def timed(into: list[float], call: Callable[[], dict]) -> dict:
    start = time.perf_counter()
    result = call()
    into.append(time.perf_counter() - start)
    return result


def load_reference() -> Callable | None:
    """pycocoevalcap's own pipeline as one function, or None with a line that says what is missing."""
    if shutil.which("java") is None:
        print("no java on this machine: the side of pycocoevalcap is left out")
        return None
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError as error:
        print(f"pycocoevalcap is not installed ({error}): its side is left out")
        return None

    def evaluate(references: dict, candidates: dict) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()), silent_children():
            gts = PTBTokenizer().tokenize({k: [{"caption": c} for c in v] for k, v in references.items()})
            res = PTBTokenizer().tokenize({k: [{"caption": candidates[k]}] for k in references})
            bleu = Bleu(4).compute_score(gts, res)[0]
            cider, rouge = Cider().compute_score(gts, res)[0], Rouge().compute_score(gts, res)[0]
        return {**{f"Bleu_{n + 1}": bleu[n] for n in range(4)}, "CIDEr": cider, "ROUGE_L": rouge}

    return evaluate


@contextlib.contextmanager
def silent_children() -> Iterator[None]:
    """Send the error stream of child processes (Java reports its speed there) to nowhere."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def load_references(images: int) -> tuple[str, dict[int, list[str]]]:
    flickr8k, flickr30k = (
        SHARED / "flickr8k/dataset_flickr8k.json",
        SHARED / "flickr30k_train_captions.token.gz",
    )
    if flickr8k.exists() and images <= 1000:
        entries = [e for e in json.loads(flickr8k.read_text("utf-8"))["images"] if e["split"] != "train"][
            :images
        ]
        if len(entries) == images:
            return "Flickr8k dev", {i: [s["raw"] for s in e["sentences"]] for i, e in enumerate(entries)}
    if flickr30k.exists() and images <= 29000:
        with gzip.open(flickr30k, "rt", encoding="utf-8") as lines:
            captions = [
                line.rstrip("\n").split("\t", 1)[1] for line, _ in zip(lines, range(5 * images), strict=False)
            ]
        return "Flickr30k train", {i: captions[5 * i : 5 * i + 5] for i in range(images)}
    rng = random.Random(0)
    return "generated", {image: [generated_caption(rng, image) for _ in range(5)] for image in range(images)}


def generated_caption(rng: random.Random, image: int) -> str:
    """Words drawn with the frequencies of Zipf's law, some peculiar to the image, with usual punctuation."""
    length = max(4, round(rng.gauss(11, 3)))
    words = [
        f"thing{chr(97 + image % 26)}{chr(97 + image // 26 % 26)}"
        if rng.random() < 0.1
        else "word" + "".join(chr(97 + int(d)) for d in str(int(6000 ** rng.random())))
        for _ in range(length)
    ]
    if rng.random() < 0.1:
        words[rng.randrange(length)] += rng.choice([",", "'s", "-shirt"])
    return " ".join(words).capitalize() + rng.choice([" .", ".", ""])


def make_candidates(references: dict[int, list[str]], rng: random.Random) -> dict[int, str]:
    """For each image one of its references, some words dropped or taken from a caption of another image."""
    pool = [captions[0].split() for captions in references.values()]
    candidates = {}
    for image, captions in references.items():
        words = [word for word in rng.choice(captions).split() if rng.random() > 0.2]
        candidates[image] = " ".join(rng.choice(rng.choice(pool)) if rng.random() < 0.2 else w for w in words)
    return candidates


if __name__ == "__main__":
    main()
