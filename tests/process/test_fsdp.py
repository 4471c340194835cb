"""Weights and optimizer spread over two processes: the same training, the same files, and really spread."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.fsdp

import train
from nanocaption.base import devices
from nanocaption.base.tensors import _same_bits
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST, best_files
from nanocaption.train import step
from nanocaption.use.load import load_model
from tests.conftest import TINY_MODEL, save_tower
from tests.processes import end, rows, start, start_ranks

# 11 pictures, 4 a step on all processes together: the last step and the validation give one of two processes a pass
# more than the other.
PICTURES = 11
FSDP = ("--fsdp",)


def arguments(data: Path, output: Path, ranks: int, *more: str) -> list[str]:
    places = ["--data-dir", str(data), "--output-dir", str(output), "--data-cutoff", str(PICTURES)]
    per_process = ["--batch-size", "5", "--grad-accum-steps", str(4 // ranks)]
    how = ["--decoder-layers", "2", "--max-seq-len", "12", "--num-epochs", "2", "--run-name", "run"]
    return [*places, *TINY_MODEL.split(), *per_process, *how, "--resume-checkpoint-path", "last", *more]


def tell_sizes() -> None:
    """At the end every process writes each weight's size, and how much of it and its gradient and moments it has."""
    real = train.fit

    def fit(run, progress):
        real(run, progress)
        found = {}
        for group in run.optimizer.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                kept = {"weight": p, "gradient": p.grad, **run.optimizer.state[p]}
                own = {slot: getattr(tensor, "_local_tensor", tensor) for slot, tensor in kept.items()}
                found[name] = p.numel(), {slot: tensor.numel() for slot, tensor in own.items() if slot != "step"}
        path = run.folder.parent / f"sizes_{train.devices.rank()}.json"
        path.write_text(json.dumps(found))

    train.fit = fit


def go(data: Path, output: Path, ranks: int, *more: str, prelude=tell_sizes, status: int = 0) -> Path:
    output.mkdir(exist_ok=True)
    argv = arguments(data, output, ranks, *more)
    printed = output / "printed"
    processes = start_ranks(argv, printed, ranks, prelude) if ranks > 1 else [start(argv, printed, prelude)]
    assert [end(process) for process in processes] == [status] * ranks, printed.read_text()
    return output / "run"


