"""Reference and prediction files as others write them: COCO layouts or plain mappings."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

VERSION = "1"  # of these metrics: goes up when any digit of any score may change
JAVA_PROGRAMS = {"METEOR": ", METEOR 1.5", "SPICE": ", SPICE 1.0"}
MAX_BYTES = 2**30  # of a file, whose content takes some ten times of it in memory
FEW_IMAGES = 100  # below this, scores say little


class Reference(NamedTuple):
    """One image of a file of references."""

    image_id: int | str
    file_name: str  # the id as text where the file has no name
    captions: list[str]  # none: the image is not scored
    domain: str | None = None  # as the images of nocaps have one


class Prediction(NamedTuple):
    """One entry of a file of predictions; it has a file name, or an id, or both."""

    image_id: int | str | None
    file_name: str | None
    caption: str


def id_key(image: int | str) -> str:
    """Equal for two ids that name one image: those with equal texts, or with equal numbers where both are digits."""
    text = str(image)
    return text.lstrip("0") or "0" if text.isascii() and text.isdigit() else text


def read_references(path: Path) -> list[Reference]:
    """The images of a COCO captions file or of a mapping {image id: [captions]}.

    They come in the order of COCO's "images", in which pycocoevalcap reads the captions: tokens depend on neighbours.
    Captions that VizWiz marks as rejected or precanned are left out, as its own evaluator does. Both these and images
    without a caption are warned of. Raises ValueError for a file that is neither of the two or empty, ids that may mean
    two images, and captions of images that "images" does not list.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        references = _coco_references(content, path)
    elif isinstance(content, dict) and all(isinstance(captions, list) for captions in content.values()):
        references = [Reference(image, image, captions) for image, captions in content.items()]
    else:
        raise ValueError(f'{path} is no reference file: expected {{"annotations": [...]}} or {{image id: [captions]}}'
                         + _what_it_is(content))  # fmt: skip
    if not references:
        raise ValueError(f"{path} has no images: give at least one with a caption")
    if bare := [one.image_id for one in references if not one.captions]:
        warnings.warn(f"{path}: {len(bare)} of {len(references)} images have no caption and are not scored, the first "
                      f"{bare[0]!r}", stacklevel=2)  # fmt: skip
    return references


def _what_it_is(content: object) -> str:
    """The likely mistake: predictions in the place of references, or a caption in the place of a list of them."""
    if isinstance(content, list) and all(isinstance(entry, dict) and "caption" in entry for entry in content):
        return "; a list of captions is a file of predictions: name the references first, then the predictions"
    if not isinstance(content, dict):
        return ""
    image, value = next((image, value) for image, value in content.items() if not isinstance(value, list))
    alone = all(isinstance(value, str) for value in content.values())
    return f", but {image!r} has {value!r:.60}" + "; if these are predictions, name the references first" * alone


def _coco_references(content: dict, path: Path) -> list[Reference]:
    """The images of a COCO captions file, with those captions that count."""
    rows = [_named_caption(entry, "image_id", path) for entry in content["annotations"]]
    marked = [bool(entry.get("is_rejected") or entry.get("is_precanned")) for entry in content["annotations"]]
    if any(marked):
        warnings.warn(f"{path}: {sum(marked)} of {len(rows)} captions are marked is_rejected or is_precanned and left "
                      "out", stacklevel=3)  # fmt: skip
    images = _listed_images(content, path) or _unlisted_images([image for image, _ in rows], path)
    of_text, of_number = {str(one.image_id): one for one in images}, _by_number(images)
    strangers = []
    for (image, text), left_out in zip(rows, marked, strict=True):
        same = of_number.get(id_key(image), [])
        one = of_text.get(str(image)) or (same[0] if len(same) == 1 else None)
        if one is None:
            strangers.append(image)
        elif not left_out:
            one.captions.append(text)
    if strangers:
        raise ValueError(f'{path}: {len(strangers)} captions are of images that "images" does not list, the first of '
                         f"{strangers[0]!r}: list these images, or leave out their captions")  # fmt: skip
    return images


def _by_number(images: Sequence[Reference]) -> dict[str, list[Reference]]:
    found: dict[str, list[Reference]] = {}
    for one in images:
        found.setdefault(id_key(one.image_id), []).append(one)
    return found


def by_key(images: Sequence[Reference]) -> dict[str, Reference]:
    """The images by what two files have in common of their ids: `id_key`, or the text where several have one number."""
    numbers = _by_number(images).items()
    return {key if len(same) == 1 else str(one.image_id): one for key, same in numbers for one in same}


def _unlisted_images(ids: Sequence[int | str], path: Path) -> list[Reference]:
    """The images that captions name, without captions yet."""
    images = [Reference(image, str(image), []) for image in {str(image): image for image in ids}.values()]
    for first, *others in _by_number(images).values():
        if others:
            raise ValueError(f"{path}: image_id {first.image_id!r} and {others[0].image_id!r} may be one image or two: "
                             'write the id of an image alike in all its captions, or list the "images"')  # fmt: skip
    return images


