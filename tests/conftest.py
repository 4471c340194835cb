"""Shared by the tests: the miniature of the demo set, of a model and of a run, each made once and handed out as copies.

What waits for the machine and not for the code is switched off here: a report's drawing, the disk's own moment.
"""

import fcntl
import gc
import os
import shutil
import signal
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

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: tests send Ctrl-C to themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.dont_write_bytecode:  # all tests' asserts would be rewritten anew by every process: seconds of each
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "bytecode")
check_report.draw = lambda *_: None  # half a second of every set; one test of test_preflight.py draws
os.fsync = lambda _: None  # what a killed process wrote stays without it; only a power cut would tell the difference

ROOT = Path(__file__).resolve().parents[1]
CUTOFF = 24
# The longest first: begun last, one of them would keep the other processes waiting.
SLOW_FILES = ("test_resume", "test_readme", "test_train", "test_faults", "test_fsdp", "test_evaluate")

TINY_MODEL = """
    --vit-layers 1 --vit-embed-dim 32 --vit-heads 2 --image-size 32 --decoder-layers 1 --decoder-embed-dim 32
    --decoder-heads 2 --decoder-ff-dim 64 --vocab-size 320 --num-workers 0 --batch-size 20 --warmup-steps 2
    --validation-score-images 4 --learning-rate 3e-3 --max-seq-len 24
    """
TINY_RUN = "--num-epochs 2 --decoder-dropout 0.2 --keep-best 3 --run-name run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish() -> None:
    gc.freeze()  # what the imports made stays: neither this process nor those forked from it go through it again


def tiny_flags(data: Path, output: Path) -> list[str]:
    """Of a run that takes less than a second: 24 pictures of each split, steps of 4 pictures, 6 of them an epoch."""
    return ["--data-dir", str(data), "--output-dir", str(output), "--data-cutoff", str(CUTOFF), *TINY_MODEL.split()]


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


@pytest.fixture(autouse=True)
def no_drawing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and evaluations within a test draw nothing, which would take as long as they do.

    Module fixtures draw, and so do the tests of reports and of the notebook, which shows its curves.
    """
    if "notebook" in request.path.stem:
        return
    if "train" in sys.modules:
        monkeypatch.setattr(sys.modules["train"], "plot_curves", lambda *_, **__: None)
    if "report" not in request.path.stem and "nanocaption.score.report_html" in sys.modules:
        monkeypatch.setattr(sys.modules["nanocaption.score.report_html"], "svg", lambda _: "<svg></svg>")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """once(name, make): the folder that make(folder) filled, in whichever of pytest's processes came first."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = place / f"once-{name}"
        with (place / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                half = place / f"half-{name}"
                shutil.rmtree(half, ignore_errors=True)
                half.mkdir()
                make(half)
                half.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def demo_data(once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATA_DIR that holds the first pictures of the demo set, CUTOFF of each split; this process's own copy."""
    made = once("data", lambda folder: prepare("demo", folder, seed=1, cutoff=CUTOFF))
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("data"), dirs_exist_ok=True))


@pytest.fixture
def flags(demo_data: Path, tmp_path: Path) -> list[str]:
    """The flags of a run of a second: miniature data, model and output folder."""
    return tiny_flags(demo_data, tmp_path / "runs")


@pytest.fixture(scope="session")
def tiny_run_made(once, demo_data: Path) -> Path:
    """The folder of a run of two epochs with dropout, whose checkpoints are all kept; to be read only."""
    from tests import processes

    def train_it(folder: Path) -> None:
        argv = [*tiny_flags(demo_data, folder), *TINY_RUN.split()]
        assert processes.end(processes.start(argv, folder / "printed")) == 0, (folder / "printed").read_text()

    return once("run", train_it) / "run"


@pytest.fixture
def tiny_run(tiny_run_made: Path, tmp_path: Path) -> Path:
    """A copy of that run, in the output folder of `flags`."""
    return Path(shutil.copytree(tiny_run_made, tmp_path / "runs" / "run"))
