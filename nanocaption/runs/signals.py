"""SIGTERM, Ctrl-C and SIGUSR1: noted in the handler, obeyed by the training loop where its state is sound.

SIGTERM, Ctrl-C   save and leave with 143 or 130; a second Ctrl-C leaves at once
SIGUSR1           save and go on
Before training has begun there is nothing to save: SIGTERM and Ctrl-C then end the program where it stands.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from nanocaption.data.loader import end_workers


class Stopped(Exception):
    """Training has to stop here because of the signal `number`; its exit status is 128 + number."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Requests:
    """What signals asked for so far. Handlers only set these fields; whoever obeys one reads and clears it."""

    training: bool = False  # whether a loop is there that looks at `stop`
    stop: int = 0  # number of the signal that asked to stop
    save: bool = False


@contextlib.contextmanager
def catch() -> Iterator[Requests]:
    """Note signals in the Requests given; the handlers before are back afterwards. Outside the main thread: nothing."""
    requests = Requests()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            requests.save = True
        elif not requests.training:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        elif number == signal.SIGINT == requests.stop:
            end_workers()
            os._exit(130)
        elif not requests.stop:
            requests.stop = number
            with contextlib.suppress(OSError):  # nobody reads it any more; an error here could fall into a step
                # print() may be in use
                os.write(2, f"\n{signal.Signals(number).name}: saving, then leaving.\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield requests  # Python delivers signals to the main thread alone
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
