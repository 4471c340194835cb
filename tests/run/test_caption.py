"""`nanocaption caption` and what stands behind it: files and folders in, text, JSON and pictures out; ensembles."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from nanocaption.base.files import write_file
from nanocaption.base.settings import declared_settings, load_settings
from nanocaption.commands import caption
from nanocaption.data.dataset import ImageTextDataset, load_image
from nanocaption.data.tokenizer import END, START, text_of
from nanocaption.model import decode
from nanocaption.model.options import GREEDY, Options, search_options
from nanocaption.runs import checkpoint
from nanocaption.use.attention import CaptionMaps, WordMap, attend, draw_words
from nanocaption.use.captioning import caption_images
from nanocaption.use.load import find_checkpoints, load_model, load_models
from tests.conftest import tiny_flags

CONSTANTS = declared_settings().constants  # cached: changed here, changed for load_settings


@pytest.fixture(scope="module")
def runs(demo_data, tiny_run_made, tmp_path_factory):
    """Three runs: b sees larger pictures and has shorter captions than a, c has another tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    common = [*tiny_flags(demo_data, folder), "--num-epochs", "1", "--validation-score-images", "0"]
    changes = {"c": ["--vocab-size", "300"], "b": ["--seed", "2", "--image-size", "48", "--max-seq-len", "20"]}
    for name, flags in changes.items():
        train.main([*common, "--run-name", name, *flags])
    shutil.copytree(tiny_run_made, folder / "a")
    return {name: str(folder / name / "last.safetensors") for name in "abc"}


@pytest.fixture(scope="module")
def images(demo_data):
    return sorted(str(path) for path in (demo_data / "demo" / "images").iterdir())[:3]


def rows(capsys, *argv: str) -> list[dict]:
    capsys.readouterr()
    assert caption.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- in and out ---


def test_text_json_and_the_file_tell_the_same(runs, images, tmp_path, capsys, monkeypatch):
    flags = ["--checkpoint", runs["a"], "--num-captions", "2"]
    told = rows(capsys, *images, *flags)
    assert [row["file_name"] for row in told] == images
    for row in told:
        assert len(row["captions"]) == 2 and row["captions"][0]["score"] >= row["captions"][1]["score"]
        assert all(found["log_prob"] < 0 for found in row["captions"])
    assert caption.main([*images, *flags]) == 0
    lines = [f"{row['file_name']}: {found['caption']}" for row in told for found in row["captions"]]
    assert capsys.readouterr().out.splitlines() == lines
    monkeypatch.setattr(sys, "stdin", io.StringIO("\r\n".join(images) + "\n\r\n"))
    output = tmp_path / "captions.json"
    output.write_text("old")
    assert caption.main(["-", *flags, "--output", str(output)]) == 0
    assert json.loads(output.read_text()) == told
    assert [path.name for path in tmp_path.iterdir()] == ["captions.json"]


def test_unreadable_pictures_are_told_and_the_others_captioned(runs, images, tmp_path, capsys, monkeypatch):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no picture")
    missing = tmp_path / "missing.jpg"
    names = [images[0], str(broken), images[1], str(missing)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names)))
    flags = ["--checkpoint", runs["a"]]
    assert caption.main(["-", *flags, "--json"]) == 1
    out, err = capsys.readouterr()
    assert [row["file_name"] for row in json.loads(out)] == images[:2]
    first, second = err.splitlines()
    assert first.startswith(f"The picture {broken} cannot be read: ") and f"{missing} cannot be read" in second
    assert json.loads(out) == rows(capsys, *images[:2], *flags)
    assert caption.main([str(broken), *flags]) == 1 and capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="There is no picture"):
        caption.main([str(missing), *flags])
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(SystemExit, match="the list on stdin is empty"):
        caption.main(["-", *flags])


def test_names_that_are_no_text_or_too_long_stop_nothing(runs, images, tmp_path, capsys):
    folder, output = tmp_path / "pictures", tmp_path / "captions.json"
    folder.mkdir()
    picture = folder / os.fsdecode(b"bad\xff\xfe.jpg")
    picture.write_bytes(Path(images[0]).read_bytes())
    (folder / "gone.jpg").symlink_to("nowhere")
    argv = ["x" * 300 + ".jpg", str(folder), "--checkpoint", runs["a"], "--output", str(output)]
    assert caption.main(argv) == 1
    assert "cannot be read: cannot be opened: File name too long" in (err := capsys.readouterr().err)
    assert "gone.jpg cannot be read: link to nothing" in err
    (row,) = json.loads(output.read_bytes())
    assert row["file_name"] == str(picture) and row["captions"] == rows(capsys, images[0], *argv[2:4])[0]["captions"]


