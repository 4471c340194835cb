"""Caption scores: tokens and numbers equal to pycocoevalcap, and what happens with bad input."""

import contextlib
import gzip
import io
import json
import random
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nanocaption.commands.score import main as score_main
from nanocaption.metrics import (
    cider_rewards,
    leave_one_out,
    prepare_references,
    ptb,
    ptb_tokenize,
    score,
    score_per_image,
    score_prepared,
    text_statistics,
)
from tests.conftest import ROOT, run_command

metrics_main = partial(run_command, score_main)
DATA = ROOT / "tests" / "data"
HARD_LIST = ROOT.parent / "shared" / "data" / "metrics" / "hard_list.json.gz"
NAMES = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "CIDEr", "ROUGE_L"]

# Fragments from which odd captions are drawn: one for about every rule of the tokenizer.
ODD = """
    don't can't 's n't B. U.S. The A In dog a 1 22 333 4444 1/2 - -- . , ; : ! ? ' " ( ) [ ] <b> < &amp; &lt;
    & $ # @ _ * % + = ~ ^ \\ | { } ` \u2019 \u2018 \u201c \u201d \u2026 \u2013 \u00e9 \u00bd \u00b2 \u00ad
    \u0301 \u0663 \u2605 \U0001f436 &eacute; no. art. Mr. etc. http:// www. x.com a.jpg o'clock T-shirt y'all
    cannot gonna 'tis 'em '08 '80s C++ Ph.D. 'n' ma'am O'Hare l'eau ... :) ^_^ US R&B and/or pro-
    3-year-old x_y p.m. s t n L
    """
FRAGMENTS = [*ODD.split(), " ", " ", " ", "\u00a0", ". . ."]


def jar_tokens(captions: list[str]) -> list[str]:
    """What pycocoevalcap's own tokenizer, in Java, makes of one batch."""
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("no java on this machine")
    result = tokenizer.PTBTokenizer().tokenize({"all": [{"caption": caption} for caption in captions]})
    return result["all"]


