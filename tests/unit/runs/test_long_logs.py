"""A log of any length costs a resume and the curves the same memory."""

import json
import math
import tracemalloc
from pathlib import Path

import pytest

from nanocaption.base.files import lines_backwards, read_log
from nanocaption.runs.log import REPLACED, rewind_log
from nanocaption.score.curves import extract_curves, read_thinned, thinned
from nanocaption.train.scst import drift


def rows_of(steps: int, reward: bool = False):
    """A validation every 100 steps; the loss falls, the best validation is that after step 700."""
    for step in range(1, steps + 1):
        value = {"reward": step / steps} if reward else {}
        yield {"type": "train", "step": step, "epoch": step / 100, "loss": 1 + 1 / step, "lr": 1e-3, **value}
        if step % 100 == 0:
            loss = 0.5 if step == 700 else 1 + 1 / step
            yield {"type": "val", "step": step, "epoch": step // 100, "val_loss": loss, "CIDEr": 2 - loss}


def write(path: Path, steps: int, reward: bool = False) -> Path:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows_of(steps, reward))
    return path


def peak(act) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("block", [1, 7, 64, 2**16])
def test_lines_are_read_backwards_from_any_place(tmp_path, block):
    for text in (b"", b"torn", b"a\n", b"a\n\nbcd\nef\n", b"a\nbcd\ntorn", b"\n"):
        (tmp_path / "log").write_bytes(text)
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        starts = [sum(map(len, lines[:number])) for number in range(len(whole))]
        assert list(lines_backwards(tmp_path / "log", block)) == [*zip(starts, whole, strict=True)][::-1]


def test_a_long_log_costs_a_resume_and_the_curves_what_a_short_one_costs(tmp_path):
    short, long = write(tmp_path / "short.jsonl", 5000), write(tmp_path / "long.jsonl", 25_000)
    acts = {
        "back to its half": lambda path, steps: rewind_log(path, steps // 2, steps // 200),
        "curves": lambda path, steps: extract_curves(read_thinned(path)),
    }
    for name, act in acts.items():
        small, large = peak(lambda: act(short, 5000)), peak(lambda: act(long, 25_000))  # noqa: B023
        assert large < 1.5 * small, name
    assert peak(lambda: read_log(long)) > 4 * peak(lambda: read_log(short))  # the control: all rows at once
    assert len(read_log(long)) == 12_625 and len(read_log(tmp_path / REPLACED)) == 2525 + 12_625


def test_a_rewound_log_is_what_it_was_at_that_step(tmp_path):
    path = write(tmp_path / "log.jsonl", 500)
    with path.open("a") as file:
        file.write(json.dumps({"type": "stop", "step": 500}) + "\n" + '{"type": "train", "st')
    before = [row for row in rows_of(500) if row["step"] <= 250]
    assert rewind_log(path, 250, 2) == 253
    assert read_log(path) == [*before, {"type": "stop", "step": 500}]
    assert rewind_log(path, 250, 2) == 0 and rewind_log(path, 0, 0) == 252


def test_few_rows_are_drawn_as_they_are_and_of_many_the_mean_and_the_best_stay():
    few = list(rows_of(300))
    assert extract_curves(thinned(iter(few))) == extract_curves(few)
    many = [row | {"loss": math.nan} if row["step"] == 9 and row["type"] == "train" else row for row in rows_of(20_000)]
    drawn, whole = extract_curves(thinned(iter(many), most=100)), extract_curves(many)
    assert len(drawn.train) <= 102 and len(drawn.val) <= 102
    assert min(y for _, y in drawn.val) == 0.5 and max(y for _, y in drawn.cider) == 150
    assert drawn.note == whole.note == "left out, as not finite: 1"
    assert drawn.val[-1] == whole.val[-1] and drawn.train[-1][0] == whole.train[-1][0]
    weights = [a - b for (a, _), b in zip(drawn.train, [0, *(x for x, _ in drawn.train)], strict=False)]
    mean = sum(w * y for w, (_, y) in zip(weights, drawn.train, strict=True)) / sum(weights)
    assert mean == pytest.approx(sum(y for _, y in whole.train) / len(whole.train), rel=1e-3)


def test_what_a_resume_took_back_is_not_drawn():
    rows = [*rows_of(2000), {"type": "resume", "step": 1000}]
    drawn = extract_curves(thinned(iter(rows), most=100))
    assert max(x for x, _ in drawn.train) <= 10 < max(x for x, _ in extract_curves(thinned(rows[:-1], 100)).train)


def test_the_signs_of_self_critical_training_need_only_both_ends():
    assert drift(iter(rows_of(5000, reward=True))) == drift(list(rows_of(5000, reward=True)))
    assert peak(lambda: drift(rows_of(50_000, reward=True))) < 2e6
