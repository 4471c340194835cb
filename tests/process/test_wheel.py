"""The package as people install it: a wheel in a fresh environment, used from a folder with files of its own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

import nanocaption

ROOT = Path(nanocaption.__file__).resolve().parents[1]
OLD = Path(__file__).with_name("old_build")
STRANGERS = ("model.py", "config.py", "files.py", "options.py", "train.py", "tokenizer.py")
TINY = [
    "--data-cutoff=12", "--num-epochs=1", "--vit-layers=1", "--vit-embed-dim=16", "--vit-heads=2", "--image-size=32",
    "--decoder-layers=1", "--decoder-embed-dim=16", "--decoder-heads=2", "--decoder-ff-dim=32", "--vocab-size=280",
    "--batch-size=20", "--run-name=tiny",
]  # fmt: skip
# At the root: nothing of it belongs into the package, and copying it would take long.
LEFT_OUT = {".git", ".venv", "data", "runs", "wandb", "tests", "benchmarks", "docs", "notebooks"}


def run(*command: str | Path, **how) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, **how)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The bin folder of an environment of its own with the wheel in it, above the packages of this one."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    shutil.copytree(ROOT, source, ignore=lambda place, names: LEFT_OUT & set(names) if Path(place) == ROOT else ())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place, source)
    run(sys.executable, "-m", "venv", "--without-pip", place / "env")
    (wheel,) = place.glob("nanocaption-*.whl")
    (packages,) = (place / "env").glob("lib/python*/site-packages")
    run(*pip, "--python", place / "env/bin/python", "install", "--no-deps", "--no-index", wheel)
    added = {path.name for path in packages.iterdir()}
    assert added == {"nanocaption", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    page = {path.name for path in (ROOT / "nanocaption/export/page").iterdir()}
    assert {path.name for path in (packages / "nanocaption/export/page").iterdir()} == page and "index.html" in page
    (packages / "present.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return place / "env" / "bin"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of somebody's own, with files that are called as some of ours are or were."""
    for name in STRANGERS:
        (tmp_path / name).write_text(f"raise SystemExit('this is my own {name}')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_scores_and_loads_from_a_folder_of_ones_own(environment, folder):
    (folder / "references.json").write_text(json.dumps({"1": ["a dog runs", "the dog"], "2": ["a cat", "one cat"]}))
    (folder / "predictions.json").write_text(json.dumps({"1": "a dog runs", "2": "a cat"}))
    assert "CIDEr" in run(environment / "nanocaption", "score", "references.json", "predictions.json")
    code = "import nanocaption; print(nanocaption.__file__, nanocaption.score({1: ['a dog', 'the dog']}, {1: 'a dog'}))"
    assert str(environment.parent) in run(environment / "python", "-P", "-c", code)


@pytest.mark.long
def test_captions_from_a_folder_of_ones_own(environment, folder):
    picture = folder / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    # In one process, as each imports torch: `python -m nanocaption caption`, and what is imported.
    code = "import nanocaption, runpy, sys; picture = sys.argv[2]; "
    code += "print(nanocaption.__file__, nanocaption.load(sys.argv[1]).caption(picture))"
    code += "; sys.argv = ['nanocaption', 'caption', picture, '--checkpoint', sys.argv[1]]"
    code += "; runpy.run_module('nanocaption', run_name='__main__')"
    loaded, by_module = run(environment / "python", "-P", "-c", code, OLD / "export", picture).splitlines()
    assert str(environment.parent) in loaded and by_module.startswith(f"{picture}: ")


@pytest.mark.long
def test_a_training_of_three_steps_from_a_folder_of_ones_own(environment, folder):
    printed = run(environment / "nanocaption", "train", *TINY)
    assert "3 steps per epoch, 3 in all" in printed and (folder / "runs/tiny/last.safetensors").is_file()
    picture = next((folder / "data/demo/images").iterdir())
    assert run(environment / "nanocaption", "caption", picture).startswith(f"{picture}: ")


def test_an_own_config_py_comes_first_and_recipes_are_found(environment, folder):
    (folder / "config.py").write_text("DATA_CUTOFF = 12\nOUTPUT_DIR: str = 'elsewhere'\n")
    printed = run(environment / "nanocaption", "train", "--help")
    assert "[elsewhere]" in printed and "usage: nanocaption train [recipe]" in printed
    run(environment / "nanocaption", "prepare", "recipes/demo.py")
    manifest = json.loads((folder / "data/demo/manifest.json").read_text())
    assert manifest["counts"]["train"]["images"] == 12


def test_without_torch_the_metrics_work_and_the_rest_says_what_to_install(environment, folder):
    """The base install stands in as an environment that sees numpy and what belongs to it, and no torch."""
    blocked = "import sys; sys.modules['torch'] = None; sys.argv = ['nanocaption', *{words}]\n"
    blocked += "import importlib.util as u; real = u.find_spec\n"
    blocked += "u.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest)\n"
    blocked += "from nanocaption.__main__ import main; main()"
    done = subprocess.run(
        [environment / "python", "-P", "-c", blocked.format(words=["train"])], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "nanocaption train needs torch: pip install 'nanocaption[train]'\n"
    (folder / "r.json").write_text(json.dumps({"1": ["a dog", "the dog"], "2": ["a cat", "cats"]}))
    (folder / "p.json").write_text(json.dumps({"1": "a dog", "2": "a cat"}))
    assert "CIDEr" in run(environment / "python", "-P", "-c", blocked.format(words=["score", "r.json", "p.json"]))


@pytest.mark.long
def test_a_file_that_loads_captions_and_scores_is_clean_under_mypy(environment, folder):
    (folder / "mine.py").write_text(
        "import io\n"
        "from pathlib import Path\n\n"
        "import nanocaption\n"
        "import numpy as np\n"
        "import torch\n"
        "from PIL import Image\n\n"
        "model = nanocaption.load('my_captioner', revision=None, device='cpu', dtype='bfloat16')\n"
        "model = model.to('cpu').half()\n"
        "text: str = model.caption('photo.jpg')\n"
        "text = model.caption(Path('photo.jpg'), num_beams=5, max_new_tokens=20)\n"
        "text = model.caption(Image.open('photo.jpg'))\n"
        "text = model.caption(b'', beam_size=2)\n"
        "text = model.caption(io.BytesIO(b''))\n"
        "text = model.caption(open('photo.jpg', 'rb'))\n"
        "text = model.caption(np.zeros((9, 9, 3), dtype=np.uint8))\n"
        "text = model.caption(torch.zeros(3, 9, 9))\n"
        "texts: list[str] = model.caption([Path('a.jpg'), Path('b.jpg')], do_sample=True, top_p=0.9, seed=1)\n"
        "texts = model.caption(Path(name) for name in ('a.jpg', 'b.jpg'))\n"
        "for captions in model.captions(['a.jpg'], attention=True, num_return_sequences=2):\n"
        "    for caption in captions:\n"
        "        tokens: tuple[str, ...] = caption.tokens\n"
        "        total: float = caption.log_prob\n"
        "        seen: torch.Tensor | None = caption.attention\n"
        "url: str = model.push_to_hub('user/name', private=True)\n"
        "references: dict[str, list[str]] = {'1.jpg': ['a dog', 'the dog']}\n"
        "scores: dict[str, float] = nanocaption.score(references, {'1.jpg': text})\n"
        "print(text, scores['CIDEr'], nanocaption.__version__)\n"
    )
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", environment / "python", "mine.py")
    assert "Success" in run(*command)
    (folder / "mine.py").write_text("import nanocaption\n\nnumber: int = nanocaption.load('my').caption('a')\n")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1 and "Incompatible types in assignment" in done.stdout
    (folder / "mine.py").write_text("import nanocaption\n\nnanocaption.load('my').caption('a', num_beam=3)\n")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1 and 'Unexpected keyword argument "num_beam"' in done.stdout
