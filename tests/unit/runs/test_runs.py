"""The folders of runs: numbers, the lock, what a resume takes over."""

import errno
import os
import shutil
import signal

import pytest
import torch

from nanocaption.base.settings import RESUME_SETTINGS, declared_settings, load_settings
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import (
    best_name,
    best_of_newest,
    check_space,
    check_still_newest,
    check_writable,
    lock,
    new_folder,
    newest_run,
    newest_whole,
    remove_strays,
    save_checkpoint,
    set_aside,
)
from nanocaption.runs.resume import Start, find_resume
from nanocaption.use.load import find_checkpoint

CONSTANTS = declared_settings().constants  # cached: changed here, changed for load_settings


def settings(tmp_path, *flags: str):
    return load_settings(["--output-dir", str(tmp_path), *flags])


# --- folders ---


def test_a_new_run_takes_the_number_after_the_highest(tmp_path):
    assert new_folder(settings(tmp_path)).name == "demo-001"
    assert (tmp_path / "demo-001").is_dir()  # taken at once: another start gets another one
    for name in ("demo-007", "demo-x", "other-030", "demo-2-090"):
        (tmp_path / name).mkdir()
    assert new_folder(settings(tmp_path)).name == "demo-008"
    assert new_folder(settings(tmp_path, "--dataset", "other")).name == "other-031"
    (tmp_path / "demo-999").mkdir()
    assert new_folder(settings(tmp_path)) == tmp_path / "demo-1000"
    odd = settings(tmp_path, "--dataset", "set[1]*")
    assert [new_folder(odd).name for _ in range(2)] == ["set[1]*-001", "set[1]*-002"]


def test_a_name_of_ones_own_must_be_free(tmp_path):
    named = settings(tmp_path, "--run-name", "mine")
    assert new_folder(named) == tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".lock").touch()
    assert new_folder(named) == tmp_path / "mine"  # killed before it had made anything: no run
    (tmp_path / "mine" / "log.jsonl").touch()
    with pytest.raises(SystemExit, match="RUN_NAME = 'mine': .* holds a run"):
        new_folder(named)


def small_state(step: int = 1, epoch: int = 0, saved_at: float = 0.0, **more) -> dict:
    return {
        "epoch": epoch, "step": step, "saved_at": saved_at, "tokenizer": "{}", "best_val_loss": 2.0,
        "model_state_dict": {"w": torch.full((2,), float(step))},
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "config": dict(load_settings([]).values), "config_constants": CONSTANTS, **more,
    }  # fmt: skip


def put(path, **state):
    path.parent.mkdir(exist_ok=True)
    checkpoint.save(path, small_state(**state))
    return path


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_newest_goes_by_the_checkpoints_own_clock(tmp_path):
    assert newest_run(tmp_path / "nowhere") is None
    put(tmp_path / "a" / "last.safetensors", saved_at=200)
    os.utime(put(tmp_path / "b" / "last.safetensors", saved_at=100), (9e9, 9e9))  # copied later
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "log.jsonl").touch()
    assert newest_run(tmp_path) == tmp_path / "a"
    put(tmp_path / "b" / "previous.safetensors", saved_at=300)
    assert newest_run(tmp_path) == tmp_path / "b"


def test_a_run_that_has_just_begun_is_not_what_evaluate_takes(tmp_path):
    assert best_of_newest(tmp_path) is None
    only = put(tmp_path / "a" / "last.safetensors", saved_at=100)
    assert best_of_newest(tmp_path) == only
    best = put(tmp_path / "a" / best_name(1, 2.0), saved_at=90)
    put(tmp_path / "b" / "last.safetensors", saved_at=200, step=0)
    assert best_of_newest(tmp_path) == best
    with pytest.warns(UserWarning, match=r"b saved later, but has had no validation yet: taking .*/a/checkpoint"):
        assert find_checkpoint(None, str(tmp_path)) == best


def find(tmp_path, given: str, *more: str):
    argv = ["--output-dir", str(tmp_path), "--resume-checkpoint-path", given, *more]
    start = find_resume(load_settings(argv))
    return start, [note for note in start.notes if not note.startswith("changed since: OUTPUT_DIR")]


def test_a_path_that_is_not_there_or_not_whole_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="RESUME_CHECKPOINT_PATH = .*no such file"):
        find(tmp_path, str(tmp_path / "no.safetensors"))
    path = put(tmp_path / "a" / "last.safetensors")
    assert find(tmp_path, str(path))[0].path == path
    damage(path)
    with pytest.raises(SystemExit, match=f"Cannot resume: {path} is damaged"):
        find(tmp_path, str(path))


