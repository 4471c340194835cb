"""Anyone's captions matched to the pictures they are of, and two sets of captions compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nanocaption import metrics
from nanocaption.data.prepared import Record
from nanocaption.metrics import files
from nanocaption.metrics.files import Prediction, Reference
from nanocaption.metrics.ptb import Tokenize


class Side(NamedTuple):
    """One side of a comparison."""

    predictions: Path
    references: list[Reference] | None  # what the references.json beside it says


def read_predictions(path: Path, records: Sequence[Record]) -> list[str]:
    """The captions of `path` for the records, in their order, as `match_predictions` finds them."""
    return match_predictions(path, [record["file_name"] for record in records], image_ids(records))


def image_ids(records: Sequence[Record]) -> list[int]:
    """The number of each picture in the files written here: COCO's own where all have one, else its place from 0."""
    ids = [record["image_id"] for record in records if record.get("image_id") is not None]
    return ids if len(ids) == len(set(ids)) == len(records) else list(range(len(records)))


def match_predictions(
    path: Path, file_names: Sequence[str], numbers: Sequence[int | str], numbers_first: bool = False
) -> list[str]:
    """The captions of `path` (see `metrics.files.read_predictions`) for these pictures, in their order.

    An entry names its picture by "file_name", and where none of these is known by "image_id", which may be a file name,
    a file name without its ending or without its folder, or the picture's number. numbers_first: what may be a number
    of all pictures is one, not a name. Raises ValueError for a picture named twice, one that is not among these, one
    without caption, and names that fit in two ways.
    """
    predictions = files.read_predictions(path)
    ways = _ways(file_names, numbers)
    names, fitting = _named(predictions, ways, path)
    if numbers_first and fitting[-1] is ways[-1]:
        fitting = fitting[-1:]
    captions: dict[int, str] = {}
    for name, prediction in zip(names, predictions, strict=True):
        place, *others = sorted({way[str(name)] for way in fitting})
        if others:
            raise ValueError(f"{path}: image_id {str(name)!r} may mean {file_names[place]} or {file_names[others[0]]}, "
                             'by name or by number: give each entry a "file_name"')  # fmt: skip
        if place in captions:
            raise ValueError(f"{path} has two captions for image {name!r}: keep one for each image")
        captions[place] = prediction.caption
    if missing := [name for place, name in enumerate(file_names) if place not in captions]:
        raise ValueError(f"{path}: {len(missing)} of {len(file_names)} images have no prediction, the first "
                         f"{missing[0]!r}: caption them all, or take fewer references (--data-cutoff)")  # fmt: skip
    return [captions[place] for place in range(len(file_names))]


def _named(
    predictions: Sequence[Prediction], ways: list[dict[str, int]], path: Path
) -> tuple[list[int | str | None], list[dict[str, int]]]:
    """What names the picture of each prediction, and which ways of naming know all of these."""
    names = [one.image_id if one.file_name is None else one.file_name for one in predictions]
    ids = [one.image_id for one in predictions]
    if not any(str(name) in way for way in ways for name in names) and _fitting(ways, ids):
        names = ids  # theirs are the file names of another copy of the pictures
    fitting = _fitting(ways, names)
    if not fitting:
        known = max(ways, key=lambda way: sum(str(name) in way for name in names), default={})
        unknown = [name for name in names if str(name) not in known]
        raise ValueError(f"{path}: {len(unknown)} of {len(names)} predictions are for images without references, the "
                         f"first {unknown[0]!r}: check the data set, its split and the names")  # fmt: skip
    return names, fitting


def _ways(file_names: Sequence[str], numbers: Sequence[int | str]) -> list[dict[str, int]]:
    """The ways of naming the pictures as {name: place}: file name, its stem, its last part, and number, the last."""
    paths = list(map(Path, file_names))
    ways = [file_names, [path.stem for path in paths], [path.name for path in paths], list(map(str, numbers))]
    # A name that may mean two pictures is none.
    return [{name: place for place, name in enumerate(way)} for way in ways if len(set(way)) == len(way)]


def _fitting(ways: list[dict[str, int]], names: Sequence[object]) -> list[dict[str, int]]:
    return [way for way in ways if way.keys() >= set(map(str, names))]


def read_side(path: Path) -> Side:
    """A results folder, or a predictions file. Raises ValueError where it is not there or cannot be read."""
    file = path / "predictions.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"There is no {file}. Name a results folder, a predictions file or a checkpoint.")
    files.read_json(file)
    beside = file.parent / "references.json"
    return Side(file, files.read_references(beside) if beside.is_file() else None)


def compare_sides(
    first: Side, second: Side, meteor: bool, spice: bool, tokenize: Tokenize = metrics.ptb_tokenize
) -> tuple[dict[str, metrics.Difference], list[Reference]]:
    """The paired test of two sides, and the references of both. ValueError where images or references differ."""
    there = [side.references for side in (first, second) if side.references]
    if not there:
        raise ValueError("Neither side has a references.json beside its predictions: nanocaption score REFERENCES A "
                         "--compare B takes them apart.")  # fmt: skip
    if len(there) == 2:
        metrics.require_same_references(*map(captions_by_id, there))
    # Those that know file names, which the other side may use.
    references = max(there, key=lambda side: side[0].file_name != str(side[0].image_id))
    files_of_both = first.predictions, second.predictions
    return compare_files(references, *files_of_both, meteor, spice, tokenize), references


def compare_files(
    references: Sequence[Reference], first: Path, second: Path, meteor: bool, spice: bool,
    tokenize: Tokenize = metrics.ptb_tokenize,
) -> dict[str, metrics.Difference]:
    """The paired test of two predictions files over all images of `references`, whose captions are matched to them."""
    prepared = metrics.prepare_references(captions_by_id(references), tokenize)
    one, other = (
        metrics.measure(prepared, match_references(path, references), meteor, spice) for path in (first, second)
    )
    return metrics.compare(one, other)


def match_references(path: Path, references: Sequence[Reference]) -> dict[int | str, str]:
    """{image id: caption} of a predictions file, in the order of `references`."""
    ids = [one.image_id for one in references]
    captions = match_predictions(path, [one.file_name for one in references], ids, numbers_first=True)
    return dict(zip(ids, captions, strict=True))


def captions_by_id(references: Sequence[Reference]) -> dict[int | str, list[str]]:
    return {one.image_id: one.captions for one in references}
