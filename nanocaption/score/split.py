"""The pictures whose captions are scored."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nanocaption.base.settings import Settings
from nanocaption.data.caption_text import as_read
from nanocaption.data.prepared import Question, Record, first_of_each, folder_name, iter_records, load_records, verify
from nanocaption.data.questions import load_questions, questions_of
from nanocaption.data.remote import ShardError
from nanocaption.data.shards import check_shards


class Split(NamedTuple):
    """One split of a prepared data set, or several as TEST_SPLITS and its like name them."""

    name: str
    folder: Path  # of the data set
    records: list[Record]  # each has at least one caption; with QUESTIONS at least one question
    training: "TrainingCaptions | None"  # those of the training split, if there is one
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
    load = load_questions if settings.QUESTIONS else load_records
    try:
        records = load(folder, splits, settings.DATA_CUTOFF)
    except ValueError as error:
        raise ValueError(f"{error} Or name one of its splits: --split val") from error
    if settings.QUESTIONS:
        return Split("+".join(splits), folder, records, None, manifest["captions_sha256"])
    if bare := [record["file_name"] for record in records if not record["captions"]]:
        raise ValueError(f"{len(bare)} of {len(records)} pictures have no reference caption, the first {bare[0]!r}: "
                         "give them one or take them out of captions.json")  # fmt: skip
    training = TrainingCaptions(Path(settings.DATA_DIR), trained)
    there = next(iter(training), None) is not None
    return Split("+".join(splits), folder, records, training if there else None, manifest["captions_sha256"])


class TrainingCaptions:
    """The captions of `training_records`, read from the disk whenever they are gone through."""

    def __init__(self, data_dir: Path, trained: Mapping[str, object]):
        self.data_dir, self.trained = data_dir, trained

    def __iter__(self) -> Iterator[str]:
        return (caption for record in training_records(self.data_dir, self.trained) for caption in record["captions"])


def training_questions(data_dir: Path, trained: Mapping[str, object]) -> list[Question]:
    """The questions of the pictures of `training_records`."""
    return [question for record in training_records(data_dir, trained) for question in questions_of(record)]


def training_records(data_dir: Path, trained: Mapping[str, object]) -> Iterator[Record]:
    """The pictures of the training split with their captions; none where its data set is gone or cannot be read.

    trained: the settings by name of the training.
    """
    config: Mapping[str, Any] = trained
    path = data_dir / folder_name(config["DATASET"]) / "captions.json"
    seen = config.get("TRAIN_SPLITS", ("train",))  # older checkpoints: none
    try:
        there = {record["split"] for record in iter_records(path)}
    except (OSError, ValueError, KeyError, TypeError):
        return
    records = (record for record in iter_records(path) if record["split"] in seen) if there & {*seen} else ()
    for record in first_of_each(records, config["DATA_CUTOFF"]):
        yield as_read([record], "keep")[0]  # tokens have no case
