"""Caption text: one normalisation, pure and idempotent; what is refused and what is repaired."""

import gzip
import json
import random
import unicodedata

import pytest

from nanocaption import metrics
from nanocaption.data.caption_text import clean, fault, normalise
from nanocaption.demo_set.captions import describe_scene
from nanocaption.demo_set.scenes import sample_scenes
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "data"

CASES = {
    "A dog runs in the yard .": "A dog runs in the yard.",
    "A dog , a cat and 3 children .": "A dog, a cat and 3 children.",
    "Look ! What is this ? ": "Look! What is this?",
    "a dog . . .": "a dog...",
    "two : one ; three": "two: one; three",
    'A shirt that says " Team 1 " .': 'A shirt that says "Team 1".',
    'It reads " Stop . "': 'It reads "Stop."',
    "It reads `` Stop ''": 'It reads "Stop"',
    'a 5 " knife': 'a 5 " knife',  # no partner: left
    'a 5" knife and a 6" fork': 'a 5" knife and a 6" fork',
    'a "good" dog': 'a "good" dog',
    "a man 's arm , he 's old": "a man's arm, he's old",
    "they do n't , ca n't and wo n't .": "they don't, can't and won't.",
    "I 'm here and we 'll go": "I'm here and we'll go",
    "the boys ' ball": "the boys' ball",
    "a ' good ' dog": "a 'good' dog",
    "a 'good' dog 'n bone": "a 'good' dog 'n bone",
    "a dog ( brown ) [ old ]": "a dog (brown) [old]",
    "fish &amp; chips &lt;3": "fish & chips <3",
    "two  spaces\tand\u00a0more\u2003": "two spaces and more",
    "line\none\r\ntwo\u2028three\u2029four\x85five": "line one two three four five",
    "nul\0 bell\x07 soft\u00ad\u200bmark\ufeff": "nul bell softmark",
    "cafe\u0301": "caf\u00e9",
    "a \U0001f468\u200d\U0001f469\u200d\U0001f467 family": "a \U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    "Two men - one old - sit": "Two men - one old - sit",
    "worth 3.50 or .5": "worth 3.50 or .5",
    "naïve café — 東京": "naïve café — 東京",
}  # fmt: skip


@pytest.mark.parametrize("before", CASES)
def test_each_rule_does_what_it_says(before):
    assert normalise(before) == CASES[before]
    assert normalise(before, "lower") == normalise(CASES[before].lower())


def test_normalisation_is_idempotent_on_anything():
    """Random texts of the characters and pieces that the rules look at, and of any characters at all."""
    rng = random.Random(1)
    pieces = [*" .,!?;:'\"()[]`&-", " ", " ", " '", "n't", " 's", "''", "``", "&amp;", "&amp;amp;", "a", "Dogs", "İ",
              "ẞ", "e", "\u0301", "\u0307", "\0", "\u2028", "\u200b", "\u00a0", "\u200d", "\U0001f415"]  # fmt: skip
    changed = 0
    for number in range(6_000):
        if number % 4:
            text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 14)))
        else:
            text = "".join(chr(rng.choice((rng.randint(0, 255), rng.randint(0, 0xD7FF)))) for _ in range(12))
        for case in ("keep", "lower"):
            once = normalise(text, case)
            changed += once != text
            assert normalise(once, case) == once, ascii(text)
            assert unicodedata.is_normalized("NFC", once) and once == " ".join(once.split()), ascii(text)
            assert "\0" not in once and "\u2028" not in once
    assert changed > 3_000


def test_the_demo_set_is_written_as_it_should_be():
    texts = [text for index, scene in enumerate(sample_scenes(1, 300)) for text in describe_scene(scene, 1, index)]
    assert [normalise(text) for text in texts] == texts


def test_scores_do_not_see_detached_punctuation_but_the_words_stay():
    """PTB's tokenizer takes punctuation off, so that references score alike before and after."""
    for before, after in CASES.items():
        if before.isascii() and before.isprintable() and not {"&", "\0"} & set(before):
            assert metrics.ptb_tokenize([before]) == metrics.ptb_tokenize([after]), before


def test_bad_captions_are_refused_with_the_reason():
    words = "word " * 10_000
    given = ["", " \u2028\t", None, 3, ["a dog"], "\ud800 dog", "a caf\ufffd", words, "x" * 9_000, " . ", "\0", "a dog"]
    cleaned = clean(given)
    assert cleaned.kept == ["a dog"] and not cleaned.changed
    assert [reason for reason, _ in cleaned.refused] == [
        "empty", "empty", "not text", "not text", "not text", "not valid UTF-8", "not valid UTF-8",
        "above 500 words or 5,000 characters", "above 500 words or 5,000 characters", "no word in it", "empty",
    ]  # fmt: skip
    assert all(shown.isascii() and len(shown) <= 80 for _, shown in cleaned.refused)
    assert clean(["word " * 500]).kept and clean(["東京"]).kept == ["東京"]


def test_repairs_are_told_apart_and_repeats_dropped():
    given = ["A dog .", "A dog.", "a\ndog", "a\0 cat", "A  cow", "fine"]
    cleaned = clean(given)
    assert cleaned.kept == given and not cleaned.refused
    assert [text for _, _, text in cleaned.changed] == ["A dog.", "A dog.", "a dog", "a cat", "A cow"]
    assert [what for what, _, _ in cleaned.changed] == [
        "spaces and punctuation", "said twice, one dropped", "line ends inside", "control characters",
        "spaces and punctuation",
    ]  # fmt: skip
    lower = clean(["A dog.", "a dog."], "lower")
    assert [what for what, _, _ in lower.changed] == ["case only", "said twice, one dropped"]


@pytest.mark.long
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_on_real_captions(tmp_path):
    """Detached text (Flickr8k) and attached text (Flickr30k) come out alike, with every word."""
    images = json.loads((SHARED / "flickr8k" / "dataset_flickr8k.json").read_text(encoding="utf-8"))["images"][:2000]
    detached = [sentence["raw"] for image in images for sentence in image["sentences"]]
    with gzip.open(SHARED / "flickr30k_train_captions.token.gz", "rt", encoding="utf-8") as file:
        attached = [line.rstrip("\n").partition("\t")[2] for line in file][:10_000]
    fixed = [normalise(text) for text in detached]
    assert sum(" ." in text or " ," in text for text in detached) > 8_000
    assert not any(" ." in text or " ," in text or " 's " in text for text in fixed)
    assert [text.replace(" ", "") for text in detached] == [text.replace(" ", "") for text in fixed]
    assert sum(normalise(text) != text for text in attached) < 50
    assert fault("a dog") is None
