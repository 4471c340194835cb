"""References are the yardstick: a prepared set scores as the raw captions do, whatever training makes of them."""

import contextlib
import io
import json
import random
from pathlib import Path

import pytest

from nanocaption import metrics
from nanocaption.commands.score import main as score_main
from nanocaption.data.caption_text import as_read, as_trained
from nanocaption.data.prepared import load_records, repaired_notes
from nanocaption.prepare import check
from nanocaption.prepare.make import prepare
from nanocaption.score.results import write_results
from nanocaption.score.scoring import score_captions
from tests.raw_sets import draw, write

WORDS = ["dog", "cat", "ball", "park", "runs", "sits", "red", "small", "the", "a", "man", "in", "on", "with", "two"]
NAMES = [f"{number:03}.jpg" for number in range(60)]


def raw_captions(rng: random.Random) -> list[str]:
    """Captions of one picture: repeated, odd in spaces and case, detached, with entities, decomposed, initials."""
    texts = [" ".join(rng.choices(WORDS, k=6)) for _ in range(3)]
    odd = [f"{texts[0]} .", f"  {texts[1]}\t{texts[2]}  ", f"{texts[0]} , it 's {texts[1]} ( plan b . )",
           "Mr . Bean do n't", f"fish &amp; {texts[1]}", f"a cafe\u0301 {texts[2]}", f"{texts[2].title()}\n{texts[0]}",
           "go to 3 . 5 st ."]  # fmt: skip
    return [*texts[:2], texts[0], rng.choice(odd), texts[0].upper()]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("yardstick") / "raw", random.Random(3)
    draw(folder, NAMES)
    splits = {name: ("train", "val", "test")[number % 3] for number, name in enumerate(NAMES)}
    rows = [{"file_name": name, "split": splits[name], "captions": raw_captions(rng)} for name in NAMES]
    write(folder / "captions.jsonl", "\n".join(map(json.dumps, rows)))
    return folder


def raw_rows(raw: Path, split: str) -> list[dict]:
    rows = map(json.loads, (raw / "captions.jsonl").read_text().splitlines())
    return [row for row in rows if row["split"] == split]


def cider_of_the_field(references: dict[str, list[str]], candidates: dict[str, str]) -> float:
    """pycocoevalcap's own, over PTB tokens."""
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    tokens = iter(metrics.ptb_tokenize([text for texts in references.values() for text in texts]))
    cut = {name: [next(tokens) for _ in texts] for name, texts in references.items()}
    said = dict(zip(candidates, ([text] for text in metrics.ptb_tokenize(list(candidates.values()))), strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        return float(cider.Cider().compute_score(cut, said)[0])


@pytest.mark.parametrize("case", ["keep", "lower"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_prepared_set_scores_as_the_raw_captions_do(raw, tmp_path, split, case):
    folder = prepare("mine", tmp_path, raw_dir=raw, rules=check.Rules(caption_case=case))
    records, rows = load_records(folder, split), raw_rows(raw, split)
    said = [row["captions"][3] for row in rows]
    scores, _ = score_captions(records, said, people=False)
    references = {row["file_name"]: row["captions"] for row in rows}
    candidates = dict(zip(references, said, strict=True))
    assert scores["corpus"] == metrics.score(references, candidates)
    assert scores["corpus"]["CIDEr"] == pytest.approx(cider_of_the_field(references, candidates), abs=1e-9)
    for change in (as_read(records, case), as_trained(records, case)[0]):  # what training sees would not do
        assert score_captions(change, said, people=False)[0]["corpus"]["CIDEr"] != scores["corpus"]["CIDEr"]


def test_the_command_gives_the_same_from_files(raw, tmp_path, capsys):
    records = load_records(prepare("mine", tmp_path, raw_dir=raw), "test")
    said = [record["captions"][1] for record in records]
    scores, _ = score_captions(records, said)
    write_results(tmp_path / "own", records, said, scores)
    references = {row["file_name"]: row["captions"] for row in raw_rows(raw, "test")}
    (tmp_path / "raw.json").write_text(json.dumps(references))
    (tmp_path / "said.json").write_text(json.dumps(dict(zip(references, said, strict=True))))
    own, predictions = tmp_path / "own" / "references.json", tmp_path / "own" / "predictions.json"
    for files in ((own, predictions), (tmp_path / "raw.json", tmp_path / "said.json")):
        with pytest.warns(UserWarning, match="20 images are few"):
            score_main([*map(str, files), "--json", str(tmp_path / "out.json")])
        found = json.loads((tmp_path / "out.json").read_text())
        assert {name: found[name] for name in scores["corpus"]} == scores["corpus"]


def test_training_reads_captions_repaired_and_each_once_whatever_split_it_is(raw, tmp_path):
    records = load_records(prepare("mine", tmp_path, raw_dir=raw), ("train", "val"))
    once, repeats = as_trained(records, "lower")
    assert repeats >= 2 * len(records)  # the third and the fifth of each
    for record, before in zip(once, records, strict=True):
        texts = record["captions"]
        assert len(set(texts)) == len(texts) >= 2 and texts[0] == before["captions"][0] == before["captions"][2]
        assert all(text == text.lower() == " ".join(text.split()) and " ." not in text for text in texts)
    assert [len(record["captions"]) for record in as_read(records, "lower")] == [5] * len(records)


def test_what_is_no_caption_is_told_by_split(tmp_path, capsys):
    captions = {"000.jpg": ["a dog", " "], "001.jpg": ["a cat", "!!", ""], "002.jpg": ["a cow"]}
    draw(tmp_path / "raw", list(captions))
    rows = [{"file_name": name, "split": split, "captions": texts}
            for (name, texts), split in zip(captions.items(), ("train", "val", "test"), strict=True)]  # fmt: skip
    write(tmp_path / "raw" / "captions.jsonl", "\n".join(map(json.dumps, rows)))
    prepare("mine", tmp_path, raw_dir=tmp_path / "raw", rules=check.Rules(max_bad_fraction=0.9))
    assert "by split: train 1, val 2; no references here" in capsys.readouterr().out


def test_a_set_of_an_earlier_version_loads_and_says_what_it_lacks(raw, tmp_path, capsys):
    folder = prepare("mine", tmp_path, raw_dir=raw)
    assert "earlier version" not in capsys.readouterr().out and repaired_notes(folder) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"caption_text": {"version": 1, "case": "keep"}}))
    assert prepare("mine", tmp_path, raw_dir=raw) == folder
    (note,) = repaired_notes(folder)
    assert note in capsys.readouterr().out and "\n" not in note and f"delete {folder / 'manifest.json'}" in note
    mix = prepare("mine,demo", tmp_path, cutoff=2)
    assert repaired_notes(mix) == [note]  # the demo set had nothing to repair
    (folder / "manifest.json").unlink()
    prepare("mine", tmp_path, raw_dir=raw)
    assert repaired_notes(mix) == []
