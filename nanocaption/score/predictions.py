"""Anyone's captions matched to the pictures they are of, and two sets of captions compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nanocaption import metrics
from nanocaption.data.prepared import Record
from nanocaption.metrics import files
from nanocaption.metrics.files import Prediction, Reference


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
    tables = _tables(file_names, numbers)
    names = _names(predictions, tables)
    place_of = _best_table(list(map(str, names)), tables, file_names, numbers_first, path)
    if unknown := [name for name in names if str(name) not in place_of]:
        raise ValueError(f"{path}: {len(unknown)} of {len(names)} predictions are for images without references, the "
                         f"first {unknown[0]!r}: check the data set, its split and the names")  # fmt: skip
    captions: dict[int, str] = {}
    for name, prediction in zip(names, predictions, strict=True):
        if place_of[str(name)] in captions:
            raise ValueError(f"{path} has two captions for image {name!r}: keep one for each image")
        captions[place_of[str(name)]] = prediction.caption
    if missing := [name for place, name in enumerate(file_names) if place not in captions]:
        raise ValueError(f"{path}: {len(missing)} of {len(file_names)} images have no prediction, the first "
                         f"{missing[0]!r}: caption them all, or take fewer references (--data-cutoff)")  # fmt: skip
    return [captions[place] for place in range(len(file_names))]


def _names(predictions: Sequence[Prediction], tables: list[dict[str, int]]) -> list[int | str | None]:
    """What names the picture of each prediction: its file name, and where none of these is known its id."""
    ids = [one.image_id for one in predictions]
    names = [one.image_id if one.file_name is None else one.file_name for one in predictions]
    known = any(str(name) in table for table in tables for name in names)
    if not known and any(table.keys() >= set(map(str, ids)) for table in tables):
        return ids  # theirs are the file names of another copy of the pictures
    return names


def _tables(file_names: Sequence[str], numbers: Sequence[int | str]) -> list[dict[str, int]]:
    """The ways of naming the pictures as {name: place}: file name, its stem, its last part, and number, the last."""
    paths = list(map(Path, file_names))
    ways = [file_names, [path.stem for path in paths], [path.name for path in paths], list(map(str, numbers))]
    # A name that may mean two pictures is none.
    return [{name: place for place, name in enumerate(way)} for way in ways if len(set(way)) == len(way)]


def _best_table(
    names: Sequence[str], tables: list[dict[str, int]], file_names: Sequence[str], numbers_first: bool, path: Path
) -> dict[str, int]:
    """The way of naming that fits most of the names."""
    if not tables or numbers_first and tables[-1].keys() >= set(names):
        return tables[-1] if tables else {}
    fits = [sum(name in table for name in names) for table in tables]
    best = [table for table, fit in zip(tables, fits, strict=True) if fit == max(fits)]
    for name in names:
        meant = sorted({table[name] for table in best if name in table})
        if len(meant) > 1:
            one, other = (file_names[place] for place in meant[:2])
            raise ValueError(f"{path}: image_id {name!r} may mean {one} or {other}, by name or by number: give each "
                             'entry a "file_name"')  # fmt: skip
    return best[0]


def read_side(path: Path) -> Side:
    """A results folder, or a predictions file. Raises ValueError where it is not there or cannot be read."""
    file = path / "predictions.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"There is no {file}. Name a results folder, a predictions file or a checkpoint.")
    files.read_json(file)
    beside = file.parent / "references.json"
    return Side(file, files.read_references(beside) if beside.is_file() else None)


def compare_sides(
    first: Side, second: Side, meteor: bool, spice: bool
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
    return compare_files(references, first.predictions, second.predictions, meteor, spice), references


def compare_files(
    references: Sequence[Reference], first: Path, second: Path, meteor: bool, spice: bool
) -> dict[str, metrics.Difference]:
    """The paired test of two predictions files over all images of `references`, whose captions are matched to them."""
    prepared = metrics.prepare_references(captions_by_id(references))
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
