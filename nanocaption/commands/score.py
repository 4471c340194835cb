"""`nanocaption score references.json predictions.json`: score anyone's captions, or compare two models' captions."""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from nanocaption import metrics
from nanocaption.base.files import write_atomically
from nanocaption.metrics.files import FEW_IMAGES, Reference, read_references
from nanocaption.score.predictions import captions_by_id, compare_files, match_references
from nanocaption.score.scoring import domain_lines, domain_scores

EPILOG = """
references:  a COCO captions file {"annotations": [{"image_id": 1, "caption": "..."}, ...]},
             or a mapping {"1": ["...", "..."], ...}
predictions: a COCO results list [{"image_id": 1, "caption": "..."}, ...], or a mapping {"1": "...", ...}
             images by id (1, "1" and "0001" are one) or by file name, where the references list these

Scores are fractions, equal to those of pycocoevalcap; CIDEr is CIDEr-D. Without Java, except for --meteor and
--spice. Beside each score stands the 95 % bootstrap interval over images; it does not hold other training seeds.
"""


def main(argv: list[str]) -> None:
    """Print the scores, or with --compare the differences. Raises ValueError or OSError for files that do not serve."""
    parser = argparse.ArgumentParser(
        prog="nanocaption score",
        description="BLEU, CIDEr and ROUGE-L of image captions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("references", type=Path, help="JSON file of the reference captions")
    parser.add_argument("predictions", type=Path, help="JSON file with one caption for each image")
    parser.add_argument("--compare", type=Path, metavar="OTHER", help="a second predictions file: test the difference")
    parser.add_argument("--only-predicted", action="store_true", help="score the images that have a prediction alone")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the result to this file")
    parser.add_argument("--meteor", action="store_true", help="METEOR as well, with your Java and pycocoevalcap's jar")
    parser.add_argument("--spice", action="store_true", help="SPICE as well, the same way")
    parser.add_argument(
        "--tokenize", choices=metrics.TOKENIZERS, default="ptb",
        help="words as PTB cuts them, which is what the field does, or characters: for languages without spaces [ptb]",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise ValueError(f"--json {arguments.json}: its folder does not exist; make it first")
    metrics.require_java(arguments.meteor, arguments.spice)
    result = compare(arguments) if arguments.compare else report(arguments)
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(result, indent=2) + "\n")


def report(arguments: argparse.Namespace) -> dict[str, object]:
    """Print the scores; returns {"Bleu_1": ..., ..., "images": n, "intervals": ..., "signature": ...}.

    Where images of the references have a "domain", there is also "domains": {name: `DomainScores`}.
    """
    read = read_references(arguments.references)
    used, (predictions,) = match_references([arguments.predictions], read, arguments.only_predicted)
    references, there = captions_by_id(used), _with_captions(read)
    tokenize = metrics.TOKENIZERS[arguments.tokenize]
    prepared = metrics.prepare_references(references, tokenize)
    measured = metrics.measure(prepared, predictions, arguments.meteor, arguments.spice)
    scores, spread = metrics.total(measured).corpus, metrics.intervals(measured)
    domains = domain_scores(measured, [one.domain for one in used])
    line = metrics.signature(references, scores, arguments.tokenize, there, bool(domains))
    chosen = f" of {there}" if len(used) < there else ""
    print(
        f"{len(references)}{chosen} images, {sum(map(len, references.values()))} references; CIDEr is CIDEr-D, its "
        "document frequencies are those of these references"
    )
    for name, value in scores.items():
        print(f"{name:<12}{value:8.4f}   {spread[name][0]:.4f} to {spread[name][1]:.4f}")
    for text in domain_lines(domains):
        print(text)
    for name, value in metrics.text_statistics(list(predictions.values()), tokenize)._asdict().items():
        if value is not None:
            print(f"{name:<12}{value:8.4f}" if isinstance(value, float) else f"{name:<12}{value:8d}")
    print(line)
    _warn_of_few(len(references))
    result = {**scores, "images": len(references), "intervals": spread, "signature": line}
    return {**result, "domains": domains} if domains else result


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Print how the second predictions differ from the first; returns {score: {"difference", "low", "p", ...}}."""
    read = read_references(arguments.references)
    paths = arguments.predictions, arguments.compare
    differences, used = compare_files(
        read, *paths, arguments.meteor, arguments.spice, metrics.TOKENIZERS[arguments.tokenize],
        arguments.only_predicted,
    )  # fmt: skip
    line = metrics.signature(captions_by_id(used), differences, arguments.tokenize, _with_captions(read))
    print(f"first:  {paths[0]}\nsecond: {paths[1]}\n{metrics.differences_table(differences)}\n{line}")
    _warn_of_few(len(used))
    rows = {name: row._asdict() for name, row in differences.items()}
    return {**rows, "images": len(used), "signature": line}


def _with_captions(references: Sequence[Reference]) -> int:
    return sum(bool(one.captions) for one in references)


def _warn_of_few(images: int) -> None:
    if images < FEW_IMAGES:
        warnings.warn(
            f"{images} images are few (under {FEW_IMAGES}): one image more or less changes every digit printed here",
            stacklevel=2,
        )
