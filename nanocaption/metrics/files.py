"""Reference and prediction files as others write them: COCO layouts or plain mappings."""

import hashlib
import json
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

VERSION = "1"  # of these metrics: goes up when any digit of any score may change
JAVA_PROGRAMS = {"METEOR": ", METEOR 1.5", "SPICE": ", SPICE 1.0"}


def read_references(path: Path) -> dict:
    """{image id: [captions]} from a COCO captions file or a plain mapping; ValueError if it is neither."""
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        references = {image: [] for image in _listed_images(content, path)}
        for entry in content["annotations"]:
            image, caption = image_and_caption(entry, path)
            references.setdefault(image, []).append(caption)
        return references
    if isinstance(content, dict) and all(isinstance(captions, list) for captions in content.values()):
        return content
    raise ValueError(
        f'{path} is no reference file: expected {{"annotations": [...]}} or {{image id: [captions]}}'
    )


def _listed_images(content: dict, path: Path) -> list:
    """The ids of COCO's "images", in whose order pycocoevalcap reads the captions: tokens depend on neighbours."""
    images = content.get("images", [])
    if not isinstance(images, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), int | str) for entry in images
    ):
        raise ValueError(f'{path}: "images" must be a list of {{"id": ...}}, or left out')
    return [entry["id"] for entry in images]


def read_predictions(path: Path) -> dict:
    """{image id: caption} from a COCO results list or a plain mapping. Raises ValueError on a duplicate."""
    content = read_json(path)
    if isinstance(content, dict) and all(isinstance(caption, str) for caption in content.values()):
        return content
    if not isinstance(content, list):
        raise ValueError(
            f'{path} is no predictions file: expected [{{"image_id": 1, "caption": "..."}}, ...] or '
            "{image id: caption}"
        )
    predictions: dict = {}
    for entry in content:
        image, caption = image_and_caption(entry, path)
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


def image_and_caption(entry: object, path: Path) -> tuple:
    if not isinstance(entry, dict) or "image_id" not in entry or "caption" not in entry:
        raise ValueError(f'{path}: each entry needs "image_id" and "caption", got {entry!r:.80}')
    if not isinstance(entry["image_id"], int | str):
        raise ValueError(f"{path}: image_id must be a number or a string, got {entry['image_id']!r:.80}")
    return entry["image_id"], entry["caption"]


def read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_duplicates)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text, so it is not JSON: {error}") from error


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object with a key twice would silently keep only the last value."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"a JSON object has the key {twice!r} twice: keep one caption for each image")
    return result


def references_digest(references: Mapping[Hashable, Sequence[str]]) -> str:
    """Twelve hexadecimal digits that two sets of references share if they hold the same captions in the same order.

    Without the ids: these are numbers in one file and file names in another.
    """
    text = json.dumps([list(captions) for captions in references.values()], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def signature(references: Mapping[Hashable, Sequence[str]], names: Collection[str]) -> str:
    """What must be equal for two numbers to compare: the metrics, the references and their number."""
    java = "".join(text for name, text in JAVA_PROGRAMS.items() if name in names)
    return (
        f"metrics {VERSION} (as pycocoevalcap 1.2: PTB tokens, CIDEr = CIDEr-D{java}) | {len(references)} images | "
        f"references {references_digest(references)} | 95 % bootstrap over images, 1000 resamples, seed 0"
    )


def require_same_references(first: Mapping, second: Mapping) -> None:
    """Raises ValueError, with the first cases and their number, if images or references of the two differ."""
    apart = [image for image in first if image not in second] + [image for image in second if image not in first]
    if apart:
        raise ValueError(
            f"{len(apart)} images are in one of the two sets only, the first {apart[:3]}: compare captions of the "
            f"same images ({len(first)} and {len(second)})"
        )
    other = [image for image in first if list(first[image]) != list(second[image])]
    if other:
        raise ValueError(
            f"{len(other)} of {len(first)} images have other references in the two sets, the first {other[:3]}: "
            "scores against different references do not compare"
        )
