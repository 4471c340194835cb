"""Weights and optimizer spread over two processes: the same training, the same files, and really spread."""

import json
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.fsdp  # here, once, and not in every forked process

import checkpoint
import runs
import train
from tests.conftest import TINY_MODEL
from tests.processes import end, rows, start, start_ranks, steps_done

# 11 pictures, 4 a step on all processes together: the last step and the validation give one of two processes a pass
# more than the other.
PICTURES = 11
FSDP = ("--fsdp",)


def arguments(data: Path, output: Path, ranks: int, *more: str) -> list[str]:
    places = ["--data-dir", str(data), "--output-dir", str(output), "--data-cutoff", str(PICTURES)]
    per_process = ["--batch-size", "5", "--grad-accum-steps", str(4 // ranks)]
    how = ["--decoder-layers", "2", "--vit-layers", "2", "--num-epochs", "2", "--run-name", "run"]
    return [*places, *TINY_MODEL.split(), *per_process, *how, "--resume-checkpoint-path", "last", *more]


def tell_sizes() -> None:
    """At the end every process writes (all, its own) values of each weight, gradient and moment beside the run."""
    real = train.fit

    def fit(run, progress):
        real(run, progress)
        found = {}
        for group in run.optimizer.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                kept = {"weight": p, "gradient": p.grad, **run.optimizer.state[p]}
                found[name] = {
                    slot: (t.numel(), getattr(t, "to_local", lambda t=t: t)().numel())
                    for slot, t in kept.items() if slot != "step"
                }  # fmt: skip
        path = run.folder.parent / f"sizes_{train.distributed.rank()}.json"
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
        "one": go(demo_data, folder / "one", 1),
        "two": go(demo_data, folder / "two", 2),
        "spread": go(demo_data, folder / "spread", 2, *FSDP),
    }


def course(run: Path) -> list[list[float]]:
    steps = [[row["loss"], row["grad_norm"], row["captions_per_s"] > 0] for row in rows(run, "train")]
    return steps + [[row["val_loss"]] for row in rows(run, "val")]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {n: t for n, t in safetensors.torch.load_file(path).items() if not n.startswith("rng/")}


def test_it_is_the_course_of_one_process_and_of_two_with_whole_models(courses):
    spread = course(courses["spread"])
    assert len(spread) == 2 * 3 + 2
    for other in ("one", "two"):
        torch.testing.assert_close(torch.tensor(spread[:6]), torch.tensor(course(courses[other])[:6]), rtol=2e-3, atol=0)
        assert spread[6:] == [pytest.approx(row, rel=1e-3) for row in course(courses[other])[6:]]
        mine, its = (tensors(run / runs.LAST) for run in (courses["spread"], courses[other]))
        for name, tensor in its.items():
            torch.testing.assert_close(mine[name], tensor, rtol=2e-2, atol=2e-3, msg=name)
        assert list(mine) == list(its)
