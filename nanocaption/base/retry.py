"""What the network did not give is asked for again, where a failure may pass."""

import time
from collections.abc import Callable
from typing import TypeVar

from nanocaption.base import hub

WAITS = (1, 2, 4, 8, 16, 32)  # seconds before each new try; the next failure after these ends the download
LONGEST_WAIT = 300  # of what a server asks for with Retry-After
PROGRESS = 2**20  # bytes that a try must bring for the count of failures to start again
T = TypeVar("T")


class Broken(OSError):
    """A transfer that ended early, or must start again; another try may help."""


def retried(action: Callable[[], T], what: str, progress: Callable[[], int] = int, patient: bool = True) -> T:
    """action(), tried again after a pause where the failure may pass: 429, 5xx, time-outs, cut connections.

    progress: bytes so far; tries that bring enough do not count. patient: whether a host that cannot be reached at all
    may pass, too.
    """
    failures = 0
    while True:
        before = progress()
        try:
            return action()
        except hub.errors() as error:
            failures = 0 if progress() - before >= PROGRESS else failures + 1
            if not may_pass(error, patient) or failures > len(WAITS):
                raise
            wait = asked_wait(error) or WAITS[max(0, failures - 1)]
            from tqdm import tqdm  # takes as long as a caption without torch

            tqdm.write(f"{what}: {hub.reason_of(error)}; next try in {wait:g} s")
            time.sleep(wait)


def may_pass(error: Exception, patient: bool) -> bool:
    from huggingface_hub.utils import httpx

    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code == 429 or response.status_code >= 500
    if isinstance(error, httpx.ConnectError):
        return patient
    return isinstance(error, (httpx.TransportError, Broken)) and not isinstance(error, httpx.UnsupportedProtocol)


def asked_wait(error: Exception) -> float | None:
    """Seconds that the server asks to wait with Retry-After; a date there is left alone."""
    response = getattr(error, "response", None)
    text = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(text), LONGEST_WAIT) if text.isdecimal() else None
