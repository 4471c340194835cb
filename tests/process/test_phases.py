"""Self-critical training in whole runs: resumed to the same bits in both phases, begun, refused, scored and told."""

import os
import signal

import pytest

import train
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST
from nanocaption.train import scst
from tests.process.test_resume import arguments, fingerprint, train_ranks
from tests.processes import end, rows, start

# Cross-entropy for one epoch of six steps, then rewards; captions short enough that some match.
PHASES = [
    "--objective", "scst", "--scst-start-epoch", "1", "--scst-learning-rate", "1e-3", "--patch-drop", "0.3",
    "--max-seq-len", "20",
]  # fmt: skip


def stopping(moments: list[int], forget: bool = False):
    """What makes a process send itself SIGTERM once it has logged the first step of `moments` (-step: validated)."""

    def prelude():
        write, real = train.write_row, scst.begin_phase

        def written(file, row, *rest):
            write(file, row, *rest)
            place = row["step"] if row["type"] == "train" else -row["step"] if row["type"] == "val" else None
            if moments and place == moments[0]:
                os.kill(os.getpid(), signal.SIGTERM)

        train.write_row = written
        if forget:  # the optimizer's moments of cross-entropy go on

            def begin(run, progress):
                kept = dict(run.optimizer.state)
                real(run, progress)
                run.optimizer.state.update(kept)

            scst.begin_phase = begin

    return prelude


def train_it(data, output, moments=(), forget=False, more=()) -> dict[str, str]:
    """The fingerprint of a run that was stopped at `moments`; 2 epochs."""
    argv, left = arguments(data, output, 2, *PHASES, *more), list(moments)
    output.mkdir(exist_ok=True)
    while left:
        assert end(start(argv, output / "printed", stopping(left, forget))) == 143, (output / "printed").read_text()
        left.pop(0)
    assert end(start(argv, output / "printed", stopping([], forget))) == 0, (output / "printed").read_text()
    return fingerprint(output / "run")


@pytest.fixture(scope="module")
def whole(demo_data, tmp_path_factory):
    """(folder, fingerprint) of a run with a worker that nothing stopped."""
    output = tmp_path_factory.mktemp("scst")
    return output / "run", train_it(demo_data, output)


def test_stopped_in_both_phases_and_between_them_equals_uninterrupted(demo_data, tmp_path, whole):
    """In cross-entropy, at its last step, in the validation between, at the first step of rewards and in the midst."""
    run, expected = whole
    assert train_it(demo_data, tmp_path / "a", [3, 6, 7, 9], more=["--num-workers", "0"]) == expected
    found = rows(run, "train")
    assert ["reward" in row for row in found] == [False] * 6 + [True] * 6
    assert sum(row["reward"] for row in found[6:]) > 0 and all(row["grad_norm"] > 0 for row in found)
    assert checkpoint.load(run / LAST)["rewarded_steps"] == 6


def test_a_phase_that_keeps_the_moments_of_the_one_before_is_noticed(demo_data, tmp_path, whole):
    assert train_it(demo_data, tmp_path / "b", forget=True)["model/"] != whole[1]["model/"]


def test_two_processes_resume_in_the_phase(demo_data, tmp_path):
    argv = [*PHASES, "--num-workers", "0", "--batch-size", "10", "--grad-accum-steps", "1", "--data-cutoff", "8"]
    found = []
    for name, number in (("whole", 0), ("parts", signal.SIGTERM)):
        output = tmp_path / name
        output.mkdir()
        own = arguments(demo_data, output, 3, *argv)
        if number:
            statuses = train_ranks(own, output, 2, number)
            assert statuses == [143] * 2, (output / "printed").read_text()
        assert train_ranks(own, output, 2) == [0] * 2, (output / "printed").read_text()
        found.append(fingerprint(output / "run"))
    assert found[0] == found[1]
