"""Signals, full disks, dead workers, full memory: what is saved, what is said, and how the process ends."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from nanocaption.base import tensors
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST, PREVIOUS
from nanocaption.train import losses
from nanocaption.train.losses import caption_loss
from nanocaption.train.step import HalfUpdate, take_update
from tests.conftest import ROOT, TINY_RUN
from tests.processes import command, end, rows, start, steps_done, wait_for

QUICK = f"{TINY_RUN} --validation-score-images 0 --checkpoint-every-minutes 0"


@pytest.fixture
def argv(flags) -> list[str]:
    return [*flags, *QUICK.split()]


def printed(tmp_path: Path) -> str:
    path = tmp_path / "printed"
    return path.read_text() if path.exists() else ""


def saved(tmp_path: Path) -> dict:
    return checkpoint.load(tmp_path / "runs" / "run" / LAST)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs_on(pid: int) -> bool:
    """Whether a process is there and not just waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def at_step(number: int, act) -> None:
    """In this process: call `act` when the row of step `number` is written."""
    write = train.write_row

    def written(file, row, *rest):
        write(file, row, *rest)
        if row["type"] == "train" and row["step"] == number:
            act()

    train.write_row = written


def in_the_validation(act) -> None:
    evaluate = train.evaluate

    def evaluated(run):
        act()
        return evaluate(run)

    train.evaluate = evaluated


# --- signals ---


@pytest.mark.parametrize(
    "number, group, status",
    [(signal.SIGTERM, True, 143), (signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)],
)
def test_a_signal_with_workers_saves_and_leaves_with_its_status(argv, tmp_path, number, group, status):
    """To the main process, or to the whole group as a terminal and a cluster's scheduler send it."""
    process = start([*argv, "--num-workers", "2", "--num-epochs", "200"], tmp_path / "printed")
    wait_for(lambda: steps_done(tmp_path / "runs" / "run") >= 2, process)
    workers = children(process.pid)
    (os.killpg if group else os.kill)(process.pid, number)
    assert end(process) == status, printed(tmp_path)
    run = tmp_path / "runs" / "run"
    assert saved(tmp_path)["step"] == steps_done(run) >= 2
    assert rows(run, "stop")[0]["reason"] == f"stopped by {number.name}"
    assert f"Go on with: python train.py --resume-checkpoint-path {run / LAST}" in printed(tmp_path)
    assert "Traceback" not in printed(tmp_path)
    assert workers and not any(map(runs_on, workers))


def test_a_second_ctrl_c_leaves_at_once_without_orphans(argv, tmp_path):
    """The step after the first one never ends."""
    seen = tmp_path / "workers"

    def hang():
        def stuck():
            seen.write_text(json.dumps(children(os.getpid())))
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(100)

        at_step(3, stuck)

    process = start([*argv, "--num-workers", "1", "--checkpoint-every-steps", "1"], tmp_path / "printed", hang)
    wait_for(lambda: "SIGINT: saving" in printed(tmp_path), process)
    os.kill(process.pid, signal.SIGINT)
    assert end(process) == 130
    workers = json.loads(seen.read_text())
    assert workers
    while any(map(runs_on, workers)):  # the kernel takes a moment
        time.sleep(0.01)
    assert saved(tmp_path)["step"] >= 1


def test_sigusr1_saves_and_goes_on(argv, tmp_path):
    found = tmp_path / "found"

    def prelude():
        at_step(2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        at_step(6, lambda: found.write_text(str(saved(tmp_path)["step"])))

    assert end(start(argv, tmp_path / "printed", prelude)) == 0, printed(tmp_path)
    assert found.read_text() == "2"
    assert saved(tmp_path)["epoch"] == 2


def test_sigterm_in_the_captioning_of_the_validation_is_served_there(argv, tmp_path):
    def prelude():
        caption_batches = train.caption_batches

        def slow(*arguments, **how):
            os.kill(os.getpid(), signal.SIGTERM)
            for captions in caption_batches(*arguments, **how):
                time.sleep(0.01)
                yield captions
                raise AssertionError("it went on to the next batch")

        train.caption_batches = slow

    argv += ["--validation-score-images", "20", "--eval-batch-size", "4"]
    assert end(start(argv, tmp_path / "printed", prelude)) == 143, printed(tmp_path)
    state = saved(tmp_path)
    assert (state["step"], state["epoch"], state["step_in_epoch"]) == (6, 0, 6)


def test_sigterm_before_the_training_ends_at_once_and_leaves_nothing(argv, tmp_path):
    def prelude():
        def forever(settings, compare):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(100)

        train.prepare.__globals__["prepare_from"] = forever

    assert end(start(argv, tmp_path / "printed", prelude)) == 143
    assert not (tmp_path / "runs" / "run").exists()


def test_sigterm_while_a_checkpoint_is_written_waits_for_it(argv, tmp_path):
    def prelude():
        real = tensors._compare

        def slow(*arguments):
            if steps_done(tmp_path / "runs" / "run"):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)
            real(*arguments)

        tensors._compare = slow

    argv += ["--checkpoint-every-steps", "2"]
    assert end(start(argv, tmp_path / "printed", prelude)) == 143, printed(tmp_path)
    run = tmp_path / "runs" / "run"
    assert saved(tmp_path)["step"] == steps_done(run)
    assert not list(run.glob(".*.tmp"))


