"""Where a run's numbers go: log.jsonl, which is the truth, and a copy to Weights & Biases."""

import errno
import json
import math
import os
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import distributed

REPLACED = "log_replaced.jsonl"


def rewind(path: Path, step: int, epoch: int) -> int:
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
    if distributed.rank() != 0:
        return None
    if path.is_file():
        # A kill can tear the last line; the next row would join it.
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0] + whole[1]))
    return open(path, "ab", buffering=0)  # a killed run keeps every row


def write(file: FileIO | None, row: dict[str, Any], wandb_run: Any = None) -> None:
    """Append one row. Its numbers also go to `wandb_run`; trouble there is told once and never stops a run."""
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
    if wandb_run is not None:
        numbers = {f"{row['type']}/{k}": v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        try:
            wandb_run.log({**numbers, "global_step": row.get("step", 0)})
        except Exception as error:  # whatever its network layer raises
            _warn_once(f"W&B does not take rows any more ({error}); log.jsonl goes on.")


def start_wandb(config: dict[str, Any], project: str, entity: str | None, name: str, run_id: str | None) -> Any:
    """A W&B run, or None, said in one line, where it cannot be started within seconds.

    run_id: of the run to continue; None starts a new one. Offline mode (WANDB_MODE=offline) needs no login.
    """
    if distributed.rank() != 0:
        return None
    try:
        import wandb

        run = wandb.init(
            project=project, entity=entity, name=name, id=run_id, resume="allow", config=config,
            settings=wandb.Settings(init_timeout=10, silent=True),
        )  # fmt: skip
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")
    except Exception as error:  # wandb raises its own errors, the network's and the operating system's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        console(f"W&B could not be started ({reason}); the run goes on with log.jsonl alone.")
        return None
    console(f"W&B: {run.url or run.dir}")
    return run


def console(text: str) -> None:
    """Print on the first process only."""
    if distributed.rank() == 0:
        print(text, flush=True)


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        print(text, file=sys.stderr, flush=True)
