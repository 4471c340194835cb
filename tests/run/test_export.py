"""Exported folders: the same captions to the bit, what others read in them, what is refused, and the card."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import evaluate
from nanocaption.base import hub
from nanocaption.base.settings import CHECKPOINT_SETTINGS, declared_settings, load_settings
from nanocaption.commands import caption, export, score
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.prepared import load_records
from nanocaption.data.tokenizer import UNK, encode, tokenizer_from_json, train_tokenizer
from nanocaption.data.transform import load_image
from nanocaption.export.facts import find_evaluation, write_export
from nanocaption.model import exported
from nanocaption.model.captioner import ImageToTextModel, build_model
from nanocaption.model.captions import caption_files
from nanocaption.model.encoder import read_image_spec, scratch_image_spec
from nanocaption.model.options import GREEDY, search_options
from nanocaption.runs import checkpoint
from nanocaption.use.captioning import caption_images
from nanocaption.use.load import load_models
from tests.conftest import CUTOFF, ROOT, TINY_MODEL, run_command
from tests.processes import end, forget_modules, fork
from tests.unit.model.test_encoder import CROPPED, CROPPED_SPEC, SQUASHED, SQUASHED_SPEC, source_model

CONSTANTS = declared_settings().constants  # cached: changed here, changed for load_settings

KINDS = {"scratch": None, "vit": SQUASHED, "clip": CROPPED}


def make_checkpoint(kind: str, demo_data: Path, folder: Path) -> Path:
    """A checkpoint, as a run leaves it, of an untrained model whose captions differ from picture to picture."""
    records = load_records(demo_data / "demo", "train")
    texts = [text for record in records for text in record["captions"]]
    tokenizer = train_tokenizer(texts, folder / "tokenizer", 320)
    flags = [*TINY_MODEL.split(), "--data-dir", str(demo_data), "--data-cutoff", str(CUTOFF), "--decoder-layers", "2",
             "--max-seq-len", "12"]  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if KINDS[kind]:
            source_model(kind)[0].save_pretrained(folder / "tower")
            (folder / "tower" / "preprocessor_config.json").write_text(json.dumps(KINDS[kind]))
            flags += ["--encoder-model-name", str(folder / "tower"), "--image-size", "none"]
        settings = dict(load_settings(flags).values)
        model = build_model(settings, tokenizer.get_vocab_size())
        for name, parameter in model.named_parameters():
            if "cross" in name or "memory" in name:
                parameter.data *= 6  # so that the picture counts
        model.decoder.embedding.weight.data[UNK :][:257] = 0  # whole syllables, no control characters
    manifest = json.loads((demo_data / "demo" / "manifest.json").read_text())
    state = {
        "epoch": 7, "step": 42, "best_val_loss": 2.5, "best_cider": 0.5, "config": settings, "config_constants": {},
        "tokenizer": tokenizer.to_str(), "model_arguments": model.arguments(),
        "model_state_dict": dict(model.state_dict()), "optimizer_state_dict": {"state": {}, "param_groups": []},
        "captions_sha256": manifest["captions_sha256"], "written_by": "nanoCaption test",
    }  # fmt: skip
    checkpoint.save(folder / "checkpoint_epoch_7_val_loss_2.5000.safetensors", state)
    return folder / "checkpoint_epoch_7_val_loss_2.5000.safetensors"


@pytest.fixture(scope="module")
def exports(demo_data, tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """kind -> (checkpoint, exported folder)"""
    found = {}
    for kind in KINDS:
        run = tmp_path_factory.mktemp(kind)
        path = make_checkpoint(kind, demo_data, run)
        export.main([str(path), str(run / "mine")])
        shutil.rmtree(run / "tower", ignore_errors=True)  # from here on nothing but the folder is there
        found[kind] = (path, run / "mine")
    return found


@pytest.fixture(scope="module")
def photos(demo_data) -> list[str]:
    return sorted(str(path) for path in (demo_data / "demo" / "images").iterdir())[:6]


# --- The same captions ---


@pytest.mark.parametrize("kind", KINDS)
def test_captions_equal_the_checkpoints_to_the_bit(exports, photos, kind):
    path, folder = exports[kind]
    model = ImageToTextModel.from_pretrained(folder)
    loaded = load_models([path], load_settings(["--device", "cpu"]))
    records = [{"file_name": photo} for photo in photos]
    images = ImageTextDataset(records, Path(), [[] for _ in photos], loaded.models[0].image_spec)
    expected = {}
    for beams in (1, 3):
        expected[beams] = caption_images(
            loaded.models, loaded.tokenizer, images, batch_size=len(photos), options=GREEDY._replace(
                beam_size=beams), device=loaded.device, precision="fp32", workers=0,
        )  # fmt: skip
        ours = caption_files(model, photos, beam_size=beams)
        assert ours == expected[beams]  # texts, tokens, log-probabilities and scores
        assert len({found[0].text for found in ours}) > 1  # the pictures count
    assert not model.training and model.caption(photos[0]) == caption_files(model, photos[:1])[0][0].text
    model.memory_projection.weight.data += 0.01
    assert caption_files(model, photos, beam_size=3) != expected[3]


@pytest.mark.parametrize("anew", [False, pytest.param(True, marks=pytest.mark.long)], ids=["forked", "anew"])
def test_a_fresh_process_elsewhere_captions_with_these_files_alone(exports, photos, tmp_path, anew):
    """A copy of the package and of the folder, no network; and neither training nor transformers are imported."""
    _, folder = exports["scratch"]
    shutil.copytree(ROOT / "nanocaption", tmp_path / "nanocaption")
    shutil.copytree(folder, tmp_path / "captioner")
    code = f"""