def reference_scores(references: dict, candidates: dict) -> tuple[dict, dict]:
    """Corpus and per-image scores of pycocoevalcap for tokenised captions."""
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    wrapped = {image: [caption] for image, caption in candidates.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleu_images = Bleu(4).compute_score(references, wrapped)
        cider, cider_images = Cider().compute_score(references, wrapped)
        rouge, rouge_images = Rouge().compute_score(references, wrapped)
    rows = zip(*bleu_images, cider_images, rouge_images, strict=True)
    per_image = {i: dict(zip(NAMES, row, strict=True)) for i, row in zip(references, rows, strict=True)}
    return dict(zip(NAMES, [*bleu, cider, rouge], strict=True)), per_image


def random_captions(rng: random.Random, words: list[str], lengths: list[int]) -> tuple[dict, dict]:
    """Tokenised references and candidates of 40 images; a few candidates are empty, or equal a reference."""
    draw = lambda: " ".join(rng.choices(words, k=rng.choice(lengths)))  # noqa: E731
    references = {image: [draw() for _ in range(rng.randint(1, 6))] for image in rng.sample(range(999), 40)}
    candidates = {image: draw() for image in references}
    for image, captions in list(references.items())[:5]:
        candidates[image] = captions[0]
    candidates[next(iter(references))] = ""
    return references, candidates


# --- tokens -------------------------------------------------------------------------------------------------


def test_tokens_equal_the_stored_output_of_the_jar():
    sample = json.loads((DATA / "ptb_sample.json").read_text("utf-8"))
    assert ptb_tokenize(sample["captions"]) == sample["tokens"]


def test_abbreviations_in_every_form_equal_the_stored_output_of_the_jar():
    forms = json.loads((DATA / "ptb_sample.json").read_text("utf-8"))["forms"]
    tokens = ptb_tokenize([caption for caption, _ in forms] + ["zebra"])[:-1]
    assert [row for row in zip(forms, tokens, strict=True) if row[0][1] != row[1]] == []


def test_stored_sample_tells_a_naive_tokenizer_apart():
    sample = json.loads((DATA / "ptb_sample.json").read_text("utf-8"))
    naive = [" ".join(word.strip(".,!?;:\"'()-") for word in c.lower().split()) for c in sample["captions"]]
    wrong = sum(a != b for a, b in zip(naive, sample["tokens"], strict=True))
    assert wrong > len(naive) / 2


@pytest.mark.skipif(not HARD_LIST.exists(), reason="the hard list is not beside the checkout")
def test_tokens_equal_the_hard_list():
    hard = json.loads(gzip.decompress(HARD_LIST.read_bytes()))
    isolated = ptb_tokenize([text for row in hard["isolated"] for text in (row[0], "zebra")])[::2]
    assert isolated == [row[1] for row in hard["isolated"]]
    chained = ptb_tokenize([row[0] for row in hard["chained"]] + ["zebra"])[:-1]
    assert chained == [row[1] for row in hard["chained"]]
    context = ptb_tokenize([text for row in hard["context"] for text in (row[0], row[1], "zebra")])
    assert [context[i : i + 2] for i in range(0, len(context), 3)] == [row[2:] for row in hard["context"]]


def test_tokens_equal_the_jar_on_random_odd_captions():
    rng = random.Random(11)
    captions = ["".join(rng.choices(FRAGMENTS, k=rng.randint(1, 7))) for _ in range(4000)]
    rows = zip(captions, jar_tokens(captions), ptb_tokenize(captions), strict=True)
    assert [row for row in rows if row[1] != row[2]] == []


@pytest.mark.long
@pytest.mark.skipif(not HARD_LIST.exists(), reason="the captions are not beside the checkout")
def test_tokens_equal_the_jar_on_all_captions_of_flickr8k_and_flickr30k():
    flickr30k = gzip.decompress((HARD_LIST.parents[1] / "flickr30k_train_captions.token.gz").read_bytes()).decode()
    flickr8k = (HARD_LIST.parents[1] / "flickr8k" / "Flickr8k.token.txt").read_text("utf-8")
    captions = [line.split("\t", 1)[1] for text in (flickr8k, flickr30k) for line in text.splitlines()]
    assert len(captions) == 180_000
    for batch in (captions, random.Random(3).sample(captions, len(captions))):
        rows = zip(batch, jar_tokens(batch), ptb_tokenize(batch), strict=True)
        assert [row for row in rows if row[1] != row[2]] == []


def test_next_caption_decides_about_the_period():
    assert ptb_tokenize(["plan B.", "The dog runs", "x"])[0] == "plan b"
    assert ptb_tokenize(["plan B.", "Two men", "x"])[0] == "plan b."
    assert ptb_tokenize(["modern art.", "3 dogs"])[0] == "modern art."
    assert ptb_tokenize(["modern art.", "", "3 dogs"])[0] == "modern art"
    # A lone "A" counts only if a line end follows it.
    assert ptb_tokenize(["plan B.", "A"])[0] == "plan b."
    assert ptb_tokenize(["plan B.", "A", ""])[0] == "plan b"


def test_end_of_the_batch_is_no_line_end():
    # Outputs of the jar: a smiley, a year and a file name need a character after them.
    assert ptb_tokenize(["a :)", "in '08", "of 1.jpg", "x"]) == ["a :-rrb-", "in '08", "of 1.jpg", "x"]
    alone = [ptb_tokenize([last])[0] for last in ("a :)", "in '08", "of 1.jpg")]
    assert alone == ["a -rrb-", "in 08", "of 1 jpg"]


def test_a_tag_may_cross_captions_without_moving_them():
    assert ptb_tokenize(["<a b='c", "d e'> x", "y"]) == ["<a\u00a0b='c", "d\u00a0e'> x", "y"]


def test_cached_and_uncached_captions_have_the_same_tokens():
    captions = json.loads((DATA / "ptb_sample.json").read_text("utf-8"))["captions"]
    ptb.clear_cache()
    cold = ptb_tokenize(captions)
    assert ptb_tokenize(captions) == cold
    whole, alphabet, starts = ptb._batch_text(captions)
    slow = [" ".join(ptb._scan_caption((whole, alphabet, starts), i, 0)[0]) for i in range(len(captions))]
    assert [" ".join(text.split(" ")).strip(" ") for text in slow] == cold


@pytest.mark.parametrize("separator", ["\r", "\r\n", "\u2028", "\u2029", "\v", "\f"])
def test_line_separators_become_spaces_with_a_warning(separator: str):
    with pytest.warns(UserWarning, match="1 of 3 captions contain a line separator"):
        tokens = ptb_tokenize(["a dog", f"a{separator}cat", "a bird"])
    assert tokens == ["a dog", "a cat", "a bird"]


def test_newlines_become_spaces_without_a_warning():
    assert ptb_tokenize(["a\ndog\n", "\n", "cat"]) == ["a dog", "", "cat"]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["a dog", None], "caption 1 must be a string, got NoneType"),
        ([b"a dog"], "caption 0 must be a string, got bytes"),
        ("a dog", "captions must be a list of strings, got one string"),
        (["a \ud83d dog"], "caption 0 contains half a surrogate pair"),
    ],
)
def test_tokenizer_refuses_what_is_no_text(captions: object, message: str):
    with pytest.raises(ValueError, match=message):
        ptb_tokenize(captions)


