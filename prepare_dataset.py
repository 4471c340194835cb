"""Raw data -> data/<name>/: `python prepare_dataset.py [recipe] [--dataset NAME] [--raw-data-dir FOLDER] ...`

    data/<name>/images/         the pictures
    data/<name>/captions.json   {"images": [{"file_name", "split", "captions": [...],
                                             of the demo set "scene", of COCO "image_id"}, ...]}
    data/<name>/report.json, report.png   what was kept, converted, refused and why; sizes and lengths (preflight.py)
    data/<name>/manifest.json   counts, source, licence, sha256 of captions.json; written last

A set counts as whole only when its manifest fits its captions.json and every picture is there; a run that was cut off
leaves no manifest, and the next run goes on from the pictures already in place. Three kinds of source: "demo" is drawn
here, "flickr30k" is downloaded, and any name can be read from a folder of your own (layouts.py says which layouts).
Several names with commas between are mixed (mixing.py).
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import archives
import commands
import flickr30k
import layouts
import mixing
import preflight
import preflight_report
from files import cases, find_pictures, link_or_copy, walk_files, write_atomically
from layouts import SPLITS

DEMO_COUNTS = {"train": 2000, "val": 200, "test": 200}
DEMO_LICENCE = "drawn by this project's own code; use it as you like"
FOLDER_LICENCE = "not known: the terms of whoever owns the pictures and captions"


def main(argv: Sequence[str] | None = None) -> None:
    import config

    settings = config.load(list(sys.argv[1:] if argv is None else argv))
    try:
        prepare_from(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"prepare_dataset: {commands.told(error)}") from error


def prepare_from(settings: Any) -> Path:
    """`prepare` as the settings of config.py ask for it."""
    return prepare(
        settings.DATASET,
        Path(settings.DATA_DIR),
        raw_dir=Path(settings.RAW_DATA_DIR) if settings.RAW_DATA_DIR else None,
        seed=settings.DATA_SEED,
        cutoff=settings.DATA_CUTOFF,
        hf_dataset_id=settings.HF_DATASET_ID,
        hf_revision=settings.HF_DATASET_REVISION,
        rules=preflight.Rules(settings.CAPTION_CASE, settings.MAX_BAD_FRACTION, settings.NUM_WORKERS),
    )


def prepare(
    name: str,
    data_dir: Path,
    *,
    raw_dir: Path | None = None,
    seed: int = 1,
    cutoff: int | None = None,
    hf_dataset_id: str = flickr30k.OFFICIAL_ID,
    hf_revision: str = "main",
    rules: preflight.Rules = preflight.DEFAULT_RULES,
) -> Path:
    """Make the data set `name` below `data_dir`, unless it is whole already, and return its folder.

    name: the set's folder, or several prepared ones with weights ("flickr30k,mine*2", see mixing.py).
    raw_dir: folder or archive with the user's own pictures and captions; read, never changed.
    seed: draws the demo set, and the splits of a folder that brings none (DATA_SEED).
    cutoff: only the first `cutoff` pictures of each split; None = all.
    rules: how pictures and captions are checked and cleaned (preflight.py).
    Raises ValueError with one line for unknown names, unreadable sources, too many bad pictures or captions, and a
    whole set made from something else.
    """
    if mixing.is_mix(name):
        if raw_dir is not None:
            raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r} but DATASET = {name!r} names several sets: prepare the "
                             "one in that folder by itself first, then name it without RAW_DATA_DIR")
        parts = mixing.parse(name)
        for part in sorted(parts, key=lambda part: part.name in ("demo", "flickr30k")):  # a missing one is told first
            prepare(part.name, data_dir, seed=seed, cutoff=cutoff, hf_dataset_id=hf_dataset_id,
                    hf_revision=hf_revision, rules=rules)  # fmt: skip
        return prepare_mix(folder_of(mixing.folder_name(name), data_dir), parts, rules.workers)
    folder = folder_of(name, data_dir)
    if name == "demo" and raw_dir is not None:
        raise ValueError(f"RAW_DATA_DIR is {str(raw_dir)!r} but DATASET is 'demo', which is drawn here: give the set "
                         "in that folder a name of its own (DATASET = mine), or set RAW_DATA_DIR to none")
    if name == "flickr30k" and raw_dir is None:
        return prepare_flickr30k(data_dir, hf_dataset_id, hf_revision, cutoff=cutoff, rules=rules)
    if manifest := whole_manifest(folder, cutoff, seed, rules.caption_case):
        if raw_dir is not None:
            check_raw_unchanged(folder, manifest, raw_dir)
        return folder
    if name == "demo":
        return prepare_demo(folder, seed, cutoff, rules)
    if raw_dir is not None:
        return prepare_folder(folder, raw_dir, seed, cutoff, rules)
    raise ValueError(f"DATASET = {name!r} is not in {data_dir} and not a set that can be made here (demo, flickr30k): "
                     "to read your own pictures and captions under that name, set RAW_DATA_DIR to their folder")


def prepare_flickr30k(
    data_dir: Path = Path("data"),
    hf_dataset_id: str = flickr30k.OFFICIAL_ID,
    revision: str = "main",
    *,
    cutoff: int | None = None,
    rules: preflight.Rules = preflight.DEFAULT_RULES,
) -> Path:
    """Download Flickr30k from the Hub (4.4 GB, and as much unpacked) into data_dir/flickr30k and return that folder.

    hf_dataset_id: a data set with the two files of nlphuji/flickr30k, or with parquet shards and a column `split`; of
        the known copies the Karpathy split sizes are checked.
    Downloads are kept in data_dir/flickr30k/download, and a broken one goes on where it was. Raises ValueError with
    one line and the ways on where network or copy are not right.
    """
    folder = folder_of("flickr30k", data_dir)
    if whole_manifest(folder, cutoff, None, rules.caption_case):
        return folder
    print(f"note: {flickr30k.LICENCE}")
    copy = flickr30k.find(hf_dataset_id, revision, folder / "download")
    rows, notes, unpack, files = flickr30k.read(copy)
    records, more = layouts.clean_records(rows, 0, f"{hf_dataset_id}")  # the copy gives every split: nothing to draw
    if hf_dataset_id in flickr30k.OFFICIAL_IDS:
        flickr30k.check_counts([record["split"] for record in records])
        more += flickr30k.check_train_digest(records)
    splits_sha256 = flickr30k.splits_digest(records)
    records = first_of_each_split(records, cutoff)
    unpack([record["file_name"] for record in records], folder / "images")
    begin(folder)
    checked = preflight.check(folder, records, in_images(folder, records), rules)
    finish(folder, checked, notes + more, cutoff=cutoff, layout="Hub zip and CSV" if flickr30k.ZIP_NAME in files else
           "Hub parquet", licence=flickr30k.LICENCE, source=f"{hf_dataset_id} on the Hugging Face Hub",
           revision=revision, commit=copy.commit, files=files, splits_sha256=splits_sha256)  # fmt: skip
    if copy.folder.is_dir():
        print(f"{copy.folder} keeps the downloaded files; now that the set is whole it may be deleted")
    return folder


def prepare_demo(folder: Path, seed: int, cutoff: int | None, rules: preflight.Rules) -> Path:
    from demo_set import draw_demo_set

    begin(folder)
    counts = {split: count if cutoff is None else min(count, cutoff) for split, count in DEMO_COUNTS.items()}
    records = draw_demo_set(folder / "images", seed, counts, max(1, rules.workers))
    checked = preflight.check(folder, records, None, rules)
    return finish(folder, checked, [], cutoff=cutoff, layout="demo", licence=DEMO_LICENCE, source="demo_set",
                  seed=seed)


def prepare_mix(folder: Path, parts: Sequence[mixing.Part], workers: int = 0) -> Path:
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
        mixing.link_pictures(folder / "images", part.name, source / "images")
    records = [json.loads((source / "captions.json").read_bytes())["images"] for source in folders]
    licences = sorted({str(manifest.get("licence")) for manifest in manifests})
    found = {f"{source.name}/{name}": entry for source, rows in zip(folders, records, strict=True)
             for name, entry in _looked_at(source, rows, workers).items()}  # fmt: skip
    mixed = mixing.mixed_records(parts, records)
    seen = [record for record in mixed if record["file_name"] in found]
    copies, leaving = preflight.find_copies(seen, found, in_images(folder, seen))
    notes = [f"{cases(copies['left_out'], 'picture')} with a copy in another split of another set, left out"]
    return write_set(folder, [record for record in mixed if record["file_name"] not in leaving],
                     notes if leaving else [], layout="mix", parts=made_of, copies_left_out=copies["left_out"],
                     licence="; ".join(licences), source=", ".join(made_of))  # fmt: skip


def _looked_at(folder: Path, records: Sequence[dict], workers: int) -> dict[str, dict]:
    """What the check found of a prepared set's pictures; nothing of pictures drawn here, which are nowhere else."""
    if not (folder / "scan.jsonl").is_file():
        return {}
    return preflight.scan(in_images(folder, records), folder / "scan.jsonl", workers)