def test_no_picture_is_overwritten_and_an_empty_name_is_no_folder(runs, images, tmp_path):
    path = tmp_path / "photo.png"
    Image.open(images[0]).save(path)
    before = path.read_bytes()
    for flag in ("--output", "--attention"):
        with pytest.raises(SystemExit, match=f"{flag} .*photo.png: is one of the pictures"):
            caption.main([str(path), "--checkpoint", runs["a"], flag, str(path.parent / "." / path.name)])
    assert path.read_bytes() == before
    with pytest.raises(SystemExit, match="names no picture"):
        caption.main([""])


def test_a_damaged_exif_block_and_signs_of_mathematics_are_drawn(runs, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x0213] = 6, 1
    block = bytearray(exif.tobytes())
    block[block.index(b"\x02\x13") + 3] = 2  # a number that says it is text
    picture = Image.open(images[0]).convert("RGB")
    picture.save(tmp_path / "odd.jpg", exif=bytes(block))
    assert caption.main([str(tmp_path / "odd.jpg"), "--checkpoint", runs["a"],
                         "--attention", str(tmp_path / "maps.png")]) == 0  # fmt: skip
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    maps = CaptionMaps(2, [WordMap("$^$", torch.eye(2))])
    assert draw_words(picture, r"a $\frac$ and $^$", maps).startswith(b"\x89PNG")


def test_folders_give_the_pictures_in_and_below_them(images, tmp_path):
    (tmp_path / "album.jpg").mkdir()
    (tmp_path / ".thumbnails").mkdir()
    with pytest.raises(SystemExit, match="holds no pictures"):
        caption.find_pictures([str(tmp_path)])
    for name in ("one.JPG", "album.jpg/two.png", "album.jpg/notes.txt", ".thumbnails/one.jpg"):
        (tmp_path / name).write_bytes(Path(images[0]).read_bytes())
    found = caption.find_pictures([str(tmp_path)])
    assert sorted(found) == [tmp_path / "album.jpg" / "two.png", tmp_path / "one.JPG"]


def test_a_missing_picture_among_others_is_told_and_the_chosen_checkpoint_named(runs, images, tmp_path, capsys):
    folder = str(Path(runs["a"]).parents[1])
    assert caption.main([images[0], "nowhere.jpg", "--output-dir", folder]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{images[0]}: ") and out.count("\n") == 1
    assert "nowhere.jpg cannot be read" in err and err.startswith("captions of ") and folder in err


def test_a_model_that_gives_no_numbers_gives_empty_captions_and_a_warning(runs, images, capsys):
    state = checkpoint.load(runs["a"])
    state["model_state_dict"]["decoder.norm.weight"][:] = torch.nan
    broken = Path(runs["a"]).with_name("broken.safetensors")
    checkpoint.save(broken, state)
    for flags in ([], ["--beam-size", "1"], ["--sample"]):
        with pytest.warns(UserWarning, match="no numbers .NaN. for some pictures"):
            told = rows(capsys, *images[:2], "--checkpoint", str(broken), *flags)
        assert [row["captions"] for row in told] == [[{"caption": "", "log_prob": None, "score": None}]] * 2
    broken.unlink()


def test_batches_and_readers_change_nothing(runs, images, capsys):
    flags = [*images, "--checkpoint", runs["a"]]
    one = rows(capsys, *flags, "--eval-batch-size", "1")
    many = rows(capsys, *flags, "--num-workers", "2")
    assert [row["captions"][0]["caption"] for row in one] == [row["captions"][0]["caption"] for row in many]


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "captions.json"
    write_file(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--num-captions 0", "--num-captions 0: must be 1 or more"),
        ("--beam-groups 0", "--beam-groups 0: must be 1 or more"),
        ("--sample --num-captions 1001", "--num-captions 1001: at most 1000"),
        ("--max-length -1", "--max-length -1: must be 0 (as many as the model can), or at least 1"),
        ("--length-penalty 300", "LENGTH_PENALTY = 300.0: at most 10"),
        ("--output .", "--output .: is a folder"),
        ("--num-captions 101", "one beam each, at most 100, or add --sample"),
        ("--beam-groups 2 --diversity-penalty -1", "--diversity-penalty -1.0: must be 0 or more"),
        ("--diversity-penalty 2", "add --beam-groups"),
        ("--beam-groups 2 --sample", "leave --sample out"),
        ("--sample --temperature nan", "--temperature nan: must be 0 (greedy) or more"),
        ("--sample --top-k -1", "--top-k -1: must be 0"),
        ("--sample --top-p 0", "--top-p 0.0: must be above 0"),
        ("--temperature 0.5", "add --sample"),
        ("--attention words.jpg", "must end in .png"),
        ("--attention no/words.png", "--attention no/words.png: there is no such folder"),
        ("--output no/captions.json", "--output no/captions.json: there is no such folder"),
        ("--attention words.png --num-captions 0 --top-k 3", "--num-captions 0"),
    ],
)
def test_flags_that_cannot_be_meant_so_are_refused_before_any_work(images, flags, told):
    with pytest.raises(SystemExit) as refused:
        caption.main([images[0], *flags.split()])
    assert told in str(refused.value)


