"""Where a run's numbers go: log.jsonl, which is the truth, and from there to copies of it."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from nanocaption.base import devices

REPLACED = "log_replaced.jsonl"
Copy = Callable[[dict[str, Any]], None]  # takes a row


def rewind_log(path: Path, step: int, epoch: int) -> int:
    """Move the rows beyond a position (finished steps, finished epochs) from a log to REPLACED beside it.

    A run that goes on from there writes them again. Returns how many were moved; a torn last line is dropped.
    """
    if not path.is_file():
        return 0
    kept, moved = [], []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None  # torn by a kill if it is the last one
        if not isinstance(row, dict):
            kept += [line] if number < len(lines) or line.endswith(b"\n") else []
            continue
        of_epoch = row.get("type") in ("val", "samples")
        beyond = row.get("epoch", 0) > epoch if of_epoch else row.get("step", 0) > step
        (moved if beyond and row.get("type") not in ("start", "resume", "stop") else kept).append(line)
    if moved:
        with open(path.with_name(REPLACED), "ab") as file:
            file.writelines(moved)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with open(temporary, "wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return len(moved)


def open_log(path: Path) -> FileIO | None:
    """log.jsonl, opened to append; None on every process but the first, which alone writes."""
    if devices.rank() != 0:
        return None
    if path.is_file():
        # A kill can tear the last line; the next row would join it.
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0] + whole[1]))
    return open(path, "ab", buffering=0)  # a killed run keeps every row


def write_row(file: FileIO | None, row: dict[str, Any], copies: Sequence[Copy] = ()) -> None:
    """Append one row, then hand it to the `copies`; trouble there is told once and never stops a run."""
    if file is None:
        return
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}  # JSON has no NaN
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(line) < len(line):
            file.truncate(end)  # half a row would join the next one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        _warn_once(f"WARNING: {file.name} takes no more rows ({error.strerror}); the training goes on without its log.")
    for copy in copies:
        try:
            copy(row)
        except Exception as error:  # whatever its network layer raises
            _warn_once(f"A copy of log.jsonl does not take rows any more ({error}); log.jsonl itself goes on.")


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        print(text, file=sys.stderr, flush=True)
