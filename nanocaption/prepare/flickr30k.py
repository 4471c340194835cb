"""Flickr30k from the Hugging Face Hub: as zip and CSV with the Karpathy split in a column, or as parquet with it.

HF_DATASET_ID decides which: a repository with the two files of nlphuji/flickr30k, or one of parquet shards with a
column `split`, such as AnyModal/flickr30k. `find` looks at what is there and says what will be downloaded, `fetch`
brings a file (download.py), `source` gives rows and pictures. Nothing here knows the rest of data/<name>/.
"""

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nanocaption.base import hub
from nanocaption.base.files import free_bytes, in_units, require_space
from nanocaption.data import shards
from nanocaption.data.prepared import Record
from nanocaption.prepare import archives, download, packed
from nanocaption.prepare.caption_files import Rows, Source
from nanocaption.prepare.caption_tables import read_annotations

OFFICIAL_ID = "nlphuji/flickr30k"
OFFICIAL_IDS = (OFFICIAL_ID, "AnyModal/flickr30k")
OFFICIAL_COUNTS = {"train": 29_000, "val": 1_014, "test": 1_000}
# splits_digest of the 29,000 training pictures alone; of the others no list was at hand.
TRAIN_DIGEST = "ee32bed8f9d7832c3343da532783fc8aa92cca420926ad17b473c31e70aef13a"
CSV_NAME, ZIP_NAME = "flickr_annotations_30k.csv", "flickr30k-images.zip"
LICENCE = ("pictures from Flickr: under Flickr's terms of use, for non-commercial research and education only; "
           "do not pass them on")
WAYS_ON = ("Ways on: run again (it goes on where it was), set RAW_DATA_DIR to a folder with a copy of Flickr30k, "
           "or run the built-in set (DATASET = demo)")


class Copy(NamedTuple):
    """A copy of Flickr30k on the Hub, and how much of it is here."""

    repository: str
    revision: str
    commit: str
    folder: Path  # where downloads are kept
    files: dict[str, download.Fetched | download.Remote]  # those that are needed, here or still to be downloaded

    def __str__(self) -> str:
        return f"{self.repository}: {', '.join([*self.files][:2])}{', ...' if len(self.files) > 2 else ''}"


def find(repository: str, revision: str, folder: Path) -> Copy:
    """What is here of a copy, and what the Hub has; prints what will be downloaded, where to, and what is free.

    folder: where downloads are kept (need not exist yet). The network is asked only where something is missing.
    Raises ValueError when the Hub cannot be asked, has no such copy, or the disk is too small.
    """
    try:
        copy = local_copy(repository, revision, folder) or hub_copy(repository, revision, folder)
    except hub.errors() as error:
        raise explained(error, "the list of files", repository, revision) from error
    if any(name.endswith(".parquet") for name in copy.files):
        shards.import_pyarrow()  # before 4 GB are downloaded that nothing could read
    missing = [file for file in copy.files.values() if isinstance(file, download.Remote)]
    if not missing:
        place = next(file.path.parent for file in copy.files.values() if isinstance(file, download.Fetched))
        print(f"{copy} are here already, in {place}", flush=True)
        return copy
    size = sum(remote.size for remote in missing)
    have = sum(download.part_bytes(folder, remote) for remote in missing)
    print(f"{repository} at {revision} ({copy.commit[:12]}): {in_units(size)} in {len(missing)} files to download to "
          f"{folder}, {in_units(have)} of it are here already; {in_units(free_bytes(folder))} free, about as much "
          "again is needed to unpack", flush=True)  # fmt: skip
    require_space(folder, 2 * size - have, "DATA_DIR")
    return copy


def local_copy(repository: str, revision: str, folder: Path) -> Copy | None:
    """The copy where all of it is here, by an earlier download or in the Hub's cache."""
    from huggingface_hub import constants

    saved = download.read_json(folder / "listing.json")
    fits = (saved.get("repository"), saved.get("revision")) == (repository, revision)
    for names in ([CSV_NAME, ZIP_NAME], saved["names"] if fits else []):
        here = {name: fetched for name in names if (fetched := (
            (download.in_folder(folder, name, repository) if fits else None)
            or download.in_hub_cache(repository, revision, name)
        ))}  # fmt: skip
        if names and len(here) == len(names):
            return Copy(repository, revision, here[names[0]].commit, folder, dict(here))
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"HF_HUB_OFFLINE is set and {repository} is neither in {folder} nor in the cache "
                         f"{constants.HF_HUB_CACHE}")
    return None


def hub_copy(repository: str, revision: str, folder: Path) -> Copy:
    """The copy as the Hub lists it; its files are asked for under the commit that `revision` means now."""
    commit, listed = download.listing(repository, revision)
    files: dict[str, download.Fetched | download.Remote] = {}
    for name in wanted_names(listed):
        if cached := download.in_hub_cache(repository, commit, name):
            files[name] = cached
        else:
            remote, fetched = download.ask(repository, commit, name), download.in_folder(folder, name, repository)
            files[name] = fetched if fetched and fetched.etag == remote.etag else remote
    if not files:
        raise ValueError(f"it holds neither {CSV_NAME} and {ZIP_NAME} nor parquet shards; see HF_DATASET_ID")
    return Copy(repository, revision, commit, folder, files)


