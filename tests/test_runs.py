"""The folders of runs: numbers, the lock, what a resume takes over; and the log, torn or whole, with W&B or without."""

import json
import os
import signal
import sys
import types

import pytest
import torch

import checkpoint
import config
import runlog
import runs


def settings(tmp_path, *flags: str):
    return config.load(["--output-dir", str(tmp_path), *flags])


# --- folders ---


def test_a_new_run_takes_the_number_after_the_highest(tmp_path):
    assert runs.new_folder(settings(tmp_path)).name == "demo-001"
    for name in ("demo-001", "demo-007", "demo-x", "other-030", "demo-2-090"):
        (tmp_path / name).mkdir()
    assert runs.new_folder(settings(tmp_path)).name == "demo-008"
    assert runs.new_folder(settings(tmp_path, "--dataset", "other")).name == "other-031"
    (tmp_path / "demo-999").mkdir()
    assert runs.new_folder(settings(tmp_path)) == tmp_path / "demo-1000"


def test_a_name_of_ones_own_must_be_free(tmp_path):
    named = settings(tmp_path, "--run-name", "mine")
    assert runs.new_folder(named) == tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    assert runs.new_folder(named) == tmp_path / "mine"  # an empty folder holds no run
    (tmp_path / "mine" / "log.jsonl").touch()
    with pytest.raises(SystemExit, match="RUN_NAME = 'mine': .* holds a run"):
        runs.new_folder(named)


def touch(path, seconds):
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))


def test_newest_goes_by_the_time_of_the_last_checkpoint(tmp_path):
    assert runs.newest(tmp_path / "nowhere") is None
    touch(tmp_path / "a" / "last.safetensors", 200)
    touch(tmp_path / "b" / "last.safetensors", 100)
    touch(tmp_path / "c" / "log.jsonl", 300)
    assert runs.newest(tmp_path) == tmp_path / "a"
    touch(tmp_path / "b" / "last.safetensors", 250)
    assert runs.newest(tmp_path) == tmp_path / "b"


def test_a_resume_path_that_is_not_there_is_never_a_fresh_start(tmp_path):
    for given in ("last", str(tmp_path / "no.safetensors"), str(tmp_path)):
        with pytest.raises(SystemExit, match="RESUME_CHECKPOINT_PATH = "):
            runs.resume_path(settings(tmp_path, "--resume-checkpoint-path", given))
    touch(tmp_path / "a" / "last.safetensors", 200)
    assert runs.resume_path(settings(tmp_path, "--resume-checkpoint-path", "last")).parent == tmp_path / "a"
    path = tmp_path / "a" / "last.safetensors"
    assert runs.resume_path(settings(tmp_path, "--resume-checkpoint-path", str(path))) == path


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    runs.check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="Cannot write in .*file.*Set OUTPUT_DIR"):
        runs.check_writable(tmp_path / "file" / "run")


# --- the lock ---


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").touch()
    return tmp_path / "run"


def test_a_second_holder_is_refused_and_told_who_holds_it(run):
    with runs.lock(run):
        with pytest.raises(SystemExit, match=f"in use by process {os.getpid()} on "), runs.lock(run):
            raise AssertionError("held twice")
        with pytest.raises(SystemExit, match=f"process {os.getpid()} "), runs.lock(run):
            raise AssertionError("the refused one wiped the holder's name")
    with runs.lock(run):
        pass


def test_a_killed_process_leaves_no_lock(run):
    ready, waiting = os.pipe()
    child = os.fork()
    if child == 0:
        with runs.lock(run):
            os.write(waiting, b"x")
            signal.pause()  # until it is killed
    os.read(ready, 1)
    try:
        with pytest.raises(SystemExit, match=f"process {child} on "), runs.lock(run):
            raise AssertionError("held by two processes")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(waiting)
    with runs.lock(run):
        assert f"process {os.getpid()} on" in (run / ".lock").read_text()
        assert str(child) not in (run / ".lock").read_text().split()


def test_an_error_inside_frees_the_lock(run):
    with pytest.raises(KeyError), runs.lock(run):
        raise KeyError
    with runs.lock(run):
        pass


def test_a_run_that_made_nothing_leaves_no_folder_and_any_other_stays(tmp_path, run):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", run):
        with pytest.raises(KeyError), runs.lock(folder):
            raise KeyError
    assert not (tmp_path / "empty").exists()
    assert (run / "log.jsonl").exists()


