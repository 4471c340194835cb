"""Intervals, paired comparison, METEOR and SPICE: what they hold, and how they end where something is missing."""

import json
import os
import random
import shutil
import stat
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rewards
from nanocaption import metrics
from nanocaption.commands.score import main as score_main
from nanocaption.metrics import bootstrap, java
from nanocaption.metrics.scores import Measured, columns_of, names_of, scores_of
from tests.conftest import ROOT, run_command

metrics_main = partial(run_command, score_main)
SAMPLE = json.loads((ROOT / "tests" / "data" / "score_sample.json").read_text("utf-8"))
NAMES = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "CIDEr", "ROUGE_L"]


def drawn_captions(seed: int, images: int = 60) -> tuple[dict, dict]:
    rng = random.Random(seed)
    text = lambda: " ".join(rng.choices("abcdefghij", k=rng.choice([6, 7, 9])))  # noqa: E731
    return {i: [text() for _ in range(3)] for i in range(images)}, {i: text() for i in range(images)}


def measured(seed: int) -> Measured:
    references, candidates = drawn_captions(seed)
    return metrics.measure(metrics.prepare_references(references, list), candidates)


def synthetic(values: np.ndarray) -> Measured:
    """Images whose CIDEr and ROUGE-L are `values`, each caption one word with one match."""
    ones = np.ones(len(values), np.int64)
    four = np.tile([1, 0, 0, 0], (len(values), 1))
    return Measured(list(range(len(values))), four.astype(float), four, ones, ones, values, values)


def test_every_image_drawn_once_gives_the_score_itself():
    one = measured(0)
    columns = columns_of(one)
    again = scores_of(columns[::-1].sum(0, keepdims=True), len(columns), NAMES)[0]
    assert metrics.total(one).corpus == pytest.approx(dict(zip(NAMES, again, strict=True)), abs=1e-12)
    assert names_of(one) == list(metrics.total(one).corpus) == NAMES


def test_a_resample_equals_the_scores_of_the_images_drawn_scored_anew():
    references, candidates = drawn_captions(1, 12)
    prepared = metrics.prepare_references(references, list)
    one = metrics.measure(prepared, candidates)
    drawn = np.random.default_rng(0).integers(0, 12, (1, 12))[0]
    low, high = bootstrap.intervals(one, resamples=1, seed=0)["Bleu_4"]
    copies = {n: references[i] for n, i in enumerate(drawn)}
    expected = metrics.score(copies, {n: candidates[i] for n, i in enumerate(drawn)}, list)
    assert low == high == pytest.approx(expected["Bleu_4"], abs=1e-12)
    cider = bootstrap.intervals(one, resamples=1, seed=0)["CIDEr"][0]
    assert cider == pytest.approx(np.mean([metrics.total(one).per_image[i]["CIDEr"] for i in drawn]), abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_it_holds_the_score():
    one = measured(2)
    first = metrics.intervals(one)
    assert first == metrics.intervals(one) != metrics.intervals(one, seed=1)
    for name, value in metrics.total(one).corpus.items():
        low, high = first[name]
        assert low < value < high or name in ("Bleu_3", "Bleu_4")  # rare matches pull the resamples to one side


def test_intervals_hold_the_true_value_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    found = [metrics.intervals(synthetic(rng.gamma(2.0, 0.5, 80)), resamples=300, seed=n)["CIDEr"] for n in range(200)]
    share = np.mean([low <= 1.0 <= high for low, high in found])
    assert 0.88 <= share <= 0.99  # 95 % but for chance and for a skewed sample of 80
    assert np.mean([low <= 1.25 <= high for low, high in found]) < 0.6


def test_a_single_image_has_an_interval_of_no_width():
    with pytest.warns(UserWarning, match="single image"):
        one = metrics.measure(metrics.prepare_references({1: ["a dog runs fast"]}), {1: "a dog runs"})
    scores = metrics.total(one).corpus
    assert metrics.intervals(one) == {name: pytest.approx((value, value)) for name, value in scores.items()}
    with pytest.raises(ValueError, match="at least 1"):
        metrics.intervals(one, resamples=0)


def test_parts_of_a_large_draw_change_nothing(monkeypatch):
    one = measured(4)
    whole = metrics.intervals(one)
    monkeypatch.setattr(bootstrap, "_ROWS", 60 * 130)
    parts = metrics.intervals(one)
    assert all(parts[name] == pytest.approx(whole[name], rel=1e-9) for name in NAMES)


def test_the_paired_test_finds_a_real_difference_and_none_where_there_is_none():
    rng = np.random.default_rng(5)
    small = []
    for n in range(150):
        shared = rng.normal(1, 1, 60)
        pair = [synthetic(shared + rng.normal(0, 0.2, 60)) for _ in range(2)]
        row = metrics.compare(*pair, resamples=20, shuffles=400, seed=n)["CIDEr"]
        small.append(row.p < 0.05)
    assert np.mean(small) < 0.12  # 5 % but for chance
    better = synthetic(pair[0].cider + 0.2 + rng.normal(0, 0.2, 60))
    row = metrics.compare(pair[0], better, shuffles=999)["CIDEr"]
    assert row.p == 0.001 and 0 < row.low < row.difference == row.second - row.first < row.high
    # The two intervals alone overlap widely: pairing is what shows it.
    alone = [metrics.intervals(one)["CIDEr"] for one in (pair[0], better)]
    assert alone[1][0] < alone[0][1]


def test_a_set_compared_with_itself_has_no_difference_and_other_images_are_refused():
    one, other = measured(6), measured(7)
    for row in metrics.compare(one, one, shuffles=99).values():
        assert (row.difference, row.low, row.high, row.p) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="different images"):
        metrics.compare(one, other._replace(images=other.images[::-1]))
    with pytest.raises(ValueError, match="METEOR or SPICE"):
        metrics.compare(one, other._replace(spice=np.zeros(60)))


