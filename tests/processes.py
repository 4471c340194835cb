"""Commands in processes of their own, forked from this one, so that none of them has to import torch anew."""

import functools
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import train
from nanocaption import __main__ as nanocaption
from nanocaption.data.loader import end_workers
from nanocaption.score import curves, report_html
from tests.conftest import ROOT

CONTEXT = multiprocessing.get_context("fork")
TIMEOUT = 120.0  # seconds until a test gives up on a process


class Done(NamedTuple):
    code: int
    out: str
    err: str


def start(argv: list[str], output: Path, prelude: Callable[[], object] | None = None, rank: int = 0, ranks: int = 1,
          port: int = 0, main: Callable[[list[str]], object] | None = None) -> BaseProcess:  # fmt: skip
    """main(argv) in a process group of its own, after `prelude`; what it prints is appended to `output`.

    Without `main` it is train.main, as `prelude` has left it.
    """

    def body() -> None:
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
        if prelude:
            prelude()
        (main or train.main)(argv)

    warm_up()
    return fork(body, output, output)


@functools.cache
def warm_up() -> None:
    """One step of a small network: what torch imports and makes ready at the first one, forked processes then have.

    Seconds of every process: an optimizer imports torch._dynamo, a validation numpy.ma.
    """
    importlib.import_module("numpy.ma")
    importlib.import_module("numpy.ctypeslib")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Flatten(2), torch.nn.LayerNorm(16),
                                torch.nn.TransformerEncoderLayer(16, 2, 16, batch_first=True))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 16, 16)).square().mean().backward()
    optimizer.step()


def fork(body: Callable[[], object], out: Path, err: Path) -> BaseProcess:
    """body() in a process group of its own, whose output is appended to two files (or one)."""
    process = CONTEXT.Process(target=_main, args=(body, out, err))
    process.start()
    return process


def own_bar_lock() -> None:
    """A lock of progress bars for this process alone.

    tqdm's is shared with all that were forked since it was made: where one is killed while it draws, all wait for ever.
    """
    tqdm.set_lock(threading.RLock())


def _main(body: Callable[[], object], out: Path, err: Path) -> None:
    os.setpgrp()
    own_bar_lock()
    for number, path in ((1, out), (2, err)):
        with open(path, "ab") as file:
            os.dup2(file.fileno(), number)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    train.plot_curves = curves.plot_curves = lambda *_, **__: None  # a second of every process
    report_html.svg = lambda _: "<svg></svg>"
    try:
        body()
    finally:
        end_workers()  # a forked process has no atexit


def command(cwd: Path, *words: str | Path, prelude: Callable[[], object] | None = None) -> Done:
    """A command line as typed in `cwd`: "train.py", "--seed", "2" or "nanocaption", "caption", "a.jpg".

    Files of the root run as the program, from the top, but with all of their imports done already.
    """
    program, *argv = map(str, words)
    folder = Path(cwd)
    out, err = (folder.with_name(f".{folder.name}.{name}") for name in ("out", "err"))

    def body() -> None:
        os.chdir(cwd)
        if prelude:
            prelude()
        sys.argv = [program, *argv]
        if program == "nanocaption":
            nanocaption.main()
        else:
            runpy.run_path(str(ROOT / program), run_name="__main__")

    if program != "prepare_dataset.py":
        warm_up()
    out.unlink(missing_ok=True)
    err.unlink(missing_ok=True)
    code = end(fork(body, out, err))
    return Done(code, out.read_text(), err.read_text())


def forget_modules(*packages: str) -> None:
    """In a process of its own: what these packages read when they are imported is read anew."""
    for name in [name for name in sys.modules if name.startswith(tuple(f"{package}." for package in packages))]:
        del sys.modules[name]
    for package in packages:
        sys.modules.pop(package, None)


def start_ranks(argv: list[str], output: Path, ranks: int, prelude: Callable[[], object] | None = None,
                main: Callable[[list[str]], object] | None = None) -> list[BaseProcess]:  # fmt: skip
    port = free_port()
    return [start(argv, output, prelude, rank, ranks, port, main) for rank in range(ranks)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end(process: BaseProcess) -> int:
    """Wait for a process; its exit status, minus the signal that killed it."""
    deadline = time.monotonic() + TIMEOUT
    while process.exitcode is None:  # join() would wait for the workers of a killed process as well
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("the process did not end")
        time.sleep(0.005)
    return process.exitcode


def wait_for(what: Callable[[], bool], process: BaseProcess | None = None) -> None:
    """Until `what` holds, or the process has ended."""
    deadline = time.monotonic() + TIMEOUT
    while not what() and (process is None or process.is_alive()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def rows(run: Path, kind: str | None = None) -> list[dict]:
    """The whole rows of a run's log."""
    path = run / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [row for row in map(json.loads, lines) if kind is None or row["type"] == kind]


def losses(run: Path) -> list[float]:
    """Of every step, then of every validation."""
    return [row["loss"] for row in rows(run, "train")] + [row["val_loss"] for row in rows(run, "val")]


def steps_done(run: Path) -> int:
    return max((row["step"] for row in rows(run, "train")), default=0)