def prepare_folder(folder: Path, raw_dir: Path, seed: int, cutoff: int | None, rules: preflight.Rules) -> Path:
    """A folder of pictures and captions in one of the known layouts, or an archive of one -> the set at `folder`."""
    layout, pictures, unused = read_raw(raw_dir, seed, folder / "unpacked")
    notes = [*layout.notes]
    if unused:
        notes.append(f"{cases(unused, 'picture')} below {raw_dir} without captions in use, left out")
    records = first_of_each_split(layout.records, cutoff)
    begin(folder)
    if layout.unpack:
        layout.unpack([record["file_name"] for record in records], folder / "images")
        pictures = in_images(folder, records)
    checked = preflight.check(folder, records, pictures, rules)
    if not layout.unpack:
        for record in tqdm(checked.records, desc="pictures", unit="picture"):
            link_or_copy(pictures[record["file_name"]], folder / "images" / record["file_name"])
    licence = flickr30k.LICENCE if folder.name.startswith("flickr") else FOLDER_LICENCE
    finish(folder, checked, notes, cutoff=cutoff, layout=layout.name, licence=licence,
           seed=seed if layout.drawn else None, source=str(raw_dir.resolve()),
           source_sha256=layouts.captions_digest(raw_dir))  # fmt: skip
    if (folder / "unpacked").is_dir():
        print(f"{folder / 'unpacked'} is no longer needed and may be deleted")
    return folder


