"""Flickr30k from the Hugging Face Hub: the zip + CSV copy with the Karpathy split in a column.

Nothing here knows the layout of data/<name>/: `fetch` brings a file, `read_annotations` reads the CSV, `unpack`
writes the wanted pictures out of the zip. huggingface_hub keeps finished files in its cache and respects HF_ENDPOINT,
HF_TOKEN, HF_HOME and HF_HUB_OFFLINE; a file that another process left half done it starts again.
"""

import csv
import errno
import io
import json
import os
import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

OFFICIAL_ID = "nlphuji/flickr30k"
OFFICIAL_COUNTS = {"train": 29_000, "val": 1_014, "test": 1_000}
CSV_NAME, ZIP_NAME = "flickr_annotations_30k.csv", "flickr30k-images.zip"
LICENCE = ("pictures from Flickr: under Flickr's terms of use, for non-commercial research and education only; "
           "do not pass them on")
WAYS_ON = ("Ways on: run again (finished files are kept), set RAW_DATA_DIR to a folder with a copy of Flickr30k, "
           "or run the built-in set (DATASET = demo)")
MAX_PICTURE_BYTES = 64 * 2**20  # the largest file of Flickr30k is below 1 MB
MAX_RATIO = 100  # unpacked : packed; JPEGs are near 1, zip bombs near 1,000


def announce(folder: Path, hf_dataset_id: str, revision: str) -> None:
    """Print what will be downloaded and what is free.

    folder: where the pictures will be unpacked to (need not exist yet).
    Raises ValueError when the Hub cannot be asked or the disk is too small.
    """
    from huggingface_hub import constants

    sizes = {name: missing_bytes(name, hf_dataset_id, revision) for name in (CSV_NAME, ZIP_NAME)}
    download = sum(size or 0 for size in sizes.values())
    if not download:
        print(f"{hf_dataset_id}: {CSV_NAME} and {ZIP_NAME} are in the Hub's cache", flush=True)
        return
    cache, folder = nearest_folder(Path(constants.HF_HUB_CACHE)), nearest_folder(folder)
    free = in_units(shutil.disk_usage(cache).free)
    print(f"{hf_dataset_id} at {revision}: {in_units(download)} to download to {constants.HF_HUB_CACHE} "
          f"({free} free), about as much again to unpack. A file cut off half-way starts again.", flush=True)
    same_disk = os.stat(cache).st_dev == os.stat(folder).st_dev
    require_space(cache, 2 * download if same_disk else download, "HF_HOME")
    if not same_disk:
        require_space(folder, download, "DATA_DIR")


def missing_bytes(file_name: str, hf_dataset_id: str, revision: str) -> int | None:
    """Bytes still to download for one file: 0 when the cache has it, None when the server does not tell."""
    import huggingface_hub as hub

    try:
        cached = hub.try_to_load_from_cache(hf_dataset_id, file_name, repo_type="dataset", revision=revision)
        if isinstance(cached, str):  # else None, or a marker that the file is known not to exist
            return 0
        # One plain question first: hf_hub_download would ask a dead server for 20 seconds before it gives up.
        url = hub.hf_hub_url(hf_dataset_id, file_name, repo_type="dataset", revision=revision)
        return hub.get_hf_file_metadata(url).size
    except hub_errors() as error:
        raise explained(error, file_name, hf_dataset_id, revision) from error


def fetch(file_name: str, hf_dataset_id: str, revision: str) -> Path:
    """The file, downloaded with a progress bar or from the Hub's cache. Raises ValueError with the ways on."""
    import huggingface_hub as hub

    try:
        return Path(hub.hf_hub_download(hf_dataset_id, file_name, repo_type="dataset", revision=revision))
    except hub_errors() as error:
        raise explained(error, file_name, hf_dataset_id, revision) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """All that versions 1 and 2 of the Hub's client raise for a wrong id, a missing file or a failing network."""
    from huggingface_hub.utils import httpx

    return OSError, ValueError, httpx.HTTPError


def explained(error: Exception, file_name: str, hf_dataset_id: str, revision: str) -> ValueError:
    """One line that says what happened and what can be done."""
    from huggingface_hub import constants, errors

    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, errors.GatedRepoError):
        what = f"{hf_dataset_id} asks for an agreement on the Hub first (accept it there and set HF_TOKEN)"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = (f"the Hub at {constants.ENDPOINT} has no data set {hf_dataset_id!r} (HF_DATASET_ID), "
                "or it is private (set HF_TOKEN)")
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"{hf_dataset_id} has no revision {revision!r}; see HF_DATASET_REVISION"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        what = f"{hf_dataset_id} at {revision} holds no {file_name}; HF_DATASET_ID must have {CSV_NAME} and {ZIP_NAME}"
    elif constants.HF_HUB_OFFLINE:
        what = f"HF_HUB_OFFLINE is set and {file_name} of {hf_dataset_id} is not in the cache {constants.HF_HUB_CACHE}"
    elif getattr(error, "errno", None) == errno.ENOSPC:
        what = f"no space left in {constants.HF_HUB_CACHE} (HF_HOME) for {file_name}"
    else:
        what = (f"could not get {file_name} of {hf_dataset_id} from {constants.ENDPOINT} "
                f"({type(error).__name__}: {first_line})")
    return ValueError(f"{what}. {WAYS_ON}")