def test_last_without_any_checkpoint_is_a_fresh_start_said_loudly(tmp_path):
    for more in ([], ["--run-name", "mine"]):
        resume, notes = find(tmp_path, "last", *more)
        assert resume.path is resume.state is None and "THIS IS A FRESH START" in notes[-1]


def test_last_is_the_furthest_whole_file_by_content_and_says_what_it_skipped(tmp_path):
    run = tmp_path / "a"
    last = put(run / "last.safetensors", step=5, saved_at=5)
    best = put(run / best_name(1, 2.0), step=7, epoch=1, saved_at=1)  # killed before `last` took its name
    put(run / "previous.safetensors", step=4, saved_at=9)
    os.utime(run / "previous.safetensors", (9e9, 9e9))
    (run / ".last.safetensors.77.tmp").write_bytes(best.read_bytes())  # never a candidate
    (run / "notes.safetensors").write_bytes(b"x")
    resume, notes = find(tmp_path, "last")
    assert (resume.path, resume.state["step"], notes) == (best, 7, [])
    damage(best)
    resume, notes = find(tmp_path, "last")
    assert resume.path == last
    (note,) = notes
    assert str(best) in note and "digest" in note
    last.write_bytes(b"")
    resume, notes = find(tmp_path, "last")
    assert resume.path.name == "previous.safetensors" and len(notes) == 2
    (run / "previous.safetensors").write_bytes(bytes(1000))
    resume, notes = find(tmp_path, "last")
    assert resume.path is None and len(notes) == 4 and "THIS IS A FRESH START" in notes[-1]


def test_a_run_of_a_newer_program_is_neither_skipped_nor_replaced(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "WITHOUT_TOWER", 9)
        path = put(tmp_path / "a" / "last.safetensors", written_by="nanoCaption 9")
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="written by nanoCaption 9 in format version 9"):
        find(tmp_path, "last", "--run-name", "a")
    assert path.read_bytes() == before


def test_a_copy_of_the_newest_run_is_not_taken_for_it(tmp_path):
    put(tmp_path / "a" / "last.safetensors", saved_at=7)
    shutil.copytree(tmp_path / "a", tmp_path / "my copy")
    with pytest.raises(SystemExit, match="one is a copy. Set RUN_NAME"):
        find(tmp_path, "last")
    assert find(tmp_path, "last", "--run-name", "a")[0].path == tmp_path / "a" / "last.safetensors"


def test_a_run_that_moved_on_since_it_was_read_is_not_thrown_back(run):
    save(run, 3)
    state = checkpoint.load(run / "last.safetensors")
    check_still_newest(run, state)
    save(run, 4)
    with pytest.raises(SystemExit, match="went on while this start was reading it"):
        check_still_newest(run, state)
    damage(run / "last.safetensors")
    check_still_newest(run, state)


def test_a_folder_and_another_name_are_refused_by_name(tmp_path):
    path = put(tmp_path / "a" / "last.safetensors")
    with pytest.raises(SystemExit, match="is a folder: name a file of it"):
        find(tmp_path, str(path.parent))
    with pytest.raises(SystemExit, match="RUN_NAME: 'a' -> 'fork'"):
        find(tmp_path, str(path), "--run-name", "fork")


# --- writing and keeping ---


def save(run, step, *, best=False, keep=2, whole=True, loss=2.0):
    names = [best_name(step, loss)] if best else []
    save_checkpoint(run, small_state(step, epoch=step), names=names, keep=keep, last_is_whole=whole)


def steps_of(run) -> dict[str, int]:
    return {path.name: checkpoint.load(path)["step"] for path in sorted(run.glob("*.safetensors"))}


def test_the_checkpoint_before_and_the_best_ones_stay(run):
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 2.5), (5, 9.0)):
        save(run, step, best=step < 5, loss=loss)
    assert steps_of(run) == {
        "last.safetensors": 5, "previous.safetensors": 4,
        "checkpoint_epoch_2_val_loss_3.0000.safetensors": 2, "checkpoint_epoch_4_val_loss_2.5000.safetensors": 4,
    }  # fmt: skip


def test_a_damaged_last_never_displaces_the_whole_one_before(run):
    save(run, 1)
    save(run, 2)
    damage(run / "last.safetensors")
    save(run, 3, whole=False)
    assert steps_of(run) == {"last.safetensors": 3, "previous.safetensors": 1}


@pytest.mark.parametrize("moment", range(3))
def test_a_failure_at_any_rename_leaves_two_whole_files(run, monkeypatch, moment):
    """replace() gives the new file its name, makes `previous`, makes `last`: it fails at each in turn."""
    save(run, 1)
    save(run, 2)
    real, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) == moment + 1:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="Input/output"):
            save(run, 3)
    assert steps_of(run) in ({"last.safetensors": 2, "previous.safetensors": n} for n in (1, 2))
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
    save(run, 3)
    assert steps_of(run)["last.safetensors"] == 3


def test_an_fsync_that_fails_counts_as_a_failed_save(run, monkeypatch):
    save(run, 1)

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError):
            save(run, 2, best=True)
    assert steps_of(run) == {"last.safetensors": 1}


def test_going_on_from_an_earlier_checkpoint_sets_the_later_ones_aside(run):
    for step in (1, 2, 3):
        save(run, step, best=True, keep=9)
    damaged = run / best_name(1, 2.0)
    damage(damaged)
    (run / f"replaced_{damaged.name}").write_text("of another time")
    names = set_aside(run, (2, 2))
    assert sorted(names) == [
        "replaced_2_checkpoint_epoch_1_val_loss_2.0000.safetensors",
        "replaced_checkpoint_epoch_3_val_loss_2.0000.safetensors", "replaced_last.safetensors",
    ]  # fmt: skip
    assert (run / f"replaced_{damaged.name}").read_text() == "of another time"
    assert newest_whole(run)[0].name == "previous.safetensors"
    assert set_aside(run, (2, 2)) == []


def test_strays_of_a_kill_are_removed_and_nothing_else(run):
    strays = [".new.safetensors", ".last.safetensors.12.tmp", ".nanocaption-a3_x", ".log.jsonl.5.tmp", ".export.3.tmp",
              ".checkpoint_epoch_1_val_loss_2.0000.safetensors.12.tmp"]  # fmt: skip
    others = ["last.safetensors", ".lock", ".thesis.tmp", ".tmpAbCdEf", "notes.tmp"]
    (run / "..new.safetensors.12.tmp").mkdir()
    (run / "..new.safetensors.12.tmp" / "part").touch()
    for name in strays + others:
        (run / name).touch()
    remove_strays(run)
    assert {path.name for path in run.iterdir()} == {*others, "log.jsonl"}


def test_a_disk_without_room_is_told_before_training(tmp_path, monkeypatch):
    check_space(tmp_path, 1000)
    monkeypatch.setattr("nanocaption.runs.folder.free_bytes", lambda folder: 3_999_999_999)
    with pytest.raises(SystemExit, match="4.00 GB free; checkpoints of 1.00 GB need 4.00 GB"):
        check_space(tmp_path, 10**9)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="Cannot write in .*file.*Set OUTPUT_DIR"):
        check_writable(tmp_path / "file" / "run")


# --- the lock ---


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").touch()
    return tmp_path / "run"


def test_a_second_holder_is_refused_and_a_killed_one_leaves_no_lock(run):
    """The holder forks, as it does for workers: what they inherit must not hold the lock on."""
    ready, waiting = os.pipe()
    child = os.fork()
    if child == 0:
        with lock(run):
            worker = os.fork()
            if worker:
                os.write(waiting, str(worker).encode())
            signal.pause()  # until it is killed
    worker = int(os.read(ready, 20))
    try:
        for _ in range(2):  # the refused one has not wiped the holder's name
            with pytest.raises(SystemExit, match=f"in use by process {child} on "), lock(run):
                raise AssertionError("held by two processes")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with lock(run):
            assert f"process {os.getpid()} on" in (run / ".lock").read_text()
            assert str(child) not in (run / ".lock").read_text().split()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(ready)
        os.close(waiting)


def test_an_error_inside_frees_the_lock(run):
    with pytest.raises(KeyError), lock(run):
        raise KeyError
    with lock(run):
        pass


def test_a_run_that_made_nothing_leaves_no_folder_and_any_other_stays(tmp_path, run):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", run):
        with pytest.raises(KeyError), lock(folder):
            raise KeyError
    assert not (tmp_path / "empty").exists()
    assert (run / "log.jsonl").exists()


