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
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from tqdm import tqdm

from nanocaption.base import cli, on_disk
from nanocaption.base.files import json_lines, open_to_append
from nanocaption.data.caption_text import TEXT_VERSION, clean
from nanocaption.data.prepared import Record
from nanocaption.data.remote import ShardError
from nanocaption.data.shards import Packed, read_bytes, state_of
from nanocaption.prepare import check_questions, check_report, splits
from nanocaption.prepare.check_report import Examined, Repairs, Report, Tally, entries_of, names_of

SCAN_VERSION = 1  # goes up when a rule of the scan changes: older lines of scan.jsonl then count no more
MIN_SIDE = 8  # pixels; what is smaller shows nothing
PER_WORKER = 100  # pictures that are worth a process of its own, which takes 0.3 s to start
AT_ONCE = 8  # paths given to a process in one go, so that it need not wait for each; few enough for a pipe
WAITING = 8  # of these, for each process: given out, or examined and not asked for yet
Draw = Callable[[Sequence[str], list[list[str]]], Sequence[str]]  # (names, groups of copies) -> the split of each name
PASSING = ("cannot be opened", "missing", "link to nothing")  # reasons that the next run may not find again


UNSEEN: Examined = {}
T = TypeVar("T")


class Rules(NamedTuple):
    """The settings of config.py that the check depends on."""

    caption_case: str = "keep"  # CAPTION_CASE
    max_bad_fraction: float = 0.01  # MAX_BAD_FRACTION
    workers: int = 0  # NUM_WORKERS; 0 = as many processes as there are cores


DEFAULT_RULES = Rules()


class Checked(NamedTuple):
    """What `check` found."""

    records: Sequence[Record]  # those that can be used, with the captions that can
    report: Report
    found: Mapping[str, Examined]  # file_name -> as `scan` gives it; {} where the pictures were not opened

    def facts(self) -> dict[str, object]:
        """For the manifest: which text its captions are, and a digest over the names and files of opened pictures."""
        digest, end = hashlib.sha256(), ""
        if self.found:
            for name, entry in zip(names_of(self.records), entries_of(self.records, self.found), strict=True):
                digest.update(f"{end}{json.dumps([name, entry['sha256']])}".encode())
                end = "\n"
        return {"caption_text": {"version": TEXT_VERSION}, "pictures_sha256": digest.hexdigest() if end else None}


def check(
    folder: Path, records: Sequence[Record], paths: Mapping[str, Path | Packed] | None, rules: Rules,
    draw: Draw | None = None, scratch: Path | None = None,
) -> Checked:  # fmt: skip
    """Look at all pictures and captions of a set that is to be made in `folder`, and print a summary.

    paths: file_name -> picture; None: pictures drawn here, which are not opened. draw: gives the splits of those that
    can be used. scratch: where what is found lies that memory need not hold, see on_disk.rows. Raises ValueError with
    the first cases where more than rules.max_bad_fraction is bad, a split would lose all it had, or too few are left to
    draw from; report.json is written then, too.
    """
    cleaned, captions_report = clean_captions(records, rules.caption_case, scratch)
    asked = any("questions" in record for record in records)
    questions_report = {}
    if asked:
        cleaned, questions_report["questions"] = check_questions.clean_questions(cleaned)
    captioned = on_disk.rows(scratch, (record for record in cleaned if record["captions"] or record.get("questions")))
    if paths is None:
        return Checked(captioned, {"captions": captions_report}, {})
    mine = paths
    if scratch is None or len(paths) > len(records):  # otherwise they are those of the records, in their order
        mine = on_disk.table(scratch, zip(names_of(records), on_disk.values_of(names_of(records), paths), strict=True))
    found = scan(mine, folder / "scan.jsonl", rules.workers, scratch)
    refused = _refused(found, cleaned)
    good = on_disk.rows(scratch, (record for record in captioned if record["file_name"] not in refused))
    groups = _groups_of_copies(good, found, mine)
    if draw is not None:
        good, groups = _drawn(good, groups, draw, scratch)
    copies, leaving = _left_out(groups)
    kept = on_disk.rows(scratch, (record for record in good if record["file_name"] not in leaving))
    report: Report = {
        "captions": captions_report,
        **questions_report,
        "pictures": check_report.of_pictures(len(records), kept, found, refused) | {"copies": copies},
        "sizes": check_report.sizes(kept, found),
    }
    lost = _lost_split(records, kept, folder) if draw is None else _not_drawn(kept, groups, folder)
    if problem := check_report.problem(report, rules.max_bad_fraction, folder) or lost:
        check_report.write_report(folder, report)
        raise ValueError(problem)
    print("\n".join(check_report.summary(report)))
    return Checked(kept, report, found)


