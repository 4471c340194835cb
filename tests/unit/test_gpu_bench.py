"""make gpu: a row that fails is told and the others still run; every row has been tried, tiny, on the CPU."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_checks, run
from nanocaption.data import caches
from nanocaption.runs.folder import LAST, best_files
from tests.conftest import ROOT

ANSWERS = {
    "beam3": {"rows": [{"name": name, "ours": 2.0, "peer": 1.0, "ratio": 2.0, "unit": "images/s", "range": [2, 2]}
                       for name in ("beam3", "kernels_beam3")]},
    "check_trains": {"rows": [], "reason": "AssertionError: the loss rose", "absent": False},
    "check_resident": {"rows": [], "reason": gpu_checks.NEEDS_CUDA, "absent": True},
    "check_spread": {"rows": [], "reason": "No module named 'torch.distributed'", "absent": True},
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "make_data", lambda folder: None)
    monkeypatch.setattr(run, "in_a_process", lambda job: copy.deepcopy(ANSWERS[job.names[0]]))


@pytest.mark.parametrize("smoke", [True, False])
def test_a_row_that_fails_is_told_and_the_others_run(answers, tmp_path, capsys, smoke):
    path = tmp_path / "results.json"
    failed = gpu.measure_all(["check_trains", "check_resident", "check_spread", "beam3"], tmp_path, path, smoke)
    # What is skipped for want of a GPU is no failure where nobody said that there is one.
    assert sorted(failed) == [*([] if smoke else ["check_resident"]), "check_spread", "check_trains"]
    found = json.loads(path.read_text())
    assert found["beam3"]["ours"] == 2.0 and found["check_trains"]["not_run"] == "AssertionError: the loss rose"
    printed = capsys.readouterr().out
    assert "check_trains: FAILED, AssertionError: the loss rose" in printed
    assert f"check_resident: {'skipped' if smoke else 'FAILED'}, {gpu_checks.NEEDS_CUDA}" in printed


def test_a_failure_is_the_exit_status_and_a_machine_without_a_gpu_says_so(answers, tmp_path, monkeypatch):
    results = ["--results", str(tmp_path / "results.json")]
    gpu.main(["--smoke", "--only", "beam3", "check_resident", *results])
    with pytest.raises(SystemExit, match="Failed, see above: check_spread"):
        gpu.main(["--smoke", "--only", "beam3", "check_spread", *results])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="has no CUDA device: --smoke"):
        gpu.main(results)


def test_rows_beyond_the_time_are_failures_and_a_row_that_hangs_is_ended(answers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "SECONDS", -1.0)
    assert gpu.measure_all(["beam3"], tmp_path, tmp_path / "results.json", False) == ["beam3"]
    assert "beam3: FAILED, no time was left for it" in capsys.readouterr().out
    monkeypatch.undo()
    (tmp_path / "hanging.py").write_text("import time\n\ndef measure():\n    time.sleep(60)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run.in_a_process(run.Job("hanging", ("x",), {}, 0.5))["reason"] == "it took longer than 0 s"


def test_the_names_are_those_of_what_is_measured():
    assert tuple(gpu_checks.CHECKS) == gpu.CHECKS and set(gpu.MEASURES) == set(gpu.ROWS)
    assert set(gpu.KERNELS) < set(gpu.ROWS) < set(gpu.NAMES)
    assert len(gpu.NAMES) == len(set(gpu.NAMES)) and set(gpu_checks.ONLY_CUDA) < set(gpu.CHECKS)


def test_the_comparison_of_checkpoints_sees_a_difference(tiny_run):
    gpu_checks.must_have_the_same_bits(tiny_run / LAST, tiny_run / LAST)
    with pytest.raises(AssertionError, match="tensors differ"):
        gpu_checks.must_have_the_same_bits(tiny_run / LAST, best_files(tiny_run)[-1])


def test_the_cache_of_random_features_is_a_whole_one(tmp_path):
    def make(_):
        raise AssertionError("it was not there")

    source = caches.Source(11, make, "features", chunk=2)  # six chunks of four kinds, the last one shorter
    gpu.fill_cache(tmp_path / "cache", source, (3, 4))
    rows = caches.cached_rows(tmp_path / "cache", source, 0)
    assert len(rows) == 11 and rows[10].shape == (3, 4) and rows[10].dtype == np.float16
    assert (rows[0] == rows[8]).all() and (rows[0] != rows[2]).any()


@pytest.mark.long  # the profiler starts slowly
def test_the_largest_kernels_are_told_with_their_shares():
    a = torch.randn(200, 200)
    found = gpu.kernels(lambda: [a @ a for _ in range(5)], "cpu", "five products")
    assert found["kernels"][0][0] == "aten::mm" and found["kernels"][0][2] > 0.5
    assert sum(share for *_, share in found["kernels"]) <= 1.0001 and found["note"].startswith("five products: ")


@pytest.mark.long
def test_all_of_it_runs_tiny_on_the_cpu():
    done = subprocess.run([sys.executable, "benchmarks/gpu.py", "--smoke"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = {line.split(":")[0].strip() for line in done.stdout.splitlines() if ": skipped, " in line}
    assert skipped == {"vit_b_compiled", *(f"check_{name}" for name in gpu_checks.ONLY_CUDA)}
    assert "The smoke test keeps no results." in done.stdout and "FAILED" not in done.stdout
