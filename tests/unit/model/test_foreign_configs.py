"""Configurations of others: every key of a preprocessor and of a tower is followed, or refused by its name."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nanocaption.base.settings import load_settings
from nanocaption.data.transform import fitted, load_image, seen_part
from nanocaption.model import encoder, preprocessor
from nanocaption.model.captioner import build_model
from nanocaption.model.encoder import at_size, check_available, load_pretrained
from nanocaption.model.preprocessor import read_image_spec
from nanocaption.use.attention import draw_picture
from tests.conftest import ROOT

VIT_TINY = ROOT.parent / "shared" / "data" / "vit_tiny"
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}
DEIT = {"image_processor_type": "DeiTImageProcessor", "size": {"height": 48, "width": 48}, "crop_size": 32}
BIT = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 48}, "crop_size": 32, "resample": 3}
SHAPES = ((37, 53), (300, 451), (450, 31), (32, 32))  # height, width
GREY_LEVELS = 2  # beside the processor's own resize: 0 with torchvision, else 1, and 2 for bicubic

FOLLOWED = {
    "as it is": VIT,
    "not normalised": VIT | {"do_normalize": False},
    "not rescaled": VIT | {"do_rescale": False},
    "bytes": VIT | {"do_rescale": False, "do_normalize": False},
    "another factor": VIT | {"rescale_factor": 1 / 127.5},
    "another factor, not normalised": VIT | {"rescale_factor": 1 / 127.5, "do_normalize": False},
    "one mean": VIT | {"image_mean": [0.4], "image_std": [0.2]},
    "a mean each": VIT | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]},
    "not made RGB": VIT | {"do_convert_rgb": False},
    "nearest": VIT | {"resample": 0},
    "bicubic": VIT | {"resample": 3},
    "an int": VIT | {"size": 40},
    "a list": VIT | {"size": [40, 40]},
    "of the fast kind": VIT | {"image_processor_type": "ViTImageProcessorFast", "use_fast": True},
    "of the slow kind": VIT | {"use_fast": False},
    "on a device that is not here": VIT | {"device": "cuda:7"},
    "an old file": {"feature_extractor_type": "ViTFeatureExtractor", "size": 40, "do_resize": True, "resample": 2},
    "padded to its own size": VIT | {"do_pad": True},
    "cropped": CLIP,
    "cropped, ints": CLIP | {"size": 40},
    "cropped by a ViT's": VIT | {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
    "not cropped": CLIP | {"do_center_crop": False, "size": {"height": 32, "width": 32}},
    "crop with borders": CLIP | {"crop_size": 48},
    "crop with odd borders": CLIP | {"crop_size": 41},
    "squashed, then cropped": DEIT,
    "squashed to no square, then cropped": DEIT | {"size": {"height": 40, "width": 56}},
    "squashed, then borders": DEIT | {"size": {"height": 25, "width": 40}},
    "DINOv2's": BIT,
    "SigLIP's": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
}  # fmt: skip


def write(folder: Path, keys: dict) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(keys))
    return str(folder)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalised(pixels: np.ndarray, spec: dict) -> torch.Tensor:
    """As ImageToTextModel makes it."""
    mean, std = (torch.tensor(spec[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (fitted(torch.from_numpy(pixels).permute(2, 0, 1), spec).float() / 255 - mean) / std


@pytest.mark.parametrize("name", FOLLOWED)
def test_pictures_are_prepared_as_the_encoders_own_processor_does(tmp_path, name):
    from transformers import AutoImageProcessor

    path = write(tmp_path, FOLLOWED[name])
    spec = read_image_spec(path)
    processor = AutoImageProcessor.from_pretrained(path)
    for shape in SHAPES:
        pixels = picture(*shape)
        theirs = processor(Image.fromarray(pixels), return_tensors="pt", device="cpu")["pixel_values"][0]
        ours = normalised(pixels, spec)
        bound = GREY_LEVELS / 255 / torch.tensor(spec["std"]).view(3, 1, 1)
        assert theirs.shape == ours.shape and ((theirs - ours).abs() <= bound * 1.01).all()
        far = ours.roll(1, -1)  # control: a pixel aside it would not pass
        assert not ((theirs - far).abs() <= bound * 1.01).all()


def test_the_two_cases_of_the_issue_were_wrong_before(tmp_path):
    """do_normalize = false, 0.57 on average; "256 square, crop 224" taken for "shorter side 224", 0.15."""
    from transformers import AutoImageProcessor

    bytes_as_shares = read_image_spec(write(tmp_path / "a", VIT | {"do_normalize": False}))
    assert (bytes_as_shares["mean"], bytes_as_shares["std"]) == ([0.0] * 3, [1.0] * 3)
    squashed = read_image_spec(write(tmp_path / "b", {"image_processor_type": "DeiTImageProcessor"}))
    assert (squashed["size"], squashed["resize"], squashed["crop"]) == (224, [256, 256], True)
    pixels = picture(300, 451)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "b")(Image.fromarray(pixels), return_tensors="pt")
    off = normalised(pixels, {**squashed, "resize": 224}) - theirs["pixel_values"][0]
    assert off.abs().mean() > 0.1
    assert (normalised(pixels, squashed) - theirs["pixel_values"][0]).abs().max() < 0.02


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_export_writes_the_same_pictures_for_transformers(tmp_path, name):
    spec = read_image_spec(write(tmp_path / "theirs", FOLLOWED[name]))
    assert json.loads(json.dumps(spec)) == spec
    assert read_image_spec(write(tmp_path / "ours", preprocessor.preprocessor(spec))) == spec


REFUSED = {
    "no resize": (VIT | {"do_resize": False}, "do_resize = False"),
    "no resize, cropped": (CLIP | {"do_resize": False}, "do_resize = False"),
    "not square": (VIT | {"size": {"height": 32, "width": 48}}, "size = {'height': 32, 'width': 48}"),
    "a shape of its own": (VIT | {"size": {"shortest_edge": 32}}, "size = {'shortest_edge': 32}"),
    "CLIP's without crop": (CLIP | {"do_center_crop": False}, "size = {'shortest_edge': 36}"),
    "SigLIP's int": ({"image_processor_type": "SiglipImageProcessor", "size": 32}, "size = {'shortest_edge': 32}"),
    "longest": (VIT | {"size": {"longest_edge": 32}}, "size = {'longest_edge': 32}"),
    "a limit for the longer side": (CLIP | {"size": {"shortest_edge": 36, "longest_edge": 99}}, "'longest_edge': 99"),
    "at most": (VIT | {"size": {"max_height": 32, "max_width": 32}}, "size = {'max_height': 32"),
    "nothing": (VIT | {"size": {"height": 0, "width": 0}}, "size = {'height': 0"),
    "crop not square": (CLIP | {"crop_size": {"height": 32, "width": 30}}, "crop_size = {'height': 32, 'width': 30}"),
    "lanczos": (VIT | {"resample": 1}, "resample = 1"),
    "box": (VIT | {"resample": 4}, "resample = 4"),
    "hamming": (VIT | {"resample": 5}, "resample = 5"),
    "unknown filter": (VIT | {"resample": 6}, "resample = 6"),
    "padded": (VIT | {"do_pad": True, "pad_size": {"height": 48, "width": 48}}, "pad_size = {'height': 48"),
    "two channels": (VIT | {"image_mean": [0.5, 0.5]}, "image_mean = (0.5, 0.5)"),
    "a std of 0": (VIT | {"image_std": [0.5, 0, 0.5]}, "image_std = (0.5, 0, 0.5)"),
    "factor 0": (VIT | {"rescale_factor": 0}, "rescale_factor = 0"),
    "ConvNeXt's": ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.9}, "crop_pct = 0.9"),
    "NaFlex": ({"image_processor_type": "Siglip2ImageProcessor"}, "max_num_patches = 256"),
    "BGR": ({"image_processor_type": "MobileViTImageProcessor"}, "do_flip_channel_order = True"),
    # Nothing in its keys says that it resizes to 256/224 of its size: the comparison does.
    "LeViT's own resize": ({"image_processor_type": "LevitImageProcessor"}, "size = {'shortest_edge': 224}"),
    "Perceiver's own crop": ({"image_processor_type": "PerceiverImageProcessor"}, "do_center_crop = True"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_is_refused_by_key_and_value(tmp_path, name):
    keys, told = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        read_image_spec(write(tmp_path, keys))
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert "preprocessor_config.json of a copy of its folder" in str(refused.value)


@pytest.mark.parametrize("key", ["do_normalize", "do_rescale", "do_center_crop"])
def test_the_comparison_names_the_key_that_a_processor_takes_otherwise(tmp_path, monkeypatch, key):
    """A processor of another version of transformers, which does the same and then something more for one key."""
    from transformers import CLIPImageProcessor

    path, own = write(tmp_path, CLIP | {"size": {"height": 36, "width": 36}}), CLIPImageProcessor._preprocess

    def changed(self, images, **arguments):
        found = own(self, images, **arguments)
        if arguments[key]:
            found["pixel_values"] = found["pixel_values"].flip(-1)
        return found

    read_image_spec(path)  # control
    monkeypatch.setattr(CLIPImageProcessor, "_preprocess", changed)
    with pytest.raises(ValueError, match=f"preprocessor's {key} = True: its CLIPImageProcessor does more with it"):
        read_image_spec(path)


def test_image_size_leaves_out_the_margins_and_keeps_the_shape():
    spec = {"size": 224, "crop": True, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    assert at_size({**spec, "resize": 256}, 320) == {**spec, "size": 320, "resize": 320}
    assert at_size({**spec, "resize": [256, 256]}, 320) == {**spec, "size": 320, "resize": [320, 320]}
    assert at_size({**spec, "resize": [240, 300]}, 320) == {**spec, "size": 320, "resize": [320, 400]}


def test_a_spec_of_before_still_gives_the_same_pixels(tmp_path):
    """Worked out by hand: the one pixel of a 2 x 2 picture that "nearest" took, and takes."""
    pixels = np.array([[[10], [20]], [[30], [40]]], dtype=np.uint8).repeat(3, 2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    old = {"size": 1, "resize": 1, "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "nearest"}
    assert load_image(tmp_path / "a.png", old)[0].tolist() == [[10]]
    assert load_image(tmp_path / "a.png", old | {"interpolation": "nearest-exact"})[0].tolist() == [[40]]
    assert preprocessor.preprocessor(old)["resample"] == 0


def test_what_of_a_picture_is_seen(tmp_path):
    Image.new("RGB", (400, 200)).save(tmp_path / "wide.png")
    spec = {"size": 224, "crop": True, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    assert seen_part(tmp_path / "wide.png", {**spec, "resize": [256, 256]}) == pytest.approx(
        [1 / 16, 1 / 16, 15 / 16, 15 / 16]
    )
    assert seen_part(tmp_path / "wide.png", {**spec, "resize": [224, 448]}) == pytest.approx([0.25, 0, 0.75, 1])
    # 112 high with borders of 56 above and below: twice the picture's height
    assert seen_part(tmp_path / "wide.png", {**spec, "resize": 112}) == pytest.approx([0, -0.5, 1, 1.5])


# --- the towers ---

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
# class of transformers -> tokens before those of the patches
KINDS = {"ViT": 1, "DeiT": 2, "Dinov2": 1, "Dinov2WithRegisters": 5, "CLIPVision": 1, "SiglipVision": 0}


def save(folder: Path, kind: str, more: dict | None = None, keys: dict = VIT):
    """A random tower of transformers in `folder`, every weight drawn; gives it (read only). more: of its config."""
    tower, files = made(kind, json.dumps(more or {}))
    write(folder, keys)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tower


@functools.cache
def made(kind: str, more: str):
    """The tower and its files, made once: most tests take one of the same six."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **json.loads(more)})
    tower = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for weights in tower.parameters():
            weights.normal_(std=0.3, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        tower.save_pretrained(folder)
        return tower, {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def plain_features(kind: str) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(Path(folder), kind)
        return load_pretrained(folder)[0].eval()(images(40))


def change(folder: Path, **keys) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return str(folder)


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, 40, 24, 88])
def test_features_are_those_of_transformers_at_any_size(tmp_path, kind, side):
    tower = save(tmp_path, kind)
    arguments = {} if kind.startswith("Dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        theirs = tower(images(side), **arguments).last_hidden_state
        found, spec = load_pretrained(str(tmp_path), None if side == 32 else side)
        ours = found.eval()(images(side))
    assert spec["size"] == side and ours.shape == (2, KINDS[kind] + (side // 8) ** 2, 16)
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, theirs.roll(1, 1), atol=0.1)  # control: the tokens differ from each other


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_several_blocks_stand_side_by_side(tmp_path, kind):
    tower = save(tmp_path, kind)
    with torch.no_grad():
        theirs = tower(images(32), output_hidden_states=True)
        found, _ = load_pretrained(str(tmp_path), layers=(1, 2))
        ours = found.eval()(images(32))
        again = encoder.rebuild_pretrained(json.loads(json.dumps(found.config)), [1, 2]).eval()
        again.load_state_dict(found.state_dict())
        assert torch.equal(again(images(32)), ours)
    depth = tower.config.num_hidden_layers
    first, second = theirs.hidden_states[1], theirs.hidden_states[2]
    second = theirs.last_hidden_state if depth == 2 else torch.nn.functional.layer_norm(second, (16,))
    torch.testing.assert_close(ours, torch.cat([torch.nn.functional.layer_norm(first, (16,)), second], -1))
    assert found.width == 32
    with pytest.raises(ValueError, match=rf"ENCODER_LAYERS = \(1, {depth + 1}\): it has {depth} blocks") as refused:
        check_available(str(tmp_path), layers=(1, depth + 1))
    assert "\n" not in str(refused.value)


def test_a_tower_whose_own_side_its_patches_do_not_divide_is_taken_as_it_is(tmp_path):
    """As SigLIP's of 384 pixels and patches of 14: the last pixels are not seen, by transformers neither."""
    tower = save(tmp_path, "SiglipVision", {"image_size": 30}, VIT | {"size": {"height": 30, "width": 30}})
    found, spec = load_pretrained(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(images(30)), tower(images(30)).last_hidden_state)
    assert spec["size"] == 30 and found(images(30)).shape[1] == 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "keys",
    [
        {"return_dict": False}, {"output_hidden_states": True}, {"output_attentions": True},
        {"attn_implementation": "eager"}, {"dtype": "float16"}, {"add_pooling_layer": True},
    ],
    ids=lambda keys: next(iter(keys)),
)  # fmt: skip
def test_keys_that_say_how_and_not_what_change_nothing(tmp_path, kind, keys):
    save(tmp_path, kind)
    with torch.no_grad():
        again = load_pretrained(change(tmp_path, **keys))[0].eval()(images(40))
    torch.testing.assert_close(again, plain_features(kind))


@pytest.mark.parametrize(
    "kind, more",
    [
        ("SiglipVision", {"vision_use_head": False}), ("Dinov2WithRegisters", {"num_register_tokens": 9}),
        ("Dinov2", {"use_swiglu_ffn": True}), ("ViT", {"qkv_bias": False}), ("ViT", {"image_size": [32, 32]}),
        ("ViT", {"patch_size": [8, 8]}), ("DeiT", {"image_size": [32, 32]}),
        ("Dinov2", {"patch_size": [8, 8], "image_size": [32, 32]}),
    ],
)  # fmt: skip
def test_keys_that_change_a_tower_are_followed(tmp_path, kind, more):
    tower = save(tmp_path, kind, more)
    with torch.no_grad():
        found, _ = load_pretrained(str(tmp_path))
        torch.testing.assert_close(found.eval()(images(32)), tower(images(32)).last_hidden_state)
        stored = json.loads(json.dumps(found.config))
        again = encoder.rebuild_pretrained(stored).eval()
        again.load_state_dict(found.state_dict())
        assert torch.equal(again(images(32)), found(images(32)))


@pytest.mark.parametrize(
    "kind, keys, told",
    [
        ("ViT", {"image_size": [32, 48]}, "image_size = [32, 48]"),
        ("Dinov2", {"image_size": [32, 48]}, "image_size = [32, 48]"),
        ("Dinov2", {"patch_size": [8, 4]}, "patch_size = [8, 4]"),
        ("ViT", {"num_channels": 1}, "num_channels = 1"),
        ("CLIPVision", {"num_channels": 4}, "num_channels = 4"),
        ("CLIPVision", {"image_size": [32, 32]}, "cannot be loaded"),  # transformers itself does not take it
        ("ViT", {"hidden_act": "no such"}, "no such"),
        ("ViT", {"attn_implementation": "no such"}, "no such"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_work_is_told_before_any_weights_are_read(tmp_path, kind, keys, told):
    save(tmp_path, kind)
    check_available(str(tmp_path))  # control
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError) as refused:
        check_available(change(tmp_path, **keys))
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"ENCODER_MODEL_NAME = {str(tmp_path)!r} cannot be loaded")


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "CLIPVision", "SiglipVision"])
@pytest.mark.parametrize("keys", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_a_config_of_more_or_fewer_layers_than_the_weights_is_refused(tmp_path, kind, keys):
    save(tmp_path, kind)
    load_pretrained(str(tmp_path))  # control
    with pytest.raises(ValueError, match=r"\d+ of its weights (have no place|are missing)"):
        load_pretrained(change(tmp_path, **keys))


def test_weights_of_biases_that_the_config_denies_are_not_dropped_in_silence(tmp_path):
    save(tmp_path, "ViT")
    with pytest.raises(ValueError, match="6 of its weights have no place in a tower of its config"):
        load_pretrained(change(tmp_path, qkv_bias=False))


@pytest.mark.parametrize(
    "kind", ["siglip2", "siglip2_vision_model", "dinov3_vit", "beit", "vit_mae", "convnext", "swin", "blip"]
)
def test_towers_that_are_not_known_are_refused_by_name(tmp_path, kind):
    write(tmp_path, VIT)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=f"is a '{kind}' model. Give a Hub id"):
        check_available(str(tmp_path))


