"""The results folder of an evaluation: scores, predictions, references, the page, and captions of an unfinished one."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanocaption import metrics
from nanocaption.base.files import read_log, write_atomically
from nanocaption.metrics import files
from nanocaption.score.report import FEW_IMAGES

Records = list[dict[str, Any]]


def digest(*parts: Any) -> str:
    """Twelve hexadecimal digits of JSON-like data, or of the content of a file where a part is a Path."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        else:
            total.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    return total.hexdigest()[:12]


def check_records(records: Records, images_dir: Path | None) -> None:
    """Raises ValueError, with the first case, for a picture without references or (with images_dir) without file."""
    bare = [record["file_name"] for record in records if not record["captions"]]
    if bare:
        raise ValueError(f"{len(bare)} of {len(records)} pictures have no reference caption, the first {bare[0]!r}: "
                         "give them one or take them out of captions.json")  # fmt: skip
    if images_dir is not None:
        names = [record["file_name"] for record in records if not (images_dir / record["file_name"]).is_file()]
        if names:
            raise ValueError(f"{len(names)} of {len(records)} pictures are missing in {images_dir}, the first "
                             f"{names[0]!r}: prepare the data set again")  # fmt: skip


def folder_for(folder: Path, key: str) -> Path:
    """`folder`, or the first of folder_2, folder_3, ... that holds nothing of an evaluation with another key."""
    others = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([folder], others) if _keys(place) <= {key})


def _keys(folder: Path) -> set[str | None]:
    """Of the results and the kept captions in `folder`; None: of an earlier version, which wrote none."""
    found = [rows[0] for path in folder.glob("captions-*.jsonl") if (rows := read_log(path))]
    scores = folder / "scores.json"
    keys = [row.get("key") for row in found + ([read_object(scores)] if scores.is_file() else [])]
    return {key if isinstance(key, str) else None for key in keys}


def tidy_kept(folder: Path, key: str) -> None:
    """Gather what a stopped evaluation left in `folder` into one file; captions of another key are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, old = read_kept(folder, key), list(folder.glob("captions-*.jsonl"))
    if kept:
        rows = [{"key": key}] + [{"image": image, "caption": caption} for image, caption in kept.items()]
        write_atomically(folder / "captions-kept.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for path in old:
        if not kept or path.name != "captions-kept.jsonl":
            path.unlink()


def read_kept(folder: Path, key: str) -> dict[int, str]:
    """{place in the split: caption} of finished batches with this key; a torn last line is left out."""
    kept: dict[int, str] = {}
    for path in sorted(folder.glob("captions-*.jsonl")):
        rows = read_log(path)
        if rows and rows[0].get("key") == key:
            whole = (row for row in rows[1:] if type(row.get("image")) is int and isinstance(row.get("caption"), str))
            kept |= {row["image"]: row["caption"] for row in whole}
    return kept


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def drop_kept(folder: Path) -> None:
    for path in folder.glob("captions-*.jsonl"):
        path.unlink()


def read_predictions(path: Path, records: Records, numbers_first: bool = False) -> list[str]:
    """Anyone's captions of the records, in their order: a COCO results list, or a mapping {picture: caption}.

    An entry names its picture by "file_name", and where none of these is known by "image_id", which may be a file name,
    a file name without its ending or without its folder, or the picture's number (`image_ids`), as in the
    references.json written here. numbers_first: what may be a number of all pictures is one, not a name. Raises
    ValueError for a picture named twice, one that is not in the split, one without caption, and names that fit in two
    ways.
    """
    content = files.read_json(path)
    rows = content if isinstance(content, list) else []
    named = [
        row | {"image_id": row["file_name"]} if isinstance(row, dict) and isinstance(row.get("file_name"), str) else row
        for row in rows
    ]
    entries = [*(content.items() if isinstance(content, dict) else ()),
               *(files.image_and_caption(row, path) for row in named)]  # fmt: skip
    if not entries or isinstance(content, dict) and not any(isinstance(caption, str) for caption in content.values()):
        raise ValueError(f'{path} has no predictions: expected [{{"image_id": 1, "caption": "..."}}, ...]')
    place_of = _best_names([str(name) for name, _ in entries], records, path, numbers_first)
    unknown = [name for name, _ in entries if str(name) not in place_of]
    # The file names of another copy of the pictures: by number.
    if len(unknown) == len(entries) and named != rows and all("image_id" in row for row in rows):
        entries = [files.image_and_caption(row, path) for row in rows]
        place_of = _best_names([str(name) for name, _ in entries], records, path, numbers_first)
        if all(str(name) in place_of for name, _ in entries):  # else the file names are told
            unknown = []
    captions: dict[int, str] = {}
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} of {len(entries)} predictions are for pictures that are not in this "
                         f"split, the first {unknown[0]!r}: check --dataset, --split and the names")  # fmt: skip
    for name, caption in entries:
        if not isinstance(caption, str):
            raise ValueError(f"{path}: the caption of {name!r} must be a text, got {caption!r:.60}")
        if place_of[str(name)] in captions:
            raise ValueError(f"{path} has two captions for {name!r}: keep one for each picture")
        captions[place_of[str(name)]] = caption
    missing = [record["file_name"] for place, record in enumerate(records) if place not in captions]
    if missing:
        raise ValueError(f"{path}: {len(missing)} of {len(records)} pictures have no prediction, the first "
                         f"{missing[0]!r}: caption them all, or take fewer with --data-cutoff")  # fmt: skip
    return [captions[place] for place in range(len(records))]


def image_ids(records: Records) -> list[int]:
    """The number of each picture in the files written here: COCO's own where all have one, else its place from 0."""
    ids = [record.get("image_id") for record in records]
    return ids if None not in ids and len(set(ids)) == len(ids) else list(range(len(records)))


