"""Runs on unequal numbers of captions: what the start says, resumes, several processes, old checkpoints; small sets."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from nanocaption.base.settings import load_settings
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.runs import checkpoint, signals
from nanocaption.runs.folder import LAST
from nanocaption.train.batch_size import most_pictures
from tests.conftest import TINY_MODEL
from tests.processes import end, rows, start_ranks


def write_set(demo_data: Path, folder: Path, counts: list[int]) -> Path:
    """A folder of drawn pictures, the i-th of them with counts[i] captions, and four more for validation."""
    records = json.loads((demo_data / "demo" / "captions.json").read_text())["images"]
    lines = []
    for record, count in zip(records, [*counts, 5, 2, 5, 1], strict=False):
        (folder / record["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(demo_data / "demo" / "images" / record["file_name"], folder / record["file_name"])
        split = "train" if len(lines) < len(counts) else "val"
        captions = [f"{caption} {number}" for number, caption in enumerate(record["captions"][:count])]
        lines.append(json.dumps({"file_name": record["file_name"], "split": split, "captions": captions}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def raw(demo_data, tmp_path_factory) -> Path:
    return write_set(demo_data, tmp_path_factory.mktemp("raw"), [1, 5, 2, 1, 4, 1, 3, 1, 1, 5, 1, 2, 1] * 3)


def arguments(raw: Path, output: Path, *more: str) -> list[str]:
    places = ["--dataset", "uneven", "--raw-data-dir", str(raw), "--data-dir", str(raw.parent / f"{raw.name}_data")]
    how = ["--num-epochs", "2", "--max-bad-fraction", "1", "--run-name", "run", "--validation-score-images", "0"]
    return [*places, "--output-dir", str(output), *TINY_MODEL.split(), *how, *more]


def course(run: Path) -> list[list[float]]:
    return [[row["loss"], row["grad_norm"]] for row in rows(run, "train")] + [
        [row["val_loss"]] for row in rows(run, "val")
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(run / LAST).items() if not name.startswith("rng/")}


def test_the_start_says_how_many_captions_the_steps_really_have(raw, tmp_path, capsys, monkeypatch):
    steps, real = [], train.read_found
    monkeypatch.setattr(train, "read_found", lambda begun: steps.append(real(begun)) or steps[-1])
    bars, real_bar = [], train.tqdm
    monkeypatch.setattr(train, "tqdm", lambda *_, **how: bars.append(real_bar(**how | {"disable": False})) or bars[-1])
    train.main(arguments(raw, tmp_path))
    printed = capsys.readouterr().out
    captions = [found.captions for found in steps]
    number, mean, most = re.search(
        r"x 20 captions; (\d+) steps per epoch.*captions in a step: ([\d.]+) on average, (\d+) at most", printed
    ).groups()
    assert "39 images with 84 captions" in printed and sum(captions) == 2 * 84
    assert len(captions) == 2 * int(number) == 2 * 4
    assert (float(mean), int(most)) == (round(84 / int(number), 1), max(captions))
    assert captions[:4] == [20, 20, 20, 24]  # a rest smaller than a picture's captions joins
    assert (bars[0].total, bars[0].n) == (168, 168)


def test_resumed_within_an_epoch_it_is_the_same_to_the_bit(raw, tmp_path, monkeypatch):
    argv = [*("--grad-accum-steps", "2", "--batch-size", "6", "--decoder-dropout", "0.1", "--random-crop-area", "0.7")]
    train.main(arguments(raw, tmp_path / "whole", *argv))
    steps, real = rows(tmp_path / "whole" / "run", "train"), train.boundary
    assert len(steps) == 2 * 7 and len({row["loss"] for row in steps}) == 14

    def boundary(run, progress, seconds):
        if progress.step in (3, 10):
            monkeypatch.setattr(train, "boundary", real)
            raise signals.Stopped(15)
        return real(run, progress, seconds)

    for stop in (3, 10):
        monkeypatch.setattr(train, "boundary", boundary)
        with pytest.raises(SystemExit):
            train.main(arguments(raw, tmp_path / "parts", *argv, "--resume-checkpoint-path", "last"))
        assert checkpoint.load(tmp_path / "parts" / "run" / LAST)["step"] == stop
    train.main(arguments(raw, tmp_path / "parts", *argv, "--resume-checkpoint-path", "last"))
    a, b = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    assert course(a) == course(b)
    assert all(torch.equal(tensor, weights(b)[name]) for name, tensor in weights(a).items())


def on_ranks(raw: Path, output: Path, ranks: int, *more: str) -> list[list[float]]:
    output.mkdir()
    processes = start_ranks(arguments(raw, output, *more), output / "printed", ranks)
    assert [end(process) for process in processes] == [0] * ranks, (output / "printed").read_text()
    return course(output / "run")


def test_several_processes_take_the_steps_of_one(raw, tmp_path):
    train.main(arguments(raw, tmp_path / "one", "--batch-size", "30"))
    one = course(tmp_path / "one" / "run")
    several = on_ranks(raw, tmp_path / "three", 3, "--batch-size", "10")
    assert several == [pytest.approx(row, rel=1e-3) for row in one]
    train.main(arguments(raw, tmp_path / "other", "--batch-size", "30", "--seed", "2"))
    assert course(tmp_path / "other" / "run") != [pytest.approx(row, rel=1e-3) for row in one]


@pytest.mark.parametrize("more", [(), pytest.param(("--fsdp",), marks=pytest.mark.long)])
def test_a_last_step_with_fewer_pictures_than_processes_is_taken_as_well(demo_data, tmp_path, more):
    """9 pictures, 4 a step: in the third step the second process has none."""
    raw = write_set(demo_data, tmp_path / "raw", [5] * 9)
    train.main(arguments(raw, tmp_path / "one", "--batch-size", "20"))
    one = course(tmp_path / "one" / "run")
    assert len(one) == 2 * 3 + 2
    assert on_ranks(raw, tmp_path / "two", 2, "--batch-size", "10", *more) == [pytest.approx(r, rel=1e-3) for r in one]


def test_fewer_pictures_than_processes_are_refused(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(train.devices, "world_size", lambda: 60)
    settings = load_settings(["--batch-size", "5"])
    images = ImageTextDataset([{"file_name": "a"}] * 3, tmp_path, [[[1, 5, 2]]] * 3, {})
    with pytest.raises(ValueError, match="3 groups of captions cannot be dealt out to 60 processes"):
        train.steps_of_epoch(settings, images, 0)


def as_before(path: Path, groups: int) -> None:
    """The checkpoint as a version left it that counted pictures."""
    state = checkpoint.load(path)
    del state["captions_per_step"]
    checkpoint.save(path, state | {"groups_per_step": groups})


def test_an_old_checkpoint_resumes_where_its_steps_are_these_and_is_refused_elsewhere(demo_data, raw, tmp_path):
    even = write_set(demo_data, tmp_path / "raw", [5] * 9)
    again = ["--resume-checkpoint-path", "last"]
    train.main(arguments(even, tmp_path / "even", "--num-epochs", "1"))
    as_before(tmp_path / "even" / "run" / LAST, 4)
    train.main(arguments(even, tmp_path / "even", *again))
    train.main(arguments(even, tmp_path / "whole"))
    assert len(course(tmp_path / "even" / "run")) == len(course(tmp_path / "whole" / "run")) == 8
    train.main(arguments(raw, tmp_path / "uneven", "--num-epochs", "1"))
    as_before(tmp_path / "uneven" / "run" / LAST, 4)
    with pytest.raises(SystemExit, match="captions_per_step None -> 20.*--init-checkpoint-path"):
        train.main(arguments(raw, tmp_path / "uneven", *again))


def test_halved_micro_batches_resume_whatever_the_numbers_of_captions(raw, tmp_path):
    """24 captions are 24 captions, also where 12 do not hold as many whole pictures as half of 24."""
    train.main(arguments(raw, tmp_path, "--batch-size", "24", "--num-epochs", "1"))
    more = ["--batch-size", "12", "--grad-accum-steps", "2", "--resume-checkpoint-path", "last"]
    train.main(arguments(raw, tmp_path, *more))
    assert len(rows(tmp_path / "run", "train")) == 2 * 4


def test_auto_counts_the_pictures_that_a_batch_can_have(tmp_path):
    """A trained encoder's memory goes by pictures: 20 captions may be of 20."""
    settings = load_settings(["--batch-size", "20"])
    for counts, most in (([1] * 199 + [5], 20), ([5] * 40, 4), ([2] * 40, 10)):
        ids = [[[1, 5, 2]] * count for count in counts]
        images = ImageTextDataset([{"file_name": "a"}] * len(counts), tmp_path, ids, {})
        assert most_pictures(settings, images) == most


def test_auto_epochs_are_printed_kept_and_a_small_set_is_warned_of(raw, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda run: 1.0)
    argv = arguments(raw, tmp_path, "--batch-size", "84")
    argv[argv.index("--num-epochs") + 1] = "auto"
    train.main(argv)
    printed = capsys.readouterr().out
    assert "NUM_EPOCHS = 'auto': 20 epochs of 1 steps" in printed
    assert checkpoint.load(tmp_path / "run" / LAST)["config"]["NUM_EPOCHS"] == 20
    assert "WARNING: 39 training pictures are too few from scratch" in printed
    assert "--init-checkpoint-path" in printed and "WARNING: 4 validation pictures cannot tell" in printed
    train.main([*argv, "--resume-checkpoint-path", "last"])
    assert "Already finished: 20 of NUM_EPOCHS = 20" in capsys.readouterr().out
    first = str(tmp_path / "run" / LAST)
    train.main([*arguments(raw, tmp_path, "--run-name", "second", "--init-checkpoint-path", first)])
    assert "training pictures are too few" not in capsys.readouterr().out
