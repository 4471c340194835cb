"""Every reader of outside bytes answers damaged input, or refuses it in one line, in bounded memory and time."""

import pytest

from tests import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_input_is_read_or_refused_in_one_line(name):
    found = fuzz.fuzz(fuzz.READERS[name](), 2, seed=1)
    assert found.inputs > 5 and found.refused > 0 and found.faults == []


@pytest.mark.long
@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_input_for_ten_minutes(name):
    found = fuzz.fuzz(fuzz.READERS[name](), 600, seed=2)
    assert found.inputs > 50 and found.refused > 0 and found.faults == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda folder: {}["x"], "KeyError"),
        (lambda folder: None, "ValueError of other than one line"),
        (lambda folder: bytearray(2 * fuzz.MOST_BYTES), "MemoryError"),
        (lambda folder: fuzz.os._exit(3), "the process ended with 3"),
    ],
    ids=["an error", "several lines", "memory", "a crash"],
)
def test_the_control_a_fault_is_noticed(fault, told):
    def read(folder):
        fault(folder)
        raise ValueError("a\nb")

    found = fuzz.fuzz(fuzz.Reader({"a.txt": b"abc"}, read), 0.3, seed=1)
    assert found.faults and told in found.faults[0]


def test_the_control_what_takes_too_long_is_noticed(monkeypatch):
    monkeypatch.setattr(fuzz, "MOST_SECONDS", 0.1)
    found = fuzz.fuzz(fuzz.Reader({"a.txt": b"abc"}, lambda folder: all(True for _ in iter(int, 1))), 0.3, seed=1)
    assert found.faults and "TimeoutError" in found.faults[0]


def test_the_same_seed_gives_the_same_inputs():
    data = fuzz.TEXTS["studio.json"].encode()
    one, again, other = (fuzz.damaged(data, "studio.json", fuzz.random.Random(seed)) for seed in (1, 1, 2))
    assert one == again != other and one != data
