"""Downloads from a local Hub that cuts, changes, lies and refuses: what is asked again, what is kept."""

import hashlib
import multiprocessing
import os
import random
import signal
import time

import pytest

from nanocaption.base import retry
from nanocaption.prepare import download
from tests import hub_files as hubs
from tests.hub_files import HTML, Fault
from tests.processes import own_bar_lock

FORK = multiprocessing.get_context("fork")
NAME = "data/flickr30k-images.zip"
DATA = random.Random(1).randbytes(3 * 2**20 + 12345)
HALF = len(DATA) // 2
# The servers are threads of this process, and Python 3.12 warns of the fork; the child uses none of their locks.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one large file, and huggingface_hub in this process turned to it."""
    with hubs.serve(hubs.Hub("someone/mini30k", {NAME: DATA})) as served:
        hubs.turn_to(monkeypatch, served.url, tmp_path / "cache")
        monkeypatch.setattr(retry, "WAITS", (0.01, 0.01, 0.01))
        yield served


def fetch(folder, hub) -> download.Fetched:
    commit, names = download.listing("someone/mini30k", "main")
    assert names == [NAME]
    return download.fetch(download.ask("someone/mini30k", commit, NAME), folder)


def fails(folder, hub, kind: type[Exception] = download.WrongContent, message: str = ".") -> None:
    with pytest.raises(kind, match=message):
        fetch(folder, hub)
    assert not (folder / NAME).exists()


def ranges(hub) -> list[tuple[str | None, int, int | None]]:
    return [(request.range, request.status, request.first) for request in hub.downloads()]


def test_a_file_comes_whole_and_is_not_asked_for_again(tmp_path, hub):
    fetched = fetch(tmp_path, hub)
    assert fetched.path == tmp_path / NAME and fetched.path.read_bytes() == DATA
    assert fetched.sha256 == fetched.etag == hashlib.sha256(DATA).hexdigest() and fetched.commit == hubs.COMMIT
    assert sorted(path.name for path in (tmp_path / "data").iterdir() if not path.name.endswith(".lock")) == [
        "flickr30k-images.zip", "flickr30k-images.zip.json"
    ]  # fmt: skip
    assert fetch(tmp_path, hub) == fetched == download.in_folder(tmp_path, NAME, "someone/mini30k")
    assert ranges(hub) == [(None, 200, 0)]
    assert download.in_folder(tmp_path, NAME, "someone/else") is None


def test_the_token_goes_to_the_hub_and_to_no_other_host(tmp_path, hub):
    fetch(tmp_path, hub)
    by_host = {"/kept/" in request.path: request.token for request in hub.log}
    assert by_host == {False: "Bearer hf_secret", True: None}


