"""What a start imports: nothing that takes a second and is not used. By names, not by time."""

import os
import subprocess
import sys

import transformers

from nanocaption.demo_set import draw_scene, sample_scene
from nanocaption.model import exported
from nanocaption.model.captioner import build_model
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST
from tests.conftest import ROOT, tiny_flags

HEAVY = {
    "torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.onnx", "sympy",
    "transformers", "torchvision", "accelerate", "matplotlib", "wandb", "huggingface_hub", "torch.utils.tensorboard",
    "torch.utils.flop_counter", "pandas", "pyarrow",
}  # fmt: skip
TELL = f"print('loaded:', sorted({HEAVY | {'torch', 'tokenizers'}} & set(sys.modules)), flush=True)"
COMMAND = f"""
import atexit, runpy, sys
atexit.register(lambda: {TELL})
sys.argv[0] = "nanocaption"
runpy.run_module("nanocaption", run_name="__main__")
"""
TO_THE_FIRST_STEP = f"""
import os, sys, train
written = train.write_row
def write_row(log, row, *copies):
    written(log, row, *copies)
    if row["type"] == "train":
        {TELL}
        os._exit(0)
train.write_row = write_row
train.main(sys.argv[1:])
"""


def loaded(code: str, *argv: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("loaded: ")]
    return line.removeprefix("loaded: ")


def test_training_comes_to_its_first_step_without_torchs_compiler(demo_data, tmp_path):
    found = loaded(TO_THE_FIRST_STEP, *tiny_flags(demo_data, tmp_path), "--num-epochs", "1")
    assert found == "['tokenizers', 'torch']"


def test_a_model_with_a_vit_captions_without_transformers(tiny_run, tmp_path):
    state = checkpoint.load(tiny_run / LAST)
    vit = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    config = state["config"] | {"ENCODER_MODEL_NAME": "a ViT"}
    spec = {"size": 32, "resize": 32, "crop": False, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    size = len(state["model_state_dict"]["decoder.embedding.weight"])
    model = build_model(config, size, {"encoder_config": vit.to_dict(), "image_spec": spec})
    kept = {"model_state_dict": dict(model.state_dict()), "model_arguments": model.arguments(), "config": config}
    exported.write(tmp_path / "export", state | kept, "A test's model.")
    picture = tmp_path / "a.png"
    draw_scene(sample_scene(1, 1), 64).save(picture)
    found = loaded(COMMAND, "caption", str(picture), "--checkpoint", str(tmp_path / "export"))
    assert found == "['tokenizers', 'torch']"


def test_what_is_loaded_is_seen():
    """Otherwise the two tests above could not fail."""
    assert "matplotlib" in loaded(f"import sys, matplotlib\n{TELL}")
