"""The log, torn or whole, and what its copies are handed."""

import json

import pytest

from nanocaption.base.files import open_to_append
from nanocaption.runs import log
from nanocaption.runs.log import REPLACED, rewind_log, write_row


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("torn", [b"", b'{"type": "tra', b'{"a": "\xc3', b"{}", b"\n"])
def test_a_torn_last_line_is_cut_and_nothing_else(tmp_path, torn):
    path = tmp_path / "log.jsonl"
    with open_to_append(path) as file:
        write_row(file, {"type": "train", "step": 1})
        write_row(file, {"type": "samples", "text": "naïve 🐕\n"})
    with open(path, "ab") as file:
        file.write(torn)
    with open_to_append(path) as file:
        write_row(file, {"type": "train", "step": 2})
    found = [row for row in rows_or_blank(path) if row]
    assert found == [{"type": "train", "step": 1}, {"type": "samples", "text": "naïve 🐕\n"},
                     {"type": "train", "step": 2}]  # fmt: skip


def rows_or_blank(path):
    return [json.loads(line) if line else None for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_log_of_one_torn_line_begins_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"type"')
    with open_to_append(path) as file:
        write_row(file, {"step": 1})
    assert rows(path) == [{"step": 1}]


def test_rows_beyond_a_position_are_moved_not_lost(tmp_path):
    path = tmp_path / "log.jsonl"
    log = [
        {"type": "start", "step": 0}, {"type": "train", "step": 1}, {"type": "train", "step": 2},
        {"type": "val", "step": 2, "epoch": 1}, {"type": "train", "step": 3}, {"type": "nonfinite", "step": 4},
        {"type": "samples", "step": 4, "epoch": 2}, {"type": "stop", "step": 4}, {"type": "resume", "step": 9},
    ]  # fmt: skip
    with open_to_append(path) as file:
        for row in log:
            write_row(file, row)
    assert rewind_log(path, step=4, epoch=2) == 0
    assert rewind_log(path, step=4, epoch=1) == 1  # all steps done, not yet validated
    assert rewind_log(path, step=2, epoch=0) == 3
    assert rows(path) == [log[0], log[1], log[2], log[7], log[8]]
    assert rows(tmp_path / REPLACED) == [log[6], log[3], log[4], log[5]]
    path.write_bytes(b'[1, 2]\nof the user\n{"type": "train", "step": 3}\n{"type": "tra')
    assert rewind_log(path, step=2, epoch=0) == 1
    assert path.read_bytes() == b"[1, 2]\nof the user\n"
    assert rewind_log(tmp_path / "none.jsonl", 1, 1) == 0


def test_a_full_disk_for_the_log_is_told_once_and_stops_nothing(monkeypatch, capsys):
    monkeypatch.setattr(log, "_warned", set())
    with open("/dev/full", "ab", buffering=0) as full:
        for step in range(3):
            write_row(full, {"step": step})
    assert capsys.readouterr().err.count("takes no more rows") == 1


def test_every_row_is_on_the_disk_at_once(tmp_path):
    with open_to_append(tmp_path / "log.jsonl") as file:
        write_row(file, {"step": 1})
        assert rows(tmp_path / "log.jsonl") == [{"step": 1}]


def test_without_a_log_nothing_is_written_and_nothing_fails():
    write_row(None, {"type": "train", "step": 1})


# --- Copies ---


def test_a_copy_gets_every_row_as_the_log_holds_it(tmp_path):
    taken = []
    with open_to_append(tmp_path / "log.jsonl") as file:
        write_row(file, {"type": "train", "step": 4, "loss": float("nan"), "note": "text"}, [taken.append])
        write_row(file, {"type": "stop"})
    assert taken == rows(tmp_path / "log.jsonl")[:1]


def test_trouble_with_a_copy_is_told_once_and_the_log_and_other_copies_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(log, "_warned", set())
    taken = []

    def fail(row):
        raise ConnectionError("gone")

    with open_to_append(tmp_path / "log.jsonl") as file:
        for step in range(3):
            write_row(file, {"type": "train", "step": step}, [fail, taken.append])
    assert rows(tmp_path / "log.jsonl") == taken and len(taken) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
