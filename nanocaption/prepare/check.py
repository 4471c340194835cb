"""The check before a data set is made: every picture is decoded once, every caption is read, and a report says so.

    data/<name>/scan.jsonl    what was found in each picture, one line each, written as it is found: a run that was
                              killed goes on from there, and nothing is decoded twice while size and time stay the same
    data/<name>/report.json   kept, converted and refused pictures and captions with reasons, copies, sizes, lengths
    data/<name>/report.png    histograms of picture sizes, file sizes and caption lengths

Refused pictures and captions are left out of the set; the files themselves are never touched. Where more than
MAX_BAD_FRACTION of the pictures or of the captions would be left out, no set is made. Captions that are kept are kept
as they were written, see data/caption_text.py.

Copies: the same picture under several names, as the same file or with the same pixels in another. One that lies in
several splits of a source is kept in test, else in val, and left out of the others, because training on a picture of
the test set is the worse fault. Copies within a split stay. Splits that are drawn here are drawn once copies are known.
"""

import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, cast

from tqdm import tqdm

from nanocaption.base import cli
from nanocaption.base.files import json_lines, open_to_append
from nanocaption.data.caption_text import TEXT_VERSION, clean
from nanocaption.data.prepared import Record
from nanocaption.data.remote import ShardError
from nanocaption.data.shards import Packed, read_bytes, state_of
from nanocaption.prepare import check_report, splits
from nanocaption.prepare.check_report import Examined, Report

SCAN_VERSION = 1  # goes up when a rule of the scan changes: older lines of scan.jsonl then count no more
MIN_SIDE = 8  # pixels; what is smaller shows nothing
PER_WORKER = 100  # pictures that are worth a process of its own, which takes 0.3 s to start
AT_ONCE = 8  # paths given to a process in one go, so that it need not wait for each; few enough for a pipe
Draw = Callable[[list[str], list[list[str]]], Mapping[str, str]]  # (names, groups of copies) -> name -> split
PASSING = ("cannot be opened", "missing", "link to nothing")  # reasons that the next run may not find again


class Rules(NamedTuple):
    """The settings of config.py that the check depends on."""

    caption_case: str = "keep"  # CAPTION_CASE
    max_bad_fraction: float = 0.01  # MAX_BAD_FRACTION
    workers: int = 0  # NUM_WORKERS; 0 = as many processes as there are cores


DEFAULT_RULES = Rules()


class Checked(NamedTuple):
    """What `check` found."""

    records: list[Record]  # those that can be used, with the captions that can
    report: Report
    found: dict[str, Examined]  # file_name -> as `scan` gives it; {} where the pictures were not opened

    def facts(self) -> dict[str, object]:
        """For the manifest: which text its captions are, and a digest over the names and files of opened pictures."""
        lines = [json.dumps([record["file_name"], self.found[record["file_name"]]["sha256"]])
                 for record in self.records if record["file_name"] in self.found]  # fmt: skip
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None
        return {"caption_text": {"version": TEXT_VERSION}, "pictures_sha256": digest}


def check(
    folder: Path, records: Sequence[Record], paths: Mapping[str, Path | Packed] | None, rules: Rules,
    draw: Draw | None = None,
) -> Checked:  # fmt: skip
    """Look at all pictures and captions of a set that is to be made in `folder`, and print a summary.

    paths: file_name -> picture; None: pictures drawn here, which are not opened. draw: gives the splits of those that
    can be used. Raises ValueError with the first cases where more than rules.max_bad_fraction is bad, a split would
    lose all it had, or too few are left to draw from; report.json is written then, too.
    """
    cleaned, captions_report = clean_captions(records, rules.caption_case)
    captioned = [record for record in cleaned if record["captions"]]
    if paths is None:
        return Checked(captioned, {"captions": captions_report}, {})
    found = scan({name: paths[name] for name in _names(records)}, folder / "scan.jsonl", rules.workers)
    refused = _refused(found, cleaned)
    good = [record for record in captioned if record["file_name"] not in refused]
    groups = _groups_of_copies(good, found, paths)
    if draw is not None:
        drawn = draw(_names(good), list(map(_names, groups)))
        for record in good:  # which the groups hold as well
            record["split"] = drawn[record["file_name"]]
    copies, leaving = _left_out(groups)
    kept = [record for record in good if record["file_name"] not in leaving]
    report: Report = {
        "captions": captions_report,
        "pictures": check_report.of_pictures(len(records), kept, found, refused) | {"copies": copies},
        "sizes": check_report.sizes(kept, found),
    }
    lost = _lost_split(records, kept, folder) if draw is None else _not_drawn(kept, groups, folder)
    if problem := check_report.problem(report, rules.max_bad_fraction, folder) or lost:
        check_report.write_report(folder, report)
        raise ValueError(problem)
    print("\n".join(check_report.summary(report)))
    return Checked(kept, report, found)


