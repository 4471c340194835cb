"""Training runs in real processes, forked so that none of them has to import torch anew."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # every optimizer imports it, for seconds: here once, and not in every forked process

import train
from nanocaption.data.loader import end_workers

CONTEXT = multiprocessing.get_context("fork")
TIMEOUT = 120.0  # seconds until a test gives up on a process


def start(argv: list[str], output: Path, prelude: Callable[[], None] | None = None, rank: int = 0, ranks: int = 1,
          port: int = 0):  # fmt: skip
    """train.main(argv) in a process group of its own, after `prelude`; what it prints is appended to `output`."""
    process = CONTEXT.Process(target=_main, args=(argv, output, prelude, rank, ranks, port))
    process.start()
    return process


def _main(argv, output, prelude, rank, ranks, port):
    os.setpgrp()
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    train.plot_curves = lambda *_, **__: None  # a second of every process
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
    if prelude:
        prelude()
    try:
        train.main(argv)
    finally:
        end_workers()  # a forked process has no atexit


def start_ranks(argv: list[str], output: Path, ranks: int, prelude: Callable[[], None] | None = None) -> list:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [start(argv, output, prelude, rank, ranks, port) for rank in range(ranks)]


def end(process) -> int:
    """Wait for a process; its exit status, minus the signal that killed it."""
    deadline = time.monotonic() + TIMEOUT
    while process.exitcode is None:  # join() would wait for the workers of a killed process as well
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("the process did not end")
        time.sleep(0.005)
    return process.exitcode


def wait_for(what: Callable[[], bool], process) -> None:
    """Until `what` holds, or the process has ended."""
    deadline = time.monotonic() + TIMEOUT
    while not what() and process.is_alive():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def rows(run: Path, kind: str | None = None) -> list[dict]:
    """The whole rows of a run's log."""
    path = run / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [row for row in map(json.loads, lines) if kind is None or row["type"] == kind]


def steps_done(run: Path) -> int:
    return max((row["step"] for row in rows(run, "train")), default=0)
