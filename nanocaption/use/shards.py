"""Shards of pictures -> one parquet of captions a shard: `nanocaption caption --shards`.

A shard is the unit of everything. Its output takes its name when all of it is written, so that after kill -9 a shard is
done or not done, and it says in its footer what made it: the checkpoint, the options and the shard as it was. A later
start skips what is done, and refuses what something else has made. Nothing is shared between processes but the folder.
"""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from nanocaption.base.cli import told
from nanocaption.base.files import cases
from nanocaption.data import shards
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.remote import Address, ShardError, is_address
from nanocaption.data.transform import ImageSpec, load_image
from nanocaption.model.captions import CaptionText
from nanocaption.model.options import Options
from nanocaption.prepare.archives import labels_of
from nanocaption.prepare.shard_pictures import Entry, pictures_of
from nanocaption.score import results
from nanocaption.use.captioning import How, caption_images, decoding_facts
from nanocaption.use.load import Loaded, is_exported
from nanocaption.use.shard_files import Facts, Rows, claimed, difference_of, footer_of, publish


class Job(NamedTuple):
    """A shard to caption."""

    shard: Path  # or an Address
    output: Path
    facts: Facts  # what its captions depend on
    size: int  # bytes
    done: bool  # whether these facts made the output that is there


@dataclass
class Counts:
    """What was found in shards, for the summary."""

    shards: int = 0
    pictures: int = 0
    twice: int = 0  # keys that their shard has had before
    bad: Counter[str] = field(default_factory=Counter)  # reason -> pictures without a caption
    first_bad: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # shards without a picture
    failed: list[str] = field(default_factory=list)  # shards that could not be read, so without an output
    elsewhere: list[str] = field(default_factory=list)  # shards that another process is doing

    def count(self, tried: "Tried", seen: set[str]) -> None:
        """Count a picture. seen: the names that its shard had before it; this one is added."""
        name = tried.entry.picture.file_name
        self.pictures += 1
        self.twice += name in seen
        seen.add(name)
        if tried.pixels is None:
            self.bad[tried.reason.partition(":")[0]] += 1
            self.first_bad += [f"{tried.entry.picture}: {tried.reason}"] * (len(self.first_bad) < 3)

    def add(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


# --- What is to be done ---


def facts_of(loaded: Loaded, paths: Sequence[Path], options: Options, captions: int) -> Facts:
    """What captions depend on besides their shard. paths: the checkpoints, as find_checkpoints gives them."""
    digests = []
    for path in paths:
        beside = sorted(path.parent.glob("*.json")) if is_exported(path) else []  # the tokenizer is a file of its own
        digests.append(results.digest(path, *beside))
    return {"format": 1, "checkpoint": "+".join(digests), **decoding_facts(loaded, options), "captions": captions}


def plan(places: Sequence[str], output: Path, facts: Facts, force: bool) -> list[Job]:
    """A job for each shard, in their order. places: paths or addresses.

    SystemExit where an output would replace a shard, and unless `force` where something else made one that is there.
    """
    if len({is_address(place) for place in places}) > 1:
        raise SystemExit("--shards: name files or addresses, not both")
    jobs, others = [], []
    inputs = {os.path.realpath(place) for place in places}
    labels = labels_of([Path(place) for place in places])  # an address makes no path, but a label
    for place, label in zip(places, labels.values(), strict=True):
        shard, target = Address(place) if is_address(place) else Path(place), output / f"{label}.parquet"
        if os.path.realpath(target) in inputs:
            raise SystemExit(f"--output {output}: {target} is one of the shards, name another folder")
        size, time, etag = shards.state_of(place)
        its = {**facts, "shard": shard.name, "bytes": size, "time": time, "etag": etag}
        different = difference_of(target, its)
        others += [f"{target.name}: {different}"] if different else []
        jobs.append(Job(shard, target, its, size, done=different == ""))
    if others and not force:
        raise SystemExit(f"--output {output}: {cases(others, 'file')} of something else. Name another folder, or have "
                         "them done again with --force")  # fmt: skip
    return jobs


# --- One shard ---


class Tried(NamedTuple):
    """A picture that was read, or why it could not be."""

    entry: Entry
    pixels: Tensor | None  # uint8 (3, S, S)
    reason: str


def caption_shards(loaded: Loaded, jobs: Sequence[Job], options: Options, captions: int, shown: bool) -> Counts:
    """Do the jobs that are not done; what was found. A shard that cannot be read is told, and the others are done.

    captions: of each picture. shown: whether a bar tells the progress.
    """
    counts, left = Counts(), [job for job in jobs if not job.done]
    bar = Progress(left, shown)
    with bar.bar:
        for job in left:
            try:
                counts.add(_caption_shard(loaded, job, options, captions, bar))
            except ShardError as error:
                bar.bar.write(str(error), file=sys.stderr)
                counts.failed.append(job.shard.name)
            bar.finish(job.size)
    return counts


def _caption_shard(loaded: Loaded, job: Job, options: Options, captions: int, bar: "Progress") -> Counts:
    """Write the captions of one shard. ShardError where it cannot be read: its output is then what it was."""
    counts, seen = Counts(shards=1), set[str]()
    with claimed(job.output) as file:
        if file is None:
            return Counts(elsewhere=[job.shard.name])
        if difference_of(job.output, job.facts) == "":  # another process was faster
            return Counts()
        with Rows(file, captions) as rows:
            for batch in read_ahead(job.shard, loaded):
                found = iter(_captions(loaded, [tried for tried in batch if tried.pixels is not None], options))
                for tried in batch:
                    rows.add(tried.entry, tried.reason, next(found)[:captions] if tried.pixels is not None else [])
                    counts.count(tried, seen)
                bar.update(len(batch), job.size * batch[-1].entry.share)
            rows.finish({"facts": job.facts, "pictures": counts.pictures, "without": sum(counts.bad.values())})
        publish(file, job.output)
    counts.empty = [job.shard.name] * (counts.pictures == 0)
    return counts


def read_ahead(shard: Path, loaded: Loaded) -> Iterator[list[Tried]]:
    """The pictures of a shard in batches; while one is captioned, threads read the next."""
    spec, size = loaded.models[0].image_spec, loaded.settings.EVAL_BATCH_SIZE
    threads = max(1, loaded.settings.NUM_WORKERS)
    with told_of(shard), ThreadPoolExecutor(threads) as readers:
        waiting: list[Future[Tried]] = []
        batch: list[Future[Tried]] = []
        for entry in pictures_of(shard):
            batch.append(readers.submit(_read, entry, spec))
            if len(batch) == size:
                if waiting:
                    yield [one.result() for one in waiting]
                waiting, batch = batch, []
        for left in (waiting, batch):
            if left:
                yield [one.result() for one in left]


def _read(entry: Entry, spec: ImageSpec) -> Tried:
    if entry.problem:
        return Tried(entry, None, entry.problem)
    try:
        return Tried(entry, load_image(entry.picture, spec), "")
    except ValueError as error:
        _raise_of_shard(error)
        reason = str(error).removeprefix(f"The picture {entry.picture} cannot be read: ")
        return Tried(entry, None, reason)


def _raise_of_shard(error: BaseException | None) -> None:
    """Raise what lies behind an error where it is the disk's, the server's or the shard's, and not the picture's."""
    while error is not None:
        if isinstance(error, ShardError) or (isinstance(error, OSError) and error.errno is not None):
            raise error
        error = error.__cause__


@contextlib.contextmanager
def told_of(shard: Path) -> Iterator[None]:
    """Whatever reading a shard raises becomes a ShardError with its name."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = told(error)
        raise ShardError(text if str(shard) in text else f"{shard}: {text}") from error


def _captions(loaded: Loaded, batch: Sequence[Tried], options: Options) -> list[list[CaptionText]]:
    if not batch:
        return []
    names = [{"file_name": tried.entry.picture.file_name} for tried in batch]
    pixels = [tried.pixels for tried in batch if tried.pixels is not None]
    images = ImageTextDataset(names, Path(), [[] for _ in names], loaded.models[0].image_spec, pixels)
    images.paths = [tried.entry.picture for tried in batch]  # for an ensemble whose members see pictures differently
    settings = loaded.settings
    how = How(batch_size=settings.EVAL_BATCH_SIZE, options=options, device=loaded.device, precision=settings.PRECISION,
              workers=0, seed=settings.SEED)  # fmt: skip
    return caption_images(loaded.models, loaded.tokenizer, images, **how)


# --- Progress ---


class Progress:
    """A bar of pictures whose total is reckoned from the bytes of shards gone through."""

    def __init__(self, jobs: Sequence[Job], shown: bool):
        self.bytes, self.before, self.jobs = sum(job.size for job in jobs), 0, len(jobs)
        self.bar = tqdm(desc="captioning", unit="image", disable=not shown, mininterval=1, total=0)
        self.done = 0

    def update(self, pictures: int, within: float) -> None:
        """pictures: captioned since the last call; within: bytes of the present shard that lie behind."""
        gone = self.before + within
        if gone and not self.bar.disable:
            self.bar.total = round((self.bar.n + pictures) * self.bytes / gone)
        self.bar.set_postfix_str(f"shard {self.done + 1} of {self.jobs}", refresh=False)
        self.bar.update(pictures)

    def finish(self, size: int) -> None:
        """A shard of so many bytes lies behind."""
        self.before, self.done = self.before + size, self.done + 1


def summary_lines(counts: Counts, jobs: Sequence[Job], seconds: float) -> list[str]:
    """What was done, what was there, what was bad. jobs: all that were meant."""
    before = [footer_of(job.output) or {} for job in jobs if job.done]
    pictures, without = (sum(int(str(footer.get(name, 0))) for footer in before) for name in ("pictures", "without"))
    speed = f", {counts.pictures / seconds:.1f} images/s" if counts.pictures else ""
    lines = [f"{_of(counts.shards, 'shard')} captioned, {_of(counts.pictures, 'picture')}{speed}"]
    if before:
        lines.append(f"{_of(len(before), 'shard')} done before: {_of(pictures, 'picture')}, {without:,} captionless")
    if counts.bad:
        kinds = ", ".join(f"{number:,} {reason}" for reason, number in counts.bad.most_common())
        lines.append(f"{_of(sum(counts.bad.values()), 'picture')} without caption, see the column error: {kinds}. "
                     f"First: {'; '.join(counts.first_bad[:3])}")  # fmt: skip
    if counts.twice:
        lines.append(f"{_of(counts.twice, 'picture')} with a name that the shard had before: see the column row")
    if counts.empty:
        lines.append(f"{cases(counts.empty, 'shard')} without any picture, so with an empty output")
    if counts.elsewhere:
        lines.append(f"{cases(counts.elsewhere, 'shard')} left to another process that is at it")
    if counts.failed:
        lines.append(f"{cases(counts.failed, 'shard')} not read, so without output: the same command tries again")
    return lines


def _of(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def part_of(jobs: Sequence[Job], part: tuple[int, int], rank: int, world_size: int) -> list[Job]:
    """Those of part k of n (from 1), and of them those of one of its processes."""
    return list(jobs[part[0] - 1 :: part[1]][rank::world_size])