def _names(records: Sequence[Record]) -> list[str]:
    return [record["file_name"] for record in records]


def _refused(found: Mapping[str, Examined], cleaned: Sequence[Record]) -> dict[str, dict[str, str]]:
    """file_name -> reason and detail, of pictures that cannot be used and of those without a caption."""
    refused = {name: entry["refused"] for name, entry in found.items() if entry["refused"]}
    bare = sorted(record["file_name"] for record in cleaned if not record["captions"])
    return refused | {name: {"reason": "no caption left", "detail": ""} for name in bare if name not in refused}


def _lost_split(records: Sequence[Record], kept: Sequence[Record], folder: Path) -> str | None:
    lost = sorted({record["split"] for record in records} - {record["split"] for record in kept})
    return (f"no picture of the split {lost[0]} can be used: mend or replace its pictures and captions; "
            f"{folder / 'report.json'} says what is wrong with each, and which are copies") if lost else None


def _not_drawn(kept: Sequence[Record], copies: Sequence[Sequence[Record]], folder: Path) -> str | None:
    lacking = sorted({"train", "val", "test"} - {record["split"] for record in kept})
    if not lacking:
        return None
    if len(kept) - sum(len(group) - 1 for group in copies) < splits.LEAST:
        return (f"{len(kept)} pictures can be used: too few to draw train, val and test, for which {splits.LEAST} are "
                "needed that are no copies of each other; add pictures, or a split column to the captions")  # fmt: skip
    return (f"no picture is left for the split {lacking[0]}, because those that the set had keep theirs: add pictures, "
            f"or delete {folder / 'captions*.json'}, all of them, to draw all anew")


def clean_captions(records: Sequence[Record], case: str) -> tuple[list[Record], dict[str, Any]]:
    """The records with the captions that are some, or with none, and what the report says of captions."""
    repaired, refused = [], []
    refused_in: Counter[str] = Counter()
    cleaned: list[Record] = []
    for record in tqdm(records, desc="checking captions", unit="picture", disable=len(records) < 5000):
        of_picture = clean(record["captions"], case)
        name = record["file_name"]
        cleaned.append(record | {"captions": of_picture.kept})
        refused += [(reason, f"{name}: {shown}") for reason, shown in of_picture.refused]
        refused_in[record["split"]] += len(of_picture.refused)
        repaired += [(what, name, before, after) for what, before, after in of_picture.changed]
    changed = [entry for entry in repaired if entry[2] != entry[3]]
    first = list({entry[0]: entry for entry in reversed(changed)}.values())[::-1]  # one of each kind, then others
    examples = [[before, after] for _, _, before, after in [*first, *(e for e in changed[:3] if e not in first)][:3]]
    return cleaned, {
        "checked": sum(len(record["captions"]) for record in records),
        "kept": sum(len(record["captions"]) for record in cleaned),
        "refused": check_report.by_reason(refused),
        "refused_in": dict(+refused_in),
        "repaired": check_report.by_reason((what, f"{name}: {before[:200]!r}") for what, name, before, _ in repaired),
        "text": {"version": TEXT_VERSION, "case": case, "changed": len(changed), "examples": examples},
    }


