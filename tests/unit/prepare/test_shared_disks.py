"""Sets on disks without locks, with coarse times and with slow listings."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nanocaption.data.caches import Source, cached_rows
from nanocaption.prepare import check
from nanocaption.prepare.make import prepare
from nanocaption.runs.folder import lock
from tests.raw_sets import write_csv


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(30):
        Image.effect_noise((20, 20), number + 1).save(folder / f"{number}.png")
    write_csv(folder / "captions.csv", ["image", "caption"], [[f"{n}.png", f"number {n}"] for n in range(30)])
    return folder


def make(places: list[int]):
    yield np.array(places)


def test_without_locks_all_is_made_and_that_is_told(raw, tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    folder = prepare("mine", tmp_path / "data", raw_dir=raw)
    rows = cached_rows(folder / "cache" / "x", Source(5, make, "rows"), 10**6)
    (tmp_path / "run").mkdir()
    with lock(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    said = capsys.readouterr().out
    assert rows is not None and len(rows) == 5 and "is ready" in said
    assert said.count("cannot be locked here (No locks available)") == 3


def test_coarse_times_change_nothing_and_are_read_once(raw, tmp_path, monkeypatch, capsys):
    """As on a disk that knows even seconds only: the same pictures with other times are read once, not refused."""
    folder = prepare("mine", tmp_path / "data", raw_dir=raw)
    for path in raw.iterdir():
        about = path.stat()
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns // (2 * 10**9) * (2 * 10**9)))
    read: list[Path] = []
    monkeypatch.setattr("nanocaption.prepare.changes._digest", digest_of(read))
    for _ in range(3):
        prepare("mine", tmp_path / "data", raw_dir=raw)
    assert len(read) == 30 and "replaced" not in capsys.readouterr().out
    Image.effect_noise((20, 20), 99).save(folder / "images" / "3.png")
    with pytest.raises(ValueError, match=r"1 picture \(3.png\)"):  # the control
        prepare("mine", tmp_path / "data", raw_dir=raw)


def digest_of(read: list[Path]):
    from nanocaption.data.prepared import sha256_of

    def digest(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    return digest


def test_a_start_lists_folders_a_few_times_however_many_pictures_there_are(raw, tmp_path, monkeypatch):
    prepare("mine", tmp_path / "data", raw_dir=raw)
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": listed.append(str(path)) or scandir(path))
    prepare("mine", tmp_path / "data")
    assert 0 < len(listed) <= 4, listed
    assert check.size_and_time(raw / "1.png")[0] > 0