def test_no_captions_have_no_tokens():
    assert ptb_tokenize([]) == []


# --- scores -------------------------------------------------------------------------------------------------


def test_scores_equal_the_stored_scores_of_the_whole_java_pipeline():
    sample = json.loads((DATA / "score_sample.json").read_text("utf-8"))
    scores = score_prepared(prepare_references(sample["references"]), sample["candidates"])
    assert scores.corpus == pytest.approx(sample["corpus"], abs=1e-9)
    assert list(scores.per_image) == list(sample["per_image"])
    for image, expected in sample["per_image"].items():
        assert scores.per_image[image] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.filterwarnings("ignore:.*references are empty texts")
def test_scores_equal_pycocoevalcap_on_random_captions(seed: int):
    rng = random.Random(seed)
    words = [f"w{i}" for i in range((3, 20, 200)[seed % 3])] + ["1\u00a01/2"]
    lengths = [0, 1, 2, 3, 5, 9, 14, 80] if seed % 2 else [9, 10, 11]
    references, candidates = random_captions(rng, words, lengths)
    corpus, per_image = reference_scores(references, candidates)
    scores = score_prepared(prepare_references(references, list), candidates)
    assert scores.corpus == pytest.approx(corpus, abs=1e-9)
    for image in references:
        assert scores.per_image[image] == pytest.approx(per_image[image], abs=1e-9)


def test_moving_one_caption_to_another_image_is_noticed():
    references, candidates = random_captions(random.Random(1), [f"w{i}" for i in range(20)], [8, 9, 10])
    first, second = list(references)[:2]
    candidates[first], candidates[second] = candidates[second], candidates[first]
    moved = score_per_image(references, candidates, list)
    candidates[first], candidates[second] = candidates[second], candidates[first]
    assert moved[second] != score_per_image(references, candidates, list)[second]


def test_order_of_the_candidates_does_not_matter():
    references, candidates = random_captions(random.Random(2), ["a", "b", "c", "d"], [5, 6])
    backwards = dict(reversed(candidates.items()))
    assert score_per_image(references, backwards, list) == score_per_image(references, candidates, list)


def test_reference_length_ties_go_to_the_shorter():
    references = {1: ["a b c d e", "a b c"], 2: ["x y z w"]}
    candidates = {1: "a b c d", 2: "x y z w"}
    # The candidate has 4 words; taken against 3 there is no brevity penalty, against 5 there would be one.
    assert score_per_image(references, candidates, list)[1]["Bleu_1"] == pytest.approx(1.0)


def test_short_caption_equal_to_its_only_reference_stays_below_ten():
    references = {1: ["red green blue"], 2: ["a b c d e"], 3: ["f g h i j"]}
    per_image = score_per_image(references, {1: "red green blue", 2: "a b c d e", 3: "k"}, list)
    assert per_image[1]["CIDEr"] == pytest.approx(7.5)
    assert per_image[2]["CIDEr"] == pytest.approx(10.0)


def test_empty_caption_scores_zero():
    scores = score_per_image({1: ["a dog runs"], 2: ["a cat sits"]}, {1: "", 2: "..."})
    assert scores[1]["CIDEr"] == scores[1]["ROUGE_L"] == 0 and scores[1]["Bleu_4"] < 1e-9
    assert scores[2] == scores[1]


def test_captions_without_any_word_score_zero():
    with pytest.warns(UserWarning, match="3 of 3 references are empty texts or signs alone"):
        corpus = score({1: [""], 2: ["", "."]}, {1: "", 2: "!"})
    assert corpus["CIDEr"] == 0 and corpus["ROUGE_L"] == 1.0