def in_images(folder: Path, records: Sequence[dict]) -> dict[str, Path]:
    """file_name -> picture, for pictures that were unpacked to their place."""
    return {record["file_name"]: folder / "images" / record["file_name"] for record in records}


def read_raw(raw_dir: Path, seed: int, unpacked: Path) -> tuple[layouts.Layout, dict[str, Path], list[str]]:
    """The layout of `raw_dir`, where its pictures lie ({} where the layout unpacks them), and pictures not in use.

    Archives in it are unpacked to `unpacked` only where captions or pictures are not to be found otherwise.
    """
    packed = archives.find(raw_dir)
    while True:
        try:
            layout = layouts.read_layout(raw_dir, seed)
            print(f"{raw_dir}: layout {layout.name}, because {layout.why}")
            if layout.unpack:
                return layout, {}, []
            return layout, *find_pictures(raw_dir, [record["file_name"] for record in layout.records])
        except layouts.NotThereError:
            if not packed:
                raise
            raw_dir = archives.unpack_beside(packed, raw_dir, unpacked, layouts.is_caption_file)
            packed = []


# --- a whole set ---------------------------------------------------------------------------------------------

class EditedError(ValueError):
    """captions.json is not the one its manifest was written for."""


def verify(folder: Path) -> dict:
    """The manifest of a whole set. Raises ValueError with one line when the set is not whole.

    Whole: the manifest is there, captions.json has the digest it names, and images/ has every picture of captions.json
    by name (the pictures are not opened: well under a second for 30,000).
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        captions = (folder / "captions.json").read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not whole: it has no {Path(error.filename).name}") from None
    except ValueError as error:
        raise ValueError(f"{folder} is not whole: its manifest.json is no JSON ({error})") from None
    if not isinstance(manifest, dict) or not {"counts", "captions_sha256"} <= manifest.keys():
        raise ValueError(f"{folder} is not whole: its manifest.json lacks counts or captions_sha256")
    if manifest["captions_sha256"] != hashlib.sha256(captions).hexdigest():
        raise EditedError(f"{folder} is not whole: captions.json has changed since manifest.json was written; to use "
                          "such changes make them in a folder of your own (RAW_DATA_DIR), and delete "
                          f"{folder / 'manifest.json'} to make this set again")
    names = [record["file_name"] for record in json.loads(captions)["images"]]
    present = set(walk_files(folder / "images"))
    missing = [name for name in names if name not in present]
    if missing:
        raise ValueError(f"{folder} is not whole: {cases(missing, 'picture')} missing in images/")
    return manifest


def is_whole(folder: Path) -> bool:
    """Whether `verify` accepts the set."""
    try:
        verify(folder)
    except ValueError:
        return False
    return True


def whole_manifest(folder: Path, cutoff: int | None, seed: int | None, caption_case: str = "keep") -> dict | None:
    """The manifest of a whole set, None where the set must be made; prints which it is.

    A set made with a larger cutoff serves: load_records takes its first pictures. Raises ValueError for a set drawn
    with another seed or caption case, or whose captions.json was edited: making it again would take from others what
    they rely on.
    """
    if not folder.exists():
        return None
    try:
        manifest = verify(folder)
    except EditedError:
        raise
    except ValueError as error:
        print(f"{error}; making it now")
        return None
    made_with, drawn_with = manifest.get("cutoff"), manifest.get("seed")
    if None not in (drawn_with, seed) and drawn_with != seed:  # None: nothing was drawn
        raise ValueError(f"{folder} was made with DATA_SEED = {drawn_with}, now it is {seed}: set it back, take "
                         f"another DATASET or DATA_DIR, or delete {folder / 'manifest.json'} to make the set again")
    made_case = manifest.get("caption_text", {}).get("case", "keep")  # sets of earlier versions do not say
    if made_case != caption_case:
        raise ValueError(f"{folder} was made with CAPTION_CASE = {made_case}, now it is {caption_case}: set it back, "
                         f"take another DATASET or DATA_DIR, or delete {folder / 'manifest.json'} to make it again")
    if made_with is not None and (cutoff is None or cutoff > made_with):
        print(f"{folder} holds only the first {made_with} pictures of each split; making it again with more")
        return None
    print(f"{folder} is whole: {counts_line(manifest['counts'])}")
    return manifest


def check_raw_unchanged(folder: Path, manifest: dict, raw_dir: Path) -> None:
    """Raises ValueError when `raw_dir` holds other captions than the set was made from; tells of a missing one."""
    if not raw_dir.exists():
        print(f"Note: RAW_DATA_DIR = {str(raw_dir)!r} is not there; the set that was made before is used: {folder}")
    elif layouts.captions_digest(raw_dir) != manifest.get("source_sha256"):
        raise ValueError(f"{folder} was made from other captions than RAW_DATA_DIR = {str(raw_dir)!r} holds now: take "
                         f"another DATASET or DATA_DIR, or delete {folder / 'manifest.json'} to make the set again")


def begin(folder: Path) -> None:
    """Make room for a set: from here on the folder is half-made, and says so by having no manifest."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)