def scan(paths: Mapping[str, Path | Packed], log: Path, workers: int) -> dict[str, Examined]:
    """What each picture is, in the order given: name -> {bytes, width, height, conversions, sha256, pixels, refused}.

    refused: None, or {reason, detail}. sha256: the file's; pixels: the CRC-32 of what was decoded. What `log` holds for
    a file of the same name, size and time is taken from there; the rest is decoded, by `workers` processes, and added.
    """
    known = _read_scan(log)
    files = sizes_and_times(paths)
    found = {name: known[name] for name, file in files.items()
             if name in known and (known[name]["bytes"], known[name]["time"]) == file}  # fmt: skip
    todo = [name for name in paths if name not in found]
    log.parent.mkdir(parents=True, exist_ok=True)
    bar = {"desc": "checking pictures", "unit": "picture", "mininterval": 0.5}
    with open_to_append(log) as file, tqdm(total=len(paths), initial=len(found), **bar) as progress:
        for number, answer in examine_all([address_of(paths[name]) for name in todo], workers):
            name = todo[number]
            size, time = files[name]
            entry: Examined = {"name": name, "bytes": size, "time": time, "version": SCAN_VERSION, **answer}
            found[name] = entry
            if not entry["refused"] or entry["refused"]["reason"] not in PASSING:
                file.write(json.dumps(entry).encode() + b"\n")
            progress.update()
    return {name: found[name] for name in paths}


def _read_scan(log: Path) -> dict[str, Examined]:
    """name -> its last line in `log` by the rules of today; lines that a kill or a fault tore count for nothing."""
    lines = [cast(Examined, row) for _, row in json_lines(log) if row] if log.exists() else []
    return {line.get("name", ""): line for line in lines if line.get("version") == SCAN_VERSION}


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes, and time of change in ns; 0 and 0 where the file cannot be asked."""
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


def sizes_and_times(paths: Mapping[str, Path | Packed]) -> dict[str, tuple[int, int]]:
    """`size_and_time` of each; of a packed one its own size and the time of its shard, of one on a server its ETag."""
    times: dict[str, int] = {}
    for shard in {path.shard for path in paths.values() if isinstance(path, Packed)}:
        _, time, etag = state_of(shard)
        times[shard] = time or zlib.crc32(etag.encode())
    return {name: (path.length, times[path.shard]) if isinstance(path, Packed) else size_and_time(path)
            for name, path in paths.items()}  # fmt: skip


def address_of(path: Path | Packed) -> str | list[object]:
    """What tells another process, in JSON, where a picture lies."""
    return [*path] if isinstance(path, Packed) else str(path)


def examine(address: str | Sequence[object]) -> Examined:
    """Decode one picture whole: {width, height, conversions, sha256, pixels, refused}, of a packed one crc: see `scan`.

    address: as address_of gives it. Raises ShardError.
    """
    from nanocaption.data.pictures import PictureError, read_picture

    path = address if isinstance(address, str) else Packed(*address)
    data = read_bytes(path) if isinstance(path, Packed) else None
    try:
        picture = read_picture(path, data=data)
        height, width, _ = picture.pixels.shape
        if min(height, width) < MIN_SIDE:
            raise PictureError(f"a side below {MIN_SIDE} pixels", f"{width} x {height}")
        if data is None:
            with open(str(path), "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            digest = hashlib.sha256(data).hexdigest()
    except PictureError as error:
        detail = str(error)[len(error.reason) + 2 :]
        return {"width": 0, "height": 0, "conversions": [], "sha256": "", "pixels": 0,
                "refused": {"reason": error.reason, "detail": detail}}  # fmt: skip
    # A CRC costs a tenth of a sha256 of the pixels, which would take longer than decoding: `find_copies` looks again.
    return {"width": width, "height": height, "conversions": list(picture.conversions), "sha256": digest,
            "pixels": zlib.crc32(picture.pixels), "refused": None,
            **({} if data is None else {"crc": zlib.crc32(data)})}  # fmt: skip


def examine_all(paths: Sequence[str | list[object]], workers: int) -> Iterator[tuple[int, Examined]]:
    """(number, `examine` of that path) for all of them, as they get ready, from at most `workers` processes.

    Raises ValueError naming the picture at which a process died.
    """
    workers = min(workers or usable_cores(), len(paths) // PER_WORKER)
    if workers <= 1:
        yield from ((number, examine(path)) for number, path in enumerate(paths))
        return
    # Plain processes with pipes: one that dies is noticed with the picture it died at, all end when this one is
    # killed, and none of them imports the caller's main module, and torch with it.
    command, environment = cli.own_process("nanocaption.prepare.check")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    processes = [subprocess.Popen(command, **pipes) for _ in range(workers)]
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)
    threads = ThreadPoolExecutor(workers)
    try:
        jobs = [threads.submit(_examine_some, idle, paths, first) for first in range(0, len(paths), AT_ONCE)]
        for job in as_completed(jobs):
            yield from job.result()
    finally:
        for process in processes:
            process.kill()  # which ends the jobs that wait for it
        threads.shutdown(cancel_futures=True)
        for process in processes:
            with contextlib.suppress(BrokenPipeError):
                process.communicate()


def _examine_some(
    idle: queue.SimpleQueue[Any], paths: Sequence[str | list[object]], first: int
) -> list[tuple[int, Examined]]:
    """(number, answer) for AT_ONCE of the paths, from the `first` on, by one of the idle processes."""
    process, some = idle.get(), paths[first : first + AT_ONCE]
    try:
        with contextlib.suppress(BrokenPipeError):  # its answer, which will be missing, tells which picture it was
            process.stdin.write(b"".join(json.dumps(path).encode() + b"\n" for path in some))
            process.stdin.flush()
        answers = []
        for number, path in enumerate(some, start=first):
            line = process.stdout.readline()
            if not line.endswith(b"\n"):
                process.kill()  # in case it only closed its pipe
                code = process.wait()
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                raise ValueError(f"a process that decodes pictures died at {path} ({how}): where memory is short set "
                                 "NUM_WORKERS = 1, otherwise take that picture out; then run again, what was checked "
                                 "so far is kept")
            answer = json.loads(line)
            if "error" in answer:
                raise ShardError(answer["error"])
            answers.append((number, answer))
        return answers
    finally:
        idle.put(process)


def _serve() -> None:
    """What each of these processes does, until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
    for line in sys.stdin.buffer:
        try:
            answer: Mapping[str, object] = examine(json.loads(line))
        except ShardError as error:
            answer = {"error": str(error)}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_copies(
    records: Sequence[Record], found: Mapping[str, Examined], paths: Mapping[str, Path | Packed]
) -> tuple[dict[str, Any], set[str]]:
    """(what the report says of pictures with the same pixels, the names to leave out because another split has them)"""
    return _left_out(_groups_of_copies(records, found, paths))


