"""Reference and prediction files as others write them: COCO layouts or plain mappings."""

import hashlib
import json
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

VERSION = "1"  # of these metrics: goes up when any digit of any score may change
JAVA_PROGRAMS = {"METEOR": ", METEOR 1.5", "SPICE": ", SPICE 1.0"}
FEW_IMAGES = 100  # below this, scores say little


class Reference(NamedTuple):
    """One image of a file of references."""

    image_id: int | str
    file_name: str  # the id as text where the file has no name
    captions: list[str]


class Prediction(NamedTuple):
    """One entry of a file of predictions; it has a file name, or an id, or both."""

    image_id: int | str | None
    file_name: str | None
    caption: str


def read_references(path: Path) -> list[Reference]:
    """The images of a COCO captions file or of a mapping {image id: [captions]}; ValueError if it is neither.

    They come in the order of COCO's "images", in which pycocoevalcap reads the captions: tokens depend on neighbours.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        names = _listed_images(content, path)
        captions: dict[int | str, list[str]] = {image: [] for image in names}
        for entry in content["annotations"]:
            image, text = _named_caption(entry, "image_id", path)
            captions.setdefault(image, []).append(text)
        return [Reference(image, names.get(image, str(image)), texts) for image, texts in captions.items()]
    if isinstance(content, dict) and all(isinstance(captions, list) for captions in content.values()):
        return [Reference(image, image, captions) for image, captions in content.items()]
    raise ValueError(
        f'{path} is no reference file: expected {{"annotations": [...]}} or {{image id: [captions]}}'
    )


def _listed_images(content: dict, path: Path) -> dict[int | str, str]:
    """{id: file name} of COCO's "images"."""
    try:
        return {entry["id"]: str(entry.get("file_name", entry["id"])) for entry in content.get("images", [])}
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f'{path}: "images" must be a list of {{"id": ...}}, or left out') from None


def read_predictions(path: Path) -> list[Prediction]:
    """The entries of a COCO results list, which may name "file_name" as well, or of a mapping {image: caption}.

    Raises ValueError where the file is neither, or empty, and for a caption that is no text.
    """
    content = read_json(path)
    entries = content if isinstance(content, list) else []
    if isinstance(content, dict) and any(isinstance(caption, str) for caption in content.values()):
        entries = [{"image_id": image, "caption": caption} for image, caption in content.items()]
    if not entries:
        raise ValueError(
            f'{path} has no predictions: expected [{{"image_id": 1, "caption": "..."}}, ...] or {{image id: caption}}'
        )
    predictions = []
    for entry in entries:
        named = isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
        name, caption = _named_caption(entry, "file_name" if named else "image_id", path)
        if not isinstance(caption, str):
            raise ValueError(f"{path}: the caption of {name!r} must be a string, got {caption!r:.60}")
        predictions.append(Prediction(entry.get("image_id"), name if named else None, caption))
    return predictions


def _named_caption(entry: Any, key: str, path: Path) -> tuple[Any, Any]:
    """(what names the image, the caption) of an entry of a COCO file; key: which of its fields names the image."""
    if not isinstance(entry, dict) or key not in entry or "caption" not in entry:
        raise ValueError(f'{path}: each entry needs "image_id" and "caption", got {entry!r:.80}')
    if not isinstance(entry[key], int | str):
        raise ValueError(f"{path}: image_id must be a number or a string, got {entry[key]!r:.80}")
    return entry[key], entry["caption"]


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


def signature(
    references: Mapping[Hashable, Sequence[str]], names: Collection[str], tokenizer: str = "ptb"
) -> str:
    """What must be equal for two numbers to compare: the metrics, the references and their number.

    tokenizer: "ptb" or "characters".
    """
    tokens = {"ptb": "PTB tokens", "characters": "characters as tokens"}
    java = "".join(text for name, text in JAVA_PROGRAMS.items() if name in names)
    return (
        f"metrics {VERSION} (as pycocoevalcap 1.2: {tokens[tokenizer]}, CIDEr = CIDEr-D{java}) | "
        f"{len(references)} images | references {references_digest(references)} | "
        "95 % bootstrap over images, 1000 resamples, seed 0"
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
