"""Where a run's numbers go: log.jsonl, which is the truth, and from there to copies of it."""

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from nanocaption.base.files import copy_bytes, lines_backwards, parsed_lines, whole
from nanocaption.base.shown import shown

REPLACED = "log_replaced.jsonl"
Row = dict[str, Any]  # JSON-ready; "type" says what it tells
Copy = Callable[[Row], None]


def rewind_log(path: Path, step: int, epoch: int) -> int:
    """Move the rows beyond a position (finished steps, finished epochs) from a log to REPLACED beside it.

    A run that goes on from there writes them again. Returns how many were moved; a torn last line is dropped then.
    Memory does not grow with the log.
    """
    if not path.is_file():
        return 0
    start = _first_beyond(path, step, epoch)
    with path.open("rb") as whole_log:
        whole_log.seek(start)
        if not any(row and _is_beyond(row, step, epoch) for _, row in parsed_lines(whole_log)):
            return 0
        moved = 0
        with whole(path, sync=True) as made, open(path.with_name(REPLACED), "ab") as aside, made.open("wb") as kept:
            whole_log.seek(0)
            copy_bytes(whole_log, kept, start)
            for line, row in parsed_lines(whole_log):
                beyond = row is not None and _is_beyond(row, step, epoch)
                (aside if beyond else kept).write(line)
                moved += beyond
    return moved


def _first_beyond(path: Path, step: int, epoch: int) -> int:
    """Up to which byte no row lies beyond the position: the end of the last row of a step that does not.

    Rows stand in the order of their steps, since what was beyond is moved away whenever a run goes back. So it is
    looked for from the end, and a long log costs a resume nothing.
    """
    for start, line in lines_backwards(path):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and row.get("type") == "train" and not _is_beyond(row, step, epoch):
                return start + len(line)
    return 0


def _is_beyond(row: Mapping[str, Any], step: int, epoch: int) -> bool:
    """Whether training from that position on writes this row again. What tells of starts and stops stays."""
    if row.get("type") in ("start", "resume", "stop"):
        return False
    of_epoch = row.get("type") in ("val", "samples")
    return row.get("epoch", 0) > epoch if of_epoch else row.get("step", 0) > step


def write_row(file: FileIO | None, row: Row, copies: Sequence[Copy] = ()) -> None:
    """Append one row, then hand it to the `copies`; trouble there is told once and never stops a run.

    file: from files.open_to_append, so that a killed run keeps every row; None where another process writes.
    """
    if file is None:
        return
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}  # JSON has no NaN
    line = (shown(json.dumps(row, ensure_ascii=False)) + "\n").encode("utf-8", "backslashreplace")
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