def finish(folder: Path, checked: preflight.Checked, notes: Sequence[str], **about: object) -> Path:
    """`write_set` of records whose pictures and captions were looked at, with the report of that."""
    looked_at = {"caption_text": checked.caption_text, "pictures_sha256": checked.pictures_sha256}
    return write_set(folder, checked.records, notes, checked, **about, **looked_at)


def write_set(
    folder: Path, records: Sequence[dict], notes: Sequence[str], checked: preflight.Checked | None = None,
    **about: object,
) -> Path:  # fmt: skip
    """Write captions.json, the report, then the manifest with `about` in it, print them, and return `folder`."""
    begin(folder)
    for note in notes:
        print(f"note: {note}")
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    text = f'{{"images": [\n{lines}\n]}}\n'
    pairs = Counter()
    for record in records:
        pairs[record["split"]] += len(record["captions"])
    images = Counter(record["split"] for record in records)
    splits = [*(split for split in SPLITS if images[split]), *sorted(images.keys() - set(SPLITS))]
    counts = {split: {"images": images[split], "captions": pairs[split]} for split in splits}
    manifest = {"name": folder.name, **about, "counts": counts, "notes": list(notes),
                "captions_sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_atomically(folder / "captions.json", text)
    if checked is not None and checked.found:  # not: pictures drawn here
        preflight_report.write_report(folder, {**manifest, **checked.report})
        preflight_report.draw(folder / "report.png", records, checked.found, folder.name)
    write_atomically(folder / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
    print(f"{folder} is ready: {counts_line(counts)}")
    return folder


def counts_line(counts: dict) -> str:
    """'train 2,000 pictures / 10,000 captions, val ...'"""
    return ", ".join(f"{split} {count['images']:,} pictures / {count['captions']:,} captions"
                     for split, count in counts.items())


def first_of_each_split(records: Sequence[dict], cutoff: int | None) -> list[dict]:
    seen: Counter = Counter()
    kept = []
    for record in records:
        seen[record["split"]] += 1
        if cutoff is None or seen[record["split"]] <= cutoff:
            kept.append(record)
    return kept



def folder_of(name: str, data_dir: Path) -> Path:
    if not name or name in (".", "..") or set(name) & set('/\\:\0'):
        raise ValueError(f"DATASET = {name!r}: must be the plain name of a folder in DATA_DIR")
    return Path(data_dir) / name


if __name__ == "__main__":
    commands.run(main, "prepare_dataset: stopped; run it again to go on from here")