@pytest.mark.parametrize("anew", [False, pytest.param(True, marks=pytest.mark.long)], ids=["forked", "anew"])
def test_an_error_with_workers_ends_the_program(argv, tmp_path, demo_data, anew):
    """The command line: the traceback keeps the loader, its processes ignore SIGTERM, and the exit waits for them."""
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    (data / "demo" / "images" / "scene_00020.jpg").write_bytes(b"")
    argv = [*argv, "--data-dir", str(data), "--num-workers", "2", "--no-cache-images"]
    if anew:
        words = [sys.executable, str(ROOT / "train.py"), *argv]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
        code, told = done.returncode, done.stderr
    else:
        code, _, told = command(tmp_path, "train.py", *argv)
    assert code == 1
    assert "scene_00020.jpg cannot be read" in told.splitlines()[-1] and "Traceback" not in told


# --- the disk ---


def test_a_disk_that_is_full_for_a_while_costs_no_step(argv, tmp_path, monkeypatch, capsys):
    real, calls = checkpoint.save, []

    def full(path, state):
        calls.append(state["step"])
        if state["step"] in (2, 4):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, state)

    monkeypatch.setattr(checkpoint, "save", full)
    train.main([*argv, "--checkpoint-every-steps", "2"])
    run = tmp_path / "runs" / "run"
    failed = rows(run, "save_failed")
    assert len(failed) == 2 and all("No space left on device" in row["problem"] for row in failed)
    assert all(" MB free" in row["problem"] and str(run / LAST) in row["problem"] for row in failed)
    assert capsys.readouterr().err.count("tries again") == 2
    assert 6 in calls and saved(tmp_path)["epoch"] == 2
    assert [row["step"] for row in rows(run, "train")] == list(range(1, 13))


def test_a_disk_that_stays_full_keeps_the_old_file_and_ends_with_an_error(argv, tmp_path):
    """A limit on the size of files: the first checkpoint, without moments, fits below it."""

    def prelude():
        at_step(1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)))

    assert end(start([*argv, "--checkpoint-every-steps", "4"], tmp_path / "printed", prelude)) == 1
    text = printed(tmp_path)
    assert "could not be written" in text.splitlines()[-1] and "Traceback" not in text
    assert "Training goes on and tries again" in text
    run = tmp_path / "runs" / "run"
    assert saved(tmp_path)["step"] == 0
    assert {path.name for path in run.iterdir()} == {"last.safetensors", "log.jsonl", ".lock"}
    assert steps_done(run) == 12
    assert end(start([*argv, "--resume-checkpoint-path", "last"], tmp_path / "printed")) == 0
    assert saved(tmp_path)["epoch"] == 2


def test_a_folder_that_cannot_be_written_is_told_before_data_and_model(argv, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "prepare", None)  # would fail if it were called
    (tmp_path / "file").touch()
    for place in ("/proc/nowhere", str(tmp_path / "file")):
        with pytest.raises(SystemExit, match=f"Cannot write in {place}"):
            train.main([*argv, "--output-dir", place])


def test_a_full_disk_at_the_first_checkpoint_ends_before_training(argv, tmp_path, monkeypatch):
    monkeypatch.setattr("nanocaption.runs.folder.free_bytes", lambda folder: 1000)
    with pytest.raises(SystemExit, match="0.00 GB free; checkpoints of"):
        train.main(argv)
    assert not (tmp_path / "runs" / "run" / "log.jsonl").exists()