import socket, sys
def no_network(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_network

import nanocaption

model = nanocaption.load("captioner")
print(model.caption({photos[0]!r}))
print(nanocaption.__file__)
print(sorted({{"nanocaption.train", "nanocaption.data.dataset", "transformers", "wandb"}} & set(sys.modules)))
"""
    out, err = tmp_path / "out", tmp_path / "err"

    def body() -> None:
        forget_modules("nanocaption", "transformers", "wandb")
        os.chdir(tmp_path)
        sys.path[:] = [str(tmp_path), *(place for place in sys.path if Path(place).resolve() != ROOT)]
        exec(compile(code, "elsewhere", "exec"), {})

    if anew:
        names = ("PYTHONPATH", "HF_HUB_OFFLINE")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        with out.open("w") as told, err.open("w") as problems:
            command = [sys.executable, "-c", code]
            status = subprocess.run(command, cwd=tmp_path, env=environment, stdout=told, stderr=problems).returncode
    else:
        status = end(fork(body, out, err))
    assert status == 0 and err.read_text() == "", err.read_text()
    expected = ImageToTextModel.from_pretrained(folder).caption(photos[0])
    assert out.read_text().splitlines() == [expected, str(tmp_path / "nanocaption" / "__init__.py"), "[]"]


def test_caption_and_evaluate_take_a_folder_as_a_checkpoint(exports, photos, demo_data, tmp_path, capsys):
    path, folder = exports["scratch"]
    place = ["--data-dir", str(demo_data)]
    capsys.readouterr()
    for source in (path, folder, folder / "model.safetensors"):
        caption.main([*photos, "--checkpoint", str(source), "--num-captions", "2"])
    out = capsys.readouterr().out.splitlines()
    assert out[:12] == out[12:24] == out[24:]
    for source in (path, folder):
        evaluate.main(["--checkpoint", str(source), "--output", str(tmp_path / source.name), *place])
    results = [tmp_path / source.name for source in (path, folder)]
    one, two = (json.loads((output / "predictions.json").read_text()) for output in results)
    assert one == two
    one, two = (json.loads((output / "scores.json").read_text()) for output in results)
    for name in ("corpus", "intervals", "text", "split"):
        assert one[name] == two[name]
    evaluate.main(["--compare", str(path), str(folder), *place])
    assert (folder / "eval_test_epoch7_beam3_penalty1_first24").is_dir()
    export.main([str(path), str(folder), *place])  # again: scores of the folder stay
    assert (folder / "eval_test_epoch7_beam3_penalty1_first24" / "scores.json").is_file()
    evaluate.main(["--checkpoint", f"{path},{folder}", "--output", str(tmp_path / "both"), *place])
    assert json.loads((tmp_path / "both" / "scores.json").read_text())["corpus"] == pytest.approx(one["corpus"])


def test_save_pretrained_writes_the_same_folder_and_later_weights(exports, photos, tmp_path, demo_data):
    _, folder = exports["clip"]
    model = ImageToTextModel.from_pretrained(str(folder))
    model.save_pretrained(tmp_path / "again")
    for name in hub.FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    model.memory_projection.weight.data += 0.01
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()
    ImageToTextModel.from_pretrained(tmp_path / "again")
    bare = build_model(dict(load_settings([]).values), 320)
    for use in (lambda: bare.save_pretrained(tmp_path / "bare"), lambda: bare.caption(photos[0])):
        with pytest.raises(ValueError, match=r"^This model has no (tokenizer|card) of its own.*from_pretrained"):
            use()


# --- What others read ---


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_tokenizer_with_the_same_ids(exports, kind):
    from transformers import AutoTokenizer

    path, folder = exports[kind]
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = tokenizer_from_json(checkpoint.load(path)["tokenizer"])
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2, 3)
    assert theirs.model_max_length == 12
    for text in ("A dog runs.", "naïve café — 東京 🐕", "<end> of the <pad>"):
        ids = encode(ours, text, 1000)
        assert theirs(text).input_ids == [1, *theirs(text, add_special_tokens=False).input_ids, 2]
        assert theirs(" " + text).input_ids == ids or theirs(text).input_ids == ids
        assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("kind, spec", [("scratch", None), ("vit", SQUASHED_SPEC), ("clip", CROPPED_SPEC)])
def test_transformers_prepares_pictures_as_the_model_does(exports, photos, kind, spec):
    from PIL import Image
    from transformers import AutoImageProcessor

    _, folder = exports[kind]
    model = ImageToTextModel.from_pretrained(folder)
    found = read_image_spec(str(folder))
    assert found == model.image_spec == (spec or scratch_image_spec(32))
    with Image.open(photos[0]) as picture:
        theirs = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    ours = model._normalised(load_image(photos[0], model.image_spec)[None])
    # Within two grey levels of 255: theirs may resize by another library.
    assert theirs.shape == ours.shape and (theirs - ours).abs().max() < 2.1 / 255 / min(model.image_spec["std"])


def test_the_folder_holds_weights_once_and_nothing_of_this_machine(exports):
    import safetensors.torch

    for path, folder in exports.values():
        files = {file.name for file in folder.iterdir() if file.is_file()}
        assert files - {hub.SAMPLES} == {*hub.FILES}
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        state = checkpoint.load(path)["model_state_dict"]
        assert weights.keys() == state.keys() and all(torch.equal(weights[name], state[name]) for name in state)
        model = ImageToTextModel.from_pretrained(folder)
        assert sum(tensor.numel() for tensor in weights.values()) == sum(p.numel() for p in model.parameters())
        for name in hub.FILES:
            if name != "model.safetensors":
                assert "/tmp" not in (folder / name).read_text() and str(path.parent) not in (folder / name).read_text()


def test_every_setting_that_fixes_a_model_is_kept():
    assert set(CHECKPOINT_SETTINGS) <= {*exported.SETTINGS, *exported.OPTIONAL} <= set(CONSTANTS)
    assert search_options(CONSTANTS) == search_options(load_settings([]).values)


def test_captions_and_scores_go_through_plain_coco_files(exports, demo_data, tmp_path, capsys):
    path, _ = exports["scratch"]
    place, output = ["--data-dir", str(demo_data)], tmp_path / "ours"
    evaluate.main(["--checkpoint", str(path), "--output", str(output), *place])
    scores = json.loads((output / "scores.json").read_text())["corpus"]
    rows = json.loads((output / "predictions.json").read_text())
    references = json.loads((output / "references.json").read_text())
    assert {row["image_id"] for row in rows} == {image["id"] for image in references["images"]}
    assert len({row["id"] for row in references["annotations"]}) == len(references["annotations"])
    # As other tools write them: ids of their own, more fields, no file names beside the captions.
    new_id = {image["id"]: 391895 + 7 * image["id"] for image in references["images"]}
    theirs = {
        "info": {"year": 2014}, "licenses": [], "type": "captions",
        "images": [image | {"id": new_id[image["id"]], "width": 64} for image in references["images"]],
        "annotations": [row | {"image_id": new_id[row["image_id"]]} for row in references["annotations"]],
    }  # fmt: skip
    captions = [{"image_id": new_id[row["image_id"]], "caption": row["caption"]} for row in reversed(rows)]
    (tmp_path / "captions_val2014.json").write_text(json.dumps(theirs))
    (tmp_path / "results.json").write_text(json.dumps(captions))
    for pair in ((output / "references.json", output / "predictions.json"),
                 (tmp_path / "captions_val2014.json", tmp_path / "results.json")):  # fmt: skip
        assert run_command(score.main, [*map(str, pair), "--json", str(tmp_path / "out.json")]) == 0
        found = json.loads((tmp_path / "out.json").read_text())
        assert {name: found[name] for name in scores} == pytest.approx(scores)
    evaluate.main(["--predictions", str(output / "predictions.json"), "--output", str(tmp_path / "back"), *place])
    assert json.loads((tmp_path / "back" / "scores.json").read_text())["corpus"] == scores


# --- What is refused ---


def test_a_folder_that_is_not_an_export_is_left_alone(exports, tmp_path):
    path, folder = exports["scratch"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "file").write_text("text")
    for target, message in (("thesis", "holds files and is no export"), ("file", "is a file")):
        with pytest.raises(ValueError, match=message):
            export.main([str(path), str(tmp_path / target)])
    with pytest.raises(SystemExit, match="is an export already. Upload it: nanocaption upload"):
        export.main([str(folder), str(tmp_path / "new")])
    with pytest.raises(SystemExit, match="There is no checkpoint 'nowhere'"):
        export.main(["nowhere", str(tmp_path / "new")])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "thesis"]
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["config.json"]


def test_a_failed_export_leaves_the_one_before(exports, tmp_path, monkeypatch):
    path, _ = exports["scratch"]
    export.main([str(path), str(tmp_path / "mine")])
    before = {name: (tmp_path / "mine" / name).read_bytes() for name in hub.FILES}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exported, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        export.main([str(path), str(tmp_path / "mine")])
    assert {name: (tmp_path / "mine" / name).read_bytes() for name in hub.FILES} == before
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def setting(**values):
    return lambda path: change(settings=json.loads(path.read_text())["settings"] | values)(path)


def change(**values):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "name, harm, message",
    [
        ("model.safetensors", cut, "model.safetensors is damaged"),
        ("model.safetensors", flip, "model.safetensors is damaged"),
        ("model.safetensors", Path.unlink, "has no model.safetensors"),
        ("model.safetensors", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "lfs pull"),
        ("tokenizer.json", flip, "tokenizer.json is damaged"),
        ("tokenizer.json", Path.unlink, "has no tokenizer.json"),
        ("config.json", Path.unlink, "is not an exported model: it has no config.json"),
        ("config.json", cut, "config.json is damaged"),
        ("config.json", lambda path: path.write_text("[1]"), "config.json is damaged"),
        ("config.json", change(model_type="vit"), "a model of the type 'vit'"),
        ("config.json", change(format_version=9), "in format version 9; this program"),
        ("config.json", change(settings={}), "lacks what belongs there"),
        ("config.json", change(sha256={}), "lacks what belongs there"),
        ("config.json", change(trained=None), "lacks what belongs there"),
        ("config.json", change(encoder_config={"model_type": "mine"}), "its encoder is a 'mine' model"),
        # Sizes for which no machine has the memory: told before any of it is taken.
        ("config.json", setting(DECODER_LAYERS=10**9), "DECODER_LAYERS = 1000000000: must be a whole number"),
        ("config.json", setting(DECODER_EMBED_DIM=10**9), "DECODER_EMBED_DIM = 1000000000: must be a whole number"),
        ("config.json", setting(MAX_SEQ_LEN=10**12), "MAX_SEQ_LEN = 1000000000000: must be a whole number"),
        ("config.json", setting(BEAM_SIZE=10**9), "BEAM_SIZE = 1000000000: must be a whole number from 1 to 100"),
        ("config.json", setting(LENGTH_PENALTY="x"), "LENGTH_PENALTY = x: must be a number"),
        ("config.json", lambda path: os.truncate(path, 3 * 10**9), "3.00 GB, and 16.78 MB are read at most"),
        ("config.json", change(encoder_config=None), "and does not describe it"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_clear_line(exports, tmp_path, name, harm, message):
    shutil.copytree(exports["vit"][1], tmp_path / "mine")
    harm(tmp_path / "mine" / name)
    with pytest.raises(ValueError, match=message) as caught:
        ImageToTextModel.from_pretrained(tmp_path / "mine")
    assert "\n" not in str(caught.value) and str(tmp_path / "mine") in str(caught.value)
    with pytest.raises((SystemExit, ValueError)) as refused:
        caption.main([str(ROOT / "docs" / "demo.png"), "--checkpoint", str(tmp_path / "mine")])
    assert "\n" not in str(refused.value)


def test_heads_that_split_no_width_are_one_line(exports, tmp_path):
    shutil.copytree(exports["vit"][1], tmp_path / "mine")
    setting(DECODER_HEADS=0)(tmp_path / "mine" / "config.json")
    with pytest.raises(ValueError, match="DECODER_HEADS = 0: must be a whole number"):
        ImageToTextModel.from_pretrained(tmp_path / "mine")


def test_names_that_lead_nowhere_are_one_line(exports, tmp_path):
    path, folder = exports["scratch"]
    for name, revision, message in (
        (tmp_path / "none", None, "is no folder, and no USER/NAME of the Hub"), ("none", None, "is no folder, and"),
        (path, None, "is a file, not an exported folder"),
        (folder, "main", "revision = 'main' belongs to a model of the Hub"), ("a/b", None, "HF_HUB_OFFLINE is set"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as caught:
            ImageToTextModel.from_pretrained(name, revision=revision)
        assert "\n" not in str(caught.value)


# --- The card ---


@pytest.fixture(scope="module")
def evaluated(demo_data, tmp_path_factory) -> Path:
    """A checkpoint with an evaluation of it, and a later one of another checkpoint, beside it."""
    path = make_checkpoint("scratch", demo_data, tmp_path_factory.mktemp("evaluated"))
    evaluate.main(["--checkpoint", str(path), "--data-dir", str(demo_data)])
    (own,) = path.parent.glob("eval_*")
    other = path.parent / "eval_test_other"
    shutil.copytree(own, other)
    scores = json.loads((other / "scores.json").read_text())
    scores["corpus"]["CIDEr"], scores["checkpoints"] = 9.99, ["0123456789ab"]
    (other / "scores.json").write_text(json.dumps(scores))
    return path


def card_of(path: Path, folder: Path) -> tuple[str, dict]:
    export.main([str(path), str(folder)])
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    return text, yaml.safe_load(text.split("---\n")[1])


def test_the_card_is_complete_and_its_scores_are_those_of_the_checkpoint(evaluated, tmp_path):
    text, header = card_of(evaluated, tmp_path / "mine")
    (folder,) = (path for path in evaluated.parent.glob("eval_*") if path.name != "eval_test_other")
    scores = json.loads((folder / "scores.json").read_text())
    assert header["pipeline_tag"] == "image-to-text" and header["library_name"] == "nanocaption"
    assert (header["license"], header["language"]) == ("other", "en") and "datasets" not in header  # none of the Hub
    assert header["metrics"] == ["bleu", "cider", "rouge"] and "base_model" not in header
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"] == {"name": "demo", "type": "demo", "split": "test"}
    listed = {row["name"]: row["value"] for row in result["metrics"]}
    assert listed["CIDEr-D (of 24 pictures only)"] == round(100 * scores["corpus"]["CIDEr"], 1) != 999.0
    for part in ("Use", "Data and its terms", "Sizes", "Training", "Results", "Samples", "Limits"):
        assert f"\n## {part}\n\n" in text
    low, high = scores["intervals"]["CIDEr"]
    assert f"| CIDEr-D | {100 * scores['corpus']['CIDEr']:.1f} | {100 * low:.1f} to {100 * high:.1f} |" in text
    assert "**Scores over only 24 pictures, too few" in text
    assert scores["signature"] in text and "train: 24 images, 120 captions" in text
    rows = json.loads((folder / "predictions.json").read_text())[:3]
    assert all(f"| {row['file_name']} |" in text for row in rows)
    weights = checkpoint.load(evaluated)["model_state_dict"]
    for part in (True, False):
        assert f"{sum(t.numel() for n, t in weights.items() if n.startswith('encoder.') == part):,} parameters" in text
    assert not re.search(r"(?i:more information)|TODO|[{}]|None|===", text)


@pytest.mark.filterwarnings("ignore:.*line separator")  # an untrained model writes anything
def test_the_card_takes_the_evaluation_that_decoded_as_the_export_will(evaluated, demo_data, tmp_path):
    run = Path(shutil.copytree(evaluated.parent, tmp_path / "run"))
    path = run / evaluated.name
    (own,) = (folder for folder in run.glob("eval_*") if folder.name != "eval_test_other")
    common = ["--checkpoint", str(path), "--data-dir", str(demo_data)]
    for flags in ("--sample", "--max-length 3", "--beam-groups 3", "--beam-size 1", "--data-cutoff 9"):
        evaluate.main([*common, *flags.split()])
    (tmp_path / "mine").symlink_to(demo_data / "demo")
    evaluate.main(["--checkpoint", str(path), "--data-dir", str(tmp_path), "--dataset", "mine"])
    config = checkpoint.load(path)["config"]
    assert find_evaluation(path, config | {"DATASET": "mine"})[0]["signature"].startswith("mine/test | ")
    assert find_evaluation(path, config)[0] == json.loads((own / "scores.json").read_text())
    shutil.rmtree(own)
    left = [find_evaluation(path, config | {"BEAM_SIZE": beam})[0] for beam in (3, 1, 7)]
    assert [scores["images"] for scores in left] == [9, 24, 24]
    assert " | beam 1, " in left[1]["signature"] and ", groups 3, " not in left[1]["signature"]
    for folder in run.glob("eval_*"):
        if not {"sampled with seed", "cut at"} & json.loads((folder / "scores.json").read_text())["decoding"].keys():
            shutil.rmtree(folder)
    assert len(list(run.glob("eval_*"))) == 2 and find_evaluation(path, config) == ({}, [])


def test_without_an_evaluation_the_card_says_so_and_takes_the_validation(evaluated, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(evaluated, run)
    path = run / evaluated.name
    text, header = card_of(path, tmp_path / "bare")
    assert "Not evaluated, and saved without a validation" in text and "model-index" not in header
    row = {"type": "val", "step": 42, "epoch": 7, "val_loss": 2.5, "CIDEr": 0.5, "Bleu_4": 0.25, "ROUGE_L": None}
    samples = {"type": "samples", "step": 42, "epoch": 7, "samples": [{"file_name": "a.jpg", "caption": "A | dog"}]}
    earlier = [row | {"step": 36, "epoch": 6, "val_loss": 9.0}, samples | {"epoch": 6, "samples": []}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*earlier, samples, row)))
    text, header = card_of(path, tmp_path / "mine")
    assert "Not evaluated on a test split yet. At the validation during the training: loss 2.5000" in text
    assert "CIDEr-D 50.0" in text and "| a.jpg | A \\| dog |" in text
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["split"] == "val"


def test_the_card_follows_the_data_set_and_keeps_this_machine_to_itself(exports, tmp_path):
    path, _ = exports["vit"]
    state = checkpoint.load(path)
    about = {"captions_sha256": "x", "counts": {"train": {"images": 2, "captions": 10}}}
    for dataset, manifest, expected, language in (
        ("flickr30k", {"source": "nlphuji/flickr30k on the Hugging Face Hub", "licence": "research only"},
         ("gender, age and often the ethnic origin", "datasets/nlphuji/flickr30k", "terms: research only"), "en"),
        ("mine", {"source": "/home/me/photos", "layout": "captions.csv", "licence": "not known"},
         ("a folder of the person who trained it (layout: captions.csv)", "terms: not known"), None),
        ("coco", {}, ("Its description was not at hand", "annotators of COCO"), "en"),
    ):  # fmt: skip
        (tmp_path / dataset).mkdir()
        if manifest:
            (tmp_path / dataset / "manifest.json").write_text(json.dumps(manifest | about))
        changed = state | {"captions_sha256": "x", "config": state["config"] | {"DATASET": dataset}}
        write_export(tmp_path / f"of_{dataset}", changed, path, tmp_path, "someone/captioner")
        text = (tmp_path / f"of_{dataset}" / "README.md").read_text()
        for part in expected:
            assert part in text, part
        header = yaml.safe_load(text.split("---\n")[1])
        assert header.get("language") == language
        assert header.get("datasets") == (["nlphuji/flickr30k"] if dataset == "flickr30k" else None)
        assert "/home/me" not in text and "tower" not in yaml.safe_load(text.split("---\n")[1]).get("base_model", "")
        assert 'nanocaption.load("someone/captioner")' in text
    hub_name = state | {"config": state["config"] | {"ENCODER_MODEL_NAME": "google/vit-base-patch16-224"}}
    write_export(tmp_path / "named", hub_name, path, tmp_path, None)
    header = yaml.safe_load((tmp_path / "named" / "README.md").read_text().split("---\n")[1])
    assert header["base_model"] == "google/vit-base-patch16-224"


def test_scores_over_fewer_than_a_hundred_pictures_are_warned_of_everywhere(evaluated, tmp_path):
    run = Path(shutil.copytree(evaluated.parent, tmp_path / "run"))
    (file,) = (path / "scores.json" for path in run.glob("eval_*") if path.name != "eval_test_other")
    scores = json.loads(file.read_text())
    for images, warned in ((99, True), (100, False)):
        file.write_text(json.dumps(scores | {"images": images}))
        text, header = card_of(run / evaluated.name, tmp_path / f"mine{images}")
        names = {row["name"] for row in header["model-index"][0]["results"][0]["metrics"]}
        assert ("too few to compare models" in text) == warned
        assert all(name.endswith(f"(of {images} pictures only)") for name in names) == warned


def test_the_card_of_each_format_says_how_it_is_loaded(exports, tmp_path):
    ours = (exports["vit"][1] / "README.md").read_text()
    assert 'nanocaption.load("mine")' in ours and "--format transformers`: a" in ours
    assert "--format onnx`: " in ours and "--format web`: " in ours
    assert "its encoder begins with convolutions" in (exports["scratch"][1] / "README.md").read_text()
    export.main([str(exports["clip"][0]), str(tmp_path / "plain"), "--format", "transformers"])
    text = (tmp_path / "plain" / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "transformers" and "nanocaption.load" not in text
    assert 'name = "plain"' in text and "VisionEncoderDecoderModel.from_pretrained(name)" in text
    assert not re.search(r"(?i:more information)|TODO|[{}]|None|===", text)


# --- The command line ---


def test_help_and_mistakes_answer_at_once(capsys):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nanocaption", "export", "--help"], cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "--push" in done.stdout
    assert "argparse" in done.stderr and not re.search(r"\b(torch|numpy|transformers)\b", done.stderr)
    for argv in ([], ["a", "b", "c"], ["--push"]):
        with pytest.raises(SystemExit) as caught:
            export.main(argv)
        assert caught.value.code == 2
    with pytest.raises(SystemExit, match="HF_REPO_ID = 'nobody'"):
        export.main(["a", "b", "--push", "nobody"])


def test_without_a_checkpoint_the_best_of_the_newest_run_is_taken(exports, tmp_path, capsys):
    path, _ = exports["scratch"]
    (tmp_path / "runs" / "demo-001").mkdir(parents=True)
    shutil.copy(path, tmp_path / "runs" / "demo-001")
    export.main(["--output-dir", str(tmp_path / "runs"), str(tmp_path / "mine")])
    assert f"{tmp_path}/runs/demo-001/{path.name} after 7 epochs" in capsys.readouterr().out
