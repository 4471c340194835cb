"""Consensus: CIDEr-D of captions against others of their picture, under the document frequencies of a training set."""

import numpy as np
import pytest

from nanocaption.metrics import cider_rewards, consensus, prepare_references


def test_it_is_the_hand_computed_agreement_and_picks_by_it():
    training = prepare_references({1: ["dog runs"], 2: ["cat sits"]})
    # All words weigh ln 2. Equal: cosine 1 for words and pairs, 0 for the longer n-grams there are none of: 10 * 2/4.
    # One of two words: cosine 1/2 for words alone: 10 * (1/2)/4.
    (found,) = consensus(training, [["dog sits", "dog runs", "zebra"]], [["dog runs", "dog runs"]])
    assert found.tolist() == pytest.approx([1.25, 5.0, 0.0])
    (found,) = consensus(training, [["dog sits", "dog runs", "cat sits"]], [["dog runs", "cat sits", "cat sits"]])
    assert found.tolist() == pytest.approx([(1.25 + 2 * (10 * (0.5) / 4)) / 3, 5 / 3, 10 / 3])
    assert found.argmax() == 2


def captions(rng: np.random.Generator, number: int) -> list[str]:
    words = ["a", "dog", "cat", "man", "runs", "sits", "on", "the", "red", "grass", "and", "beach"]
    return [" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(number)]


def test_it_equals_the_rewards_where_the_judges_are_the_references():
    rng = np.random.default_rng(1)
    references = {number: [text or "dog" for text in captions(rng, 5)] for number in range(30)}
    training = prepare_references(references)
    candidates = [captions(rng, 4) for _ in references]
    found = consensus(training, candidates, list(references.values()))
    names = [name for name in references for _ in range(4)]
    expected = cider_rewards(training, names, [text for own in candidates for text in own])
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-9)
    assert np.concatenate(found).max() > 1
    shuffled = consensus(training, candidates, list(references.values())[::-1])  # the control: judges matter
    assert not np.allclose(np.concatenate(found), np.concatenate(shuffled))


def test_an_image_is_judged_alike_whatever_stands_beside_it():
    """PTB may read a full stop otherwise where a capital follows it in the next caption."""
    training = prepare_references({1: ["plan b. today"], 2: ["cat sits"], 3: ["two men run"]})
    own, judges = ["plan b.", "two men"], ["plan b.", "plan b. today"]
    (alone,) = consensus(training, [own], [judges])
    beside = consensus(training, [["Two men"], own, ["Two men run"]], [["Two."], judges, ["Cat"]])[1]
    assert alone.tolist() == beside.tolist()


def test_an_image_without_a_judge_is_refused():
    with pytest.raises(ValueError, match="1 of 2 images have no caption to judge by"):
        consensus(prepare_references({1: ["dog"], 2: ["cat"]}), [["dog"], ["cat"]], [["dog"], []])
