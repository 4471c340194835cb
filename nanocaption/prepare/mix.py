"""Several prepared sets as one, see data/prepared.py for how DATASET names them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanocaption.base.files import cases, whole
from nanocaption.data.prepared import Manifest, Part, Record, is_whole, verify
from nanocaption.prepare import check
from nanocaption.prepare.check_report import Examined
from nanocaption.prepare.store import alone, begin, in_images, write_set


def link_pictures(images_dir: Path, name: str, target: Path) -> None:
    """images_dir/name becomes a link to the folder `target`, relative, so that DATA_DIR can be moved as a whole."""
    link, way = images_dir / name, os.path.relpath(target, images_dir)
    if link.is_symlink() and os.readlink(link) == way:
        return
    with whole(link) as made:
        made.symlink_to(way, target_is_directory=True)


def prepare_mix(folder: Path, parts: Sequence[Part], workers: int = 0) -> Path:
    """Prepared sets, side by side in one DATA_DIR -> the set of all of them at `folder`, whose images/ links to theirs.

    Made again whenever one of them is another one than before: it costs no pictures. A picture that stands in one split
    here and in another there is left out as within one set, and noted.
    """
    folders = [folder.parent / part.name for part in parts]
    manifests = [verify(source) for source in folders]
    if shards := [part.name for part, manifest in zip(parts, manifests, strict=True) if "stream" in manifest]:
        raise ValueError(f"{', '.join(shards)} stays in its shards (STREAM) and cannot be mixed: prepare it once more "
                         "under another name with STREAM = False, or train on it alone")
    made_of = {part.name: {"weight": part.weight, "captions_sha256": manifest["captions_sha256"]}
               for part, manifest in zip(parts, manifests, strict=True)}  # fmt: skip
    if _is_made_of(folder, made_of):
        return folder
    with alone(folder) as waited:
        if waited and _is_made_of(folder, made_of):
            return folder
        return _make_mix(folder, parts, manifests, made_of, workers)


def _make_mix(
    folder: Path, parts: Sequence[Part], manifests: Sequence[Manifest], made_of: dict[str, Any], workers: int
) -> Path:
    """What `prepare_mix` does where the mix is not there."""
    folders = [folder.parent / part.name for part in parts]
    begin(folder)
    mixed: list[Record] = []
    found: dict[str, Examined] = {}
    for part, source in zip(parts, folders, strict=True):
        link_pictures(folder / "images", part.name, source / "images")
        records = json.loads((source / "captions.json").read_bytes())["images"]
        mixed += mixed_records(part, records)
        found |= {f"{part.name}/{name}": entry for name, entry in _looked_at(source, records, workers).items()}
    seen = [record for record in mixed if record["file_name"] in found]
    copies, leaving = check.find_copies(seen, found, in_images(folder, seen))
    notes = [f"{cases(copies['left_out'], 'picture')} with a copy in another split of another set, left out"]
    return write_set(folder, [record for record in mixed if record["file_name"] not in leaving],
                     notes if leaving else [], layout="mix", parts=made_of, copies_left_out=copies["left_out"],
                     licence="; ".join(sorted({str(manifest.get("licence")) for manifest in manifests})),
                     source=", ".join(made_of))  # fmt: skip


def _is_made_of(folder: Path, made_of: dict[str, Any]) -> bool:
    """Whether the mix at `folder` is whole and of these parts. Raises ValueError where another set lies there."""
    manifest = folder / "manifest.json"
    if manifest.exists() and "parts" not in json.loads(manifest.read_bytes()):
        raise ValueError(f"{folder} is a set of its own, not the mix that DATASET names: rename it")
    # Mixes of earlier versions do not say which copies they leave out: they left out none.
    return is_whole(folder) and (old := verify(folder)).get("parts") == made_of and "copies_left_out" in old


def mixed_records(part: Part, records: Sequence[Record]) -> list[Record]:
    """The records of a part, each with its "set" and, unless it is 1, the "weight" of its training pairs.

    A file name begins with the set's name, so that pictures of one name in two sets stay apart.
    """
    mixed: list[Record] = [record | {"file_name": f"{part.name}/{record['file_name']}", "set": part.name}
                           for record in records]  # fmt: skip
    return mixed if part.weight == 1 else [record | {"weight": part.weight} for record in mixed]


def _looked_at(folder: Path, records: Sequence[Record], workers: int) -> dict[str, Examined]:
    """What the check found of a prepared set's pictures; nothing of pictures drawn here, which are nowhere else."""
    if not (folder / "scan.jsonl").is_file():
        return {}
    return check.scan(in_images(folder, records), folder / "scan.jsonl", workers)