def _best_names(names: Sequence[str], records: Records, path: Path, numbers_first: bool) -> dict[str, int]:
    """{name: place} by the way of naming that fits most of `names`: file name, its stem, or number."""
    ways = [[record["file_name"] for record in records], [Path(record["file_name"]).stem for record in records],
            [Path(record["file_name"]).name for record in records],
            [str(number) for number in image_ids(records)]]  # fmt: skip
    tables = [dict(zip(way, range(len(way)), strict=True)) for way in ways if len(set(way)) == len(way)]
    if numbers_first and all(name in tables[-1] for name in names):
        return tables[-1]
    fits = [sum(name in table for name in names) for table in tables]
    best = [table for table, fit in zip(tables, fits, strict=True) if fit == max(fits)]
    for name in names:
        places = sorted({table[name] for table in best if name in table})
        if len(places) > 1:
            one, other = (records[place]["file_name"] for place in places[:2])
            raise ValueError(f"{path}: image_id {name!r} may mean {one} or {other}, by name or by number: give each "
                             'entry a "file_name"')  # fmt: skip
    return best[0]


def read_results(path: Path) -> tuple[Path, Records | None]:
    """(the predictions file, what the references.json beside it says) of a results folder, or of a predictions file."""
    file = path / "predictions.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"There is no {file}. Name a results folder, a predictions file or a checkpoint.")
    files.read_json(file)
    beside = file.parent / "references.json"
    if not beside.is_file():
        return file, None
    references, content = files.read_references(beside), files.read_json(beside)
    images = content.get("images", []) if "annotations" in content else []
    names = {entry["id"]: entry.get("file_name", str(entry["id"])) for entry in images}
    return file, [
        {"file_name": names.get(image, str(image)), "image_id": image, "captions": captions}
        for image, captions in references.items()
    ]


def origin(path: Path) -> str:
    """What made the captions of `path`, a results folder or a predictions file: its signature, or its digest."""
    if isinstance(signature := read_object(path / "scores.json").get("signature"), str):
        return signature
    return f"captions of {path.name} {digest(path / 'predictions.json' if path.is_dir() else path)}"


