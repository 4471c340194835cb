"""The check before a data set is made: every picture is decoded once, every caption is cleaned, and a report says so.

    data/<name>/scan.jsonl    what was found in each picture, one line each, written as it is found: a run that was
                              killed goes on from there, and nothing is decoded twice while size and time stay the same
    data/<name>/report.json   kept, converted and refused pictures and captions with reasons, copies, sizes, lengths
    data/<name>/report.png    histograms of picture sizes, file sizes and caption lengths

Refused pictures and captions are left out of the set; the files themselves are never touched. Where more than
MAX_BAD_FRACTION of the pictures or of the captions would be left out, no set is made.

Copies: the same picture under several names, as the same file or with the same pixels in another. One that lies in
several splits is kept in test, else in val, and left out of the others, because training on a picture of the test set
is the worse fault. Copies within a split stay.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from nanocaption.base import cli
from nanocaption.base.files import json_lines, open_to_append
from nanocaption.prepare import check_report
from nanocaption.prepare.caption_text import TEXT_VERSION, clean, normalise

SCAN_VERSION = 1  # goes up when a rule of the scan changes: older lines of scan.jsonl then count no more
MIN_SIDE = 8  # pixels; what is smaller shows nothing
PER_WORKER = 100  # pictures that are worth a process of its own, which takes 0.3 s to start
AT_ONCE = 8  # paths given to a process in one go, so that it need not wait for each; few enough for a pipe
PASSING = ("cannot be opened", "missing", "link to nothing")  # reasons that the next run may not find again


class Rules(NamedTuple):
    """The settings of config.py that the check depends on."""

    caption_case: str = "keep"  # CAPTION_CASE
    max_bad_fraction: float = 0.01  # MAX_BAD_FRACTION
    workers: int = 0  # NUM_WORKERS; 0 = as many processes as there are cores


DEFAULT_RULES = Rules()


class Checked(NamedTuple):
    """What `check` found."""

    records: list[dict]  # those that can be used, with clean captions
    report: dict  # for report.json
    found: dict[str, dict]  # file_name -> as `scan` gives it; {} where the pictures were not opened

    @property
    def pictures_sha256(self) -> str | None:
        """One digest over the names and the files of all pictures; None where they were not opened."""
        names = [record["file_name"] for record in self.records]
        lines = [json.dumps([name, self.found[name]["sha256"]]) for name in names if name in self.found]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None

    @property
    def caption_text(self) -> dict:
        """How captions were normalised: {version, case}, for the manifest."""
        return {key: self.report["captions"]["text"][key] for key in ("version", "case")}


def check(folder: Path, records: Sequence[dict], paths: dict[str, Path] | None, rules: Rules) -> Checked:
    """Look at all pictures and captions of a set that is to be made in `folder`, and print a summary.

    records: {"file_name", "split", "captions", ...} each. paths: file_name -> picture; None: pictures drawn here, which
    are not opened. Raises ValueError with the first cases where more than rules.max_bad_fraction is bad, or a split
    would lose all it had; report.json is written then, too.
    """
    cleaned, captions_report = _check_captions(records, rules.caption_case)
    report: dict[str, Any] = {"captions": captions_report}
    kept = [record | {"captions": texts} for record, texts in zip(records, cleaned, strict=True) if texts]
    if paths is None:
        return Checked(kept, report, {})
    found = scan({record["file_name"]: paths[record["file_name"]] for record in records}, folder / "scan.jsonl",
                 rules.workers)  # fmt: skip
    refused = {name: entry["refused"] for name, entry in found.items() if entry["refused"]}
    bare = {record["file_name"] for record in records} - {record["file_name"] for record in kept} - refused.keys()
    refused |= {name: {"reason": "no caption left", "detail": ""} for name in sorted(bare)}
    whole = [record for record in kept if record["file_name"] not in refused]
    copies, leaving = find_copies(whole, found, paths)
    kept = [record for record in whole if record["file_name"] not in leaving]
    names = [record["file_name"] for record in kept]
    report["pictures"] = {
        "checked": len(records),
        "kept": len(kept),
        "refused": check_report.by_reason((entry["reason"], _shown(name, entry)) for name, entry in refused.items()),
        "converted": check_report.by_reason((kind, name) for name in names for kind in found[name]["conversions"]),
        "copies": copies,
        "refused_pictures": {name: _message(entry) for name, entry in refused.items()},
    }
    report["sizes"] = {
        "width": check_report.spread([found[name]["width"] for name in names]),
        "height": check_report.spread([found[name]["height"] for name in names]),
        "kB": check_report.spread([round(found[name]["bytes"] / 1000, 1) for name in names]),
        "words": check_report.spread([len(text.split()) for record in kept for text in record["captions"]]),
    }
    try:
        _require_good(report, folder, rules.max_bad_fraction)
        for split in sorted({record["split"] for record in records} - {record["split"] for record in kept}):
            raise ValueError(f"no picture of the split {split} can be used: mend or replace its pictures and captions; "
                             f"{folder / 'report.json'} says what is wrong with each, and which are copies")
    except ValueError:
        check_report.write_report(folder, report)
        raise
    print("\n".join(check_report.summary(report)))
    return Checked(kept, report, found)


def _check_captions(records: Sequence[dict], case: str) -> tuple[list[list[str]], dict]:
    normal = functools.partial(normalise, case=case)
    texts, repaired, refused, total = [], [], [], 0
    for record in tqdm(records, desc="checking captions", unit="picture", disable=len(records) < 5000):
        cleaned = clean(record["captions"], normal)
        name = record["file_name"]
        total += len(record["captions"])
        texts.append(cleaned.kept)
        refused += [(reason, f"{name}: {shown}") for reason, shown in cleaned.refused]
        repaired += [(what, name, before, after) for what, before, after in cleaned.changed]
    changed = [entry for entry in repaired if entry[2] != entry[3]]
    first = list({entry[0]: entry for entry in reversed(changed)}.values())[::-1]  # one of each kind, then others
    examples = [[before, after] for _, _, before, after in [*first, *(e for e in changed[:3] if e not in first)][:3]]
    return texts, {
        "checked": total,
        "kept": sum(map(len, texts)),
        "refused": check_report.by_reason(refused),
        "repaired": check_report.by_reason((what, f"{name}: {before[:200]!r}") for what, name, before, _ in repaired),
        "text": {"version": TEXT_VERSION, "case": case, "changed": len(changed), "examples": examples},
    }


def scan(paths: dict[str, Path], log: Path, workers: int) -> dict[str, dict]:
    """What each picture is, in the order given: name -> {bytes, width, height, conversions, sha256, pixels, refused}.

    refused: None, or {reason, detail}. sha256: the file's; pixels: the CRC-32 of what was decoded. What `log` holds for
    a file of the same name, size and time is taken from there; the rest is decoded, by `workers` processes, and added.
    """
    known = {}
    for _, entry in json_lines(log) if log.exists() else ():
        if entry and entry.get("version") == SCAN_VERSION:  # the picture of any other line is decoded again
            known[entry.get("name")] = entry
    found, todo = {}, []
    for name, path in paths.items():
        size, time = _size_and_time(path)
        entry = known.get(name)
        if entry and (entry["bytes"], entry["time"]) == (size, time):
            found[name] = entry
        else:
            todo.append((name, path, size, time))
    log.parent.mkdir(parents=True, exist_ok=True)
    jobs = [str(path) for _, path, _, _ in todo]
    bar = {"desc": "checking pictures", "unit": "picture", "mininterval": 0.5}
    with open_to_append(log) as file, tqdm(total=len(paths), initial=len(found), **bar) as progress:
        for number, answer in examine_all(jobs, workers):
            name, _, size, time = todo[number]
            entry = {"name": name, "bytes": size, "time": time, "version": SCAN_VERSION, **answer}
            found[name] = entry
            if not entry["refused"] or entry["refused"]["reason"] not in PASSING:
                file.write(json.dumps(entry).encode() + b"\n")
            progress.update()
    return {name: found[name] for name in paths}


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


def examine(path: str) -> dict:
    """Decode one picture whole: {width, height, conversions, sha256, pixels, refused}, see `scan`."""
    from nanocaption.data.pictures import PictureError, read_picture

    try:
        picture = read_picture(path)
        height, width, _ = picture.pixels.shape
        if min(height, width) < MIN_SIDE:
            raise PictureError(f"a side below {MIN_SIDE} pixels", f"{width} x {height}")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except PictureError as error:
        detail = str(error)[len(error.reason) + 2 :]
        return {"width": 0, "height": 0, "conversions": [], "sha256": "", "pixels": 0,
                "refused": {"reason": error.reason, "detail": detail}}  # fmt: skip
    # A CRC costs a tenth of a sha256 of the pixels, which would take longer than decoding: `find_copies` looks again.
    return {"width": width, "height": height, "conversions": list(picture.conversions), "sha256": digest,
            "pixels": zlib.crc32(picture.pixels), "refused": None}  # fmt: skip


def examine_all(paths: Sequence[str], workers: int) -> Iterator[tuple[int, dict]]:
    """(number, `examine` of that path) for all of them, as they get ready, from at most `workers` processes.

    Raises ValueError naming the picture at which a process died.
    """
    workers = min(workers or usable_cores(), len(paths) // PER_WORKER)
    if workers <= 1:
        for number, path in enumerate(paths):
            yield number, examine(path)
        return
    # Plain processes with pipes: one that dies is noticed with the picture it died at, all end when this one is
    # killed, and none of them imports the caller's main module, and torch with it.
    command, environment = cli.own_process("nanocaption.prepare.check")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    processes = [subprocess.Popen(command, **pipes) for _ in range(workers)]
    todo, lock, answers = iter(enumerate(paths)), threading.Lock(), queue.SimpleQueue()
    threads = [threading.Thread(target=_feed, args=(process, todo, lock, answers)) for process in processes]
    for thread in threads:
        thread.start()
    try:
        for _ in paths:
            number, answer = answers.get()
            if isinstance(answer, int):
                how = f"signal {signal.Signals(-answer).name}" if answer < 0 else f"exit status {answer}"
                raise ValueError(f"a process that decodes pictures died at {paths[number]} ({how}): where memory is "
                                 "short set NUM_WORKERS = 1, otherwise take that picture out; then run again, what was "
                                 "checked so far is kept")
            yield number, answer
    finally:
        with lock:
            for _ in todo:  # leaves the threads nothing more to do
                pass
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()


def _feed(process: subprocess.Popen, todo: Iterator[tuple[int, str]], lock: threading.Lock, answers: Any) -> None:
    """Give one process path after path, and put (number, answer) into `answers`; its exit status where it died."""
    with contextlib.suppress(BrokenPipeError), process:  # closing its input flushes it
        while True:
            with lock:
                jobs = list(itertools.islice(todo, AT_ONCE))
            if not jobs:
                return
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"".join(json.dumps(path).encode() + b"\n" for _, path in jobs))
                process.stdin.flush()
            for number, _ in jobs:
                line = process.stdout.readline()
                if not line.endswith(b"\n"):
                    process.kill()  # in case it only closed its pipe
                    answers.put((number, process.wait()))
                    return
                answers.put((number, json.loads(line)))


def _serve() -> None:
    """What each of these processes does, until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(examine(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_copies(
    records: Sequence[dict], found: dict[str, dict], paths: dict[str, Path]
) -> tuple[dict, set[str]]:
    """(what the report says of pictures with the same pixels, the names to leave out because another split has them)"""
    alike: dict[tuple, list[dict]] = {}
    for record in records:
        entry = found[record["file_name"]]
        alike.setdefault((entry["width"], entry["height"], entry["pixels"]), []).append(record)
    groups = []
    for candidates in alike.values():
        files = {found[record["file_name"]]["sha256"]: paths[record["file_name"]] for record in candidates}
        # Different files whose pixels have one CRC are few: only they are decoded again.
        pixels = {file: _pixels_digest(path) if len(files) > 1 else "" for file, path in files.items()}
        same: dict[str, list[dict]] = {}
        for record in candidates:
            same.setdefault(pixels[found[record["file_name"]]["sha256"]], []).append(record)
        groups += [group for group in same.values() if len(group) > 1]
    across, leaving = [], set()
    for group in groups:
        splits = {record["split"] for record in group}
        if len(splits) > 1:
            stays = next((split for split in ("test", "val") if split in splits), None) or min(splits)
            leaving |= {record["file_name"] for record in group if record["split"] != stays}
            across.append([f"{record['file_name']} ({record['split']})" for record in group])
    return {
        "groups": len(groups),
        "cases": [[record["file_name"] for record in group] for group in groups[:check_report.CASES]],
        "across_splits": len(across),
        "across_cases": across[:check_report.CASES],
        "left_out": sorted(leaving),
    }, leaving


def _pixels_digest(path: Path) -> str:
    from nanocaption.data.pictures import read_picture

    return hashlib.sha256(read_picture(path).pixels).hexdigest()


def _require_good(report: dict, folder: Path, allowed: float) -> None:
    for noun in ("pictures", "captions"):
        part = report[noun]
        bad = sum(kind["count"] for kind in part["refused"].values())
        if bad > allowed * part["checked"]:
            first = [f"{reason}: {check_report.count_and_cases(kind)}" for reason, kind in part["refused"].items()]
            raise ValueError(f"{bad:,} of {part['checked']:,} {noun} ({100 * bad / part['checked']:.2f} %) cannot be "
                             f"used, above MAX_BAD_FRACTION = {allowed:g}: {'; '.join(first)}. Mend or take out these "
                             f"{noun} ({folder / 'report.json'} says more), or raise MAX_BAD_FRACTION")


def _message(refused: dict) -> str:
    return f"{refused['reason']}: {refused['detail']}" if refused["detail"] else refused["reason"]


def _shown(name: str, refused: dict) -> str:
    return f"{name} ({refused['detail']})" if refused["detail"] else name


if __name__ == "__main__":
    _serve()
