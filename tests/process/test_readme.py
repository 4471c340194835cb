"""The README's own commands, run in miniature and in their order, as a newcomer would type them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nanocaption import metrics
from tests.conftest import CUTOFF, TINY_MODEL
from tests.processes import Done, command
from tests.raw_sets import ROOT
from tests.unit.test_documents import COMMANDS, README


def run(line: str, cwd: Path, *more: str, anew: bool = False) -> str:
    """What a command line of the README prints; `anew`: by another interpreter, without anything imported."""
    words = [word for word in shlex.split(line, comments=True) if word != "python"] + list(more)
    if anew:
        program = ["-m", "nanocaption"] if words[0] == "nanocaption" else [str(ROOT / words[0])]
        found = subprocess.run(
            [sys.executable, *program, *words[1:]], cwd=cwd, capture_output=True, text=True, timeout=200,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        done = Done(found.returncode, found.stdout, found.stderr)
    else:
        done = command(cwd, *words)
    assert done.code == 0, f"{line}\n{done.err}"
    return done.out


@pytest.mark.parametrize("anew", [False, pytest.param(True, marks=pytest.mark.long)], ids=["warm", "anew"])
def test_the_commands_of_the_first_block_work_in_their_order(demo_data, tmp_path, anew):
    """train, evaluate, caption: a run with its curves, its scores and pages, and a caption; then a resume."""
    place = tmp_path / "newcomer"
    place.mkdir()
    (place / "data").symlink_to(demo_data)
    train, evaluate, caption = COMMANDS[:3]
    assert (train, evaluate) == ("python train.py", "python evaluate.py")
    assert caption.startswith("nanocaption caption data/demo/images/")
    out = run(train, place, *TINY_MODEL.split(), "--data-cutoff", str(CUTOFF), "--num-epochs", "2", anew=anew)
    assert "best checkpoint: runs/demo-001/checkpoint_epoch_" in out and "curves: runs/demo-001/curves.png" in out
    assert (place / "runs" / "demo-001" / "curves.png").is_file() == anew  # drawn by another interpreter only

    out = run(evaluate, place, anew=anew)
    assert "CIDEr" in out and "true colours" in out and "Only 24 images" in out
    (folder,) = (place / "runs" / "demo-001").glob("eval_test_*")
    assert f"{folder.name}/report.html" in out
    predictions = json.loads((folder / "predictions.json").read_text())
    assert len(predictions) == CUTOFF and set(predictions[0]) >= {"image_id", "caption"}
    scores = json.loads((folder / "scores.json").read_text())
    references: dict[int, list[str]] = {}
    for row in json.loads((folder / "references.json").read_text())["annotations"]:
        references.setdefault(row["image_id"], []).append(row["caption"])
    assert metrics.score(references, {row["image_id"]: row["caption"] for row in predictions}) == scores["corpus"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64") == CUTOFF and "http://" not in page and "https://" not in page

    picture = "data/demo/images/scene_00050.jpg"
    line = re.sub(r"data/demo/images/\S+", picture, caption)
    assert run(line, place, anew=anew).startswith(f"{picture}: ")
    (row,) = json.loads(run(line, place, "--num-captions", "3", "--json"))
    log_probs = [found["log_prob"] for found in row["captions"]]
    assert len(log_probs) == 3 and all(value < 0 for value in log_probs)

    resume = "python train.py --resume-checkpoint-path last"
    assert resume in COMMANDS
    assert "resumed after epoch 2" in run(resume, place, "--num-epochs", "3")


def test_an_own_folder_works_in_the_three_steps(demo_data, tmp_path):
    """captions.csv beside pictures, no split column."""
    assert "`file_name,caption`" in README and "--raw-data-dir" in README
    folder, place = tmp_path / "pictures", tmp_path / "place"
    folder.mkdir()
    place.mkdir()
    rows = ["file_name,caption"]
    for record in json.loads((demo_data / "demo" / "captions.json").read_text())["images"]:
        name = record["file_name"]
        (folder / name).write_bytes((demo_data / "demo" / "images" / name).read_bytes())
        rows += [f'{name},"{caption}"' for caption in record["captions"][:2]]
    (folder / "captions.csv").write_text("\n".join(rows))
    before = sorted(path.name for path in folder.iterdir())
    flags = ["--num-epochs", "1", *TINY_MODEL.split()]
    out = run("python train.py --dataset mine", place, "--raw-data-dir", str(folder), *flags)
    assert "best checkpoint: runs/mine-001/" in out
    assert sorted(path.name for path in folder.iterdir()) == before
    assert "CIDEr" in run("python evaluate.py --split val", place)
