"""`nanocaption score references.json predictions.json`: score anyone's captions, or compare two models' captions."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FEW_IMAGES = 100
EPILOG = """
references:  a COCO captions file {"annotations": [{"image_id": 1, "caption": "..."}, ...]},
             or a mapping {"1": ["...", "..."], ...}
predictions: a COCO results list [{"image_id": 1, "caption": "..."}, ...], or a mapping {"1": "...", ...}

Scores are fractions, equal to those of pycocoevalcap; CIDEr is CIDEr-D. Without Java, except for --meteor and
--spice. Beside each score stands the 95 % bootstrap interval over images; it does not hold other training seeds.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="nanocaption score",
        description="BLEU, CIDEr and ROUGE-L of image captions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("references", type=Path, help="JSON file of the reference captions")
    parser.add_argument("predictions", type=Path, help="JSON file with one caption for each image")
    parser.add_argument("--compare", type=Path, metavar="OTHER", help="a second predictions file: test the difference")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the result to this file")
    parser.add_argument("--meteor", action="store_true", help="METEOR as well, with your Java and pycocoevalcap's jar")
    parser.add_argument("--spice", action="store_true", help="SPICE as well, the same way")
    args = parser.parse_args(argv)
    warnings.simplefilter("once", UserWarning)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        if args.json is not None and not args.json.absolute().parent.is_dir():
            raise ValueError(f"--json {args.json}: its folder does not exist; make it first")
        result = compare(args) if args.compare else report(args)
        if args.json is not None:
            args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if sys.stdout is not None:  # closed by whoever started this
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        what = error
        if isinstance(error, OSError) and error.strerror:
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(f"nanocaption score: {what}", file=sys.stderr)
        return 1
    return 0


def report(args: argparse.Namespace) -> dict[str, Any]:
    """Print the scores; returns {"Bleu_1": ..., ..., "images": n, "intervals": ..., "signature": ...}.

    Raises ValueError on bad files, OSError on unreadable ones.
    """
    from nanocaption import metrics
    from nanocaption.metrics import files

    metrics.require_java(args.meteor, args.spice)
    references = files.read_references(args.references)
    predictions = files.with_ids_of(references, files.read_predictions(args.predictions))
    measured = metrics.measure(metrics.prepare_references(references), predictions, args.meteor, args.spice)
    scores, spread = metrics.total(measured).corpus, metrics.intervals(measured)
    statistics = metrics.text_statistics([predictions[image] for image in references])
    line = metrics.signature(references, scores)
    print(
        f"{len(references)} images, {sum(map(len, references.values()))} references; CIDEr is CIDEr-D, its "
        "document frequencies are those of these references"
    )
    for name, value in scores.items():
        print(f"{name:<12}{value:8.4f}   {spread[name][0]:.4f} to {spread[name][1]:.4f}")
    for name, value in statistics._asdict().items():
        if value is not None:
            print(f"{name:<12}{value:8.4f}" if isinstance(value, float) else f"{name:<12}{value:8d}")
    print(line)
    _warn_of_few(len(references))
    return {**scores, "images": len(references), "intervals": spread, "signature": line}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Print how the second predictions differ from the first; returns {score: {"difference", "low", "p", ...}}."""
    from nanocaption import metrics
    from nanocaption.metrics import files

    metrics.require_java(args.meteor, args.spice)
    references = files.read_references(args.references)
    prepared = metrics.prepare_references(references)
    measured = [
        metrics.measure(prepared, files.with_ids_of(references, files.read_predictions(path)), args.meteor, args.spice)
        for path in (args.predictions, args.compare)
    ]
    differences = metrics.compare(*measured)
    print(f"first:  {args.predictions}\nsecond: {args.compare}\n{metrics.differences_table(differences)}")
    print(line := metrics.signature(references, differences))
    _warn_of_few(len(references))
    rows = {name: row._asdict() for name, row in differences.items()}
    return {**rows, "images": len(references), "signature": line}


def _warn_of_few(images: int) -> None:
    if images < FEW_IMAGES:
        print(
            f"warning: {images} images are few (under {FEW_IMAGES}): one image more or less changes "
            "every digit printed here",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
