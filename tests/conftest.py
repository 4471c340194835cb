"""Shared by the tests: a miniature of the demo set, the flags of a miniature model, and the pictures' own folder."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

from nanocaption.base import cli  # noqa: E402
from nanocaption.prepare import check_report  # noqa: E402
from nanocaption.prepare.make import prepare  # noqa: E402

check_report.draw = lambda *_: None  # half a second of every set; test_preflight.py draws

ROOT = Path(__file__).resolve().parents[1]
CUTOFF = 24
# A minute and less each, the longest first: begun last, one of them would keep the other process waiting.
SLOW_FILES = ("test_resume", "test_train", "test_readme", "test_faults", "test_fsdp")

TINY_MODEL = """
    --vit-layers 1 --vit-embed-dim 32 --vit-heads 2 --image-size 32 --decoder-layers 1 --decoder-embed-dim 32
    --decoder-heads 2 --decoder-ff-dim 64 --vocab-size 320 --num-workers 0 --batch-size 20 --warmup-steps 2
    --validation-score-images 4 --learning-rate 3e-3
    """


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def run_command(main: Callable, arguments: list[str]) -> int:
    """The exit code of a command that `nanocaption` runs; what stops it is told on stderr."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["nanocaption", *arguments])
        cli.run(main)
    code = ended.value.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    return 1 if isinstance(code, str) else code


def save_tower(folder: Path):
    """A ViT of a few weights and its preprocessor file, in `folder` as a pretrained one would be; gives the ViT."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    tower = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False)
    tower.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return tower


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATA_DIR that holds the first pictures of the demo set, CUTOFF of each split."""
    folder = tmp_path_factory.mktemp("data")
    prepare("demo", folder, seed=1, cutoff=CUTOFF)
    return folder


@pytest.fixture
def flags(demo_data: Path, tmp_path: Path) -> list[str]:
    """The flags of a run that takes a second: miniature data, model and output folder."""
    places = ["--data-dir", str(demo_data), "--output-dir", str(tmp_path / "runs")]
    return [*places, "--data-cutoff", str(CUTOFF), *TINY_MODEL.split()]
