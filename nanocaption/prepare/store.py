"""A prepared set on the disk: begun, written, finished with its manifest."""

import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanocaption.base.files import link_or_copy, write_atomically
from nanocaption.data.prepared import Record, kept_captions
from nanocaption.prepare import check, check_report, layouts


def in_images(folder: Path, records: Sequence[Record]) -> dict[str, Path]:
    """file_name -> picture, for pictures that were unpacked to their place."""
    return {record["file_name"]: folder / "images" / record["file_name"] for record in records}


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


def keep_replaced(folder: Path, text: str) -> None:
    """Keep the captions.json that `text` is to replace, if it is another: runs know it, and splits stand in it."""
    old = folder / "captions.json"
    content = old.read_bytes() if old.exists() else text.encode()
    if content != text.encode():
        kept = kept_captions(folder, hashlib.sha256(content).hexdigest())
        link_or_copy(old, kept)
        print(f"note: other captions than before: the old ones are kept in {kept}; runs that were trained on them "
              "cannot be resumed")  # fmt: skip


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
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    text = f'{{"images": [\n{lines}\n]}}\n'
    pairs: Counter[str] = Counter()
    for record in records:
        pairs[record["split"]] += len(record["captions"])
    images = Counter(record["split"] for record in records)
    splits = [*(split for split in layouts.SPLITS if images[split]), *sorted(images.keys() - set(layouts.SPLITS))]
    counts = {split: {"images": images[split], "captions": pairs[split]} for split in splits}
    manifest = {"name": folder.name, **about, "counts": counts, "notes": list(notes),
                "captions_sha256": hashlib.sha256(text.encode()).hexdigest()}
    keep_replaced(folder, text)
    write_atomically(folder / "captions.json", text)
    if checked is not None and checked.found:  # not: pictures drawn here
        check_report.write_report(folder, {**manifest, **checked.report})
        if importlib.util.find_spec("matplotlib"):
            check_report.draw(folder / "report.png", records, checked.found, folder.name)
        else:
            print(f"{folder / 'report.png'} is not drawn: pip install matplotlib")
    write_atomically(folder / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
    print(f"{folder} is ready: {counts_line(counts)}")
    return folder


def counts_line(counts: Mapping[str, Mapping[str, int]]) -> str:
    """'train 2,000 pictures / 10,000 captions, val ...'"""
    return ", ".join(f"{split} {count['images']:,} pictures / {count['captions']:,} captions"
                     for split, count in counts.items())
