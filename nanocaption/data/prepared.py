"""Several prepared sets as one: DATASET = "flickr30k,mine*2" or "coco*0.5,mine".

The number behind a name says how often an epoch visits each training pair of that set: 2 is twice, 0.5 one half of them
and in the next epoch the other half. Validation and test take every picture of all the sets that have them, once: a
weight there would make scores that no other set of pictures can be compared with.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Required, TypedDict, cast

from nanocaption.base.files import cases, walk_files
from nanocaption.data.shards import is_streamed


class Question(TypedDict, total=False):
    """A question about a picture, as captions.json has it."""

    question: Required[str]
    answers: Required[list[str]]  # all that people gave, equal ones as well: VQA's ten
    weights: list[float]  # of the answers, where they do not count alike
    id: int | str  # of the question, as it came
    source: str  # whose it is, in a set of several
    type: str  # VQA's question_type: "what color", ...; scores are told by it
    answer_type: str  # VQA's: yes/no, number, other
    turns: list[tuple[str, str]]  # the questions and answers that were said before


class Record(TypedDict, total=False):
    """A picture of a prepared set, as captions.json has it."""

    file_name: Required[str]
    split: Required[str]
    captions: Required[list[str]]  # none, where it has questions alone
    questions: list[Question]
    image_id: int | str  # COCO's own, or another set's, as it came
    domain: str  # of nocaps: in-domain, near-domain or out-domain
    scene: dict[str, Any]  # of drawn pictures: what is in it
    set: str  # of a mix: which of its sets, and how often an epoch visits its pairs where that is not once
    weight: float
    place: int  # of a streamed set, in memory alone: which picture of captions.json this is, see data/shards.py


def load_records(folder: Path | str, splits: str | Sequence[str], cutoff: int | None = None) -> list[Record]:
    """The images of some splits of a prepared data set, in the set's own order.

    cutoff: as in `first_of_each`. Raises ValueError where a split has no image.
    """
    folder = Path(folder)
    splits = (splits,) if isinstance(splits, str) else splits
    there: set[str] = set()
    records: list[Record] = []
    streamed = is_streamed(folder)
    for place, record in enumerate(iter_records(folder / "captions.json")):
        there.add(record["split"])
        if record["split"] in splits:
            records.append(record | {"place": place} if streamed else record)
    check_splits(folder / "captions.json", splits, there)
    return list(first_of_each(records, cutoff))


def check_splits(path: Path, splits: Sequence[str], there: Collection[str]) -> None:
    """Raises ValueError where the captions.json at `path` has no image of one of these splits."""
    absent = [repr(split) for split in splits if split not in there]
    if absent:
        raise ValueError(
            f"{path} has no image of the split {', '.join(absent)}; it has {', '.join(sorted(there)) or 'no images'}. "
            "Which are used is set with TRAIN_SPLITS, VAL_SPLITS and TEST_SPLITS."
        )


def iter_records(path: Path) -> Iterator[Record]:
    """The images of a captions.json, one after the other. As store.py writes it a file is read line by line."""
    with path.open(encoding="utf-8") as file:
        if file.readline() == '{"images": [\n':
            for line in file:
                if line.startswith("]"):
                    return
                yield json.loads(line.rstrip(",\n"))
            raise ValueError(f"{path} is not whole: its last line is missing")
    yield from json.loads(path.read_text(encoding="utf-8"))["images"]


def first_of_each(records: Iterable[Record], cutoff: int | None) -> Iterator[Record]:
    """The first `cutoff` of each split, and of each set where several are mixed; None: all."""
    seen: Counter[tuple[str, str | None]] = Counter()
    for record in records:
        seen[part := (record["split"], record.get("set"))] += 1
        if cutoff is None or seen[part] <= cutoff:
            yield record


def sample_places(records: Sequence[Record], number: int) -> list[int]:
    """Which `number` images stand for all: the first, and of several sets or splits evenly spaced ones."""
    kinds = {(record.get("set"), record["split"]) for record in records}
    if len(kinds) == 1 or number >= len(records):
        return list(range(min(number, len(records))))
    return [place * len(records) // number for place in range(number)]


FORM = 'write names with commas between, each with an optional weight above 0: "flickr30k,mine*2"'


class Part(NamedTuple):
    """One set of a mix."""

    name: str
    weight: float


def is_mix(dataset: str) -> bool:
    return "," in dataset or re.fullmatch(r".*\*\s*[-+.\d]\S*", dataset) is not None


def parse_mix(dataset: str) -> list[Part]:
    """"flickr30k,mine*2" -> its parts. Raises ValueError with one line where it is not of that form."""
    parts = []
    for text in dataset.split(","):
        name, star, number = (piece.strip() for piece in text.partition("*"))
        try:
            weight = float(number) if star else 1.0
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise ValueError(f"DATASET = {dataset!r}: {text.strip()!r} is no set with a weight; {FORM}")
        parts.append(Part(name, weight))
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"DATASET = {dataset!r} names a set twice: give it a weight instead; {FORM}")
    return parts


def folder_name(dataset: str) -> str:
    """The name of the folder in DATA_DIR: DATASET itself, and for a mix "flickr30k+mine@2"."""
    if not is_mix(dataset):
        return dataset
    return "+".join(part.name + ("" if part.weight == 1 else f"@{part.weight:g}") for part in parse_mix(dataset))


class EditedError(ValueError):
    """captions.json is not the one its manifest was written for."""


class Manifest(TypedDict, total=False):
    """What manifest.json says of a prepared set; sets of earlier versions lack what came later."""

    name: str
    layout: str
    licence: str
    source: str  # what it was made from
    source_sha256: str  # of its captions, see prepare/layouts.captions_digest
    cutoff: int | None
    seed: int | None  # None: nothing was drawn
    caption_text: dict[str, Any]  # version, see caption_text.TEXT_VERSION; of version 1 the case, too
    parts: dict[str, Any]  # of a mix: name -> weight and captions_sha256
    copies_left_out: list[str]  # of a mix
    notes: list[str]
    counts: Required[dict[str, dict[str, int]]]  # split -> images, captions
    captions_sha256: Required[str]
    pictures_sha256: str
    questions: bool  # of a set whose raw data are questions
    stream: dict[str, Any]  # of a set whose pictures stay in their shards: how many there are, see data/shards.py


def verify(folder: Path) -> Manifest:
    """The manifest of a whole set. Raises ValueError with one line when the set is not whole.

    Whole: the manifest is there, captions.json has the digest it names, and images/ has every picture of captions.json
    by name (the pictures are not opened: well under a second for 30,000); of a streamed set, stream/ has its index.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        digest = sha256_of(folder / "captions.json")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not whole: it has no {Path(error.filename).name}") from None
    except ValueError as error:
        raise ValueError(f"{folder} is not whole: its manifest.json is no JSON ({error})") from None
    if not isinstance(manifest, dict) or not {"counts", "captions_sha256"} <= manifest.keys():
        raise ValueError(f"{folder} is not whole: its manifest.json lacks counts or captions_sha256")
    if manifest["captions_sha256"] != digest:
        raise EditedError(f"{folder} is not whole: captions.json has changed since manifest.json was written; to use "
                          "such changes make them in a folder of your own (RAW_DATA_DIR), and delete "
                          f"{folder / 'manifest.json'} to make this set again")
    if "stream" in manifest:
        from nanocaption.data.shard_index import check_index  # numpy, which --help need not wait for

        check_index(folder, sum(count["images"] for count in manifest["counts"].values()))
        return cast(Manifest, manifest)
    names = [record["file_name"] for record in iter_records(folder / "captions.json")]
    present = set(walk_files(folder / "images"))
    missing = [name for name in names if name not in present]
    if missing:
        raise ValueError(f"{folder} is not whole: {cases(missing, 'picture')} missing in images/")
    return cast(Manifest, manifest)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_captions(folder: Path, digest: str) -> Path:
    """Where the captions.json of this sha256 is kept once the set in `folder` has been made anew with others."""
    return folder / f"captions.replaced-{digest[:12]}.json"


def repaired_notes(folder: Path) -> list[str]:
    """What to tell of a whole set, or of the parts of a mix, whose references an earlier version changed."""
    manifest: Manifest = json.loads((folder / "manifest.json").read_bytes())
    if "parts" in manifest:
        parts = [folder.parent / name for name in manifest["parts"]]
        return [note for part in parts if (part / "manifest.json").exists() for note in repaired_notes(part)]
    if manifest.get("caption_text", {}).get("version") != 1:
        return []
    try:
        repaired = json.loads((folder / "report.json").read_bytes())["captions"]["repaired"]
        number = sum(kind["count"] for kind in repaired.values())
    except (OSError, ValueError, KeyError, TypeError):
        number = 0  # the demo set has no report, and nothing to repair
    return [f"Note: {folder} was prepared by an earlier version, which repaired {number:,} captions or dropped them as "
            "said twice, references too: scores differ from those against the raw captions. To have all as written "
            f"delete {folder / 'manifest.json'} and prepare the set again."] if number else []  # fmt: skip


def is_whole(folder: Path) -> bool:
    """Whether `verify` accepts the set."""
    try:
        verify(folder)
    except ValueError:
        return False
    return True
