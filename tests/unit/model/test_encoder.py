"""Pretrained towers of every supported kind load, quietly and whole, and all their patch tokens reach the decoder."""

import json
import shutil

import pytest
import torch

from nanocaption.base.settings import load_settings
from nanocaption.model.captioner import build_model
from nanocaption.model.encoder import VisionTransformer

_SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_TEXT = {**{k: v for k, v in _SIZES.items() if "size" not in k or k == "hidden_size"}, "vocab_size": 40}
SQUASHED = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2,
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7],
}  # fmt: skip
CROPPED = {
    "image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "size": {"shortest_edge": 36},
    "crop_size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
}  # fmt: skip
SQUASHED_SPEC = {
    "size": 32, "resize": 32, "crop": False, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7],
    "interpolation": "bilinear",
}  # fmt: skip
CROPPED_SPEC = {
    "size": 32, "resize": 36, "crop": True, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic",
}  # fmt: skip
# name -> (preprocessor file, tokens: 16 patches, with or without class and distillation tokens)
TOWERS = {
    "vit": (SQUASHED, 17), "vit classifier": (SQUASHED, 17), "deit": (SQUASHED, 18), "dinov2": (CROPPED, 17),
    "clip": (CROPPED, 17), "clip vision": (CROPPED, 17), "siglip": (SQUASHED, 16), "siglip vision": (SQUASHED, 16),
}  # fmt: skip


def source_model(name: str):
    """A random model of transformers, and the tower inside it that the encoder must equal."""
    import transformers as t

    if name in ("clip", "siglip"):
        kind = "CLIP" if name == "clip" else "Siglip"
        full = getattr(t, f"{kind}Model")(getattr(t, f"{kind}Config")(vision_config=_SIZES, text_config=_TEXT))
        return full, full.vision_model
    kind = {
        "vit": "ViT", "vit classifier": "ViT", "deit": "DeiT", "dinov2": "Dinov2",
        "clip vision": "CLIPVision", "siglip vision": "SiglipVision",
    }[name]  # fmt: skip
    model_config = getattr(t, f"{kind}Config")(**_SIZES)
    if name == "vit classifier":
        full = t.ViTForImageClassification(model_config)
        return full, full.vit
    tower = getattr(t, f"{kind}Model")(model_config)
    return tower, tower


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """name -> (folder, features of PIXELS by the source model)"""
    found = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, (preprocessor, _) in TOWERS.items():
            folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
            full, tower = source_model(name)
            full.eval().save_pretrained(folder)
            (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
            with torch.no_grad():
                found[name] = (folder, tower(PIXELS).last_hidden_state)
    return found


PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def captioner(folder, *flags: str, arguments=None):
    argv = ["--encoder-model-name", str(folder), "--image-size", "none", "--decoder-layers", "1"]
    argv += ["--decoder-embed-dim", "8", "--decoder-heads", "2", "--decoder-ff-dim", "16", "--max-seq-len", "6", *flags]
    return build_model(dict(load_settings(argv).values), 30, arguments)


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_loads_quietly_and_gives_its_own_features(towers, name, capfd):
    folder, features = towers[name]
    capfd.readouterr()
    model = captioner(folder).eval()
    assert capfd.readouterr() == ("", "")
    preprocessor, tokens = TOWERS[name]
    assert model.image_spec == (CROPPED_SPEC if preprocessor is CROPPED else SQUASHED_SPEC)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(PIXELS), features)
        assert model.memory(PIXELS).shape == (2, tokens, 8)
        assert model(PIXELS, torch.tensor([[1, 5], [1, 6]])).shape == (2, 2, 30)


@pytest.mark.parametrize("name", [*TOWERS, None])
def test_an_encoder_that_trains_computes_the_kept_patches_alone(towers, name):
    model = captioner(towers[name][0] if name else "none", "--image-size", "32", "--vit-patch-size", "8").eval()
    kept = torch.tensor([[0, 5, 6], [1, 5, 15]])
    unseen = PIXELS.clone()
    unseen[:, :, 16:24, 16:24] += 1  # patch 10, where each patch is 8 x 8; the conv stem sees a little around
    seen = unseen.clone()
    seen[:, :, 8:16, 8:16] += 1  # patch 5
    features = model.encode(PIXELS, kept)
    assert features.shape[1] == model.encode(PIXELS).shape[1] - 16 + 3
    if name:
        assert torch.equal(model.encode(unseen, kept), features)
    assert not torch.equal(model.encode(seen, kept), features)
    assert torch.equal(model.memory(PIXELS, kept), model.memory(features))
    torch.testing.assert_close(model.encode(PIXELS, torch.arange(16).expand(2, -1)), model.encode(PIXELS))
    features.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())


@pytest.mark.parametrize("name", TOWERS)
def test_images_smaller_than_a_patch_are_refused(towers, name):
    with pytest.raises(ValueError, match=r"^IMAGE_SIZE = 1: less than one patch of the encoder. Give \d+ or more"):
        captioner(towers[name][0], "--image-size", "1")


