"""Models as plain transformers models, and back: the same ids and logits; what cannot be mapped is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import train
from nanocaption.base.settings import load_settings
from nanocaption.commands import export
from nanocaption.data.tokenizer import train_tokenizer
from nanocaption.data.transform import load_image
from nanocaption.export import as_transformers, from_transformers, transformers_folder
from nanocaption.model.captioner import ImageToTextModel, assemble, build_model
from nanocaption.model.captions import decode_pictures
from nanocaption.model.options import search_options
from nanocaption.runs import checkpoint
from tests.conftest import ROOT, TINY_MODEL, run_command
from tests.unit.model.test_encoder import CROPPED, SQUASHED

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WIDE = {**SIZES, "intermediate_size": 64}
# name -> (class of the tower, its sizes, preprocessor file, flags)
KINDS = {
    "ViT": ("ViT", {**WIDE, "layer_norm_eps": 1e-12}, SQUASHED, ""),
    "ViT as wide as the decoder": ("ViT", {**WIDE, "hidden_size": 32}, SQUASHED, ""),
    "ViT at another size": ("ViT", WIDE, SQUASHED, "--image-size 48"),
    "ViT, quick_gelu": ("ViT", {**WIDE, "hidden_act": "quick_gelu"}, CROPPED, ""),
    "DeiT": ("DeiT", WIDE, SQUASHED, ""),
    "DINOv2": ("Dinov2", {**SIZES, "image_size": 56, "layerscale_value": 0.1}, CROPPED, ""),
    "DINOv2 with registers": ("Dinov2WithRegisters", {**SIZES, "image_size": 56}, CROPPED, ""),
    "SigLIP": ("SiglipVision", WIDE, SQUASHED, ""),
    "CLIP": ("CLIPVision", WIDE, CROPPED, ""),
    "from scratch": (None, {}, {}, "--vit-stem patch --vit-layers 2"),
}
TEXTS = ["A dog runs on the beach.", "Two cats sit in a red house, and a bird sings.", "The café is closed."] * 9


def lively(model: torch.nn.Module, seed: int = 3) -> None:
    """Random weights of all parts, norms and biases as well, such that the picture counts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
            if "lambda" in name:
                parameter.data += 0.5


def make_checkpoint(kind: str, folder: Path, more: str = "") -> Path:
    name, sizes, file, flags = KINDS[kind]
    words = [*TINY_MODEL.split(), *flags.split(), *more.split(), "--decoder-layers", "2", "--max-seq-len", "12"]
    folder.mkdir(parents=True, exist_ok=True)
    if name:
        tower = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes))
        lively(tower)
        tower.save_pretrained(folder / "tower")
        (folder / "tower" / "preprocessor_config.json").write_text(json.dumps(file))
        words += ["--encoder-model-name", str(folder / "tower"), "--freeze-encoder"]
        words += [] if "--image-size" in flags else ["--image-size", "none"]
    settings = dict(load_settings(words).values)
    tokenizer = train_tokenizer(TEXTS, folder / "tokenizer", 320)
    model = build_model(settings, tokenizer.get_vocab_size())
    lively(model)
    state = {
        "epoch": 1, "step": 2, "best_val_loss": 2.5, "best_cider": None, "config": settings, "config_constants": {},
        "tokenizer": tokenizer.to_str(), "model_arguments": model.arguments(),
        "model_state_dict": dict(model.state_dict()), "optimizer_state_dict": {"state": {}, "param_groups": []},
        "captions_sha256": "x", "written_by": "nanoCaption test",
    }  # fmt: skip
    checkpoint.save(folder / "last.safetensors", state)
    return folder / "last.safetensors"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    """(checkpoint, folder for transformers) of a ViT."""
    place = tmp_path_factory.mktemp("plain")
    path = make_checkpoint("ViT", place, "--beam-size 4 --length-penalty 0.7 --min-length 3 --no-repeat-ngram 3")
    export.main([str(path), str(place / "plain"), "--format", "transformers"])
    return path, place / "plain"


