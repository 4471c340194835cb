"""Files that are whole or not there, and logs whose last line a kill has torn."""

import os

import pytest

from nanocaption.base import cli
from nanocaption.base.files import beside, is_junk, json_lines, link_or_copy, open_to_append, whole, write_atomically


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_takes_its_name_at_the_end_or_the_old_one_stays(tmp_path, sync):
    path = tmp_path / "a.json"
    with whole(path, sync) as made:
        made.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), whole(path, sync) as made:
        made.write_text("half of the sec")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.json"]
    write_atomically(path, "zwei Zeilen\nä")
    assert path.read_bytes() == "zwei Zeilen\nä".encode() and os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_process_left_beside_is_not_written_into(tmp_path):
    """It may be a second name of somebody's picture."""
    (tmp_path / "raw.jpg").write_bytes(b"raw")
    with beside(tmp_path / "a.jpg") as made:
        pass
    for leave in (lambda: os.link(tmp_path / "raw.jpg", made), made.mkdir, lambda: made.symlink_to(tmp_path)):
        leave()
        with whole(tmp_path / "a.jpg") as again:
            assert again == made and not os.path.lexists(made)
            made.write_bytes(b"new")
    assert (tmp_path / "raw.jpg").read_bytes() == b"raw" and (tmp_path / "a.jpg").read_bytes() == b"new"
    assert cli.told(OSError(13, "Permission denied", str(made))).startswith(f"{tmp_path / 'a.jpg'}: Permission denied")


def test_a_link_leads_to_the_file_itself_and_a_copy_keeps_the_time(tmp_path, monkeypatch):
    (tmp_path / "real").write_bytes(b"x")
    os.utime(tmp_path / "real", (7, 7))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    link_or_copy(tmp_path / "link", tmp_path / "a")
    assert os.path.samefile(tmp_path / "a", tmp_path / "real") and not (tmp_path / "a").is_symlink()
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    link_or_copy(tmp_path / "link", tmp_path / "b", sync=True)
    assert not os.path.samefile(tmp_path / "b", tmp_path / "real") and (tmp_path / "b").stat().st_mtime == 7


def test_lines_that_hold_no_object_are_told_and_a_torn_last_one_is_not_there(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n\n12\n{"b"\n{"c": 3}\n{"d"')
    assert [row for _, row in json_lines(path)] == [{"a": 1}, None, None, None, {"c": 3}]
    assert b"".join(line for line, _ in json_lines(path)) + b'{"d"' == path.read_bytes()
    path.write_bytes(b'{"a": 1}')  # whole, only its line end is missing
    assert [row for _, row in json_lines(path)] == [{"a": 1}]


@pytest.mark.parametrize(("before", "after"), [
    (None, b""), (b"", b""), (b"torn", b""), (b"one\n", b"one\n"), (b"one\ntwo\nto", b"one\ntwo\n"),
    (b"one\n" + b"x" * 200_000, b"one\n"),
])  # fmt: skip
def test_a_log_goes_on_after_its_last_whole_line(tmp_path, before, after):
    path = tmp_path / "log"
    if before is not None:
        path.write_bytes(before)
    with open_to_append(path) as file:
        file.write(b"next\n")
    assert path.read_bytes() == after + b"next\n"


def test_junk_is_known_wherever_it_stands_in_a_path():
    assert all(map(is_junk, (".DS_Store", "a/._b.jpg", "__MACOSX/b.jpg", ".git/a.jpg")))
    assert not any(map(is_junk, ("a.jpg", "./a.jpg", "a/b..c.jpg", "MACOSX/a")))
