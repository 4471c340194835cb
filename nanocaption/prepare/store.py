"""A prepared set on the disk: begun, written, finished with its manifest."""

import contextlib
import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nanocaption.base.files import (
    link_or_copy,
    links_work,
    locked,
    require_space,
    size_of,
    whole,
    write_atomically,
)
from nanocaption.data import prepared
from nanocaption.data.prepared import Record, kept_captions
from nanocaption.data.shards import Packed
from nanocaption.prepare import check, check_report, layouts


def in_images(folder: Path, records: Sequence[Record]) -> dict[str, Path]:
    """file_name -> picture, for pictures that were unpacked to their place."""
    return {record["file_name"]: folder / "images" / record["file_name"] for record in records}


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Make a set while no other process does; gives whether one had to be waited for, which may have made it.

    Folders in which nothing was made are not left behind. Raises OSError where nothing can be written there.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    try:
        with locked(lock, f"Another process is making {folder}; waiting for it.") as waited:
            yield waited
    finally:
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} == {lock.name}:
                lock.unlink()
                for place in new:
                    place.rmdir()


def look_at_space(folder: Path, pictures: Mapping[str, Path | Packed]) -> None:
    """Before the first picture is decoded: whether the disk of a set has room for what has to be copied to it.

    Hard links take none; pictures that are there already are counted off. Raises ValueError naming the folder.
    """
    files = {name: path for name, path in pictures.items() if isinstance(path, Path)}
    first = next(iter(files.values()), None)
    if first is None or links_work(first, folder):
        return
    needed = sum((size_of(path) or 0) for name, path in files.items()
                 if size_of(folder / "images" / name) != size_of(path))  # fmt: skip
    require_space(folder, needed, "DATA_DIR")


def begin(folder: Path) -> None:
    """Make room for a set: from here on the folder is half-made, and says so by having no manifest."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)


def bring(source: Path, target: Path) -> None:
    """Bring a picture to its place, by `link_or_copy`; one of the same size and time that is there is kept."""
    if target.exists():
        there, here = target.stat(), source.stat()
        if (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target)


def keep_replaced(folder: Path, digest: str) -> None:
    """Keep the captions.json that one of this sha256 is to replace, if it is another: runs know it, and splits stand in
    it."""
    old = folder / "captions.json"
    content = prepared.sha256_of(old) if old.exists() else digest
    if content != digest:
        kept = kept_captions(folder, content)
        link_or_copy(old, kept)
        print(f"note: other captions than before: the old ones are kept in {kept}; runs that were trained on them "
              "go on where their own pictures and captions are as they were")  # fmt: skip


def write_set(
    folder: Path, records: Sequence[Record], notes: Sequence[str], checked: check.Checked | None = None,
    **about: object,
) -> Path:  # fmt: skip
    """Write captions.json, the report, then the manifest with `about` in it, print them, and return `folder`.

    checked: what was found where pictures and captions were looked at.
    """
    if checked is not None:
        about |= checked.facts()
    begin(folder)
    for note in notes:
        print(f"note: {note}")
    counts, digest = write_captions(folder, records)
    manifest = {"name": folder.name, **about, "counts": counts, "notes": list(notes), "captions_sha256": digest}
    if checked is not None and checked.found:  # not: pictures drawn here
        check_report.write_report(folder, {**manifest, **checked.report})
        if importlib.util.find_spec("matplotlib"):
            check_report.draw(folder / "report.png", records, checked.found, folder.name)
        else:
            print(f"{folder / 'report.png'} is not drawn: pip install matplotlib")
    write_atomically(folder / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
    print(f"{folder} is ready: {counts_line(counts)}")
    return folder


def write_captions(folder: Path, records: Sequence[Record]) -> tuple[dict[str, dict[str, int]], str]:
    """captions.json, record by record; gives how many images and captions each split has, and the file's sha256."""
    images: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    digest = hashlib.sha256()
    with whole(folder / "captions.json", sync=True) as made:
        with made.open("wb") as file:
            for text in captions_lines(records):
                file.write(text.encode())
                digest.update(text.encode())
        keep_replaced(folder, digest.hexdigest())
    for record in records:
        images[record["split"]] += 1
        captions[record["split"]] += len(record["captions"])
        questions[record["split"]] += len(record.get("questions", ()))
    splits = [*(split for split in layouts.SPLITS if images[split]), *sorted(images.keys() - set(layouts.SPLITS))]
    asked = {split: {"questions": questions[split]} if questions.total() else {} for split in splits}
    counts = {split: {"images": images[split], "captions": captions[split], **asked[split]} for split in splits}
    return counts, digest.hexdigest()


def captions_lines(records: Iterable[Record]) -> Iterator[str]:
    """The text of captions.json in pieces."""
    yield '{"images": [\n'
    for number, record in enumerate(records):
        yield ",\n" * (number > 0) + json.dumps(record, ensure_ascii=False)
    yield "\n]}\n"


def counts_line(counts: Mapping[str, Mapping[str, int]]) -> str:
    """'train 2,000 pictures / 10,000 captions, val ...'"""
    there = [kind for kind in ("captions", "questions") if any(count.get(kind) for count in counts.values())]
    return ", ".join(
        " / ".join([f"{split} {count['images']:,} pictures"]
                   + [f"{count.get(kind, 0):,} {kind}" for kind in there or ["captions"]])
        for split, count in counts.items()
    )  # fmt: skip
