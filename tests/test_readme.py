"""The README's own commands, run in miniature and in their order, as a newcomer would type them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import train
from nanocaption import metrics
from nanocaption.base.settings import load_settings
from nanocaption.commands import caption
from tests.conftest import CUTOFF, ROOT, TINY_MODEL

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("python ", "nanocaption "))
]
# Commands that need the network, other files, or that are tested elsewhere in full.
NOT_HERE = ("pytest", "recipes/", "flickr30k")


def run(command: str, cwd: Path, *more: str) -> str:
    words = shlex.split(command, comments=True)
    if words[0] == "nanocaption":  # the same without an installation
        words = ["python", "-m", *words]
    assert words[0] == "python"
    script = [str(ROOT / words[1])] if words[1].endswith(".py") else words[1:3]
    rest = words[2:] if words[1].endswith(".py") else words[3:]
    done = subprocess.run(
        [sys.executable, *script, *rest, *more], cwd=cwd, capture_output=True, text=True, timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, demo_data: Path) -> Path:
    """A working folder as after `python train.py`, with the outputs of the first three commands."""
    place = tmp_path_factory.mktemp("newcomer")
    (place / "data").symlink_to(demo_data)
    return place


def test_the_commands_of_the_first_block_work_in_their_order(place, monkeypatch, capsys):
    """train, evaluate, caption: a run, its scores and pages, and a caption."""
    first = [command for command in COMMANDS if not any(word in command for word in NOT_HERE)]
    shown = "data/demo/images/scene_02200.jpg"
    assert first[:3] == ["python train.py", "python evaluate.py", f"nanocaption caption {shown}"]
    out = run(first[0], place, *TINY_MODEL.split(), "--data-cutoff", str(CUTOFF), "--num-epochs", "2")
    assert "best checkpoint: runs/demo-001/checkpoint_epoch_" in out

    out = run(first[1], place)
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
    assert run(f"nanocaption caption {picture}", place).startswith(f"{picture}: ")
    monkeypatch.chdir(place)
    caption.main([picture, "--num-captions", "3", "--json"])
    rows = json.loads(capsys.readouterr().out)
    log_probs = [found["log_prob"] for found in rows[0]["captions"]]
    assert len(log_probs) == 3 and all(value < 0 for value in log_probs)

    resume = "python train.py --resume-checkpoint-path last"
    assert resume in COMMANDS
    train.main([*resume.split()[2:], "--num-epochs", "3"])
    assert "resumed after epoch 2" in capsys.readouterr().out


def test_an_own_folder_works_in_the_three_steps(demo_data, tmp_path, monkeypatch, capsys):
    """captions.csv beside pictures, no split column."""
    assert "columns `file_name,caption`" in README and "--raw-data-dir FOLDER" in README
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = ["file_name,caption"]
    for record in json.loads((demo_data / "demo" / "captions.json").read_text())["images"]:
        name = record["file_name"]
        (folder / name).write_bytes((demo_data / "demo" / "images" / name).read_bytes())
        rows += [f'{name},"{caption}"' for caption in record["captions"][:2]]
    (folder / "captions.csv").write_text("\n".join(rows))
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.chdir(tmp_path)
    train.main(["--dataset", "mine", "--raw-data-dir", str(folder), "--num-epochs", "1", *TINY_MODEL.split()])
    assert "best checkpoint: runs/mine-001/" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == before
    evaluate.main(["--split", "val"])
    assert "CIDEr" in capsys.readouterr().out


def test_every_train_command_and_recipe_has_settings_that_pass():
    commands = [shlex.split(command)[2:] for command in COMMANDS if command.startswith("python train.py")]
    assert len(commands) >= 4
    recipes = [[str(path)] for path in (ROOT / "recipes").glob("*.py")]
    for words in commands + recipes:
        load_settings([str(ROOT / word) if word.startswith("recipes/") else word for word in words])


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert "@@" not in README and "TODO" not in README


def test_every_file_the_readme_names_is_there():
    for name in re.findall(r"`([\w/.]+\.(?:py|md|txt))`", README) + re.findall(r"\]\(([^)]+\.png)\)", README):
        if name not in ("merges.txt", "captions.txt"):  # of a data set
            assert (ROOT / name).is_file(), name


def test_every_flag_the_readme_names_is_one():
    helps = "".join(
        subprocess.run(
            [sys.executable, "-m", "nanocaption", name, "--help"],
            capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
        ).stdout
        for name in ("train", "evaluate", "prepare", "caption", "export", "demo", "score")
    )  # fmt: skip
    others = {"--nproc-per-node", "--flag", "--signals-to-handle"}
    flags = set(re.findall(r"--[a-z][a-z-]+", README)) - others
    assert len(flags) > 10
    for flag in flags:
        assert re.search(rf"{flag}\b", helps), flag
