"""EMA_DECAY in a run: the average is the hand-made one, resumed too; it is what is validated, saved and used."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import nanocaption
import train
from nanocaption.base.settings import load_settings
from nanocaption.commands import average as command
from nanocaption.commands import verify
from nanocaption.model import exported
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST, PREVIOUS, best_files
from nanocaption.train import average, objective
from nanocaption.train.losses import Objective
from nanocaption.train.setup import find_start
from nanocaption.use.load import load_state
from tests.conftest import TINY_RUN, run_command, tiny_flags
from tests.processes import losses

DECAY = 0.3  # the warm-up has reached it after three steps
EMA = ["--ema-decay", str(DECAY), "--run-name", "ema", "--checkpoint-every-steps", "5"]


def weights_of(run: train.Run) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in train.parameters_by_name(run.optimizer).items()}


@pytest.fixture(scope="module")
def averaged(demo_data, tmp_path_factory) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """The folder of a run of two epochs (that of tiny_run, with an average), and its weights before the first step and
    after each; to be read only."""
    output, steps, take, fit = tmp_path_factory.mktemp("averaged"), [], train.take_update, train.fit

    def begin(run, progress):
        steps.append(weights_of(run))
        train.take_update = lambda *how, **more: (take(*how, **more), steps.append(weights_of(run)))
        fit(run, progress)

    train.fit = begin
    try:
        train.main([*tiny_flags(demo_data, output), *TINY_RUN.split(), *EMA])
    finally:
        train.fit, train.take_update = fit, take
    return output / "ema", steps


def by_hand(steps: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    found = steps[0]
    for taken, weights in enumerate(steps[1:]):
        share = 1 - min(decay, (1 + taken) / (10 + taken))
        found = {name: torch.lerp(tensor, weights[name], share) for name, tensor in found.items()}
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_average_is_the_hand_made_one_and_the_weights_take_the_course_that_they_take_without(averaged, tiny_run):
    run, steps = averaged
    state, plain = checkpoint.load(run / LAST), checkpoint.load(tiny_run / LAST)
    mine = {name: state["model_state_dict"][name] for name in steps[0]}
    assert len(steps) == 13 and state["averaged_steps"] == 12
    assert same(mine, by_hand(steps, DECAY)) and same(state["raw_state_dict"], steps[-1])
    assert not same(mine, by_hand(steps, 0.4)) and not same(mine, by_hand(steps[1:], DECAY))  # the controls
    assert same(state["raw_state_dict"], {name: plain["model_state_dict"][name] for name in steps[0]})
    assert losses(run)[:12] == losses(tiny_run)[:12]  # of the steps
    assert losses(run)[12:] != losses(tiny_run)[12:]  # validated is the average
    assert "raw_state_dict" not in plain and plain["averaged_steps"] == 0


@pytest.mark.parametrize("name, step", [("checkpoint_epoch_1_*", 6), (PREVIOUS, 10)], ids=["epoch", "within"])
def test_resumed_it_is_the_uninterrupted_one_to_the_bit(averaged, tmp_path, name, step):
    run, _ = averaged
    (source,) = run.glob(name)
    assert checkpoint.load(source)["averaged_steps"] == step
    (folder := tmp_path / "resumed").mkdir()
    shutil.copyfile(source, folder / source.name)
    train.main(["--resume-checkpoint-path", str(folder / source.name)])
    a, b = (checkpoint.load(path / LAST) for path in (run, folder))
    assert same(a["model_state_dict"], b["model_state_dict"]) and same(a["raw_state_dict"], b["raw_state_dict"])
    assert a["averaged_steps"] == b["averaged_steps"] and losses(folder)[-1] == losses(run)[-1]


def resumed(source: Path, folder: Path, *more: str) -> train.Run:
    """The run as it is made ready to go on from a copy of `source`, and not trained."""
    folder.mkdir()
    shutil.copyfile(source, folder / source.name)
    seen = []
    fit, train.fit = train.fit, lambda run, progress: seen.append(dataclasses.replace(run, copies=[progress]))
    try:
        train.main(["--resume-checkpoint-path", str(folder / source.name), *more])
    finally:
        train.fit = fit
    return seen[0]


def test_switched_on_and_off_at_a_resume_it_begins_and_ends_there_and_says_so(averaged, tiny_run, tmp_path, capsys):
    (source,) = tiny_run.glob("checkpoint_epoch_1_*")
    run = resumed(source, tmp_path / "on", "--ema-decay", "0.9")
    said = capsys.readouterr().out
    assert "changed since: EMA_DECAY: 0.0 -> 0.9" in said and "the average begins with the weights" in said
    assert same(dict(run.average), weights_of(run)) and run.copies[0].averaged_steps == 0
    (source,) = averaged[0].glob("checkpoint_epoch_1_*")
    run = resumed(source, tmp_path / "off", "--ema-decay", "0")
    said = capsys.readouterr().out
    assert "changed since: EMA_DECAY: 0.3 -> 0.0" in said and "the average ends" in said
    assert dict(run.average) == {} and run.copies[0].averaged_steps == 0
    assert same(weights_of(run), averaged[1][6])  # the weights, not the average
    run = resumed(source, tmp_path / "other", "--ema-decay", "0.8")
    assert "changed since: EMA_DECAY: 0.3 -> 0.8" in capsys.readouterr().out and run.copies[0].averaged_steps == 6


def test_a_step_that_is_skipped_leaves_the_average_alone(flags, tmp_path, monkeypatch):
    """Of six steps the third has no finite loss."""
    taken, original = [], objective.caption_objective

    def breaking(smoothing=0.0):
        plain = original(smoothing)
        if not smoothing:
            return plain
        spoilt = lambda *of: plain.total(*of) * (math.nan if len(taken) == 2 and not skipped else 1)  # noqa: E731
        return Objective(spoilt, plain.number)

    skipped: list[int] = []
    update, take = average.update, train.take_update
    monkeypatch.setattr(objective, "caption_objective", breaking)
    monkeypatch.setattr(average, "update", lambda *how: (taken.append(how[2]), update(*how)))
    monkeypatch.setattr(train, "take_update", lambda *how, skip: (skip and skipped.append(1), take(*how, skip=skip)))
    train.main([*flags, "--num-epochs", "1", "--validation-score-images", "0", *EMA])
    state = checkpoint.load(tmp_path / "runs" / "ema" / LAST)
    assert skipped == [1] and taken == [min(DECAY, (1 + t) / (10 + t)) for t in range(5)]
    assert (state["step"], state["averaged_steps"]) == (6, 5)


def test_the_average_keeps_a_part_of_what_the_self_critical_phase_began_with(flags, tmp_path, monkeypatch):
    decays, update = [], average.update
    monkeypatch.setattr(average, "update", lambda *how: (decays.append(how[2]), update(*how)))
    phases = "--num-epochs 2 --objective scst --scst-start-epoch 1 --run-name ema --ema-decay 0.9"
    train.main([*flags, *phases.split()])
    assert decays == [(1 + t) / (10 + t) for t in range(6)] + [0.9] * 6


def test_everything_that_uses_a_checkpoint_takes_the_average_and_says_so(averaged, tmp_path, capsys, demo_data):
    run, steps = averaged
    best = best_files(run)[0]
    expected = checkpoint.load(best)["model_state_dict"]
    assert same(dict(nanocaption.load(best).state_dict()), expected)
    state, _ = load_state(best, load_settings([]))
    assert "the weights are the moving average of" in capsys.readouterr().err
    exported.write(tmp_path / "export", state, "card")
    assert same(exported.read(tmp_path / "export")["model_state_dict"], expected)
    assert exported.read(tmp_path / "export")["averaged_steps"] == state["averaged_steps"] > 0
    verify.main([str(best)])
    assert "the weights that its training goes on with" in capsys.readouterr().out
    fresh, seen = [*tiny_flags(demo_data, tmp_path), "--init-checkpoint-path", str(best)], []
    assert "moving average" in find_start(load_settings(fresh)).notes[0]
    fit, train.fit = train.fit, lambda run, progress: seen.append((weights_of(run), progress))
    try:
        train.main(fresh)
    finally:
        train.fit = fit
    assert same(seen[0][0], {name: expected[name] for name in steps[0]}) and seen[0][1].averaged_steps == 0


def test_a_mean_of_checkpoints_starts_a_fresh_run_and_is_not_resumed(averaged, tmp_path, demo_data, capsys):
    run, _ = averaged
    mean = tmp_path / "mean.safetensors"
    words = [str(path) for path in (best_files(run)[0], best_files(run)[1])]
    assert run_command(command.main, [*words, "-o", str(mean)]) == 0
    with pytest.raises(SystemExit, match="is a mean of checkpoints, which has no optimizer state"):
        train.main(["--resume-checkpoint-path", str(mean)])
    flags = [*tiny_flags(demo_data, tmp_path / "runs"), "--num-epochs", "1", "--data-cutoff", "4", "--run-name", "next"]
    train.main([*flags, "--validation-score-images", "0", "--init-checkpoint-path", str(mean)])
    assert "the weights are the mean of 2 checkpoints" in capsys.readouterr().out
    first = checkpoint.load(tmp_path / "runs" / "next" / PREVIOUS)  # saved before the first step
    assert same(first["model_state_dict"], checkpoint.load(mean)["model_state_dict"])
    assert "average_of" not in first and json.dumps(first["config"]["INIT_CHECKPOINT_PATH"]) == json.dumps(str(mean))