def compare_results(
    first: tuple[Path, Records | None], second: tuple[Path, Records | None], meteor: bool, spice: bool
) -> tuple[dict[str, metrics.Difference], dict]:
    """The paired test of two sides as `read_results` gives them, and their references by image.

    Both are read as `read_predictions` reads them: by file name, else by number. ValueError where images or references
    differ.
    """
    there = [side[1] for side in (first, second) if side[1]]
    # Those that know file names, which the other side may use.
    records = max(there, key=lambda side: side[0]["file_name"] != str(side[0]["image_id"]), default=None)
    if records is None:
        raise ValueError("Neither side has a references.json beside its predictions: nanocaption score REFERENCES A "
                         "--compare B takes them apart.")  # fmt: skip
    if first[1] and second[1]:
        by_image = [{record["image_id"]: record["captions"] for record in side} for side in (first[1], second[1])]
        metrics.require_same_references(*by_image)
    references = {record["image_id"]: record["captions"] for record in records}
    prepared = metrics.prepare_references(references)
    sides = [
        dict(zip(references, read_predictions(path, records, numbers_first=True), strict=True))
        for path, _ in (first, second)
    ]
    return metrics.compare(*(metrics.measure(prepared, captions, meteor, spice) for captions in sides)), references


def write_results(
    output: Path,
    records: Records,
    captions: list[str],
    per_image: list[dict[str, float]],
    scores: dict[str, Any],
) -> None:
    """predictions.json, references.json and scores.json in `output`.

    predictions.json is the COCO results layout; its readers ignore the file name beside each caption.
    """
    output.mkdir(parents=True, exist_ok=True)
    rows = list(zip(image_ids(records), zip(records, captions, per_image, strict=True), strict=True))
    predictions = [
        {"image_id": i, "caption": caption, "file_name": record["file_name"]} for i, (record, caption, _) in rows
    ]
    references = {
        "images": [{"id": i, "file_name": record["file_name"]} for i, (record, _, _) in rows],
        "annotations": [
            {"id": len(records) * n + place, "image_id": i, "caption": text}
            for place, (i, (record, _, _)) in enumerate(rows)
            for n, text in enumerate(record["captions"])
        ],
    }
    for name, content in (("predictions", predictions), ("references", references), ("scores", scores)):
        write_atomically(output / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False))


def scores_table(scores: dict[str, Any]) -> str:
    """The scores as lines of text, times 100 as the field prints them."""
    humans = scores.get("leave_one_out")
    head = f"\n{'':10}{'model':>8}   {'95 % interval':<16}"
    lines = [head + ("  people (each reference against the others)" if humans else "")]
    for name, value in scores["corpus"].items():
        low, high = scores["intervals"][name]
        line = f"{name:10}{100 * value:8.1f}   {f'{100 * low:.1f} to {100 * high:.1f}':<16}"
        lines.append((line + (f"{100 * humans[name]:8.1f}" if humans and name in humans else "")).rstrip())
    if humans and humans["CIDEr"] > 0:
        lines.append(f"CIDEr is {scores['corpus']['CIDEr'] / humans['CIDEr']:.0%} of what people reach")
    for kind, count in scores.get("truth", {}).items():
        share = f"{count['true'] / count['claims']:.1%}" if count["claims"] else "none named"
        lines.append(f"true {kind:10} {share} of {count['claims']} named")
    text = scores["text"]
    lines.append(
        f"captions   {text['mean_length']:.1f} words, {text['vocabulary']:,} different ones; distinct-1 "
        f"{text['distinct_1']:.3f}, distinct-2 {text['distinct_2']:.3f}; {text['repetition']:.1%} repeat themselves"
        + (f"; {text['seen']:.1%} stand in the training captions" if "seen" in text else "")
    )
    if text["empty"]:
        lines.append(f"{text['empty']} captions are empty and score 0.")
    if scores["images"] < FEW_IMAGES:
        lines.append(f"Only {scores['images']} images: these scores are rough, CIDEr above all.")
    return "\n".join([*lines, scores.get("signature", "")])
