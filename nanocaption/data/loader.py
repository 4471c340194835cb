"""Batches read by worker processes, and how these processes begin and end."""

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from nanocaption.data.dataset import ImageTextDataset, collate_fn
from nanocaption.data.order import Group


class _Batches(Sampler):
    def __init__(self, batches: Sequence[Sequence[Group]]):
        self.batches = batches

    def __iter__(self) -> Iterator[Sequence[Group]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def make_loader(
    dataset: ImageTextDataset, batches: Sequence[Sequence[Group]], workers: int, pin_memory: bool = False
) -> DataLoader:
    """The given batches of groups, in the order given, as `Batch`, read by `workers` processes."""
    return DataLoader(
        dataset,
        batch_sampler=_Batches(batches),
        collate_fn=collate_fn,
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=leave_to_the_main_process,
        # Making an iterator draws from the global generator otherwise, and so would change the training.
        generator=torch.Generator(),
    )


def leave_to_the_main_process(_worker: int) -> None:
    """In a process that reads pictures: a signal to the whole group must not end it before the main one has saved.

    Such a process ends with its loader, or by `end_workers`: multiprocessing's own SIGTERM would be ignored, and its
    exit would wait for ever.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Before this process ends: kill those that read pictures, and whatever else was to end with it."""
    deaf_to_children()
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def deaf_to_children() -> None:
    """After a loader with processes was started: torch then raises wherever the program is when one of them dies, in
    the middle of an optimizer step as well. Without its handler it tells at the next batch, within five seconds."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
