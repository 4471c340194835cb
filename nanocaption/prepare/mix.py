"""Several prepared sets as one, see data/prepared.py for how DATASET names them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanocaption.base.files import cases, whole
from nanocaption.data.prepared import Part, is_whole, verify
from nanocaption.prepare import check
from nanocaption.prepare.store import begin, in_images, write_set


def mixed_records(parts: Sequence[Part], records: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The records of all parts, each with its "set" and, unless it is 1, the "weight" of its training pairs.

    A file name begins with the set's name, so that pictures of one name in two sets stay apart.
    """
    return [
        record | {"file_name": f"{part.name}/{record['file_name']}", "set": part.name}
        | ({} if part.weight == 1 else {"weight": part.weight})
        for part, rows in zip(parts, records, strict=True) for record in rows
    ]  # fmt: skip


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
    made_of = {part.name: {"weight": part.weight, "captions_sha256": manifest["captions_sha256"]}
               for part, manifest in zip(parts, manifests, strict=True)}  # fmt: skip
    if is_whole(folder) and (old := verify(folder)).get("parts") == made_of and "copies_left_out" in old:
        return folder
    if (folder / "manifest.json").exists() and "parts" not in json.loads((folder / "manifest.json").read_bytes()):
        raise ValueError(f"{folder} is a set of its own, not the mix that DATASET names: rename it")
    begin(folder)
    for part, source in zip(parts, folders, strict=True):
        link_pictures(folder / "images", part.name, source / "images")
    records = [json.loads((source / "captions.json").read_bytes())["images"] for source in folders]
    licences = sorted({str(manifest.get("licence")) for manifest in manifests})
    found = {f"{source.name}/{name}": entry for source, rows in zip(folders, records, strict=True)
             for name, entry in _looked_at(source, rows, workers).items()}  # fmt: skip
    mixed = mixed_records(parts, records)
    seen = [record for record in mixed if record["file_name"] in found]
    copies, leaving = check.find_copies(seen, found, in_images(folder, seen))
    notes = [f"{cases(copies['left_out'], 'picture')} with a copy in another split of another set, left out"]
    return write_set(folder, [record for record in mixed if record["file_name"] not in leaving],
                     notes if leaving else [], layout="mix", parts=made_of, copies_left_out=copies["left_out"],
                     licence="; ".join(licences), source=", ".join(made_of))  # fmt: skip


def _looked_at(folder: Path, records: Sequence[dict], workers: int) -> dict[str, dict]:
    """What the check found of a prepared set's pictures; nothing of pictures drawn here, which are nowhere else."""
    if not (folder / "scan.jsonl").is_file():
        return {}
    return check.scan(in_images(folder, records), folder / "scan.jsonl", workers)