def test_a_small_file_that_the_hub_keeps_itself_comes_as_well(tmp_path, hub):
    hub.small, hub.etags = {NAME}, {NAME: "f" * 40}  # a git hash: says nothing that could be checked
    fetched = fetch(tmp_path, hub)
    assert fetched.path.read_bytes() == DATA and fetched.etag == "f" * 40
    assert fetched.sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_cut_connection_goes_on_where_it_was(tmp_path, hub, capsys):
    hub.faults = [Fault(cut=HALF), Fault(cut=HALF // 2)]
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    (none, _, zero), (second, status, first), (third, _, last) = ranges(hub)
    assert (none, zero) == (None, 0) and status == 206
    assert second == f"bytes={first}-" and third == f"bytes={last}-" and 0 < first <= HALF < last
    assert capsys.readouterr().out.count("next try in 0.01 s") == 2


def test_another_start_goes_on_where_a_failed_one_was(tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setattr(retry, "WAITS", ())
    hub.faults = [Fault(cut=HALF)]
    monkeypatch.setattr(retry, "PROGRESS", 2**40)
    fails(tmp_path, hub, Exception)
    have = (tmp_path / f"{NAME}.part").stat().st_size
    assert 0 < have <= HALF
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    assert ranges(hub)[1:] == [(f"bytes={have}-", 206, have)]
    assert f"going on at {have:,} of {len(DATA):,} bytes" in capsys.readouterr().out


def killable(folder, hub) -> None:
    os.setpgrp()
    own_bar_lock()
    fetch(folder, hub)


def start_and_kill(folder, hub, at_least: int) -> int:
    """A real process, killed once `at_least` bytes are there; how many there are then."""
    process = FORK.Process(target=killable, args=(folder, hub))
    process.start()
    part, deadline = folder / f"{NAME}.part", time.monotonic() + 60
    while not part.exists() or part.stat().st_size < at_least:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return part.stat().st_size


def test_a_killed_process_is_continued_by_the_next_one(tmp_path, hub):
    hub.faults = [Fault(slow=0.02), Fault(slow=0.02)]
    first = start_and_kill(tmp_path, hub, 1)
    second = start_and_kill(tmp_path, hub, first + 1)
    assert 0 < first < second < len(DATA)
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    assert ranges(hub) == [(None, 200, 0), (f"bytes={first}-", 206, first), (f"bytes={second}-", 206, second)]


def test_two_processes_do_not_write_one_part_file(tmp_path, hub):
    hub.faults = [Fault(slow=0.005)]
    other = FORK.Process(target=killable, args=(tmp_path, hub))
    other.start()
    while not hub.downloads():
        assert other.is_alive()
        time.sleep(0.002)
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    other.join()
    assert other.exitcode == 0 and len(hub.downloads()) == 1


def leave_half(folder, hub, monkeypatch) -> int:
    with monkeypatch.context() as once:
        once.setattr(retry, "WAITS", ())
        once.setattr(retry, "PROGRESS", 2**40)
        hub.faults = [Fault(cut=HALF)]
        fails(folder, hub, Exception)
    hub.log.clear()
    return (folder / f"{NAME}.part").stat().st_size


def test_a_changed_file_starts_over_and_says_so(tmp_path, hub, monkeypatch, capsys):
    leave_half(tmp_path, hub, monkeypatch)
    hub.files[NAME] = DATA[::-1]
    hub.commit = "c" * 40
    fetched = fetch(tmp_path, hub)
    assert fetched.path.read_bytes() == DATA[::-1] and fetched.commit == "c" * 40
    assert ranges(hub) == [(None, 200, 0)]
    assert "has changed on the server since its download began" in capsys.readouterr().out


def test_bytes_kept_elsewhere_under_another_etag_are_sent_whole(tmp_path, hub, monkeypatch):
    have = leave_half(tmp_path, hub, monkeypatch)
    hub.keeper_etag = '"kept-2"'  # If-Range does not hold: 200 with everything
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    assert ranges(hub) == [(f"bytes={have}-", 200, 0)]


def test_a_server_without_ranges_sends_all_again(tmp_path, hub, monkeypatch):
    have = leave_half(tmp_path, hub, monkeypatch)
    hub.faults = [Fault(lines_up=False)]
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    assert ranges(hub) == [(f"bytes={have}-", 200, 0)]


@pytest.mark.parametrize(("fault", "message"), [
    (Fault(body=HTML, html=True), "the server sent an HTML page: a login page or a proxy"),
    (Fault(body=HTML.ljust(len(DATA))), "the server sent an HTML page"),
    (Fault(body=DATA[:-1]), "should have 3,158,073 bytes but the server sends 3,158,072"),
    (Fault(body=DATA + b"x"), "should have 3,158,073 bytes but the server sends 3,158,074"),
])  # fmt: skip
def test_something_else_than_the_file_is_refused_and_what_was_there_stays(tmp_path, hub, monkeypatch, fault, message):
    hub.faults = [fault]
    fails(tmp_path, hub, message=message)
    have = leave_half(tmp_path, hub, monkeypatch)
    if fault.html:
        hub.faults = [fault]
        fails(tmp_path, hub, message=message)
        assert (tmp_path / f"{NAME}.part").stat().st_size == have
    assert fetch(tmp_path, hub).path.read_bytes() == DATA


def test_a_wrong_hash_is_refused_and_its_bytes_are_not_used_again(tmp_path, hub, monkeypatch):
    leave_half(tmp_path, hub, monkeypatch)
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(b"?" + part.read_bytes()[1:])  # a hole after a power cut
    fails(tmp_path, hub, message="came damaged .sha256 .*, the Hub names .* and was removed; run again")
    assert not part.exists()
    hub.log.clear()
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    assert ranges(hub) == [(None, 200, 0)]


def test_errors_of_the_server_are_tried_again_and_it_may_say_when(tmp_path, hub, monkeypatch):
    slept = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    hub.faults = [Fault(status=500), Fault(status=503, retry_after="7"), Fault(status=429, retry_after="9999")]
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    assert [seconds for seconds in slept if seconds] == [0.01, 7, retry.LONGEST_WAIT]


def test_a_server_that_falls_silent_is_asked_again(tmp_path, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults = [Fault(slow=0.5)]
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    assert len(hub.downloads()) == 2


def test_a_server_that_never_recovers_ends_the_download(tmp_path, hub):
    hub.faults = [Fault(status=502) for _ in range(9)]
    fails(tmp_path, hub, OSError, "502")
    assert len(hub.downloads()) == 1 + len(retry.WAITS)
    hub.faults = [Fault(status=403)]
    hub.log.clear()
    fails(tmp_path, hub, OSError, "403")
    assert len(hub.downloads()) == 1  # asking again would not help


def test_a_part_that_is_whole_already_asks_for_nothing(tmp_path, hub, monkeypatch):
    leave_half(tmp_path, hub, monkeypatch)
    (tmp_path / f"{NAME}.part").write_bytes(DATA)
    assert fetch(tmp_path, hub).path.read_bytes() == DATA
    assert ranges(hub) == []


def test_a_host_that_was_never_there_is_not_asked_twice(hub, monkeypatch):
    slept = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    hub.url = "http://127.0.0.1:9"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    with pytest.raises(retry.hub.errors()):
        download.listing("someone/mini30k", "main")
    assert slept == []
