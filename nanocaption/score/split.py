"""The pictures whose captions are scored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nanocaption.base.settings import Settings
from nanocaption.data.caption_text import as_read
from nanocaption.data.prepared import Record, folder_name, load_records, verify
from nanocaption.data.remote import ShardError
from nanocaption.data.shards import check_shards
from nanocaption.score.results import read_object


class Split(NamedTuple):
    """One split of a prepared data set, or several as TEST_SPLITS and its like name them."""

    name: str
    folder: Path  # of the data set
    records: list[Record]  # each has at least one caption
    training: list[str] | None  # the captions of the training split, if there is one
    captions_sha256: str  # of the data set's captions.json


def load_split(settings: Settings, name: str, trained: Mapping[str, object]) -> Split:
    """The split `name` of the data set that `settings` name.

    trained: the settings by name of the training, whose captions go along. Raises ValueError, with the command that
    makes the data set, where it is not there or not whole, and for pictures without a reference.
    """
    folder = Path(settings.DATA_DIR) / folder_name(settings.DATASET)
    make = f"python prepare_dataset.py --dataset '{settings.DATASET}'"
    if not (folder / "captions.json").is_file():
        raise ValueError(f"There is no data set {folder}. Make it: {make}. Or name yours: --dataset NAME")
    try:
        manifest = verify(folder)
        if "stream" in manifest:
            check_shards(folder)
    except ShardError:
        raise
    except ValueError as error:
        raise ValueError(f"{error}. Prepare it again: {make}") from error
    splits = getattr(settings, f"{name.upper()}_SPLITS", (name,))
    try:
        records = load_records(folder, splits, settings.DATA_CUTOFF)
    except ValueError as error:
        raise ValueError(f"{error} Or name one of its splits: --split val") from error
    if bare := [record["file_name"] for record in records if not record["captions"]]:
        raise ValueError(f"{len(bare)} of {len(records)} pictures have no reference caption, the first {bare[0]!r}: "
                         "give them one or take them out of captions.json")  # fmt: skip
    training = [caption for record in training_records(Path(settings.DATA_DIR), trained)
                for caption in record["captions"]]  # fmt: skip
    return Split("+".join(splits), folder, records, training or None, manifest["captions_sha256"])


def training_records(data_dir: Path, trained: Mapping[str, object]) -> list[Record]:
    """The pictures of the training split with their captions; none where its data set is gone.

    trained: the settings by name of the training.
    """
    config: Mapping[str, Any] = trained
    origin = data_dir / folder_name(config["DATASET"])
    images = read_object(origin / "captions.json").get("images", [])
    there = {row["split"] for row in images} if isinstance(images, list) else set()
    seen = [split for split in config.get("TRAIN_SPLITS", ("train",)) if split in there]  # older checkpoints: none
    records = load_records(origin, seen, config["DATA_CUTOFF"]) if seen else []
    return as_read(records, "keep")  # tokens have no case