@pytest.mark.parametrize("name", TOWERS)
def test_pixels_that_no_patch_would_see_are_refused(towers, name):
    patch = captioner(towers[name][0]).encoder.patch_size
    with pytest.raises(ValueError) as refused:
        captioner(towers[name][0], "--image-size", str(3 * patch - 1))
    assert f"IMAGE_SIZE = {3 * patch - 1}: must be a multiple of the encoder's patch of {patch}" in str(refused.value)
    assert f"Give {2 * patch} or {3 * patch}." in str(refused.value)


@pytest.mark.parametrize("name", TOWERS)
def test_a_checkpoint_rebuilds_the_tower_without_its_folder(towers, name, tmp_path):
    folder, _ = towers[name]
    copied = tmp_path / "tower"
    shutil.copytree(folder, copied)
    model = captioner(copied).eval()
    stored = json.loads(json.dumps(model.arguments()))
    shutil.rmtree(copied)
    again = captioner(copied, arguments=stored).eval()
    tokens = torch.tensor([[1, 5], [1, 6]])
    with torch.no_grad():
        assert not torch.allclose(again(PIXELS, tokens), model(PIXELS, tokens))  # random weights so far
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(PIXELS, tokens), model(PIXELS, tokens))
    assert again.image_spec == model.image_spec


@pytest.mark.parametrize("name", ["vit", "clip", "siglip", "dinov2", "deit"])
def test_image_size_gives_more_patches_than_the_towers_own(towers, name):
    model = captioner(towers[name][0], "--image-size", "48")
    assert (model.image_spec["size"], model.image_spec["resize"]) == (48, 48)
    with torch.no_grad():
        memory = model.memory(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))
    assert memory.shape[1] == TOWERS[name][1] - 16 + 36


def test_uint8_pictures_are_normalised_by_the_towers_own_mean_and_std(towers):
    model = captioner(towers["vit"][0]).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(pixels), model.encode((pixels / 255 - mean) / std))
        assert not torch.allclose(model.encode(pixels), model.encode((pixels / 255 - 0.5) / 0.5))


def test_a_frozen_tower_gets_no_gradient_and_stays_in_eval(towers):
    for frozen in (True, False):
        model = captioner(towers["vit"][0], *(["--freeze-encoder"] if frozen else [])).train()
        assert model.decoder.training and model.encoder.training is not frozen
        assert all(module.training is not frozen for module in model.encoder.modules())
        model(PIXELS, torch.tensor([[1, 5], [1, 6]])).sum().backward()
        has_gradient = [p.grad is not None for p in model.encoder.parameters()]
        assert not any(has_gradient) if frozen else any(has_gradient)
        assert model.memory_projection.weight.grad is not None


# --- what cannot be loaded ---


def refused(name) -> str:
    with pytest.raises(ValueError) as caught:
        captioner(name)
    assert "\n" not in str(caught.value)
    assert f"ENCODER_MODEL_NAME = {str(name)!r}" in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_not_there_is_one_line():
    assert "no such folder" in refused("./nowhere")


def test_a_name_that_the_hub_cannot_give_is_one_line(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be loaded" in refused("nobody/no-such-model")


def test_other_models_are_named_as_what_they_are(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "is a 'bert' model" in refused(tmp_path)


@pytest.mark.parametrize(
    "damage", ["empty folder", "no type", "no preprocessor", "no weights", "cut weights", "other weights", "sizes"]
)
def test_a_damaged_folder_is_one_line(towers, tmp_path, damage):
    folder = tmp_path / "tower"
    shutil.copytree(towers["vit"][0], folder)
    stored = json.loads((folder / "config.json").read_text())
    if damage == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "no type":
        (folder / "config.json").write_text("{}")
    elif damage == "no preprocessor":
        (folder / "preprocessor_config.json").unlink()
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "cut weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other weights":  # would leave the tower as random as it was made
        shutil.copy(towers["clip"][0] / "model.safetensors", folder)
    elif damage == "sizes":
        (folder / "config.json").write_text(json.dumps({**stored, "hidden_size": 24}))
    assert "cannot be loaded" in refused(folder)


def test_verbosity_is_restored_after_loading(towers):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    captioner(towers["vit"][0])
    with pytest.raises(ValueError):
        captioner("./nowhere")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# --- from scratch ---


@pytest.mark.parametrize("stem", ["conv", "patch"])
@pytest.mark.parametrize("patch", [4, 8])
def test_from_scratch_gives_one_token_per_patch_in_reading_order(stem, patch):
    torch.manual_seed(0)
    tower = VisionTransformer(16, patch, stem, width=16, layers=0, heads=2)
    torch.nn.init.zeros_(tower.position)
    blank = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    per_side = 16 // patch
    with torch.no_grad():
        base = tower.stem(blank).flatten(2).transpose(1, 2)
        assert tower(blank).shape == (1, per_side**2, 16)
        # GroupNorm spreads a mark over the whole picture; the conv stem's tokens are laid out by the same line of code.
        for token in range(per_side**2 if stem == "patch" else 0):
            row, column = divmod(token, per_side)
            marked = blank.clone()
            marked[:, :, row * patch, column * patch] += 3.0
            change = (tower.stem(marked).flatten(2).transpose(1, 2) - base).norm(dim=-1)[0]
            assert change.argmax() == token