def test_spice_and_meteor_columns_enter_scores_and_intervals():
    rng = np.random.default_rng(8)
    one = measured(8)._replace(spice=rng.random(60), meteor=rng.integers(1, 5, (60, 23)).astype(float))
    scores = metrics.total(one)
    assert list(scores.corpus)[-2:] == ["METEOR", "SPICE"]
    assert scores.corpus["SPICE"] == pytest.approx(one.spice.mean())
    assert scores.corpus["METEOR"] == pytest.approx(java.meteor_scores(one.meteor.sum(0, keepdims=True))[0])
    low, high = metrics.intervals(one)["SPICE"]
    assert low < scores.corpus["SPICE"] < high


# --- METEOR and SPICE ---


def test_meteor_of_stored_counts_equals_its_own_program():
    counts = np.array(SAMPLE["meteor"]["counts"])
    assert java.meteor_scores(counts) == pytest.approx(list(SAMPLE["meteor"]["per_image"].values()), abs=1e-12)
    assert java.meteor_scores(counts.sum(0, keepdims=True))[0] == pytest.approx(SAMPLE["meteor"]["corpus"], abs=1e-12)


@pytest.mark.long  # METEOR takes 15 s to start
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java on this machine")
def test_meteor_equals_its_own_program_under_a_locale_with_a_decimal_comma(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    prepared = metrics.prepare_references(SAMPLE["references"])
    scores = metrics.total(metrics.measure(prepared, SAMPLE["candidates"], meteor=True))
    assert scores.corpus["METEOR"] == pytest.approx(SAMPLE["meteor"]["corpus"], abs=1e-12)
    for image, value in SAMPLE["meteor"]["per_image"].items():
        assert scores.per_image[image]["METEOR"] == pytest.approx(value, abs=1e-12)
    assert {name: scores.corpus[name] for name in NAMES} == pytest.approx(SAMPLE["corpus"], abs=1e-9)


def fake_java(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "java"
    program.write_text("#!/bin/bash\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_java_that_is_missing_fails_or_floods_is_one_line_and_never_a_hang(tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap")
    # A row of METEOR for each line read, after more complaints than a pipe holds.
    row = " ".join(["1.0"] * 23)
    fake_java(tmp_path, f'yes complaint | head -c 300000 >&2; while read line; do echo "{row}"; done', monkeypatch)
    assert java.meteor_statistics([["a dog"]] * 50, ["a dog ||| cat"] * 50).shape == (50, 23)
    fake_java(tmp_path, 'cat > /dev/null; echo "1,0 2,0"', monkeypatch)
    with pytest.raises(ValueError, match="no row of numbers") as error:
        java.meteor_statistics([["a"]], ["a"])
    fake_java(tmp_path, 'echo "Picked up JAVA_TOOL_OPTIONS" >&2; echo "Error: no memory" >&2; exit 1', monkeypatch)
    with pytest.raises(ValueError, match="METEOR: java ended with code 1: Error: no memory") as error:
        java.meteor_statistics([["a"]], ["a"])
    assert "\n" not in str(error.value)
    monkeypatch.setenv("PATH", "")
    for program in (java.meteor_statistics, java.spice_scores):
        with pytest.raises(ValueError, match="needs Java, and there is no `java`"):
            program([["a"]], ["a"])


def test_spice_is_read_by_number_and_says_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap")
    fake_java(tmp_path, "exit 0", monkeypatch)
    place = tmp_path / "package" / "spice"
    monkeypatch.setattr(java, "_package_folder", lambda name: place.parent)
    with pytest.raises(ValueError, match="get_stanford_models"):
        java.spice_scores([["a"]], ["a"])
    (place / "lib").mkdir(parents=True)
    (place / "lib" / java.SPICE_MODELS).write_bytes(b"")
    with pytest.raises(ValueError, match="Java 8 and 11"):
        java.spice_scores([["a"]], ["a"])
    rows = [{"image_id": n, "scores": {"All": {"f": n / 20}}} for n in sorted(range(12), key=str)]  # "10" before "2"
    (tmp_path / "answer.json").write_text(json.dumps(rows))
    fake_java(tmp_path, f'while [ "$1" != -out ]; do shift; done; cp {tmp_path / "answer.json"} "$2"', monkeypatch)
    assert java.spice_scores([["a"]] * 12, ["a"] * 12).tolist() == [n / 20 for n in range(12)]
    with pytest.raises(ValueError, match="12 of 2 captions"):
        java.spice_scores([["a"]] * 2, ["a"] * 2)


# --- rewards, statistics, command line ---


def test_rewards_equal_plain_dictionaries(monkeypatch):
    monkeypatch.setattr(rewards, "IMAGES", 300)
    monkeypatch.setattr(rewards.scoring, "SHARED", Path("/nowhere"))
    (row,) = rewards.measure(repeats=1)  # it compares all 250 rewards itself
    assert row["name"] == "rewards" and row["unit"] == "s" and row["ratio"] > 1
    monkeypatch.setattr(rewards, "plain_rewards", lambda *given: np.zeros(250))
    with pytest.raises(SystemExit, match="rewards differ"):
        rewards.measure(repeats=1)


def test_captions_seen_in_the_training_are_counted_by_their_tokens():
    text = metrics.text_statistics(["A dog runs.", "two cats", "a dog runs", ""], training=["a dog runs !", "cats"])
    assert text.seen == 2 / 4 and text.empty == 1
    assert metrics.text_statistics(["a dog"]).seen is None


def test_signatures_tell_other_references_and_other_metrics_apart():
    same = [{1: ["a", "b"], 2: ["c"]}, {"x.jpg": ["a", "b"], "y.jpg": ["c"]}]
    assert len({metrics.references_digest(references) for references in same}) == 1
    others = [{1: ["a"], 2: ["b", "c"]}, {1: ["b", "a"], 2: ["c"]}, {2: ["c"], 1: ["a", "b"]}, {1: ["a", "b"]}]
    assert len({metrics.references_digest(references) for references in [same[0], *others]}) == 5
    assert "METEOR 1.5" in metrics.signature(same[0], ["METEOR"]) and "METEOR" not in metrics.signature(same[0], NAMES)


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_the_command_line_compares_two_prediction_files(tmp_path, capsys):
    references, worse = drawn_captions(9)
    better = {i: captions[0] for i, captions in references.items()}
    paths = [write(tmp_path / f"{n}.json", content) for n, content in enumerate((references, worse, better))]
    out = tmp_path / "out.json"
    assert metrics_main([*paths[:2], "--compare", paths[2], "--json", str(out)]) == 0
    printed = capsys.readouterr()
    assert "95 % interval" in printed.out and "references " in printed.out and "few" in printed.err
    row = json.loads(out.read_text())["CIDEr"]
    assert row["difference"] > row["low"] > 0 and row["p"] < 0.01
    write(tmp_path / "2.json", {i: text for i, text in better.items() if i > 2})
    assert metrics_main([*paths[:2], "--compare", paths[2]]) == 1
    error = capsys.readouterr().err
    assert "2.json: 3 of 60 images have no prediction, the first '0'" in error and error.count("\n") == 1


def test_other_references_are_refused_with_the_first_cases():
    first = {i: ["a"] for i in range(5)}
    metrics.require_same_references(first, dict(first))
    with pytest.raises(ValueError, match=r"1 images are in one of the two sets only, the first \[4\]"):
        metrics.require_same_references(first, {i: ["a"] for i in range(4)})
    with pytest.raises(ValueError, match=r"2 of 5 images have other references in the two sets, the first \[1, 3\]"):
        metrics.require_same_references(first, first | {1: ["b"], 3: ["a", "b"]})


def test_the_scoring_benchmark_measures_both_ways_of_scoring(monkeypatch):
    monkeypatch.setattr(rewards.scoring, "SHARED", Path("/nowhere"))
    monkeypatch.setattr(rewards.scoring, "load_reference", lambda: None)  # Java would take seconds
    rows = rewards.scoring.measure([60], repeats=1)
    assert [row["name"] for row in rows] == ["scoring_60x5_cold", "scoring_60x5_prepared"]
    assert all(row["ours"] > 0 and row["peer"] is None and row["unit"] == "s" for row in rows)
