"""Consensus, bad endings and length penalties through the commands: what is written, said, and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import train
from nanocaption import metrics
from nanocaption.base.settings import load_settings
from nanocaption.commands import caption
from nanocaption.metrics import ends_badly
from nanocaption.model.options import search_options
from nanocaption.runs.folder import LAST, best_files
from nanocaption.score.split import load_split
from nanocaption.use.captioning import Judged, caption_images, judged_by, split_images
from nanocaption.use.load import load_models
from nanocaption.use.penalties import best_of, caption_with_each, try_penalties
from tests.conftest import run_command, tiny_flags


@pytest.fixture(scope="module")
def learned(demo_data, tmp_path_factory) -> Path:
    """A run whose captions are words; results of evaluations go into folders of their own."""
    output = tmp_path_factory.mktemp("learned")
    train.main([*tiny_flags(demo_data, output), "--num-epochs", "8", "--learning-rate", "1e-2", "--run-name", "run",
                "--validation-score-images", "0"])  # fmt: skip
    return output / "run"


@pytest.fixture(scope="module")
def loaded(learned, demo_data):
    given = load_settings(["--data-dir", str(demo_data), "--consensus", "8", "--beam-size", "4"])
    return load_models([learned / LAST, best_files(learned)[1]], given)


def captions(loaded, images, judged=None, **more):
    options = search_options(loaded.settings.values)._replace(**more)
    return caption_images(loaded.models, loaded.tokenizer, images, batch_size=5, options=options, seed=3,
                          device=torch.device("cpu"), precision="fp32", workers=0, judged=judged)  # fmt: skip


def test_consensus_takes_the_beam_that_the_samples_agree_with_alone_or_in_a_batch_of_an_ensemble(loaded):
    split = load_split(loaded.settings, "val", loaded.states[0]["config"])
    judged = judged_by(loaded)
    assert judged is not None and judged.samples == 8
    images = split_images(loaded, split).part(range(7))
    plain, drawn = captions(loaded, images), captions(loaded, images, samples=8)
    found, moved = captions(loaded, images, judged), 0
    for beams, samples, chosen in zip(plain, drawn, found, strict=True):
        assert sorted(beams) == sorted(chosen)
        texts = [caption.text for caption in chosen]
        (liking,) = metrics.consensus(judged.training, [texts], [[sample.text for sample in samples]])
        assert liking.tolist() == sorted(liking, reverse=True)
        moved += beams != chosen
    assert moved > 1  # the control: the likeliest is not always the one most agreed with
    (alone,) = captions(loaded, images.part([4]), judged)
    assert [caption.ids for caption in alone] == [caption.ids for caption in found[4]]  # log_prob: up to rounding


def test_the_training_captions_must_be_there(loaded, tmp_path):
    gone = loaded._replace(settings=loaded.settings.replace(DATA_DIR=str(tmp_path)))
    with pytest.raises(ValueError, match="CONSENSUS = 8 weighs words as the training captions of demo do"):
        judged_by(gone)
    assert judged_by(loaded._replace(settings=loaded.settings.replace(CONSENSUS=0))) is None
    assert isinstance(judged_by(loaded), Judged)


def test_one_search_for_all_penalties_captions_as_searches_with_each(loaded):
    split = load_split(loaded.settings, "val", loaded.states[0]["config"])
    options, penalties = search_options(loaded.settings.values)._replace(no_bad_endings=True), [0.3, 1.0, 2.0]
    found = caption_with_each(loaded, options, split, penalties)
    images = split_images(loaded, split)
    for penalty, texts in zip(penalties, found, strict=True):
        rows = captions(loaded, images, no_bad_endings=True, length_penalty=penalty)
        assert texts == [row[0].text for row in rows]
    assert found[0] != found[2]
    tried = try_penalties(loaded, options, split, penalties, metrics.ptb_tokenize)
    assert max(row.cider for row in tried) == next(row.cider for row in tried if row.penalty == best_of(tried))
    for row, texts in zip(tried, found, strict=True):
        references = {record["file_name"]: record["captions"] for record in split.records}
        expected = metrics.score(references, dict(zip(references, texts, strict=True)))
        assert row.cider == expected["CIDEr"] and row.bad_endings == sum(map(ends_badly, texts)) / len(texts)


def test_evaluate_chooses_on_val_and_says_all_in_the_results(learned, demo_data, capsys):
    common = ["--checkpoint", str(learned / LAST), "--data-dir", str(demo_data)]
    evaluate.main([*common, "--length-penalties", "0.5,1,2", "--no-bad-endings"])
    said = capsys.readouterr().out
    assert "<- best CIDEr" in said and "of demo/val with 3 length penalties" in said
    (folder,) = learned.glob("eval_test_*goodendings*")
    scores = json.loads((folder / "scores.json").read_text())
    chosen = max(scores["length_penalties"], key=lambda row: (row["cider"], -abs(row["penalty"] - 1)))["penalty"]
    assert scores["decoding"]["length penalty"] == chosen and scores["decoding"]["no bad endings"] is True
    assert scores["text"]["bad_endings"] == 0 and folder.name.endswith(f"penalty{chosen:g}_goodendings_first24")
    evaluate.main([*common, "--length-penalties", "0.5,2", "--split", "val"])
    assert "use it on another split with --length-penalty" in capsys.readouterr().out
    evaluate.main([*common, "--consensus", "4"])
    (folder,) = learned.glob("eval_test_*consensus4*")
    decoding = json.loads((folder / "scores.json").read_text())["decoding"]
    assert decoding["consensus of"] == 4 and "document frequencies" in decoding


def test_the_caption_command_takes_them_and_refuses_what_cannot_be_meant(learned, demo_data, tmp_path, capsys):
    picture = tmp_path / "a.jpg"
    shutil.copyfile(next((demo_data / "demo" / "images").iterdir()), picture)
    common = [str(picture), "--checkpoint", str(learned / LAST), "--data-dir", str(demo_data)]
    assert run_command(caption.main, [*common, "--consensus", "5", "--no-bad-endings"]) == 0
    assert str(picture) in capsys.readouterr().out
    for more, said in (
        (["--consensus", "5", "--sample"], "leave --sample out"),
        (["--consensus", "5", "--beam-size", "1"], "BEAM_SIZE = 1 leaves no choice"),
        (["--consensus", "5", "--data-dir", str(tmp_path)], "the training captions of demo"),
        (["--consensus", "-1"], "must be 0 or more"),
    ):
        assert run_command(caption.main, [*common, *more]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("text, more, said", [
    ("1", [], "two or more different numbers"), ("1,1", [], "two or more different numbers"),
    ("1,x", [], "must be numbers"), ("1,11", [], "from 0 to 10"), ("1,nan", [], "from 0 to 10"),
    ("1,2", ["--sample"], "leave out --sample"), ("1,2", ["--predictions", "x.json"], "leave out --predictions"),
])  # fmt: skip
def test_length_penalties_that_cannot_be_meant_are_told_before_a_model_is_loaded(text, more, said):
    with pytest.raises(SystemExit, match=said):
        evaluate.main(["--checkpoint", "nowhere.safetensors", "--length-penalties", text, *more])
