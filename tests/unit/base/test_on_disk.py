"""Lists and tables on the disk are what list and dict are, leave no file, and hold nothing in memory."""

import tracemalloc

import pytest

from nanocaption.base import on_disk
from nanocaption.prepare import check, layouts
from nanocaption.prepare.caption_files import Row


def test_a_list_on_the_disk_is_a_list(tmp_path):
    items = [{"name": f"{number}.jpg", "row": Row(number, None, ["a dog"])} for number in range(200)]
    found = on_disk.rows(tmp_path, items[:130])
    assert list(found) == items[:130] and len(found) == 130 and not on_disk.rows(tmp_path)
    reading = iter(found)
    first = [next(reading) for _ in range(70)]
    found.extend(items[130:])
    assert first + list(reading) == items[:130], "an item that comes later is none of what is read now"
    assert list(found) == items and found[150] == items[150] and found[-1] == items[-1] and found[:3] == items[:3]
    with pytest.raises(IndexError):
        found[200]
    found[0]["name"] = "another"
    assert found[0] == items[0], "the control: a list in memory would have changed"
    assert list(on_disk.rows(None, items)) == items


def test_a_table_on_the_disk_is_a_dict(tmp_path):
    tables = [on_disk.table(scratch) for scratch in (None, tmp_path)]
    for held in tables:
        for number in (3, 1, 2, 1):
            held[f"{number}.jpg", None] = [number]
        held["\ud800", 1] = ["half a pair"]
        held["3.jpg", None] = ["again"]
        del held["2.jpg", None]
        assert held.setdefault(("4.jpg", None), []) == [] and ("2.jpg", None) not in held
        with pytest.raises(KeyError):
            held["2.jpg", None]
    in_memory, stored = tables
    assert list(stored.items()) == list(in_memory.items()) and list(stored) == list(in_memory)
    assert len(stored) == len(in_memory) == 4 and stored["3.jpg", None] == ["again"]


def test_nothing_is_left_of_them(tmp_path):
    held, table = on_disk.rows(tmp_path, range(1000)), on_disk.table(tmp_path, [(1, 2)])
    assert list(tmp_path.iterdir()) == [], "files without a name go with the process, however it ends"
    assert sum(held) == 499500 and table[1] == 2


def test_the_values_of_keys_in_any_order(tmp_path):
    pairs = [(number, str(number)) for number in range(50)]
    for keys in (range(0, 50, 3), [7, 3, 3, 49, 0]):
        for scratch in (None, tmp_path):
            assert list(on_disk.values_of(keys, on_disk.table(scratch, pairs))) == [str(key) for key in keys]


def test_what_comes_more_than_once():
    names = [f"{number}.jpg" for number in range(1000)]
    assert not on_disk.Repeated(names) and "3.jpg" not in on_disk.Repeated(names) and not on_disk.Repeated([])
    found = on_disk.Repeated([*names, "3.jpg", "999.jpg", "3.jpg"])
    assert found and [name for name in names if name in found] == ["3.jpg", "999.jpg"]


def held_of_each(pictures: int, scratch) -> float:
    """Bytes of memory for each picture whose captions are read, given a split and cleaned."""
    def rows():
        for number in range(pictures):
            yield Row(f"{number:07}.jpg", None, [f"a dog {number} runs over the house", f"the red cat {number} sits"])

    given = on_disk.rows(scratch, rows())
    tracemalloc.start()
    try:
        records, _ = layouts.clean_records(given, 1, "here", scratch)
        cleaned, _ = check.clean_captions(records, "keep", scratch)
        assert len(cleaned) == pictures
        return tracemalloc.get_traced_memory()[1] / pictures
    finally:
        tracemalloc.stop()


def test_captions_on_the_disk_take_no_memory(tmp_path):
    on_disk.Repeated("ab")  # numpy's own memory is none of a picture's
    small, large = held_of_each(1000, tmp_path), held_of_each(3000, tmp_path)
    assert (3000 * large - 1000 * small) / 2000 < 100
    assert held_of_each(1000, None) > 600, "the control: in memory they would take that"
