"""notebooks/quickstart.ipynb: as a notebook is written, and run from top to bottom, in miniature."""

import json
import os
import sys

import pytest

from tests.conftest import CUTOFF, ROOT, TINY_MODEL

NOTEBOOK = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))


def test_it_is_a_notebook_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    cells = NOTEBOOK["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells) > 20
    for cell in cells:
        more = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == {"cell_type", "id", "metadata", "source", *more} and cell["metadata"] == {}
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and not cell["source"][-1].endswith("\n")
        assert len(cell["source"]) <= 18
        if more:
            assert (cell["execution_count"], cell["outputs"]) == (None, [])


@pytest.mark.long  # three trainings and what follows them, 35 s of one core
def test_its_cells_run_in_their_order(demo_data, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(demo_data / "demo")
    monkeypatch.setenv("QUICKSTART_FOLDER", str(tmp_path))
    monkeypatch.setenv("QUICKSTART_FLAGS", f"{TINY_MODEL} --data-cutoff {CUTOFF}")
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = sorted(os.listdir(ROOT)), sorted(os.listdir(ROOT / "notebooks"))
    names: dict[str, object] = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    out = capsys.readouterr().out
    for told in ("best checkpoint: runs/demo-001", "CIDEr", "resumed after epoch 4", "best checkpoint: runs/mine-001",
                 "my_captioner: runs/demo-001"):  # fmt: skip
        assert told in out, told
    assert names["model"].caption(names["paths"][1]) == out.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "runs", "my_pictures", "my_captioner", "words.png"}
    assert (sorted(os.listdir(ROOT)), sorted(os.listdir(ROOT / "notebooks"))) == before
