"""Anyone's captions matched to the pictures they are of, and two sets of captions compared."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nanocaption import metrics
from nanocaption.data.prepared import Record
from nanocaption.metrics import files
from nanocaption.metrics.files import Prediction, Reference, by_key, id_key
from nanocaption.metrics.ptb import Tokenize


class Side(NamedTuple):
    """One side of a comparison."""

    predictions: Path
    references: list[Reference] | None  # what the references.json beside it says


class Way(NamedTuple):
    """One way of naming pictures: `places[form(name)]` are the pictures that a name may mean."""

    how: str
    places: dict[str, list[int]]
    form: Callable[[int | str], str]


COCO_NAME = re.compile(r"(?:COCO_[A-Za-z]+\d*_)?(\d{12})(?:\.[A-Za-z]+)?", re.ASCII)


def read_predictions(path: Path, records: Sequence[Record], only_predicted: bool = False) -> list[str | None]:
    """The captions of `path` for the records, in their order, as `match_predictions` finds them.

    With `only_predicted` some may have none. Where nothing but their places in the split can be meant by the numbers of
    a file, as the set has no ids of its own, a line is printed.
    """
    names = [record["file_name"] for record in records]
    found, way = match_predictions(path, names, [record.get("image_id") for record in records])
    if way.how == IN_ORDER:
        print(f"{path.name}: the set has no ids of its own, so image_id is taken for the {IN_ORDER}, from 0: "
              f"{min(found)} is {names[min(found)]}")  # fmt: skip
    if not only_predicted:
        _require_all(path, dict(enumerate(names)), found)
    return [found.get(place) for place in range(len(names))]


def image_ids(records: Sequence[Record]) -> list[int | str]:
    """The id of each picture in the files written here: the set's own where all have one, else its place from 0."""
    ids = [record["image_id"] for record in records if record.get("image_id") is not None]
    return ids if len(ids) == len(set(map(id_key, ids))) == len(records) else list(range(len(records)))


def match_predictions(
    path: Path, file_names: Sequence[str], ids: Sequence[int | str | None], ids_first: bool = False
) -> tuple[dict[int, str], Way]:
    """{place of a picture: caption} of `path` (see `metrics.files.read_predictions`), and how pictures are named there.

    An entry names its picture by "file_name", and where none of these is known by "image_id", which may be a file name,
    a file name without its ending or without its folder, or the picture's id; ids are one where their texts are equal,
    or their numbers where both are digits. The number in a name such as COCO_val2014_000000000042.jpg is one, too. Only
    where no picture has an id may it be the place from 0. ids_first: what may be ids of all is that and nothing else.
    Raises ValueError for a picture named twice, one that is not among these, and names that fit in two ways.
    """
    predictions = files.read_predictions(path)
    names, ways = _named(predictions, file_names, ids, path)
    if ids_first:
        ways = [way for way in ways if way.how == BY_ID] or ways
    captions: dict[int, str] = {}
    for name, prediction in zip(names, predictions, strict=True):
        meant = {place: way.how for way in reversed(ways) for place in way.places[way.form(name)]}
        (place, how), *others = sorted(meant.items())
        if others:
            other, its_how = others[0]
            raise ValueError(f"{path}: image_id {str(name)!r} may mean {file_names[place]} ({how}) or "
                             f'{file_names[other]} ({its_how}): give each entry a "file_name"')  # fmt: skip
        if place in captions:
            raise ValueError(f"{path} has two captions for image {name!r}: keep one for each image")
        captions[place] = prediction.caption
    return captions, ways[0]


def _named(
    predictions: Sequence[Prediction], file_names: Sequence[str], ids: Sequence[int | str | None], path: Path
) -> tuple[list[int | str], list[Way]]:
    """What names the picture of each prediction, and the ways of naming that know all of these."""
    groups, last = _ways(file_names, ids)
    names = [one.image_id if one.file_name is None else one.file_name for one in predictions]
    if fitting := _fitting(groups, names) or _fitting([last], names):
        return names, fitting
    known = [[way.form(name) in way.places for name in names] for group in [*groups, last] for way in group]
    own = [one.image_id for one in predictions]
    if not any(map(any, known)) and None not in own and (fitting := _fitting(groups, own)):
        return own, fitting  # the names are those of another copy of the pictures
    unknown = [name for name, there in zip(names, max(known, key=sum), strict=True) if not there]
    raise ValueError(
        f"{path}: {len(unknown)} of {len(names)} predictions are for images without references, the first "
        f"{unknown[0]!r} (there is {file_names[0]!r}): check the data set, its split and the names"
    )


BY_NAME, BY_ID, BY_NUMBER, IN_ORDER = "by name", "by id", "by the number in its name", "place in the split"