def _left_out(groups: Sequence[Sequence[Record]]) -> tuple[dict[str, Any], set[str]]:
    across, leaving = [], set()
    for group in groups:
        lying_in = {record["split"] for record in group}
        if len(lying_in) > 1:
            stays = splits.first_of(lying_in)
            leaving |= {record["file_name"] for record in group if record["split"] != stays}
            across.append([f"{record['file_name']} ({record['split']})" for record in group])
    return {
        "groups": len(groups),
        "cases": [[record["file_name"] for record in group] for group in groups[:check_report.CASES]],
        "across_splits": len(across),
        "across_cases": across[:check_report.CASES],
        "left_out": sorted(leaving),
    }, leaving


def _groups_of_copies(
    records: Sequence[Record], found: Mapping[str, Examined], paths: Mapping[str, Path | Packed]
) -> list[list[Record]]:
    def key(record: Record) -> tuple[int, int, int]:
        entry = found[record["file_name"]]
        return entry["width"], entry["height"], entry["pixels"]

    files: dict[tuple[int, int, int], dict[str, Path | Packed]] = {}
    for record in records:
        files.setdefault(key(record), {})[found[record["file_name"]]["sha256"]] = paths[record["file_name"]]
    # Different files whose pixels have one CRC are few: only they are decoded again.
    pixels = {file: _pixels_digest(path) for alike in files.values() if len(alike) > 1 for file, path in alike.items()}
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((key(record), pixels.get(found[record["file_name"]]["sha256"])), []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def _pixels_digest(path: Path | Packed) -> str:
    from nanocaption.data.pictures import read_picture

    return hashlib.sha256(read_picture(path).pixels).hexdigest()


if __name__ == "__main__":
    _serve()
