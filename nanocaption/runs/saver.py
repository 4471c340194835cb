"""Checkpoints of a run, written by a thread beside the training, which waits for a copy of the tensors only."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from nanocaption.base.files import free_bytes
from nanocaption.base.tensors import State
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST, save_checkpoint


class Saver:
    """Writes one checkpoint at a time into a run's folder. A failure is kept until `problem` is asked for.

    The thread shares nothing with the training: the state given to `start` must be a copy.
    """

    def __init__(self, run: Path, keep_best: int):
        self.run = run
        self.keep_best = keep_best
        self.failed = False  # whether the newest attempt failed
        self.on_saved: Callable[[State, Sequence[str]], None] | None = None  # in the thread, after each save
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self._written: tuple[int, ...] = ()  # the identity of the last.safetensors that was written and verified here

    def start(self, state: State, names: Sequence[str] = ()) -> None:
        """Begin to write `state`, also under further `names`; waits for the write before."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(state, names), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def problem(self) -> str | None:
        """What went wrong with a write that has ended, told once."""
        problem, self._problem = self._problem, None
        return problem

    def _write(self, state: State, names: Sequence[str]) -> None:
        last = self.run / LAST
        try:
            checkpoint.check_finite(state, "The state to save")
            trusted = self._written != () and _identity(last) == self._written
            save_checkpoint(self.run, state, names=names, keep=self.keep_best, last_is_whole=trusted)
            self._written = _identity(last)
            self.failed = False
            if self.on_saved is not None:
                self.on_saved(state, names)
        except OSError as error:
            self.failed = True
            needed = checkpoint.size_in_bytes(state) / 1e6
            free = free_bytes(self.run) / 1e6
            self._problem = (
                f"The checkpoint could not be written to {last} ({error.strerror or error}): it needs {needed:.1f} MB, "
                f"the disk has {free:.1f} MB free. The checkpoints before it are whole."
            )
        except Exception as error:  # a thread's error would end in a traceback that nobody waits for
            self.failed = True
            self._problem = f"The checkpoint was not written to {last}: {error}"


def _identity(path: Path) -> tuple[int, ...]:
    """Another one as soon as the file is replaced or changed; () without a file."""
    if not path.exists():
        return ()
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns
