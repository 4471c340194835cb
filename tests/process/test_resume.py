"""Killed at any moment, resumed to the same bits: weights, optimizer, log and captions."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import train
from nanocaption.data import dataset
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.prepared import load_records
from nanocaption.model.captions import CaptionText
from nanocaption.model.options import Options
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST, newest_whole
from nanocaption.runs.log import REPLACED
from nanocaption.train import losses, setup
from nanocaption.use.captioning import caption_images
from nanocaption.use.load import load_model
from tests.conftest import CUTOFF, TINY_MODEL, save_tower
from tests.processes import end, rows, start, start_ranks, steps_done, wait_for

long = pytest.mark.long
# Everything that draws at random, in processes of its own; a step takes some milliseconds, an epoch six steps.
HARD = """
    --decoder-dropout 0.2 --num-workers 1 --random-crop-area 0.5 --random-flip --checkpoint-every-steps 2
    --validation-score-images 2 --learning-rate 1e-2 --max-seq-len 16 --run-name run --resume-checkpoint-path last
    """


def user_code():
    """Something of the user's in every step that draws from Python's and NumPy's global generators."""
    real = losses.caption_loss

    def noisy(model, batch, smoothing=0.0):
        return real(model, batch, smoothing) * (1 + 0.1 * random.random() + 0.1 * np.random.rand())

    losses.caption_loss = noisy


def arguments(data: Path, output: Path, epochs: int, *more: str) -> list[str]:
    places = ["--data-dir", str(data), "--output-dir", str(output), "--data-cutoff", str(CUTOFF)]
    return [*places, *TINY_MODEL.split(), *HARD.split(), "--num-epochs", str(epochs), *more]


def fingerprint(run: Path) -> dict[str, str]:
    """Hashes of all that must be equal."""
    state = checkpoint.load(run / LAST)
    tensors, _ = checkpoint._pack(state)
    series = [
        {key: value for key, value in row.items() if key not in ("captions_per_s", "input_s")}
        for row in rows(run) if row["type"] in ("train", "val", "samples", "nonfinite")
    ]  # fmt: skip
    digest = lambda value: hashlib.sha256(json.dumps(value).encode()).hexdigest()  # noqa: E731
    groups = {
        room: checkpoint._digest({n: t for n, t in tensors.items() if n.startswith(room)}, "")
        for room in ("model/", "optim/")
    }
    position = [state[name] for name in train.Progress._fields]
    return {**groups, "position": digest(position), "log": digest(series)}


def captions_of(run: Path, data: Path) -> list[list[CaptionText]]:
    model, tokenizer = load_model(checkpoint.load(run / LAST), torch.device("cpu"))
    records = load_records(data / "demo", "val", CUTOFF)
    images = ImageTextDataset(records, data / "demo" / "images", [[] for _ in records], model.image_spec)
    return caption_images(
        model, tokenizer, images, batch_size=24, options=Options(beam_size=3),
        device=torch.device("cpu"), precision="fp32", workers=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(demo_data, tmp_path_factory) -> Path:
    """An uninterrupted run of two epochs, to be read only."""
    output = tmp_path_factory.mktemp("whole")
    process = start(arguments(demo_data, output, 2), output / "printed", user_code)
    assert end(process) == 0, (output / "printed").read_text()
    return output / "run"


def kill_and_resume(data: Path, output: Path, epochs: int, steps: list[int], seed: int, prelude=user_code) -> Path:
    """Start the same command again and again, killed once its log shows each of `steps`; then let it finish."""
    print(f"killed at steps {steps}, seed {seed}")
    rng = random.Random(seed)
    run = output / "run"
    for target in steps:
        process = start(arguments(data, output, epochs), output / "printed", prelude)
        wait_for(lambda target=target: steps_done(run) >= target, process)
        time.sleep(0.02 * rng.random())
        os.kill(process.pid, signal.SIGKILL)  # its workers see for themselves that it is gone
        assert end(process) in (-signal.SIGKILL, 0)
    process = start(arguments(data, output, epochs), output / "printed", prelude)
    assert end(process) == 0, (output / "printed").read_text()
    return run


def test_killed_at_random_steps_equals_uninterrupted(demo_data, tmp_path, whole):
    seed = random.randrange(10**6)
    steps = [1 + seed % 5, 6 + seed // 5 % 5]  # by the second there is a checkpoint
    run = kill_and_resume(demo_data, tmp_path, 2, steps, seed)
    assert fingerprint(run) == fingerprint(whole)
    assert captions_of(run, demo_data) == captions_of(whole, demo_data)
    resumed_at = [row["step"] for row in rows(run, "resume")]
    assert len(resumed_at) >= 1 and resumed_at == sorted(resumed_at)
    assert "FRESH START" in (tmp_path / "printed").read_text()
    assert not [path.name for path in run.iterdir() if path.name.startswith(".") and path.name != ".lock"]


@long
def test_killed_at_twenty_random_steps_equals_uninterrupted(demo_data, tmp_path):
    seed = random.randrange(10**6)
    steps = sorted(random.Random(seed).sample(range(1, 72), 20))
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = kill_and_resume(demo_data, tmp_path / "whole", 12, [], seed)
    run = kill_and_resume(demo_data, tmp_path / "parts", 12, steps, seed)
    assert fingerprint(run) == fingerprint(whole)
    assert len(rows(run, "resume")) >= 15


def forget_moments():
    real = setup.restore_state

    def restore(saved, *rest):
        for slots in saved["optimizer_state_dict"]["state"].values():
            slots["exp_avg"].zero_()
        real(saved, *rest)

    setup.restore_state = restore


def forget_generators():
    """Those of Python and NumPy, from which the user's code draws, go on from where a start leaves them."""
    train.seed_generators = torch.manual_seed


def forget_position():
    """Begin the epoch again, at the right step of the schedule."""
    real = setup.restore
    setup.restore = lambda *a: real(*a)._replace(step_in_epoch=1)


def forget_dropout():
    """A seed of the process instead of one of the step."""
    train.seed_of = lambda *parts: os.getpid()


def forget_augmentation():
    dataset.augmented = lambda pixels, how, rng, real=dataset.augmented: real(pixels, how, random.Random())


CONTROLS = {  # what a broken resume loses -> what must then differ
    forget_moments: "model/", forget_generators: "model/", forget_position: "log", forget_dropout: "model/",
    forget_augmentation: "model/",
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped(demo_data, tmp_path_factory) -> Path:
    """The output folder of a run that was stopped within its second epoch."""
    output = tmp_path_factory.mktemp("stopped")
    process = start(arguments(demo_data, output, 2), output / "printed", user_code)
    wait_for(lambda: steps_done(output / "run") >= 9, process)
    os.kill(process.pid, signal.SIGTERM)
    assert end(process) == 143
    assert 9 <= checkpoint.load(output / "run" / LAST)["step"] < 12
    return output


@pytest.mark.parametrize("forget", [None, *CONTROLS], ids=lambda forget: forget.__name__ if forget else "nothing")
def test_a_resume_that_loses_something_is_noticed(demo_data, tmp_path, whole, stopped, forget):
    """The controls of the tests above: each of them must be able to fail."""
    shutil.copytree(stopped / "run", tmp_path / "run")

    def broken():
        user_code()
        if forget:
            forget()

    process = start(arguments(demo_data, tmp_path, 2, "--num-workers", "0"), tmp_path / "printed", broken)
    assert end(process) == 0, (tmp_path / "printed").read_text()
    found, expected = fingerprint(tmp_path / "run"), fingerprint(whole)
    if forget:
        assert found[CONTROLS[forget]] != expected[CONTROLS[forget]]
        assert found["log"] != expected["log"]
    else:
        assert found == expected


def test_stopped_anywhere_in_an_epoch_equals_uninterrupted(demo_data, tmp_path, whole):
    """At the first and the last step, in the validation, twice in an epoch: SIGTERM from inside, at the very moment.

    In one process with other workers than `whole`.
    """
    moments = [1, 6, -6, 8, 10]  # steps; -6: the validation after step 6
    run = tmp_path / "run"

    def prelude():
        user_code()
        write, evaluate = train.write_row, train.evaluate

        def stop(step: int) -> None:
            if step == moments[0]:
                os.kill(os.getpid(), signal.SIGTERM)

        def written(file, row, *rest):
            write(file, row, *rest)
            if row["type"] == "train":
                stop(row["step"])

        def evaluated(run):
            stop(-steps_done(run.folder))
            return evaluate(run)

        train.write_row, train.evaluate = written, evaluated

    argv = arguments(demo_data, tmp_path, 2, "--num-workers", "0")
    while moments:
        process = start(argv, tmp_path / "printed", prelude)
        assert end(process) == 143, (tmp_path / "printed").read_text()
        saved, moment = checkpoint.load(run / LAST), abs(moments.pop(0))
        assert (saved["step"], saved["epoch"]) == (moment, 0 if moment <= 6 else 1)
        assert len(rows(run, "val")) == saved["epoch"]
    process = start(argv, tmp_path / "printed", user_code)
    assert end(process) == 0
    assert fingerprint(run) == fingerprint(whole)


def stopped_and_resumed(output: Path, argv: list[str], between=lambda: None) -> list[dict[str, str]]:
    """Fingerprints of a run, whole and in two parts; `between` is called between the parts."""
    for name in ("whole", "parts"):
        argv[argv.index("--output-dir") + 1] = str(output / name)
        process = start(argv, output / "printed", user_code)
        if name == "parts":
            wait_for(lambda: steps_done(output / "parts" / "run") >= 3, process)
            os.kill(process.pid, signal.SIGTERM)
            assert end(process) == 143, (output / "printed").read_text()
            between()
            process = start(argv, output / "printed", user_code)
        assert end(process) == 0, (output / "printed").read_text()
    assert len(rows(output / "parts" / "run", "resume")) == 1
    return [fingerprint(output / name / "run") for name in ("whole", "parts")]


def test_a_frozen_encoder_resumes_with_the_features_of_its_own_weights(demo_data, tmp_path):
    """Whose folder is gone: the checkpoint's weights, and no cache is made anew."""
    tower, cached = tmp_path / "tower", []
    save_tower(tower)

    def lost():
        shutil.rmtree(tower)
        cached.extend((demo_data / "demo" / "cache").glob("features_*"))

    own = ["--encoder-model-name", str(tower), "--freeze-encoder", "--image-size", "none", "--num-workers", "0",
           "--random-crop-area", "1", "--no-random-flip"]  # fmt: skip
    whole, parts = stopped_and_resumed(tmp_path, arguments(demo_data, tmp_path, 1, *own), lost)
    assert whole == parts
    assert cached and set(cached) == set((demo_data / "demo" / "cache").glob("features_*"))


FROZEN = "--encoder-model-name TOWER --freeze-encoder --image-size none"


@long
@pytest.mark.parametrize(
    "flags",
    [
        "--precision bf16", "--gradient-checkpointing", "--cache-images", "--captions-per-image 1", "--deterministic",
        "--batch-size auto", "--validation-interval 2", "--lr-schedule cosine --warmup-ratio 0.2 --weight-decay 0.1",
        "--dataset demo*0.5", "--no-cache-images --random-crop-area 1 --no-random-flip",
        "--label-smoothing 0.2 --early-stopping-patience 3 --keep-best 1 --checkpoint-every-steps 1",
        FROZEN, f"{FROZEN} --no-cache-features --random-crop-area 1 --no-random-flip",
        f"{FROZEN} --cache-limit-gb 0 --random-crop-area 1 --no-random-flip",
        "--encoder-model-name TOWER --image-size none --encoder-learning-rate 1e-4",
        f"{FROZEN} --random-crop-area 1 --no-random-flip --objective scst --scst-start-epoch 1 --scst-xe-weight 0.1 "
        "--patch-drop 0.3 --scst-reward cider+bleu --scst-lr-schedule cosine --min-lr 1e-6",
        "--objective scst --scst-start-epoch 1 --precision bf16 --grad-accum-steps 2 --batch-size 10 --patch-drop 0.5",
    ],
)  # fmt: skip
def test_every_kind_of_run_resumes(demo_data, tmp_path, flags):
    save_tower(tmp_path / "tower")
    own = flags.replace("TOWER", str(tmp_path / "tower")).split()
    whole, parts = stopped_and_resumed(tmp_path, arguments(demo_data, tmp_path, 2, *own))
    assert whole == parts


def test_a_loss_scale_of_fp16_goes_on_where_it_was(demo_data, tmp_path):
    """The scale halves where gradients overflow, and doubles after 2,000 steps: set to a few here."""

    def prelude():
        scaler = torch.amp.GradScaler
        torch.amp.GradScaler = lambda kind, enabled: scaler(kind, 2.0**24, enabled=enabled, growth_interval=3)

    def stopped():
        prelude()
        write = train.write_row

        def written(file, row, *rest):
            write(file, row, *rest)
            if row["step"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        train.write_row = written

    states = []
    for name, preludes in (("whole", [prelude]), ("parts", [stopped, prelude])):
        output = tmp_path / name
        output.mkdir()
        argv = arguments(demo_data, output, 1, "--num-workers", "0", "--precision", "fp16",
                         "--validation-score-images", "0")  # fmt: skip
        statuses = [end(start(argv, output / "printed", before)) for before in preludes]
        assert statuses == [143, 0][-len(preludes) :], (output / "printed").read_text()
        states.append((fingerprint(output / "run"), checkpoint.load(output / "run" / LAST)))
    assert states[0][0] == states[1][0]
    assert states[0][1]["scaler_state_dict"] == states[1][1]["scaler_state_dict"]
    assert states[0][1]["scaler_state_dict"]["scale"] != 2.0**24


def ranks_argv(data: Path, output: Path, ranks: int) -> list[str]:
    """Two epochs of four steps, one picture of each rank a step."""
    argv = arguments(data, output, 2, "--num-workers", "0", "--batch-size", "5", "--grad-accum-steps", "1")
    return [*argv, "--data-cutoff", str(4 * ranks)]


def train_ranks(argv: list[str], output: Path, ranks: int, number: int = 0, starts: int = 0) -> list[int]:
    """The statuses of the processes, the last of which is sent a signal (0: none) after some steps of this start."""
    run = output / "run"
    processes = start_ranks(argv, output / "printed", ranks, user_code)
    if number:
        wait_for(lambda: steps_done(run) >= 3 and len(rows(run, "resume")) == starts, processes[0])
        os.kill(processes[-1].pid, number)
    return [end(process) for process in processes]


def killed_and_stopped(data: Path, output: Path, ranks: int) -> None:
    """First one rank is killed; in the next start SIGTERM reaches one only, and all agree at a step's end."""
    argv = ranks_argv(data, output, ranks)
    *others, killed = train_ranks(argv, output, ranks, signal.SIGKILL)
    assert killed == -signal.SIGKILL and all(status > 0 for status in others)
    statuses = train_ranks(argv, output, ranks, signal.SIGTERM, starts=1)
    assert statuses == [143] * ranks, (output / "printed").read_text()
    assert 3 <= checkpoint.load(output / "run" / LAST)["step"] < 8


@pytest.fixture(scope="module")
def two_stopped(demo_data, tmp_path_factory) -> Path:
    """The folder of a run of two processes, killed once and stopped once; to be read only."""
    output = tmp_path_factory.mktemp("two")
    killed_and_stopped(demo_data, output, 2)
    return output / "run"


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=long), pytest.param(4, marks=long)])
def test_several_processes_resume_exactly_and_one_that_is_killed_ends_the_others(demo_data, tmp_path, request, ranks):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for output in (whole, parts):
        output.mkdir()
    assert train_ranks(ranks_argv(demo_data, whole, ranks), whole, ranks) == [0] * ranks
    if ranks == 2:
        shutil.copytree(request.getfixturevalue("two_stopped"), parts / "run")
    else:
        killed_and_stopped(demo_data, parts, ranks)
    statuses = train_ranks(ranks_argv(demo_data, parts, ranks), parts, ranks)
    assert statuses == [0] * ranks, (parts / "printed").read_text()
    assert fingerprint(parts / "run") == fingerprint(whole / "run")


def test_another_number_of_processes_goes_on_and_is_told(demo_data, tmp_path, two_stopped, capsys):
    """That they see the same pictures in a step: test_dataset.py; and have the same losses: test_train.py."""
    shutil.copytree(two_stopped, tmp_path / "run")
    argv = ranks_argv(demo_data, tmp_path, 2)
    with pytest.raises(SystemExit, match="5 x 1 x 2 -> 5 x 1 x 1 .the product, 10 captions a step"):
        train.main(argv)
    train.main([*argv, "--grad-accum-steps", "2", "--resume-checkpoint-path", str(tmp_path / "run" / LAST)])
    text = capsys.readouterr().out
    assert "sums may round otherwise" in text and "processes: 2 -> 1: equality" in text
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == list(range(1, 9))


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(demo_data, tmp_path):
    def spoiled():
        real, calls = losses.caption_loss, []

        def loss(model, batch, smoothing=0.0):
            calls.append(1)
            bad = train.devices.rank() == 1 and len(calls) == 2
            return real(model, batch, smoothing) * (float("nan") if bad else 1.0)

        losses.caption_loss = loss

    argv = [*ranks_argv(demo_data, tmp_path, 2), "--num-epochs", "1", "--validation-score-images", "0"]
    processes = start_ranks(argv, tmp_path / "printed", 2, spoiled)
    assert [end(process) for process in processes] == [0, 0], (tmp_path / "printed").read_text()
    (row,) = rows(tmp_path / "run", "nonfinite")
    assert row["step"] == 2 and len(row["images"]) == 2  # one of each rank
    found = [r["loss"] for r in rows(tmp_path / "run", "train")]
    assert found[1] is None and None not in found[:1] + found[2:]


# --- a kill while a checkpoint is written ---


def test_killed_while_writing_the_one_before_is_whole(demo_data, tmp_path, whole):
    """The kill comes when half of the third checkpoint is on the disk."""
    argv = arguments(demo_data, tmp_path, 2, "--checkpoint-every-steps", "1", "--num-workers", "0")

    def deadly():
        user_code()
        real, calls = safetensors.torch.save_file, []

        def save_file(tensors, path, metadata):
            real(tensors, path, metadata)
            calls.append(path)
            if len(calls) == 3:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        safetensors.torch.save_file = save_file

    assert end(start(argv, tmp_path / "printed", deadly)) == -signal.SIGKILL
    assert list((tmp_path / "run").glob(".*.tmp"))
    assert newest_whole(tmp_path / "run")[0] is not None
    assert end(start(argv, tmp_path / "printed", user_code)) == 0, (tmp_path / "printed").read_text()
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert fingerprint(tmp_path / "run") == fingerprint(whole)


@pytest.mark.parametrize("renames", [3, *(pytest.param(number, marks=long) for number in (1, 2, 4))])
def test_killed_between_the_names_of_a_best_checkpoint(demo_data, tmp_path, whole, renames):
    """A best checkpoint takes four names one after the other; the kill comes after each of them in turn."""
    argv = arguments(demo_data, tmp_path, 2, "--num-workers", "0")

    def deadly():
        user_code()
        real, calls = os.replace, []

        def replace(source, target):
            real(source, target)
            if steps_done(tmp_path / "run") >= 6 and rows(tmp_path / "run", "val"):
                calls.append(target)
                if len(calls) == renames:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace

    process = start(argv, tmp_path / "printed", deadly)
    assert end(process) == -signal.SIGKILL
    process = start(argv, tmp_path / "printed", user_code)
    assert end(process) == 0, (tmp_path / "printed").read_text()
    assert rows(tmp_path / "run", "resume")[0]["step"] == 6
    assert fingerprint(tmp_path / "run") == fingerprint(whole)


# --- going back ---


def test_going_back_to_a_best_checkpoint_loses_nothing_of_what_was_beyond(demo_data, tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    (first,) = run.glob("checkpoint_epoch_1_*")
    argv = arguments(demo_data, tmp_path, 2, "--num-workers", "0", "--resume-checkpoint-path", str(first))
    process = start(argv, tmp_path / "printed", user_code)
    assert end(process) == 0
    assert fingerprint(run) == fingerprint(whole)  # the same course once more
    assert (run / "replaced_last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
    replaced = (run / REPLACED).read_text().splitlines()
    assert [json.loads(line)["step"] for line in replaced if '"train"' in line] == [7, 8, 9, 10, 11, 12]