# --- settings of a resumed run ---


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a run with some flags: --batch-size 16 --learning-rate 0.002 --num-epochs 3 ..."""
    flags = ["--batch-size", "16", "--learning-rate", "0.002", "--num-epochs", "3", "--adam-betas", "0.8,0.9"]
    state = {
        "epoch": 1, "step": 10, "tokenizer": "{}", "model_state_dict": {"w": torch.ones(2)},
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "config": config.as_dict(settings(tmp_path, *flags)), "config_constants": config.CONSTANTS,
    }  # fmt: skip
    checkpoint.save(tmp_path / "last.safetensors", state)
    return tmp_path / "last.safetensors"


def test_a_resume_keeps_the_runs_settings_without_its_flags(trained):
    saved, resumed = runs.load_for_resume(trained, ["--resume-checkpoint-path", str(trained)])
    assert (resumed.BATCH_SIZE, resumed.LEARNING_RATE, resumed.NUM_EPOCHS) == (16, 0.002, 3)
    assert resumed.ADAM_BETAS == (0.8, 0.9) and str(trained.parent) == resumed.OUTPUT_DIR
    assert str(trained) == resumed.RESUME_CHECKPOINT_PATH
    assert saved["epoch"] == 1


def test_what_does_not_touch_the_course_of_training_may_change(trained, monkeypatch):
    monkeypatch.setitem(config.CONSTANTS, "KEEP_BEST", 9)  # edited in config.py since
    _, resumed = runs.load_for_resume(trained, ["--num-epochs", "7", "--num-workers", "0", "--device", "cpu"])
    assert (resumed.NUM_EPOCHS, resumed.NUM_WORKERS, resumed.DEVICE, resumed.KEEP_BEST) == (7, 0, "cpu", 9)
    assert resumed.BATCH_SIZE == 16


def test_what_would_make_it_another_run_is_refused_with_old_and_new(trained, monkeypatch, tmp_path):
    monkeypatch.setitem(config.CONSTANTS, "BATCH_SIZE", 40)  # edited in config.py since
    recipe = tmp_path / "recipe.py"
    recipe.write_text("DECODER_LAYERS = 5\n")
    with pytest.raises(SystemExit) as caught:
        runs.load_for_resume(trained, [str(recipe), "--learning-rate", "0.001", "--num-epochs", "9"])
    heading, *lines = str(caught.value).splitlines()
    assert "start a fresh run" in heading
    assert sorted(lines) == [
        "  - BATCH_SIZE: 16 -> 40",
        f"  - DECODER_LAYERS: {config.CONSTANTS['DECODER_LAYERS']} -> 5",
        "  - LEARNING_RATE: 0.002 -> 0.001",
    ]


def test_the_runs_own_flags_may_be_given_again(trained):
    runs.load_for_resume(trained, ["--learning-rate", "2e-3", "--adam-betas", "0.8,0.9"])


def test_a_damaged_checkpoint_cannot_be_resumed(trained):
    trained.write_bytes(trained.read_bytes()[:-5])
    with pytest.raises(SystemExit, match=f"Cannot resume: {trained}"):
        runs.load_for_resume(trained, [])


# --- the log ---


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("torn", [b"", b'{"type": "tra', b'{"a": "\xc3', b"{}", b"\n"])
def test_a_torn_last_line_is_cut_and_nothing_else(tmp_path, torn):
    path = tmp_path / "log.jsonl"
    with runlog.open_log(path) as log:
        runlog.write(log, {"type": "train", "step": 1})
        runlog.write(log, {"type": "samples", "text": "naïve 🐕\n"})
    with open(path, "ab") as file:
        file.write(torn)
    with runlog.open_log(path) as log:
        runlog.write(log, {"type": "train", "step": 2})
    found = [row for row in rows_or_blank(path) if row]
    assert found == [{"type": "train", "step": 1}, {"type": "samples", "text": "naïve 🐕\n"},
                     {"type": "train", "step": 2}]  # fmt: skip


def rows_or_blank(path):
    return [json.loads(line) if line else None for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_log_of_one_torn_line_begins_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"type"')
    with runlog.open_log(path) as log:
        runlog.write(log, {"step": 1})
    assert rows(path) == [{"step": 1}]


def test_every_row_is_on_the_disk_at_once(tmp_path):
    with runlog.open_log(tmp_path / "log.jsonl") as log:
        runlog.write(log, {"step": 1})
        assert rows(tmp_path / "log.jsonl") == [{"step": 1}]


def test_without_a_log_nothing_is_written_and_nothing_fails():
    runlog.write(None, {"type": "train", "step": 1})


# --- W&B ---


class FakeRun:
    url, dir, id = "https://example.org/run", "x", "abc"

    def __init__(self):
        self.rows, self.metrics = [], []

    def define_metric(self, name, **arguments):
        self.metrics.append((name, arguments))

    def log(self, row):
        self.rows.append(row)


def fake_wandb(monkeypatch, init):
    module = types.ModuleType("wandb")
    module.init, module.Settings = init, lambda **arguments: arguments
    monkeypatch.setitem(sys.modules, "wandb", module)


def start():
    return runlog.start_wandb({"SEED": 1}, "project", None, "name", None)


@pytest.mark.parametrize("error", [RuntimeError("no key\nsecond line"), TimeoutError(), OSError("offline")])
def test_wandb_that_cannot_start_is_one_line_and_no_run(monkeypatch, capsys, error):
    def fail(**_):
        raise error

    fake_wandb(monkeypatch, fail)
    assert start() is None
    (line,) = capsys.readouterr().out.splitlines()
    assert "W&B could not be started" in line and "log.jsonl" in line


def test_wandb_that_is_not_installed_is_one_line_and_no_run(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert start() is None
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_numbers_go_to_wandb_by_global_step_and_texts_do_not(monkeypatch, tmp_path):
    run, given = FakeRun(), {}
    fake_wandb(monkeypatch, lambda **arguments: given.update(arguments) or run)
    assert start() is run
    assert given["config"] == {"SEED": 1} and given["id"] is None and given["resume"] == "allow"
    assert ("*", {"step_metric": "global_step"}) in run.metrics
    with runlog.open_log(tmp_path / "log.jsonl") as log:
        runlog.write(log, {"type": "train", "step": 4, "loss": 2.5, "note": "text"}, run)
    assert run.rows == [{"train/loss": 2.5, "global_step": 4}]


def test_trouble_with_wandb_is_told_once_and_the_log_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runlog, "_warned", set())
    run = FakeRun()
    run.log = lambda row: (_ for _ in ()).throw(ConnectionError("gone"))
    with runlog.open_log(tmp_path / "log.jsonl") as log:
        for step in range(3):
            runlog.write(log, {"type": "train", "step": step}, run)
    assert len(rows(tmp_path / "log.jsonl")) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