# --- ways of choosing ---


def test_the_flags_reach_the_search(runs, images, capsys):
    flags = [images[0], "--checkpoint", runs["a"]]
    plain = rows(capsys, *flags, "--num-captions", "3")[0]["captions"]
    (varied,) = rows(capsys, *flags, "--no-repeat-ngram", "1")[0]["captions"]
    assert varied["caption"] not in [found["caption"] for found in plain]
    (longer,) = rows(capsys, *flags, "--no-repeat-ngram", "1", "--min-length", "20")[0]["captions"]
    assert longer["log_prob"] < varied["log_prob"] and len(longer["caption"]) > len(varied["caption"])
    diverse = rows(capsys, *flags, "--num-captions", "3", "--beam-groups", "3", "--diversity-penalty", "9")
    first = [{found["caption"][:1] for found in captions} for captions in (plain, diverse[0]["captions"])]
    assert len(first[0]) < len(first[1])
    penalised = rows(capsys, *flags, "--beam-size", "1", "--length-penalty", "0")[0]["captions"][0]
    assert penalised["score"] == penalised["log_prob"]
    (cut,) = rows(capsys, *flags, "--max-length", "3")[0]["captions"]
    assert len(cut["caption"]) < len(longer["caption"])
    with pytest.raises(ValueError, match="--max-length 3 is below MIN_LENGTH = 4"):
        caption.main([*flags, "--max-length", "3", "--min-length", "4"])
    with pytest.raises(SystemExit, match="MIN_LENGTH = 23: at most 22 go between"):
        caption.main([*flags, "--min-length", "23"])


def test_sampling_is_repeated_by_its_seed(runs, images, capsys):
    flags = [*images[:2], "--checkpoint", runs["a"], "--num-captions", "4", "--sample", "--top-k", "50"]
    one, again, other = (rows(capsys, *flags, "--seed", seed) for seed in ("1", "1", "2"))
    assert one == again != other
    assert all(len(row["captions"]) == 4 for row in one)
    assert len({found["caption"] for found in one[0]["captions"]}) > 1
    turned = rows(capsys, *reversed(images[:2]), *flags[2:], "--seed", "1")
    assert turned == one[::-1]  # a picture's captions do not depend on its company
    greedy = rows(capsys, *flags[:-2], "--temperature", "0")
    assert len({found["caption"] for found in greedy[0]["captions"]}) == 1


def test_search_options_are_the_settings():
    flags = ["--beam-size", "4", "--length-penalty", "0.5", "--min-length", "3", "--no-repeat-ngram", "2"]
    options = search_options(load_settings(flags).values)
    assert options == Options(4, 0.5, 3, 2)
    assert Options(beam_size=1) == GREEDY


# --- ensembles ---