def test_single_image_has_cider_zero_and_a_warning():
    with pytest.warns(UserWarning, match="CIDEr of a single image is always 0"):
        corpus = score({1: ["a dog runs fast"]}, {1: "a dog runs fast"})
    assert corpus["CIDEr"] == 0 and corpus["ROUGE_L"] == pytest.approx(1.0)


def test_prepared_references_can_be_used_again_and_again():
    references, candidates = random_captions(random.Random(3), [f"w{i}" for i in range(9)], [4, 7])
    prepared = prepare_references(references, list)
    strangers = {image: "never seen words " + text for image, text in candidates.items()}
    first = score_prepared(prepared, candidates)
    score_prepared(prepared, strangers)
    assert score_prepared(prepared, candidates) == first


def test_rewards_equal_the_scores_of_each_image_and_allow_repeats():
    references, candidates = random_captions(random.Random(4), [f"w{i}" for i in range(9)], [4, 7, 9])
    prepared = prepare_references(references, list)
    expected = score_prepared(prepared, candidates).per_image
    images = random.Random(0).choices(list(references), k=60)
    rewards = cider_rewards(prepared, images, [candidates[image] for image in images])
    assert rewards == pytest.approx([expected[image]["CIDEr"] for image in images], abs=1e-12)


def test_rewards_of_nothing_are_nothing():
    prepared = prepare_references({1: ["a b"], 2: ["c d"]})
    assert cider_rewards(prepared, [], []).shape == (0,)


