"""Uploads to the Hub beside a training: a process each, which can be killed, so that none of them stops anything."""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from nanocaption.base import cli, devices, hub
from nanocaption.base.settings import Settings
from nanocaption.base.tensors import State
from nanocaption.export.facts import title_of, write_export
from nanocaption.runs.folder import BEST_CIDER
from nanocaption.runs.saver import Saver

WAIT_SECONDS = 300.0  # at the end of a training, for the upload of its best checkpoint


class Uploads:
    """Uploads to one repository beside a training, one at a time; a newer one ends the one before.

    tell: prints a line.
    """

    def __init__(self, repo_id: str, private: bool, tell: Callable[[str], None]):
        self.repo_id = repo_id
        self.private = private
        self.tell = tell
        self._process: subprocess.Popen[str] | None = None
        self._message = self._by_hand = ""

    def start(self, folder: Path, message: str, by_hand: str) -> None:
        """Begin to upload `folder`, which must stay as it is until the next `end` or `finish`.

        by_hand: the command that repeats the upload, told where it fails.
        """
        self.end()
        self._message, self._by_hand = message, by_hand
        command, environment = cli.own_process("nanocaption")
        visible = [] if self.private else ["--public"]
        self._process = subprocess.Popen(
            [*command, "upload", str(folder), self.repo_id, "--message", message, *visible,
             "--with-process", str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,  # a Ctrl-C is for the training, which then ends it
        )  # fmt: skip

    def end(self) -> None:
        """Nothing is being uploaded afterwards: what is under way is dropped, the outcome of the last one is told."""
        self._settle("dropped for a newer one", repeat=False)

    def finish(self, seconds: float) -> None:
        """Wait for the upload under way, `seconds` at most (Ctrl-C waits no longer), and say what became of it."""
        if self._process is None:
            return
        if seconds and self._process.poll() is None:
            self.tell(f"Hub: uploading {self._message} to {self.repo_id}; waiting {seconds:.0f} s at most")
        problem = f"not done within {seconds:.0f} s" if seconds else "the run ended before it"
        try:
            self._process.communicate(timeout=seconds)  # reads on: a full pipe would stop the process
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:
            problem = "not waited for"
        self._settle(problem)

    def _settle(self, unfinished: str, repeat: bool = True) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        running = process.poll() is None
        if running:
            process.kill()  # a commit is whole or not there
        output, errors = process.communicate()
        if process.returncode == 0:
            self.tell(f"Hub: {output.strip()} holds {self._message}")
            return
        said = (errors.strip() or f"exit status {process.returncode}").splitlines()[-1]
        by_hand = f". By hand: {self._by_hand}" if repeat or not running else ""
        self.tell(f"Hub: {self._message} is not uploaded: {unfinished if running else said}{by_hand}")


def check_hub(settings: Settings) -> None:
    """At the start of a training with HF_REPO_ID: say what an upload will fail from. The training goes on."""
    if settings.HF_REPO_ID is None or devices.rank() != 0:
        return
    if problem := hub.access_problem(settings.HF_REPO_ID):
        print(f"HF_REPO_ID = {settings.HF_REPO_ID!r}: {problem}. Training goes on; uploads will be tried.", flush=True)


@contextlib.contextmanager
def uploads(settings: Settings, run: Path, writer: Saver) -> Iterator[None]:
    """While it lasts each new best checkpoint that `writer` saves is exported to `run`/export and uploaded.

    Nothing of it stops or delays the training: the folder is written by the writer's thread, from the state it has in
    hand, and the upload is a process of its own. Afterwards the last one is waited for, WAIT_SECONDS at most, and
    not at all where the training was stopped.
    """
    if settings.HF_REPO_ID is None or devices.rank() != 0:
        yield
        return
    folder = run / "export"
    beside = Uploads(settings.HF_REPO_ID, settings.HF_PRIVATE, lambda text: tqdm.write(text))

    def publish(state: State, names: Sequence[str]) -> None:
        kind = BEST_CIDER if settings.OBJECTIVE == "scst" else "checkpoint_epoch_"
        best = next((run / name for name in names if name.startswith(kind)), None)
        if best is None:
            return
        try:
            beside.end()  # it reads the folder
            facts = write_export(folder, state, best, Path(settings.DATA_DIR), settings.HF_REPO_ID)
            command = ["nanocaption", "export", str(best), str(folder), "--push", settings.HF_REPO_ID]
            beside.start(folder, title_of(state, facts), shlex.join(command))
        except Exception as error:  # whatever the disk or the machine refuses: the checkpoint itself is written
            tqdm.write(f"WARNING: {best} was not exported to {folder}: {error}", file=sys.stderr)

    writer.on_saved = publish
    try:
        yield
    except BaseException:
        beside.finish(0)
        raise
    beside.finish(WAIT_SECONDS)
