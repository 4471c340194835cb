"""What rankings are mixed of: candidates both ways, the marginal, alpha and weight chosen by recall."""

import numpy as np
import pytest

from nanocaption.score.retrieval import retrieval_scores
from nanocaption.use import duplicates, ranking
from nanocaption.use.ranking import Chosen, candidates, choose, log_mean_exp, reranked


def test_candidates_are_the_first_k_both_ways_and_all_where_there_are_fewer():
    scores = np.random.default_rng(0).random((6, 18))
    found = candidates(scores, 4)
    for n in range(6):
        assert set(np.argsort(-scores[n])[:4]) <= set(np.flatnonzero(found[n]))
    for c in range(18):
        assert set(np.argsort(-scores[:, c])[:4]) <= set(np.flatnonzero(found[:, c]))
    assert found.sum() < found.size
    assert candidates(scores, 6).all() and candidates(scores, 1000).all()


def test_the_reranked_stand_before_all_others_which_keep_the_heads_order():
    rng = np.random.default_rng(1)
    head, likelihood, marginal = rng.random((5, 10)) * 10, rng.random((5, 10)) * -50, rng.random(10) * -20
    picked = candidates(head, 2)
    some = np.where(picked, likelihood, np.nan).astype(np.float32)
    found = reranked(head, some, marginal, Chosen(1.0, 0.5, 0.3, ""))
    assert not np.isnan(found).any() and found[picked].min() > found[~picked].max()
    expected = head + 0.3 * (likelihood - 0.5 * marginal)
    np.testing.assert_allclose(found[picked], expected[picked], rtol=1e-5)
    for n in range(5):
        left = np.flatnonzero(~picked[n])
        assert (np.argsort(found[n, left]) == np.argsort(head[n, left])).all()
    # The control: with a weight of 0 the head's own ranking is left as it is.
    same = reranked(head, some, marginal, Chosen(1.0, 0.5, 0.0, ""))
    assert (np.argsort(-same, 1)[:, :2] == np.argsort(-head, 1)[:, :2]).all()


def test_the_marginal_is_a_mean_of_probabilities_without_overflow():
    rows = np.log(np.array([[0.1, 0.5], [0.3, 0.1]]))
    np.testing.assert_allclose(log_mean_exp(rows), np.log([0.2, 0.3]), rtol=1e-6)
    np.testing.assert_allclose(log_mean_exp(rows - 2000), np.log([0.2, 0.3]) - 2000, rtol=1e-6)
    assert not np.allclose(log_mean_exp(rows), rows.mean(0))  # the mean of the logarithms is another number


def test_alpha_takes_out_what_captions_have_without_any_picture():
    rng = np.random.default_rng(2)
    owner = np.repeat(np.arange(20), 3)
    prior = rng.normal(-40, 10, 60)  # by length, tens of nats
    likelihood = (prior + 3 * (owner == np.arange(20)[:, None]) + rng.normal(0, 0.5, (20, 60))).astype(np.float32)
    chosen = choose(likelihood, prior, None, owner, "here")
    assert chosen.alpha == 1.0 and chosen.where == "here"
    plain, mended = (retrieval_scores(likelihood - a * prior, owner) for a in (0, 1))
    assert plain["i2t_R@1"] < 30 < 90 < mended["i2t_R@1"]
    assert plain["t2i_R@1"] == mended["t2i_R@1"]  # text to image needs none of it
    useless = choose(rng.random((20, 60)), prior, 10.0 * (owner == np.arange(20)[:, None]), owner, "here")
    assert useless.weight * 50 < 10 and ranking.without_val(True).alpha == 1 and ranking.without_val(False).alpha == 0


def test_near_pairs_are_of_different_splits_and_near(monkeypatch):
    monkeypatch.setattr(duplicates, "_ROWS", 2)
    vectors = np.random.default_rng(3).standard_normal((7, 16))
    vectors[5], vectors[6] = vectors[0] + 0.01, vectors[1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    splits, names = ["train"] * 4 + ["val", "test", "train"], list("abcdefg")
    (found,) = duplicates.near_pairs(vectors, splits, names)  # b and g are both in train
    assert found[:2] == ("a", "f") and found.splits == ("train", "test") and 0.99 < found.cosine < 1
    assert len(duplicates.near_pairs(vectors, [*splits[:6], "val"], names)) == 2
    assert duplicates.near_pairs(vectors, splits, names, near=0.99999) == []


@pytest.mark.parametrize(("by", "head", "told"), [
    ("likelihood,tail", True, "no ranking"), ("head", False, "no contrastive head"), ("both", False, "--objective"),
])  # fmt: skip
def test_a_ranking_that_cannot_be_is_one_line(by, head, told):
    from nanocaption.commands.retrieval_task import rankings_of

    with pytest.raises(SystemExit, match=told):
        rankings_of(by, head, "x.safetensors")
    assert rankings_of(None, False, "x") == ["likelihood"] and len(rankings_of(None, True, "x")) == 3
    assert rankings_of("both,likelihood", True, "x") == ["likelihood", "both"]