def test_leave_one_out_equals_pycocoevalcap_on_the_captions_left():
    rng = random.Random(5)
    references = {i: [" ".join(rng.choices("abcdefgh", k=7)) for _ in range(3)] for i in range(12)}
    rounds = []
    for k in range(3):
        rest = {image: captions[:k] + captions[k + 1 :] for image, captions in references.items()}
        left_out = {image: captions[k] for image, captions in references.items()}
        rounds.append(reference_scores(rest, left_out)[0])
    expected = {name: np.mean([corpus[name] for corpus in rounds]) for name in NAMES}
    assert leave_one_out(references, list) == pytest.approx(expected, abs=1e-9)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ({1: ["a"]}, {1: "a", 7: "b"}, "1 of 2 predictions are for images without references, the first 7"),
        ({1: ["a"], 2: ["b"]}, {2: "b"}, "1 of 2 images have no prediction, the first 1"),
        ({1: ["a"]}, {"1": "a"}, "ids have one type"),
        ({1: []}, {1: "a"}, "image 1 has an empty list of references"),
        ({1: "a dog"}, {1: "a"}, "references of image 1 must be a list of captions, got str"),
        ({1: ["a", None]}, {1: "a"}, "a reference of image 1 must be a string, got NoneType"),
        ({1: ["a"]}, {1: ["a"]}, "the caption of image 1 must be a string, got list"),
        ({}, {}, "references are empty"),
    ],
)
def test_score_refuses_bad_input_in_one_line(references: dict, candidates: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        score(references, candidates)
    assert "\n" not in str(error.value)


def test_rewards_and_leave_one_out_refuse_bad_input():
    prepared = prepare_references({1: ["a"], 2: ["b"]})
    with pytest.raises(ValueError, match="image 3 has no references"):
        cider_rewards(prepared, [3], ["a"])
    with pytest.raises(ValueError, match="2 images for 1 captions"):
        cider_rewards(prepared, [1, 2], ["a"])
    with pytest.raises(ValueError, match=r"image 2 has 1 caption"):
        leave_one_out({1: ["a", "b"], 2: ["c"]})


# --- statistics ---------------------------------------------------------------------------------------------


def test_text_statistics_of_a_small_set_by_hand():
    statistics = text_statistics(["A dog runs.", "a dog dog sits", "on the mat on the mat", ""])
    assert statistics.captions == 4
    assert statistics.vocabulary == 7 and statistics.distinct_1 == 7 / 13
    assert statistics.distinct_2 == 7 / 10  # a-dog, dog-runs, dog-dog, dog-sits, on-the, the-mat, mat-on
    assert statistics.mean_length == 13 / 4
    assert statistics.repetition == 1 / 4 + 1 / 4  # a word twice in a row; three words that come again


def test_two_words_that_come_again_are_no_repetition():
    assert text_statistics(["the red ball hits the red wall"]).repetition == 0


def test_text_statistics_need_a_caption():
    with pytest.raises(ValueError, match="no captions"):
        text_statistics([])


# --- nanocaption score --------------------------------------------------------------------------------------


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def coco_files(tmp_path: Path) -> tuple[str, str]:
    sample = json.loads((DATA / "score_sample.json").read_text("utf-8"))
    number = {image: place for place, image in enumerate(sample["references"])}
    annotations = [
        {"image_id": number[image], "id": 0, "caption": caption}
        for image, captions in sample["references"].items() for caption in captions
    ]  # fmt: skip
    results = [{"image_id": number[image], "caption": text} for image, text in sample["candidates"].items()]
    references = write(tmp_path / "references.json", {"annotations": annotations, "images": []})
    return references, write(tmp_path / "predictions.json", results)


def test_command_line_scores_coco_files(tmp_path: Path, capsys: pytest.CaptureFixture):
    references, predictions = coco_files(tmp_path)
    assert metrics_main([references, predictions, "--json", str(tmp_path / "out.json")]) == 0
    expected = json.loads((DATA / "score_sample.json").read_text("utf-8"))["corpus"]
    written = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert {name: written[name] for name in NAMES} == pytest.approx(expected, abs=1e-9)
    printed = capsys.readouterr()
    assert "CIDEr         2.2083" in printed.out and "8 images are few (under 100)" in printed.err


def test_command_line_takes_plain_mappings_and_mixed_id_types(tmp_path: Path):
    sample = json.loads((DATA / "score_sample.json").read_text("utf-8"))
    references, _ = coco_files(tmp_path)
    numbered = {str(place): text for place, text in enumerate(sample["candidates"].values())}
    out = tmp_path / "out.json"
    assert metrics_main([references, write(tmp_path / "p.json", numbered), "--json", str(out)]) == 0
    plain = write(tmp_path / "r.json", sample["references"])
    again = tmp_path / "again.json"
    assert metrics_main([plain, write(tmp_path / "q.json", sample["candidates"]), "--json", str(again)]) == 0
    assert json.loads(out.read_text("utf-8")) == json.loads(again.read_text("utf-8"))


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        ({"1": ["a"], "2": ["b"]}, [{"image_id": 1, "caption": "a"}] * 2, "two captions for image 1"),
        ({"1": ["a"]}, [{"image_id": 1, "text": "a"}], 'each entry needs "image_id" and "caption"'),
        ({"1": ["a"]}, [{"image_id": 5, "caption": "a"}], "images without references, the first 5"),
        ({"1": ["a"]}, [{"image_id": [1], "caption": "a"}], "image_id must be a number or a string"),
        ({"1": ["a"]}, [{"image_id": 1, "caption": None}], "must be a string, got None"),
        ({"1": ["a"]}, {"1": ["a", "b"]}, "keep one for each image; a file of references is named first"),
        ([1], {"1": "a"}, "is no reference file"),
        ({"1": ["a"]}, [{"image_id": i, "caption": "a"} for i in (1, "1")], "two captions for image '1'"),
    ],
)
def test_command_line_answers_bad_files_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, references: object, predictions: object, message: str
):
    files = write(tmp_path / "r.json", references), write(tmp_path / "p.json", predictions)
    assert metrics_main(list(files)) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and "Traceback" not in printed


PLANS = {2: ["Two men look at a plan B.", "Two men read"], 4: ["a cat sits on a mat", "a cat on a mat"],
         1: ["a map of plan B.", "the plan B."], 3: ["The dog runs in the park", "The dog is there"]}  # fmt: skip
PLANNED = {1: "a map of plan B.", 2: "two men read plan B.", 3: "The dog runs in a park", 4: "a cat on a mat sits"}


