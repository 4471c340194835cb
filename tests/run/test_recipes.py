"""Every recipe, in miniature: its settings pass, its model is built, it learns from a handful of drawn pictures."""

import ast
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import train
from nanocaption.base.settings import CHECKPOINT_SETTINGS, DATA_SETTINGS, differences, load_settings
from nanocaption.runs import checkpoint
from tests.conftest import ROOT
from tests.processes import rows

RECIPES = sorted((ROOT / "recipes").glob("*.py"))
SMALL = """
    --decoder-layers 1 --decoder-embed-dim 32 --decoder-heads 2 --decoder-ff-dim 64 --vocab-size 320 --batch-size 20
    --num-workers 0 --num-epochs 1 --validation-score-images 0
    """
SMALL_VIT = "--vit-layers 1 --vit-embed-dim 32 --vit-heads 2 --image-size 32"
# The encoder a recipe names -> the kind of its model, as its config.json says
KINDS = {
    "google/vit-base-patch16-224-in21k": "ViT", "openai/clip-vit-base-patch32": "CLIP",
    "openai/clip-vit-large-patch14": "CLIP", "WinKawaks/vit-tiny-patch16-224": "ViT",
}  # fmt: skip


@pytest.fixture(scope="module")
def raw(demo_data, tmp_path_factory) -> Path:
    """Twelve drawn pictures in Karpathy's layout, "restval" among the splits as in COCO."""
    folder = tmp_path_factory.mktemp("raw")
    records = json.loads((demo_data / "demo" / "captions.json").read_text())["images"][:12]
    splits = ["train"] * 6 + ["restval"] * 2 + ["val"] * 2 + ["test"] * 2
    images = []
    for record, split in zip(records, splits, strict=True):
        shutil.copy(demo_data / "demo" / "images" / record["file_name"], folder)
        sentences = [{"raw": caption} for caption in record["captions"]]
        images.append({"filename": record["file_name"], "split": split, "sentences": sentences})
    (folder / "dataset_small.json").write_text(json.dumps({"images": images}))
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> dict[str, Path]:
    """kind -> folder of a random encoder of that kind, as from_pretrained finds the large one."""
    import transformers as t

    sizes = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32}
    picture = {"image_size": 32, "patch_size": 8}
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    models = {
        "ViT": (t.ViTModel(t.ViTConfig(**sizes, **picture)), {"size": {"height": 32, "width": 32}}),
        "CLIP": (
            t.CLIPModel(t.CLIPConfig(vision_config=sizes | picture, text_config=sizes | {"vocab_size": 40})),
            {"do_center_crop": True, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        ),
    }  # fmt: skip
    folders = {}
    for kind, (model, size) in models.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folders[kind])
        name = {"image_processor_type": f"{kind}ImageProcessor"}
        (folders[kind] / "preprocessor_config.json").write_text(json.dumps(name | processor | size))
    return folders


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    monkeypatch.setattr(train, "plot_curves", lambda *_, **__: None)


def run(recipe: Path, name: str, raw: Path, towers: dict[str, Path], flags: list[str], more: tuple[str, ...] = ()):
    """Train by a recipe in miniature; (the settings it asks for, its last checkpoint)."""
    asked = load_settings([str(recipe)])
    argv = [str(recipe), *flags[:4], *SMALL.split(), "--run-name", name, *more]  # of `flags` the two folders
    if asked.OBJECTIVE == "scst":  # an epoch of each objective
        argv += ["--num-epochs", "2", "--scst-start-epoch", "1", "--validation-score-images", "2"]
    if asked.ENCODER_MODEL_NAME is None:
        argv += [*SMALL_VIT.split(), "--data-cutoff", "24"]
    else:
        argv += ["--encoder-model-name", str(towers[KINDS[asked.ENCODER_MODEL_NAME]]), "--raw-data-dir", str(raw)]
        argv[2] = str(raw.parent / "prepared")  # not where other tests have their sets
    train.main(argv)
    folder = Path(flags[3]) / name
    losses = [row["loss"] for row in rows(folder, "train")]
    assert losses and all(map(math.isfinite, losses))
    return asked, checkpoint.load(folder / "last.safetensors")


def encoder_weights(state: dict) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state["model_state_dict"].items() if name.startswith("encoder.")}


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem != "finetune"], ids=lambda path: path.stem)
def test_a_recipe_builds_its_model_and_takes_steps(recipe, raw, towers, flags):
    asked, state = run(recipe, "x", raw, towers, flags)
    kept = ("DATASET", "TRAIN_SPLITS", "FREEZE_ENCODER", "LEARNING_RATE", "DECODER_DROPOUT", "LABEL_SMOOTHING")
    assert not differences(asked, state["config"], kept)
    own = 4 if asked.OBJECTIVE == "scst" else 2
    assert asked.QUESTIONS or state["step"] == (6 if asked.DATASET == "demo" else own)
    if asked.ENCODER_MODEL_NAME is not None:
        assert KINDS[asked.ENCODER_MODEL_NAME].lower() in state["model_arguments"]["encoder_config"]["model_type"]


def test_fine_tuning_goes_on_from_the_weights_of_its_recipe_and_trains_the_encoder_too(raw, towers, flags):
    recipes = {path.stem: path for path in RECIPES}
    _, first = run(recipes["flickr30k_vit_b16"], "first", raw, towers, flags)
    more = ("--init-checkpoint-path", str(Path(flags[3]) / "first" / "last.safetensors"))
    asked, second = run(recipes["finetune"], "second", raw, towers, flags, more)
    assert not asked.FREEZE_ENCODER and asked.ENCODER_LEARNING_RATE < asked.LEARNING_RATE
    before, after = encoder_weights(first), encoder_weights(second)
    assert before and any(not torch.equal(before[name], after[name]) for name in before)
    model = [name for name in CHECKPOINT_SETTINGS if name not in ("FREEZE_ENCODER", *DATA_SETTINGS)]
    assert not differences(asked, dict(load_settings([str(recipes["flickr30k_vit_b16"])]).values), model)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_its_hardware_time_and_score_and_whether_they_were_measured(recipe):
    text = ast.get_docstring(ast.parse(recipe.read_text(encoding="utf-8")))
    assert "GPU" in text or "CPU" in text
    assert "minutes" in text and "CIDEr" in text or "Score: depends" in text
    assert "easured" in text or ("Not run yet" in text and "Estimates" in text)
    assert f"python train.py recipes/{recipe.name}" in text