def _drawn(
    records: Sequence[Record], groups: Sequence[Sequence[Record]], draw: Draw, scratch: Path | None
) -> tuple[Sequence[Record], list[list[Record]]]:
    """The records with the splits that `draw` gives them, and so the groups of copies among them."""
    names = on_disk.rows(scratch, names_of(records))
    drawn = draw(names, [[*names_of(group)] for group in groups])
    good: Sequence[Record] = on_disk.rows(scratch, (record | {"split": split}
                                                    for record, split in zip(records, drawn, strict=True)))
    copies = {name for group in groups for name in names_of(group)}
    now = {record["file_name"]: record for record in good if record["file_name"] in copies}
    return good, [[now[name] for name in names_of(group)] for group in groups]


def _refused(found: Mapping[str, Examined], cleaned: Sequence[Record]) -> dict[str, dict[str, str]]:
    """file_name -> reason and detail, of pictures that cannot be used and of those without a caption."""
    refused = {name: entry["refused"] for name, entry in found.items() if entry["refused"]}
    bare = sorted((record["file_name"], "question" if "questions" in record else "caption") for record in cleaned
                  if not record["captions"] and not record.get("questions"))  # fmt: skip
    return refused | {name: {"reason": f"no {what} left", "detail": ""} for name, what in bare if name not in refused}


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


def clean_captions(
    records: Sequence[Record], case: str, scratch: Path | None = None
) -> tuple[Sequence[Record], dict[str, Any]]:
    """The records with the captions that are some, or with none, and what the report says of captions.

    scratch: as on_disk.rows takes it.
    """
    refused, repaired, repairs = Tally(), Tally(), Repairs()
    refused_in: Counter[str] = Counter()
    number: Counter[str] = Counter()
    cleaned: on_disk.Rows[Record] = on_disk.rows(scratch)
    for record in tqdm(records, desc="checking captions", unit="picture", disable=len(records) < 5000):
        of_picture = clean(record["captions"], case)
        name = record["file_name"]
        cleaned.append(record | {"captions": of_picture.kept})
        for reason, shown in of_picture.refused:
            refused.add(reason, f"{name}: {shown}")
        refused_in[record["split"]] += len(of_picture.refused)
        for what, before, after in of_picture.changed:
            repaired.add(what, f"{name}: {before[:200]!r}")
            repairs.add(what, name, before, after)
        number["checked"] += len(record["captions"])
        number["kept"] += len(of_picture.kept)
    return cleaned, {
        "checked": number["checked"],
        "kept": number["kept"],
        "refused": refused.told(),
        "refused_in": dict(+refused_in),
        "repaired": repaired.told(),
        "text": {"version": TEXT_VERSION, "case": case, "changed": repairs.number, "examples": repairs.examples()},
    }


def scan(
    paths: Mapping[str, Path | Packed], log: Path, workers: int, scratch: Path | None = None
) -> Mapping[str, Examined]:
    """What each picture is, in the order given: name -> {bytes, width, height, conversions, sha256, pixels, refused}.

    refused: None, or {reason, detail}. sha256: the file's; pixels: the CRC-32 of what was decoded. What `log` holds for
    a file of the same name, size and time is taken from there; the rest is decoded, by `workers` processes, and added.
    scratch: as on_disk.rows takes it.
    """
    known = _read_scan(log, scratch)
    found: MutableMapping[str, Examined] = on_disk.table(scratch)
    todo: on_disk.Rows[tuple[str, int, int]] = on_disk.rows(scratch)  # name, bytes, time
    addresses: on_disk.Rows[str | list[object]] = on_disk.rows(scratch)
    for (name, path), (size, time) in zip(paths.items(), sizes_and_times(paths), strict=True):
        line = known.get(name, UNSEEN)
        same = (line.get("bytes"), line.get("time")) == (size, time)
        found[name] = line if same else UNSEEN  # so that all stand in their order
        if not same:
            todo.append((name, size, time))
            addresses.append(address_of(path))
    log.parent.mkdir(parents=True, exist_ok=True)
    bar = {"desc": "checking pictures", "unit": "picture", "mininterval": 0.5}
    with open_to_append(log) as file, tqdm(total=len(paths), initial=len(paths) - len(todo), **bar) as progress:
        for (name, size, time), answer in _in_turn(todo, examine_all(addresses, workers)):
            entry: Examined = {"name": name, "bytes": size, "time": time, "version": SCAN_VERSION, **answer}
            found[name] = entry
            if not entry["refused"] or entry["refused"]["reason"] not in PASSING:
                file.write(json.dumps(entry).encode() + b"\n")
            progress.update()
    return found


