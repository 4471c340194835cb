"""The results folder of an evaluation: scores, predictions, references, the page, and captions of an unfinished one."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from nanocaption.base.files import read_log, write_atomically
from nanocaption.data.prepared import Record
from nanocaption.metrics.files import FEW_IMAGES
from nanocaption.score.predictions import image_ids
from nanocaption.score.scoring import Scores, domain_lines

_KEPT = ("captions-*.jsonl", "likelihood-*.npy", "both-*.npy")  # of an evaluation that is not done; then comes its key


def digest(*parts: object) -> str:
    """Twelve hexadecimal digits of JSON-like data, or of the content of a file where a part is a Path."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        else:
            total.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    return total.hexdigest()[:12]


def folder_for(folder: Path, key: str) -> Path:
    """`folder`, or the first of folder_2, folder_3, ... that holds nothing of an evaluation with another key."""
    others = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([folder], others) if _keys(place) <= {key})


def _keys(folder: Path) -> set[str]:
    """Of the results and the kept captions in `folder`."""
    kept = {path.stem.split("-")[1] for pattern in _KEPT for path in folder.glob(pattern)}
    done = [folder / name for name in ("scores.json", "retrieval.json")]  # of an early version they have no key
    return kept | {str(read_object(path).get("key")) for path in done if path.is_file()}


def open_kept(folder: Path, key: str, rank: int) -> TextIO:
    """A new file for the captions of a process, open to write; another evaluation of the same never has it."""
    for number in itertools.count(len(list(folder.glob(f"captions-{key}-*.jsonl")))):
        with contextlib.suppress(FileExistsError):
            return (folder / f"captions-{key}-{number}-{rank}.jsonl").open("x", encoding="utf-8")
    raise AssertionError("numbers do not end")


def read_kept(folder: Path, key: str) -> dict[int, tuple[str, bool]]:
    """{place in the split: (caption, whether it was broken)} of finished batches with this
    key; a torn last line is left out."""
    rows: list[dict[str, object]] = []
    for path in sorted(folder.glob(f"captions-{key}-*.jsonl")):
        try:
            rows += read_log(path)
        except ValueError:
            if path.exists():  # else another process has finished, and deleted it
                raise
    return {row["image"]: (row["caption"], row.get("broken") is True) for row in rows
            if type(row.get("image")) is int and isinstance(row.get("caption"), str)}  # fmt: skip


def drop_kept(folder: Path) -> None:
    for path in (path for pattern in _KEPT for path in folder.glob(pattern)):
        path.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, object]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def origin(path: Path) -> str:
    """What made the captions of `path`, a results folder or a predictions file: its signature, or its digest."""
    if isinstance(signature := read_object(path / "scores.json").get("signature"), str):
        return signature
    return f"captions of {path.name} {digest(path / 'predictions.json' if path.is_dir() else path)}"


def write_results(
    output: Path, records: Sequence[Record], captions: Sequence[str], scores: Scores,
    ids: Sequence[int | str] | None = None,
) -> None:  # fmt: skip
    """predictions.json, references.json and scores.json in `output`.

    predictions.json is the COCO results layout; its readers ignore the file name beside each caption. ids: of the
    records, where these are a part of their set; else as `image_ids` finds them.
    """
    output.mkdir(parents=True, exist_ok=True)
    ids = ids or image_ids(records)
    names = [record["file_name"] for record in records]
    predictions = [
        {"image_id": i, "caption": caption, "file_name": name}
        for i, caption, name in zip(ids, captions, names, strict=True)
    ]
    references = {
        "images": [
            {"id": i, "file_name": record["file_name"]} | ({"domain": record["domain"]} if "domain" in record else {})
            for i, record in zip(ids, records, strict=True)
        ],
        "annotations": [
            {"id": len(records) * n + place, "image_id": ids[place], "caption": text}
            for place, record in enumerate(records)
            for n, text in enumerate(record["captions"])
        ],
    }
    for name, content in (("predictions", predictions), ("references", references), ("scores", scores)):
        write_atomically(output / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False))


def scores_table(scores: Scores) -> str:
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
    lines += domain_lines(scores.get("domains", {}), factor=100)
    for kind, count in scores.get("truth", {}).items():
        share = f"{count['true'] / count['claims']:.1%}" if count["claims"] else "none named"
        lines.append(f"true {kind:10} {share} of {count['claims']} named")
    text = scores["text"]
    lines.append(
        f"captions   {text['mean_length']:.1f} words, {text['vocabulary']:,} different ones; distinct-1 "
        f"{text['distinct_1']:.3f}, distinct-2 {text['distinct_2']:.3f}; {text['repetition']:.1%} repeat themselves"
        + (f"; {text['seen']:.1%} stand in the training captions" if "seen" in text else "")
    )
    if "bad_endings" in text:
        bad, unstopped = text["bad_endings"], text["unstopped"]
        lines.append(f"endings    {bad:.1%} end in a word that must go on, {unstopped:.1%} have no full stop")
    if text.get("broken"):
        lines.append(f"{text['broken']} captions are broken: they end within a character, or are no Unicode text.")
    if text["empty"]:
        lines.append(f"{text['empty']} captions are empty and score 0.")
    if scores["images"] < FEW_IMAGES:
        lines.append(f"Only {scores['images']} images: these scores are rough, CIDEr above all.")
    return "\n".join([*lines, scores.get("signature", "")])