def captioner(folder: Path, *flags: str):
    argv = ["--encoder-model-name", str(folder), "--image-size", "none", "--decoder-layers", "1", "--max-seq-len", "6"]
    argv += ["--decoder-embed-dim", "8", "--decoder-heads", "2", "--decoder-ff-dim", "16", *flags]
    return build_model(dict(load_settings(argv).values), 30).eval()


@pytest.mark.parametrize("kind", [*KINDS, "nine registers"])
@pytest.mark.parametrize("side", ["none", "16", "48"])
def test_the_grid_of_attention_is_that_of_the_patches(tmp_path, kind, side):
    """10 tokens before a grid of 4 x 4: the root of the number of features would say 5."""
    if kind in KINDS:
        save(tmp_path, kind)
    else:
        save(tmp_path, "Dinov2WithRegisters", {"num_register_tokens": 9})
    model = captioner(tmp_path, "--image-size", side)
    size = model.image_spec["size"]
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        for given in (pixels, model.encode(pixels)):
            weights, found = model.cross_attention(given, torch.tensor([[1, 5, 6]]))
            assert found == size // 8
            assert weights.shape[-1] == found**2 + KINDS.get(kind, 10)


def test_a_picture_of_attention_keeps_its_proportions(tmp_path, monkeypatch):
    """DeiT's way: squashed to 48 x 48, of which the middle 32 x 32 is seen."""
    from nanocaption.use import attention

    save(tmp_path / "tower", "DeiT", keys=DEIT)
    Image.new("RGB", (400, 200), (255, 0, 0)).save(tmp_path / "wide.png")
    drawn = []
    monkeypatch.setattr(attention, "attend_maps", lambda *_: [None])
    monkeypatch.setattr(attention, "draw_words", lambda picture, *_: drawn.append(picture.size) or b"")
    caption = type("Caption", (), {"ids": [], "text": ""})
    draw_picture(captioner(tmp_path / "tower"), None, tmp_path / "wide.png", caption)
    assert drawn == [(448, 224)]