# --- the machine ---


@pytest.mark.parametrize("where", ["training", "validation"])
def test_out_of_memory_says_the_batch_size_and_saves_the_last_whole_step(argv, tmp_path, monkeypatch, where):
    real = caption_loss

    def full(model, batch, smoothing=0.0):
        if steps_done(tmp_path / "runs" / "run") == 6 and model.training == (where == "training"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return real(model, batch, smoothing)

    monkeypatch.setattr(losses, "caption_loss", full)
    with pytest.raises(SystemExit, match="out of memory with BATCH_SIZE = 20 captions .* double GRAD_ACCUM_STEPS"):
        train.main(argv)
    state = saved(tmp_path)
    assert (state["step"], state["epoch"]) == (6, 1 if where == "training" else 0)
    monkeypatch.setattr(losses, "caption_loss", real)
    train.main([*argv, "--resume-checkpoint-path", "last", "--batch-size", "10", "--grad-accum-steps", "2"])
    assert saved(tmp_path)["epoch"] == 2


def test_an_update_that_fails_in_the_middle_is_not_saved(argv, tmp_path, monkeypatch):
    def fail(optimizer, scaler, skip):
        raise HalfUpdate("the optimizer step failed: device lost")

    monkeypatch.setattr(train, "take_update", fail)
    with pytest.raises(HalfUpdate):
        train.main(argv)
    assert saved(tmp_path)["step"] == 0


def test_an_error_in_the_users_code_saves_the_steps_before_it(argv, tmp_path, monkeypatch):
    real = caption_loss

    def broken(model, batch, smoothing=0.0):
        if steps_done(tmp_path / "runs" / "run") == 4:
            raise ZeroDivisionError("of the user")
        return real(model, batch, smoothing)

    monkeypatch.setattr(losses, "caption_loss", broken)
    with pytest.raises(ZeroDivisionError):
        train.main(argv)
    assert saved(tmp_path)["step"] == 4
    assert rows(tmp_path / "runs" / "run", "stop")[0]["reason"] == "of the user"


def test_a_dead_worker_is_one_line_about_memory_and_the_steps_are_kept(argv, tmp_path):
    process = start([*argv, "--num-workers", "1", "--num-epochs", "200"], tmp_path / "printed")
    wait_for(lambda: steps_done(tmp_path / "runs" / "run") >= 2 and bool(children(process.pid)), process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert end(process) == 1
    text = printed(tmp_path)
    assert "Traceback" not in text and "lower NUM_WORKERS" in text and "/dev/shm" in text
    assert saved(tmp_path)["step"] == steps_done(tmp_path / "runs" / "run")


def test_a_picture_that_cannot_be_read_is_one_line_with_its_path(argv, tmp_path, demo_data):
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    (data / "demo" / "images" / "scene_00003.jpg").write_bytes(b"<html>")
    argv = [*argv, "--data-dir", str(data), "--no-cache-images"]
    with pytest.raises(ValueError, match="^The picture .*scene_00003.jpg cannot be read: .*") as error:
        train.main(argv)
    assert "\n" not in str(error.value)
    assert saved(tmp_path)["step"] == steps_done(tmp_path / "runs" / "run")


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(argv, tmp_path, monkeypatch):
    """An update that overflows: the gradients were fine."""
    real, calls = take_update, []

    def overflow(optimizer, scaler, skip):
        real(optimizer, scaler, skip)
        calls.append(1)
        if len(calls) == 3:
            optimizer.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(train, "take_update", overflow)
    with pytest.raises(SystemExit, match="MAX_NONFINITE_STEPS"):
        train.main([*argv, "--checkpoint-every-steps", "1"])
    run = tmp_path / "runs" / "run"
    assert saved(tmp_path)["step"] == 2
    assert "not finite" in rows(run, "save_failed")[0]["problem"]
    state = saved(tmp_path)
    next(iter(state["model_state_dict"].values())).fill_(float("nan"))
    checkpoint.save(run / LAST, state)
    with pytest.raises(ValueError, match="The checkpoint holds values that are not finite"):
        train.main([*argv, "--resume-checkpoint-path", str(run / LAST)])


# --- what a resume sees ---


def test_fewer_epochs_than_done_is_finished_and_changes_nothing(argv, tiny_run, capsys):
    before = {path.name: path.read_bytes() for path in tiny_run.iterdir() if path.suffix == ".safetensors"}
    train.main([*argv, "--resume-checkpoint-path", "last", "--num-epochs", "1"])
    assert "Already finished: 2 of NUM_EPOCHS = 1" in capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in tiny_run.iterdir() if path.suffix == ".safetensors"}


def test_another_machine_is_told_by_what_differs(argv, tiny_run, capsys):
    state = checkpoint.load(tiny_run / LAST)
    state["environment"] |= {"torch": "2.0.0", "device": "NVIDIA H200"}
    checkpoint.save(tiny_run / LAST, state)
    train.main([*argv, "--resume-checkpoint-path", "last", "--num-epochs", "3"])
    text = capsys.readouterr().out
    assert f"torch: 2.0.0 -> {torch.__version__}: equality to the uninterrupted run is not promised" in text
    assert "device: NVIDIA H200 -> cpu" in text and "python:" not in text


def test_a_run_that_stops_early_on_a_full_disk_tries_again_and_tells(argv, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda run: 1.0)
    real = checkpoint.save

    def full(path, state):
        if state["epoch"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, state)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(SystemExit, match="could not be written"):
        train.main([*argv, "--num-epochs", "9", "--early-stopping-patience", "1"])


def test_the_error_itself_is_told_where_it_cannot_be_saved_after_it(argv, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("of the user")

    monkeypatch.setattr(losses, "caption_loss", fail)
    real = checkpoint.save
    calls = []

    def full(path, state):
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, state)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(ZeroDivisionError):
        train.main(argv)
    assert "could not be written" in capsys.readouterr().out


def test_a_finished_run_without_its_last_gets_one_again(argv, tiny_run):
    (tiny_run / LAST).unlink()
    (best,) = tiny_run.glob("checkpoint_epoch_2_*")
    train.main([*argv, "--resume-checkpoint-path", str(best)])
    assert checkpoint.load(tiny_run / LAST)["epoch"] == 2


def test_a_fresh_start_in_a_run_without_a_whole_file_sets_the_damaged_ones_aside(argv, tiny_run):
    for path in tiny_run.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in tiny_run.glob("*.safetensors")}
    train.main([*argv, "--resume-checkpoint-path", "last", "--num-epochs", "1"])
    assert {name: (tiny_run / f"replaced_{name}").read_bytes() for name in before} == before
    assert [row["step"] for row in rows(tiny_run, "train")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "change",
    [{"step": 11}, {"step_in_epoch": 1}, {"epoch": 1}, {"step": 13, "step_in_epoch": 1, "epoch": 1}],
)
def test_a_position_that_this_data_does_not_have_is_refused(argv, tiny_run, change):
    state = checkpoint.load(tiny_run / LAST) | change
    checkpoint.save(tiny_run / LAST, state)
    with pytest.raises(SystemExit, match="that cannot be"):
        train.main([*argv, "--resume-checkpoint-path", str(tiny_run / LAST)])


