"""Raw data -> data/<name>/: `python prepare_dataset.py [recipe] [--dataset NAME] [--raw-data-dir FOLDER] ...`

    data/<name>/images/         the pictures
    data/<name>/captions.json   {"images": [{"file_name", "split", "captions": [...], optional "scene"}, ...]}
    data/<name>/report.json, report.png   what was kept, converted, refused and why; sizes and lengths (preflight.py)
    data/<name>/manifest.json   counts, source, licence, sha256 of captions.json; written last

A set counts as whole only when its manifest fits its captions.json and every picture is there; a run that was cut off
leaves no manifest, and the next run goes on from the pictures already in place. Three kinds of source: "demo" is drawn
here, "flickr30k" is downloaded, and any name can be read from a folder of your own (layouts.py says which layouts).
"""

import errno
import filecmp
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import flickr30k
import layouts
import preflight
import preflight_report
from layouts import SPLITS, cases

DEMO_COUNTS = {"train": 2000, "val": 200, "test": 200}
DEMO_LICENCE = "drawn by this project's own code; use it as you like"
FOLDER_LICENCE = "not known: the terms of whoever owns the pictures and captions"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def main(argv: Sequence[str] | None = None) -> None:
    import config

    settings = config.load(list(sys.argv[1:] if argv is None else argv))
    try:
        prepare_from(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"prepare_dataset: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("prepare_dataset: stopped; run it again to go on from here") from None


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
        workers=settings.NUM_WORKERS,
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
    workers: int = 2,
    rules: preflight.Rules = preflight.DEFAULT_RULES,
) -> Path:
    """Make the data set `name` below `data_dir`, unless it is whole already, and return its folder.

    raw_dir: folder with the user's own pictures and captions; read, never changed.
    seed: draws the demo set, and the splits of a folder that brings none (DATA_SEED).
    cutoff: only the first `cutoff` pictures of each split; None = all.
    rules: how pictures and captions are checked and cleaned (preflight.py).
    Raises ValueError with one line for unknown names, unreadable sources, too many bad pictures or captions, and a
    whole set made from something else.
    """
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
        return prepare_demo(folder, seed, cutoff, workers, rules)
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

    hf_dataset_id: a data set with the two files of nlphuji/flickr30k; of that id the Karpathy split sizes are checked.
    The Hub's cache keeps the zip. Raises ValueError with one line and the ways on where network or copy are not right.
    """
    folder = folder_of("flickr30k", data_dir)
    if whole_manifest(folder, cutoff, None, rules.caption_case):
        return folder
    print(f"note: {flickr30k.LICENCE}")
    flickr30k.announce(folder, hf_dataset_id, revision)
    annotations = flickr30k.fetch(flickr30k.CSV_NAME, hf_dataset_id, revision)
    rows = [layouts.Row(*row) for row in flickr30k.read_annotations(annotations)]
    records, notes = layouts.clean_records(rows, 0, str(annotations))  # the CSV gives every split: nothing to draw
    if hf_dataset_id == flickr30k.OFFICIAL_ID:
        flickr30k.check_counts([record["split"] for record in records])
    records = first_of_each_split(records, cutoff)
    archive = flickr30k.fetch(flickr30k.ZIP_NAME, hf_dataset_id, revision)
    flickr30k.unpack(archive, [record["file_name"] for record in records], folder / "images")
    paths = {record["file_name"]: folder / "images" / record["file_name"] for record in records}
    begin(folder)
    checked = preflight.check(folder, records, paths, rules)
    print(f"{archive.resolve()} is no longer needed once the set is whole and may be deleted")
    return finish(folder, checked, notes, cutoff=cutoff, layout="Hub zip and CSV", licence=flickr30k.LICENCE,
                  source=f"{hf_dataset_id} on the Hugging Face Hub", revision=revision, commit=annotations.parent.name)


def prepare_demo(folder: Path, seed: int, cutoff: int | None, workers: int, rules: preflight.Rules) -> Path:
    from demo_set import draw_demo_set

    begin(folder)
    counts = {split: count if cutoff is None else min(count, cutoff) for split, count in DEMO_COUNTS.items()}
    records = draw_demo_set(folder / "images", seed, counts, max(1, workers))
    checked = preflight.check(folder, records, None, rules)
    return finish(folder, checked, [], cutoff=cutoff, layout="demo", licence=DEMO_LICENCE, source="demo_set",
                  seed=seed)


def prepare_folder(folder: Path, raw_dir: Path, seed: int, cutoff: int | None, rules: preflight.Rules) -> Path:
    """A folder of pictures and captions in one of the known layouts -> the set at `folder`."""
    layout = layouts.read_layout(raw_dir, seed)
    print(f"{raw_dir}: layout {layout.name}, because {layout.why}")
    pictures, unused = find_pictures(raw_dir, [record["file_name"] for record in layout.records])
    notes = [*layout.notes]
    if unused:
        notes.append(f"{cases(unused, 'picture')} below {raw_dir} without captions in use, left out")
    records = first_of_each_split(layout.records, cutoff)
    begin(folder)
    checked = preflight.check(folder, records, pictures, rules)
    for record in tqdm(checked.records, desc="pictures", unit="picture"):
        link_or_copy(pictures[record["file_name"]], folder / "images" / record["file_name"])
    licence = flickr30k.LICENCE if folder.name.startswith("flickr") else FOLDER_LICENCE
    return finish(folder, checked, notes, cutoff=cutoff, layout=layout.name, licence=licence,
                  seed=seed if layout.drawn else None, source=str(raw_dir.resolve()),
                  source_sha256=layouts.captions_digest(raw_dir))


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
    """Raises ValueError when `raw_dir` holds other captions than the set was made from; a missing folder is fine."""
    if raw_dir.is_dir() and layouts.captions_digest(raw_dir) != manifest.get("source_sha256"):
        raise ValueError(f"{folder} was made from other captions than RAW_DATA_DIR = {str(raw_dir)!r} holds now: take "
                         f"another DATASET or DATA_DIR, or delete {folder / 'manifest.json'} to make the set again")


def begin(folder: Path) -> None:
    """Make room for a set: from here on the folder is half-made, and says so by having no manifest."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)