def test_an_ensemble_of_a_model_with_itself_is_the_model(runs, images, capsys):
    alone = rows(capsys, *images, "--checkpoint", runs["a"])
    twice = rows(capsys, *images, "--checkpoint", f"{runs['a']},{runs['a']}")
    for one, two in zip(alone, twice, strict=True):
        assert one["captions"][0]["caption"] == two["captions"][0]["caption"]
        assert one["captions"][0]["log_prob"] == pytest.approx(two["captions"][0]["log_prob"], abs=1e-4)


def test_members_of_an_ensemble_see_the_pictures_in_their_own_way(runs, images, capsys):
    pair = rows(capsys, *images, "--checkpoint", f"{runs['a']},{runs['b']}")
    paths = find_checkpoints(f"{runs['a']},{runs['b']}", "no runs")
    loaded = load_models(paths, load_settings(["--device", "cpu"]))
    assert CONSTANTS["SEED"] == loaded.settings.SEED and len(loaded.states) == 2
    sides = [model.image_spec["size"] for model in loaded.models]
    assert sides == [32, 48]
    steps = [
        model.start_decoding(torch.stack([load_image(path, model.image_spec) for path in images]))
        for model in loaded.models
    ]
    limits = decode.Limits(START, END, 19)  # b's, the shorter one
    expected = decode.decode(decode.ensemble(steps), 3, Options(beam_size=3), limits)
    for row, found in zip(pair, expected, strict=True):
        assert row["captions"][0]["caption"] == text_of(loaded.tokenizer, found[0].ids)
        assert row["captions"][0]["log_prob"] == pytest.approx(found[0].log_prob, abs=1e-5)
    turned = rows(capsys, *images, "--checkpoint", f"{runs['b']},{runs['a']}")
    log_probs = [[row["captions"][0]["log_prob"] for row in told] for told in (pair, turned)]
    assert log_probs[0] == pytest.approx(log_probs[1], abs=1e-4)
    for name in "ab":
        alone = rows(capsys, *images, "--checkpoint", runs[name])
        assert [row["captions"][0]["log_prob"] for row in alone] != pytest.approx(log_probs[0], abs=1e-2)


def test_models_of_other_tokenizers_or_missing_files_are_refused_in_one_line(runs, images):
    with pytest.raises(SystemExit) as refused:
        caption.main([images[0], "--checkpoint", f"{runs['a']},{runs['c']}"])
    assert str(refused.value).startswith(f"{runs['c']} has another tokenizer than {runs['a']}")
    assert "\n" not in str(refused.value)
    with pytest.raises(SystemExit, match="There is no checkpoint 'nowhere'"):
        caption.main([images[0], "--checkpoint", f"{runs['a']},nowhere"])
    missing = Path(runs["a"]).with_name("best_of_all.safetensors")
    with pytest.raises(SystemExit, match=f"There is no checkpoint.* In its folder are: .*{Path(runs['a']).name}"):
        caption.main([images[0], "--checkpoint", str(missing)])


# --- attention ---


def test_the_attention_of_a_picture_is_drawn(runs, images, tmp_path, capsys):
    path = tmp_path / "words.png"
    assert caption.main([images[0], "--checkpoint", runs["a"], "--attention", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{images[0]}: ")
    with Image.open(path) as drawn:
        assert drawn.format == "PNG" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(SystemExit, match="draws one picture: give one, not 2"):
        caption.main([*images[:2], "--checkpoint", runs["a"], "--attention", str(path)])
    with pytest.raises(SystemExit, match="give one checkpoint"):
        caption.main([images[0], "--checkpoint", f"{runs['a']},{runs['b']}", "--attention", str(path)])


def test_captions_carry_the_ids_that_attend_takes(runs, images):
    model, tokenizer = load_model(checkpoint.load(runs["a"]), torch.device("cpu"))
    records = [{"file_name": path} for path in images]
    pictures = ImageTextDataset(records, "", [[] for _ in records], model.image_spec)
    how = {"batch_size": 2, "device": torch.device("cpu"), "precision": "fp32", "workers": 0}
    found = caption_images(model, tokenizer, pictures, options=GREEDY, **how)
    pixels = torch.stack([load_image(path, model.image_spec) for path in images])
    seen = attend(model, tokenizer, pixels, [captions[0].ids for captions in found])
    assert [" ".join(word["text"] for word in entry["words"]) for entry in seen] == [
        " ".join(captions[0].text.split()) for captions in found
    ]