def test_weights_alone_are_told_from_a_checkpoint(argv, tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match="not a nanoCaption checkpoint"):
        train.main([*argv, "--resume-checkpoint-path", str(tmp_path / "model.safetensors")])


def test_a_resume_whose_file_is_then_damaged_goes_on(argv, tiny_run, monkeypatch):
    """What was loaded does not depend on the file any more."""
    other = tiny_run.with_name("other")
    shutil.copytree(tiny_run, other)
    (epoch_1,) = other.glob("checkpoint_epoch_1_*")
    (other / LAST).unlink()
    (other / PREVIOUS).unlink()
    restore = train.prepare.__globals__["restore"]

    def restored(*arguments):
        progress = restore(*arguments)
        os.truncate(epoch_1, 100)
        return progress

    monkeypatch.setitem(train.prepare.__globals__, "restore", restored)
    train.main([*argv, "--resume-checkpoint-path", str(epoch_1)])
    a, b = (checkpoint.load(run / LAST)["model_state_dict"] for run in (tiny_run, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_deterministic_mode_trains_and_keeps_the_threads_of_the_run(argv, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    try:
        train.main([*argv, "--deterministic", "--num-epochs", "1"])
        assert torch.are_deterministic_algorithms_enabled() and seen == []
        train.main([*argv, "--resume-checkpoint-path", "last"])
        assert seen == [saved(tmp_path)["environment"]["threads"]]
    finally:
        torch.use_deterministic_algorithms(False)
