"""`python -m metrics references.json predictions.json [--json out.json]`: score anyone's captions."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

FEW_IMAGES = 100
EPILOG = """
references:  a COCO captions file {"annotations": [{"image_id": 1, "caption": "..."}, ...]},
             or a mapping {"1": ["...", "..."], ...}
predictions: a COCO results list [{"image_id": 1, "caption": "..."}, ...], or a mapping {"1": "...", ...}

Scores are fractions, equal to those of pycocoevalcap; CIDEr is CIDEr-D. Without Java.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m metrics",
        description="BLEU, CIDEr and ROUGE-L of image captions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("references", type=Path, help="JSON file of the reference captions")
    parser.add_argument("predictions", type=Path, help="JSON file with one caption for each image")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the scores to this file")
    args = parser.parse_args(argv)
    try:
        report(args.references, args.predictions, args.json)
    except (ValueError, OSError) as error:
        print(f"python -m metrics: {error}", file=sys.stderr)
        return 1
    return 0


def report(references_path: Path, predictions_path: Path, out: Path | None) -> None:
    """Print the table; with `out`, write {"Bleu_1": ..., ..., "images": n} there.

    Raises ValueError on bad files, OSError on unreadable ones.
    """
    from metrics import prepare_references, score_prepared, text_statistics

    references = read_references(references_path)
    predictions = with_ids_of(references, read_predictions(predictions_path))
    scores = score_prepared(prepare_references(references), predictions).corpus
    statistics = text_statistics([predictions[image] for image in references])
    print(
        f"{len(references)} images, {sum(map(len, references.values()))} references; CIDEr is CIDEr-D, its "
        "document frequencies are those of these references"
    )
    for name, value in scores.items():
        print(f"{name:<12}{value:8.4f}")
    for name, value in statistics._asdict().items():
        print(f"{name:<12}{value:8.4f}" if isinstance(value, float) else f"{name:<12}{value:8d}")
    if len(references) < FEW_IMAGES:
        print(
            f"warning: {len(references)} images are few (under {FEW_IMAGES}): one image more or less changes "
            "every digit printed here",
            file=sys.stderr,
        )
    if out is not None:
        out.write_text(json.dumps({**scores, "images": len(references)}, indent=2) + "\n", encoding="utf-8")


def read_references(path: Path) -> dict:
    """{image id: [captions]} from a COCO captions file or a plain mapping; ValueError if it is neither."""
    content = _read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        references: dict = {}
        for entry in content["annotations"]:
            image, caption = _image_and_caption(entry, path)
            references.setdefault(image, []).append(caption)
        return references
    if isinstance(content, dict) and all(isinstance(captions, list) for captions in content.values()):
        return content
    raise ValueError(
        f'{path} is no reference file: expected {{"annotations": [...]}} or {{image id: [captions]}}'
    )


def read_predictions(path: Path) -> dict:
    """{image id: caption} from a COCO results list or a plain mapping. Raises ValueError on a duplicate."""
    content = _read_json(path)
    if isinstance(content, dict) and all(isinstance(caption, str) for caption in content.values()):
        return content
    if not isinstance(content, list):
        raise ValueError(
            f'{path} is no predictions file: expected [{{"image_id": 1, "caption": "..."}}, ...] or '
            "{image id: caption}"
        )
    predictions: dict = {}
    for entry in content:
        image, caption = _image_and_caption(entry, path)
        if image in predictions:
            raise ValueError(f"{path} has two captions for image {image!r}: keep one for each image")
        predictions[image] = caption
    return predictions


def with_ids_of(references: dict, predictions: dict) -> dict:
    """Predictions keyed as the references: a mapping has text keys where a COCO list may have numbers."""
    by_text = {str(image): image for image in references}
    renamed: dict = {}
    for image, caption in predictions.items():
        name = by_text.get(str(image), image)
        if name in renamed:
            raise ValueError(
                f"two captions for image {image!r}, as a number and as text: keep one for each image"
            )
        renamed[name] = caption
    return renamed


def _image_and_caption(entry: object, path: Path) -> tuple:
    if not isinstance(entry, dict) or "image_id" not in entry or "caption" not in entry:
        raise ValueError(f'{path}: each entry needs "image_id" and "caption", got {entry!r:.80}')
    if not isinstance(entry["image_id"], int | str):
        raise ValueError(f"{path}: image_id must be a number or a string, got {entry['image_id']!r:.80}")
    return entry["image_id"], entry["caption"]


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object with a key twice would silently keep only the last value."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"a JSON object has the key {twice!r} twice: keep one caption for each image")
    return result


if __name__ == "__main__":
    sys.exit(main())
