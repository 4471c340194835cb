"""Requests by signal: caught in the main thread alone."""

import signal
import threading

from nanocaption.runs import signals


def test_requests_outside_the_main_thread_change_no_handler():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with signals.catch() as requests:
            seen.append((requests.stop, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