def read_annotations(path: Path) -> list[tuple[str, str, list]]:
    """The annotations CSV -> [(file name, split, captions), ...], one per picture, not yet checked."""
    csv.field_size_limit(2**27)  # `raw` holds all captions of a picture in one cell
    try:
        text = path.read_bytes().decode("utf-8-sig")
        table = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV in UTF-8 ({error}); delete {path.resolve()} and run again") from None
    if not table or not {"raw", "split", "filename"} <= table[0].keys():
        raise ValueError(f"{path} begins with {text[:60]!r}, not with the columns raw, split, filename; "
                         f"delete {path.resolve()} and run again")
    rows = []
    for number, line in enumerate(table, start=1):
        try:
            captions = json.loads(line["raw"])
        except (TypeError, json.JSONDecodeError):
            captions = None
        if not isinstance(captions, list):
            raise ValueError(f"{path}, row {number}: the column raw is no JSON list; delete the file and run again")
        rows.append((line["filename"], line["split"], captions))
    return rows


def check_counts(splits: Sequence[str]) -> None:
    """Raises ValueError unless the splits of the official copy have the sizes of Karpathy's."""
    counts = dict(Counter(splits))
    if counts != OFFICIAL_COUNTS:
        raise ValueError(f"{OFFICIAL_ID} should have the Karpathy split {OFFICIAL_COUNTS} but this copy has {counts}; "
                         "set HF_DATASET_REVISION to a known commit, or use a local copy (RAW_DATA_DIR)")


def unpack(archive: Path, file_names: Sequence[str], images_dir: Path) -> None:
    """Write the pictures `file_names` out of the zip into `images_dir`, each atomically; those already there are kept.

    The whole listing is checked before anything is written. Raises ValueError for a damaged zip, unsafe or missing
    members and too little disk.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = wanted_members(opened, set(file_names), archive)
            present = os.scandir(images_dir) if images_dir.is_dir() else ()
            sizes = {entry.name: entry.stat().st_size for entry in present}
            todo = [(name, info) for name, info in members.items() if sizes.get(name) != info.file_size]
            require_space(nearest_folder(images_dir), sum(info.file_size for _, info in todo), "DATA_DIR")
            images_dir.mkdir(parents=True, exist_ok=True)
            for name, info in tqdm(todo, desc="unpacking", unit="picture", disable=not todo):
                extract(opened, info, images_dir / name)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({error}); delete {archive.resolve()} and run again") from None


def wanted_members(opened: zipfile.ZipFile, wanted: set[str], archive: Path) -> dict[str, zipfile.ZipInfo]:
    """file name -> member, junk left out. Raises ValueError for unsafe, doubled and missing members."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        danger = member_danger(info)
        if danger:
            raise ValueError(f"{archive}: member {info.orig_filename!r} {danger}: refused, nothing was unpacked")
        path = PurePosixPath(info.filename)
        if info.is_dir() or "__MACOSX" in path.parts or path.name.startswith("._") or path.name not in wanted:
            continue
        if path.name in members:
            raise ValueError(f"{archive} holds {path.name} twice: refused, nothing was unpacked")
        members[path.name] = info
    missing = sorted(wanted - members.keys())
    if missing:
        raise ValueError(f"{archive} lacks {len(missing):,} of {len(wanted):,} pictures (first: {missing[0]}): "
                         f"delete {archive.resolve()} and run again, or use a local copy (RAW_DATA_DIR)")
    return members


def member_danger(info: zipfile.ZipInfo) -> str | None:
    """Why a member must not be unpacked, or None. orig_filename counts too: zipfile cuts `filename` at a NUL."""
    mode = info.external_attr >> 16
    for name in {info.filename, info.orig_filename}:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or name[1:2] == ":" or "\0" in name:
            return "leads out of the folder"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.file_size > MAX_PICTURE_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, 1024):
        return f"unpacks from {info.compress_size:,} to {info.file_size:,} bytes"
    return None


def extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with opened.open(info) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def nearest_folder(path: Path) -> Path:
    """The first existing folder at or above `path`."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def require_space(folder: Path, needed: int, setting: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder} has {in_units(free)} free but {in_units(needed)} are needed: free some space, "
                         f"or set {setting} to a larger disk")


def in_units(size: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.2f} {name}"
