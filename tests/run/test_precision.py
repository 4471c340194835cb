"""Half precision on a CPU: bf16 and fp16 learn as fp32 does, whoever shares a step, and resume to the same bits."""

import shutil
from pathlib import Path

import pytest

import train
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST, PREVIOUS
from tests.conftest import tiny_flags
from tests.processes import end, rows, start, start_ranks

HALF = ["bf16", "fp16"]
# How far a step's training loss is from fp32's, relatively: at most, and on average over the curve.
BOUNDS = {"bf16": (0.05, 0.01), "fp16": (0.02, 0.004)}


def curve(data: Path, output: Path, precision: str, epochs: int, *more: str, ranks: int = 1) -> list[float]:
    """The losses of all steps, 6 an epoch."""
    name = "-".join([precision, *more, str(ranks)]).replace("/", "")
    argv = [*tiny_flags(data, output), "--precision", precision, "--num-epochs", str(epochs), "--run-name", name,
            "--validation-interval", str(epochs), "--validation-score-images", "0", "--warmup-steps", "10",
            *more]  # fmt: skip
    output.mkdir(exist_ok=True)
    processes = [start(argv, output / "printed")] if ranks == 1 else start_ranks(argv, output / "printed", ranks)
    assert {end(process) for process in processes} == {0}, (output / "printed").read_text()
    return [row["loss"] for row in rows(output / name, "train")]


def apart(found: list[float], expected: list[float]) -> tuple[float, float]:
    """How far two curves are apart, relatively: at most, and on average."""
    assert len(found) == len(expected) > 0
    differences = [abs(a - b) / b for a, b in zip(found, expected, strict=True)]
    return max(differences), sum(differences) / len(differences)


@pytest.mark.parametrize("epochs", [10, pytest.param(34, marks=pytest.mark.long)])
def test_the_loss_curves_of_half_precision_stay_within_bounds_of_fp32(demo_data, tmp_path, epochs):
    full = curve(demo_data, tmp_path, "fp32", epochs)
    assert len(full) == 6 * epochs and full[-1] < 0.9 * full[0]  # it learns
    for precision in HALF:
        half = curve(demo_data, tmp_path, precision, epochs)
        most, mean = apart(half, full)
        assert 0 < most < BOUNDS[precision][0] and mean < BOUNDS[precision][1], precision
    other = curve(demo_data, tmp_path, "fp32", epochs, "--seed", "2")  # the control: what another course is
    assert apart(other, full)[1] > BOUNDS["bf16"][1]


@pytest.mark.parametrize("precision", HALF)
def test_accumulation_and_processes_are_the_same_course_in_half_precision(demo_data, tmp_path, precision):
    whole = curve(demo_data, tmp_path, precision, 4)
    in_parts = curve(demo_data, tmp_path, precision, 4, "--batch-size", "10", "--grad-accum-steps", "2")
    shared = curve(demo_data, tmp_path, precision, 4, "--batch-size", "10", ranks=2)
    assert apart(in_parts, whole)[0] < 0.005 and apart(shared, whole)[0] < 0.005
    twice = curve(demo_data, tmp_path, precision, 4, "--learning-rate", "6e-3")  # the control: gradients summed twice
    assert apart(twice, whole)[0] > 0.005


@pytest.mark.parametrize("precision", HALF)
def test_early_stopping_average_schedule_and_scale_go_on_after_a_resume(flags, tmp_path, monkeypatch, precision):
    """Stopped early after epoch 4; resumed from epoch 3, with one validation without a gain, it stops there too."""
    losses = iter([3.0, 2.0, 2.5, 2.6])
    monkeypatch.setattr(train, "evaluate", lambda run: next(losses))
    argv = [*flags, "--precision", precision, "--num-epochs", "9", "--early-stopping-patience", "2", "--ema-decay",
            "0.3", "--lr-schedule", "cosine", "--decoder-dropout", "0.2", "--validation-score-images", "0"]  # fmt: skip
    train.main([*argv, "--run-name", "whole"])
    whole, again = tmp_path / "runs" / "whole", tmp_path / "runs" / "again"
    assert rows(whole, "val")[-1]["epoch"] == 4
    again.mkdir()
    shutil.copy(whole / PREVIOUS, again / LAST)
    losses = iter([2.6, 2.7, 2.8])
    train.main(["--resume-checkpoint-path", str(again / LAST)])
    assert [row["epoch"] for row in rows(again, "val")] == [4]  # and no further
    (a, tensors_a), (b, tensors_b) = (
        (state, checkpoint._digest(checkpoint._pack(state)[0], ""))
        for state in (checkpoint.load(run / LAST) for run in (whole, again))
    )
    assert tensors_a == tensors_b and "raw_state_dict" in a
    for name in ("averaged_steps", "validations_without_gain", "best_val_loss", "step", "scaler_state_dict"):
        assert a[name] == b[name], name
    assert bool(a["scaler_state_dict"]) == (precision == "fp16")
    rates = [[row["lr"] for row in rows(run, "train") if row["step"] > 18] for run in (whole, again)]
    assert rates[0] == rates[1] and len(set(rates[0])) == 6