# --- settings of a resumed run ---


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a run with some flags: --batch-size 16 --learning-rate 0.002 --num-epochs 3 ..."""
    flags = ["--batch-size", "16", "--learning-rate", "0.002", "--num-epochs", "3", "--adam-betas", "0.8,0.9"]
    return put(tmp_path / "run" / "last.safetensors", config=dict((settings(tmp_path, *flags)).values))


def resume(path, *argv: str) -> Start:
    return find_resume(load_settings(["--resume-checkpoint-path", str(path), *argv]))


def test_a_resume_keeps_the_runs_settings_without_its_flags(trained):
    found = resume(trained)
    kept = found.settings
    assert (kept.BATCH_SIZE, kept.LEARNING_RATE, kept.NUM_EPOCHS) == (16, 0.002, 3)
    assert kept.ADAM_BETAS == (0.8, 0.9) and str(trained.parents[1]) == kept.OUTPUT_DIR
    assert str(trained) == kept.RESUME_CHECKPOINT_PATH
    assert found.state["step"] == 1 and found.notes == []


def test_what_does_not_touch_the_course_of_training_may_change_and_is_told(trained, monkeypatch):
    monkeypatch.setitem(CONSTANTS, "KEEP_BEST", 9)  # edited in config.py since
    found = resume(trained, "--num-epochs", "7", "--num-workers", "3", "--device", "cpu")
    new = found.settings
    assert (new.NUM_EPOCHS, new.NUM_WORKERS, new.DEVICE, new.KEEP_BEST) == (7, 3, "cpu", 9)
    assert new.BATCH_SIZE == 16
    for line in ("NUM_EPOCHS: 3 -> 7", "NUM_WORKERS: 0 -> 3", "DEVICE: 'auto' -> 'cpu'", "KEEP_BEST: 2 -> 9"):
        assert f"changed since: {line}" in found.notes
    assert any("cosine schedule now ends" in note for note in found.notes)


def test_what_would_make_it_another_run_is_refused_with_old_and_new(trained, monkeypatch, tmp_path):
    monkeypatch.setitem(CONSTANTS, "CAPTIONS_PER_IMAGE", 4)  # edited in config.py since
    recipe = tmp_path / "recipe.py"
    recipe.write_text("DECODER_LAYERS = 5\n")
    with pytest.raises(SystemExit) as caught:
        resume(trained, str(recipe), "--learning-rate", "0.001", "--num-epochs", "9")
    heading, *lines = str(caught.value).splitlines()
    assert "start a fresh run" in heading and "--init-checkpoint-path" in heading
    assert sorted(lines) == [
        "  - CAPTIONS_PER_IMAGE: 5 -> 4",
        f"  - DECODER_LAYERS: {CONSTANTS['DECODER_LAYERS']} -> 5",
        "  - LEARNING_RATE: 0.002 -> 0.001",
    ]


def test_every_setting_that_fixes_the_course_is_guarded(trained):
    """The saved values are other ones, as if the file's run had been started with them."""
    state, others = checkpoint.load(trained), dict.fromkeys(RESUME_SETTINGS, "something else")
    state["config"] |= others
    state["config_constants"] = CONSTANTS | others
    checkpoint.save(trained, state)
    with pytest.raises(SystemExit) as refused:
        resume(trained)
    changed = [line for line in str(refused.value).splitlines() if "'something else' -> " in line]
    named = {line.split(":")[0].strip(" -") for line in changed}
    assert named == set(RESUME_SETTINGS)


def test_the_captions_of_a_step_may_be_split_otherwise_but_not_change(trained, monkeypatch):
    assert resume(trained).notes == []
    split = resume(trained, "--batch-size", "8", "--grad-accum-steps", "2")
    assert any("sums may round otherwise" in note for note in split.notes)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert any("Other processes" in note for note in resume(trained, "--batch-size", "8").notes)
    with pytest.raises(SystemExit, match=r"16 x 1 x 1 -> 16 x 1 x 2 \(the product, 16 captions a step, must stay"):
        resume(trained)
    with pytest.raises(SystemExit, match="16 x 1 x 1 -> 8 x 2 x 2"):
        resume(trained, "--batch-size", "8", "--grad-accum-steps", "2")


def test_the_runs_own_flags_may_be_given_again(trained):
    resume(trained, "--learning-rate", "2e-3", "--adam-betas", "0.8,0.9")