def _listed_images(content: dict, path: Path) -> list[Reference]:
    """COCO's "images", without captions yet."""
    try:
        images = [Reference(entry["id"], str(entry.get("file_name") or entry["id"]), [], _text(entry.get("domain")))
                  for entry in content.get("images", [])]  # fmt: skip
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f'{path}: "images" must be a list of {{"id": ...}}, or left out') from None
    seen: set[str] = set()
    for one in images:
        _require_id(one.image_id, "the id of an image", path)
        if str(one.image_id) in seen:
            raise ValueError(f'{path}: "images" lists the id {one.image_id!r} twice: give each image its own')
        seen.add(str(one.image_id))
    return images


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def read_predictions(path: Path) -> list[Prediction]:
    """The entries of a COCO results list, which may name "file_name" as well, or of a mapping {image: caption}.

    A caption may be the one text of a list. Raises ValueError where the file is neither, or empty, and for a caption
    that is no text.
    """
    content = read_json(path)
    entries = content if isinstance(content, list) else []
    if isinstance(content, dict) and "annotations" in content:
        raise ValueError(f'{path} has "annotations", so it is a file of references, not of predictions: name the '
                         "references first, then the predictions")  # fmt: skip
    if isinstance(content, dict) and any(isinstance(caption, str | list) for caption in content.values()):
        entries = [{"image_id": image, "caption": caption} for image, caption in content.items()]
    if not entries:
        raise ValueError(
            f'{path} has no predictions: expected [{{"image_id": 1, "caption": "..."}}, ...] or {{image id: caption}}'
        )
    predictions = []
    for entry in entries:
        named = isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
        name, caption = _named_caption(entry, "file_name" if named else "image_id", path)
        predictions.append(Prediction(entry.get("image_id"), name if named else None, _one_text(caption, name, path)))
    return predictions


def _one_text(caption: object, name: object, path: Path) -> str:
    """A caption that is a text, or a list of one text."""
    several = isinstance(caption, list) and len(caption) > 1
    if isinstance(caption, list) and len(caption) == 1:
        caption = caption[0]
    if not isinstance(caption, str):
        hint = ": keep one for each image; a file of references is named first" * several
        raise ValueError(f"{path}: the caption of {name!r} must be a string, got {caption!r:.60}{hint}")
    return caption


def _named_caption(entry: Any, key: str, path: Path) -> tuple[Any, Any]:
    """(what names the image, the caption) of an entry of a COCO file; key: which of its fields names the image."""
    if not isinstance(entry, dict) or key not in entry or "caption" not in entry:
        raise ValueError(f'{path}: each entry needs "image_id" and "caption", got {entry!r:.80}')
    _require_id(entry[key], "image_id", path)
    return entry[key], entry["caption"]


def _require_id(image: object, what: str, path: Path) -> None:
    if not isinstance(image, int | str) or isinstance(image, bool):
        raise ValueError(f"{path}: {what} must be a number or a string, and a whole number, got {image!r:.80}")


def read_json(path: Path) -> object:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{path} has {size:,} bytes, and {MAX_BYTES:,} are read of a file of captions at most")
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_duplicates)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text, so it is not JSON: {error}") from error


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object with a key twice would silently keep only the last value."""
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"a JSON object has the key {twice!r} twice: keep one caption for each image")
    return result


def references_digest(references: Mapping[Hashable, Sequence[str]]) -> str:
    """Twelve hexadecimal digits that two sets of references share if they hold the same captions in the same order.

    Without the ids: these are numbers in one file and file names in another.
    """
    text = json.dumps([list(captions) for captions in references.values()], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def signature(
    references: Mapping[Hashable, Sequence[str]], names: Collection[str], tokenizer: str = "ptb", out_of: int = 0,
    domains: bool = False,
) -> str:  # fmt: skip
    """What must be equal for two numbers to compare: the metrics, the references and their number.

    tokenizer: "ptb" or "characters". out_of: how many images there are, where only those with a prediction are scored.
    domains: whether each of these has its scores.
    """
    tokens = {"ptb": "PTB tokens", "characters": "characters as tokens"}
    java = "".join(text for name, text in JAVA_PROGRAMS.items() if name in names)
    chosen = f" of {out_of}, those with a prediction" if out_of > len(references) else ""
    whole = " | domains: document frequencies of all these images" if domains else ""
    return (
        f"metrics {VERSION} (as pycocoevalcap 1.2: {tokens[tokenizer]}, CIDEr = CIDEr-D{java}) | "
        f"{len(references)} images{chosen} | references {references_digest(references)} | "
        f"95 % bootstrap over images, 1000 resamples, seed 0{whole}"
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
