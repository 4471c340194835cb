"""The lock holds what the requirements pin, with hashes and without a host; everything that is required is used."""

import runpy
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT

tool = runpy.run_path(str(ROOT / "docs" / "dependencies.py"))


def test_requirements_lock_pyproject_and_imports_agree():
    assert list(tool["disagreements"]()) == []
    lock = tool["locked"]((ROOT / "requirements.lock").read_text())
    assert len(lock) > 100 and lock["torch"][1] >= 2 and lock["pillow"][0] == {"12.3.0"}


def test_the_page_names_every_package_of_the_lock():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    for name, (versions, _) in tool["locked"]((ROOT / "requirements.lock").read_text()).items():
        assert f"| {name} | {', '.join(sorted(versions))} |" in text


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("requirements.txt", "requirements-demo.txt", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)  # enough for what is told here
    return tmp_path


@pytest.mark.parametrize(("file", "before", "after", "told"), [
    ("requirements.txt", "numpy==2.4.6", "numpy==2.4.7", "numpy: requirements say 2.4.7, the lock has 2.4.6"),
    ("requirements.txt", "tqdm==4.70.1", "tqdm==4.70.1\nsix==1.17.0", "six: requirements say 1.17.0"),
    ("requirements.txt", "tqdm==4.70.1", "tqdm==4.70.1\nrich==15.0.0", "rich: required, but nothing imports it"),
    ("pyproject.toml", '"safetensors>=0.7"', '"safetensors>=0.9"', "safetensors: pyproject.toml wants >=0.9"),
    ("requirements.lock", "tqdm==4.70.1 \\\n    --hash", "tqdm==4.70.1 \\\n    #", "tqdm has no hash"),
    ("requirements.lock", "accelerate==", "--index-url https://example.org\naccelerate==", "names a host"),
])  # fmt: skip
def test_the_control_each_disagreement_is_told(copy, file, before, after, told):
    text = (copy / file).read_text()
    assert before in text
    changed = text.replace(before, after)
    if "no hash" in told:
        changed = changed.replace(changed.partition("    #")[2].partition("\ntra")[0], "")
    (copy / file).write_text(changed)
    assert any(told in line for line in tool["disagreements"](copy)), list(tool["disagreements"](copy))