def test_captions_are_read_in_the_order_of_the_images_as_their_tokens_depend_on_neighbours(tmp_path: Path):
    annotations = [{"image_id": image, "caption": caption} for image in (1, 2, 3, 4) for caption in PLANS[image]]
    content = {"images": [{"id": image} for image in PLANS], "annotations": annotations}
    predictions = write(tmp_path / "p.json", [{"image_id": i, "caption": text} for i, text in PLANNED.items()])
    found = {}
    for name, part in (("images", content), ("none", {"annotations": annotations})):
        out = tmp_path / f"{name}.json"
        references = write(tmp_path / "r.json", part)
        assert metrics_main([references, predictions, "--json", str(out)]) == 0
        found[name] = json.loads(out.read_text("utf-8"))
    # Values of pycocoevalcap 1.2 with its Java tokenizer.
    expected = {"Bleu_1": 0.9545454545020661, "Bleu_4": 0.6418277965151052, "CIDEr": 4.661775393354574,
                "ROUGE_L": 0.866159738650445}  # fmt: skip
    assert {name: found["images"][name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert score(PLANS, PLANNED)["CIDEr"] == pytest.approx(expected["CIDEr"], abs=1e-9)
    assert found["none"]["CIDEr"] != pytest.approx(expected["CIDEr"], abs=0.1)
    # One caption at a time has no neighbours.
    alone = score(PLANS, PLANNED, lambda captions: [ptb_tokenize([caption])[0] for caption in captions])
    assert alone["CIDEr"] != pytest.approx(expected["CIDEr"], abs=0.1)


def test_command_line_takes_a_byte_order_mark_and_refuses_what_lists_no_images(tmp_path: Path, capsys):
    references, predictions = tmp_path / "r.json", tmp_path / "p.json"
    references.write_text(json.dumps({"1": ["a dog"], "2": ["a cat"]}), encoding="utf-8-sig")
    predictions.write_text(json.dumps({"1": "a dog", "2": "a cat"}), encoding="utf-8-sig")
    assert metrics_main([str(references), str(predictions)]) == 0
    references.write_text(json.dumps({"images": [1], "annotations": []}), encoding="utf-8")
    assert metrics_main([str(references), str(predictions)]) == 1
    assert capsys.readouterr().err.endswith('"images" must be a list of {"id": ...}, or left out\n')
    predictions.write_text("[" * 100_000, encoding="utf-8")
    references.write_text(json.dumps({"1": ["a dog"]}), encoding="utf-8")
    assert metrics_main([str(references), str(predictions)]) == 1 and "is not JSON" in capsys.readouterr().err


def test_command_line_refuses_a_json_key_twice_and_broken_json(tmp_path: Path, capsys: pytest.CaptureFixture):
    references = write(tmp_path / "r.json", {"1": ["a"]})
    for text, message in (('{"1": "a", "1": "b"}', "the key '1' twice"), ("{", "is not JSON")):
        (tmp_path / "p.json").write_text(text, encoding="utf-8")
        assert metrics_main([references, str(tmp_path / "p.json")]) == 1
        assert message in capsys.readouterr().err
    assert metrics_main([references, str(tmp_path / "absent.json")]) == 1
    (tmp_path / "p.json").write_bytes(b"\xff\xfe")
    assert metrics_main([references, str(tmp_path / "p.json")]) == 1
    assert capsys.readouterr().err.endswith(".json is not UTF-8 text, so it is not JSON: 'utf-8' codec can't decode "
                                            "byte 0xff in position 0: invalid start byte\n")  # fmt: skip


def test_command_line_warns_in_one_line_and_looks_for_the_folder_of_json_first(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    files = write(tmp_path / "r.json", {"1": ["a"]}), write(tmp_path / "p.json", {"1": "a"})
    assert metrics_main([*files, "--json", str(tmp_path / "nowhere" / "x.json")]) == 1
    told = capsys.readouterr()
    assert told.out == "" and "its folder does not exist" in told.err
    command = [sys.executable, "-m", "nanocaption", "score", *files]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr.startswith("warning: CIDEr of a single image is always 0")
    assert all(line.startswith("warning: ") for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    "error, code, told",
    [(KeyboardInterrupt, 130, "Stopped."), (BrokenPipeError, 141, ""),
     (OSError(28, "No space left on device"), 1, "No space left on device: free some space, or name another place")],
)  # fmt: skip
def test_command_line_ends_without_a_traceback(tmp_path: Path, monkeypatch, capfd, error, code, told):
    def fails(*_):
        raise error

    monkeypatch.setattr("nanocaption.commands.score.report", fails)
    monkeypatch.setattr("nanocaption.base.cli.os.dup2", lambda *_: None)
    assert metrics_main([str(tmp_path / "r.json"), str(tmp_path / "p.json")]) == code
    assert capfd.readouterr().err.strip() == told


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "nanocaption", "score", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "references" in result.stdout


def test_library_stays_silent_on_few_images():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score({1: ["a dog"], 2: ["a cat"]}, {1: "a dog", 2: "a cat"})