def test_a_checkpoint_keeps_the_ways_that_are_new(tmp_path):
    save(tmp_path / "tower", "DeiT", keys=DEIT | {"do_normalize": False, "crop_size": 56})
    model = captioner(tmp_path / "tower")
    stored = json.loads(json.dumps(model.arguments()))
    shutil.rmtree(tmp_path / "tower")
    argv = ["--encoder-model-name", str(tmp_path / "tower"), "--image-size", "none", "--decoder-layers", "1"]
    argv += ["--decoder-embed-dim", "8", "--decoder-heads", "2", "--decoder-ff-dim", "16", "--max-seq-len", "6"]
    again = build_model(dict(load_settings(argv).values), 30, tower=stored).eval()
    again.load_state_dict(model.state_dict())
    expected = {
        "size": 56, "resize": [48, 48], "crop": True, "mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bicubic",
    }  # fmt: skip
    assert again.image_spec == model.image_spec == expected
    pixels = torch.randint(0, 256, (1, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.encode(pixels), model.encode(pixels))
        assert torch.equal(model.encode(pixels), model.encode(pixels / 255))


def test_looking_at_a_tower_early_draws_no_random_number(tmp_path):
    save(tmp_path, "ViT")
    before = torch.random.get_rng_state()
    check_available(str(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "keys, flags, told",
    [
        ({"do_resize": False}, [], "do_resize = False"),
        ({}, ["--image-size", "44"], "IMAGE_SIZE = 44: must be a multiple"),
        ({}, ["--image-size", "4"], "IMAGE_SIZE = 4: less than one patch"),
    ],
)  # fmt: skip
def test_a_start_tells_it_before_a_data_set_is_made(tmp_path, monkeypatch, keys, flags, told):
    """train.main finds its start before anything else."""
    import train

    class DataSetIsMade(Exception):
        pass

    def make(*_):
        raise DataSetIsMade

    monkeypatch.setattr(train, "prepare", make)
    monkeypatch.chdir(tmp_path)
    argv = ["--encoder-model-name", str(tmp_path / "tower"), "--image-size", "none", "--output-dir", str(tmp_path)]
    save(tmp_path / "tower", "ViT")
    with pytest.raises(DataSetIsMade):  # control
        train.main(argv)
    write(tmp_path / "tower", VIT | keys)
    with pytest.raises(ValueError, match=told):
        train.main([*argv, *flags])


@pytest.mark.skipif(not VIT_TINY.is_dir(), reason="needs ../shared/data/vit_tiny")
def test_the_real_vit_tiny_is_read_as_before():
    tower, spec = load_pretrained(str(VIT_TINY))
    assert tower.width == 192
    assert spec == {
        "size": 224, "resize": 224, "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
    }  # fmt: skip