def _ways(file_names: Sequence[str], ids: Sequence[int | str | None]) -> tuple[list[list[Way]], list[Way]]:
    """Ways of naming the pictures, in groups whose first that fits counts; and those to try where no group has one."""
    base_names = list(map(posixpath.basename, file_names))
    stems = [posixpath.splitext(name)[0] for name in base_names]
    known = [None if image is None else str(image) for image in ids]
    keys = _index([id_key(image) if image else None for image in known])
    numbers = _index([_coco_number(name) or (id_key(stem) if stem.isdigit() else None)
                      for name, stem in zip(file_names, stems, strict=True)])  # fmt: skip
    groups = [
        [Way(BY_NAME, _index(way), str) for way in (file_names, base_names, stems)],
        [Way(BY_ID, _index(known), str), Way(BY_ID, keys, id_key)],
        [Way(BY_NUMBER, numbers, id_key)],
    ]
    if not any(known):
        groups.append([Way(IN_ORDER, _index([str(place) for place in range(len(file_names))]), str)])
    return groups, [Way(BY_ID, keys, _coco_number), Way(BY_NUMBER, numbers, _coco_number)]


def _coco_number(name: int | str) -> str:
    """The number in a file name of COCO's; empty for others: "COCO_val2014_000000000042.jpg" -> "42"."""
    match = COCO_NAME.fullmatch(posixpath.basename(str(name)))
    return id_key(match[1]) if match else ""


def _index(names: Sequence[str | None]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name is not None:
            places.setdefault(name, []).append(place)
    return places


def _fitting(groups: list[list[Way]], names: Sequence[int | str]) -> list[Way]:
    """The first way of each group that knows all names."""
    fitting = []
    for group in groups:
        fitting += [way for way in group if all(way.form(name) in way.places for name in names)][:1]
    return fitting


def _require_all(path: Path, images: Mapping[int, int | str], found: Mapping[int, str]) -> None:
    """images: what names the image of each place that needs a caption."""
    if missing := [name for place, name in images.items() if place not in found]:
        raise ValueError(f"{path}: {len(missing)} of {len(images)} images have no prediction, the first {missing[0]!r}"
                         ": caption them all, or score those that have one alone: --only-predicted")  # fmt: skip


def read_side(path: Path) -> Side:
    """A results folder, or a predictions file. Raises ValueError where it is not there or cannot be read."""
    file = path / "predictions.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"There is no {file}. Name a results folder, a predictions file or a checkpoint.")
    files.read_json(file)
    beside = file.parent / "references.json"
    return Side(file, files.read_references(beside) if beside.is_file() else None)


def compare_sides(
    first: Side, second: Side, meteor: bool, spice: bool, tokenize: Tokenize = metrics.ptb_tokenize,
    only_predicted: bool = False,
) -> tuple[dict[str, metrics.Difference], list[Reference], int]:  # fmt: skip
    """The paired test of two sides, the references of both, and how many there would be with captions of them all.

    only_predicted: over the images that both have. Raises ValueError where images or references differ.
    """
    there = [side.references for side in (first, second) if side.references]
    if not there:
        raise ValueError("Neither side has a references.json beside its predictions: nanocaption score REFERENCES A "
                         "--compare B takes them apart.")  # fmt: skip
    # First those that know file names, which the other side may use.
    there.sort(key=lambda side: side[0].file_name == str(side[0].image_id))
    known = [by_key(side) for side in there]
    if len(known) == 2:
        metrics.require_same_references(*(
            {known[0].get(key, one).image_id: one.captions for key, one in side.items()
             if not only_predicted or all(key in other for other in known)} for side in known))  # fmt: skip
    references = list({**known[-1], **known[0]}.values())
    paths = first.predictions, second.predictions
    found = compare_files(references, *paths, meteor, spice, tokenize, only_predicted)
    return *found, sum(bool(one.captions) for one in references)


def compare_files(
    references: Sequence[Reference], first: Path, second: Path, meteor: bool, spice: bool,
    tokenize: Tokenize = metrics.ptb_tokenize, only_predicted: bool = False,
) -> tuple[dict[str, metrics.Difference], list[Reference]]:  # fmt: skip
    """The paired test of two predictions files, whose captions are matched to `references`; and those of them used."""
    used, captions = match_references((first, second), references, only_predicted)
    prepared = metrics.prepare_references(captions_by_id(used), tokenize)
    one, other = (metrics.measure(prepared, side, meteor, spice) for side in captions)
    return metrics.compare(one, other), used


def match_references(
    paths: Sequence[Path], references: Sequence[Reference], only_predicted: bool
) -> tuple[list[Reference], list[dict[int | str, str]]]:
    """The references that are scored, and {image id: caption} of each predictions file for them, in their order.

    These are the images with references; with `only_predicted` those that have a prediction in every file. Raises
    ValueError where there are none, and without `only_predicted` for an image without prediction.
    """
    ids, names = [one.image_id for one in references], [one.file_name for one in references]
    sides = [match_predictions(path, names, ids, ids_first=True)[0] for path in paths]
    scored = {place: one.image_id for place, one in enumerate(references) if one.captions}
    if not only_predicted:
        for path, side in zip(paths, sides, strict=True):
            _require_all(path, scored, side)
    used = [place for place in scored if all(place in side for side in sides)]
    if not used:
        raise ValueError(f"{' and '.join(map(str, paths))}: there is no image with references and a prediction in each "
                         "file, so there is nothing to score")  # fmt: skip
    return [references[place] for place in used], [{ids[place]: side[place] for place in used} for side in sides]


def captions_by_id(references: Sequence[Reference]) -> dict[int | str, list[str]]:
    return {one.image_id: one.captions for one in references}
