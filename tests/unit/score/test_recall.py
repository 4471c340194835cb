"""Recall from a matrix of scores: as a plain count over pairs gives it, at ties by the expected rank."""

import numpy as np
import pytest

from nanocaption.score import retrieval
from nanocaption.score.retrieval import fold_scores, intervals, queries_of, ranks_of, retrieval_scores


def brute_force(scores, owner):
    """The ranks, one query after the other and one candidate after the other."""
    images, captions = len(scores), len(owner)
    t2i = []
    for c in range(captions):
        rank = 1.0
        for i in range(images):
            if i != owner[c]:
                rank += 1.0 * (scores[i][c] > scores[owner[c]][c]) + 0.5 * (scores[i][c] == scores[owner[c]][c])
        t2i.append(rank)
    i2t = []
    for i in range(images):
        of_each = []
        for c in range(captions):
            if owner[c] == i:
                others = [scores[i][d] for d in range(captions) if owner[d] != i]
                of_each.append(1.0 + sum((o > scores[i][c]) + 0.5 * (o == scores[i][c]) for o in others))
        i2t.append(min(of_each))
    return i2t, t2i


def test_ranks_are_those_of_a_plain_count_on_200_matrices_with_ties(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(retrieval, "_CELLS", 20)  # several parts
    tied = 0
    for number in range(200):
        images = int(rng.integers(2, 9))
        owner = np.concatenate([np.arange(images), rng.integers(0, images, int(rng.integers(0, 12)))])
        rng.shuffle(owner)
        scores = rng.integers(0, (3, 6, 1000)[number % 3], (images, len(owner))).astype((np.float32, float)[number % 2])
        if number % 5 == 0:
            scores[rng.random(scores.shape) < 0.3] = -np.inf
        found, expected = ranks_of(scores, owner), brute_force(scores.tolist(), owner.tolist())
        assert found.i2t.tolist() == expected[0] and found.t2i.tolist() == expected[1]
        tied += np.mean(found.t2i % 1 > 0) > 0
        as_dict = retrieval_scores(scores, owner.tolist())
        assert as_dict["i2t_R@5"] == pytest.approx(100 * np.mean(np.array(expected[0]) <= 5))
        assert as_dict["t2i_median_rank"] == np.median(expected[1])
        assert as_dict["r_mean"] == pytest.approx(np.mean([as_dict[name] for name in retrieval.NAMES]))
    assert tied > 50  # the control: matrices without ties would show nothing of them


def test_a_model_that_scores_all_alike_is_at_chance_and_a_perfect_one_at_all():
    owner = np.repeat(np.arange(1000), 5)
    constant = retrieval_scores(np.zeros((1000, 5000), np.float32), owner)
    assert constant["t2i_R@1"] <= 0.1 and constant["i2t_R@1"] <= 0.1 and constant["r_mean"] <= 1
    assert constant["t2i_median_rank"] == 500.5
    perfect = retrieval_scores((owner == np.arange(1000)[:, None]).astype(np.float16), owner)
    assert set(perfect.values()) == {100.0, 1.0}
    shifted = retrieval_scores((np.roll(owner, 1) == np.arange(1000)[:, None]).astype(float), owner)
    assert shifted["t2i_R@1"] < perfect["t2i_R@1"]  # a map that is off by one caption shows


def test_folds_are_ranked_within_themselves():
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(20), 2)
    scores = rng.random((20, 40))
    parts = [retrieval_scores(scores[s : s + 4, 2 * s : 2 * s + 8], owner[:8]) for s in range(0, 20, 4)]
    found = fold_scores(scores, owner)
    assert found == {name: pytest.approx(np.mean([part[name] for part in parts])) for name in found}
    assert found["t2i_R@1"] != retrieval_scores(scores, owner)["t2i_R@1"]


def test_intervals_draw_images_with_their_captions():
    rng = np.random.default_rng(2)
    owner = np.repeat(np.arange(60), 5)
    good = np.repeat(rng.random(60) < 0.5, 5)  # an image is found by all of its captions or by none
    ranks = retrieval.Ranks(np.where(good[::5], 1.0, 50.0), np.where(good, 1.0, 50.0))
    found = intervals(ranks, owner)
    low, high = found["t2i_R@1"]
    assert low < 100 * good.mean() < high
    # By caption the interval would be less than half as wide.
    assert high - low == pytest.approx(2 * 1.96 * 50 / 60**0.5, rel=0.2)
    assert found == intervals(ranks, owner) and set(found) == {*retrieval.NAMES, "r_mean"}


@pytest.mark.parametrize(("scores", "owner", "told"), [
    (np.array([[0.0, np.nan], [0.0, 1.0]]), [0, 1], "1 of 4 scores are NaN"),
    (np.zeros((3, 2)), [0, 1], "1 of 3 images have no caption, the first is image 2"),
    (np.zeros((2, 3)), [0, 1], r"must be \(images, captions\)"),
    (np.zeros((2, 2)), [0, 2], "whole numbers from 0 to 1"),
    (np.zeros((2, 2)), [0.0, 1.0], "whole numbers from 0 to 1"),
    (np.zeros((1, 2)), [0, 0], "two images or more"),
    (np.zeros((2, 2), complex), [0, 1], "must be numbers"),
])  # fmt: skip
def test_what_cannot_be_ranked_is_one_line(scores, owner, told):
    with pytest.raises(ValueError, match=told) as error:
        retrieval_scores(scores, owner)
    assert "\n" not in str(error.value)


def test_the_protocol_takes_the_first_five_captions_of_each_picture():
    records = [{"file_name": f"{i}.jpg", "split": "val", "captions": [f"c{i}{k}" for k in range(n)]}
               for i, n in enumerate((5, 7, 2))]  # fmt: skip
    queries = queries_of(records)
    assert queries.texts == [*(f"c0{k}" for k in range(5)), *(f"c1{k}" for k in range(5)), "c20", "c21"]
    assert queries.image_of_caption.tolist() == [0] * 5 + [1] * 5 + [2] * 2 and queries.left_out == 2
    records[2]["captions"] = ["c00", "c00"]
    assert retrieval.repeated(queries_of(records)) == 3
    for wrong in ([*records, {"file_name": "bare.jpg", "split": "val", "captions": []}], records[:1]):
        with pytest.raises(ValueError, match=r"bare.jpg|two or more"):
            queries_of(wrong)
