"""Batches read by worker processes, and how these processes begin and end.

A signal from a terminal or a scheduler reaches the workers as well, at any time, and the main process needs them until
it has saved. So three functions take the decision from everybody but the main process: workers ignore the signals
(`leave_to_the_main_process`), it kills them before it ends (`end_workers`), and the death of one is no exception in the
middle of a step (`deaf_to_children`).
"""

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader

from nanocaption.data.dataset import Batch, ImageTextDataset, Views, collate_fn
from nanocaption.data.order import Group, Steps


def make_loader(
    dataset: ImageTextDataset | Views, batches: Sequence[Sequence[Group]], workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """The given batches of groups, in the order given, as `Batch`, read by `workers` processes.

    Those of a streamed set (Steps) are taken one by one as they are read.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches if isinstance(batches, Steps) else [list(batch) for batch in batches],
        collate_fn=collate_fn,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=leave_to_the_main_process,
        # Making an iterator draws from the global generator otherwise, and so would change the training.
        generator=torch.Generator(),
    )


def leave_to_the_main_process(_worker: int) -> None:
    """In a worker: ignore the signals that ask for the end, it comes with the loader's or by `end_workers`."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Kill the workers, and whatever else was to end with this process: multiprocessing's own exit would send SIGTERM,
    which they ignore, and wait for ever."""
    deaf_to_children()
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def deaf_to_children() -> None:
    """After a loader with workers was started: torch then raises wherever the program is when one of them dies, in the
    middle of an optimizer step as well. Without its handler it tells at the next batch, within five seconds."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
