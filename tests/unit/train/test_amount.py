"""Epochs by the size of a set, and whom the start warns."""

import pytest

from nanocaption.base.settings import load_settings
from nanocaption.train.amount import choose_epochs, warnings

PHOTOGRAPHS = ["--dataset", "mine"]
PRETRAINED = [*PHOTOGRAPHS, "--encoder-model-name", "google/vit", "--freeze-encoder"]


@pytest.mark.parametrize("steps, epochs", [(2, 20), (45, 20), (156, 19), (300, 10), (375, 8), (4000, 8)])
def test_a_small_set_is_shown_more_often_within_bounds(steps, epochs, capsys):
    assert choose_epochs(steps) == epochs
    assert f"NUM_EPOCHS = 'auto': {epochs} epochs of {steps} steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "train", "val", "told"),
    [
        (PHOTOGRAPHS, 180, 20, "180 training pictures are too few from scratch"),
        (PHOTOGRAPHS, 5000, 20, None),
        (PRETRAINED, 999, 20, "999 training pictures are too few for a new decoder"),
        (PRETRAINED, 1000, 20, None),
        (PRETRAINED, 1000, 19, "19 validation pictures cannot tell"),
        ([*PRETRAINED, "--init-checkpoint-path", "a"], 180, 20, None),
        ([], 180, 20, None),  # drawn pictures are simple
    ],
)
def test_too_few_pictures_are_told_with_what_works(argv, train, val, told):
    notes = warnings(load_settings(argv), train, val)
    assert len(notes) == (told is not None)
    assert all(told in note for note in notes)
    assert all("--init-checkpoint-path" in note for note in notes if "training" in note)


def test_both_are_told():
    assert len(warnings(load_settings(PRETRAINED), 10, 5)) == 2
