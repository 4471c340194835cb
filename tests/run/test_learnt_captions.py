"""What a run learns from and what it is scored against: repeats, cut captions, broken outputs, Chinese."""

import json
import re
from pathlib import Path

import pytest

import evaluate
import train
from nanocaption.data.tokenizer import END, encode
from nanocaption.score.results import scores_table
from nanocaption.train.setup import Run
from tests.conftest import TINY_MODEL
from tests.raw_sets import draw, write

TEXTS = ["A dog runs in the yard .", "A dog runs in the yard.", "A dog runs in the yard .", "two dogs"]
CHINESE = ["一只棕色的狗在绿色的草地上奔跑", "两个男人站在红色的汽车旁边", "孩子们在海滩上玩耍", "一只猫"]


def raw_set(folder: Path, texts: list[str]) -> list[str]:
    """Twelve pictures with the same captions; the flags of a tiny run on them."""
    names = [f"{number:02}.jpg" for number in range(12)]
    draw(folder / "raw", names)
    splits = ("train", "train", "val", "test")
    rows = [{"file_name": name, "split": splits[number % 4], "captions": texts} for number, name in enumerate(names)]
    write(folder / "raw" / "captions.jsonl", "\n".join(map(json.dumps, rows)))
    return ["--dataset", "mine", "--raw-data-dir", str(folder / "raw"), "--data-dir", str(folder / "data"),
            "--output-dir", str(folder / "runs"), "--run-name", "r", *TINY_MODEL.split(), "--num-epochs", "1",
            "--batch-size", "8"]  # fmt: skip


@pytest.fixture
def runs(monkeypatch) -> list[Run]:
    """Every run that was made ready."""
    made: list[Run] = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda run, progress: made.append(run) or fit(run, progress))
    monkeypatch.setattr(train, "plot_curves", lambda *_, **__: None)
    return made


def test_training_drops_repeats_and_says_so_and_references_keep_them(tmp_path, runs, capsys):
    flags = raw_set(tmp_path, TEXTS)
    train.main(flags)
    (run,) = runs
    assert "captions, train: 12 of 24 say the same as another one of their picture" in capsys.readouterr().out
    tokens = [encode(run.tokenizer, text, 40) for text in ("A dog runs in the yard.", "two dogs")]
    assert [[list(ids) for ids in captions] for captions in run.train_set.token_ids] == [tokens] * 6
    assert [len(captions) for captions in run.val_set.token_ids] == [4] * 3  # the loss is over all of them, repaired
    assert all(list(captions[0]) == tokens[0] for captions in run.val_set.token_ids)
    assert [record["captions"] for record in run.val_records] == [TEXTS] * 3
    references = tmp_path / "out" / "references.json"
    evaluate.main([*flags[2:6], "--dataset", "mine", "--data-dir", str(tmp_path / "data"), "--checkpoint",
                   str(tmp_path / "runs" / "r" / "last.safetensors"), "--output", str(tmp_path / "out")])  # fmt: skip
    assert [entry["caption"] for entry in json.loads(references.read_text())["annotations"]] == TEXTS * 3


@pytest.mark.filterwarnings("ignore:.*line separator")  # what an untrained model says
def test_a_case_set_for_training_leaves_references_alone(tmp_path, runs):
    train.main([*raw_set(tmp_path, ["A Dog.", "a dog."]), "--caption-case", "lower"])
    (run,) = runs
    assert [len(captions) for captions in run.train_set.token_ids] == [1] * 6
    assert run.val_records[0]["captions"] == ["A Dog.", "a dog."]


def test_cut_captions_are_told_by_split_and_have_no_end_among_the_targets(tmp_path, runs, capsys):
    flags = [*raw_set(tmp_path, TEXTS), "--max-seq-len", "7"]
    train.main(flags)
    said = capsys.readouterr().out
    (run,) = runs
    need = len(encode(run.tokenizer, "A dog runs in the yard.", 1000))
    assert "captions, train: 6 of 12 (50.00%) are cut to MAX_SEQ_LEN = 7 tokens and teach no end; " in said
    assert "captions, val: 9 of 12 (75.00%)" in said and f"the longest has {need}: MAX_SEQ_LEN = {need} would" in said
    assert f"Set MAX_SEQ_LEN = {need} to hold 99 %" in said
    ends = [[END in ids for ids in captions] for captions in run.train_set.token_ids]
    assert ends == [[False, True]] * 6
    train.main([*flags, "--max-seq-len", str(need), "--run-name", "r2"])
    assert "are cut" not in capsys.readouterr().out
    assert all(END in ids for captions in runs[1].train_set.token_ids for ids in captions)


@pytest.mark.filterwarnings("ignore:100% of the references are written without spaces")
@pytest.mark.filterwarnings("ignore:.*contain a line separator")
def test_chinese_is_cut_and_decoded_at_whole_characters_and_broken_outputs_are_counted(tmp_path, runs, capsys):
    """An untrained model writes any bytes: nearly all of its captions are broken, and none shows it."""
    flags = [*raw_set(tmp_path, CHINESE), "--max-seq-len", "14", "--learning-rate", "1e-9", "--min-lr", "0"]
    with pytest.warns(UserWarning, match="without spaces between words"):  # in the validation
        train.main(flags)
    (run,) = runs
    for captions in run.train_set.token_ids:
        for ids in captions:
            text = run.tokenizer.decode([token for token in ids if token > 3])
            assert "\ufffd" not in text and any(whole.startswith(text.strip()) for whole in CHINESE)
    checkpoint = str(tmp_path / "runs" / "r" / "last.safetensors")
    common = ["--dataset", "mine", "--data-dir", str(tmp_path / "data"), "--checkpoint", checkpoint]
    capsys.readouterr()
    for more, name in (([], "ptb"), (["--tokenize", "characters"], "characters")):
        output = tmp_path / name
        evaluate.main([*common, "--output", str(output), "--sample", "--temperature", "5", *more])
        said = capsys.readouterr().out
        scores = json.loads((output / "scores.json").read_text())
        texts = [entry["caption"] for entry in json.loads((output / "predictions.json").read_text())]
        assert scores["text"]["broken"] == 3 and "3 captions are broken" in said
        assert not any("\ufffd" in text for text in texts)
        assert ("characters as tokens" in scores["signature"]) == (name == "characters")
    assert re.search(r"CIDEr", said)


def test_a_table_without_broken_captions_says_nothing_of_them():
    scores = {"corpus": {"CIDEr": 1.0}, "intervals": {"CIDEr": (0.9, 1.1)}, "images": 200, "text": {
        "mean_length": 1.0, "vocabulary": 1, "distinct_1": 1, "distinct_2": 1, "repetition": 0, "empty": 0,
        "broken": 0}}  # fmt: skip
    assert "broken" not in scores_table(scores)
    scores["text"]["broken"] = 2
    assert "2 captions are broken" in scores_table(scores)