def wanted_names(listed: Iterable[str]) -> list[str]:
    """The files to download: CSV and zip, or else the parquet shards."""
    safe = [name for name in listed if not archives.leads_out(name)]
    if CSV_NAME in safe and ZIP_NAME in safe:
        return [CSV_NAME, ZIP_NAME]
    return sorted(name for name in safe if name.endswith(".parquet"))


def fetch(copy: Copy, name: str) -> download.Fetched:
    """A file of the copy, downloaded with a progress bar where it is not here. Raises ValueError with the ways on."""
    file = copy.files[name]
    if isinstance(file, download.Fetched):
        return file
    try:
        copy.folder.mkdir(parents=True, exist_ok=True)
        download.write_json(copy.folder / "listing.json", {"repository": copy.repository, "revision": copy.revision,
                                                           "commit": copy.commit, "names": [*copy.files]})  # fmt: skip
        copy.files[name] = download.fetch(file, copy.folder)
    except hub.errors() as error:
        raise explained(error, name, copy.repository, copy.revision) from error
    return fetch(copy, name)


def source(copy: Copy) -> Source:
    """The copy, to be read. Files are downloaded when they are needed, so that a wrong CSV is found before the zip."""
    if ZIP_NAME in copy.files:
        return Source("Hub zip and CSV", str(copy), copy.repository, [],
                      lambda: read_annotations(fetch(copy, CSV_NAME).path),
                      lambda names, to: unpack(fetch(copy, ZIP_NAME).path, names, to))  # fmt: skip
    return Source("Hub parquet", str(copy), copy.repository, [], lambda: read_shards(copy),
                  lambda names, to: packed.unpack_parquet(fetch_shards(copy), names, to))  # fmt: skip


def read_shards(copy: Copy) -> Rows:
    shards = fetch_shards(copy)
    without = [shard.name for shard in shards if packed.parquet_columns(shard).split is None]
    if without:
        raise ValueError(f"{copy.repository} has no column `split` (first: {without[0]}): what the Hub calls its test "
                         "split is then the whole set. Take a copy with Karpathy's split, see HF_DATASET_ID")
    return packed.read_parquet(copy.folder, shards)


def fetch_shards(copy: Copy) -> list[Path]:
    return [fetch(copy, name).path for name in copy.files]


def explained(error: Exception, name: str, repository: str, revision: str) -> ValueError:
    """One line that says what happened and what can be done."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        what = f"{repository} asks for an agreement on the Hub first (accept it there and set HF_TOKEN)"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = (f"the Hub at {constants.ENDPOINT} has no data set {repository!r} (HF_DATASET_ID), "
                "or it is private (set HF_TOKEN)")
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"{repository} has no revision {revision!r}; see HF_DATASET_REVISION"
    elif getattr(error, "errno", None) == errno.ENOSPC:
        what = f"no space left for {name} (DATA_DIR)"
    elif isinstance(error, json.JSONDecodeError):
        what = f"{constants.ENDPOINT} did not answer as the Hub does: is there a login page or a proxy in between?"
    elif isinstance(error, ValueError) and not isinstance(error, errors.HFValidationError):
        what = f"{repository} at {revision}: {hub.reason_of(error)}"
    else:
        what = (f"could not get {name} of {repository} from {constants.ENDPOINT} "
                f"({type(error).__name__}: {hub.reason_of(error)})")
    return ValueError(f"{what}. {WAYS_ON}")


def check_counts(splits: Sequence[str]) -> None:
    """Raises ValueError unless the splits of the official copy have the sizes of Karpathy's."""
    counts = dict(Counter(splits))
    if counts != OFFICIAL_COUNTS:
        raise ValueError(f"this should be the Karpathy split {OFFICIAL_COUNTS} but the copy has {counts}; "
                         "set HF_DATASET_REVISION to a known commit, or use a local copy (RAW_DATA_DIR)")


def splits_digest(records: Iterable[Record]) -> str:
    """sha256 over the sorted lines "file name<TAB>split": the same for every copy of one split."""
    lines = sorted(f"{record['file_name']}\t{record['split']}\n" for record in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_train_digest(records: Iterable[Record]) -> list[str]:
    """A note where the training pictures are not the known ones of Karpathy's split."""
    if splits_digest(record for record in records if record["split"] == "train") == TRAIN_DIGEST:
        return []
    return ["the sizes are those of Karpathy's split, but the training pictures are others than those known: scores "
            "may not compare"]


def unpack(archive: Path, file_names: Collection[str], images_dir: Path) -> None:
    """Write the pictures `file_names` out of the zip into `images_dir`, whatever folder they have in it.

    The whole listing is checked before anything is written, pictures already there are kept. Raises ValueError for a
    damaged zip, unsafe or missing members and too little disk.
    """
    wanted = set(file_names)
    members = archives.checked(archive, lambda path: PurePosixPath(path).name in wanted)
    found = Counter(PurePosixPath(path).name for path in members)
    if twice := [name for name, count in found.items() if count > 1]:
        raise ValueError(f"{archive} holds {twice[0]} twice: refused, nothing was unpacked")
    missing = sorted(wanted - found.keys())
    if missing:
        raise ValueError(f"{archive} lacks {len(missing):,} of {len(wanted):,} pictures (first: {missing[0]}): "
                         f"delete {archive.resolve()} and run again, or use a local copy (RAW_DATA_DIR)")
    archives.unpack(archive, members, lambda path: images_dir / PurePosixPath(path).name)