@pytest.fixture(scope="module")
def courses(demo_data, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("courses")
    return {
        "one": go(demo_data, folder / "one", 1, *FSDP),  # nothing to spread there
        "spread": go(demo_data, folder / "spread", 2, *FSDP),
    }


def course(run: Path) -> list[list[float]]:
    steps = [[row["loss"], row["grad_norm"]] for row in rows(run, "train")]
    return steps + [[row["val_loss"]] for row in rows(run, "val")]


def samples(run: Path) -> list[dict]:
    return [row["samples"] for row in rows(run, "samples")]


def assert_same_course(run: Path, other: Path) -> None:
    """Equal but for rounding, in every step, validation and weight."""
    for a, b in zip(course(run), course(other), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    mine, its = (safetensors.torch.load_file(path / LAST) for path in (run, other))
    assert [n for n in mine if n[:4] != "rng/"] == [n for n in its if n[:4] != "rng/"]
    for name in (name for name in its if name.startswith("model/")):
        torch.testing.assert_close(mine[name], its[name], rtol=1e-3, atol=1e-3)


def assert_same_bits(run: Path, other: Path) -> None:
    assert course(run) == course(other) and samples(run) == samples(other)
    mine, its = (safetensors.torch.load_file(path / LAST) for path in (run, other))
    assert mine.keys() == its.keys() and all(_same_bits(mine[name], its[name]) for name in its)


def stop_one_in_the_validation() -> None:
    evaluate = train.evaluate

    def evaluated(run):
        if train.devices.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(run)

    train.evaluate = evaluated


@pytest.fixture(scope="module")
def stopped(demo_data, tmp_path_factory) -> Path:
    """The output folder of a run that was spread and stopped before the first epoch's validation."""
    output = tmp_path_factory.mktemp("stopped")
    go(demo_data, output, 2, *FSDP, prelude=stop_one_in_the_validation, status=143)
    saved = checkpoint.load(output / "run" / LAST)
    assert (saved["step"], saved["epoch"], saved["step_in_epoch"]) == (3, 0, 3)
    return output


def test_it_is_the_course_of_one_process(courses):
    assert len(course(courses["spread"])) == 2 * 3 + 2
    assert_same_course(courses["spread"], courses["one"])
    assert samples(courses["spread"]) == samples(courses["one"]) != []
    assert "FSDP has nothing to spread over one process" in (courses["one"].parent / "printed").read_text()


@pytest.mark.long
def test_a_mean_instead_of_the_sum_of_gradients_is_noticed(demo_data, tmp_path, courses):
    """The control of the test above."""

    def mean() -> None:
        torch.distributed.fsdp.FSDPModule.set_gradient_divide_factor = lambda *_: None

    how = ("--num-epochs", "1", "--validation-score-images", "0")
    run = go(demo_data, tmp_path, 2, *FSDP, *how, prelude=mean)
    (loss, norm), expected = course(run)[0], course(courses["one"])[0]
    assert loss == pytest.approx(expected[0]) and norm == pytest.approx(expected[1] / 2, rel=1e-4)


def test_weights_gradients_and_moments_are_dealt_out(courses):
    ranks = [json.loads((courses["spread"].parent / f"sizes_{rank}.json").read_text()) for rank in range(2)]
    for name, (size, parts) in ranks[0].items():
        assert set(parts) == {"weight", "gradient", "exp_avg", "exp_avg_sq"}, name
        for slot, own in parts.items():
            other = ranks[1][name][1][slot]
            assert own + other == size and (own == other or name == "encoder.position"), (name, slot)  # one row
    whole = json.loads((courses["one"].parent / "sizes_0.json").read_text())
    assert whole.keys() == ranks[0].keys()
    assert all(own == size for size, parts in whole.values() for own in parts.values())


def test_a_resume_equals_the_uninterrupted_run(demo_data, tmp_path, courses, stopped):
    """It begins with the validation: FSDP has not seen a training step of this process then."""
    shutil.copytree(stopped / "run", tmp_path / "run")
    assert_same_bits(go(demo_data, tmp_path, 2, *FSDP), courses["spread"])


@pytest.mark.long
def test_its_checkpoint_goes_on_with_a_whole_model_and_captions(demo_data, tmp_path, courses, stopped):
    shutil.copytree(stopped / "run", tmp_path / "run")
    run = go(demo_data, tmp_path, 1, "--no-fsdp")
    assert_same_course(run, courses["one"])
    printed = (tmp_path / "printed").read_text()
    assert "FSDP: True -> False" in printed and "sums may round otherwise" in printed
    best = best_files(courses["spread"])[0]
    model, _ = load_model(checkpoint.load(best), torch.device("cpu"))
    assert model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 16, 32)


@pytest.mark.long
def test_with_a_loss_scale_an_overflow_of_one_process_is_everyones(demo_data, tmp_path):
    """The first process, which writes the scale, has to learn of a gradient of the second one's."""

    def overflowing() -> None:
        real, calls = step._clip_gradients, []

        def clip(run):
            calls.append(1)
            if devices.rank() == 1 and len(calls) == 2:
                run.optimizer.param_groups[0]["params"][0].grad.to_local().fill_(float("inf"))
            return real(run)

        step._clip_gradients = clip

    how = (*FSDP, "--precision", "fp16", "--num-epochs", "1", "--validation-score-images", "0")
    scales = []
    for name, prelude in (("plain", None), ("overflowing", overflowing)):
        run = go(demo_data, tmp_path / name, 2, *how, prelude=prelude)
        scales.append(checkpoint.load(run / LAST)["scaler_state_dict"]["scale"])
        assert (rows(run, "train")[1]["grad_norm"] is None) == (name == "overflowing")
        assert rows(run, "train")[2]["grad_norm"] is not None
    assert scales[1] == scales[0] / 2


@pytest.mark.long
def test_a_checkpoint_of_a_whole_model_goes_on_spread(demo_data, tmp_path, courses):
    shutil.copytree(courses["one"], tmp_path / "run")
    (first,) = (tmp_path / "run").glob("checkpoint_epoch_1_*")
    run = go(demo_data, tmp_path, 2, *FSDP, "--resume-checkpoint-path", str(first))
    assert_same_course(run, courses["one"])


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_frozen_tower_is_spread_too(demo_data, tmp_path, precision):
    """It encodes a CPU's pictures few at a time, and one process has more of them than the other."""

    def few() -> None:
        tell_sizes()
        _CPU_PATCHES = 1

    tower = save_tower(tmp_path / "vit")
    how = ["--encoder-model-name", str(tmp_path / "vit"), "--freeze-encoder", "--image-size", "none"]
    how += ["--no-cache-features", "--precision", precision, "--batch-size", "20", "--grad-accum-steps", "1"]
    one = go(demo_data, tmp_path / "one", 1, *how)
    how[how.index("20")] = "10"
    spread = go(demo_data, tmp_path / "spread", 2, *FSDP, *how, prelude=few)
    assert [row[0] for row in course(spread)] == pytest.approx([row[0] for row in course(one)], rel=1e-4)
    weights = checkpoint.load(spread / LAST)["model_state_dict"]
    for name, tensor in tower.state_dict().items():
        assert torch.equal(weights[f"encoder.tower.{name}"], tensor)


def test_the_average_of_weights_that_are_spread_is_that_of_one_process(demo_data, tmp_path):
    ema = ("--ema-decay", "0.3")
    one = go(demo_data, tmp_path / "one", 1, *ema)
    spread = go(demo_data, tmp_path / "spread", 2, *FSDP, *ema)
    assert_same_course(spread, one)  # validations are of the average
    mine, its = (checkpoint.load(run / LAST) for run in (spread, one))
    assert mine["averaged_steps"] == its["averaged_steps"] == 6
    for name, tensor in its["raw_state_dict"].items():
        torch.testing.assert_close(mine["raw_state_dict"][name], tensor, rtol=1e-3, atol=1e-3)
        assert not torch.equal(mine["model_state_dict"][name], mine["raw_state_dict"][name])  # the control


@pytest.mark.long
@pytest.mark.parametrize("how", [FSDP, ()], ids=["spread", "whole"])
def test_two_processes_that_are_stopped_keep_their_average_to_the_bit(demo_data, tmp_path, how):
    ema = (*how, "--ema-decay", "0.3")
    whole = go(demo_data, tmp_path / "whole", 2, *ema)
    go(demo_data, tmp_path / "stopped", 2, *ema, prelude=stop_one_in_the_validation, status=143)
    assert_same_bits(go(demo_data, tmp_path / "stopped", 2, *ema), whole)