def _in_turn(items: Iterable[T], answers: Iterable[tuple[int, Examined]]) -> Iterator[tuple[T, Examined]]:
    """Each item with its answer, as these get ready: by number, each a little before or after its turn."""
    source, waiting = enumerate(items), {}
    for number, answer in answers:
        while number not in waiting:
            place, item = next(source)
            waiting[place] = item
        yield waiting.pop(number), answer


def _read_scan(log: Path, scratch: Path | None) -> Mapping[str, Examined]:
    """name -> its last line in `log` by the rules of today; lines that a kill or a fault tore count for nothing."""
    if not log.exists():
        return {}
    lines = (cast(Examined, row) for _, row in json_lines(log) if row)
    return on_disk.table(scratch, ((line.get("name", ""), line) for line in lines
                                   if line.get("version") == SCAN_VERSION))  # fmt: skip


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes, and time of change in ns; 0 and 0 where the file cannot be asked."""
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


def sizes_and_times(paths: Mapping[str, Path | Packed]) -> Iterator[tuple[int, int]]:
    """`size_and_time` of each; of a packed one its own size and the time of its shard, of one on a server its ETag."""
    times: dict[str, int] = {}
    for _, path in paths.items():
        if isinstance(path, Packed):
            if path.shard not in times:
                _, time, etag = state_of(path.shard)
                times[path.shard] = time or zlib.crc32(etag.encode())
            yield path.length, times[path.shard]
        else:
            yield size_and_time(path)


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
    source = iter(paths)
    somes = iter(lambda: list(itertools.islice(source, AT_ONCE)), [])
    done: queue.SimpleQueue[Future[list[tuple[int, Examined]]]] = queue.SimpleQueue()  # the first one first
    waiting = 0
    try:
        for number, some in enumerate(somes):
            threads.submit(_examine_some, idle, some, number * AT_ONCE).add_done_callback(done.put)
            waiting += 1
            if waiting == WAITING * workers:  # not all at once: a set may have millions
                yield from done.get().result()
                waiting -= 1
        for _ in range(waiting):
            yield from done.get().result()
    finally:
        for process in processes:
            process.kill()  # which ends the jobs that wait for it
        threads.shutdown(cancel_futures=True)
        for process in processes:
            with contextlib.suppress(BrokenPipeError):
                process.communicate()


def _examine_some(
    idle: queue.SimpleQueue[Any], some: Sequence[str | list[object]], first: int
) -> list[tuple[int, Examined]]:
    """(number, answer) for some of the paths, of which `first` is the first one's number, by one of the processes."""
    process = idle.get()
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
    def key_of(entry: Examined) -> tuple[int, int, int]:
        return entry["width"], entry["height"], entry["pixels"]

    def key(record: Record) -> tuple[int, int, int]:
        return key_of(found[record["file_name"]])

    alike = on_disk.Repeated(map(key_of, entries_of(records, found)))
    records = [record for record in records if key(record) in alike] if alike else []
    files: dict[tuple[int, int, int], dict[str, Path | Packed]] = {}
    for record in records:
        files.setdefault(key(record), {})[found[record["file_name"]]["sha256"]] = paths[record["file_name"]]
    # Different files whose pixels have one CRC are few: only they are decoded again.
    pixels = {file: _pixels_digest(path) for its in files.values() if len(its) > 1 for file, path in its.items()}
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((key(record), pixels.get(found[record["file_name"]]["sha256"])), []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def _pixels_digest(path: Path | Packed) -> str:
    from nanocaption.data.pictures import read_picture

    return hashlib.sha256(read_picture(path).pixels).hexdigest()


if __name__ == "__main__":
    _serve()