# --- There ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_gives_the_same_ids_and_logits(kind, tmp_path, capsys):
    path = make_checkpoint(kind, tmp_path)
    export.main([str(path), str(tmp_path / "plain"), "--format", "transformers"])
    assert "16 captions of 8 drawn pictures are the same, logits to " in capsys.readouterr().out
    ours = assemble(checkpoint.load(path))
    found = transformers_folder.compare(ours, tmp_path / "plain")
    assert found.logits < 1e-4
    pixels = as_transformers.drawn_pictures(ours, 8)
    assert len({tuple(c[0].ids) for c in decode_pictures([ours], ours.tokenizer, [pixels], search_options(
        ours.about["config"]))}) > 1  # fmt: skip
    # The control: a norm of another weight is seen, in the logits or in the ids.
    ours.memory_norm.weight.data[0] += 0.05
    with pytest.raises(ValueError, match="transformers (gives other logits|does not give the same caption)"):
        transformers_folder.compare(ours, tmp_path / "plain")


def test_the_norm_cannot_be_left_out_or_folded_into_the_projection(plain):
    """What makes the extra block necessary: LayerNorm of a LayerNorm's result is no affine map of it."""
    ours = assemble(checkpoint.load(plain[0]))
    with torch.no_grad():
        features = ours.encode(as_transformers.drawn_pictures(ours, 8)).flatten(0, 1).double()
        normed = ours.memory_norm.double()(features)
        design = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
        best = design @ torch.linalg.lstsq(design, normed).solution
    assert (best - normed).abs().max() > 1e-3