def finish(folder: Path, checked: preflight.Checked, notes: Sequence[str], **about: object) -> Path:
    """Write captions.json, the report, then the manifest with `about` in it, print them, and return `folder`."""
    begin(folder)
    records = checked.records
    for note in notes:
        print(f"note: {note}")
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    text = f'{{"images": [\n{lines}\n]}}\n'
    pairs = Counter()
    for record in records:
        pairs[record["split"]] += len(record["captions"])
    images = Counter(record["split"] for record in records)
    counts = {split: {"images": images[split], "captions": pairs[split]} for split in SPLITS if images[split]}
    about = {"name": folder.name, **about, "counts": counts, "notes": list(notes)}
    manifest = {**about, "caption_text": checked.caption_text, "pictures_sha256": checked.pictures_sha256,
                "captions_sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_atomically(folder / "captions.json", text)
    if checked.found:  # not: pictures drawn here
        preflight_report.write_report(folder, {**about, **checked.report})
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


# --- files ---------------------------------------------------------------------------------------------------

def folder_of(name: str, data_dir: Path) -> Path:
    if not name or name in (".", "..") or set(name) & set('/\\:\0'):
        raise ValueError(f"DATASET = {name!r}: must be the plain name of a folder in DATA_DIR")
    return Path(data_dir) / name


def find_pictures(raw_dir: Path, file_names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """file_name -> path below `raw_dir`, and the pictures that no file_name asks for.

    A name matches the path that equals it or ends in it, so images/, Images/, flickr30k-images/ and doubled folders
    need no setting. The same name in two folders is accepted when the files are equal byte for byte. Raises ValueError
    for missing pictures, for two different ones of one name, and for one that two names mean.
    """
    by_name: dict[str, list[str]] = {}
    for path in walk_files(raw_dir):
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    pictures, missing = {}, []
    for file_name in file_names:
        same_name = by_name.get(file_name.rpartition("/")[2], ())
        paths = [path for path in same_name if f"/{path}".endswith(f"/{file_name}")]
        if not paths:
            missing.append(file_name)
            continue
        first, *copies = [file_name] if file_name in paths else sorted(paths, key=lambda path: (path.count("/"), path))
        different = [copy for copy in copies if not filecmp.cmp(raw_dir / first, raw_dir / copy, shallow=False)]
        if different:
            raise ValueError(f"{raw_dir}: two different pictures are called {file_name} ({first}, {different[0]}); "
                             "name the folder in the captions, or keep one of them")
        pictures[file_name] = raw_dir / first
    if missing:
        raise ValueError(f"{raw_dir}: {cases(missing, 'picture')} named by the captions but missing; add the pictures "
                         "or delete their captions")
    shared = [str(path) for path, count in Counter(pictures.values()).items() if count > 1]
    if shared:
        raise ValueError(f"{raw_dir}: {cases(shared, 'picture')} under two file names in the captions; keep one name")
    used = {path.name for path in pictures.values()}
    unused = [path for name, paths in by_name.items() if name not in used and name.lower().endswith(PICTURE_SUFFIXES)
              for path in paths]
    return pictures, unused


def walk_files(folder: Path) -> Iterable[str]:
    """Every file below `folder`, and folders named like pictures, as relative paths with "/", sorted folder by folder.

    Linked folders are entered once, hidden files and macOS junk are skipped.
    """
    entered = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not layouts.is_junk(name))
        inside = Path(parent).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        named_so = [name for name in folders if name.lower().endswith(PICTURE_SUFFIXES)]  # the check refuses them
        yield from (prefix + name for name in sorted(files + named_so) if not layouts.is_junk(name))


def link_or_copy(source: Path, target: Path) -> None:
    """Bring `source` to `target`, atomically: as a hard link (no space, no time), across file systems as a copy.

    A target that is the same file, or has the same size and time, is kept.
    """
    if target.exists():
        there, here = target.stat(), source.stat()
        if (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)  # of a killed run it may be a link to a raw picture, which a copy would write into
    try:
        try:
            os.link(os.path.realpath(source), part)  # a hard link to a symbolic link would not hold the picture
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            shutil.copy2(source, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds all of it or what it held before, also after a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