def test_the_folder_works_without_this_package_and_without_remote_code(plain, demo_data, tmp_path):
    path, folder = plain
    picture = next((demo_data / "demo" / "images").iterdir())
    grey = tmp_path / "grey.png"
    Image.open(picture).convert("L").save(grey)
    code = f"""
import sys
sys.modules["nanocaption"] = None
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, VisionEncoderDecoderModel
name = {str(folder)!r}
model = VisionEncoderDecoderModel.from_pretrained(name)
processor, tokenizer = AutoImageProcessor.from_pretrained(name), AutoTokenizer.from_pretrained(name)
for file in {[str(picture), str(grey)]!r}:
    pixels = processor(Image.open(file), return_tensors="pt").pixel_values
    print(ascii(tokenizer.decode(model.generate(pixels)[0], skip_special_tokens=True)))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr and "MISSING" not in done.stderr
    ours = assemble(checkpoint.load(path))
    state_of = [ours.captions([file])[0][0] for file in (picture, grey)]
    for line, caption in zip(done.stdout.splitlines(), state_of, strict=True):
        if not caption.broken:
            assert line == ascii(caption.text)
    names = sorted(file.name for file in folder.iterdir())
    assert names == sorted(transformers_folder.FILES) and not any(name.endswith(".py") for name in names)
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


def test_pixels_and_texts_are_ours(plain, demo_data):
    path, folder = plain
    ours = assemble(checkpoint.load(path))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    picture = next((demo_data / "demo" / "images").iterdir())
    theirs = processor(Image.open(picture).convert("RGB"), return_tensors="pt").pixel_values
    own = ours._normalised(load_image(picture, ours.image_spec)[None])
    assert (theirs - own).abs().max() < 2.1 / 255 / min(ours.image_spec["std"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS[:3], "two  spaces , and a comma .", "don 't", "<end> of <pad>"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    search = transformers.GenerationConfig.from_pretrained(folder)
    assert (search.max_length, search.num_beams, search.length_penalty) == (12, 4, 0.7)
    assert (search.min_length, search.no_repeat_ngram_size) == (4, 3)


def test_bfloat16_works_and_float16_is_said_not_to(plain):
    folder = plain[1]
    pixels = torch.randn(1, 3, 32, 32)
    for dtype, works in ((torch.bfloat16, True), (torch.float16, False)):
        model = transformers.VisionEncoderDecoderModel.from_pretrained(folder, dtype=dtype)
        memory = model.encoder(pixels.to(dtype)).last_hidden_state
        assert bool(memory.isfinite().all()) == works
    assert "not in float16" in (folder / "README.md").read_text()


def test_what_transformers_cannot_hold_is_one_line_and_nothing_is_written(tmp_path, plain, monkeypatch):
    conv = tmp_path / "conv" / "last.safetensors"
    KINDS["conv"] = (None, {}, {}, "--vit-stem conv")
    try:
        make_checkpoint("conv", tmp_path / "conv")
    finally:
        del KINDS["conv"]
    with pytest.raises(ValueError, match="VIT_STEM = 'conv', and transformers has no ViT .*ONNX") as caught:
        export.main([str(conv), str(tmp_path / "out"), "--format", "transformers"])
    assert "\n" not in str(caught.value)
    several = make_checkpoint("ViT", tmp_path / "several", "--encoder-layers 1,2")
    with pytest.raises(ValueError, match="blocks 1, 2 side by side .*ONNX"):
        export.main([str(several), str(tmp_path / "out"), "--format", "transformers"])
    swiglu = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, use_swiglu_ffn=True))
    with pytest.raises(ValueError, match="no room for a norm"), torch.no_grad():
        as_transformers._with_norm(swiglu, torch.nn.LayerNorm(16))
    monkeypatch.setattr(as_transformers, "_SCALE", 4.0)  # the residual stream shines through
    with pytest.raises(ValueError, match="transformers (gives other logits|does not give the same caption)"):
        export.main([str(plain[0]), str(tmp_path / "out"), "--format", "transformers"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conv", "several"]


def test_formats_do_not_mix_in_one_folder(plain, tmp_path):
    path, folder = plain
    export.main([str(path), str(tmp_path / "ours")])
    for target, more in ((folder, []), (tmp_path / "ours", ["--format", "transformers"])):
        with pytest.raises(ValueError, match="no export of nanoCaption in this format"):
            export.main([str(path), str(target), *more])
    before = (folder / "model.safetensors").read_bytes()
    export.main([str(tmp_path / "ours"), str(folder), "--format", "transformers"])  # from an export, over an older one
    assert (folder / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="type 'vision-encoder-decoder', not one of nanoCaption"):
        ImageToTextModel.from_pretrained(folder)


# --- And back ---


def vit_gpt2(folder: Path, **changes: object) -> transformers.VisionEncoderDecoderModel:
    """A captioner as people make them with transformers: ViT, GPT-2, its tokenizer with one special token for all."""
    text = Tokenizer(models.BPE())
    text.pre_tokenizer, text.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    text.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=letters, show_progress=False))
    one = "<|endoftext|>"
    text.add_special_tokens([one])
    end = text.token_to_id(one)
    special = {f"{name}_token": one for name in ("bos", "eos", "unk", "pad")}
    decoder = {"n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "activation_function": "gelu_new"}
    decoder |= {"vocab_size": text.get_vocab_size(), "add_cross_attention": True, "eos_token_id": end} | changes
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**WIDE), transformers.GPT2Config(**decoder)
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.VisionEncoderDecoderModel(config=config).eval()
    lively(model, seed=5)
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=end, eos_token_id=end, pad_token_id=end, max_length=12, num_beams=4
    )
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=text, **special).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


@pytest.mark.parametrize("width", [16, 24])
def test_a_captioner_of_transformers_captions_here_as_it_does_there(tmp_path, width):
    theirs = vit_gpt2(tmp_path / "theirs", n_embd=width)
    export.main([str(tmp_path / "theirs"), str(tmp_path / "ours"), "--max-seq-len", "12"])
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "Made with transformers and taken over as it is" in card and "AdamW" not in card
    ours = ImageToTextModel.from_pretrained(tmp_path / "ours")
    pixels = as_transformers.drawn_pictures(ours, 6)
    normal = ours._normalised(pixels)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    texts = set()
    for beams in (1, 4):
        found = decode_pictures(
            [ours], ours.tokenizer, [pixels], search_options(ours.about["config"])._replace(beam_size=beams)
        )
        with torch.no_grad():
            how = {"num_beams": beams, "output_scores": True, "return_dict_in_generate": True}
            made = theirs.generate(pixel_values=normal, **how)
        for number, captions in enumerate(found):
            ids = tokenizer.convert_tokens_to_ids(list(captions[0].tokens))
            row = made.sequences[number, 1:].tolist()
            end = tokenizer.eos_token_id
            assert ids == (row[: row.index(end)] if end in row else row)
            texts.add(tuple(ids))
            if beams > 1:  # the three copies of their one special token take no probability
                assert captions[0].score == pytest.approx(made.sequences_scores[number].item(), abs=1e-4)
    assert len(texts) > 2
    ours.decoder.never_chosen = []  # the control
    told = decode_pictures([ours], ours.tokenizer, [pixels], search_options(ours.about["config"]))
    assert [captions[0].score for captions in told] != pytest.approx(made.sequences_scores.tolist(), abs=1e-4)


def test_an_export_comes_back_and_gives_the_same(plain):
    path, folder = plain
    _, state = from_transformers.read_foreign(folder, load_settings([]))
    back, ours = assemble(state), assemble(checkpoint.load(path))
    pixels = as_transformers.drawn_pictures(ours, 6)
    assert back.tokenizer.to_str() == ours.tokenizer.to_str() and "never_chosen" not in state["model_arguments"]
    for model in (back, ours):
        assert search_options(model.about["config"])._replace(min_length=0) == search_options(
            ours.about["config"])._replace(min_length=0)  # fmt: skip
    here, there = (
        [[c.ids for c in found] for found in decode_pictures(
            [model], model.tokenizer, [pixels], search_options(ours.about["config"]))] for model in (ours, back)
    )  # fmt: skip
    assert here == there


def test_training_starts_from_one_and_resumes(demo_data, tmp_path, capsys):
    theirs = vit_gpt2(tmp_path / "theirs")
    flags = [
        "--data-dir", str(demo_data), "--output-dir", str(tmp_path / "runs"), "--data-cutoff", "8",
        "--batch-size", "20", "--warmup-steps", "2", "--validation-score-images", "2", "--run-name", "run",
        "--max-seq-len", "20",
    ]  # fmt: skip
    train.main([*flags, "--init-checkpoint-path", str(tmp_path / "theirs"), "--num-epochs", "1"])
    shutil.rmtree(tmp_path / "theirs")
    state = checkpoint.load(tmp_path / "runs" / "run" / "last.safetensors")
    assert state["model_arguments"]["decoder_activation"] == "gelu_new" and state["epoch"] == 1
    assert state["config"]["DECODER_EMBED_DIM"] == 16 and state["config"]["MAX_SEQ_LEN"] == 20
    started = theirs.decoder.transformer.h[0].mlp.c_fc.weight.T
    trained = state["model_state_dict"]["decoder.layers.0.feedforward.0.weight"]
    assert 0 < (trained - started).abs().mean() < 0.02  # near where it began
    train.main([*flags, "--resume-checkpoint-path", "last", "--num-epochs", "2"])
    assert "resumed after epoch 1" in capsys.readouterr().out
    picture = next((demo_data / "demo" / "images").iterdir())
    export.main([str(tmp_path / "runs" / "run" / "last.safetensors"), str(tmp_path / "mine")])
    trained_model = assemble(checkpoint.load(tmp_path / "runs" / "run" / "last.safetensors"))
    assert ImageToTextModel.from_pretrained(tmp_path / "mine").captions([picture]) == trained_model.captions([picture])


@pytest.mark.parametrize("changes, flags, told", [
    ({"activation_function": "relu"}, "", "activation_function = 'relu', only gelu, gelu_new"),
    ({"scale_attn_by_inverse_layer_idx": True}, "", "scale_attn_by_inverse_layer_idx = True"),
    ({"layer_norm_epsilon": 1e-3}, "", "layer_norm_epsilon = 0.001"),
    ({"vocab_size": 400}, "", "its tokenizer has .* tokens, and its decoder 400 rows"),
    ({}, "--max-seq-len 99", "MAX_SEQ_LEN = 99: its decoder has 40 positions"),
    ({}, "--decoder-layers 3", "the settings want another model: DECODER_LAYERS: 2 -> 3"),
])  # fmt: skip
def test_what_cannot_be_followed_is_refused_by_name(tmp_path, changes, flags, told):
    vit_gpt2(tmp_path, **changes)
    with pytest.raises(ValueError, match=told) as caught:
        from_transformers.read_foreign(tmp_path, load_settings(flags.split()))
    assert "\n" not in str(caught.value)


def test_other_decoders_encoders_and_tokenizers_are_refused_by_name(tmp_path):
    vit_gpt2(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    for part, kind, told in (("decoder", "bert", "a 'bert'|type 'bert'"), ("encoder", "beit", "a 'beit'")):
        (tmp_path / "config.json").write_text(json.dumps(about | {part: {"model_type": kind}}))
        with pytest.raises(ValueError, match=told):
            from_transformers.read_foreign(tmp_path, load_settings([]))
    (tmp_path / "config.json").write_text(json.dumps(about))
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    changed = tokenizer | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="only byte-level BPE without a normalizer"):
        from_transformers.read_foreign(tmp_path, load_settings([]))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        from_transformers.read_foreign(tmp_path, load_settings([]))
    assert "\n" not in str(caught.value)
    assert run_command(export.main, [str(tmp_path), str(tmp_path / "out")]) == 1


def test_a_folder_by_a_stranger_runs_no_code_and_makes_nothing_large(tmp_path):
    vit_gpt2(tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        about = json.loads((tmp_path / name).read_text())
        auto = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoImageProcessor": "own.Model"}
        about["auto_map"] = auto | {"AutoTokenizer": ["own.Model", "own.Model"]}
        (tmp_path / name).write_text(json.dumps(about))
    read = from_transformers.read_foreign(tmp_path, load_settings([]))[1]
    assert assemble(read).tokenizer is not None and not (tmp_path / "ran").exists()
    about = json.loads((tmp_path / "config.json").read_text())
    for part, key, told in (("decoder", "n_layer", "1000000000 layers by its config, and 2 by its weights"),
                            ("encoder", "num_hidden_layers", "1000000000 layers by its config"),
                            ("decoder", "vocab_size", "1000000000 tokens of width 16"),
                            ("decoder", "n_embd", "of width 1000000000")):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(about | {part: about[part] | {key: 10**9}}))
        with pytest.raises(ValueError, match=told) as caught:
            from_transformers.read_foreign(tmp_path, load_settings([]))
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps(about))
    with (tmp_path / "tokenizer.json").open("r+b") as file:
        file.truncate(200_000_000)
    with pytest.raises(ValueError, match="its tokenizer.json has 200 MB"):
        from_transformers.read_foreign(tmp_path, load_settings([]))


# --- Photographs ---


@pytest.mark.long
@pytest.mark.skipif(not (ROOT.parent / "shared" / "data" / "flickr8k").is_dir(), reason="no photographs here")
def test_two_hundred_photographs_have_the_same_ids_and_logits(tmp_path, demo_data):
    """A ViT-Tiny with a decoder of two epochs on some hundred photographs."""
    data = ROOT.parent / "shared" / "data"
    flags = [
        "--raw-data-dir", str(data / "flickr8k"), "--data-dir", str(tmp_path / "data"), "--dataset", "photos",
        "--encoder-model-name", str(data / "vit_tiny"), "--freeze-encoder",
        "--data-cutoff", "200", "--num-epochs", "2", "--output-dir", str(tmp_path / "runs"), "--run-name", "run",
        "--max-seq-len", "32",
        "--image-size", "none", "--val-splits", "val", "--validation-score-images", "0",
    ]  # fmt: skip
    train.main(flags)
    path = tmp_path / "runs" / "run" / "last.safetensors"
    export.main([str(path), str(tmp_path / "plain"), "--format", "transformers"])
    ours = assemble(checkpoint.load(path))
    photographs = sorted((data / "flickr8k").rglob("*.jpg"))[-200:]
    pixels = torch.stack([load_image(photograph, ours.image_spec) for photograph in photographs])
    found = transformers_folder.compare(ours, tmp_path / "plain", pixels)
    assert (found.pictures, found.captions) == (200, 400) and found.logits < 1e-4
